//! What a target and its units say about themselves.

use super::copy;
use super::limits;
use super::nexus::Nexus;
use super::policy::Offload;
use super::unit::{LogicalUnit, Refusal};
use playhead_wire::scsi::inquiry::{self, Identity};
use playhead_wire::scsi::opcodes::Opcode;
use playhead_wire::scsi::{capacity, opcodes, third_party, Command, Sense};

/// T10 vendor identification.
const VENDOR: &str = "PLAYHEAD";
const PRODUCT: &str = "VOLUME";
const REVISION: &str = concat!(env!("CARGO_PKG_VERSION_MAJOR"), ".", env!("CARGO_PKG_VERSION_MINOR"));
/// The tag of the one target portal group, which is the target port group too.
pub(crate) const PORTAL_GROUP: u16 = 1;

/// INQUIRY, standard data or a vital product data page.
pub(super) fn inquiry(
    unit: &LogicalUnit,
    nexus: &Nexus,
    page: Option<u8>,
    data_in: &mut Vec<u8>,
) -> Result<(), Sense> {
    let identity = Identity {
        vendor: VENDOR,
        product: PRODUCT,
        revision: REVISION,
        serial: &unit.serial,
        naa: unit.naa,
        target_name: &unit.target.name,
        relative_port: unit.target.relative_id,
        portal_group: PORTAL_GROUP,
    };
    match page {
        Some(third_party::PAGE) => {
            if !copy::third_party_page(unit, nexus, data_in) {
                return Err(Sense::in_cdb(2, Some(7)));
            }
        }
        None => {
            // The standard's bit for commands that copy, if there are any and policy leaves one.
            let offloads = nexus.offloads();
            let copies = opcodes::SUPPORTED.iter().any(|known| {
                matches!(Offload::of_opcode(known.code, known.service_action),
                    Some(offload @ (Offload::Xcopy | Offload::Odx)) if offloads.contains(offload))
            });
            inquiry::emit_standard(&identity, inquiry::PRESENT, copies, data_in);
        }
        Some(page) => {
            let limits = unit.limits_for(nexus);
            if !inquiry::emit_page(page, &identity, &limits, &limits::thin(nexus), data_in) {
                return Err(Sense::in_cdb(2, Some(7)));
            }
            if page == 0x00 && copy::third_party_page(unit, nexus, &mut Vec::new()) {
                add_page(data_in, third_party::PAGE);
            }
        }
    }
    Ok(())
}

/// Adds `page` to a list of vital product data pages, which ascend.
fn add_page(list: &mut Vec<u8>, page: u8) {
    if let Some(pages) = list.get(4..) {
        let at = 4 + pages.partition_point(|&other| other < page);
        list.insert(at, page);
        list[3] += 1;
    }
}

/// REPORT SUPPORTED OPERATION CODES (SPC-4 6.30), as this initiator finds them.
pub(super) fn opcodes(
    unit: &LogicalUnit,
    nexus: &Nexus,
    timeouts: bool,
    options: u8,
    opcode: u8,
    service_action: u16,
    data_in: &mut Vec<u8>,
) -> Result<(), Sense> {
    let offloads = nexus.offloads();
    let allowed = |known: &&Opcode| {
        let is_there = known.code != opcodes::WRITE_ATOMIC || unit.limits().atomic > 0;
        is_there && copy::offered(unit, offloads, known.code, known.service_action)
    };
    let mut of_code = opcodes::SUPPORTED.iter().filter(|known| known.code == opcode).filter(allowed);
    let has_actions = of_code.clone().any(|known| known.service_action.is_some());
    match options {
        0 => opcodes::emit_all(opcodes::SUPPORTED.iter().filter(allowed), timeouts, data_in),
        1 if has_actions => return Err(Sense::in_cdb(2, Some(2))),
        1 => opcodes::emit_one(of_code.next(), timeouts, data_in),
        2 if of_code.clone().next().is_some() && !has_actions => {
            return Err(Sense::in_cdb(2, Some(2)));
        }
        2 | 3 => {
            let wanted = has_actions.then_some(service_action);
            let found =
                of_code.find(|known| known.service_action == wanted && (has_actions || service_action == 0));
            opcodes::emit_one(found, timeouts, data_in);
        }
        _ => return Err(Sense::in_cdb(2, Some(2))),
    }
    Ok(())
}

/// REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS (SPC-4 6.31): abort task, abort and clear task set, logical unit, target and I_T nexus
/// reset, query task and task set.
pub(super) fn task_management(extended: bool, data_in: &mut Vec<u8>) {
    // ATS, ATSS, CTSS, LURS, QTS, TRS; QTSS, ITNRS.
    data_in.extend_from_slice(&[0x80 | 0x40 | 0x10 | 0x08 | 0x04 | 0x02, 0x02 | 0x01, 0, 0]);
    if extended {
        data_in[3] = 12;
        data_in.extend_from_slice(&[0; 12]);
    }
}

/// REPORT LUNS (SPC-4 6.33) over `luns`, in ascending order. The well-known units selected by 01h do not exist.
pub fn report_luns(
    luns: impl Iterator<Item = u16>,
    select: u8,
    allocation_bytes: u32,
    data_in: &mut Vec<u8>,
) -> Result<(), Refusal> {
    if allocation_bytes < 16 {
        return Err(Sense::in_cdb(6, Some(7)).into());
    }
    match select {
        // 11h is those that no administrative unit has under it: all. There are no administrative ones (10h).
        0 | 2 | 0x11 => capacity::emit_luns(luns, data_in),
        1 | 0x10 => capacity::emit_luns(std::iter::empty(), data_in),
        _ => return Err(Sense::in_cdb(2, Some(7)).into()),
    }
    data_in.truncate(allocation_bytes as usize);
    Ok(())
}

/// Answers for a LUN at which nothing is (SPC-4 5.11): INQUIRY and REQUEST SENSE say so, the rest is refused.
pub fn execute_without_unit(command: &Command, data_in: &mut Vec<u8>) -> Result<(), Refusal> {
    match *command {
        Command::Inquiry { page: None, allocation_bytes } => {
            let identity = Identity {
                vendor: VENDOR,
                product: PRODUCT,
                revision: REVISION,
                serial: "",
                naa: [0; 16],
                target_name: "",
                relative_port: 0,
                portal_group: PORTAL_GROUP,
            };
            inquiry::emit_standard(&identity, inquiry::ABSENT, false, data_in);
            data_in.truncate(allocation_bytes as usize);
            Ok(())
        }
        Command::Inquiry { .. } => Err(Sense::in_cdb(2, Some(7)).into()),
        Command::RequestSense { descriptor, allocation_bytes } => {
            Sense::LUN_NOT_SUPPORTED.emit(descriptor, data_in);
            data_in.truncate(allocation_bytes as usize);
            Ok(())
        }
        _ => Err(Sense::LUN_NOT_SUPPORTED.into()),
    }
}
