//! One TCP connection in the full feature phase: commands out, data and statuses in, and the counters around them (RFC 7143 4.2.2).
//!
//! What the window does not let go waits in a queue here; everything that is sent stays in `tasks` until its status came. Owns the
//! socket, no thread and no clock: [`crate::Nexus`] calls it when the socket is ready.

use crate::buffers::{Progress, Received, Sending};
use crate::login::MAX_RECV_BYTES;
use crate::task::{Done, Outcome, Task};
use playhead_wire::iscsi::bhs::{self, padded, Bhs, Digests, Frame, BHS_LEN};
use playhead_wire::iscsi::negotiate::Parameters;
use playhead_wire::iscsi::request::{
    DataOut, LogoutRequest, NopOut, Request, ScsiCommand, TaskManagement, TextRequest,
};
use playhead_wire::iscsi::response::{Counters, DataIn, Residual, Response};
use playhead_wire::iscsi::{digest, SerialNumber, RESERVED_TAG};
use std::collections::{HashMap, VecDeque};
use std::net::TcpStream;

/// Longest sense data kept (SPC-4 4.5.2.1: 252 bytes).
const SENSE_MAX_BYTES: usize = 252;
/// Receives of one call of [`Connection::receive`], so that one socket does not starve the caller's others.
const RECEIVES_MAX: usize = 16;
/// Longest answer to a text request, in bytes.
const TEXT_MAX_BYTES: usize = 1 << 20;
/// Signs of life asked for that may wait to be sent: a target that asks for more and takes none would fill the memory.
const PONGS_MAX: usize = 1024;
/// Buffers kept for reuse.
const SPARE_MAX: usize = 8;
const SPARE_BYTES_MAX: usize = 1 << 20;

/// What a connection has to tell.
#[derive(Debug)]
pub(crate) enum Told {
    /// A command is over.
    Done(Done),
    /// A task management function was answered, with this response (RFC 7143 11.6.1).
    Managed { tag: u64, response: u8 },
    /// The whole answer to a text request.
    Text(Vec<u8>),
    /// The target asks to be left (RFC 7143 11.9.1, event 1).
    AskedToLeave,
    /// It will drop the connection.
    WillDrop,
    /// The logout is answered.
    LoggedOut,
}

/// Why a connection is over.
pub(crate) type Fault = String;

/// A command that was sent.
struct Sent {
    tag: u64,
    task: Task,
    data_in: Vec<u8>,
    cmd_sn: u32,
    data_sn: u32,
    /// Bytes of `data_out` that have gone.
    sent_bytes: usize,
}

pub(crate) struct Connection {
    pub(crate) socket: TcpStream,
    received: Received,
    out: Sending,
    digests: Digests,
    parameters: Parameters,
    cmd_sn: SerialNumber,
    max_cmd_sn: SerialNumber,
    exp_stat_sn: SerialNumber,
    next_itt: u32,
    waiting: VecDeque<(u64, Task)>,
    tasks: HashMap<u32, Sent>,
    managing: HashMap<u32, u64>,
    text: Vec<u8>,
    spare: Vec<Vec<u8>>,
    pinged: bool,
    /// Signs of life put together since everything was sent.
    pongs: usize,
    told: VecDeque<Told>,
    /// No new command is sent: the target asked to be left.
    draining: bool,
}

impl Connection {
    pub(crate) fn new(socket: TcpStream) -> Connection {
        Connection {
            socket,
            received: Received::default(),
            out: Sending::default(),
            digests: Digests::default(),
            parameters: Parameters::default(),
            cmd_sn: SerialNumber(1),
            max_cmd_sn: SerialNumber(1),
            exp_stat_sn: SerialNumber(0),
            next_itt: 1,
            waiting: VecDeque::new(),
            tasks: HashMap::new(),
            managing: HashMap::new(),
            text: Vec::new(),
            spare: Vec::new(),
            pinged: false,
            pongs: 0,
            told: VecDeque::new(),
            draining: false,
        }
    }

    /// The login is over: these hold from now on.
    pub(crate) fn enter_full_feature(&mut self, parameters: Parameters, digests: Digests) {
        self.parameters = parameters;
        self.digests = digests;
    }

    /// CmdSN and ExpStatSN, for login requests.
    pub(crate) fn numbers(&self) -> (u32, u32) {
        (self.cmd_sn.0, self.exp_stat_sn.0)
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.tasks.is_empty() && self.managing.is_empty() && self.waiting.is_empty()
    }

