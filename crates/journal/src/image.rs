//! Images: a group's volumes as of one point. Read-only, or writable: as a branch of their own that leaves history untouched, or, of a copy,
//! with a scratch ([`crate::scratch`]).

use std::sync::{
    atomic::{AtomicBool, Ordering},
    Arc,
};

use parking_lot::RwLockReadGuard;
use uuid::Uuid;

use crate::{
    append::Draft,
    group::{check_name, Group, Inner, Point, Sealing, State, Tip, VolumeState},
    index::Entry,
    lineage::{Lineage, Span, Stay, Timeline, TimelineId},
    maps::{Maps, Sizes},
    record::{BranchPoint, Opcode, NO_VOLUME},
    scratch::{self, Scratch},
    segment::{place, SegmentNumber},
    superblock::{ImageEntry, Memory, Rewind, VolumeInfo},
    view::{Layer, View},
    volume::Volume,
    Error, Lsn, Result,
};

/// An open image, as the group holds it.
pub(crate) struct ImageState {
    pub(crate) entry: ImageEntry,
    /// What a read-only image shows, and a writable one began from.
    pub(crate) view: Arc<View>,
    pub(crate) closed: AtomicBool,
    /// What takes its writes, if it is not a branch; the rest of this is then what lies under that.
    pub(crate) scratch: Option<Scratch>,
}

/// An open image, as people see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageInfo {
    /// Name, unique in the group.
    pub name: String,
    /// The moment it shows.
    pub point: Point,
    /// Whether it takes writes.
    pub writable: bool,
    /// When it was opened, ns since the Unix epoch.
    pub created_ns: u64,
    /// Bytes that what was written to it takes, if that is beside the group's log.
    pub scratch_bytes: Option<u64>,
    /// What an administrator should know of it, if anything.
    pub alert: Option<String>,
}

/// An open image.
#[derive(Clone)]
pub struct Image {
    group: Group,
    state: Arc<ImageState>,
}

impl ImageState {
    pub(crate) fn new(entry: ImageEntry, view: Arc<View>) -> ImageState {
        ImageState { entry, view, closed: AtomicBool::new(false), scratch: None }
    }

    /// The same image, with what takes its writes.
    pub(crate) fn over(under: &ImageState, scratch: Scratch) -> ImageState {
        let scratch = Some(scratch);
        ImageState { scratch, ..ImageState::new(under.entry.clone(), Arc::clone(&under.view)) }
    }

    /// The volumes that the group had at its point and still has.
    pub(crate) fn shown(&self, group: &Inner) -> Vec<Arc<VolumeState>> {
        let state = group.state.read();
        let at = self.entry.point.lsn;
        state.volumes.values().filter(|v| v.info.created_lsn <= at).cloned().collect()
    }

    /// Ends what takes its writes, which is not to be seen to any more.
    fn abandon(&self) {
        if let Some(scratch) = self.scratch.as_ref().and_then(Scratch::group) {
            scratch.0.abandon();
        }
    }

    /// Must not be called with the group's `state` held.
    fn info(&self) -> ImageInfo {
        let e = &self.entry;
        let (scratch_bytes, alert) = match &self.scratch {
            None => (None, None),
            Some(Scratch::Open(group)) => {
                let stats = group.stats();
                (Some(stats.journal_bytes + stats.ready_bytes), stats.alert)
            }
            Some(Scratch::Unusable(why)) => (None, Some(why.clone())),
        };
        ImageInfo {
            name: e.name.clone(),
            point: e.point,
            writable: e.writable || e.scratch.is_some(),
            created_ns: e.created_ns,
            scratch_bytes,
            alert,
        }
    }
}

impl Image {
    /// What it is.
    pub fn info(&self) -> ImageInfo {
        self.state.info()
    }

    /// The volumes it shows: those the group had at its point and still has. None if what was written to it cannot be read.
    pub fn volumes(&self) -> Vec<VolumeInfo> {
        let mut shown = self.state.shown(&self.group.0);
        match &self.state.scratch {
            None => {}
            Some(Scratch::Unusable(_)) => shown.clear(),
            // One may have come to a copy since, with a place in the log that is not after the image's point.
            Some(Scratch::Open(scratch)) => {
                let there = scratch.volumes();
                shown.retain(|v| there.iter().any(|s| s.number == v.info.number));
            }
        }
        shown.into_iter().map(|v| v.info.clone()).collect()
    }

