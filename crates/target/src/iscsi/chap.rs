//! CHAP (RFC 1994) as a target speaks it in the security stage (RFC 7143 12.1.3): a challenge, the initiator's response, and this
//! target's own if it is asked for one. Owns no I/O; randomness is the system's.

use super::credentials::{Demand, User};
use md5::Md5;
use playhead_wire::iscsi::{binary, text};
use sha1::{Digest, Sha1};
use sha2::Sha256;
use sha3::Sha3_256;
use std::io;
use subtle::ConstantTimeEq;

/// Most entries looked at of a list that an initiator offers.
const LIST_MAX: usize = 32;
/// Bytes of a challenge.
const CHALLENGE_BYTES: usize = 32;

/// The hash functions there are, by their numbers in CHAP_A (IANA, PPP Authentication Algorithms).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Algorithm {
    Md5 = 5,
    Sha1 = 6,
    Sha256 = 7,
    Sha3 = 8,
}

impl Algorithm {
    const ALL: [Algorithm; 4] = [Algorithm::Md5, Algorithm::Sha1, Algorithm::Sha256, Algorithm::Sha3];

    /// The first of an offered list that is known here: the order is the initiator's preference (RFC 7143 6.2.1).
    fn choose(offered: &str) -> Option<Algorithm> {
        offered.split(',').take(LIST_MAX).find_map(|choice| {
            let number = text::number(choice)?;
            Algorithm::ALL.into_iter().find(|algorithm| *algorithm as u32 == number)
        })
    }

    /// The response to a challenge (RFC 1994 4.1).
    pub(super) fn response(self, id: u8, secret: &[u8], challenge: &[u8]) -> Vec<u8> {
        fn of<D: Digest>(id: u8, secret: &[u8], challenge: &[u8]) -> Vec<u8> {
            D::new().chain_update([id]).chain_update(secret).chain_update(challenge).finalize().to_vec()
        }
        match self {
            Algorithm::Md5 => of::<Md5>(id, secret, challenge),
            Algorithm::Sha1 => of::<Sha1>(id, secret, challenge),
            Algorithm::Sha256 => of::<Sha256>(id, secret, challenge),
            Algorithm::Sha3 => of::<Sha3_256>(id, secret, challenge),
        }
    }
}

/// How far the authentication is.
#[derive(Debug)]
enum State {
    /// No method is chosen.
    Open,
    /// CHAP is; the algorithm is not.
    Chosen,
    /// The challenge is sent.
    Challenged { algorithm: Algorithm, id: u8, challenge: [u8; CHALLENGE_BYTES] },
    /// Nothing is wanted, or all that was wanted has come.
    Satisfied,
}

/// The keys of authentication in one request.
#[derive(Debug, Default)]
pub(super) struct Keys {
    pub(super) method: Option<String>,
    pub(super) algorithm: Option<String>,
    pub(super) name: Option<String>,
    pub(super) response: Option<String>,
    pub(super) id: Option<String>,
    pub(super) challenge: Option<String>,
}

impl Keys {
    /// Takes one key. False: it is none of authentication.
    pub(super) fn take(&mut self, key: &str, value: &str) -> bool {
        let slot = match key {
            "AuthMethod" => &mut self.method,
            "CHAP_A" => &mut self.algorithm,
            "CHAP_N" => &mut self.name,
            "CHAP_R" => &mut self.response,
            "CHAP_I" => &mut self.id,
            "CHAP_C" => &mut self.challenge,
            _ => return false,
        };
        *slot = Some(value.to_owned());
        true
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        let all = [&self.method, &self.algorithm, &self.name, &self.response, &self.id, &self.challenge];
        all.into_iter().all(Option::is_none)
    }
}

/// Why an initiator is not let in, for the log: the initiator learns only that it is not.
pub(super) type Failure = &'static str;

/// One login's authentication.
#[derive(Debug)]
pub(super) struct Authentication {
    demand: Demand,
    state: State,
}

impl Authentication {
    pub(super) fn new(demand: Demand) -> Authentication {
        Authentication { demand, state: State::Open }
    }

    /// Whether the initiator may go on to the next stage.
    pub(super) fn is_satisfied(&self) -> bool {
        matches!(self.state, State::Satisfied) || matches!(self.state, State::Open) && !self.demand.must
    }

