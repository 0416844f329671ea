//! Extent maps of all volumes of a group, by volume number.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    extents::{ExtentMap, Mapped},
    Lsn,
};

/// Sizes of volumes, by number; what a map of one needs to know.
pub(crate) type Sizes = Arc<BTreeMap<u32, u64>>;

/// The newest versions of every volume's blocks, within some part of history.
pub(crate) struct Maps {
    sizes: Sizes,
    maps: BTreeMap<u32, ExtentMap>,
}

impl Maps {
    /// No version at all.
    pub(crate) fn new(sizes: Sizes) -> Maps {
        Maps { sizes, maps: BTreeMap::new() }
    }

    /// Tells of volumes that came since.
    pub(crate) fn set_sizes(&mut self, sizes: Sizes) {
        self.sizes = sizes;
    }

    /// Makes `extent` the newest version of its blocks. A volume that is no more is passed over.
    pub(crate) fn insert(&mut self, volume: u32, extent: Mapped) {
        if let Some(map) = self.maps.get_mut(&volume) {
            map.insert(extent);
        } else if let Some(&blocks) = self.sizes.get(&volume) {
            let mut map = ExtentMap::new(blocks);
            map.insert(extent);
            self.maps.insert(volume, map);
        }
    }

    /// As [`ExtentMap::lookup`].
    pub(crate) fn lookup(&self, volume: u32, lba: u64, count: u64, visit: &mut dyn FnMut(Mapped)) {
        if let Some(map) = self.maps.get(&volume) {
            map.lookup(lba, count, visit);
        }
    }

    /// As [`ExtentMap::lookup_while`].
    pub(crate) fn lookup_while(
        &self,
        volume: u32,
        lba: u64,
        count: u64,
        visit: &mut dyn FnMut(Mapped) -> bool,
    ) -> bool {
        self.maps.get(&volume).is_none_or(|map| map.lookup_while(lba, count, visit))
    }

    /// Whether any block of the range has a version.
    pub(crate) fn touches(&self, volume: u32, lba: u64, count: u64) -> bool {
        !self.lookup_while(volume, lba, count, &mut |_| false)
    }

    /// Every extent, by volume and block.
    pub(crate) fn for_each(&self, visit: &mut dyn FnMut(u32, Mapped)) {
        for (&volume, map) in &self.maps {
            map.for_each(&mut |m| visit(volume, m));
        }
    }

    /// The volumes that have versions, and their maps.
    pub(crate) fn volumes(&self) -> impl Iterator<Item = (u32, &ExtentMap)> {
        self.maps.iter().map(|(n, m)| (*n, m))
    }

    /// Forgets a volume.
    pub(crate) fn drop_volume(&mut self, volume: u32) {
        self.maps.remove(&volume);
    }

    /// Forgets, a part at a time, what lies before `edge`; `at` is where to go on, and `None` in the end.
    pub(crate) fn forget_before(&mut self, edge: Lsn, at: Option<(u32, usize)>) -> Option<(u32, usize)> {
        let (volume, page) = match at {
            Some(at) => at,
            None => (*self.maps.keys().next()?, 0),
        };
        if let Some(next) = self.maps.get_mut(&volume).and_then(|m| m.forget_before(edge, page)) {
            return Some((volume, next));
        }
        self.maps.range(volume + 1..).next().map(|(&v, _)| (v, 0))
    }

    /// Bytes of memory.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.maps.values().map(ExtentMap::memory_bytes).sum()
    }
}
