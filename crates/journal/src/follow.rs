//! A group in the role of a copy: it takes records as they are instead of making them.
//!
//! Everything else is the engine's own: segments are sealed, runs merged, the window moved and folded, images opened, and after
//! a crash the log is recovered, all by the code that serves production. Three things are different. Its epoch is not raised when it is
//! opened, since every record's comes from the source: what lies beyond the end of its log can only be what will be written there again. It
//! refuses whatever would make a record. And a rewind arrives as a BRANCH record: all up to it is made durable, then the superblock says
//! that production moved, and only then the log goes on, so that recovery finds at most one, the last.
//!
//! Received and durable are two numbers: [`Follower::received`] is the head, in the page cache; [`Follower::durable`] survives power loss.

use std::{
    io::IoSlice,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    append::MAX_SEALING,
    base::{paths_for, Base},
    error::Context,
    files::Files,
    group::{Ground, Group, Inner, Options, Point, Tip, VolumeState},
    index::Entry,
    lineage::{Stay, Timeline},
    maps::Maps,
    record::{BranchPoint, CopySource, Header, Opcode},
    segment::{first_lsn, place},
    ship::{normal, walk, Chunk, Facts},
    superblock::{Rewind, Superblock, VolumeInfo},
    sweep, Bookmark, BookmarkKind, Error, Lsn, Result, BLOCK_BYTES,
};

/// How long to wait for housekeeping before looking again.
const ROOM_WAIT: Duration = Duration::from_millis(200);
/// How long until that is no use: whoever wants to stop the copy waits for it.
const SEALED_WAIT: Duration = Duration::from_secs(20);

/// An open copy.
pub struct Follower {
    group: Group,
    /// The epoch of the newest record.
    epoch: u32,
}

/// How far a chunk could be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// All of it.
    All,
    /// Up to a record that the copy cannot follow: what it refers to lies before the copy's window.
    Stuck(Lsn),
}

impl Follower {
    /// Opens and recovers a copy. Refused while a synchronisation is under way there.
    pub fn open(files: Arc<dyn Files>, dir: &Path, options: &Options) -> Result<Follower> {
        if sweep::under_way(&*files, dir)? {
            return Err(Error::Conflict(format!(
                "the copy in {} is not consistent: its synchronisation is not over; let it finish",
                dir.display()
            )));
        }
        let group = Group::open_as(files, dir, options, true)?;
        Ok(Follower { group, epoch: 0 })
    }

    /// The copy as a group: for its images, points, window and figures.
    pub fn group(&self) -> &Group {
        &self.group
    }

    /// Everything before this has been received.
    pub fn received(&self) -> Lsn {
        normal(self.group.head().lsn, self.group.0.segment_bytes)
    }

    /// Everything before this survives power loss.
    pub fn durable(&self) -> Lsn {
        let durable = self.group.durable_lsn();
        if durable >= self.group.head().lsn {
            return self.received();
        }
        durable
    }

    /// Makes what was received durable.
    pub fn flush(&self) -> Result<Lsn> {
        self.group.flush()?;
        Ok(self.durable())
    }

    /// The bytes before the end of its log, for the source to compare: at most `max_bytes`, of one segment.
    pub fn tail(&self, max_bytes: usize) -> Result<Option<Vec<u8>>> {
        use crate::ship::Feed;
        self.group.tail(self.received(), max_bytes)
    }

    /// The timeline production is on, as far as received.
    pub(crate) fn timeline(&self) -> u32 {
        self.group.0.state.read().history.production()
    }

    /// Volumes of the source that the copy does not have yet.
    pub fn missing_volumes(&self, facts: &Facts) -> Vec<VolumeInfo> {
        let have = self.group.volumes();
        facts.volumes.iter().filter(|v| have.iter().all(|h| h.number != v.number)).cloned().collect()
    }

    /// Makes the base of a volume that came to the source; [`Follower::add_volume`] then adds it.
    pub(crate) fn make_base(&self, info: &VolumeInfo) -> Result<(VolumeInfo, Base)> {
        let i = &self.group.0;
        make_base(&*i.files, &i.dir, info)
    }

    /// Adds a volume whose base holds what it held when it came.
    pub(crate) fn add_volume(&self, info: VolumeInfo, base: Base) -> Result<()> {
        let i = &self.group.0;
        let mut control = i.control.lock();
        if let Some(other) = control.memory.volumes.iter().find(|v| v.name == info.name) {
            return Err(Error::Conflict(format!(
                "volume {} came anew to group {}, but the copy still has number {}, to which records in its window refer: close the copy's images",
                info.name, i.name, other.number
            )));
        }
        i.remember(&mut control, |m| {
            m.next_volume = m.next_volume.max(info.number + 1);
            m.volumes.push(info.clone());
        })?;
        let volume = Arc::new(VolumeState::new(info, Ground::Base(base)));
        let mut state = i.state.write();
        state.volumes.insert(volume.info.number, volume);
        state.resized();
        Ok(())
    }

