//! Reading back: until it is over nobody else has the blocks, and no point is out of step.

use std::{
    sync::{atomic::Ordering, mpsc},
    time::Duration,
};

use playhead_journal::{files::DiskFiles, reader};
use playhead_target::splitter::{OnJournalFailure, State, Wanted};

use crate::{
    disk::Disk,
    order::begin,
    stage::{Stage, BLOCKS},
};

fn opcodes(stage: &Stage, dir: &std::path::Path, since: u64) -> Vec<String> {
    let mut found = Vec::new();
    reader::dump(&DiskFiles, &dir.join("g"), since, &mut |record| {
        found.push(record.opcode.to_string());
        true
    })
    .unwrap();
    assert!(stage.group.head().lsn > since);
    found
}

#[test]
fn what_is_read_back_is_recorded_before_the_blocks_are_anybody_elses() {
    let dir = tempfile::tempdir().unwrap();
    let stage = Stage::new(dir.path(), Disk::new(BLOCKS), OnJournalFailure::Stop);
    stage.assert_in_step();
    let since = stage.group.head().lsn;
    let wanted = Wanted { changes: vec![8..16, 100..5000], ..Wanted::default() }.to_read_back();
    let taken = begin(&stage, wanted, false);
    stage.disk.write(8, &[1; 8 * 512], 4);
    stage.disk.write(4000, &[2; 16 * 512], 16);
    let (tell, told) = mpsc::channel();
    let (split, recorded) = (stage.split.clone(), tell.clone());
    stage.split.begin_then(
        Wanted::blocks(4999, 2),
        Box::new(move |next| {
            recorded.send("next").unwrap();
            split.unchanged(next.unwrap());
        }),
    );
    assert!(told.try_recv().is_err());
    stage
        .split
        .read_back(taken, Box::new(move |outcome| tell.send(outcome.map_or("failed", |()| "read")).unwrap()));
    let mut order = [told.recv().unwrap(), told.recv().unwrap()];
    order.sort_unstable();
    assert_eq!(order, ["next", "read"]);
    assert_eq!(stage.split.status().state, State::Synchronised);
    stage.assert_in_step();
    let found = opcodes(&stage, dir.path(), since);
    assert!(found.iter().all(|opcode| opcode == "WRITE"), "{found:?}");
}

#[test]
fn what_cannot_be_read_is_left_to_the_resynchronisation() {
    let dir = tempfile::tempdir().unwrap();
    let stage = Stage::new(dir.path(), Disk::new(BLOCKS), OnJournalFailure::Stop);
    stage.assert_in_step();
    stage.disk.unreadable.store(true, Ordering::Relaxed);
    let taken = begin(&stage, Wanted::blocks(8, 8), false);
    stage.disk.write(8, &[1; 8 * 512], 8);
    let (tell, told) = mpsc::channel();
    stage.split.read_back(taken, Box::new(move |outcome| tell.send(outcome).unwrap()));
    told.recv_timeout(Duration::from_secs(20)).unwrap().unwrap();
    assert_eq!(stage.split.status().state, State::Resynchronising);
    // The blocks are free.
    stage.split.unchanged(begin(&stage, Wanted::blocks(8, 8), false));
    stage.disk.unreadable.store(false, Ordering::Relaxed);
    stage.assert_in_step();
}

#[test]
fn what_is_not_read_at_the_end_is_found_at_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let stage = Stage::new(dir.path(), Disk::new(BLOCKS), OnJournalFailure::Stop);
    stage.assert_in_step();
    for lba in 0..64 {
        let taken = begin(&stage, Wanted::blocks(lba * 128, 128), false);
        stage.disk.write(lba * 128, &[lba as u8 + 1; 128 * 512], 128);
        stage.split.read_back(taken, Box::new(|_| {}));
    }
    let stage = stage.reopen(OnJournalFailure::Stop);
    stage.assert_in_step();
    for lba in 0..64 {
        let taken = begin(&stage, Wanted::blocks(lba * 128, 128), false);
        stage.disk.write(lba * 128, &[lba as u8 + 100; 128 * 512], 128);
        stage.split.read_back(taken, Box::new(|_| {}));
    }
    stage.crash(OnJournalFailure::Stop, ()).assert_in_step();
}
