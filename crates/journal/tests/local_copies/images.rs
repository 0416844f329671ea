//! Writable images of a copy: what hosts write to one is theirs alone, and survives what the copy's log survives.

use playhead_journal::{
    files::DiskFiles,
    keep::{CopyState, Keeping},
    CopyPiece, Policy,
};

use crate::histories::{open_promoted, promote};
use crate::*;

const BLOCKS: usize = 512;

fn small() -> Options {
    Options { segment_bytes: SMALL, background: false }
}

/// The blocks of two volumes, each the number it is filled with, and whether it is unmapped: not known where a base says, which knows that of
/// whole pages.
#[derive(Clone)]
struct Model {
    blocks: [Vec<u32>; 2],
    unmapped: [Vec<Option<bool>>; 2],
}

impl Model {
    fn read(volumes: &[Volume; 2]) -> Model {
        let of = |v: &Volume| {
            let mut data = vec![0; BLOCKS * 512];
            v.read(0, &mut data).unwrap();
            data.chunks(512)
                .map(|b| {
                    let n = u32::from_le_bytes(b[..4].try_into().unwrap());
                    assert_eq!(b, filled(n), "a block of two writes");
                    n
                })
                .collect()
        };
        let mapped = |v: &Volume| {
            let mut at = 0;
            let mut unmapped = Vec::new();
            while at < BLOCKS as u64 {
                for e in v.extents(at, BLOCKS as u64 - at, 3).unwrap() {
                    assert_eq!(e.lba, at);
                    at += e.count;
                    unmapped.extend(vec![Some(!e.mapped); e.count as usize]);
                    assert!(e.mapped || e.zero);
                }
            }
            unmapped
        };
        let [a, b] = volumes;
        Model { blocks: [of(a), of(b)], unmapped: [mapped(a), mapped(b)] }
    }

    fn put(&mut self, volume: usize, lba: u64, values: &[u32], unmapped: bool) {
        let at = lba as usize..lba as usize + values.len();
        self.blocks[volume][at.clone()].copy_from_slice(values);
        self.unmapped[volume][at].fill(Some(unmapped));
    }

    fn is(&self, volumes: &[Volume; 2]) -> bool {
        let found = Model::read(volumes);
        let same = |(mine, found): (&Vec<Option<bool>>, &Vec<Option<bool>>)| {
            mine.iter().zip(found).all(|(mine, found)| mine.is_none() || mine == found)
        };
        self.blocks == found.blocks && self.unmapped.iter().zip(&found.unmapped).all(same)
    }
}

fn filled(n: u32) -> Vec<u8> {
    n.to_le_bytes().repeat(128)
}

/// A random change of one of the volumes, carried out on both.
fn change(random: &mut Random, volumes: &[Volume; 2], model: &mut Model, tag: &mut u32) {
    let v = random.below(2) as usize;
    let count = random.between(1, 24);
    let lba = random.below(BLOCKS as u64 - count);
    let range = lba as usize..(lba + count) as usize;
    let whole: Vec<u8> = model.blocks[v][range.clone()].iter().flat_map(|n| filled(*n)).collect();
    *tag += 1;
    let same = vec![*tag; count as usize];
    let data = filled(*tag).repeat(count as usize);
    let submit = |change| volumes[v].submit(&[change]).unwrap();
    match random.below(8) {
        0 | 1 => {
            submit(Change::Write { lba, data: &data });
            model.put(v, lba, &same, false);
        }
        2 => {
            submit(Change::WriteSame { lba, count, block: &filled(*tag) });
            model.put(v, lba, &same, false);
        }
        3 => {
            submit(Change::Zero { lba, count });
            model.put(v, lba, &vec![0; count as usize], false);
        }
        4 => {
            submit(Change::Unmap { lba, count });
            model.put(v, lba, &vec![0; count as usize], true);
        }
        5 => {
            assert_eq!(volumes[v].compare_and_write(lba, &whole, &data).unwrap(), None);
            // An OR may have come to the same before.
            if whole != data {
                assert!(volumes[v].compare_and_write(lba, &whole, &data).unwrap().is_some());
            }
            model.put(v, lba, &same, false);
        }
        6 => {
            volumes[v].or_write(lba, &data).unwrap();
            let ored: Vec<u32> = model.blocks[v][range].iter().map(|n| n | *tag).collect();
            model.put(v, lba, &ored, false);
        }
        _ => {
            let from = random.below(2) as usize;
            let source_lba = random.below(BLOCKS as u64 - count);
            let piece = CopyPiece { source_lba, lba, count };
            let before = model.clone();
            volumes[v].copy(&volumes[from], &[piece]).unwrap();
            for i in 0..count as usize {
                let (s, d) = (source_lba as usize + i, lba as usize + i);
                model.blocks[v][d] = before.blocks[from][s];
                model.unmapped[v][d] = before.unmapped[from][s];
            }
        }
    }
}

