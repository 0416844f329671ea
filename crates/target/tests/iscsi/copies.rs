//! EXTENDED COPY: what is copied, what is refused and how, and what initiators are told of it.

use super::peer::{pattern, Peer};
use super::ramdisk::RamDisk;
use playhead_target::iscsi::{Limits, Masking, Server};
use playhead_target::scsi::{Offload, Policy, Rule};
use playhead_wire::scsi::extended_copy::{
    self, CopyList, Cscd, Designator, ListUse, Segment, SegmentLength, THIS_UNIT,
};
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Duration;

const A: &str = "iqn.2026-01.org.playhead:a";
const B: &str = "iqn.2026-01.org.playhead:b";
const PEER: &str = "iqn.2026-01.org.example:peer";
const BLOCK: usize = 512;

/// Target A with LUNs 0 and 1, target B with another LUN 0.
pub(crate) struct Stage {
    pub(crate) server: Server,
    pub(crate) disks: [Arc<RamDisk>; 3],
}

impl Stage {
    pub(crate) fn new() -> Stage {
        let server = Server::bind("127.0.0.1:0".parse().unwrap(), Limits::default()).unwrap();
        let disk = |name: &str| Arc::new(RamDisk::new(name, 131_072));
        let disks = [disk("copy0"), disk("copy1"), disk("copy2")];
        server.add_target(A).unwrap();
        server.add_target(B).unwrap();
        server.set_lun(A, 0, disks[0].clone()).unwrap();
        server.set_lun(A, 1, disks[1].clone()).unwrap();
        server.set_lun(B, 0, disks[2].clone()).unwrap();
        Stage { server, disks }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.server.address()
    }

    pub(crate) fn peer(&self) -> Peer {
        Peer::session(self.address(), A, &[])
    }

    pub(crate) fn peer_b(&self) -> Peer {
        Peer::session(self.address(), B, &[])
    }

    pub(crate) fn reject(&self, lun: Option<usize>, offload: Offload) {
        let lun = lun.map(|at| self.uuid(at));
        self.server.set_policy(Policy::new([Rule { lun, initiator: None, offload, support: false }]));
    }

    /// Shows the LUN of target B to nobody.
    pub(crate) fn mask_b(&self) {
        self.server.set_masking(Masking::new([((B.to_owned(), 0), Vec::new())]).unwrap());
    }

    pub(crate) fn uuid(&self, disk: usize) -> [u8; 16] {
        use playhead_target::lun::Lun;
        self.disks[disk].identity().uuid
    }

    /// The bytes of a disk.
    pub(crate) fn bytes(&self, disk: usize, lba: u64, blocks: usize) -> Vec<u8> {
        use playhead_target::lun::Lun;
        let mut bytes = vec![0; blocks * BLOCK];
        self.disks[disk].read(lba, &mut bytes).unwrap();
        bytes
    }

    /// Writes a disk behind the back of its sessions.
    pub(crate) fn fill(&self, disk: usize, lba: u64, data: &[u8]) {
        use playhead_target::lun::{Change, Lun};
        self.disks[disk].submit(&[Change::Write { lba, data }]).unwrap();
    }
}

/// The NAA designator of LUN `number` of the session's target (VPD page 83h).
pub(crate) fn naa_of(peer: &mut Peer, number: u16) -> [u8; 16] {
    let page = at_lun(peer, number, |peer| peer.command(&[0x12, 1, 0x83, 0, 0xff, 0], 255, &[]).data);
    let mut rest = &page[4..];
    loop {
        let length = usize::from(rest[3]);
        if rest[1] & 0x3f == 3 {
            return rest[4..20].try_into().unwrap();
        }
        rest = &rest[4 + length..];
    }
}

/// Has `f` talk to LUN `number`.
pub(crate) fn at_lun<T>(peer: &mut Peer, number: u16, f: impl FnOnce(&mut Peer) -> T) -> T {
    let before = std::mem::replace(&mut peer.lun, (u64::from(number) << 48).to_be_bytes());
    let result = f(peer);
    peer.lun = before;
    result
}

pub(crate) fn cscd(naa: [u8; 16]) -> Cscd {
    Cscd { name: Some(Designator::naa(&naa)), device_type: 0, block_bytes: 512 }
}

fn segment(source: u16, destination: u16, source_lba: u64, lba: u64, count: u16) -> Segment {
    Segment { source, destination, length: SegmentLength::Blocks(count), source_lba, lba }
}

