//! The initiator, whose sessions go to other people's arrays: an array that answers anything, in any order.
//!
//! Input: one byte of options (bit 0 the login is the input's, too; bit 1 credentials; bit 2 digests; bit 3 a discovery session), then PDUs, each of:
//! opcode, flags, response, status, tag (FF: the reserved one), a 32-bit word (little-endian; Target Transfer Tag or Referenced tag), what is added to
//! the StatSN and the window that are due (signed), the 12 bytes from byte 36 on, a length (16 bits, little-endian, at most 2,048 counts), and that much data.
//! Tags of commands count from 1. All of it is sent, then the array hangs up.

use playhead_initiator::{Chap, Event, Nexus, Outcome, Remote, Secret, State, Task};
use playhead_wire::iscsi::bhs::{self, Bhs, Digests, Frame, BHS_LEN};
use playhead_wire::iscsi::request::Request;
use playhead_wire::iscsi::response::{Counters, Response};
use playhead_wire::iscsi::{digest, RESERVED_TAG};
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// PDUs taken of one input.
const PDUS_MAX: usize = 32;
/// Most data of one PDU.
const DATA_MAX_BYTES: usize = 2048;
/// How long a nexus may take to find that the array has hung up.
const PATIENCE: Duration = Duration::from_secs(10);
const LOGIN: u8 = 0x23;
const READ_BYTES: u32 = 8192;

fn listener() -> &'static TcpListener {
    static LISTENER: OnceLock<TcpListener> = OnceLock::new();
    LISTENER.get_or_init(|| TcpListener::bind("127.0.0.1:0").unwrap())
}

/// Has a nexus log in to the array of `data`.
pub fn run(data: &[u8]) {
    let Some((&options, rest)) = data.split_first() else {
        return;
    };
    let mut array = House::new(options);
    if options & 1 == 0 && options & 2 == 0 {
        array.let_in(options & 4 != 0);
        assert_eq!(array.nexus.state(), State::Up);
        array.ask();
    }
    array.answer(rest);
    array.hang_up();
}

/// The nexus, the array's end of its connection, and what was asked.
struct House {
    nexus: Nexus,
    socket: TcpStream,
    /// What the nexus has sent and was not looked at.
    heard: Vec<u8>,
    digests: Digests,
    stat_sn: u32,
    /// By the nexus' tag: the most that may be read.
    asked: HashMap<u64, u32>,
    ended: HashMap<u64, u32>,
    is_down: bool,
}

impl House {
    fn new(options: u8) -> House {
        let target = (options & 8 == 0).then_some("iqn.array");
        let portal = listener().local_addr().unwrap();
        let mut remote = Remote::new("iqn.fuzz", [0x80, 0, 0, 0, 0, 9], target, vec![portal]);
        if options & 2 != 0 {
            let secret = |name: &str| Secret { name: name.to_owned(), secret: b"fuzzing-secret".to_vec() };
            remote.chap = Some(Chap { ours: secret("fuzz"), theirs: Some(secret("array")) });
        }
        (remote.header_digest, remote.data_digest) = (options & 4 != 0, options & 4 != 0);
        let mut nexus = Nexus::new(remote);
        nexus.start();
        let (socket, _) = listener().accept().unwrap();
        socket.set_nonblocking(true).unwrap();
        socket.set_nodelay(true).unwrap();
        House {
            nexus,
            socket,
            heard: Vec::new(),
            digests: Digests::default(),
            stat_sn: 1,
            asked: HashMap::new(),
            ended: HashMap::new(),
            is_down: false,
        }
    }

    /// Sees the login through.
    fn let_in(&mut self, digests: bool) {
        let deadline = Instant::now() + PATIENCE;
        while self.nexus.state() != State::Up {
            assert!(Instant::now() < deadline, "a right login does not succeed");
            self.turn(1);
            let Some((Request::Login(login), len)) = self.request() else {
                continue;
            };
            self.heard.drain(..len);
            let text: &[u8] = match (login.current_stage, digests) {
                (0, _) => b"AuthMethod=None\0TargetPortalGroupTag=1\0",
                (_, true) => b"HeaderDigest=CRC32C\0DataDigest=CRC32C\0InitialR2T=No\0ImmediateData=Yes\0",
                (_, false) => b"InitialR2T=No\0ImmediateData=Yes\0FirstBurstLength=1024\0MaxBurstLength=4096\0MaxOutstandingR2T=2\0",
            };
            let response = Response::Login {
                transit: login.transit,
                continues: false,
                current_stage: login.current_stage,
                next_stage: login.next_stage,
                isid: login.isid,
                tsih: 1,
                itt: login.itt,
                status: 0,
            };
            let counters =
                Counters { stat_sn: self.stat_sn, exp_cmd_sn: login.cmd_sn, max_cmd_sn: login.cmd_sn + 64 };
            self.stat_sn += 1;
            let bytes = self.pdu(response.emit(counters), text);
            self.socket.write_all(&bytes).unwrap();
        }
        self.digests = Digests { header: digests, data: digests };
    }

    /// The first whole request that was heard, and its length in bytes.
    fn request(&self) -> Option<(Request, usize)> {
        let frame = Frame::new_checked(&self.heard, Digests::default(), 1 << 16).ok().flatten()?;
        let header = self.heard.first_chunk().filter(|_| self.heard.len() >= frame.total_len)?;
        Some((Request::parse(header).ok()?, frame.total_len))
    }

