//! What a server answers during the handshake (Option reply types).

use super::option::push_text;
use super::{clip_text, text, Fields, Malformed, REPLY_MAGIC};

/// Bytes of a reply's header; its data follows.
pub const REPLY_HEADER_BYTES: usize = 20;

/// A reply's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplyHeader {
    /// The number of the option this answers.
    pub option: u32,
    /// The number of the reply's type.
    pub kind: u32,
    /// Bytes of data that follow.
    pub data_bytes: u32,
}

impl ReplyHeader {
    /// Reads a header. The data's length is the peer's word only.
    pub fn parse(bytes: &[u8; REPLY_HEADER_BYTES]) -> Result<ReplyHeader, Malformed> {
        let mut fields = Fields::new(bytes);
        fields.magic_u64(REPLY_MAGIC)?;
        Ok(ReplyHeader { option: fields.u32()?, kind: fields.u32()?, data_bytes: fields.u32()? })
    }
}

/// The errors of the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum ReplyError {
    /// The option is not known here.
    Unsupported = 0x8000_0001,
    /// Known, but forbidden by policy.
    Policy = 0x8000_0002,
    /// Known, but its data makes no sense, or it comes at the wrong time.
    Invalid = 0x8000_0003,
    /// Not on this platform.
    Platform = 0x8000_0004,
    /// TLS first.
    TlsRequired = 0x8000_0005,
    /// No such export.
    UnknownExport = 0x8000_0006,
    /// The server is stopping.
    Shutdown = 0x8000_0007,
    /// The client must ask for the block size first.
    BlockSizeRequired = 0x8000_0008,
    /// Too large to process.
    TooBig = 0x8000_0009,
    /// Extended headers first.
    ExtendedHeadersRequired = 0x8000_000a,
}

impl ReplyError {
    /// The error of this number.
    pub fn from_code(code: u32) -> Option<ReplyError> {
        Some(match code {
            0x8000_0001 => ReplyError::Unsupported,
            0x8000_0002 => ReplyError::Policy,
            0x8000_0003 => ReplyError::Invalid,
            0x8000_0004 => ReplyError::Platform,
            0x8000_0005 => ReplyError::TlsRequired,
            0x8000_0006 => ReplyError::UnknownExport,
            0x8000_0007 => ReplyError::Shutdown,
            0x8000_0008 => ReplyError::BlockSizeRequired,
            0x8000_0009 => ReplyError::TooBig,
            0x8000_000a => ReplyError::ExtendedHeadersRequired,
            _ => return None,
        })
    }
}

/// What a server tells about an export (NBD_REP_INFO).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Info<'a> {
    /// Size and abilities; every successful INFO and GO has it.
    Export {
        /// Size in bytes.
        size_bytes: u64,
        /// [`super::transmission`] flags.
        flags: u16,
    },
    /// The name the server itself uses.
    Name(&'a str),
    /// A line for people.
    Description(&'a str),
    /// Size constraints, in bytes.
    BlockSize {
        /// Smallest unit of offset and length.
        minimum: u32,
        /// From here on efficient.
        preferred: u32,
        /// Largest payload of one message.
        maximum: u32,
    },
}

impl Info<'_> {
    /// Number of [`Info::Export`].
    pub const EXPORT: u16 = 0;
    /// Number of [`Info::Name`].
    pub const NAME: u16 = 1;
    /// Number of [`Info::Description`].
    pub const DESCRIPTION: u16 = 2;
    /// Number of [`Info::BlockSize`].
    pub const BLOCK_SIZE: u16 = 3;
}

