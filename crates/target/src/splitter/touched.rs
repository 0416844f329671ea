//! How much of a LUN has been changed since a moment of it, as an upper bound that costs two additions a change.

use std::sync::atomic::{AtomicU64, Ordering};

use playhead_journal::{Change, BLOCK_BYTES};

/// What counts as changed when nobody knows what was: more blocks than any volume has, and few enough that no sum of them wraps.
pub(super) const EVERYTHING: u64 = 1 << 48;

/// Blocks that changes of a LUN touch, in all: how much of a moment of it can be other than now. Counted when a change begins and
/// again when it is over, so that one that is under way when the moment is taken counts as later.
#[derive(Debug, Default)]
pub(super) struct Touched {
    begun: AtomicU64,
    over: AtomicU64,
}

impl Touched {
    /// Has `change` touch `blocks`.
    pub(super) fn by<T>(&self, blocks: u64, change: impl FnOnce() -> T) -> T {
        let blocks = blocks.min(EVERYTHING);
        self.begun.fetch_add(blocks, Ordering::AcqRel);
        let outcome = change();
        self.over.fetch_add(blocks, Ordering::AcqRel);
        outcome
    }

    /// Where the count is, for a moment that is taken after this call.
    pub(super) fn mark(&self) -> u64 {
        self.over.load(Ordering::Acquire)
    }

    /// At most how many blocks were touched since.
    pub(super) fn since(&self, mark: u64) -> u64 {
        self.begun.load(Ordering::Acquire).wrapping_sub(mark)
    }
}

/// Blocks that a change touches.
pub(super) fn blocks_of(change: &Change<'_>) -> u64 {
    match *change {
        Change::Write { data, .. } => (data.len() / BLOCK_BYTES) as u64,
        Change::WriteSame { count, .. } | Change::Zero { count, .. } | Change::Unmap { count, .. } => count,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_under_way_when_a_moment_is_taken_counts_as_later() {
        let touched = Touched::default();
        touched.by(5, || {});
        let mark = touched.by(7, || touched.mark());
        assert_eq!(touched.since(mark), 7);
        let mark = touched.mark();
        assert_eq!(touched.since(mark), 0);
        touched.by(u64::MAX, || {});
        assert_eq!(touched.since(mark), EVERYTHING);
    }
}
