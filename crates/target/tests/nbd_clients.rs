//! Other people's clients: libnbd's tools, QEMU's, fio, and libnbd from Python. They must be installed; see the error otherwise.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod nbd_memory;
mod nbd_peer;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use nbd_memory::MemoryLun;
use nbd_peer::Dice;
use playhead_target::nbd::{Limits, Server};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

struct House {
    server: Server,
    disk: Arc<MemoryLun>,
    folder: TempDir,
}

/// A server with a `disk` and an `other`, both of 64 MiB.
fn house() -> House {
    let server = Server::bind("127.0.0.1:0".parse().unwrap(), Limits::default()).unwrap();
    let disk = Arc::new(MemoryLun::new("disk", 64, false));
    server.add_export("disk", disk.clone(), "first").unwrap();
    let other = Arc::new(MemoryLun::new("other", 64, false));
    server.add_export("other", other, "second").unwrap();
    House { server, disk, folder: TempDir::new().unwrap() }
}

impl House {
    fn url(&self, export: &str) -> String {
        format!("nbd://{}/{export}", self.server.address())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A sparse file of 64 MiB: data, holes and zeros in pieces of 1 MiB and some odd places.
    fn sparse_file(&self) -> (PathBuf, Vec<u8>) {
        let mut dice = Dice::new();
        let mut bytes = vec![0; 64 << 20];
        for piece in 0..64 {
            let start = piece << 20;
            match dice.below(3) {
                0 => bytes[start..start + (1 << 20)].copy_from_slice(&dice.bytes(1 << 20)),
                1 => bytes[start + 12800..start + 17408].copy_from_slice(&dice.bytes(4608)),
                _ => {}
            }
        }
        let path = self.path("source");
        std::fs::write(&path, &bytes).unwrap();
        run("fallocate", &["--dig-holes", text(&path)]);
        (path, bytes)
    }

    fn disk_is(&self, bytes: &[u8]) {
        assert!(self.disk.bytes(0, bytes.len()) == bytes, "the disk differs");
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Runs a program, half a minute at most, and returns what it printed.
fn run(program: &str, arguments: &[&str]) -> String {
    let Output { status, stdout, stderr } =
        Command::new("timeout").args(["-k", "5", "30", program]).args(arguments).output().unwrap();
    let stdout = String::from_utf8_lossy(&stdout).into_owned();
    let stderr = String::from_utf8_lossy(&stderr);
    assert!(
        status.success(),
        "{program} {arguments:?}: {status}\n{stdout}\n{stderr}\n\
         (wanted: the Debian packages libnbd-bin nbdfuse qemu-utils fio python3-libnbd)"
    );
    stdout
}

#[test]
fn nbdinfo_sees_sizes_abilities_and_both_exports() {
    let house = house();
    let url = house.url("disk");
    assert_eq!(run("nbdinfo", &["--size", &url]).trim(), "67108864");
    let all = run("nbdinfo", &["--list", &house.url("")]);
    for line in [
        "newstyle-fixed",
        "using structured packets",
        "export=\"disk\"",
        "export=\"other\"",
        "description: second",
        "base:allocation",
        "can_multi_conn: true",
        "can_fast_zero: true",
        "block_size_minimum: 512",
    ] {
        assert!(all.contains(line), "{line} is not in\n{all}");
    }
    let map = run("nbdinfo", &["--map", &url]);
    let words: Vec<_> = map.split_whitespace().collect();
    assert_eq!(words, ["0", "67108864", "3", "hole,zero"]);
}

#[test]
fn nbdcopy_copies_in_out_and_across_over_several_connections() {
    let house = house();
    let (source, bytes) = house.sparse_file();
    let url = house.url("disk");
    let many = ["--connections=4", "--requests=32", "--flush"];
    let back = house.path("back");
    run("nbdcopy", &[&many[..], &[text(&source), &url]].concat());
    house.disk_is(&bytes);
    let other = house.url("other");
    run("nbdcopy", &[&many[..], &[&url, &other]].concat());
    run("nbdcopy", &[&many[..], &[&other, text(&back)]].concat());
    assert!(std::fs::read(&back).unwrap() == bytes);
    // One connection, one request at a time, no structured replies to be had by writing to a pipe in order.
    let synchronous = ["--synchronous", &url, text(&back)];
    std::fs::remove_file(&back).unwrap();
    run("nbdcopy", &synchronous);
    assert!(std::fs::read(&back).unwrap() == bytes);
}

#[test]
fn qemu_img_converts_compares_and_maps_a_sparse_image() {
    let house = house();
    let (source, bytes) = house.sparse_file();
    let url = house.url("disk");
    let (raw, cow) = (["-f", "raw"], house.path("image.qcow2"));
    let source = text(&source);
    run("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", source, &url]);
    house.disk_is(&bytes);
    let compare = ["compare", "-f", "raw", "-F", "raw", source, &url];
    assert!(run("qemu-img", &compare).contains("identical"));
    run("qemu-img", &[&["convert"], &raw[..], &["-O", "qcow2", &url, text(&cow)]].concat());
    let compare = ["compare", "-f", "raw", "-F", "qcow2", source, text(&cow)];
    assert!(run("qemu-img", &compare).contains("identical"));
    let map = run("qemu-img", &["map", "--output=json", "-f", "raw", &url]);
    // QEMU knows as much as we do: every MiB without a random byte is a hole, never data.
    for piece in 0..64 {
        if bytes[piece << 20..(piece + 1) << 20].iter().all(|&b| b == 0) {
            let data = format!("\"start\": {}, \"length\": 1048576, ", piece << 20);
            assert!(!map.contains(&format!("{data}\"depth\": 0, \"present\": true, \"zero\": false")));
        }
    }
    assert!(map.contains("\"zero\": true, \"data\": false"), "{map}");
}

#[test]
fn qemu_io_writes_zeroes_discards_and_forces_unit_access() {
    let house = house();
    let script = [
        "write -P 0xaa 0 4M",
        "write -z 1M 256k",
        "write -z -u 2M 256k",
        "discard 3M 256k",
        "write -f -P 0xbb 3584k 64k",
        "aio_write -P 0xcc 5M 1M",
        "aio_write -P 0xdd 6M 1M",
        "aio_flush",
        "flush",
        "read -P 0xaa 0 1M",
        "read -P 0 1M 256k",
        "read -P 0 2M 256k",
        "read -P 0 3M 256k",
        "read -P 0xbb 3584k 64k",
        "read -P 0xcc 5M 1M",
        "read -P 0xdd 6M 1M",
        "write -P 0xee 100 1000",
        "read -P 0xee 100 1000",
        "read -P 0xaa 0 100",
    ];
    let mut arguments = vec!["-f", "raw", "-t", "none"];
    for line in &script {
        arguments.extend(["-c", line]);
    }
    let url = house.url("disk");
    arguments.push(&url);
    let said = run("qemu-io", &arguments);
    assert!(!said.contains("failed"), "{said}");
    assert_eq!(house.disk.bytes(3584 << 10, 65536), [0xbb; 65536]);
    let map = run("nbdinfo", &["--map", &url]);
    let words: Vec<_> = map.split_whitespace().collect();
    let rows: Vec<_> = words.chunks(4).map(|row| (row[0], row[1], row[2])).collect();
    // Zeros stay provisioned, unless they may be unmapped (-u); a discard unmaps.
    for (row, state) in [(MIB, "2"), (2 * MIB, "3"), (3 * MIB, "3")] {
        let start = row.to_string();
        assert!(rows.contains(&(&start, "262144", state)), "{map}");
    }
}

#[test]
fn libnbd_agrees_at_the_edges() {
    let house = house();
    let read_only = Arc::new(MemoryLun::new("other", 64, true));
    let patience = std::time::Duration::from_secs(5);
    house.server.remove_export("other", patience).unwrap();
    house.server.add_export("other", read_only, "second").unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/nbd_edges.py");
    let address = house.server.address();
    let (host, port) = (address.ip().to_string(), address.port().to_string());
    run("/usr/bin/python3", &[script, &host, &port, "disk"]);
}

#[test]
fn fio_verifies_what_it_wrote_over_several_connections() {
    let house = house();
    let uri = format!("--uri={}", house.url("disk"));
    let log = house.path("verify");
    std::fs::create_dir(&log).unwrap();
    let aux = format!("--aux-path={}", text(&log));
    run(
        "fio",
        &[
            "--name=verify",
            "--ioengine=nbd",
            &uri,
            &aux,
            "--rw=randwrite",
            "--bsrange=512-128k",
            "--blockalign=512",
            "--iodepth=32",
            "--numjobs=3",
            "--size=16m",
            "--offset_increment=16m",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--fsync=20",
            "--thread=1",
        ],
    );
}

#[test]
fn nbdfuse_shows_the_disk_as_a_file() {
    if !Path::new("/dev/fuse").exists() {
        return println!("skipped: this machine has no /dev/fuse");
    }
    let house = house();
    let mount = house.path("mount");
    std::fs::create_dir(&mount).unwrap();
    let url = house.url("disk");
    let mut fuse = Command::new("nbdfuse").args([text(&mount), &url]).spawn().unwrap();
    let file = mount.join("nbd");
    for _ in 0..1000 {
        if file.exists() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let bytes = Dice::new().bytes(4 << 20);
    let mut disk = std::fs::OpenOptions::new().write(true).open(&file).unwrap();
    disk.write_all(&bytes).unwrap();
    disk.sync_all().unwrap();
    drop(disk);
    let read = std::fs::read(&file).unwrap();
    run("fusermount3", &["-u", text(&mount)]);
    fuse.wait().unwrap();
    assert_eq!(read.len() as u64, 64 * MIB);
    assert!(read[..4 << 20] == bytes);
    house.disk_is(&bytes);
}
