//! The change map: one bit per region of a foreign volume, "production and replica may differ here", in a file that survives a crash.
//!
//! A mark must be on the medium before production is changed; taking it away may be lost. So a lost or torn part of the file has to read as
//! "all of this is marked", never as "nothing is": every sector of 512 bytes, which is what media write whole, carries its own
//! CRC32C and its number, and one that does not agree counts as all ones. The file is written in full when it is made, so that marking
//! later needs no space. The layout is documented byte for byte in docs/formats.md.

use std::{
    io::{self, IoSlice},
    path::{Path, PathBuf},
    sync::Arc,
};

use playhead_journal::{
    files::{File, Files, Open},
    BLOCK_BYTES,
};

use super::bits::Bits;

const MAGIC: &[u8; 8] = b"PHchange";
const FORMAT: u32 = 1;
const SECTOR_BYTES: usize = 512;
/// CRC and number.
const SECTOR_HEADER_BYTES: usize = 8;
/// Regions of which one sector tells.
const SECTOR_REGIONS: u32 = ((SECTOR_BYTES - SECTOR_HEADER_BYTES) * 8) as u32;
/// The smallest region, and the one of all volumes up to 4 TiB.
const REGION_BYTES_MIN: u64 = 1 << 20;
/// Regions of a volume at most: the map of the largest is 512 KiB.
const REGIONS_MAX: u64 = 1 << 22;

/// Bytes that tell whether production is as it was left; all zeros: not known.
pub type Stamp = [u8; 64];

/// What the map is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MapOf {
    /// The volume's identity.
    pub(super) volume: [u8; 16],
    /// Its size in blocks.
    pub(super) block_count: u64,
}

/// What the header says beside what the map is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) region_bytes: u64,
    /// Replica and production were in step once.
    pub(super) initialised: bool,
    /// Since when they are not; 0 if they are. ns since the Unix epoch.
    pub(super) since_ns: u64,
    /// Production when it was left in order.
    pub(super) stamp: Stamp,
}

/// An open change map.
pub(super) struct ChangeMap {
    file: Arc<dyn File>,
    of: MapOf,
    header: Header,
    marked: Bits,
    /// A sync has failed: nobody knows what of the file is on the medium.
    doubtful: bool,
}

