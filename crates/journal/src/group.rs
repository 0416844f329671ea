//! A consistency group: volumes that share one write order, one journal, one history.
//!
//! Who holds what, and the order in which locks are taken:
//! `folding` (one fold at a time) -> `control` (the superblock: what only changes by an administrator's act) -> `log` (the append end;
//! its holder decides the order of records) -> `state` (indexes and tables, read by every I/O, written for moments).
//! Files are written with `log` held (appends) or `folding` held (bases), never with `state`.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    path::{Path, PathBuf},
    sync::{
        atomic::{AtomicBool, AtomicU64, Ordering},
        Arc, OnceLock,
    },
    thread::JoinHandle,
    time::Instant,
};

use parking_lot::{Condvar, Mutex, RwLock};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    asof::RowsCache,
    base::Base,
    cover::Cover,
    files::Files,
    flush::FlushQueue,
    image::ImageState,
    index::{Entry, SegmentIndex},
    keeper::Signal,
    ledger::Ledger,
    lineage::{History, TimelineId},
    maps::{Maps, Sizes},
    read::CopyCache,
    record,
    resync::Spans,
    scratch::Under,
    segment::{self, Segment, SegmentNumber},
    superblock::{Memory, Rewind, Superblock, VolumeInfo},
    view::View,
    volume::Volume,
    Error, Lsn, Result,
};

/// How a group is made and run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Bytes of a segment, a power of two from 64 KiB to 1 GiB; fixed when the group is created.
    pub segment_bytes: u64,
    /// Whether threads of the group's own do the housekeeping. Without, flushes happen inline and [`Group::tend`] is the caller's
    /// to call: then a run is a function of its calls.
    pub background: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options { segment_bytes: 64 << 20, background: true }
    }
}

/// An instant of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Point {
    /// All records that start before it.
    pub lsn: Lsn,
    /// Time of the newest of them, ns since the Unix epoch.
    pub time_ns: u64,
}

/// The span within which every instant can be restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// The trailing edge.
    pub edge: Point,
    /// The newest instant.
    pub head: Point,
}

/// What a bookmark promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BookmarkKind {
    /// As if the power had failed at that instant.
    Crash,
    /// Applications had been brought to rest.
    Application,
}

/// A named instant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bookmark {
    /// Its name.
    pub name: String,
    /// What it promises.
    pub kind: BookmarkKind,
    /// The instant.
    pub point: Point,
}

/// How much history to keep. Whichever limit is reached first moves the trailing edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Policy {
    /// Keep every instant younger than this.
    pub window_ns: Option<u64>,
    /// Keep the journal's segments below this many bytes.
    pub limit_bytes: Option<u64>,
    /// Keep up to this many bytes of segments ready ahead of need, written through once so that the medium has allocated them, and
    /// write over segments that have left the window instead of removing them. Zero: one segment is kept ready, merely reserved.
    pub reserve_bytes: u64,
}

/// What opening a group took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Recovery {
    /// Records read one by one (the tail that had no index yet).
    pub records_scanned: u64,
    /// Bytes of log read for that.
    pub bytes_scanned: u64,
    /// Segments beyond the end of the log, in bytes: made ahead, or written and never part of history.
    pub discarded_bytes: u64,
    /// How long it took.
    pub duration_ns: u64,
}

/// Figures of a group.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stats {
    /// Newest instant.
    pub head: Point,
    /// What survives power loss now.
    pub durable_lsn: Lsn,
    /// Trailing edge.
    pub edge: Point,
    /// How far the bases have come; behind the edge only while folding.
    pub folded_lsn: Lsn,
    /// Bytes of the log's segments.
    pub journal_bytes: u64,
    /// Segments of the log.
    pub segment_count: u64,
    /// Bytes of segments made ahead of need.
    pub ready_bytes: u64,
    /// Memory of the indexes.
    pub index_bytes: u64,
    /// Records appended since the group was opened.
    pub records: u64,
    /// Bytes appended since then.
    pub bytes_written: u64,
    /// Flushes asked for since then.
    pub flushes: u64,
    /// Syncs of the log that served them.
    pub syncs: u64,
    /// Open images.
    pub images: u64,
    /// What an administrator should know now, if anything.
    pub alert: Option<String>,
    /// The journal is larger than its policy allows: something holds the trailing edge.
    pub over_limit: bool,
    /// What the last opening took.
    pub recovery: Recovery,
}

