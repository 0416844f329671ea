//! Opening a group: what a crash left becomes a prefix of the log that holds all that was flushed.
//!
//! Segments that have an index were synced before it was written, so they are believed without being read; the first one without, and
//! what follows, is scanned record by record up to the first place where none is. What lies beyond is no part of history: it is of an
//! earlier epoch than anything written from now on, so it can never come back.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    path::Path,
    sync::{
        atomic::{AtomicBool, AtomicU64},
        Arc, OnceLock,
    },
    thread,
    time::Instant,
};

use parking_lot::{Condvar, Mutex, RwLock};

use crate::{
    base::{base_dir, Base},
    cover::Cover,
    error::Context,
    files::Files,
    group::{
        no_space, Bookmark, BookmarkKind, Counters, Ground, Group, Inner, Log, Options, Point, Policy,
        Recovery, Sealing, State, Tip, VolumeState,
    },
    image::ImageState,
    index::{index_dir, Entry, SegmentIndex},
    ledger,
    lineage::{Stay, Timeline, TimelineId},
    maps::Maps,
    record::{BranchPoint, Opcode},
    resync::Spans,
    run::{Run, RunKey},
    scan::{Found, Scan},
    scratch,
    segment::{first_lsn, log_dir, place, segment_number, segment_path, Segment, SegmentNumber},
    superblock::{Memory, Rewind, Superblock, VolumeInfo},
    Error, Lsn, Result,
};

/// What lies under the records of a volume.
type GroundOf<'a> = &'a dyn Fn(&VolumeInfo) -> Result<Ground>;

/// The log as found.
struct Tail {
    segments: BTreeMap<SegmentNumber, Arc<Segment>>,
    indexes: BTreeMap<SegmentNumber, Arc<SegmentIndex>>,
    covers: HashMap<TimelineId, Cover>,
    sealing: VecDeque<Sealing>,
    active: Vec<Entry>,
    head: Point,
    recovery: Recovery,
}

impl Group {
    /// Opens a group and recovers it. [`Error::Busy`] if somebody else has it open.
    pub fn open(files: Arc<dyn Files>, dir: &Path, options: &Options) -> Result<Group> {
        Group::open_as(files, dir, options, false)
    }

    /// Opens a group in the role it has, which must be the expected one.
    pub(crate) fn open_as(
        files: Arc<dyn Files>,
        dir: &Path,
        options: &Options,
        follows: bool,
    ) -> Result<Group> {
        let base = |info: &VolumeInfo| Base::open(&*files, info).map(Ground::Base);
        Group::open_on(Arc::clone(&files), dir, options, (follows, false), &base)
    }

    /// Opens a group whose volumes lie over an image.
    pub(crate) fn open_over(
        files: Arc<dyn Files>,
        dir: &Path,
        options: &Options,
        ground: GroundOf<'_>,
    ) -> Result<Group> {
        Group::open_on(files, dir, options, (false, true), ground)
    }

