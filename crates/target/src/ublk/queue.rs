//! The thread of a device: takes requests from the driver, has the LUN execute them, and answers.
//!
//! It does rounds, as a connection's thread does: all requests that have arrived, changes among them as one batch, and one flush for all
//! that wait for one. Requests under way at the same time have no order among each other, in Linux as in NBD; what must be ordered the
//! kernel sends when the first is answered.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;

use super::ring::{Buffers, Fetched, Ring, DATA_BYTES, DEPTH};
use super::uapi::{Op, Request};
use crate::lun::{Change, LunError, BLOCK_BYTES};
use crate::mailbox::Mailbox;
use crate::strangers::Strangers;

/// After so long without a request the buffers' memory is given back.
const QUIET: Duration = Duration::from_secs(1);
/// For ever, as far as a thread that can be poked is concerned.
const IDLE: Duration = Duration::from_secs(3600);
/// Data of a batch; more would have left the processor's cache before it is written.
const BATCH_BYTES: usize = 512 << 10;
/// How soon it is looked again for an end of a flush that came between the look and the wait.
const NOW: Option<Duration> = None;

/// What a device's thread and whoever serves it share.
pub(super) struct Desk {
    pub(super) name: String,
    pub(super) strangers: Strangers,
    pub(super) mailbox: Arc<Mailbox>,
    leaving: AtomicBool,
    pub(super) requests: AtomicU64,
    pub(super) read_bytes: AtomicU64,
    pub(super) written_bytes: AtomicU64,
}

impl Desk {
    pub(super) fn new(name: String, strangers: Strangers) -> io::Result<Desk> {
        Ok(Desk {
            name,
            strangers,
            mailbox: Arc::new(Mailbox::new()?),
            leaving: AtomicBool::new(false),
            requests: AtomicU64::new(0),
            read_bytes: AtomicU64::new(0),
            written_bytes: AtomicU64::new(0),
        })
    }

    /// Has the thread end once what it has taken is answered. The device stays, and what is asked of it waits.
    pub(super) fn leave(&self) {
        self.leaving.store(true, Ordering::SeqCst);
        self.mailbox.wake.poke();
    }
}

/// Serves `device` until told to leave or until the driver ends it. `ready` hears when every tag is fetched, or why not; with it comes the
/// ring's hold, to be kept until this thread has ended ([`Ring::hold`]).
pub(super) fn run(
    desk: &Desk,
    device: OwnedFd,
    buffers: Arc<Buffers>,
    ready: &SyncSender<io::Result<OwnedFd>>,
) -> io::Result<()> {
    // So that memory which is needed to clean a page of this disk is not found by cleaning a page of this disk. Not for everybody to have.
    if let Err(error) = rustix::process::configure_io_flusher_behavior(true) {
        log::debug!("{}: its thread is no I/O flusher: {error}", desk.name);
    }
    let made = Ring::new(device, desk.mailbox.wake.fd(), buffers);
    let (ring, hold) = match made.and_then(|ring| ring.hold().map(|hold| (ring, hold))) {
        Ok(made) => made,
        Err(error) => {
            // Nobody listens any more only if nobody wants to know.
            let _ = ready.send(Err(error));
            return Ok(());
        }
    };
    let _ = ready.send(Ok(hold));
    let waiting = (0..DEPTH).map(|_| None).collect();
    Queue { desk, ring, waiting, flushing: 0, noted: None }.serve()
}

struct Queue<'a> {
    desk: &'a Desk,
    ring: Ring,
    /// By tag: requests that a flush is under way for.
    waiting: Vec<Option<Fetched>>,
    /// Flushes under way.
    flushing: usize,
    /// The LUN's error last logged.
    noted: Option<LunError>,
}

