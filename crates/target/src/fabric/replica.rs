//! The replica of a fabric volume: what [`Split`] is to this splitter.

use super::loss::Loss;
use super::lun::{Begun, Production, Recorder, Taken};
use crate::lun::{Change, CopyPiece, FlushDone, LunError};
use crate::splitter::{self, OnJournalFailure, Split, SplitOptions, Stamp, Status, Wanted, WhenRead};
use parking_lot::RwLock;
use playhead_journal::files::Files;
use playhead_journal::Volume;
use std::any::Any;
use std::path::PathBuf;
use std::sync::Arc;

/// A volume that follows a LUN of an array.
pub struct Replica {
    name: String,
    block_count: u64,
    /// `None` once it is closed: changes are refused then.
    split: RwLock<Option<Split>>,
}

impl splitter::Production for Production {
    fn block_count(&self) -> u64 {
        Production::block_count(self)
    }

    fn read(&self, lba: u64, buf: &mut [u8]) -> Result<(), LunError> {
        Production::read(self, lba, buf)
    }

    fn flush(&self) -> Result<(), LunError> {
        Production::flush(self)
    }

    fn generation(&self) -> Result<u64, LunError> {
        Production::generation(self)
    }

    fn disturbed(&self) -> u64 {
        Production::disturbed(self)
    }

    fn lost(&self) -> u64 {
        Production::lost(self)
    }

    fn stamp(&self) -> Option<Stamp> {
        Production::stamp(self)
    }

    fn stamp_lasts(&self) -> bool {
        true
    }

    fn is_as_left(&self, left: &Stamp) -> bool {
        // That it is not is said later: see `lost`.
        self.was_left(left);
        true
    }
}

impl Replica {
    /// Has `volume` follow `production`, whose change map is, or is to be, at `map_path`.
    ///
    /// Errors: as [`Split::open`].
    pub fn open(
        files: &dyn Files,
        volume: Volume,
        production: Arc<Production>,
        name: &str,
        map_path: PathBuf,
        on_journal_failure: OnJournalFailure,
    ) -> Result<Replica, LunError> {
        let block_count = volume.block_count();
        let options = SplitOptions { name: name.to_owned(), map_path, on_journal_failure };
        let split = Split::open(files, volume, production, options)?;
        Ok(Replica { name: name.to_owned(), block_count, split: RwLock::new(Some(split)) })
    }

    /// How production and replica stand to each other. `None`: it is closed.
    pub fn status(&self) -> Option<Status> {
        self.split.read_recursive().as_ref().map(Split::status)
    }

    /// What happens from now on while the journal cannot be written. Nothing once it is closed.
    pub fn set_on_journal_failure(&self, choice: OnJournalFailure) {
        if let Some(split) = self.split.read_recursive().as_ref() {
            split.set_on_journal_failure(choice);
        }
    }

    /// Compares everything, while hosts work.
    ///
    /// Errors: `Gone` once it is closed; as [`Split::compare_all`].
    pub fn compare_all(&self) -> Result<(), LunError> {
        self.split.read_recursive().as_ref().map_or_else(|| Err(self.gone()), Split::compare_all)
    }

    /// Ends it in order. Changes that come later are refused.
    ///
    /// Errors: as [`Split::close`].
    pub fn close(&self) -> Result<(), LunError> {
        let split = self.split.write().take();
        split.map_or(Ok(()), |split| split.close())
    }

    fn gone(&self) -> LunError {
        LunError::Gone { name: self.name.clone() }
    }

    /// What was taken, if it is a split's. Dropped, it counts as unknown.
    fn own(taken: Taken) -> Option<splitter::Taken> {
        taken.downcast().ok().map(|taken| *taken)
    }
}

impl Recorder for Replica {
    fn begin(&self, wanted: Wanted, begun: Begun) {
        let split = self.split.read_recursive();
        let Some(split) = split.as_ref() else {
            return begun(Err(self.gone()));
        };
        split.begin_then(wanted, Box::new(move |taken| begun(taken.map(|taken| Box::new(taken) as Taken))));
    }

    fn capture(&self, taken: Taken, changes: &[Change<'_>]) -> Result<(), LunError> {
        let split = self.split.read_recursive();
        match (split.as_ref(), Replica::own(taken)) {
            (Some(split), Some(taken)) => split.capture(taken, changes).map(|_| ()),
            _ => Err(self.gone()),
        }
    }

    fn refers_to(&self, source: &dyn Recorder) -> bool {
        let from = source.as_any().downcast_ref::<Replica>().map(|source| source.split.read_recursive());
        let from = from.as_ref().and_then(|from| from.as_ref());
        let to = self.split.read_recursive();
        matches!((to.as_ref(), from), (Some(to), Some(from)) if to.volume().refers_to(from.volume()))
    }

    fn capture_copy(
        &self,
        taken: Taken,
        source: &dyn Recorder,
        pieces: &[CopyPiece],
        when_read: WhenRead,
    ) -> Result<(), LunError> {
        let split = self.split.read_recursive();
        let (Some(split), Some(taken)) = (split.as_ref(), Replica::own(taken)) else {
            return Err(self.gone());
        };
        // Read recursively: it may be this one.
        let from = source.as_any().downcast_ref::<Replica>().map(|source| source.split.read_recursive());
        match from.as_ref().and_then(|from| from.as_ref()) {
            Some(from) if split.volume().refers_to(from.volume()) => {
                split.capture_copy(taken, from, pieces, when_read)
            }
            _ => {
                split.read_back(taken, when_read);
                Ok(())
            }
        }
    }

    fn unchanged(&self, taken: Taken) {
        if let (Some(split), Some(taken)) = (self.split.read_recursive().as_ref(), Replica::own(taken)) {
            split.unchanged(taken);
        }
    }

    fn doubt(&self, taken: &Taken) {
        if let (Some(split), Some(taken)) = (self.split.read_recursive().as_ref(), taken.downcast_ref()) {
            split.doubt(taken);
        }
    }

    fn let_pass(&self, taken: Taken) -> Taken {
        match (self.split.read_recursive().as_ref(), Replica::own(taken)) {
            (Some(split), Some(taken)) => Box::new(split.let_pass(taken)),
            // Let go of, it is marked.
            _ => Box::new(()),
        }
    }

    fn unknown(&self, taken: Taken) {
        // Also of one that was let pass.
        drop(taken);
    }

    fn lost(&self, what: Loss) {
        let split = self.split.read_recursive();
        let Some(split) = split.as_ref() else {
            return;
        };
        log::warn!(
            "{}: the array may have lost what it had acknowledged ({what:?}); it is compared",
            self.name
        );
        match what {
            Loss::Unflushed => split.compare_marked(),
            Loss::Anything => split.distrust(),
        }
    }

    fn read_back(&self, taken: Taken, when_read: WhenRead) {
        match (self.split.read_recursive().as_ref(), Replica::own(taken)) {
            (Some(split), Some(taken)) => split.read_back(taken, when_read),
            _ => when_read(Err(self.gone())),
        }
    }

    fn flush(&self, done: FlushDone) {
        match self.split.read_recursive().as_ref() {
            Some(split) => split.flush_then(done),
            None => done(Err(self.gone())),
        }
    }

    fn block_count(&self) -> u64 {
        self.block_count
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
