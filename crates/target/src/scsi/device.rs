//! What a LUN is to SCSI whichever targets present it: its reservations, mode settings, resets, and who is there to be told of them.

use super::alua;
use super::logs::Counters;
use super::nexus::{Attention, Nexus};
use super::reservation::{Access, ItNexus, Outcome, Reservations, Rights, Store, Stored};
use super::sanitize::Sanitizer;
use super::unit::Refusal;
use parking_lot::Mutex;
use playhead_journal::files::Files;
use playhead_wire::scsi::mode::{Settings, DEFAULTS};
use playhead_wire::scsi::Sense;
use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::atomic::{fence, AtomicBool, AtomicU32, AtomicU64, AtomicU8, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

/// Between two looks at whether they are over.
const LOOK_EVERY: Duration = Duration::from_micros(200);

/// A target as a port of the units it presents (SPC-4 3.1.106): its iSCSI name and relative target port identifier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetPort {
    /// iSCSI name.
    pub name: Arc<str>,
    /// Unique among the server's targets; never 0.
    pub relative_id: u16,
}

/// One LUN's state. It is in memory, and a new process is a power on, except for what a [`Store`] keeps.
pub struct Device {
    uuid: [u8; 16],
    nexuses: Mutex<Vec<Weak<Nexus>>>,
    /// The targets that present it, and at how many numbers.
    ports: Mutex<Vec<(Arc<TargetPort>, usize)>>,
    reservations: Mutex<Reservations>,
    /// [`Rights`] of those who come by no nexus.
    strangers: AtomicU8,
    store: Option<Arc<Store>>,
    /// The medium may have something else than `reservations`: the last change of it failed.
    unsure: AtomicBool,
    /// The size all nexuses know of, in blocks; `u64::MAX` before the first is told.
    pub(super) known_block_count: AtomicU64,
    /// Counts the times all tasks were ended.
    epoch: AtomicU32,
    settings: AtomicU8,
    pub(super) stopped: AtomicBool,
    pub(super) sanitizer: Sanitizer,
    pub(super) access: alua::Access,
    pub(super) counters: Counters,
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Device").field("uuid", &self.uuid).finish_non_exhaustive()
    }
}

fn pack(settings: Settings) -> u8 {
    u8::from(settings.write_cache)
        | u8::from(settings.descriptor_sense) << 1
        | u8::from(settings.write_protect) << 2
        | u8::from(settings.space_notices) << 3
}

impl Device {
    /// The state at power on of the LUN `uuid`, with the reservations that `store` has kept.
    pub(super) fn new(uuid: [u8; 16], store: Option<Arc<Store>>) -> Device {
        let reservations = match store.as_ref().map(|store| (store, store.load(&uuid))) {
            None | Some((_, Stored::None)) => Reservations::default(),
            Some((_, Stored::Some(kept))) => kept,
            Some((store, Stored::Lost(fault))) => {
                log::error!(
                    "the persistent reservations of a LUN cannot be read: {}: {fault}; hosts get no access to the LUN until one \
                     replaces them (REPLACE LOST RESERVATION) or the file is put right or removed and the service restarted",
                    store.file(&uuid).display()
                );
                Reservations::lost()
            }
        };
        let strangers = reservations.rights(None).bits();
        Device {
            uuid,
            nexuses: Mutex::default(),
            ports: Mutex::default(),
            reservations: Mutex::new(reservations),
            strangers: AtomicU8::new(strangers),
            store,
            unsure: AtomicBool::new(false),
            known_block_count: AtomicU64::new(u64::MAX),
            epoch: AtomicU32::new(0),
            settings: AtomicU8::new(pack(DEFAULTS)),
            stopped: AtomicBool::new(false),
            sanitizer: Sanitizer::default(),
            access: alua::Access::default(),
            counters: Counters::default(),
        }
    }

    /// Whether somebody who cannot register, such as an NBD client, may now read (or also `write`): reservations say so, and no
    /// SANITIZE is under way.
    pub fn admits_strangers(&self, write: bool) -> bool {
        if self.sanitizer.bars().is_some() {
            return false;
        }
        let rights = Rights::from_bits(self.strangers.load(Ordering::Acquire));
        rights.permit(if write { Access::Write } else { Access::Read })
    }

    /// A target begins to present it.
    pub(super) fn add_port(&self, port: &Arc<TargetPort>) {
        let mut ports = self.ports.lock();
        match ports.iter_mut().find(|(known, _)| known == port) {
            Some((_, times)) => *times += 1,
            None => ports.push((Arc::clone(port), 1)),
        }
        ports.sort_by_key(|(port, _)| port.relative_id);
    }

    /// A target presents it no longer.
    pub(super) fn remove_port(&self, port: &Arc<TargetPort>) {
        let mut ports = self.ports.lock();
        if let Some((_, times)) = ports.iter_mut().find(|(known, _)| known == port) {
            *times -= 1;
        }
        ports.retain(|(_, times)| *times > 0);
        if ports.is_empty() {
            self.sanitizer.abandon();
        }
    }

