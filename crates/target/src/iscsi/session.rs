//! The full feature phase: the loop that receives, parses, executes and sends, and the rules around it.

use super::answers::Answers;
use super::buffers::Progress;
use super::catalogue::Target;
use super::commands::Batch;
use super::connection::{Ended, Link, Ready};
use super::forward::Forwarding;
use super::jobs::set_up;
use super::login::{LoggedIn, MAX_RECV_BYTES};
use super::manage::Texts;
use super::outbox::Event;
use super::reads::Stream;
use super::registry::Handle;
use super::tasks::{Managing, LOOK_EVERY};
use super::transfers::Transfers;
use super::Shared;
use crate::scsi::{Attention, InitiatorPort, LogicalUnit, Nexus};
use playhead_wire::iscsi::bhs::BHS_LEN;
use playhead_wire::iscsi::negotiate::{Parameters, SessionType};
use playhead_wire::iscsi::response::{reject, Response};
use playhead_wire::iscsi::{digest, lun_number, Frame, Request, SerialNumber, RESERVED_TAG};
use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Answers beyond this many bytes have to be sent before more is done.
pub(super) const OUT_HIGH_BYTES: usize = 192 << 10;
/// Quiet time after which buffers are given back.
const RELEASE_AFTER: Duration = Duration::from_secs(1);
/// The longest a PDU may take from its first byte to its last, as a multiple of the stall limit.
const SLOW_PDU_FACTOR: u32 = 2;

/// A unit as this session sees it.
#[derive(Clone)]
pub(super) struct View {
    pub(super) number: u16,
    pub(super) unit: Arc<LogicalUnit>,
    pub(super) nexus: Arc<Nexus>,
}

/// One session; it has one connection.
pub(super) struct Session {
    pub(super) link: Link,
    pub(super) handle: Arc<Handle>,
    pub(super) shared: Arc<Shared>,
    pub(super) parameters: Parameters,
    pub(super) target: Option<Arc<Target>>,
    pub(super) port: InitiatorPort,
    pub(super) cid: u16,
    pub(super) answers: Answers,
    pub(super) views: Vec<View>,
    /// Of the target and of the masking, when `views` was made.
    views_generation: (u64, u64),
    pub(super) batch: Batch,
    pub(super) transfers: Transfers,
    /// Commands that end when a flush does, by the flush's number.
    pub(super) flushing: HashMap<u64, super::commands::Flushing>,
    pub(super) next_flush: u64,
    /// Commands that end when a job does, by the job's number.
    pub(super) working: HashMap<u64, super::jobs::Working>,
    pub(super) next_job: u64,
    /// Task management whose answer waits.
    pub(super) managing: Vec<Managing>,
    /// Commands that arrays execute.
    pub(super) forwarding: Forwarding,
    pub(super) stream: Option<Stream>,
    pub(super) texts: Texts,
    pub(super) data_in: Vec<u8>,
    pub(super) scratch: Vec<u8>,
    last_received: Instant,
    ping_sent: Option<Instant>,
    /// Set by a logout or a cold reset: end when everything is sent.
    pub(super) closing: bool,
    stop_at: Option<Instant>,
    /// Its nexuses have ended; it has yet to say so.
    left: bool,
    events: Vec<Event>,
}

/// What reaching a time limit means.
#[derive(Debug, Clone, Copy)]
enum Due {
    /// Ask for a sign of life.
    Ping,
    /// See whether task management can be answered.
    Look,
    /// End, as agreed.
    Done,
    /// End for this reason.
    Fault(&'static str),
}

/// What to do with a PDU's place in the command order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// It is its turn.
    Take,
    /// Outside the window: ignored without a word (RFC 7143 4.2.2.1).
    Ignore,
}

impl Session {
    pub(super) fn new(link: Link, handle: Arc<Handle>, shared: Arc<Shared>, logged_in: LoggedIn) -> Session {
        let key = logged_in.key;
        let mut session = Session {
            link,
            handle,
            shared,
            parameters: logged_in.parameters,
            target: logged_in.target,
            port: InitiatorPort { name: key.initiator, isid: key.isid },
            cid: key.cid,
            answers: logged_in.answers,
            views: Vec::new(),
            views_generation: (u64::MAX, u64::MAX),
            batch: Batch::default(),
            transfers: Transfers::default(),
            flushing: HashMap::new(),
            next_flush: 0,
            working: HashMap::new(),
            next_job: 0,
            managing: Vec::new(),
            forwarding: Forwarding::default(),
            stream: None,
            texts: Texts::default(),
            data_in: Vec::new(),
            scratch: Vec::new(),
            last_received: Instant::now(),
            ping_sent: None,
            closing: false,
            stop_at: None,
            left: false,
            events: Vec::new(),
        };
        session.refresh_views();
        session
    }