    pub(crate) fn is_pinged(&self) -> bool {
        self.pinged
    }

    pub(crate) fn unsent_bytes(&self) -> usize {
        self.out.len()
    }

    pub(crate) fn told(&mut self) -> Option<Told> {
        self.told.pop_front()
    }

    pub(crate) fn release(&mut self) {
        self.received.release();
        self.out.release();
        self.spare = Vec::new();
    }

    pub(crate) fn recycle(&mut self, mut buffer: Vec<u8>) {
        buffer.clear();
        if self.spare.len() < SPARE_MAX && (1..=SPARE_BYTES_MAX).contains(&buffer.capacity()) {
            self.spare.push(buffer);
        }
    }

    fn itt(&mut self) -> u32 {
        // Bounded by the number of tasks there are.
        loop {
            self.next_itt = self.next_itt.wrapping_add(1) & 0x7fff_ffff;
            if !self.tasks.contains_key(&self.next_itt) && !self.managing.contains_key(&self.next_itt) {
                return self.next_itt;
            }
        }
    }

    /// Puts one PDU together.
    pub(crate) fn pdu(&mut self, mut header: Bhs, data: &[u8]) {
        put_pdu(self.out.tail(), self.digests, &mut header, data);
    }

    /// Takes a command; it is sent when the window lets it.
    pub(crate) fn submit(&mut self, tag: u64, task: Task) {
        if self.draining || !self.waiting.is_empty() || self.max_cmd_sn.is_before(self.cmd_sn) {
            self.waiting.push_back((tag, task));
        } else {
            self.start(tag, task);
        }
    }

    /// Sends what waited, as far as the window goes.
    fn start_waiting(&mut self) {
        while !self.draining && !self.max_cmd_sn.is_before(self.cmd_sn) {
            let Some((tag, task)) = self.waiting.pop_front() else {
                return;
            };
            self.start(tag, task);
        }
    }

    fn start(&mut self, tag: u64, task: Task) {
        let itt = self.itt();
        let write = task.write_bytes > 0;
        let len = task.data_out.len().min(task.write_bytes as usize);
        let max_send = self.parameters.max_send_bytes as usize;
        let first_burst = (self.parameters.first_burst_bytes as usize).min(len);
        let immediate = if self.parameters.immediate_data { first_burst.min(max_send) } else { 0 };
        // Unsolicited Data-Out goes to the end of the first burst, or not at all.
        let unsolicited = if self.parameters.initial_r2t { immediate } else { first_burst.max(immediate) };
        let request = ScsiCommand {
            immediate: false,
            is_final: unsolicited == immediate,
            read: task.reads || task.read_bytes > 0,
            write: task.writes || write,
            attribute: task.attribute,
            lun: task.lun,
            itt,
            expected_bytes: if write { task.write_bytes } else { task.read_bytes },
            cmd_sn: self.cmd_sn.0,
            exp_stat_sn: self.exp_stat_sn.0,
            cdb: task.cdb,
        };
        let mut header = Request::ScsiCommand(request).emit();
        put_pdu(self.out.tail(), self.digests, &mut header, &task.data_out[..immediate]);
        if unsolicited > immediate {
            self.data_out(&task, itt, RESERVED_TAG, immediate, unsolicited);
        }
        let data_in = if task.read_bytes > 0 { self.spare.pop().unwrap_or_default() } else { Vec::new() };
        let sent = Sent { tag, task, data_in, cmd_sn: self.cmd_sn.0, data_sn: 0, sent_bytes: unsolicited };
        self.tasks.insert(itt, sent);
        self.cmd_sn = self.cmd_sn.plus(1);
    }

    /// One sequence of Data-Out PDUs.
    fn data_out(&mut self, task: &Task, itt: u32, ttt: u32, from: usize, to: usize) {
        let max_send = (self.parameters.max_send_bytes as usize).max(512);
        let (mut at, mut data_sn) = (from, 0);
        while at < to {
            let len = max_send.min(to - at);
            let request = DataOut {
                is_final: at + len == to,
                lun: task.lun,
                itt,
                ttt,
                exp_stat_sn: self.exp_stat_sn.0,
                data_sn,
                offset_bytes: at as u32,
            };
            let mut header = Request::DataOut(request).emit();
            put_pdu(self.out.tail(), self.digests, &mut header, &task.data_out[at..at + len]);
            at += len;
            data_sn += 1;
        }
    }

