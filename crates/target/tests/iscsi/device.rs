//! What the device server answers to commands about blocks, seen through a session.

use crate::peer::{pattern, Ended, Peer};
use crate::ramdisk::RamDisk;
use crate::IQN;
use playhead_target::iscsi::{Limits, Server};
use playhead_target::lun::Lun;
use playhead_target::scsi::{Offload, Policy, Rule};
use playhead_wire::iscsi::request::Request;
use std::sync::atomic::Ordering;
use std::sync::Arc;

pub(crate) const BLOCK: usize = 512;
/// Size of the LUN.
const BLOCKS: u64 = 8192;

/// GOOD without sense data.
pub(crate) fn is_good(ended: &Ended) -> bool {
    ended.status == 0 && ended.sense.is_none()
}

/// A 16-byte CDB of the common form.
pub(crate) fn cdb_16(opcode: u8, flags: u8, lba: u64, count: u32) -> [u8; 16] {
    let mut cdb = [0; 16];
    (cdb[0], cdb[1]) = (opcode, flags);
    cdb[2..10].copy_from_slice(&lba.to_be_bytes());
    cdb[10..14].copy_from_slice(&count.to_be_bytes());
    cdb
}

fn atomic(lba: u64, boundary: u16, count: u16) -> [u8; 16] {
    let mut cdb = cdb_16(0x9c, 0, lba, 0);
    cdb[10..12].copy_from_slice(&boundary.to_be_bytes());
    cdb[12..14].copy_from_slice(&count.to_be_bytes());
    cdb
}

/// A server with one small LUN, so that a change of all of it is cheap, and a session.
pub(crate) fn start() -> (Server, Arc<RamDisk>, Peer) {
    let server = Server::bind("127.0.0.1:0".parse().unwrap(), Limits::default()).unwrap();
    let disk = Arc::new(RamDisk::new("disk0", BLOCKS));
    server.add_target(IQN).unwrap();
    server.set_lun(IQN, 0, disk.clone()).unwrap();
    let peer = Peer::session(server.address(), IQN, &[]);
    (server, disk, peer)
}

fn page(peer: &mut Peer, code: u8) -> Vec<u8> {
    peer.command(&[0x12, 1, code, 1, 0, 0], 256, &[]).data
}

/// The command of these 16 bytes sent with `announced` bytes of expected length and `data` as immediate data.
fn announce(peer: &mut Peer, cdb: &[u8], announced: u32, data: &[u8]) -> Ended {
    let mut request = peer.scsi(cdb, announced, data);
    request.write = true;
    request.read = false;
    peer.send(&Request::ScsiCommand(request), data);
    peer.end_of(request.itt)
}

#[test]
fn orwrite_leaves_the_or_of_both_and_changes_nothing_beyond() {
    let (_server, disk, mut peer) = start();
    let (before, ored) = (pattern(4 * BLOCK, 0x11), pattern(2 * BLOCK, 0xa0));
    assert!(is_good(&peer.write(10, &before)));
    assert!(is_good(&peer.command(&cdb_16(0x8b, 0x08, 11, 2), 0, &ored)));
    assert_eq!(disk.flushes.load(Ordering::Relaxed), 1, "FUA");
    let after = peer.read(10, 4 * BLOCK).data;
    let wanted: Vec<u8> = before[BLOCK..3 * BLOCK].iter().zip(&ored).map(|(a, b)| a | b).collect();
    assert_eq!(after[BLOCK..3 * BLOCK], wanted);
    assert_eq!((&after[..BLOCK], &after[3 * BLOCK..]), (&before[..BLOCK], &before[3 * BLOCK..]));
    let beyond = peer.command(&cdb_16(0x8b, 0, 8191, 2), 0, &ored);
    assert_eq!(beyond.sense, Some(0x2100));
    let short = announce(&mut peer, &cdb_16(0x8b, 0, 0, 2), 512, &ored[..BLOCK]);
    assert_eq!(short.sense, Some(0x0e03));
}

#[test]
fn write_atomic_is_one_change_up_to_what_the_limits_page_says() {
    let (_server, disk, mut peer) = start();
    let limits = page(&mut peer, 0xb0);
    let most = u32::from_be_bytes(limits[44..48].try_into().unwrap());
    assert_eq!(most, disk.atomic_blocks());
    assert_eq!(limits[48..56], [0; 8], "no alignment, no granularity");
    let batches = disk.batches.load(Ordering::Relaxed);
    let data = pattern(128 * BLOCK, 7);
    assert!(is_good(&peer.command(&atomic(3, 0, 128), 0, &data)));
    assert!(is_good(&peer.command(&atomic(1000, 16, 128), 0, &data)), "a boundary");
    assert!(is_good(&peer.command(&atomic(0, 0, 0), 0, &[])));
    assert_eq!(disk.batches.load(Ordering::Relaxed), batches + 2);
    assert_eq!(peer.read(3, data.len()).data, data);
    let long = announce(&mut peer, &atomic(0, 0, most as u16 + 1), (most + 1) * 512, &[]);
    assert_eq!(long.sense, Some(0x2400));
    let boundary = announce(&mut peer, &atomic(0, most as u16 + 1, 1), 512, &[]);
    assert_eq!(boundary.sense, Some(0x2400));
    // Half of an atomic write is not a shorter one.
    assert_eq!(announce(&mut peer, &atomic(0, 0, 2), 512, &data[..BLOCK]).sense, Some(0x0e03));
    assert_eq!(disk.batches.load(Ordering::Relaxed), batches + 2);
}

