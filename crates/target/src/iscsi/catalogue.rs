//! Targets by name, and their logical units by number; both change while sessions use them.

use super::masking::LUN_MAX;
use super::ServerError;
use crate::lun::LunRef;
use crate::scsi::{Devices, LogicalUnit, TargetPort};
use parking_lot::RwLock;
use playhead_wire::iscsi::text::is_iscsi_name;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// One target.
pub(super) struct Target {
    pub(super) name: Arc<str>,
    port: Arc<TargetPort>,
    devices: Arc<Devices>,
    units: RwLock<BTreeMap<u16, Arc<LogicalUnit>>>,
    /// Changes with `units`: sessions compare it to know their copy is stale.
    generation: AtomicU64,
}

impl Target {
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The units and the generation they belong to.
    pub(super) fn units(&self) -> (u64, Vec<(u16, Arc<LogicalUnit>)>) {
        let units = self.units.read();
        let list = units.iter().map(|(n, unit)| (*n, Arc::clone(unit)));
        (self.generation(), list.collect())
    }

    fn change<T>(&self, f: impl FnOnce(&mut BTreeMap<u16, Arc<LogicalUnit>>) -> T) -> T {
        let mut units = self.units.write();
        let result = f(&mut units);
        self.generation.fetch_add(1, Ordering::AcqRel);
        result
    }

    /// The units' own numbers.
    pub(super) fn numbers(&self) -> Vec<u16> {
        self.units.read().keys().copied().collect()
    }

    /// Presents `lun`; returns the unit that was there.
    pub(super) fn set(&self, number: u16, lun: LunRef) -> Result<Option<Arc<LogicalUnit>>, ServerError> {
        if number > LUN_MAX {
            return Err(ServerError::BadName { name: number.to_string() });
        }
        let device = self.devices.find(&lun.identity().uuid);
        let unit = Arc::new(LogicalUnit::new(lun, Arc::clone(&self.port), device));
        Ok(self.change(|units| units.insert(number, unit)))
    }

    pub(super) fn remove(&self, number: u16) -> Result<Arc<LogicalUnit>, ServerError> {
        if !self.units.read().contains_key(&number) {
            return Err(self.no_such_lun(number));
        }
        self.change(|units| units.remove(&number)).ok_or_else(|| self.no_such_lun(number))
    }

    fn no_such_lun(&self, number: u16) -> ServerError {
        ServerError::NoSuchLun { iqn: self.name.to_string(), number }
    }

    pub(super) fn take_all(&self) -> Vec<Arc<LogicalUnit>> {
        let units = self.change(std::mem::take);
        units.into_values().collect()
    }
}

/// Waits until the caller is the only one who holds `unit`. False: the deadline passed first.
pub(super) fn let_go(unit: &Arc<LogicalUnit>, deadline: Instant) -> bool {
    while Arc::strong_count(unit) > 1 {
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    true
}

/// All targets.
#[derive(Default)]
pub(super) struct Catalogue {
    targets: RwLock<BTreeMap<String, Arc<Target>>>,
    devices: Arc<Devices>,
}

impl Catalogue {
    pub(super) fn add(&self, iqn: &str) -> Result<(), ServerError> {
        if !is_iscsi_name(iqn) {
            return Err(ServerError::BadName { name: iqn.to_owned() });
        }
        let mut targets = self.targets.write();
        if targets.contains_key(iqn) {
            return Err(ServerError::NameTaken { iqn: iqn.to_owned() });
        }
        let taken: Vec<u16> = targets.values().map(|target| target.port.relative_id).collect();
        // There are fewer targets than numbers: each costs far more than a byte of memory.
        let relative_id = (1..=u16::MAX).find(|id| !taken.contains(id)).unwrap_or(u16::MAX);
        let name: Arc<str> = iqn.into();
        let target = Target {
            port: Arc::new(TargetPort { name: Arc::clone(&name), relative_id }),
            name,
            devices: Arc::clone(&self.devices),
            units: RwLock::new(BTreeMap::new()),
            generation: AtomicU64::new(0),
        };
        targets.insert(iqn.to_owned(), Arc::new(target));
        Ok(())
    }

    pub(super) fn find(&self, iqn: &str) -> Result<Arc<Target>, ServerError> {
        let no_such = || ServerError::NoSuchTarget { iqn: iqn.to_owned() };
        self.targets.read().get(iqn).cloned().ok_or_else(no_such)
    }

    pub(super) fn remove(&self, iqn: &str) -> Result<Arc<Target>, ServerError> {
        let no_such = || ServerError::NoSuchTarget { iqn: iqn.to_owned() };
        self.targets.write().remove(iqn).ok_or_else(no_such)
    }

    /// What every LUN is to SCSI, whichever target presents it.
    pub(super) fn devices(&self) -> &Arc<Devices> {
        &self.devices
    }

    /// Every unit, with its target's name.
    pub(super) fn all_units(&self) -> Vec<(Arc<str>, Arc<LogicalUnit>)> {
        let targets = self.targets.read();
        let mut all = Vec::new();
        for target in targets.values() {
            all.extend(target.units().1.into_iter().map(|(_, unit)| (Arc::clone(&target.name), unit)));
        }
        all
    }

    /// Every target, by name.
    pub(super) fn targets(&self) -> Vec<Arc<Target>> {
        self.targets.read().values().cloned().collect()
    }
}
