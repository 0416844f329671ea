//! A server that listens but does not answer yet: hosts that come back after a restart wait a moment, instead of being told that what
//! they had is not there.

use parking_lot::{Condvar, Mutex};

/// Closed until somebody opens them, for good.
#[derive(Debug, Default)]
pub(crate) struct Doors {
    open: Mutex<bool>,
    opened: Condvar,
}

impl Doors {
    pub(crate) fn open(&self) {
        *self.open.lock() = true;
        self.opened.notify_all();
    }

    /// Returns when they are open.
    pub(crate) fn wait(&self) {
        let mut open = self.open.lock();
        while !*open {
            self.opened.wait(&mut open);
        }
    }
}
