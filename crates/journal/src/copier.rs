//! Keeping a copy: one step at a time, from whatever state it is found in to being level with its source, and staying so.
//!
//! [`Copier`] knows its source as a [`Feed`] only, and its own place as a directory. A run of it is a function of its steps, so the tests
//! drive it as they like; in a service a thread does ([`crate::keep`]).

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    files::Files,
    follow::{Follower, Taken},
    group::{Options, Policy},
    record::MAX_PAYLOAD_BYTES,
    ship::{Feed, Shipment},
    sweep::{fill_base, Sweep, SweepFigures, Swept},
    Error, Lsn,
};

/// Bytes of log fetched at once.
const CHUNK_BYTES: usize = 1 << 20;
/// Bytes received after which they are made durable, though more are there.
const FLUSH_EVERY_BYTES: u64 = 16 << 20;
/// Bytes of the log's end that are compared when a copy is opened: the largest record and more, so that there is always a header among them,
/// with its time and epoch. The end of what was written may be the same in two histories.
const TAIL_BYTES: usize = MAX_PAYLOAD_BYTES + (64 << 10);

/// What went wrong, and on which side.
#[derive(Debug)]
pub enum Trouble {
    /// The source could not be asked.
    Source(Error),
    /// The copy's own place failed; it has been let go of, and may be tried again.
    Copy(Error),
    /// The copy's log is not a prefix of the source's. Nothing mends that but making it anew.
    Diverged(String),
    /// It has to be synchronised anew, which ends its window, and an open image holds that.
    Held(String),
}

/// What a step came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Something was done and more may be to do.
    Busy,
    /// It has all the source has, durably.
    Level,
}

enum Stage {
    Closed,
    Sweeping(Box<Sweep>),
    Following(Box<Follower>),
}

/// Keeps one copy.
pub struct Copier {
    feed: Arc<dyn Feed>,
    files: Arc<dyn Files>,
    dir: PathBuf,
    name: String,
    options: Options,
    policy: Policy,
    stage: Stage,
    received_bytes: u64,
    unflushed_bytes: u64,
    /// Times the copy was opened.
    opened: u64,
}

impl Copier {
    /// A copy called `name`, in `dir`. Nothing is done yet.
    pub fn new(
        feed: Arc<dyn Feed>,
        files: Arc<dyn Files>,
        dir: &Path,
        name: &str,
        options: &Options,
    ) -> Copier {
        Copier {
            feed,
            files,
            dir: dir.to_path_buf(),
            name: name.to_string(),
            options: options.clone(),
            policy: Policy::default(),
            stage: Stage::Closed,
            received_bytes: 0,
            unflushed_bytes: 0,
            opened: 0,
        }
    }

