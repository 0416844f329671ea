//! Requests that do not change the LUN: READ, BLOCK_STATUS and CACHE.

use playhead_wire::nbd::request::{FLAG_DF, FLAG_REQ_ONE};
use playhead_wire::nbd::{
    block_status, data_chunk_header, hole_chunk, none_chunk, simple_reply, Descriptor, Request, STATE_HOLE,
    STATE_ZERO,
};

use super::desk::{add, Desk, Disk, SessionError, SEND_BYTES};
use super::handshake::ALLOCATION_CONTEXT;
use crate::lun::{Extent, LunError, BLOCK_BYTES};

/// Largest part of a READ executed at once; larger ones are sent part by part.
const PIECE_BYTES: u32 = 1 << 20;
/// READs from this size on may be answered with holes.
const PROBE_BYTES: u32 = 64 << 10;
/// Zeros worth a chunk of their own.
const HOLE_MIN_BYTES: u64 = 32 << 10;
/// Extents a READ looks at for holes; the rest of it counts as data.
const PROBE_EXTENTS: usize = 32;
/// Extents of one BLOCK_STATUS answer.
const STATUS_EXTENTS: usize = 4096;
/// Extents looked at for the one of a REQ_ONE answer, since adjoining equal ones are one.
const ONE_EXTENTS: usize = 16;
/// Most that one CACHE request makes us read.
const CACHE_BYTES: u32 = 32 << 20;

/// Whether looking for holes has been worth it lately. Every fruitless look doubles the number of READs that go without.
#[derive(Default)]
pub(super) struct HoleProbe {
    fruitless: u32,
    skip: u32,
}

impl HoleProbe {
    fn due(&mut self) -> bool {
        let due = self.skip == 0;
        self.skip = self.skip.saturating_sub(1);
        due
    }

    fn learn(&mut self, found: bool) {
        self.fruitless = if found { 0 } else { (self.fruitless + 1).min(6) };
        self.skip = (1 << self.fruitless) - 1;
    }
}

/// A part of a READ's range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    bytes: u32,
    hole: bool,
}

