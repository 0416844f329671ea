//! Reading a group's directory offline, trusting nothing: `playhead journal dump` and `verify`.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use crate::{
    error::Context,
    extents::Mapped,
    files::Files,
    index::{index_dir, Entry, SegmentIndex},
    lineage::TimelineId,
    maps::{Maps, Sizes},
    record::{BranchPoint, CopySource, Header, Opcode},
    run::{Run, RunKey},
    scan::{Found, Scan},
    scratch,
    segment::{first_lsn, log_dir, place, segment_number, Segment, SegmentNumber},
    superblock::{Memory, Superblock},
    Error, Lsn, Result,
};

/// A record, as a person reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordInfo {
    /// Its place, in bytes.
    pub lsn: Lsn,
    /// Hybrid logical clock, ns since the Unix epoch.
    pub time_ns: u64,
    /// Which run of the service wrote it.
    pub epoch: u32,
    /// Its line of history.
    pub timeline: u32,
    /// The volume's number, or `u32::MAX`.
    pub volume: u32,
    /// Name of the opcode.
    pub opcode: &'static str,
    /// First block.
    pub lba: u64,
    /// Blocks.
    pub count: u64,
    /// Bytes of payload.
    pub payload_bytes: u32,
    /// What the payload says, where it is not block data.
    pub detail: String,
}

/// What verifying found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verdict {
    /// Segments read.
    pub segments: u64,
    /// Valid records.
    pub records: u64,
    /// Bytes of valid records.
    pub bytes: u64,
    /// Trailing edge.
    pub edge: Lsn,
    /// Where the log ends.
    pub head: Lsn,
    /// What is wrong; empty if all is well.
    pub problems: Vec<String>,
}

/// Problems reported at most; a wholly broken journal has as many as it has records.
const MAX_PROBLEMS: usize = 1000;
/// Times a group that is trimmed meanwhile is looked at.
const ATTEMPTS: usize = 5;

fn detail(header: &Header, payload: &[u8]) -> String {
    match header.opcode {
        Opcode::Copy => CopySource::decode(payload)
            .map_or_else(|| "damaged".into(), |s| format!("from volume {} LBA {}", s.volume, s.lba)),
        Opcode::Bookmark => payload.split_first().map_or_else(String::new, |(kind, name)| {
            let kind = if *kind == 1 { "application" } else { "crash" };
            format!("{} ({kind}-consistent)", String::from_utf8_lossy(name))
        }),
        Opcode::Branch => BranchPoint::decode(payload).map_or_else(
            || "damaged".into(),
            |b| {
                let what = if b.production { "rewind" } else { "writable image" };
                format!("timeline {} from timeline {} at LSN {} ({what})", b.timeline, b.parent, b.at)
            },
        ),
        Opcode::ResyncEnd => format!("began at LSN {}", crate::record::u64_at(payload, 0)),
        _ => String::new(),
    }
}

