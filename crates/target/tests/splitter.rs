//! The array's splitter over a real journal: what the seam promises of copies, frozen moments and ORs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{any::Any, path::Path, sync::Arc};

use playhead_journal::{files::DiskFiles, Group, NewBase, Options};
use playhead_target::{
    lun::{Change, CopyPiece, CopySource, Frozen, LunError, LunIdentity, LunRef},
    splitter,
};

const GIB: u64 = (1 << 30) / 512;

fn group(dir: &Path, name: &str) -> Group {
    let options = Options { segment_bytes: 1 << 20, background: true };
    Group::create(Arc::new(DiskFiles), &dir.join(name), name, &options).unwrap()
}

fn lun(group: &Group, name: &str) -> LunRef {
    let volume = group.add_volume(name, NewBase::Sparse { blocks: GIB }).unwrap();
    splitter::lun(volume, LunIdentity { uuid: [name.len() as u8; 16], name: name.into() })
}

fn write(lun: &LunRef, lba: u64, fill: u8, count: usize) {
    lun.submit(&[Change::Write { lba, data: &vec![fill; count * 512] }]).unwrap();
}

fn read(lun: &LunRef, lba: u64, count: usize) -> Vec<u8> {
    let mut buf = vec![0; count * 512];
    lun.read(lba, &mut buf).unwrap();
    buf.chunks(512).map(|b| b[0]).collect()
}

fn piece(source_lba: u64, lba: u64, count: u64) -> CopyPiece {
    CopyPiece { source_lba, lba, count }
}

#[test]
fn a_copy_within_the_group_is_a_record_and_between_groups_data() {
    let dir = tempfile::tempdir().unwrap();
    let (here, there) = (group(dir.path(), "here"), group(dir.path(), "there"));
    let (a, b, far) = (lun(&here, "a"), lun(&here, "bb"), lun(&there, "far"));
    write(&a, 5, 1, 10);
    let pieces = [piece(0, 0, GIB), piece(0, 100, 20)];
    let before = here.stats().bytes_written;
    let copied = b.copy_from(&CopySource::Now(&*a), &pieces).unwrap();
    assert_eq!((copied.referenced_blocks, copied.moved_blocks), (GIB + 20, 0));
    assert_eq!(here.stats().bytes_written - before, 160);
    assert_eq!(read(&b, 100, 20), read(&a, 0, 20));
    let copied = far.copy_from(&CopySource::Now(&*b), &pieces).unwrap();
    assert_eq!(copied.moved_blocks, 40 - 10);
    assert_eq!(
        read(&far, 0, 200),
        read(&b, 0, 200)[..100].iter().chain(&read(&b, 0, 20)).chain(&[0; 80]).copied().collect::<Vec<_>>()
    );
    // Onto itself.
    a.copy_from(&CopySource::Now(&*a), &[piece(5, 8, 10)]).unwrap();
    assert_eq!(read(&a, 4, 16), [0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0]);
    assert!(matches!(
        b.copy_from(&CopySource::Now(&*a), &[piece(GIB, 0, 1)]),
        Err(LunError::OutOfRange { .. })
    ));
}

#[test]
fn a_frozen_lun_is_copied_as_it_was_and_says_when_it_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let group = group(dir.path(), "g");
    let (a, b) = (lun(&group, "a"), lun(&group, "bb"));
    write(&a, 0, 1, 10);
    assert!(a.freezes());
    let frozen = a.freeze().unwrap();
    write(&a, 2, 2, 3);
    let copied = b.copy_from(&CopySource::Frozen(&*frozen), &[piece(0, 50, 100)]).unwrap();
    assert_eq!((copied.referenced_blocks, copied.moved_blocks), (97, 3));
    assert_eq!(read(&b, 50, 12), [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0]);
    assert_eq!(frozen.identity(), a.identity());
    assert_eq!(frozen.block_count(), GIB);
    group.settle(&mut |_, _| true).unwrap();
    let gone = b.copy_from(&CopySource::Frozen(&*frozen), &[piece(0, 0, 1)]);
    assert_eq!(gone, Err(LunError::Gone { name: "a".into() }));
    assert_eq!(frozen.read(0, &mut [0; 512]), Err(LunError::Gone { name: "a".into() }));
}

#[test]
fn ors_are_kept_and_read_only_images_take_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let group = group(dir.path(), "g");
    let a = lun(&group, "a");
    write(&a, 0, 0b01, 2);
    a.or_write(1, &[0b10; 1024]).unwrap();
    assert_eq!(read(&a, 0, 3), [0b01, 0b11, 0b10]);
    let image = group.open_image("i", group.head().lsn, false).unwrap().volume("a").unwrap();
    let image = splitter::lun(image, LunIdentity { uuid: [9; 16], name: "i".into() });
    assert!(matches!(image.or_write(0, &[1; 512]), Err(LunError::ReadOnly { .. })));
    let refused = image.copy_from(&CopySource::Now(&*a), &[piece(0, 0, 1)]);
    assert!(matches!(refused, Err(LunError::ReadOnly { .. })));
    write(&a, 0, 7, 3);
    a.copy_from(&CopySource::Now(&*image), &[piece(0, 0, GIB)]).unwrap();
    assert_eq!(read(&a, 0, 3), [0b01, 0b11, 0b10]);
}

/// Something that is no volume of ours is read like any disk.
#[test]
fn a_strange_source_is_read_as_data() {
    struct Strange(LunIdentity);
    impl Frozen for Strange {
        fn identity(&self) -> &LunIdentity {
            &self.0
        }
        fn block_count(&self) -> u64 {
            100
        }
        fn read(&self, lba: u64, buf: &mut [u8]) -> Result<(), LunError> {
            for (i, block) in buf.chunks_mut(512).enumerate() {
                block.fill(lba as u8 + i as u8);
            }
            Ok(())
        }
        fn as_any(&self) -> &dyn Any {
            self
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let group = group(dir.path(), "g");
    let a = lun(&group, "a");
    let strange = Strange(LunIdentity { uuid: [3; 16], name: "strange".into() });
    let copied = a.copy_from(&CopySource::Frozen(&strange), &[piece(3, 0, 4)]).unwrap();
    assert_eq!((copied.referenced_blocks, copied.moved_blocks), (0, 4));
    assert_eq!(read(&a, 0, 5), [3, 4, 5, 6, 0]);
}
