//! What a connection costs that does nothing. Alone in its process, so that memory can be counted.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod nbd_memory;
mod nbd_peer;

use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use nbd_memory::MemoryLun;
use nbd_peer::Peer;
use playhead_target::nbd::{Limits, Server};
use rustix::process::{getrlimit, setrlimit, Resource};

fn works(server: &Server) {
    let mut peer = Peer::structured(server.address(), "disk");
    assert_eq!(peer.write(4096, &[3; 4096]).error, 0);
    assert_eq!(peer.read(4096, 4096), [3; 4096]);
}

#[test]
fn a_thousand_idle_connections_while_another_works() {
    // Both ends are in this process, and the server has a socket and an event for each.
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
    let server = Server::bind("127.0.0.1:0".parse().unwrap(), Limits::default()).unwrap();
    let lun = Arc::new(MemoryLun::new("disk", 64, false));
    server.add_export("disk", lun, "").unwrap();
    let resident = || {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        let pages: u64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
        pages * 4096
    };
    let before = resident();
    let mut idle: Vec<TcpStream> = Vec::new();
    for i in 0..1000 {
        let mut peer = Peer::simple(server.address(), "disk");
        // A third of them has worked before.
        if i % 3 == 0 {
            peer.write(0, &[1; 65536]);
        }
        idle.push(peer.socket);
    }
    works(&server);
    assert!(server.connections().len() >= 1000);
    std::thread::sleep(Duration::from_millis(1300));
    let each = resident().saturating_sub(before) / 1000;
    println!("{each} bytes resident for an idle connection");
    assert!(each < 65536, "{each} bytes for an idle connection");
    works(&server);
    assert_eq!(server.stop(Duration::from_secs(20)).cut, 0);
}
