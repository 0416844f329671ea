//! Bringing a replica back in step while hosts work: regions that differ are read from production and from the replica, and what is
//! not equal is recorded, between RESYNC_BEGIN and RESYNC_END.
//!
//! Blocks are taken as by a change, 1 MiB at a time, so a host waits for a comparison at most that long, and what the comparison records
//! stands in the journal where it stood in production. What remains to be done is the change map, so it goes on after a restart where it
//! was. The first synchronisation is the same with everything marked. A region counts as differing until the end has been read; what
//! becomes unknown meanwhile counts again.
//!
//! One thread, the tender's, does this, tries whether a journal that has refused takes records again, and unmarks quiet regions.

use std::{
    ops::Range,
    sync::{mpsc, Arc},
    time::Duration,
};

use playhead_journal::{Change, Error, BLOCK_BYTES};

use super::{
    refusal,
    split::{Inside, Shared},
    takes::Wanted,
};
use crate::lun::LunError;

/// Blocks compared at once.
pub(super) const CHUNK_BLOCKS: u64 = (1 << 20) / BLOCK_BYTES as u64;
/// Blocks that are recorded together if one of them differs: a page.
const PIECE_BLOCKS: usize = 8;
/// How often there is a look at what nobody has asked for.
const ROUND: Duration = Duration::from_secs(1);
/// How long somebody else's change is waited for, while hosts wait behind us: one whose end nobody knows may take any time.
const PATIENCE: Duration = Duration::from_millis(200);
/// Extents asked for at once.
const EXTENTS: usize = 64;

/// Why a comparison could not go on.
pub(super) enum Trouble {
    /// Production or replica cannot be read.
    Read(LunError),
    /// The journal refused.
    Journal(Error),
    /// Somebody has the blocks, and keeps them.
    Busy,
}

impl Shared {
    /// The tender's thread.
    pub(super) fn run_tender(self: &Arc<Self>) {
        loop {
            {
                let mut inside = self.inside.lock();
                if !inside.woken && !inside.closed {
                    self.tending.wait_for(&mut inside, ROUND);
                }
                inside.woken = false;
                if inside.closed {
                    return;
                }
            }
            self.tend();
        }
    }

    /// Has the tender look now.
    pub(super) fn wake(&self) {
        self.inside.lock().woken = true;
        self.tending.notify_all();
    }

    fn tend(self: &Arc<Self>) {
        let (lost, refused) = {
            let inside = self.inside.lock();
            (inside.lost.is_some(), inside.refused.is_some())
        };
        if lost || (refused && !self.try_journal()) {
            return;
        }
        let unseen = self.watch().err();
        let is_out_of_sight = unseen.is_some();
        self.inside.lock().unseen = unseen;
        if is_out_of_sight {
            // Whatever it was asked would only be waited for, also by who closes the split.
            return;
        }
        self.resynchronise();
        self.end_span();
        if let Err(e) = self.unmark(false) {
            log::debug!("{}: regions stay marked: {e}", self.name);
        }
    }

    /// Whether production is the one that was flushed last; if not it may have lost what was not, all of which is marked: that is compared.
    pub(super) fn watch(&self) -> Result<bool, LunError> {
        let disturbed = self.production.disturbed();
        self.hear_of_loss();
        let now = self.production.generation()?;
        // It may have been found out just now, and is to be known before anything counts as looked into.
        self.hear_of_loss();
        self.remember_what_it_is();
        let mut inside = self.inside.lock();
        // Somebody else may have seen more meanwhile.
        inside.disturbed = inside.disturbed.max(disturbed);
        let before = inside.generation;
        if now <= before {
            return Ok(now == before);
        }
        inside.generation = now;
        inside.marks.marked_differ();
        if inside.differs() {
            inside.note_lag();
            inside.woken = true;
        }
        if before != 0 {
            let regions = inside.marks.differs().count();
            log::info!("{}: production was out of sight; {regions} regions are compared with it", self.name);
        }
        Ok(false)
    }

    /// Looks whether anything that production has answered is certain still.
    fn hear_of_loss(&self) {
        let lost = self.production.lost();
        if std::mem::replace(&mut self.inside.lock().lost_count, lost) != lost {
            self.distrust();
        }
    }

    /// Keeps a stamp that lasts. That all differs since it is another is durable before.
    fn remember_what_it_is(&self) {
        if !self.production.stamp_lasts() {
            return;
        }
        let Some(stamp) = self.production.stamp() else {
            return;
        };
        if self.inside.lock().marks.map.header().stamp == stamp {
            return;
        }
        let kept =
            self.sync_map().and_then(|()| self.inside.lock().marks.map.set_header(|h| h.stamp = stamp));
        if let Err(e) = kept {
            log::warn!("{}: its change map cannot be written: {e}", self.name);
        }
    }

    /// All of production differs from now on.
    pub(super) fn distrust(&self) {
        let mut inside = self.inside.lock();
        if let Err(e) = inside.marks.all_differ() {
            log::error!("{}: its change map cannot be written: {e}", self.name);
        }
        inside.note_lag();
        inside.woken = true;
    }

