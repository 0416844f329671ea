//! Changes that overlap are in the journal in production's order, whichever threads they came from and however they waited.

use std::{ops::Range, sync::mpsc};

use playhead_journal::{files::DiskFiles, reader, Change};
use playhead_target::splitter::{Captured, OnJournalFailure, Taken, Wanted};

use crate::{
    disk::Disk,
    stage::{Stage, BLOCKS},
};

/// Begins a change by waiting, or by being told.
pub(crate) fn begin(stage: &Stage, wanted: Wanted, told: bool) -> Taken {
    if !told {
        return stage.split.begin(wanted).unwrap();
    }
    let (tell, answer) = mpsc::sync_channel(1);
    stage.split.begin_then(wanted, Box::new(move |outcome| tell.send(outcome).unwrap()));
    answer.recv().unwrap().unwrap()
}

#[test]
fn overlapping_changes_are_recorded_in_productions_order() {
    let dir = tempfile::tempdir().unwrap();
    let stage = Stage::new(dir.path(), Disk::new(BLOCKS), OnJournalFailure::Stop);
    stage.assert_in_step();
    let since = stage.group.head().lsn;
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let stage = &stage;
            scope.spawn(move || {
                for n in 0..150 {
                    // Ranges of different lengths around a few places, so that each is another and most overlap.
                    let (lba, count) = (n % 5 * 3, 1 + (n * 4 + thread) % 40);
                    let data = vec![(n * 4 + thread) as u8; count as usize * 512];
                    let taken = begin(stage, Wanted::blocks(lba, count), n % 2 == 0);
                    stage.disk.write(lba, &data, count);
                    let captured = stage.split.capture(taken, &[Change::Write { lba, data: &data }]);
                    assert!(matches!(captured, Ok(Captured::Recorded(_))));
                }
            });
        }
    });
    stage.assert_in_step();
    let mut recorded: Vec<Range<u64>> = Vec::new();
    reader::dump(&DiskFiles, &dir.path().join("g"), since, &mut |record| {
        assert_eq!(record.opcode, "WRITE");
        recorded.push(record.lba..record.lba + record.count);
        true
    })
    .unwrap();
    let done = stage.disk.done();
    assert_eq!(recorded.len(), 600);
    for block in 0..60 {
        let of = |all: &[Range<u64>]| all.iter().filter(|r| r.contains(&block)).cloned().collect::<Vec<_>>();
        assert_eq!(of(&recorded), of(&done), "block {block}");
    }
}

#[test]
fn a_change_waits_for_one_that_overlaps_and_passes_one_that_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let stage = Stage::new(dir.path(), Disk::new(BLOCKS), OnJournalFailure::Stop);
    stage.assert_in_step();
    let first = begin(&stage, Wanted::blocks(0, 8), false);
    let (tell, told) = mpsc::channel();
    stage.split.begin_then(Wanted::blocks(4, 8), Box::new(move |taken| tell.send(taken).unwrap()));
    stage.split.unchanged(begin(&stage, Wanted::blocks(100, 8), true));
    assert!(told.try_recv().is_err());
    stage.split.unchanged(first);
    let second = told.recv().unwrap().unwrap();
    stage.split.unchanged(second);
    stage.assert_in_step();
}
