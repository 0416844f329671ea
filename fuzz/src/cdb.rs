//! Commands and their parameter lists, against the device server of three units over memory.
//!
//! Input: commands, each of a selector, 16 bytes of CDB, a length (16 bits, little-endian, at most 4,096 counts) and that much data.
//! The selector's bits 0 and 1 choose the unit (the third is read-only), bits 2 and 3 the initiator (policy rejects every offload for
//! the second); bit 7 leaves a unit attention that waits. Data that a command needs exactly is repeated as often as it takes.

use crate::ramdisk::RamDisk;
use playhead_target::lun::{Change, Lun, BLOCK_BYTES};
use playhead_target::scsi::{
    report_luns, Cancel, Devices, Done, InitiatorPort, LogicalUnit, Nexus, Offload, Policy, Reach, Reached,
    Refusal, Rule, TargetPort,
};
use playhead_wire::scsi::{Command, Sense};
use std::sync::atomic::Ordering;
use std::sync::Arc;

/// Blocks of each disk: small, so that odd ranges meet.
const BLOCKS: u64 = 128;
/// Commands taken of one input.
const COMMANDS_MAX: usize = 32;
/// Most data of one command.
const DATA_MAX_BYTES: usize = 4096;
/// Most data that is made by repeating.
const REPEATED_MAX_BYTES: u64 = 2 * BLOCKS * BLOCK_BYTES as u64;
/// More than any data-in that no allocation length cuts.
const DATA_IN_MAX_BYTES: usize = 1 << 20;
/// Longest sense data (SPC-4 4.5.1).
const SENSE_MAX_BYTES: usize = 252;
/// Initiators; the second gets no offload.
const INITIATORS: [&str; 3] = ["iqn.free", "iqn.strict", "iqn.other"];
const STRICT: usize = 1;

struct Seat {
    disk: Arc<RamDisk>,
    unit: Arc<LogicalUnit>,
    nexuses: Vec<Arc<Nexus>>,
    /// The blocks after the last command.
    content: Vec<u8>,
}

impl Seat {
    fn new(name: &str, read_only: bool, policy: &Policy) -> Seat {
        let disk = Arc::new(RamDisk::new(name, BLOCKS));
        disk.read_only.store(read_only, Ordering::Relaxed);
        let target = TargetPort { name: "iqn.2026-01.org.playhead:fuzz".into(), relative_id: 1 };
        let (target, device) = (Arc::new(target), Devices::default().find(&disk.identity().uuid));
        let unit = Arc::new(LogicalUnit::new(disk.clone(), target, device));
        let attach = |name: &&str| unit.attach(port(name), policy);
        let nexuses = INITIATORS.iter().map(attach).collect();
        Seat { content: content(&disk), disk, unit, nexuses }
    }
}

fn port(name: &str) -> InitiatorPort {
    InitiatorPort { name: name.into(), isid: [0x80, 0, 0, 0, 0, 1] }
}

fn content(disk: &RamDisk) -> Vec<u8> {
    let mut blocks = vec![0; BLOCKS as usize * BLOCK_BYTES];
    disk.read(0, &mut blocks).unwrap();
    blocks
}

struct House {
    seats: Vec<Seat>,
}

struct Shown<'a> {
    house: &'a House,
    initiator: usize,
}

impl Reach for Shown<'_> {
    fn by_naa(&self, naa: &[u8; 16]) -> Option<Reached> {
        let seat = self.house.seats.iter().find(|seat| seat.unit.naa() == naa)?;
        Some(Reached { unit: seat.unit.clone(), nexus: seat.nexuses[self.initiator].clone() })
    }
}

/// Runs the commands of `data`.
pub fn run(data: &[u8]) {
    let strict = Offload::ALL.map(|offload| Rule {
        lun: None,
        initiator: Some(INITIATORS[STRICT].to_owned()),
        offload,
        support: false,
    });
    let policy = Policy::new(strict);
    let seats = [("alpha", false), ("beta", false), ("gamma", true)];
    let mut house = House { seats: seats.map(|(name, locked)| Seat::new(name, locked, &policy)).into() };
    let mut rest = data;
    for _ in 0..COMMANDS_MAX {
        let Some((&selector, after)) = rest.split_first() else {
            return;
        };
        let Some((cdb, after)) = after.split_first_chunk::<16>() else {
            return;
        };
        let (len, after) = after.split_first_chunk::<2>().map_or((0, after), |(len, after)| {
            (usize::from(u16::from_le_bytes(*len)) % (DATA_MAX_BYTES + 1), after)
        });
        let (data, after) = after.split_at(len.min(after.len()));
        rest = after;
        command(&mut house, selector, cdb, data);
    }
}

