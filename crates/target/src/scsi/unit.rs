//! A logical unit: a LUN with the state SCSI hangs on it (attentions, reservations, mode pages).

use super::copy;
use super::device::{Device, TargetPort};
use super::job::Job;
use super::nexus::{Attention, Changing, InitiatorPort, Nexus};
use super::policy::{Ledger, Offload, OffloadCount, Policy};
use super::reservation::Access;
use super::sanitize;
use crate::lun::{LunError, LunRef};
use playhead_wire::scsi::log::Logs;
use playhead_wire::scsi::mode::Settings;
use playhead_wire::scsi::{Command, Sense};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

/// Why a command ends otherwise than GOOD.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// CHECK CONDITION with this sense data.
    Check(Sense),
    /// RESERVATION CONFLICT.
    Conflict,
}

impl From<Sense> for Refusal {
    fn from(sense: Sense) -> Self {
        Refusal::Check(sense)
    }
}

/// How an executed command ends.
#[derive(Debug)]
pub enum Done {
    /// GOOD now.
    Good,
    /// GOOD once a flush of the LUN that starts now is over.
    AfterFlush,
    /// As [`Done::Good`], but a flush is to be started (SYNCHRONIZE CACHE with IMMED).
    GoodAndFlush,
    /// GOOD once the job is taken on; its end is not told (PRE-FETCH with IMMED), or is asked for by other commands (copies in the
    /// background).
    Beside(Job),
    /// As the job ends, which the session has done elsewhere.
    Job(Job),
}

/// The sense data of a LUN's refusal to read.
pub fn sense_of_read(error: &LunError) -> Sense {
    sense_of(error, Sense::UNRECOVERED_READ)
}

/// The sense data of a LUN's refusal to write or flush.
pub fn sense_of_write(error: &LunError) -> Sense {
    sense_of(error, Sense::WRITE_ERROR)
}

fn sense_of(error: &LunError, io: Sense) -> Sense {
    match error {
        LunError::OutOfRange { .. } => Sense::LBA_OUT_OF_RANGE,
        LunError::ReadOnly { .. } => Sense::WRITE_PROTECTED,
        LunError::NoSpace { .. } => Sense::SPACE_ALLOCATION_FAILED,
        LunError::Gone { .. } => Sense::NOT_READY,
        LunError::Unsupported { .. } => Sense::INVALID_OPCODE,
        LunError::Io { .. } => io,
    }
}

/// A LUN as one target presents it. What does not depend on the target is in the [`Device`].
pub struct LogicalUnit {
    pub(super) lun: LunRef,
    pub(super) target: Arc<TargetPort>,
    pub(super) device: Arc<Device>,
    pub(super) serial: String,
    pub(super) naa: [u8; 16],
    ledger: Ledger,
    /// Taken away from its target.
    retired: AtomicBool,
}

impl Drop for LogicalUnit {
    fn drop(&mut self) {
        self.device.remove_port(&self.target);
    }
}

impl std::fmt::Debug for LogicalUnit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogicalUnit").field("name", &self.lun.identity().name).finish_non_exhaustive()
    }
}

