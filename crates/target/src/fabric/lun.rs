//! A LUN of another array as hosts of this appliance see it, and the replica that follows it.

use super::array::Array;
use super::edit::NewIdentity;
use super::limbo::Owner;
use crate::lun::{
    Change, Compared, CopyPiece, Extent, FlushDone, Lsn, Lun, LunError, LunIdentity, BLOCK_BYTES,
};
use crate::splitter::Wanted;
use parking_lot::Mutex;
use playhead_initiator::{discovery, Blocking, Error, Task};
use playhead_wire::iscsi::lun_bytes;
use playhead_wire::scsi::extended_copy::Designator;
use std::any::Any;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;

/// Bytes of one READ of production.
const READ_BYTES: usize = 256 << 10;
/// For one command of our own. A service that stops waits for it.
const LIMIT: Duration = Duration::from_secs(10);
/// For a login that only says whether the array is there.
const SIGHT_LIMIT: Duration = Duration::from_secs(1);
/// Times a READ is repeated that finds the array busy or has a unit attention to hear of.
const TRIES: u32 = 8;
/// Times a READ is repeated whose session was lost.
const LOST_MAX: u32 = 2;

/// Who the LUN is to hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Identity {
    /// What the array says: hosts find the disk they know.
    Own,
    /// Another disk, with a serial number and NAA name of this appliance.
    New,
}

/// Extents that a change has taken. What it is only the [`Recorder`] knows.
pub type Taken = Box<dyn Any + Send>;

/// Called once when extents are taken, or refused; from any thread, also the asking one before the call returns. Must not block.
pub type Begun = Box<dyn FnOnce(Result<Taken, LunError>) + Send>;

/// What records changes that somebody else executes: the replica with its change map.
pub trait Recorder: Send + Sync {
    /// Takes what is `wanted` against overlapping changes and against resynchronisation, before production changes, and tells `begun`.
    /// Never waits itself.
    ///
    /// Errors told: the journal cannot be written and the group says that hosts wait for it; nothing is taken.
    fn begin(&self, wanted: Wanted, begun: Begun);

