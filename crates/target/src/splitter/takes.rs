//! Who has which blocks: changes of one volume that overlap happen one after another, in the order in which they were asked for;
//! all others at once.
//!
//! A take waits for every earlier one, granted or not, that it conflicts with. So nobody is overtaken for ever, and no two wait for each
//! other. There are as many as hosts have commands under way, some hundreds at most; a list is searched faster than a tree.

use std::collections::BTreeMap;
use std::ops::Range;

use playhead_journal::{Change, BLOCK_BYTES};

use super::read_back::BLOCKS_MAX;

/// What somebody wants to have for himself, in blocks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// What is changed: nobody else has any of it meanwhile.
    pub changes: Vec<Range<u64>>,
    /// What is only read: nobody changes it meanwhile.
    pub sources: Vec<Range<u64>>,
    /// Bytes of payload that the records of the changes have at most.
    pub payload_bytes: u64,
    /// Bytes that the records of what is read back take besides, at most; zero: nothing is to be read back.
    pub read_back_bytes: u64,
}

impl Wanted {
    /// What `changes` need.
    pub fn by(changes: &[Change<'_>]) -> Wanted {
        let mut wanted = Wanted::default();
        for change in changes {
            let (range, payload) = range_of(change);
            wanted.changes.push(range);
            wanted.payload_bytes += payload;
        }
        wanted
    }

    /// `count` blocks from `lba` on, to be changed by data.
    pub fn blocks(lba: u64, count: u64) -> Wanted {
        let payload_bytes = count.saturating_mul(BLOCK_BYTES as u64);
        let changes = std::iter::once(lba..lba.saturating_add(count)).collect();
        Wanted { changes, payload_bytes, ..Wanted::default() }
    }

    /// What comes of the changes is to be read back: the records may hold all of it, as far as it is read at once, and as many headers as
    /// there can be.
    #[must_use]
    pub fn to_read_back(mut self) -> Wanted {
        let blocks = self.changed_blocks().min(BLOCKS_MAX);
        self.read_back_bytes = blocks * BLOCK_BYTES as u64 * 65 / 64;
        self
    }

    /// How many blocks are changed.
    pub(crate) fn changed_blocks(&self) -> u64 {
        self.changes.iter().fold(0, |sum, range| sum.saturating_add(range.end - range.start))
    }

    /// Also reads `count` blocks from `lba` on.
    #[must_use]
    pub fn and_source(mut self, lba: u64, count: u64) -> Wanted {
        self.sources.push(lba..lba.saturating_add(count));
        self
    }

    /// Whether a change lies in what is wanted.
    pub(super) fn covers(&self, change: &Change<'_>) -> bool {
        let (range, _) = range_of(change);
        range.is_empty() || self.changes.iter().any(|c| c.start <= range.start && range.end <= c.end)
    }

    fn conflicts(&self, other: &Wanted) -> bool {
        overlap(&self.changes, &other.changes)
            || overlap(&self.changes, &other.sources)
            || overlap(&self.sources, &other.changes)
    }
}

/// The blocks of a change, and the bytes of its record's payload.
pub(super) fn range_of(change: &Change<'_>) -> (Range<u64>, u64) {
    match *change {
        Change::Write { lba, data } => {
            (lba..lba.saturating_add((data.len() / BLOCK_BYTES) as u64), data.len() as u64)
        }
        Change::WriteSame { lba, count, block } => (lba..lba.saturating_add(count), block.len() as u64),
        Change::Zero { lba, count } | Change::Unmap { lba, count } => (lba..lba.saturating_add(count), 0),
    }
}

fn overlap(a: &[Range<u64>], b: &[Range<u64>]) -> bool {
    a.iter().any(|x| b.iter().any(|y| x.start < y.end && y.start < x.end))
}

/// One who has blocks, or waits for them. `W` is what to do when he has them.
struct Take<W> {
    wanted: Wanted,
    blockers: usize,
    waiter: Option<W>,
    /// What it may read back counts.
    may_read: bool,
}

/// All of them, in the order in which they came.
pub(super) struct Takes<W> {
    next: u64,
    takes: BTreeMap<u64, Take<W>>,
    waiting: usize,
}

impl<W> Default for Takes<W> {
    fn default() -> Self {
        Takes { next: 0, takes: BTreeMap::new(), waiting: 0 }
    }
}

impl<W> Takes<W> {
    /// Enters a take; whether it has its blocks at once.
    pub(super) fn add(&mut self, wanted: Wanted) -> (u64, bool) {
        let blockers = self.takes.values().filter(|t| t.wanted.conflicts(&wanted)).count();
        let number = self.next;
        self.next += 1;
        self.waiting += usize::from(blockers > 0);
        self.takes.insert(number, Take { wanted, blockers, waiter: None, may_read: false });
        (number, blockers == 0)
    }

    /// Says what to do when the take has all it needs.
    pub(super) fn wait(&mut self, number: u64, waiter: W) {
        if let Some(take) = self.takes.get_mut(&number) {
            take.waiter = Some(waiter);
        }
    }

