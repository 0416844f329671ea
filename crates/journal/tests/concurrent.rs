//! Many threads on the machine's own files, with the group's housekeeping running: writers on their own ranges and on shared ones,
//! readers of images, and somebody who trims, settles and rewinds.
//!
//! What threads do at once has no one right outcome, so each block says who wrote it and when: a block is never torn or mixed; a
//! request is all there or not at all; a writer's own range is what it last wrote; an image read twice gives the same, and is some
//! state between its neighbours. `PLAYHEAD_SEED` and `PLAYHEAD_SECONDS` replay and lengthen.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod medium;
mod model;

use std::{
    sync::{
        atomic::{AtomicBool, AtomicU64, Ordering},
        Arc,
    },
    time::{Duration, Instant},
};

use medium::random::Random;
use model::{
    block::{Token, BLOCK_BYTES},
    Act,
};
use parking_lot::FairMutex;
use playhead_journal::{files::DiskFiles, BookmarkKind, Error, Group, NewBase, Options, Policy, Volume};

const WRITERS: u64 = 3;
/// Blocks of each writer's own range; the shared range lies behind them.
const OWN_BLOCKS: u64 = 512;
/// The shared range is written in whole cells, so that a cell always is of one request.
const CELL_BLOCKS: u64 = 16;
const CELLS: u64 = 16;
const BLOCKS: u64 = WRITERS * OWN_BLOCKS + CELLS * CELL_BLOCKS;

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable)
        .map_or(default, |v| v.parse().unwrap_or_else(|_| panic!("{variable}={v} is no number")))
}

/// Whose block it is: tag and index; zeros are `(0, 0)`. Panics if it is nobody's.
fn whose(block: &[u8], what: &str) -> (u64, u64) {
    if block.iter().all(|b| *b == 0) {
        return (0, 0);
    }
    let word = |i: usize| u64::from_le_bytes(block[i * 8..i * 8 + 8].try_into().unwrap());
    let mut expected = [0; BLOCK_BYTES];
    Token::Data { tag: word(0), index: word(1) }.fill(&mut expected);
    assert!(block == expected, "{what}: {}", Token::describe(block));
    (word(0), word(1))
}

/// The shared cells, each of one request; who wrote them.
fn cells(volume: &Volume, what: &str) -> Vec<u64> {
    let mut buf = vec![0; (CELLS * CELL_BLOCKS) as usize * BLOCK_BYTES];
    volume.read(WRITERS * OWN_BLOCKS, &mut buf).unwrap();
    let tags = buf.chunks_exact(CELL_BLOCKS as usize * BLOCK_BYTES).enumerate().map(|(cell, bytes)| {
        let blocks: Vec<(u64, u64)> = bytes.chunks_exact(BLOCK_BYTES).map(|b| whose(b, what)).collect();
        for (i, (tag, index)) in blocks.iter().enumerate() {
            assert_eq!(*tag, blocks[0].0, "{what}: cell {cell} is of two requests: {blocks:?}");
            assert!(*tag == 0 || *index == i as u64, "{what}: cell {cell}: {blocks:?}");
        }
        blocks[0].0
    });
    tags.collect()
}

struct Shared {
    group: Group,
    stop: AtomicBool,
    tag: AtomicU64,
    /// What each writer's range holds, block by block, as of its last acknowledged request; locked while it writes and notes.
    own: Vec<FairMutex<Vec<(u64, u64)>>>,
    images_seen: AtomicU64,
    writes: AtomicU64,
    rewinds: AtomicU64,
}

impl Shared {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    fn tag(&self) -> u64 {
        self.tag.fetch_add(1, Ordering::Relaxed)
    }
}

