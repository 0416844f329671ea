//! Stretches in which a volume was not in step with its production.

use crate::histories::{open_promoted, promote};
use crate::*;

#[test]
fn a_copy_knows_stretches_in_which_a_volume_is_not_in_step_with_its_production() {
    let (here, there) = (SimFiles::new(), disk());
    let (group, volume) = source(&here);
    write(&volume, 0, 8, 1);
    let mut copy = copier(&group, &there, SMALL);
    level(&mut copy);
    let begin = volume.begin_resync().unwrap().lsn;
    write(&volume, 0, 8, 2);
    let inside = group.head().lsn;
    write(&volume, 8, 8, 2);
    level(&mut copy);
    let refused = |copy: &Copier, lsn: Lsn| {
        let mine = copy.follower().unwrap().group();
        let image = mine.open_image("i", lsn, false);
        assert!(matches!(image, Err(Error::Inconsistent { after: None, .. })), "{lsn}");
        assert_eq!(mine.resync_spans(), group.resync_spans());
    };
    refused(&copy, inside);
    copy.follower().unwrap().group().open_image("i", begin, false).unwrap();
    copy.follower().unwrap().group().close_image("i").unwrap();
    // Power fails; whatever the copy then has, it knows.
    let mut copy = copier(&group, &there.survivor(FIRST_RANDOM_SEED), SMALL);
    level(&mut copy);
    refused(&copy, inside);
    drop(copy);
    let there = there.kill(0);
    let mut copy = copier(&group, &there, SMALL);
    level(&mut copy);
    // Its window passes the beginning.
    for _ in 0..20 {
        write(&volume, 0, 40, 3);
    }
    level(&mut copy);
    let mine = copy.follower().unwrap().group().clone();
    mine.tend().unwrap();
    mine.trim_to(mine.head().lsn).unwrap();
    assert!(mine.window().edge.lsn > begin);
    let head = mine.head().lsn;
    refused(&copy, head);
    copy.let_go();
    drop((mine, copy));
    // Not by accident, but whoever has nothing better can have it, and finds it said there too.
    assert!(matches!(promote(&there, false), Err(Error::Inconsistent { .. })));
    let forced = there.copy();
    promote(&forced, true).unwrap();
    let promoted = open_promoted(&forced);
    assert!(promoted.volume("v").unwrap().resyncing());
    assert!(promoted.check_consistent(promoted.head().lsn).is_err());
    drop(promoted);
    let mut copy = copier(&group, &there, SMALL);
    level(&mut copy);
    refused(&copy, head);
    // Left behind in the midst of it, it begins anew inside of it.
    for _ in 0..20 {
        write(&volume, 100, 40, 4);
        trim(&group);
    }
    level(&mut copy);
    let point = copy.follower().unwrap().group().window().edge.lsn;
    assert!(point > head, "it was synchronised anew");
    refused(&copy, point);
    write(&volume, 8, 8, 5);
    volume.end_resync().unwrap();
    let end = group.head().lsn;
    write(&volume, 0, 8, 5);
    level(&mut copy);
    for _ in 0..2 {
        let mine = copy.follower().unwrap().group().clone();
        assert!(mine.open_image("i", point, false).is_err());
        mine.open_image("i", end, false).unwrap();
        mine.close_image("i").unwrap();
        assert_eq!(mine.resync_spans().len(), 1);
        copy.let_go();
        drop((mine, copy));
        copy = copier(&group, &there, SMALL);
        level(&mut copy);
    }
    copy.let_go();
    drop(copy);
    promote(&there, false).unwrap();
    assert!(!open_promoted(&there).volume("v").unwrap().resyncing());
}

/// A stretch begins, and behind it is a rewind that cannot be followed: the copy's window ends before it is synchronised anew.
#[test]
fn a_copy_that_cannot_follow_still_knows_what_began_before() {
    let (here, there) = (SimFiles::new(), disk());
    let (group, volume) = source(&here);
    write(&volume, 0, 8, 1);
    let old = group.head().lsn;
    write(&volume, 0, 8, 2);
    let mut copy = copier(&group, &there, SMALL);
    level(&mut copy);
    copy.let_go();
    volume.begin_resync().unwrap();
    write(&volume, 0, 8, 3);
    group.rewind_anywhere(old).unwrap();
    let options = Options { segment_bytes: SMALL, background: false };
    let mut follower = Follower::open(there.files(), Path::new(COPY_DIR), &options).unwrap();
    let Shipment::Chunk(chunk) = group.ship(follower.received(), Lsn::MAX, 1 << 20).unwrap() else {
        panic!("nothing to follow");
    };
    let taken = follower.take(&chunk, &group.facts().unwrap()).unwrap();
    assert!(matches!(taken, Taken::Stuck(_)));
    let mine = follower.group().clone();
    assert!(mine.check_consistent(mine.head().lsn).is_err());
    mine.settle(&mut |_, _| true).unwrap();
    drop((mine, follower));
    let there = there.kill(0);
    let refused = promote(&there, false);
    assert!(matches!(refused, Err(Error::Inconsistent { .. })), "{refused:?}");
}
