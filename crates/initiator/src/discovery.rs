//! What an array has: its targets by SendTargets (RFC 7143 appendix C), and their LUNs by REPORT LUNS (SPC-4 6.33).

use crate::blocking::{Blocking, Error};
use crate::login::parse_address;
use crate::remote::Remote;
use crate::task::Task;
use playhead_wire::iscsi::{lun_number, text};
use std::net::SocketAddr;
use std::time::Duration;

/// Most targets taken from one answer.
const TARGETS_MAX: usize = 4096;
/// Most LUNs taken from one answer.
const LUNS_MAX: usize = 1024;
/// Times a command is repeated that ends in a unit attention, or finds the target busy.
const TRIES: usize = 16;

/// A target as an array tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// iSCSI name.
    pub iqn: String,
    /// Where it may be reached.
    pub portals: Vec<SocketAddr>,
}

/// The targets that the portals of `remote` tell of.
///
/// Errors: [`Error`].
pub fn targets(remote: &Remote, limit: Duration) -> Result<Vec<Found>, Error> {
    let discovery = Remote { target: None, ..remote.clone() };
    let answer = Blocking::new(discovery).send_targets(limit)?;
    Ok(parse_targets(&answer))
}

fn parse_targets(answer: &[u8]) -> Vec<Found> {
    let mut found: Vec<Found> = Vec::new();
    // Not `text::pairs`, which ends after as many pairs as a negotiation may have.
    for part in answer.split(|&byte| byte == 0).filter_map(|part| std::str::from_utf8(part).ok()) {
        match part.split_once('=') {
            Some(("TargetName", iqn)) if found.len() < TARGETS_MAX && text::is_iscsi_name(iqn) => {
                found.push(Found { iqn: iqn.to_owned(), portals: Vec::new() });
            }
            Some(("TargetAddress", address)) => {
                if let (Some(target), Some(address)) = (found.last_mut(), parse_address(address)) {
                    target.portals.push(address);
                }
            }
            _ => {}
        }
    }
    found
}

/// A LUN of a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundLun {
    /// Its number.
    pub number: u16,
    /// Peripheral device type (SPC-4 table 142); 0 is a disk.
    pub device_type: u8,
    /// Vendor, product and revision.
    pub identification: [String; 3],
    /// Blocks; 0 if it does not say.
    pub block_count: u64,
    /// Bytes of a block.
    pub block_bytes: u32,
    /// Unmapped blocks read as zeros for certain (LBPME and LBPRZ).
    pub reads_zeros: bool,
    /// Its own names, as VPD page 83h has them for the logical unit, in hexadecimal.
    pub names: Vec<String>,
}

/// Runs a command that changes nothing, past unit attentions and busy moments. `None`: it ends otherwise than GOOD.
///
/// Errors: [`Error`].
pub fn ask(
    array: &mut Blocking,
    number: u16,
    cdb: &[u8],
    bytes: u32,
    limit: Duration,
) -> Result<Option<Vec<u8>>, Error> {
    let mut padded = [0; 16];
    let len = cdb.len().min(16);
    padded[..len].copy_from_slice(&cdb[..len]);
    for attempt in 0..TRIES {
        let lun = playhead_wire::iscsi::lun_bytes(number);
        let task = Task { lun, cdb: padded, attribute: 1, read_bytes: bytes, ..Task::default() };
        let answer = array.run(task, limit)?;
        match (answer.status, answer.sense_code()) {
            (0, _) => return Ok(Some(answer.data)),
            (2, Some((6, _, _))) => {}
            (0x08 | 0x28, _) => std::thread::sleep(Duration::from_millis(10 << attempt.min(6))),
            _ => return Ok(None),
        }
    }
    Ok(None)
}

/// The LUNs of the target that `array` is a session with.
///
/// Errors: [`Error`].
pub fn luns(array: &mut Blocking, limit: Duration) -> Result<Vec<FoundLun>, Error> {
    let bytes = 8 + 8 * LUNS_MAX as u32;
    let mut cdb = [0; 12];
    cdb[0] = 0xa0;
    cdb[6..10].copy_from_slice(&bytes.to_be_bytes());
    let list = ask(array, 0, &cdb, bytes, limit)?.unwrap_or_default();
    let numbers = list.get(8..).unwrap_or_default().chunks_exact(8).filter_map(|raw| {
        let raw: [u8; 8] = raw.try_into().ok()?;
        lun_number(raw)
    });
    let mut found = Vec::new();
    for number in numbers.collect::<Vec<_>>() {
        if let Some(lun) = look_at(array, number, limit)? {
            found.push(lun);
        }
    }
    Ok(found)
}

