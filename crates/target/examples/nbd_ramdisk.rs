//! An NBD server over disks in memory, to try clients and to measure the server without a journal behind it.
//!
//! `nbd_ramdisk [ADDRESS:PORT [MIB [NAME...]]]`, by default `127.0.0.1:10809 1024 ram`. Runs until its standard input ends.

#[path = "../tests/nbd_memory/mod.rs"]
mod nbd_memory;

use std::error::Error;
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use nbd_memory::MemoryLun;
use playhead_target::nbd::{Limits, Server};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().unwrap_or("127.0.0.1:10809".into());
    let mib: u64 = arguments.next().map_or(Ok(1024), |mib| mib.parse())?;
    let mut names: Vec<String> = arguments.collect();
    if names.is_empty() {
        names.push("ram".into());
    }
    let server = Server::bind(address.parse()?, Limits::default())?;
    for name in names {
        let lun = Arc::new(MemoryLun::new(&name, mib, false));
        server.add_export(&name, lun, "a disk in memory")?;
        println!("nbd://{}/{name}", server.address());
    }
    std::io::stdin().read_to_end(&mut Vec::new())?;
    server.stop(Duration::from_secs(5));
    Ok(())
}
