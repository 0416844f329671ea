//! A LUN of another array as hosts of this appliance see it, and the replica that follows it.

use super::array::{Array, Signs};
use super::copy_reports;
use super::edit::NewIdentity;
use super::limbo::Owner;
use super::loss::{may_be_another, Ear, Heard, Loss};
use crate::lun::{
    Change, Compared, CopyPiece, Extent, FlushDone, Lsn, Lun, LunError, LunIdentity, BLOCK_BYTES,
};
use crate::splitter::{Stamp, Wanted, WhenRead};
use parking_lot::Mutex;
use playhead_initiator::blocking::Answer;
use playhead_initiator::{discovery, Blocking, Error, Task};
use playhead_wire::iscsi::lun_bytes;
use playhead_wire::scsi::extended_copy::{CopyLimits, Designator};
use sha2::{Digest, Sha256};
use std::any::Any;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Duration;

/// Bytes of one READ of production.
const READ_BYTES: usize = 256 << 10;
/// For one command of our own. A service that stops waits for it.
const LIMIT: Duration = Duration::from_secs(10);
/// For a login that only says whether the array is there.
const SIGHT_LIMIT: Duration = Duration::from_secs(1);
/// RECEIVE COPY OPERATING PARAMETERS, of 1 KiB at most.
const COPY_PARAMETERS: [u8; 16] = [0x84, 0x03, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0];
/// Times a command is repeated that finds the array busy or has a unit attention to hear of.
const TRIES: u32 = 8;
/// Times one is repeated whose session was lost.
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

    /// Whether a record here may refer to what `source` records.
    fn refers_to(&self, source: &dyn Recorder) -> bool;

    /// As [`Recorder::capture`], for a copy that production has made by itself: `pieces` of what `source` records, where they are taken as
    /// sources. Where nothing may refer to that, or it is not in step, it is as [`Recorder::read_back`].
    fn capture_copy(
        &self,
        taken: Taken,
        source: &dyn Recorder,
        pieces: &[CopyPiece],
        when_read: WhenRead,
    ) -> Result<(), LunError>;

    /// Production has certainly not changed.
    fn unchanged(&self, taken: Taken);

    /// Nobody knows, and the array may execute it yet: until `unknown` says that it is over, the replica is not in step.
    fn doubt(&self, taken: &Taken);

    /// It is in doubt and may stay so for long: others may have the blocks meanwhile, which are read only when `unknown` is told of what is returned.
    fn let_pass(&self, taken: Taken) -> Taken;

    /// Nobody knows: production is to be read.
    fn unknown(&self, taken: Taken);

    /// Nobody knows, and it is over: production is to be read, if it can be at once and before the host is answered, which it may be when
    /// `when_read` is called.
    fn read_back(&self, taken: Taken, when_read: WhenRead);

    /// The array may have lost what it has answered GOOD for: that is to be read.
    fn lost(&self, what: Loss);

    /// Makes everything captured survive a loss of power, then calls `done`.
    fn flush(&self, done: FlushDone);

    /// Size of the replica, in blocks.
    fn block_count(&self) -> u64;

    /// For its owner to find its own kind.
    fn as_any(&self) -> &dyn Any;
}

/// The LUN itself, read for resynchronisation and copies, in a session of Playhead's own.
pub struct Production {
    session: Mutex<OwnSession>,
    signs: Arc<Signs>,
    number: u16,
    name: String,
    block_count: u64,
    known: Mutex<Known>,
    /// How often the number came to be another LUN.
    replaced: AtomicU64,
}

/// What the array says of it.
#[derive(Default)]
struct Known {
    /// As of which of our sessions.
    session: u64,
    names: Arc<[Designator]>,
    /// The last names that were told, and before that what was left of them by an earlier service.
    named: Arc<[Designator]>,
    left: Option<Stamp>,
    /// A block reads the same every time: there are no unmapped ones (LBPME), or they read as zeros (LBPRZ).
    is_steady: bool,
    /// What it takes in one list of an EXTENDED COPY, if it says so.
    copy_limits: Option<CopyLimits>,
}

