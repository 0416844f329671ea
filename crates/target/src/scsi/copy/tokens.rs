//! The tokens there are, of all targets of a server. They live in memory: a restart forgets them, and their LUNs' frozen blocks with them.

use super::super::nexus::Nexus;
use super::super::policy::{Offload, Policy};
use super::super::reach::Reach;
use super::super::unit::LogicalUnit;
use super::TOKEN_LIMITS;
use crate::lun::{FrozenRef, BLOCK_BYTES};
use parking_lot::{Condvar, Mutex};
use playhead_wire::scsi::rod_token::{self, Range, TokenParts, SECRET_BYTES, TOKEN_BYTES};
use playhead_wire::scsi::Sense;
use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::Read;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// Tokens at once.
const TOKENS_MAX: usize = 4096;
/// Tokens of one initiator at once.
const TOKENS_OF_ONE_MAX: usize = 512;
/// Tokens that are no more, and of which it is known why.
const ENDED_MAX: usize = 4096;

/// A token's data, for whoever has the token.
#[derive(Clone)]
pub(super) struct Represented {
    pub(super) frozen: FrozenRef,
    /// In the order of the data.
    pub(super) ranges: Arc<[Range]>,
}

struct Token {
    bytes: [u8; TOKEN_BYTES],
    data: Represented,
    unit: Weak<LogicalUnit>,
    /// Who made it.
    initiator: Arc<str>,
    inactivity: Duration,
    used: Instant,
    end_of_life: Instant,
}

impl Token {
    fn expires(&self) -> Instant {
        (self.used + self.inactivity).min(self.end_of_life)
    }
}

/// Why a token that once was is no more.
struct Ended {
    bytes: [u8; TOKEN_BYTES],
    why: Sense,
}

#[derive(Default)]
struct Table {
    live: HashMap<u64, Token>,
    ended: HashMap<u64, Ended>,
    /// `ended`, oldest first.
    ended_order: VecDeque<u64>,
    reaping: bool,
}

impl Table {
    /// Takes the tokens that `chosen` picks out; what they held is for the caller to drop, outside the lock.
    fn end(&mut self, why: Sense, chosen: impl Fn(&Token) -> bool) -> Vec<Token> {
        let ids: Vec<u64> = self.live.iter().filter(|(_, token)| chosen(token)).map(|(id, _)| *id).collect();
        let mut tokens = Vec::with_capacity(ids.len());
        for id in ids {
            if let Some(token) = self.live.remove(&id) {
                self.ended.insert(id, Ended { bytes: token.bytes, why });
                self.ended_order.push_back(id);
                tokens.push(token);
            }
        }
        while self.ended_order.len() > ENDED_MAX {
            if let Some(oldest) = self.ended_order.pop_front() {
                self.ended.remove(&oldest);
            }
        }
        tokens
    }

    fn expire(&mut self) -> Vec<Token> {
        let now = Instant::now();
        self.end(Sense::TOKEN_EXPIRED, |token| token.expires() <= now)
    }
}

/// Whether two tokens are one, in a time that does not tell how much of them is.
fn same(a: &[u8; TOKEN_BYTES], b: &[u8; TOKEN_BYTES]) -> bool {
    a.iter().zip(b).fold(0, |differences, (a, b)| differences | (a ^ b)) == 0
}

/// The tokens of a server.
#[derive(Default)]
pub struct Tokens {
    table: Mutex<Table>,
    changed: Condvar,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokens").field("live", &self.table.lock().live.len()).finish()
    }
}

impl Tokens {
    /// Makes a token for `data` of `unit`.
    ///
    /// Errors: INSUFFICIENT RESOURCES TO CREATE ROD TOKEN; INTERNAL TARGET FAILURE without random numbers.
    pub(super) fn make(
        self: &Arc<Self>,
        unit: &Arc<LogicalUnit>,
        nexus: &Nexus,
        data: Represented,
        inactivity: Duration,
    ) -> Result<[u8; TOKEN_BYTES], Sense> {
        let mut random = [0; SECRET_BYTES + 8];
        if let Err(error) = File::open("/dev/urandom").and_then(|mut source| source.read_exact(&mut random)) {
            log::error!("no random numbers for a token: {error}");
            return Err(Sense::INTERNAL_FAILURE);
        }
        let (mut id, mut secret) = ([0; 8], [0; SECRET_BYTES]);
        id.copy_from_slice(&random[..8]);
        secret.copy_from_slice(&random[8..]);
        let id = u64::from_be_bytes(id);
        let blocks: u64 = data.ranges.iter().map(|range| u64::from(range.1)).sum();
        let bytes = rod_token::emit(&TokenParts {
            id,
            naa: *unit.naa(),
            bytes: u128::from(blocks) * BLOCK_BYTES as u128,
            block_bytes: BLOCK_BYTES as u32,
            target_name: &unit.target.name,
            secret: &secret,
        });
        let now = Instant::now();
        let token = Token {
            bytes,
            data,
            unit: Arc::downgrade(unit),
            initiator: Arc::clone(&nexus.port().name),
            inactivity,
            used: now,
            end_of_life: now + Duration::from_secs(u64::from(TOKEN_LIMITS.lifetime_s)),
        };
        let mut table = self.table.lock();
        let expired = table.expire();
        let of_one = table.live.values().filter(|other| other.initiator == token.initiator).count();
        let room = table.live.len() < TOKENS_MAX && of_one < TOKENS_OF_ONE_MAX;
        if !room || table.live.contains_key(&id) || table.ended.contains_key(&id) {
            return Err(Sense::INSUFFICIENT_TOKEN_RESOURCES);
        }
        table.live.insert(id, token);
        self.reap(&mut table);
        drop(table);
        drop(expired);
        Ok(bytes)
    }