    /// One of its volumes.
    pub fn volume(&self, name: &str) -> Result<Volume> {
        let (image, group) = (&self.state.entry.name, &self.group.0.name);
        let volume = match &self.state.scratch {
            None => {
                let shown = self.state.shown(&self.group.0).into_iter().find(|v| v.info.name == name);
                shown.map(|v| Volume::of_image(self.group.clone(), v, Arc::clone(&self.state)))
            }
            Some(Scratch::Open(scratch)) => scratch.volume(name).ok(),
            Some(Scratch::Unusable(why)) => {
                return Err(Error::Conflict(format!("image {image} of group {group}: {why}")))
            }
        };
        volume.ok_or_else(|| {
            Error::NotFound(format!(
                "image {image} of group {group} has no volume {name}: it did not exist at that point, or is removed"
            ))
        })
    }
}

impl Group {
    /// As [`Group::open_image`], also at a point of a resynchronisation.
    pub fn open_any_image(&self, name: &str, lsn: Lsn, writable: bool) -> Result<Image> {
        check_name("image", name)?;
        let i = &self.0;
        let (branches, beside) = (writable && !i.follows, writable && i.follows);
        if branches {
            i.room_for_branch()?;
        }
        let mut control = i.control.lock();
        if branches {
            i.check_writable()?;
        } else {
            i.check_open()?;
        }
        if control.memory.images.iter().any(|e| e.name == name) {
            return Err(Error::Conflict(format!(
                "group {} has an open image {name} already: close it or choose another name",
                i.name
            )));
        }
        let point = self.point_at_lsn(lsn)?;
        let parent = i.state.read().history.production_at(point.lsn);
        let lineage = i.state.read().history.lineage(parent, point.lsn);
        let view = Arc::new(i.view(lineage)?);
        let mut entry = ImageEntry {
            name: name.to_string(),
            point,
            timeline: parent,
            writable: branches,
            scratch: beside.then(Uuid::new_v4),
            created_ns: i.files.now_ns(),
        };
        // The point must survive as long as the image: what it shows becomes durable with it.
        i.flush_inline()?;
        let mut branch = None;
        if branches {
            let timeline = Timeline { id: control.memory.history.next, parent: Some(parent), at: point.lsn };
            entry.timeline = timeline.id;
            branch = Some(timeline);
        }
        let change = |m: &mut Memory| {
            m.images.push(entry.clone());
            if let Some(timeline) = branch {
                m.history.timelines.insert(timeline.id, timeline);
                m.history.next = timeline.id + 1;
            }
        };
        control.check_room(change)?;
        if let Some(timeline) = branch {
            i.append_branch(timeline, false)?;
        }
        let mut image = Arc::new(ImageState::new(entry.clone(), Arc::clone(&view)));
        if let Some(id) = entry.scratch {
            let scratch = scratch::create(i, &image, id)?;
            image = Arc::new(ImageState::over(&image, Scratch::Open(scratch)));
        }
        // If this fails nobody knows whether the image is remembered; its scratch stays until the group is opened again, which tells.
        i.remember(&mut control, change).inspect_err(|_| image.abandon())?;
        let mut state = i.state.write();
        if let Some(timeline) = branch {
            let tip = Tip { own: Maps::new(Arc::clone(&state.sizes)), under: Some(view) };
            state.tips.insert(timeline.id, tip);
            state.history = control.memory.history.clone();
        }
        state.images.insert(name.to_string(), Arc::clone(&image));
        drop(state);
        Ok(Image { group: self.clone(), state: image })
    }

    /// An open image.
    pub fn image(&self, name: &str) -> Result<Image> {
        let state = self.0.state.read();
        let image = state
            .images
            .get(name)
            .cloned()
            .ok_or_else(|| Error::NotFound(format!("group {} has no open image {name}", self.0.name)))?;
        Ok(Image { group: self.clone(), state: image })
    }

    /// The open images, by name.
    pub fn images(&self) -> Vec<ImageInfo> {
        let images: Vec<Arc<ImageState>> = self.0.state.read().images.values().cloned().collect();
        images.iter().map(|i| i.info()).collect()
    }

