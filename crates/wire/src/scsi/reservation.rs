//! Persistent reservation parameter data (SPC-4 6.15, 6.16).

pub mod transport_id;

pub use transport_id::TransportId;

use super::sense::Sense;
use super::{be16, be32, be64};

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

/// PERSISTENT RESERVE OUT service actions (SPC-4 table 218).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)] // The standard's own names.
pub enum OutAction {
    Register = 0,
    Reserve = 1,
    Release = 2,
    Clear = 3,
    Preempt = 4,
    PreemptAndAbort = 5,
    RegisterAndIgnore = 6,
    RegisterAndMove = 7,
    ReplaceLost = 8,
}

impl OutAction {
    /// From the SERVICE ACTION field.
    pub fn from_code(code: u8) -> Option<OutAction> {
        use OutAction::*;
        const ALL: [OutAction; 9] = [
            Register,
            Reserve,
            Release,
            Clear,
            Preempt,
            PreemptAndAbort,
            RegisterAndIgnore,
            RegisterAndMove,
            ReplaceLost,
        ];
        ALL.into_iter().find(|action| *action as u8 == code)
    }
}

/// Bytes of the basic parameter list.
const BASIC_LEN: usize = 24;

/// The basic parameter list of PERSISTENT RESERVE OUT (SPC-4 6.16.3).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OutList {
    /// RESERVATION KEY.
    pub key: u64,
    /// SERVICE ACTION RESERVATION KEY.
    pub action_key: u64,
    /// APTPL.
    pub persist: bool,
    /// ALL_TG_PT.
    pub all_target_ports: bool,
    /// The initiator ports of a list with SPEC_I_PT.
    pub initiators: Option<Vec<TransportId>>,
}

impl OutList {
    /// Reads the list. Errors: a length that does not fit, or a TransportID that is none of iSCSI's.
    pub fn parse(list: &[u8]) -> Result<OutList, Sense> {
        if list.len() < BASIC_LEN {
            return Err(Sense::PARAMETER_LIST_LENGTH);
        }
        let initiators = match list[20] & 0x08 {
            0 if list.len() != BASIC_LEN => return Err(Sense::PARAMETER_LIST_LENGTH),
            0 => None,
            _ => {
                let length = be32(list, BASIC_LEN) as usize;
                if list.len() < BASIC_LEN + 4 || length != list.len() - BASIC_LEN - 4 {
                    return Err(Sense::PARAMETER_LIST_LENGTH);
                }
                Some(transport_id::parse_all(list, BASIC_LEN + 4)?)
            }
        };
        Ok(OutList {
            key: be64(list, 0),
            action_key: be64(list, 8),
            persist: list[20] & 0x01 != 0,
            all_target_ports: list[20] & 0x04 != 0,
            initiators,
        })
    }
}

/// The parameter list of REGISTER AND MOVE (SPC-4 6.16.4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MoveList {
    /// RESERVATION KEY.
    pub key: u64,
    /// SERVICE ACTION RESERVATION KEY: the new holder's.
    pub action_key: u64,
    /// UNREG: the sender's registration goes.
    pub unregister: bool,
    /// APTPL.
    pub persist: bool,
    /// Relative target port of the new holder.
    pub port: u16,
    /// The new holder.
    pub initiator: TransportId,
}

