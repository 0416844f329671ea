//! A session in the full feature phase: PDUs in any order, on a disk and a target of its own.
//!
//! Input: one byte of options (bit 0 InitialR2T=Yes, bit 1 ImmediateData=No, bit 2 digests, bit 3 small bursts), then PDUs, each of:
//! opcode with its immediate bit, flags, LUN, tag, what is added to the CmdSN that is due (signed), a 32-bit word (little-endian; expected
//! length, Target Transfer Tag or referenced tag), the 16 bytes from byte 32 on (a CDB, say), a length (16 bits, little-endian, at most 2,048
//! counts), and that much data. The target's tags count from 1. All of it is sent, then the answers are read.

use crate::peer::Peer;
use crate::ramdisk::RamDisk;
use playhead_target::iscsi::{Limits, Server};
use playhead_wire::iscsi::bhs::{Digests, BHS_LEN};
use playhead_wire::iscsi::request::{LoginRequest, Request};
use playhead_wire::iscsi::response::{DataIn, Response};
use playhead_wire::iscsi::{text, RESERVED_TAG};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Blocks of the disk.
const BLOCKS: u64 = 256;
/// PDUs taken of one input.
const PDUS_MAX: usize = 32;
/// Most data of one PDU.
const DATA_MAX_BYTES: usize = 2048;
/// How long a removed target may take to be let go of.
const PATIENCE: Duration = Duration::from_secs(10);

fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| Server::bind("127.0.0.1:0".parse().unwrap(), Limits::default()).unwrap())
}

/// Runs the session of `data`.
pub fn run(data: &[u8]) {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let Some((&options, rest)) = data.split_first() else {
        return;
    };
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let iqn = format!("iqn.2026-01.org.playhead:session-{number}");
    server().add_target(&iqn).unwrap();
    server().set_lun(&iqn, 0, Arc::new(RamDisk::new(&format!("{number:016}"), BLOCKS))).unwrap();
    let mut peer = Peer::connect(server().address());
    log_in(&mut peer, &iqn, options);
    let mut sent = Sent::default();
    let bytes = sent.pdus(&peer, rest);
    peer.send(&bytes);
    peer.say_no_more();
    sent.take_answers(&mut peer);
    peer.end();
    // Nothing may hold the disk once the session is over.
    server().remove_target(&iqn, PATIENCE).unwrap();
}

fn log_in(peer: &mut Peer, iqn: &str, options: u8) {
    let yes_no = |bit: u8| if options & bit != 0 { "Yes" } else { "No" };
    let digest = if options & 4 != 0 { "CRC32C" } else { "None" };
    let burst = if options & 8 != 0 { "1024" } else { "65536" };
    let pairs = [
        ("InitiatorName", "iqn.fuzz"),
        ("TargetName", iqn),
        ("InitialR2T", yes_no(1)),
        ("ImmediateData", if options & 2 != 0 { "No" } else { "Yes" }),
        ("HeaderDigest", digest),
        ("DataDigest", digest),
        ("FirstBurstLength", burst),
        ("MaxBurstLength", burst),
        ("MaxOutstandingR2T", "2"),
    ];
    let mut data = Vec::new();
    for (key, value) in pairs {
        text::push(&mut data, key, value);
    }
    let login = LoginRequest {
        transit: true,
        continues: false,
        current_stage: 1,
        next_stage: 3,
        version_max: 0,
        version_min: 0,
        isid: [0x80, 0, 0, 0, 0, 9],
        tsih: 0,
        itt: 0,
        cid: 0,
        cmd_sn: 1,
        exp_stat_sn: 1,
    };
    let bytes = peer.pdu(Request::Login(login).emit(), &data);
    peer.send(&bytes);
    let (response, _, _) = peer.receive().expect("a login is answered");
    assert!(matches!(response, Response::Login { status: 0, .. }), "{response:?}");
    let on = options & 4 != 0;
    peer.digests = Digests { header: on, data: on };
}

/// What was asked, to hold the answers against.
#[derive(Default)]
struct Sent {
    /// By tag: commands, and the most that one of them expects.
    commands: HashMap<u32, (usize, u64)>,
}

