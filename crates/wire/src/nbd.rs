//! NBD messages: the newstyle handshake, its options, and the transmission phase, as "The NBD protocol" describes them
//! (NetworkBlockDevice/nbd, doc/proto.md; its section titles are cited below).
//!
//! In the order a connection meets them: [`greeting`] and [`ClientFlags`], then [`option`] requests with [`reply`] packets,
//! then [`request`]s with [`answer`]s. All integers are big-endian.
//!
//! Both directions are here for every message, so that a test can play either side; a server parses what clients send and
//! builds what servers send.

pub mod answer;
pub mod option;
pub mod reply;
pub mod request;

pub use answer::{
    block_status, chunk_header, data_chunk_header, error_chunk, hole_chunk, none_chunk, simple_reply, Answer,
    Descriptor, ErrorCode, CHUNK_HEADER_BYTES, DATA_CHUNK_HEADER_BYTES, SIMPLE_REPLY_BYTES,
};
pub use option::{ExportRequest, MetaContextRequest, OptionHeader, OptionKind};
pub use reply::{Info, Reply, ReplyError};
pub use request::{Command, Request, REQUEST_BYTES};

/// First word of the greeting, "NBDMAGIC" (Newstyle negotiation).
pub const GREETING_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Second word of the greeting and first word of every option, "IHAVEOPT".
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// First word of every reply to an option.
pub const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// First word of a request (Request message).
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// First word of a simple reply (Simple reply message).
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// First word of a chunk (Structured reply chunk message).
pub const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// Longest string of the protocol, in bytes (Conventions): export names, descriptions, error messages.
pub const STRING_MAX_BYTES: usize = 4096;
/// Payload every peer is expected to cope with, 32 MiB (Size constraints).
pub const PAYLOAD_MAX_BYTES: u32 = 32 << 20;

/// Handshake flag: replies to options have the fixed format (Handshake flags).
pub const HANDSHAKE_FIXED_NEWSTYLE: u16 = 1 << 0;
/// Handshake flag: the 124 zeros after EXPORT_NAME may be left out.
pub const HANDSHAKE_NO_ZEROES: u16 = 1 << 1;

/// Transmission flags (Transmission flags): what an export can do.
pub mod transmission {
    /// Always set.
    pub const HAS_FLAGS: u16 = 1 << 0;
    /// Every change is refused.
    pub const READ_ONLY: u16 = 1 << 1;
    /// FLUSH is there.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// The FUA command flag is there.
    pub const SEND_FUA: u16 = 1 << 3;
    /// Behaves like a spinning disk.
    pub const ROTATIONAL: u16 = 1 << 4;
    /// TRIM is there.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// WRITE_ZEROES and its NO_HOLE flag are there.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// The DF command flag is there; only with structured replies.
    pub const SEND_DF: u16 = 1 << 7;
    /// What one connection flushed, all connections flushed.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    /// CACHE is there.
    pub const SEND_CACHE: u16 = 1 << 10;
    /// The FAST_ZERO command flag is there.
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// The name of the one metadata context the protocol itself defines (The `base:` metadata namespace).
pub const BASE_ALLOCATION: &str = "base:allocation";
/// `base:allocation` status: not allocated.
pub const STATE_HOLE: u32 = 1 << 0;
/// `base:allocation` status: reads as zeros.
pub const STATE_ZERO: u32 = 1 << 1;

/// Bytes of [`greeting`].
pub const GREETING_BYTES: usize = 18;
/// Bytes of the zeros that follow an EXPORT_NAME answer unless NO_ZEROES was negotiated.
pub const EXPORT_NAME_PADDING_BYTES: usize = 124;

/// Why bytes from a peer are not a message of this protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// A message starts with the wrong magic number: the stream has lost its step, nothing after it means anything.
    #[error("bad magic number {found:#x}, expected {expected:#x}")]
    Magic {
        /// What the message must start with.
        expected: u64,
        /// What came.
        found: u64,
    },
    /// The bytes end before the message does.
    #[error("message is truncated: {have} bytes of at least {need}")]
    Truncated {
        /// Bytes needed.
        need: usize,
        /// Bytes there.
        have: usize,
    },
    /// Lengths inside the message contradict each other.
    #[error("lengths inside the message do not add up")]
    Length,
    /// A string is too long, not UTF-8, or has a NUL in it (Conventions).
    #[error("not a string of at most {STRING_MAX_BYTES} bytes of UTF-8 without NUL")]
    Text,
    /// A client flag nobody defined: the server must close (Newstyle negotiation).
    #[error("unknown client flags {flags:#x}")]
    ClientFlags {
        /// The whole field.
        flags: u32,
    },
    /// A type or field value that has no meaning here.
    #[error("unknown value {value:#x}")]
    Value {
        /// What came.
        value: u32,
    },
}

/// The server's first message: both magic numbers and `flags` (HANDSHAKE_*).
pub fn greeting(flags: u16) -> [u8; GREETING_BYTES] {
    let mut out = [0; GREETING_BYTES];
    out[..8].copy_from_slice(&GREETING_MAGIC.to_be_bytes());
    out[8..16].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
    out[16..].copy_from_slice(&flags.to_be_bytes());
    out
}

/// Reads a server's greeting; returns its handshake flags.
pub fn parse_greeting(bytes: &[u8]) -> Result<u16, Malformed> {
    let mut fields = Fields::new(bytes);
    fields.magic_u64(GREETING_MAGIC)?;
    fields.magic_u64(OPTION_MAGIC)?;
    fields.u16()
}

