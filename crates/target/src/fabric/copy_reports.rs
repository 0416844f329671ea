//! What the array says of copies, cut down to what is forwarded here: VPD page 8Fh (SPC-4 7.8.17) and RECEIVE COPY OPERATING PARAMETERS
//! (6.22). As in [`super::edit`], everything works on what there is of an answer.

use super::plan::{any_copies, offered};
use crate::scsi::{Offload, Offloads, COPY_LIMITS, TOKEN_LIMITS};
use playhead_wire::scsi::extended_copy::{CopyLimits, DESCRIPTORS, THIS_UNIT};

/// Third-party copy descriptors (SPC-4 table 590, SBC-4 table 241).
mod kind {
    pub(super) const BLOCK_TOKEN_LIMITS: u16 = 0x0000;
    pub(super) const COMMANDS: u16 = 0x0001;
    pub(super) const PARAMETERS: u16 = 0x0004;
    pub(super) const DESCRIPTORS: u16 = 0x0008;
    pub(super) const CSCD_IDS: u16 = 0x000c;
    pub(super) const TOKEN_FEATURES: u16 = 0x0106;
    pub(super) const TOKEN_TYPES: u16 = 0x0108;
    pub(super) const GENERAL: u16 = 0x8001;
    pub(super) const HELD_DATA: u16 = 0xc001;
}

