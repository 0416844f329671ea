//! The transmission phase of one connection: receive as much as there is, execute every whole request of it, send all answers.

use std::time::{Duration, Instant};

use playhead_wire::nbd::{Command, Request, REQUEST_BYTES};

use super::accept::{Record, Shared};
use super::buffers::Input;
use super::desk::{add, Desk, Disk, Refusal, SessionError, SEND_BYTES};
use super::handshake::Chosen;
use super::socket::{left_until, Received, Way, Woken};
use crate::lun::{Change, BLOCK_BYTES};

/// Largest write that is captured as one change; of a larger one each so many bytes. It bounds what a connection can hold.
const WHOLE_BYTES: usize = 4 << 20;
/// A silent connection gives its buffers back after this.
const IDLE: Duration = Duration::from_secs(1);
/// Reads of one round that take longer than this together are answered before the round goes on.
const SLOW_ROUND: Duration = Duration::from_micros(500);
/// A client that says nothing for this long at the farewell has nothing more to ask.
const QUIET: Duration = Duration::from_millis(100);
/// How long a client may take to close its side after we closed ours.
const LINGER: Duration = Duration::from_millis(250);

/// Where a round stopped.
enum Step {
    /// The next request needs so many bytes in all.
    Need(usize),
    /// A write too large to wait for, or refused while it still comes in: its payload is taken as it comes.
    Stream(Request, Result<(), Refusal>),
    /// The client said goodbye.
    Disconnect,
}

/// What receiving brought.
enum Arrival {
    Bytes,
    End,
    /// The export was removed or the server stops.
    Leave,
    /// The farewell is over.
    Silence,
}

/// A client in the transmission phase.
pub(super) struct Session<'a> {
    input: Input,
    desk: Desk<'a>,
    /// The last round was busy: try to receive before polling.
    busy: bool,
    /// Set once the LUN is let go of: until then requests are answered with ESHUTDOWN.
    farewell: Option<Instant>,
}

