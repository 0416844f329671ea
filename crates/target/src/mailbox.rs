//! What reaches a front end's thread from other threads: flushes that are over, and pokes to look around.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::event::{eventfd, EventfdFlags};

use crate::lun::{FlushDone, LunError};

/// An event a thread polls for.
pub(crate) struct Wake {
    event: OwnedFd,
}

impl Wake {
    pub(crate) fn new() -> io::Result<Wake> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Wake { event })
    }

    /// Makes the thread's poll return, now or the next time.
    pub(crate) fn poke(&self) {
        // It can only fail when the counter is full, and then the thread is poked well enough.
        let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
    }

    /// Forgets pokes that have been heard.
    pub(crate) fn hear(&self) {
        let _ = rustix::io::read(&self.event, &mut [0_u8; 8]);
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

/// A flush that is over, and the requests that wait for it.
pub(crate) struct Finished {
    pub(crate) cookies: Vec<u64>,
    pub(crate) result: Result<(), LunError>,
}

#[derive(Default)]
struct Post {
    finished: Vec<Finished>,
    /// The owner is about to poll, or polls: only then is it worth a system call to wake it.
    parked: bool,
}

/// The mailbox of a connection, or of a block device's queue.
pub(crate) struct Mailbox {
    post: Mutex<Post>,
    pub(crate) wake: Wake,
}

impl Mailbox {
    pub(crate) fn new() -> io::Result<Mailbox> {
        Ok(Mailbox { post: Mutex::default(), wake: Wake::new()? })
    }

    /// What has finished so far.
    pub(crate) fn take(&self) -> Vec<Finished> {
        let mut post = self.post.lock();
        post.parked = false;
        std::mem::take(&mut post.finished)
    }

    /// Announces that the owner will poll. False when something has finished already: take it first.
    pub(crate) fn park(&self) -> bool {
        let mut post = self.post.lock();
        post.parked = post.finished.is_empty();
        post.parked
    }

    fn put(&self, finished: Finished) {
        let mut post = self.post.lock();
        post.finished.push(finished);
        let wake = std::mem::take(&mut post.parked);
        drop(post);
        if wake {
            self.wake.poke();
        }
    }

    /// The end of a flush that the requests of `cookies` wait for. It arrives even if the LUN drops it uncalled.
    pub(crate) fn flush_done(self: &Arc<Mailbox>, cookies: Vec<u64>) -> FlushDone {
        let mut ticket = Ticket { mailbox: Arc::clone(self), cookies };
        Box::new(move |result| ticket.deliver(result))
    }
}

struct Ticket {
    mailbox: Arc<Mailbox>,
    cookies: Vec<u64>,
}

impl Ticket {
    fn deliver(&mut self, result: Result<(), LunError>) {
        let cookies = std::mem::take(&mut self.cookies);
        if !cookies.is_empty() {
            self.mailbox.put(Finished { cookies, result });
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.deliver(Err(LunError::Io { name: "LUN".into(), detail: "the flush was abandoned".into() }));
    }
}
