//! One record of the log: a 64-byte header, then the payload, then zeros up to a multiple of 8 bytes.
//!
//! All integers are little-endian. The layout is documented byte for byte in docs/formats.md; [`FORMAT`] is its version.
//! Nothing read from a file is believed before its CRC32C (RFC 3720 B.4) agrees. The header's CRC starts from the group's own
//! seed, so a record of another group never passes for one of ours; the epoch never falls along the log, so a leftover of before
//! a crash never passes for one of after it.

use crate::Lsn;

/// Version of the on-disk formats this crate writes.
pub const FORMAT: u32 = 1;
/// Bytes of a record's header.
pub(crate) const HEADER_BYTES: usize = 64;
/// The largest payload of one record: 16 MiB, or less in a group with small segments.
pub(crate) const MAX_PAYLOAD_BYTES: usize = 16 << 20;
/// The volume number of records that belong to the whole group.
pub(crate) const NO_VOLUME: u32 = u32::MAX;

const MAGIC: u32 = u32::from_le_bytes(*b"PHr1");

/// What a record does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub(crate) enum Opcode {
    /// Data: the payload is the blocks.
    Write = 1,
    /// One block repeated: the payload is that block.
    WriteSame = 2,
    /// Zeros that stay provisioned.
    Zero = 3,
    /// Zeros, deprovisioned.
    Unmap = 4,
    /// The blocks of another place as of this record: the payload is a [`CopySource`].
    Copy = 5,
    /// A name for this point: the payload is a kind byte and the name.
    Bookmark = 6,
    /// A timeline begins: the payload is a [`BranchPoint`].
    Branch = 7,
    /// The volume is not in step with its production from here on ([`crate::resync`]).
    ResyncBegin = 8,
    /// The volume is in step with its production again: the payload is where the stretch began.
    ResyncEnd = 9,
    /// The rest of the segment is unused.
    Pad = 10,
}

impl Opcode {
    /// The opcode of a byte, if it is one.
    pub(crate) fn from_byte(byte: u8) -> Option<Opcode> {
        Some(match byte {
            1 => Opcode::Write,
            2 => Opcode::WriteSame,
            3 => Opcode::Zero,
            4 => Opcode::Unmap,
            5 => Opcode::Copy,
            6 => Opcode::Bookmark,
            7 => Opcode::Branch,
            8 => Opcode::ResyncBegin,
            9 => Opcode::ResyncEnd,
            10 => Opcode::Pad,
            _ => return None,
        })
    }

    /// The name people read.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Opcode::Write => "WRITE",
            Opcode::WriteSame => "WRITE_SAME",
            Opcode::Zero => "ZERO",
            Opcode::Unmap => "UNMAP",
            Opcode::Copy => "COPY",
            Opcode::Bookmark => "BOOKMARK",
            Opcode::Branch => "BRANCH",
            Opcode::ResyncBegin => "RESYNC_BEGIN",
            Opcode::ResyncEnd => "RESYNC_END",
            Opcode::Pad => "PAD",
        }
    }

    /// Whether it is looked for when a group is opened.
    pub(crate) fn marks(self) -> bool {
        let resync = matches!(self, Opcode::ResyncBegin | Opcode::ResyncEnd);
        resync || matches!(self, Opcode::Bookmark | Opcode::Copy | Opcode::Branch)
    }

    /// Whether it changes a volume's blocks.
    pub(crate) fn changes_blocks(self) -> bool {
        matches!(self, Opcode::Write | Opcode::WriteSame | Opcode::Zero | Opcode::Unmap | Opcode::Copy)
    }
}

/// A record's header, as meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    /// What it does.
    pub(crate) opcode: Opcode,
    /// Its place in the log, in bytes.
    pub(crate) lsn: Lsn,
    /// Hybrid logical clock, nanoseconds since the Unix epoch; rises from record to record.
    pub(crate) time_ns: u64,
    /// Which run of the service wrote it.
    pub(crate) epoch: u32,
    /// The line of history it belongs to.
    pub(crate) timeline: u32,
    /// The volume's number, or [`NO_VOLUME`].
    pub(crate) volume: u32,
    /// First block.
    pub(crate) lba: u64,
    /// Blocks.
    pub(crate) count: u64,
    /// Bytes of payload behind the header.
    pub(crate) payload_bytes: u32,
    /// CRC32C of the payload.
    pub(crate) payload_crc: u32,
}

/// Bytes that a record with this payload takes in the log.
pub(crate) fn record_bytes(payload_bytes: usize) -> usize {
    (HEADER_BYTES + payload_bytes + 7) & !7
}

