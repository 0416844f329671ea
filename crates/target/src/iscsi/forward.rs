//! Commands on LUNs of other arrays: forwarded, split and answered (see [`crate::fabric`]), on this session's own thread.
//!
//! A command goes through these steps, and is in [`Forwarding`] from the second on: its data is gathered, as any command's; if it changes
//! blocks its extents are taken (an overlapping change makes it wait, nobody else); it is sent; its status comes; the change is captured;
//! the host is answered. Whoever aborts it before it was sent ends it here; after that only the array can.
//!
//! What waits here is in the task set all the same: an ORDERED command is not sent before those that came before it, and none that came
//! after it is sent before it. What is read back counts as waiting until that is over: until then what the array executes after it would be recorded before it. Who
//! waits for his turn has taken nothing, so nobody waits for him. HEAD OF QUEUE goes past all of them (SAM-5 8.6).
//!
//! Here is the way to the array; [`ended`] is the way back, [`tasks`] what ends commands before their time.

mod ended;
mod tasks;

use super::commands::{Asked, Source};
use super::links::Links;
use super::outbox::{Event as Message, Fence};
use super::parts::{fabric, Parts, Taking};
use super::session::{Session, View};
use crate::fabric::plan::{self, Plan, TRANSFER_BYTES_MAX};
use crate::fabric::{record, FabricLun};
use crate::scsi::{self, LogicalUnit, Offload, Refusal};
use ended::Ended;
use playhead_initiator::{Event, Task};
use playhead_wire::iscsi::request::ScsiCommand;
use playhead_wire::scsi::{status, Command, Sense};
use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::Ordering;
use std::sync::Arc;
use tasks::Asking;

/// Task attributes (RFC 7143 11.3.1).
const ORDERED: u8 = 2;
const HEAD_OF_QUEUE: u8 = 3;

/// What goes to the array instead of what the host sent.
pub(super) struct Prepared {
    pub(super) cdb: [u8; 16],
    pub(super) data_out: Vec<u8>,
    pub(super) parts: Parts,
    /// Bytes that do not have to cross the wire, if it ends in GOOD.
    pub(super) saved_bytes: u64,
}

/// A command on its way.
struct Forwarded {
    asked: Asked,
    view: View,
    plan: Plan,
    /// Operation code.
    code: u8,
    link: usize,
    /// Bytes of data in either direction that it may hold.
    held_bytes: usize,
    write_bytes: u32,
    attribute: u8,
    /// What it changes, and keeps from being changed.
    parts: Parts,
    saved_bytes: u64,
    /// The command, until it is sent.
    task: Option<Task>,
    /// The nexus' tag, once it is; none again when nothing of it is at the array any more.
    tag: Option<u64>,
    /// The tag it was sent with.
    sent: Option<u64>,
    /// How it ended at the array, while what came of it is read back.
    ended: Option<Ended>,
    /// Ended by task management: the host hears nothing of it. What became of it at the array only its outcome tells.
    aborted: bool,
    /// The array has been asked to end it, because another session's reset should have.
    asked_to_end: bool,
    /// Whoever reset the unit waits for its end.
    fences: Vec<Fence>,
}

impl Forwarded {
    fn is_ordered(&self) -> bool {
        self.attribute == ORDERED
    }
}

/// What arrays do for this session.
#[derive(Default)]
pub(super) struct Forwarding {
    pub(super) links: Links,
    commands: HashMap<u64, Forwarded>,
    asking: HashMap<(usize, u64), Asking>,
    outcomes: HashMap<u32, u8>,
    /// What functions wait for, when the array has answered.
    fences: HashMap<u32, Vec<Fence>>,
    /// Commands that wait here, by their place.
    unsent: BTreeSet<u64>,
    /// Some of them may wait for their turn only.
    out_of_turn: bool,
    /// ORDERED commands.
    ordered: usize,
    held_bytes: usize,
    next: u64,
    events: Vec<(usize, Event)>,
}

