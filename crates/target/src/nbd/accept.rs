//! Taking connections, one thread each, and the list of them.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::{Condvar, Mutex};
use rustix::event::{poll, PollFd, PollFlags, Timespec};

use super::exports::Exports;
use super::handshake::{self, Outcome};
use super::session::Session;
use super::socket::Socket;
use super::{ConnectionStatus, Limits};
use crate::doors::Doors;
use crate::mailbox::{Mailbox, Wake};

/// Stack of a connection's thread. Only what is touched is ever backed by memory, so this is room, not cost.
const STACK_BYTES: usize = 512 << 10;
/// Pause after the system refused a connection for want of descriptors or memory.
const REFUSED_PAUSE: Duration = Duration::from_millis(100);

/// What all threads of a server share.
pub(super) struct Shared {
    pub(super) limits: Limits,
    pub(super) exports: Exports,
    pub(super) connections: Connections,
    pub(super) doors: Doors,
    pub(super) stopping: AtomicBool,
    pub(super) wake_accepting: Wake,
}

impl Shared {
    pub(super) fn new(limits: Limits) -> io::Result<Shared> {
        Ok(Shared {
            limits,
            exports: Exports::default(),
            connections: Connections::default(),
            doors: Doors::default(),
            stopping: AtomicBool::new(false),
            wake_accepting: Wake::new()?,
        })
    }

    pub(super) fn stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }
}

/// One connection, as others see it. Only its own thread writes the counters.
pub(super) struct Record {
    id: u64,
    pub(super) peer: SocketAddr,
    since: SystemTime,
    export: OnceLock<String>,
    pub(super) requests: AtomicU64,
    pub(super) read_bytes: AtomicU64,
    pub(super) written_bytes: AtomicU64,
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) socket: Socket,
}

impl Record {
    /// The export, once chosen.
    pub(super) fn export_name(&self) -> Option<&str> {
        self.export.get().map(String::as_str)
    }

    /// Notes the export. The first choice stays.
    pub(super) fn chose(&self, export: &str) {
        self.export.get_or_init(|| export.to_owned());
    }

    fn status(&self) -> ConnectionStatus {
        ConnectionStatus {
            id: self.id,
            peer: self.peer,
            since: self.since,
            export: self.export.get().cloned(),
            requests: self.requests.load(Ordering::Relaxed),
            read_bytes: self.read_bytes.load(Ordering::Relaxed),
            written_bytes: self.written_bytes.load(Ordering::Relaxed),
        }
    }
}

/// All connections.
#[derive(Default)]
pub(super) struct Connections {
    records: Mutex<BTreeMap<u64, Arc<Record>>>,
    ended: Condvar,
    next_id: AtomicU64,
}

impl Connections {
    fn count(&self) -> usize {
        self.records.lock().len()
    }

    fn enter(&self, socket: Socket, peer: SocketAddr) -> io::Result<Arc<Record>> {
        let record = Arc::new(Record {
            id: self.next_id.fetch_add(1, Ordering::Relaxed) + 1,
            peer,
            since: SystemTime::now(),
            export: OnceLock::new(),
            requests: AtomicU64::new(0),
            read_bytes: AtomicU64::new(0),
            written_bytes: AtomicU64::new(0),
            mailbox: Arc::new(Mailbox::new()?),
            socket,
        });
        self.records.lock().insert(record.id, Arc::clone(&record));
        Ok(record)
    }

    fn leave(&self, id: u64) {
        self.records.lock().remove(&id);
        self.ended.notify_all();
    }

    pub(super) fn list(&self) -> Vec<ConnectionStatus> {
        self.records.lock().values().map(|r| r.status()).collect()
    }

    /// Makes the chosen connections look at what changed around them.
    pub(super) fn poke(&self, chosen: impl Fn(&Record) -> bool) {
        for record in self.records.lock().values().filter(|r| chosen(r)) {
            record.mailbox.wake.poke();
        }
    }

    /// Ends every connection that is left.
    pub(super) fn cut(&self) {
        for record in self.records.lock().values() {
            record.socket.cut();
            record.mailbox.wake.poke();
        }
    }

    /// Waits until there is no connection, at most until `deadline`. Returns how many there are.
    pub(super) fn wait_none(&self, deadline: Instant) -> usize {
        let mut records = self.records.lock();
        while !records.is_empty() {
            if self.ended.wait_until(&mut records, deadline).timed_out() {
                break;
            }
        }
        records.len()
    }
}

/// Takes a connection off the list when its thread ends, however it ends.
struct Listed<'a> {
    shared: &'a Shared,
    id: u64,
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        self.shared.connections.leave(self.id);
    }
}

/// Starts the accepting thread. It ends when the server stops.
pub(super) fn start(listener: TcpListener, shared: Arc<Shared>) -> io::Result<JoinHandle<()>> {
    Builder::new()
        .name("nbd-accept".into())
        .stack_size(STACK_BYTES)
        .spawn(move || accept_all(&listener, &shared))
}

fn accept_all(listener: &TcpListener, shared: &Arc<Shared>) {
    while !shared.stopping() {
        match listener.accept() {
            Ok((stream, peer)) => {
                if let Err(error) = take(stream, peer, shared) {
                    log::warn!("NBD connection from {peer} refused: {error}");
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let mut fds = [
                    PollFd::new(listener, PollFlags::IN),
                    PollFd::from_borrowed_fd(shared.wake_accepting.fd(), PollFlags::IN),
                ];
                if poll(&mut fds, None).is_ok() && !fds[1].revents().is_empty() {
                    shared.wake_accepting.hear();
                }
            }
            // The client gave up between the handshakes of TCP and ours.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                log::error!("NBD server cannot accept: {error}; is the limit of open files too low?");
                let mut fds = [PollFd::from_borrowed_fd(shared.wake_accepting.fd(), PollFlags::IN)];
                let pause = Timespec::try_from(REFUSED_PAUSE).ok();
                let _ = poll(&mut fds, pause.as_ref());
            }
        }
    }
}

fn take(stream: TcpStream, peer: SocketAddr, shared: &Arc<Shared>) -> io::Result<()> {
    if shared.connections.count() >= shared.limits.connections_max {
        return Err(io::Error::other(format!("{} connections is the limit", shared.limits.connections_max)));
    }
    let record = shared.connections.enter(Socket::new(stream)?, peer)?;
    let id = record.id;
    let of_thread = Arc::clone(shared);
    let spawned = Builder::new().name(format!("nbd-{id}")).stack_size(STACK_BYTES).spawn(move || {
        let shared = of_thread;
        let _listed = Listed { shared: &shared, id };
        converse(&shared, &record);
    });
    if let Err(error) = spawned {
        shared.connections.leave(id);
        return Err(error);
    }
    Ok(())
}

fn converse(shared: &Shared, record: &Record) {
    shared.doors.wait();
    let peer = record.peer;
    let chosen = match handshake::run(shared, record) {
        Ok(Outcome::Chosen(chosen)) => chosen,
        Ok(Outcome::Left) => return log::debug!("NBD client {peer} left during the handshake"),
        Err(error) => return log::info!("NBD client {peer} ended in the handshake: {error}"),
    };
    let name = chosen.entry.export().name.clone();
    record.chose(&name);
    log::info!("NBD client {peer} opened {name:?}");
    let ended = Session::new(shared, record, chosen).run();
    record.socket.cut();
    match ended {
        Ok(()) => log::info!("NBD client {peer} closed {name:?}"),
        Err(error) => log::warn!("NBD client {peer} lost {name:?}: {error}"),
    }
}
