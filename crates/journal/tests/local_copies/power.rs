//! Power fails at the copy, or at the source.

use crate::*;

/// A copy's first synchronisation, a log that is followed, a rewind in it, a gap, and what comes after.
fn life(there: &SimFiles) -> (SimFiles, Group) {
    let here = SimFiles::new();
    let (group, volume) = source(&here);
    let mut copy = copier(&group, there, SMALL);
    let mut told = |n: u64| {
        for _ in 0..n {
            if copy.step().is_err() {
                return;
            }
        }
    };
    for i in 0..20 {
        write(&volume, i * 64, 16, i as u8 + 1);
    }
    told(40);
    write(&volume, 3, 9, 200);
    told(1);
    let back = group.head().lsn;
    for i in 0..12 {
        write(&volume, i * 8, 16, 100);
        told(1);
    }
    group.rewind(back).unwrap();
    for i in 0..12 {
        write(&volume, 64 + i * 8, 16, 101);
        told(1);
    }
    told(10);
    for i in 0..20 {
        write(&volume, 2000 + i * 8, 16, 102);
    }
    trim(&group);
    told(20);
    drop(copy);
    (here, group)
}

#[test]
fn power_fails_at_every_write_of_a_copy() {
    let whole = disk();
    let start = whole.boundaries();
    life(&whole);
    let boundaries = whole.boundaries() - start;
    let every = if std::env::var_os("PLAYHEAD_SOAK").is_some() { 1 } else { 3 };
    for n in (1..boundaries).step_by(every) {
        let there = disk();
        there.crash_at(start + n);
        let (here, group) = life(&there);
        let expected = contents_at(&group, group.head().lsn);
        group.flush().unwrap();
        for seed in [0, 1, FIRST_RANDOM_SEED + n] {
            let (here, there) = (here.copy().kill(0), there.survivor(seed));
            let options = Options { segment_bytes: SMALL, background: false };
            let group = Group::open(here.files(), Path::new(DIR), &options).unwrap();
            let mut copy = copier(&group, &there, SMALL);
            let step = (0..200).find_map(|_| match copy.step() {
                Ok(Step::Busy) => None,
                other => Some(other),
            });
            assert!(matches!(step, Some(Ok(Step::Level))), "boundary {n}, seed {seed}: {step:?}");
            let mine = copy.follower().unwrap().group().clone();
            check_bytes((&here, &group), (&there, &mine), SMALL);
            assert_eq!(contents_at(&mine, mine.head().lsn), expected, "boundary {n}, seed {seed}");
        }
    }
    eprintln!("{boundaries} boundaries");
}

#[test]
fn what_the_source_may_still_lose_is_not_given_away() {
    let (here, there) = (SimFiles::new(), disk());
    let (group, volume) = source(&here);
    write(&volume, 0, 8, 1);
    let mut copy = copier(&group, &there, SMALL);
    level(&mut copy);
    for i in 0..40 {
        write(&volume, i * 8, 16, 2);
        copy.step().unwrap();
        let received = copy.follower().unwrap().received();
        assert!(received <= group.durable_lsn() + 64 + SMALL, "ahead of what is durable");
    }
    copy.let_go();
    for seed in 0..8 {
        let after = here.survivor(seed);
        let options = Options { segment_bytes: SMALL, background: false };
        let group = Group::open(after.files(), Path::new(DIR), &options).unwrap();
        let mut copy = copier(&group, &there.copy(), SMALL);
        level(&mut copy);
    }
}
