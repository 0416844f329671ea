//! Copies, moments and ORs in a story.

use playhead_journal::{CopyPiece, Moment};

use super::*;
use crate::model::difference;

/// A moment that was frozen, and what it must hold.
pub(crate) struct Token {
    moment: Moment,
    whose: Whose,
    name: String,
    rope: Rope,
}

/// Blocks of data that one copy may carry, so that copying them as data stays quick.
const MOST_DATA_BLOCKS: u64 = 8192;
const MOST_TOKENS: usize = 6;

impl Story {
    /// Where to: production or a writable image, or now and then (`None`) the other group.
    fn some_target(&mut self) -> Option<(Whose, String)> {
        if self.random.once_in(8) {
            return None;
        }
        let whose = self.somebody();
        self.some_volume(&whose).map(|name| (whose, name))
    }

    fn target_rope(&self, target: &Option<(Whose, String)>) -> Rope {
        match target {
            Some((whose, name)) => self.rope(whose, name).clone(),
            None => self.far.clone(),
        }
    }

    fn target_volume(&self, target: &Option<(Whose, String)>) -> Volume {
        match target {
            Some((whose, name)) => self.volume(whose, name),
            None => self.far_volume(),
        }
    }

    fn far_volume(&self) -> Volume {
        let other = self.other.clone().expect("the other group is open");
        self.must("volume", other.volume(OTHER_VOLUME))
    }

    pub(super) fn check_far(&self) {
        self.check(&None, OTHER_VOLUME, &self.far_volume(), &self.far, 0, OTHER_BLOCKS);
    }

    fn set_target(&mut self, target: &Option<(Whose, String)>, rope: Rope) {
        match target {
            Some((whose, name)) => self.set_rope(whose, name, rope),
            None => self.far = rope,
        }
    }

    /// Pieces to copy, and what they make of the target one by one. With `live`, later pieces read what earlier ones have made.
    fn some_pieces(
        &mut self,
        source: &Rope,
        target: &Rope,
        live: bool,
    ) -> Option<(Vec<CopyPiece>, Vec<Rope>)> {
        let many = if self.random.once_in(3) { self.random.between(2, 5) } else { 1 };
        let mut pieces = Vec::new();
        let mut ropes = vec![target.clone()];
        let mut moved = 0;
        for _ in 0..many {
            let before = ropes[ropes.len() - 1].clone();
            let read = if live { before.clone() } else { source.clone() };
            let smaller = read.blocks().min(before.blocks());
            let mut count = self.some_range(smaller, 64).1;
            if self.random.once_in(3) {
                count = self.random.between(1, smaller);
            }
            let (source_lba, _) = self.some_range(read.blocks(), 1);
            let source_lba = source_lba.min(read.blocks() - count);
            let (lba, _) = self.some_range(before.blocks(), 1);
            let mut lba = lba.min(before.blocks() - count);
            if self.random.once_in(6) {
                // In place, or not far from it.
                lba = (source_lba + self.random.below(3)).min(before.blocks() - count);
            }
            let piece = read.slice(source_lba, count);
            let after = before.with(lba, piece.clone());
            moved += piece.data_blocks();
            let crowded = after.blocks() > HUGE_BLOCKS && after.data_blocks() > HUGE_DATA_BLOCKS;
            if moved > MOST_DATA_BLOCKS || crowded {
                break;
            }
            pieces.push(CopyPiece { source_lba, lba, count });
            ropes.push(after);
        }
        (!pieces.is_empty()).then_some((pieces, ropes))
    }

