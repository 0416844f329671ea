//! Comparing a copy with its source at one point, by hashes: each side hashes its own blocks piece by piece, and only the hashes meet.
//!
//! Both are read as of the point, which neither side holds: if a window passes it, the comparison says so, and can be begun again. What
//! both sides know to be zeros is not read.

use sha2::{Digest, Sha256};

use crate::{group::Group, ship::normal, volume::Volume, Error, Lsn, Point, Result, BLOCK_BYTES};

/// Blocks hashed at once: 1 MiB.
const PIECE_BLOCKS: u64 = 2048;
/// Blocks of the pieces by which a difference is told: 4 KiB.
const FINE_BLOCKS: u64 = 8;
/// Differences told at most.
const TOLD: usize = 16;

/// A stretch of a volume that is not the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The volume's name.
    pub volume: String,
    /// First block.
    pub lba: u64,
    /// Blocks.
    pub count: u64,
}

/// What a comparison found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Comparison {
    /// The point of both.
    pub point: Point,
    /// Bytes of the volumes, zeros included.
    pub total_bytes: u64,
    /// Bytes that were read and hashed, on each side.
    pub hashed_bytes: u64,
    /// Blocks that differ, in pieces of 4 KiB.
    pub differing_blocks: u64,
    /// The first differences.
    pub differences: Vec<Difference>,
}

/// A hash of blocks as of a point.
fn hash(volume: &Volume, lba: u64, count: u64, buf: &mut Vec<u8>) -> Result<[u8; 32]> {
    buf.resize(count as usize * BLOCK_BYTES, 0);
    volume.read(lba, buf)?;
    Ok(Sha256::digest(buf).into())
}

/// How many blocks from `lba` on are known to be zeros.
fn zeros(volume: &Volume, lba: u64) -> Result<u64> {
    let first = volume.extents(lba, volume.block_count() - lba, 1)?;
    Ok(first.first().filter(|e| e.zero).map_or(0, |e| e.count))
}

/// Compares all volumes of `source` and its open copy at `lsn`, which both have. `progress` is told bytes done and in all; `false` cancels.
pub fn compare(
    source: &Group,
    copy: &Group,
    lsn: Lsn,
    progress: &mut dyn FnMut(u64, u64) -> bool,
) -> Result<Comparison> {
    let point = source.point_at_lsn(lsn)?;
    let lsn = normal(point.lsn, source.0.segment_bytes);
    let timeline = source.0.state.read().history.production_at(lsn);
    let volumes: Vec<_> = source.volumes().into_iter().filter(|v| v.created_lsn <= lsn).collect();
    let block = BLOCK_BYTES as u64;
    let total_bytes = volumes.iter().map(|v| v.block_count * block).sum();
    let mut found = Comparison { point, total_bytes, ..Comparison::default() };
    let mut done = 0;
    for info in volumes {
        let theirs = source.volume_at((timeline, lsn), info.number)?;
        let mine = copy.volume_at((timeline, lsn), info.number)?;
        if mine.block_count() != theirs.block_count() {
            return Err(Error::Conflict(format!(
                "volume {} has {} blocks, its copy {}: remove the copy and add it again",
                info.name,
                theirs.block_count(),
                mine.block_count()
            )));
        }
        let mut lba = 0;
        while lba < info.block_count {
            let skipped = zeros(&theirs, lba)?.min(zeros(&mine, lba)?);
            let n = if skipped > 0 { skipped } else { PIECE_BLOCKS.min(info.block_count - lba) };
            if skipped == 0 {
                compare_piece(&theirs, &mine, (lba, n), &mut found)?;
            }
            lba += n;
            if !progress(done + lba * block, total_bytes) {
                return Err(Error::Conflict(format!(
                    "the comparison of group {} was cancelled",
                    source.name()
                )));
            }
        }
        done += info.block_count * block;
    }
    Ok(found)
}

fn compare_piece(
    theirs: &Volume,
    mine: &Volume,
    (lba, count): (u64, u64),
    found: &mut Comparison,
) -> Result<()> {
    let mut buf = Vec::new();
    found.hashed_bytes += count * BLOCK_BYTES as u64;
    if hash(theirs, lba, count, &mut buf)? == hash(mine, lba, count, &mut buf)? {
        return Ok(());
    }
    let mut at = lba;
    while at < lba + count {
        let n = FINE_BLOCKS.min(lba + count - at);
        if hash(theirs, at, n, &mut buf)? != hash(mine, at, n, &mut buf)? {
            found.differing_blocks += n;
            let volume = &theirs.info().name;
            let room = found.differences.len() < TOLD;
            match found.differences.last_mut() {
                Some(last) if last.volume == *volume && last.lba + last.count == at => last.count += n,
                _ if room => {
                    found.differences.push(Difference { volume: volume.clone(), lba: at, count: n });
                }
                _ => {}
            }
        }
        at += n;
    }
    Ok(())
}
