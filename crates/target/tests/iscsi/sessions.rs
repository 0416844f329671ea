//! What a well-behaved initiator may rely on.

use crate::peer::{cdb_10, keys, pattern, Peer};
use crate::ramdisk::RamDisk;
use crate::{serve, IQN};
use playhead_target::iscsi::{Limits, Masking};
use playhead_wire::iscsi::request::{function, DataOut, LogoutRequest, Request, TaskManagement, TextRequest};
use playhead_wire::iscsi::response::{reject, Residual, Response};
use playhead_wire::iscsi::{text, RESERVED_TAG};
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Duration;

const GOOD: u8 = 0;
const CHECK: u8 = 2;

fn data_out(itt: u32, ttt: u32, data_sn: u32, offset: usize, is_final: bool) -> Request {
    Request::DataOut(DataOut {
        is_final,
        lun: [0; 8],
        itt,
        ttt,
        exp_stat_sn: 0,
        data_sn,
        offset_bytes: offset as u32,
    })
}

fn management(peer: &Peer, what: u8, referenced_itt: u32) -> Request {
    Request::TaskManagement(TaskManagement {
        immediate: true,
        function: what,
        lun: [0; 8],
        itt: 0x7000_0000,
        referenced_itt,
        cmd_sn: peer.cmd_sn,
        exp_stat_sn: 0,
        ref_cmd_sn: peer.cmd_sn.wrapping_sub(1),
        exp_data_sn: 0,
    })
}

/// Answers one R2T with Data-Out PDUs of 4 KiB.
fn answer_r2t(peer: &mut Peer, data: &[u8], r2t: &Response) -> usize {
    let Response::R2t { itt, ttt, offset_bytes, desired_bytes, .. } = *r2t else {
        panic!("not an R2T: {r2t:?}");
    };
    let (start, end) = (offset_bytes as usize, (offset_bytes + desired_bytes) as usize);
    for (i, at) in (start..end).step_by(4096).enumerate() {
        let to = (at + 4096).min(end);
        peer.send(&data_out(itt, ttt, i as u32, at, to == end), &data[at..to]);
    }
    end
}

#[test]
fn a_write_comes_as_immediate_unsolicited_and_solicited_data() {
    let (server, _disk) = serve(Limits::default());
    let more = [
        ("InitialR2T", "No"),
        ("ImmediateData", "Yes"),
        ("FirstBurstLength", "8192"),
        ("MaxBurstLength", "16384"),
        ("MaxRecvDataSegmentLength", "4096"),
        ("MaxOutstandingR2T", "2"),
    ];
    let mut peer = Peer::session(server.address(), IQN, &more);
    let data = pattern(65_536, 3);
    let mut command = peer.scsi(&cdb_10(0x2a, 100, data.len()), data.len() as u32, &data);
    command.is_final = false;
    peer.send(&Request::ScsiCommand(command), &data[..4096]);
    peer.send(&data_out(command.itt, RESERVED_TAG, 0, 4096, true), &data[4096..8192]);
    let mut asked = 8192;
    while asked < data.len() {
        let received = peer.receive().unwrap();
        if let Response::R2t { offset_bytes, desired_bytes, .. } = received.response {
            assert_eq!(offset_bytes as usize, asked);
            assert!(desired_bytes <= 16_384);
        }
        asked = answer_r2t(&mut peer, &data, &received.response);
    }
    assert_eq!(peer.end_of(command.itt).status, GOOD);
    // Data-In obeys the 4 KiB this initiator takes and its bursts.
    let request = peer.scsi(&cdb_10(0x28, 100, data.len()), data.len() as u32, &[]);
    peer.send(&Request::ScsiCommand(request), &[]);
    let mut got = Vec::new();
    for data_sn in 0.. {
        let received = peer.receive().unwrap();
        let Response::DataIn(data_in) = received.response else { panic!("{received:?}") };
        assert!(received.data.len() <= 4096);
        assert_eq!((data_in.data_sn, data_in.offset_bytes as usize), (data_sn, got.len()));
        got.extend_from_slice(&received.data);
        assert_eq!(data_in.is_final, got.len() % 16_384 == 0);
        if let Some(status) = data_in.status {
            assert_eq!((status, data_in.residual), (GOOD, Residual::None));
            break;
        }
    }
    assert!(got == data);
}

