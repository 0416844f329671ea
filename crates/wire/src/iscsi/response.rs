//! Headers of the PDUs targets send (RFC 7143 11.4, 11.6 to 11.9, 11.11, 11.13, 11.15, 11.17, 11.19).

use super::bhs::{self, field, Bhs, BHS_LEN, FINAL};
use super::{Error, RESERVED_TAG};

/// Opcodes of targets (RFC 7143 11.2.1.2).
pub mod opcode {
    /// NOP-In.
    pub const NOP_IN: u8 = 0x20;
    /// SCSI Response.
    pub const SCSI_RESPONSE: u8 = 0x21;
    /// SCSI Task Management Function Response.
    pub const TASK_MANAGEMENT: u8 = 0x22;
    /// Login Response.
    pub const LOGIN: u8 = 0x23;
    /// Text Response.
    pub const TEXT: u8 = 0x24;
    /// SCSI Data-In.
    pub const DATA_IN: u8 = 0x25;
    /// Logout Response.
    pub const LOGOUT: u8 = 0x26;
    /// Ready To Transfer.
    pub const R2T: u8 = 0x31;
    /// Asynchronous Message.
    pub const ASYNC: u8 = 0x32;
    /// Reject.
    pub const REJECT: u8 = 0x3f;
}

/// Reasons of a reject (RFC 7143 11.17.1).
pub mod reject {
    /// Data digest error.
    pub const DATA_DIGEST: u8 = 0x02;
    /// SNACK refused.
    pub const SNACK: u8 = 0x03;
    /// Protocol error.
    pub const PROTOCOL: u8 = 0x04;
    /// Command not supported.
    pub const NOT_SUPPORTED: u8 = 0x05;
    /// Too many immediate commands.
    pub const IMMEDIATE: u8 = 0x06;
    /// Task in progress: the tag is in use.
    pub const TASK_IN_PROGRESS: u8 = 0x07;
    /// Invalid PDU field.
    pub const INVALID_FIELD: u8 = 0x09;
    /// Out of resources.
    pub const OUT_OF_RESOURCES: u8 = 0x0a;
}

/// Login statuses, class and detail (RFC 7143 11.13.5).
pub mod login_status {
    /// Go on.
    pub const SUCCESS: u16 = 0x0000;
    /// The target is elsewhere for now; TargetAddress says where.
    pub const MOVED_TEMPORARILY: u16 = 0x0101;
    /// The target is elsewhere for good; TargetAddress says where.
    pub const MOVED_PERMANENTLY: u16 = 0x0102;
    /// Initiator error.
    pub const INITIATOR_ERROR: u16 = 0x0200;
    /// Authentication failure.
    pub const AUTHENTICATION_FAILURE: u16 = 0x0201;
    /// The initiator may not use this target.
    pub const AUTHORIZATION_FAILURE: u16 = 0x0202;
    /// No such target.
    pub const NOT_FOUND: u16 = 0x0203;
    /// No common version.
    pub const UNSUPPORTED_VERSION: u16 = 0x0205;
    /// Too many connections in the session.
    pub const TOO_MANY_CONNECTIONS: u16 = 0x0206;
    /// InitiatorName or TargetName missing.
    pub const MISSING_PARAMETER: u16 = 0x0207;
    /// Session type not supported.
    pub const SESSION_TYPE: u16 = 0x0209;
    /// The session named by TSIH does not exist.
    pub const NO_SESSION: u16 = 0x020a;
    /// Not a login request during login.
    pub const INVALID_DURING_LOGIN: u16 = 0x020b;
    /// Target error.
    pub const TARGET_ERROR: u16 = 0x0300;
    /// The target cannot take the session now.
    pub const SERVICE_UNAVAILABLE: u16 = 0x0301;
    /// Out of resources.
    pub const OUT_OF_RESOURCES: u16 = 0x0302;
}

/// The three counters nearly every target PDU carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// StatSN.
    pub stat_sn: u32,
    /// Next CmdSN expected.
    pub exp_cmd_sn: u32,
    /// Last CmdSN acceptable.
    pub max_cmd_sn: u32,
}

/// What was left over of the expected transfer (RFC 7143 11.4.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Residual {
    /// Nothing.
    #[default]
    None,
    /// Bytes the initiator expected and did not get or could not give.
    Underflow(u32),
    /// Bytes the command had beyond what the initiator expected.
    Overflow(u32),
}

