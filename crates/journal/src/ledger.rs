//! What each copy of a group lacks of what the journal no longer has: the changed-extent file, one a copy, on the source.
//!
//! A copy that is paused, or whose disk is away, holds nothing: the trailing edge moves past its position as if it were not there. Before
//! the superblock gives a stretch of the log up, the blocks that its records changed are added here, durably; so a copy that comes back is
//! brought up to date by moving those blocks, and never by sweeping everything.
//!
//! The position is how far the copy certainly was. It is written now and then only: one that is too old makes the set too large, never
//! too small. A record that lies before the position still counts if a rewind came after the position and went back to before the record.
//!
//! The file has two slots of fixed size like the superblock, made in full when the copy is added: trimming, which is what makes room, must
//! work on a full disk. A set that outgrows its slot becomes coarser.

use std::{
    collections::BTreeMap,
    io::IoSlice,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    changed::Blocks,
    error::Context,
    files::{File, Files, Open},
    group::{Group, Inner},
    lineage::{agree, History, TimelineId},
    record::{u32_at, u64_at, FORMAT},
    segment::{first_lsn, place},
    Error, Lsn, Result,
};

const SLOT_BYTES: usize = 4 << 20;
const HEADER_BYTES: usize = 64;
const MAGIC: &[u8; 8] = b"PHlack\r\n";
/// How far a copy gets before that is written down.
const NOTE_EVERY_BYTES: u64 = 64 << 20;

/// One copy's page.
pub(crate) struct Ledger {
    file: Arc<dyn File>,
    path: PathBuf,
    sequence: u64,
    /// The copy has everything before this.
    pub(crate) position: Lsn,
    written_position: Lsn,
    /// What it lacks is not known: everything may be different.
    pub(crate) everything: bool,
    /// What has been changed since in records that are gone.
    pub(crate) changed: Blocks,
    /// Up to where records have been noted; the edge is about to be there.
    noted: Lsn,
}

/// The directory of the ledgers.
pub(crate) fn ledger_dir(dir: &Path) -> PathBuf {
    dir.join("copies")
}

fn ledger_path(dir: &Path, copy: &str) -> PathBuf {
    ledger_dir(dir).join(format!("{copy}.changed"))
}

/// All ledgers of a group.
pub(crate) fn open_all(files: &dyn Files, dir: &Path) -> BTreeMap<String, Ledger> {
    let names = files.list(&ledger_dir(dir)).unwrap_or_default();
    let copies = names.iter().filter_map(|n| n.strip_suffix(".changed"));
    copies
        .filter_map(|copy| match Ledger::open(files, dir, copy) {
            Ok(ledger) => Some((copy.to_string(), ledger)),
            Err(e) => {
                log::warn!("{e}: copy {copy} will be compared as a whole if it is behind");
                None
            }
        })
        .collect()
}

impl Ledger {
    fn create(files: &dyn Files, dir: &Path, copy: &str, position: Lsn) -> Result<Ledger> {
        let folder = ledger_dir(dir);
        files.create_dir(&folder).doing("creating", &folder)?;
        files.sync_dir(dir).doing("syncing", dir)?;
        let path = ledger_path(dir, copy);
        let temporary = path.with_extension("new");
        let file = files.open(&temporary, Open::Create).doing("creating", &temporary)?;
        file.allocate(0, 2 * SLOT_BYTES as u64).doing("allocating", &temporary)?;
        let mut ledger = Ledger {
            file,
            path: temporary.clone(),
            sequence: 0,
            position,
            written_position: position,
            everything: false,
            changed: Blocks::default(),
            noted: 0,
        };
        ledger.save()?;
        files.rename(&temporary, &path).doing("renaming", &temporary)?;
        files.sync_dir(&folder).doing("syncing", &folder)?;
        ledger.path = path;
        Ok(ledger)
    }

    fn open(files: &dyn Files, dir: &Path, copy: &str) -> Result<Ledger> {
        let path = ledger_path(dir, copy);
        let file = files.open(&path, Open::Write).doing("opening", &path)?;
        let mut best: Option<Ledger> = None;
        for slot in 0..2 {
            let at = slot * SLOT_BYTES as u64;
            let mut header = [0; HEADER_BYTES];
            if file.read_at(&mut header, at).is_err() || &header[..8] != MAGIC || u32_at(&header, 8) > FORMAT
            {
                continue;
            }
            let bytes = u32_at(&header, 12) as usize;
            let sequence = u64_at(&header, 16);
            if bytes > SLOT_BYTES - HEADER_BYTES || best.as_ref().is_some_and(|b| b.sequence > sequence) {
                continue;
            }
            let mut body = vec![0; bytes];
            if file.read_at(&mut body, at + HEADER_BYTES as u64).is_err()
                || crc(&header, &body) != u32_at(&header, 60)
            {
                continue;
            }
            let Some(changed) = Blocks::decode(&body) else { continue };
            let position = u64_at(&header, 24);
            best = Some(Ledger {
                file: Arc::clone(&file),
                path: path.clone(),
                sequence,
                position,
                written_position: position,
                everything: u32_at(&header, 32) & 1 != 0,
                changed,
                noted: 0,
            });
        }
        best.ok_or_else(|| Error::Damaged { path, detail: "neither of its two slots is valid".into() })
    }