    /// The targets that present it, by relative id.
    pub(super) fn ports(&self) -> Vec<Arc<TargetPort>> {
        self.ports.lock().iter().map(|(port, _)| Arc::clone(port)).collect()
    }

    /// Takes a nexus in, with the rights it has.
    pub(super) fn enter(&self, nexus: &Arc<Nexus>) {
        let reservations = self.reservations.lock();
        nexus.set_rights(reservations.rights(Some(&nexus.it_nexus())));
        let mut nexuses = self.nexuses.lock();
        nexuses.retain(|known| known.strong_count() > 0);
        nexuses.push(Arc::downgrade(nexus));
    }

    /// A nexus ends: its RESERVE goes with it, persistent registrations stay.
    pub(super) fn leave(&self, nexus: &Nexus) {
        // It stays known as long as a command holds it: what that may do, and when it is over, others must be able to say.
        nexus.set_gone();
        let own = nexus.it_nexus();
        if self.nexuses().iter().filter(|other| other.is_present()).all(|other| other.it_nexus() != own) {
            self.change_in_memory(|reservations| reservations.nexus_lost(&own));
        }
    }

    pub(super) fn nexuses(&self) -> Vec<Arc<Nexus>> {
        self.nexuses.lock().iter().filter_map(Weak::upgrade).collect()
    }

    /// Establishes `attention` for every nexus that `chosen` picks.
    pub(super) fn attend(&self, attention: Attention, chosen: impl Fn(&Nexus) -> bool) {
        for nexus in self.nexuses().iter().filter(|nexus| chosen(nexus)) {
            nexus.attend(attention);
        }
    }

    pub(super) fn can_persist(&self) -> bool {
        self.store.is_some()
    }

    /// Whether what was reserved is not known any more.
    pub(super) fn reservations_lost(&self) -> bool {
        self.reservations.lock().is_lost()
    }

    pub(super) fn look_at_reservations<T>(&self, look: impl FnOnce(&Reservations) -> T) -> T {
        look(&self.reservations.lock())
    }

    /// Changes what does not persist.
    pub(super) fn change_in_memory<T>(&self, change: impl FnOnce(&mut Reservations) -> T) -> T {
        let mut reservations = self.reservations.lock();
        let result = change(&mut reservations);
        self.refresh_rights(&reservations);
        result
    }

    /// Changes the reservations: wholly, with what is to persist on the medium before anybody sees it, or not at all. Those who
    /// must be told are.
    pub(super) fn change_reservations(
        &self,
        change: impl FnOnce(&mut Reservations) -> Result<Outcome, Refusal>,
    ) -> Result<Outcome, Refusal> {
        let mut current = self.reservations.lock();
        let mut next = current.clone();
        let outcome = change(&mut next)?;
        if let Err(error) = self.keep(&current, &next) {
            log::error!("a persistent reservation cannot be kept, the command is refused: {error}");
            return Err(Sense::INTERNAL_FAILURE.into());
        }
        *current = next;
        for (attention, told) in &outcome.notices {
            self.attend(*attention, |nexus| nexus.it_nexus() == *told);
        }
        self.refresh_rights(&current);
        Ok(outcome)
    }

    fn keep(&self, current: &Reservations, next: &Reservations) -> io::Result<()> {
        let Some(store) = &self.store else {
            return Ok(());
        };
        let replaced = current.is_lost() && !next.is_lost();
        if current.same_when_kept(next) && !replaced && !self.unsure.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.unsure.store(true, Ordering::Relaxed);
        store.keep(&self.uuid, next)?;
        self.unsure.store(false, Ordering::Relaxed);
        Ok(())
    }

    fn refresh_rights(&self, reservations: &Reservations) {
        self.strangers.store(reservations.rights(None).bits(), Ordering::Release);
        for nexus in self.nexuses() {
            nexus.set_rights(reservations.rights(Some(&nexus.it_nexus())));
        }
    }

    /// Forgets every reservation, also on the medium.
    fn forget_reservations(&self) -> io::Result<()> {
        let mut reservations = self.reservations.lock();
        if let Some(store) = &self.store {
            store.remove(&self.uuid)?;
        }
        let outcome = reservations.forget();
        for (attention, told) in &outcome.notices {
            self.attend(*attention, |nexus| nexus.it_nexus() == *told);
        }
        self.refresh_rights(&reservations);
        Ok(())
    }

    /// LOGICAL UNIT RESET (SAM-5 7.7): ends all tasks and RESERVE, restores mode pages, tells every initiator.
    pub(super) fn reset(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
        self.settings.store(pack(DEFAULTS), Ordering::Relaxed);
        self.stopped.store(false, Ordering::Relaxed);
        self.change_in_memory(Reservations::reset);
        self.end_background_copies();
        self.attend(Attention::Reset, |_| true);
    }

    /// Ends copies at work in the background, of all initiators.
    pub(super) fn end_background_copies(&self) {
        for nexus in self.nexuses() {
            nexus.copies.reset();
        }
    }

