//! A run: the newest versions that a stretch of the log gave to a timeline's blocks, sorted by volume and block; immutable.
//!
//! A run of level 0 covers one segment, one of level `n` covers 8^n neighbouring segments; so an image is read out of the few largest
//! runs that lie wholly before it. On disk: a 4,096-byte header page, pages of up to 204 entries each with its own CRC (checked when the
//! page is first read), and the first key of every page. A lookup is a binary search over the first keys and one within a page.

use std::{
    io::IoSlice,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use crate::{
    error::Context,
    extents::{Loc, Mapped},
    files::{Bytes, Files, Open},
    index::index_dir,
    lineage::TimelineId,
    maps::Maps,
    record::{u32_at, u64_at, FORMAT},
    segment::SegmentNumber,
    Error, Result,
};

/// Runs merged into one of the next level.
pub(crate) const FAN_OUT: u64 = 8;
/// The highest level: 8^4 segments.
pub(crate) const MAX_LEVEL: u32 = 4;

const PAGE_BYTES: usize = 4096;
const PAGE_HEADER_BYTES: usize = 8;
const ENTRY_BYTES: usize = 20;
const PAGE_ENTRIES: usize = (PAGE_BYTES - PAGE_HEADER_BYTES) / ENTRY_BYTES;
const MAGIC: &[u8; 8] = b"PHrun\r\n\x1a";
const LBA_BITS: u32 = 48;

/// Which run: of `timeline`, over the segments `[index * 8^level, (index + 1) * 8^level)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RunKey {
    pub(crate) level: u32,
    pub(crate) index: u64,
}

impl RunKey {
    /// The run of one segment.
    pub(crate) fn of_segment(number: SegmentNumber) -> RunKey {
        RunKey { level: 0, index: number }
    }

    /// Segments covered: first, and the one after the last.
    pub(crate) fn segments(self) -> (SegmentNumber, SegmentNumber) {
        let span = FAN_OUT.saturating_pow(self.level);
        (self.index * span, (self.index + 1) * span)
    }

    fn path(self, dir: &Path, timeline: TimelineId) -> PathBuf {
        index_dir(dir).join(format!("{:08x}-{}-{:016x}.run", timeline, self.level, self.index))
    }

    /// Timeline and key from a file's name.
    pub(crate) fn parse(name: &str) -> Option<(TimelineId, RunKey)> {
        let mut parts = name.strip_suffix(".run")?.split('-');
        let timeline = TimelineId::from_str_radix(parts.next()?, 16).ok()?;
        let level = parts.next()?.parse().ok().filter(|l| *l <= MAX_LEVEL)?;
        let index = u64::from_str_radix(parts.next()?, 16).ok().filter(|i| *i < 1 << 44)?;
        parts.next().is_none().then_some((timeline, RunKey { level, index }))
    }
}

/// An open run.
pub(crate) struct Run {
    pub(crate) path: PathBuf,
    bytes: Bytes,
    pages: usize,
    seed: u32,
    /// A bit for every page whose CRC has been checked.
    checked: Vec<AtomicU64>,
}

fn key(volume: u32, lba: u64) -> u64 {
    u64::from(volume) << LBA_BITS | lba
}

