//! SCSI commands of a session: checks, the batch of writes, and everything that is executed at once.

use super::answers::Ending;
use super::connection::Ended;
use super::jobs::SessionReach;
use super::session::{Order, Session, View};
use crate::lun::{Change, LunError, BLOCK_BYTES};
use crate::scsi::{self, Attention, Done, Refusal};
use playhead_wire::iscsi::bhs::BHS_LEN;
use playhead_wire::iscsi::request::ScsiCommand;
use playhead_wire::iscsi::response::{reject, Residual};
use playhead_wire::iscsi::RESERVED_TAG;
use playhead_wire::scsi::cdb::Blocks;
use playhead_wire::scsi::{status, Command, Sense};
use std::sync::atomic::Ordering;
use std::sync::Arc;

/// A batch larger than this is submitted before it grows further.
const BATCH_BYTES_MAX: usize = 512 << 10;
const BATCH_WRITES_MAX: usize = 256;

/// Where the data of a command lies.
#[derive(Debug)]
pub(super) enum Source {
    /// In the receive buffer, at this position.
    Received(usize),
    /// Gathered from several PDUs.
    Owned(Vec<u8>),
}

/// A write that waits for its batch.
struct Write {
    lba: u64,
    source: Source,
    bytes: usize,
    fua: bool,
    ending: Ending,
}

/// Consecutive writes to one unit.
#[derive(Default)]
pub(super) struct Batch {
    view: Option<View>,
    /// The epoch of them all.
    epoch: u32,
    writes: Vec<Write>,
    bytes: usize,
}

/// Commands that wait for one flush.
pub(super) struct Flushing {
    pub(super) view: View,
    pub(super) epoch: u32,
    pub(super) endings: Vec<Ending>,
}

/// A command on its way: what its answer needs to know of the request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    pub(super) itt: u32,
    pub(super) immediate: bool,
    /// R bit.
    pub(super) read: bool,
    /// Expected Data Transfer Length.
    pub(super) expected_bytes: u32,
    /// The epoch of nexus and unit in which it came.
    pub(super) epoch: u32,
    /// Its place among the commands for arrays.
    pub(super) place: u64,
    /// R2Ts that were sent for it.
    pub(super) r2ts: u32,
}

impl Asked {
    pub(super) fn of(command: &ScsiCommand) -> Asked {
        Asked {
            itt: command.itt,
            immediate: command.immediate,
            read: command.read,
            expected_bytes: command.expected_bytes,
            epoch: 0,
            place: 0,
            r2ts: 0,
        }
    }

    /// An ending after `moved_bytes` of data.
    pub(super) fn ending(&self, status: u8, moved_bytes: u64) -> Ending {
        Ending {
            itt: self.itt,
            immediate: self.immediate,
            status,
            residual: Residual::of(self.expected_bytes, moved_bytes),
            exp_data_sn: self.r2ts,
        }
    }
}

/// What is wrong with announcing `announced` bytes for a command that needs `needed`, if anything is. Less than a READ or a plain
/// WRITE needs is a shorter transfer, in whole blocks; for others it would be another operation.
fn wrong_length(command: &Command, announced: u64, needed: u64) -> Option<Sense> {
    if command.list_bytes().is_some_and(|list| announced < u64::from(list)) {
        return Some(Sense::PARAMETER_LIST_LENGTH);
    }
    if matches!(command, Command::CompareAndWrite(_)) && announced != needed {
        return Some(Sense::in_cdb(13, None)); // its count is of half the data, and ends at 255
    }
    let inexact = command.needs_exact_data() && announced != needed;
    let torn = matches!(command, Command::Write(_) | Command::WriteAndVerify { .. })
        && announced < needed
        && announced % BLOCK_BYTES as u64 != 0;
    (inexact || torn).then_some(Sense::TOO_LITTLE_ANNOUNCED)
}

