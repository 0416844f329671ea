//! A random story on the source, and every point of both windows compared.

use crate::*;

struct Tale {
    story: Story,
    disk: SimFiles,
    copier: Option<Copier>,
    random: Random,
    segment_bytes: u64,
    counts: BTreeMap<&'static str, u64>,
    held: Option<BTreeMap<String, BTreeMap<u64, u32>>>,
    was_sweeping: bool,
}

impl Tale {
    fn begin(seed: u64, segment_bytes: u64) -> Tale {
        Tale {
            story: Story::begin(seed, segment_bytes),
            disk: disk(),
            copier: None,
            random: Random::new(seed ^ 0xC0B1),
            segment_bytes,
            counts: BTreeMap::new(),
            held: None,
            was_sweeping: false,
        }
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    fn copy_steps(&mut self, n: u64) {
        *self.story.lent.lock().unwrap() = Some(self.story.group());
        if self.copier.is_none() {
            let options = Options { segment_bytes: self.segment_bytes, background: false };
            let feed = Arc::new(Lent(Arc::clone(&self.story.lent)));
            self.copier = Some(Copier::new(feed, self.disk.files(), Path::new(COPY_DIR), "far", &options));
        }
        for _ in 0..n {
            let Some(copier) = &mut self.copier else { return };
            match copier.step() {
                Ok(Step::Level) => {
                    self.count("level");
                    return;
                }
                Ok(Step::Busy) => {}
                Err(Trouble::Held(_)) => {
                    self.count("held");
                    self.let_image_go();
                }
                Err(trouble) => self.story.fail(&format!("{trouble:?}")),
            }
            let sweeping = self.copier.as_ref().is_some_and(|c| c.sweep().is_some());
            if sweeping && !self.was_sweeping {
                self.count("synchronisations");
            }
            self.was_sweeping = sweeping;
        }
    }

    fn let_image_go(&mut self) {
        let held = self.held.take();
        if let (Some(follower), Some(held)) = (self.copier.as_ref().and_then(Copier::follower), held) {
            let image = follower.group().image("held").unwrap();
            if contents(&image).iter().any(|(v, c)| held.get(v).is_some_and(|h| h != c)) {
                self.story.fail("an image of the copy changed");
            }
            follower.group().close_image("held").unwrap();
        }
    }

    /// The copy's process dies, or its machine loses power.
    fn crash(&mut self) {
        self.copier = None;
        let seed = FIRST_RANDOM_SEED + self.random.below(1 << 40);
        if self.random.once_in(2) {
            self.disk = self.disk.survivor(seed);
            self.count("power losses");
        } else {
            self.disk = self.disk.kill(seed);
            self.count("kills");
        }
    }

    fn compare(&mut self) {
        let group = self.story.group();
        let Some(follower) = self.copier.as_ref().and_then(Copier::follower) else { return };
        let mine = follower.group().clone();
        check_bytes((&self.story.medium, &group), (&self.disk, &mine), self.segment_bytes);
        let follower_window = mine.window();
        let low = mine.window().edge.lsn.max(group.window().edge.lsn);
        let high = mine.head().lsn.min(group.head().lsn);
        if low > high {
            return;
        }
        let wanted = self.random.between(low, high);
        let (a, b) = (group.point_at_lsn(wanted).unwrap(), mine.point_at_lsn(wanted).unwrap());
        if a.lsn > high {
            return;
        }
        // The edge's own time may be of different records.
        if a.lsn != b.lsn || (a.time_ns != b.time_ns && a.lsn > low + self.segment_bytes) {
            self.story.fail(&format!("LSN {wanted} is {a:?} on the source and {b:?} on the copy"));
        }
        let theirs = contents_at(&group, a.lsn);
        let ours = contents_at(&mine, a.lsn);
        for (volume, content) in &theirs {
            if ours.get(volume).is_some_and(|c| c != content) {
                let mine = &ours[volume];
                let of = |c: &BTreeMap<u64, u32>, o: &BTreeMap<u64, u32>| -> Vec<u64> {
                    c.iter().filter(|(l, c)| o.get(l) != Some(c)).map(|(l, _)| *l).take(8).collect()
                };
                self.story.fail(&format!(
                    "volume {volume} differs at LSN {} from the copy: at {:?} and {:?}; its window is {:?}, {:?}",
                    a.lsn,
                    of(content, mine),
                    of(mine, content),
                    follower_window,
                    self.counts
                ));
            }
        }
        let marks = |g: &Group| -> Vec<_> {
            g.bookmarks().into_iter().filter(|b| (low..high).contains(&b.point.lsn)).collect()
        };
        assert_eq!(marks(&group), marks(&mine), "bookmarks");
        self.count("compared");
        if self.held.is_none() && self.random.once_in(4) {
            let image = mine.open_image("held", a.lsn, false).unwrap();
            self.held = Some(contents(&image));
        } else if self.random.once_in(2) {
            self.let_image_go();
        }
    }

    fn step(&mut self, awake: bool) {
        self.story.step();
        if awake {
            let n = self.random.below(4);
            self.copy_steps(n);
        }
        if let Some(follower) = self.copier.as_ref().and_then(Copier::follower) {
            match self.random.below(40) {
                0 => follower.group().tend().unwrap(),
                1 => {
                    let at =
                        self.random.between(follower.group().window().edge.lsn, follower.group().head().lsn);
                    follower.group().trim_to(at).unwrap();
                }
                _ => {}
            }
        }
        if self.random.once_in(25) {
            self.compare();
        }
        if self.random.once_in(60) {
            self.crash();
        }
    }

    fn end(&mut self) {
        self.copier = None;
        self.let_image_go();
        for _ in 0..100_000 {
            self.copy_steps(1);
            if let Some(follower) = self.copier.as_ref().and_then(Copier::follower) {
                if follower.group().image("held").is_ok() {
                    follower.group().close_image("held").unwrap();
                }
                if follower.durable() >= self.story.group().head().lsn {
                    break;
                }
            }
        }
        let group = self.story.group();
        let mine = self.copier.as_ref().unwrap().follower().unwrap().group().clone();
        let head = group.head().lsn;
        let names =
            |g: &Group| -> Vec<_> { g.volumes().into_iter().map(|v| (v.number, v.name, v.uuid)).collect() };
        assert_eq!(names(&group), names(&mine));
        assert_eq!(contents_at(&group, head), contents_at(&mine, mine.head().lsn));
        self.compare();
        eprintln!("{:?}", self.counts);
    }
}

fn tell(seed: u64, operations: u64, segment_bytes: u64) -> BTreeMap<&'static str, u64> {
    eprintln!("seed {seed}, {operations} operations, segments of {segment_bytes} bytes");
    let mut tale = Tale::begin(seed, segment_bytes);
    let mut awake = true;
    for _ in 0..operations {
        if tale.random.once_in(60) {
            awake = !awake;
        }
        tale.step(awake);
    }
    tale.end();
    tale.counts
}

#[test]
fn a_copy_is_the_source_at_every_point_of_both_windows() {
    let soak = std::env::var_os("PLAYHEAD_SOAK").is_some();
    let operations = number("PLAYHEAD_OPS").unwrap_or(if soak { 100_000 } else { 1000 });
    let seed = number("PLAYHEAD_SEED").unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        u64::from(now.subsec_nanos()) ^ (now.as_secs() << 20)
    });
    tell(seed, operations, Random::new(seed).pick(&[64 << 10, 128 << 10, 256 << 10]));
}
