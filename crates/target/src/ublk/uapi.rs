//! The messages of Linux's ublk driver, as bytes: `<linux/ublk_cmd.h>` of Linux 6.12, whose names and fields these are. In the
//! machine's own byte order, since they never leave it.

/// `_IOC` of `<asm-generic/ioctl.h>` for type `u`: direction, number, and size of the command's structure.
const fn encoded(direction: u32, number: u32, bytes: u32) -> u32 {
    direction << 30 | bytes << 16 | (b'u' as u32) << 8 | number
}

const READ: u32 = 2;
const READ_WRITE: u32 = 3;
const CTRL_BYTES: u32 = 32;
const IO_BYTES: u32 = 16;

/// Commands to `/dev/ublk-control` (`UBLK_U_CMD_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Ctrl {
    GetDevInfo = encoded(READ, 0x02, CTRL_BYTES),
    AddDev = encoded(READ_WRITE, 0x04, CTRL_BYTES),
    StartDev = encoded(READ_WRITE, 0x06, CTRL_BYTES),
    StopDev = encoded(READ_WRITE, 0x07, CTRL_BYTES),
    SetParams = encoded(READ_WRITE, 0x08, CTRL_BYTES),
    GetParams = encoded(READ, 0x09, CTRL_BYTES),
    StartUserRecovery = encoded(READ_WRITE, 0x10, CTRL_BYTES),
    EndUserRecovery = encoded(READ_WRITE, 0x11, CTRL_BYTES),
    GetFeatures = encoded(READ, 0x13, CTRL_BYTES),
    DelDevAsync = encoded(READ, 0x14, CTRL_BYTES),
}

/// Commands to `/dev/ublkcN` (`UBLK_U_IO_*`).
pub(super) const FETCH_REQ: u32 = encoded(READ_WRITE, 0x20, IO_BYTES);
pub(super) const COMMIT_AND_FETCH_REQ: u32 = encoded(READ_WRITE, 0x21, IO_BYTES);

/// What both kinds of command occupy in a submission entry of 128 bytes.
pub(super) type CommandBytes = [u8; 80];

/// `UBLK_F_*`.
pub(super) const F_USER_RECOVERY: u64 = 1 << 3;
pub(super) const F_USER_RECOVERY_REISSUE: u64 = 1 << 4;
pub(super) const F_CMD_IOCTL_ENCODE: u64 = 1 << 6;

/// `UBLK_S_DEV_*`.
pub(super) const DEAD: u16 = 0;
pub(super) const QUIESCED: u16 = 2;

/// `struct ublksrv_ctrl_cmd`. `address` and `length` are of the buffer that goes with it.
pub(super) fn ctrl_cmd(device: u32, address: u64, length: u16, data: u64) -> CommandBytes {
    let mut bytes = [0; 80];
    bytes[..4].copy_from_slice(&device.to_ne_bytes());
    // No command of ours is for one queue.
    bytes[4..6].copy_from_slice(&u16::MAX.to_ne_bytes());
    bytes[6..8].copy_from_slice(&length.to_ne_bytes());
    bytes[8..16].copy_from_slice(&address.to_ne_bytes());
    bytes[16..24].copy_from_slice(&data.to_ne_bytes());
    bytes
}

/// `struct ublksrv_io_cmd`, for the one queue there is. `address` is of the tag's buffer.
pub(super) fn io_cmd(tag: u16, result: i32, address: u64) -> CommandBytes {
    let mut bytes = [0; 80];
    bytes[2..4].copy_from_slice(&tag.to_ne_bytes());
    bytes[4..8].copy_from_slice(&result.to_ne_bytes());
    bytes[8..16].copy_from_slice(&address.to_ne_bytes());
    bytes
}

pub(super) const DEV_INFO_BYTES: usize = 64;

/// `struct ublksrv_ctrl_dev_info`, without what only the driver fills in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DevInfo {
    pub(super) queue_depth: u16,
    pub(super) state: u16,
    pub(super) max_io_buf_bytes: u32,
    pub(super) device: u32,
    pub(super) flags: u64,
    /// `ublksrv_flags`: the server's own, which the driver keeps for it.
    pub(super) mark: u64,
}

impl DevInfo {
    pub(super) fn emit(&self) -> [u8; DEV_INFO_BYTES] {
        let mut bytes = [0; DEV_INFO_BYTES];
        // nr_hw_queues
        bytes[..2].copy_from_slice(&1_u16.to_ne_bytes());
        bytes[2..4].copy_from_slice(&self.queue_depth.to_ne_bytes());
        bytes[4..6].copy_from_slice(&self.state.to_ne_bytes());
        bytes[8..12].copy_from_slice(&self.max_io_buf_bytes.to_ne_bytes());
        bytes[12..16].copy_from_slice(&self.device.to_ne_bytes());
        bytes[24..32].copy_from_slice(&self.flags.to_ne_bytes());
        bytes[32..40].copy_from_slice(&self.mark.to_ne_bytes());
        bytes
    }

