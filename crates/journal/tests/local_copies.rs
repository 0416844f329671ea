//! Local copies against their source: while a random story is told on the source, a copy follows it, lags, dies, loses power, is left
//! behind by the window and comes back. Its log must be the source's, byte for byte, and every point of both windows the same.
//!
//! `PLAYHEAD_SEED` replays a failure; `PLAYHEAD_OPS` makes it longer (with `PLAYHEAD_SOAK` it is 100,000).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod medium;
mod model;
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

const COPY_DIR: &str = "/elsewhere/copy";
const SMALL: u64 = 64 << 10;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|v| v.parse().unwrap_or_else(|_| panic!("{variable}={v} is no number")))
}

fn disk() -> SimFiles {
    let disk = SimFiles::new();
    disk.create_dir(Path::new("/elsewhere")).unwrap();
    disk.sync_dir(Path::new("/")).unwrap();
    disk
}

/// A source that may be taken back.
struct Lent(Arc<Mutex<Option<Group>>>);

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

fn copier(source: &Group, disk: &SimFiles, segment_bytes: u64) -> Copier {
    let options = Options { segment_bytes, background: false };
    Copier::new(Arc::new(source.clone()), disk.files(), Path::new(COPY_DIR), "far", &options)
}

/// Steps until the copy is level; returns the bytes of blocks that synchronisations moved meanwhile.
fn level(copier: &mut Copier) -> u64 {
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
fn content(volume: &Volume) -> BTreeMap<u64, u32> {
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

fn contents(image: &Image) -> BTreeMap<String, BTreeMap<u64, u32>> {
    image.volumes().iter().map(|v| (v.name.clone(), content(&image.volume(&v.name).unwrap()))).collect()
}

fn contents_at(group: &Group, lsn: Lsn) -> BTreeMap<String, BTreeMap<u64, u32>> {
    let image = group.open_image("compared", lsn, false).unwrap();
    let found = contents(&image);
    group.close_image("compared").unwrap();
    found
}

fn segment(dir: &str, number: u64) -> PathBuf {
    Path::new(dir).join(format!("log/{number:016x}.seg"))
}

/// The copy's log is a part of the source's.
fn check_bytes(source: (&SimFiles, &Group), copy: (&SimFiles, &Group), segment_bytes: u64) {
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
fn over(bytes: &[u8]) -> usize {
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

struct Tale {
    story: Story,
    disk: SimFiles,
    copier: Option<Copier>,
    random: Random,
    segment_bytes: u64,
    counts: BTreeMap<&'static str, u64>,
    held: Option<BTreeMap<String, BTreeMap<u64, u32>>>,
    was_sweeping: bool,
}

impl Tale {
    fn begin(seed: u64, segment_bytes: u64) -> Tale {
        Tale {
            story: Story::begin(seed, segment_bytes),
            disk: disk(),
            copier: None,
            random: Random::new(seed ^ 0xC0B1),
            segment_bytes,
            counts: BTreeMap::new(),
            held: None,
            was_sweeping: false,
        }
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    fn copy_steps(&mut self, n: u64) {
        *self.story.lent.lock().unwrap() = Some(self.story.group());
        if self.copier.is_none() {
            let options = Options { segment_bytes: self.segment_bytes, background: false };
            let feed = Arc::new(Lent(Arc::clone(&self.story.lent)));
            self.copier = Some(Copier::new(feed, self.disk.files(), Path::new(COPY_DIR), "far", &options));
        }
        for _ in 0..n {
            let Some(copier) = &mut self.copier else { return };
            match copier.step() {
                Ok(Step::Level) => {
                    self.count("level");
                    return;
                }
                Ok(Step::Busy) => {}
                Err(Trouble::Held(_)) => {
                    self.count("held");
                    self.let_image_go();
                }
                Err(trouble) => self.story.fail(&format!("{trouble:?}")),
            }
            let sweeping = self.copier.as_ref().is_some_and(|c| c.sweep().is_some());
            if sweeping && !self.was_sweeping {
                self.count("synchronisations");
            }
            self.was_sweeping = sweeping;
        }
    }

    fn let_image_go(&mut self) {
        let held = self.held.take();
        if let (Some(follower), Some(held)) = (self.copier.as_ref().and_then(Copier::follower), held) {
            let image = follower.group().image("held").unwrap();
            if contents(&image).iter().any(|(v, c)| held.get(v).is_some_and(|h| h != c)) {
                self.story.fail("an image of the copy changed");
            }
            follower.group().close_image("held").unwrap();
        }
    }

    /// The copy's process dies, or its machine loses power.
    fn crash(&mut self) {
        self.copier = None;
        let seed = FIRST_RANDOM_SEED + self.random.below(1 << 40);
        if self.random.once_in(2) {
            self.disk = self.disk.survivor(seed);
            self.count("power losses");
        } else {
            self.disk = self.disk.kill(seed);
            self.count("kills");
        }
    }

    fn compare(&mut self) {
        let group = self.story.group();
        let Some(follower) = self.copier.as_ref().and_then(Copier::follower) else { return };
        let mine = follower.group().clone();
        check_bytes((&self.story.medium, &group), (&self.disk, &mine), self.segment_bytes);
        let follower_window = mine.window();
        let low = mine.window().edge.lsn.max(group.window().edge.lsn);
        let high = mine.head().lsn.min(group.head().lsn);
        if low > high {
            return;
        }
        let wanted = self.random.between(low, high);
        let (a, b) = (group.point_at_lsn(wanted).unwrap(), mine.point_at_lsn(wanted).unwrap());
        if a.lsn > high {
            return;
        }
        // The edge's own time may be of different records.
        if a.lsn != b.lsn || (a.time_ns != b.time_ns && a.lsn > low + self.segment_bytes) {
            self.story.fail(&format!("LSN {wanted} is {a:?} on the source and {b:?} on the copy"));
        }
        let theirs = contents_at(&group, a.lsn);
        let ours = contents_at(&mine, a.lsn);
        for (volume, content) in &theirs {
            if ours.get(volume).is_some_and(|c| c != content) {
                let mine = &ours[volume];
                let of = |c: &BTreeMap<u64, u32>, o: &BTreeMap<u64, u32>| -> Vec<u64> {
                    c.iter().filter(|(l, c)| o.get(l) != Some(c)).map(|(l, _)| *l).take(8).collect()
                };
                self.story.fail(&format!(
                    "volume {volume} differs at LSN {} from the copy: at {:?} and {:?}; its window is {:?}, {:?}",
                    a.lsn,
                    of(content, mine),
                    of(mine, content),
                    follower_window,
                    self.counts
                ));
            }
        }
        let marks = |g: &Group| -> Vec<_> {
            g.bookmarks().into_iter().filter(|b| (low..high).contains(&b.point.lsn)).collect()
        };
        assert_eq!(marks(&group), marks(&mine), "bookmarks");
        self.count("compared");
        if self.held.is_none() && self.random.once_in(4) {
            let image = mine.open_image("held", a.lsn, false).unwrap();
            self.held = Some(contents(&image));
        } else if self.random.once_in(2) {
            self.let_image_go();
        }
    }

    fn step(&mut self, awake: bool) {
        self.story.step();
        if awake {
            let n = self.random.below(4);
            self.copy_steps(n);
        }
        if let Some(follower) = self.copier.as_ref().and_then(Copier::follower) {
            match self.random.below(40) {
                0 => follower.group().tend().unwrap(),
                1 => {
                    let at =
                        self.random.between(follower.group().window().edge.lsn, follower.group().head().lsn);
                    follower.group().trim_to(at).unwrap();
                }
                _ => {}
            }
        }
        if self.random.once_in(25) {
            self.compare();
        }
        if self.random.once_in(60) {
            self.crash();
        }
    }

    fn end(&mut self) {
        self.copier = None;
        self.let_image_go();
        for _ in 0..100_000 {
            self.copy_steps(1);
            if let Some(follower) = self.copier.as_ref().and_then(Copier::follower) {
                if follower.group().image("held").is_ok() {
                    follower.group().close_image("held").unwrap();
                }
                if follower.durable() >= self.story.group().head().lsn {
                    break;
                }
            }
        }
        let group = self.story.group();
        let mine = self.copier.as_ref().unwrap().follower().unwrap().group().clone();
        let head = group.head().lsn;
        let names =
            |g: &Group| -> Vec<_> { g.volumes().into_iter().map(|v| (v.number, v.name, v.uuid)).collect() };
        assert_eq!(names(&group), names(&mine));
        assert_eq!(contents_at(&group, head), contents_at(&mine, mine.head().lsn));
        self.compare();
        eprintln!("{:?}", self.counts);
    }
}

fn tell(seed: u64, operations: u64, segment_bytes: u64) -> BTreeMap<&'static str, u64> {
    eprintln!("seed {seed}, {operations} operations, segments of {segment_bytes} bytes");
    let mut tale = Tale::begin(seed, segment_bytes);
    let mut awake = true;
    for _ in 0..operations {
        if tale.random.once_in(60) {
            awake = !awake;
        }
        tale.step(awake);
    }
    tale.end();
    tale.counts
}

#[test]
fn a_copy_is_the_source_at_every_point_of_both_windows() {
    let soak = std::env::var_os("PLAYHEAD_SOAK").is_some();
    let operations = number("PLAYHEAD_OPS").unwrap_or(if soak { 100_000 } else { 1000 });
    let seed = number("PLAYHEAD_SEED").unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        u64::from(now.subsec_nanos()) ^ (now.as_secs() << 20)
    });
    tell(seed, operations, Random::new(seed).pick(&[64 << 10, 128 << 10, 256 << 10]));
}

fn source(disk: &SimFiles) -> (Group, Volume) {
    let options = Options { segment_bytes: SMALL, background: false };
    disk.create_dir(Path::new("/store")).unwrap();
    disk.sync_dir(Path::new("/")).unwrap();
    let group = Group::create(disk.files(), Path::new(DIR), "g", &options).unwrap();
    let volume = group.add_volume("v", NewBase::Sparse { blocks: 1 << 20 }).unwrap();
    (group, volume)
}

fn write(volume: &Volume, lba: u64, blocks: u64, byte: u8) {
    let data = vec![byte; blocks as usize * 512];
    volume.submit(&[Change::Write { lba, data: &data }]).unwrap();
}

/// Moves the edge to the segment of the head.
fn trim(group: &Group) {
    group.tend().unwrap();
    group.trim_to(group.head().lsn).unwrap();
}

#[test]
fn a_copy_left_behind_is_brought_up_to_date_by_what_changed_alone() {
    let (here, there) = (SimFiles::new(), disk());
    let (group, volume) = source(&here);
    for i in 0..400 {
        write(&volume, i * 64, 16, (i % 250) as u8 + 1);
    }
    let mut copy = copier(&group, &there, SMALL);
    assert_eq!(level(&mut copy), 400 * 16 * 512, "zeros are not moved");
    // Behind, and the window moves on without it, several times; blocks are changed more than once.
    let mut changed = 0;
    for round in 0..5_u8 {
        for i in 0..20 {
            write(&volume, 300_000 + i * 100, 8, round * 20 + (i as u8) + 1);
        }
        write(&volume, 40_000 + u64::from(round) * 1000, 24, 9);
        changed += 24 * 512;
        trim(&group);
    }
    changed += 20 * 8 * 512;
    assert!(group.window().edge.lsn > copy.follower().unwrap().received());
    let moved = level(&mut copy);
    assert!(moved > 0 && moved <= changed, "moved {moved} bytes where {changed} changed");
    let mine = copy.follower().unwrap().group().clone();
    assert_eq!(contents_at(&mine, mine.head().lsn), contents_at(&group, group.head().lsn));
    // By its log alone nothing is moved.
    write(&volume, 5, 8, 77);
    assert_eq!(level(&mut copy), 0);
}

#[test]
fn what_was_noted_survives_the_source_and_a_rewind_in_between_is_counted() {
    let (mut here, there) = (SimFiles::new(), disk());
    let (group, volume) = source(&here);
    for i in 0..50 {
        write(&volume, i * 16, 16, 1);
    }
    let back = group.head().lsn;
    for i in 0..10 {
        write(&volume, i * 16, 16, 2);
    }
    let mut copy = copier(&group, &there, SMALL);
    level(&mut copy);
    copy.let_go();
    // What the copy has is undone without a record of its own that says so.
    group.rewind(back).unwrap();
    write(&volume, 5000, 8, 3);
    trim(&group);
    for _ in 0..30 {
        write(&volume, 9000, 16, 4);
    }
    trim(&group);
    assert!(group.rewinds().is_empty(), "the window has passed the rewind");
    drop((group, volume));
    here = here.kill(5);
    let options = Options { segment_bytes: SMALL, background: false };
    let group = Group::open(here.files(), Path::new(DIR), &options).unwrap();
    let mut copy = copier(&group, &there, SMALL);
    let moved = level(&mut copy);
    assert!(moved > 0 && moved <= (10 * 16 + 8 + 16) * 512, "moved {moved} bytes");
    let mine = copy.follower().unwrap().group().clone();
    assert_eq!(contents_at(&mine, mine.head().lsn), contents_at(&group, group.head().lsn));
}

#[test]
fn a_first_synchronisation_goes_on_after_a_crash_while_hosts_write() {
    let (here, mut there) = (SimFiles::new(), disk());
    let (group, volume) = source(&here);
    for i in 0..3000 {
        write(&volume, i * 96, 16, (i % 250) as u8 + 1);
        if i % 100 == 0 {
            trim(&group);
        }
    }
    let mut total = 0;
    for round in 0..12 {
        let mut copy = copier(&group, &there, SMALL);
        for step in 0..3 {
            copy.step().unwrap();
            write(&volume, round * 7 + step, 1, 5);
            if round % 3 == 0 {
                trim(&group);
            }
        }
        total = copy.sweep().map_or(total, |f| f.moved_bytes);
        drop(copy);
        there = there.kill(round);
    }
    let mut copy = copier(&group, &there, SMALL);
    level(&mut copy);
    let mine = copy.follower().unwrap().group().clone();
    assert_eq!(contents_at(&mine, mine.head().lsn), contents_at(&group, group.head().lsn));
}

/// A copy's first synchronisation, a log that is followed, a rewind in it, a gap, and what comes after.
fn life(there: &SimFiles) -> (SimFiles, Group) {
    let here = SimFiles::new();
    let (group, volume) = source(&here);
    let mut copy = copier(&group, there, SMALL);
    let mut told = |n: u64| {
        for _ in 0..n {
            if copy.step().is_err() {
                return;
            }
        }
    };
    for i in 0..20 {
        write(&volume, i * 64, 16, i as u8 + 1);
    }
    told(40);
    write(&volume, 3, 9, 200);
    told(1);
    let back = group.head().lsn;
    for i in 0..12 {
        write(&volume, i * 8, 16, 100);
        told(1);
    }
    group.rewind(back).unwrap();
    for i in 0..12 {
        write(&volume, 64 + i * 8, 16, 101);
        told(1);
    }
    told(10);
    for i in 0..20 {
        write(&volume, 2000 + i * 8, 16, 102);
    }
    trim(&group);
    told(20);
    drop(copy);
    (here, group)
}

#[test]
fn power_fails_at_every_write_of_a_copy() {
    let whole = disk();
    let start = whole.boundaries();
    life(&whole);
    let boundaries = whole.boundaries() - start;
    let every = if std::env::var_os("PLAYHEAD_SOAK").is_some() { 1 } else { 3 };
    for n in (1..boundaries).step_by(every) {
        let there = disk();
        there.crash_at(start + n);
        let (here, group) = life(&there);
        let expected = contents_at(&group, group.head().lsn);
        group.flush().unwrap();
        for seed in [0, 1, FIRST_RANDOM_SEED + n] {
            let (here, there) = (here.copy().kill(0), there.survivor(seed));
            let options = Options { segment_bytes: SMALL, background: false };
            let group = Group::open(here.files(), Path::new(DIR), &options).unwrap();
            let mut copy = copier(&group, &there, SMALL);
            let step = (0..200).find_map(|_| match copy.step() {
                Ok(Step::Busy) => None,
                other => Some(other),
            });
            assert!(matches!(step, Some(Ok(Step::Level))), "boundary {n}, seed {seed}: {step:?}");
            let mine = copy.follower().unwrap().group().clone();
            check_bytes((&here, &group), (&there, &mine), SMALL);
            assert_eq!(contents_at(&mine, mine.head().lsn), expected, "boundary {n}, seed {seed}");
        }
    }
    eprintln!("{boundaries} boundaries");
}

#[test]
fn what_the_source_may_still_lose_is_not_given_away() {
    let (here, there) = (SimFiles::new(), disk());
    let (group, volume) = source(&here);
    write(&volume, 0, 8, 1);
    let mut copy = copier(&group, &there, SMALL);
    level(&mut copy);
    for i in 0..40 {
        write(&volume, i * 8, 16, 2);
        copy.step().unwrap();
        let received = copy.follower().unwrap().received();
        assert!(received <= group.durable_lsn() + 64 + SMALL, "ahead of what is durable");
    }
    copy.let_go();
    for seed in 0..8 {
        let after = here.survivor(seed);
        let options = Options { segment_bytes: SMALL, background: false };
        let group = Group::open(after.files(), Path::new(DIR), &options).unwrap();
        let mut copy = copier(&group, &there.copy(), SMALL);
        level(&mut copy);
    }
}

#[test]
fn a_copy_of_another_history_is_not_fed() {
    let (here, there) = (SimFiles::new(), disk());
    let (group, volume) = source(&here);
    write(&volume, 0, 8, 1);
    let older = here.copy();
    for i in 0..10 {
        write(&volume, i, 8, 2);
    }
    let mut copy = copier(&group, &there, SMALL);
    level(&mut copy);
    copy.let_go();
    drop((group, volume));
    // The source is restored from long ago, and goes its own way.
    let options = Options { segment_bytes: SMALL, background: false };
    let group = Group::open(older.kill(0).files(), Path::new(DIR), &options).unwrap();
    let mut copy = copier(&group, &there, SMALL);
    let step = (0..5).find_map(|_| copy.step().err());
    assert!(matches!(step, Some(Trouble::Copy(_) | Trouble::Diverged(_))), "{step:?}");
    let volume = group.volume("v").unwrap();
    for i in 0..20 {
        write(&volume, i, 8, 3);
    }
    group.flush().unwrap();
    let step = (0..5).find_map(|_| copy.step().err());
    assert!(matches!(step, Some(Trouble::Diverged(_))), "{step:?}");
}

#[test]
fn a_copy_takes_no_changes_and_is_promoted_with_its_history() {
    let (here, there) = (SimFiles::new(), disk());
    let (group, volume) = source(&here);
    write(&volume, 0, 8, 1);
    let before = group.head().lsn;
    let mut copy = copier(&group, &there, SMALL);
    let open = |disk: &SimFiles| {
        let options = Options { segment_bytes: SMALL, background: false };
        Group::open(disk.files(), Path::new(COPY_DIR), &options)
    };
    copy.step().unwrap();
    let half = promote(&there, false);
    assert!(half.is_err(), "not consistent yet");
    level(&mut copy);
    write(&volume, 4, 8, 2);
    let after = group.head().lsn;
    write(&volume, 2, 1, 3);
    level(&mut copy);
    let mine = copy.follower().unwrap().group().clone();
    let volume = mine.volume("v").unwrap();
    assert!(volume.submit(&[Change::Zero { lba: 0, count: 1 }]).is_err());
    assert!(volume.compare_and_write(0, &[1; 512], &[2; 512]).is_err());
    assert!(mine.bookmark("b", playhead_journal::BookmarkKind::Crash).is_err());
    assert!(mine.rewind(before).is_err());
    assert!(mine.open_image("w", after, true).is_err());
    assert!(mine.add_volume("w", NewBase::Sparse { blocks: 8 }).is_err());
    assert!(mine.remove_volume("v", true).is_err());
    assert_eq!(mine.head(), group.head());
    assert!(promote(&there, false).is_err(), "it is open");
    let uuid = group.volumes()[0].uuid;
    copy.let_go();
    drop((mine, volume, copy, group));
    assert!(open(&there).is_err(), "a copy is not opened as production");
    promote(&there, false).unwrap();
    let group = open(&there).unwrap();
    assert_eq!(group.volumes()[0].uuid, uuid);
    let volume = group.volume("v").unwrap();
    let mut block = [0; 512];
    volume.read(2, &mut block).unwrap();
    assert_eq!(block, [3; 512]);
    group.rewind(after).unwrap();
    volume.read(2, &mut block).unwrap();
    assert_eq!(block, [1; 512]);
    write(&volume, 100, 8, 4);
}

#[test]
fn volumes_come_and_go_on_the_copy_too() {
    let (here, there) = (SimFiles::new(), disk());
    let (group, volume) = source(&here);
    write(&volume, 0, 8, 1);
    let mut copy = copier(&group, &there, SMALL);
    level(&mut copy);
    let path = PathBuf::from("/store/old.img");
    here.poke(&path, 0, &[7; 64 * 512]);
    let adopted = group.add_volume("old", NewBase::Adopt { path }).unwrap();
    write(&adopted, 3, 1, 8);
    let sparse = group.add_volume("new", NewBase::Sparse { blocks: 100 }).unwrap();
    write(&sparse, 99, 1, 9);
    level(&mut copy);
    let mine = copy.follower().unwrap().group().clone();
    assert_eq!(contents_at(&mine, mine.head().lsn), contents_at(&group, group.head().lsn));
    group.remove_volume("new", true).unwrap();
    group.remove_volume("v", true).unwrap();
    let again = group.add_volume("v", NewBase::Sparse { blocks: 50 }).unwrap();
    write(&again, 1, 1, 5);
    level(&mut copy);
    assert_eq!(contents_at(&mine, mine.head().lsn), contents_at(&group, group.head().lsn));
    assert_eq!(mine.volumes().len(), 2);
    // The same across a gap.
    group.remove_volume("old", false).unwrap();
    group.add_volume("third", NewBase::Sparse { blocks: 70 }).unwrap();
    for _ in 0..20 {
        write(&again, 1, 40, 6);
        trim(&group);
    }
    drop(mine);
    level(&mut copy);
    let mine = copy.follower().unwrap().group().clone();
    assert_eq!(contents_at(&mine, mine.head().lsn), contents_at(&group, group.head().lsn));
    assert_eq!(there.list(&Path::new(COPY_DIR).join("base")).unwrap().len(), 2);
    let facts = group.facts().unwrap();
    assert_eq!(facts.volumes.len(), 2);
}

fn promote(disk: &SimFiles, anyway: bool) -> Result<()> {
    playhead_journal::promote(disk.files(), Path::new(COPY_DIR), anyway)
}

fn open_promoted(disk: &SimFiles) -> Group {
    let options = Options { segment_bytes: SMALL, background: false };
    Group::open(disk.files(), Path::new(COPY_DIR), &options).unwrap()
}

/// What a host wrote to an image of the source, which the log carries, is nobody's on a copy; also when the copy, promoted, gives
/// numbers to lines of history itself, and has never seen the record that began the image's.
#[test]
fn what_was_written_to_an_image_of_the_source_never_shows_on_a_promoted_copy() {
    let (here, there) = (SimFiles::new(), disk());
    let (group, volume) = source(&here);
    write(&volume, 0, 8, 1);
    let image = group.open_image("w", group.head().lsn, true).unwrap();
    let branch = image.volume("v").unwrap();
    for _ in 0..4 {
        write(&volume, 100, 100, 4);
    }
    assert!(
        group.head().lsn > SMALL,
        "the copy gets nothing of the segment that says what line the image is"
    );
    let mut copy = copier(&group, &there, SMALL);
    level(&mut copy);
    write(&branch, 0, 8, 9);
    write(&volume, 8, 8, 2);
    let point = group.head().lsn;
    write(&volume, 8, 8, 3);
    level(&mut copy);
    copy.let_go();
    drop((image, branch, volume, group, copy));
    promote(&there, false).unwrap();
    let group = open_promoted(&there);
    let mut block = [0; 512];
    group.rewind(point).unwrap();
    group.close().unwrap();
    drop(group);
    let group = open_promoted(&there);
    let volume = group.volume("v").unwrap();
    volume.read(0, &mut block).unwrap();
    assert_eq!(block, [1; 512], "production, rewound and opened again");
    group.settle(&mut |_, _| true).unwrap();
    volume.read(0, &mut block).unwrap();
    assert_eq!(block, [1; 512], "its base");
}

/// Where a segment begins there is nothing before it to compare in the same one.
#[test]
fn a_copy_of_another_history_is_not_fed_where_a_segment_begins_either() {
    let (here, there) = (SimFiles::new(), disk());
    let (group, volume) = source(&here);
    write(&volume, 0, 8, 1);
    let older = here.copy();
    let mut copy = copier(&group, &there, SMALL);
    level(&mut copy);
    // Up to the very end of the segment, whose length is a multiple of a record's.
    while group.head().lsn % SMALL != 0 {
        volume.submit(&[Change::Zero { lba: 0, count: 1 }]).unwrap();
        assert!(group.head().lsn <= SMALL);
    }
    level(&mut copy);
    assert_eq!(copy.follower().unwrap().received(), SMALL + 64);
    copy.let_go();
    drop((group, volume));
    let options = Options { segment_bytes: SMALL, background: false };
    let group = Group::open(older.kill(0).files(), Path::new(DIR), &options).unwrap();
    let volume = group.volume("v").unwrap();
    for i in 0..40 {
        write(&volume, i, 8, 3);
    }
    group.flush().unwrap();
    let mut copy = copier(&group, &there, SMALL);
    let step = (0..50).find_map(|_| copy.step().err());
    assert!(matches!(step, Some(Trouble::Diverged(_))), "{step:?}");
}

#[test]
fn a_copy_knows_stretches_in_which_a_volume_is_not_in_step_with_its_production() {
    let (here, there) = (SimFiles::new(), disk());
    let (group, volume) = source(&here);
    write(&volume, 0, 8, 1);
    let mut copy = copier(&group, &there, SMALL);
    level(&mut copy);
    let begin = volume.begin_resync().unwrap().lsn;
    write(&volume, 0, 8, 2);
    let inside = group.head().lsn;
    write(&volume, 8, 8, 2);
    level(&mut copy);
    let refused = |copy: &Copier, lsn: Lsn| {
        let mine = copy.follower().unwrap().group();
        let image = mine.open_image("i", lsn, false);
        assert!(matches!(image, Err(Error::Inconsistent { after: None, .. })), "{lsn}");
        assert_eq!(mine.resync_spans(), group.resync_spans());
    };
    refused(&copy, inside);
    copy.follower().unwrap().group().open_image("i", begin, false).unwrap();
    copy.follower().unwrap().group().close_image("i").unwrap();
    // Power fails; whatever the copy then has, it knows.
    let mut copy = copier(&group, &there.survivor(FIRST_RANDOM_SEED), SMALL);
    level(&mut copy);
    refused(&copy, inside);
    drop(copy);
    let there = there.kill(0);
    let mut copy = copier(&group, &there, SMALL);
    level(&mut copy);
    // Its window passes the beginning.
    for _ in 0..20 {
        write(&volume, 0, 40, 3);
    }
    level(&mut copy);
    let mine = copy.follower().unwrap().group().clone();
    mine.tend().unwrap();
    mine.trim_to(mine.head().lsn).unwrap();
    assert!(mine.window().edge.lsn > begin);
    let head = mine.head().lsn;
    refused(&copy, head);
    copy.let_go();
    drop((mine, copy));
    // Not by accident, but whoever has nothing better can have it, and finds it said there too.
    assert!(matches!(promote(&there, false), Err(Error::Inconsistent { .. })));
    let forced = there.copy();
    promote(&forced, true).unwrap();
    let promoted = open_promoted(&forced);
    assert!(promoted.volume("v").unwrap().resyncing());
    assert!(promoted.check_consistent(promoted.head().lsn).is_err());
    drop(promoted);
    let mut copy = copier(&group, &there, SMALL);
    level(&mut copy);
    refused(&copy, head);
    // Left behind in the midst of it, it begins anew inside of it.
    for _ in 0..20 {
        write(&volume, 100, 40, 4);
        trim(&group);
    }
    level(&mut copy);
    let point = copy.follower().unwrap().group().window().edge.lsn;
    assert!(point > head, "it was synchronised anew");
    refused(&copy, point);
    write(&volume, 8, 8, 5);
    volume.end_resync().unwrap();
    let end = group.head().lsn;
    write(&volume, 0, 8, 5);
    level(&mut copy);
    for _ in 0..2 {
        let mine = copy.follower().unwrap().group().clone();
        assert!(mine.open_image("i", point, false).is_err());
        mine.open_image("i", end, false).unwrap();
        mine.close_image("i").unwrap();
        assert_eq!(mine.resync_spans().len(), 1);
        copy.let_go();
        drop((mine, copy));
        copy = copier(&group, &there, SMALL);
        level(&mut copy);
    }
    copy.let_go();
    drop(copy);
    promote(&there, false).unwrap();
    assert!(!open_promoted(&there).volume("v").unwrap().resyncing());
}

/// A stretch begins, and behind it is a rewind that cannot be followed: the copy's window ends before it is synchronised anew.
#[test]
fn a_copy_that_cannot_follow_still_knows_what_began_before() {
    let (here, there) = (SimFiles::new(), disk());
    let (group, volume) = source(&here);
    write(&volume, 0, 8, 1);
    let old = group.head().lsn;
    write(&volume, 0, 8, 2);
    let mut copy = copier(&group, &there, SMALL);
    level(&mut copy);
    copy.let_go();
    volume.begin_resync().unwrap();
    write(&volume, 0, 8, 3);
    group.rewind_anywhere(old).unwrap();
    let options = Options { segment_bytes: SMALL, background: false };
    let mut follower = Follower::open(there.files(), Path::new(COPY_DIR), &options).unwrap();
    let Shipment::Chunk(chunk) = group.ship(follower.received(), Lsn::MAX, 1 << 20).unwrap() else {
        panic!("nothing to follow");
    };
    let taken = follower.take(&chunk, &group.facts().unwrap()).unwrap();
    assert!(matches!(taken, Taken::Stuck(_)));
    let mine = follower.group().clone();
    assert!(mine.check_consistent(mine.head().lsn).is_err());
    mine.settle(&mut |_, _| true).unwrap();
    drop((mine, follower));
    let there = there.kill(0);
    let refused = promote(&there, false);
    assert!(matches!(refused, Err(Error::Inconsistent { .. })), "{refused:?}");
}
