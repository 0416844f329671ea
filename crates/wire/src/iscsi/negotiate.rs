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
    /// A key this target does not know: `NotUnderstood`.
    NotUnderstood,
}

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
    /// Takes one offered pair of the operational stage into account and says what to answer.
    ///
    /// Keys about names, session type and authentication are not for here: they come out as [`Answer::NotUnderstood`].
    pub fn offer(&mut self, key: &str, value: &str, wishes: &Wishes) -> Answer {
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
                minimum(value, 512, BURST_MAX, wishes.first_burst_bytes, &mut self.first_burst_bytes)
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
            // Obsolete, still offered by old initiators (RFC 7143 13.25).
            "IFMarker" | "OFMarker" => yes_no(false),
            "IFMarkInt" | "OFMarkInt" => Answer::Reject,
            // RFC 7144: level 1 is RFC 7143.
            "iSCSIProtocolLevel" => minimum(value, 0, 31, 1, &mut 0),
            // RFC 7143 13.23: task management as RFC 3720 has it.
            "TaskReporting" => {
                if value.split(',').take(16).any(|choice| choice == "RFC3720") {
                    Answer::Value("RFC3720".to_owned())
                } else {
                    Answer::Reject
                }
            }
            "InitiatorAlias" | "X#NodeArchitecture" => Answer::Silence,
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

    fn value(text: &str) -> Answer {
        Answer::Value(text.to_owned())
    }

    #[test]
    fn each_rule_gives_its_function() {
        let mut p = Parameters::default();
        let mut offer = |key: &str, text: &str| p.offer(key, text, &WISHES);
        assert_eq!(offer("HeaderDigest", "CRC32C,None"), value("CRC32C"));
        assert_eq!(offer("DataDigest", "None,CRC32C"), value("None"));
        assert_eq!(offer("DataDigest", "SHA1"), Answer::Reject);
        assert_eq!(offer("InitialR2T", "No"), value("No"));
        assert_eq!(offer("FirstBurstLength", "262144"), value("262144"));
        assert_eq!(offer("MaxBurstLength", "16776192"), value("8388608"));
        assert_eq!(offer("MaxBurstLength", "1"), Answer::Reject);
        assert_eq!(offer("MaxRecvDataSegmentLength", "65536"), Answer::Silence);
        assert_eq!(offer("MaxConnections", "8"), value("1"));
        assert_eq!(offer("ErrorRecoveryLevel", "2"), value("0"));
        assert_eq!(offer("OFMarker", "Yes"), value("No"));
        assert_eq!(offer("TaskReporting", "FastAbort,RFC3720"), value("RFC3720"));
        assert_eq!(offer("X-com.example", "1"), Answer::NotUnderstood);
        assert_eq!(p.max_send_bytes, 65_536);
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
                p.offer(keys[key], &text, &WISHES);
            }
            p.settle();
            prop_assert!((512..=0xff_ffff).contains(&p.max_send_bytes));
            prop_assert!((512..=8 << 20).contains(&p.max_burst_bytes));
            prop_assert!(p.first_burst_bytes <= p.max_burst_bytes && p.first_burst_bytes >= 512);
            prop_assert!((1..=4).contains(&p.max_outstanding_r2t));
        }
    }
}
