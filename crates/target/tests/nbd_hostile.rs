//! Peers that are broken or mean: each costs its own connection and nothing else.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod nbd_memory;
mod nbd_peer;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nbd_memory::MemoryLun;
use nbd_peer::{code, Dice, Peer, Said};
use playhead_target::nbd::{Limits, Server};
use playhead_wire::nbd::{Command, ErrorCode, OptionHeader, OptionKind, ReplyError};

fn serve(limits: Limits) -> Server {
    let server = Server::bind("127.0.0.1:0".parse().unwrap(), limits).unwrap();
    let lun = Arc::new(MemoryLun::new("disk", 64, false));
    server.add_export("disk", lun, "").unwrap();
    server
}

fn short() -> Limits {
    Limits { handshake: Duration::from_secs(1), stall: Duration::from_secs(1), ..Limits::default() }
}

/// The server still does its work.
fn works(server: &Server) {
    let mut peer = Peer::structured(server.address(), "disk");
    assert_eq!(peer.write(4096, &[3; 4096]).error, 0);
    assert_eq!(peer.read(4096, 4096), [3; 4096]);
    peer.ask(Command::Disconnect, 0, 0, 0);
    assert!(peer.closed());
}

fn all_leave(server: &Server) {
    let end = Instant::now() + Duration::from_secs(20);
    while !server.connections().is_empty() {
        assert!(Instant::now() < end, "{:?}", server.connections());
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn unknown_client_flags_and_wrong_magic_end_the_handshake() {
    let server = serve(Limits::default());
    let mut peer = Peer::raw(server.address());
    peer.socket.read_exact(&mut [0; 18]).unwrap();
    peer.send(&[0xff; 4]);
    assert!(peer.closed());
    let mut peer = Peer::greet(server.address());
    peer.send(&[0x42; 16]);
    assert!(peer.closed());
    let mut peer = Peer::raw(server.address());
    peer.socket.read_exact(&mut [0; 18]).unwrap();
    peer.send(b"GET / HTTP/1.1\r\nHost: disk\r\n\r\n");
    assert!(peer.closed());
    works(&server);
}

#[test]
fn a_client_without_fixed_newstyle_may_only_name_an_export() {
    let server = serve(Limits::default());
    let mut peer = Peer::raw(server.address());
    peer.socket.read_exact(&mut [0; 18]).unwrap();
    peer.send(&[0; 4]);
    let header = OptionHeader { code: 3, data_bytes: 0 };
    peer.send(&header.to_bytes());
    assert!(peer.closed());
    works(&server);
}

#[test]
fn option_data_of_huge_length_ends_the_connection_before_it_comes() {
    let server = serve(Limits::default());
    for code in [1, 3, 7, 10, 1234] {
        let mut peer = Peer::greet(server.address());
        let header = OptionHeader { code, data_bytes: u32::MAX };
        peer.send(&header.to_bytes());
        assert!(peer.closed());
    }
    works(&server);
}

#[test]
fn a_name_that_is_no_text_is_refused() {
    let server = serve(Limits::default());
    for name in [&b"\xff\xfe"[..], b"a\0b", &[b'x'; 5000]] {
        let mut peer = Peer::greet(server.address());
        let mut data = (name.len() as u32).to_be_bytes().to_vec();
        data.extend_from_slice(name);
        data.extend_from_slice(&[0, 0]);
        for option in [OptionKind::Go, OptionKind::Info] {
            let said = peer.option(option, &data);
            assert!(matches!(said[..], [Said::Error(ReplyError::Invalid, _)]));
        }
        let header = OptionHeader { code: 1, data_bytes: name.len() as u32 };
        peer.send(&header.to_bytes());
        peer.send(name);
        assert!(peer.closed());
    }
    works(&server);
}

#[test]
fn half_a_handshake_ends_at_its_time_limit() {
    let server = serve(short());
    let mut silent = Peer::raw(server.address());
    silent.socket.read_exact(&mut [0; 18]).unwrap();
    let mut half = Peer::greet(server.address());
    half.send(b"IHAVEOPT\0\0\0\x07\0\0");
    let mut promised = Peer::greet(server.address());
    let header = OptionHeader { code: 7, data_bytes: 1000 };
    promised.send(&header.to_bytes());
    assert!(silent.closed() && half.closed() && promised.closed());
    // Neither do endless options of a busy client, nor one byte now and then, outlast it.
    let mut busy = Peer::greet(server.address());
    let header = OptionHeader { code: 77, data_bytes: 0 };
    while busy.socket.write_all(&header.to_bytes()).is_ok() {
        let mut waste = [0; 4096];
        if !matches!(busy.socket.read(&mut waste), Ok(1..)) {
            break;
        }
    }
    let mut slow = Peer::greet(server.address());
    while slow.socket.write_all(&[0x49]).is_ok() && server.connections().len() == 1 {
        std::thread::sleep(Duration::from_millis(20));
    }
    all_leave(&server);
    works(&server);
}

#[test]
fn a_request_with_wrong_magic_ends_the_session_after_those_before_it() {
    let server = serve(Limits::default());
    let mut peer = Peer::simple(server.address(), "disk");
    let (cookie, request) = peer.request(Command::Write, 0, 0, 512);
    let mut bytes = request.to_vec();
    bytes.extend_from_slice(&[8; 512]);
    bytes.extend_from_slice(&[0x99; 28]);
    peer.send(&bytes);
    assert_eq!(peer.answer(cookie).error, 0);
    assert!(peer.closed());
    works(&server);
}

#[test]
fn a_payload_larger_than_any_limit_is_read_away_not_stored() {
    let server = serve(Limits::default());
    let mut peer = Peer::structured(server.address(), "disk");
    let length: u32 = 40 << 20;
    let (cookie, request) = peer.request(Command::Write, 0, 0, length);
    peer.send(&request);
    let piece = vec![1; 1 << 20];
    for _ in 0..40 {
        peer.send(&piece);
    }
    assert_eq!(peer.answer(cookie).error, code(ErrorCode::Invalid));
    assert_eq!(peer.read(0, 512), [0; 512]);
}

#[test]
fn a_client_that_vanishes_mid_request_costs_nothing() {
    let server = serve(Limits::default());
    for sent in [1, 27, 28, 29, 1000, 100_000, 5_000_000] {
        let mut peer = Peer::simple(server.address(), "disk");
        let (_, request) = peer.request(Command::Write, 0, 0, 8 << 20);
        let mut bytes = request.to_vec();
        bytes.resize(sent, 1);
        peer.send(&bytes);
    }
    // With answers nobody fetches, and by a reset.
    let mut peer = Peer::simple(server.address(), "disk");
    for _ in 0..100 {
        peer.ask(Command::Read, 0, 0, 1 << 20);
    }
    drop(peer);
    all_leave(&server);
    works(&server);
}

#[test]
fn a_client_that_closes_its_sending_side_still_gets_its_answers() {
    let server = serve(Limits::default());
    let mut peer = Peer::simple(server.address(), "disk");
    let cookie = peer.ask_write(0, 0, &[4; 65536]);
    peer.socket.shutdown(Shutdown::Write).unwrap();
    assert_eq!(peer.answer(cookie).error, 0);
    assert!(peer.closed());
}

#[test]
fn stalled_clients_are_cut_off_others_are_not() {
    let server = serve(short());
    // One that sends half a request, one that fetches no answers, and one that is merely idle.
    let mut half = Peer::simple(server.address(), "disk");
    let (_, request) = half.request(Command::Write, 0, 0, 1 << 20);
    half.send(&request);
    half.send(&[1; 5000]);
    let mut greedy = Peer::simple(server.address(), "disk");
    for _ in 0..64 {
        greedy.ask(Command::Read, 0, 0, 1 << 20);
    }
    let mut idle = Peer::simple(server.address(), "disk");
    assert!(half.closed());
    let end = Instant::now() + Duration::from_secs(20);
    while server.connections().len() > 1 {
        assert!(Instant::now() < end);
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(idle.read(0, 512), [0; 512]);
    // Long after the limit, and after the buffers were given back.
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(idle.read(0, 65536), vec![0; 65536]);
    works(&server);
}

#[test]
fn random_bytes_in_every_phase_end_in_peace() {
    let server = serve(short());
    let mut dice = Dice::new();
    for round in 0..60 {
        let count = 1 + dice.below(3000) as usize;
        let mut noise = dice.bytes(count);
        let mut peer = match round % 4 {
            0 => Peer::raw(server.address()),
            1 => Peer::greet(server.address()),
            2 => Peer::simple(server.address(), "disk"),
            _ => Peer::structured(server.address(), "disk"),
        };
        // Half of the time it starts like something we know.
        if dice.below(2) == 0 {
            let head: &[u8] = match round % 4 {
                0 => &[0, 0, 0, 3],
                1 => b"IHAVEOPT\0\0\0",
                _ => &[0x25, 0x60, 0x95, 0x13, 0, 0, 0],
            };
            let count = head.len().min(noise.len());
            noise[..count].copy_from_slice(&head[..count]);
        }
        let _ = peer.socket.write_all(&noise);
        let _ = peer.socket.shutdown(Shutdown::Write);
    }
    all_leave(&server);
    works(&server);
}

#[test]
fn connections_over_the_limit_are_closed_and_the_others_live() {
    let server = serve(Limits { connections_max: 3, ..Limits::default() });
    let mut peers: Vec<_> = (0..3).map(|_| Peer::simple(server.address(), "disk")).collect();
    assert!(Peer::raw(server.address()).closed());
    for peer in &mut peers {
        assert_eq!(peer.read(0, 512), [0; 512]);
    }
    peers.pop();
    let end = Instant::now() + Duration::from_secs(20);
    while server.connections().len() > 2 {
        assert!(Instant::now() < end);
        std::thread::sleep(Duration::from_millis(5));
    }
    works(&server);
}