    /// Whether something is true of what it is to do.
    pub(super) fn waiter_is(&self, number: u64, what: impl Fn(&W) -> bool) -> bool {
        self.takes.get(&number).and_then(|take| take.waiter.as_ref()).is_some_and(what)
    }

    /// What to do now that it has.
    pub(super) fn waiter(&mut self, number: u64) -> Option<W> {
        self.takes.get_mut(&number)?.waiter.take()
    }

    pub(super) fn wanted(&self, number: u64) -> Option<&Wanted> {
        self.takes.get(&number).map(|take| &take.wanted)
    }

    /// Bytes of payload that are still to come from those who have their blocks.
    pub(super) fn payload_bytes(&self) -> u64 {
        self.takes.values().filter(|t| t.blockers == 0).map(|t| t.wanted.payload_bytes).sum()
    }

    /// Bytes that those may read back who have been let do it.
    pub(super) fn read_back_bytes(&self) -> u64 {
        self.takes.values().filter(|t| t.may_read).map(|t| t.wanted.read_back_bytes).sum()
    }

    /// Lets one read back, if all do it in `most_bytes` then, or nobody else does. False: it has to wait for others.
    pub(super) fn let_read(&mut self, number: u64, most_bytes: u64) -> bool {
        let others = self.read_back_bytes();
        let Some(take) = self.takes.get_mut(&number).filter(|take| !take.may_read) else { return true };
        take.may_read = others == 0 || others.saturating_add(take.wanted.read_back_bytes) <= most_bytes;
        take.may_read
    }

    /// One records nothing: what becomes of it is left to the resynchronisation.
    pub(super) fn needs_no_room(&mut self, number: u64) {
        if let Some(take) = self.takes.get_mut(&number) {
            (take.wanted.payload_bytes, take.wanted.read_back_bytes) = (0, 0);
        }
    }

    /// Gives blocks back. Those who have theirs now, in their order.
    pub(super) fn release(&mut self, number: u64) -> Vec<u64> {
        let Some(gone) = self.takes.remove(&number) else { return Vec::new() };
        let mut free = Vec::new();
        if gone.blockers > 0 {
            self.waiting -= 1;
        }
        if self.waiting > 0 {
            let later = self.takes.range_mut(number..).filter(|(_, t)| t.blockers > 0);
            for (number, take) in later.filter(|(_, t)| t.wanted.conflicts(&gone.wanted)) {
                take.blockers -= 1;
                if take.blockers == 0 {
                    free.push(*number);
                }
            }
            self.waiting -= free.len();
        }
        free
    }

    /// Takes back one that still waits for others' blocks. Those who have theirs now; `None`: it has its own.
    pub(super) fn withdraw(&mut self, number: u64) -> Option<Vec<u64>> {
        let waits = self.takes.get(&number).is_some_and(|take| take.blockers > 0);
        waits.then(|| self.release(number))
    }

    /// Takes away all who wait for others' blocks.
    pub(super) fn give_up(&mut self) -> Vec<(u64, W)> {
        let waiting: Vec<u64> = self.takes.iter().filter(|(_, t)| t.blockers > 0).map(|(n, _)| *n).collect();
        self.waiting = 0;
        let take = |number| self.takes.remove(&number)?.waiter.map(|waiter| (number, waiter));
        waiting.into_iter().filter_map(take).collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.takes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlapping_changes_wait_in_order_and_others_do_not() {
        let mut takes = Takes::<()>::default();
        let (first, free) = takes.add(Wanted::blocks(0, 10));
        assert!(free);
        let (second, free) = takes.add(Wanted::blocks(5, 10));
        assert!(!free);
        // Would be free but for one who waits: it does not overtake him.
        let (third, free) = takes.add(Wanted::blocks(12, 10));
        assert!(!free);
        assert!(takes.add(Wanted::blocks(30, 1)).1);
        assert_eq!(takes.release(first), [second]);
        assert_eq!(takes.release(second), [third]);
        assert_eq!(takes.release(third), [] as [u64; 0]);
    }

    #[test]
    fn one_who_does_not_wait_any_longer_is_waited_for_by_nobody() {
        let mut takes = Takes::<()>::default();
        let (first, _) = takes.add(Wanted::blocks(0, 10));
        let (second, _) = takes.add(Wanted::blocks(5, 10));
        let (third, free) = takes.add(Wanted::blocks(12, 10));
        assert!(!free);
        assert_eq!(takes.withdraw(second), Some(vec![third]));
        assert_eq!(takes.withdraw(third), None);
        assert_eq!(takes.release(first), [] as [u64; 0]);
    }

    #[test]
    fn sources_are_shared_with_sources_only() {
        let mut takes = Takes::<()>::default();
        let (first, _) = takes.add(Wanted::blocks(0, 1).and_source(100, 10));
        assert!(takes.add(Wanted::blocks(1, 1).and_source(105, 10)).1);
        let (writer, free) = takes.add(Wanted::blocks(100, 1));
        assert!(!free);
        assert_eq!(takes.release(first), [writer]);
    }
}
