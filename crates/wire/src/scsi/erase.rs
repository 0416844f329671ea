//! Commands that destroy everything a unit holds: SANITIZE (SBC-4 5.30) and FORMAT UNIT (SBC-4 5.4), with their parameter lists.

use super::sense::Sense;
use super::{be16, be32};

/// Bytes of the header in front of an overwrite's pattern.
const PATTERN_HEADER_BYTES: usize = 4;
/// The longest defect list header (LONGLIST).
const LONG_HEADER_BYTES: u32 = 8;

/// What SANITIZE does (SBC-4 table 108).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Writes a pattern to every block; the parameter list says which.
    Overwrite {
        /// Length of the parameter list, in bytes.
        list_bytes: u32,
    },
    /// Erases every block.
    BlockErase,
    /// Makes every block unreadable as what it was.
    CryptographicErase,
    /// Leaves the state that a failed sanitize operation left behind.
    ExitFailureMode,
}

/// A SANITIZE command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sanitize {
    /// What to do.
    pub action: Action,
    /// GOOD when it has begun, not when it is over (IMMED).
    pub immediate: bool,
    /// A failure may be left by EXIT FAILURE MODE (AUSE).
    pub unrestricted_exit: bool,
}

impl Sanitize {
    /// Reads the CDB. Errors: INVALID FIELD IN CDB, pointing at the field.
    pub fn parse(cdb: &[u8; 16]) -> Result<Sanitize, Sense> {
        let list_bytes = u32::from(be16(cdb, 7));
        let action = match cdb[1] & 0x1f {
            0x01 => Action::Overwrite { list_bytes },
            0x02 => Action::BlockErase,
            0x03 => Action::CryptographicErase,
            0x1f => Action::ExitFailureMode,
            _ => return Err(Sense::in_cdb(1, Some(4))),
        };
        // 40h would leave zones alone: there are none.
        if cdb[1] & 0x40 != 0 {
            return Err(Sense::in_cdb(1, Some(6)));
        }
        if let Some(at) = (2..7).find(|&at| cdb[at] != 0) {
            return Err(Sense::in_cdb(at as u16, Some(7)));
        }
        if list_bytes != 0 && !matches!(action, Action::Overwrite { .. }) {
            return Err(Sense::in_cdb(7, Some(7)));
        }
        Ok(Sanitize { action, immediate: cdb[1] & 0x80 != 0, unrestricted_exit: cdb[1] & 0x20 != 0 })
    }

    /// Length of the parameter list, in bytes.
    pub fn list_bytes(&self) -> u32 {
        match self.action {
            Action::Overwrite { list_bytes } => list_bytes,
            _ => 0,
        }
    }
}

/// What an overwrite writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overwrite {
    /// One block of it, the pattern repeated.
    pub block: Vec<u8>,
    /// Times every block is written, 1 to 31.
    pub passes: u8,
    /// Every other pass writes the complement, so that the last writes the pattern.
    pub invert: bool,
}

impl Overwrite {
    /// Reads the parameter list (SBC-4 5.30.2.2) for blocks of `block_bytes`. The TEST field is vendor specific; nothing is.
    ///
    /// Errors: INVALID FIELD IN CDB for a list that cannot be one, INVALID FIELD IN PARAMETER LIST.
    pub fn parse(list: &[u8], block_bytes: usize) -> Result<Overwrite, Sense> {
        if list.len() <= PATTERN_HEADER_BYTES || list.len() > PATTERN_HEADER_BYTES + block_bytes {
            return Err(Sense::in_cdb(7, Some(7)));
        }
        let passes = list[0] & 0x1f;
        if passes == 0 || list[0] & 0x60 != 0 {
            return Err(Sense::in_parameters(0));
        }
        let length = usize::from(be16(list, 2));
        let pattern = &list[PATTERN_HEADER_BYTES..];
        if length == 0 || length > pattern.len() {
            return Err(Sense::in_parameters(2));
        }
        let block = pattern[..length].iter().copied().cycle().take(block_bytes).collect();
        Ok(Overwrite { block, passes, invert: list[0] & 0x80 != 0 })
    }

    /// What pass `pass` of `passes`, counted from 0, writes: the last one the pattern itself.
    pub fn block_of_pass(&self, pass: u8) -> Vec<u8> {
        let complement = self.invert && (self.passes - 1).saturating_sub(pass) % 2 == 1;
        self.block.iter().map(|&byte| if complement { !byte } else { byte }).collect()
    }
}

/// A FORMAT UNIT command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Format {
    /// Length of the parameter list's header, in bytes; 0 without one.
    pub list_bytes: u32,
}

