//! What is reserved, for whom, and what follows from it.

use super::super::nexus::{Attention, InitiatorPort};
use super::super::unit::Refusal;
use super::access::{Access, Rights};
use playhead_wire::scsi::reservation::Kind;
use playhead_wire::scsi::Sense;
use std::sync::Arc;

/// Most registrations of one unit.
pub(super) const REGISTRATIONS_MAX: usize = 256;

/// An I_T nexus (SAM-5 4.6.2): who a registration belongs to. It outlives sessions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct ItNexus {
    pub(in super::super) initiator: InitiatorPort,
    /// iSCSI name of the target, each of which is one port.
    pub(in super::super) target: Arc<str>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Registration {
    pub(super) nexus: ItNexus,
    pub(super) key: u64,
}

/// A persistent reservation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) kind: Kind,
    /// A registrant; `None` exactly if the type makes every registrant a holder.
    pub(super) holder: Option<ItNexus>,
}

impl Held {
    pub(super) fn by(holder: &ItNexus, kind: Kind) -> Held {
        Held { kind, holder: (!kind.all_hold()).then(|| holder.clone()) }
    }
}

/// What a change brings with it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in super::super) struct Outcome {
    /// Who must be told what.
    pub(in super::super) notices: Vec<(Attention, ItNexus)>,
    /// Whose tasks are to be ended.
    pub(in super::super) ended: Vec<ItNexus>,
}

/// All reservations of one unit.
#[derive(Debug, Clone, Default)]
pub(in super::super) struct Reservations {
    /// PRgeneration (SPC-4 6.15.2); zero after every power on, whatever persists.
    pub(super) generation: u32,
    pub(super) registrations: Vec<Registration>,
    pub(super) held: Option<Held>,
    /// APTPL of the last registration that had one.
    pub(super) persist: bool,
    /// What was to persist cannot be read: nobody gets at the blocks until it is replaced (SPC-4 5.13.5.4).
    pub(super) lost: bool,
    /// The nexus that holds a RESERVE.
    pub(super) legacy: Option<ItNexus>,
}

impl Reservations {
    /// Those of a unit whose persistent ones cannot be read.
    pub(in super::super) fn lost() -> Reservations {
        Reservations { persist: true, lost: true, ..Reservations::default() }
    }

    pub(in super::super) fn is_lost(&self) -> bool {
        self.lost
    }

    /// Whether there is anything to remember.
    pub(in super::super) fn is_empty(&self) -> bool {
        self.registrations.is_empty() && !self.lost && self.legacy.is_none()
    }

    /// Whether both are the same to a medium that keeps what is to persist.
    pub(in super::super) fn same_when_kept(&self, other: &Reservations) -> bool {
        match (self.to_keep(), other.to_keep()) {
            (false, false) => true,
            (true, true) => self.registrations == other.registrations && self.held == other.held,
            _ => false,
        }
    }

    /// Whether anything is to survive a loss of power.
    pub(super) fn to_keep(&self) -> bool {
        self.persist && !self.registrations.is_empty()
    }

    /// What `nexus` may do; `None` is somebody without a SCSI nexus, who cannot register.
    pub(in super::super) fn rights(&self, nexus: Option<&ItNexus>) -> Rights {
        if self.lost {
            return Rights::up_to(Access::Status);
        }
        if self.legacy.as_ref().is_some_and(|holder| Some(holder) != nexus) {
            return Rights::up_to(Access::Always);
        }
        match &self.held {
            None => Rights::ALL,
            Some(held) if nexus.is_some_and(|nexus| self.has_access(held, nexus)) => Rights::ALL,
            Some(held) if held.kind.others_may_read() => Rights::up_to(Access::Read),
            Some(_) => Rights::up_to(Access::Status),
        }
    }

    fn has_access(&self, held: &Held, nexus: &ItNexus) -> bool {
        if held.kind.registrants_share() {
            self.key_of(nexus).is_some()
        } else {
            held.holder.as_ref() == Some(nexus)
        }
    }

    pub(super) fn position(&self, nexus: &ItNexus) -> Option<usize> {
        self.registrations.iter().position(|r| r.nexus == *nexus)
    }

    pub(super) fn key_of(&self, nexus: &ItNexus) -> Option<u64> {
        self.position(nexus).map(|at| self.registrations[at].key)
    }

    pub(super) fn is_holder(&self, nexus: &ItNexus) -> bool {
        self.held.as_ref().is_some_and(|held| match &held.holder {
            Some(holder) => holder == nexus,
            None => self.key_of(nexus).is_some(),
        })
    }

    /// A registrant must say its own key (SPC-4 5.13.6).
    pub(super) fn check_key(&self, nexus: &ItNexus, key: u64) -> Result<(), Refusal> {
        if self.key_of(nexus) == Some(key) {
            Ok(())
        } else {
            Err(Refusal::Conflict)
        }
    }

