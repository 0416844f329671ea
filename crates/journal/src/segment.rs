//! A segment: one file of the log. Byte `LSN % segment_bytes` of segment `LSN / segment_bytes`.
//!
//! Each begins with a 64-byte header that names the group and the segment's number; records follow and never cross its end. Space is
//! reserved when a segment is made, ahead of need, so that running out of space shows then and never in the middle of a record.

use std::{
    io::{self, IoSlice},
    path::{Path, PathBuf},
    sync::{
        atomic::{AtomicBool, Ordering},
        Arc, OnceLock,
    },
};

use uuid::Uuid;

use crate::{
    error::Context,
    files::{File, Files, Open},
    record::{u32_at, u64_at, FORMAT},
    Error, Lsn, Result,
};

/// Bytes before a segment's first record.
pub(crate) const SEGMENT_HEADER_BYTES: u64 = 64;
const MAGIC: &[u8; 8] = b"PHseg\r\n\x1a";

/// Number of a segment.
pub(crate) type SegmentNumber = u64;

/// One file of the log; opened when first needed.
pub(crate) struct Segment {
    pub(crate) number: SegmentNumber,
    pub(crate) path: PathBuf,
    file: OnceLock<Arc<dyn File>>,
    /// Everything written is also synced, and nothing more will be written.
    pub(crate) settled: AtomicBool,
}

/// The directory of a group's segments.
pub(crate) fn log_dir(dir: &Path) -> PathBuf {
    dir.join("log")
}

/// The file of segment `number`.
pub(crate) fn segment_path(dir: &Path, number: SegmentNumber) -> PathBuf {
    log_dir(dir).join(format!("{number:016x}.seg"))
}

/// The number in a segment file's name.
pub(crate) fn segment_number(name: &str) -> Option<SegmentNumber> {
    SegmentNumber::from_str_radix(name.strip_suffix(".seg").filter(|s| s.len() == 16)?, 16).ok()
}

fn header(id: Uuid, number: SegmentNumber, segment_bytes: u64) -> [u8; SEGMENT_HEADER_BYTES as usize] {
    let mut b = [0_u8; SEGMENT_HEADER_BYTES as usize];
    b[0..8].copy_from_slice(MAGIC);
    b[8..12].copy_from_slice(&FORMAT.to_le_bytes());
    b[16..32].copy_from_slice(id.as_bytes());
    b[32..40].copy_from_slice(&number.to_le_bytes());
    b[40..48].copy_from_slice(&segment_bytes.to_le_bytes());
    let crc = crc32c::crc32c(&b[..60]);
    b[60..64].copy_from_slice(&crc.to_le_bytes());
    b
}

impl Segment {
    /// Makes an empty segment with all its space reserved; durable when it returns.
    pub(crate) fn create(
        files: &dyn Files,
        dir: &Path,
        id: Uuid,
        number: SegmentNumber,
        segment_bytes: u64,
    ) -> Result<Segment> {
        let path = segment_path(dir, number);
        let made = (|| {
            let file = files.open(&path, Open::Create)?;
            file.allocate(0, segment_bytes)?;
            file.write_at(&[IoSlice::new(&header(id, number, segment_bytes))], 0)?;
            file.sync()?;
            files.sync_dir(&log_dir(dir))?;
            Ok(file)
        })();
        let file = made
            .inspect_err(|_| {
                // Half a segment is of no use and may hold the last of the space.
                let _ = files.remove(&path);
            })
            .doing("making journal segment", &path)?;
        Ok(Segment { number, path, file: OnceLock::from(file), settled: AtomicBool::new(false) })
    }

    /// Makes a retired segment the one of `number`, written over from its start. The caller is its only holder.
    pub(crate) fn recycle(
        self,
        files: &dyn Files,
        dir: &Path,
        id: Uuid,
        number: SegmentNumber,
        segment_bytes: u64,
    ) -> Result<Segment> {
        let path = segment_path(dir, number);
        let made = (|| {
            let file = Arc::clone(self.file(files).map_err(io::Error::other)?);
            // No record begins where the first one will: what is left behind it is of another place of the log.
            let empty = [0; crate::record::HEADER_BYTES];
            let header = header(id, number, segment_bytes);
            file.write_at(&[IoSlice::new(&header), IoSlice::new(&empty)], 0)?;
            file.sync()?;
            files.rename(&self.path, &path)?;
            files.sync_dir(&log_dir(dir))?;
            Ok(file)
        })();
        let file = made.doing("recycling journal segment", &self.path)?;
        Ok(Segment { number, path, file: OnceLock::from(file), settled: AtomicBool::new(false) })
    }

