//! The connections there are: for status, for reinstatement, for being told things.

use super::outbox::{Event, Outbox};
use super::{SessionStatus, Stopped};
use parking_lot::{Condvar, Mutex};
use std::collections::{BTreeMap, HashSet};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

/// What cutting a connection is given to take effect.
const CUT_PATIENCE: Duration = Duration::from_secs(1);

/// Which session this is: one initiator port and one target have at most one (RFC 7143 6.3.5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SessionKey {
    pub(super) initiator: Arc<str>,
    pub(super) isid: [u8; 6],
    /// `None` for discovery.
    pub(super) target: Option<Arc<str>>,
    /// Zero for a session that is yet to be.
    pub(super) tsih: u16,
    /// Its connection.
    pub(super) cid: u16,
}

impl SessionKey {
    /// Whether both are of one initiator port and one target.
    fn is_nexus_of(&self, other: &SessionKey) -> bool {
        self.initiator == other.initiator && self.isid == other.isid && self.target == other.target
    }
}

/// One connection, as others see it.
#[derive(Debug)]
pub(super) struct Handle {
    pub(super) id: u64,
    pub(super) peer: SocketAddr,
    pub(super) since: SystemTime,
    pub(super) outbox: Outbox,
    pub(super) key: OnceLock<SessionKey>,
    /// To cut the connection with.
    pub(super) socket: Arc<TcpStream>,
    pub(super) commands: AtomicU64,
    pub(super) read_bytes: AtomicU64,
    pub(super) written_bytes: AtomicU64,
}

/// All connections.
#[derive(Default)]
pub(super) struct Registry {
    handles: Mutex<BTreeMap<u64, Arc<Handle>>>,
    ended: Condvar,
    stopping: AtomicBool,
    next_id: AtomicU64,
    next_tsih: AtomicU64,
}

impl Registry {
    /// Enters a connection. `None`: there are `most` already, or the server stops.
    pub(super) fn enter(
        &self,
        peer: SocketAddr,
        socket: Arc<TcpStream>,
        most: usize,
    ) -> std::io::Result<Option<Arc<Handle>>> {
        let outbox = Outbox::new()?;
        let mut handles = self.handles.lock();
        if handles.len() >= most || self.stopping.load(Ordering::SeqCst) {
            return Ok(None);
        }
        let handle = Arc::new(Handle {
            id: self.next_id.fetch_add(1, Ordering::Relaxed),
            peer,
            since: SystemTime::now(),
            outbox,
            key: OnceLock::new(),
            socket,
            commands: AtomicU64::new(0),
            read_bytes: AtomicU64::new(0),
            written_bytes: AtomicU64::new(0),
        });
        handles.insert(handle.id, Arc::clone(&handle));
        Ok(Some(handle))
    }

    /// Takes a connection out; its thread is about to return.
    pub(super) fn leave(&self, id: u64) {
        self.handles.lock().remove(&id);
        self.ended.notify_all();
    }

    /// The connection of the session that `key` names, TSIH included.
    pub(super) fn find(&self, key: &SessionKey) -> Option<u16> {
        let handles = self.handles.lock();
        let mut keys = handles.values().filter_map(|handle| handle.key.get());
        keys.find(|other| other.is_nexus_of(key) && other.tsih == key.tsih).map(|other| other.cid)
    }

    /// Makes `handle` the session of `key`, after any older one of the same name, ISID and target has ended: session reinstatement,
    /// or with a TSIH connection reinstatement (RFC 7143 6.3.5, 6.3.4). The key comes back with its TSIH. `None`: the older one did
    /// not end in time.
    pub(super) fn establish(
        &self,
        handle: &Handle,
        key: SessionKey,
        patience: Duration,
    ) -> Option<SessionKey> {
        let deadline = Instant::now() + patience;
        let mut handles = self.handles.lock();
        loop {
            let mut older = false;
            for other in handles.values().filter(|other| other.id != handle.id && key.target.is_some()) {
                if other.key.get().is_some_and(|other| other.is_nexus_of(&key)) {
                    older = true;
                    other.outbox.push(Event::Close);
                }
            }
            if !older {
                let tsih = if key.tsih == 0 { self.free_tsih(&handles) } else { key.tsih };
                let key = SessionKey { tsih, ..key };
                return handle.key.set(key.clone()).is_ok().then_some(key);
            }
            if self.ended.wait_until(&mut handles, deadline).timed_out() {
                return None;
            }
        }
    }

