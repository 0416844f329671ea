//! What is compared in a story.

use playhead_journal::Image;

use super::*;
use crate::model::difference;

impl Story {
    /// Compares a stretch of a volume.
    pub(super) fn check(
        &self,
        whose: &Whose,
        name: &str,
        volume: &Volume,
        rope: &Rope,
        lba: u64,
        count: u64,
    ) {
        let mut buf = vec![0xEE; count as usize * BLOCK_BYTES];
        self.must("reading", volume.read(lba, &mut buf));
        if let Some(text) = difference(rope, lba, &buf) {
            self.fail(&format!("volume {name} of {}: {text}", acts::owner(whose)));
        }
    }

    /// Compares the whole of a volume; of a huge one its data with what is around it, and where things happened of late.
    fn check_volume(&self, whose: &Whose, name: &str) {
        let volume = self.volume(whose, name);
        let rope = self.rope(whose, name);
        self.check_all(whose, name, &volume, rope);
    }

    fn check_all(&self, whose: &Whose, name: &str, volume: &Volume, rope: &Rope) {
        if volume.block_count() != rope.blocks() {
            self.fail(&format!("volume {name} has {} blocks, not {}", volume.block_count(), rope.blocks()));
        }
        for (lba, count) in self.stretches(name, rope) {
            self.check(whose, name, volume, rope, lba, count);
        }
        if rope.blocks() > HUGE_BLOCKS {
            self.check_claimed(whose, name, volume, rope);
        }
    }

    /// Of a huge volume, also what the engine itself says is data.
    fn check_claimed(&self, whose: &Whose, name: &str, volume: &Volume, rope: &Rope) {
        let blocks = rope.blocks();
        let mut at = 0;
        while at < blocks {
            for extent in self.must("extents", volume.extents(at, blocks - at, 500)) {
                at = extent.lba + extent.count;
                if !extent.zero {
                    let ends = [
                        (extent.lba, extent.count.min(256)),
                        (at - extent.count.min(8), extent.count.min(8)),
                    ];
                    ends.into_iter().for_each(|(lba, n)| self.check(whose, name, volume, rope, lba, n));
                }
            }
        }
    }

    /// What of a volume to look at: all of it, or of a huge one its data with what is around it, and where things happened of late.
    fn stretches(&self, name: &str, rope: &Rope) -> Vec<(u64, u64)> {
        let blocks = rope.blocks();
        if blocks <= HUGE_BLOCKS {
            return vec![(0, blocks)];
        }
        let mut stretches = Vec::new();
        for (start, count, run) in rope.runs(0, blocks, 2000) {
            let (from, to) = if run == Run::Zero {
                (start, (start + 2).min(blocks))
            } else {
                (start.saturating_sub(1), (start + count + 1).min(blocks))
            };
            stretches.push((from, to - from));
        }
        for (touched, lba, count) in &self.touched {
            if touched == name {
                let end = (lba + count).min(blocks);
                for at in [*lba, end.saturating_sub(8), lba + count / 2] {
                    stretches.push((at, 8.min(blocks - at)));
                }
            }
        }
        stretches
    }

    pub(super) fn check_volumes(&self, whose: &Whose) {
        let names: Vec<&String> = match whose {
            None => self.now.keys().collect(),
            Some(image) => self.images[image].state.keys().collect(),
        };
        for name in names {
            self.check_volume(whose, name);
        }
    }