impl Format {
    /// Reads the CDB. There is no protection information, and no defect list beyond an empty one.
    pub fn parse(cdb: &[u8; 16]) -> Result<Format, Sense> {
        if cdb[1] & 0xc0 != 0 {
            return Err(Sense::in_cdb(1, Some(7)));
        }
        // FFMT: whatever is chosen, blocks end as zeros.
        if cdb[4] & 0x03 == 3 {
            return Err(Sense::in_cdb(4, Some(1)));
        }
        let has_list = cdb[1] & 0x10 != 0;
        let header = if cdb[1] & 0x20 != 0 { LONG_HEADER_BYTES } else { 4 };
        Ok(Format { list_bytes: if has_list { header } else { 0 } })
    }

    /// Checks the parameter list (SBC-4 5.4.2): defaults, or options that mean nothing to a unit without defects.
    pub fn check(&self, list: &[u8]) -> Result<(), Sense> {
        if self.list_bytes == 0 {
            return Ok(());
        }
        if list.len() < self.list_bytes as usize {
            return Err(Sense::PARAMETER_LIST_LENGTH);
        }
        // PROTECTION FIELDS USAGE; IP: the pattern is zeros.
        if list[0] & 0x07 != 0 {
            return Err(Sense::in_parameters(0));
        }
        if list[1] & 0x08 != 0 {
            return Err(Sense::in_parameters(1));
        }
        let (defects, at) = match self.list_bytes {
            LONG_HEADER_BYTES => (be32(list, 4), 4),
            _ => (u32::from(be16(list, 2)), 2),
        };
        if self.list_bytes == LONG_HEADER_BYTES && list[3] != 0 {
            return Err(Sense::in_parameters(3));
        }
        if defects != 0 {
            return Err(Sense::in_parameters(at));
        }
        Ok(())
    }
}

/// READ DEFECT DATA of a unit that has none: the header of an empty list in the format asked for (SBC-4 5.20, 5.21).
pub fn emit_no_defects(long: bool, lists_and_format: u8, out: &mut Vec<u8>) {
    out.extend_from_slice(&[0, lists_and_format & 0x1f]);
    out.extend_from_slice(if long { &[0; 6] } else { &[0; 2] });
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_list_is_an_overwrite_of_one_block_or_a_sense(list in proptest::collection::vec(any::<u8>(), 0..600)) {
            if let Ok(overwrite) = Overwrite::parse(&list, 512) {
                prop_assert_eq!(overwrite.block.len(), 512);
                prop_assert_eq!(overwrite.block_of_pass(overwrite.passes - 1), overwrite.block);
            }
        }

        #[test]
        fn any_cdb_is_a_command_or_a_sense(bytes in proptest::array::uniform16(any::<u8>())) {
            let _ = Sanitize::parse(&bytes);
            if let Ok(format) = Format::parse(&bytes) {
                let _ = format.check(&bytes);
            }
        }
    }

    #[test]
    fn patterns_repeat_to_a_block_and_every_other_pass_is_the_complement() {
        let overwrite = Overwrite::parse(&[0x80 | 2, 0, 0, 3, 1, 2, 3], 8).unwrap();
        assert_eq!(overwrite.block, [1, 2, 3, 1, 2, 3, 1, 2]);
        assert_eq!(overwrite.block_of_pass(0)[..2], [0xfe, 0xfd]);
        assert_eq!(overwrite.block_of_pass(1)[..2], [1, 2]);
        for bad in [&[1u8, 0, 0, 1][..], &[0, 0, 0, 1, 9], &[1, 0, 0, 0, 9], &[1, 0, 0, 2, 9], &[1; 13]] {
            assert_eq!(Overwrite::parse(bad, 8).unwrap_err().key, super::super::sense::Key::IllegalRequest);
        }
    }

    #[test]
    fn reserved_fields_and_unknown_actions_are_refused() {
        for (at, value) in [(1usize, 0x42u8), (1, 0x04), (3, 1), (6, 1), (8, 8)] {
            let mut cdb = [0u8; 16];
            (cdb[0], cdb[1]) = (0x48, 2);
            cdb[at] = value;
            assert_eq!(Sanitize::parse(&cdb).map_err(|s| s.code), Err(0x2400), "byte {at}");
        }
        let mut cdb = [0u8; 16];
        (cdb[0], cdb[1]) = (0x48, 0xa2);
        let both = Sanitize { action: Action::BlockErase, immediate: true, unrestricted_exit: true };
        assert_eq!(Sanitize::parse(&cdb), Ok(both));
    }

    #[test]
    fn a_format_with_defects_or_a_pattern_is_refused() {
        let mut cdb = [0u8; 16];
        (cdb[0], cdb[1]) = (0x04, 0x10);
        let format = Format::parse(&cdb).unwrap();
        assert_eq!(format.check(&[0, 0x82, 0, 0]), Ok(()));
        assert!(format.check(&[0, 0, 0, 8]).is_err());
        assert!(format.check(&[0, 8, 0, 0]).is_err());
        assert_eq!(format.check(&[0, 0]), Err(Sense::PARAMETER_LIST_LENGTH));
        cdb[1] = 0x80;
        assert!(Format::parse(&cdb).is_err());
    }
}
