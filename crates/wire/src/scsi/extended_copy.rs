//! Parameter lists of EXTENDED COPY (SPC-4 6.4 and 6.5): who takes part, and which blocks go where.

use super::sense::Sense;
use super::{be16, be32, be64};

/// Bytes of a CSCD descriptor (copy source or copy destination).
pub const CSCD_BYTES: usize = 32;
/// CSCD descriptor type code: identification descriptor.
pub const IDENTIFICATION: u8 = 0xe4;
/// Segment descriptor type code: block device to block device, counted in blocks.
pub const BLOCK_TO_BLOCK: u8 = 0x02;
/// Segment descriptor type code: block device to block device, counted in bytes.
pub const BLOCK_TO_BLOCK_WITH_OFFSETS: u8 = 0x0a;
/// Every descriptor type code known here, ascending.
pub const DESCRIPTORS: [u8; 3] = [BLOCK_TO_BLOCK, BLOCK_TO_BLOCK_WITH_OFFSETS, IDENTIFICATION];
/// The CSCD descriptor ID of the unit that was given the command.
pub const THIS_UNIT: u16 = 0xffff;

const HEADER_1_BYTES: usize = 16;
const HEADER_4_BYTES: usize = 48;

/// What a device allows of EXTENDED COPY, as VPD page 8Fh and RECEIVE COPY OPERATING PARAMETERS tell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyLimits {
    /// Most CSCD descriptors of one list.
    pub cscds: u16,
    /// Most segment descriptors of one list.
    pub segments: u16,
    /// Most bytes of all descriptors of one list.
    pub descriptor_bytes: u32,
    /// Most bytes one segment copies.
    pub segment_bytes: u32,
    /// Two to this power bytes: segments are multiples of it.
    pub granularity_exponent: u8,
    /// Copies at once.
    pub concurrent: u8,
}

/// What becomes of a list identifier (LIST ID USAGE).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListUse {
    /// What the copy leads to is held for the initiator.
    Held,
    /// It may be discarded.
    Discardable,
    /// There is no identifier, and nothing is held.
    None,
}

/// Bytes of the longest designator that an identification descriptor holds.
pub const DESIGNATOR_BYTES_MAX: usize = 20;

/// A name of a logical unit, as VPD page 83h and identification descriptors have it (SPC-4 7.8.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Designator {
    code_set: u8,
    kind: u8,
    len: u8,
    /// Zeros behind the name.
    bytes: [u8; DESIGNATOR_BYTES_MAX],
}

impl Designator {
    /// The name `bytes` of this code set and designator type. `None`: it is empty, or longer than a descriptor holds.
    pub fn new(code_set: u8, kind: u8, bytes: &[u8]) -> Option<Designator> {
        let mut padded = [0; DESIGNATOR_BYTES_MAX];
        padded.get_mut(..bytes.len()).filter(|room| !room.is_empty())?.copy_from_slice(bytes);
        let len = bytes.len() as u8;
        Some(Designator { code_set: code_set & 0x0f, kind: kind & 0x0f, len, bytes: padded })
    }

    /// A binary NAA designator of 16 bytes.
    pub fn naa(naa: &[u8; 16]) -> Designator {
        let mut bytes = [0; DESIGNATOR_BYTES_MAX];
        bytes[..16].copy_from_slice(naa);
        Designator { code_set: 1, kind: 3, len: 16, bytes }
    }

    /// The 16 bytes of an NAA designator that has as many.
    pub fn as_naa(&self) -> Option<[u8; 16]> {
        let is_naa = (self.code_set, self.kind, self.len) == (1, 3, 16);
        self.bytes.first_chunk().copied().filter(|_| is_naa)
    }

