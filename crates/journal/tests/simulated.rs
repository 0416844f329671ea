//! The simulated medium and the oracle, tested by themselves: what the other tests prove stands on them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod medium;

use std::{
    collections::BTreeSet,
    io::IoSlice,
    path::{Path, PathBuf},
    sync::Arc,
};

use medium::{random::Random, Operation, SimFiles, FIRST_RANDOM_SEED, IO_ERROR, NO_SPACE};
use playhead_journal::files::{File, Files, Open};

fn write(file: &Arc<dyn File>, offset: u64, bytes: &[u8]) {
    file.write_at(&[IoSlice::new(bytes)], offset).unwrap();
}

/// A medium with one durable file `/a` of two durable sectors.
fn with_file() -> (SimFiles, Arc<dyn File>) {
    let medium = SimFiles::new();
    let file = medium.open(Path::new("/a"), Open::Create).unwrap();
    write(&file, 0, &[1; 1024]);
    file.sync().unwrap();
    medium.sync_dir(Path::new("/")).unwrap();
    (medium, file)
}

#[test]
fn what_is_synced_survives_and_the_rest_is_some_of_it() {
    let (medium, file) = with_file();
    write(&file, 512, &[2; 1536]);
    let a = Path::new("/a");
    assert_eq!(medium.survivor(0).bytes_of(a).unwrap(), vec![1; 1024]);
    let all = medium.survivor(1).bytes_of(a).unwrap();
    assert_eq!((&all[..512], &all[512..]), (&[1; 512][..], &[2; 1536][..]));
    let mut outcomes = BTreeSet::new();
    for seed in FIRST_RANDOM_SEED..200 {
        let bytes = medium.survivor(seed).bytes_of(a).unwrap();
        assert_eq!(&bytes[..512], &[1; 512], "a synced sector that nobody touched");
        for sector in bytes[512..].chunks(512) {
            assert!(sector.iter().all(|b| *b == sector[0]), "a sector is never torn");
        }
        outcomes.insert(bytes.chunks(512).map(|s| s[0]).collect::<Vec<_>>());
    }
    assert!(outcomes.len() >= 8, "few outcomes: {outcomes:?}");
}

#[test]
fn a_sector_survives_in_a_version_it_had() {
    let (medium, file) = with_file();
    for i in 0..8_u8 {
        write(&file, u64::from(i) * 64, &[10 + i; 64]);
    }
    for seed in 0..100 {
        let bytes = medium.survivor(seed).bytes_of(Path::new("/a")).unwrap();
        let versions: Vec<u8> = bytes[..512].chunks(64).map(|c| c[0]).collect();
        let kept = versions.iter().take_while(|&&v| v != 1).count();
        let expected: Vec<u8> = (0..8).map(|i| if i < kept { 10 + i as u8 } else { 1 }).collect();
        assert_eq!(versions, expected);
    }
}

#[test]
fn a_name_survives_only_with_its_directory_synced() {
    let medium = SimFiles::new();
    let file = medium.open(Path::new("/b.new"), Open::Create).unwrap();
    write(&file, 0, b"hello");
    file.sync().unwrap();
    assert!(medium.survivor(0).paths().is_empty());
    medium.sync_dir(Path::new("/")).unwrap();
    medium.rename(Path::new("/b.new"), Path::new("/b")).unwrap();
    let lost = medium.survivor(0);
    assert_eq!(lost.paths(), [PathBuf::from("/b.new")]);
    assert_eq!(medium.survivor(1).paths(), [PathBuf::from("/b")]);
    medium.sync_dir(Path::new("/")).unwrap();
    medium.remove(Path::new("/b")).unwrap();
    assert_eq!(medium.survivor(0).bytes_of(Path::new("/b")).unwrap(), b"hello");
    assert!(medium.survivor(1).paths().is_empty());
    // A directory is a name like any other.
    medium.create_dir(Path::new("/d/e")).unwrap();
    assert!(medium.survivor(0).list(Path::new("/d")).is_err());
    assert_eq!(medium.survivor(1).list(Path::new("/d")).unwrap(), ["e"]);
}

#[test]
fn power_fails_at_the_boundary_and_stays_off() {
    let (medium, file) = with_file();
    medium.crash_at(medium.boundaries() + 2);
    write(&file, 0, &[3; 512]);
    assert!(file.write_at(&[IoSlice::new(&[4; 1024])], 512).is_err());
    assert!(medium.is_off());
    assert!(file.sync().is_err());
    assert!(file.read_at(&mut [0; 1], 0).is_err());
    assert!(medium.list(Path::new("/")).is_err());
    let sizes: BTreeSet<u64> =
        (0..50).map(|s| medium.survivor(s).size_of(Path::new("/a")).unwrap()).collect();
    assert_eq!(sizes, BTreeSet::from([1024, 1536]));
    // The death of the process leaves what was written, and some leading part of the last write.
    for seed in 0..20 {
        let bytes = medium.kill(seed).bytes_of(Path::new("/a")).unwrap();
        assert_eq!(&bytes[..512], &[3; 512]);
        let torn = bytes[512..].iter().take_while(|&&b| b == 4).count();
        assert!(bytes[512 + torn..].iter().all(|&b| b == 1));
    }
}

