//! Numbers and sizes: R2Ts side by side, windows, residuals, and what is said when a target goes.

use crate::peer::{cdb_10, pattern, Peer};
use crate::{serve, IQN};
use playhead_target::iscsi::Limits;
use playhead_wire::iscsi::request::{DataOut, NopOut, Request};
use playhead_wire::iscsi::response::{DataIn, Residual, Response};
use playhead_wire::iscsi::RESERVED_TAG;
use std::sync::atomic::Ordering;
use std::time::Duration;

fn data_out(itt: u32, ttt: u32, offset: usize) -> Request {
    let offset_bytes = offset as u32;
    Request::DataOut(DataOut {
        is_final: true,
        lun: [0; 8],
        itt,
        ttt,
        exp_stat_sn: 0,
        data_sn: 0,
        offset_bytes,
    })
}

/// The next R2T: its tag, number, offset and length.
fn r2t(peer: &mut Peer) -> (u32, u32, usize, usize) {
    match peer.receive().unwrap().response {
        Response::R2t { ttt, r2t_sn, offset_bytes, desired_bytes, .. } => {
            (ttt, r2t_sn, offset_bytes as usize, desired_bytes as usize)
        }
        other => panic!("not an R2T: {other:?}"),
    }
}

#[test]
fn as_many_r2ts_are_outstanding_as_were_agreed_and_each_has_its_number() {
    for (offered, most) in [("1", 1), ("3", 3), ("16", 4)] {
        let (server, _disk) = serve(Limits::default());
        let more = [
            ("ImmediateData", "No"),
            ("MaxBurstLength", "4096"),
            ("FirstBurstLength", "4096"),
            ("MaxOutstandingR2T", offered),
        ];
        let mut peer = Peer::session(server.address(), IQN, &more);
        let data = pattern(8 * 4096, 5);
        let command = peer.scsi(&cdb_10(0x2a, 0, data.len()), data.len() as u32, &data);
        peer.send(&Request::ScsiCommand(command), &[]);
        let mut asking = Vec::new();
        for number in 0..most {
            let asked = r2t(&mut peer);
            assert_eq!((asked.1, asked.2, asked.3), (number, number as usize * 4096, 4096));
            asking.push(asked);
        }
        // No more of them before one is answered: a NOP overtakes nothing.
        let nop = NopOut {
            immediate: true,
            lun: [0; 8],
            itt: 0x55,
            ttt: RESERVED_TAG,
            cmd_sn: peer.cmd_sn,
            exp_stat_sn: 0,
        };
        peer.send(&Request::NopOut(nop), b"ping");
        let echo = peer.receive().unwrap();
        assert_eq!(
            (echo.response, &echo.data[..]),
            (Response::NopIn { lun: [0; 8], itt: 0x55, ttt: RESERVED_TAG }, &b"ping"[..])
        );
        for number in 0..8 {
            let (ttt, _, at, len) = asking.remove(0);
            peer.send(&data_out(command.itt, ttt, at), &data[at..at + len]);
            if number + most < 8 {
                let asked = r2t(&mut peer);
                assert_eq!(asked.1, number + most);
                asking.push(asked);
            }
        }
        let Response::Scsi { status: 0, exp_data_sn: 8, residual: Residual::None, .. } =
            peer.receive().unwrap().response
        else {
            panic!("the eight R2Ts are counted")
        };
        assert!(peer.read(0, data.len()).data == data);
    }
}