    /// Code set, designator type, length and name, a byte each of the first three.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![self.code_set, self.kind, self.len];
        bytes.extend(self.bytes.iter().take(usize::from(self.len)));
        bytes
    }

    /// Designator type.
    pub fn kind(&self) -> u8 {
        self.kind
    }

    /// The names of the logical unit in a VPD page 83h that fit a descriptor, in its order.
    pub fn of_page(page: &[u8]) -> Vec<Designator> {
        let mut found = Vec::new();
        let mut rest = page.get(4..).unwrap_or_default();
        while let [code_set, kind, _, len, tail @ ..] = rest {
            let Some((name, after)) = tail.split_at_checked(usize::from(*len)) else {
                break;
            };
            // Association 0: the logical unit.
            if kind >> 4 & 3 == 0 {
                found.extend(Designator::new(*code_set, *kind, name));
            }
            rest = after;
        }
        found
    }
}

/// A copy source or copy destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cscd {
    /// What names it, if it is a name of a logical unit.
    pub name: Option<Designator>,
    /// Peripheral device type.
    pub device_type: u8,
    /// Bytes of a logical block.
    pub block_bytes: u32,
}

/// How much a segment copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SegmentLength {
    /// Logical blocks, of the source or of the destination.
    Blocks(u16),
    /// Bytes.
    Bytes {
        /// How many.
        count: u32,
        /// From this byte of the source's first block on.
        source_offset: u16,
        /// To this byte of the destination's first block.
        offset: u16,
    },
}

/// One segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// CSCD descriptor ID of the source.
    pub source: u16,
    /// CSCD descriptor ID of the destination.
    pub destination: u16,
    /// How much.
    pub length: SegmentLength,
    /// First block to read.
    pub source_lba: u64,
    /// First block to write.
    pub lba: u64,
}

impl Segment {
    /// The blocks it copies. `number` is its place in the list, from 0.
    ///
    /// Errors: what is not whole blocks of `block_bytes`, or more than `limits` allow.
    pub fn blocks(&self, number: u16, block_bytes: u32, limits: &CopyLimits) -> Result<u64, Sense> {
        let violation = |byte| Sense::SEGMENT_GRANULARITY_VIOLATION.in_segment(number, byte);
        match self.length {
            SegmentLength::Blocks(count)
                if u64::from(count) * u64::from(block_bytes) > u64::from(limits.segment_bytes) =>
            {
                Err(Sense::INVALID_FIELD_IN_PARAMETERS)
            }
            SegmentLength::Blocks(count) => Ok(u64::from(count)),
            SegmentLength::Bytes { source_offset: 1.., .. } => Err(violation(28)),
            SegmentLength::Bytes { offset: 1.., .. } => Err(violation(30)),
            SegmentLength::Bytes { count, .. } if count % block_bytes.max(1) != 0 => Err(violation(8)),
            SegmentLength::Bytes { count, .. } if count > limits.segment_bytes => {
                Err(Sense::INVALID_FIELD_IN_PARAMETERS)
            }
            SegmentLength::Bytes { count, .. } => Ok(u64::from(count / block_bytes.max(1))),
        }
    }
}

/// A parameter list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyList {
    /// List identifier; zero if there is none.
    pub list_id: u32,
    /// What becomes of it.
    pub list_use: ListUse,
    /// GOOD comes when the list is found right, the copy goes on behind it.
    pub immediate: bool,
    /// Sources and destinations, by CSCD descriptor ID.
    pub cscds: Vec<Cscd>,
    /// Byte of the list at which the first of them begins.
    pub cscds_at: u16,
    /// Segments, in the order they are to be copied.
    pub segments: Vec<Segment>,
}

