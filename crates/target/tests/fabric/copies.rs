//! Copies that the array makes by itself: what it has copied is in the journals, block for block, whatever becomes of the copy.

use crate::peer::{self, pattern, Peer};
use crate::row::{
    at, command, copy, list, name, Move, Row, BLOCKS, GOOD, HALF_FAILED, HOST, OTHER_IQN, STEP,
};
use crate::{eventually, ARRAY_IQN, IQN};
use playhead_target::fabric::Identity;
use playhead_target::iscsi::{Grant, Limits, Masking, Server};
use playhead_target::scsi::{Offload, Policy, Rule};
use playhead_target::splitter::State;
use playhead_wire::iscsi::request::Request;
use playhead_wire::scsi::extended_copy::{self, CopyList, Designator};
use playhead_wire::scsi::rod_token::{self, Populate, WriteUsing};
use std::sync::atomic::Ordering;
use std::time::Duration;

#[test]
fn a_copy_within_a_group_is_one_record_and_another_is_read_back() {
    let row = Row::new(Identity::Own);
    row.fill();
    let (mut host, mut other) = (row.host(), row.other_host());
    let names = [name(&mut host, 0), name(&mut host, 1), name(&mut other, 0)];
    // Within a LUN; two segments that go on are one.
    assert_eq!(copy(&mut host, &names[..1], &[(0, 0, 0, 9000, 100), (0, 0, 100, 9100, 60)]), GOOD);
    assert_eq!(row.records("g"), [(9000, 160)]);
    // Between two, named by neither and by both.
    assert_eq!(copy(&mut host, &names[..2], &[(0xffff, 1, 8, 10_000, 5000)]), GOOD);
    assert_eq!(copy(&mut host, &names[..2], &[(1, 0, 16, 12_000, 30)]), GOOD);
    assert_eq!(row.records("g"), [(9000, 160), (10_000, 5000), (12_000, 30)]);
    assert!(row.differ().is_empty());
    // What happened to the source since is not in it.
    assert_eq!(host.write(8, &[0xee; 512]).status, 0);
    assert!(row.differ().is_empty());
    // Between groups, either way: data.
    assert_eq!(copy(&mut host, &names, &[(2, 0, 0, 14_000, 700)]), GOOD);
    assert_eq!(copy(&mut host, &names, &[(0, 2, 0, 14_000, 700)]), GOOD);
    assert_eq!(copy(&mut other, &names, &[(1, 0xffff, 0, 15_000, 200)]), GOOD);
    // Onto itself, and onto what the same list reads.
    assert_eq!(copy(&mut host, &names, &[(0, 0, 0, 10, 4000), (0, 1, 0, 0, 8), (1, 0, 0, 8, 8)]), GOOD);
    assert!(row.differ().is_empty());
    assert_eq!((row.records("g").len(), row.records("h").len()), (3, 0));
    // With an identifier of four bytes.
    let mut bytes = Vec::new();
    extended_copy::emit(&list(&names[..2], &[(0, 1, 0, 16_000, 64)]), true, &mut bytes);
    assert_eq!(host.command(&command(1, 0, bytes.len()), 0, &bytes).status, 0);
    assert_eq!(row.records("g").last(), Some(&(16_000, 64)));
    let status = host.command(&[0x84, 5, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0], 32, &[]);
    assert_eq!((status.status, status.data[5]), (0, 1), "COPY OPERATION STATUS");
    assert!(row.differ().is_empty());
    // What became of one the array tells.
    let status = host.command(&[0x84, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 12, 0, 0], 12, &[]);
    assert_eq!((status.status, status.data[4]), (0, 1));
    assert_eq!(host.command(&command(0, 0, 0), 0, &[]).status, 0, "nothing to copy");
}

#[test]
fn a_copy_that_fails_half_way_is_read_back() {
    let row = Row::new(Identity::Own);
    row.fill();
    let mut host = row.host();
    let names = [name(&mut host, 0), name(&mut host, 1)];
    row.disks[1].submits_left.store(1, Ordering::SeqCst);
    assert_eq!(copy(&mut host, &names, &[(0, 1, 0, 8192, 4 * STEP as u16)]), (2, Some(HALF_FAILED)));
    row.disks[1].submits_left.store(u64::MAX, Ordering::SeqCst);
    assert!(row.differ().is_empty());
    let mut first = vec![0; 512];
    row.groups[0].volume("w").unwrap().read(8192, &mut first).unwrap();
    assert_eq!(first, pattern(512, 1), "half of it was done");
    assert!(row.records("g").is_empty());
    // The source stays as it is: nothing of it is taken any more.
    assert_eq!(host.write(0, &[5; 512]).status, 0);
    assert_eq!(copy(&mut host, &names, &[(0, 1, 0, 8192, 8)]), GOOD);
    assert_eq!(row.records("g"), [(8192, 8)]);
    assert!(row.differ().is_empty());
}

