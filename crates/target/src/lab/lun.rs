//! One LUN behind the laboratory's splitter: what is seen goes to production and replica, what is missed to production alone.

use std::any::Any;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use playhead_journal::{files::DiskFiles, NewBase};

use super::{medium::Medium, Shared};
use crate::lun::{
    Change, Compared, Copied, CopyPiece, CopySource, Extent, FlushDone, Lsn, Lun, LunError, LunIdentity,
    BLOCK_BYTES,
};
use crate::scsi::Offload;
use crate::splitter::{Captured, OnJournalFailure, Split, SplitOptions, State, Taken, Wanted};

/// Blocks copied at once: what hypervisors ask for in one command.
const COPY_STEP_BLOCKS: u64 = (4 << 20) / BLOCK_BYTES as u64;
/// How long a replica may take to be production.
const SYNCHRONISED_WITHIN: Duration = Duration::from_secs(120);

fn misses(missed: &[Offload], change: &Change<'_>) -> bool {
    match change {
        Change::Write { .. } => false,
        Change::WriteSame { .. } | Change::Zero { .. } => missed.contains(&Offload::WriteSame),
        Change::Unmap { .. } => missed.contains(&Offload::Unmap),
    }
}

/// A LUN of throwaway data.
pub(super) struct MissingLun {
    identity: LunIdentity,
    medium: Arc<dyn Medium>,
    split: Split,
    shared: Arc<Shared>,
}

