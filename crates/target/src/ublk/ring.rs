//! The one module of this crate that may use `unsafe`: io_uring, and the memory it is told the address of.
//!
//! Two rings: [`ask`] sends one command to the control device, and [`Ring`] is a device's queue. A tag of the queue belongs to the driver
//! from FETCH or COMMIT until the completion, and to us from then to the next COMMIT. Ours is a [`Fetched`], which cannot be copied:
//! whoever has it may touch the tag's buffer and descriptor, and nobody else has.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::time::Duration;

use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{opcode, squeue::Entry128, IoUring};
use rustix::io::Errno;
use rustix::mm::{madvise, mmap, mmap_anonymous, munmap, Advice, MapFlags, ProtFlags};

use super::uapi::{ctrl_cmd, io_cmd, Ctrl, Request, COMMIT_AND_FETCH_REQ, FETCH_REQ, IO_DESC_BYTES};

/// Requests that may be under way in a queue.
pub(super) const DEPTH: u16 = 64;
/// Largest request with data.
pub(super) const DATA_BYTES: usize = 512 << 10;
/// A completion that is no tag's.
const WAKE: u64 = u64::MAX;

/// Sends one command to the control device and waits for its end, at most `patience`. `buffer` goes with it and comes back as the
/// driver left it.
pub(super) fn ask<const N: usize>(
    control: BorrowedFd<'_>,
    command: Ctrl,
    device: u32,
    buffer: [u8; N],
    data: u64,
    patience: Duration,
) -> io::Result<[u8; N]> {
    let mut ring: IoUring<Entry128> = IoUring::builder().build(2)?;
    let mut buffer = Box::new(buffer);
    // The driver wants no buffer where a command has none.
    let address = if N == 0 { 0 } else { buffer.as_mut_ptr() as u64 };
    let bytes = ctrl_cmd(device, address, N as u16, data);
    let entry = opcode::UringCmd80::new(Fd(control.as_raw_fd()), command as u32).cmd(bytes).build();
    // SAFETY: the buffer lives until the completion; if that is not waited for, for ever (below).
    unsafe { ring.submission().push(&entry) }.map_err(|_| Errno::BUSY)?;
    let limit = Timespec::from(patience);
    let entered = loop {
        match ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&limit)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => break other,
        }
    };
    let completion = ring.completion().next();
    match completion {
        Some(done) if done.result() < 0 => Err(io::Error::from_raw_os_error(-done.result())),
        Some(_) => Ok(*buffer),
        None => {
            // The driver may still write to it.
            Box::leak(buffer);
            Err(entered.err().unwrap_or_else(|| Errno::TIMEDOUT.into()))
        }
    }
}

/// Memory of the process, given back when dropped.
struct Mapping {
    start: NonNull<c_void>,
    bytes: usize,
}

// SAFETY: memory is not bound to a thread; who may touch which part of it when is the business of `Fetched`.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(mapped: rustix::io::Result<*mut c_void>, bytes: usize) -> io::Result<Mapping> {
        let start = NonNull::new(mapped?).ok_or(Errno::NOMEM)?;
        Ok(Mapping { start, bytes })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: it was mapped by us, in this size, and nothing borrows from it beyond its life.
        let _ = unsafe { munmap(self.start.as_ptr(), self.bytes) };
    }
}

/// A queue's data: a buffer for each tag. It is kept until the queue's thread has ended, for up to then the driver may write to it.
pub(super) struct Buffers {
    memory: Mapping,
}

impl Buffers {
    pub(super) fn new() -> io::Result<Arc<Buffers>> {
        let bytes = DEPTH as usize * DATA_BYTES;
        // SAFETY: a new mapping, at an address that the system chooses.
        let mapped = unsafe {
            mmap_anonymous(ptr::null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)
        };
        Ok(Arc::new(Buffers { memory: Mapping::new(mapped, bytes)? }))
    }

    fn of(&self, tag: u16) -> *mut u8 {
        // `tag` is below DEPTH wherever it comes from: it is checked as it comes out of the ring.
        self.memory.start.as_ptr().cast::<u8>().wrapping_add(tag as usize * DATA_BYTES)
    }
}

