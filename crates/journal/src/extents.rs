//! The newest version of every block, as extents: the head index and the map of a materialised image.
//!
//! A volume is cut into chunks; a chunk keeps its extents sorted in one array of 12-byte entries, so that a 4 KiB block written at
//! random costs 12 bytes plus the array's slack (an eighth), a lookup is one array index and one binary search in a few cache lines,
//! and an insertion moves at most some kilobytes. A chunk wholly covered by one extent of zeros, or one copy, is two words, and so is a
//! page of 1,024 such chunks: zeroing or cloning a whole volume sets a few hundred words. Chunks grow with the volume: 4 MiB up to 1 TiB,
//! 8 MiB up to 8 TiB, 32 MiB above.

use crate::Lsn;

/// How a version's bytes are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// They lie in the log at the location; the next block 512 bytes further on.
    Data = 0,
    /// Every block is the one at the location.
    Pattern = 1,
    /// Zeros, provisioned.
    Zero = 2,
    /// Zeros, not provisioned.
    Unmapped = 3,
    /// As another place was when the COPY record at the location was written.
    Copy = 4,
}

/// A version's location: its kind and a byte position in the log, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Loc(u64);

const KIND_SHIFT: u32 = 61;
const LSN_MASK: u64 = (1 << KIND_SHIFT) - 1;

impl Loc {
    /// A location. `lsn` is the payload's position for data and patterns, the record's own otherwise.
    pub(crate) fn new(kind: Kind, lsn: Lsn) -> Loc {
        Loc(((kind as u64) << KIND_SHIFT) | (lsn & LSN_MASK))
    }

    /// From the word, as [`Loc::word`] gave it; an unknown kind (a damaged file) is `None`.
    pub(crate) fn from_word(word: u64) -> Option<Loc> {
        (word >> KIND_SHIFT <= Kind::Copy as u64).then_some(Loc(word))
    }

    /// As one word.
    pub(crate) fn word(self) -> u64 {
        self.0
    }

    /// How the bytes are found.
    pub(crate) fn kind(self) -> Kind {
        match self.0 >> KIND_SHIFT {
            0 => Kind::Data,
            1 => Kind::Pattern,
            2 => Kind::Zero,
            3 => Kind::Unmapped,
            _ => Kind::Copy,
        }
    }

    /// Position in the log.
    pub(crate) fn lsn(self) -> Lsn {
        self.0 & LSN_MASK
    }

    /// The location of a block `blocks` further into the same extent.
    pub(crate) fn advanced(self, blocks: u64) -> Loc {
        match self.kind() {
            Kind::Data => Loc(self.0 + blocks * crate::BLOCK_BYTES as u64),
            _ => self,
        }
    }
}

/// An extent of one version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mapped {
    /// First block.
    pub(crate) lba: u64,
    /// Blocks.
    pub(crate) count: u64,
    /// Where the first block's bytes are.
    pub(crate) loc: Loc,
}

impl Mapped {
    /// The part within `[from, to)`; the caller knows that they overlap.
    pub(crate) fn clip(self, from: u64, to: u64) -> Mapped {
        let start = self.lba.max(from);
        let end = (self.lba + self.count).min(to);
        Mapped { lba: start, count: end - start, loc: self.loc.advanced(start - self.lba) }
    }
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    loc_low: u32,
    loc_high: u32,
    start: u16,
    last: u16,
}

impl Entry {
    fn new(start: u32, end: u32, loc: Loc) -> Entry {
        // `start < end <= 65,536`, so both fit.
        Entry {
            loc_low: loc.word() as u32,
            loc_high: (loc.word() >> 32) as u32,
            start: start as u16,
            last: (end - 1) as u16,
        }
    }

    fn start(&self) -> u32 {
        u32::from(self.start)
    }

    fn end(&self) -> u32 {
        u32::from(self.last) + 1
    }

    fn loc(&self) -> Loc {
        Loc(u64::from(self.loc_high) << 32 | u64::from(self.loc_low))
    }

