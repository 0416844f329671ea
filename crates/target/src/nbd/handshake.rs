//! Option haggling: from the greeting to the choice of an export (Fixed newstyle negotiation).

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use playhead_wire::nbd::{
    export_name_answer, greeting, option::OPTION_HEADER_BYTES, text, transmission, ClientFlags,
    ExportRequest, Info, Malformed, MetaContextRequest, OptionHeader, OptionKind, Reply, ReplyError,
    BASE_ALLOCATION, HANDSHAKE_FIXED_NEWSTYLE, HANDSHAKE_NO_ZEROES, PAYLOAD_MAX_BYTES,
};

use super::accept::{Record, Shared};
use super::exports::{Export, ExportUse};
use super::socket::{left_until, Received, Way, Woken};
use crate::lun::BLOCK_BYTES;

/// Most data of one option that is looked at; more is read away and refused.
const OPTION_MAX_BYTES: u32 = 64 << 10;
/// Most data of one option that is worth reading away.
const OPTION_SKIP_MAX_BYTES: u32 = 16 << 20;
/// Most options of one handshake; a client that lists every export of an appliance stays far below.
const OPTIONS_MAX: usize = 20_000;
/// The number `base:allocation` has in our block status replies.
pub(super) const ALLOCATION_CONTEXT: u32 = 1;
/// Offsets and lengths of requests are multiples of this.
const BLOCK_MIN_BYTES: u32 = BLOCK_BYTES as u32;
/// The physical block; smaller writes are not slow, but nothing is gained by them.
const BLOCK_PREFERRED_BYTES: u32 = 4096;

/// What a client settled on.
pub(super) struct Chosen {
    /// The right to use the export.
    pub(super) entry: ExportUse,
    /// READs are answered with chunks.
    pub(super) structured: bool,
    /// BLOCK_STATUS answers for `base:allocation`.
    pub(super) allocation: bool,
}

/// How a handshake ends well.
pub(super) enum Outcome {
    /// With an export.
    Chosen(Chosen),
    /// The client wanted no more than to look, or we are stopping.
    Left,
}

/// How a handshake ends badly. Always for this connection only.
#[derive(Debug, thiserror::Error)]
pub(super) enum HandshakeError {
    #[error(transparent)]
    Socket(#[from] io::Error),
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("no export chosen within {0:?}")]
    TooSlow(Duration),
    #[error("an option of {0} bytes")]
    TooBig(u32),
    #[error("more than {OPTIONS_MAX} options")]
    TooMany,
    #[error("option {0:?} from a client without fixed newstyle")]
    NotFixed(OptionKind),
    #[error("chose an export it cannot have: {0}")]
    Refused(String),
}

/// Leads the handshake of a fresh connection.
pub(super) fn run(shared: &Shared, record: &Record) -> Result<Outcome, HandshakeError> {
    let mut handshake = Handshake {
        shared,
        record,
        deadline: Instant::now() + shared.limits.handshake,
        client: ClientFlags::default(),
        structured: false,
        allocation_of: None,
        answer: Vec::new(),
    };
    match handshake.lead() {
        Err(HandshakeError::Socket(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Ok(Outcome::Left)
        }
        other => other,
    }
}

struct Handshake<'a> {
    shared: &'a Shared,
    record: &'a Record,
    deadline: Instant,
    client: ClientFlags,
    structured: bool,
    /// The export `base:allocation` was selected for.
    allocation_of: Option<Arc<Export>>,
    answer: Vec<u8>,
}

/// A refusal of an option; the haggling goes on.
type Refusal = (ReplyError, String);