impl Session {
    /// Takes a SCSI command whose immediate data is at `data_at` in the receive buffer.
    pub(super) fn scsi_command(
        &mut self,
        request: &ScsiCommand,
        data_at: usize,
        data_len: usize,
        bhs: &[u8; BHS_LEN],
    ) -> Result<(), Ended> {
        if self.order(request.immediate, request.cmd_sn, bhs)? == Order::Ignore {
            return Ok(());
        }
        if self.target.is_none() {
            self.reject(reject::PROTOCOL, bhs);
            return Ok(());
        }
        if request.itt == RESERVED_TAG {
            self.reject(reject::INVALID_FIELD, bhs);
            return Ok(());
        }
        self.forget_stale(request.itt);
        if self.has_task(request.itt) {
            self.reject(reject::TASK_IN_PROGRESS, bhs);
            return Ok(());
        }
        if !self.answers.begin(request.immediate) {
            self.reject(reject::IMMEDIATE, bhs);
            return Ok(());
        }
        self.handle.commands.fetch_add(1, Ordering::Relaxed);
        let mut asked = Asked::of(request);
        if request.attribute > 1 {
            // Ordered and head-of-queue tasks wait for what came before them.
            self.submit_batch();
        }
        let Some(at) = self.view(request.lun) else {
            self.without_unit(&asked, request);
            return Ok(());
        };
        if self.is_forwarded(at) {
            self.fabric_command(at, &asked, request, (data_at, data_len));
            return Ok(());
        }
        let command = match Command::parse(&request.cdb) {
            Ok(Command::ReportLuns { select, allocation_bytes }) => {
                self.report_luns(&asked, select, allocation_bytes);
                return Ok(());
            }
            Ok(command) => command,
            Err(sense) => {
                let view = &self.views[at];
                let first = view.unit.attention(&view.nexus);
                let sense = first.or(view.unit.barred_unread(&request.cdb, &sense)).unwrap_or(sense);
                self.check(at, &asked, &sense);
                return Ok(());
            }
        };
        let view = &self.views[at];
        // Before it is admitted: whatever ends its right to run after that changes the epoch.
        asked.epoch = view.unit.epoch(&view.nexus);
        if let Err(refusal) = view.unit.admit(&view.nexus, &command) {
            self.refuse(at, &asked, refusal);
            return Ok(());
        }
        if let Err(sense) = self.check_unsolicited(request, data_len) {
            self.check(at, &asked, &sense);
            return Ok(());
        }
        // No command moves data both ways.
        if request.expected_bytes > 0 && request.read && request.write {
            self.check(at, &asked, &Sense::INVALID_INFORMATION_UNIT);
            return Ok(());
        }
        // Data-out announced as data-in: GOOD, without a residual, would claim a change that was not captured.
        let needed = command.data_out_bytes(BLOCK_BYTES as u64);
        if request.expected_bytes > 0 && needed > 0 && !request.write {
            self.check(at, &asked, &Sense::INVALID_INFORMATION_UNIT);
            return Ok(());
        }
        if let Command::Read(blocks) = command {
            if self.batch_overlaps(at, &blocks) {
                self.submit_batch();
            }
            return self.start_read(at, &blocks, &asked);
        }
        let announced = if request.write { u64::from(request.expected_bytes) } else { 0 };
        if let Some(sense) = wrong_length(&command, announced, needed) {
            let view = self.views[at].clone();
            self.refuse_with(&view, &asked, Refusal::Check(sense), needed);
            return Ok(());
        }
        let wanted = needed.min(announced) as usize;
        if data_len < wanted {
            self.begin_transfer(at, command, request, &asked, wanted, (data_at, data_len));
            return Ok(());
        }
        let view = self.views[at].clone();
        self.run_gathered(&view, &command, &asked, Source::Received(data_at), wanted);
        Ok(())
    }

    /// Runs a command whose data is all there.
    pub(super) fn run_gathered(
        &mut self,
        view: &View,
        command: &Command,
        asked: &Asked,
        source: Source,
        bytes: usize,
    ) {
        match command {
            Command::Write(blocks) => self.add_write(view, blocks, asked, source, bytes),
            _ => self.execute(view, command, asked, &source, bytes),
        }
    }

