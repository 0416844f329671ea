//! Reading back: what a change came to is read from production while its blocks are still taken, and the host is answered after that.
//!
//! For what production has certainly ended, and whose result its command does not say: UNMAP where unmapped blocks are not zeros for
//! certain, ORWRITE, what a token stood for. Nobody changes the blocks meanwhile, and the host has not been answered: to everybody the
//! change is under way as long as it takes, so no point of that time is out of step and no resynchronisation is begun.
//!
//! What is too much for a host to wait for, what takes too long, and what cannot be read now is left to the resynchronisation. While production
//! cannot be read nothing is tried here: hosts would wait in a row for what does not come. What the journal refuses is told to the host
//! as for any change.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use playhead_journal::BLOCK_BYTES;

use super::{
    resync::{Trouble, CHUNK_BLOCKS},
    split::{Inside, OnJournalFailure, Shared, Split, Taken},
};
use crate::lun::LunError;

/// Most blocks that a host waits for: 64 MiB.
const BLOCKS_MAX: u64 = (64 << 20) / BLOCK_BYTES as u64;
/// Longest that one change is read for; after that the resynchronisation goes on.
const PATIENCE: Duration = Duration::from_secs(5);

/// Called once it is over, from any thread, also the asking one before the call returns; must not block. It may be dropped instead. Errors:
/// as of [`Split::capture`].
pub type WhenRead = Box<dyn FnOnce(Result<(), LunError>) + Send>;

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
            let blocks: u64 = inside
                .takes
                .wanted(taken.number)
                .map_or(0, |wanted| wanted.changes.iter().map(|range| range.end - range.start).sum());
            if blocks <= BLOCKS_MAX && inside.can_read() {
                inside.to_read.push_back((taken, when_read));
                self.shared.reading.notify_one();
                return;
            }
            inside.told_refusal()
        };
        self.unknown(taken);
        when_read(told);
    }
}

impl Shared {
    /// The reader's thread.
    pub(super) fn run_reader(self: &Arc<Self>) {
        let mut buffers = (Vec::new(), Vec::new());
        loop {
            let (taken, when_read) = {
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

    /// False: it was not read to its end.
    fn read_taken(
        self: &Arc<Self>,
        taken: &Taken,
        buffers: &mut (Vec<u8>, Vec<u8>),
    ) -> Result<bool, Trouble> {
        let wanted = self.inside.lock().takes.wanted(taken.number).cloned();
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
