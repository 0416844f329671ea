//! TransportIDs of iSCSI initiator ports (SPC-4 7.6.4.6).

use super::super::be16;
use super::super::sense::Sense;

/// Format code and protocol identifier of an iSCSI name alone.
const NAME: u8 = 0x05;
/// Of a name and an ISID.
const NAME_AND_ISID: u8 = 0x45;
/// What stands between them.
const SEPARATOR: &str = ",i,0x";
/// Least bytes after the length field.
const LENGTH_MIN: usize = 20;
/// Most bytes of an iSCSI name (RFC 7143 4.2.7.1).
const NAME_MAX_BYTES: usize = 223;

/// One initiator port, or all of an initiator's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransportId {
    /// iSCSI name.
    pub name: String,
    /// The initiator's part of the session id; `None` means every port of that name that is known.
    pub isid: Option<[u8; 6]>,
}

/// Appends the TransportID of a port.
pub fn emit(name: &str, isid: &[u8; 6], out: &mut Vec<u8>) {
    let mut text = name.as_bytes().to_vec();
    text.extend_from_slice(SEPARATOR.as_bytes());
    for byte in isid {
        text.extend_from_slice(format!("{byte:02x}").as_bytes());
    }
    text.resize(((text.len() + 4) & !3).max(LENGTH_MIN), 0);
    out.extend_from_slice(&[NAME_AND_ISID, 0]);
    out.extend_from_slice(&(text.len() as u16).to_be_bytes());
    out.extend_from_slice(&text);
}

/// Reads the TransportIDs from `at` to the end of a parameter list; faults are pointed at from its start.
pub(super) fn parse_all(list: &[u8], at: usize) -> Result<Vec<TransportId>, Sense> {
    let mut ids = Vec::new();
    let mut at = at;
    while at < list.len() {
        let fault = Sense::in_parameters(u16::try_from(at).unwrap_or(u16::MAX));
        let length = usize::from(be16(list, at + 2));
        let Some(text) = list.get(at + 4..at + 4 + length) else {
            return Err(fault);
        };
        if length < LENGTH_MIN || length % 4 != 0 {
            return Err(fault);
        }
        ids.push(parse(list[at], text).ok_or(fault)?);
        at += 4 + length;
    }
    Ok(ids)
}

fn parse(format: u8, text: &[u8]) -> Option<TransportId> {
    let end = text.iter().position(|byte| *byte == 0)?;
    let text = std::str::from_utf8(&text[..end]).ok()?;
    let (name, isid) = match format {
        NAME => (text, None),
        NAME_AND_ISID => {
            let (name, digits) = text.split_once(SEPARATOR)?;
            if digits.is_empty()
                || digits.len() > 12
                || !digits.bytes().all(|digit| digit.is_ascii_hexdigit())
            {
                return None;
            }
            let bytes = u64::from_str_radix(digits, 16).ok()?.to_be_bytes();
            (name, Some([bytes[2], bytes[3], bytes[4], bytes[5], bytes[6], bytes[7]]))
        }
        _ => return None,
    };
    (!name.is_empty() && name.len() <= NAME_MAX_BYTES).then(|| TransportId { name: name.to_owned(), isid })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_emitted_is_read_back(name in "[a-z]{1,223}", isid in proptest::array::uniform6(any::<u8>())) {
            let mut out = Vec::new();
            emit(&name, &isid, &mut out);
            prop_assert_eq!(out.len() % 4, 0);
            prop_assert_eq!(parse_all(&out, 0).unwrap(), vec![TransportId { name, isid: Some(isid) }]);
        }

        #[test]
        fn any_bytes_are_ids_or_a_fault(list in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_all(&list, 0);
        }
    }

    #[test]
    fn a_name_alone_is_an_id_and_other_protocols_are_not() {
        let mut id = vec![NAME, 0, 0, 20];
        id.extend_from_slice(b"iqn.2026-01.a:b");
        id.resize(24, 0);
        let read = parse_all(&id, 0).unwrap();
        assert_eq!(read, [TransportId { name: "iqn.2026-01.a:b".into(), isid: None }]);
        id[0] = 0; // Fibre Channel
        assert_eq!(parse_all(&id, 0).map_err(|sense| sense.code), Err(0x2600));
        id[0] = NAME_AND_ISID;
        assert!(parse_all(&id, 0).is_err(), "the ISID is missing");
    }

    #[test]
    fn short_odd_and_unended_ids_are_refused() {
        assert!(parse_all(&[NAME, 0, 0, 16, b'a', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 0).is_err());
        let full = [[NAME, 0, 0, 20].as_slice(), &[b'a'; 20]].concat();
        assert!(parse_all(&full, 0).is_err(), "no NUL");
        assert!(parse_all(&full[..23], 0).is_err(), "cut off");
    }
}
