//! Tokens for data: what they stand for, who may use them, and how each of them ends.

use super::copies::{ask_cdb, at_lun, copy_cdb, Stage};
use super::peer::{pattern, Peer};
use playhead_target::iscsi::Masking;
use playhead_target::scsi::{Offload, Policy};
use playhead_wire::iscsi::request::{function, Request, TaskManagement};
use playhead_wire::scsi::rod_token::{self, Populate, Range, WriteUsing, TOKEN_BYTES};
use std::sync::atomic::Ordering;
use std::time::Duration;

const BLOCK: usize = 512;
const A: &str = "iqn.2026-01.org.playhead:a";

type Token = [u8; TOKEN_BYTES];

fn populate(peer: &mut Peer, list_id: u32, inactivity_s: u32, ranges: &[Range]) -> (u8, Option<u16>) {
    let mut list = Vec::new();
    rod_token::emit_populate(
        &Populate { immediate: false, inactivity_s, ranges: ranges.to_vec() },
        &mut list,
    );
    let ended = peer.command(&copy_cdb(0x10, list_id, list.len()), 0, &list);
    (ended.status, ended.sense)
}

fn information(peer: &mut Peer, list_id: u32) -> Vec<u8> {
    peer.command(&ask_cdb(7, list_id, 1024), 1024, &[]).data
}

/// A token for `ranges` of LUN 0.
fn token(peer: &mut Peer, inactivity_s: u32, ranges: &[Range]) -> Token {
    assert_eq!(populate(peer, 0xabcd, inactivity_s, ranges), (0, None));
    let data = information(peer, 0xabcd);
    let blocks: u64 = ranges.iter().map(|range| u64::from(range.1)).sum();
    assert_eq!((data[4], data[5], data[15]), (0x10, 1, 0xf1));
    assert_eq!(data[16..24], blocks.to_be_bytes());
    assert_eq!(data[32..38], [0, 0, 2, 2, 0, 0]);
    data[38..].try_into().unwrap()
}

fn using(token: &Token, offset: u64, ranges: &[Range]) -> WriteUsing {
    WriteUsing { immediate: false, delete: false, offset, token: *token, ranges: ranges.to_vec() }
}

fn write(peer: &mut Peer, list_id: u32, write: &WriteUsing) -> (u8, Option<u16>) {
    let mut list = Vec::new();
    rod_token::emit_write_using(write, &mut list);
    let ended = peer.command(&copy_cdb(0x11, list_id, list.len()), 0, &list);
    (ended.status, ended.sense)
}

const GOOD: (u8, Option<u16>) = (0, None);

fn refused(code: u16) -> (u8, Option<u16>) {
    (2, Some(code))
}

#[test]
fn a_token_stands_for_the_data_of_its_moment_whatever_is_written_later() {
    let stage = Stage::new();
    let mut peer = stage.peer();
    let data = pattern(96 * BLOCK, 9);
    stage.fill(0, 500, &data);
    let token = token(&mut peer, 0, &[(564, 32), (500, 64)]);
    stage.fill(0, 500, &pattern(96 * BLOCK, 200));
    let in_order = [&data[64 * BLOCK..], &data[..64 * BLOCK]].concat();
    // To another LUN of the target, in three stretches, from the fourth block on.
    at_lun(&mut peer, 1, |peer| {
        peer.ready();
        assert_eq!(write(peer, 1, &using(&token, 4, &[(0, 40), (1000, 1), (80, 51)])), GOOD);
        let told = information(peer, 1);
        assert_eq!((told[4], told[5], told.len()), (0x11, 1, 36));
        assert_eq!(told[16..24], 92u64.to_be_bytes());
    });
    let written = [stage.bytes(1, 0, 40), stage.bytes(1, 1000, 1), stage.bytes(1, 80, 51)].concat();
    assert!(written == in_order[4 * BLOCK..]);
    // To a LUN of another target, and to the same LUN.
    assert_eq!(write(&mut stage.peer_b(), 1, &using(&token, 0, &[(7, 96)])), GOOD);
    assert!(stage.bytes(2, 7, 96) == in_order);
    assert_eq!(write(&mut peer, 1, &using(&token, 0, &[(500, 96)])), GOOD);
    assert!(stage.bytes(0, 500, 96) == in_order);
    // Told once: the token is not told again.
    assert_eq!(information(&mut peer, 0xabcd).len(), 36);
    let counts = stage.server.offload_counts();
    let odx = |saved: u64| counts.iter().any(|(_, c)| c.offload == Offload::Odx && c.saved_bytes == saved);
    assert!(odx(2 * 92 * BLOCK as u64) && odx(2 * 96 * BLOCK as u64), "{counts:?}");
}

