//! Task management goes to the array, and ends what waits here.

use crate::peer::Peer;
use crate::{eventually, House};
use playhead_wire::iscsi::request::{DataOut, Request, TaskManagement};
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

fn send_with(host: &mut Peer, attribute: u8, lba: u32, fill: u8) -> u32 {
    let mut request = host.scsi(&crate::peer::cdb_10(0x2a, lba, 512), 512, &[fill; 512]);
    request.attribute = attribute;
    host.send(&Request::ScsiCommand(request), &[fill; 512]);
    request.itt
}

/// Tags of the next `count` answers, all of them GOOD.
fn good(host: &mut Peer, count: usize) -> Vec<u32> {
    let mut tags = Vec::new();
    while tags.len() < count {
        match host.receive().expect("an answer").response {
            Response::Scsi { itt, status, .. } => {
                assert_eq!(status, 0);
                tags.push(itt);
            }
            other => panic!("unexpected {other:?}"),
        }
    }
    tags
}

const SIMPLE: u8 = 1;
const ORDERED: u8 = 2;
const HEAD_OF_QUEUE: u8 = 3;

#[test]
fn an_ordered_command_goes_past_nothing_that_waits_here_and_nothing_goes_past_it() {
    let house = House::new();
    let (mut a, mut b, mut c) = (house.other_host(1), house.other_host(2), house.other_host(3));
    house.disk.submit_gate.store(true, Ordering::SeqCst);
    let gated = send_write(&mut a, 8, 1);
    eventually(|| house.replica.taken() == 1, "the first write is at the array");
    let waits = send_with(&mut b, SIMPLE, 8, 2);
    eventually(|| house.replica.waits.load(Ordering::SeqCst) == 1, "the second waits here");
    let ordered = send_with(&mut b, ORDERED, 100, 3);
    let after = send_with(&mut b, SIMPLE, 200, 4);
    // Another host's are in no order with it.
    let others = send_with(&mut c, ORDERED, 400, 6);
    let head = send_with(&mut b, HEAD_OF_QUEUE, 300, 5);
    eventually(|| house.replica.taken() == 3, "the head of the queue has gone past them");
    std::thread::sleep(std::time::Duration::from_millis(100));
    assert_eq!(house.replica.taken(), 3);
    house.disk.submit_gate.store(false, Ordering::SeqCst);
    a.all_good(vec![gated]);
    c.all_good(vec![others]);
    assert_eq!(good(&mut b, 4), [head, waits, ordered, after]);
    assert!(house.differences().is_empty());
}

#[test]
fn an_ordered_command_waits_for_the_data_of_one_that_came_before_it() {
    let house = House::new();
    let mut host = house.host();
    let mut first = host.scsi(&crate::peer::cdb_10(0x2a, 8, 512), 512, &[]);
    (first.attribute, first.read, first.write) = (SIMPLE, false, true);
    host.send(&Request::ScsiCommand(first), &[]);
    let ttt = match host.receive().expect("an answer").response {
        Response::R2t { ttt, .. } => ttt,
        other => panic!("unexpected {other:?}"),
    };
    let ordered = send_with(&mut host, ORDERED, 8, 3);
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert_eq!(house.replica.taken(), 0);
    let data = DataOut {
        is_final: true,
        lun: [0; 8],
        itt: first.itt,
        ttt,
        exp_stat_sn: 0,
        data_sn: 0,
        offset_bytes: 0,
    };
    host.send(&Request::DataOut(data), &[2; 512]);
    assert_eq!(good(&mut host, 2), [first.itt, ordered]);
    assert_eq!(host.read(8, 512).data, [3; 512]);
    assert!(house.differences().is_empty());
}

/// The array executes in order; what it did must be in the journal in that order too.
#[test]
fn an_ordered_command_waits_for_what_is_read_back() {
    let house = House::new();
    let mut host = house.host();
    let held = || house.replica.reading.lock().as_ref().map_or(0, Vec::len);
    *house.replica.reading.lock() = Some(Vec::new());
    let list = [&[0, 22, 0, 16, 0, 0, 0, 0][..], &[0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0, 0, 0]].concat();
    let unmap = host.scsi(&[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], 24, &list);
    host.send(&Request::ScsiCommand(unmap), &list);
    let simple = send_with(&mut host, SIMPLE, 100, 2);
    eventually(|| held() == 1, "it is being read back");
    assert_eq!(good(&mut host, 1), [simple]);
    let batches = house.disk.batches.load(Ordering::SeqCst);
    let ordered = send_with(&mut host, ORDERED, 200, 3);
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert_eq!(house.disk.batches.load(Ordering::SeqCst), batches);
    let when_read = house.replica.reading.lock().take().and_then(|mut held| held.pop()).unwrap();
    when_read(Ok(()));
    assert_eq!(good(&mut host, 2), [unmap.itt, ordered]);
    house.replica.resynchronise(house.lun.production());
    assert!(house.differences().is_empty());
}

