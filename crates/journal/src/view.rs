//! A state of the past, ready to be asked "where are this block's bytes?": layers of versions, newest first, over the base.
//!
//! A view never changes. Its layers are the few large runs that lie wholly before its point, plus small maps made of the index of the
//! segments that its point (and the branch points of its lineage) cut. A view that is read much can be materialised: one map instead.

use std::sync::{
    atomic::{AtomicU64, Ordering},
    Arc, OnceLock,
};

use crate::{
    extents::{Loc, Mapped},
    maps::{Maps, Sizes},
    run::Run,
    Lsn, Result,
};

/// Versions given in one stretch of the log.
#[derive(Clone)]
pub(crate) enum Layer {
    Run(Arc<Run>),
    Maps(Arc<Maps>),
}

/// Blocks and where their bytes are: in the log, or (`None`) in the base.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) lba: u64,
    pub(crate) count: u64,
    pub(crate) loc: Option<Loc>,
}

/// Stretches of blocks that no layer has covered yet.
pub(crate) type Gaps = smallvec::SmallVec<[(u64, u64); 4]>;
/// What a lookup found; not in order.
pub(crate) type Pieces = smallvec::SmallVec<[Piece; 4]>;

/// Finds extents of `count` blocks from `lba` in a layer and hands each to the visitor, in order.
type Lookup<'a> = &'a mut dyn FnMut(u64, u64, &mut dyn FnMut(Mapped)) -> Result<()>;

/// Looks for `gaps` in one layer: what is found goes to `pieces`, what is not comes back. Versions below `folded` are in the base.
pub(crate) fn search(gaps: &Gaps, folded: Lsn, pieces: &mut Pieces, lookup: Lookup<'_>) -> Result<Gaps> {
    let mut left = Gaps::new();
    for &(lba, count) in gaps {
        let mut at = lba;
        lookup(lba, count, &mut |m| {
            if m.lba > at {
                left.push((at, m.lba - at));
            }
            let loc = (m.loc.lsn() >= folded).then_some(m.loc);
            pieces.push(Piece { lba: m.lba, count: m.count, loc });
            at = m.lba + m.count;
        })?;
        if at < lba + count {
            left.push((at, lba + count - at));
        }
    }
    Ok(left)
}

/// A state of the past.
pub(crate) struct View {
    layers: Vec<Layer>,
    full: OnceLock<Maps>,
    lookups: AtomicU64,
}

impl View {
    pub(crate) fn new(layers: Vec<Layer>) -> View {
        View { layers, full: OnceLock::new(), lookups: AtomicU64::new(0) }
    }

    /// Where the blocks of `gaps` are; all of them come back as pieces.
    pub(crate) fn lookup(&self, volume: u32, mut gaps: Gaps, folded: Lsn, pieces: &mut Pieces) -> Result<()> {
        self.lookups.fetch_add(1, Ordering::Relaxed);
        if let Some(full) = self.full.get() {
            gaps = search(&gaps, folded, pieces, &mut |lba, count, visit| {
                full.lookup(volume, lba, count, visit);
                Ok(())
            })?;
        } else {
            for layer in &self.layers {
                if gaps.is_empty() {
                    break;
                }
                gaps = search(&gaps, folded, pieces, &mut |lba, count, visit| match layer {
                    Layer::Run(run) => run.lookup(volume, lba, count, visit),
                    Layer::Maps(maps) => {
                        maps.lookup(volume, lba, count, visit);
                        Ok(())
                    }
                })?;
            }
        }
        pieces.extend(gaps.into_iter().map(|(lba, count)| Piece { lba, count, loc: None }));
        Ok(())
    }

    /// All layers poured into one map.
    pub(crate) fn poured(&self, sizes: Sizes) -> Result<Maps> {
        let mut maps = Maps::new(sizes);
        for layer in self.layers.iter().rev() {
            match layer {
                Layer::Run(run) => run.pour_into(&mut maps)?,
                Layer::Maps(layer) => layer.for_each(&mut |volume, m| maps.insert(volume, m)),
            }
        }
        Ok(maps)
    }

    /// Makes later lookups one search, at the price of memory.
    pub(crate) fn materialise(&self, sizes: Sizes) -> Result<()> {
        if self.full.get().is_none() && self.layers.len() > 1 {
            let _ = self.full.set(self.poured(sizes)?);
        }
        Ok(())
    }

    /// Whether it has been looked at often enough to be worth materialising.
    pub(crate) fn is_hot(&self) -> bool {
        self.full.get().is_none() && self.layers.len() > 1 && self.lookups.load(Ordering::Relaxed) >= 1000
    }

    /// Bytes of memory.
    pub(crate) fn memory_bytes(&self) -> usize {
        let small: usize = self
            .layers
            .iter()
            .map(|l| match l {
                Layer::Maps(maps) => maps.memory_bytes(),
                Layer::Run(_) => 0,
            })
            .sum();
        small + self.full.get().map_or(0, Maps::memory_bytes)
    }
}
