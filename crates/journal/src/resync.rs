//! What a volume needs whose production lives elsewhere: stretches of history in which it was not in step with production.
//!
//! While such a volume (a replica) is brought back in step, its blocks are those of production in part and of the past in part. So the
//! stretch stands between two records, RESYNC_BEGIN and RESYNC_END, and a point x with BEGIN < x < END is not consistent: the point
//! of BEGIN itself is still the old state, the point of END has everything. RESYNC_END repeats where the stretch began, since the trailing
//! edge may have passed its beginning; a stretch that has not ended yet is remembered by the superblock for the same reason. Stretches
//! are found again by these records when a group is opened, as bookmarks are. Locks: `control`, then `log`.

use std::collections::BTreeMap;

use parking_lot::MutexGuard;

use crate::{
    append::Draft,
    group::{Group, Inner, Log},
    image::Image,
    index::Entry,
    record::{u64_at, Opcode, HEADER_BYTES},
    superblock::{Memory, Rewind},
    volume::Volume,
    Error, Lsn, Point, Result,
};

/// A stretch of history in which a volume was not in step with its production.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResyncSpan {
    /// The volume's number.
    pub volume: u32,
    /// The last consistent point before it.
    pub begin: Point,
    /// The first consistent point after it; none while it goes on.
    pub end: Option<Point>,
}

impl ResyncSpan {
    fn holds(&self, lsn: Lsn) -> bool {
        self.begin.lsn < lsn && self.end.is_none_or(|end| lsn < end.lsn)
    }
}

/// The payload of RESYNC_END: where the stretch began. 16 bytes.
fn encode_end(begin: Point) -> [u8; 16] {
    let mut b = [0; 16];
    b[..8].copy_from_slice(&begin.lsn.to_le_bytes());
    b[8..].copy_from_slice(&begin.time_ns.to_le_bytes());
    b
}

/// A group's stretches, in the order in which they began to be known.
#[derive(Debug, Default)]
pub(crate) struct Spans(Vec<ResyncSpan>);

impl Spans {
    /// The stretches that the records say, which come with their payloads in log order, and those that the superblock remembers.
    pub(crate) fn found(records: &[(Entry, Vec<u8>)], remembered: &BTreeMap<u32, Point>) -> Spans {
        let mut spans = Spans::default();
        for (e, payload) in records {
            spans.enter(e, payload);
        }
        for (volume, begin) in remembered {
            if !spans.0.iter().any(|s| s.volume == *volume && s.begin.lsn >= begin.lsn) {
                spans.begin(*volume, *begin);
            }
        }
        spans
    }

    /// Follows a RESYNC_BEGIN or RESYNC_END record, which come in log order.
    pub(crate) fn enter(&mut self, e: &Entry, payload: &[u8]) {
        let point = Point { lsn: e.lsn, time_ns: e.time_ns };
        if e.opcode == Opcode::ResyncBegin {
            self.begin(e.volume, point);
        } else if e.opcode == Opcode::ResyncEnd && payload.len() == 16 {
            let begin = Point { lsn: u64_at(payload, 0), time_ns: u64_at(payload, 8) };
            self.end(e.volume, begin, point);
        }
    }

    /// Where those that go on began, by volume.
    pub(crate) fn open_ones(&self) -> BTreeMap<u32, Point> {
        self.0.iter().filter(|s| s.end.is_none()).map(|s| (s.volume, s.begin)).collect()
    }

    fn open(&self, volume: u32) -> Option<Point> {
        self.0.iter().find(|s| s.volume == volume && s.end.is_none()).map(|s| s.begin)
    }

    fn begin(&mut self, volume: u32, begin: Point) {
        if self.open(volume).is_none() {
            self.0.push(ResyncSpan { volume, begin, end: None });
        }
    }

    fn end(&mut self, volume: u32, begin: Point, end: Point) {
        self.0.retain(|s| s.volume != volume || s.end.is_some());
        self.0.push(ResyncSpan { volume, begin, end: Some(end) });
    }

    /// Drops what lies wholly before `edge`, or belongs to a volume that `keeps` does not keep.
    fn forget(&mut self, edge: Lsn, keeps: impl Fn(u32) -> bool) {
        self.0.retain(|s| keeps(s.volume) && s.end.is_none_or(|end| end.lsn > edge));
    }

