//! Wording answers into the send buffer: counters, padding, digests, Data-In.

use super::buffers::SendBuffer;
use playhead_wire::iscsi::bhs::{self, padded, Bhs, Digests, BHS_LEN, DIGEST_LEN};
use playhead_wire::iscsi::response::{Counters, DataIn, Residual, Response};
use playhead_wire::iscsi::{digest, SerialNumber};
use playhead_wire::scsi::{status, Sense};

/// The target's side of a connection's counters, and where its PDUs go.
#[derive(Debug)]
pub(super) struct Answers {
    pub(super) out: SendBuffer,
    pub(super) digests: Digests,
    pub(super) stat_sn: SerialNumber,
    /// The next CmdSN expected.
    pub(super) exp_cmd_sn: SerialNumber,
    /// How far beyond it commands are accepted when none is under way.
    pub(super) window: u32,
    /// Non-immediate commands under way.
    pub(super) under_way: u32,
    /// Immediate ones.
    immediate_under_way: u32,
    /// Longest data segment the initiator takes, in bytes.
    pub(super) max_send_bytes: usize,
    /// Longest Data-In sequence, in bytes.
    pub(super) max_burst_bytes: usize,
    scratch: Vec<u8>,
}

/// How a SCSI command ended, besides its data.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ending {
    /// Initiator Task Tag.
    pub(super) itt: u32,
    /// Whether the command counted in the CmdSN window.
    pub(super) immediate: bool,
    /// SCSI status.
    pub(super) status: u8,
    /// What was left over.
    pub(super) residual: Residual,
    /// Data-In and R2T PDUs sent before.
    pub(super) exp_data_sn: u32,
}

impl Answers {
    pub(super) fn new(exp_cmd_sn: u32, window: u32) -> Answers {
        Answers {
            out: SendBuffer::default(),
            digests: Digests::default(),
            stat_sn: SerialNumber(1),
            exp_cmd_sn: SerialNumber(exp_cmd_sn),
            window,
            under_way: 0,
            immediate_under_way: 0,
            max_send_bytes: 8192,
            max_burst_bytes: 262_144,
            scratch: Vec::new(),
        }
    }

    /// The highest CmdSN acceptable. It never falls: a command that starts moves ExpCmdSN up by what it takes from the window.
    pub(super) fn max_cmd_sn(&self) -> SerialNumber {
        let free = self.window.saturating_sub(self.under_way);
        self.exp_cmd_sn.plus(free).minus(1)
    }

    fn counters(&self) -> Counters {
        Counters { stat_sn: self.stat_sn.0, exp_cmd_sn: self.exp_cmd_sn.0, max_cmd_sn: self.max_cmd_sn().0 }
    }

    /// Puts a PDU together. `numbered`: it carries a status and uses up a StatSN.
    pub(super) fn pdu(&mut self, response: &Response, data: &[u8], numbered: bool) {
        let header = response.emit(self.counters());
        if numbered {
            self.stat_sn = self.stat_sn.plus(1);
        }
        let digests = self.digests;
        let room = self.out.extend(pdu_len(data.len(), digests));
        let at = BHS_LEN + if digests.header { DIGEST_LEN } else { 0 };
        room[at..at + data.len()].copy_from_slice(data);
        seal(room, header, data.len(), digests);
    }

    /// A Data-In of `len` bytes, filled in place. On an error the PDU is taken back. A status ends the command, which was
    /// `immediate` or not.
    pub(super) fn data_in<E>(
        &mut self,
        data_in: DataIn,
        immediate: bool,
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let digests = self.digests;
        let total = pdu_len(len, digests);
        let at = BHS_LEN + if digests.header { DIGEST_LEN } else { 0 };
        let room = self.out.extend(total);
        if let Err(error) = fill(&mut room[at..at + len]) {
            self.out.retract(total);
            return Err(error);
        }
        if data_in.status.is_some() {
            let count = if immediate { &mut self.immediate_under_way } else { &mut self.under_way };
            *count = count.saturating_sub(1);
        }
        let free = self.window.saturating_sub(self.under_way);
        let counters = Counters {
            stat_sn: self.stat_sn.0,
            exp_cmd_sn: self.exp_cmd_sn.0,
            max_cmd_sn: self.exp_cmd_sn.plus(free).minus(1).0,
        };
        let header = Response::DataIn(data_in).emit(counters);
        if data_in.status.is_some() {
            self.stat_sn = self.stat_sn.plus(1);
        }
        seal(room, header, len, digests);
        Ok(())
    }

