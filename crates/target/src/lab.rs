//! The laboratory's array: production is a plain file, and a splitter in it feeds a replica. It can be told to miss offloads, which is
//! what splitters did in 2010: the array carries the command out, the host sees GOOD, and the replica never hears of it.
//!
//! The splitter is the product's own [`Split`]; what is missed passes beside it: nothing is taken, nothing is marked, and it goes on believing that
//! the replica is synchronised.
//!
//! Nothing of the service names this module. What it makes is of its own making from the start ([`MissingArray::create`]): a folder that
//! must hold the laboratory's mark and nothing else, in which it makes the files and the journal. No store, group or volume that exists can
//! be handed to it, so no policy, catalogue or request can bring it about for data that anybody wants.
//!
//! What hosts change they change one after another, over all LUNs: so a COMPARE AND WRITE is atomic although it is missed.

use std::any::Any;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use playhead_journal::{files::DiskFiles, Error, Group, NewBase, Options};

use crate::lun::{
    Change, Compared, Copied, CopyPiece, CopySource, Extent, FlushDone, Lsn, Lun, LunError, LunIdentity,
    LunRef, BLOCK_BYTES,
};
use crate::scsi::Offload;
use crate::splitter::{Captured, OnJournalFailure, Production, Split, SplitOptions, State, Wanted};

/// The file that makes a folder the laboratory's.
pub const MARK: &str = "PLAYHEAD-LAB";
/// What the file says.
pub const MARK_TEXT: &str = "This folder is a laboratory's. Whatever is in it will be thrown away.\n";
/// Blocks filled or moved at once.
const STEP_BLOCKS: u64 = (1 << 20) / BLOCK_BYTES as u64;

/// How long a replica may take to be production.
const SYNCHRONISED_WITHIN: Duration = Duration::from_secs(120);

/// What the array's LUNs have in common.
struct Shared {
    /// What is missed; held over a whole change.
    missed: Mutex<Vec<Offload>>,
    group: Group,
}

fn misses(missed: &[Offload], change: &Change<'_>) -> bool {
    match change {
        Change::Write { .. } => false,
        Change::WriteSame { .. } | Change::Zero { .. } => missed.contains(&Offload::WriteSame),
        Change::Unmap { .. } => missed.contains(&Offload::Unmap),
    }
}

/// An array of plain files with a replica of each.
pub struct MissingArray {
    shared: Arc<Shared>,
    luns: Vec<Arc<MissingLun>>,
    looks: Mutex<u64>,
}

impl MissingArray {
    /// Makes LUNs of `block_count` zeroed blocks in `dir`, and waits until their replicas are synchronised.
    ///
    /// Errors: a text, if the folder is not the laboratory's or holds anything but its mark, or if something cannot be made.
    pub fn create(dir: &Path, names: &[String], block_count: u64) -> Result<Self, String> {
        check_folder(dir)?;
        let options = Options { background: true, ..Options::default() };
        let group = Group::create(Arc::new(DiskFiles), &dir.join("journal"), "lab", &options)
            .map_err(|e| e.to_string())?;
        let shared = Arc::new(Shared { missed: Mutex::new(Vec::new()), group });
        let mut luns = Vec::with_capacity(names.len());
        for name in names {
            luns.push(Arc::new(MissingLun::create(dir, name, block_count, &shared)?));
        }
        for lun in &luns {
            lun.wait_until_synchronised()?;
        }
        Ok(Self { shared, luns, looks: Mutex::new(0) })
    }

    /// Which offloads are carried out and not captured, from now on.
    pub fn miss(&self, offloads: Vec<Offload>) {
        *self.shared.missed.lock() = offloads;
    }

    fn lun(&self, name: &str) -> Option<&Arc<MissingLun>> {
        self.luns.iter().find(|lun| lun.identity.name.strip_prefix("lab/") == Some(name))
    }

    /// The LUN that hosts write to.
    pub fn production(&self, name: &str) -> Option<LunRef> {
        Some(self.lun(name)?.clone())
    }

    /// The replica, as a read-only LUN of its own: of the moment when the splitter holds it for synchronised.
    ///
    /// Errors: a text.
    pub fn replica(&self, name: &str) -> Result<LunRef, String> {
        self.lun(name).ok_or_else(|| format!("the array has no LUN {name:?}"))?.wait_until_synchronised()?;
        let mut looks = self.looks.lock();
        *looks += 1;
        let image_name = format!("look-{}", *looks);
        self.look(&image_name, name).map_err(|e| e.to_string())
    }

