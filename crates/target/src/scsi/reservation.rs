//! Reservations: RESERVE(6) (SPC-2 5.5) and persistent ones (SPC-4 5.13), in memory until the process ends.

use super::nexus::{Attention, InitiatorPort, Nexus};
use super::unit::{LogicalUnit, Refusal};
use playhead_wire::scsi::reservation::{self as wire, out_action, FullStatus, Kind, OutList};
use playhead_wire::scsi::{Command, Sense};

/// Most registrations of one unit.
const REGISTRATIONS_MAX: usize = 128;

/// What a command needs of a reservation (SPC-4 table 63, SBC-3 table 13).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Runs whoever holds what.
    Always,
    /// Runs under persistent reservations, not under another's RESERVE(6).
    Status,
    /// Reads blocks.
    Read,
    /// Changes blocks or the unit.
    Write,
}

impl Access {
    pub(super) fn of(command: &Command) -> Access {
        match command {
            Command::Inquiry { .. }
            | Command::ReportLuns { .. }
            | Command::RequestSense { .. }
            | Command::PreventAllow { prevent: false }
            | Command::Release6 => Access::Always,
            Command::TestUnitReady
            | Command::ReadCapacity10
            | Command::ReadCapacity16 { .. }
            | Command::ReportSupportedOpcodes { .. }
            | Command::ReportSupportedTmfs { .. }
            | Command::StartStopUnit { start: true, .. }
            | Command::PersistentReserveIn { .. }
            | Command::PersistentReserveOut { .. }
            // RESERVE(6) finds its conflicts itself.
            | Command::Reserve6 => Access::Status,
            Command::Read(_)
            | Command::Verify { .. }
            | Command::PreFetch { .. }
            | Command::GetLbaStatus { .. } => Access::Read,
            _ => Access::Write,
        }
    }
}

#[derive(Debug, Clone)]
struct Registration {
    port: InitiatorPort,
    key: u64,
}

/// A persistent reservation. The holder is a registrant; when all hold, any.
#[derive(Debug, Clone)]
struct Held {
    holder: InitiatorPort,
    kind: Kind,
}

/// All reservations of one unit.
#[derive(Debug, Default)]
pub(super) struct Reservations {
    generation: u32,
    registrations: Vec<Registration>,
    held: Option<Held>,
    /// The nexus that holds a RESERVE(6).
    legacy: Option<u64>,
}

/// Who must be told what after a change.
type Notice = (Attention, InitiatorPort);

impl Reservations {
    /// Whether anyone is restricted at all.
    pub(super) fn restrict(&self) -> bool {
        self.legacy.is_some() || self.held.is_some()
    }

    pub(super) fn permits(&self, nexus: u64, port: &InitiatorPort, access: Access) -> bool {
        if access == Access::Always {
            return true;
        }
        if self.legacy.is_some_and(|holder| holder != nexus) {
            return false;
        }
        let Some(held) = &self.held else {
            return true;
        };
        match access {
            Access::Always | Access::Status => true,
            Access::Read if held.kind.others_may_read() => true,
            _ => self.has_access(held, port),
        }
    }

    fn has_access(&self, held: &Held, port: &InitiatorPort) -> bool {
        if held.kind.registrants_share() {
            self.key_of(port).is_some()
        } else {
            held.holder == *port
        }
    }

    fn key_of(&self, port: &InitiatorPort) -> Option<u64> {
        self.registrations.iter().find(|r| r.port == *port).map(|r| r.key)
    }

    fn is_holder(&self, port: &InitiatorPort) -> bool {
        self.held.as_ref().is_some_and(|held| {
            if held.kind.all_hold() {
                self.key_of(port).is_some()
            } else {
                held.holder == *port
            }
        })
    }

    pub(super) fn nexus_lost(&mut self, nexus: u64) {
        if self.legacy == Some(nexus) {
            self.legacy = None;
        }
    }

    pub(super) fn reset(&mut self) {
        self.legacy = None;
    }

    pub(super) fn release_6(&mut self, nexus: u64) {
        self.nexus_lost(nexus);
    }

    fn reserve_6(&mut self, nexus: &Nexus) -> Result<(), Refusal> {
        // Compatible handling (CRH, SPC-4 5.13.3): those a persistent reservation gives access already have it.
        if let Some(held) = &self.held {
            return if self.has_access(held, &nexus.port) { Ok(()) } else { Err(Refusal::Conflict) };
        }
        if !self.registrations.is_empty() {
            return Err(Refusal::Conflict);
        }
        self.legacy = Some(nexus.id);
        Ok(())
    }

