//! Keeping a copy in a service: the thread that takes a [`Copier`]'s steps, waits, tries again with growing pauses when the copy's disk
//! fails, and says at any time how the copy stands. There is no state in which a copy stays behind in silence.
//!
//! Without a source (production is not in service) a copy is opened all the same, for its images, and waits.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};

use crate::{
    copier::{Copier, Step, Trouble},
    error::Context,
    files::Files,
    follow::Follower,
    group::{Group, Options, Policy},
    ship::Feed,
    sweep::SweepFigures,
    Error, Lsn, Point, Result,
};

/// How long to wait when there is nothing to take.
const LEVEL_WAIT: Duration = Duration::from_millis(50);
/// How long a copy that was level counts as level while more arrives.
const LEVEL_HOLDS: Duration = Duration::from_secs(2);
/// Less than this in a step, and records come singly: a pause gathers some.
const FEW_BYTES: u64 = 64 << 10;
const GATHER: Duration = Duration::from_millis(10);
/// The first pause before a copy that failed is tried again, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How a copy stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyState {
    /// Its first synchronisation is under way: it is not consistent.
    Initialising,
    /// It is consistent, and behind; the log leads on.
    CatchingUp,
    /// It has, durably, what production had moments ago.
    Synchronised,
    /// It is consistent, and takes nothing, because somebody wants it so or production cannot be read.
    Paused,
    /// Its disk fails, is full or is not there; it is tried again.
    Unreachable,
    /// The log did not lead on, so what may differ is being moved: it is not consistent.
    Resynchronising,
    /// Its history is not production's.
    Diverged,
    /// What is on its disk cannot be used.
    Failed,
}

impl CopyState {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            CopyState::Initialising => "initialising",
            CopyState::CatchingUp => "catching-up",
            CopyState::Synchronised => "synchronised",
            CopyState::Paused => "paused",
            CopyState::Unreachable => "unreachable",
            CopyState::Resynchronising => "resynchronising",
            CopyState::Diverged => "diverged",
            CopyState::Failed => "failed",
        }
    }
}

/// How a copy stands, in numbers.
#[derive(Debug, Clone)]
pub struct Standing {
    /// In a word.
    pub state: CopyState,
    /// Why, where that is not plain.
    pub reason: Option<String>,
    /// Since when, ns since the Unix epoch.
    pub since_ns: u64,
    /// Whether what is on its disk is the group as of one point, at which every volume was in step with its production.
    pub consistent: bool,
    /// Everything before this has been received, as far as is known.
    pub received_lsn: Option<Lsn>,
    /// Everything before this survives power loss.
    pub durable_lsn: Option<Lsn>,
    /// Production's newest point.
    pub head: Option<Point>,
    /// How far its durable point is behind, in bytes of log.
    pub lag_bytes: Option<u64>,
    /// How old the oldest record is that it does not have durably.
    pub lag_ns: Option<u64>,
    /// The synchronisation under way.
    pub sweep: Option<SweepFigures>,
    /// Bytes of log received since the service began.
    pub received_bytes: u64,
    /// Times it was opened: images opened on it before another opening are to be opened by hosts anew.
    pub opened: u64,
}

struct Seen {
    state: CopyState,
    reason: Option<String>,
    since_ns: u64,
    consistent: bool,
    received: Option<Lsn>,
    durable: Option<Lsn>,
    sweep: Option<SweepFigures>,
    received_bytes: u64,
    opened: u64,
    group: Option<Group>,
}

struct Wanted {
    paused: bool,
    stop: bool,
    policy: Policy,
}

struct Shared {
    feed: Option<Arc<dyn Feed>>,
    files: Arc<dyn Files>,
    dir: PathBuf,
    name: String,
    wanted: Mutex<Wanted>,
    changed: Condvar,
    seen: Mutex<Seen>,
}

/// A copy that is kept. Ends with [`Keeping::stop`].
pub struct Keeping {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Keeping {
    /// Begins to keep a copy in `dir`.
    pub fn start(
        feed: Option<Arc<dyn Feed>>,
        files: Arc<dyn Files>,
        dir: &Path,
        name: &str,
        policy: Policy,
        paused: bool,
    ) -> Result<Keeping> {
        let seen = Seen {
            state: CopyState::CatchingUp,
            reason: Some("it is being opened".into()),
            since_ns: files.now_ns(),
            consistent: false,
            received: None,
            durable: None,
            sweep: None,
            received_bytes: 0,
            opened: 0,
            group: None,
        };
        let shared = Arc::new(Shared {
            feed,
            files,
            dir: dir.to_path_buf(),
            name: name.to_string(),
            wanted: Mutex::new(Wanted { paused, stop: false, policy }),
            changed: Condvar::new(),
            seen: Mutex::new(seen),
        });
        let own = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name(format!("copy {name}").chars().take(15).collect())
            .spawn(move || own.run())
            .doing("starting a thread for", dir)?;
        Ok(Keeping { shared, thread: Mutex::new(Some(thread)) })
    }