#[test]
fn both_sides_wait_for_a_copy_that_is_under_way_and_nobody_else_does() {
    let row = Row::new(Identity::Own);
    row.fill();
    let (mut host, mut other) = (row.host(), row.other_host());
    let names = [name(&mut host, 0), name(&mut host, 1)];
    row.disks[1].submit_gate.store(true, Ordering::SeqCst);
    let mut bytes = Vec::new();
    extended_copy::emit(&list(&names, &[(0, 1, 0, 8192, 100)]), false, &mut bytes);
    let request = host.scsi(&command(0, 0, bytes.len()), bytes.len() as u32, &bytes);
    host.send(&Request::ScsiCommand(request), &bytes);
    eventually(|| row.disks[1].submits_waiting.load(Ordering::SeqCst) == 1, "the copy is at the array");
    let source = host.scsi(&peer::cdb_10(0x2a, 50, 512), 512, &[9; 512]);
    host.send(&Request::ScsiCommand(source), &[9; 512]);
    // A block that is not in it is written meanwhile.
    let beside = host.scsi(&peer::cdb_10(0x2a, 100, 512), 512, &[8; 512]);
    host.send(&Request::ScsiCommand(beside), &[8; 512]);
    assert_eq!(host.end_of(beside.itt).status, 0);
    assert_eq!(other.write(0, &[7; 512]).status, 0);
    assert_eq!(host.read(50, 512).data, pattern(51 * 512, 1)[50 * 512..]);
    row.disks[1].submit_gate.store(false, Ordering::SeqCst);
    host.all_good(vec![request.itt, source.itt]);
    assert_eq!(row.records("g"), [(8192, 100)]);
    assert!(row.differ().is_empty());
}

#[test]
fn a_copy_whose_connection_is_lost_half_way_is_read_back_when_the_array_has_ended_it() {
    let mut row = Row::new(Identity::Own);
    row.fill();
    let mut host = row.host();
    let names = [name(&mut host, 0), name(&mut host, 1)];
    let mut bytes = Vec::new();
    extended_copy::emit(&list(&names, &[(0, 1, 0, 8192, 4 * STEP as u16)]), false, &mut bytes);
    row.disks[1].pause_ms.store(150, Ordering::SeqCst);
    let before = row.disks[1].batches.load(Ordering::SeqCst);
    let request = host.scsi(&command(0, 0, bytes.len()), bytes.len() as u32, &bytes);
    host.send(&Request::ScsiCommand(request), &bytes);
    eventually(|| row.disks[1].batches.load(Ordering::SeqCst) > before, "a step is done");
    let address = row.array.address();
    row.array.stop(Duration::ZERO);
    let ended = host.end_of(request.itt);
    assert_eq!((ended.status, ended.sense), (2, Some(0x0800)), "{ended:?}");
    assert_ne!(row.replicas[1].status().unwrap().state, State::Synchronised, "it is in doubt");
    row.disks[1].pause_ms.store(0, Ordering::SeqCst);
    row.array = Server::bind(address, Limits::default()).unwrap();
    row.array.add_target(ARRAY_IQN).unwrap();
    for (at, disk) in row.disks.iter().enumerate() {
        row.array.set_lun(ARRAY_IQN, 3 + at as u16, disk.clone()).unwrap();
    }
    assert!(row.differ().is_empty());
    assert!(row.records("g").is_empty());
}