/// A line of history that takes writes: what was written on it since it was opened, over a view of what was before.
pub(crate) struct Tip {
    pub(crate) own: Maps,
    pub(crate) under: Option<Arc<View>>,
}

/// The append end of the log.
pub(crate) struct Log {
    pub(crate) active: Arc<Segment>,
    /// Where the next record begins, in bytes from the segment's start.
    pub(crate) offset: u64,
    /// Segments made ahead of need.
    pub(crate) next: VecDeque<Segment>,
    /// The preparer is making one.
    pub(crate) preparing: bool,
    pub(crate) epoch: u32,
    pub(crate) time_ns: u64,
    pub(crate) production: TimelineId,
}

/// A full segment whose index and runs are not written yet.
#[derive(Clone)]
pub(crate) struct Sealing {
    pub(crate) segment: Arc<Segment>,
    pub(crate) entries: Arc<Vec<Entry>>,
    maps: Arc<OnceLock<MapsByTimeline>>,
}

/// The newest versions that a segment gives each timeline's blocks.
pub(crate) type MapsByTimeline = BTreeMap<TimelineId, Arc<Maps>>;

impl Sealing {
    pub(crate) fn new(segment: Arc<Segment>, entries: Vec<Entry>) -> Sealing {
        Sealing { segment, entries: Arc::new(entries), maps: Arc::default() }
    }

    /// Made when first asked for. Volumes that came later have no records here.
    pub(crate) fn maps(&self, sizes: &Sizes) -> &MapsByTimeline {
        self.maps.get_or_init(|| {
            let mut made: BTreeMap<TimelineId, Maps> = BTreeMap::new();
            for e in self.entries.iter() {
                let maps = made.entry(e.timeline).or_insert_with(|| Maps::new(Arc::clone(sizes)));
                if let Some(m) = e.mapped() {
                    maps.insert(e.volume, m);
                }
            }
            made.into_iter().map(|(timeline, maps)| (timeline, Arc::new(maps))).collect()
        })
    }
}

/// Indexes and tables.
pub(crate) struct State {
    pub(crate) head: Point,
    pub(crate) edge: Point,
    pub(crate) folded: Lsn,
    pub(crate) history: History,
    pub(crate) volumes: BTreeMap<u32, Arc<VolumeState>>,
    pub(crate) sizes: Sizes,
    pub(crate) tips: HashMap<TimelineId, Tip>,
    pub(crate) segments: BTreeMap<SegmentNumber, Arc<Segment>>,
    pub(crate) active: Vec<Entry>,
    pub(crate) sealing: VecDeque<Sealing>,
    pub(crate) indexes: BTreeMap<SegmentNumber, Arc<SegmentIndex>>,
    pub(crate) covers: HashMap<TimelineId, Cover>,
    pub(crate) images: BTreeMap<String, Arc<ImageState>>,
    pub(crate) bookmarks: Vec<Bookmark>,
    pub(crate) rewinds: Vec<Rewind>,
    pub(crate) resyncs: Spans,
    /// LSN of the newest COPY record: until it is folded, other volumes' blocks may be references to a volume.
    pub(crate) newest_copy: Lsn,
}

/// What a volume's blocks are where no record says otherwise.
pub(crate) enum Ground {
    /// Plain blocks, which what leaves the window goes to.
    Base(Base),
    /// What an image shows; it never changes.
    Image(Under),
}

/// A volume and what lies under its records.
pub(crate) struct VolumeState {
    pub(crate) info: VolumeInfo,
    pub(crate) ground: Ground,
    pub(crate) removed: AtomicBool,
}

