//! Headers of the PDUs initiators send (RFC 7143 11.3, 11.5, 11.7, 11.10, 11.12, 11.14, 11.16, 11.18).

use super::bhs::{self, field, Bhs, BHS_LEN, FINAL, IMMEDIATE};
use super::Error;

/// Opcodes of initiators (RFC 7143 11.2.1.2).
pub mod opcode {
    /// NOP-Out.
    pub const NOP_OUT: u8 = 0x00;
    /// SCSI Command.
    pub const SCSI_COMMAND: u8 = 0x01;
    /// SCSI Task Management Function Request.
    pub const TASK_MANAGEMENT: u8 = 0x02;
    /// Login Request.
    pub const LOGIN: u8 = 0x03;
    /// Text Request.
    pub const TEXT: u8 = 0x04;
    /// SCSI Data-Out.
    pub const DATA_OUT: u8 = 0x05;
    /// Logout Request.
    pub const LOGOUT: u8 = 0x06;
    /// SNACK Request.
    pub const SNACK: u8 = 0x10;
}

/// A SCSI command (RFC 7143 11.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScsiCommand {
    /// Outside the CmdSN order.
    pub immediate: bool,
    /// No unsolicited Data-Out follows.
    pub is_final: bool,
    /// R: data-in is expected.
    pub read: bool,
    /// W: data-out is expected.
    pub write: bool,
    /// Task attribute: 0 untagged, 1 simple, 2 ordered, 3 head of queue, 4 ACA.
    pub attribute: u8,
    /// The logical unit, as sent.
    pub lun: [u8; 8],
    /// Initiator Task Tag.
    pub itt: u32,
    /// Expected Data Transfer Length, in bytes.
    pub expected_bytes: u32,
    /// Command sequence number.
    pub cmd_sn: u32,
    /// Next status the initiator waits for.
    pub exp_stat_sn: u32,
    /// The first 16 bytes of the CDB.
    pub cdb: [u8; 16],
}

/// A task management request (RFC 7143 11.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskManagement {
    /// Outside the CmdSN order.
    pub immediate: bool,
    /// 1 ABORT TASK … 8 TASK REASSIGN.
    pub function: u8,
    /// The logical unit, as sent.
    pub lun: [u8; 8],
    /// Initiator Task Tag.
    pub itt: u32,
    /// The task ABORT TASK is about.
    pub referenced_itt: u32,
    /// Command sequence number.
    pub cmd_sn: u32,
    /// Next status the initiator waits for.
    pub exp_stat_sn: u32,
    /// CmdSN of the task ABORT TASK is about.
    pub ref_cmd_sn: u32,
    /// Next DataSN expected, for TASK REASSIGN.
    pub exp_data_sn: u32,
}

/// Task management functions (RFC 7143 11.5.1, RFC 7144 4.1).
pub mod function {
    /// Ends one task.
    pub const ABORT_TASK: u8 = 1;
    /// Ends the session's tasks on a logical unit.
    pub const ABORT_TASK_SET: u8 = 2;
    /// Clears an auto contingent allegiance.
    pub const CLEAR_ACA: u8 = 3;
    /// Ends everyone's tasks on a logical unit.
    pub const CLEAR_TASK_SET: u8 = 4;
    /// Resets a logical unit.
    pub const LOGICAL_UNIT_RESET: u8 = 5;
    /// Resets every logical unit of the target.
    pub const TARGET_WARM_RESET: u8 = 6;
    /// As the warm reset, and ends all sessions.
    pub const TARGET_COLD_RESET: u8 = 7;
    /// Moves a task to this connection.
    pub const TASK_REASSIGN: u8 = 8;
    /// Asks whether one task is there (RFC 7144 4.1).
    pub const QUERY_TASK: u8 = 9;
    /// Asks whether the session has any task on a logical unit (RFC 7144 4.1).
    pub const QUERY_TASK_SET: u8 = 10;
    /// Ends the session's tasks and begins its nexuses anew (RFC 7144 4.1).
    pub const I_T_NEXUS_RESET: u8 = 11;
}

/// A login request (RFC 7143 11.12).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoginRequest {
    /// T: ready to go to the next stage.
    pub transit: bool,
    /// C: the text goes on in the next PDU.
    pub continues: bool,
    /// Current stage: 0 security, 1 operational, 3 full feature.
    pub current_stage: u8,
    /// Next stage, when `transit`.
    pub next_stage: u8,
    /// Highest version offered.
    pub version_max: u8,
    /// Lowest version offered.
    pub version_min: u8,
    /// The initiator's part of the session id.
    pub isid: [u8; 6],
    /// The target's part; 0 for a new session.
    pub tsih: u16,
    /// Initiator Task Tag.
    pub itt: u32,
    /// Connection id.
    pub cid: u16,
    /// First CmdSN.
    pub cmd_sn: u32,
    /// Next status the initiator waits for.
    pub exp_stat_sn: u32,
}