impl Sent {
    fn pdus(&mut self, peer: &Peer, mut rest: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut cmd_sn = 1u32;
        for _ in 0..PDUS_MAX {
            let Some((&[opcode, flags, lun, itt, shift, w0, w1, w2, w3], after)) = rest.split_first_chunk()
            else {
                break;
            };
            let Some((tail, after)) = after.split_first_chunk::<16>() else {
                break;
            };
            let (len, after) = after.split_first_chunk::<2>().map_or((0, after), |(len, after)| {
                (usize::from(u16::from_le_bytes(*len)) % (DATA_MAX_BYTES + 1), after)
            });
            let (data, after) = after.split_at(len.min(after.len()));
            rest = after;
            let word = u32::from_le_bytes([w0, w1, w2, w3]);
            let mut header = [0; BHS_LEN];
            header[0] = opcode & 0x7f;
            header[1] = flags;
            header[9] = lun & 3;
            header[16..20].copy_from_slice(&u32::from(itt).to_be_bytes());
            header[20..24].copy_from_slice(&word.to_be_bytes());
            let sn = cmd_sn.wrapping_add_signed(i32::from(shift as i8));
            header[24..28].copy_from_slice(&sn.to_be_bytes());
            header[32..].copy_from_slice(tail);
            let is_data = opcode & 0x3f == 5 || opcode & 0x3f == 0x10;
            if opcode & 0x40 == 0 && shift == 0 && !is_data {
                cmd_sn = cmd_sn.wrapping_add(1);
            }
            if opcode & 0x3f == 1 {
                let (count, expected) = self.commands.entry(u32::from(itt)).or_default();
                *count += 1;
                *expected = (*expected).max(u64::from(word));
            }
            bytes.extend_from_slice(&peer.pdu(header, data));
        }
        bytes
    }

    /// Reads to the end. Each command ends once at most, with no more data than it expects; StatSN counts by one and the window never
    /// shrinks.
    fn take_answers(&mut self, peer: &mut Peer) {
        let mut stat_sn = None;
        let mut max_cmd_sn = None;
        let mut moved: HashMap<u32, u64> = HashMap::new();
        while let Some((response, counters, data)) = peer.receive() {
            let mut ends = None;
            let mut counts = true;
            match response {
                Response::DataIn(DataIn { itt, status, offset_bytes, .. }) => {
                    let (count, expected) = self.commands.get(&itt).copied().unwrap_or_default();
                    assert!(count > 0, "data for tag {itt}, which no command has");
                    assert!(
                        u64::from(offset_bytes) + data.len() as u64 <= expected,
                        "more data than expected"
                    );
                    *moved.entry(itt).or_default() += data.len() as u64;
                    ends = status.map(|_| itt);
                    counts = status.is_some();
                }
                Response::Scsi { itt, .. } => ends = Some(itt),
                Response::R2t { itt, offset_bytes, desired_bytes, .. } => {
                    let (_, expected) = self.commands.get(&itt).copied().unwrap_or_default();
                    assert!(desired_bytes > 0, "nothing is asked for");
                    assert!(u64::from(offset_bytes) + u64::from(desired_bytes) <= expected);
                    counts = false;
                }
                Response::NopIn { itt: RESERVED_TAG, .. } => counts = false,
                Response::Login { .. } => panic!("a login response in the full feature phase"),
                _ => {}
            }
            if let Some(itt) = ends {
                let (count, _) = self.commands.get_mut(&itt).expect("an end for a tag that no command has");
                assert!(*count > 0, "tag {itt} ended more often than it began");
                *count -= 1;
            }
            if counts {
                let expected =
                    stat_sn.replace(counters.stat_sn).map_or(counters.stat_sn, |sn: u32| sn.wrapping_add(1));
                assert_eq!(counters.stat_sn, expected, "StatSN");
            }
            let before = max_cmd_sn.replace(counters.max_cmd_sn).unwrap_or(counters.max_cmd_sn);
            assert!(counters.max_cmd_sn.wrapping_sub(before) < 1 << 31, "MaxCmdSN fell");
        }
    }
}
