//! What is known of each region in memory: whether changes are under way there, when it was last touched, whether its mark is on the medium
//! yet, and whether it differs for certain to be seen to.
//!
//! A region that is *marked* may differ after a crash; one that *differs* is to be resynchronised now. Marks are kept for a while after the
//! last change and then taken away in batches, as DRBD's activity log does it: hosts come back to the same regions, and a
//! region that is marked already costs them nothing. [`KEPT_REGIONS`] bounds what a crash makes to compare.

use std::{
    collections::{HashMap, HashSet},
    io,
    ops::Range,
    time::{Duration, Instant},
};

use playhead_journal::BLOCK_BYTES;

use super::{bits::Bits, change_map::ChangeMap};

/// Quiet regions that stay marked, so that hosts find them so when they come back: 1 GiB of the usual size.
const KEPT_REGIONS: usize = 1024;
/// How long a region may stay marked that nobody changes.
const KEPT_FOR: Duration = Duration::from_secs(30);

/// A region in which changes are under way, or were a short while ago.
#[derive(Debug)]
struct Busy {
    under_way: u32,
    touched: Instant,
    /// Rises with every change.
    changes: u64,
}

/// A region that may be unmarked if it is as it was seen here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Quiet {
    region: u32,
    changes: u64,
}

/// The regions of a volume.
pub(super) struct Marks {
    pub(super) map: ChangeMap,
    differs: Bits,
    busy: HashMap<u32, Busy>,
    /// Marked in the file, not synced.
    unsynced: HashSet<u32>,
    /// A sync that covers them is under way.
    syncing: HashSet<u32>,
    /// Those that production may change yet, with the numbers of the changes, which nobody waits for: they differ until all of them are over.
    doubted: HashMap<u32, HashSet<u64>>,
}

impl Marks {
    /// What is marked in a map that was found is what differs.
    pub(super) fn new(map: ChangeMap) -> Marks {
        Marks {
            differs: map.marked().clone(),
            map,
            busy: HashMap::new(),
            unsynced: HashSet::new(),
            syncing: HashSet::new(),
            doubted: HashMap::new(),
        }
    }

    pub(super) fn region_bytes(&self) -> u64 {
        self.map.header().region_bytes
    }

    fn region_blocks(&self) -> u64 {
        self.region_bytes() / BLOCK_BYTES as u64
    }

    /// The blocks of a region, of a volume of `block_count`.
    pub(super) fn blocks(&self, region: u32, block_count: u64) -> Range<u64> {
        let start = u64::from(region) * self.region_blocks();
        start..(start + self.region_blocks()).min(block_count)
    }

