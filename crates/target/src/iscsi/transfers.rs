//! Data that comes in several PDUs: unsolicited Data-Out, and R2T with what it asks for (RFC 7143 4.2.5, 11.7, 11.8).

use super::commands::{Asked, Source};
use super::session::{Session, View};
use crate::scsi::LogicalUnit;
use playhead_wire::iscsi::request::{DataOut, ScsiCommand};
use playhead_wire::iscsi::response::Response;
use playhead_wire::iscsi::RESERVED_TAG;
use playhead_wire::scsi::{status, Command, Sense};
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

/// Most buffers kept for reuse while a session is busy, and the largest that is.
const SPARE_MAX: usize = 16;
const SPARE_BYTES_MAX: usize = 1 << 20;

/// One R2T that is not answered in full.
struct Asking {
    ttt: u32,
    /// Where its data ends.
    end: usize,
}

/// A command that waits for data.
struct Transfer {
    view: View,
    command: Command,
    asked: Asked,
    request: ScsiCommand,
    /// Bytes the command needs of what was announced.
    wanted: usize,
    buffer: Vec<u8>,
    /// Where the next data lies; beyond `wanted` it is dropped.
    cursor: usize,
    /// Unsolicited Data-Out is still to come, up to this end.
    unsolicited_end: Option<usize>,
    next_data_sn: u32,
    asking: VecDeque<Asking>,
    /// Where the next R2T starts.
    next_asked: usize,
    r2t_sn: u32,
}

/// What became of a Data-Out.
enum Step {
    /// More is to come.
    More,
    /// All is there.
    Whole,
    /// The sequence is broken.
    Broken(Sense),
}

/// All commands of a session that wait for data.
#[derive(Default)]
pub(super) struct Transfers {
    by_itt: HashMap<u32, Transfer>,
    bytes: usize,
    last_tag: u32,
    /// Buffers of writes that are done, for the next ones: fresh memory costs a page fault every 4 KiB.
    spare: Vec<Vec<u8>>,
}

impl Transfers {
    /// A Target Transfer Tag, never the reserved one.
    pub(super) fn next_tag(&mut self) -> u32 {
        self.last_tag = self.last_tag.wrapping_add(1) & 0x7fff_ffff;
        self.last_tag
    }

    /// Whether a task on `unit` waits.
    pub(super) fn any_on(&self, unit: &Arc<LogicalUnit>) -> bool {
        self.by_itt.values().any(|transfer| Arc::ptr_eq(&transfer.view.unit, unit))
    }

    /// Whether one waits on `unit` that came before `place` and has an attribute of which that is true.
    pub(super) fn any_before(
        &self,
        unit: &Arc<LogicalUnit>,
        place: u64,
        attribute: impl Fn(u8) -> bool,
    ) -> bool {
        let before =
            |transfer: &&Transfer| transfer.asked.place < place && Arc::ptr_eq(&transfer.view.unit, unit);
        self.by_itt.values().filter(before).any(|transfer| attribute(transfer.request.attribute))
    }

    pub(super) fn has(&self, itt: u32) -> bool {
        !self.by_itt.is_empty() && self.by_itt.contains_key(&itt)
    }

    /// An empty buffer for `len` bytes.
    fn buffer(&mut self, len: usize) -> Vec<u8> {
        match self.spare.pop() {
            Some(mut spare) => {
                spare.clear();
                spare.reserve_exact(len);
                spare
            }
            // The capacity is only address space until data comes.
            None => Vec::with_capacity(len),
        }
    }

    /// Keeps a buffer that is no longer needed.
    pub(super) fn recycle(&mut self, buffer: Vec<u8>) {
        if self.spare.len() < SPARE_MAX && buffer.capacity() <= SPARE_BYTES_MAX {
            self.spare.push(buffer);
        }
    }

    /// Gives unused memory back.
    pub(super) fn release(&mut self) {
        self.spare = Vec::new();
    }

    fn remove(&mut self, itt: u32, held: &AtomicUsize) -> Option<Transfer> {
        let transfer = self.by_itt.remove(&itt)?;
        self.bytes -= transfer.wanted;
        held.fetch_sub(transfer.wanted, Ordering::Relaxed);
        Some(transfer)
    }