    /// Ends the reservation; registrants of the shared kinds hear of it (SPC-4 5.13.11.2.2).
    fn release_held(&mut self, by: &InitiatorPort, notices: &mut Vec<Notice>) {
        if let Some(held) = self.held.take() {
            if held.kind.registrants_share() {
                self.tell_others(by, Attention::ReservationsReleased, notices);
            }
        }
    }

    fn tell_others(&self, by: &InitiatorPort, attention: Attention, notices: &mut Vec<Notice>) {
        let others = self.registrations.iter().filter(|r| r.port != *by);
        notices.extend(others.map(|r| (attention, r.port.clone())));
    }

    fn register(
        &mut self,
        port: &InitiatorPort,
        list: &OutList,
        ignore_key: bool,
        notices: &mut Vec<Notice>,
    ) -> Result<(), Refusal> {
        let at = self.registrations.iter().position(|r| r.port == *port);
        match at {
            Some(i) => {
                if !ignore_key && self.registrations[i].key != list.key {
                    return Err(Refusal::Conflict);
                }
                if list.action_key != 0 {
                    self.registrations[i].key = list.action_key;
                } else {
                    self.unregister(i, notices);
                }
            }
            None => {
                if !ignore_key && list.key != 0 {
                    return Err(Refusal::Conflict);
                }
                if list.action_key != 0 {
                    if self.registrations.len() == REGISTRATIONS_MAX {
                        return Err(Sense::INSUFFICIENT_REGISTRATION_RESOURCES.into());
                    }
                    self.registrations.push(Registration { port: port.clone(), key: list.action_key });
                }
            }
        }
        self.generation = self.generation.wrapping_add(1);
        Ok(())
    }

    /// Takes a registration away, and with a holder's the reservation (SPC-4 5.13.11.2.3).
    fn unregister(&mut self, at: usize, notices: &mut Vec<Notice>) {
        let gone = self.registrations.remove(at).port;
        let Some(held) = &mut self.held else {
            return;
        };
        if held.kind.all_hold() {
            match self.registrations.first() {
                Some(heir) => held.holder = heir.port.clone(),
                None => self.held = None,
            }
        } else if held.holder == gone {
            self.release_held(&gone, notices);
        }
    }

    fn reserve(&mut self, port: &InitiatorPort, key: u64, kind: Kind) -> Result<(), Refusal> {
        if self.key_of(port) != Some(key) {
            return Err(Refusal::Conflict);
        }
        match &self.held {
            None => {
                self.held = Some(Held { holder: port.clone(), kind });
                Ok(())
            }
            Some(held) if held.kind == kind && self.is_holder(port) => Ok(()),
            Some(_) => Err(Refusal::Conflict),
        }
    }

    fn release(
        &mut self,
        port: &InitiatorPort,
        key: u64,
        kind: Kind,
        notices: &mut Vec<Notice>,
    ) -> Result<(), Refusal> {
        if self.key_of(port) != Some(key) {
            return Err(Refusal::Conflict);
        }
        if !self.is_holder(port) {
            return Ok(());
        }
        if self.held.as_ref().is_some_and(|held| held.kind != kind) {
            return Err(Sense::INVALID_RELEASE.into());
        }
        self.release_held(port, notices);
        Ok(())
    }

    fn clear(&mut self, port: &InitiatorPort, key: u64, notices: &mut Vec<Notice>) -> Result<(), Refusal> {
        if self.key_of(port) != Some(key) {
            return Err(Refusal::Conflict);
        }
        self.tell_others(port, Attention::ReservationsPreempted, notices);
        self.held = None;
        self.registrations.clear();
        self.generation = self.generation.wrapping_add(1);
        Ok(())
    }

