//! The host-based splitter: production is a file or a block device of this host, which stays where it is and is whole whenever Playhead
//! is taken away. It is served back to the host (over NBD, or iSCSI) with its changes split.
//!
//! - Reads go to production.
//! - Zeros are written by `fallocate`, which the kernel promises to read as zeros on files and on block devices alike; BLKDISCARD does
//!   not promise that, so it is never used. Where neither is to be had, zeros are written.
//! - COMPARE AND WRITE and ORWRITE read and write with the blocks taken, so nothing comes between.
//! - A flush is one sync of production and one of the journal, for all who have asked meanwhile. A failed sync of production is remembered:
//!   the kernel tells of it once, and the next sync must not make good what it lost.
//!
//! Production is held by `flock`, a block device also by O_EXCL, which keeps it from being mounted or attached twice.

mod device;
mod stamp;

use std::{
    path::Path,
    sync::{
        atomic::{AtomicBool, Ordering},
        Arc,
    },
    thread::JoinHandle,
};

use parking_lot::{Condvar, Mutex};
use playhead_journal::{files::Files, Lsn, Volume};

use super::{Captured, OnJournalFailure, Production, Split, SplitOptions, Taken, Wanted};
use crate::lun::{Change, Compared, Extent, FlushDone, Lun, LunError, LunIdentity};

pub use device::HostDevice;

/// A file or block device of this host, as a disk.
pub struct HostLun {
    identity: LunIdentity,
    physical_block_bytes: u32,
    locked: AtomicBool,
    device: Arc<HostDevice>,
    split: Arc<Split>,
    flushes: Arc<Flushes>,
    flusher: Mutex<Option<JoinHandle<()>>>,
}

/// Flushes that hosts wait for.
#[derive(Default)]
struct Flushes {
    queue: Mutex<(Vec<FlushDone>, bool)>,
    asked: Condvar,
}

impl HostLun {
    /// Splits what is done to `device` into `volume`, its replica, of the same size.
    ///
    /// Errors: those of [`Split::open`].
    pub fn open(
        files: &dyn Files,
        device: HostDevice,
        volume: Volume,
        identity: LunIdentity,
        physical_block_bytes: u32,
        (map_path, on_journal_failure): (&Path, OnJournalFailure),
    ) -> Result<HostLun, LunError> {
        let device = Arc::new(device);
        let options = SplitOptions {
            name: identity.name.clone(),
            map_path: map_path.to_path_buf(),
            on_journal_failure,
        };
        let production = Arc::clone(&device) as Arc<dyn Production>;
        let split = Arc::new(Split::open(files, volume, production, options)?);
        let flushes = Arc::new(Flushes::default());
        let flusher = {
            let (flushes, device, split) = (Arc::clone(&flushes), Arc::clone(&device), Arc::clone(&split));
            std::thread::Builder::new()
                .name(format!("sync {}", identity.name).chars().take(15).collect())
                .spawn(move || flushes.run(&device, &split))
                .map_err(|e| LunError::Io {
                    name: identity.name.clone(),
                    detail: format!("starting a thread: {e}"),
                })?
        };
        let flusher = Mutex::new(Some(flusher));
        let locked = AtomicBool::new(false);
        Ok(HostLun { identity, physical_block_bytes, locked, device, split, flushes, flusher })
    }

    /// What stands between production and journal.
    pub fn split(&self) -> &Split {
        &self.split
    }

    /// Lets everybody only read from now on, or write again.
    pub fn set_read_only(&self, read_only: bool) {
        self.locked.store(read_only, Ordering::Release);
    }

    /// Ends it in order: production and journal are durable, and the file is free. Whoever still has the disk finds it gone.
    pub fn close(&self) -> Result<(), LunError> {
        self.stop_flusher();
        let closed = self.split.close();
        self.device.release();
        closed
    }

    fn stop_flusher(&self) {
        self.flushes.queue.lock().1 = true;
        self.flushes.asked.notify_all();
        if let Some(thread) = self.flusher.lock().take() {
            if thread.join().is_err() {
                log::error!("{}: the thread of its flushes had panicked", self.identity.name);
            }
        }
    }

