//! What sense data says about changes that ended in GOOD long before.
//!
//! A deferred error (SPC-4 4.5.5) is one of an earlier command that was answered GOOD; of which blocks it seldom says, and an array with a
//! cache of its own may find it long after a flush. So nothing that it has answered is certain any more. The command that is told of it
//! was not executed.
//!
//! A power on or reset in the midst of a session (unit attention 29h) may have cost the array what it had only in memory: whatever was not
//! flushed since. The same attention is the first thing that a new session hears, where as a rule it tells of the past only; but it may have
//! come since the login. So it is a sign, and Playhead's own sessions, which have heard their first, are asked.
//!
//! A number may come to be another LUN. Nobody is told for certain; so its names are asked for in every new session of Playhead's own, and when the
//! array has something to tell of its LUNs. One with none of the names of before is another, and nothing that is known of the former holds.

use playhead_initiator::blocking::{is_deferred, sense_code};

/// What may be gone of production.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// What was not flushed.
    Unflushed,
    /// Nobody knows what.
    Anything,
}

/// What an answer says besides what it is the answer to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// It was reset, nobody knows whether in the midst of the session; or it may be another LUN.
    Sign,
    /// This may be lost.
    Lost(Loss),
}

/// Whether it is a unit attention that the LUN behind the number may be another now (INQUIRY DATA HAS CHANGED, REPORTED LUNS DATA HAS CHANGED).
pub(super) fn may_be_another(sense: &[u8]) -> bool {
    matches!(sense_code(sense), Some((0x06, 0x3f, 0x03 | 0x0e)))
}

/// Hears the answers of one LUN.
#[derive(Debug, Default)]
pub struct Ear {
    /// The session in which something else than its first attention was heard.
    settled_in: Option<u64>,
}

impl Ear {
    /// An answer to the operation code `code` in the `session`-th session: what its `sense` says of earlier ones, if anything.
    pub fn hear(&mut self, session: u64, code: u8, status: u8, sense: &[u8]) -> Option<Heard> {
        if is_deferred(sense) {
            return Some(Heard::Lost(Loss::Anything));
        }
        // POWER ON, RESET, OR BUS DEVICE RESET to DEVICE INTERNAL RESET; not what befalls a nexus only.
        let reset = matches!(sense_code(sense), Some((0x06, 0x29, 0x00..=0x04)));
        // INQUIRY, REQUEST SENSE and REPORT LUNS run past an attention (SAM-5 5.14), and whoever is busy has told none.
        let past_attentions = !matches!(code, 0x12 | 0x03 | 0xa0) && matches!(status, 0x00 | 0x02);
        if !reset && past_attentions {
            self.settled_in = Some(session);
        }
        if may_be_another(sense) {
            return Some(Heard::Sign);
        }
        let in_its_midst = self.settled_in == Some(session);
        reset.then_some(if in_its_midst { Heard::Lost(Loss::Unflushed) } else { Heard::Sign })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOST: Heard = Heard::Lost(Loss::Unflushed);

    #[test]
    fn a_reset_counts_unless_it_is_the_first_that_a_session_hears() {
        let fixed =
            |code: u8, key, asc, ascq| [code, 0, key, 0, 0, 0, 0, 10, 0, 0, 0, 0, asc, ascq, 0, 0, 0, 0];
        let mut ear = Ear::default();
        let mut check = |session, sense: &[u8]| ear.hear(session, 0x2a, 2, sense);
        for reset in [fixed(0x70, 6, 0x29, 0), fixed(0x70, 6, 0x29, 1)] {
            assert_eq!(check(1, &reset), Some(Heard::Sign));
        }
        assert_eq!(check(1, &fixed(0x70, 6, 0x2a, 9)), None);
        assert_eq!(check(1, &fixed(0x70, 6, 0x29, 4)), Some(LOST));
        assert_eq!(check(1, &[0x72, 6, 0x29, 1, 0, 0, 0, 0]), Some(LOST));
        assert_eq!(check(2, &fixed(0x70, 6, 0x29, 0)), Some(Heard::Sign));
        assert_eq!(check(2, &fixed(0x70, 6, 0x3f, 0x0e)), Some(Heard::Sign));
        // The nexus' own loss is none of the LUN's.
        assert_eq!(check(2, &fixed(0x70, 6, 0x29, 7)), None);
        assert_eq!(check(2, &fixed(0x70, 6, 0x29, 0)), Some(LOST));
        for deferred in [&fixed(0x71, 3, 0x0c, 0)[..], &[0x73, 4, 0x44, 0, 0, 0, 0, 0]] {
            assert_eq!(check(2, deferred), Some(Heard::Lost(Loss::Anything)));
        }
    }

    #[test]
    fn what_runs_past_an_attention_does_not_say_that_there_is_none() {
        let reset = [0x70, 0, 6, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x29, 0, 0, 0, 0, 0];
        let mut ear = Ear::default();
        for code in [0x12, 0xa0, 0x03] {
            assert_eq!(ear.hear(1, code, 0, &[]), None);
        }
        assert_eq!(ear.hear(1, 0x00, 0x08, &[]), None);
        assert_eq!(ear.hear(1, 0x00, 0x02, &reset), Some(Heard::Sign));
        assert_eq!(ear.hear(1, 0x00, 0x00, &[]), None);
        assert_eq!(ear.hear(1, 0x28, 0x02, &reset), Some(LOST));
    }
}
