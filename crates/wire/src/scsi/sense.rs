//! Sense data: why a command did not end in GOOD (SPC-4 4.5).

/// Sense keys (SPC-4 table 41).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Key {
    /// Nothing to report.
    NoSense = 0x0,
    /// The logical unit cannot be accessed now.
    NotReady = 0x2,
    /// The medium failed.
    MediumError = 0x3,
    /// Something other than the medium failed.
    HardwareError = 0x4,
    /// The command or its parameters are wrong.
    IllegalRequest = 0x5,
    /// Something happened that the initiator must know before going on.
    UnitAttention = 0x6,
    /// Writing is forbidden.
    DataProtect = 0x7,
    /// A copy ended before it was done.
    CopyAborted = 0xa,
    /// The command was aborted; it may be tried again.
    AbortedCommand = 0xb,
    /// Source and medium differ.
    Miscompare = 0xe,
}

/// Where the faulty field is (SPC-4 4.5.2.4.2, and 4.5.2.4.5 for copies that are aborted).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FieldPointer {
    /// In the CDB; else in the parameter data, or in the segment descriptor if the report names one.
    pub in_cdb: bool,
    /// Byte of the field's most significant part.
    pub byte: u16,
    /// Its most significant bit, if the field is smaller than a byte.
    pub bit: Option<u8>,
}

/// One report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sense {
    /// Sense key.
    pub key: Key,
    /// Additional sense code and its qualifier, as 0xAAQQ.
    pub code: u16,
    /// INFORMATION: an LBA or an offset, as the command defines it.
    pub information: Option<u64>,
    /// For ILLEGAL REQUEST and COPY ABORTED.
    pub field: Option<FieldPointer>,
    /// For NO SENSE and NOT READY: how much of an operation is done, in 65536ths.
    pub progress: Option<u16>,
    /// The segment of an EXTENDED COPY that failed, from 0: COMMAND-SPECIFIC INFORMATION.
    pub segment: Option<u16>,
}

/// Bytes of fixed format sense data as sent here.
pub const FIXED_LEN: usize = 18;

