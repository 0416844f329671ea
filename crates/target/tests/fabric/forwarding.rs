//! What changes nothing goes through as it is, and answers tell the truth about the policy.

use crate::peer::{pattern, Peer};
use crate::{House, BLOCKS, IQN};
use playhead_target::fabric::Identity;
use playhead_target::lun::{Change, Lun};
use playhead_target::scsi::{Offload, Policy, Rule};

fn vpd(host: &mut Peer, page: u8) -> Vec<u8> {
    host.command(&[0x12, 1, page, 2, 0, 0], 512, &[]).data
}

#[test]
fn a_host_reads_what_the_array_has_and_hears_its_unit_attention() {
    let house = House::new();
    let data = pattern(1 << 20, 3);
    house.disk.submit(&[Change::Write { lba: 16, data: &data }]).unwrap();
    let mut host = Peer::connect(house.splitter.address());
    assert_eq!(
        host.login(&crate::peer::keys(IQN, &[("HeaderDigest", "CRC32C"), ("DataDigest", "CRC32C")])),
        0
    );
    // POWER ON, of the nexus between the host and the array.
    let first = host.command(&[0; 6], 0, &[]);
    assert_eq!((first.status, first.sense.map(|code| code >> 8)), (2, Some(0x29)));
    host.ready();
    assert!(host.read(16, 1 << 20).data == data);
    let beyond = host.read(BLOCKS as u32, 512);
    assert_eq!((beyond.status, beyond.sense), (2, Some(0x2100)));
    let capacity = host.command(&[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], 8, &[]);
    assert_eq!(capacity.data[..4], (BLOCKS as u32 - 1).to_be_bytes());
    // What the array does not know is the array's to refuse; what the splitter does not know, its own.
    assert_eq!(host.command(&[0xc1, 0, 0, 0, 0, 0, 0, 0, 0, 0], 0, &[]).sense, Some(0x2000));
    // The session with the array is the host's own.
    let sessions = house.array.sessions();
    assert!(sessions.iter().any(|s| s.initiator == "iqn.2026-01.org.example:peer"), "{sessions:?}");
    assert_eq!(house.lun.array().links().len(), 1);
}

#[test]
fn the_identity_is_the_arrays_or_a_new_one() {
    let (own, new) = (House::new(), House::with(Identity::New));
    let mut direct = Peer::connect(own.array.address());
    direct.lun = playhead_wire::iscsi::lun_bytes(crate::NUMBER);
    direct.isid[5] = 77;
    assert_eq!(direct.login(&crate::peer::keys(crate::ARRAY_IQN, &[])), 0);
    direct.ready();
    let (through, renamed) = (vpd(&mut own.host(), 0x83), vpd(&mut new.host(), 0x83));
    let theirs = vpd(&mut direct, 0x83);
    assert_eq!(through, theirs);
    assert_ne!(renamed[..24], theirs[..24]);
    assert_eq!(vpd(&mut new.host(), 0x80)[4..], *"07".repeat(16).as_bytes());
}

#[test]
fn reports_are_filtered_by_policy() {
    let house = House::new();
    let mut host = house.host();
    // 3PC, and the page of copies.
    let inquiry = |host: &mut Peer| host.command(&[0x12, 0, 0, 0, 96, 0], 96, &[]).data;
    assert_eq!(inquiry(&mut host)[5] & 0x08, 0x08);
    assert!(vpd(&mut host, 0x00).contains(&0x8f));
    let page = vpd(&mut host, 0x8f);
    assert_eq!(page.len(), 4 + usize::from(u16::from_be_bytes([page[2], page[3]])));
    let codes = |host: &mut Peer| {
        let all = host.command(&[0xa3, 0x0c, 0, 0, 0, 0, 0, 0, 0x20, 0, 0, 0], 8192, &[]).data;
        assert_eq!(all.len(), 4 + u32::from_be_bytes([all[0], all[1], all[2], all[3]]) as usize);
        let action = |code: &[u8]| if code[5] & 1 == 1 { code[3] } else { 0 };
        let told = |code: u8, action: u8| code == 0x84 && action == 8;
        assert!(!all[4..].chunks(8).any(|code| told(code[0], action(code))), "others' tokens");
        all[4..].chunks(8).map(|code| code[0]).collect::<Vec<u8>>()
    };
    let before = codes(&mut host);
    assert!(before.contains(&0x89) && before.contains(&0x42) && before.contains(&0x83));
    let reject = |offload| Rule { lun: None, initiator: None, offload, support: false };
    house.splitter.set_policy(Policy::new(Offload::ALL.map(reject)));
    assert_eq!(inquiry(&mut host)[5] & 0x08, 0);
    assert!(!vpd(&mut host, 0x00).contains(&0x8f));
    assert_eq!(host.command(&[0x12, 1, 0x8f, 2, 0, 0], 512, &[]).sense, Some(0x2400));
    for (code, action) in [(0x83, 0), (0x83, 0x11), (0x83, 0x1c), (0x84, 3), (0x84, 5), (0x84, 7)] {
        let cdb = [code, action, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(host.command(&cdb, 0, &[]).sense, Some(0x2000), "{code:#x} {action:#x}");
    }
    let after = codes(&mut host);
    assert!(
        !after.contains(&0x89)
            && !after.contains(&0x83)
            && !after.contains(&0x42)
            && !after.contains(&0x93)
            && after.contains(&0x2a)
    );
    let limits = vpd(&mut host, 0xb0);
    assert_eq!((limits[5], &limits[20..28], &limits[36..44]), (0, &[0; 8][..], &[0; 8][..]));
    assert_eq!(vpd(&mut host, 0xb2)[5] & 0xe0, 0);
    let capacity = host.command(&[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0], 32, &[]).data;
    assert_eq!(capacity[14] & 0xc0, 0);
    let compare = host.command(&[0x89, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0], 0, &[0; 1024]);
    assert_eq!((compare.status, compare.sense), (2, Some(0x2000)));
}

#[test]
fn reservations_are_between_hosts_and_the_array() {
    let house = House::new();
    let (mut a, mut b) = (house.other_host(1), house.other_host(2));
    let register = |host: &mut Peer, key: u8| {
        let mut list = [0; 24];
        list[15] = key;
        host.command(&[0x5f, 0, 0, 0, 0, 0, 0, 0, 24, 0], 0, &list)
    };
    assert_eq!(register(&mut a, 0xa).status, 0);
    let mut list = [0; 24];
    list[7] = 0xa;
    // RESERVE, exclusive access.
    assert_eq!(a.command(&[0x5f, 1, 3, 0, 0, 0, 0, 0, 24, 0], 0, &list).status, 0);
    assert_eq!(b.write(0, &[1; 512]).status, 0x18);
    assert_eq!(a.write(0, &[2; 512]).status, 0);
    let keys = b.command(&[0x5e, 0, 0, 0, 0, 0, 0, 1, 0, 0], 256, &[]).data;
    assert_eq!(keys[8..16], [0, 0, 0, 0, 0, 0, 0, 0xa]);
    assert_eq!(house.replica.taken(), 0);
    assert!(house.differences().is_empty());
}