    /// Closes an image; its volumes are gone for hosts. What was written to a writable one is discarded.
    pub fn close_image(&self, name: &str) -> Result<()> {
        let i = &self.0;
        let mut control = i.control.lock();
        i.check_open()?;
        let image = i
            .state
            .read()
            .images
            .get(name)
            .cloned()
            .ok_or_else(|| Error::NotFound(format!("group {} has no open image {name}", i.name)))?;
        i.remember(&mut control, |m| {
            m.images.retain(|e| e.name != name);
            if image.entry.writable {
                m.history.timelines.remove(&image.entry.timeline);
            }
        })?;
        image.closed.store(true, Ordering::Release);
        let mut state = i.state.write();
        state.images.remove(name);
        state.history = control.memory.history.clone();
        if image.entry.writable {
            state.tips.remove(&image.entry.timeline);
            if let Some(mut cover) = state.covers.remove(&image.entry.timeline) {
                for run in cover.clear() {
                    run.remove(&*i.files);
                }
            }
        }
        drop(state);
        if image.scratch.is_some() {
            image.abandon();
            if let Err(e) = scratch::discard(i, name) {
                log::warn!("group {}: {e}; it is removed when the group is opened again", i.name);
            }
        }
        Ok(())
    }

    /// As [`Group::rewind`], also to a point of a resynchronisation.
    pub fn rewind_anywhere(&self, lsn: Lsn) -> Result<Rewind> {
        let i = &self.0;
        i.room_for_branch()?;
        let mut control = i.control.lock();
        i.check_writable()?;
        let to = self.point_at_lsn(lsn)?;
        let parent = i.state.read().history.production_at(to.lsn);
        let lineage = i.state.read().history.lineage(parent, to.lsn);
        let view = Arc::new(i.view(lineage)?);
        // All that can fail for want of space comes before the log is held for the switch.
        i.flush_inline()?;
        let timeline = Timeline { id: control.memory.history.next, parent: Some(parent), at: to.lsn };
        let payload = BranchPoint { timeline: timeline.id, parent, at: to.lsn, production: true }.encode();
        let draft = [Draft::new(Opcode::Branch, NO_VOLUME, 0, 0, &payload)];
        let change = |rewind: Rewind| {
            move |m: &mut Memory| {
                m.history.timelines.insert(timeline.id, timeline);
                m.history.next = timeline.id + 1;
                m.history.stays.push(Stay { timeline: timeline.id, since: rewind.at.lsn });
                m.rewinds.push(rewind);
            }
        };
        let longest = Point { lsn: Lsn::MAX, time_ns: u64::MAX };
        control.check_room(change(Rewind { at: longest, to, undo_lsn: Lsn::MAX }))?;
        let mut log = i.log.lock();
        let old = log.production;
        let undo_lsn = i.state.read().head.lsn;
        let at_lsn = i.append_now(&mut log, old, &draft)?;
        // The log stays held: no write may come between the BRANCH record and the switch. The superblock is the point of no return.
        i.flush_inline()?;
        let rewind = Rewind { at: Point { lsn: at_lsn, time_ns: log.time_ns }, to, undo_lsn };
        i.remember(&mut control, change(rewind))?;
        let mut state = i.state.write();
        state.history = control.memory.history.clone();
        state.rewinds.push(rewind);
        let tip = Tip { own: Maps::new(Arc::clone(&state.sizes)), under: Some(view) };
        state.tips.insert(timeline.id, tip);
        state.tips.remove(&old);
        drop(state);
        log.production = timeline.id;
        drop(log);
        i.keeper.wake();
        Ok(rewind)
    }

    /// Undoes the newest rewind, by another: production is again as it was just before.
    pub fn undo_rewind(&self) -> Result<Rewind> {
        let newest = self.0.state.read().rewinds.last().copied();
        let rewind = newest.ok_or_else(|| {
            Error::Conflict(format!("group {} has no rewind to undo within its window", self.0.name))
        })?;
        self.rewind_anywhere(rewind.undo_lsn)
    }

    /// The rewinds that can still be undone, oldest first.
    pub fn rewinds(&self) -> Vec<Rewind> {
        self.0.state.read().rewinds.clone()
    }
}