fn both(image: &Image) -> [Volume; 2] {
    [image.volume("v").unwrap(), image.volume("w").unwrap()]
}

fn two_volumes(here: &SimFiles) -> (Group, [Volume; 2]) {
    here.create_dir(Path::new("/store")).unwrap();
    here.sync_dir(Path::new("/")).unwrap();
    let group = Group::create(here.files(), Path::new(DIR), "g", &small()).unwrap();
    let add = |name| group.add_volume(name, NewBase::Sparse { blocks: BLOCKS as u64 }).unwrap();
    let volumes = [add("v"), add("w")];
    (group, volumes)
}

/// Hosts write to an image of the copy, and to production, whose changes the copy takes meanwhile; windows move, the copy is closed, killed
/// and loses power. The image is always what its hosts made of its point; the copy is always production.
#[test]
fn a_writable_image_of_a_copy_is_its_hosts_alone() {
    let rounds = number("PLAYHEAD_OPS").unwrap_or(1500);
    let seed = number("PLAYHEAD_SEED").unwrap_or(1);
    let mut random = Random::new(seed);
    let (here, mut there) = (SimFiles::new(), disk());
    let (group, production) = two_volumes(&here);
    let mut tag = 0;
    let mut current = Model::read(&production);
    for _ in 0..60 {
        change(&mut random, &production, &mut current, &mut tag);
    }
    let mut copy = copier(&group, &there, SMALL);
    level(&mut copy);
    for _ in 0..60 {
        change(&mut random, &production, &mut current, &mut tag);
    }
    level(&mut copy);
    let open = |copy: &Copier| copy.follower().unwrap().group().clone();
    let mut mine = open(&copy);
    let mut image = mine.open_image("w", group.head().lsn, true).unwrap();
    let below = mine.open_image("r", group.head().lsn, false).unwrap();
    let point = Model { unmapped: [vec![None; BLOCKS], vec![None; BLOCKS]], ..current.clone() };
    assert!(point.is(&both(&below)) && point.is(&both(&image)));
    drop(below);
    let mut model = point.clone();
    let mut counts = [0; 4];
    for round in 0..rounds {
        let act = random.below(100);
        match act {
            0..=59 => change(&mut random, &both(&image), &mut model, &mut tag),
            60..=89 => change(&mut random, &production, &mut current, &mut tag),
            90..=93 => {
                level(&mut copy);
                if random.once_in(2) {
                    trim(&group);
                    mine.tend().unwrap();
                    // The image holds the edge of the copy.
                    mine.trim_to(mine.head().lsn).unwrap();
                }
            }
            94..=95 => {
                let image = mine.image("w").unwrap();
                image.volume("v").unwrap().flush_then(Box::new(|done| assert!(done.is_ok())));
                mine.tend().unwrap();
            }
            96 => {
                counts[0] += 1;
                drop((image, mine));
                copy.let_go();
                level(&mut copy);
                mine = open(&copy);
                image = mine.image("w").unwrap();
            }
            97 => {
                counts[1] += 1;
                drop((image, mine, copy));
                there = there.kill(random.next());
                copy = copier(&group, &there, SMALL);
                level(&mut copy);
                mine = open(&copy);
                image = mine.image("w").unwrap();
            }
            98 => {
                counts[2] += 1;
                let flushed = random.once_in(2);
                if flushed {
                    both(&image)[0].flush_then(Box::new(|done| assert!(done.is_ok())));
                }
                drop((image, mine, copy));
                there = there.survivor(FIRST_RANDOM_SEED + random.below(1 << 40));
                copy = copier(&group, &there, SMALL);
                level(&mut copy);
                mine = open(&copy);
                image = mine.image("w").unwrap();
                if !flushed {
                    // Some of the newest may be lost; which, the test of power loss sees to.
                    model = Model { blocks: Model::read(&both(&image)).blocks, ..point.clone() };
                }
            }
            _ => {
                counts[3] += 1;
                mine.close_image("w").unwrap();
                assert_eq!(there.list(&Path::new(COPY_DIR).join("scratch")).unwrap(), Vec::<String>::new());
                image = mine.open_image("w", mine.image("r").unwrap().info().point.lsn, true).unwrap();
                model = point.clone();
            }
        }
        if round % 10 == 0 || act > 93 {
            assert!(model.is(&both(&image)), "seed {seed}, round {round}, after {act}");
        }
    }
    level(&mut copy);
    mine = open(&copy);
    assert!(point.is(&both(&mine.image("r").unwrap())));
    assert!(model.is(&both(&mine.image("w").unwrap())));
    assert!(Model::read(&production).blocks == current.blocks);
    check_bytes((&here, &group), (&there, &mine), SMALL);
    assert_eq!(contents_at(&mine, mine.head().lsn), contents_at(&group, group.head().lsn));
    let info = mine.image("w").unwrap().info();
    assert!(
        info.writable && info.scratch_bytes.is_some_and(|n| n >= SMALL) && info.alert.is_none(),
        "{info:?}"
    );
    let problems = playhead_journal::reader::verify(&there, Path::new(COPY_DIR)).unwrap().problems;
    assert_eq!(problems, Vec::<String>::new());
    eprintln!("closed and opened, killed, power lost, opened anew: {counts:?}");
    // It goes on when the copy takes over; a branch is opened beside it then.
    drop((mine, group, production));
    copy.let_go();
    drop((image, copy));
    promote(&there, false).unwrap();
    let group = open_promoted(&there);
    let image = group.image("w").unwrap();
    assert!(model.is(&both(&image)));
    change(&mut random, &both(&image), &mut model, &mut tag);
    let branch = group.open_image("b", image.info().point.lsn, true).unwrap();
    assert!(branch.info().writable && branch.info().scratch_bytes.is_none());
    change(&mut random, &both(&branch), &mut point.clone(), &mut tag);
    let production = [group.volume("v").unwrap(), group.volume("w").unwrap()];
    change(&mut random, &production, &mut current, &mut tag);
    group.close().unwrap();
    assert!(both(&image)[0].read(0, &mut [0; 512]).is_err(), "it is closed with its group");
    drop((group, image, branch, production));
    let group = open_promoted(&there);
    assert!(model.is(&both(&group.image("w").unwrap())));
    let production = [group.volume("v").unwrap(), group.volume("w").unwrap()];
    assert!(Model::read(&production).blocks == current.blocks);
    group.close_image("w").unwrap();
    assert_eq!(there.list(&Path::new(COPY_DIR).join("scratch")).unwrap(), Vec::<String>::new());
}