    fn clip(&self, from: u32, to: u32) -> Entry {
        let start = self.start().max(from);
        Entry::new(start, self.end().min(to), self.loc().advanced(u64::from(start - self.start())))
    }
}

/// A boxed vector, so that an empty or whole chunk is two words.
#[derive(Debug, Default)]
#[allow(clippy::box_collection)]
enum Chunk {
    #[default]
    Empty,
    Whole(Loc),
    Some(Box<Vec<Entry>>),
}

const PAGE_CHUNKS: usize = 1024;

/// A row of [`PAGE_CHUNKS`] chunks.
#[derive(Debug, Default)]
enum Page {
    #[default]
    Empty,
    /// One extent over all of it; never data, whose location moves on from block to block.
    Whole(Loc),
    Chunks(Box<[Chunk]>),
}

impl Page {
    /// The chunks, made if there were none.
    fn chunks(&mut self) -> &mut [Chunk] {
        if !matches!(self, Page::Chunks(_)) {
            let whole = match *self {
                Page::Whole(loc) => Some(loc),
                _ => None,
            };
            let mut chunks = Vec::new();
            chunks.resize_with(PAGE_CHUNKS, || whole.map_or(Chunk::Empty, Chunk::Whole));
            *self = Page::Chunks(chunks.into_boxed_slice());
        }
        match self {
            Page::Chunks(chunks) => chunks,
            _ => &mut [],
        }
    }
}

/// The newest versions of one volume's blocks.
#[derive(Debug)]
pub(crate) struct ExtentMap {
    chunk_shift: u32,
    pages: Vec<Page>,
    capacity_bytes: usize,
}

impl ExtentMap {
    /// An empty map for a volume of `blocks` blocks.
    pub(crate) fn new(blocks: u64) -> ExtentMap {
        const MIB: u64 = 1 << 11;
        let chunk_shift = match blocks {
            b if b <= MIB << 20 => 13,
            b if b <= MIB << 23 => 14,
            _ => 16,
        };
        let chunks = blocks.div_ceil(1 << chunk_shift) as usize;
        let mut pages = Vec::new();
        pages.resize_with(chunks.div_ceil(PAGE_CHUNKS), Page::default);
        ExtentMap { chunk_shift, pages, capacity_bytes: 0 }
    }

