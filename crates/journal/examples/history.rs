//! Measures a long history, on the real medium, through the engine alone: prints one JSON line `{"metric", "value", "unit"}` each.
//!
//!     history DIR [WRITES] [BLOCK_BYTES] [VOLUME_MIB]
//!
//! A group in DIR (made, and removed in the end) takes WRITES random writes (default 10,000,000) of BLOCK_BYTES (4,096) each over a volume
//! of VOLUME_MIB (16,384). Then: how much memory the index takes, how long an image of the middle takes to open, how fast it and the head
//! serve random reads of 4 KiB, and how long a restart takes.
use std::{error::Error, path::PathBuf, sync::Arc, time::Instant};

use playhead_journal::{files::DiskFiles, Change, Group, NewBase, Options, Volume};

type Outcome<T> = Result<T, Box<dyn Error>>;

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

fn reads(volume: &Volume, slots: u64, n: u64, seed: u64) -> Outcome<f64> {
    let mut random = Random(seed);
    let mut buf = vec![0; 4096];
    let started = Instant::now();
    for _ in 0..n {
        volume.read(random.below(slots) * 8, &mut buf)?;
    }
    Ok(n as f64 / started.elapsed().as_secs_f64())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

fn main() -> Outcome<()> {
    let args: Vec<String> = std::env::args().collect();
    let number = |i: usize, default: u64| args.get(i).map_or(Ok(default), |a| a.parse::<u64>());
    let dir = PathBuf::from(args.get(1).ok_or("usage: history DIR [WRITES] [BLOCK_BYTES] [VOLUME_MIB]")?);
    let writes = number(2, 10_000_000)?;
    let block_bytes = number(3, 4096)?;
    let volume_bytes = number(4, 16_384)? << 20;
    let group = Group::create(Arc::new(DiskFiles), &dir, "history", &Options::default())?;
    let volume = group.add_volume("v", NewBase::Sparse { blocks: volume_bytes / 512 })?;
    let slots = volume_bytes / 4096;

    let mut random = Random(1);
    let mut data: Vec<u8> = (0..block_bytes * 32).map(|i| i as u8).collect();
    let mut middle = group.head();
    let started = Instant::now();
    for batch in 0..writes / 32 {
        data[..8].copy_from_slice(&batch.to_le_bytes());
        let changes: Vec<Change<'_>> = data
            .chunks_exact(block_bytes as usize)
            .map(|data| Change::Write { lba: random.below(slots) * 8, data })
            .collect();
        volume.submit(&changes)?;
        if batch == writes / 64 {
            middle = group.head();
        }
    }
    let elapsed = started.elapsed().as_secs_f64();
    say("writes", writes as f64, "records");
    say("write_rate", writes as f64 / elapsed, "1/s");
    group.flush()?;
    let settle = Instant::now();
    // The keeper catches up with sealing and merging.
    group.close()?;
    say("close", settle.elapsed().as_secs_f64(), "s");
    drop((volume, group));

    let mut restarts = Vec::new();
    for _ in 0..3 {
        let started = Instant::now();
        let group = Group::open(Arc::new(DiskFiles), &dir, &Options::default())?;
        restarts.push(started.elapsed().as_secs_f64());
        group.close()?;
    }
    say("restart", median(restarts), "s");

    let group = Group::open(Arc::new(DiskFiles), &dir, &Options::default())?;
    let volume = group.volume("v")?;
    say("journal_bytes", group.stats().journal_bytes as f64, "B");
    let mut distinct = std::collections::HashSet::new();
    let mut replay = Random(1);
    for _ in 0..writes / 32 * 32 {
        distinct.insert(replay.below(slots) as u32);
    }
    // Until the head has its one map again: an extent takes 12 bytes, and the active segment's list comes on top.
    for _ in 0..600 {
        if group.stats().index_bytes >= 12 * distinct.len() as u64 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    let index_bytes = group.stats().index_bytes;
    say("index_bytes_per_block", index_bytes as f64 / distinct.len() as f64, "B");

    let mut opens = Vec::new();
    for i in 0..7 {
        let lsn = group.window().edge.lsn + (middle.lsn - group.window().edge.lsn) / 7 * (i + 1) + 12_345;
        let started = Instant::now();
        let image = group.open_image("probe", lsn, false)?;
        let mut buf = vec![0; 4096];
        image.volume("v")?.read(8, &mut buf)?;
        opens.push(started.elapsed().as_secs_f64() * 1e3);
        group.close_image("probe")?;
    }
    say("image_open", median(opens), "ms");

    let image = group.open_image("middle", middle.lsn, false)?;
    let shown = image.volume("v")?;
    // The same blocks, first once to have them in the page cache alike.
    reads(&volume, slots.min(20_000), 200_000, 7)?;
    reads(&shown, slots.min(20_000), 800, 7)?;
    let cold = reads(&shown, slots.min(20_000), 100, 9)?;
    say("image_read_rate_before_materialising", cold, "1/s");
    reads(&shown, slots.min(20_000), 200_000, 7)?;
    std::thread::sleep(std::time::Duration::from_secs(5));
    let (mut head_rates, mut image_rates) = (Vec::new(), Vec::new());
    for round in 0..5 {
        head_rates.push(reads(&volume, slots.min(20_000), 100_000, 11 + round)?);
        image_rates.push(reads(&shown, slots.min(20_000), 100_000, 11 + round)?);
    }
    let (head_rate, image_rate) = (median(head_rates), median(image_rates));
    say("head_read_rate", head_rate, "1/s");
    say("image_read_rate", image_rate, "1/s");
    say("image_to_head_ratio", image_rate / head_rate, "1");
    drop((shown, image));
    group.close()?;
    drop((volume, group));
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}
