//! The registrations that are to survive a loss of power (APTPL): one small file for each LUN, replaced as a whole.
//!
//! `docs/formats.md` has the format. A file is written under another name, synced and renamed, and the directory is synced: whenever
//! the power fails, what is there is wholly the old or wholly the new. One that cannot be read for what it is never counts as none.

use super::super::nexus::InitiatorPort;
use super::state::{Held, ItNexus, Registration, Reservations, REGISTRATIONS_MAX};
use playhead_journal::files::{Files, Open};
use playhead_wire::scsi::reservation::Kind;
use std::io::{self, ErrorKind, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const MAGIC: &[u8; 8] = b"PHres\r\n\x1a";
const FORMAT: u32 = 1;
const HEADER_LEN: usize = 32;
const REGISTRATION_LEN: usize = 18;
const CRC_LEN: usize = 4;
/// The holder's index when all hold, or nobody.
const NOBODY: u16 = 0xffff;
/// Most bytes of a file: registrations of the longest names there are.
const FILE_BYTES_MAX: u64 = (HEADER_LEN + CRC_LEN + REGISTRATIONS_MAX * (REGISTRATION_LEN + 2 * 1024)) as u64;

/// What a medium has of one LUN.
#[derive(Debug)]
pub(in super::super) enum Stored {
    /// Nothing persists.
    None,
    /// These do.
    Some(Reservations),
    /// Something does, but what cannot be told, for this reason.
    Lost(String),
}

/// The directory of the files.
pub(in super::super) struct Store {
    files: Arc<dyn Files>,
    directory: PathBuf,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("directory", &self.directory).finish_non_exhaustive()
    }
}

impl Store {
    /// Keeps files in `directory` on the medium `files`; the directory is made if need be.
    ///
    /// Errors: the medium's.
    pub(in super::super) fn open(files: Arc<dyn Files>, directory: &Path) -> io::Result<Store> {
        files.create_dir(directory)?;
        if let Some(parent) = directory.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            files.sync_dir(parent)?;
        }
        Ok(Store { files, directory: directory.to_owned() })
    }

    fn path(&self, uuid: &[u8; 16], ending: &str) -> PathBuf {
        let name: String = uuid.iter().map(|byte| format!("{byte:02x}")).collect();
        self.directory.join(format!("{name}{ending}"))
    }

    /// The file of a LUN.
    pub(in super::super) fn file(&self, uuid: &[u8; 16]) -> PathBuf {
        self.path(uuid, ".res")
    }

    /// What persists of the LUN `uuid`.
    pub(in super::super) fn load(&self, uuid: &[u8; 16]) -> Stored {
        let read = || -> io::Result<Vec<u8>> {
            let file = self.files.open(&self.file(uuid), Open::Read)?;
            let size = file.size()?;
            if size > FILE_BYTES_MAX {
                return Err(io::Error::other("it is too long"));
            }
            let mut bytes = vec![0; size as usize];
            file.read_at(&mut bytes, 0)?;
            Ok(bytes)
        };
        match read() {
            Ok(bytes) => match parse(&bytes, uuid) {
                Ok(reservations) => Stored::Some(reservations),
                Err(fault) => Stored::Lost(fault.to_owned()),
            },
            Err(error) if error.kind() == ErrorKind::NotFound => Stored::None,
            Err(error) => Stored::Lost(error.to_string()),
        }
    }

    /// Puts `reservations` on the medium, or takes away what is there if nothing is to persist; durably.
    pub(in super::super) fn keep(&self, uuid: &[u8; 16], reservations: &Reservations) -> io::Result<()> {
        if !reservations.to_keep() {
            return self.remove(uuid);
        }
        let new = self.path(uuid, ".res.new");
        let file = self.files.open(&new, Open::Create)?;
        file.write_at(&[IoSlice::new(&emit(reservations, uuid))], 0)?;
        file.sync()?;
        drop(file);
        self.files.rename(&new, &self.file(uuid))?;
        self.files.sync_dir(&self.directory)
    }

    /// Takes a LUN's file away, durably. No error if there is none.
    pub(in super::super) fn remove(&self, uuid: &[u8; 16]) -> io::Result<()> {
        match self.files.remove(&self.file(uuid)) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            other => other?,
        }
        self.files.sync_dir(&self.directory)
    }
}