/// A text request (RFC 7143 11.10).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TextRequest {
    /// Outside the CmdSN order.
    pub immediate: bool,
    /// Last of its sequence.
    pub is_final: bool,
    /// C: the text goes on in the next PDU.
    pub continues: bool,
    /// Echoed from the target's last text response, with the tag.
    pub lun: [u8; 8],
    /// Initiator Task Tag.
    pub itt: u32,
    /// Target Transfer Tag.
    pub ttt: u32,
    /// Command sequence number.
    pub cmd_sn: u32,
    /// Next status the initiator waits for.
    pub exp_stat_sn: u32,
}

/// Data of a write (RFC 7143 11.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataOut {
    /// Last of its sequence.
    pub is_final: bool,
    /// The logical unit, when `ttt` is given.
    pub lun: [u8; 8],
    /// Initiator Task Tag.
    pub itt: u32,
    /// Target Transfer Tag of the R2T answered, or the reserved tag.
    pub ttt: u32,
    /// Next status the initiator waits for.
    pub exp_stat_sn: u32,
    /// Number within the sequence.
    pub data_sn: u32,
    /// Where in the command's data this lies, in bytes.
    pub offset_bytes: u32,
}

/// A logout request (RFC 7143 11.14).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogoutRequest {
    /// Outside the CmdSN order.
    pub immediate: bool,
    /// 0 close session, 1 close connection, 2 remove connection for recovery.
    pub reason: u8,
    /// Initiator Task Tag.
    pub itt: u32,
    /// Connection id.
    pub cid: u16,
    /// Command sequence number.
    pub cmd_sn: u32,
    /// Next status the initiator waits for.
    pub exp_stat_sn: u32,
}

/// A NOP-Out (RFC 7143 11.18).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NopOut {
    /// Outside the CmdSN order.
    pub immediate: bool,
    /// The logical unit, echoed with the tag.
    pub lun: [u8; 8],
    /// Initiator Task Tag; reserved when no answer is wanted.
    pub itt: u32,
    /// Target Transfer Tag of the NOP-In answered, or reserved.
    pub ttt: u32,
    /// Command sequence number.
    pub cmd_sn: u32,
    /// Next status the initiator waits for.
    pub exp_stat_sn: u32,
}

/// A request to send something again (RFC 7143 11.16); only above ErrorRecoveryLevel 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Snack {
    /// 0 data or R2T, 1 status, 2 DataACK, 3 R-Data.
    pub kind: u8,
    /// The logical unit, as sent.
    pub lun: [u8; 8],
    /// Initiator Task Tag.
    pub itt: u32,
    /// Target Transfer Tag or SNACK tag.
    pub ttt: u32,
    /// Next status the initiator waits for.
    pub exp_stat_sn: u32,
    /// First missing number.
    pub first: u32,
    /// How many are missing; 0 for all that follow.
    pub count: u32,
}

/// Any header an initiator sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// See [`NopOut`].
    NopOut(NopOut),
    /// See [`ScsiCommand`].
    ScsiCommand(ScsiCommand),
    /// See [`TaskManagement`].
    TaskManagement(TaskManagement),
    /// See [`LoginRequest`].
    Login(LoginRequest),
    /// See [`TextRequest`].
    Text(TextRequest),
    /// See [`DataOut`].
    DataOut(DataOut),
    /// See [`LogoutRequest`].
    Logout(LogoutRequest),
    /// See [`Snack`].
    Snack(Snack),
}