#[test]
fn a_unit_that_may_tear_writes_has_no_write_atomic() {
    let (_server, disk, mut peer) = start();
    disk.atomic_blocks.store(0, Ordering::Relaxed);
    assert_eq!(page(&mut peer, 0xb0)[44..64], [0; 20]);
    assert_eq!(peer.command(&atomic(0, 0, 1), 0, &pattern(BLOCK, 1)).sense, Some(0x2000));
    let one = peer.command(&[0xa3, 0x0c, 1, 0x9c, 0, 0, 0, 0, 0, 64, 0, 0], 64, &[]).data;
    assert_eq!(one, [0, 1, 0, 0], "REPORT SUPPORTED OPERATION CODES");
}

#[test]
fn a_write_of_part_of_a_block_is_refused_and_one_of_fewer_blocks_is_shorter() {
    let (_server, disk, mut peer) = start();
    let batches = || disk.batches.load(Ordering::Relaxed);
    let data = pattern(2 * BLOCK, 3);
    for opcode in [0x8a, 0x8e] {
        let before = batches();
        let torn = announce(&mut peer, &cdb_16(opcode, 0, 8, 2), 200, &data[..200]);
        assert_eq!((torn.status, torn.sense), (2, Some(0x0e03)), "{opcode:#x}");
        assert_eq!(batches(), before, "nothing is captured");
        assert!(is_good(&announce(&mut peer, &cdb_16(opcode, 0, 8, 2), 512, &data[..BLOCK])));
        assert_eq!(batches(), before + 1);
    }
}

#[test]
fn compare_and_write_wants_its_data_whole() {
    let (_server, disk, mut peer) = start();
    let data = pattern(4 * BLOCK, 3);
    let before = disk.batches.load(Ordering::Relaxed);
    for count in [0u8, 1, 3] {
        let mut cdb = cdb_16(0x89, 0, 0, 0);
        cdb[13] = count;
        let ended = announce(&mut peer, &cdb, 2048, &data);
        assert_eq!((ended.status, ended.sense), (2, Some(0x2400)), "{count}");
    }
    assert_eq!(disk.batches.load(Ordering::Relaxed), before);
}

#[test]
fn a_parameter_list_that_ends_early_is_refused_whole() {
    let (_server, disk, mut peer) = start();
    let before = disk.batches.load(Ordering::Relaxed);
    let mut unmap = vec![0, 22, 0, 16, 0, 0, 0, 0];
    unmap.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0]);
    let cdb = [0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0];
    assert_eq!(announce(&mut peer, &cdb, 16, &unmap[..16]).sense, Some(0x1a00));
    assert_eq!(announce(&mut peer, &[0x15, 0x10, 0, 0, 24, 0], 4, &[0; 4]).sense, Some(0x1a00));
    assert_eq!(disk.batches.load(Ordering::Relaxed), before);
    assert!(is_good(&announce(&mut peer, &cdb, 24, &unmap)));
}

