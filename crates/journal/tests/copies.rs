//! Copies as references: what a clone costs, what it reads as, and what it may read from.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod medium;
mod model;

use std::{
    path::Path,
    sync::{
        atomic::{AtomicBool, AtomicU8, Ordering},
        Arc,
    },
};

use medium::{random::Random, SimFiles};
use model::block::BLOCK_BYTES;
use playhead_journal::{
    files::{DiskFiles, Files},
    Change, CopyPiece, Error, Extent, Group, NewBase, Options, Policy, Volume,
};

const DIR: &str = "/store/g";
const OPTIONS: Options = Options { segment_bytes: 64 << 10, background: false };
const GIB: u64 = (1 << 30) / 512;

fn medium() -> SimFiles {
    let medium = SimFiles::new();
    medium.create_dir(Path::new("/store")).unwrap();
    medium.sync_dir(Path::new("/")).unwrap();
    medium
}

fn create(medium: &SimFiles, dir: &str) -> Group {
    Group::create(medium.files(), Path::new(dir), "g", &OPTIONS).unwrap()
}

fn add(group: &Group, name: &str, blocks: u64) -> Volume {
    group.add_volume(name, NewBase::Sparse { blocks }).unwrap()
}

fn blocks(fill: u8, count: u64) -> Vec<u8> {
    vec![fill; count as usize * BLOCK_BYTES]
}

fn write(volume: &Volume, lba: u64, fill: u8, count: u64) {
    volume.submit(&[Change::Write { lba, data: &blocks(fill, count) }]).unwrap();
}

/// The first byte of each block.
fn read(volume: &Volume, lba: u64, count: u64) -> Vec<u8> {
    let mut buf = blocks(0xEE, count);
    volume.read(lba, &mut buf).unwrap();
    assert!(buf.chunks(BLOCK_BYTES).all(|b| b.iter().all(|x| *x == b[0])), "a torn block");
    buf.chunks(BLOCK_BYTES).map(|b| b[0]).collect()
}

fn piece(source_lba: u64, lba: u64, count: u64) -> CopyPiece {
    CopyPiece { source_lba, lba, count }
}

/// Bytes and records that `act` adds to the journal.
fn cost<T>(group: &Group, act: impl FnOnce() -> T) -> (u64, u64) {
    let before = group.stats();
    act();
    let after = group.stats();
    (after.bytes_written - before.bytes_written, after.records - before.records)
}

#[test]
fn a_clone_of_any_size_is_one_record_and_lives_its_own_life() {
    let medium = medium();
    let group = create(&medium, DIR);
    let (a, b) = (add(&group, "a", 100 * GIB), add(&group, "b", 100 * GIB));
    write(&a, 0, 1, 8);
    write(&a, 100 * GIB - 8, 2, 8);
    assert_eq!(cost(&group, || b.copy(&a, &[piece(0, 0, 100 * GIB)]).unwrap()), (80, 1));
    let image = group.head().lsn;
    write(&a, 0, 3, 4);
    write(&b, 2, 4, 1);
    assert_eq!(read(&b, 0, 9), [1, 1, 4, 1, 1, 1, 1, 1, 0]);
    assert_eq!(read(&a, 0, 8), [3, 3, 3, 3, 1, 1, 1, 1]);
    assert_eq!(read(&b, 100 * GIB - 9, 9), [0, 2, 2, 2, 2, 2, 2, 2, 2]);
    let image = group.open_image("i", image, true).unwrap().volume("b").unwrap();
    assert_eq!(read(&image, 0, 8), [1; 8]);
    write(&image, 0, 9, 1);
    group.rewind(group.head().lsn).unwrap();
    assert_eq!(read(&b, 0, 3), [1, 1, 4]);
    drop(image);
    group.close_image("i").unwrap();
    group.tend().unwrap();
    group.settle(&mut |_, _| true).unwrap();
    assert_eq!(read(&b, 0, 9), [1, 1, 4, 1, 1, 1, 1, 1, 0]);
    assert_eq!(read(&b, 100 * GIB - 9, 9), [0, 2, 2, 2, 2, 2, 2, 2, 2]);
}