impl Forwarding {
    /// Bytes of data that wait for arrays.
    pub(super) fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Whether a task on `unit` is under way.
    pub(super) fn any_on(&self, unit: &Arc<LogicalUnit>) -> bool {
        self.commands.values().any(|command| !command.aborted && Arc::ptr_eq(&command.view.unit, unit))
    }

    /// Whether a task of this tag is.
    pub(super) fn has(&self, itt: u32) -> bool {
        self.by_itt(itt).is_some()
    }

    fn by_itt(&self, itt: u32) -> Option<u64> {
        let mut all = self.commands.iter();
        all.find(|(_, command)| command.asked.itt == itt && !command.aborted).map(|(number, _)| *number)
    }
}

impl Session {
    /// Whether commands of `view` go to an array.
    pub(super) fn forwards(view: &View) -> bool {
        fabric(&view.unit).is_some()
    }

    pub(super) fn is_forwarded(&self, at: usize) -> bool {
        Session::forwards(&self.views[at])
    }

    /// What becomes of the command for the initiator of `view`; refusals of policy are counted.
    fn plan(view: &View, cdb: &[u8; 16]) -> Result<Plan, Sense> {
        if view.nexus.is_gone() || view.unit.is_retired() {
            return Err(Sense::LUN_NOT_SUPPORTED);
        }
        let offloads = view.nexus.offloads();
        let planned = plan::plan(cdb, offloads);
        if planned == Err(Sense::INVALID_OPCODE) {
            let action = (cdb[0] == 0x83 || cdb[0] == 0x84).then(|| u16::from(cdb[1] & 0x1f));
            if let Some(offload) = Offload::of_opcode(cdb[0], action) {
                view.nexus.rejected(offload);
            }
        }
        let planned = planned?;
        let read_only = view.unit.lun().read_only() || view.nexus.read_only();
        if read_only && matches!(planned, Plan::Change(_)) {
            return Err(Sense::WRITE_PROTECTED);
        }
        Ok(planned)
    }

    /// Takes a command on a LUN of an array; the immediate data is at `data_at`.
    pub(super) fn fabric_command(
        &mut self,
        at: usize,
        asked: &Asked,
        request: &ScsiCommand,
        (data_at, data_len): (usize, usize),
    ) {
        if let Ok(Command::ReportLuns { select, allocation_bytes }) = Command::parse(&request.cdb) {
            return self.report_luns(asked, select, allocation_bytes);
        }
        let view = self.views[at].clone();
        let place = self.forwarding.next;
        self.forwarding.next += 1;
        let asked = Asked { epoch: view.unit.epoch(&view.nexus), place, ..*asked };
        let refused = Session::plan(&view, &request.cdb).err();
        if let Some(sense) = refused.or_else(|| self.check_unsolicited(request, data_len).err()) {
            return self.check(at, &asked, &sense);
        }
        if request.expected_bytes > 0 && request.read && request.write {
            return self.check(at, &asked, &Sense::INVALID_INFORMATION_UNIT);
        }
        if request.expected_bytes > TRANSFER_BYTES_MAX {
            return self.check(at, &asked, &Sense::INVALID_FIELD_IN_CDB);
        }
        let wanted = if request.write { request.expected_bytes as usize } else { 0 };
        if data_len < wanted {
            // What the command means is looked at again when its data is there.
            return self.begin_transfer(
                at,
                Command::TestUnitReady,
                request,
                &asked,
                wanted,
                (data_at, data_len),
            );
        }
        let data = self.link.received.at(data_at, wanted).to_vec();
        self.forward(&view, request, &asked, Source::Owned(data));
    }