/// NAA 6 (SPC-4 7.8.5.6.5) under a locally administered company id, 02-50-48: the project has none of the IEEE's. The other
/// hundred bits are the UUID's first.
pub(crate) fn naa_of(uuid: &[u8; 16]) -> [u8; 16] {
    let mut naa = [0x60, 0x25, 0x04, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    naa[3] |= uuid[0] >> 4;
    for i in 0..12 {
        naa[4 + i] = uuid[i] << 4 | uuid[i + 1] >> 4;
    }
    naa
}

impl LogicalUnit {
    /// Presents `lun`, whose state is `device`, as a unit of `target`.
    pub fn new(lun: LunRef, target: Arc<TargetPort>, device: Arc<Device>) -> LogicalUnit {
        let uuid = lun.identity().uuid;
        device.add_port(&target);
        LogicalUnit {
            target,
            device,
            serial: uuid.iter().map(|byte| format!("{byte:02x}")).collect(),
            naa: naa_of(&uuid),
            ledger: Ledger::default(),
            retired: AtomicBool::new(false),
            lun,
        }
    }

    /// What is behind the unit.
    pub fn lun(&self) -> &LunRef {
        &self.lun
    }

    /// The NAA designator of VPD page 83h.
    pub fn naa(&self) -> &[u8; 16] {
        &self.naa
    }

    /// Begins a nexus with `port`, under `policy`.
    pub fn attach(&self, port: InitiatorPort, policy: &Policy) -> Arc<Nexus> {
        let offloads = policy.in_force(&self.lun.identity().uuid, &port.name);
        let counters = self.ledger.of(&port.name);
        let nexus = Arc::new(Nexus::new(port, Arc::clone(&self.target), offloads, counters));
        self.device.enter(&nexus);
        nexus
    }

    /// A nexus for one command that names this unit from elsewhere: it need not end.
    pub fn visit(&self, port: InitiatorPort, policy: &Policy) -> Arc<Nexus> {
        let nexus = self.attach(port, policy);
        nexus.set_visiting();
        nexus
    }

    /// The nexuses made by [`LogicalUnit::visit`] whose commands are still at work here.
    pub fn visitors(&self) -> Vec<Arc<Nexus>> {
        let mut visitors = self.device.nexuses();
        visitors.retain(|nexus| nexus.is_visiting() && nexus.target_name() == &*self.target.name);
        visitors
    }

    /// Puts another policy in force; initiators that get other offloads than before are told to look again.
    pub fn set_policy(&self, policy: &Policy) {
        let uuid = self.lun.identity().uuid;
        for nexus in self.device.nexuses() {
            nexus.set_offloads(policy.in_force(&uuid, &nexus.port.name));
        }
    }

    /// What became of the offloads asked of this unit.
    pub fn offload_counts(&self) -> Vec<OffloadCount> {
        self.ledger.lines(self.lun.identity().uuid)
    }

    /// Ends a nexus: its RESERVE goes with it, persistent registrations stay.
    pub fn detach(&self, nexus: &Nexus) {
        self.device.leave(nexus);
    }

    /// What was read, written and failed so far.
    pub fn logs(&self) -> Logs {
        self.device.logs()
    }

    /// Tells every initiator that mode parameters changed: the LUN is write-protected now, or no longer.
    pub fn mode_changed(&self) {
        self.attend(Attention::ModeParametersChanged, |_| true);
    }

    /// Establishes `attention` for every nexus that `chosen` picks, whichever target it is with.
    pub(super) fn attend(&self, attention: Attention, chosen: impl Fn(&Nexus) -> bool) {
        self.device.attend(attention, chosen);
    }

    /// Tells every initiator that the blocks may be others than before: production was rewound, or undone.
    pub fn contents_changed(&self) {
        self.lun.contents_replaced();
        self.device.sanitizer.forget();
        self.attend(Attention::MediumMayHaveChanged, |_| true);
    }

    /// Tells every initiator that space for writes gets short, if the unit is thin to it and the mode page says so (SBC-4 4.7.3.8).
    pub fn space_low(&self) {
        if self.settings().space_notices {
            self.attend(Attention::SoftThreshold, |nexus| nexus.offloads().contains(Offload::Unmap));
        }
    }

    /// The target does not present it any more: copies under way that it takes part in stop.
    pub fn retire(&self) {
        self.retired.store(true, Ordering::Release);
    }

    /// Whether it was taken away from its target.
    pub fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Acquire)
    }

    /// LOGICAL UNIT RESET (SAM-5 7.7): ends all tasks and RESERVE, restores mode pages, tells every initiator. What was under way
    /// is over when nobody [is changing](LogicalUnit::is_changing) the unit.
    pub fn reset(&self) {
        self.device.reset();
    }

    /// CLEAR TASK SET (SAM-5 7.5): ends all tasks and tells the other initiators. What was under way is over as after a reset.
    pub fn clear_task_set(&self, by: &Nexus) {
        self.device.clear_task_set(by);
    }

    /// A task that began in one epoch must not run in another: someone ended it in between. To be read before the task is admitted.
    pub fn epoch(&self, nexus: &Nexus) -> u32 {
        self.device.epoch(nexus)
    }

    /// For a task that began in `epoch` and is about to change the unit: whoever ends tasks waits while the answer is held.
    /// `None`: the task was ended, and may not.
    pub fn changing(&self, nexus: &Arc<Nexus>, epoch: u32) -> Option<Changing> {
        let changing = Changing::begin(nexus);
        (self.epoch(nexus) == epoch).then_some(changing)
    }

    /// Counts bytes that were read, for LOG SENSE.
    pub fn count_read(&self, nexus: &Nexus, bytes: u64) {
        self.device.counters.read(nexus, bytes);
    }

    /// Counts bytes that were captured, for LOG SENSE.
    pub fn count_written(&self, nexus: &Nexus, bytes: u64) {
        self.device.counters.written(nexus, bytes);
    }

    /// Counts a failure of the medium, for LOG SENSE; other sense data is not of it.
    pub fn count_failure(&self, sense: &Sense) {
        self.device.counters.failed(sense);
    }

    /// Whether a command of any initiator is changing the unit now. Tasks that were ended before do not begin to.
    pub fn is_changing(&self) -> bool {
        self.device.is_changing()
    }

    /// The mode page settings in force.
    pub fn settings(&self) -> Settings {
        self.device.settings()
    }

    pub(super) fn set_settings(&self, settings: Settings, by: &Nexus) {
        self.device.set_settings(settings, by);
    }

    /// Takes the unit attention that is to be reported instead of running a command that cannot run anyway.
    pub fn attention(&self, nexus: &Nexus) -> Option<Sense> {
        nexus.take_attention()
    }

    /// Why a SANITIZE under way, or one that failed, keeps `command` from running, if it does. Asked again for a command whose data
    /// took time to come.
    pub fn barred(&self, command: &Command) -> Option<Sense> {
        self.device.sanitizer.bars().filter(|_| !sanitize::runs_anyway(command))
    }

    /// As [`LogicalUnit::barred`], for a CDB that was refused with `refusal`: what a SANITIZE bars is not looked into. A code that there
    /// is not stays one.
    pub fn barred_unread(&self, cdb: &[u8; 16], refusal: &Sense) -> Option<Sense> {
        let unknown = *refusal == Sense::INVALID_OPCODE || sanitize::runs_anyway_code(cdb[0]);
        self.device.sanitizer.bars().filter(|_| !unknown)
    }

    /// Whether `command`, which was admitted, may still run now that its data has come. Time has passed: the unit may have been taken
    /// from its initiator, or the offload, or the right to change anything; and what it names is chosen only now.
    pub fn readmit(&self, nexus: &Nexus, command: &Command) -> Result<(), Refusal> {
        if nexus.is_gone() || self.is_retired() {
            return Err(Sense::LUN_NOT_SUPPORTED.into());
        }
        if let Some(sense) = self.barred(command) {
            return Err(sense.into());
        }
        if let Some(offload) = Offload::of(command) {
            check_policy(nexus, offload, command)?;
        }
        if command.changes_blocks() {
            self.check_writable(nexus)?;
        }
        Ok(())
    }

    /// Whether `command` may run now for `nexus`. Errors are its end.
    ///
    /// Checks, in this order: unit attentions, asymmetric access, policy, reservations, a SANITIZE under way, a stopped unit, block
    /// range and transfer limit, write protection.
    pub fn admit(&self, nexus: &Nexus, command: &Command) -> Result<(), Refusal> {
        let block_count = self.lun.block_count();
        let known = &self.device.known_block_count;
        if block_count != known.load(Ordering::Relaxed) {
            let before = known.swap(block_count, Ordering::Relaxed);
            if before != block_count && before != u64::MAX {
                self.attend(Attention::CapacityChanged, |_| true);
            }
        }
        if nexus.has_attention() && !ignores_attention(command) {
            if let Some(sense) = nexus.take_attention() {
                return Err(sense.into());
            }
        }
        if !self.device.access.is_active() {
            if let Some(sense) = self.device.access.refusal(command) {
                return Err(sense.into());
            }
        }
        if let Some(offload) = Offload::of(command) {
            check_policy(nexus, offload, command)?;
        }
        self.check_access(nexus, Access::of(command))?;
        if let Some(sense) = self.barred(command) {
            return Err(sense.into());
        }
        if needs_medium(command) {
            self.check_medium()?;
        }
        self.check_range(command, block_count)?;
        check_list(command)?;
        if command.changes_blocks() {
            self.check_writable(nexus)?;
        }
        Ok(())
    }

    /// Refuses what reservations do not let the initiator of `nexus` do.
    pub(super) fn check_access(&self, nexus: &Nexus, access: Access) -> Result<(), Refusal> {
        if nexus.permits(access) {
            return Ok(());
        }
        Err(if self.device.reservations_lost() { Sense::RESERVATIONS_LOST.into() } else { Refusal::Conflict })
    }

    /// Refuses while the unit is stopped.
    pub(super) fn check_medium(&self) -> Result<(), Sense> {
        if self.device.stopped.load(Ordering::Relaxed) {
            return Err(Sense::NEEDS_START);
        }
        Ok(())
    }

    /// Refuses changes to what is read-only, for all or for this initiator.
    pub(super) fn check_writable(&self, nexus: &Nexus) -> Result<(), Sense> {
        if self.lun.read_only() || nexus.read_only() {
            return Err(Sense::WRITE_PROTECTED);
        }
        if self.settings().write_protect {
            return Err(Sense::SOFTWARE_WRITE_PROTECTED);
        }
        Ok(())
    }
}

