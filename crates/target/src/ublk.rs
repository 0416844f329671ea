//! Block devices of this host: a LUN as `/dev/ublkbN`, by Linux's ublk driver, with one thread for each.
//!
//! The way of a request through this module: the driver completes a command that waits in the device's io_uring (`ring`, whose messages are
//! `uapi`), `queue` executes it on the [`Lun`](crate::lun::Lun), changes in batches, and answers with the next command. `control` makes
//! devices and takes them away.
//!
//! **A device outlives its server.** It is made with user recovery and reissue: when this process ends, however it ends, the device stays,
//! what is asked of it waits, and what was under way is sent again to the next server. A write that was captured and not answered is so captured
//! twice, with the same data, which changes nothing: nobody was told that it is there, so nobody has written over it. That is what a
//! mounted disk needs, and what NBD does not give.
//!
//! **Whose a device is** stands in the device: the driver keeps 64 bits for its server, and we put some of the LUN's identity there.

mod control;
mod queue;
mod ring;
mod uapi;

use std::collections::BTreeMap;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{sync_channel, Receiver, RecvTimeoutError};
use std::sync::{Arc, OnceLock};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;

use crate::lun::LunRef;
use crate::scsi::{Devices, Policy};
use crate::strangers::Strangers;
use control::{block_path, Control};
use queue::Desk;
use ring::{Buffers, DATA_BYTES};
use uapi::Params;

/// Stack of a device's thread, as of a connection's.
const STACK_BYTES: usize = 512 << 10;
/// Most sectors of a discard: as many bytes as a request of the kernel has at most, in whole physical blocks.
const DISCARD_SECTORS: u32 = (u32::MAX >> 9) & !7;

/// Why a LUN cannot be served as a block device, or not be taken from there.
#[derive(Debug, thiserror::Error)]
pub enum UblkError {
    /// The kernel has no ublk.
    #[error("this kernel offers no ublk: load it (`modprobe ublk_drv`), or use NBD (docs/splitters.md)")]
    Missing,
    /// The kernel's ublk lacks what is needed.
    #[error("this kernel's ublk cannot hand a device to a new server: use Linux 6.12 or later, or NBD (docs/splitters.md)")]
    Old,
    /// The service lacks a right.
    #[error(
        "the service may not use {what}: give it CAP_SYS_ADMIN and the devices' groups (packaging/systemd/playhead-ublk.conf), or use NBD"
    )]
    NotAllowed {
        /// What it was to use.
        what: String,
    },
    /// The number is another program's.
    #[error("{device} is not this volume's: another program serves it")]
    Taken {
        /// The block device.
        device: String,
    },
    /// The device is not what the LUN is now.
    #[error("{device} was made with another size, or read-only: unmount it, take it away and make it anew (`playhead volume set`)")]
    Changed {
        /// The block device.
        device: String,
    },
    /// Somebody has mounted it, or claimed it otherwise.
    #[error("{device} is in use: unmount it first")]
    InUse {
        /// The block device.
        device: String,
    },
    /// This name is served already.
    #[error("{name} is served as a block device already")]
    Served {
        /// The name.
        name: String,
    },
    /// The thread of a device did not come to its end in time.
    #[error("{device} still has I/O under way")]
    StillBusy {
        /// The block device.
        device: String,
    },
    /// The system refused.
    #[error("{device} could not be {doing}: {source}")]
    Kernel {
        /// A device.
        device: String,
        /// What was to be done to it.
        doing: &'static str,
        /// The operating system's words.
        source: io::Error,
    },
}

/// What is known of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceStatus {
    /// The name it is served under.
    pub name: String,
    /// The N of `/dev/ublkbN`.
    pub number: u32,
    /// Since when it is served by this process.
    pub since: SystemTime,
    /// Whether its thread is there; if not, what is asked of it waits.
    pub serving: bool,
    /// Requests received.
    pub requests: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes of writes captured.
    pub written_bytes: u64,
}

/// A LUN that is served as a block device.
struct Served {
    number: u32,
    since: SystemTime,
    desk: Arc<Desk>,
    thread: Option<JoinHandle<()>>,
    ended: Receiver<()>,
    /// None if the thread could not begin.
    hold: Option<Hold>,
}

/// What is kept until a device's thread has ended: see [`Buffers`] and [`ring::Ring::hold`].
struct Hold {
    _buffers: Arc<Buffers>,
    _ring: OwnedFd,
}