    /// What the session is for.
    pub(super) fn session_type(&self) -> SessionType {
        if self.target.is_some() {
            SessionType::Normal
        } else {
            SessionType::Discovery
        }
    }

    /// Runs until the connection ends, and says why.
    pub(super) fn run(mut self) -> Ended {
        let ended = loop {
            if let Err(ended) = self.round() {
                break ended;
            }
        };
        // What is worded may still matter: a reject says why the connection ends.
        let _ = self.link.send(&mut self.answers);
        ended
    }

    /// Receives what is there, executes it, sends the answers.
    fn round(&mut self) -> Result<(), Ended> {
        self.handle_events()?;
        self.pump_forwarding();
        self.settle_tasks();
        if self.stream.is_some() {
            self.pump_stream()?;
        }
        let mut need = BHS_LEN;
        let mut blocked = false;
        // Bounded: every turn consumes received bytes, and receiving happens between rounds.
        while self.stream.is_none() && !self.closing {
            if self.answers.out.len() > OUT_HIGH_BYTES {
                self.submit_batch();
                self.link.send(&mut self.answers)?;
                if self.answers.out.len() > OUT_HIGH_BYTES {
                    blocked = true;
                    break;
                }
            }
            match self.link.next_frame(self.answers.digests, MAX_RECV_BYTES)? {
                Ok(frame) => self.take_pdu(&frame)?,
                Err(bytes) => {
                    need = bytes;
                    self.check_pace()?;
                    break;
                }
            }
        }
        self.submit_batch();
        self.send_forwarded();
        self.link.send(&mut self.answers)?;
        if self.closing && self.answers.out.len() == 0 {
            return Err(Ended::Done);
        }
        let read = self.stream.is_none() && !blocked && !self.closing;
        self.wait(read, need)
    }

    fn wait(&mut self, read: bool, need: usize) -> Result<(), Ended> {
        let write = self.answers.out.len() > 0;
        if self.stream.is_some() && !write {
            return Ok(());
        }
        let (at, due) = self.due();
        let (mut ready, mut others) = self.wait_until(read, write, at.min(Instant::now() + RELEASE_AFTER));
        if !ready.is_any() && !others && Instant::now() < at {
            self.forwarding.links.release();
            self.link.received.release();
            self.answers.out.release();
            self.transfers.release();
            if self.events_wait() {
                return Ok(());
            }
            (ready, others) = self.wait_until(read, write, at);
        }
        // A limit counts only when waiting brought nothing: time spent in the LUN is not the peer's fault.
        if !ready.is_any() && !others && Instant::now() >= at {
            return self.fall_due(due);
        }
        if ready.readable {
            match self.link.received.fill(&self.link.socket, need) {
                Progress::Some(_) => {
                    self.last_received = Instant::now();
                    self.ping_sent = None;
                }
                Progress::Blocked => {}
                Progress::Ended => return Err(Ended::Peer),
            }
        }
        Ok(())
    }

    /// Waits for the host's socket, the outbox or an array. The second value: an array is ready.
    fn wait_until(&mut self, read: bool, write: bool, at: Instant) -> (Ready, bool) {
        let timeout = at.saturating_duration_since(Instant::now());
        if self.forwarding.links.is_empty() {
            return (self.link.wait(&self.handle, read, write, timeout), false);
        }
        let interest = self.forwarding.links.interest();
        let others = interest.iter().map(|(_, other)| *other);
        let (ready, of_others) = self.link.wait_with(&self.handle, read, write, timeout, others);
        let of_links: Vec<(usize, Ready)> = interest.iter().map(|(at, _)| *at).zip(of_others).collect();
        for (at, ready) in &of_links {
            self.forwarding.links.set_ready(*at, ready.readable, ready.writable);
        }
        (ready, of_links.iter().any(|(_, ready)| ready.is_any()))
    }

    fn events_wait(&mut self) -> bool {
        self.handle.outbox.take(&mut self.events);
        !self.events.is_empty()
    }

    /// The next time limit, and what it means to reach it.
    fn due(&self) -> (Instant, Due) {
        let limits = &self.shared.limits;
        let mut next = match self.ping_sent {
            Some(sent) => (sent + limits.ping_answer, Due::Fault("it gives no sign of life")),
            None if self.target.is_none() => {
                (self.last_received + limits.idle, Due::Fault("an idle discovery session"))
            }
            None => (self.last_received + limits.idle, Due::Ping),
        };
        let others = [
            (self.stop_at, Due::Done),
            (self.link.sending_since.map(|since| since + limits.stall), Due::Fault("it takes no answers")),
            (self.forwarding.links.deadline(), Due::Look),
            ((!self.managing.is_empty()).then(|| Instant::now() + LOOK_EVERY), Due::Look),
            (
                self.link.partial_since.map(|_| self.last_received + limits.stall),
                Due::Fault("a PDU does not arrive whole"),
            ),
        ];
        for (at, due) in others {
            match at {
                Some(at) if at < next.0 => next = (at, due),
                _ => {}
            }
        }
        next
    }

