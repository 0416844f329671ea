//! Power fails at every write boundary of a scripted workload, and again while recovering from that.
//!
//! What was un-synced is lost, torn or reordered, in several ways at each boundary. What must hold then: all that was flushed is
//! there; the journal is a prefix of what was submitted, and the volumes, images and branches are as they were at its end; what was
//! acknowledged as durable is there; the group goes on working. `PLAYHEAD_SEED` varies the script and the losses,
//! `PLAYHEAD_SURVIVORS` their number; `PLAYHEAD_SOAK` looks at many more.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod medium;
mod model;
mod script;

use std::{
    path::Path,
    sync::{
        atomic::{AtomicU64, Ordering},
        OnceLock,
    },
};

use medium::{random::Random, SimFiles, FIRST_RANDOM_SEED};
use playhead_journal::{Error, Group};
use script::{go_on, script, Judge, Step, Told, DIR, OPTIONS};

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable)
        .map_or(default, |v| v.parse().unwrap_or_else(|_| panic!("{variable}={v} is no number")))
}

fn soak() -> bool {
    std::env::var_os("PLAYHEAD_SOAK").is_some()
}

struct Reference {
    seed: u64,
    script: Vec<Step>,
    told: Told,
    boundaries: u64,
}

/// The script without a crash.
fn reference() -> &'static Reference {
    static REFERENCE: OnceLock<Reference> = OnceLock::new();
    REFERENCE.get_or_init(|| {
        let seed = number("PLAYHEAD_SEED", 1);
        let script = script(seed);
        let mut told = Told::new();
        told.medium.keep_trace();
        if let Err((step, error)) = told.run(&script) {
            panic!("without a crash, step {step} {:?} fails: {error}", script[step]);
        }
        let boundaries = told.medium.boundaries();
        eprintln!("seed {seed}: {} steps, {boundaries} boundaries", script.len());
        Reference { seed, script, told, boundaries }
    })
}

/// The broken-off run: power fails at boundary `n`. `None` if the run got to its end without noticing.
fn broken_off(reference: &Reference, n: u64) -> (Told, usize) {
    let mut told = Told::new();
    told.medium.crash_at(n);
    let step = match told.run(&reference.script) {
        // The power may fail where nobody asks whether it worked, such as the removal of a file of no more use.
        Ok(()) => reference.script.len(),
        Err((step, error)) => {
            assert!(told.medium.is_off(), "boundary {n}: step {step} fails without a crash: {error}");
            step
        }
    };
    (told, step)
}

fn judge<'a>(reference: &'a Reference, told: &Told, step: usize, everything: bool) -> Judge<'a> {
    let promises = &reference.told.promises;
    let heads = &reference.told.heads;
    Judge {
        reference: &reference.told,
        at_least: if everything { told.acknowledged } else { told.durable },
        at_most: *heads.get(step).or(heads.last()).unwrap(),
        before: &promises[step],
        after: promises.get(step + 1).unwrap_or(&promises[step]),
        unmoved: match reference.script.get(step) {
            Some(Step::Rewind(_) | Step::Undo) => Some(heads[step - 1]),
            _ => None,
        },
    }
}

fn open(medium: &SimFiles) -> Result<Group, Error> {
    Group::open(medium.files(), Path::new(DIR), &OPTIONS)
}

/// Recovers and judges. Before the group was created there may be none; then it must be possible to create it.
fn recover(
    judge: &Judge<'_>,
    step: usize,
    medium: &SimFiles,
    random: &mut Random,
    further: bool,
) -> Result<(), String> {
    let group = match open(medium) {
        Err(_) if step == 0 => {
            let created = Group::create(medium.files(), Path::new(DIR), "g", &OPTIONS);
            created.map_err(|e| format!("creating it again: {e}"))?
        }
        opened => opened.map_err(|e| format!("opening: {e} ({e:?})"))?,
    };
    if step == 0 {
        return Ok(());
    }
    judge.judge(&group)?;
    if further {
        judge.look_back(&group, random)?;
        go_on(medium, group)?;
    }
    Ok(())
}

/// The story that led to a failure.
fn fail(reference: &Reference, n: u64, step: usize, how: &str, why: &str) -> ! {
    let trace = reference.told.medium.trace();
    let until = (n as usize).min(trace.len());
    let mut story = String::new();
    for boundary in &trace[until.saturating_sub(12)..until] {
        story.push_str(&format!("\n  {boundary}"));
    }
    let step = reference.script.get(step);
    panic!(
        "seed {}, power lost at boundary {n} in {step:?}, {how}: {why}\nthe last boundaries:{story}",
        reference.seed
    );
}

