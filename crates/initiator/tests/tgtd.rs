//! The initiator against tgtd, as other people's arrays speak. Skipped where tgtd is not installed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Helpers of tests are tests too.

use playhead_initiator::discovery;
use playhead_initiator::{Blocking, Chap, Event, Nexus, Outcome, Remote, Secret, State, Task};
use playhead_wire::iscsi::lun_bytes;
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(20);
const TARGET: &str = "iqn.2026-01.org.example:disk";
const LUN_BYTES: u64 = 16 << 20;

struct Tgtd {
    child: Child,
    folder: tempfile::TempDir,
    port: u16,
}

impl Tgtd {
    /// `None`: there is no tgtd here.
    fn start() -> Option<Tgtd> {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let folder = tempfile::tempdir().unwrap();
        let log = std::fs::File::create(folder.path().join("tgtd.log")).unwrap();
        let child = Command::new("tgtd")
            .args(["-f", "-C", &control(port), "--iscsi", &format!("portal=127.0.0.1:{port}")])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn();
        let child = match child {
            Ok(child) => child,
            Err(error) => {
                eprintln!("[SKIPPED] tgtd: {error}");
                return None;
            }
        };
        let tgtd = Tgtd { child, folder, port };
        let deadline = Instant::now() + LIMIT;
        while TcpStream::connect(tgtd.portal()).is_err() {
            assert!(Instant::now() < deadline, "tgtd does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        let disk = tgtd.folder.path().join("disk");
        std::fs::File::create(&disk).unwrap().set_len(LUN_BYTES).unwrap();
        tgtd.admin(&["new", "target", "--tid", "1", "--targetname", TARGET]);
        let unit = ["--tid", "1", "--lun", "1", "--bstype", "rdwr", "--backing-store"];
        tgtd.admin(&[&["new", "logicalunit"], &unit[..], &[disk.to_str().unwrap()]].concat());
        tgtd.admin(&["bind", "target", "--tid", "1", "--initiator-address", "ALL"]);
        Some(tgtd)
    }

    fn admin(&self, arguments: &[&str]) {
        let [operation, mode, rest @ ..] = arguments else { panic!("{arguments:?}") };
        let done = Command::new("tgtadm")
            .args(["-C", &control(self.port), "--lld", "iscsi", "--op", operation, "--mode", mode])
            .args(rest)
            .output()
            .unwrap();
        assert!(done.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
    }

    fn portal(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    fn remote(&self) -> Remote {
        let mut remote = Remote::new(
            "iqn.2026-01.org.example:host",
            [0x80, 0, 0, 0, 0, 1],
            Some(TARGET),
            vec![self.portal()],
        );
        remote.timeouts.login = Duration::from_secs(5);
        remote
    }
}

impl Drop for Tgtd {
    fn drop(&mut self) {
        // It takes no SIGTERM while it believes in a session.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn control(port: u16) -> String {
    (port % 32767 + 1).to_string()
}

fn write(lba: u32, data: Vec<u8>) -> Task {
    let mut cdb = [0; 16];
    cdb[0] = 0x2a;
    cdb[2..6].copy_from_slice(&lba.to_be_bytes());
    cdb[7..9].copy_from_slice(&((data.len() / 512) as u16).to_be_bytes());
    Task {
        lun: lun_bytes(1),
        cdb,
        attribute: 1,
        write_bytes: data.len() as u32,
        data_out: data,
        ..Task::default()
    }
}

fn read(lba: u32, bytes: u32) -> Task {
    let mut cdb = [0; 16];
    cdb[0] = 0x28;
    cdb[2..6].copy_from_slice(&lba.to_be_bytes());
    cdb[7..9].copy_from_slice(&((bytes / 512) as u16).to_be_bytes());
    Task { lun: lun_bytes(1), cdb, attribute: 1, read_bytes: bytes, ..Task::default() }
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i / 512) as u8 ^ (i as u8) ^ seed).collect()
}

/// Past the unit attention that every new nexus has.
fn ready(array: &mut Blocking) {
    for _ in 0..4 {
        let task = Task { lun: lun_bytes(1), attribute: 1, ..Task::default() };
        if array.run(task, LIMIT).unwrap().status == 0 {
            return;
        }
    }
    panic!("the LUN does not become ready");
}

#[test]
fn data_of_every_length_comes_back_with_and_without_digests() {
    let Some(tgtd) = Tgtd::start() else { return };
    for (header, data) in [(false, false), (true, true), (true, false)] {
        let mut remote = tgtd.remote();
        (remote.header_digest, remote.data_digest) = (header, data);
        let mut array = Blocking::new(remote);
        ready(&mut array);
        // In the command, in unsolicited Data-Out, and asked for.
        for (i, len) in [512usize, 4096, 65_536, 131_072, 1 << 20].into_iter().enumerate() {
            let bytes = pattern(len, i as u8 + u8::from(header));
            assert_eq!(array.run(write(64, bytes.clone()), LIMIT).unwrap().status, 0, "write of {len}");
            let answer = array.run(read(64, len as u32), LIMIT).unwrap();
            assert!(answer.status == 0 && answer.data == bytes, "read of {len}");
        }
    }
}

#[test]
fn what_an_array_has_is_found() {
    let Some(tgtd) = Tgtd::start() else { return };
    let found = discovery::targets(&tgtd.remote(), LIMIT).unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].iqn.as_str(), found[0].portals.as_slice()), (TARGET, &[tgtd.portal()][..]));
    let luns = discovery::luns(&mut Blocking::new(tgtd.remote()), LIMIT).unwrap();
    // LUN 0 is tgtd's controller.
    let disk = luns.iter().find(|lun| lun.device_type == 0).unwrap();
    assert_eq!((disk.number, disk.block_count, disk.block_bytes), (1, LUN_BYTES / 512, 512));
    assert!(!disk.names.is_empty());
}

