//! The index of one segment: its records' headers in log order, without the payloads. In memory while the segment fills, a file
//! beside the log once it is sealed and synced; always rebuildable from the segment. It answers what happened when, lets an image be
//! cut between any two records, and lets a restart skip the segment.

use std::{
    io::IoSlice,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use crate::{
    error::Context,
    extents::{Kind, Loc, Mapped},
    files::{Bytes, Files, Open},
    record::{self, u32_at, u64_at, Header, Opcode, FORMAT},
    segment::SegmentNumber,
    Error, Lsn, Result,
};

/// A record in an index: its header without CRCs. 48 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) lsn: Lsn,
    pub(crate) time_ns: u64,
    pub(crate) lba: u64,
    pub(crate) count: u64,
    pub(crate) timeline: u32,
    pub(crate) volume: u32,
    pub(crate) payload_bytes: u32,
    pub(crate) opcode: Opcode,
}

const ENTRY_BYTES: usize = 48;
const HEADER_BYTES: usize = 96;
/// Timelines named in the header at most.
const FEW: usize = 10;
const MAGIC: &[u8; 8] = b"PHidx\r\n\x1a";

impl From<&Header> for Entry {
    fn from(h: &Header) -> Entry {
        Entry {
            lsn: h.lsn,
            time_ns: h.time_ns,
            lba: h.lba,
            count: h.count,
            timeline: h.timeline,
            volume: h.volume,
            payload_bytes: h.payload_bytes,
            opcode: h.opcode,
        }
    }
}

impl Entry {
    /// What the record makes the newest version of, if it changes blocks.
    pub(crate) fn mapped(&self) -> Option<Mapped> {
        let payload = self.lsn + record::HEADER_BYTES as u64;
        let loc = match self.opcode {
            Opcode::Write => Loc::new(Kind::Data, payload),
            Opcode::WriteSame => Loc::new(Kind::Pattern, payload),
            Opcode::Zero => Loc::new(Kind::Zero, self.lsn),
            Opcode::Unmap => Loc::new(Kind::Unmapped, self.lsn),
            Opcode::Copy => Loc::new(Kind::Copy, self.lsn),
            _ => return None,
        };
        Some(Mapped { lba: self.lba, count: self.count, loc })
    }

    /// The LSN after the record.
    pub(crate) fn end(&self) -> Lsn {
        self.lsn + record::record_bytes(self.payload_bytes as usize) as u64
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.lsn.to_le_bytes());
        out.extend_from_slice(&self.time_ns.to_le_bytes());
        out.extend_from_slice(&self.lba.to_le_bytes());
        out.extend_from_slice(&self.count.to_le_bytes());
        out.extend_from_slice(&self.timeline.to_le_bytes());
        out.extend_from_slice(&self.volume.to_le_bytes());
        out.extend_from_slice(&self.payload_bytes.to_le_bytes());
        out.extend_from_slice(&[self.opcode as u8, 0, 0, 0]);
    }

    fn decode(b: &[u8]) -> Option<Entry> {
        Some(Entry {
            lsn: u64_at(b, 0),
            time_ns: u64_at(b, 8),
            lba: u64_at(b, 16),
            count: u64_at(b, 24),
            timeline: u32_at(b, 32),
            volume: u32_at(b, 36),
            payload_bytes: u32_at(b, 40),
            opcode: Opcode::from_byte(*b.get(44)?)?,
        })
    }
}

/// The directory of indexes and runs.
pub(crate) fn index_dir(dir: &Path) -> PathBuf {
    dir.join("index")
}

/// The index file of a segment.
pub(crate) fn index_path(dir: &Path, number: SegmentNumber) -> PathBuf {
    index_dir(dir).join(format!("{number:016x}.idx"))
}

/// A sealed segment's index.
pub(crate) struct SegmentIndex {
    pub(crate) number: SegmentNumber,
    path: PathBuf,
    /// Records.
    pub(crate) count: u64,
    /// Time of the last record, or of the last before the segment if it has none.
    pub(crate) last_time_ns: u64,
    /// LSN after the last record.
    pub(crate) end: Lsn,
    /// Whether a record that [`Opcode::marks`] is among them.
    pub(crate) marked: bool,
    /// The timelines of its records, if they are few.
    pub(crate) timelines: Option<Vec<u32>>,
    entries_crc: u32,
    entries: OnceLock<Bytes>,
}

/// Writes `bytes` to a new file that appears under its name only when it is complete and durable.
pub(crate) fn write_whole(files: &dyn Files, path: &Path, parts: &[&[u8]]) -> Result<()> {
    let temporary = path.with_extension("new");
    let file = files.open(&temporary, Open::Create).doing("creating", &temporary)?;
    let mut offset = 0;
    for part in parts {
        file.write_at(&[IoSlice::new(part)], offset).doing("writing", &temporary)?;
        offset += part.len() as u64;
    }
    file.sync().doing("syncing", &temporary)?;
    files.rename(&temporary, path).doing("renaming", &temporary)
}

