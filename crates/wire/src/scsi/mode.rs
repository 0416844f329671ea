//! Mode pages (SPC-5 7.5, SBC-4 6.5): read-write error recovery, caching, control and its extension, informational exceptions,
//! logical block provisioning.

use super::cdb::ModeSense;
use super::opcodes;
use super::sense::Sense;
use super::{be16, be32};

/// The settings hosts may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Writes may end before the medium has the data (WCE).
    pub write_cache: bool,
    /// Sense data in descriptor format (D_SENSE).
    pub descriptor_sense: bool,
    /// Writes are refused (SWP).
    pub write_protect: bool,
    /// A unit attention tells when space for writes gets short (LBPERE).
    pub space_notices: bool,
}

/// As delivered.
pub const DEFAULTS: Settings =
    Settings { write_cache: true, descriptor_sense: false, write_protect: false, space_notices: true };

/// Every changeable bit set: what page control 01b shows.
const CHANGEABLE: Settings =
    Settings { write_cache: true, descriptor_sense: true, write_protect: true, space_notices: true };

const ERROR_RECOVERY: (u8, u8) = (0x01, 0);
const CACHING: (u8, u8) = (0x08, 0);
const CONTROL: (u8, u8) = (0x0a, 0);
const CONTROL_EXTENSION: (u8, u8) = (0x0a, 1);
const EXCEPTIONS: (u8, u8) = (0x1c, 0);
const PROVISIONING: (u8, u8) = (0x1c, 2);
/// The pages and subpages there are, in ascending order.
const PAGES: [(u8, u8); 6] = [ERROR_RECOVERY, CACHING, CONTROL, CONTROL_EXTENSION, EXCEPTIONS, PROVISIONING];
/// In MODE SENSE: every page, and every subpage.
const ALL_PAGES: u8 = 0x3f;
const ALL_SUBPAGES: u8 = 0xff;

/// The share of its space, in percent, with which a thin unit tells its hosts that space is short: mode page 1C/02.
pub const SPACE_LOW_PERCENT: u8 = 10;

/// Bytes of a page's own header: subpages have a longer one.
fn header_bytes(page: (u8, u8)) -> usize {
    if page.1 == 0 {
        2
    } else {
        4
    }
}

/// One page with `settings`; `mask` shows only what can be changed.
fn push_page(page: (u8, u8), settings: &Settings, mask: bool, out: &mut Vec<u8>) {
    let start = out.len();
    let length: u8 = match page {
        CACHING => 18,
        CONTROL_EXTENSION => 28,
        PROVISIONING => 20,
        _ => 10,
    };
    if page.1 == 0 {
        out.extend_from_slice(&[page.0, length]);
    } else {
        out.extend_from_slice(&[0x40 | page.0, page.1, 0, length]);
    }
    out.resize(start + header_bytes(page) + usize::from(length), 0);
    let data = &mut out[start..];
    match page {
        ERROR_RECOVERY => data[7] = u8::from(settings.space_notices) << 7, // LBPERE
        CACHING => data[2] = u8::from(settings.write_cache) << 2,
        CONTROL => {
            data[2] = u8::from(settings.descriptor_sense) << 2;
            data[4] = u8::from(settings.write_protect) << 3;
            if !mask {
                // One task set for all (TST), unrestricted reordering; a failed command stops no other (QERR); a task that another
                // initiator ended gets no status (TAS).
                data[3] = 0x10;
                data[8..10].copy_from_slice(&[0xff, 0xff]); // busy timeout: unlimited
            }
        }
        // IALUAE: groups change their state on their own, if there are groups that hosts can ask about.
        CONTROL_EXTENSION if !mask => data[4] = u8::from(opcodes::has(0xa3, Some(0x0a))),
        PROVISIONING if !mask => {
            // Enabled, a percentage, armed for a fall; of the provisioning resources that are available. All initiators are told.
            data[16..18].copy_from_slice(&[0x80 | 0x01 << 3, 0x03]);
            data[20..24].copy_from_slice(&u32::from(SPACE_LOW_PERCENT).to_be_bytes());
        }
        _ => {}
    }
}

