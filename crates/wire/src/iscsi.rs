//! iSCSI protocol data units (RFC 7143): framing, headers, digests, text keys and serial numbers.
//!
//! Read in this order: [`bhs`] (the 48-byte header and where the parts of a PDU lie), [`request`] (what initiators send),
//! [`response`] (what targets send), [`digest`] (CRC32C), [`serial`] (CmdSN arithmetic), [`text`] (key=value pairs),
//! [`binary`] (bytes as text) and [`negotiate`] (what the pairs mean).
//!
//! Everything that reads bytes is total: any input gives a value or an [`Error`], bounded in time by the input's length.

pub mod bhs;
pub mod binary;
pub mod digest;
pub mod negotiate;
pub mod request;
pub mod response;
pub mod serial;
pub mod text;

pub use bhs::{Frame, BHS_LEN};
pub use request::Request;
pub use response::Response;
pub use serial::SerialNumber;

/// The reserved tag: "no task" as an Initiator Task Tag, "not solicited" as a Target Transfer Tag (RFC 7143 11.2.1.8, 11.7.4).
pub const RESERVED_TAG: u32 = 0xffff_ffff;

/// Why bytes are not a PDU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Fewer bytes than a basic header segment.
    #[error("a PDU header needs 48 bytes")]
    Truncated,
    /// An opcode RFC 7143 11.2.1.2 does not give to this direction.
    #[error("opcode {0:#04x} is not one this side may receive")]
    Opcode(u8),
    /// A data segment longer than was declared acceptable (RFC 7143 13.12).
    #[error("a data segment of {len_bytes} bytes exceeds the {limit_bytes} declared")]
    DataTooLong {
        /// What the header says.
        len_bytes: usize,
        /// MaxRecvDataSegmentLength.
        limit_bytes: usize,
    },
    /// A field holds a value its definition forbids.
    #[error("invalid value in {0}")]
    Field(&'static str),
}

/// A logical unit number in its eight-byte form (SAM-5 4.7), reduced to the number people use.
///
/// Single-level peripheral (00b) and flat (01b) addressing are understood; anything else is `None`, which no logical unit answers to.
pub fn lun_number(raw: [u8; 8]) -> Option<u16> {
    if raw[2..].iter().any(|&byte| byte != 0) {
        return None;
    }
    match raw[0] >> 6 {
        0 if raw[0] == 0 => Some(u16::from(raw[1])),
        1 => Some(u16::from(raw[0] & 0x3f) << 8 | u16::from(raw[1])),
        _ => None,
    }
}

/// The eight-byte form of a LUN up to 16383: peripheral addressing below 256, flat above (SAM-5 4.7.3).
pub fn lun_bytes(number: u16) -> [u8; 8] {
    let mut raw = [0; 8];
    raw[1] = number as u8;
    if number > 0xff {
        raw[0] = 0x40 | (number >> 8) as u8 & 0x3f;
    }
    raw
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lun_numbers_round_trip_and_odd_addressing_is_nobody() {
        for number in [0, 1, 255, 256, 16383] {
            assert_eq!(lun_number(lun_bytes(number)), Some(number));
        }
        assert_eq!(lun_number([0xc1, 1, 0, 0, 0, 0, 0, 0]), None);
        assert_eq!(lun_number([0, 1, 0, 0, 0, 0, 0, 9]), None);
        assert_eq!(lun_number([1, 1, 0, 0, 0, 0, 0, 0]), None);
    }
}
