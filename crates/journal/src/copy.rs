//! Copying blocks between volumes: as references wherever the journal can say where they come from.
//!
//! Within one line of history a copy is one record, "what the source has as of this record". From another state of the same group, or
//! another group, see [`crate::foreign`].

use crate::{
    append::Draft,
    extents::{Kind, Loc},
    group::{Inner, Tip},
    lineage::TimelineId,
    read::{CopyCache, CopyInfo},
    record::{CopySource, Opcode},
    segment::place,
    superblock::VolumeInfo,
    volume::{Change, Extent, Volume},
    Error, Lsn, Moment, Result, BLOCK_BYTES,
};

/// One stretch of a copy, in blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyPiece {
    /// First block to read, in the source.
    pub source_lba: u64,
    /// First block to change, in the destination.
    pub lba: u64,
    /// Blocks.
    pub count: u64,
}

/// How a copy was captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Copied {
    /// Blocks captured without their data: as references, or as zeros.
    pub referenced_blocks: u64,
    /// Blocks read and captured as data.
    pub moved_blocks: u64,
}

/// Blocks of data moved at once.
pub(crate) const STEP_BLOCKS: u64 = 2048;
/// Records in one batch at most: 5 MiB of journal.
pub(crate) const BATCH_RECORDS: usize = 1 << 16;
/// A copy onto itself is cut into pieces as long as it is shifted; into more than this many of them it is not worth cutting.
const MAX_CUTS: u64 = 1024;
/// Links of a chain that one copy is shortened by, at most.
const MAX_SHORTENED: usize = 8;
/// Extents looked at for that in one batch; a copy of what is in more pieces stays as it is.
const MAX_LOOKED: usize = 1 << 15;
/// Extents asked for at once.
pub(crate) const EXTENTS: usize = 256;

/// A reference to be: source, destination, blocks.
pub(crate) type Reference = CopyPiece;

impl CopyPiece {
    pub(crate) fn skip(self, blocks: u64, count: u64) -> CopyPiece {
        CopyPiece { source_lba: self.source_lba + blocks, lba: self.lba + blocks, count }
    }

    /// Whether it reads any of these blocks.
    pub(crate) fn reads(&self, (lba, count): (u64, u64)) -> bool {
        self.source_lba < lba + count && lba < self.source_lba + self.count
    }

    /// Onto the volume it reads, in part.
    pub(crate) fn overlaps(&self) -> bool {
        self.lba < self.source_lba + self.count && self.source_lba < self.lba + self.count
    }

    /// Cuts a copy onto itself into pieces that do not, in the order in which none spoils what another has still to read. `None`: too many.
    fn cut(self, out: &mut Vec<Reference>) -> Option<()> {
        let shift = self.lba.abs_diff(self.source_lba);
        if shift == 0 || self.count == 0 {
            return Some(());
        }
        let cuts = self.count.div_ceil(shift);
        if cuts > MAX_CUTS {
            return None;
        }
        for i in 0..cuts {
            let n = shift.min(self.count - i * shift);
            // Upwards from the far end, downwards from the near one.
            let at = if self.lba > self.source_lba { self.count - i * shift - n } else { i * shift };
            out.push(self.skip(at, n));
        }
        Some(())
    }
}

impl Volume {
    /// Copies `pieces` of `source` here, in this order, each from the source as the pieces before have left it; one that overlaps its
    /// own source is read as it was before the piece. Within one line of history it is one batch of up to 65,536 records, all or none: one a piece, or
    /// as many as the shift goes into the length of one that overlaps itself (beyond 1,024 it travels as data, batch by batch). From another state of the
    /// group what is the same here is references, the rest data, in batches of up to 4 MiB of it; from another group all is data or zeros.
    pub fn copy(&self, source: &Volume, pieces: &[CopyPiece]) -> Result<Copied> {
        self.check_writable()?;
        for p in pieces {
            self.check(p.lba, p.count)?;
            source.check(p.source_lba, p.count)?;
        }
        let mut copied = Copied::default();
        let same_group = std::sync::Arc::ptr_eq(&self.group.0, &source.group.0);
        let same_volume = same_group && self.volume.info.number == source.volume.info.number;
        if same_group && self.line.is(&source.line) {
            let mut references = Vec::with_capacity(pieces.len());
            let cut = pieces.iter().try_for_each(|p| {
                if same_volume && p.overlaps() {
                    return p.cut(&mut references);
                }
                references.extend((p.count > 0).then_some(*p));
                Some(())
            });
            if cut.is_some() && references.len() <= BATCH_RECORDS {
                self.refer(source, &references)?;
                copied.referenced_blocks = pieces.iter().map(|p| p.count).sum();
                return Ok(copied);
            }
            for p in pieces {
                let mut references = Vec::new();
                if !(same_volume && p.overlaps()) {
                    references.push(*p);
                } else if p.cut(&mut references).is_none() {
                    self.shift(source, p, &mut copied)?;
                    continue;
                }
                self.refer(source, &references)?;
                copied.referenced_blocks += p.count;
            }
            return Ok(copied);
        }
        for p in pieces {
            if same_group {
                self.copy_state(source, p, &mut copied)?;
            } else {
                self.copy_data(source, p, &mut copied)?;
            }
        }
        Ok(copied)
    }