/// What one LUN is. `None`: there is nothing behind the number.
///
/// Errors: [`Error`].
pub fn look_at(array: &mut Blocking, number: u16, limit: Duration) -> Result<Option<FoundLun>, Error> {
    let Some(inquiry) = ask(array, number, &[0x12, 0, 0, 0, 96, 0], 96, limit)? else {
        return Ok(None);
    };
    let first = inquiry.first().copied().unwrap_or(0x7f);
    if first >> 5 != 0 || inquiry.len() < 36 {
        return Ok(None);
    }
    let words = |range: std::ops::Range<usize>| String::from_utf8_lossy(&inquiry[range]).trim().to_owned();
    let (block_count, block_bytes, reads_zeros) =
        if first & 0x1f == 0 { capacity(array, number, limit)? } else { (0, 0, false) };
    Ok(Some(FoundLun {
        number,
        device_type: first & 0x1f,
        identification: [words(8..16), words(16..32), words(32..36)],
        block_count,
        block_bytes,
        reads_zeros,
        names: names(array, number, limit)?,
    }))
}

fn capacity(array: &mut Blocking, number: u16, limit: Duration) -> Result<(u64, u32, bool), Error> {
    let mut cdb = [0; 16];
    (cdb[0], cdb[1], cdb[13]) = (0x9e, 0x10, 32);
    if let Some(answer) = ask(array, number, &cdb, 32, limit)? {
        if let (Some(last), Some(bytes)) = (answer.first_chunk::<8>(), answer.get(8..12)) {
            let bytes = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            let reads_zeros = answer.get(14).is_some_and(|flags| flags & 0xc0 == 0xc0);
            return Ok((u64::from_be_bytes(*last).saturating_add(1), bytes, reads_zeros));
        }
    }
    if let Some(answer) = ask(array, number, &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], 8, limit)? {
        if let Some([a, b, c, d, e, f, g, h]) = answer.first_chunk::<8>() {
            let last = u32::from_be_bytes([*a, *b, *c, *d]);
            return Ok((u64::from(last) + 1, u32::from_be_bytes([*e, *f, *g, *h]), false));
        }
    }
    Ok((0, 0, false))
}

/// Binary designators of the logical unit, NAA first (SPC-4 7.8.5).
fn names(array: &mut Blocking, number: u16, limit: Duration) -> Result<Vec<String>, Error> {
    let page = ask(array, number, &[0x12, 1, 0x83, 4, 0, 0], 1024, limit)?.unwrap_or_default();
    let mut names = designators(&page);
    names.sort_by_key(|(kind, _)| *kind != 3);
    Ok(names.into_iter().map(|(_, name)| name.iter().map(|byte| format!("{byte:02x}")).collect()).collect())
}

/// The logical unit's binary designators of a page 83h: type and bytes.
pub fn designators(page: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut found = Vec::new();
    let mut rest = page.get(4..).unwrap_or_default();
    while let [code, kind, _, len, tail @ ..] = rest {
        let len = usize::from(*len);
        if len > tail.len() {
            break;
        }
        // Association 0: the logical unit; types 2 (EUI-64) and 3 (NAA).
        if kind >> 4 & 3 == 0 && matches!(kind & 0x0f, 2 | 3) && code & 0x0f == 1 && len > 0 {
            found.push((kind & 0x0f, tail[..len].to_vec()));
        }
        rest = &tail[len..];
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_read_with_their_portals_and_nonsense_is_passed_over() {
        let answer = b"TargetName=iqn.a\0TargetAddress=127.0.0.1:3260,1\0TargetAddress=[::1]:3261,1\0TargetName=bad\0\xff\0TargetName=iqn.b\0";
        let found = parse_targets(answer);
        assert_eq!(
            found.iter().map(|t| (t.iqn.as_str(), t.portals.len())).collect::<Vec<_>>(),
            [("iqn.a", 2), ("iqn.b", 0)]
        );
    }

    #[test]
    fn designators_stop_at_a_length_that_lies() {
        let page = [0, 0x83, 0, 20, 1, 3, 0, 2, 0x60, 1, 1, 3, 0, 99, 0];
        assert_eq!(designators(&page), [(3, vec![0x60, 1])]);
        assert!(designators(&[0, 0x83]).is_empty());
    }
}