#[test]
fn the_token_of_zeros_writes_zeros_as_one_change_for_each_range() {
    let stage = Stage::new();
    let mut peer = stage.peer();
    stage.fill(0, 0, &pattern(64 * BLOCK, 1));
    let batches = stage.disks[0].batches.load(Ordering::Relaxed);
    assert_eq!(write(&mut peer, 3, &using(&rod_token::zeros(), 1 << 60, &[(8, 16), (40, 100_000)])), GOOD);
    assert_eq!(stage.disks[0].batches.load(Ordering::Relaxed), batches + 1);
    assert!(stage.bytes(0, 8, 16).iter().all(|&byte| byte == 0));
    assert!(stage.bytes(0, 40, 24).iter().all(|&byte| byte == 0));
    assert_eq!(stage.bytes(0, 0, 8), pattern(8 * BLOCK, 1));
    assert_eq!(information(&mut peer, 3)[16..24], 100_016u64.to_be_bytes());
}

#[test]
fn less_data_than_asked_for_is_written_and_told() {
    let stage = Stage::new();
    let mut peer = stage.peer();
    let data = pattern(16 * BLOCK, 4);
    stage.fill(0, 0, &data);
    let token = token(&mut peer, 0, &[(0, 16)]);
    let mut list = Vec::new();
    rod_token::emit_write_using(&using(&token, 10, &[(100, 4), (200, 4)]), &mut list);
    let ended = peer.command(&copy_cdb(0x11, 2, list.len()), 0, &list);
    assert_eq!((ended.status, ended.sense), refused(0x0d04));
    assert_eq!((ended.report[2], &ended.report[3..7]), (0x0a, &[0, 0, 0, 6][..]));
    assert_eq!([stage.bytes(0, 100, 4), stage.bytes(0, 200, 2)].concat(), data[10 * BLOCK..]);
    let told = information(&mut peer, 2);
    assert_eq!((told[5], told[12], &told[16..24]), (3, 2, &6u64.to_be_bytes()[..]));
    assert_eq!(write(&mut peer, 2, &using(&token, 16, &[(100, 1)])), refused(0x2600));
}

#[test]
fn lists_that_are_wrong_make_no_token_and_write_nothing() {
    let stage = Stage::new();
    let mut peer = stage.peer();
    let good = token(&mut peer, 0, &[(0, 64)]);
    let batches = stage.disks[0].batches.load(Ordering::Relaxed);
    for (ranges, code) in [
        (vec![(131_072, 1)], 0x2100),
        (vec![(u64::MAX, 2)], 0x2100),
        (vec![(0, 8), (7, 8)], 0x2600),
        (vec![(0, 0); 257], 0x2608),
        (vec![(0, u32::MAX)], 0x2600),
        (vec![], 0x2600),
    ] {
        assert_eq!(populate(&mut peer, 5, 0, &ranges), refused(code), "{code:#06x}");
        assert_eq!(write(&mut peer, 6, &using(&good, 0, &ranges)), refused(code), "{code:#06x}");
    }
    assert_eq!(populate(&mut peer, 5, 3601, &[(0, 8)]), refused(0x2600));
    assert_eq!(peer.command(&copy_cdb(0x10, 5, 8), 0, &[0; 8]).sense, Some(0x1a00));
    assert_eq!(peer.command(&copy_cdb(0x11, 5, 100), 0, &[0; 100]).sense, Some(0x1a00));
    assert_eq!(peer.command(&copy_cdb(0x10, 5, 0), 0, &[]).status, 0);
    assert_eq!(peer.command(&copy_cdb(0x11, 5, 0), 0, &[]).status, 0);
    stage.disks[0].read_only.store(true, Ordering::Relaxed);
    assert_eq!(write(&mut peer, 6, &using(&good, 0, &[(0, 8)])), refused(0x2700));
    assert_eq!(stage.disks[0].batches.load(Ordering::Relaxed), batches);
    // Of a failed one, what it failed by is told.
    assert_eq!(populate(&mut peer, 5, 0, &[(131_072, 1)]), refused(0x2100));
    let told = information(&mut peer, 5);
    assert_eq!((told[5], told[12], told[32 + 2], told[32 + 12]), (2, 2, 5, 0x21));
}

