//! What a range of blocks was as of a point, found for that range alone: no view of the point is made.
//!
//! That is what copies need: each COPY record is read as of itself, and a clone made of thousands of records would want thousands of
//! views. Most of such a range is what the newest versions say ([`crate::read`] asks those first); here is the way for the rest, which
//! has been changed since the point. Runs that lie wholly before it are searched as they are. Of the one segment that the point cuts,
//! the records are sorted by block in small parts, kept for the next reader within a bound.

use std::{collections::HashMap, sync::Arc};

use crate::{
    extents::Mapped,
    group::Inner,
    image::Part,
    index::Entry,
    lineage::{Span, TimelineId},
    segment::SegmentNumber,
    view::{Gaps, Piece, Pieces},
    Error, Lsn, Result,
};

/// Records of a segment that are sorted together, at most and at least. In between, a part is 4,096 of a segment of 64 MiB.
const PART_RECORDS: (usize, usize) = (16, 4096);
/// Parts kept: 32 MiB of the largest.
const KEPT_PARTS: usize = 256;

#[derive(Clone, Copy)]
struct Row {
    mapped: Mapped,
    timeline: TimelineId,
}

/// Rows of one volume whose lengths are alike: none is longer than `reach` blocks.
struct Alike {
    volume: u32,
    reach: u64,
    from: usize,
    to: usize,
}

/// Some neighbouring records of a segment, ready to be asked which of them touch a range.
pub(crate) struct Rows {
    rows: Vec<Row>,
    alike: Vec<Alike>,
}

impl Rows {
    fn of(entries: &[Entry]) -> Rows {
        let class = |count: u64| count.max(1).next_power_of_two();
        let mut sorted: Vec<(u32, u64, Row)> = entries
            .iter()
            .filter_map(|e| {
                let mapped = e.mapped()?;
                Some((e.volume, class(e.count), Row { mapped, timeline: e.timeline }))
            })
            .collect();
        sorted.sort_unstable_by_key(|(volume, class, row)| (*volume, *class, row.mapped.lba));
        let mut alike: Vec<Alike> = Vec::new();
        for (i, (volume, reach, _)) in sorted.iter().enumerate() {
            match alike.last_mut() {
                Some(last) if last.volume == *volume && last.reach == *reach => last.to = i + 1,
                _ => alike.push(Alike { volume: *volume, reach: *reach, from: i, to: i + 1 }),
            }
        }
        Rows { rows: sorted.into_iter().map(|(.., row)| row).collect(), alike }
    }

    /// Versions that `span` gave to blocks of `gaps`, in no order.
    fn find(&self, volume: u32, span: Span, gaps: &Gaps, found: &mut Vec<Mapped>) {
        let first = self.alike.partition_point(|a| a.volume < volume);
        for a in self.alike.get(first..).unwrap_or_default().iter().take_while(|a| a.volume == volume) {
            let rows = self.rows.get(a.from..a.to).unwrap_or_default();
            for &(lba, count) in gaps {
                let i = rows.partition_point(|r| r.mapped.lba + a.reach <= lba);
                let near = rows.get(i..).unwrap_or_default().iter();
                for r in near.take_while(|r| r.mapped.lba < lba + count) {
                    let touches = r.mapped.lba + r.mapped.count > lba;
                    if touches && r.timeline == span.timeline && r.mapped.loc.lsn() < span.end {
                        found.push(r.mapped);
                    }
                }
            }
        }
    }
}

/// The parts that were asked of late.
#[derive(Default)]
pub(crate) struct RowsCache {
    kept: HashMap<(SegmentNumber, usize), (Arc<Rows>, u64)>,
    clock: u64,
}

impl RowsCache {
    fn get(&mut self, key: (SegmentNumber, usize)) -> Option<Arc<Rows>> {
        self.clock += 1;
        let (rows, used) = self.kept.get_mut(&key)?;
        *used = self.clock;
        Some(Arc::clone(rows))
    }

    fn put(&mut self, key: (SegmentNumber, usize), rows: Arc<Rows>) {
        if self.kept.len() >= KEPT_PARTS {
            let oldest = self.kept.iter().min_by_key(|(_, (_, used))| *used).map(|(key, _)| *key);
            oldest.and_then(|key| self.kept.remove(&key));
        }
        self.kept.insert(key, (rows, self.clock));
    }

