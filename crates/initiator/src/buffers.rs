//! The two buffers of a connection: received bytes that are not parsed yet, and bytes to send. Empty allocations while it idles.

use rustix::io::Errno;
use rustix::net::{recv, send, RecvFlags, SendFlags};
use std::net::TcpStream;

/// First size of a receive buffer in use, in bytes.
const RECEIVE_MIN: usize = 64 << 10;
/// Largest size it grows to by itself; one PDU may ask for more.
const RECEIVE_MAX: usize = 2 << 20;

/// What a call to the socket came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// This many bytes moved.
    Some(usize),
    /// Nothing can move now.
    Blocked,
    /// The peer is gone.
    Ended,
}

fn progress(result: rustix::io::Result<usize>, zero_is_end: bool) -> Progress {
    match result {
        Ok(0) if zero_is_end => Progress::Ended,
        Ok(bytes) => Progress::Some(bytes),
        Err(Errno::AGAIN | Errno::INTR) => Progress::Blocked,
        Err(_) => Progress::Ended,
    }
}

/// Received bytes, in one piece.
#[derive(Debug, Default)]
pub(crate) struct Received {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Received {
    pub(crate) fn unread(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    pub(crate) fn consume(&mut self, len: usize) {
        self.start += len;
    }

    /// Receives once, with room for at least `need_bytes` unread in all. The second value: the buffer was filled, more may be there.
    pub(crate) fn fill(&mut self, socket: &TcpStream, need_bytes: usize) -> (Progress, bool) {
        self.make_room(need_bytes);
        let free = &mut self.bytes[self.end..];
        let room = free.len();
        let result = progress(recv(socket, free, RecvFlags::DONTWAIT).map(|(n, _)| n), true);
        let mut was_filled = false;
        if let Progress::Some(received) = result {
            self.end += received;
            was_filled = received == room;
        }
        (result, was_filled)
    }

    fn make_room(&mut self, need_bytes: usize) {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        let unread = self.end - self.start;
        // A claimed length is believed only as its bytes arrive: a header alone cannot make the buffer large.
        let wanted = need_bytes.min((unread * 2).max(RECEIVE_MIN)) + RECEIVE_MIN / 2;
        if self.bytes.len() - self.start < wanted && self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, unread);
        }
        let full = self.end == self.bytes.len();
        if self.bytes.len() < wanted || full {
            let doubled = (self.bytes.len() * 2).min(RECEIVE_MAX);
            let size = wanted.max(doubled).max(RECEIVE_MIN).max(self.end + RECEIVE_MIN / 4);
            self.bytes.resize(size, 0);
        }
    }

    /// Gives the memory back if nothing is unread.
    pub(crate) fn release(&mut self) {
        if self.start == self.end {
            *self = Received::default();
        }
    }
}

/// Bytes to send.
#[derive(Debug, Default)]
pub(crate) struct Sending {
    bytes: Vec<u8>,
    start: usize,
}

impl Sending {
    pub(crate) fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    /// Where PDUs are put together: appended, never changed once sent.
    pub(crate) fn tail(&mut self) -> &mut Vec<u8> {
        if self.start == self.bytes.len() {
            self.bytes.clear();
            self.start = 0;
        }
        &mut self.bytes
    }

    /// Sends as much as the socket takes in one call.
    pub(crate) fn send(&mut self, socket: &TcpStream) -> Progress {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let result = progress(send(socket, &self.bytes[self.start..], flags), false);
        if let Progress::Some(sent) = result {
            self.start += sent;
        }
        result
    }

    /// Gives the memory back if nothing waits.
    pub(crate) fn release(&mut self) {
        if self.len() == 0 {
            *self = Sending::default();
        }
    }
}
