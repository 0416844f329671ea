//! Answers of the array that must tell the truth about what this splitter lets pass.
//!
//! Everything works on what there is of an answer: a host that asks for four bytes gets four.

use super::copy_reports;
use super::plan::{any_copies, offered, Edit, TRANSFER_BYTES_MAX};
use crate::lun::BLOCK_BYTES;
use crate::scsi::{Offload, Offloads};

/// Who the LUN is to hosts, where that is not what the array says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewIdentity {
    /// VPD page 80h.
    pub serial: String,
    /// NAA designator of VPD page 83h.
    pub naa: [u8; 16],
}

/// Puts `data`, the array's answer, right for an initiator that gets `offloads`.
pub fn edit(what: Edit, offloads: Offloads, identity: Option<&NewIdentity>, data: &mut Vec<u8>) {
    match what {
        Edit::Inquiry if !any_copies(offloads) => clear(data, 5, 0x08), // 3PC
        Edit::Inquiry => {}
        Edit::CopyParameters => copy_reports::operating_parameters(data),
        Edit::Capacity if !offloads.contains(Offload::Unmap) => clear(data, 14, 0xc0), // LBPME, LBPRZ
        Edit::Capacity => {}
        Edit::Page(0x00) if !any_copies(offloads) => remove_page(data, 0x8f),
        Edit::Page(0x8f) => copy_reports::page(data, offloads),
        Edit::Page(0x80) => {
            if let Some(identity) = identity {
                name_serial(data, &identity.serial);
            }
        }
        Edit::Page(0x83) => {
            if let Some(identity) = identity {
                name_unit(data, identity.naa);
            }
        }
        Edit::Page(0xb0) => limits(data, offloads),
        Edit::Page(0xb2) => {
            let unmap = offloads.contains(Offload::Unmap);
            if !unmap {
                clear(data, 5, 0x80 | 0x60); // LBPU, LBPWS, LBPWS10
            } else if !offloads.contains(Offload::WriteSame) {
                clear(data, 5, 0x60);
            }
        }
        Edit::Page(_) => {}
        Edit::Opcodes { options: 0, .. } => filter_codes(data, offloads),
        Edit::Opcodes { code, service_action, .. } => {
            let named = Some(service_action);
            if !offered(code, named, offloads) && data.len() >= 2 {
                // Not supported, and nothing more to say (SPC-4 6.30.3).
                let timeouts_or_not = [0, 0x01, 0, 0];
                data.truncate(timeouts_or_not.len());
                let len = data.len();
                data.copy_from_slice(&timeouts_or_not[..len]);
            }
        }
    }
}

fn clear(data: &mut [u8], at: usize, bits: u8) {
    if let Some(byte) = data.get_mut(at) {
        *byte &= !bits;
    }
}

fn put(data: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(room) = data.get_mut(at..at + bytes.len()) {
        room.copy_from_slice(bytes);
    }
}

/// Takes a page out of the list of pages (SPC-4 7.8.10).
fn remove_page(data: &mut Vec<u8>, page: u8) {
    if let Some(at) = data.iter().skip(4).position(|&other| other == page) {
        data.remove(4 + at);
        if let Some(length) = data.get_mut(2..4) {
            let less = u16::from_be_bytes([length[0], length[1]]).saturating_sub(1);
            length.copy_from_slice(&less.to_be_bytes());
        }
    }
}

/// Block limits (SBC-4 6.6.3): what is refused has none, and a transfer has this splitter's.
fn limits(data: &mut [u8], offloads: Offloads) {
    if !offloads.contains(Offload::Ats) {
        put(data, 5, &[0]);
    }
    if let Some(most) = data.get(8..12).map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]])) {
        let ours = TRANSFER_BYTES_MAX / BLOCK_BYTES as u32;
        let least = if most == 0 { ours } else { most.min(ours) };
        put(data, 8, &least.to_be_bytes());
    }
    if !offloads.contains(Offload::Unmap) {
        put(data, 20, &[0; 12]); // count, descriptors, granularity
    }
    if !offloads.contains(Offload::WriteSame) {
        put(data, 36, &[0; 8]);
    }
}

/// All codes, as descriptors of 8 or (CTDP) 20 bytes.
fn filter_codes(data: &mut Vec<u8>, offloads: Offloads) {
    let mut kept = data.get(..4).unwrap_or_default().to_vec();
    let mut rest = data.get(4..).unwrap_or_default();
    let mut removed = 0u32;
    while !rest.is_empty() {
        let flags = rest.get(5).copied().unwrap_or(0);
        let len = if flags & 0x02 != 0 { 20 } else { 8 }.min(rest.len());
        let action = match rest {
            [_, _, high, low, _, flags, ..] if flags & 1 != 0 => Some(u16::from_be_bytes([*high, *low])),
            _ => None,
        };
        if rest.len() < 6 || offered(rest[0], action, offloads) {
            kept.extend_from_slice(&rest[..len]);
        } else {
            removed += len as u32;
        }
        rest = &rest[len..];
    }
    if let Some(length) = kept.first_chunk_mut::<4>() {
        *length = u32::from_be_bytes(*length).saturating_sub(removed).to_be_bytes();
    }
    *data = kept;
}

