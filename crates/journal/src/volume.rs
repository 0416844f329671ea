//! A volume as its readers and writers see it: production's, or an image's.

use std::sync::{atomic::Ordering, Arc};

use parking_lot::MutexGuard;

use crate::{
    append::Draft,
    extents::Kind,
    flush::FlushDone,
    group::{Ground, Group, Log, VolumeState},
    image::ImageState,
    lineage::TimelineId,
    read::{Line, Todo},
    record::Opcode,
    superblock::VolumeInfo,
    Error, Lsn, Result, BLOCK_BYTES,
};

/// One change of a volume's blocks, as the journal records it.
#[derive(Debug, Clone, Copy)]
pub enum Change<'a> {
    /// Plain data; `data.len()` is a multiple of [`BLOCK_BYTES`].
    Write {
        /// First block.
        lba: u64,
        /// The blocks' bytes.
        data: &'a [u8],
    },
    /// One block repeated.
    WriteSame {
        /// First block.
        lba: u64,
        /// Blocks.
        count: u64,
        /// The repeated block, [`BLOCK_BYTES`] long.
        block: &'a [u8],
    },
    /// Zeros that stay provisioned (mapped).
    Zero {
        /// First block.
        lba: u64,
        /// Blocks.
        count: u64,
    },
    /// Zeros that are deallocated (unmapped).
    Unmap {
        /// First block.
        lba: u64,
        /// Blocks.
        count: u64,
    },
}

impl Change<'_> {
    fn range(&self) -> (u64, u64) {
        match *self {
            Change::Write { lba, data } => (lba, (data.len() / BLOCK_BYTES) as u64),
            Change::WriteSame { lba, count, .. }
            | Change::Zero { lba, count }
            | Change::Unmap { lba, count } => (lba, count),
        }
    }
}

/// A stretch of blocks of one allocation status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// First block.
    pub lba: u64,
    /// Blocks, at least 1.
    pub count: u64,
    /// Whether the blocks are provisioned.
    pub mapped: bool,
    /// Whether the blocks are known to read as zeros.
    pub zero: bool,
}

/// A volume of production or of an image. Cheap to clone; usable from many threads at once.
#[derive(Clone)]
pub struct Volume {
    pub(crate) group: Group,
    pub(crate) volume: Arc<VolumeState>,
    pub(crate) line: Line,
}

impl Volume {
    pub(crate) fn production(group: Group, volume: Arc<VolumeState>) -> Volume {
        Volume { group, volume, line: Line::Production }
    }

    pub(crate) fn of_image(group: Group, volume: Arc<VolumeState>, image: Arc<ImageState>) -> Volume {
        Volume { group, volume, line: Line::Image(image) }
    }

    /// What it is.
    pub fn info(&self) -> &VolumeInfo {
        &self.volume.info
    }

    /// Size in blocks.
    pub fn block_count(&self) -> u64 {
        self.volume.info.block_count
    }

    /// Most blocks of one [`Change::Write`] that become one record, which recovery finds whole or not at all.
    pub fn record_blocks_max(&self) -> u32 {
        (self.group.0.max_payload() / BLOCK_BYTES) as u32
    }

    /// Whether every change is refused.
    pub fn read_only(&self) -> bool {
        match &self.line {
            Line::Production => false,
            Line::Image(image) => !image.entry.writable,
            Line::Past(_) => true,
        }
    }

    pub(crate) fn check(&self, lba: u64, count: u64) -> Result<()> {
        let info = &self.volume.info;
        if lba.checked_add(count).is_none_or(|end| end > info.block_count) {
            return Err(Error::OutOfRange {
                volume: info.name.clone(),
                lba,
                count,
                blocks: info.block_count,
            });
        }
        self.check_present()
    }