impl VolumeState {
    pub(crate) fn new(info: VolumeInfo, ground: Ground) -> VolumeState {
        VolumeState { info, ground, removed: AtomicBool::new(false) }
    }

    /// The base, for those who change it.
    pub(crate) fn base(&self) -> Result<&Base> {
        match &self.ground {
            Ground::Base(base) => Ok(base),
            Ground::Image(_) => Err(Error::Conflict(format!(
                "volume {} lies over an image, which nothing changes",
                self.info.name
            ))),
        }
    }
}

#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) records: AtomicU64,
    pub(crate) bytes_written: AtomicU64,
    pub(crate) flushes: AtomicU64,
    pub(crate) syncs: AtomicU64,
}

pub(crate) struct Inner {
    pub(crate) files: Arc<dyn Files>,
    pub(crate) dir: PathBuf,
    pub(crate) id: Uuid,
    pub(crate) name: String,
    pub(crate) seed: u32,
    pub(crate) segment_bytes: u64,
    pub(crate) background: bool,
    /// It is a copy, and makes no records of its own.
    pub(crate) follows: bool,
    /// Its volumes lie over an image, so nothing is folded.
    pub(crate) over_image: bool,
    pub(crate) folding: Mutex<()>,
    pub(crate) tending: Mutex<()>,
    pub(crate) one_sealer: Mutex<()>,
    /// One sync of the log at a time: the system tells of a failure once, and whoever is told must have said so before another asks.
    pub(crate) syncing: Mutex<()>,
    /// Segments that have left the window, to be written over.
    pub(crate) spare: Mutex<Vec<Segment>>,
    pub(crate) control: Mutex<Superblock>,
    pub(crate) log: Mutex<Log>,
    pub(crate) state: RwLock<State>,
    pub(crate) durable: AtomicU64,
    pub(crate) flush: FlushQueue,
    pub(crate) keeper: Signal,
    pub(crate) sealer: Signal,
    pub(crate) preparer: Signal,
    /// Signalled when a fold or a preparation has made room.
    pub(crate) room: Condvar,
    /// Bytes of payload that segments stay ready for.
    pub(crate) kept_bytes: AtomicU64,
    pub(crate) policy: Mutex<Policy>,
    pub(crate) alert: Mutex<Option<String>>,
    pub(crate) sealing_alert: Mutex<Option<String>>,
    /// The journal holds more than its policy allows.
    pub(crate) over_limit: AtomicBool,
    /// When the keeper last looked at the time of day, and what it took it for.
    pub(crate) clock: Mutex<Option<(Instant, u64)>>,
    pub(crate) failure: OnceLock<String>,
    pub(crate) closed: AtomicBool,
    pub(crate) counters: Counters,
    pub(crate) recovery: Recovery,
    pub(crate) threads: Mutex<Vec<JoinHandle<()>>>,
    pub(crate) copies: RwLock<CopyCache>,
    pub(crate) rows: Mutex<RowsCache>,
    /// What each copy lacks; a leaf among the locks.
    pub(crate) ledgers: Mutex<BTreeMap<String, Ledger>>,
}

/// A consistency group. Cheap to clone; all clones are the same group.
#[derive(Clone)]
pub struct Group(pub(crate) Arc<Inner>);

/// Names of groups, volumes and images: 1 to 64 of `a-z A-Z 0-9 . _ -`, beginning with a letter or digit.
pub fn check_name(what: &str, name: &str) -> Result<()> {
    let ok = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if (1..=64).contains(&name.len())
        && name.chars().all(ok)
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
    {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "{what} name {name:?} is not allowed: use 1 to 64 letters, digits, '.', '_' or '-', beginning with a letter or digit"
    )))
}

