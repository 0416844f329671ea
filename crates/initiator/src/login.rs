//! The login phase (RFC 7143 6.3) without I/O: texts of responses in, texts of requests out.
//!
//! Security comes first if there are credentials, else only the operational stage: what a target that wants proof answers with
//! AUTHENTICATION FAILURE.

use crate::chap::{Proof, OFFERED};
use crate::remote::Remote;
use playhead_wire::iscsi::bhs::Digests;
use playhead_wire::iscsi::negotiate::Parameters;
use playhead_wire::iscsi::response::login_status;
use playhead_wire::iscsi::text;
use std::net::SocketAddr;

/// Longest data segment accepted, in bytes.
pub(crate) const MAX_RECV_BYTES: usize = 256 << 10;
/// Longest data segment during login, either way (RFC 7143 13.12).
pub(crate) const LOGIN_SEGMENT_BYTES: usize = 8192;
/// Most requests of one login.
const STEPS_MAX: usize = 32;
/// Most text of one login step.
const TEXT_MAX_BYTES: usize = 32 << 10;
/// Longest burst asked for.
const MAX_BURST_BYTES: u32 = 4 << 20;
const FIRST_BURST_BYTES: u32 = 256 << 10;
const MAX_OUTSTANDING_R2T: u32 = 4;

pub(crate) const SECURITY: u8 = 0;
pub(crate) const OPERATIONAL: u8 = 1;
pub(crate) const FULL_FEATURE: u8 = 3;

/// Why a login ends otherwise than in a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// The target is at another address (RFC 7143 11.13.5, 01xx).
    Moved(SocketAddr),
    /// In words.
    Failed(String),
}

/// The next request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) current_stage: u8,
    pub(crate) next_stage: u8,
    pub(crate) transit: bool,
    pub(crate) text: Vec<u8>,
}

/// What a response says besides its text.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reply {
    pub(crate) transit: bool,
    pub(crate) continues: bool,
    pub(crate) current_stage: u8,
    pub(crate) next_stage: u8,
    pub(crate) status: u16,
}

/// What comes after a response.
#[derive(Debug)]
pub(crate) enum Next {
    /// Send this.
    Send(Step),
    /// The full feature phase.
    Done,
}

/// A login under way.
#[derive(Debug)]
pub(crate) struct Login {
    stage: u8,
    proof: Proof,
    /// CHAP_N and CHAP_R are sent.
    answered: bool,
    offered: bool,
    text: Vec<u8>,
    steps: usize,
    pub(crate) parameters: Parameters,
    header_digest: bool,
    data_digest: bool,
    /// The tag of the portal group, told with the first response (RFC 7143 13.9).
    pub(crate) portal_group: Option<u16>,
}

impl Login {
    pub(crate) fn new() -> Login {
        Login {
            stage: SECURITY,
            proof: Proof::default(),
            answered: false,
            offered: false,
            text: Vec::new(),
            steps: 0,
            parameters: Parameters::default(),
            header_digest: false,
            data_digest: false,
            portal_group: None,
        }
    }

    /// The first request.
    pub(crate) fn begin(&mut self, remote: &Remote) -> Step {
        let mut out = Vec::new();
        text::push(&mut out, "InitiatorName", &remote.initiator);
        match &remote.target {
            Some(target) => {
                text::push(&mut out, "SessionType", "Normal");
                text::push(&mut out, "TargetName", target);
            }
            None => text::push(&mut out, "SessionType", "Discovery"),
        }
        let methods = match &remote.chap {
            None => "None",
            Some(_) if Login::may_be_excused(remote) => "CHAP,None",
            Some(_) => "CHAP",
        };
        text::push(&mut out, "AuthMethod", methods);
        self.stage = SECURITY;
        let transit = remote.chap.is_none();
        Step {
            current_stage: SECURITY,
            next_stage: if transit { OPERATIONAL } else { 0 },
            transit,
            text: out,
        }
    }

    /// Whether the target may do without this side's proof: many arrays have credentials for their targets and none for discovery, and
    /// refuse CHAP there. Only if it need not prove itself either.
    fn may_be_excused(remote: &Remote) -> bool {
        remote.target.is_none() && remote.chap.as_ref().is_none_or(|chap| chap.theirs.is_none())
    }

