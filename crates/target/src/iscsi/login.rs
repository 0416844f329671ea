//! The login phase (RFC 7143 6.3): stages, names, and the negotiation of parameters.
//!
//! The security stage knows AuthMethod=None; an authentication method would answer its keys in [`Login::security_key`] and hold the
//! stage until it is satisfied.

use super::answers::Answers;
use super::buffers::Progress;
use super::catalogue::Target;
use super::connection::{Ended, Link};
use super::outbox::Event;
use super::registry::{Handle, SessionKey};
use super::Shared;
use playhead_wire::iscsi::bhs::{Digests, BHS_LEN};
use playhead_wire::iscsi::negotiate::{Answer, Parameters, Wishes};
use playhead_wire::iscsi::request::{LoginRequest, Request};
use playhead_wire::iscsi::response::{login_status, Response};
use playhead_wire::iscsi::text;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Longest data segment accepted, in bytes: a 1 MiB write needs no R2T.
pub(super) const MAX_RECV_BYTES: usize = 1 << 20;
/// What this target asks for.
pub(super) const WISHES: Wishes = Wishes {
    max_recv_bytes: MAX_RECV_BYTES as u32,
    max_burst_bytes: 4 << 20,
    first_burst_bytes: 1 << 20,
    max_outstanding_r2t: 4,
};
/// Longest data segment before anything is negotiated (RFC 7143 13.12).
const LOGIN_RECV_BYTES: usize = 8192;
/// Most text of one login step.
const TEXT_MAX_BYTES: usize = 32 << 10;
/// Most requests of one login.
const REQUESTS_MAX: usize = 64;
/// How long an older session is given to end.
const REINSTATEMENT: Duration = Duration::from_secs(5);

/// Security negotiation.
const SECURITY: u8 = 0;
/// Operational negotiation.
const OPERATIONAL: u8 = 1;
/// Full feature phase.
const FULL_FEATURE: u8 = 3;

/// What a login ends with.
pub(super) struct LoggedIn {
    pub(super) parameters: Parameters,
    /// `None`: a discovery session.
    pub(super) target: Option<Arc<Target>>,
    pub(super) key: SessionKey,
    pub(super) cid: u16,
    pub(super) answers: Answers,
}

struct Login<'a> {
    shared: &'a Shared,
    first: LoginRequest,
    stage: u8,
    parameters: Parameters,
    seen: Vec<String>,
    initiator: Option<String>,
    target_name: Option<String>,
    target: Option<Arc<Target>>,
    discovery: bool,
    declared: bool,
    text: Vec<u8>,
    reply: Vec<u8>,
}

/// A login status other than success.
type Status = u16;

/// Runs the login phase, at most for the time [`super::Limits::login`] gives.
pub(super) fn run(link: &mut Link, handle: &Arc<Handle>, shared: &Arc<Shared>) -> Result<LoggedIn, Ended> {
    let deadline = Instant::now() + shared.limits.login;
    let mut login: Option<Login<'_>> = None;
    let mut answers = Answers::new(0, shared.limits.tasks_max);
    for _ in 0..REQUESTS_MAX {
        let (request, data) = receive(link, handle, deadline)?;
        let Request::Login(request) = request else {
            let first = login.as_ref().map(|login| login.first);
            refuse(&mut answers, first.as_ref(), login_status::INVALID_DURING_LOGIN);
            flush(link, handle, &mut answers, deadline)?;
            return Err(Ended::Fault("not a login request during login".to_owned()));
        };
        let login = login.get_or_insert_with(|| {
            answers.exp_cmd_sn.0 = request.cmd_sn;
            answers.stat_sn.0 = request.exp_stat_sn;
            Login::new(shared, request)
        });
        let step = login.step(&request, &data).and_then(|to_full_feature| match to_full_feature {
            true => login.establish(handle).map(Some),
            false => Ok(None),
        });
        match step {
            Err(status) => {
                refuse(&mut answers, Some(&request), status);
                flush(link, handle, &mut answers, deadline)?;
                return Err(Ended::Fault(format!("login refused with status {status:#06x}")));
            }
            Ok(key) => {
                let tsih = key.as_ref().map_or(login.first.tsih, |key| key.tsih);
                let answered = !request.continues;
                let response = Response::Login {
                    transit: answered && request.transit,
                    continues: false,
                    current_stage: request.current_stage,
                    next_stage: if answered && request.transit { request.next_stage } else { 0 },
                    isid: request.isid,
                    tsih,
                    itt: request.itt,
                    status: login_status::SUCCESS,
                };
                let reply = std::mem::take(&mut login.reply);
                emit(&mut answers, &response, &reply);
                flush(link, handle, &mut answers, deadline)?;
                if let Some(key) = key {
                    return Ok(login.finish(key, answers));
                }
            }
        }
    }
    Err(Ended::Fault("too many login requests".to_owned()))
}

