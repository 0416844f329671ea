//! A file or block device of this host: the plain system calls.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt},
    path::Path,
    sync::OnceLock,
    time::{Duration, Instant},
};

use rustix::{
    fs::{FallocateFlags, FlockOperation, OFlags, SeekFrom},
    io::Errno,
};

use super::stamp;
use crate::{
    lun::{Change, Extent, LunError, BLOCK_BYTES},
    splitter::{Production, Stamp},
};

/// Bytes written at once where zeros have to be written, or one block over and over.
const STEP_BYTES: usize = 1 << 20;

/// Production: an open file or block device that nobody else has.
pub struct HostDevice {
    file: File,
    name: String,
    block_count: u64,
    is_file: bool,
    /// Why a sync failed: nobody knows what it lost.
    failed: OnceLock<String>,
}

/// udev looks at a block device whenever somebody has closed it, us included, and holds a lock on it meanwhile.
const UDEV_LIMIT: Duration = Duration::from_secs(10);
const UDEV_LOOK: Duration = Duration::from_millis(20);

/// Locks `file` against everybody, and tries for as long as `patience` if somebody has a lock on it.
fn lock(file: &File, patience: Duration) -> rustix::io::Result<()> {
    let deadline = Instant::now() + patience;
    loop {
        match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => std::thread::sleep(UDEV_LOOK),
            other => return other,
        }
    }
}

impl HostDevice {
    /// Opens `path`, an absolute one, for `name`, the disk it is to be.
    ///
    /// Errors: it is not there, is in use, or has no size that makes a disk; the text says which and what next.
    pub fn open(path: &Path, name: &str) -> Result<HostDevice, LunError> {
        let failed = |detail: String| LunError::Io { name: name.to_owned(), detail };
        let shown = path.display();
        if !path.is_absolute() {
            return Err(failed(format!(
                "{shown} is a relative path: give the absolute one, which stays true wherever the service is started"
            )));
        }
        let kind = std::fs::metadata(path).map_err(|e| failed(format!("{shown}: {e}")))?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(failed(format!("{shown} is neither a file nor a block device")));
        }
        let exclusive = if kind.is_block_device() { OFlags::EXCL.bits() as i32 } else { 0 };
        let file = OpenOptions::new().read(true).write(true).custom_flags(exclusive).open(path);
        let file = file.map_err(|e| match e.raw_os_error() {
            Some(16) => failed(format!("{shown} is in use: unmount it first")),
            _ => failed(format!("{shown}: {e}")),
        })?;
        let patience = if kind.is_block_device() { UDEV_LIMIT } else { Duration::ZERO };
        lock(&file, patience).map_err(|e| match e {
            Errno::WOULDBLOCK => failed(format!("{shown} is in use by another process: stop that one first")),
            e => failed(format!("locking {shown}: {e}")),
        })?;
        let bytes = rustix::fs::seek(&file, SeekFrom::End(0)).map_err(|e| failed(format!("{shown}: {e}")))?;
        let block = BLOCK_BYTES as u64;
        if bytes == 0 || bytes % block != 0 {
            return Err(failed(format!(
                "{shown} is {bytes} bytes long, which is not a positive multiple of {block}: pad it with truncate -s"
            )));
        }
        let is_file = kind.is_file();
        Ok(HostDevice {
            file,
            name: name.to_owned(),
            block_count: bytes / block,
            is_file,
            failed: OnceLock::new(),
        })
    }

    /// Size in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.block_count * BLOCK_BYTES as u64
    }

    /// Lets others have it.
    pub(super) fn release(&self) {
        if let Err(e) = rustix::fs::flock(&self.file, FlockOperation::Unlock) {
            log::warn!("{}: its production stays locked until the service ends: {e}", self.name);
        }
    }

    fn failed(&self, e: impl std::fmt::Display) -> LunError {
        LunError::Io { name: self.name.clone(), detail: format!("production: {e}") }
    }

    fn check(&self, lba: u64, count: u64) -> Result<(), LunError> {
        if lba.checked_add(count).is_none_or(|end| end > self.block_count) {
            return Err(LunError::OutOfRange { name: self.name.clone(), lba, count });
        }
        Ok(())
    }

    /// Executes a change. After an error any part of it may have been done.
    pub(crate) fn apply(&self, change: &Change<'_>) -> Result<(), LunError> {
        let block = BLOCK_BYTES as u64;
        match *change {
            Change::Write { lba, data } => {
                self.check(lba, data.len() as u64 / block)?;
                self.file.write_all_at(data, lba * block).map_err(|e| self.failed(e))
            }
            Change::WriteSame { lba, count, block: pattern } => {
                self.check(lba, count)?;
                self.fill(lba * block, count * block, pattern).map_err(|e| self.failed(e))
            }
            Change::Zero { lba, count } => {
                self.check(lba, count)?;
                self.zero(lba * block, count * block, FallocateFlags::ZERO_RANGE).map_err(|e| self.failed(e))
            }
            Change::Unmap { lba, count } => {
                self.check(lba, count)?;
                self.zero(lba * block, count * block, FallocateFlags::PUNCH_HOLE).map_err(|e| self.failed(e))
            }
        }
    }

    fn zero(&self, offset: u64, bytes: u64, how: FallocateFlags) -> io::Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        match rustix::fs::fallocate(&self.file, how | FallocateFlags::KEEP_SIZE, offset, bytes) {
            Err(Errno::OPNOTSUPP | Errno::INVAL) => self.fill(offset, bytes, &[0; BLOCK_BYTES]),
            other => Ok(other?),
        }
    }

    fn fill(&self, offset: u64, bytes: u64, pattern: &[u8]) -> io::Result<()> {
        let step = pattern
            .repeat(STEP_BYTES.min(usize::try_from(bytes).unwrap_or(STEP_BYTES)) / pattern.len().max(1));
        let mut done = 0;
        while done < bytes && !step.is_empty() {
            let n = (bytes - done).min(step.len() as u64);
            self.file.write_all_at(&step[..n as usize], offset + done)?;
            done += n;
        }
        Ok(())
    }

    /// Whether there is data at a byte, and where that ends.
    fn seek(&self, offset: u64) -> io::Result<(bool, u64)> {
        if !self.is_file {
            return Ok((true, u64::MAX));
        }
        match rustix::fs::seek(&self.file, SeekFrom::Data(offset)) {
            Ok(data) if data > offset => Ok((false, data)),
            Ok(_) => Ok((true, rustix::fs::seek(&self.file, SeekFrom::Hole(offset))?)),
            Err(Errno::NXIO) => Ok((false, u64::MAX)),
            // A file system that cannot tell.
            Err(Errno::INVAL) => Ok((true, u64::MAX)),
            Err(e) => Err(e.into()),
        }
    }

    pub(super) fn extents(&self, lba: u64, count: u64, limit: usize) -> Result<Vec<Extent>, LunError> {
        self.check(lba, count)?;
        let mut found: Vec<Extent> = Vec::new();
        let mut at = lba;
        while at < lba + count {
            let (mapped, n) = self.data_at(at, lba + count - at)?;
            let full = found.len() >= limit.max(1);
            match found.last_mut() {
                Some(last) if last.mapped == mapped => last.count += n,
                _ if full => break,
                _ => found.push(Extent { lba: at, count: n, mapped, zero: !mapped }),
            }
            at += n;
        }
        Ok(found)
    }
}