    fn offers(&mut self, remote: &Remote) -> Vec<u8> {
        let mut out = Vec::new();
        let digest = |wanted| if wanted { "CRC32C,None" } else { "None" };
        text::push(&mut out, "HeaderDigest", digest(remote.header_digest));
        text::push(&mut out, "DataDigest", digest(remote.data_digest));
        text::push(&mut out, "MaxRecvDataSegmentLength", &MAX_RECV_BYTES.to_string());
        text::push(&mut out, "DefaultTime2Wait", "0");
        text::push(&mut out, "DefaultTime2Retain", "0");
        text::push(&mut out, "ErrorRecoveryLevel", "0");
        if remote.target.is_some() {
            text::push(&mut out, "InitialR2T", "No");
            text::push(&mut out, "ImmediateData", "Yes");
            text::push(&mut out, "MaxBurstLength", &MAX_BURST_BYTES.to_string());
            text::push(&mut out, "FirstBurstLength", &FIRST_BURST_BYTES.to_string());
            text::push(&mut out, "MaxOutstandingR2T", &MAX_OUTSTANDING_R2T.to_string());
            text::push(&mut out, "MaxConnections", "1");
            text::push(&mut out, "DataPDUInOrder", "Yes");
            text::push(&mut out, "DataSequenceInOrder", "Yes");
        }
        self.offered = true;
        // Without an answer the defaults hold, except for what an answer can only confirm.
        self.parameters.initial_r2t = true;
        out
    }

    /// Takes one response.
    pub(crate) fn take(&mut self, remote: &Remote, reply: &Reply, data: &[u8]) -> Result<Next, Refused> {
        let failed = |what: &str| Err(Refused::Failed(what.to_owned()));
        self.steps += 1;
        if self.steps > STEPS_MAX || self.text.len() + data.len() > TEXT_MAX_BYTES {
            return failed("the array's login does not end");
        }
        self.text.extend_from_slice(data);
        if reply.status >> 8 == 1 {
            return Err(self.moved());
        }
        if reply.status != login_status::SUCCESS {
            return Err(Refused::Failed(status_text(reply.status)));
        }
        if reply.continues {
            // The rest follows an empty request (RFC 7143 6.2).
            return Ok(Next::Send(Step {
                current_stage: self.stage,
                next_stage: 0,
                transit: false,
                text: Vec::new(),
            }));
        }
        if reply.current_stage != self.stage {
            return failed("the array answers of another stage of login");
        }
        let received = std::mem::take(&mut self.text);
        let mut pairs = Vec::new();
        for pair in text::pairs(&received) {
            match pair {
                Ok(pair) => pairs.push(pair),
                Err(error) => return Err(Refused::Failed(format!("the array's login text: {error}"))),
            }
        }
        let find = |key: &str| pairs.iter().find(|(k, _)| *k == key).map(|(_, value)| *value);
        if let Some(tag) = find("TargetPortalGroupTag").and_then(text::number) {
            self.portal_group = u16::try_from(tag).ok();
        }
        if self.stage == SECURITY {
            self.security(remote, reply, find)
        } else {
            self.operational(reply, &pairs)
        }
    }