fn number(data: &[u8], at: usize, bytes: usize) -> Option<u64> {
    let field = data.get(at..at + bytes)?;
    Some(field.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
}

/// Lowers a field of `bytes` bytes to `most`; in most of them zero means that there is no limit.
fn lower(data: &mut [u8], at: usize, bytes: usize, most: u64) {
    if let Some(told) = number(data, at, bytes) {
        let least = if told == 0 { most } else { told.min(most) };
        data[at..at + bytes].copy_from_slice(&least.to_be_bytes()[8 - bytes..]);
    }
}

/// Lowers a length of four bytes at `at` by what was removed.
fn shorten(data: &mut [u8], at: usize, bytes: usize, removed: usize) {
    if let Some(told) = number(data, at, bytes) {
        let left = told.saturating_sub(removed as u64);
        data[at..at + bytes].copy_from_slice(&left.to_be_bytes()[8 - bytes..]);
    }
}

/// Page 8Fh.
pub(super) fn page(data: &mut Vec<u8>, offloads: Offloads) {
    let mut kept = data.get(..4).unwrap_or_default().to_vec();
    let mut rest = data.get(4..).unwrap_or_default();
    let mut removed = 0;
    while !rest.is_empty() {
        let bytes = 4 + number(rest, 2, 2).unwrap_or(0) as usize;
        let bytes = bytes.min(rest.len());
        let (descriptor, after) = rest.split_at(bytes);
        let left = edited(descriptor, offloads);
        removed += bytes - left.len().min(bytes);
        kept.extend_from_slice(&left);
        rest = after;
    }
    shorten(&mut kept, 2, 2, removed);
    *data = kept;
}

/// What is left of one descriptor.
fn edited(descriptor: &[u8], offloads: Offloads) -> Vec<u8> {
    let (xcopy, odx) = (offloads.contains(Offload::Xcopy), offloads.contains(Offload::Odx));
    let mut out = descriptor.to_vec();
    match number(descriptor, 0, 2).map(|kind| kind as u16) {
        Some(kind::BLOCK_TOKEN_LIMITS) if odx => {
            lower(&mut out, 10, 2, u64::from(TOKEN_LIMITS.ranges));
            lower(&mut out, 20, 8, TOKEN_LIMITS.blocks);
        }
        Some(kind::COMMANDS) if any_copies(offloads) => return commands(descriptor, offloads),
        Some(kind::PARAMETERS) if xcopy => {
            lower(&mut out, 8, 2, COPY_LIMITS.cscds.into());
            lower(&mut out, 10, 2, COPY_LIMITS.segments.into());
            lower(&mut out, 12, 4, COPY_LIMITS.descriptor_bytes.into());
            if let Some(inline) = out.get_mut(16..20) {
                inline.fill(0);
            }
        }
        Some(kind::DESCRIPTORS) if xcopy => {
            let codes = out.get(5..).unwrap_or_default();
            let count = usize::from(descriptor.get(4).copied().unwrap_or(0)).min(codes.len());
            let known: Vec<u8> =
                codes[..count].iter().copied().filter(|code| DESCRIPTORS.contains(code)).collect();
            return described(kind::DESCRIPTORS, &[&[known.len() as u8], &known[..]].concat());
        }
        Some(kind::CSCD_IDS) if xcopy => {
            let ids = out.get(6..).unwrap_or_default();
            let bytes = (number(&out, 4, 2).unwrap_or(0) as usize).min(ids.len());
            let this = THIS_UNIT.to_be_bytes();
            let known = if ids[..bytes].chunks_exact(2).any(|id| *id == this) { &this[..] } else { &[] };
            return described(kind::CSCD_IDS, &[&[0, known.len() as u8], known].concat());
        }
        Some(kind::TOKEN_FEATURES | kind::TOKEN_TYPES) if odx => {}
        Some(kind::GENERAL) => lower(&mut out, 12, 4, COPY_LIMITS.segment_bytes.into()),
        Some(kind::HELD_DATA) => {}
        // Of kinds of copies that policy rejects, or that nobody here knows.
        _ => out.clear(),
    }
    out
}

fn described(kind: u16, body: &[u8]) -> Vec<u8> {
    let padded = (body.len() + 3) & !3;
    let mut out = kind.to_be_bytes().to_vec();
    out.extend_from_slice(&(padded as u16).to_be_bytes());
    out.extend_from_slice(body);
    out.resize(4 + padded, 0);
    out
}

/// For each operation code its service actions.
fn commands(descriptor: &[u8], offloads: Offloads) -> Vec<u8> {
    let all = descriptor.get(5..).unwrap_or_default();
    let mut rest = &all[..usize::from(descriptor.get(4).copied().unwrap_or(0)).min(all.len())];
    let mut body = vec![0];
    while let [code, count, tail @ ..] = rest {
        let (actions, after) = tail.split_at(usize::from(*count).min(tail.len()));
        let left: Vec<u8> = actions
            .iter()
            .copied()
            .filter(|action| offered(*code, Some(u16::from(*action)), offloads))
            .collect();
        if !left.is_empty() {
            body.extend_from_slice(&[*code, left.len() as u8]);
            body.extend_from_slice(&left);
        }
        rest = after;
    }
    body[0] = (body.len() - 1) as u8;
    described(kind::COMMANDS, &body)
}

/// What RECEIVE COPY OPERATING PARAMETERS says of one list, or what is taken here if that is less. `None`: it does not say how many segments
/// an array takes.
pub(super) fn limits(data: &[u8]) -> Option<CopyLimits> {
    let field = |at: usize, bytes: usize, ours: u64| {
        let told = number(data, at, bytes)?;
        Some(if told == 0 { ours } else { told.min(ours) })
    };
    let segments = number(data, 10, 2).filter(|told| *told > 0)?;
    Some(CopyLimits {
        cscds: field(8, 2, COPY_LIMITS.cscds.into())? as u16,
        segments: segments.min(COPY_LIMITS.segments.into()) as u16,
        descriptor_bytes: field(12, 4, COPY_LIMITS.descriptor_bytes.into())? as u32,
        segment_bytes: field(16, 4, COPY_LIMITS.segment_bytes.into())? as u32,
        ..COPY_LIMITS
    })
}

/// RECEIVE COPY OPERATING PARAMETERS.
pub(super) fn operating_parameters(data: &mut Vec<u8>) {
    lower(data, 8, 2, COPY_LIMITS.cscds.into());
    lower(data, 10, 2, COPY_LIMITS.segments.into());
    lower(data, 12, 4, COPY_LIMITS.descriptor_bytes.into());
    lower(data, 16, 4, COPY_LIMITS.segment_bytes.into());
    if let Some(inline) = data.get_mut(20..24) {
        inline.fill(0);
    }
    let Some(count) = data.get(43).copied() else {
        return;
    };
    let end = data.len().min(44 + usize::from(count));
    let known: Vec<u8> = data[44..end].iter().copied().filter(|code| DESCRIPTORS.contains(code)).collect();
    let removed = end - 44 - known.len();
    data[43] = count - removed as u8;
    data.splice(44..end, known);
    shorten(data, 0, 4, removed);
}

#[cfg(test)]
mod tests {
    use super::*;
    use playhead_wire::scsi::{copy_status, third_party};

    /// What this crate's own device server says, as an array.
    fn array() -> Vec<u8> {
        let commands = [(0x83, 0), (0x83, 1), (0x83, 0x10), (0x83, 0x11), (0x84, 5), (0x84, 7), (0x84, 8)];
        let page = third_party::ThirdPartyCopy {
            commands: &commands,
            extended_copy: Some(COPY_LIMITS),
            tokens: Some(TOKEN_LIMITS),
            block_bytes: 512,
        };
        let mut out = Vec::new();
        third_party::emit(&page, &mut out);
        out
    }

    fn kinds(page: &[u8]) -> Vec<u16> {
        assert_eq!(usize::from(page[2]) << 8 | usize::from(page[3]), page.len() - 4);
        let (mut rest, mut kinds) = (&page[4..], Vec::new());
        while let [high, low, a, b, tail @ ..] = rest {
            kinds.push(u16::from_be_bytes([*high, *low]));
            rest = &tail[usize::from(*a) << 8 | usize::from(*b)..];
        }
        kinds
    }

    #[test]
    fn the_page_tells_of_what_policy_leaves() {
        let edited = |offloads: Offloads| {
            let mut data = array();
            page(&mut data, offloads);
            data
        };
        assert_eq!(kinds(&edited(Offloads::ALL)), [0, 1, 4, 8, 0xc, 0x106, 0x8001, 0xc001]);
        let without_tokens = edited(Offloads::ALL.with(Offload::Odx, false));
        assert_eq!(kinds(&without_tokens), [1, 4, 8, 0xc, 0x8001, 0xc001]);
        assert_eq!(without_tokens[4..20], [0, 1, 0, 8, 7, 0x83, 2, 0, 1, 0x84, 1, 5, 0, 4, 0, 28]);
        let without_copies = edited(Offloads::ALL.with(Offload::Xcopy, false));
        assert_eq!(kinds(&without_copies), [0, 1, 0x106, 0x8001, 0xc001]);
    }

    #[test]
    fn limits_are_the_lower_ones_and_descriptors_those_known_here() {
        let mut data = vec![0, 0x8f, 0, 56, 0, 4, 0, 28];
        data.resize(36, 0);
        (data[12], data[15], data[23]) = (0xff, 7, 9);
        data.extend_from_slice(&[
            0, 8, 0, 8, 4, 0, 2, 0xe0, 0xe4, 0, 0, 0, 0, 0x0c, 0, 8, 0, 6, 0xf8, 0, 0xff, 0xff,
        ]);
        data.extend_from_slice(&[0, 0]);
        data[3] = (data.len() - 4) as u8;
        page(&mut data, Offloads::ALL);
        assert_eq!(data[12..16], [0, 128, 0, 7]);
        assert_eq!(data[16..24], [0, 0, 0x90, 0, 0, 0, 0, 0], "no inline data");
        assert_eq!(data[36..], [0, 8, 0, 4, 2, 2, 0xe4, 0, 0, 0xc, 0, 4, 0, 2, 0xff, 0xff]);
        let mut parameters = Vec::new();
        copy_status::emit_operating_parameters(&COPY_LIMITS, &mut parameters);
        let ours = parameters.clone();
        operating_parameters(&mut parameters);
        assert_eq!(parameters, ours);
        parameters.extend_from_slice(&[0xe0, 0xe1]);
        (parameters[43], parameters[3], parameters[10]) = (5, ours[3] + 2, 0xff);
        operating_parameters(&mut parameters);
        assert_eq!(parameters, ours);
    }

    #[test]
    fn an_array_is_given_no_longer_list_than_it_says_it_takes() {
        let mut told = Vec::new();
        copy_status::emit_operating_parameters(&COPY_LIMITS, &mut told);
        assert_eq!(limits(&told), Some(COPY_LIMITS));
        (told[8], told[9], told[10], told[11]) = (0, 2, 0, 1);
        told[12..20].fill(0);
        assert_eq!(limits(&told), Some(CopyLimits { cscds: 2, segments: 1, ..COPY_LIMITS }));
        told[10..12].fill(0);
        assert_eq!(limits(&told), None);
        assert_eq!(limits(&[0xff; 19]), None);
    }

    #[test]
    fn nothing_panics_on_short_answers() {
        for whole in [array(), vec![0xff; 90]] {
            for len in 0..whole.len() {
                page(&mut whole[..len].to_vec(), Offloads::ALL);
                operating_parameters(&mut whole[..len].to_vec());
            }
        }
    }
}
