//! What is asked of `/dev/ublk-control`, and how a device comes, is taken up again and goes.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::ring::{ask, DATA_BYTES, DEPTH};
use super::uapi::{
    Ctrl, DevInfo, Params, DEAD, DEV_INFO_BYTES, F_CMD_IOCTL_ENCODE, F_USER_RECOVERY,
    F_USER_RECOVERY_REISSUE, QUIESCED,
};
use super::UblkError;

const CONTROL: &str = "/dev/ublk-control";
/// A server that died lets go of its device when the system has cleaned up after it; udev gives a new device to its group.
const SETTLE: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(20);
/// Of a command that waits for I/O of the device, such as reading its partition table.
const PATIENCE: Duration = Duration::from_secs(60);
const FEATURES: u64 = F_USER_RECOVERY | F_USER_RECOVERY_REISSUE | F_CMD_IOCTL_ENCODE;

/// The path of a block device.
pub(super) fn block_path(number: u32) -> String {
    format!("/dev/ublkb{number}")
}

/// How a device is brought into service once its queue is fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Begin {
    /// It is new.
    Start,
    /// Hosts have it, and wait.
    Recover,
}

/// One device, by way of the control device.
pub(super) struct Control {
    control: File,
    number: u32,
}

impl Control {
    /// Errors: [`UblkError::Missing`], [`UblkError::NotAllowed`], [`UblkError::Old`].
    pub(super) fn open(number: u32) -> Result<Control, UblkError> {
        let opened = OpenOptions::new().read(true).write(true).open(CONTROL);
        let control = opened.map_err(|error| match Errno::from_io_error(&error) {
            Some(Errno::NOENT | Errno::NXIO | Errno::NODEV) => UblkError::Missing,
            Some(Errno::ACCESS | Errno::PERM) => UblkError::NotAllowed { what: CONTROL.into() },
            _ => UblkError::Kernel { device: CONTROL.into(), doing: "opened", source: error },
        })?;
        let control = Control { control, number };
        let features = control.send(Ctrl::GetFeatures, [0; 8], 0).map_err(|error| {
            match error.raw_os_error() {
                // Of a driver that knows no such question; the second is the kernel's own ENOTSUPP.
                Some(22 | 524) => UblkError::Old,
                _ => control.failed("asked what it offers", error),
            }
        })?;
        if u64::from_ne_bytes(features) & FEATURES != FEATURES {
            return Err(UblkError::Old);
        }
        Ok(control)
    }

    pub(super) fn number(&self) -> u32 {
        self.number
    }

    pub(super) fn path(&self) -> String {
        block_path(self.number)
    }

    fn send<const N: usize>(&self, command: Ctrl, buffer: [u8; N], data: u64) -> io::Result<[u8; N]> {
        ask(self.control.as_fd(), command, self.number, buffer, data, PATIENCE)
    }

    fn ask<const N: usize>(
        &self,
        command: Ctrl,
        doing: &'static str,
        buffer: [u8; N],
        data: u64,
    ) -> Result<[u8; N], UblkError> {
        self.send(command, buffer, data).map_err(|error| self.failed(doing, error))
    }

    fn failed(&self, doing: &'static str, error: io::Error) -> UblkError {
        match Errno::from_io_error(&error) {
            Some(Errno::PERM | Errno::ACCESS) => UblkError::NotAllowed { what: "ublk or io_uring".into() },
            Some(Errno::OPNOTSUPP | Errno::NOSYS) => UblkError::Old,
            Some(Errno::EXIST) => UblkError::Taken { device: self.path() },
            _ => UblkError::Kernel { device: self.path(), doing, source: error },
        }
    }

    /// What the kernel knows of the device; nothing if there is none.
    pub(super) fn info(&self) -> Result<Option<DevInfo>, UblkError> {
        match self.send(Ctrl::GetDevInfo, [0; DEV_INFO_BYTES], 0) {
            Ok(bytes) => Ok(Some(DevInfo::parse(&bytes))),
            Err(error) if Errno::from_io_error(&error) == Some(Errno::NODEV) => Ok(None),
            Err(error) => Err(self.failed("asked for", error)),
        }
    }

    /// Makes the device, or begins to take up the one that is there, which must have this mark and be as `params` says.
    pub(super) fn prepare(&self, mark: u64, params: &Params) -> Result<Begin, UblkError> {
        let found = self.info()?;
        if found.is_some_and(|found| found.mark != mark) {
            return Err(UblkError::Taken { device: self.path() });
        }
        match found {
            // Half made when its maker died.
            Some(found) if found.state == DEAD => self.delete()?,
            Some(_) => {
                let bytes = self.ask(Ctrl::GetParams, "asked for its size", Params::ask(), 0)?;
                let (sectors, read_only) = Params::parse_size(&bytes);
                if sectors != params.sectors || read_only && !params.read_only {
                    return Err(UblkError::Changed { device: self.path() });
                }
                self.start_recovery()?;
                return Ok(Begin::Recover);
            }
            None => {}
        }
        let info = DevInfo {
            queue_depth: DEPTH,
            state: DEAD,
            max_io_buf_bytes: DATA_BYTES as u32,
            device: self.number,
            flags: FEATURES,
            mark,
        };
        let made = self.retry(Errno::EXIST, || self.send(Ctrl::AddDev, info.emit(), 0));
        made.map_err(|error| self.failed("made", error))?;
        if let Err(error) = self.ask(Ctrl::SetParams, "told its size", params.emit(), 0) {
            self.discard();
            return Err(error);
        }
        Ok(Begin::Start)
    }

