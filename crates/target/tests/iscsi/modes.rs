//! Mode pages, unit attentions and what a unit says of its commands, through two sessions.

use crate::device::{is_good, start, BLOCK};
use crate::peer::{keys, Ended, Peer};
use crate::IQN;
use playhead_target::iscsi::Server;
use playhead_target::scsi::{Offload, Policy, Rule};
use playhead_wire::iscsi::request::{function, Request, TaskManagement};
use playhead_wire::iscsi::RESERVED_TAG;
use playhead_wire::scsi::opcodes;

/// A further session, past its power on.
fn another(server: &Server) -> Peer {
    let mut peer = Peer::connect(server.address());
    peer.isid[5] = 2;
    assert_eq!(peer.login(&keys(IQN, &[])), 0);
    peer.ready();
    peer
}

fn ready(peer: &mut Peer) -> Ended {
    peer.command(&[0; 6], 0, &[])
}

/// A page by MODE SENSE(6), without its header.
fn page(peer: &mut Peer, control: u8, page: u8, subpage: u8) -> Ended {
    let mut ended = peer.command(&[0x1a, 0x08, control << 6 | page, subpage, 255, 0], 255, &[]);
    ended.data.drain(..ended.data.len().min(4));
    ended
}

/// MODE SELECT(6) of one page.
fn select(peer: &mut Peer, flags: u8, page: &[u8]) -> Ended {
    let mut list = vec![0; 4];
    list.extend_from_slice(page);
    peer.command(&[0x15, flags, 0, 0, list.len() as u8, 0], 0, &list)
}

#[test]
fn mode_parameters_change_for_all_and_the_others_are_told() {
    let (server, _disk, mut peer) = start();
    let mut other = another(&server);
    let mut control = page(&mut peer, 0, 0x0a, 0).data;
    control[4] |= 0x08; // SWP
    assert!(is_good(&select(&mut peer, 0x10, &control)));
    assert!(is_good(&ready(&mut peer)), "who did it knows");
    assert_eq!(ready(&mut other).sense, Some(0x2a01));
    for peer in [&mut peer, &mut other] {
        assert_eq!(peer.write(0, &[1; BLOCK]).sense, Some(0x2702));
        assert_eq!(peer.command(&[0x1a, 0x08, 0x3f, 0, 255, 0], 255, &[]).data[2] & 0x80, 0x80, "WP");
    }
    // The same again changes nothing, so nobody is told.
    assert!(is_good(&select(&mut peer, 0x10, &control)));
    assert!(is_good(&ready(&mut other)));
}

#[test]
fn nothing_is_saved_and_it_says_so() {
    let (_server, _disk, mut peer) = start();
    let caching = page(&mut peer, 0, 0x08, 0).data;
    assert_eq!(caching[0] & 0x80, 0, "PS");
    assert_eq!(select(&mut peer, 0x11, &caching).sense, Some(0x2400), "SP");
    assert_eq!(page(&mut peer, 3, 0x08, 0).sense, Some(0x3900), "saved values");
    let mut changed = caching.clone();
    changed[2] &= !0x04;
    assert!(is_good(&select(&mut peer, 0x10, &changed)));
    assert_eq!(page(&mut peer, 0, 0x08, 0).data, changed);
    assert_eq!(page(&mut peer, 2, 0x08, 0).data, caching, "defaults");
    assert_eq!(page(&mut peer, 1, 0x08, 0).data[2], 0x04, "changeable");
}

#[test]
fn a_reset_is_told_to_all_before_anything_less() {
    let (server, _disk, mut peer) = start();
    let mut other = another(&server);
    server.contents_changed(IQN).unwrap();
    let reset = Request::TaskManagement(TaskManagement {
        immediate: true,
        function: function::LOGICAL_UNIT_RESET,
        lun: [0; 8],
        itt: 0x7000,
        referenced_itt: RESERVED_TAG,
        cmd_sn: peer.cmd_sn,
        exp_stat_sn: 0,
        ref_cmd_sn: 0,
        exp_data_sn: 0,
    });
    peer.send(&reset, &[]);
    peer.receive().expect("its answer");
    for peer in [&mut peer, &mut other] {
        assert_eq!(ready(peer).sense, Some(0x2903));
        // REQUEST SENSE takes the next one as data.
        let sense = peer.command(&[0x03, 0, 0, 0, 18, 0], 18, &[]).data;
        assert_eq!((sense[2], sense[12]), (0x06, 0x28));
        assert!(is_good(&ready(peer)));
    }
}