    /// Gives commands of every kind.
    fn ask(&mut self) {
        let (read_bytes, write_bytes) = (READ_BYTES, 6000);
        for (reads, writes) in [(true, false), (false, true), (false, false), (true, false), (false, true)] {
            let task = Task {
                cdb: [if reads { 0x28 } else { 0x2a }, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0],
                attribute: 1,
                read_bytes: if reads { read_bytes } else { 0 },
                write_bytes: if writes { write_bytes } else { 0 },
                data_out: if writes { vec![7; write_bytes as usize] } else { Vec::new() },
                ..Task::default()
            };
            let most = task.read_bytes;
            self.asked.insert(self.nexus.submit(task), most);
        }
        let last = *self.asked.keys().max().unwrap();
        self.nexus.manage(1, [0; 8], Some(last));
        self.nexus.manage(5, [0; 8], None);
        self.nexus.send_targets();
        self.nexus.send();
        self.turn(1);
    }

    fn answer(&mut self, mut rest: &[u8]) {
        for _ in 0..PDUS_MAX {
            let Some((&[opcode, flags, response, status, itt, w0, w1, w2, w3, shift, window], after)) =
                rest.split_first_chunk()
            else {
                return;
            };
            let Some((tail, after)) = after.split_first_chunk::<12>() else {
                return;
            };
            let (len, after) = after.split_first_chunk::<2>().map_or((0, after), |(len, after)| {
                (usize::from(u16::from_le_bytes(*len)) % (DATA_MAX_BYTES + 1), after)
            });
            let (data, after) = after.split_at(len.min(after.len()));
            rest = after;
            let mut header: Bhs = [0; BHS_LEN];
            (header[0], header[1], header[2], header[3]) = (opcode, flags, response, status);
            let tag = if itt == 0xff { RESERVED_TAG } else { u32::from(itt) };
            header[16..20].copy_from_slice(&tag.to_be_bytes());
            header[20..24].copy_from_slice(&u32::from_le_bytes([w0, w1, w2, w3]).to_be_bytes());
            header[24..28]
                .copy_from_slice(&self.stat_sn.wrapping_add_signed((shift as i8).into()).to_be_bytes());
            header[28..32].copy_from_slice(&2u32.to_be_bytes());
            header[32..36].copy_from_slice(&32u32.wrapping_add_signed((window as i8).into()).to_be_bytes());
            header[36..].copy_from_slice(tail);
            if opcode & 0x3f == LOGIN && header[36] == 1 {
                // A redirection would be followed to wherever it says.
                header[36] = 3;
            }
            let counts = !matches!(opcode & 0x3f, 0x31)
                && (opcode & 0x3f != 0x25 || flags & 1 != 0)
                && tag != RESERVED_TAG;
            if counts && shift == 0 {
                self.stat_sn = self.stat_sn.wrapping_add(1);
            }
            let bytes = self.pdu(header, data);
            // It may have hung up.
            let _ = self.socket.write_all(&bytes);
            self.turn(0);
            if self.is_down {
                return;
            }
        }
    }

    fn pdu(&self, mut header: Bhs, data: &[u8]) -> Vec<u8> {
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

    /// What the array has sent is all there is: every command ends once.
    fn hang_up(mut self) {
        let _ = self.socket.shutdown(Shutdown::Write);
        let deadline = Instant::now() + PATIENCE;
        while !self.is_down {
            assert!(Instant::now() < deadline, "the nexus does not notice that the array has hung up");
            self.turn(10);
        }
        self.nexus.close();
        self.take();
        assert_eq!(self.nexus.state(), State::Closed);
        for tag in self.asked.keys() {
            assert_eq!(
                self.ended.get(tag),
                Some(&1),
                "command {tag} has ended another number of times than once"
            );
        }
    }

    /// Lets the nexus do what it can, waiting `ms` for its socket.
    fn turn(&mut self, ms: i64) {
        self.nexus.send();
        if let Some((fd, read, write)) = self.nexus.interest() {
            let mut wanted = PollFlags::empty();
            wanted.set(PollFlags::IN, read);
            wanted.set(PollFlags::OUT, write);
            let mut fds = [PollFd::from_borrowed_fd(fd, wanted)];
            let _ = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: ms * 1_000_000 }));
            let ready = fds[0].revents();
            let broken = ready.intersects(PollFlags::ERR | PollFlags::HUP);
            self.nexus
                .progress(ready.contains(PollFlags::IN) || broken, ready.contains(PollFlags::OUT) || broken);
        }
        self.take();
        let mut some = [0; 16 << 10];
        loop {
            match self.socket.read(&mut some) {
                Ok(0) | Err(_) => return,
                Ok(len) if !self.digests.header => self.heard.extend_from_slice(&some[..len]),
                Ok(_) => {}
            }
        }
    }

    fn take(&mut self) {
        while let Some(event) = self.nexus.take() {
            match event {
                Event::Done(done) => {
                    let most = *self.asked.get(&done.tag).expect("an end of what was not asked");
                    *self.ended.entry(done.tag).or_default() += 1;
                    assert!(done.data_in.len() as u64 <= u64::from(most), "more data than was asked for");
                    if let Outcome::Status { sense, .. } = &done.outcome {
                        assert!(sense.len() <= 252);
                    }
                }
                Event::Text(text) => assert!(text.len() <= 1 << 20),
                Event::Down(_) => self.is_down = true,
                Event::Managed { .. } | Event::Up(_) => {}
            }
        }
    }
}
