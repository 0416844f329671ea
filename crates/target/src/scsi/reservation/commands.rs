//! PERSISTENT RESERVE IN and OUT on a unit, and what a change of its reservations does to nexuses and medium.

use super::super::device::Device;
use super::super::nexus::Nexus;
use super::super::unit::Refusal;
use super::register::Surroundings;
use super::state::{ItNexus, Outcome, Reservations};
use playhead_wire::scsi::reservation::{self as wire, FullStatus, Kind, MoveList, OutAction, OutList};
use playhead_wire::scsi::Sense;
use std::time::Duration;

/// How long PREEMPT AND ABORT waits for what the preempted have under way: a write that has reached the medium's queue cannot be
/// called back, only waited for.
const ABORT_PATIENCE: Duration = Duration::from_secs(20);

/// The service actions of PERSISTENT RESERVE IN.
mod in_action {
    pub(super) const READ_KEYS: u8 = 0;
    pub(super) const READ_RESERVATION: u8 = 1;
    pub(super) const REPORT_CAPABILITIES: u8 = 2;
    pub(super) const READ_FULL_STATUS: u8 = 3;
}

/// A PERSISTENT RESERVE OUT, read.
enum Order {
    Basic(OutAction, OutList, Option<Kind>),
    Move(MoveList),
}

impl Order {
    fn parse(service_action: u8, scope: u8, kind: u8, data_out: &[u8]) -> Result<Order, Sense> {
        let Some(action) = OutAction::from_code(service_action) else {
            return Err(Sense::in_cdb(1, Some(4)));
        };
        let kind = Kind::from_code(kind);
        match action {
            OutAction::RegisterAndMove => return MoveList::parse(data_out).map(Order::Move),
            OutAction::Register | OutAction::RegisterAndIgnore | OutAction::Clear => {}
            OutAction::Reserve
            | OutAction::Release
            | OutAction::Preempt
            | OutAction::PreemptAndAbort
            | OutAction::ReplaceLost => {
                if scope != 0 {
                    return Err(Sense::in_cdb(2, Some(7)));
                }
            }
        }
        Ok(Order::Basic(action, OutList::parse(data_out)?, kind))
    }

    fn persists(&self) -> bool {
        match self {
            Order::Basic(action, list, _) => {
                let valid = [OutAction::Register, OutAction::RegisterAndIgnore, OutAction::ReplaceLost];
                list.persist && valid.contains(action)
            }
            Order::Move(list) => list.persist,
        }
    }

    fn apply(
        &self,
        to: &mut Reservations,
        nexus: &ItNexus,
        around: &Surroundings,
    ) -> Result<Outcome, Refusal> {
        let need = |kind: &Option<Kind>| kind.ok_or(Refusal::Check(Sense::in_cdb(2, Some(3))));
        match self {
            Order::Basic(OutAction::ReplaceLost, list, kind) => to.replace_lost(nexus, list, need(kind)?),
            _ if to.check_usable().is_err() => to.check_usable().map(|()| Outcome::default()),
            Order::Basic(action, list, kind) => match action {
                OutAction::Register => to.register(nexus, list, false, around),
                OutAction::RegisterAndIgnore => to.register(nexus, list, true, around),
                OutAction::Reserve => to.reserve(nexus, list.key, need(kind)?).map(|()| Outcome::default()),
                OutAction::Release => to.release(nexus, list.key, need(kind)?),
                OutAction::Clear => to.clear(nexus, list.key),
                _ => to.preempt(nexus, list, *kind),
            },
            Order::Move(list) => to.register_and_move(nexus, list, around),
        }
    }
}

impl Device {
    /// PERSISTENT RESERVE OUT (SPC-4 6.16). GOOD means that what is to survive a loss of power is on the medium, and, of PREEMPT AND
    /// ABORT, that nothing of the preempted will change the unit any more.
    pub(in super::super) fn reserve_out(
        &self,
        nexus: &Nexus,
        service_action: u8,
        scope: u8,
        kind: u8,
        data_out: &[u8],
    ) -> Result<(), Refusal> {
        let order = Order::parse(service_action, scope, kind, data_out)?;
        if order.persists() && !self.can_persist() {
            return Err(Sense::in_parameters(if matches!(order, Order::Move(_)) { 17 } else { 20 }).into());
        }
        let around = self.surroundings();
        let own = nexus.it_nexus();
        let outcome = self.change_reservations(|next| order.apply(next, &own, &around))?;
        let aborts = matches!(order, Order::Basic(OutAction::PreemptAndAbort | OutAction::ReplaceLost, ..));
        if aborts && !self.end_tasks_of(&outcome.ended, ABORT_PATIENCE) {
            return Err(Sense::INTERNAL_FAILURE.into());
        }
        Ok(())
    }

    fn surroundings(&self) -> Surroundings {
        let ports = self.ports();
        Surroundings {
            ports: ports.iter().map(|port| (port.name.clone(), port.relative_id)).collect(),
            present: self
                .nexuses()
                .iter()
                .filter(|nexus| nexus.is_present())
                .map(|nexus| nexus.it_nexus())
                .collect(),
        }
    }

    /// PERSISTENT RESERVE IN (SPC-4 6.15).
    pub(in super::super) fn reserve_in(
        &self,
        service_action: u8,
        data_in: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        let ports = self.ports();
        let can_persist = self.can_persist();
        self.look_at_reservations(|r| {
            if service_action != in_action::REPORT_CAPABILITIES {
                r.check_usable()?;
            }
            let registrations = &r.registrations;
            match service_action {
                in_action::READ_KEYS => {
                    wire::emit_keys(r.generation, registrations.iter().map(|each| each.key), data_in)
                }
                in_action::READ_RESERVATION => {
                    let held = r.held.as_ref().map(|held| {
                        let key = held.holder.as_ref().and_then(|holder| r.key_of(holder));
                        (key.unwrap_or(0), held.kind)
                    });
                    wire::emit_reservation(r.generation, held, data_in);
                }
                in_action::REPORT_CAPABILITIES => wire::emit_capabilities(can_persist, r.persist, data_in),
                in_action::READ_FULL_STATUS => {
                    let status = registrations.iter().map(|each| {
                        let port = ports.iter().find(|port| port.name == each.nexus.target);
                        FullStatus {
                            key: each.key,
                            held: r.held.as_ref().filter(|_| r.is_holder(&each.nexus)).map(|held| held.kind),
                            port: port.map_or(0, |port| port.relative_id),
                            initiator: &each.nexus.initiator.name,
                            isid: each.nexus.initiator.isid,
                        }
                    });
                    wire::emit_full_status(r.generation, status, data_in);
                }
                _ => return Err(Sense::in_cdb(1, Some(4)).into()),
            }
            Ok(())
        })
    }
}