/// Reads the list of an EXTENDED COPY, LID4 if `long_id`, else LID1. An empty list is none.
pub fn parse(list: &[u8], long_id: bool, limits: &CopyLimits) -> Result<Option<CopyList>, Sense> {
    if list.is_empty() {
        return Ok(None);
    }
    let header_bytes = if long_id { HEADER_4_BYTES } else { HEADER_1_BYTES };
    if list.len() < header_bytes {
        return Err(Sense::PARAMETER_LIST_LENGTH);
    }
    let list_use = match list[1] >> 3 & 3 {
        0 => ListUse::Held,
        2 => ListUse::Discardable,
        3 => ListUse::None,
        _ => return Err(Sense::in_parameters(1)),
    };
    let mut immediate = false;
    let (list_id, cscd_bytes, segment_bytes, inline_bytes) = if long_id {
        // The format, the length of a header made to look like a CSCD descriptor, and its type code.
        if list[0] != 0x01 {
            return Err(Sense::in_parameters(0));
        }
        if be16(list, 2) != 0x20 {
            return Err(Sense::in_parameters(2));
        }
        if list[16] != 0xff {
            return Err(Sense::in_parameters(16));
        }
        if list[15] & 1 != 0 {
            return Err(Sense::in_parameters(15)); // G_SENSE: GOOD comes without sense data here
        }
        immediate = list[15] & 2 != 0;
        if immediate && list_use == ListUse::None {
            return Err(Sense::INVALID_FIELD_IN_CDB); // as SPC-4 6.4.2 has it, though the CDB is right
        }
        let list_id = be32(list, 20);
        if list_use == ListUse::None && list_id != 0 {
            return Err(Sense::in_parameters(20));
        }
        (list_id, be16(list, 42).into(), be16(list, 44).into(), be16(list, 46).into())
    } else {
        // A LID1 list without a use for its identifier may have one all the same: initiators leave one there.
        (u32::from(list[0]), usize::from(be16(list, 2)), be32(list, 8) as usize, be32(list, 12) as usize)
    };
    let descriptor_bytes = cscd_bytes.saturating_add(segment_bytes);
    if descriptor_bytes > limits.descriptor_bytes as usize {
        return Err(Sense::PARAMETER_LIST_LENGTH);
    }
    if list.len() < header_bytes + descriptor_bytes {
        return Err(Sense::PARAMETER_LIST_LENGTH);
    }
    if inline_bytes > 0 {
        return Err(Sense::INLINE_DATA_LENGTH_EXCEEDED.at_parameter(if long_id { 46 } else { 12 }));
    }
    if cscd_bytes % CSCD_BYTES != 0 {
        return Err(Sense::in_parameters(if long_id { 42 } else { 2 }));
    }
    if cscd_bytes / CSCD_BYTES > usize::from(limits.cscds) {
        return Err(Sense::TOO_MANY_TARGET_DESCRIPTORS.at_parameter(if long_id { 42 } else { 2 }));
    }
    let (cscd_list, segment_list) = list[header_bytes..header_bytes + descriptor_bytes].split_at(cscd_bytes);
    let mut cscds = Vec::with_capacity(cscd_bytes / CSCD_BYTES);
    for (i, descriptor) in cscd_list.chunks_exact(CSCD_BYTES).enumerate() {
        if descriptor[0] != IDENTIFICATION {
            let at = (header_bytes + i * CSCD_BYTES) as u16;
            return Err(Sense::UNSUPPORTED_TARGET_DESCRIPTOR.at_parameter(at));
        }
        cscds.push(parse_cscd(descriptor));
    }
    let segments = parse_segments(segment_list, header_bytes + cscd_bytes, usize::from(limits.segments))?;
    Ok(Some(CopyList { list_id, list_use, immediate, cscds, cscds_at: header_bytes as u16, segments }))
}

/// An identification descriptor (SPC-4 6.4.5.6); LU ID TYPE and NUL mean nothing in one.
fn parse_cscd(descriptor: &[u8]) -> Cscd {
    let of_unit = descriptor[5] >> 4 & 3 == 0;
    let bytes = descriptor[8..28].get(..usize::from(descriptor[7])).unwrap_or_default();
    Cscd {
        name: Designator::new(descriptor[4], descriptor[5], bytes).filter(|_| of_unit),
        device_type: descriptor[1] & 0x1f,
        block_bytes: be32(descriptor, 28) & 0xff_ffff,
    }
}

