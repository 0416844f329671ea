//! Random changes from several threads, production that fails in every way, and crashes in the middle.

use parking_lot::Mutex;
use playhead_journal::Change;
use playhead_target::splitter::{Captured, OnJournalFailure, State, Taken};
use proptest::{prelude::*, test_runner::RngAlgorithm, test_runner::TestRng};
use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use playhead_target::splitter::Wanted;

use crate::{
    disk::Disk,
    order::begin,
    stage::{Stage, BLOCKS},
};

const THREADS: u64 = 4;

/// A generator of numbers that is a function of its seed.
struct Dice(TestRng);

impl Dice {
    fn new(seed: u64) -> Dice {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        Dice(TestRng::from_seed(RngAlgorithm::ChaCha, &bytes))
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0.next_u64() % limit
    }
}

/// One change of a random kind and place, and a random end. What a crash catches between production and journal is left in `limbo`.
fn change(stage: &Stage, dice: &mut Dice, limbo: &Mutex<Vec<Taken>>, dying: bool) {
    // Most changes are where others are too.
    let lba = if dice.below(4) > 0 { dice.below(200) } else { dice.below(BLOCKS - 64) };
    let count = 1 + dice.below(63);
    let fill = dice.below(256) as u8;
    let data = vec![fill; count as usize * 512];
    let taken = begin(stage, Wanted::blocks(lba, count), dice.below(2) == 0);
    match dice.below(if dying { 10 } else { 12 }) {
        // Refused by production as a whole.
        0 => return stage.split.unchanged(taken),
        // Half of it, and nobody knows which.
        1 => {
            stage.disk.write(lba, &data, dice.below(count));
            return match fill % 3 {
                0 => stage.split.unknown(taken),
                1 => stage.split.read_back(taken, Box::new(|_| {})),
                _ => drop(taken),
            };
        }
        2 | 3 if dying => {
            stage.disk.write(lba, &data, count);
            limbo.lock().push(taken);
            return;
        }
        _ => stage.disk.write(lba, &data, count),
    }
    let change = match fill {
        0 => Change::Zero { lba, count },
        n if n % 3 == 0 => Change::WriteSame { lba, count, block: &data[..512] },
        _ => Change::Write { lba, data: &data },
    };
    assert!(matches!(stage.split.capture(taken, &[change]), Ok(Captured::Recorded(_))));
}

fn storm(stage: &Stage, seed: u64, changes: u64, dying: bool) -> Vec<Taken> {
    let limbo = Mutex::new(Vec::new());
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (limbo, over) = (&limbo, &over);
            scope.spawn(move || {
                let mut dice = Dice::new(seed * THREADS + thread);
                for _ in 0..changes {
                    // Who dies with blocks in hand stops all who would wait for them.
                    if over.load(Ordering::Relaxed) {
                        return;
                    }
                    change(stage, &mut dice, limbo, false);
                }
                if dying {
                    over.store(true, Ordering::Relaxed);
                }
            });
        }
    });
    if dying {
        // One by one, so that none waits for another that will never end.
        let mut dice = Dice::new(!seed);
        for n in 0..20 {
            let lba = 1000 * (n % (BLOCKS / 1000 - 1)) + dice.below(900);
            let taken = match n < BLOCKS / 1000 - 1 {
                true => begin(stage, Wanted::blocks(lba, 1), false),
                false => break,
            };
            stage.disk.write(lba, &[n as u8 + 1; 512], 1);
            limbo.lock().push(taken);
        }
    }
    limbo.into_inner()
}

fn survive(dir: &Path, seed: u64) {
    let disk = Disk::new(BLOCKS);
    // There before it was protected.
    disk.write(17, &[3; 40 * 512], 40);
    let mut stage = Stage::new(dir, disk, OnJournalFailure::Stop);
    storm(&stage, seed, 40, false);
    stage.assert_in_step();
    for round in 1..4 {
        let limbo = storm(&stage, seed + 1000 * round, 30, true);
        assert!(!limbo.is_empty());
        stage = stage.crash(OnJournalFailure::Stop, limbo);
        storm(&stage, seed + 100 * round, 20, false);
        stage.assert_in_step();
    }
    let marked = stage.split.status().marked_bytes;
    assert!(marked > 0);
    stage = stage.reopen(OnJournalFailure::Track);
    assert_eq!(stage.split.status().state, State::Synchronised);
    assert_eq!(stage.split.status().marked_bytes, 0);
    stage.assert_in_step();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn replica_and_production_are_equal_after_every_crash(seed in any::<u32>()) {
        let dir = tempfile::tempdir().unwrap();
        survive(dir.path(), u64::from(seed));
    }
}
