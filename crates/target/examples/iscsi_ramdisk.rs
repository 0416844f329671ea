//! Serves LUNs in memory over iSCSI, to try clients against:
//! `cargo run --example iscsi_ramdisk -- [ADDRESS:PORT [LUNS [MIB [SECONDS]]]]`.
//!
//! Prints the URL of LUN 0 and runs until its standard input ends, or for SECONDS.

#[path = "../tests/iscsi/ramdisk.rs"]
#[allow(dead_code, unreachable_pub)]
mod ramdisk;

use playhead_target::iscsi::{Limits, Server};
use std::error::Error;
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

const IQN: &str = "iqn.2026-01.org.playhead:ram";

/// A thousand connections need two thousand descriptors.
fn raise_descriptor_limit() {
    use rustix::process::{getrlimit, setrlimit, Resource, Rlimit};
    let current = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: current.maximum, maximum: current.maximum };
    let _ = setrlimit(Resource::Nofile, raised);
}

fn main() -> Result<(), Box<dyn Error>> {
    raise_descriptor_limit();
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().unwrap_or("127.0.0.1:0".to_owned());
    let luns: u16 = arguments.next().map_or(Ok(1), |text| text.parse())?;
    let mib: u64 = arguments.next().map_or(Ok(128), |text| text.parse())?;
    let seconds: Option<u64> = arguments.next().map(|text| text.parse()).transpose()?;
    let server = Server::bind(address.parse()?, Limits::default())?;
    server.add_target(IQN)?;
    for number in 0..luns {
        let disk = ramdisk::RamDisk::new(&format!("ram{number}"), mib * 2048);
        server.set_lun(IQN, number, Arc::new(disk))?;
    }
    println!("iscsi://{}/{IQN}/0", server.address());
    match seconds {
        Some(seconds) => std::thread::sleep(Duration::from_secs(seconds)),
        None => {
            std::io::stdin().read_to_end(&mut Vec::new())?;
        }
    }
    let stopped = server.stop(Duration::from_secs(2));
    println!("stopped: {} cut, {} left", stopped.cut, stopped.left);
    Ok(())
}