    /// Writes zeros behind the header, so that the medium has allocated the space and writing it later is writing over.
    pub(crate) fn write_through(&self, files: &dyn Files, segment_bytes: u64) -> Result<()> {
        let file = self.file(files)?;
        let zeros = vec![0; 1 << 20];
        let mut at = SEGMENT_HEADER_BYTES;
        while at < segment_bytes {
            let n = (segment_bytes - at).min(zeros.len() as u64);
            file.write_at(&[IoSlice::new(&zeros[..n as usize])], at).doing("writing", &self.path)?;
            at += n;
        }
        self.sync(files)
    }

    /// A segment that is there already; nothing is read yet.
    pub(crate) fn existing(dir: &Path, number: SegmentNumber, settled: bool) -> Segment {
        Segment {
            number,
            path: segment_path(dir, number),
            file: OnceLock::new(),
            settled: AtomicBool::new(settled),
        }
    }

    /// Takes a left-over segment out of the row of numbers, so that it can be recycled later; `None` if it cannot be used.
    pub(crate) fn set_aside(files: &dyn Files, path: &Path, segment_bytes: u64) -> Option<Segment> {
        let aside = path.with_extension("spare");
        let usable = files.open(path, Open::Read).and_then(|f| f.size()).is_ok_and(|n| n == segment_bytes);
        if !usable || (aside != path && files.rename(path, &aside).is_err()) {
            return None;
        }
        Some(Segment { number: 0, path: aside, file: OnceLock::new(), settled: AtomicBool::new(true) })
    }

    /// The open file.
    pub(crate) fn file(&self, files: &dyn Files) -> Result<&Arc<dyn File>> {
        if let Some(file) = self.file.get() {
            return Ok(file);
        }
        let file = files.open(&self.path, Open::Write).doing("opening", &self.path)?;
        Ok(self.file.get_or_init(|| file))
    }

    /// Checks the header.
    pub(crate) fn check(&self, files: &dyn Files, id: Uuid, segment_bytes: u64) -> Result<()> {
        let mut b = [0_u8; SEGMENT_HEADER_BYTES as usize];
        self.file(files)?.read_at(&mut b, 0).doing("reading", &self.path)?;
        let damaged = |detail: &str| Error::Damaged { path: self.path.clone(), detail: detail.into() };
        if &b[0..8] != MAGIC || crc32c::crc32c(&b[..60]) != u32_at(&b, 60) {
            return Err(damaged("no valid segment header"));
        }
        if u32_at(&b, 8) > FORMAT {
            return Err(Error::NewerFormat {
                path: self.path.clone(),
                found: u32_at(&b, 8),
                supported: FORMAT,
            });
        }
        if &b[16..32] != id.as_bytes() {
            return Err(damaged("it belongs to another group"));
        }
        if u64_at(&b, 32) != self.number || u64_at(&b, 40) != segment_bytes {
            return Err(damaged("it is not the segment its name says"));
        }
        Ok(())
    }

    /// Whether the file is a segment of ours. `false` if it was never finished being made, so that no record was ever in it: it has no
    /// header, or there is nothing where the first record would be. Anything else is an error, and the file is left alone.
    pub(crate) fn is_begun(&self, files: &dyn Files, id: Uuid, segment_bytes: u64) -> Result<bool> {
        let file = self.file(files)?;
        let size = file.size().doing("sizing", &self.path)?;
        let mut start = [0; SEGMENT_HEADER_BYTES as usize + crate::record::HEADER_BYTES];
        let there = usize::try_from(size).unwrap_or(usize::MAX).min(start.len());
        file.read_at(&mut start[..there], 0).doing("reading", &self.path)?;
        let (header, first) = start.split_at(SEGMENT_HEADER_BYTES as usize);
        let empty = |b: &[u8]| b.iter().all(|b| *b == 0);
        if empty(header) && empty(first) {
            return Ok(false);
        }
        match self.check(files, id, segment_bytes) {
            Ok(()) if size >= segment_bytes => Ok(true),
            Ok(()) => Err(Error::Damaged {
                path: self.path.clone(),
                detail: format!("it is {size} bytes long where {segment_bytes} are due"),
            }),
            Err(Error::Damaged { .. }) if empty(first) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Makes what has been written durable.
    pub(crate) fn sync(&self, files: &dyn Files) -> Result<()> {
        self.file(files)?.sync().doing("syncing", &self.path)
    }

    /// Whether nothing is left to sync, for ever.
    pub(crate) fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Acquire)
    }
}

/// Where `lsn` lies.
pub(crate) fn place(lsn: Lsn, segment_bytes: u64) -> (SegmentNumber, u64) {
    (lsn / segment_bytes, lsn % segment_bytes)
}

/// The first LSN of a segment that can hold a record.
pub(crate) fn first_lsn(number: SegmentNumber, segment_bytes: u64) -> Lsn {
    number * segment_bytes + SEGMENT_HEADER_BYTES
}
