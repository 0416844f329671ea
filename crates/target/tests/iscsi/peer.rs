//! An initiator made of single PDUs, so that a test can send any of them wrong.

use playhead_wire::iscsi::bhs::{self, padded, Bhs, Digests, BHS_LEN};
use playhead_wire::iscsi::request::{LoginRequest, Request, ScsiCommand};
use playhead_wire::iscsi::response::{Counters, DataIn, Response};
use playhead_wire::iscsi::{digest, text, SerialNumber, RESERVED_TAG};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// A received PDU.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) response: Response,
    pub(crate) data: Vec<u8>,
}

/// How a command ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) status: u8,
    /// Additional sense code and qualifier, if any.
    pub(crate) sense: Option<u16>,
    pub(crate) data: Vec<u8>,
    /// Sense data, if any.
    pub(crate) report: Vec<u8>,
}

pub(crate) struct Peer {
    pub(crate) socket: TcpStream,
    pub(crate) cmd_sn: u32,
    pub(crate) itt: u32,
    pub(crate) digests: Digests,
    pub(crate) isid: [u8; 6],
    last_max: Option<SerialNumber>,
    /// The pairs of the login responses.
    pub(crate) answers: Vec<(String, String)>,
    /// What commands are for.
    pub(crate) lun: [u8; 8],
}

/// Keys of an ordinary normal session.
pub(crate) fn keys<'a>(target: &'a str, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let mut keys = vec![
        ("InitiatorName", "iqn.2026-01.org.example:peer"),
        ("TargetName", target),
        ("SessionType", "Normal"),
    ];
    keys.extend_from_slice(more);
    keys
}

impl Peer {
    pub(crate) fn connect(address: SocketAddr) -> Peer {
        let socket = TcpStream::connect(address).unwrap();
        socket.set_nodelay(true).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Peer {
            socket,
            cmd_sn: 1,
            itt: 1,
            digests: Digests::default(),
            isid: [0x80, 0, 0, 1, 0, 1],
            last_max: None,
            answers: Vec::new(),
            lun: [0; 8],
        }
    }

    /// A session on `target`, with further keys, whose unit attention is taken.
    pub(crate) fn session(address: SocketAddr, target: &str, more: &[(&str, &str)]) -> Peer {
        let mut peer = Peer::connect(address);
        peer.isid[5] = 1;
        assert_eq!(peer.login(&keys(target, more)), 0);
        peer.ready();
        peer
    }

    /// TEST UNIT READY until the unit attentions are told.
    pub(crate) fn ready(&mut self) {
        for _ in 0..8 {
            if self.command(&[0; 6], 0, &[]).status == 0 {
                return;
            }
        }
        panic!("the LUN does not become ready");
    }

    pub(crate) fn login_request(&self, stages: (u8, u8), transit: bool) -> LoginRequest {
        LoginRequest {
            transit,
            continues: false,
            current_stage: stages.0,
            next_stage: stages.1,
            version_max: 0,
            version_min: 0,
            isid: self.isid,
            tsih: 0,
            itt: 0x10,
            cid: 0,
            cmd_sn: self.cmd_sn,
            exp_stat_sn: 0,
        }
    }

    /// Logs in with one request of the operational stage. Returns the status.
    pub(crate) fn login(&mut self, keys: &[(&str, &str)]) -> u16 {
        let mut data = Vec::new();
        for (key, value) in keys {
            text::push(&mut data, key, value);
        }
        self.send(&Request::Login(self.login_request((1, 3), true)), &data);
        let received = self.receive().expect("a login response");
        let Response::Login { status, .. } = received.response else {
            panic!("not a login response: {received:?}");
        };
        for pair in text::pairs(&received.data) {
            let (key, value) = pair.unwrap();
            self.answers.push((key.to_owned(), value.to_owned()));
        }
        if status == 0 {
            let on = |key: &str| self.answers.iter().any(|(k, v)| k == key && v == "CRC32C");
            self.digests = Digests { header: on("HeaderDigest"), data: on("DataDigest") };
        }
        status
    }

    /// One request of a login and what it brings: the response and its pairs.
    pub(crate) fn login_step(
        &mut self,
        stages: (u8, u8),
        transit: bool,
        keys: &[(&str, &str)],
    ) -> (Response, Vec<(String, String)>) {
        let mut data = Vec::new();
        for (key, value) in keys {
            text::push(&mut data, key, value);
        }
        self.send(&Request::Login(self.login_request(stages, transit)), &data);
        let received = self.receive().expect("a login response");
        let pair = |pair: Result<(&str, &str), _>| pair.map(|(k, v)| (k.to_owned(), v.to_owned())).unwrap();
        (received.response, text::pairs(&received.data).map(pair).collect())
    }

    /// The status of a login response.
    pub(crate) fn status(response: &Response) -> u16 {
        match response {
            Response::Login { status, .. } => *status,
            other => panic!("not a login response: {other:?}"),
        }
    }

    /// The bytes of a PDU.
    pub(crate) fn bytes(&self, mut header: Bhs, data: &[u8]) -> Vec<u8> {
        bhs::set_data_length(&mut header, data.len());
        let mut out = header.to_vec();
        if self.digests.header {
            out.extend_from_slice(&digest::of(&header));
        }
        if !data.is_empty() {
            let start = out.len();
            out.extend_from_slice(data);
            out.resize(start + padded(data.len()), 0);
            if self.digests.data {
                let crc = digest::of(&out[start..]);
                out.extend_from_slice(&crc);
            }
        }
        out
    }

    pub(crate) fn send(&mut self, request: &Request, data: &[u8]) {
        let bytes = self.bytes(request.emit(), data);
        self.send_raw(&bytes);
    }

