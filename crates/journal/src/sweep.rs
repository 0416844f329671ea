//! Bringing a copy's bases to a point of the source: the first time, after a gap, and after a rewind the copy could not follow.
//!
//! It is one thing in all three cases. A copy under synchronisation is two facts: the point its bases are brought to, and the blocks that
//! may still differ from it (at first all, later those of the source's [`crate::ledger`] and log). Blocks are moved until none is left; then
//! the log is begun anew at the point, and the copy's window with it. Nothing on the source is held for it: when the edge there passes the
//! point, a new one is taken, and what changed in between is added to what is left. So it ends as soon as blocks are moved faster than
//! hosts change them, and a restart goes on where it was.
//!
//! The file `sync` in the copy's directory says both, durably. While it is there the copy is not consistent, and whoever wants to open or
//! promote it is refused. What it says is left is written only after the bases were synced, so a crash repeats at most a part.
//!
//! Zeros are not moved; and what the base has already is not written again.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    base::{base_dir, Base},
    changed::Blocks,
    error::Context,
    files::{Files, Open},
    follow::make_base,
    index::{index_dir, write_whole},
    lineage::{History, Stay, Timeline, TimelineId},
    record::{u32_at, u64_at, FORMAT},
    segment::{first_lsn, log_dir, place, Segment},
    ship::{Feed, Plan, Shipment, Stretch},
    superblock::{Memory, Superblock, VolumeInfo},
    Error, Point, Result, BLOCK_BYTES,
};

const MAGIC: &[u8; 8] = b"PHsync\r\n";
const HEADER_BYTES: usize = 32;
/// Bytes fetched at once at most.
const FETCH_BYTES: usize = 4 << 20;
/// Bytes of blocks after which what is left is written down.
const SAVE_EVERY_BYTES: u64 = 64 << 20;
/// Bytes compared at once with what the base has.
const COMPARE_BYTES: usize = 64 << 10;
/// Bytes of log fetched at once.
const SHIP_BYTES: usize = 1 << 20;

/// What the file says, beside the blocks.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Goal {
    id: Uuid,
    name: String,
    segment_bytes: u64,
    /// The first synchronisation of this copy.
    initial: bool,
    point: Point,
    timeline: TimelineId,
    volumes: Vec<VolumeInfo>,
    next_volume: u32,
    /// Volumes that were not in step with their production at the point, and since when.
    #[serde(default)]
    resyncing: BTreeMap<u32, Point>,
    total_blocks: u64,
    moved_bytes: u64,
}

/// How far a synchronisation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SweepFigures {
    /// Whether it is the copy's first.
    pub initial: bool,
    /// The point it brings the copy to.
    pub point: Point,
    /// Bytes of blocks that may still differ.
    pub left_bytes: u64,
    /// Bytes of blocks that were to be looked at, in all.
    pub total_bytes: u64,
    /// Bytes of data that had to be moved so far.
    pub moved_bytes: u64,
}

/// What a step came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Swept {
    /// There is more to move.
    More,
    /// The bases are at the point.
    Done,
    /// The source's edge has passed the point.
    Passed,
}

/// A synchronisation under way.
pub(crate) struct Sweep {
    files: Arc<dyn Files>,
    dir: PathBuf,
    goal: Goal,
    left: Blocks,
    bases: BTreeMap<u32, Base>,
    /// Looked at since it was last written down, in bytes.
    unsaved_bytes: u64,
    /// Of the file: no bases are open yet.
    left_blocks: u64,
}

fn sync_path(dir: &Path) -> PathBuf {
    dir.join("sync")
}

/// Whether a copy's synchronisation has not come to its end.
pub(crate) fn under_way(files: &dyn Files, dir: &Path) -> Result<bool> {
    Ok(files.list(dir).doing("listing", dir)?.iter().any(|n| n == "sync"))
}

impl Sweep {
    /// Begins one. `old`: the volumes whose bases are there, as of the point the plan was made for.
    pub(crate) fn begin(
        files: Arc<dyn Files>,
        dir: &Path,
        plan: Plan,
        old: Option<Vec<VolumeInfo>>,
    ) -> Result<Sweep> {
        files.create_dir(dir).doing("creating", dir)?;
        if let Some(parent) = dir.parent() {
            files.sync_dir(parent).doing("syncing", parent)?;
        }
        let mut sweep = Sweep {
            files,
            dir: dir.to_path_buf(),
            goal: Goal {
                id: plan.facts.id,
                name: plan.facts.name.clone(),
                segment_bytes: plan.facts.segment_bytes,
                initial: old.is_none(),
                point: plan.point,
                timeline: plan.timeline,
                volumes: old.unwrap_or_default(),
                next_volume: 0,
                resyncing: BTreeMap::new(),
                total_blocks: 0,
                moved_bytes: 0,
            },
            left: Blocks::default(),
            bases: BTreeMap::new(),
            unsaved_bytes: 0,
            left_blocks: 0,
        };
        sweep.aim(plan)?;
        Ok(sweep)
    }

