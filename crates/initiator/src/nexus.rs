//! What users hold: a session with a target that comes back after its connection is lost, by the same portal or another.
//!
//! States, in order: `Idle` (nobody has asked for it), `Connecting`, `LoggingIn`, `Up`, `Waiting` (an attempt failed, the next one has
//! its time), `Closed`. Commands given while a first attempt is under way wait for it; what was sent on a connection that is lost is
//! [`Outcome::Lost`](crate::Outcome), and a command given while the next attempt waits for its time is refused at once: whoever gave
//! it knows better than this side whether to try again.

use crate::connection::{not_sent, Connection, Told};
use crate::login::{Login, Next, Refused, Reply, Step, LOGIN_SEGMENT_BYTES};
use crate::remote::Remote;
use crate::task::{Done, Task};
use playhead_wire::iscsi::request::{LoginRequest, Request};
use playhead_wire::iscsi::response::Response;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use std::collections::VecDeque;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

/// Redirections followed in one attempt.
const MOVES_MAX: usize = 4;
/// Commands that may wait for a connection.
const BACKLOG_MAX: usize = 1024;

/// Where a nexus is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Not asked for yet.
    Idle,
    /// TCP is under way.
    Connecting,
    /// The login phase.
    LoggingIn,
    /// Commands go.
    Up,
    /// For the time of the next attempt.
    Waiting,
    /// For good.
    Closed,
}

impl State {
    /// The word for it in status.
    pub fn name(self) -> &'static str {
        match self {
            State::Idle => "idle",
            State::Connecting => "connecting",
            State::LoggingIn => "logging-in",
            State::Up => "up",
            State::Waiting => "waiting",
            State::Closed => "closed",
        }
    }
}

/// What a nexus has to tell.
#[derive(Debug)]
pub enum Event {
    /// A command is over.
    Done(Done),
    /// A task management function was answered (RFC 7143 11.6.1; 255 too if it was lost with the connection).
    Managed {
        /// What [`Nexus::manage`] returned.
        tag: u64,
        /// The response.
        response: u8,
    },
    /// The answer to [`Nexus::send_targets`].
    Text(Vec<u8>),
    /// There is a session now, over this portal.
    Up(SocketAddr),
    /// There is none any more, or an attempt failed.
    Down(String),
}

/// A nexus, as others see it.
#[derive(Debug, Clone)]
pub struct Status {
    /// Where it is.
    pub state: State,
    /// The portal in use, or tried last.
    pub portal: Option<SocketAddr>,
    /// Why the last connection or attempt ended.
    pub last_error: Option<String>,
    /// Sessions there have been.
    pub sessions: u64,
    /// Attempts that failed since the last session.
    pub failures: u32,
}

enum Stage {
    Idle,
    Waiting { until: Instant },
    Connecting { socket: TcpStream, deadline: Instant },
    LoggingIn { connection: Box<Connection>, login: Box<Login>, deadline: Instant },
    Up { connection: Box<Connection> },
    Closed,
}

/// A session with a target, or the endeavour to have one.
pub struct Nexus {
    remote: Remote,
    stage: Stage,
    /// Which of the portals is tried next.
    at: usize,
    moved_to: Option<SocketAddr>,
    moves: usize,
    portal: Option<SocketAddr>,
    portal_group: Option<u16>,
    failures: u32,
    sessions: u64,
    last_error: Option<String>,
    backlog: VecDeque<(u64, Task)>,
    next_tag: u64,
    events: VecDeque<Event>,
    last_heard: Instant,
    ping_sent: Option<Instant>,
    /// When the socket last took something, while there is something for it.
    stuck_since: Option<Instant>,
    leaving: Option<Instant>,
}

impl std::fmt::Debug for Nexus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Nexus").field("state", &self.state()).finish_non_exhaustive()
    }
}

