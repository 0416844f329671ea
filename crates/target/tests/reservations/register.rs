//! Registering for others: initiator ports by TransportID, target ports by ALL_TG_PT; and what is wrong in a list.

use super::stage::{list, move_list, Fail, Stage, CLEAR, REGISTER, REGISTER_AND_IGNORE, REGISTER_AND_MOVE};
use super::stage::{RESERVE, SEATS};
use playhead_wire::scsi::reservation::transport_id;

const SPEC_I_PT: u8 = 0x08;
const ALL_TG_PT: u8 = 0x04;

fn id_of(seat: usize) -> Vec<u8> {
    let mut id = Vec::new();
    transport_id::emit(SEATS[seat].initiator, &[0, 0, 0, 0, 0, SEATS[seat].isid], &mut id);
    id
}

/// Format 00b: an iSCSI name alone.
fn id_of_name(name: &str) -> Vec<u8> {
    let mut text = name.as_bytes().to_vec();
    text.resize((text.len() + 4) & !3, 0);
    [[0x05, 0, 0, text.len() as u8].as_slice(), &text].concat()
}

fn list_for(key: u64, flags: u8, ids: &[Vec<u8>]) -> Vec<u8> {
    let mut all = list(0, key, SPEC_I_PT | flags);
    let ids = ids.concat();
    all.extend_from_slice(&(ids.len() as u32).to_be_bytes());
    all.extend_from_slice(&ids);
    all
}

/// Keys, relative target ports, initiators and ISIDs of READ FULL STATUS, sorted.
fn registered(stage: &Stage) -> Vec<(u64, u16, String)> {
    let data = stage.ask(0, 3).unwrap();
    let mut at = 8;
    let mut all = Vec::new();
    while at < data.len() {
        let length = u32::from_be_bytes(data[at + 20..at + 24].try_into().unwrap()) as usize;
        let id = &data[at + 24 + 4..at + 24 + length];
        let text = id.iter().take_while(|byte| **byte != 0).map(|byte| char::from(*byte)).collect();
        let key = u64::from_be_bytes(data[at..at + 8].try_into().unwrap());
        all.push((key, u16::from_be_bytes([data[at + 18], data[at + 19]]), text));
        at += 24 + length;
    }
    assert_eq!(u32::from_be_bytes(data[4..8].try_into().unwrap()) as usize, data.len() - 8);
    all.sort();
    all
}

fn line(key: u64, port: u16, initiator: &str, isid: u8) -> (u64, u16, String) {
    (key, port, format!("iqn.2026-01.org.example:{initiator},i,0x{isid:012x}"))
}

#[test]
fn a_registrant_speaks_for_the_ports_it_names_on_the_targets_it_names() {
    let stage = Stage::without_medium();
    stage.out(0, REGISTER, 0, &list_for(7, 0, &[id_of(2)])).unwrap();
    assert_eq!(registered(&stage), [line(7, 1, "a", 1), line(7, 1, "b", 1)]);
    stage.out(0, CLEAR, 0, &list(7, 0, 0)).unwrap();
    stage.attentions(2);
    stage.out(0, REGISTER, 0, &list_for(8, ALL_TG_PT, &[id_of(2)])).unwrap();
    assert_eq!(
        registered(&stage),
        [line(8, 1, "a", 1), line(8, 1, "b", 1), line(8, 2, "a", 1), line(8, 2, "b", 1)]
    );
    stage.out(0, CLEAR, 0, &list(8, 0, 0)).unwrap();
    for seat in 0..SEATS.len() {
        stage.attentions(seat);
    }
    stage.register(0, 5, 0).unwrap();
    stage.out(2, REGISTER, 0, &list_for(9, 0, &[id_of_name(SEATS[0].initiator)])).unwrap();
    let wanted = [line(5, 1, "a", 1), line(9, 1, "a", 2), line(9, 1, "b", 1)];
    assert_eq!(
        registered(&stage),
        wanted,
        "a name alone is its ports that are there; who is registered stays so"
    );
}