    pub(super) fn parse(bytes: &[u8; DEV_INFO_BYTES]) -> DevInfo {
        DevInfo {
            queue_depth: u16::from_ne_bytes(field(bytes, 2)),
            state: u16::from_ne_bytes(field(bytes, 4)),
            max_io_buf_bytes: u32::from_ne_bytes(field(bytes, 8)),
            device: u32::from_ne_bytes(field(bytes, 12)),
            flags: u64::from_ne_bytes(field(bytes, 24)),
            mark: u64::from_ne_bytes(field(bytes, 32)),
        }
    }
}

/// `struct ublk_params` as far as `struct ublk_param_discard`.
pub(super) const PARAMS_BYTES: usize = 60;

const PARAM_TYPE_BASIC: u32 = 1;
const PARAM_TYPE_DISCARD: u32 = 1 << 1;
const ATTR_READ_ONLY: u32 = 1;
const ATTR_VOLATILE_CACHE: u32 = 1 << 2;
const ATTR_FUA: u32 = 1 << 3;

/// What the kernel is told of the disk. Sectors have 512 bytes, as everywhere in Linux, and as Playhead's blocks do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Params {
    pub(super) sectors: u64,
    pub(super) read_only: bool,
    pub(super) physical_shift: u8,
    pub(super) max_sectors: u32,
    pub(super) discard_granularity_bytes: u32,
    /// 0: none are taken.
    pub(super) max_discard_sectors: u32,
    /// 0: none are taken.
    pub(super) max_write_zeroes_sectors: u32,
}

impl Params {
    pub(super) fn emit(&self) -> [u8; PARAMS_BYTES] {
        let mut bytes = Params::ask();
        let read_only = if self.read_only { ATTR_READ_ONLY } else { 0 };
        let attributes = ATTR_VOLATILE_CACHE | ATTR_FUA | read_only;
        bytes[4..8].copy_from_slice(&(PARAM_TYPE_BASIC | PARAM_TYPE_DISCARD).to_ne_bytes());
        bytes[8..12].copy_from_slice(&attributes.to_ne_bytes());
        // logical_bs_shift, physical_bs_shift, io_opt_shift, io_min_shift
        bytes[12..16].copy_from_slice(&[9, self.physical_shift, self.physical_shift, self.physical_shift]);
        bytes[16..20].copy_from_slice(&self.max_sectors.to_ne_bytes());
        bytes[24..32].copy_from_slice(&self.sectors.to_ne_bytes());
        bytes[44..48].copy_from_slice(&self.discard_granularity_bytes.to_ne_bytes());
        bytes[48..52].copy_from_slice(&self.max_discard_sectors.to_ne_bytes());
        bytes[52..56].copy_from_slice(&self.max_write_zeroes_sectors.to_ne_bytes());
        // max_discard_segments: the driver takes no more than 1.
        bytes[56..58].copy_from_slice(&1_u16.to_ne_bytes());
        bytes
    }

    /// The buffer in which the driver answers what it was told.
    pub(super) fn ask() -> [u8; PARAMS_BYTES] {
        let mut bytes = [0; PARAMS_BYTES];
        bytes[..4].copy_from_slice(&(PARAMS_BYTES as u32).to_ne_bytes());
        bytes
    }

    /// The size and whether it is read-only, of such an answer.
    pub(super) fn parse_size(bytes: &[u8; PARAMS_BYTES]) -> (u64, bool) {
        let attributes = u32::from_ne_bytes(field(bytes, 8));
        (u64::from_ne_bytes(field(bytes, 24)), attributes & ATTR_READ_ONLY != 0)
    }
}

/// `N` bytes of a structure at `at`, which is a constant within it.
fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut found = [0; N];
    found.copy_from_slice(&bytes[at..at + N]);
    found
}

/// `UBLK_IO_OP_*` that a server of ours is ever sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    Read,
    Write,
    Flush,
    Discard,
    WriteZeroes,
    Unknown(u8),
}

const IO_F_FUA: u32 = 1 << 13;
const IO_F_NOUNMAP: u32 = 1 << 15;

pub(super) const IO_DESC_BYTES: usize = 24;

/// `struct ublksrv_io_desc`: what is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) op: Op,
    /// The write is to be on the medium before it is answered.
    pub(super) fua: bool,
    /// Zeros are to keep their space.
    pub(super) no_unmap: bool,
    pub(super) lba: u64,
    pub(super) count: u32,
}

