//! What a front end sees of a disk: the seam between sessions and what is behind them (a volume, an image, later a splitter
//! over a foreign LUN).
//!
//! Units: an LBA and a count are in logical blocks of [`BLOCK_BYTES`] bytes.

use std::any::Any;
use std::sync::Arc;

pub use playhead_journal::{Change, Copied, CopyPiece, Extent, Lsn, BLOCK_BYTES};

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
    /// This LUN has no such operation. SCSI: 05/20/00; NBD: ENOTSUP.
    #[error("{name} does not offer {what}")]
    Unsupported {
        /// LUN name.
        name: String,
        /// The operation.
        what: &'static str,
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

/// A LUN's blocks as of one moment: what a token of an offloaded copy stands for. It may be given up for want of space;
/// reads answer [`LunError::Gone`] from then on.
pub trait Frozen: Send + Sync {
    /// The LUN that was frozen.
    fn identity(&self) -> &LunIdentity;

    /// Size at that moment, in blocks.
    fn block_count(&self) -> u64;

    /// As [`Lun::read`], as of that moment.
    fn read(&self, lba: u64, buf: &mut [u8]) -> Result<(), LunError>;

    /// For a LUN to find its own kind.
    fn as_any(&self) -> &dyn Any;
}

/// Where a copy reads.
#[derive(Clone, Copy)]
pub enum CopySource<'a> {
    /// A LUN as it is when the copy is captured.
    Now(&'a dyn Lun),
    /// A LUN as it was.
    Frozen(&'a dyn Frozen),
}

impl CopySource<'_> {
    fn read(&self, lba: u64, buf: &mut [u8]) -> Result<(), LunError> {
        match self {
            CopySource::Now(lun) => lun.read(lba, buf),
            CopySource::Frozen(frozen) => frozen.read(lba, buf),
        }
    }
}

/// Blocks that a copy as data moves at once.
const COPY_STEP_BLOCKS: u64 = (1 << 20) / BLOCK_BYTES as u64;
/// Times an OR is tried against others' changes before it fails.
const OR_TRIES: usize = 10_000;

/// Called once, from any thread, when a flush is over. Must not block.
pub type FlushDone = Box<dyn FnOnce(Result<(), LunError>) + Send>;

/// A disk as a front end sees it. Every method may be called from many threads at once.
pub trait Lun: Send + Sync {
    /// Who this is.
    fn identity(&self) -> &LunIdentity;

    /// Size in blocks.
    fn block_count(&self) -> u64;

    /// Bytes of a physical block, [`BLOCK_BYTES`] or a power of two above it: writes of less are no faster.
    fn physical_block_bytes(&self) -> u32 {
        4096
    }

    /// Most blocks of one [`Change::Write`] that a loss of power leaves whole or not at all; 0 if it may tear any.
    fn atomic_blocks(&self) -> u32 {
        0
    }

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

    /// Replaces the blocks from `lba` on by their bitwise OR with `data`, atomically against every other change of the LUN
    /// (ORWRITE, SBC-4 5.12). `data.len()` is a multiple of [`BLOCK_BYTES`].
    fn or_write(&self, lba: u64, data: &[u8]) -> Result<(), LunError> {
        let mut present = vec![0; data.len()];
        for _ in 0..OR_TRIES {
            self.read(lba, &mut present)?;
            let ored: Vec<u8> = present.iter().zip(data).map(|(a, b)| a | b).collect();
            if self.compare_and_write(lba, &present, &ored)? == Compared::Written {
                return Ok(());
            }
        }
        let detail = "others changed the blocks all the time".to_owned();
        Err(LunError::Io { name: self.identity().name.clone(), detail })
    }

    /// Captures `pieces` of `source` here, in this order. A LUN that knows the source captures references, all or none; else the
    /// data is read and captured in steps of 1 MiB, and an error leaves the steps before it. A source that overlaps its own
    /// destination is read as it was before the piece.
    fn copy_from(&self, source: &CopySource<'_>, pieces: &[CopyPiece]) -> Result<Copied, LunError> {
        copy_data(self, source, pieces)
    }

    /// Whether [`Lun::copy_from`] would capture references to `source`, all or none, without reading it.
    fn copies_by_reference(&self, source: &CopySource<'_>) -> bool {
        let _ = source;
        false
    }

    /// At most how many blocks of `piece` [`Lun::copy_from`] would read and capture as data, as far as that is known beforehand.
    fn copy_moves_at_most(&self, source: &CopySource<'_>, piece: &CopyPiece) -> u64 {
        let _ = source;
        piece.count
    }

    /// Somebody has put other contents behind the LUN, past its own methods: what it knows of what was changed since when is void.
    fn contents_replaced(&self) {}

    /// Keeps the blocks as of now readable while the answer is held, without hindering hosts.
    ///
    /// Errors: [`LunError::Unsupported`] by default.
    fn freeze(&self) -> Result<FrozenRef, LunError> {
        Err(LunError::Unsupported { name: self.identity().name.clone(), what: "copies of one moment" })
    }

    /// Whether [`Lun::freeze`] works.
    fn freezes(&self) -> bool {
        false
    }

    /// For a LUN to find its own kind among sources of a copy.
    fn as_any(&self) -> &dyn Any;

    /// Makes everything captured before this call survive power loss, then calls `done`. Returns at once; concurrent
    /// flushes share one sync of the medium.
    fn flush(&self, done: FlushDone);

    /// Allocation status of `count` blocks from `lba`, as adjoining extents in order, at most `limit` (at least 1) of them: the
    /// answer may end early.
    fn extents(&self, lba: u64, count: u64, limit: usize) -> Result<Vec<Extent>, LunError>;
}

/// A shared LUN.
pub type LunRef = Arc<dyn Lun>;

/// A shared [`Frozen`].
pub type FrozenRef = Arc<dyn Frozen>;

/// The copy of a LUN that knows nothing of its source: reads and writes.
pub fn copy_data<L: Lun + ?Sized>(
    to: &L,
    source: &CopySource<'_>,
    pieces: &[CopyPiece],
) -> Result<Copied, LunError> {
    let mut copied = Copied::default();
    let mut buffer = Vec::new();
    for piece in pieces {
        let onto_itself =
            matches!(source, CopySource::Now(from) if from.identity().uuid == to.identity().uuid);
        let backward = onto_itself && piece.source_lba < piece.lba;
        let mut done = 0;
        while done < piece.count {
            let n = COPY_STEP_BLOCKS.min(piece.count - done);
            let at = if backward { piece.count - done - n } else { done };
            buffer.resize(n as usize * BLOCK_BYTES, 0);
            source.read(piece.source_lba + at, &mut buffer)?;
            to.submit(&[Change::Write { lba: piece.lba + at, data: &buffer }])?;
            done += n;
        }
        copied.moved_blocks += piece.count;
    }
    Ok(copied)
}