    /// As [`Volume::copy`], from a moment of a volume: [`crate::Error::Gone`] once the window has moved past it.
    pub fn copy_moment(&self, source: &Moment, pieces: &[CopyPiece]) -> Result<Copied> {
        source.check()?;
        self.copy(&source.0, pieces)
    }

    /// Whether [`Volume::copy`] from `source` is records alone, all or none: it is of the same group and line of history.
    pub fn refers_to(&self, source: &Volume) -> bool {
        std::sync::Arc::ptr_eq(&self.group.0, &source.group.0) && self.line.is(&source.line)
    }

    /// Captures references within the own line, all or none.
    fn refer(&self, source: &Volume, references: &[Reference]) -> Result<()> {
        if references.is_empty() {
            return self.check_present();
        }
        let number = source.volume.info.number;
        let asked = payloads(number, references);
        let drafts = self.reference_drafts(references, &asked);
        let mut log = self.group.0.log.lock();
        self.group.0.make_room(&mut log, &drafts)?;
        let timeline = self.timeline(&log)?;
        // A volume is removed with the log held: from here on it stays.
        source.check_present()?;
        let (references, sources) = self.shorten(timeline, number, references);
        let drafts = self.reference_drafts(&references, &sources);
        if !drafts.is_empty() {
            self.group.0.append(&mut log, timeline, &drafts)?;
        }
        Ok(())
    }

    /// Makes copies of a copy copies of what that is a copy of, where this has not been changed since: so a chain does not grow with every
    /// copy that is made of the last. The log is held, so nothing changes; what would copy blocks onto themselves falls away.
    fn shorten(
        &self,
        timeline: TimelineId,
        source: u32,
        references: &[Reference],
    ) -> (Vec<Reference>, Vec<[u8; CopySource::BYTES]>) {
        let to = self.volume.info.number;
        let state = self.group.0.state.read();
        // Over a view, which may have to be read from the disk, it is not worth while.
        let tip = state.tips.get(&timeline).filter(|tip| tip.under.is_none());
        let copies = self.group.0.copies.read();
        let mut out = (Vec::with_capacity(references.len()), Vec::with_capacity(references.len()));
        // What the references before have changed, which the index does not know yet.
        let mut changed: Option<(u64, u64)> = None;
        let mut looks = MAX_LOOKED;
        for r in references {
            let mut from = (source, r.source_lba);
            for _ in 0..MAX_SHORTENED {
                let spoilt = |(volume, lba): (u32, u64)| {
                    let within = |(first, end)| lba < end && first < lba + r.count;
                    volume == to && changed.is_some_and(within)
                };
                let next = tip.and_then(|tip| {
                    copied_from(tip, &copies, state.folded, (from.0, from.1, r.count), &mut looks)
                });
                match next.filter(|next| !spoilt(from) && !spoilt(*next)) {
                    Some(next) => from = next,
                    None => break,
                }
            }
            let short = CopyPiece { source_lba: from.1, ..*r };
            if from == (to, r.lba) {
                continue;
            }
            let (volume, kept) = match from.0 == to && short.overlaps() {
                true => (source, *r),
                false => (from.0, short),
            };
            let (first, end) = changed.unwrap_or((r.lba, r.lba));
            changed = Some((first.min(r.lba), end.max(r.lba + r.count)));
            out.0.push(kept);
            out.1.push(CopySource { volume, lba: kept.source_lba }.encode());
        }
        out
    }

    pub(crate) fn reference_drafts<'a>(
        &self,
        references: &[Reference],
        payloads: &'a [[u8; CopySource::BYTES]],
    ) -> Vec<Draft<'a>> {
        let number = self.volume.info.number;
        let draft = |(r, p): (&Reference, &'a [u8; 16])| Draft::new(Opcode::Copy, number, r.lba, r.count, p);
        references.iter().zip(payloads).map(draft).collect()
    }

    /// A copy onto itself by a small shift, as data and zeros: in the order in which nothing is overwritten that is still to be read.
    fn shift(&self, source: &Volume, piece: &CopyPiece, copied: &mut Copied) -> Result<()> {
        let upwards = piece.lba > piece.source_lba;
        let mut buf = vec![0; STEP_BLOCKS.min(piece.count) as usize * BLOCK_BYTES];
        let mut left = piece.count;
        let mut span = STEP_BLOCKS;
        while left > 0 {
            let n = span.min(left);
            let at = if upwards { left - n } else { piece.count - left };
            let mut extents = source.extents(piece.source_lba + at, n, EXTENTS)?;
            let told: u64 = extents.iter().map(|e| e.count).sum();
            if told < n && n > STEP_BLOCKS {
                // Many small ones; from behind it takes all of a range to know its last.
                span = (span / 8).max(STEP_BLOCKS);
                continue;
            }
            if told < n {
                extents = vec![Extent { lba: piece.source_lba + at, count: n, mapped: true, zero: false }];
            }
            if upwards {
                extents.reverse();
            }
            for e in extents {
                let to = piece.lba + (e.lba - piece.source_lba);
                if e.zero {
                    let change = match e.mapped {
                        true => Change::Zero { lba: to, count: e.count },
                        false => Change::Unmap { lba: to, count: e.count },
                    };
                    self.submit(&[change])?;
                    copied.referenced_blocks += e.count;
                    continue;
                }
                let mut done = 0;
                while done < e.count {
                    let n = STEP_BLOCKS.min(e.count - done);
                    let at = if upwards { e.count - done - n } else { done };
                    let data = &mut buf[..n as usize * BLOCK_BYTES];
                    source.read(e.lba + at, data)?;
                    self.submit(&[Change::Write { lba: to + at, data }])?;
                    done += n;
                }
                copied.moved_blocks += e.count;
            }
            left -= n;
            span = span.saturating_mul(8);
        }
        Ok(())
    }
}

