//! Room in the journal: what is kept for those who must not wait, and segments made ahead that are given back.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod medium;

use std::{
    path::Path,
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc, Arc, Mutex,
    },
    thread,
    time::Duration,
};

use medium::{Operation, SimFiles};
use playhead_journal::{files::Files, Change, Error, Group, NewBase, Options, Policy, Volume};

const DIR: &str = "/store/g";
const OPTIONS: Options = Options { segment_bytes: 64 << 10, background: false };
const BLOCKS: u64 = 4000;

fn create() -> (SimFiles, Group, Volume) {
    let medium = SimFiles::new();
    medium.create_dir(Path::new("/store")).unwrap();
    medium.sync_dir(Path::new("/")).unwrap();
    let group = Group::create(medium.files(), Path::new(DIR), "g", &OPTIONS).unwrap();
    let volume = group.add_volume("v", NewBase::Sparse { blocks: BLOCKS }).unwrap();
    (medium, group, volume)
}

fn write(volume: &Volume, lba: u64, fill: u8, count: usize) -> Result<u64, Error> {
    volume.submit(&[Change::Write { lba, data: &vec![fill; count * 512] }])
}

fn fill_up(volume: &Volume) {
    for count in [16, 1] {
        while !matches!(write(volume, 100, 1, count), Err(Error::NoSpace { .. })) {}
    }
}

#[test]
fn a_comparing_write_has_room_when_others_have_none() {
    let (medium, group, volume) = create();
    write(&volume, 0, 1, 1).unwrap();
    medium.set_capacity(Some(medium.used_bytes() + (200 << 10)));
    fill_up(&volume);
    let mut done = 0_u8;
    let refused = loop {
        assert!(matches!(write(&volume, 100, 1, 1), Err(Error::NoSpace { .. })));
        match volume.compare_and_write(0, &[1 + done; 512], &[2 + done; 512]) {
            Ok(None) => done += 1,
            other => break other,
        }
    };
    assert!(matches!(refused, Err(Error::NoSpace { .. })), "{refused:?}");
    assert!(done >= 6, "room for {done} only");
    // What does not match needs no room.
    let mut close = [1 + done; 512];
    close[300] ^= 1;
    assert_eq!(volume.compare_and_write(0, &close, &close).unwrap(), Some(300));
    assert_eq!(volume.compare_and_write(0, &[0; 512], &close).unwrap(), Some(0));
    medium.set_capacity(None);
    assert_eq!(volume.compare_and_write(0, &[1 + done; 512], &[99; 512]).unwrap(), None);
    drop(volume);
    drop(group);
    let group = Group::open(medium.kill(0).files(), Path::new(DIR), &OPTIONS).unwrap();
    let mut buf = [0; 512];
    group.volume("v").unwrap().read(0, &mut buf).unwrap();
    assert_eq!(buf, [99; 512]);
}

#[test]
fn an_or_is_of_what_is_there() {
    let (_, group, volume) = create();
    volume.submit(&[Change::WriteSame { lba: 0, count: 3, block: &[0b0101; 512] }]).unwrap();
    let before = group.head().lsn;
    volume.or_write(1, &[0b0011; 3 * 512]).unwrap();
    let mut buf = [0; 5 * 512];
    volume.read(0, &mut buf).unwrap();
    let expected: Vec<u8> = [0b0101, 0b0111, 0b0111, 0b0011, 0].iter().flat_map(|b| [*b; 512]).collect();
    assert_eq!(buf[..], expected);
    let image = group.open_image("i", before, false).unwrap().volume("v").unwrap();
    assert!(matches!(image.or_write(0, &[1; 512]), Err(Error::Invalid(_))));
    assert!(matches!(volume.or_write(BLOCKS, &[1; 512]), Err(Error::OutOfRange { .. })));
    assert!(matches!(volume.or_write(0, &[1; 100]), Err(Error::Invalid(_))));
    image.read(0, &mut buf).unwrap();
    assert_eq!(buf[512..1024], [0b0101; 512]);
}

