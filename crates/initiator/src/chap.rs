//! CHAP (RFC 1994) as an initiator speaks it in the security stage (RFC 7143 12.1.3). Owns no I/O; randomness is the system's.

use crate::remote::Chap;
use md5::Md5;
use playhead_wire::iscsi::{binary, text};
use sha1::{Digest, Sha1};
use sha3::Sha3_256;
use subtle::ConstantTimeEq;

/// Bytes of our challenge.
const CHALLENGE_BYTES: usize = 32;
/// The hash functions offered, strongest first: SHA3-256, SHA-1, MD5. SHA-256 is not among them: its number, 7, means SHA-1 to targets
/// of RFC 3720's time (tgtd is one), and what each side computed would differ.
pub(crate) const OFFERED: &str = "8,6,5";

/// What a login needs to remember of it.
#[derive(Debug, Default)]
pub(crate) struct Proof {
    /// What we asked the target to prove itself with: identifier and challenge, and what it must answer.
    awaited: Option<Vec<u8>>,
    theirs_name: Option<String>,
    proved: bool,
}

fn response(algorithm: u32, id: u8, secret: &[u8], challenge: &[u8]) -> Option<Vec<u8>> {
    fn of<D: Digest>(id: u8, secret: &[u8], challenge: &[u8]) -> Vec<u8> {
        D::new().chain_update([id]).chain_update(secret).chain_update(challenge).finalize().to_vec()
    }
    match algorithm {
        5 => Some(of::<Md5>(id, secret, challenge)),
        6 => Some(of::<Sha1>(id, secret, challenge)),
        8 => Some(of::<Sha3_256>(id, secret, challenge)),
        _ => None,
    }
}

/// Fills `bytes` with what nobody could foresee.
fn random(bytes: &mut [u8]) -> Result<(), &'static str> {
    let mut filled = 0;
    // Bounded: requests of up to 256 bytes are answered whole once the system has started.
    while filled < bytes.len() {
        match rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty()) {
            Ok(got) => filled += got,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return Err("the system has no random numbers"),
        }
    }
    Ok(())
}

impl Proof {
    /// Answers the target's challenge, which is in `find`, into `reply`; asks it to prove itself too if it must.
    pub(crate) fn answer<'a>(
        &mut self,
        chap: &Chap,
        find: impl Fn(&str) -> Option<&'a str>,
        reply: &mut Vec<u8>,
    ) -> Result<(), &'static str> {
        let algorithm = find("CHAP_A").and_then(text::number).ok_or("the array names no CHAP algorithm")?;
        let id = find("CHAP_I").and_then(text::number).and_then(|id| u8::try_from(id).ok());
        let id = id.ok_or("the array's CHAP_I is no byte")?;
        let challenge =
            find("CHAP_C").and_then(binary::parse).ok_or("the array's CHAP_C is no binary value")?;
        let ours = response(algorithm, id, &chap.ours.secret, &challenge)
            .ok_or("the array chose a CHAP algorithm that was not offered")?;
        text::push(reply, "CHAP_N", &chap.ours.name);
        text::push(reply, "CHAP_R", &binary::emit_hex(&ours));
        if let Some(theirs) = &chap.theirs {
            let mut random_bytes = [0; 1 + CHALLENGE_BYTES];
            random(&mut random_bytes)?;
            let [their_id, our_challenge @ ..] = random_bytes;
            text::push(reply, "CHAP_I", &their_id.to_string());
            text::push(reply, "CHAP_C", &binary::emit_hex(&our_challenge));
            self.awaited = response(algorithm, their_id, &theirs.secret, &our_challenge);
            self.theirs_name = Some(theirs.name.clone());
        }
        Ok(())
    }

    /// Whether a response of the target is still to come.
    pub(crate) fn awaits(&self) -> bool {
        self.awaited.is_some() && !self.proved
    }

    /// Checks the target's own response.
    pub(crate) fn verify<'a>(&mut self, find: impl Fn(&str) -> Option<&'a str>) -> Result<(), &'static str> {
        let (Some(awaited), Some(name)) = (&self.awaited, &self.theirs_name) else {
            return Ok(());
        };
        let theirs = find("CHAP_R").and_then(binary::parse).ok_or("the array does not prove itself")?;
        let their_name = find("CHAP_N").ok_or("the array does not prove itself")?;
        let right = awaited.ct_eq(&theirs) & name.as_bytes().ct_eq(their_name.as_bytes());
        if !bool::from(right) {
            return Err("the array proves itself with a wrong user or secret");
        }
        self.proved = true;
        Ok(())
    }
}
