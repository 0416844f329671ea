//! A medium in memory that can lose power.
//!
//! [`SimFiles`] stands where the machine's files stand. Every operation that changes something is numbered: a *boundary*. The power
//! can be made to fail at any of them ([`SimFiles::crash_at`]); [`SimFiles::survivor`] is then the medium as it comes back: what was
//! synced, plus some arbitrary part of what was not. [`SimFiles::kill`] is the mild case, a process that died: all it wrote is there.
#![allow(dead_code)]

mod content;
pub(crate) mod random;
mod survive;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    io::IoSlice,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
};

use content::{Content, PAGE_BYTES};
use playhead_journal::files::{Bytes, File, Files, Open};
#[allow(unused_imports)] // Not every test loses power.
pub(crate) use survive::FIRST_RANDOM_SEED;

type Names = BTreeMap<PathBuf, u64>;
type Dirs = BTreeSet<PathBuf>;

/// What kind of operation a boundary is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Create,
    Rename,
    Remove,
    CreateDir,
    SyncDir,
    Write,
    Sync,
    SetSize,
    Allocate,
    Punch,
    /// No boundary: only a [`Pause`] is told.
    Open,
    /// As `Open`.
    Read,
}

/// One boundary: what was done to which file.
#[derive(Debug, Clone)]
pub(crate) struct Boundary {
    pub(crate) number: u64,
    pub(crate) operation: Operation,
    pub(crate) path: PathBuf,
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

impl fmt::Display for Boundary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{} {:?} {}", self.number, self.operation, self.path.display())?;
        if self.len > 0 || self.offset > 0 {
            write!(f, " {}+{}", self.offset, self.len)?;
        }
        Ok(())
    }
}

/// Decides whether a boundary fails, and how: the number of the system error.
pub(crate) type Fault = Box<dyn FnMut(&Boundary) -> Option<i32> + Send>;

/// Called before an operation, with nothing held: so that a test can let something else happen just then.
pub(crate) type Pause = Arc<dyn Fn(Operation, &Path) + Send + Sync>;

/// A change of a file's bytes or size.
#[derive(Clone)]
enum Change {
    Write { offset: u64, data: Arc<[u8]> },
    SetSize(u64),
    Allocate { offset: u64, len: u64 },
    Punch { offset: u64, len: u64 },
}

impl Change {
    fn apply(&self, content: &mut Content) {
        match self {
            Change::Write { offset, data } => content.write(data, *offset),
            Change::SetSize(size) => content.set_size(*size),
            Change::Allocate { offset, len } => content.allocate(*offset, *len),
            Change::Punch { offset, len } => content.punch(*offset, *len),
        }
    }

    fn size_after(&self, size: u64) -> u64 {
        match self {
            Change::Write { data, .. } if data.is_empty() => size,
            Change::Write { offset, data } => size.max(offset + data.len() as u64),
            Change::SetSize(size) => *size,
            Change::Allocate { offset, len } => size.max(offset + len),
            Change::Punch { .. } => size,
        }
    }

    /// The bytes whose content it changes, given the size before.
    fn range(&self, size: u64) -> (u64, u64) {
        match self {
            Change::Write { offset, data } => (*offset, offset + data.len() as u64),
            Change::SetSize(new) => (*new, size),
            Change::Allocate { .. } => (0, 0),
            Change::Punch { offset, len } => (*offset, (offset + len).min(size)),
        }
    }
}

/// A change of the names. Each carries the file's number, so that any subset of them makes sense.
#[derive(Debug, Clone)]
enum NameChange {
    Dir(PathBuf),
    Create(PathBuf, u64),
    Rename(PathBuf, PathBuf, u64),
    Remove(PathBuf, u64),
    /// With whatever is named in it: a directory that is gone has nothing in it.
    RemoveDir(PathBuf),
}

#[derive(Clone, Default)]
struct Inode {
    current: Content,
    durable: Content,
    /// Since the last sync, each with its boundary.
    pending: Vec<(u64, Change)>,
    /// The handle that has it.
    lock: Option<u64>,
    handles: u64,
}

impl Inode {
    fn settled(content: Content) -> Inode {
        Inode { current: content.clone(), durable: content, ..Inode::default() }
    }

    fn sync(&mut self) {
        for (_, change) in self.pending.drain(..) {
            change.apply(&mut self.durable);
        }
        self.durable.size = self.current.size;
    }
}

