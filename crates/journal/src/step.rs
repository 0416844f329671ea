//! One step of a fold: which versions go to the bases, and the writing of them.
//!
//! A step is a stretch of the log, planned first and written then, in the order of blocks. What it writes does not depend on anything
//! it changes, so it can be repeated after a crash, from anywhere, with the same result; and whoever reads meanwhile finds in the bases what it
//! may have to look for there.
//!
//! A COPY is resolved while the step is planned: what the step itself has given the source (data, a pattern, zeros) is given to the
//! destination too, and only the rest is a reference to a base, as it was before the step. So copies of copies, thousands of them, are one step. It ends
//! only before a change of blocks that one of its references has as its source: the copy must be in the base first, and said to be.
//!
//! Something huge (a pattern or a copy of a terabyte is one record) is written in pieces: the superblock says how far the step has come,
//! each time that much was synced. A crash repeats one piece at most, and whoever closes the group or cancels a settling waits for no more than a piece's sync.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    extents::{Kind, Loc, Mapped},
    group::{Inner, VolumeState},
    index::Entry,
    lineage::contains,
    maps::{Maps, Sizes},
    record::{CopySource, Opcode, HEADER_BYTES},
    scan::{Found, Scan},
    segment::{first_lsn, place, Segment, SegmentNumber},
    superblock::Memory,
    Error, Lsn, Result, BLOCK_BYTES,
};

/// Extents in one step, about: so that a step's memory stays small.
const STEP_EXTENTS: usize = 1 << 19;
/// Bytes written to a base at once at most.
const WRITE_BYTES: usize = 1 << 20;
/// Bytes made a hole at once at most: on some devices that is writing them.
const PUNCH_BYTES: u64 = 1 << 30;
/// A piece ends after this many segments' worth of bytes (256 MiB of segments of 64 MiB) ...
const PIECE_SEGMENTS: u64 = 4;
/// ... or after this long.
const PIECE_TIME: Duration = Duration::from_secs(5);

/// How far a step has come, as the superblock remembers it: of the step from `folded` to `end`, everything before block `lba` of volume
/// `volume`, in the order of volumes and blocks, is in the bases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct StepDone {
    pub(crate) end: Lsn,
    pub(crate) volume: u32,
    pub(crate) lba: u64,
}

/// What a fold keeps from step to step: a segment is read through and checked once, however many steps end in it.
pub(crate) struct Walk {
    edge: Lsn,
    checked: Option<(SegmentNumber, Arc<Vec<Entry>>)>,
}

impl Walk {
    pub(crate) fn up_to(edge: Lsn) -> Walk {
        Walk { edge, checked: None }
    }
}

/// Where blocks from `lba` on come from: a base, as it is before the step.
#[derive(Clone, Copy)]
struct Origin {
    lba: u64,
    volume: u32,
    from: u64,
}

/// What a step writes: for every block its last version in the stretch. A location of [`Kind::Copy`] is a number of `origins`.
pub(crate) struct Plan {
    pub(crate) end: Lsn,
    writes: Maps,
    origins: Vec<Origin>,
    /// What any reference of the step reads; it is not changed within the step.
    sources: Maps,
    extents: usize,
}

impl Plan {
    fn up_to(end: Lsn, sizes: Sizes) -> Plan {
        let sources = Maps::new(Arc::clone(&sizes));
        Plan { end, writes: Maps::new(sizes), origins: Vec::new(), sources, extents: 0 }
    }

    /// Takes in a change; `false` if the step must end before it.
    fn change(&mut self, volume: u32, m: Mapped) -> bool {
        if self.sources.touches(volume, m.lba, m.count) {
            return false;
        }
        self.writes.insert(volume, m);
        self.extents += 1;
        true
    }

