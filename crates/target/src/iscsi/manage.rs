//! What in a session is neither a SCSI command nor task management: NOP, text, logout, asynchronous messages.

use super::connection::Ended;
use super::login::WISHES;
use super::portals;
use super::redirect::Redirect;
use super::session::{Order, Session};
use crate::scsi::PORTAL_GROUP;
use playhead_wire::iscsi::bhs::BHS_LEN;
use playhead_wire::iscsi::negotiate::{Answer, Parameters};
use playhead_wire::iscsi::request::{LogoutRequest, NopOut, TextRequest};
use playhead_wire::iscsi::response::{reject, Response};
use playhead_wire::iscsi::{text, RESERVED_TAG};
use std::time::Instant;

/// Most text of one request, in bytes.
const TEXT_MAX_BYTES: usize = 32 << 10;

/// A text negotiation under way.
#[derive(Debug, Default)]
pub(super) struct Texts {
    /// What the initiator must quote to go on.
    ttt: Option<u32>,
    asked: Vec<u8>,
    answer: Vec<u8>,
    /// How much of the answer is sent.
    sent: usize,
}

impl Session {
    pub(super) fn nop_out(
        &mut self,
        request: &NopOut,
        data_at: usize,
        data_len: usize,
        bhs: &[u8; BHS_LEN],
    ) -> Result<(), Ended> {
        if self.order(request.immediate, request.cmd_sn, bhs)? == Order::Ignore {
            return Ok(());
        }
        if request.itt == RESERVED_TAG {
            return Ok(()); // the answer to a ping
        }
        let len = data_len.min(self.answers.max_send_bytes);
        let echo = Response::NopIn { lun: [0; 8], itt: request.itt, ttt: RESERVED_TAG };
        let data = self.link.received.at(data_at, len);
        self.answers.pdu(&echo, data, true);
        Ok(())
    }

    pub(super) fn logout(&mut self, request: &LogoutRequest, bhs: &[u8; BHS_LEN]) -> Result<(), Ended> {
        if self.order(request.immediate, request.cmd_sn, bhs)? == Order::Ignore {
            return Ok(());
        }
        self.submit_batch();
        let response = match request.reason {
            0 => 0,
            1 if request.cid == self.cid => 0,
            1 => 1,
            2 => 2,
            _ => {
                self.reject(reject::INVALID_FIELD, bhs);
                return Ok(());
            }
        };
        if response == 0 {
            self.leave_units();
        }
        let answer = Response::Logout {
            response,
            itt: request.itt,
            time_to_wait_s: self.parameters.time_to_wait_s as u16,
            time_to_retain_s: 0,
        };
        self.answers.pdu(&answer, &[], true);
        self.closing = response == 0;
        Ok(())
    }

    /// Asks the initiator to leave by `at` (RFC 7143 11.9.1, event 1).
    pub(super) fn ask_for_logout(&mut self, at: Instant) {
        let seconds = at.saturating_duration_since(Instant::now()).as_secs();
        let message = Response::Async {
            event: 1,
            parameters: [0, 0, u16::try_from(seconds).unwrap_or(u16::MAX).max(1)],
        };
        self.answers.pdu(&message, &[], true);
    }

    /// Says that the target is going, and every connection with it (RFC 7143 11.9.1, event 3): it is not to be waited for.
    pub(super) fn announce_end(&mut self) {
        let message = Response::Async { event: 3, parameters: [0, self.parameters.time_to_wait_s as u16, 0] };
        self.answers.pdu(&message, &[], true);
    }

    pub(super) fn text(
        &mut self,
        request: &TextRequest,
        data_at: usize,
        data_len: usize,
        bhs: &[u8; BHS_LEN],
    ) -> Result<(), Ended> {
        if self.order(request.immediate, request.cmd_sn, bhs)? == Order::Ignore {
            return Ok(());
        }
        if request.ttt == RESERVED_TAG {
            self.texts = Texts::default();
        } else if self.texts.ttt != Some(request.ttt) {
            self.reject(reject::PROTOCOL, bhs);
            return Ok(());
        }
        if self.texts.asked.len() + data_len > TEXT_MAX_BYTES {
            self.texts = Texts::default();
            self.reject(reject::OUT_OF_RESOURCES, bhs);
            return Ok(());
        }
        let data = self.link.received.at(data_at, data_len);
        self.texts.asked.extend_from_slice(data);
        if !request.continues && !self.texts.asked.is_empty() {
            let asked = std::mem::take(&mut self.texts.asked);
            let Some(answer) = self.answer_text(&asked) else {
                self.texts = Texts::default();
                self.reject(reject::PROTOCOL, bhs);
                return Ok(());
            };
            self.texts.answer = answer;
            self.texts.sent = 0;
        }
        let left = self.texts.answer.len() - self.texts.sent;
        let len = left.min(self.answers.max_send_bytes);
        let continues = len < left;
        let is_final = request.is_final && !request.continues && !continues;
        let ttt = if is_final { RESERVED_TAG } else { self.transfers.next_tag() };
        let response = Response::Text { is_final, continues, itt: request.itt, ttt };
        let part = &self.texts.answer[self.texts.sent..self.texts.sent + len];
        self.answers.pdu(&response, part, true);
        self.texts.sent += len;
        if is_final {
            self.texts = Texts::default();
        } else {
            self.texts.ttt = Some(ttt);
        }
        Ok(())
    }

