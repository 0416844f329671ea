//! INQUIRY data and vital product data (SPC-5 6.7 and 7.7, SBC-4 6.6).

use super::opcodes;

/// What INQUIRY says of a device. Strings are cut or padded to their fields.
#[derive(Debug, Clone, Copy)]
pub struct Identity<'a> {
    /// T10 vendor identification, 8 bytes.
    pub vendor: &'a str,
    /// Product identification, 16 bytes.
    pub product: &'a str,
    /// Product revision, 4 bytes.
    pub revision: &'a str,
    /// Unit serial number.
    pub serial: &'a str,
    /// NAA designator of the logical unit.
    pub naa: [u8; 16],
    /// iSCSI name of the target.
    pub target_name: &'a str,
    /// Relative target port identifier of the target.
    pub relative_port: u16,
    /// Target portal group the session came in by, which is also the target port group.
    pub portal_group: u16,
}

/// Peripheral qualifier and type of a direct-access device that is there.
pub const PRESENT: u8 = 0x00;
/// Peripheral qualifier and type for a LUN at which nothing can be (SPC-4 table 143).
pub const ABSENT: u8 = 0x7f;

fn push_padded(out: &mut Vec<u8>, text: &str, width: usize) {
    let start = out.len();
    out.extend(text.bytes().take(width).map(|b| if (0x20..0x7f).contains(&b) { b } else { b'_' }));
    out.resize(start + width, b' ');
}

/// Standard INQUIRY data, 96 bytes: SPC-4, direct-access, command queuing, target port groups if hosts can ask about them.
/// `third_party_copy`: it has commands that copy.
pub fn emit_standard(identity: &Identity<'_>, peripheral: u8, third_party_copy: bool, out: &mut Vec<u8>) {
    let start = out.len();
    let implicit = u8::from(opcodes::has(0xa3, Some(0x0a)));
    let explicit = u8::from(opcodes::has(0xa4, Some(0x0a)));
    let flags = if peripheral == PRESENT {
        explicit << 5 | implicit << 4 | u8::from(third_party_copy) << 3
    } else {
        0
    };
    // HISUP and response data format 2; TPGS and 3PC; CMDQUE.
    out.extend_from_slice(&[peripheral, 0, 0x06, 0x12, 96 - 5, flags, 0, 0x02]);
    push_padded(out, identity.vendor, 8);
    push_padded(out, identity.product, 16);
    push_padded(out, identity.revision, 4);
    out.resize(start + 58, 0);
    // Version descriptors: SAM-5, iSCSI, SPC-4, SPC-5, SBC-3, SBC-4.
    for version in [0x00a0u16, 0x0960, 0x0460, 0x05c0, 0x04c0, 0x0600] {
        out.extend_from_slice(&version.to_be_bytes());
    }
    out.resize(start + 96, 0);
}

/// Limits of VPD page B0 (SBC-4 6.6.4), in blocks unless named otherwise. Zeros: the commands are not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockLimits {
    /// Most blocks of one COMPARE AND WRITE.
    pub compare_and_write: u8,
    /// Granularity of efficient transfers.
    pub transfer_granularity: u16,
    /// Most blocks of one transfer.
    pub transfer: u32,
    /// Blocks of the most efficient transfer.
    pub optimal_transfer: u32,
    /// Most blocks one UNMAP may name in all; all ones mean any.
    pub unmap: u32,
    /// Most descriptors of one UNMAP.
    pub unmap_descriptors: u32,
    /// Granularity of unmapping.
    pub unmap_granularity: u32,
    /// Most blocks of one WRITE SAME.
    pub write_same: u64,
    /// Most blocks of one WRITE ATOMIC, with a boundary or without, and the largest boundary.
    pub atomic: u32,
}

/// How blocks are provisioned, as an initiator finds it (VPD page B2, READ CAPACITY (16)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thin {
    /// UNMAP is there (LBPU, LBPME).
    pub unmap: bool,
    /// WRITE SAME unmaps (LBPWS, LBPWS10).
    pub write_same: bool,
}