impl Served {
    fn serving(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Waits for the thread, which was told to end.
    fn join(&mut self, patience: Duration) -> Result<(), UblkError> {
        if self.ended.recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
            return Err(UblkError::StillBusy { device: block_path(self.number) });
        }
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            log::error!("the thread of {} panicked", block_path(self.number));
        }
        Ok(())
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        // If nobody can wait for the thread, what it needs stays for good.
        let hold = ManuallyDrop::new(self.hold.take());
        let wait = move || {
            let _ = thread.join();
            drop(ManuallyDrop::into_inner(hold));
        };
        if let Err(error) = Builder::new().name("ublk-end".into()).stack_size(STACK_BYTES).spawn(wait) {
            log::error!("{} is not served again before a restart: {error}", block_path(self.number));
        }
    }
}

/// The block devices of this process.
#[derive(Default)]
pub struct Server {
    devices: OnceLock<Arc<Devices>>,
    /// Held while a device comes or goes, which may take long. Taken before the others.
    changing: Mutex<()>,
    /// Taken before `served`.
    policy: Mutex<Policy>,
    served: Mutex<BTreeMap<String, Served>>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").finish_non_exhaustive()
    }
}

impl Server {
    /// Heeds the reservations of the SCSI initiators that get the same LUNs by a [`crate::iscsi::Server`]: what they forbid fails as a
    /// reservation conflict. For what is served from now on; to be called once.
    pub fn heed_reservations(&self, devices: Arc<Devices>) {
        if self.devices.set(devices).is_err() {
            log::warn!("the block devices heed reservations already; told so twice");
        }
    }

    /// Puts another offload policy in force. A device made while `unmap` or `write-same` is rejected offers no such thing to the kernel
    /// until it is made anew; one that offers it refuses from now on.
    pub fn set_policy(&self, policy: Policy) {
        let mut current = self.policy.lock();
        *current = policy;
        for served in self.served.lock().values() {
            served.desk.strangers.obey(&current);
        }
    }

    /// Serves `lun` as `/dev/ublkbN`, under `name`: makes the device, or takes up the one that was left by an earlier server of it.
    pub fn serve(&self, name: &str, number: u32, lun: LunRef) -> Result<(), UblkError> {
        let _changing = self.changing.lock();
        if self.served.lock().get(name).is_some_and(Served::serving) {
            return Err(UblkError::Served { name: name.into() });
        }
        // Somebody else has taken the device away, and its thread has ended by itself.
        self.dismiss(name, FAREWELL)?;
        let control = Control::open(number)?;
        let strangers = Strangers::new(lun, self.devices.get(), &self.policy.lock());
        let params = params(&strangers);
        let mark = mark(&strangers.lun.identity().uuid);
        let begin = control.prepare(mark, &params)?;
        let begun = start(&control, name, strangers).and_then(|mut served| match control.begin(begin) {
            Ok(()) => Ok(served),
            Err(error) => {
                served.desk.leave();
                served.join(FAREWELL)?;
                Err(error)
            }
        });
        match begun {
            Ok(served) => {
                log::info!("{name} is {}", control.path());
                // It may have changed meanwhile.
                let policy = self.policy.lock();
                served.desk.strangers.obey(&policy);
                self.served.lock().insert(name.into(), served);
                Ok(())
            }
            Err(error) => {
                // One that hosts have is left to them: it can be taken up again.
                if begin == control::Begin::Start {
                    control.discard();
                }
                Err(error)
            }
        }
    }

    /// Serves it no longer, for the time being: requests under way are answered, the device stays, and what is asked of it waits.
    /// Nothing if it is not served.
    pub fn let_go(&self, name: &str, patience: Duration) -> Result<(), UblkError> {
        let _changing = self.changing.lock();
        self.dismiss(name, patience)
    }

    /// Ends the thread that serves `name`, if there is one.
    fn dismiss(&self, name: &str, patience: Duration) -> Result<(), UblkError> {
        let served = self.served.lock().remove(name);
        served.map_or(Ok(()), |mut served| {
            served.desk.leave();
            served.join(patience)
        })
    }

