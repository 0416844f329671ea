//! One command: what is asked, and how it ended.

use playhead_wire::iscsi::response::Residual;

/// A command to be sent.
#[derive(Debug, Clone, Default)]
pub struct Task {
    /// The logical unit.
    pub lun: [u8; 8],
    /// Padded with zeros.
    pub cdb: [u8; 16],
    /// Task attribute (SAM-5 8.9): 0 untagged, 1 simple, 2 ordered, 3 head of queue, 4 ACA.
    pub attribute: u8,
    /// Say that data comes (R), or goes (W), even if none is expected: what is beyond is told as residual.
    pub reads: bool,
    /// See `reads`.
    pub writes: bool,
    /// Bytes that are expected to come, at most.
    pub read_bytes: u32,
    /// Announce a write even if `data_out` is shorter than this; Expected Data Transfer Length of a write. Zero: no write.
    pub write_bytes: u32,
    /// What is to be written: `write_bytes` of it.
    pub data_out: Vec<u8>,
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The target says so.
    Status {
        /// SCSI status.
        status: u8,
        /// Sense data, without its length.
        sense: Vec<u8>,
        /// What was left over of the expected transfer.
        residual: Residual,
    },
    /// It was sent, and what became of it is not known: it may have been executed, or be executed yet.
    Lost(String),
    /// It was sent, and the target has ended it without a status: it may have been executed in part, but is not under way any more.
    Ended(String),
    /// Nothing of it was sent.
    NotSent(String),
}

/// A command that is over.
#[derive(Debug)]
pub struct Done {
    /// What [`crate::Nexus::submit`] returned.
    pub tag: u64,
    /// How it ended.
    pub outcome: Outcome,
    /// What it read.
    pub data_in: Vec<u8>,
    /// What it was to write, given back.
    pub data_out: Vec<u8>,
}
