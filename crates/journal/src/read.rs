//! Reading: from "which blocks" to bytes.
//!
//! A lookup and the segments it names are taken under one read lock; the bytes are read after it. That is safe because what a lookup
//! finds in the log stays readable (the segment is held), and because the base is changed only below the trailing edge, in blocks for
//! which no reader's answer differs. The one exception is a block that is a copy, or is read as of a moment: its answer holds only while
//! the bases have not been folded beyond the record, or the moment; so this is checked after the bytes have been read.
//!
//! A copy is its source as of its own record. Most of that is what the same line of history has now, which one lookup tells: a version
//! older than the record was there already. Only what has been changed since is looked for in the past ([`crate::asof`]). Copies of
//! copies are followed in a loop, each step to an older record.

use std::{collections::HashMap, sync::Arc};

use parking_lot::MutexGuard;

use crate::{
    error::Context,
    extents::{Kind, Loc},
    group::{Ground, Inner, Log, State, VolumeState},
    image::ImageState,
    lineage::{agree, TimelineId},
    record::{self, CopySource, Header, Opcode},
    segment::{place, Segment},
    view::{search, Gaps, Piece, Pieces, View},
    volume::Volume,
    Error, Lsn, Result, BLOCK_BYTES,
};

/// The line of history that a volume is read from.
#[derive(Clone)]
pub(crate) enum Line {
    /// Wherever production is.
    Production,
    /// An image.
    Image(Arc<ImageState>),
    /// A line as it was at one moment.
    Past(Arc<Past>),
}

/// A moment of a line that takes writes.
pub(crate) struct Past {
    /// Where it was taken.
    pub(crate) of: Line,
    pub(crate) timeline: TimelineId,
    pub(crate) lsn: Lsn,
}