    /// Goes on with one that a crash, or a stop, interrupted.
    pub(crate) fn open(files: Arc<dyn Files>, dir: &Path) -> Result<Sweep> {
        let path = sync_path(dir);
        let damaged =
            || Error::Damaged { path: path.clone(), detail: "remove the copy and add it again".into() };
        let file = files.open(&path, Open::Read).doing("opening", &path)?;
        let size = file.size().doing("sizing", &path)?;
        if size > 1 << 30 || size < HEADER_BYTES as u64 {
            return Err(damaged());
        }
        let mut bytes = vec![0; size as usize];
        file.read_at(&mut bytes, 0).doing("reading", &path)?;
        if &bytes[..8] != MAGIC
            || crc32c::crc32c_append(crc32c::crc32c(&bytes[..28]), &bytes[HEADER_BYTES..])
                != u32_at(&bytes, 28)
        {
            return Err(damaged());
        }
        if u32_at(&bytes, 8) > FORMAT {
            return Err(Error::NewerFormat { path, found: u32_at(&bytes, 8), supported: FORMAT });
        }
        let text = u64_at(&bytes, 16) as usize;
        let body = bytes.get(HEADER_BYTES..).unwrap_or_default();
        let (text, blocks) = body.split_at_checked(text).ok_or_else(damaged)?;
        let goal: Goal = serde_json::from_slice(text).map_err(|_| damaged())?;
        let left = Blocks::decode(blocks).ok_or_else(damaged)?;
        let left_blocks = left.count();
        let mut sweep = Sweep {
            files,
            dir: dir.to_path_buf(),
            goal,
            left,
            bases: BTreeMap::new(),
            unsaved_bytes: 0,
            left_blocks,
        };
        sweep.open_bases()?;
        Ok(sweep)
    }

    /// The group it is a copy of.
    pub(crate) fn id(&self) -> Uuid {
        self.goal.id
    }

    /// The point it brings the copy to.
    pub(crate) fn point(&self) -> Point {
        self.goal.point
    }

    /// Whether something was done that is not written down.
    pub(crate) fn unsaved(&self) -> bool {
        self.unsaved_bytes > 0
    }

    pub(crate) fn figures(&self) -> SweepFigures {
        let block = BLOCK_BYTES as u64;
        SweepFigures {
            initial: self.goal.initial,
            point: self.goal.point,
            left_bytes: self.left_blocks * block,
            total_bytes: self.goal.total_blocks * block,
            moved_bytes: self.goal.moved_bytes,
        }
    }

    /// Makes the plan's point the goal; what the plan says differs is added to what is left. Durable when it returns.
    pub(crate) fn aim(&mut self, plan: Plan) -> Result<()> {
        let before = self.left.count();
        let mut volumes = Vec::new();
        for v in &plan.facts.volumes {
            match self.goal.volumes.iter().find(|o| o.number == v.number) {
                Some(old) => {
                    volumes.push(old.clone());
                    if plan.lacking.is_none() {
                        self.left.insert(v.number, 0, v.block_count);
                    }
                }
                None => {
                    let bytes = v.block_count * BLOCK_BYTES as u64;
                    let base = crate::base::paths_for(&self.dir, v.number, &v.name, bytes);
                    volumes.push(VolumeInfo { base, adopted: false, ..v.clone() });
                    self.left.insert(v.number, 0, v.block_count);
                }
            }
        }
        if let Some(lacking) = &plan.lacking {
            self.left.join(lacking);
        }
        let kept = |number: u32| volumes.iter().any(|v| v.number == number);
        let gone: Vec<VolumeInfo> = self.goal.volumes.iter().filter(|v| !kept(v.number)).cloned().collect();
        let strangers: Vec<u32> = self.left.extents().map(|(v, _, _)| v).filter(|v| !kept(*v)).collect();
        strangers.into_iter().for_each(|v| self.left.forget(v));
        // A set that was made coarser may reach beyond a volume's end.
        for v in &volumes {
            self.left.remove(v.number, v.block_count, u64::MAX - v.block_count);
        }
        self.goal.volumes = volumes;
        self.goal.next_volume = self.goal.next_volume.max(plan.facts.next_volume);
        self.goal.resyncing.clone_from(&plan.facts.resyncing);
        self.goal.point = plan.point;
        self.goal.timeline = plan.timeline;
        self.left_blocks = self.left.count();
        self.goal.total_blocks += self.left_blocks - before.min(self.left_blocks);
        self.save()?;
        for volume in gone {
            self.bases.remove(&volume.number);
            for path in &volume.base {
                self.files.remove(path).doing("removing", path)?;
            }
        }
        self.open_bases()
    }