#[test]
fn a_token_that_is_not_exactly_one_of_ours_is_refused() {
    let stage = Stage::new();
    let mut peer = stage.peer();
    let good = token(&mut peer, 0, &[(0, 8)]);
    let other = token(&mut peer, 0, &[(0, 8)]);
    assert!(good[384..] != other[384..] && good[8..16] != other[8..16]);
    let with = |at: usize| {
        let mut wrong = good;
        wrong[at] ^= 1;
        wrong
    };
    for (token, code) in [
        (with(511), 0x2305),
        (with(400), 0x2305),
        (with(60), 0x2305),
        (with(15), 0x2304),
        (with(3), 0x2301),
        (with(7), 0x230a),
        (with(16), 0x2305),
        ([0; TOKEN_BYTES], 0x230a),
    ] {
        assert_eq!(write(&mut peer, 1, &using(&token, 0, &[(0, 8)])), refused(code), "{code:#06x}");
    }
    // The secret of one with the number of another.
    let mut crossed = other;
    crossed[8..16].copy_from_slice(&good[8..16]);
    assert_eq!(write(&mut peer, 1, &using(&crossed, 0, &[(0, 8)])), refused(0x2305));
    assert_eq!(write(&mut peer, 1, &using(&good, 0, &[(0, 8)])), GOOD);
}

