//! Copies that the array makes by itself: EXTENDED COPY (SPC-4 6.4, 6.5), forwarded *and* recorded.
//!
//! - **What goes to the array is made anew** from what was read of the host's list: nothing that is not understood here travels along. What
//!   is not understood is refused with the standard's answer, and hosts copy by reads and writes.
//! - **Whom a descriptor names** is looked for among the LUNs of the same array that this host is shown, and nowhere else
//!   (CVE-2020-28374): it is by the array's names for them (VPD page 83h), or, where a LUN has a new identity, by that; the array always gets
//!   its own name. Whoever is not found is unreachable (0A/08/04), as a source too: where all hosts are one initiator to the array, it would
//!   read LUNs for them that they are not shown; as a destination it may be another name of something protected.
//! - **What is taken**: of each LUN, in one step, the blocks that are written, and those that are read, so that nobody changes them
//!   between the array's reading and our record. Over several LUNs in the order of their identities: no two copies wait for each other.
//! - **GOOD** is a COPY record where that says for certain what the array has done: the destination's blocks come from one volume of its
//!   own group, whose blocks are in step and read the same every time (unmapped ones may not), and no segment writes what another one reads or writes, for the array may do them in any order.
//!   Everything else is read back. The record stands before the source is let go of.
//! - **No longer list than the array takes** goes there: some run what they take and say GOOD. How much that is the array is asked; if it does
//!   not say, more than one segment is read back.
//! - **Everything but GOOD** leaves the destinations marked, half written as they may be: they are read back, after the array has certainly
//!   ended the copy ([`super::limbo`]).
//! - A copy that goes on after GOOD (LID4, IMMED) is refused (05/26/00), as FORMAT UNIT's is: its blocks would stay taken until somebody
//!   asked what became of it, and no session that is lost would end it.

use crate::lun::{CopyPiece, BLOCK_BYTES};
use crate::scsi::COPY_LIMITS;
use crate::splitter::Wanted;
use playhead_initiator::blocking::{is_deferred, sense_code};
use playhead_wire::scsi::extended_copy::{self, CopyLimits, CopyList, Designator, CSCD_BYTES, THIS_UNIT};
use playhead_wire::scsi::{status, Sense};
use std::ops::Range;

/// Bytes that the record of one piece holds at most.
const RECORD_BYTES: u64 = 64;

/// What a LUN does in a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It is read.
    Source,
    /// It is written.
    Destination,
}

/// The LUNs that a host may name. A LUN has one place, however often and by whatever name it is found.
pub trait Luns {
    /// The LUN that was given the command.
    fn own(&mut self) -> usize;

    /// The LUN of this name, and the array's name for it.
    fn find(&mut self, name: &Designator) -> Option<(usize, Designator)>;

    /// Refuses a LUN that may not be that in a copy now. Told of a segment's field: which segment, which byte.
    fn admit(&self, at: usize, role: Role, field: (u16, u16)) -> Result<(), Sense>;

    /// Size, in blocks.
    fn block_count(&self, at: usize) -> u64;

    /// What the array takes in one list; `None`: it does not say.
    fn limits(&self) -> Option<CopyLimits>;
}

/// What a LUN has to do with a copy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Part {
    /// What is to be taken of it.
    pub wanted: Wanted,
    /// GOOD says that these blocks of the LUN at this place are here now. `None`: what is written here is to be read back.
    pub copied: Option<(usize, Vec<CopyPiece>)>,
}

/// A copy, ready to be forwarded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Planned {
    /// The parameter list for the array.
    pub list: Vec<u8>,
    /// By the LUN's place.
    pub parts: Vec<Part>,
    /// Blocks that are copied.
    pub blocks: u64,
}