impl Request {
    /// Reads a header. Errors: [`Error::Opcode`], or [`Error::Field`] for stages that do not exist.
    pub fn parse(bhs: &Bhs) -> Result<Request, Error> {
        let immediate = bhs[field::OPCODE] & IMMEDIATE != 0;
        let flags = bhs[field::FLAGS];
        let is_final = flags & FINAL != 0;
        let lun = bhs::lun_at(bhs);
        let itt = bhs::u32_at(bhs, field::ITT);
        let word20 = bhs::u32_at(bhs, field::WORD20);
        let cmd_sn = bhs::u32_at(bhs, field::WORD24);
        let exp_stat_sn = bhs::u32_at(bhs, field::WORD28);
        Ok(match bhs[field::OPCODE] & 0x3f {
            opcode::NOP_OUT => {
                Request::NopOut(NopOut { immediate, lun, itt, ttt: word20, cmd_sn, exp_stat_sn })
            }
            opcode::SCSI_COMMAND => {
                let mut cdb = [0; 16];
                cdb.copy_from_slice(&bhs[field::CDB]);
                Request::ScsiCommand(ScsiCommand {
                    immediate,
                    is_final,
                    read: flags & 0x40 != 0,
                    write: flags & 0x20 != 0,
                    attribute: flags & 7,
                    lun,
                    itt,
                    expected_bytes: word20,
                    cmd_sn,
                    exp_stat_sn,
                    cdb,
                })
            }
            opcode::TASK_MANAGEMENT => Request::TaskManagement(TaskManagement {
                immediate,
                function: flags & 0x7f,
                lun,
                itt,
                referenced_itt: word20,
                cmd_sn,
                exp_stat_sn,
                ref_cmd_sn: bhs::u32_at(bhs, field::WORD32),
                exp_data_sn: bhs::u32_at(bhs, field::WORD36),
            }),
            opcode::LOGIN => Request::Login(parse_login(bhs)?),
            opcode::TEXT => Request::Text(TextRequest {
                immediate,
                is_final,
                continues: flags & 0x40 != 0,
                lun,
                itt,
                ttt: word20,
                cmd_sn,
                exp_stat_sn,
            }),
            opcode::DATA_OUT => Request::DataOut(DataOut {
                is_final,
                lun,
                itt,
                ttt: word20,
                exp_stat_sn,
                data_sn: bhs::u32_at(bhs, field::WORD36),
                offset_bytes: bhs::u32_at(bhs, field::WORD40),
            }),
            opcode::LOGOUT => Request::Logout(LogoutRequest {
                immediate,
                reason: flags & 0x7f,
                itt,
                cid: bhs::u16_at(bhs, field::WORD20),
                cmd_sn,
                exp_stat_sn,
            }),
            opcode::SNACK => Request::Snack(Snack {
                kind: flags & 0x0f,
                lun,
                itt,
                ttt: word20,
                exp_stat_sn,
                first: bhs::u32_at(bhs, field::WORD40),
                count: bhs::u32_at(bhs, field::WORD44),
            }),
            other => return Err(Error::Opcode(other)),
        })
    }

    /// Writes the header; lengths stay zero, for [`bhs::set_data_length`].
    pub fn emit(&self) -> Bhs {
        let mut out = [0; BHS_LEN];
        let put = |out: &mut Bhs, op: u8, immediate: bool, flags: u8, itt: u32| {
            out[field::OPCODE] = op | if immediate { IMMEDIATE } else { 0 };
            out[field::FLAGS] = flags;
            bhs::put_u32(out, field::ITT, itt);
        };
        let bit = |set: bool, mask: u8| if set { mask } else { 0 };
        match *self {
            Request::NopOut(r) => {
                put(&mut out, opcode::NOP_OUT, r.immediate, FINAL, r.itt);
                out[field::LUN].copy_from_slice(&r.lun);
                bhs::put_u32(&mut out, field::WORD20, r.ttt);
                bhs::put_u32(&mut out, field::WORD24, r.cmd_sn);
                bhs::put_u32(&mut out, field::WORD28, r.exp_stat_sn);
            }
            Request::ScsiCommand(r) => {
                let flags = bit(r.is_final, FINAL) | bit(r.read, 0x40) | bit(r.write, 0x20) | r.attribute & 7;
                put(&mut out, opcode::SCSI_COMMAND, r.immediate, flags, r.itt);
                out[field::LUN].copy_from_slice(&r.lun);
                bhs::put_u32(&mut out, field::WORD20, r.expected_bytes);
                bhs::put_u32(&mut out, field::WORD24, r.cmd_sn);
                bhs::put_u32(&mut out, field::WORD28, r.exp_stat_sn);
                out[field::CDB].copy_from_slice(&r.cdb);
            }
            Request::TaskManagement(r) => {
                let flags = FINAL | r.function & 0x7f;
                put(&mut out, opcode::TASK_MANAGEMENT, r.immediate, flags, r.itt);
                out[field::LUN].copy_from_slice(&r.lun);
                bhs::put_u32(&mut out, field::WORD20, r.referenced_itt);
                bhs::put_u32(&mut out, field::WORD24, r.cmd_sn);
                bhs::put_u32(&mut out, field::WORD28, r.exp_stat_sn);
                bhs::put_u32(&mut out, field::WORD32, r.ref_cmd_sn);
                bhs::put_u32(&mut out, field::WORD36, r.exp_data_sn);
            }
            Request::Login(r) => {
                let flags = bit(r.transit, FINAL)
                    | bit(r.continues, 0x40)
                    | (r.current_stage & 3) << 2
                    | r.next_stage & 3;
                put(&mut out, opcode::LOGIN, true, flags, r.itt);
                out[2] = r.version_max;
                out[3] = r.version_min;
                out[field::ISID].copy_from_slice(&r.isid);
                bhs::put_u16(&mut out, field::TSIH, r.tsih);
                bhs::put_u16(&mut out, field::WORD20, r.cid);
                bhs::put_u32(&mut out, field::WORD24, r.cmd_sn);
                bhs::put_u32(&mut out, field::WORD28, r.exp_stat_sn);
            }
            Request::Text(r) => {
                let flags = bit(r.is_final, FINAL) | bit(r.continues, 0x40);
                put(&mut out, opcode::TEXT, r.immediate, flags, r.itt);
                out[field::LUN].copy_from_slice(&r.lun);
                bhs::put_u32(&mut out, field::WORD20, r.ttt);
                bhs::put_u32(&mut out, field::WORD24, r.cmd_sn);
                bhs::put_u32(&mut out, field::WORD28, r.exp_stat_sn);
            }
            Request::DataOut(r) => {
                put(&mut out, opcode::DATA_OUT, false, bit(r.is_final, FINAL), r.itt);
                out[field::LUN].copy_from_slice(&r.lun);
                bhs::put_u32(&mut out, field::WORD20, r.ttt);
                bhs::put_u32(&mut out, field::WORD28, r.exp_stat_sn);
                bhs::put_u32(&mut out, field::WORD36, r.data_sn);
                bhs::put_u32(&mut out, field::WORD40, r.offset_bytes);
            }
            Request::Logout(r) => {
                let flags = FINAL | r.reason & 0x7f;
                put(&mut out, opcode::LOGOUT, r.immediate, flags, r.itt);
                bhs::put_u16(&mut out, field::WORD20, r.cid);
                bhs::put_u32(&mut out, field::WORD24, r.cmd_sn);
                bhs::put_u32(&mut out, field::WORD28, r.exp_stat_sn);
            }
            Request::Snack(r) => {
                put(&mut out, opcode::SNACK, false, FINAL | r.kind & 0x0f, r.itt);
                out[field::LUN].copy_from_slice(&r.lun);
                bhs::put_u32(&mut out, field::WORD20, r.ttt);
                bhs::put_u32(&mut out, field::WORD28, r.exp_stat_sn);
                bhs::put_u32(&mut out, field::WORD40, r.first);
                bhs::put_u32(&mut out, field::WORD44, r.count);
            }
        }
        out
    }
}

