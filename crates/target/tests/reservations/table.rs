//! The conflict tables of SPC-4 and SBC-4, command by command, for every type of reservation and everybody's part in it.

use super::stage::{list, Fail, Stage, RELEASE, RESERVE};

/// Who a command is refused to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Row {
    /// Nobody.
    Nobody,
    /// Those whom another's RESERVE shuts out.
    Reserved,
    /// Those and, under exclusive access, who has none.
    Readers,
    /// Those and, under any reservation, who has no access.
    Writers,
}

/// CDBs without data-out that do something, or fail for another reason than a conflict.
const ROWS: &[(Row, &str, &[u8])] = &[
    (Row::Nobody, "INQUIRY", &[0x12, 0, 0, 0, 36, 0]),
    (Row::Nobody, "REPORT LUNS", &[0xa0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]),
    (Row::Nobody, "REQUEST SENSE", &[0x03, 0, 0, 0, 18, 0]),
    (Row::Nobody, "LOG SENSE", &[0x4d, 0, 0x40, 0, 0, 0, 0, 1, 0, 0]),
    (Row::Nobody, "REPORT TARGET PORT GROUPS", &[0xa3, 0x0a, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]),
    (Row::Nobody, "PREVENT ALLOW, allow", &[0x1e, 0, 0, 0, 0, 0]),
    (Row::Reserved, "TEST UNIT READY", &[0; 6]),
    (Row::Reserved, "READ CAPACITY(10)", &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    (Row::Reserved, "READ CAPACITY(16)", &[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0]),
    (Row::Reserved, "START STOP UNIT, start", &[0x1b, 0, 0, 0, 1, 0]),
    (Row::Readers, "READ(6)", &[0x08, 0, 0, 0, 1, 0]),
    (Row::Readers, "READ(16)", &[0x88, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0]),
    (Row::Readers, "VERIFY(10)", &[0x2f, 0, 0, 0, 0, 0, 0, 0, 1, 0]),
    (Row::Readers, "PRE-FETCH(10)", &[0x34, 0, 0, 0, 0, 0, 0, 0, 1, 0]),
    (Row::Readers, "GET LBA STATUS", &[0x9e, 0x12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0]),
    (Row::Readers, "READ DEFECT DATA(10)", &[0x37, 0, 0, 0, 0, 0, 0, 0, 8, 0]),
    (Row::Readers, "READ DEFECT DATA(12)", &[0xb7, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0]),
    (Row::Readers, "MODE SENSE(6)", &[0x1a, 0, 0x3f, 0, 255, 0]),
    (Row::Readers, "MODE SENSE(10)", &[0x5a, 0, 0x3f, 0, 0, 0, 0, 1, 0, 0]),
    (Row::Readers, "REPORT SUPPORTED OPERATION CODES", &[0xa3, 0x0c, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0]),
    (Row::Readers, "REPORT SUPPORTED TMFS", &[0xa3, 0x0d, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0]),
    (Row::Writers, "WRITE(6)", &[0x0a, 0, 0, 0, 1, 0]),
    (Row::Writers, "WRITE(16)", &[0x8a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0]),
    (Row::Writers, "WRITE ATOMIC(16)", &[0x9c, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    (Row::Writers, "ORWRITE(16)", &[0x8b, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    (Row::Writers, "SANITIZE, exit failure mode", &[0x48, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0]),
    (Row::Writers, "FORMAT UNIT", &[0x04, 0, 0, 0, 0, 0]),
    (Row::Writers, "WRITE AND VERIFY(10)", &[0x2e, 0, 0, 0, 0, 0, 0, 0, 1, 0]),
    (Row::Writers, "WRITE SAME(16), NDOB", &[0x93, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0]),
    (Row::Writers, "UNMAP", &[0x42, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    (Row::Writers, "COMPARE AND WRITE", &[0x89, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    (Row::Writers, "SYNCHRONIZE CACHE(10)", &[0x35, 0, 0, 0, 0, 0, 0, 0, 1, 0]),
    (Row::Writers, "MODE SELECT(6)", &[0x15, 0x10, 0, 0, 0, 0]),
    (Row::Writers, "MODE SELECT(10)", &[0x55, 0x10, 0, 0, 0, 0, 0, 0, 0, 0]),
    (Row::Writers, "LOG SELECT", &[0x4c, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    (Row::Writers, "SET TARGET PORT GROUPS", &[0xa4, 0x0a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    (Row::Writers, "PREVENT ALLOW, prevent", &[0x1e, 0, 0, 0, 1, 0]),
];

const KINDS: [(u8, &str); 6] = [
    (1, "write exclusive"),
    (3, "exclusive access"),
    (5, "write exclusive, registrants only"),
    (6, "exclusive access, registrants only"),
    (7, "write exclusive, all registrants"),
    (8, "exclusive access, all registrants"),
];

const HOLDER: usize = 0;
/// The same initiator's other port is somebody else.
const STRANGER: usize = 1;
const REGISTRANT: usize = 2;
/// So is the same port at another target.
const OTHER_TARGET: usize = 3;

fn conflicts(stage: &Stage, seat: usize, cdb: &[u8]) -> bool {
    let ended = stage.run(seat, cdb, &[]);
    for told in 0..4 {
        stage.attentions(told);
    }
    ended == Err(Fail::Conflict)
}

#[test]
fn persistent_reservations_refuse_what_the_tables_say_and_nothing_else() {
    let stage = Stage::without_medium();
    stage.register(HOLDER, 10, 0).unwrap();
    stage.register(REGISTRANT, 20, 0).unwrap();
    for (kind, words) in KINDS {
        stage.out(HOLDER, RESERVE, kind, &list(10, 0, 0)).unwrap();
        for (row, name, cdb) in ROWS {
            for seat in [HOLDER, STRANGER, REGISTRANT, OTHER_TARGET] {
                let has_access = seat == HOLDER || (seat == REGISTRANT && kind >= 5);
                let exclusive = words.starts_with("exclusive");
                let refused = match row {
                    Row::Nobody | Row::Reserved => false,
                    Row::Readers => exclusive && !has_access,
                    Row::Writers => !has_access,
                };
                assert_eq!(conflicts(&stage, seat, cdb), refused, "{name} by {seat} under {words}");
            }
        }
        stage.out(HOLDER, RELEASE, kind, &list(10, 0, 0)).unwrap();
        stage.attentions(REGISTRANT);
    }
}

#[test]
fn a_reserve_shuts_the_others_out_until_it_is_released_its_session_ends_or_the_unit_is_reset() {
    for (reserve, release) in [
        (&[0x16u8, 0, 0, 0, 0, 0][..], &[0x17u8, 0, 0, 0, 0, 0][..]),
        (&[0x56, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[0x57, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    ] {
        let stage = Stage::without_medium();
        for end in 0..3 {
            stage.run(HOLDER, reserve, &[]).unwrap();
            stage.run(HOLDER, reserve, &[]).unwrap();
            for seat in [STRANGER, REGISTRANT, OTHER_TARGET] {
                assert_eq!(stage.run(seat, reserve, &[]), Err(Fail::Conflict));
                stage.run(seat, release, &[]).unwrap();
                for (row, name, cdb) in ROWS {
                    assert_eq!(conflicts(&stage, seat, cdb), *row != Row::Nobody, "{name} by {seat}");
                }
            }
            for (_, name, cdb) in ROWS {
                assert!(!conflicts(&stage, HOLDER, cdb), "{name} by the holder");
            }
            assert_eq!(stage.register(HOLDER, 1, 0), Err(Fail::Conflict), "not beside a RESERVE, whosever");
            assert_eq!(stage.ask(HOLDER, 0), Err(Fail::Conflict));
            match end {
                0 => drop(stage.run(HOLDER, release, &[]).unwrap()),
                1 => stage.unit(STRANGER).reset(),
                _ => stage.unit(HOLDER).detach(&stage.nexuses[HOLDER]),
            }
            for seat in 0..4 {
                stage.attentions(seat);
            }
            assert!(stage.may_write(STRANGER), "end {end}");
        }
    }
}

#[test]
fn reserve_and_release_beside_persistent_reservations_do_nothing_for_who_has_access_and_conflict_for_others()
{
    let stage = Stage::without_medium();
    stage.register(HOLDER, 10, 0).unwrap();
    stage.register(REGISTRANT, 20, 0).unwrap();
    let both = [[0x16u8, 0, 0, 0, 0, 0], [0x17, 0, 0, 0, 0, 0]];
    for cdb in &both {
        for seat in [HOLDER, STRANGER, REGISTRANT] {
            assert_eq!(stage.run(seat, cdb, &[]), Err(Fail::Conflict), "registered, but nothing is reserved");
        }
    }
    for (kind, words) in KINDS {
        stage.out(HOLDER, RESERVE, kind, &list(10, 0, 0)).unwrap();
        for cdb in &both {
            stage.run(HOLDER, cdb, &[]).unwrap();
            assert_eq!(stage.run(STRANGER, cdb, &[]), Err(Fail::Conflict), "{words}");
            assert_eq!(stage.run(REGISTRANT, cdb, &[]).is_ok(), kind >= 5, "{words}");
        }
        assert!(!stage.may_write(STRANGER), "{words} is as it was");
        stage.out(HOLDER, RELEASE, kind, &list(10, 0, 0)).unwrap();
        stage.attentions(REGISTRANT);
    }
}

#[test]
fn third_parties_extents_and_long_ids_are_obsolete() {
    let stage = Stage::without_medium();
    for (byte, value) in [(1, 0x10), (1, 1)] {
        let mut cdb = [0x16, 0, 0, 0, 0, 0];
        cdb[byte] = value;
        assert_eq!(stage.run(0, &cdb, &[]), Err(Fail::Sense(0x2400)));
    }
    for (byte, value) in [(1, 0x10), (1, 2), (1, 1), (8, 8)] {
        for opcode in [0x56, 0x57] {
            let mut cdb = [opcode, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            cdb[byte] = value;
            assert_eq!(stage.run(0, &cdb, &[]), Err(Fail::Sense(0x2400)));
        }
    }
}