/// What a life of images on a copy has been promised, and what the image can have become since.
#[derive(Default, Clone)]
struct Promised {
    /// Whether an image is open; `None` while it is opened or closed.
    there: Option<bool>,
    /// The images' states since the last flush, oldest first.
    states: Vec<Vec<u32>>,
}

/// Images are opened, written to and closed on a copy that follows, whose power fails at boundary `n` of that; what was promised until then.
fn life(group: &Group, production: &Volume, there: &SimFiles, n: u64) -> (Promised, Vec<u32>) {
    let mut copy = copier(group, there, SMALL);
    level(&mut copy);
    there.crash_at(there.boundaries().saturating_add(n));
    let mut promised = Promised { there: Some(false), states: Vec::new() };
    let point: Vec<u32> = numbers(production);
    let mut work = |promised: &mut Promised| -> Result<()> {
        let mine = copy.follower().unwrap().group().clone();
        for life in 1..=2_u32 {
            promised.there = None;
            promised.states = vec![point.clone()];
            let image = mine.open_image("w", mine.head().lsn, true)?;
            promised.there = Some(true);
            let volume = image.volume("v")?;
            for i in 0..24_u32 {
                let tag = life * 1000 + i;
                let lba = u64::from(i % 9) * 7;
                let mut next = promised.states.last().unwrap().clone();
                next[lba as usize..lba as usize + 20].fill(if i % 5 == 4 { 0 } else { tag });
                promised.states.push(next);
                let change = match i % 5 {
                    4 => Change::Unmap { lba, count: 20 },
                    _ => Change::Write { lba, data: &filled(tag).repeat(20) },
                };
                volume.submit(&[change])?;
                if i % 7 == 6 {
                    let (tx, rx) = std::sync::mpsc::channel();
                    volume.flush_then(Box::new(move |done| tx.send(done).unwrap()));
                    rx.recv().unwrap()?;
                    promised.states.drain(..promised.states.len() - 1);
                }
                if i == 12 {
                    mine.tend()?;
                }
            }
            if life == 1 {
                promised.there = None;
                mine.close_image("w")?;
                promised.there = Some(false);
            }
        }
        drop(mine);
        copy.let_go();
        if !there.is_off() {
            promised.states.drain(..promised.states.len() - 1);
        }
        Ok(())
    };
    let outcome = work(&mut promised);
    assert!(outcome.is_ok() || there.is_off(), "{outcome:?}");
    (promised, point)
}

