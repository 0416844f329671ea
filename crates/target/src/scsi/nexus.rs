//! I_T_L nexuses: what one initiator port and one logical unit remember of each other (SAM-5 4.5).

use super::copy::Held;
use super::device::TargetPort;
use super::policy::{Counters, Offload, Offloads};
use super::reservation::{Access, ItNexus, Rights};
use playhead_wire::scsi::Sense;
use std::sync::atomic::{fence, AtomicBool, AtomicU32, AtomicU64, AtomicU8, Ordering};
use std::sync::Arc;

/// Who an initiator port is: its name and the ISID of its session (RFC 7143 4.4.3). Survives the session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InitiatorPort {
    /// iSCSI name.
    pub name: Arc<str>,
    /// The initiator's part of the session id.
    pub isid: [u8; 6],
}

/// Unit attention conditions (SAM-5 5.14), highest precedence first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Attention {
    /// First contact.
    PowerOn = 1 << 0,
    /// The unit was reset.
    Reset = 1 << 1,
    /// Another initiator cleared this one's tasks.
    CommandsCleared = 1 << 2,
    /// This one's registration was preempted.
    RegistrationsPreempted = 1 << 3,
    /// The reservation was preempted.
    ReservationsPreempted = 1 << 4,
    /// The reservation was released.
    ReservationsReleased = 1 << 5,
    /// The target's list of logical units changed.
    ReportedLunsChanged = 1 << 6,
    /// The unit's size changed.
    CapacityChanged = 1 << 7,
    /// Mode parameters changed.
    ModeParametersChanged = 1 << 8,
    /// What INQUIRY, its pages or REPORT SUPPORTED OPERATION CODES say changed.
    InquiryChanged = 1 << 9,
    /// The blocks may be others than before.
    MediumMayHaveChanged = 1 << 10,
    /// Space for writes gets short.
    SoftThreshold = 1 << 11,
    /// The target port group is in another state.
    AccessStateChanged = 1 << 12,
    /// Log parameters changed.
    LogParametersChanged = 1 << 13,
}

const IN_ORDER: [(Attention, Sense); 14] = [
    (Attention::PowerOn, Sense::POWER_ON),
    (Attention::Reset, Sense::BUS_DEVICE_RESET),
    (Attention::MediumMayHaveChanged, Sense::MEDIUM_MAY_HAVE_CHANGED),
    (Attention::CommandsCleared, Sense::COMMANDS_CLEARED),
    (Attention::RegistrationsPreempted, Sense::REGISTRATIONS_PREEMPTED),
    (Attention::ReservationsPreempted, Sense::RESERVATIONS_PREEMPTED),
    (Attention::ReservationsReleased, Sense::RESERVATIONS_RELEASED),
    (Attention::AccessStateChanged, Sense::ACCESS_STATE_CHANGED),
    (Attention::LogParametersChanged, Sense::LOG_PARAMETERS_CHANGED),
    (Attention::ReportedLunsChanged, Sense::REPORTED_LUNS_CHANGED),
    (Attention::CapacityChanged, Sense::CAPACITY_CHANGED),
    (Attention::ModeParametersChanged, Sense::MODE_PARAMETERS_CHANGED),
    (Attention::InquiryChanged, Sense::INQUIRY_CHANGED),
    (Attention::SoftThreshold, Sense::SOFT_THRESHOLD_REACHED),
];

/// One initiator's view of one logical unit.
#[derive(Debug)]
pub struct Nexus {
    /// Unique while the process lives.
    pub(super) id: u64,
    /// The initiator's end.
    pub(super) port: InitiatorPort,
    /// The target's end.
    pub(super) target: Arc<TargetPort>,
    attentions: AtomicU32,
    /// Counts the times this nexus' tasks were ended by someone else.
    pub(super) epoch: AtomicU32,
    /// Commands that are changing the unit at this moment.
    changing: AtomicU32,
    /// [`Rights`] under the reservations there are.
    rights: AtomicU8,
    /// [`Offloads`] in force.
    offloads: AtomicU8,
    /// This initiator may not change the unit, whatever others may.
    read_only: AtomicBool,
    /// Set for good when the session ends or the unit is taken from it. Commands under way hold the nexus, and whoever ends
    /// tasks still finds them by it.
    gone: AtomicBool,
    /// No session is behind it.
    visiting: AtomicBool,
    counters: Arc<Counters>,
    /// Copies it asked for.
    pub(super) copies: Held,
}

impl Nexus {
    /// A new nexus; its first command will hear of the power on.
    pub(super) fn new(
        port: InitiatorPort,
        target: Arc<TargetPort>,
        offloads: Offloads,
        counters: Arc<Counters>,
    ) -> Nexus {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Nexus {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            port,
            target,
            attentions: AtomicU32::new(Attention::PowerOn as u32),
            epoch: AtomicU32::new(0),
            changing: AtomicU32::new(0),
            rights: AtomicU8::new(Rights::ALL.bits()),
            offloads: AtomicU8::new(offloads.bits()),
            read_only: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            visiting: AtomicBool::new(false),
            counters,
            copies: Held::default(),
        }
    }