    /// Asks for a task management function (RFC 7143 11.5), on the task `referenced` if it is about one. False: that task is not under
    /// way here; if it waited to be sent it is over now. What is about all tasks of `lun` ends those that wait.
    pub(crate) fn manage(&mut self, tag: u64, function: u8, lun: [u8; 8], referenced: Option<u64>) -> bool {
        let mut about = (RESERVED_TAG, self.cmd_sn.0);
        if let Some(referenced) = referenced {
            if let Some(at) = self.waiting.iter().position(|(waiting, _)| *waiting == referenced) {
                if let Some((tag, task)) = self.waiting.remove(at) {
                    self.told.push_back(Told::Done(not_sent(tag, task, "aborted")));
                }
                return false;
            }
            match self.tasks.iter().find(|(_, sent)| sent.tag == referenced) {
                Some((itt, sent)) => about = (*itt, sent.cmd_sn),
                None => return false,
            }
        } else {
            // Sent after it, they would be none of those that its answer is about.
            self.end_waiting(|_, of| *of == lun, "aborted");
        }
        let itt = self.itt();
        self.managing.insert(itt, tag);
        let request = TaskManagement {
            immediate: true,
            function,
            lun,
            itt,
            referenced_itt: about.0,
            cmd_sn: self.cmd_sn.0,
            exp_stat_sn: self.exp_stat_sn.0,
            ref_cmd_sn: about.1,
            exp_data_sn: 0,
        };
        self.pdu(Request::TaskManagement(request).emit(), &[]);
        true
    }

    /// Takes commands out that are over by task management: those of `lun`, or the one of `tag`.
    pub(crate) fn end_tasks(&mut self, chosen: impl Fn(u64, &[u8; 8]) -> bool, why: &str) {
        self.take_out(chosen, why, Outcome::Ended);
    }

    fn take_out(
        &mut self,
        chosen: impl Fn(u64, &[u8; 8]) -> bool,
        why: &str,
        outcome: fn(String) -> Outcome,
    ) {
        let gone: Vec<u32> = self
            .tasks
            .iter()
            .filter(|(_, sent)| chosen(sent.tag, &sent.task.lun))
            .map(|(itt, _)| *itt)
            .collect();
        for itt in gone {
            if let Some(sent) = self.tasks.remove(&itt) {
                self.told.push_back(Told::Done(ended(sent, outcome(why.to_owned()))));
            }
        }
        self.end_waiting(chosen, why);
    }

    /// Takes commands out that wait to be sent.
    fn end_waiting(&mut self, chosen: impl Fn(u64, &[u8; 8]) -> bool, why: &str) {
        for (tag, task) in std::mem::take(&mut self.waiting) {
            if chosen(tag, &task.lun) {
                self.told.push_back(Told::Done(not_sent(tag, task, why)));
            } else {
                self.waiting.push_back((tag, task));
            }
        }
    }

    pub(crate) fn ping(&mut self) {
        self.pinged = true;
        let itt = self.itt();
        self.nop(itt, RESERVED_TAG, [0; 8]);
    }

    fn nop(&mut self, itt: u32, ttt: u32, lun: [u8; 8]) {
        let nop =
            NopOut { immediate: true, lun, itt, ttt, cmd_sn: self.cmd_sn.0, exp_stat_sn: self.exp_stat_sn.0 };
        self.pdu(Request::NopOut(nop).emit(), &[]);
    }

    pub(crate) fn logout(&mut self) {
        self.draining = true;
        let itt = self.itt();
        let request = LogoutRequest {
            immediate: true,
            reason: 0,
            itt,
            cid: 0,
            cmd_sn: self.cmd_sn.0,
            exp_stat_sn: self.exp_stat_sn.0,
        };
        self.pdu(Request::Logout(request).emit(), &[]);
    }

    /// Sends no new command from now on.
    pub(crate) fn drain(&mut self) {
        self.draining = true;
    }

    pub(crate) fn text(&mut self, text: &[u8], ttt: u32) {
        let itt = self.itt();
        let request = TextRequest {
            immediate: true,
            is_final: true,
            continues: false,
            lun: [0; 8],
            itt,
            ttt,
            cmd_sn: self.cmd_sn.0,
            exp_stat_sn: self.exp_stat_sn.0,
        };
        self.pdu(Request::Text(request).emit(), text);
    }

