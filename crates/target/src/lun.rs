//! What a front end sees of a disk: the seam between sessions and what is behind them (a volume, an image, later a splitter
//! over a foreign LUN).
//!
//! Units: an LBA and a count are in logical blocks of [`BLOCK_BYTES`] bytes.

use std::sync::Arc;

pub use playhead_journal::{Change, Extent, Lsn, BLOCK_BYTES};

/// Who a LUN is, for INQUIRY, VPD pages and NBD export descriptions. Stable for the LUN's life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LunIdentity {
    /// Sixteen bytes, unique; the NAA designator and the serial number are made of it.
    pub uuid: [u8; 16],
    /// The name people use, up to 128 bytes of UTF-8.
    pub name: String,
}

/// Why a LUN refused. Front ends turn it into sense data or an NBD error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LunError {
    /// Blocks beyond the end. SCSI: 05/21/00; NBD: EINVAL (ENOSPC for writes).
    #[error("LBA {lba} + {count} blocks is beyond the end of {name}")]
    OutOfRange {
        /// LUN name.
        name: String,
        /// First block asked for.
        lba: u64,
        /// Blocks asked for.
        count: u64,
    },
    /// The LUN is read-only. SCSI: 07/27/00; NBD: EPERM.
    #[error("{name} is read-only")]
    ReadOnly {
        /// LUN name.
        name: String,
    },
    /// No room left in the journal. SCSI: 07/27/07 SPACE ALLOCATION FAILED WRITE PROTECT; NBD: ENOSPC.
    #[error("no space left for writes to {name}: {detail}")]
    NoSpace {
        /// LUN name.
        name: String,
        /// What ran out and what to do.
        detail: String,
    },
    /// The image was closed, the volume removed, or the service is stopping. SCSI: 02/04/00 NOT READY; NBD: ESHUTDOWN.
    #[error("{name} is gone")]
    Gone {
        /// LUN name.
        name: String,
    },
    /// The storage under us failed. SCSI reads: 03/11/00, writes: 03/0C/00; NBD: EIO.
    #[error("I/O error on {name}: {detail}")]
    Io {
        /// LUN name.
        name: String,
        /// The operating system's words.
        detail: String,
    },
}

/// The outcome of a COMPARE AND WRITE that reached the medium.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compared {
    /// Equal, and the new data is captured.
    Written,
    /// Different; nothing changed. The offset of the first differing byte.
    Differs {
        /// Bytes from the start of the compare buffer.
        offset_bytes: usize,
    },
}

/// Called once, from any thread, when a flush is over. Must not block.
pub type FlushDone = Box<dyn FnOnce(Result<(), LunError>) + Send>;

/// A disk as a front end sees it. Every method may be called from many threads at once.
pub trait Lun: Send + Sync {
    /// Who this is.
    fn identity(&self) -> &LunIdentity;

    /// Size in blocks.
    fn block_count(&self) -> u64;

    /// Whether every change is refused.
    fn read_only(&self) -> bool;

    /// Reads `buf.len() / BLOCK_BYTES` blocks from `lba` on. `buf.len()` is a multiple of [`BLOCK_BYTES`].
    fn read(&self, lba: u64, buf: &mut [u8]) -> Result<(), LunError>;

    /// Captures `changes` in this order, as one batch: all of them or none. On return they survive the death of this process;
    /// only [`Lun::flush`] makes them survive power loss. Returns a position after the last of them.
    fn submit(&self, changes: &[Change<'_>]) -> Result<Lsn, LunError>;

    /// Compares `compare.len()` bytes at `lba` and, if equal, captures `write` (of the same length) there, atomically
    /// against every other change of the LUN (SBC-4 5.3).
    fn compare_and_write(&self, lba: u64, compare: &[u8], write: &[u8]) -> Result<Compared, LunError>;

    /// Makes everything captured before this call survive power loss, then calls `done`. Returns at once; concurrent
    /// flushes share one sync of the medium.
    fn flush(&self, done: FlushDone);

    /// Allocation status of `count` blocks from `lba`, as adjoining extents in order, at most `limit` (at least 1) of them: the
    /// answer may end early.
    fn extents(&self, lba: u64, count: u64, limit: usize) -> Result<Vec<Extent>, LunError>;
}

/// A shared LUN.
pub type LunRef = Arc<dyn Lun>;
