//! The host-based splitter over a real file: it is changed in place, atomically where it must be, and whole when it is let go.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    path::{Path, PathBuf},
    sync::{mpsc, Arc},
    time::{Duration, Instant},
};

use playhead_journal::{files::DiskFiles, Group, NewBase, Options};
use playhead_target::{
    lun::{Change, Compared, Lun, LunError, LunIdentity},
    splitter::{HostDevice, HostLun, OnJournalFailure, State},
};

const BLOCKS: u64 = 8192;

struct Stage {
    dir: PathBuf,
    group: Group,
}

impl Stage {
    fn new(dir: &Path) -> Stage {
        let options = Options { segment_bytes: 1 << 20, background: true };
        let group = Group::create(Arc::new(DiskFiles), &dir.join("g"), "g", &options).unwrap();
        group.add_volume("v", NewBase::Sparse { blocks: BLOCKS }).unwrap();
        let file = std::fs::File::create(dir.join("disk")).unwrap();
        file.set_len(BLOCKS * 512).unwrap();
        Stage { dir: dir.to_path_buf(), group }
    }

    fn path(&self) -> PathBuf {
        self.dir.join("disk")
    }

    fn open(&self) -> Result<HostLun, LunError> {
        let device = HostDevice::open(&self.path(), "g/v")?;
        let identity = LunIdentity { uuid: [1; 16], name: "g/v".into() };
        let volume = self.group.volume("v").unwrap();
        let how = (&*self.dir.join("v.map"), OnJournalFailure::Stop);
        HostLun::open(&DiskFiles, device, volume, identity, 4096, how)
    }

    fn in_step(&self, lun: &HostLun) {
        let begun = Instant::now();
        while lun.split().status().state != State::Synchronised {
            assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", lun.split().status());
            std::thread::sleep(Duration::from_millis(2));
        }
        let mut replica = vec![0; BLOCKS as usize * 512];
        self.group.volume("v").unwrap().read(0, &mut replica).unwrap();
        assert!(replica == std::fs::read(self.path()).unwrap());
    }
}

#[test]
fn every_change_is_in_the_file_and_in_the_replica() {
    let dir = tempfile::tempdir().unwrap();
    let stage = Stage::new(dir.path());
    std::fs::write(stage.path(), vec![9; BLOCKS as usize * 512]).unwrap();
    let lun = stage.open().unwrap();
    lun.submit(&[
        Change::Write { lba: 1, data: &[1; 4096] },
        Change::WriteSame { lba: 20, count: 3000, block: &[2; 512] },
        Change::Zero { lba: 4000, count: 100 },
        Change::Unmap { lba: 6000, count: 1000 },
    ])
    .unwrap();
    assert_eq!(lun.compare_and_write(1, &[1; 512], &[3; 512]).unwrap(), Compared::Written);
    assert_eq!(
        lun.compare_and_write(1, &[1; 512], &[4; 512]).unwrap(),
        Compared::Differs { offset_bytes: 0 }
    );
    lun.or_write(1, &[4; 512]).unwrap();
    let (tell, told) = mpsc::channel();
    lun.flush(Box::new(move |outcome| tell.send(outcome).unwrap()));
    told.recv().unwrap().unwrap();
    let mut block = [0; 512];
    lun.read(1, &mut block).unwrap();
    assert_eq!(block, [7; 512]);
    stage.in_step(&lun);
    let beyond = [Change::Zero { lba: BLOCKS, count: 1 }];
    assert!(matches!(lun.submit(&beyond), Err(LunError::OutOfRange { .. })));
    lun.set_read_only(true);
    assert!(matches!(lun.submit(&[]), Err(LunError::ReadOnly { .. })));
    let all = lun.extents(0, BLOCKS, 100).unwrap();
    assert_eq!(all.iter().map(|e| e.count).sum::<u64>(), BLOCKS);
}

#[test]
fn comparing_writes_are_atomic() {
    let dir = tempfile::tempdir().unwrap();
    let stage = Stage::new(dir.path());
    let lun = stage.open().unwrap();
    let won: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (1..5_u8)
            .map(|n| {
                let lun = &lun;
                scope.spawn(move || {
                    let won = |seen: u8| {
                        lun.compare_and_write(7, &[seen; 512], &[seen + 1; 512]).unwrap() == Compared::Written
                    };
                    (0..100).filter(|seen| won(*seen)).count() + usize::from(n == 0)
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).sum()
    });
    // Nobody's increment was lost, and nobody's was counted twice.
    let mut block = [0; 512];
    lun.read(7, &mut block).unwrap();
    assert_eq!(usize::from(block[0]), won);
    stage.in_step(&lun);
}

#[test]
fn a_file_is_attached_once_and_free_afterwards_and_what_changed_it_meanwhile_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let stage = Stage::new(dir.path());
    let lun = stage.open().unwrap();
    let Err(LunError::Io { detail, .. }) = stage.open() else { panic!("attached twice") };
    assert!(detail.contains("in use"), "{detail}");
    lun.submit(&[Change::Write { lba: 0, data: &[1; 512] }]).unwrap();
    stage.in_step(&lun);
    lun.close().unwrap();
    assert!(matches!(lun.submit(&[Change::Zero { lba: 0, count: 1 }]), Err(LunError::Gone { .. })));
    drop(lun);
    // Left alone, nothing has to be compared.
    let lun = stage.open().unwrap();
    assert_eq!(lun.split().status().state, State::Synchronised);
    lun.close().unwrap();
    drop(lun);
    std::thread::sleep(Duration::from_millis(20));
    let mut bytes = std::fs::read(stage.path()).unwrap();
    bytes[5 << 19] = 1;
    std::fs::write(stage.path(), bytes).unwrap();
    let lun = stage.open().unwrap();
    assert_eq!(lun.split().status().state, State::Resynchronising);
    stage.in_step(&lun);
    lun.close().unwrap();
    drop(lun);
    std::fs::remove_file(stage.path()).unwrap();
    assert!(matches!(stage.open(), Err(LunError::Io { .. })));
}