/// Which boundaries this process looks at: `PLAYHEAD_BOUNDARY` names one.
fn boundaries(reference: &Reference) -> Vec<u64> {
    match std::env::var("PLAYHEAD_BOUNDARY") {
        Ok(n) => vec![n.parse().unwrap()],
        Err(_) => (1..=reference.boundaries).collect(),
    }
}

/// Calls `visit` for every boundary, on as many threads as there are cores.
fn at_every_boundary(visit: impl Fn(&Reference, u64) + Sync) {
    let reference = reference();
    let all = boundaries(reference);
    let next = AtomicU64::new(0);
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(&n) = all.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                    visit(reference, n);
                }
            });
        }
    });
}

#[test]
fn power_lost_at_every_boundary() {
    let survivors = number("PLAYHEAD_SURVIVORS", FIRST_RANDOM_SEED + if soak() { 60 } else { 6 });
    at_every_boundary(|reference, n| {
        let (told, step) = broken_off(reference, n);
        let mut random = Random::new(n);
        for seed in 0..survivors {
            // The extremes always, the others different at every boundary.
            let seed = if seed < FIRST_RANDOM_SEED { seed } else { seed + n * 64 + reference.seed };
            let medium = told.medium.survivor(seed);
            let judge = judge(reference, &told, step, false);
            let further = (n + seed) % 4 == 0;
            if let Err(why) = recover(&judge, step, &medium, &mut random, further) {
                fail(reference, n, step, &format!("survivor {seed}"), &why);
            }
        }
    });
}

#[test]
fn process_killed_at_every_boundary() {
    at_every_boundary(|reference, n| {
        let (told, step) = broken_off(reference, n);
        let medium = told.medium.kill(n);
        let judge = judge(reference, &told, step, true);
        let further = n % 3 == 0;
        if let Err(why) = recover(&judge, step, &medium, &mut Random::new(n), further) {
            fail(reference, n, step, "process killed", &why);
        }
    });
}

#[test]
fn power_lost_again_at_every_boundary_of_the_recovery() {
    let stride = number("PLAYHEAD_STRIDE", if soak() { 1 } else { 7 });
    at_every_boundary(|reference, n| {
        if n % stride != reference.seed % stride {
            return;
        }
        let (told, step) = broken_off(reference, n);
        if step == 0 {
            return;
        }
        let judge = judge(reference, &told, step, false);
        for seed in [1, FIRST_RANDOM_SEED + n] {
            let first = told.medium.survivor(seed);
            let whole = first.copy();
            let group = match open(&whole) {
                Ok(group) => group,
                Err(e) => fail(reference, n, step, &format!("survivor {seed}"), &e.to_string()),
            };
            let recovered = group.head().lsn;
            let recovery = whole.boundaries();
            drop(group);
            for again in 1..=recovery {
                let medium = first.copy();
                medium.crash_at(again);
                // It may also succeed, if what it could not do does not matter.
                drop(open(&medium));
                let second = FIRST_RANDOM_SEED + again * 7 + seed;
                for second in [0, 1, second] {
                    let medium = medium.survivor(second);
                    // What the first recovery has seen need not survive the second power loss, unless it was durable.
                    let result = recover(&judge, step, &medium, &mut Random::new(n), again % 5 == 0);
                    if let Err(why) = result {
                        let how = format!(
                            "survivor {seed} (head {recovered}), lost again at {again} of {recovery}, survivor {second}"
                        );
                        fail(reference, n, step, &how, &why);
                    }
                }
            }
        }
    });
}

/// What a closed group had acknowledged survives power loss even if nobody flushed.
#[test]
fn closing_makes_all_of_it_durable() {
    let reference = reference();
    let mut told = Told::new();
    told.run(&reference.script).map_err(|(_, e)| e).unwrap();
    told.group.take().unwrap().close().unwrap();
    let judge = judge(reference, &told, reference.script.len(), true);
    for seed in 0..20 {
        let medium = told.medium.survivor(seed);
        if let Err(why) = recover(&judge, usize::MAX, &medium, &mut Random::new(seed), true) {
            panic!("closed, then power lost, survivor {seed}: {why}");
        }
    }
}
