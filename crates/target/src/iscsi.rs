//! The iSCSI target (RFC 7143): targets with LUNs, their sessions, and the server that accepts them.
//!
//! The way of a write through this module: `accept` takes the connection and gives it a thread; `login` finds out who comes for
//! which target; `session` is the loop that receives, parses, executes and sends; `commands` hands consecutive writes to the
//! [`Lun`](crate::lun::Lun) as one batch straight from `buffers`; `transfers` gathers data that comes in several PDUs; `answers`
//! words the replies; `jobs` does what would hold a session up; `outbox` brings back
//! flushes and jobs that finished elsewhere; `tasks` ends tasks for initiators; `portals` says which addresses
//! discovery tells of; `manage` is everything else that is not a SCSI command.
//! `docs/iscsi.md` lists what is offered and where it stops.

mod accept;
mod answers;
mod buffers;
mod catalogue;
mod chap;
mod commands;
mod complaints;
mod connection;
mod copies;
mod credentials;
mod forward;
mod jobs;
mod links;
mod login;
mod manage;
mod masking;
mod outbox;
mod parts;
mod portals;
mod reads;
mod redirect;
mod registry;
mod session;
mod tasks;
mod transfers;
mod workers;

use crate::lun::LunRef;
use crate::scsi::{Devices, LogicalUnit, OffloadCount, Policy, Tokens};
use accept::Listener;
use catalogue::Catalogue;
use complaints::Complaints;
use parking_lot::{Mutex, RwLock};
use playhead_journal::files::DiskFiles;
pub use playhead_wire::scsi::log::Logs;
pub use playhead_wire::scsi::mode::SPACE_LOW_PERCENT;
use registry::Registry;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

pub use credentials::{Chap, Credentials, User};
pub use masking::{Grant, Masking, UnitName};
pub use redirect::Redirect;

/// What one server allows its initiators. The defaults suit an appliance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once; further ones are closed as they come.
    pub connections_max: usize,
    /// From accepting a connection to the end of its login.
    pub login: Duration,
    /// Without progress while a PDU is half received or an answer half sent.
    pub stall: Duration,
    /// Silence after which a session is asked for a sign of life.
    pub idle: Duration,
    /// How long that sign may take.
    pub ping_answer: Duration,
    /// Commands of one session that may be under way: the width of its CmdSN window.
    pub tasks_max: u32,
    /// Bytes one session's unfinished writes may hold.
    pub session_bytes_max: usize,
    /// Bytes all unfinished writes together may hold.
    pub server_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections_max: 4096,
            login: Duration::from_secs(15),
            stall: Duration::from_secs(30),
            idle: Duration::from_secs(30),
            ping_answer: Duration::from_secs(30),
            tasks_max: 128,
            session_bytes_max: 64 << 20,
            server_bytes_max: 1 << 30,
        }
    }
}

/// Why the server could not do what it was told.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The address could not be listened on.
    #[error("cannot listen for iSCSI on {address}: {source}")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// The operating system's words.
        source: io::Error,
    },
    /// The accepting thread could not be started.
    #[error("cannot start the iSCSI server: {0}")]
    Start(io::Error),
    /// The medium refused what was to be done to kept reservations.
    #[error("the persistent reservations in {what} cannot be kept or forgotten: {source}")]
    Reservations {
        /// The directory, or the LUN's UUID.
        what: String,
        /// The operating system's words.
        source: io::Error,
    },
    /// There is a target of this name.
    #[error("an iSCSI target named {iqn:?} exists already; remove it first or choose another name")]
    NameTaken {
        /// The name.
        iqn: String,
    },
    /// The name is not an iSCSI name, or the number not a LUN.
    #[error("{name:?} cannot be used: a target needs an iqn., eui. or naa. name of up to 223 bytes, and a LUN a number up to 16383")]
    BadName {
        /// What was given.
        name: String,
    },
    /// There is no target of this name.
    #[error("no iSCSI target is named {iqn:?}")]
    NoSuchTarget {
        /// The name.
        iqn: String,
    },
    /// The target has no such LUN.
    #[error("iSCSI target {iqn:?} has no LUN {number}")]
    NoSuchLun {
        /// The target's name.
        iqn: String,
        /// The LUN.
        number: u16,
    },
    /// A masking table that contradicts itself.
    #[error("LUN masking cannot be so: {detail}")]
    BadMasking {
        /// What is wrong with it.
        detail: String,
    },
    /// Credentials that cannot be used.
    #[error("the CHAP credentials of {whose} cannot be used: {detail}")]
    BadCredentials {
        /// An initiator's name, or "discovery".
        whose: String,
        /// What is wrong with them.
        detail: String,
    },
    /// Nothing that a target could be reached at.
    #[error("{address:?} is no address of a target: it needs a name or an IP address (IPv6 in brackets), and a port unless it is 3260")]
    BadAddress {
        /// What was given.
        address: String,
    },
    /// It is removed, but some I/O has not come back in time and still holds a LUN.
    #[error("{name} is removed, but I/O under way still holds it")]
    StillInUse {
        /// Target, or target and LUN.
        name: String,
    },
}

