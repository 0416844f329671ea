//! The initiator's end of a connection: PDUs out, checked PDUs in.

use playhead_wire::iscsi::bhs::{self, Bhs, Digests, Frame, BHS_LEN};
use playhead_wire::iscsi::digest;
use playhead_wire::iscsi::response::{Counters, Response};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

/// More than any answer to one input.
const ANSWER_MAX_BYTES: usize = 64 << 20;

/// A connection.
pub struct Peer {
    socket: TcpStream,
    received: Vec<u8>,
    total_bytes: usize,
    /// Digests in force.
    pub digests: Digests,
}

impl Peer {
    /// Connects; whoever neither answers nor hangs up for 20 s is taken for hung.
    pub fn connect(address: SocketAddr) -> Peer {
        let socket = TcpStream::connect(address).unwrap();
        socket.set_nodelay(true).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Peer { socket, received: Vec::new(), total_bytes: 0, digests: Digests::default() }
    }

    /// The server may have hung up: then the answers tell.
    pub fn send(&mut self, bytes: &[u8]) {
        let _ = self.socket.write_all(bytes);
    }

    /// A PDU's bytes, with the digests in force.
    pub fn pdu(&self, mut header: Bhs, data: &[u8]) -> Vec<u8> {
        bhs::set_data_length(&mut header, data.len());
        let mut bytes = header.to_vec();
        if self.digests.header {
            bytes.extend_from_slice(&digest::of(&header));
        }
        let start = bytes.len();
        bytes.extend_from_slice(data);
        bytes.resize(start + bhs::padded(data.len()), 0);
        if self.digests.data && !data.is_empty() {
            let crc = digest::of(&bytes[start..]);
            bytes.extend_from_slice(&crc);
        }
        bytes
    }

    /// The next whole PDU, checked; `None` when there will be none.
    pub fn receive(&mut self) -> Option<(Response, Counters, Vec<u8>)> {
        loop {
            let frame = Frame::new_checked(&self.received, self.digests, ANSWER_MAX_BYTES).unwrap();
            if let Some(frame) = frame.filter(|frame| frame.total_len <= self.received.len()) {
                let header: &Bhs = self.received.first_chunk().unwrap();
                let (response, counters) =
                    Response::parse(header).expect("the target's headers are well-formed");
                assert!(!self.digests.header || digest::header_matches(&self.received, &frame));
                let data = self.received[frame.data()].to_vec();
                assert!(
                    !self.digests.data || data.is_empty() || digest::data_matches(&self.received, &frame)
                );
                self.received.drain(..frame.total_len);
                return Some((response, counters, data));
            }
            if !self.fill() {
                return None;
            }
        }
    }

    fn fill(&mut self) -> bool {
        let mut bytes = [0; 1 << 14];
        let read = loop {
            match self.socket.read(&mut bytes) {
                // The fuzzer's own alarm.
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        match read {
            Ok(0) => false,
            Ok(len) => {
                self.received.extend_from_slice(&bytes[..len]);
                self.total_bytes += len;
                assert!(self.total_bytes < ANSWER_MAX_BYTES, "too much of an answer");
                true
            }
            Err(error) => {
                let waited = matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
                assert!(!waited, "the target neither answers nor hangs up");
                false
            }
        }
    }

    /// Closes our half: nothing further will be asked.
    pub fn say_no_more(&self) {
        let _ = self.socket.shutdown(Shutdown::Write);
    }

    /// Hangs up, and sees that the target does too.
    pub fn end(mut self) {
        self.say_no_more();
        while self.fill() {}
        assert!(self.received.is_empty() || self.received.len() >= BHS_LEN, "half a header");
    }
}
