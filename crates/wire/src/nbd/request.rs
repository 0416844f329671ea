//! What a client asks once an export is chosen (Request message, Request types, Command flags).

use super::{Malformed, REQUEST_MAGIC};

/// Bytes of a request; a WRITE's payload follows.
pub const REQUEST_BYTES: usize = 28;

/// Command flag: answer only when persistent.
pub const FLAG_FUA: u16 = 1 << 0;
/// Command flag of WRITE_ZEROES: keep the blocks provisioned.
pub const FLAG_NO_HOLE: u16 = 1 << 1;
/// Command flag of READ: one content chunk at most.
pub const FLAG_DF: u16 = 1 << 2;
/// Command flag of BLOCK_STATUS: one extent only.
pub const FLAG_REQ_ONE: u16 = 1 << 3;
/// Command flag of WRITE_ZEROES: quickly, or not at all.
pub const FLAG_FAST_ZERO: u16 = 1 << 4;

/// The requests of the document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Command {
    /// Read.
    Read,
    /// Write the payload.
    Write,
    /// End the session.
    Disconnect,
    /// Make everything answered so far persistent.
    Flush,
    /// The data is no longer needed.
    Trim,
    /// The data will be needed soon.
    Cache,
    /// Write zeros.
    WriteZeroes,
    /// Metadata of extents.
    BlockStatus,
    /// Not in the document, or an experiment.
    Unknown(u16),
}

impl Command {
    /// The request of this number.
    pub fn from_code(code: u16) -> Command {
        match code {
            0 => Command::Read,
            1 => Command::Write,
            2 => Command::Disconnect,
            3 => Command::Flush,
            4 => Command::Trim,
            5 => Command::Cache,
            6 => Command::WriteZeroes,
            7 => Command::BlockStatus,
            other => Command::Unknown(other),
        }
    }

    /// The number of this request.
    pub fn code(self) -> u16 {
        match self {
            Command::Read => 0,
            Command::Write => 1,
            Command::Disconnect => 2,
            Command::Flush => 3,
            Command::Trim => 4,
            Command::Cache => 5,
            Command::WriteZeroes => 6,
            Command::BlockStatus => 7,
            Command::Unknown(code) => code,
        }
    }

    /// The flags the document allows with this request. FUA goes with every one of them.
    pub fn allowed_flags(self) -> u16 {
        FLAG_FUA
            | match self {
                Command::Read => FLAG_DF,
                Command::WriteZeroes => FLAG_NO_HOLE | FLAG_FAST_ZERO,
                Command::BlockStatus => FLAG_REQ_ONE,
                _ => 0,
            }
    }
}

/// One request, without its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// FLAG_* bits, unchecked.
    pub flags: u16,
    /// What to do.
    pub command: Command,
    /// Opaque; goes back with the answer.
    pub cookie: u64,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u32,
}

impl Request {
    /// Reads a request.
    pub fn parse(bytes: &[u8; REQUEST_BYTES]) -> Result<Request, Malformed> {
        // Destructured once: no bounds check and no error path per field on the hot path.
        let [m0, m1, m2, m3, f0, f1, t0, t1, rest @ ..] = *bytes;
        let magic = u32::from_be_bytes([m0, m1, m2, m3]);
        if magic != REQUEST_MAGIC {
            return Err(Malformed::Magic { expected: REQUEST_MAGIC.into(), found: magic.into() });
        }
        let [c0, c1, c2, c3, c4, c5, c6, c7, o0, o1, o2, o3, o4, o5, o6, o7, l0, l1, l2, l3] = rest;
        Ok(Request {
            flags: u16::from_be_bytes([f0, f1]),
            command: Command::from_code(u16::from_be_bytes([t0, t1])),
            cookie: u64::from_be_bytes([c0, c1, c2, c3, c4, c5, c6, c7]),
            offset: u64::from_be_bytes([o0, o1, o2, o3, o4, o5, o6, o7]),
            length: u32::from_be_bytes([l0, l1, l2, l3]),
        })
    }

    /// The request's bytes.
    pub fn to_bytes(self) -> [u8; REQUEST_BYTES] {
        let mut out = [0; REQUEST_BYTES];
        out[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        out[4..6].copy_from_slice(&self.flags.to_be_bytes());
        out[6..8].copy_from_slice(&self.command.code().to_be_bytes());
        out[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        out[16..24].copy_from_slice(&self.offset.to_be_bytes());
        out[24..].copy_from_slice(&self.length.to_be_bytes());
        out
    }

    /// Bytes that follow the request: its length for WRITE, else none, whatever the length says.
    pub fn payload_bytes(&self) -> u32 {
        match self.command {
            Command::Write => self.length,
            _ => 0,
        }
    }

    /// Whether the client waits for persistence.
    pub fn fua(&self) -> bool {
        self.flags & FLAG_FUA != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_write_has_a_payload() {
        for code in 0..20 {
            let request =
                Request { flags: 0, command: Command::from_code(code), cookie: 1, offset: 2, length: 3 };
            assert_eq!(request.payload_bytes(), if code == 1 { 3 } else { 0 });
        }
    }

    #[test]
    fn bad_magic_is_named() {
        assert_eq!(
            Request::parse(&[0x25; REQUEST_BYTES]),
            Err(Malformed::Magic { expected: 0x2560_9513, found: 0x2525_2525 })
        );
    }

    proptest! {
        #[test]
        fn requests_round_trip(flags in any::<u16>(), code in any::<u16>(), cookie in any::<u64>(), offset in any::<u64>(), length in any::<u32>()) {
            let request = Request { flags, command: Command::from_code(code), cookie, offset, length };
            prop_assert_eq!(Request::parse(&request.to_bytes()), Ok(request));
            prop_assert_eq!(request.command.code(), code);
        }

        #[test]
        fn small_codes_round_trip(code in 0_u16..12) {
            prop_assert_eq!(Command::from_code(code).code(), code);
        }

        #[test]
        fn any_bytes_are_a_request_or_an_error(bytes in any::<[u8; REQUEST_BYTES]>()) {
            let _ = Request::parse(&bytes);
        }
    }
}