fn emit(reservations: &Reservations, uuid: &[u8; 16]) -> Vec<u8> {
    let held = reservations.held.as_ref();
    let holder = held.and_then(|held| held.holder.as_ref()).and_then(|holder| reservations.position(holder));
    let mut out = Vec::new();
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&FORMAT.to_le_bytes());
    out.extend_from_slice(&held.map_or(0, |held| held.kind as u16).to_le_bytes());
    out.extend_from_slice(&holder.map_or(NOBODY, |at| at as u16).to_le_bytes());
    out.extend_from_slice(&(reservations.registrations.len() as u16).to_le_bytes());
    out.resize(HEADER_LEN, 0);
    for r in &reservations.registrations {
        let (initiator, target) = (r.nexus.initiator.name.as_bytes(), r.nexus.target.as_bytes());
        out.extend_from_slice(&r.key.to_le_bytes());
        out.extend_from_slice(&r.nexus.initiator.isid);
        out.extend_from_slice(&(initiator.len() as u16).to_le_bytes());
        out.extend_from_slice(&(target.len() as u16).to_le_bytes());
        out.extend_from_slice(initiator);
        out.extend_from_slice(target);
    }
    let crc = crc(&out, uuid);
    out.extend_from_slice(&crc);
    out
}

/// Seeded with the LUN's UUID: another's file never passes for its own.
fn crc(bytes: &[u8], uuid: &[u8; 16]) -> [u8; CRC_LEN] {
    crc32c::crc32c_append(crc32c::crc32c(uuid), bytes).to_le_bytes()
}

/// Takes bytes from the front of what is left.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], &'static str> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or("it ends too early")?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], &'static str> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn u16(&mut self) -> Result<u16, &'static str> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    fn name(&mut self, len: usize) -> Result<Arc<str>, &'static str> {
        let bytes = self.take(len)?;
        Ok(std::str::from_utf8(bytes).map_err(|_| "a name is not UTF-8")?.into())
    }
}

fn parse(bytes: &[u8], uuid: &[u8; 16]) -> Result<Reservations, &'static str> {
    let mut file = Cursor(bytes);
    if file.take(MAGIC.len())? != MAGIC {
        return Err("it does not begin as such a file does");
    }
    let format = u32::from_le_bytes(file.array()?);
    if format > FORMAT {
        return Err("a newer Playhead wrote it");
    }
    let checked = bytes.len().checked_sub(CRC_LEN).ok_or("it ends too early")?;
    if crc(&bytes[..checked], uuid) != bytes[checked..] {
        return Err("its checksum does not agree");
    }
    let mut file = Cursor(&bytes[MAGIC.len() + 4..checked]);
    let kind = file.u16()?;
    let holder = file.u16()?;
    let count = file.u16()?;
    file.take(HEADER_LEN - MAGIC.len() - 10)?;
    if usize::from(count) > REGISTRATIONS_MAX {
        return Err("it has too many registrations");
    }
    let mut registrations = Vec::new();
    for _ in 0..count {
        let key = u64::from_le_bytes(file.array()?);
        let isid = file.array()?;
        let lengths = (file.u16()?, file.u16()?);
        let name = file.name(usize::from(lengths.0))?;
        let target = file.name(usize::from(lengths.1))?;
        let nexus = ItNexus { initiator: InitiatorPort { name, isid }, target };
        registrations.push(Registration { nexus, key });
    }
    if !file.0.is_empty() {
        return Err("something follows its end");
    }
    let held = match kind {
        0 => None,
        code => {
            let kind = u8::try_from(code).ok().and_then(Kind::from_code).ok_or("its type is none")?;
            let holder = registrations.get(usize::from(holder)).map(|r| r.nexus.clone());
            if holder.is_none() != kind.all_hold() {
                return Err("its holder is not registered");
            }
            Some(Held { kind, holder })
        }
    };
    Ok(Reservations { registrations, held, persist: true, ..Reservations::default() })
}
