//! SANITIZE and FORMAT UNIT through a session.

use crate::device::{is_good, start, BLOCK};
use crate::peer::{pattern, Peer};
use crate::IQN;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

fn sanitize(flags: u8, list: &[u8]) -> [u8; 10] {
    [0x48, flags, 0, 0, 0, 0, 0, 0, list.len() as u8, 0]
}

/// Waits until the unit takes commands again. Returns the sense of the last refusal.
fn wait_until_over(peer: &mut Peer) -> Option<u16> {
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut last = None;
    loop {
        let ended = peer.command(&[0; 6], 0, &[]);
        if ended.status == 0 {
            return last;
        }
        assert!(Instant::now() < deadline, "still {ended:?}");
        last = ended.sense;
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn an_erase_leaves_zeros_that_are_not_mapped_in_one_change() {
    let (_server, disk, mut peer) = start();
    for flags in [0x02, 0x03, 0x82] {
        assert!(is_good(&peer.write(0, &pattern(BLOCK, 1))));
        assert!(is_good(&peer.write(8191, &pattern(BLOCK, 2))));
        let (batches, flushes) = (disk.batches.load(Ordering::Relaxed), disk.flushes.load(Ordering::Relaxed));
        assert!(is_good(&peer.command(&sanitize(flags, &[]), 0, &[])));
        assert_eq!(disk.batches.load(Ordering::Relaxed), batches + 1);
        assert_eq!(disk.flushes.load(Ordering::Relaxed), flushes + 1, "it is on the medium");
        for lba in [0, 8191] {
            assert_eq!(peer.read(lba, BLOCK).data, [0; BLOCK]);
        }
        let status = peer.command(&[0x9e, 0x12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0], 64, &[]).data;
        assert_eq!(status[16..21], [0, 0, 0x20, 0, 1], "8,192 blocks, deallocated");
    }
}

#[test]
fn an_overwrite_writes_the_pattern_everywhere_and_bars_others_meanwhile() {
    let (server, disk, mut peer) = start();
    assert!(is_good(&peer.write(9, &pattern(BLOCK, 1))));
    disk.flush_gate.store(true, Ordering::SeqCst);
    // Three passes of five bytes, every other one inverted; GOOD at once.
    let list = [0x83, 0, 0, 5, 1, 2, 3, 4, 5];
    assert!(is_good(&peer.command(&sanitize(0x81, &list), 0, &list)));
    let mut other = Peer::connect(server.address());
    other.isid[5] = 9;
    assert_eq!(other.login(&crate::peer::keys(IQN, &[])), 0);
    assert_eq!(other.command(&[0; 6], 0, &[]).sense, Some(0x2900));
    for peer in [&mut peer, &mut other] {
        assert_eq!(peer.command(&[0; 6], 0, &[]).sense, Some(0x041b));
        assert_eq!(peer.read(0, BLOCK).sense, Some(0x041b));
        assert_eq!(peer.write(0, &[1; BLOCK]).sense, Some(0x041b));
        assert_eq!(peer.command(&sanitize(2, &[]), 0, &[]).sense, Some(0x041b));
        // Not even what is wrong with a command is looked for.
        assert_eq!(peer.command(&[0x1b, 1, 0, 0, 0x12, 0], 0, &[]).sense, Some(0x041b));
        assert_eq!(peer.command(&[0xff; 6], 0, &[]).sense, Some(0x2000));
        assert_eq!(peer.command(&sanitize(4, &[]), 0, &[]).sense, Some(0x2400));
        assert!(is_good(&peer.command(&[0x12, 0, 0, 0, 96, 0], 96, &[])), "INQUIRY");
        let sense = peer.command(&[0x03, 0, 0, 0, 18, 0], 18, &[]).data;
        assert_eq!((sense[2], sense[12], sense[13], sense[15]), (2, 0x04, 0x1b, 0x80), "progress");
    }
    disk.flush_gate.store(false, Ordering::SeqCst);
    wait_until_over(&mut peer);
    for lba in [0, 9, 8191] {
        let block: Vec<u8> = [1, 2, 3, 4, 5].into_iter().cycle().take(BLOCK).collect();
        assert_eq!(peer.read(lba, BLOCK).data, block);
    }
    // Waiting for the end instead.
    assert!(is_good(&peer.command(&sanitize(0x01, &list), 0, &list)));
    assert!(is_good(&peer.command(&[0; 6], 0, &[])));
}

#[test]
fn a_failed_overwrite_bars_until_it_is_left_or_done_again() {
    let (_server, disk, mut peer) = start();
    let list = [0x01, 0, 0, 1, 0xee];
    for (unrestricted, left) in [(0x20, 0), (0x00, 2)] {
        disk.flush_fails.store(true, Ordering::SeqCst);
        let failed = peer.command(&sanitize(0x01 | unrestricted, &list), 0, &list);
        assert_eq!((failed.status, failed.sense), (2, Some(0x3103)));
        disk.flush_fails.store(false, Ordering::SeqCst);
        assert_eq!(peer.command(&[0; 6], 0, &[]).sense, Some(0x3103));
        assert_eq!(peer.command(&sanitize(0x1f, &[]), 0, &[]).status, left);
        if left != 0 {
            assert!(is_good(&peer.command(&sanitize(0x02, &[]), 0, &[])));
        }
        assert!(is_good(&peer.command(&[0; 6], 0, &[])));
    }
}

#[test]
fn what_cannot_be_sanitized_is_refused_and_changes_nothing() {
    let (_server, disk, mut peer) = start();
    assert!(is_good(&peer.write(0, &[5; BLOCK])));
    let before = disk.batches.load(Ordering::Relaxed);
    let list = [0x01, 0, 0, 1, 0xee];
    for (cdb, data) in [
        (sanitize(0x01, &[0; 4]), &[1, 0, 0, 1][..]),
        (sanitize(0x04, &[]), &[]),
        (sanitize(0x02, &list), &list),
        (sanitize(0x01, &list), &[0, 0, 0, 1, 0xee]),
    ] {
        let ended = peer.command(&cdb, 0, data);
        assert!(matches!(ended.sense, Some(0x2400 | 0x2600)), "{cdb:?} {ended:?}");
    }
    disk.read_only.store(true, Ordering::Relaxed);
    assert_eq!(peer.command(&sanitize(0x02, &[]), 0, &[]).sense, Some(0x2700));
    assert_eq!(peer.command(&[0x04, 0, 0, 0, 0, 0], 0, &[]).sense, Some(0x2700));
    assert_eq!(disk.batches.load(Ordering::Relaxed), before);
}

/// Hears what a unit that is new has to tell.
fn hear_attentions(peer: &mut Peer) {
    while matches!(peer.command(&[0; 6], 0, &[]).sense, Some(0x2900 | 0x3f0e)) {}
}

#[test]
fn an_overwrite_ends_with_its_unit_which_remembers_that() {
    let (server, disk, mut peer) = start();
    let list = [0x1f, 0, 0, 1, 0xee];
    // With AUSE the failure may be left, without it has to be made good.
    for (unrestricted, left) in [(0x20, 0), (0x00, 2)] {
        let flushes = disk.flushes.load(Ordering::Relaxed);
        disk.flush_gate.store(true, Ordering::SeqCst);
        assert!(is_good(&peer.command(&sanitize(0x81 | unrestricted, &list), 0, &list)));
        while disk.flushes.load(Ordering::Relaxed) == flushes {
            std::thread::sleep(Duration::from_millis(1)); // until it is at work
        }
        server.remove_lun(IQN, 0, Duration::from_secs(10)).unwrap();
        let at_removal = disk.batches.load(Ordering::Relaxed);
        // Back while its thread has not noticed yet: nothing else than later.
        server.set_lun(IQN, 0, disk.clone()).unwrap();
        hear_attentions(&mut peer);
        assert_eq!(peer.command(&[0; 6], 0, &[]).sense, Some(0x041b));
        server.remove_lun(IQN, 0, Duration::from_secs(10)).unwrap();
        disk.flush_gate.store(false, Ordering::SeqCst);
        server.set_lun(IQN, 0, disk.clone()).unwrap();
        hear_attentions(&mut peer);
        while peer.command(&[0; 6], 0, &[]).sense == Some(0x041b) {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(peer.write(0, &[1; BLOCK]).sense, Some(0x3103));
        assert!(disk.batches.load(Ordering::Relaxed) <= at_removal + 1, "it does not go on by itself");
        // However often it comes and goes.
        server.remove_lun(IQN, 0, Duration::from_secs(10)).unwrap();
        server.set_lun(IQN, 0, disk.clone()).unwrap();
        hear_attentions(&mut peer);
        assert_eq!(peer.command(&[0; 6], 0, &[]).sense, Some(0x3103));
        assert_eq!(peer.command(&sanitize(0x1f, &[]), 0, &[]).status, left);
        if left != 0 {
            assert!(is_good(&peer.command(&sanitize(0x01, &list), 0, &list)));
        }
        assert!(is_good(&peer.command(&[0; 6], 0, &[])));
    }
}

#[test]
fn what_replaces_the_contents_ends_a_failure_and_an_overwrite() {
    let (server, disk, mut peer) = start();
    let list = [0x01, 0, 0, 1, 0xee];
    disk.flush_fails.store(true, Ordering::SeqCst);
    assert_eq!(peer.command(&sanitize(0x01, &list), 0, &list).sense, Some(0x3103));
    disk.flush_fails.store(false, Ordering::SeqCst);
    server.contents_changed(IQN).unwrap();
    peer.ready();
    // Many passes, so that it is still under way; the rest is not written over what is there now.
    let list = [0x1f, 0, 0, 1, 0xee];
    disk.flush_gate.store(true, Ordering::SeqCst);
    assert!(is_good(&peer.command(&sanitize(0x81, &list), 0, &list)));
    server.contents_changed(IQN).unwrap();
    let batches = disk.batches.load(Ordering::Relaxed);
    disk.flush_gate.store(false, Ordering::SeqCst);
    assert!(matches!(wait_until_over(&mut peer), None | Some(0x041b | 0x2800)));
    assert!(disk.batches.load(Ordering::Relaxed) <= batches + 1);
}

#[test]
fn format_unit_leaves_zeros() {
    let (_server, _disk, mut peer) = start();
    assert!(is_good(&peer.write(7, &pattern(BLOCK, 1))));
    assert!(is_good(&peer.command(&[0x04, 0x10, 0, 0, 0, 0], 0, &[0, 0x82, 0, 0])));
    assert_eq!(peer.read(7, BLOCK).data, [0; BLOCK]);
    assert_eq!(peer.command(&[0x04, 0x10, 0, 0, 0, 0], 0, &[0, 0, 0, 8]).sense, Some(0x2600));
    assert_eq!(peer.command(&[0x04, 0x80, 0, 0, 0, 0], 0, &[]).sense, Some(0x2400));
}