    pub(super) fn check_unsolicited(&self, request: &ScsiCommand, data_len: usize) -> Result<(), Sense> {
        let unsolicited_data_out = request.write && !request.is_final;
        let most = self.parameters.first_burst_bytes.min(request.expected_bytes) as usize;
        if data_len > 0 && (!self.parameters.immediate_data || data_len > most || !request.write)
            || unsolicited_data_out && self.parameters.initial_r2t
        {
            return Err(Sense::UNEXPECTED_UNSOLICITED_DATA);
        }
        Ok(())
    }

    /// Puts a write into the batch; the answer follows when the batch is captured.
    fn add_write(&mut self, view: &View, blocks: &Blocks, asked: &Asked, source: Source, bytes: usize) {
        let needed = u64::from(blocks.count) * BLOCK_BYTES as u64;
        let ending = asked.ending(status::GOOD, needed);
        // If less was announced than the CDB says, whole blocks of it are written.
        let bytes = bytes - bytes % BLOCK_BYTES;
        let fua = view.unit.flushes(blocks.fua);
        if bytes == 0 {
            self.answers.ending(&ending);
            return;
        }
        let same_unit = self.batch.view.as_ref().is_some_and(|v| Arc::ptr_eq(&v.unit, &view.unit));
        if !same_unit
            || self.batch.epoch != asked.epoch
            || self.batch.bytes + bytes > BATCH_BYTES_MAX
            || self.batch.writes.len() >= BATCH_WRITES_MAX
        {
            self.submit_batch();
            self.batch.view = Some(view.clone());
            self.batch.epoch = asked.epoch;
        }
        self.batch.bytes += bytes;
        self.batch.writes.push(Write { lba: blocks.lba, source, bytes, fua, ending });
    }

    fn batch_overlaps(&self, at: usize, blocks: &Blocks) -> bool {
        let Some(view) = &self.batch.view else {
            return false;
        };
        let end = blocks.lba + u64::from(blocks.count);
        Arc::ptr_eq(&view.unit, &self.views[at].unit)
            && self
                .batch
                .writes
                .iter()
                .any(|write| write.lba < end && blocks.lba < write.lba + (write.bytes / BLOCK_BYTES) as u64)
    }

    /// Hands the batch to the LUN and words the answers.
    pub(super) fn submit_batch(&mut self) {
        let Some(view) = self.batch.view.take() else {
            return;
        };
        let mut writes = std::mem::take(&mut self.batch.writes);
        let Some(changing) = view.unit.changing(&view.nexus, self.batch.epoch) else {
            // Ended by a reset or by another initiator: no answer (SAM-5 5.6, TAS=0).
            for write in writes {
                self.answers.finish(write.ending.immediate);
            }
            self.batch.bytes = 0;
            return;
        };
        let received = &self.link.received;
        let changes: Vec<Change<'_>> = writes
            .iter()
            .map(|write| Change::Write {
                lba: write.lba,
                data: match &write.source {
                    Source::Received(position) => received.at(*position, write.bytes),
                    Source::Owned(bytes) => &bytes[..write.bytes],
                },
            })
            .collect();
        let lun = view.unit.lun();
        let mut results: Vec<Result<(), LunError>> = Vec::new();
        if let Err(error) = lun.submit(&changes) {
            if changes.len() == 1 {
                results.push(Err(error));
            } else {
                // One bad write must not fail its neighbours: each on its own.
                results.extend(
                    changes.iter().map(|change| lun.submit(std::slice::from_ref(change)).map(|_| ())),
                );
            }
        } else {
            self.handle.written_bytes.fetch_add(self.batch.bytes as u64, Ordering::Relaxed);
            view.unit.count_written(&view.nexus, self.batch.bytes as u64);
        }
        drop(changes);
        drop(changing);
        let descriptor_format = view.unit.settings().descriptor_sense;
        let mut to_flush = Vec::new();
        for (i, write) in writes.drain(..).enumerate() {
            if let Source::Owned(buffer) = write.source {
                self.transfers.recycle(buffer);
            }
            match results.get(i) {
                Some(Err(error)) => {
                    let sense = scsi::sense_of_write(error);
                    view.unit.count_failure(&sense);
                    self.answers.check(&write.ending, &sense, descriptor_format);
                }
                _ if write.fua => to_flush.push(write.ending),
                _ => self.answers.ending(&write.ending),
            }
        }
        self.batch.writes = writes;
        self.batch.bytes = 0;
        if !to_flush.is_empty() {
            self.start_flush(&view, to_flush);
        }
    }