#[test]
fn data_out_of_order_fails_the_command_and_nothing_else() {
    let (server, _disk) = serve(Limits::default());
    let mut peer = Peer::session(server.address(), IQN, &[("ImmediateData", "No")]);
    let data = pattern(8192, 4);
    let command = peer.scsi(&cdb_10(0x2a, 0, data.len()), data.len() as u32, &data);
    peer.send(&Request::ScsiCommand(command), &[]);
    let Response::R2t { ttt, .. } = peer.receive().unwrap().response else { panic!() };
    peer.send(&data_out(command.itt, ttt, 1, 4096, false), &data[4096..]);
    let ended = peer.end_of(command.itt);
    assert_eq!((ended.status, ended.sense), (CHECK, Some(0x4705)));
    peer.send(&data_out(command.itt, ttt, 0, 0, true), &data[..4096]);
    assert!(peer.read(0, 8192).data.iter().all(|&byte| byte == 0));
}

#[test]
fn digests_guard_headers_and_data_both_ways() {
    let (server, _disk) = serve(Limits::default());
    let both = [("HeaderDigest", "CRC32C,None"), ("DataDigest", "CRC32C,None")];
    let mut peer = Peer::session(server.address(), IQN, &both);
    assert!(peer.digests.header && peer.digests.data);
    let data = pattern(10 * 512, 9);
    assert_eq!(peer.write(7, &data).status, GOOD);
    assert!(peer.read(7, data.len()).data == data);
    // A damaged data segment is rejected, then the session starts anew (level 0).
    let command = peer.scsi(&cdb_10(0x2a, 7, 512), 512, &data);
    let mut bytes = peer.bytes(Request::ScsiCommand(command).emit(), &data[..512]);
    bytes[100] ^= 1;
    peer.send_raw(&bytes);
    let received = peer.receive().unwrap();
    assert_eq!(received.response, Response::Reject { reason: reject::DATA_DIGEST });
    assert_eq!(received.data[..48], bytes[..48]);
    assert!(peer.ends());
    let mut peer = Peer::session(server.address(), IQN, &both);
    assert!(peer.read(7, data.len()).data == data);
    let command = peer.scsi(&cdb_10(0x28, 7, 512), 512, &[]);
    let mut bytes = peer.bytes(Request::ScsiCommand(command).emit(), &[]);
    bytes[35] ^= 1;
    peer.send_raw(&bytes);
    assert!(peer.ends());
}

#[test]
fn writes_that_arrive_together_are_one_batch_and_answered_in_order() {
    let (server, disk) = serve(Limits::default());
    let mut peer = Peer::session(server.address(), IQN, &[]);
    let before = disk.batches.load(Ordering::Relaxed);
    let mut bytes = Vec::new();
    let mut tags = Vec::new();
    for i in 0..16u8 {
        let data = [i; 512];
        let command = peer.scsi(&cdb_10(0x2a, u32::from(i), 512), 512, &data);
        bytes.extend(peer.bytes(Request::ScsiCommand(command).emit(), &data));
        tags.push(command.itt);
    }
    // A read of what is being written sees it.
    let read = peer.scsi(&cdb_10(0x28, 0, 16 * 512), 16 * 512, &[]);
    bytes.extend(peer.bytes(Request::ScsiCommand(read).emit(), &[]));
    peer.send_raw(&bytes);
    for itt in tags {
        assert_eq!(peer.end_of(itt).status, GOOD);
    }
    let data = peer.end_of(read.itt).data;
    assert!(data.chunks(512).enumerate().all(|(i, block)| block == [i as u8; 512]));
    assert!(disk.batches.load(Ordering::Relaxed) - before < 16);
    let session = &server.sessions()[0];
    assert_eq!((session.written_bytes, session.read_bytes), (16 * 512, 16 * 512));
    assert_eq!(session.target.as_deref(), Some(IQN));
}