    fn save(&mut self) -> Result<()> {
        self.changed.fit(SLOT_BYTES - HEADER_BYTES);
        let body = self.changed.encode();
        let sequence = self.sequence + 1;
        let mut header = [0; HEADER_BYTES];
        header[..8].copy_from_slice(MAGIC);
        header[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        header[12..16].copy_from_slice(&(body.len() as u32).to_le_bytes());
        header[16..24].copy_from_slice(&sequence.to_le_bytes());
        header[24..32].copy_from_slice(&self.position.to_le_bytes());
        header[32..36].copy_from_slice(&u32::from(self.everything).to_le_bytes());
        let crc = crc(&header, &body);
        header[60..].copy_from_slice(&crc.to_le_bytes());
        let at = sequence % 2 * SLOT_BYTES as u64;
        self.file.write_at(&[IoSlice::new(&header), IoSlice::new(&body)], at).doing("writing", &self.path)?;
        self.file.sync().doing("syncing", &self.path)?;
        self.sequence = sequence;
        self.written_position = self.position;
        Ok(())
    }
}

fn crc(header: &[u8; HEADER_BYTES], body: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&header[..60]), body)
}

/// From where on, not before `edge`, a copy that has everything before `position` may lack records, or have some that count no more:
/// from there, or from where its line of history parts from one that production has been on since. That may lie long before the
/// point of the rewind, when that point was on another line.
fn lacks_from(history: &History, position: Lsn, edge: Lsn) -> Lsn {
    if position <= edge {
        return edge;
    }
    let then = history.lineage(history.production_at(position), position);
    let since = history.stays.iter().filter(|s| s.since >= position);
    let parts = since.map(|s| agree(&then, &history.lineage(s.timeline, Lsn::MAX)));
    parts.fold(position, Lsn::min).max(edge)
}

/// From where on in the log a copy that has the state at `settled` may lack changes.
fn lacking_from(history: &History, settled: Lsn, edge: Lsn) -> Lsn {
    if settled < edge {
        return edge;
    }
    // All that can differ is in the log: from where the two lines of history part.
    let then = history.lineage(history.production_at(settled), settled);
    agree(&then, &history.current()).max(edge)
}

/// Changes of production's in `[from, to)`, gathered before anything was held for it.
pub(crate) struct Ahead {
    from: Lsn,
    to: Lsn,
    changed: Blocks,
}

impl Group {
    /// Forgets a copy: nothing is noted for it any more.
    pub fn forget_copy(&self, copy: &str) -> Result<()> {
        self.0.forget_copy(copy)
    }
}

impl Inner {
    /// The timelines on which production has been, as far as they are known. What was written to an image is nobody else's.
    fn production_lines(&self) -> Vec<TimelineId> {
        let state = self.state.read();
        let images: Vec<TimelineId> =
            state.images.values().filter(|i| i.entry.writable).map(|i| i.entry.timeline).collect();
        state.history.timelines.keys().copied().filter(|t| !images.contains(t)).collect()
    }

    /// Adds the blocks that production's records in `[from, to)` change. `false`: not all of the log up to `to` is there.
    pub(crate) fn gather_changes(&self, from: Lsn, to: Lsn, changed: &mut Blocks) -> Result<bool> {
        let lines = self.production_lines();
        let (mut number, _) = place(from, self.segment_bytes);
        while first_lsn(number, self.segment_bytes) < to && self.state.read().segments.contains_key(&number) {
            for e in self.entries_of(number)?.iter() {
                if (from..to).contains(&e.lsn) && e.opcode.changes_blocks() && lines.contains(&e.timeline) {
                    changed.insert(e.volume, e.lba, e.count);
                }
            }
            number += 1;
        }
        Ok(first_lsn(number, self.segment_bytes) >= to)
    }

    /// What [`Inner::lacking`] will have to read of the log, as of now: nobody should wait for that, and `control` is not to be held.
    pub(crate) fn gather_ahead(&self, settled: Lsn) -> Option<Ahead> {
        let (from, to) = {
            let state = self.state.read();
            (lacking_from(&state.history, settled, state.edge.lsn), state.head.lsn)
        };
        let mut changed = Blocks::default();
        // Where the edge comes by meanwhile it is not whole, and of no use.
        let whole = self.gather_changes(from, to, &mut changed).unwrap_or(false);
        whole.then_some(Ahead { from, to, changed })
    }

