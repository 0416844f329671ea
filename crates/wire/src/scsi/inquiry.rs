//! INQUIRY data and vital product data (SPC-4 6.6 and 7.8, SBC-3 6.6).

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

/// Standard INQUIRY data, 96 bytes: SPC-4, thin direct-access, command queuing.
pub fn emit_standard(identity: &Identity<'_>, peripheral: u8, out: &mut Vec<u8>) {
    let start = out.len();
    // HISUP and response data format 2; CMDQUE.
    out.extend_from_slice(&[peripheral, 0, 0x06, 0x12, 96 - 5, 0, 0, 0x02]);
    push_padded(out, identity.vendor, 8);
    push_padded(out, identity.product, 16);
    push_padded(out, identity.revision, 4);
    out.resize(start + 58, 0);
    // Version descriptors: SAM-5, iSCSI, SPC-4, SBC-3.
    for version in [0x00a0u16, 0x0960, 0x0460, 0x04c0] {
        out.extend_from_slice(&version.to_be_bytes());
    }
    out.resize(start + 96, 0);
}

/// Limits of VPD page B0 (SBC-3 6.6.3), in blocks unless named otherwise.
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
    /// Most blocks one UNMAP may name in all.
    pub unmap: u32,
    /// Most descriptors of one UNMAP.
    pub unmap_descriptors: u32,
    /// Granularity of unmapping.
    pub unmap_granularity: u32,
    /// Most blocks of one WRITE SAME.
    pub write_same: u64,
}

/// The vital product data pages there are, in order.
pub const PAGES: [u8; 7] = [0x00, 0x80, 0x83, 0x86, 0xb0, 0xb1, 0xb2];

/// Appends a vital product data page. False: there is no such page.
pub fn emit_page(page: u8, identity: &Identity<'_>, limits: &BlockLimits, out: &mut Vec<u8>) -> bool {
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
            out.extend_from_slice(&data);
        }
        0xb0 => {
            let mut data = [0; 60];
            data[0] = 0x01; // WSNZ: WRITE SAME names its number of blocks
            data[1] = limits.compare_and_write;
            data[2..4].copy_from_slice(&limits.transfer_granularity.to_be_bytes());
            data[4..8].copy_from_slice(&limits.transfer.to_be_bytes());
            data[8..12].copy_from_slice(&limits.optimal_transfer.to_be_bytes());
            data[16..20].copy_from_slice(&limits.unmap.to_be_bytes());
            data[20..24].copy_from_slice(&limits.unmap_descriptors.to_be_bytes());
            data[24..28].copy_from_slice(&limits.unmap_granularity.to_be_bytes());
            data[28] = 0x80; // UGAVALID: aligned to 0
            data[32..40].copy_from_slice(&limits.write_same.to_be_bytes());
            out.extend_from_slice(&data);
        }
        0xb1 => {
            let mut data = [0; 60];
            data[1] = 1; // not a rotating medium
            out.extend_from_slice(&data);
        }
        // LBPU, LBPWS, LBPWS10, LBPRZ; thin provisioned; no thresholds.
        0xb2 => out.extend_from_slice(&[0, 0xe4, 0x02, 0]),
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
        unmap: 1 << 23,
        unmap_descriptors: 256,
        unmap_granularity: 8,
        write_same: 1 << 23,
    };

    #[test]
    fn every_listed_page_exists_in_ascending_order_and_no_other() {
        assert!(PAGES.windows(2).all(|w| w[0] < w[1]));
        for page in 0..=255 {
            let mut out = vec![9];
            let exists = emit_page(page, &IDENTITY, &LIMITS, &mut out);
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
        emit_standard(&IDENTITY, PRESENT, &mut out);
        assert_eq!(out.len(), 96);
        assert_eq!(&out[16..32], b"VOLUME          ");
    }
}
