//! The base of a volume: its plain blocks as of the trailing edge, in a raw file or block device (or, beyond 8 TiB, a row of files,
//! since file systems such as ext4 end at 16 TiB a file). Nothing but block data is in it, so that it is usable without Playhead.

use std::{
    io::{self, IoSlice},
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    error::Context,
    files::{File, Files, Open},
    superblock::VolumeInfo,
    Error, Result, BLOCK_BYTES,
};

/// Bytes of one file of a base that needs several.
pub(crate) const PIECE_BYTES: u64 = 8 << 40;

/// An open, locked base. Offsets are in bytes from the volume's start.
pub(crate) struct Base {
    paths: Vec<PathBuf>,
    files: Vec<Arc<dyn File>>,
}

/// The files that a new base of `bytes` bytes will have.
pub(crate) fn paths_for(dir: &Path, number: u32, name: &str, bytes: u64) -> Vec<PathBuf> {
    let dir = base_dir(dir);
    if bytes <= PIECE_BYTES {
        return vec![dir.join(format!("{number}-{name}.raw"))];
    }
    (0..bytes.div_ceil(PIECE_BYTES)).map(|i| dir.join(format!("{number}-{name}.{i:03}.raw"))).collect()
}

/// The directory of a group's own bases.
pub(crate) fn base_dir(dir: &Path) -> PathBuf {
    dir.join("base")
}

fn lock(file: &dyn File, path: &Path) -> Result<()> {
    match file.lock() {
        Ok(true) => Ok(()),
        Ok(false) => Err(Error::Busy { path: path.to_path_buf() }),
        Err(source) => Err(Error::Io { what: "locking", path: path.to_path_buf(), source }),
    }
}

impl Base {
    /// Makes a sparse base of `bytes` bytes; durable when it returns.
    pub(crate) fn create(files: &dyn Files, dir: &Path, paths: Vec<PathBuf>, bytes: u64) -> Result<Base> {
        files.create_dir(&base_dir(dir)).doing("creating", &base_dir(dir))?;
        files.sync_dir(dir).doing("syncing", dir)?;
        let mut opened = Vec::new();
        let mut left = bytes;
        for path in &paths {
            let file = files.open(path, Open::Create).doing("creating", path)?;
            file.set_size(left.min(PIECE_BYTES)).doing("sizing", path)?;
            file.sync().doing("syncing", path)?;
            lock(&*file, path)?;
            left -= left.min(PIECE_BYTES);
            opened.push(file);
        }
        files.sync_dir(&base_dir(dir)).doing("syncing", &base_dir(dir))?;
        Ok(Base { paths, files: opened })
    }

    /// Adopts an existing raw image or block device; returns its size in blocks, too.
    pub(crate) fn adopt(files: &dyn Files, path: &Path) -> Result<(Base, u64)> {
        if !path.is_absolute() {
            return Err(Error::Invalid(format!(
                "{} is a relative path: give the absolute one, which stays true wherever the service is started",
                path.display()
            )));
        }
        let file = files.open(path, Open::Write).doing("opening", path)?;
        let bytes = file.size().doing("sizing", path)?;
        if bytes == 0 || bytes % BLOCK_BYTES as u64 != 0 {
            return Err(Error::Invalid(format!(
                "{} is {bytes} bytes long, which is not a positive multiple of {BLOCK_BYTES}: pad it with truncate -s",
                path.display()
            )));
        }
        lock(&*file, path)?;
        let base = Base { paths: vec![path.to_path_buf()], files: vec![file] };
        Ok((base, bytes / BLOCK_BYTES as u64))
    }

    /// Opens the base of a known volume and checks its size.
    pub(crate) fn open(files: &dyn Files, volume: &VolumeInfo) -> Result<Base> {
        if volume.base.is_empty() {
            return Err(Error::Conflict(format!(
                "volume {} has no base of its own: this is what was written to an image of a copy, and is opened with the copy",
                volume.name
            )));
        }
        let mut left = volume.block_count * BLOCK_BYTES as u64;
        let mut opened = Vec::new();
        let several = volume.base.len() > 1;
        for path in &volume.base {
            let file = match files.open(path, Open::Write) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    return Err(Error::NotFound(format!(
                        "the base of volume {} is missing: bring {} back (its blocks older than the window are only there), then start again",
                        volume.name,
                        path.display()
                    )));
                }
                other => other.doing("opening", path)?,
            };
            let want = if several { left.min(PIECE_BYTES) } else { left };
            let have = file.size().doing("sizing", path)?;
            if have != want {
                return Err(Error::Damaged {
                    path: path.clone(),
                    detail: format!(
                        "the base of volume {} is {have} bytes long where {want} are due: restore its size with truncate -s {want} only if you know why it changed",
                        volume.name
                    ),
                });
            }
            lock(&*file, path)?;
            left -= want;
            opened.push(file);
        }
        Ok(Base { paths: volume.base.clone(), files: opened })
    }

    /// Cuts a range at the ends of the files: file, path, offset in it, range within the caller's buffer.
    fn cut(&self, offset: u64, len: u64) -> impl Iterator<Item = (&Arc<dyn File>, &PathBuf, u64, u64, u64)> {
        let mut at = offset;
        let end = offset + len;
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let (i, within, room) = if self.files.len() > 1 {
                let within = at % PIECE_BYTES;
                ((at / PIECE_BYTES) as usize, within, PIECE_BYTES - within)
            } else {
                (0, at, end - at)
            };
            let n = room.min(end - at);
            let start = at - offset;
            at += n;
            Some((self.files.get(i)?, self.paths.get(i)?, within, start, n))
        })
    }

    pub(crate) fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        for (file, path, at, start, n) in self.cut(offset, buf.len() as u64) {
            file.read_at(&mut buf[start as usize..(start + n) as usize], at).doing("reading", path)?;
        }
        Ok(())
    }

    pub(crate) fn write(&self, offset: u64, buf: &[u8]) -> Result<()> {
        for (file, path, at, start, n) in self.cut(offset, buf.len() as u64) {
            file.write_at(&[IoSlice::new(&buf[start as usize..(start + n) as usize])], at)
                .doing("writing", path)?;
        }
        Ok(())
    }

    pub(crate) fn punch(&self, offset: u64, len: u64) -> Result<()> {
        for (file, path, at, _, n) in self.cut(offset, len) {
            file.punch(at, n).doing("punching a hole in", path)?;
        }
        Ok(())
    }

    /// Whether `offset` lies in data, and how many bytes from there on (at most `len`) are alike.
    pub(crate) fn data_at(&self, offset: u64, len: u64) -> Result<(bool, u64)> {
        match self.cut(offset, len).next() {
            None => Ok((false, len)),
            Some((file, path, at, _, n)) => {
                let (data, end) = file.data_at(at).doing("seeking in", path)?;
                Ok((data, end.saturating_sub(at).clamp(1, n)))
            }
        }
    }

    pub(crate) fn sync(&self) -> Result<()> {
        for (file, path) in self.files.iter().zip(&self.paths) {
            file.sync().doing("syncing", path)?;
        }
        Ok(())
    }

    /// Removes the files.
    pub(crate) fn remove(&self, files: &dyn Files, dir: &Path) -> Result<()> {
        for path in &self.paths {
            files.remove(path).doing("removing", path)?;
        }
        files.sync_dir(&base_dir(dir)).doing("syncing", dir)
    }
}
