//! The laboratory's array: production is a plain file, and a splitter in it feeds a replica. It can be told to miss offloads, which is
//! what splitters did in 2010: the array carries the command out, the host sees GOOD, and the replica never hears of it.
//!
//! Nothing of the service names this module. What it makes is of its own making from the start ([`MissingArray::create`]): a folder that
//! must hold the laboratory's mark and nothing else, in which it makes the files and the journal. No store, group or volume that exists can
//! be handed to it, so no policy, catalogue or request can bring it about for data that anybody wants.
//!
//! Order of one change, under one lock: the file, then the journal, then the answer; a change that is missed ends after the file.

use std::any::Any;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use playhead_journal::{files::DiskFiles, Error, Group, NewBase, Options, Volume};

use crate::lun::{
    Change, Compared, Copied, CopyPiece, CopySource, Extent, FlushDone, Lsn, Lun, LunError, LunIdentity,
    LunRef, BLOCK_BYTES,
};
use crate::scsi::Offload;

/// The file that makes a folder the laboratory's.
pub const MARK: &str = "PLAYHEAD-LAB";
/// What the file says.
pub const MARK_TEXT: &str = "This folder is a laboratory's. Whatever is in it will be thrown away.\n";
/// Blocks filled or moved at once.
const STEP_BLOCKS: u64 = (1 << 20) / BLOCK_BYTES as u64;

/// What the array's LUNs have in common: one order, and what is missed.
struct Shared {
    /// Held over a whole change, so that production's order and the journal's are one.
    order: Mutex<Vec<Offload>>,
    group: Group,
}

impl Shared {
    fn misses(missed: &[Offload], change: &Change<'_>) -> bool {
        match change {
            Change::Write { .. } => false,
            Change::WriteSame { .. } | Change::Zero { .. } => missed.contains(&Offload::WriteSame),
            Change::Unmap { .. } => missed.contains(&Offload::Unmap),
        }
    }
}

/// An array of plain files with a replica of each.
pub struct MissingArray {
    shared: Arc<Shared>,
    luns: Vec<Arc<MissingLun>>,
    looks: Mutex<u64>,
}

impl MissingArray {
    /// Makes LUNs of `block_count` zeroed blocks in `dir`.
    ///
    /// Errors: a text, if the folder is not the laboratory's or holds anything but its mark, or if something cannot be made.
    pub fn create(dir: &Path, names: &[String], block_count: u64) -> Result<Self, String> {
        check_folder(dir)?;
        let options = Options { background: true, ..Options::default() };
        let group = Group::create(Arc::new(DiskFiles), &dir.join("journal"), "lab", &options)
            .map_err(|e| e.to_string())?;
        let shared = Arc::new(Shared { order: Mutex::new(Vec::new()), group });
        let mut luns = Vec::with_capacity(names.len());
        for name in names {
            let replica = shared
                .group
                .add_volume(name, NewBase::Sparse { blocks: block_count })
                .map_err(|e| e.to_string())?;
            let path = dir.join(format!("{name}.production"));
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .open(&path)
                .and_then(|file| file.set_len(block_count * BLOCK_BYTES as u64).map(|()| file))
                .map_err(|e| format!("{} cannot be made: {e}", path.display()))?;
            // Not the replica's identity: a host that sees both must not take them for two paths to one disk.
            let uuid = uuid::Uuid::new_v5(&replica.info().uuid, b"production");
            let identity = LunIdentity { uuid: *uuid.as_bytes(), name: format!("lab/{name}") };
            luns.push(Arc::new(MissingLun {
                file,
                path,
                identity,
                block_count,
                replica,
                shared: shared.clone(),
            }));
        }
        Ok(Self { shared, luns, looks: Mutex::new(0) })
    }

    /// Which offloads are carried out and not captured, from now on.
    pub fn miss(&self, offloads: Vec<Offload>) {
        *self.shared.order.lock() = offloads;
    }

