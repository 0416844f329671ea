//! Folding what is huge, or made of thousands of copies: it holds nobody up, goes on where a crash broke it off, and what is read meanwhile is exact.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod medium;

use std::{
    path::Path,
    sync::{
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc, Arc, Mutex,
    },
    thread,
    time::Duration,
};

use medium::{Boundary, Operation, SimFiles};
use playhead_journal::{files::Files, Change, CopyPiece, Group, NewBase, Options, Policy, Volume};

const DIR: &str = "/store/g";
const SEGMENT: u64 = 64 << 10;
const OPTIONS: Options = Options { segment_bytes: SEGMENT, background: false };
/// Bytes of a step that a crash may make be written again: four segments.
const PIECE: u64 = 4 * SEGMENT;

fn medium() -> SimFiles {
    let medium = SimFiles::new();
    medium.create_dir(Path::new("/store")).unwrap();
    medium.sync_dir(Path::new("/")).unwrap();
    medium
}

fn create(medium: &SimFiles, options: &Options) -> Group {
    Group::create(medium.files(), Path::new(DIR), "g", options).unwrap()
}

fn open(medium: &SimFiles) -> Group {
    Group::open(medium.files(), Path::new(DIR), &OPTIONS).unwrap()
}

fn add(group: &Group, name: &str, blocks: u64) -> Volume {
    group.add_volume(name, NewBase::Sparse { blocks }).unwrap()
}

fn write(volume: &Volume, lba: u64, fill: u8, count: usize) {
    volume.submit(&[Change::Write { lba, data: &vec![fill; count * 512] }]).unwrap();
}

fn same(volume: &Volume, lba: u64, count: u64, fill: u8) {
    volume.submit(&[Change::WriteSame { lba, count, block: &[fill; 512] }]).unwrap();
}

fn copy(to: &Volume, from: &Volume, source_lba: u64, lba: u64, count: u64) {
    to.copy(from, &[CopyPiece { source_lba, lba, count }]).unwrap();
}

/// The first byte of each block.
fn read(volume: &Volume, lba: u64, count: usize) -> Vec<u8> {
    let mut buf = vec![0xEE; count * 512];
    volume.read(lba, &mut buf).unwrap();
    assert!(buf.chunks(512).all(|b| b.iter().all(|x| *x == b[0])), "a torn block");
    buf.chunks(512).map(|b| b[0]).collect()
}

fn is_base(path: &Path) -> bool {
    path.starts_with("/store/g/base")
}

fn base_bytes(trace: &[Boundary]) -> u64 {
    let writes = trace.iter().filter(|b| b.operation == Operation::Write && is_base(&b.path));
    writes.map(|b| b.len).sum()
}

fn syncs(trace: &[Boundary]) -> usize {
    trace.iter().filter(|b| b.operation == Operation::Sync).count()
}

#[test]
fn hosts_write_and_compare_while_a_fold_stands_still() {
    let medium = medium();
    let group = create(&medium, &Options { background: true, ..OPTIONS });
    let volume = add(&group, "v", 40_000);
    same(&volume, 0, 20_000, 1);
    let (go, wait) = mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    let (met, stands) = mpsc::channel::<()>();
    let met = Mutex::new(Some(met));
    medium.set_pause(Some(Arc::new(move |operation, path| {
        if operation != Operation::Write || !is_base(path) {
            return;
        }
        if let Some(met) = met.lock().unwrap().take() {
            met.send(()).unwrap();
            let _ = wait.lock().unwrap().recv();
        }
    })));
    group.set_policy(Policy { limit_bytes: Some(4 * SEGMENT), ..Policy::default() });
    (0..40).for_each(|i| write(&volume, 20_000 + 16 * i, 2, 16));
    stands.recv_timeout(Duration::from_secs(60)).expect("nothing is folded");
    // More than may wait for being sealed: 64 segments.
    (0..1000).for_each(|i| write(&volume, 20_000 + 16 * i, 3, 16));
    assert_eq!(volume.compare_and_write(20_000, &[3; 512], &[4; 512]).unwrap(), None);
    assert_eq!(read(&volume, 19_999, 3), [1, 4, 3]);
    go.send(()).unwrap();
    group.close().unwrap();
    medium.set_pause(None);
    drop((volume, group));
    let group = open(&medium);
    assert_eq!(read(&group.volume("v").unwrap(), 19_999, 3), [1, 4, 3]);
}

