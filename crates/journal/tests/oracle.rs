//! The journal against the oracle: random operations of every kind on several volumes, and after each the two must agree.
//!
//! `PLAYHEAD_SEED` replays a failure; `PLAYHEAD_OPS` makes it longer (with `PLAYHEAD_SOAK` it is a million); `PLAYHEAD_TELL` prints the story as it goes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod medium;
mod model;
mod story;

use medium::random::Random;
use model::{
    block::BLOCK_BYTES,
    rope::{Rope, Run},
};
use story::Story;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|v| v.parse().unwrap_or_else(|_| panic!("{variable}={v} is no number")))
}

/// A seed nobody chose, unless somebody did.
fn seed() -> u64 {
    number("PLAYHEAD_SEED").unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        u64::from(now.subsec_nanos()) ^ (now.as_secs() << 20)
    })
}

fn tell(seed: u64, operations: u64, segment_bytes: u64) -> Story {
    eprintln!("seed {seed}, {operations} operations, segments of {segment_bytes} bytes");
    let mut story = Story::begin(seed, segment_bytes);
    for _ in 0..operations {
        story.step();
    }
    story.check_everything();
    story.restart(true);
    story.check_everything();
    story.restart(false);
    story.check_everything();
    eprintln!("{:?}", story.counts);
    story
}

#[test]
fn random_operations_agree_with_the_oracle() {
    let soak = std::env::var_os("PLAYHEAD_SOAK").is_some();
    let operations = number("PLAYHEAD_OPS").unwrap_or(if soak { 1_000_000 } else { 10_000 });
    let seed = seed();
    let segment_bytes = Random::new(seed).pick(&[64 << 10, 128 << 10, 256 << 10, 1 << 20]);
    tell(seed, operations, segment_bytes);
}

/// Seeds that once found a fault.
#[test]
fn seeds_that_once_failed_do_not() {
    for (seed, operations, segment_bytes) in REGRESSIONS {
        tell(*seed, *operations, *segment_bytes);
    }
}

const REGRESSIONS: &[(u64, u64, u64)] = &[(1, 1000, 64 << 10), (2, 1000, 128 << 10)];

/// The oracle's own ropes against plain vectors.
#[test]
fn ropes_are_what_they_stand_for() {
    let mut random = Random::new(7);
    let mut rope = Rope::of(Run::Zero, 500);
    let mut plain = vec![0_u8; 500 * BLOCK_BYTES];
    for tag in 1..3000 {
        let count = random.between(1, 60);
        let lba = random.below(500 - count + 1);
        let from = random.below(500 - count + 1);
        let piece = match random.below(4) {
            0 => Rope::of(Run::Zero, count),
            1 => Rope::of(Run::Data { tag, first: 3 }, count),
            2 => Rope::of(Run::Same { tag }, count),
            _ => rope.slice(from, count),
        };
        let mut bytes = vec![0; count as usize * BLOCK_BYTES];
        piece.read(0, &mut bytes);
        rope = rope.with(lba, piece);
        plain[lba as usize * BLOCK_BYTES..][..bytes.len()].copy_from_slice(&bytes);
        assert_eq!(rope.blocks(), 500);
        let mut all = vec![1; plain.len()];
        rope.read(0, &mut all);
        assert!(all == plain, "after change {tag}");
        let data = plain.chunks(BLOCK_BYTES).filter(|b| b.iter().any(|x| *x != 0)).count();
        assert_eq!(rope.data_blocks(), data as u64);
        let runs = rope.runs(from, count, usize::MAX);
        assert_eq!(runs.iter().map(|r| r.1).sum::<u64>(), count);
    }
}