    fn security<'a>(
        &mut self,
        remote: &Remote,
        reply: &Reply,
        find: impl Fn(&str) -> Option<&'a str>,
    ) -> Result<Next, Refused> {
        let fault = |what: &str| Refused::Failed(what.to_owned());
        let step = |transit: bool, text: Vec<u8>| {
            let next_stage = if transit { OPERATIONAL } else { SECURITY };
            Ok(Next::Send(Step { current_stage: SECURITY, next_stage, transit, text }))
        };
        if let Some(chap) = &remote.chap {
            if let Some(method) = find("AuthMethod") {
                if method == "None" && Login::may_be_excused(remote) {
                    self.answered = true;
                    return step(true, Vec::new());
                }
                if method != "CHAP" {
                    return Err(fault("the array does not take CHAP"));
                }
                let mut out = Vec::new();
                text::push(&mut out, "CHAP_A", OFFERED);
                return step(false, out);
            }
            if find("CHAP_C").is_some() {
                if self.answered {
                    return Err(fault("the array sends a second challenge"));
                }
                let mut out = Vec::new();
                self.proof.answer(chap, &find, &mut out).map_err(fault)?;
                self.answered = true;
                return step(true, out);
            }
            if !self.answered {
                return Err(fault("the array asks for no proof where credentials are set for it"));
            }
            self.proof.verify(&find).map_err(fault)?;
            if self.proof.awaits() {
                return Err(fault("the array does not prove itself"));
            }
        }
        if !reply.transit {
            return step(true, Vec::new());
        }
        match reply.next_stage {
            OPERATIONAL => {
                self.stage = OPERATIONAL;
                let text = self.offers(remote);
                Ok(Next::Send(Step {
                    current_stage: OPERATIONAL,
                    next_stage: FULL_FEATURE,
                    transit: true,
                    text,
                }))
            }
            _ => Err(fault("the array leaves out the operational stage of login")),
        }
    }

    fn operational(&mut self, reply: &Reply, pairs: &[(&str, &str)]) -> Result<Next, Refused> {
        let mut out = Vec::new();
        for (key, value) in pairs {
            self.settle(key, value, &mut out)
                .map_err(|what| Refused::Failed(format!("{what}: {key}={value}")))?;
        }
        if reply.transit && reply.next_stage == FULL_FEATURE {
            self.parameters.settle();
            return Ok(Next::Done);
        }
        Ok(Next::Send(Step {
            current_stage: OPERATIONAL,
            next_stage: FULL_FEATURE,
            transit: true,
            text: out,
        }))
    }

    /// Takes one answer, or a declaration or an offer of the target's own.
    fn settle(&mut self, key: &str, value: &str, out: &mut Vec<u8>) -> Result<(), &'static str> {
        const BURST_MAX: u32 = 0xff_ffff;
        let range = |low: u32, high: u32| {
            text::number(value).filter(|n| (low..=high).contains(n)).ok_or("the array answers out of range")
        };
        let boolean = || text::boolean(value).ok_or("the array answers neither Yes nor No");
        let p = &mut self.parameters;
        match key {
            "HeaderDigest" => self.header_digest = value == "CRC32C",
            "DataDigest" => self.data_digest = value == "CRC32C",
            "MaxRecvDataSegmentLength" => p.max_send_bytes = range(512, BURST_MAX)?,
            "InitialR2T" => p.initial_r2t = boolean()?,
            "ImmediateData" => p.immediate_data = boolean()?,
            "MaxBurstLength" => p.max_burst_bytes = range(512, BURST_MAX)?,
            "FirstBurstLength" => p.first_burst_bytes = range(512, BURST_MAX)?,
            "MaxOutstandingR2T" => p.max_outstanding_r2t = range(1, 65_535)?,
            "DataPDUInOrder" | "DataSequenceInOrder" if !boolean()? => {
                return Err("the array does not keep data in order");
            }
            "ErrorRecoveryLevel" if range(0, 2)? != 0 => return Err("the array insists on more recovery"),
            "MaxConnections" if range(1, 65_535)? != 1 => {
                return Err("the array insists on more connections")
            }
            "TargetPortalGroupTag"
            | "TargetAlias"
            | "TargetAddress"
            | "DefaultTime2Wait"
            | "DefaultTime2Retain"
            | "DataPDUInOrder"
            | "DataSequenceInOrder"
            | "ErrorRecoveryLevel"
            | "MaxConnections"
            | "AuthMethod" => {}
            // Answers that end a key.
            _ if matches!(value, "NotUnderstood" | "Irrelevant" | "Reject") => {}
            "IFMarker" | "OFMarker" => text::push(out, key, "No"),
            _ => text::push(out, key, "NotUnderstood"),
        }
        Ok(())
    }

    /// The digests agreed on.
    pub(crate) fn digests(&self) -> Digests {
        Digests { header: self.header_digest, data: self.data_digest }
    }

    fn moved(&self) -> Refused {
        let address = text::pairs(&self.text).flatten().find(|(key, _)| *key == "TargetAddress");
        let parsed = address.and_then(|(_, value)| parse_address(value));
        parsed.map_or(
            Refused::Failed("the array has moved to an address that is none".to_owned()),
            Refused::Moved,
        )
    }
}