struct State {
    inodes: BTreeMap<u64, Inode>,
    names: Names,
    dirs: Dirs,
    durable_names: Names,
    durable_dirs: Dirs,
    pending_names: Vec<(u64, NameChange)>,
    next: u64,
    boundary: u64,
    crash_at: Option<u64>,
    off: bool,
    now_ns: u64,
    fault: Option<Fault>,
    pause: Option<Pause>,
    capacity_pages: Option<u64>,
    trace: Option<Vec<Boundary>>,
    /// The write the process died in, if it did: file, change.
    torn: Option<(u64, Change)>,
}

impl State {
    fn powered_on(inodes: BTreeMap<u64, Inode>, names: Names, dirs: Dirs, before: &State) -> State {
        State {
            durable_names: names.clone(),
            durable_dirs: dirs.clone(),
            inodes,
            names,
            dirs,
            pending_names: Vec::new(),
            next: before.next,
            boundary: 0,
            crash_at: None,
            off: false,
            now_ns: before.now_ns,
            fault: None,
            pause: None,
            capacity_pages: None,
            trace: None,
            torn: None,
        }
    }

    /// A removed file takes no space once nobody has it open, even while a power loss could still bring it back.
    fn used_pages(&self) -> u64 {
        let named: BTreeSet<u64> = self.names.values().copied().collect();
        let used = self.inodes.iter().filter(|(id, inode)| inode.handles > 0 || named.contains(id));
        used.map(|(_, inode)| inode.current.page_count()).sum()
    }

    /// Fails once the power is off. Everything passes here.
    fn powered(&self) -> io::Result<()> {
        if self.off {
            return Err(io::Error::other("the power is off"));
        }
        Ok(())
    }

    /// Numbers an operation. `Ok(true)`: do it. `Ok(false)`: the power fails in it: note it as pending, then fail.
    fn reach(&mut self, operation: Operation, path: &Path, offset: u64, len: u64) -> io::Result<bool> {
        self.powered()?;
        self.boundary += 1;
        let boundary = Boundary { number: self.boundary, operation, path: path.to_path_buf(), offset, len };
        if let Some(trace) = &mut self.trace {
            trace.push(boundary.clone());
        }
        if self.crash_at.is_some_and(|n| self.boundary >= n) {
            self.off = true;
            return Ok(false);
        }
        if let Some(fault) = &mut self.fault {
            if let Some(errno) = fault(&boundary) {
                if operation == Operation::Sync {
                    // As real kernels do: the pages are marked clean, and a later sync says nothing of them.
                    if let Some(&id) = self.names.get(path) {
                        if let Some(inode) = self.inodes.get_mut(&id) {
                            inode.pending.clear();
                        }
                    }
                }
                return Err(io::Error::from_raw_os_error(errno));
            }
        }
        Ok(true)
    }

    fn forget_unnamed(&mut self) {
        let named: BTreeSet<u64> = self.names.values().chain(self.durable_names.values()).copied().collect();
        let pending: BTreeSet<u64> = self
            .pending_names
            .iter()
            .filter_map(|(_, c)| match c {
                NameChange::Create(_, id) | NameChange::Rename(_, _, id) => Some(*id),
                _ => None,
            })
            .collect();
        self.inodes.retain(|id, inode| inode.handles > 0 || named.contains(id) || pending.contains(id));
    }
}

fn power_off() -> io::Error {
    io::Error::other("the power failed")
}

/// The simulated medium. Clones are the same medium.
#[derive(Clone)]
pub(crate) struct SimFiles(Arc<Mutex<State>>);

impl SimFiles {
    /// An empty medium with a root directory, its clock at a fixed moment.
    pub(crate) fn new() -> SimFiles {
        let dirs = Dirs::from([PathBuf::from("/")]);
        let empty = State {
            inodes: BTreeMap::new(),
            names: Names::new(),
            durable_names: Names::new(),
            durable_dirs: dirs.clone(),
            dirs,
            pending_names: Vec::new(),
            next: 1,
            boundary: 0,
            crash_at: None,
            off: false,
            now_ns: 1_700_000_000_000_000_000,
            fault: None,
            pause: None,
            capacity_pages: None,
            trace: None,
            torn: None,
        };
        SimFiles::of(empty)
    }

