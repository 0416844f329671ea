//! COMPARE AND WRITE as hosts use it: a lock in a sector that eight sessions fight for, over a volume of a journal.

use crate::peer::{keys, Peer};
use crate::IQN;
use playhead_journal::files::DiskFiles;
use playhead_journal::{Group, NewBase, Options};
use playhead_target::iscsi::{Limits, Server};
use playhead_target::lun::{LunIdentity, BLOCK_BYTES};
use playhead_target::splitter;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::Arc;

const SESSIONS: u64 = 8;
/// Zero when free, else who holds it, and the how-many-eth grant of theirs it is.
const LOCK_LBA: u32 = 8;
/// Zero while nobody is in, else who.
const INSIDE_LBA: u32 = 24;
/// How often somebody was in.
const COUNTER_LBA: u32 = 40;
const FREE: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];
/// MISCOMPARE DURING VERIFY OPERATION.
const MISCOMPARE: u16 = 0x1d00;

/// Attempts to take the lock, in all: `PLAYHEAD_LOCK_ATTEMPTS`, or a million when soaking.
fn attempts() -> i64 {
    let soak = std::env::var_os("PLAYHEAD_SOAK").is_some();
    let chosen = std::env::var("PLAYHEAD_LOCK_ATTEMPTS").ok().and_then(|text| text.parse().ok());
    chosen.unwrap_or(if soak { 1_000_000 } else { 50_000 })
}

fn sector(words: [u64; 2]) -> [u8; BLOCK_BYTES] {
    let mut block = FREE;
    block[..8].copy_from_slice(&words[0].to_be_bytes());
    // The end too, so that half a sector is nobody's.
    block[BLOCK_BYTES - 8..].copy_from_slice(&words[1].to_be_bytes());
    block
}

fn compare_and_write(peer: &mut Peer, compare: &[u8], write: &[u8]) -> bool {
    let mut cdb = [0; 16];
    cdb[0] = 0x89;
    cdb[6..10].copy_from_slice(&LOCK_LBA.to_be_bytes());
    cdb[13] = 1;
    let ended = peer.command(&cdb, 0, &[compare, write].concat());
    match (ended.status, ended.sense) {
        (0, _) => true,
        (2, Some(MISCOMPARE)) => false,
        _ => panic!("COMPARE AND WRITE ended in {ended:?}"),
    }
}

fn read(peer: &mut Peer, lba: u32) -> Vec<u8> {
    let ended = peer.read(lba, BLOCK_BYTES);
    assert_eq!(ended.status, 0);
    ended.data
}

fn write(peer: &mut Peer, lba: u32, block: &[u8]) {
    assert_eq!(peer.write(lba, block).status, 0);
}

/// What only one thread at a time may do, proved twice: by sectors, and by a word in this process' memory.
fn be_inside(peer: &mut Peer, who: u64, inside: &AtomicU64) {
    assert_eq!(inside.swap(who, Ordering::SeqCst), 0, "two hold the lock");
    assert_eq!(read(peer, INSIDE_LBA), FREE, "somebody is in");
    write(peer, INSIDE_LBA, &sector([who, who]));
    let counter = read(peer, COUNTER_LBA);
    let count = u64::from_be_bytes(*counter.first_chunk().unwrap());
    assert_eq!(counter, sector([count, count]));
    write(peer, COUNTER_LBA, &sector([count + 1, count + 1]));
    assert_eq!(read(peer, INSIDE_LBA), sector([who, who]), "somebody else came in");
    write(peer, INSIDE_LBA, &FREE);
    assert_eq!(inside.swap(0, Ordering::SeqCst), who, "two held the lock");
}

/// Fights for the lock until all have used up what `left` says together; how often it was granted.
fn contend(address: SocketAddr, who: u64, left: &AtomicI64, inside: &AtomicU64) -> u64 {
    let mut peer = Peer::connect(address);
    peer.isid[5] = who as u8;
    assert_eq!(peer.login(&keys(IQN, &[])), 0);
    peer.ready();
    let mut grants = 0;
    while left.fetch_sub(1, Ordering::SeqCst) > 0 {
        let mine = sector([who, grants]);
        if !compare_and_write(&mut peer, &FREE, &mine) {
            continue;
        }
        grants += 1;
        be_inside(&mut peer, who, inside);
        // Both ways of letting go that hosts have; a plain write is as atomic.
        if grants % 2 == 0 {
            assert!(compare_and_write(&mut peer, &mine, &FREE), "the holder lost the lock");
        } else {
            assert_eq!(read(&mut peer, LOCK_LBA), mine, "the holder lost the lock");
            write(&mut peer, LOCK_LBA, &FREE);
        }
    }
    grants
}

#[test]
fn a_lock_that_eight_sessions_fight_for_is_held_by_one_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let group = Group::create(Arc::new(DiskFiles), folder.path(), "g", &Options::default()).unwrap();
    let blocks = 131_072;
    let volume = group.add_volume("v", NewBase::Sparse { blocks }).unwrap();
    let server = Server::bind("127.0.0.1:0".parse().unwrap(), Limits::default()).unwrap();
    server.add_target(IQN).unwrap();
    let identity = LunIdentity { uuid: [3; 16], name: "g/v".to_owned() };
    server.set_lun(IQN, 0, splitter::lun(volume, identity)).unwrap();
    let (address, attempts) = (server.address(), attempts());
    let (inside, left) = (AtomicU64::new(0), AtomicI64::new(attempts));
    let grants: Vec<u64> = std::thread::scope(|scope| {
        let threads: Vec<_> = (1..=SESSIONS)
            .map(|who| {
                let (inside, left) = (&inside, &left);
                scope.spawn(move || contend(address, who, left, inside))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let total: u64 = grants.iter().sum();
    println!("{attempts} attempts, {total} grants: {grants:?}");
    let mut peer = Peer::session(address, IQN, &[]);
    assert_eq!(read(&mut peer, COUNTER_LBA), sector([total, total]), "a grant was lost or counted twice");
    assert_eq!(read(&mut peer, LOCK_LBA), FREE);
    assert!(total >= SESSIONS);
    drop(server);
    group.close().unwrap();
}
