//! Copies from another state of the group (an image, a moment, production seen from a branch), and from another group.
//!
//! Two states of one group know their blocks by where they lie, and what lies in the same place is the same. So the states are
//! compared without reading a block: what the own line still has as the source has it is captured as a reference to the own line, and
//! only what either side has changed since is read and becomes data. While it is compared and read hosts go on writing; what they have
//! touched until the log is held for the records is looked up there, and is no reference then.

use std::{collections::VecDeque, sync::Arc};

use parking_lot::MutexGuard;

use crate::{
    copy::{payloads, Copied, CopyPiece, Reference, BATCH_RECORDS, EXTENTS, STEP_BLOCKS},
    group::Log,
    lineage::TimelineId,
    read::{FoundList, Line, Sight},
    segment::place,
    view::Piece,
    volume::{Change, Volume},
    Error, Lsn, Result, BLOCK_BYTES,
};

/// Bytes of data in one batch, and at most half a segment.
const BATCH_BYTES: u64 = 4 << 20;
/// Blocks referred to in one batch at least, however often hosts have come in between.
const MIN_REACH_BLOCKS: u64 = 64;
/// Blocks that are compared between two states at once.
const COMPARE_BLOCKS: u64 = 1 << 21;

/// What no record is ever on.
const NO_TIMELINE: TimelineId = 0;

/// A stretch of a copy from another state.
#[derive(Debug, Clone, Copy)]
struct Part {
    piece: CopyPiece,
    /// The own line has the very same in the source volume.
    same: bool,
}

/// Blocks that were changed (first, count), and the head that was looked up to.
type Touched = (Vec<(u64, u64)>, Lsn);

impl Volume {
    /// Copies from another group.
    pub(crate) fn copy_data(&self, source: &Volume, piece: &CopyPiece, copied: &mut Copied) -> Result<()> {
        let mut parts = VecDeque::from([Part { piece: *piece, same: false }]);
        while !parts.is_empty() {
            let batch = self.batch(source, &mut parts, u64::MAX)?;
            self.submit(&batch.changes())?;
            copied.referenced_blocks += batch.zero_blocks();
            copied.moved_blocks += batch.data_blocks();
        }
        Ok(())
    }

    /// Copies from another state of the group.
    pub(crate) fn copy_state(&self, source: &Volume, piece: &CopyPiece, copied: &mut Copied) -> Result<()> {
        let number = source.volume.info.number;
        // Our own line's idea of the source volume.
        let own =
            Volume { group: self.group.clone(), volume: source.volume.clone(), line: self.line.clone() };
        let mut parts = VecDeque::from([Part { piece: *piece, same: false }]);
        let mut compared: Option<(TimelineId, Lsn)> = None;
        let mut reach = u64::MAX;
        loop {
            let (timeline, since) = match compared {
                Some(compared) => compared,
                None => {
                    let since = self.group.0.state.read().head.lsn;
                    let (found, timeline) = self.compare(&own, source, piece, std::mem::take(&mut parts))?;
                    parts = found;
                    *compared.insert((timeline, since))
                }
            };
            if parts.is_empty() {
                return Ok(());
            }
            let mut rest = parts.clone();
            let batch = self.batch(source, &mut rest, reach)?;
            let payloads = payloads(number, &batch.references);
            let changes = batch.changes();
            let mut drafts = self.drafts(&changes)?;
            drafts.extend(self.reference_drafts(&batch.references, &payloads));
            let mut log = self.group.0.log.lock();
            self.group.0.make_room(&mut log, &drafts)?;
            own.check_present()?;
            // What was changed since the comparison is not the same any more; what the source had there becomes data. A block is
            // changed for the first time once only, so this comes to an end however busy hosts are.
            let touched = match self.timeline(&log)? == timeline {
                true => self.touched(&log, timeline, number, since),
                false => Ok(None),
            };
            let Some((touched, head)) = touched? else {
                // Production was moved, or what came since has left the window: what is the same is another question now.
                drop(log);
                compared = None;
                continue;
            };
            compared = Some((timeline, head));
            if batch.references.iter().any(|r| touched.iter().any(|t| r.reads(*t))) {
                drop(log);
                split(&mut parts, &touched);
                reach = (reach.min(piece.count) / 8).max(MIN_REACH_BLOCKS);
                continue;
            }
            if !drafts.is_empty() {
                self.group.0.append(&mut log, timeline, &drafts)?;
            }
            drop(log);
            split(&mut rest, &touched);
            copied.referenced_blocks += batch.referenced_blocks() + batch.zero_blocks();
            copied.moved_blocks += batch.data_blocks();
            parts = rest;
        }
    }

