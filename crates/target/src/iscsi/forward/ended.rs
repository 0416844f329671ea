//! What becomes of a forwarded command that the array has ended, or that was lost: the change is recorded or read back, and the host is answered.

use super::Forwarded;
use crate::fabric::plan::{self, Plan};
use crate::fabric::{copy, edit, record, FabricLun};
use crate::iscsi::answers::{Answers, Ending};
use crate::iscsi::outbox::Event as Message;
use crate::iscsi::parts::{fabric, Reading};
use crate::iscsi::session::Session;
use crate::lun::LunError;
use crate::scsi::{self, Offload, Refusal};
use playhead_initiator::{Done, Outcome};
use playhead_wire::iscsi::response::{DataIn, Residual, Response};
use playhead_wire::scsi::{status, Command, Sense};
use std::sync::atomic::Ordering;
use std::sync::Arc;

/// What the host is answered.
pub(super) struct Ended {
    ending: Ending,
    sense: Vec<u8>,
    /// Once the journal is durable, which it is not asked for yet.
    to_flush: bool,
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
    /// A forwarded command is over.
    pub(super) fn forwarded(&mut self, at: usize, done: Done) {
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
            command.ended = Some(Ended { ending, sense, to_flush: false });
            return self.flush_forwarded(number, command);
        }
        self.answers.pass_on(&ending, &sense, &data_in);
        if to_flush {
            self.start_flush(&view, Vec::new());
        }
        if let Some(link) = self.forwarding.links.get(command.link) {
            link.nexus.recycle(data_in);
        }
    }

    /// Has a command answered when the journal is durable.
    fn flush_forwarded(&mut self, number: u64, command: Forwarded) {
        let (unit, handle) = (Arc::clone(&command.view.unit), Arc::clone(&self.handle));
        self.keep_forwarded(number, command);
        unit.lun().flush(Box::new(move |result| {
            handle.outbox.push(Message::Settled(number, result.err()));
        }));
    }

    /// What a command came to has been read back, or is durable: its host is answered, unless somebody has ended it meanwhile.
    pub(in crate::iscsi) fn settled(&mut self, number: u64, failed: Option<LunError>) {
        let Some(ended) = self.forwarding.commands.get_mut(&number).and_then(|command| command.ended.take())
        else {
            return;
        };
        let Some(mut command) = self.take_forwarded(number) else {
            return;
        };
        if let Some(error) = failed {
            let (sense, moved) = (scsi::sense_of_write(&error), u64::from(command.write_bytes));
            self.refuse_of(&command.view.unit, &command.asked, Refusal::Check(sense), moved);
        } else if ended.to_flush {
            command.ended = Some(Ended { to_flush: false, ..ended });
            self.flush_forwarded(number, command);
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
        let good = ending.status == status::GOOD;
        let written = if good { u64::from(command.write_bytes) } else { 0 };
        let blocks = command.parts.changed_blocks();
        match Offload::of(change) {
            // A lock that is somebody else's was looked at all the same.
            Some(Offload::Ats) if good || plan::is_miscompare(ending.status, sense) => {
                view.nexus.served(Offload::Ats, 0);
            }
            Some(offload) if good && offload != Offload::Ats => {
                let saved = (blocks * crate::lun::BLOCK_BYTES as u64).saturating_sub(written);
                view.nexus.served(offload, saved);
            }
            _ => {}
        }
        if !good {
            if plan::changed_nothing(change, ending.status, sense) {
                command.parts.let_go();
            } else {
                command.parts.unknown();
            }
            return Ok(None);
        }
        if blocks == 0 {
            return Ok(None);
        }
        self.handle.written_bytes.fetch_add(written, Ordering::Relaxed);
        view.unit.count_written(&view.nexus, written);
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
}
