//! What other threads tell a connection's thread, and how they wake it.

use crate::lun::LunError;
use crate::scsi::JobEnd;
use parking_lot::Mutex;
use rustix::event::{eventfd, EventfdFlags};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Instant;

/// Kept for as long as a task that was ended may still be executed.
pub(super) type Fence = Arc<()>;

/// A message to a connection.
#[derive(Debug)]
pub(super) enum Event {
    /// The flush of this number is over.
    Flushed(u64, Result<(), LunError>),
    /// The job of this number is over.
    Worked(u64, JobEnd),
    /// The extents that the forwarded command of this number waits for may be free.
    Forward(u64),
    /// What the forwarded command of this number came to has been read back, or is durable; or why it is not to be told to have come to its
    /// end.
    Settled(u64, Option<LunError>),
    /// Tasks of a unit have been ended. Whoever keeps this may have some at an array yet.
    Fence(Fence),
    /// The target's units changed.
    UnitsChanged,
    /// End now: the session is reinstated elsewhere, or it was reset away.
    Close,
    /// The target is gone: say so, and end.
    Removed,
    /// The server stops: ask the initiator to log out, end by the deadline.
    Stop(Instant),
}

/// A connection's letter box.
#[derive(Debug)]
pub(super) struct Outbox {
    bell: OwnedFd,
    events: Mutex<Vec<Event>>,
    /// The reader will look before it sleeps: no need to ring.
    awake: AtomicBool,
}

impl Outbox {
    pub(super) fn new() -> io::Result<Outbox> {
        let flags = EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC;
        Ok(Outbox { bell: eventfd(0, flags)?, events: Mutex::new(Vec::new()), awake: AtomicBool::new(true) })
    }

    /// Leaves a message; never blocks longer than the lock.
    pub(super) fn push(&self, event: Event) {
        self.events.lock().push(event);
        if !self.awake.swap(true, Ordering::SeqCst) {
            // The counter cannot overflow: it rings once per sleep.
            let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
        }
    }

    /// Announces sleep. False: a message came first, so stay awake.
    pub(super) fn may_sleep(&self) -> bool {
        self.awake.store(false, Ordering::SeqCst);
        if self.events.lock().is_empty() {
            return true;
        }
        self.awake.store(true, Ordering::SeqCst);
        false
    }

    /// Ends a sleep; `rung` if the bell was readable.
    pub(super) fn woke(&self, rung: bool) {
        self.awake.store(true, Ordering::SeqCst);
        if rung {
            let _ = rustix::io::read(&self.bell, &mut [0u8; 8]);
        }
    }

    /// Moves the messages to `into`.
    pub(super) fn take(&self, into: &mut Vec<Event>) {
        into.append(&mut self.events.lock());
    }

    /// What to poll.
    pub(super) fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}