    pub(crate) fn check_present(&self) -> Result<()> {
        self.group.0.check_open()?;
        if self.volume.removed.load(Ordering::Acquire) {
            return Err(Error::Gone(format!("volume {}", self.volume.info.name)));
        }
        let line = match &self.line {
            Line::Past(past) => {
                if self.group.0.state.read().edge.lsn > past.lsn {
                    return Err(self.moment_gone());
                }
                &past.of
            }
            line => line,
        };
        match line {
            Line::Image(image) if image.closed.load(Ordering::Acquire) => {
                Err(Error::Gone(format!("image {}", image.entry.name)))
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn check_writable(&self) -> Result<()> {
        if self.read_only() {
            return Err(Error::Invalid(format!(
                "volume {} is shown read-only: open the image as writable to change it",
                self.volume.info.name
            )));
        }
        Ok(())
    }

    /// The timeline writes go to. Asked for with the log held, since a rewind changes it.
    pub(crate) fn timeline(&self, log: &MutexGuard<'_, Log>) -> Result<TimelineId> {
        self.check_present()?;
        Ok(match &self.line {
            Line::Production => log.production,
            Line::Image(image) => image.entry.timeline,
            Line::Past(past) => past.timeline,
        })
    }

    pub(crate) fn drafts<'a>(&self, changes: &[Change<'a>]) -> Result<Vec<Draft<'a>>> {
        self.check_writable()?;
        let number = self.volume.info.number;
        let max_blocks = self.group.0.max_payload() / BLOCK_BYTES;
        let mut drafts = Vec::with_capacity(changes.len());
        for change in changes {
            let (lba, count) = change.range();
            self.check(lba, count)?;
            match *change {
                Change::Write { data, .. } => {
                    if data.len() % BLOCK_BYTES != 0 {
                        return Err(Error::Invalid(format!("{} bytes are not whole blocks", data.len())));
                    }
                    let mut at = lba;
                    for piece in data.chunks(max_blocks * BLOCK_BYTES) {
                        let blocks = (piece.len() / BLOCK_BYTES) as u64;
                        drafts.push(Draft::new(Opcode::Write, number, at, blocks, piece));
                        at += blocks;
                    }
                }
                Change::WriteSame { block, .. } => {
                    if block.len() != BLOCK_BYTES {
                        return Err(Error::Invalid(format!("{} bytes are not one block", block.len())));
                    }
                    if count > 0 {
                        drafts.push(Draft::new(Opcode::WriteSame, number, lba, count, block));
                    }
                }
                Change::Zero { .. } if count > 0 => {
                    drafts.push(Draft::new(Opcode::Zero, number, lba, count, &[]));
                }
                Change::Unmap { .. } if count > 0 => {
                    drafts.push(Draft::new(Opcode::Unmap, number, lba, count, &[]));
                }
                Change::Zero { .. } | Change::Unmap { .. } => {}
            }
        }
        Ok(drafts)
    }