/// Refuses an offload that policy rejects, as a device that does not have it would.
fn check_policy(nexus: &Nexus, offload: Offload, command: &Command) -> Result<(), Sense> {
    let offloads = nexus.offloads();
    if !offloads.contains(offload) {
        nexus.rejected(offload);
        return Err(Sense::INVALID_OPCODE);
    }
    let unmaps = matches!(command, Command::WriteSame(request) if request.unmap);
    if unmaps && !offloads.contains(Offload::Unmap) {
        nexus.rejected(Offload::Unmap);
        return Err(Sense::in_cdb(1, Some(3)));
    }
    Ok(())
}

/// Commands that run although a unit attention waits (SAM-5 5.14.1).
fn ignores_attention(command: &Command) -> bool {
    matches!(command, Command::Inquiry { .. } | Command::ReportLuns { .. } | Command::RequestSense { .. })
}

fn needs_medium(command: &Command) -> bool {
    command.changes_blocks()
        || matches!(
            command,
            Command::TestUnitReady
                | Command::Read(_)
                | Command::Verify { .. }
                | Command::PreFetch { .. }
                | Command::SynchronizeCache { .. }
                | Command::GetLbaStatus { .. }
                | Command::PopulateToken { .. }
                | Command::ReadCapacity10
                | Command::ReadCapacity16 { .. }
        )
}

/// Refuses lists about copies that are longer than any that is understood, before they are taken in.
fn check_list(command: &Command) -> Result<(), Sense> {
    match *command {
        Command::ExtendedCopy { list_bytes, .. }
        | Command::PopulateToken { list_bytes, .. }
        | Command::WriteUsingToken { list_bytes, .. }
            if list_bytes > copy::LIST_BYTES_MAX =>
        {
            Err(Sense::PARAMETER_LIST_LENGTH)
        }
        _ => Ok(()),
    }
}
