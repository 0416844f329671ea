//! The front ends: sessions of hosts over iSCSI and NBD, block devices of this host (ublk), and the SCSI device server behind the first.
//!
//! The way of a write through this crate: `iscsi`, `nbd` (session) or `ublk` (queue) -> `scsi` (device server, iSCSI only) -> [`lun::Lun`], behind which
//! stands a [`splitter`] that makes it a journal record; or, for a LUN of another array, `iscsi` -> [`fabric`] -> that array and the record. What is behind a [`lun::Lun`] this crate's front ends do not know.
mod doors;
pub mod fabric;
pub mod iscsi;
pub mod lab;
pub mod lun;
mod mailbox;
pub mod nbd;
pub mod scsi;
pub mod splitter;
mod strangers;
pub mod ublk;