    /// Takes a device away for good, served or not: what is cached of it is written first.
    ///
    /// Errors: [`UblkError::InUse`] if somebody has it mounted, and nothing has happened.
    pub fn remove(&self, name: &str, number: u32, uuid: &[u8; 16]) -> Result<(), UblkError> {
        let _changing = self.changing.lock();
        let control = match Control::open(number) {
            // Then there is no device either.
            Err(UblkError::Missing) => return self.dismiss(name, FAREWELL),
            other => other?,
        };
        if control.info()?.is_none_or(|info| info.mark != mark(uuid)) {
            // None of ours: there is nothing to take away but what may have served it.
            return self.dismiss(name, FAREWELL);
        }
        let claimed = control.claim()?;
        let serving = self.served.lock().get(name).is_some_and(Served::serving);
        if let (Some(file), true) = (&claimed, serving) {
            let failed = |source| UblkError::Kernel { device: control.path(), doing: "written back", source };
            file.sync_all().map_err(failed)?;
        }
        control.stop()?;
        drop(claimed);
        self.dismiss(name, FAREWELL)?;
        control.delete()?;
        log::info!("{name} is {} no longer", control.path());
        Ok(())
    }

    /// What is served, by name.
    pub fn devices(&self) -> Vec<DeviceStatus> {
        let describe = |(name, served): (&String, &Served)| DeviceStatus {
            name: name.clone(),
            number: served.number,
            since: served.since,
            serving: served.serving(),
            requests: served.desk.requests.load(Ordering::Relaxed),
            read_bytes: served.desk.read_bytes.load(Ordering::Relaxed),
            written_bytes: served.desk.written_bytes.load(Ordering::Relaxed),
        };
        self.served.lock().iter().map(describe).collect()
    }

    /// Lets go of all within about `patience`. Returns how many had not come to their end.
    pub fn stop(&self, patience: Duration) -> usize {
        let _changing = self.changing.lock();
        let mut all = std::mem::take(&mut *self.served.lock());
        let deadline = Instant::now() + patience;
        for served in all.values() {
            served.desk.leave();
        }
        let late =
            |served: &mut Served| served.join(deadline.saturating_duration_since(Instant::now())).is_err();
        all.values_mut().filter_map(|served| late(served).then_some(())).count()
    }
}

/// How long the thread of a device that is stopped may take.
const FAREWELL: Duration = Duration::from_secs(10);

/// Starts the thread of a device and waits until it has fetched.
fn start(control: &Control, name: &str, strangers: Strangers) -> Result<Served, UblkError> {
    let number = control.number();
    let failed = |source| UblkError::Kernel { device: block_path(number), doing: "served", source };
    let device = control.queue()?;
    let desk = Arc::new(Desk::new(format!("{name} ({})", block_path(number)), strangers).map_err(failed)?);
    let buffers = Buffers::new().map_err(failed)?;
    let (ready, is_ready) = sync_channel(1);
    let (end, ended) = sync_channel(1);
    let thread = {
        let (desk, buffers) = (Arc::clone(&desk), Arc::clone(&buffers));
        let work = move || {
            if let Err(error) = queue::run(&desk, device, buffers, &ready) {
                log::error!("{}: its thread has ended, what is asked of it waits: {error}", desk.name);
            }
            let _ = end.send(());
        };
        Builder::new().name("ublk".into()).stack_size(STACK_BYTES).spawn(work).map_err(failed)?
    };
    let mut served =
        Served { number, since: SystemTime::now(), desk, thread: Some(thread), ended, hold: None };
    // A thread that panics closes the channel.
    match is_ready.recv().unwrap_or_else(|_| Err(io::Error::other("its thread has ended"))) {
        Ok(ring) => {
            served.hold = Some(Hold { _buffers: buffers, _ring: ring });
            Ok(served)
        }
        Err(error) => {
            served.join(FAREWELL)?;
            Err(failed(error))
        }
    }
}

/// What the kernel is told of a LUN.
fn params(strangers: &Strangers) -> Params {
    let lun = &strangers.lun;
    let physical_bytes = lun.physical_block_bytes().clamp(512, 4096);
    let offered = |offered: bool| if offered { DISCARD_SECTORS } else { 0 };
    Params {
        sectors: lun.block_count(),
        read_only: lun.read_only(),
        physical_shift: physical_bytes.ilog2() as u8,
        max_sectors: (DATA_BYTES / 512) as u32,
        discard_granularity_bytes: physical_bytes,
        max_discard_sectors: offered(strangers.unmaps()),
        max_write_zeroes_sectors: offered(strangers.zeroes()),
    }
}

/// What of a LUN's identity stands in its device.
fn mark(uuid: &[u8; 16]) -> u64 {
    let (head, tail) = uuid.split_at(8);
    head.iter().zip(tail).fold(0, |mark, (a, b)| mark << 8 | u64::from(a ^ b))
}