/// Makes the files of a new group in `dir`, which must be absent or empty. Durable when it returns.
pub(crate) fn lay_out(files: &dyn Files, dir: &Path, memory: Memory) -> Result<()> {
    use crate::error::Context;
    files.create_dir(dir).doing("creating", dir)?;
    let inside = files.list(dir).doing("listing", dir)?;
    if inside.iter().any(|n| n == "superblock") {
        return Err(Error::Conflict(format!("{} holds a group already: open it", dir.display())));
    }
    for sub in [segment::log_dir(dir), crate::index::index_dir(dir)] {
        files.create_dir(&sub).doing("creating", &sub)?;
    }
    Segment::create(files, dir, memory.id, 0, memory.segment_bytes).map_err(|e| no_space(&memory.name, e))?;
    // The superblock comes last: a directory with one is a whole group.
    drop(Superblock::create(files, dir, memory)?);
    if let Some(parent) = dir.parent() {
        files.sync_dir(parent).doing("syncing", parent)?;
    }
    Ok(())
}

impl Group {
    /// Makes a group in `dir`, which must be absent or empty. Durable when it returns.
    pub fn create(files: Arc<dyn Files>, dir: &Path, name: &str, options: &Options) -> Result<Group> {
        check_name("group", name)?;
        let bytes = options.segment_bytes;
        if !bytes.is_power_of_two() || !(64 << 10..=1 << 30).contains(&bytes) {
            return Err(Error::Invalid(format!(
                "segment size {bytes} is not a power of two from 64 KiB to 1 GiB"
            )));
        }
        lay_out(&*files, dir, Memory::new(Uuid::new_v4(), name.to_string(), bytes, files.now_ns()))?;
        Group::open(files, dir, options)
    }

    /// The group's name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The group's identity.
    pub fn id(&self) -> Uuid {
        self.0.id
    }

    /// The newest instant: every write acknowledged so far lies before it.
    pub fn head(&self) -> Point {
        self.0.state.read().head
    }

    /// Everything before this survives power loss.
    pub fn durable_lsn(&self) -> Lsn {
        self.0.durable.load(Ordering::Acquire)
    }

    /// The protection window.
    pub fn window(&self) -> Window {
        let state = self.0.state.read();
        Window { edge: state.edge, head: state.head }
    }

    /// Figures.
    pub fn stats(&self) -> Stats {
        let i = &self.0;
        let ready = i.log.lock().next.len() as u64;
        let scratches: u64 = i.scratches().iter().map(|g| g.stats().index_bytes).sum();
        let state = i.state.read();
        let tips: usize = state
            .tips
            .values()
            .map(|t| t.own.memory_bytes() + t.under.as_ref().map_or(0, |v| v.memory_bytes()))
            .sum();
        let images: usize =
            state.images.values().filter(|i| !i.entry.writable).map(|i| i.view.memory_bytes()).sum();
        let lists: usize =
            state.sealing.iter().map(|s| s.entries.capacity()).sum::<usize>() + state.active.capacity();
        Stats {
            head: state.head,
            durable_lsn: i.durable.load(Ordering::Acquire),
            edge: state.edge,
            folded_lsn: state.folded,
            journal_bytes: state.segments.len() as u64 * i.segment_bytes,
            segment_count: state.segments.len() as u64,
            ready_bytes: ready * i.segment_bytes,
            index_bytes: (tips + images + lists * size_of::<Entry>()) as u64 + scratches,
            records: i.counters.records.load(Ordering::Relaxed),
            bytes_written: i.counters.bytes_written.load(Ordering::Relaxed),
            flushes: i.counters.flushes.load(Ordering::Relaxed),
            syncs: i.counters.syncs.load(Ordering::Relaxed),
            images: state.images.len() as u64,
            alert: i
                .failure
                .get()
                .map(|cause| format!("stopped taking writes: {cause}"))
                .or_else(|| i.sealing_alert.lock().clone())
                .or_else(|| i.alert.lock().clone()),
            over_limit: i.over_limit.load(Ordering::Relaxed),
            recovery: i.recovery,
        }
    }