    /// PREEMPT (SPC-4 5.13.11.2.6). Returns the ports whose registrations went.
    fn preempt(
        &mut self,
        port: &InitiatorPort,
        list: &OutList,
        kind: Option<Kind>,
        notices: &mut Vec<Notice>,
    ) -> Result<Vec<InitiatorPort>, Refusal> {
        if self.key_of(port) != Some(list.key) {
            return Err(Refusal::Conflict);
        }
        let victim = list.action_key;
        let all_hold = self.held.as_ref().is_some_and(|held| held.kind.all_hold());
        if victim == 0 && !all_hold {
            return Err(Sense::in_parameters(8).into());
        }
        let takes_over = match &self.held {
            Some(held) if held.kind.all_hold() => victim == 0,
            Some(held) => self.key_of(&held.holder) == Some(victim),
            None => false,
        };
        if victim != 0 && !self.registrations.iter().any(|r| r.key == victim) {
            return Err(Refusal::Conflict);
        }
        let new_kind = match (takes_over, kind) {
            (true, None) => return Err(Sense::in_cdb(2, Some(3)).into()),
            (true, Some(kind)) => Some(kind),
            (false, _) => None,
        };
        let goes = |r: &Registration| r.port != *port && (victim == 0 || r.key == victim);
        let gone: Vec<InitiatorPort> =
            self.registrations.iter().filter(|r| goes(r)).map(|r| r.port.clone()).collect();
        self.registrations.retain(|r| !goes(r));
        notices.extend(gone.iter().map(|p| (Attention::RegistrationsPreempted, p.clone())));
        if let Some(kind) = new_kind {
            let changed = self.held.as_ref().is_some_and(|held| held.kind != kind);
            if changed {
                self.tell_others(port, Attention::ReservationsReleased, notices);
            }
            self.held = Some(Held { holder: port.clone(), kind });
        } else if all_hold {
            if let (Some(held), Some(heir)) = (&mut self.held, self.registrations.first()) {
                held.holder = heir.port.clone();
            }
        }
        self.generation = self.generation.wrapping_add(1);
        Ok(gone)
    }
}

impl LogicalUnit {
    pub(super) fn reserve_6(&self, nexus: &Nexus) -> Result<(), Refusal> {
        self.with_reservations(|r| r.reserve_6(nexus))
    }

    /// PERSISTENT RESERVE IN (SPC-4 6.15).
    pub(super) fn reserve_in(&self, service_action: u8, data_in: &mut Vec<u8>) -> Result<(), Refusal> {
        self.with_reservations(|r| {
            match service_action {
                0 => wire::emit_keys(r.generation, r.registrations.iter().map(|each| each.key), data_in),
                1 => {
                    let held = r.held.as_ref().map(|held| {
                        let key = if held.kind.all_hold() { 0 } else { r.key_of(&held.holder).unwrap_or(0) };
                        (key, held.kind)
                    });
                    wire::emit_reservation(r.generation, held, data_in);
                }
                2 => wire::emit_capabilities(data_in),
                3 => {
                    let status = r.registrations.iter().map(|each| FullStatus {
                        key: each.key,
                        held: r.held.as_ref().filter(|_| r.is_holder(&each.port)).map(|held| held.kind),
                        port: 1,
                        initiator: &each.port.name,
                        isid: each.port.isid,
                    });
                    wire::emit_full_status(r.generation, status, data_in);
                }
                _ => return Err(Sense::in_cdb(1, Some(4)).into()),
            }
            Ok(())
        })
    }