fn writer(shared: &Shared, me: u64, seed: u64) {
    let mut random = Random::new(seed);
    let volume = shared.group.volume("v").unwrap();
    while shared.goes_on() {
        let mut own = shared.own[me as usize].lock();
        let mut acts = Vec::new();
        for _ in 0..random.between(1, 4) {
            let count = random.between(1, 40);
            let at = random.below(OWN_BLOCKS - count);
            let tag = shared.tag();
            let lba = me * OWN_BLOCKS + at;
            let act =
                if random.once_in(6) { Act::Unmap { lba, count } } else { Act::Write { lba, count, tag } };
            for i in 0..count {
                own[(at + i) as usize] = if matches!(act, Act::Unmap { .. }) { (0, 0) } else { (tag, i) };
            }
            acts.push(act);
        }
        if random.once_in(2) {
            let lba = WRITERS * OWN_BLOCKS + random.below(CELLS) * CELL_BLOCKS;
            acts.push(Act::Write { lba, count: CELL_BLOCKS, tag: shared.tag() });
        }
        let payloads: Vec<Vec<u8>> = acts.iter().map(Act::payload).collect();
        let changes: Vec<_> = acts.iter().zip(&payloads).map(|(a, p)| a.change(p)).collect();
        volume.submit(&changes).unwrap();
        shared.writes.fetch_add(1, Ordering::Relaxed);
        if random.once_in(8) {
            check_own(&volume, me, &own, "production");
        }
        drop(own);
        if random.once_in(30) {
            let (done, wait) = std::sync::mpsc::channel();
            let head = shared.group.head().lsn;
            shared.group.flush_then(Box::new(move |outcome| done.send(outcome).unwrap()));
            wait.recv().unwrap().unwrap();
            assert!(shared.group.durable_lsn() >= head, "a flush covers what was acknowledged before it");
        }
    }
}

fn check_own(volume: &Volume, me: u64, own: &[(u64, u64)], what: &str) {
    let mut buf = vec![0; OWN_BLOCKS as usize * BLOCK_BYTES];
    volume.read(me * OWN_BLOCKS, &mut buf).unwrap();
    for (i, (block, expected)) in buf.chunks_exact(BLOCK_BYTES).zip(own).enumerate() {
        let found = whose(block, what);
        assert_eq!(found, *expected, "{what}, block {} of writer {me}", i);
    }
}

fn imager(shared: &Shared, me: u64, seed: u64) {
    let mut random = Random::new(seed);
    let group = &shared.group;
    let mut number = 0;
    while shared.goes_on() {
        number += 1;
        let name = format!("image-{me}-{number}");
        // With all writers held, what they last wrote is what an image of now shows, for ever.
        let frozen: Vec<Vec<(u64, u64)>>;
        let lsn;
        {
            let guards: Vec<_> = shared.own.iter().map(|o| o.lock()).collect();
            lsn = group.head().lsn;
            frozen = guards.iter().map(|g| (**g).clone()).collect();
        }
        if random.once_in(3) {
            group.bookmark(&format!("mark-{me}-{number}"), BookmarkKind::Crash).unwrap();
        }
        std::thread::sleep(Duration::from_millis(random.below(30)));
        let writable = random.once_in(3);
        let image = match group.open_image(&name, lsn, writable) {
            // The window may have left it behind meanwhile.
            Err(Error::OutsideWindow { .. }) => continue,
            opened => opened.unwrap(),
        };
        let volume = image.volume("v").unwrap();
        let first = cells(&volume, &name);
        for round in 0..3 {
            for (writer, own) in frozen.iter().enumerate() {
                check_own(&volume, writer as u64, own, &format!("{name} at {lsn}, round {round}"));
            }
            assert_eq!(cells(&volume, &name), first, "{name} read twice");
            std::thread::sleep(Duration::from_millis(random.below(20)));
        }
        if writable {
            let act = Act::Write { lba: 3, count: 30, tag: shared.tag() };
            volume.submit(&[act.change(&act.payload())]).unwrap();
            let mut buf = vec![0; 30 * BLOCK_BYTES];
            volume.read(3, &mut buf).unwrap();
            assert!(buf == act.payload(), "{name}: what was written to the branch");
        }
        group.close_image(&name).unwrap();
        assert!(matches!(volume.read(0, &mut [0; BLOCK_BYTES]), Err(Error::Gone(_))));
        shared.images_seen.fetch_add(1, Ordering::Relaxed);
    }
}