impl Line {
    pub(crate) fn is(&self, other: &Line) -> bool {
        match (self, other) {
            (Line::Production, Line::Production) => true,
            (Line::Image(a), Line::Image(b)) => Arc::ptr_eq(a, b),
            (Line::Past(a), Line::Past(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }

    /// The point beyond which no fold may have gone for its blocks to be read.
    fn pinned(&self) -> Lsn {
        match self {
            Line::Past(past) => past.lsn,
            _ => Lsn::MAX,
        }
    }
}

/// Where one read looks things up: found out once, so that a rewind cannot come between its parts.
#[derive(Clone)]
pub(crate) enum Sight {
    /// A line that takes writes, as it is.
    Tip(TimelineId),
    /// A view.
    View(Arc<View>),
    /// A timeline as of a point; over a tip that shows the same but for what is newer, if there is one.
    Past { tip: Option<TimelineId>, timeline: TimelineId, lsn: Lsn },
}

/// What a COPY record says.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CopyInfo {
    pub(crate) timeline: TimelineId,
    /// The first block it changes.
    pub(crate) lba: u64,
    pub(crate) source: CopySource,
}

/// COPY records whose saying is kept, so that reading a clone reads no records: 4 MiB.
const KEPT_COPIES: usize = 1 << 16;

/// What COPY records say, by LSN.
#[derive(Default)]
pub(crate) struct CopyCache(HashMap<Lsn, CopyInfo>);

impl CopyCache {
    pub(crate) fn get(&self, lsn: Lsn) -> Option<CopyInfo> {
        self.0.get(&lsn).copied()
    }

    pub(crate) fn put(&mut self, lsn: Lsn, info: CopyInfo) {
        if self.0.len() >= KEPT_COPIES {
            // Rarely, and what is needed comes back at the price of one read each.
            self.0.clear();
        }
        self.0.insert(lsn, info);
    }

    pub(crate) fn forget_before(&mut self, edge: Lsn) {
        self.0.retain(|lsn, _| *lsn >= edge);
    }
}

/// A piece and, if it is in the log, the segment that holds it.
pub(crate) struct Found {
    pub(crate) piece: Piece,
    segment: Option<Arc<Segment>>,
}

/// What one lookup found; most find one piece.
pub(crate) type FoundList = smallvec::SmallVec<[Found; 4]>;

/// A part of a request that has been found, or is a copy and still to be followed.
pub(crate) struct Todo {
    pub(crate) volume: Arc<VolumeState>,
    pub(crate) found: Found,
    /// Blocks from the request's start.
    pub(crate) at: u64,
}

/// Where a read found its blocks. As long as that is where they are, they are the same.
#[derive(Default, PartialEq, Eq)]
struct Seen {
    pieces: Vec<Piece>,
    /// How far the bases had come, if any block was read from one: between two folds the base of such a block stays as it is.
    folded: Option<Lsn>,
}

impl Seen {
    fn of(found: &FoundList, folded: Lsn) -> Seen {
        let mut pieces: Vec<Piece> = found.iter().map(|f| f.piece).collect();
        pieces.sort_unstable_by_key(|p| p.lba);
        let based = pieces.iter().any(|p| p.loc.is_none());
        Seen { pieces, folded: based.then_some(folded) }
    }
}

/// Folding can overtake a read of a copy; it moves in large steps, so a few attempts are many.
const ATTEMPTS: usize = 64;
/// How often a read that is to hold the log looks without it first.
const LOOKS: usize = 8;

impl Volume {
    /// Reads `buf.len() / 512` blocks from `lba`; `buf.len()` is a multiple of 512.
    pub fn read(&self, lba: u64, buf: &mut [u8]) -> Result<()> {
        self.check(lba, (buf.len() / BLOCK_BYTES) as u64)?;
        if buf.len() % BLOCK_BYTES != 0 {
            return Err(Error::Invalid(format!("{} bytes are not whole blocks", buf.len())));
        }
        if buf.is_empty() {
            return Ok(());
        }
        self.read_seen(lba, buf, None)
    }

    /// As [`Volume::read`], and tells where it found the blocks, if asked.
    fn read_seen(&self, lba: u64, buf: &mut [u8], mut seen: Option<&mut Seen>) -> Result<()> {
        for _ in 0..ATTEMPTS {
            let folded = self.group.0.state.read().folded;
            match self.read_once(lba, buf, folded, seen.as_deref_mut()) {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                // What a fold took away meanwhile (a segment or a run whose file had not been opened yet) is in the bases now.
                Err(_) if self.group.0.state.read().folded > folded => {}
                Err(e) => return Err(e),
            }
        }
        Err(self.overtaken())
    }

    /// `false` if a fold, which had come to `folded` before, has overtaken it.
    fn read_once(&self, lba: u64, buf: &mut [u8], folded: Lsn, seen: Option<&mut Seen>) -> Result<bool> {
        let inner = &self.group.0;
        let (found, sight) = self.look(lba, (buf.len() / BLOCK_BYTES) as u64)?;
        if let Some(seen) = seen {
            *seen = Seen::of(&found, folded);
        }
        let mut copies: Vec<Todo> = Vec::new();
        for f in found {
            let at = f.piece.lba - lba;
            if f.is_copy() {
                copies.push(Todo { volume: Arc::clone(&self.volume), found: f, at });
            } else {
                inner.fill(&self.volume, &f, at, buf)?;
            }
        }
        let fill = &mut |t: Todo| inner.fill(&t.volume, &t.found, t.at, buf);
        if !copies.is_empty() && inner.follow(&sight, copies, fill)? < inner.state.read().folded {
            return Ok(false);
        }
        // An image closed meanwhile no longer holds the edge, so what was read may not be its own; nor may what a fold has come by be a
        // moment's.
        self.check_unfolded()?;
        self.check_present()?;
        Ok(true)
    }

    /// Reads, and returns with the log held, so that nobody changes what was read; but without doing there what can take long: files are
    /// read, and chains of copies followed, before; with the log held it is only seen that all is still where it was found.
    /// `lock` takes the log.
    pub(crate) fn read_held<'a>(
        &'a self,
        lba: u64,
        buf: &mut [u8],
        lock: impl Fn() -> Result<MutexGuard<'a, Log>>,
    ) -> Result<MutexGuard<'a, Log>> {
        let count = (buf.len() / BLOCK_BYTES) as u64;
        for _ in 0..LOOKS {
            let mut seen = Seen::default();
            self.read_seen(lba, buf, Some(&mut seen))?;
            let log = lock()?;
            let (found, _) = self.look(lba, count)?;
            // Asked for afterwards, as it was asked for beforehand then: so no fold has come to its end in between.
            let folded = self.group.0.state.read().folded;
            if Seen::of(&found, folded) == seen {
                return Ok(log);
            }
        }
        // Others change these blocks all the time. Now they cannot.
        let log = lock()?;
        self.read(lba, buf)?;
        Ok(log)
    }