    /// PERSISTENT RESERVE OUT (SPC-4 6.16).
    pub(super) fn reserve_out(
        &self,
        nexus: &Nexus,
        service_action: u8,
        scope: u8,
        kind: u8,
        data_out: &[u8],
    ) -> Result<(), Refusal> {
        if service_action > out_action::REGISTER_AND_IGNORE {
            return Err(Sense::in_cdb(1, Some(4)).into());
        }
        let list = OutList::parse(data_out)?;
        let kind = Kind::from_code(kind);
        let names_reservation = matches!(
            service_action,
            out_action::RESERVE | out_action::RELEASE | out_action::PREEMPT | out_action::PREEMPT_AND_ABORT
        );
        if names_reservation && scope != 0 {
            return Err(Sense::in_cdb(2, Some(7)).into());
        }
        let port = &nexus.port;
        let mut notices = Vec::new();
        let aborted = self.with_reservations(|r| {
            let need_kind = kind.ok_or(Refusal::Check(Sense::in_cdb(2, Some(3))));
            match service_action {
                out_action::REGISTER => r.register(port, &list, false, &mut notices)?,
                out_action::REGISTER_AND_IGNORE => r.register(port, &list, true, &mut notices)?,
                out_action::RESERVE => r.reserve(port, list.key, need_kind?)?,
                out_action::RELEASE => r.release(port, list.key, need_kind?, &mut notices)?,
                out_action::CLEAR => r.clear(port, list.key, &mut notices)?,
                _ => return r.preempt(port, &list, kind, &mut notices),
            }
            Ok(Vec::new())
        })?;
        if service_action == out_action::PREEMPT_AND_ABORT {
            for gone in &aborted {
                self.abort_tasks_of(gone);
            }
        }
        for (attention, told) in &notices {
            self.attend(*attention, |n| n.port == *told && n.id != nexus.id);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(last: u8) -> InitiatorPort {
        InitiatorPort { name: "iqn.host".into(), isid: [0, 0, 0, 0, 0, last] }
    }

    fn registered(keys: &[(u8, u64)]) -> Reservations {
        let mut all = Reservations::default();
        for (last, key) in keys {
            let list = OutList { key: 0, action_key: *key };
            all.register(&port(*last), &list, false, &mut Vec::new()).unwrap();
        }
        all
    }

    #[test]
    fn a_registrants_only_reservation_lets_registrants_write_and_others_read_or_not() {
        for (kind, others_read) in
            [(Kind::WriteExclusiveRegistrants, true), (Kind::ExclusiveAccessRegistrants, false)]
        {
            let mut all = registered(&[(1, 11), (2, 22)]);
            all.reserve(&port(1), 11, kind).unwrap();
            assert!(all.permits(0, &port(2), Access::Write));
            assert!(!all.permits(0, &port(3), Access::Write));
            assert_eq!(all.permits(0, &port(3), Access::Read), others_read);
            assert!(all.permits(0, &port(3), Access::Status));
        }
    }

    #[test]
    fn preempting_the_holder_takes_the_reservation_over_and_tells_the_loser() {
        let mut all = registered(&[(1, 11), (2, 22), (3, 33)]);
        all.reserve(&port(1), 11, Kind::WriteExclusive).unwrap();
        let mut notices = Vec::new();
        let list = OutList { key: 22, action_key: 11 };
        let gone = all.preempt(&port(2), &list, Some(Kind::ExclusiveAccess), &mut notices).unwrap();
        assert_eq!(gone, [port(1)]);
        assert!(notices.contains(&(Attention::RegistrationsPreempted, port(1))));
        assert!(notices.contains(&(Attention::ReservationsReleased, port(3))));
        assert!(all.is_holder(&port(2)) && !all.is_holder(&port(3)));
        assert!(!all.permits(0, &port(1), Access::Read));
    }

    #[test]
    fn a_holder_who_leaves_releases_unless_all_hold() {
        for (kind, stays) in [(Kind::WriteExclusiveRegistrants, false), (Kind::WriteExclusiveAll, true)] {
            let mut all = registered(&[(1, 11), (2, 22)]);
            all.reserve(&port(1), 11, kind).unwrap();
            let mut notices = Vec::new();
            let leave = OutList { key: 11, action_key: 0 };
            all.register(&port(1), &leave, false, &mut notices).unwrap();
            assert_eq!(all.held.is_some(), stays, "{kind:?}");
            assert_eq!(notices.len(), usize::from(!stays));
        }
    }

    #[test]
    fn a_wrong_key_is_a_conflict_and_changes_nothing() {
        let mut all = registered(&[(1, 11)]);
        let generation = all.generation;
        let wrong = OutList { key: 12, action_key: 13 };
        assert_eq!(all.register(&port(1), &wrong, false, &mut Vec::new()), Err(Refusal::Conflict));
        assert_eq!(all.reserve(&port(1), 12, Kind::WriteExclusive), Err(Refusal::Conflict));
        assert_eq!(all.clear(&port(1), 12, &mut Vec::new()), Err(Refusal::Conflict));
        assert_eq!((all.generation, all.key_of(&port(1))), (generation, Some(11)));
    }

    #[test]
    fn reserve_6_shuts_others_out_until_its_nexus_is_lost() {
        let mut all = Reservations { legacy: Some(7), ..Reservations::default() };
        assert!(all.permits(7, &port(1), Access::Write));
        assert!(!all.permits(8, &port(2), Access::Status));
        assert!(all.permits(8, &port(2), Access::Always));
        all.nexus_lost(7);
        assert!(!all.restrict());
    }
}
