//! What a server answers to requests (Simple reply message, Structured reply chunk message, Error values).

use super::{clip_text, Fields, Malformed, CHUNK_MAGIC, SIMPLE_REPLY_MAGIC};

/// Bytes of a simple reply; the data of a successful READ follows.
pub const SIMPLE_REPLY_BYTES: usize = 16;
/// Bytes of a chunk's header.
pub const CHUNK_HEADER_BYTES: usize = 20;
/// Bytes of the header of a data chunk, with the offset that starts its payload.
pub const DATA_CHUNK_HEADER_BYTES: usize = CHUNK_HEADER_BYTES + 8;
/// Most descriptors of one block status chunk (NBD_REPLY_TYPE_BLOCK_STATUS).
pub const DESCRIPTORS_MAX: usize = 1 << 20;

/// Chunk flag: the last one of its reply.
pub const CHUNK_DONE: u16 = 1 << 0;
/// Chunk type: nothing but the end.
pub const CHUNK_NONE: u16 = 0;
/// Chunk type: data at an offset.
pub const CHUNK_DATA: u16 = 1;
/// Chunk type: zeros at an offset.
pub const CHUNK_HOLE: u16 = 2;
/// Chunk type: extents of one metadata context.
pub const CHUNK_BLOCK_STATUS: u16 = 5;
/// Chunk type: an error.
pub const CHUNK_ERROR: u16 = (1 << 15) + 1;
/// Chunk type: an error at an offset.
pub const CHUNK_ERROR_OFFSET: u16 = (1 << 15) + 2;

/// The errors a request can end with (Error values).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum ErrorCode {
    /// Operation not permitted: a change of a read-only export.
    Permission = 1,
    /// Input/output error.
    Io = 5,
    /// Cannot allocate memory.
    Memory = 12,
    /// Invalid argument.
    Invalid = 22,
    /// No space left, or a write past the end.
    NoSpace = 28,
    /// Value too large.
    Overflow = 75,
    /// Operation not supported.
    NotSupported = 95,
    /// The server is shutting down.
    Shutdown = 108,
}

impl ErrorCode {
    /// The error of this number.
    pub fn from_code(code: u32) -> Option<ErrorCode> {
        Some(match code {
            1 => ErrorCode::Permission,
            5 => ErrorCode::Io,
            12 => ErrorCode::Memory,
            22 => ErrorCode::Invalid,
            28 => ErrorCode::NoSpace,
            75 => ErrorCode::Overflow,
            95 => ErrorCode::NotSupported,
            108 => ErrorCode::Shutdown,
            _ => return None,
        })
    }
}

/// One extent of a block status chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptor {
    /// Bytes, at least 1.
    pub length: u32,
    /// Status bits of the context; for `base:allocation` [`super::STATE_HOLE`] and [`super::STATE_ZERO`].
    pub status: u32,
}

