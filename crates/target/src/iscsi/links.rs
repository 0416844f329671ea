//! A session's links to arrays: one session with each target of an array whose LUNs the host uses, polled with the host's own socket.

use super::connection::Other;
use crate::fabric::array::BUSY_FOR;
use crate::fabric::limbo::{Key, Owner, Unended, Way};
use crate::fabric::loss::{Ear, Heard, Loss};
use crate::fabric::{Array, LinkStatus};
use crate::scsi::InitiatorPort;
use parking_lot::Mutex;
use playhead_initiator::{Event, Nexus};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

/// A session with an array on behalf of one host's session.
pub(super) struct ArrayLink {
    pub(super) array: Arc<Array>,
    pub(super) nexus: Nexus,
    /// Forwarded commands, by the nexus' tag.
    pub(super) numbers: HashMap<u64, u64>,
    key: Key,
    /// Of the last session.
    way: Option<Way>,
    place: Arc<Mutex<LinkStatus>>,
    /// The array cannot be reached, since then.
    down_since: Option<Instant>,
    ready: (bool, bool),
    /// Of each LUN, by its number at the array.
    ears: HashMap<[u8; 8], Ear>,
}

impl ArrayLink {
    fn new(array: &Arc<Array>, port: &InitiatorPort) -> ArrayLink {
        let (key, remote) = array.admit(port);
        let nexus = Nexus::new(remote);
        let status = LinkStatus { initiator: Arc::clone(&key.0), isid: key.1, status: nexus.status() };
        let place = array.enter(status);
        let array = Arc::clone(array);
        ArrayLink {
            array,
            nexus,
            numbers: HashMap::new(),
            key,
            way: None,
            place,
            down_since: None,
            ready: (false, false),
            ears: HashMap::new(),
        }
    }

    /// Does what can be done now, and returns the next thing to tell.
    fn progress(&mut self) {
        let (readable, writable) = std::mem::take(&mut self.ready);
        let due = || self.nexus.deadline().is_some_and(|at| at <= Instant::now());
        if readable || writable || due() {
            self.nexus.progress(readable, writable);
        }
    }

    /// The nexus came up or went down.
    pub(super) fn note(&mut self, event: &Event) {
        match event {
            Event::Up(portal) => {
                if self.down_since.take().is_some() {
                    log::info!("array {} is reached again at {portal}, for {}", self.name(), self.key.0);
                }
                // The array has ended whatever an older session of this name had under way by this way.
                let way = Way { portal: *portal, group: self.nexus.portal_group() };
                self.way = Some(way);
                self.array.limbo.settle(&self.key, way);
            }
            Event::Down(why) => {
                if self.down_since.is_none() {
                    self.down_since = Some(Instant::now());
                    log::warn!("{why}; hosts are told to wait (as {})", self.key.0);
                }
                self.array.signs.note(Loss::Unflushed);
            }
            _ => return,
        }
        self.place.lock().status = self.nexus.status();
    }

    /// An answer of the LUN at `address` to the operation code `code`: what it says to be lost, if anything.
    pub(super) fn hear(&mut self, address: [u8; 8], code: u8, status: u8, sense: &[u8]) -> Option<Loss> {
        match self.ears.entry(address).or_default().hear(self.nexus.sessions(), code, status, sense)? {
            Heard::Sign => {
                self.array.signs.note_sign();
                None
            }
            Heard::Lost(loss) => {
                self.array.signs.note(loss);
                Some(loss)
            }
        }
    }

    fn name(&self) -> &str {
        self.array.remote().target.as_deref().unwrap_or_default()
    }

    /// Whether commands that cannot be sent are better tried again a little later than failed.
    pub(super) fn may_wait(&self) -> bool {
        self.down_since.is_none_or(|since| since.elapsed() < BUSY_FOR)
    }

    /// A change that was under way when the connection was lost.
    pub(super) fn put_in_limbo(&self, owner: &Owner, change: Box<dyn Unended>) {
        self.array.limbo.keep(&self.key, owner, self.way, change);
    }
}

impl Drop for ArrayLink {
    fn drop(&mut self) {
        // Before anybody else logs in under this name.
        self.nexus.close();
        self.array.limbo.leave(&self.key);
    }
}

/// All links of a session.
#[derive(Default)]
pub(super) struct Links {
    all: Vec<ArrayLink>,
}

impl Links {
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub(super) fn get(&mut self, at: usize) -> Option<&mut ArrayLink> {
        self.all.get_mut(at)
    }

    /// The link to `array`, made if there is none. It stays where it is.
    pub(super) fn find(&mut self, array: &Arc<Array>, port: &InitiatorPort) -> usize {
        if let Some(at) = self.all.iter().position(|link| Arc::ptr_eq(&link.array, array)) {
            return at;
        }
        self.all.push(ArrayLink::new(array, port));
        self.all.len() - 1
    }

    /// Does what can be done now. The events, with the links they are of, are appended to `events`.
    pub(super) fn progress(&mut self, events: &mut Vec<(usize, Event)>) {
        for (at, link) in self.all.iter_mut().enumerate() {
            link.progress();
            while let Some(event) = link.nexus.take() {
                events.push((at, event));
            }
        }
    }

    /// Sends what was given.
    pub(super) fn send(&mut self) {
        self.all.iter_mut().for_each(|link| link.nexus.send());
    }

    /// Drops all connections; they come back (I_T NEXUS RESET).
    pub(super) fn reset(&mut self) {
        self.all.iter_mut().for_each(|link| link.nexus.reset());
    }

    pub(super) fn release(&mut self) {
        self.all.iter_mut().for_each(|link| link.nexus.release());
    }

    /// When something is to be done even if nothing is ready.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.all.iter().filter_map(|link| link.nexus.deadline()).min()
    }

    /// What to poll besides the host's socket, by link.
    pub(super) fn interest(&self) -> Vec<(usize, Other<'_>)> {
        let mut others = Vec::with_capacity(self.all.len());
        for (at, link) in self.all.iter().enumerate() {
            if let Some((fd, read, write)) = link.nexus.interest() {
                others.push((at, Other { fd, read, write }));
            }
        }
        others
    }

    pub(super) fn set_ready(&mut self, at: usize, readable: bool, writable: bool) {
        if let Some(link) = self.all.get_mut(at) {
            link.ready = (readable, writable);
        }
    }
}
