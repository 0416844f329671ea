//! The medium fails in ways short of losing power: full, refusing, damaged, newer, missing, shared.
//!
//! Everywhere the same must hold: the error says what is wrong, nothing acknowledged is lost, and wrong data is never given out.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod medium;
mod model;

use std::path::{Path, PathBuf};

use medium::{Operation, SimFiles, IO_ERROR, NO_SPACE};
use model::{
    block::BLOCK_BYTES,
    difference,
    rope::{Rope, Run},
    Act,
};
use playhead_journal::{files::Files, BookmarkKind, Change, Error, Group, NewBase, Options, Policy, Volume};

const DIR: &str = "/store/g";
const OPTIONS: Options = Options { segment_bytes: 64 << 10, background: false };
const BLOCKS: u64 = 1000;

fn create() -> (SimFiles, Group) {
    let medium = SimFiles::new();
    medium.create_dir(Path::new("/store")).unwrap();
    medium.sync_dir(Path::new("/")).unwrap();
    let group = Group::create(medium.files(), Path::new(DIR), "g", &OPTIONS).unwrap();
    group.add_volume("v", NewBase::Sparse { blocks: BLOCKS }).unwrap();
    (medium, group)
}

fn open(medium: &SimFiles) -> Result<Group, Error> {
    Group::open(medium.files(), Path::new(DIR), &OPTIONS)
}

/// What is wrong with what was read.
#[derive(Debug)]
enum Wrong {
    Refused(Error),
    Data(String),
}

impl From<Error> for Wrong {
    fn from(e: Error) -> Wrong {
        Wrong::Refused(e)
    }
}

fn compare(rope: &Rope, volume: &Volume) -> Result<(), Wrong> {
    let mut buf = vec![0; BLOCKS as usize * BLOCK_BYTES];
    volume.read(0, &mut buf)?;
    difference(rope, 0, &buf).map_or(Ok(()), |text| Err(Wrong::Data(text)))
}

/// A volume and what it must hold.
struct Written {
    rope: Rope,
    tag: u64,
}

impl Written {
    fn new() -> Written {
        Written { rope: Rope::of(Run::Zero, BLOCKS), tag: 0 }
    }

    /// Writes 16 blocks somewhere; what was acknowledged is remembered.
    fn write(&mut self, group: &Group) -> Result<(), Error> {
        self.tag += 1;
        let act = Act::Write { lba: self.tag * 37 % (BLOCKS - 16), count: 16, tag: self.tag };
        group.volume("v")?.submit(&[act.change(&act.payload())])?;
        self.rope = act.apply(&self.rope);
        Ok(())
    }

    fn write_many(&mut self, group: &Group, times: usize) {
        for _ in 0..times {
            self.write(group).unwrap();
        }
    }

    /// Reads and compares; `Err` if it cannot be read, a panic if it is wrong.
    fn read(&self, group: &Group) -> Result<(), Error> {
        match compare(&self.rope, &group.volume("v")?) {
            Ok(()) => Ok(()),
            Err(Wrong::Refused(e)) => Err(e),
            Err(Wrong::Data(text)) => panic!("wrong data: {text}"),
        }
    }

    fn check(&self, group: &Group) {
        self.read(group).unwrap();
    }
}

fn is_log(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "seg")
}

fn files_ending(medium: &SimFiles, end: &str) -> Vec<PathBuf> {
    medium.paths().into_iter().filter(|p| p.to_string_lossy().ends_with(end)).collect()
}

#[test]
fn a_full_medium_refuses_writes_and_takes_them_again_when_there_is_space() {
    let (medium, group) = create();
    let mut written = Written::new();
    written.write_many(&group, 20);
    medium.set_capacity(Some(medium.used_bytes() + (150 << 10)));
    let error = loop {
        if let Err(e) = written.write(&group) {
            break e;
        }
        assert!(written.tag < 1000, "a full medium takes all");
    };
    assert!(matches!(error, Error::NoSpace { .. }), "{error:?}");
    written.check(&group);
    for _ in 0..5 {
        assert!(matches!(written.write(&group), Err(Error::NoSpace { .. })));
    }
    // What needs no new segment is still done: reading, flushing, looking at the past.
    group.flush().unwrap();
    let image = group.open_image("i", group.head().lsn, false).unwrap();
    image.volume("v").unwrap().read(0, &mut [0; BLOCK_BYTES]).unwrap();
    drop(image);
    group.close_image("i").unwrap();
    medium.set_capacity(None);
    written.write_many(&group, 30);
    written.check(&group);
    group.close().unwrap();
    drop(group);
    written.check(&open(&medium).unwrap());
}

