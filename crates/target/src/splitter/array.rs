//! The array-based splitter: the place where a front end's change becomes a journal record, when Playhead itself is the array.
//!
//! It stands between [`crate::lun::Lun`] and the journal's [`Volume`] and copies nothing: both sides speak of the same
//! [`Change`], so a batch goes through as the slice it came in.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use playhead_journal::{Moment, Volume};

use super::refusal;
use crate::lun::{
    copy_data, Change, Compared, Copied, CopyPiece, CopySource, Extent, FlushDone, Frozen, FrozenRef, Lsn,
    Lun, LunError, LunIdentity,
};

/// A volume of a group's production, or of an image, as a disk.
pub struct ArraySplitter {
    volume: Volume,
    identity: LunIdentity,
    physical_block_bytes: u32,
    /// An administrator lets nobody write.
    locked: AtomicBool,
}

impl ArraySplitter {
    /// Puts `volume` behind the seam under `identity`.
    pub fn new(volume: Volume, identity: LunIdentity) -> Self {
        Self { volume, identity, physical_block_bytes: 4096, locked: AtomicBool::new(false) }
    }

    /// The same with another physical block, for hosts that want 512-byte blocks to be native.
    #[must_use]
    pub fn with_physical_block_bytes(mut self, bytes: u32) -> Self {
        self.physical_block_bytes = bytes;
        self
    }

    /// Lets everybody only read from now on, or write again. An image that is read-only stays so.
    pub fn set_read_only(&self, read_only: bool) {
        self.locked.store(read_only, Ordering::Release);
    }

    /// The volume behind it.
    pub fn volume(&self) -> &Volume {
        &self.volume
    }
}

impl Lun for ArraySplitter {
    fn identity(&self) -> &LunIdentity {
        &self.identity
    }

    fn block_count(&self) -> u64 {
        self.volume.block_count()
    }

    fn physical_block_bytes(&self) -> u32 {
        self.physical_block_bytes
    }

    fn atomic_blocks(&self) -> u32 {
        self.volume.record_blocks_max()
    }

    fn read_only(&self) -> bool {
        self.locked.load(Ordering::Acquire) || self.volume.read_only()
    }

    fn read(&self, lba: u64, buf: &mut [u8]) -> Result<(), LunError> {
        self.volume.read(lba, buf).map_err(|e| refusal(&self.identity.name, e))
    }

    fn submit(&self, changes: &[Change<'_>]) -> Result<Lsn, LunError> {
        self.check_writable()?;
        self.volume.submit(changes).map_err(|e| refusal(&self.identity.name, e))
    }

    fn compare_and_write(&self, lba: u64, compare: &[u8], write: &[u8]) -> Result<Compared, LunError> {
        self.check_writable()?;
        match self.volume.compare_and_write(lba, compare, write) {
            Ok(None) => Ok(Compared::Written),
            Ok(Some(offset_bytes)) => Ok(Compared::Differs { offset_bytes }),
            Err(e) => Err(refusal(&self.identity.name, e)),
        }
    }

    fn flush(&self, done: FlushDone) {
        let name = self.identity.name.clone();
        self.volume.flush_then(Box::new(move |outcome| done(outcome.map_err(|e| refusal(&name, e)))));
    }

    fn or_write(&self, lba: u64, data: &[u8]) -> Result<(), LunError> {
        self.check_writable()?;
        self.volume.or_write(lba, data).map(|_| ()).map_err(|e| refusal(&self.identity.name, e))
    }

    /// A volume of the same group is copied as records that say where from, whatever the length; one of another group as data, its
    /// zeros as zeros; anything else by reads and writes.
    fn copy_from(&self, source: &CopySource<'_>, pieces: &[CopyPiece]) -> Result<Copied, LunError> {
        self.check_writable()?;
        let outcome = match source {
            CopySource::Now(lun) => match lun.as_any().downcast_ref::<ArraySplitter>() {
                Some(known) => self.volume.copy(&known.volume, pieces),
                None => return copy_data(self, source, pieces),
            },
            CopySource::Frozen(frozen) => match frozen.as_any().downcast_ref::<FrozenVolume>() {
                Some(known) => {
                    known.moment.check().map_err(|e| refusal(&known.identity.name, e))?;
                    self.volume.copy_moment(&known.moment, pieces)
                }
                None => return copy_data(self, source, pieces),
            },
        };
        outcome.map_err(|e| refusal(&self.identity.name, e))
    }

    fn copies_by_reference(&self, source: &CopySource<'_>) -> bool {
        let CopySource::Now(lun) = source else {
            return false;
        };
        lun.as_any().downcast_ref::<ArraySplitter>().is_some_and(|known| self.volume.refers_to(&known.volume))
    }

    fn freeze(&self) -> Result<FrozenRef, LunError> {
        let moment = self.volume.freeze().map_err(|e| refusal(&self.identity.name, e))?;
        Ok(Arc::new(FrozenVolume { moment, identity: self.identity.clone() }))
    }

    fn freezes(&self) -> bool {
        true
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }

    fn extents(&self, lba: u64, count: u64, limit: usize) -> Result<Vec<Extent>, LunError> {
        self.volume.extents(lba, count, limit).map_err(|e| refusal(&self.identity.name, e))
    }
}

impl ArraySplitter {
    /// The journal would refuse too, but in words of a request that makes no sense; here it is a property of the disk.
    fn check_writable(&self) -> Result<(), LunError> {
        if self.read_only() {
            return Err(LunError::ReadOnly { name: self.identity.name.clone() });
        }
        Ok(())
    }
}

/// A volume as of one moment. It holds nothing: when the protection window has moved past the moment, reads answer
/// [`LunError::Gone`].
struct FrozenVolume {
    moment: Moment,
    identity: LunIdentity,
}

impl Frozen for FrozenVolume {
    fn identity(&self) -> &LunIdentity {
        &self.identity
    }

    fn block_count(&self) -> u64 {
        self.moment.block_count()
    }

    fn read(&self, lba: u64, buf: &mut [u8]) -> Result<(), LunError> {
        self.moment.read(lba, buf).map_err(|e| refusal(&self.identity.name, e))
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

/// Shares a volume as a disk that any front end can export.
pub fn lun(volume: Volume, identity: LunIdentity) -> Arc<dyn Lun> {
    Arc::new(ArraySplitter::new(volume, identity))
}