    /// Removes volumes that the source has removed, unless images are open. For one that a COPY within the window still reads, the window
    /// is shortened first.
    pub fn drop_volumes(&self, facts: &Facts) -> Result<()> {
        // An image may show one; it goes later.
        let held = !self.group.images().is_empty();
        for volume in self.group.volumes().into_iter().filter(|_| !held) {
            if facts.volumes.iter().any(|v| v.number == volume.number) {
                continue;
            }
            let i = &self.group.0;
            if let Err(Error::Conflict(_)) = i.refuse_if_copied(&volume, self.group.head().lsn) {
                i.trim(self.group.head().lsn, &mut |_, _| true)?;
            }
            self.group.drop_volume(&volume.name, true)?;
        }
        Ok(())
    }

    /// Takes a chunk, which begins where the log ends. The facts must have been asked for after it, and its new volumes added.
    pub fn take(&mut self, chunk: &Chunk, facts: &Facts) -> Result<Taken> {
        let inner = Arc::clone(&self.group.0);
        let at = self.received();
        let bad = |why: String| Error::Damaged {
            path: inner.dir.clone(),
            detail: format!("what came for LSN {at} of the copy: {why}"),
        };
        if chunk.lsn != at {
            return Err(bad(format!("it begins at LSN {}", chunk.lsn)));
        }
        let found = walk(&chunk.bytes, at, (inner.seed, inner.segment_bytes, self.epoch))
            .map_err(|why| bad(why.into()))?;
        let (number, _) = place(at, inner.segment_bytes);
        let end =
            if found.ended { first_lsn(number + 1, inner.segment_bytes) } else { at + found.used as u64 };
        if found.used != chunk.bytes.len() || end != chunk.next {
            return Err(bad("it is not made of whole records".into()));
        }
        if let Some(newest) = found.headers.last().map(|h| h.epoch) {
            inner.expect_epoch(newest)?;
            self.epoch = newest;
        }
        inner.be_in_segment(number)?;
        let mut done = 0;
        for (i, header) in found.headers.iter().enumerate() {
            let payload = payload(chunk, header);
            let branch = production_branch(header, payload);
            // The window must not move on between seeing that a rewind can be followed and following it.
            let control = branch.map(|_| inner.control.lock());
            if !inner.can_follow(header, payload, facts) {
                drop(control);
                inner.put_raw(chunk, &found.headers[done..i], header.lsn)?;
                inner.remember_resyncs(&found.headers[..i])?;
                return Ok(Taken::Stuck(header.lsn));
            }
            if let (Some(branch), Some(mut control)) = (branch, control) {
                inner.put_raw(chunk, &found.headers[done..=i], header.end())?;
                inner.move_production(&mut control, header, branch)?;
                done = i + 1;
            }
        }
        let records_end = found.headers.last().map_or(chunk.lsn, Header::end);
        inner.put_raw(chunk, &found.headers[done..], records_end)?;
        if found.ended {
            // The PAD goes with the step to the next segment, so that the head never stands behind one.
            let pad = chunk.bytes.get((records_end - chunk.lsn) as usize..).unwrap_or_default();
            inner.next_segment(number, pad)?;
        }
        inner.remember_resyncs(&found.headers)?;
        Ok(Taken::All)
    }

    /// Brings the bases up to what was received; the window is given up. Images must be closed.
    pub(crate) fn settle(&self) -> Result<Lsn> {
        self.group.settle(&mut |_, _| true)?;
        Ok(self.received())
    }
}

