//! An NBD client that says what the test wants, right or wrong, and reads answers strictly.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use playhead_wire::nbd::answer::{ChunkPayload, CHUNK_DONE};
use playhead_wire::nbd::reply::{ReplyHeader, REPLY_HEADER_BYTES};
use playhead_wire::nbd::{
    parse_greeting, Answer, ClientFlags, Command, Descriptor, ErrorCode, ExportRequest, Info,
    MetaContextRequest, OptionHeader, OptionKind, Reply, ReplyError, Request, BASE_ALLOCATION,
    CHUNK_HEADER_BYTES, REQUEST_BYTES, SIMPLE_REPLY_BYTES,
};

/// A reply to an option that outlives its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    Ack,
    Server(String, String),
    Export(u64, u16),
    Name(String),
    Description(String),
    BlockSize(u32, u32, u32),
    Context(u32, String),
    Error(ReplyError, String),
}

/// A whole answer to a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answered {
    /// 0, or an [`ErrorCode`].
    pub error: u32,
    /// Words that came with an error.
    pub words: String,
    /// Pieces of data, by offset; for a simple reply at the offset asked for.
    pub data: Vec<(u64, Vec<u8>)>,
    /// Holes, offset and bytes.
    pub holes: Vec<(u64, u32)>,
    /// Block status.
    pub extents: Vec<Descriptor>,
}

impl Answered {
    /// The data asked for, holes filled with zeros. Every byte must have been told exactly once.
    pub fn assemble(&self, offset: u64, length: u32) -> Vec<u8> {
        assert_eq!(self.error, 0, "{}", self.words);
        let mut bytes = vec![0; length as usize];
        let mut told = 0;
        for (at, data) in &self.data {
            let start = (at - offset) as usize;
            bytes[start..start + data.len()].copy_from_slice(data);
            told += data.len();
        }
        told += self.holes.iter().map(|hole| hole.1 as usize).sum::<usize>();
        assert_eq!(told, length as usize);
        bytes
    }
}

/// The client.
pub struct Peer {
    pub socket: TcpStream,
    cookie: u64,
    /// Requests without an answer so far: READ lengths by cookie, others 0.
    asked: HashMap<u64, (u64, u32)>,
    partial: HashMap<u64, Answered>,
    structured: bool,
}

impl Peer {
    /// Connects and says hello.
    pub fn greet(address: SocketAddr) -> Peer {
        let mut peer = Peer::raw(address);
        let mut greeting = [0; 18];
        peer.socket.read_exact(&mut greeting).unwrap();
        assert_eq!(parse_greeting(&greeting), Ok(3));
        let flags = ClientFlags { fixed_newstyle: true, no_zeroes: true };
        peer.send(&flags.to_bytes());
        peer
    }

    /// Connects and says nothing.
    pub fn raw(address: SocketAddr) -> Peer {
        let socket = TcpStream::connect(address).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        socket.set_nodelay(true).unwrap();
        Peer { socket, cookie: 0, asked: HashMap::new(), partial: HashMap::new(), structured: false }
    }

    /// Opens an export with simple replies.
    pub fn simple(address: SocketAddr, export: &str) -> Peer {
        let mut peer = Peer::greet(address);
        peer.go(export);
        peer
    }

    /// Opens an export with structured replies and `base:allocation`.
    pub fn structured(address: SocketAddr, export: &str) -> Peer {
        let mut peer = Peer::greet(address);
        assert_eq!(peer.option(OptionKind::StructuredReply, &[]), [Said::Ack]);
        peer.structured = true;
        let said = peer.contexts(OptionKind::SetMetaContext, export, &[BASE_ALLOCATION]);
        assert_eq!(said, [Said::Context(1, BASE_ALLOCATION.into()), Said::Ack]);
        peer.go(export);
        peer
    }