/// Reads the list of an EXTENDED COPY.
///
/// Errors: what to answer instead of forwarding it.
pub fn plan(list: &[u8], long_id: bool, luns: &mut dyn Luns) -> Result<Planned, Sense> {
    let told = luns.limits();
    let limits = told.unwrap_or(COPY_LIMITS);
    let Some(mut list) = extended_copy::parse(list, long_id, &limits)? else {
        return Ok(Planned::default());
    };
    if list.immediate {
        return Err(Sense::in_parameters(15));
    }
    let mut named: Vec<Option<usize>> = vec![None; list.cscds.len()];
    let mut copies: Vec<(usize, usize, CopyPiece)> = Vec::with_capacity(list.segments.len());
    for number in 0..list.segments.len() {
        let segment = list.segments[number];
        let number = number as u16;
        let source = look_up(&mut list, &mut named, segment.source, (number, 4), luns)?;
        let destination = look_up(&mut list, &mut named, segment.destination, (number, 6), luns)?;
        luns.admit(source, Role::Source, (number, 4))?;
        luns.admit(destination, Role::Destination, (number, 6))?;
        let count = segment.blocks(number, BLOCK_BYTES as u32, &limits)?;
        for (at, lba, byte) in [(source, segment.source_lba, 12), (destination, segment.lba, 20)] {
            let block_count = luns.block_count(at);
            if lba > block_count || count > block_count - lba {
                return Err(Sense::COPY_TARGET_NOT_REACHABLE.in_segment(number, byte));
            }
        }
        if count > 0 {
            let piece = CopyPiece { source_lba: segment.source_lba, lba: segment.lba, count };
            copies.push((source, destination, piece));
        }
    }
    // Named, and not used: the array would look for it all the same.
    for (at, place) in named.into_iter().enumerate() {
        if place.is_none() {
            let unreachable = Sense::UNREACHABLE_COPY_TARGET.at_parameter(cscd_byte(&list, at, 0));
            let name = list.cscds[at].name.ok_or(unreachable)?;
            list.cscds[at].name = Some(luns.find(&name).ok_or(unreachable)?.1);
        }
    }
    let mut bytes = Vec::new();
    extended_copy::emit(&list, long_id, &mut bytes);
    let blocks = copies.iter().map(|(_, _, piece)| piece.count).sum();
    let mut parts = parts(&copies);
    if told.is_none() && list.segments.len() > 1 {
        parts.iter_mut().for_each(|part| part.copied = None);
    }
    Ok(Planned { list: bytes, parts, blocks })
}

fn cscd_byte(list: &CopyList, at: usize, byte: usize) -> u16 {
    (usize::from(list.cscds_at) + at * CSCD_BYTES + byte) as u16
}

/// The place of the LUN that a segment means by `id`, which stands at `field`. Its descriptor names it as the array does from now on.
fn look_up(
    list: &mut CopyList,
    named: &mut [Option<usize>],
    id: u16,
    field: (u16, u16),
    luns: &mut dyn Luns,
) -> Result<usize, Sense> {
    if id == THIS_UNIT {
        return Ok(luns.own());
    }
    let unreachable = Sense::UNREACHABLE_COPY_TARGET.in_segment(field.0, field.1);
    let at = usize::from(id);
    if let Some(place) = *named.get(at).ok_or(unreachable)? {
        return Ok(place);
    }
    let cscd = list.cscds[at];
    let (place, name) = cscd.name.and_then(|name| luns.find(&name)).ok_or(unreachable)?;
    if cscd.device_type != 0 {
        return Err(Sense::INCORRECT_COPY_TARGET_TYPE.in_segment(field.0, field.1));
    }
    if cscd.block_bytes != BLOCK_BYTES as u32 {
        return Err(Sense::in_parameters(cscd_byte(list, at, 29)));
    }
    list.cscds[at].name = Some(name);
    named[at] = Some(place);
    Ok(place)
}

