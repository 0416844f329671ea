//! The basic header segment (RFC 7143 11.2.1) and the layout of a whole PDU around it.

use super::Error;
use std::ops::Range;

/// Bytes of a basic header segment.
pub const BHS_LEN: usize = 48;
/// Bytes of one digest on the wire.
pub const DIGEST_LEN: usize = 4;
/// The I bit: process at once, outside the CmdSN order (RFC 7143 11.2.1.1).
pub const IMMEDIATE: u8 = 0x40;
/// The F bit of most PDUs, T of login PDUs (RFC 7143 11.2.1.3).
pub const FINAL: u8 = 0x80;

/// Field positions shared by most PDUs.
pub(super) mod field {
    use std::ops::Range;
    pub(crate) const OPCODE: usize = 0;
    pub(crate) const FLAGS: usize = 1;
    pub(crate) const AHS_WORDS: usize = 4;
    pub(crate) const DATA_LENGTH: Range<usize> = 5..8;
    pub(crate) const LUN: Range<usize> = 8..16;
    pub(crate) const ISID: Range<usize> = 8..14;
    pub(crate) const TSIH: usize = 14;
    pub(crate) const ITT: usize = 16;
    /// Target Transfer Tag, Referenced Task Tag, Expected Data Transfer Length or CID.
    pub(crate) const WORD20: usize = 20;
    /// CmdSN from initiators, StatSN from targets.
    pub(crate) const WORD24: usize = 24;
    /// ExpStatSN from initiators, ExpCmdSN from targets.
    pub(crate) const WORD28: usize = 28;
    /// MaxCmdSN from targets, RefCmdSN in task management.
    pub(crate) const WORD32: usize = 32;
    pub(crate) const CDB: Range<usize> = 32..48;
    /// DataSN, R2TSN, ExpDataSN.
    pub(crate) const WORD36: usize = 36;
    /// Buffer offset, BegRun.
    pub(crate) const WORD40: usize = 40;
    /// Residual count, desired length, RunLength.
    pub(crate) const WORD44: usize = 44;
}

/// A header as an array: indexing by the constants of this module cannot be out of range.
pub type Bhs = [u8; BHS_LEN];

pub(super) fn u16_at(bhs: &Bhs, at: usize) -> u16 {
    u16::from_be_bytes([bhs[at], bhs[at + 1]])
}

pub(super) fn u32_at(bhs: &Bhs, at: usize) -> u32 {
    u32::from_be_bytes([bhs[at], bhs[at + 1], bhs[at + 2], bhs[at + 3]])
}

pub(super) fn put_u16(bhs: &mut Bhs, at: usize, value: u16) {
    bhs[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

pub(super) fn put_u32(bhs: &mut Bhs, at: usize, value: u32) {
    bhs[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

pub(super) fn lun_at(bhs: &Bhs) -> [u8; 8] {
    let mut raw = [0; 8];
    raw.copy_from_slice(&bhs[field::LUN]);
    raw
}

/// DataSegmentLength in bytes, without padding (RFC 7143 11.2.1.6).
pub fn data_length(bhs: &Bhs) -> usize {
    usize::from(bhs[5]) << 16 | usize::from(bhs[6]) << 8 | usize::from(bhs[7])
}

/// Sets DataSegmentLength; only the low 24 bits exist on the wire.
pub fn set_data_length(bhs: &mut Bhs, len_bytes: usize) {
    let bytes = (len_bytes as u32).to_be_bytes();
    bhs[field::DATA_LENGTH].copy_from_slice(&bytes[1..]);
}

/// The next multiple of four: segments are padded to it (RFC 7143 11.1).
pub const fn padded(len_bytes: usize) -> usize {
    (len_bytes + 3) & !3
}

/// Which digests a connection agreed on (RFC 7143 13.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Digests {
    /// CRC32C over BHS and AHS.
    pub header: bool,
    /// CRC32C over the data segment and its padding, when there is one.
    pub data: bool,
}

/// Where the parts of one PDU lie, relative to its first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// End of BHS and AHS; the header digest, if any, starts here.
    pub header_end: usize,
    /// Start of the data segment.
    pub data_start: usize,
    /// Bytes of the data segment without padding.
    pub data_len: usize,
    /// Bytes of the whole PDU, padding and digests included.
    pub total_len: usize,
}

impl Frame {
    /// Lays out the PDU that starts with `bytes`. `Ok(None)`: not even a header yet.
    ///
    /// Refuses a data segment above `limit_bytes`, so that a hostile length never becomes a buffer.
    pub fn new_checked(bytes: &[u8], digests: Digests, limit_bytes: usize) -> Result<Option<Frame>, Error> {
        let Some(bhs) = bytes.first_chunk::<BHS_LEN>() else {
            return Ok(None);
        };
        let data_len = data_length(bhs);
        if data_len > limit_bytes {
            return Err(Error::DataTooLong { len_bytes: data_len, limit_bytes });
        }
        let header_end = BHS_LEN + usize::from(bhs[field::AHS_WORDS]) * 4;
        let data_start = header_end + if digests.header { DIGEST_LEN } else { 0 };
        let digest = if digests.data && data_len > 0 { DIGEST_LEN } else { 0 };
        Ok(Some(Frame {
            header_end,
            data_start,
            data_len,
            total_len: data_start + padded(data_len) + digest,
        }))
    }

    /// The data segment without padding.
    pub fn data(&self) -> Range<usize> {
        self.data_start..self.data_start + self.data_len
    }

    /// The data segment with padding: what the data digest covers.
    pub fn padded_data(&self) -> Range<usize> {
        self.data_start..self.data_start + padded(self.data_len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_counts_ahs_padding_and_digests() {
        let mut bhs = [0u8; BHS_LEN];
        bhs[4] = 2;
        set_data_length(&mut bhs, 5);
        let plain = Frame::new_checked(&bhs, Digests::default(), 8192).unwrap().unwrap();
        assert_eq!((plain.header_end, plain.data_start), (56, 56));
        assert_eq!(plain.total_len, 56 + 8);
        let both = Digests { header: true, data: true };
        let digested = Frame::new_checked(&bhs, both, 8192).unwrap().unwrap();
        assert_eq!(digested.data_start, 60);
        assert_eq!(digested.total_len, 60 + 8 + 4);
        set_data_length(&mut bhs, 0);
        let empty = Frame::new_checked(&bhs, both, 8192).unwrap().unwrap();
        assert_eq!(empty.total_len, 60);
    }

    #[test]
    fn a_huge_length_is_refused_before_anything_is_allocated() {
        let mut bhs = [0u8; BHS_LEN];
        set_data_length(&mut bhs, 0xff_ffff);
        assert!(Frame::new_checked(&bhs, Digests::default(), 1 << 20).is_err());
        assert_eq!(Frame::new_checked(&bhs[..47], Digests::default(), 1), Ok(None));
    }
}