impl Known {
    /// Whether it is certainly another LUN that has these `names`.
    fn is_another(&self, names: &[Designator]) -> bool {
        match (names, &*self.named, self.left) {
            ([], ..) | (_, [], None) => false,
            (now, [], Some(left)) => stamp_of(now) != Some(left),
            // One that it has come by, or has lost, does not make it another.
            (now, before, _) => !now.iter().any(|name| before.contains(name)),
        }
    }
}

/// For the change map (docs/formats.md); none of no names.
fn stamp_of(names: &[Designator]) -> Option<Stamp> {
    /// Beside those of files and devices of this host.
    const ARRAY: u64 = 3;
    if names.is_empty() {
        return None;
    }
    let mut all: Vec<Vec<u8>> = names.iter().map(Designator::to_bytes).collect();
    all.sort_unstable();
    let mut stamp = [0; 64];
    stamp[..8].copy_from_slice(&ARRAY.to_le_bytes());
    stamp[8..40].copy_from_slice(&Sha256::digest(all.concat()));
    Some(stamp)
}

/// Playhead's session, and how often the LUN was reset in its midst.
struct OwnSession {
    array: Blocking,
    ear: Ear,
    resets: u64,
    /// The session that the others were told of, and the disturbance up to which the LUN was asked whether it was reset.
    told: (u64, u64),
    signs: Arc<Signs>,
    /// The array has told that the LUN may be another.
    may_be_another: bool,
}

impl OwnSession {
    fn run(&mut self, task: Task) -> Result<Answer, Error> {
        let code = task.cdb[0];
        let answer = self.array.run(task, LIMIT)?;
        if let Some(Heard::Lost(loss)) = self.ear.hear(self.session(), code, answer.status, &answer.sense) {
            self.resets += 1;
            self.signs.note(loss);
        }
        if may_be_another(&answer.sense) {
            self.may_be_another = true;
            self.signs.note_sign();
        }
        Ok(answer)
    }

    fn session(&self) -> u64 {
        self.array.nexus().sessions()
    }

    /// Has it say what it has to say, if anybody has seen a sign of trouble since it was asked. Tells the others of a new session.
    ///
    /// Errors: it has not said it. An array that is busy tells of nothing.
    fn look(&mut self, number: u16) -> Result<(), String> {
        if self.told.0 != 0 && self.told.0 != self.session() {
            self.signs.note(Loss::Unflushed);
        }
        self.told.0 = self.session();
        let disturbed = self.signs.disturbed.load(Ordering::Acquire);
        if self.told.1 == disturbed {
            return Ok(());
        }
        for _ in 0..TRIES {
            let ready = Task { lun: lun_bytes(number), attribute: 1, ..Task::default() };
            let answer = self.run(ready).map_err(|error| error.to_string())?;
            match (answer.status, answer.sense_code()) {
                // There may be more where this comes from.
                (0x02, Some((6, _, _))) => {}
                (0x00 | 0x02, _) => {
                    self.told.1 = disturbed;
                    return Ok(());
                }
                (status, _) => return Err(format!("TEST UNIT READY: status {status:#04x}")),
            }
        }
        Err("it has one unit attention after another".to_owned())
    }
}

impl Production {
    /// LUN `number` of `array`, which has `block_count` blocks. Logs in when it is first read.
    pub fn new(array: &Array, number: u16, name: &str, block_count: u64) -> Production {
        let signs = Arc::clone(&array.signs);
        let array = Blocking::new(array.own_remote(number));
        let session = Mutex::new(OwnSession {
            array,
            ear: Ear::default(),
            resets: 0,
            told: (0, 0),
            signs: Arc::clone(&signs),
            may_be_another: false,
        });
        let (known, replaced) = (Mutex::default(), AtomicU64::new(0));
        Production { signs, session, number, name: name.to_owned(), block_count, known, replaced }
    }