    /// Takes in a copy; `false` if the step must end before it.
    fn copy(&mut self, e: &Entry, source: CopySource) -> bool {
        let mut parts: Vec<(Mapped, Option<Origin>)> = Vec::new();
        let refer = |lba: u64, count: u64, volume: u32, from: u64| {
            // The location is given when it is certain that the step takes it in.
            let loc = Loc::new(Kind::Copy, 0);
            (Mapped { lba, count, loc }, Some(Origin { lba, volume, from }))
        };
        let mut at = source.lba;
        let to = |from: u64| e.lba + (from - source.lba);
        let origins = &self.origins;
        self.writes.lookup(source.volume, source.lba, e.count, &mut |m| {
            if m.lba > at {
                parts.push(refer(to(at), m.lba - at, source.volume, at));
            }
            at = m.lba + m.count;
            let origin = match m.loc.kind() {
                Kind::Copy => origins.get(m.loc.lsn() as usize),
                _ => None,
            };
            parts.push(match origin {
                Some(o) => refer(to(m.lba), m.count, o.volume, o.from + (m.lba - o.lba)),
                None => (Mapped { lba: to(m.lba), ..m }, None),
            });
        });
        if at < source.lba + e.count {
            parts.push(refer(to(at), source.lba + e.count - at, source.volume, at));
        }
        // The first change of a step is always taken, so that a fold goes on.
        let first = self.extents == 0;
        if !first && self.extents + parts.len() > STEP_EXTENTS {
            return false;
        }
        // A block that comes back to where it was has no other version in the step: it was a source all the time.
        let stays = |o: &Option<Origin>| o.is_some_and(|o| o.volume == e.volume && o.from == o.lba);
        let conflict = parts.iter().filter(|(_, o)| !stays(o)).any(|(m, origin)| {
            let reads_own = origin.is_some_and(|o| {
                o.volume == e.volume && o.from < e.lba + e.count && e.lba < o.from + m.count
            });
            reads_own || self.sources.touches(e.volume, m.lba, m.count)
        });
        if conflict && !first {
            return false;
        }
        self.extents += parts.len();
        for (m, origin) in parts {
            let Some(o) = origin else {
                self.writes.insert(e.volume, m);
                continue;
            };
            let loc = Loc::new(Kind::Copy, self.origins.len() as Lsn);
            self.sources.insert(o.volume, Mapped { lba: o.from, count: m.count, loc });
            if !stays(&origin) {
                self.writes.insert(e.volume, Mapped { loc, ..m });
                self.origins.push(o);
            }
        }
        true
    }
}

impl Inner {
    /// What production's lineage has from `folded` on, up to `until`, as far as one step goes.
    pub(crate) fn plan_step(&self, walk: &mut Walk, folded: Lsn, until: Lsn) -> Result<Plan> {
        let (lineage, sizes, volumes) = {
            let state = self.state.read();
            (state.history.current(), Arc::clone(&state.sizes), state.volumes.clone())
        };
        let mut plan = Plan::up_to(until, sizes);
        let (mut number, _) = place(folded, self.segment_bytes);
        while first_lsn(number, self.segment_bytes) < until {
            let entries = self.checked_entries(walk, number)?;
            let from = entries.partition_point(|e| e.lsn < folded);
            for e in entries.get(from..).unwrap_or_default().iter().take_while(|e| e.lsn < until) {
                if !contains(&lineage, e.timeline, e.lsn) || !volumes.contains_key(&e.volume) {
                    continue;
                }
                let Some(m) = e.mapped() else { continue };
                let taken = match e.opcode {
                    Opcode::Copy => plan.copy(e, self.copy_source(e)?),
                    _ => plan.change(e.volume, m),
                };
                if !taken {
                    plan.end = e.lsn;
                    return Ok(plan);
                }
            }
            number += 1;
            if plan.extents >= STEP_EXTENTS {
                plan.end = first_lsn(number, self.segment_bytes).min(until);
                break;
            }
        }
        Ok(plan)
    }

    /// A segment's records, read through once.
    fn checked_entries(&self, walk: &mut Walk, number: SegmentNumber) -> Result<Arc<Vec<Entry>>> {
        if let Some((_, entries)) = walk.checked.as_ref().filter(|(checked, _)| *checked == number) {
            return Ok(Arc::clone(entries));
        }
        let entries = self.entries_of(number)?;
        self.check_segment(number, &entries, walk.edge)?;
        walk.checked = Some((number, Arc::clone(&entries)));
        Ok(entries)
    }

    /// Checks the CRCs of a segment's records before they go to the bases: after that the log's copy is gone, and with it the proof.
    fn check_segment(&self, number: SegmentNumber, entries: &[Entry], edge: Lsn) -> Result<()> {
        let segment: Option<Arc<Segment>> = self.state.read().segments.get(&number).cloned();
        let Some(segment) = segment else { return Ok(()) };
        let file = (Arc::clone(segment.file(&*self.files)?), segment.path.clone());
        let mut scan = Scan::new(file, number, self.segment_bytes, self.seed, (0, u32::MAX));
        for e in entries.iter().take_while(|e| e.lsn < edge) {
            self.check_open()?;
            match scan.next()? {
                Found::Record(header) if header.lsn == e.lsn => {}
                Found::Nothing(why) => return Err(self.rotten(&segment, e.lsn, why)),
                _ => return Err(self.rotten(&segment, e.lsn, "it is not where the index has it")),
            }
        }
        Ok(())
    }

