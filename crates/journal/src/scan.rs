//! Walking over the records of a segment file as they lie on the medium, believing nothing.

use std::{path::PathBuf, sync::Arc};

use crate::{
    error::Context,
    files::File,
    record::{record_bytes, Header, Opcode, HEADER_BYTES},
    segment::SEGMENT_HEADER_BYTES,
    Lsn, Result,
};

/// Bytes read at once.
const WINDOW_BYTES: usize = 1 << 20;

/// What was found at a place of the log.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// A whole and valid record (never a PAD).
    Record(Header),
    /// The rest of the segment is unused, by a PAD or because no header fits.
    SegmentEnd,
    /// No valid record: the end of the log, or damage. With what is wrong.
    Nothing(&'static str),
}

/// A cursor over one segment.
pub(crate) struct Scan {
    file: Arc<dyn File>,
    path: PathBuf,
    seed: u32,
    segment_bytes: u64,
    base: Lsn,
    /// Bytes from the segment's start to the next record.
    pub(crate) offset: u64,
    /// Epochs never fall along the log, and none is later than the group's.
    pub(crate) epochs: (u32, u32),
    window: Vec<u8>,
    window_at: u64,
}

impl Scan {
    pub(crate) fn new(
        (file, path): (Arc<dyn File>, PathBuf),
        number: u64,
        segment_bytes: u64,
        seed: u32,
        epochs: (u32, u32),
    ) -> Scan {
        Scan {
            file,
            path,
            seed,
            segment_bytes,
            base: number * segment_bytes,
            offset: SEGMENT_HEADER_BYTES,
            epochs,
            window: Vec::new(),
            window_at: 0,
        }
    }

    fn bytes(&mut self, offset: u64, len: usize) -> Result<&[u8]> {
        let held = self.window_at..self.window_at + self.window.len() as u64;
        if !(held.contains(&offset) && offset + len as u64 <= held.end) {
            let n = (len.max(WINDOW_BYTES) as u64).min(self.segment_bytes - offset);
            self.window.resize(n as usize, 0);
            self.file.read_at(&mut self.window, offset).doing("reading", &self.path)?;
            self.window_at = offset;
        }
        let start = (offset - self.window_at) as usize;
        Ok(&self.window[start..start + len])
    }

    /// What comes next; after a record the cursor stands behind it.
    pub(crate) fn next(&mut self) -> Result<Found> {
        if self.segment_bytes - self.offset < HEADER_BYTES as u64 {
            return Ok(Found::SegmentEnd);
        }
        let (offset, seed) = (self.offset, self.seed);
        let mut b = [0; HEADER_BYTES];
        b.copy_from_slice(self.bytes(offset, HEADER_BYTES)?);
        let header = match Header::decode(&b, seed) {
            Ok(header) => header,
            Err(why) => return Ok(Found::Nothing(why)),
        };
        if header.lsn != self.base + offset {
            return Ok(Found::Nothing("a record of another place"));
        }
        if header.epoch < self.epochs.0 || header.epoch > self.epochs.1 {
            return Ok(Found::Nothing("a record of another epoch"));
        }
        if header.opcode == Opcode::Pad {
            self.epochs.0 = header.epoch;
            return Ok(Found::SegmentEnd);
        }
        let payload_bytes = header.payload_bytes as usize;
        if offset + record_bytes(payload_bytes) as u64 > self.segment_bytes {
            return Ok(Found::Nothing("a record that crosses the segment's end"));
        }
        let crc = crc32c::crc32c(self.bytes(offset + HEADER_BYTES as u64, payload_bytes)?);
        if crc != header.payload_crc {
            return Ok(Found::Nothing("payload CRC does not match"));
        }
        self.epochs.0 = header.epoch;
        self.offset += record_bytes(payload_bytes) as u64;
        Ok(Found::Record(header))
    }

    /// The payload of a record that [`Scan::next`] returned.
    pub(crate) fn payload(&mut self, header: &Header) -> Result<&[u8]> {
        self.bytes(header.payload_lsn() - self.base, header.payload_bytes as usize)
    }
}
