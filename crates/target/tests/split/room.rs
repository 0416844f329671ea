//! Room for what is read back: there is enough before production is changed, or production is not changed.

use std::{
    sync::{atomic::Ordering, mpsc},
    time::Duration,
};

use playhead_journal::{Change, NewBase};
use playhead_target::{
    lun::LunError,
    splitter::{OnJournalFailure, State, Taken, Wanted},
};

use crate::{
    disk::Disk,
    order::begin,
    stage::{Stage, BLOCKS},
};

/// 4 MiB: several segments.
const MANY: u64 = 8192;

fn to_read_back(lba: u64, count: u64) -> Wanted {
    Wanted { payload_bytes: 0, ..Wanted::blocks(lba, count) }.to_read_back()
}

#[test]
fn what_would_be_read_back_is_refused_before_production_is_changed_and_others_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let stage = Stage::new(dir.path(), Disk::new(BLOCKS), OnJournalFailure::Stop);
    stage.assert_in_step();
    stage.files.full.store(true, Ordering::Relaxed);
    let refused = stage.split.begin(to_read_back(0, MANY));
    assert!(matches!(refused, Err(LunError::NoSpace { .. })));
    assert_eq!(stage.split.status().state, State::Synchronised);
    // What a little room is enough for.
    let taken = begin(&stage, Wanted::blocks(0, 1), false);
    stage.disk.write(0, &[1; 512], 1);
    stage.split.capture(taken, &[Change::Write { lba: 0, data: &[1; 512] }]).unwrap();
    stage.assert_in_step();
    stage.files.full.store(false, Ordering::Relaxed);
    stage.split.unchanged(begin(&stage, to_read_back(0, MANY), false));
    // Where production goes on all the same, nobody asks.
    stage.split.set_on_journal_failure(OnJournalFailure::Track);
    stage.files.full.store(true, Ordering::Relaxed);
    stage.split.unchanged(begin(&stage, to_read_back(0, BLOCKS), false));
}

/// Others of the group may take the room: nothing is kept.
#[test]
fn a_journal_that_refuses_in_the_midst_of_reading_back_is_told_and_made_good() {
    let dir = tempfile::tempdir().unwrap();
    let stage = Stage::new(dir.path(), Disk::new(BLOCKS), OnJournalFailure::Stop);
    stage.assert_in_step();
    let other = stage.group.add_volume("w", NewBase::Sparse { blocks: BLOCKS }).unwrap();
    let taken = begin(&stage, to_read_back(0, MANY), false);
    stage.files.full.store(true, Ordering::Relaxed);
    for lba in 0..5 {
        other.submit(&[Change::Write { lba: lba * 1024, data: &[7; 512 << 10] }]).unwrap();
    }
    stage.disk.write(0, &vec![1; MANY as usize * 512], MANY);
    let (tell, told) = mpsc::channel();
    stage.split.read_back(taken, Box::new(move |outcome| tell.send(outcome).unwrap()));
    let told = told.recv_timeout(Duration::from_secs(60)).unwrap();
    assert!(matches!(told, Err(LunError::NoSpace { .. })), "{told:?}");
    let status = stage.split.status();
    assert_eq!(status.state, State::Stopped);
    assert!(status.lag_bytes > 0 && status.since_ns.is_some());
    // Some of it is there, and no point of that is taken for consistent.
    let replica = stage.replica();
    assert_eq!((replica[0], replica[MANY as usize * 512 - 1]), (1, 0));
    assert!(matches!(stage.split.begin(Wanted::blocks(9000, 1)), Err(LunError::NoSpace { .. })));
    stage.files.full.store(false, Ordering::Relaxed);
    stage.assert_in_step();
    assert!(!stage.group.resync_spans().is_empty());
}

#[test]
fn only_so_much_is_to_be_read_back_at_once_and_nobody_is_overtaken() {
    let dir = tempfile::tempdir().unwrap();
    let stage = Stage::new(dir.path(), Disk::new(300_000), OnJournalFailure::Stop);
    stage.assert_in_step();
    let (tell, told) = mpsc::channel::<(u8, Taken)>();
    let ask = |who: u8, lba: u64, count: u64| {
        let tell = tell.clone();
        stage.split.begin_then(
            to_read_back(lba, count),
            Box::new(move |taken| tell.send((who, taken.unwrap())).unwrap()),
        );
    };
    let next = |who| {
        let (first, taken) = told.recv_timeout(Duration::from_secs(60)).unwrap();
        assert_eq!(first, who);
        taken
    };
    // 64 MiB each.
    ask(1, 0, 131_072);
    let first = next(1);
    ask(2, 131_072, 131_072);
    ask(3, 299_000, 8);
    stage.split.unchanged(begin(&stage, Wanted::blocks(280_000, 8), false));
    assert!(told.try_recv().is_err());
    // One whose end nobody knows is not waited for.
    stage.split.doubt(&first);
    let second = next(2);
    assert!(told.try_recv().is_err());
    stage.split.unchanged(second);
    let third = next(3);
    ask(4, 0, 8);
    stage.split.unchanged(third);
    assert!(told.try_recv().is_err());
    stage.split.unknown(first);
    stage.split.unchanged(next(4));
    // A split that ends refuses those who wait.
    ask(5, 0, 131_072);
    let fifth = next(5);
    let (tell, told) = mpsc::channel();
    let waits = to_read_back(131_072, 131_072);
    stage.split.begin_then(waits, Box::new(move |taken| tell.send(taken.is_err()).unwrap()));
    std::thread::scope(|scope| {
        let closing = scope.spawn(|| stage.split.close().unwrap());
        assert!(told.recv_timeout(Duration::from_secs(60)).unwrap());
        stage.split.unchanged(fifth);
        closing.join().unwrap();
    });
}