    /// Captures `changes` in this order, all or none. On return they survive the death of the process. Returns the head behind them.
    pub fn submit(&self, changes: &[Change<'_>]) -> Result<Lsn> {
        let drafts = self.drafts(changes)?;
        let mut log = self.group.0.log.lock();
        // Waiting for room lets go of the log, and then a rewind may come; so whose timeline it is, is asked afterwards.
        self.group.0.make_room(&mut log, &drafts)?;
        let timeline = self.timeline(&log)?;
        self.group.0.append(&mut log, timeline, &drafts)?;
        Ok(log.active.number * self.group.0.segment_bytes + log.offset)
    }

    /// Compares `compare.len()` bytes at `lba` and, if they are equal, captures `write` there; atomic against every other change of
    /// the group. `Some(offset)` is the first byte that differs; nothing was changed then (SBC-4 5.3).
    ///
    /// Hosts hold locks by it, so it waits for nothing but the log: a little room is kept for it that other writes do not get, and when
    /// that too is gone it fails at once with [`Error::NoSpace`].
    pub fn compare_and_write(&self, lba: u64, compare: &[u8], write: &[u8]) -> Result<Option<usize>> {
        if compare.len() != write.len() {
            return Err(Error::Invalid("compare and write data differ in length".into()));
        }
        let drafts = self.drafts(&[Change::Write { lba, data: write }])?;
        let mut present = vec![0; compare.len()];
        let mut log = self.read_held(lba, &mut present, || Ok(self.group.0.log.lock()))?;
        let timeline = self.timeline(&log)?;
        if let Some(offset) = first_difference(&present, compare) {
            return Ok(Some(offset));
        }
        self.group.0.append_now(&mut log, timeline, &drafts)?;
        Ok(None)
    }

    /// Replaces the blocks from `lba` on by their bitwise OR with `data`; atomic against every other change of the group. In the journal
    /// it is a write of the outcome. Returns the head behind it (ORWRITE, SBC-4 5.12).
    pub fn or_write(&self, lba: u64, data: &[u8]) -> Result<Lsn> {
        // Waiting for room lets go of the log, so it comes before it is seen that what was read still holds; the outcome takes as much as the operand.
        let operand = self.drafts(&[Change::Write { lba, data }])?;
        let mut ored = vec![0; data.len()];
        let mut log = self.read_held(lba, &mut ored, || {
            let mut log = self.group.0.log.lock();
            self.group.0.make_room(&mut log, &operand)?;
            Ok(log)
        })?;
        let timeline = self.timeline(&log)?;
        ored.iter_mut().zip(data).for_each(|(a, b)| *a |= b);
        let drafts = self.drafts(&[Change::Write { lba, data: &ored }])?;
        self.group.0.append(&mut log, timeline, &drafts)?;
        Ok(log.active.number * self.group.0.segment_bytes + log.offset)
    }

    /// Makes everything captured before this call survive power loss, then calls `done`.
    pub fn flush_then(&self, done: FlushDone) {
        self.group.flush_then(done);
    }

    /// Allocation status of `count` blocks from `lba`: adjoining extents in order, at most `limit` (at least 1); the answer may end early.
    /// A copied block is what its source was.
    pub fn extents(&self, lba: u64, count: u64, limit: usize) -> Result<Vec<Extent>> {
        self.check(lba, count)?;
        let limit = limit.max(1);
        let mut out: Vec<Extent> = Vec::new();
        let mut at = lba;
        let end = lba + count;
        // Look at little where there is much to see, at more where there is little.
        let mut step = 1_u64 << 15;
        let mut overtaken = 0;
        while at < end && out.len() <= limit {
            let n = step.min(end - at);
            let folded = self.group.0.state.read().folded;
            let (parts, oldest) = match self.found_in(at, n) {
                // What a fold took away meanwhile is in the bases now.
                Err(_) if self.group.0.state.read().folded > folded && overtaken < MAX_OVERTAKEN => {
                    overtaken += 1;
                    continue;
                }
                found => found?,
            };
            let mut some: Vec<Extent> = Vec::new();
            for t in &parts {
                let lba = at + t.at;
                let piece = t.found.piece;
                let (mapped, zero) = match piece.loc.map(|l| l.kind()) {
                    Some(Kind::Data | Kind::Pattern | Kind::Copy) => (true, false),
                    Some(Kind::Zero) => (true, true),
                    Some(Kind::Unmapped) => (false, true),
                    None => {
                        base_extents(t, lba, limit, &mut some)?;
                        continue;
                    }
                };
                push(&mut some, Extent { lba, count: piece.count, mapped, zero });
            }
            if self.group.0.state.read().folded > oldest {
                overtaken += 1;
                if overtaken > MAX_OVERTAKEN {
                    return Err(self.overtaken());
                }
                continue;
            }
            step = if parts.len() < 64 { step.saturating_mul(8) } else { 1 << 15 };
            some.into_iter().for_each(|extent| push(&mut out, extent));
            at += n;
        }
        self.check_unfolded()?;
        // What was looked at may have been closed, or left behind by the window, meanwhile.
        self.check_present()?;
        out.truncate(limit);
        Ok(out)
    }

    /// The parts of a range in order, copies followed to their sources; right as long as no fold has gone beyond the point returned.
    fn found_in(&self, lba: u64, count: u64) -> Result<(Vec<Todo>, Lsn)> {
        let (found, sight) = self.look(lba, count)?;
        let todo = found.into_iter().map(|found| {
            let at = found.piece.lba - lba;
            Todo { volume: Arc::clone(&self.volume), found, at }
        });
        let (copies, mut parts): (Vec<Todo>, Vec<Todo>) = todo.partition(|t| t.found.is_copy());
        let oldest = self.group.0.follow(&sight, copies, &mut |t| {
            parts.push(t);
            Ok(())
        })?;
        parts.sort_unstable_by_key(|t| t.at);
        Ok((parts, oldest))
    }
}

/// Folds that may overtake one look at a range.
const MAX_OVERTAKEN: usize = 64;

/// What the base says of a part, which begins at `lba` of the volume asked about.
fn base_extents(t: &Todo, lba: u64, limit: usize, out: &mut Vec<Extent>) -> Result<()> {
    let piece = t.found.piece;
    let mut done = 0;
    let base = match &t.volume.ground {
        Ground::Base(base) => base,
        Ground::Image(under) => {
            // One more than wanted, so that what is not described is beyond what the caller keeps.
            for e in under.volume()?.extents(piece.lba, piece.count, limit.saturating_add(1))? {
                push(out, Extent { lba: lba + done, ..e });
                done += e.count;
            }
            return not_described(lba + done, piece.count - done, out);
        }
    };
    while done < piece.count && out.len() <= limit {
        let block = BLOCK_BYTES as u64;
        let (data, bytes) = base.data_at((piece.lba + done) * block, (piece.count - done) * block)?;
        // A block that is partly data is data.
        let n = if data { bytes.div_ceil(block) } else { bytes / block };
        let (data, n) = if n == 0 { (true, 1) } else { (data, n) };
        let n = n.min(piece.count - done);
        push(out, Extent { lba: lba + done, count: n, mapped: data, zero: !data });
        done += n;
    }
    not_described(lba + done, piece.count - done, out)
}

/// Where we stopped early the rest is not described; what follows must not be joined over the gap.
fn not_described(lba: u64, count: u64, out: &mut Vec<Extent>) -> Result<()> {
    if count > 0 {
        push(out, Extent { lba, count, mapped: true, zero: false });
    }
    Ok(())
}

/// The offset of the first byte that differs.
fn first_difference(a: &[u8], b: &[u8]) -> Option<usize> {
    const STEP: usize = 64;
    let step = a.chunks(STEP).zip(b.chunks(STEP)).position(|(x, y)| x != y)?;
    let (x, y) = (a.iter().skip(step * STEP), b.iter().skip(step * STEP));
    x.zip(y).position(|(x, y)| x != y).map(|within| step * STEP + within)
}

fn push(out: &mut Vec<Extent>, extent: Extent) {
    match out.last_mut() {
        Some(last) if last.mapped == extent.mapped && last.zero == extent.zero => {
            last.count += extent.count;
        }
        _ => out.push(extent),
    }
}