    /// Sends until the socket takes no more. The number of bytes that went.
    pub(crate) fn send(&mut self) -> Result<usize, Fault> {
        let mut all = 0;
        while self.out.len() > 0 {
            match self.out.send(&self.socket) {
                Progress::Some(sent) => all += sent,
                Progress::Blocked => break,
                Progress::Ended => return Err("the connection broke".to_owned()),
            }
        }
        if self.out.len() == 0 {
            self.pongs = 0;
        }
        Ok(all)
    }

    /// Receives what is there and takes every whole PDU. True if anything came.
    pub(crate) fn receive(&mut self) -> Result<bool, Fault> {
        let mut any = false;
        for _ in 0..RECEIVES_MAX {
            let need = self.need()?;
            let (progress, more) = self.received.fill(&self.socket, need);
            match progress {
                Progress::Ended => return Err("the array closed the connection".to_owned()),
                Progress::Blocked => break,
                Progress::Some(_) => any = true,
            }
            while let Some((response, counters, frame)) = self.next_pdu(MAX_RECV_BYTES)? {
                self.take(&response, counters, &frame)?;
                self.received.consume(frame.total_len);
            }
            if !more {
                break;
            }
        }
        self.start_waiting();
        Ok(any)
    }

    /// During login: receives once and returns a whole PDU, its data copied.
    pub(crate) fn receive_one(&mut self, limit_bytes: usize) -> Result<Option<(Response, Vec<u8>)>, Fault> {
        if let Some(found) = self.take_one(limit_bytes)? {
            return Ok(Some(found));
        }
        let (progress, _) = self.received.fill(&self.socket, BHS_LEN + limit_bytes);
        if progress == Progress::Ended {
            return Err("the array closed the connection".to_owned());
        }
        self.take_one(limit_bytes)
    }

    fn take_one(&mut self, limit_bytes: usize) -> Result<Option<(Response, Vec<u8>)>, Fault> {
        let Some((response, counters, frame)) = self.next_pdu(limit_bytes)? else {
            return Ok(None);
        };
        let data = self.received.unread()[frame.data()].to_vec();
        self.received.consume(frame.total_len);
        self.exp_stat_sn = SerialNumber(counters.stat_sn).plus(1);
        self.window(counters);
        Ok(Some((response, data)))
    }

    fn need(&self) -> Result<usize, Fault> {
        let frame = Frame::new_checked(self.received.unread(), self.digests, MAX_RECV_BYTES);
        Ok(frame.map_err(|error| error.to_string())?.map_or(BHS_LEN, |frame| frame.total_len))
    }

    /// The whole PDU at the start of what was received, its digests checked.
    fn next_pdu(&self, limit_bytes: usize) -> Result<Option<(Response, Counters, Frame)>, Fault> {
        let unread = self.received.unread();
        let frame = Frame::new_checked(unread, self.digests, limit_bytes)
            .map_err(|error| format!("the array sends {error}"))?;
        let Some(frame) = frame.filter(|frame| unread.len() >= frame.total_len) else {
            return Ok(None);
        };
        if self.digests.header && !digest::header_matches(unread, &frame) {
            return Err("header digest error in what the array sends".to_owned());
        }
        if self.digests.data
            && frame.data_len > 0
            && !digest::data_matches(&unread[..frame.total_len], &frame)
        {
            return Err("data digest error in what the array sends".to_owned());
        }
        let Some(header) = unread.first_chunk::<BHS_LEN>() else {
            return Ok(None);
        };
        let (response, counters) =
            Response::parse(header).map_err(|error| format!("the array sends {error}"))?;
        Ok(Some((response, counters, frame)))
    }

    /// MaxCmdSN moves only forward, and not behind ExpCmdSN - 1 (RFC 7143 4.2.2.1).
    fn window(&mut self, counters: Counters) {
        let (max, expected) = (SerialNumber(counters.max_cmd_sn), SerialNumber(counters.exp_cmd_sn));
        if !max.is_before(expected.minus(1)) && self.max_cmd_sn.is_before(max) {
            self.max_cmd_sn = max;
        }
    }