    /// Has the commands of `endings` end when all that was captured so far is safe.
    pub(super) fn start_flush(&mut self, view: &View, endings: Vec<Ending>) {
        use super::outbox::Event;
        let number = self.next_flush;
        self.next_flush += 1;
        let flushing = Flushing { view: view.clone(), epoch: view.unit.epoch(&view.nexus), endings };
        self.flushing.insert(number, flushing);
        let handle = Arc::clone(&self.handle);
        view.unit.lun().flush(Box::new(move |result| {
            handle.outbox.push(Event::Flushed(number, result));
        }));
    }

    /// A flush is over: its commands end, unless they were aborted meanwhile.
    pub(super) fn flushed(&mut self, number: u64, result: Result<(), LunError>) {
        let Some(flushing) = self.flushing.remove(&number) else {
            return;
        };
        let view = &flushing.view;
        let alive = view.unit.epoch(&view.nexus) == flushing.epoch;
        let descriptor_format = view.unit.settings().descriptor_sense;
        for ending in &flushing.endings {
            match &result {
                _ if !alive => self.answers.finish(ending.immediate),
                Ok(()) => self.answers.ending(ending),
                Err(error) => {
                    let sense = scsi::sense_of_write(error);
                    self.answers.check(ending, &sense, descriptor_format);
                }
            }
        }
    }

    fn execute(&mut self, view: &View, command: &Command, asked: &Asked, source: &Source, bytes: usize) {
        self.submit_batch();
        // What the command may reach is as the masking has it now.
        self.refresh_views();
        // Held while it runs. Commands that end others' tasks wait for those, so they are not among them.
        let mut changing = None;
        if command.changes_blocks() {
            changing = view.unit.changing(&view.nexus, asked.epoch);
            if changing.is_none() {
                self.answers.finish(asked.immediate);
                return;
            }
        }
        let mut data_in = std::mem::take(&mut self.data_in);
        data_in.clear();
        let data_out = match source {
            Source::Received(position) => self.link.received.at(*position, bytes),
            Source::Owned(owned) => &owned[..bytes],
        };
        let reach = SessionReach { shared: &self.shared, port: &self.port, views: &self.views };
        let result = view.unit.execute(&view.nexus, command, data_out, &mut data_in, &reach);
        drop(changing);
        let moved = command.data_out_bytes(BLOCK_BYTES as u64);
        match result {
            Ok(Done::AfterFlush) => {
                let ending = asked.ending(status::GOOD, moved);
                self.start_flush(view, vec![ending]);
            }
            Ok(Done::Job(job)) => self.start_job(view, command, asked, job, false),
            Ok(Done::Beside(job)) => self.start_job(view, command, asked, job, true),
            Ok(done) => {
                if matches!(done, Done::GoodAndFlush) {
                    self.start_flush(view, Vec::new());
                }
                if data_in.is_empty() {
                    self.answers.ending(&asked.ending(status::GOOD, moved));
                } else {
                    self.give(asked, &data_in);
                }
            }
            Err(refusal) => self.refuse_with(view, asked, refusal, moved),
        }
        self.data_in = data_in;
    }

    pub(super) fn give(&mut self, asked: &Asked, data: &[u8]) {
        let expected = if asked.read { asked.expected_bytes } else { 0 };
        self.answers.data(asked.itt, asked.immediate, expected, data);
    }

