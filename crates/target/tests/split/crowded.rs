//! The machine's files, on a medium that is full when a test says so.

use std::{
    io,
    path::Path,
    sync::{
        atomic::{AtomicBool, Ordering},
        Arc,
    },
};

use playhead_journal::files::{DiskFiles, File, Files, Open};

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
