//! Housekeeping, off the path of I/O: sealing full segments, merging runs, moving the trailing edge, materialising hot views.
//!
//! Sealing has a thread of its own: hosts wait for it when they write without a rest, so it must not wait for a fold, which can take as long as
//! the largest record is large.

use std::{
    sync::{atomic::Ordering, Arc},
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};

use crate::{
    append::next_segment_lsn,
    error::Context,
    group::{no_space, Group, Inner, Point, Sealing},
    index::{index_dir, SegmentIndex},
    lineage::TimelineId,
    maps::Maps,
    run::{Run, RunKey},
    segment::first_lsn,
    Error, Lsn, Result,
};

/// Wakes a housekeeping thread.
#[derive(Default)]
pub(crate) struct Signal {
    state: Mutex<Wanted>,
    changed: Condvar,
}

#[derive(Default)]
struct Wanted {
    look: bool,
    room: bool,
    /// The last attempt to make room found nothing to give up.
    exhausted: bool,
}

impl Signal {
    pub(crate) fn wake(&self) {
        self.state.lock().look = true;
        self.changed.notify_all();
    }

    /// Asks for the window to be shortened; `false` if that was tried and there is nothing left to give up.
    pub(crate) fn ask_for_room(&self) -> bool {
        let mut wanted = self.state.lock();
        wanted.look = true;
        wanted.room = true;
        self.changed.notify_all();
        !std::mem::take(&mut wanted.exhausted)
    }

    fn wait(&self, at_most: Duration) -> bool {
        let mut wanted = self.state.lock();
        if !wanted.look {
            self.changed.wait_for(&mut wanted, at_most);
        }
        wanted.look = false;
        std::mem::take(&mut wanted.room)
    }
}

/// How often the keeper looks without being asked: time alone moves a window.
const LOOK: Duration = Duration::from_secs(1);
/// How much faster than it should the wall clock may run between two rounds: a clock that is being slewed.
const CLOCK_SLACK_NS: u64 = 1_000_000;
/// Full segments that may wait for their index while hosts write. A restart after a crash has to read them.
const MAX_WAITING: usize = 32;
/// Segments that should be ready whatever hosts do.
const READY_SOON: usize = 2;
/// How long hosts must have written nothing before the reserve is filled.
const REST: Duration = Duration::from_millis(250);

impl Group {
    /// One round of housekeeping. With [`crate::Options::background`] the group does this by itself.
    pub fn tend(&self) -> Result<()> {
        self.0.check_open()?;
        if !self.0.background {
            while self.0.prepare(true) {}
        }
        self.0.seal_full(true)?;
        self.0.scratches().iter().try_for_each(Group::tend)?;
        self.0.tend(false)
    }
}

impl Inner {
    /// The keeper's thread.
    pub(crate) fn run_keeper(&self) {
        let mut said = String::new();
        while !self.closed.load(Ordering::Acquire) {
            let room = self.keeper.wait(LOOK);
            if self.closed.load(Ordering::Acquire) {
                return;
            }
            self.tell(self.tend(room), &self.alert, "housekeeping", &mut said);
        }
    }

    /// The sealer's thread.
    pub(crate) fn run_sealer(&self) {
        let mut said = String::new();
        let mut records = 0;
        while !self.closed.load(Ordering::Acquire) {
            let waiting = !self.state.read().sealing.is_empty();
            self.sealer.wait(if waiting { REST } else { LOOK });
            if self.closed.load(Ordering::Acquire) {
                return;
            }
            let before = std::mem::replace(&mut records, self.counters.records.load(Ordering::Relaxed));
            let outcome = self.seal_full(before == records);
            if matches!(outcome, Ok(n) if n > 0) {
                self.keeper.wake();
            }
            if outcome.is_ok() {
                *self.sealing_alert.lock() = None;
            }
            self.tell(outcome.map(|_| ()), &self.sealing_alert, "sealing", &mut said);
        }
    }

    /// Says once what failed.
    fn tell(&self, outcome: Result<()>, alert: &Mutex<Option<String>>, what: &str, said: &mut String) {
        match outcome {
            Ok(()) => said.clear(),
            Err(_) if self.closed.load(Ordering::Acquire) => {}
            Err(e) => {
                let text = e.to_string();
                if *said != text {
                    log::error!("group {}: {what} failed and will be tried again: {text}", self.name);
                    *alert.lock() = Some(format!("{what} failed: {text}"));
                    *said = text;
                }
            }
        }
    }