/// A serial number of the same length as the host was told of, if it was cut, else ours.
fn name_serial(data: &mut Vec<u8>, serial: &str) {
    if data.len() < 4 {
        return;
    }
    let cut = data.len() < 4 + usize::from(u16::from_be_bytes([data[2], data[3]]));
    let most = if cut { data.len() - 4 } else { serial.len() };
    data.truncate(4);
    put(data, 2, &(serial.len() as u16).to_be_bytes());
    data.extend_from_slice(&serial.as_bytes()[..serial.len().min(most)]);
}

/// Ours instead of every designator of the logical unit; those of the port and the target stay.
fn name_unit(data: &mut Vec<u8>, naa: [u8; 16]) {
    if data.len() < 4 {
        return;
    }
    let whole = 4 + usize::from(u16::from_be_bytes([data[2], data[3]]));
    let cut = data.len() < whole;
    let before = data.len();
    let mut kept = data[..4].to_vec();
    kept.extend_from_slice(&[1, 3, 0, 16]);
    kept.extend_from_slice(&naa);
    let mut rest = &data[4..];
    while let [_, kind, _, len, ..] = rest {
        let len = (4 + usize::from(*len)).min(rest.len());
        if kind >> 4 & 3 != 0 {
            kept.extend_from_slice(&rest[..len]);
        }
        rest = &rest[len..];
    }
    let length = (kept.len() - 4) as u16;
    put(&mut kept, 2, &length.to_be_bytes());
    if cut {
        kept.truncate(before);
    }
    *data = kept;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_tell_of_what_policy_leaves_and_nothing_panics_on_short_answers() {
        let none = Offload::ALL.into_iter().fold(Offloads::ALL, |all, offload| all.with(offload, false));
        let identity = NewIdentity { serial: "abc".to_owned(), naa: [0x60; 16] };
        let whats = [Edit::Inquiry, Edit::Capacity, Edit::Opcodes { options: 0, code: 0, service_action: 0 }];
        let pages = [0, 0x80, 0x83, 0xb0, 0xb2].map(Edit::Page);
        for what in whats.into_iter().chain(pages) {
            for len in 0..80 {
                let mut data = vec![0xff; len];
                edit(what, none, Some(&identity), &mut data);
            }
        }
        let mut page = vec![0, 0xb2, 0, 4, 0, 0xe4, 2, 0];
        edit(Edit::Page(0xb2), none, None, &mut page);
        assert_eq!(page[5], 0x04);
        let mut pages = vec![0, 0, 0, 3, 0, 0x83, 0x8f];
        edit(Edit::Page(0), none, None, &mut pages);
        assert_eq!(pages, [0, 0, 0, 2, 0, 0x83]);
    }

    #[test]
    fn codes_that_are_refused_are_not_listed() {
        let mut list = vec![0, 0, 0, 24];
        list.extend_from_slice(&[0x28, 0, 0, 0, 0, 0, 0, 10]);
        list.extend_from_slice(&[0x84, 0, 0, 8, 0, 1, 0, 16]);
        list.extend_from_slice(&[0x89, 0, 0, 0, 0, 0, 0, 16]);
        let mut all = list.clone();
        edit(Edit::Opcodes { options: 0, code: 0, service_action: 0 }, Offloads::ALL, None, &mut all);
        assert_eq!((all.len(), all[3], all[12]), (20, 16, 0x89));
        let without = Offloads::ALL.with(Offload::Ats, false);
        edit(Edit::Opcodes { options: 0, code: 0, service_action: 0 }, without, None, &mut list);
        assert_eq!((list.len(), list[3]), (12, 8));
        let mut one = vec![0, 3, 0, 16, 0x89];
        edit(Edit::Opcodes { options: 1, code: 0x89, service_action: 0 }, without, None, &mut one);
        assert_eq!(one, [0, 1, 0, 0]);
    }

    #[test]
    fn a_new_identity_replaces_the_units_names_and_leaves_the_ports() {
        let identity = NewIdentity { serial: "abcdef".to_owned(), naa: [0x61; 16] };
        let mut page = vec![0, 0x83, 0, 14, 1, 3, 0, 2, 9, 9, 1, 0x14, 0, 4, 0, 0, 0, 1];
        edit(Edit::Page(0x83), Offloads::ALL, Some(&identity), &mut page);
        assert_eq!(page[..8], [0, 0x83, 0, 28, 1, 3, 0, 16]);
        assert_eq!(page[24..], [1, 0x14, 0, 4, 0, 0, 0, 1]);
        let mut serial = vec![0, 0x80, 0, 2, b'x', b'y'];
        edit(Edit::Page(0x80), Offloads::ALL, Some(&identity), &mut serial);
        assert_eq!(&serial[4..], b"abcdef");
    }
}