    /// Whether a journal that has refused takes records again. What is captured from then on follows a RESYNC_BEGIN, if anything is
    /// missing.
    fn try_journal(&self) -> bool {
        let room = self.volume.wait_for_room(CHUNK_BLOCKS * BLOCK_BYTES as u64);
        match room.and_then(|()| self.begin_span()) {
            Ok(()) => {
                let mut inside = self.inside.lock();
                inside.refused = None;
                if !inside.differs() && !inside.span_open {
                    in_step(&mut inside);
                }
                log::info!("{}: the journal takes records again", self.name);
                true
            }
            Err(e) => {
                self.inside.lock().refused = Some(refusal(&self.name, e));
                false
            }
        }
    }

    /// Whether there are signs that production has lost something, which nobody has looked into.
    pub(super) fn doubtful(&self, inside: &Inside) -> bool {
        inside.disturbed != self.production.disturbed()
    }

    /// Says in the log that something differs, or may, if it does not say so yet.
    pub(super) fn begin_span(&self) -> Result<(), Error> {
        let needed = |inside: &Inside| (inside.differs() || self.doubtful(inside)) && !inside.span_open;
        if !needed(&self.inside.lock()) {
            return Ok(());
        }
        let _one = self.span.lock();
        if !needed(&self.inside.lock()) {
            return Ok(());
        }
        self.volume.begin_resync()?;
        let mut inside = self.inside.lock();
        inside.span_open = true;
        // Whoever looks into signs, and finds nothing, ends it.
        inside.note_lag();
        inside.woken = true;
        self.tending.notify_all();
        Ok(())
    }

    /// Says in the log that nothing differs any more, if that is so.
    fn end_span(&self) {
        let _one = self.span.lock();
        {
            let mut inside = self.inside.lock();
            if inside.differs() || self.doubtful(&inside) || !inside.span_open || inside.refused.is_some() {
                return;
            }
            // From here on whoever finds that something differs waits for us, and begins anew.
            inside.span_open = false;
            inside.ending = true;
        }
        let ended = self.volume.end_resync();
        let mut inside = self.inside.lock();
        inside.ending = false;
        match ended {
            Ok(()) => {
                if !inside.differs() {
                    in_step(&mut inside);
                }
                drop(inside);
                if let Err(e) = self.sync_map() {
                    log::warn!("{}: its change map cannot be synced: {e}", self.name);
                }
            }
            Err(e) => {
                inside.span_open = true;
                drop(inside);
                self.refuse(e);
            }
        }
    }

    /// Goes through all regions that differ.
    fn resynchronise(self: &Arc<Self>) {
        let (mut at, mut busy) = (0, false);
        loop {
            if let Err(e) = self.begin_span() {
                self.refuse(e);
                return;
            }
            let (region, blocks) = {
                let mut inside = self.inside.lock();
                if inside.closed || inside.lost.is_some() || inside.refused.is_some() {
                    return;
                }
                let mut next = inside.marks.next_to_compare(at);
                if !busy {
                    next = next.or_else(|| inside.marks.next_to_compare(0));
                }
                let Some(region) = next else { return };
                let disturbed = inside.disturbed;
                if disturbed != self.production.disturbed() {
                    drop(inside);
                    // What has been compared already may be gone.
                    if self.watch().is_err() {
                        return;
                    }
                    inside = self.inside.lock();
                }
                inside.looked_at = Some(region);
                inside.marks.look_at(region);
                (region, inside.marks.blocks(region, self.volume.block_count()))
            };
            let outcome = self.compare(blocks);
            let mut inside = self.inside.lock();
            if outcome.is_err() {
                inside.marks.still_differs(region);
            }
            inside.looked_at = None;
            match outcome {
                Ok(()) => inside.unreadable = None,
                // The others first; for this one there is another round.
                Err(Trouble::Busy) => busy = true,
                Err(Trouble::Journal(e)) => {
                    drop(inside);
                    self.refuse(e);
                    return;
                }
                Err(Trouble::Read(e)) => {
                    if inside.unreadable.is_none() && !inside.closed {
                        log::warn!("{}: the resynchronisation waits: {e}", self.name);
                    }
                    inside.unreadable = Some(e);
                    return;
                }
            }
            at = region + 1;
        }
    }

    fn compare(self: &Arc<Self>, blocks: Range<u64>) -> Result<(), Trouble> {
        let mut buffers = (Vec::new(), Vec::new());
        let mut at = blocks.start;
        while at < blocks.end {
            let end = blocks.end.min(at + CHUNK_BLOCKS);
            // What it records is little as a rule, and the journal's refusal stops nobody but us.
            let wanted = Wanted { payload_bytes: 0, ..Wanted::blocks(at, end - at) };
            let taken = self.begin_within(wanted, PATIENCE).map_err(Trouble::Read)?.ok_or(Trouble::Busy)?;
            let outcome = self.compare_taken(at..end, &mut buffers);
            // If it failed, the whole region still differs.
            self.finish(taken, false);
            outcome?;
            at = end;
            std::thread::yield_now();
        }
        Ok(())
    }

