//! Reading back: what a change came to is read from production while its blocks are still taken, and the host is answered after that.
//!
//! For what production has certainly ended, and whose result its command does not say: UNMAP where unmapped blocks are not zeros for
//! certain, ORWRITE, what a token stood for. Nobody changes the blocks meanwhile, and the host has not been answered: to everybody the
//! change is under way as long as it takes, so no point of that time is out of step and no resynchronisation is begun.
//!
//! What may be recorded has its room in the journal before production is changed, where hosts are stopped for want of it
//! ([`super::admission`]): there is none then that production gets ahead of. So only as much is under way at once as one command may be read back of.
//!
//! What is too much for a host to wait for, what takes too long, and what cannot be read now is left to the resynchronisation. While production
//! cannot be read nothing is tried here: hosts would wait in a row for what does not come. What the journal refuses is told to the host
//! as for any change.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use playhead_journal::{CopyPiece, BLOCK_BYTES};

use super::{
    resync::{Trouble, CHUNK_BLOCKS},
    split::{Captured, Inside, OnJournalFailure, Shared, Split, Taken},
    takes::Wanted,
};
use crate::lun::LunError;

/// Most blocks that a host waits for: 64 MiB.
pub(super) const BLOCKS_MAX: u64 = (64 << 20) / BLOCK_BYTES as u64;
/// Longest that one change is read for; after that the resynchronisation goes on.
const PATIENCE: Duration = Duration::from_secs(5);

/// Called once it is over, from any thread, also the asking one before the call returns; must not block. It may be dropped instead. Errors:
/// as of [`Split::capture`].
pub type WhenRead = Box<dyn FnOnce(Result<(), LunError>) + Send>;

/// What the reader is to do before a host is answered.
pub(super) struct ToRead {
    taken: Taken,
    /// It was copied from there: perhaps that is all there is to say.
    copied: Option<(Arc<Shared>, Vec<CopyPiece>)>,
    when_read: WhenRead,
}

impl Inside {
    /// What a host is told of a change that the journal has refused, if hosts are stopped for that.
    fn told_refusal(&self) -> Result<(), LunError> {
        match (&self.refused, self.choice) {
            (Some(refused), OnJournalFailure::Stop) => Err(refused.clone()),
            _ => Ok(()),
        }
    }

    fn can_read(&self) -> bool {
        !self.closed && self.refused.is_none() && self.unreadable.is_none()
    }
}

impl Split {
    /// Production has ended what was taken, nobody knows how: as [`Split::unknown`], but read before the blocks are given back, if that does
    /// not take long.
    pub fn read_back(&self, taken: Taken, when_read: WhenRead) {
        let told = {
            let mut inside = self.shared.inside.lock();
            let blocks = inside.takes.wanted(taken.number).map_or(0, Wanted::changed_blocks);
            if blocks <= BLOCKS_MAX && inside.can_read() {
                inside.to_read.push_back(ToRead { taken, copied: None, when_read });
                self.shared.reading.notify_one();
                return;
            }
            inside.told_refusal()
        };
        self.unknown(taken);
        when_read(told);
    }

    /// As [`Split::capture_copy`], when it has been looked whether `source` is what it was.
    pub(super) fn look_and_copy(
        &self,
        taken: Taken,
        source: Arc<Shared>,
        pieces: &[CopyPiece],
        when_read: WhenRead,
    ) {
        {
            let mut inside = self.shared.inside.lock();
            if inside.can_read() {
                let copied = Some((source, pieces.to_vec()));
                inside.to_read.push_back(ToRead { taken, copied, when_read });
                self.shared.reading.notify_one();
                return;
            }
        }
        self.read_back(taken, when_read);
    }
}

impl Shared {
    /// The reader's thread.
    pub(super) fn run_reader(self: &Arc<Self>) {
        let mut buffers = (Vec::new(), Vec::new());
        loop {
            let ToRead { taken, copied, when_read } = {
                let mut inside = self.inside.lock();
                loop {
                    if let Some(next) = inside.to_read.pop_front() {
                        break next;
                    }
                    if inside.closed {
                        return;
                    }
                    buffers = (Vec::new(), Vec::new());
                    self.reading.wait(&mut inside);
                }
            };
            if let Some((source, pieces)) = copied {
                if self.look(&source, &pieces) {
                    when_read(self.record_copy(taken, &source, &pieces).map(|_| ()));
                    continue;
                }
            }
            let read = match self.read_taken(&taken, &mut buffers) {
                Ok(read) => read,
                Err(Trouble::Busy) => false,
                Err(Trouble::Read(e)) => {
                    log::info!("{}: a change is read back later: {e}", self.name);
                    self.inside.lock().unreadable = Some(e);
                    false
                }
                Err(Trouble::Journal(e)) => {
                    self.refuse(e);
                    false
                }
            };
            self.finish(taken, !read);
            let told = if read { Ok(()) } else { self.inside.lock().told_refusal() };
            when_read(told);
        }
    }

    /// Looks into signs that `source` may have lost something: whether what was copied from there is certain.
    fn look(&self, source: &Arc<Shared>, pieces: &[CopyPiece]) -> bool {
        if source.watch().is_err() {
            return false;
        }
        source.tending.notify_all();
        source.is_in_step(pieces) == Some(true)
    }

    /// Whether what `pieces` are copied from is what production has there. `None`: there are signs of trouble that nobody has looked into.
    pub(super) fn is_in_step(&self, pieces: &[CopyPiece]) -> Option<bool> {
        let sources: Vec<_> =
            pieces.iter().map(|p| p.source_lba..p.source_lba.saturating_add(p.count)).collect();
        let inside = self.inside.lock();
        if inside.differs_in(&sources) || inside.refused.is_some() {
            return Some(false);
        }
        let seen = inside.generation != 0 && inside.disturbed == self.production.disturbed();
        seen.then_some(true)
    }

    /// Puts a copy that production has executed into the journal.
    pub(super) fn record_copy(
        self: &Arc<Self>,
        taken: Taken,
        source: &Shared,
        pieces: &[CopyPiece],
    ) -> Result<Captured, LunError> {
        self.record(taken, |volume| volume.copy(&source.volume, pieces).map(|_| volume.head_lsn()))
    }

    /// False: it was not read to its end.
    fn read_taken(
        self: &Arc<Self>,
        taken: &Taken,
        buffers: &mut (Vec<u8>, Vec<u8>),
    ) -> Result<bool, Trouble> {
        let wanted = self.inside.lock().takes.wanted(taken.number).cloned();
        if wanted.as_ref().is_some_and(|wanted| wanted.changed_blocks() > BLOCKS_MAX) {
            return Ok(false);
        }
        let deadline = Instant::now() + PATIENCE;
        for range in wanted.map_or_else(Vec::new, |wanted| wanted.changes) {
            let mut at = range.start;
            while at < range.end {
                if !self.inside.lock().can_read() || Instant::now() >= deadline {
                    return Ok(false);
                }
                // What is recorded while something else differs lies between BEGIN and END, as any change.
                self.begin_span().map_err(Trouble::Journal)?;
                let end = range.end.min(at + CHUNK_BLOCKS);
                self.compare_taken(at..end, buffers)?;
                at = end;
            }
        }
        Ok(true)
    }
}
