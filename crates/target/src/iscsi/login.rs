//! The login phase (RFC 7143 6.3): stages, names, authentication, and the negotiation of parameters.
//!
//! An initiator that must prove itself learns nothing of targets before it has: whether there is one of its name, whether it may use
//! it, where it has moved.

use super::answers::Answers;
use super::buffers::Progress;
use super::catalogue::Target;
use super::chap::{Authentication, Failure, Keys};
use super::connection::{Ended, Link};
use super::outbox::Event;
use super::redirect::Redirect;
use super::registry::{Handle, SessionKey};
use super::Shared;
use crate::scsi::PORTAL_GROUP;
use playhead_wire::iscsi::bhs::{Digests, BHS_LEN};
use playhead_wire::iscsi::negotiate::{Parameters, SessionType, Wishes};
use playhead_wire::iscsi::request::{LoginRequest, Request};
use playhead_wire::iscsi::response::{login_status, Response};
use playhead_wire::iscsi::{text, Error};
use std::collections::HashSet;
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
/// Longest data segment before anything is negotiated, either way (RFC 7143 13.12).
const LOGIN_SEGMENT_BYTES: usize = 8192;
/// Most text of one login step.
const TEXT_MAX_BYTES: usize = 32 << 10;
/// Longest value of a key that is not of authentication (RFC 7143 6.1).
const VALUE_MAX_BYTES: usize = 255;
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
    pub(super) answers: Answers,
}

/// Why a login ends otherwise.
#[derive(Debug, Clone)]
enum Refusal {
    /// With this status (RFC 7143 11.13.5).
    Status(u16),
    /// For lack of proof.
    Unproved(Failure),
    /// The target is elsewhere.
    Moved(Redirect),
}

impl From<u16> for Refusal {
    fn from(status: u16) -> Refusal {
        Refusal::Status(status)
    }
}

/// The answer to one request.
struct Step {
    text: Vec<u8>,
    /// The text goes on in the next response.
    continues: bool,
    /// The next stage is entered.
    transit: bool,
}

/// Whom an initiator asked for, and what becomes of that once it has proved itself.
struct Identified {
    authentication: Authentication,
    /// `None`: a discovery session.
    found: Result<Option<Arc<Target>>, Refusal>,
}

struct Login<'a> {
    shared: &'a Shared,
    first: LoginRequest,
    stage: u8,
    parameters: Parameters,
    seen: HashSet<String>,
    initiator: Option<String>,
    target_name: Option<String>,
    session: SessionType,
    identified: Option<Identified>,
    /// Our own MaxRecvDataSegmentLength is told.
    declared: bool,
    text: Vec<u8>,
    /// What is not answered yet.
    reply: Vec<u8>,
}

/// Runs the login phase, at most for the time [`super::Limits::login`] gives.
pub(super) fn run(link: &mut Link, handle: &Arc<Handle>, shared: &Arc<Shared>) -> Result<LoggedIn, Ended> {
    let deadline = Instant::now() + shared.limits.login;
    let mut login: Option<Login<'_>> = None;
    let mut answers = Answers::new(0, shared.limits.tasks_max);
    for _ in 0..REQUESTS_MAX {
        let (request, data) = receive(link, handle, deadline)?;
        let request = match request {
            Ok(Request::Login(request)) => request,
            other => {
                let status = match other {
                    Err(Error::Field(_)) => login_status::INITIATOR_ERROR,
                    _ => login_status::INVALID_DURING_LOGIN,
                };
                let first = login.as_ref().map(|login| login.first);
                refuse(&mut answers, first.as_ref(), status, &[]);
                flush(link, handle, &mut answers, deadline)?;
                return Err(Ended::Fault("not a proper login request during login".to_owned()));
            }
        };
        let login = login.get_or_insert_with(|| {
            answers.exp_cmd_sn.0 = request.cmd_sn;
            answers.stat_sn.0 = request.exp_stat_sn;
            Login::new(shared, request)
        });
        let step = login.step(&request, &data).and_then(|step| {
            let done = step.transit && request.next_stage == FULL_FEATURE;
            Ok((step, if done { Some(login.establish(handle)?) } else { None }))
        });
        match step {
            Err(refusal) => {
                return Err(login.refused(link, handle, &mut answers, &request, refusal, deadline))
            }
            Ok((step, key)) => {
                let response = Response::Login {
                    transit: step.transit,
                    continues: step.continues,
                    current_stage: request.current_stage,
                    next_stage: if step.transit { request.next_stage } else { 0 },
                    isid: request.isid,
                    tsih: key.as_ref().map_or(login.first.tsih, |key| key.tsih),
                    itt: request.itt,
                    status: login_status::SUCCESS,
                };
                answers.pdu(&response, &step.text, true);
                flush(link, handle, &mut answers, deadline)?;
                if let Some(key) = key {
                    return Ok(login.finish(key, answers));
                }
            }
        }
    }
    Err(Ended::Fault("too many login requests".to_owned()))
}

