//! Registrations that persist, and a medium that loses power at every step of keeping them, or comes back damaged.

use super::medium::{SimFiles, FIRST_RANDOM_SEED};
use super::stage::{list, move_list, Answer, Fail, Stage, CLEAR, DIRECTORY, PREEMPT, REGISTER_AND_MOVE};
use super::stage::{RELEASE, REPLACE_LOST, RESERVE, SEATS};
use playhead_target::lun::Lun;
use std::path::{Path, PathBuf};

const APTPL: u8 = 1;
const LOST: Answer = Err(Fail::Sense(0x4401));

/// Commands that each change what is to persist.
type Change = fn(&Stage) -> Answer;
const SCRIPT: [Change; 9] = [
    |stage| stage.register(0, 10, APTPL),
    |stage| stage.register(2, 20, APTPL),
    |stage| stage.out(0, RESERVE, 5, &list(10, 0, 0)),
    |stage| stage.register(3, 30, APTPL),
    |stage| stage.out(2, PREEMPT, 3, &list(20, 10, 0)),
    |stage| stage.out(2, REGISTER_AND_MOVE, 0, &move_list(20, 40, 1, &SEATS[4])),
    |stage| stage.out(4, RELEASE, 3, &list(40, 0, 0)),
    |stage| stage.register(2, 21, 0),
    |stage| stage.register(2, 22, APTPL),
];

fn quiet(stage: &Stage) {
    for seat in 0..SEATS.len() {
        stage.attentions(seat);
    }
}

/// What is there after the power came back, which tells nothing of what did not persist.
fn after_power_on(medium: &SimFiles) -> Vec<Vec<u8>> {
    Stage::power_on(medium).unwrap().all()
}

/// What a power on must find after each of the first `n` changes.
fn persistent_states() -> Vec<Vec<Vec<u8>>> {
    let medium = SimFiles::new();
    let stage = Stage::power_on(&medium).unwrap();
    let mut states = vec![after_power_on(&medium)];
    for change in SCRIPT {
        change(&stage).unwrap();
        quiet(&stage);
        states.push(after_power_on(&medium));
    }
    states
}

#[test]
fn whenever_the_power_fails_what_was_answered_good_is_there_and_nothing_else() {
    let states = persistent_states();
    assert_eq!(states[8], states[0], "a registration without APTPL ends the persistence of all");
    assert_eq!(states.iter().filter(|state| **state != states[0]).count(), 8);
    let mut crashes = 0;
    for boundary in 1.. {
        let medium = SimFiles::new();
        medium.crash_at(boundary);
        let mut done = 0;
        if let Ok(stage) = Stage::power_on(&medium) {
            for change in SCRIPT {
                if change(&stage).is_err() {
                    break;
                }
                quiet(&stage);
                done += 1;
            }
        }
        if !medium.is_off() {
            break;
        }
        crashes += 1;
        for seed in 0..FIRST_RANDOM_SEED + 4 {
            for back in [medium.survivor(seed), medium.kill(seed)] {
                let found = after_power_on(&back);
                // Of the change that was refused because the medium failed, all or nothing.
                let fits = found == states[done] || states.get(done + 1) == Some(&found);
                assert!(fits, "boundary {boundary}, survivor {seed}: not as after {done} changes");
            }
        }
    }
    assert!(crashes > 30, "{crashes} boundaries");
}

fn file_of(stage: &Stage) -> PathBuf {
    let uuid = stage.disk.identity().uuid;
    let name: String = uuid.iter().map(|byte| format!("{byte:02x}")).collect();
    Path::new(DIRECTORY).join(format!("{name}.res"))
}

fn with_a_reservation() -> (SimFiles, PathBuf) {
    let medium = SimFiles::new();
    let stage = Stage::power_on(&medium).unwrap();
    stage.register(0, 10, APTPL).unwrap();
    stage.out(0, RESERVE, 1, &list(10, 0, 0)).unwrap();
    let file = file_of(&stage);
    (medium, file)
}