    /// The initiator has lost the unit: what it began there may end, and begin nothing more.
    pub fn set_gone(&self) {
        self.gone.store(true, Ordering::Release);
    }

    /// Whether the session has ended, or the unit was taken from it.
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// Made for one command, beside whatever session there is.
    pub(super) fn set_visiting(&self) {
        self.visiting.store(true, Ordering::Release);
    }

    pub(super) fn is_visiting(&self) -> bool {
        self.visiting.load(Ordering::Acquire)
    }

    /// Whether a session is behind it.
    pub(super) fn is_present(&self) -> bool {
        !self.is_gone() && !self.is_visiting()
    }

    pub(super) fn target_name(&self) -> &str {
        &self.target.name
    }

    /// The initiator's end.
    pub fn port(&self) -> &InitiatorPort {
        &self.port
    }

    /// Whose registrations this nexus uses.
    pub(super) fn it_nexus(&self) -> ItNexus {
        ItNexus { initiator: self.port.clone(), target: Arc::clone(&self.target.name) }
    }

    pub(super) fn set_rights(&self, rights: Rights) {
        self.rights.store(rights.bits(), Ordering::Release);
    }

    /// Whether the reservations let a command of this kind pass: one load, for the hot path.
    pub(super) fn permits(&self, access: Access) -> bool {
        Rights::from_bits(self.rights.load(Ordering::Acquire)).permit(access)
    }

    pub(super) fn is_changing(&self) -> bool {
        self.changing.load(Ordering::Acquire) > 0
    }

    /// The offloads this initiator gets of this unit.
    pub fn offloads(&self) -> Offloads {
        Offloads::from_bits(self.offloads.load(Ordering::Relaxed))
    }

    /// Puts another set of offloads in force; the initiator is told to look again if it differs: at READ CAPACITY too, which says
    /// whether blocks can be unmapped.
    pub(super) fn set_offloads(&self, offloads: Offloads) {
        let before = Offloads::from_bits(self.offloads.swap(offloads.bits(), Ordering::Relaxed));
        if before != offloads {
            self.attend(Attention::InquiryChanged);
        }
        if before.contains(Offload::Unmap) != offloads.contains(Offload::Unmap) {
            self.attend(Attention::CapacityChanged);
        }
    }

    /// Whether this initiator may only read.
    pub fn read_only(&self) -> bool {
        self.read_only.load(Ordering::Relaxed)
    }

    /// Lets this initiator only read, or write too; it is told if that is new.
    pub fn set_read_only(&self, read_only: bool) {
        if self.read_only.swap(read_only, Ordering::Relaxed) != read_only {
            self.attend(Attention::ModeParametersChanged);
        }
    }

    /// Counts a command that was served, and the bytes it kept off the wire.
    pub fn served(&self, offload: Offload, saved_bytes: u64) {
        self.counters.served(offload, saved_bytes);
    }

    /// Counts a command that was refused by policy.
    pub(crate) fn rejected(&self, offload: Offload) {
        self.counters.rejected(offload);
    }

    /// Establishes a unit attention condition.
    pub fn attend(&self, attention: Attention) {
        self.attentions.fetch_or(attention as u32, Ordering::Relaxed);
    }

    /// Ends a unit attention condition unreported.
    pub fn forget(&self, attention: Attention) {
        self.attentions.fetch_and(!(attention as u32), Ordering::Relaxed);
    }

    /// Whether any condition waits: one load, for the hot path.
    pub(super) fn has_attention(&self) -> bool {
        self.attentions.load(Ordering::Relaxed) != 0
    }

    /// Takes the condition of highest precedence.
    pub(super) fn take_attention(&self) -> Option<Sense> {
        for (attention, sense) in IN_ORDER {
            let bit = attention as u32;
            if self.attentions.fetch_and(!bit, Ordering::Relaxed) & bit != 0 {
                return Some(sense);
            }
        }
        None
    }
}

/// The time in which a command changes a unit: whoever ends tasks waits for its end.
#[derive(Debug)]
pub struct Changing(Arc<Nexus>);

impl Changing {
    /// Begins. The caller looks at the epoch after this, and not before.
    pub(super) fn begin(nexus: &Arc<Nexus>) -> Changing {
        nexus.changing.fetch_add(1, Ordering::AcqRel);
        // Pairs with the fence of whoever ends tasks: one of the two sees the other.
        fence(Ordering::SeqCst);
        Changing(Arc::clone(nexus))
    }
}

impl Drop for Changing {
    fn drop(&mut self) {
        self.0.changing.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attentions_come_out_once_each_by_precedence() {
        let port = InitiatorPort { name: "iqn.a".into(), isid: [0; 6] };
        let target = Arc::new(TargetPort { name: "iqn.t".into(), relative_id: 1 });
        let nexus = Nexus::new(port, target, Offloads::ALL, Arc::default());
        nexus.attend(Attention::CapacityChanged);
        assert_eq!(nexus.take_attention(), Some(Sense::POWER_ON));
        assert_eq!(nexus.take_attention(), Some(Sense::CAPACITY_CHANGED));
        assert_eq!(nexus.take_attention(), None);
        assert!(!nexus.has_attention());
    }
}