    /// Stops taking records, or goes on.
    pub fn pause(&self, paused: bool) {
        self.shared.wanted.lock().paused = paused;
        self.shared.changed.notify_all();
    }

    /// How much history the copy keeps.
    pub fn set_policy(&self, policy: Policy) {
        self.shared.wanted.lock().policy = policy;
        self.shared.changed.notify_all();
    }

    /// The copy as a group, while it is open and consistent.
    pub fn group(&self) -> Option<Group> {
        self.shared.seen.lock().group.clone()
    }

    /// How it stands.
    pub fn standing(&self) -> Standing {
        let (received, durable) = {
            let seen = self.shared.seen.lock();
            (seen.received, seen.durable)
        };
        let reach = self.shared.feed.as_ref().and_then(|f| f.reach().ok());
        let head = reach.map(|r| r.head);
        let lag_bytes = head.zip(durable).map(|(head, durable)| head.lsn.saturating_sub(durable));
        let lag_ns = match (lag_bytes, durable, &self.shared.feed) {
            (Some(0), _, _) => Some(0),
            (Some(_), Some(durable), Some(feed)) => {
                // What is gone from the source's log is older than its edge.
                let first = feed.time_after(durable).ok().flatten().or(reach.map(|r| r.edge.time_ns));
                first.map(|first| self.shared.files.now_ns().saturating_sub(first))
            }
            _ => None,
        };
        let seen = self.shared.seen.lock();
        Standing {
            state: seen.state,
            reason: seen.reason.clone(),
            since_ns: seen.since_ns,
            consistent: seen.consistent,
            received_lsn: received,
            durable_lsn: durable,
            head,
            lag_bytes,
            lag_ns,
            sweep: seen.sweep,
            received_bytes: seen.received_bytes,
            opened: seen.opened,
        }
    }

    /// Ends it: what was received is made durable, and the copy is let go of.
    pub fn stop(&self) {
        self.shared.wanted.lock().stop = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.lock().take() {
            if thread.join().is_err() {
                log::error!("copy {}: its thread had panicked", self.shared.name);
            }
        }
    }
}

impl Drop for Keeping {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn run(&self) {
        match &self.feed {
            Some(feed) => self.run_fed(Arc::clone(feed)),
            None => self.run_alone(),
        }
        self.seen.lock().group = None;
    }

    /// Waits; `false`: it is to end.
    fn wait(&self, at_most: Duration) -> bool {
        let mut wanted = self.wanted.lock();
        if !wanted.stop && !at_most.is_zero() {
            self.changed.wait_for(&mut wanted, at_most);
        }
        !wanted.stop
    }

    fn say(&self, state: CopyState, reason: Option<String>) {
        let mut seen = self.seen.lock();
        if (seen.state, &seen.reason) != (state, &reason) {
            if seen.state != state {
                seen.since_ns = self.files.now_ns();
                match &reason {
                    Some(reason) => log::info!("copy {} is {}: {reason}", self.name, state.name()),
                    None => log::info!("copy {} is {}", self.name, state.name()),
                }
            }
            seen.state = state;
            seen.reason = reason;
        }
    }

    fn look(&self, copier: &Copier) {
        let mut seen = self.seen.lock();
        seen.received_bytes = copier.received_bytes();
        seen.opened = copier.opened();
        seen.sweep = copier.sweep();
        if let Some(figures) = seen.sweep {
            seen.consistent = false;
            (seen.received, seen.durable) = (Some(figures.point.lsn), Some(figures.point.lsn));
        }
        if let Some(follower) = copier.follower() {
            seen.consistent = out_of_step(follower.group()).is_none();
            (seen.received, seen.durable) = (Some(follower.received()), Some(follower.durable()));
            if seen.group.is_none() {
                seen.group = Some(follower.group().clone());
            }
        } else {
            seen.group = None;
        }
    }