fn list(list_id: u32, naas: &[[u8; 16]], segments: &[Segment]) -> CopyList {
    CopyList {
        list_id,
        list_use: ListUse::Held,
        immediate: false,
        cscds: naas.iter().copied().map(cscd).collect(),
        cscds_at: 0,
        segments: segments.to_vec(),
    }
}

fn bytes_of(list: &CopyList, long_id: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    extended_copy::emit(list, long_id, &mut bytes);
    bytes
}

/// The CDB of a command about copies whose list has `bytes` bytes.
pub(crate) fn copy_cdb(action: u8, list_id: u32, bytes: usize) -> [u8; 16] {
    let mut cdb = [0; 16];
    (cdb[0], cdb[1]) = (0x83, action);
    cdb[6..10].copy_from_slice(&list_id.to_be_bytes());
    cdb[10..14].copy_from_slice(&(bytes as u32).to_be_bytes());
    cdb
}

pub(crate) fn ask_cdb(action: u8, list_id: u32, allocation: u32) -> [u8; 16] {
    let mut cdb = [0; 16];
    (cdb[0], cdb[1]) = (0x84, action);
    if action < 5 {
        cdb[2] = list_id as u8;
    } else {
        cdb[2..6].copy_from_slice(&list_id.to_be_bytes());
    }
    cdb[10..14].copy_from_slice(&allocation.to_be_bytes());
    cdb
}

/// Sends a list; status and sense code.
fn copy(peer: &mut Peer, list: &CopyList) -> (u8, Option<u16>) {
    send(peer, 0, &bytes_of(list, false))
}

pub(crate) fn send(peer: &mut Peer, action: u8, bytes: &[u8]) -> (u8, Option<u16>) {
    let ended = peer.command(&copy_cdb(action, 0, bytes.len()), 0, bytes);
    (ended.status, ended.sense)
}

const GOOD: (u8, Option<u16>) = (0, None);
const CONFLICT: (u8, Option<u16>) = (0x18, None);

fn refused(code: u16) -> (u8, Option<u16>) {
    (2, Some(code))
}

#[test]
fn segments_are_copied_between_the_luns_of_a_target_and_within_one() {
    let stage = Stage::new();
    let mut peer = stage.peer();
    let naas = [naa_of(&mut peer, 0), naa_of(&mut peer, 1)];
    let data = pattern(64 * BLOCK, 3);
    stage.fill(0, 100, &data);
    let segments = [
        segment(0, 1, 100, 7, 32),
        segment(0, 1, 132, 39, 32), // adjoins
        segment(1, THIS_UNIT, 7, 5000, 64),
        segment(0, 0, 100, 9000, 0), // nothing
    ];
    assert_eq!(copy(&mut peer, &list(1, &naas, &segments)), GOOD);
    assert_eq!(stage.bytes(1, 7, 64), data);
    assert_eq!(stage.bytes(0, 5000, 64), data);
    // As ESXi sends it: one list, 4 MiB, in bytes.
    let length = SegmentLength::Bytes { count: 4 << 20, source_offset: 0, offset: 0 };
    let large = Segment { source: 0, destination: 1, length, source_lba: 100, lba: 16_384 };
    assert_eq!(copy(&mut peer, &list(1, &naas, &[large])), GOOD);
    assert_eq!(stage.bytes(1, 16_384, 8192), stage.bytes(0, 100, 8192));
    let saved = stage.server.offload_counts();
    let line = saved.iter().find(|(_, line)| line.offload == Offload::Xcopy).unwrap();
    assert_eq!((line.1.served, line.1.saved_bytes), (2, 2 * (128 * BLOCK as u64 + (4 << 20))));
}

