//! The exports by name, and who uses each.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, RwLock};
use playhead_wire::nbd::text;

use super::{ExportStatus, ServerError};
use crate::lun::LunRef;
use crate::scsi::{Devices, Policy};
use crate::strangers::Strangers;

/// One LUN under a name.
pub(super) struct Export {
    pub(super) name: String,
    pub(super) description: String,
    pub(super) strangers: Strangers,
    closing: AtomicBool,
    users: Mutex<usize>,
    left: Condvar,
}

impl Export {
    pub(super) fn read_only(&self) -> bool {
        self.strangers.lun.read_only()
    }

    /// Whether the export was removed.
    pub(super) fn closing(&self) -> bool {
        self.closing.load(Ordering::SeqCst)
    }

    /// A connection's right to use the LUN, or nothing when the export was removed meanwhile.
    pub(super) fn enter(self: &Arc<Export>) -> Option<ExportUse> {
        let mut users = self.users.lock();
        if self.closing() {
            return None;
        }
        *users += 1;
        Some(ExportUse { export: Arc::clone(self) })
    }

    /// Waits until nobody uses the LUN, at most `patience`. Returns how many do.
    pub(super) fn wait_unused(&self, patience: Duration) -> usize {
        let deadline = Instant::now() + patience;
        let mut users = self.users.lock();
        while *users > 0 {
            if self.left.wait_until(&mut users, deadline).timed_out() {
                break;
            }
        }
        *users
    }
}

/// The right to use an export's LUN; ends when dropped.
pub(super) struct ExportUse {
    export: Arc<Export>,
}

impl ExportUse {
    pub(super) fn export(&self) -> &Export {
        &self.export
    }
}

impl Drop for ExportUse {
    fn drop(&mut self) {
        *self.export.users.lock() -= 1;
        self.export.left.notify_all();
    }
}

/// Why a client's choice of an export was refused, in words for that client.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotFound {
    #[error("no export is named {0:?}")]
    Unknown(String),
    #[error("nothing is exported")]
    Nothing,
    #[error("there is no default export: {0} exports are offered, choose one by its name")]
    Ambiguous(usize),
}

/// All exports. Changes take effect for handshakes at once.
#[derive(Default)]
pub(super) struct Exports {
    by_name: RwLock<BTreeMap<String, Arc<Export>>>,
    pub(super) devices: OnceLock<Arc<Devices>>,
    /// Taken before `by_name`.
    policy: Mutex<Policy>,
}

impl Exports {
    pub(super) fn add(&self, name: &str, lun: LunRef, description: &str) -> Result<(), ServerError> {
        // The empty name is the protocol's word for the default export, so it cannot be a name of its own.
        if name.is_empty() || text(name.as_bytes()).is_err() {
            return Err(ServerError::BadName { name: name.into() });
        }
        let policy = self.policy.lock();
        let mut by_name = self.by_name.write();
        if by_name.contains_key(name) {
            return Err(ServerError::NameTaken { name: name.into() });
        }
        let export = Arc::new(Export {
            name: name.into(),
            description: description.into(),
            strangers: Strangers::new(lun, self.devices.get(), &policy),
            closing: AtomicBool::new(false),
            users: Mutex::new(0),
            left: Condvar::new(),
        });
        by_name.insert(name.into(), export);
        Ok(())
    }

    /// Puts another policy in force, for the exports there are and those to come.
    pub(super) fn set_policy(&self, policy: Policy) {
        let mut current = self.policy.lock();
        *current = policy;
        for export in self.by_name.read().values() {
            export.strangers.obey(&current);
        }
    }

    pub(super) fn remove(&self, name: &str) -> Result<Arc<Export>, ServerError> {
        let removed = self.by_name.write().remove(name);
        let export = removed.ok_or_else(|| ServerError::NoSuchExport { name: name.into() })?;
        // Under the lock of `enter`: whoever entered before is counted, whoever comes after is refused.
        let users = export.users.lock();
        export.closing.store(true, Ordering::SeqCst);
        drop(users);
        Ok(export)
    }

    /// The export a client means by `name`: the empty name is the only export, if there is exactly one.
    pub(super) fn find(&self, name: &str) -> Result<Arc<Export>, NotFound> {
        let by_name = self.by_name.read();
        if let Some(export) = by_name.get(name) {
            return Ok(Arc::clone(export));
        }
        let mut all = by_name.values();
        match (name, all.next(), all.next()) {
            ("", Some(only), None) => Ok(Arc::clone(only)),
            ("", None, _) => Err(NotFound::Nothing),
            ("", ..) => Err(NotFound::Ambiguous(by_name.len())),
            _ => Err(NotFound::Unknown(name.into())),
        }
    }

    /// Every export, by name.
    pub(super) fn all(&self) -> Vec<Arc<Export>> {
        self.by_name.read().values().cloned().collect()
    }

    pub(super) fn list(&self) -> Vec<ExportStatus> {
        let describe = |export: Arc<Export>| ExportStatus {
            name: export.name.clone(),
            description: export.description.clone(),
            size_bytes: export.strangers.size_bytes(),
            read_only: export.read_only(),
            connections: *export.users.lock(),
        };
        self.all().into_iter().map(describe).collect()
    }
}
