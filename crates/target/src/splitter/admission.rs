//! How a change gets its blocks and its marks, and gives the blocks back: what stands behind [`super::split::Split::begin`] and its kin.
//!
//! What can be had at once is had on the asking thread, without a system call where the regions are marked already. Everything that
//! takes time, a sync of the change map or room in the journal, is the marker thread's, for all who wait together.
//!
//! Where hosts are stopped for want of room, what is to be read back has room for all that it may record, or is refused, it alone. It waits
//! until what others may read back leaves it that: hosts with many such commands under way would have segments made for all of them at once.

use std::{
    collections::VecDeque,
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex, MutexGuard};
use playhead_journal::{Error, Lsn, Volume, BLOCK_BYTES};

use super::{
    read_back::BLOCKS_MAX,
    refusal,
    split::{Begun, Captured, InDoubt, Inside, OnJournalFailure, Shared, Taken, Waiter},
    takes::Wanted,
};
use crate::lun::LunError;

/// Most bytes that all together may read back at once, where it has to have room.
const READ_BACK_BYTES: u64 = BLOCKS_MAX * BLOCK_BYTES as u64;

/// What stands between a take and its change.
enum Step {
    Go,
    /// The marker sees to it.
    Wait,
    /// Others read back first.
    Hold,
    Refuse(LunError),
}

/// Where one who waits finds what he is told.
type Answer = (Mutex<Option<Result<Taken, LunError>>>, Condvar);

/// Who is to be told what.
pub(super) type Told = Vec<(u64, Waiter, Result<(), LunError>)>;

/// A place for an answer, and who puts it there.
fn answer() -> (Arc<Answer>, Begun) {
    let answer: Arc<Answer> = Arc::default();
    let told = Arc::clone(&answer);
    let begun: Begun = Box::new(move |outcome| {
        *told.0.lock() = Some(outcome);
        told.1.notify_one();
    });
    (answer, begun)
}

/// Waits for the answer; `None`: for as long as `patience` in vain.
fn answered(answer: &Answer, patience: Option<Duration>) -> Option<Result<Taken, LunError>> {
    let deadline = patience.map(|patience| Instant::now() + patience);
    let mut slot = answer.0.lock();
    loop {
        if let Some(outcome) = slot.take() {
            return Some(outcome);
        }
        match deadline {
            None => answer.1.wait(&mut slot),
            Some(deadline) if answer.1.wait_until(&mut slot, deadline).timed_out() => return slot.take(),
            Some(_) => {}
        }
    }
}

impl Shared {
    pub(super) fn begin(self: &Arc<Self>, wanted: Wanted, exempt: bool) -> Result<Taken, LunError> {
        let (answer, begun) = answer();
        self.begin_then(wanted, Waiter { begun, exempt });
        answered(&answer, None).unwrap_or_else(|| Err(LunError::Gone { name: self.name.clone() }))
    }

    /// As [`Shared::begin`] and exempt, but waits for others' blocks no longer than `patience`: `None` then, and nobody waits for us.
    pub(super) fn begin_within(
        self: &Arc<Self>,
        wanted: Wanted,
        patience: Duration,
    ) -> Result<Option<Taken>, LunError> {
        let (answer, begun) = answer();
        let number = self.begin_then(wanted, Waiter { begun, exempt: true });
        if let Some(outcome) = answered(&answer, Some(patience)) {
            return outcome.map(Some);
        }
        let mut inside = self.inside.lock();
        if let Some(free) = number.and_then(|number| inside.takes.withdraw(number)) {
            let told = self.grant(&mut inside, free);
            drop(inside);
            self.tell(told);
            return Ok(None);
        }
        drop(inside);
        // It has its blocks, or was refused, in this moment.
        answered(&answer, None).transpose()
    }

    /// The take's number, unless it was refused at once.
    pub(super) fn begin_then(self: &Arc<Self>, wanted: Wanted, waiter: Waiter) -> Option<u64> {
        let blocks = self.volume.block_count();
        let mut ranges = wanted.changes.iter().chain(&wanted.sources);
        if let Some(r) = ranges.find(|r| r.end > blocks) {
            let (lba, count) = (r.start, r.end - r.start);
            (waiter.begun)(Err(LunError::OutOfRange { name: self.name.clone(), lba, count }));
            return None;
        }
        let mut inside = self.inside.lock();
        // Refused before it waits, not after.
        if let Some(refused) = self.refused(&inside, waiter.exempt) {
            drop(inside);
            (waiter.begun)(Err(refused));
            return None;
        }
        let (number, free) = inside.takes.add(wanted);
        inside.takes.wait(number, waiter);
        if free {
            let told = self.grant(&mut inside, vec![number]);
            drop(inside);
            self.tell(told);
        }
        Some(number)
    }

    /// Why no change may begin.
    fn refused(&self, inside: &Inside, exempt: bool) -> Option<LunError> {
        if inside.closed || (inside.lost.is_some() && !exempt) {
            return Some(LunError::Gone { name: self.name.clone() });
        }
        let stop = inside.choice == OnJournalFailure::Stop && !exempt;
        inside.refused.clone().filter(|_| stop)
    }