fn refuse(answers: &mut Answers, request: Option<&LoginRequest>, status: u16, data: &[u8]) {
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
    answers.pdu(&response, data, false);
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
    let ends = |event: &Event| matches!(event, Event::Close | Event::Removed | Event::Stop(_));
    if events.iter().any(ends) {
        return Err(Ended::Done);
    }
    Ok(())
}

/// The next PDU, if it can be one at all, and its data.
fn receive(
    link: &mut Link,
    handle: &Handle,
    deadline: Instant,
) -> Result<(Result<Request, Error>, Vec<u8>), Ended> {
    loop {
        let need = match link.next_frame(Digests::default(), LOGIN_SEGMENT_BYTES)? {
            Ok(frame) => {
                let pdu = link.received.unread();
                let data = pdu[frame.data()].to_vec();
                let bhs = pdu.first_chunk::<BHS_LEN>().ok_or(Ended::Peer)?;
                let request = Request::parse(bhs);
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
            seen: HashSet::new(),
            initiator: None,
            target_name: None,
            session: SessionType::Normal,
            identified: None,
            declared: false,
            text: Vec::new(),
            reply: Vec::new(),
        }
    }

    /// Tells the initiator that it is not let in, and the caller why.
    fn refused(
        &self,
        link: &mut Link,
        handle: &Handle,
        answers: &mut Answers,
        request: &LoginRequest,
        refusal: Refusal,
        deadline: Instant,
    ) -> Ended {
        let mut data = Vec::new();
        let initiator = self.initiator.clone().unwrap_or_default();
        let (status, ended) = match refusal {
            Refusal::Status(status) => {
                (status, Ended::Fault(format!("login refused with status {status:#06x}")))
            }
            Refusal::Unproved(why) => {
                self.shared.complaints.authentication_failed();
                (login_status::AUTHENTICATION_FAILURE, Ended::Unproved(initiator, why))
            }
            Refusal::Moved(redirect) => {
                text::push(&mut data, "TargetAddress", redirect.address());
                let moved = [login_status::MOVED_TEMPORARILY, login_status::MOVED_PERMANENTLY];
                (moved[usize::from(redirect.is_permanent())], Ended::Done)
            }
        };
        refuse(answers, Some(request), status, &data);
        match flush(link, handle, answers, deadline) {
            Ok(()) => ended,
            Err(other) => other,
        }
    }

    /// Takes one request.
    fn step(&mut self, request: &LoginRequest, data: &[u8]) -> Result<Step, Refusal> {
        if request.version_min > 0 {
            return Err(login_status::UNSUPPORTED_VERSION.into());
        }
        let same = request.isid == self.first.isid
            && request.cid == self.first.cid
            && request.tsih == self.first.tsih
            && request.itt == self.first.itt;
        if !same || request.current_stage != self.stage || self.stage == FULL_FEATURE {
            return Err(login_status::INITIATOR_ERROR.into());
        }
        if !self.reply.is_empty() {
            // The last answer goes on; there is nothing new to say meanwhile (RFC 7143 6.2).
            if !data.is_empty() || request.continues {
                return Err(login_status::INITIATOR_ERROR.into());
            }
            return self.answer(request);
        }
        if self.text.len() + data.len() > TEXT_MAX_BYTES {
            return Err(login_status::INITIATOR_ERROR.into());
        }
        self.text.extend_from_slice(data);
        if request.continues {
            return Ok(Step { text: Vec::new(), continues: false, transit: false });
        }
        let text = std::mem::take(&mut self.text);
        self.take_text(&text)?;
        self.answer(request)
    }

    /// As much of the answer as one response takes; with the last of it the stage may change.
    fn answer(&mut self, request: &LoginRequest) -> Result<Step, Refusal> {
        let rest = self.reply.split_off(self.reply.len().min(LOGIN_SEGMENT_BYTES));
        let text = std::mem::replace(&mut self.reply, rest);
        let continues = !self.reply.is_empty();
        let Some(identified) = &self.identified else {
            return Err(login_status::MISSING_PARAMETER.into());
        };
        let satisfied = identified.authentication.is_satisfied();
        if satisfied {
            if let Err(refusal) = &identified.found {
                return Err(refusal.clone());
            }
        }
        let transit = request.transit && !continues && satisfied;
        if transit {
            self.stage = request.next_stage;
        }
        Ok(Step { text, continues, transit })
    }

    fn take_text(&mut self, text: &[u8]) -> Result<(), Refusal> {
        let mut keys = Keys::default();
        let mut offers = Vec::new();
        for pair in text::pairs(text) {
            let (key, value) = pair.map_err(|_| login_status::INITIATOR_ERROR)?;
            // Negotiating a key twice is a fault (RFC 7143 6.3).
            if !self.seen.insert(key.to_owned()) || self.seen.len() > text::PAIRS_MAX {
                return Err(login_status::INITIATOR_ERROR.into());
            }
            if self.stage == SECURITY && keys.take(key, value) {
                continue;
            }
            if value.len() > VALUE_MAX_BYTES {
                return Err(login_status::INITIATOR_ERROR.into());
            }
            if !self.name(key, value)? {
                offers.push((key, value));
            }
        }
        if self.identified.is_none() {
            self.identified = Some(self.identify()?);
        }
        let Some(identified) = &mut self.identified else {
            return Err(login_status::TARGET_ERROR.into());
        };
        let authentication = &mut identified.authentication;
        if self.stage == SECURITY {
            if !authentication.is_satisfied() || !keys.is_empty() {
                authentication.step(&keys, &mut self.reply).map_err(Refusal::Unproved)?;
            }
        } else if !authentication.is_satisfied() {
            return Err(Refusal::Unproved("it goes past the security stage"));
        }
        // FirstBurstLength depends on MaxBurstLength, wherever that stands.
        offers.sort_by_key(|(key, _)| *key == "FirstBurstLength");
        for (key, value) in offers {
            let answer = match self.stage {
                SECURITY => Parameters::offer_early(key, value, &WISHES),
                _ => self.parameters.offer(key, value, &WISHES, self.session),
            };
            if let Some(value) = answer.text() {
                text::push(&mut self.reply, key, value);
            }
        }
        if self.stage == OPERATIONAL && !self.declared {
            self.declared = true;
            text::push(&mut self.reply, "MaxRecvDataSegmentLength", &WISHES.max_recv_bytes.to_string());
        }
        Ok(())
    }

    /// Takes a key that says who comes for what. False: it is another.
    fn name(&mut self, key: &str, value: &str) -> Result<bool, Refusal> {
        match key {
            "InitiatorName" if text::is_iscsi_name(value) => self.initiator = Some(value.to_owned()),
            "TargetName" if !value.is_empty() && value.len() <= 223 => {
                self.target_name = Some(value.to_owned())
            }
            "InitiatorName" | "TargetName" => return Err(login_status::INITIATOR_ERROR.into()),
            "SessionType" => {
                self.session = match value {
                    "Discovery" => SessionType::Discovery,
                    "Normal" => SessionType::Normal,
                    _ => return Err(login_status::SESSION_TYPE.into()),
                };
            }
            _ => return Ok(false),
        }
        // They are said with the first request (RFC 7143 6.3).
        match self.identified {
            Some(_) => Err(login_status::INITIATOR_ERROR.into()),
            None => Ok(true),
        }
    }

    /// Who comes for what: decided with the first request, as the names must be in it (RFC 7143 6.3).
    fn identify(&mut self) -> Result<Identified, Refusal> {
        let Some(initiator) = &self.initiator else {
            return Err(login_status::MISSING_PARAMETER.into());
        };
        let discovery = self.session == SessionType::Discovery;
        let demand = self.shared.credentials.read().demand(initiator, discovery);
        let found = match (&self.target_name, discovery) {
            (_, true) => Ok(None),
            (None, false) => return Err(login_status::MISSING_PARAMETER.into()),
            (Some(name), false) => {
                // The portal group is told with the first response (RFC 7143 13.9).
                text::push(&mut self.reply, "TargetPortalGroupTag", &PORTAL_GROUP.to_string());
                self.find(initiator, name).map(Some)
            }
        };
        let found = found.and_then(|target| self.join(target.as_deref()).map(|()| target));
        Ok(Identified { authentication: Authentication::new(demand), found })
    }

    fn find(&self, initiator: &str, name: &str) -> Result<Arc<Target>, Refusal> {
        let target = self.shared.catalogue.find(name).map_err(|_| login_status::NOT_FOUND);
        let redirect = self.shared.redirect(name);
        if target.is_err() && redirect.is_none() {
            return Err(login_status::NOT_FOUND.into());
        }
        if !self.shared.shows(name, initiator) {
            return Err(login_status::AUTHORIZATION_FAILURE.into());
        }
        match redirect {
            Some(redirect) => Err(Refusal::Moved(redirect)),
            None => Ok(target?),
        }
    }

    /// A login with a TSIH is for a session that exists: its one connection may be reinstated (RFC 7143 6.3.4), another not added
    /// (MaxConnections=1).
    fn join(&self, target: Option<&Target>) -> Result<(), Refusal> {
        if self.first.tsih == 0 {
            return Ok(());
        }
        match self.shared.registry.find(&self.session_key(target, self.first.tsih)) {
            None => Err(login_status::NO_SESSION.into()),
            Some(cid) if cid == self.first.cid => Ok(()),
            Some(_) => Err(login_status::TOO_MANY_CONNECTIONS.into()),
        }
    }

    fn session_key(&self, target: Option<&Target>, tsih: u16) -> SessionKey {
        SessionKey {
            initiator: self.initiator.as_deref().unwrap_or_default().into(),
            isid: self.first.isid,
            target: target.map(|target| Arc::clone(&target.name)),
            tsih,
            cid: self.first.cid,
        }
    }

    fn target(&self) -> Option<&Arc<Target>> {
        self.identified.as_ref().and_then(|identified| identified.found.as_ref().ok()?.as_ref())
    }

    /// Becomes the session of its name, ISID and target.
    fn establish(&mut self, handle: &Handle) -> Result<SessionKey, Refusal> {
        let key = self.session_key(self.target().map(Arc::as_ref), self.first.tsih);
        let established = self.shared.registry.establish(handle, key, REINSTATEMENT);
        established.ok_or(Refusal::Status(login_status::SERVICE_UNAVAILABLE))
    }

    fn finish(&mut self, key: SessionKey, mut answers: Answers) -> LoggedIn {
        self.parameters.settle();
        let parameters = self.parameters;
        answers.digests = Digests { header: parameters.header_digest, data: parameters.data_digest };
        answers.max_send_bytes = parameters.max_send_bytes as usize;
        answers.max_burst_bytes = parameters.max_burst_bytes as usize;
        LoggedIn { parameters, target: self.target().cloned(), key, answers }
    }
}
