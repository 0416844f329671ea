//! The laboratory's splitter: it feeds a replica, and can be told to miss offloads, which is what splitters did in 2010. What it misses is
//! carried out by production, the host sees GOOD, and the replica never hears of it.
//!
//! It sits where splitters sat ([`Place`]), and what carries an offload out is what did so there:
//!
//! - in the array: the array itself, here plain files behind a SCSI device server ([`FileMedium`]);
//! - in the host: what lies below a filter in its block layer, here a file that the file system zeroes, punches and copies ([`HostMedium`]);
//! - in the fabric: an array of its own behind a session, to which the command goes on as what it is ([`RemoteMedium`], [`ArrayBeyond`]).
//!
//! The splitter is the product's own [`Split`](crate::splitter::Split); what is missed passes beside it: nothing is taken, nothing is marked,
//! and it goes on believing that the replica is synchronised.
//!
//! Nothing of the service names this module. What it makes is of its own making from the start ([`MissingSplitter::create`]): a folder that
//! must hold the laboratory's mark and nothing else, in which it makes the files and the journal; the array in front of which it sits in the
//! fabric is made by it too, and no address can be given. No store, group, volume, device or array that exists can be handed to it, so no
//! policy, catalogue or request can bring it about for data that anybody wants.
//!
//! What hosts change they change one after another, over all LUNs: so a COMPARE AND WRITE is atomic although it is missed.

mod beyond;
mod lun;
mod medium;
mod remote;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use playhead_journal::{files::DiskFiles, Error, Group, Options};

use crate::lun::{LunIdentity, LunRef};
use crate::scsi::Offload;
use beyond::ArrayBeyond;
use lun::MissingLun;
use medium::{FileMedium, HostMedium};
use remote::RemoteMedium;

/// The file that makes a folder the laboratory's.
pub const MARK: &str = "PLAYHEAD-LAB";
/// What the file says.
pub const MARK_TEXT: &str = "This folder is a laboratory's. Whatever is in it will be thrown away.\n";

/// Where the splitter sits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In the array.
    Array,
    /// In the host.
    Host,
    /// Between them.
    Fabric,
}

impl Place {
    /// By the word for it.
    pub fn from_name(name: &str) -> Option<Place> {
        match name {
            "array" => Some(Place::Array),
            "host" => Some(Place::Host),
            "fabric" => Some(Place::Fabric),
            _ => None,
        }
    }
}

/// What the LUNs have in common.
struct Shared {
    /// What is missed; held over a whole change.
    missed: Mutex<Vec<Offload>>,
    group: Group,
}

/// LUNs with a replica of each, and the splitter between.
pub struct MissingSplitter {
    shared: Arc<Shared>,
    luns: Vec<Arc<MissingLun>>,
    beyond: Option<ArrayBeyond>,
    looks: Mutex<u64>,
}

impl MissingSplitter {
    /// Makes LUNs of `block_count` zeroed blocks in `dir`, and waits until their replicas are synchronised.
    ///
    /// Errors: a text, if the folder is not the laboratory's or holds anything but its mark, or if something cannot be made.
    pub fn create(dir: &Path, place: Place, names: &[String], block_count: u64) -> Result<Self, String> {
        check_folder(dir)?;
        let options = Options { background: true, ..Options::default() };
        let group = Group::create(Arc::new(DiskFiles), &dir.join("journal"), "lab", &options)
            .map_err(|e| e.to_string())?;
        let shared = Arc::new(Shared { missed: Mutex::new(Vec::new()), group });
        let beyond = match place {
            Place::Fabric => Some(ArrayBeyond::create(dir, names, block_count)?),
            Place::Array | Place::Host => None,
        };
        let mut luns = Vec::with_capacity(names.len());
        for (number, name) in (0..).zip(names) {
            let path = dir.join(format!("{name}.production"));
            luns.push(Arc::new(match (place, &beyond) {
                (Place::Fabric, Some(array)) => {
                    let medium = RemoteMedium::new(array, number, name, block_count);
                    MissingLun::create(dir, name, Arc::new(medium), &shared)?
                }
                (Place::Host, _) => {
                    let medium = HostMedium::create(&path, name, block_count)?;
                    MissingLun::create(dir, name, Arc::new(medium), &shared)?
                }
                _ => {
                    let medium = FileMedium::create(&path, block_count)?;
                    MissingLun::create(dir, name, Arc::new(medium), &shared)?
                }
            }));
        }
        for lun in &luns {
            lun.wait_until_synchronised()?;
        }
        Ok(Self { shared, luns, beyond, looks: Mutex::new(0) })
    }

