//! Changes whose end nobody knows, because the session they were sent in is lost.
//!
//! They must not be read back at once: the array may execute them yet, after the reading, and the replica would be wrong for good. What
//! ends them for certain is a login under the same initiator name and ISID: the array ends the older session, tasks and all, before it
//! answers (session reinstatement, RFC 7143 6.3.5). So they wait here, their extents taken, until the host's next session has logged in,
//! or, if there is none, until a thread of this module has.
//!
//! That holds within a portal group. Portals of another one are another port of the target (RFC 7143 4.4.1): a session by them begins beside the
//! older one, and ends nothing of it. If the host's next session comes by such a portal, its changes are let pass, so that it can
//! go on, and what they touch is not compared until the thread has logged in by the portal that they were sent by.

use parking_lot::Mutex;
use playhead_initiator::{Blocking, Remote};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// Who a session is to the array: initiator name and ISID.
pub type Key = (Arc<str>, [u8; 6]);

/// A change whose end nobody knows. Dropped, it stays marked.
pub trait Unended: Send {
    /// It may stay so for long: others may have its extents.
    fn let_pass(&mut self);

    /// It is certain that it is not under way any more.
    fn conclude(self: Box<Self>);
}

/// By which way a session has the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    /// Where it has logged in.
    pub portal: SocketAddr,
    /// The portal group's tag, if the target has told it.
    pub group: Option<u16>,
}

impl Way {
    /// Whether a session by this way has ended one of the same name by `other`.
    fn ends(self, other: Way) -> bool {
        match (self.group, other.group) {
            (Some(ours), Some(theirs)) => ours == theirs || self.portal == other.portal,
            _ => true,
        }
    }
}

/// Whose change it is: a volume, with whether it has been let go of.
pub type Owner = Arc<AtomicBool>;

/// How long a host's own session is waited for.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// For one attempt to log in.
const LOGIN_LIMIT: Duration = Duration::from_secs(10);
/// For one by a portal that the host itself has left: others wait meanwhile.
const BACK_LIMIT: Duration = Duration::from_secs(2);
/// Sessions of one initiator port that are told apart.
const ALIKE_MAX: u16 = 256;

#[derive(Default)]
struct Held {
    users: usize,
    since: Option<Instant>,
    changes: Vec<Change>,
}

struct Change {
    owner: Owner,
    /// Rises.
    number: u64,
    way: Option<Way>,
    /// The host's session has come by a way that does not end it.
    passed: bool,
    what: Box<dyn Unended>,
}

impl Held {
    /// A change to be ended by the thread: where it was sent, if the host has another way.
    fn due(&self) -> Option<Option<SocketAddr>> {
        let kept = self.users == 0 && self.changes.iter().any(|change| !change.passed);
        let passed = || self.changes.iter().find(|change| change.passed);
        if kept {
            Some(None)
        } else {
            passed().map(|change| change.way.map(|way| way.portal))
        }
    }

    fn is_late(&self) -> bool {
        self.since.is_none_or(|since| since.elapsed() >= PATIENCE)
    }
}

/// The changes of one array that are in limbo.
pub struct Limbo {
    remote: Remote,
    held: Mutex<HashMap<Key, Held>>,
    next: AtomicU64,
    /// A thread is at work.
    working: Mutex<bool>,
    myself: Weak<Limbo>,
}