    /// Lets go of segments that have left the window.
    pub(crate) fn forget_before(&mut self, first: SegmentNumber) {
        self.kept.retain(|(number, _), _| *number >= first);
    }
}

/// Takes what `found` covers, newest first, out of `gaps`.
fn fill(gaps: &mut Gaps, found: &[Mapped], folded: Lsn, pieces: &mut Pieces) {
    for m in found {
        let end = m.lba + m.count;
        let mut left = Gaps::new();
        for &(lba, count) in gaps.iter() {
            if end <= lba || m.lba >= lba + count {
                left.push((lba, count));
                continue;
            }
            let part = m.clip(lba, lba + count);
            let loc = (part.loc.lsn() >= folded).then_some(part.loc);
            pieces.push(Piece { lba: part.lba, count: part.count, loc });
            if part.lba > lba {
                left.push((lba, part.lba - lba));
            }
            if part.lba + part.count < lba + count {
                left.push((part.lba + part.count, lba + count - part.lba - part.count));
            }
        }
        *gaps = left;
        if gaps.is_empty() {
            return;
        }
    }
}

impl Inner {
    /// Where the blocks of `gaps` were as of `lsn` on `timeline`; not in order. Right as long as the bases have not been folded
    /// beyond `lsn`, which the caller checks after it has read the bytes.
    pub(crate) fn as_of(
        &self,
        timeline: TimelineId,
        lsn: Lsn,
        volume: u32,
        mut gaps: Gaps,
        pieces: &mut Pieces,
    ) -> Result<()> {
        let mut parts = Vec::new();
        let (folded, sizes) = {
            let state = self.state.read();
            for span in state.history.lineage(timeline, lsn) {
                self.collect(&state, span, &mut parts);
            }
            (state.folded, Arc::clone(&state.sizes))
        };
        for part in parts {
            if gaps.is_empty() {
                break;
            }
            let mut found: Vec<Mapped> = Vec::new();
            match part {
                Part::Cut(number, span) => {
                    match self.search_records(number, span, volume, (&mut gaps, folded), pieces) {
                        // Folded and removed meanwhile: it is in the bases.
                        Err(_) if self.state.read().folded >= span.end => {}
                        other => other?,
                    }
                }
                Part::Run(run) => {
                    for &(lba, count) in &gaps {
                        run.lookup(volume, lba, count, &mut |m| found.push(m))?;
                    }
                }
                Part::Sealing(sealing, timeline) => {
                    if let Some(maps) = sealing.maps(&sizes).get(&timeline) {
                        for &(lba, count) in &gaps {
                            maps.lookup(volume, lba, count, &mut |m| found.push(m));
                        }
                    }
                }
            }
            fill(&mut gaps, &found, folded, pieces);
        }
        pieces.extend(gaps.into_iter().map(|(lba, count)| Piece { lba, count, loc: None }));
        Ok(())
    }

    /// Looks among the records of one segment, newest first.
    fn search_records(
        &self,
        number: SegmentNumber,
        span: Span,
        volume: u32,
        (gaps, folded): (&mut Gaps, Lsn),
        pieces: &mut Pieces,
    ) -> Result<()> {
        let mut found: Vec<Mapped> = Vec::new();
        let size = self.part_records();
        let count = {
            let state = self.state.read();
            if state.active_number() == Some(number) {
                let count = state.active.partition_point(|e| e.lsn < span.end);
                let whole = count / size * size;
                let tail = state.active.get(whole..count).unwrap_or_default().iter().rev();
                let touching = tail.filter(|e| {
                    e.volume == volume
                        && e.timeline == span.timeline
                        && gaps.iter().any(|&(lba, n)| e.lba < lba + n && lba < e.lba + e.count)
                });
                found.extend(touching.filter_map(Entry::mapped));
                whole
            } else if let Some(s) = state.sealing.iter().find(|s| s.segment.number == number) {
                s.entries.partition_point(|e| e.lsn < span.end)
            } else {
                let index = state.indexes.get(&number).cloned();
                drop(state);
                match index {
                    Some(index) => index.count_before(&*self.files, self.seed, span.end)?,
                    None => return Err(self.left_window(number)),
                }
            }
        };
        fill(gaps, &found, folded, pieces);
        for part in (0..count.div_ceil(size)).rev() {
            if gaps.is_empty() {
                break;
            }
            found.clear();
            self.rows(number, part)?.find(volume, span, gaps, &mut found);
            found.sort_unstable_by_key(|m| std::cmp::Reverse(m.loc.lsn()));
            fill(gaps, &found, folded, pieces);
        }
        Ok(())
    }