/// What is known of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionStatus {
    /// Unique in this server's life.
    pub id: u64,
    /// The initiator's iSCSI name; empty before login.
    pub initiator: String,
    /// The target's; `None` for discovery and before login.
    pub target: Option<String>,
    /// The initiator's address.
    pub peer: SocketAddr,
    /// When it connected.
    pub since: SystemTime,
    /// SCSI commands received.
    pub commands: u64,
    /// Bytes of READ data sent.
    pub read_bytes: u64,
    /// Bytes of WRITE data captured.
    pub written_bytes: u64,
}

/// How a stop went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stopped {
    /// Connections that were cut because they did not end in time.
    pub cut: usize,
    /// Threads that had not returned when the stop did: their LUN did not answer.
    pub left: usize,
}

/// What all connections share.
struct Shared {
    limits: Limits,
    catalogue: Catalogue,
    registry: Registry,
    masking: RwLock<Arc<Masking>>,
    /// Changes with `masking`: sessions compare it to know their view is stale.
    masking_generation: AtomicU64,
    policy: RwLock<Arc<Policy>>,
    /// Held while `policy` changes and all units are told.
    governing: Mutex<()>,
    credentials: RwLock<Arc<Credentials>>,
    redirects: RwLock<BTreeMap<String, Redirect>>,
    complaints: Complaints,
    workers: Arc<workers::Workers>,
    /// Of data, made on any target's LUNs.
    tokens: Arc<Tokens>,
    doors: crate::doors::Doors,
    /// Bytes held by unfinished writes.
    held_bytes: AtomicUsize,
    /// Where it listens.
    portals: RwLock<Vec<SocketAddr>>,
}

impl Shared {
    /// A unit is not presented any more: its copies stop, its tokens go.
    fn retire(&self, unit: &Arc<LogicalUnit>) {
        unit.retire();
        self.tokens.revoke_of(unit);
    }
}