/// Login responses carry the active version; its value is zero, as the header is made.
fn emit(answers: &mut Answers, response: &Response, data: &[u8]) {
    answers.pdu(response, data, true);
}

fn refuse(answers: &mut Answers, request: Option<&LoginRequest>, status: Status) {
    let response = Response::Login {
        transit: false,
        continues: false,
        current_stage: request.map_or(0, |r| r.current_stage),
        next_stage: 0,
        isid: request.map_or([0; 6], |r| r.isid),
        tsih: request.map_or(0, |r| r.tsih),
        itt: request.map_or(0, |r| r.itt),
        status,
    };
    answers.pdu(&response, &[], false);
}

/// Sends everything, or fails at the deadline.
fn flush(link: &mut Link, handle: &Handle, answers: &mut Answers, deadline: Instant) -> Result<(), Ended> {
    loop {
        link.send(answers)?;
        if answers.out.len() == 0 {
            return Ok(());
        }
        wait(link, handle, false, deadline)?;
    }
}

fn wait(link: &Link, handle: &Handle, read: bool, deadline: Instant) -> Result<(), Ended> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(Ended::Fault("login took too long".to_owned()));
    }
    link.wait(handle, read, !read, left);
    let mut events = Vec::new();
    handle.outbox.take(&mut events);
    let ends = |event: &Event| matches!(event, Event::Close | Event::Stop(_));
    if events.iter().any(ends) {
        return Err(Ended::Done);
    }
    Ok(())
}

/// The next PDU and its data.
fn receive(link: &mut Link, handle: &Handle, deadline: Instant) -> Result<(Request, Vec<u8>), Ended> {
    loop {
        let need = match link.next_frame(Digests::default(), LOGIN_RECV_BYTES)? {
            Ok(frame) => {
                let pdu = link.received.unread();
                let data = pdu[frame.data()].to_vec();
                let request = pdu
                    .first_chunk::<BHS_LEN>()
                    .ok_or(Ended::Peer)
                    .and_then(|bhs| Request::parse(bhs).map_err(|error| Ended::Fault(error.to_string())))?;
                link.received.consume(frame.total_len);
                return Ok((request, data));
            }
            Err(need) => need,
        };
        match link.received.fill(&link.socket, need) {
            Progress::Some(_) => {}
            Progress::Blocked => wait(link, handle, true, deadline)?,
            Progress::Ended => return Err(Ended::Peer),
        }
    }
}

impl<'a> Login<'a> {
    fn new(shared: &'a Shared, first: LoginRequest) -> Self {
        Login {
            shared,
            first,
            stage: first.current_stage,
            parameters: Parameters::default(),
            seen: Vec::new(),
            initiator: None,
            target_name: None,
            target: None,
            discovery: false,
            declared: false,
            text: Vec::new(),
            reply: Vec::new(),
        }
    }

    /// Takes one request. True: it asks for the full feature phase, and may have it.
    fn step(&mut self, request: &LoginRequest, data: &[u8]) -> Result<bool, Status> {
        if request.version_min > 0 {
            return Err(login_status::UNSUPPORTED_VERSION);
        }
        let same = request.isid == self.first.isid
            && request.cid == self.first.cid
            && request.tsih == self.first.tsih
            && request.itt == self.first.itt;
        if !same || request.current_stage != self.stage || self.stage == FULL_FEATURE {
            return Err(login_status::INITIATOR_ERROR);
        }
        if self.text.len() + data.len() > TEXT_MAX_BYTES {
            return Err(login_status::INITIATOR_ERROR);
        }
        self.text.extend_from_slice(data);
        if request.continues {
            return Ok(false);
        }
        let text = std::mem::take(&mut self.text);
        for pair in text::pairs(&text) {
            let (key, value) = pair.map_err(|_| login_status::INITIATOR_ERROR)?;
            self.key(key, value)?;
        }
        if self.seen.len() > text::PAIRS_MAX {
            return Err(login_status::INITIATOR_ERROR);
        }
        if !self.declared {
            self.identify()?;
        }
        if !request.transit {
            return Ok(false);
        }
        self.stage = request.next_stage;
        Ok(request.next_stage == FULL_FEATURE)
    }

