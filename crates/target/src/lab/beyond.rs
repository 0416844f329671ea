//! The array behind the laboratory's splitter in the fabric: plain files behind the device server, on a port of loopback, made and ended
//! with the splitter. It knows of no splitter and has no policy: it does what it is asked, like the arrays of 2010.

use std::any::Any;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::medium::{FileMedium, Medium};
use crate::iscsi::{Limits, Server};
use crate::lun::{Change, Compared, Extent, FlushDone, Lsn, Lun, LunError, LunIdentity};
use crate::splitter::Production;

/// Its only target.
pub(super) const IQN: &str = "iqn.2026-11.io.playhead.lab:beyond";
/// The splitter's session is silent while nobody needs it.
const IDLE: Duration = Duration::from_secs(24 * 3600);

/// It runs until it is stopped.
pub(super) struct ArrayBeyond {
    server: Server,
    identities: Vec<LunIdentity>,
}

impl ArrayBeyond {
    /// LUNs of zeros, numbered from 0 in the order of `names`.
    pub(super) fn create(dir: &Path, names: &[String], block_count: u64) -> Result<ArrayBeyond, String> {
        let limits = Limits { idle: IDLE, ..Limits::default() };
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let server = Server::bind(address, limits).map_err(|e| e.to_string())?;
        server.add_target(IQN).map_err(|e| e.to_string())?;
        let one_at_a_time = Arc::new(Mutex::new(()));
        let mut identities = Vec::with_capacity(names.len());
        for (number, name) in (0..).zip(names) {
            let medium = FileMedium::create(&dir.join(format!("{name}.production")), block_count)?;
            let uuid = *uuid::Uuid::new_v4().as_bytes();
            let identity = LunIdentity { uuid, name: format!("beyond/{name}") };
            identities.push(identity.clone());
            let lun = PlainLun { identity, medium, one_at_a_time: Arc::clone(&one_at_a_time) };
            server.set_lun(IQN, number, Arc::new(lun)).map_err(|e| e.to_string())?;
        }
        Ok(ArrayBeyond { server, identities })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// The NAA designator by which EXTENDED COPY names a LUN.
    pub(super) fn naa(&self, number: u16) -> [u8; 16] {
        self.identities.get(usize::from(number)).map_or([0; 16], |one| crate::scsi::naa_of(&one.uuid))
    }

    /// At once: whoever is still logged in has nothing to lose.
    pub(super) fn stop(&self) {
        self.server.stop(Duration::ZERO);
    }
}

/// A file as a LUN.
struct PlainLun {
    identity: LunIdentity,
    medium: FileMedium,
    one_at_a_time: Arc<Mutex<()>>,
}

impl Lun for PlainLun {
    fn identity(&self) -> &LunIdentity {
        &self.identity
    }

    fn block_count(&self) -> u64 {
        self.medium.block_count()
    }

    fn read_only(&self) -> bool {
        false
    }

    fn read(&self, lba: u64, buf: &mut [u8]) -> Result<(), LunError> {
        self.medium.read(lba, buf)
    }

    fn submit(&self, changes: &[Change<'_>]) -> Result<Lsn, LunError> {
        let _alone = self.one_at_a_time.lock();
        changes.iter().try_for_each(|change| self.medium.carry_out(change))?;
        Ok(0)
    }

    fn compare_and_write(&self, lba: u64, compare: &[u8], write: &[u8]) -> Result<Compared, LunError> {
        let _alone = self.one_at_a_time.lock();
        self.medium.compare_and_write(lba, compare, write)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn flush(&self, done: FlushDone) {
        done(self.medium.flush());
    }

    fn extents(&self, lba: u64, count: u64, _limit: usize) -> Result<Vec<Extent>, LunError> {
        Ok(vec![Extent { lba, count, mapped: true, zero: false }])
    }
}
