//! The bytes of one simulated file: sparse pages, so that a 64 TiB file costs only what was written to it.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
};

pub(crate) const PAGE_BYTES: u64 = 4096;
pub(crate) const SECTOR_BYTES: u64 = 512;

type Page = [u8; PAGE_BYTES as usize];

/// The one page that `allocate` reserves space with. A page that *is* this one holds no data yet.
fn reserved() -> Arc<Page> {
    static ZERO: OnceLock<Arc<Page>> = OnceLock::new();
    ZERO.get_or_init(|| Arc::new([0; PAGE_BYTES as usize])).clone()
}

/// Size and pages. Cloning shares the pages.
#[derive(Clone, Default)]
pub(crate) struct Content {
    pub(crate) size: u64,
    pages: BTreeMap<u64, Arc<Page>>,
}

impl Content {
    /// Pages that take space.
    pub(crate) fn page_count(&self) -> u64 {
        self.pages.len() as u64
    }

    /// How many pages a write or an allocation of this range would add.
    pub(crate) fn new_pages(&self, offset: u64, len: u64) -> u64 {
        if len == 0 {
            return 0;
        }
        let (first, last) = (offset / PAGE_BYTES, (offset + len - 1) / PAGE_BYTES);
        last - first + 1 - self.pages.range(first..=last).count() as u64
    }

    /// Reads within or beyond the size; what is not there is zero.
    pub(crate) fn read(&self, buf: &mut [u8], offset: u64) {
        buf.fill(0);
        if buf.is_empty() {
            return;
        }
        let end = offset + buf.len() as u64;
        for (&number, page) in self.pages.range(offset / PAGE_BYTES..=(end - 1) / PAGE_BYTES) {
            let start = number * PAGE_BYTES;
            let (from, to) = (start.max(offset), (start + PAGE_BYTES).min(end));
            buf[(from - offset) as usize..(to - offset) as usize]
                .copy_from_slice(&page[(from - start) as usize..(to - start) as usize]);
        }
    }

    /// Writes and extends the size over it.
    pub(crate) fn write(&mut self, data: &[u8], offset: u64) {
        self.write_within(data, offset);
        if !data.is_empty() {
            self.size = self.size.max(offset + data.len() as u64);
        }
    }

    /// Writes without touching the size.
    pub(crate) fn write_within(&mut self, data: &[u8], offset: u64) {
        let end = offset + data.len() as u64;
        let mut at = offset;
        while at < end {
            let number = at / PAGE_BYTES;
            let within = (at % PAGE_BYTES) as usize;
            let n = ((PAGE_BYTES as usize) - within).min((end - at) as usize);
            let page = self.pages.entry(number).or_insert_with(reserved);
            let from = (at - offset) as usize;
            Arc::make_mut(page)[within..within + n].copy_from_slice(&data[from..from + n]);
            at += n as u64;
        }
    }

    /// Reserves pages and extends the size.
    pub(crate) fn allocate(&mut self, offset: u64, len: u64) {
        if len == 0 {
            return;
        }
        for number in offset / PAGE_BYTES..=(offset + len - 1) / PAGE_BYTES {
            self.pages.entry(number).or_insert_with(reserved);
        }
        self.size = self.size.max(offset + len);
    }

    /// Zeros a range; whole pages of it give their space back.
    pub(crate) fn punch(&mut self, offset: u64, len: u64) {
        if len == 0 {
            return;
        }
        let end = offset.saturating_add(len);
        let numbers: Vec<u64> =
            self.pages.range(offset / PAGE_BYTES..=(end - 1) / PAGE_BYTES).map(|(&n, _)| n).collect();
        for number in numbers {
            let start = number * PAGE_BYTES;
            let (from, to) = (start.max(offset), (start + PAGE_BYTES).min(end));
            if to - from == PAGE_BYTES {
                self.pages.remove(&number);
            } else if let Some(page) = self.pages.get_mut(&number) {
                Arc::make_mut(page)[(from - start) as usize..(to - start) as usize].fill(0);
            }
        }
    }

    /// Sets the size; what is cut off is gone, also after growing again.
    pub(crate) fn set_size(&mut self, size: u64) {
        if size < self.size {
            self.punch(size, u64::MAX - size);
        }
        self.size = size;
    }

    /// Whether `offset` lies in data, and where that ends.
    pub(crate) fn data_at(&self, offset: u64) -> (bool, u64) {
        if offset >= self.size {
            return (false, u64::MAX);
        }
        let zero = reserved();
        let is_data = |page: &Arc<Page>| !Arc::ptr_eq(page, &zero);
        let first = offset / PAGE_BYTES;
        if self.pages.get(&first).is_some_and(is_data) {
            let mut end = first + 1;
            for (&number, page) in self.pages.range(end..) {
                if number != end || !is_data(page) {
                    break;
                }
                end += 1;
            }
            return (true, (end * PAGE_BYTES).min(self.size));
        }
        match self.pages.range(first..).find(|(_, page)| is_data(page)) {
            Some((&number, _)) if number * PAGE_BYTES < self.size => (false, number * PAGE_BYTES),
            _ => (false, u64::MAX),
        }
    }

    /// The sectors of a range that lie in a page.
    pub(crate) fn sectors_in(&self, offset: u64, end: u64) -> Vec<u64> {
        let per_page = PAGE_BYTES / SECTOR_BYTES;
        if end <= offset {
            return Vec::new();
        }
        self.pages
            .range(offset / PAGE_BYTES..=(end - 1) / PAGE_BYTES)
            .flat_map(|(&number, _)| number * per_page..(number + 1) * per_page)
            .filter(|s| (s + 1) * SECTOR_BYTES > offset && s * SECTOR_BYTES < end)
            .collect()
    }
}