    /// The longest Data-In that may start at `offset` of `remaining` bytes, and whether it ends its sequence.
    pub(super) fn data_in_len(&self, offset: usize, remaining: usize) -> (usize, bool) {
        // Whole blocks, so that every PDU is one read of the LUN.
        let burst = self.max_burst_bytes & !511;
        let left_in_burst = burst - offset % burst;
        let len = remaining.min(self.max_send_bytes & !511).min(left_in_burst);
        (len, len == remaining || len == left_in_burst)
    }

    /// Takes a command out of the window: before its last PDU is worded, so that the PDU opens the window again.
    pub(super) fn finish(&mut self, immediate: bool) {
        let count = if immediate { &mut self.immediate_under_way } else { &mut self.under_way };
        *count = count.saturating_sub(1);
    }

    /// Counts a command that starts. False: there are as many immediate ones under way as the window has room for others.
    pub(super) fn begin(&mut self, immediate: bool) -> bool {
        let has_room = !immediate || self.immediate_under_way < self.window;
        if has_room {
            let count = if immediate { &mut self.immediate_under_way } else { &mut self.under_way };
            *count += 1;
        }
        has_room
    }

    /// A SCSI Response without sense data.
    pub(super) fn ending(&mut self, ending: &Ending) {
        self.finish(ending.immediate);
        self.pdu(&scsi_response(ending), &[], true);
    }

    /// A SCSI Response with CHECK CONDITION.
    pub(super) fn check(&mut self, ending: &Ending, sense: &Sense, descriptor_format: bool) {
        self.finish(ending.immediate);
        let mut data = std::mem::take(&mut self.scratch);
        data.clear();
        data.extend_from_slice(&[0, 0]);
        sense.emit(descriptor_format, &mut data);
        data[1] = (data.len() - 2) as u8;
        let ending = Ending { status: status::CHECK_CONDITION, ..*ending };
        self.pdu(&scsi_response(&ending), &data, true);
        self.scratch = data;
    }

    /// Data-In PDUs of `data`, the last one with GOOD. `expected_bytes` is what the initiator announced to take.
    pub(super) fn data(&mut self, itt: u32, immediate: bool, expected_bytes: u32, data: &[u8]) {
        let residual = Residual::of(expected_bytes, data.len() as u64);
        let total = data.len().min(expected_bytes as usize);
        if total == 0 {
            return self.ending(&Ending { itt, immediate, status: status::GOOD, residual, exp_data_sn: 0 });
        }
        let (mut offset, mut data_sn) = (0, 0);
        while offset < total {
            let (len, is_final) = self.data_in_len(offset, total - offset);
            let last = offset + len == total;
            let header = DataIn {
                is_final,
                status: last.then_some(status::GOOD),
                residual,
                itt,
                data_sn,
                offset_bytes: offset as u32,
            };
            let part = &data[offset..offset + len];
            let filled: Result<(), std::convert::Infallible> = self.data_in(header, immediate, len, |room| {
                room.copy_from_slice(part);
                Ok(())
            });
            let Ok(()) = filled;
            offset += len;
            data_sn += 1;
        }
    }
}

fn scsi_response(ending: &Ending) -> Response {
    Response::Scsi {
        response: 0,
        status: ending.status,
        itt: ending.itt,
        exp_data_sn: ending.exp_data_sn,
        residual: ending.residual,
    }
}

fn pdu_len(data_len: usize, digests: Digests) -> usize {
    let header = BHS_LEN + if digests.header { DIGEST_LEN } else { 0 };
    let digest = if digests.data && data_len > 0 { DIGEST_LEN } else { 0 };
    header + padded(data_len) + digest
}

/// Writes header, padding and digests around the data that is already in `room`.
fn seal(room: &mut [u8], mut header: Bhs, data_len: usize, digests: Digests) {
    bhs::set_data_length(&mut header, data_len);
    room[..BHS_LEN].copy_from_slice(&header);
    let mut at = BHS_LEN;
    if digests.header {
        room[at..at + DIGEST_LEN].copy_from_slice(&digest::of(&header));
        at += DIGEST_LEN;
    }
    if data_len == 0 {
        return;
    }
    let end = at + padded(data_len);
    room[at + data_len..end].fill(0);
    if digests.data {
        let crc = digest::of(&room[at..end]);
        room[end..end + DIGEST_LEN].copy_from_slice(&crc);
    }
}
