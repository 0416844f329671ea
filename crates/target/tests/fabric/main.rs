//! The fabric-based splitter: a host, the splitter and an array, each in its own session; the array is this crate's own target over memory,
//! with faults where a test wants them. The replica is a real journal.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod array_down;
mod copies;
mod forwarding;
mod recorder;
mod room;
mod row;
mod splitting;
mod tasks;

#[path = "../split/crowded.rs"]
mod crowded;
#[path = "../iscsi/peer.rs"]
#[allow(dead_code)]
mod peer;
#[path = "../iscsi/ramdisk.rs"]
#[allow(dead_code)]
mod ramdisk;

use peer::Peer;
use playhead_initiator::Remote;
use playhead_journal::files::DiskFiles;
use playhead_journal::{Group, NewBase, Options};
use playhead_target::fabric::{Array, FabricLun, Identity, Production};
use playhead_target::iscsi::{Limits, Server};
use playhead_target::lun::LunIdentity;
use ramdisk::RamDisk;
use recorder::Journalled;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

const ARRAY_IQN: &str = "iqn.2026-01.org.example:array";
const IQN: &str = "iqn.2026-01.org.playhead:fabric";
const PLAYHEAD: &str = "iqn.2026-01.org.playhead:initiator";
const BLOCKS: u64 = 8192;
/// The array's number for the LUN; hosts find it as LUN 0.
const NUMBER: u16 = 3;

struct House {
    array: Server,
    disk: Arc<RamDisk>,
    splitter: Server,
    lun: Arc<FabricLun>,
    replica: Arc<Journalled>,
    #[allow(dead_code)]
    group: Group,
    #[allow(dead_code)]
    folder: tempfile::TempDir,
}

impl House {
    fn new() -> House {
        House::with(Identity::Own)
    }

    fn with(shown: Identity) -> House {
        House::of(shown, Limits::default())
    }

    /// `limits` are the array's.
    fn of(shown: Identity, limits: Limits) -> House {
        let array = Server::bind("127.0.0.1:0".parse().unwrap(), limits).unwrap();
        let disk = Arc::new(RamDisk::new("array", BLOCKS));
        array.add_target(ARRAY_IQN).unwrap();
        array.set_lun(ARRAY_IQN, NUMBER, disk.clone()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let options = Options { segment_bytes: 4 << 20, background: true };
        let group = Group::create(Arc::new(DiskFiles), &folder.path().join("g"), "g", &options).unwrap();
        let volume = group.add_volume("v", NewBase::Sparse { blocks: BLOCKS }).unwrap();
        let replica = Arc::new(Journalled::new(volume));
        let lun = Arc::new(lun(array.address(), shown, replica.clone()));
        let splitter = Server::bind("127.0.0.1:0".parse().unwrap(), Limits::default()).unwrap();
        splitter.add_target(IQN).unwrap();
        splitter.set_lun(IQN, 0, lun.clone()).unwrap();
        House { array, disk, splitter, lun, replica, group, folder }
    }

    /// A host that has heard of the power on, which is the array's to tell.
    fn host(&self) -> Peer {
        Peer::session(self.splitter.address(), IQN, &[])
    }

    fn other_host(&self, last: u8) -> Peer {
        let mut peer = Peer::connect(self.splitter.address());
        peer.isid[5] = last;
        assert_eq!(peer.login(&peer::keys(IQN, &[])), 0);
        peer.ready();
        peer
    }

    /// Every block of the array's LUN and of the replica's head, where they differ.
    fn differences(&self) -> Vec<u64> {
        use playhead_target::lun::Lun;
        let (mut here, mut there) = (vec![0; BLOCKS as usize * 512], vec![0; BLOCKS as usize * 512]);
        self.disk.read(0, &mut there).unwrap();
        self.replica.volume().read(0, &mut here).unwrap();
        let differ = here.chunks(512).zip(there.chunks(512)).enumerate().filter(|(_, (a, b))| a != b);
        differ.map(|(lba, _)| lba as u64).collect()
    }
}

fn lun(portal: SocketAddr, shown: Identity, replica: Arc<Journalled>) -> FabricLun {
    let mut remote = Remote::new(PLAYHEAD, [0x80, 0, 0, 0, 0, 9], Some(ARRAY_IQN), vec![portal]);
    remote.timeouts.back_off_max = Duration::from_millis(200);
    let identity = LunIdentity { uuid: [7; 16], name: "g/v".to_owned() };
    let array = Array::new(remote, true);
    let production = Arc::new(Production::new(&array, NUMBER, "g/v", BLOCKS));
    FabricLun::new(identity, shown, array, NUMBER, production, replica)
}

/// Waits until `what` holds.
fn eventually(what: impl Fn() -> bool, why: &str) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !what() {
        assert!(Instant::now() < deadline, "{why}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