    fn rotten(&self, segment: &Segment, lsn: Lsn, why: &str) -> Error {
        Error::Damaged {
            path: segment.path.clone(),
            detail: format!(
                "the record at LSN {lsn}: {why}. It is not folded, and the window of group {} cannot be shortened past it: restore the segment from a copy of the group",
                self.name
            ),
        }
    }

    /// Writes a step to the bases, from where it had come to; durable when it returns. `go_on` is asked after every piece; returns whether it
    /// is done.
    pub(crate) fn write_step(
        &self,
        plan: &Plan,
        done: Option<StepDone>,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<bool> {
        let volumes = self.state.read().volumes.clone();
        let mut pace = Pace::new(plan.end, go_on);
        for (number, map) in plan.writes.volumes() {
            let from = match done {
                Some(done) if done.volume > number => continue,
                Some(done) if done.volume == number => done.lba,
                _ => 0,
            };
            let Some(volume) = volumes.get(&number) else { continue };
            let mut writer = BaseWriter {
                inner: self,
                plan,
                volume,
                volumes: &volumes,
                at: 0,
                buf: Vec::new(),
                pace: &mut pace,
                outcome: Ok(()),
            };
            map.for_each(&mut |m| {
                let end = m.lba + m.count;
                if end > from {
                    writer.put(m.clip(from, end));
                }
            });
            match writer.finish() {
                Err(_) if pace.stopped => return Ok(false),
                other => other?,
            }
            volume.base()?.sync()?;
        }
        Ok(true)
    }
}

/// How much of a step has been written since the superblock was told.
struct Pace<'a> {
    end: Lsn,
    written_bytes: u64,
    since: Instant,
    go_on: &'a mut dyn FnMut() -> bool,
    /// It was not to go on.
    stopped: bool,
}

impl<'a> Pace<'a> {
    fn new(end: Lsn, go_on: &'a mut dyn FnMut() -> bool) -> Pace<'a> {
        Pace { end, written_bytes: 0, since: Instant::now(), go_on, stopped: false }
    }
}

/// Writes extents to a base in block order, joining neighbours.
struct BaseWriter<'a, 'b> {
    inner: &'a Inner,
    plan: &'a Plan,
    volume: &'a VolumeState,
    volumes: &'a BTreeMap<u32, Arc<VolumeState>>,
    /// Byte at which `buf` goes.
    at: u64,
    buf: Vec<u8>,
    pace: &'a mut Pace<'b>,
    outcome: Result<()>,
}

impl BaseWriter<'_, '_> {
    fn put(&mut self, m: Mapped) {
        if self.outcome.is_err() {
            return;
        }
        self.outcome = match m.loc.kind() {
            Kind::Data => self.data(m),
            Kind::Pattern => self.pattern(m),
            Kind::Zero | Kind::Unmapped => {
                self.punch(m.lba * BLOCK_BYTES as u64, m.count * BLOCK_BYTES as u64)
            }
            Kind::Copy => self.copy(m),
        };
    }

    fn finish(mut self) -> Result<()> {
        std::mem::replace(&mut self.outcome, Ok(()))?;
        self.flush()
    }

    fn flush(&mut self) -> Result<()> {
        if !self.buf.is_empty() {
            self.volume.base()?.write(self.at, &self.buf)?;
            self.pace.written_bytes += self.buf.len() as u64;
            self.at += self.buf.len() as u64;
            self.buf.clear();
        }
        Ok(())
    }

    /// Everything before byte `offset` is written: if that is enough for a piece, it is made durable and remembered.
    fn reached(&mut self, offset: u64) -> Result<()> {
        self.inner.check_open()?;
        let piece_bytes = PIECE_SEGMENTS * self.inner.segment_bytes;
        if self.pace.written_bytes < piece_bytes && self.pace.since.elapsed() < PIECE_TIME {
            return Ok(());
        }
        self.volume.base()?.sync()?;
        let lba = offset / BLOCK_BYTES as u64;
        let done = StepDone { end: self.pace.end, volume: self.volume.info.number, lba };
        let mut control = self.inner.control.lock();
        self.inner.remember(&mut control, |m: &mut Memory| m.step = Some(done))?;
        drop(control);
        self.pace.written_bytes = 0;
        self.pace.since = Instant::now();
        if !(self.pace.go_on)() {
            self.pace.stopped = true;
            return Err(Error::Conflict(format!("folding group {} was cancelled", self.inner.name)));
        }
        Ok(())
    }

