//! The commands there are, as REPORT SUPPORTED OPERATION CODES tells them (SPC-4 6.30).

/// One supported command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opcode {
    /// Operation code.
    pub code: u8,
    /// Service action, for codes that have them.
    pub service_action: Option<u16>,
    /// CDB usage data: which bits the device looks at; its length is the CDB's.
    pub usage: &'static [u8],
}

/// WRITE ATOMIC (16), which not every unit has.
pub const WRITE_ATOMIC: u8 = 0x9c;

const fn op(code: u8, usage: &'static [u8]) -> Opcode {
    Opcode { code, service_action: None, usage }
}

const fn sa(code: u8, service_action: u16, usage: &'static [u8]) -> Opcode {
    Opcode { code, service_action: Some(service_action), usage }
}

const F: u8 = 0xff;
/// The CONTROL byte: NACA is looked at.
const C: u8 = 0x04;

/// Every supported command, by code and service action.
#[rustfmt::skip]
pub const SUPPORTED: &[Opcode] = &[
    op(0x00, &[0x00, 0, 0, 0, 0, C]),
    op(0x03, &[0x03, 1, 0, 0, F, C]),
    op(0x04, &[0x04, F, 0, 0, 3, C]),
    op(0x08, &[0x08, 0x1f, F, F, F, C]),
    op(0x0a, &[0x0a, 0x1f, F, F, F, C]),
    op(0x12, &[0x12, 0x03, F, F, F, C]),
    op(0x15, &[0x15, 0x11, 0, 0, F, C]),
    op(0x16, &[0x16, 0x11, 0, 0, 0, C]),
    op(0x17, &[0x17, 0x11, 0, 0, 0, C]),
    op(0x1a, &[0x1a, 0x08, F, F, F, C]),
    op(0x1b, &[0x1b, 0x01, 0, 0, 0xf7, C]),
    op(0x1e, &[0x1e, 0, 0, 0, 3, C]),
    op(0x25, &[0x25, 0, F, F, F, F, 0, 0, 1, C]),
    op(0x28, &[0x28, 0xf8, F, F, F, F, 0, F, F, C]),
    op(0x2a, &[0x2a, 0xf8, F, F, F, F, 0, F, F, C]),
    op(0x2e, &[0x2e, 0xf6, F, F, F, F, 0, F, F, C]),
    op(0x2f, &[0x2f, 0xf6, F, F, F, F, 0, F, F, C]),
    op(0x34, &[0x34, 0x02, F, F, F, F, 0, F, F, C]),
    op(0x35, &[0x35, 0x02, F, F, F, F, 0, F, F, C]),
    op(0x37, &[0x37, 0, 0x1f, 0, 0, 0, 0, F, F, C]),
    op(0x41, &[0x41, 0xff, F, F, F, F, 0, F, F, C]),
    op(0x42, &[0x42, 0x01, 0, 0, 0, 0, 0, F, F, C]),
    sa(0x48, 0x01, &[0x48, F, F, F, F, F, F, F, F, C]),
    sa(0x48, 0x02, &[0x48, F, F, F, F, F, F, F, F, C]),
    sa(0x48, 0x03, &[0x48, F, F, F, F, F, F, F, F, C]),
    sa(0x48, 0x1f, &[0x48, F, F, F, F, F, F, F, F, C]),
    op(0x4c, &[0x4c, 0x03, 0xff, F, 0, 0, 0, F, F, C]),
    op(0x4d, &[0x4d, 0x03, 0xff, F, 0, F, F, F, F, C]),
    op(0x55, &[0x55, 0x11, 0, 0, 0, 0, 0, F, F, C]),
    op(0x56, &[0x56, 0x13, 0, 0, 0, 0, 0, F, F, C]),
    op(0x57, &[0x57, 0x13, 0, 0, 0, 0, 0, F, F, C]),
    op(0x5a, &[0x5a, 0x18, F, F, 0, 0, 0, F, F, C]),
    sa(0x5e, 0, &[0x5e, 0x1f, 0, 0, 0, 0, 0, F, F, C]),
    sa(0x5e, 1, &[0x5e, 0x1f, 0, 0, 0, 0, 0, F, F, C]),
    sa(0x5e, 2, &[0x5e, 0x1f, 0, 0, 0, 0, 0, F, F, C]),
    sa(0x5e, 3, &[0x5e, 0x1f, 0, 0, 0, 0, 0, F, F, C]),
    sa(0x5f, 0, &[0x5f, 0x1f, F, 0, 0, F, F, F, F, C]),
    sa(0x5f, 1, &[0x5f, 0x1f, F, 0, 0, F, F, F, F, C]),
    sa(0x5f, 2, &[0x5f, 0x1f, F, 0, 0, F, F, F, F, C]),
    sa(0x5f, 3, &[0x5f, 0x1f, F, 0, 0, F, F, F, F, C]),
    sa(0x5f, 4, &[0x5f, 0x1f, F, 0, 0, F, F, F, F, C]),
    sa(0x5f, 5, &[0x5f, 0x1f, F, 0, 0, F, F, F, F, C]),
    sa(0x5f, 6, &[0x5f, 0x1f, F, 0, 0, F, F, F, F, C]),
    sa(0x5f, 7, &[0x5f, 0x1f, F, 0, 0, F, F, F, F, C]),
    sa(0x5f, 8, &[0x5f, 0x1f, F, 0, 0, F, F, F, F, C]),
    sa(0x83, 0x00, &[0x83, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0, F, F, F, F, 0, C]),
    sa(0x83, 0x01, &[0x83, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0, F, F, F, F, 0, C]),
    sa(0x83, 0x10, &[0x83, 0x1f, 0, 0, 0, 0, F, F, F, F, F, F, F, F, 0, C]),
    sa(0x83, 0x11, &[0x83, 0x1f, 0, 0, 0, 0, F, F, F, F, F, F, F, F, 0, C]),
    sa(0x83, 0x1c, &[0x83, 0x1f, F, F, F, F, 0, 0, 0, 0, 0, 0, 0, 0, 0, C]),
    sa(0x84, 0x00, &[0x84, 0x1f, F, 0, 0, 0, 0, 0, 0, 0, F, F, F, F, 0, C]),
    sa(0x84, 0x01, &[0x84, 0x1f, F, 0, 0, 0, 0, 0, 0, 0, F, F, F, F, 0, C]),
    sa(0x84, 0x03, &[0x84, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0, F, F, F, F, 0, C]),
    sa(0x84, 0x04, &[0x84, 0x1f, F, 0, 0, 0, 0, 0, 0, 0, F, F, F, F, 0, C]),
    sa(0x84, 0x05, &[0x84, 0x1f, F, F, F, F, 0, 0, 0, 0, F, F, F, F, 0, C]),
    sa(0x84, 0x06, &[0x84, 0x1f, F, F, F, F, 0, 0, 0, 0, F, F, F, F, 0, C]),
    sa(0x84, 0x07, &[0x84, 0x1f, F, F, F, F, 0, 0, 0, 0, F, F, F, F, 0, C]),
    sa(0x84, 0x08, &[0x84, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0, F, F, F, F, 0, C]),
    op(0x88, &[0x88, 0xf8, F, F, F, F, F, F, F, F, F, F, F, F, 0, C]),
    op(0x89, &[0x89, 0xf8, F, F, F, F, F, F, F, F, 0, 0, 0, F, 0, C]),
    op(0x8a, &[0x8a, 0xf8, F, F, F, F, F, F, F, F, F, F, F, F, 0, C]),
    op(0x8b, &[0x8b, 0xf8, F, F, F, F, F, F, F, F, F, F, F, F, 0, C]),
    op(0x8e, &[0x8e, 0xf6, F, F, F, F, F, F, F, F, F, F, F, F, 0, C]),
    op(0x8f, &[0x8f, 0xf6, F, F, F, F, F, F, F, F, F, F, F, F, 0, C]),
    op(0x90, &[0x90, 0x02, F, F, F, F, F, F, F, F, F, F, F, F, 0, C]),
    op(0x91, &[0x91, 0x02, F, F, F, F, F, F, F, F, F, F, F, F, 0, C]),
    op(0x93, &[0x93, 0xff, F, F, F, F, F, F, F, F, F, F, F, F, 0, C]),
    op(WRITE_ATOMIC, &[0x9c, 0xf8, F, F, F, F, F, F, F, F, F, F, F, F, 0, C]),
    sa(0x9e, 0x10, &[0x9e, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0, F, F, F, F, 0, C]),
    sa(0x9e, 0x12, &[0x9e, 0x1f, F, F, F, F, F, F, F, F, F, F, F, F, 0, C]),
    op(0xa0, &[0xa0, 0, F, 0, 0, 0, F, F, F, F, 0, C]),
    sa(0xa3, 0x0a, &[0xa3, 0xff, 0, 0, 0, 0, F, F, F, F, 0, C]),
    sa(0xa3, 0x0c, &[0xa3, 0x1f, 0x87, F, F, F, F, F, F, F, 0, C]),
    sa(0xa3, 0x0d, &[0xa3, 0x1f, 0x80, 0, 0, 0, F, F, F, F, 0, C]),
    sa(0xa4, 0x0a, &[0xa4, 0x1f, 0, 0, 0, 0, F, F, F, F, 0, C]),
    op(0xa8, &[0xa8, 0xf8, F, F, F, F, F, F, F, F, 0, C]),
    op(0xaa, &[0xaa, 0xf8, F, F, F, F, F, F, F, F, 0, C]),
    op(0xae, &[0xae, 0xf6, F, F, F, F, F, F, F, F, 0, C]),
    op(0xaf, &[0xaf, 0xf6, F, F, F, F, F, F, F, F, 0, C]),
    op(0xb7, &[0xb7, 0x1f, 0, 0, 0, 0, F, F, F, F, 0, C]),
];

