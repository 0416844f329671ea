//! The one module of this crate that may use `unsafe`: mapping a finished file for reading.
#![allow(unsafe_code)]

use std::{fs, io, sync::Arc};

use crate::files::Bytes;

/// Maps the whole of `file` for reading. Only for files that are complete and are never changed or truncated again
/// (runs and segment indexes: written under a temporary name, synced, renamed).
pub(crate) fn map(file: &fs::File) -> io::Result<Bytes> {
    if file.metadata()?.len() == 0 {
        return Ok(Arc::new(Vec::new()));
    }
    // SAFETY: the callers map only finished files of the journal's own directory, which nobody truncates while they are
    // mapped (they are unlinked, never shortened); the contents are checked by CRC before they are believed.
    let map = unsafe { memmap2::Mmap::map(file)? };
    Ok(Arc::new(map))
}
