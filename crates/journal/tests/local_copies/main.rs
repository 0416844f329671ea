//! Local copies against their source: while a random story is told on the source, a copy follows it, lags, dies, loses power, is left
//! behind by the window and comes back. Its log must be the source's, byte for byte, and every point of both windows the same.
//!
//! `PLAYHEAD_SEED` replays a failure; `PLAYHEAD_OPS` makes it longer (with `PLAYHEAD_SOAK` it is 100,000).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod behind;
mod histories;
mod images;
mod power;
mod stretches;
mod tale;

#[path = "../medium/mod.rs"]
mod medium;
#[path = "../model/mod.rs"]
mod model;
#[path = "../story/mod.rs"]
mod story;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use medium::{random::Random, SimFiles, FIRST_RANDOM_SEED};
use playhead_journal::{
    copier::{Copier, Step, Trouble},
    files::Files,
    ship::{Facts, Feed, Plan, Reach, Shipment, Stretch},
    Change, Error, Follower, Group, Image, Lsn, NewBase, Options, Result, Taken, Volume,
};
use story::{Story, DIR};

pub(crate) const COPY_DIR: &str = "/elsewhere/copy";
pub(crate) const SMALL: u64 = 64 << 10;

pub(crate) fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|v| v.parse().unwrap_or_else(|_| panic!("{variable}={v} is no number")))
}

pub(crate) fn disk() -> SimFiles {
    let disk = SimFiles::new();
    disk.create_dir(Path::new("/elsewhere")).unwrap();
    disk.sync_dir(Path::new("/")).unwrap();
    disk
}

/// A source that may be taken back.
pub(crate) struct Lent(Arc<Mutex<Option<Group>>>);

impl Lent {
    fn group(&self) -> Result<Group> {
        self.0.lock().unwrap().clone().ok_or_else(|| Error::Gone("the source".into()))
    }
}

impl Feed for Lent {
    fn facts(&self) -> Result<Facts> {
        self.group()?.facts()
    }
    fn reach(&self) -> Result<Reach> {
        self.group()?.reach()
    }
    fn time_after(&self, lsn: Lsn) -> Result<Option<u64>> {
        self.group()?.time_after(lsn)
    }
    fn ship(&self, from: Lsn, until: Lsn, max_bytes: usize) -> Result<Shipment> {
        self.group()?.ship(from, until, max_bytes)
    }
    fn tail(&self, lsn: Lsn, max_bytes: usize) -> Result<Option<Vec<u8>>> {
        self.group()?.tail(lsn, max_bytes)
    }
    fn knows(&self, copy: &str) -> Result<bool> {
        self.group()?.knows(copy)
    }
    fn plan(&self, copy: &str, settled: Option<Lsn>) -> Result<Plan> {
        self.group()?.plan(copy, settled)
    }
    fn planned(&self, copy: &str, lsn: Lsn) -> Result<()> {
        self.group()?.planned(copy, lsn)
    }
    fn acknowledge(&self, copy: &str, durable: Lsn, written: bool) -> Result<()> {
        self.group()?.acknowledge(copy, durable, written)
    }
    fn blocks(&self, at: (u32, Lsn), volume: u32, range: (u64, u64), max: usize) -> Result<Vec<Stretch>> {
        self.group()?.blocks(at, volume, range, max)
    }
}

pub(crate) fn copier(source: &Group, disk: &SimFiles, segment_bytes: u64) -> Copier {
    let options = Options { segment_bytes, background: false };
    Copier::new(Arc::new(source.clone()), disk.files(), Path::new(COPY_DIR), "far", &options)
}

/// Steps until the copy is level; returns the bytes of blocks that synchronisations moved meanwhile.
pub(crate) fn level(copier: &mut Copier) -> u64 {
    let mut moved = 0;
    let mut now = 0;
    for _ in 0..1_000_000 {
        let stepped = copier.step().unwrap_or_else(|t| panic!("{t:?}"));
        match copier.sweep() {
            Some(figures) => now = figures.moved_bytes,
            None => moved += std::mem::take(&mut now),
        }
        if stepped == Step::Level {
            return moved;
        }
    }
    panic!("the copy never becomes level");
}

