//! One connection from its first byte to its last: login, then the session; waiting for the socket or the outbox.

use super::answers::Answers;
use super::buffers::{Progress, ReceiveBuffer};
use super::registry::Handle;
use super::session::Session;
use super::{login, Shared};
use playhead_wire::iscsi::{digest, Frame};
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use std::net::{Shutdown, TcpStream};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Why a connection ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ended {
    /// The peer closed it, or it broke.
    Peer,
    /// It logged out, or someone here decided so.
    Done,
    /// The peer broke a rule or a time limit.
    Fault(String),
    /// It logged in as this initiator and could not prove it, for this reason.
    Unproved(String, &'static str),
}

/// A socket with its buffers.
pub(super) struct Link {
    pub(super) socket: Arc<TcpStream>,
    pub(super) received: ReceiveBuffer,
    /// When the first byte of the PDU at the start of `received` had come, if it is not whole.
    pub(super) partial_since: Option<Instant>,
    /// When the send buffer last got shorter, while something waits in it.
    pub(super) sending_since: Option<Instant>,
}

/// What a wait brought.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Ready {
    pub(super) readable: bool,
    pub(super) writable: bool,
}

impl Ready {
    fn of(revents: PollFlags) -> Ready {
        let broken = revents.intersects(PollFlags::ERR | PollFlags::HUP);
        Ready {
            readable: revents.contains(PollFlags::IN) || broken,
            writable: revents.contains(PollFlags::OUT) || broken,
        }
    }

    pub(super) fn is_any(self) -> bool {
        self.readable || self.writable
    }
}

/// A descriptor that is polled with the connection's own.
#[derive(Debug, Clone, Copy)]
pub(super) struct Other<'a> {
    pub(super) fd: BorrowedFd<'a>,
    pub(super) read: bool,
    pub(super) write: bool,
}

impl Link {
    /// Waits for the socket (`read`, `write`) or the outbox, at most `timeout`.
    pub(super) fn wait(&self, handle: &Handle, read: bool, write: bool, timeout: Duration) -> Ready {
        self.wait_with(handle, read, write, timeout, std::iter::empty()).0
    }

    /// As [`Link::wait`], and for `others`. The second value says, in their order, what is ready of them; it is empty if there is no other.
    pub(super) fn wait_with<'a>(
        &self,
        handle: &Handle,
        read: bool,
        write: bool,
        timeout: Duration,
        others: impl ExactSizeIterator<Item = Other<'a>>,
    ) -> (Ready, Vec<Ready>) {
        if !handle.outbox.may_sleep() {
            return (Ready::default(), Vec::new());
        }
        let wanted = |read: bool, write: bool| {
            let mut wanted = PollFlags::empty();
            wanted.set(PollFlags::IN, read);
            wanted.set(PollFlags::OUT, write);
            wanted
        };
        let own = [
            PollFd::new(&self.socket, wanted(read, write)),
            PollFd::from_borrowed_fd(handle.outbox.bell(), PollFlags::IN),
        ];
        let timeout =
            Timespec { tv_sec: timeout.as_secs().min(3600) as i64, tv_nsec: timeout.subsec_nanos().into() };
        // An error (EINTR) is a wait that brought nothing.
        if others.len() == 0 {
            let mut fds = own;
            let _ = poll(&mut fds, Some(&timeout));
            handle.outbox.woke(!fds[1].revents().is_empty());
            return (Ready::of(fds[0].revents()), Vec::new());
        }
        let others = others.map(|other| PollFd::from_borrowed_fd(other.fd, wanted(other.read, other.write)));
        let mut fds: Vec<PollFd<'_>> = own.into_iter().chain(others).collect();
        let _ = poll(&mut fds, Some(&timeout));
        handle.outbox.woke(!fds[1].revents().is_empty());
        (Ready::of(fds[0].revents()), fds[2..].iter().map(|fd| Ready::of(fd.revents())).collect())
    }

    /// Sends until the socket takes no more.
    pub(super) fn send(&mut self, answers: &mut Answers) -> Result<(), Ended> {
        while answers.out.len() > 0 {
            match answers.out.send(&self.socket) {
                Progress::Some(_) => self.sending_since = None,
                Progress::Blocked => {
                    self.sending_since.get_or_insert_with(Instant::now);
                    return Ok(());
                }
                Progress::Ended => return Err(Ended::Peer),
            }
        }
        self.sending_since = None;
        Ok(())
    }

    /// The whole PDU at the start of the receive buffer, its header digest checked; or how many bytes it will have.
    pub(super) fn next_frame(
        &mut self,
        digests: playhead_wire::iscsi::bhs::Digests,
        limit_bytes: usize,
    ) -> Result<Result<Frame, usize>, Ended> {
        let unread = self.received.unread();
        let frame = Frame::new_checked(unread, digests, limit_bytes)
            .map_err(|error| Ended::Fault(error.to_string()))?;
        let whole = match frame {
            None => Err(playhead_wire::iscsi::BHS_LEN),
            Some(frame) if unread.len() < frame.total_len => Err(frame.total_len),
            Some(frame) => Ok(frame),
        };
        match whole {
            Err(_) if unread.is_empty() => self.partial_since = None,
            Err(_) => {
                self.partial_since.get_or_insert_with(Instant::now);
            }
            Ok(frame) => {
                self.partial_since = None;
                // A damaged header leaves nothing to trust, not even where the next one starts (RFC 7143 7.8).
                if digests.header && !digest::header_matches(unread, &frame) {
                    return Err(Ended::Fault("header digest error".to_owned()));
                }
            }
        }
        Ok(whole)
    }
}

/// Serves one connection until it ends.
pub(super) fn run(socket: Arc<TcpStream>, handle: Arc<Handle>, shared: Arc<Shared>) {
    let mut link =
        Link { socket, received: ReceiveBuffer::default(), partial_since: None, sending_since: None };
    let peer = handle.peer;
    let shared_by_all = Arc::clone(&shared);
    let complaints = &shared_by_all.complaints;
    let ended = match login::run(&mut link, &handle, &shared) {
        Ok(logged_in) => Session::new(link, Arc::clone(&handle), shared, logged_in).run(),
        Err(ended) => ended,
    };
    // A flush that is not over keeps the handle, and with it the descriptor: the peer must not wait for that.
    let _ = handle.socket.shutdown(Shutdown::Both);
    let (kind, text) = match ended {
        Ended::Peer | Ended::Done => return,
        Ended::Fault(fault) => {
            let name = handle.key.get().map_or("", |key| &key.initiator);
            (fault.clone(), format!("iSCSI connection of {peer} {name} closed: {fault}"))
        }
        Ended::Unproved(name, why) => {
            // Of one peer whatever the name: that is for it to choose.
            (
                "authentication".to_owned(),
                format!("iSCSI login of {name} from {peer} failed to authenticate: {why}"),
            )
        }
    };
    match complaints.note(peer.ip(), &kind) {
        None => {}
        Some(0) => log::warn!("{text}"),
        Some(untold) => log::warn!("{text} ({untold} more like it since the last such line)"),
    }
}