#[test]
fn a_full_medium_survives_restarts_and_shortening_the_window_helps() {
    let (medium, group) = create();
    let mut written = Written::new();
    medium.set_capacity(Some(1 << 20));
    while written.write(&group).is_ok() {}
    drop(group);
    // The process dies with the medium full; recovery must not need what is not there.
    let medium = medium.kill(1);
    medium.set_capacity(Some(medium.used_bytes()));
    let group = open(&medium).unwrap();
    written.check(&group);
    medium.set_capacity(Some(medium.used_bytes() + (600 << 10)));
    let edge = group.trim_to(group.head().lsn).unwrap();
    assert!(edge.lsn > 400 << 10, "{edge:?}");
    written.write_many(&group, 10);
    written.check(&group);
    // By policy, it goes on for ever in a bounded space.
    group.set_policy(Policy { limit_bytes: Some(300 << 10), ..Policy::default() });
    for _ in 0..300 {
        written.write(&group).unwrap();
        group.tend().unwrap();
    }
    assert!(group.stats().journal_bytes <= 512 << 10, "{:?}", group.stats());
    written.check(&group);
}

#[test]
fn a_batch_that_does_not_fit_leaves_nothing_behind() {
    let (medium, group) = create();
    let mut written = Written::new();
    written.write_many(&group, 3);
    medium.set_capacity(Some(medium.used_bytes() + (100 << 10)));
    let acts: Vec<Act> = (0..40).map(|i| Act::Write { lba: i * 20, count: 16, tag: 0x77 }).collect();
    let payloads: Vec<Vec<u8>> = acts.iter().map(Act::payload).collect();
    let changes: Vec<_> = acts.iter().zip(&payloads).map(|(a, p)| a.change(p)).collect();
    let head = group.head();
    let refused = group.volume("v").unwrap().submit(&changes);
    assert!(matches!(refused, Err(Error::NoSpace { .. })), "{refused:?}");
    assert_eq!(group.head(), head);
    written.check(&group);
    let medium = medium.kill(0);
    let group = open(&medium).unwrap();
    written.check(&group);
    assert_eq!(group.head().lsn, head.lsn);
}

#[test]
fn a_failed_sync_stops_writes_and_keeps_what_was_flushed() {
    let (medium, group) = create();
    let mut flushed = Written::new();
    flushed.write_many(&group, 30);
    group.flush().unwrap();
    let durable = group.durable_lsn();
    let mut written = Written { rope: flushed.rope.clone(), tag: flushed.tag };
    written.write(&group).unwrap();
    medium.set_fault(Some(Box::new(|b| {
        (b.operation == Operation::Sync && is_log(&b.path)).then_some(IO_ERROR)
    })));
    let refused = group.flush();
    assert!(refused.is_err(), "a flush that failed is no flush");
    assert!(group.durable_lsn() <= durable.max(group.head().lsn));
    assert_eq!(group.durable_lsn(), durable);
    // The kernel has forgotten the dirty pages: a second sync that succeeds would be a lie.
    medium.set_fault(None);
    assert!(matches!(group.flush(), Err(Error::Failed { .. })), "{:?}", group.flush());
    let mut more = Written { rope: written.rope.clone(), tag: written.tag };
    assert!(matches!(more.write(&group), Err(Error::Failed { .. })));
    assert!(group.bookmark("b", BookmarkKind::Crash).is_err());
    written.check(&group);
    assert!(group.stats().alert.is_some());
    let _ = group.close();
    drop(group);
    // After power loss the un-synced write is gone, what was flushed is not.
    for seed in 0..10 {
        let survivor = medium.survivor(seed);
        let group = open(&survivor).unwrap();
        assert!(group.head().lsn >= durable);
        flushed.check(&group);
        let mut on = Written { rope: flushed.rope.clone(), tag: flushed.tag };
        on.write_many(&group, 30);
        on.check(&group);
    }
    // Without power loss it is all there.
    let group = open(&medium.kill(0)).unwrap();
    written.check(&group);
}

#[test]
fn a_failed_write_stops_writes_and_loses_nothing() {
    for after in [1, 2, 5, 20] {
        let (medium, group) = create();
        let mut written = Written::new();
        written.write_many(&group, 20);
        let mut count = 0;
        medium.set_fault(Some(Box::new(move |b| {
            if b.operation == Operation::Write && is_log(&b.path) {
                count += 1;
            }
            (count == after).then(|| {
                count += 1;
                IO_ERROR
            })
        })));
        let error = loop {
            if let Err(e) = written.write(&group) {
                break e;
            }
            assert!(written.tag < 200, "no write failed");
        };
        eprintln!("write {after}: {error}");
        written.check(&group);
        drop(group);
        let medium = medium.kill(3);
        let group = open(&medium).unwrap();
        written.check(&group);
        written.write_many(&group, 20);
        written.check(&group);
    }
}