impl Desk<'_> {
    /// Answers a checked READ.
    pub(super) fn read(&mut self, disk: &Disk, request: &Request) -> Result<(), SessionError> {
        add(&self.record.read_bytes, request.length.into());
        if request.length == 0 {
            if self.structured {
                self.output.push(&none_chunk(request.cookie));
            } else {
                self.answer_done(request.cookie);
            }
            return Ok(());
        }
        if !self.structured || request.flags & FLAG_DF != 0 {
            return self.read_whole(disk, request);
        }
        if request.length >= PROBE_BYTES && self.probe.due() {
            let parts = parts(disk, request);
            self.probe.learn(parts.iter().any(|part| part.hole));
            return self.read_parts(disk, request, &parts);
        }
        let part = Part { bytes: request.length, hole: false };
        self.read_parts(disk, request, &[part])
    }

    /// A READ answered with a chunk for every part.
    fn read_parts(&mut self, disk: &Disk, request: &Request, parts: &[Part]) -> Result<(), SessionError> {
        let end = request.offset + u64::from(request.length);
        let mut offset = request.offset;
        for part in parts {
            let part_end = offset + u64::from(part.bytes);
            while offset < part_end {
                let bytes = if part.hole { part.bytes } else { PIECE_BYTES.min((part_end - offset) as u32) };
                let last = offset + u64::from(bytes) == end;
                if part.hole {
                    let chunk = hole_chunk(request.cookie, last, offset, bytes);
                    self.output.push(&chunk);
                } else {
                    let mark = self.output.mark();
                    let header = data_chunk_header(request.cookie, last, offset, bytes);
                    self.output.push(&header);
                    if let Err(error) = self.fetch(disk, offset, bytes) {
                        self.output.rewind(mark);
                        self.fail(request.cookie, &error);
                        return Ok(());
                    }
                }
                offset += u64::from(bytes);
                if self.output.pending().len() >= SEND_BYTES {
                    self.send_all()?;
                }
            }
        }
        Ok(())
    }

    /// A READ whose answer must be in one piece: a simple reply, or the one chunk of DF.
    fn read_whole(&mut self, disk: &Disk, request: &Request) -> Result<(), SessionError> {
        let cookie = request.cookie;
        let at_once = request.length <= PIECE_BYTES;
        let end = request.offset + u64::from(request.length);
        let mut offset = request.offset;
        let mut mark = Some(self.output.mark());
        if self.structured {
            // Only an answer whose data is all here already can promise to be complete.
            let header = data_chunk_header(cookie, at_once, offset, request.length);
            self.output.push(&header);
        } else {
            self.output.push(&simple_reply(cookie, None));
        }
        while offset < end {
            let bytes = PIECE_BYTES.min((end - offset) as u32);
            if let Err(error) = self.fetch(disk, offset, bytes) {
                return match mark {
                    Some(mark) => {
                        self.output.rewind(mark);
                        self.fail(cookie, &error);
                        Ok(())
                    }
                    None if self.structured => {
                        self.pad(bytes, end - offset)?;
                        self.fail(cookie, &error);
                        Ok(())
                    }
                    None => Err(SessionError::MidAnswer(error)),
                };
            }
            offset += u64::from(bytes);
            mark = None;
            if self.output.pending().len() >= SEND_BYTES {
                self.send_all()?;
            }
        }
        if self.structured && !at_once {
            self.output.push(&none_chunk(cookie));
        }
        Ok(())
    }

    /// Completes a chunk that failed midway with zeros, as it must be. `fetched` bytes of it are in the output already.
    fn pad(&mut self, fetched: u32, bytes: u64) -> Result<(), SessionError> {
        let mut left = bytes - u64::from(fetched);
        while left > 0 {
            let piece = left.min(PIECE_BYTES.into());
            self.output.extend(piece as usize).fill(0);
            self.send_all()?;
            left -= piece;
        }
        Ok(())
    }

    fn fail(&mut self, cookie: u64, error: &LunError) {
        let refusal = self.refusal(error, false);
        self.answer_error(cookie, &refusal);
    }

    /// Reads straight into the outgoing buffer. What is there after an error is nobody's data, but zeros.
    fn fetch(&mut self, disk: &Disk, offset: u64, bytes: u32) -> Result<(), LunError> {
        let slot = self.output.extend(bytes as usize);
        let done = disk.lun.read(offset / BLOCK_BYTES as u64, slot);
        if done.is_err() {
            // The buffer's old bytes may be another answer's; they must not reach the client through a padded chunk.
            slot.fill(0);
        }
        done
    }

    /// Answers a checked BLOCK_STATUS.
    pub(super) fn status(&mut self, disk: &Disk, request: &Request) {
        let one = request.flags & FLAG_REQ_ONE != 0;
        let limit = if one { ONE_EXTENTS } else { STATUS_EXTENTS };
        let lba = request.offset / BLOCK_BYTES as u64;
        let count = u64::from(request.length) / BLOCK_BYTES as u64;
        match disk.lun.extents(lba, count, limit) {
            Ok(extents) => {
                let mut descriptors = descriptors(lba, request.length, &extents);
                if one {
                    descriptors.truncate(1);
                }
                let chunk = block_status(request.cookie, ALLOCATION_CONTEXT, &descriptors);
                self.output.push(&chunk);
            }
            Err(error) => self.fail(request.cookie, &error),
        }
    }

    /// Answers a checked CACHE: reads the range, so that whatever caches below us has it.
    pub(super) fn cache(&mut self, disk: &Disk, request: &Request) {
        let end = request.offset + u64::from(request.length.min(CACHE_BYTES));
        let mut offset = request.offset;
        while offset < end {
            let bytes = PIECE_BYTES.min((end - offset) as u32);
            let mark = self.output.mark();
            let fetched = self.fetch(disk, offset, bytes);
            self.output.rewind(mark);
            if let Err(error) = fetched {
                return self.fail(request.cookie, &error);
            }
            offset += u64::from(bytes);
        }
        self.answer_done(request.cookie);
    }
}

