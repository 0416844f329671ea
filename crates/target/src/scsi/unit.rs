//! A logical unit: a LUN with the state SCSI hangs on it (attentions, reservations, mode pages).

use super::job::Job;
use super::nexus::{Attention, InitiatorPort, Nexus};
use super::policy::{Ledger, Offload, OffloadCount, Policy};
use super::reservation::{Access, Reservations};
use crate::lun::{LunError, LunRef, BLOCK_BYTES};
use parking_lot::Mutex;
use playhead_wire::scsi::inquiry::BlockLimits;
use playhead_wire::scsi::mode::{Settings, DEFAULTS};
use playhead_wire::scsi::{Command, Sense};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicU8, Ordering};
use std::sync::Arc;

/// What VPD page B0 promises and [`LogicalUnit::admit`] enforces, in blocks.
///
/// Transfers stop at 32 MiB so that one command's data fits a session's budget; UNMAP at 512 MiB and WRITE SAME at 4 GiB so that
/// one record never makes a reader of the journal walk an unbounded extent.
pub const LIMITS: BlockLimits = BlockLimits {
    compare_and_write: 255,
    transfer_granularity: 8,
    transfer: (32 << 20) / BLOCK_BYTES as u32,
    optimal_transfer: (1 << 20) / BLOCK_BYTES as u32,
    unmap: 1 << 20,
    unmap_descriptors: 256,
    unmap_granularity: 8,
    write_same: 1 << 23,
};

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

/// A LUN as one target presents it. State is in memory: a restart is a power on.
pub struct LogicalUnit {
    pub(super) lun: LunRef,
    pub(super) target_name: Arc<str>,
    pub(super) serial: String,
    pub(super) naa: [u8; 16],
    nexuses: Mutex<Vec<Arc<Nexus>>>,
    ledger: Ledger,
    /// The size all nexuses know of, in blocks.
    known_block_count: AtomicU64,
    /// Counts the times all tasks were ended.
    epoch: AtomicU32,
    settings: AtomicU8,
    pub(super) stopped: AtomicBool,
    /// Whether `reservations` holds anything: spares the hot path the lock.
    reserved: AtomicBool,
    reservations: Mutex<Reservations>,
}

impl std::fmt::Debug for LogicalUnit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogicalUnit").field("name", &self.lun.identity().name).finish_non_exhaustive()
    }
}

fn pack(settings: Settings) -> u8 {
    u8::from(settings.write_cache)
        | u8::from(settings.descriptor_sense) << 1
        | u8::from(settings.write_protect) << 2
}