#[test]
fn every_operation_may_fail_once_and_nothing_acknowledged_is_lost() {
    // Each boundary of this workload in turn gives EIO or ENOSPC, once; the group may stop or go on, but must not lie.
    let work = |medium: &SimFiles, group: &Group, written: &mut Written| -> Result<(), Error> {
        for i in 0..40 {
            written.write(group)?;
            match i {
                10 => group.flush().map(|_| ())?,
                15 => group.bookmark("b", BookmarkKind::Crash).map(|_| ())?,
                20 => group.open_image("i", group.head().lsn, false).map(|_| ())?,
                22 => group.close_image("i")?,
                25 => group.tend()?,
                30 => group.trim_to(group.head().lsn).map(|_| ())?,
                35 => group.settle(&mut |_, _| true)?,
                _ => {}
            }
        }
        let _ = medium;
        Ok(())
    };
    let (medium, group) = create();
    let first = medium.boundaries();
    work(&medium, &group, &mut Written::new()).unwrap();
    let last = medium.boundaries();
    assert!(last > first + 50);
    for n in first + 1..=last {
        for errno in [IO_ERROR, NO_SPACE] {
            let (medium, group) = create();
            medium.set_fault(Some(Box::new(move |b| (b.number == n).then_some(errno))));
            let mut written = Written::new();
            let outcome = work(&medium, &group, &mut written);
            let tell = |what: &str, e: &Error| {
                panic!("boundary {n} errno {errno} ({outcome:?}): {what}: {e}");
            };
            if let Err(e) = written.read(&group) {
                tell("reading on", &e);
            }
            // The same group goes on if it can; what it acknowledges counts.
            for _ in 0..10 {
                let _ = written.write(&group);
            }
            if let Err(e) = written.read(&group) {
                tell("reading later", &e);
            }
            drop(group);
            let medium = medium.kill(n);
            let group = open(&medium).unwrap_or_else(|e| {
                tell("opening", &e);
                unreachable!()
            });
            if let Err(e) = written.read(&group) {
                tell("reading after opening", &e);
            }
            written.write_many(&group, 5);
            written.check(&group);
        }
    }
}

/// A closed group with sealed segments, runs, a bookmark and an image; and what it holds.
fn closed() -> (SimFiles, Written, u64, Rope) {
    let (medium, group) = create();
    let mut written = Written::new();
    written.write_many(&group, 40);
    let lsn = group.bookmark("b", BookmarkKind::Crash).unwrap().lsn;
    let then = written.rope.clone();
    group.open_image("i", lsn, false).unwrap();
    written.write_many(&group, 40);
    group.tend().unwrap();
    written.write_many(&group, 3);
    group.close().unwrap();
    (medium, written, lsn, then)
}

/// Opens and reads everything. Whatever is given out must be right; otherwise there must be an error that says why.
fn right_or_refused(medium: &SimFiles, written: &Written, lsn: u64, then: &Rope) -> Result<(), Wrong> {
    let group = open(medium)?;
    let production = group.volume("v").map_err(Wrong::from).and_then(|v| compare(&written.rope, &v));
    let image = |name: &str| compare(then, &group.image(name)?.volume("v")?);
    let kept = image("i");
    let fresh = match group.open_image("fresh", lsn, false) {
        Ok(_) => image("fresh"),
        Err(e) => Err(e.into()),
    };
    let all = [production, kept, fresh];
    // Wrong data is worse than any error.
    let mut first = Ok(());
    for outcome in all {
        match (&first, &outcome) {
            (_, Err(Wrong::Data(_))) => return outcome,
            (Ok(()), _) => first = outcome,
            _ => {}
        }
    }
    first
}

fn reader_is_content(medium: &SimFiles) -> bool {
    let verdict = playhead_journal::reader::verify(&*medium.files(), Path::new(DIR));
    verdict.is_ok_and(|v| v.problems.is_empty())
}