/// Two to this power blocks of 512 bytes are a threshold set: a 64 TiB unit has fewer than 2^32 of them.
const THRESHOLD_EXPONENT: u8 = 11;
/// The range around a threshold, in tenths of a percent.
const THRESHOLD_RANGE: u8 = 10;

/// The vital product data pages there are, in order.
pub const PAGES: [u8; 7] = [0x00, 0x80, 0x83, 0x86, 0xb0, 0xb1, 0xb2];

/// Appends a vital product data page. False: there is no such page.
pub fn emit_page(
    page: u8,
    identity: &Identity<'_>,
    limits: &BlockLimits,
    thin: &Thin,
    out: &mut Vec<u8>,
) -> bool {
    let start = out.len();
    out.extend_from_slice(&[PRESENT, page, 0, 0]);
    match page {
        0x00 => out.extend_from_slice(&PAGES),
        0x80 => out.extend(identity.serial.bytes().take(252)),
        0x83 => emit_designators(identity, out),
        0x86 => {
            let mut data = [0; 60];
            data[1] = 0x07; // HEADSUP, ORDSUP, SIMPSUP
            data[2] = 0x01; // V_SUP: there is a volatile cache
            data[3] = 0x01; // LUICLR: reading the list of units on one tells all
            out.extend_from_slice(&data);
        }
        0xb0 => {
            let mut data = [0; 60];
            data[1] = limits.compare_and_write;
            data[2..4].copy_from_slice(&limits.transfer_granularity.to_be_bytes());
            data[4..8].copy_from_slice(&limits.transfer.to_be_bytes());
            data[8..12].copy_from_slice(&limits.optimal_transfer.to_be_bytes());
            data[16..20].copy_from_slice(&limits.unmap.to_be_bytes());
            data[20..24].copy_from_slice(&limits.unmap_descriptors.to_be_bytes());
            data[24..28].copy_from_slice(&limits.unmap_granularity.to_be_bytes());
            if limits.unmap_granularity > 0 {
                data[28] = 0x80; // UGAVALID: aligned to 0
            }
            data[32..40].copy_from_slice(&limits.write_same.to_be_bytes());
            // Atomic writes may begin anywhere and have any length.
            for at in [40, 52, 56] {
                data[at..at + 4].copy_from_slice(&limits.atomic.to_be_bytes());
            }
            out.extend_from_slice(&data);
        }
        0xb1 => {
            let mut data = [0; 60];
            data[1] = 1; // not a rotating medium
            data[3] = 0x50; // WABEREQ, WACEREQ: after an erase, reads succeed
            data[4] = 0x01; // VBULS: blocks that are not mapped can be verified
            out.extend_from_slice(&data);
        }
        0xb2 if !thin.unmap && !thin.write_same => out.extend_from_slice(&[0; 4]),
        0xb2 => {
            // LBPU, LBPWS, LBPWS10, LBPRZ; no block is anchored; thin provisioned.
            let unmap = if thin.unmap { 0x80 } else { 0 };
            let flags = unmap | if thin.write_same { 0x60 } else { 0 } | 0x04;
            out.extend_from_slice(&[THRESHOLD_EXPONENT, flags, 0x02, THRESHOLD_RANGE]);
        }
        _ => {
            out.truncate(start);
            return false;
        }
    }
    let bytes = ((out.len() - start - 4) as u16).to_be_bytes();
    out[start + 2..start + 4].copy_from_slice(&bytes);
    true
}

fn push_designator(out: &mut Vec<u8>, code_set: u8, kind: u8, designator: &[u8]) {
    let length = designator.len().min(252);
    out.extend_from_slice(&[code_set, kind, 0, length as u8]);
    out.extend_from_slice(&designator[..length]);
}