/// What each LUN has to do with `copies`: source, destination and blocks, in the order of the list.
fn parts(copies: &[(usize, usize, CopyPiece)]) -> Vec<Part> {
    let places = copies.iter().map(|(source, destination, _)| 1 + source.max(destination)).max();
    let mut parts: Vec<Part> = vec![Part::default(); places.unwrap_or(0)];
    for (source, destination, piece) in copies {
        parts[*source].wanted.sources.push(piece.source_lba..piece.source_lba + piece.count);
        parts[*destination].wanted.changes.push(piece.lba..piece.lba + piece.count);
        parts[*destination].wanted.payload_bytes += RECORD_BYTES;
    }
    let written_once: Vec<bool> = parts
        .iter_mut()
        .map(|Part { wanted, .. }| {
            let asked: u64 = wanted.changes.iter().map(|range| range.end - range.start).sum();
            wanted.changes = joined(std::mem::take(&mut wanted.changes));
            wanted.sources = joined(std::mem::take(&mut wanted.sources));
            let left: u64 = wanted.changes.iter().map(|range| range.end - range.start).sum();
            asked == left && !meet(&wanted.changes, &wanted.sources)
        })
        .collect();
    for at in 0..parts.len() {
        let mut here = copies.iter().filter(|(_, destination, _)| *destination == at);
        let Some(&(source, ..)) = here.clone().next() else {
            continue;
        };
        let steady = source == at || parts[source].wanted.changes.is_empty();
        if written_once[at] && steady && here.all(|(other, ..)| *other == source) {
            let pieces = copies.iter().filter(|(_, destination, _)| *destination == at);
            parts[at].copied = Some((source, whole(pieces.map(|(.., piece)| *piece))));
        }
    }
    parts
}

/// Ranges in ascending order, those that touch as one.
fn joined(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_unstable_by_key(|range| (range.start, range.end));
    let mut all: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match all.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => all.push(range),
        }
    }
    all
}

/// Whether two lists in ascending order have a block in common.
fn meet(a: &[Range<u64>], b: &[Range<u64>]) -> bool {
    let (mut a, mut b) = (a.iter().peekable(), b.iter().peekable());
    while let (Some(x), Some(y)) = (a.peek(), b.peek()) {
        if x.start < y.end && y.start < x.end {
            return true;
        }
        if x.end <= y.end {
            a.next();
        } else {
            b.next();
        }
    }
    false
}

/// Pieces that go on where the one before ends, here and there, as one: what one command copies is then one record.
fn whole(pieces: impl Iterator<Item = CopyPiece>) -> Vec<CopyPiece> {
    let mut all: Vec<CopyPiece> = Vec::new();
    for piece in pieces {
        match all.last_mut() {
            Some(last)
                if last.source_lba + last.count == piece.source_lba && last.lba + last.count == piece.lba =>
            {
                last.count += piece.count;
            }
            _ => all.push(piece),
        }
    }
    all
}