fn numbers(volume: &Volume) -> Vec<u32> {
    let mut data = vec![0; BLOCKS * 512];
    volume.read(0, &mut data).unwrap();
    data.chunks(512).map(|b| u32::from_le_bytes(b[..4].try_into().unwrap())).collect()
}

#[test]
fn power_fails_at_every_write_to_an_image_of_a_copy() {
    let here = SimFiles::new();
    let (group, [production, _]) = two_volumes(&here);
    for i in 0..30 {
        write(&production, i * 16, 16, i as u8 + 1);
    }
    let synced = disk();
    level(&mut copier(&group, &synced, SMALL));
    // Beyond what the first synchronisation has brought, in its log.
    for i in 0..10 {
        write(&production, i * 20, 8, 100 + i as u8);
    }
    level(&mut copier(&group, &synced, SMALL));
    let whole = synced.copy();
    life(&group, &production, &whole, u64::MAX);
    let boundaries = whole.boundaries();
    let expected = contents_at(&group, group.head().lsn);
    let mut outcomes = [0; 2];
    let mut judge = |there: &SimFiles, promised: &Promised, point: &[u32], what: &str| {
        let mut copy = copier(&group, there, SMALL);
        level(&mut copy);
        let mine = copy.follower().unwrap().group().clone();
        let image = mine.image("w").ok();
        if let Some(there) = promised.there {
            assert_eq!(image.is_some(), there, "{what}");
        }
        outcomes[usize::from(image.is_some())] += 1;
        let scratches = there.list(&Path::new(COPY_DIR).join("scratch")).unwrap_or_default();
        assert_eq!(scratches.len(), usize::from(image.is_some()), "{what}: {scratches:?}");
        if let Some(image) = &image {
            assert_eq!(image.info().alert, None, "{what}");
            let now = numbers(&image.volume("v").unwrap());
            assert!(promised.states.contains(&now), "{what}: what was promised is lost, or the order is");
            assert!(image.volume("w").is_ok());
            write(&image.volume("v").unwrap(), 0, 8, 9);
            mine.close_image("w").unwrap();
        }
        let again = mine.open_image("w", mine.head().lsn, true).unwrap();
        assert!(numbers(&again.volume("v").unwrap()) == point, "{what}");
        assert_eq!(contents_at(&mine, mine.head().lsn), expected, "{what}");
    };
    for n in 1..boundaries {
        let there = synced.copy();
        let (promised, point) = life(&group, &production, &there, n);
        for seed in [0, 1, 2, 3, FIRST_RANDOM_SEED + n, FIRST_RANDOM_SEED + n + 1] {
            judge(&there.survivor(seed), &promised, &point, &format!("boundary {n}, survivor {seed}"));
        }
        // Of a process that is killed nothing is lost but, perhaps, what was not answered yet.
        let newest = promised.states.len().saturating_sub(2);
        let acknowledged = Promised { states: promised.states[newest..].to_vec(), ..promised.clone() };
        judge(&there.kill(n), &acknowledged, &point, &format!("boundary {n}, killed"));
        if n % 5 != 0 {
            continue;
        }
        // And once more, while that is recovered from.
        let first = there.survivor(FIRST_RANDOM_SEED + n);
        let whole = first.copy();
        level(&mut copier(&group, &whole, SMALL));
        for again in (1..=whole.boundaries()).step_by(3) {
            let there = first.copy();
            there.crash_at(again);
            let mut copy = copier(&group, &there, SMALL);
            while matches!(copy.step(), Ok(Step::Busy)) {}
            drop(copy);
            for seed in [0, 1, FIRST_RANDOM_SEED + again] {
                let what = format!("boundary {n}, lost again at {again}, survivor {seed}");
                judge(&there.survivor(seed), &promised, &point, &what);
            }
        }
    }
    eprintln!("{boundaries} boundaries; no image and an image: {outcomes:?}");
    assert!(outcomes.iter().all(|n| *n > 0));
}