    /// Forgets everything, at the end of the session.
    pub(super) fn clear(&mut self, held: &AtomicUsize) {
        held.fetch_sub(self.bytes, Ordering::Relaxed);
        self.bytes = 0;
        self.by_itt.clear();
    }
}

impl Transfer {
    /// Takes one Data-Out. Order is promised (DataPDUInOrder, DataSequenceInOrder), so anything out of place breaks the sequence.
    fn take(&mut self, request: &DataOut, data: &[u8]) -> Step {
        let end = if request.ttt == RESERVED_TAG {
            self.unsolicited_end
        } else {
            match self.asking.front() {
                Some(asking) if asking.ttt == request.ttt => Some(asking.end),
                _ => None,
            }
        };
        let Some(end) = end else {
            return Step::Broken(Sense::UNEXPECTED_UNSOLICITED_DATA);
        };
        if request.offset_bytes as usize != self.cursor || request.data_sn != self.next_data_sn {
            return Step::Broken(Sense::PROTOCOL_SERVICE_CRC);
        }
        let reached = self.cursor + data.len();
        if reached > end {
            return Step::Broken(Sense::UNEXPECTED_UNSOLICITED_DATA);
        }
        let useful = self.wanted.saturating_sub(self.cursor).min(data.len());
        self.buffer.extend_from_slice(&data[..useful]);
        self.cursor = reached;
        self.next_data_sn = self.next_data_sn.wrapping_add(1);
        if request.is_final {
            self.next_data_sn = 0;
            if request.ttt == RESERVED_TAG {
                self.unsolicited_end = None;
                self.next_asked = reached;
            } else if reached < end {
                return Step::Broken(Sense::NOT_ENOUGH_UNSOLICITED_DATA);
            } else {
                self.asking.pop_front();
            }
        } else if reached == end && request.ttt != RESERVED_TAG {
            return Step::Broken(Sense::PROTOCOL_SERVICE_CRC);
        }
        if self.unsolicited_end.is_none() && self.cursor >= self.wanted {
            Step::Whole
        } else {
            Step::More
        }
    }
}

impl Session {
    /// Starts gathering `wanted` bytes, of which `data_len` at `data_at` came with the command.
    pub(super) fn begin_transfer(
        &mut self,
        at: usize,
        command: Command,
        request: &ScsiCommand,
        asked: &Asked,
        wanted: usize,
        (data_at, data_len): (usize, usize),
    ) {
        let limits = &self.shared.limits;
        let held = &self.shared.held_bytes;
        let in_all = held.fetch_add(wanted, Ordering::Relaxed) + wanted;
        if self.transfers.bytes + self.forwarding.held_bytes() + wanted > limits.session_bytes_max
            || in_all > limits.server_bytes_max
            || self.transfers.by_itt.len() >= 2 * limits.tasks_max as usize
        {
            held.fetch_sub(wanted, Ordering::Relaxed);
            let status = if self.transfers.by_itt.is_empty() { status::BUSY } else { status::TASK_SET_FULL };
            self.answers.ending(&asked.ending(status, 0));
            return;
        }
        self.transfers.bytes += wanted;
        let view = self.views[at].clone();
        let mut buffer = self.transfers.buffer(wanted);
        buffer.extend_from_slice(self.link.received.at(data_at, data_len));
        let first_burst = self.parameters.first_burst_bytes;
        let unsolicited_end = (!request.is_final).then(|| first_burst.min(request.expected_bytes) as usize);
        let transfer = Transfer {
            view,
            command,
            asked: *asked,
            request: *request,
            wanted,
            buffer,
            cursor: data_len,
            unsolicited_end,
            next_data_sn: 0,
            asking: VecDeque::new(),
            next_asked: data_len,
            r2t_sn: 0,
        };
        self.transfers.by_itt.insert(request.itt, transfer);
        self.ask_for_more(request.itt);
    }

