//! The NBD server: exports LUNs to NBD clients (newstyle fixed, structured replies, one thread per connection).
//!
//! The way of a request through this module: `accept` takes the connection, `handshake` finds out which export it is for,
//! `session` turns received bytes into whole requests and hands writes to the [`Lun`](crate::lun::Lun) in batches, `desk`
//! and `reads` execute them and word the answers, `mailbox` brings back flushes that finished meanwhile. `docs/nbd.md` lists what
//! the server offers and where it stops.

mod accept;
mod buffers;
mod desk;
mod exports;
mod handshake;
mod reads;
mod session;
mod socket;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;

use crate::lun::LunRef;
use crate::scsi::{Devices, Policy};
use accept::Shared;

/// What one server allows its clients. The defaults suit an appliance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once; further ones are closed as they come.
    pub connections_max: usize,
    /// From accepting a connection to its choice of an export.
    pub handshake: Duration,
    /// Without a byte of progress while a request is half received or an answer half sent.
    pub stall: Duration,
    /// How long requests are still answered (with ESHUTDOWN) after an export was removed or the server stopped.
    pub farewell: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections_max: 4096,
            handshake: Duration::from_secs(30),
            stall: Duration::from_secs(60),
            farewell: Duration::from_secs(1),
        }
    }
}

/// Why the server could not do what it was told.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The address could not be listened on.
    #[error("cannot listen for NBD on {address}: {source}")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// The operating system's words.
        source: io::Error,
    },
    /// The accepting thread could not be started.
    #[error("cannot start the NBD server: {0}")]
    Start(io::Error),
    /// There is an export of this name.
    #[error("an NBD export named {name:?} exists already; remove it first or choose another name")]
    NameTaken {
        /// The name.
        name: String,
    },
    /// The name cannot be said over NBD.
    #[error("{name:?} cannot name an NBD export: 1 to 4096 bytes of UTF-8 without NUL are needed")]
    BadName {
        /// The name.
        name: String,
    },
    /// There is no export of this name.
    #[error("no NBD export is named {name:?}")]
    NoSuchExport {
        /// The name.
        name: String,
    },
    /// The export is removed, but some I/O has not come back in time and still holds the LUN.
    #[error("NBD export {name:?} is removed, but {users} of its connections still have I/O under way")]
    StillInUse {
        /// The name.
        name: String,
        /// Connections that hold the LUN.
        users: usize,
    },
}

/// What is known of an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportStatus {
    /// Its name.
    pub name: String,
    /// A line for people.
    pub description: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Whether every change is refused.
    pub read_only: bool,
    /// Connections in the transmission phase.
    pub connections: usize,
}

/// What is known of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionStatus {
    /// Unique in this server's life.
    pub id: u64,
    /// The client's address.
    pub peer: SocketAddr,
    /// When it connected.
    pub since: SystemTime,
    /// The export, once chosen.
    pub export: Option<String>,
    /// Requests received.
    pub requests: u64,
    /// Bytes of READ answers, holes included.
    pub read_bytes: u64,
    /// Bytes of WRITE payloads captured.
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

/// A listening NBD server. Dropping it stops it without patience.
pub struct Server {
    shared: Arc<Shared>,
    address: SocketAddr,
    accepting: Mutex<Option<JoinHandle<()>>>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Server {
    /// Listens on `address` (port 0 picks one) and accepts connections from now on, at first with nothing exported.
    pub fn bind(address: SocketAddr, limits: Limits) -> Result<Server, ServerError> {
        let server = Server::bind_held(address, limits)?;
        server.open();
        Ok(server)
    }

    /// As [`Server::bind`], but whoever connects waits until [`Server::open`]: time to add the exports that hosts come back for.
    pub fn bind_held(address: SocketAddr, limits: Limits) -> Result<Server, ServerError> {
        let bind = |source| ServerError::Bind { address, source };
        let listener = TcpListener::bind(address).map_err(bind)?;
        listener.set_nonblocking(true).map_err(bind)?;
        let actual = listener.local_addr().map_err(bind)?;
        let shared = Arc::new(Shared::new(limits).map_err(ServerError::Start)?);
        let thread = accept::start(listener, Arc::clone(&shared)).map_err(ServerError::Start)?;
        log::info!("NBD server listens on {actual}");
        Ok(Server { shared, address: actual, accepting: Mutex::new(Some(thread)) })
    }

    /// Answers those who connect, from now on.
    pub fn open(&self) {
        self.shared.doors.open();
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Heeds the reservations of the SCSI initiators that get the same LUNs by a [`crate::iscsi::Server`]: a client, who cannot
    /// register, gets EPERM for what they forbid. For the exports added from now on; to be called once.
    pub fn heed_reservations(&self, devices: Arc<Devices>) {
        if self.shared.exports.devices.set(devices).is_err() {
            log::warn!("the NBD server heeds reservations already; told so twice");
        }
    }

    /// Offers `lun` under `name` (1 to 4096 bytes of UTF-8 without NUL). `description` is a line for people.
    pub fn add_export(&self, name: &str, lun: LunRef, description: &str) -> Result<(), ServerError> {
        self.shared.exports.add(name, lun, description)
    }

    /// Offers it no longer. Requests under way finish, later ones get ESHUTDOWN, then its clients are disconnected. Returns when
    /// no connection holds the LUN any more, or [`ServerError::StillInUse`] after `patience`; it is removed in both cases.
    pub fn remove_export(&self, name: &str, patience: Duration) -> Result<(), ServerError> {
        let export = self.shared.exports.remove(name)?;
        self.shared.connections.poke(|record| record.export_name() == Some(name));
        match export.wait_unused(patience) {
            0 => Ok(()),
            users => Err(ServerError::StillInUse { name: name.to_owned(), users }),
        }
    }

    /// Puts another offload policy in force, for clients there are and those to come. An export whose `unmap` is rejected serves no TRIM,
    /// one whose `write-same` is rejected no WRITE_ZEROES; rules for initiators do not count, for clients of NBD have no names.
    pub fn set_policy(&self, policy: Policy) {
        self.shared.exports.set_policy(policy);
    }

    /// What is exported, by name.
    pub fn exports(&self) -> Vec<ExportStatus> {
        self.shared.exports.list()
    }

    /// Who is connected, oldest first.
    pub fn connections(&self) -> Vec<ConnectionStatus> {
        self.shared.connections.list()
    }

    /// Stops: no new connections, requests under way finish and are answered, later ones get ESHUTDOWN, clients are disconnected.
    /// What has not ended after `patience` is cut. Nothing is flushed that no client asked for. A second call finds nothing to do.
    pub fn stop(&self, patience: Duration) -> Stopped {
        self.open();
        let deadline = Instant::now() + patience;
        self.shared.stopping.store(true, Ordering::SeqCst);
        self.shared.wake_accepting.poke();
        if let Some(thread) = self.accepting.lock().take() {
            // The accepting thread never waits for anything but its poll; it can only have panicked.
            if thread.join().is_err() {
                log::error!("the NBD server's accepting thread panicked");
            }
            log::info!("NBD server on {} stops", self.address);
        }
        self.shared.connections.poke(|_| true);
        let mut stopped = Stopped { cut: self.shared.connections.wait_none(deadline), left: 0 };
        if stopped.cut > 0 {
            self.shared.connections.cut();
            let grace = Instant::now() + Duration::from_millis(500);
            stopped.left = self.shared.connections.wait_none(grace);
            log::warn!(
                "NBD server cut {} connections at its stop, {} of them still wait for their LUN",
                stopped.cut,
                stopped.left
            );
        }
        stopped
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop(Duration::ZERO);
    }
}
