//! Peers that break the rules cost their own connection and nothing else.

use crate::peer::{cdb_10, keys, Peer};
use crate::{serve, IQN};
use playhead_target::iscsi::{Limits, Server};
use playhead_wire::iscsi::bhs::{set_data_length, BHS_LEN};
use playhead_wire::iscsi::request::{DataOut, Request};
use playhead_wire::iscsi::response::Response;
use playhead_wire::iscsi::text;
use std::time::Duration;

/// A session that has to go on working.
fn witness(server: &Server) -> Peer {
    let mut peer = Peer::connect(server.address());
    peer.isid[5] = 200;
    assert_eq!(peer.login(&keys(IQN, &[])), 0);
    peer.ready();
    peer
}

fn still_works(witness: &mut Peer) {
    assert_eq!(witness.write(9, &[7; 512]).status, 0);
    assert_eq!(witness.read(9, 512).data, [7; 512]);
}

fn quick() -> Limits {
    Limits { login: Duration::from_millis(400), stall: Duration::from_millis(400), ..Limits::default() }
}

#[test]
fn noise_ends_the_connection_before_and_after_login() {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    println!("seed {state:#x}");
    let (server, _disk) = serve(quick());
    let mut good = witness(&server);
    for round in 0..60 {
        let mut peer = Peer::connect(server.address());
        if round % 2 == 1 {
            assert_eq!(peer.login(&keys(IQN, &[])), 0);
        }
        let mut noise = vec![0; 4096];
        for word in noise.chunks_mut(8) {
            // xorshift64
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        // Opcodes that exist, in half of the rounds, get further than those that do not.
        if round % 4 > 1 {
            noise[0] = [0x00, 0x01, 0x02, 0x43, 0x04, 0x05, 0x06, 0x10][round / 4 % 8];
            noise[4] = 0;
            noise[5] = 0;
        }
        peer.send_raw(&noise);
        let _ = peer.socket.shutdown(std::net::Shutdown::Write);
        assert!(peer.ends());
    }
    still_works(&mut good);
}

#[test]
fn a_length_nobody_agreed_to_ends_the_connection() {
    let (server, _disk) = serve(Limits::default());
    let mut good = witness(&server);
    for logged_in in [false, true] {
        let mut peer = Peer::connect(server.address());
        if logged_in {
            assert_eq!(peer.login(&keys(IQN, &[])), 0);
        }
        let command = peer.scsi(&cdb_10(0x2a, 0, 512), 512, &[1]);
        let mut header = Request::ScsiCommand(command).emit();
        if !logged_in {
            header = Request::Login(peer.login_request((1, 3), true)).emit();
        }
        set_data_length(&mut header, 0xff_ffff);
        peer.send_raw(&header);
        assert!(peer.ends());
    }
    still_works(&mut good);
}

#[test]
fn logins_that_make_no_sense_are_refused_with_a_status() {
    let (server, _disk) = serve(Limits::default());
    let initiator = ("InitiatorName", "iqn.2026-01.org.example:peer");
    let cases: [(&[(&str, &str)], u16); 6] = [
        (&[("TargetName", IQN)], 0x0207),
        (&[initiator], 0x0207),
        (&[initiator, ("SessionType", "Party")], 0x0209),
        (&[initiator, initiator, ("TargetName", IQN)], 0x0200),
        (&[initiator, ("TargetName", "")], 0x0200),
        (&[initiator, ("TargetName", "iqn.nobody")], 0x0203),
    ];
    for (keys, status) in cases {
        let mut peer = Peer::connect(server.address());
        assert_eq!(peer.login(keys), status, "{keys:?}");
        assert!(peer.ends());
    }
    // A version of the future, a session that does not exist, a method that is not there.
    let mut peer = Peer::connect(server.address());
    let mut request = peer.login_request((1, 3), true);
    request.version_min = 1;
    peer.send(&Request::Login(request), b"InitiatorName=iqn.a\0");
    assert!(matches!(peer.receive().unwrap().response, Response::Login { status: 0x0205, .. }));
    let mut peer = Peer::connect(server.address());
    let mut request = peer.login_request((1, 3), true);
    request.tsih = 77;
    let mut data = Vec::new();
    for (key, value) in keys(IQN, &[]) {
        text::push(&mut data, key, value);
    }
    peer.send(&Request::Login(request), &data);
    assert!(matches!(peer.receive().unwrap().response, Response::Login { status: 0x020a, .. }));
    let mut peer = Peer::connect(server.address());
    text::push(&mut data, "AuthMethod", "CHAP,KRB5");
    peer.send(&Request::Login(peer.login_request((0, 1), true)), &data);
    assert!(matches!(peer.receive().unwrap().response, Response::Login { status: 0x0201, .. }));
    // The stages in order, AuthMethod=None among them.
    let mut peer = Peer::connect(server.address());
    data.truncate(data.len() - "AuthMethod=CHAP,KRB5\0".len());
    text::push(&mut data, "AuthMethod", "CHAP,None");
    peer.send(&Request::Login(peer.login_request((0, 1), true)), &data);
    let received = peer.receive().unwrap();
    assert!(text::pairs(&received.data).any(|pair| pair == Ok(("AuthMethod", "None"))));
    peer.send(&Request::Login(peer.login_request((1, 3), true)), &[]);
    assert!(matches!(peer.receive().unwrap().response, Response::Login { status: 0, tsih: 1.., .. }));
    peer.ready();
}

#[test]
fn a_login_that_never_ends_is_ended() {
    let (server, _disk) = serve(quick());
    let mut good = witness(&server);
    let mut half = Peer::connect(server.address());
    let bytes = half.bytes(Request::Login(half.login_request((1, 3), true)).emit(), b"InitiatorName=iqn.a\0");
    half.send_raw(&bytes[..20]);
    assert!(half.ends());
    // Request after request that goes nowhere.
    let mut chatty = Peer::connect(server.address());
    for i in 0..200 {
        let key = format!("X-org.example.{i}=1\0");
        let names = if i == 0 { format!("InitiatorName=iqn.a\0TargetName={IQN}\0") } else { key };
        chatty.send(&Request::Login(chatty.login_request((1, 3), false)), names.as_bytes());
    }
    assert!(chatty.ends());
    still_works(&mut good);
}

#[test]
fn a_pdu_that_stops_half_way_and_answers_nobody_takes_cost_only_their_connection() {
    let (server, _disk) = serve(quick());
    let mut good = witness(&server);
    let mut half = Peer::connect(server.address());
    assert_eq!(half.login(&keys(IQN, &[])), 0);
    let command = half.scsi(&cdb_10(0x2a, 0, 4096), 4096, &[1]);
    let bytes = half.bytes(Request::ScsiCommand(command).emit(), &[1; 4096]);
    half.send_raw(&bytes[..1000]);
    assert!(half.ends());
    // 100 reads of 8 MiB, and not a byte of them taken.
    let mut deaf = Peer::connect(server.address());
    deaf.isid[5] = 201;
    assert_eq!(deaf.login(&keys(IQN, &[])), 0);
    deaf.ready();
    for _ in 0..100 {
        let bytes = 16_384 * 512;
        let command = deaf.scsi(&cdb_10(0x28, 0, bytes), bytes as u32, &[]);
        deaf.send(&Request::ScsiCommand(command), &[]);
    }
    for _ in 0..200 {
        still_works(&mut good);
        if server.sessions().len() == 1 {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("the stalled connections are still there");
}

#[test]
fn rules_broken_after_login_are_answered_as_the_standard_says() {
    let (server, _disk) = serve(Limits::default());
    let mut good = witness(&server);
    // Data for nobody, and a CmdSN beyond the window, are ignored.
    let mut peer = Peer::session(server.address(), IQN, &[]);
    let stray = DataOut {
        is_final: true,
        lun: [0; 8],
        itt: 0xdead,
        ttt: 0xbeef,
        exp_stat_sn: 0,
        data_sn: 0,
        offset_bytes: 0,
    };
    peer.send(&Request::DataOut(stray), &[0; 512]);
    let mut command = peer.scsi(&[0; 6], 0, &[]);
    command.cmd_sn = command.cmd_sn.wrapping_add(5000);
    peer.cmd_sn -= 1;
    peer.send(&Request::ScsiCommand(command), &[]);
    peer.ready();
    // A gap in the window can never close: the session ends.
    let mut command = peer.scsi(&[0; 6], 0, &[]);
    command.cmd_sn = command.cmd_sn.wrapping_add(3);
    peer.send(&Request::ScsiCommand(command), &[]);
    assert!(matches!(peer.receive().unwrap().response, Response::Reject { .. }));
    assert!(peer.ends());
    // A tag in use.
    let mut peer = Peer::session(server.address(), IQN, &[("ImmediateData", "No")]);
    let mut command = peer.scsi(&cdb_10(0x2a, 0, 512), 512, &[1]);
    peer.send(&Request::ScsiCommand(command), &[]);
    assert!(matches!(peer.receive().unwrap().response, Response::R2t { .. }));
    command.cmd_sn += 1;
    peer.send(&Request::ScsiCommand(command), &[]);
    assert!(matches!(peer.receive().unwrap().response, Response::Reject { reason: 7 }));
    // An opcode that does not exist, and a login in the wrong place.
    for header in [[0x1f; BHS_LEN], Request::Login(peer.login_request((1, 3), true)).emit()] {
        let mut peer = Peer::session(server.address(), IQN, &[]);
        let mut header = header;
        set_data_length(&mut header, 0);
        header[4] = 0;
        peer.send_raw(&header);
        assert!(matches!(peer.receive().unwrap().response, Response::Reject { .. }));
        assert!(peer.ends());
    }
    // More immediate data than was agreed or announced.
    let mut peer = Peer::session(server.address(), IQN, &[("FirstBurstLength", "512")]);
    let ended = peer.write(0, &[1; 1024]);
    assert_eq!((ended.status, ended.sense), (2, Some(0x0c0c)));
    still_works(&mut good);
}

#[test]
fn connections_beyond_the_limit_are_closed_and_room_is_made_by_leaving() {
    let (server, _disk) = serve(Limits { connections_max: 3, ..Limits::default() });
    let mut good = witness(&server);
    let others: Vec<Peer> = (0..2).map(|_| Peer::connect(server.address())).collect();
    while server.sessions().len() < 3 {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(Peer::connect(server.address()).ends());
    drop(others);
    while server.sessions().len() > 1 {
        std::thread::sleep(Duration::from_millis(5));
    }
    Peer::session(server.address(), IQN, &[]);
    still_works(&mut good);
}
