//! A group with one volume, a disk it is the replica of, and a split between them; all can be closed and opened again.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        atomic::{AtomicBool, Ordering},
        Arc,
    },
    time::{Duration, Instant},
};

use playhead_journal::{
    files::{DiskFiles, File, Files, Open},
    Group, NewBase, Options,
};
use playhead_target::splitter::{OnJournalFailure, Split, SplitOptions, State};

use crate::disk::Disk;

pub(crate) const BLOCKS: u64 = (6 << 20) / 512 + 3;

/// The machine's files, on which no new ones find room while `full` is set.
#[derive(Default)]
pub(crate) struct Crowded {
    pub(crate) full: AtomicBool,
}

impl Files for Crowded {
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn File>> {
        if how == Open::Create && self.full.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        DiskFiles.open(path, how)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        DiskFiles.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        DiskFiles.remove(path)
    }
    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        DiskFiles.remove_dir(dir)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        DiskFiles.list(dir)
    }
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        DiskFiles.create_dir(dir)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        DiskFiles.sync_dir(dir)
    }
    fn space(&self, dir: &Path) -> io::Result<(u64, u64)> {
        DiskFiles.space(dir)
    }
    fn now_ns(&self) -> u64 {
        DiskFiles.now_ns()
    }
}

pub(crate) struct Stage {
    dir: PathBuf,
    pub(crate) files: Arc<Crowded>,
    pub(crate) disk: Arc<Disk>,
    pub(crate) group: Group,
    pub(crate) split: Arc<Split>,
}

fn options() -> Options {
    Options { segment_bytes: 1 << 20, background: true }
}

fn split(dir: &Path, group: &Group, disk: &Arc<Disk>, choice: OnJournalFailure) -> Arc<Split> {
    let options =
        SplitOptions { name: "g/v".into(), map_path: dir.join("v.map"), on_journal_failure: choice };
    let production = Arc::clone(disk);
    Arc::new(Split::open(&DiskFiles, group.volume("v").unwrap(), production, options).unwrap())
}

impl Stage {
    pub(crate) fn new(dir: &Path, disk: Disk, choice: OnJournalFailure) -> Stage {
        let (files, disk) = (Arc::new(Crowded::default()), Arc::new(disk));
        let group =
            Group::create(Arc::clone(&files) as Arc<dyn Files>, &dir.join("g"), "g", &options()).unwrap();
        group.add_volume("v", NewBase::Sparse { blocks: BLOCKS }).unwrap();
        let split = split(dir, &group, &disk, choice);
        Stage { dir: dir.to_path_buf(), files, disk, group, split }
    }

    /// Dies and comes back, to a disk with room. The split must be nobody else's.
    pub(crate) fn crash(self, choice: OnJournalFailure, limbo: impl Send) -> Stage {
        let Stage { dir, files, disk, group, split: old } = self;
        drop(Arc::into_inner(old).unwrap());
        drop(limbo);
        files.full.store(false, Ordering::Relaxed);
        group.close().unwrap();
        drop(group);
        let group = Group::open(Arc::clone(&files) as Arc<dyn Files>, &dir.join("g"), &options()).unwrap();
        let split = split(&dir, &group, &disk, choice);
        Stage { dir, files, disk, group, split }
    }

    /// Ends in order and comes back.
    pub(crate) fn reopen(self, choice: OnJournalFailure) -> Stage {
        let Stage { dir, files, disk, group, split: old } = self;
        old.close().unwrap();
        drop(Arc::into_inner(old).unwrap());
        let split = split(&dir, &group, &disk, choice);
        Stage { dir, files, disk, group, split }
    }

    pub(crate) fn wait_for(&self, state: State) {
        let begun = Instant::now();
        while self.split.status().state != state {
            assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", self.split.status());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// What the head shows.
    pub(crate) fn replica(&self) -> Vec<u8> {
        let mut bytes = vec![0; BLOCKS as usize * 512];
        self.group.volume("v").unwrap().read(0, &mut bytes).unwrap();
        bytes
    }

    pub(crate) fn assert_in_step(&self) {
        self.wait_for(State::Synchronised);
        assert!(self.replica() == self.disk.bytes(), "production and replica differ");
        self.group.check_consistent(self.group.head().lsn).unwrap();
    }
}