#[test]
fn fua_synchronize_and_a_disabled_cache_flush_before_good() {
    let (server, disk) = serve(Limits::default());
    let mut peer = Peer::session(server.address(), IQN, &[]);
    let flushes = || disk.flushes.load(Ordering::Relaxed);
    assert_eq!(peer.write(0, &[1; 512]).status, GOOD);
    assert_eq!(flushes(), 0);
    let mut fua = cdb_10(0x2a, 0, 512);
    fua[1] = 0x08;
    assert_eq!(peer.command(&fua, 0, &[2; 512]).status, GOOD);
    assert_eq!(flushes(), 1);
    assert_eq!(peer.command(&cdb_10(0x35, 0, 0), 0, &[]).status, GOOD);
    assert_eq!(flushes(), 2);
    // MODE SELECT(6) of the caching page with WCE=0.
    let mut list = vec![0, 0, 0, 0, 0x08, 18];
    list.resize(4 + 20, 0);
    let select = [0x15, 0x10, 0, 0, list.len() as u8, 0];
    assert_eq!(peer.command(&select, 0, &list).status, GOOD);
    assert_eq!(peer.write(0, &[3; 512]).status, GOOD);
    assert_eq!(flushes(), 4);
}

#[test]
fn errors_of_the_lun_become_the_sense_that_names_them() {
    let (server, disk) = serve(Limits::default());
    let mut peer = Peer::session(server.address(), IQN, &[]);
    disk.read_only.store(true, Ordering::Relaxed);
    assert_eq!(peer.write(0, &[1; 512]).sense, Some(0x2700));
    disk.read_only.store(false, Ordering::Relaxed);
    disk.broken.store(true, Ordering::Relaxed);
    assert_eq!(peer.write(0, &[1; 512]).sense, Some(0x0c00));
    assert_eq!(peer.read(0, 512).sense, Some(0x1100));
    disk.broken.store(false, Ordering::Relaxed);
    assert_eq!(peer.read(131_072, 512).sense, Some(0x2100));
    assert_eq!(peer.command(&[0xc1, 0, 0, 0, 0, 0], 0, &[]).sense, Some(0x2000));
    assert_eq!(peer.read(0, 512).status, GOOD);
}

#[test]
fn a_write_announced_as_a_read_is_not_called_good() {
    let (server, _disk) = serve(Limits::default());
    let mut peer = Peer::session(server.address(), IQN, &[]);
    let ended = peer.command(&cdb_10(0x2a, 0, 512), 512, &[]);
    assert_eq!((ended.status, ended.sense), (CHECK, Some(0x0e03)));
    // With nothing announced at all, nothing moves, and the residual says so.
    let command = peer.scsi(&cdb_10(0x2a, 0, 512), 0, &[]);
    peer.send(&Request::ScsiCommand(command), &[]);
    let response = peer.receive().unwrap().response;
    assert!(
        matches!(response, Response::Scsi { status: GOOD, residual: Residual::Overflow(512), .. }),
        "{response:?}"
    );
}

#[test]
fn luns_come_go_and_grow_under_a_session() {
    let (server, disk) = serve(Limits::default());
    let mut peer = Peer::session(server.address(), IQN, &[]);
    disk.grow(262_144);
    assert_eq!(peer.command(&[0; 6], 0, &[]).sense, Some(0x2a09));
    assert_eq!(peer.read(200_000, 512).status, GOOD);
    server.set_lun(IQN, 1, Arc::new(RamDisk::new("disk1", 2048))).unwrap();
    assert_eq!(peer.command(&[0; 6], 0, &[]).sense, Some(0x3f0e));
    let luns = peer.command(&[0xa0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], 256, &[]).data;
    assert_eq!(luns.len(), 8 + 16);
    server.remove_lun(IQN, 0, Duration::from_secs(5)).unwrap();
    assert_eq!(Arc::strong_count(&disk), 1, "a removed LUN is let go");
    assert_eq!(peer.read(0, 512).sense, Some(0x2500));
    assert!(server.remove_lun(IQN, 0, Duration::ZERO).is_err());
    server.set_lun(IQN, 0, disk).unwrap();
    assert_eq!(peer.command(&[0; 6], 0, &[]).sense, Some(0x2900));
}