    /// Ends a command with CHECK CONDITION before any data moved.
    pub(super) fn check(&mut self, at: usize, asked: &Asked, sense: &Sense) {
        self.refuse(at, asked, Refusal::Check(*sense));
    }

    fn refuse(&mut self, at: usize, asked: &Asked, refusal: Refusal) {
        let view = self.views[at].clone();
        self.refuse_with(&view, asked, refusal, 0);
    }

    fn refuse_with(&mut self, view: &View, asked: &Asked, refusal: Refusal, moved_bytes: u64) {
        self.refuse_of(&view.unit, asked, refusal, moved_bytes);
    }

    pub(super) fn refuse_of(
        &mut self,
        unit: &scsi::LogicalUnit,
        asked: &Asked,
        refusal: Refusal,
        moved_bytes: u64,
    ) {
        match refusal {
            Refusal::Check(sense) => {
                unit.count_failure(&sense);
                let ending = asked.ending(status::CHECK_CONDITION, moved_bytes);
                let descriptor_format = unit.settings().descriptor_sense;
                self.answers.check(&ending, &sense, descriptor_format);
            }
            Refusal::Conflict => {
                let ending = asked.ending(status::RESERVATION_CONFLICT, moved_bytes);
                self.answers.ending(&ending);
            }
        }
    }

    pub(super) fn report_luns(&mut self, asked: &Asked, select: u8, allocation_bytes: u32) {
        let mut data_in = std::mem::take(&mut self.data_in);
        data_in.clear();
        let numbers = self.views.iter().map(|view| view.number);
        match scsi::report_luns(numbers, select, allocation_bytes, &mut data_in) {
            Ok(()) => {
                // Whoever reads the list knows of its change (SPC-4 6.33).
                for view in &self.views {
                    view.nexus.forget(Attention::ReportedLunsChanged);
                }
                self.give(asked, &data_in);
            }
            Err(refusal) => self.refuse_without_unit(asked, refusal),
        }
        self.data_in = data_in;
    }

    fn without_unit(&mut self, asked: &Asked, request: &ScsiCommand) {
        let command = match Command::parse(&request.cdb) {
            Ok(Command::ReportLuns { select, allocation_bytes }) => {
                return self.report_luns(asked, select, allocation_bytes)
            }
            Ok(command) => command,
            Err(_) => {
                let refusal = Refusal::Check(Sense::LUN_NOT_SUPPORTED);
                return self.refuse_without_unit(asked, refusal);
            }
        };
        let mut data_in = std::mem::take(&mut self.data_in);
        data_in.clear();
        match scsi::execute_without_unit(&command, &mut data_in) {
            Ok(()) => self.give(asked, &data_in),
            Err(refusal) => self.refuse_without_unit(asked, refusal),
        }
        self.data_in = data_in;
    }

    fn refuse_without_unit(&mut self, asked: &Asked, refusal: Refusal) {
        let ending = asked.ending(status::CHECK_CONDITION, 0);
        match refusal {
            Refusal::Check(sense) => self.answers.check(&ending, &sense, false),
            Refusal::Conflict => {
                self.answers.ending(&Ending { status: status::RESERVATION_CONFLICT, ..ending })
            }
        }
    }

    /// Whether any task is under way on `unit`.
    pub(super) fn has_task_on(&self, unit: &Arc<scsi::LogicalUnit>) -> bool {
        self.transfers.any_on(unit)
            || self.forwarding.any_on(unit)
            || self
                .working
                .values()
                .any(|working| working.itt() != RESERVED_TAG && Arc::ptr_eq(working.unit(), unit))
            || self.flushing.values().any(|f| !f.endings.is_empty() && Arc::ptr_eq(&f.view.unit, unit))
    }

    /// Whether a task of this tag is under way.
    pub(super) fn has_task(&self, itt: u32) -> bool {
        self.transfers.has(itt)
            || self.forwarding.has(itt)
            || self.working.values().any(|working| working.itt() == itt)
            || self.flushing.values().any(|f| f.endings.iter().any(|e| e.itt == itt))
    }
}
