//! Listening, and a thread for every connection.

use super::{connection, ServerError, Shared};
use rustix::event::{eventfd, poll, EventfdFlags, PollFd, PollFlags};
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// Stack of a connection's thread: its buffers are on the heap.
const STACK_BYTES: usize = 512 << 10;
/// Pause after the system could not give a connection, so that a lack of descriptors does not become a busy loop.
const PAUSE: Duration = Duration::from_millis(50);

/// A listening portal.
pub(super) struct Listener {
    pub(super) address: SocketAddr,
    bell: Arc<OwnedFd>,
    thread: JoinHandle<()>,
}

impl Listener {
    pub(super) fn start(address: SocketAddr, shared: Arc<Shared>) -> Result<Self, ServerError> {
        let failed = |source| ServerError::Bind { address, source };
        let socket = TcpListener::bind(address).map_err(failed)?;
        socket.set_nonblocking(true).map_err(failed)?;
        let address = socket.local_addr().map_err(failed)?;
        let bell = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)
            .map_err(|error| ServerError::Start(error.into()))?;
        let bell = Arc::new(bell);
        let heard = Arc::clone(&bell);
        let thread = std::thread::Builder::new()
            .name("iscsi-accept".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || run(&socket, &heard, &shared))
            .map_err(ServerError::Start)?;
        Ok(Listener { address, bell, thread })
    }

    /// Closes the portal.
    pub(super) fn stop(self) {
        let _ = rustix::io::write(&*self.bell, &1u64.to_ne_bytes());
        // A panic of that thread has been printed; there is nothing to add.
        let _ = self.thread.join();
    }
}

fn run(socket: &TcpListener, bell: &OwnedFd, shared: &Arc<Shared>) {
    loop {
        let mut fds = [PollFd::new(socket, PollFlags::IN), PollFd::new(bell, PollFlags::IN)];
        let polled = poll(&mut fds, None);
        if !fds[1].revents().is_empty() {
            return;
        }
        if polled.is_err() {
            continue;
        }
        match socket.accept() {
            Ok((stream, peer)) => {
                if let Err(error) = serve(stream, peer, shared) {
                    log::warn!("iSCSI connection of {peer} refused: {error}");
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                log::warn!("cannot accept an iSCSI connection: {error}");
                std::thread::sleep(PAUSE);
            }
        }
    }
}

fn serve(stream: TcpStream, peer: SocketAddr, shared: &Arc<Shared>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    let stream = Arc::new(stream);
    let most = shared.limits.connections_max;
    let Some(handle) = shared.registry.enter(peer, Arc::clone(&stream), most)? else {
        log::warn!("iSCSI connection of {peer} closed: {most} connections are the limit");
        return Ok(());
    };
    let id = handle.id;
    let of_thread = Arc::clone(shared);
    let spawned =
        std::thread::Builder::new().name("iscsi".to_owned()).stack_size(STACK_BYTES).spawn(move || {
            // Leaves even if the thread unwinds.
            let _leave = Leave(Arc::clone(&of_thread), id);
            of_thread.doors.wait();
            connection::run(stream, handle, of_thread);
        });
    if spawned.is_err() {
        shared.registry.leave(id);
    }
    spawned.map(|_| ())
}

struct Leave(Arc<Shared>, u64);

impl Drop for Leave {
    fn drop(&mut self) {
        self.0.registry.leave(self.1);
    }
}
