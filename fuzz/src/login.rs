//! Login and text negotiation, against a server with a target.
//!
//! Input: one byte of mode. If its lowest bit is set, the rest is sent as it is. Otherwise the rest is steps, separated by bytes FF: each
//! is the flags byte of a login request (bits 4 and 5, reserved there, make TSIH 1 and the lowest version 1) and its text. Once logged in,
//! the steps are text requests (bit 4 of the flags quotes the target's last tag).

use crate::ramdisk::RamDisk;
use playhead_target::iscsi::{Limits, Server};
use playhead_wire::iscsi::bhs::{self, Bhs, Digests, Frame, BHS_LEN};
use playhead_wire::iscsi::request::{LoginRequest, LogoutRequest, Request, TextRequest};
use playhead_wire::iscsi::response::Response;
use playhead_wire::iscsi::{digest, text, RESERVED_TAG};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// The target there is. Names in the corpus.
pub const IQN: &str = "iqn.2026-01.org.playhead:fuzz";
/// Steps taken of one input.
const STEPS_MAX: usize = 24;
/// Longest data segment until another is negotiated (RFC 7143 13.12).
const LOGIN_MAX_BYTES: usize = 8192;
/// More than any answer to one input.
const ANSWER_MAX_BYTES: usize = 4 << 20;

fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| {
        let server = Server::bind("127.0.0.1:0".parse().unwrap(), Limits::default()).unwrap();
        server.add_target(IQN).unwrap();
        server.set_lun(IQN, 0, Arc::new(RamDisk::new("fuzz", 2048))).unwrap();
        server
    })
}

/// Logs in as `data` says.
pub fn run(data: &[u8]) {
    let Some((&mode, rest)) = data.split_first() else {
        return;
    };
    let mut peer = Peer::connect(server());
    if mode & 1 != 0 {
        peer.send(rest);
    } else {
        for step in rest.split(|&byte| byte == 0xff).take(STEPS_MAX) {
            let Some((&flags, text)) = step.split_first() else {
                continue;
            };
            if !peer.step(flags, text) {
                break;
            }
        }
        peer.log_out();
    }
    peer.end();
}

struct Peer {
    socket: TcpStream,
    received: Vec<u8>,
    total_bytes: usize,
    cmd_sn: u32,
    ttt: u32,
    /// Of an answer in several parts.
    text: Vec<u8>,
    digests: Digests,
    logged_in: bool,
}

impl Peer {
    fn connect(server: &Server) -> Peer {
        let socket = TcpStream::connect(server.address()).unwrap();
        socket.set_nodelay(true).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Peer {
            socket,
            received: Vec::new(),
            total_bytes: 0,
            cmd_sn: 1,
            ttt: RESERVED_TAG,
            text: Vec::new(),
            digests: Digests::default(),
            logged_in: false,
        }
    }

    /// The server may have hung up: then the answers tell.
    fn send(&mut self, bytes: &[u8]) {
        let _ = self.socket.write_all(bytes);
    }

    fn send_pdu(&mut self, mut header: Bhs, data: &[u8]) {
        bhs::set_data_length(&mut header, data.len());
        let digests = self.digests_in_force();
        let mut bytes = header.to_vec();
        if digests.header {
            bytes.extend_from_slice(&digest::of(&header));
        }
        let start = bytes.len();
        bytes.extend_from_slice(data);
        bytes.resize(start + bhs::padded(data.len()), 0);
        if digests.data && !data.is_empty() {
            let crc = digest::of(&bytes[start..]);
            bytes.extend_from_slice(&crc);
        }
        self.send(&bytes);
    }

    /// Digests begin after the login's last answer.
    fn digests_in_force(&self) -> Digests {
        if self.logged_in {
            self.digests
        } else {
            Digests::default()
        }
    }