impl Residual {
    /// Compares what the initiator announced with what the command moves, both in bytes.
    pub fn of(expected_bytes: u32, command_bytes: u64) -> Residual {
        let expected = u64::from(expected_bytes);
        let difference = |a: u64, b: u64| u32::try_from(a - b).unwrap_or(u32::MAX);
        match expected.cmp(&command_bytes) {
            std::cmp::Ordering::Equal => Residual::None,
            std::cmp::Ordering::Greater => Residual::Underflow(difference(expected, command_bytes)),
            std::cmp::Ordering::Less => Residual::Overflow(difference(command_bytes, expected)),
        }
    }

    fn emit(self, out: &mut Bhs) {
        let (flag, count) = match self {
            Residual::None => return,
            Residual::Underflow(count) => (0x02, count),
            Residual::Overflow(count) => (0x04, count),
        };
        out[field::FLAGS] |= flag;
        bhs::put_u32(out, field::WORD44, count);
    }

    fn parse(bhs: &Bhs) -> Result<Residual, Error> {
        let count = bhs::u32_at(bhs, field::WORD44);
        match bhs[field::FLAGS] & 0x06 {
            0x00 => Ok(Residual::None),
            0x02 => Ok(Residual::Underflow(count)),
            0x04 => Ok(Residual::Overflow(count)),
            _ => Err(Error::Field("residual flags")),
        }
    }
}

/// A SCSI Data-In (RFC 7143 11.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataIn {
    /// Last of its sequence.
    pub is_final: bool,
    /// SCSI status, when this PDU also ends the command (S bit); StatSN counts then.
    pub status: Option<u8>,
    /// Meaningful with `status`.
    pub residual: Residual,
    /// Initiator Task Tag.
    pub itt: u32,
    /// Number within the command.
    pub data_sn: u32,
    /// Where in the command's data this lies, in bytes.
    pub offset_bytes: u32,
}

/// Any header a target sends. `Counters` come from the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Response {
    /// NOP-In: an answer (`itt`), a ping (`ttt`), or neither.
    NopIn {
        /// The logical unit of a ping.
        lun: [u8; 8],
        /// Initiator Task Tag, or reserved.
        itt: u32,
        /// Target Transfer Tag, or reserved.
        ttt: u32,
    },
    /// SCSI Response: the end of a command.
    Scsi {
        /// 0 completed at the target, 1 target failure.
        response: u8,
        /// SCSI status.
        status: u8,
        /// Initiator Task Tag.
        itt: u32,
        /// How many Data-In or R2T PDUs went before.
        exp_data_sn: u32,
        /// What was left over.
        residual: Residual,
    },
    /// Task management response: 0 complete, 1 no task, 2 no LUN, 4 reassign unsupported, 5 not supported, 7 succeeded,
    /// 255 rejected.
    TaskManagement {
        /// The outcome.
        response: u8,
        /// Initiator Task Tag.
        itt: u32,
    },
    /// Login Response.
    Login {
        /// T.
        transit: bool,
        /// C.
        continues: bool,
        /// CSG.
        current_stage: u8,
        /// NSG.
        next_stage: u8,
        /// Echoed.
        isid: [u8; 6],
        /// The session's number, once it exists.
        tsih: u16,
        /// Initiator Task Tag.
        itt: u32,
        /// See [`login_status`].
        status: u16,
    },
    /// Text Response.
    Text {
        /// Last of its sequence.
        is_final: bool,
        /// C.
        continues: bool,
        /// Initiator Task Tag.
        itt: u32,
        /// What the initiator must quote to get the rest, or reserved.
        ttt: u32,
    },
    /// SCSI Data-In.
    DataIn(DataIn),
    /// Logout Response.
    Logout {
        /// 0 closed, 1 CID not found, 2 recovery not supported, 3 cleanup failed.
        response: u8,
        /// Initiator Task Tag.
        itt: u32,
        /// Seconds to wait before coming back.
        time_to_wait_s: u16,
        /// Seconds tasks are kept.
        time_to_retain_s: u16,
    },
    /// Ready To Transfer.
    R2t {
        /// The logical unit, as the command had it.
        lun: [u8; 8],
        /// Initiator Task Tag.
        itt: u32,
        /// What Data-Out must quote.
        ttt: u32,
        /// Number within the command.
        r2t_sn: u32,
        /// Where the wanted data starts, in bytes.
        offset_bytes: u32,
        /// How much is wanted, in bytes.
        desired_bytes: u32,
    },
    /// Asynchronous Message (RFC 7143 11.9.1): 1 target requests logout, 2 will drop the connection, 3 will drop the session.
    Async {
        /// The event.
        event: u8,
        /// Parameters 1 to 3.
        parameters: [u16; 3],
    },
    /// Reject; the data segment holds the refused header.
    Reject {
        /// See [`reject`].
        reason: u8,
    },
}