    fn key(&mut self, key: &str, value: &str) -> Result<(), Status> {
        // Negotiating a key twice is a fault (RFC 7143 6.3).
        if self.seen.iter().any(|seen| seen == key) {
            return Err(login_status::INITIATOR_ERROR);
        }
        self.seen.push(key.to_owned());
        match key {
            "InitiatorName" if !value.is_empty() && value.len() <= 223 => {
                self.initiator = Some(value.to_owned());
                return Ok(());
            }
            "TargetName" if !value.is_empty() && value.len() <= 223 => {
                self.target_name = Some(value.to_owned());
                return Ok(());
            }
            "InitiatorName" | "TargetName" => return Err(login_status::INITIATOR_ERROR),
            "SessionType" => {
                self.discovery = match value {
                    "Discovery" => true,
                    "Normal" => false,
                    _ => return Err(login_status::SESSION_TYPE),
                };
                return Ok(());
            }
            _ => {}
        }
        let answer = if self.stage == SECURITY && key == "AuthMethod" {
            self.security_key(value)?
        } else {
            self.parameters.offer(key, value, &WISHES)
        };
        match answer {
            Answer::Silence => {}
            Answer::Value(value) => text::push(&mut self.reply, key, &value),
            Answer::Reject => text::push(&mut self.reply, key, "Reject"),
            Answer::NotUnderstood => text::push(&mut self.reply, key, "NotUnderstood"),
        }
        if self.stage == OPERATIONAL && key == "MaxRecvDataSegmentLength" {
            let ours = WISHES.max_recv_bytes.to_string();
            text::push(&mut self.reply, key, &ours);
        }
        Ok(())
    }

    /// AuthMethod (RFC 7143 12.1): the only one there is must be on offer.
    fn security_key(&self, offered: &str) -> Result<Answer, Status> {
        if offered.split(',').take(16).any(|method| method == "None") {
            Ok(Answer::Value("None".to_owned()))
        } else {
            Err(login_status::AUTHENTICATION_FAILURE)
        }
    }

    /// Who comes for what: decided with the first request, as the names must be in it (RFC 7143 6.3).
    fn identify(&mut self) -> Result<(), Status> {
        self.declared = true;
        let Some(initiator) = &self.initiator else {
            return Err(login_status::MISSING_PARAMETER);
        };
        if !self.discovery {
            let Some(name) = &self.target_name else {
                return Err(login_status::MISSING_PARAMETER);
            };
            let target = self.shared.catalogue.find(name);
            let target = target.map_err(|_| login_status::NOT_FOUND)?;
            let access = Arc::clone(&self.shared.access.lock());
            if !access(initiator, name) {
                return Err(login_status::AUTHORIZATION_FAILURE);
            }
            self.target = Some(target);
            // The portal group is told with the first response (RFC 7143 13.9).
            text::push(&mut self.reply, "TargetPortalGroupTag", "1");
        }
        if self.first.tsih != 0 {
            // Joining a session: there is one connection in each (MaxConnections=1).
            return Err(if self.shared.registry.has_session(&self.session_key(self.first.tsih)) {
                login_status::TOO_MANY_CONNECTIONS
            } else {
                login_status::NO_SESSION
            });
        }
        Ok(())
    }

    fn session_key(&self, tsih: u16) -> SessionKey {
        SessionKey {
            initiator: self.initiator.as_deref().unwrap_or_default().into(),
            isid: self.first.isid,
            target: self.target.as_ref().map(|target| Arc::clone(&target.name)),
            tsih,
        }
    }

    /// Becomes the session of its name, ISID and target.
    fn establish(&mut self, handle: &Handle) -> Result<SessionKey, Status> {
        let key = self.session_key(self.shared.registry.next_tsih());
        if !self.shared.registry.establish(handle, key.clone(), REINSTATEMENT) {
            return Err(login_status::SERVICE_UNAVAILABLE);
        }
        Ok(key)
    }

    fn finish(&mut self, key: SessionKey, mut answers: Answers) -> LoggedIn {
        self.parameters.settle();
        let parameters = self.parameters;
        answers.digests = Digests { header: parameters.header_digest, data: parameters.data_digest };
        answers.max_send_bytes = parameters.max_send_bytes as usize;
        answers.max_burst_bytes = parameters.max_burst_bytes as usize;
        LoggedIn { parameters, target: self.target.take(), key, cid: self.first.cid, answers }
    }
}