    /// GO, which must succeed. Returns size and flags.
    pub fn go(&mut self, export: &str) -> (u64, u16) {
        let said = self.choose(OptionKind::Go, export, &[]);
        assert_eq!(said.last(), Some(&Said::Ack), "{said:?}");
        match said[0] {
            Said::Export(size, flags) => (size, flags),
            _ => panic!("{said:?}"),
        }
    }

    /// INFO or GO with information requests.
    pub fn choose(&mut self, option: OptionKind, name: &str, wanted: &[u16]) -> Vec<Said> {
        let wanted = wanted.to_vec();
        self.option(option, &ExportRequest { name, wanted }.to_bytes())
    }

    /// LIST_META_CONTEXT or SET_META_CONTEXT.
    pub fn contexts(&mut self, option: OptionKind, name: &str, queries: &[&str]) -> Vec<Said> {
        let queries = queries.to_vec();
        self.option(option, &MetaContextRequest { name, queries }.to_bytes())
    }

    /// Any option with any data; all replies up to the last.
    pub fn option(&mut self, option: OptionKind, data: &[u8]) -> Vec<Said> {
        let header = OptionHeader { code: option.code(), data_bytes: data.len() as u32 };
        self.send(&header.to_bytes());
        self.send(data);
        self.replies(option)
    }

    /// Replies to an option up to the last.
    pub fn replies(&mut self, option: OptionKind) -> Vec<Said> {
        let mut all = Vec::new();
        loop {
            let mut header = [0; REPLY_HEADER_BYTES];
            self.socket.read_exact(&mut header).unwrap();
            let header = ReplyHeader::parse(&header).unwrap();
            assert_eq!(header.option, option.code());
            let mut data = vec![0; header.data_bytes as usize];
            self.socket.read_exact(&mut data).unwrap();
            let said = match Reply::parse(header.kind, &data).unwrap() {
                Reply::Ack => Said::Ack,
                Reply::Server { name, description } => Said::Server(name.into(), description.into()),
                Reply::Info(Info::Export { size_bytes, flags }) => Said::Export(size_bytes, flags),
                Reply::Info(Info::Name(name)) => Said::Name(name.into()),
                Reply::Info(Info::Description(words)) => Said::Description(words.into()),
                Reply::Info(Info::BlockSize { minimum, preferred, maximum }) => {
                    Said::BlockSize(minimum, preferred, maximum)
                }
                Reply::MetaContext { id, name } => Said::Context(id, name.into()),
                Reply::Error(error, words) => Said::Error(error, words.into()),
            };
            let last = matches!(said, Said::Ack | Said::Error(..));
            all.push(said);
            if last {
                return all;
            }
        }
    }

    /// The bytes of a request with a fresh cookie, to be sent by the caller. Its answer will be understood.
    pub fn request(
        &mut self,
        command: Command,
        flags: u16,
        offset: u64,
        length: u32,
    ) -> (u64, [u8; REQUEST_BYTES]) {
        self.cookie += 1;
        let data = if command == Command::Read { length } else { 0 };
        self.asked.insert(self.cookie, (offset, data));
        let request = Request { flags, command, cookie: self.cookie, offset, length };
        (self.cookie, request.to_bytes())
    }

    /// Sends a request without payload.
    pub fn ask(&mut self, command: Command, flags: u16, offset: u64, length: u32) -> u64 {
        let (cookie, bytes) = self.request(command, flags, offset, length);
        self.send(&bytes);
        cookie
    }

    /// Sends a write.
    pub fn ask_write(&mut self, flags: u16, offset: u64, data: &[u8]) -> u64 {
        let (cookie, bytes) = self.request(Command::Write, flags, offset, data.len() as u32);
        self.send(&[&bytes, data].concat());
        cookie
    }

    /// A request without payload and its answer.
    pub fn call(&mut self, command: Command, flags: u16, offset: u64, length: u32) -> Answered {
        let cookie = self.ask(command, flags, offset, length);
        self.answer(cookie)
    }