    /// CLEAR TASK SET (SAM-5 7.5): ends all tasks and tells the other initiators.
    pub(super) fn clear_task_set(&self, by: &Nexus) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
        self.attend(Attention::CommandsCleared, |nexus| nexus.id != by.id);
    }

    /// Ends the tasks of every session of `gone`. False: one of them may still change the unit after `patience`.
    pub(super) fn end_tasks_of(&self, gone: &[ItNexus], patience: Duration) -> bool {
        let of_those = |nexus: &Nexus| gone.contains(&nexus.it_nexus());
        for nexus in self.nexuses().iter().filter(|nexus| of_those(nexus)) {
            nexus.epoch.fetch_add(1, Ordering::AcqRel);
        }
        self.wait_for_ended(of_those, patience)
    }

    /// Whether some command is changing the unit; one that was ended before this is asked, and is not seen, does not change it.
    pub(super) fn is_changing(&self) -> bool {
        // Pairs with the fence of `Changing::begin`: one of the two sees the other.
        fence(Ordering::SeqCst);
        self.nexuses().iter().any(|nexus| nexus.is_changing())
    }

    /// Waits until no command of the chosen nexuses is changing the unit. Those that come later see that they were ended.
    fn wait_for_ended(&self, chosen: impl Fn(&Nexus) -> bool, patience: Duration) -> bool {
        // Pairs with the fence of `Nexus::enter`: one of the two sees the other.
        fence(Ordering::SeqCst);
        let deadline = Instant::now() + patience;
        for nexus in self.nexuses().iter().filter(|nexus| chosen(nexus)) {
            while nexus.is_changing() {
                if Instant::now() >= deadline {
                    log::warn!(
                        "commands of {} on a LUN were ended, but what they have under way does not come back",
                        nexus.port.name
                    );
                    return false;
                }
                std::thread::sleep(LOOK_EVERY);
            }
        }
        true
    }

    /// A task that began in one epoch must not run in another: someone ended it in between.
    pub(super) fn epoch(&self, nexus: &Nexus) -> u32 {
        // Two counters that only rise: so does their sum.
        let own = nexus.epoch.load(Ordering::Acquire);
        self.epoch.load(Ordering::Acquire).wrapping_add(own)
    }

    /// The mode page settings in force.
    pub(super) fn settings(&self) -> Settings {
        let bits = self.settings.load(Ordering::Relaxed);
        Settings {
            write_cache: bits & 1 != 0,
            descriptor_sense: bits & 2 != 0,
            write_protect: bits & 4 != 0,
            space_notices: bits & 8 != 0,
        }
    }

    pub(super) fn set_settings(&self, settings: Settings, by: &Nexus) {
        if self.settings.swap(pack(settings), Ordering::Relaxed) != pack(settings) {
            self.attend(Attention::ModeParametersChanged, |n| n.id != by.id);
        }
    }
}

/// The devices of one server, by LUN. Other front ends that serve the same LUNs ask it too.
#[derive(Debug, Default)]
pub struct Devices {
    known: Mutex<HashMap<[u8; 16], Arc<Device>>>,
    store: OnceLock<Arc<Store>>,
}

impl Devices {
    /// From now on registrations that are to survive a loss of power do, as files in `directory`, which is made if need be. To be
    /// called once, before the first LUN is presented.
    ///
    /// Errors: those of the medium, and [`io::ErrorKind::AlreadyExists`] if it is too late.
    pub fn keep_in(&self, files: Arc<dyn Files>, directory: &Path) -> io::Result<()> {
        let known = self.known.lock();
        let store = Arc::new(Store::open(files, directory)?);
        if !known.is_empty() || self.store.set(store).is_err() {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "LUNs are presented already"));
        }
        Ok(())
    }

    /// The state of the LUN `uuid`. It lasts while anybody has it, while anything is registered, and while a SANITIZE has failed.
    pub fn find(&self, uuid: &[u8; 16]) -> Arc<Device> {
        let mut known = self.known.lock();
        known.retain(|_, device| {
            Arc::strong_count(device) > 1
                || !device.look_at_reservations(Reservations::is_empty)
                || device.sanitizer.bars().is_some()
        });
        let new = || Arc::new(Device::new(*uuid, self.store.get().cloned()));
        Arc::clone(known.entry(*uuid).or_insert_with(new))
    }

    /// Forgets the reservations of the LUN `uuid`, also on the medium: the LUN is deleted, or an administrator wants it so.
    /// Registrants that are there are told.
    ///
    /// Errors: the medium's; then nothing is forgotten.
    pub fn forget(&self, uuid: &[u8; 16]) -> io::Result<()> {
        let known = self.known.lock();
        match (known.get(uuid), self.store.get()) {
            (Some(device), _) => {
                if device.ports().is_empty() {
                    device.sanitizer.forget();
                }
                device.forget_reservations()
            }
            (None, Some(store)) => store.remove(uuid),
            (None, None) => Ok(()),
        }
    }
}