impl MoveList {
    /// Reads the list. Errors: as [`OutList::parse`].
    pub fn parse(list: &[u8]) -> Result<MoveList, Sense> {
        let length = be32(list, 20) as usize;
        if list.len() < BASIC_LEN || length != list.len() - BASIC_LEN {
            return Err(Sense::PARAMETER_LIST_LENGTH);
        }
        let mut initiators = transport_id::parse_all(list, BASIC_LEN)?;
        let (Some(initiator), true) = (initiators.pop(), initiators.is_empty()) else {
            return Err(Sense::in_parameters(20));
        };
        Ok(MoveList {
            key: be64(list, 0),
            action_key: be64(list, 8),
            unregister: list[17] & 0x02 != 0,
            persist: list[17] & 0x01 != 0,
            port: be16(list, 18),
            initiator,
        })
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

/// REPORT CAPABILITIES data (SPC-4 6.15.4): lost reservations can be replaced, compatible RESERVE handling, initiator and target ports
/// can be specified, every type; TEST UNIT READY passes every reservation (ALLOW COMMANDS 001b).
pub fn emit_capabilities(can_persist: bool, persists: bool, out: &mut Vec<u8>) {
    const RLR_CRH_SIP_ATP: u8 = 0x80 | 0x10 | 0x08 | 0x04;
    const TMV_ALLOW: u8 = 0x80 | 0x10;
    let able = RLR_CRH_SIP_ATP | u8::from(can_persist);
    out.extend_from_slice(&[0, 8, able, TMV_ALLOW | u8::from(persists), 0xea, 0x01, 0, 0]);
}

/// One registration, for READ FULL STATUS.
#[derive(Debug, Clone, Copy)]
pub struct FullStatus<'a> {
    /// Reservation key.
    pub key: u64,
    /// The type, if this registrant holds the reservation.
    pub held: Option<Kind>,
    /// Relative target port; 0 for one that does not present the unit now.
    pub port: u16,
    /// iSCSI name of the initiator.
    pub initiator: &'a str,
    /// The initiator's session id.
    pub isid: [u8; 6],
}

/// READ FULL STATUS data (SPC-4 6.15.5).
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
        let mut id = Vec::new();
        transport_id::emit(r.initiator, &r.isid, &mut id);
        out.extend_from_slice(&(id.len() as u32).to_be_bytes());
        out.extend_from_slice(&id);
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
        fn any_list_is_read_or_refused(list in proptest::collection::vec(any::<u8>(), 0..96)) {
            let _ = OutList::parse(&list);
            let _ = MoveList::parse(&list);
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

    fn list_with(flags: u8, rest: &[u8]) -> Vec<u8> {
        let mut list = vec![0; 24];
        list[7] = 1;
        list[15] = 2;
        list[20] = flags;
        list.extend_from_slice(rest);
        list
    }

    #[test]
    fn a_basic_list_is_24_bytes_and_nothing_else() {
        let list = OutList::parse(&list_with(0x05, &[])).unwrap();
        assert_eq!((list.key, list.action_key), (1, 2));
        assert!(list.persist && list.all_target_ports && list.initiators.is_none());
        assert_eq!(OutList::parse(&list_with(0, &[0])), Err(Sense::PARAMETER_LIST_LENGTH));
        assert_eq!(OutList::parse(&list_with(0, &[])[..23]), Err(Sense::PARAMETER_LIST_LENGTH));
    }

    #[test]
    fn initiator_ports_come_with_a_length_that_must_fit() {
        let mut ids = Vec::new();
        transport_id::emit("iqn.2026-01.org.example:a", &[1, 2, 3, 4, 5, 6], &mut ids);
        let mut rest = (ids.len() as u32).to_be_bytes().to_vec();
        rest.extend_from_slice(&ids);
        let list = OutList::parse(&list_with(0x08, &rest)).unwrap();
        let id = TransportId { name: "iqn.2026-01.org.example:a".into(), isid: Some([1, 2, 3, 4, 5, 6]) };
        assert_eq!(list.initiators, Some(vec![id.clone()]));
        rest[3] += 4;
        assert_eq!(OutList::parse(&list_with(0x08, &rest)), Err(Sense::PARAMETER_LIST_LENGTH));
        let mut moved = vec![0; 24];
        moved[17] = 2;
        moved[19] = 7;
        moved[23] = ids.len() as u8;
        moved.extend_from_slice(&ids);
        let list = MoveList::parse(&moved).unwrap();
        assert!(list.unregister && !list.persist);
        assert_eq!((list.port, list.initiator), (7, id));
    }
}