    /// The nearest point that lies in no stretch, from `lsn` on towards the past or the future.
    fn nearest(spans: &[ResyncSpan], mut lsn: Lsn, step: impl Fn(&ResyncSpan) -> Option<Lsn>) -> Option<Lsn> {
        while let Some(span) = spans.iter().find(|s| s.holds(lsn)) {
            lsn = step(span)?;
        }
        Some(lsn)
    }
}

impl Group {
    /// The stretches of the window in which a volume that the group still has was not in step with its production.
    pub fn resync_spans(&self) -> Vec<ResyncSpan> {
        let state = self.0.state.read();
        let in_window = |s: &&ResyncSpan| {
            s.end.is_none_or(|end| end.lsn > state.edge.lsn) && state.volumes.contains_key(&s.volume)
        };
        state.resyncs.0.iter().filter(in_window).copied().collect()
    }

    /// Refuses, with [`Error::Inconsistent`], a point at which a volume was not in step with its production.
    pub fn check_consistent(&self, lsn: Lsn) -> Result<()> {
        let spans = self.resync_spans();
        if !spans.iter().any(|s| s.holds(lsn)) {
            return Ok(());
        }
        let edge = self.window().edge.lsn;
        Err(Error::Inconsistent {
            group: self.0.name.clone(),
            lsn,
            before: Spans::nearest(&spans, lsn, |s| Some(s.begin.lsn)).filter(|lsn| *lsn >= edge),
            after: Spans::nearest(&spans, lsn, |s| s.end.map(|end| end.lsn)),
        })
    }

    /// Opens an image of the group at point `lsn` (rounded up to a record's boundary). Durable: it is there again after a restart, and
    /// holds the trailing edge until it is closed.
    ///
    /// Errors: [`Error::Inconsistent`] at a point of a resynchronisation; [`Group::open_any_image`] opens it all the same.
    pub fn open_image(&self, name: &str, lsn: Lsn, writable: bool) -> Result<Image> {
        self.check_consistent(self.point_at_lsn(lsn)?.lsn)?;
        self.open_any_image(name, lsn, writable)
    }

    /// Moves production to the state at point `lsn`, as a new branch: what came after stays reachable, and the volumes stay the same for
    /// hosts (which must not use them meanwhile, since their caches know nothing of it). No data is moved.
    ///
    /// Errors: [`Error::Inconsistent`] at a point of a resynchronisation; [`Group::rewind_anywhere`] goes there all the same.
    pub fn rewind(&self, lsn: Lsn) -> Result<Rewind> {
        self.check_consistent(self.point_at_lsn(lsn)?.lsn)?;
        self.rewind_anywhere(lsn)
    }
}

impl Volume {
    /// From here on the volume is not in step with its production: says so in the log and in the superblock, durably. Nothing if it is
    /// known already. Returns the last consistent point.
    pub fn begin_resync(&self) -> Result<Point> {
        let (i, number) = (&self.group.0, self.info().number);
        self.wait_for_room(HEADER_BYTES as u64)?;
        let mut control = i.control.lock();
        self.check_present()?;
        if let Some(begin) = i.state.read().resyncs.open(number) {
            return Ok(begin);
        }
        let mut log = i.log.lock();
        let begin = i.append_resync(&mut log, Opcode::ResyncBegin, number, &[])?;
        i.state.write().resyncs.begin(number, begin);
        drop(log);
        i.flush_inline()?;
        let edge = i.state.read().edge.lsn;
        i.remember(&mut control, |m| {
            m.resyncing.insert(number, begin);
        })?;
        let mut state = i.state.write();
        let volumes: Vec<u32> = state.volumes.keys().copied().collect();
        state.resyncs.forget(edge, |volume| volumes.contains(&volume));
        Ok(begin)
    }

    /// The volume is in step with its production again. Durable when it returns; nothing if no resynchronisation is under way.
    pub fn end_resync(&self) -> Result<()> {
        let (i, number) = (&self.group.0, self.info().number);
        self.wait_for_room(HEADER_BYTES as u64 + 16)?;
        let mut control = i.control.lock();
        self.check_present()?;
        let Some(begin) = i.state.read().resyncs.open(number) else { return Ok(()) };
        let mut log = i.log.lock();
        let end = i.append_resync(&mut log, Opcode::ResyncEnd, number, &encode_end(begin))?;
        i.state.write().resyncs.end(number, begin, end);
        drop(log);
        // The superblock forgets the stretch only when the record that ends it cannot be lost any more.
        i.flush_inline()?;
        i.remember(&mut control, |m: &mut Memory| {
            m.resyncing.remove(&number);
        })
    }