    /// A part of a segment's records, sorted. The parts asked for never change: what has been appended of them is all there will be.
    fn rows(&self, number: SegmentNumber, part: usize) -> Result<Arc<Rows>> {
        if let Some(rows) = self.rows.lock().get((number, part)) {
            return Ok(rows);
        }
        let size = self.part_records();
        let (from, to) = (part * size, (part + 1) * size);
        let cut = |entries: &[Entry]| entries.get(from..to.min(entries.len())).unwrap_or_default().to_vec();
        let (entries, index) = {
            let state = self.state.read();
            if state.active_number() == Some(number) {
                (cut(&state.active), None)
            } else if let Some(s) = state.sealing.iter().find(|s| s.segment.number == number) {
                (cut(&s.entries), None)
            } else {
                (Vec::new(), Some(state.indexes.get(&number).cloned()))
            }
        };
        let entries = match index {
            None => entries,
            Some(Some(index)) => index.part(&*self.files, self.seed, from, to)?,
            Some(None) => return Err(self.left_window(number)),
        };
        let rows = Arc::new(Rows::of(&entries));
        self.rows.lock().put((number, part), Arc::clone(&rows));
        Ok(rows)
    }

    fn part_records(&self) -> usize {
        (self.segment_bytes as usize >> 14).clamp(PART_RECORDS.0, PART_RECORDS.1)
    }

    fn left_window(&self, number: SegmentNumber) -> Error {
        Error::NotFound(format!("segment {number} of group {} is not in the window any more", self.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Opcode;
    use proptest::prelude::*;

    proptest! {
        /// Against the plain way: walk the records backwards.
        #[test]
        fn rows_find_what_a_walk_finds(
            records in prop::collection::vec((0..3_u32, 0..2_u32, 0..2000_u64, 0..12_u32), 1..200),
            asked in (0..3_u32, 0..2_u32, 0..2000_u64, 1..300_u64, 0..220_u64),
        ) {
            let entries: Vec<Entry> = records
                .iter()
                .enumerate()
                .map(|(i, (volume, timeline, lba, class))| Entry {
                    lsn: i as u64 * 100_000_000,
                    time_ns: 0,
                    lba: *lba,
                    count: (1 << class) - u64::from(*class > 3),
                    timeline: *timeline,
                    volume: *volume,
                    payload_bytes: 0,
                    opcode: Opcode::Write,
                })
                .collect();
            let (volume, timeline, lba, count, end) = asked;
            let span = Span { timeline, end: end * 100_000_000 };
            let mut gaps = Gaps::new();
            gaps.push((lba, count));
            let mut found = Vec::new();
            Rows::of(&entries).find(volume, span, &gaps, &mut found);
            found.sort_unstable_by_key(|m| std::cmp::Reverse(m.loc.lsn()));
            let mut pieces = Pieces::new();
            fill(&mut gaps, &found, 0, &mut pieces);
            let mut told: Vec<Option<Piece>> = vec![None; count as usize];
            for p in &pieces {
                for b in 0..p.count {
                    let slot = &mut told[(p.lba + b - lba) as usize];
                    prop_assert!(slot.is_none());
                    *slot = Some(Piece { lba: p.lba + b, count: 1, loc: p.loc.map(|l| l.advanced(b)) });
                }
            }
            for b in 0..count {
                let at = lba + b;
                let newest = entries.iter().rev().find(|e| {
                    e.volume == volume && e.timeline == timeline && e.lsn < span.end
                        && (e.lba..e.lba + e.count).contains(&at)
                });
                let loc = newest.and_then(Entry::mapped).map(|m| m.loc.advanced(at - m.lba));
                prop_assert_eq!(told[b as usize].map(|p| p.loc), loc.map(Some));
                prop_assert_eq!(gaps.iter().any(|(l, n)| (*l..l + n).contains(&at)), loc.is_none());
            }
        }
    }
}
