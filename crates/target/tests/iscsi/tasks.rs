//! Task management: what it ends, when it is answered, and whom it leaves alone.

use crate::peer::{cdb_10, keys, pattern, Peer};
use crate::ramdisk::RamDisk;
use crate::{serve, IQN};
use playhead_target::iscsi::Limits;
use playhead_wire::iscsi::request::{function, DataOut, Request, TaskManagement};
use playhead_wire::iscsi::response::{reject, Response};
use playhead_wire::iscsi::{lun_bytes, RESERVED_TAG};
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Duration;

const COMPLETE: u8 = 0;
const NO_TASK: u8 = 1;
const NO_LUN: u8 = 2;
const NO_REASSIGNMENT: u8 = 4;
const NOT_SUPPORTED: u8 = 5;
const SUCCEEDED: u8 = 7;
/// PRE-FETCH(10) of eight blocks, which reads them beside the session.
const PRE_FETCH: [u8; 10] = [0x34, 0, 0, 0, 0, 0, 0, 0, 8, 0];

fn ask(peer: &mut Peer, function: u8, lun: [u8; 8], referenced_itt: u32) {
    let request = TaskManagement {
        immediate: true,
        function,
        lun,
        itt: 0x7000_0000 | u32::from(function),
        referenced_itt,
        cmd_sn: peer.cmd_sn,
        exp_stat_sn: 0,
        ref_cmd_sn: peer.cmd_sn.wrapping_sub(1),
        exp_data_sn: 0,
    };
    peer.send(&Request::TaskManagement(request), &[]);
}

fn answer(peer: &mut Peer) -> u8 {
    match peer.receive().expect("the connection ended").response {
        Response::TaskManagement { response, .. } => response,
        other => panic!("not task management: {other:?}"),
    }
}

fn manage(peer: &mut Peer, function: u8, lun: [u8; 8], referenced_itt: u32) -> u8 {
    ask(peer, function, lun, referenced_itt);
    answer(peer)
}

/// A write of one block that waits for its data.
fn waiting_write(peer: &mut Peer) -> (u32, u32) {
    let command = peer.scsi(&cdb_10(0x2a, 0, 512), 512, &[1]);
    peer.send(&Request::ScsiCommand(command), &[]);
    match peer.receive().unwrap().response {
        Response::R2t { ttt, .. } => (command.itt, ttt),
        other => panic!("not an R2T: {other:?}"),
    }
}

fn send_data(peer: &mut Peer, itt: u32, ttt: u32) {
    let data_out =
        DataOut { is_final: true, lun: [0; 8], itt, ttt, exp_stat_sn: 0, data_sn: 0, offset_bytes: 0 };
    peer.send(&Request::DataOut(data_out), &[0xbb; 512]);
}

fn start(peer: &mut Peer, cdb: &[u8]) -> u32 {
    let command = peer.scsi(cdb, 0, &[]);
    peer.send(&Request::ScsiCommand(command), &[]);
    command.itt
}

fn until_at_gate(disk: &RamDisk) {
    while disk.at_gate.load(Ordering::SeqCst) == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
}

const SOLICITED: [(&str, &str); 1] = [("ImmediateData", "No")];

#[test]
fn every_function_there_is_gets_its_answer() {
    let (server, disk) = serve(Limits::default());
    let mut peer = Peer::session(server.address(), IQN, &SOLICITED);
    let (here, nowhere) = (lun_bytes(0), lun_bytes(77));
    for (what, lun, expected) in [
        (function::ABORT_TASK_SET, here, COMPLETE),
        (function::ABORT_TASK_SET, nowhere, NO_LUN),
        (function::CLEAR_ACA, here, NOT_SUPPORTED),
        (function::CLEAR_TASK_SET, here, COMPLETE),
        (function::CLEAR_TASK_SET, nowhere, NO_LUN),
        (function::LOGICAL_UNIT_RESET, nowhere, NO_LUN),
        (function::TASK_REASSIGN, here, NO_REASSIGNMENT),
        (function::QUERY_TASK_SET, here, COMPLETE),
        (function::QUERY_TASK_SET, nowhere, NO_LUN),
        (12, here, NOT_SUPPORTED),
        (0, here, NOT_SUPPORTED),
        (0x7f, here, NOT_SUPPORTED),
    ] {
        assert_eq!(manage(&mut peer, what, lun, RESERVED_TAG), expected, "function {what}");
    }
    assert_eq!(manage(&mut peer, function::ABORT_TASK, here, 4711), NO_TASK);
    assert_eq!(manage(&mut peer, function::QUERY_TASK, here, 4711), COMPLETE);
    // A task that waits for data, for a flush, and one that works.
    let (writing, _) = waiting_write(&mut peer);
    disk.flush_gate.store(true, Ordering::SeqCst);
    let flushing = start(&mut peer, &cdb_10(0x35, 0, 0));
    disk.read_gate.store(true, Ordering::SeqCst);
    let working = start(&mut peer, &PRE_FETCH);
    for itt in [writing, flushing, working] {
        assert_eq!(manage(&mut peer, function::QUERY_TASK, here, itt), SUCCEEDED);
    }
    assert_eq!(manage(&mut peer, function::QUERY_TASK_SET, here, RESERVED_TAG), SUCCEEDED);
    disk.read_gate.store(false, Ordering::SeqCst);
    disk.flush_gate.store(false, Ordering::SeqCst);
    let mut over =
        [peer.receive().unwrap(), peer.receive().unwrap()].map(|received| match received.response {
            Response::Scsi { status: 0, itt, .. } => itt,
            other => panic!("{other:?}"),
        });
    over.sort_unstable();
    assert_eq!(over, [flushing, working]);
    assert_eq!(manage(&mut peer, function::ABORT_TASK, here, writing), COMPLETE);
    assert_eq!(manage(&mut peer, function::QUERY_TASK_SET, here, RESERVED_TAG), COMPLETE);
    // REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS says the same.
    let report = [0xa3, 0x0d, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0];
    assert_eq!(peer.command(&report, 4, &[]).data[..2], [0xde, 0x03]);
}