/// Lets a writer run while the first ready segment's file is being removed, until it is done or cannot go on. What was acknowledged
/// must be there after the process has died.
fn race(medium: &SimFiles, volume: &Volume, tend: impl FnOnce(), raise: impl Fn() + Send + Sync + 'static) {
    let (done, wait) = mpsc::channel();
    let wait = Mutex::new(wait);
    let met = Arc::new(AtomicBool::new(false));
    let (seen, writer) = (Arc::clone(&met), volume.clone());
    medium.set_pause(Some(Arc::new(move |operation, path| {
        let ready = operation == Operation::Remove && path.extension().is_some_and(|e| e == "seg");
        if !ready || seen.swap(true, Ordering::SeqCst) {
            return;
        }
        raise();
        let (writer, done) = (writer.clone(), done.clone());
        thread::spawn(move || {
            for i in 0..200 {
                write(&writer, 16 * i, 7, 16).unwrap();
            }
            done.send(()).unwrap();
        });
        // A writer who has to wait for us will not be done; then we go on first.
        let _ = wait.lock().unwrap().recv_timeout(Duration::from_millis(300));
    })));
    tend();
    assert!(met.load(Ordering::SeqCst), "no ready segment was given back");
    // The writer holds clones; wait for the last acknowledged write to be visible.
    let mut last = [0; 512];
    while last != [7; 512] {
        thread::sleep(Duration::from_millis(5));
        volume.read(16 * 199 + 15, &mut last).unwrap();
    }
    medium.set_pause(None);
    let group = Group::open(medium.kill(0).files(), Path::new(DIR), &OPTIONS).unwrap();
    let mut all = vec![0; 200 * 16 * 512];
    group.volume("v").unwrap().read(0, &mut all).unwrap();
    assert!(all.iter().all(|b| *b == 7), "acknowledged writes are lost");
}

#[test]
fn a_ready_segment_that_a_new_policy_gives_back_takes_no_new_one_with_it() {
    let (medium, group, volume) = create();
    group.set_policy(Policy { reserve_bytes: 256 << 10, ..Policy::default() });
    group.tend().unwrap();
    assert!(group.stats().ready_bytes >= 256 << 10);
    group.set_policy(Policy::default());
    race(&medium, &volume, || group.tend().unwrap(), || {});
}

#[test]
fn a_ready_segment_given_up_for_the_bases_takes_no_new_one_with_it() {
    let (medium, group, volume) = create();
    for i in 0..60 {
        write(&volume, 16 * i, 5, 16).unwrap();
    }
    group.tend().unwrap();
    assert!(group.stats().ready_bytes > 0);
    // The disk is full, so folding finds no space for the base.
    medium.set_capacity(Some(medium.used_bytes()));
    group.set_policy(Policy { limit_bytes: Some(128 << 10), ..Policy::default() });
    let (space, unlimited) = (medium.clone(), group.clone());
    let tend = || {
        // The first round finds no space for the base, the next one goes on from there.
        let _ = group.tend();
        let _ = group.tend();
    };
    race(&medium, &volume, tend, move || {
        space.set_capacity(None);
        // What is written now stays in the journal.
        unlimited.set_policy(Policy::default());
    });
}

/// Whoever waits for room must not hold what the keeper needs to make it.
#[test]
fn a_writable_image_and_a_rewind_find_room_on_a_full_disk() {
    let (medium, group, volume) = create();
    drop((volume, group));
    let options = Options { background: true, ..OPTIONS };
    let group = Group::open(medium.files(), Path::new(DIR), &options).unwrap();
    let volume = group.volume("v").unwrap();
    // The base has its room.
    write(&volume, 96, 1, 32).unwrap();
    group.settle(&mut |_, _| true).unwrap();
    let fill = |round: u32| {
        // While it holds the edge, nothing can be given up.
        group.open_image("pin", group.window().edge.lsn, false).unwrap();
        medium.set_capacity(Some(medium.used_bytes() + (300 << 10)));
        fill_up(&volume);
        let name = |n| format!("{round}-{n}");
        let mut n = 100;
        while group.bookmark(&name(n), playhead_journal::BookmarkKind::Crash).is_ok() {
            n += 1;
        }
        assert!(matches!(group.rewind(group.head().lsn), Err(Error::NoSpace { .. })));
        group.close_image("pin").unwrap();
    };
    // The first to ask may be told what the keeper found before the image was closed.
    let tries =
        |act: &dyn Fn() -> Result<(), Error>| (0..3).any(|_| act().inspect_err(|e| eprintln!("{e}")).is_ok());
    fill(1);
    assert!(tries(&|| group.open_image("w", group.head().lsn, true).map(|_| ())));
    group.close_image("w").unwrap();
    fill(2);
    assert!(tries(&|| group.rewind(group.head().lsn).map(|_| ())));
    medium.set_capacity(None);
    group.close().unwrap();
}
