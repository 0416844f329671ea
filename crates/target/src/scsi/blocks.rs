//! Commands about blocks that need more than one pass over them: verify, compare, repeat, deallocate.

use super::job::Job;
use super::limits::UNMAP_DESCRIPTORS_MAX;
use super::unit::{sense_of_read, sense_of_write, Done, LogicalUnit};
use crate::lun::{Change, Compared, Extent, BLOCK_BYTES};
use playhead_wire::scsi::capacity::{self, Provisioning};
use playhead_wire::scsi::cdb::{Blocks, ByteCheck, WriteSame};
use playhead_wire::scsi::{unmap, Sense};

/// Bytes read at once to compare or verify.
const CHUNK_BYTES: usize = 256 << 10;
/// Most blocks that PRE-FETCH really reads: 8 MiB.
const PREFETCH_BLOCKS_MAX: u64 = (8 << 20) / BLOCK_BYTES as u64;
/// Most descriptors in one GET LBA STATUS answer.
const STRETCHES_MAX: usize = 256;

/// The first position at which two slices of one length differ.
fn first_difference(a: &[u8], b: &[u8]) -> Option<usize> {
    if a == b {
        return None;
    }
    a.iter().zip(b).position(|(x, y)| x != y)
}

impl LogicalUnit {
    /// Reads the blocks and compares them with what `expected` gives for each chunk's offset and length.
    fn compare_blocks(
        &self,
        blocks: Blocks,
        expected: impl Fn(usize, &[u8]) -> Option<usize>,
    ) -> Result<(), Sense> {
        let total = blocks.count as usize * BLOCK_BYTES;
        let mut chunk = vec![0; total.min(CHUNK_BYTES)];
        let mut at = 0;
        while at < total {
            let length = chunk.len().min(total - at);
            let part = &mut chunk[..length];
            self.lun
                .read(blocks.lba + (at / BLOCK_BYTES) as u64, part)
                .map_err(|error| sense_of_read(&error))?;
            if let Some(offset) = expected(at, part) {
                return Err(Sense::MISCOMPARE.with_information((at + offset) as u64));
            }
            at += length;
        }
        Ok(())
    }

    /// VERIFY (SBC-3 5.31).
    pub(super) fn verify(&self, blocks: Blocks, check: ByteCheck, data_out: &[u8]) -> Result<(), Sense> {
        match check {
            ByteCheck::Medium => self.compare_blocks(blocks, |_, _| None),
            ByteCheck::Each => {
                require(data_out, blocks.count as usize * BLOCK_BYTES)?;
                self.compare_blocks(blocks, |at, part| first_difference(part, &data_out[at..at + part.len()]))
            }
            ByteCheck::One if blocks.count == 0 => Ok(()),
            ByteCheck::One => {
                require(data_out, BLOCK_BYTES)?;
                self.compare_blocks(blocks, |_, part| {
                    part.chunks_exact(BLOCK_BYTES).enumerate().find_map(|(i, block)| {
                        first_difference(block, &data_out[..BLOCK_BYTES])
                            .map(|offset| i * BLOCK_BYTES + offset)
                    })
                })
            }
        }
    }

    /// WRITE AND VERIFY (SBC-3 5.44): writes what came, reads it back.
    pub(super) fn write_and_verify(
        &self,
        blocks: Blocks,
        compare: bool,
        data_out: &[u8],
    ) -> Result<(), Sense> {
        // The initiator may have announced less than the CDB says: whole blocks of what came are written.
        let count = (data_out.len() / BLOCK_BYTES).min(blocks.count as usize);
        let data = &data_out[..count * BLOCK_BYTES];
        if data.is_empty() {
            return Ok(());
        }
        let change = Change::Write { lba: blocks.lba, data };
        self.lun.submit(&[change]).map_err(|error| sense_of_write(&error))?;
        let written = Blocks { count: count as u32, ..blocks };
        let check = if compare { ByteCheck::Each } else { ByteCheck::Medium };
        self.verify(written, check, data)
    }

    /// ORWRITE (SBC-4 5.18).
    pub(super) fn or_write(&self, blocks: Blocks, data_out: &[u8]) -> Result<(), Sense> {
        if blocks.count == 0 {
            return Ok(());
        }
        let bytes = blocks.count as usize * BLOCK_BYTES;
        require(data_out, bytes)?;
        self.lun.or_write(blocks.lba, &data_out[..bytes]).map_err(|error| sense_of_write(&error))
    }

    /// WRITE ATOMIC (SBC-4 5.45): one record, so that a boundary inside it asks for less than is done anyway.
    pub(super) fn write_atomic(&self, blocks: Blocks, data_out: &[u8]) -> Result<(), Sense> {
        if blocks.count == 0 {
            return Ok(());
        }
        let bytes = blocks.count as usize * BLOCK_BYTES;
        require(data_out, bytes)?;
        let change = Change::Write { lba: blocks.lba, data: &data_out[..bytes] };
        self.lun.submit(&[change]).map_err(|error| sense_of_write(&error))?;
        Ok(())
    }

