//! Operational parameters and the rules by which a target answers offers (RFC 7143 6.2 and 13).

use super::text;

/// The parameters in force on a connection and its session. Starts at the defaults of RFC 7143 13.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parameters {
    /// CRC32C over headers (13.1).
    pub header_digest: bool,
    /// CRC32C over data (13.1).
    pub data_digest: bool,
    /// The initiator's MaxRecvDataSegmentLength: the longest data segment we may send (13.12).
    pub max_send_bytes: u32,
    /// Unsolicited Data-Out is forbidden (13.10).
    pub initial_r2t: bool,
    /// Data in the command PDU is allowed (13.11).
    pub immediate_data: bool,
    /// Longest sequence of data one R2T asks for, or of Data-In without a final bit (13.13).
    pub max_burst_bytes: u32,
    /// Most unsolicited data of one command, immediate data included (13.14).
    pub first_burst_bytes: u32,
    /// R2Ts in flight for one command (13.17).
    pub max_outstanding_r2t: u32,
    /// Seconds (13.15).
    pub time_to_wait_s: u32,
    /// Seconds (13.16).
    pub time_to_retain_s: u32,
}

impl Default for Parameters {
    fn default() -> Self {
        Parameters {
            header_digest: false,
            data_digest: false,
            max_send_bytes: 8192,
            initial_r2t: true,
            immediate_data: true,
            max_burst_bytes: 262_144,
            first_burst_bytes: 65_536,
            max_outstanding_r2t: 1,
            time_to_wait_s: 2,
            time_to_retain_s: 20,
        }
    }
}

/// What this target would like; the outcome is the rule's function of this and the offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wishes {
    /// Ours to declare: the longest data segment we accept, in bytes.
    pub max_recv_bytes: u32,
    /// Longest burst, in bytes.
    pub max_burst_bytes: u32,
    /// Most unsolicited data, in bytes.
    pub first_burst_bytes: u32,
    /// R2Ts in flight for one command.
    pub max_outstanding_r2t: u32,
}

/// The answer to one offered key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The key is a declaration: no answer.
    Silence,
    /// Answer with this value.
    Value(String),
    /// A value the rule forbids: `Reject` (RFC 7143 6.2).
    Reject,
    /// A key that means nothing in this kind of session: `Irrelevant`.
    Irrelevant,
    /// A key this target does not know: `NotUnderstood`.
    NotUnderstood,
}

impl Answer {
    /// The value to answer with, if there is to be an answer.
    pub fn text(&self) -> Option<&str> {
        match self {
            Answer::Silence => None,
            Answer::Value(value) => Some(value),
            Answer::Reject => Some("Reject"),
            Answer::Irrelevant => Some("Irrelevant"),
            Answer::NotUnderstood => Some("NotUnderstood"),
        }
    }
}

/// What a session is for (RFC 7143 13.21).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SessionType {
    /// SCSI commands.
    #[default]
    Normal,
    /// SendTargets and nothing else.
    Discovery,
}

/// Keys that mean nothing in a discovery session (RFC 7143 13, "Irrelevant when").
const NOT_FOR_DISCOVERY: [&str; 9] = [
    "MaxConnections",
    "InitialR2T",
    "ImmediateData",
    "MaxBurstLength",
    "FirstBurstLength",
    "MaxOutstandingR2T",
    "DataPDUInOrder",
    "DataSequenceInOrder",
    "TaskReporting",
];

/// Keys of a login's first stage besides authentication and names (RFC 7143 12).
const DECLARED_EARLY: [&str; 2] = ["InitiatorAlias", "X#NodeArchitecture"];

fn yes_no(value: bool) -> Answer {
    Answer::Value(if value { "Yes" } else { "No" }.to_owned())
}

/// Numbers with a range and the minimum as their function.
fn minimum(value: &str, low: u32, high: u32, ours: u32, slot: &mut u32) -> Answer {
    match text::number(value) {
        Some(offered) if (low..=high).contains(&offered) => {
            *slot = offered.min(ours);
            Answer::Value(slot.to_string())
        }
        _ => Answer::Reject,
    }
}

