//! Whom to log in to, as whom, and how patiently.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// A name and what proves it. Debug output does not show the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    /// CHAP_N.
    pub name: String,
    /// What both sides know.
    pub secret: Vec<u8>,
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secret").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Credentials (RFC 7143 12.1.3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chap {
    /// What this side proves itself with.
    pub ours: Secret,
    /// What the target must prove itself with, if it must.
    pub theirs: Option<Secret>,
}

/// How long to wait for what.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// From the first SYN to the full feature phase.
    pub login: Duration,
    /// Of silence after which a sign of life is asked for.
    pub ping_after: Duration,
    /// For it to come; also for a logout, and for a socket that takes nothing.
    pub ping_answer: Duration,
    /// Before the second attempt on the same portal; doubles with each further one.
    pub back_off_min: Duration,
    /// What that grows to.
    pub back_off_max: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts {
            login: Duration::from_secs(10),
            ping_after: Duration::from_secs(5),
            ping_answer: Duration::from_secs(5),
            back_off_min: Duration::from_millis(100),
            back_off_max: Duration::from_secs(5),
        }
    }
}

/// A target elsewhere, and who this side is to it.
#[derive(Debug, Clone)]
pub struct Remote {
    /// The target's iSCSI name; none for a discovery session.
    pub target: Option<Arc<str>>,
    /// Ways to it, in order of preference.
    pub portals: Vec<SocketAddr>,
    /// This side's iSCSI name.
    pub initiator: Arc<str>,
    /// This side's part of the session id.
    pub isid: [u8; 6],
    /// Credentials, if the target wants any. With them nothing but CHAP is offered.
    pub chap: Option<Chap>,
    /// Ask for CRC32C over headers; without it, it is not offered.
    pub header_digest: bool,
    /// The same over data.
    pub data_digest: bool,
    /// Patience.
    pub timeouts: Timeouts,
}

impl Remote {
    /// The target `target` at `portals`, as `initiator`, without credentials or digests.
    pub fn new(initiator: &str, isid: [u8; 6], target: Option<&str>, portals: Vec<SocketAddr>) -> Remote {
        Remote {
            target: target.map(Into::into),
            portals,
            initiator: initiator.into(),
            isid,
            chap: None,
            header_digest: false,
            data_digest: false,
            timeouts: Timeouts::default(),
        }
    }
}
