//! The split of a volume whose production lives elsewhere, over a real journal: whatever happens, production and replica are equal in
//! the end, and the journal has production's order.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod crowded;
mod disk;
mod full;
#[path = "../../../journal/tests/medium/mod.rs"]
mod medium;
mod order;
mod outage;
mod power;
mod read_back;
mod room;
mod stage;
mod storm;
