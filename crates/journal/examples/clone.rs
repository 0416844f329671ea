//! Measures copies as references, on the real medium, through the engine alone: prints one JSON line `{"metric", "value", "unit"}` each.
//!
//!     clone DIR [WRITTEN_MIB]
//!
//! A volume of 100 GiB in DIR (made, and removed in the end) takes WRITTEN_MIB (default 1,024) of random 4 KiB writes. It is cloned by one
//! command, and by 25,600 pieces of 4 MiB as a hypervisor sends them; the latter clone is cloned again, in pieces. Then: what a command
//! costs in time and journal, how fast each is read at random (where something was written), also after a tenth of the source has been
//! overwritten and after a restart; and how long zeroing 1 and 64 TiB takes.
use std::{error::Error, path::PathBuf, sync::Arc, time::Instant};

use playhead_journal::{files::DiskFiles, Change, CopyPiece, Group, NewBase, Options, Volume};

type Outcome<T> = Result<T, Box<dyn Error>>;

const BLOCKS: u64 = (100 << 30) / 512;
const PIECE: u64 = (4 << 20) / 512;

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) % n
    }
}

fn say(metric: &str, value: f64, unit: &str) {
    println!("{{\"metric\": \"{metric}\", \"value\": {value:.3}, \"unit\": \"{unit}\"}}");
}

fn reads(metric: &str, volume: &Volume, written: &[u64]) -> Outcome<()> {
    let mut random = Random(99);
    let mut buf = vec![0; 4096];
    let mut rates = Vec::new();
    for _ in 0..5 {
        let started = Instant::now();
        for _ in 0..20_000 {
            let i = random.below(written.len() as u64) as usize;
            volume.read(written.get(i).copied().unwrap_or(0), &mut buf)?;
        }
        rates.push(20_000.0 / started.elapsed().as_secs_f64());
    }
    rates.sort_by(f64::total_cmp);
    say(metric, rates.get(2).copied().unwrap_or(0.0), "reads/s");
    Ok(())
}

fn timed(metric: &str, group: &Group, commands: u64, work: impl FnOnce() -> Outcome<()>) -> Outcome<()> {
    let before = group.stats().bytes_written;
    let started = Instant::now();
    work()?;
    let took = started.elapsed().as_secs_f64();
    say(&format!("{metric}_time"), took * 1e3, "ms");
    say(&format!("{metric}_per_command"), took * 1e6 / commands as f64, "us");
    let bytes = group.stats().bytes_written - before;
    say(&format!("{metric}_journal_per_command"), bytes as f64 / commands as f64, "bytes");
    Ok(())
}

fn main() -> Outcome<()> {
    let args: Vec<String> = std::env::args().collect();
    let dir = PathBuf::from(args.get(1).ok_or("usage: clone DIR [WRITTEN_MIB]")?);
    let written_mib = args.get(2).map_or(Ok(1024), |a| a.parse::<u64>())?;
    let mut group = Group::create(Arc::new(DiskFiles), &dir, "clone", &Options::default())?;
    let sparse = |blocks| NewBase::Sparse { blocks };
    let source = group.add_volume("source", sparse(BLOCKS))?;
    let names = ["whole", "pieces", "again"];
    for name in names {
        group.add_volume(name, sparse(BLOCKS))?;
    }
    let mut random = Random(1);
    let written: Vec<u64> = (0..written_mib * 256).map(|_| random.below(BLOCKS / 8) * 8).collect();
    let data = vec![7; 4096];
    for batch in written.chunks(32) {
        let changes: Vec<_> = batch.iter().map(|lba| Change::Write { lba: *lba, data: &data }).collect();
        source.submit(&changes)?;
    }
    let all = [CopyPiece { source_lba: 0, lba: 0, count: BLOCKS }];
    let copy = |to: &str, from: &Volume, pieces: &[CopyPiece]| -> Outcome<()> {
        let to = group.volume(to)?;
        for piece in pieces {
            to.copy(from, std::slice::from_ref(piece))?;
        }
        Ok(())
    };
    let piece = |i| CopyPiece { source_lba: i * PIECE, lba: i * PIECE, count: PIECE };
    let pieces: Vec<CopyPiece> = (0..BLOCKS / PIECE).map(piece).collect();
    timed("clone_whole", &group, 1, || copy("whole", &source, &all))?;
    timed("clone_pieces", &group, pieces.len() as u64, || copy("pieces", &source, &pieces))?;
    let clone = group.volume("pieces")?;
    timed("clone_of_clone", &group, pieces.len() as u64, || copy("again", &clone, &pieces))?;
    let moment = source.freeze()?;
    let whole = group.volume("whole")?;
    timed("clone_moment", &group, 1, || Ok(whole.copy_moment(&moment, &all).map(|_| ())?))?;
    let look = |group: &Group, when: &str| -> Outcome<()> {
        for name in ["source"].iter().chain(&names) {
            reads(&format!("read_{name}_{when}"), &group.volume(name)?, &written)?;
        }
        Ok(())
    };
    look(&group, "fresh")?;
    for lba in written.iter().step_by(10) {
        source.submit(&[Change::Write { lba: *lba, data: &data }])?;
    }
    look(&group, "tenth_overwritten")?;
    timed("clone_moment_tenth_overwritten", &group, 1, || {
        Ok(whole.copy_moment(&moment, &all).map(|_| ())?)
    })?;
    drop((source, clone, whole, moment));
    group.close()?;
    drop(group);
    group = Group::open(Arc::new(DiskFiles), &dir, &Options::default())?;
    look(&group, "after_restart")?;
    for tib in [1, 64] {
        let volume = group.add_volume(&format!("vast-{tib}"), sparse(tib << 31))?;
        let count = tib << 31;
        timed(&format!("zero_{tib}_tib"), &group, 1, || {
            volume.submit(&[Change::Zero { lba: 0, count }])?;
            Ok(())
        })?;
        timed(&format!("write_same_{tib}_tib"), &group, 1, || {
            volume.submit(&[Change::WriteSame { lba: 0, count, block: &data[..512] }])?;
            Ok(())
        })?;
        timed(&format!("unmap_{tib}_tib"), &group, 1, || {
            volume.submit(&[Change::Unmap { lba: 0, count }])?;
            Ok(())
        })?;
    }
    say("index_memory", group.stats().index_bytes as f64, "bytes");
    group.close()?;
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}