    /// How much history the copy keeps.
    pub fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
        if let Stage::Following(follower) = &self.stage {
            follower.group().set_policy(policy);
        }
    }

    /// The copy, when it is open and consistent.
    pub fn follower(&self) -> Option<&Follower> {
        match &self.stage {
            Stage::Following(follower) => Some(follower),
            _ => None,
        }
    }

    /// How far its synchronisation is, when one is under way.
    pub fn sweep(&self) -> Option<SweepFigures> {
        match &self.stage {
            Stage::Sweeping(sweep) => Some(sweep.figures()),
            _ => None,
        }
    }

    /// Bytes of log received since it was made.
    pub fn received_bytes(&self) -> u64 {
        self.received_bytes
    }

    /// Times the copy was opened.
    pub fn opened(&self) -> u64 {
        self.opened
    }

    /// Makes durable what there is, and takes nothing more.
    pub fn rest(&mut self) -> std::result::Result<(), Trouble> {
        let outcome = match &mut self.stage {
            Stage::Following(follower) => follower.flush().map_err(Trouble::Copy).and_then(|durable| {
                self.unflushed_bytes = 0;
                self.feed.acknowledge(&self.name, durable, false).map_err(Trouble::Source)
            }),
            Stage::Sweeping(sweep) if sweep.unsaved() => sweep.save().map_err(Trouble::Copy),
            _ => Ok(()),
        };
        let sign = if self.sweep().is_some() { "sync" } else { "superblock" };
        let outcome = outcome.and_then(|()| self.look_for_place(sign));
        if matches!(outcome, Err(Trouble::Copy(_))) {
            self.let_go();
        }
        outcome
    }

    /// Does the next thing.
    pub fn step(&mut self) -> std::result::Result<Step, Trouble> {
        let outcome = match &mut self.stage {
            Stage::Closed => self.open(),
            Stage::Sweeping(_) => self.go_on_sweeping(),
            Stage::Following(_) => self.follow(),
        };
        if let Err(Trouble::Copy(_) | Trouble::Diverged(_)) = &outcome {
            self.let_go();
        }
        outcome
    }

    /// Lets go of the copy's files; what was received is made durable, and written down at the source, if that can be done.
    pub fn let_go(&mut self) {
        match std::mem::replace(&mut self.stage, Stage::Closed) {
            Stage::Following(follower) => {
                // Whatever fails here has been told, or will be when it is opened again.
                let outcome = follower.group().close().map(|()| follower.durable());
                match outcome.and_then(|durable| self.feed.acknowledge(&self.name, durable, true)) {
                    Ok(()) => {}
                    Err(e) => {
                        log::info!("copy {}: let go of without its end being written down: {e}", self.name)
                    }
                }
            }
            Stage::Sweeping(mut sweep) => {
                if let Err(e) = sweep.save() {
                    log::info!("copy {}: let go of without its progress being written down: {e}", self.name);
                }
            }
            Stage::Closed => {}
        }
        self.unflushed_bytes = 0;
    }

    fn open(&mut self) -> std::result::Result<Step, Trouble> {
        let known = self.feed.knows(&self.name).map_err(Trouble::Source)?;
        let inside = match self.files.list(&self.dir) {
            Ok(inside) => inside,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(e) => {
                return Err(Trouble::Copy(Error::Io { what: "listing", path: self.dir.clone(), source: e }))
            }
        };
        let has = |name: &str| inside.iter().any(|n| n == name);
        if has("sync") {
            let sweep = Sweep::open(Arc::clone(&self.files), &self.dir).map_err(Trouble::Copy)?;
            self.same_group(sweep.id())?;
            self.feed.planned(&self.name, sweep.point().lsn).map_err(Trouble::Source)?;
            self.stage = Stage::Sweeping(Box::new(sweep));
            return Ok(Step::Busy);
        }
        if has("superblock") {
            return self.open_follower();
        }
        if known {
            // An empty mount point, say: beginning anew there would fill the wrong disk.
            return Err(Trouble::Copy(Error::NotFound(format!(
                "{} holds no copy, where there was one: bring its disk back, or remove the copy and add it again",
                self.dir.display()
            ))));
        }
        // A crash may have come while the sign of a synchronisation was made.
        if inside.iter().any(|n| n != "lost+found" && n != "sync.new") {
            return Err(Trouble::Copy(Error::Conflict(format!(
                "{} is not empty and holds no copy: give the copy a directory of its own",
                self.dir.display()
            ))));
        }
        self.begin(None, None)
    }

    fn same_group(&self, id: uuid::Uuid) -> std::result::Result<(), Trouble> {
        let facts = self.feed.facts().map_err(Trouble::Source)?;
        if facts.id != id {
            return Err(Trouble::Diverged(format!(
                "{} holds a copy of another group: remove this copy and add it with another directory",
                self.dir.display()
            )));
        }
        Ok(())
    }

    fn open_follower(&mut self) -> std::result::Result<Step, Trouble> {
        let follower =
            Follower::open(Arc::clone(&self.files), &self.dir, &self.options).map_err(Trouble::Copy)?;
        if let Err(trouble) = self.check_prefix(&follower) {
            // Its threads would hold it for good.
            if let Err(e) = follower.group().close() {
                log::info!("copy {}: it did not close cleanly: {e}", self.name);
            }
            return Err(trouble);
        }
        follower.group().set_policy(self.policy);
        self.opened += 1;
        self.stage = Stage::Following(Box::new(follower));
        Ok(Step::Busy)
    }

    /// Refuses a copy whose log is not a prefix of the source's.
    fn check_prefix(&self, follower: &Follower) -> std::result::Result<(), Trouble> {
        self.same_group(follower.group().id())?;
        let mine = follower.tail(TAIL_BYTES).map_err(Trouble::Copy)?;
        let at = follower.received();
        let diverged = |how: String| {
            Trouble::Diverged(format!(
                "{how}: its history is not production's. Remove the copy and add it again, or promote it if its history is the right one"
            ))
        };
        match self.feed.tail(at, TAIL_BYTES) {
            Ok(Some(theirs)) => {
                let mine = mine.unwrap_or_default();
                let n = mine.len().min(theirs.len());
                if mine[mine.len() - n..] != theirs[theirs.len() - n..] {
                    return Err(diverged(format!(
                        "the copy's log differs from production's before LSN {at}"
                    )));
                }
            }
            Ok(None) => {}
            Err(Error::OutsideWindow { head, .. }) => {
                return Err(diverged(format!(
                    "the copy has records up to LSN {at}, production only up to {head}"
                )));
            }
            Err(e) => return Err(Trouble::Source(e)),
        }
        Ok(())
    }

    /// Begins a synchronisation; of a copy that has the state at `settled`, whose volumes are `old`.
    fn begin(
        &mut self,
        settled: Option<Lsn>,
        old: Option<Vec<crate::VolumeInfo>>,
    ) -> std::result::Result<Step, Trouble> {
        let plan = self.feed.plan(&self.name, settled).map_err(Trouble::Source)?;
        let point = plan.point.lsn;
        let sweep = Sweep::begin(Arc::clone(&self.files), &self.dir, plan, old).map_err(Trouble::Copy)?;
        self.feed.planned(&self.name, point).map_err(Trouble::Source)?;
        self.stage = Stage::Sweeping(Box::new(sweep));
        Ok(Step::Busy)
    }

    fn go_on_sweeping(&mut self) -> std::result::Result<Step, Trouble> {
        self.look_for_place("sync")?;
        let Stage::Sweeping(sweep) = &mut self.stage else { return Ok(Step::Busy) };
        let swept = sweep.step(&*self.feed).map_err(|e| side(e, &self.dir))?;
        let there = match swept {
            Swept::More => return Ok(Step::Busy),
            Swept::Done => sweep.install(&*self.feed).map_err(|e| side(e, &self.dir))?,
            Swept::Passed => false,
        };
        if there {
            self.stage = Stage::Closed;
            return Ok(Step::Busy);
        }
        // The source has moved on: so does the goal.
        let plan = self.feed.plan(&self.name, Some(sweep.point().lsn)).map_err(Trouble::Source)?;
        let point = plan.point.lsn;
        sweep.aim(plan).map_err(Trouble::Copy)?;
        self.feed.planned(&self.name, point).map_err(Trouble::Source)?;
        Ok(Step::Busy)
    }

    /// Refuses if the copy's directory is not where it was: open files would go on taking what nobody finds again.
    fn look_for_place(&self, sign: &str) -> std::result::Result<(), Trouble> {
        match self.files.list(&self.dir) {
            Ok(inside) if inside.iter().any(|n| n == sign) => return Ok(()),
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(Trouble::Copy(Error::Io { what: "listing", path: self.dir.clone(), source: e }));
            }
            _ => {}
        }
        Err(Trouble::Copy(Error::NotFound(format!(
            "{} is not there any more: bring the copy's disk back",
            self.dir.join(sign).display()
        ))))
    }

    fn follow(&mut self) -> std::result::Result<Step, Trouble> {
        self.look_for_place("superblock")?;
        let Stage::Following(follower) = &mut self.stage else { return Ok(Step::Busy) };
        let shipment = self.feed.ship(follower.received(), Lsn::MAX, CHUNK_BYTES).map_err(Trouble::Source)?;
        if shipment == Shipment::Gap {
            return self.resynchronise();
        }
        let facts = self.feed.facts().map_err(Trouble::Source)?;
        follower.drop_volumes(&facts).map_err(Trouble::Copy)?;
        for info in follower.missing_volumes(&facts) {
            let (mine, base) = follower.make_base(&info).map_err(Trouble::Copy)?;
            // What a new sparse volume holds is known; an adopted one came with its blocks.
            if info.adopted {
                let at = (follower.timeline(), info.created_lsn);
                if !fill_base(&*self.feed, at, &info, &base).map_err(|e| side(e, &self.dir))? {
                    drop(base);
                    return self.resynchronise();
                }
            }
            follower.add_volume(mine, base).map_err(Trouble::Copy)?;
        }
        let Shipment::Chunk(chunk) = shipment else {
            let durable = follower.flush().map_err(Trouble::Copy)?;
            self.unflushed_bytes = 0;
            self.feed.acknowledge(&self.name, durable, false).map_err(Trouble::Source)?;
            return Ok(Step::Level);
        };
        let taken = follower.take(&chunk, &facts).map_err(Trouble::Copy)?;
        self.received_bytes += chunk.bytes.len() as u64;
        self.unflushed_bytes += chunk.bytes.len() as u64;
        if self.unflushed_bytes >= FLUSH_EVERY_BYTES {
            let durable = follower.flush().map_err(Trouble::Copy)?;
            self.unflushed_bytes = 0;
            self.feed.acknowledge(&self.name, durable, false).map_err(Trouble::Source)?;
        }
        match taken {
            Taken::All => Ok(Step::Busy),
            Taken::Stuck(_) => self.resynchronise(),
        }
    }

    /// The log alone does not lead on: what may differ is moved, and the copy's window begins anew.
    fn resynchronise(&mut self) -> std::result::Result<Step, Trouble> {
        let Stage::Following(follower) = &self.stage else { return Ok(Step::Busy) };
        if let Some(image) = follower.group().images().first() {
            return Err(Trouble::Held(format!(
                "the copy cannot go on by its log and has to be synchronised anew, which ends its window; image {} is open on it: close that",
                image.name
            )));
        }
        let settled = follower.settle().map_err(Trouble::Copy)?;
        let volumes = follower.group().volumes();
        self.let_go();
        self.begin(Some(settled), Some(volumes))
    }
}

/// Whose error it is, of something that asks both sides.
fn side(error: Error, dir: &Path) -> Trouble {
    match &error {
        Error::Io { path, .. } | Error::Damaged { path, .. } if !path.starts_with(dir) => {
            Trouble::Source(error)
        }
        Error::Gone(_) | Error::Failed { .. } => Trouble::Source(error),
        _ => Trouble::Copy(error),
    }
}