    fn open_bases(&mut self) -> Result<()> {
        let folder = base_dir(&self.dir);
        self.files.create_dir(&folder).doing("creating", &folder)?;
        let there: Vec<String> = self.files.list(&folder).doing("listing", &folder)?;
        for v in self.goal.volumes.clone() {
            if self.bases.contains_key(&v.number) {
                continue;
            }
            let found = |p: &PathBuf| p.file_name().is_some_and(|n| there.iter().any(|t| n == t.as_str()));
            let base = if v.base.iter().all(found) {
                Base::open(&*self.files, &v)?
            } else {
                // Not made yet. If it was lost, all of it has to be moved again.
                self.left.insert(v.number, 0, v.block_count);
                self.left_blocks = self.left.count();
                make_base(&*self.files, &self.dir, &v)?.1
            };
            self.bases.insert(v.number, base);
        }
        Ok(())
    }

    /// Syncs the bases and writes down what is left.
    pub(crate) fn save(&mut self) -> Result<()> {
        if self.unsaved_bytes > 0 {
            for base in self.bases.values() {
                base.sync()?;
            }
        }
        let text = serde_json::to_vec(&self.goal).map_err(|e| Error::Invalid(e.to_string()))?;
        let blocks = self.left.encode();
        let mut header = [0; HEADER_BYTES];
        header[..8].copy_from_slice(MAGIC);
        header[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        header[16..24].copy_from_slice(&(text.len() as u64).to_le_bytes());
        let crc = crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(&header[..28]), &text), &blocks);
        header[28..].copy_from_slice(&crc.to_le_bytes());
        write_whole(&*self.files, &sync_path(&self.dir), &[&header, &text, &blocks])?;
        self.files.sync_dir(&self.dir).doing("syncing", &self.dir)?;
        self.unsaved_bytes = 0;
        Ok(())
    }

    /// Moves some blocks. Errors of the source come as they are, and those of the copy's medium too: [`Error::Io`] tells by its path.
    pub(crate) fn step(&mut self, feed: &dyn Feed) -> Result<Swept> {
        let Some((number, lba, count)) = self.left.first() else {
            if self.unsaved_bytes > 0 {
                self.save()?;
            }
            return Ok(Swept::Done);
        };
        let at = (self.goal.timeline, self.goal.point.lsn);
        let found = match feed.blocks(at, number, (lba, count), FETCH_BYTES) {
            Ok(found) => found,
            Err(Error::Gone(_) | Error::NotFound(_)) => {
                if feed.facts()?.volumes.iter().all(|v| v.number != number) {
                    // Removed at the source. The copy's own goes when it next aims, or follows.
                    self.left.forget(number);
                    self.left_blocks = self.left.count();
                    return Ok(Swept::More);
                }
                return Ok(Swept::Passed);
            }
            Err(e) => return Err(e),
        };
        let Some(base) = self.bases.get(&number) else {
            self.left.forget(number);
            return Ok(Swept::More);
        };
        let mut end = lba;
        for stretch in &found {
            if let Some(data) = &stretch.data {
                self.goal.moved_bytes += data.len() as u64;
            }
            put(base, stretch)?;
            end = stretch.lba + stretch.count;
        }
        self.left.remove(number, lba, end - lba);
        self.left_blocks -= end - lba;
        self.unsaved_bytes += (end - lba) * BLOCK_BYTES as u64;
        if self.unsaved_bytes >= SAVE_EVERY_BYTES {
            self.save()?;
        }
        Ok(Swept::More)
    }

    /// Begins the log at the point, and takes the sign of the synchronisation away. `false`: the source's log no longer has the point.
    pub(crate) fn install(&self, feed: &dyn Feed) -> Result<bool> {
        let (files, dir) = (&*self.files, &self.dir);
        let (goal, point) = (&self.goal, self.goal.point);
        let (number, _) = place(point.lsn, goal.segment_bytes);
        for sub in [log_dir(dir), index_dir(dir)] {
            files.create_dir(&sub).doing("creating", &sub)?;
            for name in files.list(&sub).doing("listing", &sub)? {
                files.remove(&sub.join(&name)).doing("removing", &sub.join(&name))?;
            }
        }
        let segment = Segment::create(files, dir, goal.id, number, goal.segment_bytes)?;
        let mut at = first_lsn(number, goal.segment_bytes);
        while at < point.lsn {
            match feed.ship(at, point.lsn, SHIP_BYTES)? {
                Shipment::Chunk(chunk) => {
                    let (_, offset) = place(at, goal.segment_bytes);
                    let bytes = [std::io::IoSlice::new(&chunk.bytes)];
                    segment.file(files)?.write_at(&bytes, offset).doing("writing", &segment.path)?;
                    at = chunk.next;
                }
                Shipment::Gap => return Ok(false),
                Shipment::Nothing => {
                    return Err(Error::Damaged {
                        path: segment.path.clone(),
                        detail: format!(
                            "the source's log ends at LSN {at}, before the point {} of the copy",
                            point.lsn
                        ),
                    })
                }
            }
        }
        segment.sync(files)?;
        // No record before the point has a later epoch than the source has now.
        let epoch = feed.facts()?.epoch;
        let timeline = goal.timeline;
        let first = Timeline { id: timeline, parent: None, at: 0 };
        let history = History {
            timelines: BTreeMap::from([(timeline, first)]),
            stays: vec![Stay { timeline, since: 0 }],
            next: timeline + 1,
        };
        let memory = Memory {
            id: goal.id,
            name: goal.name.clone(),
            segment_bytes: goal.segment_bytes,
            epoch,
            durable_lsn: point.lsn,
            edge: point,
            folded: point.lsn,
            volumes: goal.volumes.clone(),
            next_volume: goal.next_volume,
            history,
            images: Vec::new(),
            rewinds: Vec::new(),
            resyncing: goal.resyncing.clone(),
            step: None,
            follows: true,
        };
        drop(Superblock::create(files, dir, memory)?);
        let path = sync_path(dir);
        files.remove(&path).doing("removing", &path)?;
        files.sync_dir(dir).doing("syncing", dir)?;
        Ok(true)
    }
}