#[test]
fn chap_is_proved_both_ways_and_wrong_secrets_are_refused() {
    let Some(tgtd) = Tgtd::start() else { return };
    let secret =
        |name: &str, secret: &str| Secret { name: name.to_owned(), secret: secret.as_bytes().to_vec() };
    tgtd.admin(&["new", "account", "--user", "host", "--password", "initiator-secret"]);
    tgtd.admin(&["bind", "account", "--tid", "1", "--user", "host"]);
    tgtd.admin(&["new", "account", "--user", "array", "--password", "target-secret"]);
    tgtd.admin(&["bind", "account", "--tid", "1", "--user", "array", "--outgoing"]);
    let login = |chap: Option<Chap>| {
        let remote = Remote { chap, ..tgtd.remote() };
        Blocking::new(remote).log_in(Duration::from_millis(700))
    };
    let ours = secret("host", "initiator-secret");
    login(Some(Chap { ours: ours.clone(), theirs: None })).unwrap();
    login(Some(Chap { ours: ours.clone(), theirs: Some(secret("array", "target-secret")) })).unwrap();
    assert!(login(None).is_err());
    assert!(login(Some(Chap { ours: secret("host", "another-secret"), theirs: None })).is_err());
    let wrong = login(Some(Chap { ours, theirs: Some(secret("array", "not-its-secret")) })).unwrap_err();
    assert!(wrong.to_string().contains("proves itself with a wrong"), "{wrong}");
}

/// Waits for the next event.
fn event(nexus: &mut Nexus) -> Event {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(event) = nexus.take() {
            return event;
        }
        assert!(Instant::now() < deadline, "nothing happens: {:?}", nexus.status());
        let mut ready = PollFlags::empty();
        let timeout = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
        if let Some((fd, read, write)) = nexus.interest() {
            let mut wanted = PollFlags::empty();
            wanted.set(PollFlags::IN, read);
            wanted.set(PollFlags::OUT, write);
            let mut fds = [PollFd::from_borrowed_fd(fd, wanted)];
            let _ = poll(&mut fds, Some(&timeout));
            ready = fds[0].revents();
        } else {
            std::thread::sleep(Duration::from_millis(5));
        }
        let broken = ready.intersects(PollFlags::ERR | PollFlags::HUP);
        nexus.progress(ready.contains(PollFlags::IN) || broken, ready.contains(PollFlags::OUT) || broken);
    }
}

fn up(nexus: &mut Nexus) -> SocketAddr {
    loop {
        if let Event::Up(portal) = event(nexus) {
            return portal;
        }
    }
}

#[test]
fn a_dead_portal_is_passed_over_and_what_was_in_flight_when_the_array_died_is_lost_not_repeated() {
    let Some(mut tgtd) = Tgtd::start() else { return };
    let dead = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut remote = tgtd.remote();
    remote.portals = vec![dead, tgtd.portal()];
    let mut nexus = Nexus::new(remote);
    nexus.start();
    assert_eq!(up(&mut nexus), tgtd.portal());
    let many: Vec<u64> = (0..64).map(|i| nexus.submit(write(i * 2048, pattern(1 << 20, i as u8)))).collect();
    nexus.send();
    tgtd.child.kill().unwrap();
    tgtd.child.wait().unwrap();
    let mut ended = Vec::new();
    while ended.len() < many.len() {
        if let Event::Done(done) = event(&mut nexus) {
            assert!(matches!(done.outcome, Outcome::Lost(_) | Outcome::NotSent(_) | Outcome::Status { .. }));
            assert_eq!(done.data_out.len(), 1 << 20);
            ended.push(done.tag);
        }
    }
    ended.sort_unstable();
    assert_eq!(ended, many);
    assert_ne!(nexus.state(), State::Up);
    let refused = nexus.submit(read(0, 512));
    while let Event::Done(done) = event(&mut nexus) {
        if done.tag == refused {
            assert!(matches!(done.outcome, Outcome::NotSent(_)));
            break;
        }
    }
}

#[test]
fn task_management_is_answered() {
    let Some(tgtd) = Tgtd::start() else { return };
    let mut nexus = Nexus::new(tgtd.remote());
    nexus.start();
    up(&mut nexus);
    // LOGICAL UNIT RESET.
    let tag = nexus.manage(5, lun_bytes(1), None).unwrap();
    nexus.send();
    loop {
        if let Event::Managed { tag: of, response } = event(&mut nexus) {
            assert_eq!((of, response), (tag, 0));
            break;
        }
    }
    assert_eq!(nexus.manage(1, lun_bytes(1), Some(999)), None);
}