#[test]
fn a_killed_process_leaves_un_synced_writes_that_power_can_still_take() {
    let (medium, file) = with_file();
    write(&file, 0, &[5; 512]);
    let killed = medium.kill(0);
    assert!(file.read_at(&mut [0; 1], 0).is_err(), "the dead do nothing more");
    assert_eq!(killed.bytes_of(Path::new("/a")).unwrap()[0], 5);
    assert_eq!(killed.survivor(0).bytes_of(Path::new("/a")).unwrap()[0], 1);
    let file = killed.open(Path::new("/a"), Open::Write).unwrap();
    file.sync().unwrap();
    assert_eq!(killed.survivor(0).bytes_of(Path::new("/a")).unwrap()[0], 5);
}

#[test]
fn huge_files_cost_what_is_in_them() {
    let medium = SimFiles::new();
    let file = medium.open(Path::new("/huge"), Open::Create).unwrap();
    file.set_size(64 << 40).unwrap();
    write(&file, 40 << 40, &[7; 100]);
    assert_eq!(medium.used_bytes(), 4096);
    assert_eq!(file.data_at(0).unwrap(), (false, 40 << 40));
    assert_eq!(file.data_at(40 << 40).unwrap(), (true, (40 << 40) + 4096));
    assert_eq!(file.data_at(41 << 40).unwrap(), (false, u64::MAX));
    file.punch(0, 64 << 40).unwrap();
    assert_eq!(medium.used_bytes(), 0);
    let mut b = [1; 100];
    file.read_at(&mut b, 40 << 40).unwrap();
    assert_eq!(b, [0; 100]);
    assert!(file.read_at(&mut b, (64 << 40) - 99).is_err());
    file.set_size(10).unwrap();
    file.sync().unwrap();
    medium.sync_dir(Path::new("/")).unwrap();
    assert_eq!(medium.survivor(0).size_of(Path::new("/huge")), Some(10));
}

#[test]
fn a_truncated_file_may_keep_its_old_sectors_but_never_beyond_its_size() {
    let (medium, file) = with_file();
    file.set_size(100).unwrap();
    file.set_size(2048).unwrap();
    write(&file, 1536, &[9; 512]);
    for seed in 0..100 {
        let bytes = medium.survivor(seed).bytes_of(Path::new("/a")).unwrap();
        assert!([100, 1024, 2048].contains(&bytes.len()), "{}", bytes.len());
        if bytes.len() == 2048 {
            assert!([1, 0].contains(&bytes[1000]) && [0, 9].contains(&bytes[1536]));
        }
    }
}

#[test]
fn space_runs_out_in_the_middle_of_a_write() {
    let (medium, file) = with_file();
    medium.set_capacity(Some(3 * 4096));
    file.allocate(4096, 4096).unwrap();
    assert_eq!(file.allocate(8192, 8192).unwrap_err().raw_os_error(), Some(NO_SPACE));
    let error = file.write_at(&[IoSlice::new(&[8; 16384])], 4096).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(NO_SPACE));
    assert_eq!(file.size().unwrap(), 12288, "a part is written");
    write(&file, 0, &[8; 4096]);
    medium.remove(Path::new("/a")).unwrap();
    drop(file);
    medium.sync_dir(Path::new("/")).unwrap();
    assert_eq!(medium.used_bytes(), 0);
}

#[test]
fn a_failed_sync_loses_what_it_should_have_kept() {
    let (medium, file) = with_file();
    write(&file, 0, &[6; 512]);
    medium.set_fault(Some(Box::new(|b| (b.operation == Operation::Sync).then_some(IO_ERROR))));
    assert_eq!(file.sync().unwrap_err().raw_os_error(), Some(IO_ERROR));
    medium.set_fault(None);
    file.sync().unwrap();
    assert_eq!(medium.survivor(1).bytes_of(Path::new("/a")).unwrap()[0], 1);
    assert_eq!(medium.kill(0).bytes_of(Path::new("/a")).unwrap()[0], 6);
}

#[test]
fn a_lock_goes_with_its_handle() {
    let (medium, file) = with_file();
    let other = medium.open(Path::new("/a"), Open::Write).unwrap();
    assert!(file.lock().unwrap());
    assert!(file.lock().unwrap());
    assert!(!other.lock().unwrap());
    drop(file);
    assert!(other.lock().unwrap());
    let killed = medium.kill(0);
    assert!(killed.open(Path::new("/a"), Open::Write).unwrap().lock().unwrap());
}

#[test]
fn the_same_seed_is_the_same_run() {
    let run = || {
        let medium = SimFiles::new();
        let mut random = Random::new(42);
        let file = medium.open(Path::new("/a"), Open::Create).unwrap();
        medium.sync_dir(Path::new("/")).unwrap();
        for i in 0..200_u64 {
            write(&file, random.below(20_000), &vec![i as u8; random.between(1, 2000) as usize]);
            if random.once_in(30) {
                file.sync().unwrap();
            }
        }
        (medium.survivor(77).bytes_of(Path::new("/a")), medium.now_ns())
    };
    assert_eq!(run(), run());
}