/// A listening iSCSI server. Dropping it stops it without patience.
pub struct Server {
    shared: Arc<Shared>,
    address: SocketAddr,
    listeners: Mutex<Vec<Listener>>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Server {
    /// Listens on `address` (port 0 picks one), with no target yet.
    ///
    /// Errors: [`ServerError::Bind`], [`ServerError::Start`].
    pub fn bind(address: SocketAddr, limits: Limits) -> Result<Server, ServerError> {
        let server = Server::bind_held(address, limits)?;
        server.open();
        Ok(server)
    }

    /// As [`Server::bind`], but whoever connects waits until [`Server::open`]: time to add the targets that hosts come back for.
    ///
    /// Errors: [`ServerError::Bind`], [`ServerError::Start`].
    pub fn bind_held(address: SocketAddr, limits: Limits) -> Result<Server, ServerError> {
        let shared = Arc::new(Shared {
            limits,
            catalogue: Catalogue::default(),
            registry: Registry::default(),
            masking: RwLock::default(),
            masking_generation: AtomicU64::new(0),
            policy: RwLock::default(),
            governing: Mutex::default(),
            credentials: RwLock::default(),
            redirects: RwLock::default(),
            complaints: Complaints::default(),
            workers: Arc::default(),
            tokens: Arc::default(),
            doors: crate::doors::Doors::default(),
            held_bytes: AtomicUsize::new(0),
            portals: RwLock::default(),
        });
        let listener = Listener::start(address, Arc::clone(&shared))?;
        shared.portals.write().push(listener.address);
        Ok(Server { shared, address: listener.address, listeners: Mutex::new(vec![listener]) })
    }

    /// Answers those who connect, from now on.
    pub fn open(&self) {
        self.shared.doors.open();
    }

    /// Listens on a further address and returns it with its port. All portals are one portal group: every target is reached by each of
    /// them, and is the same SCSI port there (RFC 7143 4.4.1), so what tells a host's paths apart is the ISID of its sessions.
    ///
    /// Errors: [`ServerError::Bind`], [`ServerError::Start`].
    pub fn listen(&self, address: SocketAddr) -> Result<SocketAddr, ServerError> {
        let listener = Listener::start(address, Arc::clone(&self.shared))?;
        let bound = listener.address;
        self.shared.portals.write().push(bound);
        self.listeners.lock().push(listener);
        Ok(bound)
    }

    /// The first address in use.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// All addresses in use, in the order in which they were asked for.
    pub fn portals(&self) -> Vec<SocketAddr> {
        self.shared.portals.read().clone()
    }

    /// Puts another LUN masking in force, for the sessions there are and those to come. Initiators whose list of LUNs is another
    /// than before are told (REPORTED LUNS DATA HAS CHANGED); commands whose data is there finish.
    pub fn set_masking(&self, masking: Masking) {
        {
            let mut current = self.shared.masking.write();
            *current = Arc::new(masking);
            self.shared.masking_generation.fetch_add(1, Ordering::AcqRel);
        }
        self.shared.registry.wake_all();
        self.tell_visitors();
    }

    /// Has copies that work on a unit from elsewhere follow the masking. Sessions see to their own.
    fn tell_visitors(&self) {
        let masking = self.shared.masking();
        for target in self.shared.catalogue.targets() {
            let (_, units) = target.units();
            for (_, unit) in &units {
                for nexus in unit.visitors() {
                    let view = masking.view(&target.name, units.clone(), &nexus.port().name);
                    match view.into_values().find(|(_, shown)| Arc::ptr_eq(shown, unit)) {
                        Some((seen, _)) => nexus.set_read_only(seen.read_only),
                        None => nexus.set_gone(),
                    }
                }
            }
        }
    }

    /// Has logins from now on prove themselves as `credentials` says. Sessions that exist stay.
    pub fn set_credentials(&self, credentials: Credentials) {
        *self.shared.credentials.write() = Arc::new(credentials);
    }

    /// Logins that failed for lack of proof, since the server started.
    pub fn authentication_failures(&self) -> u64 {
        self.shared.complaints.authentication_failures()
    }

    /// Sends logins to the target `iqn` elsewhere from now on, or no longer. It need not exist here. Sessions that exist stay.
    pub fn set_redirect(&self, iqn: &str, redirect: Option<Redirect>) {
        let mut redirects = self.shared.redirects.write();
        match redirect {
            Some(redirect) => redirects.insert(iqn.to_owned(), redirect),
            None => redirects.remove(iqn),
        };
    }

    /// Puts another offload policy in force, for the sessions there are and those to come. Initiators that get other offloads than
    /// before are told to look again (INQUIRY DATA HAS CHANGED).
    pub fn set_policy(&self, policy: Policy) {
        let policy = Arc::new(policy);
        // One change after the other; but nobody who reads the policy waits for the walk.
        let _one_at_a_time = self.shared.governing.lock();
        *self.shared.policy.write() = Arc::clone(&policy);
        for (_, unit) in self.shared.catalogue.all_units() {
            unit.set_policy(&policy);
        }
        self.shared.tokens.revoke_by(&policy);
    }

    /// What became of the offloads that initiators asked for, by target: those of the LUNs presented now.
    pub fn offload_counts(&self) -> Vec<(Arc<str>, OffloadCount)> {
        let units = self.shared.catalogue.all_units();
        let lines = units.iter().flat_map(|(target, unit)| {
            unit.offload_counts().into_iter().map(|line| (Arc::clone(target), line))
        });
        lines.collect()
    }

    /// What every LUN is to SCSI, for other front ends that serve the same LUNs.
    pub fn devices(&self) -> Arc<Devices> {
        Arc::clone(self.shared.catalogue.devices())
    }

    /// From now on persistent reservations that are to survive a loss of power (APTPL) do, as files in `directory`, which is made if
    /// need be. To be called once, before the first LUN is presented; without it APTPL is refused.
    ///
    /// Errors: [`ServerError::Reservations`].
    pub fn set_reservation_directory(&self, directory: &Path) -> Result<(), ServerError> {
        let keep = self.shared.catalogue.devices().keep_in(Arc::new(DiskFiles), directory);
        keep.map_err(|source| ServerError::Reservations { what: directory.display().to_string(), source })
    }

    /// Forgets the reservations and registrations of the LUN `uuid`, also on the medium: for a LUN that is deleted, or by an
    /// administrator's wish. Registrants that are there are told.
    ///
    /// Errors: [`ServerError::Reservations`]; then nothing is forgotten.
    pub fn forget_reservations(&self, uuid: &[u8; 16]) -> Result<(), ServerError> {
        let forgotten = self.shared.catalogue.devices().forget(uuid);
        let what = || uuid::Uuid::from_bytes(*uuid).to_string();
        forgotten.map_err(|source| ServerError::Reservations { what: what(), source })
    }

    /// What was read, written and failed on the LUNs presented now, by target and [`crate::lun::LunIdentity::uuid`]. LOG SELECT of an
    /// initiator begins a LUN's count anew.
    pub fn traffic(&self) -> Vec<(Arc<str>, [u8; 16], Logs)> {
        let units = self.shared.catalogue.all_units();
        let lines =
            units.iter().map(|(target, unit)| (Arc::clone(target), unit.lun().identity().uuid, unit.logs()));
        lines.collect()
    }

    /// Adds a target without LUNs.
    ///
    /// Errors: [`ServerError::BadName`], [`ServerError::NameTaken`].
    pub fn add_target(&self, iqn: &str) -> Result<(), ServerError> {
        self.shared.catalogue.add(iqn)
    }

    /// Removes a target; its sessions are ended, and their I/O under way is waited for at most `patience`.
    ///
    /// Errors: [`ServerError::NoSuchTarget`], [`ServerError::StillInUse`].
    pub fn remove_target(&self, iqn: &str, patience: Duration) -> Result<(), ServerError> {
        let target = self.shared.catalogue.remove(iqn)?;
        let deadline = Instant::now() + patience;
        self.shared.registry.close_target(iqn);
        let units = target.take_all();
        drop(target);
        for unit in units {
            self.shared.retire(&unit);
            if !catalogue::let_go(&unit, deadline) {
                return Err(ServerError::StillInUse { name: iqn.to_owned() });
            }
        }
        Ok(())
    }

    /// Presents `lun` as number `number` of the target, instead of any that was there. Initiators are told by unit attention.
    ///
    /// Errors: [`ServerError::NoSuchTarget`], [`ServerError::BadName`] for a number above 16383.
    pub fn set_lun(&self, iqn: &str, number: u16, lun: LunRef) -> Result<(), ServerError> {
        if let Some(replaced) = self.shared.catalogue.find(iqn)?.set(number, lun)? {
            self.shared.retire(&replaced);
        }
        self.shared.registry.wake_target(iqn);
        Ok(())
    }

    /// Takes a LUN away: commands under way finish, waited for at most `patience`; later ones get LOGICAL UNIT NOT SUPPORTED.
    ///
    /// Errors: [`ServerError::NoSuchTarget`], [`ServerError::NoSuchLun`], [`ServerError::StillInUse`].
    pub fn remove_lun(&self, iqn: &str, number: u16, patience: Duration) -> Result<(), ServerError> {
        let unit = self.shared.catalogue.find(iqn)?.remove(number)?;
        self.shared.retire(&unit);
        self.shared.registry.wake_target(iqn);
        if !catalogue::let_go(&unit, Instant::now() + patience) {
            return Err(ServerError::StillInUse { name: format!("LUN {number} of {iqn}") });
        }
        Ok(())
    }

    /// Tells the initiators of a target's LUNs that the blocks may be others than before (28/00): production was rewound under them.
    ///
    /// Errors: [`ServerError::NoSuchTarget`].
    pub fn contents_changed(&self, iqn: &str) -> Result<(), ServerError> {
        for (_, unit) in self.shared.catalogue.find(iqn)?.units().1 {
            unit.contents_changed();
        }
        Ok(())
    }

    /// Tells the initiators of a target's LUNs that space for writes gets short (38/07), those that have asked to hear of it in mode
    /// page 01. It is short when less than [`SPACE_LOW_PERCENT`] percent are left: mode page 1C/02 says so.
    ///
    /// Errors: [`ServerError::NoSuchTarget`].
    pub fn space_low(&self, iqn: &str) -> Result<(), ServerError> {
        for (_, unit) in self.shared.catalogue.find(iqn)?.units().1 {
            unit.space_low();
        }
        Ok(())
    }

    /// Tells the initiators of a LUN to read its mode pages again (2A/01): it is write-protected now, or no longer.
    ///
    /// Errors: [`ServerError::NoSuchTarget`], [`ServerError::NoSuchLun`].
    pub fn mode_changed(&self, iqn: &str, number: u16) -> Result<(), ServerError> {
        let units = self.shared.catalogue.find(iqn)?.units().1;
        let found = units.iter().find(|(n, _)| *n == number);
        let (_, unit) = found.ok_or_else(|| ServerError::NoSuchLun { iqn: iqn.to_owned(), number })?;
        unit.mode_changed();
        Ok(())
    }

    /// The connections there are, oldest first.
    pub fn sessions(&self) -> Vec<SessionStatus> {
        self.shared.registry.list()
    }

    /// Stops listening, asks every session to log out and cuts those that have not within `patience`. A second stop does nothing.
    pub fn stop(&self, patience: Duration) -> Stopped {
        self.open();
        for listener in self.listeners.lock().drain(..) {
            listener.stop();
        }
        let stopped = self.shared.registry.stop(patience);
        self.shared.tokens.revoke_all();
        stopped
    }
}

impl Shared {
    fn policy(&self) -> Arc<Policy> {
        Arc::clone(&self.policy.read())
    }

    fn masking(&self) -> Arc<Masking> {
        Arc::clone(&self.masking.read())
    }

    /// Whether `initiator` may know of the target `name`.
    fn shows(&self, name: &str, initiator: &str) -> bool {
        let numbers = self.catalogue.find(name).map_or(Vec::new(), |target| target.numbers());
        self.masking().shows(name, &numbers, initiator)
    }

    /// The targets that discovery may tell `initiator` of: those here, and those that have moved for good.
    fn discoverable(&self, initiator: &str) -> Vec<String> {
        let mut names: BTreeSet<String> =
            self.catalogue.targets().iter().map(|target| target.name.to_string()).collect();
        let redirects = self.redirects.read();
        names.extend(redirects.iter().filter(|(_, to)| to.is_permanent()).map(|(name, _)| name.clone()));
        drop(redirects);
        names.retain(|name| self.shows(name, initiator));
        names.into_iter().collect()
    }

    /// Where logins to the target `name` are sent instead.
    fn redirect(&self, name: &str) -> Option<Redirect> {
        self.redirects.read().get(name).cloned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop(Duration::ZERO);
    }
}