/// One reply to an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply<'a> {
    /// Accepted, and the last reply to it.
    Ack,
    /// One export (NBD_REP_SERVER).
    Server {
        /// Its name.
        name: &'a str,
        /// A line for people, may be empty.
        description: &'a str,
    },
    /// A fact about an export.
    Info(Info<'a>),
    /// One metadata context.
    MetaContext {
        /// The number it has in block status replies.
        id: u32,
        /// Its name.
        name: &'a str,
    },
    /// Refused, with words for people, may be empty; the last reply to it.
    Error(ReplyError, &'a str),
}

impl<'a> Reply<'a> {
    fn kind(&self) -> u32 {
        match self {
            Reply::Ack => 1,
            Reply::Server { .. } => 2,
            Reply::Info(_) => 3,
            Reply::MetaContext { .. } => 4,
            Reply::Error(error, _) => *error as u32,
        }
    }

    /// Appends the reply to option number `option`. Words for people are cut to what the protocol allows.
    pub fn emit(&self, option: u32, out: &mut Vec<u8>) {
        out.extend_from_slice(&REPLY_MAGIC.to_be_bytes());
        out.extend_from_slice(&option.to_be_bytes());
        out.extend_from_slice(&self.kind().to_be_bytes());
        let length_at = out.len();
        out.extend_from_slice(&[0; 4]);
        match *self {
            Reply::Ack => {}
            Reply::Server { name, description } => {
                push_text(out, name);
                out.extend_from_slice(clip_text(description).as_bytes());
            }
            Reply::Info(info) => emit_info(info, out),
            Reply::MetaContext { id, name } => {
                out.extend_from_slice(&id.to_be_bytes());
                out.extend_from_slice(name.as_bytes());
            }
            Reply::Error(_, message) => out.extend_from_slice(clip_text(message).as_bytes()),
        }
        let data_bytes = (out.len() - length_at - 4) as u32;
        out[length_at..length_at + 4].copy_from_slice(&data_bytes.to_be_bytes());
    }

    /// Reads the data of a reply of type number `kind`.
    pub fn parse(kind: u32, data: &'a [u8]) -> Result<Reply<'a>, Malformed> {
        let mut fields = Fields::new(data);
        let reply = match kind {
            1 => Reply::Ack,
            2 => {
                let name_bytes = fields.u32()? as usize;
                Reply::Server { name: fields.text(name_bytes)?, description: text(fields.take_rest())? }
            }
            3 => Reply::Info(parse_info(&mut fields)?),
            4 => Reply::MetaContext { id: fields.u32()?, name: text(fields.take_rest())? },
            other => {
                let error = ReplyError::from_code(other).ok_or(Malformed::Value { value: other })?;
                Reply::Error(error, text(fields.take_rest())?)
            }
        };
        fields.finish()?;
        Ok(reply)
    }
}

fn emit_info(info: Info<'_>, out: &mut Vec<u8>) {
    match info {
        Info::Export { size_bytes, flags } => {
            out.extend_from_slice(&Info::EXPORT.to_be_bytes());
            out.extend_from_slice(&size_bytes.to_be_bytes());
            out.extend_from_slice(&flags.to_be_bytes());
        }
        Info::Name(name) => {
            out.extend_from_slice(&Info::NAME.to_be_bytes());
            out.extend_from_slice(name.as_bytes());
        }
        Info::Description(description) => {
            out.extend_from_slice(&Info::DESCRIPTION.to_be_bytes());
            out.extend_from_slice(clip_text(description).as_bytes());
        }
        Info::BlockSize { minimum, preferred, maximum } => {
            out.extend_from_slice(&Info::BLOCK_SIZE.to_be_bytes());
            out.extend_from_slice(&minimum.to_be_bytes());
            out.extend_from_slice(&preferred.to_be_bytes());
            out.extend_from_slice(&maximum.to_be_bytes());
        }
    }
}

fn parse_info<'a>(fields: &mut Fields<'a>) -> Result<Info<'a>, Malformed> {
    match fields.u16()? {
        Info::EXPORT => Ok(Info::Export { size_bytes: fields.u64()?, flags: fields.u16()? }),
        Info::NAME => Ok(Info::Name(text(fields.take_rest())?)),
        Info::DESCRIPTION => Ok(Info::Description(text(fields.take_rest())?)),
        Info::BLOCK_SIZE => {
            Ok(Info::BlockSize { minimum: fields.u32()?, preferred: fields.u32()?, maximum: fields.u32()? })
        }
        other => Err(Malformed::Value { value: other.into() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn round_trip(reply: Reply<'_>) {
        let mut bytes = Vec::new();
        reply.emit(7, &mut bytes);
        let header = ReplyHeader::parse(bytes.first_chunk().unwrap()).unwrap();
        assert_eq!(header.option, 7);
        assert_eq!(header.data_bytes as usize, bytes.len() - REPLY_HEADER_BYTES);
        assert_eq!(Reply::parse(header.kind, &bytes[REPLY_HEADER_BYTES..]), Ok(reply));
    }

    #[test]
    fn every_reply_round_trips() {
        round_trip(Reply::Ack);
        round_trip(Reply::Server { name: "disk", description: "a disk" });
        round_trip(Reply::Info(Info::Export { size_bytes: 1 << 46, flags: 0x0fff }));
        round_trip(Reply::Info(Info::Name("disk")));
        round_trip(Reply::Info(Info::Description("ein Gerät")));
        round_trip(Reply::Info(Info::BlockSize { minimum: 512, preferred: 4096, maximum: 32 << 20 }));
        round_trip(Reply::MetaContext { id: 1, name: "base:allocation" });
        for code in 0x8000_0001..=0x8000_000a {
            round_trip(Reply::Error(ReplyError::from_code(code).unwrap(), "no"));
        }
    }

    #[test]
    fn info_lengths_are_those_of_the_document() {
        let mut bytes = Vec::new();
        Reply::Info(Info::Export { size_bytes: 0, flags: 0 }).emit(7, &mut bytes);
        assert_eq!(bytes.len(), REPLY_HEADER_BYTES + 12);
        bytes.clear();
        let size = Info::BlockSize { minimum: 1, preferred: 4096, maximum: 1 << 25 };
        Reply::Info(size).emit(7, &mut bytes);
        assert_eq!(bytes.len(), REPLY_HEADER_BYTES + 14);
    }

    proptest! {
        #[test]
        fn parsers_take_any_bytes(kind in prop_oneof![0_u32..6, 0x8000_0000_u32..0x8000_000c], bytes in vec(any::<u8>(), 0..100)) {
            if let Ok(reply) = Reply::parse(kind, &bytes) {
                let mut again = Vec::new();
                reply.emit(1, &mut again);
                prop_assert_eq!(&again[REPLY_HEADER_BYTES..], &bytes[..]);
            }
            if let Some(header) = bytes.first_chunk() {
                let _ = ReplyHeader::parse(header);
            }
        }
    }
}
