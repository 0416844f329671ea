//! A connection's socket: never blocks by itself, waits only where and as long as it is told.

use std::io;
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{recv, send, sockopt, RecvFlags, SendFlags};

use crate::mailbox::Wake;

/// What a try to receive brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Received {
    /// So many bytes, at least 1.
    Bytes(usize),
    /// Nothing yet.
    Nothing,
    /// The peer sends no more.
    End,
}

/// What ended a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Woken {
    /// The socket is ready, or broken, which the next call on it will tell.
    Socket,
    /// Somebody poked.
    Poke,
    /// The time is over.
    Time,
}

/// Which way the socket is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    In,
    Out,
}

/// A connected socket.
#[derive(Clone)]
pub(super) struct Socket {
    stream: Arc<TcpStream>,
    cut: Arc<AtomicBool>,
}

impl Socket {
    /// Takes a fresh connection: no delay for small answers, and keepalive probes, so that a host that vanished without a word
    /// is noticed after about two minutes.
    pub(super) fn new(stream: TcpStream) -> io::Result<Socket> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        sockopt::set_socket_keepalive(&stream, true)?;
        sockopt::set_tcp_keepidle(&stream, Duration::from_secs(60))?;
        sockopt::set_tcp_keepintvl(&stream, Duration::from_secs(15))?;
        sockopt::set_tcp_keepcnt(&stream, 4)?;
        Ok(Socket { stream: Arc::new(stream), cut: Arc::default() })
    }

    pub(super) fn receive(&self, room: &mut [u8]) -> io::Result<Received> {
        match recv(&*self.stream, room, RecvFlags::empty()) {
            Ok((_, 0)) => Ok(Received::End),
            Ok((_, count)) => Ok(Received::Bytes(count)),
            Err(Errno::AGAIN | Errno::INTR) => Ok(Received::Nothing),
            Err(error) => Err(error.into()),
        }
    }

    /// Sends what fits now; 0 when nothing does.
    pub(super) fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        match send(&*self.stream, bytes, SendFlags::NOSIGNAL) {
            Ok(count) => Ok(count),
            Err(Errno::AGAIN | Errno::INTR) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for the socket, and for a poke if `wake` is given; at most `timeout`, or for ever.
    pub(super) fn wait(&self, way: Way, wake: Option<&Wake>, timeout: Option<Duration>) -> io::Result<Woken> {
        let timeout = match timeout.map(Timespec::try_from) {
            Some(Ok(timeout)) => Some(timeout),
            Some(Err(_)) | None => None,
        };
        let events = match way {
            Way::In => PollFlags::IN,
            Way::Out => PollFlags::OUT,
        };
        let socket = PollFd::new(&*self.stream, events);
        let (ready, poked) = match wake {
            Some(wake) => {
                let mut fds = [socket, PollFd::from_borrowed_fd(wake.fd(), PollFlags::IN)];
                let ready = poll(&mut fds, timeout.as_ref());
                (ready, !fds[1].revents().is_empty())
            }
            None => (poll(&mut [socket], timeout.as_ref()), false),
        };
        match ready {
            Ok(0) => Ok(Woken::Time),
            Ok(_) if poked => {
                if let Some(wake) = wake {
                    wake.hear();
                }
                Ok(Woken::Poke)
            }
            Ok(_) => Ok(Woken::Socket),
            Err(Errno::INTR) => Ok(Woken::Poke),
            Err(error) => Err(error.into()),
        }
    }

    /// Tells the peer that nothing more comes.
    pub(super) fn end_sending(&self) {
        // It fails when the peer has gone already, which is as good.
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Ends the connection from any thread: whoever waits for it wakes with an error or an end.
    pub(super) fn cut(&self) {
        self.cut.store(true, Ordering::SeqCst);
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// Whether [`Socket::cut`] was called.
    pub(super) fn is_cut(&self) -> bool {
        self.cut.load(Ordering::SeqCst)
    }
}

/// Waits for a poke alone, for ever.
pub(super) fn wait_poke(wake: &Wake) -> io::Result<()> {
    match poll(&mut [PollFd::from_borrowed_fd(wake.fd(), PollFlags::IN)], None) {
        Ok(_) => {
            wake.hear();
            Ok(())
        }
        Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// What is left until `deadline`; nothing if it has passed.
pub(super) fn left_until(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}