    /// Bytes of memory the map holds.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.capacity_bytes
            + self.pages.len() * size_of::<Page>()
            + self.pages.iter().filter(|p| matches!(p, Page::Chunks(_))).count()
                * PAGE_CHUNKS
                * size_of::<Chunk>()
    }

    fn page_blocks(&self) -> u64 {
        (PAGE_CHUNKS as u64) << self.chunk_shift
    }

    fn chunk_mut(&mut self, index: u64) -> Option<(&mut Chunk, &mut usize)> {
        let page = self.pages.get_mut(index as usize / PAGE_CHUNKS)?;
        let chunk = page.chunks().get_mut(index as usize % PAGE_CHUNKS);
        chunk.map(|chunk| (chunk, &mut self.capacity_bytes))
    }

    /// Makes `extent` the newest version of its blocks.
    pub(crate) fn insert(&mut self, extent: Mapped) {
        let size = 1_u64 << self.chunk_shift;
        let end = extent.lba + extent.count;
        let mut at = extent.lba;
        while at < end {
            let index = at >> self.chunk_shift;
            let first = index << self.chunk_shift;
            if at == first && index % PAGE_CHUNKS as u64 == 0 && self.put_page(index, end - at, extent.loc) {
                at += self.page_blocks();
                continue;
            }
            let to = end.min(first + size);
            let loc = extent.loc.advanced(at - extent.lba);
            if let Some((chunk, capacity)) = self.chunk_mut(index) {
                chunk.insert((at - first) as u32, (to - first) as u32, loc, size as u32, capacity);
            }
            at = to;
        }
    }

    /// Covers the page that begins with chunk `index`, if `count` blocks do; says whether it has.
    fn put_page(&mut self, index: u64, count: u64, loc: Loc) -> bool {
        if count < self.page_blocks() || loc.kind() == Kind::Data {
            return false;
        }
        let Some(page) = self.pages.get_mut(index as usize / PAGE_CHUNKS) else { return false };
        if let Page::Chunks(chunks) = page {
            chunks.iter_mut().for_each(|chunk| chunk.free(&mut self.capacity_bytes));
        }
        *page = Page::Whole(loc);
        true
    }

    /// Calls `visit` with the extents that overlap `count` blocks from `lba`, in order, clipped. Where there is none, nothing is called.
    pub(crate) fn lookup(&self, lba: u64, count: u64, visit: &mut dyn FnMut(Mapped)) {
        self.lookup_while(lba, count, &mut |m| {
            visit(m);
            true
        });
    }

    /// As [`ExtentMap::lookup`], as long as `visit` says to go on; whether it always did.
    pub(crate) fn lookup_while(&self, lba: u64, count: u64, visit: &mut dyn FnMut(Mapped) -> bool) -> bool {
        let size = 1_u64 << self.chunk_shift;
        let end = lba + count;
        let mut at = lba;
        while at < end {
            let index = at >> self.chunk_shift;
            let first = index << self.chunk_shift;
            let to = end.min(first + size);
            let chunk = match self.pages.get(index as usize / PAGE_CHUNKS) {
                None | Some(Page::Empty) => {
                    at = (index / PAGE_CHUNKS as u64 + 1) * self.page_blocks();
                    continue;
                }
                Some(Page::Whole(loc)) => {
                    let to = end.min((index / PAGE_CHUNKS as u64 + 1) * self.page_blocks());
                    if !visit(Mapped { lba: at, count: to - at, loc: *loc }) {
                        return false;
                    }
                    at = to;
                    continue;
                }
                Some(Page::Chunks(chunks)) => chunks.get(index as usize % PAGE_CHUNKS),
            };
            match chunk {
                None | Some(Chunk::Empty) => {}
                Some(Chunk::Whole(loc)) => {
                    if !visit(Mapped { lba: at, count: to - at, loc: loc.advanced(at - first) }) {
                        return false;
                    }
                }
                Some(Chunk::Some(entries)) => {
                    let (from, until) = ((at - first) as u32, (to - first) as u32);
                    let i = entries.partition_point(|e| e.end() <= from);
                    for e in entries[i..].iter().take_while(|e| e.start() < until) {
                        let e = e.clip(from, until);
                        let m = Mapped {
                            lba: first + u64::from(e.start()),
                            count: u64::from(e.end() - e.start()),
                            loc: e.loc(),
                        };
                        if !visit(m) {
                            return false;
                        }
                    }
                }
            }
            at = to;
        }
        true
    }

    /// Calls `visit` with every extent in order; neighbours that continue each other come as one.
    pub(crate) fn for_each(&self, visit: &mut dyn FnMut(Mapped)) {
        let mut open: Option<Mapped> = None;
        let mut merge = |m: Mapped| match &mut open {
            Some(o) if o.lba + o.count == m.lba && o.loc.advanced(o.count) == m.loc => {
                o.count += m.count;
            }
            _ => {
                if let Some(o) = open.replace(m) {
                    visit(o);
                }
            }
        };
        let page_blocks = self.page_blocks();
        for (i, page) in self.pages.iter().enumerate() {
            if !matches!(page, Page::Empty) {
                self.lookup(i as u64 * page_blocks, page_blocks, &mut merge);
            }
        }
        if let Some(o) = open {
            visit(o);
        }
    }

    /// Forgets versions that lie before `edge` in the log, in a part of the map: starting with page `page`, returns the next
    /// page to continue with, or `None` after the last.
    pub(crate) fn forget_before(&mut self, edge: Lsn, page: usize) -> Option<usize> {
        let slot = self.pages.get_mut(page)?;
        let empty = match slot {
            Page::Empty => false,
            Page::Whole(loc) => loc.lsn() < edge,
            Page::Chunks(chunks) => {
                let mut empty = true;
                for chunk in chunks.iter_mut() {
                    chunk.forget_before(edge, &mut self.capacity_bytes);
                    empty &= matches!(chunk, Chunk::Empty);
                }
                empty
            }
        };
        if empty {
            *slot = Page::Empty;
        }
        (page + 1 < self.pages.len()).then_some(page + 1)
    }
}