/// Makes a copy production: what was received becomes its journal, and the next opening may write. It must not be open. The source's
/// writable images are not part of a copy.
///
/// Errors: [`Error::Inconsistent`] if a volume was not in step with its production at the copy's newest point; `anyway` promotes it all the
/// same. [`Error::Conflict`], always, while a synchronisation is under way.
pub fn promote(files: Arc<dyn Files>, dir: &Path, anyway: bool) -> Result<()> {
    if sweep::under_way(&*files, dir)? {
        return Err(Error::Conflict(format!(
            "the copy in {} is not consistent: its synchronisation is not over, so it cannot be promoted; let it finish, or choose another copy",
            dir.display()
        )));
    }
    if !Superblock::peek(&*files, dir)?.follows {
        return Ok(());
    }
    if !anyway {
        // Its log says that, and may know more than a superblock that a crash left.
        let options = Options { background: false, ..Options::default() };
        let follower = Follower::open(Arc::clone(&files), dir, &options)?;
        let consistent = follower.group.check_consistent(follower.group.head().lsn);
        follower.group.close()?;
        consistent?;
    }
    let mut superblock = Superblock::open(&*files, dir)?;
    if !superblock.memory.follows {
        return Ok(());
    }
    superblock.update(|m| {
        m.follows = false;
        // Far from any epoch that the old production may still reach: no record of the one passes for one of the other.
        m.epoch = (m.epoch | 0xFFFF).saturating_add(1);
    })?;
    superblock.update(|_| ())
}

fn payload<'a>(chunk: &'a Chunk, header: &Header) -> &'a [u8] {
    let at = (header.payload_lsn() - chunk.lsn) as usize;
    chunk.bytes.get(at..at + header.payload_bytes as usize).unwrap_or_default()
}

fn production_branch(header: &Header, payload: &[u8]) -> Option<BranchPoint> {
    let branch = (header.opcode == Opcode::Branch).then(|| BranchPoint::decode(payload)).flatten();
    branch.filter(|b| b.production)
}

/// A base for a volume of the source: a file of the copy's own, whatever the source's is.
pub(crate) fn make_base(files: &dyn Files, dir: &Path, info: &VolumeInfo) -> Result<(VolumeInfo, Base)> {
    let bytes = info.block_count * BLOCK_BYTES as u64;
    let paths = paths_for(dir, info.number, &info.name, bytes);
    let info = VolumeInfo { base: paths.clone(), adopted: false, ..info.clone() };
    Ok((info, Base::create(files, dir, paths, bytes)?))
}

impl Inner {
    /// Remembers that records of an epoch are coming, before the first is written; else recovery would take them for nobody's.
    fn expect_epoch(&self, epoch: u32) -> Result<()> {
        let mut control = self.control.lock();
        if control.memory.epoch >= epoch {
            return Ok(());
        }
        self.remember(&mut control, |m| m.epoch = epoch)?;
        // Both slots, as when a group is opened.
        self.remember(&mut control, |_| ())?;
        self.log.lock().epoch = epoch;
        Ok(())
    }

    /// Whether what a record refers to is there.
    fn can_follow(&self, header: &Header, payload: &[u8], facts: &Facts) -> bool {
        let state = self.state.read();
        if let Some(branch) = production_branch(header, payload) {
            return branch.at >= state.edge.lsn && state.history.timelines.contains_key(&branch.parent);
        }
        if header.opcode == Opcode::Copy && facts.volumes.iter().any(|v| v.number == header.volume) {
            let source = CopySource::decode(payload);
            return source.is_some_and(|s| state.volumes.contains_key(&s.volume));
        }
        true
    }

    /// Sees to it that segment `number` is the active one.
    fn be_in_segment(&self, number: u64) -> Result<()> {
        let active = self.log.lock().active.number;
        if active < number {
            return self.next_segment(number - 1, &[]);
        }
        Ok(())
    }

    /// Segment `full` takes no more records: `pad` is written behind its last, and the next one is active.
    fn next_segment(&self, full: u64, pad: &[u8]) -> Result<()> {
        self.check_writable()?;
        let mut log = self.log.lock();
        let deadline = Instant::now() + SEALED_WAIT;
        while self.background && (log.preparing || self.state.read().sealing.len() > MAX_SEALING) {
            self.sealer.wake();
            self.room.wait_for(&mut log, ROOM_WAIT);
            self.check_writable()?;
            if Instant::now() >= deadline {
                return Err(Error::NoSpace {
                    group: self.name.clone(),
                    detail: "full segments of the copy do not get their indexes: free space on its disk, or see why it fails"
                        .into(),
                });
            }
        }
        if log.next.is_empty() {
            if let Err(e) = self.make_segment(&mut log) {
                drop(log);
                self.keeper.ask_for_room();
                return Err(e);
            }
        }
        if !pad.is_empty() {
            let file = log.active.file(&*self.files)?;
            let written = file.write_at(&[IoSlice::new(pad)], log.offset).doing("writing", &log.active.path);
            written.inspect_err(|e| self.fail(e))?;
        }
        let Some(next) = log.next.pop_front() else { return Ok(()) };
        log.active = Arc::new(next);
        log.offset = crate::segment::SEGMENT_HEADER_BYTES;
        let mut state = self.state.write();
        state.seal_active(Arc::clone(&log.active));
        state.head.lsn = first_lsn(full + 1, self.segment_bytes);
        drop(state);
        drop(log);
        self.preparer.wake();
        self.keeper.wake();
        Ok(())
    }

