//! A block device that is handed from server to server while it is written to without a pause.
//!
//! `ublk_hand_over leave|hasty|kill COUNT`: with `leave`, servers of this process let go of the device and take it up again; with `hasty`,
//! without waiting for what is under way; with `kill`, each is a process that is killed. Prints how many blocks were written in the meantime. Ends with an error if one of them failed, was not
//! what had been written (not with `kill`: the disk is in memory and dies with its process), or if the device hung.
//!
//! For Linux 6.12 and later, as root; it makes `/dev/ublkb63`.

#[path = "../tests/nbd_memory/mod.rs"]
mod nbd_memory;

use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nbd_memory::MemoryLun;
use playhead_target::lun::LunRef;
use playhead_target::ublk::{Server, UblkError};
use rustix::fs::OFlags;

const NUMBER: u32 = 63;
const NAME: &str = "disk";
const MIB: u64 = 64;
const BLOCK: usize = 4096;
const WRITERS: u64 = 8;
/// Nothing takes so long that is not stuck.
const PATIENCE: Duration = Duration::from_secs(30);

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> Outcome<()> {
    let mut arguments = std::env::args().skip(1);
    let mode = arguments.next().unwrap_or_default();
    let count: u32 = arguments.next().map_or(Ok(100), |count| count.parse())?;
    let lun: LunRef = Arc::new(MemoryLun::new(NAME, MIB, false));
    match mode.as_str() {
        "leave" | "hasty" => {
            let patience = if mode == "hasty" { Duration::ZERO } else { PATIENCE };
            let server = Server::default();
            server.serve(NAME, NUMBER, Arc::clone(&lun))?;
            hand_over(count, true, || {
                match server.let_go(NAME, patience) {
                    Err(UblkError::StillBusy { .. }) if patience.is_zero() => {}
                    other => other?,
                }
                Ok(server.serve(NAME, NUMBER, Arc::clone(&lun))?)
            })?;
        }
        "kill" => {
            let mut child = start()?;
            hand_over(count, false, || {
                child.kill()?;
                child.wait()?;
                child = start()?;
                Ok(())
            })?;
            child.kill()?;
            child.wait()?;
        }
        "serve" => {
            let server = Server::default();
            server.serve(NAME, NUMBER, Arc::clone(&lun))?;
            println!("serving");
            std::thread::park();
        }
        _ => return Err("usage: ublk_hand_over leave|hasty|kill [COUNT]".into()),
    }
    Server::default().remove(NAME, NUMBER, &lun.identity().uuid)?;
    Ok(())
}

/// A server of the device in a process of its own; returns when it serves.
fn start() -> Outcome<Child> {
    let mut child = Command::new(std::env::current_exe()?).arg("serve").stdout(Stdio::piped()).spawn()?;
    let mut said = String::new();
    let output = child.stdout.take().ok_or("no output")?;
    BufReader::new(output).read_line(&mut said)?;
    if said.trim() == "serving" {
        Ok(child)
    } else {
        Err(format!("it does not serve: {said}").into())
    }
}

/// Has the device written to while `next` is called `count` times.
fn hand_over(count: u32, verify: bool, mut next: impl FnMut() -> Outcome<()>) -> Outcome<()> {
    let enough = AtomicBool::new(false);
    let written = AtomicU64::new(0);
    let step = AtomicU64::new(0);
    let mut longest = Duration::ZERO;
    let ended = std::thread::scope(|scope| -> Outcome<()> {
        for writer in 0..WRITERS {
            let (enough, written) = (&enough, &written);
            scope.spawn(move || write(writer, verify, enough, written));
        }
        scope.spawn(|| watch(&enough, &step, &written));
        let ended = (0..count).try_for_each(|_| {
            let before = written.load(Ordering::SeqCst);
            let begun = Instant::now();
            next()?;
            step.fetch_add(1, Ordering::SeqCst);
            while written.load(Ordering::SeqCst) < before + WRITERS {
                std::thread::sleep(Duration::from_micros(200));
            }
            longest = longest.max(begun.elapsed());
            Ok(())
        });
        enough.store(true, Ordering::SeqCst);
        ended
    });
    println!(
        "handed over {count} times, {} blocks written, at most {} ms each",
        written.load(Ordering::SeqCst),
        longest.as_millis()
    );
    ended
}

/// Ends the process if nothing goes on.
fn watch(enough: &AtomicBool, step: &AtomicU64, written: &AtomicU64) {
    let mut last = (0, 0, Instant::now());
    while !enough.load(Ordering::SeqCst) {
        std::thread::sleep(Duration::from_millis(100));
        let (steps, blocks) = (step.load(Ordering::SeqCst), written.load(Ordering::SeqCst));
        if (steps, blocks) != (last.0, last.1) {
            last = (steps, blocks, Instant::now());
        } else if last.2.elapsed() > PATIENCE {
            eprintln!("stuck after {steps} times and {blocks} blocks");
            std::process::exit(3);
        }
    }
}

/// Writes every block of a share of the disk, over and over.
fn write(writer: u64, verify: bool, enough: &AtomicBool, written: &AtomicU64) {
    let outcome = (|| -> Outcome<()> {
        let flags = OFlags::DIRECT.bits() as i32;
        let disk: File = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(flags)
            .open(format!("/dev/ublkb{NUMBER}"))?;
        let mut memory = vec![0; 3 * BLOCK];
        let aligned = memory.as_ptr().align_offset(BLOCK);
        let memory = memory.get_mut(aligned..aligned + 2 * BLOCK).ok_or("alignment")?;
        let (data, back) = memory.split_at_mut(BLOCK);
        let share = MIB * 1024 * 1024 / BLOCK as u64 / WRITERS;
        for number in 0.. {
            if enough.load(Ordering::SeqCst) {
                break;
            }
            let at = (writer * share + number % share) * BLOCK as u64;
            let value: u64 = number * WRITERS + writer + 1;
            data.fill(value as u8);
            data[..8].copy_from_slice(&value.to_le_bytes());
            disk.write_all_at(data, at)?;
            if number % 16 == 0 {
                disk.sync_data()?;
            }
            if verify {
                disk.read_exact_at(back, at)?;
                if back != data {
                    return Err(format!("block at {at} is not what was written").into());
                }
            }
            written.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    })();
    if let Err(error) = outcome {
        eprintln!("writer {writer}: {error}");
        std::process::exit(4);
    }
}
