//! Login and text negotiation, against a server with a target.
//!
//! Input: one byte of mode. If its lowest bit is set, the rest is sent as it is. Otherwise the rest is steps, separated by bytes FF: each
//! is the flags byte of a login request (bits 4 and 5, reserved there, make TSIH 1 and the lowest version 1) and its text. Once logged in,
//! the steps are text requests (bit 4 of the flags quotes the target's last tag). In a login's text `CHAP_R=%` becomes the right response to
//! the last challenge.

use crate::peer::Peer;
use crate::ramdisk::RamDisk;
use md5::{Digest, Md5};
use playhead_target::iscsi::{Chap, Credentials, Limits, Server, User};
use playhead_wire::iscsi::bhs::{Bhs, Digests};
use playhead_wire::iscsi::request::{LoginRequest, LogoutRequest, Request, TextRequest};
use playhead_wire::iscsi::response::Response;
use playhead_wire::iscsi::{binary, text, RESERVED_TAG};
use std::sync::{Arc, OnceLock};

/// The target there is. Names in the corpus.
pub const IQN: &str = "iqn.2026-01.org.playhead:fuzz";
/// The initiator that has to prove itself, and with what.
const CAREFUL: &str = "iqn.chap";
const SECRET: &str = "fuzzing-secret";
/// Stands for the right response.
const RIGHT: &[u8] = b"CHAP_R=%";
/// Parts of one answer.
const PARTS_MAX: usize = 16;
/// Steps taken of one input.
const STEPS_MAX: usize = 24;
/// Longest data segment until another is negotiated (RFC 7143 13.12).
const LOGIN_MAX_BYTES: usize = 8192;

fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| {
        let server = Server::bind("127.0.0.1:0".parse().unwrap(), Limits::default()).unwrap();
        server.add_target(IQN).unwrap();
        let user = |name: &str, secret: &str| User { name: name.to_owned(), secret: secret.into() };
        let chap = Chap { initiator: user("fuzz", SECRET), target: Some(user("array", "fuzzed-secret")) };
        let credentials = Credentials::new(false, None, [(CAREFUL.to_owned(), chap)]).unwrap();
        server.set_credentials(credentials);
        server.set_lun(IQN, 0, Arc::new(RamDisk::new("fuzz", 2048))).unwrap();
        server
    })
}

/// Logs in as `data` says.
pub fn run(data: &[u8]) {
    let Some((&mode, rest)) = data.split_first() else {
        return;
    };
    let mut login = Login::new(Peer::connect(server().address()));
    if mode & 1 != 0 {
        login.peer.send(rest);
    } else {
        for step in rest.split(|&byte| byte == 0xff).take(STEPS_MAX) {
            let Some((&flags, text)) = step.split_first() else {
                continue;
            };
            if !login.step(flags, text) {
                break;
            }
        }
        login.log_out();
    }
    login.peer.end();
}

struct Login {
    peer: Peer,
    cmd_sn: u32,
    ttt: u32,
    /// Of an answer in several parts.
    text: Vec<u8>,
    /// Agreed on, not yet in force.
    digests: Digests,
    /// The target's last challenge.
    challenge: (u8, Vec<u8>),
    /// All text sent during the login.
    said: Vec<u8>,
    proved: bool,
    logged_in: bool,
}

impl Login {
    fn new(peer: Peer) -> Login {
        Login {
            peer,
            cmd_sn: 1,
            ttt: RESERVED_TAG,
            text: Vec::new(),
            digests: Digests::default(),
            challenge: (0, Vec::new()),
            said: Vec::new(),
            proved: false,
            logged_in: false,
        }
    }

    fn send(&mut self, header: Bhs, data: &[u8]) {
        let bytes = self.peer.pdu(header, data);
        self.peer.send(&bytes);
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
            self.send(Request::Text(text).emit(), data);
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
            let data = self.answered(data);
            self.said.extend_from_slice(&data);
            self.send(Request::Login(login).emit(), &data);
            return self.take_login(&login);
        }
        let Some((response, _, data)) = self.peer.receive() else {
            return false;
        };
        match response {
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

    /// The text with the right response in place of its sign.
    fn answered(&mut self, data: &[u8]) -> Vec<u8> {
        let Some(at) = data.windows(RIGHT.len()).position(|window| window == RIGHT) else {
            return data.to_vec();
        };
        self.proved = true;
        let (id, challenge) = &self.challenge;
        let response = Md5::new().chain_update([*id]).chain_update(SECRET).chain_update(challenge).finalize();
        let response = binary::emit_hex(&response);
        [&data[..at + RIGHT.len() - 1], response.as_bytes(), &data[at + RIGHT.len()..]].concat()
    }

    /// The answer to a login request, all its parts.
    fn take_login(&mut self, request: &LoginRequest) -> bool {
        let mut text = Vec::new();
        for _ in 0..PARTS_MAX {
            let Some((response, _, data)) = self.peer.receive() else {
                return false;
            };
            let Response::Login { transit, continues, next_stage, status, tsih, .. } = response else {
                panic!("a login was answered with {response:?}");
            };
            assert!(data.len() <= LOGIN_MAX_BYTES, "more than an initiator takes before it has said so");
            text.extend_from_slice(&data);
            if continues {
                assert!(!transit && status == 0);
                let more = LoginRequest { transit: false, continues: false, next_stage: 0, ..*request };
                self.send(Request::Login(more).emit(), &[]);
                continue;
            }
            self.take_pairs(&text);
            self.logged_in = status == 0 && transit && next_stage == 3;
            if self.logged_in {
                assert!(tsih != 0, "a session without a number");
                assert!(self.proved || !self.must_prove(), "{CAREFUL} is in without proof");
                // Digests begin after the login's last answer.
                self.peer.digests = self.digests;
            }
            return status == 0;
        }
        panic!("an answer without end");
    }

    /// Whether a session for data was asked for in the name of the careful one.
    fn must_prove(&self) -> bool {
        let said = |wanted| text::pairs(&self.said).any(|pair| pair == Ok(wanted));
        said(("InitiatorName", CAREFUL)) && !said(("SessionType", "Discovery"))
    }

    fn take_pairs(&mut self, data: &[u8]) {
        for pair in text::pairs(data) {
            let (key, value) = pair.expect("the target's text is well-formed");
            match (key, value) {
                _ if self.logged_in => {}
                ("HeaderDigest", "CRC32C") => self.digests.header = true,
                ("DataDigest", "CRC32C") => self.digests.data = true,
                // Out of their turn they are refused with a word.
                ("CHAP_I", id) => self.challenge.0 = id.parse().unwrap_or(self.challenge.0),
                ("CHAP_C", bytes) => self.challenge.1 = binary::parse(bytes).unwrap_or_default(),
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
            self.send(Request::Logout(logout).emit(), &[]);
        }
    }
}