/// A request that is ours to execute and to commit.
pub(super) struct Fetched {
    tag: u16,
    pub(super) request: Request,
    buffers: Arc<Buffers>,
}

impl Fetched {
    pub(super) fn tag(&self) -> u16 {
        self.tag
    }

    /// The first `bytes` of a write's data, at most all of the buffer.
    pub(super) fn data(&self, bytes: usize) -> &[u8] {
        // SAFETY: the tag is ours, so the driver does not write to its buffer; `self` is borrowed as long as the data.
        unsafe { std::slice::from_raw_parts(self.buffers.of(self.tag), bytes.min(DATA_BYTES)) }
    }

    /// Room for the first `bytes` of a read's data, at most all of the buffer.
    pub(super) fn room(&mut self, bytes: usize) -> &mut [u8] {
        // SAFETY: as above, and `self` is borrowed for change.
        unsafe { std::slice::from_raw_parts_mut(self.buffers.of(self.tag), bytes.min(DATA_BYTES)) }
    }
}

/// What a wait brought.
#[derive(Default)]
pub(super) struct Arrived {
    pub(super) fetched: Vec<Fetched>,
    /// Somebody poked.
    pub(super) poked: bool,
    /// The time was over before anything came.
    pub(super) quiet: bool,
}

/// A device's queue, for the thread that made it and no other: the driver serves requests to the thread that fetched first.
pub(super) struct Ring {
    ring: IoUring<Entry128>,
    device: OwnedFd,
    descriptors: Mapping,
    buffers: Arc<Buffers>,
    /// Tags that the driver has taken back for good, since the device is being stopped.
    aborted: usize,
    /// Buffers have been used since they were last given back.
    touched: bool,
}

impl Ring {
    /// Makes the queue of `device` (`/dev/ublkcN`) and fetches for every tag. The poke of `wake` ends a wait.
    pub(super) fn new(device: OwnedFd, wake: BorrowedFd<'_>, buffers: Arc<Buffers>) -> io::Result<Ring> {
        let page_bytes = rustix::param::page_size();
        // ublk_queue_cmd_buf_size of the driver.
        let bytes = (DEPTH as usize * IO_DESC_BYTES).next_multiple_of(page_bytes);
        // SAFETY: a new mapping, at an address that the system chooses.
        let mapped =
            unsafe { mmap(ptr::null_mut(), bytes, ProtFlags::READ, MapFlags::SHARED, device.as_fd(), 0) };
        let descriptors = Mapping::new(mapped, bytes)?;
        let ring = IoUring::builder()
            .setup_coop_taskrun()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .build(u32::from(DEPTH) * 2)?;
        let mut queue = Ring { ring, device, descriptors, buffers, aborted: 0, touched: false };
        queue.listen(wake)?;
        for tag in 0..DEPTH {
            queue.send(FETCH_REQ, tag, 0)?;
        }
        queue.submit()?;
        if let Some(refused) = queue.ring.completion().find(|done| done.result() < 0) {
            return Err(io::Error::from_raw_os_error(-refused.result()));
        }
        Ok(queue)
    }