fn parse_segments(list: &[u8], list_at: usize, limit: usize) -> Result<Vec<Segment>, Sense> {
    let mut segments = Vec::new();
    let mut at = 0;
    while at < list.len() {
        let rest = &list[at..];
        // Descriptors that fit whole, and all of whose bytes are there, are at most 64 KiB into the list.
        let place = |byte: usize| (list_at + at + byte) as u16;
        if segments.len() >= limit {
            return Err(Sense::TOO_MANY_SEGMENT_DESCRIPTORS);
        }
        let body_bytes = match rest[0] {
            BLOCK_TO_BLOCK => 0x18,
            BLOCK_TO_BLOCK_WITH_OFFSETS => 0x1c,
            _ => return Err(Sense::UNSUPPORTED_SEGMENT_DESCRIPTOR.at_parameter(place(0))),
        };
        if rest.len() < 4 + body_bytes {
            return Err(Sense::PARAMETER_LIST_LENGTH);
        }
        if usize::from(be16(rest, 2)) != body_bytes {
            return Err(Sense::in_parameters(place(2)));
        }
        // CAT joins what is left of one segment to the next: of whole blocks nothing is left.
        let length = if rest[0] == BLOCK_TO_BLOCK {
            // Blocks of source and destination have one size, so DC makes no difference.
            SegmentLength::Blocks(be16(rest, 10))
        } else {
            SegmentLength::Bytes {
                count: be32(rest, 8),
                source_offset: be16(rest, 28),
                offset: be16(rest, 30),
            }
        };
        segments.push(Segment {
            source: be16(rest, 4),
            destination: be16(rest, 6),
            length,
            source_lba: be64(rest, 12),
            lba: be64(rest, 20),
        });
        at += 4 + body_bytes;
    }
    Ok(segments)
}

/// Appends an identification descriptor of the unit `name`, a disk with blocks of `block_bytes`.
pub fn emit_cscd(name: &Designator, block_bytes: u32, out: &mut Vec<u8>) {
    out.extend_from_slice(&[IDENTIFICATION, 0, 0, 0, name.code_set, name.kind, 0, name.len]);
    out.extend_from_slice(&name.bytes);
    out.extend_from_slice(&(block_bytes & 0xff_ffff).to_be_bytes());
}

/// Appends a segment descriptor.
pub fn emit_segment(segment: &Segment, out: &mut Vec<u8>) {
    let (code, body_bytes) = match segment.length {
        SegmentLength::Blocks(_) => (BLOCK_TO_BLOCK, 0x18),
        SegmentLength::Bytes { .. } => (BLOCK_TO_BLOCK_WITH_OFFSETS, 0x1c),
    };
    out.extend_from_slice(&[code, 0, 0, body_bytes]);
    out.extend_from_slice(&segment.source.to_be_bytes());
    out.extend_from_slice(&segment.destination.to_be_bytes());
    match segment.length {
        SegmentLength::Blocks(count) => out.extend_from_slice(&u32::from(count).to_be_bytes()),
        SegmentLength::Bytes { count, .. } => out.extend_from_slice(&count.to_be_bytes()),
    }
    out.extend_from_slice(&segment.source_lba.to_be_bytes());
    out.extend_from_slice(&segment.lba.to_be_bytes());
    if let SegmentLength::Bytes { source_offset, offset, .. } = segment.length {
        out.extend_from_slice(&source_offset.to_be_bytes());
        out.extend_from_slice(&offset.to_be_bytes());
    }
}