/// What a client answers to the greeting (Client flags).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ClientFlags {
    /// The client understands replies to options; without it only EXPORT_NAME may follow.
    pub fixed_newstyle: bool,
    /// The client does not want the 124 zeros.
    pub no_zeroes: bool,
}

impl ClientFlags {
    /// Reads the four bytes. Unknown bits are an error: the server must close then.
    pub fn parse(bytes: [u8; 4]) -> Result<ClientFlags, Malformed> {
        let flags = u32::from_be_bytes(bytes);
        if flags & !3 != 0 {
            return Err(Malformed::ClientFlags { flags });
        }
        Ok(ClientFlags { fixed_newstyle: flags & 1 != 0, no_zeroes: flags & 2 != 0 })
    }

    /// The four bytes.
    pub fn to_bytes(self) -> [u8; 4] {
        (u32::from(self.fixed_newstyle) | u32::from(self.no_zeroes) << 1).to_be_bytes()
    }
}

/// The answer to EXPORT_NAME: size in bytes, transmission flags, and the zeros unless `no_zeroes`.
pub fn export_name_answer(size_bytes: u64, flags: u16, no_zeroes: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(10 + EXPORT_NAME_PADDING_BYTES);
    out.extend_from_slice(&size_bytes.to_be_bytes());
    out.extend_from_slice(&flags.to_be_bytes());
    if !no_zeroes {
        out.resize(10 + EXPORT_NAME_PADDING_BYTES, 0);
    }
    out
}

/// Cuts big-endian fields off the front of a message, one after another.
pub(crate) struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Fields<'a> {
        Fields { rest: bytes }
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let Some((head, rest)) = self.rest.split_at_checked(count) else {
            return Err(Malformed::Truncated { need: count, have: self.rest.len() });
        };
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let Some((head, rest)) = self.rest.split_first_chunk::<N>() else {
            return Err(Malformed::Truncated { need: N, have: self.rest.len() });
        };
        self.rest = rest;
        Ok(*head)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Malformed> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    pub(crate) fn magic_u64(&mut self, expected: u64) -> Result<(), Malformed> {
        let found = self.u64()?;
        if found == expected {
            Ok(())
        } else {
            Err(Malformed::Magic { expected, found })
        }
    }

    pub(crate) fn magic_u32(&mut self, expected: u32) -> Result<(), Malformed> {
        let found = self.u32()?;
        if found == expected {
            Ok(())
        } else {
            Err(Malformed::Magic { expected: expected.into(), found: found.into() })
        }
    }

    /// A string of `count` bytes under the rules of Conventions.
    pub(crate) fn text(&mut self, count: usize) -> Result<&'a str, Malformed> {
        text(self.bytes(count)?)
    }

    pub(crate) fn take_rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    pub(crate) fn left(&self) -> usize {
        self.rest.len()
    }

    pub(crate) fn finish(self) -> Result<(), Malformed> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(Malformed::Length)
        }
    }
}

/// A string under the rules of Conventions: UTF-8, no NUL, at most [`STRING_MAX_BYTES`].
pub fn text(bytes: &[u8]) -> Result<&str, Malformed> {
    if bytes.len() > STRING_MAX_BYTES || bytes.contains(&0) {
        return Err(Malformed::Text);
    }
    std::str::from_utf8(bytes).map_err(|_| Malformed::Text)
}

/// `message` cut to what the protocol allows, at a character's edge, up to its first NUL.
pub(crate) fn clip_text(message: &str) -> &str {
    let message = message.split('\0').next().unwrap_or_default();
    let mut end = message.len().min(STRING_MAX_BYTES);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    &message[..end]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn greeting_reads_as_the_document_prints_it() {
        assert_eq!(&greeting(3), b"NBDMAGICIHAVEOPT\0\x03");
        assert_eq!(parse_greeting(&greeting(3)), Ok(3));
        assert_eq!(
            parse_greeting(b"NBDMAGICIHAVEOPS\0\x03"),
            Err(Malformed::Magic { expected: OPTION_MAGIC, found: OPTION_MAGIC - 1 })
        );
    }

    #[test]
    fn unknown_client_flags_are_refused() {
        assert_eq!(ClientFlags::parse([0, 0, 0, 7]), Err(Malformed::ClientFlags { flags: 7 }));
        for flags in 0..4_u32 {
            let parsed = ClientFlags::parse(flags.to_be_bytes()).unwrap();
            assert_eq!(parsed.to_bytes(), flags.to_be_bytes());
        }
    }

    #[test]
    fn export_name_answer_has_its_zeros_unless_declined() {
        assert_eq!(export_name_answer(512, 1, false).len(), 134);
        assert_eq!(export_name_answer(0x0102, 0x0304, true), [0, 0, 0, 0, 0, 0, 1, 2, 3, 4]);
    }

    proptest! {
        #[test]
        fn any_bytes_make_a_string_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..5000)) {
            if let Ok(read) = text(&bytes) {
                prop_assert_eq!(read.as_bytes(), &bytes[..]);
            }
            let _ = parse_greeting(&bytes);
        }

        #[test]
        fn clipped_text_is_always_a_legal_string(message in ".{0,3000}") {
            prop_assert!(text(clip_text(&message).as_bytes()).is_ok());
        }
    }
}