/// NAA 6 (SPC-4 7.8.5.6.5) under a locally administered company id, 02-50-48: the project has none of the IEEE's. The other
/// hundred bits are the UUID's first.
fn naa_of(uuid: &[u8; 16]) -> [u8; 16] {
    let mut naa = [0x60, 0x25, 0x04, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    naa[3] |= uuid[0] >> 4;
    for i in 0..12 {
        naa[4 + i] = uuid[i] << 4 | uuid[i + 1] >> 4;
    }
    naa
}

impl LogicalUnit {
    /// Presents `lun` as a unit of the target `target_name`.
    pub fn new(lun: LunRef, target_name: Arc<str>) -> LogicalUnit {
        let uuid = lun.identity().uuid;
        LogicalUnit {
            target_name,
            serial: uuid.iter().map(|byte| format!("{byte:02x}")).collect(),
            naa: naa_of(&uuid),
            nexuses: Mutex::new(Vec::new()),
            ledger: Ledger::default(),
            known_block_count: AtomicU64::new(lun.block_count()),
            epoch: AtomicU32::new(0),
            settings: AtomicU8::new(pack(DEFAULTS)),
            stopped: AtomicBool::new(false),
            reserved: AtomicBool::new(false),
            reservations: Mutex::new(Reservations::default()),
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
        let nexus = self.visit(port, policy);
        self.nexuses.lock().push(Arc::clone(&nexus));
        nexus
    }

    /// A nexus for one command that names this unit from elsewhere: nothing is told to it, and it need not end.
    pub fn visit(&self, port: InitiatorPort, policy: &Policy) -> Arc<Nexus> {
        let offloads = policy.in_force(&self.lun.identity().uuid, &port.name);
        let counters = self.ledger.of(&port.name);
        Arc::new(Nexus::new(port, offloads, counters))
    }

    /// Puts another policy in force; initiators that get other offloads than before are told to look again.
    pub fn set_policy(&self, policy: &Policy) {
        let uuid = self.lun.identity().uuid;
        for nexus in self.nexuses.lock().iter() {
            nexus.set_offloads(policy.in_force(&uuid, &nexus.port.name));
        }
    }

    /// What became of the offloads asked of this unit.
    pub fn offload_counts(&self) -> Vec<OffloadCount> {
        self.ledger.lines(self.lun.identity().uuid)
    }

    /// Ends a nexus: a RESERVE(6) goes with it, persistent registrations stay.
    pub fn detach(&self, nexus: &Nexus) {
        self.nexuses.lock().retain(|other| other.id != nexus.id);
        self.with_reservations(|reservations| reservations.nexus_lost(nexus.id));
    }

    /// Runs `f` on the reservations and refreshes the flag in front of them.
    pub(super) fn with_reservations<T>(&self, f: impl FnOnce(&mut Reservations) -> T) -> T {
        let mut reservations = self.reservations.lock();
        let result = f(&mut reservations);
        self.reserved.store(reservations.restrict(), Ordering::Release);
        result
    }

    /// Establishes `attention` for every nexus that `chosen` picks.
    pub(super) fn attend(&self, attention: Attention, chosen: impl Fn(&Nexus) -> bool) {
        for nexus in self.nexuses.lock().iter().filter(|nexus| chosen(nexus)) {
            nexus.attend(attention);
        }
    }

    /// Tells every initiator that the target's list of units changed.
    pub fn luns_changed(&self) {
        self.attend(Attention::ReportedLunsChanged, |_| true);
    }

    /// LOGICAL UNIT RESET (SAM-5 7.7): ends all tasks and RESERVE(6), restores mode pages, tells every initiator.
    pub fn reset(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
        self.settings.store(pack(DEFAULTS), Ordering::Relaxed);
        self.stopped.store(false, Ordering::Relaxed);
        self.with_reservations(Reservations::reset);
        self.attend(Attention::Reset, |_| true);
    }

    /// CLEAR TASK SET (SAM-5 7.5): ends all tasks and tells the other initiators.
    pub fn clear_task_set(&self, by: &Nexus) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
        self.attend(Attention::CommandsCleared, |nexus| nexus.id != by.id);
    }

    /// Ends the tasks of every nexus of `port`.
    pub(super) fn abort_tasks_of(&self, port: &InitiatorPort) {
        for nexus in self.nexuses.lock().iter().filter(|n| n.port == *port) {
            nexus.epoch.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// A task that began in one epoch must not run in another: someone ended it in between.
    pub fn epoch(&self, nexus: &Nexus) -> u32 {
        // Two counters that only rise: so does their sum.
        let own = nexus.epoch.load(Ordering::Acquire);
        self.epoch.load(Ordering::Acquire).wrapping_add(own)
    }

    /// The mode page settings in force.
    pub fn settings(&self) -> Settings {
        let bits = self.settings.load(Ordering::Relaxed);
        Settings { write_cache: bits & 1 != 0, descriptor_sense: bits & 2 != 0, write_protect: bits & 4 != 0 }
    }

    pub(super) fn set_settings(&self, settings: Settings, by: &Nexus) {
        if self.settings.swap(pack(settings), Ordering::Relaxed) != pack(settings) {
            self.attend(Attention::ModeParametersChanged, |n| n.id != by.id);
        }
    }

    /// Takes the unit attention that is to be reported instead of running a command that cannot run anyway.
    pub fn attention(&self, nexus: &Nexus) -> Option<Sense> {
        nexus.take_attention()
    }

    /// Whether `command` may run now for `nexus`. Errors are its end.
    ///
    /// Checks, in this order: unit attentions, policy, reservations, a stopped unit, block range and transfer limit, write protection.
    pub fn admit(&self, nexus: &Nexus, command: &Command) -> Result<(), Refusal> {
        let block_count = self.lun.block_count();
        if block_count != self.known_block_count.load(Ordering::Relaxed)
            && block_count != self.known_block_count.swap(block_count, Ordering::Relaxed)
        {
            self.attend(Attention::CapacityChanged, |_| true);
        }
        if nexus.has_attention() && !ignores_attention(command) {
            if let Some(sense) = nexus.take_attention() {
                return Err(sense.into());
            }
        }
        if let Some(offload) = Offload::of(command) {
            check_policy(nexus, offload, command)?;
        }
        if self.reserved.load(Ordering::Acquire) {
            let access = Access::of(command);
            if !self.reservations.lock().permits(nexus.id, &nexus.port, access) {
                return Err(Refusal::Conflict);
            }
        }
        if self.stopped.load(Ordering::Relaxed) && needs_medium(command) {
            return Err(Sense::NEEDS_START.into());
        }
        check_range(command, block_count)?;
        if command.changes_blocks() {
            if self.lun.read_only() || nexus.read_only() {
                return Err(Sense::WRITE_PROTECTED.into());
            }
            if self.settings().write_protect {
                return Err(Sense::SOFTWARE_WRITE_PROTECTED.into());
            }
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
                | Command::ReadCapacity10
                | Command::ReadCapacity16 { .. }
        )
}

/// Refuses blocks beyond the end, even none of them, and transfers beyond [`LIMITS`].
fn check_range(command: &Command, block_count: u64) -> Result<(), Sense> {
    // The byte whose field a transfer that is too long is blamed on depends on the CDB's form, so none is named.
    let (lba, count, limit) = match *command {
        Command::Read(b)
        | Command::Write(b)
        | Command::WriteAndVerify { blocks: b, .. }
        | Command::Verify { blocks: b, .. } => (b.lba, b.count, u64::from(LIMITS.transfer)),
        Command::CompareAndWrite(b) => (b.lba, b.count, u64::from(LIMITS.compare_and_write)),
        Command::PreFetch { lba, count } | Command::SynchronizeCache { lba, count, .. } => {
            (lba, count, u64::MAX)
        }
        Command::WriteSame(w) => (w.lba, w.count, LIMITS.write_same),
        Command::GetLbaStatus { lba, .. } => (lba, 0, u64::MAX),
        _ => return Ok(()),
    };
    if lba >= block_count || u64::from(count) > block_count - lba {
        return Err(Sense::LBA_OUT_OF_RANGE);
    }
    let names_none = count == 0 && matches!(command, Command::WriteSame(_));
    if u64::from(count) > limit || names_none {
        return Err(Sense::INVALID_FIELD_IN_CDB);
    }
    Ok(())
}