#[test]
fn pieces_are_copied_in_order_all_or_none() {
    let medium = medium();
    let group = create(&medium, DIR);
    let (a, b) = (add(&group, "a", 64), add(&group, "b", 64));
    (0..64).for_each(|i| write(&a, i, 1 + i as u8, 1));
    // The second piece reads what the first has made.
    let pieces = [piece(0, 10, 4), piece(8, 20, 8)];
    assert_eq!(cost(&group, || a.copy(&a, &pieces).unwrap()), (160, 2));
    assert_eq!(read(&a, 8, 20), [9, 10, 1, 2, 3, 4, 15, 16, 17, 18, 19, 20, 9, 10, 1, 2, 3, 4, 15, 16]);
    let head = group.head();
    assert!(matches!(b.copy(&a, &[piece(0, 0, 8), piece(60, 0, 8)]), Err(Error::OutOfRange { .. })));
    assert_eq!(group.head(), head);
    // More than the medium has room for is refused as a whole.
    medium.set_capacity(Some(medium.used_bytes() + (64 << 10)));
    let many: Vec<CopyPiece> = (0..4000).map(|i| piece(i % 64, (i * 7) % 64, 1)).collect();
    assert!(matches!(b.copy(&a, &many), Err(Error::NoSpace { .. })));
    assert_eq!(read(&b, 0, 64), [0; 64]);
    medium.set_capacity(None);
    b.copy(&a, &many).unwrap();
    assert!(read(&b, 0, 64).iter().all(|x| *x != 0));
}

#[test]
fn a_copy_onto_itself_moves_what_was_there() {
    let medium = medium();
    let group = create(&medium, DIR);
    let volume = add(&group, "v", 4 * GIB);
    let mut expected: Vec<u8> = vec![0; 6000];
    for (i, e) in expected.iter_mut().enumerate().take(3000) {
        *e = 1 + (i % 200) as u8;
        write(&volume, i as u64, *e, 1);
    }
    for (from, to, count) in
        [(0, 100, 900), (100, 37, 600), (0, 1, 2500), (2, 0, 2500), (0, 2000, 3000), (7, 7, 5)]
    {
        volume.copy(&volume, &[piece(from as u64, to as u64, count as u64)]).unwrap();
        expected.copy_within(from..from + count, to);
        assert_eq!(read(&volume, 0, 6000), expected, "{from} to {to}, {count} blocks");
    }
    // Of what is not there nothing is moved, however small the shift.
    let (bytes, _) = cost(&group, || {
        volume.copy(&volume, &[piece(0, 1, 4 * GIB - 1)]).unwrap();
    });
    assert!(bytes < 4 << 20, "{bytes} bytes for a shift of {} of data", 3 << 20);
    expected.copy_within(0..5999, 1);
    assert_eq!(read(&volume, 0, 6000), expected);
    group.trim_to(group.head().lsn).unwrap();
    group.settle(&mut |_, _| true).unwrap();
    assert_eq!(read(&volume, 0, 6000), expected);
}

#[test]
fn a_chain_of_ten_thousand_copies_is_followed() {
    let medium = medium();
    let group = create(&medium, DIR);
    let (a, b) = (add(&group, "a", 64), add(&group, "b", 64));
    write(&a, 0, 7, 8);
    for i in 0..5000_u64 {
        b.copy(&a, &[piece(0, 8, 8)]).unwrap();
        // What has been changed since cannot be passed over by the next copy.
        write(&a, 0, 1, 1);
        a.copy(&b, &[piece(8, 0, 8)]).unwrap();
        write(&b, 8, 2, 1);
        if i == 2500 {
            write(&a, 3, 8, 1);
        }
    }
    write(&b, 8, 9, 8);
    assert_eq!(read(&a, 0, 8), [7, 7, 7, 8, 7, 7, 7, 7]);
    drop((a, b));
    group.close().unwrap();
    drop(group);
    let group = Group::open(medium.files(), Path::new(DIR), &OPTIONS).unwrap();
    assert_eq!(read(&group.volume("a").unwrap(), 0, 8), [7, 7, 7, 8, 7, 7, 7, 7]);
    group.settle(&mut |_, _| true).unwrap();
    assert_eq!(read(&group.volume("a").unwrap(), 0, 8), [7, 7, 7, 8, 7, 7, 7, 7]);
}