    /// Production has executed them: captures `changes` in this order, and gives the extents back. An error leaves them marked.
    ///
    /// Errors: they could not be captured, and the host is not to be told GOOD.
    fn capture(&self, taken: Taken, changes: &[Change<'_>]) -> Result<(), LunError>;

    /// As [`Recorder::capture`], for a copy that production has made by itself: `pieces` of what `source` records, where they are taken as
    /// sources. Where that is no volume of the same group, or not in step, it is as [`Recorder::unknown`].
    fn capture_copy(&self, taken: Taken, source: &dyn Recorder, pieces: &[CopyPiece])
        -> Result<(), LunError>;

    /// Production has certainly not changed.
    fn unchanged(&self, taken: Taken);

    /// Nobody knows, and the array may execute it yet: until `unknown` says that it is over, the replica is not in step.
    fn doubt(&self, taken: &Taken);

    /// Nobody knows: production is to be read.
    fn unknown(&self, taken: Taken);

    /// Makes everything captured survive a loss of power, then calls `done`.
    fn flush(&self, done: FlushDone);

    /// Size of the replica, in blocks.
    fn block_count(&self) -> u64;

    /// For its owner to find its own kind.
    fn as_any(&self) -> &dyn Any;
}

/// The LUN itself, read for resynchronisation and copies, in a session of Playhead's own.
pub struct Production {
    array: Mutex<Blocking>,
    number: u16,
    name: String,
    block_count: u64,
    /// What the array calls it, as of which of our sessions.
    names: Mutex<(u64, Arc<[Designator]>)>,
}

impl Production {
    /// LUN `number` of `array`, which has `block_count` blocks. Logs in when it is first read.
    pub fn new(array: &Array, number: u16, name: &str, block_count: u64) -> Production {
        let array = Mutex::new(Blocking::new(array.own_remote(number)));
        let names = Mutex::new((0, Arc::default()));
        Production { array, number, name: name.to_owned(), block_count, names }
    }

    /// Size in blocks.
    pub fn block_count(&self) -> u64 {
        self.block_count
    }

    /// SYNCHRONIZE CACHE of all of it.
    ///
    /// Errors: [`LunError::Io`].
    pub fn flush(&self) -> Result<(), LunError> {
        let cdb = [0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let answer = discovery::ask(&mut self.array.lock(), self.number, &cdb, 0, LIMIT);
        let answer = answer.map_err(|error| self.fault(error.to_string()))?;
        answer.map(|_| ()).ok_or_else(|| self.fault("the array does not flush".to_owned()))
    }

    /// How many sessions it took to keep it in sight. An array that was out of sight may have been without power, and without a
    /// battery for what it had only in memory.
    ///
    /// Errors: [`LunError::Io`]: there is no session.
    pub fn generation(&self) -> Result<u64, LunError> {
        let mut array = self.array.lock();
        array.attend(SIGHT_LIMIT).map_err(|error| self.fault(error.to_string()))?;
        let session = array.nexus().status().sessions;
        self.ask_names(&mut array, session);
        Ok(session)
    }

    /// The array's names for it (VPD page 83h), the best first; none as long as it has not been in sight.
    pub fn names(&self) -> Arc<[Designator]> {
        Arc::clone(&self.names.lock().1)
    }

    /// Asks for the names once a session: whoever changes them ends it, or the LUN is another.
    fn ask_names(&self, array: &mut Blocking, session: u64) {
        if self.names.lock().0 == session {
            return;
        }
        // Without a page the LUN has no name, and is nobody's but its own in a copy.
        match discovery::ask(array, self.number, &[0x12, 1, 0x83, 4, 0, 0], 1024, LIMIT) {
            Ok(page) => {
                // T10, EUI-64 and NAA are nobody else's (SPC-4 7.8.6); a vendor's own form may be another LUN's too.
                let mut names = Designator::of_page(&page.unwrap_or_default());
                names.retain(|name| matches!(name.kind(), 1..=3));
                names.sort_by_key(|name| (name.as_naa().is_none(), name.kind() != 3, name.kind() != 2));
                *self.names.lock() = (session, names.into());
            }
            Err(error) => log::debug!("{}: its names are not known: {error}", self.name),
        }
    }

    fn fault(&self, detail: String) -> LunError {
        LunError::Io { name: self.name.clone(), detail }
    }

    /// Reads `buf.len() / BLOCK_BYTES` blocks from `lba` on.
    ///
    /// Errors: [`LunError::Io`].
    pub fn read(&self, lba: u64, buf: &mut [u8]) -> Result<(), LunError> {
        let mut at = lba;
        for part in buf.chunks_mut(READ_BYTES) {
            self.read_part(at, part)?;
            at += (part.len() / BLOCK_BYTES) as u64;
        }
        Ok(())
    }

    fn read_part(&self, lba: u64, part: &mut [u8]) -> Result<(), LunError> {
        let mut cdb = [0; 16];
        cdb[0] = 0x88;
        cdb[2..10].copy_from_slice(&lba.to_be_bytes());
        cdb[10..14].copy_from_slice(&((part.len() / BLOCK_BYTES) as u32).to_be_bytes());
        let lun = lun_bytes(self.number);
        let mut last = String::new();
        for attempt in 0..TRIES {
            let task = Task { lun, cdb, attribute: 1, read_bytes: part.len() as u32, ..Task::default() };
            let answer = match self.array.lock().run(task, LIMIT) {
                Ok(answer) => answer,
                // A session that was idle may be found ended by its first command; a READ can be sent again.
                Err(Error::Lost(why)) if attempt < LOST_MAX => {
                    last = why;
                    continue;
                }
                Err(error) => return Err(self.fault(error.to_string())),
            };
            match answer.status {
                0 if answer.data.len() == part.len() => {
                    part.copy_from_slice(&answer.data);
                    return Ok(());
                }
                0 => return Err(self.fault("the array sends less than was asked for".to_owned())),
                0x02 if answer.sense_code().is_some_and(|(key, _, _)| key == 6) => {}
                0x08 | 0x28 => std::thread::sleep(Duration::from_millis(10 << attempt)),
                _ => {}
            }
            last = format!(
                "READ of LBA {lba}: status {:#04x}, sense {:02x?}",
                answer.status,
                answer.sense_code()
            );
            if !matches!(answer.status, 0x02 | 0x08 | 0x28) {
                break;
            }
        }
        Err(self.fault(last))
    }
}

/// A LUN of another array. Commands of iSCSI hosts do not come here: sessions forward them.
pub struct FabricLun {
    identity: LunIdentity,
    array: Arc<Array>,
    number: u16,
    new_identity: Option<NewIdentity>,
    thin_reads_zeros: AtomicBool,
    recorder: Arc<dyn Recorder>,
    production: Arc<Production>,
    locked: AtomicBool,
    in_limbo: Owner,
}

impl FabricLun {
    /// LUN `number` of `array`, whose changes `recorder` records. `identity` is the replica's; hosts are told it if `shown` says so.
    pub fn new(
        identity: LunIdentity,
        shown: Identity,
        array: Arc<Array>,
        number: u16,
        production: Arc<Production>,
        recorder: Arc<dyn Recorder>,
    ) -> FabricLun {
        let new_identity = (shown == Identity::New).then(|| NewIdentity {
            serial: identity.uuid.iter().map(|byte| format!("{byte:02x}")).collect(),
            naa: crate::scsi::naa_of(&identity.uuid),
        });
        FabricLun {
            identity,
            array,
            number,
            new_identity,
            thin_reads_zeros: AtomicBool::new(false),
            recorder,
            production,
            locked: AtomicBool::new(false),
            in_limbo: Owner::default(),
        }
    }

    /// Unmapped blocks of the array's LUN read as zeros for certain.
    pub fn set_thin_reads_zeros(&self, certain: bool) {
        self.thin_reads_zeros.store(certain, Ordering::Relaxed);
    }

    /// Lets everybody only read from now on, or write again.
    pub fn set_read_only(&self, read_only: bool) {
        self.locked.store(read_only, Ordering::Release);
    }

    /// The array's target.
    pub fn array(&self) -> &Arc<Array> {
        &self.array
    }

    /// The LUN itself.
    pub fn production(&self) -> &Arc<Production> {
        &self.production
    }

    /// The service lets go of it: changes whose end is not known are not waited for any longer.
    pub fn abandon_limbo(&self) {
        self.array.limbo.abandon(&self.in_limbo);
    }

    /// To whom its changes in limbo belong.
    pub(crate) fn in_limbo(&self) -> &Owner {
        &self.in_limbo
    }

    /// What records its changes.
    pub fn recorder(&self) -> &Arc<dyn Recorder> {
        &self.recorder
    }

    /// The array's name for it, if a host may mean it by `name`: as it is shown, or as the array says.
    pub(crate) fn array_name(&self, name: &Designator) -> Option<Designator> {
        let names = self.production.names();
        if names.contains(name) {
            return Some(*name);
        }
        let new = self.new_identity.as_ref().map(|identity| Designator::naa(&identity.naa));
        names.first().copied().filter(|_| new == Some(*name))
    }

    /// The array's number for it, in its eight-byte form.
    pub(crate) fn address(&self) -> [u8; 8] {
        lun_bytes(self.number)
    }

    pub(crate) fn new_identity(&self) -> Option<&NewIdentity> {
        self.new_identity.as_ref()
    }

    pub(crate) fn unmapped_reads_zeros(&self) -> bool {
        self.thin_reads_zeros.load(Ordering::Relaxed)
    }

    fn refuse<T>(&self, what: &'static str) -> Result<T, LunError> {
        Err(LunError::Unsupported { name: self.identity.name.clone(), what })
    }
}

impl Lun for FabricLun {
    fn identity(&self) -> &LunIdentity {
        &self.identity
    }

    fn block_count(&self) -> u64 {
        self.recorder.block_count()
    }

    fn physical_block_bytes(&self) -> u32 {
        BLOCK_BYTES as u32
    }

    fn read_only(&self) -> bool {
        self.locked.load(Ordering::Acquire)
    }

    /// Reads production, for copies from here to elsewhere.
    fn read(&self, lba: u64, buf: &mut [u8]) -> Result<(), LunError> {
        let end = lba.checked_add((buf.len() / BLOCK_BYTES) as u64);
        if end.is_none_or(|end| end > self.block_count()) {
            let count = (buf.len() / BLOCK_BYTES) as u64;
            return Err(LunError::OutOfRange { name: self.identity.name.clone(), lba, count });
        }
        self.production.read(lba, buf)
    }

    fn submit(&self, _: &[Change<'_>]) -> Result<Lsn, LunError> {
        self.refuse("writes that do not go through the array")
    }

    fn compare_and_write(&self, _: u64, _: &[u8], _: &[u8]) -> Result<Compared, LunError> {
        self.refuse("writes that do not go through the array")
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn flush(&self, done: FlushDone) {
        self.recorder.flush(done);
    }

    fn extents(&self, _: u64, _: u64, _: usize) -> Result<Vec<Extent>, LunError> {
        self.refuse("allocation status")
    }
}