impl ChangeMap {
    /// Opens the map at `path`, or makes one in which everything is marked if there is none, or it is of something else. Nobody else
    /// has it: an error of kind `WouldBlock` says that somebody does.
    pub(super) fn open(files: &dyn Files, path: &Path, of: MapOf) -> io::Result<ChangeMap> {
        match files.open(path, Open::Write) {
            Ok(file) => {
                lock(&*file, path)?;
                if let Some(map) = ChangeMap::read(&file, of)? {
                    return Ok(map);
                }
                log::warn!(
                    "change map {}: not a whole map of this volume; the whole volume is compared",
                    path.display()
                );
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        ChangeMap::create(files, path, of, region_bytes_for(of.block_count))
    }

    /// Makes the map, everything marked; durable when it returns.
    pub(super) fn create(
        files: &dyn Files,
        path: &Path,
        of: MapOf,
        region_bytes: u64,
    ) -> io::Result<ChangeMap> {
        let temporary = PathBuf::from(format!("{}.new", path.display()));
        let file = files.open(&temporary, Open::Create)?;
        lock(&*file, path)?;
        let header = Header { region_bytes, initialised: false, since_ns: 0, stamp: [0; 64] };
        let marked = Bits::none(regions(of.block_count, region_bytes));
        let mut map = ChangeMap { file, of, header, marked, doubtful: false };
        map.mark_all()?;
        map.write_header()?;
        map.file.sync()?;
        files.rename(&temporary, path)?;
        if let Some(dir) = path.parent() {
            files.sync_dir(dir)?;
        }
        Ok(map)
    }

    /// The map in `file`; none if its header is not one of this volume. Sectors that do not agree with their CRC are all marked.
    fn read(file: &Arc<dyn File>, of: MapOf) -> io::Result<Option<ChangeMap>> {
        let mut sector = [0; SECTOR_BYTES];
        match file.read_at(&mut sector, 0) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            other => other?,
        }
        let Some(header) = decode_header(&sector, of)? else { return Ok(None) };
        let limit = regions(of.block_count, header.region_bytes);
        let marked = Bits::none(limit);
        let mut map = ChangeMap { file: Arc::clone(file), of, header, marked, doubtful: false };
        for number in 0..map.sectors() {
            let good = match file.read_at(&mut sector, sector_offset(number)) {
                Ok(()) => map.take_sector(number, &sector),
                Err(_) => false,
            };
            if !good {
                log::warn!("change map: sector {number} is damaged; all of it counts as changed");
                let first = number * SECTOR_REGIONS;
                (first..first.saturating_add(SECTOR_REGIONS)).for_each(|n| {
                    map.marked.insert(n);
                });
                map.write_sector(number)?;
            }
        }
        file.sync()?;
        Ok(Some(map))
    }

    fn sectors(&self) -> u32 {
        self.marked.limit().div_ceil(SECTOR_REGIONS)
    }

    pub(super) fn header(&self) -> Header {
        self.header
    }

    /// Which regions are marked.
    pub(super) fn marked(&self) -> &Bits {
        &self.marked
    }

    /// The file, to sync without holding the map; [`ChangeMap::sync_failed`] is told if that fails. One sync at a time.
    pub(super) fn begin_sync(&mut self) -> io::Result<Arc<dyn File>> {
        if self.doubtful {
            (0..self.sectors()).try_for_each(|number| self.write_sector(number))?;
            self.write_header()?;
            self.doubtful = false;
        }
        Ok(Arc::clone(&self.file))
    }

    /// The sync failed: the file is written anew before the next, since the kernel may think it written.
    pub(super) fn sync_failed(&mut self) {
        self.doubtful = true;
    }

    /// Changes the header; durable with the next sync.
    pub(super) fn set_header(&mut self, change: impl FnOnce(&mut Header)) -> io::Result<()> {
        let mut header = self.header;
        change(&mut header);
        if header != self.header {
            self.header = header;
            self.write_header()?;
        }
        Ok(())
    }

    /// Marks a region; whether it was not marked before, and the mark has to be synced.
    pub(super) fn mark(&mut self, region: u32) -> io::Result<bool> {
        if !self.marked.insert(region) {
            return Ok(false);
        }
        self.write_sector(region / SECTOR_REGIONS).inspect_err(|_| {
            self.marked.remove(region);
        })?;
        Ok(true)
    }

    /// Takes marks away. If the system refuses they may be there still.
    pub(super) fn clear(&mut self, regions: &[u32]) -> io::Result<()> {
        let mut sectors: Vec<u32> = regions
            .iter()
            .filter(|region| self.marked.remove(**region))
            .map(|region| region / SECTOR_REGIONS)
            .collect();
        sectors.sort_unstable();
        sectors.dedup();
        sectors.into_iter().try_for_each(|number| self.write_sector(number))
    }

    /// Marks everything.
    pub(super) fn mark_all(&mut self) -> io::Result<()> {
        (0..self.marked.limit()).for_each(|region| {
            self.marked.insert(region);
        });
        (0..self.sectors()).try_for_each(|number| self.write_sector(number))
    }

    fn take_sector(&mut self, number: u32, sector: &[u8; SECTOR_BYTES]) -> bool {
        let crc = crc32c::crc32c_append(self.seed(), &sector[4..]);
        if sector[..4] != crc.to_le_bytes() || sector[4..8] != number.to_le_bytes() {
            return false;
        }
        let bits = &sector[SECTOR_HEADER_BYTES..];
        for (i, byte) in bits.iter().enumerate().filter(|(_, byte)| **byte != 0) {
            for bit in (0..8).filter(|bit| byte >> bit & 1 == 1) {
                self.marked.insert(number * SECTOR_REGIONS + i as u32 * 8 + bit);
            }
        }
        true
    }

    fn write_sector(&self, number: u32) -> io::Result<()> {
        let mut sector = [0; SECTOR_BYTES];
        sector[4..8].copy_from_slice(&number.to_le_bytes());
        let first = number * SECTOR_REGIONS;
        let mut at = first;
        while let Some(region) = self.marked.next(at).filter(|region| region - first < SECTOR_REGIONS) {
            let within = region - first;
            sector[SECTOR_HEADER_BYTES + within as usize / 8] |= 1 << (within % 8);
            at = region + 1;
        }
        let crc = crc32c::crc32c_append(self.seed(), &sector[4..]);
        sector[..4].copy_from_slice(&crc.to_le_bytes());
        self.file.write_at(&[IoSlice::new(&sector)], sector_offset(number))
    }

    fn write_header(&self) -> io::Result<()> {
        let mut b = [0; SECTOR_BYTES];
        b[0..8].copy_from_slice(MAGIC);
        b[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        b[16..32].copy_from_slice(&self.of.volume);
        b[32..40].copy_from_slice(&self.of.block_count.to_le_bytes());
        b[40..48].copy_from_slice(&self.header.region_bytes.to_le_bytes());
        b[48] = u8::from(self.header.initialised);
        b[56..64].copy_from_slice(&self.header.since_ns.to_le_bytes());
        b[64..128].copy_from_slice(&self.header.stamp);
        let crc = crc32c::crc32c(&b);
        b[12..16].copy_from_slice(&crc.to_le_bytes());
        self.file.write_at(&[IoSlice::new(&b)], 0)
    }

    /// A sector of another volume's map never passes for one of ours.
    fn seed(&self) -> u32 {
        crc32c::crc32c(&self.of.volume)
    }
}

fn decode_header(sector: &[u8; SECTOR_BYTES], of: MapOf) -> io::Result<Option<Header>> {
    let mut b = *sector;
    let crc = u32::from_le_bytes([b[12], b[13], b[14], b[15]]);
    b[12..16].fill(0);
    if &b[0..8] != MAGIC || crc32c::crc32c(&b) != crc {
        return Ok(None);
    }
    let format = u32::from_le_bytes([b[8], b[9], b[10], b[11]]);
    if format > FORMAT {
        let detail = format!(
            "the change map has format {format}; this version reads up to {FORMAT}: use a newer Playhead"
        );
        return Err(io::Error::new(io::ErrorKind::Unsupported, detail));
    }
    let number = |at: usize| b[at..at + 8].try_into().map_or(0, u64::from_le_bytes);
    let mut stamp = [0; 64];
    stamp.copy_from_slice(&b[64..128]);
    let header = Header { region_bytes: number(40), initialised: b[48] != 0, since_ns: number(56), stamp };
    let fits = header.region_bytes.is_power_of_two()
        && header.region_bytes >= BLOCK_BYTES as u64
        && (of.block_count * BLOCK_BYTES as u64).div_ceil(header.region_bytes) <= REGIONS_MAX;
    Ok((fits && b[16..32] == of.volume && number(32) == of.block_count).then_some(header))
}

fn sector_offset(number: u32) -> u64 {
    (u64::from(number) + 1) * SECTOR_BYTES as u64
}

/// Regions of a volume.
fn regions(block_count: u64, region_bytes: u64) -> u32 {
    (block_count * BLOCK_BYTES as u64).div_ceil(region_bytes) as u32
}

/// The smallest region with which the map of a volume stays small.
fn region_bytes_for(block_count: u64) -> u64 {
    let bytes = block_count * BLOCK_BYTES as u64;
    let mut region = REGION_BYTES_MIN;
    while bytes.div_ceil(region) > REGIONS_MAX {
        region *= 2;
    }
    region
}

fn lock(file: &dyn File, path: &Path) -> io::Result<()> {
    if file.lock()? {
        return Ok(());
    }
    let detail = format!("change map {} is in use by another process: stop that one first", path.display());
    Err(io::Error::new(io::ErrorKind::WouldBlock, detail))
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;
    use playhead_journal::files::DiskFiles;
    use std::sync::atomic::{AtomicBool, Ordering};

    const OF: MapOf = MapOf { volume: [7; 16], block_count: 10_000 * 2048 };

    fn open(path: &Path) -> ChangeMap {
        ChangeMap::open(&DiskFiles, path, OF).unwrap()
    }

    #[test]
    fn a_new_map_is_all_marked_and_what_is_cleared_stays_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.map");
        let mut map = open(&path);
        assert_eq!(map.marked().count(), 10_000);
        assert!(open_is_refused(&path));
        let all: Vec<u32> = (0..10_000).collect();
        map.clear(&all).unwrap();
        assert!(map.mark(4032).unwrap() && !map.mark(4032).unwrap() && map.mark(9_999).unwrap());
        map.set_header(|h| h.initialised = true).unwrap();
        drop(map);
        let map = open(&path);
        assert_eq!(map.marked().count(), 2);
        assert!(map.marked().contains(4032) && map.marked().contains(9_999) && map.header().initialised);
    }

    fn open_is_refused(path: &Path) -> bool {
        ChangeMap::open(&DiskFiles, path, OF).err().is_some_and(|e| e.kind() == io::ErrorKind::WouldBlock)
    }

    /// Whatever byte is spoiled, nothing that was marked is unmarked by it.
    #[test]
    fn damage_never_unmarks() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.map");
        let mut map = open(&path);
        let most: Vec<u32> = (0..10_000).filter(|n| n % 3000 != 5).collect();
        map.clear(&most).unwrap();
        drop(map);
        let good = std::fs::read(&path).unwrap();
        for at in (0..good.len()).step_by(13) {
            let mut bad = good.clone();
            bad[at] ^= 0x55;
            std::fs::write(&path, &bad).unwrap();
            let map = open(&path);
            assert!([5, 3005, 6005, 9005].iter().all(|n| map.marked().contains(*n)), "byte {at}");
            assert!(map.marked().count() >= 1900, "byte {at}: found out");
        }
        std::fs::write(&path, &good[..600]).unwrap();
        assert_eq!(open(&path).marked().count(), 10_000);
        let other = MapOf { block_count: 5, ..OF };
        std::fs::write(&path, &good).unwrap();
        assert_eq!(ChangeMap::open(&DiskFiles, &path, other).unwrap().marked().count(), 1);
    }