impl Request {
    pub(super) fn parse(bytes: &[u8; IO_DESC_BYTES]) -> Request {
        let word = u32::from_ne_bytes(field(bytes, 0));
        let op = match word as u8 {
            0 => Op::Read,
            1 => Op::Write,
            2 => Op::Flush,
            3 => Op::Discard,
            5 => Op::WriteZeroes,
            other => Op::Unknown(other),
        };
        Request {
            op,
            fua: word & IO_F_FUA != 0,
            no_unmap: word & IO_F_NOUNMAP != 0,
            count: u32::from_ne_bytes(field(bytes, 4)),
            lba: u64::from_ne_bytes(field(bytes, 8)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_have_the_numbers_of_the_kernels_header() {
        // As a C compiler gives them for <linux/ublk_cmd.h>.
        let ctrl = [
            (Ctrl::GetDevInfo, 0x8020_7502),
            (Ctrl::AddDev, 0xc020_7504),
            (Ctrl::StartDev, 0xc020_7506),
            (Ctrl::StopDev, 0xc020_7507),
            (Ctrl::SetParams, 0xc020_7508),
            (Ctrl::GetParams, 0x8020_7509),
            (Ctrl::StartUserRecovery, 0xc020_7510),
            (Ctrl::EndUserRecovery, 0xc020_7511),
            (Ctrl::GetFeatures, 0x8020_7513),
            (Ctrl::DelDevAsync, 0x8020_7514),
        ];
        for (command, number) in ctrl {
            assert_eq!(command as u32, number, "{command:?}");
        }
        assert_eq!((FETCH_REQ, COMMIT_AND_FETCH_REQ), (0xc010_7520, 0xc010_7521));
    }

    #[test]
    fn a_device_is_what_was_asked_for() {
        let info = DevInfo {
            queue_depth: 64,
            state: QUIESCED,
            max_io_buf_bytes: 512 << 10,
            device: 7,
            flags: F_USER_RECOVERY,
            mark: 0x1122_3344_5566_7788,
        };
        assert_eq!(DevInfo::parse(&info.emit()), info);
        assert_eq!(info.emit()[..2], 1_u16.to_ne_bytes());
    }

    #[test]
    fn parameters_say_size_cache_and_limits() {
        let params = Params {
            sectors: 1 << 40,
            read_only: true,
            physical_shift: 12,
            max_sectors: 1024,
            discard_granularity_bytes: 4096,
            max_discard_sectors: 8,
            max_write_zeroes_sectors: 16,
        };
        let bytes = params.emit();
        assert_eq!(Params::parse_size(&bytes), (1 << 40, true));
        assert_eq!(bytes[..4], 60_u32.to_ne_bytes());
        // A cache that is flushed, FUA, read-only; without the first, a flush would never come.
        assert_eq!(bytes[8..12], 0b1101_u32.to_ne_bytes());
        assert_eq!(bytes[12..16], [9, 12, 12, 12]);
        let limits: Vec<u32> =
            bytes[44..56].chunks_exact(4).map(|word| u32::from_ne_bytes(field(word, 0))).collect();
        assert_eq!(limits, [4096, 8, 16]);
        assert_eq!(bytes[56..58], 1_u16.to_ne_bytes());
    }

    #[test]
    fn a_request_is_read_as_the_driver_writes_it() {
        let descriptor = |word: u32| {
            let mut bytes = [0; IO_DESC_BYTES];
            bytes[..4].copy_from_slice(&word.to_ne_bytes());
            bytes[4..8].copy_from_slice(&8_u32.to_ne_bytes());
            bytes[8..16].copy_from_slice(&(1_u64 << 33).to_ne_bytes());
            Request::parse(&bytes)
        };
        let write = descriptor(1 | 1 << 13);
        assert_eq!((write.op, write.fua, write.lba, write.count), (Op::Write, true, 1 << 33, 8));
        assert!(!descriptor(1 | 1 << 8).fua);
        let zeroes = descriptor(5 | 1 << 15);
        assert_eq!((zeroes.op, zeroes.no_unmap), (Op::WriteZeroes, true));
        // Zone operations and what may come: never asked for, refused if sent.
        assert_eq!(descriptor(10).op, Op::Unknown(10));
    }

    #[test]
    fn a_tag_and_its_result_are_where_the_driver_looks() {
        let bytes = io_cmd(63, -5, 0x7f00_0000_1000);
        assert_eq!(bytes[..2], [0, 0]);
        assert_eq!(bytes[2..4], 63_u16.to_ne_bytes());
        assert_eq!(bytes[4..8], (-5_i32).to_ne_bytes());
        assert_eq!(bytes[8..16], 0x7f00_0000_1000_u64.to_ne_bytes());
        let bytes = ctrl_cmd(3, 0x1000, 64, 99);
        assert_eq!(bytes[4..6], [0xff, 0xff]);
        assert_eq!(bytes[6..8], 64_u16.to_ne_bytes());
        assert_eq!(bytes[16..24], 99_u64.to_ne_bytes());
    }
}