#[test]
fn copies_that_overlap_themselves_are_as_if_read_before_written() {
    let stage = Stage::new();
    let mut peer = stage.peer();
    let naa = naa_of(&mut peer, 0);
    // More than a step, up and down by less than a step.
    for (source_lba, lba) in [(1000u64, 1100u64), (1100, 1000)] {
        let data = pattern(5000 * BLOCK, lba as u8);
        stage.fill(0, source_lba, &data);
        assert_eq!(copy(&mut peer, &list(1, &[naa], &[segment(0, 0, source_lba, lba, 5000)])), GOOD);
        assert_eq!(stage.bytes(0, lba, 5000), data);
    }
    // Segments are done one after another: the second reads what the first wrote.
    let data = pattern(8 * BLOCK, 77);
    stage.fill(0, 0, &data);
    let chain = [segment(0, 0, 0, 8, 8), segment(0, 0, 8, 16, 8), segment(0, 0, 16, 24, 8)];
    assert_eq!(copy(&mut peer, &list(1, &[naa], &chain)), GOOD);
    for lba in [8, 16, 24] {
        assert_eq!(stage.bytes(0, lba, 8), data, "LBA {lba}");
    }
}

#[test]
fn each_fault_of_a_list_has_its_own_sense_and_nothing_is_copied() {
    let stage = Stage::new();
    let mut peer = stage.peer();
    let naa = naa_of(&mut peer, 0);
    let right = list(1, &[naa], &[segment(0, 0, 0, 64, 8)]);
    let before = stage.disks[0].batches.load(Ordering::Relaxed);
    let of = |change: &dyn Fn(&mut CopyList)| {
        let mut list = right.clone();
        change(&mut list);
        bytes_of(&list, false)
    };
    let faults: Vec<(Vec<u8>, u16)> = vec![
        (of(&|l| l.segments[0].destination = 1), 0x0804),
        (of(&|l| l.segments[0].source = 0xc000), 0x0804),
        (of(&|l| l.cscds[0].name = Some(Designator::naa(&[0x60; 16]))), 0x0804),
        (of(&|l| l.segments[0].lba = 131_065), 0x0d02),
        (of(&|l| l.segments[0].source_lba = u64::MAX), 0x0d02),
        // The second is wrong: nor is the first done.
        (of(&|l| l.segments.push(segment(0, 0, 0, 131_072, 1))), 0x0d02),
        (
            of(&|l| l.segments[0].length = SegmentLength::Bytes { count: 100, source_offset: 0, offset: 0 }),
            0x260d,
        ),
        (
            of(&|l| l.segments[0].length = SegmentLength::Bytes { count: 512, source_offset: 1, offset: 0 }),
            0x260d,
        ),
        (of(&|l| l.cscds[0].block_bytes = 4096), 0x2600),
        (of(&|l| l.cscds = vec![cscd(naa); 129]), 0x2606),
        (of(&|l| l.segments = vec![segment(0, 0, 0, 64, 8); 1025]), 0x2608),
    ];
    for (bytes, code) in faults {
        assert_eq!(send(&mut peer, 0, &bytes), refused(code), "{code:#06x}");
    }
    let mut bytes = bytes_of(&right, false);
    bytes[17] = 1; // a tape
    assert_eq!(send(&mut peer, 0, &bytes), refused(0x0d03));
    bytes[16] = 0xe0;
    assert_eq!(send(&mut peer, 0, &bytes), refused(0x2607));
    let mut bytes = bytes_of(&right, false);
    bytes[48] = 3;
    assert_eq!(send(&mut peer, 0, &bytes), refused(0x2609));
    let mut bytes = bytes_of(&right, false);
    bytes[15] = 1;
    assert_eq!(send(&mut peer, 0, &bytes), refused(0x260b));
    bytes[1] = 0x08;
    assert_eq!(send(&mut peer, 0, &bytes), refused(0x2600));
    for cut in [1, 15, 40, 70] {
        assert_eq!(send(&mut peer, 0, &bytes_of(&right, false)[..cut]), refused(0x1a00), "{cut} bytes");
    }
    // More announced in the CDB than sent, and more than any list needs.
    let bytes = bytes_of(&right, false);
    let ended = peer.command(&copy_cdb(0, 0, bytes.len() + 1), 0, &bytes);
    assert_eq!((ended.status, ended.sense), refused(0x1a00));
    let ended = peer.command(&copy_cdb(0, 0, 1 << 30), 0, &bytes);
    assert_eq!((ended.status, ended.sense), refused(0x1a00));
    assert_eq!(stage.disks[0].batches.load(Ordering::Relaxed), before);
    // Empty lists ask for nothing.
    assert_eq!(peer.command(&copy_cdb(0, 0, 0), 0, &[]).status, 0);
    assert_eq!(copy(&mut peer, &list(1, &[], &[])), GOOD);
    assert_eq!(peer.command(&copy_cdb(0x05, 0, 0), 0, &[]).sense, Some(0x2400));
    // What was right is done.
    assert_eq!(copy(&mut peer, &right), GOOD);
}

