//! The one seam between the journal and the medium: everything the journal does to files goes through [`Files`] and [`File`].
//!
//! The real medium is [`DiskFiles`]. The crash tests put a simulated one here, which loses, tears and reorders whatever was not
//! synced when the power fails; so nothing in this crate may touch a file in any other way.

use std::{
    fs, io,
    io::{IoSlice, IoSliceMut},
    os::unix::fs::{FileExt, FileTypeExt},
    path::Path,
    sync::Arc,
};

use crate::mapped;

/// How to open a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Open {
    /// Existing, for reading.
    Read,
    /// Existing, for reading and writing.
    Write,
    /// New and empty, or emptied, for reading and writing.
    Create,
}

/// Bytes of a file, mapped or read.
pub type Bytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// Directories and names.
pub trait Files: Send + Sync {
    /// Opens a file (or, where the medium has them, a block device).
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn File>>;
    /// Renames within a directory, replacing. Durable only after [`Files::sync_dir`].
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file. Durable only after [`Files::sync_dir`].
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Removes a directory with all that is in it. Durable only after [`Files::sync_dir`] of the one it is in.
    fn remove_dir(&self, dir: &Path) -> io::Result<()>;
    /// The names of the files in a directory, in no order.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Makes a directory and its parents; no error if it is there.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;
    /// Makes the directory's names durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Bytes that are free where a directory lies, and that there are in all.
    fn space(&self, dir: &Path) -> io::Result<(u64, u64)>;
    /// Nanoseconds since the Unix epoch. Here, so that a simulated run is a function of its seed.
    fn now_ns(&self) -> u64;
}