    /// Writes records as they came, up to `end`, and enters them.
    fn put_raw(&self, chunk: &Chunk, headers: &[Header], end: Lsn) -> Result<()> {
        let mut log = self.log.lock();
        let at = self.state.read().head.lsn.max(chunk.lsn);
        let from = (at - chunk.lsn) as usize;
        let Some(bytes) = chunk.bytes.get(from..(end - chunk.lsn) as usize).filter(|b| !b.is_empty()) else {
            return Ok(());
        };
        self.check_writable()?;
        let (_, offset) = place(at, self.segment_bytes);
        let file = log.active.file(&*self.files)?;
        file.write_at(&[IoSlice::new(bytes)], offset)
            .doing("writing", &log.active.path)
            .inspect_err(|e| self.fail(e))?;
        log.offset = offset + bytes.len() as u64;
        if let Some(last) = headers.last() {
            log.time_ns = last.time_ns;
        }
        self.counters.records.fetch_add(headers.len() as u64, std::sync::atomic::Ordering::Relaxed);
        self.counters.bytes_written.fetch_add(bytes.len() as u64, std::sync::atomic::Ordering::Relaxed);
        let mut guard = self.state.write();
        let state = &mut *guard;
        for header in headers {
            let e = Entry::from(header);
            // What was written to an image of the source is on a line that a copy does not follow.
            if let (Some(m), Some(tip)) = (e.mapped(), state.tips.get_mut(&e.timeline)) {
                tip.own.insert(e.volume, m);
            }
            match e.opcode {
                Opcode::Copy => state.newest_copy = e.lsn,
                Opcode::Bookmark => state.bookmarks.extend(bookmark(&e, payload(chunk, header))),
                Opcode::ResyncBegin | Opcode::ResyncEnd => state.resyncs.enter(&e, payload(chunk, header)),
                _ => {}
            }
            state.active.push(e);
        }
        state.head = Point { lsn: end, time_ns: log.time_ns };
        Ok(())
    }

    /// Stretches in which volumes are not in step with their production, when they begin and end: in the superblock too, as at the source
    /// ([`crate::resync`]), and there only when the records cannot be lost any more.
    fn remember_resyncs(&self, headers: &[Header]) -> Result<()> {
        if !headers.iter().any(|h| matches!(h.opcode, Opcode::ResyncBegin | Opcode::ResyncEnd)) {
            return Ok(());
        }
        let mut control = self.control.lock();
        self.flush_inline()?;
        let open = self.state.read().resyncs.open_ones();
        self.remember(&mut control, |m| m.resyncing = open)
    }

    /// Production has been rewound by the record just written.
    fn move_production(&self, control: &mut Superblock, header: &Header, branch: BranchPoint) -> Result<()> {
        self.flush_inline()?;
        let mut log = self.log.lock();
        let to = self.point_at_lsn(branch.at)?;
        let lineage = self.state.read().history.lineage(branch.parent, branch.at);
        let view = Arc::new(self.view(lineage)?);
        let at = Point { lsn: header.lsn, time_ns: header.time_ns };
        let rewind = Rewind { at, to, undo_lsn: header.lsn };
        let timeline = Timeline { id: branch.timeline, parent: Some(branch.parent), at: branch.at };
        self.remember(control, |m| {
            m.history.timelines.insert(timeline.id, timeline);
            m.history.next = m.history.next.max(timeline.id + 1);
            m.history.stays.push(Stay { timeline: timeline.id, since: header.lsn });
            m.rewinds.push(rewind);
        })?;
        let mut state = self.state.write();
        state.history = control.memory.history.clone();
        state.rewinds.push(rewind);
        let tip = Tip { own: Maps::new(Arc::clone(&state.sizes)), under: Some(view) };
        state.tips.insert(timeline.id, tip);
        let old = log.production;
        state.tips.remove(&old);
        log.production = timeline.id;
        Ok(())
    }
}

fn bookmark(e: &Entry, payload: &[u8]) -> Option<Bookmark> {
    let (kind, name) = payload.split_first()?;
    Some(Bookmark {
        name: String::from_utf8_lossy(name).into_owned(),
        kind: if *kind == 1 { BookmarkKind::Application } else { BookmarkKind::Crash },
        point: Point { lsn: e.lsn, time_ns: e.time_ns },
    })
}