    fn open_on(
        files: Arc<dyn Files>,
        dir: &Path,
        options: &Options,
        (follows, over_image): (bool, bool),
        ground: GroundOf<'_>,
    ) -> Result<Group> {
        let started = Instant::now();
        let mut control = Superblock::open(&*files, dir)?;
        if control.memory.follows != follows {
            let (is, step) = match follows {
                true => ("production's journal, not a copy", "give another directory"),
                false => ("a copy", "promote it first"),
            };
            return Err(Error::Conflict(format!(
                "{} holds {is} of group {}: {step}",
                dir.display(),
                control.memory.name
            )));
        }
        let memory = control.memory.clone();
        let mut volumes = BTreeMap::new();
        for info in &memory.volumes {
            volumes.insert(info.number, Arc::new(VolumeState::new(info.clone(), ground(info)?)));
        }
        let mut tail = find_tail(&*files, dir, &memory)?;
        let spare = discard_strays(&*files, dir, &memory, &mut tail)?;
        let bookmarks = bookmarks(&*files, &memory, &tail)?;
        let newest_copy = newest_copy(&*files, &memory, &tail)?;
        let branches = branches(&*files, &memory, &tail)?;
        let newest_timeline = newest_timeline(&*files, &memory, &tail)?;
        let resyncs = resyncs(&*files, &memory, &tail)?;
        // A copy's records bear the epochs of its source, and what lies beyond its end is what will come there again.
        if !follows {
            // Records written from here on are told from whatever lies beyond the end, even after further crashes.
            control.update(|m| m.epoch += 1)?;
            // Both slots carry it, so that losing one does not make this run's records strangers.
            control.update(|_| ())?;
        }
        let memory = control.memory.clone();
        let (number, offset) = place(tail.head.lsn, memory.segment_bytes);
        let active = tail.segments.get(&number).cloned().ok_or_else(|| Error::Damaged {
            path: segment_path(dir, number),
            detail: "the newest segment is missing".into(),
        })?;
        let log = Log {
            active,
            offset,
            next: VecDeque::new(),
            preparing: false,
            epoch: memory.epoch,
            time_ns: tail.head.time_ns,
            production: memory.history.production(),
        };
        tail.recovery.duration_ns = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let state = State {
            head: tail.head,
            edge: memory.edge,
            folded: memory.folded,
            history: memory.history.clone(),
            volumes,
            sizes: Arc::default(),
            tips: HashMap::new(),
            segments: tail.segments,
            active: tail.active,
            sealing: tail.sealing,
            indexes: tail.indexes,
            covers: tail.covers,
            images: BTreeMap::new(),
            bookmarks,
            rewinds: memory.rewinds.clone(),
            newest_copy,
            resyncs,
        };
        let ledgers = ledger::open_all(&*files, dir);
        let inner = Arc::new(Inner {
            files,
            dir: dir.to_path_buf(),
            id: memory.id,
            name: memory.name.clone(),
            seed: memory.seed(),
            segment_bytes: memory.segment_bytes,
            background: options.background,
            follows,
            over_image,
            folding: Mutex::new(()),
            tending: Mutex::new(()),
            one_sealer: Mutex::new(()),
            syncing: Mutex::new(()),
            spare: Mutex::new(spare),
            control: Mutex::new(control),
            log: Mutex::new(log),
            state: RwLock::new(state),
            durable: AtomicU64::new(memory.durable_lsn),
            flush: Default::default(),
            keeper: Default::default(),
            sealer: Default::default(),
            preparer: Default::default(),
            room: Condvar::new(),
            kept_bytes: AtomicU64::new(0),
            policy: Mutex::new(Policy::default()),
            alert: Mutex::new(None),
            sealing_alert: Mutex::new(None),
            over_limit: AtomicBool::new(false),
            clock: Mutex::new(None),
            failure: OnceLock::new(),
            closed: AtomicBool::new(false),
            counters: Counters::default(),
            recovery: tail.recovery,
            threads: Mutex::new(Vec::new()),
            copies: Default::default(),
            rows: Default::default(),
            ledgers: Mutex::new(ledgers),
        });
        inner.state.write().resized();
        inner.honour_branches(&branches, newest_timeline)?;
        let memory = inner.control.lock().memory.clone();
        inner.restore_lines(&memory)?;
        // A fold that a crash interrupted is the keeper's to finish: what is not yet in the bases is in the log, and read from there.
        let group = Group(inner);
        if options.background {
            group.start_threads().inspect_err(|_| {
                let _ = group.0.close_scratches();
            })?;
        }
        Ok(group)
    }

