//! What a group gives to its copies: its log as it lies on the medium, what only its superblock knows, and its blocks as of a point.
//!
//! A copy's log is the source's, byte for byte: the same LSNs, epochs, times and timelines. So a point, a bookmark or a rewind is the same
//! on every copy, and that a copy is a prefix can be checked by comparing bytes.
//!
//! - **Only what is durable here is given away.** Else a power loss could take from the source what a copy still has, and the copy would
//!   be of another history.
//! - **A chunk comes first, the facts after it.** So the facts are never older than the records: a volume that a record names is in them,
//!   unless it has been removed since.
//! - **Nothing is held.** Segments are held for one read only; blocks are read as of a [`crate::Moment`], which ends when the trailing edge
//!   passes it. What a copy then lacks is in its [`crate::ledger`].
//!
//! [`Feed`] is all that a copy knows of its source. The copy beside us calls it directly; one that is far away will over a link.

use std::{collections::BTreeMap, sync::Arc};

use uuid::Uuid;

use crate::{
    changed::Blocks,
    error::Context,
    group::Group,
    index::Entry,
    lineage::TimelineId,
    read::{Line, Past},
    record::{record_bytes, Header, Opcode, HEADER_BYTES},
    segment::{first_lsn, place, Segment, SEGMENT_HEADER_BYTES},
    superblock::VolumeInfo,
    volume::Volume,
    Error, Lsn, Point, Result, BLOCK_BYTES,
};

/// Whole records of one segment, as they lie in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Where they begin.
    pub lsn: Lsn,
    /// The bytes: of records, and of the PAD behind the last one of a segment.
    pub bytes: Vec<u8>,
    /// Where the log goes on.
    pub next: Lsn,
}

/// What is to be had from an LSN on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shipment {
    /// Records.
    Chunk(Chunk),
    /// Nothing yet.
    Nothing,
    /// The log does not reach back to there any more.
    Gap,
}

/// What only the source's superblock knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The group's identity, and with it the seed of its CRCs.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// Bytes of a segment.
    pub segment_bytes: u64,
    /// The present epoch; no record has a later one.
    pub epoch: u32,
    /// The volumes there are.
    pub volumes: Vec<VolumeInfo>,
    /// The number the next volume gets.
    pub next_volume: u32,
    /// Volumes that are not in step with their production, and since when.
    pub resyncing: BTreeMap<u32, Point>,
}

/// Where the source is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reach {
    /// Its newest instant.
    pub head: Point,
    /// Its trailing edge.
    pub edge: Point,
}

/// A point to bring a copy to, and what it may lack of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The point: production's newest.
    pub point: Point,
    /// The timeline production was on.
    pub timeline: u32,
    /// Volumes and the rest, as of the point.
    pub facts: Facts,
    /// The blocks that may differ; `None`: any.
    pub lacking: Option<Blocks>,
}

/// Blocks as of a point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stretch {
    /// First block.
    pub lba: u64,
    /// How many.
    pub count: u64,
    /// Their bytes; `None`: zeros.
    pub data: Option<Vec<u8>>,
}

/// Where a copy gets everything from.
pub trait Feed: Send + Sync {
    /// What the superblock knows.
    fn facts(&self) -> Result<Facts>;
    /// Head and edge.
    fn reach(&self) -> Result<Reach>;
    /// When the first record from `lsn` on was made, ns since the Unix epoch; `None` if there is none, or it is gone.
    fn time_after(&self, lsn: Lsn) -> Result<Option<u64>>;
    /// About `max_bytes` of whole records from `from` on, none of which starts at `until` or later.
    fn ship(&self, from: Lsn, until: Lsn, max_bytes: usize) -> Result<Shipment>;
    /// Up to `max_bytes` of the log's bytes that end at `lsn`, within one segment; at the beginning of one those of the last records of the
    /// one before. `None` if they are gone.
    /// [`Error::OutsideWindow`] if the log does not reach as far as `lsn`.
    fn tail(&self, lsn: Lsn, max_bytes: usize) -> Result<Option<Vec<u8>>>;
    /// Whether a copy of this name has been begun.
    fn knows(&self, copy: &str) -> Result<bool>;
    /// Production's present point, for a copy that has the state at `settled`, or none.
    fn plan(&self, copy: &str, settled: Option<Lsn>) -> Result<Plan>;
    /// The copy knows durably what it lacks of the state at `lsn`.
    fn planned(&self, copy: &str, lsn: Lsn) -> Result<()>;
    /// The copy has everything before `durable`; `written`: that must survive the source's death.
    fn acknowledge(&self, copy: &str, durable: Lsn, written: bool) -> Result<()>;
    /// The first of `count` blocks of a volume from `lba` on, as of `lsn` on `timeline`: adjoining stretches in order, about `max_bytes`
    /// of data at most. [`Error::Gone`] when the edge has passed that point.
    fn blocks(
        &self,
        at: (u32, Lsn),
        volume: u32,
        range: (u64, u64),
        max_bytes: usize,
    ) -> Result<Vec<Stretch>>;
}