    /// Takes the keys of one request and appends the answers.
    pub(super) fn step(&mut self, keys: &Keys, reply: &mut Vec<u8>) -> Result<(), Failure> {
        if let Some(offered) = &keys.method {
            self.choose_method(offered, reply)?;
        }
        if let Some(offered) = &keys.algorithm {
            self.challenge(offered, reply)?;
        } else if matches!(self.state, State::Chosen) && keys.method.is_none() {
            return Err("it does not go on with CHAP");
        }
        if keys.name.is_some() || keys.response.is_some() || keys.id.is_some() || keys.challenge.is_some() {
            self.verify(keys, reply)?;
        } else if matches!(self.state, State::Challenged { .. }) && keys.algorithm.is_none() {
            return Err("it does not answer the challenge");
        }
        match self.state {
            State::Open if self.demand.must => Err("it offers no authentication"),
            _ => Ok(()),
        }
    }

    /// AuthMethod (RFC 7143 12.1): the first of the initiator's list that will do.
    fn choose_method(&mut self, offered: &str, reply: &mut Vec<u8>) -> Result<(), Failure> {
        if !matches!(self.state, State::Open) {
            return Err("it chooses a method twice");
        }
        // Someone unknown goes through all of it before it fails, so that it does not learn who is known.
        let chap = self.demand.known.is_some() || self.demand.must;
        let method = offered.split(',').take(LIST_MAX).find(|method| match *method {
            "CHAP" => chap,
            "None" => !self.demand.must,
            _ => false,
        });
        let Some(method) = method else {
            return Err(if self.demand.must {
                "it does not offer CHAP"
            } else {
                "nothing it offers is known for it"
            });
        };
        self.state = if method == "CHAP" { State::Chosen } else { State::Satisfied };
        text::push(reply, "AuthMethod", method);
        Ok(())
    }

    fn challenge(&mut self, offered: &str, reply: &mut Vec<u8>) -> Result<(), Failure> {
        if !matches!(self.state, State::Chosen) {
            return Err("CHAP_A comes at the wrong time");
        }
        let algorithm = Algorithm::choose(offered).ok_or("it offers no algorithm there is")?;
        let random = random().map_err(|_| "the system has no random numbers")?;
        let [id, challenge @ ..] = random;
        text::push(reply, "CHAP_A", &(algorithm as u32).to_string());
        text::push(reply, "CHAP_I", &id.to_string());
        text::push(reply, "CHAP_C", &binary::emit_hex(&challenge));
        self.state = State::Challenged { algorithm, id, challenge };
        Ok(())
    }

    fn verify(&mut self, keys: &Keys, reply: &mut Vec<u8>) -> Result<(), Failure> {
        let State::Challenged { algorithm, id, challenge } = &self.state else {
            return Err("a CHAP response comes at the wrong time");
        };
        let (Some(name), Some(response)) = (&keys.name, &keys.response) else {
            return Err("CHAP_N or CHAP_R is missing");
        };
        let response = binary::parse(response).ok_or("CHAP_R is no binary value")?;
        let nobody = User { name: String::new(), secret: Vec::new() };
        let known = self.demand.known.as_deref();
        let user = known.map_or(&nobody, |known| &known.initiator);
        let expected = algorithm.response(*id, &user.secret, challenge);
        let is_right = expected.ct_eq(&response) & user.name.as_bytes().ct_eq(name.as_bytes());
        let Some(known) = known else {
            return Err("no credentials are known for it");
        };
        if !bool::from(is_right) {
            return Err("wrong user or secret");
        }
        match (&keys.id, &keys.challenge) {
            (None, None) => {}
            (Some(their_id), Some(theirs)) => {
                let their_id = text::number(their_id).and_then(|id| u8::try_from(id).ok());
                let their_id = their_id.ok_or("CHAP_I is no byte")?;
                let theirs = binary::parse(theirs).ok_or("CHAP_C is no binary value")?;
                if bool::from(theirs.as_slice().ct_eq(challenge.as_slice())) {
                    return Err("it sends this side's challenge back");
                }
                let target = known.target.as_ref();
                let target =
                    target.ok_or("it wants this target to prove itself, which has no secret for that")?;
                let response = algorithm.response(their_id, &target.secret, &theirs);
                text::push(reply, "CHAP_N", &target.name);
                text::push(reply, "CHAP_R", &binary::emit_hex(&response));
            }
            _ => return Err("CHAP_I or CHAP_C is missing"),
        }
        self.state = State::Satisfied;
        Ok(())
    }
}

