//! Reservations as sessions meet them: hosts with several sessions, targets that present one LUN, restarts, and NBD clients beside them.

use super::copies::at_lun;
use super::nbd_peer;
use super::peer::{cdb_10, keys, pattern, Ended, Peer};
use super::ramdisk::RamDisk;
use super::{serve, IQN};
use playhead_target::iscsi::{Limits, Server};
use playhead_target::lun::Lun;
use playhead_target::nbd;
use playhead_wire::iscsi::request::{DataOut, LogoutRequest, Request};
use playhead_wire::iscsi::response::Response;
use playhead_wire::nbd::{Command, ErrorCode};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;

const GOOD: u8 = 0;
const CONFLICT: u8 = 0x18;
const OTHER_IQN: &str = "iqn.2026-01.org.playhead:other";
const APTPL: u8 = 1;

/// A session of `host` by its port `isid`.
fn host(address: SocketAddr, target: &str, host: &str, isid: u8) -> Peer {
    let mut peer = Peer::connect(address);
    peer.isid[5] = isid;
    let name = format!("iqn.2026-01.org.example:{host}");
    let mut keys = keys(target, &[]);
    keys[0].1 = &name;
    assert_eq!(peer.login(&keys), 0);
    peer.ready();
    peer
}

/// PERSISTENT RESERVE OUT with a basic list.
fn out(peer: &mut Peer, action: u8, kind: u8, key: u64, action_key: u64, flags: u8) -> Ended {
    let mut list = key.to_be_bytes().to_vec();
    list.extend_from_slice(&action_key.to_be_bytes());
    list.extend_from_slice(&[0, 0, 0, 0, flags, 0, 0, 0]);
    peer.command(&[0x5f, action, kind, 0, 0, 0, 0, 0, 24, 0], 0, &list)
}

fn register(peer: &mut Peer, key: u64, flags: u8) {
    assert_eq!(out(peer, 6, 0, 0, key, flags).status, GOOD);
}

fn reserve(peer: &mut Peer, kind: u8, key: u64) {
    assert_eq!(out(peer, 1, kind, key, 0, 0).status, GOOD);
}

/// Status of a read, a write and a TEST UNIT READY.
fn tries(peer: &mut Peer) -> [u8; 3] {
    [peer.read(0, 512).status, peer.write(0, &[1; 512]).status, peer.command(&[0; 6], 0, &[]).status]
}

