//! Option haggling as a client sees it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod nbd_memory;
mod nbd_peer;

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use nbd_memory::MemoryLun;
use nbd_peer::{Peer, Said};
use playhead_target::nbd::{Limits, Server, ServerError};
use playhead_wire::nbd::{
    transmission, Command, Info, OptionHeader, OptionKind, ReplyError, BASE_ALLOCATION,
};

const MIB: u64 = 1 << 20;

fn serve(names: &[&str]) -> Server {
    let server = Server::bind("127.0.0.1:0".parse().unwrap(), Limits::default()).unwrap();
    for name in names {
        let lun = Arc::new(MemoryLun::new(name, 4, name.starts_with("ro")));
        server.add_export(name, lun, &format!("{name}, a disk")).unwrap();
    }
    server
}

fn error(said: &[Said]) -> ReplyError {
    match said {
        [Said::Error(error, words)] => {
            assert!(!words.is_empty());
            *error
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn list_names_every_export_with_its_description() {
    let server = serve(&["one", "two"]);
    let mut peer = Peer::greet(server.address());
    let expected = [
        Said::Server("one".into(), "one, a disk".into()),
        Said::Server("two".into(), "two, a disk".into()),
        Said::Ack,
    ];
    assert_eq!(peer.option(OptionKind::List, &[]), expected);
    assert_eq!(error(&peer.option(OptionKind::List, b"x")), ReplyError::Invalid);
}

#[test]
fn exports_come_and_go_while_a_client_looks_on() {
    let server = serve(&["one"]);
    let mut peer = Peer::greet(server.address());
    let lun = Arc::new(MemoryLun::new("two", 4, false));
    server.add_export("two", lun.clone(), "").unwrap();
    assert_eq!(peer.option(OptionKind::List, &[]).len(), 3);
    assert!(matches!(server.add_export("two", lun.clone(), ""), Err(ServerError::NameTaken { .. })));
    server.remove_export("one", Duration::ZERO).unwrap();
    server.remove_export("two", Duration::ZERO).unwrap();
    assert_eq!(peer.option(OptionKind::List, &[]), [Said::Ack]);
    assert!(matches!(server.remove_export("two", Duration::ZERO), Err(ServerError::NoSuchExport { .. })));
    for bad in ["", "a\0b", &"x".repeat(4097)] {
        let added = server.add_export(bad, lun.clone(), "");
        assert!(matches!(added, Err(ServerError::BadName { .. })));
    }
    let longest = "x".repeat(4096);
    server.add_export(&longest, lun, "").unwrap();
    assert_eq!(peer.go(&longest).0, 4 * MIB);
}

#[test]
fn info_tells_what_is_asked_for_and_go_enters() {
    let server = serve(&["one", "two"]);
    let mut peer = Peer::greet(server.address());
    let flags = transmission::HAS_FLAGS
        | transmission::SEND_FLUSH
        | transmission::SEND_FUA
        | transmission::SEND_TRIM
        | transmission::SEND_WRITE_ZEROES
        | transmission::CAN_MULTI_CONN
        | transmission::SEND_CACHE
        | transmission::SEND_FAST_ZERO;
    let plain = [Said::Export(4 * MIB, flags), Said::Ack];
    assert_eq!(peer.choose(OptionKind::Info, "two", &[]), plain);
    let wanted = [Info::NAME, Info::DESCRIPTION, Info::BLOCK_SIZE, 0x7777, Info::EXPORT];
    let full = [
        Said::Export(4 * MIB, flags),
        Said::Name("two".into()),
        Said::Description("two, a disk".into()),
        Said::BlockSize(512, 4096, 32 << 20),
        Said::Ack,
    ];
    assert_eq!(peer.choose(OptionKind::Info, "two", &wanted), full);
    assert_eq!(peer.option(OptionKind::StructuredReply, &[]), [Said::Ack]);
    // DF is there with structured replies only.
    assert_eq!(peer.go("two"), (4 * MIB, flags | transmission::SEND_DF));
}

#[test]
fn a_read_only_export_says_so() {
    let server = serve(&["ro"]);
    let flags = Peer::greet(server.address()).go("ro").1;
    assert_ne!(flags & transmission::READ_ONLY, 0);
    let changing = transmission::SEND_TRIM | transmission::SEND_WRITE_ZEROES | transmission::SEND_FAST_ZERO;
    assert_eq!(flags & changing, 0);
}

#[test]
fn the_empty_name_is_the_only_export_or_nothing() {
    let server = serve(&[]);
    let mut peer = Peer::greet(server.address());
    let refused = peer.choose(OptionKind::Go, "", &[]);
    assert_eq!(refused, [Said::Error(ReplyError::UnknownExport, "nothing is exported".into())]);
    let lun = Arc::new(MemoryLun::new("one", 4, false));
    server.add_export("one", lun.clone(), "").unwrap();
    let said = peer.choose(OptionKind::Info, "", &[Info::NAME]);
    assert_eq!(said[1], Said::Name("one".into()));
    server.add_export("two", lun, "").unwrap();
    let Said::Error(error, words) = &peer.choose(OptionKind::Go, "", &[])[0] else {
        panic!("chosen by no name");
    };
    assert_eq!(*error, ReplyError::UnknownExport);
    assert!(words.contains("2 exports"), "{words}");
    assert_eq!(peer.go("one").0, 4 * MIB);
}

#[test]
fn unknown_exports_and_options_are_refused_with_words() {
    let server = serve(&["one"]);
    let mut peer = Peer::greet(server.address());
    for option in [OptionKind::Info, OptionKind::Go] {
        let refused = peer.choose(option, "three", &[]);
        assert_eq!(error(&refused), ReplyError::UnknownExport);
    }
    for code in [4, 5, 11, 12, 99, u32::MAX] {
        let refused = peer.option(OptionKind::from_code(code), b"data");
        assert_eq!(error(&refused), ReplyError::Unsupported, "option {code}");
    }
    for option in [OptionKind::Info, OptionKind::Go, OptionKind::ListMetaContext] {
        let refused = peer.option(option, &[0, 0, 0, 9, b'x']);
        assert_eq!(error(&refused), ReplyError::Invalid);
    }
    let refused = peer.option(OptionKind::StructuredReply, b"x");
    assert_eq!(error(&refused), ReplyError::Invalid);
}

#[test]
fn abort_is_acknowledged_and_ends_the_connection() {
    let server = serve(&["one"]);
    let mut peer = Peer::greet(server.address());
    assert_eq!(peer.option(OptionKind::Abort, b"bye"), [Said::Ack]);
    assert!(peer.closed());
}

#[test]
fn metadata_contexts_are_listed_and_selected_by_query() {
    let server = serve(&["one", "two"]);
    let mut peer = Peer::greet(server.address());
    let listed = [Said::Context(0, BASE_ALLOCATION.into()), Said::Ack];
    for queries in [&[][..], &["base:"], &["x-y:z", BASE_ALLOCATION]] {
        let said = peer.contexts(OptionKind::ListMetaContext, "one", queries);
        assert_eq!(said, listed, "{queries:?}");
    }
    for queries in [&["base:other"], &["qemu:dirty-bitmap:x"]] {
        let said = peer.contexts(OptionKind::ListMetaContext, "one", queries);
        assert_eq!(said, [Said::Ack], "{queries:?}");
    }
    let set = OptionKind::SetMetaContext;
    let early = peer.contexts(set, "one", &[BASE_ALLOCATION]);
    assert_eq!(error(&early), ReplyError::Invalid);
    peer.option(OptionKind::StructuredReply, &[]);
    // SET takes no wildcard, and a query needs a namespace.
    assert_eq!(peer.contexts(set, "one", &["base:"]), [Said::Ack]);
    assert_eq!(peer.contexts(set, "one", &[]), [Said::Ack]);
    assert_eq!(error(&peer.contexts(set, "one", &["allocation"])), ReplyError::Invalid);
    assert_eq!(error(&peer.contexts(set, "three", &[BASE_ALLOCATION])), ReplyError::UnknownExport);
    assert_eq!(
        peer.contexts(set, "one", &[BASE_ALLOCATION]),
        [Said::Context(1, BASE_ALLOCATION.into()), Said::Ack]
    );
}

#[test]
fn a_context_selected_for_another_export_does_not_count() {
    let server = serve(&["one", "two"]);
    let mut peer = Peer::greet(server.address());
    peer.option(OptionKind::StructuredReply, &[]);
    peer.contexts(OptionKind::SetMetaContext, "one", &[BASE_ALLOCATION]);
    peer.go("two");
    peer.ask(Command::BlockStatus, 0, 0, 4096);
    let mut chunk = [0; 24];
    peer.socket.read_exact(&mut chunk).unwrap();
    assert_eq!(chunk[6..8], [0x80, 1], "an error chunk");
    assert_eq!(chunk[20..24], [0, 0, 0, 22], "EINVAL");
}

#[test]
fn export_name_enters_with_or_without_the_zeros() {
    let server = serve(&["one"]);
    for (no_zeroes, length) in [(true, 10), (false, 134)] {
        let mut peer = Peer::raw(server.address());
        peer.socket.read_exact(&mut [0; 18]).unwrap();
        peer.send(&[0, 0, 0, if no_zeroes { 3 } else { 0 }]);
        let header = OptionHeader { code: 1, data_bytes: 3 };
        peer.send(&header.to_bytes());
        peer.send(b"one");
        let mut answer = vec![0; length];
        peer.socket.read_exact(&mut answer).unwrap();
        assert_eq!(answer[..8], (4 * MIB).to_be_bytes());
        assert!(answer[10..].iter().all(|&byte| byte == 0));
        assert_eq!(peer.read(0, 512), [0; 512]);
    }
    let mut peer = Peer::greet(server.address());
    let header = OptionHeader { code: 1, data_bytes: 5 };
    peer.send(&header.to_bytes());
    peer.send(b"three");
    assert!(peer.closed());
}

#[test]
fn oversized_option_data_is_refused_and_the_haggling_goes_on() {
    let server = serve(&["one"]);
    let mut peer = Peer::greet(server.address());
    let refused = peer.option(OptionKind::List, &vec![7; 1 << 20]);
    assert_eq!(error(&refused), ReplyError::TooBig);
    assert_eq!(peer.go("one").0, 4 * MIB);
}
