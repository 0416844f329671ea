//! Reading: from "which blocks" to bytes.
//!
//! A lookup and the segments it names are taken under one read lock; the bytes are read after it. That is safe because what a lookup
//! finds in the log stays readable (the segment is held), and because the base is changed only below the trailing edge, where no
//! reader's answer differs. The one exception is a block that is a copy: its source is looked up as of the COPY record, and that
//! answer holds only while the bases have not been folded beyond the record; so this is checked after the bytes have been read.

use std::sync::Arc;

use crate::{
    error::Context,
    extents::{Kind, Loc},
    group::{Inner, State, VolumeState},
    image::ImageState,
    lineage::TimelineId,
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
}

impl Line {
    pub(crate) fn is(&self, other: &Line) -> bool {
        match (self, other) {
            (Line::Production, Line::Production) => true,
            (Line::Image(a), Line::Image(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }
}

/// A piece and, if it is in the log, the segment that holds it.
pub(crate) struct Found {
    pub(crate) piece: Piece,
    segment: Option<Arc<Segment>>,
}

/// What one lookup found; most find one piece.
pub(crate) type FoundList = smallvec::SmallVec<[Found; 4]>;

/// A part of a read that is still to be done.
struct Todo {
    volume: Arc<VolumeState>,
    found: Found,
    /// Where it goes in the buffer, in bytes.
    at: usize,
}

/// Folding can overtake a read of a copy; it moves in large steps, so a few attempts are many.
const ATTEMPTS: usize = 64;
/// Views of copies kept for the next reader.
const COPY_VIEWS: usize = 16;

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
        let inner = &self.group.0;
        'again: for _ in 0..ATTEMPTS {
            let found = self.look(lba, (buf.len() / BLOCK_BYTES) as u64)?;
            let mut copies: Vec<Todo> = Vec::new();
            for f in found {
                let at = (f.piece.lba - lba) as usize * BLOCK_BYTES;
                let volume = &self.volume;
                if f.piece.loc.is_some_and(|l| l.kind() == Kind::Copy) {
                    copies.push(Todo { volume: Arc::clone(volume), found: f, at });
                } else if let Err(e) = inner.fill(volume, &f, at, buf) {
                    // A segment that was folded and removed before its file was opened: the bytes are in the base now.
                    if f.piece.loc.is_some_and(|l| l.lsn() < inner.state.read().folded) {
                        continue 'again;
                    }
                    return Err(e);
                }
            }
            if copies.is_empty() || inner.fill_copies(copies, buf)? {
                // An image closed meanwhile no longer holds the edge, so what was read may not be its own.
                return self.check_present();
            }
        }
        Err(Error::Conflict(format!(
            "volume {} is being folded faster than it can be read: try again",
            self.volume.info.name
        )))
    }