/// What `count` blocks from `lba` of a volume are one copy of, if that has not been changed since.
fn copied_from(
    tip: &Tip,
    copies: &CopyCache,
    folded: Lsn,
    (volume, lba, count): (u32, u64, u64),
    looks: &mut usize,
) -> Option<(u32, u64)> {
    let mut first: Option<Loc> = None;
    let mut told = 0;
    let mut look = || {
        *looks = looks.saturating_sub(1);
        *looks > 0
    };
    let one = tip.own.lookup_while(volume, lba, count, &mut |m| {
        told += m.count;
        look() && m.loc.kind() == Kind::Copy && *first.get_or_insert(m.loc) == m.loc
    });
    let copy = first.filter(|loc| one && told == count && loc.lsn() >= folded)?.lsn();
    let CopyInfo { lba: to, source, .. } = copies.get(copy)?;
    let from = source.lba + (lba - to);
    let unchanged = tip.own.lookup_while(source.volume, from, count, &mut |m| look() && m.loc.lsn() < copy);
    unchanged.then_some((source.volume, from))
}

impl Inner {
    /// Refuses if a copy within the window reads a volume; other volumes' blocks would be lost with it. The caller holds `folding`.
    pub(crate) fn refuse_if_copied(&self, volume: &VolumeInfo, before: Lsn) -> Result<()> {
        let (folded, newest) = {
            let state = self.state.read();
            (state.folded, state.newest_copy)
        };
        if newest < folded {
            return Ok(());
        }
        self.refuse_if_copied_within(volume, folded, before)
    }

    /// As [`Inner::refuse_if_copied`], of the newest records. The caller holds the log, too.
    pub(crate) fn refuse_if_copied_since(&self, volume: &VolumeInfo, since: Lsn) -> Result<()> {
        let head = self.state.read().head.lsn;
        self.refuse_if_copied_within(volume, since, head)
    }

    fn refuse_if_copied_within(&self, volume: &VolumeInfo, from: Lsn, to: Lsn) -> Result<()> {
        let mut number = place(from, self.segment_bytes).0;
        while number * self.segment_bytes < to && self.state.read().segments.contains_key(&number) {
            let entries = self.entries_of(number)?;
            let within = entries.iter().filter(|e| (from..to).contains(&e.lsn));
            for e in within.filter(|e| e.opcode == Opcode::Copy && e.volume != volume.number) {
                let known = self.copies.read().get(e.lsn).map(|info| info.source);
                let source = match known {
                    Some(source) => source,
                    None => self.copy_source(e)?,
                };
                if source.volume == volume.number {
                    return Err(Error::Conflict(format!(
                        "volume {} is the source of a copy (LSN {}) within the window of group {}: settle the group first",
                        volume.name, e.lsn, self.name
                    )));
                }
            }
            number += 1;
        }
        Ok(())
    }
}

pub(crate) fn payloads(source: u32, references: &[Reference]) -> Vec<[u8; CopySource::BYTES]> {
    references.iter().map(|r| CopySource { volume: source, lba: r.source_lba }.encode()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cutting a copy onto itself moves bytes as `memmove` does.
    #[test]
    fn a_copy_onto_itself_is_cut_as_memmove_would() {
        for (source, to, count) in
            [(0, 3, 10), (3, 0, 10), (5, 5, 4), (0, 1, 9), (1, 0, 9), (2, 9, 7), (0, 6, 7)]
        {
            let piece = CopyPiece { source_lba: source, lba: to, count };
            let mut plain: Vec<u64> = (0..40).collect();
            let mut cut = plain.clone();
            plain.copy_within(source as usize..(source + count) as usize, to as usize);
            let mut references = Vec::new();
            piece.cut(&mut references).unwrap();
            for r in references {
                assert!(!r.overlaps(), "{piece:?}: {r:?}");
                cut.copy_within(r.source_lba as usize..(r.source_lba + r.count) as usize, r.lba as usize);
            }
            assert_eq!(cut, plain, "{piece:?}");
        }
        assert!(CopyPiece { source_lba: 0, lba: 1, count: 5000 }.cut(&mut Vec::new()).is_none());
    }
}