    fn fall_due(&mut self, due: Due) -> Result<(), Ended> {
        match due {
            Due::Fault(fault) => Err(Ended::Fault(fault.to_owned())),
            Due::Done => Err(Ended::Done),
            Due::Look => Ok(()),
            Due::Ping => {
                self.ping();
                self.ping_sent = Some(Instant::now());
                self.link.send(&mut self.answers)
            }
        }
    }

    /// Ends a peer that sends a PDU byte by byte: each byte is progress, the whole is not.
    fn check_pace(&self) -> Result<(), Ended> {
        let limit = self.shared.limits.stall * SLOW_PDU_FACTOR;
        match self.link.partial_since {
            Some(since) if since.elapsed() > limit => Err(Ended::Fault("a PDU takes too long".to_owned())),
            _ => Ok(()),
        }
    }

    fn handle_events(&mut self) -> Result<(), Ended> {
        let mut events = std::mem::take(&mut self.events);
        self.handle.outbox.take(&mut events);
        for event in events.drain(..) {
            match event {
                Event::Flushed(number, result) => self.flushed(number, result),
                Event::Worked(number, end) => self.worked(number, end),
                Event::UnitsChanged => {}
                Event::Forward(number) => self.begin_forwarded(number),
                Event::Settled(number, failed) => self.settled(number, failed),
                Event::Fence(fence) => self.keep_fence(&fence),
                Event::Close => return Err(Ended::Done),
                Event::Removed => {
                    self.announce_end();
                    self.closing = true;
                }
                Event::Stop(at) => {
                    if at <= Instant::now() || self.target.is_none() {
                        return Err(Ended::Done);
                    }
                    if self.stop_at.is_none() {
                        self.ask_for_logout(at);
                    }
                    self.stop_at = Some(at);
                }
            }
        }
        self.events = events;
        self.refresh_views();
        Ok(())
    }

    /// Whether the target's units or the masking changed since `views` was made.
    fn views_are_stale(&self, target: &Target) -> bool {
        let now = (target.generation(), self.shared.masking_generation.load(Ordering::Acquire));
        now != self.views_generation
    }

    /// Follows the target's list of units, and what the masking shows of it.
    pub(super) fn refresh_views(&mut self) {
        let Some(target) = self.target.as_ref().filter(|_| !self.left) else {
            return;
        };
        if !self.views_are_stale(target) {
            return;
        }
        // The generation is read before the table: if that changes in between, the next look finds these views stale.
        let masking_generation = self.shared.masking_generation.load(Ordering::Acquire);
        let masking = self.shared.masking();
        let (generation, units) = target.units();
        self.views_generation = (generation, masking_generation);
        let mut known: HashMap<*const LogicalUnit, View> =
            self.views.drain(..).map(|view| (Arc::as_ptr(&view.unit), view)).collect();
        let mut kept = Vec::new();
        let mut changed = false;
        let policy = self.shared.policy();
        for (number, (seen, unit)) in masking.view(&target.name, units, &self.port.name) {
            let nexus = match known.remove(&Arc::as_ptr(&unit)) {
                Some(view) => {
                    changed |= view.number != number;
                    view.nexus.set_read_only(seen.read_only);
                    kept.push(Arc::clone(&view.nexus));
                    view.nexus
                }
                None => {
                    changed = true;
                    let nexus = unit.attach(self.port.clone(), &policy);
                    set_up(&nexus, seen);
                    nexus
                }
            };
            self.views.push(View { number, unit, nexus });
        }
        // Whoever changes the policy puts it in force before telling all units: either it has met these nexuses, or it is seen here.
        let now = self.shared.policy();
        if !Arc::ptr_eq(&policy, &now) {
            self.views.iter().for_each(|view| view.unit.set_policy(&now));
        }
        changed |= !known.is_empty();
        if changed {
            // A new nexus has its power on to tell, which says as much.
            kept.iter().for_each(|nexus| nexus.attend(Attention::ReportedLunsChanged));
        }
        for gone in known.into_values() {
            gone.unit.detach(&gone.nexus);
        }
    }

    /// Begins all nexuses anew (I_T NEXUS RESET, SAM-5 7.6): what RESERVE holds is released, and the initiator is told.
    pub(super) fn lose_nexuses(&mut self) {
        for view in self.views.drain(..) {
            view.unit.detach(&view.nexus);
        }
        self.views_generation = (u64::MAX, u64::MAX);
        self.refresh_views();
    }