impl Limbo {
    pub(super) fn new(remote: Remote) -> Arc<Limbo> {
        Arc::new_cyclic(|myself| Limbo {
            remote,
            held: Mutex::default(),
            next: AtomicU64::new(0),
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

    /// A session with this key has logged in by `way`: whatever an older one sent that way is over.
    pub(crate) fn settle(&self, key: &Key, way: Way) {
        self.settle_older(key, way, u64::MAX);
    }

    /// As [`Limbo::settle`], of those with a number below `before`: later ones were sent after that login.
    fn settle_older(&self, key: &Key, way: Way, before: u64) {
        let (over, mut passing) = {
            let mut held = self.held.lock();
            let Some(of_key) = held.get_mut(key) else {
                return;
            };
            let older = |change: &Change| change.number < before;
            let all = std::mem::take(&mut of_key.changes).into_iter();
            let (over, left): (Vec<Change>, Vec<Change>) =
                all.partition(|change| older(change) && change.way.is_none_or(|sent| way.ends(sent)));
            let (passing, left) = left.into_iter().partition(|change| older(change) && !change.passed);
            of_key.changes = left;
            (over, passing)
        };
        over.into_iter().for_each(|change| change.what.conclude());
        if passing.is_empty() {
            return;
        }
        // With nothing held, for those who waited for the extents are told.
        for change in &mut passing {
            change.what.let_pass();
            change.passed = true;
        }
        {
            let mut held = self.held.lock();
            passing.retain(|change| !change.owner.load(Ordering::Acquire));
            let of_key = held.entry(key.clone()).or_default();
            of_key.since = Some(Instant::now());
            of_key.changes.extend(passing);
        }
        self.work();
    }

    /// A session with this key by `way` was lost, and will come back, with this change under way. Dropped, which leaves it marked, if its
    /// volume has been let go of.
    pub(crate) fn keep(&self, key: &Key, owner: &Owner, way: Option<Way>, what: Box<dyn Unended>) {
        let mut held = self.held.lock();
        if !owner.load(Ordering::Acquire) {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let change = Change { owner: Arc::clone(owner), number, way, passed: false, what };
            held.entry(key.clone()).or_default().changes.push(change);
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
                let (its, others): (Vec<Change>, Vec<Change>) = std::mem::take(&mut of_key.changes)
                    .into_iter()
                    .partition(|change| Arc::ptr_eq(&change.owner, owner));
                of_key.changes = others;
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
                if !held.values().any(|held| held.due().is_some()) {
                    *self.working.lock() = false;
                    return;
                }
                let late = held.iter().filter(|(_, held)| held.is_late());
                // First those that nobody else sees to.
                late.filter_map(|(key, held)| Some((held.due()?, key.clone())))
                    .min_by_key(|(back, _)| back.is_some())
            };
            let Some((back, key)) = due else {
                continue;
            };
            let before = self.next.load(Ordering::Relaxed);
            let mut remote = Remote { initiator: Arc::clone(&key.0), isid: key.1, ..self.remote.clone() };
            remote.portals = back.map_or(remote.portals, |portal| vec![portal]);
            let mut array = Blocking::new(remote);
            let limit = if back.is_some() { BACK_LIMIT } else { LOGIN_LIMIT };
            // A host that has come back meanwhile may lose its new session to this: it logs in again.
            let logged_in = array.log_in(limit).is_ok();
            let nexus = array.nexus();
            match back.or(nexus.status().portal).filter(|_| logged_in) {
                Some(portal) => {
                    self.settle_older(&key, Way { portal, group: nexus.portal_group() }, before);
                    self.held.lock().retain(|_, held| held.users > 0 || !held.changes.is_empty());
                }
                None => {
                    if let Some(held) = self.held.lock().get_mut(&key) {
                        held.since = Some(Instant::now());
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Notes what becomes of it.
    struct Noted(Arc<Mutex<Vec<&'static str>>>);

    impl Unended for Noted {
        fn let_pass(&mut self) {
            self.0.lock().push("passed");
        }

        fn conclude(self: Box<Self>) {
            self.0.lock().push("over");
        }
    }

    fn way(port: u16, group: u16) -> Way {
        Way { portal: SocketAddr::from(([127, 0, 0, 1], port)), group: Some(group) }
    }

    #[test]
    fn a_session_ends_only_what_was_sent_by_its_portal_group() {
        let limbo = Limbo::new(Remote::new("iqn.a", [0; 6], Some("iqn.t"), Vec::new()));
        let (owner, noted) = (Owner::default(), Arc::<Mutex<Vec<&'static str>>>::default());
        let key = limbo.claim("iqn.h".into(), [0; 6]);
        let keep = |way| limbo.keep(&key, &owner, Some(way), Box::new(Noted(Arc::clone(&noted))));
        keep(way(1, 1));
        limbo.settle(&key, way(2, 1));
        assert_eq!(*noted.lock(), ["over"]);
        keep(way(1, 1));
        limbo.settle(&key, way(3, 2));
        limbo.settle(&key, way(3, 2));
        assert_eq!((limbo.len(), &noted.lock()[1..]), (1, &["passed"][..]), "let pass once");
        limbo.settle(&key, way(1, 1));
        assert_eq!((limbo.len(), &noted.lock()[2..]), (0, &["over"][..]));
        // Sent after a login, it is not ended by that.
        let before = limbo.next.load(Ordering::Relaxed);
        keep(way(1, 1));
        limbo.settle_older(&key, way(1, 1), before);
        assert_eq!((limbo.len(), noted.lock().len()), (1, 3));
    }

    #[test]
    fn a_volume_that_is_let_go_of_takes_its_own_changes_along_and_nobody_elses() {
        let limbo = Limbo::new(Remote::new("iqn.a", [0; 6], Some("iqn.t"), Vec::new()));
        let (ours, theirs) = (Owner::default(), Owner::default());
        let key = limbo.claim("iqn.h".into(), [0; 6]);
        let (of_ours, of_theirs) = (Arc::default(), Arc::default());
        let keep = |owner, noted| limbo.keep(&key, owner, None, Box::new(Noted(Arc::clone(noted))));
        keep(&ours, &of_ours);
        keep(&theirs, &of_theirs);
        limbo.abandon(&ours);
        assert_eq!(limbo.len(), 1);
        // One that comes later waits for nobody.
        keep(&ours, &of_ours);
        assert_eq!(limbo.len(), 1);
        assert_ne!(limbo.claim("iqn.h".into(), [0; 6]), key, "the session has its key still");
        limbo.settle(&key, way(1, 1));
        assert!(limbo.is_empty() && of_ours.lock().is_empty() && *of_theirs.lock() == ["over"]);
    }
}