/// A simple reply. The data of a successful READ must follow at once.
pub fn simple_reply(cookie: u64, error: Option<ErrorCode>) -> [u8; SIMPLE_REPLY_BYTES] {
    let mut out = [0; SIMPLE_REPLY_BYTES];
    out[..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    out[4..8].copy_from_slice(&error.map_or(0, |error| error as u32).to_be_bytes());
    out[8..].copy_from_slice(&cookie.to_be_bytes());
    out
}

/// The header of a chunk with `payload_bytes` of payload to follow.
pub fn chunk_header(cookie: u64, kind: u16, done: bool, payload_bytes: u32) -> [u8; CHUNK_HEADER_BYTES] {
    let mut out = [0; CHUNK_HEADER_BYTES];
    out[..4].copy_from_slice(&CHUNK_MAGIC.to_be_bytes());
    out[4..6].copy_from_slice(&(if done { CHUNK_DONE } else { 0 }).to_be_bytes());
    out[6..8].copy_from_slice(&kind.to_be_bytes());
    out[8..16].copy_from_slice(&cookie.to_be_bytes());
    out[16..].copy_from_slice(&payload_bytes.to_be_bytes());
    out
}

/// The header of a data chunk of `data_bytes` (at least 1, at most `u32::MAX - 8`) at `offset`; the data must follow at once.
pub fn data_chunk_header(
    cookie: u64,
    done: bool,
    offset: u64,
    data_bytes: u32,
) -> [u8; DATA_CHUNK_HEADER_BYTES] {
    let mut out = [0; DATA_CHUNK_HEADER_BYTES];
    let header = chunk_header(cookie, CHUNK_DATA, done, data_bytes.saturating_add(8));
    out[..CHUNK_HEADER_BYTES].copy_from_slice(&header);
    out[CHUNK_HEADER_BYTES..].copy_from_slice(&offset.to_be_bytes());
    out
}

/// A whole chunk that says `bytes` bytes (at least 1) at `offset` are zeros.
pub fn hole_chunk(cookie: u64, done: bool, offset: u64, bytes: u32) -> [u8; 32] {
    let mut out = [0; 32];
    out[..CHUNK_HEADER_BYTES].copy_from_slice(&chunk_header(cookie, CHUNK_HOLE, done, 12));
    out[20..28].copy_from_slice(&offset.to_be_bytes());
    out[28..].copy_from_slice(&bytes.to_be_bytes());
    out
}

/// A whole chunk that ends a reply and says nothing more.
pub fn none_chunk(cookie: u64) -> [u8; CHUNK_HEADER_BYTES] {
    chunk_header(cookie, CHUNK_NONE, true, 0)
}

/// A whole chunk that ends a reply with an error and words for people, which are cut to what the protocol allows.
pub fn error_chunk(cookie: u64, error: ErrorCode, message: &str) -> Vec<u8> {
    let message = clip_text(message);
    let payload_bytes = 6 + message.len() as u32;
    let mut out = Vec::with_capacity(CHUNK_HEADER_BYTES + payload_bytes as usize);
    out.extend_from_slice(&chunk_header(cookie, CHUNK_ERROR, true, payload_bytes));
    out.extend_from_slice(&(error as u32).to_be_bytes());
    out.extend_from_slice(&(message.len() as u16).to_be_bytes());
    out.extend_from_slice(message.as_bytes());
    out
}

/// A whole block status chunk, the only one of its reply. Descriptors past [`DESCRIPTORS_MAX`] are left off, as the protocol
/// lets a server answer for less than was asked.
pub fn block_status(cookie: u64, context: u32, descriptors: &[Descriptor]) -> Vec<u8> {
    let descriptors = &descriptors[..descriptors.len().min(DESCRIPTORS_MAX)];
    let payload_bytes = 4 + 8 * descriptors.len();
    let mut out = Vec::with_capacity(CHUNK_HEADER_BYTES + payload_bytes);
    out.extend_from_slice(&chunk_header(cookie, CHUNK_BLOCK_STATUS, true, payload_bytes as u32));
    out.extend_from_slice(&context.to_be_bytes());
    for descriptor in descriptors {
        out.extend_from_slice(&descriptor.length.to_be_bytes());
        out.extend_from_slice(&descriptor.status.to_be_bytes());
    }
    out
}

/// The header of an answer, as a client reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// A simple reply; a READ's data follows if there is no error.
    Simple {
        /// The request's.
        cookie: u64,
        /// 0, or an [`ErrorCode`].
        error: u32,
    },
    /// A chunk; `payload_bytes` follow.
    Chunk {
        /// The request's.
        cookie: u64,
        /// CHUNK_DONE or not.
        flags: u16,
        /// CHUNK_* type.
        kind: u16,
        /// Bytes that follow.
        payload_bytes: u32,
    },
}

impl Answer {
    /// Reads an answer's header off the front of `bytes`; returns it and its length.
    pub fn parse(bytes: &[u8]) -> Result<(Answer, usize), Malformed> {
        let mut fields = Fields::new(bytes);
        if bytes.starts_with(&CHUNK_MAGIC.to_be_bytes()) {
            fields.magic_u32(CHUNK_MAGIC)?;
            let (flags, kind) = (fields.u16()?, fields.u16()?);
            let chunk = Answer::Chunk { cookie: fields.u64()?, flags, kind, payload_bytes: fields.u32()? };
            return Ok((chunk, CHUNK_HEADER_BYTES));
        }
        fields.magic_u32(SIMPLE_REPLY_MAGIC)?;
        let error = fields.u32()?;
        let cookie = fields.u64()?;
        Ok((Answer::Simple { cookie, error }, SIMPLE_REPLY_BYTES))
    }
}

/// The payload of a chunk, as a client reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChunkPayload<'a> {
    /// Nothing.
    None,
    /// Data at an offset.
    Data {
        /// First byte.
        offset: u64,
        /// The bytes.
        data: &'a [u8],
    },
    /// Zeros at an offset.
    Hole {
        /// First byte.
        offset: u64,
        /// Bytes.
        bytes: u32,
    },
    /// Extents of a metadata context.
    BlockStatus {
        /// The context's number.
        context: u32,
        /// Adjoining extents from the request's offset on.
        descriptors: Vec<Descriptor>,
    },
    /// An error.
    Error {
        /// An [`ErrorCode`], or anything.
        error: u32,
        /// Words for people.
        message: &'a str,
        /// Where, if it was said.
        offset: Option<u64>,
    },
}