    fn of(state: State) -> SimFiles {
        SimFiles(Arc::new(Mutex::new(state)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// This medium as the journal wants it.
    pub(crate) fn files(&self) -> Arc<dyn Files> {
        Arc::new(self.clone())
    }

    /// Boundaries passed so far.
    pub(crate) fn boundaries(&self) -> u64 {
        self.state().boundary
    }

    /// The power fails at boundary `n` (the first is 1): that operation and all later ones fail, reads too.
    pub(crate) fn crash_at(&self, n: u64) {
        self.state().crash_at = Some(n);
    }

    /// Whether the power has failed.
    pub(crate) fn is_off(&self) -> bool {
        self.state().off
    }

    /// From now on, notes every boundary.
    pub(crate) fn keep_trace(&self) {
        self.state().trace = Some(Vec::new());
    }

    /// The noted boundaries, as a story.
    pub(crate) fn trace(&self) -> Vec<Boundary> {
        self.state().trace.clone().unwrap_or_default()
    }

    /// Moves the clock on.
    pub(crate) fn advance(&self, ns: u64) {
        self.state().now_ns += ns;
    }

    /// Asked at every boundary whether it fails. A failed sync loses what it should have made durable.
    pub(crate) fn set_fault(&self, fault: Option<Fault>) {
        self.state().fault = fault;
    }

    /// Called before every operation on a name or a file's bytes.
    pub(crate) fn set_pause(&self, pause: Option<Pause>) {
        self.state().pause = pause;
    }

    /// At most this many bytes (in 4 KiB pages) fit on the medium; what goes beyond fails with ENOSPC.
    pub(crate) fn set_capacity(&self, bytes: Option<u64>) {
        self.state().capacity_pages = bytes.map(|b| b / PAGE_BYTES);
    }

    /// Bytes in use.
    pub(crate) fn used_bytes(&self) -> u64 {
        self.state().used_pages() * PAGE_BYTES
    }

    /// The medium after the power came back. The seeds below [`FIRST_RANDOM_SEED`]: nothing un-synced survives, all does, only the
    /// last operation, all but the first; others: some of it.
    pub(crate) fn survivor(&self, seed: u64) -> SimFiles {
        SimFiles::of(survive::survivor(&self.state(), seed))
    }

    /// The medium after the death of the process that used it: all that was written is there (of a write under way, any
    /// leading part, chosen by `seed`), un-synced as it was, and locks are free. The dead process can do nothing more.
    pub(crate) fn kill(&self, seed: u64) -> SimFiles {
        let mut state = self.state();
        state.off = true;
        let mut inodes = state.inodes.clone();
        let mut pending_names = state.pending_names.clone();
        if let Some((id, change)) = &state.torn {
            // The operation it died in is in the pending list but was never carried out.
            if let Some(inode) = inodes.get_mut(id) {
                inode.pending.pop();
                if let Change::Write { offset, data } = change {
                    let n = random::Random::new(seed).below(data.len() as u64 + 1) as usize;
                    let part = Change::Write { offset: *offset, data: Arc::from(&data[..n]) };
                    part.apply(&mut inode.current);
                    inode.pending.push((state.boundary, part));
                } else if seed % 2 == 0 {
                    change.apply(&mut inode.current);
                    inode.pending.push((state.boundary, change.clone()));
                }
            }
        }
        // A name change it died in was not carried out.
        if state.crash_at.is_some_and(|n| pending_names.last().is_some_and(|p| p.0 >= n)) {
            pending_names.pop();
        }
        for inode in inodes.values_mut() {
            inode.lock = None;
            inode.handles = 0;
        }
        let crashed = state.crash_at.is_some_and(|n| state.boundary >= n);
        SimFiles::of(State {
            inodes,
            durable_names: state.durable_names.clone(),
            durable_dirs: state.durable_dirs.clone(),
            pending_names,
            // The numbers go on, so that a crash can be ordered for after the death.
            boundary: state.boundary,
            crash_at: state.crash_at.filter(|_| !crashed),
            trace: state.trace.clone(),
            ..State::powered_on(BTreeMap::new(), state.names.clone(), state.dirs.clone(), &state)
        })
    }

    /// Every file, by path.
    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        self.state().names.keys().cloned().collect()
    }

    /// The whole of a file as a process would read it.
    pub(crate) fn bytes_of(&self, path: &Path) -> Option<Vec<u8>> {
        let state = self.state();
        let inode = &state.inodes[state.names.get(path)?];
        let mut bytes = vec![0; usize::try_from(inode.current.size).ok()?];
        inode.current.read(&mut bytes, 0);
        Some(bytes)
    }

    /// Part of a file, zeros beyond its end.
    pub(crate) fn range_of(&self, path: &Path, offset: u64, len: usize) -> Option<Vec<u8>> {
        let state = self.state();
        let inode = &state.inodes[state.names.get(path)?];
        let mut bytes = vec![0; len];
        inode.current.read(&mut bytes, offset);
        Some(bytes)
    }

    /// Size of a file.
    pub(crate) fn size_of(&self, path: &Path) -> Option<u64> {
        let state = self.state();
        Some(state.inodes[state.names.get(path)?].current.size)
    }

    /// Changes bytes behind everybody's back, durably: damage, or a file that was there before.
    pub(crate) fn poke(&self, path: &Path, offset: u64, bytes: &[u8]) {
        let mut state = self.state();
        let id = match state.names.get(path) {
            Some(&id) => id,
            None => {
                let id = state.next;
                state.next += 1;
                state.inodes.insert(id, Inode::default());
                state.names.insert(path.to_path_buf(), id);
                state.durable_names.insert(path.to_path_buf(), id);
                id
            }
        };
        if let Some(inode) = state.inodes.get_mut(&id) {
            inode.current.write(bytes, offset);
            inode.durable.write(bytes, offset);
        }
    }

    /// Cuts or grows a file behind everybody's back, durably.
    pub(crate) fn resize(&self, path: &Path, size: u64) {
        self.poke(path, 0, &[]);
        let mut state = self.state();
        let id = state.names[path];
        if let Some(inode) = state.inodes.get_mut(&id) {
            inode.current.set_size(size);
            inode.durable.set_size(size);
        }
    }

    /// Removes a file behind everybody's back, durably.
    pub(crate) fn lose(&self, path: &Path) {
        let mut state = self.state();
        state.names.remove(path);
        state.durable_names.remove(path);
    }

    /// A copy of the medium as it stands, with nothing in common; locks are free in it.
    pub(crate) fn copy(&self) -> SimFiles {
        let state = self.state();
        let mut inodes = state.inodes.clone();
        for inode in inodes.values_mut() {
            inode.lock = None;
            inode.handles = 0;
        }
        SimFiles::of(State {
            inodes,
            durable_names: state.durable_names.clone(),
            durable_dirs: state.durable_dirs.clone(),
            pending_names: state.pending_names.clone(),
            ..State::powered_on(BTreeMap::new(), state.names.clone(), state.dirs.clone(), &state)
        })
    }

    fn pause(&self, operation: Operation, path: &Path) {
        let pause = self.state().pause.clone();
        if let Some(pause) = pause {
            pause(operation, path);
        }
    }

    fn change_names(
        &self,
        operation: Operation,
        path: &Path,
        change: impl FnOnce(&mut State) -> io::Result<NameChange>,
    ) -> io::Result<()> {
        self.pause(operation, path);
        let mut state = self.state();
        let goes = state.reach(operation, path, 0, 0)?;
        let change = change(&mut state)?;
        let boundary = state.boundary;
        if goes {
            let State { names, dirs, .. } = &mut *state;
            change.apply(names, dirs);
        }
        state.pending_names.push((boundary, change));
        if !goes {
            return Err(power_off());
        }
        state.forget_unnamed();
        Ok(())
    }
}

fn not_found(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("no {}", path.display()))
}

impl Files for SimFiles {
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn File>> {
        self.state().powered()?;
        self.pause(Operation::Open, path);
        let found = self.state().names.get(path).copied();
        let id = match (found, how) {
            (Some(id), Open::Create) => {
                let handle = SimFile { medium: self.clone(), id, handle: 0, path: path.to_path_buf() };
                handle.change(Operation::Create, Change::SetSize(0), 0, 0)?;
                id
            }
            (Some(id), _) => id,
            (None, Open::Create) => {
                let mut made = 0;
                self.change_names(Operation::Create, path, |state| {
                    if !path.parent().is_some_and(|d| state.dirs.contains(d)) {
                        return Err(not_found(path));
                    }
                    made = state.next;
                    state.next += 1;
                    state.inodes.insert(made, Inode::default());
                    Ok(NameChange::Create(path.to_path_buf(), made))
                })?;
                made
            }
            (None, _) => return Err(not_found(path)),
        };
        let mut state = self.state();
        let handle = state.next;
        state.next += 1;
        if let Some(inode) = state.inodes.get_mut(&id) {
            inode.handles += 1;
        }
        drop(state);
        Ok(Arc::new(SimFile { medium: self.clone(), id, handle, path: path.to_path_buf() }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        assert_eq!(from.parent(), to.parent(), "renames stay within a directory");
        self.change_names(Operation::Rename, to, |state| {
            let id = *state.names.get(from).ok_or_else(|| not_found(from))?;
            Ok(NameChange::Rename(from.to_path_buf(), to.to_path_buf(), id))
        })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.change_names(Operation::Remove, path, |state| {
            let id = *state.names.get(path).ok_or_else(|| not_found(path))?;
            Ok(NameChange::Remove(path.to_path_buf(), id))
        })
    }

    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        let (names, dirs) = {
            let state = self.state();
            state.powered()?;
            if !state.dirs.contains(dir) {
                return Err(not_found(dir));
            }
            let within = |p: &&PathBuf| p.starts_with(dir);
            let names: Vec<PathBuf> = state.names.keys().filter(within).cloned().collect();
            (names, state.dirs.iter().filter(within).cloned().collect::<Vec<PathBuf>>())
        };
        names.iter().try_for_each(|path| self.remove(path))?;
        for dir in dirs.into_iter().rev() {
            self.change_names(Operation::Remove, &dir.clone(), |_| Ok(NameChange::RemoveDir(dir)))?;
        }
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = self.state();
        state.powered()?;
        if !state.dirs.contains(dir) {
            return Err(not_found(dir));
        }
        let names = state.names.keys().chain(state.dirs.iter()).filter(|p| p.parent() == Some(dir));
        Ok(names.filter_map(|p| Some(p.file_name()?.to_str()?.to_owned())).collect())
    }

    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        let missing: Vec<PathBuf> = {
            let state = self.state();
            state.powered()?;
            dir.ancestors().filter(|d| !state.dirs.contains(*d)).map(Path::to_path_buf).collect()
        };
        for dir in missing.into_iter().rev() {
            self.change_names(Operation::CreateDir, &dir.clone(), |_| Ok(NameChange::Dir(dir)))?;
        }
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state();
        if !state.dirs.contains(dir) {
            state.powered()?;
            return Err(not_found(dir));
        }
        if !state.reach(Operation::SyncDir, dir, 0, 0)? {
            return Err(power_off());
        }
        let State { pending_names, durable_names, durable_dirs, .. } = &mut *state;
        let mut gone: Vec<(u64, PathBuf)> = Vec::new();
        pending_names.retain(|(number, change)| {
            let mine = change.dir() == Some(dir);
            if mine {
                change.apply(durable_names, durable_dirs);
                if let NameChange::RemoveDir(dir) = change {
                    gone.push((*number, dir.clone()));
                }
            }
            !mine
        });
        // What was still to come of a directory that is gone for good is nothing to one made anew in its place.
        pending_names.retain(|(number, change)| {
            let of = |dir: &PathBuf| change.dir().is_some_and(|d| d.starts_with(dir));
            !gone.iter().any(|(then, dir)| number < then && of(dir))
        });
        state.forget_unnamed();
        Ok(())
    }