    fn check_writable(&self) -> Result<(), LunError> {
        if self.read_only() {
            return Err(LunError::ReadOnly { name: self.identity.name.clone() });
        }
        Ok(())
    }

    /// Changes production, then the journal.
    fn change(&self, taken: Taken, changes: &[Change<'_>]) -> Result<Lsn, LunError> {
        for change in changes {
            if let Err(e) = self.device.apply(change) {
                self.split.unknown(taken);
                return Err(e);
            }
        }
        match self.split.capture(taken, changes)? {
            Captured::Recorded(lsn) => Ok(lsn),
            Captured::Tracked => Ok(self.split.volume().head_lsn()),
        }
    }
}

impl Drop for HostLun {
    fn drop(&mut self) {
        self.stop_flusher();
    }
}

impl Flushes {
    fn run(&self, device: &HostDevice, split: &Split) {
        loop {
            let waiting = {
                let mut queue = self.queue.lock();
                while queue.0.is_empty() && !queue.1 {
                    self.asked.wait(&mut queue);
                }
                std::mem::take(&mut queue.0)
            };
            if waiting.is_empty() {
                return;
            }
            match device.flush() {
                Err(e) => waiting.into_iter().for_each(|done| done(Err(e.clone()))),
                Ok(()) => split.flush_then(Box::new(move |outcome| {
                    waiting.into_iter().for_each(|done| done(outcome.clone()));
                })),
            }
        }
    }
}

impl Lun for HostLun {
    fn identity(&self) -> &LunIdentity {
        &self.identity
    }

    fn block_count(&self) -> u64 {
        self.device.block_count()
    }

    fn physical_block_bytes(&self) -> u32 {
        self.physical_block_bytes
    }

    fn read_only(&self) -> bool {
        self.locked.load(Ordering::Acquire)
    }

    fn read(&self, lba: u64, buf: &mut [u8]) -> Result<(), LunError> {
        self.device.read(lba, buf)
    }

    fn submit(&self, changes: &[Change<'_>]) -> Result<Lsn, LunError> {
        self.check_writable()?;
        let taken = self.split.begin(Wanted::by(changes))?;
        self.change(taken, changes)
    }

    fn compare_and_write(&self, lba: u64, compare: &[u8], write: &[u8]) -> Result<Compared, LunError> {
        self.check_writable()?;
        let change = [Change::Write { lba, data: write }];
        let taken = self.split.begin(Wanted::by(&change))?;
        let mut present = vec![0; compare.len()];
        if let Err(e) = self.device.read(lba, &mut present) {
            self.split.unchanged(taken);
            return Err(e);
        }
        if let Some(offset_bytes) = present.iter().zip(compare).position(|(a, b)| a != b) {
            self.split.unchanged(taken);
            return Ok(Compared::Differs { offset_bytes });
        }
        self.change(taken, &change).map(|_| Compared::Written)
    }

    fn or_write(&self, lba: u64, data: &[u8]) -> Result<(), LunError> {
        self.check_writable()?;
        let taken = self.split.begin(Wanted::by(&[Change::Write { lba, data }]))?;
        let mut ored = vec![0; data.len()];
        if let Err(e) = self.device.read(lba, &mut ored) {
            self.split.unchanged(taken);
            return Err(e);
        }
        ored.iter_mut().zip(data).for_each(|(a, b)| *a |= b);
        self.change(taken, &[Change::Write { lba, data: &ored }]).map(|_| ())
    }

    fn flush(&self, done: FlushDone) {
        let mut queue = self.flushes.queue.lock();
        if queue.1 {
            drop(queue);
            return done(Err(LunError::Gone { name: self.identity.name.clone() }));
        }
        queue.0.push(done);
        self.flushes.asked.notify_one();
    }

    fn extents(&self, lba: u64, count: u64, limit: usize) -> Result<Vec<Extent>, LunError> {
        self.device.extents(lba, count, limit)
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}