/// The same place of the log, said in the one way both sides use: behind a full segment is the start of the next.
pub(crate) fn normal(lsn: Lsn, segment_bytes: u64) -> Lsn {
    let (number, offset) = place(lsn, segment_bytes);
    if segment_bytes - offset < HEADER_BYTES as u64 {
        first_lsn(number + 1, segment_bytes)
    } else if offset < SEGMENT_HEADER_BYTES {
        first_lsn(number, segment_bytes)
    } else {
        lsn
    }
}

/// What lies in a piece of a segment.
#[derive(Debug, Default)]
pub(crate) struct Walk {
    /// The records, in order; no PAD.
    pub(crate) headers: Vec<Header>,
    /// Bytes of whole records, PAD included.
    pub(crate) used: usize,
    /// The segment is over.
    pub(crate) ended: bool,
    /// Bytes that the record behind them needs, if it is not whole.
    pub(crate) needed: usize,
}

/// Walks over `bytes`, which begin at `lsn`, believing nothing: CRCs, places, epochs and lengths are checked.
pub(crate) fn walk(
    bytes: &[u8],
    lsn: Lsn,
    (seed, segment_bytes, mut epoch): (u32, u64, u32),
) -> std::result::Result<Walk, &'static str> {
    let (_, start) = place(lsn, segment_bytes);
    let mut found = Walk::default();
    loop {
        let left = segment_bytes - start - found.used as u64;
        if left < HEADER_BYTES as u64 {
            found.ended = true;
            return Ok(found);
        }
        let rest = &bytes[found.used..];
        let Some(b) = rest.first_chunk::<HEADER_BYTES>() else {
            found.needed = HEADER_BYTES;
            return Ok(found);
        };
        let header = Header::decode(b, seed)?;
        if header.lsn != lsn + found.used as u64 {
            return Err("a record of another place");
        }
        if header.epoch < epoch {
            return Err("a record of an earlier epoch");
        }
        epoch = header.epoch;
        if header.opcode == Opcode::Pad {
            found.used += HEADER_BYTES;
            found.ended = true;
            return Ok(found);
        }
        let needed = record_bytes(header.payload_bytes as usize);
        if needed as u64 > left {
            return Err("a record that crosses the segment's end");
        }
        if rest.len() < needed {
            found.needed = needed;
            return Ok(found);
        }
        let payload = &rest[HEADER_BYTES..HEADER_BYTES + header.payload_bytes as usize];
        if crc32c::crc32c(payload) != header.payload_crc {
            return Err("payload CRC does not match");
        }
        found.headers.push(header);
        found.used += needed;
    }
}

impl Group {
    /// The segment of `lsn`, if the log still has all of it.
    fn kept_segment(&self, lsn: Lsn) -> Option<Arc<Segment>> {
        let state = self.0.state.read();
        let (number, _) = place(lsn, self.0.segment_bytes);
        let (first, _) = place(state.folded, self.0.segment_bytes);
        state.segments.get(&number).filter(|_| number >= first).cloned()
    }