#[test]
fn a_port_that_was_never_there_can_be_registered_and_finds_it_so_when_it_comes() {
    let stage = Stage::without_medium();
    let mut id = Vec::new();
    transport_id::emit("iqn.2026-01.org.example:late", &[0, 0, 0, 0, 0, 3], &mut id);
    stage.out(0, REGISTER, 0, &list_for(7, 0, &[id])).unwrap();
    stage.out(0, RESERVE, 6, &list(7, 0, 0)).unwrap();
    let port = playhead_target::scsi::InitiatorPort {
        name: "iqn.2026-01.org.example:late".into(),
        isid: [0, 0, 0, 0, 0, 3],
    };
    let late = stage.units[0].attach(port, &playhead_target::scsi::Policy::default());
    let mut cdb = [0; 16];
    cdb[..10].copy_from_slice(&[0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    let write = playhead_wire::scsi::Command::parse(&cdb).unwrap();
    assert!(stage.units[0].admit(&late, &write).is_err(), "its unit attention");
    stage.units[0].admit(&late, &write).unwrap();
}

#[test]
fn one_wrong_transport_id_registers_nobody() {
    let stage = Stage::without_medium();
    let mut wrong = id_of(1);
    wrong[0] = 0x06; // SAS
    let all = list_for(7, 0, &[id_of(2), wrong]);
    assert_eq!(stage.out(0, REGISTER, 0, &all), Err(Fail::Sense(0x2600)));
    assert_eq!(registered(&stage), []);
    let good = list_for(7, 0, &[id_of(2)]);
    assert_eq!(stage.out(0, REGISTER, 0, &good[..good.len() - 1]), Err(Fail::Sense(0x1a00)));
    assert_eq!(
        stage.out(0, REGISTER_AND_IGNORE, 0, &good),
        Err(Fail::Sense(0x2600)),
        "REGISTER alone has it"
    );
    assert_eq!(stage.out(0, REGISTER, 0, &list_for(0, 0, &[id_of(2)])), Err(Fail::Sense(0x2400)));
    stage.register(0, 7, 0).unwrap();
    let mut again = list_for(8, 0, &[id_of(2)]);
    again[7] = 7;
    assert_eq!(stage.out(0, REGISTER, 0, &again), Err(Fail::Sense(0x2400)), "not when registered already");
}

#[test]
fn there_is_an_end_to_registrations_and_beyond_it_none_is_half_made() {
    let stage = Stage::without_medium();
    let id = |n: u32| {
        let mut id = Vec::new();
        let [a, b, c, d] = n.to_be_bytes();
        transport_id::emit("iqn.2026-01.org.example:many", &[0, 0, a, b, c, d], &mut id);
        id
    };
    let ids: Vec<Vec<u8>> = (0..256).map(id).collect();
    assert_eq!(stage.out(0, REGISTER, 0, &list_for(7, 0, &ids)), Err(Fail::Sense(0x5504)));
    assert_eq!(registered(&stage), []);
    stage.out(0, REGISTER, 0, &list_for(7, 0, &ids[..255])).unwrap();
    assert_eq!(registered(&stage).len(), 256);
    assert_eq!(stage.register(2, 1, 0), Err(Fail::Sense(0x5504)));
}

#[test]
fn unregistering_with_all_target_ports_leaves_none() {
    let stage = Stage::without_medium();
    stage.register(0, 7, ALL_TG_PT).unwrap();
    stage.register(2, 9, 0).unwrap();
    stage.out(3, RESERVE, 5, &list(7, 0, 0)).unwrap();
    stage.register(0, 0, ALL_TG_PT).unwrap();
    assert_eq!(registered(&stage), [line(9, 1, "b", 1)]);
    assert_eq!(stage.attentions(2), [0x2a04], "the reservation went with its holder");
}

#[test]
fn moving_wants_a_whole_list_a_known_port_and_somebody_else() {
    let stage = Stage::without_medium();
    stage.register(0, 7, 0).unwrap();
    let good = move_list(7, 9, 0, &SEATS[5]);
    assert_eq!(stage.out(0, REGISTER_AND_MOVE, 0, &good), Err(Fail::Sense(0x2400)), "nothing is reserved");
    stage.out(0, RESERVE, 1, &list(7, 0, 0)).unwrap();
    let changed = |at: usize, value: u8| {
        let mut list = good.clone();
        list[at] = value;
        list
    };
    assert_eq!(stage.out(0, REGISTER_AND_MOVE, 0, &changed(19, 9)), Err(Fail::Sense(0x2600)), "no such port");
    assert_eq!(stage.out(0, REGISTER_AND_MOVE, 0, &changed(15, 0)), Err(Fail::Sense(0x2600)), "no key");
    assert_eq!(stage.out(0, REGISTER_AND_MOVE, 0, &changed(23, 4)), Err(Fail::Sense(0x1a00)), "cut");
    assert_eq!(stage.out(0, REGISTER_AND_MOVE, 0, &changed(7, 8)), Err(Fail::Conflict), "wrong key");
    let to_itself = move_list(7, 9, 0, &SEATS[3]);
    assert_eq!(stage.out(0, REGISTER_AND_MOVE, 0, &to_itself), Err(Fail::Sense(0x2600)));
    stage.out(0, REGISTER_AND_MOVE, 0, &good).unwrap();
    assert!(stage.may_write(5) && !stage.may_write(0));
    assert_eq!(registered(&stage), [line(7, 1, "a", 1), line(9, 2, "b", 1)]);
}

#[test]
fn service_actions_scopes_and_types_that_are_none_are_refused() {
    let stage = Stage::without_medium();
    stage.register(0, 7, 0).unwrap();
    for action in 9..32 {
        assert_eq!(stage.out(0, action, 1, &list(7, 0, 0)), Err(Fail::Sense(0x2400)), "OUT {action}");
    }
    for action in 4..32 {
        assert_eq!(stage.ask(0, action), Err(Fail::Sense(0x2400)), "IN {action}");
    }
    for scope_and_kind in [0x11, 0x21, 0x00, 0x02, 0x04, 0x09, 0x0f] {
        assert_eq!(stage.out(0, RESERVE, scope_and_kind, &list(7, 0, 0)), Err(Fail::Sense(0x2400)));
    }
    assert_eq!(stage.out(0, RESERVE, 1, &[0; 23]), Err(Fail::Sense(0x1a00)));
    assert_eq!(stage.out(0, RESERVE, 1, &[0; 25]), Err(Fail::Sense(0x1a00)));
}