    /// Goes on with a command whose data is all there.
    pub(super) fn forward(&mut self, view: &View, request: &ScsiCommand, asked: &Asked, source: Source) {
        let data_out = match source {
            Source::Owned(data) => data,
            Source::Received(_) => Vec::new(),
        };
        let Some(lun) = fabric(&view.unit) else {
            return self.refuse_of(&view.unit, asked, Refusal::Check(Sense::LUN_NOT_SUPPORTED), 0);
        };
        let refuse = |sense| Refusal::Check(sense);
        let planned = match Session::plan(view, &request.cdb) {
            Ok(planned) => planned,
            Err(sense) => return self.refuse_of(&view.unit, asked, refuse(sense), 0),
        };
        let Prepared { cdb, data_out, parts, saved_bytes } =
            match self.prepare(view, &planned, request, data_out) {
                Ok(prepared) => prepared,
                Err(sense) => return self.refuse_of(&view.unit, asked, refuse(sense), 0),
            };
        let held_bytes = request.expected_bytes as usize;
        let most = self.shared.limits.session_bytes_max;
        if self.forwarding.held_bytes > 0 && self.forwarding.held_bytes + held_bytes > most {
            self.answers.ending(&asked.ending(status::TASK_SET_FULL, 0));
            return;
        }
        self.forwarding.held_bytes += held_bytes;
        self.shared.held_bytes.fetch_add(held_bytes, Ordering::Relaxed);
        let task = Task {
            lun: lun.address(),
            cdb,
            attribute: request.attribute,
            reads: request.read,
            writes: request.write && !(matches!(planned, Plan::Copy(_)) && data_out.is_empty()),
            read_bytes: if request.read { request.expected_bytes } else { 0 },
            write_bytes: match planned {
                Plan::Copy(_) => data_out.len() as u32,
                _ if request.write => request.expected_bytes,
                _ => 0,
            },
            data_out,
        };
        let link = self.forwarding.links.find(lun.array(), &self.port);
        let number = asked.place;
        let command = Forwarded {
            asked: *asked,
            view: view.clone(),
            plan: planned,
            code: request.cdb[0],
            link,
            held_bytes,
            write_bytes: task.write_bytes,
            attribute: request.attribute,
            parts,
            saved_bytes,
            task: Some(task),
            tag: None,
            sent: None,
            ended: None,
            aborted: false,
            asked_to_end: false,
            fences: Vec::new(),
        };
        self.forwarding.ordered += usize::from(command.is_ordered());
        self.forwarding.commands.insert(number, command);
        self.forwarding.unsent.insert(number);
        self.begin_forwarded(number);
    }

    /// What goes to the array, and what is to be taken before.
    fn prepare(
        &self,
        view: &View,
        planned: &Plan,
        request: &ScsiCommand,
        data_out: Vec<u8>,
    ) -> Result<Prepared, Sense> {
        let mut parts = Parts::default();
        match planned {
            Plan::Copy(command) => return self.prepare_copy(view, command, &request.cdb, &data_out),
            Plan::Change(command) => {
                if let Some(sense) = plan::goes_on_after_good(command, &data_out) {
                    return Err(sense);
                }
                let block_count = view.unit.lun().block_count();
                let extents = record::extents(command, &data_out, block_count)?;
                let zeros = fabric(&view.unit).is_some_and(FabricLun::unmapped_reads_zeros);
                let told = record::changes(command, &data_out, block_count, zeros).is_some();
                let payload_bytes =
                    told.then_some(if request.write { u64::from(request.expected_bytes) } else { 0 });
                parts = Parts::change(&view.unit, &extents, payload_bytes);
            }
            Plan::Pass
                if plan::changes_block_size(&request.cdb, &data_out, view.unit.lun().block_count()) =>
            {
                return Err(Sense::in_parameters(3));
            }
            Plan::Pass | Plan::Edit(_) | Plan::Flush { .. } => {}
        }
        Ok(Prepared { cdb: request.cdb, data_out, parts, saved_bytes: 0 })
    }

    /// Takes the extents of a command, if it has any, and sends it.
    pub(super) fn begin_forwarded(&mut self, number: u64) {
        if self.has_to_wait(number) {
            self.forwarding.out_of_turn = true;
            return;
        }
        let Some(command) =
            self.forwarding.commands.get_mut(&number).filter(|command| command.task.is_some())
        else {
            return; // aborted meanwhile
        };
        if command.view.unit.epoch(&command.view.nexus) != command.asked.epoch {
            return self.end_forwarded(number);
        }
        let handle = Arc::clone(&self.handle);
        match command.parts.take(move || handle.outbox.push(Message::Forward(number))) {
            Taking::Done => {}
            Taking::Waits => return,
            Taking::Refused(error) => {
                let sense = scsi::sense_of_write(&error);
                if let Some(mut command) = self.take_forwarded(number) {
                    command.parts.let_go();
                    self.refuse_of(&command.view.unit, &command.asked, Refusal::Check(sense), 0);
                }
                return;
            }
        }
        let Some(link) = self.forwarding.links.get(command.link) else {
            return;
        };
        if let Some(task) = command.task.take() {
            let tag = link.nexus.submit(task);
            (command.tag, command.sent) = (Some(tag), Some(tag));
            link.numbers.insert(tag, number);
            self.forwarding.unsent.remove(&number);
        }
    }

