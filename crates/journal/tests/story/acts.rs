//! What happens in a story.

use super::*;
use crate::model::{same_point, Act};

impl Story {
    /// Production, or sometimes a writable image.
    pub(super) fn somebody(&mut self) -> Whose {
        let writable: Vec<String> =
            self.images.iter().filter(|(_, i)| i.writable).map(|(n, _)| n.clone()).collect();
        if !writable.is_empty() && self.random.once_in(5) {
            let i = self.random.below(writable.len() as u64) as usize;
            return Some(writable[i].clone());
        }
        None
    }

    pub(super) fn some_volume(&mut self, whose: &Whose) -> Option<String> {
        let names: Vec<String> = match whose {
            None => self.now.keys().cloned().collect(),
            Some(image) => self.images[image].state.keys().cloned().collect(),
        };
        if names.is_empty() {
            return None;
        }
        let i = self.random.below(names.len() as u64) as usize;
        Some(names[i].clone())
    }

    /// A range: small ones anywhere (of a huge volume mostly in a few busy places), now and then a vast one.
    pub(super) fn some_range(&mut self, blocks: u64, most: u64) -> (u64, u64) {
        let count = match self.random.below(10) {
            0..=5 => self.random.between(1, 8),
            6..=7 => 8,
            _ => self.random.between(1, 64),
        }
        .min(most)
        .min(blocks);
        let last = blocks - count;
        let mut lba = if blocks > HUGE_BLOCKS {
            let places = [0, 1 << 20, 12_345_678_901, blocks / 2, last.saturating_sub(200)];
            (self.random.pick(&places) + self.random.below(200)).min(last)
        } else {
            self.random.below(last + 1)
        };
        if self.random.once_in(3) {
            lba &= !7;
        }
        (lba, count)
    }

    fn some_act(&mut self, rope: &Rope) -> Act {
        let blocks = rope.blocks();
        let huge = blocks > HUGE_BLOCKS;
        match self.random.below(20) {
            0..=12 => {
                let (lba, count) = self.some_range(blocks, 64);
                Act::Write { lba, count, tag: self.tag() }
            }
            13..=14 => {
                let (lba, mut count) = self.some_range(blocks, 64);
                if self.random.once_in(3) {
                    count = self.random.between(1, (blocks - lba).min(4096));
                }
                Act::WriteSame { lba, count, tag: self.tag() }
            }
            n => {
                let (mut lba, mut count) = self.some_range(blocks, 64);
                match self.random.below(12) {
                    0 => (lba, count) = (0, blocks),
                    1..=3 => count = self.random.between(1, blocks - lba),
                    4 if huge => count = self.random.between(1, (blocks - lba).min(1 << 33)),
                    _ => {}
                }
                if n < 18 {
                    Act::Zero { lba, count }
                } else {
                    Act::Unmap { lba, count }
                }
            }
        }
    }

    pub(super) fn note_touched(&mut self, name: &str, lba: u64, count: u64) {
        if self.touched.len() == 64 {
            self.touched.pop_front();
        }
        self.touched.push_back((name.into(), lba, count));
    }

