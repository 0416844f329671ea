//! Commands on LUNs of other arrays: forwarded, split and answered (see [`crate::fabric`]), on this session's own thread.
//!
//! A command goes through these steps, and is in [`Forwarding`] from the second on: its data is gathered, as any command's; if it changes
//! blocks its extents are taken (an overlapping change makes it wait, nobody else); it is sent; its status comes; the change is captured;
//! the host is answered. Whoever aborts it before it was sent ends it here; after that only the array can.

use super::answers::{Answers, Ending};
use super::commands::{Asked, Source};
use super::links::Links;
use super::outbox::Event as Message;
use super::parts::{fabric, Parts, Reading, Taking};
use super::session::{Session, View};
use super::tasks::{outcome, Answer};
use crate::fabric::plan::{self, Plan, TRANSFER_BYTES_MAX};
use crate::fabric::{copy, edit, record, FabricLun};
use crate::lun::LunError;
use crate::scsi::{self, LogicalUnit, Offload, Refusal};
use playhead_initiator::{Done, Event, Outcome, Task};
use playhead_wire::iscsi::request::{function, ScsiCommand};
use playhead_wire::iscsi::response::{DataIn, Residual, Response};
use playhead_wire::scsi::{status, Command, Sense};
use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::Arc;

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
}

/// What the host is answered.
struct Ended {
    ending: Ending,
    sense: Vec<u8>,
    /// Once the journal is durable.
    to_flush: bool,
}

/// Task management that the array has to answer.
struct Asking {
    /// The host's tag; none if no host has asked.
    itt: Option<u32>,
    function: u8,
    view: View,
    /// The command it is about, if it is one.
    number: Option<u64>,
}

/// What arrays do for this session.
#[derive(Default)]
pub(super) struct Forwarding {
    pub(super) links: Links,
    commands: HashMap<u64, Forwarded>,
    asking: HashMap<(usize, u64), Asking>,
    outcomes: HashMap<u32, u8>,
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

    /// Whether the task management request of this tag waits for an array.
    pub(super) fn is_managing(&self, itt: u32) -> bool {
        self.asking.values().any(|asking| asking.itt == Some(itt))
    }

    /// What the arrays answered to it.
    pub(super) fn outcome(&mut self, itt: u32) -> u8 {
        self.outcomes.remove(&itt).unwrap_or(outcome::COMPLETE)
    }
}

/// What a command that could not reach the array, or was lost on the way, ends with.
fn lost() -> Sense {
    // LOGICAL UNIT COMMUNICATION FAILURE, as ABORTED COMMAND: hosts try it again.
    Sense::new(playhead_wire::scsi::sense::Key::AbortedCommand, 0x0800)
}

