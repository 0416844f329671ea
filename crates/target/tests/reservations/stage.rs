//! A LUN presented by two targets to initiators that have a session with each.

use super::medium::SimFiles;
use super::ramdisk::RamDisk;
use playhead_target::lun::Lun;
use playhead_target::scsi::{
    Cancel, Devices, Done, InitiatorPort, LogicalUnit, Nexus, Nowhere, Policy, Refusal, TargetPort,
};
use playhead_wire::scsi::Command;
use std::path::Path;
use std::sync::Arc;

/// Of [`SEATS`], targets by number, initiators by name, sessions by ISID.
pub(crate) struct Seat {
    pub(crate) target: usize,
    pub(crate) initiator: &'static str,
    pub(crate) isid: u8,
}

const fn seat(target: usize, initiator: &'static str, isid: u8) -> Seat {
    Seat { target, initiator, isid }
}

/// Two hosts, the first by two ports, each with both targets.
pub(crate) const SEATS: [Seat; 6] = [
    seat(0, "iqn.2026-01.org.example:a", 1),
    seat(0, "iqn.2026-01.org.example:a", 2),
    seat(0, "iqn.2026-01.org.example:b", 1),
    seat(1, "iqn.2026-01.org.example:a", 1),
    seat(1, "iqn.2026-01.org.example:a", 2),
    seat(1, "iqn.2026-01.org.example:b", 1),
];

/// Service actions of PERSISTENT RESERVE OUT.
pub(crate) const REGISTER: u8 = 0;
pub(crate) const RESERVE: u8 = 1;
pub(crate) const RELEASE: u8 = 2;
pub(crate) const CLEAR: u8 = 3;
pub(crate) const PREEMPT: u8 = 4;
pub(crate) const PREEMPT_AND_ABORT: u8 = 5;
pub(crate) const REGISTER_AND_IGNORE: u8 = 6;
pub(crate) const REGISTER_AND_MOVE: u8 = 7;
pub(crate) const REPLACE_LOST: u8 = 8;

/// How a command failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fail {
    Conflict,
    /// Additional sense code and qualifier.
    Sense(u16),
}

pub(crate) type Answer = Result<Vec<u8>, Fail>;

pub(crate) struct Stage {
    pub(crate) devices: Devices,
    pub(crate) disk: Arc<RamDisk>,
    pub(crate) units: Vec<Arc<LogicalUnit>>,
    /// One for each of [`SEATS`].
    pub(crate) nexuses: Vec<Arc<Nexus>>,
}

/// Where the stage of a medium keeps its files.
pub(crate) const DIRECTORY: &str = "/reservations";

impl Stage {
    /// Nothing persists.
    pub(crate) fn without_medium() -> Stage {
        Stage::of(Devices::default())
    }

    /// Power on, with what the medium has.
    pub(crate) fn power_on(medium: &SimFiles) -> std::io::Result<Stage> {
        let devices = Devices::default();
        devices.keep_in(medium.files(), Path::new(DIRECTORY))?;
        Ok(Stage::of(devices))
    }

    fn of(devices: Devices) -> Stage {
        let disk = Arc::new(RamDisk::new("disk", 1024));
        let units: Vec<_> = (0..2u16)
            .map(|n| {
                let name = format!("iqn.2026-01.org.playhead:{n}");
                let port = Arc::new(TargetPort { name: name.into(), relative_id: n + 1 });
                let device = devices.find(&disk.identity().uuid);
                Arc::new(LogicalUnit::new(disk.clone(), port, device))
            })
            .collect();
        let mut stage = Stage { devices, disk, units, nexuses: Vec::new() };
        for seat in &SEATS {
            let port = InitiatorPort { name: seat.initiator.into(), isid: [0, 0, 0, 0, 0, seat.isid] };
            stage.nexuses.push(stage.units[seat.target].attach(port, &Policy::default()));
        }
        for at in 0..SEATS.len() {
            stage.attentions(at);
        }
        stage
    }

    /// The unit of a seat.
    pub(crate) fn unit(&self, seat: usize) -> &Arc<LogicalUnit> {
        &self.units[SEATS[seat].target]
    }