    /// The preparer's thread. Beyond what is needed soon, it works only while hosts write nothing.
    pub(crate) fn run_preparer(&self) {
        let mut records = 0;
        while !self.closed.load(Ordering::Acquire) {
            let before = std::mem::replace(&mut records, self.counters.records.load(Ordering::Relaxed));
            let in_need = self.log.lock().next.len() < READY_SOON || !self.spare.lock().is_empty();
            let busy = before != records;
            if busy && !in_need {
                self.preparer.wait(REST);
            } else if !self.prepare(!busy) {
                self.preparer.wait(Duration::from_secs(3600));
            }
        }
    }

    /// Seals full segments and returns how many. `resting`: hosts write nothing now. While they do, the newest ones wait: sealing syncs
    /// them, and a burst should not share the medium and the processor with that.
    pub(crate) fn seal_full(&self, resting: bool) -> Result<usize> {
        let sealed = self.seal_down_to(if resting { 0 } else { MAX_WAITING })?;
        let (waiting, sizes) = {
            let state = self.state.read();
            (state.sealing.clone(), Arc::clone(&state.sizes))
        };
        for sealing in &waiting {
            // An image that is opened meanwhile finds them made.
            sealing.maps(&sizes);
        }
        Ok(sealed)
    }

    /// A round of what is not sealing.
    fn tend(&self, need_room: bool) -> Result<()> {
        let _tending = self.tending.lock();
        if need_room {
            self.give_up_oldest()?;
        }
        self.room.notify_all();
        self.merge_all()?;
        self.finish_fold()?;
        self.apply_policy()?;
        self.release_excess();
        self.materialise()
    }

    /// Gives every full segment its index and runs.
    pub(crate) fn seal_all(&self) -> Result<()> {
        self.seal_down_to(0).map(|_| ())
    }

    fn seal_down_to(&self, waiting: usize) -> Result<usize> {
        let _one_at_a_time = self.one_sealer.lock();
        // Only what is full now: hosts may fill segments as fast as they can be sealed, and the rest of housekeeping must come to its turn.
        let full = self.state.read().sealing.len();
        let mut sealed = 0;
        for _ in waiting..full {
            let oldest = {
                let state = self.state.read();
                state.sealing.front().filter(|_| state.sealing.len() > waiting).cloned()
            };
            match oldest {
                Some(sealing) => self.seal(&sealing)?,
                None => break,
            }
            sealed += 1;
        }
        Ok(sealed)
    }

    fn seal(&self, sealing: &Sealing) -> Result<()> {
        let segment = &sealing.segment;
        self.settle_segment(segment)?;
        let number = segment.number;
        let (sizes, before_ns) = {
            let state = self.state.read();
            let before = state.indexes.range(..number).next_back();
            (Arc::clone(&state.sizes), before.map_or(state.edge.time_ns, |(_, i)| i.last_time_ns))
        };
        let index = SegmentIndex::write(
            &*self.files,
            &self.dir,
            number,
            self.seed,
            &sealing.entries,
            (before_ns, first_lsn(number, self.segment_bytes)),
        )?;
        // Of a discarded branch nothing can be read any more.
        let known: Vec<TimelineId> = self.state.read().history.timelines.keys().copied().collect();
        let mut runs = Vec::new();
        for (&timeline, maps) in sealing.maps(&sizes).iter().filter(|(t, _)| known.contains(t)) {
            let key = RunKey::of_segment(number);
            runs.push((timeline, Run::write(&*self.files, &self.dir, timeline, key, self.seed, maps)?));
        }
        let dir = index_dir(&self.dir);
        self.files.sync_dir(&dir).doing("syncing", &dir)?;
        let mut state = self.state.write();
        // Folding may have passed the segment meanwhile; then nobody needs its index, and opening the group removes the files.
        if state.sealing.front().is_some_and(|s| s.segment.number == number) {
            state.sealing.pop_front();
            for (timeline, run) in runs {
                let cover = state.covers.entry(timeline).or_default();
                cover.insert(RunKey::of_segment(number), Arc::new(run));
            }
            state.indexes.insert(number, Arc::new(index));
        }
        drop(state);
        self.room.notify_all();
        Ok(())
    }

