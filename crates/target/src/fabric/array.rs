//! One target of another array: whom sessions log in to, as whom, and how they are.

use super::limbo::{Key, Limbo};
use super::loss::Loss;
use crate::scsi::InitiatorPort;
use parking_lot::Mutex;
use playhead_initiator::{Remote, Status};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// How long hosts are told BUSY while the array cannot be reached, before commands fail.
///
/// BUSY says that nothing was done and to try again, which is true of a command that was not sent. Linux requeues it after a pause,
/// without counting it as a failure, up to six times the command's timeout (`scsi_cmd_runtime_exceeded`: 180 s with the usual 30 s);
/// ESXi waits and retries too. After this time ABORTED COMMAND, 0B/08/00 LOGICAL UNIT COMMUNICATION FAILURE: Linux tries that at most five
/// times and then lets multipath or the file system know, as a cluster wants it. NOT READY 02/04/xx is not used: Linux retries 04/01 only
/// for some commands, and ESXi may take it for a medium that needs an operator.
pub const BUSY_FOR: Duration = Duration::from_secs(30);

/// The last state of one session's link.
#[derive(Debug, Clone)]
pub struct LinkStatus {
    /// As whom it logs in.
    pub initiator: Arc<str>,
    /// With this ISID.
    pub isid: [u8; 6],
    /// Where it is.
    pub status: Status,
}

/// Signs that the array has lost something, whichever session and LUN they were seen on. Numbers that only rise; to read one costs nothing.
#[derive(Debug, Default)]
pub(crate) struct Signs {
    /// Sessions that were lost, and resets: what is not flushed may be gone, of any LUN.
    pub(crate) disturbed: AtomicU64,
    /// Deferred errors: anything may be.
    pub(crate) lost: AtomicU64,
}

/// Of each array by its portals: what happens to one of its targets has happened to all.
static SIGNS: Mutex<Vec<(SocketAddr, Weak<Signs>)>> = Mutex::new(Vec::new());

impl Signs {
    /// Those of the array that has one of `portals`.
    fn of(portals: &[SocketAddr]) -> Arc<Signs> {
        let mut all = SIGNS.lock();
        all.retain(|(_, signs)| signs.strong_count() > 0);
        let known =
            all.iter().find(|(portal, _)| portals.contains(portal)).and_then(|(_, signs)| signs.upgrade());
        let signs = known.unwrap_or_default();
        all.extend(portals.iter().map(|portal| (*portal, Arc::downgrade(&signs))));
        signs
    }

    /// Something is to be looked into.
    pub(crate) fn note_sign(&self) {
        self.disturbed.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn note(&self, loss: Loss) {
        self.disturbed.fetch_add(1, Ordering::AcqRel);
        if loss == Loss::Anything {
            self.lost.fetch_add(1, Ordering::AcqRel);
        }
    }
}

/// A target of an array.
pub struct Array {
    remote: Remote,
    as_host: bool,
    links: Mutex<Vec<Weak<Mutex<LinkStatus>>>>,
    pub(crate) limbo: Arc<Limbo>,
    pub(crate) signs: Arc<Signs>,
}

impl std::fmt::Debug for Array {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Array").field("target", &self.remote.target).finish_non_exhaustive()
    }
}

impl Array {
    /// The target of `remote`, whose initiator name and ISID are Playhead's own. `as_host`: hosts' sessions go on under the hosts' own
    /// names; else all under that one, told apart by ISID.
    pub fn new(remote: Remote, as_host: bool) -> Arc<Array> {
        let limbo = Limbo::new(remote.clone());
        let signs = Signs::of(&remote.portals);
        Arc::new(Array { limbo, signs, remote, as_host, links: Mutex::default() })
    }

    /// Whom to log in to, as Playhead itself.
    pub fn remote(&self) -> &Remote {
        &self.remote
    }

    /// Whether it is a target of the same array as `other`: one of its portals leads to that too.
    pub(crate) fn is_beside(&self, other: &Array) -> bool {
        std::ptr::eq(self, other)
            || self.remote.portals.iter().any(|portal| other.remote.portals.contains(portal))
    }

    /// For a session of Playhead's own: each purpose has a qualifier, so that none ends another's.
    pub fn own_remote(&self, qualifier: u16) -> Remote {
        let mut remote = self.remote.clone();
        remote.isid[4..].copy_from_slice(&qualifier.to_be_bytes());
        remote
    }

    /// The key and the remote of a session for the host port `port`. To be given back to [`Limbo::leave`].
    pub(crate) fn admit(&self, port: &InitiatorPort) -> (Key, Remote) {
        let initiator =
            if self.as_host { Arc::clone(&port.name) } else { Arc::clone(&self.remote.initiator) };
        let key = self.limbo.claim(initiator, port.isid);
        let remote = Remote { initiator: Arc::clone(&key.0), isid: key.1, ..self.remote.clone() };
        (key, remote)
    }

    /// A link tells how it is in the returned place, for as long as it keeps it.
    pub(crate) fn enter(&self, status: LinkStatus) -> Arc<Mutex<LinkStatus>> {
        let place = Arc::new(Mutex::new(status));
        let mut links = self.links.lock();
        links.retain(|link| link.strong_count() > 0);
        links.push(Arc::downgrade(&place));
        place
    }

    /// How the links of hosts' sessions are.
    pub fn links(&self) -> Vec<LinkStatus> {
        let links = self.links.lock();
        links.iter().filter_map(Weak::upgrade).map(|link| link.lock().clone()).collect()
    }
}