impl Header {
    /// The header's bytes, under the group's CRC seed.
    pub(crate) fn encode(&self, seed: u32) -> [u8; HEADER_BYTES] {
        let mut b = [0_u8; HEADER_BYTES];
        b[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        b[8..12].copy_from_slice(&self.payload_crc.to_le_bytes());
        b[12] = self.opcode as u8;
        b[16..24].copy_from_slice(&self.lsn.to_le_bytes());
        b[24..32].copy_from_slice(&self.time_ns.to_le_bytes());
        b[32..36].copy_from_slice(&self.epoch.to_le_bytes());
        b[36..40].copy_from_slice(&self.timeline.to_le_bytes());
        b[40..44].copy_from_slice(&self.volume.to_le_bytes());
        b[44..48].copy_from_slice(&self.payload_bytes.to_le_bytes());
        b[48..56].copy_from_slice(&self.lba.to_le_bytes());
        b[56..64].copy_from_slice(&self.count.to_le_bytes());
        let crc = crc32c::crc32c_append(seed, &b[8..]);
        b[4..8].copy_from_slice(&crc.to_le_bytes());
        b
    }

    /// The header in `b`, or why it is none. The payload's CRC is the caller's to check.
    pub(crate) fn decode(b: &[u8; HEADER_BYTES], seed: u32) -> Result<Header, &'static str> {
        if u32_at(b, 0) != MAGIC {
            return Err("no record magic");
        }
        if u32_at(b, 4) != crc32c::crc32c_append(seed, &b[8..]) {
            return Err("header CRC does not match");
        }
        if b[13..16] != [0; 3] {
            return Err("reserved bytes are not zero");
        }
        let header = Header {
            opcode: Opcode::from_byte(b[12]).ok_or("unknown opcode")?,
            lsn: u64_at(b, 16),
            time_ns: u64_at(b, 24),
            epoch: u32_at(b, 32),
            timeline: u32_at(b, 36),
            volume: u32_at(b, 40),
            payload_bytes: u32_at(b, 44),
            payload_crc: u32_at(b, 8),
            lba: u64_at(b, 48),
            count: u64_at(b, 56),
        };
        if header.payload_bytes as usize > MAX_PAYLOAD_BYTES {
            return Err("payload longer than any record's");
        }
        Ok(header)
    }

    /// The LSN of what follows.
    pub(crate) fn end(&self) -> Lsn {
        self.lsn + record_bytes(self.payload_bytes as usize) as u64
    }

    /// Where the payload lies in the log.
    pub(crate) fn payload_lsn(&self) -> Lsn {
        self.lsn + HEADER_BYTES as u64
    }
}

/// The payload of [`Opcode::Copy`]: where the blocks come from, as of the record itself. 16 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CopySource {
    /// Source volume's number, in the same group.
    pub(crate) volume: u32,
    /// First source block.
    pub(crate) lba: u64,
}

impl CopySource {
    /// Bytes of the payload.
    pub(crate) const BYTES: usize = 16;

    /// The payload.
    pub(crate) fn encode(&self) -> [u8; Self::BYTES] {
        let mut b = [0_u8; Self::BYTES];
        b[0..4].copy_from_slice(&self.volume.to_le_bytes());
        b[8..16].copy_from_slice(&self.lba.to_le_bytes());
        b
    }

    /// The meaning of a payload.
    pub(crate) fn decode(b: &[u8]) -> Option<CopySource> {
        (b.len() == Self::BYTES).then(|| CopySource { volume: u32_at(b, 0), lba: u64_at(b, 8) })
    }
}

/// The payload of [`Opcode::Branch`]: timeline `timeline` continues `parent` as it was at `at`. 24 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BranchPoint {
    /// The new timeline.
    pub(crate) timeline: u32,
    /// Whose state it continues.
    pub(crate) parent: u32,
    /// As of this point.
    pub(crate) at: Lsn,
    /// Whether production moves to the new timeline (a rewind) or not (a writable image).
    pub(crate) production: bool,
}

impl BranchPoint {
    /// Bytes of the payload.
    pub(crate) const BYTES: usize = 24;

    /// The payload.
    pub(crate) fn encode(&self) -> [u8; Self::BYTES] {
        let mut b = [0_u8; Self::BYTES];
        b[0..4].copy_from_slice(&self.timeline.to_le_bytes());
        b[4..8].copy_from_slice(&self.parent.to_le_bytes());
        b[8..16].copy_from_slice(&self.at.to_le_bytes());
        b[16] = u8::from(self.production);
        b
    }

    /// The meaning of a payload.
    pub(crate) fn decode(b: &[u8]) -> Option<BranchPoint> {
        (b.len() == Self::BYTES).then(|| BranchPoint {
            timeline: u32_at(b, 0),
            parent: u32_at(b, 4),
            at: u64_at(b, 8),
            production: b[16] != 0,
        })
    }
}

/// The little-endian integer at `at`; zero beyond the end, which the callers' length checks exclude.
pub(crate) fn u32_at(b: &[u8], at: usize) -> u32 {
    b.get(at..at + 4).and_then(|s| s.try_into().ok()).map_or(0, u32::from_le_bytes)
}

/// As [`u32_at`].
pub(crate) fn u64_at(b: &[u8], at: usize) -> u64 {
    b.get(at..at + 8).and_then(|s| s.try_into().ok()).map_or(0, u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            opcode: Opcode::Write,
            lsn: 4096,
            time_ns: 1,
            epoch: 2,
            timeline: 3,
            volume: 4,
            lba: 5,
            count: 6,
            payload_bytes: 3072,
            payload_crc: 7,
        }
    }

    #[test]
    fn a_header_survives_the_round_trip_and_no_flipped_bit_does() {
        let bytes = header().encode(9);
        assert_eq!(Header::decode(&bytes, 9), Ok(header()));
        assert!(Header::decode(&bytes, 10).is_err());
        for bit in 0..HEADER_BYTES * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::decode(&bad, 9).is_err(), "bit {bit}");
        }
    }
}
