//! What one command may ask of a unit: VPD page B0 says it, [`LogicalUnit::admit`] enforces it.

use super::nexus::Nexus;
use super::policy::Offload;
use super::unit::LogicalUnit;
use crate::lun::BLOCK_BYTES;
use playhead_wire::scsi::inquiry::{BlockLimits, Thin};
use playhead_wire::scsi::{Command, Sense};

/// Most blocks a READ, a WRITE or their kin move: 32 MiB, so that one command's data fits a session's budget.
pub const TRANSFER_BLOCKS_MAX: u32 = (32 << 20) / BLOCK_BYTES as u32;
/// The transfer that costs least for its size: 1 MiB.
const OPTIMAL_BLOCKS: u32 = (1 << 20) / BLOCK_BYTES as u32;
/// Most blocks of a COMPARE AND WRITE: what its field holds.
const COMPARE_BLOCKS_MAX: u8 = 255;
/// Most descriptors of an UNMAP. Each is a record; each may name any number of blocks.
pub(super) const UNMAP_DESCRIPTORS_MAX: u32 = 256;

impl LogicalUnit {
    /// The limits there are. UNMAP and WRITE SAME have none but the unit's size: of any length they are one record.
    pub fn limits(&self) -> BlockLimits {
        let per_physical = self.lun.physical_block_bytes() / BLOCK_BYTES as u32;
        BlockLimits {
            compare_and_write: COMPARE_BLOCKS_MAX,
            transfer_granularity: per_physical as u16,
            transfer: TRANSFER_BLOCKS_MAX,
            optimal_transfer: OPTIMAL_BLOCKS,
            unmap: u32::MAX,
            unmap_descriptors: UNMAP_DESCRIPTORS_MAX,
            unmap_granularity: per_physical,
            write_same: self.lun.block_count(),
            atomic: self.lun.atomic_blocks().min(TRANSFER_BLOCKS_MAX),
        }
    }

    /// The limits as this initiator finds them: an offload that policy rejects has none.
    pub(super) fn limits_for(&self, nexus: &Nexus) -> BlockLimits {
        let offloads = nexus.offloads();
        let mut limits = self.limits();
        if !offloads.contains(Offload::Ats) {
            limits.compare_and_write = 0;
        }
        if !offloads.contains(Offload::WriteSame) {
            limits.write_same = 0;
        }
        if !offloads.contains(Offload::Unmap) {
            limits.unmap = 0;
            limits.unmap_descriptors = 0;
            limits.unmap_granularity = 0;
        }
        limits
    }

    /// Refuses blocks beyond the end, even none of them, and transfers beyond the limits.
    pub(super) fn check_range(&self, command: &Command, block_count: u64) -> Result<(), Sense> {
        // The byte whose field a transfer that is too long is blamed on depends on the CDB's form, so none is named.
        let (lba, count, most) = match *command {
            Command::Read(b)
            | Command::Write(b)
            | Command::OrWrite(b)
            | Command::WriteAndVerify { blocks: b, .. }
            | Command::Verify { blocks: b, .. } => (b.lba, b.count, TRANSFER_BLOCKS_MAX),
            Command::WriteAtomic { blocks: b, boundary } => {
                let most = self.lun.atomic_blocks().min(TRANSFER_BLOCKS_MAX);
                if most == 0 {
                    return Err(Sense::INVALID_OPCODE);
                }
                if u32::from(boundary) > most {
                    return Err(Sense::in_cdb(10, Some(7)));
                }
                (b.lba, b.count, most)
            }
            Command::CompareAndWrite(b) => (b.lba, b.count, u32::from(COMPARE_BLOCKS_MAX)),
            Command::PreFetch { lba, count, .. } | Command::SynchronizeCache { lba, count, .. } => {
                (lba, count, u32::MAX)
            }
            Command::WriteSame(w) => (w.lba, w.count, u32::MAX),
            Command::GetLbaStatus { lba, .. } => (lba, 0, u32::MAX),
            _ => return Ok(()),
        };
        if lba >= block_count || u64::from(count) > block_count - lba {
            return Err(Sense::LBA_OUT_OF_RANGE);
        }
        if count > most {
            return Err(Sense::INVALID_FIELD_IN_CDB);
        }
        Ok(())
    }
}

/// How blocks are provisioned for this initiator: a unit of which it may unmap nothing is not thin to it.
pub(super) fn thin(nexus: &Nexus) -> Thin {
    let offloads = nexus.offloads();
    let unmap = offloads.contains(Offload::Unmap);
    Thin { unmap, write_same: unmap && offloads.contains(Offload::WriteSame) }
}