impl Inner {
    /// Waits for room for a BRANCH record. Making room takes `control`, so nobody may wait for it who holds that; whoever does then appends at once, if
    /// need be into the room that is kept for what must not wait.
    fn room_for_branch(&self) -> Result<()> {
        let payload = [0; BranchPoint::BYTES];
        let draft = [Draft::new(Opcode::Branch, NO_VOLUME, 0, 0, &payload)];
        self.make_room(&mut self.log.lock(), &draft)
    }

    fn append_branch(&self, timeline: Timeline, production: bool) -> Result<()> {
        let parent = timeline.parent.unwrap_or(0);
        let payload = BranchPoint { timeline: timeline.id, parent, at: timeline.at, production }.encode();
        let draft = [Draft::new(Opcode::Branch, NO_VOLUME, 0, 0, &payload)];
        let mut log = self.log.lock();
        let on = log.production;
        self.append_now(&mut log, on, &draft)?;
        drop(log);
        self.flush_inline().map(|_| ())
    }

    /// What takes the writes of images beside the log.
    pub(crate) fn scratches(&self) -> Vec<Group> {
        let state = self.state.read();
        let scratches = state.images.values().filter_map(|i| i.scratch.as_ref()?.group());
        scratches.cloned().collect()
    }

    /// Closes them, each whatever became of the others.
    pub(crate) fn close_scratches(&self) -> Result<()> {
        let outcomes: Vec<Result<()>> = self.scratches().iter().map(Group::close).collect();
        outcomes.into_iter().collect()
    }

    /// The state that a lineage makes up, as a view.
    pub(crate) fn view(&self, lineage: Lineage) -> Result<View> {
        let mut parts = Vec::new();
        let sizes = {
            let state = self.state.read();
            for span in &lineage {
                self.collect(&state, *span, &mut parts);
            }
            Arc::clone(&state.sizes)
        };
        let mut layers = Vec::new();
        for part in parts {
            match part {
                Part::Run(run) => layers.push(Layer::Run(run)),
                Part::Sealing(sealing, timeline) => {
                    layers.extend(sealing.maps(&sizes).get(&timeline).cloned().map(Layer::Maps));
                }
                Part::Cut(number, span) => match self.entries_of(number) {
                    Ok(entries) => layers.push(Layer::Maps(Arc::new(maps_of(&entries, span, &sizes)))),
                    // Folded and removed meanwhile: it is in the bases.
                    Err(_) if self.state.read().folded >= span.end => {}
                    Err(e) => return Err(e),
                },
            }
        }
        Ok(View::new(layers))
    }

    /// What of `span` is in the log from `folded` on, newest first.
    pub(crate) fn collect(&self, state: &RwLockReadGuard<'_, State>, span: Span, parts: &mut Vec<Part>) {
        let end = span.end.min(state.head.lsn);
        if end <= state.folded {
            return;
        }
        let (cut, _) = place(end, self.segment_bytes);
        let from = state.folded / self.segment_bytes;
        let span = Span { timeline: span.timeline, end };
        // The head may stand just behind a full segment, so the active one can lie before the cut.
        if let Some(active) = state.active_number().filter(|active| *active <= cut) {
            parts.push(Part::Cut(active, span));
        }
        for sealing in state.sealing.iter().rev().filter(|s| s.segment.number <= cut) {
            parts.push(if sealing.segment.number < cut {
                Part::Sealing(sealing.clone(), span.timeline)
            } else {
                Part::Cut(cut, span)
            });
        }
        if state.indexes.contains_key(&cut) {
            parts.push(Part::Cut(cut, span));
        }
        if let Some(cover) = state.covers.get(&span.timeline) {
            let mut runs = Vec::new();
            cover.over(from, cut, &mut runs);
            parts.extend(runs.into_iter().map(Part::Run));
        }
    }
}

/// Where a stretch of a lineage has its versions.
pub(crate) enum Part {
    /// Among a segment's records; which of them is for the span to say.
    Cut(SegmentNumber, Span),
    /// In a whole segment that has no run yet.
    Sealing(Sealing, TimelineId),
    /// In whole segments.
    Run(Arc<crate::run::Run>),
}

fn maps_of(entries: &[Entry], span: Span, sizes: &Sizes) -> Maps {
    let mut maps = Maps::new(Arc::clone(sizes));
    for e in entries.iter().filter(|e| e.timeline == span.timeline && e.lsn < span.end) {
        if let Some(m) = e.mapped() {
            maps.insert(e.volume, m);
        }
    }
    maps
}
