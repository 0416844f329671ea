//! What a group must remember beside its records: who it is, its volumes, timelines and images, and how far trimming has come.
//!
//! One file with two slots of fixed size, both written in full when the group is created, so that writing one later needs no new
//! space: also on a full disk the trailing edge can be moved. Slots are written in turn; the valid one with the higher number counts.

use std::{
    collections::BTreeMap,
    io::IoSlice,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    error::Context,
    files::{File, Files, Open},
    lineage::{History, TimelineId},
    record::{u32_at, u64_at, FORMAT},
    segment::first_lsn,
    step::StepDone,
    Error, Lsn, Point, Result,
};

const SLOT_BYTES: usize = 256 << 10;
const HEADER_BYTES: usize = 32;
const MAGIC: &[u8; 8] = b"PHsuper\n";

/// A volume as the group remembers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeInfo {
    /// Number in the group's records; never used twice.
    pub number: u32,
    /// Name, unique in the group.
    pub name: String,
    /// Identity for hosts.
    pub uuid: Uuid,
    /// Size in blocks of 512 bytes.
    pub block_count: u64,
    /// The base's files, in order; more than one only beyond 8 TiB.
    pub base: Vec<PathBuf>,
    /// Whether the base was there before (an adopted raw image or device).
    pub adopted: bool,
    /// Head when the volume came; images of earlier points do not have it.
    pub created_lsn: Lsn,
}

/// An open image as the group remembers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageEntry {
    /// Name, unique in the group.
    pub(crate) name: String,
    /// The moment it shows.
    pub(crate) point: Point,
    /// The timeline it is read from: its own if it is writable.
    pub(crate) timeline: TimelineId,
    /// Whether it is a branch, and so takes writes.
    pub(crate) writable: bool,
    /// The identity of the group that takes its writes, if one beside the log does ([`crate::scratch`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) scratch: Option<Uuid>,
    /// When it was opened, ns since the Unix epoch.
    pub(crate) created_ns: u64,
}

/// A rewind of production that can still be undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rewind {
    /// When it was done.
    pub at: Point,
    /// The point production went back to.
    pub to: Point,
    /// The point that undoes it.
    pub undo_lsn: Lsn,
}

/// Everything in a slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Memory {
    pub(crate) id: Uuid,
    pub(crate) name: String,
    pub(crate) segment_bytes: u64,
    /// The run of the service that last opened the group; records of later ones are no records of ours.
    pub(crate) epoch: u32,
    /// No record below this was ever lost once this was written.
    pub(crate) durable_lsn: Lsn,
    /// The trailing edge: points below it are given up.
    pub(crate) edge: Point,
    /// The bases hold everything of production's lineage below this; equal to the edge unless folding is under way.
    pub(crate) folded: Lsn,
    /// How far the step of folding that begins at `folded` has come, if it is a large one. Without it the step is repeated as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) step: Option<StepDone>,
    pub(crate) volumes: Vec<VolumeInfo>,
    pub(crate) next_volume: u32,
    pub(crate) history: History,
    pub(crate) images: Vec<ImageEntry>,
    pub(crate) rewinds: Vec<Rewind>,
    /// Volumes that are not in step with their production, and since when.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) resyncing: BTreeMap<u32, Point>,
    /// Whether it is a copy: records come from its source, and nobody else makes any.
    #[serde(default)]
    pub(crate) follows: bool,
}

impl Memory {
    /// Of a new group, which holds nothing.
    pub(crate) fn new(id: Uuid, name: String, segment_bytes: u64, now_ns: u64) -> Memory {
        let start = first_lsn(0, segment_bytes);
        Memory {
            id,
            name,
            segment_bytes,
            epoch: 0,
            durable_lsn: start,
            edge: Point { lsn: start, time_ns: now_ns },
            folded: start,
            step: None,
            volumes: Vec::new(),
            next_volume: 1,
            history: History::default(),
            images: Vec::new(),
            rewinds: Vec::new(),
            resyncing: BTreeMap::new(),
            follows: false,
        }
    }

    /// The seed of the group's CRCs.
    pub(crate) fn seed(&self) -> u32 {
        crc32c::crc32c(self.id.as_bytes())
    }
}

/// The open superblock file.
pub(crate) struct Superblock {
    file: Arc<dyn File>,
    path: PathBuf,
    sequence: u64,
    pub(crate) memory: Memory,
}

impl Superblock {
    fn path(dir: &Path) -> PathBuf {
        dir.join("superblock")
    }