#[test]
fn a_step_under_way_ends_when_it_is_cancelled_or_the_group_closed() {
    let medium = medium();
    let group = create(&medium, &OPTIONS);
    let volume = add(&group, "v", 40_000);
    same(&volume, 0, 40_000, 1);
    medium.keep_trace();
    let mut asked = 0;
    let cancelled = group.settle(&mut |_, _| {
        asked += 1;
        asked < 4
    });
    assert!(cancelled.is_err());
    let before = base_bytes(&medium.trace());
    // A buffer is a megabyte.
    assert!(before <= 4 * (1 << 20), "{before}");
    let (closing, seen) = (group.clone(), Arc::new(AtomicBool::new(false)));
    medium.set_pause(Some(Arc::new(move |operation, path| {
        if operation == Operation::Write && is_base(path) && !seen.swap(true, Ordering::SeqCst) {
            // It waits for nothing that folds.
            let _ = closing.close();
        }
    })));
    assert!(group.settle(&mut |_, _| true).is_err());
    medium.set_pause(None);
    assert!(base_bytes(&medium.trace()) <= before + (2 << 20));
    drop((volume, group));
    let group = open(&medium);
    group.settle(&mut |_, _| true).unwrap();
    assert_eq!(read(&group.volume("v").unwrap(), 0, 40_000), vec![1; 40_000]);
}

/// A step with something huge of every kind; and what the volumes then hold.
fn huge(medium: &SimFiles) -> Group {
    let group = create(medium, &OPTIONS);
    let (a, b) = (add(&group, "a", 8000), add(&group, "b", 8000));
    write(&a, 100, 1, 64);
    same(&a, 1000, 3000, 2);
    group.settle(&mut |_, _| true).unwrap();
    copy(&b, &a, 0, 0, 8000);
    same(&b, 4000, 2500, 3);
    same(&a, 6000, 1500, 4);
    copy(&b, &b, 4500, 7000, 1000);
    b.submit(&[Change::Zero { lba: 1500, count: 1000 }]).unwrap();
    write(&a, 101, 5, 1);
    group.flush().unwrap();
    group
}

fn contents(group: &Group) -> [Vec<u8>; 2] {
    ["a", "b"].map(|name| read(&group.volume(name).unwrap(), 0, 8000))
}

#[test]
fn a_huge_step_goes_on_where_power_failed_and_is_exact_meanwhile() {
    let reference = medium();
    let group = huge(&reference);
    let expected = contents(&group);
    let first = reference.boundaries();
    reference.keep_trace();
    group.settle(&mut |_, _| true).unwrap();
    assert_eq!(contents(&group), expected);
    let whole = base_bytes(&reference.trace());
    let last = reference.boundaries();
    assert!(last - first > 20, "{}", last - first);
    for n in first + 1..=last {
        let medium = medium();
        let group = huge(&medium);
        medium.keep_trace();
        medium.crash_at(n);
        assert!(group.settle(&mut |_, _| true).is_err());
        drop(group);
        let written = base_bytes(&medium.trace());
        for seed in [0, 100 + n] {
            let medium = medium.survivor(seed);
            medium.keep_trace();
            let group = open(&medium);
            // Nothing is folded before somebody tends it.
            assert_eq!(base_bytes(&medium.trace()), 0);
            assert_eq!(contents(&group), expected, "boundary {n}, seed {seed}");
            group.settle(&mut |_, _| true).unwrap();
            let again = base_bytes(&medium.trace());
            // What a write at once may go beyond a piece, and what another step had begun.
            assert!(written + again <= whole + PIECE + (1 << 20), "{written} + {again} of {whole}");
            assert_eq!(contents(&group), expected, "boundary {n}, seed {seed}, settled");
        }
    }
}