impl MissingLun {
    pub(super) fn create<M: Medium + 'static>(
        dir: &Path,
        name: &str,
        medium: Arc<M>,
        shared: &Arc<Shared>,
    ) -> Result<Self, String> {
        let base = NewBase::Sparse { blocks: medium.block_count() };
        let replica = shared.group.add_volume(name, base).map_err(|e| e.to_string())?;
        // Not the replica's identity: a host that sees both must not take them for two paths to one disk.
        let uuid = uuid::Uuid::new_v5(&replica.info().uuid, b"production");
        let identity = LunIdentity { uuid: *uuid.as_bytes(), name: format!("lab/{name}") };
        let options = SplitOptions {
            name: identity.name.clone(),
            map_path: dir.join(format!("{name}.map")),
            on_journal_failure: OnJournalFailure::Stop,
        };
        let split = Split::open(&DiskFiles, replica, medium.clone(), options).map_err(|e| e.to_string())?;
        Ok(Self { identity, medium, split, shared: shared.clone() })
    }

    pub(super) fn is(&self, name: &str) -> bool {
        self.identity.name.strip_prefix("lab/") == Some(name)
    }

    pub(super) fn wait_until_synchronised(&self) -> Result<(), String> {
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

    pub(super) fn close(&self) -> Result<(), String> {
        self.split.close().map_err(|e| e.to_string())
    }

    /// What production has not done for certain is unknown to the splitter.
    fn done<T>(&self, taken: Taken, outcome: Result<T, LunError>) -> Result<(Taken, T), LunError> {
        match outcome {
            Ok(value) => Ok((taken, value)),
            Err(error) => {
                self.split.unknown(taken);
                Err(error)
            }
        }
    }

    fn capture(&self, taken: Taken, seen: &[Change<'_>]) -> Result<Lsn, LunError> {
        match self.split.capture(taken, seen)? {
            Captured::Recorded(lsn) => Ok(lsn),
            Captured::Tracked => Ok(self.shared.group.head().lsn),
        }
    }

    /// Production copies by itself where it can; else the blocks are read and written.
    fn carry(
        &self,
        source: &CopySource<'_>,
        source_lba: u64,
        lba: u64,
        buffer: &mut [u8],
    ) -> Result<(), LunError> {
        let count = (buffer.len() / BLOCK_BYTES) as u64;
        if let CopySource::Now(lun) = source {
            let known = lun.as_any().downcast_ref::<MissingLun>();
            let medium = known.map(|known| &*known.medium);
            if medium.map_or(Ok(false), |from| self.medium.copy(from, source_lba, lba, count))? {
                return Ok(());
            }
        }
        match source {
            CopySource::Now(lun) => lun.read(source_lba, buffer)?,
            CopySource::Frozen(frozen) => frozen.read(source_lba, buffer)?,
        }
        self.medium.carry_out(&Change::Write { lba, data: buffer })
    }

    /// One step of a copy. What was seen is read back, since only production knows what it has copied.
    fn copy_step(
        &self,
        source: &CopySource<'_>,
        source_lba: u64,
        lba: u64,
        buffer: &mut [u8],
        missed: bool,
    ) -> Result<(), LunError> {
        if missed {
            return self.carry(source, source_lba, lba, buffer);
        }
        let taken = self.split.begin(Wanted::blocks(lba, (buffer.len() / BLOCK_BYTES) as u64))?;
        let copied = self.carry(source, source_lba, lba, buffer).and_then(|()| self.medium.read(lba, buffer));
        let (taken, ()) = self.done(taken, copied)?;
        self.capture(taken, &[Change::Write { lba, data: buffer }]).map(|_| ())
    }
}

impl Lun for MissingLun {
    fn identity(&self) -> &LunIdentity {
        &self.identity
    }

    fn block_count(&self) -> u64 {
        self.medium.block_count()
    }

    fn read_only(&self) -> bool {
        false
    }

    fn read(&self, lba: u64, buf: &mut [u8]) -> Result<(), LunError> {
        self.medium.read(lba, buf)
    }

    fn submit(&self, changes: &[Change<'_>]) -> Result<Lsn, LunError> {
        let missed = self.shared.missed.lock();
        let seen: Vec<Change<'_>> =
            changes.iter().filter(|change| !misses(&missed, change)).copied().collect();
        let carry_out = || changes.iter().try_for_each(|change| self.medium.carry_out(change));
        if seen.is_empty() {
            carry_out()?;
            return Ok(self.shared.group.head().lsn);
        }
        let taken = self.split.begin(Wanted::by(&seen))?;
        let (taken, ()) = self.done(taken, carry_out())?;
        self.capture(taken, &seen)
    }

    fn compare_and_write(&self, lba: u64, compare: &[u8], write: &[u8]) -> Result<Compared, LunError> {
        let missed = self.shared.missed.lock();
        if missed.contains(&Offload::Ats) {
            return self.medium.compare_and_write(lba, compare, write);
        }
        let change = [Change::Write { lba, data: write }];
        let taken = self.split.begin(Wanted::by(&change))?;
        let (taken, compared) = self.done(taken, self.medium.compare_and_write(lba, compare, write))?;
        match compared {
            Compared::Written => self.capture(taken, &change).map(|_| ())?,
            Compared::Differs { .. } => self.split.unchanged(taken),
        }
        Ok(compared)
    }

    fn copy_from(&self, source: &CopySource<'_>, pieces: &[CopyPiece]) -> Result<Copied, LunError> {
        let missed = self.shared.missed.lock();
        let missed = missed.contains(&Offload::Xcopy);
        let mut copied = Copied::default();
        let mut buffer = Vec::new();
        for piece in pieces {
            let onto_itself =
                matches!(source, CopySource::Now(from) if from.identity().uuid == self.identity.uuid);
            let backward = onto_itself && piece.source_lba < piece.lba;
            let mut done = 0;
            while done < piece.count {
                let n = COPY_STEP_BLOCKS.min(piece.count - done);
                let at = if backward { piece.count - done - n } else { done };
                buffer.resize(n as usize * BLOCK_BYTES, 0);
                self.copy_step(source, piece.source_lba + at, piece.lba + at, &mut buffer, missed)?;
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
        match self.medium.flush() {
            Ok(()) => self.split.flush_then(done),
            Err(error) => done(Err(error)),
        }
    }

    fn extents(&self, lba: u64, count: u64, _limit: usize) -> Result<Vec<Extent>, LunError> {
        if lba.checked_add(count).is_none_or(|end| end > self.block_count()) {
            return Err(LunError::OutOfRange { name: self.identity.name.clone(), lba, count });
        }
        Ok(vec![Extent { lba, count, mapped: true, zero: false }])
    }
}