#[test]
fn a_failed_segment_is_named_in_the_sense_data() {
    let stage = Stage::new();
    let mut peer = stage.peer();
    let naa = naa_of(&mut peer, 0);
    let segments = [segment(0, 0, 0, 64, 8), segment(0, 3, 0, 64, 8)];
    let bytes = bytes_of(&list(9, &[naa], &segments), false);
    let ended = peer.command(&copy_cdb(0, 0, bytes.len()), 0, &bytes);
    let sense = &ended.report;
    assert_eq!((sense[2], &sense[8..12]), (0x0a, &[0, 0, 0, 1][..]));
    assert_eq!(sense[15..18], [0x80 | 0x20, 0, 6]);
    // The same is told as failure details, once.
    let details = peer.command(&ask_cdb(4, 9, 512), 512, &[]).data;
    assert_eq!((details[3], details[56], details[59]), (74, 2, 18));
    assert_eq!(details[60..78], sense[..18]);
    assert_eq!(peer.command(&ask_cdb(4, 9, 512), 512, &[]).data, [0; 4]);
}

#[test]
fn luns_that_are_not_shown_cannot_be_named() {
    let stage = Stage::new();
    let mut peer = stage.peer();
    let own = naa_of(&mut peer, 0);
    let other = naa_of(&mut stage.peer_b(), 0);
    let data = pattern(8 * BLOCK, 5);
    stage.fill(2, 0, &data);
    let take = list(1, &[own, other], &[segment(1, 0, 0, 0, 8)]);
    let put = list(1, &[own, other], &[segment(0, 1, 0, 0, 8)]);
    // Shown by another target: reached without a session there.
    assert_eq!(copy(&mut peer, &take), GOOD);
    assert_eq!(stage.bytes(0, 0, 8), data);
    stage.fill(0, 0, &pattern(8 * BLOCK, 6));
    stage.mask_b();
    assert_eq!(copy(&mut peer, &take), refused(0x0804));
    assert_eq!(copy(&mut peer, &put), refused(0x0804));
    assert_eq!(stage.bytes(2, 0, 8), data);
    assert_eq!(stage.bytes(0, 0, 8), pattern(8 * BLOCK, 6));
}

#[test]
fn whatever_protects_a_lun_protects_it_from_copies() {
    let stage = Stage::new();
    let mut peer = stage.peer();
    let naas = [naa_of(&mut peer, 0), naa_of(&mut peer, 1)];
    at_lun(&mut peer, 1, Peer::ready);
    let to_other = list(1, &naas, &[segment(0, 1, 0, 0, 8)]);
    let from_other = list(1, &naas, &[segment(1, 0, 0, 0, 8)]);
    // Read-only.
    stage.disks[1].read_only.store(true, Ordering::Relaxed);
    assert_eq!(copy(&mut peer, &to_other), refused(0x0d01));
    assert_eq!(copy(&mut peer, &from_other), GOOD);
    assert_eq!(at_lun(&mut peer, 1, |peer| copy(peer, &to_other)), refused(0x2700));
    stage.disks[1].read_only.store(false, Ordering::Relaxed);
    // Stopped.
    at_lun(&mut peer, 1, |peer| peer.command(&[0x1b, 0, 0, 0, 0, 0], 0, &[]));
    assert_eq!(copy(&mut peer, &from_other), refused(0x0d01));
    at_lun(&mut peer, 1, |peer| peer.command(&[0x1b, 0, 0, 0, 1, 0], 0, &[]));
    assert_eq!(copy(&mut peer, &from_other), GOOD);
    // Policy at either end.
    stage.reject(Some(1), Offload::Xcopy);
    assert_eq!(copy(&mut peer, &from_other), refused(0x0d01));
    assert_eq!(copy(&mut peer, &to_other), refused(0x0d01));
    peer.ready();
    at_lun(&mut peer, 1, Peer::ready);
    assert_eq!(at_lun(&mut peer, 1, |peer| copy(peer, &to_other)), refused(0x2000));
    stage.server.set_policy(Policy::default());
    peer.ready();
    at_lun(&mut peer, 1, Peer::ready);
    assert_eq!(copy(&mut peer, &to_other), GOOD);
    // A broken disk.
    stage.disks[1].broken.store(true, Ordering::Relaxed);
    assert_eq!(copy(&mut peer, &to_other), refused(0x0d01));
    stage.disks[1].broken.store(false, Ordering::Relaxed);
}

