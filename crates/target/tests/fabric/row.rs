//! Three LUNs of one array behind the splitter, and a host that copies between them.

use crate::peer::{self, pattern, Peer};
use crate::ramdisk::RamDisk;
use crate::{eventually, ARRAY_IQN, IQN, PLAYHEAD};
use playhead_initiator::Remote;
use playhead_journal::files::{DiskFiles, Files};
use playhead_journal::reader::dump;
use playhead_journal::{Group, NewBase, Options};
use playhead_target::fabric::{Array, FabricLun, Identity, Production, Replica};
use playhead_target::iscsi::{Limits, Server};
use playhead_target::lun::{Lun, LunIdentity};
use playhead_target::splitter::{OnJournalFailure, State};
use playhead_wire::iscsi::lun_bytes;
use playhead_wire::scsi::extended_copy::{self, CopyList, Cscd, Designator, ListUse, Segment, SegmentLength};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub(crate) const BLOCKS: u64 = 16_384;
/// Of the second group.
pub(crate) const OTHER_IQN: &str = "iqn.2026-01.org.playhead:other";
pub(crate) const HOST: &str = "iqn.2026-01.org.example:peer";
/// A step of the array's copy, in blocks: what it writes at once.
pub(crate) const STEP: u64 = 2048;
pub(crate) const HALF_FAILED: u16 = 0x0d01;

/// Three LUNs of one array: two followed by volumes of the group g, one by a volume of the group h. Hosts see the former as LUN 0 and 1 of one
/// target, the latter as LUN 0 of another.
pub(crate) struct Row {
    pub(crate) array: Server,
    pub(crate) disks: Vec<Arc<RamDisk>>,
    pub(crate) splitter: Server,
    pub(crate) luns: Vec<Arc<FabricLun>>,
    pub(crate) replicas: Vec<Arc<Replica>>,
    pub(crate) groups: Vec<Group>,
    pub(crate) folder: tempfile::TempDir,
}

impl Row {
    pub(crate) fn new(shown: Identity) -> Row {
        Row::on(Arc::new(DiskFiles), shown)
    }

    /// Its groups are on `files`.
    pub(crate) fn on(files: Arc<dyn Files>, shown: Identity) -> Row {
        let array = Server::bind("127.0.0.1:0".parse().unwrap(), Limits::default()).unwrap();
        array.add_target(ARRAY_IQN).unwrap();
        let splitter = Server::bind("127.0.0.1:0".parse().unwrap(), Limits::default()).unwrap();
        splitter.add_target(IQN).unwrap();
        splitter.add_target(OTHER_IQN).unwrap();
        let mut remote = Remote::new(PLAYHEAD, [0x80, 0, 0, 0, 0, 9], Some(ARRAY_IQN), vec![array.address()]);
        remote.timeouts.back_off_max = Duration::from_millis(200);
        let target = Array::new(remote, true);
        let folder = tempfile::tempdir().unwrap();
        let mut row = Row {
            array,
            disks: Vec::new(),
            splitter,
            luns: Vec::new(),
            replicas: Vec::new(),
            groups: Vec::new(),
            folder,
        };
        for group in ["g", "h"] {
            let options = Options { segment_bytes: 4 << 20, background: true };
            row.groups.push(Group::create(Arc::clone(&files), &row.dir(group), group, &options).unwrap());
        }
        // In the order of the identities that blocks are taken in, and against it.
        for (at, (group, name, uuid, iqn, number)) in
            [(0, "v", 7, IQN, 0), (0, "w", 3, IQN, 1), (1, "x", 5, OTHER_IQN, 0)].into_iter().enumerate()
        {
            let disk = Arc::new(RamDisk::new(["array-0", "array-1", "array-2"][at], BLOCKS));
            let there = 3 + at as u16;
            row.array.set_lun(ARRAY_IQN, there, disk.clone()).unwrap();
            let volume = row.groups[group].add_volume(name, NewBase::Sparse { blocks: BLOCKS }).unwrap();
            let production = Arc::new(Production::new(&target, there, name, BLOCKS));
            let map = row.folder.path().join(format!("{name}.map"));
            let choice = OnJournalFailure::Stop;
            let replica =
                Replica::open(&DiskFiles, volume, Arc::clone(&production), name, map, choice).unwrap();
            let replica = Arc::new(replica);
            let identity = LunIdentity { uuid: [uuid; 16], name: name.to_owned() };
            let lun = FabricLun::new(
                identity,
                shown,
                Arc::clone(&target),
                there,
                production,
                Arc::clone(&replica) as _,
            );
            let lun = Arc::new(lun);
            row.splitter.set_lun(iqn, number, lun.clone()).unwrap();
            row.disks.push(disk);
            row.luns.push(lun);
            row.replicas.push(replica);
        }
        row.synchronised();
        row
    }