fn digest(value: &str, slot: &mut bool) -> Answer {
    // A list in the initiator's order of preference; the first one known wins (RFC 7143 6.2.1).
    for choice in value.split(',').take(16) {
        match choice {
            "CRC32C" => *slot = true,
            "None" => *slot = false,
            _ => continue,
        }
        return Answer::Value(choice.to_owned());
    }
    Answer::Reject
}

impl Parameters {
    /// Answers a key of the security stage that is about neither names nor authentication: operational parameters have no place
    /// there (RFC 7143 12), so nothing changes.
    pub fn offer_early(key: &str, value: &str, wishes: &Wishes) -> Answer {
        if DECLARED_EARLY.contains(&key) {
            return Answer::Silence;
        }
        match Parameters::default().offer(key, value, wishes, SessionType::Normal) {
            Answer::NotUnderstood => Answer::NotUnderstood,
            _ => Answer::Reject,
        }
    }

    /// Takes one offered pair of the operational stage into account and says what to answer. FirstBurstLength is to come after
    /// MaxBurstLength, which it must not exceed (13.14).
    pub fn offer(&mut self, key: &str, value: &str, wishes: &Wishes, session: SessionType) -> Answer {
        if session == SessionType::Discovery && NOT_FOR_DISCOVERY.contains(&key) {
            return Answer::Irrelevant;
        }
        const BURST_MAX: u32 = 0xff_ffff;
        match key {
            "HeaderDigest" => digest(value, &mut self.header_digest),
            "DataDigest" => digest(value, &mut self.data_digest),
            "MaxRecvDataSegmentLength" => match text::number(value) {
                Some(bytes) if (512..=BURST_MAX).contains(&bytes) => {
                    self.max_send_bytes = bytes;
                    Answer::Silence
                }
                _ => Answer::Reject,
            },
            "InitialR2T" => match text::boolean(value) {
                // OR: only if both can do without (13.10). We can.
                Some(offered) => {
                    self.initial_r2t = offered;
                    yes_no(offered)
                }
                None => Answer::Reject,
            },
            "ImmediateData" => match text::boolean(value) {
                Some(offered) => {
                    self.immediate_data = offered;
                    yes_no(offered)
                }
                None => Answer::Reject,
            },
            "MaxBurstLength" => {
                minimum(value, 512, BURST_MAX, wishes.max_burst_bytes, &mut self.max_burst_bytes)
            }
            "FirstBurstLength" => {
                let most = wishes.first_burst_bytes.min(self.max_burst_bytes);
                minimum(value, 512, BURST_MAX, most, &mut self.first_burst_bytes)
            }
            "MaxOutstandingR2T" => {
                minimum(value, 1, 65_535, wishes.max_outstanding_r2t, &mut self.max_outstanding_r2t)
            }
            "DefaultTime2Wait" => match text::number(value) {
                // Maximum (13.15).
                Some(offered) if offered <= 3600 => {
                    self.time_to_wait_s = offered;
                    Answer::Value(offered.to_string())
                }
                _ => Answer::Reject,
            },
            "DefaultTime2Retain" => minimum(value, 0, 3600, 0, &mut self.time_to_retain_s),
            "MaxConnections" => minimum(value, 1, 65_535, 1, &mut 0),
            "ErrorRecoveryLevel" => minimum(value, 0, 2, 0, &mut 0),
            // OR, and this target keeps order (13.18, 13.19).
            "DataPDUInOrder" | "DataSequenceInOrder" => match text::boolean(value) {
                Some(_) => yes_no(true),
                None => Answer::Reject,
            },
            // Obsolete, still offered by old initiators, which know No better than Reject (RFC 7143 13.25 allows both).
            "IFMarker" | "OFMarker" => yes_no(false),
            "IFMarkInt" | "OFMarkInt" => Answer::Reject,
            // Level 2 is RFC 7144, whose task management is answered.
            "iSCSIProtocolLevel" => minimum(value, 0, 31, 2, &mut 0),
            // RFC 7143 13.23: task management as RFC 3720 has it.
            "TaskReporting" => {
                if value.split(',').take(16).any(|choice| choice == "RFC3720") {
                    Answer::Value("RFC3720".to_owned())
                } else {
                    Answer::Reject
                }
            }
            "InitiatorAlias" | "X#NodeArchitecture" => Answer::Silence,
            // Known, and not an initiator's to say in this stage.
            "SendTargets"
            | "TargetAlias"
            | "TargetAddress"
            | "TargetPortalGroupTag"
            | "AuthMethod"
            | "CHAP_A"
            | "CHAP_I"
            | "CHAP_C"
            | "CHAP_N"
            | "CHAP_R" => Answer::Reject,
            _ => Answer::NotUnderstood,
        }
    }

