//! A thousand sessions that do nothing. Alone in their process, so that memory can be counted.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "iscsi/peer.rs"]
#[allow(dead_code)]
mod peer;
#[path = "iscsi/ramdisk.rs"]
#[allow(dead_code)]
mod ramdisk;

use peer::{keys, Peer};
use playhead_target::iscsi::{Limits, Server};
use ramdisk::RamDisk;
use rustix::process::{getrlimit, setrlimit, Resource, Rlimit};
use std::sync::Arc;

const IQN: &str = "iqn.2026-01.org.playhead:idle";

/// Resident memory of this process, in KiB.
fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_thousand_idle_sessions_cost_little_and_disturb_nobody() {
    let limit = getrlimit(Resource::Nofile);
    let wanted = Some(limit.maximum.unwrap_or(8192).min(8192));
    setrlimit(Resource::Nofile, Rlimit { current: wanted, maximum: limit.maximum }).unwrap();
    let server = Server::bind("127.0.0.1:0".parse().unwrap(), Limits::default()).unwrap();
    server.add_target(IQN).unwrap();
    server.set_lun(IQN, 0, Arc::new(RamDisk::new("disk0", 131_072))).unwrap();
    let mut busy = Peer::session(server.address(), IQN, &[]);
    let before = resident_kib();
    let mut idle = Vec::new();
    for number in 0..1000u16 {
        let mut peer = Peer::connect(server.address());
        peer.isid[1] = 7;
        peer.isid[2..4].copy_from_slice(&number.to_be_bytes());
        assert_eq!(peer.login(&keys(IQN, &[])), 0);
        idle.push(peer);
        if number % 100 == 0 {
            assert_eq!(busy.write(u32::from(number), &[9; 512]).status, 0);
        }
    }
    assert_eq!(server.sessions().len(), 1001);
    // After a second of silence they give their buffers back; what stays are stacks and sockets.
    std::thread::sleep(std::time::Duration::from_millis(1500));
    for lba in 0..1000 {
        assert_eq!(busy.write(lba, &[3; 512]).status, 0);
    }
    let each = (resident_kib() - before) / 1000;
    println!("{each} KiB of memory for each idle session, both ends of it");
    assert!(each < 128, "{each} KiB each");
    // And they still live.
    idle[500].ready();
    idle[999].ready();
}