impl Chunk {
    fn insert(&mut self, from: u32, to: u32, loc: Loc, size: u32, capacity: &mut usize) {
        if from == 0 && to == size {
            self.free(capacity);
            *self = Chunk::Whole(loc);
            return;
        }
        if let Chunk::Whole(whole) = *self {
            let mut entries = Vec::with_capacity(4);
            entries.push(Entry::new(0, size, whole));
            *capacity += 4 * size_of::<Entry>() + size_of::<Vec<Entry>>();
            *self = Chunk::Some(Box::new(entries));
        } else if matches!(self, Chunk::Empty) {
            *capacity += size_of::<Vec<Entry>>();
            *self = Chunk::Some(Box::default());
        }
        let Chunk::Some(entries) = self else { return };
        let i = entries.partition_point(|e| e.end() <= from);
        if let Some(e) = entries.get_mut(i) {
            if e.start() == from && e.end() == to {
                *e = Entry::new(from, to, loc);
                return;
            }
        }
        let overlapping = entries[i..].iter().take_while(|e| e.start() < to).count();
        let new = Entry::new(from, to, loc);
        // At most a left rest, the new one and a right rest take the place of what is overlapped.
        let mut put = [new; 3];
        let mut n = 0;
        if overlapping > 0 && entries[i].start() < from {
            put[n] = entries[i].clip(0, from);
            n += 1;
        }
        put[n] = new;
        n += 1;
        if overlapping > 0 && entries[i + overlapping - 1].end() > to {
            put[n] = entries[i + overlapping - 1].clip(to, size);
            n += 1;
        }
        let grown = entries.len() + n - overlapping;
        if grown > entries.capacity() {
            let before = entries.capacity();
            entries.reserve_exact(grown + grown / 8 + 1 - entries.len());
            *capacity += (entries.capacity() - before) * size_of::<Entry>();
        }
        if n == overlapping {
            entries[i..i + n].copy_from_slice(&put[..n]);
        } else {
            entries.splice(i..i + overlapping, put[..n].iter().copied());
        }
    }

    fn free(&mut self, capacity: &mut usize) {
        if let Chunk::Some(entries) = self {
            *capacity -= entries.capacity() * size_of::<Entry>() + size_of::<Vec<Entry>>();
        }
        *self = Chunk::Empty;
    }

