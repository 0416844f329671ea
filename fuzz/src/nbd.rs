//! NBD: every message of both directions, and a conversation with a server.
//!
//! Input: one byte of mode. If its lowest bit is set, the rest is what a client sends to a server after the greeting; otherwise it is
//! read as each of the messages.

use crate::ramdisk::RamDisk;
use playhead_target::nbd::{Limits, Server};
use playhead_wire::nbd::answer::ChunkPayload;
use playhead_wire::nbd::reply::{ReplyHeader, REPLY_HEADER_BYTES};
use playhead_wire::nbd::{
    self, Answer, ClientFlags, ExportRequest, MetaContextRequest, OptionHeader, OptionKind, Reply, Request,
};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Exports there are, and whether they are read-only.
const EXPORTS: [(&str, bool); 2] = [("fuzz", false), ("locked", true)];

/// Reads `data` as messages, or sends it.
pub fn run(data: &[u8]) {
    match data.split_first() {
        None => {}
        Some((&mode, rest)) if mode & 1 != 0 => converse(rest),
        Some((_, rest)) => parse(rest),
    }
}

fn parse(data: &[u8]) {
    let _ = nbd::parse_greeting(data);
    if let Some(Ok(flags)) = data.first_chunk().map(|bytes| ClientFlags::parse(*bytes)) {
        assert_eq!(ClientFlags::parse(flags.to_bytes()), Ok(flags));
    }
    if let Some((header, rest)) = data.split_first_chunk() {
        if let Ok(header) = OptionHeader::parse(header) {
            assert_eq!(header.to_bytes(), data[..16]);
            let kind = OptionKind::from_code(header.code);
            assert_eq!(kind.code(), header.code);
            option(rest);
        }
    }
    option(data);
    if let Some(Ok(request)) = data.first_chunk().map(Request::parse) {
        assert_eq!(request.to_bytes(), data[..nbd::REQUEST_BYTES]);
        let _ = (request.payload_bytes(), request.fua(), request.command.allowed_flags());
    }
    if let Some((Ok(header), rest)) =
        data.split_first_chunk::<REPLY_HEADER_BYTES>().map(|(h, rest)| (ReplyHeader::parse(h), rest))
    {
        let _ = header;
        reply(rest);
    }
    reply(data);
    if let Ok((_, len)) = Answer::parse(data) {
        assert!(len <= data.len());
    }
    for kind in [nbd::answer::CHUNK_NONE, nbd::answer::CHUNK_DATA, nbd::answer::CHUNK_HOLE] {
        let _ = ChunkPayload::parse(kind, data);
    }
    for kind in [nbd::answer::CHUNK_BLOCK_STATUS, nbd::answer::CHUNK_ERROR, nbd::answer::CHUNK_ERROR_OFFSET] {
        let _ = ChunkPayload::parse(kind, data);
    }
}

fn option(data: &[u8]) {
    if let Ok(request) = ExportRequest::parse(data) {
        assert_eq!(request.to_bytes(), data);
    }
    if let Ok(request) = MetaContextRequest::parse(data) {
        assert_eq!(request.to_bytes(), data);
    }
}

fn reply(data: &[u8]) {
    for kind in (0..8).chain((1 << 31)..(1 << 31) + 12) {
        let _ = Reply::parse(kind, data);
    }
}

fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| {
        let server = Server::bind("127.0.0.1:0".parse().unwrap(), Limits::default()).unwrap();
        for (name, read_only) in EXPORTS {
            let disk = RamDisk::new("fuzz", 2048);
            disk.read_only.store(read_only, std::sync::atomic::Ordering::Relaxed);
            server.add_export(name, Arc::new(disk), "for fuzzing").unwrap();
        }
        server
    })
}

fn converse(data: &[u8]) {
    let mut socket = TcpStream::connect(server().address()).unwrap();
    socket.set_nodelay(true).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut other = socket.try_clone().unwrap();
    // Answers are taken while requests are sent, or both sides wait for each other.
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let _ = other.write_all(data);
            let _ = other.shutdown(Shutdown::Write);
        });
        let mut bytes = vec![0; 1 << 16];
        loop {
            match socket.read(&mut bytes) {
                Ok(0) => return,
                Ok(_) => {}
                // The fuzzer's own alarm.
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    let waited = matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
                    assert!(!waited, "the server neither answers nor hangs up");
                    return;
                }
            }
        }
    });
}