    /// The LUN that hosts write to.
    pub fn production(&self, name: &str) -> Option<LunRef> {
        let lun = self.luns.iter().find(|lun| lun.identity.name.strip_prefix("lab/") == Some(name))?;
        Some(lun.clone())
    }

    /// The replica as of now, as a read-only LUN of its own.
    pub fn replica(&self, name: &str) -> Result<LunRef, Error> {
        let mut looks = self.looks.lock();
        *looks += 1;
        let image_name = format!("look-{}", *looks);
        let image = self.shared.group.open_image(&image_name, self.shared.group.head().lsn, false)?;
        let volume = image.volume(name)?;
        let uuid = uuid::Uuid::new_v5(&volume.info().uuid, image_name.as_bytes());
        let identity = LunIdentity { uuid: *uuid.as_bytes(), name: format!("lab/{image_name}/{name}") };
        Ok(crate::splitter::lun(volume, identity))
    }

    /// Records of the journal, and bytes.
    pub fn journal(&self) -> (u64, u64) {
        let stats = self.shared.group.stats();
        (stats.records, stats.bytes_written)
    }

    /// Closes the journal.
    pub fn close(&self) -> Result<(), Error> {
        self.shared.group.close()
    }
}

/// The mark, whole, and nothing beside it.
fn check_folder(dir: &Path) -> Result<(), String> {
    let refuse = |why: String| format!("{} is not a folder of the laboratory's own: {why}", dir.display());
    let text = std::fs::read_to_string(dir.join(MARK)).map_err(|e| refuse(format!("{MARK}: {e}")))?;
    if text != MARK_TEXT {
        return Err(refuse(format!("{MARK} says something else")));
    }
    for entry in std::fs::read_dir(dir).map_err(|e| refuse(e.to_string()))? {
        let entry = entry.map_err(|e| refuse(e.to_string()))?;
        if entry.file_name() != MARK {
            return Err(refuse(format!("it holds {}", entry.file_name().to_string_lossy())));
        }
    }
    Ok(())
}

/// One LUN of the array.
pub struct MissingLun {
    file: File,
    path: PathBuf,
    identity: LunIdentity,
    block_count: u64,
    replica: Volume,
    shared: Arc<Shared>,
}

impl MissingLun {
    fn check(&self, lba: u64, count: u64) -> Result<(), LunError> {
        if lba.checked_add(count).is_none_or(|end| end > self.block_count) {
            return Err(LunError::OutOfRange { name: self.identity.name.clone(), lba, count });
        }
        Ok(())
    }

    fn io(&self, error: &std::io::Error) -> LunError {
        LunError::Io { name: self.identity.name.clone(), detail: format!("{}: {error}", self.path.display()) }
    }

    fn put(&self, lba: u64, data: &[u8]) -> Result<(), LunError> {
        self.check(lba, (data.len() / BLOCK_BYTES) as u64)?;
        self.file.write_all_at(data, lba * BLOCK_BYTES as u64).map_err(|e| self.io(&e))
    }

    fn get(&self, lba: u64, buf: &mut [u8]) -> Result<(), LunError> {
        self.check(lba, (buf.len() / BLOCK_BYTES) as u64)?;
        self.file.read_exact_at(buf, lba * BLOCK_BYTES as u64).map_err(|e| self.io(&e))
    }

    /// Writes one block again and again.
    fn fill(&self, lba: u64, count: u64, block: &[u8]) -> Result<(), LunError> {
        self.check(lba, count)?;
        let pattern = block.repeat(STEP_BLOCKS.min(count) as usize);
        let mut done = 0;
        while done < count {
            let n = STEP_BLOCKS.min(count - done);
            self.put(lba + done, &pattern[..n as usize * BLOCK_BYTES])?;
            done += n;
        }
        Ok(())
    }

