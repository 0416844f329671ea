//! What tells that nobody has changed production while the service was off.
//!
//! - A **file**: which one it is, its size, and when it was last changed.
//! - A **block device**: what the kernel has counted of it (Documentation/block/stat.rst: sectors written and discarded). Within one
//!   boot, and as long as it is the same device (`diskseq`), that is exact. The counts end with the boot: after it a device counts as
//!   changed if anything was written to it in the new boot, or its first or last MiB is not what it was, which is where file systems, LVM and
//!   partition tables note that they were used. What another system did to the middle alone is not found out.

use std::{
    fs::{self, File, Metadata},
    io,
    os::unix::fs::{FileExt, MetadataExt},
};

use sha2::{Digest, Sha256};

use crate::splitter::Stamp;

const FILE: u64 = 1;
const DEVICE: u64 = 2;
/// Bytes at each end of a device that are looked at.
const ENDS_BYTES: u64 = 1 << 20;

/// Of a file.
pub(super) fn of_file(found: &Metadata) -> Stamp {
    let numbers = [found.dev(), found.ino(), found.size(), found.mtime() as u64, found.mtime_nsec() as u64];
    pack(FILE, &numbers)
}

/// Of an open block device of `size_bytes`; none if the kernel does not count what is written to it.
pub(super) fn of_device(device: &File, size_bytes: u64) -> io::Result<Option<Stamp>> {
    // What others wrote may be in the page cache still, and is counted when it is written.
    device.sync_data()?;
    let number = device.metadata()?.rdev();
    let sysfs = format!("/sys/dev/block/{}:{}", rustix::fs::major(number), rustix::fs::minor(number));
    let Some(sectors) = read(&format!("{sysfs}/stat")).as_deref().and_then(changed_sectors) else {
        return Ok(None);
    };
    let Some(boot) = read("/proc/sys/kernel/random/boot_id") else { return Ok(None) };
    // A partition has those of its disk.
    let of_disk =
        |what: &str| read(&format!("{sysfs}/{what}")).or_else(|| read(&format!("{sysfs}/../{what}")));
    if of_disk("queue/iostats").is_some_and(|on| on == "0") {
        return Ok(None);
    }
    let sequence = of_disk("diskseq").and_then(|n| n.parse().ok()).unwrap_or(0);
    let ends = ends(device, size_bytes)?;
    Ok(Some(OfDevice { size_bytes, boot: fingerprint(&[boot.as_bytes()]), sequence, sectors, ends }.pack()))
}

/// Whether a device that was left as `left` and is now `now` was changed by nobody.
pub(super) fn device_unchanged(left: &Stamp, now: &Stamp) -> bool {
    let (Some(left), Some(now)) = (OfDevice::unpack(left), OfDevice::unpack(now)) else { return false };
    let counted = match left.boot == now.boot {
        true => left.sequence == now.sequence && left.sectors == now.sectors,
        false => now.sectors == 0,
    };
    counted && left.size_bytes == now.size_bytes && left.ends == now.ends
}

/// Sectors of 512 bytes that were written or discarded since the device came, out of a `stat` file. Of four or more groups, the second is
/// of writes, the fourth (since Linux 4.18) of discards. Requests are not counted: a flush is one, and changes nothing.
fn changed_sectors(stat: &str) -> Option<u64> {
    let fields: Vec<u64> = stat.split_whitespace().map_while(|field| field.parse().ok()).collect();
    Some(fields.get(6)?.wrapping_add(fields.get(13).copied().unwrap_or(0)))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct OfDevice {
    size_bytes: u64,
    boot: u64,
    sequence: u64,
    sectors: u64,
    ends: u64,
}

impl OfDevice {
    fn pack(self) -> Stamp {
        let OfDevice { size_bytes, boot, sequence, sectors, ends } = self;
        pack(DEVICE, &[size_bytes, boot, sequence, sectors, ends])
    }

    fn unpack(stamp: &Stamp) -> Option<OfDevice> {
        let number = |i: usize| stamp[i * 8..][..8].try_into().map_or(0, u64::from_le_bytes);
        (number(0) == DEVICE).then(|| OfDevice {
            size_bytes: number(1),
            boot: number(2),
            sequence: number(3),
            sectors: number(4),
            ends: number(5),
        })
    }
}

fn pack(kind: u64, numbers: &[u64]) -> Stamp {
    let mut stamp = [0; 64];
    for (place, number) in stamp.chunks_mut(8).zip(std::iter::once(&kind).chain(numbers)) {
        place.copy_from_slice(&number.to_le_bytes());
    }
    stamp
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn ends(device: &File, size_bytes: u64) -> io::Result<u64> {
    let bytes = ENDS_BYTES.min(size_bytes);
    let mut both = [vec![0; bytes as usize], vec![0; bytes as usize]];
    let [first, last] = &mut both;
    device.read_exact_at(first, 0)?;
    device.read_exact_at(last, size_bytes - bytes)?;
    Ok(fingerprint(&[first, last]))
}

/// 64 bits of SHA-256.
fn fingerprint(parts: &[&[u8]]) -> u64 {
    let mut hash = Sha256::new();
    parts.iter().for_each(|part| hash.update(part));
    let digest = hash.finalize();
    digest.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEFT: OfDevice =
        OfDevice { size_bytes: 8 << 20, boot: 1, sequence: 29, sectors: 3_099_644, ends: 77 };

    fn unchanged(now: OfDevice) -> bool {
        device_unchanged(&LEFT.pack(), &now.pack())
    }

    #[test]
    fn within_a_boot_every_write_is_seen() {
        assert!(unchanged(LEFT));
        assert!(!unchanged(OfDevice { sectors: LEFT.sectors + 1, ..LEFT }));
        assert!(!unchanged(OfDevice { sequence: 30, ..LEFT }), "plugged out and in");
        assert!(!unchanged(OfDevice { sectors: 0, ..LEFT }), "counted anew");
    }

    #[test]
    fn after_a_boot_it_is_unchanged_if_not_written_since_and_its_ends_are_the_same() {
        let booted = OfDevice { boot: 2, sequence: 5, sectors: 0, ..LEFT };
        assert!(unchanged(booted));
        assert!(!unchanged(OfDevice { sectors: 8, ..booted }));
        assert!(!unchanged(OfDevice { ends: 78, ..booted }));
        assert!(!unchanged(OfDevice { size_bytes: 4 << 20, ..booted }));
    }

    #[test]
    fn what_is_no_stamp_of_a_device_is_a_change() {
        assert!(!device_unchanged(&pack(FILE, &[1, 2, 3]), &LEFT.pack()));
        assert!(!device_unchanged(&LEFT.pack(), &[0; 64]));
    }

    #[test]
    fn sectors_are_read_of_old_and_new_kernels() {
        let old = "2578 0 3125952 34568 1121 21262 3099500 2470 0 13168 37490";
        assert_eq!(changed_sectors(old), Some(3_099_500));
        let new = format!("{old} 3 0 16384 0 213 451");
        assert_eq!(changed_sectors(&new), Some(3_115_884));
        assert_eq!(changed_sectors("1 2 x"), None);
    }
}