    /// Takes that have their blocks go on, as far as they can at once.
    pub(super) fn grant(&self, inside: &mut Inside, free: Vec<u64>) -> Told {
        let mut free = VecDeque::from(free);
        let mut told = Vec::new();
        while let Some(number) = free.pop_front() {
            let Some(wanted) = inside.takes.wanted(number).cloned() else { continue };
            match self.step(inside, number, &wanted) {
                Step::Go => told.extend(inside.takes.waiter(number).map(|w| (number, w, Ok(())))),
                Step::Wait => {
                    inside.queue.push(number);
                    self.queued.notify_one();
                }
                Step::Hold => inside.held.push(number),
                Step::Refuse(e) => {
                    told.extend(inside.takes.waiter(number).map(|w| (number, w, Err(e))));
                    free.extend(inside.release(number));
                }
            }
        }
        told
    }

    /// What a take that has its blocks needs now. Its regions are entered unless it is refused.
    fn step(&self, inside: &mut Inside, number: u64, wanted: &Wanted) -> Step {
        let exempt = inside.takes.waiter_is(number, |w| w.exempt);
        if let Some(refused) = self.refused(inside, exempt) {
            return Step::Refuse(refused);
        }
        let stop = inside.choice == OnJournalFailure::Stop && !exempt && !wanted.changes.is_empty();
        let reads = stop && wanted.read_back_bytes > 0;
        // Nobody is overtaken who waits for the same.
        if reads && !(inside.held.is_empty() && inside.takes.let_read(number, READ_BACK_BYTES)) {
            return Step::Hold;
        }
        if reads {
            inside.room.keep(inside.takes.read_back_bytes());
        }
        let wait = match inside.marks.enter(&wanted.changes) {
            Ok(wait) => wait,
            Err(e) => return Step::Refuse(self.unmarkable(&e)),
        };
        let needed = inside.takes.payload_bytes() + inside.takes.read_back_bytes();
        let room = !stop || matches!(self.volume.has_room(needed), Ok(true));
        if wait || !room {
            Step::Wait
        } else {
            Step::Go
        }
    }

    fn unmarkable(&self, e: &std::io::Error) -> LunError {
        LunError::Io { name: self.name.clone(), detail: format!("its change map cannot be written: {e}") }
    }

    pub(super) fn tell(self: &Arc<Self>, told: Told) {
        for (number, waiter, outcome) in told {
            let taken = |()| Taken { shared: Arc::clone(self), number, over: false };
            (waiter.begun)(outcome.map(taken));
        }
    }

    /// The marker's thread.
    pub(super) fn run_marker(self: &Arc<Self>) {
        loop {
            let mut inside = self.inside.lock();
            while inside.queue.is_empty() && !inside.closed {
                self.queued.wait(&mut inside);
            }
            if inside.queue.is_empty() {
                return;
            }
            self.mark(inside);
        }
    }

    /// Has marks synced and room made for all who wait.
    fn mark(self: &Arc<Self>, mut inside: MutexGuard<'_, Inside>) {
        let queue = std::mem::take(&mut inside.queue);
        let sync = inside.marks.begin_sync();
        let (payload_bytes, read_back_bytes) = (inside.takes.payload_bytes(), inside.takes.read_back_bytes());
        let stop = inside.choice == OnJournalFailure::Stop;
        drop(inside);
        let synced = if sync { self.sync_map() } else { Ok(()) };
        let room = |bytes| if stop { self.volume.wait_for_room(bytes) } else { Ok(()) };
        let no_room = room(payload_bytes).err().map(|e| self.refuse(e));
        // Too little for this is enough for others.
        let no_reading = match no_room {
            None if read_back_bytes > 0 => room(payload_bytes + read_back_bytes).err(),
            _ => None,
        };
        let no_reading = no_reading.map(|e| refusal(&self.name, e));
        let mut inside = self.inside.lock();
        inside.marks.end_sync(synced.is_ok());
        let (mut told, mut free) = (Vec::new(), Vec::new());
        for number in queue {
            let Some(waiter) = inside.takes.waiter(number) else { continue };
            let reads = inside.takes.wanted(number).is_some_and(|wanted| wanted.read_back_bytes > 0);
            let refused = match (&synced, &no_room) {
                (Err(e), _) => Some(self.unmarkable(e)),
                (Ok(()), Some(e)) if !waiter.exempt => Some(e.clone()),
                (Ok(()), None) if reads => no_reading.clone(),
                _ => None,
            };
            let Some(refused) = refused else {
                told.push((number, waiter, Ok(())));
                continue;
            };
            if let Some(wanted) = inside.takes.wanted(number).cloned() {
                inside.marks.leave(&wanted.changes, false);
            }
            free.extend(inside.release(number));
            told.push((number, waiter, Err(refused)));
        }
        told.extend(self.grant(&mut inside, free));
        drop(inside);
        self.tell(told);
    }