/// Whether a command is supported.
pub fn has(code: u8, service_action: Option<u16>) -> bool {
    SUPPORTED.iter().any(|known| known.code == code && known.service_action == service_action)
}

/// Command timeouts descriptor (SPC-4 6.30.4): none recommended.
fn push_timeouts(out: &mut Vec<u8>) {
    out.extend_from_slice(&[0, 0x0a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
}

/// The list of `commands` (reporting options 000b).
pub fn emit_all<'a>(commands: impl Iterator<Item = &'a Opcode>, timeouts: bool, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    for command in commands {
        let [high, low] = command.service_action.unwrap_or(0).to_be_bytes();
        let flags = u8::from(timeouts) << 1 | u8::from(command.service_action.is_some());
        let length = command.usage.len() as u8;
        out.extend_from_slice(&[command.code, 0, high, low, 0, flags, 0, length]);
        if timeouts {
            push_timeouts(out);
        }
    }
    let bytes = ((out.len() - start - 4) as u32).to_be_bytes();
    out[start..start + 4].copy_from_slice(&bytes);
}

/// The answer about one command; `None` says it is not supported (reporting options 001b to 011b).
pub fn emit_one(command: Option<&Opcode>, timeouts: bool, out: &mut Vec<u8>) {
    let Some(command) = command else {
        out.extend_from_slice(&[0, 0x01, 0, 0]);
        return;
    };
    let flags = u8::from(timeouts) << 7 | 0x03;
    out.extend_from_slice(&[0, flags, 0, command.usage.len() as u8]);
    out.extend_from_slice(command.usage);
    if timeouts {
        push_timeouts(out);
    }
}

#[cfg(test)]
mod tests {
    use super::super::cdb::Command;
    use super::*;

    /// What a CDB comes to, where "refused" is one outcome whatever is blamed.
    fn outcome(cdb: &[u8; 16]) -> Option<Command> {
        Command::parse(cdb).ok()
    }

    #[test]
    fn usage_data_has_the_bits_that_matter_and_no_others() {
        let mut wrong = Vec::new();
        for known in SUPPORTED {
            let mut zeros = [0u8; 16];
            zeros[0] = known.code;
            if let Some(action) = known.service_action {
                zeros[1] = action as u8;
            }
            // Of these, one is accepted by every command: MODE SELECT wants PF.
            let mut with_pf = zeros;
            with_pf[1] |= 0x10;
            let base = [zeros, with_pf].into_iter().find(|cdb| outcome(cdb).is_some());
            let base = base.unwrap_or_else(|| panic!("{known:x?} is refused"));
            for bit in 8..8 * known.usage.len() {
                let mut cdb = base;
                cdb[bit / 8] ^= 0x80 >> (bit % 8);
                let matters = outcome(&cdb) != outcome(&base);
                let listed = known.usage[bit / 8] & 0x80 >> (bit % 8) != 0;
                if matters && !listed {
                    wrong.push((known.code, known.service_action, bit / 8, 7 - bit % 8));
                }
            }
        }
        assert!(wrong.is_empty(), "code, service action, byte and bit: {wrong:x?}");
    }

    #[test]
    fn the_table_and_the_parser_know_the_same_commands() {
        for code in 0..=255u8 {
            let mut cdb = [0u8; 16];
            cdb[0] = code;
            let parses = Command::parse(&cdb) != Err(super::super::Sense::INVALID_OPCODE);
            let listed = SUPPORTED.iter().any(|o| o.code == code);
            assert_eq!(parses, listed, "{code:#04x}");
        }
        for known in SUPPORTED {
            assert_eq!(known.usage[0], known.code);
            let length = match known.code >> 5 {
                0 => 6,
                1 | 2 => 10,
                4 => 16,
                _ => 12,
            };
            assert_eq!(known.usage.len(), length, "{:#04x}", known.code);
        }
    }
}
