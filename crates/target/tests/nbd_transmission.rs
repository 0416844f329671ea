//! Requests and answers, as a client that keeps to the protocol sees them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod nbd_memory;
mod nbd_peer;

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nbd_memory::MemoryLun;
use nbd_peer::{code, Dice, Peer};
use playhead_target::lun::LunError;
use playhead_target::nbd::{Limits, Server, ServerError, Stopped};
use playhead_wire::nbd::request::{FLAG_DF, FLAG_FAST_ZERO, FLAG_FUA, FLAG_NO_HOLE, FLAG_REQ_ONE};
use playhead_wire::nbd::{Command, Descriptor, ErrorCode, STATE_HOLE, STATE_ZERO};

const MIB: u64 = 1 << 20;
const DISK_MIB: u64 = 64;

fn serve() -> (Server, Arc<MemoryLun>) {
    serve_lun(false, Limits::default())
}

fn serve_lun(read_only: bool, limits: Limits) -> (Server, Arc<MemoryLun>) {
    let server = Server::bind("127.0.0.1:0".parse().unwrap(), limits).unwrap();
    let lun = Arc::new(MemoryLun::new("disk", DISK_MIB, read_only));
    server.add_export("disk", lun.clone(), "").unwrap();
    (server, lun)
}

fn wait_for(what: &str, mut ready: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !ready() {
        assert!(Instant::now() < end, "{what} does not happen");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn what_was_written_is_read_with_either_kind_of_reply() {
    let (server, lun) = serve();
    let data = Dice::new().bytes(12288);
    let mut simple = Peer::simple(server.address(), "disk");
    let mut structured = Peer::structured(server.address(), "disk");
    assert_eq!(simple.write(4096, &data).error, 0);
    assert_eq!(structured.read(4096, 12288), data);
    assert_eq!(structured.write(MIB, &data).error, 0);
    assert_eq!(simple.read(MIB + 512, 1024), data[512..1536]);
    assert_eq!(lun.bytes(4096, 12288), data);
    let status = server.connections();
    assert_eq!(status.len(), 2);
    assert_eq!(status[0].export.as_deref(), Some("disk"));
    assert_eq!(status[0].peer, simple.socket.local_addr().unwrap());
    wait_for("counting", || {
        let status = &server.connections()[0];
        (status.requests, status.written_bytes, status.read_bytes) == (2, 12288, 1024)
    });
    assert_eq!(server.exports()[0].connections, 2);
}

#[test]
fn writes_of_one_round_reach_the_lun_as_one_batch() {
    let (server, lun) = serve();
    let mut peer = Peer::simple(server.address(), "disk");
    let mut bytes = Vec::new();
    let mut cookies = Vec::new();
    for i in 0..16_u64 {
        let (cookie, request) = peer.request(Command::Write, 0, i * 512, 512);
        cookies.push(cookie);
        bytes.extend_from_slice(&request);
        bytes.extend_from_slice(&[i as u8; 512]);
    }
    peer.send(&bytes);
    for cookie in cookies {
        assert_eq!(peer.answer(cookie).error, 0);
    }
    assert_eq!(lun.changes.load(Ordering::SeqCst), 16);
    // One, unless the network cut the bytes in two.
    assert!(lun.submits.load(Ordering::SeqCst) <= 3);
    assert_eq!(lun.bytes(15 * 512, 512), [15; 512]);
}

#[test]
fn trim_and_write_zeroes_become_unmap_and_zero() {
    let (server, lun) = serve();
    let mut peer = Peer::structured(server.address(), "disk");
    assert_eq!(peer.write(0, &[9; 65536]).error, 0);
    assert_eq!(peer.call(Command::Trim, 0, 0, 4096).error, 0);
    let zero = Command::WriteZeroes;
    assert_eq!(peer.call(zero, 0, 8192, 4096).error, 0);
    assert_eq!(peer.call(zero, FLAG_NO_HOLE, 16384, 4096).error, 0);
    let both = FLAG_NO_HOLE | FLAG_FAST_ZERO | FLAG_FUA;
    assert_eq!(peer.call(zero, both, 20480, 4096).error, 0);
    assert_eq!(peer.call(zero, FLAG_FAST_ZERO, 32768, 512).error, 0);
    let extents = peer.call(Command::BlockStatus, 0, 0, 65536).extents;
    let found: Vec<_> = extents.iter().map(|d| (d.length, d.status)).collect();
    let hole = STATE_HOLE | STATE_ZERO;
    let expected = [
        (4096, hole),
        (4096, 0),
        (4096, hole),
        (4096, 0),
        (8192, STATE_ZERO),
        (8192, 0),
        (512, hole),
        (32256, 0),
    ];
    assert_eq!(found, expected);
    assert_eq!(lun.bytes(16384, 8192), [0; 8192]);
    // Without a payload, a length may be far larger than one.
    assert_eq!(peer.call(zero, 0, 0, (DISK_MIB * MIB) as u32).error, 0);
    let all = Descriptor { length: (DISK_MIB * MIB) as u32, status: hole };
    let extents = peer.call(Command::BlockStatus, 0, 0, all.length).extents;
    assert_eq!(extents, [all]);
}

#[test]
fn block_status_with_req_one_is_one_extent_within_the_request() {
    let (server, _lun) = serve();
    let mut peer = Peer::structured(server.address(), "disk");
    peer.write(4096, &[1; 4096]);
    for (offset, length, expected) in [(0, 65536, (4096, 3)), (4096, 65536, (4096, 0)), (8192, 512, (512, 3))]
    {
        let answered = peer.call(Command::BlockStatus, FLAG_REQ_ONE, offset, length);
        let found: Vec<_> = answered.extents.iter().map(|d| (d.length, d.status)).collect();
        assert_eq!(found, [expected]);
    }
}

#[test]
fn fua_and_flush_are_answered_only_when_the_lun_has_flushed() {
    let (server, lun) = serve();
    let mut peer = Peer::simple(server.address(), "disk");
    lun.hold_flushes();
    let fua = peer.ask_write(FLAG_FUA, 0, &[1; 512]);
    wait_for("the flush", || lun.held_flushes() == 1);
    // Others go on meanwhile, on this connection too.
    assert_eq!(peer.write(512, &[2; 512]).error, 0);
    let trim = peer.ask(Command::Trim, FLAG_FUA, 4096, 512);
    wait_for("the second flush", || lun.held_flushes() == 2);
    let flush = peer.ask(Command::Flush, 0, 0, 0);
    wait_for("the third flush", || lun.held_flushes() == 3);
    assert_eq!(peer.read(512, 512), [2; 512]);
    lun.release_flushes(Ok(()));
    let mut done: Vec<_> = (0..3).map(|_| peer.next_answer().unwrap()).collect();
    done.sort_by_key(|(cookie, _)| *cookie);
    for ((cookie, answered), expected) in done.iter().zip([fua, trim, flush]) {
        assert_eq!((*cookie, answered.error), (expected, 0));
    }
    // FUA goes with every request and means nothing to those that change nothing.
    let flushes = lun.flushes.load(Ordering::SeqCst);
    peer.call(Command::Read, FLAG_FUA, 0, 512);
    assert_eq!(lun.flushes.load(Ordering::SeqCst), flushes);
}

#[test]
fn a_failed_or_forgotten_flush_is_an_error_to_those_who_waited() {
    let (server, lun) = serve();
    let mut peer = Peer::structured(server.address(), "disk");
    let failed = LunError::Io { name: "disk".into(), detail: "medium on fire".into() };
    lun.hold_flushes();
    let cookie = peer.ask(Command::Flush, 0, 0, 0);
    wait_for("the flush", || lun.held_flushes() == 1);
    lun.release_flushes(Err(failed));
    let answered = peer.answer(cookie);
    assert_eq!(answered.error, code(ErrorCode::Io));
    assert!(answered.words.contains("medium on fire"));
    lun.hold_flushes();
    let cookie = peer.ask_write(FLAG_FUA, 0, &[0; 512]);
    wait_for("the flush", || lun.held_flushes() == 1);
    lun.abandon_flushes();
    assert_eq!(peer.answer(cookie).error, code(ErrorCode::Io));
    assert_eq!(peer.call(Command::Flush, 0, 0, 0).error, 0);
}

#[test]
fn errors_of_the_lun_become_errors_of_the_protocol() {
    let (server, lun) = serve();
    let mut peer = Peer::structured(server.address(), "disk");
    let name = || "disk".to_string();
    let detail = || "why".to_string();
    let errors = [
        (LunError::NoSpace { name: name(), detail: detail() }, ErrorCode::NoSpace),
        (LunError::Io { name: name(), detail: detail() }, ErrorCode::Io),
        (LunError::Gone { name: name() }, ErrorCode::Shutdown),
        (LunError::ReadOnly { name: name() }, ErrorCode::Permission),
        (LunError::OutOfRange { name: name(), lba: 0, count: 1 }, ErrorCode::NoSpace),
    ];
    for (error, expected) in errors {
        lun.refuse_changes(Some(error));
        assert_eq!(peer.write(0, &[1; 512]).error, code(expected));
        let zeroed = peer.call(Command::WriteZeroes, FLAG_FUA, 0, 512);
        assert_eq!(zeroed.error, code(expected));
        assert!(zeroed.words.contains("disk"), "{}", zeroed.words);
    }
    lun.refuse_changes(None);
    lun.break_block(100);
    let answered = peer.call(Command::Read, 0, 51200, 4096);
    assert_eq!(answered.error, code(ErrorCode::Io));
    assert_eq!(peer.call(Command::Cache, 0, 51200, 4096).error, code(ErrorCode::Io));
    assert_eq!(peer.read(0, 51200), vec![0; 51200]);
    assert_eq!(peer.call(Command::Cache, 0, 0, 51200).error, 0);
    let mut simple = Peer::simple(server.address(), "disk");
    let failed = simple.call(Command::Read, 0, 51200, 4096);
    assert_eq!(failed.error, code(ErrorCode::Io));
    assert_eq!(simple.read(0, 512), [0; 512]);
}

#[test]
fn an_error_late_in_a_long_read_keeps_the_stream_in_step() {
    let (server, lun) = serve();
    let data = Dice::new().bytes(4 << 20);
    let mut peer = Peer::structured(server.address(), "disk");
    assert_eq!(peer.write(0, &data).error, 0);
    lun.break_block(5000);
    for flags in [0, FLAG_DF] {
        let answered = peer.call(Command::Read, flags, 0, 4 << 20);
        assert_eq!(answered.error, code(ErrorCode::Io));
        assert!(flags == 0 || answered.data.len() == 1);
        for (offset, bytes) in answered.data {
            // What was told before the error is true, what pads the chunk after it is zeros.
            let start = offset as usize;
            let good = bytes.len().min((2 << 20) - start);
            assert_eq!(bytes[..good], data[start..start + good]);
            assert!(bytes[good..].iter().all(|&byte| byte == 0));
        }
        assert_eq!(peer.read(4096, 4096), data[4096..8192]);
    }
    // A simple reply has promised success already, so all that is left is to hang up.
    let mut simple = Peer::simple(server.address(), "disk");
    simple.ask(Command::Read, 0, 0, 4 << 20);
    assert!(simple.next_answer().is_err());
}

#[test]
fn requests_that_make_no_sense_are_refused_and_the_session_goes_on() {
    let (server, lun) = serve();
    let size = DISK_MIB * MIB;
    let invalid = code(ErrorCode::Invalid);
    let no_space = code(ErrorCode::NoSpace);
    for structured in [false, true] {
        let mut peer = if structured {
            Peer::structured(server.address(), "disk")
        } else {
            Peer::simple(server.address(), "disk")
        };
        let cases = [
            (Command::Read, 0, size, 512, invalid),
            (Command::Read, 0, size - 512, 1024, invalid),
            (Command::Read, 0, u64::MAX - 511, 512, invalid),
            (Command::Read, 0, u64::MAX, u32::MAX, invalid),
            (Command::Read, 0, 1, 512, invalid),
            (Command::Read, 0, 0, 513, invalid),
            (Command::Read, FLAG_REQ_ONE, 0, 512, invalid),
            (Command::Trim, 0, size, 512, invalid),
            (Command::Trim, FLAG_NO_HOLE, 0, 512, invalid),
            (Command::Trim, 0, 100, 512, invalid),
            (Command::Cache, 0, size, 512, invalid),
            (Command::Cache, 1 << 9, 0, 512, invalid),
            (Command::WriteZeroes, 0, size, 512, no_space),
            (Command::WriteZeroes, 0, 0, 1000, invalid),
            (Command::WriteZeroes, FLAG_DF, 0, 512, invalid),
            (Command::BlockStatus, 0, size, 512, invalid),
            (Command::BlockStatus, 0, 0, 0, invalid),
            (Command::BlockStatus, 0, 0, 100, invalid),
            (Command::Flush, 0, 512, 0, invalid),
            (Command::Flush, 0, 0, 512, invalid),
            (Command::Unknown(8), 0, 0, 512, invalid),
            (Command::Unknown(0xffff), 0xffff, 7, 7, invalid),
        ];
        for (command, flags, offset, length, expected) in cases {
            let answered = peer.call(command, flags, offset, length);
            assert_eq!(answered.error, expected, "{command:?} {offset}+{length}");
            assert_eq!(answered.words.is_empty(), !structured);
        }
        for (offset, length, expected) in
            [(size, 512, no_space), (size - 512, 100_000, no_space), (3, 512, invalid), (0, 511, invalid)]
        {
            let refused = peer.write(offset, &vec![1; length]);
            assert_eq!(refused.error, expected, "write {offset}+{length}");
        }
        let refused = peer.ask_write(1 << 5, 0, &[1; 512]);
        assert_eq!(peer.answer(refused).error, invalid);
        // Nothing at all is a success at nothing.
        for command in [Command::Read, Command::Write, Command::Trim, Command::WriteZeroes, Command::Cache] {
            let answered = peer.call(command, FLAG_FUA, 512, 0);
            assert_eq!(answered.error, 0, "{command:?} of nothing");
            assert!(answered.data.is_empty());
        }
        assert_eq!(peer.read(0, 512), [0; 512]);
    }
    assert_eq!(lun.submits.load(Ordering::SeqCst), 0);
    // Without structured replies there is no DF.
    let mut simple = Peer::simple(server.address(), "disk");
    let refused = simple.call(Command::Read, FLAG_DF, 0, 512);
    assert_eq!(refused.error, invalid);
}

#[test]
fn a_read_only_export_refuses_every_change() {
    let (server, _lun) = serve_lun(true, Limits::default());
    let mut peer = Peer::structured(server.address(), "disk");
    let permission = code(ErrorCode::Permission);
    assert_eq!(peer.write(0, &[1; 512]).error, permission);
    // So large that it is refused while it still comes in.
    assert_eq!(peer.write(0, &vec![1; 8 << 20]).error, permission);
    for command in [Command::Trim, Command::WriteZeroes] {
        assert_eq!(peer.call(command, 0, 0, 512).error, permission);
    }
    assert_eq!(peer.call(Command::Flush, 0, 0, 0).error, 0);
    assert_eq!(peer.read(0, 512), [0; 512]);
}

#[test]
fn the_largest_payload_goes_both_ways_and_one_more_does_not() {
    let (server, lun) = serve();
    let data = Dice::new().bytes(32 << 20);
    let mut structured = Peer::structured(server.address(), "disk");
    let mut simple = Peer::simple(server.address(), "disk");
    let fua = simple.ask_write(FLAG_FUA, 4 * MIB, &data);
    assert_eq!(simple.answer(fua).error, 0);
    assert!(lun.bytes(4 * MIB, 32 << 20) == data);
    assert_eq!(lun.flushes.load(Ordering::SeqCst), 1);
    assert!(simple.read(4 * MIB, 32 << 20) == data);
    let whole = structured.call(Command::Read, FLAG_DF, 4 * MIB, 32 << 20);
    assert_eq!(whole.data.len(), 1);
    assert!(whole.data[0].1 == data);
    let more = (32 << 20) + 512;
    assert_eq!(simple.call(Command::Read, 0, 0, more).error, code(ErrorCode::Invalid));
    assert_eq!(structured.call(Command::Read, FLAG_DF, 0, more).error, code(ErrorCode::Overflow));
    assert!(structured.read(0, more)[4 << 20..] == data[..(28 << 20) + 512]);
    let refused = structured.write(0, &vec![1; more as usize]);
    assert_eq!(refused.error, code(ErrorCode::Invalid));
    assert_eq!(structured.read(0, 512), [0; 512]);
}

#[test]
fn a_sparse_read_says_where_the_holes_are_unless_df_forbids() {
    let (server, _lun) = serve();
    let mut peer = Peer::structured(server.address(), "disk");
    let data = Dice::new().bytes(65536);
    peer.write(MIB, &data);
    let answered = peer.call(Command::Read, 0, 0, 4 << 20);
    assert_eq!(answered.holes, [(0, 1 << 20), (MIB + 65536, (3 << 20) - 65536)]);
    assert_eq!(answered.data, [(MIB, data.clone())]);
    let answered = peer.call(Command::Read, FLAG_DF, 0, 4 << 20);
    assert!(answered.holes.is_empty());
    let whole = answered.assemble(0, 4 << 20);
    assert!(whole[MIB as usize..][..65536] == data);
    // Small reads are not worth the look.
    let answered = peer.call(Command::Read, 0, 8 * MIB, 4096);
    assert!(answered.holes.is_empty());
}

#[test]
fn a_removed_export_finishes_what_is_under_way_and_refuses_the_rest() {
    let (server, lun) = serve();
    let mut peer = Peer::structured(server.address(), "disk");
    let mut idle = Peer::simple(server.address(), "disk");
    lun.hold_submits(true);
    let write = peer.ask_write(FLAG_FUA, 0, &[5; 4096]);
    std::thread::sleep(Duration::from_millis(50));
    let busy = server.remove_export("disk", Duration::from_millis(100));
    assert!(matches!(busy, Err(ServerError::StillInUse { users: 1, .. })), "{busy:?}");
    let late = peer.ask_write(0, 8192, &[6; 4096]);
    lun.hold_submits(false);
    assert_eq!(peer.answer(write).error, 0);
    assert_eq!(peer.answer(late).error, code(ErrorCode::Shutdown));
    assert!(peer.closed());
    assert!(idle.closed());
    assert_eq!(lun.bytes(0, 4096), [5; 4096]);
    assert_eq!(lun.bytes(8192, 4096), [0; 4096]);
    // The name is free again, for the same LUN or another.
    server.add_export("disk", lun.clone(), "").unwrap();
    let mut again = Peer::simple(server.address(), "disk");
    assert_eq!(again.read(0, 4096), [5; 4096]);
}

#[test]
fn a_removed_export_waits_for_its_flushes() {
    let (server, lun) = serve();
    let mut peer = Peer::simple(server.address(), "disk");
    lun.hold_flushes();
    let flush = peer.ask(Command::Flush, 0, 0, 0);
    wait_for("the flush", || lun.held_flushes() == 1);
    let busy = server.remove_export("disk", Duration::from_millis(50));
    assert!(matches!(busy, Err(ServerError::StillInUse { .. })));
    lun.release_flushes(Ok(()));
    assert_eq!(peer.answer(flush).error, 0);
    assert!(peer.closed());
}

#[test]
fn a_write_half_received_does_not_hold_a_removed_export() {
    let (server, lun) = serve();
    for length in [1 << 20, 16 << 20] {
        let mut peer = Peer::simple(server.address(), "disk");
        let (cookie, request) = peer.request(Command::Write, 0, 0, length);
        peer.send(&request);
        peer.send(&vec![1; length as usize / 2]);
        std::thread::sleep(Duration::from_millis(50));
        server.remove_export("disk", Duration::from_secs(10)).unwrap();
        peer.send(&vec![1; length as usize / 2]);
        assert_eq!(peer.answer(cookie).error, code(ErrorCode::Shutdown));
        assert!(peer.closed());
        server.add_export("disk", lun.clone(), "").unwrap();
    }
}

#[test]
fn stop_finishes_what_is_under_way_and_disconnects_everybody() {
    let (server, lun) = serve();
    let mut peer = Peer::structured(server.address(), "disk");
    let mut idle = Peer::simple(server.address(), "disk");
    let mut haggling = Peer::greet(server.address());
    lun.hold_flushes();
    let fua = peer.ask_write(FLAG_FUA, 0, &[5; 4096]);
    wait_for("the flush", || lun.held_flushes() == 1);
    std::thread::scope(|scope| {
        let stopping = scope.spawn(|| server.stop(Duration::from_secs(20)));
        assert!(idle.closed());
        assert!(haggling.closed());
        lun.release_flushes(Ok(()));
        assert_eq!(peer.answer(fua).error, 0);
        assert!(peer.closed());
        assert_eq!(stopping.join().unwrap(), Stopped { cut: 0, left: 0 });
    });
    assert!(server.connections().is_empty());
    let late = std::net::TcpStream::connect(server.address());
    assert!(late.is_err(), "still listening");
    assert_eq!(server.stop(Duration::ZERO), Stopped { cut: 0, left: 0 });
}

#[test]
fn stop_cuts_what_does_not_end_and_says_what_hangs() {
    let (server, lun) = serve();
    let mut peer = Peer::simple(server.address(), "disk");
    lun.hold_submits(true);
    peer.ask_write(0, 0, &[5; 4096]);
    std::thread::sleep(Duration::from_millis(50));
    let stopped = server.stop(Duration::from_millis(100));
    assert_eq!(stopped, Stopped { cut: 1, left: 1 });
    assert!(peer.closed());
    lun.hold_submits(false);
    wait_for("the last thread", || server.connections().is_empty());
}

#[test]
fn a_disconnect_request_is_obeyed_after_the_flushes_before_it() {
    let (server, lun) = serve();
    let mut peer = Peer::simple(server.address(), "disk");
    lun.hold_flushes();
    let flush = peer.ask(Command::Flush, 0, 0, 0);
    peer.ask(Command::Disconnect, 0, 0, 0);
    wait_for("the flush", || lun.held_flushes() == 1);
    lun.release_flushes(Ok(()));
    assert_eq!(peer.answer(flush).error, 0);
    assert!(peer.closed());
}

#[test]
fn a_client_that_sends_no_more_still_gets_its_flush() {
    let (server, lun) = serve();
    let mut peer = Peer::simple(server.address(), "disk");
    lun.hold_flushes();
    let flush = peer.ask(Command::Flush, 0, 0, 0);
    peer.socket.shutdown(std::net::Shutdown::Write).unwrap();
    wait_for("the flush", || lun.held_flushes() == 1);
    std::thread::sleep(Duration::from_millis(20));
    lun.release_flushes(Ok(()));
    assert_eq!(peer.answer(flush).error, 0);
    assert!(peer.closed());
}

/// Random requests, many at a time, their bytes cut into random pieces, on an area of its own.
fn random_session(server: &Server, mut dice: Dice, area: u64, structured: bool) {
    let mut peer = if structured {
        Peer::structured(server.address(), "disk")
    } else {
        Peer::simple(server.address(), "disk")
    };
    let area_bytes = 8 * MIB;
    let mut model = vec![0_u8; area_bytes as usize];
    for _ in 0..60 {
        let mut bytes = Vec::new();
        let mut reads = HashMap::new();
        let mut asked = 0;
        // A region is used once in a round: requests under way at once have no order.
        let regions = 1 + dice.below(16);
        let region_bytes = area_bytes / regions / 512 * 512;
        for region in 0..regions {
            let start = region * region_bytes;
            let largest = match dice.below(4) {
                0 => 512,
                1 => 16384,
                2 => 200_000,
                _ => region_bytes,
            };
            let length = (1 + dice.below(largest.min(region_bytes) / 512)) * 512;
            let offset = start + dice.below((region_bytes - length) / 512 + 1) * 512;
            let range = offset as usize..(offset + length) as usize;
            let flags = if dice.below(8) == 0 { FLAG_FUA } else { 0 };
            let at = area + offset;
            asked += 1;
            match dice.below(10) {
                0..=3 => {
                    let data = dice.bytes(length as usize);
                    let (_, request) = peer.request(Command::Write, flags, at, length as u32);
                    bytes.extend_from_slice(&request);
                    bytes.extend_from_slice(&data);
                    model[range].copy_from_slice(&data);
                }
                4 => {
                    let command = [Command::Trim, Command::WriteZeroes][dice.below(2) as usize];
                    let (_, request) = peer.request(command, flags, at, length as u32);
                    bytes.extend_from_slice(&request);
                    model[range].fill(0);
                }
                5 => {
                    let (_, request) = peer.request(Command::Flush, 0, 0, 0);
                    bytes.extend_from_slice(&request);
                }
                _ => {
                    let (cookie, request) = peer.request(Command::Read, flags, at, length as u32);
                    bytes.extend_from_slice(&request);
                    reads.insert(cookie, (at, model[range].to_vec()));
                }
            }
        }
        std::thread::scope(|scope| {
            let mut socket = peer.socket.try_clone().unwrap();
            let cut = match dice.below(3) {
                0 => bytes.len(),
                1 => 1 + dice.below(100_000) as usize,
                _ => (bytes.len() / 20).max(1),
            };
            scope.spawn(move || {
                for piece in bytes.chunks(cut) {
                    std::io::Write::write_all(&mut socket, piece).unwrap();
                }
            });
            for _ in 0..asked {
                let (cookie, answered) = peer.next_answer().unwrap();
                assert_eq!(answered.error, 0, "{}", answered.words);
                if let Some((at, expected)) = reads.remove(&cookie) {
                    assert!(answered.assemble(at, expected.len() as u32) == expected);
                }
            }
        });
    }
    assert!(peer.read(area, area_bytes as u32) == model);
}

#[test]
fn random_sessions_agree_with_a_model() {
    let (server, _lun) = serve();
    let mut dice = Dice::new();
    std::thread::scope(|scope| {
        for session in 0..4 {
            let own = dice.fork();
            let server = &server;
            scope.spawn(move || random_session(server, own, session * 8 * MIB, session % 2 == 0));
        }
    });
}