impl Response {
    /// Writes the header; lengths stay zero, for [`bhs::set_data_length`].
    pub fn emit(&self, counters: Counters) -> Bhs {
        let mut out = [0; BHS_LEN];
        out[field::FLAGS] = FINAL;
        bhs::put_u32(&mut out, field::ITT, RESERVED_TAG);
        bhs::put_u32(&mut out, field::WORD24, counters.stat_sn);
        bhs::put_u32(&mut out, field::WORD28, counters.exp_cmd_sn);
        bhs::put_u32(&mut out, field::WORD32, counters.max_cmd_sn);
        match *self {
            Response::NopIn { lun, itt, ttt } => {
                out[field::OPCODE] = opcode::NOP_IN;
                out[field::LUN].copy_from_slice(&lun);
                bhs::put_u32(&mut out, field::ITT, itt);
                bhs::put_u32(&mut out, field::WORD20, ttt);
            }
            Response::Scsi { response, status, itt, exp_data_sn, residual } => {
                out[field::OPCODE] = opcode::SCSI_RESPONSE;
                out[2] = response;
                out[3] = status;
                bhs::put_u32(&mut out, field::ITT, itt);
                bhs::put_u32(&mut out, field::WORD36, exp_data_sn);
                residual.emit(&mut out);
            }
            Response::TaskManagement { response, itt } => {
                out[field::OPCODE] = opcode::TASK_MANAGEMENT;
                out[2] = response;
                bhs::put_u32(&mut out, field::ITT, itt);
            }
            Response::Login { transit, continues, current_stage, next_stage, isid, tsih, itt, status } => {
                out[field::OPCODE] = opcode::LOGIN;
                out[field::FLAGS] = if transit { FINAL } else { 0 }
                    | if continues { 0x40 } else { 0 }
                    | (current_stage & 3) << 2
                    | next_stage & 3;
                out[field::ISID].copy_from_slice(&isid);
                bhs::put_u16(&mut out, field::TSIH, tsih);
                bhs::put_u32(&mut out, field::ITT, itt);
                bhs::put_u16(&mut out, field::WORD36, status);
            }
            Response::Text { is_final, continues, itt, ttt } => {
                out[field::OPCODE] = opcode::TEXT;
                out[field::FLAGS] = if is_final { FINAL } else { 0 } | if continues { 0x40 } else { 0 };
                bhs::put_u32(&mut out, field::ITT, itt);
                bhs::put_u32(&mut out, field::WORD20, ttt);
            }
            Response::DataIn(d) => {
                out[field::OPCODE] = opcode::DATA_IN;
                out[field::FLAGS] = if d.is_final { FINAL } else { 0 };
                bhs::put_u32(&mut out, field::ITT, d.itt);
                bhs::put_u32(&mut out, field::WORD20, RESERVED_TAG);
                bhs::put_u32(&mut out, field::WORD36, d.data_sn);
                bhs::put_u32(&mut out, field::WORD40, d.offset_bytes);
                if let Some(status) = d.status {
                    out[field::FLAGS] |= 0x01;
                    out[3] = status;
                    d.residual.emit(&mut out);
                } else {
                    bhs::put_u32(&mut out, field::WORD24, 0);
                }
            }
            Response::Logout { response, itt, time_to_wait_s, time_to_retain_s } => {
                out[field::OPCODE] = opcode::LOGOUT;
                out[2] = response;
                bhs::put_u32(&mut out, field::ITT, itt);
                bhs::put_u16(&mut out, field::WORD40, time_to_wait_s);
                bhs::put_u16(&mut out, field::WORD40 + 2, time_to_retain_s);
            }
            Response::R2t { lun, itt, ttt, r2t_sn, offset_bytes, desired_bytes } => {
                out[field::OPCODE] = opcode::R2T;
                out[field::LUN].copy_from_slice(&lun);
                bhs::put_u32(&mut out, field::ITT, itt);
                bhs::put_u32(&mut out, field::WORD20, ttt);
                bhs::put_u32(&mut out, field::WORD36, r2t_sn);
                bhs::put_u32(&mut out, field::WORD40, offset_bytes);
                bhs::put_u32(&mut out, field::WORD44, desired_bytes);
            }
            Response::Async { event, parameters } => {
                out[field::OPCODE] = opcode::ASYNC;
                out[field::WORD36] = event;
                for (i, parameter) in parameters.into_iter().enumerate() {
                    bhs::put_u16(&mut out, field::WORD36 + 2 + 2 * i, parameter);
                }
            }
            Response::Reject { reason } => {
                out[field::OPCODE] = opcode::REJECT;
                out[2] = reason;
            }
        }
        out
    }