/// REGISTER, then RESERVE of `kind`.
fn reserve(peer: &mut Peer, key: u64, kind: u8) {
    let mut list = [0; 24];
    list[8..16].copy_from_slice(&key.to_be_bytes());
    assert_eq!(peer.command(&[0x5f, 0, 0, 0, 0, 0, 0, 0, 24, 0], 0, &list).status, 0);
    let mut list = [0; 24];
    list[..8].copy_from_slice(&key.to_be_bytes());
    assert_eq!(peer.command(&[0x5f, 1, kind, 0, 0, 0, 0, 0, 24, 0], 0, &list).status, 0);
}

#[test]
fn reservations_hold_at_both_ends_of_a_copy() {
    let stage = Stage::new();
    let mut peer = stage.peer();
    let naas = [naa_of(&mut peer, 0), naa_of(&mut peer, 1)];
    let to_other = list(1, &naas, &[segment(0, 1, 0, 0, 8)]);
    let from_other = list(1, &naas, &[segment(1, 0, 0, 0, 8)]);
    let mut holder = Peer::connect(stage.address());
    holder.isid = [0x80, 0, 0, 9, 0, 9];
    let keys =
        [("InitiatorName", "iqn.2026-01.org.example:holder"), ("TargetName", A), ("SessionType", "Normal")];
    assert_eq!(holder.login(&keys), 0);
    holder.lun = (1u64 << 48).to_be_bytes();
    holder.ready();
    // Write exclusive: reading goes on.
    reserve(&mut holder, 0xabc, 1);
    assert_eq!(copy(&mut peer, &to_other), refused(0x0d01));
    assert_eq!(copy(&mut peer, &from_other), GOOD);
    assert_eq!(
        at_lun(&mut peer, 1, |peer| {
            peer.ready();
            copy(peer, &from_other)
        }),
        CONFLICT
    );
    // Its holder copies; then exclusive access.
    assert_eq!(copy(&mut holder, &to_other), GOOD);
    let mut clear = [0; 24];
    clear[..8].copy_from_slice(&0xabcu64.to_be_bytes());
    assert_eq!(holder.command(&[0x5f, 3, 0, 0, 0, 0, 0, 0, 24, 0], 0, &clear).status, 0);
    reserve(&mut holder, 0xabc, 3);
    assert_eq!(copy(&mut peer, &from_other), refused(0x0d01));
}

#[test]
fn status_is_held_for_the_nexus_that_asked_and_told_once() {
    let stage = Stage::new();
    let mut peer = stage.peer();
    let naa = naa_of(&mut peer, 0);
    let unknown = Some(0x2400);
    assert_eq!(peer.command(&ask_cdb(0, 7, 512), 512, &[]).sense, unknown);
    assert_eq!(copy(&mut peer, &list(7, &[naa], &[segment(0, 0, 0, 64, 8), segment(0, 0, 0, 96, 8)])), GOOD);
    // Another session of the same initiator, on the same LUN, and another LUN of this one.
    let mut other = Peer::connect(stage.address());
    other.isid = [0x80, 0, 0, 2, 0, 2];
    assert_eq!(other.login(&super::peer::keys(A, &[])), 0);
    other.ready();
    assert_eq!(other.command(&ask_cdb(5, 7, 512), 512, &[]).sense, unknown);
    at_lun(&mut peer, 1, Peer::ready);
    assert_eq!(at_lun(&mut peer, 1, |peer| peer.command(&ask_cdb(5, 7, 512), 512, &[]).sense), unknown);
    let four = peer.command(&ask_cdb(5, 7, 512), 512, &[]).data;
    assert_eq!(four[..8], [0, 0, 0, 28, 0, 1, 0, 2]);
    assert_eq!((&four[16..24], &four[24..26]), (&8192u64.to_be_bytes()[..], &[0, 2][..]));
    let one = peer.command(&ask_cdb(0, 7, 512), 512, &[]).data;
    assert_eq!(one, [0, 0, 0, 8, 1, 0, 2, 0, 0, 0, 0x20, 0]);
    assert_eq!(peer.command(&ask_cdb(0, 7, 512), 512, &[]).sense, unknown);
    assert_eq!(peer.command(&ask_cdb(1, 7, 512), 512, &[]).data, [0; 4]);
    assert_eq!(peer.command(&ask_cdb(6, 7, 512), 512, &[]).data.len(), 36);
    // A list that wants nothing held.
    let mut silent = list(0, &[naa], &[segment(0, 0, 0, 64, 8)]);
    silent.list_use = ListUse::None;
    assert_eq!(copy(&mut peer, &silent), GOOD);
    assert_eq!(peer.command(&ask_cdb(0, 0, 512), 512, &[]).sense, unknown);
}