    /// FirstBurstLength must not exceed MaxBurstLength (13.14): call when the negotiation is over.
    pub fn settle(&mut self) {
        self.first_burst_bytes = self.first_burst_bytes.min(self.max_burst_bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WISHES: Wishes = Wishes {
        max_recv_bytes: 1 << 20,
        max_burst_bytes: 8 << 20,
        first_burst_bytes: 1 << 20,
        max_outstanding_r2t: 4,
    };

    /// One row for each key and rule: what is offered, and the answer ("" for none).
    const ROWS: &[(&str, &str, &str)] = &[
        ("HeaderDigest", "CRC32C,None", "CRC32C"),
        ("HeaderDigest", "None,CRC32C", "None"),
        ("HeaderDigest", "None", "None"),
        ("HeaderDigest", "X-sha,CRC32C", "CRC32C"),
        ("HeaderDigest", "SHA1", "Reject"),
        ("HeaderDigest", "", "Reject"),
        ("HeaderDigest", "crc32c", "Reject"),
        ("DataDigest", "CRC32C", "CRC32C"),
        ("DataDigest", "None,CRC32C", "None"),
        ("DataDigest", "Reject", "Reject"),
        ("MaxConnections", "8", "1"),
        ("MaxConnections", "1", "1"),
        ("MaxConnections", "0", "Reject"),
        ("MaxConnections", "65536", "Reject"),
        ("SendTargets", "All", "Reject"),
        ("TargetAlias", "mine", "Reject"),
        ("InitiatorAlias", "mine", ""),
        ("TargetAddress", "10.0.0.1", "Reject"),
        ("TargetPortalGroupTag", "1", "Reject"),
        ("AuthMethod", "None", "Reject"),
        ("CHAP_A", "5", "Reject"),
        ("InitialR2T", "Yes", "Yes"),
        ("InitialR2T", "No", "No"),
        ("InitialR2T", "yes", "Reject"),
        ("ImmediateData", "Yes", "Yes"),
        ("ImmediateData", "No", "No"),
        ("ImmediateData", "1", "Reject"),
        ("MaxRecvDataSegmentLength", "512", ""),
        ("MaxRecvDataSegmentLength", "0xffffff", ""),
        ("MaxRecvDataSegmentLength", "511", "Reject"),
        ("MaxRecvDataSegmentLength", "16777216", "Reject"),
        ("MaxRecvDataSegmentLength", "8k", "Reject"),
        ("MaxBurstLength", "16776192", "8388608"),
        ("MaxBurstLength", "4096", "4096"),
        ("MaxBurstLength", "0x1000", "4096"),
        ("MaxBurstLength", "511", "Reject"),
        ("MaxBurstLength", "16777216", "Reject"),
        ("FirstBurstLength", "65536", "65536"),
        // Not above the MaxBurstLength in force, whose default is 256 KiB.
        ("FirstBurstLength", "16776192", "262144"),
        ("FirstBurstLength", "-512", "Reject"),
        ("DefaultTime2Wait", "0", "0"),
        ("DefaultTime2Wait", "3600", "3600"),
        ("DefaultTime2Wait", "3601", "Reject"),
        ("DefaultTime2Retain", "20", "0"),
        ("DefaultTime2Retain", "", "Reject"),
        ("MaxOutstandingR2T", "1", "1"),
        ("MaxOutstandingR2T", "16", "4"),
        ("MaxOutstandingR2T", "0", "Reject"),
        ("DataPDUInOrder", "No", "Yes"),
        ("DataPDUInOrder", "Yes", "Yes"),
        ("DataPDUInOrder", "Maybe", "Reject"),
        ("DataSequenceInOrder", "No", "Yes"),
        ("ErrorRecoveryLevel", "0", "0"),
        ("ErrorRecoveryLevel", "2", "0"),
        ("ErrorRecoveryLevel", "3", "Reject"),
        ("OFMarker", "Yes", "No"),
        ("IFMarker", "No", "No"),
        ("OFMarkInt", "2048~8192", "Reject"),
        ("IFMarkInt", "2048", "Reject"),
        ("iSCSIProtocolLevel", "1", "1"),
        ("iSCSIProtocolLevel", "31", "2"),
        ("iSCSIProtocolLevel", "32", "Reject"),
        ("TaskReporting", "FastAbort,RFC3720", "RFC3720"),
        ("TaskReporting", "FastAbort", "Reject"),
        ("X#NodeArchitecture", "x86_64", ""),
        ("X-com.example", "1", "NotUnderstood"),
        ("X#unknown", "1", "NotUnderstood"),
        ("maxburstlength", "4096", "NotUnderstood"),
        ("Whatever", "", "NotUnderstood"),
    ];

    #[test]
    fn every_key_gets_the_answer_of_its_rule() {
        for (key, offered, answer) in ROWS {
            let got = Parameters::default().offer(key, offered, &WISHES, SessionType::Normal);
            assert_eq!(got.text().unwrap_or(""), *answer, "{key}={offered}");
            if *answer == "Reject" {
                // What is rejected leaves the default in force.
                let mut parameters = Parameters::default();
                parameters.offer(key, offered, &WISHES, SessionType::Normal);
                assert_eq!(parameters, Parameters::default(), "{key}={offered}");
            }
        }
    }

    #[test]
    fn discovery_finds_keys_of_transfers_irrelevant_and_takes_the_others() {
        for (key, offered, answer) in ROWS {
            let got = Parameters::default().offer(key, offered, &WISHES, SessionType::Discovery);
            let expected = if NOT_FOR_DISCOVERY.contains(key) { "Irrelevant" } else { answer };
            assert_eq!(got.text().unwrap_or(""), expected, "{key}={offered}");
        }
    }

    #[test]
    fn operational_keys_have_no_place_in_the_security_stage() {
        for (key, offered, answer) in ROWS {
            let expected = match *answer {
                "NotUnderstood" => "NotUnderstood",
                _ if DECLARED_EARLY.contains(key) => "",
                _ => "Reject",
            };
            let got = Parameters::offer_early(key, offered, &WISHES);
            assert_eq!(got.text().unwrap_or(""), expected, "{key}={offered}");
        }
    }

    #[test]
    fn what_is_agreed_is_in_force() {
        let mut p = Parameters::default();
        for (key, value) in [
            ("HeaderDigest", "CRC32C"),
            ("InitialR2T", "No"),
            ("MaxBurstLength", "8192"),
            ("FirstBurstLength", "65536"),
            ("MaxRecvDataSegmentLength", "65536"),
            ("MaxOutstandingR2T", "3"),
        ] {
            p.offer(key, value, &WISHES, SessionType::Normal);
        }
        assert!(p.header_digest && !p.data_digest && !p.initial_r2t && p.immediate_data);
        assert_eq!((p.max_burst_bytes, p.first_burst_bytes), (8192, 8192));
        assert_eq!((p.max_send_bytes, p.max_outstanding_r2t), (65_536, 3));
    }

    proptest! {
        #[test]
        fn whatever_is_offered_the_parameters_stay_within_bounds(
            offers in proptest::collection::vec((0usize..8, "[ -~]{0,12}|[0-9]{1,10}|0x[0-9a-f]{1,8}"), 0..20)
        ) {
            let keys = ["MaxBurstLength", "FirstBurstLength", "MaxRecvDataSegmentLength", "MaxOutstandingR2T",
                        "DefaultTime2Wait", "DefaultTime2Retain", "HeaderDigest", "InitialR2T"];
            let mut p = Parameters::default();
            for (key, text) in offers {
                p.offer(keys[key], &text, &WISHES, SessionType::Normal);
            }
            p.settle();
            prop_assert!((512..=0xff_ffff).contains(&p.max_send_bytes));
            prop_assert!((512..=8 << 20).contains(&p.max_burst_bytes));
            prop_assert!(p.first_burst_bytes <= p.max_burst_bytes && p.first_burst_bytes >= 512);
            prop_assert!((1..=4).contains(&p.max_outstanding_r2t));
        }
    }
}