fn parse_login(bhs: &Bhs) -> Result<LoginRequest, Error> {
    let flags = bhs[field::FLAGS];
    let (current_stage, next_stage) = (flags >> 2 & 3, flags & 3);
    let transit = flags & FINAL != 0;
    if current_stage == 2 {
        return Err(Error::Field("CSG"));
    }
    if transit && (next_stage == 2 || next_stage <= current_stage) {
        return Err(Error::Field("NSG"));
    }
    if transit && flags & 0x40 != 0 {
        return Err(Error::Field("T and C bits together"));
    }
    let mut isid = [0; 6];
    isid.copy_from_slice(&bhs[field::ISID]);
    Ok(LoginRequest {
        transit,
        continues: flags & 0x40 != 0,
        current_stage,
        next_stage,
        version_max: bhs[2],
        version_min: bhs[3],
        isid,
        tsih: bhs::u16_at(bhs, field::TSIH),
        itt: bhs::u32_at(bhs, field::ITT),
        cid: bhs::u16_at(bhs, field::WORD20),
        cmd_sn: bhs::u32_at(bhs, field::WORD24),
        exp_stat_sn: bhs::u32_at(bhs, field::WORD28),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_header_parses_or_errs_and_what_parses_round_trips(bytes in proptest::array::uniform32(any::<u8>()), tail in proptest::array::uniform16(any::<u8>())) {
            let mut bhs = [0u8; BHS_LEN];
            bhs[..32].copy_from_slice(&bytes);
            bhs[32..].copy_from_slice(&tail);
            bhs[0] &= 0x5f;
            if let Ok(request) = Request::parse(&bhs) {
                prop_assert_eq!(Request::parse(&request.emit()), Ok(request));
            }
        }
    }

    #[test]
    fn opcodes_of_targets_are_refused() {
        let mut bhs = [0u8; BHS_LEN];
        bhs[0] = 0x21;
        assert_eq!(Request::parse(&bhs), Err(Error::Opcode(0x21)));
    }

    #[test]
    fn stages_that_do_not_exist_are_refused() {
        for flags in [0x08, 0x82, 0x80, 0x84, 0xc1] {
            let mut bhs = [0u8; BHS_LEN];
            bhs[0] = opcode::LOGIN | IMMEDIATE;
            bhs[1] = flags;
            assert!(Request::parse(&bhs).is_err(), "{flags:#x}");
        }
    }
}
