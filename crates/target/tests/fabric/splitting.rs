//! What changes data is in the journal when the host hears of it, in the array's order.

use crate::peer::{pattern, Peer};
use crate::{eventually, House};
use playhead_target::scsi::Offload;
use playhead_wire::iscsi::request::Request;
use std::sync::atomic::Ordering;

fn cdb_16(code: u8, flags: u8, lba: u64, count: u32) -> [u8; 16] {
    let mut cdb = [0; 16];
    (cdb[0], cdb[1]) = (code, flags);
    cdb[2..10].copy_from_slice(&lba.to_be_bytes());
    cdb[10..14].copy_from_slice(&count.to_be_bytes());
    cdb
}

#[test]
fn every_change_is_recorded_or_read_back() {
    let house = House::new();
    let mut host = house.host();
    let good = |ended: crate::peer::Ended| assert_eq!((ended.status, ended.sense), (0, None));
    for (i, len) in [512usize, 4096, 65_536].into_iter().enumerate() {
        good(host.write(i as u32 * 8, &pattern(len, i as u8)));
        assert!(house.differences().is_empty(), "a write of {len}");
    }
    good(host.command(&[0x0a, 0, 0, 9, 1, 0], 0, &[3; 512]));
    good(host.command(&cdb_16(0x8a, 0x08, 20, 2), 0, &[4; 1024]));
    assert_eq!(house.replica.flushes.load(Ordering::SeqCst), 1, "FUA");
    good(host.command(&cdb_16(0x8e, 0, 24, 2), 0, &[5; 1024]));
    good(host.command(&cdb_16(0x93, 0, 100, 700), 0, &[6; 512]));
    good(host.command(&cdb_16(0x93, 1, 200, 50), 0, &[]));
    let mut compare = cdb_16(0x89, 0, 100, 0);
    compare[13] = 1;
    good(host.command(&compare, 0, &[[6; 512], [7; 512]].concat()));
    assert!(house.differences().is_empty());
    assert!(house.replica.unknown.lock().is_empty());
    let miscompare = host.command(&compare, 0, &[[6; 512], [8; 512]].concat());
    assert_eq!((miscompare.status, miscompare.sense), (2, Some(0x1d00)));
    assert!(house.replica.unknown.lock().is_empty());
    // As Playhead itself counts: a comparison is served whatever it finds.
    let counts = house.splitter.offload_counts();
    let ats = counts.iter().find(|(_, line)| line.offload == Offload::Ats).map(|(_, line)| line.served);
    assert_eq!(ats, Some(2));
    // Not in the command: read back.
    good(host.command(&cdb_16(0x8b, 0, 100, 1), 0, &[0xf0; 512]));
    let unmap =
        [&[0, 22, 0, 16, 0, 0, 0, 0][..], &[0, 0, 0, 0, 0, 0, 0, 120, 0, 0, 0, 30, 0, 0, 0, 0]].concat();
    good(host.command(&[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], 0, &unmap));
    assert_eq!(*house.replica.unknown.lock(), [(100, 1), (120, 30)]);
    assert!(!house.differences().is_empty());
    house.replica.resynchronise(house.lun.production());
    assert!(house.differences().is_empty());
    // SYNCHRONIZE CACHE: both are safe.
    let before = (house.disk.flushes.load(Ordering::SeqCst), house.replica.flushes.load(Ordering::SeqCst));
    good(host.command(&[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0], 0, &[]));
    let after = (house.disk.flushes.load(Ordering::SeqCst), house.replica.flushes.load(Ordering::SeqCst));
    assert_eq!((after.0 - before.0, after.1 - before.1), (1, 1));
    assert_eq!(house.replica.taken(), 0);
}

#[test]
fn a_failure_of_the_array_is_passed_on_and_what_may_have_changed_is_read_back() {
    let house = House::new();
    let mut host = house.host();
    house.disk.broken.store(true, Ordering::SeqCst);
    let ended = host.write(40, &[1; 1024]);
    assert_eq!((ended.status, ended.sense), (2, Some(0x0c00)));
    assert_eq!(*house.replica.unknown.lock(), [(40, 2)]);
    house.disk.broken.store(false, Ordering::SeqCst);
    house.disk.read_only.store(true, Ordering::SeqCst);
    let ended = host.write(50, &[1; 1024]);
    assert_eq!((ended.status, ended.sense), (2, Some(0x2700)));
    assert_eq!(*house.replica.unknown.lock(), [(40, 2)]);
    assert_eq!(house.replica.taken(), 0);
}

#[test]
fn a_full_journal_stops_hosts_before_the_array_changes() {
    let house = House::new();
    let mut host = house.host();
    house.replica.full.store(true, Ordering::SeqCst);
    let ended = host.write(40, &[1; 512]);
    assert_eq!((ended.status, ended.sense), (2, Some(0x2707)));
    assert_eq!(house.disk.batches.load(Ordering::SeqCst), 0);
    assert_eq!(host.read(40, 512).data, [0; 512]);
}

#[test]
fn changes_that_overlap_are_in_the_journal_in_the_arrays_order() {
    let house = House::new();
    let (mut a, mut b) = (house.other_host(1), house.other_host(2));
    house.disk.submit_gate.store(true, Ordering::SeqCst);
    let send = |host: &mut Peer, fill: u8, lba: u32| {
        let request = host.scsi(&crate::peer::cdb_10(0x2a, lba, 1024), 1024, &[fill; 1024]);
        host.send(&Request::ScsiCommand(request), &[fill; 1024]);
        request.itt
    };
    let first = send(&mut a, 1, 10);
    eventually(|| house.replica.taken() == 1, "the first write is at the array");
    let second = send(&mut b, 2, 11);
    let third = send(&mut b, 3, 100);
    eventually(|| house.replica.waits.load(Ordering::SeqCst) == 1, "the second waits");
    eventually(|| house.replica.taken() == 2, "the third does not");
    house.disk.submit_gate.store(false, Ordering::SeqCst);
    a.all_good(vec![first]);
    b.all_good(vec![second, third]);
    assert!(house.differences().is_empty());
    assert_eq!(a.read(11, 512).data, [2; 512]);
}

#[test]
fn many_hosts_at_once_leave_equal_copies() {
    let house = House::new();
    std::thread::scope(|scope| {
        for id in 1..=3u8 {
            let mut host = house.other_host(id);
            scope.spawn(move || {
                let mut state = u64::from(id);
                for i in 0..150u8 {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let lba = (state >> 33) as u32 % 64;
                    let blocks = 1 + (state >> 50) as usize % 16;
                    let ended = host.write(lba, &vec![id * 64 + i % 64; blocks * 512]);
                    assert_eq!(ended.status, 0);
                }
            });
        }
    });
    assert!(house.differences().is_empty());
    assert_eq!((house.replica.taken(), house.replica.unknown.lock().len()), (0, 0));
}