#[test]
fn a_copy_in_the_background_is_watched_and_aborted() {
    let stage = Stage::new();
    let mut peer = stage.peer();
    let naas = [naa_of(&mut peer, 0), naa_of(&mut peer, 1)];
    stage.disks[1].pause_ms.store(2, Ordering::Relaxed);
    let length = SegmentLength::Bytes { count: 60 << 20, source_offset: 0, offset: 0 };
    let segment = Segment { source: 0, destination: 1, length, source_lba: 0, lba: 0 };
    let background = CopyList { immediate: true, ..list(0x1_0001, &naas, &[segment; 64]) };
    let bytes = bytes_of(&background, true);
    assert_eq!(send(&mut peer, 1, &bytes), GOOD);
    let status = peer.command(&ask_cdb(5, 0x1_0001, 512), 512, &[]).data;
    assert_eq!(status[4..6], [1, 0x12]);
    // Its identifier is taken; it has no data yet; and an identifier of one byte is another.
    assert_eq!(send(&mut peer, 1, &bytes), refused(0x0016));
    assert_eq!(peer.command(&ask_cdb(0, 1, 512), 512, &[]).sense, Some(0x2400));
    let mut abort = [0; 16];
    (abort[0], abort[1]) = (0x83, 0x1c);
    abort[2..6].copy_from_slice(&0x1_0001u32.to_be_bytes());
    assert_eq!(peer.command(&abort, 0, &[]).status, 0);
    let status = peer.command(&ask_cdb(5, 0x1_0001, 512), 512, &[]).data;
    assert_eq!((status[4], status[5], status[12]), (1, 0x60, 0x40));
    let written = stage.disks[1].batches.load(Ordering::Relaxed);
    // It is over: nothing more is written, and it cannot be aborted again.
    assert_eq!(peer.command(&abort, 0, &[]).sense, Some(0x2400));
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(stage.disks[1].batches.load(Ordering::Relaxed), written);
    // One that is left alone comes to its end.
    stage.disks[1].pause_ms.store(0, Ordering::Relaxed);
    stage.fill(0, 0, &pattern(1 << 20, 1));
    let small = CopyList { segments: vec![segment], ..background };
    assert_eq!(send(&mut peer, 1, &bytes_of(&small, true)), GOOD);
    while peer.command(&ask_cdb(5, 0x1_0001, 512), 512, &[]).data[5] == 0x12 {
        std::thread::sleep(Duration::from_millis(5));
    }
    let status = peer.command(&ask_cdb(5, 0x1_0001, 512), 512, &[]).data;
    assert_eq!((status[5], status[12], &status[16..24]), (1, 0, &(60u64 << 20).to_be_bytes()[..]));
    assert_eq!(stage.bytes(1, 0, 2048), pattern(1 << 20, 1));
}

#[test]
fn a_copy_stops_when_its_lun_goes_or_its_session_ends() {
    let stage = Stage::new();
    let mut peer = stage.peer();
    let naas = [naa_of(&mut peer, 0), naa_of(&mut peer, 1)];
    stage.disks[1].pause_ms.store(2, Ordering::Relaxed);
    let length = SegmentLength::Bytes { count: 60 << 20, source_offset: 0, offset: 0 };
    let segment = Segment { source: 0, destination: 1, length, source_lba: 0, lba: 0 };
    let background = CopyList { immediate: true, ..list(5, &naas, &[segment; 1000]) };
    assert_eq!(send(&mut peer, 1, &bytes_of(&background, true)), GOOD);
    stage.server.remove_lun(A, 1, Duration::from_secs(20)).unwrap();
    let written = stage.disks[1].batches.load(Ordering::Relaxed);
    std::thread::sleep(Duration::from_millis(30));
    assert_eq!(stage.disks[1].batches.load(Ordering::Relaxed), written);
    stage.server.set_lun(A, 1, stage.disks[1].clone()).unwrap();
    peer.ready();
    let background = CopyList { list_id: 6, ..background };
    assert_eq!(send(&mut peer, 1, &bytes_of(&background, true)), GOOD);
    drop(peer);
    stage.server.remove_target(A, Duration::from_secs(20)).unwrap();
    assert!(stage.disks[1].batches.load(Ordering::Relaxed) < 120_000);
}