    /// A file as the kernel has it: a failed sync leaves in memory, as if written, what the medium does not have.
    #[derive(Default)]
    struct Cached {
        memory: Mutex<Vec<u8>>,
        dirty: Mutex<Vec<(usize, Vec<u8>)>>,
        medium: Mutex<Vec<u8>>,
        fails: AtomicBool,
    }

    fn put(bytes: &mut Vec<u8>, at: usize, data: &[u8]) {
        bytes.resize(bytes.len().max(at + data.len()), 0);
        bytes[at..at + data.len()].copy_from_slice(data);
    }

    fn unsupported<T>() -> io::Result<T> {
        Err(io::ErrorKind::Unsupported.into())
    }

    impl File for Cached {
        fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
            let memory = self.memory.lock();
            let from = memory.get(offset as usize..).and_then(|rest| rest.get(..buf.len()));
            buf.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        }
        fn write_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
            let data: Vec<u8> = bufs.iter().flat_map(|buf| buf.iter().copied()).collect();
            put(&mut self.memory.lock(), offset as usize, &data);
            self.dirty.lock().push((offset as usize, data));
            Ok(())
        }
        fn sync(&self) -> io::Result<()> {
            let dirty = std::mem::take(&mut *self.dirty.lock());
            if self.fails.swap(false, Ordering::Relaxed) {
                return Err(io::Error::other("the medium failed"));
            }
            dirty.iter().for_each(|(at, data)| put(&mut self.medium.lock(), *at, data));
            Ok(())
        }
        fn size(&self) -> io::Result<u64> {
            Ok(self.memory.lock().len() as u64)
        }
        fn set_size(&self, _: u64) -> io::Result<()> {
            unsupported()
        }
        fn allocate(&self, _: u64, _: u64) -> io::Result<()> {
            unsupported()
        }
        fn punch(&self, _: u64, _: u64) -> io::Result<()> {
            unsupported()
        }
        fn data_at(&self, _: u64) -> io::Result<(bool, u64)> {
            unsupported()
        }
        fn map(&self) -> io::Result<playhead_journal::files::Bytes> {
            unsupported()
        }
        fn lock(&self) -> io::Result<bool> {
            Ok(true)
        }
    }

    #[test]
    fn marks_of_a_failed_sync_are_on_the_medium_after_the_next() {
        let cached = Arc::new(Cached::default());
        let header = Header { region_bytes: 1 << 20, initialised: true, since_ns: 0, stamp: [0; 64] };
        let marked = Bits::none(10_000);
        let mut map = ChangeMap { file: cached.clone(), of: OF, header, marked, doubtful: true };
        map.begin_sync().unwrap().sync().unwrap();
        assert!(map.mark(5).unwrap());
        cached.fails.store(true, Ordering::Relaxed);
        assert!(map.begin_sync().unwrap().sync().is_err());
        map.sync_failed();
        // Of another sector; and the first is not new any more, so nobody marks it again.
        assert!(map.mark(9_000).unwrap() && !map.mark(5).unwrap());
        map.begin_sync().unwrap().sync().unwrap();
        // The power fails.
        let left = Cached { memory: Mutex::new(cached.medium.lock().clone()), ..Cached::default() };
        let file: Arc<dyn File> = Arc::new(left);
        let found = ChangeMap::read(&file, OF).unwrap().unwrap();
        assert_eq!(found.marked().count(), 2);
        assert!(found.marked().contains(5) && found.marked().contains(9_000));
    }

    #[test]
    fn large_volumes_have_larger_regions() {
        assert_eq!(region_bytes_for(1), 1 << 20);
        assert_eq!(region_bytes_for((4 << 40) / 512), 1 << 20);
        assert_eq!(region_bytes_for((64 << 40) / 512), 16 << 20);
    }
}