    pub(super) fn act_submit(&mut self) -> &'static str {
        let whose = self.somebody();
        let Some(name) = self.some_volume(&whose) else {
            return "nothing";
        };
        let many = if self.random.once_in(3) { self.random.between(2, 8) } else { 1 };
        let mut acts = Vec::new();
        let mut ropes = vec![self.rope(&whose, &name).clone()];
        for _ in 0..many {
            let before = ropes[ropes.len() - 1].clone();
            let mut act = self.some_act(&before);
            let mut after = act.apply(&before);
            if after.blocks() > HUGE_BLOCKS && after.data_blocks() > HUGE_DATA_BLOCKS {
                act = Act::Unmap { lba: 0, count: after.blocks() };
                after = act.apply(&before);
            }
            acts.push(act);
            ropes.push(after);
        }
        let payloads: Vec<Vec<u8>> = acts.iter().map(Act::payload).collect();
        let changes: Vec<_> = acts.iter().zip(&payloads).map(|(a, p)| a.change(p)).collect();
        let volume = self.volume(&whose, &name);
        let submitted = volume.submit(&changes);
        let lsn = self.must("submit", submitted);
        for act in &acts {
            let (lba, count) = act.range();
            self.note_touched(&name, lba, count);
        }
        let mut steps = Vec::new();
        if whose.is_none() {
            let most = self.options.segment_bytes / 4 / BLOCK_BYTES as u64;
            let mut rope = ropes[0].clone();
            for (lba, piece) in acts.iter().flat_map(|a| a.pieces(most)) {
                rope = rope.with(lba, piece);
                let mut state = self.now.clone();
                state.insert(name.clone(), rope.clone());
                steps.push(Arc::new(state));
            }
            steps.pop();
        }
        self.set_rope(&whose, &name, ropes[ropes.len() - 1].clone());
        self.tell(format!("submit to {name} of {}: {acts:x?}, head {lsn}", owner(&whose)));
        let head = self.group().head().lsn;
        if lsn != head {
            self.fail(&format!("submit gave {lsn}, but the head is {head}"));
        }
        self.note(steps, false);
        "submit"
    }

    pub(super) fn act_compare_and_write(&mut self) -> &'static str {
        let whose = self.somebody();
        let Some(name) = self.some_volume(&whose) else {
            return "nothing";
        };
        let rope = self.rope(&whose, &name).clone();
        let (lba, count) = self.some_range(rope.blocks(), 8);
        let act = Act::Write { lba, count, tag: self.tag() };
        let mut compare = vec![0; count as usize * BLOCK_BYTES];
        rope.read(lba, &mut compare);
        let mut differs = None;
        if self.random.once_in(3) {
            let at = self.random.below(compare.len() as u64) as usize;
            compare[at] ^= 0x40;
            differs = Some(at);
        }
        let volume = self.volume(&whose, &name);
        let done = volume.compare_and_write(lba, &compare, &act.payload());
        let answer = self.must("compare and write", done);
        self.tell(format!("compare and write {name} of {}: {act:x?} -> {answer:?}", owner(&whose)));
        if answer != differs {
            self.fail(&format!("compare and write says {answer:?}, should say {differs:?}"));
        }
        if differs.is_none() {
            self.note_touched(&name, lba, count);
            self.set_rope(&whose, &name, act.apply(&rope));
        }
        self.note_head();
        "compare and write"
    }

    pub(super) fn act_flush(&mut self) -> &'static str {
        let group = self.group();
        let head = group.head().lsn;
        let flushed = group.flush();
        let lsn = self.must("flush", flushed);
        self.tell(format!("flush -> {lsn}"));
        if lsn < head || group.durable_lsn() < head {
            self.fail(&format!("flushed to {lsn}, durable {}, head {head}", group.durable_lsn()));
        }
        "flush"
    }

    pub(super) fn act_bookmark(&mut self) -> &'static str {
        let name = self.name("mark");
        let kind = if self.random.once_in(2) { BookmarkKind::Crash } else { BookmarkKind::Application };
        let marked = self.group().bookmark(&name, kind);
        let point = self.must("bookmark", marked);
        self.note_head();
        self.tell(format!("bookmark {name} at {}", point.lsn));
        self.bookmarks.insert(name, point.lsn);
        "bookmark"
    }

    pub(super) fn act_open_image(&mut self) -> &'static str {
        if self.images.len() >= MAX_IMAGES {
            return self.act_close_image();
        }
        let Some(lsn) = self.random_point() else {
            return "nothing";
        };
        let candidates = self.past.candidates(lsn, self.options.segment_bytes);
        if candidates.is_empty() {
            return "nothing";
        }
        let name = self.name("image");
        let writable = self.random.once_in(2);
        let opened = self.group().open_image(&name, lsn, writable);
        let image = self.must("opening an image", opened);
        let info = image.info();
        self.tell(format!("open image {name} at {lsn}, writable {writable} -> {:?}", info.point));
        if info.writable != writable || info.point.lsn < lsn {
            self.fail(&format!("asked for {lsn}, writable {writable}, got {info:?}"));
        }
        self.note_head();
        let state = self.which(&image, &candidates);
        self.images.insert(name.clone(), ModelImage { lsn: info.point.lsn, writable, state });
        self.check_volumes(&Some(name));
        "open image"
    }

    pub(super) fn act_read_image(&mut self) -> &'static str {
        let names: Vec<String> = self.images.keys().cloned().collect();
        if names.is_empty() {
            return "nothing";
        }
        let i = self.random.below(names.len() as u64) as usize;
        self.check_volumes(&Some(names[i].clone()));
        "read image"
    }

    pub(super) fn act_close_image(&mut self) -> &'static str {
        let names: Vec<String> = self.images.keys().cloned().collect();
        if names.is_empty() {
            return "nothing";
        }
        let i = self.random.below(names.len() as u64) as usize;
        self.close_image(&names[i]);
        "close image"
    }

    pub(super) fn close_image(&mut self, name: &str) {
        let image = self.must("image", self.group().image(name));
        let volume = self.images[name].state.keys().next().map(|v| self.must("volume", image.volume(v)));
        let closed = self.group().close_image(name);
        self.must("closing an image", closed);
        self.images.remove(name);
        self.tell(format!("close image {name}"));
        if let Some(volume) = volume {
            if !matches!(volume.read(0, &mut [0; BLOCK_BYTES]), Err(Error::Gone(_))) {
                self.fail(&format!("image {name} is closed but its volume answers"));
            }
        }
        self.note_head();
        self.see_edge();
    }

    pub(super) fn act_rewind(&mut self) -> &'static str {
        let Some(lsn) = self.random_point() else {
            return "nothing";
        };
        // Points inside a batch are for images, which can be asked what they show.
        let Some(state) = self.past.exactly(lsn, self.options.segment_bytes).map(|m| m.state.clone()) else {
            return "nothing";
        };
        // A volume that is younger than the point has no past to go back to.
        if state.keys().ne(self.now.keys()) {
            return "nothing";
        }
        let before = self.group().head().lsn;
        let rewound = self.group().rewind(lsn);
        self.tell(format!("rewind to {lsn} from {before} -> {rewound:?}"));
        let rewind = self.must("rewind", rewound);
        if !same_point(rewind.to.lsn, lsn, self.options.segment_bytes) || rewind.undo_lsn < before {
            self.fail(&format!("rewind to {lsn} from {before} says {rewind:?}"));
        }
        self.now = (*state).clone();
        self.note_head();
        self.check_volumes(&None);
        "rewind"
    }

    pub(super) fn act_undo(&mut self) -> &'static str {
        let rewinds = self.group().rewinds();
        let Some(last) = rewinds.last().copied() else {
            if !matches!(self.group().undo_rewind(), Err(Error::NotFound(_) | Error::Conflict(_))) {
                self.fail("there is no rewind to undo");
            }
            return "nothing";
        };
        let Some(state) =
            self.past.exactly(last.undo_lsn, self.options.segment_bytes).map(|m| m.state.clone())
        else {
            if last.undo_lsn < self.edge {
                return "nothing";
            }
            self.fail(&format!("rewind {last:?} has no point to go back to"));
        };
        if state.keys().ne(self.now.keys()) {
            return "nothing";
        }
        let undone = self.group().undo_rewind();
        self.tell(format!("undo {last:?} -> {undone:?}"));
        self.must("undo", undone);
        self.now = (*state).clone();
        self.note_head();
        self.check_volumes(&None);
        "undo"
    }

    pub(super) fn act_trim(&mut self) -> &'static str {
        let group = self.group();
        let window = group.window();
        let to = match self.random.below(4) {
            0 => window.head.lsn,
            1 => self.random.between(window.edge.lsn, window.head.lsn),
            _ => window.head.lsn - (window.head.lsn - window.edge.lsn) / 2,
        };
        let trimmed = group.trim_to(to);
        self.tell(format!("trim to {to} (edge {}) -> {trimmed:?}", window.edge.lsn));
        let edge = self.must("trim", trimmed);
        if edge.lsn > to || edge.lsn != group.window().edge.lsn {
            self.fail(&format!("trim_to({to}) gave {edge:?}, window {:?}", group.window()));
        }
        self.note_head();
        self.see_edge();
        if self.edge > 0 {
            let below = self.random.below(self.edge);
            if !matches!(group.open_image("below", below, false), Err(Error::OutsideWindow { .. })) {
                self.fail(&format!("an image at {below} is below the edge {}", self.edge));
            }
        }
        "trim"
    }

    pub(super) fn act_tend(&mut self) -> &'static str {
        let group = self.group();
        let limit = self.options.segment_bytes * self.random.between(3, 20);
        self.medium.advance(self.random.below(2_000_000_000));
        let policy = match self.random.below(4) {
            0 => Policy { window_ns: None, limit_bytes: None, ..Policy::default() },
            1 => Policy {
                window_ns: Some(self.random.below(3_000_000_000)),
                limit_bytes: None,
                ..Policy::default()
            },
            _ => Policy { window_ns: None, limit_bytes: Some(limit), ..Policy::default() },
        };
        let text = format!("{policy:?}");
        group.set_policy(policy);
        let tended = group.tend();
        self.must("tend", tended);
        self.note_head();
        self.see_edge();
        self.tell(format!("tend with {text}: edge {}", self.edge));
        "tend"
    }

    pub(super) fn act_settle(&mut self) -> &'static str {
        let group = self.group();
        if self.random.once_in(4) {
            // Given up half way: nothing may be different.
            let mut calls = self.random.below(3);
            let cancelled = group.settle(&mut |_, _| {
                let go_on = calls > 0;
                calls = calls.saturating_sub(1);
                go_on
            });
            self.tell(format!("settle, cancelled -> {cancelled:?}"));
            self.note_head();
            self.see_edge();
            self.check_volumes(&None);
            return "settle, cancelled";
        }
        let mut settled = group.settle(&mut |_, _| true);
        if !self.images.is_empty() {
            if let Err(Error::Conflict(why)) = &settled {
                let names: Vec<String> = self.images.keys().cloned().collect();
                self.tell(format!("settle is refused: {why}"));
                for name in names {
                    self.close_image(&name);
                }
                settled = group.settle(&mut |_, _| true);
            }
        }
        self.tell(format!("settle -> {settled:?}, window {:?}", group.window()));
        self.must("settle", settled);
        self.note_head();
        self.see_edge();
        self.check_bases();
        self.check_volumes(&None);
        "settle"
    }

    pub(super) fn act_volumes(&mut self) -> &'static str {
        let extra: Vec<String> = self.now.keys().filter(|n| n.starts_with("extra")).cloned().collect();
        if extra.len() < 2 {
            let name = self.name("extra");
            let blocks = self.random.between(1, 400);
            self.add(&name, blocks);
            return "add volume";
        }
        if !self.images.is_empty() {
            return "nothing";
        }
        let name = &extra[self.random.below(extra.len() as u64) as usize];
        let mut removed = self.group().remove_volume(name, true);
        if let Err(Error::Conflict(why)) = &removed {
            // What copies of the window may still read must stay.
            self.tell(format!("removing {name} is refused: {why}"));
            let settled = self.group().settle(&mut |_, _| true);
            self.must("settle", settled);
            self.see_edge();
            removed = self.group().remove_volume(name, true);
        }
        self.tell(format!("remove {name} -> {removed:?}"));
        self.must("remove volume", removed);
        self.now.remove(name);
        // It is gone from the past as well.
        self.past.forget_volume(name);
        self.note_head();
        self.see_edge();
        "remove volume"
    }

    pub(super) fn act_verify(&mut self) -> &'static str {
        let files = self.medium.files();
        let verdict = playhead_journal::reader::verify(&*files, Path::new(DIR));
        let verdict = self.must("verify", verdict);
        self.tell(format!("verify: {verdict:?}"));
        if !verdict.problems.is_empty() {
            self.fail(&format!("the reader finds fault: {:?}", verdict.problems));
        }
        "verify"
    }

    /// What must be refused, and must change nothing.
    pub(super) fn act_refused(&mut self) -> &'static str {
        let group = self.group();
        let Some(name) = self.some_volume(&None) else {
            return "nothing";
        };
        let volume = self.volume(&None, &name);
        let blocks = volume.block_count();
        let data = vec![7; BLOCK_BYTES];
        let act = Act::Write { lba: blocks, count: 1, tag: 1 };
        if !matches!(volume.submit(&[act.change(&data)]), Err(Error::OutOfRange { .. })) {
            self.fail("a write beyond the end is taken");
        }
        let good = Act::Write { lba: 0, count: 1, tag: 1 };
        let bad = Act::Zero { lba: blocks - 1, count: 2 };
        if volume.submit(&[good.change(&data), bad.change(&[])]).is_ok() {
            self.fail("a batch with a bad change is taken");
        }
        if !matches!(volume.read(u64::MAX - 1, &mut [0; 2 * BLOCK_BYTES]), Err(Error::OutOfRange { .. })) {
            self.fail("a read beyond the end is answered");
        }
        let head = group.head().lsn;
        if !matches!(group.open_image("far", head + 1, false), Err(Error::OutsideWindow { .. })) {
            self.fail("an image of the future opens");
        }
        if !matches!(Group::open(self.medium.files(), Path::new(DIR), &self.options), Err(Error::Busy { .. }))
        {
            self.fail("the group opens twice");
        }
        if let Some(image) = self.images.iter().find(|(_, i)| !i.writable).map(|(n, _)| n.clone()) {
            if let Some(name) = self.images[&image].state.keys().next().cloned() {
                let volume = self.volume(&Some(image.clone()), &name);
                if !volume.read_only() || volume.submit(&[good.change(&data)]).is_ok() {
                    self.fail("a read-only image takes a write");
                }
            }
            if group.open_image(&image, head, false).is_ok() {
                self.fail("two images have one name");
            }
        }
        if group.head().lsn != head {
            self.fail("something refused moved the head");
        }
        self.tell("refused things".into());
        "refused"
    }
}

pub(super) fn owner(whose: &Whose) -> &str {
    whose.as_deref().unwrap_or("production")
}