    /// Finds what of `parts` the own line has as the source has it, and on which timeline that was.
    fn compare(
        &self,
        own: &Volume,
        source: &Volume,
        asked: &CopyPiece,
        parts: VecDeque<Part>,
    ) -> Result<(VecDeque<Part>, TimelineId)> {
        let inner = &self.group.0;
        let same_volume = self.volume.info.number == source.volume.info.number;
        // What this copy overwrites itself is no good source, unless it stays where it is.
        let spoilt = same_volume && asked.lba != asked.source_lba && asked.overlaps();
        let mut out: VecDeque<Part> = VecDeque::new();
        let mut timelines: Vec<TimelineId> = Vec::new();
        for part in parts {
            let whole = part.piece;
            let mut done = 0;
            while done < whole.count {
                let n = COMPARE_BLOCKS.min(whole.count - done);
                let from = whole.source_lba + done;
                let mut put = |lba: u64, count: u64, same: bool| {
                    let piece = whole.skip(lba - whole.source_lba, count);
                    push(&mut out, Part { piece, same: same && !spoilt });
                };
                loop {
                    // Blocks that both have in the base are the same only if both looked while it was folded as far.
                    let folded = inner.state.read().folded;
                    let (ours, sight) = own.look(from, n)?;
                    let now = match sight {
                        Sight::Tip(now) => now,
                        _ => NO_TIMELINE,
                    };
                    let ours = sorted(ours);
                    let since = source.as_of_tip(now);
                    let theirs = match since {
                        Some(_) => Vec::new(),
                        None => sorted(source.look(from, n)?.0),
                    };
                    source.check_unfolded()?;
                    // A closed image lets go of the past it was compared by.
                    source.check_present()?;
                    if inner.state.read().folded != folded {
                        continue;
                    }
                    match since {
                        Some(lsn) => ours.iter().for_each(|p| {
                            put(p.lba, p.count, p.loc.is_none_or(|l| l.lsn() < lsn));
                        }),
                        None => agreement(&theirs, &ours, &mut put),
                    }
                    timelines.push(now);
                    break;
                }
                done += n;
            }
        }
        timelines.dedup();
        // Production was moved meanwhile: then it was compared with no one state.
        let timeline = if let [one] = timelines[..] { one } else { NO_TIMELINE };
        Ok((out, timeline))
    }

    /// Of a moment of the very timeline: the point from which on that has changed.
    fn as_of_tip(&self, now: TimelineId) -> Option<Lsn> {
        let Line::Past(past) = &self.line else { return None };
        match self.group.0.sight_of(past) {
            Sight::Past { tip: Some(tip), lsn, .. } if tip == now => Some(lsn),
            _ => None,
        }
    }

    /// Takes the next batch off `parts`, with references to at most `reach` blocks.
    fn batch(&self, source: &Volume, parts: &mut VecDeque<Part>, reach: u64) -> Result<Batch> {
        let mut batch = Batch::default();
        let most_bytes = BATCH_BYTES.min(self.group.0.segment_bytes / 2);
        let same_volume = Arc::ptr_eq(&self.volume, &source.volume);
        let mut referred = 0;
        while let Some(part) = parts.pop_front() {
            let full = batch.references.len() + batch.moves.len() >= BATCH_RECORDS;
            if full || batch.bytes >= most_bytes || referred >= reach {
                parts.push_front(part);
                break;
            }
            let p = part.piece;
            if part.same {
                if same_volume && p.lba == p.source_lba {
                    batch.unchanged_blocks += p.count;
                    continue;
                }
                let n = p.count.min(reach - referred);
                batch.references.push(p.skip(0, n));
                referred += n;
                if n < p.count {
                    parts.push_front(Part { piece: p.skip(n, p.count - n), same: true });
                }
                continue;
            }
            let mut done = 0;
            while done < p.count && batch.bytes < most_bytes && batch.moves.len() < BATCH_RECORDS {
                for extent in source.extents(p.source_lba + done, p.count - done, EXTENTS)? {
                    let mut at = 0;
                    while at < extent.count && batch.bytes < most_bytes {
                        let n = if extent.zero { extent.count } else { STEP_BLOCKS.min(extent.count - at) };
                        let kind = match (extent.zero, extent.mapped) {
                            (true, true) => Move::Zero,
                            (true, false) => Move::Unmap,
                            (false, _) => {
                                let mut data = vec![0; n as usize * BLOCK_BYTES];
                                source.read(extent.lba + at, &mut data)?;
                                batch.bytes += data.len() as u64;
                                Move::Data(data)
                            }
                        };
                        batch.moves.push((p.lba + done, n, kind));
                        at += n;
                        done += n;
                    }
                    if at < extent.count {
                        break;
                    }
                }
            }
            if done < p.count {
                parts.push_front(Part { piece: p.skip(done, p.count - done), same: false });
            }
        }
        Ok(batch)
    }