    /// Refuses PERSISTENT RESERVE while a RESERVE stands, whosever (SPC-2 5.5.1), and while the reservations are lost.
    pub(super) fn check_usable(&self) -> Result<(), Refusal> {
        if self.lost {
            return Err(Sense::RESERVATIONS_LOST.into());
        }
        if self.legacy.is_some() {
            return Err(Refusal::Conflict);
        }
        Ok(())
    }

    pub(super) fn changed(&mut self) {
        self.generation = self.generation.wrapping_add(1);
    }

    /// Every registrant but `by` is to be told.
    pub(super) fn tell_others(&self, by: &ItNexus, attention: Attention, outcome: &mut Outcome) {
        let others = self.registrations.iter().filter(|r| r.nexus != *by);
        outcome.notices.extend(others.map(|r| (attention, r.nexus.clone())));
    }

    /// The session of a nexus is over: what it registered stays.
    pub(in super::super) fn nexus_lost(&mut self, nexus: &ItNexus) {
        if self.legacy.as_ref() == Some(nexus) {
            self.legacy = None;
        }
    }

    /// The unit was reset (SAM-5 6.3.2).
    pub(in super::super) fn reset(&mut self) {
        self.legacy = None;
    }

    /// RESERVE (SPC-2 7.21), under the rules of CRH (SPC-4 5.13.3).
    pub(in super::super) fn reserve_legacy(&mut self, nexus: &ItNexus) -> Result<(), Refusal> {
        if self.lost {
            return Err(Sense::RESERVATIONS_LOST.into());
        }
        if !self.compatible(nexus)? {
            self.legacy = Some(nexus.clone());
        }
        Ok(())
    }

    /// RELEASE (SPC-2 7.18): of what somebody else holds it is no error, and does nothing.
    pub(in super::super) fn release_legacy(&mut self, nexus: &ItNexus) -> Result<(), Refusal> {
        if self.lost {
            return Err(Sense::RESERVATIONS_LOST.into());
        }
        if !self.compatible(nexus)? {
            self.nexus_lost(nexus);
        }
        Ok(())
    }

    /// Beside persistent reservations RESERVE and RELEASE do nothing, for those who have access; for others they conflict.
    fn compatible(&self, nexus: &ItNexus) -> Result<bool, Refusal> {
        match &self.held {
            Some(held) if self.has_access(held, nexus) => Ok(true),
            None if self.registrations.is_empty() => Ok(false),
            _ => Err(Refusal::Conflict),
        }
    }

    /// RESERVE (SPC-4 5.13.9).
    pub(super) fn reserve(&mut self, nexus: &ItNexus, key: u64, kind: Kind) -> Result<(), Refusal> {
        self.check_key(nexus, key)?;
        match &self.held {
            None => {
                self.held = Some(Held::by(nexus, kind));
                Ok(())
            }
            Some(held) if held.kind == kind && self.is_holder(nexus) => Ok(()),
            Some(_) => Err(Refusal::Conflict),
        }
    }

    /// RELEASE (SPC-4 5.13.11.2.2).
    pub(super) fn release(&mut self, nexus: &ItNexus, key: u64, kind: Kind) -> Result<Outcome, Refusal> {
        self.check_key(nexus, key)?;
        let mut outcome = Outcome::default();
        if self.is_holder(nexus) {
            if self.held.as_ref().is_some_and(|held| held.kind != kind) {
                return Err(Sense::INVALID_RELEASE.into());
            }
            self.release_held(nexus, &mut outcome);
        }
        Ok(outcome)
    }

    /// Ends the reservation; those who had a share in it hear of it.
    pub(super) fn release_held(&mut self, by: &ItNexus, outcome: &mut Outcome) {
        if let Some(held) = self.held.take() {
            if held.kind.registrants_share() {
                self.tell_others(by, Attention::ReservationsReleased, outcome);
            }
        }
    }

    /// CLEAR (SPC-4 5.13.11.2.8).
    pub(super) fn clear(&mut self, nexus: &ItNexus, key: u64) -> Result<Outcome, Refusal> {
        self.check_key(nexus, key)?;
        let mut outcome = Outcome::default();
        self.tell_others(nexus, Attention::ReservationsPreempted, &mut outcome);
        self.held = None;
        self.registrations.clear();
        self.changed();
        Ok(outcome)
    }

    /// Everything goes, by an administrator's word; every registrant is told.
    pub(in super::super) fn forget(&mut self) -> Outcome {
        let mut outcome = Outcome::default();
        let told = self.registrations.drain(..);
        outcome.notices.extend(told.map(|r| (Attention::ReservationsPreempted, r.nexus)));
        let generation = self.generation.wrapping_add(1);
        *self = Reservations { generation, ..Reservations::default() };
        outcome
    }
}
