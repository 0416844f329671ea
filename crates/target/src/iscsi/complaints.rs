//! What is wrong with a peer goes to the log, but no faster than someone can read it.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The same of the same peer is logged once in this time.
const QUIET: Duration = Duration::from_secs(60);
/// Peers and faults remembered; those beyond share one place.
const REMEMBERED_MAX: usize = 1024;

#[derive(Debug)]
struct Line {
    logged: Instant,
    /// How often it came again since.
    untold: u64,
}

/// What was logged lately.
#[derive(Debug, Default)]
pub(super) struct Complaints {
    lines: Mutex<HashMap<(Option<IpAddr>, String), Line>>,
    authentication_failures: AtomicU64,
}

impl Complaints {
    /// A fault of `kind` by `peer`. `Some`: log it; that many of the kind were not logged since it was last.
    pub(super) fn note(&self, peer: IpAddr, kind: &str) -> Option<u64> {
        let now = Instant::now();
        let mut lines = self.lines.lock();
        let mut place = (Some(peer), kind.to_owned());
        if lines.len() >= REMEMBERED_MAX && !lines.contains_key(&place) {
            lines.retain(|_, line| now - line.logged < QUIET);
            if lines.len() >= REMEMBERED_MAX {
                place = (None, String::new());
            }
        }
        let Some(line) = lines.get_mut(&place) else {
            lines.insert(place, Line { logged: now, untold: 0 });
            return Some(0);
        };
        if now - line.logged < QUIET {
            line.untold += 1;
            return None;
        }
        line.logged = now;
        Some(std::mem::take(&mut line.untold))
    }

    /// Counts a login that failed for lack of proof.
    pub(super) fn authentication_failed(&self) {
        self.authentication_failures.fetch_add(1, Ordering::Relaxed);
    }

    /// How many those were.
    pub(super) fn authentication_failures(&self) -> u64 {
        self.authentication_failures.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_of_a_peer_is_told_once_and_counted_then() {
        let complaints = Complaints::default();
        let peers: Vec<IpAddr> = (0..=255).map(|i| IpAddr::from([10, 0, 0, i])).collect();
        assert_eq!(complaints.note(peers[0], "a"), Some(0));
        assert_eq!(complaints.note(peers[0], "a"), None);
        assert_eq!(complaints.note(peers[0], "b"), Some(0));
        assert_eq!(complaints.note(peers[1], "a"), Some(0));
        let place = (Some(peers[0]), "a".to_owned());
        assert_eq!(complaints.lines.lock()[&place].untold, 1);
    }

    #[test]
    fn however_many_there_are_memory_stays_bounded() {
        let complaints = Complaints::default();
        for i in 0..5000u32 {
            complaints.note(IpAddr::from(i.to_be_bytes()), "a");
        }
        assert!(complaints.lines.lock().len() <= REMEMBERED_MAX + 1);
    }
}
