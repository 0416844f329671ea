//! Folding: what leaves the window goes to the bases, the last version of each block only, and its segments go.
//!
//! Crash-safe at every step:
//! - All of the log up to the new edge is made durable.
//! - The new edge is made durable in the superblock: points below it are given up from here on.
//! - Step by step the bases are written and synced, each step recorded in the superblock as `folded`.
//! - Segments, indexes and runs below `folded` are removed.
//!
//! A crash after the edge has moved finds `folded < edge` and repeats the step that was under way, with the same result: the log still
//! has every version of it.
//!
//! A COPY reads its source from the base, as of itself. That is exact because a step ends before a COPY whose source the step has
//! changed, and before a change of what a COPY of the step has as its source.

use std::sync::Arc;

use crate::{
    extents::{Kind, Loc, Mapped},
    group::{Group, Inner, Point, VolumeState},
    index::Entry,
    lineage::{contains, Lineage},
    maps::Maps,
    record::{CopySource, Opcode, HEADER_BYTES},
    scan::{Found, Scan},
    segment::{first_lsn, place, Segment, SegmentNumber},
    Error, Lsn, Result, BLOCK_BYTES,
};

/// Told of bytes done and bytes in all; `false` cancels between two steps.
pub(crate) type Progress<'a> = &'a mut dyn FnMut(u64, u64) -> bool;

/// Records in one step at most, so that a step's memory and its repetition after a crash stay small.
const STEP_RECORDS: usize = 1 << 19;
/// Bytes written to a base at once at most.
const WRITE_BYTES: usize = 1 << 20;

impl Group {
    /// Moves the trailing edge to the segment that holds `lsn`, or as near as images and undoable rewinds allow. Returns the new edge.
    pub fn trim_to(&self, lsn: Lsn) -> Result<Point> {
        let i = &self.0;
        i.check_writable()?;
        let head = self.head().lsn;
        if lsn > head {
            return Err(Error::OutsideWindow {
                group: i.name.clone(),
                lsn,
                edge: self.window().edge.lsn,
                head,
            });
        }
        i.seal_all()?;
        let (number, _) = place(lsn, i.segment_bytes);
        i.trim(first_lsn(number, i.segment_bytes), &mut |_, _| true)
    }

    /// Brings the bases up to the head, so that the plain files alone are the current data. The window's past is given up. `progress` is
    /// told bytes of log done and in all, and cancels with `false`.
    pub fn settle(&self, progress: &mut dyn FnMut(u64, u64) -> bool) -> Result<()> {
        let i = &self.0;
        i.check_writable()?;
        if let Some(image) = i.state.read().images.keys().next() {
            return Err(Error::Conflict(format!(
                "group {} has open images such as {image}, which settling would destroy: close them first",
                i.name
            )));
        }
        let head = self.head().lsn;
        let mut cancelled = false;
        let edge = i.trim(head, &mut |done, total| {
            let go_on = progress(done, total);
            cancelled |= !go_on;
            go_on
        })?;
        if edge.lsn < head {
            return Err(Error::Conflict(format!(
                "settling group {} stopped at LSN {} before {head}: an image was opened meanwhile; close it and settle again",
                i.name, edge.lsn
            )));
        }
        if cancelled {
            return Err(Error::Conflict(format!(
                "settling group {} was cancelled: what was folded stays folded; settle again to go on",
                i.name
            )));
        }
        Ok(())
    }
}

impl Inner {
    /// Moves the edge to `target` or as near before it as it may rest, and folds up to there. Returns the edge.
    pub(crate) fn trim(&self, target: Lsn, progress: Progress<'_>) -> Result<Point> {
        let _folding = self.folding.lock();
        self.check_writable()?;
        let edge = {
            let mut control = self.control.lock();
            let (pinned, head, edge) = {
                let state = self.state.read();
                let pinned: Vec<Lineage> = state
                    .images
                    .values()
                    .map(|image| {
                        let at = if image.entry.writable { Lsn::MAX } else { image.entry.point.lsn };
                        state.history.lineage(image.entry.timeline, at)
                    })
                    .collect();
                (pinned, state.head, state.edge)
            };
            let target = control.memory.history.edge_up_to(target.min(head.lsn), &pinned);
            if target > edge.lsn {
                let point = self.edge_point(target, head)?;
                self.note_leaving(edge.lsn, point.lsn, &control.memory.history)?;
                self.flush_inline()?;
                self.remember(&mut control, |m| {
                    m.edge = point;
                    m.durable_lsn = m.durable_lsn.max(point.lsn);
                    m.rewinds.retain(|r| r.undo_lsn >= point.lsn);
                })?;
                let mut state = self.state.write();
                state.edge = point;
                state.rewinds.retain(|r| r.undo_lsn >= point.lsn);
                state.bookmarks.retain(|b| b.point.lsn >= point.lsn);
                point
            } else {
                edge
            }
        };
        self.fold(edge.lsn, progress)?;
        Ok(edge)
    }