impl SegmentIndex {
    /// Writes the index of a sealed segment. Durable once the directory is synced, too.
    pub(crate) fn write(
        files: &dyn Files,
        dir: &Path,
        number: SegmentNumber,
        seed: u32,
        entries: &[Entry],
        (time_before_ns, first_lsn): (u64, Lsn),
    ) -> Result<SegmentIndex> {
        let mut body = Vec::with_capacity(entries.len() * ENTRY_BYTES);
        for e in entries {
            e.encode(&mut body);
        }
        let index = SegmentIndex {
            number,
            path: index_path(dir, number),
            count: entries.len() as u64,
            last_time_ns: entries.last().map_or(time_before_ns, |e| e.time_ns),
            end: entries.last().map_or(first_lsn, Entry::end),
            marked: entries.iter().any(|e| e.opcode.marks()),
            timelines: few_timelines(entries),
            entries_crc: crc32c::crc32c_append(seed, &body),
            entries: OnceLock::new(),
        };
        write_whole(files, &index.path, &[&index.header(seed), &body])?;
        Ok(index)
    }

    fn header(&self, seed: u32) -> [u8; HEADER_BYTES] {
        let mut b = [0_u8; HEADER_BYTES];
        b[0..8].copy_from_slice(MAGIC);
        b[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        b[12..16].copy_from_slice(&self.entries_crc.to_le_bytes());
        b[16..24].copy_from_slice(&self.number.to_le_bytes());
        b[24..32].copy_from_slice(&self.count.to_le_bytes());
        b[32..40].copy_from_slice(&self.last_time_ns.to_le_bytes());
        b[40..48].copy_from_slice(&self.end.to_le_bytes());
        b[48] = u8::from(self.marked);
        b[49] = self.timelines.as_ref().map_or(u8::MAX, |t| t.len() as u8);
        for (i, timeline) in self.timelines.iter().flatten().enumerate() {
            b[52 + 4 * i..56 + 4 * i].copy_from_slice(&timeline.to_le_bytes());
        }
        let crc = crc32c::crc32c_append(seed, &b[..HEADER_BYTES - 4]);
        b[HEADER_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
        b
    }

    /// Opens the index of a segment; `None` if there is no valid one (it is then rebuilt from the segment).
    pub(crate) fn open(
        files: &dyn Files,
        dir: &Path,
        number: SegmentNumber,
        seed: u32,
    ) -> Option<SegmentIndex> {
        let path = index_path(dir, number);
        let file = files.open(&path, Open::Read).ok()?;
        let mut b = [0_u8; HEADER_BYTES];
        file.read_at(&mut b, 0).ok()?;
        let valid = &b[0..8] == MAGIC
            && u32_at(&b, HEADER_BYTES - 4) == crc32c::crc32c_append(seed, &b[..HEADER_BYTES - 4])
            && u32_at(&b, 8) == FORMAT
            && u64_at(&b, 16) == number;
        let count = u64_at(&b, 24);
        (valid && file.size().ok()? == HEADER_BYTES as u64 + count * ENTRY_BYTES as u64).then(|| {
            SegmentIndex {
                number,
                path,
                count,
                last_time_ns: u64_at(&b, 32),
                end: u64_at(&b, 40),
                marked: b[48] != 0,
                timelines: (usize::from(b[49]) <= FEW)
                    .then(|| (0..usize::from(b[49])).map(|i| u32_at(&b, 52 + 4 * i)).collect()),
                entries_crc: u32_at(&b, 12),
                entries: OnceLock::new(),
            }
        })
    }

    /// The records, in log order. Checked the first time.
    pub(crate) fn entries(&self, files: &dyn Files, seed: u32) -> Result<Vec<Entry>> {
        self.part(files, seed, 0, usize::MAX)
    }

    /// Records `from` up to `to`, as far as there are any.
    pub(crate) fn part(&self, files: &dyn Files, seed: u32, from: usize, to: usize) -> Result<Vec<Entry>> {
        let bytes = self.checked(files, seed)?;
        let entries = body(&bytes).chunks_exact(ENTRY_BYTES).skip(from).take(to - from);
        entries.map(|b| self.entry(b)).collect()
    }

    /// How many records start before `lsn`.
    pub(crate) fn count_before(&self, files: &dyn Files, seed: u32, lsn: Lsn) -> Result<usize> {
        let bytes = self.checked(files, seed)?;
        let body = body(&bytes);
        let (mut low, mut high) = (0, body.len() / ENTRY_BYTES);
        while low < high {
            let middle = low + (high - low) / 2;
            if u64_at(body, middle * ENTRY_BYTES) < lsn {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(low)
    }

    fn checked(&self, files: &dyn Files, seed: u32) -> Result<Bytes> {
        if let Some(bytes) = self.entries.get() {
            return Ok(Arc::clone(bytes));
        }
        let file = files.open(&self.path, Open::Read).doing("opening", &self.path)?;
        let bytes = file.map().doing("mapping", &self.path)?;
        if crc32c::crc32c_append(seed, body(&bytes)) != self.entries_crc {
            return Err(Error::Damaged {
                path: self.path.clone(),
                detail: "CRC does not match: remove the file and restart to rebuild it".into(),
            });
        }
        Ok(Arc::clone(self.entries.get_or_init(|| bytes)))
    }

    fn entry(&self, b: &[u8]) -> Result<Entry> {
        Entry::decode(b)
            .ok_or_else(|| Error::Damaged { path: self.path.clone(), detail: "unknown opcode".into() })
    }
}

/// The entries' bytes.
fn body(bytes: &Bytes) -> &[u8] {
    (**bytes).as_ref().get(HEADER_BYTES..).unwrap_or_default()
}

fn few_timelines(entries: &[Entry]) -> Option<Vec<u32>> {
    let all: std::collections::BTreeSet<u32> = entries.iter().map(|e| e.timeline).collect();
    (all.len() <= FEW).then(|| all.into_iter().collect())
}