/// A TargetAddress: `address[:port][,group]` (RFC 7143 13.8). Names are not resolved.
pub(crate) fn parse_address(value: &str) -> Option<SocketAddr> {
    const PORT: u16 = 3260;
    let address = value.split(',').next()?;
    if let Ok(whole) = address.parse::<SocketAddr>() {
        return Some(whole);
    }
    let bare = address.strip_prefix('[').and_then(|a| a.strip_suffix(']')).unwrap_or(address);
    bare.parse().ok().map(|ip| SocketAddr::new(ip, PORT))
}

fn status_text(status: u16) -> String {
    let what = match status {
        login_status::AUTHENTICATION_FAILURE => "wrong or missing CHAP credentials",
        login_status::AUTHORIZATION_FAILURE => "this initiator may not use the target",
        login_status::NOT_FOUND => "it has no such target",
        login_status::SERVICE_UNAVAILABLE | login_status::OUT_OF_RESOURCES => "it takes no session now",
        _ => "login status",
    };
    format!("the array refuses the login: {what} ({status:#06x})")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remote() -> Remote {
        Remote::new("iqn.a", [0; 6], Some("iqn.t"), Vec::new())
    }

    fn reply(stages: (u8, u8), transit: bool) -> Reply {
        Reply { transit, continues: false, current_stage: stages.0, next_stage: stages.1, status: 0 }
    }

    #[test]
    fn a_plain_login_takes_two_requests_and_keeps_what_was_agreed() {
        let (remote, mut login) = (remote(), Login::new());
        let first = login.begin(&remote);
        assert!(first.transit && first.next_stage == OPERATIONAL);
        let next = login.take(&remote, &reply((0, 1), true), b"AuthMethod=None\0").unwrap();
        let Next::Send(step) = next else { panic!("{next:?}") };
        assert!(String::from_utf8(step.text).unwrap().contains("InitialR2T=No"));
        let text = b"HeaderDigest=None\0MaxRecvDataSegmentLength=8192\0InitialR2T=Yes\0MaxBurstLength=65536\0FirstBurstLength=262144\0";
        assert!(matches!(login.take(&remote, &reply((1, 3), true), text).unwrap(), Next::Done));
        assert_eq!((login.parameters.max_send_bytes, login.parameters.first_burst_bytes), (8192, 65_536));
        assert!(login.parameters.initial_r2t);
    }

    #[test]
    fn odd_answers_are_refused_and_none_is_a_panic() {
        for text in [&b"MaxBurstLength=1\0"[..], b"InitialR2T=maybe\0", b"nothing", b"DataPDUInOrder=No\0"] {
            let (remote, mut login) = (remote(), Login::new());
            login.begin(&remote);
            login.take(&remote, &reply((0, 1), true), b"").unwrap();
            assert!(login.take(&remote, &reply((1, 3), true), text).is_err(), "{text:?}");
        }
        let mut login = Login::new();
        login.begin(&remote());
        for _ in 0..STEPS_MAX {
            let _ = login.take(&remote(), &reply((0, 0), false), b"A=1\0");
        }
        assert!(login.take(&remote(), &reply((0, 0), false), b"A=1\0").is_err());
    }

    #[test]
    fn a_target_that_moved_says_where() {
        let (remote, mut login) = (remote(), Login::new());
        login.begin(&remote);
        let moved = Reply { status: 0x0101, ..reply((0, 0), false) };
        let refused = login.take(&remote, &moved, b"TargetAddress=127.0.0.1:3261,1\0").unwrap_err();
        assert_eq!(refused, Refused::Moved("127.0.0.1:3261".parse().unwrap()));
        assert_eq!(parse_address("[::1],1"), Some("[::1]:3260".parse().unwrap()));
        assert_eq!(parse_address("array.example"), None);
    }
}