impl Answers {
    /// A command's end as the array has it: data, then the status with its sense data.
    fn pass_on(&mut self, ending: &Ending, sense: &[u8], data: &[u8]) {
        let (mut offset, mut data_sn) = (0, 0);
        while offset < data.len() {
            let (len, is_final) = self.data_in_len(offset, data.len() - offset);
            let last = offset + len == data.len();
            let collapsed = last && ending.status == status::GOOD && sense.is_empty();
            let header = DataIn {
                is_final,
                status: collapsed.then_some(status::GOOD),
                residual: ending.residual,
                itt: ending.itt,
                data_sn,
                offset_bytes: offset as u32,
            };
            let part = &data[offset..offset + len];
            let filled: Result<(), std::convert::Infallible> =
                self.data_in(header, ending.immediate, len, |room| {
                    room.copy_from_slice(part);
                    Ok(())
                });
            let Ok(()) = filled;
            if collapsed {
                return;
            }
            offset += len;
            data_sn += 1;
        }
        self.finish(ending.immediate);
        let mut segment = Vec::new();
        if !sense.is_empty() {
            segment.extend_from_slice(&(sense.len() as u16).to_be_bytes());
            segment.extend_from_slice(sense);
        }
        let response = Response::Scsi {
            response: 0,
            status: ending.status,
            itt: ending.itt,
            exp_data_sn: ending.exp_data_sn + data_sn,
            residual: ending.residual,
        };
        self.pdu(&response, &segment, true);
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
        let asked = Asked { epoch: view.unit.epoch(&view.nexus), ..*asked };
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
        let number = self.forwarding.next;
        self.forwarding.next += 1;
        let command = Forwarded {
            asked: *asked,
            view: view.clone(),
            plan: planned,
            code: request.cdb[0],
            link,
            held_bytes,
            write_bytes: task.write_bytes,
            parts,
            saved_bytes,
            task: Some(task),
            tag: None,
            sent: None,
            ended: None,
            aborted: false,
            asked_to_end: false,
        };
        self.forwarding.commands.insert(number, command);
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
                let extents = record::extents(command, &data_out, view.unit.lun().block_count())?;
                let payload_bytes = if request.write { u64::from(request.expected_bytes) } else { 0 };
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
        let Some(command) =
            self.forwarding.commands.get_mut(&number).filter(|command| command.task.is_some())
        else {
            return; // aborted meanwhile
        };
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
        }
    }

    fn take_forwarded(&mut self, number: u64) -> Option<Forwarded> {
        let command = self.forwarding.commands.remove(&number)?;
        self.forwarding.held_bytes -= command.held_bytes;
        self.shared.held_bytes.fetch_sub(command.held_bytes, Ordering::Relaxed);
        Some(command)
    }

    /// Takes a command back that is not over after all.
    fn keep_forwarded(&mut self, number: u64, mut command: Forwarded) {
        command.tag = None;
        self.forwarding.held_bytes += command.held_bytes;
        self.shared.held_bytes.fetch_add(command.held_bytes, Ordering::Relaxed);
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

    /// A forwarded command is over.
    fn forwarded(&mut self, at: usize, done: Done) {
        let Some(link) = self.forwarding.links.get(at) else {
            return;
        };
        let may_wait = link.may_wait();
        let Some(number) = link.numbers.remove(&done.tag) else {
            return;
        };
        let Some(mut command) = self.take_forwarded(number) else {
            return;
        };
        let unit = Arc::clone(&command.view.unit);
        let Some(lun) = fabric(&unit) else {
            return;
        };
        match done.outcome {
            Outcome::NotSent(_) => {
                command.parts.let_go();
                if !command.aborted && may_wait {
                    self.answers.ending(&command.asked.ending(status::BUSY, 0));
                } else if !command.aborted {
                    self.refuse_of(&unit, &command.asked, Refusal::Check(lost()), 0);
                }
            }
            Outcome::Lost(_) => {
                // Also one that was aborted: the array has not said so.
                command.parts.doubt(self.forwarding.links.get(at).map(|link| &*link));
                if !command.aborted {
                    self.refuse_of(&unit, &command.asked, Refusal::Check(lost()), 0);
                }
            }
            Outcome::Ended(_) => {
                command.parts.unknown();
                if !command.aborted {
                    self.refuse_of(&unit, &command.asked, Refusal::Check(lost()), 0);
                }
            }
            Outcome::Status { status, sense, residual } => {
                let link = self.forwarding.links.get(at);
                if let Some(loss) =
                    link.and_then(|link| link.hear(lun.address(), command.code, status, &sense))
                {
                    lun.recorder().lost(loss);
                }
                let Done { data_in, data_out, .. } = done;
                let mut ending = command.asked.ending(status, 0);
                ending.residual = residual;
                self.status_of((number, command), lun, ending, sense, data_in, &data_out);
                self.transfers.recycle(data_out);
            }
        }
    }

    fn status_of(
        &mut self,
        (number, mut command): (u64, Forwarded),
        lun: &FabricLun,
        mut ending: Ending,
        sense: Vec<u8>,
        mut data_in: Vec<u8>,
        data_out: &[u8],
    ) {
        let view = command.view.clone();
        let good = ending.status == status::GOOD;
        let mut to_flush = false;
        let handle = Arc::clone(&self.handle);
        let reading = || Reading::new(&handle, number);
        let mut read_back = None;
        match command.plan {
            Plan::Change(_) | Plan::Copy(_) => {
                let recorded = match command.plan {
                    Plan::Change(change) => {
                        to_flush = good && record::is_durable(&change);
                        self.record(&mut command, &change, lun, (&ending, &sense), data_out, reading)
                    }
                    _ => self.record_copy(&mut command, &mut ending, &sense, reading),
                };
                match recorded {
                    Ok(reading) => read_back = reading,
                    Err(sense) => {
                        if !command.aborted {
                            let moved = u64::from(command.write_bytes);
                            self.refuse_of(&view.unit, &command.asked, Refusal::Check(sense), moved);
                        }
                        return;
                    }
                }
            }
            Plan::Flush { .. } => to_flush = good,
            Plan::Edit(what) if good => {
                let before = data_in.len();
                edit::edit(what, view.nexus.offloads(), lun.new_identity(), &mut data_in);
                if data_in.len() != before {
                    data_in.truncate(command.asked.expected_bytes as usize);
                    ending.residual = Residual::of(command.asked.expected_bytes, data_in.len() as u64);
                }
            }
            Plan::Pass | Plan::Edit(_) => {}
        }
        if !data_in.is_empty() {
            self.handle.read_bytes.fetch_add(data_in.len() as u64, Ordering::Relaxed);
            view.unit.count_read(&view.nexus, data_in.len() as u64);
        }
        if command.aborted {
            return;
        }
        if read_back.is_some() {
            // Whoever lets go of it last has the host answered.
            command.ended = Some(Ended { ending, sense, to_flush });
            self.keep_forwarded(number, command);
            return;
        }
        if to_flush && !matches!(command.plan, Plan::Flush { immediate: true }) {
            self.start_flush(&view, vec![ending]);
        } else {
            self.answers.pass_on(&ending, &sense, &data_in);
            if to_flush {
                self.start_flush(&view, Vec::new());
            }
        }
        if let Some(link) = self.forwarding.links.get(command.link) {
            link.nexus.recycle(data_in);
        }
    }

    /// What a command came to has been read back: its host is answered, unless somebody has ended it meanwhile.
    pub(super) fn answer_read_back(&mut self, number: u64, failed: Option<LunError>) {
        let Some(ended) = self.forwarding.commands.get_mut(&number).and_then(|command| command.ended.take())
        else {
            return;
        };
        let Some(command) = self.take_forwarded(number) else {
            return;
        };
        if let Some(error) = failed {
            let (sense, moved) = (scsi::sense_of_write(&error), u64::from(command.write_bytes));
            self.refuse_of(&command.view.unit, &command.asked, Refusal::Check(sense), moved);
        } else if ended.to_flush {
            self.start_flush(&command.view, vec![ended.ending]);
        } else {
            self.answers.pass_on(&ended.ending, &ended.sense, &[]);
        }
    }

    /// Records what became of a change, or has it read back: then the host is answered when nobody holds what is returned any more. An
    /// error is what the host is to be told instead of the array's status.
    fn record(
        &mut self,
        command: &mut Forwarded,
        change: &Command,
        lun: &FabricLun,
        (ending, sense): (&Ending, &[u8]),
        data_out: &[u8],
        reading: impl Fn() -> Arc<Reading>,
    ) -> Result<Option<Arc<Reading>>, Sense> {
        let view = &command.view;
        let recorder = lun.recorder();
        if ending.status != status::GOOD {
            if plan::changed_nothing(change, ending.status, sense) {
                command.parts.let_go();
            } else {
                command.parts.unknown();
            }
            return Ok(None);
        }
        let blocks = command.parts.changed_blocks();
        if blocks == 0 {
            return Ok(None);
        }
        let written = u64::from(command.write_bytes);
        self.handle.written_bytes.fetch_add(written, Ordering::Relaxed);
        view.unit.count_written(&view.nexus, written);
        if let Some(offload) = Offload::of(change) {
            let saved = (blocks * crate::lun::BLOCK_BYTES as u64).saturating_sub(written);
            view.nexus.served(offload, if offload == Offload::Ats { 0 } else { saved });
        }
        let block_count = view.unit.lun().block_count();
        let changes = record::changes(change, data_out, block_count, lun.unmapped_reads_zeros());
        // With a residual it took less than it was given, or wanted more.
        match changes.filter(|_| ending.residual == Residual::None) {
            Some(changes) => {
                let taken = command.parts.only();
                let captured = taken.map_or(Ok(()), |taken| recorder.capture(taken, &changes));
                captured.map(|()| None).map_err(|error| scsi::sense_of_write(&error))
            }
            None => {
                let reading = reading();
                command.parts.read_back(&reading);
                Ok(Some(reading))
            }
        }
    }

    /// As [`Session::record`], of an EXTENDED COPY.
    fn record_copy(
        &mut self,
        command: &mut Forwarded,
        ending: &mut Ending,
        sense: &[u8],
        reading: impl Fn() -> Arc<Reading>,
    ) -> Result<Option<Arc<Reading>>, Sense> {
        if ending.status != status::GOOD {
            if copy::never_begun(ending.status, sense) {
                command.parts.let_go();
            } else {
                command.parts.unknown();
            }
            return Ok(None);
        }
        let reading = reading();
        let took_all = ending.residual == Residual::None;
        // The list was ours: of the host's own all is used.
        let list_bytes = match command.plan {
            Plan::Copy(plan) => plan.list_bytes().unwrap_or(0),
            _ => command.write_bytes,
        };
        ending.residual = Residual::of(command.asked.expected_bytes, u64::from(list_bytes));
        if !took_all {
            command.parts.read_back(&reading);
            return Ok(Some(reading));
        }
        command.view.nexus.served(Offload::Xcopy, command.saved_bytes);
        let copied = command.parts.copied(&reading).map_err(|error| scsi::sense_of_write(&error));
        copied.map(|()| Some(reading))
    }

    /// Ends commands that another session's reset or CLEAR TASK SET has ended at the array.
    fn end_stale(&mut self) {
        let stale = |command: &Forwarded| {
            !command.aborted && command.view.unit.epoch(&command.view.nexus) != command.asked.epoch
        };
        let found: Vec<u64> =
            self.forwarding.commands.iter().filter(|(_, command)| stale(command)).map(|(n, _)| *n).collect();
        for number in found {
            match self.forwarding.commands.get(&number).map(|command| (command.tag, command.asked_to_end)) {
                Some((Some(tag), false)) => self.ask_to_end(number, tag),
                Some((Some(_), true)) | None => {}
                Some((None, _)) => self.end_forwarded(number),
            }
        }
    }

    /// Has the array end a command that it should have ended already. It may be none of those that the reset was about, and be
    /// executed yet: only the array knows.
    fn ask_to_end(&mut self, number: u64, tag: u64) {
        let Some(command) = self.forwarding.commands.get_mut(&number) else {
            return;
        };
        command.asked_to_end = true;
        let (view, at) = (command.view.clone(), command.link);
        let Some(address) = fabric(&view.unit).map(FabricLun::address) else {
            return;
        };
        let asked = self
            .forwarding
            .links
            .get(at)
            .and_then(|link| link.nexus.manage(function::ABORT_TASK, address, Some(tag)));
        // Otherwise its end has come already.
        if let Some(asked) = asked {
            let asking = Asking { itt: None, function: function::ABORT_TASK, view, number: Some(number) };
            self.forwarding.asking.insert((at, asked), asking);
        }
    }

    /// A command is over without an answer: it was not sent, or the array has confirmed its end.
    fn end_forwarded(&mut self, number: u64) {
        let Some(command) = self.forwarding.commands.get_mut(&number).filter(|command| !command.aborted)
        else {
            return;
        };
        command.aborted = true;
        self.answers.finish(command.asked.immediate);
        let (tag, link) = (command.tag, command.link);
        match (tag, self.forwarding.links.get(link)) {
            // Its end comes as any other.
            (Some(tag), Some(link)) => link.nexus.end_tasks(&[0; 8], Some(tag)),
            _ => {
                if let Some(mut command) = self.take_forwarded(number) {
                    command.parts.let_go();
                }
            }
        }
    }

    /// ABORT TASK of a forwarded command. `None`: there is none of this tag.
    pub(super) fn abort_forwarded(&mut self, itt: u32, referenced: u32) -> Option<Answer> {
        let number = self.forwarding.by_itt(referenced)?;
        let command = self.forwarding.commands.get(&number)?;
        let (tag, link, view) = (command.tag, command.link, command.view.clone());
        let address = fabric(&view.unit)?.address();
        let asked = match (tag, self.forwarding.links.get(link)) {
            (Some(tag), Some(link)) => link.nexus.manage(function::ABORT_TASK, address, Some(tag)),
            _ => None,
        };
        match asked {
            Some(tag) => {
                let (itt, number) = (Some(itt), Some(number));
                let asking = Asking { itt, function: function::ABORT_TASK, view, number };
                self.forwarding.asking.insert((link, tag), asking);
                Some(Answer::After(Vec::new(), Vec::new()))
            }
            // Nothing of it is at the array, or its end has come already.
            None => {
                self.end_forwarded(number);
                Some(Answer::Now(outcome::COMPLETE))
            }
        }
    }

    /// Passes a function about all tasks of a LUN, or the LUN itself, on to the array.
    pub(super) fn manage_array(&mut self, itt: u32, what: u8, view: &View) -> Answer {
        let Some(lun) = fabric(&view.unit) else {
            return Answer::Now(outcome::NO_LUN);
        };
        let waiting =
            |command: &Forwarded| command.tag.is_none() && Arc::ptr_eq(&command.view.unit, &view.unit);
        let unsent: Vec<u64> = self
            .forwarding
            .commands
            .iter()
            .filter(|(_, command)| waiting(command))
            .map(|(n, _)| *n)
            .collect();
        unsent.into_iter().for_each(|number| self.end_forwarded(number));
        let at = self.forwarding.links.find(lun.array(), &self.port);
        let asked = self.forwarding.links.get(at).and_then(|link| {
            link.nexus.start();
            link.nexus.manage(what, lun.address(), None)
        });
        match asked {
            Some(tag) => {
                let asking = Asking { itt: Some(itt), function: what, view: view.clone(), number: None };
                self.forwarding.asking.insert((at, tag), asking);
                Answer::After(Vec::new(), Vec::new())
            }
            // No task is at an array that has no session; but it is not reset either.
            None if what == function::ABORT_TASK_SET => Answer::Now(outcome::COMPLETE),
            None => Answer::Now(outcome::REJECTED),
        }
    }

    /// Has arrays reset every LUN of theirs that this session sees: a reset of our target is none of theirs.
    pub(super) fn reset_arrays(&mut self, itt: u32) {
        let views: Vec<View> = self.views.iter().filter(|view| Session::forwards(view)).cloned().collect();
        for view in views {
            let _ = self.manage_array(itt, function::LOGICAL_UNIT_RESET, &view);
        }
    }

    /// The array has answered a function.
    fn array_managed(&mut self, at: usize, tag: u64, response: u8) {
        let Some(asking) = self.forwarding.asking.remove(&(at, tag)) else {
            return;
        };
        // "No such task" to ABORT TASK: its status has come before, unless somebody else has ended it without a word.
        let lost = |number| self.forwarding.commands.get(&number).is_some_and(|command| !command.aborted);
        let is_lost = response == outcome::NO_TASK && asking.number.is_some_and(lost);
        let done = response == outcome::COMPLETE || is_lost;
        let told = if done { outcome::COMPLETE } else { response };
        if let Some(itt) = asking.itt {
            let worst = self.forwarding.outcomes.entry(itt).or_insert(told);
            *worst = (*worst).max(told);
        }
        if !done {
            return;
        }
        // What was sent after the function is none of its business, and may be executed.
        let of_unit = |command: &Forwarded| {
            Arc::ptr_eq(&command.view.unit, &asking.view.unit) && command.sent.is_some_and(|sent| sent < tag)
        };
        let ended: Vec<u64> = match asking.number {
            Some(number) => vec![number],
            None => {
                let commands = self.forwarding.commands.iter();
                commands.filter(|(_, command)| of_unit(command)).map(|(number, _)| *number).collect()
            }
        };
        ended.into_iter().for_each(|number| self.end_forwarded(number));
        let (unit, nexus) = (&asking.view.unit, &asking.view.nexus);
        let before = unit.epoch(nexus);
        match asking.function {
            function::LOGICAL_UNIT_RESET => unit.reset(),
            function::CLEAR_TASK_SET => unit.clear_task_set(nexus),
            _ => return,
        }
        // Our own later ones live on; if somebody else has ended tasks at the same time, they do not.
        let later = self.forwarding.commands.values_mut().filter(|command| {
            !command.aborted && Arc::ptr_eq(&command.view.unit, unit) && command.asked.epoch == before
        });
        later.for_each(|command| command.asked.epoch = before.wrapping_add(1));
        // Other sessions have tasks there that will have no answer.
        self.shared.registry.wake_all();
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