/// Gives a base what a stretch holds, unless it has it.
fn put(base: &Base, stretch: &Stretch) -> Result<()> {
    let block = BLOCK_BYTES as u64;
    let (start, bytes) = (stretch.lba * block, stretch.count * block);
    let Some(data) = &stretch.data else { return clear(base, start, bytes) };
    let mut have = vec![0; COMPARE_BYTES];
    let mut at = start;
    for piece in data.chunks(COMPARE_BYTES) {
        let n = piece.len() as u64;
        if piece.iter().all(|b| *b == 0) {
            clear(base, at, n)?;
        } else {
            let have = &mut have[..piece.len()];
            let known = match base.data_at(at, n)? {
                (false, empty) if empty >= n => false,
                _ => {
                    base.read(at, have)?;
                    have == piece
                }
            };
            if !known {
                base.write(at, piece)?;
            }
        }
        at += n;
    }
    Ok(())
}

/// Zeros, where a base has something else.
fn clear(base: &Base, start: u64, bytes: u64) -> Result<()> {
    match base.data_at(start, bytes)? {
        (false, empty) if empty >= bytes => Ok(()),
        _ => base.punch(start, bytes),
    }
}

/// Gives the base of one volume that came to the source what the volume held then. `false`: that is no longer known there.
pub(crate) fn fill_base(
    feed: &dyn Feed,
    at: (TimelineId, crate::Lsn),
    volume: &VolumeInfo,
    base: &Base,
) -> Result<bool> {
    let mut lba = 0;
    while lba < volume.block_count {
        let found = match feed.blocks(at, volume.number, (lba, volume.block_count - lba), FETCH_BYTES) {
            Ok(found) => found,
            Err(Error::Gone(_) | Error::NotFound(_)) => return Ok(false),
            Err(e) => return Err(e),
        };
        let Some(last) = found.last() else { return Ok(false) };
        lba = last.lba + last.count;
        for stretch in &found {
            put(base, stretch)?;
        }
    }
    base.sync()?;
    Ok(true)
}