    /// One request and its answer. False: there is nobody to talk to any more.
    fn step(&mut self, flags: u8, data: &[u8]) -> bool {
        let itt = 7;
        let (is_final, continues) = (flags & 0x80 != 0, flags & 0x40 != 0);
        if self.logged_in {
            let ttt = if flags & 0x10 != 0 { self.ttt } else { RESERVED_TAG };
            if ttt == RESERVED_TAG {
                // A new negotiation: what was left of the last answer will not come.
                self.text.clear();
            }
            let (lun, cmd_sn, exp_stat_sn) = ([0; 8], self.cmd_sn, 0);
            let immediate = flags & 0x20 != 0;
            let text = TextRequest { immediate, is_final, continues, lun, itt, ttt, cmd_sn, exp_stat_sn };
            self.cmd_sn = self.cmd_sn.wrapping_add(u32::from(!immediate));
            self.send_pdu(Request::Text(text).emit(), data);
        } else {
            let login = LoginRequest {
                transit: is_final,
                continues,
                current_stage: flags >> 2 & 3,
                next_stage: flags & 3,
                version_max: 0,
                version_min: flags >> 5 & 1,
                isid: [0x80, 0, 0, 1, 0, 1],
                tsih: u16::from(flags >> 4 & 1),
                itt,
                cid: 0,
                cmd_sn: self.cmd_sn,
                exp_stat_sn: 0,
            };
            self.send_pdu(Request::Login(login).emit(), data);
        }
        let Some((response, data)) = self.receive() else {
            return false;
        };
        match response {
            Response::Login { transit, next_stage, status, tsih, .. } => {
                assert!(!self.logged_in);
                assert!(data.len() <= LOGIN_MAX_BYTES, "more than an initiator takes before it has said so");
                self.take_pairs(&data);
                self.logged_in = status == 0 && transit && next_stage == 3;
                assert!(!self.logged_in || tsih != 0, "a session without a number");
                status == 0
            }
            Response::Text { ttt, continues, .. } => {
                assert!(self.logged_in);
                self.ttt = ttt;
                self.text.extend_from_slice(&data);
                if !continues {
                    let text = std::mem::take(&mut self.text);
                    self.take_pairs(&text);
                }
                true
            }
            Response::Reject { .. } => true,
            other => panic!("nobody asked for {other:?}"),
        }
    }

    fn take_pairs(&mut self, data: &[u8]) {
        for pair in text::pairs(data) {
            let (key, value) = pair.expect("the target's text is well-formed");
            match (key, value) {
                _ if self.logged_in => {}
                ("HeaderDigest", "CRC32C") => self.digests.header = true,
                ("DataDigest", "CRC32C") => self.digests.data = true,
                _ => {}
            }
        }
    }

    fn log_out(&mut self) {
        if self.logged_in {
            let logout = LogoutRequest {
                immediate: true,
                reason: 0,
                itt: 9,
                cid: 0,
                cmd_sn: self.cmd_sn,
                exp_stat_sn: 0,
            };
            self.send_pdu(Request::Logout(logout).emit(), &[]);
        }
    }

    /// The next whole PDU, checked; `None` when there will be none.
    fn receive(&mut self) -> Option<(Response, Vec<u8>)> {
        let digests = self.digests_in_force();
        loop {
            let frame = Frame::new_checked(&self.received, digests, ANSWER_MAX_BYTES).unwrap();
            if let Some(frame) = frame.filter(|frame| frame.total_len <= self.received.len()) {
                let header: &Bhs = self.received.first_chunk().unwrap();
                let (response, _) = Response::parse(header).expect("the target's headers are well-formed");
                assert!(!digests.header || digest::header_matches(&self.received, &frame));
                let data = self.received[frame.data()].to_vec();
                assert!(!digests.data || data.is_empty() || digest::data_matches(&self.received, &frame));
                self.received.drain(..frame.total_len);
                return Some((response, data));
            }
            if !self.fill() {
                return None;
            }
        }
    }

    fn fill(&mut self) -> bool {
        let mut bytes = [0; 4096];
        match self.socket.read(&mut bytes) {
            Ok(0) => false,
            Ok(len) => {
                self.received.extend_from_slice(&bytes[..len]);
                self.total_bytes += len;
                assert!(self.total_bytes < ANSWER_MAX_BYTES, "too much of an answer");
                true
            }
            Err(error) => {
                let kind = error.kind();
                let waited = matches!(kind, std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut);
                assert!(!waited, "the target neither answers nor hangs up");
                false
            }
        }
    }

    /// Hangs up, and sees that the target does too.
    fn end(mut self) {
        let _ = self.socket.shutdown(Shutdown::Write);
        while self.fill() {}
        assert!(self.received.is_empty() || self.received.len() >= BHS_LEN, "half a header");
    }
}
