//! Copies over real journals: what a clone of any size costs, and that it is exact wherever it comes from.

use crate::captured::create;
use crate::copies::{ask_cdb, at_lun, copy_cdb, cscd, naa_of, send};
use crate::peer::{pattern, Peer};
use crate::IQN;
use playhead_journal::files::DiskFiles;
use playhead_journal::reader::dump;
use playhead_journal::{Group, NewBase};
use playhead_target::iscsi::{Limits, Server};
use playhead_target::lun::{Change, LunIdentity, LunRef};
use playhead_target::splitter;
use playhead_wire::scsi::extended_copy::{self, CopyList, ListUse, Segment, SegmentLength};
use playhead_wire::scsi::rod_token::{self, Populate, Range, WriteUsing, TOKEN_BYTES};
use std::path::PathBuf;

const BLOCK: usize = 512;
/// Blocks of 200 GiB.
const BLOCKS: u64 = 200 << 21;
/// Blocks of the largest segment.
const LARGEST: u64 = (1 << 23) - 1;

/// Two groups: `a` and `b` in one, `c` in the other, as LUNs 0 to 2.
struct House {
    server: Server,
    luns: Vec<LunRef>,
    group: Group,
    path: PathBuf,
    _other: Group,
    _dirs: [tempfile::TempDir; 2],
}

impl House {
    fn new() -> House {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let (path, group) = create(dirs[0].path());
        let (_, other) = create(dirs[1].path());
        let server = Server::bind("127.0.0.1:0".parse().unwrap(), Limits::default()).unwrap();
        server.add_target(IQN).unwrap();
        let mut luns = Vec::new();
        for (number, (group, name)) in [(&group, "a"), (&group, "b"), (&other, "c")].into_iter().enumerate() {
            let volume = group.add_volume(name, NewBase::Sparse { blocks: BLOCKS }).unwrap();
            let uuid = [number as u8 * 16 + 1; 16];
            let lun = splitter::lun(volume, LunIdentity { uuid, name: name.to_owned() });
            server.set_lun(IQN, number as u16, lun.clone()).unwrap();
            luns.push(lun);
        }
        House { server, luns, group, path, _other: other, _dirs: dirs }
    }

    fn write(&self, lun: usize, lba: u64, data: &[u8]) {
        self.luns[lun].submit(&[Change::Write { lba, data }]).unwrap();
    }

    fn read(&self, lun: usize, lba: u64, blocks: usize) -> Vec<u8> {
        let mut bytes = vec![0; blocks * BLOCK];
        self.luns[lun].read(lba, &mut bytes).unwrap();
        bytes
    }

    /// The records that `f` adds to the first group, and their bytes.
    fn recorded(&self, f: impl FnOnce()) -> (Vec<String>, u64) {
        let before = self.group.head().lsn;
        f();
        let mut records = Vec::new();
        dump(&DiskFiles, &self.path, before, &mut |record| {
            records.push(record.opcode.to_ascii_uppercase());
            true
        })
        .unwrap();
        (records, self.group.head().lsn - before)
    }
}

fn clone_list(from: [u8; 16], to: [u8; 16], blocks: u64) -> Vec<u8> {
    let mut segments = Vec::new();
    let mut lba = 0;
    while lba < blocks {
        let count = LARGEST.min(blocks - lba);
        let length =
            SegmentLength::Bytes { count: (count * BLOCK as u64) as u32, source_offset: 0, offset: 0 };
        segments.push(Segment { source: 0, destination: 1, length, source_lba: lba, lba });
        lba += count;
    }
    let list = CopyList {
        list_id: 1,
        list_use: ListUse::Held,
        immediate: false,
        cscds: vec![cscd(from), cscd(to)],
        cscds_at: 0,
        segments,
    };
    let mut bytes = Vec::new();
    extended_copy::emit(&list, false, &mut bytes);
    bytes
}

#[test]
fn a_clone_of_100_gib_within_a_group_is_one_record() {
    let house = House::new();
    let mut peer = Peer::session(house.server.address(), IQN, &[]);
    let naas = [naa_of(&mut peer, 0), naa_of(&mut peer, 1)];
    let blocks = 100u64 << 21;
    let places = [0, 12_345_678, LARGEST - 4, blocks - 8];
    for (at, lba) in places.into_iter().enumerate() {
        house.write(0, lba, &pattern(8 * BLOCK, at as u8));
    }
    let (records, bytes) = house.recorded(|| {
        assert_eq!(send(&mut peer, 0, &clone_list(naas[0], naas[1], blocks)), (0, None));
    });
    assert_eq!(records, ["COPY"]);
    assert!(bytes < 1024, "{bytes} bytes of journal");
    house.write(0, 0, &pattern(8 * BLOCK, 99));
    for (at, lba) in places.into_iter().enumerate() {
        assert_eq!(house.read(1, lba, 8), pattern(8 * BLOCK, at as u8), "LBA {lba}");
    }
    assert_eq!(house.read(1, 1 << 20, 8), [0; 8 * BLOCK]);
}