fn command(house: &mut House, selector: u8, cdb: &[u8; 16], data: &[u8]) {
    let at = usize::from(selector & 3) % house.seats.len();
    let initiator = usize::from(selector >> 2 & 3) % INITIATORS.len();
    let Ok(command) = Command::parse(cdb).map_err(|sense| check_sense(&sense)) else {
        return;
    };
    let (unit, nexus) = (house.seats[at].unit.clone(), house.seats[at].nexuses[initiator].clone());
    if selector & 0x80 == 0 {
        while unit.attention(&nexus).is_some() {}
    }
    let rejected = Offload::of(&command).is_some_and(|offload| !nexus.offloads().contains(offload));
    assert_eq!(initiator == STRICT && Offload::of(&command).is_some(), rejected);
    let ended = carry_out(house, &unit, &nexus, initiator, &command, data);
    if let Err(Refusal::Check(sense)) = &ended {
        check_sense(sense);
    }
    assert!(!rejected || ended.is_err(), "policy rejects {command:?}");
    // What is refused changed nothing, except copies and verified writes, which may stop half-way.
    let may_change =
        command.changes_blocks() || ended.is_ok() || Offload::of(&command).is_some() && !rejected;
    let partial = ended.is_ok() || !is_all_or_nothing(&command);
    for seat in &mut house.seats {
        let now = content(&seat.disk);
        if now != seat.content {
            assert!(!seat.disk.read_only(), "a read-only unit changed: {command:?}");
            assert!(may_change && partial, "{command:?} ended in {ended:?} and changed blocks");
            seat.content = now;
        }
    }
}

fn is_all_or_nothing(command: &Command) -> bool {
    matches!(
        command,
        Command::WriteSame(_) | Command::Unmap { .. } | Command::CompareAndWrite(_) | Command::Write(_)
    ) || !command.changes_blocks() && Offload::of(command).is_none()
}

/// As a session does: admission, data-out as far as it came, execution, a job if it is one.
fn carry_out(
    house: &House,
    unit: &Arc<LogicalUnit>,
    nexus: &Arc<Nexus>,
    initiator: usize,
    command: &Command,
    data: &[u8],
) -> Result<(), Refusal> {
    let mut data_in = Vec::new();
    if let Command::ReportLuns { select, allocation_bytes } = *command {
        report_luns(0..3u16, select, allocation_bytes, &mut data_in)?;
        assert!(data_in.len() <= allocation_bytes as usize);
        return Ok(());
    }
    unit.admit(nexus, command)?;
    let needed = command.data_out_bytes(BLOCK_BYTES as u64);
    let mut data_out = data[..data.len().min(needed.try_into().unwrap_or(usize::MAX))].to_vec();
    if command.needs_exact_data() && (data_out.len() as u64) < needed {
        if data.is_empty() || needed > REPEATED_MAX_BYTES {
            return Err(Sense::INVALID_FIELD_IN_CDB.into());
        }
        data_out = data.iter().copied().cycle().take(needed as usize).collect();
    }
    match command {
        Command::Read(blocks) => {
            let mut buffer = vec![0; blocks.count as usize * BLOCK_BYTES];
            unit.lun().read(blocks.lba, &mut buffer).unwrap();
            return Ok(());
        }
        Command::Write(blocks) => {
            let whole = &data_out[..data_out.len() - data_out.len() % BLOCK_BYTES];
            if !whole.is_empty() {
                unit.lun().submit(&[Change::Write { lba: blocks.lba, data: whole }]).unwrap();
            }
            return Ok(());
        }
        _ => {}
    }
    let reach = Shown { house, initiator };
    let done = unit.execute(nexus, command, &data_out, &mut data_in, &reach)?;
    // An overwrite that goes on behind GOOD is waited for, so that its changes are this command's.
    while unit
        .barred(&Command::TestUnitReady)
        .is_some_and(|sense| sense.code == Sense::SANITIZE_IN_PROGRESS.code)
    {
        std::thread::sleep(std::time::Duration::from_micros(100));
    }
    if let Done::Job(job) | Done::Beside(job) = done {
        // Cut to the allocation length by the session.
        data_in = job.run(&Cancel::new(unit.clone(), nexus.clone()))?;
    } else if let Some(most) = command.allocation_bytes() {
        assert!(data_in.len() <= most as usize, "{command:?} gave {} bytes", data_in.len());
    }
    assert!(data_in.len() <= DATA_IN_MAX_BYTES);
    Ok(())
}

fn check_sense(sense: &Sense) {
    for descriptor_format in [false, true] {
        let mut bytes = Vec::new();
        sense.emit(descriptor_format, &mut bytes);
        assert!((8..=SENSE_MAX_BYTES).contains(&bytes.len()));
        assert_eq!(usize::from(bytes[7]) + 8, bytes.len());
    }
}
