//! Executing requests and wording their answers: everything of the transmission phase that is not about receiving.

use std::borrow::Cow;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use playhead_wire::nbd::request::{FLAG_DF, FLAG_NO_HOLE};
use playhead_wire::nbd::{
    error_chunk, simple_reply, Command, ErrorCode, Malformed, Request, PAYLOAD_MAX_BYTES,
};

use super::accept::{Record, Shared};
use super::buffers::Output;
use super::exports::ExportUse;
use super::handshake::Chosen;
use super::reads::HoleProbe;
use super::socket::{wait_poke, Way, Woken};
use crate::lun::{Change, LunError, LunRef, BLOCK_BYTES};

/// From this much on, answers are sent before more requests are executed. It bounds the memory a client can make us hold that
/// asks for more than it fetches.
pub(super) const SEND_BYTES: usize = 1 << 20;

/// How a session ends badly. Always for this connection only.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    #[error(transparent)]
    Socket(#[from] io::Error),
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("the client hung up in the middle of a request")]
    CutShort,
    #[error("the client sent no more of a request for {0:?}")]
    StalledSending(Duration),
    #[error("the client fetched no answers for {0:?}")]
    StalledReceiving(Duration),
    #[error("a read failed after its answer had begun: {0}")]
    MidAnswer(LunError),
    #[error("cut by the server's stop")]
    Cut,
}

/// Why one request is refused; the session goes on.
#[derive(Debug, Clone)]
pub(super) struct Refusal {
    code: ErrorCode,
    words: Cow<'static, str>,
}

impl Refusal {
    pub(super) fn new(code: ErrorCode, words: &'static str) -> Refusal {
        Refusal { code, words: Cow::Borrowed(words) }
    }

    /// The export was removed, or the server stops.
    pub(super) fn closed() -> Refusal {
        Refusal::new(ErrorCode::Shutdown, "the export is closed")
    }

    /// The error of a LUN, for a request that changes it or for one that does not.
    fn of_lun(error: &LunError, changing: bool) -> Refusal {
        let code = match error {
            LunError::OutOfRange { .. } if changing => ErrorCode::NoSpace,
            LunError::OutOfRange { .. } => ErrorCode::Invalid,
            LunError::ReadOnly { .. } => ErrorCode::Permission,
            LunError::NoSpace { .. } => ErrorCode::NoSpace,
            LunError::Gone { .. } => ErrorCode::Shutdown,
            LunError::Unsupported { .. } => ErrorCode::NotSupported,
            LunError::Io { .. } => ErrorCode::Io,
        };
        Refusal { code, words: Cow::Owned(error.to_string()) }
    }
}

/// The LUN as one round of requests sees it.
pub(super) struct Disk {
    pub(super) lun: LunRef,
    size_bytes: u64,
    read_only: bool,
    /// Reservations of SCSI initiators let a client read.
    may_read: bool,
    /// And write.
    may_write: bool,
    trims: bool,
    zeroes: bool,
}

/// A change that is in the batch and not answered.
struct Ack {
    cookie: u64,
    fua: bool,
    payload_bytes: u32,
}

/// A connection's desk.
pub(super) struct Desk<'a> {
    pub(super) shared: &'a Shared,
    pub(super) record: &'a Record,
    pub(super) structured: bool,
    pub(super) output: Output,
    pub(super) probe: HoleProbe,
    allocation: bool,
    entry: Option<ExportUse>,
    acks: Vec<Ack>,
    /// Requests that wait for the next flush to be issued.
    flushes: Vec<u64>,
    /// Flushes issued and not over.
    flushing: usize,
    /// The LUN's error last logged.
    noted: Option<LunError>,
}