#[test]
fn a_full_disk_refuses_writes_to_an_image_and_gives_all_back_when_it_is_closed() {
    let (here, there) = (SimFiles::new(), disk());
    let (group, [production, _]) = two_volumes(&here);
    write(&production, 0, 8, 1);
    let mut copy = copier(&group, &there, SMALL);
    level(&mut copy);
    let mine = copy.follower().unwrap().group().clone();
    let used = there.used_bytes();
    let refused = |capacity| {
        there.set_capacity(Some(capacity));
        mine.open_image("w", mine.head().lsn, true).err()
    };
    assert!(matches!(refused(used + SMALL / 2), Some(Error::NoSpace { .. } | Error::Io { .. })));
    assert!(mine.images().is_empty());
    assert_eq!(there.used_bytes(), used, "nothing is left behind");
    there.set_capacity(Some(used + 16 * SMALL));
    let image = mine.open_image("w", mine.head().lsn, true).unwrap();
    let volume = image.volume("v").unwrap();
    let mut last = 0;
    let error = (1..=250).cycle().take(10_000).find_map(|i| {
        let data = vec![i; 32 * 512];
        volume.submit(&[Change::Write { lba: 8, data: &data }]).map(|_| last = i).err()
    });
    assert!(matches!(error, Some(Error::NoSpace { .. })), "{error:?}");
    let (free, total) = there.space(Path::new(COPY_DIR)).unwrap();
    assert!(free >= total / 20, "the copy is left some: {free} of {total} bytes");
    write(&production, 64, 8, 2);
    level(&mut copy);
    let mut block = [0; 512];
    volume.read(8, &mut block).unwrap();
    assert_eq!(block, [last; 512]);
    volume.read(0, &mut block).unwrap();
    assert_eq!(block, [1; 512], "the image's point");
    // Also found so when the copy is opened again, and there is room at once when it is closed.
    drop((image, volume, mine));
    copy.let_go();
    level(&mut copy);
    let mine = copy.follower().unwrap().group().clone();
    mine.image("w").unwrap().volume("v").unwrap().read(8, &mut block).unwrap();
    assert_eq!(block, [last; 512]);
    mine.close_image("w").unwrap();
    assert!(there.used_bytes() <= used + 2 * SMALL);
}

#[test]
fn a_scratch_that_cannot_be_read_costs_its_image_alone() {
    let (here, there) = (SimFiles::new(), disk());
    let (group, [production, _]) = two_volumes(&here);
    write(&production, 0, 8, 1);
    let mut copy = copier(&group, &there, SMALL);
    level(&mut copy);
    let mine = copy.follower().unwrap().group().clone();
    let image = mine.open_image("w", mine.head().lsn, true).unwrap();
    write(&image.volume("v").unwrap(), 0, 8, 2);
    mine.open_image("r", mine.head().lsn, false).unwrap();
    drop((image, mine));
    copy.let_go();
    let scratch = Path::new(COPY_DIR).join("scratch/w");
    assert!(Group::open(there.files(), &scratch, &small()).is_err(), "it is nothing without its image");
    there.poke(&scratch.join("log/0000000000000000.seg"), 0, &[0; 64]);
    // What a crash leaves, too.
    there.create_dir(&Path::new(COPY_DIR).join("scratch/old/log")).unwrap();
    level(&mut copy);
    let mine = copy.follower().unwrap().group().clone();
    let image = mine.image("w").unwrap();
    assert!(image.info().writable && image.info().alert.is_some(), "{:?}", image.info());
    assert!(image.volumes().is_empty() && image.volume("v").is_err());
    assert!(mine.image("r").unwrap().volume("v").is_ok());
    let problems = playhead_journal::reader::verify(&there, Path::new(COPY_DIR)).unwrap().problems;
    assert!(problems.iter().any(|p| p.contains("image w")), "{problems:?}");
    assert_eq!(there.list(&Path::new(COPY_DIR).join("scratch")).unwrap(), ["w"]);
    mine.close_image("w").unwrap();
    let again = mine.open_image("w", mine.head().lsn, true).unwrap();
    write(&again.volume("v").unwrap(), 0, 8, 2);
    assert_eq!(again.volumes().len(), 2);
    drop((image, mine, again));
    // One that is held by an image cannot be synchronised anew.
    copy.let_go();
    for _ in 0..40 {
        write(&production, 0, 64, 3);
    }
    trim(&group);
    let held = (0..5).find_map(|_| copy.step().err());
    assert!(matches!(held, Some(Trouble::Held(_))), "{held:?}");
}