    /// Adds a volume; durable when it returns.
    pub fn add_volume(&self, name: &str, base: NewBase) -> Result<Volume> {
        check_name("volume", name)?;
        let i = &self.0;
        i.check_leads()?;
        let mut control = i.control.lock();
        i.check_open()?;
        if control.memory.volumes.iter().any(|v| v.name == name) {
            return Err(Error::Conflict(format!(
                "group {} has a volume {name} already: choose another name",
                i.name
            )));
        }
        let number = control.memory.next_volume;
        if number > MAX_VOLUME_NUMBER {
            return Err(Error::Conflict(format!(
                "group {} has had {number} volumes, the most it can",
                i.name
            )));
        }
        let adopted = matches!(base, NewBase::Adopt { .. });
        let (paths, base, block_count) = match base {
            NewBase::Sparse { blocks } => {
                if blocks == 0 || blocks > MAX_BLOCKS {
                    return Err(Error::Invalid(format!(
                        "a volume of {blocks} blocks: from 1 block to 64 TiB is possible"
                    )));
                }
                let bytes = blocks * crate::BLOCK_BYTES as u64;
                let paths = crate::base::paths_for(&i.dir, number, name, bytes);
                (paths.clone(), Base::create(&*i.files, &i.dir, paths, bytes)?, blocks)
            }
            NewBase::Adopt { path } => {
                let (base, blocks) = Base::adopt(&*i.files, &path)?;
                if blocks > MAX_BLOCKS {
                    return Err(Error::Invalid(format!("{} is larger than 64 TiB", path.display())));
                }
                (vec![path], base, blocks)
            }
        };
        let info = VolumeInfo {
            number,
            name: name.to_string(),
            uuid: Uuid::new_v4(),
            block_count,
            base: paths,
            adopted,
            created_lsn: i.state.read().head.lsn,
        };
        i.remember(&mut control, |m| {
            m.volumes.push(info.clone());
            m.next_volume = number + 1;
        })?;
        let volume = Arc::new(VolumeState::new(info, Ground::Base(base)));
        let mut state = i.state.write();
        state.volumes.insert(number, Arc::clone(&volume));
        state.resized();
        drop(state);
        Ok(Volume::production(self.clone(), volume))
    }

    /// Removes a volume: hosts find it gone. The base stays (as of the trailing edge; [`Group::settle`] first to have it current)
    /// unless it is Playhead's own and `delete_base` is set.
    pub fn remove_volume(&self, name: &str, delete_base: bool) -> Result<()> {
        self.0.check_leads()?;
        self.drop_volume(name, delete_base)
    }

    pub(crate) fn drop_volume(&self, name: &str, delete_base: bool) -> Result<()> {
        let i = &self.0;
        let _folding = i.folding.lock();
        i.check_open()?;
        let volume = self.find_volume(name)?;
        if !delete_base || volume.info.adopted {
            // A fold that was interrupted would leave its base as it never was.
            let edge = i.state.read().edge.lsn;
            i.fold(edge, &mut |_, _| true)?;
        }
        let mut control = i.control.lock();
        i.check_open()?;
        let volume = self.find_volume(name)?;
        let number = volume.info.number;
        if let Some(image) = i.state.read().images.keys().next() {
            return Err(Error::Conflict(format!(
                "volume {name} is shown by open images such as {image}: close them first"
            )));
        }
        let head = self.head().lsn;
        i.refuse_if_copied(&volume.info, head)?;
        {
            // A copy is captured with the log held and asks then whether its source is still there.
            let _log = i.log.lock();
            i.refuse_if_copied_since(&volume.info, head)?;
            volume.removed.store(true, Ordering::Release);
        }
        i.remember(&mut control, |m| {
            m.volumes.retain(|v| v.number != number);
            m.resyncing.remove(&number);
        })
        .inspect_err(|_| volume.removed.store(false, Ordering::Release))?;
        let mut state = i.state.write();
        state.volumes.remove(&number);
        state.resized();
        for tip in state.tips.values_mut() {
            tip.own.drop_volume(number);
        }
        drop(state);
        if delete_base && !volume.info.adopted {
            volume.base()?.remove(&*i.files, &i.dir)?;
        }
        Ok(())
    }

    /// The volumes, by number.
    pub fn volumes(&self) -> Vec<VolumeInfo> {
        self.0.state.read().volumes.values().map(|v| v.info.clone()).collect()
    }