    /// Joins runs where a level is complete.
    fn merge_all(&self) -> Result<()> {
        let mut made = false;
        loop {
            let next = {
                let state = self.state.read();
                let from = state.folded / self.segment_bytes;
                let sealed =
                    state.sealing.front().map(|s| s.segment.number).or(state.active_number()).unwrap_or(from);
                state.covers.iter().find_map(|(timeline, cover)| {
                    let (key, parts) = cover.next_merge(from, sealed)?;
                    Some((*timeline, key, parts, Arc::clone(&state.sizes)))
                })
            };
            let Some((timeline, key, parts, sizes)) = next else { break };
            let mut maps = Maps::new(sizes);
            for part in parts.iter().rev() {
                part.pour_into(&mut maps)?;
            }
            let run = Run::write(&*self.files, &self.dir, timeline, key, self.seed, &maps)?;
            made = true;
            let mut state = self.state.write();
            match state.covers.get_mut(&timeline) {
                Some(cover) => cover.insert(key, Arc::new(run)),
                None => run.remove(&*self.files),
            }
            drop(state);
            if self.closed.load(Ordering::Acquire) {
                break;
            }
        }
        if made {
            // A merged run that power loss takes away is simply made again.
            let dir = index_dir(&self.dir);
            self.files.sync_dir(&dir).doing("syncing", &dir)?;
        }
        Ok(())
    }

    /// Goes on with a fold that was interrupted.
    fn finish_fold(&self) -> Result<()> {
        let (edge, folded) = {
            let state = self.state.read();
            (state.edge.lsn, state.folded)
        };
        if folded < edge {
            self.trim_on_full_disk(edge)?;
        }
        Ok(())
    }

    /// Moves the trailing edge as far as the policy asks.
    fn apply_policy(&self) -> Result<()> {
        let policy = *self.policy.lock();
        let target = {
            let state = self.state.read();
            let mut target: Lsn = 0;
            if let Some(window_ns) = policy.window_ns {
                let oldest = self.steady_now_ns().saturating_sub(window_ns);
                // Whole segments whose last record is too old to keep.
                if let Some((number, _)) =
                    state.indexes.iter().rev().find(|(_, index)| index.last_time_ns < oldest)
                {
                    target = next_segment_lsn(*number, self.segment_bytes);
                }
            }
            if let Some(limit_bytes) = policy.limit_bytes {
                // Two segments always stay: the active one and one made ahead.
                let allowed = self.allotment(limit_bytes);
                let newest = state.active_number().unwrap_or(0);
                if let Some(first) = (newest + 2).checked_sub(allowed) {
                    target = target.max(first_lsn(first.min(newest), self.segment_bytes));
                }
            }
            if target <= state.edge.lsn {
                target = 0;
            }
            target.min(state.head.lsn)
        };
        if target > 0 {
            self.trim(target, &mut |_, _| true)?;
        }
        let over = policy.limit_bytes.is_some_and(|limit_bytes| {
            let state = self.state.read();
            state.segments.len() as u64 * self.segment_bytes > limit_bytes.max(2 * self.segment_bytes)
        });
        self.over_limit.store(over, Ordering::Relaxed);
        let mut alert = self.alert.lock();
        *alert = over.then(|| {
            format!(
                "the journal of group {} is over its limit because open images or a rewind that can be undone hold the trailing edge: close images",
                self.name
            )
        });
        Ok(())
    }

    /// The time of day, but for leaps: a clock that is set forward must not end a window at once, for good. It then goes on from where
    /// it was, until the group is opened again.
    fn steady_now_ns(&self) -> u64 {
        let wall_ns = self.files.now_ns();
        if !self.background {
            return wall_ns;
        }
        let mut clock = self.clock.lock();
        let steady_ns = match *clock {
            None => wall_ns,
            Some((then, then_ns)) => {
                let passed_ns = u64::try_from(then.elapsed().as_nanos()).unwrap_or(u64::MAX);
                wall_ns.min(then_ns.saturating_add(passed_ns).saturating_add(CLOCK_SLACK_NS))
            }
        };
        *clock = Some((Instant::now(), steady_ns));
        steady_ns
    }

    /// The segments that a limit allows, ready ones included. Two always are: the active one and one made ahead.
    fn allotment(&self, limit_bytes: u64) -> u64 {
        (limit_bytes / self.segment_bytes).max(2)
    }

    /// How many segments should be ready ahead of need: at least one, at most the reserve, and with those in use within the limit.
    pub(crate) fn ready_wanted(&self) -> usize {
        let policy = *self.policy.lock();
        let mut wanted = policy.reserve_bytes / self.segment_bytes;
        if let Some(limit_bytes) = policy.limit_bytes {
            let used = self.state.read().segments.len() as u64;
            wanted = wanted.min(self.allotment(limit_bytes).saturating_sub(used));
        }
        usize::try_from(wanted).unwrap_or(usize::MAX).max(1)
    }