impl Production for HostDevice {
    fn block_count(&self) -> u64 {
        self.block_count
    }

    fn read(&self, lba: u64, buf: &mut [u8]) -> Result<(), LunError> {
        self.check(lba, (buf.len() / BLOCK_BYTES) as u64)?;
        self.file.read_exact_at(buf, lba * BLOCK_BYTES as u64).map_err(|e| self.failed(e))
    }

    fn flush(&self) -> Result<(), LunError> {
        if let Some(why) = self.failed.get() {
            return Err(self.failed(why));
        }
        self.file.sync_data().map_err(|e| {
            let why = format!(
                "a sync failed ({e}), and nobody knows what it lost: look at the medium, then restart"
            );
            log::error!("{}: production: {why}", self.name);
            self.failed(self.failed.get_or_init(|| why))
        })
    }

    fn data_at(&self, lba: u64, count: u64) -> Result<(bool, u64), LunError> {
        let block = BLOCK_BYTES as u64;
        let (data, end) = self.seek(lba * block).map_err(|e| self.failed(e))?;
        // A block that is partly data is data.
        let bytes = end.saturating_sub(lba * block);
        let blocks = if data { bytes.div_ceil(block) } else { bytes / block };
        Ok(if blocks == 0 { (true, 1) } else { (data, blocks.min(count)) })
    }

    fn stamp(&self) -> Option<Stamp> {
        let found = match self.is_file {
            true => self.file.metadata().map(|found| Some(stamp::of_file(&found))),
            false => stamp::of_device(&self.file, self.size_bytes()),
        };
        found.unwrap_or_else(|e| {
            log::warn!(
                "{}: whether its production changes while it is not protected cannot be told: {e}",
                self.name
            );
            None
        })
    }

    fn is_as_left(&self, left: &Stamp) -> bool {
        self.stamp().is_some_and(|now| now == *left || stamp::device_unchanged(left, &now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_passes_is_waited_for_and_one_that_stays_is_not() {
        let path = tempfile::NamedTempFile::new().unwrap();
        let (udev, ours) = (File::open(path.path()).unwrap(), File::open(path.path()).unwrap());
        rustix::fs::flock(&udev, FlockOperation::LockShared).unwrap();
        assert_eq!(lock(&ours, Duration::from_millis(50)), Err(Errno::WOULDBLOCK));
        let looking = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            drop(udev);
        });
        assert_eq!(lock(&ours, Duration::from_secs(60)), Ok(()));
        looking.join().unwrap();
    }
}