/// What was aborted is never answered, also if it waits only for the journal to be durable.
#[test]
fn a_command_that_waits_for_the_journal_is_a_task_like_any_other() {
    let house = House::new();
    let mut host = house.host();
    let held = || house.replica.flushing.lock().as_ref().map_or(0, Vec::len);
    // ABORT TASK, ABORT TASK SET, LOGICAL UNIT RESET, I_T NEXUS RESET.
    for function in [1, 2, 5, 11] {
        *house.replica.flushing.lock() = Some(Vec::new());
        let mut cdb = crate::peer::cdb_10(0x2a, 8, 512);
        cdb[1] = 0x08;
        let request = host.scsi(&cdb, 512, &[function; 512]);
        host.send(&Request::ScsiCommand(request), &[function; 512]);
        eventually(|| held() == 1, "the journal is being made durable");
        let tag = manage(&mut host, function, request.itt);
        assert_eq!(managed(&mut host), (tag, 0), "{function}");
        house.replica.flushing.lock().take().into_iter().flatten().for_each(|done| done(Ok(())));
        // The next answer is another's.
        eventually_ready(&mut host);
        assert_eq!(host.read(8, 512).data, [function; 512]);
    }
    assert!(house.differences().is_empty());
}

/// Past attentions, and until the array is reached again.
fn eventually_ready(host: &mut Peer) {
    for _ in 0..1000 {
        let ended = host.command(&[0; 6], 0, &[]);
        match ended.status {
            0 => return,
            0x08 | 0x02 => std::thread::sleep(std::time::Duration::from_millis(10)),
            other => panic!("unexpected {other:#x}"),
        }
    }
    panic!("it is not ready");
}

#[test]
fn a_reset_of_the_nexus_ends_what_waits_here_and_what_is_at_the_array_without_a_word() {
    let house = House::new();
    let (mut host, other) = (house.other_host(1), house.other_host(2));
    house.disk.submit_gate.store(true, Ordering::SeqCst);
    send_write(&mut host, 8, 1);
    eventually(|| house.disk.submits_waiting.load(Ordering::SeqCst) == 1, "the write is at the array");
    send_write(&mut host, 8, 2);
    eventually(|| house.replica.waits.load(Ordering::SeqCst) == 1, "the second waits here");
    let tag = manage(&mut host, 11, 0);
    assert_eq!(managed(&mut host), (tag, 0));
    house.disk.submit_gate.store(false, Ordering::SeqCst);
    eventually_ready(&mut host);
    eventually(|| house.replica.taken() == 0, "nothing is under way");
    house.replica.resynchronise(house.lun.production());
    assert!(house.differences().is_empty());
    assert_ne!(host.read(8, 512).data, [2; 512]);
    drop(other);
}

/// A host that resets a LUN to take it over must not find anything of another host in it that was sent before.
#[test]
fn nothing_of_a_host_that_another_has_fenced_off_lands_afterwards() {
    for round in 0..10u8 {
        let house = House::new();
        let (mut a, mut b, mut c) = (house.other_host(1), house.other_host(2), house.other_host(3));
        house.disk.submit_gate.store(true, Ordering::SeqCst);
        send_write(&mut a, 8, 1);
        eventually(|| house.disk.submits_waiting.load(Ordering::SeqCst) == 1, "the write is at the array");
        for _ in 0..8 {
            send_write(&mut b, 8, 2);
        }
        eventually(|| house.replica.waits.load(Ordering::SeqCst) == 8, "the others wait here");
        let tag = manage(&mut c, 5, 0);
        std::thread::sleep(std::time::Duration::from_millis(5 * u64::from(round)));
        house.disk.submit_gate.store(false, Ordering::SeqCst);
        assert_eq!(managed(&mut c), (tag, 0));
        let landed = house.disk.batches.load(Ordering::SeqCst);
        eventually(|| house.replica.taken() == 0, "nothing is under way");
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert_eq!(house.disk.batches.load(Ordering::SeqCst), landed, "round {round}");
        house.replica.resynchronise(house.lun.production());
        assert!(house.differences().is_empty());
    }
}