#[test]
fn a_copy_ends_after_a_flush_where_there_is_no_write_cache() {
    let stage = Stage::new();
    let mut peer = stage.peer();
    let naas = [naa_of(&mut peer, 0), naa_of(&mut peer, 1)];
    at_lun(&mut peer, 1, |peer| {
        peer.ready();
        // Caching page, WCE off.
        let mut page = vec![0, 0, 0, 0, 0x08, 18];
        page.resize(4 + 20, 0);
        assert_eq!(peer.command(&[0x15, 0x10, 0, 0, 24, 0], 0, &page).status, 0);
    });
    let flushes = stage.disks[1].flushes.load(Ordering::Relaxed);
    assert_eq!(copy(&mut peer, &list(1, &naas, &[segment(0, 1, 0, 0, 8); 3])), GOOD);
    assert_eq!(stage.disks[1].flushes.load(Ordering::Relaxed), flushes + 1);
}

#[test]
fn what_hosts_are_told_follows_the_policy() {
    let stage = Stage::new();
    let mut peer = stage.peer();
    let page = |peer: &mut Peer, page: u8| peer.command(&[0x12, 1, page, 4, 0, 0], 1024, &[]);
    let kinds = |data: &[u8]| {
        let mut rest = &data[4..];
        let mut kinds = Vec::new();
        while rest.len() >= 4 {
            kinds.push(u16::from_be_bytes([rest[0], rest[1]]));
            rest = &rest[4 + (usize::from(rest[2]) << 8 | usize::from(rest[3]))..];
        }
        kinds
    };
    let listed = |peer: &mut Peer| {
        let data = peer.command(&[0xa3, 0x0c, 0, 0, 0, 0, 0, 0, 0x40, 0, 0, 0], 0x4000, &[]).data;
        let of = |entry: &[u8]| (entry[0], entry[3]);
        data[4..].chunks_exact(8).map(of).filter(|of| of.0 == 0x83 || of.0 == 0x84).collect::<Vec<_>>()
    };
    assert!(page(&mut peer, 0).data.contains(&0x8f));
    assert_eq!(kinds(&page(&mut peer, 0x8f).data), [0, 1, 4, 8, 0xc, 0x106, 0x8001, 0xc001]);
    assert_eq!(listed(&mut peer).len(), 13);
    let parameters = peer.command(&ask_cdb(3, 0, 512), 512, &[]).data;
    assert_eq!(parameters[43..], [3, 0x02, 0x0a, 0xe4]);

    stage.reject(None, Offload::Odx);
    peer.ready();
    assert_eq!(kinds(&page(&mut peer, 0x8f).data), [1, 4, 8, 0xc, 0x8001, 0xc001]);
    assert!(!listed(&mut peer).contains(&(0x83, 0x10)));
    stage.reject(None, Offload::Xcopy);
    peer.ready();
    assert_eq!(kinds(&page(&mut peer, 0x8f).data), [0, 1, 0x106, 0x8001, 0xc001]);
    assert_eq!(peer.command(&ask_cdb(3, 0, 512), 512, &[]).sense, Some(0x2000));
    let naa = naa_of(&mut peer, 0);
    assert_eq!(copy(&mut peer, &list(1, &[naa], &[segment(0, 0, 0, 8, 8)])), refused(0x2000));

    let none = |offload| Rule { lun: None, initiator: Some(PEER.to_owned()), offload, support: false };
    stage.server.set_policy(Policy::new([none(Offload::Xcopy), none(Offload::Odx)]));
    peer.ready();
    assert!(!page(&mut peer, 0).data.contains(&0x8f));
    assert_eq!(page(&mut peer, 0x8f).sense, Some(0x2400));
    assert_eq!(listed(&mut peer), []);
    assert_eq!(peer.command(&ask_cdb(5, 1, 512), 512, &[]).sense, Some(0x2000));
}