    pub(crate) fn overtaken(&self) -> Error {
        Error::Conflict(format!(
            "volume {} is being folded faster than it can be read: try again",
            self.volume.info.name
        ))
    }

    /// Refuses if the bases have been folded beyond the moment that is read.
    pub(crate) fn check_unfolded(&self) -> Result<()> {
        if matches!(self.line, Line::Past(_)) && self.group.0.state.read().folded > self.line.pinned() {
            return Err(self.moment_gone());
        }
        Ok(())
    }

    /// Where `count` blocks from `lba` are, not in order; and where that was seen.
    ///
    /// Views are searched without a lock: their runs may have to come from the disk, and nobody's writes should wait for that.
    pub(crate) fn look(&self, lba: u64, count: u64) -> Result<(FoundList, Sight)> {
        let inner = &self.group.0;
        let number = self.volume.info.number;
        let gone = || Error::Gone(format!("volume {}", self.volume.info.name));
        match &self.line {
            Line::Production => inner.look_at_tip(None, number, lba, count)?.ok_or_else(gone),
            Line::Image(image) if image.entry.writable => {
                inner.look_at_tip(Some(image.entry.timeline), number, lba, count)?.ok_or_else(gone)
            }
            Line::Image(image) => {
                let sight = Sight::View(Arc::clone(&image.view));
                Ok((inner.look_at_view(&image.view, number, lba, count)?, sight))
            }
            Line::Past(past) => {
                let sight = inner.sight_of(past);
                Ok((inner.look_at(&sight, number, lba, count)?, sight))
            }
        }
    }
}

impl Found {
    pub(crate) fn is_copy(&self) -> bool {
        self.piece.loc.is_some_and(|l| l.kind() == Kind::Copy)
    }
}

impl State {
    /// Takes hold of the segments that pieces lie in. What has been folded since they were looked up is in the base.
    fn hold(&self, pieces: Pieces, segment_bytes: u64) -> FoundList {
        pieces
            .into_iter()
            .map(|mut piece| {
                piece.loc = piece.loc.filter(|l| l.lsn() >= self.folded);
                let segment = piece
                    .loc
                    .filter(|l| !matches!(l.kind(), Kind::Zero | Kind::Unmapped))
                    .and_then(|l| self.segments.get(&place(l.lsn(), segment_bytes).0).cloned());
                Found { piece, segment }
            })
            .collect()
    }
}

impl Inner {
    /// What a line that takes writes has now, and which line that was: `timeline`, or production's. `None` if it takes none any more.
    fn look_at_tip(
        &self,
        timeline: Option<TimelineId>,
        number: u32,
        lba: u64,
        count: u64,
    ) -> Result<Option<(FoundList, Sight)>> {
        let mut pieces = Pieces::new();
        let mut gaps = Gaps::new();
        gaps.push((lba, count));
        let (view, folded, sight) = {
            let state = self.state.read();
            let timeline = timeline.unwrap_or_else(|| state.history.production());
            let sight = Sight::Tip(timeline);
            let Some(tip) = state.tips.get(&timeline) else { return Ok(None) };
            gaps = search(&gaps, state.folded, &mut pieces, &mut |lba, count, visit| {
                tip.own.lookup(number, lba, count, visit);
                Ok(())
            })?;
            if gaps.is_empty() {
                return Ok(Some((state.hold(pieces, self.segment_bytes), sight)));
            }
            (tip.under.clone(), state.folded, sight)
        };
        match view {
            Some(view) => view.lookup(number, gaps, folded, &mut pieces)?,
            None => pieces.extend(gaps.into_iter().map(|(lba, count)| Piece { lba, count, loc: None })),
        }
        Ok(Some((self.state.read().hold(pieces, self.segment_bytes), sight)))
    }

    fn look_at_view(&self, view: &View, number: u32, lba: u64, count: u64) -> Result<FoundList> {
        let mut pieces = Pieces::new();
        let mut gaps = Gaps::new();
        gaps.push((lba, count));
        let folded = self.state.read().folded;
        view.lookup(number, gaps, folded, &mut pieces)?;
        Ok(self.state.read().hold(pieces, self.segment_bytes))
    }