fn segments(files: &dyn Files, dir: &Path, memory: &Memory) -> Result<Vec<SegmentNumber>> {
    let logs = log_dir(dir);
    let (first, _) = place(memory.folded, memory.segment_bytes);
    let mut numbers: Vec<SegmentNumber> = files
        .list(&logs)
        .doing("listing", &logs)?
        .iter()
        .filter_map(|n| segment_number(n))
        .filter(|n| *n >= first)
        .collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// Walks the log; `visit` gets every valid record with its payload and returns whether to go on. Returns where the log ends and why.
fn walk(
    files: &dyn Files,
    dir: &Path,
    memory: &Memory,
    from: SegmentNumber,
    visit: &mut dyn FnMut(&Header, &[u8]) -> bool,
) -> Result<(Lsn, String)> {
    let bytes = memory.segment_bytes;
    let numbers = segments(files, dir, memory)?;
    let mut epochs = (0, memory.epoch);
    let first = place(memory.folded, bytes).0.max(from);
    let mut expected = first;
    for number in numbers.into_iter().filter(|n| *n >= first) {
        if number != expected {
            return Ok((first_lsn(expected, bytes), format!("segment {expected:016x} is missing")));
        }
        let segment = Segment::existing(dir, number, true);
        if let Err(e) = segment.check(files, memory.id, bytes) {
            return Ok((first_lsn(number, bytes), e.to_string()));
        }
        let file = Arc::clone(segment.file(files)?);
        let mut scan = Scan::new((file, segment.path.clone()), number, bytes, memory.seed(), epochs);
        loop {
            match scan.next()? {
                Found::Record(header) => {
                    let payload = scan.payload(&header)?;
                    if !visit(&header, payload) {
                        return Ok((header.end(), "stopped".into()));
                    }
                }
                Found::SegmentEnd => break,
                Found::Nothing(why) => return Ok((number * bytes + scan.offset, why.into())),
            }
        }
        epochs = scan.epochs;
        expected = number + 1;
    }
    Ok((first_lsn(expected, bytes), "no further segment".into()))
}

/// Calls `visit` with every valid record from `from` on, in order, until it returns `false`.
pub fn dump(
    files: &dyn Files,
    dir: &Path,
    from: Lsn,
    visit: &mut dyn FnMut(&RecordInfo) -> bool,
) -> Result<()> {
    let memory = Superblock::peek(files, dir)?;
    let (number, _) = place(from, memory.segment_bytes);
    walk(files, dir, &memory, number, &mut |h, payload| {
        h.lsn < from
            || visit(&RecordInfo {
                lsn: h.lsn,
                time_ns: h.time_ns,
                epoch: h.epoch,
                timeline: h.timeline,
                volume: h.volume,
                opcode: h.opcode.name(),
                lba: h.lba,
                count: h.count,
                payload_bytes: h.payload_bytes,
                detail: detail(h, payload),
            })
    })?;
    Ok(())
}

/// Checks every record, and that every index and run says what the records say, also of what was written to images beside the log.
/// Nothing is changed. The group may be in use: what is trimmed away while we look is looked at again.
pub fn verify(files: &dyn Files, dir: &Path) -> Result<Verdict> {
    let mut verdict = verify_log(files, dir)?;
    for image in Superblock::peek(files, dir)?.images.iter().filter(|image| image.scratch.is_some()) {
        let found = match verify_log(files, &scratch::directory(dir, &image.name)) {
            Ok(found) => found.problems,
            Err(e) => vec![e.to_string()],
        };
        verdict.problems.extend(found.into_iter().map(|problem| format!("image {}: {problem}", image.name)));
    }
    Ok(verdict)
}

fn verify_log(files: &dyn Files, dir: &Path) -> Result<Verdict> {
    for _ in 0..ATTEMPTS {
        let memory = Superblock::peek(files, dir)?;
        let verdict = verify_once(files, dir, &memory)?;
        let after = Superblock::peek(files, dir)?;
        let moved = after.folded != memory.folded || after.history != memory.history;
        if verdict.problems.is_empty() || !moved {
            return Ok(verdict);
        }
    }
    Err(Error::Conflict(
        "the group is trimmed faster than it can be verified: verify it when hosts write less".into(),
    ))
}

fn verify_once(files: &dyn Files, dir: &Path, memory: &Memory) -> Result<Verdict> {
    // What is sealed while we walk is beyond what was there when we began.
    let indexes = index_dir(dir);
    let names = files.list(&indexes).doing("listing", &indexes)?;
    let floor = crate::open::durable_floor(files, dir, memory)?;
    let bytes = memory.segment_bytes;
    let mut verdict = Verdict {
        edge: memory.edge.lsn,
        segments: segments(files, dir, memory)?.len() as u64,
        ..Verdict::default()
    };
    let mut problems: Vec<String> = Vec::new();
    let mut by_segment: BTreeMap<SegmentNumber, Vec<Entry>> = BTreeMap::new();
    let mut last: Option<Header> = None;
    let blocks: BTreeMap<u32, u64> = memory.volumes.iter().map(|v| (v.number, v.block_count)).collect();
    let (head, why) = walk(files, dir, memory, 0, &mut |h, payload| {
        verdict.records += 1;
        verdict.bytes += h.end() - h.lsn;
        if last.is_some_and(|l| l.time_ns >= h.time_ns) && problems.len() < MAX_PROBLEMS {
            problems.push(format!("LSN {}: its time is not after its predecessor's", h.lsn));
        }
        if let Some(&blocks) = blocks.get(&h.volume) {
            if h.opcode.changes_blocks() && h.lba.checked_add(h.count).is_none_or(|e| e > blocks) {
                problems.push(format!("LSN {}: blocks beyond the end of volume {}", h.lsn, h.volume));
            }
        }
        if h.opcode == Opcode::Copy {
            problems.extend(copy_problem(h, payload, &blocks).map(|p| format!("LSN {}: {p}", h.lsn)));
        }
        by_segment.entry(h.lsn / bytes).or_default().push(Entry::from(h));
        last = Some(*h);
        problems.len() < MAX_PROBLEMS
    })?;
    verdict.head = head;
    if head < floor {
        problems.push(format!(
            "the log ends at LSN {head} ({why}) but was durable up to {floor}: flushed records are lost"
        ));
    }
    verify_indexes(files, dir, memory, (&names, &by_segment), &mut problems)?;
    verdict.problems = problems;
    Ok(verdict)
}

/// What is wrong with a COPY record, if anything is.
fn copy_problem(h: &Header, payload: &[u8], blocks: &BTreeMap<u32, u64>) -> Option<String> {
    let Some(source) = CopySource::decode(payload) else {
        return Some("it does not say where it copies from".into());
    };
    let end = source.lba.saturating_add(h.count);
    if blocks.get(&source.volume).is_some_and(|blocks| end > *blocks) {
        return Some(format!("it copies from beyond the end of volume {}", source.volume));
    }
    let overlaps = source.volume == h.volume && source.lba < h.lba.saturating_add(h.count) && h.lba < end;
    overlaps.then(|| "it overlaps its own source".into())
}

fn verify_indexes(
    files: &dyn Files,
    dir: &Path,
    memory: &Memory,
    (names, by_segment): (&[String], &BTreeMap<SegmentNumber, Vec<Entry>>),
    problems: &mut Vec<String>,
) -> Result<()> {
    let indexes = index_dir(dir);
    let (first, _) = place(memory.folded, memory.segment_bytes);
    for name in names {
        if problems.len() >= MAX_PROBLEMS {
            break;
        }
        let path = indexes.join(name);
        if let Some((timeline, key)) = RunKey::parse(name) {
            if key.segments().1 > first && memory.history.timelines.contains_key(&timeline) {
                match told_by(files, dir, memory, timeline, key) {
                    Err(e) => problems.push(e.to_string()),
                    Ok(told) if told != made_of(memory, by_segment, timeline, key) => {
                        problems.push(format!("{} does not tell what its segments hold", path.display()));
                    }
                    Ok(_) => {}
                }
            }
            continue;
        }
        let number = name.strip_suffix(".idx").and_then(|n| u64::from_str_radix(n, 16).ok());
        let Some(number) = number.filter(|n| *n >= first) else { continue };
        let told = SegmentIndex::open(files, dir, number, memory.seed())
            .ok_or_else(|| Error::Damaged { path: path.clone(), detail: "its header is not valid".into() })
            .and_then(|index| index.entries(files, memory.seed()));
        match told {
            Err(e) => problems.push(e.to_string()),
            Ok(told) => {
                let none = Vec::new();
                if &told != by_segment.get(&number).unwrap_or(&none) {
                    problems.push(format!("{} does not tell what its segment holds", path.display()));
                }
            }
        }
    }
    Ok(())
}

type Told = Vec<(u32, Mapped)>;

fn listed(maps: &Maps) -> Told {
    let mut out = Vec::new();
    maps.for_each(&mut |volume, m| out.push((volume, m)));
    out
}

fn sizes(memory: &Memory) -> Sizes {
    Arc::new(memory.volumes.iter().map(|v| (v.number, v.block_count)).collect())
}

/// What a run says.
fn told_by(
    files: &dyn Files,
    dir: &Path,
    memory: &Memory,
    timeline: TimelineId,
    key: RunKey,
) -> Result<Told> {
    let run = Run::open(files, dir, timeline, key, memory.seed())?;
    let mut maps = Maps::new(sizes(memory));
    run.pour_into(&mut maps)?;
    let (first, _) = place(memory.folded, memory.segment_bytes);
    Ok(listed(&maps).into_iter().filter(|(_, m)| m.loc.lsn() / memory.segment_bytes >= first).collect())
}

/// What it should say, by the records of its segments.
fn made_of(
    memory: &Memory,
    by_segment: &BTreeMap<SegmentNumber, Vec<Entry>>,
    timeline: TimelineId,
    key: RunKey,
) -> Told {
    let mut maps = Maps::new(sizes(memory));
    let (first, end) = key.segments();
    for e in by_segment.range(first..end).flat_map(|(_, entries)| entries) {
        if let (true, Some(m)) = (e.timeline == timeline, e.mapped()) {
            maps.insert(e.volume, m);
        }
    }
    listed(&maps)
}