/// An identifier and a challenge that nobody could foresee, and that do not come again.
fn random() -> io::Result<[u8; 1 + CHALLENGE_BYTES]> {
    let mut bytes = [0; 1 + CHALLENGE_BYTES];
    let mut filled = 0;
    // Requests of up to 256 bytes are answered whole once the system has started; a signal may come before that.
    while filled < bytes.len() {
        match rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty()) {
            Ok(got) => filled += got,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::iscsi::credentials::{Chap, Credentials};

    const INITIATOR: &str = "iqn.a";

    fn login(required: bool) -> Authentication {
        let user = |name: &str, secret: &[u8]| User { name: name.to_owned(), secret: secret.to_vec() };
        let chap = Chap {
            initiator: user("0xhost", b"initiator secret"),
            target: Some(user("array", b"target secret")),
        };
        let credentials = Credentials::new(required, None, [(INITIATOR.to_owned(), chap)]).unwrap();
        Authentication::new(credentials.demand(INITIATOR, false))
    }

    /// One request, and the pairs of its answer.
    fn step(login: &mut Authentication, pairs: &[(&str, &str)]) -> Result<Vec<(String, String)>, Failure> {
        let mut keys = Keys::default();
        assert!(pairs.iter().all(|(key, value)| keys.take(key, value)));
        let mut reply = Vec::new();
        login.step(&keys, &mut reply)?;
        Ok(text::pairs(&reply).map(|pair| pair.map(|(k, v)| (k.to_owned(), v.to_owned())).unwrap()).collect())
    }

    fn value<'a>(answer: &'a [(String, String)], key: &str) -> &'a str {
        &answer.iter().find(|(k, _)| k == key).unwrap().1
    }

    /// Goes to the challenge and returns the algorithm, the identifier and the challenge.
    fn challenged(login: &mut Authentication, offered: &str) -> (Algorithm, u8, Vec<u8>) {
        assert_eq!(
            step(login, &[("AuthMethod", "KRB5,CHAP,None")]).unwrap(),
            [("AuthMethod".into(), "CHAP".into())]
        );
        assert!(!login.is_satisfied());
        let answer = step(login, &[("CHAP_A", offered)]).unwrap();
        let algorithm = Algorithm::choose(value(&answer, "CHAP_A")).unwrap();
        (
            algorithm,
            value(&answer, "CHAP_I").parse().unwrap(),
            binary::parse(value(&answer, "CHAP_C")).unwrap(),
        )
    }

    #[test]
    fn responses_are_those_of_other_implementations() {
        // Python's hashlib over 0x27, "secret of twelve" and the bytes 0 to 15.
        let challenge: Vec<u8> = (0..16).collect();
        let expected = [
            (Algorithm::Md5, "0xf9619e62f9fa7f7e53788b1de7193306"),
            (Algorithm::Sha1, "0x49d8be6e367d7959fd69806ede041b31da7a9fdb"),
            (Algorithm::Sha256, "0x3b76451886f0904d878d36fccd82cabeb903ad1189038df25104f79f9f592296"),
            (Algorithm::Sha3, "0xdf91cfa29052910b51b05c5b0e1acc55102a143fa18022897966baeb66799e57"),
        ];
        for (algorithm, response) in expected {
            assert_eq!(
                binary::emit_hex(&algorithm.response(0x27, b"secret of twelve", &challenge)),
                response
            );
        }
    }

    #[test]
    fn every_algorithm_and_both_encodings_prove_both_sides() {
        for (offered, chosen) in [("5,6,7,8", 5), ("6", 6), ("0x7,5", 7), ("9,8,5", 8)] {
            let mut login = login(false);
            let (algorithm, id, challenge) = challenged(&mut login, offered);
            assert_eq!(algorithm as u32, chosen);
            let response = algorithm.response(id, b"initiator secret", &challenge);
            let own = binary::emit_base64(&[7; 20]);
            let keys = [
                ("CHAP_N", "0xhost"),
                ("CHAP_R", &binary::emit_base64(&response)),
                ("CHAP_I", "0x11"),
                ("CHAP_C", &own),
            ];
            let answer = step(&mut login, &keys).unwrap();
            assert!(login.is_satisfied());
            assert_eq!(value(&answer, "CHAP_N"), "array");
            let expected = algorithm.response(0x11, b"target secret", &[7; 20]);
            assert_eq!(binary::parse(value(&answer, "CHAP_R")), Some(expected));
        }
    }

    #[test]
    fn whatever_is_wrong_lets_nobody_in() {
        type Pairs<'a> = &'a [(&'a str, &'a str)];
        let right = |id: u8, challenge: &[u8]| {
            binary::emit_hex(&Algorithm::Md5.response(id, b"initiator secret", challenge))
        };
        let before: [Pairs<'_>; 7] = [
            &[],
            &[("AuthMethod", "None")],
            &[("AuthMethod", "KRB5")],
            &[("AuthMethod", "")],
            &[("CHAP_A", "5")],
            &[("AuthMethod", "CHAP"), ("CHAP_A", "56")],
            &[("AuthMethod", "CHAP"), ("CHAP_A", "")],
        ];
        for pairs in before {
            let mut login = login(false);
            assert!(step(&mut login, pairs).is_err(), "{pairs:?}");
            assert!(!login.is_satisfied());
        }
        let mut silent = login(false);
        step(&mut silent, &[("AuthMethod", "CHAP")]).unwrap();
        assert!(step(&mut silent, &[]).is_err());
        for wrong in 0..9 {
            let mut login = login(false);
            let (_, id, challenge) = challenged(&mut login, "5");
            let (hex, response) = (binary::emit_hex(&challenge), right(id, &challenge));
            let padded = format!("{response}00");
            let pairs: Pairs<'_> = match wrong {
                0 => &[("CHAP_N", "host"), ("CHAP_R", &response)],
                1 => &[("CHAP_N", "0xhost"), ("CHAP_R", &right(id.wrapping_add(1), &challenge))],
                2 => &[("CHAP_N", "0xhost"), ("CHAP_R", &padded)],
                3 => &[("CHAP_R", &response)],
                4 => &[("CHAP_N", "0xhost"), ("CHAP_R", "secret")],
                5 => &[("CHAP_N", "0xhost"), ("CHAP_R", &response), ("CHAP_I", "1")],
                6 => &[("CHAP_N", "0xhost"), ("CHAP_R", &response), ("CHAP_I", "256"), ("CHAP_C", "0x01")],
                // Reflection: this side's own challenge.
                7 => &[("CHAP_N", "0xhost"), ("CHAP_R", &response), ("CHAP_I", "1"), ("CHAP_C", &hex)],
                _ => &[],
            };
            assert!(step(&mut login, pairs).is_err(), "{wrong}");
            assert!(!login.is_satisfied());
        }
    }

    #[test]
    fn a_stranger_is_challenged_like_anyone_where_all_must_prove_themselves() {
        let credentials = Credentials::new(true, None, []).unwrap();
        let mut stranger = Authentication::new(credentials.demand("iqn.stranger", false));
        let (algorithm, id, challenge) = challenged(&mut stranger, "7");
        let empty = binary::emit_hex(&algorithm.response(id, b"", &challenge));
        assert!(step(&mut stranger, &[("CHAP_N", ""), ("CHAP_R", &empty)]).is_err());
        let mut open = Authentication::new(Credentials::default().demand("iqn.b", false));
        assert!(open.is_satisfied());
        assert!(step(&mut open, &[("AuthMethod", "CHAP,None")]).unwrap()[0].1 == "None");
        assert!(open.is_satisfied());
        let mut open = Authentication::new(Credentials::default().demand("iqn.b", false));
        assert!(step(&mut open, &[("AuthMethod", "CHAP")]).is_err());
    }

    #[test]
    fn no_challenge_comes_twice() {
        let challenges: std::collections::HashSet<_> =
            (0..100).map(|_| challenged(&mut login(true), "5").2).collect();
        assert_eq!(challenges.len(), 100);
    }
}