impl Nexus {
    /// A nexus that does nothing until [`Nexus::start`], or a command is given.
    pub fn new(remote: Remote) -> Nexus {
        Nexus {
            remote,
            stage: Stage::Idle,
            at: 0,
            moved_to: None,
            moves: 0,
            portal: None,
            portal_group: None,
            failures: 0,
            sessions: 0,
            last_error: None,
            backlog: VecDeque::new(),
            next_tag: 1,
            events: VecDeque::new(),
            last_heard: Instant::now(),
            ping_sent: None,
            stuck_since: None,
            leaving: None,
        }
    }

    /// Where it is.
    pub fn state(&self) -> State {
        match self.stage {
            Stage::Idle => State::Idle,
            Stage::Waiting { .. } => State::Waiting,
            Stage::Connecting { .. } => State::Connecting,
            Stage::LoggingIn { .. } => State::LoggingIn,
            Stage::Up { .. } => State::Up,
            Stage::Closed => State::Closed,
        }
    }

    /// As others see it.
    pub fn status(&self) -> Status {
        Status {
            state: self.state(),
            portal: self.portal,
            last_error: self.last_error.clone(),
            sessions: self.sessions,
            failures: self.failures,
        }
    }

    /// Sessions there have been.
    pub fn sessions(&self) -> u64 {
        self.sessions
    }

    /// The tag of the portal group that the last session is, or was, in, if the target has told it. Sessions in different ones are with
    /// different ports of the target, whatever name and ISID they have (RFC 7143 4.4.1): none of them ends another.
    pub fn portal_group(&self) -> Option<u16> {
        self.portal_group
    }

    /// Whom it logs in to, and as whom.
    pub fn remote(&self) -> &Remote {
        &self.remote
    }

    /// Begins, if it has not.
    pub fn start(&mut self) {
        if matches!(self.stage, Stage::Idle) {
            self.connect();
        }
    }

    /// What to poll, and whether for reading and for writing. `None`: only the clock matters.
    pub fn interest(&self) -> Option<(BorrowedFd<'_>, bool, bool)> {
        match &self.stage {
            Stage::Connecting { socket, .. } => Some((socket.as_fd(), false, true)),
            Stage::LoggingIn { connection, .. } | Stage::Up { connection } => {
                Some((connection.socket.as_fd(), true, connection.unsent_bytes() > 0))
            }
            _ => None,
        }
    }

    /// When [`Nexus::progress`] is to be called even if nothing is ready.
    pub fn deadline(&self) -> Option<Instant> {
        let timeouts = &self.remote.timeouts;
        match &self.stage {
            Stage::Waiting { until } => Some(*until),
            Stage::Connecting { deadline, .. } | Stage::LoggingIn { deadline, .. } => Some(*deadline),
            Stage::Up { .. } => {
                let alive = match self.ping_sent {
                    Some(sent) => sent + timeouts.ping_answer,
                    None => self.last_heard + timeouts.ping_after,
                };
                let stuck = self.stuck_since.map(|since| since + timeouts.ping_answer);
                [Some(alive), stuck, self.leaving].into_iter().flatten().min()
            }
            Stage::Idle | Stage::Closed => None,
        }
    }