    /// PRE-FETCH (SBC-4 5.12): reads the first of the blocks, so that they are in memory when the reads for them come. CONDITION MET
    /// would say that all of them are in a cache, or with IMMED that they will fit. What caches here is the kernel, in memory that
    /// everything else on the machine shares: it says neither how much it will keep nor that it has kept it. So it is always GOOD, the
    /// standard's answer of a device that has not, or not room for, all of them.
    pub(super) fn prefetch(&self, lba: u64, count: u32, immediate: bool) -> Result<Done, Sense> {
        let to_end = self.lun.block_count().saturating_sub(lba);
        let count = if count == 0 { to_end } else { u64::from(count) }.min(PREFETCH_BLOCKS_MAX);
        let lun = std::sync::Arc::clone(&self.lun);
        let ahead = Job::new(move |cancel| {
            let mut chunk = vec![0; CHUNK_BYTES.min(count as usize * BLOCK_BYTES)];
            let mut done = 0;
            while done < count && !cancel.is_cancelled() {
                let blocks = (count - done).min((chunk.len() / BLOCK_BYTES) as u64);
                let part = &mut chunk[..blocks as usize * BLOCK_BYTES];
                lun.read(lba + done, part).map_err(|error| sense_of_read(&error))?;
                done += blocks;
            }
            Ok(Vec::new())
        });
        Ok(if immediate { Done::Beside(ahead) } else { Done::Job(ahead) })
    }

    /// WRITE SAME (SBC-4 5.52): zeros are a record of their own, deallocated if UNMAP asks for it. Returns the bytes changed.
    pub(super) fn write_same(&self, request: &WriteSame, data_out: &[u8]) -> Result<u64, Sense> {
        let lba = request.lba;
        let count = match request.count {
            0 => self.lun.block_count().saturating_sub(lba),
            count => u64::from(count),
        };
        if !request.no_data {
            require(data_out, BLOCK_BYTES)?;
        }
        let zeros = request.no_data || data_out[..BLOCK_BYTES].iter().all(|&byte| byte == 0);
        let change = match (zeros, request.unmap) {
            (true, true) => Change::Unmap { lba, count },
            (true, false) => Change::Zero { lba, count },
            // Unmapped blocks read as zeros, so other data has to be written whatever UNMAP says.
            (false, _) => Change::WriteSame { lba, count, block: &data_out[..BLOCK_BYTES] },
        };
        self.lun.submit(&[change]).map_err(|error| sense_of_write(&error))?;
        Ok(count * BLOCK_BYTES as u64)
    }

    /// UNMAP (SBC-3 5.30): all extents in one batch, or none. Returns the bytes unmapped.
    pub(super) fn unmap(&self, list: &[u8]) -> Result<u64, Sense> {
        let extents = unmap::parse(list, UNMAP_DESCRIPTORS_MAX as usize)?;
        let block_count = self.lun.block_count();
        let mut total = 0;
        let mut changes = Vec::new();
        for (lba, count) in extents {
            let count = u64::from(count);
            if lba > block_count || count > block_count - lba {
                return Err(Sense::LBA_OUT_OF_RANGE);
            }
            total += count;
            if count > 0 {
                changes.push(Change::Unmap { lba, count });
            }
        }
        if !changes.is_empty() {
            self.lun.submit(&changes).map_err(|error| sense_of_write(&error))?;
        }
        Ok(total * BLOCK_BYTES as u64)
    }

    /// COMPARE AND WRITE (SBC-3 5.2).
    pub(super) fn compare_and_write(&self, blocks: Blocks, data_out: &[u8]) -> Result<(), Sense> {
        let half = blocks.count as usize * BLOCK_BYTES;
        if half == 0 {
            return Ok(());
        }
        require(data_out, 2 * half)?;
        let (compare, write) = data_out[..2 * half].split_at(half);
        match self.lun.compare_and_write(blocks.lba, compare, write) {
            Ok(Compared::Written) => Ok(()),
            Ok(Compared::Differs { offset_bytes }) => {
                Err(Sense::MISCOMPARE.with_information(offset_bytes as u64))
            }
            Err(error) => Err(sense_of_write(&error)),
        }
    }

    /// GET LBA STATUS (SBC-3 5.6).
    pub(super) fn lba_status(
        &self,
        lba: u64,
        allocation_bytes: u32,
        data_in: &mut Vec<u8>,
    ) -> Result<(), Sense> {
        let room = (allocation_bytes as usize).saturating_sub(8) / 16;
        let limit = room.clamp(1, STRETCHES_MAX);
        let count = self.lun.block_count().saturating_sub(lba);
        let extents = self.lun.extents(lba, count, limit).map_err(|error| sense_of_read(&error))?;
        capacity::emit_lba_status(stretches(lba, &extents).into_iter(), data_in);
        Ok(())
    }
}

/// Joins extents of one provisioning status, from `lba` on; stops where a count would pass 32 bits.
fn stretches(lba: u64, extents: &[Extent]) -> Vec<(u64, u32, Provisioning)> {
    let mut joined: Vec<(u64, u32, Provisioning)> = Vec::with_capacity(extents.len());
    let mut next = lba;
    for extent in extents {
        let end = extent.lba.saturating_add(extent.count);
        if end <= next {
            continue;
        }
        let status = if extent.mapped { Provisioning::Mapped } else { Provisioning::Deallocated };
        let length = u32::try_from(end - next).unwrap_or(u32::MAX);
        match joined.last_mut() {
            Some((_, count, last)) if *last == status => {
                let Some(sum) = count.checked_add(length) else {
                    break;
                };
                *count = sum;
            }
            _ => joined.push((next, length, status)),
        }
        next = next.saturating_add(u64::from(length));
        if next < end {
            break;
        }
    }
    joined
}

/// The initiator announced less data than the command is about.
fn require(data_out: &[u8], bytes: usize) -> Result<(), Sense> {
    if data_out.len() < bytes {
        return Err(Sense::TOO_LITTLE_ANNOUNCED);
    }
    Ok(())
}