/// What the header of MODE SENSE data says besides.
#[derive(Debug, Clone, Copy)]
pub struct Device {
    /// Size, in blocks.
    pub block_count: u64,
    /// Bytes of a block.
    pub block_bytes: u32,
    /// The WP bit: writes are refused for any reason.
    pub write_protected: bool,
}

/// MODE SENSE data. Errors: pages that do not exist, saved values: nothing is saved.
pub fn emit_sense(
    request: &ModeSense,
    settings: &Settings,
    device: &Device,
    out: &mut Vec<u8>,
) -> Result<(), Sense> {
    let (shown, mask) = match request.control {
        0 => (settings, false),
        1 => (&CHANGEABLE, true),
        2 => (&DEFAULTS, false),
        _ => return Err(Sense::SAVING_NOT_SUPPORTED),
    };
    let wanted = |&(page, subpage): &(u8, u8)| {
        (request.page == ALL_PAGES || request.page == page)
            && (request.subpage == ALL_SUBPAGES || request.subpage == subpage)
    };
    if request.page == ALL_PAGES && !matches!(request.subpage, 0 | ALL_SUBPAGES) {
        return Err(Sense::in_cdb(3, Some(7)));
    }
    if !PAGES.iter().any(wanted) {
        let known = PAGES.iter().any(|page| page.0 == request.page);
        return Err(if known { Sense::in_cdb(3, Some(7)) } else { Sense::in_cdb(2, Some(5)) });
    }
    let start = out.len();
    // WP, and DPOFUA: both bits are understood.
    let specific = u8::from(device.write_protected) << 7 | 0x10;
    let descriptor_bytes = if request.without_descriptors { 0 } else { 8 };
    if request.long {
        out.extend_from_slice(&[0, 0, 0, specific, 0, 0, 0, descriptor_bytes]);
    } else {
        out.extend_from_slice(&[0, 0, specific, descriptor_bytes]);
    }
    if !request.without_descriptors {
        let count = u32::try_from(device.block_count).unwrap_or(u32::MAX);
        out.extend_from_slice(&count.to_be_bytes());
        out.extend_from_slice(&device.block_bytes.to_be_bytes());
    }
    for page in PAGES.into_iter().filter(wanted) {
        push_page(page, shown, mask, out);
    }
    let bytes = out.len() - start;
    if request.long {
        out[start..start + 2].copy_from_slice(&((bytes - 2) as u16).to_be_bytes());
    } else {
        out[start] = (bytes - 1) as u8;
    }
    Ok(())
}