impl Run {
    /// Writes the run that `maps` makes. Durable once the directory is synced, too.
    pub(crate) fn write(
        files: &dyn Files,
        dir: &Path,
        timeline: TimelineId,
        run: RunKey,
        seed: u32,
        maps: &Maps,
    ) -> Result<Run> {
        let path = run.path(dir, timeline);
        let temporary = path.with_extension("run.new");
        let file = files.open(&temporary, Open::Create).doing("creating", &temporary)?;
        let mut first_keys: Vec<u8> = Vec::new();
        let mut page: Vec<u8> = Vec::with_capacity(PAGE_BYTES);
        let mut out: Vec<u8> = Vec::with_capacity(256 * PAGE_BYTES);
        let mut offset = PAGE_BYTES as u64;
        let mut failed = Ok(());
        let mut entries = 0_u64;
        let mut pages = 0_usize;
        let mut finish = |page: &mut Vec<u8>, last: bool| {
            if !page.is_empty() {
                let count = (page.len() / ENTRY_BYTES) as u32;
                first_keys.extend_from_slice(&page[0..8]);
                let start = out.len();
                out.extend_from_slice(&[0; 4]);
                out.extend_from_slice(&count.to_le_bytes());
                out.append(page);
                out.resize(start + PAGE_BYTES, 0);
                let crc = crc32c::crc32c_append(seed, &out[start + 4..]);
                out[start..start + 4].copy_from_slice(&crc.to_le_bytes());
                pages += 1;
            }
            if (last || out.len() >= 256 * PAGE_BYTES) && !out.is_empty() && failed.is_ok() {
                failed = file.write_at(&[IoSlice::new(&out)], offset);
                offset += out.len() as u64;
                out.clear();
            }
        };
        maps.for_each(&mut |volume, mut m| {
            while m.count > 0 {
                let count = m.count.min(u64::from(u32::MAX));
                page.extend_from_slice(&key(volume, m.lba).to_le_bytes());
                page.extend_from_slice(&(count as u32).to_le_bytes());
                page.extend_from_slice(&m.loc.word().to_le_bytes());
                entries += 1;
                m = Mapped { lba: m.lba + count, count: m.count - count, loc: m.loc.advanced(count) };
                if page.len() == PAGE_ENTRIES * ENTRY_BYTES {
                    finish(&mut page, false);
                }
            }
        });
        finish(&mut page, true);
        failed.doing("writing", &temporary)?;
        let mut header = vec![0_u8; PAGE_BYTES];
        header[0..8].copy_from_slice(MAGIC);
        header[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        header[12..16].copy_from_slice(&timeline.to_le_bytes());
        header[16..20].copy_from_slice(&run.level.to_le_bytes());
        header[24..32].copy_from_slice(&run.index.to_le_bytes());
        header[32..40].copy_from_slice(&entries.to_le_bytes());
        header[40..48].copy_from_slice(&(pages as u64).to_le_bytes());
        header[48..52].copy_from_slice(&crc32c::crc32c_append(seed, &first_keys).to_le_bytes());
        let crc = crc32c::crc32c_append(seed, &header[..60]);
        header[60..64].copy_from_slice(&crc.to_le_bytes());
        file.write_at(&[IoSlice::new(&first_keys)], offset).doing("writing", &temporary)?;
        file.write_at(&[IoSlice::new(&header)], 0).doing("writing", &temporary)?;
        file.sync().doing("syncing", &temporary)?;
        files.rename(&temporary, &path).doing("renaming", &temporary)?;
        Run::open(files, dir, timeline, run, seed)
    }

    /// Opens a run. [`Error::Damaged`] if it is not what its name says; it can then be rebuilt.
    pub(crate) fn open(
        files: &dyn Files,
        dir: &Path,
        timeline: TimelineId,
        run: RunKey,
        seed: u32,
    ) -> Result<Run> {
        let path = run.path(dir, timeline);
        let file = files.open(&path, Open::Read).doing("opening", &path)?;
        let bytes = file.map().doing("mapping", &path)?;
        let b: &[u8] = (*bytes).as_ref();
        let pages = u64_at(b, 40);
        let valid = b.get(0..8) == Some(MAGIC.as_slice())
            && b.get(..60).is_some_and(|h| crc32c::crc32c_append(seed, h) == u32_at(b, 60))
            && u32_at(b, 8) == FORMAT
            && u32_at(b, 12) == timeline
            && u32_at(b, 16) == run.level
            && u64_at(b, 24) == run.index
            && pages
                .checked_mul(PAGE_BYTES as u64 + 8)
                .is_some_and(|n| n + PAGE_BYTES as u64 == b.len() as u64)
            && b.get(PAGE_BYTES * (pages as usize + 1)..)
                .is_some_and(|keys| crc32c::crc32c_append(seed, keys) == u32_at(b, 48));
        if !valid {
            return Err(Error::Damaged { path, detail: "header or key table is not valid".into() });
        }
        let pages = pages as usize;
        let checked = (0..pages.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Ok(Run { path, bytes, pages, seed, checked })
    }

    fn first_key(&self, page: usize) -> u64 {
        u64_at((*self.bytes).as_ref(), PAGE_BYTES * (self.pages + 1) + page * 8)
    }

    fn page(&self, page: usize) -> Result<&[u8]> {
        let start = PAGE_BYTES * (page + 1);
        let b = (*self.bytes).as_ref().get(start..start + PAGE_BYTES).unwrap_or_default();
        let (word, bit) = (&self.checked[page / 64], 1_u64 << (page % 64));
        if word.load(Ordering::Relaxed) & bit == 0 {
            let count = u32_at(b, 4) as usize;
            if b.len() < PAGE_BYTES
                || crc32c::crc32c_append(self.seed, &b[4..]) != u32_at(b, 0)
                || count > PAGE_ENTRIES
            {
                return Err(Error::Damaged {
                    path: self.path.clone(),
                    detail: format!(
                        "CRC of page {page} does not match: stop, remove the file, restart to rebuild it"
                    ),
                });
            }
            word.fetch_or(bit, Ordering::Relaxed);
        }
        Ok(&b[PAGE_HEADER_BYTES..PAGE_HEADER_BYTES + u32_at(b, 4) as usize * ENTRY_BYTES])
    }

    /// Calls `visit` with the extents that overlap `count` blocks from `lba` of `volume`, in order, clipped.
    pub(crate) fn lookup(
        &self,
        volume: u32,
        lba: u64,
        count: u64,
        visit: &mut dyn FnMut(Mapped),
    ) -> Result<()> {
        let (from, to) = (key(volume, lba), key(volume, lba + count));
        // The last page that begins at or before `from`; what overlaps `from` can only be there or further on.
        let mut low = 0;
        let mut high = self.pages;
        while low < high {
            let middle = low + (high - low) / 2;
            if self.first_key(middle) <= from {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        for page in low.saturating_sub(1)..self.pages {
            if self.first_key(page) >= to {
                break;
            }
            let entries = self.page(page)?;
            let total = entries.len() / ENTRY_BYTES;
            let end_of =
                |i: usize| u64_at(entries, i * ENTRY_BYTES) + u64::from(u32_at(entries, i * ENTRY_BYTES + 8));
            let mut first = 0;
            let mut beyond = total;
            while first < beyond {
                let middle = first + (beyond - first) / 2;
                if end_of(middle) <= from {
                    first = middle + 1;
                } else {
                    beyond = middle;
                }
            }
            for i in first..total {
                let at = u64_at(entries, i * ENTRY_BYTES);
                if at >= to {
                    return Ok(());
                }
                if let Some(m) = self.mapped(&entries[i * ENTRY_BYTES..])? {
                    visit(m.clip(lba, lba + count));
                }
            }
        }
        Ok(())
    }

    fn mapped(&self, entry: &[u8]) -> Result<Option<Mapped>> {
        let loc = Loc::from_word(u64_at(entry, 12)).ok_or_else(|| Error::Damaged {
            path: self.path.clone(),
            detail: "unknown kind of location".into(),
        })?;
        let lba = u64_at(entry, 0) & ((1 << LBA_BITS) - 1);
        Ok(Some(Mapped { lba, count: u64::from(u32_at(entry, 8)), loc }))
    }

    /// Enters every version into `maps`, over what is there.
    pub(crate) fn pour_into(&self, maps: &mut Maps) -> Result<()> {
        for page in 0..self.pages {
            for entry in self.page(page)?.chunks_exact(ENTRY_BYTES) {
                if let Some(m) = self.mapped(entry)? {
                    maps.insert((u64_at(entry, 0) >> LBA_BITS) as u32, m);
                }
            }
        }
        Ok(())
    }

    /// Removes the file; who still reads the run goes on.
    pub(crate) fn remove(&self, files: &dyn Files) {
        let _ = files.remove(&self.path);
    }
}