/// Moves the edge, tends, settles, and sometimes, with the writers held, takes production back to a noted moment.
fn mover(shared: &Shared, seed: u64) {
    let mut random = Random::new(seed);
    let group = &shared.group;
    let mut noted = None;
    while shared.goes_on() {
        std::thread::sleep(Duration::from_millis(random.between(5, 60)));
        match random.below(7) {
            0 => {
                let window = group.window();
                let middle = window.head.lsn - (window.head.lsn - window.edge.lsn) / 2;
                // Housekeeping may have moved the edge past it.
                match group.trim_to(middle.max(group.window().edge.lsn)) {
                    Ok(_) | Err(Error::OutsideWindow { .. }) => {}
                    Err(e) => panic!("trim: {e}"),
                }
            }
            1 => group.tend().unwrap(),
            2 => match group.settle(&mut |_, _| true) {
                // Open images stand in the way.
                Ok(()) | Err(Error::Conflict(_)) => {}
                Err(e) => panic!("settle: {e}"),
            },
            3 | 4 => {
                let guards: Vec<_> = shared.own.iter().map(|o| o.lock()).collect();
                let own: Vec<Vec<(u64, u64)>> = guards.iter().map(|g| (**g).clone()).collect();
                noted = Some((group.head().lsn, own));
            }
            5 => {
                let Some((lsn, own)) = noted.take() else { continue };
                let mut guards: Vec<_> = shared.own.iter().map(|o| o.lock()).collect();
                match group.rewind(lsn) {
                    Ok(_) => guards.iter_mut().zip(own).for_each(|(guard, own)| **guard = own),
                    Err(Error::OutsideWindow { .. }) => continue,
                    Err(e) => panic!("rewind: {e}"),
                }
                shared.rewinds.fetch_add(1, Ordering::Relaxed);
            }
            _ => {
                cells(&group.volume("v").unwrap(), "production");
            }
        }
    }
}

#[test]
fn threads_never_see_torn_mixed_or_lost_blocks() {
    let seed = number("PLAYHEAD_SEED", u64::from(std::process::id()));
    let soak = std::env::var_os("PLAYHEAD_SOAK").is_some();
    let seconds = number("PLAYHEAD_SECONDS", if soak { 600 } else { 5 });
    eprintln!("seed {seed}, {seconds} seconds");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("g");
    let options = Options { segment_bytes: 256 << 10, background: true };
    let group = Group::create(Arc::new(DiskFiles), &path, "g", &options).unwrap();
    group.add_volume("v", NewBase::Sparse { blocks: BLOCKS }).unwrap();
    group.set_policy(Policy { limit_bytes: Some(16 << 20), ..Policy::default() });
    let shared = Shared {
        group: group.clone(),
        stop: AtomicBool::new(false),
        tag: AtomicU64::new(1),
        own: (0..WRITERS).map(|_| FairMutex::new(vec![(0, 0); OWN_BLOCKS as usize])).collect(),
        images_seen: AtomicU64::new(0),
        writes: AtomicU64::new(0),
        rewinds: AtomicU64::new(0),
    };
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for me in 0..WRITERS {
            let shared = &shared;
            threads.push(scope.spawn(move || writer(shared, me, seed * 10 + me)));
        }
        for me in 0..2 {
            let shared = &shared;
            threads.push(scope.spawn(move || imager(shared, me, seed * 100 + me)));
        }
        threads.push(scope.spawn(|| mover(&shared, seed * 1000)));
        let end = Instant::now() + Duration::from_secs(seconds);
        // Ends early if somebody has failed: the others must not wait for ever.
        while Instant::now() < end && !threads.iter().any(std::thread::ScopedJoinHandle::is_finished) {
            std::thread::sleep(Duration::from_millis(20));
        }
        shared.stop.store(true, Ordering::Relaxed);
    });
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let (writes, images, rewinds) =
        (count(&shared.writes), count(&shared.images_seen), count(&shared.rewinds));
    eprintln!("{writes} batches, {images} images, {rewinds} rewinds");
    let check = |group: &Group, own: &[FairMutex<Vec<(u64, u64)>>], what: &str| {
        let volume = group.volume("v").unwrap();
        for (me, own) in own.iter().enumerate() {
            check_own(&volume, me as u64, &own.lock(), what);
        }
        cells(&volume, what)
    };
    let last = check(&group, &shared.own, "at the end");
    // Images may have held the journal over its limit; but nothing may have failed.
    let alert = group.stats().alert.unwrap_or_default();
    assert!(!alert.contains("failed") && !alert.contains("stopped"), "{alert}");
    group.close().unwrap();
    let Shared { group: other, own, .. } = shared;
    drop((group, other));
    let verdict = playhead_journal::reader::verify(&DiskFiles, &path).unwrap();
    assert_eq!(verdict.problems, Vec::<String>::new());
    let group = Group::open(Arc::new(DiskFiles), &path, &options).unwrap();
    assert_eq!(check(&group, &own, "opened again"), last);
}