    /// Errors do not matter: the answer, or the end, tells.
    pub(crate) fn send_raw(&mut self, bytes: &[u8]) {
        let _ = self.socket.write_all(bytes);
    }

    /// The next PDU; `None` when the connection ended.
    pub(crate) fn receive(&mut self) -> Option<Received> {
        let mut header = [0; BHS_LEN];
        if let Err(error) = self.socket.read_exact(&mut header) {
            let ended = matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset);
            assert!(ended, "waiting for a PDU: {error}");
            return None;
        }
        let mut crc = [0; 4];
        if self.digests.header {
            self.socket.read_exact(&mut crc).unwrap();
            assert_eq!(crc, digest::of(&header), "header digest");
        }
        let len = bhs::data_length(&header);
        let mut data = vec![0; padded(len)];
        self.socket.read_exact(&mut data).unwrap();
        if self.digests.data && len > 0 {
            self.socket.read_exact(&mut crc).unwrap();
            assert_eq!(crc, digest::of(&data), "data digest");
        }
        data.truncate(len);
        let (response, counters) = Response::parse(&header).unwrap();
        self.check_window(&response, counters);
        Some(Received { response, data })
    }

    /// The CmdSN window never closes behind what was promised before (RFC 7143 4.2.2.1).
    fn check_window(&mut self, response: &Response, counters: Counters) {
        let max = SerialNumber(counters.max_cmd_sn);
        if let Some(last) = self.last_max.filter(|_| !matches!(response, Response::Login { .. })) {
            assert!(!max.is_before(last), "MaxCmdSN fell from {last:?} to {max:?}");
        }
        self.last_max = Some(max);
    }

    /// Whether the connection ends, whatever comes before.
    pub(crate) fn ends(&mut self) -> bool {
        for _ in 0..10_000 {
            if self.receive().is_none() {
                return true;
            }
        }
        false
    }

    /// A command PDU with the next tag and CmdSN. `expected_bytes` above zero asks for data unless `data` is given.
    pub(crate) fn scsi(&mut self, cdb: &[u8], expected_bytes: u32, data: &[u8]) -> ScsiCommand {
        let mut padded = [0; 16];
        padded[..cdb.len()].copy_from_slice(cdb);
        self.itt += 1;
        self.cmd_sn += 1;
        ScsiCommand {
            immediate: false,
            is_final: true,
            read: expected_bytes > 0 && data.is_empty(),
            write: !data.is_empty(),
            attribute: 1,
            lun: self.lun,
            itt: self.itt,
            expected_bytes,
            cmd_sn: self.cmd_sn - 1,
            exp_stat_sn: 0,
            cdb: padded,
        }
    }

    /// Runs a command to its end; `data` goes as immediate data.
    pub(crate) fn command(&mut self, cdb: &[u8], expected_bytes: u32, data: &[u8]) -> Ended {
        let expected = if data.is_empty() { expected_bytes } else { data.len() as u32 };
        let request = self.scsi(cdb, expected, data);
        self.send(&Request::ScsiCommand(request), data);
        self.end_of(request.itt)
    }

    /// Receives until the command of this tag has ended.
    pub(crate) fn end_of(&mut self, itt: u32) -> Ended {
        let mut data = Vec::new();
        loop {
            let received = self.receive().expect("the connection ended before the command did");
            match received.response {
                Response::DataIn(DataIn { itt: of, status, offset_bytes, .. }) if of == itt => {
                    assert_eq!(offset_bytes as usize, data.len());
                    data.extend_from_slice(&received.data);
                    if let Some(status) = status {
                        return Ended { status, sense: None, data, report: Vec::new() };
                    }
                }
                Response::Scsi { status, itt: of, .. } if of == itt => {
                    let sense = received
                        .data
                        .get(2..)
                        .filter(|sense| sense.len() >= 14)
                        .map(|sense| u16::from_be_bytes([sense[12], sense[13]]));
                    let report = received.data.get(2..).unwrap_or_default().to_vec();
                    return Ended { status, sense, data, report };
                }
                Response::NopIn { ttt, .. } if ttt != RESERVED_TAG => {}
                other => panic!("unexpected {other:?}"),
            }
        }
    }

    /// Receives until all these commands have ended, in any order, with GOOD and no data.
    pub(crate) fn all_good(&mut self, mut tags: Vec<u32>) {
        while !tags.is_empty() {
            match self.receive().expect("the connection ended before the commands did").response {
                Response::Scsi { status: 0, itt, .. } if tags.contains(&itt) => {
                    tags.retain(|tag| *tag != itt)
                }
                other => panic!("unexpected {other:?}"),
            }
        }
    }

    pub(crate) fn write(&mut self, lba: u32, data: &[u8]) -> Ended {
        let cdb = cdb_10(0x2a, lba, data.len());
        self.command(&cdb, 0, data)
    }

    pub(crate) fn read(&mut self, lba: u32, bytes: usize) -> Ended {
        self.command(&cdb_10(0x28, lba, bytes), bytes as u32, &[])
    }
}

/// A 10-byte READ or WRITE CDB for `bytes` bytes.
pub(crate) fn cdb_10(opcode: u8, lba: u32, bytes: usize) -> [u8; 10] {
    let mut cdb = [0; 10];
    cdb[0] = opcode;
    cdb[2..6].copy_from_slice(&lba.to_be_bytes());
    cdb[7..9].copy_from_slice(&((bytes / 512) as u16).to_be_bytes());
    cdb
}

/// Bytes that differ from block to block.
pub(crate) fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i / 512) as u8 ^ (i as u8) ^ seed).collect()
}