    /// A volume of production.
    pub fn volume(&self, name: &str) -> Result<Volume> {
        Ok(Volume::production(self.clone(), self.find_volume(name)?))
    }

    pub(crate) fn find_volume(&self, name: &str) -> Result<Arc<VolumeState>> {
        let state = self.0.state.read();
        state.volumes.values().find(|v| v.info.name == name).cloned().ok_or_else(|| {
            let known: Vec<&str> = state.volumes.values().map(|v| v.info.name.as_str()).collect();
            Error::NotFound(format!(
                "group {} has no volume {name}: it has {}",
                self.0.name,
                if known.is_empty() { "none".into() } else { known.join(", ") }
            ))
        })
    }

    /// Sets how much history is kept; takes effect at the next housekeeping.
    pub fn set_policy(&self, policy: Policy) {
        *self.0.policy.lock() = policy;
        self.0.keeper.wake();
        self.0.preparer.wake();
    }

    /// Stops the group: what was acknowledged is made durable; volumes and images then answer that they are gone.
    pub fn close(&self) -> Result<()> {
        let i = &self.0;
        // What is written to images first: it is read over this group.
        let mut outcome = i.close_scratches();
        if !i.abandon() {
            return outcome;
        }
        // An image may have been opened just then; no other can be any more.
        drop(i.control.lock());
        outcome = outcome.and(i.close_scratches());
        // A write that was under way when `closed` was set has the log; after it nothing can come.
        drop(i.log.lock());
        i.flush_inline()?;
        i.seal_all()?;
        let mut control = i.control.lock();
        let durable = i.durable.load(Ordering::Acquire);
        i.remember(&mut control, |m| m.durable_lsn = durable)?;
        outcome
    }
}

impl Inner {
    /// Ends the group without seeing to what it holds; `false` if it had ended before.
    pub(crate) fn abandon(&self) -> bool {
        if self.closed.swap(true, Ordering::AcqRel) {
            return false;
        }
        self.keeper.wake();
        self.sealer.wake();
        self.preparer.wake();
        self.flush.wake();
        let threads = std::mem::take(&mut *self.threads.lock());
        for thread in threads {
            if thread.join().is_err() {
                log::error!("group {}: a housekeeping thread had panicked", self.name);
            }
        }
        true
    }

    /// Refuses when the group is closed.
    pub(crate) fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::Gone(format!("group {}", self.name)));
        }
        Ok(())
    }

    /// Refuses when the group is a copy: what changes it comes from its source.
    pub(crate) fn check_leads(&self) -> Result<()> {
        if self.follows {
            return Err(Error::Conflict(format!(
                "this is a copy of group {}, which takes no changes of its own: make them on production, or promote the copy first",
                self.name
            )));
        }
        Ok(())
    }

    /// Refuses when the group is closed or its medium has failed.
    pub(crate) fn check_writable(&self) -> Result<()> {
        self.check_open()?;
        match self.failure.get() {
            None => Ok(()),
            Some(cause) => Err(Error::Failed { group: self.name.clone(), cause: cause.clone() }),
        }
    }

    /// Stops the group from taking writes for good, because the medium can no longer be trusted to hold them.
    pub(crate) fn fail(&self, error: &Error) {
        if self.failure.set(error.to_string()).is_ok() {
            log::error!("group {} stops taking writes: {error}", self.name);
        }
    }

    /// Changes what the superblock remembers. If the medium fails at that, nobody knows which of the two states it holds; then nothing
    /// more may be acknowledged that depends on it.
    pub(crate) fn remember(&self, control: &mut Superblock, change: impl FnOnce(&mut Memory)) -> Result<()> {
        control.update(change).inspect_err(|e| {
            if matches!(e, Error::Io { .. }) {
                self.fail(e);
            }
        })
    }

    /// Bytes of the largest payload that fits this group's segments.
    pub(crate) fn max_payload(&self) -> usize {
        record::MAX_PAYLOAD_BYTES.min((self.segment_bytes / 4) as usize)
    }
}