#[test]
fn a_copy_that_its_host_aborts_is_read_back() {
    let row = Row::new(Identity::Own);
    row.fill();
    let mut host = row.host();
    let names = [name(&mut host, 0), name(&mut host, 1)];
    let mut bytes = Vec::new();
    // Apart from each other: the array looks for aborts between them.
    let moves: Vec<Move> = (0..6).map(|i| (0, 1, i * 1000, 8192 + i * 1001, 1000)).collect();
    extended_copy::emit(&list(&names, &moves), false, &mut bytes);
    row.disks[1].pause_ms.store(100, Ordering::SeqCst);
    let before = row.disks[1].batches.load(Ordering::SeqCst);
    let request = host.scsi(&command(0, 0, bytes.len()), bytes.len() as u32, &bytes);
    host.send(&Request::ScsiCommand(request), &bytes);
    eventually(|| row.disks[1].batches.load(Ordering::SeqCst) > before, "a step is done");
    // COPY OPERATION ABORT, of the list identifier.
    let abort = host.scsi(&[0x83, 0x1c, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 0, &[]);
    host.send(&Request::ScsiCommand(abort), &[]);
    let mut ends = Vec::new();
    while ends.len() < 2 {
        if let playhead_wire::iscsi::response::Response::Scsi { itt, status, .. } =
            host.receive().unwrap().response
        {
            ends.push((itt, status));
        }
    }
    assert!(ends.contains(&(abort.itt, 0)) && ends.contains(&(request.itt, 2)), "{ends:?}");
    row.disks[1].pause_ms.store(0, Ordering::SeqCst);
    assert!(row.differ().is_empty());
    assert!(row.records("g").is_empty());
}

#[test]
fn a_new_identity_is_named_to_the_array_as_the_array_names_it() {
    let row = Row::new(Identity::New);
    row.fill();
    let mut host = row.host();
    let names = [name(&mut host, 0), name(&mut host, 1)];
    assert_ne!(names[0], row.luns[0].production().names()[0]);
    assert_eq!(copy(&mut host, &names, &[(0, 1, 0, 9000, 50)]), GOOD);
    // The array's own name is the same LUN all the same.
    let theirs = row.luns[1].production().names()[0];
    assert_eq!(copy(&mut host, &[names[0], theirs], &[(0, 1, 50, 9050, 50)]), GOOD);
    assert_eq!(row.records("g"), [(9000, 50), (9050, 50)]);
    assert!(row.differ().is_empty());
}

#[test]
fn a_host_names_only_what_it_is_shown_and_may_write() {
    let row = Row::new(Identity::Own);
    row.fill();
    let mut host = row.host();
    let names = [name(&mut host, 0), name(&mut host, 1), name(&mut row.other_host(), 0)];
    let unknown = Designator::naa(&[0x61; 16]);
    assert_eq!(copy(&mut host, &[names[0], unknown], &[(0, 1, 0, 9000, 8)]), (2, Some(0x0804)));
    assert_eq!(copy(&mut host, &[unknown, names[0]], &[(0, 1, 0, 9000, 8)]), (2, Some(0x0804)));
    // The other group's LUN is another host's, though the array would let us.
    let grant =
        |initiator: &str, read_only| vec![Grant { initiator: initiator.to_owned(), number: 0, read_only }];
    let masked = |grants| Masking::new([((OTHER_IQN.to_owned(), 0), grants)]).unwrap();
    row.splitter.set_masking(masked(grant("iqn.2026-01.org.example:somebody", false)));
    for moves in [[(2, 0, 0, 9000, 8)], [(0, 2, 0, 9000, 8)]] {
        assert_eq!(copy(&mut host, &names, &moves), (2, Some(0x0804)));
    }
    row.splitter.set_masking(masked(grant(HOST, true)));
    assert_eq!(copy(&mut host, &names, &[(0, 2, 0, 9000, 8)]), (2, Some(0x0d01)));
    assert_eq!(copy(&mut host, &names, &[(2, 0, 0, 9000, 8)]), GOOD);
    // Beyond the end, and with IMMED.
    assert_eq!(copy(&mut host, &names, &[(0, 1, BLOCKS - 4, 9000, 8)]), (2, Some(0x0d02)));
    let mut bytes = Vec::new();
    let background = CopyList { immediate: true, ..list(&names[..1], &[(0, 0, 0, 9000, 8)]) };
    extended_copy::emit(&background, true, &mut bytes);
    assert_eq!(host.command(&command(1, 0, bytes.len()), 0, &bytes).sense, Some(0x2600));
    // By policy of one LUN.
    let reject = Rule { lun: Some([3; 16]), initiator: None, offload: Offload::Xcopy, support: false };
    row.splitter.set_policy(Policy::new([reject]));
    assert_eq!(copy(&mut host, &names, &[(0, 1, 0, 9000, 8)]), (2, Some(0x0d01)));
    assert_eq!(at(&mut host, 1, |host| copy(host, &names, &[(0, 1, 0, 9000, 8)])), (2, Some(0x2000)));
    assert!(row.records("g").is_empty());
    assert!(row.differ().is_empty());
}

#[test]
fn tokens_are_the_arrays_and_what_they_write_is_read_back() {
    let row = Row::new(Identity::Own);
    row.fill();
    let mut host = row.host();
    let mut bytes = Vec::new();
    let populate = Populate { immediate: false, inactivity_s: 0, ranges: vec![(0, 3000)] };
    rod_token::emit_populate(&populate, &mut bytes);
    assert_eq!(host.command(&command(0x10, 4, bytes.len()), 0, &bytes).status, 0);
    let ask = [0x84, 7, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0];
    let told = host.command(&ask, 1024, &[]).data;
    let mut token = [0; rod_token::TOKEN_BYTES];
    token.copy_from_slice(&told[told.len() - rod_token::TOKEN_BYTES..]);
    // The token stands for what was then.
    assert_eq!(host.write(0, &[0xaa; 512]).status, 0);
    let mut write = WriteUsing {
        immediate: false,
        delete: false,
        offset: 0,
        token,
        ranges: vec![(9000, 1000), (12_000, 2000)],
    };
    let using = |write: &WriteUsing| {
        let mut bytes = Vec::new();
        rod_token::emit_write_using(write, &mut bytes);
        bytes
    };
    let bytes = using(&write);
    at(&mut host, 1, |host| assert_eq!(host.command(&command(0x11, 5, bytes.len()), 0, &bytes).status, 0));
    assert!(row.differ().is_empty());
    let mut first = vec![0; 512];
    row.groups[0].volume("w").unwrap().read(9000, &mut first).unwrap();
    assert_eq!(first, pattern(512, 1));
    // Half way.
    row.disks[1].submits_left.store(1, Ordering::SeqCst);
    let ended = at(&mut host, 1, |host| host.command(&command(0x11, 6, bytes.len()), 0, &bytes));
    assert_eq!(ended.status, 2, "{ended:?}");
    row.disks[1].submits_left.store(u64::MAX, Ordering::SeqCst);
    assert!(row.differ().is_empty());
    // Zeros, and in the background.
    write.token = rod_token::zeros();
    let bytes = using(&write);
    assert_eq!(host.command(&command(0x11, 7, bytes.len()), 0, &bytes).status, 0);
    write.immediate = true;
    let bytes = using(&write);
    assert_eq!(host.command(&command(0x11, 8, bytes.len()), 0, &bytes).sense, Some(0x2600));
    write.ranges = vec![(BLOCKS - 1, 2)];
    write.immediate = false;
    let bytes = using(&write);
    assert_eq!(host.command(&command(0x11, 8, bytes.len()), 0, &bytes).sense, Some(0x2100));
    assert!(row.differ().is_empty());
}

#[test]
fn copies_and_writes_of_many_hosts_leave_equal_volumes() {
    let row = Row::new(Identity::Own);
    row.fill();
    let names = {
        let (mut host, mut other) = (row.host(), row.other_host());
        [name(&mut host, 0), name(&mut host, 1), name(&mut other, 0)]
    };
    let seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
    eprintln!("seed {seed}");
    // Between what the array has read and what it writes there is time for others.
    row.disks.iter().for_each(|disk| disk.pause_ms.store(1, Ordering::SeqCst));
    std::thread::scope(|scope| {
        for id in 1..=3u8 {
            let (row, names) = (&row, &names);
            scope.spawn(move || {
                let mut host = Peer::connect(row.splitter.address());
                host.isid[5] = 10 + id;
                assert_eq!(host.login(&peer::keys(IQN, &[])), 0);
                host.ready();
                at(&mut host, 1, Peer::ready);
                let mut state = seed.wrapping_add(u64::from(id));
                let mut next = move |below: u64| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    (state >> 33) % below
                };
                for round in 0..100 {
                    let (lun, count) = (next(2) as u16, 1 + next(40));
                    let lba = next(400);
                    if next(3) == 0 {
                        let data = vec![id * 64 + round % 64; count as usize * 512];
                        let ended = at(&mut host, lun, |host| host.write(lba as u32, &data));
                        assert_eq!(ended.status, 0);
                        continue;
                    }
                    // One in four is read back, of other regions: it must not hide what the others have recorded.
                    let mut moves: Vec<Move> = Vec::new();
                    if next(4) == 0 {
                        moves.extend((0..1 + next(3)).map(|_| {
                            let (from, to) = (next(3) as u16, next(3) as u16);
                            (from, to, 4096 + next(400), 4096 + next(400), 1 + next(40) as u16)
                        }));
                    } else {
                        let from = next(2) as u16;
                        moves.push((from, 1 - from, next(400), next(400), 1 + next(40) as u16));
                    }
                    assert_eq!(at(&mut host, lun, |host| copy(host, names, &moves)), GOOD, "{moves:?}");
                }
            });
        }
    });
    assert!(row.differ().is_empty(), "seed {seed}");
    assert!(!row.records("g").is_empty());
}

#[test]
fn an_array_without_copies_says_so_itself() {
    let row = Row::new(Identity::Own);
    let mut host = row.host();
    let names = [name(&mut host, 0)];
    row.array.set_policy(Policy::new([Offload::Xcopy, Offload::Odx].map(|offload| Rule {
        lun: None,
        initiator: None,
        offload,
        support: false,
    })));
    host.ready();
    assert_eq!(copy(&mut host, &names, &[(0, 0, 0, 9000, 8)]), (2, Some(0x2000)));
    assert!(row.differ().is_empty());
}