    /// A number for a new session, never zero and not in use: there are fewer connections than numbers.
    fn free_tsih(&self, handles: &BTreeMap<u64, Arc<Handle>>) -> u16 {
        let used: HashSet<u16> = handles.values().filter_map(|handle| Some(handle.key.get()?.tsih)).collect();
        loop {
            let tsih = (self.next_tsih.fetch_add(1, Ordering::Relaxed) % 0xffff) as u16 + 1;
            if !used.contains(&tsih) || used.len() >= 0xffff {
                return tsih;
            }
        }
    }

    fn tell(&self, event: impl Fn() -> Event, chosen: impl Fn(&SessionKey) -> bool) {
        for handle in self.handles.lock().values() {
            if handle.key.get().is_some_and(&chosen) {
                handle.outbox.push(event());
            }
        }
    }

    /// Has the sessions of a target look at its units again.
    pub(super) fn wake_target(&self, iqn: &str) {
        self.tell(|| Event::UnitsChanged, |key| key.target.as_deref() == Some(iqn));
    }

    /// Has every session look at its target's units again.
    pub(super) fn wake_all(&self) {
        self.tell(|| Event::UnitsChanged, |_| true);
    }

    /// Tells every session.
    pub(super) fn tell_all(&self, event: impl Fn() -> Event) {
        self.tell(event, |_| true);
    }

    /// Ends the sessions of a target, after telling them so.
    pub(super) fn close_target(&self, iqn: &str) {
        self.tell(|| Event::Removed, |key| key.target.as_deref() == Some(iqn));
    }

    /// As [`Registry::close_target`], sparing one connection.
    pub(super) fn close_others_of_target(&self, iqn: &str, spared: u64) {
        for handle in self.handles.lock().values().filter(|h| h.id != spared) {
            let key = handle.key.get();
            if key.is_some_and(|key| key.target.as_deref() == Some(iqn)) {
                handle.outbox.push(Event::Close);
            }
        }
    }

    pub(super) fn list(&self) -> Vec<SessionStatus> {
        let handles = self.handles.lock();
        let status = |h: &Arc<Handle>| SessionStatus {
            id: h.id,
            initiator: h.key.get().map_or(String::new(), |key| key.initiator.to_string()),
            target: h.key.get().and_then(|key| key.target.as_ref().map(|name| name.to_string())),
            peer: h.peer,
            since: h.since,
            commands: h.commands.load(Ordering::Relaxed),
            read_bytes: h.read_bytes.load(Ordering::Relaxed),
            written_bytes: h.written_bytes.load(Ordering::Relaxed),
        };
        handles.values().map(status).collect()
    }

    /// Ends all connections; see [`super::Server::stop`].
    pub(super) fn stop(&self, patience: Duration) -> Stopped {
        self.stopping.store(true, Ordering::SeqCst);
        let deadline = Instant::now() + patience;
        let mut handles = self.handles.lock();
        for handle in handles.values() {
            handle.outbox.push(Event::Stop(deadline));
        }
        while !handles.is_empty() && !self.ended.wait_until(&mut handles, deadline).timed_out() {}
        let cut = handles.len();
        for handle in handles.values() {
            // Errors mean that the peer was faster.
            let _ = handle.socket.shutdown(Shutdown::Both);
            handle.outbox.push(Event::Close);
        }
        let deadline = Instant::now() + CUT_PATIENCE;
        while !handles.is_empty() && !self.ended.wait_until(&mut handles, deadline).timed_out() {}
        Stopped { cut, left: handles.len() }
    }
}
