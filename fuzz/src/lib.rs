//! What the fuzz targets run, as ordinary functions of bytes. A function returns when its input was handled as it should be, and panics
//! when it was not.

// These are tests: what cannot be otherwise is asserted.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod cdb;
pub mod initiator;
pub mod login;
pub mod nbd;
pub mod pdu;
mod peer;
#[allow(dead_code)]
#[path = "../../crates/target/tests/iscsi/ramdisk.rs"]
mod ramdisk;
pub mod session;
