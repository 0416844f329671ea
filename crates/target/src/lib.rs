//! The front ends: sessions of hosts over iSCSI and NBD, and the SCSI device server behind the former.
//!
//! The way of a write through this crate: `iscsi` or `nbd` (session) -> `scsi` (device server, iSCSI only) -> [`lun::Lun`], behind which
//! stands a [`splitter`] that makes it a journal record; or, for a LUN of another array, `iscsi` -> [`fabric`] -> that array and the record. What is behind a [`lun::Lun`] this crate's front ends do not know.
mod doors;
pub mod fabric;
pub mod iscsi;
pub mod lab;
pub mod lun;
pub mod nbd;
pub mod scsi;
pub mod splitter;