impl<'a> ChunkPayload<'a> {
    /// Reads the whole payload of a chunk of type `kind`.
    pub fn parse(kind: u16, payload: &'a [u8]) -> Result<ChunkPayload<'a>, Malformed> {
        let mut fields = Fields::new(payload);
        let parsed = match kind {
            CHUNK_NONE => ChunkPayload::None,
            CHUNK_DATA => {
                let offset = fields.u64()?;
                let data = fields.take_rest();
                if data.is_empty() {
                    return Err(Malformed::Length);
                }
                ChunkPayload::Data { offset, data }
            }
            CHUNK_HOLE => {
                let offset = fields.u64()?;
                let bytes = fields.u32()?;
                if bytes == 0 {
                    return Err(Malformed::Length);
                }
                ChunkPayload::Hole { offset, bytes }
            }
            CHUNK_BLOCK_STATUS => {
                let context = fields.u32()?;
                let count = fields.left() / 8;
                let mut descriptors = Vec::with_capacity(count);
                for _ in 0..count {
                    let (length, status) = (fields.u32()?, fields.u32()?);
                    if length == 0 {
                        return Err(Malformed::Length);
                    }
                    descriptors.push(Descriptor { length, status });
                }
                if descriptors.is_empty() {
                    return Err(Malformed::Length);
                }
                ChunkPayload::BlockStatus { context, descriptors }
            }
            CHUNK_ERROR | CHUNK_ERROR_OFFSET => {
                let error = fields.u32()?;
                let message_bytes = fields.u16()?;
                let message = fields.text(message_bytes.into())?;
                let offset = match kind {
                    CHUNK_ERROR => None,
                    _ => Some(fields.u64()?),
                };
                ChunkPayload::Error { error, message, offset }
            }
            other => return Err(Malformed::Value { value: other.into() }),
        };
        fields.finish()?;
        Ok(parsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn chunk(bytes: &[u8]) -> (u64, bool, ChunkPayload<'_>) {
        let (answer, used) = Answer::parse(bytes).unwrap();
        let Answer::Chunk { cookie, flags, kind, payload_bytes } = answer else {
            panic!("not a chunk: {answer:?}");
        };
        assert_eq!(payload_bytes as usize, bytes.len() - used);
        let payload = ChunkPayload::parse(kind, &bytes[used..]).unwrap();
        (cookie, flags & CHUNK_DONE != 0, payload)
    }

    #[test]
    fn simple_replies_round_trip() {
        let (answer, used) = Answer::parse(&simple_reply(7, Some(ErrorCode::NoSpace))).unwrap();
        assert_eq!(used, SIMPLE_REPLY_BYTES);
        let expected = Answer::Simple { cookie: 7, error: 28 };
        assert_eq!(answer, expected);
        for code in 0..200 {
            if let Some(error) = ErrorCode::from_code(code) {
                assert_eq!(error as u32, code);
            }
        }
    }

    #[test]
    fn error_words_are_cut_at_4096_bytes() {
        let bytes = error_chunk(1, ErrorCode::Io, &"ä".repeat(4000));
        let (_, done, payload) = chunk(&bytes);
        assert!(done);
        let ChunkPayload::Error { message, .. } = payload else {
            panic!("{payload:?}");
        };
        assert_eq!(message, "ä".repeat(2048));
    }

    proptest! {
        #[test]
        fn chunks_round_trip(cookie in any::<u64>(), offset in any::<u64>(), bytes in 1..u32::MAX, done in any::<bool>(), data in vec(any::<u8>(), 1..50)) {
            let hole = hole_chunk(cookie, done, offset, bytes);
            prop_assert_eq!(chunk(&hole), (cookie, done, ChunkPayload::Hole { offset, bytes }));
            let mut whole = data_chunk_header(cookie, done, offset, data.len() as u32).to_vec();
            whole.extend_from_slice(&data);
            prop_assert_eq!(chunk(&whole), (cookie, done, ChunkPayload::Data { offset, data: &data }));
            let none = none_chunk(cookie);
            prop_assert_eq!(chunk(&none), (cookie, true, ChunkPayload::None));
        }

        #[test]
        fn block_status_round_trips(cookie in any::<u64>(), context in any::<u32>(), extents in vec((1..u32::MAX, 0_u32..4), 1..20)) {
            let descriptors: Vec<_> = extents.into_iter().map(|(length, status)| Descriptor { length, status }).collect();
            let bytes = block_status(cookie, context, &descriptors);
            prop_assert_eq!(chunk(&bytes), (cookie, true, ChunkPayload::BlockStatus { context, descriptors }));
        }

        #[test]
        fn parsers_take_any_bytes(kind in prop_oneof![0_u16..8, 0x8000_u16..0x8004], bytes in vec(any::<u8>(), 0..100)) {
            let _ = Answer::parse(&bytes);
            let _ = ChunkPayload::parse(kind, &bytes);
        }
    }
}