    /// The newest instant of its group: everything acknowledged so far lies before it.
    pub fn head_lsn(&self) -> Lsn {
        self.group.head().lsn
    }

    /// Whether a resynchronisation is under way.
    pub fn resyncing(&self) -> bool {
        self.group.0.state.read().resyncs.open(self.info().number).is_some()
    }
}

impl Inner {
    fn append_resync(
        &self,
        log: &mut MutexGuard<'_, Log>,
        opcode: Opcode,
        volume: u32,
        payload: &[u8],
    ) -> Result<Point> {
        let timeline = log.production;
        let lsn = self.append_now(log, timeline, &[Draft::new(opcode, volume, 0, 0, payload)])?;
        Ok(Point { lsn, time_ns: log.time_ns })
    }
}

#[cfg(test)]
mod tests {
    use std::{path::Path, sync::Arc};

    use super::*;
    use crate::{files::DiskFiles, BookmarkKind, Change, NewBase, Options};

    fn open(dir: &Path) -> Group {
        let options = Options { segment_bytes: 64 << 10, background: false };
        Group::open(Arc::new(DiskFiles), dir, &options).unwrap()
    }

    fn made(dir: &Path) -> Group {
        let options = Options { segment_bytes: 64 << 10, background: false };
        let group = Group::create(Arc::new(DiskFiles), dir, "g", &options).unwrap();
        group.add_volume("v", NewBase::Sparse { blocks: 4096 }).unwrap();
        group
    }

    fn write(group: &Group, fill: u8) {
        let volume = group.volume("v").unwrap();
        volume.submit(&[Change::Write { lba: 0, data: &[fill; 16 << 10] }]).unwrap();
    }

    #[test]
    fn points_between_are_refused_and_those_around_named_also_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("g");
        let mut group = made(&dir);
        write(&group, 1);
        let before = group.head().lsn;
        group.volume("v").unwrap().begin_resync().unwrap();
        write(&group, 2);
        let inside = group.bookmark("inside", BookmarkKind::Crash).unwrap().lsn;
        for _ in 0..2 {
            let refused = group.open_image("i", inside, false);
            assert!(
                matches!(refused, Err(Error::Inconsistent { before: Some(b), after: None, .. }) if b == before)
            );
            group.close().unwrap();
            drop(group);
            group = open(&dir);
        }
        assert!(group.volume("v").unwrap().resyncing());
        group.volume("v").unwrap().end_resync().unwrap();
        group.volume("v").unwrap().end_resync().unwrap();
        let after = group.resync_spans()[0].end.unwrap().lsn;
        write(&group, 3);
        for _ in 0..2 {
            assert!(matches!(
                group.rewind(inside),
                Err(Error::Inconsistent { before: Some(b), after: Some(a), .. }) if b == before && a == after
            ));
            for good in [before, after, group.head().lsn] {
                group.open_image("i", good, false).unwrap();
                group.close_image("i").unwrap();
            }
            group.open_any_image("i", inside, false).unwrap();
            group.close_image("i").unwrap();
            group.close().unwrap();
            drop(group);
            group = open(&dir);
        }
        group.rewind_anywhere(inside).unwrap();
    }

    #[test]
    fn a_stretch_whose_beginning_has_left_the_window_is_still_known() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("g");
        let mut group = made(&dir);
        group.volume("v").unwrap().begin_resync().unwrap();
        for fill in 0..20 {
            write(&group, fill);
        }
        let kept = group.head().lsn;
        group.trim_to(kept).unwrap();
        assert!(group.window().edge.lsn > 64 << 10);
        for _ in 0..2 {
            assert!(matches!(
                group.check_consistent(group.head().lsn),
                Err(Error::Inconsistent { before: None, after: None, .. })
            ));
            group.close().unwrap();
            drop(group);
            group = open(&dir);
        }
        group.volume("v").unwrap().end_resync().unwrap();
        for _ in 0..2 {
            assert!(group.check_consistent(group.window().edge.lsn).is_err());
            group.check_consistent(group.head().lsn).unwrap();
            group.close().unwrap();
            drop(group);
            group = open(&dir);
        }
        group.remove_volume("v", true).unwrap();
        group.check_consistent(group.window().edge.lsn).unwrap();
    }
}