    /// Which offloads are carried out and not captured, from now on.
    pub fn miss(&self, offloads: Vec<Offload>) {
        *self.shared.missed.lock() = offloads;
    }

    fn lun(&self, name: &str) -> Option<&Arc<MissingLun>> {
        self.luns.iter().find(|lun| lun.is(name))
    }

    /// The LUN that hosts write to.
    pub fn production(&self, name: &str) -> Option<LunRef> {
        Some(self.lun(name)?.clone())
    }

    /// Production past the splitter: address, iSCSI name and number. None where there is no such way.
    pub fn beyond(&self, name: &str) -> Option<(SocketAddr, &'static str, u16)> {
        let number = (0..).zip(&self.luns).find_map(|(number, lun)| lun.is(name).then_some(number))?;
        let array = self.beyond.as_ref()?;
        Some((array.address(), beyond::IQN, number))
    }

    /// The replica, as a read-only LUN of its own: of the moment when the splitter holds it for synchronised.
    ///
    /// Errors: a text.
    pub fn replica(&self, name: &str) -> Result<LunRef, String> {
        self.lun(name).ok_or_else(|| format!("there is no LUN {name:?}"))?.wait_until_synchronised()?;
        let mut looks = self.looks.lock();
        *looks += 1;
        let image_name = format!("look-{}", *looks);
        self.look(&image_name, name).map_err(|e| e.to_string())
    }

    fn look(&self, image_name: &str, name: &str) -> Result<LunRef, Error> {
        let group = &self.shared.group;
        let image = group.open_image(image_name, group.head().lsn, false)?;
        let volume = image.volume(name)?;
        let uuid = uuid::Uuid::new_v5(&volume.info().uuid, image_name.as_bytes());
        let identity = LunIdentity { uuid: *uuid.as_bytes(), name: format!("lab/{image_name}/{name}") };
        Ok(crate::splitter::lun(volume, identity))
    }

    /// Records of the journal, and bytes.
    pub fn journal(&self) -> (u64, u64) {
        let stats = self.shared.group.stats();
        (stats.records, stats.bytes_written)
    }

    /// Closes splitters and journal, and then the array beyond.
    ///
    /// Errors: a text.
    pub fn close(&self) -> Result<(), String> {
        for lun in &self.luns {
            lun.close()?;
        }
        self.shared.group.close().map_err(|e| e.to_string())?;
        if let Some(array) = &self.beyond {
            array.stop();
        }
        Ok(())
    }
}

/// The mark, whole, and nothing beside it.
fn check_folder(dir: &Path) -> Result<(), String> {
    let refuse = |why: String| format!("{} is not a folder of the laboratory's own: {why}", dir.display());
    let text = std::fs::read_to_string(dir.join(MARK)).map_err(|e| refuse(format!("{MARK}: {e}")))?;
    if text != MARK_TEXT {
        return Err(refuse(format!("{MARK} says something else")));
    }
    for entry in std::fs::read_dir(dir).map_err(|e| refuse(e.to_string()))? {
        let entry = entry.map_err(|e| refuse(e.to_string()))?;
        if entry.file_name() != MARK {
            return Err(refuse(format!("it holds {}", entry.file_name().to_string_lossy())));
        }
    }
    Ok(())
}