    fn take(&mut self, response: &Response, counters: Counters, frame: &Frame) -> Result<(), Fault> {
        self.window(counters);
        let numbered = match response {
            Response::DataIn(data_in) => data_in.status.is_some(),
            Response::R2t { .. } => false,
            Response::NopIn { itt, .. } => *itt != RESERVED_TAG,
            _ => true,
        };
        if numbered {
            self.exp_stat_sn = SerialNumber(counters.stat_sn).plus(1);
        }
        let range = frame.data();
        match *response {
            Response::NopIn { lun, itt, ttt } => {
                self.pinged &= itt == RESERVED_TAG;
                if ttt != RESERVED_TAG {
                    self.pongs += 1;
                    if self.pongs > PONGS_MAX {
                        return Err("the array asks for signs of life and takes none".to_owned());
                    }
                    self.nop(RESERVED_TAG, ttt, lun);
                }
            }
            Response::DataIn(data_in) => self.data_in(&data_in, range)?,
            Response::Scsi { response, status, itt, residual, .. } => {
                let Some(sent) = self.tasks.remove(&itt) else {
                    return Ok(()); // of a command that was aborted
                };
                let outcome = if response == 0 {
                    status_of(&sent, status, sense_of(&self.received.unread()[range]), residual)
                } else {
                    Outcome::Ended(format!("the array failed on the command (response {response:#04x})"))
                };
                self.told.push_back(Told::Done(ended(sent, outcome)));
            }
            Response::R2t { itt, ttt, offset_bytes, desired_bytes, .. } => {
                self.ready_to_transfer(itt, ttt, offset_bytes, desired_bytes)?;
            }
            Response::TaskManagement { response, itt } => {
                if let Some(tag) = self.managing.remove(&itt) {
                    self.told.push_back(Told::Managed { tag, response });
                }
            }
            Response::Text { is_final, ttt, .. } => {
                if self.text.len() + range.len() > TEXT_MAX_BYTES {
                    return Err("the array's text does not end".to_owned());
                }
                self.text.extend_from_slice(&self.received.unread()[range]);
                if is_final || ttt == RESERVED_TAG {
                    self.told.push_back(Told::Text(std::mem::take(&mut self.text)));
                } else {
                    self.text(&[], ttt);
                }
            }
            Response::Logout { .. } => self.told.push_back(Told::LoggedOut),
            Response::Async { event, .. } => match event {
                1 => self.told.push_back(Told::AskedToLeave),
                2 | 3 => self.told.push_back(Told::WillDrop),
                // SCSI events come as unit attentions too; renegotiation is for the initiator to want.
                _ => {}
            },
            Response::Reject { reason } => {
                let refused = self.received.unread()[range].first_chunk::<BHS_LEN>().map(Request::parse);
                return self.rejected(reason, refused.and_then(Result::ok));
            }
            Response::Login { .. } => return Err("the array sends a login response after login".to_owned()),
        }
        Ok(())
    }

    /// A rejected command is over; whatever else is rejected ends the connection (RFC 7143 11.17, level 0).
    fn rejected(&mut self, reason: u8, refused: Option<Request>) -> Result<(), Fault> {
        match refused {
            Some(Request::ScsiCommand(command)) => {
                if let Some(sent) = self.tasks.remove(&command.itt) {
                    let why = format!("the array rejects the command (reason {reason:#04x})");
                    self.told.push_back(Told::Done(ended(sent, Outcome::Ended(why))));
                }
                Ok(())
            }
            Some(Request::TaskManagement(request)) => {
                if let Some(tag) = self.managing.remove(&request.itt) {
                    self.told.push_back(Told::Managed { tag, response: 255 });
                }
                Ok(())
            }
            _ => Err(format!("the array rejects what it was sent (reason {reason:#04x})")),
        }
    }

    fn data_in(&mut self, data_in: &DataIn, range: std::ops::Range<usize>) -> Result<(), Fault> {
        let Some(sent) = self.tasks.get_mut(&data_in.itt) else {
            return Ok(()); // of a command that was aborted
        };
        let data = &self.received.unread()[range];
        // In order, as negotiated, and never more than was asked for.
        if data_in.offset_bytes as usize != sent.data_in.len() || data_in.data_sn != sent.data_sn {
            return Err("the array sends data out of order".to_owned());
        }
        if sent.data_in.len() + data.len() > sent.task.read_bytes as usize {
            return Err("the array sends more data than was asked for".to_owned());
        }
        sent.data_in.extend_from_slice(data);
        sent.data_sn = sent.data_sn.wrapping_add(1);
        if let Some(status) = data_in.status {
            if let Some(sent) = self.tasks.remove(&data_in.itt) {
                let outcome = status_of(&sent, status, Vec::new(), data_in.residual);
                self.told.push_back(Told::Done(ended(sent, outcome)));
            }
        }
        Ok(())
    }