/// Appends a whole list, whose CSCD descriptors are disks; `long_id` makes it LID4's.
pub fn emit(list: &CopyList, long_id: bool, out: &mut Vec<u8>) {
    let start = out.len();
    let list_use = match list.list_use {
        ListUse::Held => 0,
        ListUse::Discardable => 0x10,
        ListUse::None => 0x18,
    };
    out.resize(start + if long_id { HEADER_4_BYTES } else { HEADER_1_BYTES }, 0);
    let cscds_at = out.len();
    for cscd in &list.cscds {
        let name = cscd.name.unwrap_or(Designator { code_set: 1, kind: 3, len: 0, bytes: [0; 20] });
        emit_cscd(&name, cscd.block_bytes, out);
    }
    let segments_at = out.len();
    for segment in &list.segments {
        emit_segment(segment, out);
    }
    let cscd_bytes = ((segments_at - cscds_at) as u16).to_be_bytes();
    let segment_bytes = (out.len() - segments_at) as u32;
    let header = &mut out[start..];
    header[1] = list_use;
    if long_id {
        header[0] = 0x01;
        header[3] = 0x20;
        header[15] = u8::from(list.immediate) << 1;
        header[16] = 0xff;
        header[20..24].copy_from_slice(&list.list_id.to_be_bytes());
        header[42..44].copy_from_slice(&cscd_bytes);
        header[44..46].copy_from_slice(&(segment_bytes as u16).to_be_bytes());
    } else {
        header[0] = list.list_id as u8;
        header[2..4].copy_from_slice(&cscd_bytes);
        header[8..12].copy_from_slice(&segment_bytes.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: CopyLimits = CopyLimits {
        cscds: 4,
        segments: 8,
        descriptor_bytes: 4 * 32 + 8 * 32,
        segment_bytes: u32::MAX - 511,
        granularity_exponent: 9,
        concurrent: 8,
    };

    fn a_segment() -> impl Strategy<Value = Segment> {
        let blocks = any::<u16>().prop_map(SegmentLength::Blocks);
        let bytes = any::<(u32, u16, u16)>()
            .prop_map(|(count, source_offset, offset)| SegmentLength::Bytes { count, source_offset, offset });
        (any::<(u16, u16, u64, u64)>(), prop_oneof![blocks, bytes]).prop_map(
            |((source, destination, source_lba, lba), length)| Segment {
                source,
                destination,
                length,
                source_lba,
                lba,
            },
        )
    }

    proptest! {
        #[test]
        fn any_list_is_read_or_refused(list in proptest::collection::vec(any::<u8>(), 0..600), long in any::<bool>()) {
            if let Ok(Some(read)) = parse(&list, long, &LIMITS) {
                prop_assert!(read.cscds.len() <= 4 && read.segments.len() <= 8);
                for (i, segment) in read.segments.iter().enumerate() {
                    let _ = segment.blocks(i as u16, 512, &LIMITS);
                }
            }
        }

        #[test]
        fn what_was_written_is_read(
            list_id in any::<u32>(),
            naas in proptest::collection::vec(any::<[u8; 16]>(), 0..4),
            segments in proptest::collection::vec(a_segment(), 0..8),
            long in any::<bool>(),
            immediate in any::<bool>(),
        ) {
            let cscd = |naa: [u8; 16]| Cscd {
                name: Some(Designator::naa(&naa)),
                device_type: 0,
                block_bytes: 512,
            };
            let list = CopyList {
                list_id: if long { list_id } else { list_id & 0xff },
                list_use: ListUse::Held,
                immediate: immediate && long,
                cscds: naas.into_iter().map(cscd).collect(),
                cscds_at: if long { 48 } else { 16 },
                segments,
            };
            let mut bytes = Vec::new();
            emit(&list, long, &mut bytes);
            prop_assert_eq!(parse(&bytes, long, &LIMITS), Ok(Some(list)));
            // However it is cut, it is not read as something else.
            bytes.pop();
            prop_assert_eq!(parse(&bytes, long, &LIMITS), Err(Sense::PARAMETER_LIST_LENGTH));
        }
    }

    fn list(cscds: usize, segments: usize) -> Vec<u8> {
        let segment =
            Segment { source: 0, destination: 0, length: SegmentLength::Blocks(1), source_lba: 0, lba: 8 };
        let cscd = Cscd { name: Some(Designator::naa(&[6; 16])), device_type: 0, block_bytes: 512 };
        let list = CopyList {
            list_id: 1,
            list_use: ListUse::Held,
            immediate: false,
            cscds: vec![cscd; cscds],
            cscds_at: 16,
            segments: vec![segment; segments],
        };
        let mut bytes = Vec::new();
        emit(&list, false, &mut bytes);
        bytes
    }

    fn code_of(list: &[u8]) -> Result<(), u16> {
        parse(list, false, &LIMITS).map(|_| ()).map_err(|sense| sense.code)
    }

    #[test]
    fn each_limit_has_its_own_refusal() {
        assert_eq!(code_of(&list(4, 8)), Ok(()));
        assert_eq!(code_of(&list(5, 1)), Err(0x2606));
        assert_eq!(code_of(&list(1, 9)), Err(0x2608));
        assert_eq!(code_of(&list(12, 8)), Err(0x1a00));
        assert_eq!(code_of(&[0; 15]), Err(0x1a00));
    }

    #[test]
    fn unknown_descriptors_are_refused_where_they_stand() {
        let mut cscd = list(2, 1);
        cscd[48] = 0xe0;
        let sense = parse(&cscd, false, &LIMITS).unwrap_err();
        assert_eq!((sense.code, sense.field.unwrap().byte), (0x2607, 48));
        let mut segment = list(1, 2);
        segment[48 + 28] = 0x03;
        let sense = parse(&segment, false, &LIMITS).unwrap_err();
        assert_eq!((sense.code, sense.field.unwrap().byte), (0x2609, 76));
        let mut inline = list(1, 1);
        inline[15] = 4;
        assert_eq!(code_of(&inline), Err(0x260b));
    }

    #[test]
    fn a_designator_is_taken_as_it_stands_and_names_nothing_if_it_is_none() {
        let of = |byte: usize, value: u8| {
            let mut bytes = list(1, 1);
            bytes[byte] = value;
            parse(&bytes, false, &LIMITS).unwrap().unwrap().cscds[0].name
        };
        assert_eq!(of(20, 1), Some(Designator::naa(&[6; 16])));
        // Another code set, another type, and an NAA name of 8 bytes: other names.
        for (byte, value) in [(20, 2), (21, 1), (23, 8)] {
            assert_eq!(of(byte, value).unwrap().as_naa(), None, "byte {byte}");
        }
        assert_eq!(of(23, 8), Designator::new(1, 3, &[6; 8]));
        // Of a port, of no length, of more than there is room for.
        for (byte, value) in [(21, 0x13), (23, 0), (23, 21)] {
            assert_eq!(of(byte, value), None, "byte {byte}");
        }
    }

    #[test]
    fn the_names_of_a_page_end_where_a_length_lies() {
        let page =
            [&[0, 0x83, 0, 0, 1, 3, 0, 2, 9, 8, 1, 0x14, 0, 1, 7, 2, 1, 0, 3][..], b"abc", &[1, 3, 0, 9]];
        let names = Designator::of_page(&page.concat());
        assert_eq!(names, [Designator::new(1, 3, &[9, 8]).unwrap(), Designator::new(2, 1, b"abc").unwrap()]);
        assert!(Designator::of_page(&[]).is_empty());
    }

    #[test]
    fn the_lid4_header_is_checked() {
        let mut bytes = vec![0; 48];
        (bytes[0], bytes[3], bytes[16]) = (1, 0x20, 0xff);
        assert!(parse(&bytes, true, &LIMITS).unwrap().unwrap().segments.is_empty());
        for (byte, value, code) in
            [(0, 2, 0x2600), (3, 0, 0x2600), (16, 0, 0x2600), (15, 1, 0x2600), (1, 8, 0x2600)]
        {
            let mut wrong = bytes.clone();
            wrong[byte] = value;
            assert_eq!(parse(&wrong, true, &LIMITS).map_err(|s| s.code), Err(code), "byte {byte}");
        }
        // Without an identifier nobody could ask what became of it.
        (bytes[1], bytes[15]) = (0x18, 2);
        assert_eq!(parse(&bytes, true, &LIMITS).map_err(|s| s.code), Err(0x2400));
    }
}
