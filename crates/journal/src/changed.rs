//! Sets of blocks, by volume: what has changed, or what is still to be moved.
//!
//! As a file they are gaps and lengths in variable-length integers (LEB128), three or four bytes an extent, so that a million extents fit a
//! slot of a ledger. Where a set outgrows its place it becomes coarser, never smaller: it may name blocks that did not change, and never
//! leaves one out.

use std::collections::BTreeMap;

/// A set of blocks of several volumes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Blocks {
    /// By volume: first block to the one after the last. Disjoint, and never adjoining.
    volumes: BTreeMap<u32, BTreeMap<u64, u64>>,
    extents: usize,
}

impl Blocks {
    /// Adds blocks.
    pub fn insert(&mut self, volume: u32, lba: u64, count: u64) {
        if count == 0 {
            return;
        }
        let (mut lba, mut end) = (lba, lba.saturating_add(count));
        let set = self.volumes.entry(volume).or_default();
        // Whatever touches the new extent is swallowed by it.
        let touching: Vec<(u64, u64)> =
            set.range(..=end).rev().take_while(|(_, e)| **e >= lba).map(|(l, e)| (*l, *e)).collect();
        for (l, e) in &touching {
            set.remove(l);
            lba = lba.min(*l);
            end = end.max(*e);
        }
        set.insert(lba, end);
        self.extents = self.extents + 1 - touching.len();
    }

    /// Takes blocks out.
    pub fn remove(&mut self, volume: u32, lba: u64, count: u64) {
        let end = lba.saturating_add(count);
        let Some(set) = self.volumes.get_mut(&volume).filter(|_| count > 0) else { return };
        let cut: Vec<(u64, u64)> =
            set.range(..end).rev().take_while(|(_, e)| **e > lba).map(|(l, e)| (*l, *e)).collect();
        for (l, e) in cut {
            set.remove(&l);
            self.extents -= 1;
            if l < lba {
                set.insert(l, lba);
                self.extents += 1;
            }
            if e > end {
                set.insert(end, e);
                self.extents += 1;
            }
        }
        if set.is_empty() {
            self.volumes.remove(&volume);
        }
    }

    /// Takes a whole volume out.
    pub fn forget(&mut self, volume: u32) {
        if let Some(set) = self.volumes.remove(&volume) {
            self.extents -= set.len();
        }
    }

    /// Adds what another set has.
    pub fn join(&mut self, other: &Blocks) {
        for (volume, lba, count) in other.extents() {
            self.insert(volume, lba, count);
        }
    }

    /// Volume, first block and count of each extent, in order.
    pub fn extents(&self) -> impl Iterator<Item = (u32, u64, u64)> + '_ {
        self.volumes.iter().flat_map(|(v, set)| set.iter().map(move |(l, e)| (*v, *l, e - l)))
    }

    /// The first extent.
    pub fn first(&self) -> Option<(u32, u64, u64)> {
        self.extents().next()
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.extents == 0
    }

    /// How many blocks are in it.
    pub fn count(&self) -> u64 {
        self.extents().map(|(_, _, count)| count).sum()
    }

    /// Makes the set so coarse that it takes at most `bytes` when encoded: extents that lie close together become one.
    pub(crate) fn fit(&mut self, bytes: usize) {
        let mut grain = 8;
        while self.encode().len() > bytes && grain < 1 << 40 {
            let mut coarse = Blocks::default();
            for (volume, lba, count) in self.extents() {
                let from = lba / grain * grain;
                coarse.insert(volume, from, (lba + count).next_multiple_of(grain) - from);
            }
            *self = coarse;
            grain *= 4;
        }
    }

    /// As bytes.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(16 + self.extents * 4);
        put(&mut out, self.volumes.len() as u64);
        for (volume, set) in &self.volumes {
            put(&mut out, u64::from(*volume));
            put(&mut out, set.len() as u64);
            let mut at = 0;
            for (lba, end) in set {
                put(&mut out, lba - at);
                put(&mut out, end - lba);
                at = *end;
            }
        }
        out
    }

    /// From bytes; `None` if they are none of ours.
    pub(crate) fn decode(mut bytes: &[u8]) -> Option<Blocks> {
        let mut blocks = Blocks::default();
        let b = &mut bytes;
        for _ in 0..take(b)? {
            let volume = u32::try_from(take(b)?).ok()?;
            let mut at = 0_u64;
            for _ in 0..take(b)? {
                at = at.checked_add(take(b)?)?;
                let count = take(b)?;
                at.checked_add(count)?;
                blocks.insert(volume, at, count);
                at += count;
            }
        }
        b.is_empty().then_some(blocks)
    }
}

fn put(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

fn take(bytes: &mut &[u8]) -> Option<u64> {
    let mut n = 0_u64;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        n |= u64::from(first & 0x7f).checked_shl(shift)?;
        if first & 0x80 == 0 {
            return Some(n);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_set_is_what_a_plain_set_is(steps in prop::collection::vec((any::<bool>(), 0..3_u32, 0..90_u64, 0..20_u64), 0..80)) {
            let mut blocks = Blocks::default();
            let mut plain = std::collections::BTreeSet::new();
            for (add, volume, lba, count) in steps {
                for at in lba..lba + count {
                    if add { plain.insert((volume, at)); } else { plain.remove(&(volume, at)); }
                }
                if add { blocks.insert(volume, lba, count) } else { blocks.remove(volume, lba, count) }
                let all: Vec<(u32, u64)> = blocks.extents().flat_map(|(v, l, n)| (l..l + n).map(move |at| (v, at))).collect();
                prop_assert_eq!(&all, &plain.iter().copied().collect::<Vec<_>>());
                prop_assert_eq!(blocks.extents, blocks.extents().count());
                prop_assert_eq!(blocks.is_empty(), plain.is_empty());
            }
            let bytes = blocks.encode();
            prop_assert_eq!(Blocks::decode(&bytes), Some(blocks.clone()));
            for end in 0..bytes.len() {
                prop_assert_eq!(Blocks::decode(&bytes[..end]), None);
            }
            let mut coarse = blocks.clone();
            coarse.fit(12);
            for (v, l, n) in blocks.extents() {
                let mut left = Blocks::default();
                left.insert(v, l, n);
                for (cv, cl, cn) in coarse.extents() {
                    left.remove(cv, cl, if cv == v { cn } else { 0 });
                }
                prop_assert!(left.is_empty(), "what was in it is still in it");
            }
        }
    }
}