#[test]
fn the_same_name_and_isid_reinstate_the_session_and_another_isid_joins_it() {
    let (server, _disk) = serve(Limits::default());
    let mut first = Peer::session(server.address(), IQN, &[]);
    let mut second = Peer::connect(server.address());
    second.isid[5] = 99;
    assert_eq!(second.login(&keys(IQN, &[])), 0);
    first.ready();
    let mut again = Peer::session(server.address(), IQN, &[]);
    assert!(first.ends());
    again.ready();
    second.ready();
    assert_eq!(server.sessions().len(), 2);
}

#[test]
fn aborted_tasks_write_nothing_and_free_their_tags() {
    let (server, _disk) = serve(Limits::default());
    let mut peer = Peer::session(server.address(), IQN, &[("ImmediateData", "No")]);
    let data = pattern(512, 1);
    let command = peer.scsi(&cdb_10(0x2a, 0, 512), 512, &data);
    peer.send(&Request::ScsiCommand(command), &[]);
    let Response::R2t { ttt, .. } = peer.receive().unwrap().response else { panic!() };
    peer.send(&management(&peer, function::ABORT_TASK, command.itt), &[]);
    let received = peer.receive().unwrap();
    assert!(matches!(received.response, Response::TaskManagement { response: 0, .. }), "{received:?}");
    peer.send(&data_out(command.itt, ttt, 0, 0, true), &data);
    assert!(peer.read(0, 512).data.iter().all(|&byte| byte == 0));
    // Again: now there is no such task.
    peer.send(&management(&peer, function::ABORT_TASK, command.itt), &[]);
    let received = peer.receive().unwrap();
    assert!(matches!(received.response, Response::TaskManagement { response: 1, .. }));
}

#[test]
fn a_reset_by_one_initiator_ends_the_tasks_of_the_other() {
    let (server, _disk) = serve(Limits::default());
    let mut victim = Peer::session(server.address(), IQN, &[("ImmediateData", "No")]);
    let mut other = Peer::connect(server.address());
    other.isid[5] = 77;
    assert_eq!(other.login(&keys(IQN, &[])), 0);
    other.ready();
    let data = pattern(512, 1);
    let command = victim.scsi(&cdb_10(0x2a, 0, 512), 512, &data);
    victim.send(&Request::ScsiCommand(command), &[]);
    let Response::R2t { ttt, .. } = victim.receive().unwrap().response else { panic!() };
    other.send(&management(&other, function::LOGICAL_UNIT_RESET, RESERVED_TAG), &[]);
    assert!(matches!(other.receive().unwrap().response, Response::TaskManagement { response: 0, .. }));
    victim.send(&data_out(command.itt, ttt, 0, 0, true), &data);
    assert_eq!(victim.command(&[0; 6], 0, &[]).sense, Some(0x2903));
    assert!(victim.read(0, 512).data.iter().all(|&byte| byte == 0));
}

#[test]
fn unfinished_writes_beyond_the_budget_are_told_to_wait() {
    let limits = Limits { session_bytes_max: 1 << 20, ..Limits::default() };
    let (server, _disk) = serve(limits);
    let mut peer = Peer::session(server.address(), IQN, &[("ImmediateData", "No")]);
    let data = pattern(1 << 20, 1);
    let first = peer.scsi(&cdb_10(0x2a, 0, data.len()), data.len() as u32, &data);
    peer.send(&Request::ScsiCommand(first), &[]);
    let r2t = peer.receive().unwrap().response;
    let second = peer.scsi(&cdb_10(0x2a, 0, 512), 512, &data);
    peer.send(&Request::ScsiCommand(second), &[]);
    assert_eq!(peer.end_of(second.itt).status, 0x28);
    let mut asked = answer_r2t(&mut peer, &data, &r2t);
    while asked < data.len() {
        let r2t = peer.receive().unwrap().response;
        asked = answer_r2t(&mut peer, &data, &r2t);
    }
    assert_eq!(peer.end_of(first.itt).status, GOOD);
}