    /// The place in the buffer for up to `want` bytes at byte `offset` of the volume.
    fn room(&mut self, offset: u64, want: u64) -> Result<&mut [u8]> {
        if self.buf.len() >= WRITE_BYTES || self.at + self.buf.len() as u64 != offset {
            self.flush()?;
            self.reached(offset)?;
            self.at = offset;
        }
        let start = self.buf.len();
        let n = (WRITE_BYTES - start).min(usize::try_from(want).unwrap_or(WRITE_BYTES));
        self.buf.resize(start + n, 0);
        Ok(&mut self.buf[start..])
    }

    fn data(&mut self, m: Mapped) -> Result<()> {
        let inner = self.inner;
        let total = m.count * BLOCK_BYTES as u64;
        let mut done = 0;
        while done < total {
            let room = self.room(m.lba * BLOCK_BYTES as u64 + done, total - done)?;
            inner.read_payload(m.loc.lsn() + done, room)?;
            done += room.len() as u64;
        }
        Ok(())
    }

    fn pattern(&mut self, m: Mapped) -> Result<()> {
        let mut block = [0; BLOCK_BYTES];
        self.inner.read_payload(m.loc.lsn(), &mut block)?;
        if block == [0; BLOCK_BYTES] {
            return self.punch(m.lba * BLOCK_BYTES as u64, m.count * BLOCK_BYTES as u64);
        }
        let total = m.count * BLOCK_BYTES as u64;
        let mut done = 0;
        while done < total {
            let room = self.room(m.lba * BLOCK_BYTES as u64 + done, total - done)?;
            room.chunks_mut(BLOCK_BYTES).for_each(|b| b.copy_from_slice(&block[..b.len()]));
            done += room.len() as u64;
        }
        Ok(())
    }

    fn punch(&mut self, offset: u64, bytes: u64) -> Result<()> {
        self.flush()?;
        let mut done = 0;
        while done < bytes {
            self.reached(offset + done)?;
            let n = PUNCH_BYTES.min(bytes - done);
            self.volume.base()?.punch(offset + done, n)?;
            done += n;
        }
        Ok(())
    }

    fn copy(&mut self, m: Mapped) -> Result<()> {
        self.flush()?;
        let gone = || Error::Gone("the source volume of a copy within the window".into());
        let origin = self.plan.origins.get(m.loc.lsn() as usize).ok_or_else(gone)?;
        let from = self.volumes.get(&origin.volume).ok_or_else(gone)?;
        let block = BLOCK_BYTES as u64;
        let mut read_at = (origin.from + (m.lba - origin.lba)) * block;
        let mut write_at = m.lba * block;
        let end = write_at + m.count * block;
        let mut buf = vec![0; WRITE_BYTES.min((m.count * block) as usize)];
        while write_at < end {
            self.reached(write_at)?;
            let (data, bytes) = from.base()?.data_at(read_at, end - write_at)?;
            let n = if data { bytes.min(buf.len() as u64) } else { bytes };
            if data {
                let buf = &mut buf[..n as usize];
                from.base()?.read(read_at, buf)?;
                self.volume.base()?.write(write_at, buf)?;
                self.pace.written_bytes += n;
            } else {
                self.punch(write_at, n)?;
            }
            read_at += n;
            write_at += n;
        }
        Ok(())
    }
}

impl Inner {
    pub(crate) fn copy_source(&self, e: &Entry) -> Result<CopySource> {
        if let Some(info) = self.copies.read().get(e.lsn) {
            return Ok(info.source);
        }
        let mut b = [0; CopySource::BYTES];
        self.read_payload(e.lsn + HEADER_BYTES as u64, &mut b)?;
        CopySource::decode(&b).ok_or_else(|| Error::Damaged {
            path: crate::segment::segment_path(&self.dir, e.lsn / self.segment_bytes),
            detail: format!("LSN {} has no copy source", e.lsn),
        })
    }
}