    fn start_threads(&self) -> Result<()> {
        let i = &self.0;
        type Work = (&'static str, fn(&Inner));
        let work: [Work; 4] = [
            ("flush", Inner::run_flusher),
            ("seal", Inner::run_sealer),
            ("keep", Inner::run_keeper),
            ("prep", Inner::run_preparer),
        ];
        for (what, run) in work {
            let inner = Arc::clone(i);
            let thread = thread::Builder::new()
                .name(format!("{what} {}", i.name).chars().take(15).collect())
                .spawn(move || run(&inner))
                .doing("starting a thread for", &i.dir)?;
            i.threads.lock().push(thread);
        }
        Ok(())
    }
}

impl Inner {
    /// A crash can come between a BRANCH record and the superblock. Nobody was told of that rewind, but the log says that it happened,
    /// and whoever reads the log must find what we do: so it did. Only the newest can be in doubt, and nothing was written after it.
    ///
    /// No new timeline gets the number of one that has records in the log, `newest` at most: a copy has records of its source's images, and
    /// may never have had the BRANCH records that began them.
    fn honour_branches(&self, branches: &[(Entry, BranchPoint)], newest: TimelineId) -> Result<()> {
        let mut control = self.control.lock();
        let known = control.memory.history.clone();
        let newest = branches.iter().map(|(_, b)| b.timeline).fold(newest, TimelineId::max);
        let next = known.next.max(newest.saturating_add(1));
        let doubtful = branches.last().filter(|(e, b)| {
            let newest_stay = known.stays.last().map_or(0, |s| s.since);
            let written_after = self.state.read().head.lsn > e.end();
            let in_window = b.at >= control.memory.edge.lsn;
            b.production && in_window && e.lsn > newest_stay && b.timeline >= known.next && !written_after
        });
        if next == known.next && doubtful.is_none() {
            return Ok(());
        }
        let rewind = match doubtful {
            Some((e, b)) => {
                let at = Point { lsn: e.lsn, time_ns: e.time_ns };
                Some((b, Rewind { at, to: self.point_at_lsn(b.at)?, undo_lsn: e.lsn }))
            }
            None => None,
        };
        self.flush_inline()?;
        self.remember(&mut control, |m| {
            m.history.next = next;
            if let Some((b, rewind)) = rewind {
                let timeline = Timeline { id: b.timeline, parent: Some(b.parent), at: b.at };
                m.history.timelines.insert(b.timeline, timeline);
                m.history.stays.push(Stay { timeline: b.timeline, since: rewind.at.lsn });
                m.rewinds.push(rewind);
            }
        })?;
        let mut state = self.state.write();
        state.history = control.memory.history.clone();
        state.rewinds = control.memory.rewinds.clone();
        drop(state);
        self.log.lock().production = control.memory.history.production();
        Ok(())
    }

    /// Production's tip and the open images, as they were.
    fn restore_lines(self: &Arc<Self>, memory: &Memory) -> Result<()> {
        let production = memory.history.production();
        let view = Arc::new(self.view(memory.history.lineage(production, Lsn::MAX))?);
        {
            let mut state = self.state.write();
            let tip = Tip { own: Maps::new(Arc::clone(&state.sizes)), under: Some(view) };
            state.tips.insert(production, tip);
        }
        for entry in &memory.images {
            let at = if entry.writable { Lsn::MAX } else { entry.point.lsn };
            let view = Arc::new(self.view(memory.history.lineage(entry.timeline, at))?);
            let mut state = self.state.write();
            if entry.writable {
                let own = Maps::new(Arc::clone(&state.sizes));
                state.tips.insert(entry.timeline, Tip { own, under: Some(Arc::clone(&view)) });
            }
            state.images.insert(entry.name.clone(), Arc::new(ImageState::new(entry.clone(), view)));
        }
        scratch::discard_strays(self, &memory.images)?;
        self.open_scratches(memory).inspect_err(|_| {
            let _ = self.close_scratches();
        })
    }

