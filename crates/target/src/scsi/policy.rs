//! Which offloads a host gets: the VAAI policy, and the count of what it led to.
//!
//! A rule says `support` or `reject` for one offload, at one scope. The narrowest rule wins: a LUN for one initiator, then a LUN,
//! then an initiator, then the appliance; where no rule speaks, the offload is supported. What is in force for a nexus is one byte
//! beside its attentions, so that admitting a command costs no look-up. There is no third choice: a change that GOOD is returned for
//! is captured.

use parking_lot::Mutex;
use playhead_wire::scsi::cdb::CopyReport;
use playhead_wire::scsi::Command;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

/// Initiators counted by name for one unit; those beyond share one count.
const COUNTED_INITIATORS_MAX: usize = 1024;
/// The name those share.
const OTHERS: &str = "others";

/// A primitive of storage offload, as hypervisors know them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Offload {
    /// COMPARE AND WRITE: locks by one block.
    Ats,
    /// EXTENDED COPY and RECEIVE COPY RESULTS.
    Xcopy,
    /// WRITE SAME.
    WriteSame,
    /// UNMAP, and WRITE SAME with its UNMAP bit.
    Unmap,
    /// POPULATE TOKEN, WRITE USING TOKEN and RECEIVE ROD TOKEN INFORMATION.
    Odx,
}

impl Offload {
    /// All of them.
    pub const ALL: [Offload; 5] =
        [Offload::Ats, Offload::Xcopy, Offload::WriteSame, Offload::Unmap, Offload::Odx];

    /// The word for it in policies.
    pub fn name(self) -> &'static str {
        match self {
            Offload::Ats => "ats",
            Offload::Xcopy => "xcopy",
            Offload::WriteSame => "write-same",
            Offload::Unmap => "unmap",
            Offload::Odx => "odx",
        }
    }

    /// The offload of a word.
    pub fn from_name(name: &str) -> Option<Offload> {
        Offload::ALL.into_iter().find(|offload| offload.name() == name)
    }

    /// The offload that a command belongs to.
    pub fn of(command: &Command) -> Option<Offload> {
        match command {
            Command::CompareAndWrite(_) => Some(Offload::Ats),
            Command::WriteSame(_) => Some(Offload::WriteSame),
            Command::Unmap { .. } => Some(Offload::Unmap),
            Command::ExtendedCopy { .. } => Some(Offload::Xcopy),
            Command::PopulateToken { .. } | Command::WriteUsingToken { .. } => Some(Offload::Odx),
            Command::ReceiveCopy { what, .. } => match what {
                // About either kind of copies, as COPY OPERATION ABORT: these look for themselves.
                CopyReport::Status4 => None,
                CopyReport::RodTokenInformation | CopyReport::AllRodTokens => Some(Offload::Odx),
                _ => Some(Offload::Xcopy),
            },
            _ => None,
        }
    }

    /// As [`Offload::of`], for an operation code and service action (SPC-4 table E.1).
    pub fn of_opcode(code: u8, service_action: Option<u16>) -> Option<Offload> {
        match (code, service_action) {
            (0x89, _) => Some(Offload::Ats),
            (0x83, Some(0x10 | 0x11)) | (0x84, Some(0x07 | 0x08)) => Some(Offload::Odx),
            (0x83 | 0x84, _) => Some(Offload::Xcopy),
            (0x41 | 0x93, _) => Some(Offload::WriteSame),
            (0x42, _) => Some(Offload::Unmap),
            _ => None,
        }
    }
}

/// A set of offloads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offloads(u8);

impl Offloads {
    /// Every one.
    pub const ALL: Offloads = Offloads(0x1f);

    /// Whether `offload` is in it.
    pub fn contains(self, offload: Offload) -> bool {
        self.0 & 1 << offload as u8 != 0
    }

    /// The set with or without `offload`.
    pub fn with(self, offload: Offload, support: bool) -> Offloads {
        let bit = 1 << offload as u8;
        Offloads(if support { self.0 | bit } else { self.0 & !bit })
    }

    pub(super) fn bits(self) -> u8 {
        self.0
    }

    pub(super) fn from_bits(bits: u8) -> Offloads {
        Offloads(bits & Offloads::ALL.0)
    }
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The LUN it is for, by [`crate::lun::LunIdentity::uuid`]; any if none.
    pub lun: Option<[u8; 16]>,
    /// The initiator it is for, by iSCSI name; any if none.
    pub initiator: Option<String>,
    /// What it is about.
    pub offload: Offload,
    /// Support, or reject.
    pub support: bool,
}

/// A LUN or any, and an initiator or any.
type Scope = (Option<[u8; 16]>, Option<String>);

/// All rules. Of two for one scope and offload the later counts.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    /// For each scope: which offloads it speaks of, and which of them it supports.
    scopes: HashMap<Scope, (u8, u8)>,
}

impl Policy {
    /// Puts rules together.
    pub fn new(rules: impl IntoIterator<Item = Rule>) -> Policy {
        let mut scopes: HashMap<_, (u8, u8)> = HashMap::new();
        for rule in rules {
            let (speaks, supports) = scopes.entry((rule.lun, rule.initiator)).or_default();
            let bit = 1 << rule.offload as u8;
            *speaks |= bit;
            *supports = if rule.support { *supports | bit } else { *supports & !bit };
        }
        Policy { scopes }
    }

