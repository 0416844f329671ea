//! Persistent reservation parameter data (SPC-4 6.15, 6.16).

use super::be64;
use super::sense::Sense;

/// Reservation types (SPC-4 table 176). Scope is always the logical unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Others may read.
    WriteExclusive = 1,
    /// Others may not even read.
    ExclusiveAccess = 3,
    /// As 1, and every registrant may write.
    WriteExclusiveRegistrants = 5,
    /// As 3, and every registrant has access.
    ExclusiveAccessRegistrants = 6,
    /// As 5, and every registrant holds the reservation.
    WriteExclusiveAll = 7,
    /// As 6, and every registrant holds the reservation.
    ExclusiveAccessAll = 8,
}

impl Kind {
    /// From the TYPE field.
    pub fn from_code(code: u8) -> Option<Kind> {
        Some(match code {
            1 => Kind::WriteExclusive,
            3 => Kind::ExclusiveAccess,
            5 => Kind::WriteExclusiveRegistrants,
            6 => Kind::ExclusiveAccessRegistrants,
            7 => Kind::WriteExclusiveAll,
            8 => Kind::ExclusiveAccessAll,
            _ => return None,
        })
    }

    /// Whether every registrant has the holder's access.
    pub fn registrants_share(self) -> bool {
        self as u8 >= 5
    }

    /// Whether every registrant is a holder.
    pub fn all_hold(self) -> bool {
        self as u8 >= 7
    }

    /// Whether those without access may still read.
    pub fn others_may_read(self) -> bool {
        self as u8 & 1 != 0 && self != Kind::ExclusiveAccess
    }
}

/// PERSISTENT RESERVE OUT service actions.
pub mod out_action {
    /// REGISTER.
    pub const REGISTER: u8 = 0;
    /// RESERVE.
    pub const RESERVE: u8 = 1;
    /// RELEASE.
    pub const RELEASE: u8 = 2;
    /// CLEAR.
    pub const CLEAR: u8 = 3;
    /// PREEMPT.
    pub const PREEMPT: u8 = 4;
    /// PREEMPT AND ABORT.
    pub const PREEMPT_AND_ABORT: u8 = 5;
    /// REGISTER AND IGNORE EXISTING KEY.
    pub const REGISTER_AND_IGNORE: u8 = 6;
}

/// The basic parameter list of PERSISTENT RESERVE OUT (SPC-4 6.16.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutList {
    /// RESERVATION KEY.
    pub key: u64,
    /// SERVICE ACTION RESERVATION KEY.
    pub action_key: u64,
}

impl OutList {
    /// Reads the list. Refuses a length other than 24 bytes, SPEC_I_PT, ALL_TG_PT and APTPL: none is supported.
    pub fn parse(list: &[u8]) -> Result<OutList, Sense> {
        if list.len() != 24 {
            return Err(Sense::PARAMETER_LIST_LENGTH);
        }
        if list[20] & 0x0d != 0 {
            return Err(Sense::in_parameters(20));
        }
        Ok(OutList { key: be64(list, 0), action_key: be64(list, 8) })
    }
}

/// READ KEYS data.
pub fn emit_keys(generation: u32, keys: impl Iterator<Item = u64>, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&generation.to_be_bytes());
    out.extend_from_slice(&[0; 4]);
    for key in keys {
        out.extend_from_slice(&key.to_be_bytes());
    }
    let bytes = ((out.len() - start - 8) as u32).to_be_bytes();
    out[start + 4..start + 8].copy_from_slice(&bytes);
}

/// READ RESERVATION data; the key is zero when every registrant holds (SPC-4 6.15.3.2).
pub fn emit_reservation(generation: u32, held: Option<(u64, Kind)>, out: &mut Vec<u8>) {
    out.extend_from_slice(&generation.to_be_bytes());
    let Some((key, kind)) = held else {
        out.extend_from_slice(&[0; 4]);
        return;
    };
    out.extend_from_slice(&16u32.to_be_bytes());
    out.extend_from_slice(&key.to_be_bytes());
    out.extend_from_slice(&[0, 0, 0, 0, 0, kind as u8, 0, 0]);
}

/// REPORT CAPABILITIES data: compatible RESERVE handling, a valid type mask with every type, no persistence through power loss.
pub fn emit_capabilities(out: &mut Vec<u8>) {
    out.extend_from_slice(&[0, 8, 0x10, 0x80, 0xea, 0x01, 0, 0]);
}

/// One registration, for READ FULL STATUS.
#[derive(Debug, Clone, Copy)]
pub struct FullStatus<'a> {
    /// Reservation key.
    pub key: u64,
    /// The type, if this registrant holds the reservation.
    pub held: Option<Kind>,
    /// Relative target port.
    pub port: u16,
    /// iSCSI name of the initiator.
    pub initiator: &'a str,
    /// The initiator's session id.
    pub isid: [u8; 6],
}

/// READ FULL STATUS data (SPC-4 6.15.5), with iSCSI TransportIDs of format 01b (SPC-4 7.6.4.6).
pub fn emit_full_status<'a>(
    generation: u32,
    registrations: impl Iterator<Item = FullStatus<'a>>,
    out: &mut Vec<u8>,
) {
    let start = out.len();
    out.extend_from_slice(&generation.to_be_bytes());
    out.extend_from_slice(&[0; 4]);
    for r in registrations {
        out.extend_from_slice(&r.key.to_be_bytes());
        let kind = r.held.map_or(0, |kind| kind as u8);
        out.extend_from_slice(&[0, 0, 0, 0, u8::from(r.held.is_some()), kind, 0, 0, 0, 0]);
        out.extend_from_slice(&r.port.to_be_bytes());
        let isid =
            u64::from_be_bytes([0, 0, r.isid[0], r.isid[1], r.isid[2], r.isid[3], r.isid[4], r.isid[5]]);
        let mut name = format!("{},i,0x{isid:012x}", r.initiator).into_bytes();
        name.resize((name.len() + 4) & !3, 0);
        out.extend_from_slice(&(4 + name.len() as u32).to_be_bytes());
        out.extend_from_slice(&[0x45, 0]);
        out.extend_from_slice(&(name.len() as u16).to_be_bytes());
        out.extend_from_slice(&name);
    }
    let bytes = ((out.len() - start - 8) as u32).to_be_bytes();
    out[start + 4..start + 8].copy_from_slice(&bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_list_is_read_or_refused(list in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = OutList::parse(&list);
        }
    }

    #[test]
    fn kinds_say_who_may_do_what() {
        use Kind::*;
        for (kind, read, share, all) in [
            (WriteExclusive, true, false, false),
            (ExclusiveAccess, false, false, false),
            (WriteExclusiveRegistrants, true, true, false),
            (ExclusiveAccessRegistrants, false, true, false),
            (WriteExclusiveAll, true, true, true),
            (ExclusiveAccessAll, false, true, true),
        ] {
            assert_eq!(Kind::from_code(kind as u8), Some(kind));
            assert_eq!(kind.others_may_read(), read, "{kind:?}");
            assert_eq!(kind.registrants_share(), share);
            assert_eq!(kind.all_hold(), all);
        }
        assert_eq!(Kind::from_code(2), None);
    }

    #[test]
    fn persistence_through_power_loss_is_refused() {
        let mut list = [0u8; 24];
        list[20] = 1;
        assert!(OutList::parse(&list).is_err());
    }
}