    /// Reads a header, as an initiator would. Errors: [`Error::Opcode`], or [`Error::Field`] for contradictory flags.
    pub fn parse(bhs: &Bhs) -> Result<(Response, Counters), Error> {
        let flags = bhs[field::FLAGS];
        let itt = bhs::u32_at(bhs, field::ITT);
        let ttt = bhs::u32_at(bhs, field::WORD20);
        let lun = bhs::lun_at(bhs);
        let counters = Counters {
            stat_sn: bhs::u32_at(bhs, field::WORD24),
            exp_cmd_sn: bhs::u32_at(bhs, field::WORD28),
            max_cmd_sn: bhs::u32_at(bhs, field::WORD32),
        };
        let response = match bhs[field::OPCODE] {
            opcode::NOP_IN => Response::NopIn { lun, itt, ttt },
            opcode::SCSI_RESPONSE => Response::Scsi {
                response: bhs[2],
                status: bhs[3],
                itt,
                exp_data_sn: bhs::u32_at(bhs, field::WORD36),
                residual: Residual::parse(bhs)?,
            },
            opcode::TASK_MANAGEMENT => Response::TaskManagement { response: bhs[2], itt },
            opcode::LOGIN => {
                let mut isid = [0; 6];
                isid.copy_from_slice(&bhs[field::ISID]);
                Response::Login {
                    transit: flags & FINAL != 0,
                    continues: flags & 0x40 != 0,
                    current_stage: flags >> 2 & 3,
                    next_stage: flags & 3,
                    isid,
                    tsih: bhs::u16_at(bhs, field::TSIH),
                    itt,
                    status: bhs::u16_at(bhs, field::WORD36),
                }
            }
            opcode::TEXT => {
                Response::Text { is_final: flags & FINAL != 0, continues: flags & 0x40 != 0, itt, ttt }
            }
            opcode::DATA_IN => {
                let has_status = flags & 1 != 0;
                Response::DataIn(DataIn {
                    is_final: flags & FINAL != 0,
                    status: has_status.then_some(bhs[3]),
                    residual: if has_status { Residual::parse(bhs)? } else { Residual::None },
                    itt,
                    data_sn: bhs::u32_at(bhs, field::WORD36),
                    offset_bytes: bhs::u32_at(bhs, field::WORD40),
                })
            }
            opcode::LOGOUT => Response::Logout {
                response: bhs[2],
                itt,
                time_to_wait_s: bhs::u16_at(bhs, field::WORD40),
                time_to_retain_s: bhs::u16_at(bhs, field::WORD40 + 2),
            },
            opcode::R2T => Response::R2t {
                lun,
                itt,
                ttt,
                r2t_sn: bhs::u32_at(bhs, field::WORD36),
                offset_bytes: bhs::u32_at(bhs, field::WORD40),
                desired_bytes: bhs::u32_at(bhs, field::WORD44),
            },
            opcode::ASYNC => Response::Async {
                event: bhs[field::WORD36],
                parameters: [0, 1, 2].map(|i| bhs::u16_at(bhs, field::WORD36 + 2 + 2 * i)),
            },
            opcode::REJECT => Response::Reject { reason: bhs[2] },
            other => return Err(Error::Opcode(other)),
        };
        Ok((response, counters))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_header_parses_or_errs_and_what_parses_round_trips(op in 0u8..0x40, bytes in proptest::collection::vec(any::<u8>(), BHS_LEN)) {
            let mut bhs = [0u8; BHS_LEN];
            bhs.copy_from_slice(&bytes);
            bhs[0] = op;
            if let Ok((response, counters)) = Response::parse(&bhs) {
                let (again, _) = Response::parse(&response.emit(counters)).unwrap();
                prop_assert_eq!(again, response);
            }
        }
    }

    #[test]
    fn residuals_follow_expected_and_actual() {
        assert_eq!(Residual::of(512, 512), Residual::None);
        assert_eq!(Residual::of(1000, 512), Residual::Underflow(488));
        assert_eq!(Residual::of(0, 512), Residual::Overflow(512));
    }
}
