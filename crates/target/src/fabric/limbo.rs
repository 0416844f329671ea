//! Changes whose end nobody knows, because the session they were sent in is lost.
//!
//! They must not be read back at once: the array may execute them yet, after the reading, and the replica would be wrong for good. What
//! ends them for certain is a login under the same initiator name and ISID: the array ends the older session, tasks and all, before it
//! answers (session reinstatement, RFC 7143 6.3.5). So they wait here, their extents taken, until the host's next session has logged in,
//! or, if there is none, until a thread of this module has.

use parking_lot::Mutex;
use playhead_initiator::{Blocking, Remote};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// Who a session is to the array: initiator name and ISID.
pub type Key = (Arc<str>, [u8; 6]);

/// Called once it is certain that the change is not under way any more.
pub type Conclude = Box<dyn FnOnce() + Send>;

/// Whose change it is: a volume, with whether it has been let go of.
pub type Owner = Arc<AtomicBool>;

/// How long a host's own session is waited for.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// For one attempt to log in.
const LOGIN_LIMIT: Duration = Duration::from_secs(10);
/// Sessions of one initiator port that are told apart.
const ALIKE_MAX: u16 = 256;

#[derive(Default)]
struct Held {
    users: usize,
    since: Option<Instant>,
    changes: Vec<(Owner, Conclude)>,
}

/// The changes of one array that are in limbo.
pub struct Limbo {
    remote: Remote,
    held: Mutex<HashMap<Key, Held>>,
    /// A thread is at work.
    working: Mutex<bool>,
    myself: Weak<Limbo>,
}

impl Limbo {
    pub(super) fn new(remote: Remote) -> Arc<Limbo> {
        Arc::new_cyclic(|myself| Limbo {
            remote,
            held: Mutex::default(),
            working: Mutex::new(false),
            myself: Weak::clone(myself),
        })
    }

    /// Takes the key of an initiator port for a session. Where another session has it (the host is logged in to two of our targets with
    /// one ISID), one next to it: the array would end the other's session otherwise.
    pub(super) fn claim(&self, initiator: Arc<str>, isid: [u8; 6]) -> Key {
        let mut held = self.held.lock();
        let mut key = (initiator, isid);
        for step in 1..ALIKE_MAX {
            if held.get(&key).is_none_or(|held| held.users == 0) {
                break;
            }
            // The qualifier (RFC 7143 11.12.5): the last two bytes.
            let qualifier = u16::from_be_bytes([isid[4], isid[5]]).wrapping_add(step);
            key.1[4..].copy_from_slice(&qualifier.to_be_bytes());
        }
        held.entry(key.clone()).or_default().users += 1;
        key
    }

    /// A session with this key has logged in: whatever an older one sent is over.
    pub(crate) fn settle(&self, key: &Key) {
        let changes = self.held.lock().get_mut(key).map(|held| std::mem::take(&mut held.changes));
        changes.into_iter().flatten().for_each(|(_, conclude)| conclude());
    }

    /// A session with this key was lost, and will come back, with this change under way. Dropped, which leaves it marked, if its volume
    /// has been let go of.
    pub(crate) fn keep(&self, key: &Key, owner: &Owner, change: Conclude) {
        let mut held = self.held.lock();
        if !owner.load(Ordering::Acquire) {
            held.entry(key.clone()).or_default().changes.push((Arc::clone(owner), change));
        }
    }

    /// A session with this key is over for good.
    pub(crate) fn leave(&self, key: &Key) {
        let mut held = self.held.lock();
        let Some(of_key) = held.get_mut(key) else {
            return;
        };
        of_key.users = of_key.users.saturating_sub(1);
        of_key.since = Some(Instant::now());
        if of_key.users == 0 && of_key.changes.is_empty() {
            held.remove(key);
            return;
        }
        drop(held);
        self.work();
    }

    /// Gives up waiting for changes of one volume, those that are here and those that come yet: it is let go of. What waited is dropped,
    /// which leaves it marked. Other volumes of the array, and who uses which key, are none of its business.
    pub fn abandon(&self, owner: &Owner) {
        let mut abandoned = Vec::new();
        {
            let mut held = self.held.lock();
            owner.store(true, Ordering::Release);
            for of_key in held.values_mut() {
                let (its, others) = std::mem::take(&mut of_key.changes)
                    .into_iter()
                    .partition(|(of, _)| Arc::ptr_eq(of, owner));
                of_key.changes = others;
                let its: Vec<(Owner, Conclude)> = its;
                abandoned.extend(its);
            }
        }
        drop(abandoned);
    }

    /// Changes that wait.
    pub fn len(&self) -> usize {
        self.held.lock().values().map(|held| held.changes.len()).sum()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn work(&self) {
        let mut working = self.working.lock();
        let Some(myself) = self.myself.upgrade().filter(|_| !*working) else {
            return;
        };
        let started = std::thread::Builder::new().name("limbo".to_owned()).spawn(move || myself.run());
        match started {
            Ok(_) => *working = true,
            Err(error) => {
                log::error!("no thread to conclude changes with: {error}; they stay marked until the restart")
            }
        }
    }

    fn run(&self) {
        loop {
            std::thread::sleep(LOOK_EVERY);
            let due = {
                let held = self.held.lock();
                let abandoned = |held: &Held| held.users == 0 && !held.changes.is_empty();
                if !held.values().any(abandoned) {
                    *self.working.lock() = false;
                    return;
                }
                let late = |held: &Held| held.since.is_none_or(|since| since.elapsed() >= PATIENCE);
                held.iter().find(|(_, held)| abandoned(held) && late(held)).map(|(key, _)| key.clone())
            };
            let Some(key) = due else {
                continue;
            };
            let remote = Remote { initiator: Arc::clone(&key.0), isid: key.1, ..self.remote.clone() };
            let mut array = Blocking::new(remote);
            // A host that has come back meanwhile may lose its new session to this: it logs in again.
            if array.log_in(LOGIN_LIMIT).is_ok() {
                self.settle(&key);
                self.held.lock().retain(|_, held| held.users > 0 || !held.changes.is_empty());
            } else if let Some(held) = self.held.lock().get_mut(&key) {
                held.since = Some(Instant::now());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_that_is_let_go_of_takes_its_own_changes_along_and_nobody_elses() {
        let limbo = Limbo::new(Remote::new("iqn.a", [0; 6], Some("iqn.t"), Vec::new()));
        let (ours, theirs) = (Owner::default(), Owner::default());
        let key = limbo.claim("iqn.h".into(), [0; 6]);
        limbo.keep(&key, &ours, Box::new(|| panic!("not over yet")));
        limbo.keep(&key, &theirs, Box::new(|| {}));
        limbo.abandon(&ours);
        assert_eq!(limbo.len(), 1);
        // One that comes later waits for nobody.
        limbo.keep(&key, &ours, Box::new(|| panic!("not over yet")));
        assert_eq!(limbo.len(), 1);
        assert_ne!(limbo.claim("iqn.h".into(), [0; 6]), key, "the session has its key still");
        limbo.settle(&key);
        assert!(limbo.is_empty());
    }
}