impl State {
    /// Rebuilds what depends on the set of volumes.
    pub(crate) fn resized(&mut self) {
        let sizes: Sizes = Arc::new(self.volumes.iter().map(|(n, v)| (*n, v.info.block_count)).collect());
        for tip in self.tips.values_mut() {
            tip.own.set_sizes(Arc::clone(&sizes));
        }
        self.sizes = sizes;
    }
}

/// Turns the system's "no space" into ours.
pub(crate) fn no_space(group: &str, error: Error) -> Error {
    match error {
        Error::Io { what, path, source }
            if matches!(
                source.kind(),
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded
            ) =>
        {
            Error::NoSpace {
                group: group.to_string(),
                detail: format!(
                    "{what} {}: the file system is full: free space there, or shorten the group's window",
                    path.display()
                ),
            }
        }
        other => other,
    }
}

/// The base of a new volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NewBase {
    /// A sparse file of the group's own.
    Sparse {
        /// Size in blocks, 1 to 64 TiB.
        blocks: u64,
    },
    /// An existing raw image or block device, in place.
    Adopt {
        /// Where it is.
        path: PathBuf,
    },
}

/// 64 TiB.
const MAX_BLOCKS: u64 = (64 << 40) / crate::BLOCK_BYTES as u64;
/// Volume numbers fit 16 bits in the keys of runs.
const MAX_VOLUME_NUMBER: u32 = u16::MAX as u32;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{files::DiskFiles, Change};

    fn block(n: u8) -> Vec<u8> {
        vec![n; 4096]
    }

    fn read(volume: &Volume, lba: u64) -> Vec<u8> {
        let mut buf = vec![0; 4096];
        volume.read(lba, &mut buf).unwrap();
        buf
    }

    #[test]
    fn a_volume_can_be_seen_and_rewound_to_any_write() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("g");
        let options = Options { segment_bytes: 64 << 10, background: true };
        let group = Group::create(Arc::new(DiskFiles), &dir, "g", &options).unwrap();
        let volume = group.add_volume("v", NewBase::Sparse { blocks: 1 << 20 }).unwrap();
        let mut points = Vec::new();
        for n in 0..200_u8 {
            volume.submit(&[Change::Write { lba: u64::from(n % 7) * 8 + 3, data: &block(n) }]).unwrap();
            points.push(group.head());
        }
        for (n, point) in points.iter().enumerate() {
            let image = group.open_image("i", point.lsn, n % 2 == 0).unwrap();
            let shown = image.volume("v").unwrap();
            assert_eq!(read(&shown, (n as u64 % 7) * 8 + 3), block(n as u8));
            if n % 2 == 0 {
                shown.submit(&[Change::Zero { lba: 0, count: 1 << 20 }]).unwrap();
                assert_eq!(read(&shown, 3), block(0));
            }
            group.close_image("i").unwrap();
            assert!(shown.read(0, &mut [0; 512]).is_err());
        }
        assert_eq!(read(&volume, (199 % 7) * 8 + 3), block(199));
        group.rewind(points[10].lsn).unwrap();
        assert_eq!(read(&volume, (10 % 7) * 8 + 3), block(10));
        volume.submit(&[Change::Unmap { lba: 0, count: 1 << 20 }]).unwrap();
        group.undo_rewind().unwrap();
        assert_eq!(read(&volume, (199 % 7) * 8 + 3), block(199));
        drop(volume);
        group.close().unwrap();
        drop(group);
        let group = Group::open(Arc::new(DiskFiles), &dir, &options).unwrap();
        let volume = group.volume("v").unwrap();
        assert_eq!(read(&volume, (199 % 7) * 8 + 3), block(199));
        group.settle(&mut |_, _| true).unwrap();
        let base = std::fs::read(&volume.info().base[0]).unwrap();
        let at = ((199 % 7) * 8 + 3) * 512;
        assert_eq!(base[at..at + 4096], block(199));
        assert_eq!(crate::reader::verify(&DiskFiles, &dir).unwrap().problems, Vec::<String>::new());
        group.close().unwrap();
    }
}
