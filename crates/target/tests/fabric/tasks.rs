//! Task management goes to the array, and ends what waits here.

use crate::peer::Peer;
use crate::{eventually, House};
use playhead_wire::iscsi::request::{Request, TaskManagement};
use playhead_wire::iscsi::response::Response;
use std::sync::atomic::Ordering;

fn send_write(host: &mut Peer, lba: u32, fill: u8) -> u32 {
    let request = host.scsi(&crate::peer::cdb_10(0x2a, lba, 512), 512, &[fill; 512]);
    host.send(&Request::ScsiCommand(request), &[fill; 512]);
    request.itt
}

fn manage(host: &mut Peer, function: u8, referenced_itt: u32) -> u32 {
    host.itt += 1;
    let request = TaskManagement {
        immediate: true,
        function,
        lun: [0; 8],
        itt: host.itt,
        referenced_itt,
        cmd_sn: host.cmd_sn,
        exp_stat_sn: 0,
        ref_cmd_sn: host.cmd_sn,
        exp_data_sn: 0,
    };
    host.send(&Request::TaskManagement(request), &[]);
    host.itt
}

fn managed(host: &mut Peer) -> (u32, u8) {
    match host.receive().expect("an answer").response {
        Response::TaskManagement { response, itt } => (itt, response),
        other => panic!("unexpected {other:?}"),
    }
}

#[test]
fn a_reset_ends_what_waits_here_and_at_the_array() {
    let house = House::new();
    let mut host = house.host();
    house.disk.submit_gate.store(true, Ordering::SeqCst);
    send_write(&mut host, 8, 1);
    eventually(|| house.disk.submits_waiting.load(Ordering::SeqCst) == 1, "the write is at the array");
    send_write(&mut host, 8, 2);
    eventually(|| house.replica.waits.load(Ordering::SeqCst) == 1, "the second waits here");
    let tag = manage(&mut host, 5, 0);
    std::thread::sleep(std::time::Duration::from_millis(50));
    house.disk.submit_gate.store(false, Ordering::SeqCst);
    let mut tags = Vec::new();
    // The array may have answered the first before it read of the reset.
    let answer = loop {
        match host.receive().expect("an answer").response {
            Response::TaskManagement { response, itt } => break (itt, response),
            Response::Scsi { itt, .. } => tags.push(itt),
            other => panic!("unexpected {other:?}"),
        }
    };
    assert_eq!(answer, (tag, 0));
    assert!(tags.len() <= 1);
    eventually(|| house.replica.taken() == 0, "nothing is under way");
    host.ready();
    house.replica.resynchronise(house.lun.production());
    assert!(house.differences().is_empty());
    assert_ne!(host.read(8, 512).data, [2; 512]);
}

/// Until the array says that a command is over it may execute it: read back before that, the replica would be wrong for good.
#[test]
fn a_reset_of_the_target_ends_nothing_that_the_array_has_not_ended() {
    let house = House::new();
    let mut host = house.host();
    house.disk.submit_gate.store(true, Ordering::SeqCst);
    send_write(&mut host, 8, 1);
    eventually(|| house.disk.submits_waiting.load(Ordering::SeqCst) == 1, "the write is at the array");
    let tag = manage(&mut host, 6, 0);
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert_eq!((house.replica.taken(), house.replica.unknown.lock().len()), (1, 0), "it is under way");
    house.disk.submit_gate.store(false, Ordering::SeqCst);
    loop {
        match host.receive().expect("an answer").response {
            Response::TaskManagement { response, itt } => break assert_eq!((response, itt), (0, tag)),
            Response::Scsi { .. } => {}
            other => panic!("unexpected {other:?}"),
        }
    }
    eventually(|| house.replica.taken() == 0, "nothing is under way");
    house.replica.resynchronise(house.lun.production());
    assert!(house.differences().is_empty());
}

#[test]
fn a_task_that_waits_here_is_aborted_here() {
    let house = House::new();
    let (mut a, mut b) = (house.other_host(1), house.other_host(2));
    house.disk.submit_gate.store(true, Ordering::SeqCst);
    let first = send_write(&mut a, 8, 1);
    eventually(|| house.replica.taken() == 1, "the first write is at the array");
    let second = send_write(&mut b, 8, 2);
    eventually(|| house.replica.waits.load(Ordering::SeqCst) == 1, "the second waits here");
    let tag = manage(&mut b, 1, second);
    assert_eq!(managed(&mut b), (tag, 0));
    house.disk.submit_gate.store(false, Ordering::SeqCst);
    a.all_good(vec![first]);
    assert_eq!(b.read(8, 512).data, [1; 512]);
    assert!(house.differences().is_empty());
}

/// UNMAP, whose result only the array knows: the host hears of its end when that has been read back, unless it has ended it itself.
#[test]
fn a_command_that_is_being_read_back_is_a_task_like_any_other() {
    let house = House::new();
    let mut host = house.host();
    let list = [&[0, 22, 0, 16, 0, 0, 0, 0][..], &[0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0, 0, 0]].concat();
    let unmap = |host: &mut Peer| {
        let request = host.scsi(&[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], 24, &list);
        host.send(&Request::ScsiCommand(request), &list);
        request.itt
    };
    let held = || house.replica.reading.lock().as_ref().map_or(0, Vec::len);
    *house.replica.reading.lock() = Some(Vec::new());
    let first = unmap(&mut host);
    eventually(|| held() == 1, "it is being read back");
    // Others are answered meanwhile.
    assert_eq!(host.read(100, 512).status, 0);
    let when_read = house.replica.reading.lock().as_mut().and_then(Vec::pop).unwrap();
    when_read(Ok(()));
    assert_eq!(host.end_of(first).status, 0);
    let second = unmap(&mut host);
    eventually(|| held() == 1, "it is being read back");
    let abort = manage(&mut host, 1, second);
    assert_eq!(managed(&mut host), (abort, 0));
    let when_read = house.replica.reading.lock().take().and_then(|mut held| held.pop()).unwrap();
    when_read(Ok(()));
    // No answer comes for the second: the next is that of a read.
    assert_eq!(host.read(100, 512).status, 0);
    let third = unmap(&mut host);
    assert_eq!(host.end_of(third).status, 0);
    // A session that ends does not wait for what is read back.
    *house.replica.reading.lock() = Some(Vec::new());
    unmap(&mut host);
    eventually(|| held() == 1, "it is being read back");
    drop(host);
    eventually(|| house.splitter.sessions().is_empty(), "the session is over");
    drop(house.replica.reading.lock().take());
    assert_eq!(house.replica.taken(), 0);
}
