//! Registering: for oneself, for other initiator ports, on other target ports; moving and replacing.

use super::super::nexus::InitiatorPort;
use super::super::unit::Refusal;
use super::state::{Held, ItNexus, Outcome, Registration, Reservations, REGISTRATIONS_MAX};
use playhead_wire::scsi::reservation::{Kind, MoveList, OutList, TransportId};
use playhead_wire::scsi::Sense;
use std::sync::Arc;

/// What a registration may refer to beyond its own nexus.
#[derive(Debug)]
pub(super) struct Surroundings {
    /// The targets that present the unit, with their relative port ids.
    pub(super) ports: Vec<(Arc<str>, u16)>,
    /// The initiator ports that have a session with the unit.
    pub(super) present: Vec<ItNexus>,
}

impl Surroundings {
    /// The initiator ports that `id` means on the target `target`.
    fn ports_of(&self, id: &TransportId, target: &Arc<str>) -> Vec<ItNexus> {
        let name: Arc<str> = id.name.as_str().into();
        match id.isid {
            Some(isid) => {
                vec![ItNexus { initiator: InitiatorPort { name, isid }, target: Arc::clone(target) }]
            }
            None => {
                let known = self.present.iter();
                known.filter(|n| n.target == *target && n.initiator.name == name).cloned().collect()
            }
        }
    }

    /// Every nexus that a list speaks of beside the sender's own.
    fn others(&self, nexus: &ItNexus, list: &OutList) -> Vec<ItNexus> {
        let all = self.ports.iter().map(|(name, _)| name);
        let targets: Vec<&Arc<str>> = if list.all_target_ports { all.collect() } else { vec![&nexus.target] };
        let mut others: Vec<ItNexus> = Vec::new();
        for target in targets {
            let own = ItNexus { initiator: nexus.initiator.clone(), target: Arc::clone(target) };
            let named = list.initiators.iter().flatten().flat_map(|id| self.ports_of(id, target));
            for other in std::iter::once(own).chain(named) {
                if other != *nexus && !others.contains(&other) {
                    others.push(other);
                }
            }
        }
        others
    }
}

impl Reservations {
    /// REGISTER, and REGISTER AND IGNORE EXISTING KEY (SPC-4 5.13.7).
    pub(super) fn register(
        &mut self,
        nexus: &ItNexus,
        list: &OutList,
        ignore_key: bool,
        around: &Surroundings,
    ) -> Result<Outcome, Refusal> {
        if list.initiators.is_some() && ignore_key {
            return Err(Sense::in_parameters(20).into());
        }
        let own_key = self.key_of(nexus);
        if !ignore_key && own_key.unwrap_or(0) != list.key {
            return Err(Refusal::Conflict);
        }
        if list.initiators.is_some() && (own_key.is_some() || list.action_key == 0) {
            return Err(Sense::INVALID_FIELD_IN_CDB.into());
        }
        let mut outcome = Outcome::default();
        let others = around.others(nexus, list);
        if list.action_key == 0 {
            if own_key.is_none() {
                return Ok(outcome);
            }
            for gone in others.iter().chain([nexus]) {
                self.unregister(gone, nexus, &mut outcome);
            }
        } else {
            self.set_key(nexus, list.action_key)?;
            for other in &others {
                // Whom a TransportID names keeps the key it has; an own registration on another port follows.
                if other.initiator == nexus.initiator || self.key_of(other).is_none() {
                    self.set_key(other, list.action_key)?;
                }
            }
        }
        self.persist = list.persist;
        self.changed();
        Ok(outcome)
    }

    /// Registers `nexus`, or gives it another key. On errors the caller drops all changes.
    fn set_key(&mut self, nexus: &ItNexus, key: u64) -> Result<(), Refusal> {
        match self.position(nexus) {
            Some(at) => self.registrations[at].key = key,
            None if self.registrations.len() >= REGISTRATIONS_MAX => {
                return Err(Sense::INSUFFICIENT_REGISTRATION_RESOURCES.into());
            }
            None => self.registrations.push(Registration { nexus: nexus.clone(), key }),
        }
        Ok(())
    }

    /// Takes a registration away, and with a holder's the reservation (SPC-4 5.13.11.2.3).
    pub(super) fn unregister(&mut self, gone: &ItNexus, by: &ItNexus, outcome: &mut Outcome) {
        let Some(at) = self.position(gone) else {
            return;
        };
        let held_alone = self.held.as_ref().is_some_and(|held| held.holder.as_ref() == Some(gone));
        self.registrations.remove(at);
        if held_alone {
            self.release_held(by, outcome);
        }
        if self.registrations.is_empty() {
            self.held = None;
        }
    }

    /// REGISTER AND MOVE (SPC-4 5.13.8).
    pub(super) fn register_and_move(
        &mut self,
        nexus: &ItNexus,
        list: &MoveList,
        around: &Surroundings,
    ) -> Result<Outcome, Refusal> {
        self.check_key(nexus, list.key)?;
        let Some(held) = &self.held else {
            return Err(Sense::INVALID_FIELD_IN_CDB.into());
        };
        let kind = held.kind;
        if kind.all_hold() || !self.is_holder(nexus) {
            return Err(Refusal::Conflict);
        }
        if list.action_key == 0 {
            return Err(Sense::in_parameters(8).into());
        }
        let Some((target, _)) = around.ports.iter().find(|(_, id)| *id == list.port) else {
            return Err(Sense::in_parameters(18).into());
        };
        // A name alone would not say which port holds.
        let Some(isid) = list.initiator.isid else {
            return Err(Sense::in_parameters(24).into());
        };
        let initiator = InitiatorPort { name: list.initiator.name.as_str().into(), isid };
        if initiator == nexus.initiator {
            return Err(Sense::in_parameters(24).into());
        }
        let heir = ItNexus { initiator, target: Arc::clone(target) };
        self.set_key(&heir, list.action_key)?;
        self.held = Some(Held::by(&heir, kind));
        if list.unregister {
            self.registrations.retain(|r| r.nexus != *nexus);
        }
        self.persist = list.persist;
        self.changed();
        Ok(Outcome::default())
    }

    /// REPLACE LOST RESERVATION (SPC-4 5.13.11.3): begins anew, with the sender as the one registrant and holder.
    pub(super) fn replace_lost(
        &mut self,
        nexus: &ItNexus,
        list: &OutList,
        kind: Kind,
    ) -> Result<Outcome, Refusal> {
        if !self.lost {
            return Err(Sense::in_cdb(1, Some(4)).into());
        }
        if list.key != 0 {
            return Err(Sense::in_parameters(0).into());
        }
        if list.action_key == 0 {
            return Err(Sense::in_parameters(8).into());
        }
        if list.initiators.is_some() || list.all_target_ports {
            return Err(Sense::in_parameters(20).into());
        }
        let generation = self.generation;
        *self = Reservations { generation, persist: list.persist, ..Reservations::default() };
        self.set_key(nexus, list.action_key)?;
        self.held = Some(Held::by(nexus, kind));
        self.changed();
        Ok(Outcome::default())
    }
}