    /// Ends all nexuses for good, once nothing of them changes a unit any more: what RESERVE holds is released. Whoever is told that the
    /// session has ended is told afterwards, for he may act on it in another session at once.
    pub(super) fn leave_units(&mut self) {
        self.left = true;
        self.abandon_jobs();
        self.abandon_forwarded();
        for view in self.views.drain(..) {
            view.unit.detach(&view.nexus);
        }
    }

    /// Has `views` be what the initiator is shown now.
    pub(super) fn follow_views(&mut self) {
        if let Some(target) = &self.target {
            if self.views_are_stale(target) {
                // Writes of the old list go first.
                self.submit_batch();
                self.refresh_views();
            }
        }
    }

    /// Where in `views` the unit is that a command names.
    pub(super) fn view(&mut self, lun: [u8; 8]) -> Option<usize> {
        self.follow_views();
        let number = lun_number(lun)?;
        self.views.binary_search_by_key(&number, |view| view.number).ok()
    }

    fn take_pdu(&mut self, frame: &Frame) -> Result<(), Ended> {
        let position = self.link.received.position();
        let pdu = self.link.received.at(position, frame.total_len);
        let damaged = self.answers.digests.data && frame.data_len > 0 && !digest::data_matches(pdu, frame);
        let mut bhs = [0; BHS_LEN];
        bhs.copy_from_slice(&pdu[..BHS_LEN]);
        self.link.received.consume(frame.total_len);
        if damaged {
            // Level 0 recovers by starting the session again (RFC 7143 7.1).
            self.submit_batch();
            self.reject(reject::DATA_DIGEST, &bhs);
            return Err(Ended::Fault("data digest error".to_owned()));
        }
        let request = match Request::parse(&bhs) {
            Ok(request) => request,
            Err(error) => {
                self.submit_batch();
                self.reject(reject::NOT_SUPPORTED, &bhs);
                return Err(Ended::Fault(error.to_string()));
            }
        };
        let data_at = position + frame.data_start;
        match request {
            Request::ScsiCommand(command) => self.scsi_command(&command, data_at, frame.data_len, &bhs),
            Request::DataOut(data_out) => {
                self.data_out(&data_out, data_at, frame.data_len);
                Ok(())
            }
            Request::NopOut(nop) => self.nop_out(&nop, data_at, frame.data_len, &bhs),
            Request::TaskManagement(request) => self.task_management(&request, &bhs),
            Request::Text(request) => self.text(&request, data_at, frame.data_len, &bhs),
            Request::Logout(request) => self.logout(&request, &bhs),
            Request::Snack(_) => {
                self.reject(reject::SNACK, &bhs);
                Ok(())
            }
            Request::Login(_) => {
                self.submit_batch();
                self.reject(reject::PROTOCOL, &bhs);
                Err(Ended::Fault("a login request after login".to_owned()))
            }
        }
    }

    /// Checks a CmdSN and moves on (RFC 7143 4.2.2.1). A gap within the window cannot close on a session's only
    /// connection, so it ends the session.
    pub(super) fn order(
        &mut self,
        immediate: bool,
        cmd_sn: u32,
        bhs: &[u8; BHS_LEN],
    ) -> Result<Order, Ended> {
        if immediate {
            return Ok(Order::Take);
        }
        let cmd_sn = SerialNumber(cmd_sn);
        let expected = self.answers.exp_cmd_sn;
        if cmd_sn == expected && self.answers.under_way < self.answers.window {
            self.answers.exp_cmd_sn = expected.plus(1);
            return Ok(Order::Take);
        }
        if !cmd_sn.is_within(expected, self.answers.max_cmd_sn()) {
            return Ok(Order::Ignore);
        }
        self.submit_batch();
        self.reject(reject::PROTOCOL, bhs);
        Err(Ended::Fault(format!("CmdSN {} came where {} was due", cmd_sn.0, expected.0)))
    }

    /// Refuses a PDU (RFC 7143 11.17).
    pub(super) fn reject(&mut self, reason: u8, bhs: &[u8; BHS_LEN]) {
        self.answers.pdu(&Response::Reject { reason }, bhs, true);
    }

    fn ping(&mut self) {
        let ping = Response::NopIn { lun: [0; 8], itt: RESERVED_TAG, ttt: self.transfers.next_tag() };
        // A ping uses up no StatSN (RFC 7143 11.19).
        self.answers.pdu(&ping, &[], false);
    }
}

impl Drop for Session {
    /// However it ends, it leaves nothing behind.
    fn drop(&mut self) {
        self.leave_units();
        self.transfers.clear(&self.shared.held_bytes);
    }
}