    /// What `token` of the number `id` stands for, if its LUN is shown to this initiator, with the offload in force. `own` is the
    /// NAA designator of the unit it is used on, `nexus` the initiator's with that.
    ///
    /// Errors: INVALID TOKEN OPERATION, and why.
    pub(super) fn take(
        &self,
        id: u64,
        token: &[u8; TOKEN_BYTES],
        own: &[u8; 16],
        nexus: &Nexus,
        reach: &dyn Reach,
    ) -> Result<Represented, Sense> {
        let (data, unit) = {
            let mut table = self.table.lock();
            let expired = table.expire();
            let Table { live, ended, .. } = &mut *table;
            let found = match (live.get_mut(&id), ended.get(&id)) {
                (Some(live), _) if same(&live.bytes, token) => {
                    live.used = Instant::now();
                    Ok((live.data.clone(), Weak::clone(&live.unit)))
                }
                (None, Some(ended)) if same(&ended.bytes, token) => Err(ended.why),
                (None, None) => Err(Sense::TOKEN_UNKNOWN),
                _ => Err(Sense::TOKEN_CORRUPT),
            };
            drop(table);
            drop(expired);
            found?
        };
        let Some(unit) = unit.upgrade().filter(|unit| !unit.is_retired()) else {
            return Err(Sense::TOKEN_REVOKED);
        };
        // The LUN may be reached by another target than the token was made by: it has one name everywhere.
        let shown = if unit.naa() == own {
            nexus.offloads().contains(Offload::Odx)
        } else {
            reach.by_naa(unit.naa()).is_some_and(|at| at.nexus.offloads().contains(Offload::Odx))
        };
        if shown {
            Ok(data)
        } else {
            Err(Sense::TOKEN_REVOKED)
        }
    }

    /// A command that used the token is over: its inactivity begins anew.
    pub(super) fn touch(&self, id: u64) {
        if let Some(token) = self.table.lock().live.get_mut(&id) {
            token.used = Instant::now();
        }
    }

    /// Deletes a token on its user's wish.
    pub(super) fn delete(&self, id: u64) {
        let deleted =
            self.table.lock().end(Sense::TOKEN_DELETED, |token| token.bytes[8..16] == id.to_be_bytes());
        drop(deleted);
    }

    /// A token's data could not be kept.
    pub(super) fn cancel(&self, id: u64) {
        let cancelled =
            self.table.lock().end(Sense::TOKEN_CANCELLED, |token| token.bytes[8..16] == id.to_be_bytes());
        drop(cancelled);
    }

    /// The tokens `initiator` made on LUNs that `shown` picks by their NAA designators.
    pub(super) fn made_by(
        &self,
        initiator: &str,
        shown: impl Fn(&[u8; 16]) -> bool,
    ) -> Vec<[u8; TOKEN_BYTES]> {
        let mut table = self.table.lock();
        let expired = table.expire();
        let of_one = table.live.values().filter(|token| *token.initiator == *initiator);
        let made: Vec<_> = of_one.map(|token| (token.bytes, Weak::clone(&token.unit))).collect();
        drop(table);
        drop(expired);
        let present = |unit: &Weak<LogicalUnit>| unit.upgrade().is_some_and(|unit| shown(unit.naa()));
        made.into_iter().filter(|(_, unit)| present(unit)).map(|(bytes, _)| bytes).collect()
    }

    /// A unit is taken away: so are the tokens made on it.
    pub fn revoke_of(&self, unit: &Arc<LogicalUnit>) {
        let of_unit = |token: &Token| std::ptr::eq(token.unit.as_ptr(), Arc::as_ptr(unit));
        let revoked = self.table.lock().end(Sense::TOKEN_REVOKED, of_unit);
        drop(revoked);
    }

    /// What a LUN held is erased: so are the tokens that stand for it, whichever target they were made by.
    pub fn revoke_erased(&self, uuid: &[u8; 16]) {
        let of_lun = |token: &Token| token.data.frozen.identity().uuid == *uuid;
        let revoked = self.table.lock().end(Sense::TOKEN_REVOKED, of_lun);
        drop(revoked);
    }

    /// Another policy is in force: tokens of those who may not have them go.
    pub fn revoke_by(&self, policy: &Policy) {
        let rejected = |token: &Token| {
            let offloads = policy.in_force(&token.data.frozen.identity().uuid, &token.initiator);
            !offloads.contains(Offload::Odx)
        };
        let revoked = self.table.lock().end(Sense::TOKEN_REVOKED, rejected);
        drop(revoked);
    }

    /// All go.
    pub fn revoke_all(&self) {
        let revoked = self.table.lock().end(Sense::TOKEN_REVOKED, |_| true);
        self.changed.notify_all();
        drop(revoked);
    }

    /// Sees to it that tokens nobody comes back for give up what they hold.
    fn reap(self: &Arc<Self>, table: &mut Table) {
        if table.reaping {
            self.changed.notify_all();
            return;
        }
        let tokens = Arc::clone(self);
        let spawned = std::thread::Builder::new().name("tokens".to_owned()).spawn(move || tokens.work());
        match spawned {
            Ok(_) => table.reaping = true,
            // They still expire whenever a token is made or used.
            Err(error) => log::warn!("no thread to let tokens expire: {error}"),
        }
    }

    fn work(&self) {
        let mut table = self.table.lock();
        loop {
            let expired = table.expire();
            let next = table.live.values().map(Token::expires).min();
            if !expired.is_empty() {
                drop(table);
                drop(expired);
                table = self.table.lock();
                continue;
            }
            let Some(next) = next else {
                table.reaping = false;
                return;
            };
            self.changed.wait_until(&mut table, next);
        }
    }
}