    fn ready_to_transfer(&mut self, itt: u32, ttt: u32, offset: u32, desired: u32) -> Result<(), Fault> {
        let Some(mut sent) = self.tasks.remove(&itt) else {
            return Ok(()); // of a command that was aborted
        };
        let len = sent.task.data_out.len().min(sent.task.write_bytes as usize);
        let (from, to) = (offset as usize, offset as usize + desired as usize);
        let is_right = desired > 0 && to <= len && desired <= self.parameters.max_burst_bytes;
        // In order: nothing twice, and nothing left out.
        let in_turn = is_right && from == sent.sent_bytes;
        if in_turn {
            self.data_out(&sent.task, itt, ttt, from, to);
            sent.sent_bytes = to;
        }
        self.tasks.insert(itt, sent);
        if in_turn {
            Ok(())
        } else {
            Err("the array asks for data that it was not told of".to_owned())
        }
    }

    /// The connection is over: every command with it.
    pub(crate) fn end(mut self, why: &str) -> Vec<Told> {
        self.take_out(|_, _| true, why, Outcome::Lost);
        for (_, tag) in self.managing.drain() {
            self.told.push_back(Told::Managed { tag, response: 255 });
        }
        self.told.into_iter().collect()
    }
}

fn put_pdu(out: &mut Vec<u8>, digests: Digests, header: &mut Bhs, data: &[u8]) {
    bhs::set_data_length(header, data.len());
    out.extend_from_slice(header);
    if digests.header {
        out.extend_from_slice(&digest::of(header));
    }
    if data.is_empty() {
        return;
    }
    let start = out.len();
    out.extend_from_slice(data);
    out.resize(start + padded(data.len()), 0);
    if digests.data {
        let crc = digest::of(&out[start..]);
        out.extend_from_slice(&crc);
    }
}

/// Sense data of a SCSI Response's data segment: two bytes of length, then as many (RFC 7143 11.4.7.2).
fn sense_of(data: &[u8]) -> Vec<u8> {
    let Some((length, rest)) = data.split_first_chunk::<2>() else {
        return Vec::new();
    };
    let len = usize::from(u16::from_be_bytes(*length)).min(rest.len()).min(SENSE_MAX_BYTES);
    rest[..len].to_vec()
}

/// A status, unless it says that all was written of which not all was asked for.
fn status_of(sent: &Sent, status: u8, sense: Vec<u8>, residual: Residual) -> Outcome {
    let all = sent.task.data_out.len().min(sent.task.write_bytes as usize);
    if status == 0 && residual == Residual::None && sent.sent_bytes < all {
        return Outcome::Ended("the array says GOOD and has not taken all of the data".to_owned());
    }
    Outcome::Status { status, sense, residual }
}

fn ended(sent: Sent, outcome: Outcome) -> Done {
    Done { tag: sent.tag, outcome, data_in: sent.data_in, data_out: sent.task.data_out }
}

/// A command of which nothing was sent.
pub(crate) fn not_sent(tag: u64, task: Task, why: &str) -> Done {
    Done { tag, outcome: Outcome::NotSent(why.to_owned()), data_in: Vec::new(), data_out: task.data_out }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::TcpListener;

    #[test]
    fn a_target_that_asks_for_signs_of_life_and_takes_none_does_not_fill_the_memory() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        ours.set_nonblocking(true).unwrap();
        let (mut theirs, _) = listener.accept().unwrap();
        let mut connection = Connection::new(ours);
        let ask = Response::NopIn { lun: [0; 8], itt: RESERVED_TAG, ttt: 7 };
        let counters = Counters { stat_sn: 1, exp_cmd_sn: 1, max_cmd_sn: 1 };
        let asks = ask.emit(counters).repeat(PONGS_MAX);
        let mut take = |connection: &mut Connection| {
            theirs.write_all(&asks).unwrap();
            let before = connection.out.len();
            while connection.out.len() < before + asks.len() {
                connection.receive()?;
            }
            Ok::<_, Fault>(())
        };
        // One that takes them may ask as often as it likes.
        take(&mut connection).unwrap();
        connection.out = Sending::default();
        connection.send().unwrap();
        take(&mut connection).unwrap();
        assert!(take(&mut connection).unwrap_err().contains("signs of life"));
    }
}
