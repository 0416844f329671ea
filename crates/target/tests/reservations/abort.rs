//! PREEMPT AND ABORT, and resets: after GOOD nothing of those who were ended changes the unit.

use super::stage::{list, Stage, PREEMPT, PREEMPT_AND_ABORT, RESERVE};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;

/// Seat 0 holds what it takes to preempt seat 2.
fn two_registrants() -> Stage {
    let stage = Stage::without_medium();
    stage.register(0, 10, 0).unwrap();
    stage.register(2, 20, 0).unwrap();
    stage.out(2, RESERVE, 1, &list(20, 0, 0)).unwrap();
    stage
}

#[test]
fn it_waits_for_what_is_under_way_and_stops_what_has_not_begun() {
    let stage = Arc::new(two_registrants());
    let (unit, victim) = (Arc::clone(stage.unit(2)), Arc::clone(&stage.nexuses[2]));
    let epoch = unit.epoch(&victim);
    let under_way = unit.changing(&victim, epoch).expect("nothing ended it yet");
    let over = Arc::new(AtomicBool::new(false));
    let preempting = {
        let (stage, over) = (Arc::clone(&stage), Arc::clone(&over));
        std::thread::spawn(move || {
            stage.out(0, PREEMPT_AND_ABORT, 1, &list(10, 20, 0)).unwrap();
            assert!(over.load(Ordering::SeqCst), "GOOD before the write was over");
        })
    };
    while unit.epoch(&victim) == epoch {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(unit.changing(&victim, epoch).is_none(), "it was admitted before, and may not begin any more");
    over.store(true, Ordering::SeqCst);
    drop(under_way);
    preempting.join().unwrap();
    assert!(!stage.may_write(2));
}

#[test]
fn preempt_alone_lets_what_was_admitted_finish() {
    let stage = two_registrants();
    let (unit, victim) = (stage.unit(2), &stage.nexuses[2]);
    let epoch = unit.epoch(victim);
    stage.out(0, PREEMPT, 1, &list(10, 20, 0)).unwrap();
    assert!(unit.changing(victim, epoch).is_some());
    stage.attentions(2);
    assert!(!stage.may_write(2), "what comes later is refused");
}

#[test]
fn a_reset_ends_what_other_targets_brought() {
    let stage = two_registrants();
    let (unit, other) = (stage.unit(3), &stage.nexuses[3]);
    let epoch = unit.epoch(other);
    stage.unit(0).reset();
    assert!(unit.changing(other, epoch).is_none());
    assert_eq!(stage.attentions(3), [0x2903]);
    assert_eq!(stage.ask(0, 0), Err(super::stage::Fail::Sense(0x2903)));
    assert_eq!(stage.ask(0, 0).unwrap().len(), 8 + 16, "registrations outlive a reset");
}