#[test]
fn damaged_bytes_are_noticed_or_do_not_matter() {
    let (medium, written, lsn, then) = closed();
    right_or_refused(&medium.copy(), &written, lsn, &then).unwrap();
    let mut noticed = 0;
    let mut survived = 0;
    let mut verify_only = 0;
    for path in medium.paths() {
        let size = medium.size_of(&path).unwrap();
        if path.starts_with("/store/g/base") || size == 0 || size > 1 << 20 {
            continue;
        }
        let step = (size / 40).max(1);
        for i in 0..40 {
            let at = i * step + i % 7;
            if at >= size {
                break;
            }
            let bad = medium.copy();
            let mut byte = bad.range_of(&path, at, 1).unwrap();
            byte[0] ^= 0x5A;
            bad.poke(&path, at, &byte);
            let outcome = right_or_refused(&bad, &written, lsn, &then);
            match outcome {
                Ok(()) => survived += 1,
                Err(Wrong::Refused(Error::Damaged { .. } | Error::NewerFormat { .. })) => noticed += 1,
                Err(Wrong::Refused(other)) => {
                    panic!("{} byte {at} damaged: {other} ({other:?})", path.display())
                }
                // A payload is not checked each time it is read; the reader that checks everything must tell.
                Err(Wrong::Data(_)) if is_log(&path) && !reader_is_content(&bad) => verify_only += 1,
                Err(Wrong::Data(text)) => panic!("{} byte {at} damaged: {text}", path.display()),
            }
        }
    }
    eprintln!("{noticed} noticed, {verify_only} by the reader only, {survived} did not matter");
    assert!(noticed > 0 && survived > 0);
}

#[test]
fn cut_files_are_noticed_or_do_not_matter() {
    let (medium, written, lsn, then) = closed();
    for path in medium.paths() {
        let size = medium.size_of(&path).unwrap();
        if path.starts_with("/store/g/base") || size == 0 || size > 1 << 20 {
            continue;
        }
        for cut in [0, size / 2, size - 1] {
            let bad = medium.copy();
            bad.resize(&path, cut);
            let outcome = right_or_refused(&bad, &written, lsn, &then);
            match outcome {
                Ok(()) | Err(Wrong::Refused(Error::Damaged { .. })) => {}
                Err(Wrong::Refused(other)) => panic!("{} cut to {cut}: {other} ({other:?})", path.display()),
                Err(Wrong::Data(text)) => panic!("{} cut to {cut}: {text}", path.display()),
            }
        }
    }
}

#[test]
fn lost_files_are_noticed_or_do_not_matter() {
    let (medium, written, lsn, then) = closed();
    for path in medium.paths() {
        let bad = medium.copy();
        bad.lose(&path);
        let outcome = right_or_refused(&bad, &written, lsn, &then);
        match outcome {
            Ok(()) => eprintln!("{} is not missed", path.display()),
            Err(Wrong::Refused(e)) => {
                eprintln!("{}: {e}", path.display());
                assert!(e.to_string().contains(path.file_name().unwrap().to_str().unwrap()), "{e}");
            }
            Err(Wrong::Data(text)) => panic!("{} lost: {text}", path.display()),
        }
    }
}

#[test]
fn the_reader_names_damage() {
    let (medium, ..) = closed();
    let verdict = playhead_journal::reader::verify(&*medium.files(), Path::new(DIR)).unwrap();
    assert_eq!(verdict.problems, Vec::<String>::new());
    let first = files_ending(&medium, ".seg")[0].clone();
    for at in [64, 500, 30_000] {
        let bad = medium.copy();
        let mut byte = bad.range_of(&first, at, 1).unwrap();
        byte[0] ^= 1;
        bad.poke(&first, at, &byte);
        let verdict = playhead_journal::reader::verify(&*bad.files(), Path::new(DIR)).unwrap();
        assert!(!verdict.problems.is_empty(), "byte {at} of {} flipped, nothing said", first.display());
    }
}

#[test]
fn a_newer_format_is_refused_and_left_alone() {
    let (medium, ..) = closed();
    let path = PathBuf::from("/store/g/superblock");
    let size = medium.size_of(&path).unwrap();
    // Both slots say format 99, with good checksums: bytes 8..12 of a slot, its CRC in 28..32 over 0..28 and the text.
    let slot_bytes = size / 2;
    for slot in 0..2 {
        let start = slot * slot_bytes;
        let mut bytes = medium.range_of(&path, start, slot_bytes as usize).unwrap();
        bytes[8..12].copy_from_slice(&99_u32.to_le_bytes());
        let length = u32::from_le_bytes(bytes[12..16].try_into().unwrap()) as usize;
        let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..28]), &bytes[32..32 + length]);
        bytes[28..32].copy_from_slice(&crc.to_le_bytes());
        medium.poke(&path, start, &bytes);
    }
    let before = medium.boundaries();
    match open(&medium) {
        Err(Error::NewerFormat { found: 99, .. }) => {}
        other => panic!("{:?}", other.map(|_| "opened")),
    }
    assert_eq!(medium.boundaries(), before, "a group of a newer format was written to");
}

