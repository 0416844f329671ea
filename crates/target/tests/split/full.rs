//! The journal cannot be written: hosts are stopped before production is changed, or production goes on and is resynchronised.

use std::sync::atomic::Ordering;

use playhead_journal::Change;
use playhead_target::{
    lun::LunError,
    splitter::{Captured, OnJournalFailure, State, Wanted},
};

use crate::{
    disk::Disk,
    stage::{Stage, BLOCKS},
};

/// Changes until the journal takes no more, or `limit` changes; what the split said last.
fn fill(stage: &Stage, limit: u64) -> Result<Captured, LunError> {
    let mut last = Ok(Captured::Tracked);
    for n in 0..limit {
        let (lba, data) = (n % 100 * 64, vec![(n % 251) as u8 + 1; 64 * 512]);
        let taken = stage.split.begin(Wanted::blocks(lba, 64))?;
        stage.disk.write(lba, &data, 64);
        last = stage.split.capture(taken, &[Change::Write { lba, data: &data }]);
        last.clone()?;
    }
    last
}

#[test]
fn with_stop_hosts_are_refused_before_production_is_changed() {
    let dir = tempfile::tempdir().unwrap();
    let stage = Stage::new(dir.path(), Disk::new(BLOCKS), OnJournalFailure::Stop);
    stage.assert_in_step();
    stage.files.full.store(true, Ordering::Relaxed);
    assert!(matches!(fill(&stage, 1000), Err(LunError::NoSpace { .. })));
    assert_eq!(stage.split.status().state, State::Stopped);
    assert!(stage.split.status().reason.unwrap().contains("no space left"));
    // Nothing that hosts were refused is in production.
    assert!(stage.replica() == stage.disk.bytes());
    stage.files.full.store(false, Ordering::Relaxed);
    stage.assert_in_step();
    fill(&stage, 100).unwrap();
    stage.assert_in_step();
}

#[test]
fn with_track_production_goes_on_and_is_resynchronised() {
    let dir = tempfile::tempdir().unwrap();
    let mut stage = Stage::new(dir.path(), Disk::new(BLOCKS), OnJournalFailure::Track);
    stage.assert_in_step();
    let before = stage.group.head().lsn;
    stage.files.full.store(true, Ordering::Relaxed);
    assert_eq!(fill(&stage, 400), Ok(Captured::Tracked));
    let status = stage.split.status();
    assert_eq!(status.state, State::Tracking);
    assert!(status.lag_bytes > 0 && status.since_ns.is_some());
    assert!(stage.replica() != stage.disk.bytes());
    // What is missing is known also after a crash.
    stage = stage.crash(OnJournalFailure::Track, ());
    stage.assert_in_step();
    let status = stage.split.status();
    assert_eq!((status.lag_bytes, status.since_ns, status.resync_total_bytes), (0, None, 0));
    assert!(stage.group.resync_spans().iter().any(|span| span.end.is_some_and(|end| end.lsn > before)));
}

#[test]
fn a_production_that_cannot_be_read_is_waited_for_and_one_that_is_lost_takes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::new(BLOCKS);
    disk.write(0, &[1; 512], 1);
    disk.unreadable.store(true, Ordering::Relaxed);
    let stage = Stage::new(dir.path(), disk, OnJournalFailure::Stop);
    while stage.split.status().reason.is_none() {
        std::thread::yield_now();
    }
    assert_eq!(stage.split.status().state, State::Initialising);
    stage.split.production_lost("its file is missing");
    assert_eq!(stage.split.status().state, State::ProductionLost);
    assert!(matches!(stage.split.begin(Wanted::blocks(0, 1)), Err(LunError::Gone { .. })));
    stage.disk.unreadable.store(false, Ordering::Relaxed);
    stage.split.production_found();
    stage.assert_in_step();
}

/// An array that was without power has lost what it had only in memory. The journal has it, and must not go on saying so.
#[test]
fn what_production_loses_while_it_is_out_of_sight_the_replica_loses_too() {
    let dir = tempfile::tempdir().unwrap();
    let stage = Stage::new(dir.path(), Disk::new(BLOCKS), OnJournalFailure::Stop);
    stage.assert_in_step();
    let taken = stage.split.begin(Wanted::blocks(5, 1)).unwrap();
    stage.disk.write(5, &[1; 512], 1);
    stage.split.capture(taken, &[Change::Write { lba: 5, data: &[1; 512] }]).unwrap();
    stage.assert_in_step();
    stage.disk.write(5, &[0; 512], 1);
    stage.disk.generation.store(2, Ordering::Relaxed);
    let begun = std::time::Instant::now();
    while stage.replica() != stage.disk.bytes() {
        assert!(begun.elapsed().as_secs() < 20, "it is taken for synchronised: {:?}", stage.split.status());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    stage.assert_in_step();
}

/// A write whose connection was lost may reach production at any time until the array says that it ended it.
#[test]
fn while_a_change_is_in_doubt_no_point_is_taken_for_consistent() {
    let dir = tempfile::tempdir().unwrap();
    let stage = Stage::new(dir.path(), Disk::new(BLOCKS), OnJournalFailure::Stop);
    stage.assert_in_step();
    let in_doubt = stage.split.begin(Wanted::blocks(5, 1)).unwrap();
    stage.split.doubt(&in_doubt);
    assert_eq!(stage.split.status().state, State::Resynchronising);
    assert!(stage.split.status().lag_bytes > 0);
    // Another host goes on, also beside the blocks in doubt, and what it writes lies in a stretch that is not opened.
    for lba in [6, 8000] {
        let taken = stage.split.begin(Wanted::blocks(lba, 1)).unwrap();
        stage.disk.write(lba, &[2; 512], 1);
        stage.split.capture(taken, &[Change::Write { lba, data: &[2; 512] }]).unwrap();
        assert!(stage.group.open_image("i", stage.group.head().lsn, false).is_err());
    }
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert_eq!(stage.split.status().state, State::Resynchronising);
    stage.disk.write(5, &[1; 512], 1);
    stage.split.unknown(in_doubt);
    stage.assert_in_step();
    stage.group.open_image("i", stage.group.head().lsn, false).unwrap();
    stage.group.close_image("i").unwrap();
}

#[test]
fn a_capture_outside_of_what_was_taken_costs_no_data() {
    let dir = tempfile::tempdir().unwrap();
    let stage = Stage::new(dir.path(), Disk::new(BLOCKS), OnJournalFailure::Stop);
    stage.assert_in_step();
    let taken = stage.split.begin(Wanted::blocks(0, 1)).unwrap();
    stage.disk.write(0, &[1; 512], 1);
    assert!(stage.split.capture(taken, &[Change::Write { lba: 0, data: &[1; 1024] }]).is_err());
    assert!(matches!(stage.split.begin(Wanted::blocks(BLOCKS, 1)), Err(LunError::OutOfRange { .. })));
    stage.assert_in_step();
}