    /// Where `count` blocks from `lba` are; not in order.
    ///
    /// Views are searched without a lock: their runs may have to come from the disk, and nobody's writes should wait for that.
    pub(crate) fn look(&self, lba: u64, count: u64) -> Result<FoundList> {
        let inner = &self.group.0;
        let number = self.volume.info.number;
        let mut pieces = Pieces::new();
        let mut gaps = Gaps::new();
        gaps.push((lba, count));
        let (view, folded) = {
            let state = inner.state.read();
            let tip = match &self.line {
                Line::Production => state.history.production(),
                Line::Image(image) => image.entry.timeline,
            };
            match &self.line {
                Line::Image(image) if !image.entry.writable => (Some(Arc::clone(&image.view)), state.folded),
                _ => {
                    let Some(tip) = state.tips.get(&tip) else {
                        return Err(Error::Gone(format!("volume {}", self.volume.info.name)));
                    };
                    gaps = search(&gaps, state.folded, &mut pieces, &mut |lba, count, visit| {
                        tip.own.lookup(number, lba, count, visit);
                        Ok(())
                    })?;
                    if gaps.is_empty() {
                        return Ok(state.hold(pieces, inner.segment_bytes));
                    }
                    (tip.under.clone(), state.folded)
                }
            }
        };
        match view {
            Some(view) => view.lookup(number, gaps, folded, &mut pieces)?,
            None => pieces.extend(gaps.into_iter().map(|(lba, count)| Piece { lba, count, loc: None })),
        }
        Ok(inner.state.read().hold(pieces, inner.segment_bytes))
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
    /// Fills the part of `buf` that a piece (not a copy) describes.
    fn fill(&self, volume: &VolumeState, found: &Found, at: usize, buf: &mut [u8]) -> Result<()> {
        let bytes = found.piece.count as usize * BLOCK_BYTES;
        let buf = &mut buf[at..at + bytes];
        let Some(loc) = found.piece.loc else {
            return volume.base.read(found.piece.lba * BLOCK_BYTES as u64, buf);
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

    /// Fills parts that are copies; `false` if folding came in between and all must be looked up again.
    fn fill_copies(&self, mut todo: Vec<Todo>, buf: &mut [u8]) -> Result<bool> {
        let mut oldest = Lsn::MAX;
        // Every step goes to a record strictly before the one it came from, so this ends.
        while let Some(t) = todo.pop() {
            let Some(loc) = t.found.piece.loc.filter(|l| l.kind() == Kind::Copy) else {
                if let Err(e) = self.fill(&t.volume, &t.found, t.at, buf) {
                    if self.state.read().folded > oldest {
                        return Ok(false);
                    }
                    return Err(e);
                }
                continue;
            };
            oldest = oldest.min(loc.lsn());
            match self.source_of(&t, loc.lsn()) {
                Ok(more) => todo.extend(more),
                Err(_) if self.state.read().folded > oldest => return Ok(false),
                Err(e) => return Err(e),
            }
        }
        Ok(self.state.read().folded <= oldest)
    }

    /// The parts that make up a copied part: its source as of the COPY record at `lsn`.
    fn source_of(&self, t: &Todo, lsn: Lsn) -> Result<Vec<Todo>> {
        let mut b = [0; record::HEADER_BYTES + CopySource::BYTES];
        self.read_log(&t.found, Loc::new(Kind::Copy, lsn), &mut b)?;
        let damaged = |detail: &str| Error::Damaged {
            path: crate::segment::segment_path(&self.dir, lsn / self.segment_bytes),
            detail: format!("LSN {lsn}: {detail}"),
        };
        let mut header = [0; record::HEADER_BYTES];
        header.copy_from_slice(&b[..record::HEADER_BYTES]);
        let header = Header::decode(&header, self.seed).map_err(damaged)?;
        let source = CopySource::decode(&b[record::HEADER_BYTES..])
            .filter(|_| header.opcode == Opcode::Copy && header.lsn == lsn)
            .ok_or_else(|| damaged("it is not a COPY record"))?;
        let view = self.copy_view(header.timeline, lsn)?;
        let piece = t.found.piece;
        let source_lba = source.lba + (piece.lba - header.lba);
        let mut pieces = Pieces::new();
        let mut gaps = Gaps::new();
        gaps.push((source_lba, piece.count));
        let folded = self.state.read().folded;
        view.lookup(source.volume, gaps, folded, &mut pieces)?;
        let state = self.state.read();
        let volume = state
            .volumes
            .get(&source.volume)
            .cloned()
            .ok_or_else(|| Error::Gone(format!("the source volume of a copy at LSN {lsn}")))?;
        Ok(state
            .hold(pieces, self.segment_bytes)
            .into_iter()
            .map(|found| {
                let at = t.at + (found.piece.lba - source_lba) as usize * BLOCK_BYTES;
                Todo { volume: Arc::clone(&volume), found, at }
            })
            .collect())
    }

    fn copy_view(&self, timeline: TimelineId, lsn: Lsn) -> Result<Arc<View>> {
        let mut views = self.copies.lock();
        if let Some(i) = views.iter().position(|(t, l, _)| (*t, *l) == (timeline, lsn)) {
            if let Some(hit) = views.remove(i) {
                let view = Arc::clone(&hit.2);
                views.push_front(hit);
                return Ok(view);
            }
        }
        drop(views);
        let lineage = self.state.read().history.lineage(timeline, lsn);
        let view = Arc::new(self.view(lineage)?);
        let mut views = self.copies.lock();
        views.push_front((timeline, lsn, Arc::clone(&view)));
        views.truncate(COPY_VIEWS);
        Ok(view)
    }
}