    fn run_fed(&self, feed: Arc<dyn Feed>) {
        let options = Options { background: true, ..Options::default() };
        let mut copier = Copier::new(feed, Arc::clone(&self.files), &self.dir, &self.name, &options);
        let mut level_at: Option<Instant> = None;
        let mut pause = FIRST_PAUSE;
        let mut policy = None;
        while self.wait(Duration::ZERO) {
            let (paused, wanted) = {
                let wanted = self.wanted.lock();
                (wanted.paused, wanted.policy)
            };
            if policy != Some(wanted) {
                copier.set_policy(wanted);
                policy = Some(wanted);
            }
            if paused && (copier.follower().is_some() || copier.sweep().is_some()) {
                self.rest(&mut copier);
                level_at = None;
                continue;
            }
            let before = copier.received_bytes();
            let outcome = copier.step();
            self.look(&copier);
            let wait = match outcome {
                Ok(Step::Level) => {
                    pause = FIRST_PAUSE;
                    level_at = Some(Instant::now());
                    self.say(CopyState::Synchronised, copier.follower().and_then(|f| out_of_step(f.group())));
                    LEVEL_WAIT
                }
                Ok(Step::Busy) => {
                    match (copier.sweep(), copier.follower()) {
                        (Some(figures), _) if figures.initial => self.say(CopyState::Initialising, None),
                        (Some(_), _) => self.say(CopyState::Resynchronising, None),
                        (None, Some(f)) if level_at.is_none_or(|at| at.elapsed() > LEVEL_HOLDS) => {
                            self.say(CopyState::CatchingUp, out_of_step(f.group()));
                        }
                        _ => {}
                    }
                    let got = copier.received_bytes() - before;
                    if (1..FEW_BYTES).contains(&got) {
                        GATHER
                    } else {
                        Duration::ZERO
                    }
                }
                Err(trouble) => {
                    level_at = None;
                    self.say_trouble(trouble);
                    let wait = pause;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    wait
                }
            };
            self.wait(wait);
        }
        self.seen.lock().group = None;
        copier.let_go();
    }

    /// A paused copy: what was received is durable, its images stay open, and nothing more is taken.
    fn rest(&self, copier: &mut Copier) {
        if let Err(trouble) = copier.rest() {
            self.look(copier);
            self.say_trouble(trouble);
            self.wait(FIRST_PAUSE);
            return;
        }
        self.look(copier);
        self.say(CopyState::Paused, copier.follower().and_then(|f| out_of_step(f.group())));
        self.wait(Duration::from_secs(1));
    }

    fn say_trouble(&self, trouble: Trouble) {
        let (state, reason) = match trouble {
            Trouble::Source(e) => (CopyState::Paused, format!("production cannot be read: {e}")),
            Trouble::Held(why) => (CopyState::Paused, why),
            Trouble::Diverged(why) => (CopyState::Diverged, why),
            Trouble::Copy(e) => (trouble_state(&e), e.to_string()),
        };
        self.say(state, Some(reason));
    }

    fn run_alone(&self) {
        let options = Options { background: true, ..Options::default() };
        let mut open: Option<Follower> = None;
        let mut pause = FIRST_PAUSE;
        while self.wait(Duration::ZERO) {
            if let Some(follower) = &open {
                follower.group().set_policy(self.wanted.lock().policy);
                self.say(CopyState::Paused, Some("production is not in service".into()));
                self.wait(Duration::from_secs(3600));
                continue;
            }
            match Follower::open(Arc::clone(&self.files), &self.dir, &options) {
                Ok(follower) => {
                    let mut seen = self.seen.lock();
                    seen.consistent = out_of_step(follower.group()).is_none();
                    seen.opened += 1;
                    (seen.received, seen.durable) = (Some(follower.received()), Some(follower.received()));
                    seen.group = Some(follower.group().clone());
                    drop(seen);
                    open = Some(follower);
                }
                Err(e) => {
                    self.say(trouble_state(&e), Some(e.to_string()));
                    self.wait(pause);
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
        self.seen.lock().group = None;
        if let Some(follower) = open {
            if let Err(e) = follower.group().close() {
                log::info!("copy {}: it did not close cleanly: {e}", self.name);
            }
        }
    }
}

/// Why a copy's newest point is not consistent, though the copy is all that production was then.
fn out_of_step(copy: &Group) -> Option<String> {
    copy.check_consistent(copy.head().lsn).err().map(|e| e.to_string())
}

fn trouble_state(error: &Error) -> CopyState {
    match error {
        Error::Damaged { .. } | Error::NewerFormat { .. } | Error::Conflict(_) | Error::Invalid(_) => {
            CopyState::Failed
        }
        _ => CopyState::Unreachable,
    }
}