#[test]
fn a_copy_of_an_unchanged_copy_is_one_of_its_source() {
    let medium = medium();
    let group = create(&medium, DIR);
    let volumes: Vec<Volume> = ["a", "b", "c", "d"].iter().map(|name| add(&group, name, 64)).collect();
    write(&volumes[0], 0, 1, 64);
    group.tend().unwrap();
    for pair in volumes.windows(2) {
        pair[1].copy(&pair[0], &[piece(0, 0, 64)]).unwrap();
    }
    // Back to where it comes from there is nothing to do.
    assert_eq!(cost(&group, || volumes[0].copy(&volumes[3], &[piece(8, 8, 40)]).unwrap()), (0, 0));
    // Onto itself, by way of another.
    volumes[0].copy(&volumes[3], &[piece(0, 4, 40)]).unwrap();
    write(&volumes[0], 0, 2, 2);
    volumes[3].copy(&volumes[2], &[piece(0, 20, 10), piece(20, 30, 10)]).unwrap();
    assert_eq!(read(&volumes[3], 0, 64), [1; 64]);
    // Nobody is a copy of this one, though one was made of it.
    group.remove_volume("b", true).unwrap();
    assert_eq!(read(&volumes[2], 0, 64), [1; 64]);
    group.settle(&mut |_, _| true).unwrap();
    assert_eq!(read(&volumes[0], 0, 4), [2, 2, 1, 1]);
    assert_eq!(read(&volumes[3], 0, 64), [1; 64]);
}

#[test]
fn zeroing_and_filling_64_tib_is_one_record_each_and_folds_without_writing_zeros() {
    let medium = medium();
    let group = create(&medium, DIR);
    let size = 64 << 31;
    let volume = add(&group, "v", size);
    write(&volume, size / 2, 1, 8);
    let zeros = blocks(0, 1);
    for change in [
        Change::Zero { lba: 0, count: size },
        Change::Unmap { lba: 1, count: size - 2 },
        Change::WriteSame { lba: 0, count: size, block: &zeros },
    ] {
        let (bytes, records) = cost(&group, || volume.submit(&[change]).unwrap());
        assert!(bytes <= 576 && records == 1);
        assert_eq!(read(&volume, size / 2 - 1, 10), [0; 10]);
    }
    volume.submit(&[Change::WriteSame { lba: size - 9, count: 9, block: &blocks(5, 1) }]).unwrap();
    write(&volume, 17, 6, 2);
    let used = medium.used_bytes();
    group.tend().unwrap();
    group.settle(&mut |_, _| true).unwrap();
    assert!(medium.used_bytes() < used + (1 << 20));
    assert_eq!(read(&volume, 16, 4), [0, 6, 6, 0]);
    assert_eq!(read(&volume, size - 10, 10), [0, 5, 5, 5, 5, 5, 5, 5, 5, 5]);
    let verdict = playhead_journal::reader::verify(&*medium.files(), Path::new(DIR)).unwrap();
    assert_eq!(verdict.problems, Vec::<String>::new());
}

fn kinds(extents: &[Extent], base: u64) -> Vec<(u64, u64, bool, bool)> {
    extents.iter().map(|e| (e.lba - base, e.count, e.mapped, e.zero)).collect()
}

#[test]
fn extents_of_a_copy_are_those_of_its_source() {
    let medium = medium();
    let group = create(&medium, DIR);
    let (a, b) = (add(&group, "a", 4000), add(&group, "b", 4000));
    write(&a, 16, 1, 8);
    group.settle(&mut |_, _| true).unwrap();
    write(&a, 100, 2, 8);
    a.submit(&[Change::Zero { lba: 104, count: 20 }, Change::Unmap { lba: 110, count: 5 }]).unwrap();
    let before = kinds(&a.extents(0, 2000, 100).unwrap(), 0);
    b.copy(&a, &[piece(0, 1000, 2000)]).unwrap();
    write(&a, 0, 3, 50);
    a.submit(&[Change::Zero { lba: 100, count: 20 }, Change::Unmap { lba: 0, count: 30 }]).unwrap();
    assert_eq!(kinds(&b.extents(1000, 2000, 100).unwrap(), 1000), before);
    assert_eq!(
        before.iter().filter(|e| e.2).map(|e| (e.0, e.1, e.3)).collect::<Vec<_>>(),
        [(16, 8, false), (100, 4, false), (104, 6, true), (115, 9, true)]
    );
    assert_eq!(kinds(&b.extents(1000, 2000, 2).unwrap(), 1000), before[..2]);
    // A clone of the clone, in pieces.
    let c = add(&group, "c", 4000);
    let pieces: Vec<CopyPiece> = (0..200).map(|i| piece(1000 + i * 10, i * 10, 10)).collect();
    c.copy(&b, &pieces).unwrap();
    assert_eq!(kinds(&c.extents(0, 2000, 100).unwrap(), 0), before);
}