#[test]
fn discovery_names_all_portals_first_the_one_it_was_asked_at_and_hides_what_is_not_for_the_initiator() {
    let (server, _disk) = serve(Limits::default());
    server.add_target("iqn.2026-01.org.playhead:secret").unwrap();
    let secret = "iqn.2026-01.org.playhead:secret";
    server.set_lun(secret, 0, Arc::new(RamDisk::new("secret", 2048))).unwrap();
    server.set_masking(Masking::new([((secret.to_owned(), 0), Vec::new())]).unwrap());
    let second = server.listen("127.0.0.2:0".parse().unwrap()).unwrap();
    let name = ("InitiatorName", "iqn.2026-01.org.example:peer");
    assert_eq!(server.portals(), [server.address(), second]);
    for (portal, other) in [(server.address(), second), (second, server.address())] {
        let mut peer = Peer::connect(portal);
        assert_eq!(peer.login(&[name, ("SessionType", "Discovery")]), 0);
        let request = TextRequest {
            immediate: true,
            is_final: true,
            continues: false,
            lun: [0; 8],
            itt: 5,
            ttt: RESERVED_TAG,
            cmd_sn: peer.cmd_sn,
            exp_stat_sn: 0,
        };
        peer.send(&Request::Text(request), b"SendTargets=All\0");
        let data = peer.receive().unwrap().data;
        let pairs: Vec<_> = text::pairs(&data).map(Result::unwrap).collect();
        let addresses = [format!("{portal},1"), format!("{other},1")];
        let [here, there] = addresses.each_ref().map(|address| ("TargetAddress", address.as_str()));
        assert_eq!(pairs, [("TargetName", IQN), here, there]);
        let logout =
            LogoutRequest { immediate: true, reason: 0, itt: 6, cid: 0, cmd_sn: peer.cmd_sn, exp_stat_sn: 0 };
        peer.send(&Request::Logout(logout), &[]);
        assert!(matches!(peer.receive().unwrap().response, Response::Logout { response: 0, .. }));
        assert!(peer.ends());
    }
    let mut peer = Peer::connect(server.address());
    assert_eq!(peer.login(&keys("iqn.2026-01.org.playhead:secret", &[])), 0x0202);
    let mut peer = Peer::connect(server.address());
    assert_eq!(peer.login(&keys("iqn.2026-01.org.playhead:nothing", &[])), 0x0203);
}

#[test]
fn a_removed_target_ends_its_sessions_and_lets_its_luns_go() {
    let (server, disk) = serve(Limits::default());
    let mut peer = Peer::session(server.address(), IQN, &[]);
    server.remove_target(IQN, Duration::from_secs(5)).unwrap();
    assert!(peer.ends());
    assert_eq!(Arc::strong_count(&disk), 1);
    let mut peer = Peer::connect(server.address());
    assert_eq!(peer.login(&keys(IQN, &[])), 0x0203);
}

#[test]
fn a_stop_asks_for_logout_and_then_cuts() {
    let (server, _disk) = serve(Limits::default());
    let mut peer = Peer::session(server.address(), IQN, &[]);
    let stopping = std::thread::spawn(move || server.stop(Duration::from_millis(300)));
    let received = peer.receive().unwrap();
    assert!(matches!(received.response, Response::Async { event: 1, .. }), "{received:?}");
    assert_eq!(peer.write(0, &[1; 512]).status, GOOD);
    assert!(peer.ends());
    assert_eq!(stopping.join().unwrap().left, 0);
}

#[test]
fn a_silent_initiator_is_asked_for_a_sign_of_life() {
    let limits = Limits {
        idle: Duration::from_millis(200),
        ping_answer: Duration::from_millis(300),
        ..Limits::default()
    };
    let (server, _disk) = serve(limits);
    let mut peer = Peer::session(server.address(), IQN, &[]);
    for _ in 0..2 {
        let Response::NopIn { ttt, .. } = peer.receive().unwrap().response else { panic!() };
        let answer = playhead_wire::iscsi::request::NopOut {
            immediate: true,
            lun: [0; 8],
            itt: RESERVED_TAG,
            ttt,
            cmd_sn: peer.cmd_sn,
            exp_stat_sn: 0,
        };
        peer.send(&Request::NopOut(answer), &[]);
    }
    peer.ready();
    assert!(peer.ends(), "it answers no more");
}
