//! A copy of another history is not fed, and takes no changes of its own until it is promoted.

use crate::*;

#[test]
fn a_copy_of_another_history_is_not_fed() {
    let (here, there) = (SimFiles::new(), disk());
    let (group, volume) = source(&here);
    write(&volume, 0, 8, 1);
    let older = here.copy();
    for i in 0..10 {
        write(&volume, i, 8, 2);
    }
    let mut copy = copier(&group, &there, SMALL);
    level(&mut copy);
    copy.let_go();
    drop((group, volume));
    // The source is restored from long ago, and goes its own way.
    let options = Options { segment_bytes: SMALL, background: false };
    let group = Group::open(older.kill(0).files(), Path::new(DIR), &options).unwrap();
    let mut copy = copier(&group, &there, SMALL);
    let step = (0..5).find_map(|_| copy.step().err());
    assert!(matches!(step, Some(Trouble::Copy(_) | Trouble::Diverged(_))), "{step:?}");
    let volume = group.volume("v").unwrap();
    for i in 0..20 {
        write(&volume, i, 8, 3);
    }
    group.flush().unwrap();
    let step = (0..5).find_map(|_| copy.step().err());
    assert!(matches!(step, Some(Trouble::Diverged(_))), "{step:?}");
}

#[test]
fn a_copy_takes_no_changes_and_is_promoted_with_its_history() {
    let (here, there) = (SimFiles::new(), disk());
    let (group, volume) = source(&here);
    write(&volume, 0, 8, 1);
    let before = group.head().lsn;
    let mut copy = copier(&group, &there, SMALL);
    let open = |disk: &SimFiles| {
        let options = Options { segment_bytes: SMALL, background: false };
        Group::open(disk.files(), Path::new(COPY_DIR), &options)
    };
    copy.step().unwrap();
    let half = promote(&there, false);
    assert!(half.is_err(), "not consistent yet");
    level(&mut copy);
    write(&volume, 4, 8, 2);
    let after = group.head().lsn;
    write(&volume, 2, 1, 3);
    level(&mut copy);
    let mine = copy.follower().unwrap().group().clone();
    let volume = mine.volume("v").unwrap();
    assert!(volume.submit(&[Change::Zero { lba: 0, count: 1 }]).is_err());
    assert!(volume.compare_and_write(0, &[1; 512], &[2; 512]).is_err());
    assert!(mine.bookmark("b", playhead_journal::BookmarkKind::Crash).is_err());
    assert!(mine.rewind(before).is_err());
    assert!(mine.add_volume("w", NewBase::Sparse { blocks: 8 }).is_err());
    assert!(mine.remove_volume("v", true).is_err());
    assert_eq!(mine.head(), group.head());
    assert!(promote(&there, false).is_err(), "it is open");
    let uuid = group.volumes()[0].uuid;
    copy.let_go();
    drop((mine, volume, copy, group));
    assert!(open(&there).is_err(), "a copy is not opened as production");
    promote(&there, false).unwrap();
    let group = open(&there).unwrap();
    assert_eq!(group.volumes()[0].uuid, uuid);
    let volume = group.volume("v").unwrap();
    let mut block = [0; 512];
    volume.read(2, &mut block).unwrap();
    assert_eq!(block, [3; 512]);
    group.rewind(after).unwrap();
    volume.read(2, &mut block).unwrap();
    assert_eq!(block, [1; 512]);
    write(&volume, 100, 8, 4);
}

pub(crate) fn promote(disk: &SimFiles, anyway: bool) -> Result<()> {
    playhead_journal::promote(disk.files(), Path::new(COPY_DIR), anyway)
}

pub(crate) fn open_promoted(disk: &SimFiles) -> Group {
    let options = Options { segment_bytes: SMALL, background: false };
    Group::open(disk.files(), Path::new(COPY_DIR), &options).unwrap()
}

/// What a host wrote to an image of the source, which the log carries, is nobody's on a copy; also when the copy, promoted, gives
/// numbers to lines of history itself, and has never seen the record that began the image's.
#[test]
fn what_was_written_to_an_image_of_the_source_never_shows_on_a_promoted_copy() {
    let (here, there) = (SimFiles::new(), disk());
    let (group, volume) = source(&here);
    write(&volume, 0, 8, 1);
    let image = group.open_image("w", group.head().lsn, true).unwrap();
    let branch = image.volume("v").unwrap();
    for _ in 0..4 {
        write(&volume, 100, 100, 4);
    }
    assert!(
        group.head().lsn > SMALL,
        "the copy gets nothing of the segment that says what line the image is"
    );
    let mut copy = copier(&group, &there, SMALL);
    level(&mut copy);
    write(&branch, 0, 8, 9);
    write(&volume, 8, 8, 2);
    let point = group.head().lsn;
    write(&volume, 8, 8, 3);
    level(&mut copy);
    copy.let_go();
    drop((image, branch, volume, group, copy));
    promote(&there, false).unwrap();
    let group = open_promoted(&there);
    let mut block = [0; 512];
    group.rewind(point).unwrap();
    group.close().unwrap();
    drop(group);
    let group = open_promoted(&there);
    let volume = group.volume("v").unwrap();
    volume.read(0, &mut block).unwrap();
    assert_eq!(block, [1; 512], "production, rewound and opened again");
    group.settle(&mut |_, _| true).unwrap();
    volume.read(0, &mut block).unwrap();
    assert_eq!(block, [1; 512], "its base");
}

/// Where a segment begins there is nothing before it to compare in the same one.
#[test]
fn a_copy_of_another_history_is_not_fed_where_a_segment_begins_either() {
    let (here, there) = (SimFiles::new(), disk());
    let (group, volume) = source(&here);
    write(&volume, 0, 8, 1);
    let older = here.copy();
    let mut copy = copier(&group, &there, SMALL);
    level(&mut copy);
    // Up to the very end of the segment, whose length is a multiple of a record's.
    while group.head().lsn % SMALL != 0 {
        volume.submit(&[Change::Zero { lba: 0, count: 1 }]).unwrap();
        assert!(group.head().lsn <= SMALL);
    }
    level(&mut copy);
    assert_eq!(copy.follower().unwrap().received(), SMALL + 64);
    copy.let_go();
    drop((group, volume));
    let options = Options { segment_bytes: SMALL, background: false };
    let group = Group::open(older.kill(0).files(), Path::new(DIR), &options).unwrap();
    let volume = group.volume("v").unwrap();
    for i in 0..40 {
        write(&volume, i, 8, 3);
    }
    group.flush().unwrap();
    let mut copy = copier(&group, &there, SMALL);
    let step = (0..50).find_map(|_| copy.step().err());
    assert!(matches!(step, Some(Trouble::Diverged(_))), "{step:?}");
}