    /// Answers the keys of a text request. `None`: the text is not pairs, asks for targets in a way there is not, or has no key
    /// that is known.
    fn answer_text(&mut self, asked: &[u8]) -> Option<Vec<u8>> {
        let mut answer = Vec::new();
        let mut any_known = false;
        let mut seen: Vec<&str> = Vec::new();
        for pair in text::pairs(asked) {
            let (key, value) = pair.ok()?;
            // Once each (RFC 7143 6.2): a small text must not be able to ask for a large list many times.
            if seen.contains(&key) {
                return None;
            }
            seen.push(key);
            let was_known = std::mem::replace(&mut any_known, true);
            match key {
                "SendTargets" => {
                    let names = self.send_targets(value)?;
                    self.push_targets(&names, &mut answer);
                }
                "MaxRecvDataSegmentLength" => {
                    // The one parameter that may be declared anew (RFC 7143 13.12).
                    match self.parameters.offer(key, value, &WISHES, self.session_type()) {
                        Answer::Silence => {
                            self.answers.max_send_bytes = self.parameters.max_send_bytes as usize;
                            text::push(&mut answer, key, &WISHES.max_recv_bytes.to_string());
                        }
                        _ => text::push(&mut answer, key, "Reject"),
                    }
                }
                "InitiatorName" | "TargetName" | "SessionType" => text::push(&mut answer, key, "Reject"),
                // The rest is for the login alone, or for nobody.
                _ => match Parameters::offer_early(key, value, &WISHES) {
                    Answer::NotUnderstood => {
                        any_known = was_known;
                        text::push(&mut answer, key, "NotUnderstood");
                    }
                    other => {
                        if let Some(value) = other.text() {
                            text::push(&mut answer, key, value);
                        }
                    }
                },
            }
        }
        if !any_known {
            return None;
        }
        Some(answer)
    }

    /// The targets a SendTargets is to name (RFC 7143 appendix C); `None` refuses the value.
    ///
    /// In a normal session `All` names the session's own target: other targets are for discovery to tell.
    fn send_targets(&self, value: &str) -> Option<Vec<String>> {
        match (&self.target, value) {
            (Some(target), "" | "All") => Some(vec![target.name.to_string()]),
            (None, "All") => Some(self.shared.discoverable(&self.port.name)),
            (_, name) if text::is_iscsi_name(name) => {
                let own = self.target.as_ref().map(|target| &*target.name);
                let is_known = self.shared.catalogue.find(name).is_ok()
                    || self.shared.redirect(name).is_some_and(|to| to.is_permanent());
                let seen =
                    own.is_none_or(|own| own == name) && is_known && self.shared.shows(name, &self.port.name);
                Some(if seen { vec![name.to_owned()] } else { Vec::new() })
            }
            _ => None,
        }
    }

    /// Names targets at the portals by which the initiator may reach them, or where they have moved.
    fn push_targets(&self, names: &[String], answer: &mut Vec<u8>) {
        let addresses = match self.link.socket.local_addr() {
            Ok(here) => portals::told(here, &self.shared.portals.read()),
            Err(_) => Vec::new(),
        };
        for name in names {
            text::push(answer, "TargetName", name);
            if let Some(redirect) = self.shared.redirect(name).filter(Redirect::is_permanent) {
                text::push(answer, "TargetAddress", &format!("{},{}", redirect.address(), PORTAL_GROUP));
                continue;
            }
            for address in &addresses {
                text::push(answer, "TargetAddress", &format!("{address},{}", PORTAL_GROUP));
            }
        }
    }
}
