//! The array goes away and comes back.

use crate::{eventually, House, ARRAY_IQN, NUMBER};
use playhead_target::fabric::Identity;
use playhead_target::iscsi::{Limits, Server};
use playhead_wire::iscsi::request::Request;
use std::sync::atomic::Ordering;
use std::time::Duration;

#[test]
fn hosts_are_told_to_wait_and_go_on_when_it_is_back_and_what_was_in_flight_is_read_back() {
    let mut house = House::new();
    let mut host = house.host();
    assert_eq!(host.write(0, &[1; 512]).status, 0);
    // In flight when it dies.
    house.disk.submit_gate.store(true, Ordering::SeqCst);
    let request = host.scsi(&crate::peer::cdb_10(0x2a, 8, 512), 512, &[2; 512]);
    host.send(&Request::ScsiCommand(request), &[2; 512]);
    eventually(|| house.disk.submits_waiting.load(Ordering::SeqCst) == 1, "the write is at the array");
    let address = house.array.address();
    let disk = house.disk.clone();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Its thread is in the disk: it must get out for the stop to end.
            std::thread::sleep(Duration::from_millis(100));
            disk.submit_gate.store(false, Ordering::SeqCst);
        });
        house.array.stop(Duration::ZERO);
    });
    let ended = host.end_of(request.itt);
    assert!(ended.status == 0 || (ended.status, ended.sense) == (2, Some(0x0800)), "{ended:?}");
    // Not sent: BUSY, for a while.
    let ended = host.write(16, &[3; 512]);
    assert_eq!(ended.status, 0x08, "{ended:?}");
    // The extents of the lost write stay taken: the array might execute it yet.
    assert!(house.replica.taken() <= 1);
    house.array = Server::bind(address, Limits::default()).unwrap();
    house.array.add_target(ARRAY_IQN).unwrap();
    house.array.set_lun(ARRAY_IQN, NUMBER, house.disk.clone()).unwrap();
    eventually(|| house.replica.taken() == 0, "the lost write is concluded");
    let mut status = 8;
    for _ in 0..200 {
        // BUSY, then the unit attention of a new nexus, then it is written.
        status = host.write(16, &[3; 512]).status;
        if status == 0 {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(status, 0);
    house.replica.resynchronise(house.lun.production());
    assert!(house.differences().is_empty());
}

#[test]
fn a_host_that_dies_with_a_write_in_flight_leaves_it_to_be_read_back() {
    let house = House::new();
    let mut host = house.host();
    house.disk.submit_gate.store(true, Ordering::SeqCst);
    let request = host.scsi(&crate::peer::cdb_10(0x2a, 8, 512), 512, &[2; 512]);
    host.send(&Request::ScsiCommand(request), &[2; 512]);
    eventually(|| house.disk.submits_waiting.load(Ordering::SeqCst) == 1, "the write is at the array");
    drop(host);
    std::thread::sleep(Duration::from_millis(50));
    eventually(|| house.replica.doubts.load(Ordering::SeqCst) == 1, "the replica is not in step");
    assert_eq!(house.replica.taken(), 1);
    house.disk.submit_gate.store(false, Ordering::SeqCst);
    eventually(|| house.replica.taken() == 0, "the lost write is concluded");
    assert_eq!(*house.replica.unknown.lock(), [(8, 1)]);
    house.replica.resynchronise(house.lun.production());
    assert!(house.differences().is_empty());
}

#[test]
fn an_array_that_ends_idle_sessions_is_read_all_the_same() {
    let limits = Limits {
        idle: Duration::from_millis(50),
        ping_answer: Duration::from_millis(50),
        ..Limits::default()
    };
    let house = House::of(Identity::Own, limits);
    let mut block = [1; 512];
    house.lun.production().read(5, &mut block).unwrap();
    eventually(|| house.array.sessions().is_empty(), "the array keeps an idle session");
    house.lun.production().read(5, &mut block).unwrap();
    assert_eq!(block, [0; 512]);
}