/// The extents of a range as descriptors: adjoining equal ones merged, cut to `length` bytes. Whatever the LUN says wrongly,
/// there is at least one descriptor, and status 0 promises nothing.
fn descriptors(lba: u64, length: u32, extents: &[Extent]) -> Vec<Descriptor> {
    let mut out: Vec<Descriptor> = Vec::with_capacity(extents.len().max(1));
    let mut at = lba;
    let mut left = length;
    for extent in extents {
        if left == 0 || extent.lba != at || extent.count == 0 {
            break;
        }
        let bytes = extent.count.saturating_mul(BLOCK_BYTES as u64);
        let length = u32::try_from(bytes).unwrap_or(u32::MAX).min(left);
        let hole = if extent.mapped { 0 } else { STATE_HOLE };
        let status = hole | if extent.zero { STATE_ZERO } else { 0 };
        match out.last_mut() {
            Some(last) if last.status == status => last.length += length,
            _ => out.push(Descriptor { length, status }),
        }
        left -= length;
        at += extent.count;
    }
    if out.is_empty() {
        out.push(Descriptor { length, status: 0 });
    }
    out
}

/// The parts of a READ: zeros known to be such and long enough are holes, all else is data.
fn parts(disk: &Disk, request: &Request) -> Vec<Part> {
    let lba = request.offset / BLOCK_BYTES as u64;
    let count = u64::from(request.length) / BLOCK_BYTES as u64;
    // A LUN that cannot tell is read; the read will say what is wrong with it.
    let extents = disk.lun.extents(lba, count, PROBE_EXTENTS);
    let mut runs = descriptors(lba, request.length, &extents.unwrap_or_default());
    let known: u32 = runs.iter().map(|run| run.length).sum();
    runs.push(Descriptor { length: request.length - known, status: 0 });
    // Zeros are zeros whether mapped or not, so runs may adjoin that differ only in that.
    let mut zeros: Vec<Part> = Vec::with_capacity(runs.len());
    for run in runs {
        push_part(&mut zeros, run.length, run.status & STATE_ZERO != 0);
    }
    let mut parts = Vec::with_capacity(zeros.len());
    for part in zeros {
        let whole = part.bytes == request.length;
        let hole = part.hole && (whole || u64::from(part.bytes) >= HOLE_MIN_BYTES);
        push_part(&mut parts, part.bytes, hole);
    }
    parts
}

fn push_part(parts: &mut Vec<Part>, bytes: u32, hole: bool) {
    if bytes == 0 {
        return;
    }
    match parts.last_mut() {
        Some(last) if last.hole == hole => last.bytes += bytes,
        _ => parts.push(Part { bytes, hole }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(lba: u64, count: u64, mapped: bool, zero: bool) -> Extent {
        Extent { lba, count, mapped, zero }
    }

    #[test]
    fn adjoining_equal_extents_are_one_descriptor() {
        let extents = [
            extent(8, 8, true, false),
            extent(16, 8, true, false),
            extent(24, 8, false, true),
            extent(32, 800, true, true),
        ];
        let expected = [(8192, 0), (4096, 3), (4096, 2)];
        let found = descriptors(8, 16384, &extents);
        let found: Vec<_> = found.iter().map(|d| (d.length, d.status)).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_lun_that_answers_nonsense_promises_nothing() {
        let nothing = [Descriptor { length: 4096, status: 0 }];
        assert_eq!(descriptors(8, 4096, &[]), nothing);
        let elsewhere = [extent(9, 8, false, true)];
        assert_eq!(descriptors(8, 4096, &elsewhere), nothing);
        let empty = [extent(8, 0, false, true)];
        assert_eq!(descriptors(8, 4096, &empty), nothing);
    }

    #[test]
    fn extents_longer_than_32_bits_are_cut_to_what_was_asked() {
        let huge = [extent(0, u64::MAX, false, true)];
        let found = descriptors(0, u32::MAX - 511, &huge);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].length, u32::MAX - 511);
    }

    #[test]
    fn fruitless_probes_grow_rare_and_one_find_brings_them_back() {
        let mut probe = HoleProbe::default();
        let mut looks = 0;
        for _ in 0..1000 {
            if probe.due() {
                looks += 1;
                probe.learn(false);
            }
        }
        assert!(looks < 25, "{looks} looks");
        while !probe.due() {}
        probe.learn(true);
        assert!(probe.due());
    }
}