    fn forget_before(&mut self, edge: Lsn, capacity: &mut usize) {
        match self {
            Chunk::Empty => {}
            Chunk::Whole(loc) => {
                if loc.lsn() < edge {
                    *self = Chunk::Empty;
                }
            }
            Chunk::Some(entries) => {
                entries.retain(|e| e.loc().lsn() >= edge);
                if entries.is_empty() {
                    self.free(capacity);
                } else if entries.capacity() > entries.len() * 2 {
                    let before = entries.capacity();
                    entries.shrink_to(entries.len() + entries.len() / 8);
                    *capacity -= (before - entries.capacity()) * size_of::<Entry>();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BLOCKS: u64 = 3 * 8192 + 100;

    fn kind(n: u8) -> Kind {
        [Kind::Data, Kind::Pattern, Kind::Zero, Kind::Unmapped, Kind::Copy][usize::from(n % 5)]
    }

    proptest! {
        #[test]
        fn the_map_agrees_with_an_array(
            ops in prop::collection::vec((0..BLOCKS, 1..20_000_u64, any::<u8>(), any::<bool>()), 1..60),
            edge in 0..60_u64,
        ) {
            let mut map = ExtentMap::new(BLOCKS);
            let mut model: Vec<Option<Loc>> = vec![None; BLOCKS as usize];
            for (i, (lba, count, k, small)) in ops.into_iter().enumerate() {
                let count = if small { 1 + count % 16 } else { count }.min(BLOCKS - lba);
                let loc = Loc::new(kind(k), i as u64 * 100_000_000);
                map.insert(Mapped { lba, count, loc });
                for b in 0..count {
                    model[(lba + b) as usize] = Some(loc.advanced(b));
                }
            }
            let edge = edge * 100_000_000;
            let mut page = Some(0);
            while let Some(p) = page {
                page = map.forget_before(edge, p);
            }
            for slot in &mut model {
                *slot = slot.filter(|l| l.lsn() >= edge);
            }
            let mut seen: Vec<Option<Loc>> = vec![None; BLOCKS as usize];
            map.for_each(&mut |m| {
                for b in 0..m.count {
                    seen[(m.lba + b) as usize] = Some(m.loc.advanced(b));
                }
            });
            prop_assert!(seen == model);
            let capacity = map.capacity_bytes;
            let chunks = map.pages.iter().filter_map(|p| match p {
                Page::Chunks(chunks) => Some(chunks),
                _ => None,
            });
            let real: usize = chunks.flatten().map(|c| match c {
                Chunk::Some(e) => e.capacity() * 12 + 24,
                _ => 0,
            }).sum();
            prop_assert_eq!(capacity, real);
        }

        /// Extents over whole pages, cut again by small ones: at every boundary and beside it, the newest that covers it.
        #[test]
        fn vast_extents_are_cut_by_small_ones(
            ops in prop::collection::vec((0..9_u64, -2..3_i64, 0..9_u64, -2..3_i64, any::<u8>()), 1..20),
            edge in 0..20_u64,
        ) {
            let page = (PAGE_CHUNKS as u64) << 13;
            let blocks = 4 * page + 77;
            let mut map = ExtentMap::new(blocks);
            let mut made: Vec<Mapped> = Vec::new();
            let place = |half: u64, off: i64| (half * page / 2).saturating_add_signed(off).min(blocks);
            for (i, (a, da, b, db, k)) in ops.into_iter().enumerate() {
                let (x, y) = (place(a, da), place(b, db));
                let (lba, end) = (x.min(y), x.max(y));
                // Data of more than a record's length does not happen; of a page's least of all.
                let kind = [Kind::Data, Kind::Pattern, Kind::Zero, Kind::Unmapped, Kind::Copy][usize::from(k % 5)];
                let kind = if end - lba > page && kind == Kind::Data { Kind::Zero } else { kind };
                if lba < end {
                    let m = Mapped { lba, count: end - lba, loc: Loc::new(kind, i as u64 * 10_000_000_000) };
                    map.insert(m);
                    made.push(m);
                }
            }
            let edge = edge * 10_000_000_000;
            let mut at = Some(0);
            while let Some(p) = at {
                at = map.forget_before(edge, p);
            }
            for half in 0..9 {
                for off in -3..4 {
                    let at = place(half, off);
                    if at >= blocks {
                        continue;
                    }
                    let newest = made.iter().rev().find(|m| (m.lba..m.lba + m.count).contains(&at));
                    let want = newest.map(|m| m.loc.advanced(at - m.lba)).filter(|l| l.lsn() >= edge);
                    let mut got = None;
                    map.lookup(at, 1, &mut |m| got = Some(m.loc));
                    prop_assert_eq!(got, want, "block {}", at);
                }
            }
            let mut last = 0;
            map.lookup(0, blocks, &mut |m| {
                assert!(m.lba >= last && m.count > 0);
                last = m.lba + m.count;
            });
            prop_assert!(last <= blocks);
        }
    }
}