    /// Where the record before `lsn` ends, which is another place where a segment begins. `None`: it is gone, or there never was one.
    fn end_before(&self, lsn: Lsn) -> Result<Option<Lsn>> {
        let i = &self.0;
        let (number, offset) = place(lsn, i.segment_bytes);
        if offset > SEGMENT_HEADER_BYTES {
            return Ok(Some(lsn));
        }
        let Some(before) = number.checked_sub(1) else { return Ok(None) };
        if self.kept_segment(first_lsn(before, i.segment_bytes)).is_none() {
            return Ok(None);
        }
        match i.entries_of(before) {
            Ok(entries) => Ok(entries.last().map(Entry::end)),
            Err(_) if self.kept_segment(first_lsn(before, i.segment_bytes)).is_none() => Ok(None),
            Err(e) => Err(e),
        }
    }

    pub(crate) fn volume_at(&self, (timeline, lsn): (TimelineId, Lsn), number: u32) -> Result<Volume> {
        let volume = self.0.state.read().volumes.get(&number).cloned();
        let volume =
            volume.ok_or_else(|| Error::NotFound(format!("volume number {number} of {}", self.name())))?;
        let past = Past { of: Line::Production, timeline, lsn };
        Ok(Volume { group: self.clone(), volume, line: Line::Past(Arc::new(past)) })
    }
}

impl Feed for Group {
    fn facts(&self) -> Result<Facts> {
        self.0.check_open()?;
        Ok(facts(&self.0.control.lock().memory))
    }

    fn reach(&self) -> Result<Reach> {
        self.0.check_open()?;
        let state = self.0.state.read();
        Ok(Reach { head: state.head, edge: state.edge })
    }