    /// What `initiator` gets of the LUN `lun`.
    pub fn in_force(&self, lun: &[u8; 16], initiator: &str) -> Offloads {
        if self.scopes.is_empty() {
            return Offloads::ALL;
        }
        let initiator = Some(initiator.to_owned());
        let widest_first =
            [(None, None), (None, initiator.clone()), (Some(*lun), None), (Some(*lun), initiator)];
        let mut bits = Offloads::ALL.0;
        for scope in widest_first {
            if let Some((speaks, supports)) = self.scopes.get(&scope) {
                bits = bits & !speaks | supports;
            }
        }
        Offloads(bits)
    }
}

/// What became of one initiator's offloads on one unit.
#[derive(Debug, Default)]
pub(super) struct Counters {
    served: [AtomicU64; 5],
    rejected: [AtomicU64; 5],
    saved_bytes: [AtomicU64; 5],
}

impl Counters {
    pub(super) fn served(&self, offload: Offload, saved_bytes: u64) {
        self.served[offload as usize].fetch_add(1, Ordering::Relaxed);
        self.saved_bytes[offload as usize].fetch_add(saved_bytes, Ordering::Relaxed);
    }

    pub(super) fn rejected(&self, offload: Offload) {
        self.rejected[offload as usize].fetch_add(1, Ordering::Relaxed);
    }
}

/// A line of the count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OffloadCount {
    /// The LUN, by [`crate::lun::LunIdentity::uuid`].
    pub lun: [u8; 16],
    /// The initiator's iSCSI name, or "others".
    pub initiator: String,
    /// What was asked for.
    pub offload: Offload,
    /// Commands that ended in GOOD (COMPARE AND WRITE: also those that found a difference).
    pub served: u64,
    /// Commands refused by policy.
    pub rejected: u64,
    /// Bytes that did not have to cross the wire.
    pub saved_bytes: u64,
}

/// The counts of one unit, by initiator. They last as long as the unit.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    initiators: Mutex<HashMap<Arc<str>, Arc<Counters>>>,
}

impl Ledger {
    /// The counters of `initiator`.
    pub(super) fn of(&self, initiator: &Arc<str>) -> Arc<Counters> {
        let mut initiators = self.initiators.lock();
        let full = initiators.len() >= COUNTED_INITIATORS_MAX && !initiators.contains_key(initiator);
        let name = if full { OTHERS.into() } else { Arc::clone(initiator) };
        Arc::clone(initiators.entry(name).or_default())
    }

    /// Every line that is not all zeros, for the LUN `lun`.
    pub(super) fn lines(&self, lun: [u8; 16]) -> Vec<OffloadCount> {
        let initiators = self.initiators.lock();
        let mut lines = Vec::new();
        for (initiator, counters) in initiators.iter() {
            for offload in Offload::ALL {
                let of = |counts: &[AtomicU64; 5]| counts[offload as usize].load(Ordering::Relaxed);
                let line = OffloadCount {
                    lun,
                    initiator: initiator.to_string(),
                    offload,
                    served: of(&counters.served),
                    rejected: of(&counters.rejected),
                    saved_bytes: of(&counters.saved_bytes),
                };
                if line.served > 0 || line.rejected > 0 {
                    lines.push(line);
                }
            }
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(lun: Option<u8>, initiator: Option<&str>, offload: Offload, support: bool) -> Rule {
        Rule { lun: lun.map(|n| [n; 16]), initiator: initiator.map(str::to_owned), offload, support }
    }

    #[test]
    fn the_narrowest_rule_wins_and_silence_supports() {
        let policy = Policy::new([
            rule(None, None, Offload::Xcopy, false),
            rule(None, Some("iqn.a"), Offload::Xcopy, true),
            rule(Some(1), None, Offload::Xcopy, false),
            rule(Some(1), Some("iqn.b"), Offload::Xcopy, true),
            rule(Some(1), None, Offload::Ats, false),
        ]);
        let xcopy = |lun: u8, who| policy.in_force(&[lun; 16], who).contains(Offload::Xcopy);
        assert!(!xcopy(2, "iqn.c"));
        assert!(xcopy(2, "iqn.a"));
        assert!(!xcopy(1, "iqn.a"));
        assert!(xcopy(1, "iqn.b"));
        assert!(!policy.in_force(&[1; 16], "iqn.b").contains(Offload::Ats));
        assert!(policy.in_force(&[2; 16], "iqn.c").contains(Offload::Unmap));
        assert_eq!(Policy::default().in_force(&[0; 16], "iqn.a"), Offloads::ALL);
    }

    #[test]
    fn the_later_of_two_rules_for_one_scope_counts() {
        let first = rule(None, None, Offload::Odx, false);
        let policy = Policy::new([first.clone(), Rule { support: true, ..first }]);
        assert_eq!(policy.in_force(&[0; 16], "iqn.a"), Offloads::ALL);
    }
}