#[test]
fn an_abort_is_answered_when_the_job_has_stopped_and_the_session_goes_on_meanwhile() {
    let (server, disk) = serve(Limits::default());
    server.set_lun(IQN, 1, Arc::new(RamDisk::new("disk1", 4096))).unwrap();
    let mut peer = Peer::session(server.address(), IQN, &[]);
    for (what, sense) in [
        (function::ABORT_TASK, None),
        (function::ABORT_TASK_SET, None),
        (function::LOGICAL_UNIT_RESET, Some(0x2903)),
    ] {
        disk.read_gate.store(true, Ordering::SeqCst);
        let itt = start(&mut peer, &PRE_FETCH);
        until_at_gate(&disk);
        peer.lun = lun_bytes(1);
        peer.ready();
        ask(&mut peer, what, lun_bytes(0), itt);
        // It may be looked for, and is not found: it was ended. Another LUN is served.
        ask(&mut peer, function::QUERY_TASK, lun_bytes(0), itt);
        assert_eq!(answer(&mut peer), COMPLETE, "the query comes first");
        assert_eq!(peer.write(5, &[7; 512]).status, 0);
        disk.read_gate.store(false, Ordering::SeqCst);
        assert_eq!(answer(&mut peer), COMPLETE);
        peer.lun = lun_bytes(0);
        let ended = peer.command(&[0; 6], 0, &[]);
        assert_eq!(ended.sense, sense, "function {what}");
    }
}

#[test]
fn a_reset_waits_for_what_another_session_is_writing() {
    let (server, disk) = serve(Limits::default());
    let mut writer = Peer::session(server.address(), IQN, &[]);
    let mut other = Peer::connect(server.address());
    other.isid[5] = 77;
    assert_eq!(other.login(&keys(IQN, &[])), 0);
    other.ready();
    disk.change_gate.store(true, Ordering::SeqCst);
    let data = pattern(512, 1);
    let command = writer.scsi(&cdb_10(0x2a, 0, 512), 512, &data);
    writer.send(&Request::ScsiCommand(command), &data);
    until_at_gate(&disk);
    ask(&mut other, function::LOGICAL_UNIT_RESET, lun_bytes(0), RESERVED_TAG);
    assert_eq!(other.command(&[0; 6], 0, &[]).sense, Some(0x2903), "the session is not held up");
    assert!(other.read(0, 512).data.iter().all(|&byte| byte == 0));
    disk.change_gate.store(false, Ordering::SeqCst);
    assert_eq!(answer(&mut other), COMPLETE);
    assert_eq!(other.read(0, 512).data, data, "it had begun: what is answered for is over");
}

#[test]
fn resets_of_the_target_reach_every_unit_and_a_cold_one_ends_the_sessions() {
    let (server, _disk) = serve(Limits::default());
    server.set_lun(IQN, 1, Arc::new(RamDisk::new("disk1", 4096))).unwrap();
    let mut peer = Peer::session(server.address(), IQN, &SOLICITED);
    let mut other = Peer::connect(server.address());
    other.isid[5] = 77;
    assert_eq!(other.login(&keys(IQN, &[])), 0);
    for peer in [&mut peer, &mut other] {
        for number in [1, 0] {
            peer.lun = lun_bytes(number);
            peer.ready();
        }
    }
    let (itt, ttt) = waiting_write(&mut peer);
    assert_eq!(manage(&mut peer, function::TARGET_WARM_RESET, [0; 8], RESERVED_TAG), COMPLETE);
    send_data(&mut peer, itt, ttt);
    for peer in [&mut peer, &mut other] {
        for number in [1, 0] {
            peer.lun = lun_bytes(number);
            assert_eq!(peer.command(&[0; 6], 0, &[]).sense, Some(0x2903));
            peer.ready();
        }
    }
    assert!(peer.read(0, 512).data.iter().all(|&byte| byte == 0));
    assert_eq!(manage(&mut peer, function::TARGET_COLD_RESET, [0; 8], RESERVED_TAG), COMPLETE);
    assert!(peer.ends() && other.ends());
}