    /// Makes the file, with both slots; durable when it returns.
    pub(crate) fn create(files: &dyn Files, dir: &Path, memory: Memory) -> Result<Superblock> {
        let path = Self::path(dir);
        let temporary = dir.join("superblock.new");
        let file = files.open(&temporary, Open::Create).doing("creating", &temporary)?;
        lock(&*file, &path)?;
        let zeros = vec![0_u8; 2 * SLOT_BYTES];
        file.write_at(&[IoSlice::new(&zeros)], 0).doing("writing", &temporary)?;
        let mut superblock = Superblock { file, path: temporary.clone(), sequence: 0, memory };
        superblock.save()?;
        superblock.save()?;
        files.rename(&temporary, &path).doing("renaming", &temporary)?;
        files.sync_dir(dir).doing("syncing", dir)?;
        superblock.path = path;
        Ok(superblock)
    }

    /// Opens and locks the file and believes the newest valid slot.
    pub(crate) fn open(files: &dyn Files, dir: &Path) -> Result<Superblock> {
        let path = Self::path(dir);
        let file = files.open(&path, Open::Write).doing("opening", &path)?;
        lock(&*file, &path)?;
        let (sequence, memory) = read(&*file, &path)?;
        Ok(Superblock { file, path, sequence, memory })
    }

    /// The newest valid slot, without lock or change.
    pub(crate) fn peek(files: &dyn Files, dir: &Path) -> Result<Memory> {
        let path = Self::path(dir);
        let file = files.open(&path, Open::Read).doing("opening", &path)?;
        Ok(read(&*file, &path)?.1)
    }

    /// Makes `memory`, as changed by `change`, durable; on an error nothing is changed.
    pub(crate) fn update(&mut self, change: impl FnOnce(&mut Memory)) -> Result<()> {
        let before = self.memory.clone();
        change(&mut self.memory);
        self.save().inspect_err(|_| self.memory = before)
    }

    /// Refuses if `change` would make more to remember than a slot holds. For those who must do something irrevocable first.
    pub(crate) fn check_room(&self, change: impl FnOnce(&mut Memory)) -> Result<()> {
        let mut memory = self.memory.clone();
        change(&mut memory);
        encode(&memory).map(|_| ())
    }

    fn save(&mut self) -> Result<()> {
        let text = encode(&self.memory)?;
        let sequence = self.sequence + 1;
        let mut slot = vec![0_u8; HEADER_BYTES];
        slot[0..8].copy_from_slice(MAGIC);
        slot[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        slot[12..16].copy_from_slice(&(text.len() as u32).to_le_bytes());
        slot[16..24].copy_from_slice(&sequence.to_le_bytes());
        slot.extend_from_slice(&text);
        let crc = crc32c::crc32c_append(crc32c::crc32c(&slot[..28]), &slot[HEADER_BYTES..]);
        slot[28..32].copy_from_slice(&crc.to_le_bytes());
        let offset = (sequence % 2) * SLOT_BYTES as u64;
        self.file.write_at(&[IoSlice::new(&slot)], offset).doing("writing", &self.path)?;
        self.file.sync().doing("syncing", &self.path)?;
        self.sequence = sequence;
        Ok(())
    }
}

fn encode(memory: &Memory) -> Result<Vec<u8>> {
    let text = serde_json::to_vec(memory).map_err(|e| Error::Invalid(e.to_string()))?;
    if text.len() > SLOT_BYTES - HEADER_BYTES {
        return Err(Error::Conflict(format!(
            "group {} has too many volumes, images and rewinds to remember ({} bytes): close images that are not needed",
            memory.name,
            text.len()
        )));
    }
    Ok(text)
}

fn lock(file: &dyn File, path: &Path) -> Result<()> {
    if file.lock().doing("locking", path)? {
        Ok(())
    } else {
        Err(Error::Busy { path: path.to_path_buf() })
    }
}

fn read(file: &dyn File, path: &Path) -> Result<(u64, Memory)> {
    let mut newest: Option<(u64, Memory)> = None;
    let mut newer_format = None;
    for slot in 0..2 {
        let mut b = vec![0_u8; SLOT_BYTES];
        if file.read_at(&mut b, slot * SLOT_BYTES as u64).is_err() || &b[0..8] != MAGIC {
            continue;
        }
        let length = u32_at(&b, 12) as usize;
        let Some(text) = b.get(HEADER_BYTES..HEADER_BYTES + length) else { continue };
        if crc32c::crc32c_append(crc32c::crc32c(&b[..28]), text) != u32_at(&b, 28) {
            continue;
        }
        let format = u32_at(&b, 8);
        if format > FORMAT {
            newer_format = Some(format);
            continue;
        }
        let sequence = u64_at(&b, 16);
        if let Ok(memory) = serde_json::from_slice::<Memory>(text) {
            if newest.as_ref().is_none_or(|(s, _)| *s < sequence) {
                newest = Some((sequence, memory));
            }
        }
    }
    if let Some(found) = newer_format {
        return Err(Error::NewerFormat { path: path.to_path_buf(), found, supported: FORMAT });
    }
    newest.ok_or_else(|| Error::Damaged {
        path: path.to_path_buf(),
        detail: "neither of its two slots is valid; restore the file from a copy of the group".into(),
    })
}