/// READ(10) or WRITE(10) of `blocks` announced as `expected_bytes` in the given directions; the residual and the sense.
fn residual(
    peer: &mut Peer,
    opcode: u8,
    blocks: usize,
    expected_bytes: u32,
    directions: (bool, bool),
) -> (Residual, Option<u16>) {
    let mut command = peer.scsi(&cdb_10(opcode, 0, blocks * 512), expected_bytes, &[]);
    (command.read, command.write) = directions;
    let data = pattern(if directions.1 { expected_bytes as usize } else { 0 }, 1);
    peer.send(&Request::ScsiCommand(command), &data);
    loop {
        let received = peer.receive().unwrap();
        match received.response {
            Response::DataIn(DataIn { status: None, .. }) => {}
            Response::DataIn(DataIn { status: Some(0), residual, .. }) => return (residual, None),
            Response::Scsi { status, residual, .. } => {
                let sense = (status != 0).then(|| u16::from_be_bytes([received.data[14], received.data[15]]));
                return (residual, sense);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn residuals_say_what_was_left_over_either_way() {
    use Residual::{None as Nothing, Overflow, Underflow};
    let (server, _disk) = serve(Limits::default());
    let mut peer = Peer::session(server.address(), IQN, &[("FirstBurstLength", "65536")]);
    let (read, write, neither, both) = ((true, false), (false, true), (false, false), (true, true));
    for (opcode, blocks, expected, directions, answer) in [
        (0x28, 2, 1024, read, (Nothing, None)),
        (0x28, 2, 2048, read, (Underflow(1024), None)),
        (0x28, 2, 512, read, (Overflow(512), None)),
        (0x28, 2, 700, read, (Overflow(324), None)),
        (0x28, 2, 0, neither, (Overflow(1024), None)),
        (0x28, 0, 512, read, (Underflow(512), None)),
        (0x2a, 2, 1024, write, (Nothing, None)),
        (0x2a, 2, 2048, write, (Underflow(1024), None)),
        (0x2a, 2, 512, write, (Overflow(512), None)),
        (0x2a, 1, 200, write, (Overflow(312), Some(0x0e03))),
        (0x2a, 2, 0, neither, (Overflow(1024), None)),
        // No command moves data both ways.
        (0x28, 2, 1024, both, (Underflow(1024), Some(0x0e03))),
        (0x2a, 2, 1024, both, (Underflow(1024), Some(0x0e03))),
    ] {
        let got = residual(&mut peer, opcode, blocks, expected, directions);
        assert_eq!(got, answer, "{opcode:#x} of {blocks} blocks announced as {expected}");
    }
}

#[test]
fn the_window_is_as_wide_as_promised_and_what_is_beyond_it_is_not_there() {
    let (server, disk) = serve(Limits { tasks_max: 4, ..Limits::default() });
    let mut peer = Peer::session(server.address(), IQN, &[]);
    disk.flush_gate.store(true, Ordering::SeqCst);
    let mut under_way = Vec::new();
    for _ in 0..4 {
        let command = peer.scsi(&cdb_10(0x35, 0, 0), 0, &[]);
        peer.send(&Request::ScsiCommand(command), &[]);
        under_way.push(command.itt);
    }
    // The fifth finds the window closed: ignored, and welcome again later under the same number.
    let fifth = peer.scsi(&[0; 6], 0, &[]);
    peer.send(&Request::ScsiCommand(fifth), &[]);
    std::thread::sleep(Duration::from_millis(50));
    disk.flush_gate.store(false, Ordering::SeqCst);
    peer.all_good(under_way);
    peer.send(&Request::ScsiCommand(fifth), &[]);
    assert_eq!(peer.end_of(fifth.itt).status, 0);
    // An old number is ignored.
    let mut old = peer.scsi(&[0; 6], 0, &[]);
    peer.cmd_sn -= 1;
    old.cmd_sn = old.cmd_sn.wrapping_sub(2);
    peer.send(&Request::ScsiCommand(old), &[]);
    peer.ready();
}

#[test]
fn a_target_that_goes_says_so_to_its_sessions() {
    let (server, _disk) = serve(Limits::default());
    let mut peer = Peer::session(server.address(), IQN, &[("DefaultTime2Wait", "3")]);
    server.remove_target(IQN, Duration::from_secs(5)).unwrap();
    let received = peer.receive().unwrap();
    assert_eq!(received.response, Response::Async { event: 3, parameters: [0, 3, 0] });
    assert!(peer.ends());
}
