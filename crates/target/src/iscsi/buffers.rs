//! The two buffers of a connection. Both are empty allocations while it idles.

use rustix::io::Errno;
use rustix::net::{recv, send, RecvFlags, SendFlags};
use std::net::TcpStream;

/// First size of a receive buffer in use, in bytes.
const RECEIVE_MIN: usize = 64 << 10;
/// Largest size it grows to by itself; one PDU may ask for more.
const RECEIVE_MAX: usize = 4 << 20;

/// What a call to the socket came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// Bytes moved.
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

/// Received bytes that are not parsed yet, in one piece.
#[derive(Debug, Default)]
pub(super) struct ReceiveBuffer {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    /// The last receive filled the buffer: a larger one would have saved a call.
    was_filled: bool,
}

impl ReceiveBuffer {
    /// What is not parsed yet.
    pub(super) fn unread(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// Where `unread` starts, as a position for [`ReceiveBuffer::at`]. Positions hold until the next `fill`.
    pub(super) fn position(&self) -> usize {
        self.start
    }

    /// Bytes at a position.
    pub(super) fn at(&self, position: usize, len: usize) -> &[u8] {
        &self.bytes[position..position + len]
    }

    /// Marks bytes as parsed.
    pub(super) fn consume(&mut self, len: usize) {
        self.start += len;
    }

    /// Receives once, with room for at least `need_bytes` unread in all.
    pub(super) fn fill(&mut self, socket: &TcpStream, need_bytes: usize) -> Progress {
        self.make_room(need_bytes);
        let free = &mut self.bytes[self.end..];
        let room = free.len();
        let result = progress(recv(socket, free, RecvFlags::DONTWAIT).map(|(n, _)| n), true);
        if let Progress::Some(received) = result {
            self.end += received;
            self.was_filled = received == room;
        }
        result
    }

    fn make_room(&mut self, need_bytes: usize) {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        let unread = self.end - self.start;
        let mut size = self.bytes.len().max(RECEIVE_MIN);
        if self.was_filled {
            self.was_filled = false;
            size = (size * 2).min(RECEIVE_MAX.max(self.bytes.len()));
        }
        // Room for the whole PDU and the start of the next; but a claimed length is believed only as its bytes arrive, so that
        // a header alone cannot make the buffer large.
        size = size.max((need_bytes + RECEIVE_MIN / 2).min((unread * 2).max(RECEIVE_MIN)));
        let tail = self.bytes.len() - self.end;
        let wanted_tail = need_bytes.saturating_sub(unread).max(RECEIVE_MIN / 4);
        if self.start > 0 && (tail < wanted_tail || size > self.bytes.len()) {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, unread);
        }
        if size > self.bytes.len() {
            self.bytes.resize(size, 0);
        }
    }

    /// Gives the memory back if nothing is unread.
    pub(super) fn release(&mut self) {
        if self.start == self.end {
            *self = ReceiveBuffer::default();
        }
    }
}

/// Bytes to send, in one piece.
#[derive(Debug, Default)]
pub(super) struct SendBuffer {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl SendBuffer {
    /// Bytes not sent yet.
    pub(super) fn len(&self) -> usize {
        self.end - self.start
    }

    /// Makes room for `len` bytes at the end and returns it; what was there before is unspecified.
    pub(super) fn extend(&mut self, len: usize) -> &mut [u8] {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        if self.end + len > self.bytes.len() {
            if self.start > 0 {
                self.bytes.copy_within(self.start..self.end, 0);
                (self.start, self.end) = (0, self.end - self.start);
            }
            let size = (self.end + len).next_power_of_two().max(4096);
            if size > self.bytes.len() {
                self.bytes.resize(size, 0);
            }
        }
        let from = self.end;
        self.end += len;
        &mut self.bytes[from..self.end]
    }

    /// Takes back the last `len` bytes.
    pub(super) fn retract(&mut self, len: usize) {
        self.end = self.end.saturating_sub(len).max(self.start);
    }

    /// Sends as much as the socket takes in one call.
    pub(super) fn send(&mut self, socket: &TcpStream) -> Progress {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let result = progress(send(socket, &self.bytes[self.start..self.end], flags), false);
        if let Progress::Some(sent) = result {
            self.start += sent;
        }
        result
    }

    /// Gives the memory back if nothing waits.
    pub(super) fn release(&mut self) {
        if self.start == self.end {
            *self = SendBuffer::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::TcpListener;

    #[test]
    fn a_receive_buffer_keeps_a_split_pdu_in_one_piece() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (socket, _) = listener.accept().unwrap();
        let sent: Vec<u8> = (0..200_000u32).map(|i| i as u8).collect();
        let copy = sent.clone();
        let writer = std::thread::spawn(move || peer.write_all(&copy).unwrap());
        let mut buffer = ReceiveBuffer::default();
        let mut seen = Vec::new();
        while seen.len() < sent.len() {
            match buffer.fill(&socket, 50_000) {
                Progress::Ended => break,
                _ => std::thread::yield_now(),
            }
            while buffer.unread().len() >= 50_000 {
                seen.extend_from_slice(&buffer.unread()[..50_000]);
                buffer.consume(50_000);
            }
        }
        writer.join().unwrap();
        assert!(seen == sent);
        buffer.release();
        assert_eq!(buffer.bytes.capacity(), 0);
    }

    #[test]
    fn a_send_buffer_grows_retracts_and_reuses_its_room() {
        let mut buffer = SendBuffer::default();
        buffer.extend(10).fill(1);
        buffer.extend(5000).fill(2);
        buffer.retract(5000);
        assert_eq!(buffer.len(), 10);
        buffer.start += 10;
        buffer.extend(4).fill(3);
        assert_eq!((buffer.start, buffer.len()), (0, 4));
    }
}
