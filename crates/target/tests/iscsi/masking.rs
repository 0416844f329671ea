//! Who sees which LUN, under which number, and what changes when that does.

use crate::peer::{cdb_10, Peer};
use crate::ramdisk::RamDisk;
use crate::{serve, IQN};
use playhead_target::iscsi::{Grant, Limits, Masking, Server};
use playhead_wire::iscsi::request::{DataOut, Request, TextRequest};
use playhead_wire::iscsi::response::Response;
use playhead_wire::iscsi::{lun_bytes, text, RESERVED_TAG};
use std::sync::Arc;

const ONE: &str = "iqn.2026-01.org.example:one";
const TWO: &str = "iqn.2026-01.org.example:two";
const OTHER: &str = "iqn.2026-01.org.playhead:other";
const LUNS_CHANGED: Option<u16> = Some(0x3f0e);

/// A target, one of its units, and who sees it: initiator, number, read-only.
type Row<'a> = (&'a str, u16, &'a [(&'a str, u16, bool)]);

fn mask(server: &Server, table: &[Row<'_>]) {
    let grant = |&(initiator, number, read_only): &(&str, u16, bool)| Grant {
        initiator: initiator.to_owned(),
        number,
        read_only,
    };
    let rows = table
        .iter()
        .map(|(target, unit, grants)| ((target.to_string(), *unit), grants.iter().map(grant).collect()));
    server.set_masking(Masking::new(rows).unwrap());
}

/// LUNs 0 to 2 of the target, whose first bytes are 0xd0 to 0xd2, and another target with one LUN.
fn serve_three() -> Server {
    let (server, _) = serve(Limits::default());
    server.add_target(OTHER).unwrap();
    for (target, number) in [(IQN, 0), (IQN, 1), (IQN, 2), (OTHER, 0)] {
        let disk = Arc::new(RamDisk::new(&format!("{target} {number}"), 4096));
        server.set_lun(target, number, disk).unwrap();
    }
    let mut peer = login(&server, ONE, 1);
    for number in 0..3 {
        peer.lun = lun_bytes(number);
        peer.ready();
        assert_eq!(peer.write(0, &[0xd0 + number as u8; 512]).status, 0);
    }
    server
}

fn try_login(server: &Server, initiator: &str, target: &str, isid: u8) -> (Peer, u16) {
    let mut peer = Peer::connect(server.address());
    peer.isid[5] = isid;
    let status = peer.login(&[("InitiatorName", initiator), ("TargetName", target)]);
    (peer, status)
}

fn login(server: &Server, initiator: &str, isid: u8) -> Peer {
    let (peer, status) = try_login(server, initiator, IQN, isid);
    assert_eq!(status, 0);
    peer
}

/// What REPORT LUNS lists, in the eight-byte form.
fn luns(peer: &mut Peer) -> Vec<[u8; 8]> {
    let lun = std::mem::take(&mut peer.lun);
    let data = peer.command(&[0xa0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0], 1024, &[]).data;
    peer.lun = lun;
    assert_eq!(u32::from_be_bytes(data[..4].try_into().unwrap()) as usize, data.len() - 8);
    data[8..].chunks(8).map(|lun| lun.try_into().unwrap()).collect()
}

/// The first byte of a LUN, by number; `None` if it is not there.
fn first_byte(peer: &mut Peer, lun: [u8; 8]) -> Option<u8> {
    peer.lun = lun;
    for _ in 0..4 {
        let ended = peer.read(0, 512);
        match ended.sense {
            Some(0x2500) => return None,
            Some(_) => {}
            None => return Some(ended.data[0]),
        }
    }
    panic!("unit attentions without end");
}

#[test]
fn each_initiator_has_its_own_luns_under_its_own_numbers() {
    let server = serve_three();
    mask(&server, &[(IQN, 0, &[(ONE, 0, false), (TWO, 300, false)]), (IQN, 1, &[(TWO, 0, true)])]);
    let mut one = login(&server, ONE, 2);
    let mut two = login(&server, TWO, 2);
    assert_eq!(luns(&mut one), [lun_bytes(0), lun_bytes(2)]);
    assert_eq!(luns(&mut two), [lun_bytes(0), lun_bytes(2), lun_bytes(300)]);
    assert_eq!(lun_bytes(300), [0x41, 0x2c, 0, 0, 0, 0, 0, 0], "flat above 255");
    assert_eq!(first_byte(&mut one, lun_bytes(0)), Some(0xd0));
    assert_eq!(first_byte(&mut one, lun_bytes(1)), None);
    assert_eq!(first_byte(&mut two, lun_bytes(300)), Some(0xd0));
    assert_eq!(first_byte(&mut two, lun_bytes(0)), Some(0xd1));
    // Flat addressing of a small number is the same LUN.
    assert_eq!(first_byte(&mut two, [0x40, 2, 0, 0, 0, 0, 0, 0]), Some(0xd2));
    // Read-only is the grant's, not the LUN's.
    two.lun = lun_bytes(0);
    assert_eq!(two.write(0, &[9; 512]).sense, Some(0x2700));
    two.lun = lun_bytes(300);
    assert_eq!(two.write(1, &[9; 512]).status, 0);
}

#[test]
fn a_change_is_live_and_told_to_those_alone_whom_it_concerns() {
    let server = serve_three();
    let mut one = login(&server, ONE, 2);
    let mut two = login(&server, TWO, 2);
    for peer in [&mut one, &mut two] {
        for number in 0..3 {
            peer.lun = lun_bytes(number);
            peer.ready();
        }
    }
    // LUN 1 is taken from the second: only that one hears of it, on each LUN that is left.
    mask(&server, &[(IQN, 1, &[(ONE, 1, false)])]);
    assert_eq!(two.command(&[0; 6], 0, &[]).sense, LUNS_CHANGED);
    two.lun = lun_bytes(0);
    assert_eq!(two.command(&[0; 6], 0, &[]).sense, LUNS_CHANGED);
    assert_eq!(two.command(&[0; 6], 0, &[]).status, 0);
    assert_eq!(first_byte(&mut two, lun_bytes(1)), None);
    for number in 0..3 {
        one.lun = lun_bytes(number);
        assert_eq!(one.command(&[0; 6], 0, &[]).status, 0);
    }
    // Write protection comes and goes under the session.
    mask(&server, &[(IQN, 1, &[(ONE, 1, true)])]);
    one.lun = lun_bytes(1);
    assert_eq!(one.write(0, &[1; 512]).sense, Some(0x2a01));
    assert_eq!(one.write(0, &[1; 512]).sense, Some(0x2700));
    mask(&server, &[]);
    assert_eq!(one.write(0, &[1; 512]).sense, Some(0x2a01));
    assert_eq!(one.write(0, &[0xd1; 512]).status, 0);
    // Another number for the same unit keeps the nexus; the list is another.
    two.lun = lun_bytes(2);
    two.ready();
    mask(&server, &[(IQN, 2, &[(TWO, 7, false)])]);
    assert_eq!(luns(&mut two), [lun_bytes(0), lun_bytes(1), lun_bytes(7)]);
    assert_eq!(first_byte(&mut two, lun_bytes(7)), Some(0xd2));
}

#[test]
fn a_write_whose_data_comes_after_its_lun_was_taken_away_is_refused() {
    let server = serve_three();
    let mut peer = login(&server, ONE, 2);
    peer.ready();
    let command = {
        let mut command = peer.scsi(&cdb_10(0x2a, 8, 512), 512, &[1]);
        command.is_final = true;
        command
    };
    peer.send(&Request::ScsiCommand(command), &[]);
    let Response::R2t { ttt, .. } = peer.receive().unwrap().response else { panic!("no R2T") };
    mask(&server, &[(IQN, 0, &[(TWO, 0, false)])]);
    assert_eq!(first_byte(&mut peer, lun_bytes(0)), None);
    let data_out = DataOut {
        is_final: true,
        lun: [0; 8],
        itt: command.itt,
        ttt,
        exp_stat_sn: 0,
        data_sn: 0,
        offset_bytes: 0,
    };
    peer.send(&Request::DataOut(data_out), &[0xee; 512]);
    assert_eq!(peer.end_of(command.itt).sense, Some(0x2500));
    let mut two = login(&server, TWO, 2);
    two.ready();
    assert_ne!(two.read(8, 512).data, [0xee; 512]);
}

#[test]
fn who_may_only_read_does_not_stop_or_protect_the_unit_for_others() {
    let server = serve_three();
    mask(&server, &[(IQN, 0, &[(ONE, 0, true), (TWO, 0, false)])]);
    let mut reader = login(&server, ONE, 2);
    let mut writer = login(&server, TWO, 2);
    reader.ready();
    writer.ready();
    let stop = [0x1b, 0, 0, 0, 0, 0];
    let protect = [0, 0, 0, 0, 0x0a, 0x0a, 0, 0, 0x08, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(reader.command(&stop, 0, &[]).sense, Some(0x2700));
    let mode_select = [0x15, 0x10, 0, 0, protect.len() as u8, 0];
    assert_eq!(reader.command(&mode_select, 0, &protect).sense, Some(0x2700));
    assert_eq!(writer.write(0, &[5; 512]).status, 0);
}

#[test]
fn a_target_that_is_hidden_altogether_is_neither_told_of_nor_logged_in_to() {
    let server = serve_three();
    mask(&server, &[(OTHER, 0, &[(ONE, 0, false)])]);
    assert_eq!(try_login(&server, ONE, OTHER, 2).1, 0);
    assert_eq!(try_login(&server, TWO, OTHER, 2).1, 0x0202);
    for (initiator, expected) in [(ONE, &[OTHER, IQN][..]), (TWO, &[IQN])] {
        let mut peer = Peer::connect(server.address());
        assert_eq!(peer.login(&[("InitiatorName", initiator), ("SessionType", "Discovery")]), 0);
        let request = TextRequest {
            immediate: true,
            is_final: true,
            continues: false,
            lun: [0; 8],
            itt: 5,
            ttt: RESERVED_TAG,
            cmd_sn: peer.cmd_sn,
            exp_stat_sn: 0,
        };
        for (asked, expected) in [("All", expected), (OTHER, &expected[..expected.len() - 1])] {
            peer.send(&Request::Text(request), format!("SendTargets={asked}\0").as_bytes());
            let data = peer.receive().unwrap().data;
            let pairs: Vec<_> = text::pairs(&data).map(Result::unwrap).collect();
            let names: Vec<_> =
                pairs.iter().filter(|(key, _)| *key == "TargetName").map(|(_, name)| *name).collect();
            assert_eq!(names, expected, "{initiator} {asked}");
        }
    }
}
