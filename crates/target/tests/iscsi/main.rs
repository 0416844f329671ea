//! The iSCSI target from outside: what sessions may rely on, what hostile peers may not break, and real clients.

// Test helpers may panic: the lint's own exception covers only the test functions themselves.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod captured;
mod chap;
mod clients;
mod clones;
mod copies;
mod device;
mod hostile;
mod lock;
mod masking;
mod modes;
mod negotiation;
mod peer;
mod ramdisk;
mod reservations;
mod sanitize;
mod sequences;
mod sessions;
mod tasks;
mod tokens;

#[path = "../nbd_peer/mod.rs"]
mod nbd_peer;

use playhead_target::iscsi::{Limits, Server};
use ramdisk::RamDisk;
use std::sync::Arc;

const IQN: &str = "iqn.2026-01.org.playhead:test";

/// A server with one target and one LUN of 64 MiB.
fn serve(limits: Limits) -> (Server, Arc<RamDisk>) {
    let server = Server::bind("127.0.0.1:0".parse().unwrap(), limits).unwrap();
    let disk = Arc::new(RamDisk::new("disk0", 131_072));
    server.add_target(IQN).unwrap();
    server.set_lun(IQN, 0, disk.clone()).unwrap();
    (server, disk)
}