    /// Sends the R2Ts that may be sent.
    fn ask_for_more(&mut self, itt: u32) {
        let max_burst = self.parameters.max_burst_bytes as usize;
        let most = self.parameters.max_outstanding_r2t as usize;
        loop {
            let ttt = self.transfers.next_tag();
            let Some(transfer) = self.transfers.by_itt.get_mut(&itt) else {
                return;
            };
            if transfer.unsolicited_end.is_some()
                || transfer.asking.len() >= most
                || transfer.next_asked >= transfer.wanted
            {
                return;
            }
            let desired = max_burst.min(transfer.wanted - transfer.next_asked);
            let r2t = Response::R2t {
                lun: transfer.request.lun,
                itt,
                ttt,
                r2t_sn: transfer.r2t_sn,
                offset_bytes: transfer.next_asked as u32,
                desired_bytes: desired as u32,
            };
            transfer.next_asked += desired;
            transfer.r2t_sn += 1;
            let end = transfer.next_asked;
            transfer.asking.push_back(Asking { ttt, end });
            self.answers.pdu(&r2t, &[], false);
        }
    }

    /// Takes a Data-Out. One for a task that is not there belongs to an aborted or refused one and is ignored.
    pub(super) fn data_out(&mut self, request: &DataOut, data_at: usize, data_len: usize) {
        self.forget_stale(request.itt);
        let Some(transfer) = self.transfers.by_itt.get_mut(&request.itt) else {
            return;
        };
        let data = self.link.received.at(data_at, data_len);
        match transfer.take(request, data) {
            Step::More => self.ask_for_more(request.itt),
            Step::Whole => self.complete(request.itt),
            Step::Broken(sense) => {
                let removed = self.transfers.remove(request.itt, &self.shared.held_bytes);
                if let Some(transfer) = removed {
                    let mut ending = transfer.asked.ending(status::CHECK_CONDITION, transfer.cursor as u64);
                    ending.exp_data_sn = transfer.r2t_sn;
                    let format = transfer.view.unit.settings().descriptor_sense;
                    self.answers.check(&ending, &sense, format);
                }
            }
        }
    }

    fn complete(&mut self, itt: u32) {
        let Some(mut transfer) = self.transfers.remove(itt, &self.shared.held_bytes) else {
            return;
        };
        transfer.asked.r2ts = transfer.r2t_sn;
        self.follow_views();
        let view = &transfer.view;
        if view.unit.epoch(&view.nexus) != transfer.asked.epoch {
            // Ended by a reset or by another initiator: no answer (SAM-5 5.6, TAS=0).
            self.answers.finish(transfer.asked.immediate);
            return;
        }
        if Session::forwards(view) {
            let source = Source::Owned(transfer.buffer);
            return self.forward(&transfer.view, &transfer.request, &transfer.asked, source);
        }
        if let Err(refusal) = view.unit.readmit(&view.nexus, &transfer.command) {
            let unit = Arc::clone(&view.unit);
            self.refuse_of(&unit, &transfer.asked, refusal, 0);
            return;
        }
        let bytes = transfer.buffer.len();
        self.run_gathered(
            &transfer.view,
            &transfer.command,
            &transfer.asked,
            Source::Owned(transfer.buffer),
            bytes,
        );
    }

    /// Drops a task of this tag that someone else ended, so that its tag may be used again.
    pub(super) fn forget_stale(&mut self, itt: u32) {
        if let Some(transfer) = self.transfers.by_itt.get(&itt) {
            if transfer.view.unit.epoch(&transfer.view.nexus) != transfer.asked.epoch {
                self.abort_transfer(itt);
            }
        }
    }

    /// Ends a waiting task without an answer. False: there is none.
    pub(super) fn abort_transfer(&mut self, itt: u32) -> bool {
        let removed = self.transfers.remove(itt, &self.shared.held_bytes);
        if let Some(transfer) = &removed {
            self.answers.finish(transfer.asked.immediate);
        }
        removed.is_some()
    }

    /// Ends the waiting tasks of the chosen units.
    pub(super) fn abort_transfers(&mut self, chosen: impl Fn(&Arc<LogicalUnit>) -> bool) {
        let chosen: Vec<u32> = self
            .transfers
            .by_itt
            .iter()
            .filter(|(_, transfer)| chosen(&transfer.view.unit))
            .map(|(itt, _)| *itt)
            .collect();
        for itt in chosen {
            self.abort_transfer(itt);
        }
    }
}