    /// Runs a command from a seat. READ and WRITE are only admitted.
    pub(crate) fn run(&self, seat: usize, cdb: &[u8], data_out: &[u8]) -> Answer {
        let fail = |refusal| match refusal {
            Refusal::Conflict => Fail::Conflict,
            Refusal::Check(sense) => Fail::Sense(sense.code),
        };
        let mut padded = [0; 16];
        padded[..cdb.len()].copy_from_slice(cdb);
        let command = Command::parse(&padded).map_err(|sense| Fail::Sense(sense.code))?;
        let (unit, nexus) = (self.unit(seat), &self.nexuses[seat]);
        unit.admit(nexus, &command).map_err(fail)?;
        let mut data_in = Vec::new();
        if !matches!(command, Command::Read(_) | Command::Write(_)) {
            match unit.execute(nexus, &command, data_out, &mut data_in, &Nowhere).map_err(fail)? {
                Done::Job(job) => {
                    let cancel = Cancel::new(Arc::clone(unit), Arc::clone(nexus));
                    data_in = job.run(&cancel).map_err(fail)?;
                }
                Done::Good | Done::AfterFlush | Done::GoodAndFlush | Done::Beside(_) => {}
            }
        }
        Ok(data_in)
    }

    /// PERSISTENT RESERVE OUT.
    pub(crate) fn out(&self, seat: usize, action: u8, kind: u8, list: &[u8]) -> Answer {
        let [.., a, b] = (list.len() as u32).to_be_bytes();
        self.run(seat, &[0x5f, action, kind, 0, 0, 0, 0, a, b, 0], list)
    }

    /// PERSISTENT RESERVE IN.
    pub(crate) fn ask(&self, seat: usize, action: u8) -> Answer {
        self.run(seat, &[0x5e, action, 0, 0, 0, 0, 0, 0xff, 0xff, 0], &[])
    }

    pub(crate) fn register(&self, seat: usize, key: u64, flags: u8) -> Answer {
        self.out(seat, REGISTER_AND_IGNORE, 0, &list(0, key, flags))
    }

    /// All that PERSISTENT RESERVE IN tells, without the generation.
    pub(crate) fn all(&self) -> Vec<Vec<u8>> {
        [0, 1, 3].map(|action| self.ask(0, action).unwrap()[4..].to_vec()).to_vec()
    }

    /// The unit attentions of a seat, taken.
    pub(crate) fn attentions(&self, seat: usize) -> Vec<u16> {
        let taken = std::iter::from_fn(|| self.unit(seat).attention(&self.nexuses[seat]));
        taken.map(|sense| sense.code).collect()
    }

    pub(crate) fn may_read(&self, seat: usize) -> bool {
        self.run(seat, &[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[]).is_ok()
    }

    pub(crate) fn may_write(&self, seat: usize) -> bool {
        self.run(seat, &[0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[]).is_ok()
    }
}

/// A basic parameter list; of the flags 01h is APTPL, 04h ALL_TG_PT.
pub(crate) fn list(key: u64, action_key: u64, flags: u8) -> Vec<u8> {
    let mut list = Vec::new();
    list.extend_from_slice(&key.to_be_bytes());
    list.extend_from_slice(&action_key.to_be_bytes());
    list.extend_from_slice(&[0, 0, 0, 0, flags, 0, 0, 0]);
    list
}

/// The list of REGISTER AND MOVE to a seat; of the flags 01h is APTPL, 02h UNREG.
pub(crate) fn move_list(key: u64, action_key: u64, flags: u8, to: &Seat) -> Vec<u8> {
    let mut id = Vec::new();
    playhead_wire::scsi::reservation::transport_id::emit(to.initiator, &[0, 0, 0, 0, 0, to.isid], &mut id);
    let mut list = Vec::new();
    list.extend_from_slice(&key.to_be_bytes());
    list.extend_from_slice(&action_key.to_be_bytes());
    list.extend_from_slice(&[0, flags, 0, to.target as u8 + 1]);
    list.extend_from_slice(&(id.len() as u32).to_be_bytes());
    list.extend_from_slice(&id);
    list
}