    /// A few random reads of production.
    pub(super) fn check_some(&mut self) -> &'static str {
        for _ in 0..3 {
            let names: Vec<String> = self.now.keys().cloned().collect();
            let name = &names[self.random.below(names.len() as u64) as usize];
            let rope = self.now[name].clone();
            let blocks = rope.blocks();
            let around = self.touched.iter().rev().find(|t| &t.0 == name).map_or(0, |t| t.1);
            let lba = if self.random.once_in(2) {
                self.random.below(blocks)
            } else {
                around.saturating_sub(self.random.below(16)).min(blocks - 1)
            };
            let count = self.random.between(1, 64).min(blocks - lba);
            self.check(&None, name, &self.volume(&None, name), &rope, lba, count);
        }
        "read"
    }

    /// Which of the candidates an image shows. With several, the image lies inside a batch: one of its steps must fit on all volumes.
    pub(super) fn which(&self, image: &Image, candidates: &[Arc<State>]) -> State {
        if let [one] = candidates {
            let names: Vec<String> = image.volumes().iter().map(|v| v.name.clone()).collect();
            let mut names = names;
            names.sort();
            let expected: Vec<String> = one.keys().cloned().collect();
            if names != expected {
                self.fail(&format!("the image has volumes {names:?}, should have {expected:?}"));
            }
            return (**one).clone();
        }
        // Every candidate is asked about what sets any of them apart.
        let mut asked: BTreeMap<String, Vec<(u64, u64)>> = BTreeMap::new();
        for (name, rope) in candidates.iter().flat_map(|s| s.iter()) {
            asked.entry(name.clone()).or_default().extend(self.stretches(name, rope));
        }
        for stretches in asked.values_mut() {
            stretches.sort_unstable();
            stretches.dedup();
        }
        let fits = |state: &State| {
            state.iter().all(|(name, rope)| {
                let Ok(volume) = image.volume(name) else {
                    return false;
                };
                asked[name].iter().all(|&(lba, count)| {
                    let mut buf = vec![0; count as usize * BLOCK_BYTES];
                    volume.read(lba, &mut buf).is_ok() && difference(rope, lba, &buf).is_none()
                })
            })
        };
        match candidates.iter().find(|s| fits(s)) {
            Some(state) => (**state).clone(),
            None => self.fail(&format!("image {:?} is none of {} states", image.info(), candidates.len())),
        }
    }

    /// The extents of a range: adjoining, within it, and zero where they say so.
    pub(super) fn check_extents(&mut self) -> &'static str {
        let images: Vec<Whose> = [None].into_iter().chain(self.images.keys().cloned().map(Some)).collect();
        let whose = images[self.random.below(images.len() as u64) as usize].clone();
        let names: Vec<String> = match &whose {
            None => self.now.keys().cloned().collect(),
            Some(image) => self.images[image].state.keys().cloned().collect(),
        };
        if names.is_empty() {
            return "nothing";
        }
        let name = &names[self.random.below(names.len() as u64) as usize];
        let volume = self.volume(&whose, name);
        let rope = self.rope(&whose, name).clone();
        let lba = self.random.below(rope.blocks());
        let lba = if self.random.once_in(2) { 0 } else { lba };
        let count = self.random.between(1, rope.blocks() - lba);
        let limit = self.random.between(1, 50) as usize;
        let extents = self.must("extents", volume.extents(lba, count, limit));
        if extents.is_empty() || extents.len() > limit {
            self.fail(&format!("{} extents, limit {limit}", extents.len()));
        }
        let mut at = lba;
        for extent in &extents {
            if extent.lba != at || extent.count == 0 || extent.lba + extent.count > lba + count {
                self.fail(&format!("extents of {lba}+{count} do not adjoin: {extents:?}"));
            }
            at += extent.count;
            let data = rope.slice(extent.lba, extent.count).data_blocks();
            if (extent.zero || !extent.mapped) && data > 0 {
                self.fail(&format!(
                    "{extent:?} of {name} of {} says zero, but {data} blocks are not",
                    acts::owner(&whose)
                ));
            }
        }
        "extents"
    }

    /// After settling: the plain files alone are the current data.
    pub(super) fn check_bases(&self) {
        let files = self.medium.files();
        for info in self.group().volumes() {
            let rope = &self.now[&info.name];
            let mut start = 0_u64;
            for path in &info.base {
                let Some(size) = self.medium.size_of(path) else {
                    self.fail(&format!("base {} is missing", path.display()))
                };
                let blocks = (size / BLOCK_BYTES as u64).min(rope.blocks() - start);
                let compare = |lba: u64, count: u64| {
                    let bytes = self
                        .medium
                        .range_of(path, lba * BLOCK_BYTES as u64, count as usize * BLOCK_BYTES)
                        .unwrap_or_default();
                    if let Some(text) = difference(rope, start + lba, &bytes) {
                        self.fail(&format!("the settled base {} is wrong: {text}", path.display()));
                    }
                };
                if blocks <= HUGE_BLOCKS {
                    compare(0, blocks);
                } else {
                    for (lba, count, run) in rope.runs(start, blocks, 5000) {
                        if run != Run::Zero {
                            compare(lba - start, count);
                        }
                    }
                    // What the file has that the volume has not.
                    let file = files.open(path, Open::Read).expect("base opens");
                    let mut at = 0;
                    while at < size {
                        let (data, end) = file.data_at(at).expect("data_at");
                        let end = end.min(size);
                        if data {
                            compare(at / BLOCK_BYTES as u64, (end - at) / BLOCK_BYTES as u64);
                        }
                        at = end;
                    }
                }
                start += blocks;
            }
            if start != rope.blocks() {
                self.fail(&format!("the bases of {} hold {start} of {} blocks", info.name, rope.blocks()));
            }
        }
    }

    /// The lists of volumes, images and bookmarks.
    pub(super) fn check_lists(&self) {
        let group = self.group();
        let mut names: Vec<String> = group.volumes().into_iter().map(|v| v.name).collect();
        names.sort();
        if !names.iter().eq(self.now.keys()) {
            self.fail(&format!("volumes are {names:?}, should be {:?}", self.now.keys()));
        }
        let images: BTreeMap<String, (Lsn, bool)> =
            group.images().into_iter().map(|i| (i.name, (i.point.lsn, i.writable))).collect();
        let expected: BTreeMap<String, (Lsn, bool)> =
            self.images.iter().map(|(n, i)| (n.clone(), (i.lsn, i.writable))).collect();
        if images != expected {
            self.fail(&format!("images are {images:?}, should be {expected:?}"));
        }
        let marks: BTreeMap<String, Lsn> =
            group.bookmarks().into_iter().map(|b| (b.name, b.point.lsn)).collect();
        for (name, lsn) in &self.bookmarks {
            if *lsn > self.edge && marks.get(name) != Some(lsn) {
                self.fail(&format!("bookmark {name} at {lsn} is {:?}", marks.get(name)));
            }
        }
        for (name, lsn) in &marks {
            if *lsn < self.edge || self.bookmarks.get(name) != Some(lsn) {
                self.fail(&format!("bookmark {name} at {lsn}, edge {}, is none", self.edge));
            }
        }
    }

    /// Everything there is.
    pub(crate) fn check_everything(&mut self) {
        self.check_lists();
        self.check_volumes(&None);
        let images: Vec<String> = self.images.keys().cloned().collect();
        for image in images {
            self.check_volumes(&Some(image));
        }
        self.check_far();
        let window = self.group().window();
        if window.edge.lsn != self.edge || window.head.lsn != self.past.last().head {
            self.fail(&format!("window {window:?}, should be {}..{}", self.edge, self.past.last().head));
        }
    }
}
