//! Asymmetric access, and what a unit tells of itself when asked by LOG SENSE and REQUEST SENSE.

use super::stage::{Fail, Stage, SEATS};

const REPORT: [u8; 12] = [0xa3, 0x0a, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0];
const REQUEST_SENSE: [u8; 6] = [0x03, 0, 0, 0, 18, 0];

fn set(stage: &Stage, seat: usize, state: u8) -> Result<Vec<u8>, Fail> {
    stage.run(seat, &[0xa4, 0x0a, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0], &[0, 0, 0, 0, state, 0, 0, 1])
}

#[test]
fn the_group_has_every_target_as_a_port_and_the_pages_agree() {
    let stage = Stage::without_medium();
    let report = stage.run(0, &REPORT, &[]).unwrap();
    assert_eq!(report, [0, 0, 0, 16, 0, 0x0f, 0, 1, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 2]);
    let extended = stage.run(0, &[0xa3, 0x2a, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0], &[]).unwrap();
    assert_eq!(extended, [0, 0, 0, 20], "cut to the allocation length");
    assert_eq!(stage.run(0, &[0xa3, 0x4a, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], &[]), Err(Fail::Sense(0x2400)));
    for seat in [0, 3] {
        let page = stage.run(seat, &[0x12, 1, 0x83, 1, 0, 0], &[]).unwrap();
        let designators = &page[4..];
        let mut at = 0;
        let mut found = Vec::new();
        while at < designators.len() {
            let len = usize::from(designators[at + 3]);
            if matches!(designators[at + 1], 0x94 | 0x95) {
                found.push((designators[at + 1], designators[at + 7]));
            }
            at += 4 + len;
        }
        assert_eq!(found, [(0x94, SEATS[seat].target as u8 + 1), (0x95, 1)], "seat {seat}");
    }
}

#[test]
fn a_state_decides_what_runs_and_the_others_hear_of_it() {
    let stage = Stage::without_medium();
    let read: &[u8] = &[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0];
    let inquiry: &[u8] = &[0x12, 0, 0, 0, 36, 0];
    let mode_sense: &[u8] = &[0x1a, 0, 0x3f, 0, 255, 0];
    let ready: &[u8] = &[0; 6];
    for (state, code) in [(1, None), (2, Some(0x040b)), (3, Some(0x040c)), (0, None)] {
        set(&stage, 0, state).unwrap();
        assert_eq!(stage.attentions(0), [] as [u16; 0], "who sets it knows");
        for seat in 1..SEATS.len() {
            assert_eq!(stage.attentions(seat), [0x2a06]);
            let wanted = code.map_or(Ok(()), |code| Err(Fail::Sense(code)));
            assert_eq!(stage.run(seat, read, &[]).map(|_| ()), wanted);
            assert_eq!(stage.run(seat, ready, &[]).map(|_| ()), wanted);
            assert!(stage.run(seat, inquiry, &[]).is_ok());
            assert_eq!(stage.run(seat, &REPORT, &[]).unwrap()[4], state);
            assert_eq!(stage.run(seat, mode_sense, &[]).is_ok(), state != 3);
            assert_eq!(stage.ask(seat, 0).is_ok(), state != 3);
            let sense = stage.run(seat, &REQUEST_SENSE, &[]).unwrap();
            let [high, low] = code.unwrap_or(0).to_be_bytes();
            assert_eq!((sense[2], &sense[12..14]), (if code.is_some() { 2 } else { 0 }, &[high, low][..]));
        }
    }
    set(&stage, 0, 0).unwrap();
    assert_eq!(stage.attentions(1), [] as [u16; 0], "nothing changed");
    assert_eq!(stage.run(0, &REPORT, &[]).unwrap()[9], 1, "set by a command");
}

#[test]
fn states_that_cannot_be_set_and_groups_that_are_not_there_are_refused() {
    let stage = Stage::without_medium();
    for state in [4, 0x0e, 0x0f] {
        assert_eq!(set(&stage, 0, state), Err(Fail::Sense(0x2600)));
    }
    let cdb = [0xa4, 0x0a, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0];
    assert_eq!(stage.run(0, &cdb, &[0, 0, 0, 0, 1, 0, 0, 2]), Err(Fail::Sense(0x2600)));
    assert_eq!(stage.run(0, &cdb, &[0; 4]), Err(Fail::Sense(0x1a00)), "announced less than it says");
    assert_eq!(stage.run(0, &REPORT, &[]).unwrap()[4], 0);
}

#[test]
fn request_sense_tells_attentions_first_and_then_what_stands_in_the_way() {
    let stage = Stage::without_medium();
    stage.run(0, &[0x1b, 0, 0, 0, 0, 0], &[]).unwrap(); // stop
    stage.unit(0).contents_changed();
    let sense = stage.run(0, &REQUEST_SENSE, &[]).unwrap();
    assert_eq!((sense[2], &sense[12..14]), (6, &[0x28, 0x00][..]));
    let sense = stage.run(0, &REQUEST_SENSE, &[]).unwrap();
    assert_eq!((sense[2], &sense[12..14]), (2, &[0x04, 0x02][..]));
    let descriptor = stage.run(0, &[0x03, 1, 0, 0, 252, 0], &[]).unwrap();
    assert_eq!(descriptor[..4], [0x72, 2, 0x04, 0x02]);
    stage.attentions(1);
    stage.run(1, &[0x1b, 0, 0, 0, 1, 0], &[]).unwrap();
    assert_eq!(stage.run(0, &REQUEST_SENSE, &[]).unwrap()[2], 0, "any initiator may start it");
}

#[test]
fn log_pages_are_listed_counted_and_reset() {
    let stage = Stage::without_medium();
    let page = |code: u8| stage.run(0, &[0x4d, 0, 0x40 | code, 0, 0, 0, 0, 1, 0, 0], &[]);
    let listed = page(0).unwrap();
    for code in &listed[4..] {
        assert_eq!(page(*code).unwrap()[0], *code);
    }
    assert_eq!(page(0x0d), Err(Fail::Sense(0x2400)), "there is no thermometer");
    stage.unit(0).count_written(&stage.nexuses[0], 1000);
    stage.unit(3).count_written(&stage.nexuses[3], 24);
    stage.unit(3).count_failure(&playhead_wire::scsi::Sense::WRITE_ERROR);
    stage.unit(3).count_failure(&playhead_wire::scsi::Sense::LBA_OUT_OF_RANGE);
    let writes = page(2).unwrap();
    assert_eq!((&writes[14..16], writes[27]), (&[4, 0][..], 1), "of all targets together");
    assert_eq!(page(3).unwrap()[8..16], [0; 8]);
    stage.run(0, &[0x4c, 2, 0, 0, 0, 0, 0, 0, 0, 0], &[]).unwrap();
    assert_eq!(page(2).unwrap()[8..16], [0; 8]);
    assert_eq!(stage.attentions(1), [0x2a02]);
    assert_eq!(stage.run(0, &[0x4c, 0, 0x42, 0, 0, 0, 0, 0, 4, 0], &[0; 4]), Err(Fail::Sense(0x2600)));
}