#[test]
fn tokens_expire_when_they_are_not_used_and_can_be_deleted() {
    let stage = Stage::new();
    let mut peer = stage.peer();
    let short = token(&mut peer, 1, &[(0, 8)]);
    let long = token(&mut peer, 3600, &[(0, 8)]);
    while peer.command(&ask_cdb(8, 0, 4096), 4096, &[]).data.len() > 8 + 96 {
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(write(&mut peer, 1, &using(&short, 0, &[(100, 8)])), refused(0x2307));
    // What is told of all tokens is not their secret.
    let told = peer.command(&ask_cdb(8, 0, 4096), 4096, &[]).data;
    assert_eq!(told[8..], long[..96]);
    let delete = WriteUsing { delete: true, ..using(&long, 0, &[(100, 8)]) };
    assert_eq!(write(&mut peer, 1, &delete), GOOD);
    assert_eq!(write(&mut peer, 1, &delete), refused(0x2309));
    assert_eq!(peer.command(&ask_cdb(8, 0, 4096), 4096, &[]).data.len(), 8);
}

#[test]
fn a_token_goes_with_its_lun_and_with_the_right_to_see_it() {
    let stage = Stage::new();
    let mut peer = stage.peer();
    let mut peer_b = stage.peer_b();
    let of_b = token(&mut peer_b, 0, &[(0, 8)]);
    assert_eq!(write(&mut peer, 1, &using(&of_b, 0, &[(0, 8)])), GOOD);
    stage.mask_b();
    assert_eq!(write(&mut peer, 1, &using(&of_b, 0, &[(0, 8)])), refused(0x2306));
    stage.server.set_masking(Masking::default());
    assert_eq!(write(&mut peer, 1, &using(&of_b, 0, &[(0, 8)])), GOOD);
    // Policy, at the source: it is gone for good.
    stage.reject(Some(2), Offload::Odx);
    assert_eq!(write(&mut peer, 1, &using(&of_b, 0, &[(0, 8)])), refused(0x2306));
    stage.server.set_policy(Policy::default());
    peer_b.ready();
    assert_eq!(write(&mut peer, 1, &using(&of_b, 0, &[(0, 8)])), refused(0x2306));
    // The LUN is taken away, or replaced by another, or by itself.
    let token_1 = |peer: &mut Peer| {
        at_lun(peer, 1, |peer| {
            peer.ready();
            token(peer, 0, &[(0, 8)])
        })
    };
    let of_removed = token_1(&mut peer);
    stage.server.remove_lun(A, 1, Duration::from_secs(20)).unwrap();
    peer.ready();
    assert_eq!(write(&mut peer, 1, &using(&of_removed, 0, &[(0, 8)])), refused(0x2306));
    stage.server.set_lun(A, 1, stage.disks[1].clone()).unwrap();
    peer.ready();
    assert_eq!(write(&mut peer, 1, &using(&of_removed, 0, &[(0, 8)])), refused(0x2306));
    let of_replaced = token_1(&mut peer);
    stage.server.set_lun(A, 1, stage.disks[1].clone()).unwrap();
    peer.ready();
    assert_eq!(write(&mut peer, 1, &using(&of_replaced, 0, &[(0, 8)])), refused(0x2306));
}

#[test]
fn what_is_erased_does_not_come_back_by_a_token() {
    let stage = Stage::new();
    let mut peer = stage.peer();
    for erase in [[0x48, 0x02, 0, 0, 0, 0, 0, 0, 0, 0], [0x04, 0, 0, 0, 0, 0, 0, 0, 0, 0]] {
        stage.fill(0, 500, &pattern(96 * BLOCK, 9));
        let token = token(&mut peer, 0, &[(500, 96)]);
        assert_eq!(peer.command(&erase, 0, &[]).status, 0);
        assert_eq!(write(&mut peer, 1, &using(&token, 0, &[(500, 96)])), refused(0x2306));
        assert!(stage.bytes(0, 500, 96) == [0; 96 * BLOCK]);
    }
}

#[test]
fn ranges_that_were_announced_and_did_not_come_are_not_good() {
    let stage = Stage::new();
    let mut peer = stage.peer();
    stage.fill(0, 500, &pattern(8 * BLOCK, 9));
    let token = token(&mut peer, 0, &[(500, 8)]);
    let mut list = Vec::new();
    rod_token::emit_write_using(&using(&token, 0, &[(0, 4), (4, 4)]), &mut list);
    list.truncate(list.len() - 16);
    let ended = peer.command(&copy_cdb(0x11, 1, list.len()), 0, &list);
    assert_eq!((ended.status, ended.sense), refused(0x1a00));
}

#[test]
fn data_that_could_not_be_kept_cancels_its_token() {
    let stage = Stage::new();
    let mut peer = stage.peer();
    let token = token(&mut peer, 0, &[(0, 8)]);
    stage.disks[0].thawed.store(true, Ordering::Relaxed);
    assert_eq!(write(&mut peer, 1, &using(&token, 0, &[(0, 8)])), refused(0x2308));
    stage.disks[0].thawed.store(false, Ordering::Relaxed);
    assert_eq!(write(&mut peer, 1, &using(&token, 0, &[(0, 8)])), refused(0x2308));
}

#[test]
fn list_identifiers_of_tokens_are_the_nexus_own() {
    let stage = Stage::new();
    let mut peer = stage.peer();
    assert_eq!(populate(&mut peer, 77, 0, &[(0, 8)]), GOOD);
    let mut other = Peer::connect(stage.address());
    other.isid = [0x80, 0, 0, 2, 0, 2];
    assert_eq!(other.login(&super::peer::keys(A, &[])), 0);
    other.ready();
    assert_eq!(other.command(&ask_cdb(7, 77, 1024), 1024, &[]).sense, Some(0x2400));
    // Cut short it is not told, and asked for again it is.
    assert_eq!(peer.command(&ask_cdb(7, 77, 100), 100, &[]).data.len(), 100);
    assert_eq!(information(&mut peer, 77).len(), 32 + 4 + 2 + TOKEN_BYTES);
    // A reset of the unit forgets it.
    assert_eq!(populate(&mut peer, 78, 0, &[(0, 8)]), GOOD);
    let reset = TaskManagement {
        immediate: true,
        function: function::LOGICAL_UNIT_RESET,
        lun: [0; 8],
        itt: 0x7777,
        referenced_itt: u32::MAX,
        cmd_sn: peer.cmd_sn,
        exp_stat_sn: 0,
        ref_cmd_sn: 0,
        exp_data_sn: 0,
    };
    peer.send(&Request::TaskManagement(reset), &[]);
    assert!(peer.receive().is_some());
    peer.ready();
    assert_eq!(peer.command(&ask_cdb(7, 78, 1024), 1024, &[]).sense, Some(0x2400));
}

#[test]
fn a_write_in_the_background_is_asked_for_later() {
    let stage = Stage::new();
    let mut peer = stage.peer();
    let data = pattern(4096 * BLOCK, 8);
    stage.fill(0, 0, &data);
    let token = token(&mut peer, 0, &[(0, 4096)]);
    stage.disks[0].pause_ms.store(5, Ordering::Relaxed);
    let background = WriteUsing { immediate: true, ..using(&token, 0, &[(8192, 4096)]) };
    assert_eq!(write(&mut peer, 9, &background), GOOD);
    let end = loop {
        let told = information(&mut peer, 9);
        if told[5] != 0x12 {
            break told;
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    assert_eq!((end[5], &end[16..24]), (1, &4096u64.to_be_bytes()[..]));
    assert!(stage.bytes(0, 8192, 4096) == data);
}