#[test]
fn a_pattern_that_a_crash_broke_off_is_not_begun_again() {
    const BLOCKS: u64 = 32 << 11;
    let medium = medium();
    let group = create(&medium, &OPTIONS);
    let volume = add(&group, "v", BLOCKS);
    same(&volume, 0, BLOCKS, 1);
    group.flush().unwrap();
    medium.keep_trace();
    let mut asked = 0;
    medium.set_fault(Some(Box::new(move |b| {
        asked += u64::from(b.operation == Operation::Write && is_base(&b.path));
        (asked > 24).then_some(medium::IO_ERROR)
    })));
    assert!(group.settle(&mut |_, _| true).is_err());
    drop((volume, group));
    let medium = medium.survivor(0);
    medium.keep_trace();
    let group = open(&medium);
    group.settle(&mut |_, _| true).unwrap();
    let again = base_bytes(&medium.trace());
    assert!(again <= (8 << 20) + PIECE + (1 << 20), "{again} bytes of 32 MiB written again");
    assert!(read(&group.volume("v").unwrap(), 0, BLOCKS as usize).iter().all(|b| *b == 1));
}

/// Copies each of the last, 5,000 of them in one segment.
fn chain(in_base: bool, link: impl Fn(&Volume, u64)) -> (SimFiles, Group, Volume) {
    let medium = medium();
    let group = create(&medium, &Options { segment_bytes: 4 << 20, background: false });
    let volume = add(&group, "v", 8 * 5002);
    (0..8).for_each(|i| write(&volume, i, 1 + i as u8, 1));
    if in_base {
        group.settle(&mut |_, _| true).unwrap();
    }
    (0..5000).for_each(|i| link(&volume, i));
    (medium, group, volume)
}