#[test]
fn a_clone_into_another_group_is_data_and_the_same() {
    let house = House::new();
    let mut peer = Peer::session(house.server.address(), IQN, &[]);
    let naas = [naa_of(&mut peer, 0), naa_of(&mut peer, 2)];
    let data = pattern(6000 * BLOCK, 5);
    house.write(0, 1000, &data);
    house.write(2, 20_000, &pattern(8 * BLOCK, 7));
    assert_eq!(send(&mut peer, 0, &clone_list(naas[0], naas[1], 32_768)), (0, None));
    assert!(house.read(2, 1000, 6000) == data);
    assert_eq!(house.read(2, 20_000, 8), [0; 8 * BLOCK]);
    // What was written afterwards to the source is not in it.
    house.write(0, 1000, &pattern(8 * BLOCK, 9));
    assert!(house.read(2, 1000, 6000) == data);
}

#[test]
fn a_token_within_a_group_is_references_to_its_moment() {
    let house = House::new();
    let mut peer = Peer::session(house.server.address(), IQN, &[]);
    let data = pattern(4096 * BLOCK, 3);
    house.write(0, 0, &data);
    let blocks = 64u32 << 21; // 64 GiB
    let mut list = Vec::new();
    let populate = Populate { immediate: false, inactivity_s: 0, ranges: vec![(0, blocks)] };
    rod_token::emit_populate(&populate, &mut list);
    assert_eq!(peer.command(&copy_cdb(0x10, 1, list.len()), 0, &list).status, 0);
    let token = peer.command(&ask_cdb(7, 1, 1024), 1024, &[]).data[38..].try_into().unwrap();
    let write =
        WriteUsing { immediate: false, delete: false, offset: 0, token, ranges: vec![(4096, blocks)] };
    let mut list = Vec::new();
    rod_token::emit_write_using(&write, &mut list);
    let mut use_it = |lun| {
        at_lun(&mut peer, lun, |peer| {
            peer.ready();
            let ended = peer.command(&copy_cdb(0x11, 2, list.len()), 0, &list);
            assert_eq!((ended.status, ended.sense), (0, None));
        });
    };
    let (records, bytes) = house.recorded(|| use_it(1));
    assert!(records.iter().all(|record| record == "COPY"), "{records:?}");
    assert!(bytes < 64 << 10, "{bytes} bytes of journal for {} records", records.len());
    // Overwritten meanwhile, what it stood for is moved; into another group all of it.
    house.write(0, 8, &pattern(16 * BLOCK, 200));
    use_it(1);
    use_it(2);
    for lun in [1, 2] {
        assert!(house.read(lun, 4096, 4096) == data, "LUN {lun}");
    }
}

/// A token for `ranges` of LUN 0.
fn token(peer: &mut Peer, ranges: &[Range]) -> [u8; TOKEN_BYTES] {
    let mut list = Vec::new();
    let populate = Populate { immediate: false, inactivity_s: 0, ranges: ranges.to_vec() };
    rod_token::emit_populate(&populate, &mut list);
    assert_eq!(peer.command(&copy_cdb(0x10, 1, list.len()), 0, &list).status, 0);
    peer.command(&ask_cdb(7, 1, 1024), 1024, &[]).data[38..].try_into().unwrap()
}

#[test]
fn a_token_of_100_gib_is_written_as_one_record_however_the_ranges_are_cut() {
    const GIB: u32 = 1 << 21;
    let house = House::new();
    let mut peer = Peer::session(house.server.address(), IQN, &[]);
    let data = pattern(4096 * BLOCK, 3);
    house.write(0, u64::from(GIB) - 2048, &data);
    let cut = |at: u64| -> Vec<Range> { (0..100).map(|i| (at + i * u64::from(GIB), GIB)).collect() };
    let token = token(&mut peer, &cut(0));
    let write = WriteUsing { immediate: false, delete: false, offset: 0, token, ranges: cut(4096) };
    let mut list = Vec::new();
    rod_token::emit_write_using(&write, &mut list);
    let use_it = |peer: &mut Peer| {
        at_lun(peer, 1, |peer| {
            peer.ready();
            let ended = peer.command(&copy_cdb(0x11, 2, list.len()), 0, &list);
            assert_eq!((ended.status, ended.sense), (0, None));
        });
    };
    // What others of the group write meanwhile makes no difference.
    house.write(1, 0, &pattern(8 * BLOCK, 1));
    let one = (vec!["COPY".to_owned()], 80);
    assert_eq!(house.recorded(|| use_it(&mut peer)), one);
    assert!(house.read(1, u64::from(GIB) + 2048, 4096) == data);
    // What the source was overwritten with meanwhile costs what it was, and splits the record.
    house.write(0, u64::from(GIB), &pattern(8 * BLOCK, 200));
    let (records, bytes) = house.recorded(|| use_it(&mut peer));
    assert_eq!(records.iter().filter(|record| *record == "COPY").count(), 2, "{records:?}");
    assert!(bytes < 16 << 10, "{bytes} bytes of journal for {records:?}");
    assert!(house.read(1, u64::from(GIB) + 2048, 4096) == data);
    // Told that others may be there, a LUN knows nothing and looks as it goes.
    house.server.contents_changed(IQN).unwrap();
    let (records, _) = house.recorded(|| {
        peer.ready();
        use_it(&mut peer);
    });
    assert!(records.len() > 100, "{} records", records.len());
    assert!(house.read(1, u64::from(GIB) + 2048, 4096) == data);
}
