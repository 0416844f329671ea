//! Target port groups: how well a unit can be reached through which ports (SPC-4 5.15, 6.36, 6.45).

use super::be16;
use super::sense::Sense;

/// Asymmetric access states (SPC-4 table 306).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum AccessState {
    /// Every command, as fast as can be.
    #[default]
    Optimized = 0,
    /// Every command; hosts prefer another group if there is one.
    NonOptimized = 1,
    /// Commands about the unit, not about its blocks.
    Standby = 2,
    /// Commands about ports and identity alone.
    Unavailable = 3,
}

impl AccessState {
    /// From the ASYMMETRIC ACCESS STATE field: those that can be set.
    pub fn from_code(code: u8) -> Option<AccessState> {
        use AccessState::*;
        [Optimized, NonOptimized, Standby, Unavailable].into_iter().find(|state| *state as u8 == code)
    }
}

/// T_SUP, O_SUP, LBD_SUP zero; U_SUP, S_SUP, AN_SUP, AO_SUP.
const SUPPORTED: u8 = 0x0f;

/// A target port group, for REPORT TARGET PORT GROUPS.
#[derive(Debug, Clone, Copy)]
pub struct Group<'a> {
    /// TARGET PORT GROUP.
    pub id: u16,
    /// Its state.
    pub state: AccessState,
    /// SET TARGET PORT GROUPS put it there.
    pub set_by_command: bool,
    /// Relative target port identifiers of its ports.
    pub ports: &'a [u16],
}

/// REPORT TARGET PORT GROUPS data (SPC-4 6.36), of one group; with the extended header or the length alone.
pub fn emit_groups(group: &Group<'_>, extended: bool, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    if extended {
        // FORMAT TYPE 001b; no time to wait for transitions, as they are done at once.
        out.extend_from_slice(&[0x10, 0, 0, 0]);
    }
    let [high, low] = group.id.to_be_bytes();
    let status = u8::from(group.set_by_command);
    out.extend_from_slice(&[group.state as u8, SUPPORTED, high, low, 0, status, 0, group.ports.len() as u8]);
    // The count has eight bits.
    for port in group.ports.iter().take(255) {
        let [high, low] = port.to_be_bytes();
        out.extend_from_slice(&[0, 0, high, low]);
    }
    let bytes = ((out.len() - start - 4) as u32).to_be_bytes();
    out[start..start + 4].copy_from_slice(&bytes);
}

/// Reads the parameter list of SET TARGET PORT GROUPS (SPC-4 6.45): the state that each of its descriptors wants for the group
/// `id`. Errors: descriptors cut off, another group, a state that cannot be set, one group twice.
pub fn parse_set(list: &[u8], id: u16) -> Result<Option<AccessState>, Sense> {
    if list.is_empty() {
        return Ok(None);
    }
    if list.len() < 4 || list.len() % 4 != 0 {
        return Err(Sense::PARAMETER_LIST_LENGTH);
    }
    let mut wanted = None;
    for at in (4..list.len()).step_by(4) {
        let fault = |offset: usize| Sense::in_parameters(u16::try_from(at + offset).unwrap_or(u16::MAX));
        if be16(list, at + 2) != id || wanted.is_some() {
            return Err(fault(2));
        }
        wanted = Some(AccessState::from_code(list[at] & 0x0f).ok_or(fault(0))?);
    }
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_list_is_read_or_refused(list in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _ = parse_set(&list, 1);
        }
    }

    #[test]
    fn a_group_is_told_with_its_ports_under_either_header() {
        let group = Group { id: 1, state: AccessState::Standby, set_by_command: true, ports: &[1, 7] };
        let mut out = Vec::new();
        emit_groups(&group, false, &mut out);
        assert_eq!(out, [0, 0, 0, 16, 2, 0x0f, 0, 1, 0, 1, 0, 2, 0, 0, 0, 1, 0, 0, 0, 7]);
        out.clear();
        emit_groups(&group, true, &mut out);
        assert_eq!(out[..9], [0, 0, 0, 20, 0x10, 0, 0, 0, 2]);
    }

    #[test]
    fn only_states_that_can_be_set_are_taken_and_only_for_the_group_there_is() {
        let list = |state: u8, id: u8| [0, 0, 0, 0, state, 0, 0, id];
        assert_eq!(parse_set(&list(2, 1), 1), Ok(Some(AccessState::Standby)));
        assert_eq!(parse_set(&[], 1), Ok(None));
        assert_eq!(parse_set(&[0; 4], 1), Ok(None));
        for (state, id) in [(4, 1), (0x0e, 1), (0x0f, 1), (2, 2)] {
            assert_eq!(parse_set(&list(state, id), 1).map_err(|s| s.code), Err(0x2600));
        }
        let twice = [list(1, 1).as_slice(), &[2, 0, 0, 1]].concat();
        assert!(parse_set(&twice, 1).is_err());
        assert_eq!(parse_set(&[0; 6], 1), Err(Sense::PARAMETER_LIST_LENGTH));
    }
}