    fn edge_point(&self, lsn: Lsn, head: Point) -> Result<Point> {
        if lsn == head.lsn {
            return Ok(head);
        }
        let (number, _) = place(lsn, self.segment_bytes);
        let entries = self.entries_of(number)?;
        let before = entries.iter().take_while(|e| e.lsn < lsn).last().map(|e| e.time_ns);
        let time_ns = match before {
            Some(time_ns) => time_ns,
            None if number > 0 => {
                self.entries_of(number - 1).ok().and_then(|e| e.last().map(|e| e.time_ns)).unwrap_or(0)
            }
            None => 0,
        };
        let old = self.state.read().edge.time_ns;
        Ok(Point { lsn, time_ns: time_ns.max(old) })
    }

    /// Folds up to `edge`, which is durable in the superblock. The caller holds `folding`.
    pub(crate) fn fold(&self, edge: Lsn, progress: Progress<'_>) -> Result<()> {
        let start = self.state.read().folded;
        if start >= edge {
            return Ok(());
        }
        loop {
            let folded = self.state.read().folded;
            if folded >= edge {
                break;
            }
            if !progress(folded - start, edge - start) {
                return Ok(());
            }
            let next = self.fold_step(folded, edge)?;
            let mut control = self.control.lock();
            let images: Vec<Lineage> = self.image_lineages();
            self.remember(&mut control, |m| {
                m.folded = next;
                if next == m.edge.lsn {
                    m.history.forget_before(next, &images);
                }
            })?;
            let mut state = self.state.write();
            state.folded = next;
            state.history = control.memory.history.clone();
            drop(state);
            drop(control);
            self.remove_below(next);
        }
        progress(edge - start, edge - start);
        self.forget_below(edge);
        Ok(())
    }

    fn image_lineages(&self) -> Vec<Lineage> {
        let state = self.state.read();
        state
            .images
            .values()
            .map(|image| {
                let at = if image.entry.writable { Lsn::MAX } else { image.entry.point.lsn };
                state.history.lineage(image.entry.timeline, at)
            })
            .collect()
    }