impl<'a> Session<'a> {
    pub(super) fn new(shared: &'a Shared, record: &'a Record, chosen: Chosen) -> Session<'a> {
        Session {
            input: Input::default(),
            desk: Desk::new(shared, record, chosen),
            busy: false,
            farewell: None,
        }
    }

    /// Serves the client until it leaves, or must.
    pub(super) fn run(mut self) -> Result<(), SessionError> {
        loop {
            let step = self.round();
            // Also when the round ended badly: what was executed before is answered.
            self.desk.take_finished();
            self.desk.send_all()?;
            let need = match step? {
                Step::Need(need) => need,
                Step::Disconnect => return self.desk.finish_flushes(),
                Step::Stream(request, verdict) => {
                    self.stream(&request, verdict)?;
                    continue;
                }
            };
            match self.receive(need)? {
                Arrival::Bytes => {}
                // It may have closed only its sending side, and still wait for its flushes.
                Arrival::End if self.input.len() == 0 => return self.desk.finish_flushes(),
                Arrival::End => return Err(SessionError::CutShort),
                Arrival::Leave => self.leave()?,
                Arrival::Silence => return self.close(),
            }
        }
    }

    /// Finishes what is under way and lets go of the LUN.
    fn leave(&mut self) -> Result<(), SessionError> {
        self.desk.finish_flushes()?;
        self.desk.leave();
        self.farewell = Some(Instant::now() + self.desk.shared.limits.farewell);
        Ok(())
    }

    /// Executes every whole request received. All changes among them go to the LUN as one batch at the end: requests under way
    /// at the same time have no order among each other (Ordering of messages and writes).
    fn round(&mut self) -> Result<Step, SessionError> {
        let Session { input, desk, .. } = self;
        let disk = desk.disk();
        let disk = disk.as_ref();
        let bytes = input.filled();
        let mut batch = Vec::new();
        let mut requests = 0;
        let mut at = 0;
        let mut since = None;
        let step = loop {
            let Some(head) = bytes[at..].first_chunk() else {
                break Ok(Step::Need(REQUEST_BYTES));
            };
            let request = match Request::parse(head) {
                Ok(request) => request,
                Err(error) => break Err(error.into()),
            };
            let start = at + REQUEST_BYTES;
            let end = start + request.payload_bytes() as usize;
            let verdict = desk.check(disk, &request);
            let Some(payload) = bytes.get(start..end) else {
                if verdict.is_ok() && end - start <= WHOLE_BYTES {
                    break Ok(Step::Need(end - at));
                }
                requests += 1;
                at = start;
                break Ok(Step::Stream(request, verdict.map(|_| ())));
            };
            at = end;
            requests += 1;
            if request.command == Command::Disconnect {
                break Ok(Step::Disconnect);
            }
            match verdict {
                Err(refusal) => desk.answer_error(request.cookie, &refusal),
                Ok(disk) => {
                    if let Err(error) = execute(desk, disk, &request, payload, &mut batch) {
                        break Err(error);
                    }
                }
            }
            // Answers that are many, or late, do not wait for the rest of the round.
            if request.command == Command::Read {
                let since = since.get_or_insert_with(Instant::now);
                if since.elapsed() > SLOW_ROUND {
                    desk.send_all()?;
                    *since = Instant::now();
                }
            }
            if desk.output.pending().len() >= SEND_BYTES {
                desk.send_all()?;
            }
        };
        desk.settle(disk, &batch);
        drop(batch);
        input.consume(at);
        add(&desk.record.requests, requests);
        self.busy = requests > 1;
        step
    }

    /// Takes the payload of a write as it comes: piece by piece to the LUN, or to nowhere once the write is refused.
    fn stream(&mut self, request: &Request, mut verdict: Result<(), Refusal>) -> Result<(), SessionError> {
        let mut disk = self.desk.disk();
        let mut left = request.length as usize;
        let mut lba = request.offset / BLOCK_BYTES as u64;
        while left > 0 {
            let need = if verdict.is_ok() { left.min(WHOLE_BYTES) } else { 1 };
            while self.input.len() < need {
                match self.receive(need)? {
                    Arrival::Bytes => {}
                    Arrival::End | Arrival::Silence => return Err(SessionError::CutShort),
                    // The client may take its time over the rest; the LUN is not kept waiting for it.
                    Arrival::Leave => {
                        self.leave()?;
                        disk = None;
                        verdict = verdict.and(Err(Refusal::closed()));
                        break;
                    }
                }
            }
            let piece = if verdict.is_ok() { need } else { left.min(self.input.len()) };
            if verdict.is_ok() {
                let data = &self.input.filled()[..piece];
                verdict = self.desk.submit(disk.as_ref(), &[Change::Write { lba, data }]);
                lba += (piece / BLOCK_BYTES) as u64;
            }
            self.input.consume(piece);
            left -= piece;
        }
        match verdict {
            // The data is with the LUN already; the batch is empty, the answer and FUA as ever.
            Ok(()) => {
                self.desk.expect(request);
                self.desk.settle(disk.as_ref(), &[]);
            }
            Err(refusal) => self.desk.answer_error(request.cookie, &refusal),
        }
        Ok(())
    }

    /// Receives something, and meanwhile answers flushes that finish. `need` counts from the first byte held.
    fn receive(&mut self, need: usize) -> Result<Arrival, SessionError> {
        let record = self.desk.record;
        let farewell = self.farewell;
        let stall = self.desk.shared.limits.stall;
        let half = self.input.len() > 0;
        let mut patience = None;
        let mut poll_first = !self.busy;
        loop {
            if farewell.is_some_and(|end| left_until(end).is_zero()) {
                return Ok(Arrival::Silence);
            }
            if !poll_first {
                match record.socket.receive(self.input.room(need))? {
                    Received::Bytes(count) => {
                        self.input.received(count);
                        return Ok(Arrival::Bytes);
                    }
                    Received::End => return Ok(Arrival::End),
                    Received::Nothing => {}
                }
            }
            self.desk.take_finished();
            self.desk.send_all()?;
            if self.desk.must_leave() {
                return Ok(Arrival::Leave);
            }
            if self.desk.flushing() && !record.mailbox.park() {
                poll_first = true;
                continue;
            }
            let holds_memory = self.input.capacity() + self.desk.output.capacity() > 0;
            let timeout = if farewell.is_some() {
                Some(QUIET)
            } else if half {
                let end = *patience.get_or_insert_with(|| Instant::now() + stall);
                Some(left_until(end))
            } else {
                holds_memory.then_some(IDLE)
            };
            let woken = record.socket.wait(Way::In, Some(&record.mailbox.wake), timeout)?;
            poll_first = woken != Woken::Socket;
            if woken == Woken::Time {
                if farewell.is_some() {
                    return Ok(Arrival::Silence);
                }
                if half {
                    return Err(SessionError::StalledSending(stall));
                }
                self.input.shrink();
                self.desk.output.shrink();
            }
        }
    }

    /// Closes our side first, so that the last answers are not lost to a reset, and then waits a little for the client.
    fn close(&mut self) -> Result<(), SessionError> {
        let socket = &self.desk.record.socket;
        socket.end_sending();
        let end = Instant::now() + LINGER;
        let mut waste = [0; 4096];
        while !left_until(end).is_zero() {
            match socket.receive(&mut waste)? {
                Received::Bytes(_) => {}
                Received::End => break,
                Received::Nothing => {
                    socket.wait(Way::In, None, Some(left_until(end)))?;
                }
            }
        }
        Ok(())
    }
}

/// Executes a checked request whose payload is whole.
fn execute<'b>(
    desk: &mut Desk<'_>,
    disk: &Disk,
    request: &Request,
    payload: &'b [u8],
    batch: &mut Vec<Change<'b>>,
) -> Result<(), SessionError> {
    match request.command {
        Command::Write | Command::Trim | Command::WriteZeroes => {
            batch.extend(desk.change(disk, request, payload));
            desk.expect(request);
        }
        Command::Read => desk.read(disk, request)?,
        Command::Flush => desk.expect_flush(request),
        Command::Cache => desk.cache(disk, request),
        Command::BlockStatus => desk.status(disk, request),
        // Neither passes the check.
        Command::Disconnect | Command::Unknown(_) => {}
    }
    Ok(())
}