    /// Puts a change that production has executed into the journal.
    pub(super) fn record(
        self: &Arc<Self>,
        taken: Taken,
        submit: impl FnOnce(&Volume) -> Result<Lsn, Error>,
    ) -> Result<Captured, LunError> {
        let refused = self.inside.lock().refused.clone();
        let outcome = match refused {
            Some(refused) => Err(refused),
            None => self.begin_span().and_then(|()| submit(&self.volume)).map_err(|e| self.refuse(e)),
        };
        self.finish(taken, outcome.is_err());
        match outcome {
            Ok(lsn) => Ok(Captured::Recorded(lsn)),
            Err(_) if self.inside.lock().choice == OnJournalFailure::Track => Ok(Captured::Tracked),
            Err(e) => Err(e),
        }
    }

    /// Gives a change's blocks back; they differ, or not.
    pub(super) fn finish(self: &Arc<Self>, mut taken: Taken, differs: bool) {
        taken.over = true;
        self.over(taken.number, differs);
    }

    pub(super) fn over(self: &Arc<Self>, number: u64, differs: bool) {
        let mut inside = self.inside.lock();
        if let Some(wanted) = inside.takes.wanted(number).cloned() {
            inside.marks.leave(&wanted.changes, differs);
        }
        if differs {
            inside.note_lag();
            inside.woken = true;
        }
        let free = inside.release(number);
        let told = self.grant(&mut inside, free);
        if differs || inside.closed {
            self.tending.notify_all();
        }
        drop(inside);
        self.tell(told);
    }

    /// Has all marks so far survive a loss of power. After a failure the kernel takes for written what is not on the medium; so the next
    /// sync writes the whole map anew.
    pub(super) fn sync_map(&self) -> std::io::Result<()> {
        let _one = self.syncing.lock();
        let file = self.inside.lock().marks.map.begin_sync()?;
        file.sync().inspect_err(|_| self.inside.lock().marks.map.sync_failed())
    }

    /// What a take that is under way changes counts as differing.
    pub(super) fn doubt(self: &Arc<Self>, number: u64) {
        let mut inside = self.inside.lock();
        let Some(wanted) = inside.takes.wanted(number).cloned() else { return };
        inside.marks.differ(&wanted.changes);
        inside.note_lag();
        inside.woken = true;
        self.tending.notify_all();
        // It may take any time to end, and is left to the resynchronisation then.
        inside.takes.needs_no_room(number);
        let left_bytes = inside.takes.read_back_bytes();
        inside.room.keep(left_bytes);
        let held = std::mem::take(&mut inside.held);
        let told = self.grant(&mut inside, held);
        drop(inside);
        self.tell(told);
    }

    /// Gives the blocks of a change in doubt back; what they touch differs, and is not compared, until what is returned is dropped.
    pub(super) fn let_pass(self: &Arc<Self>, mut taken: Taken) -> InDoubt {
        taken.over = true;
        let ranges = {
            let mut inside = self.inside.lock();
            let ranges =
                inside.takes.wanted(taken.number).map_or_else(Vec::new, |wanted| wanted.changes.clone());
            inside.marks.doubt(taken.number, &ranges);
            ranges
        };
        self.over(taken.number, true);
        InDoubt { shared: Arc::clone(self), number: taken.number, ranges }
    }

    /// A change that was let pass is over: what it touched is compared.
    pub(super) fn end_doubt(&self, number: u64, ranges: &[Range<u64>]) {
        let mut inside = self.inside.lock();
        inside.marks.end_doubt(number, ranges);
        inside.note_lag();
        inside.woken = true;
        self.tending.notify_all();
    }

    /// The journal has refused. What that means to a host; and, unless the request was at fault, it is not tried again until the tender has
    /// found that it takes records.
    pub(super) fn refuse(&self, error: Error) -> LunError {
        let at_fault = matches!(error, Error::OutOfRange { .. } | Error::Invalid(_) | Error::Gone(_));
        let refused = refusal(&self.name, error);
        if at_fault {
            return refused;
        }
        let mut inside = self.inside.lock();
        if inside.refused.is_none() {
            let goes_on = match inside.choice {
                OnJournalFailure::Stop => "hosts are stopped",
                OnJournalFailure::Track => "production goes on, and what changes is recorded later",
            };
            log::warn!("{}: the journal cannot be written, {goes_on}: {refused}", self.name);
        }
        inside.refused = Some(refused.clone());
        inside.note_lag();
        refused
    }

    /// Whether the journal cannot be written and production goes on.
    pub(super) fn tracking(&self) -> bool {
        let inside = self.inside.lock();
        inside.refused.is_some() && inside.choice == OnJournalFailure::Track
    }

    /// An error of the caller's, which must not cost data.
    pub(super) fn defect(&self, what: &str) -> LunError {
        log::error!("{}: {what}; it is resynchronised", self.name);
        LunError::Io { name: self.name.clone(), detail: what.to_owned() }
    }
}