fn report(peer: &mut Peer, options: u8, code: u8, action: u8) -> Ended {
    let cdb = [0xa3, 0x0c, options, code, 0, action, 0, 0, 0x40, 0, 0, 0];
    peer.command(&cdb, 0x4000, &[])
}

#[test]
fn supported_commands_are_told_in_every_form() {
    let (_server, _disk, mut peer) = start();
    for (timeouts, bytes) in [(0, 8), (0x80, 20)] {
        let all = report(&mut peer, timeouts, 0, 0).data;
        assert_eq!(all.len(), 4 + opcodes::SUPPORTED.len() * bytes);
        assert_eq!(all[..4], ((all.len() - 4) as u32).to_be_bytes());
        for (given, known) in all[4..].chunks(bytes).zip(opcodes::SUPPORTED) {
            assert_eq!((given[0], usize::from(given[7])), (known.code, known.usage.len()));
            assert_eq!(given[5] & 1 != 0, known.service_action.is_some(), "SERVACTV");
        }
    }
    for known in opcodes::SUPPORTED {
        let options = if known.service_action.is_some() { 2 } else { 1 };
        let action = known.service_action.unwrap_or(0) as u8;
        for options in [options, 3] {
            let one = report(&mut peer, options, known.code, action).data;
            assert_eq!((one[1], usize::from(one[3])), (0x03, known.usage.len()), "{:#x}", known.code);
            assert_eq!(&one[4..], known.usage);
        }
        assert_eq!(report(&mut peer, 3 - options, known.code, action).sense, Some(0x2400), "{known:x?}");
    }
    assert_eq!(report(&mut peer, 1, 0x84 ^ 0xff, 0).data, [0, 1, 0, 0], "not supported");
    assert_eq!(report(&mut peer, 2, 0x48, 0x09).data, [0, 1, 0, 0]);
    assert_eq!(report(&mut peer, 4, 0, 0).sense, Some(0x2400));
}

#[test]
fn what_policy_rejects_is_neither_listed_nor_done() {
    let (server, _disk, mut peer) = start();
    let reject = |offload| Rule { lun: None, initiator: None, offload, support: false };
    server.set_policy(Policy::new(Offload::ALL.map(reject)));
    peer.ready();
    let listed = |peer: &mut Peer, code: u8| {
        report(peer, 0, 0, 0).data[4..].chunks(8).any(|command| command[0] == code)
    };
    for (code, cdb_bytes) in [(0x89u8, 16), (0x41, 10), (0x93, 16), (0x42, 10)] {
        assert!(!listed(&mut peer, code), "{code:#x}");
        let mut cdb = vec![0; cdb_bytes];
        cdb[0] = code;
        assert_eq!(peer.command(&cdb, 0, &[]).sense, Some(0x2000), "{code:#x}");
    }
    assert!(listed(&mut peer, 0x8b) && listed(&mut peer, 0x48));
    let inquiry = peer.command(&[0x12, 0, 0, 0, 96, 0], 96, &[]).data;
    assert_eq!(inquiry[5] & 0x08, 0, "3PC");
}

#[test]
fn stopping_flushes_unless_told_not_to_and_power_conditions_are_not_there() {
    use std::sync::atomic::Ordering;
    let (_server, disk, mut peer) = start();
    let flushes = || disk.flushes.load(Ordering::Relaxed);
    for (flags, byte_4, flushed) in [(0, 0x00, 1), (1, 0x00, 1), (0, 0x04, 0)] {
        let before = flushes();
        assert!(is_good(&peer.command(&[0x1b, flags, 0, 0, byte_4, 0], 0, &[])));
        assert_eq!(flushes(), before + flushed);
        assert_eq!(ready(&mut peer).sense, Some(0x0402));
        assert!(is_good(&peer.command(&[0x1b, 0, 0, 0, 1, 0], 0, &[])));
        assert!(is_good(&ready(&mut peer)));
    }
    for refused in [0x10, 0x20, 0x30, 0x02] {
        assert_eq!(peer.command(&[0x1b, 0, 0, 0, refused, 0], 0, &[]).sense, Some(0x2400));
    }
}
