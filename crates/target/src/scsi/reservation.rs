//! Reservations of a logical unit: persistent ones (SPC-4 5.13) and RESERVE (SPC-2 5.5).
//!
//! `state` is what is reserved and how commands change it, without I/O; `access` says what each command needs; `commands` carries
//! PERSISTENT RESERVE IN and OUT out on a [`Device`](super::device::Device); `store` keeps what is to survive a loss of power.

mod access;
mod commands;
mod preempt;
mod register;
mod state;
mod store;

pub(super) use access::{Access, Rights};
pub(super) use state::{ItNexus, Outcome, Reservations};
pub(super) use store::{Store, Stored};