impl Queue<'_> {
    fn serve(mut self) -> io::Result<()> {
        let mut limit = QUIET;
        loop {
            let parked = self.flushing == 0 || self.desk.mailbox.park();
            let arrived = self.ring.wait(if parked { Some(limit) } else { NOW })?;
            limit = if arrived.quiet { IDLE } else { QUIET };
            if arrived.poked {
                self.desk.mailbox.wake.hear();
                self.ring.listen(self.desk.mailbox.wake.fd())?;
            }
            self.take_finished()?;
            let leaving = self.desk.leaving.load(Ordering::SeqCst);
            // What comes now is not taken up: the driver sends it again to whoever serves the device next.
            if !leaving && !arrived.fetched.is_empty() {
                self.round(arrived.fetched)?;
            }
            let ours = self.waiting.iter().flatten().count();
            if leaving && self.flushing == 0 || self.ring.stopped(ours) && ours == 0 {
                return self.ring.submit();
            }
            if arrived.quiet {
                self.ring.shrink(ours == 0);
            }
        }
    }

    fn round(&mut self, fetched: Vec<Fetched>) -> io::Result<()> {
        let desk = self.desk;
        let offers = Offers::of(&desk.strangers);
        desk.requests.fetch_add(fetched.len() as u64, Ordering::Relaxed);
        let mut batch = Batch::default();
        let mut flushes = Vec::new();
        for request in fetched {
            match check(&request.request, &offers) {
                Err(refused) => self.ring.commit(request, -refused.raw_os_error())?,
                Ok(Task::Read) => self.read(request)?,
                Ok(Task::Flush) => flushes.push(request),
                Ok(task) => {
                    if batch.bytes >= BATCH_BYTES {
                        self.change(std::mem::take(&mut batch), &mut flushes)?;
                    }
                    batch.add(request, task);
                }
            }
        }
        if !batch.changes.is_empty() {
            self.change(batch, &mut flushes)?;
        }
        if !flushes.is_empty() {
            self.flush(flushes);
        }
        Ok(())
    }

    fn read(&mut self, mut request: Fetched) -> io::Result<()> {
        let Request { lba, count, .. } = request.request;
        let bytes = count as usize * BLOCK_BYTES;
        let done = self.desk.strangers.lun.read(lba, request.room(bytes));
        let result = match done {
            Ok(()) => {
                self.desk.read_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
                bytes as i32
            }
            Err(error) => match self.refusal(&error) {
                Some(refusal) => -refusal.raw_os_error(),
                None => return Ok(()),
            },
        };
        self.ring.commit(request, result)?;
        // It need not wait for the rest of the round.
        self.ring.submit()
    }

    /// Submits a batch, all or none. What is to be on the medium too joins `flushes`.
    fn change(&mut self, batch: Batch, flushes: &mut Vec<Fetched>) -> io::Result<()> {
        let changes: Vec<Change<'_>> =
            batch.changes.iter().map(|(request, task)| task.change(request)).collect();
        let submitted = self.desk.strangers.lun.submit(&changes);
        drop(changes);
        let refusal = submitted.map_err(|error| self.refusal(&error));
        for (request, task) in batch.changes {
            match refusal {
                Err(Some(refusal)) => self.ring.commit(request, -refusal.raw_os_error())?,
                Err(None) => {}
                Ok(_) => {
                    let bytes = task.data_bytes(&request);
                    self.desk.written_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
                    if request.request.fua {
                        flushes.push(request);
                    } else {
                        self.ring.commit(request, bytes as i32)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// One flush for all of them, issued after what they are to cover was captured.
    fn flush(&mut self, flushes: Vec<Fetched>) {
        let tags = flushes.iter().map(|request| u64::from(request.tag())).collect();
        for request in flushes {
            let tag = request.tag() as usize;
            self.waiting[tag] = Some(request);
        }
        self.flushing += 1;
        self.desk.strangers.lun.flush(self.desk.mailbox.flush_done(tags));
    }

    /// Answers the requests whose flush is over.
    fn take_finished(&mut self) -> io::Result<()> {
        if self.flushing == 0 {
            return Ok(());
        }
        for finished in self.desk.mailbox.take() {
            self.flushing = self.flushing.saturating_sub(1);
            let refusal = finished.result.map_err(|error| self.refusal(&error));
            for tag in finished.cookies {
                let Some(request) = self.waiting.get_mut(tag as usize).and_then(Option::take) else {
                    continue;
                };
                let result = match refusal {
                    Err(Some(refusal)) => -refusal.raw_os_error(),
                    Err(None) => continue,
                    Ok(()) if request.request.op == Op::Write => {
                        request.request.count as i32 * BLOCK_BYTES as i32
                    }
                    Ok(()) => 0,
                };
                self.ring.commit(request, result)?;
            }
        }
        Ok(())
    }

    /// The error number that an error of the LUN is; none if the request is to wait for the next server. It is logged the first time in
    /// a row only: a full journal fails every write.
    fn refusal(&mut self, error: &LunError) -> Option<Errno> {
        let refusal = errno(error, self.desk.leaving.load(Ordering::SeqCst))?;
        if self.noted.as_ref() != Some(error) {
            log::warn!("{}: the kernel is told: {error}", self.desk.name);
            self.noted = Some(error.clone());
        }
        Some(refusal)
    }
}

/// Changes that become one batch of the LUN.
#[derive(Default)]
struct Batch {
    changes: Vec<(Fetched, Task)>,
    bytes: usize,
}

impl Batch {
    fn add(&mut self, request: Fetched, task: Task) {
        self.bytes += task.data_bytes(&request);
        self.changes.push((request, task));
    }
}

/// What is served at this moment.
struct Offers {
    block_count: u64,
    read_only: bool,
    may_read: bool,
    may_write: bool,
    unmaps: bool,
    zeroes: bool,
}

impl Offers {
    fn of(strangers: &Strangers) -> Offers {
        Offers {
            block_count: strangers.lun.block_count(),
            read_only: strangers.lun.read_only(),
            may_read: strangers.admitted(false),
            may_write: strangers.admitted(true),
            unmaps: strangers.unmaps(),
            zeroes: strangers.zeroes(),
        }
    }
}

/// What a request means to a LUN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Task {
    Read,
    Write,
    Zero,
    Unmap,
    Flush,
}

impl Task {
    fn data_bytes(self, request: &Fetched) -> usize {
        if self == Task::Write {
            request.request.count as usize * BLOCK_BYTES
        } else {
            0
        }
    }

    fn change(self, request: &Fetched) -> Change<'_> {
        let Request { lba, count, .. } = request.request;
        match self {
            Task::Write => Change::Write { lba, data: request.data(count as usize * BLOCK_BYTES) },
            Task::Zero => Change::Zero { lba, count: count.into() },
            // Neither a read nor a flush gets into a batch.
            Task::Unmap | Task::Read | Task::Flush => Change::Unmap { lba, count: count.into() },
        }
    }
}

/// What `request` is to come to, or the error number the kernel understands: EBADE is a reservation conflict, EOPNOTSUPP has it write
/// the zeros itself.
fn check(request: &Request, offers: &Offers) -> Result<Task, Errno> {
    let task = match request.op {
        Op::Flush => return Ok(Task::Flush),
        Op::Read => Task::Read,
        Op::Write => Task::Write,
        Op::Discard => Task::Unmap,
        // Where policy rejects unmap, zeroing makes no hole either.
        Op::WriteZeroes if request.no_unmap || !offers.unmaps => Task::Zero,
        Op::WriteZeroes => Task::Unmap,
        Op::Unknown(_) => return Err(Errno::OPNOTSUPP),
    };
    let changing = task != Task::Read;
    if changing && offers.read_only {
        return Err(Errno::PERM);
    }
    if !(if changing { offers.may_write } else { offers.may_read }) {
        return Err(Errno::BADE);
    }
    if request.op == Op::Discard && !offers.unmaps || request.op == Op::WriteZeroes && !offers.zeroes {
        return Err(Errno::OPNOTSUPP);
    }
    // The driver keeps to size and limits. A volume may have become smaller, though, and memory is not to depend on a driver.
    let end = request.lba.checked_add(request.count.into());
    let data = matches!(task, Task::Read | Task::Write);
    if end.is_none_or(|end| end > offers.block_count)
        || request.count == 0
        || data && request.count as usize > DATA_BYTES / BLOCK_BYTES
    {
        return Err(Errno::INVAL);
    }
    Ok(task)
}

/// The error of a LUN as an error number (errno_to_blk_status of the kernel; what it does not know is an I/O error). None for what failed
/// because the service is `leaving`: it is not answered, and so sent to the next.
fn errno(error: &LunError, leaving: bool) -> Option<Errno> {
    Some(match error {
        LunError::Gone { .. } if leaving => return None,
        LunError::OutOfRange { .. } => Errno::INVAL,
        LunError::ReadOnly { .. } => Errno::PERM,
        LunError::NoSpace { .. } => Errno::NOSPC,
        LunError::Unsupported { .. } => Errno::OPNOTSUPP,
        LunError::Gone { .. } | LunError::Io { .. } => Errno::IO,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Offers = Offers {
        block_count: 1000,
        read_only: false,
        may_read: true,
        may_write: true,
        unmaps: true,
        zeroes: true,
    };

    fn request(op: Op) -> Request {
        Request { op, fua: false, no_unmap: false, lba: 8, count: 8 }
    }

    #[test]
    fn every_operation_is_what_it_says() {
        let tasks = [
            (Op::Read, Task::Read),
            (Op::Write, Task::Write),
            (Op::Flush, Task::Flush),
            (Op::Discard, Task::Unmap),
            (Op::WriteZeroes, Task::Unmap),
        ];
        for (op, task) in tasks {
            assert_eq!(check(&request(op), &ALL), Ok(task));
        }
        let kept = Request { no_unmap: true, ..request(Op::WriteZeroes) };
        assert_eq!(check(&kept, &ALL), Ok(Task::Zero));
        assert_eq!(check(&request(Op::Unknown(15)), &ALL), Err(Errno::OPNOTSUPP));
    }

    #[test]
    fn policy_is_obeyed_as_over_nbd() {
        let no_unmap = Offers { unmaps: false, ..ALL };
        assert_eq!(check(&request(Op::Discard), &no_unmap), Err(Errno::OPNOTSUPP));
        assert_eq!(check(&request(Op::WriteZeroes), &no_unmap), Ok(Task::Zero));
        let no_zeroes = Offers { zeroes: false, ..ALL };
        assert_eq!(check(&request(Op::WriteZeroes), &no_zeroes), Err(Errno::OPNOTSUPP));
        assert_eq!(check(&request(Op::Discard), &no_zeroes), Ok(Task::Unmap));
    }

    #[test]
    fn a_reservation_keeps_out_what_it_forbids() {
        let writes = Offers { may_write: false, ..ALL };
        for op in [Op::Write, Op::Discard, Op::WriteZeroes] {
            assert_eq!(check(&request(op), &writes), Err(Errno::BADE));
        }
        assert_eq!(check(&request(Op::Read), &writes), Ok(Task::Read));
        let all = Offers { may_read: false, ..writes };
        assert_eq!(check(&request(Op::Read), &all), Err(Errno::BADE));
        // It changes nothing and shows nothing.
        assert_eq!(check(&request(Op::Flush), &all), Ok(Task::Flush));
    }

    #[test]
    fn what_the_end_of_the_service_cut_short_is_left_to_the_next() {
        let name = || "g/v".to_owned();
        assert_eq!(errno(&LunError::Gone { name: name() }, true), None);
        assert_eq!(errno(&LunError::Gone { name: name() }, false), Some(Errno::IO));
        // What failed for another reason would fail again.
        let full = LunError::NoSpace { name: name(), detail: String::new() };
        assert_eq!(errno(&full, true), Some(Errno::NOSPC));
    }

    #[test]
    fn a_volume_that_became_read_only_or_smaller_is_not_changed() {
        let read_only = Offers { read_only: true, ..ALL };
        assert_eq!(check(&request(Op::Write), &read_only), Err(Errno::PERM));
        assert_eq!(check(&request(Op::Read), &read_only), Ok(Task::Read));
        for (lba, count) in [(993, 8), (u64::MAX, 8), (0, 0)] {
            let beyond = Request { lba, count, ..request(Op::Write) };
            assert_eq!(check(&beyond, &ALL), Err(Errno::INVAL));
        }
        let huge = Offers { block_count: u64::MAX, ..ALL };
        let long = Request { count: 1025, ..request(Op::Write) };
        assert_eq!(check(&long, &huge), Err(Errno::INVAL));
        assert_eq!(check(&Request { count: u32::MAX, ..request(Op::Discard) }, &huge), Ok(Task::Unmap));
    }
}
