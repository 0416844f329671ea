//! A scripted workload that touches everything, told so that it can be cut off at any boundary and judged by what it had been
//! promised until then.
#![allow(dead_code)]

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use playhead_journal::{BookmarkKind, CopyPiece, Error, Group, Lsn, Moment, NewBase, Options, Volume};

use crate::{
    medium::{random::Random, SimFiles},
    model::{
        block::{Token, BLOCK_BYTES},
        difference,
        rope::{Rope, Run},
        same_point, Act, State, SEGMENT_HEADER_BYTES,
    },
};

pub(crate) const DIR: &str = "/store/g";
pub(crate) const OPTIONS: Options = Options { segment_bytes: 64 << 10, background: false };
/// Blocks of the adopted volume.
const RAW_BLOCKS: u64 = 160;
/// Blocks of the sparse volume: 3 TiB, of which little is used.
const THIN_BLOCKS: u64 = (3 << 40) / 512;
/// Where in the sparse volume things happen.
const THIN_PLACES: [u64; 3] = [0, 1 << 32, THIN_BLOCKS - 64];
const ADOPTED_TAG: u64 = 0xAD0;

/// One step of the script.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    Create,
    Adopt(&'static str),
    Add(&'static str),
    /// To production (`None`) or a writable image.
    Submit(Option<&'static str>, &'static str, Vec<Act>),
    Compare(&'static str, Act),
    /// Within production: from where, and pieces of source block, destination block, blocks; a record each.
    Copy {
        from: &'static str,
        to: &'static str,
        pieces: Vec<(u64, u64, u64)>,
    },
    /// Ones in some blocks.
    Or(&'static str, u64, u64),
    /// Keeps what a volume of production holds.
    Freeze(&'static str),
    /// From what was kept: source block, destination, blocks, and which of them (from, blocks) the source has not any more.
    CopyFrozen {
        to: (&'static str, u64),
        from: u64,
        count: u64,
        changed: (u64, u64),
    },
    Flush,
    Bookmark(&'static str),
    /// At the position where the head was after that step (counted from the start).
    OpenImage(&'static str, usize, bool),
    CloseImage(&'static str),
    Rewind(usize),
    Undo,
    TrimTo(usize),
    Tend,
    Settle,
    CloseAndOpen,
    KillAndOpen,
}

/// The script. `variant` changes what is written where, not what kinds of things happen.
pub(crate) fn script(variant: u64) -> Vec<Step> {
    let mut random = Random::new(variant);
    let mut tag = 0x100;
    let mut steps = vec![Step::Create, Step::Adopt("raw"), Step::Add("thin")];
    let mut writes = |steps: &mut Vec<Step>, image: Option<&'static str>, batches: usize| {
        for _ in 0..batches {
            let volume = random.pick(&["raw", "thin"]);
            let many = random.between(1, 4);
            let acts = (0..many)
                .map(|_| {
                    tag += 1;
                    let count = random.pick(&[1, 3, 8, 24, 31]);
                    let lba = match volume {
                        "raw" => random.below(RAW_BLOCKS - count),
                        _ => random.pick(&THIN_PLACES) + random.below(32),
                    };
                    match random.below(10) {
                        0..=6 => Act::Write { lba, count, tag },
                        7 => Act::WriteSame { lba, count, tag },
                        8 => Act::Zero { lba, count },
                        _ => Act::Unmap { lba, count },
                    }
                })
                .collect();
            steps.push(Step::Submit(image, volume, acts));
        }
    };
    writes(&mut steps, None, 3);
    steps.push(Step::Flush);
    writes(&mut steps, None, 6);
    steps.push(Step::Bookmark("monday"));
    let bookmark = steps.len() - 1;
    writes(&mut steps, None, 3);
    steps.push(Step::OpenImage("look", bookmark, false));
    steps.push(Step::OpenImage("try", bookmark, true));
    writes(&mut steps, Some("try"), 3);
    writes(&mut steps, None, 3);
    steps.push(Step::Copy { from: "raw", to: "thin", pieces: vec![(10, 1 << 32, 30)] });
    steps.push(Step::Copy { from: "thin", to: "raw", pieces: vec![(1 << 32, 100, 40), (0, 90, 15)] });
    steps.push(Step::Copy { from: "raw", to: "raw", pieces: vec![(100, 120, 35)] });
    steps.push(Step::Or("raw", 118, 4));
    writes(&mut steps, Some("try"), 1);
    steps.push(Step::Compare("raw", Act::Write { lba: 5, count: 2, tag: 0xCA }));
    steps.push(Step::Submit(None, "raw", vec![Act::Write { lba: 20, count: 30, tag: 0xF1 }]));
    steps.push(Step::Freeze("raw"));
    steps.push(Step::Flush);
    steps.push(Step::Submit(None, "raw", vec![Act::Write { lba: 30, count: 8, tag: 0xF0 }]));
    steps.push(Step::CopyFrozen { to: ("thin", (1 << 32) + 10), from: 20, count: 30, changed: (10, 8) });
    steps.push(Step::Tend);
    writes(&mut steps, None, 4);
    steps.push(Step::KillAndOpen);
    writes(&mut steps, None, 2);
    let before = steps.len() - 1;
    steps.push(Step::Rewind(bookmark));
    writes(&mut steps, None, 3);
    steps.push(Step::Undo);
    writes(&mut steps, None, 2);
    steps.push(Step::Rewind(before));
    writes(&mut steps, None, 3);
    writes(&mut steps, Some("try"), 2);
    let point = steps.len() - 1;
    steps.push(Step::CloseImage("look"));
    steps.push(Step::CloseAndOpen);
    steps.push(Step::OpenImage("late", point, true));
    writes(&mut steps, Some("late"), 2);
    steps.push(Step::CloseImage("try"));
    writes(&mut steps, None, 3);
    steps.push(Step::TrimTo(point));
    writes(&mut steps, None, 2);
    steps.push(Step::CloseImage("late"));
    steps.push(Step::TrimTo(steps.len() - 1));
    steps.push(Step::Tend);
    writes(&mut steps, None, 3);
    steps.push(Step::Settle);
    writes(&mut steps, None, 4);
    steps.push(Step::Bookmark("sunday"));
    steps.push(Step::Flush);
    steps.push(Step::CloseAndOpen);
    writes(&mut steps, None, 2);
    steps
}

/// What was promised after a step.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(crate) struct Promise {
    pub(crate) volumes: BTreeSet<String>,
    pub(crate) images: BTreeMap<String, (Lsn, bool)>,
    pub(crate) bookmarks: BTreeMap<String, Lsn>,
    pub(crate) edge: Lsn,
}

/// What a run has done, and what it had been told.
pub(crate) struct Told {
    pub(crate) medium: SimFiles,
    pub(crate) group: Option<Group>,
    now: State,
    frozen: Option<(Moment, Rope)>,
    branches: BTreeMap<String, State>,
    /// Production by head.
    pub(crate) production: BTreeMap<Lsn, Arc<State>>,
    /// Writable images by head.
    pub(crate) branch_states: BTreeMap<String, BTreeMap<Lsn, Arc<State>>>,
    /// The head after each step.
    pub(crate) heads: Vec<Lsn>,
    /// The promises after each step.
    pub(crate) promises: Vec<Promise>,
    /// Everything before this was promised to survive power loss.
    pub(crate) durable: Lsn,
    /// Everything before this was acknowledged.
    pub(crate) acknowledged: Lsn,
    /// Boundaries passed after each step.
    pub(crate) boundaries: Vec<u64>,
}

impl Told {
    /// A run on a fresh medium.
    pub(crate) fn new() -> Told {
        let medium = SimFiles::new();
        use playhead_journal::files::Files;
        medium.create_dir(Path::new("/store")).expect("directory");
        medium.sync_dir(Path::new("/")).expect("sync");
        let mut bytes = vec![0; RAW_BLOCKS as usize * BLOCK_BYTES];
        for (index, block) in bytes.chunks_exact_mut(BLOCK_BYTES).enumerate() {
            Token::Data { tag: ADOPTED_TAG, index: index as u64 }.fill(block);
        }
        medium.poke(Path::new("/store/raw.img"), 0, &bytes);
        Told {
            medium,
            group: None,
            now: State::new(),
            frozen: None,
            branches: BTreeMap::new(),
            production: BTreeMap::new(),
            branch_states: BTreeMap::new(),
            heads: Vec::new(),
            promises: vec![Promise::default()],
            durable: 0,
            acknowledged: 0,
            boundaries: Vec::new(),
        }
    }

    /// Runs until the first error, which is `Err` with the number of the step it came in.
    pub(crate) fn run(&mut self, script: &[Step]) -> Result<(), (usize, Error)> {
        for (i, step) in script.iter().enumerate() {
            let mut promise = self.promises[i].clone();
            self.take(step, &mut promise).map_err(|e| (i, e))?;
            let Some(group) = &self.group else { continue };
            let head = group.head().lsn;
            let window = group.window();
            promise.edge = window.edge.lsn;
            promise.bookmarks.retain(|_, lsn| *lsn >= window.edge.lsn);
            self.production.insert(head, Arc::new(self.now.clone()));
            for (name, state) in &self.branches {
                let states = self.branch_states.entry(name.clone()).or_default();
                states.insert(head, Arc::new(state.clone()));
            }
            self.durable = self.durable.max(group.durable_lsn());
            self.acknowledged = head;
            self.heads.push(head);
            self.promises.push(promise);
            self.boundaries.push(self.medium.boundaries());
        }
        Ok(())
    }

    fn group(&self) -> Group {
        self.group.clone().expect("the script creates the group first")
    }

    fn take(&mut self, step: &Step, promise: &mut Promise) -> Result<(), Error> {
        match step {
            Step::Create => {
                let files = self.medium.files();
                self.group = Some(Group::create(files, Path::new(DIR), "g", &OPTIONS)?);
            }
            Step::Adopt(name) => {
                let path = PathBuf::from(format!("/store/{name}.img"));
                self.group().add_volume(name, NewBase::Adopt { path })?;
                let rope = Rope::of(Run::Data { tag: ADOPTED_TAG, first: 0 }, RAW_BLOCKS);
                self.now.insert((*name).into(), rope);
                promise.volumes.insert((*name).into());
            }
            Step::Add(name) => {
                self.group().add_volume(name, NewBase::Sparse { blocks: THIN_BLOCKS })?;
                self.now.insert((*name).into(), Rope::of(Run::Zero, THIN_BLOCKS));
                promise.volumes.insert((*name).into());
            }
            Step::Submit(image, name, acts) => self.submit(*image, name, acts)?,
            Step::Compare(name, act) => {
                let (lba, count) = act.range();
                let mut old = vec![0; count as usize * BLOCK_BYTES];
                self.now[*name].read(lba, &mut old);
                let answer = self.group().volume(name)?.compare_and_write(lba, &old, &act.payload())?;
                assert_eq!(answer, None);
                let rope = act.apply(&self.now[*name]);
                self.now.insert((*name).into(), rope);
            }
            Step::Copy { from, to, pieces } => {
                let group = self.group();
                let before = group.head().lsn;
                let asked: Vec<CopyPiece> = pieces.iter().map(|p| piece(p.0, p.1, p.2)).collect();
                group.volume(to)?.copy(&group.volume(from)?, &asked)?;
                // Onto itself it is several records: it moves up, so the far ones come first, each as long as the shift.
                let shift = |p: &CopyPiece| if from == to { p.lba - p.source_lba } else { p.count };
                let records = asked.iter().flat_map(|p| {
                    let (p, shift) = (*p, shift(p));
                    (0..p.count.div_ceil(shift)).map(move |i| {
                        let end = p.count - i * shift;
                        let start = end.saturating_sub(shift);
                        (piece(p.source_lba + start, p.lba + start, end - start), 80)
                    })
                });
                let records: Vec<(CopyPiece, u64)> = records.collect();
                self.records(before, &records, to, |now, p| now[*from].slice(p.source_lba, p.count));
            }
            Step::Or(name, lba, count) => {
                self.group().volume(name)?.or_write(*lba, &vec![0xFF; *count as usize * BLOCK_BYTES])?;
                let rope = self.now[*name].with(*lba, Rope::of(Run::Ones, *count));
                self.now.insert((*name).into(), rope);
            }
            Step::Freeze(name) => {
                let moment = self.group().volume(name)?.freeze()?;
                self.frozen = Some((moment, self.now[*name].clone()));
            }
            Step::CopyFrozen { to, from, count, changed } => {
                let group = self.group();
                let before = group.head().lsn;
                let (moment, rope) = self.frozen.clone().expect("frozen");
                group.volume(to.0)?.copy_moment(&moment, &[piece(*from, to.1, *count)])?;
                // What the source has not any more comes first, as data; then references to the rest.
                let part = |at: u64, n: u64| piece(from + at, to.1 + at, n);
                let (at, n) = *changed;
                let data = (part(at, n), 64 + n * BLOCK_BYTES as u64);
                let rest = [(part(0, at), 80), (part(at + n, count - at - n), 80)];
                self.records(before, &[data, rest[0], rest[1]], to.0, |_, p| {
                    rope.slice(p.source_lba, p.count)
                });
            }
            Step::Flush => {
                let head = self.group().head().lsn;
                assert!(self.group().flush()? >= head, "a flush covers the head");
                self.durable = self.durable.max(head);
            }
            Step::Bookmark(name) => {
                let point = self.group().bookmark(name, BookmarkKind::Application)?;
                promise.bookmarks.insert((*name).into(), point.lsn);
                self.durable = self.durable.max(point.lsn);
            }
            Step::OpenImage(name, at, writable) => {
                let lsn = self.heads[*at];
                let image = self.group().open_image(name, lsn, *writable)?;
                promise.images.insert((*name).into(), (image.info().point.lsn, *writable));
                if *writable {
                    self.branches.insert((*name).into(), (*self.production[&lsn]).clone());
                }
            }
            Step::CloseImage(name) => {
                self.group().close_image(name)?;
                promise.images.remove(*name);
                self.branches.remove(*name);
            }
            Step::Rewind(at) => {
                let lsn = self.heads[*at];
                self.group().rewind(lsn)?;
                self.now = (*self.production[&lsn]).clone();
                self.durable = self.durable.max(self.group().head().lsn);
            }
            Step::Undo => {
                let group = self.group();
                let last = *group.rewinds().last().expect("a rewind");
                group.undo_rewind()?;
                self.now = (*self.production[&last.undo_lsn]).clone();
                self.durable = self.durable.max(self.group().head().lsn);
            }
            Step::TrimTo(at) => {
                self.group().trim_to(self.heads[*at])?;
            }
            Step::Tend => self.group().tend()?,
            Step::Settle => self.group().settle(&mut |_, _| true)?,
            Step::CloseAndOpen => {
                self.frozen = None;
                self.group().close()?;
                self.group = None;
                let files = self.medium.files();
                self.group = Some(Group::open(files, Path::new(DIR), &OPTIONS)?);
            }
            Step::KillAndOpen => {
                self.frozen = None;
                self.group = None;
                self.medium = self.medium.kill(0);
                let files = self.medium.files();
                self.group = Some(Group::open(files, Path::new(DIR), &OPTIONS)?);
            }
        }
        Ok(())
    }

    /// Notes what each record of a copy has made: pieces, and bytes of their records.
    fn records(
        &mut self,
        before: Lsn,
        records: &[(CopyPiece, u64)],
        to: &str,
        read: impl Fn(&State, &CopyPiece) -> Rope,
    ) {
        let sizes: Vec<u64> = records.iter().map(|r| r.1).collect();
        let ends = ends_of_records(before, &sizes);
        assert_eq!(
            ends.last(),
            Some(&self.group().head().lsn),
            "records lie where the format says: {records:?}"
        );
        for ((p, _), end) in records.iter().zip(ends) {
            let rope = self.now[to].with(p.lba, read(&self.now, p));
            self.now.insert(to.into(), rope);
            self.production.insert(end, Arc::new(self.now.clone()));
            for (name, state) in &self.branches {
                let states = self.branch_states.entry(name.clone()).or_default();
                states.insert(end, Arc::new(state.clone()));
            }
        }
    }

    fn submit(&mut self, image: Option<&'static str>, name: &str, acts: &[Act]) -> Result<(), Error> {
        let group = self.group();
        let before = group.head().lsn;
        let volume: Volume = match image {
            None => group.volume(name)?,
            Some(image) => group.image(image)?.volume(name)?,
        };
        let payloads: Vec<Vec<u8>> = acts.iter().map(Act::payload).collect();
        let changes: Vec<_> = acts.iter().zip(&payloads).map(|(a, p)| a.change(p)).collect();
        volume.submit(&changes)?;
        let ends = ends_of(before, acts);
        assert_eq!(
            ends.last(),
            Some(&group.head().lsn),
            "records lie where the format says: {before} {acts:?}"
        );
        for (i, act) in acts.iter().enumerate() {
            let state = match image {
                None => &mut self.now,
                Some(image) => self.branches.get_mut(image).expect("writable"),
            };
            let rope = act.apply(&state[name]);
            state.insert(name.into(), rope);
            if let Some(end) = ends.get(i) {
                self.production.insert(*end, Arc::new(self.now.clone()));
                for (name, state) in &self.branches {
                    let states = self.branch_states.entry(name.clone()).or_default();
                    states.insert(*end, Arc::new(state.clone()));
                }
            }
        }
        Ok(())
    }
}

fn piece(source_lba: u64, lba: u64, count: u64) -> CopyPiece {
    CopyPiece { source_lba, lba, count }
}

fn ends_of(head: Lsn, acts: &[Act]) -> Vec<Lsn> {
    let sizes: Vec<u64> = acts.iter().map(|act| 64 + act.payload().len() as u64).collect();
    ends_of_records(head, &sizes)
}

/// Where each record of a batch ends: 64 bytes of header, the payload, up to 8 bytes; none crosses the end of a segment.
fn ends_of_records(head: Lsn, sizes: &[u64]) -> Vec<Lsn> {
    let mut at = head;
    sizes
        .iter()
        .map(|size| {
            let bytes = size.next_multiple_of(8);
            if at % OPTIONS.segment_bytes + bytes > OPTIONS.segment_bytes {
                at = (at / OPTIONS.segment_bytes + 1) * OPTIONS.segment_bytes + SEGMENT_HEADER_BYTES;
            }
            at += bytes;
            at
        })
        .collect()
}

/// What is judged after a crash: the reference run knows every state, the broken-off run what had been promised.
pub(crate) struct Judge<'a> {
    pub(crate) reference: &'a Told,
    /// Everything before this must be there.
    pub(crate) at_least: Lsn,
    /// Nothing at or after this was ever submitted.
    pub(crate) at_most: Lsn,
    /// What was promised before and after the step in which it happened.
    pub(crate) before: &'a Promise,
    pub(crate) after: &'a Promise,
    /// The crash came in a rewind: its record may be in the log and production not moved yet. Then production is as at this point.
    pub(crate) unmoved: Option<Lsn>,
}

fn state_at(states: &BTreeMap<Lsn, Arc<State>>, head: Lsn) -> Option<Arc<State>> {
    states.range(..=head).next_back().map(|(_, s)| s.clone())
}

fn compare(what: &str, volume: &Volume, rope: &Rope) -> Result<(), String> {
    let blocks = rope.blocks();
    let ranges: Vec<(u64, u64)> =
        if blocks <= RAW_BLOCKS { vec![(0, blocks)] } else { THIN_PLACES.iter().map(|p| (*p, 64)).collect() };
    let mut buf = vec![0; RAW_BLOCKS as usize * BLOCK_BYTES];
    for (lba, count) in ranges {
        let buf = &mut buf[..count as usize * BLOCK_BYTES];
        volume.read(lba, buf).map_err(|e| format!("{what}: {e}"))?;
        if let Some(text) = difference(rope, lba, buf) {
            return Err(format!("{what}: {text}"));
        }
    }
    Ok(())
}

impl Judge<'_> {
    /// Whether a recovered group is what it must be; the recovered head if so.
    pub(crate) fn judge(&self, group: &Group) -> Result<Lsn, String> {
        let head = group.head().lsn;
        if head < self.at_least
            || (head > self.at_most && !same_point(head, self.at_most, OPTIONS.segment_bytes))
        {
            return Err(format!("the head is {head}, not within {}..={}", self.at_least, self.at_most));
        }
        let reference = self.reference;
        if !reference.production.contains_key(&head) && head % OPTIONS.segment_bytes != SEGMENT_HEADER_BYTES {
            return Err(format!("the head is {head}, where no record ends"));
        }
        let names: BTreeSet<String> = group.volumes().into_iter().map(|v| v.name).collect();
        if names != self.before.volumes && names != self.after.volumes {
            return Err(format!("volumes are {names:?}, not {:?}", self.after.volumes));
        }
        let Some(state) = state_at(&reference.production, head) else {
            return Ok(head);
        };
        let moved = self.production(group, &state, head);
        if let (Err(_), Some(unmoved)) = (&moved, self.unmoved.filter(|lsn| *lsn < head)) {
            let state = state_at(&reference.production, unmoved).ok_or("no state")?;
            self.production(group, &state, head)?;
        } else {
            moved?;
        }
        self.images(group, head)?;
        self.bookmarks(group, head)?;
        let edge = group.window().edge.lsn;
        if edge < self.before.edge || edge > self.after.edge.max(self.before.edge) {
            return Err(format!("the edge is {edge}, not {}..={}", self.before.edge, self.after.edge));
        }
        Ok(head)
    }

    fn production(&self, group: &Group, state: &State, head: Lsn) -> Result<(), String> {
        for name in group.volumes().into_iter().map(|v| v.name) {
            // A volume that was being added may be there before the step that added it has a state.
            let Some(rope) = state.get(&name) else {
                continue;
            };
            let volume = group.volume(&name).map_err(|e| e.to_string())?;
            compare(&format!("{name} at head {head}"), &volume, rope)?;
        }
        Ok(())
    }

    fn images(&self, group: &Group, head: Lsn) -> Result<(), String> {
        let images: BTreeMap<String, (Lsn, bool)> =
            group.images().into_iter().map(|i| (i.name, (i.point.lsn, i.writable))).collect();
        if images != self.before.images && images != self.after.images {
            return Err(format!("images are {images:?}, not {:?}", self.after.images));
        }
        for (name, (lsn, writable)) in &images {
            let image = group.image(name).map_err(|e| e.to_string())?;
            let own = self.reference.branch_states.get(name).filter(|_| *writable);
            let state = own
                .and_then(|states| state_at(states, head))
                .or_else(|| state_at(&self.reference.production, *lsn))
                .ok_or("no state")?;
            for (volume, rope) in state.iter() {
                let opened = image.volume(volume).map_err(|e| e.to_string())?;
                compare(&format!("{volume} of image {name} at {lsn}, head {head}"), &opened, rope)?;
            }
        }
        Ok(())
    }

    fn bookmarks(&self, group: &Group, head: Lsn) -> Result<(), String> {
        let edge = group.window().edge.lsn;
        let marks: BTreeMap<String, Lsn> =
            group.bookmarks().into_iter().map(|b| (b.name, b.point.lsn)).collect();
        let mut due = self.before.bookmarks.clone();
        due.retain(|_, lsn| *lsn > edge);
        let mut may = self.after.bookmarks.clone();
        may.extend(self.before.bookmarks.clone());
        for (name, lsn) in &due {
            if marks.get(name) != Some(lsn) {
                return Err(format!("bookmark {name} at {lsn} is {:?}, head {head}", marks.get(name)));
            }
        }
        for (name, lsn) in &marks {
            if may.get(name) != Some(lsn) || *lsn > head {
                return Err(format!("bookmark {name} at {lsn} was never promised"));
            }
        }
        Ok(())
    }

    /// Any moment that the window still has, seen through an image.
    pub(crate) fn look_back(&self, group: &Group, random: &mut Random) -> Result<(), String> {
        let window = group.window();
        let to = self.unmoved.map_or(window.head.lsn, |lsn| lsn.min(window.head.lsn));
        let lsn = random.between(window.edge.lsn, to.max(window.edge.lsn));
        let point = group.point_at_lsn(lsn).map_err(|e| e.to_string())?;
        let image = group.open_image("back", point.lsn, false).map_err(|e| e.to_string())?;
        let Some(state) = state_at(&self.reference.production, point.lsn) else {
            return Ok(());
        };
        for info in image.volumes() {
            let Some(rope) = state.get(&info.name) else {
                continue;
            };
            let volume = image.volume(&info.name).map_err(|e| e.to_string())?;
            compare(&format!("{} looking back to {}", info.name, point.lsn), &volume, rope)?;
        }
        group.close_image("back").map_err(|e| e.to_string())
    }
}

/// Uses a recovered group: writes, flushes, closes, opens, and finds all of it.
pub(crate) fn go_on(medium: &SimFiles, group: Group) -> Result<(), String> {
    let text = |e: Error| format!("going on: {e}");
    let mut expected: BTreeMap<String, Rope> = BTreeMap::new();
    for info in group.volumes() {
        let volume = group.volume(&info.name).map_err(text)?;
        for i in 0..3 {
            let act = Act::Write { lba: i * 11, count: 9, tag: 0x9000 + i };
            volume.submit(&[act.change(&act.payload())]).map_err(text)?;
            let rope = expected.entry(info.name.clone()).or_insert_with(|| Rope::of(Run::Zero, 40));
            *rope = act.apply(rope);
        }
    }
    group.tend().map_err(text)?;
    group.close().map_err(text)?;
    drop(group);
    let group = Group::open(medium.files(), Path::new(DIR), &OPTIONS).map_err(text)?;
    for (name, rope) in expected {
        let volume = group.volume(&name).map_err(text)?;
        for i in 0..3 {
            let mut buf = vec![0; 9 * BLOCK_BYTES];
            volume.read(i * 11, &mut buf).map_err(text)?;
            if let Some(text) = difference(&rope, i * 11, &buf) {
                return Err(format!("after going on, {name}: {text}"));
            }
        }
    }
    let verdict = playhead_journal::reader::verify(&*medium.files(), Path::new(DIR)).map_err(text)?;
    if !verdict.problems.is_empty() {
        return Err(format!("after going on, the reader finds {:?}", verdict.problems));
    }
    Ok(())
}