/// Nobody gets at the blocks, and everybody can see why.
fn assert_closed(stage: &Stage) {
    for seat in 0..SEATS.len() {
        assert_eq!(stage.run(seat, &[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[]), LOST);
        assert_eq!(stage.run(seat, &[0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[]), LOST);
        assert_eq!(stage.register(seat, 1, 0), LOST);
        assert_eq!(stage.ask(seat, 0), LOST);
        assert!(stage.ask(seat, 2).is_ok(), "capabilities");
        assert!(stage.run(seat, &[0; 6], &[]).is_ok(), "TEST UNIT READY");
        assert!(stage.run(seat, &[0x12, 0, 0, 0, 36, 0], &[]).is_ok(), "INQUIRY");
    }
    let device = stage.devices.find(&stage.disk.identity().uuid);
    assert!(!device.admits_strangers(false) && !device.admits_strangers(true));
}

#[test]
fn a_file_with_any_bit_wrong_or_cut_anywhere_closes_the_lun() {
    let (medium, file) = with_a_reservation();
    let whole = medium.bytes_of(&file).unwrap();
    for (at, byte) in whole.iter().enumerate() {
        let damaged = medium.copy();
        damaged.poke(&file, at as u64, &[byte ^ 1 << (at % 8)]);
        assert_closed(&Stage::power_on(&damaged).unwrap());
    }
    for len in 0..whole.len() {
        let cut = medium.copy();
        cut.resize(&file, len as u64);
        assert_closed(&Stage::power_on(&cut).unwrap());
    }
    let stage = Stage::power_on(&medium).unwrap();
    assert!(stage.may_write(0) && !stage.may_write(2), "the undamaged one is as it was");
}

#[test]
fn a_file_of_another_lun_does_not_pass_for_ones_own() {
    let (medium, file) = with_a_reservation();
    let bytes = medium.bytes_of(&file).unwrap();
    let other = SimFiles::new();
    Stage::power_on(&other).unwrap();
    let stage = Stage::power_on(&other).unwrap();
    drop(stage);
    other.files().open(&file, playhead_journal::files::Open::Create).unwrap();
    let mut strange = bytes.clone();
    // As if the UUID were another: only the checksum can tell.
    let end = strange.len();
    let crc = crc32c::crc32c_append(crc32c::crc32c(&[7; 16]), &strange[..end - 4]);
    strange[end - 4..].copy_from_slice(&crc.to_le_bytes());
    other.poke(&file, 0, &strange);
    assert_closed(&Stage::power_on(&other).unwrap());
}

#[test]
fn what_is_lost_can_be_replaced_by_a_host_and_only_then() {
    let (medium, file) = with_a_reservation();
    let stage = Stage::power_on(&medium).unwrap();
    assert_eq!(
        stage.out(2, REPLACE_LOST, 1, &list(0, 77, APTPL)),
        Err(Fail::Sense(0x2400)),
        "nothing is lost"
    );
    medium.poke(&file, 40, &[0xee]);
    let stage = Stage::power_on(&medium).unwrap();
    assert_closed(&stage);
    assert_eq!(stage.out(2, REPLACE_LOST, 1, &list(5, 77, APTPL)), Err(Fail::Sense(0x2600)));
    assert_eq!(stage.out(2, REPLACE_LOST, 1, &list(0, 0, APTPL)), Err(Fail::Sense(0x2600)));
    stage.out(2, REPLACE_LOST, 1, &list(0, 77, APTPL)).unwrap();
    assert!(stage.may_write(2) && !stage.may_write(0) && stage.may_read(0));
    let stage = Stage::power_on(&medium).unwrap();
    assert!(stage.may_write(2) && !stage.may_write(0), "and it persists");
}

#[test]
fn an_administrator_can_forget_what_is_there_or_lost() {
    let (medium, file) = with_a_reservation();
    let stage = Stage::power_on(&medium).unwrap();
    let uuid = stage.disk.identity().uuid;
    stage.devices.forget(&uuid).unwrap();
    assert_eq!(stage.attentions(0), [0x2a03], "the registrant is told");
    assert!(stage.may_write(2) && medium.bytes_of(&file).is_none());
    let (medium, file) = with_a_reservation();
    medium.resize(&file, 9);
    let stage = Stage::power_on(&medium).unwrap();
    stage.devices.forget(&uuid).unwrap();
    assert!(stage.may_write(2) && stage.ask(0, 0).is_ok());
    assert!(Stage::power_on(&medium).unwrap().may_write(2));
}

#[test]
fn a_change_that_cannot_be_kept_is_refused_and_does_not_happen() {
    let (medium, _) = with_a_reservation();
    let stage = Stage::power_on(&medium).unwrap();
    let before = stage.all();
    medium.set_fault(Some(Box::new(|_| Some(28)))); // ENOSPC
    assert_eq!(stage.out(0, RELEASE, 1, &list(10, 0, 0)), Err(Fail::Sense(0x4400)));
    assert_eq!(stage.out(0, CLEAR, 0, &list(10, 0, 0)), Err(Fail::Sense(0x4400)));
    assert_eq!(stage.all(), before);
    assert!(!stage.may_write(2));
    medium.set_fault(None);
    stage.out(0, CLEAR, 0, &list(10, 0, 0)).unwrap();
    assert!(stage.may_write(2));
    assert_eq!(stage.attentions(2), [] as [u16; 0]);
}

#[test]
fn without_a_directory_nothing_persists_and_nobody_is_told_otherwise() {
    let stage = Stage::without_medium();
    assert_eq!(stage.register(0, 10, APTPL), Err(Fail::Sense(0x2600)));
    let to = move_list(10, 40, 1, &SEATS[4]);
    stage.register(0, 10, 0).unwrap();
    stage.out(0, RESERVE, 1, &list(10, 0, 0)).unwrap();
    assert_eq!(stage.out(0, REGISTER_AND_MOVE, 0, &to), Err(Fail::Sense(0x2600)));
    let capabilities = stage.ask(0, 2).unwrap();
    assert_eq!((capabilities[2] & 1, capabilities[3] & 1), (0, 0), "PTPL_C, PTPL_A");
    let (medium, _) = with_a_reservation();
    assert_eq!(Stage::power_on(&medium).unwrap().ask(0, 2).unwrap()[2..4], [0x9d, 0x91]);
}
