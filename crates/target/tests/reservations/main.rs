//! Persistent reservations at the device server: against a model of the standard, against a medium that loses power, and command by
//! command. What sessions make of them is in `tests/iscsi`.

// Test helpers may panic: the lint's own exception covers only the test functions themselves.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod abort;
mod access;
mod model;
mod power;
#[path = "../iscsi/ramdisk.rs"]
#[allow(dead_code)]
mod ramdisk;
mod register;
mod stage;
mod table;

#[path = "../../../journal/tests/medium/mod.rs"]
mod medium;