/// Blocks that are not zeros, by their CRC.
pub(crate) fn content(volume: &Volume) -> BTreeMap<u64, u32> {
    let mut found = BTreeMap::new();
    let mut at = 0;
    while at < volume.block_count() {
        for e in volume.extents(at, volume.block_count() - at, 4096).unwrap() {
            at = e.lba + e.count;
            for lba in (e.lba..at).step_by(1024).filter(|_| !e.zero) {
                let mut data = vec![0; (at - lba).min(1024) as usize * 512];
                volume.read(lba, &mut data).unwrap();
                let blocks = data.chunks(512).enumerate().filter(|(_, b)| b.iter().any(|x| *x != 0));
                found.extend(blocks.map(|(i, b)| (lba + i as u64, crc32c::crc32c(b))));
            }
        }
    }
    found
}

pub(crate) fn contents(image: &Image) -> BTreeMap<String, BTreeMap<u64, u32>> {
    image.volumes().iter().map(|v| (v.name.clone(), content(&image.volume(&v.name).unwrap()))).collect()
}

pub(crate) fn contents_at(group: &Group, lsn: Lsn) -> BTreeMap<String, BTreeMap<u64, u32>> {
    let image = group.open_image("compared", lsn, false).unwrap();
    let found = contents(&image);
    group.close_image("compared").unwrap();
    found
}

pub(crate) fn segment(dir: &str, number: u64) -> PathBuf {
    Path::new(dir).join(format!("log/{number:016x}.seg"))
}

/// The copy's log is a part of the source's.
pub(crate) fn check_bytes(source: (&SimFiles, &Group), copy: (&SimFiles, &Group), segment_bytes: u64) {
    let end = copy.1.head().lsn;
    let first = (copy.1.stats().folded_lsn).max(source.1.stats().folded_lsn) / segment_bytes;
    assert!(end <= source.1.head().lsn.max((source.1.head().lsn / segment_bytes + 1) * segment_bytes + 64));
    for number in first..=end / segment_bytes {
        let bytes = (end - number * segment_bytes).min(segment_bytes) as usize;
        let theirs = source.0.range_of(&segment(DIR, number), 0, bytes);
        let Some(theirs) = theirs else { continue };
        let mut mine = copy.0.range_of(&segment(COPY_DIR, number), 0, bytes).expect("a segment of the copy");
        // Behind a PAD, and where no header fits any more, lies whatever lay there.
        let mut theirs = theirs;
        if number < end / segment_bytes {
            let over = over(&theirs);
            mine.truncate(over);
            theirs.truncate(over);
        }
        assert!(mine == theirs, "segment {number} differs");
    }
}

/// Where a full segment's records end, its PAD included.
pub(crate) fn over(bytes: &[u8]) -> usize {
    let mut at = 64;
    while bytes.len() - at >= 64 {
        let payload = u32::from_le_bytes(bytes[at + 44..at + 48].try_into().unwrap()) as usize;
        if bytes[at + 12] == 10 {
            return at + 64;
        }
        at += (64 + payload + 7) & !7;
    }
    at
}

pub(crate) fn source(disk: &SimFiles) -> (Group, Volume) {
    let options = Options { segment_bytes: SMALL, background: false };
    disk.create_dir(Path::new("/store")).unwrap();
    disk.sync_dir(Path::new("/")).unwrap();
    let group = Group::create(disk.files(), Path::new(DIR), "g", &options).unwrap();
    let volume = group.add_volume("v", NewBase::Sparse { blocks: 1 << 20 }).unwrap();
    (group, volume)
}

pub(crate) fn write(volume: &Volume, lba: u64, blocks: u64, byte: u8) {
    let data = vec![byte; blocks as usize * 512];
    volume.submit(&[Change::Write { lba, data: &data }]).unwrap();
}

/// Moves the edge to the segment of the head.
pub(crate) fn trim(group: &Group) {
    group.tend().unwrap();
    group.trim_to(group.head().lsn).unwrap();
}