    fn look(&self, image_name: &str, name: &str) -> Result<LunRef, Error> {
        let group = &self.shared.group;
        let image = group.open_image(image_name, group.head().lsn, false)?;
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

    /// Closes splitters and journal.
    ///
    /// Errors: a text.
    pub fn close(&self) -> Result<(), String> {
        for lun in &self.luns {
            lun.split.close().map_err(|e| e.to_string())?;
        }
        self.shared.group.close().map_err(|e| e.to_string())
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

/// A file as an array's medium.
struct FileProduction {
    file: File,
    path: PathBuf,
    block_count: u64,
}

impl FileProduction {
    fn create(path: PathBuf, block_count: u64) -> Result<Self, String> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .and_then(|file| file.set_len(block_count * BLOCK_BYTES as u64).map(|()| file))
            .map_err(|e| format!("{} cannot be made: {e}", path.display()))?;
        Ok(Self { file, path, block_count })
    }

    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn io(&self, error: &std::io::Error) -> LunError {
        LunError::Io { name: self.name(), detail: error.to_string() }
    }

    fn check(&self, lba: u64, count: u64) -> Result<(), LunError> {
        if lba.checked_add(count).is_none_or(|end| end > self.block_count) {
            return Err(LunError::OutOfRange { name: self.name(), lba, count });
        }
        Ok(())
    }

    fn put(&self, lba: u64, data: &[u8]) -> Result<(), LunError> {
        self.check(lba, (data.len() / BLOCK_BYTES) as u64)?;
        self.file.write_all_at(data, lba * BLOCK_BYTES as u64).map_err(|e| self.io(&e))
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
}

impl Production for FileProduction {
    fn block_count(&self) -> u64 {
        self.block_count
    }

    fn read(&self, lba: u64, buf: &mut [u8]) -> Result<(), LunError> {
        self.check(lba, (buf.len() / BLOCK_BYTES) as u64)?;
        self.file.read_exact_at(buf, lba * BLOCK_BYTES as u64).map_err(|e| self.io(&e))
    }

    fn flush(&self) -> Result<(), LunError> {
        self.file.sync_data().map_err(|e| self.io(&e))
    }
}

/// One LUN of the array.
pub struct MissingLun {
    identity: LunIdentity,
    production: Arc<FileProduction>,
    split: Split,
    shared: Arc<Shared>,
}

impl MissingLun {
    fn create(dir: &Path, name: &str, block_count: u64, shared: &Arc<Shared>) -> Result<Self, String> {
        let base = NewBase::Sparse { blocks: block_count };
        let replica = shared.group.add_volume(name, base).map_err(|e| e.to_string())?;
        // Not the replica's identity: a host that sees both must not take them for two paths to one disk.
        let uuid = uuid::Uuid::new_v5(&replica.info().uuid, b"production");
        let identity = LunIdentity { uuid: *uuid.as_bytes(), name: format!("lab/{name}") };
        let path = dir.join(format!("{name}.production"));
        let production = Arc::new(FileProduction::create(path, block_count)?);
        let options = SplitOptions {
            name: identity.name.clone(),
            map_path: dir.join(format!("{name}.map")),
            on_journal_failure: OnJournalFailure::Stop,
        };
        let split =
            Split::open(&DiskFiles, replica, production.clone(), options).map_err(|e| e.to_string())?;
        Ok(Self { identity, production, split, shared: shared.clone() })
    }

    fn wait_until_synchronised(&self) -> Result<(), String> {
        let end = Instant::now() + SYNCHRONISED_WITHIN;
        loop {
            let status = self.split.status();
            if status.state == State::Synchronised {
                return Ok(());
            }
            if Instant::now() > end {
                let reason = status.reason.unwrap_or_default();
                return Err(format!("{} stays {}: {reason}", self.identity.name, status.state.name()));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Changes production past the splitter or through it: takes what `seen` changes, carries everything out, captures what was seen.
    fn pass(
        &self,
        seen: &[Change<'_>],
        carry_out: impl FnOnce() -> Result<(), LunError>,
    ) -> Result<Lsn, LunError> {
        if seen.is_empty() {
            carry_out()?;
            return Ok(self.shared.group.head().lsn);
        }
        let taken = self.split.begin(Wanted::by(seen))?;
        if let Err(error) = carry_out() {
            self.split.unknown(taken);
            return Err(error);
        }
        match self.split.capture(taken, seen)? {
            Captured::Recorded(lsn) => Ok(lsn),
            Captured::Tracked => Ok(self.shared.group.head().lsn),
        }
    }
}

impl Lun for MissingLun {
    fn identity(&self) -> &LunIdentity {
        &self.identity
    }

    fn block_count(&self) -> u64 {
        self.production.block_count
    }

    fn read_only(&self) -> bool {
        false
    }

    fn read(&self, lba: u64, buf: &mut [u8]) -> Result<(), LunError> {
        self.production.read(lba, buf)
    }

    fn submit(&self, changes: &[Change<'_>]) -> Result<Lsn, LunError> {
        let missed = self.shared.missed.lock();
        let seen: Vec<Change<'_>> =
            changes.iter().filter(|change| !misses(&missed, change)).copied().collect();
        self.pass(&seen, || changes.iter().try_for_each(|change| self.production.carry_out(change)))
    }

    fn compare_and_write(&self, lba: u64, compare: &[u8], write: &[u8]) -> Result<Compared, LunError> {
        let missed = self.shared.missed.lock();
        let mut present = vec![0; compare.len()];
        self.production.read(lba, &mut present)?;
        if let Some(offset_bytes) = present.iter().zip(compare).position(|(a, b)| a != b) {
            return Ok(Compared::Differs { offset_bytes });
        }
        let change = [Change::Write { lba, data: write }];
        let seen: &[Change<'_>] = if missed.contains(&Offload::Ats) { &[] } else { &change };
        self.pass(seen, || self.production.put(lba, write))?;
        Ok(Compared::Written)
    }

    fn copy_from(&self, source: &CopySource<'_>, pieces: &[CopyPiece]) -> Result<Copied, LunError> {
        let missed = self.shared.missed.lock();
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
                let change = [Change::Write { lba: piece.lba + at, data: &buffer }];
                let seen: &[Change<'_>] = if missed.contains(&Offload::Xcopy) { &[] } else { &change };
                self.pass(seen, || self.production.put(piece.lba + at, &buffer))?;
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
        match self.production.flush() {
            Ok(()) => self.split.flush_then(done),
            Err(error) => done(Err(error)),
        }
    }

    fn extents(&self, lba: u64, count: u64, _limit: usize) -> Result<Vec<Extent>, LunError> {
        self.production.check(lba, count)?;
        Ok(vec![Extent { lba, count, mapped: true, zero: false }])
    }
}
