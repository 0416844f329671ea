//! Times 4 KiB writes, one at a time, over LBAs drawn at random: `latency PORTAL TARGET LUN COUNT` prints the median and the 99th
//! percentile in microseconds. What bench/fabric.py runs against an array directly and through the splitter.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A tool for people at a terminal.

use playhead_initiator::{Blocking, Remote, Task};
use std::time::{Duration, Instant};

const BYTES: usize = 4096;
/// Blocks that are written to: 32 MiB.
const RANGE_BLOCKS: u64 = (32 << 20) / 512;
const LIMIT: Duration = Duration::from_secs(10);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [portal, target, lun, count] = arguments.as_slice() else {
        panic!("usage: latency PORTAL TARGET LUN COUNT");
    };
    let (number, count): (u16, usize) = (lun.parse().unwrap(), count.parse().unwrap());
    let isid = [0x80, 0, 0, 7, 0, std::process::id() as u8];
    let remote = Remote::new("iqn.2026-11.example:bench", isid, Some(target), vec![portal.parse().unwrap()]);
    let mut array = Blocking::new(remote);
    let lun = playhead_wire::iscsi::lun_bytes(number);
    for _ in 0..8 {
        if array.run(Task { lun, attribute: 1, ..Task::default() }, LIMIT).unwrap().status == 0 {
            break;
        }
    }
    let mut state = 1u64;
    let mut taken_ns = Vec::with_capacity(count);
    for i in 0..count + count / 10 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let lba = (state >> 33) % (RANGE_BLOCKS / 8) * 8;
        let mut cdb = [0; 16];
        cdb[0] = 0x2a;
        cdb[2..6].copy_from_slice(&(lba as u32).to_be_bytes());
        cdb[8] = (BYTES / 512) as u8;
        let data_out = vec![i as u8; BYTES];
        let task = Task { lun, cdb, attribute: 1, write_bytes: BYTES as u32, data_out, ..Task::default() };
        let begun = Instant::now();
        let answer = array.run(task, LIMIT).unwrap();
        let took = begun.elapsed();
        assert_eq!(answer.status, 0, "{:02x?}", answer.sense);
        // The first tenth warms up.
        if i >= count / 10 {
            taken_ns.push(took.as_nanos() as u64);
        }
    }
    taken_ns.sort_unstable();
    let at = |percent: usize| taken_ns[(taken_ns.len() - 1) * percent / 100] as f64 / 1000.0;
    println!("{:.1} {:.1}", at(50), at(99));
}