    /// Called before the log up to `to` is given up; the caller holds `control`, so that neither the edge nor production moves.
    pub(crate) fn note_leaving(&self, from: Lsn, to: Lsn, history: &History) -> Result<()> {
        let mut ledgers = self.ledgers.lock();
        for ledger in ledgers.values_mut() {
            ledger.noted = ledger.noted.max(to);
            let lacks = lacks_from(history, ledger.position, from);
            if lacks >= to || ledger.everything {
                continue;
            }
            let before = ledger.changed.clone();
            self.gather_changes(lacks, to, &mut ledger.changed)?;
            if ledger.changed != before {
                ledger.save()?;
            }
        }
        Ok(())
    }

    /// The copy has everything before `durable`. `written`: that must be on the medium when this returns.
    pub(crate) fn note_position(&self, copy: &str, durable: Lsn, written: bool) -> Result<()> {
        let mut ledgers = self.ledgers.lock();
        let Some(ledger) = ledgers.get_mut(copy) else {
            let mut ledger = Ledger::create(&*self.files, &self.dir, copy, durable)?;
            // Nobody has noted anything for it so far.
            ledger.everything = durable < self.state.read().edge.lsn;
            ledger.save()?;
            ledgers.insert(copy.to_string(), ledger);
            return Ok(());
        };
        ledger.position = ledger.position.max(durable);
        let edge = self.state.read().edge.lsn;
        let closed = durable >= edge.max(ledger.noted) && (ledger.everything || !ledger.changed.is_empty());
        if closed {
            // What it lacks, the log has.
            ledger.changed = Blocks::default();
            ledger.everything = false;
        }
        if closed || written || ledger.position - ledger.written_position >= NOTE_EVERY_BYTES {
            ledger.save()?;
        }
        Ok(())
    }

    /// The copy knows durably what it lacks of the state at `lsn`; from here on changes are noted from there.
    pub(crate) fn note_plan(&self, copy: &str, lsn: Lsn) -> Result<()> {
        let mut ledgers = self.ledgers.lock();
        if !ledgers.contains_key(copy) {
            let mut ledger = Ledger::create(&*self.files, &self.dir, copy, lsn)?;
            ledger.everything = lsn < self.state.read().edge.lsn;
            ledger.save()?;
            ledgers.insert(copy.to_string(), ledger);
            return Ok(());
        }
        let edge = self.state.read().edge.lsn;
        let Some(ledger) = ledgers.get_mut(copy) else { return Ok(()) };
        if lsn < edge.max(ledger.noted) {
            // The edge has come by meanwhile, and what is noted covers that; the copy will ask again.
            return Ok(());
        }
        ledger.position = lsn;
        ledger.changed = Blocks::default();
        ledger.everything = false;
        ledger.save()
    }

    /// Forgets a copy.
    fn forget_copy(&self, copy: &str) -> Result<()> {
        if self.ledgers.lock().remove(copy).is_some() {
            let path = ledger_path(&self.dir, copy);
            self.files.remove(&path).doing("removing", &path)?;
            let folder = ledger_dir(&self.dir);
            self.files.sync_dir(&folder).doing("syncing", &folder)?;
        }
        Ok(())
    }

    /// What a copy that has the state at `settled` may lack of production's blocks now, at `head`; `None`: everything. What was gathered
    /// ahead is not read again. The caller holds `control`.
    pub(crate) fn lacking(
        &self,
        copy: &str,
        settled: Lsn,
        history: &History,
        head: Lsn,
        ahead: Option<Ahead>,
    ) -> Result<Option<Blocks>> {
        let edge = self.state.read().edge.lsn;
        let mut changed = Blocks::default();
        if settled < edge {
            let ledgers = self.ledgers.lock();
            match ledgers.get(copy) {
                Some(ledger) if !ledger.everything && ledger.position <= settled => {
                    changed.join(&ledger.changed)
                }
                _ => return Ok(None),
            }
        }
        let mut from = lacking_from(history, settled, edge);
        if let Some(ahead) = ahead.filter(|ahead| ahead.from <= from) {
            changed.join(&ahead.changed);
            from = from.max(ahead.to);
        }
        self.gather_changes(from, head, &mut changed)?;
        Ok(Some(changed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lineage::{Stay, Timeline};

    /// Production was on 1, 2 (from 1 at 500), 3 (from 1 at 800, so that it never had what 2 had), 4 (from 3 at 1500).
    #[test]
    fn what_a_copy_lacks_begins_where_its_history_parts_from_productions() {
        let mut h = History::default();
        for (id, parent, at, since) in [(2, 1, 500, 1000), (3, 1, 800, 2000), (4, 3, 2500, 3000)] {
            h.timelines.insert(id, Timeline { id, parent: Some(parent), at });
            h.stays.push(Stay { timeline: id, since });
        }
        assert_eq!(lacks_from(&h, 4000, 0), 4000, "no rewind since");
        assert_eq!(lacks_from(&h, 2800, 0), 2500, "back on its own line");
        assert_eq!(lacks_from(&h, 1800, 0), 500, "to a point of another line");
        assert_eq!(lacks_from(&h, 900, 0), 500);
        assert_eq!(lacks_from(&h, 900, 700), 700);
        assert_eq!(lacks_from(&h, 600, 700), 700);
    }
}
