//! Which other units a command may name: those that its initiator is shown, and no others (CVE-2020-28374 was looking further).

use super::copy::Tokens;
use super::nexus::Nexus;
use super::unit::LogicalUnit;
use std::sync::Arc;

/// A unit that a command named, as the naming initiator has it.
#[derive(Debug, Clone)]
pub struct Reached {
    /// The unit.
    pub unit: Arc<LogicalUnit>,
    /// The initiator's nexus with it, or one made for the occasion when it has no session there. What a command does to the
    /// unit is admitted for this nexus: policy, reservations, write protection.
    pub nexus: Arc<Nexus>,
}

/// Finds units for commands that name others than their own.
pub trait Reach {
    /// The unit with this NAA designator (VPD page 83h), if the initiator is shown it.
    fn by_naa(&self, naa: &[u8; 16]) -> Option<Reached>;

    /// The tokens for data that are known where the initiator is, if there are any.
    fn tokens(&self) -> Option<Arc<Tokens>> {
        None
    }
}

/// Reaches nothing.
#[derive(Debug, Clone, Copy)]
pub struct Nowhere;

impl Reach for Nowhere {
    fn by_naa(&self, _: &[u8; 16]) -> Option<Reached> {
        None
    }
}