    /// Writes to the bases what production's lineage has from `folded` on, as far as one step goes. Returns how far that was.
    fn fold_step(&self, folded: Lsn, edge: Lsn) -> Result<Lsn> {
        let (lineage, sizes, volumes) = {
            let state = self.state.read();
            (state.history.current(), Arc::clone(&state.sizes), state.volumes.clone())
        };
        let mut writes = Maps::new(Arc::clone(&sizes));
        let mut sources = Maps::new(sizes);
        let mut records = 0;
        let mut end = edge;
        let (mut number, _) = place(folded, self.segment_bytes);
        'segments: while first_lsn(number, self.segment_bytes) < edge {
            self.check_segment(number, edge)?;
            for e in self.entries_of(number)?.iter() {
                if e.lsn < folded || !contains(&lineage, e.timeline, e.lsn) {
                    continue;
                }
                if e.lsn >= edge {
                    break 'segments;
                }
                let Some(m) = e.mapped() else { continue };
                if !volumes.contains_key(&e.volume) {
                    continue;
                }
                if sources.touches(e.volume, e.lba, e.count) {
                    end = e.lsn;
                    break 'segments;
                }
                if e.opcode == Opcode::Copy {
                    let source = self.copy_source(e)?;
                    if writes.touches(source.volume, source.lba, e.count) {
                        end = e.lsn;
                        break 'segments;
                    }
                    let loc = Loc::new(Kind::Zero, e.lsn);
                    sources.insert(source.volume, Mapped { lba: source.lba, count: e.count, loc });
                }
                writes.insert(e.volume, m);
                records += 1;
            }
            number += 1;
            if records >= STEP_RECORDS {
                end = first_lsn(number, self.segment_bytes).min(edge);
                break;
            }
        }
        for (number, map) in writes.volumes() {
            let Some(volume) = volumes.get(&number) else { continue };
            let mut writer = BaseWriter { inner: self, volume, at: 0, buf: Vec::new(), failed: None };
            map.for_each(&mut |m| writer.put(m, &volumes));
            writer.finish()?;
            volume.base.sync()?;
        }
        Ok(end)
    }

    /// Checks the CRCs of a segment's records before they go to the bases: after that the log's copy is gone, and with it the proof.
    fn check_segment(&self, number: SegmentNumber, edge: Lsn) -> Result<()> {
        let segment: Option<Arc<Segment>> = self.state.read().segments.get(&number).cloned();
        let Some(segment) = segment else { return Ok(()) };
        let entries = self.entries_of(number)?;
        let file = (Arc::clone(segment.file(&*self.files)?), segment.path.clone());
        let mut scan = Scan::new(file, number, self.segment_bytes, self.seed, (0, u32::MAX));
        for e in entries.iter().take_while(|e| e.lsn < edge) {
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

    pub(crate) fn copy_source(&self, e: &Entry) -> Result<CopySource> {
        let mut b = [0; CopySource::BYTES];
        self.read_payload(e.lsn + HEADER_BYTES as u64, &mut b)?;
        CopySource::decode(&b).ok_or_else(|| Error::Damaged {
            path: crate::segment::segment_path(&self.dir, e.lsn / self.segment_bytes),
            detail: format!("LSN {} has no copy source", e.lsn),
        })
    }

    /// Bytes of the log that are certainly there (folding only: nobody else removes segments).
    pub(crate) fn read_payload(&self, lsn: Lsn, buf: &mut [u8]) -> Result<()> {
        use crate::error::Context;
        let (number, offset) = place(lsn, self.segment_bytes);
        let segment: Option<Arc<Segment>> = self.state.read().segments.get(&number).cloned();
        let segment = segment.ok_or_else(|| Error::Damaged {
            path: crate::segment::segment_path(&self.dir, number),
            detail: "the segment is missing".into(),
        })?;
        segment.file(&*self.files)?.read_at(buf, offset).doing("reading", &segment.path)
    }

    /// Removes segments, indexes and runs that lie wholly below `folded`.
    fn remove_below(&self, folded: Lsn) {
        let (first, _) = place(folded, self.segment_bytes);
        let mut gone: Vec<std::path::PathBuf> = Vec::new();
        let mut retired: Vec<Arc<Segment>> = Vec::new();
        {
            let mut state = self.state.write();
            let active = state.active_number().unwrap_or(first);
            let first: SegmentNumber = first.min(active);
            let kept = state.segments.split_off(&first);
            let old = std::mem::replace(&mut state.segments, kept);
            retired.extend(old.into_values());
            let kept = state.indexes.split_off(&first);
            let old = std::mem::replace(&mut state.indexes, kept);
            gone.extend(old.into_keys().map(|n| crate::index::index_path(&self.dir, n)));
            while state.sealing.front().is_some_and(|s| s.segment.number < first) {
                state.sealing.pop_front();
            }
            let known: Vec<u32> = state.history.timelines.keys().copied().collect();
            for (timeline, cover) in &mut state.covers {
                let runs = if known.contains(timeline) { cover.forget_before(first) } else { cover.clear() };
                gone.extend(runs.into_iter().map(|r| r.path.clone()));
            }
            state.covers.retain(|_, cover| !cover.is_empty());
        }
        let wanted = if self.policy.lock().reserve_bytes > 0 { self.ready_wanted() } else { 0 };
        let mut spare = self.spare.lock();
        for segment in retired {
            // A segment that some reader still holds must not be written over.
            match Arc::try_unwrap(segment) {
                Ok(segment) if spare.len() < wanted => spare.push(segment),
                Ok(segment) => gone.push(segment.path),
                Err(segment) => gone.push(segment.path.clone()),
            }
        }
        drop(spare);
        self.preparer.wake();
        for path in gone {
            // Left-overs are removed when the group is opened.
            let _ = self.files.remove(&path);
        }
    }

    /// Gives back the memory of versions that are in the bases now, a part at a time.
    fn forget_below(&self, edge: Lsn) {
        let timelines: Vec<u32> = self.state.read().tips.keys().copied().collect();
        for timeline in timelines {
            let mut at = None;
            loop {
                let mut state = self.state.write();
                let Some(tip) = state.tips.get_mut(&timeline) else { break };
                at = tip.own.forget_before(edge, at);
                if at.is_none() {
                    break;
                }
            }
        }
        self.copies.write().forget_before(edge);
        self.rows.lock().forget_before(place(edge, self.segment_bytes).0);
    }
}

/// Writes extents to a base in block order, joining neighbours.
struct BaseWriter<'a> {
    inner: &'a Inner,
    volume: &'a VolumeState,
    /// Byte at which `buf` goes.
    at: u64,
    buf: Vec<u8>,
    failed: Option<Error>,
}