    pub(crate) fn dir(&self, group: &str) -> PathBuf {
        self.folder.path().join(group)
    }

    pub(crate) fn host(&self) -> Peer {
        let mut host = Peer::session(self.splitter.address(), IQN, &[]);
        at(&mut host, 1, Peer::ready);
        host
    }

    /// Of the other group's target.
    pub(crate) fn other_host(&self) -> Peer {
        let mut host = Peer::connect(self.splitter.address());
        host.isid[5] = 2;
        assert_eq!(host.login(&peer::keys(OTHER_IQN, &[])), 0);
        host.ready();
        host
    }

    pub(crate) fn synchronised(&self) {
        for replica in &self.replicas {
            eventually(|| replica.status().unwrap().state == State::Synchronised, "it is in step");
        }
    }

    /// Fills the array's LUNs with data of their own, by way of the splitter.
    pub(crate) fn fill(&self) {
        let (mut host, mut other) = (self.host(), self.other_host());
        let fill = |host: &mut Peer, seed| {
            for (at, part) in pattern(4 << 20, seed).chunks(64 << 10).enumerate() {
                assert_eq!(host.write(at as u32 * 128, part).status, 0);
            }
        };
        fill(&mut host, 1);
        at(&mut host, 1, |host| fill(host, 2));
        fill(&mut other, 3);
    }

    /// The volumes whose head is not what the array has.
    pub(crate) fn differ(&self) -> Vec<usize> {
        self.synchronised();
        let volumes = [(0, "v"), (0, "w"), (1, "x")];
        let (mut here, mut there) = (vec![0; BLOCKS as usize * 512], vec![0; BLOCKS as usize * 512]);
        let mut differ = Vec::new();
        for (at, (group, name)) in volumes.into_iter().enumerate() {
            self.disks[at].read(0, &mut there).unwrap();
            self.groups[group].volume(name).unwrap().read(0, &mut here).unwrap();
            if here != there {
                differ.push(at);
            }
        }
        differ
    }

    /// COPY records of a group: destination and blocks.
    pub(crate) fn records(&self, group: &str) -> Vec<(u64, u64)> {
        let mut found = Vec::new();
        dump(&DiskFiles, &self.dir(group), 0, &mut |record| {
            if record.opcode == "COPY" {
                found.push((record.lba, record.count));
            }
            true
        })
        .unwrap();
        found
    }
}

pub(crate) fn at<T>(host: &mut Peer, number: u16, f: impl FnOnce(&mut Peer) -> T) -> T {
    let before = std::mem::replace(&mut host.lun, lun_bytes(number));
    let outcome = f(host);
    host.lun = before;
    outcome
}

/// What a LUN is called, as its host finds it.
pub(crate) fn name(host: &mut Peer, number: u16) -> Designator {
    let page = at(host, number, |host| host.command(&[0x12, 1, 0x83, 2, 0, 0], 512, &[])).data;
    Designator::of_page(&page)[0]
}

/// From, to, source LBA, LBA, blocks.
pub(crate) type Move = (u16, u16, u64, u64, u16);

pub(crate) fn list(names: &[Designator], moves: &[Move]) -> CopyList {
    let cscd = |name: &Designator| Cscd { name: Some(*name), device_type: 0, block_bytes: 512 };
    let segment = |&(source, destination, source_lba, lba, count): &Move| {
        let length = SegmentLength::Blocks(count);
        Segment { source, destination, length, source_lba, lba }
    };
    CopyList {
        list_id: 9,
        list_use: ListUse::Held,
        immediate: false,
        cscds: names.iter().map(cscd).collect(),
        cscds_at: 16,
        segments: moves.iter().map(segment).collect(),
    }
}

pub(crate) fn command(action: u8, list_id: u32, bytes: usize) -> [u8; 16] {
    let mut cdb = [0; 16];
    (cdb[0], cdb[1]) = (0x83, action);
    cdb[6..10].copy_from_slice(&list_id.to_be_bytes());
    cdb[10..14].copy_from_slice(&(bytes as u32).to_be_bytes());
    cdb
}

/// Runs a copy; status and sense code.
pub(crate) fn copy(host: &mut Peer, names: &[Designator], moves: &[Move]) -> (u8, Option<u16>) {
    let mut bytes = Vec::new();
    extended_copy::emit(&list(names, moves), false, &mut bytes);
    let ended = host.command(&command(0, 0, bytes.len()), 0, &bytes);
    (ended.status, ended.sense)
}

pub(crate) const GOOD: (u8, Option<u16>) = (0, None);