fn wait_for(what: impl Fn() -> bool) {
    for _ in 0..10_000 {
        if what() {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("it does not come");
}

#[test]
fn every_type_gives_holder_registrants_and_others_what_it_says() {
    let (server, _disk) = serve(Limits::default());
    let address = server.address();
    let mut holder = host(address, IQN, "a", 1);
    // Another session of the holder's host is not the holder.
    let mut sibling = host(address, IQN, "a", 2);
    let mut registrant = host(address, IQN, "b", 1);
    let mut stranger = host(address, IQN, "c", 1);
    register(&mut holder, 10, 0);
    register(&mut registrant, 20, 0);
    for kind in [1, 3, 5, 6, 7, 8] {
        reserve(&mut holder, kind, 10);
        let exclusive = matches!(kind, 3 | 6 | 8);
        let without = [if exclusive { CONFLICT } else { GOOD }, CONFLICT, GOOD];
        assert_eq!(tries(&mut holder), [GOOD; 3], "holder under {kind}");
        assert_eq!(tries(&mut registrant), if kind >= 5 { [GOOD; 3] } else { without }, "registrant, {kind}");
        for other in [&mut sibling, &mut stranger] {
            assert_eq!(tries(other), without, "others under {kind}");
            assert_eq!(out(other, 1, kind, 0, 0, 0).status, CONFLICT, "who has no key cannot reserve");
        }
        assert_eq!(out(&mut holder, 2, kind, 10, 0, 0).status, GOOD);
        assert_eq!(tries(&mut stranger), [GOOD; 3]);
        registrant.ready();
    }
}

#[test]
fn a_lun_that_two_targets_present_has_one_set_of_reservations() {
    let (server, disk) = serve(Limits::default());
    server.add_target(OTHER_IQN).unwrap();
    server.set_lun(OTHER_IQN, 3, disk).unwrap();
    let mut here = host(server.address(), IQN, "a", 1);
    let mut there = Peer::connect(server.address());
    there.lun = [0, 3, 0, 0, 0, 0, 0, 0];
    assert_eq!(there.login(&keys(OTHER_IQN, &[])), 0);
    there.ready();
    register(&mut here, 10, 0);
    reserve(&mut here, 3, 10);
    assert_eq!(tries(&mut there), [CONFLICT, CONFLICT, GOOD]);
    register(&mut there, 20, 0);
    assert_eq!(out(&mut there, 4, 1, 20, 10, 0).status, GOOD, "preempting across targets");
    assert_eq!(here.read(0, 512).sense, Some(0x2a05));
    assert_eq!(tries(&mut here), [GOOD, CONFLICT, GOOD]);
    let full = here.command(&[0x5e, 3, 0, 0, 0, 0, 0, 1, 0, 0], 256, &[]).data;
    assert_eq!(full[8 + 19], 2, "the other target's relative port");
    // Mode settings and START STOP UNIT are the LUN's too.
    assert_eq!(there.command(&[0x1b, 0, 0, 0, 0, 0], 0, &[]).status, GOOD);
    assert_eq!(here.read(0, 512).sense, Some(0x0402));
}

fn start(directory: &Path) -> (Server, Arc<RamDisk>) {
    let server = Server::bind_held("127.0.0.1:0".parse().unwrap(), Limits::default()).unwrap();
    server.set_reservation_directory(directory).unwrap();
    // Another order of targets than before gives them other relative port ids.
    server.add_target(OTHER_IQN).unwrap();
    server.add_target(IQN).unwrap();
    let disk = Arc::new(RamDisk::new("disk0", 1024));
    server.set_lun(IQN, 0, disk.clone()).unwrap();
    server.open();
    (server, disk)
}

#[test]
fn what_is_registered_with_aptpl_outlives_the_server_and_the_rest_does_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("reservations");
    let (server, _disk) = start(&path);
    assert!(server.set_reservation_directory(&path).is_err(), "too late");
    let mut mine = host(server.address(), IQN, "a", 1);
    register(&mut mine, 10, APTPL);
    reserve(&mut mine, 1, 10);
    drop(server);
    let (server, disk) = start(&path);
    let mut mine = host(server.address(), IQN, "a", 1);
    let mut rival = host(server.address(), IQN, "b", 1);
    assert_eq!(tries(&mut mine), [GOOD; 3]);
    assert_eq!(tries(&mut rival), [GOOD, CONFLICT, GOOD]);
    // A LUN that is taken away and brought back keeps them, persistent or not.
    register(&mut mine, 11, 0);
    server.remove_lun(IQN, 0, Duration::from_secs(5)).unwrap();
    server.set_lun(IQN, 0, disk.clone()).unwrap();
    mine.ready();
    rival.ready();
    assert_eq!(tries(&mut rival), [GOOD, CONFLICT, GOOD]);
    drop(server);
    let (server, _disk) = start(&path);
    let mut rival = host(server.address(), IQN, "b", 1);
    assert_eq!(tries(&mut rival), [GOOD; 3], "the last registration was without APTPL");
    register(&mut rival, 20, APTPL);
    reserve(&mut rival, 3, 20);
    server.forget_reservations(&disk.identity().uuid).unwrap();
    assert_eq!(std::fs::read_dir(&path).unwrap().count(), 0);
    let mut mine = host(server.address(), IQN, "a", 1);
    assert_eq!(tries(&mut mine), [GOOD; 3]);
}

#[test]
fn preempt_and_abort_ends_transfers_and_waits_for_writes_under_way() {
    let (server, disk) = serve(Limits::default());
    let mut winner = host(server.address(), IQN, "a", 1);
    let mut loser = host(server.address(), IQN, "b", 1);
    register(&mut winner, 10, 0);
    register(&mut loser, 20, 0);
    reserve(&mut loser, 1, 20);
    let data = pattern(1 << 20, 7);
    // One write waits for data that is still to come, ...
    let halted = loser.scsi(&cdb_10(0x2a, 512, data.len()), data.len() as u32, &data);
    loser.send(&Request::ScsiCommand(halted), &[]);
    let Response::R2t { ttt, offset_bytes, desired_bytes, .. } = loser.receive().unwrap().response else {
        panic!()
    };
    // ... another is in the LUN.
    disk.submit_gate.store(true, Ordering::SeqCst);
    let captured = loser.scsi(&cdb_10(0x2a, 0, 512), 512, &[5; 512]);
    loser.send(&Request::ScsiCommand(captured), &[5; 512]);
    wait_for(|| disk.submits_waiting.load(Ordering::SeqCst) == 1);
    let opened = Arc::new(AtomicBool::new(false));
    let preempting = {
        let opened = Arc::clone(&opened);
        std::thread::spawn(move || {
            assert_eq!(out(&mut winner, 5, 1, 10, 20, 0).status, GOOD);
            assert!(opened.load(Ordering::SeqCst), "GOOD while the preempted write was in the LUN");
            winner
        })
    };
    std::thread::sleep(Duration::from_millis(50));
    opened.store(true, Ordering::SeqCst);
    disk.submit_gate.store(false, Ordering::SeqCst);
    let mut winner = preempting.join().unwrap();
    assert_eq!(loser.end_of(captured.itt).status, GOOD, "it was captured before");
    // The rest of the data comes: it changes nothing, and gets no answer.
    let rest = DataOut {
        is_final: true,
        lun: [0; 8],
        itt: halted.itt,
        ttt,
        exp_stat_sn: 0,
        data_sn: 0,
        offset_bytes,
    };
    loser.send(&Request::DataOut(rest), &data[..desired_bytes as usize]);
    // Nor does what was never asked for.
    let unasked = DataOut { ttt: ttt + 1, ..rest };
    loser.send(&Request::DataOut(unasked), &data[..512]);
    assert_eq!(loser.command(&[0; 6], 0, &[]).sense, Some(0x2a05));
    assert_eq!(tries(&mut loser), [GOOD, CONFLICT, GOOD]);
    assert_eq!(winner.read(0, 512).data, [5; 512]);
    assert_eq!(winner.read(512, 4096).data, [0; 4096]);
}

#[test]
fn an_nbd_client_gets_eperm_where_initiators_get_a_conflict() {
    let (server, disk) = serve(Limits::default());
    let blocks = nbd::Server::bind("127.0.0.1:0".parse().unwrap(), nbd::Limits::default()).unwrap();
    blocks.heed_reservations(server.devices());
    blocks.add_export("disk", disk, "").unwrap();
    let mut client = nbd_peer::Peer::structured(blocks.address(), "disk");
    let mut owner = host(server.address(), IQN, "a", 1);
    let permission = nbd_peer::code(ErrorCode::Permission);
    let (free, exclusive) = ([0, 0, 0], [permission, permission, permission]);
    let tries = |client: &mut nbd_peer::Peer| {
        let read = client.call(Command::Read, 0, 0, 512).error;
        [read, client.write(0, &[1; 512]).error, client.call(Command::Trim, 0, 0, 4096).error]
    };
    assert_eq!(tries(&mut client), free);
    register(&mut owner, 10, 0);
    assert_eq!(tries(&mut client), free, "a registration alone restricts nobody");
    for kind in [1, 3, 5, 6, 7, 8] {
        reserve(&mut owner, kind, 10);
        let wanted = if matches!(kind, 3 | 6 | 8) { exclusive } else { [0, permission, permission] };
        assert_eq!(tries(&mut client), wanted, "type {kind}");
        assert_eq!(client.call(Command::Flush, 0, 0, 0).error, 0);
        assert_eq!(out(&mut owner, 2, kind, 10, 0, 0).status, GOOD);
        assert_eq!(tries(&mut client), free);
    }
    assert_eq!(out(&mut owner, 3, 0, 10, 0, 0).status, GOOD);
    assert_eq!(owner.command(&[0x16, 0, 0, 0, 0, 0], 0, &[]).status, GOOD);
    assert_eq!(tries(&mut client), exclusive, "RESERVE");
    drop(owner);
    wait_for(|| server.sessions().is_empty());
    assert_eq!(tries(&mut client), free, "it went with its session");
}

#[test]
fn a_logout_is_answered_when_what_reserve_held_is_released() {
    let (server, _disk) = serve(Limits::default());
    let slow = Arc::new(RamDisk::new("slow", 131_072));
    server.set_lun(IQN, 1, slow.clone()).unwrap();
    let mut holder = host(server.address(), IQN, "a", 1);
    let mut other = host(server.address(), IQN, "b", 1);
    assert_eq!(holder.command(&[0x16, 0, 0, 0, 0, 0], 0, &[]).status, GOOD);
    assert_eq!(tries(&mut other)[2], CONFLICT);
    // A command that does not come back at once: the session cannot end before it.
    slow.read_gate.store(true, Ordering::SeqCst);
    at_lun(&mut holder, 1, |holder| {
        holder.ready();
        let pre_fetch = holder.scsi(&[0x34, 0, 0, 0, 0, 0, 0, 0, 8, 0], 0, &[]);
        holder.send(&Request::ScsiCommand(pre_fetch), &[]);
    });
    wait_for(|| slow.at_gate.load(Ordering::SeqCst) > 0);
    let logout =
        LogoutRequest { immediate: true, reason: 0, itt: 6, cid: 0, cmd_sn: holder.cmd_sn, exp_stat_sn: 0 };
    holder.send(&Request::Logout(logout), &[]);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(300));
            slow.read_gate.store(false, Ordering::SeqCst);
        });
        assert!(matches!(holder.receive().unwrap().response, Response::Logout { response: 0, .. }));
        assert_eq!(tries(&mut other)[2], GOOD);
    });
}