#[test]
fn a_moment_is_read_and_copied_from_until_the_window_has_passed_it() {
    let medium = medium();
    let group = create(&medium, DIR);
    let (a, b) = (add(&group, "a", 4000), add(&group, "b", 4000));
    write(&a, 0, 1, 2000);
    let moment = a.freeze().unwrap();
    // Nothing has been changed since: a reference, whatever the length.
    assert_eq!(cost(&group, || b.copy_moment(&moment, &[piece(0, 0, 4000)]).unwrap()), (80, 1));
    write(&a, 100, 2, 10);
    a.submit(&[Change::Unmap { lba: 500, count: 10 }]).unwrap();
    let mut buf = blocks(0, 2001);
    moment.read(0, &mut buf).unwrap();
    assert!(buf[..2000 * 512] == blocks(1, 2000) && buf[2000 * 512..] == blocks(0, 1));
    // What has been changed travels as data, the rest as references, in one batch.
    let mut copied = Default::default();
    let (bytes, records) = cost(&group, || copied = b.copy_moment(&moment, &[piece(0, 1000, 1500)]).unwrap());
    assert_eq!((copied.moved_blocks, copied.referenced_blocks), (20, 1480));
    assert_eq!((bytes, records), (2 * (64 + 10 * 512) + 3 * 80, 5));
    assert_eq!(read(&b, 1000, 1500), [1; 1500]);
    // Onto the volume itself, shifted and in place.
    let third = group.head().lsn;
    a.copy_moment(&moment, &[piece(90, 120, 60)]).unwrap();
    assert_eq!(read(&a, 95, 90), [[1; 5].as_slice(), &[2; 10], &[1; 75]].concat());
    let (bytes, _) = cost(&group, || a.copy_moment(&moment, &[piece(0, 0, 4000)]).unwrap());
    assert!(bytes < 90 * 600, "{bytes}");
    assert_eq!(read(&a, 0, 2001), [[1; 2000].as_slice(), &[0]].concat());
    // A rewind leaves it where it was.
    group.rewind(third).unwrap();
    write(&a, 0, 9, 4);
    assert_eq!(read(&a, 98, 4), [1, 1, 2, 2]);
    moment.read(98, &mut buf[..4 * 512]).unwrap();
    assert_eq!(buf[..4 * 512], blocks(1, 4));
    b.copy_moment(&moment, &[piece(0, 2000, 110)]).unwrap();
    assert_eq!(read(&b, 2000, 110), [1; 110]);
    // It holds nothing: the window goes on.
    group.settle(&mut |_, _| true).unwrap();
    assert!(matches!(moment.read(0, &mut buf), Err(Error::Gone(_))));
    assert!(matches!(moment.check(), Err(Error::Gone(_))));
    assert!(matches!(b.copy_moment(&moment, &[piece(0, 0, 1)]), Err(Error::Gone(_))));
    assert!(matches!(moment.extents(0, 1, 1), Err(Error::Gone(_))));
    let again = a.freeze().unwrap();
    again.read(0, &mut buf).unwrap();
    group.close().unwrap();
    assert!(matches!(again.read(0, &mut buf), Err(Error::Gone(_))));
}

/// A copy whose source is overwritten and folded away under its readers.
#[test]
fn a_copy_reads_the_same_while_the_window_moves_over_it() {
    const BLOCKS: u64 = 8192;
    let dir = tempfile::tempdir().unwrap();
    let options = Options { segment_bytes: 8 << 20, background: true };
    let group = Group::create(Arc::new(DiskFiles), &dir.path().join("g"), "g", &options).unwrap();
    let (a, b) = (add(&group, "a", BLOCKS), add(&group, "b", BLOCKS));
    // What the copy must hold; 0 while it changes, 255 in the end.
    let holds = AtomicU8::new(0);
    std::thread::scope(|scope| {
        let (b, holds) = (&b, &holds);
        for _ in 0..2 {
            scope.spawn(move || {
                let mut buf = vec![0; BLOCKS as usize * BLOCK_BYTES];
                loop {
                    let before = holds.load(Ordering::SeqCst);
                    if before == 255 {
                        break;
                    }
                    b.read(0, &mut buf).unwrap();
                    if before != 0 && holds.load(Ordering::SeqCst) == before {
                        let wrong = buf.iter().filter(|x| **x != before).count();
                        if wrong > 0 {
                            holds.store(255, Ordering::SeqCst);
                            panic!("{wrong} bytes of a copy of {before} are another's");
                        }
                    }
                }
            });
        }
        write(&a, 0, 1, BLOCKS);
        for n in 1..=25 {
            group.settle(&mut |_, _| true).unwrap();
            if holds.swap(0, Ordering::SeqCst) == 255 {
                return;
            }
            b.copy(&a, &[piece(0, 0, BLOCKS)]).unwrap();
            holds.store(n, Ordering::SeqCst);
            write(&a, 0, n + 1, BLOCKS);
            group.settle(&mut |_, _| true).unwrap();
        }
        holds.store(255, Ordering::SeqCst);
    });
    group.close().unwrap();
}