impl Handshake<'_> {
    fn lead(&mut self) -> Result<Outcome, HandshakeError> {
        self.send(&greeting(HANDSHAKE_FIXED_NEWSTYLE | HANDSHAKE_NO_ZEROES))?;
        let mut flags = [0; 4];
        self.receive(&mut flags)?;
        self.client = ClientFlags::parse(flags)?;
        for _ in 0..OPTIONS_MAX {
            let mut header = [0; OPTION_HEADER_BYTES];
            self.receive(&mut header)?;
            let header = OptionHeader::parse(&header)?;
            let kind = OptionKind::from_code(header.code);
            if !self.client.fixed_newstyle && kind != OptionKind::ExportName {
                return Err(HandshakeError::NotFixed(kind));
            }
            let Some(data) = self.receive_data(header.data_bytes)? else {
                self.reply(header.code, Reply::Error(ReplyError::TooBig, "too much data"));
                self.send_answer()?;
                continue;
            };
            if let Some(outcome) = self.option(kind, &data)? {
                return Ok(outcome);
            }
        }
        Err(HandshakeError::TooMany)
    }

    /// Answers one option. Some outcome ends the haggling.
    fn option(&mut self, kind: OptionKind, data: &[u8]) -> Result<Option<Outcome>, HandshakeError> {
        let code = kind.code();
        if self.shared.stopping() && kind != OptionKind::Abort {
            self.reply(code, Reply::Error(ReplyError::Shutdown, "the server is stopping"));
            self.send_answer()?;
            return Ok(None);
        }
        let mut chosen = None;
        let done = match kind {
            OptionKind::ExportName => return self.export_name(data).map(Some),
            OptionKind::Abort => {
                self.reply(code, Reply::Ack);
                self.send_answer()?;
                return Ok(Some(Outcome::Left));
            }
            OptionKind::List => self.list(code, data),
            OptionKind::StructuredReply => self.structured_reply(data),
            OptionKind::Info => self.info(code, data).map(|_| ()),
            OptionKind::Go => self.info(code, data).and_then(|export| {
                chosen = Some(self.choose(&export)?);
                Ok(())
            }),
            OptionKind::ListMetaContext => self.meta_context(code, data, false),
            OptionKind::SetMetaContext => self.meta_context(code, data, true),
            OptionKind::StartTls => Err((ReplyError::Unsupported, "this server does not speak TLS".into())),
            OptionKind::PeekExport | OptionKind::ExtendedHeaders | OptionKind::Unknown(_) => {
                Err((ReplyError::Unsupported, "unknown option".into()))
            }
        };
        match done {
            Ok(()) => self.reply(code, Reply::Ack),
            Err((error, words)) => {
                log::debug!("NBD client {}: {kind:?} refused: {words}", self.record.peer);
                self.reply(code, Reply::Error(error, &words));
            }
        }
        self.send_answer()?;
        Ok(chosen.map(Outcome::Chosen))
    }

    fn export_name(&mut self, data: &[u8]) -> Result<Outcome, HandshakeError> {
        let name = text(data)?;
        let refused = |words: String| HandshakeError::Refused(words);
        let export = self.shared.exports.find(name);
        let export = export.map_err(|error| refused(error.to_string()))?;
        let chosen = self.choose(&export).map_err(|(_, words)| refused(words))?;
        let answer =
            export_name_answer(export.strangers.size_bytes(), self.flags(&export), self.client.no_zeroes);
        self.send(&answer)?;
        Ok(Outcome::Chosen(chosen))
    }

    fn list(&mut self, code: u32, data: &[u8]) -> Result<(), Refusal> {
        empty(data)?;
        for export in self.shared.exports.all() {
            self.reply(code, Reply::Server { name: &export.name, description: &export.description });
        }
        Ok(())
    }

    fn structured_reply(&mut self, data: &[u8]) -> Result<(), Refusal> {
        empty(data)?;
        self.structured = true;
        Ok(())
    }

    /// INFO, and the first half of GO.
    fn info(&mut self, code: u32, data: &[u8]) -> Result<Arc<Export>, Refusal> {
        let request = ExportRequest::parse(data).map_err(invalid)?;
        let export = self.find(request.name)?;
        let facts = [
            Info::Export { size_bytes: export.strangers.size_bytes(), flags: self.flags(&export) },
            Info::Name(&export.name),
            Info::Description(&export.description),
            Info::BlockSize {
                minimum: BLOCK_MIN_BYTES,
                preferred: BLOCK_PREFERRED_BYTES,
                maximum: PAYLOAD_MAX_BYTES,
            },
        ];
        for fact in facts {
            let wanted = match fact {
                Info::Export { .. } => true,
                Info::Name(_) => request.wanted.contains(&Info::NAME),
                Info::Description(words) => !words.is_empty() && request.wanted.contains(&Info::DESCRIPTION),
                Info::BlockSize { .. } => request.wanted.contains(&Info::BLOCK_SIZE),
            };
            if wanted {
                self.reply(code, Reply::Info(fact));
            }
        }
        Ok(export)
    }

    fn meta_context(&mut self, code: u32, data: &[u8], set: bool) -> Result<(), Refusal> {
        if set {
            // Whatever comes of it, the earlier selection is over.
            self.allocation_of = None;
            if !self.structured {
                let words = "structured replies must be negotiated first";
                return Err((ReplyError::Invalid, words.into()));
            }
        }
        let request = MetaContextRequest::parse(data).map_err(invalid)?;
        let export = self.find(request.name)?;
        let mut found = !set && request.queries.is_empty();
        for query in &request.queries {
            if !query.contains(':') {
                let words = format!("query {query:?} has no namespace");
                return Err((ReplyError::Invalid, words));
            }
            found |= *query == BASE_ALLOCATION || (!set && *query == "base:");
        }
        if found {
            // The number in the answer to LIST is reserved, and 0.
            let id = if set { ALLOCATION_CONTEXT } else { 0 };
            self.reply(code, Reply::MetaContext { id, name: BASE_ALLOCATION });
            if set {
                self.allocation_of = Some(export);
            }
        }
        Ok(())
    }

    fn find(&self, name: &str) -> Result<Arc<Export>, Refusal> {
        let found = self.shared.exports.find(name);
        found.map_err(|error| (ReplyError::UnknownExport, error.to_string()))
    }

    fn choose(&self, export: &Arc<Export>) -> Result<Chosen, Refusal> {
        // Between finding and entering the export may have been removed.
        let entry = export.enter().ok_or_else(|| {
            let words = format!("no export is named {:?}", export.name);
            (ReplyError::UnknownExport, words)
        })?;
        let selected = self.allocation_of.as_ref();
        Ok(Chosen {
            entry,
            structured: self.structured,
            allocation: selected.is_some_and(|selected| Arc::ptr_eq(selected, export)),
        })
    }

    fn flags(&self, export: &Export) -> u16 {
        let mut flags = transmission::HAS_FLAGS
            | transmission::SEND_FLUSH
            | transmission::SEND_FUA
            | transmission::SEND_CACHE
            | transmission::CAN_MULTI_CONN;
        if export.read_only() {
            flags |= transmission::READ_ONLY;
        } else {
            if export.strangers.unmaps() {
                flags |= transmission::SEND_TRIM;
            }
            if export.strangers.zeroes() {
                // Zeroing is one record of the journal however long it is, so it is always the fast kind.
                flags |= transmission::SEND_WRITE_ZEROES | transmission::SEND_FAST_ZERO;
            }
        }
        if self.structured {
            flags |= transmission::SEND_DF;
        }
        flags
    }

    fn reply(&mut self, code: u32, reply: Reply<'_>) {
        reply.emit(code, &mut self.answer);
    }

    fn send_answer(&mut self) -> Result<(), HandshakeError> {
        let answer = std::mem::take(&mut self.answer);
        self.send(&answer)
    }

    /// Receives an option's data; nothing if it was read away for its size.
    fn receive_data(&mut self, count: u32) -> Result<Option<Vec<u8>>, HandshakeError> {
        if count > OPTION_SKIP_MAX_BYTES {
            return Err(HandshakeError::TooBig(count));
        }
        let mut data = vec![0; count.min(OPTION_MAX_BYTES) as usize];
        if count <= OPTION_MAX_BYTES {
            self.receive(&mut data)?;
            return Ok(Some(data));
        }
        let mut left = count as usize;
        while left > 0 {
            let piece = left.min(data.len());
            self.receive(&mut data[..piece])?;
            left -= piece;
        }
        Ok(None)
    }

    fn receive(&mut self, mut room: &mut [u8]) -> Result<(), HandshakeError> {
        while !room.is_empty() {
            // Also for a client that sends without a pause: it never makes us wait.
            if left_until(self.deadline).is_zero() {
                return Err(HandshakeError::TooSlow(self.shared.limits.handshake));
            }
            match self.record.socket.receive(room)? {
                Received::Bytes(count) => room = &mut room[count..],
                Received::Nothing => self.wait(Way::In)?,
                Received::End => return Err(end()),
            }
        }
        Ok(())
    }

    fn send(&mut self, mut bytes: &[u8]) -> Result<(), HandshakeError> {
        while !bytes.is_empty() {
            if left_until(self.deadline).is_zero() {
                return Err(HandshakeError::TooSlow(self.shared.limits.handshake));
            }
            match self.record.socket.send(bytes)? {
                0 => self.wait(Way::Out)?,
                count => bytes = &bytes[count..],
            }
        }
        Ok(())
    }

    fn wait(&self, way: Way) -> Result<(), HandshakeError> {
        let left = left_until(self.deadline);
        let wake = &self.record.mailbox.wake;
        match self.record.socket.wait(way, Some(wake), Some(left))? {
            // A client that says nothing while we stop is not waited for.
            Woken::Poke if self.shared.stopping() => Err(end()),
            Woken::Time => Err(HandshakeError::TooSlow(self.shared.limits.handshake)),
            Woken::Poke | Woken::Socket => Ok(()),
        }
    }
}

fn end() -> HandshakeError {
    HandshakeError::Socket(io::ErrorKind::UnexpectedEof.into())
}

fn empty(data: &[u8]) -> Result<(), Refusal> {
    if data.is_empty() {
        Ok(())
    } else {
        Err((ReplyError::Invalid, "this option takes no data".into()))
    }
}

fn invalid(error: Malformed) -> Refusal {
    (ReplyError::Invalid, error.to_string())
}