    /// The disk is full: shortens the window by an eighth of its segments, at least one.
    fn give_up_oldest(&self) -> Result<()> {
        let (target, before) = {
            let state = self.state.read();
            let first = state.edge.lsn / self.segment_bytes;
            let newest = state.active_number().unwrap_or(first);
            let step = ((newest - first) / 8).max(1);
            (first_lsn((first + step).min(newest), self.segment_bytes), state.edge.lsn)
        };
        // There may be no room even for an index; what is folded needs none.
        let sealed = match self.seal_all().map_err(|e| no_space(&self.name, e)) {
            Err(Error::NoSpace { .. }) => Ok(()),
            other => other,
        };
        let outcome = sealed.and_then(|()| self.trim_on_full_disk(target));
        let stuck = outcome.as_ref().map_or(true, |edge| edge.lsn <= before);
        self.keeper.state.lock().exhausted = stuck;
        self.room.notify_all();
        let edge = outcome?;
        if edge.lsn > before {
            log::warn!(
                "group {}: the disk is full, so the window was shortened to LSN {}",
                self.name,
                edge.lsn
            );
        }
        Ok(())
    }

    /// Trims where the bases, too, may find no space: the segments made ahead are given up for them, one by one.
    fn trim_on_full_disk(&self, target: Lsn) -> Result<Point> {
        loop {
            match self.trim(target, &mut |_, _| true).map_err(|e| no_space(&self.name, e)) {
                Err(Error::NoSpace { .. }) if self.give_up_ready_segment() => {}
                other => return other,
            }
        }
    }

    /// Gives back segments made ahead that a changed policy, or a grown window, leaves no room for, and nobody's room is.
    fn release_excess(&self) {
        let wanted = self.ready_wanted().max(self.kept_segments());
        let mut log = self.log.lock();
        // While one is being made behind them, the row must not change. The files go with the log held: their numbers are the next to be
        // given again, and the name of a new segment must not be taken from it.
        while !log.preparing && log.next.len() > wanted {
            if let Some(segment) = log.next.pop_back() {
                let _ = self.files.remove(&segment.path);
            }
        }
        let room = wanted.saturating_sub(log.next.len());
        let mut spare = self.spare.lock();
        while spare.len() > room {
            if let Some(segment) = spare.pop() {
                let _ = self.files.remove(&segment.path);
            }
        }
    }

    fn give_up_ready_segment(&self) -> bool {
        // With the log held until the file is gone, as in `release_excess`.
        let mut log = self.log.lock();
        let spare = self.spare.lock().pop();
        let segment = match spare {
            Some(segment) => Some(segment),
            None if log.preparing => None,
            None => log.next.pop_back(),
        };
        segment.is_some_and(|segment| self.files.remove(&segment.path).is_ok())
    }

    /// Gives the tips, and images that are read much, one map each.
    fn materialise(&self) -> Result<()> {
        let (tips, views, sizes) = {
            let state = self.state.read();
            let production = state.history.production();
            let tips: Vec<_> = state
                .tips
                .iter()
                .filter_map(|(timeline, tip)| {
                    let under = tip.under.as_ref()?;
                    (*timeline == production || under.is_hot()).then(|| (*timeline, Arc::clone(under)))
                })
                .collect();
            let views: Vec<_> =
                state.images.values().map(|i| Arc::clone(&i.view)).filter(|v| v.is_hot()).collect();
            (tips, views, Arc::clone(&state.sizes))
        };
        for view in views {
            view.materialise(Arc::clone(&sizes))?;
        }
        for (timeline, under) in tips {
            let mut poured = under.poured(Arc::clone(&sizes))?;
            let mut state = self.state.write();
            let sizes = Arc::clone(&state.sizes);
            if let Some(tip) = state.tips.get_mut(&timeline) {
                if tip.under.as_ref().is_some_and(|u| Arc::ptr_eq(u, &under)) {
                    poured.set_sizes(sizes);
                    tip.own.for_each(&mut |volume, m| poured.insert(volume, m));
                    tip.own = poured;
                    tip.under = None;
                }
            }
        }
        Ok(())
    }
}

impl crate::group::State {
    /// Number of the segment that is being filled.
    pub(crate) fn active_number(&self) -> Option<u64> {
        self.segments.last_key_value().map(|(n, _)| *n)
    }
}