/// Device identification (SPC-4 7.8.5): the logical unit by T10 vendor id and NAA, the port by number, group and name, the target by name.
fn emit_designators(identity: &Identity<'_>, out: &mut Vec<u8>) {
    const BINARY: u8 = 1;
    const ASCII: u8 = 2;
    const ISCSI: u8 = 0x50;
    let mut vendor = Vec::with_capacity(8 + identity.serial.len());
    push_padded(&mut vendor, identity.vendor, 8);
    vendor.extend_from_slice(identity.serial.as_bytes());
    push_designator(out, ASCII, 0x01, &vendor);
    push_designator(out, BINARY, 0x03, &identity.naa);
    // PIV and association with the target port, then with the target device.
    let [high, low] = identity.relative_port.to_be_bytes();
    push_designator(out, ISCSI | BINARY, 0x94, &[0, 0, high, low]);
    let [high, low] = identity.portal_group.to_be_bytes();
    push_designator(out, ISCSI | BINARY, 0x95, &[0, 0, high, low]);
    let port = format!("{},t,0x{:04x}", identity.target_name, identity.portal_group);
    push_designator(out, ISCSI | 3, 0x98, &name_string(&port));
    push_designator(out, ISCSI | 3, 0xa8, &name_string(identity.target_name));
}

/// A SCSI name string: UTF-8, NUL-terminated, padded to a multiple of four (SPC-4 7.8.5.11).
fn name_string(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize((bytes.len() + 4) & !3, 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDENTITY: Identity<'_> = Identity {
        vendor: "PLAYHEAD",
        product: "VOLUME",
        revision: "0.1",
        serial: "0123456789abcdef",
        naa: [0x60; 16],
        target_name: "iqn.2026-01.example:t",
        relative_port: 1,
        portal_group: 1,
    };
    const LIMITS: BlockLimits = BlockLimits {
        compare_and_write: 255,
        transfer_granularity: 8,
        transfer: 32768,
        optimal_transfer: 2048,
        unmap: u32::MAX,
        unmap_descriptors: 256,
        unmap_granularity: 8,
        write_same: 1 << 37,
        atomic: 32768,
    };
    const THIN: Thin = Thin { unmap: true, write_same: true };

    #[test]
    fn every_listed_page_exists_in_ascending_order_and_no_other() {
        assert!(PAGES.windows(2).all(|w| w[0] < w[1]));
        for page in 0..=255 {
            let mut out = vec![9];
            let exists = emit_page(page, &IDENTITY, &LIMITS, &THIN, &mut out);
            assert_eq!(exists, PAGES.contains(&page));
            if exists {
                let length = usize::from(out[3]) << 8 | usize::from(out[4]);
                assert_eq!(length, out.len() - 5);
            } else {
                assert_eq!(out, [9]);
            }
        }
    }

    #[test]
    fn standard_data_is_96_bytes_with_padded_names() {
        let mut out = Vec::new();
        emit_standard(&IDENTITY, PRESENT, true, &mut out);
        assert_eq!(out.len(), 96);
        assert_eq!(&out[16..32], b"VOLUME          ");
        assert_eq!(out[5] & 0x08, 0x08);
    }

    fn page(page: u8, thin: &Thin) -> Vec<u8> {
        let mut out = Vec::new();
        assert!(emit_page(page, &IDENTITY, &LIMITS, thin, &mut out));
        out
    }

    #[test]
    fn block_limits_have_their_fields_in_place() {
        let out = page(0xb0, &THIN);
        assert_eq!((out.len(), out[4], out[5]), (64, 0, 255));
        assert_eq!(out[20..24], u32::MAX.to_be_bytes());
        assert_eq!(out[36..44], (1u64 << 37).to_be_bytes());
        assert_eq!(out[44..48], 32768u32.to_be_bytes());
        assert_eq!(out[48..56], [0; 8]);
        assert_eq!(out[56..60], 32768u32.to_be_bytes());
        assert_eq!(out[60..64], 32768u32.to_be_bytes());
    }

    #[test]
    fn a_unit_without_unmap_is_not_thin() {
        assert_eq!(page(0xb2, &THIN)[4..], [11, 0xe4, 2, 10]);
        assert_eq!(page(0xb2, &Thin { unmap: true, write_same: false })[5..7], [0x84, 2]);
        assert_eq!(page(0xb2, &Thin { unmap: false, write_same: false })[4..], [0; 4]);
    }
}
