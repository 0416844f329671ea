//! Bytes to meaning, and back: iSCSI PDUs, SCSI CDBs and parameter data, NBD messages.
//!
//! No I/O, no clock, no state beyond the message at hand. Everything here reads bytes that came from outside,
//! so every parser is total: it returns a value or an error, whatever it is given.
pub mod iscsi;
pub mod nbd;
pub mod scsi;