    /// Within one line of history (references), from another state of the group, or from or to another group.
    pub(super) fn act_copy(&mut self) -> &'static str {
        let target = self.some_target();
        let from_far = target.is_some() && self.random.once_in(8);
        let own = target.as_ref().and_then(|(whose, _)| whose.clone());
        let from = match self.random.below(5) {
            0 => {
                let i = self.random.below(self.images.len() as u64 + 1) as usize;
                self.images.keys().nth(i).cloned()
            }
            _ => own.clone(),
        };
        let Some(source) = self.some_volume(&from) else {
            return "nothing";
        };
        let (source_rope, source_volume) = match from_far {
            true => (self.far.clone(), self.far_volume()),
            false => (self.rope(&from, &source).clone(), self.volume(&from, &source)),
        };
        let one_line = target.is_some() && !from_far && from == own;
        let itself = one_line && target.as_ref().is_some_and(|(_, name)| *name == source);
        let rope = self.target_rope(&target);
        let Some((pieces, mut ropes)) = self.some_pieces(&source_rope, &rope, itself) else {
            return "nothing";
        };
        let copied = self.target_volume(&target).copy(&source_volume, &pieces);
        let names = (if from_far { OTHER_VOLUME } else { &source }, &target);
        self.tell(format!("copy from {} of {:?} to {:?}: {pieces:?} -> {copied:?}", names.0, from, names.1));
        let copied = self.must("copy", copied);
        let count: u64 = pieces.iter().map(|p| p.count).sum();
        if copied.referenced_blocks + copied.moved_blocks != count {
            self.fail(&format!("{count} blocks copied, {copied:?} told"));
        }
        let overlap = |p: &CopyPiece| p.lba.abs_diff(p.source_lba) < p.count;
        let cut = itself && pieces.iter().any(overlap);
        if one_line && !cut && copied.moved_blocks > 0 {
            self.fail(&format!("within one line of history {} blocks were moved", copied.moved_blocks));
        }
        self.copied(&target, &pieces, &mut ropes, one_line && !cut);
        "copy"
    }

    /// Takes over what a copy has made.
    fn copied(
        &mut self,
        target: &Option<(Whose, String)>,
        pieces: &[CopyPiece],
        ropes: &mut Vec<Rope>,
        one_record_each: bool,
    ) {
        let Some(last) = ropes.pop() else { return };
        let mut steps = Vec::new();
        if let Some((whose, name)) = target {
            for p in pieces {
                self.note_touched(name, p.lba, p.count);
            }
            if whose.is_none() && one_record_each {
                for rope in ropes.drain(1..) {
                    let mut state = self.now.clone();
                    state.insert(name.clone(), rope);
                    steps.push(Arc::new(state));
                }
            }
        }
        self.set_target(target, last);
        let production = matches!(target, Some((None, _)));
        self.note(steps, production && !one_record_each);
    }

    /// Keeps what a volume of anybody holds now.
    pub(super) fn act_freeze(&mut self) -> &'static str {
        let i = self.random.below(self.images.len() as u64 + 2) as usize;
        let whose = self.images.keys().nth(i).cloned();
        let Some(name) = self.some_volume(&whose) else {
            return "nothing";
        };
        let frozen = self.volume(&whose, &name).freeze();
        let moment = self.must("freeze", frozen);
        self.tell(format!("freeze {name} of {} at {}", acts::owner(&whose), moment.lsn()));
        if self.tokens.len() == MOST_TOKENS {
            self.tokens.remove(0);
        }
        let rope = self.rope(&whose, &name).clone();
        self.tokens.push(Token { moment, whose, name, rope });
        "freeze"
    }

    /// Whether a moment must still be there: it holds nothing, so it goes with what it was taken of, or when the edge passes it.
    fn lives(&self, token: &Token) -> bool {
        match &token.whose {
            Some(image) => self.images.contains_key(image),
            None => self.now.contains_key(&token.name) && token.moment.lsn() >= self.edge,
        }
    }

    /// Reads a frozen moment, or copies from it.
    pub(super) fn act_token(&mut self) -> &'static str {
        if self.tokens.is_empty() {
            return "nothing";
        }
        let i = self.random.below(self.tokens.len() as u64) as usize;
        if !self.lives(&self.tokens[i]) {
            let token = self.tokens.remove(i);
            let target = self.far_volume();
            let piece = CopyPiece { source_lba: 0, lba: 0, count: 1 };
            let gone = [
                token.moment.check(),
                token.moment.read(0, &mut [0; BLOCK_BYTES]),
                target.copy_moment(&token.moment, &[piece]).map(|_| ()),
            ];
            for outcome in gone {
                if !matches!(outcome, Err(Error::Gone(_))) {
                    self.fail(&format!("a moment at {} is gone but answers {outcome:?}", token.moment.lsn()));
                }
            }
            return "token, gone";
        }
        self.check_token(i);
        if self.random.once_in(3) {
            return "token, read";
        }
        let target = self.some_target();
        let (source, rope) = (self.tokens[i].rope.clone(), self.target_rope(&target));
        let Some((pieces, ropes)) = self.some_pieces(&source, &rope, false) else {
            return "nothing";
        };
        let copied = self.target_volume(&target).copy_moment(&self.tokens[i].moment, &pieces);
        self.tell(format!(
            "copy from {} of {:?} as of {} to {target:?}: {pieces:?} -> {copied:?}",
            self.tokens[i].name,
            self.tokens[i].whose,
            self.tokens[i].moment.lsn()
        ));
        self.must("copy from a moment", copied);
        self.copied(&target, &pieces, &mut ropes.clone(), false);
        "token, copy"
    }

    fn check_token(&mut self, i: usize) {
        let token = &self.tokens[i];
        let blocks = token.rope.blocks();
        let mut ranges = vec![(0, blocks.min(2000))];
        for (name, lba, count) in &self.touched {
            if *name == token.name && *lba < blocks {
                ranges.push((*lba, (*count).min(64).min(blocks - lba)));
            }
        }
        for (lba, count) in ranges {
            let mut buf = vec![0xEE; count as usize * BLOCK_BYTES];
            self.must("reading a moment", token.moment.read(lba, &mut buf));
            if let Some(text) = difference(&token.rope, lba, &buf) {
                let lsn = token.moment.lsn();
                self.fail(&format!("{} of {} as of {lsn}: {text}", token.name, acts::owner(&token.whose)));
            }
        }
        let extents = self.must("extents of a moment", token.moment.extents(0, blocks, 200));
        for e in extents.iter().filter(|e| e.zero) {
            if token.rope.slice(e.lba, e.count).data_blocks() > 0 {
                self.fail(&format!("{e:?} of {} as of {} is not zero", token.name, token.moment.lsn()));
            }
        }
    }

    /// No moment outlives its process.
    pub(super) fn end_tokens(&mut self, closed: bool) {
        for token in std::mem::take(&mut self.tokens) {
            let outcome = token.moment.read(0, &mut [0; BLOCK_BYTES]);
            if closed && !matches!(outcome, Err(Error::Gone(_))) {
                self.fail(&format!("the group is closed, but a moment answers {outcome:?}"));
            }
        }
    }

    pub(super) fn act_or_write(&mut self) -> &'static str {
        let whose = self.somebody();
        let Some(name) = self.some_volume(&whose) else {
            return "nothing";
        };
        let mut rope = self.rope(&whose, &name).clone();
        let (lba, count) = self.some_range(rope.blocks(), 8);
        let tag = self.tag();
        let mut data = vec![0; count as usize * BLOCK_BYTES];
        for (i, block) in data.chunks_exact_mut(BLOCK_BYTES).enumerate() {
            let at = lba + i as u64;
            let run = match self.random.below(3) {
                0 => Run::Ones,
                1 if rope.slice(at, 1).data_blocks() == 0 => Run::Data { tag, first: i as u64 },
                _ => continue,
            };
            let piece = Rope::of(run, 1);
            piece.read(0, block);
            rope = rope.with(at, piece);
        }
        let done = self.volume(&whose, &name).or_write(lba, &data);
        self.tell(format!("or {name} of {} at {lba:#x}, {count} blocks -> {done:?}", acts::owner(&whose)));
        self.must("or", done);
        self.note_touched(&name, lba, count);
        self.set_rope(&whose, &name, rope);
        self.note_head();
        "or"
    }
}