    /// Once the server that had it is gone for good.
    fn start_recovery(&self) -> Result<(), UblkError> {
        let begun = self.retry(Errno::BUSY, || self.send(Ctrl::StartUserRecovery, [], 0));
        match begun {
            Ok([]) => Ok(()),
            // Begun before, by a server that died before it fetched anything: the driver waits for somebody to.
            Err(error) if Errno::from_io_error(&error) == Some(Errno::INVAL) && self.quiesced()? => Ok(()),
            Err(error) => Err(self.failed("taken up again", error)),
        }
    }

    fn quiesced(&self) -> Result<bool, UblkError> {
        Ok(self.info()?.is_some_and(|info| info.state == QUIESCED))
    }

    /// Does `what` until it does not fail with `passing`, at most as long as things take to settle.
    fn retry<T>(&self, passing: Errno, mut what: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        let deadline = Instant::now() + SETTLE;
        loop {
            match what() {
                Err(error) if Errno::from_io_error(&error) == Some(passing) && Instant::now() < deadline => {
                    std::thread::sleep(LOOK);
                }
                other => return other,
            }
        }
    }

    /// The device as its server has it.
    pub(super) fn queue(&self) -> Result<OwnedFd, UblkError> {
        let path = format!("/dev/ublkc{}", self.number);
        let deadline = Instant::now() + SETTLE;
        loop {
            match OpenOptions::new().read(true).write(true).open(&path) {
                Ok(file) => return Ok(file.into()),
                Err(error) => {
                    let errno = Errno::from_io_error(&error);
                    let passing = matches!(errno, Some(Errno::NOENT | Errno::ACCESS | Errno::BUSY));
                    if passing && Instant::now() < deadline {
                        std::thread::sleep(LOOK);
                    } else if errno == Some(Errno::ACCESS) {
                        return Err(UblkError::NotAllowed { what: path });
                    } else {
                        return Err(UblkError::Kernel { device: path, doing: "opened", source: error });
                    }
                }
            }
        }
    }

    /// Brings the device into service: every tag of its queue is fetched.
    pub(super) fn begin(&self, begin: Begin) -> Result<(), UblkError> {
        let (command, doing) = match begin {
            Begin::Start => (Ctrl::StartDev, "started"),
            Begin::Recover => (Ctrl::EndUserRecovery, "taken up again"),
        };
        self.ask(command, doing, [], std::process::id().into()).map(|[]| ())
    }

    /// Holds the block device so that nobody can mount it. Nothing if it is not there.
    ///
    /// Errors: [`UblkError::InUse`] if somebody has.
    pub(super) fn claim(&self) -> Result<Option<File>, UblkError> {
        let path = self.path();
        let flags = OFlags::EXCL.bits() as i32;
        match OpenOptions::new().read(true).custom_flags(flags).open(&path) {
            Ok(file) => Ok(Some(file)),
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::BUSY) => Err(UblkError::InUse { device: path }),
                Some(Errno::NOENT | Errno::NXIO | Errno::NODEV) => Ok(None),
                Some(Errno::ACCESS | Errno::PERM) => Err(UblkError::NotAllowed { what: path }),
                _ => Err(UblkError::Kernel { device: path, doing: "opened", source: error }),
            },
        }
    }

    /// Takes the block device away, with an error for whatever is still asked of it.
    pub(super) fn stop(&self) -> Result<(), UblkError> {
        self.ask(Ctrl::StopDev, "stopped", [], 0).map(|[]| ())
    }

    /// Forgets the device, whose queue nobody has open. It is gone when the last program that has it open closes it.
    pub(super) fn delete(&self) -> Result<(), UblkError> {
        match self.send(Ctrl::DelDevAsync, [], 0) {
            Ok([]) => Ok(()),
            Err(error) if Errno::from_io_error(&error) == Some(Errno::NODEV) => Ok(()),
            Err(error) => Err(self.failed("deleted", error)),
        }
    }

    /// Undoes `prepare` of a device that could not be started.
    pub(super) fn discard(&self) {
        if let Err(error) = self.delete() {
            log::warn!("what was made of it stays until a restart of the machine: {error}");
        }
    }
}