    /// A write and its answer.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Answered {
        let cookie = self.ask_write(0, offset, data);
        self.answer(cookie)
    }

    /// A read that must succeed.
    pub fn read(&mut self, offset: u64, length: u32) -> Vec<u8> {
        self.call(Command::Read, 0, offset, length).assemble(offset, length)
    }

    /// The answer to `cookie`, which must be the next to be completed.
    pub fn answer(&mut self, cookie: u64) -> Answered {
        let (of, answered) = self.next_answer().unwrap();
        assert_eq!(of, cookie);
        answered
    }

    /// The next completed answer and its cookie.
    pub fn next_answer(&mut self) -> io::Result<(u64, Answered)> {
        loop {
            let mut head = [0; CHUNK_HEADER_BYTES];
            self.socket.read_exact(&mut head[..SIMPLE_REPLY_BYTES])?;
            if !self.structured || !head.starts_with(&[0x66]) {
                let (answer, _) = Answer::parse(&head[..SIMPLE_REPLY_BYTES]).unwrap();
                let Answer::Simple { cookie, error } = answer else {
                    panic!("{answer:?}");
                };
                let (offset, length) = self.asked.remove(&cookie).expect("an unknown cookie");
                let mut answered = Answered { error, ..Answered::default() };
                assert!(!self.structured || length == 0, "a READ answered simply");
                if error == 0 && length > 0 {
                    let mut data = vec![0; length as usize];
                    self.socket.read_exact(&mut data)?;
                    answered.data.push((offset, data));
                }
                return Ok((cookie, answered));
            }
            self.socket.read_exact(&mut head[SIMPLE_REPLY_BYTES..])?;
            let (answer, _) = Answer::parse(&head).unwrap();
            let Answer::Chunk { cookie, flags, kind, payload_bytes } = answer else {
                panic!("{answer:?}");
            };
            assert!(self.asked.contains_key(&cookie), "an unknown cookie");
            let mut payload = vec![0; payload_bytes as usize];
            self.socket.read_exact(&mut payload)?;
            let answered = self.partial.entry(cookie).or_default();
            match ChunkPayload::parse(kind, &payload).unwrap() {
                ChunkPayload::None => {}
                ChunkPayload::Data { offset, data } => answered.data.push((offset, data.to_vec())),
                ChunkPayload::Hole { offset, bytes } => answered.holes.push((offset, bytes)),
                ChunkPayload::BlockStatus { context, descriptors } => {
                    assert_eq!(context, 1);
                    answered.extents = descriptors;
                }
                ChunkPayload::Error { error, message, .. } => {
                    answered.error = error;
                    answered.words = message.into();
                }
            }
            if flags & CHUNK_DONE != 0 {
                self.asked.remove(&cookie);
                return Ok((cookie, self.partial.remove(&cookie).unwrap()));
            }
        }
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).unwrap();
    }

    /// Whether the server has closed the connection, or does within the read timeout. Nothing may come before.
    pub fn closed(&mut self) -> bool {
        match self.socket.read(&mut [0; 1]) {
            Ok(count) => count == 0,
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
        }
    }
}

/// The number of an error, as answers carry it.
pub fn code(error: ErrorCode) -> u32 {
    error as u32
}

/// Numbers that look random, the same for the same seed.
pub struct Dice {
    state: u64,
}

impl Dice {
    /// A seed from the environment (`PLAYHEAD_SEED`) or the clock, printed for replay.
    pub fn new() -> Dice {
        let clock = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
        let given = std::env::var("PLAYHEAD_SEED").ok();
        let seed = given.and_then(|seed| seed.parse().ok()).unwrap_or(clock);
        println!("PLAYHEAD_SEED={seed}");
        Dice { state: seed }
    }

    /// Other numbers, decided by these.
    pub fn fork(&mut self) -> Dice {
        Dice { state: self.next() }
    }

    pub fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Less than `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(count + 8);
        while bytes.len() < count {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(count);
        bytes
    }
}