#[test]
fn a_nexus_reset_ends_this_session_s_tasks_and_reservation_alone() {
    let (server, _disk) = serve(Limits::default());
    let mut peer = Peer::session(server.address(), IQN, &SOLICITED);
    let mut other = Peer::connect(server.address());
    other.isid[5] = 77;
    assert_eq!(other.login(&keys(IQN, &SOLICITED)), 0);
    other.ready();
    let theirs = waiting_write(&mut other);
    assert_eq!(peer.command(&[0x16, 0, 0, 0, 0, 0], 0, &[]).status, 0);
    assert_eq!(other.command(&[0; 6], 0, &[]).status, 0x18);
    let mine = waiting_write(&mut peer);
    assert_eq!(manage(&mut peer, function::I_T_NEXUS_RESET, [0; 8], RESERVED_TAG), COMPLETE);
    send_data(&mut peer, mine.0, mine.1);
    assert_eq!(peer.command(&[0; 6], 0, &[]).sense, Some(0x2900));
    assert_eq!(other.command(&[0; 6], 0, &[]).status, 0);
    send_data(&mut other, theirs.0, theirs.1);
    assert_eq!(other.end_of(theirs.0).status, 0);
}

#[test]
fn immediate_commands_have_a_limit_as_the_others_have_their_window() {
    let (server, disk) = serve(Limits { tasks_max: 4, ..Limits::default() });
    let mut peer = Peer::session(server.address(), IQN, &[]);
    disk.flush_gate.store(true, Ordering::SeqCst);
    let mut under_way = Vec::new();
    for _ in 0..4 {
        let mut command = peer.scsi(&cdb_10(0x35, 0, 0), 0, &[]);
        peer.cmd_sn -= 1;
        (command.immediate, command.cmd_sn) = (true, peer.cmd_sn);
        peer.send(&Request::ScsiCommand(command), &[]);
        under_way.push(command.itt);
    }
    let mut command = peer.scsi(&cdb_10(0x35, 0, 0), 0, &[]);
    peer.cmd_sn -= 1;
    (command.immediate, command.cmd_sn) = (true, peer.cmd_sn);
    peer.send(&Request::ScsiCommand(command), &[]);
    let received = peer.receive().unwrap();
    assert_eq!(received.response, Response::Reject { reason: reject::IMMEDIATE });
    // The window is another matter.
    peer.ready();
    disk.flush_gate.store(false, Ordering::SeqCst);
    peer.all_good(under_way);
    peer.send(&Request::ScsiCommand(command), &[]);
    assert_eq!(peer.end_of(command.itt).status, 0);
}

#[test]
fn a_lun_that_does_not_answer_holds_up_its_own_jobs_alone() {
    let (server, disk) = serve(Limits::default());
    server.set_lun(IQN, 1, Arc::new(RamDisk::new("disk1", 4096))).unwrap();
    let mut peer = Peer::session(server.address(), IQN, &[]);
    disk.read_gate.store(true, Ordering::SeqCst);
    let stuck: Vec<u32> = (0..20).map(|_| start(&mut peer, &PRE_FETCH)).collect();
    peer.lun = lun_bytes(1);
    peer.ready();
    assert_eq!(peer.command(&PRE_FETCH, 0, &[]).status, 0);
    disk.read_gate.store(false, Ordering::SeqCst);
    peer.all_good(stuck);
}

#[test]
fn an_initiator_whose_luns_are_all_stuck_does_not_hold_up_another() {
    let (server, _disk) = serve(Limits::default());
    let stuck: Vec<Arc<RamDisk>> =
        (1..=10).map(|number| Arc::new(RamDisk::new(&format!("stuck{number}"), 131_072))).collect();
    for (number, disk) in (1..).zip(&stuck) {
        disk.read_gate.store(true, Ordering::SeqCst);
        server.set_lun(IQN, number, disk.clone()).unwrap();
    }
    let mut greedy = Peer::session(server.address(), IQN, &[]);
    let mut started = Vec::new();
    for number in 1..=10 {
        greedy.lun = lun_bytes(number);
        greedy.ready();
        started.extend((0..4).map(|_| start(&mut greedy, &PRE_FETCH)));
    }
    let at_work = || stuck.iter().map(|disk| disk.at_gate.load(Ordering::SeqCst)).sum::<u64>();
    while at_work() < 16 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let mut other = Peer::connect(server.address());
    let mut keys = keys(IQN, &[]);
    keys[0].1 = "iqn.2026-01.org.example:other";
    assert_eq!(other.login(&keys), 0);
    other.ready();
    assert_eq!(other.command(&PRE_FETCH, 0, &[]).status, 0);
    assert_eq!(at_work(), 16, "half of the workers are left for others");
    stuck.iter().for_each(|disk| disk.read_gate.store(false, Ordering::SeqCst));
    greedy.all_good(started);
}