/// What hosts change while a copy is compared and captured must not get into it.
#[test]
fn a_copy_of_a_moment_is_exact_while_hosts_write() {
    const BLOCKS: u64 = 3000;
    let dir = tempfile::tempdir().unwrap();
    let options = Options { segment_bytes: 256 << 10, background: true };
    let group = Group::create(Arc::new(DiskFiles), &dir.path().join("g"), "g", &options).unwrap();
    group.set_policy(Policy { limit_bytes: Some(8 << 20), ..Policy::default() });
    let (a, b) = (add(&group, "a", BLOCKS), add(&group, "b", BLOCKS));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for me in 0..2_u64 {
            let (a, stop) = (&a, &stop);
            scope.spawn(move || {
                let mut random = Random::new(me + 1);
                while !stop.load(Ordering::Relaxed) {
                    if random.once_in(20) {
                        std::thread::sleep(std::time::Duration::from_micros(500));
                    }
                    let count = random.between(1, 4);
                    let lba = random.below(BLOCKS - count);
                    match random.below(20) {
                        0 => {
                            a.submit(&[Change::Unmap { lba, count }]).unwrap();
                        }
                        _ => write(a, lba, random.below(255) as u8 + 1, count),
                    }
                }
            });
        }
        let mut random = Random::new(7);
        let (mut exact, mut gone, mut moved, mut referenced) = (0, 0, 0, 0);
        for _ in 0..40 {
            let moment = a.freeze().unwrap();
            let mut was = vec![0; BLOCKS as usize * BLOCK_BYTES];
            let outcome = moment.read(0, &mut was).and_then(|()| {
                std::thread::sleep(std::time::Duration::from_micros(random.below(3000)));
                b.copy_moment(&moment, &[piece(0, 0, BLOCKS)])
            });
            match outcome {
                Ok(copied) => {
                    let mut is = vec![0; was.len()];
                    b.read(0, &mut is).unwrap();
                    let wrong =
                        is.chunks(BLOCK_BYTES).zip(was.chunks(BLOCK_BYTES)).filter(|(x, y)| x != y).count();
                    // The writers stop when this does.
                    stop.store(wrong > 0, Ordering::Relaxed);
                    assert_eq!(wrong, 0, "blocks differ: {copied:?} as of {}", moment.lsn());
                    exact += 1;
                    moved += copied.moved_blocks;
                    referenced += copied.referenced_blocks;
                }
                Err(Error::Gone(_)) => gone += 1,
                Err(e) => {
                    stop.store(true, Ordering::Relaxed);
                    panic!("{e}");
                }
            }
        }
        stop.store(true, Ordering::Relaxed);
        eprintln!("{exact} copies, {gone} moments gone, {moved} blocks moved, {referenced} referenced");
        assert!(exact > 0 && referenced > 0);
    });
    group.close().unwrap();
}

#[test]
fn a_moment_of_an_image_goes_with_the_image() {
    let medium = medium();
    let group = create(&medium, DIR);
    let a = add(&group, "a", 100);
    write(&a, 0, 1, 10);
    let image = group.open_image("i", group.head().lsn, true).unwrap().volume("a").unwrap();
    write(&image, 5, 2, 10);
    let moment = image.freeze().unwrap();
    write(&image, 0, 3, 100);
    a.copy_moment(&moment, &[piece(0, 50, 20)]).unwrap();
    let expected = [[1; 5].as_slice(), &[2; 10], &[0; 5]].concat();
    assert_eq!(read(&a, 50, 20), expected);
    image.copy_moment(&moment, &[piece(0, 0, 100)]).unwrap();
    assert_eq!(read(&image, 0, 20), expected);
    let look = group.open_image("look", group.head().lsn, false).unwrap().volume("a").unwrap();
    let still = look.freeze().unwrap();
    write(&a, 0, 9, 100);
    a.copy_moment(&still, &[piece(0, 0, 100)]).unwrap();
    assert_eq!(read(&a, 50, 20), expected);
    group.close_image("i").unwrap();
    assert!(matches!(moment.read(0, &mut blocks(0, 1)), Err(Error::Gone(_))));
    group.close_image("look").unwrap();
    assert!(matches!(still.check(), Err(Error::Gone(_))));
}