    fn regions(&self, ranges: &[Range<u64>]) -> Vec<u32> {
        let size = self.region_blocks();
        let limit = u64::from(self.differs.limit());
        let touched = |r: &Range<u64>| (r.start / size).min(limit)..r.end.div_ceil(size).min(limit);
        let mut all: Vec<u32> =
            ranges.iter().filter(|r| !r.is_empty()).flat_map(touched).map(|n| n as u32).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Changes of `ranges` begin. Whether a mark has to reach the medium first.
    pub(super) fn enter(&mut self, ranges: &[Range<u64>]) -> io::Result<bool> {
        let mut wait = false;
        let regions = self.regions(ranges);
        for region in &regions {
            if self.map.mark(*region)? {
                self.unsynced.insert(*region);
            }
            wait |= self.unsynced.contains(region) || self.syncing.contains(region);
        }
        for region in regions {
            let fresh = Busy { under_way: 0, touched: Instant::now(), changes: 0 };
            self.busy.entry(region).or_insert(fresh).under_way += 1;
        }
        Ok(wait)
    }

    /// They are over; what they touched `differs`, or not.
    pub(super) fn leave(&mut self, ranges: &[Range<u64>], differs: bool) {
        for region in self.regions(ranges) {
            if let Some(busy) = self.busy.get_mut(&region) {
                busy.under_way = busy.under_way.saturating_sub(1);
                busy.touched = Instant::now();
                busy.changes += 1;
            }
            if differs {
                self.differs.insert(region);
            }
        }
    }

    /// What `ranges` touch differs from now on, while the change goes on.
    pub(super) fn differ(&mut self, ranges: &[Range<u64>]) {
        for region in self.regions(ranges) {
            self.differs.insert(region);
        }
    }

    /// As [`Marks::differ`], and they are not compared before [`Marks::end_doubt`] of this change.
    pub(super) fn doubt(&mut self, change: u64, ranges: &[Range<u64>]) {
        for region in self.regions(ranges) {
            self.differs.insert(region);
            self.doubted.entry(region).or_default().insert(change);
        }
    }

    /// A change that was in doubt is over. It may not be any more, by [`Marks::end_all_doubts`]; others are, all the same.
    pub(super) fn end_doubt(&mut self, change: u64, ranges: &[Range<u64>]) {
        for region in self.regions(ranges) {
            self.differs.insert(region);
            if let Some(changes) = self.doubted.get_mut(&region) {
                changes.remove(&change);
                if changes.is_empty() {
                    self.doubted.remove(&region);
                }
            }
        }
    }

    /// Somebody who knows says that nothing is in doubt any more.
    pub(super) fn end_all_doubts(&mut self) {
        self.doubted.clear();
    }

    /// Whether production may change anything yet that nobody waits for.
    pub(super) fn any_in_doubt(&self) -> bool {
        !self.doubted.is_empty()
    }

    /// The first region from `from` on that is to be compared.
    pub(super) fn next_to_compare(&self, from: u32) -> Option<u32> {
        let mut at = from;
        loop {
            let region = self.differs.next(at)?;
            if !self.doubted.contains_key(&region) {
                return Some(region);
            }
            at = region + 1;
        }
    }

    /// A sync of the map begins; false if there is nothing to sync.
    pub(super) fn begin_sync(&mut self) -> bool {
        self.syncing = std::mem::take(&mut self.unsynced);
        !self.syncing.is_empty()
    }

    /// It is over.
    pub(super) fn end_sync(&mut self, synced: bool) {
        let done = std::mem::take(&mut self.syncing);
        if !synced {
            self.unsynced.extend(done);
        }
    }

    pub(super) fn differs(&self) -> &Bits {
        &self.differs
    }

    /// Whether a region that `ranges` touch differs, or is `looked_at` because it did.
    pub(super) fn differs_in(&self, ranges: &[Range<u64>], looked_at: Option<u32>) -> bool {
        let differs = |region: &u32| self.differs.contains(*region) || looked_at == Some(*region);
        self.regions(ranges).iter().any(differs)
    }

    /// Bytes of the regions that differ.
    pub(super) fn differing_bytes(&self) -> u64 {
        u64::from(self.differs.count()) * self.region_bytes()
    }

    /// A region is looked at now: whatever happens to it from here on counts again.
    pub(super) fn look_at(&mut self, region: u32) {
        self.differs.remove(region);
    }

    /// It still differs.
    pub(super) fn still_differs(&mut self, region: u32) {
        self.differs.insert(region);
    }

    /// Whatever is marked differs, as after a crash: production may have lost it.
    pub(super) fn marked_differ(&mut self) {
        self.differs = self.map.marked().clone();
    }

    /// Everything differs. Durable with the next sync of the map.
    pub(super) fn all_differ(&mut self) -> io::Result<()> {
        // Also if the medium does not take it: what is known to differ is compared all the same.
        let written = self.map.mark_all();
        self.differs = self.map.marked().clone();
        written
    }

    /// Marked regions that may be unmarked once production and journal are durable: those quiet for long, and of the others the longest
    /// quiet beyond [`KEPT_REGIONS`]. With `all`, every one in which nothing is under way.
    pub(super) fn quiet(&self, looked_at: Option<u32>, all: bool) -> Vec<Quiet> {
        let now = Instant::now();
        let calm = |region: &u32, busy: &Busy| {
            busy.under_way == 0 && Some(*region) != looked_at && !self.differs.contains(*region)
        };
        let mut quiet: Vec<(Instant, Quiet)> = self
            .busy
            .iter()
            .filter(|(region, busy)| calm(region, busy))
            .map(|(region, busy)| (busy.touched, Quiet { region: *region, changes: busy.changes }))
            .collect();
        quiet.sort_unstable_by_key(|(touched, _)| std::cmp::Reverse(*touched));
        let kept = |i: usize, touched: Instant| {
            !all && i < KEPT_REGIONS && now.saturating_duration_since(touched) < KEPT_FOR
        };
        quiet
            .iter()
            .enumerate()
            .filter(|(i, (touched, _))| !kept(*i, *touched))
            .map(|(_, (_, q))| *q)
            .collect()
    }

    /// Unmarks those that are as they were seen.
    pub(super) fn unmark(&mut self, seen: &[Quiet]) -> io::Result<()> {
        let mut gone = Vec::with_capacity(seen.len());
        for quiet in seen {
            let same = |b: &Busy| b.under_way == 0 && b.changes == quiet.changes;
            let differs = self.differs.contains(quiet.region);
            if !differs && self.busy.get(&quiet.region).is_some_and(same) {
                self.busy.remove(&quiet.region);
                self.unsynced.remove(&quiet.region);
                gone.push(quiet.region);
            }
        }
        self.map.clear(&gone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::splitter::change_map::MapOf;
    use playhead_journal::files::DiskFiles;

    #[test]
    fn a_region_is_compared_when_every_change_in_doubt_there_is_over() {
        let folder = tempfile::tempdir().unwrap();
        let of = MapOf { volume: [7; 16], block_count: 2 * 2048 };
        let mut map = ChangeMap::open(&DiskFiles, &folder.path().join("map"), of).unwrap();
        map.clear(&[0, 1]).unwrap();
        let mut marks = Marks::new(map);
        let here = [0..4, 4..8];
        marks.doubt(1, &here);
        assert_eq!(marks.next_to_compare(0), None);
        // An administrator knows, and then another comes, which is not over with the first.
        marks.end_all_doubts();
        assert_eq!(marks.next_to_compare(0), Some(0));
        marks.doubt(2, &here);
        marks.end_doubt(1, &here);
        assert_eq!(marks.next_to_compare(0), None);
        marks.end_doubt(2, &here);
        assert_eq!(marks.next_to_compare(0), Some(0));
    }
}
