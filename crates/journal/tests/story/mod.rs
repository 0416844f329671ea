//! A random story of a group: operations of every kind from a seed, done to the engine and to the oracle, and compared.
#![allow(dead_code)]

mod acts;
mod check;
mod copies;

use std::{
    collections::{BTreeMap, VecDeque},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use playhead_journal::{
    files::{Files, Open},
    BookmarkKind, Error, Group, Lsn, NewBase, Options, Policy, Volume,
};

use crate::{
    medium::{random::Random, SimFiles},
    model::{
        block::{Token, BLOCK_BYTES},
        rope::{Rope, Run},
        same_point, Moment, Past, State,
    },
};

/// Blocks beyond which a volume is compared by samples and by its data only.
pub(crate) const HUGE_BLOCKS: u64 = 1 << 20;
/// Blocks of the huge volume: 64 TiB.
const HUGE_VOLUME_BLOCKS: u64 = (64 << 40) / 512;
/// Blocks of data that the huge volume holds at most, so that folding it stays quick.
const HUGE_DATA_BLOCKS: u64 = 32 << 10;
/// What an adopted image held before: write tag of its blocks.
const ADOPTED_TAG: u64 = 0xAD0;
/// Images open at once.
const MAX_IMAGES: usize = 5;
/// Lines of the story that a failure tells.
const TOLD: usize = 30;

pub(crate) const DIR: &str = "/store/g";
/// Another group, with one volume.
const OTHER_DIR: &str = "/store/h";
const OTHER_VOLUME: &str = "far";
const OTHER_BLOCKS: u64 = 700;

/// An open image, as it must be.
pub(crate) struct ModelImage {
    pub(crate) lsn: Lsn,
    pub(crate) writable: bool,
    pub(crate) state: State,
}

/// The story so far.
pub(crate) struct Story {
    pub(crate) seed: u64,
    pub(crate) number: u64,
    pub(crate) random: Random,
    pub(crate) medium: SimFiles,
    pub(crate) options: Options,
    pub(crate) group: Option<Group>,
    pub(crate) other: Option<Group>,
    /// What the other group's volume holds.
    pub(crate) far: Rope,
    pub(crate) tokens: Vec<copies::Token>,
    pub(crate) now: State,
    pub(crate) past: Past,
    pub(crate) images: BTreeMap<String, ModelImage>,
    pub(crate) bookmarks: BTreeMap<String, Lsn>,
    /// The edge as last seen.
    pub(crate) edge: Lsn,
    pub(crate) next_tag: u64,
    pub(crate) next_name: u64,
    pub(crate) told: VecDeque<String>,
    /// Ranges touched of late, where faults show.
    pub(crate) touched: VecDeque<(String, u64, u64)>,
    pub(crate) counts: BTreeMap<&'static str, u64>,
    /// The group, for somebody who follows the story; it is taken back before the group is closed.
    pub(crate) lent: Arc<Mutex<Option<Group>>>,
}

/// Whose blocks: production's (`None`) or an image's.
type Whose = Option<String>;

impl Story {
    /// A new group with an adopted image, a small and a huge sparse volume.
    pub(crate) fn begin(seed: u64, segment_bytes: u64) -> Story {
        let medium = SimFiles::new();
        medium.create_dir(Path::new("/store")).expect("directory");
        medium.sync_dir(Path::new("/")).expect("sync");
        let options = Options { segment_bytes, background: false };
        let group = Group::create(medium.files(), Path::new(DIR), "g", &options).expect("create");
        let other = Group::create(medium.files(), Path::new(OTHER_DIR), "h", &options).expect("create");
        other.add_volume(OTHER_VOLUME, NewBase::Sparse { blocks: OTHER_BLOCKS }).expect("add");
        let mut story = Story {
            seed,
            number: 0,
            random: Random::new(seed),
            medium,
            options,
            group: Some(group),
            other: Some(other),
            far: Rope::of(Run::Zero, OTHER_BLOCKS),
            tokens: Vec::new(),
            now: State::new(),
            past: Past::default(),
            images: BTreeMap::new(),
            bookmarks: BTreeMap::new(),
            edge: 0,
            next_tag: 0x1000,
            next_name: 1,
            told: VecDeque::new(),
            touched: VecDeque::new(),
            counts: BTreeMap::new(),
            lent: Arc::default(),
        };
        story.note_head();
        story.edge = story.group().window().edge.lsn;
        story.adopt("raw", 1500);
        story.add("small", 900);
        story.add("huge", HUGE_VOLUME_BLOCKS);
        story
    }

    pub(crate) fn group(&self) -> Group {
        self.group.clone().expect("the group is open")
    }

    /// Tells the story's end and stops the test.
    pub(crate) fn fail(&self, what: &str) -> ! {
        let mut told = String::new();
        for line in &self.told {
            told.push_str("\n  ");
            told.push_str(line);
        }
        panic!(
            "{what}\nseed {} operation {} (replay: PLAYHEAD_SEED={} PLAYHEAD_OPS={})\nthe story's end:{told}",
            self.seed, self.number, self.seed, self.number
        );
    }

    pub(crate) fn tell(&mut self, line: String) {
        if std::env::var_os("PLAYHEAD_TELL").is_some() {
            eprintln!("{} {line}", self.number);
        }
        if self.told.len() == TOLD {
            self.told.pop_front();
        }
        self.told.push_back(format!("{} {line}", self.number));
    }

    pub(crate) fn must<T>(&self, what: &str, result: Result<T, Error>) -> T {
        result.unwrap_or_else(|e| self.fail(&format!("{what}: {e} ({e:?})")))
    }

    /// Notes where the head is after something was done to production (or to an image: then production is as it was).
    pub(crate) fn note_head(&mut self) {
        self.note(Vec::new(), false);
    }

    /// As [`Story::note_head`], after several records: what lies between, or that it is not known.
    pub(crate) fn note(&mut self, steps: Vec<Arc<State>>, opaque: bool) {
        let head = self.group().head();
        if self.past.len() > 0 {
            let last = self.past.last();
            if head.lsn < last.head || head.time_ns < last.time_ns {
                self.fail(&format!("the head went back: from {} to {head:?}", last.head));
            }
        }
        let state = Arc::new(self.now.clone());
        self.past.push(Moment { head: head.lsn, time_ns: head.time_ns, state, steps, opaque });
    }

    pub(crate) fn tag(&mut self) -> u64 {
        self.next_tag += 1;
        self.next_tag
    }

    pub(crate) fn name(&mut self, kind: &str) -> String {
        self.next_name += 1;
        format!("{kind}{}", self.next_name)
    }

    pub(crate) fn add(&mut self, name: &str, blocks: u64) {
        let added = self.group().add_volume(name, NewBase::Sparse { blocks });
        self.must("adding a volume", added);
        self.now.insert(name.into(), Rope::of(Run::Zero, blocks));
        self.tell(format!("add {name} of {blocks} blocks, head {}", self.group().head().lsn));
        self.note_head();
    }

    pub(crate) fn adopt(&mut self, name: &str, blocks: u64) {
        let path = PathBuf::from(format!("/store/{name}.img"));
        let mut bytes = vec![0; blocks as usize * BLOCK_BYTES];
        for (index, block) in bytes.chunks_exact_mut(BLOCK_BYTES).enumerate() {
            Token::Data { tag: ADOPTED_TAG, index: index as u64 }.fill(block);
        }
        self.medium.poke(&path, 0, &bytes);
        let added = self.group().add_volume(name, NewBase::Adopt { path });
        self.must("adopting", added);
        self.now.insert(name.into(), Rope::of(Run::Data { tag: ADOPTED_TAG, first: 0 }, blocks));
        self.tell(format!("adopt {name} of {blocks} blocks"));
        self.note_head();
    }

    /// The volume object of production or of an image.
    pub(crate) fn volume(&self, whose: &Whose, name: &str) -> Volume {
        let group = self.group();
        match whose {
            None => self.must("volume", group.volume(name)),
            Some(image) => {
                let image = self.must("image", group.image(image));
                self.must("image volume", image.volume(name))
            }
        }
    }

    pub(crate) fn rope(&self, whose: &Whose, name: &str) -> &Rope {
        match whose {
            None => &self.now[name],
            Some(image) => &self.images[image].state[name],
        }
    }

    pub(crate) fn set_rope(&mut self, whose: &Whose, name: &str, rope: Rope) {
        match whose {
            None => self.now.insert(name.into(), rope),
            Some(image) => self.images.get_mut(image).and_then(|i| i.state.insert(name.into(), rope)),
        };
    }

    /// Closes (or kills) and opens the group again.
    pub(crate) fn restart(&mut self, kill: bool) {
        *self.lent.lock().expect("lent") = None;
        let group = self.group.take().expect("open");
        let other = self.other.take().expect("open");
        if kill {
            let seed = self.random.next();
            self.medium = self.medium.kill(seed);
        } else {
            let closed = group.close().and_then(|()| other.close());
            self.must("closing", closed);
        }
        self.end_tokens(!kill);
        drop((group, other));
        let files: Arc<dyn Files> = self.medium.files();
        let opened = Group::open(files, Path::new(DIR), &self.options);
        self.group = Some(self.must("opening", opened));
        let opened = Group::open(self.medium.files(), Path::new(OTHER_DIR), &self.options);
        self.other = Some(self.must("opening the other group", opened));
        self.tell(format!(
            "restart ({}), head {}",
            if kill { "killed" } else { "closed" },
            self.group().head().lsn
        ));
        self.note_head();
        self.see_edge();
        self.check_lists();
    }

    /// Takes over a trailing edge that moved.
    pub(crate) fn see_edge(&mut self) {
        let edge = self.group().window().edge.lsn;
        if edge < self.edge {
            self.fail(&format!("the edge went back from {} to {edge}", self.edge));
        }
        for (name, image) in &self.images {
            if !image.writable && image.lsn < edge {
                self.fail(&format!("the edge {edge} passed image {name} at {}", image.lsn));
            }
        }
        self.edge = edge;
        self.past.trim(edge);
        self.bookmarks.retain(|_, lsn| *lsn >= edge);
    }

    /// A random point of the window that the oracle knows, mostly a head, sometimes in the midst of things.
    pub(crate) fn random_point(&mut self) -> Option<Lsn> {
        let group = self.group();
        let window = group.window();
        match self.random.below(10) {
            0 => {
                let at = self.random.between(window.edge.lsn, window.head.lsn);
                let point = self.must("point at LSN", group.point_at_lsn(at));
                if point.lsn < at {
                    self.fail(&format!("point_at_lsn({at}) gave {} before it", point.lsn));
                }
                Some(point.lsn)
            }
            1 if !self.bookmarks.is_empty() => {
                let i = self.random.below(self.bookmarks.len() as u64) as usize;
                self.bookmarks.values().nth(i).copied()
            }
            2 => {
                let i = self.random.below(self.past.len() as u64) as usize;
                let (time_ns, head) = (self.past.get(i).time_ns, self.past.get(i).head);
                if head < window.edge.lsn {
                    return None;
                }
                let point = self.must("point at time", group.point_at_time(time_ns));
                if point.time_ns > time_ns {
                    self.fail(&format!("point_at_time({time_ns}) gave {point:?}, after it"));
                }
                let expected = self.past.at_time(time_ns).map_or(0, |i| self.past.get(i).head);
                if !same_point(point.lsn, expected, self.options.segment_bytes) {
                    self.fail(&format!(
                        "point_at_time({time_ns}) gave {point:?}; the last point not after it is {expected}"
                    ));
                }
                Some(point.lsn)
            }
            3 => Some(window.edge.lsn),
            4 => Some(window.head.lsn),
            _ => {
                let i = self.random.below(self.past.len() as u64) as usize;
                Some(self.past.get(i).head).filter(|&h| h >= window.edge.lsn)
            }
        }
    }

    /// One random operation.
    pub(crate) fn step(&mut self) {
        self.number += 1;
        let dice = self.random.below(1000);
        let name = match dice {
            0..=549 => self.act_submit(),
            550..=589 => self.act_compare_and_write(),
            590..=604 => self.act_or_write(),
            605..=649 => self.act_copy(),
            650..=664 => self.act_freeze(),
            665..=689 => self.act_token(),
            690..=739 => self.check_some(),
            740..=769 => self.act_flush(),
            770..=789 => self.act_bookmark(),
            790..=829 => self.act_open_image(),
            830..=859 => self.act_read_image(),
            860..=889 => self.act_close_image(),
            890..=904 => self.act_rewind(),
            905..=912 => self.act_undo(),
            913..=932 => self.act_trim(),
            933..=952 => self.act_tend(),
            953..=957 => self.act_settle(),
            958..=966 => {
                let kill = self.random.once_in(2);
                self.restart(kill);
                "restart"
            }
            967..=984 => self.check_extents(),
            985..=988 => self.act_volumes(),
            989..=992 => self.act_verify(),
            _ => self.act_refused(),
        };
        *self.counts.entry(name).or_default() += 1;
        if self.random.once_in(500) {
            self.check_everything();
        }
        if let Some(lsn) = std::env::var("PLAYHEAD_WATCH").ok().and_then(|v| v.parse().ok()) {
            self.watch(lsn);
        }
    }

    /// Looks after every operation at one point of the past, to find the one that spoils it.
    fn watch(&mut self, lsn: Lsn) {
        let Some(state) = self.past.exactly(lsn, self.options.segment_bytes).map(|m| m.state.clone()) else {
            return;
        };
        let opened = self.group().open_image("watch", lsn, false);
        self.must("opening", opened);
        let image = ModelImage { lsn, writable: false, state: (*state).clone() };
        self.images.insert("watch".into(), image);
        self.check_volumes(&Some("watch".into()));
        self.images.remove("watch");
        let closed = self.group().close_image("watch");
        self.must("closing", closed);
    }
}