impl<'a> Desk<'a> {
    pub(super) fn new(shared: &'a Shared, record: &'a Record, chosen: Chosen) -> Desk<'a> {
        Desk {
            shared,
            record,
            structured: chosen.structured,
            output: Output::default(),
            probe: HoleProbe::default(),
            allocation: chosen.allocation,
            entry: Some(chosen.entry),
            acks: Vec::new(),
            flushes: Vec::new(),
            flushing: 0,
            noted: None,
        }
    }

    /// The LUN as it is now; nothing once [`Desk::leave`] was called.
    pub(super) fn disk(&self) -> Option<Disk> {
        let entry = self.entry.as_ref()?;
        let strangers = &entry.export().strangers;
        Some(Disk {
            lun: LunRef::clone(&strangers.lun),
            size_bytes: strangers.size_bytes(),
            read_only: strangers.lun.read_only(),
            may_read: strangers.admitted(false),
            may_write: strangers.admitted(true),
            trims: strangers.unmaps(),
            zeroes: strangers.zeroes(),
        })
    }

    /// Whether this session must come to its end.
    pub(super) fn must_leave(&self) -> bool {
        let removed = |entry: &ExportUse| entry.export().closing();
        self.entry.as_ref().is_some_and(removed) || (self.entry.is_some() && self.shared.stopping())
    }

    /// Lets go of the LUN: every request from now on gets ESHUTDOWN.
    pub(super) fn leave(&mut self) {
        self.entry = None;
    }

    pub(super) fn flushing(&self) -> bool {
        self.flushing > 0
    }

    /// Whether `request` can be executed at all (Size constraints, Command flags, Error values).
    pub(super) fn check<'d>(&self, disk: Option<&'d Disk>, request: &Request) -> Result<&'d Disk, Refusal> {
        let refuse = |code, words| Err(Refusal::new(code, words));
        let Some(disk) = disk else {
            return Err(Refusal::closed());
        };
        let command = request.command;
        let df = request.flags & FLAG_DF != 0;
        if request.flags & !command.allowed_flags() != 0 || (df && !self.structured) {
            return refuse(ErrorCode::Invalid, "a flag that does not go with this request");
        }
        let changing = match command {
            Command::Unknown(_) => return refuse(ErrorCode::Invalid, "unknown request"),
            Command::Flush if request.offset != 0 || request.length != 0 => {
                return refuse(ErrorCode::Invalid, "a flush has no offset and no length")
            }
            Command::Flush | Command::Disconnect => return Ok(disk),
            Command::BlockStatus if !self.allocation => {
                return refuse(ErrorCode::Invalid, "no metadata context was selected")
            }
            Command::BlockStatus if request.length == 0 => {
                return refuse(ErrorCode::Invalid, "the status of no blocks was asked for")
            }
            Command::Write | Command::Trim | Command::WriteZeroes => true,
            Command::Read | Command::Cache | Command::BlockStatus => false,
        };
        if changing && disk.read_only {
            return refuse(ErrorCode::Permission, "the export is read-only");
        }
        if !(if changing { disk.may_write } else { disk.may_read }) {
            return refuse(ErrorCode::Permission, "a SCSI initiator has reserved the disk");
        }
        match command {
            Command::Trim if !disk.trims => {
                return refuse(ErrorCode::NotSupported, "unmap is rejected by policy")
            }
            Command::WriteZeroes if !disk.zeroes => {
                return refuse(ErrorCode::NotSupported, "write-same is rejected by policy: write the zeros")
            }
            _ => {}
        }
        let end = request.offset.checked_add(u64::from(request.length));
        if end.is_none_or(|end| end > disk.size_bytes) {
            let code = match command {
                Command::Write | Command::WriteZeroes => ErrorCode::NoSpace,
                _ => ErrorCode::Invalid,
            };
            return refuse(code, "beyond the end of the export");
        }
        let block = BLOCK_BYTES as u64;
        if request.offset % block != 0 || u64::from(request.length) % block != 0 {
            return refuse(ErrorCode::Invalid, "not a multiple of 512 bytes");
        }
        if request.length > PAYLOAD_MAX_BYTES {
            match command {
                Command::Write => return refuse(ErrorCode::Invalid, "more than 32 MiB at once"),
                Command::Read if df => return refuse(ErrorCode::Overflow, "more than 32 MiB in one piece"),
                Command::Read if !self.structured => {
                    return refuse(ErrorCode::Invalid, "more than 32 MiB in one piece")
                }
                _ => {}
            }
        }
        Ok(disk)
    }

    /// The change that a checked write, trim or write zeroes is; nothing if it is of no length. `payload` is the write's data.
    /// Where policy rejects unmap, zeroing makes no hole either.
    pub(super) fn change<'b>(&self, disk: &Disk, request: &Request, payload: &'b [u8]) -> Option<Change<'b>> {
        let lba = request.offset / BLOCK_BYTES as u64;
        let count = u64::from(request.length) / BLOCK_BYTES as u64;
        if count == 0 {
            return None;
        }
        Some(match request.command {
            Command::Write => Change::Write { lba, data: payload },
            Command::WriteZeroes if request.flags & FLAG_NO_HOLE != 0 || !disk.trims => {
                Change::Zero { lba, count }
            }
            _ => Change::Unmap { lba, count },
        })
    }

    /// `request` will be answered by the next [`Desk::settle`].
    pub(super) fn expect(&mut self, request: &Request) {
        self.acks.push(Ack {
            cookie: request.cookie,
            fua: request.fua(),
            payload_bytes: request.payload_bytes(),
        });
    }

    /// A flush, to be issued by the next [`Desk::settle`].
    pub(super) fn expect_flush(&mut self, request: &Request) {
        self.flushes.push(request.cookie);
    }

    /// Submits the batch, answers the requests in it, and issues one flush for all that wait for one. A flush of the same round
    /// thus covers its writes too, which is more than the client may ask for.
    pub(super) fn settle(&mut self, disk: Option<&Disk>, batch: &[Change<'_>]) {
        let refusal = match batch {
            [] => None,
            _ => self.submit(disk, batch).err(),
        };
        let mut acks = std::mem::take(&mut self.acks);
        let mut written_bytes = 0;
        for ack in acks.drain(..) {
            match &refusal {
                Some(refusal) => self.answer_error(ack.cookie, refusal),
                None if ack.fua => self.flushes.push(ack.cookie),
                None => self.answer_done(ack.cookie),
            }
            written_bytes += u64::from(ack.payload_bytes);
        }
        self.acks = acks;
        if refusal.is_none() {
            add(&self.record.written_bytes, written_bytes);
        }
        let Some(disk) = disk else { return };
        if !self.flushes.is_empty() {
            let cookies = std::mem::take(&mut self.flushes);
            self.flushing += 1;
            disk.lun.flush(self.record.mailbox.flush_done(cookies));
        }
    }

    /// Hands changes to the LUN, all or none.
    pub(super) fn submit(&mut self, disk: Option<&Disk>, changes: &[Change<'_>]) -> Result<(), Refusal> {
        let Some(disk) = disk else {
            return Err(Refusal::closed());
        };
        match disk.lun.submit(changes) {
            Ok(_) => Ok(()),
            Err(error) => Err(self.refusal(&error, true)),
        }
    }

    /// The refusal that an error of the LUN is. It is logged the first time in a row only: a full journal fails every write.
    pub(super) fn refusal(&mut self, error: &LunError, changing: bool) -> Refusal {
        if self.noted.as_ref() != Some(error) {
            log::warn!("NBD client {} is told: {error}", self.record.peer);
            self.noted = Some(error.clone());
        }
        Refusal::of_lun(error, changing)
    }

    /// Answers the requests whose flush is over.
    pub(super) fn take_finished(&mut self) {
        if self.flushing == 0 {
            return;
        }
        for finished in self.record.mailbox.take() {
            self.flushing = self.flushing.saturating_sub(1);
            let refusal = finished.result.err().map(|error| self.refusal(&error, true));
            for cookie in finished.cookies {
                match &refusal {
                    Some(refusal) => self.answer_error(cookie, refusal),
                    None => self.answer_done(cookie),
                }
            }
        }
    }

    /// Waits for all flushes and sends their answers.
    pub(super) fn finish_flushes(&mut self) -> Result<(), SessionError> {
        loop {
            self.take_finished();
            self.send_all()?;
            if self.flushing == 0 {
                return Ok(());
            }
            if self.record.socket.is_cut() {
                return Err(SessionError::Cut);
            }
            if self.record.mailbox.park() {
                wait_poke(&self.record.mailbox.wake)?;
            }
        }
    }

    /// Success without data. A simple reply is right in either mode, and the shortest.
    pub(super) fn answer_done(&mut self, cookie: u64) {
        self.output.push(&simple_reply(cookie, None));
    }

    /// An error, with words where the client can take them.
    pub(super) fn answer_error(&mut self, cookie: u64, refusal: &Refusal) {
        log::debug!("NBD request of {} refused: {}", self.record.peer, refusal.words);
        if self.structured {
            let chunk = error_chunk(cookie, refusal.code, &refusal.words);
            self.output.push(&chunk);
        } else {
            self.output.push(&simple_reply(cookie, Some(refusal.code)));
        }
    }

    /// Sends all answers, waiting for the client to fetch them.
    pub(super) fn send_all(&mut self) -> Result<(), SessionError> {
        while !self.output.pending().is_empty() {
            match self.record.socket.send(self.output.pending())? {
                0 => {
                    let stall = self.shared.limits.stall;
                    let woken = self.record.socket.wait(Way::Out, None, Some(stall))?;
                    if woken == Woken::Time {
                        return Err(SessionError::StalledReceiving(stall));
                    }
                }
                count => self.output.sent(count),
            }
        }
        Ok(())
    }
}

/// Adds to a counter that only this thread writes.
pub(super) fn add(counter: &AtomicU64, count: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
}