    /// Records what makes the replica equal to production in `blocks`, which somebody has taken.
    pub(super) fn compare_taken(
        &self,
        blocks: Range<u64>,
        buffers: &mut (Vec<u8>, Vec<u8>),
    ) -> Result<(), Trouble> {
        let mut at = blocks.start;
        while at < blocks.end {
            let left = blocks.end - at;
            let (data, count) = self.production.data_at(at, left).map_err(Trouble::Read)?;
            let count = count.clamp(1, left);
            if data {
                self.compare_data(at, count, buffers)?;
            } else {
                self.compare_hole(at, count)?;
            }
            at += count;
        }
        Ok(())
    }

    /// Production has zeros there.
    fn compare_hole(&self, lba: u64, count: u64) -> Result<(), Trouble> {
        let mut at = lba;
        while at < lba + count {
            let read = |e| Trouble::Read(refusal(&self.name, e));
            let extents = self.volume.extents(at, lba + count - at, EXTENTS).map_err(read)?;
            let changes: Vec<Change<'_>> = extents
                .iter()
                .filter(|e| !e.zero)
                .map(|e| Change::Unmap { lba: e.lba, count: e.count })
                .collect();
            if !changes.is_empty() {
                self.volume.submit(&changes).map_err(Trouble::Journal)?;
            }
            at = extents.last().map_or(lba + count, |e| e.lba + e.count);
        }
        Ok(())
    }

    fn compare_data(
        &self,
        lba: u64,
        count: u64,
        (ours, theirs): &mut (Vec<u8>, Vec<u8>),
    ) -> Result<(), Trouble> {
        let bytes = count as usize * BLOCK_BYTES;
        ours.resize(bytes, 0);
        theirs.resize(bytes, 0);
        self.production.read(lba, theirs).map_err(Trouble::Read)?;
        self.volume.read(lba, ours).map_err(|e| Trouble::Read(refusal(&self.name, e)))?;
        let changes = differences(lba, ours, theirs);
        if !changes.is_empty() {
            self.volume.submit(&changes).map_err(Trouble::Journal)?;
        }
        Ok(())
    }

    /// Unmarks quiet regions, with `all` those that could be kept too: what was changed there is durable in production and journal first.
    pub(super) fn unmark(&self, all: bool) -> Result<(), LunError> {
        let seen = {
            let inside = self.inside.lock();
            inside.marks.quiet(inside.looked_at, all)
        };
        if seen.is_empty() {
            return Ok(());
        }
        // One that is out of sight is not waited for.
        self.watch()?;
        self.production.flush()?;
        if !self.watch()? {
            // What it flushed may have been less than it had.
            return Ok(());
        }
        let (tell, told) = mpsc::sync_channel(1);
        self.volume.flush_then(Box::new(move |outcome| {
            // Nobody waits any more only if we are gone.
            let _ = tell.send(outcome);
        }));
        let gone = || LunError::Gone { name: self.name.clone() };
        told.recv().map_err(|_| gone())?.map_err(|e| refusal(&self.name, e))?;
        let mut inside = self.inside.lock();
        inside
            .marks
            .unmark(&seen)
            .map_err(|e| LunError::Io { name: self.name.clone(), detail: e.to_string() })
    }
}

/// Nothing differs: counts begin anew.
fn in_step(inside: &mut Inside) {
    (inside.total_bytes, inside.since_ns) = (0, 0);
    let span_was = inside.marks.map.set_header(|h| {
        h.initialised = true;
        h.since_ns = 0;
    });
    if let Err(e) = span_was {
        log::warn!("change map: {e}");
    }
}

/// What makes `ours`, which begins at `lba`, into `theirs`.
fn differences<'a>(lba: u64, ours: &[u8], theirs: &'a [u8]) -> Vec<Change<'a>> {
    const PIECE: usize = PIECE_BLOCKS * BLOCK_BYTES;
    let mut runs: Vec<(bool, Range<usize>)> = Vec::new();
    for (i, (a, b)) in ours.chunks(PIECE).zip(theirs.chunks(PIECE)).enumerate() {
        if a == b {
            continue;
        }
        let zero = b.iter().all(|byte| *byte == 0);
        let range = i * PIECE..i * PIECE + b.len();
        match runs.last_mut() {
            Some((was_zero, last)) if *was_zero == zero && last.end == range.start => last.end = range.end,
            _ => runs.push((zero, range)),
        }
    }
    let change = |(zero, range): (bool, Range<usize>)| {
        let lba = lba + (range.start / BLOCK_BYTES) as u64;
        match zero {
            true => Change::Zero { lba, count: (range.len() / BLOCK_BYTES) as u64 },
            false => Change::Write { lba, data: &theirs[range] },
        }
    };
    runs.into_iter().map(change).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pages_that_differ_are_recorded_and_zeros_as_zeros() {
        let ours = vec![1; 20 * BLOCK_BYTES];
        let mut theirs = ours.clone();
        theirs[5] = 2;
        theirs[8 * BLOCK_BYTES..].fill(0);
        let found = differences(100, &ours, &theirs);
        assert!(matches!(
            found[..],
            [Change::Write { lba: 100, data }, Change::Zero { lba: 108, count: 12 }] if data.len() == 4096
        ));
    }
}
