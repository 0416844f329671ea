//! READ CAPACITY, GET LBA STATUS and REPORT LUNS data (SBC-3 5.15, 5.16, 5.6; SPC-4 6.33).

/// READ CAPACITY(10) data: the last LBA, or all ones if it does not fit, and the block size in bytes.
pub fn emit_read_capacity_10(block_count: u64, block_bytes: u32, out: &mut Vec<u8>) {
    let last = u32::try_from(block_count.saturating_sub(1)).unwrap_or(u32::MAX);
    out.extend_from_slice(&last.to_be_bytes());
    out.extend_from_slice(&block_bytes.to_be_bytes());
}

/// READ CAPACITY(16) data of a LUN with `2^physical_exponent` logical blocks per physical one. `thin`: blocks can be unmapped, and
/// read as zeros then (LBPME, LBPRZ).
pub fn emit_read_capacity_16(
    block_count: u64,
    block_bytes: u32,
    physical_exponent: u8,
    thin: bool,
    out: &mut Vec<u8>,
) {
    let mut data = [0; 32];
    data[..8].copy_from_slice(&block_count.saturating_sub(1).to_be_bytes());
    data[8..12].copy_from_slice(&block_bytes.to_be_bytes());
    data[13] = physical_exponent & 0x0f;
    data[14] = if thin { 0xc0 } else { 0 };
    out.extend_from_slice(&data);
}

/// Provisioning status of a stretch (SBC-3 table 51).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Provisioning {
    /// Mapped, or unknown.
    Mapped = 0,
    /// Deallocated.
    Deallocated = 1,
}

/// GET LBA STATUS data for adjoining stretches `(lba, count, status)`.
pub fn emit_lba_status(stretches: impl Iterator<Item = (u64, u32, Provisioning)>, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0; 8]);
    for (lba, count, status) in stretches {
        out.extend_from_slice(&lba.to_be_bytes());
        out.extend_from_slice(&count.to_be_bytes());
        out.extend_from_slice(&[status as u8, 0, 0, 0]);
    }
    let bytes = ((out.len() - start - 4) as u32).to_be_bytes();
    out[start..start + 4].copy_from_slice(&bytes);
}

/// REPORT LUNS data.
pub fn emit_luns(luns: impl Iterator<Item = u16>, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0; 8]);
    for lun in luns {
        out.extend_from_slice(&crate::iscsi::lun_bytes(lun));
    }
    let bytes = ((out.len() - start - 8) as u32).to_be_bytes();
    out[start..start + 4].copy_from_slice(&bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_lun_says_so_in_ten_bytes() {
        let mut out = Vec::new();
        emit_read_capacity_10(1 << 33, 512, &mut out);
        assert_eq!(out, [0xff, 0xff, 0xff, 0xff, 0, 0, 2, 0]);
    }

    #[test]
    fn lists_count_their_own_bytes() {
        let mut out = Vec::new();
        emit_luns([0, 300].into_iter(), &mut out);
        assert_eq!(out.len(), 24);
        assert_eq!(out[3], 16);
        assert_eq!(out[16..18], [0x41, 0x2c]);
        out.clear();
        emit_lba_status([(9, 4, Provisioning::Deallocated)].into_iter(), &mut out);
        assert_eq!((out[3], out[20]), (20, 1));
    }
}