    /// Where records since `since` have changed a volume on `timeline`, and where the head is; `None` if not all of them are left. The
    /// log is held, so no more come.
    fn touched(
        &self,
        _log: &MutexGuard<'_, Log>,
        timeline: TimelineId,
        volume: u32,
        since: Lsn,
    ) -> Result<Option<Touched>> {
        let inner = &self.group.0;
        let (head, last) = {
            let state = inner.state.read();
            (state.head.lsn, state.active_number().unwrap_or(0))
        };
        let mut out = Vec::new();
        if head == since {
            return Ok(Some((out, head)));
        }
        for number in place(since, inner.segment_bytes).0..=last {
            let entries = match inner.entries_of(number) {
                Err(Error::NotFound(_)) => return Ok(None),
                entries => entries?,
            };
            let first = entries.partition_point(|e| e.lsn < since);
            let new = entries.get(first..).unwrap_or_default().iter();
            let ours = new.filter(|e| e.volume == volume && e.timeline == timeline);
            out.extend(ours.filter(|e| e.opcode.changes_blocks()).map(|e| (e.lba, e.count)));
        }
        Ok(Some((out, head)))
    }
}

enum Move {
    Data(Vec<u8>),
    Zero,
    Unmap,
}

/// What is captured together.
#[derive(Default)]
struct Batch {
    references: Vec<Reference>,
    moves: Vec<(u64, u64, Move)>,
    /// Bytes of data among the moves.
    bytes: u64,
    unchanged_blocks: u64,
}

impl Batch {
    fn changes(&self) -> Vec<Change<'_>> {
        fn change((lba, count, kind): &(u64, u64, Move)) -> Change<'_> {
            let (lba, count) = (*lba, *count);
            match kind {
                Move::Data(data) => Change::Write { lba, data },
                Move::Zero => Change::Zero { lba, count },
                Move::Unmap => Change::Unmap { lba, count },
            }
        }
        self.moves.iter().map(change).collect()
    }

    fn data_blocks(&self) -> u64 {
        self.bytes / BLOCK_BYTES as u64
    }

    fn zero_blocks(&self) -> u64 {
        self.moves.iter().map(|m| m.1).sum::<u64>() - self.data_blocks()
    }

    fn referenced_blocks(&self) -> u64 {
        self.unchanged_blocks + self.references.iter().map(|r| r.count).sum::<u64>()
    }
}

fn sorted(found: FoundList) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = found.into_iter().map(|f| f.piece).collect();
    pieces.sort_unstable_by_key(|p| p.lba);
    pieces
}

/// Walks over two descriptions of one range and tells where they say the same.
fn agreement(a: &[Piece], b: &[Piece], tell: &mut dyn FnMut(u64, u64, bool)) {
    let (mut i, mut j) = (0, 0);
    while let (Some(x), Some(y)) = (a.get(i), b.get(j)) {
        let at = x.lba.max(y.lba);
        let end = (x.lba + x.count).min(y.lba + y.count);
        let loc = |p: &Piece| p.loc.map(|l| l.advanced(at - p.lba));
        if at < end {
            tell(at, end - at, loc(x) == loc(y));
        }
        i += usize::from(x.lba + x.count == end);
        j += usize::from(y.lba + y.count == end);
    }
}

fn push(parts: &mut VecDeque<Part>, part: Part) {
    if let Some(last) = parts.back_mut() {
        let (l, p) = (last.piece, part.piece);
        if last.same == part.same && l.source_lba + l.count == p.source_lba && l.lba + l.count == p.lba {
            last.piece.count += p.count;
            return;
        }
    }
    parts.push_back(part);
}

/// Makes parts the same only where nothing was touched.
fn split(parts: &mut VecDeque<Part>, touched: &[(u64, u64)]) {
    for &(lba, count) in touched {
        let old = std::mem::take(parts);
        for part in old {
            let p = part.piece;
            let (from, to) = (lba.max(p.source_lba), (lba + count).min(p.source_lba + p.count));
            if !part.same || from >= to {
                push(parts, part);
                continue;
            }
            let (before, within) = (from - p.source_lba, to - from);
            let after = p.count - before - within;
            for (skip, n, same) in
                [(0, before, true), (before, within, false), (before + within, after, true)]
            {
                if n > 0 {
                    push(parts, Part { piece: p.skip(skip, n), same });
                }
            }
        }
    }
}