fn kept(source: Option<&Group>, place: &Path) -> Keeping {
    let feed = source.map(|g| Arc::new(g.clone()) as Arc<dyn Feed>);
    Keeping::start(feed, Arc::new(DiskFiles), place, "far", Policy::default(), false).unwrap()
}

fn until(what: &dyn Fn() -> bool) {
    while !what() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

fn opened(keeping: &Keeping) -> Group {
    until(&|| keeping.group().is_some());
    keeping.group().unwrap()
}

/// A copy that is refused is let go of, with its images, and so says the same whenever it is tried.
#[test]
fn a_copy_of_another_group_is_let_go_of_with_its_images() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("copy");
    let options = Options { segment_bytes: SMALL, background: true };
    let make = |name: &str| {
        let group = Group::create(Arc::new(DiskFiles), &dir.path().join(name), name, &options).unwrap();
        write(&group.add_volume("v", NewBase::Sparse { blocks: 4096 }).unwrap(), 0, 64, 1);
        group
    };
    let (group, other) = (make("g"), make("h"));
    let keeping = kept(Some(&group), &place);
    let mine = opened(&keeping);
    write(&mine.open_image("w", mine.head().lsn, true).unwrap().volume("v").unwrap(), 0, 8, 2);
    drop(mine);
    keeping.stop();
    let keeping = kept(Some(&other), &place);
    until(&|| keeping.standing().state == CopyState::Diverged);
    for _ in 0..400 {
        assert_eq!(keeping.standing().state, CopyState::Diverged);
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    keeping.stop();
    let keeping = kept(Some(&group), &place);
    let mut data = vec![0; 512];
    opened(&keeping).image("w").unwrap().volume("v").unwrap().read(0, &mut data).unwrap();
    assert_eq!(data, [2; 512]);
    keeping.stop();
    group.close().unwrap();
    other.close().unwrap();
}

/// With threads of its own, as in a service.
#[test]
fn an_image_is_written_to_while_the_copy_is_kept_and_outlives_its_keeper() {
    let dir = tempfile::tempdir().unwrap();
    let (store, place) = (dir.path().join("g"), dir.path().join("copy"));
    let options = Options { segment_bytes: SMALL, background: true };
    let group = Group::create(Arc::new(DiskFiles), &store, "g", &options).unwrap();
    let production = group.add_volume("v", NewBase::Sparse { blocks: 4096 }).unwrap();
    write(&production, 0, 64, 1);
    let keeping = kept(Some(&group), &place);
    let mine = opened(&keeping);
    until(&|| keeping.standing().lag_bytes == Some(0));
    let image = mine.open_image("w", mine.head().lsn, true).unwrap();
    let volume = image.volume("v").unwrap();
    std::thread::scope(|scope| {
        for t in 0..3_u64 {
            let volume = &volume;
            scope.spawn(move || {
                for i in 0..300 {
                    write(volume, 100 * t + i % 50, 40, t as u8 + 10);
                    let mut data = vec![0; 512];
                    volume.read(4000, &mut data).unwrap();
                    volume.compare_and_write(4000 + t, &[0; 512], &[0; 512]).unwrap();
                }
            });
        }
        for i in 0..300 {
            write(&production, i, 40, 5);
        }
    });
    assert_eq!(mine.images().len(), 1);
    assert!(mine.stats().index_bytes > 0);
    keeping.stop();
    assert!(volume.read(0, &mut [0; 512]).is_err(), "it is closed with the copy");
    // Whoever still has a volume of the image has its files: the copy says so, and is opened once they are let go of.
    let alone = kept(None, &place);
    until(&|| alone.standing().reason.is_some_and(|why| why.contains("in use")));
    drop((mine, image, volume));
    let mine = opened(&alone);
    let volume = mine.image("w").unwrap().volume("v").unwrap();
    for t in 0..3_u64 {
        let mut data = vec![0; 512];
        volume.read(100 * t + 60, &mut data).unwrap();
        assert_eq!(data, [t as u8 + 10; 512]);
    }
    // Production is not there, and need not be.
    write(&volume, 0, 8, 77);
    mine.close_image("w").unwrap();
    assert!(volume.submit(&[Change::Zero { lba: 0, count: 1 }]).is_err());
    assert_eq!(std::fs::read_dir(place.join("scratch")).unwrap().count(), 0);
    alone.stop();
    group.close().unwrap();
}