/// Whether a copy that ended so was certainly not begun: the array had a unit attention to tell, or does not know the command. Any other
/// error may have come when some segments were done, BUSY and RESERVATION CONFLICT too: some arrays (LIO for years) end the copy with the status
/// that one of its own reads or writes ended with.
pub fn never_begun(status: u8, sense: &[u8]) -> bool {
    match status {
        status::CHECK_CONDITION => {
            !is_deferred(sense) && matches!(sense_code(sense), Some((0x06, _, _) | (0x05, 0x20, 0x00)))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use playhead_wire::scsi::extended_copy::{Cscd, ListUse, Segment, SegmentLength};

    /// LUNs named by a byte: the host's name is the place, the array's that and 0x80. The third is read-only.
    #[derive(Default)]
    struct Three(Vec<u8>, Option<CopyLimits>);

    fn name(byte: u8) -> Designator {
        Designator::new(1, 3, &[byte; 8]).unwrap()
    }

    impl Luns for Three {
        fn own(&mut self) -> usize {
            self.find(&name(1)).unwrap().0
        }

        fn find(&mut self, wanted: &Designator) -> Option<(usize, Designator)> {
            let byte = (1..=3).find(|byte| name(*byte) == *wanted)?;
            let place = self.0.iter().position(|known| *known == byte).unwrap_or_else(|| {
                self.0.push(byte);
                self.0.len() - 1
            });
            Some((place, name(byte | 0x80)))
        }

        fn admit(&self, at: usize, role: Role, (segment, byte): (u16, u16)) -> Result<(), Sense> {
            if self.0[at] == 3 && role == Role::Destination {
                return Err(Sense::THIRD_PARTY_DEVICE_FAILURE.in_segment(segment, byte));
            }
            Ok(())
        }

        fn block_count(&self, _: usize) -> u64 {
            1000
        }

        fn limits(&self) -> Option<CopyLimits> {
            self.1
        }
    }

    /// From, to, and source LBA, LBA, blocks.
    type Move = (u16, u16, u64, u64, u32);

    fn list(names: &[u8], moves: &[Move], long_id: bool, immediate: bool) -> Vec<u8> {
        let cscd = |byte: &u8| Cscd { name: Some(name(*byte)), device_type: 0, block_bytes: 512 };
        let segment = |&(source, destination, source_lba, lba, count): &Move| {
            let length = SegmentLength::Bytes { count: count * 512, source_offset: 0, offset: 0 };
            Segment { source, destination, length, source_lba, lba }
        };
        let list = CopyList {
            list_id: 5,
            list_use: ListUse::Held,
            immediate,
            cscds: names.iter().map(cscd).collect(),
            cscds_at: if long_id { 48 } else { 16 },
            segments: moves.iter().map(segment).collect(),
        };
        let mut bytes = Vec::new();
        extended_copy::emit(&list, long_id, &mut bytes);
        bytes
    }

    fn telling(limits: CopyLimits) -> Three {
        Three(Vec::new(), Some(limits))
    }

    fn planned(names: &[u8], moves: &[Move]) -> Result<Planned, (u16, u16)> {
        let at = |sense: Sense| (sense.code, sense.field.map_or(0, |field| field.byte));
        plan(&list(names, moves, false, false), false, &mut telling(COPY_LIMITS)).map_err(at)
    }

    /// A source, and source LBA, LBA, blocks of each piece.
    type Told = Option<(usize, Vec<(u64, u64, u64)>)>;

    fn copied(moves: &[Move]) -> Vec<Told> {
        let told = |pieces: Vec<CopyPiece>| pieces.iter().map(|p| (p.source_lba, p.lba, p.count)).collect();
        let parts = planned(&[1, 2, 3], moves).unwrap().parts;
        parts.into_iter().map(|part| part.copied.map(|(from, pieces)| (from, told(pieces)))).collect()
    }

    #[test]
    fn the_array_gets_its_own_names_in_a_list_made_anew() {
        for long_id in [false, true] {
            let given = list(&[1, 2], &[(0, 1, 5, 6, 7)], long_id, false);
            let planned = plan(&given, long_id, &mut Three::default()).unwrap();
            assert_eq!(planned.list, list(&[0x81, 0x82], &[(0, 1, 5, 6, 7)], long_id, false));
            assert_eq!((planned.blocks, planned.parts.len()), (7, 2));
            // What nobody has read does not go along.
            let mut more = given.clone();
            more[if long_id { 49 } else { 17 }] |= 0x20;
            more.extend_from_slice(&[0xee; 40]);
            assert_eq!(plan(&more, long_id, &mut Three::default()).unwrap().list, planned.list);
        }
        assert_eq!(plan(&[], false, &mut Three::default()), Ok(Planned::default()));
    }

    #[test]
    fn what_is_not_shown_not_writable_or_not_there_is_refused() {
        assert_eq!(planned(&[1, 9], &[(0, 1, 0, 0, 1)]), Err((0x0804, 6)));
        assert_eq!(planned(&[9, 1], &[(0, 1, 0, 0, 1)]), Err((0x0804, 4)));
        assert_eq!(planned(&[1, 9], &[(0, 0, 0, 8, 1)]), Err((0x0804, 48)), "named, and not used");
        assert_eq!(planned(&[1, 3], &[(0, 1, 0, 0, 1)]), Err((0x0d01, 6)));
        assert!(planned(&[3, 1], &[(0, 1, 0, 0, 1)]).is_ok());
        assert_eq!(planned(&[1], &[(0, 7, 0, 0, 1)]), Err((0x0804, 6)));
        assert_eq!(planned(&[1], &[(0, 0, 999, 0, 2)]), Err((0x0d02, 12)));
        assert_eq!(planned(&[1], &[(0, 0, 0, 1001, 0)]), Err((0x0d02, 20)));
        let background = list(&[1], &[(0, 0, 0, 8, 8)], true, true);
        assert_eq!(plan(&background, true, &mut Three::default()).map_err(|s| s.code), Err(0x2600));
    }

    #[test]
    fn both_sides_are_taken_whole_and_segments_that_go_on_are_one_record() {
        let planned = planned(&[1, 2], &[(0, 1, 0, 100, 8), (THIS_UNIT, 1, 8, 108, 8), (0, 1, 50, 90, 10)]);
        let parts = planned.unwrap().parts;
        assert_eq!((&parts[0].wanted.sources[..], parts[0].wanted.changes.len()), (&[0..16, 50..60][..], 0));
        assert_eq!(parts[1].wanted.changes, vec![Range { start: 90, end: 116 }]);
        let pieces = [(0, 100, 16), (50, 90, 10)]
            .map(|(source_lba, lba, count)| CopyPiece { source_lba, lba, count })
            .to_vec();
        assert_eq!(parts[1].copied, Some((0, pieces)));
    }

    #[test]
    fn only_what_the_order_of_the_segments_cannot_change_is_recorded_as_a_copy() {
        assert_eq!(copied(&[(0, 0, 0, 8, 8)]), [Some((0, vec![(0, 8, 8)]))]);
        // Onto itself; onto what another segment reads; twice onto the same.
        assert_eq!(copied(&[(0, 0, 0, 7, 8)]), [None]);
        assert_eq!(copied(&[(0, 0, 0, 8, 8), (0, 0, 8, 16, 8)]), [None]);
        assert_eq!(copied(&[(0, 1, 0, 0, 8), (0, 1, 20, 7, 8)]), [None, None]);
        // From two LUNs; from one that is written to as well.
        assert_eq!(copied(&[(0, 1, 0, 0, 8), (2, 1, 0, 8, 8)]), [None, None, None]);
        let both = copied(&[(0, 1, 0, 0, 8), (2, 0, 0, 8, 8)]);
        assert_eq!(both, [Some((2, vec![(0, 8, 8)])), None, None]);
    }

    #[test]
    fn a_list_is_no_longer_than_the_array_takes_and_what_it_does_not_say_is_not_believed() {
        let of = |limits: Option<CopyLimits>, moves: &[Move]| {
            let mut luns = limits.map_or_else(Three::default, telling);
            plan(&list(&[1, 2], moves, false, false), false, &mut luns).map_err(|sense| sense.code)
        };
        let two = [(0, 1, 0, 0, 8), (0, 1, 8, 8, 8)];
        let one_segment = CopyLimits { segments: 1, ..COPY_LIMITS };
        assert_eq!(of(Some(one_segment), &two), Err(0x2608));
        assert!(of(Some(one_segment), &two[..1]).unwrap().parts[1].copied.is_some());
        assert_eq!(of(Some(CopyLimits { cscds: 1, ..COPY_LIMITS }), &two), Err(0x2606));
        assert_eq!(of(Some(CopyLimits { segment_bytes: 7 * 512, ..COPY_LIMITS }), &two), Err(0x2600));
        assert_eq!(of(Some(CopyLimits { descriptor_bytes: 100, ..COPY_LIMITS }), &two), Err(0x1a00));
        assert!(of(None, &two).unwrap().parts[1].copied.is_none());
        assert!(of(None, &two[..1]).unwrap().parts[1].copied.is_some());
    }

    #[test]
    fn only_what_was_never_begun_leaves_the_replica_as_it_is() {
        let sense = |key, asc, ascq| [0x70, 0, key, 0, 0, 0, 0, 10, 0, 0, 0, 0, asc, ascq, 0, 0, 0, 0];
        assert!(!never_begun(0x08, &[]) && !never_begun(0x18, &[]) && !never_begun(0x28, &[]));
        assert!(never_begun(2, &sense(6, 0x29, 0)) && never_begun(2, &sense(5, 0x20, 0)));
        for (key, asc, ascq) in [(0xa, 0x0d, 2), (5, 0x26, 0), (7, 0x27, 0), (0xb, 0, 0), (2, 4, 0)] {
            assert!(!never_begun(2, &sense(key, asc, ascq)), "{key:#x}");
        }
        assert!(!never_begun(0x40, &[]) && !never_begun(2, &[]));
    }
}
