//! A full journal: what the array would be asked to do, and what came of it could not be recorded, the array is not asked.

use crate::crowded::Crowded;
use crate::eventually;
use crate::peer::Peer;
use crate::row::{copy, name, Move, Row, GOOD};
use playhead_target::fabric::Identity;
use playhead_wire::iscsi::request::{Request, TaskManagement};
use playhead_wire::iscsi::response::Response;
use std::sync::atomic::Ordering;
use std::sync::Arc;

const NO_ROOM: (u8, Option<u16>) = (2, Some(0x2707));

fn unmap(host: &mut Peer, lba: u32, count: u32) -> (u8, Option<u16>) {
    let mut list = vec![0, 22, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0];
    list.extend_from_slice(&lba.to_be_bytes());
    list.extend_from_slice(&count.to_be_bytes());
    list.extend_from_slice(&[0; 4]);
    let ended = host.command(&[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], 0, &list);
    (ended.status, ended.sense)
}

#[test]
fn hosts_are_refused_what_would_be_read_back_before_the_array_changes() {
    let files = Arc::new(Crowded::default());
    let row = Row::on(files.clone(), Identity::Own);
    row.fill();
    let (mut host, mut other) = (row.host(), row.other_host());
    let names = [name(&mut host, 0), name(&mut host, 1), name(&mut other, 0)];
    let batches = || row.disks.iter().map(|disk| disk.batches.load(Ordering::SeqCst)).sum::<u64>();
    // Segments are of 4 MiB: three of them are more than are kept ready.
    let across: [Move; 2] = [(2, 0, 0, 8192, 8000), (2, 0, 0, 16_384 - 192, 192)];
    let before = batches();
    files.full.store(true, Ordering::Relaxed);
    assert_eq!(unmap(&mut host, 0, 16_384), NO_ROOM);
    assert_eq!(copy(&mut host, &names, &[across[0], (2, 0, 0, 0, 8192)]), NO_ROOM);
    assert_eq!(batches(), before, "the array was not asked");
    // A COPY record needs next to nothing.
    assert_eq!(copy(&mut host, &names, &[(0, 1, 0, 8192, 8000)]), GOOD);
    assert!(row.differ().is_empty());
    files.full.store(false, Ordering::Relaxed);
    assert_eq!(unmap(&mut host, 0, 16_384), GOOD);
    assert_eq!(copy(&mut host, &names, &across), GOOD);
    assert!(row.differ().is_empty());
}

/// The array has answered GOOD, the host has not been: whoever resets the LUN finds what the array did, in the journal too.
#[test]
fn a_reset_between_the_arrays_answer_and_ours_leaves_the_record_true() {
    let row = Row::new(Identity::Own);
    row.fill();
    let (mut host, mut third) = (row.host(), another(&row, 3));
    let list = [&[0, 22, 0, 16, 0, 0, 0, 0][..], &[0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0, 0, 0]].concat();
    let before = row.disks[0].batches.load(Ordering::SeqCst);
    row.disks[0].read_gate.store(true, Ordering::SeqCst);
    let unmap = host.scsi(&[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], 24, &list);
    host.send(&Request::ScsiCommand(unmap), &list);
    eventually(|| row.disks[0].at_gate.load(Ordering::SeqCst) == 1, "it is being read back");
    // It waits for the blocks, and is fenced off with the rest.
    let late = host.scsi(&crate::peer::cdb_10(0x2a, 8, 512), 512, &[0xee; 512]);
    host.send(&Request::ScsiCommand(late), &[0xee; 512]);
    third.itt += 1;
    let reset = TaskManagement {
        immediate: true,
        function: 5,
        lun: [0; 8],
        itt: third.itt,
        referenced_itt: 0,
        cmd_sn: third.cmd_sn,
        exp_stat_sn: 0,
        ref_cmd_sn: third.cmd_sn,
        exp_data_sn: 0,
    };
    third.send(&Request::TaskManagement(reset), &[]);
    match third.receive().expect("an answer").response {
        Response::TaskManagement { response, itt } => assert_eq!((response, itt), (0, third.itt)),
        other => panic!("unexpected {other:?}"),
    }
    row.disks[0].read_gate.store(false, Ordering::SeqCst);
    assert!(row.differ().is_empty());
    assert_eq!(row.disks[0].batches.load(Ordering::SeqCst), before + 1, "the UNMAP, and nothing else");
    third.ready();
    assert_eq!(third.read(8, 512).data, [0; 512]);
    // Neither is answered: the next answer is that of what comes then.
    host.ready();
    assert_eq!(host.write(8, &[1; 512]).status, 0);
    assert!(row.differ().is_empty());
}

fn another(row: &Row, last: u8) -> Peer {
    let mut peer = Peer::connect(row.splitter.address());
    peer.isid[5] = last;
    assert_eq!(peer.login(&crate::peer::keys(crate::IQN, &[])), 0);
    peer.ready();
    peer
}