macro_rules! senses {
    ($($(#[$doc:meta])* $name:ident = $key:ident, $code:literal;)*) => {
        impl Sense {
            $($(#[$doc])* pub const $name: Sense = Sense::new(Key::$key, $code);)*
        }
    };
}

senses! {
    /// Nothing to report.
    NONE = NoSense, 0x0000;
    /// The logical unit does not support this operation code.
    INVALID_OPCODE = IllegalRequest, 0x2000;
    /// Blocks beyond the end.
    LBA_OUT_OF_RANGE = IllegalRequest, 0x2100;
    /// A field of the CDB; point at it with [`Sense::in_cdb`].
    INVALID_FIELD_IN_CDB = IllegalRequest, 0x2400;
    /// No such logical unit.
    LUN_NOT_SUPPORTED = IllegalRequest, 0x2500;
    /// A field of the parameter list; point at it with [`Sense::in_parameters`].
    INVALID_FIELD_IN_PARAMETERS = IllegalRequest, 0x2600;
    /// The parameter list ends too early.
    PARAMETER_LIST_LENGTH = IllegalRequest, 0x1a00;
    /// RELEASE of a registration that is not the holder's kind.
    INVALID_RELEASE = IllegalRequest, 0x2604;
    /// No room for another registration.
    INSUFFICIENT_REGISTRATION_RESOURCES = IllegalRequest, 0x5504;
    /// Saving parameters is not supported.
    SAVING_NOT_SUPPORTED = IllegalRequest, 0x3900;
    /// The initiator announced data in the other direction than the command moves it.
    INVALID_INFORMATION_UNIT = AbortedCommand, 0x0e03;
    /// A list identifier names a copy that is at work.
    OPERATION_IN_PROGRESS = IllegalRequest, 0x0016;
    /// More descriptors of copy sources and destinations than allowed.
    TOO_MANY_TARGET_DESCRIPTORS = IllegalRequest, 0x2606;
    /// A descriptor of a copy source or destination of a kind not known here.
    UNSUPPORTED_TARGET_DESCRIPTOR = IllegalRequest, 0x2607;
    /// More segments of a copy, or ranges of a token, than allowed.
    TOO_MANY_SEGMENT_DESCRIPTORS = IllegalRequest, 0x2608;
    /// A segment descriptor of a kind not known here.
    UNSUPPORTED_SEGMENT_DESCRIPTOR = IllegalRequest, 0x2609;
    /// More inline data than allowed.
    INLINE_DATA_LENGTH_EXCEEDED = IllegalRequest, 0x260b;
    /// A segment is not whole blocks.
    SEGMENT_GRANULARITY_VIOLATION = CopyAborted, 0x260d;
    /// A copy source or destination is not among the units this initiator is shown.
    UNREACHABLE_COPY_TARGET = CopyAborted, 0x0804;
    /// A copy source or destination refused its part.
    THIRD_PARTY_DEVICE_FAILURE = CopyAborted, 0x0d01;
    /// A copy source or destination does not have the blocks.
    COPY_TARGET_NOT_REACHABLE = CopyAborted, 0x0d02;
    /// A copy source or destination is not the kind of device it is said to be.
    INCORRECT_COPY_TARGET_TYPE = CopyAborted, 0x0d03;
    /// A copy's source has less data than asked for.
    COPY_UNDERRUN = CopyAborted, 0x0d04;
    /// A copy was ended by COPY OPERATION ABORT.
    COPY_CLEARED = CopyAborted, 0x2f02;
    /// A token of a kind not known here.
    UNSUPPORTED_TOKEN_TYPE = IllegalRequest, 0x2301;
    /// No such token was made here.
    TOKEN_UNKNOWN = IllegalRequest, 0x2304;
    /// A token contradicts itself.
    TOKEN_CORRUPT = IllegalRequest, 0x2305;
    /// A token's LUN was taken away.
    TOKEN_REVOKED = IllegalRequest, 0x2306;
    /// A token was not used for too long.
    TOKEN_EXPIRED = IllegalRequest, 0x2307;
    /// A token's data could not be kept.
    TOKEN_CANCELLED = IllegalRequest, 0x2308;
    /// A token was deleted by its user.
    TOKEN_DELETED = IllegalRequest, 0x2309;
    /// A token of another length than a token has.
    INVALID_TOKEN_LENGTH = IllegalRequest, 0x230a;
    /// No room for another copy.
    INSUFFICIENT_RESOURCES = IllegalRequest, 0x5503;
    /// No room for another token.
    INSUFFICIENT_TOKEN_RESOURCES = IllegalRequest, 0x550d;
    /// The logical unit is gone.
    NOT_READY = NotReady, 0x0400;
    /// A SANITIZE is under way.
    SANITIZE_IN_PROGRESS = NotReady, 0x041b;
    /// The last SANITIZE failed, and has to be done again or left by EXIT FAILURE MODE.
    SANITIZE_FAILED = MediumError, 0x3103;
    /// Stopped by START STOP UNIT.
    NEEDS_START = NotReady, 0x0402;
    /// The target port group is in standby.
    PORT_IN_STANDBY = NotReady, 0x040b;
    /// The target port group is unavailable.
    PORT_UNAVAILABLE = NotReady, 0x040c;
    /// A read failed.
    UNRECOVERED_READ = MediumError, 0x1100;
    /// A write failed.
    WRITE_ERROR = MediumError, 0x0c00;
    /// The logical unit is read-only.
    WRITE_PROTECTED = DataProtect, 0x2700;
    /// Write-protected by the mode page's SWP bit.
    SOFTWARE_WRITE_PROTECTED = DataProtect, 0x2702;
    /// What was reserved persistently is not known any more.
    RESERVATIONS_LOST = DataProtect, 0x4401;
    /// No space for the write.
    SPACE_ALLOCATION_FAILED = DataProtect, 0x2707;
    /// The data compared differs.
    MISCOMPARE = Miscompare, 0x1d00;
    /// Data of a sequence is missing or was damaged on the way (RFC 7143 11.4.7.2).
    PROTOCOL_SERVICE_CRC = AbortedCommand, 0x4705;
    /// More unsolicited data than agreed (RFC 7143 11.4.7.2).
    UNEXPECTED_UNSOLICITED_DATA = AbortedCommand, 0x0c0c;
    /// Not enough unsolicited data (RFC 7143 11.4.7.2).
    NOT_ENOUGH_UNSOLICITED_DATA = AbortedCommand, 0x0c0d;
    /// An internal fault.
    INTERNAL_FAILURE = HardwareError, 0x4400;
    /// The initiator announced less data than the command is about.
    TOO_LITTLE_ANNOUNCED = IllegalRequest, 0x0e03;
    /// The contents of the medium may be others than before.
    MEDIUM_MAY_HAVE_CHANGED = UnitAttention, 0x2800;
    /// Space for writes is getting short.
    SOFT_THRESHOLD_REACHED = UnitAttention, 0x3807;
    /// Power on or reset.
    POWER_ON = UnitAttention, 0x2900;
    /// The logical unit was reset.
    BUS_DEVICE_RESET = UnitAttention, 0x2903;
    /// Mode parameters were changed by someone else.
    MODE_PARAMETERS_CHANGED = UnitAttention, 0x2a01;
    /// A reservation was preempted.
    RESERVATIONS_PREEMPTED = UnitAttention, 0x2a03;
    /// A reservation was released.
    RESERVATIONS_RELEASED = UnitAttention, 0x2a04;
    /// A registration was preempted.
    REGISTRATIONS_PREEMPTED = UnitAttention, 0x2a05;
    /// The target port group is in another state.
    ACCESS_STATE_CHANGED = UnitAttention, 0x2a06;
    /// Log parameters were changed by someone else.
    LOG_PARAMETERS_CHANGED = UnitAttention, 0x2a02;
    /// The capacity is another one.
    CAPACITY_CHANGED = UnitAttention, 0x2a09;
    /// Tasks were cleared by another initiator.
    COMMANDS_CLEARED = UnitAttention, 0x2f00;
    /// The list of logical units is another one.
    REPORTED_LUNS_CHANGED = UnitAttention, 0x3f0e;
    /// INQUIRY data, its pages or the supported operation codes are others than before.
    INQUIRY_CHANGED = UnitAttention, 0x3f03;
}

impl Sense {
    /// A report with neither information nor pointer.
    pub const fn new(key: Key, code: u16) -> Sense {
        Sense { key, code, information: None, field: None, progress: None, segment: None }
    }

    /// INVALID FIELD IN CDB, pointing at `byte` and, for a field smaller than a byte, its highest bit.
    pub const fn in_cdb(byte: u16, bit: Option<u8>) -> Sense {
        let mut sense = Sense::INVALID_FIELD_IN_CDB;
        sense.field = Some(FieldPointer { in_cdb: true, byte, bit });
        sense
    }

    /// INVALID FIELD IN PARAMETER LIST, pointing at `byte`.
    pub const fn in_parameters(byte: u16) -> Sense {
        let mut sense = Sense::INVALID_FIELD_IN_PARAMETERS;
        sense.field = Some(FieldPointer { in_cdb: false, byte, bit: None });
        sense
    }

    /// The same report about `segment` of a copy, pointing at `byte` of its descriptor.
    #[must_use]
    pub const fn in_segment(mut self, segment: u16, byte: u16) -> Sense {
        self.segment = Some(segment);
        self.field = Some(FieldPointer { in_cdb: false, byte, bit: None });
        self
    }

    /// The same report, pointing at `byte` of the parameter data.
    #[must_use]
    pub const fn at_parameter(mut self, byte: u16) -> Sense {
        self.field = Some(FieldPointer { in_cdb: false, byte, bit: None });
        self
    }

    /// The same report with INFORMATION.
    #[must_use]
    pub const fn with_information(mut self, information: u64) -> Sense {
        self.information = Some(information);
        self
    }

    /// The same report with how much is done, in 65536ths.
    #[must_use]
    pub const fn with_progress(mut self, progress: u16) -> Sense {
        self.progress = Some(progress);
        self
    }

    /// SENSE KEY SPECIFIC (SPC-5 4.4.2.4).
    fn key_specific(&self) -> Option<[u8; 3]> {
        if let Some(progress) = self.progress {
            let [high, low] = progress.to_be_bytes();
            return Some([0x80, high, low]);
        }
        self.field.map(|field| {
            let [high, low] = field.byte.to_be_bytes();
            let bit = field.bit.map_or(0, |bit| 0x08 | bit & 7);
            // C/D for a field pointer, SD for a segment pointer.
            let place = match self.key {
                Key::CopyAborted if self.segment.is_some() => 0x20,
                Key::CopyAborted => 0,
                _ if field.in_cdb => 0x40,
                _ => 0,
            };
            [0x80 | place | bit, high, low]
        })
    }

    /// Appends the report, in descriptor format (SPC-4 4.5.2) or fixed format (SPC-4 4.5.3).
    pub fn emit(&self, descriptor_format: bool, out: &mut Vec<u8>) {
        let [asc, ascq] = self.code.to_be_bytes();
        if !descriptor_format {
            let mut fixed = [0; FIXED_LEN];
            fixed[0] = 0x70;
            fixed[2] = self.key as u8;
            fixed[7] = (FIXED_LEN - 8) as u8;
            fixed[12] = asc;
            fixed[13] = ascq;
            // INFORMATION has 32 bits here; a larger value leaves VALID at zero.
            if let Some(information) = self.information.and_then(|i| u32::try_from(i).ok()) {
                fixed[0] |= 0x80;
                fixed[3..7].copy_from_slice(&information.to_be_bytes());
            }
            if let Some(segment) = self.segment {
                // Its first two bytes would point at sense data of the source and of the destination.
                fixed[10..12].copy_from_slice(&segment.to_be_bytes());
            }
            if let Some(pointer) = self.key_specific() {
                fixed[15..18].copy_from_slice(&pointer);
            }
            out.extend_from_slice(&fixed);
            return;
        }
        let start = out.len();
        out.extend_from_slice(&[0x72, self.key as u8, asc, ascq, 0, 0, 0, 0]);
        if let Some(information) = self.information {
            out.extend_from_slice(&[0x00, 0x0a, 0x80, 0x00]);
            out.extend_from_slice(&information.to_be_bytes());
        }
        if let Some(segment) = self.segment {
            out.extend_from_slice(&[0x01, 0x0a, 0, 0]);
            out.extend_from_slice(&u64::from(segment).to_be_bytes());
        }
        if let Some([a, b, c]) = self.key_specific() {
            out.extend_from_slice(&[0x02, 0x06, 0, 0, a, b, c, 0]);
        }
        out[start + 7] = (out.len() - start - 8) as u8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixed_format_has_its_fields_in_place() {
        let mut out = Vec::new();
        Sense::in_cdb(2, Some(5)).emit(false, &mut out);
        assert_eq!(out.len(), FIXED_LEN);
        assert_eq!((out[0], out[2], out[12], out[13]), (0x70, 5, 0x24, 0));
        assert_eq!(out[15..18], [0x80 | 0x40 | 0x08 | 5, 0, 2]);
    }

    #[test]
    fn progress_has_its_place_in_both_formats() {
        let sense = Sense::SANITIZE_IN_PROGRESS.with_progress(0x8001);
        let (mut fixed, mut descriptor) = (Vec::new(), Vec::new());
        sense.emit(false, &mut fixed);
        assert_eq!(fixed[15..18], [0x80, 0x80, 0x01]);
        sense.emit(true, &mut descriptor);
        assert_eq!(descriptor[8..], [0x02, 0x06, 0, 0, 0x80, 0x80, 0x01, 0]);
    }

    #[test]
    fn a_failed_segment_is_named_with_a_pointer_into_it() {
        let sense = Sense::UNREACHABLE_COPY_TARGET.in_segment(0x0102, 6);
        let mut fixed = Vec::new();
        sense.emit(false, &mut fixed);
        assert_eq!((fixed[2], fixed[12], fixed[13]), (0x0a, 0x08, 0x04));
        assert_eq!(fixed[8..12], [0, 0, 1, 2]);
        assert_eq!(fixed[15..18], [0x80 | 0x20, 0, 6]);
        let mut descriptor = Vec::new();
        sense.emit(true, &mut descriptor);
        assert_eq!(descriptor[7], 20);
        assert_eq!(descriptor[8..20], [1, 0x0a, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2]);
        assert_eq!(descriptor[20..28], [2, 6, 0, 0, 0xa0, 0, 6, 0]);
    }

    #[test]
    fn information_makes_fixed_format_valid_and_has_a_descriptor_of_its_own() {
        let sense = Sense::MISCOMPARE.with_information(1000);
        let mut fixed = Vec::new();
        sense.emit(false, &mut fixed);
        assert_eq!(fixed[0], 0xf0);
        assert_eq!(fixed[3..7], 1000u32.to_be_bytes());
        let mut descriptor = Vec::new();
        sense.emit(true, &mut descriptor);
        assert_eq!(descriptor[..2], [0x72, 0x0e]);
        assert_eq!(descriptor[7], 12);
        assert_eq!(descriptor[8..12], [0, 0x0a, 0x80, 0]);
    }
}
