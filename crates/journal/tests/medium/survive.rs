//! What is left of a medium whose power failed: which of the un-synced sectors, sizes and names made it.
//!
//! The model is that of a page cache over a disk with a volatile cache: a 512-byte sector is written whole, in any of the versions
//! it had since the last sync; sectors, sizes and names of different files reach the disk in any order or not at all.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    content::{Content, SECTOR_BYTES},
    random::Random,
    Change, Inode, NameChange, State,
};

/// How much of what was not synced survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    NothingKept,
    AllKept,
    LastKept,
    FirstLost,
    /// Each sector, size and name by itself, with a chance drawn for each file.
    Any,
    /// Whole operations, each kept or lost.
    AnyOperation,
}

/// Seeds below this are the extremes, one each; those from here on are random.
pub(crate) const FIRST_RANDOM_SEED: u64 = 4;

fn fate(seed: u64) -> Fate {
    match seed {
        0 => Fate::NothingKept,
        1 => Fate::AllKept,
        2 => Fate::LastKept,
        3 => Fate::FirstLost,
        n if n % 2 == 0 => Fate::Any,
        _ => Fate::AnyOperation,
    }
}

pub(crate) fn survivor(state: &State, seed: u64) -> State {
    let fate = fate(seed);
    let mut random = Random::new(seed ^ 0x5eed);
    let last = state
        .inodes
        .values()
        .flat_map(|i| i.pending.iter().map(|p| p.0))
        .chain(state.pending_names.iter().map(|p| p.0))
        .max();
    let first = state
        .inodes
        .values()
        .flat_map(|i| i.pending.iter().map(|p| p.0))
        .chain(state.pending_names.iter().map(|p| p.0))
        .min();
    let mut keep = |number: u64, chance: u64, whole: Option<bool>| match fate {
        Fate::NothingKept => false,
        Fate::AllKept => true,
        Fate::LastKept => Some(number) == last,
        Fate::FirstLost => Some(number) != first,
        Fate::Any => random.below(100) < chance,
        Fate::AnyOperation => whole.unwrap_or_else(|| random.below(100) < chance),
    };
    let mut choose = Random::new(seed.wrapping_mul(31) ^ 0xfa7e);

    let mut names = state.durable_names.clone();
    let mut dirs = state.durable_dirs.clone();
    let chance = choose.pick(&[10, 50, 90]);
    for (number, change) in &state.pending_names {
        if keep(*number, chance, None) {
            change.apply(&mut names, &mut dirs);
        }
    }
    // A name whose directory did not survive is nowhere.
    names.retain(|path, _| path.parent().is_some_and(|d| dirs.contains(d)));

    let mut inodes = BTreeMap::new();
    for (&id, inode) in &state.inodes {
        if !names.values().any(|&n| n == id) {
            continue;
        }
        let chance = choose.pick(&[5, 30, 50, 70, 95]);
        let content = surviving_content(inode, chance, &mut choose, &mut keep);
        inodes.insert(id, Inode::settled(content));
    }
    State::powered_on(inodes, names, dirs, state)
}

fn surviving_content(
    inode: &Inode,
    chance: u64,
    choose: &mut Random,
    keep: &mut dyn FnMut(u64, u64, Option<bool>) -> bool,
) -> Content {
    if inode.pending.is_empty() {
        return inode.durable.clone();
    }
    // Fate by whole operation, where that is the fate.
    let whole: Vec<bool> = inode.pending.iter().map(|_| choose.below(100) < chance).collect();

    // The size: that after the last kept operation.
    let mut size = inode.durable.size;
    let mut kept_size = size;
    for (i, (number, change)) in inode.pending.iter().enumerate() {
        size = change.size_after(size);
        if keep(*number, chance, Some(whole[i])) {
            kept_size = size;
        }
    }

    // The sectors: each in the version after the last kept operation that touches it.
    let mut sectors: BTreeSet<u64> = BTreeSet::new();
    let mut shadow = inode.durable.clone();
    for (_, change) in &inode.pending {
        let (from, to) = change.range(shadow.size);
        sectors.extend(shadow.sectors_in(from, to));
        change.apply(&mut shadow);
        if matches!(change, Change::Write { .. }) {
            sectors.extend(shadow.sectors_in(from, to));
        }
    }
    let mut versions: BTreeMap<u64, usize> = BTreeMap::new();
    let mut size = inode.durable.size;
    for (i, (number, change)) in inode.pending.iter().enumerate() {
        let (from, to) = change.range(size);
        size = change.size_after(size);
        if to <= from {
            continue;
        }
        for &sector in sectors.range(from / SECTOR_BYTES..=(to - 1) / SECTOR_BYTES) {
            if keep(*number, chance, Some(whole[i])) {
                versions.insert(sector, i + 1);
            }
        }
    }
    let mut result = inode.durable.clone();
    // Group sectors by version, and replay once, taking each version's sectors as it is reached.
    let mut by_version: BTreeMap<usize, Vec<u64>> = BTreeMap::new();
    for (sector, version) in versions {
        by_version.entry(version).or_default().push(sector);
    }
    let mut shadow = inode.durable.clone();
    for (i, (_, change)) in inode.pending.iter().enumerate() {
        change.apply(&mut shadow);
        let mut buf = [0_u8; SECTOR_BYTES as usize];
        for &sector in by_version.get(&(i + 1)).map_or(&[][..], Vec::as_slice) {
            shadow.read(&mut buf, sector * SECTOR_BYTES);
            result.write_within(&buf, sector * SECTOR_BYTES);
        }
    }
    // Nothing is beyond the surviving size, whatever sectors made it.
    result.size = u64::MAX;
    result.set_size(kept_size);
    result
}

impl NameChange {
    pub(crate) fn apply(&self, names: &mut super::Names, dirs: &mut super::Dirs) {
        match self {
            NameChange::Dir(dir) => {
                dirs.insert(dir.clone());
            }
            NameChange::Create(path, id) => {
                names.insert(path.clone(), *id);
            }
            NameChange::Rename(from, to, id) => {
                if names.get(from) == Some(id) {
                    names.remove(from);
                }
                names.insert(to.clone(), *id);
            }
            NameChange::Remove(path, id) => {
                if names.get(path) == Some(id) {
                    names.remove(path);
                }
            }
            NameChange::RemoveDir(dir) => {
                names.retain(|path, _| !path.starts_with(dir));
                dirs.retain(|path| !path.starts_with(dir));
            }
        }
    }

    /// The directory that a sync must name to make this durable.
    pub(crate) fn dir(&self) -> Option<&std::path::Path> {
        match self {
            NameChange::Dir(p)
            | NameChange::Create(p, _)
            | NameChange::Rename(_, p, _)
            | NameChange::Remove(p, _)
            | NameChange::RemoveDir(p) => p.parent(),
        }
    }
}