    fn space(&self, _dir: &Path) -> io::Result<(u64, u64)> {
        let state = self.state();
        let pages = state.capacity_pages.unwrap_or(1 << 30);
        Ok((pages.saturating_sub(state.used_pages()) * PAGE_BYTES, pages * PAGE_BYTES))
    }

    fn now_ns(&self) -> u64 {
        let mut state = self.state();
        state.now_ns += 1_000;
        state.now_ns
    }
}

struct SimFile {
    medium: SimFiles,
    id: u64,
    handle: u64,
    path: PathBuf,
}

impl SimFile {
    /// Carries out a change, or notes it if the power fails in it.
    fn change(&self, operation: Operation, change: Change, offset: u64, len: u64) -> io::Result<()> {
        self.medium.pause(operation, &self.path);
        let mut state = self.medium.state();
        let goes = state.reach(operation, &self.path, offset, len)?;
        let boundary = state.boundary;
        if !goes {
            state.torn = Some((self.id, change.clone()));
        }
        let inode = state.inodes.entry(self.id).or_default();
        if goes {
            change.apply(&mut inode.current);
        }
        inode.pending.push((boundary, change));
        if goes {
            Ok(())
        } else {
            Err(power_off())
        }
    }

    /// How many of `len` bytes at `offset` still fit on the medium.
    fn room(&self, offset: u64, len: u64) -> u64 {
        let state = self.medium.state();
        let Some(capacity) = state.capacity_pages else {
            return len;
        };
        let free = capacity.saturating_sub(state.used_pages());
        let Some(inode) = state.inodes.get(&self.id) else {
            return len;
        };
        let mut fits = len;
        while inode.current.new_pages(offset, fits) > free {
            let end = offset + fits;
            fits = ((end - 1) / PAGE_BYTES * PAGE_BYTES).saturating_sub(offset);
        }
        fits
    }
}

/// ENOSPC.
pub(crate) const NO_SPACE: i32 = 28;
/// EIO.
pub(crate) const IO_ERROR: i32 = 5;

impl File for SimFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.medium.pause(Operation::Read, &self.path);
        let state = self.medium.state();
        state.powered()?;
        let Some(inode) = state.inodes.get(&self.id) else {
            return Err(not_found(&self.path));
        };
        if offset.checked_add(buf.len() as u64).is_none_or(|end| end > inode.current.size) {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "beyond the end"));
        }
        inode.current.read(buf, offset);
        Ok(())
    }

    fn write_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        let mut data: Vec<u8> = bufs.iter().flat_map(|b| b.iter().copied()).collect();
        let len = data.len() as u64;
        let fits = self.room(offset, len);
        data.truncate(fits as usize);
        self.change(Operation::Write, Change::Write { offset, data: Arc::from(data) }, offset, fits)?;
        if fits < len {
            return Err(io::Error::from_raw_os_error(NO_SPACE));
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.medium.pause(Operation::Sync, &self.path);
        let mut state = self.medium.state();
        if !state.reach(Operation::Sync, &self.path, 0, 0)? {
            return Err(power_off());
        }
        if let Some(inode) = state.inodes.get_mut(&self.id) {
            inode.sync();
        }
        Ok(())
    }

    fn size(&self) -> io::Result<u64> {
        let state = self.medium.state();
        state.powered()?;
        state.inodes.get(&self.id).map(|i| i.current.size).ok_or_else(|| not_found(&self.path))
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        self.change(Operation::SetSize, Change::SetSize(size), size, 0)
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        if self.room(offset, len) < len {
            return Err(io::Error::from_raw_os_error(NO_SPACE));
        }
        self.change(Operation::Allocate, Change::Allocate { offset, len }, offset, len)
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.change(Operation::Punch, Change::Punch { offset, len }, offset, len)
    }

    fn data_at(&self, offset: u64) -> io::Result<(bool, u64)> {
        let state = self.medium.state();
        state.powered()?;
        let Some(inode) = state.inodes.get(&self.id) else {
            return Err(not_found(&self.path));
        };
        Ok(inode.current.data_at(offset))
    }

    fn map(&self) -> io::Result<Bytes> {
        let state = self.medium.state();
        state.powered()?;
        let Some(inode) = state.inodes.get(&self.id) else {
            return Err(not_found(&self.path));
        };
        let size = usize::try_from(inode.current.size).map_err(io::Error::other)?;
        let mut bytes = vec![0; size];
        inode.current.read(&mut bytes, 0);
        Ok(Arc::new(bytes))
    }

    fn lock(&self) -> io::Result<bool> {
        let mut state = self.medium.state();
        state.powered()?;
        let handle = self.handle;
        let Some(inode) = state.inodes.get_mut(&self.id) else {
            return Err(not_found(&self.path));
        };
        match inode.lock {
            Some(other) if other != handle => Ok(false),
            _ => {
                inode.lock = Some(handle);
                Ok(true)
            }
        }
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        if self.handle == 0 {
            return;
        }
        let mut state = self.medium.state();
        if let Some(inode) = state.inodes.get_mut(&self.id) {
            inode.handles = inode.handles.saturating_sub(1);
            if inode.lock == Some(self.handle) {
                inode.lock = None;
            }
        }
        if !state.off {
            state.forget_unnamed();
        }
    }
}