    /// Size in blocks.
    pub fn block_count(&self) -> u64 {
        self.block_count
    }

    /// SYNCHRONIZE CACHE of all of it.
    ///
    /// Errors: [`LunError::Io`].
    pub fn flush(&self) -> Result<(), LunError> {
        let mut cdb = [0; 16];
        cdb[0] = 0x35;
        self.insist("SYNCHRONIZE CACHE", cdb, 0).map(|_| ())
    }

    /// How many sessions it took to keep it in sight, and resets in their midst. An array that was out of sight, or reset, may have been
    /// without power, and without a battery for what it had only in memory.
    ///
    /// Errors: [`LunError::Io`]: there is no session.
    pub fn generation(&self) -> Result<u64, LunError> {
        let mut own = self.session.lock();
        own.array.attend(SIGHT_LIMIT).map_err(|error| self.fault(error.to_string()))?;
        own.look(self.number).map_err(|error| self.fault(error))?;
        self.ask(&mut own);
        Ok(own.session() + own.resets)
    }

    /// Rises whenever anybody sees a sign that the array may have lost something of any LUN, which [`Production::generation`] finds out of
    /// this one.
    pub fn disturbed(&self) -> u64 {
        self.signs.disturbed.load(Ordering::Acquire)
    }

    /// Rises whenever nothing that the array has answered is certain any more.
    pub fn lost(&self) -> u64 {
        self.signs.lost.load(Ordering::Acquire) + self.replaced.load(Ordering::Acquire)
    }

    /// What tells after the service was off whether the number is the same LUN: its names. None as long as they are not known.
    pub(super) fn stamp(&self) -> Option<Stamp> {
        let known = self.known.lock();
        stamp_of(&known.named).or(known.left)
    }

    /// It was left as `left` says. The array need not be there yet: that is looked at when it tells its names.
    pub(super) fn was_left(&self, left: &Stamp) {
        self.known.lock().left = Some(*left);
    }

    /// The array's names for it (VPD page 83h), the best first; none as long as it has not been in sight.
    pub fn names(&self) -> Arc<[Designator]> {
        Arc::clone(&self.known.lock().names)
    }

    /// Whether a copy of its blocks is for certain what they read as. Where an unmapped block may read as anything, so may its copy, and
    /// differently (SBC-4 4.7.4).
    pub fn is_steady(&self) -> bool {
        self.known.lock().is_steady
    }

    /// What the array takes in one list of an EXTENDED COPY. `None`: it does not say, or has not been in sight.
    pub(crate) fn copy_limits(&self) -> Option<CopyLimits> {
        self.known.lock().copy_limits
    }