    /// Where a moment is best seen from: from its line as it is now, unless production has taken another way since.
    pub(crate) fn sight_of(&self, past: &Past) -> Sight {
        let Past { of, timeline, lsn } = past;
        let tip = match of {
            Line::Image(image) => Some(image.entry.timeline),
            _ => {
                let state = self.state.read();
                let now = state.history.production();
                let same =
                    || agree(&state.history.lineage(*timeline, *lsn), &state.history.current()) >= *lsn;
                (now == *timeline || same()).then_some(now)
            }
        };
        Sight::Past { tip, timeline: *timeline, lsn: *lsn }
    }

    /// What is seen of `count` blocks from `lba` of a volume.
    pub(crate) fn look_at(&self, sight: &Sight, number: u32, lba: u64, count: u64) -> Result<FoundList> {
        match sight {
            Sight::Tip(timeline) => match self.look_at_tip(Some(*timeline), number, lba, count)? {
                Some((found, _)) => Ok(found),
                None => Err(Error::Gone(format!("what timeline {timeline} had"))),
            },
            Sight::View(view) => self.look_at_view(view, number, lba, count),
            Sight::Past { tip, timeline, lsn } => {
                let now = tip.map(Sight::Tip);
                self.look_before(now.as_ref(), (*timeline, *lsn), number, lba, count)
            }
        }
    }

    /// What a volume had as of `lsn` on `timeline`. `sight` shows a state that came of that one, so that whatever is older there was
    /// the same then.
    fn look_before(
        &self,
        sight: Option<&Sight>,
        (timeline, lsn): (TimelineId, Lsn),
        number: u32,
        lba: u64,
        count: u64,
    ) -> Result<FoundList> {
        let mut kept = FoundList::new();
        let mut gaps = Gaps::new();
        let seen = match sight {
            // A tip that production has left meanwhile: the past is still there.
            Some(sight) => self.look_at(sight, number, lba, count).ok(),
            None => None,
        };
        match seen {
            Some(seen) => {
                for f in seen {
                    match f.piece.loc {
                        Some(loc) if loc.lsn() >= lsn => gaps.push((f.piece.lba, f.piece.count)),
                        _ => kept.push(f),
                    }
                }
            }
            None => gaps.push((lba, count)),
        }
        if !gaps.is_empty() {
            let mut pieces = Pieces::new();
            self.as_of(timeline, lsn, number, gaps, &mut pieces)?;
            kept.extend(self.state.read().hold(pieces, self.segment_bytes));
        }
        Ok(kept)
    }

    /// Fills the part of `buf` that a piece (not a copy) describes.
    fn fill(&self, volume: &VolumeState, found: &Found, at: u64, buf: &mut [u8]) -> Result<()> {
        let at = at as usize * BLOCK_BYTES;
        let bytes = found.piece.count as usize * BLOCK_BYTES;
        let buf = &mut buf[at..at + bytes];
        let Some(loc) = found.piece.loc else {
            return match &volume.ground {
                Ground::Base(base) => base.read(found.piece.lba * BLOCK_BYTES as u64, buf),
                Ground::Image(under) => under.volume()?.read(found.piece.lba, buf),
            };
        };
        match loc.kind() {
            Kind::Zero | Kind::Unmapped => {
                buf.fill(0);
                Ok(())
            }
            Kind::Data => self.read_data(found, loc, buf),
            Kind::Pattern => {
                let mut block = [0; BLOCK_BYTES];
                self.read_log(found, loc, &mut block)?;
                buf.chunks_exact_mut(BLOCK_BYTES).for_each(|b| b.copy_from_slice(&block));
                Ok(())
            }
            Kind::Copy => Err(Error::Conflict("a copy is not read here".into())),
        }
    }

    /// Block data. Where a read takes a record's whole payload, as most do, the record's header is read with it and its CRC checked, so
    /// that what the medium has spoiled is an error and not data.
    fn read_data(&self, found: &Found, loc: Loc, buf: &mut [u8]) -> Result<()> {
        const BEFORE: u64 = record::HEADER_BYTES as u64;
        let within = loc.lsn() % self.segment_bytes;
        let Some(segment) = found.segment.as_ref().filter(|_| within >= BEFORE) else {
            return self.read_log(found, loc, buf);
        };
        let mut header = [0; record::HEADER_BYTES];
        segment
            .file(&*self.files)?
            .read_two_at(&mut header, buf, within - BEFORE)
            .doing("reading", &segment.path)?;
        let Ok(header) = Header::decode(&header, self.seed) else { return Ok(()) };
        let whole = header.payload_lsn() == loc.lsn() && header.payload_bytes as usize == buf.len();
        if whole && crc32c::crc32c(buf) != header.payload_crc {
            return Err(Error::Damaged {
                path: segment.path.clone(),
                detail: format!("the payload of the record at LSN {} does not match its CRC", header.lsn),
            });
        }
        Ok(())
    }