    /// Whether a command has to be sent after one that came before it: that one waits here, its data is yet to come, or it is recorded later
    /// than what the array executes after it.
    fn has_to_wait(&self, number: u64) -> bool {
        let Some(command) = self.forwarding.commands.get(&number) else {
            return false;
        };
        if command.attribute == HEAD_OF_QUEUE {
            return false;
        }
        let unit = &command.view.unit;
        let in_order = |attribute: u8| command.is_ordered() || attribute == ORDERED;
        let waits = |(at, other): (&u64, &Forwarded)| {
            *at < number
                && in_order(other.attribute)
                && !other.aborted
                && (other.task.is_some() || other.ended.is_some() || other.parts.to_read_back())
                && Arc::ptr_eq(&other.view.unit, unit)
        };
        // As a rule there is none to look for.
        (self.forwarding.ordered > 0 && self.forwarding.commands.iter().any(waits))
            || self.transfers.any_before(unit, number, in_order)
    }

    /// Sends what was waited with, and what is to be sent.
    pub(super) fn send_forwarded(&mut self) {
        // As a rule nobody waits, and hardly ever for his turn.
        if self.forwarding.out_of_turn {
            self.forwarding.out_of_turn = false;
            let waiting: Vec<u64> = self.forwarding.unsent.iter().copied().collect();
            waiting.into_iter().for_each(|number| self.begin_forwarded(number));
        }
        self.forwarding.links.send();
    }

    fn take_forwarded(&mut self, number: u64) -> Option<Forwarded> {
        let command = self.forwarding.commands.remove(&number)?;
        self.forwarding.unsent.remove(&number);
        self.forwarding.ordered -= usize::from(command.is_ordered());
        self.forwarding.held_bytes -= command.held_bytes;
        self.shared.held_bytes.fetch_sub(command.held_bytes, Ordering::Relaxed);
        Some(command)
    }

    /// Takes a command back that is not over after all.
    fn keep_forwarded(&mut self, number: u64, mut command: Forwarded) {
        command.tag = None;
        // Its data is gone.
        command.held_bytes = 0;
        self.forwarding.ordered += usize::from(command.is_ordered());
        self.forwarding.commands.insert(number, command);
    }

    /// Does what arrays are ready for, and answers what they have answered.
    pub(super) fn pump_forwarding(&mut self) {
        if self.forwarding.links.is_empty() {
            return;
        }
        let mut events = std::mem::take(&mut self.forwarding.events);
        self.forwarding.links.progress(&mut events);
        for (at, event) in events.drain(..) {
            if let Some(link) = self.forwarding.links.get(at) {
                link.note(&event);
            }
            match event {
                Event::Done(done) => self.forwarded(at, done),
                Event::Managed { tag, response } => self.array_managed(at, tag, response),
                Event::Up(_) | Event::Down(_) | Event::Text(_) => {}
            }
        }
        self.forwarding.events = events;
        self.end_stale();
    }

    /// The session ends: what it has at arrays may be executed yet.
    pub(super) fn abandon_forwarded(&mut self) {
        let numbers: Vec<u64> = self.forwarding.commands.keys().copied().collect();
        for number in numbers {
            let Some(mut command) = self.take_forwarded(number) else {
                continue;
            };
            if command.tag.is_none() {
                command.parts.let_go();
            } else {
                command.parts.doubt(self.forwarding.links.get(command.link).map(|link| &*link));
            }
        }
        self.forwarding.links = Links::default();
    }
}