/// An open file. Offsets and lengths are in bytes.
pub trait File: Send + Sync {
    /// Fills `buf` from `offset`; an error of kind `UnexpectedEof` if the file ends before.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
    /// Fills `first` from `offset`, and `second` from what follows.
    fn read_two_at(&self, first: &mut [u8], second: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_at(first, offset)?;
        self.read_at(second, offset + first.len() as u64)
    }
    /// Writes all of `bufs`, one after another, at `offset`. After an error any part may have been written.
    fn write_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<()>;
    /// Makes everything written to this file before the call durable (data, and the size needed to read it).
    fn sync(&self) -> io::Result<()>;
    /// Asks for writeback of a range to start; no promise.
    fn start_writeback(&self, _offset: u64, _len: u64) {}
    /// Size in bytes; of a block device its capacity.
    fn size(&self) -> io::Result<u64>;
    /// Sets the size; new bytes read as zeros and take no space.
    fn set_size(&self, size: u64) -> io::Result<()>;
    /// Reserves space for a range, so that writing it cannot run out of space; extends the size over it.
    fn allocate(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Makes a range read as zeros and, where it can, take no space. Within the file's size.
    fn punch(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Whether `offset` lies in data, and the offset at which that ends. Beyond the end: `(false, u64::MAX)`.
    fn data_at(&self, offset: u64) -> io::Result<(bool, u64)>;
    /// The whole file for reading; it must not change any more.
    fn map(&self) -> io::Result<Bytes>;
    /// Takes the exclusive lock of this file; `false` if somebody else has it. Held until the file is dropped.
    fn lock(&self) -> io::Result<bool>;
}

/// The machine's own files.
#[derive(Debug, Default, Clone, Copy)]
pub struct DiskFiles;

impl Files for DiskFiles {
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn File>> {
        let mut options = fs::OpenOptions::new();
        options.read(true);
        match how {
            Open::Read => {}
            Open::Write => {
                options.write(true);
            }
            Open::Create => {
                options.write(true).create(true).truncate(true);
            }
        }
        Ok(Arc::new(DiskFile(options.open(path)?)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        fs::remove_dir_all(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        fs::create_dir_all(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        fs::File::open(dir)?.sync_all()
    }

    fn space(&self, dir: &Path) -> io::Result<(u64, u64)> {
        let found = rustix::fs::statvfs(dir)?;
        Ok((found.f_bavail.saturating_mul(found.f_frsize), found.f_blocks.saturating_mul(found.f_frsize)))
    }

    fn now_ns(&self) -> u64 {
        std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
    }
}

struct DiskFile(fs::File);

/// The kernel takes at most this many buffers a call (`UIO_MAXIOV`).
const MAX_BUFFERS: usize = 1024;

impl File for DiskFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(buf, offset)
    }

    fn read_two_at(&self, first: &mut [u8], second: &mut [u8], offset: u64) -> io::Result<()> {
        let wanted = first.len() + second.len();
        let mut bufs = [IoSliceMut::new(first), IoSliceMut::new(second)];
        match rustix::io::preadv(&self.0, &mut bufs, offset) {
            Ok(n) if n == wanted => Ok(()),
            // Interrupted or short: buffer by buffer.
            _ => {
                self.read_at(first, offset)?;
                self.read_at(second, offset + first.len() as u64)
            }
        }
    }

    fn write_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        let mut offset = offset;
        for chunk in bufs.chunks(MAX_BUFFERS) {
            let total: u64 = chunk.iter().map(|b| b.len() as u64).sum();
            let written = loop {
                match rustix::io::pwritev(&self.0, chunk, offset) {
                    Err(rustix::io::Errno::INTR) => continue,
                    other => break other?,
                }
            };
            if (written as u64) < total {
                // A short write: finish buffer by buffer, where an error says why.
                let mut skip = written;
                let mut at = offset;
                for b in chunk {
                    let done = skip.min(b.len());
                    skip -= done;
                    if done < b.len() {
                        self.0.write_all_at(&b[done..], at + done as u64)?;
                    }
                    at += b.len() as u64;
                }
            }
            offset += total;
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn size(&self) -> io::Result<u64> {
        if self.0.metadata()?.file_type().is_block_device() {
            return Ok(rustix::fs::seek(&self.0, rustix::fs::SeekFrom::End(0))?);
        }
        Ok(self.0.metadata()?.len())
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        self.0.set_len(size)
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        match rustix::fs::fallocate(&self.0, rustix::fs::FallocateFlags::empty(), offset, len) {
            Err(rustix::io::Errno::OPNOTSUPP) => write_zeros(&self.0, offset, len),
            other => Ok(other?),
        }
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        use rustix::fs::FallocateFlags as F;
        use rustix::io::Errno;
        match rustix::fs::fallocate(&self.0, F::PUNCH_HOLE | F::KEEP_SIZE, offset, len) {
            Err(Errno::OPNOTSUPP) => {}
            other => return Ok(other?),
        }
        // A device that cannot give space back may still zero itself.
        match rustix::fs::fallocate(&self.0, F::ZERO_RANGE | F::KEEP_SIZE, offset, len) {
            Err(Errno::OPNOTSUPP) => {}
            other => return Ok(other?),
        }
        let end = offset + len;
        let mut at = offset;
        while at < end {
            let (data, until) = self.data_at(at)?;
            let until = until.clamp(at + 1, end);
            if data {
                write_zeros(&self.0, at, until - at)?;
            }
            at = until;
        }
        Ok(())
    }

    fn data_at(&self, offset: u64) -> io::Result<(bool, u64)> {
        use rustix::{fs::SeekFrom, io::Errno};
        match rustix::fs::seek(&self.0, SeekFrom::Data(offset)) {
            Ok(data) if data > offset => Ok((false, data)),
            Ok(_) => Ok((true, rustix::fs::seek(&self.0, SeekFrom::Hole(offset))?)),
            Err(Errno::NXIO) => Ok((false, u64::MAX)),
            // A block device or a file system that cannot tell: all of it is data.
            Err(_) => Ok((true, u64::MAX)),
        }
    }

    fn map(&self) -> io::Result<Bytes> {
        mapped::map(&self.0)
    }

    fn lock(&self) -> io::Result<bool> {
        match rustix::fs::flock(&self.0, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }
}

fn write_zeros(file: &fs::File, offset: u64, len: u64) -> io::Result<()> {
    let zeros = vec![0_u8; usize::try_from(len.min(1 << 20)).unwrap_or(1 << 20)];
    let end = offset + len;
    let mut at = offset;
    while at < end {
        let n = zeros.len().min(usize::try_from(end - at).unwrap_or(zeros.len()));
        file.write_all_at(&zeros[..n], at)?;
        at += n as u64;
    }
    Ok(())
}