    /// Asks for what is to be known of it, once a session: whoever changes that ends it, or the LUN is another.
    fn ask(&self, own: &mut OwnSession) {
        let session = own.array.nexus().sessions();
        if self.known.lock().session == session && !own.may_be_another {
            return;
        }
        let array = &mut own.array;
        let mut capacity = [0; 16];
        (capacity[0], capacity[1], capacity[13]) = (0x9e, 0x10, 32);
        let asked = discovery::ask(array, self.number, &[0x12, 1, 0x83, 4, 0, 0], 1024, LIMIT)
            .and_then(|page| Ok((page, discovery::ask(array, self.number, &capacity, 32, LIMIT)?)))
            .and_then(|told| Ok((told, discovery::ask(array, self.number, &COPY_PARAMETERS, 1024, LIMIT)?)));
        match asked {
            Ok(((page, capacity), parameters)) => {
                // Past whatever a new session has to hear first.
                own.ear.hear(session, 0, 0, &[]);
                // T10, EUI-64 and NAA are nobody else's (SPC-4 7.8.6); a vendor's own form may be another LUN's too.
                let mut names = Designator::of_page(&page.unwrap_or_default());
                names.retain(|name| matches!(name.kind(), 1..=3));
                names.sort_by_key(|name| (name.as_naa().is_none(), name.kind() != 3, name.kind() != 2));
                let is_steady = is_steady(&capacity.unwrap_or_default());
                let copy_limits = parameters.and_then(|told| copy_reports::limits(&told));
                own.may_be_another = false;
                let names: Arc<[Designator]> = names.into();
                let mut known = self.known.lock();
                let named = if names.is_empty() { Arc::clone(&known.named) } else { Arc::clone(&names) };
                if known.is_another(&names) {
                    log::error!(
                        "{} is another LUN of the array than it was; all of it is compared",
                        self.name
                    );
                    self.replaced.fetch_add(1, Ordering::AcqRel);
                }
                let left = known.left.filter(|_| names.is_empty());
                *known = Known { session, names, named, left, is_steady, copy_limits };
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
        let data = self.insist(&format!("READ of LBA {lba}"), cdb, part.len())?;
        if data.len() != part.len() {
            return Err(self.fault("the array sends less than was asked for".to_owned()));
        }
        part.copy_from_slice(&data);
        Ok(())
    }

    /// Runs a command that may be repeated, past attentions and busy moments.
    fn insist(&self, what: &str, cdb: [u8; 16], read_bytes: usize) -> Result<Vec<u8>, LunError> {
        let lun = lun_bytes(self.number);
        let mut last = String::new();
        for attempt in 0..TRIES {
            let task = Task { lun, cdb, attribute: 1, read_bytes: read_bytes as u32, ..Task::default() };
            let answer = match self.session.lock().run(task) {
                Ok(answer) => answer,
                // A session that was idle may be found ended by its first command.
                Err(Error::Lost(why)) if attempt < LOST_MAX => {
                    last = why;
                    continue;
                }
                Err(error) => return Err(self.fault(error.to_string())),
            };
            match answer.status {
                0 => return Ok(answer.data),
                0x02 if answer.sense_code().is_some_and(|(key, _, _)| key == 6) => {}
                0x08 | 0x28 => std::thread::sleep(Duration::from_millis(10 << attempt)),
                _ => {}
            }
            last = format!("{what}: status {:#04x}, sense {:02x?}", answer.status, answer.sense_code());
            if !matches!(answer.status, 0x02 | 0x08 | 0x28) {
                break;
            }
        }
        Err(self.fault(last))
    }
}

/// Whether the data of READ CAPACITY(16) says that a block reads the same every time. An array that does not know it has no unmapped blocks.
fn is_steady(capacity: &[u8]) -> bool {
    let flags = capacity.get(14).copied().unwrap_or(0);
    flags & 0x80 == 0 || flags & 0x40 != 0
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lun_is_another_if_it_has_none_of_the_names_of_before() {
        let name = |byte: u8| Designator::new(1, 3, &[byte; 8]).unwrap();
        let known = |named: &[Designator], left| Known { named: named.into(), left, ..Known::default() };
        let one = known(&[name(1), name(2)], None);
        assert!(one.is_another(&[name(3)]));
        assert!(!one.is_another(&[name(2), name(3)]) && !one.is_another(&[]));
        let left = known(&[], stamp_of(&[name(1), name(2)]));
        assert!(
            !left.is_another(&[name(2), name(1)]) && left.is_another(&[name(3)]) && !left.is_another(&[])
        );
        assert!(!Known::default().is_another(&[name(1)]));
    }

    #[test]
    fn only_where_unmapped_blocks_may_read_as_anything_a_copy_is_not_certain() {
        let told = |flags| [&[0; 14][..], &[flags], &[0; 17]].concat();
        assert!(is_steady(&told(0x00)) && is_steady(&told(0xc0)) && is_steady(&[]));
        assert!(!is_steady(&told(0x80)));
    }
}