    /// What the array itself does.
    fn carry_out(&self, change: &Change<'_>) -> Result<(), LunError> {
        match *change {
            Change::Write { lba, data } => self.put(lba, data),
            Change::WriteSame { lba, count, block } => self.fill(lba, count, block),
            Change::Zero { lba, count } | Change::Unmap { lba, count } => {
                self.fill(lba, count, &[0; BLOCK_BYTES])
            }
        }
    }

    fn capture(&self, changes: &[Change<'_>]) -> Result<Lsn, LunError> {
        if changes.is_empty() {
            // The missed command: its position is that of what came before it.
            return Ok(self.shared.group.head().lsn);
        }
        self.replica.submit(changes).map_err(|e| self.refusal(&e))
    }

    fn refusal(&self, error: &Error) -> LunError {
        LunError::Io { name: self.identity.name.clone(), detail: error.to_string() }
    }
}

impl Lun for MissingLun {
    fn identity(&self) -> &LunIdentity {
        &self.identity
    }

    fn block_count(&self) -> u64 {
        self.block_count
    }

    fn read_only(&self) -> bool {
        false
    }

    fn read(&self, lba: u64, buf: &mut [u8]) -> Result<(), LunError> {
        self.get(lba, buf)
    }

    fn submit(&self, changes: &[Change<'_>]) -> Result<Lsn, LunError> {
        let missed = self.shared.order.lock();
        for change in changes {
            self.carry_out(change)?;
        }
        let seen: Vec<Change<'_>> =
            changes.iter().filter(|change| !Shared::misses(&missed, change)).copied().collect();
        self.capture(&seen)
    }

    fn compare_and_write(&self, lba: u64, compare: &[u8], write: &[u8]) -> Result<Compared, LunError> {
        let missed = self.shared.order.lock();
        let mut present = vec![0; compare.len()];
        self.get(lba, &mut present)?;
        if let Some(offset_bytes) = present.iter().zip(compare).position(|(a, b)| a != b) {
            return Ok(Compared::Differs { offset_bytes });
        }
        self.put(lba, write)?;
        if !missed.contains(&Offload::Ats) {
            self.capture(&[Change::Write { lba, data: write }])?;
        }
        Ok(Compared::Written)
    }

    fn copy_from(&self, source: &CopySource<'_>, pieces: &[CopyPiece]) -> Result<Copied, LunError> {
        let missed = self.shared.order.lock();
        let mut copied = Copied::default();
        let mut buffer = Vec::new();
        for piece in pieces {
            let onto_itself =
                matches!(source, CopySource::Now(from) if from.identity().uuid == self.identity.uuid);
            let backward = onto_itself && piece.source_lba < piece.lba;
            let mut done = 0;
            while done < piece.count {
                let n = STEP_BLOCKS.min(piece.count - done);
                let at = if backward { piece.count - done - n } else { done };
                buffer.resize(n as usize * BLOCK_BYTES, 0);
                match source {
                    CopySource::Now(lun) => lun.read(piece.source_lba + at, &mut buffer)?,
                    CopySource::Frozen(frozen) => frozen.read(piece.source_lba + at, &mut buffer)?,
                }
                self.put(piece.lba + at, &buffer)?;
                if !missed.contains(&Offload::Xcopy) {
                    self.capture(&[Change::Write { lba: piece.lba + at, data: &buffer }])?;
                }
                done += n;
            }
            copied.moved_blocks += piece.count;
        }
        Ok(copied)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn flush(&self, done: FlushDone) {
        if let Err(error) = self.file.sync_data() {
            return done(Err(self.io(&error)));
        }
        let name = self.identity.name.clone();
        self.replica.flush_then(Box::new(move |outcome| {
            done(outcome.map_err(|e| LunError::Io { name, detail: e.to_string() }));
        }));
    }

    fn extents(&self, lba: u64, count: u64, _limit: usize) -> Result<Vec<Extent>, LunError> {
        self.check(lba, count)?;
        Ok(vec![Extent { lba, count, mapped: true, zero: false }])
    }
}
