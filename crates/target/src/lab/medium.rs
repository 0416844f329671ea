//! What production is, and what it does by itself when it is asked: the half of an offload that a splitter does not see.

use std::any::Any;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::lun::{Change, Compared, LunError, BLOCK_BYTES};
use crate::splitter::{HostDevice, Production};

/// Blocks filled at once.
const STEP_BLOCKS: u64 = (1 << 20) / BLOCK_BYTES as u64;

/// Production, with its offloads. Nothing here is atomic by itself: whoever calls sees to it that changes come one after another.
pub(super) trait Medium: Production {
    /// Executes a change. After an error any part of it may have been done.
    fn carry_out(&self, change: &Change<'_>) -> Result<(), LunError>;

    /// Compares, and if equal writes.
    fn compare_and_write(&self, lba: u64, compare: &[u8], write: &[u8]) -> Result<Compared, LunError> {
        let mut present = vec![0; compare.len()];
        self.read(lba, &mut present)?;
        if let Some(offset_bytes) = present.iter().zip(compare).position(|(a, b)| a != b) {
            return Ok(Compared::Differs { offset_bytes });
        }
        self.carry_out(&Change::Write { lba, data: write })?;
        Ok(Compared::Written)
    }

    /// Copies `count` blocks from another medium without their passing through here. `false`: it cannot, and nothing was done.
    fn copy(&self, _from: &dyn Medium, _source_lba: u64, _lba: u64, _count: u64) -> Result<bool, LunError> {
        Ok(false)
    }

    /// For a medium to find its own kind.
    fn as_any(&self) -> &dyn Any;
}

fn create_file(path: &Path, block_count: u64) -> Result<File, String> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)
        .and_then(|file| file.set_len(block_count * BLOCK_BYTES as u64).map(|()| file))
        .map_err(|e| format!("{} cannot be made: {e}", path.display()))
}

/// A file as an array's medium; whatever the array does, it does by reading and writing it.
pub(super) struct FileMedium {
    file: File,
    path: PathBuf,
    block_count: u64,
}

impl FileMedium {
    /// A new file of zeros.
    pub(super) fn create(path: &Path, block_count: u64) -> Result<Self, String> {
        Ok(Self { file: create_file(path, block_count)?, path: path.to_path_buf(), block_count })
    }

    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn io(&self, error: &std::io::Error) -> LunError {
        LunError::Io { name: self.name(), detail: error.to_string() }
    }

    fn check(&self, lba: u64, count: u64) -> Result<(), LunError> {
        if lba.checked_add(count).is_none_or(|end| end > self.block_count) {
            return Err(LunError::OutOfRange { name: self.name(), lba, count });
        }
        Ok(())
    }

    fn put(&self, lba: u64, data: &[u8]) -> Result<(), LunError> {
        self.check(lba, (data.len() / BLOCK_BYTES) as u64)?;
        self.file.write_all_at(data, lba * BLOCK_BYTES as u64).map_err(|e| self.io(&e))
    }

    /// Writes one block again and again.
    fn fill(&self, lba: u64, count: u64, block: &[u8]) -> Result<(), LunError> {
        self.check(lba, count)?;
        let pattern = block.repeat(STEP_BLOCKS.min(count) as usize);
        let mut done = 0;
        while done < count {
            let n = STEP_BLOCKS.min(count - done);
            self.put(lba + done, &pattern[..n as usize * BLOCK_BYTES])?;
            done += n;
        }
        Ok(())
    }
}

impl Production for FileMedium {
    fn block_count(&self) -> u64 {
        self.block_count
    }

    fn read(&self, lba: u64, buf: &mut [u8]) -> Result<(), LunError> {
        self.check(lba, (buf.len() / BLOCK_BYTES) as u64)?;
        self.file.read_exact_at(buf, lba * BLOCK_BYTES as u64).map_err(|e| self.io(&e))
    }

    fn flush(&self) -> Result<(), LunError> {
        self.file.sync_data().map_err(|e| self.io(&e))
    }
}

impl Medium for FileMedium {
    fn carry_out(&self, change: &Change<'_>) -> Result<(), LunError> {
        match *change {
            Change::Write { lba, data } => self.put(lba, data),
            Change::WriteSame { lba, count, block } => self.fill(lba, count, block),
            Change::Zero { lba, count } | Change::Unmap { lba, count } => {
                self.fill(lba, count, &[0; BLOCK_BYTES])
            }
        }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// A file of this host, as the product's host-based splitter has it; the file system below carries offloads out: zeros by `fallocate`, copies
/// by `copy_file_range`.
pub(super) struct HostMedium {
    device: HostDevice,
    /// For `copy_file_range`.
    file: File,
    name: String,
}

impl HostMedium {
    /// A new file of zeros.
    pub(super) fn create(path: &Path, name: &str, block_count: u64) -> Result<Self, String> {
        let file = create_file(path, block_count)?;
        let device = HostDevice::open(path, name).map_err(|e| e.to_string())?;
        Ok(Self { device, file, name: name.to_owned() })
    }
}

impl Production for HostMedium {
    fn block_count(&self) -> u64 {
        self.device.block_count()
    }

    fn read(&self, lba: u64, buf: &mut [u8]) -> Result<(), LunError> {
        self.device.read(lba, buf)
    }

    fn flush(&self) -> Result<(), LunError> {
        self.device.flush()
    }
}

impl Medium for HostMedium {
    fn carry_out(&self, change: &Change<'_>) -> Result<(), LunError> {
        self.device.apply(change)
    }

    fn copy(&self, from: &dyn Medium, source_lba: u64, lba: u64, count: u64) -> Result<bool, LunError> {
        let Some(from) = from.as_any().downcast_ref::<HostMedium>() else { return Ok(false) };
        let block = BLOCK_BYTES as u64;
        let (mut at, mut to) = (source_lba * block, lba * block);
        let end = at + count * block;
        while at < end {
            let left = (end - at) as usize;
            match rustix::fs::copy_file_range(&from.file, Some(&mut at), &self.file, Some(&mut to), left) {
                Ok(0) => return Ok(false),
                Ok(_) => {}
                // What a file system, or an overlap, does not allow: the blocks pass through the host then.
                Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::XDEV | Errno::NOSYS) => return Ok(false),
                Err(e) => return Err(LunError::Io { name: self.name.clone(), detail: e.to_string() }),
            }
        }
        Ok(true)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
