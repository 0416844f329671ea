//! Every command that changes blocks, through a session, over a real journal: each is in it as what it is, and the image between any
//! two commands is exact.

use crate::device::{cdb_16, is_good};
use crate::peer::{pattern, Peer};
use crate::IQN;
use playhead_journal::files::DiskFiles;
use playhead_journal::reader::dump;
use playhead_journal::{Error, Group, NewBase, Options};
use playhead_target::iscsi::{Limits, Server};
use playhead_target::lun::LunIdentity;
use playhead_target::splitter;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const BLOCK: usize = 512;
/// Size of the volume.
const BLOCKS: u64 = 4096;

/// What a command makes of all blocks.
type Effect = Box<dyn Fn(&mut [u8])>;

/// A command, its data, what it makes of the blocks, and the records it becomes.
struct Act {
    what: &'static str,
    cdb: Vec<u8>,
    data: Vec<u8>,
    effect: Effect,
    records: &'static [&'static str],
}

fn act(
    what: &'static str,
    cdb: &[u8],
    data: &[u8],
    records: &'static [&'static str],
    effect: impl Fn(&mut [u8]) + 'static,
) -> Act {
    Act { what, cdb: cdb.to_vec(), data: data.to_vec(), effect: Box::new(effect), records }
}

fn put(at: usize, data: &[u8]) -> impl Fn(&mut [u8]) {
    let data = data.to_vec();
    move |blocks| blocks[at * BLOCK..at * BLOCK + data.len()].copy_from_slice(&data)
}

fn fill(at: usize, count: usize, byte: u8) -> impl Fn(&mut [u8]) {
    move |blocks| blocks[at * BLOCK..(at + count) * BLOCK].fill(byte)
}

fn acts() -> Vec<Act> {
    let (a, b) = (pattern(16 * BLOCK, 0x21), pattern(8 * BLOCK, 0x84));
    let mut atomic = cdb_16(0x9c, 0, 100, 0);
    atomic[13] = 16;
    let mut compare = cdb_16(0x89, 0, 0, 0);
    compare[13] = 2;
    let mut both = a[..2 * BLOCK].to_vec();
    both.extend_from_slice(&b[..2 * BLOCK]);
    let mut unmap = vec![0, 38, 0, 32, 0, 0, 0, 0];
    for (lba, count) in [(4u64, 2u32), (110, 3)] {
        unmap.extend_from_slice(&lba.to_be_bytes());
        unmap.extend_from_slice(&count.to_be_bytes());
        unmap.extend_from_slice(&[0; 4]);
    }
    let ored = b.clone();
    let overwrite = [0x82, 0, 0, 2, 0x0f, 0x0e];
    let mut sanitize = [0x48, 0x01, 0, 0, 0, 0, 0, 0, 6, 0];
    let overwritten: Vec<u8> = [0x0f, 0x0e].into_iter().cycle().take(BLOCK).collect();
    let acts = vec![
        act("WRITE (16)", &cdb_16(0x8a, 0, 0, 16), &a, &["WRITE"], put(0, &a)),
        act("WRITE AND VERIFY", &cdb_16(0x8e, 2, 20, 8), &b, &["WRITE"], put(20, &b)),
        act("WRITE ATOMIC", &atomic, &a, &["WRITE"], put(100, &a)),
        act("ORWRITE", &cdb_16(0x8b, 0, 8, 8), &b, &["WRITE"], move |blocks| {
            blocks[8 * BLOCK..].iter_mut().zip(&ored).for_each(|(byte, or)| *byte |= or);
        }),
        act("COMPARE AND WRITE", &compare, &both, &["WRITE"], put(0, &b[..2 * BLOCK])),
        act("WRITE SAME", &cdb_16(0x93, 0, 200, 500), &[0x5a; BLOCK], &["WRITE_SAME"], fill(200, 500, 0x5a)),
        act("WRITE SAME of zeros", &cdb_16(0x93, 1, 210, 10), &[], &["ZERO"], fill(210, 10, 0)),
        act("WRITE SAME, UNMAP", &cdb_16(0x93, 8, 230, 10), &[0; BLOCK], &["UNMAP"], fill(230, 10, 0)),
        act("UNMAP", &[0x42, 0, 0, 0, 0, 0, 0, 0, 40, 0], &unmap, &["UNMAP", "UNMAP"], |blocks| {
            fill(4, 2, 0)(blocks);
            fill(110, 3, 0)(blocks);
        }),
        act("FORMAT UNIT", &[0x04, 0, 0, 0, 0, 0], &[], &["UNMAP"], |blocks| blocks.fill(0)),
        act("WRITE (10)", &[0x2a, 0, 0, 0, 0, 7, 0, 0, 8, 0], &b, &["WRITE"], put(7, &b)),
        act("SANITIZE, overwrite", &sanitize, &overwrite, &["UNMAP", "WRITE_SAME", "WRITE_SAME"], {
            move |blocks| blocks.chunks_mut(BLOCK).for_each(|block| block.copy_from_slice(&overwritten))
        }),
    ];
    (sanitize[1], sanitize[8]) = (0x02, 0);
    let erase = act("SANITIZE, block erase", &sanitize, &[], &["UNMAP"], |blocks| blocks.fill(0));
    acts.into_iter().chain([erase]).collect()
}

/// A new group. Other tests start processes: one that is between fork and exec holds the group's lock with us for a moment, and then
/// the group finds itself busy.
pub(crate) fn create(dir: &Path) -> (PathBuf, Group) {
    for attempt in 0..100 {
        let path = dir.join(attempt.to_string());
        match Group::create(Arc::new(DiskFiles), &path, "g", &Options::default()) {
            Ok(group) => return (path, group),
            Err(Error::Busy { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
    panic!("always busy");
}

#[test]
fn every_change_is_in_the_journal_as_what_it_is_and_images_between_them_are_exact() {
    let dir = tempfile::tempdir().unwrap();
    let (path, group) = create(dir.path());
    let volume = group.add_volume("v", NewBase::Sparse { blocks: BLOCKS }).unwrap();
    let identity = LunIdentity { uuid: [7; 16], name: "g/v".into() };
    let server = Server::bind("127.0.0.1:0".parse().unwrap(), Limits::default()).unwrap();
    server.add_target(IQN).unwrap();
    server.set_lun(IQN, 0, splitter::lun(volume, identity)).unwrap();
    let mut peer = Peer::session(server.address(), IQN, &[]);
    let mut blocks = vec![0; BLOCKS as usize * BLOCK];
    let mut moments = vec![(group.head().lsn, blocks.clone(), "nothing")];
    for Act { what, cdb, data, effect, records } in acts() {
        let before = group.head().lsn;
        let ended = peer.command(&cdb, 0, &data);
        assert!(is_good(&ended), "{what}: {ended:?}");
        effect(&mut blocks);
        moments.push((group.head().lsn, blocks.clone(), what));
        let mut found = Vec::new();
        dump(&DiskFiles, &path, before, &mut |record| {
            found.push(record.opcode.to_ascii_uppercase().replace([' ', '-'], "_"));
            true
        })
        .unwrap();
        assert_eq!(found, records, "{what}");
    }
    for (number, (lsn, wanted, what)) in moments.iter().enumerate() {
        let image = group.open_image(&format!("i{number}"), *lsn, false).unwrap();
        let mut seen = vec![0; wanted.len()];
        image.volume("v").unwrap().read(0, &mut seen).unwrap();
        let differs = seen.iter().zip(wanted).position(|(a, b)| a != b);
        assert_eq!(differs, None, "after {what}");
    }
    drop(server);
    group.close().unwrap();
}