    /// The next thing to tell.
    pub fn take(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Gives a command. It ends in an [`Event::Done`] of the returned tag, whatever happens.
    pub fn submit(&mut self, task: Task) -> u64 {
        let tag = self.next_tag;
        self.next_tag += 1;
        self.start();
        match &mut self.stage {
            Stage::Up { connection } if self.leaving.is_none() => connection.submit(tag, task),
            Stage::Connecting { .. } | Stage::LoggingIn { .. } if self.backlog.len() < BACKLOG_MAX => {
                self.backlog.push_back((tag, task));
            }
            _ => {
                let why = self.last_error.clone().unwrap_or_else(|| "there is no session".to_owned());
                self.events.push_back(Event::Done(not_sent(tag, task, &why)));
            }
        }
        tag
    }

    /// Asks for a task management function (RFC 7143 11.5.1) on `lun`, about the command `referenced` if it is ABORT TASK. `None`: there
    /// is nothing at the target it could be about; a command that waited to be sent is over.
    pub fn manage(&mut self, function: u8, lun: [u8; 8], referenced: Option<u64>) -> Option<u64> {
        let tag = self.next_tag;
        self.next_tag += 1;
        if let Some(referenced) = referenced {
            if let Some(at) = self.backlog.iter().position(|(waiting, _)| *waiting == referenced) {
                if let Some((tag, task)) = self.backlog.remove(at) {
                    self.events.push_back(Event::Done(not_sent(tag, task, "aborted")));
                }
                return None;
            }
        }
        let Stage::Up { connection } = &mut self.stage else {
            return None;
        };
        let asked = connection.manage(tag, function, lun, referenced);
        self.pass_on();
        asked.then_some(tag)
    }

    /// A task management function was answered: the commands it was about (`referenced`, or all of `lun`) will have no answer.
    pub fn end_tasks(&mut self, lun: &[u8; 8], referenced: Option<u64>) {
        if let Stage::Up { connection } = &mut self.stage {
            connection
                .end_tasks(|tag, of| referenced.map_or(of == lun, |referenced| tag == referenced), "aborted");
        }
        self.pass_on();
    }

    /// Asks for the targets there are (RFC 7143 appendix C).
    pub fn send_targets(&mut self) {
        if let Stage::Up { connection } = &mut self.stage {
            connection.text(b"SendTargets=All\0", playhead_wire::iscsi::RESERVED_TAG);
        }
    }

    /// Gives a buffer of a [`Done`] back.
    pub fn recycle(&mut self, buffer: Vec<u8>) {
        if let Stage::Up { connection } = &mut self.stage {
            connection.recycle(buffer);
        }
    }

    /// Gives memory back that is only for a busy session.
    pub fn release(&mut self) {
        if let Stage::Up { connection } = &mut self.stage {
            connection.release();
        }
    }

    /// Sends what was given since, as far as the socket takes it.
    pub fn send(&mut self) {
        let Stage::Up { connection } = &mut self.stage else {
            return;
        };
        if connection.unsent_bytes() == 0 {
            return;
        }
        match connection.send() {
            Err(fault) => self.lose(&fault),
            Ok(sent) => {
                let left = connection.unsent_bytes() > 0;
                if !left {
                    self.stuck_since = None;
                } else if sent > 0 || self.stuck_since.is_none() {
                    self.stuck_since = Some(Instant::now());
                }
            }
        }
    }

    /// Does what can be done now. To be called when the descriptor is ready, or the deadline has come.
    pub fn progress(&mut self, readable: bool, writable: bool) {
        let now = Instant::now();
        match &mut self.stage {
            Stage::Idle | Stage::Closed => {}
            Stage::Waiting { until } => {
                if *until <= now {
                    self.connect();
                }
            }
            Stage::Connecting { socket, deadline } => {
                let (late, outcome) = (*deadline <= now, rustix::net::sockopt::socket_error(&*socket));
                match outcome {
                    _ if late => self.fail("it does not answer"),
                    Ok(Ok(())) if writable || readable => self.log_in(),
                    Ok(Ok(())) => {}
                    Ok(Err(error)) | Err(error) => self.fail(&std::io::Error::from(error).to_string()),
                }
            }
            Stage::LoggingIn { deadline, .. } => {
                if *deadline <= now {
                    self.fail("the login does not end");
                } else {
                    self.go_on_with_login(readable);
                }
            }
            Stage::Up { connection } => {
                if readable {
                    match connection.receive() {
                        Ok(true) => {
                            self.last_heard = now;
                            self.ping_sent = None;
                        }
                        Ok(false) => {}
                        Err(fault) => return self.lose(&fault),
                    }
                }
                self.pass_on();
                self.look_at_clock(now);
                self.send();
            }
        }
    }

    fn look_at_clock(&mut self, now: Instant) {
        let timeouts = self.remote.timeouts;
        let Stage::Up { connection } = &mut self.stage else {
            return;
        };
        if self.stuck_since.is_some_and(|since| since + timeouts.ping_answer <= now) {
            return self.lose("it takes nothing more");
        }
        if self.leaving.is_some_and(|at| at <= now) {
            return self.lose("it asked to be left");
        }
        match self.ping_sent {
            Some(sent) if sent + timeouts.ping_answer <= now => self.lose("it gives no sign of life"),
            Some(_) => {}
            None if self.last_heard + timeouts.ping_after <= now => {
                if !connection.is_pinged() {
                    connection.ping();
                }
                self.ping_sent = Some(now);
            }
            None => {}
        }
    }

    /// Moves what the connection has to tell to the events.
    fn pass_on(&mut self) {
        loop {
            let Stage::Up { connection } = &mut self.stage else {
                return;
            };
            let Some(told) = connection.told() else {
                break;
            };
            match told {
                Told::Done(done) => self.events.push_back(Event::Done(done)),
                Told::Managed { tag, response } => self.events.push_back(Event::Managed { tag, response }),
                Told::Text(text) => self.events.push_back(Event::Text(text)),
                Told::AskedToLeave => {
                    connection.drain();
                    self.leaving.get_or_insert(Instant::now() + self.remote.timeouts.ping_answer);
                }
                Told::WillDrop => return self.lose("it ends the session"),
                Told::LoggedOut => return self.lose("it asked to be left"),
            }
        }
        if let (Stage::Up { connection }, Some(_)) = (&mut self.stage, self.leaving) {
            if connection.is_idle() {
                connection.logout();
            }
        }
    }

    /// The connection is over; the next one has its time.
    fn lose(&mut self, why: &str) {
        let why = format!("array {} at {}: {why}", self.target_name(), self.portal_text());
        match std::mem::replace(&mut self.stage, Stage::Idle) {
            Stage::Up { connection } | Stage::LoggingIn { connection, .. } => {
                for told in connection.end(&why) {
                    match told {
                        Told::Done(done) => self.events.push_back(Event::Done(done)),
                        Told::Managed { tag, response } => {
                            self.events.push_back(Event::Managed { tag, response })
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
        for (tag, task) in std::mem::take(&mut self.backlog) {
            self.events.push_back(Event::Done(not_sent(tag, task, &why)));
        }
        (self.ping_sent, self.stuck_since, self.leaving) = (None, None, None);
        (self.moved_to, self.moves) = (None, 0);
        self.last_error = Some(why.clone());
        self.events.push_back(Event::Down(why));
        self.at = self.at.wrapping_add(1);
        // Every way is tried once without delay; after that the pauses grow.
        let round = self.failures as usize / self.remote.portals.len().max(1);
        let timeouts = &self.remote.timeouts;
        let pause = match (round, self.failures) {
            (0, 0) => Duration::ZERO,
            (round, _) => {
                (timeouts.back_off_min * 2u32.saturating_pow(round as u32)).min(timeouts.back_off_max)
            }
        };
        self.stage = Stage::Waiting { until: Instant::now() + pause };
    }

    fn fail(&mut self, why: &str) {
        self.failures = self.failures.saturating_add(1);
        self.lose(why);
    }

    fn target_name(&self) -> &str {
        self.remote.target.as_deref().unwrap_or("(discovery)")
    }

    fn portal_text(&self) -> String {
        self.portal.map_or_else(|| "no portal".to_owned(), |portal| portal.to_string())
    }

    fn connect(&mut self) {
        let count = self.remote.portals.len();
        let listed = if count == 0 { None } else { self.remote.portals.get(self.at % count).copied() };
        let Some(portal) = self.moved_to.or(listed) else {
            return self.fail("no portal is known");
        };
        self.portal = Some(portal);
        match open(portal) {
            Ok(socket) => {
                let deadline = Instant::now() + self.remote.timeouts.login;
                self.stage = Stage::Connecting { socket, deadline };
            }
            Err(error) => self.fail(&error.to_string()),
        }
    }

    fn log_in(&mut self) {
        let (socket, deadline) = match std::mem::replace(&mut self.stage, Stage::Idle) {
            Stage::Connecting { socket, deadline } => (socket, deadline),
            other => {
                self.stage = other;
                return;
            }
        };
        // Without it every command would wait for the acknowledgement of the one before.
        if let Err(error) = socket.set_nodelay(true) {
            return self.fail(&error.to_string());
        }
        let mut connection = Box::new(Connection::new(socket));
        let mut login = Box::new(Login::new());
        let step = login.begin(&self.remote);
        put_login(&mut connection, &self.remote, step);
        self.stage = Stage::LoggingIn { connection, login, deadline };
        self.go_on_with_login(false);
    }

    fn go_on_with_login(&mut self, readable: bool) {
        let mut readable = readable;
        // Bounded: a login has a limit of steps.
        loop {
            let Stage::LoggingIn { connection, login, .. } = &mut self.stage else {
                return;
            };
            if let Err(fault) = connection.send() {
                return self.fail(&fault);
            }
            if !readable {
                return;
            }
            let (response, data) = match connection.receive_one(LOGIN_SEGMENT_BYTES) {
                Err(fault) => return self.fail(&fault),
                Ok(None) => return,
                Ok(Some(found)) => found,
            };
            let Response::Login { transit, continues, current_stage, next_stage, status, .. } = response
            else {
                return self.fail("it answers the login with something else");
            };
            let reply = Reply { transit, continues, current_stage, next_stage, status };
            match login.take(&self.remote, &reply, &data) {
                Ok(Next::Send(step)) => put_login(connection, &self.remote, step),
                Ok(Next::Done) => return self.rise(),
                Err(Refused::Failed(why)) => return self.fail(&why),
                Err(Refused::Moved(to)) => return self.follow(to),
            }
            readable = true;
        }
    }

    fn follow(&mut self, to: SocketAddr) {
        self.moves += 1;
        if self.moves > MOVES_MAX {
            return self.fail("it has moved too often");
        }
        self.moved_to = Some(to);
        self.stage = Stage::Idle;
        self.connect();
    }

    fn rise(&mut self) {
        let (mut connection, login) = match std::mem::replace(&mut self.stage, Stage::Idle) {
            Stage::LoggingIn { connection, login, .. } => (connection, login),
            other => {
                self.stage = other;
                return;
            }
        };
        connection.enter_full_feature(login.parameters, login.digests());
        self.portal_group = login.portal_group;
        for (tag, task) in self.backlog.drain(..) {
            connection.submit(tag, task);
        }
        self.stage = Stage::Up { connection };
        self.failures = 0;
        self.sessions += 1;
        self.last_heard = Instant::now();
        self.moves = 0;
        if let Some(portal) = self.portal {
            self.events.push_back(Event::Up(portal));
        }
        self.send();
    }

    /// Takes the nexus down for good, politely if it is up: the logout is sent, its answer not waited for.
    pub fn close(&mut self) {
        if let Stage::Up { connection } = &mut self.stage {
            connection.logout();
            let _ = connection.send();
        }
        self.lose("closed");
        self.stage = Stage::Closed;
    }

    /// Drops the connection, if there is one, and begins anew: to the target, the loss of this nexus.
    pub fn reset(&mut self) {
        if matches!(self.stage, Stage::Up { .. }) {
            self.lose("reset");
        }
    }
}

impl Drop for Nexus {
    fn drop(&mut self) {
        if let Stage::Up { connection } = &mut self.stage {
            connection.logout();
            let _ = connection.send();
        }
    }
}

fn put_login(connection: &mut Connection, remote: &Remote, step: Step) {
    let (cmd_sn, exp_stat_sn) = connection.numbers();
    let request = LoginRequest {
        transit: step.transit,
        continues: false,
        current_stage: step.current_stage,
        next_stage: step.next_stage,
        version_max: 0,
        version_min: 0,
        isid: remote.isid,
        tsih: 0,
        itt: 0,
        cid: 0,
        cmd_sn,
        exp_stat_sn,
    };
    connection.pdu(Request::Login(request).emit(), &step.text);
}

/// A socket whose connection is under way.
fn open(portal: SocketAddr) -> std::io::Result<TcpStream> {
    let family = if portal.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&socket, &portal) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => Ok(TcpStream::from(socket)),
        Err(error) => Err(error.into()),
    }
}