impl BaseWriter<'_> {
    fn put(&mut self, m: Mapped, volumes: &std::collections::BTreeMap<u32, Arc<VolumeState>>) {
        if self.failed.is_some() {
            return;
        }
        let outcome = match m.loc.kind() {
            Kind::Data => self.data(m),
            Kind::Pattern => self.pattern(m),
            Kind::Zero | Kind::Unmapped => {
                let block = BLOCK_BYTES as u64;
                self.flush().and_then(|()| self.volume.base.punch(m.lba * block, m.count * block))
            }
            Kind::Copy => self.flush().and_then(|()| self.copy(m, volumes)),
        };
        if let Err(e) = outcome {
            self.failed = Some(e);
        }
    }

    fn finish(mut self) -> Result<()> {
        match self.failed.take() {
            Some(e) => Err(e),
            None => self.flush(),
        }
    }

    fn flush(&mut self) -> Result<()> {
        if !self.buf.is_empty() {
            self.volume.base.write(self.at, &self.buf)?;
            self.at += self.buf.len() as u64;
            self.buf.clear();
        }
        Ok(())
    }

    /// The place in the buffer for up to `want` bytes at byte `offset` of the volume.
    fn room(&mut self, offset: u64, want: u64) -> Result<&mut [u8]> {
        // A terabyte of one pattern may be under way: whoever stops the group should not wait for it. The step is repeated.
        self.inner.check_open()?;
        if self.buf.len() >= WRITE_BYTES || self.at + self.buf.len() as u64 != offset {
            self.flush()?;
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
            self.flush()?;
            return self.volume.base.punch(m.lba * BLOCK_BYTES as u64, m.count * BLOCK_BYTES as u64);
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

    fn copy(&mut self, m: Mapped, volumes: &std::collections::BTreeMap<u32, Arc<VolumeState>>) -> Result<()> {
        let mut b = [0; HEADER_BYTES + CopySource::BYTES];
        self.inner.read_payload(m.loc.lsn(), &mut b)?;
        let mut header = [0; HEADER_BYTES];
        header.copy_from_slice(&b[..HEADER_BYTES]);
        let damaged = |detail: &str| Error::Damaged {
            path: crate::segment::segment_path(&self.inner.dir, m.loc.lsn() / self.inner.segment_bytes),
            detail: format!("LSN {}: {detail}", m.loc.lsn()),
        };
        let header = crate::record::Header::decode(&header, self.inner.seed).map_err(damaged)?;
        let source =
            CopySource::decode(&b[HEADER_BYTES..]).ok_or_else(|| damaged("it has no copy source"))?;
        let from = volumes
            .get(&source.volume)
            .ok_or_else(|| Error::Gone(format!("the source volume of a copy at LSN {}", header.lsn)))?;
        let block = BLOCK_BYTES as u64;
        let mut read_at = (source.lba + (m.lba - header.lba)) * block;
        let mut write_at = m.lba * block;
        let end = write_at + m.count * block;
        let mut buf = vec![0; WRITE_BYTES];
        while write_at < end {
            self.inner.check_open()?;
            let (data, bytes) = from.base.data_at(read_at, end - write_at)?;
            let n = if data { bytes.min(WRITE_BYTES as u64) } else { bytes };
            if data {
                let buf = &mut buf[..n as usize];
                from.base.read(read_at, buf)?;
                self.volume.base.write(write_at, buf)?;
            } else {
                self.volume.base.punch(write_at, n)?;
            }
            read_at += n;
            write_at += n;
        }
        Ok(())
    }
}