    fn time_after(&self, lsn: Lsn) -> Result<Option<u64>> {
        let lsn = normal(lsn, self.0.segment_bytes);
        if lsn >= self.head().lsn {
            return Ok(None);
        }
        match self.0.entries_of(place(lsn, self.0.segment_bytes).0) {
            Ok(entries) => {
                let i = entries.partition_point(|e| e.lsn < lsn);
                Ok(entries.get(i).map(|e| e.time_ns))
            }
            Err(Error::NotFound(_)) => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn ship(&self, from: Lsn, until: Lsn, max_bytes: usize) -> Result<Shipment> {
        let i = &self.0;
        i.check_open()?;
        let head = self.head().lsn;
        if self.durable_lsn() <= from && from < head {
            i.flush_inline()?;
        }
        let end = self.durable_lsn().min(until);
        let (number, offset) = place(from, i.segment_bytes);
        if offset < SEGMENT_HEADER_BYTES {
            return Err(Error::Invalid(format!(
                "LSN {from} of group {} is inside a segment's header",
                i.name
            )));
        }
        let Some(segment) = self.kept_segment(from) else {
            // Behind the newest segment there is nothing yet; before the oldest, nothing any more.
            return Ok(if from >= head { Shipment::Nothing } else { Shipment::Gap });
        };
        if from >= end {
            return Ok(Shipment::Nothing);
        }
        let here =
            if end / i.segment_bytes > number { i.segment_bytes } else { end % i.segment_bytes } - offset;
        let mut want = (max_bytes.max(HEADER_BYTES) as u64).min(here);
        loop {
            let mut bytes = vec![0; want as usize];
            let read = segment
                .file(&*i.files)
                .and_then(|f| f.read_at(&mut bytes, offset).doing("reading", &segment.path));
            match read {
                Ok(()) => {}
                // Given up before its file was opened.
                Err(_) if self.kept_segment(from).is_none() => return Ok(Shipment::Gap),
                Err(e) => return Err(e),
            }
            let damaged = |why: &str| Error::Damaged {
                path: segment.path.clone(),
                detail: format!(
                    "behind LSN {from}: {why}. It is not given to a copy: restore the segment from one"
                ),
            };
            let found = walk(&bytes, from, (i.seed, i.segment_bytes, 0)).map_err(damaged)?;
            if found.used == 0 && !found.ended {
                if found.needed as u64 <= want || found.needed as u64 > here {
                    return Err(damaged("no whole record is there"));
                }
                want = found.needed as u64;
                continue;
            }
            bytes.truncate(found.used);
            let next =
                if found.ended { first_lsn(number + 1, i.segment_bytes) } else { from + found.used as u64 };
            return Ok(Shipment::Chunk(Chunk { lsn: from, bytes, next }));
        }
    }

    fn tail(&self, lsn: Lsn, max_bytes: usize) -> Result<Option<Vec<u8>>> {
        let i = &self.0;
        i.check_open()?;
        let (edge, head) = (self.window().edge.lsn, normal(self.head().lsn, i.segment_bytes));
        if lsn > head {
            return Err(Error::OutsideWindow { group: i.name.clone(), lsn, edge, head });
        }
        let Some(end) = self.end_before(lsn)? else { return Ok(None) };
        let (_, offset) = place(end - 1, i.segment_bytes);
        let offset = offset + 1;
        let Some(segment) = self.kept_segment(end - 1) else { return Ok(None) };
        let mut bytes = vec![0; (offset - SEGMENT_HEADER_BYTES).min(max_bytes as u64) as usize];
        let at = offset - bytes.len() as u64;
        match segment.file(&*i.files).and_then(|f| f.read_at(&mut bytes, at).doing("reading", &segment.path))
        {
            Err(_) if self.kept_segment(end - 1).is_none() => Ok(None),
            other => other.map(|()| Some(bytes)),
        }
    }

    fn knows(&self, copy: &str) -> Result<bool> {
        self.0.check_open()?;
        Ok(self.0.ledgers.lock().contains_key(copy))
    }

    fn plan(&self, copy: &str, settled: Option<Lsn>) -> Result<Plan> {
        let i = &self.0;
        // A window can be thousands of segments, and whoever waits for the edge to move waits for `control`.
        let ahead = settled.and_then(|lsn| i.gather_ahead(lsn));
        // While it is held neither production nor the edge moves, and no volume comes or goes.
        let control = i.control.lock();
        i.check_open()?;
        let head = self.head();
        i.flush_inline()?;
        let history = &control.memory.history;
        let lacking = match settled {
            Some(lsn) if lsn <= normal(head.lsn, i.segment_bytes) => {
                i.lacking(copy, lsn, history, head.lsn, ahead)?
            }
            _ => None,
        };
        let point = Point { lsn: normal(head.lsn, i.segment_bytes), time_ns: head.time_ns };
        let timeline = history.production_at(point.lsn);
        Ok(Plan { point, timeline, facts: facts(&control.memory), lacking })
    }

    fn planned(&self, copy: &str, lsn: Lsn) -> Result<()> {
        self.0.note_plan(copy, lsn)
    }

    fn acknowledge(&self, copy: &str, durable: Lsn, written: bool) -> Result<()> {
        self.0.note_position(copy, durable, written)
    }

    fn blocks(
        &self,
        at: (u32, Lsn),
        volume: u32,
        (lba, count): (u64, u64),
        max_bytes: usize,
    ) -> Result<Vec<Stretch>> {
        let volume = self.volume_at(at, volume)?;
        let mut out = Vec::new();
        let mut room = (max_bytes / BLOCK_BYTES).max(1) as u64;
        for e in volume.extents(lba, count, EXTENTS)? {
            if e.zero {
                out.push(Stretch { lba: e.lba, count: e.count, data: None });
                continue;
            }
            let n = e.count.min(room);
            if n == 0 {
                break;
            }
            let mut data = vec![0; n as usize * BLOCK_BYTES];
            volume.read(e.lba, &mut data)?;
            out.push(Stretch { lba: e.lba, count: n, data: Some(data) });
            room -= n;
            if n < e.count {
                break;
            }
        }
        Ok(out)
    }
}

/// Extents looked at at once.
const EXTENTS: usize = 1024;

fn facts(memory: &crate::superblock::Memory) -> Facts {
    Facts {
        id: memory.id,
        name: memory.name.clone(),
        segment_bytes: memory.segment_bytes,
        epoch: memory.epoch,
        volumes: memory.volumes.clone(),
        next_volume: memory.next_volume,
        resyncing: memory.resyncing.clone(),
    }
}
