//! The append end: drafts become records, in one order, each at its place in the log.
//!
//! Segments that a batch will need are made before its first byte is written, so that a full disk refuses the whole batch and nothing
//! of it is in the log. A failure while writing reserved space is the medium's: the group then takes no more writes.

use std::{
    io::IoSlice,
    sync::{atomic::Ordering, Arc},
    time::{Duration, Instant},
};

use parking_lot::MutexGuard;

use crate::{
    error::Context,
    group::{no_space, Inner, Log, Point, Sealing},
    index::Entry,
    lineage::TimelineId,
    read::CopyInfo,
    record::{record_bytes, CopySource, Header, Opcode, HEADER_BYTES},
    scratch,
    segment::{first_lsn, Segment, SegmentNumber, SEGMENT_HEADER_BYTES},
    Error, Lsn, Result,
};

/// A record to be: everything but its place, time and timeline.
pub(crate) struct Draft<'a> {
    pub(crate) opcode: Opcode,
    pub(crate) volume: u32,
    pub(crate) lba: u64,
    pub(crate) count: u64,
    pub(crate) payload: &'a [u8],
    pub(crate) payload_crc: u32,
}

impl<'a> Draft<'a> {
    pub(crate) fn new(opcode: Opcode, volume: u32, lba: u64, count: u64, payload: &'a [u8]) -> Draft<'a> {
        Draft { opcode, volume, lba, count, payload, payload_crc: crc32c::crc32c(payload) }
    }
}

/// What the page cache reads and writes at once.
const PAGE_BYTES: u64 = 4096;
/// How long a write waits for housekeeping to make room before it is refused.
const ROOM_WAIT: Duration = Duration::from_secs(20);
/// Full segments that may wait for their index before writers wait for the sealer.
pub(crate) const MAX_SEALING: usize = 64;
/// The most room kept for what must not wait for room; in small segments it is a sixteenth.
const MAX_RESERVE_BYTES: u64 = 4 << 20;

impl Inner {
    /// Appends `drafts` on `timeline`; returns the LSN of the first record. The caller holds the log.
    pub(crate) fn append(
        &self,
        log: &mut MutexGuard<'_, Log>,
        timeline: TimelineId,
        drafts: &[Draft<'_>],
    ) -> Result<Lsn> {
        self.check_writable()?;
        self.make_room(log, drafts)?;
        self.put(log, timeline, drafts)
    }

    /// As [`Inner::append`], for what must not wait: it may use the last of the room, which is kept from others, and makes a segment
    /// itself if that is what is missing; else it is refused at once.
    pub(crate) fn append_now(
        &self,
        log: &mut MutexGuard<'_, Log>,
        timeline: TimelineId,
        drafts: &[Draft<'_>],
    ) -> Result<Lsn> {
        self.check_leads()?;
        self.check_writable()?;
        while log.next.len() < self.needed(log, drafts, 0) {
            if log.preparing {
                return Err(Error::NoSpace {
                    group: self.name.clone(),
                    detail: "the next segment is not ready yet: try again".into(),
                });
            }
            self.make_segment(log)?;
        }
        self.put(log, timeline, drafts)
    }

    /// Writes drafts for which there is room.
    fn put(&self, log: &mut MutexGuard<'_, Log>, timeline: TimelineId, drafts: &[Draft<'_>]) -> Result<Lsn> {
        let now = self.files.now_ns();
        let mut first = None;
        let mut entries: Vec<Entry> = Vec::with_capacity(drafts.len());
        let mut rest = drafts;
        let mut written = 0_u64;
        let mut sealed: Vec<(Arc<Segment>, usize)> = Vec::new();
        while !rest.is_empty() {
            let mut offset = log.offset;
            let fits = rest
                .iter()
                .take_while(|d| {
                    offset += record_bytes(d.payload.len()) as u64;
                    offset <= self.segment_bytes
                })
                .count();
            if fits == 0 {
                self.roll(log)?;
                sealed.push((Arc::clone(&log.active), entries.len()));
                continue;
            }
            let (now_fit, later) = rest.split_at(fits);
            let start = log.offset;
            written += self.write(log, timeline, now, now_fit, &mut entries)?;
            first.get_or_insert(log.active.number * self.segment_bytes + start);
            rest = later;
        }
        let end = log.active.number * self.segment_bytes + log.offset;
        self.counters.records.fetch_add(drafts.len() as u64, Ordering::Relaxed);
        self.counters.bytes_written.fetch_add(written, Ordering::Relaxed);
        self.publish(&entries, &sealed, Point { lsn: end, time_ns: log.time_ns });
        if !sealed.is_empty() {
            self.preparer.wake();
            self.sealer.wake();
            self.keeper.wake();
        }
        Ok(first.unwrap_or(end))
    }

    fn write(
        &self,
        log: &mut Log,
        timeline: TimelineId,
        now_ns: u64,
        drafts: &[Draft<'_>],
        entries: &mut Vec<Entry>,
    ) -> Result<u64> {
        let base = log.active.number * self.segment_bytes;
        let mut offset = log.offset;
        let mut headers: Vec<[u8; HEADER_BYTES]> = Vec::with_capacity(drafts.len());
        for d in drafts {
            log.time_ns = now_ns.max(log.time_ns + 1);
            let header = Header {
                opcode: d.opcode,
                lsn: base + offset,
                time_ns: log.time_ns,
                epoch: log.epoch,
                timeline,
                volume: d.volume,
                lba: d.lba,
                count: d.count,
                payload_bytes: d.payload.len() as u32,
                payload_crc: d.payload_crc,
            };
            headers.push(header.encode(self.seed));
            entries.push(Entry::from(&header));
            if let (Opcode::Copy, Some(source)) = (d.opcode, CopySource::decode(d.payload)) {
                // Whoever reads the copy need not read the record.
                self.copies.write().put(header.lsn, CopyInfo { timeline, lba: d.lba, source });
            }
            offset += record_bytes(d.payload.len()) as u64;
        }
        let mut slices: Vec<IoSlice<'_>> = Vec::with_capacity(drafts.len() * 2);
        for (header, d) in headers.iter().zip(drafts) {
            slices.push(IoSlice::new(header));
            if !d.payload.is_empty() {
                slices.push(IoSlice::new(d.payload));
            }
            let padding = record_bytes(d.payload.len()) - HEADER_BYTES - d.payload.len();
            if padding > 0 {
                slices.push(IoSlice::new(&[0; 8][..padding]));
            }
        }
        // Zeros up to the end of the page: a page that is written whole need not be read first, when the segment is one that is written
        // over. The next records take their place.
        let zeros = [0; PAGE_BYTES as usize];
        let rest = offset.next_multiple_of(PAGE_BYTES).min(self.segment_bytes) - offset;
        slices.push(IoSlice::new(&zeros[..rest as usize]));
        let file = log.active.file(&*self.files)?;
        file.write_at(&slices, log.offset)
            .doing("writing", &log.active.path)
            .inspect_err(|e| self.fail(e))?;
        let written = offset - log.offset;
        log.offset = offset;
        Ok(written)
    }

    /// Goes on to the next segment, which [`Inner::make_room`] has made sure of.
    fn roll(&self, log: &mut Log) -> Result<()> {
        if self.segment_bytes - log.offset >= HEADER_BYTES as u64 {
            let pad = Header {
                opcode: Opcode::Pad,
                lsn: log.active.number * self.segment_bytes + log.offset,
                time_ns: log.time_ns,
                epoch: log.epoch,
                timeline: 0,
                volume: crate::record::NO_VOLUME,
                lba: 0,
                count: 0,
                payload_bytes: 0,
                payload_crc: 0,
            };
            log.active
                .file(&*self.files)?
                .write_at(&[IoSlice::new(&pad.encode(self.seed))], log.offset)
                .doing("writing", &log.active.path)
                .inspect_err(|e| self.fail(e))?;
        }
        let next = log.next.pop_front().ok_or_else(|| Error::NoSpace {
            group: self.name.clone(),
            detail: "no segment is ready".into(),
        })?;
        log.active = Arc::new(next);
        log.offset = SEGMENT_HEADER_BYTES;
        Ok(())
    }

    /// Enters new records, of which `sealed` says where segments began, in the tables.
    fn publish(&self, entries: &[Entry], sealed: &[(Arc<Segment>, usize)], head: Point) {
        let mut guard = self.state.write();
        let state = &mut *guard;
        let mut done = 0;
        for (segment, until) in sealed {
            state.active.extend_from_slice(&entries[done..*until]);
            done = *until;
            state.seal_active(Arc::clone(segment));
        }
        state.active.extend_from_slice(&entries[done..]);
        for e in entries {
            if let Some(m) = e.mapped() {
                match state.tips.get_mut(&e.timeline) {
                    Some(tip) => tip.own.insert(e.volume, m),
                    None => log::error!(
                        "group {}: LSN {} was written on timeline {}, which takes no writes",
                        self.name,
                        e.lsn,
                        e.timeline
                    ),
                }
            }
            if e.opcode == Opcode::Copy {
                state.newest_copy = e.lsn;
            }
        }
        state.head = head;
    }

    /// How many segments must be ready for `drafts`, with `rest` bytes left behind them.
    fn needed(&self, log: &Log, drafts: &[Draft<'_>], rest: u64) -> usize {
        let mut offset = log.offset;
        let mut needed = 0;
        for bytes in drafts.iter().map(|d| record_bytes(d.payload.len()) as u64).chain([rest]) {
            if offset + bytes > self.segment_bytes {
                needed += 1;
                offset = SEGMENT_HEADER_BYTES;
            }
            offset += bytes;
        }
        needed
    }

    /// Whether `drafts` could be appended at once.
    pub(crate) fn fits(&self, log: &Log, drafts: &[Draft<'_>]) -> bool {
        log.next.len() >= self.needed(log, drafts, self.reserve_bytes())
    }

    /// Room that only [`Inner::append_now`] may use: for some thousand comparing writes of a block.
    fn reserve_bytes(&self) -> u64 {
        MAX_RESERVE_BYTES.min(self.segment_bytes / 16)
    }

    /// Makes the segment behind those that are ready, of a spare one if there is any. The preparer must not be at it.
    pub(crate) fn make_segment(&self, log: &mut Log) -> Result<()> {
        let number = log.active.number + 1 + log.next.len() as u64;
        log.next.push_back(self.new_segment(number, false)?);
        Ok(())
    }

    /// A segment that nobody has, of a spare one if there is any. A new one is written through if that is asked for, and wanted.
    fn new_segment(&self, number: SegmentNumber, write_through: bool) -> Result<Segment> {
        let (files, dir, bytes) = (&*self.files, &self.dir, self.segment_bytes);
        loop {
            let spare = self.spare.lock().pop();
            let Some(spare) = spare else { break };
            let path = spare.path.clone();
            match spare.recycle(files, dir, self.id, number, bytes) {
                Ok(segment) => return Ok(segment),
                Err(e) => {
                    log::info!("group {}: a spare segment is of no use: {e}", self.name);
                    let _ = files.remove(&path);
                }
            }
        }
        self.check_share()?;
        let made = Segment::create(files, dir, self.id, number, bytes).and_then(|segment| {
            if write_through && self.policy.lock().reserve_bytes > 0 {
                segment.write_through(files, bytes).inspect_err(|_| {
                    let _ = files.remove(&segment.path);
                })?;
            }
            Ok(segment)
        });
        made.map_err(|e| no_space(&self.name, e))
    }

    /// Sees to it that enough segments are ready for `drafts`; refuses if there is no space for them. It may let go of the log while
    /// it waits for room, but never once it has found what it needs: what the caller then sees of the group stays so.
    pub(crate) fn make_room(&self, log: &mut MutexGuard<'_, Log>, drafts: &[Draft<'_>]) -> Result<()> {
        self.check_leads()?;
        let deadline = Instant::now() + ROOM_WAIT;
        loop {
            self.check_writable()?;
            let needed = self.needed(log, drafts, self.reserve_bytes());
            if needed == 0 {
                return Ok(());
            }
            let crowded = self.background && self.state.read().sealing.len() > MAX_SEALING;
            if log.next.len() >= needed && !crowded {
                return Ok(());
            }
            if crowded {
                self.sealer.wake();
            } else if !log.preparing {
                match self.make_segment(log) {
                    Ok(()) => continue,
                    Err(e @ Error::NoSpace { .. }) if self.background => {
                        if Instant::now() >= deadline || !self.keeper.ask_for_room() {
                            return Err(e);
                        }
                    }
                    Err(e) => return Err(e),
                }
            }
            let timed_out = self.room.wait_until(log, deadline).timed_out();
            if timed_out && crowded {
                return Err(Error::Failed {
                    group: self.name.clone(),
                    cause:
                        "sealing full segments does not keep up: the medium is too slow for what is written"
                            .into(),
                });
            }
        }
    }

    /// Refuses to make a segment where the rest of the disk is another's.
    fn check_share(&self) -> Result<()> {
        if !self.over_image {
            return Ok(());
        }
        scratch::check_space(&*self.files, &self.dir, &self.name, self.segment_bytes)
    }

    /// Makes a segment ahead of need, if one is wanted; what the preparer's thread does. Writing it through takes a while, and whoever
    /// needs a segment meanwhile waits. Returns whether another may be wanted.
    pub(crate) fn prepare(&self, write_through: bool) -> bool {
        let wanted = self.ready_wanted();
        let number = {
            let mut log = self.log.lock();
            if log.next.len() >= wanted || log.preparing {
                return false;
            }
            // From here on nobody else makes segments, so the file is ours alone.
            log.preparing = true;
            log.active.number + 1 + log.next.len() as u64
        };
        let made = self.new_segment(number, write_through);
        let mut log = self.log.lock();
        log.preparing = false;
        let ok = made.is_ok();
        match made {
            Ok(segment) => log.next.push_back(segment),
            Err(e) => {
                log::warn!("group {}: the next segment cannot be made ahead: {e}", self.name);
                // Only a full medium is helped by giving up history; any other failure must not cost any.
                if log.next.is_empty() && matches!(e, Error::NoSpace { .. }) {
                    self.keeper.ask_for_room();
                }
            }
        }
        self.room.notify_all();
        ok
    }
}

impl crate::group::State {
    /// The active segment is full: its records wait for the sealer; `next` is active now.
    pub(crate) fn seal_active(&mut self, next: Arc<Segment>) {
        let entries = std::mem::take(&mut self.active);
        if let Some((_, segment)) = self.segments.last_key_value() {
            self.sealing.push_back(Sealing::new(Arc::clone(segment), entries));
        }
        self.segments.insert(next.number, next);
    }
}

/// First LSN of the segment after `number`.
pub(crate) fn next_segment_lsn(number: u64, segment_bytes: u64) -> Lsn {
    first_lsn(number + 1, segment_bytes)
}