#[test]
fn thousands_of_copies_of_copies_are_one_step() {
    // What is written between keeps each a copy of the one before.
    let dependent = |v: &Volume, i: u64| {
        copy(v, v, 8 * i, 8 * (i + 1), 8);
        write(v, 8 * i, 9, 1);
    };
    let (medium, group, volume) = chain(false, dependent);
    medium.keep_trace();
    group.settle(&mut |_, _| true).unwrap();
    let told = syncs(&medium.trace());
    // The bytes that the chain is: 20 MB, in pieces of 16 MiB.
    assert!(told < 20, "{told} syncs");
    assert_eq!(read(&volume, 8 * 2500, 8), [9, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(read(&volume, 8 * 5000, 8), [1, 2, 3, 4, 5, 6, 7, 8]);
    let (medium, group, volume) = chain(true, |v, i| copy(v, v, 8 * i, 8 * (i + 1), 8));
    medium.keep_trace();
    group.settle(&mut |_, _| true).unwrap();
    let told = syncs(&medium.trace());
    assert!(told < 20, "{told} syncs");
    for i in [0, 1, 2500, 5000] {
        assert_eq!(read(&volume, 8 * i, 8), [1, 2, 3, 4, 5, 6, 7, 8]);
    }
}

/// Each copy reads what the step before has to change: as many steps as copies, but the segment is read through once.
#[test]
fn a_segment_is_checked_once_however_many_steps_end_in_it() {
    let (medium, group, volume) = chain(true, |v, i| {
        if i < 500 {
            copy(v, v, 8 * i, 8 * (i + 1), 8);
            write(v, 8 * i, 9, 1);
        }
    });
    let reads = Arc::new(AtomicU64::new(0));
    let seen = Arc::clone(&reads);
    medium.set_pause(Some(Arc::new(move |operation, path| {
        let log = operation == Operation::Read && path.extension().is_some_and(|e| e == "seg");
        seen.fetch_add(u64::from(log), Ordering::Relaxed);
    })));
    group.settle(&mut |_, _| true).unwrap();
    medium.set_pause(None);
    // A payload for each write, a look through the segment, and little else.
    let reads = reads.load(Ordering::Relaxed);
    assert!(reads < 600, "{reads} reads of the log");
    assert_eq!(read(&volume, 0, 2), [9, 2]);
    assert_eq!(read(&volume, 8 * 500, 8), [1, 2, 3, 4, 5, 6, 7, 8]);
}

#[test]
fn a_copy_is_read_though_its_source_leaves_the_log_just_then() {
    let medium = medium();
    let group = create(&medium, &OPTIONS);
    let (a, b) = (add(&group, "a", 1000), add(&group, "b", 1000));
    write(&a, 0, 1, 8);
    (0..8).for_each(|i| write(&a, 100 + 16 * i, 2, 16));
    let edge = group.head().lsn;
    assert!(edge > SEGMENT);
    copy(&b, &a, 0, 0, 8);
    group.tend().unwrap();
    drop((a, b));
    group.close().unwrap();
    drop(group);
    // No file of the log is open yet.
    let group = open(&medium);
    let b = group.volume("b").unwrap();
    let (folding, met) = (group.clone(), Arc::new(AtomicBool::new(false)));
    let seen = Arc::clone(&met);
    medium.set_pause(Some(Arc::new(move |operation, path| {
        let first = operation == Operation::Open && path.ends_with("0000000000000000.seg");
        if first && !seen.swap(true, Ordering::SeqCst) {
            folding.trim_to(edge).unwrap();
        }
    })));
    assert_eq!(read(&b, 0, 8), [1; 8]);
    assert!(met.load(Ordering::SeqCst));
    medium.set_pause(None);
}

/// Lets `act` happen in another thread while the first read of a base is under way; says whether it was done before that read went on.
fn during_the_first_base_read(medium: &SimFiles, act: impl Fn() + Send + Sync + 'static) -> Arc<AtomicBool> {
    let (act, done) = (Arc::new(act), Arc::new(AtomicBool::new(false)));
    let (told, seen) = (Arc::clone(&done), AtomicBool::new(false));
    medium.set_pause(Some(Arc::new(move |operation, path| {
        if operation != Operation::Read || !is_base(path) || seen.swap(true, Ordering::SeqCst) {
            return;
        }
        let (act, (tell, wait)) = (Arc::clone(&act), mpsc::channel());
        thread::spawn(move || {
            act();
            let _ = tell.send(());
        });
        // Who has to wait for us will not be done; then we go on first.
        told.store(wait.recv_timeout(Duration::from_secs(5)).is_ok(), Ordering::SeqCst);
    })));
    done
}

#[test]
fn others_write_while_a_comparing_write_reads_and_it_sees_what_they_wrote() {
    let medium = medium();
    let group = create(&medium, &OPTIONS);
    let (a, b) = (add(&group, "a", 1000), add(&group, "b", 1000));
    write(&a, 0, 1, 8);
    group.settle(&mut |_, _| true).unwrap();
    copy(&b, &a, 0, 0, 8);
    // Elsewhere: it is not held up, and the comparison holds.
    let other = b.clone();
    let done = during_the_first_base_read(&medium, move || write(&other, 100, 7, 1));
    assert_eq!(b.compare_and_write(0, &[1; 512], &[2; 512]).unwrap(), None);
    assert!(done.load(Ordering::SeqCst), "a write waited for a comparing write's reading");
    // In the same place: what was compared with is what is there when it writes.
    let other = b.clone();
    let done = during_the_first_base_read(&medium, move || write(&other, 1, 8, 1));
    assert_eq!(b.compare_and_write(1, &[1; 512], &[3; 512]).unwrap(), Some(0));
    assert!(done.load(Ordering::SeqCst));
    // Changed, and folded into the very base: no place says that it changed, but the base has moved on.
    let (other, folding) = (a.clone(), group.clone());
    let done = during_the_first_base_read(&medium, move || {
        write(&other, 5, 4, 1);
        folding.settle(&mut |_, _| true).unwrap();
    });
    a.or_write(5, &[8; 512]).unwrap();
    assert!(done.load(Ordering::SeqCst));
    assert_eq!(read(&a, 5, 1), [4 | 8]);
    medium.set_pause(None);
    assert_eq!(read(&b, 0, 3), [2, 8, 1]);
}

/// A base that stays behind is as of the trailing edge, also when the fold up to there had been broken off.
#[test]
fn a_base_that_is_kept_is_whole_though_a_fold_was_cancelled() {
    let medium = medium();
    let group = create(&medium, &OPTIONS);
    let volume = add(&group, "v", 1024);
    write(&volume, 0, 7, 8);
    assert!(group.settle(&mut |_, _| false).is_err());
    assert!(group.stats().folded_lsn < group.window().edge.lsn);
    let base = volume.info().base[0].clone();
    group.remove_volume("v", false).unwrap();
    assert_eq!(medium.range_of(&base, 0, 8 * 512), Some(vec![7; 8 * 512]));
}