#[test]
fn going_back_to_an_image_costs_what_has_been_changed_since() {
    let medium = medium();
    let group = create(&medium, DIR);
    let (a, b) = (add(&group, "a", GIB), add(&group, "b", GIB));
    write(&a, 0, 1, 1000);
    group.settle(&mut |_, _| true).unwrap();
    write(&a, 2000, 2, 100);
    let image = group.open_image("i", group.head().lsn, false).unwrap().volume("a").unwrap();
    write(&a, 50, 3, 20);
    a.submit(&[Change::Zero { lba: 4000, count: GIB - 4000 }]).unwrap();
    let (bytes, _) = cost(&group, || {
        let copied = a.copy(&image, &[piece(0, 0, GIB)]).unwrap();
        assert_eq!((copied.moved_blocks, copied.referenced_blocks), (20, GIB - 20));
    });
    assert!(bytes < 20 * 600, "{bytes}");
    assert_eq!(read(&a, 0, 2101), read(&image, 0, 2101));
    assert_eq!(kinds(&a.extents(4000, 1000, 10).unwrap(), 0), [(4000, 1000, false, true)]);
    b.copy(&image, &[piece(0, 0, GIB)]).unwrap();
    assert_eq!(read(&b, 0, 2101), read(&image, 0, 2101));
}

#[test]
fn between_groups_data_moves_and_zeros_do_not() {
    let medium = medium();
    let (here, there) = (create(&medium, DIR), create(&medium, "/store/h"));
    let (a, b) = (add(&here, "a", 100 * GIB), add(&there, "b", 100 * GIB));
    write(&a, 7, 1, 3000);
    a.submit(&[Change::Zero { lba: 5000, count: 10 * GIB }]).unwrap();
    write(&a, 99 * GIB, 2, 3);
    let (bytes, _) = cost(&there, || {
        let copied = b.copy(&a, &[piece(0, 0, 100 * GIB)]).unwrap();
        assert_eq!((copied.moved_blocks, copied.referenced_blocks), (3003, 100 * GIB - 3003));
    });
    assert!(bytes < 2 << 20, "{bytes}");
    assert_eq!(read(&b, 0, 4000), read(&a, 0, 4000));
    assert_eq!(read(&b, 99 * GIB - 1, 5), [0, 2, 2, 2, 0]);
    let (kinds_a, kinds_b) = (a.extents(0, 100 * GIB, 50).unwrap(), b.extents(0, 100 * GIB, 50).unwrap());
    assert_eq!(kinds(&kinds_a, 0), kinds(&kinds_b, 0));
    let moment = a.freeze().unwrap();
    write(&a, 0, 9, 100);
    b.copy_moment(&moment, &[piece(0, 20_000, 100)]).unwrap();
    assert_eq!(read(&b, 20_000, 8), [0, 0, 0, 0, 0, 0, 0, 1]);
}

#[test]
fn a_volume_that_others_are_copies_of_is_not_removed() {
    let medium = medium();
    let group = create(&medium, DIR);
    let (a, b, c) = (add(&group, "a", 100), add(&group, "b", 100), add(&group, "c", 100));
    write(&a, 0, 1, 10);
    b.copy(&a, &[piece(0, 0, 10)]).unwrap();
    c.copy(&c, &[piece(0, 50, 10)]).unwrap();
    assert!(matches!(group.remove_volume("a", true), Err(Error::Conflict(_))));
    assert_eq!(read(&a, 0, 1), [1]);
    // Neither source nor, for others, of any use.
    group.remove_volume("c", true).unwrap();
    assert!(matches!(a.copy(&c, &[piece(0, 0, 1)]), Err(Error::Gone(_))));
    drop((a, b, c));
    group.close().unwrap();
    drop(group);
    let group = Group::open(medium.files(), Path::new(DIR), &OPTIONS).unwrap();
    assert!(matches!(group.remove_volume("a", true), Err(Error::Conflict(_))));
    group.settle(&mut |_, _| true).unwrap();
    group.remove_volume("a", true).unwrap();
    assert_eq!(read(&group.volume("b").unwrap(), 0, 11), [[1; 10].as_slice(), &[0]].concat());
}
