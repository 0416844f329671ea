//! Folding: what leaves the window goes to the bases, the last version of each block only, and its segments go.
//!
//! Crash-safe at every step:
//! - All of the log up to the new edge is made durable.
//! - The new edge is made durable in the superblock: points below it are given up from here on.
//! - Step by step ([`crate::step`]) the bases are written and synced, each step recorded in the superblock as `folded`.
//! - Segments, indexes and runs below `folded` are removed.
//!
//! A crash after the edge has moved finds `folded < edge`. The group is opened as it is (what lies between is read from the log, as during
//! any fold), and the keeper goes on with the step that was under way, from the last piece of it that the superblock knows of: the log still
//! has every version of it.

use std::sync::Arc;

use crate::{
    group::{Group, Inner, Point},
    lineage::Lineage,
    segment::{first_lsn, place, Segment, SegmentNumber},
    step::Walk,
    Error, Lsn, Result,
};

/// Told of bytes done and in all; `false` cancels between two pieces of a step.
pub(crate) type Progress<'a> = &'a mut dyn FnMut(u64, u64) -> bool;

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
        if self.over_image {
            return Ok(self.state.read().edge);
        }
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
                // Seen before all up to here is made durable: the record that ended any other stretch cannot be lost.
                let mut resyncing = self.state.read().resyncs.open_ones();
                resyncing.retain(|volume, _| control.memory.volumes.iter().any(|v| v.number == *volume));
                self.note_leaving(edge.lsn, point.lsn, &control.memory.history)?;
                self.flush_inline()?;
                self.remember(&mut control, |m| {
                    m.edge = point;
                    // The records that began them may go now.
                    m.resyncing = resyncing;
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
        let mut walk = Walk::up_to(edge);
        loop {
            let folded = self.state.read().folded;
            if folded >= edge {
                break;
            }
            let mut go_on = || progress(folded - start, edge - start);
            if !go_on() {
                return Ok(());
            }
            // A step that is partly in the bases is finished as it was begun.
            let done = self.control.lock().memory.step.filter(|done| (folded + 1..=edge).contains(&done.end));
            let plan = self.plan_step(&mut walk, folded, done.map_or(edge, |done| done.end))?;
            if !self.write_step(&plan, done, &mut go_on)? {
                return Ok(());
            }
            let next = plan.end;
            let mut control = self.control.lock();
            let images: Vec<Lineage> = self.image_lineages();
            self.remember(&mut control, |m| {
                m.folded = next;
                m.step = None;
                if next == m.edge.lsn {
                    m.history.forget_before(next, &images);
                }
            })?;
            let mut state = self.state.write();
            state.folded = next;
            state.history = control.memory.history.clone();
            drop(state);
            drop(control);
            if place(next, self.segment_bytes).0 > place(folded, self.segment_bytes).0 {
                self.remove_below(next);
            }
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