/// The settings after a MODE SELECT of `list`. Anything that would change what cannot be changed is refused whole
/// (SPC-4 6.10).
pub fn parse_select(
    list: &[u8],
    long: bool,
    settings: &Settings,
    device: &Device,
) -> Result<Settings, Sense> {
    if list.is_empty() {
        return Ok(*settings);
    }
    let header = if long { 8 } else { 4 };
    if list.len() < header {
        return Err(Sense::PARAMETER_LIST_LENGTH);
    }
    let descriptor_bytes = if long { usize::from(be16(list, 6)) } else { usize::from(list[3]) };
    if long && list[4] & 1 != 0 {
        return Err(Sense::in_parameters(4)); // LONGLBA
    }
    let mut at = header + descriptor_bytes;
    match descriptor_bytes {
        0 => {}
        8 if list.len() >= at => {
            let count = be32(list, header);
            let known = [0, u32::MAX, u32::try_from(device.block_count).unwrap_or(u32::MAX)];
            if !known.contains(&count) {
                return Err(Sense::in_parameters(header as u16));
            }
            if be32(list, header + 4) & 0xff_ffff != device.block_bytes {
                return Err(Sense::in_parameters(header as u16 + 5));
            }
        }
        8 => return Err(Sense::PARAMETER_LIST_LENGTH),
        _ => return Err(Sense::in_parameters(if long { 6 } else { 3 })),
    }
    let mut chosen = *settings;
    // Every turn consumes at least two bytes.
    while at < list.len() {
        let Some(&[code, second]) = list.get(at..at + 2).and_then(|b| b.first_chunk::<2>()) else {
            return Err(Sense::PARAMETER_LIST_LENGTH);
        };
        let has_subpage = code & 0x40 != 0;
        let page = (code & 0x3f, if has_subpage { second } else { 0 });
        if code & 0x80 != 0 || !PAGES.contains(&page) || has_subpage != (page.1 != 0) {
            return Err(Sense::in_parameters(at as u16));
        }
        let header = header_bytes(page);
        let length = if has_subpage { usize::from(be16(list, at + 2)) } else { usize::from(second) };
        let end = at + header + length;
        let Some(given) = list.get(at..end) else {
            return Err(Sense::PARAMETER_LIST_LENGTH);
        };
        let (mut current, mut changeable) = (Vec::new(), Vec::new());
        push_page(page, settings, false, &mut current);
        push_page(page, &CHANGEABLE, true, &mut changeable);
        if given.len() != current.len() {
            return Err(Sense::in_parameters((at + header) as u16 - 1));
        }
        for i in header..given.len() {
            if (given[i] ^ current[i]) & !changeable[i] != 0 {
                return Err(Sense::in_parameters((at + i) as u16));
            }
        }
        match page {
            ERROR_RECOVERY => chosen.space_notices = given[7] & 0x80 != 0,
            CACHING => chosen.write_cache = given[2] & 0x04 != 0,
            CONTROL => {
                chosen.descriptor_sense = given[2] & 0x04 != 0;
                chosen.write_protect = given[4] & 0x08 != 0;
            }
            _ => {}
        }
        at = end;
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DEVICE: Device = Device { block_count: 2048, block_bytes: 512, write_protected: false };

    fn sense(long: bool, control: u8, page: u8) -> Result<Vec<u8>, Sense> {
        subpage(long, control, (page, 0))
    }

    fn subpage(long: bool, control: u8, (page, subpage): (u8, u8)) -> Result<Vec<u8>, Sense> {
        let mut out = Vec::new();
        let request =
            ModeSense { long, without_descriptors: false, control, page, subpage, allocation_bytes: 255 };
        emit_sense(&request, &DEFAULTS, &DEVICE, &mut out).map(|()| out)
    }

    #[test]
    fn what_sense_says_select_accepts() {
        for long in [false, true] {
            let list = subpage(long, 0, (0x3f, 0xff)).unwrap();
            let chosen = parse_select(&list, long, &DEFAULTS, &DEVICE).unwrap();
            assert_eq!(chosen, DEFAULTS);
        }
    }

    #[test]
    fn a_changeable_bit_changes_and_another_is_refused() {
        let mut list = sense(false, 0, CACHING.0).unwrap();
        list[12 + 2] = 0;
        let chosen = parse_select(&list, false, &DEFAULTS, &DEVICE).unwrap();
        assert!(!chosen.write_cache);
        list[12 + 3] = 1;
        assert!(parse_select(&list, false, &DEFAULTS, &DEVICE).is_err());
        assert_eq!(sense(false, 3, CACHING.0), Err(Sense::SAVING_NOT_SUPPORTED));
        assert!(sense(false, 0, 0x02).is_err());
    }

    #[test]
    fn subpages_come_when_asked_for_and_not_with_page_0_of_all() {
        let of = |page| subpage(false, 0, page).map(|out| out[12..].to_vec());
        let threshold = of(PROVISIONING).unwrap();
        assert_eq!(threshold[..4], [0x5c, 2, 0, 20]);
        assert_eq!((threshold[16], threshold[17], threshold[23]), (0x88, 3, SPACE_LOW_PERCENT));
        let extension = of(CONTROL_EXTENSION).unwrap();
        assert_eq!(extension[..4], [0x4a, 1, 0, 28]);
        let both = of((0x0a, 0xff)).unwrap();
        assert_eq!((both[0], both[12]), (0x0a, 0x4a));
        assert!(of((0x3f, 0xff)).unwrap().len() > of((0x3f, 0)).unwrap().len());
        for absent in [(0x0a, 2), (0x3f, 1), (0x08, 1)] {
            assert_eq!(of(absent).map_err(|s| s.code), Err(0x2400), "{absent:?}");
        }
    }

    proptest! {
        #[test]
        fn any_list_is_settings_or_a_sense(list in proptest::collection::vec(any::<u8>(), 0..300), long: bool) {
            let _ = parse_select(&list, long, &DEFAULTS, &DEVICE);
        }
    }
}
