//! SCSI command descriptor blocks, sense data and parameter data of a direct-access block device.
//!
//! [`cdb`] reads commands, [`opcodes`] lists the ones there are, [`sense`] says why one failed; [`inquiry`], [`mode`],
//! [`capacity`], [`erase`], [`reservation`] and [`unmap`] hold the data that travels with them; [`extended_copy`], [`rod_token`],
//! [`copy_status`] and [`third_party`] that of copies between units. Standards: SPC-5, SBC-4, SAM-5.
//!
//! Units: an LBA and a count are in logical blocks.

pub mod capacity;
pub mod cdb;
pub mod copy_status;
pub mod erase;
pub mod extended_copy;
pub mod inquiry;
pub mod log;
pub mod mode;
pub mod opcodes;
pub mod reservation;
pub mod rod_token;
pub mod sense;
pub mod target_ports;
pub mod third_party;
pub mod unmap;

pub use cdb::Command;
pub use sense::Sense;

/// Status codes (SAM-5 5.3.1).
pub mod status {
    /// The command is done.
    pub const GOOD: u8 = 0x00;
    /// Sense data says what happened.
    pub const CHECK_CONDITION: u8 = 0x02;
    /// The comparison a command asked for holds, or a pre-fetch fits the cache.
    pub const CONDITION_MET: u8 = 0x04;
    /// Try again later.
    pub const BUSY: u8 = 0x08;
    /// Another initiator holds a reservation.
    pub const RESERVATION_CONFLICT: u8 = 0x18;
    /// Too many tasks: try again when one of yours has ended.
    pub const TASK_SET_FULL: u8 = 0x28;
    /// Another initiator ended the task.
    pub const TASK_ABORTED: u8 = 0x40;
}

pub(crate) fn be16(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).map_or(0, |b| u16::from_be_bytes([b[0], b[1]]))
}

pub(crate) fn be32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]))
}

pub(crate) fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from(be32(bytes, at)) << 32 | u64::from(be32(bytes, at + 4))
}