#[test]
fn a_missing_or_wrong_base_is_named() {
    let (medium, group) = create();
    let raw = PathBuf::from("/store/raw.img");
    medium.poke(&raw, 0, &vec![3; 100 * BLOCK_BYTES]);
    group.add_volume("raw", NewBase::Adopt { path: raw.clone() }).unwrap();
    let mut written = Written::new();
    written.write_many(&group, 5);
    group.close().unwrap();
    drop(group);
    let missing = medium.copy();
    missing.lose(&raw);
    let error = open(&missing).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("raw.img"), "{error}");
    for size in [99 * BLOCK_BYTES as u64, 101 * BLOCK_BYTES as u64, 0] {
        let wrong = medium.copy();
        wrong.resize(&raw, size);
        let error = open(&wrong).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains("raw.img"), "size {size}: {error}");
        // Put right, it opens.
        wrong.resize(&raw, 100 * BLOCK_BYTES as u64);
        written.check(&open(&wrong).unwrap());
    }
    // A size that is no number of blocks cannot be adopted at all.
    let group = open(&medium).unwrap();
    let odd = PathBuf::from("/store/odd.img");
    medium.poke(&odd, 0, &[1; 1000]);
    let refused = group.add_volume("odd", NewBase::Adopt { path: odd });
    assert!(matches!(refused, Err(Error::Invalid(_))), "{:?}", refused.map(|_| ()));
    // Nor one that a volume has already.
    let again = group.add_volume("again", NewBase::Adopt { path: raw });
    assert!(again.is_err(), "a base is adopted twice");
    assert!(group.add_volume("gone", NewBase::Adopt { path: "/store/none".into() }).is_err());
    assert_eq!(group.volumes().len(), 2);
}

#[test]
fn a_group_opens_once() {
    let (medium, group) = create();
    assert!(matches!(open(&medium), Err(Error::Busy { .. })));
    let created = Group::create(medium.files(), Path::new(DIR), "g", &OPTIONS);
    assert!(created.is_err(), "a group is created over another");
    Written::new().write(&group).unwrap();
    group.close().unwrap();
    drop(group);
    open(&medium).unwrap();
}

/// Only a full medium is helped by giving up history.
#[test]
fn a_medium_that_fails_costs_no_history() {
    let (medium, group) = create();
    group.close().unwrap();
    drop(group);
    let options = Options { background: true, ..OPTIONS };
    let group = Group::open(medium.files(), Path::new(DIR), &options).unwrap();
    let (volume, edge) = (group.volume("v").unwrap(), group.window().edge);
    let write = || volume.submit(&[Change::Write { lba: 0, data: &[5; 16 * BLOCK_BYTES] }]);
    while group.head().lsn < 4 * OPTIONS.segment_bytes {
        write().unwrap();
    }
    medium.set_fault(Some(Box::new(|b| {
        (is_log(&b.path) && b.operation == Operation::Allocate).then_some(IO_ERROR)
    })));
    let refused =
        (0..100).find_map(|_| write().err()).expect("there is no end to the segments that are ready");
    assert!(matches!(refused, Error::Io { .. }), "{refused}");
    // What the keeper has been asked for, it has done when a round of ours is over.
    std::thread::sleep(std::time::Duration::from_millis(300));
    let _ = group.tend();
    assert_eq!(group.window().edge, edge);
    medium.set_fault(None);
    write().unwrap();
    group.close().unwrap();
}

/// What crashes have left beyond the end of the log may be there under both names that a segment can have.
#[test]
fn segments_that_are_left_over_twice_are_no_hindrance() {
    let (medium, group) = create();
    group.close().unwrap();
    drop(group);
    let segment = files_ending(&medium, ".seg").pop().unwrap();
    let bytes = medium.bytes_of(&segment).unwrap();
    for number in 7..9 {
        for ending in ["seg", "spare"] {
            medium.poke(&segment.with_file_name(format!("{number:016x}.{ending}")), 0, &bytes);
        }
    }
    let group = open(&medium).unwrap();
    let volume = group.volume("v").unwrap();
    while group.head().lsn < 8 * OPTIONS.segment_bytes {
        volume.submit(&[Change::Write { lba: 0, data: &[5; 16 * BLOCK_BYTES] }]).unwrap();
    }
}
