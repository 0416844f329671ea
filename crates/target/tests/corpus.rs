//! What fuzzing has found worth keeping, run again: each file of `fuzz/corpus` through the function it is for.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, unreachable_pub)]

#[path = "../../../fuzz/src/cdb.rs"]
mod cdb;
#[path = "../../../fuzz/src/initiator.rs"]
mod initiator;
#[path = "../../../fuzz/src/login.rs"]
mod login;
#[path = "../../../fuzz/src/nbd.rs"]
mod nbd;
#[path = "../../../fuzz/src/pdu.rs"]
mod pdu;
#[path = "../../../fuzz/src/peer.rs"]
mod peer;
#[allow(dead_code)]
#[path = "iscsi/ramdisk.rs"]
mod ramdisk;
#[path = "../../../fuzz/src/session.rs"]
mod session;

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Once;

/// Panics of any thread: those of a server's threads would otherwise go unnoticed.
static PANICS: AtomicUsize = AtomicUsize::new(0);

fn replay(target: &str, run: fn(&[u8])) {
    static COUNTING: Once = Once::new();
    COUNTING.call_once(|| {
        let print = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICS.fetch_add(1, Ordering::Relaxed);
            print(panic);
        }));
    });
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
    let mut files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 10, "{} is nearly empty", folder.display());
    for file in files {
        let input = std::fs::read(&file).unwrap();
        // Shown only when something fails.
        println!("{}", file.display());
        run(&input);
        run(&input[..input.len() / 2]);
        assert_eq!(PANICS.load(Ordering::Relaxed), 0, "a thread panicked");
    }
}

#[test]
fn commands() {
    replay("cdb", cdb::run);
}

#[test]
fn pdus() {
    replay("pdu", pdu::run);
}

#[test]
fn arrays() {
    replay("initiator", initiator::run);
}

#[test]
fn logins() {
    replay("login", login::run);
}

#[test]
fn sessions() {
    replay("session", session::run);
}

#[test]
fn nbd_messages_and_conversations() {
    replay("nbd", nbd::run);
}