    fn open_scratches(self: &Arc<Self>, memory: &Memory) -> Result<()> {
        for (entry, id) in memory.images.iter().filter_map(|e| Some((e, e.scratch?))) {
            let under = self.state.read().images.get(&entry.name).cloned();
            let Some(under) = under else { continue };
            let opened = scratch::open(self, &under, id)?;
            self.state.write().images.insert(entry.name.clone(), Arc::new(ImageState::over(&under, opened)));
        }
        Ok(())
    }
}

fn find_tail(files: &dyn Files, dir: &Path, memory: &Memory) -> Result<Tail> {
    let bytes = memory.segment_bytes;
    let logs = log_dir(dir);
    let present: BTreeSet<SegmentNumber> =
        files.list(&logs).doing("listing", &logs)?.iter().filter_map(|n| segment_number(n)).collect();
    let mut tail = Tail {
        segments: BTreeMap::new(),
        indexes: BTreeMap::new(),
        covers: HashMap::new(),
        sealing: VecDeque::new(),
        active: Vec::new(),
        head: memory.edge,
        recovery: Recovery::default(),
    };
    let (mut number, _) = place(memory.folded, bytes);
    // Sealed segments, as far as their indexes and runs are whole.
    let mut runs = open_runs(files, dir, memory)?;
    while present.contains(&number) {
        let Some(index) = SegmentIndex::open(files, dir, number, memory.seed()) else { break };
        if !runs_complete(files, &index, memory, &runs)? {
            break;
        }
        tail.head =
            Point { lsn: first_lsn(number + 1, bytes), time_ns: tail.head.time_ns.max(index.last_time_ns) };
        tail.segments.insert(number, Arc::new(Segment::existing(dir, number, true)));
        tail.indexes.insert(number, Arc::new(index));
        number += 1;
    }
    for cover in runs.values_mut() {
        cover.forget_from(number);
    }
    runs.retain(|_, cover| !cover.is_empty());
    tail.covers = runs;
    let floor = durable_floor(files, dir, memory)?;
    scan_tail(files, dir, memory, (&present, floor), number, &mut tail)?;
    if tail.head.lsn < floor {
        return Err(lost(dir, memory, tail.head.lsn, floor));
    }
    Ok(tail)
}

/// What certainly was durable: the superblock says so, or a segment has an index, which was written only after the segment, all before
/// it, and the start of the one behind it had been synced.
pub(crate) fn durable_floor(files: &dyn Files, dir: &Path, memory: &Memory) -> Result<Lsn> {
    let indexes = index_dir(dir);
    let (first, _) = place(memory.folded, memory.segment_bytes);
    let mut floor = memory.durable_lsn;
    for name in files.list(&indexes).doing("listing", &indexes)? {
        let number = name.strip_suffix(".idx").and_then(|n| SegmentNumber::from_str_radix(n, 16).ok());
        if let Some(number) = number.filter(|n| *n >= first) {
            if SegmentIndex::open(files, dir, number, memory.seed()).is_some() {
                floor = floor.max(first_lsn(number + 1, memory.segment_bytes));
            }
        }
    }
    Ok(floor)
}

fn lost(dir: &Path, memory: &Memory, head: Lsn, floor: Lsn) -> Error {
    Error::Damaged {
        path: segment_path(dir, head / memory.segment_bytes),
        detail: format!(
            "the log of group {} ends at LSN {head} but was durable up to {floor}: records that were flushed are lost. Nothing has been changed; run playhead journal verify, and restore the group from a copy",
            memory.name
        ),
    }
}

fn open_runs(files: &dyn Files, dir: &Path, memory: &Memory) -> Result<HashMap<TimelineId, Cover>> {
    let indexes = index_dir(dir);
    let mut covers: HashMap<TimelineId, Cover> = HashMap::new();
    let (first, _) = place(memory.folded, memory.segment_bytes);
    for name in files.list(&indexes).doing("listing", &indexes)? {
        let Some((timeline, key)) = RunKey::parse(&name) else { continue };
        if key.segments().1 <= first || !memory.history.timelines.contains_key(&timeline) {
            let _ = files.remove(&indexes.join(&name));
            continue;
        }
        match Run::open(files, dir, timeline, key, memory.seed()) {
            Ok(run) => covers.entry(timeline).or_default().insert(key, Arc::new(run)),
            Err(e) => log::warn!("group {}: {e}; it is rebuilt", memory.name),
        }
    }
    Ok(covers)
}

/// Whether every timeline that has records in the segment, and can still be read, has its run of it. The index says which have.
fn runs_complete(
    files: &dyn Files,
    index: &SegmentIndex,
    memory: &Memory,
    covers: &HashMap<TimelineId, Cover>,
) -> Result<bool> {
    let key = RunKey::of_segment(index.number);
    let timelines = match &index.timelines {
        Some(timelines) => timelines.clone(),
        None => {
            let Ok(entries) = index.entries(files, memory.seed()) else { return Ok(false) };
            let all: BTreeSet<TimelineId> = entries.iter().map(|e| e.timeline).collect();
            all.into_iter().collect()
        }
    };
    Ok(timelines
        .iter()
        .filter(|t| memory.history.timelines.contains_key(t))
        .all(|t| covers.get(t).is_some_and(|c| c.contains(key))))
}

fn scan_tail(
    files: &dyn Files,
    dir: &Path,
    memory: &Memory,
    (present, floor): (&BTreeSet<SegmentNumber>, Lsn),
    first: SegmentNumber,
    tail: &mut Tail,
) -> Result<()> {
    let bytes = memory.segment_bytes;
    let mut epochs = (0, memory.epoch);
    let mut number = first;
    loop {
        let segment = Segment::existing(dir, number, false);
        if !present.contains(&number) || !segment.is_begun(files, memory.id, bytes)? {
            // The log ends at the end of the segment before: nothing was ever written here.
            let start = first_lsn(number, bytes);
            tail.head.lsn = start.max(tail.head.lsn);
            // A segment is made, and durable, before anything that could move the floor to its start.
            if start <= floor {
                return Err(lost(dir, memory, start, floor));
            }
            let made = Segment::create(files, dir, memory.id, number, bytes)
                .map_err(|e| no_space(&memory.name, e))?;
            tail.segments.insert(number, Arc::new(made));
            return Ok(());
        }
        let file = Arc::clone(segment.file(files)?);
        let mut scan = Scan::new((file, segment.path.clone()), number, bytes, memory.seed(), epochs);
        let mut entries = Vec::new();
        let full = loop {
            match scan.next()? {
                Found::Record(header) => {
                    tail.recovery.records_scanned += 1;
                    tail.head.time_ns = tail.head.time_ns.max(header.time_ns);
                    entries.push(Entry::from(&header));
                }
                Found::SegmentEnd => break true,
                Found::Nothing(_) => break false,
            }
        };
        epochs = scan.epochs;
        tail.recovery.bytes_scanned += scan.offset;
        let segment = Arc::new(segment);
        tail.segments.insert(number, Arc::clone(&segment));
        if !full {
            tail.head.lsn = number * bytes + scan.offset;
            tail.active = entries;
            return Ok(());
        }
        tail.sealing.push_back(Sealing::new(segment, entries));
        number += 1;
        tail.head.lsn = first_lsn(number, bytes);
    }
}

/// Removes what is no part of the group: segments below the fold, half-written and stale indexes. Segments beyond the end of the log
/// are set aside, to be written over.
fn discard_strays(files: &dyn Files, dir: &Path, memory: &Memory, tail: &mut Tail) -> Result<Vec<Segment>> {
    let logs = log_dir(dir);
    let last = tail.segments.last_key_value().map_or(0, |(n, _)| *n);
    let mut spare = Vec::new();
    let names: BTreeSet<String> = files.list(&logs).doing("listing", &logs)?.into_iter().collect();
    for name in &names {
        let number = segment_number(name);
        if number.is_some_and(|n| tail.segments.contains_key(&n)) {
            continue;
        }
        let path = logs.join(name);
        let set_aside = name.ends_with(".spare");
        // One of that number may have been set aside before: its name is taken.
        let nameless = number.is_some() && names.contains(&name.replace(".seg", ".spare"));
        if set_aside || number.is_some_and(|n| n > last && !nameless) {
            tail.recovery.discarded_bytes += memory.segment_bytes;
            if let Some(segment) = Segment::set_aside(files, &path, memory.segment_bytes) {
                spare.push(segment);
                continue;
            }
        }
        files.remove(&path).doing("removing", &path)?;
    }
    let indexes = index_dir(dir);
    for name in files.list(&indexes).doing("listing", &indexes)? {
        let known = match name.strip_suffix(".idx") {
            Some(n) => SegmentNumber::from_str_radix(n, 16).is_ok_and(|n| tail.indexes.contains_key(&n)),
            None => match RunKey::parse(&name) {
                Some((timeline, key)) => tail.covers.get(&timeline).is_some_and(|c| c.contains(key)),
                None => false,
            },
        };
        if !known {
            files.remove(&indexes.join(&name)).doing("removing", &indexes.join(&name))?;
        }
    }
    // A base that was made for a volume which then was not recorded.
    let bases = base_dir(dir);
    for name in files.list(&bases).unwrap_or_default() {
        let path = bases.join(&name);
        let number = name.split('-').next().and_then(|n| n.parse::<u32>().ok());
        let wanted = memory.volumes.iter().any(|v| v.base.contains(&path));
        if !wanted && number.is_some_and(|n| n >= memory.next_volume) {
            files.remove(&path).doing("removing", &path)?;
        }
    }
    Ok(spare)
}

fn marked_records(files: &dyn Files, memory: &Memory, tail: &Tail, opcode: Opcode) -> Result<Vec<Entry>> {
    let mut found = Vec::new();
    for index in tail.indexes.values().filter(|i| i.marked) {
        found.extend(index.entries(files, memory.seed())?.into_iter().filter(|e| e.opcode == opcode));
    }
    let rest = tail.sealing.iter().flat_map(|s| s.entries.iter()).chain(&tail.active);
    found.extend(rest.filter(|e| e.opcode == opcode).copied());
    Ok(found)
}

fn bookmarks(files: &dyn Files, memory: &Memory, tail: &Tail) -> Result<Vec<Bookmark>> {
    let mut out = Vec::new();
    for e in marked_records(files, memory, tail, Opcode::Bookmark)? {
        if e.lsn < memory.edge.lsn {
            continue;
        }
        let payload = payload(files, memory, tail, &e)?;
        let Some((kind, name)) = payload.split_first() else { continue };
        out.push(Bookmark {
            name: String::from_utf8_lossy(name).into_owned(),
            kind: if *kind == 1 { BookmarkKind::Application } else { BookmarkKind::Crash },
            point: Point { lsn: e.lsn, time_ns: e.time_ns },
        });
    }
    Ok(out)
}

fn branches(files: &dyn Files, memory: &Memory, tail: &Tail) -> Result<Vec<(Entry, BranchPoint)>> {
    let mut out = Vec::new();
    for e in marked_records(files, memory, tail, Opcode::Branch)? {
        if let Some(point) = BranchPoint::decode(&payload(files, memory, tail, &e)?) {
            out.push((e, point));
        }
    }
    Ok(out)
}

/// The highest number of a timeline that has records in the log.
fn newest_timeline(files: &dyn Files, memory: &Memory, tail: &Tail) -> Result<TimelineId> {
    let rest = tail.sealing.iter().flat_map(|s| s.entries.iter()).chain(&tail.active);
    let mut newest = rest.map(|e| e.timeline).max().unwrap_or(0);
    for index in tail.indexes.values() {
        newest = match &index.timelines {
            Some(few) => few.iter().copied().fold(newest, TimelineId::max),
            None => {
                let entries = index.entries(files, memory.seed())?;
                entries.iter().map(|e| e.timeline).fold(newest, TimelineId::max)
            }
        };
    }
    Ok(newest)
}

fn payload(files: &dyn Files, memory: &Memory, tail: &Tail, e: &Entry) -> Result<Vec<u8>> {
    let (number, offset) = place(e.lsn, memory.segment_bytes);
    let Some(segment) = tail.segments.get(&number) else { return Ok(Vec::new()) };
    let mut payload = vec![0; e.payload_bytes as usize];
    let at = offset + crate::record::HEADER_BYTES as u64;
    segment.file(files)?.read_at(&mut payload, at).doing("reading", &segment.path)?;
    Ok(payload)
}

fn resyncs(files: &dyn Files, memory: &Memory, tail: &Tail) -> Result<Spans> {
    let mut found = Vec::new();
    for opcode in [Opcode::ResyncBegin, Opcode::ResyncEnd] {
        for e in marked_records(files, memory, tail, opcode)? {
            found.push((e, payload(files, memory, tail, &e)?));
        }
    }
    found.sort_by_key(|(e, _)| e.lsn);
    Ok(Spans::found(&found, &memory.resyncing))
}

fn newest_copy(files: &dyn Files, memory: &Memory, tail: &Tail) -> Result<Lsn> {
    let copies = marked_records(files, memory, tail, Opcode::Copy)?;
    Ok(copies.last().map_or(0, |e| e.lsn))
}
