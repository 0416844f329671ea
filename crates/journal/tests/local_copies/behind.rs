//! A copy that is left behind, or has only begun, is brought up to date while hosts write.

use crate::*;

#[test]
fn a_copy_left_behind_is_brought_up_to_date_by_what_changed_alone() {
    let (here, there) = (SimFiles::new(), disk());
    let (group, volume) = source(&here);
    for i in 0..400 {
        write(&volume, i * 64, 16, (i % 250) as u8 + 1);
    }
    let mut copy = copier(&group, &there, SMALL);
    assert_eq!(level(&mut copy), 400 * 16 * 512, "zeros are not moved");
    // Behind, and the window moves on without it, several times; blocks are changed more than once.
    let mut changed = 0;
    for round in 0..5_u8 {
        for i in 0..20 {
            write(&volume, 300_000 + i * 100, 8, round * 20 + (i as u8) + 1);
        }
        write(&volume, 40_000 + u64::from(round) * 1000, 24, 9);
        changed += 24 * 512;
        trim(&group);
    }
    changed += 20 * 8 * 512;
    assert!(group.window().edge.lsn > copy.follower().unwrap().received());
    let moved = level(&mut copy);
    assert!(moved > 0 && moved <= changed, "moved {moved} bytes where {changed} changed");
    let mine = copy.follower().unwrap().group().clone();
    assert_eq!(contents_at(&mine, mine.head().lsn), contents_at(&group, group.head().lsn));
    // By its log alone nothing is moved.
    write(&volume, 5, 8, 77);
    assert_eq!(level(&mut copy), 0);
}

#[test]
fn what_was_noted_survives_the_source_and_a_rewind_in_between_is_counted() {
    let (mut here, there) = (SimFiles::new(), disk());
    let (group, volume) = source(&here);
    for i in 0..50 {
        write(&volume, i * 16, 16, 1);
    }
    let back = group.head().lsn;
    for i in 0..10 {
        write(&volume, i * 16, 16, 2);
    }
    let mut copy = copier(&group, &there, SMALL);
    level(&mut copy);
    copy.let_go();
    // What the copy has is undone without a record of its own that says so.
    group.rewind(back).unwrap();
    write(&volume, 5000, 8, 3);
    trim(&group);
    for _ in 0..30 {
        write(&volume, 9000, 16, 4);
    }
    trim(&group);
    assert!(group.rewinds().is_empty(), "the window has passed the rewind");
    drop((group, volume));
    here = here.kill(5);
    let options = Options { segment_bytes: SMALL, background: false };
    let group = Group::open(here.files(), Path::new(DIR), &options).unwrap();
    let mut copy = copier(&group, &there, SMALL);
    let moved = level(&mut copy);
    assert!(moved > 0 && moved <= (10 * 16 + 8 + 16) * 512, "moved {moved} bytes");
    let mine = copy.follower().unwrap().group().clone();
    assert_eq!(contents_at(&mine, mine.head().lsn), contents_at(&group, group.head().lsn));
}

#[test]
fn a_first_synchronisation_goes_on_after_a_crash_while_hosts_write() {
    let (here, mut there) = (SimFiles::new(), disk());
    let (group, volume) = source(&here);
    for i in 0..3000 {
        write(&volume, i * 96, 16, (i % 250) as u8 + 1);
        if i % 100 == 0 {
            trim(&group);
        }
    }
    let mut total = 0;
    for round in 0..12 {
        let mut copy = copier(&group, &there, SMALL);
        for step in 0..3 {
            copy.step().unwrap();
            write(&volume, round * 7 + step, 1, 5);
            if round % 3 == 0 {
                trim(&group);
            }
        }
        total = copy.sweep().map_or(total, |f| f.moved_bytes);
        drop(copy);
        there = there.kill(round);
    }
    let mut copy = copier(&group, &there, SMALL);
    level(&mut copy);
    let mine = copy.follower().unwrap().group().clone();
    assert_eq!(contents_at(&mine, mine.head().lsn), contents_at(&group, group.head().lsn));
}

#[test]
fn volumes_come_and_go_on_the_copy_too() {
    let (here, there) = (SimFiles::new(), disk());
    let (group, volume) = source(&here);
    write(&volume, 0, 8, 1);
    let mut copy = copier(&group, &there, SMALL);
    level(&mut copy);
    let path = PathBuf::from("/store/old.img");
    here.poke(&path, 0, &[7; 64 * 512]);
    let adopted = group.add_volume("old", NewBase::Adopt { path }).unwrap();
    write(&adopted, 3, 1, 8);
    let sparse = group.add_volume("new", NewBase::Sparse { blocks: 100 }).unwrap();
    write(&sparse, 99, 1, 9);
    level(&mut copy);
    let mine = copy.follower().unwrap().group().clone();
    assert_eq!(contents_at(&mine, mine.head().lsn), contents_at(&group, group.head().lsn));
    group.remove_volume("new", true).unwrap();
    group.remove_volume("v", true).unwrap();
    let again = group.add_volume("v", NewBase::Sparse { blocks: 50 }).unwrap();
    write(&again, 1, 1, 5);
    level(&mut copy);
    assert_eq!(contents_at(&mine, mine.head().lsn), contents_at(&group, group.head().lsn));
    assert_eq!(mine.volumes().len(), 2);
    // The same across a gap.
    group.remove_volume("old", false).unwrap();
    group.add_volume("third", NewBase::Sparse { blocks: 70 }).unwrap();
    for _ in 0..20 {
        write(&again, 1, 40, 6);
        trim(&group);
    }
    drop(mine);
    level(&mut copy);
    let mine = copy.follower().unwrap().group().clone();
    assert_eq!(contents_at(&mine, mine.head().lsn), contents_at(&group, group.head().lsn));
    assert_eq!(there.list(&Path::new(COPY_DIR).join("base")).unwrap().len(), 2);
    let facts = group.facts().unwrap();
    assert_eq!(facts.volumes.len(), 2);
}
