//! Asymmetric access (SPC-4 5.15): the one target port group, and what a unit answers in each of its states.

use super::device::Device;
use super::nexus::{Attention, Nexus};
use super::report::PORTAL_GROUP;
use playhead_wire::scsi::target_ports::{emit_groups, parse_set, AccessState, Group};
use playhead_wire::scsi::{Command, Sense};
use std::sync::atomic::{AtomicU8, Ordering};

/// The group's state, for one LUN. In memory: a power on brings the best one back.
#[derive(Debug, Default)]
pub(super) struct Access(AtomicU8);

/// Beside the state: it was set by SET TARGET PORT GROUPS.
const SET: u8 = 0x10;

impl Access {
    /// One load, for the hot path.
    pub(super) fn is_active(&self) -> bool {
        self.0.load(Ordering::Relaxed) & 0x0f <= AccessState::NonOptimized as u8
    }

    fn state(&self) -> (AccessState, bool) {
        let bits = self.0.load(Ordering::Relaxed);
        (AccessState::from_code(bits & 0x0f).unwrap_or_default(), bits & SET != 0)
    }

    /// Why `command` cannot run in this state, if so.
    pub(super) fn refusal(&self, command: &Command) -> Option<Sense> {
        let in_unavailable = matches!(
            command,
            Command::Inquiry { .. }
                | Command::ReportLuns { .. }
                | Command::RequestSense { .. }
                | Command::ReportTargetPortGroups { .. }
                | Command::SetTargetPortGroups { .. }
        );
        let in_standby = in_unavailable
            || matches!(
                command,
                Command::LogSense(_)
                    | Command::LogSelect { .. }
                    | Command::ModeSense(_)
                    | Command::ModeSelect { .. }
                    | Command::PersistentReserveIn { .. }
                    | Command::PersistentReserveOut { .. }
                    | Command::ReportSupportedOpcodes { .. }
                    | Command::ReportSupportedTmfs { .. }
            );
        self.sense()
            .filter(|sense| !(if *sense == Sense::PORT_IN_STANDBY { in_standby } else { in_unavailable }))
    }

    /// What the state is to those who ask with REQUEST SENSE.
    pub(super) fn sense(&self) -> Option<Sense> {
        match self.state().0 {
            AccessState::Optimized | AccessState::NonOptimized => None,
            AccessState::Standby => Some(Sense::PORT_IN_STANDBY),
            AccessState::Unavailable => Some(Sense::PORT_UNAVAILABLE),
        }
    }
}

impl Device {
    /// REPORT TARGET PORT GROUPS (SPC-4 6.36): every target that presents the LUN is a port of the group.
    pub(super) fn report_groups(&self, extended: bool, data_in: &mut Vec<u8>) {
        let (state, set_by_command) = self.access.state();
        let ports: Vec<u16> = self.ports().iter().map(|port| port.relative_id).collect();
        emit_groups(&Group { id: PORTAL_GROUP, state, set_by_command, ports: &ports }, extended, data_in);
    }

    /// SET TARGET PORT GROUPS (SPC-4 6.45).
    pub(super) fn set_groups(&self, by: &Nexus, data_out: &[u8]) -> Result<(), Sense> {
        if let Some(state) = parse_set(data_out, PORTAL_GROUP)? {
            let before = self.access.0.swap(SET | state as u8, Ordering::Relaxed);
            if before & 0x0f != state as u8 {
                self.attend(Attention::AccessStateChanged, |nexus| nexus.id != by.id);
            }
        }
        Ok(())
    }
}