    fn read_log(&self, found: &Found, loc: Loc, buf: &mut [u8]) -> Result<()> {
        let segment = found.segment.as_ref().ok_or_else(|| Error::Damaged {
            path: crate::segment::segment_path(&self.dir, loc.lsn() / self.segment_bytes),
            detail: format!("the segment of LSN {} is missing", loc.lsn()),
        })?;
        let offset = loc.lsn() % self.segment_bytes;
        segment.file(&*self.files)?.read_at(buf, offset).doing("reading", &segment.path)
    }

    /// Follows copies to what they are copies of, and calls `visit` with each part found. All of it is right as long as the bases have
    /// not been folded beyond the point returned, which the caller checks once it has used the parts; else all must be looked up again.
    pub(crate) fn follow(
        &self,
        sight: &Sight,
        mut todo: Vec<Todo>,
        visit: &mut dyn FnMut(Todo) -> Result<()>,
    ) -> Result<Lsn> {
        let mut oldest = Lsn::MAX;
        // Every step goes to a record strictly before the one it came from, so this ends.
        while let Some(t) = todo.pop() {
            let copy = t.found.piece.loc.filter(|l| l.kind() == Kind::Copy);
            let outcome = match copy {
                None => visit(t),
                Some(loc) => {
                    oldest = oldest.min(loc.lsn());
                    self.source_of(sight, &t, loc.lsn(), &mut todo)
                }
            };
            match outcome {
                Err(_) if self.state.read().folded > oldest => return Ok(oldest),
                other => other?,
            }
        }
        Ok(oldest)
    }

    /// Adds the parts that make up a copied part: its source as of the COPY record at `lsn`.
    fn source_of(&self, sight: &Sight, t: &Todo, lsn: Lsn, todo: &mut Vec<Todo>) -> Result<()> {
        let CopyInfo { timeline, lba, source } = self.copy_info(t, lsn)?;
        let piece = t.found.piece;
        let from = source.lba + (piece.lba - lba);
        let found = self.look_before(Some(sight), (timeline, lsn), source.volume, from, piece.count)?;
        let volume = if source.volume == t.volume.info.number {
            Arc::clone(&t.volume)
        } else {
            let state = self.state.read();
            let volume = state.volumes.get(&source.volume).cloned();
            volume.ok_or_else(|| Error::Gone(format!("the source volume of a copy at LSN {lsn}")))?
        };
        todo.extend(found.into_iter().map(|found| {
            let at = t.at + (found.piece.lba - from);
            Todo { volume: Arc::clone(&volume), found, at }
        }));
        Ok(())
    }

    fn copy_info(&self, t: &Todo, lsn: Lsn) -> Result<CopyInfo> {
        if let Some(info) = self.copies.read().get(lsn) {
            return Ok(info);
        }
        let mut b = [0; record::HEADER_BYTES + CopySource::BYTES];
        self.read_log(&t.found, Loc::new(Kind::Copy, lsn), &mut b)?;
        let damaged = |detail: &str| Error::Damaged {
            path: crate::segment::segment_path(&self.dir, lsn / self.segment_bytes),
            detail: format!("LSN {lsn}: {detail}"),
        };
        let mut header = [0; record::HEADER_BYTES];
        header.copy_from_slice(&b[..record::HEADER_BYTES]);
        let header = Header::decode(&header, self.seed).map_err(damaged)?;
        let payload = &b[record::HEADER_BYTES..];
        let source = CopySource::decode(payload)
            .filter(|_| header.opcode == Opcode::Copy && header.lsn == lsn)
            .filter(|_| crc32c::crc32c(payload) == header.payload_crc)
            .ok_or_else(|| damaged("it is not a COPY record"))?;
        let info = CopyInfo { timeline: header.timeline, lba: header.lba, source };
        self.copies.write().put(lsn, info);
        Ok(info)
    }
}