    /// Another hold on the ring, which the kernel lets go of with the last one.
    ///
    /// To be kept until the thread that fetched has ended. A driver before Linux 6.15 that has begun to take requests back, for the ring
    /// is closed, still hands out those that are on their way to a thread which lives, and never asks for them again: whatever asks
    /// something of the device then waits for ever, and whoever would take it up. One that has ended is handed nothing.
    pub(super) fn hold(&self) -> io::Result<OwnedFd> {
        // SAFETY: it is open as long as `self` lives.
        let ring = unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) };
        ring.try_clone_to_owned()
    }

    /// Lets the next poke end a wait.
    pub(super) fn listen(&mut self, wake: BorrowedFd<'_>) -> io::Result<()> {
        const POLLIN: u32 = 1;
        let entry = opcode::PollAdd::new(Fd(wake.as_raw_fd()), POLLIN).build().user_data(WAKE);
        // SAFETY: a poll has no memory of ours.
        unsafe { self.ring.submission().push(&entry.into()) }.map_err(|_| Errno::BUSY.into())
    }

    fn send(&mut self, command: u32, tag: u16, result: i32) -> io::Result<()> {
        let bytes = io_cmd(tag, result, self.buffers.of(tag) as u64);
        let entry = opcode::UringCmd80::new(Fd(self.device.as_raw_fd()), command)
            .cmd(bytes)
            .build()
            .user_data(u64::from(tag));
        // SAFETY: the buffer lives until this thread has ended, and from here on nobody has the tag's `Fetched`. The ring has twice
        // as many entries as there are tags, each of which has at most one command, so that it is never full.
        unsafe { self.ring.submission().push(&entry) }.map_err(|_| Errno::BUSY.into())
    }

    /// Answers a request with the bytes it came to, or with minus an error number, at the next submit or wait.
    pub(super) fn commit(&mut self, done: Fetched, result: i32) -> io::Result<()> {
        self.send(COMMIT_AND_FETCH_REQ, done.tag, result)
    }

    /// Hands over what is committed.
    pub(super) fn submit(&mut self) -> io::Result<()> {
        loop {
            match self.ring.submit() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other.map(|_| ()),
            }
        }
    }

    /// Hands over what is committed, and waits at most `limit` for requests or a poke; not at all if `limit` is none.
    pub(super) fn wait(&mut self, limit: Option<Duration>) -> io::Result<Arrived> {
        let mut arrived = Arrived::default();
        let entered = match limit {
            None => self.ring.submitter().submit_and_wait(0),
            Some(limit) => {
                let limit = Timespec::from(limit);
                self.ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&limit))
            }
        };
        match entered.map_err(|error| (Errno::from_io_error(&error), error)) {
            Ok(_) => {}
            Err((Some(Errno::TIME), _)) => arrived.quiet = true,
            // A signal; or completions have to be taken first.
            Err((Some(Errno::INTR | Errno::BUSY), _)) => {}
            Err((_, error)) => return Err(error),
        }
        loop {
            let Some(done) = self.ring.completion().next() else { break };
            arrived.quiet = false;
            let tag = match u16::try_from(done.user_data()) {
                Ok(tag) if tag < DEPTH => tag,
                _ => {
                    arrived.poked = true;
                    continue;
                }
            };
            match done.result() {
                0 => {
                    self.touched = true;
                    let request = Request::parse(&self.descriptor(tag));
                    arrived.fetched.push(Fetched { tag, request, buffers: Arc::clone(&self.buffers) });
                }
                // UBLK_IO_RES_ABORT, or a commit that came too late for a device that is being stopped.
                _ => self.aborted += 1,
            }
        }
        Ok(arrived)
    }

    /// Whether the driver has taken back every tag but `ours`.
    pub(super) fn stopped(&self, ours: usize) -> bool {
        self.aborted + ours >= DEPTH as usize && self.aborted > 0
    }

    fn descriptor(&self, tag: u16) -> [u8; IO_DESC_BYTES] {
        let at = self.descriptors.start.as_ptr().cast::<[u8; IO_DESC_BYTES]>().wrapping_add(tag as usize);
        // SAFETY: within the mapping, since `tag` is below DEPTH; the driver wrote it before the completion and does not until the
        // tag is committed.
        unsafe { ptr::read_volatile(at) }
    }

    /// Gives the buffers' memory back to the system, if `none_ours`.
    pub(super) fn shrink(&mut self, none_ours: bool) {
        if self.touched && none_ours {
            self.touched = false;
            let memory = &self.buffers.memory;
            // SAFETY: nobody has a tag, so what the buffers hold is nobody's data; a buffer that the driver fills meanwhile cannot be, for
            // it does that only in this thread.
            let _ = unsafe { madvise(memory.start.as_ptr(), memory.bytes, Advice::LinuxDontNeed) };
        }
    }
}