#[test]
fn write_same_and_unmap_of_everything_are_one_change_each() {
    let (_server, disk, mut peer) = start();
    let limits = page(&mut peer, 0xb0);
    assert_eq!(limits[36..44], disk.block_count().to_be_bytes(), "MAXIMUM WRITE SAME LENGTH");
    assert_eq!(limits[20..24], u32::MAX.to_be_bytes(), "MAXIMUM UNMAP LBA COUNT");
    assert!(is_good(&peer.write(0, &pattern(8 * BLOCK, 1))));
    let before = disk.batches.load(Ordering::Relaxed);
    assert!(is_good(&peer.command(&cdb_16(0x93, 0, 0, BLOCKS as u32), 0, &[0x77; BLOCK])));
    assert_eq!(disk.batches.load(Ordering::Relaxed), before + 1);
    assert_eq!(peer.read(8191, BLOCK).data, [0x77; BLOCK]);
    let mut unmap = vec![0, 22, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    unmap.extend_from_slice(&(BLOCKS as u32).to_be_bytes());
    unmap.extend_from_slice(&[0; 4]);
    assert!(is_good(&peer.command(&[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], 0, &unmap)));
    assert_eq!(disk.batches.load(Ordering::Relaxed), before + 2);
    // Number of blocks 0: to the end.
    assert_eq!(limits[4] & 1, 0, "WSNZ");
    assert!(is_good(&peer.command(&cdb_16(0x93, 0, 8000, 0), 0, &[0x33; BLOCK])));
    assert_eq!(disk.batches.load(Ordering::Relaxed), before + 3);
    assert_eq!(peer.read(7999, 2 * BLOCK).data, [[0; BLOCK], [0x33; BLOCK]].concat());
    assert_eq!(peer.read(8191, BLOCK).data, [0x33; BLOCK]);
    assert_eq!(peer.command(&cdb_16(0x93, 0, BLOCKS, 0), 0, &[0; BLOCK]).sense, Some(0x2100));
    // No block can be anchored (ANC_SUP).
    assert_eq!(peer.command(&cdb_16(0x93, 0x18, 0, 8), 0, &[0; BLOCK]).sense, Some(0x2400));
}

#[test]
fn prefetch_reads_ahead_within_the_unit() {
    let (_server, disk, mut peer) = start();
    for flags in [0, 2] {
        assert!(is_good(&peer.command(&cdb_16(0x90, flags, 0, 0), 0, &[])), "all to the end");
        assert!(is_good(&peer.command(&cdb_16(0x90, flags, 8120, 72), 0, &[])));
        assert_eq!(peer.command(&cdb_16(0x90, flags, 8120, 73), 0, &[]).sense, Some(0x2100));
    }
    disk.broken.store(true, Ordering::Relaxed);
    let ended = peer.command(&cdb_16(0x90, 0, 0, 8), 0, &[]);
    assert_eq!(ended.sense, Some(0x1100), "it does read");
}

#[test]
fn a_disk_without_defects_says_so() {
    let (_server, _disk, mut peer) = start();
    let ten = peer.command(&[0x37, 0, 0x1d, 0, 0, 0, 0, 0, 32, 0], 32, &[]);
    assert_eq!(ten.data, [0, 0x1d, 0, 0]);
    let twelve = peer.command(&[0xb7, 0x08, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0], 32, &[]);
    assert_eq!(twelve.data, [0, 0x08, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn the_physical_block_is_the_lun_s() {
    let (_server, disk, mut peer) = start();
    let exponent = |peer: &mut Peer| {
        peer.command(&[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0], 32, &[]).data[13] & 0xf
    };
    assert_eq!((exponent(&mut peer), page(&mut peer, 0xb0)[31]), (3, 8));
    disk.physical_block_bytes.store(512, Ordering::Relaxed);
    assert_eq!((exponent(&mut peer), page(&mut peer, 0xb0)[31]), (0, 1));
}

#[test]
fn a_unit_of_which_nothing_may_be_unmapped_is_not_thin() {
    let (server, _disk, mut peer) = start();
    let capacity = |peer: &mut Peer| {
        peer.command(&[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0], 32, &[]).data[14]
    };
    let reject = |offload| Rule { lun: None, initiator: None, offload, support: false };
    assert_eq!((capacity(&mut peer), &page(&mut peer, 0xb2)[5..7]), (0xc0, &[0xe4, 2][..]));
    server.set_policy(Policy::new([reject(Offload::WriteSame)]));
    assert_eq!(peer.command(&[0; 6], 0, &[]).sense, Some(0x3f03));
    assert_eq!((capacity(&mut peer), &page(&mut peer, 0xb2)[5..7]), (0xc0, &[0x84, 2][..]));
    server.set_policy(Policy::new([reject(Offload::Unmap)]));
    // READ CAPACITY says something else too.
    assert_eq!(peer.command(&[0; 6], 0, &[]).sense, Some(0x2a09));
    assert_eq!(peer.command(&[0; 6], 0, &[]).sense, Some(0x3f03));
    assert_eq!((capacity(&mut peer), &page(&mut peer, 0xb2)[4..]), (0, &[0; 4][..]));
    assert_eq!(page(&mut peer, 0xb0)[20..36], [0; 16], "no unmap, no granularity");
}

#[test]
fn hosts_are_told_of_changed_contents_and_of_short_space() {
    let (server, _disk, mut peer) = start();
    server.contents_changed(IQN).unwrap();
    server.space_low(IQN).unwrap();
    assert!(server.space_low("iqn.2026-01.org.playhead:other").is_err());
    assert_eq!(peer.command(&[0; 6], 0, &[]).sense, Some(0x2800));
    assert_eq!(peer.command(&[0; 6], 0, &[]).sense, Some(0x3807));
    assert!(is_good(&peer.command(&[0; 6], 0, &[])));
    // LBPERE off: it does not want to know.
    let mut list = peer.command(&[0x1a, 0x08, 0x01, 0, 64, 0], 64, &[]).data;
    assert_eq!(list[4 + 7], 0x80);
    list[0] = 0;
    list[4 + 7] = 0;
    let length = list.len() as u8;
    assert!(is_good(&peer.command(&[0x15, 0x10, 0, 0, length, 0], 0, &list)));
    server.space_low(IQN).unwrap();
    assert!(is_good(&peer.command(&[0; 6], 0, &[])));
}
