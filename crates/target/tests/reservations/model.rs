//! The device server against a model of SPC-4 5.13: random commands, and after each the whole of what can be seen must agree.
//!
//! The model says what is so, in as few words as it can; it knows nothing of how the device server goes about it. `PLAYHEAD_SEED` and
//! `PLAYHEAD_CASES` choose other runs.

use super::medium::{random::Random, SimFiles};
use super::stage::{self, list, move_list, Fail, Stage, SEATS};
use playhead_target::lun::Lun;
use std::collections::BTreeMap;

const PREEMPTED_REGISTRATION: u16 = 0x2a05;
const PREEMPTED_RESERVATION: u16 = 0x2a03;
const RELEASED: u16 = 0x2a04;
const KINDS: [u8; 6] = [1, 3, 5, 6, 7, 8];

/// A command that changes reservations.
#[derive(Debug, Clone, Copy)]
struct Step {
    by: usize,
    action: u8,
    kind: u8,
    key: u64,
    action_key: u64,
    persist: bool,
    all_ports: bool,
    /// Of REGISTER AND MOVE.
    to: usize,
    unregister: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Model {
    keys: BTreeMap<usize, u64>,
    /// The type, and the holder if not all registrants are.
    held: Option<(u8, Option<usize>)>,
    persist: bool,
    generation: u32,
}

type Told = Vec<(usize, u16)>;

impl Model {
    fn holds(&self, seat: usize) -> bool {
        match self.held {
            Some((_, Some(holder))) => holder == seat,
            Some((_, None)) => self.keys.contains_key(&seat),
            None => false,
        }
    }

    fn hold(&mut self, seat: usize, kind: u8) {
        self.held = Some((kind, (kind < 7).then_some(seat)));
    }

    fn may(&self, seat: usize, write: bool) -> bool {
        let Some((kind, _)) = self.held else { return true };
        let exclusive_access = [3, 6, 8].contains(&kind);
        let shares = if kind >= 5 { self.keys.contains_key(&seat) } else { self.holds(seat) };
        shares || (!write && !exclusive_access)
    }

    fn others(&self, seat: usize, code: u16) -> Told {
        self.keys.keys().filter(|other| **other != seat).map(|other| (*other, code)).collect()
    }

    /// Takes registrations away, and what they held.
    fn leave(&mut self, gone: &[usize], by: usize) -> Told {
        let alone = gone.iter().any(|seat| matches!(self.held, Some((_, Some(holder))) if holder == *seat));
        self.keys.retain(|seat, _| !gone.contains(seat));
        if alone || self.keys.is_empty() {
            let shared = self.held.is_some_and(|(kind, _)| kind >= 5);
            self.held = None;
            if shared {
                return self.others(by, RELEASED);
            }
        }
        Told::new()
    }

    fn step(&mut self, step: &Step) -> Result<Told, Fail> {
        let by = step.by;
        let own = self.keys.get(&by).copied();
        let before = self.clone();
        let told = match step.action {
            stage::REGISTER | stage::REGISTER_AND_IGNORE => {
                if step.action == stage::REGISTER && own.unwrap_or(0) != step.key {
                    return Err(Fail::Conflict);
                }
                if own.is_none() && step.action_key == 0 {
                    return Ok(Told::new());
                }
                // The same initiator port, on every target if so wanted.
                let same = |seat: &usize| {
                    let (other, own) = (&SEATS[*seat], &SEATS[by]);
                    (step.all_ports || other.target == own.target)
                        && (other.initiator, other.isid) == (own.initiator, own.isid)
                };
                let seats: Vec<usize> = (0..SEATS.len()).filter(same).collect();
                self.persist = step.persist;
                if step.action_key == 0 {
                    self.leave(&seats, by)
                } else {
                    self.keys.extend(seats.iter().map(|seat| (*seat, step.action_key)));
                    Told::new()
                }
            }
            _ if own != Some(step.key) => return Err(Fail::Conflict),
            stage::RESERVE => {
                if self.held.is_some_and(|(kind, _)| kind != step.kind || !self.holds(by)) {
                    return Err(Fail::Conflict);
                }
                self.hold(by, step.kind);
                return Ok(Told::new());
            }
            stage::RELEASE => {
                let Some((kind, _)) = self.held.filter(|_| self.holds(by)) else { return Ok(Told::new()) };
                if kind != step.kind {
                    return Err(Fail::Sense(0x2604));
                }
                self.held = None;
                return Ok(if kind >= 5 { self.others(by, RELEASED) } else { Told::new() });
            }
            stage::CLEAR => {
                self.keys.clear();
                self.held = None;
                before.others(by, PREEMPTED_RESERVATION)
            }
            stage::PREEMPT | stage::PREEMPT_AND_ABORT => {
                let all = matches!(self.held, Some((_, None)));
                if step.action_key == 0 && !all {
                    return Err(Fail::Sense(0x2600));
                }
                let named = |key: &u64| step.action_key == 0 || *key == step.action_key;
                if !self.keys.values().any(named) {
                    return Err(Fail::Conflict);
                }
                let over = match self.held {
                    Some((_, Some(holder))) => self.keys[&holder] == step.action_key,
                    Some((_, None)) => step.action_key == 0,
                    None => false,
                };
                self.keys.retain(|seat, key| !named(key) || (over && *seat == by));
                let lost = before.keys.keys().filter(|seat| !self.keys.contains_key(seat) && **seat != by);
                let mut told: Told = lost.map(|seat| (*seat, PREEMPTED_REGISTRATION)).collect();
                if over {
                    if before.held.is_some_and(|(kind, _)| kind != step.kind) {
                        told.extend(self.others(by, RELEASED));
                    }
                    self.hold(by, step.kind);
                } else if self.keys.is_empty() {
                    self.held = None;
                }
                told
            }
            stage::REGISTER_AND_MOVE => {
                let (to, own) = (&SEATS[step.to], &SEATS[by]);
                match self.held {
                    None => return Err(Fail::Sense(0x2400)),
                    Some((_, holder)) if holder != Some(by) => return Err(Fail::Conflict),
                    _ if step.action_key == 0 => return Err(Fail::Sense(0x2600)),
                    _ if (to.initiator, to.isid) == (own.initiator, own.isid) => {
                        return Err(Fail::Sense(0x2600))
                    }
                    Some((kind, _)) => self.hold(step.to, kind),
                }
                self.keys.insert(step.to, step.action_key);
                if step.unregister {
                    self.keys.remove(&by);
                }
                self.persist = step.persist;
                Told::new()
            }
            other => panic!("no such step: {other}"),
        };
        self.generation += 1;
        Ok(told)
    }

    fn power_on(&mut self) {
        self.generation = 0;
        if !self.persist {
            *self = Model::default();
        } else if self.keys.is_empty() {
            self.persist = false;
        }
    }
}

fn random_step(random: &mut Random, model: &Model) -> Step {
    const ACTIONS: [u8; 12] = [0, 0, 1, 1, 2, 3, 4, 4, 5, 6, 6, 7];
    let by = random.below(SEATS.len() as u64) as usize;
    // Mostly the right key, so that most commands get somewhere.
    let own = model.keys.get(&by).copied().unwrap_or(0);
    Step {
        by,
        action: if model.keys.len() < 2 { random.pick(&[0, 0, 1, 6]) } else { random.pick(&ACTIONS) },
        kind: match model.held {
            Some((kind, _)) if random.once_in(2) => kind,
            _ => random.pick(&KINDS),
        },
        key: if random.once_in(8) { random.below(4) } else { own },
        action_key: random.below(4),
        persist: random.once_in(2),
        all_ports: random.once_in(4),
        to: random.below(SEATS.len() as u64) as usize,
        unregister: random.once_in(2),
    }
}

fn run(stage: &Stage, step: &Step) -> Result<(), Fail> {
    let flags = u8::from(step.persist) | u8::from(step.all_ports) << 2;
    let list = match step.action {
        stage::REGISTER_AND_MOVE => {
            let flags = u8::from(step.persist) | u8::from(step.unregister) << 1;
            move_list(step.key, step.action_key, flags, &SEATS[step.to])
        }
        _ => list(step.key, step.action_key, flags),
    };
    stage.out(step.by, step.action, step.kind, &list).map(|_| ())
}

/// What READ KEYS, READ RESERVATION and REPORT CAPABILITIES say, and what everybody may do.
fn compare(stage: &Stage, model: &Model, story: &str) {
    let be32 = |data: &[u8], at: usize| u32::from_be_bytes(data[at..at + 4].try_into().unwrap());
    let keys = stage.ask(0, 0).unwrap();
    assert_eq!(be32(&keys, 0), model.generation, "generation {story}");
    let mut found: Vec<u64> =
        keys[8..].chunks_exact(8).map(|key| u64::from_be_bytes(key.try_into().unwrap())).collect();
    let mut wanted: Vec<u64> = model.keys.values().copied().collect();
    found.sort_unstable();
    wanted.sort_unstable();
    assert_eq!(found, wanted, "keys {story}");
    let held = stage.ask(0, 1).unwrap();
    let found = (held.len() > 8).then(|| (held[21], u64::from_be_bytes(held[8..16].try_into().unwrap())));
    let wanted = model.held.map(|(kind, holder)| (kind, holder.map_or(0, |seat| model.keys[&seat])));
    assert_eq!(found, wanted, "reservation {story}");
    assert_eq!(stage.ask(0, 2).unwrap()[3] & 1, u8::from(model.persist), "PTPL_A {story}");
    for seat in 0..SEATS.len() {
        assert_eq!(stage.may_read(seat), model.may(seat, false), "read by {seat} {story}");
        assert_eq!(stage.may_write(seat), model.may(seat, true), "write by {seat} {story}");
    }
    let device = stage.devices.find(&stage.disk.identity().uuid);
    let stranger = usize::MAX;
    assert_eq!(device.admits_strangers(false), model.may(stranger, false), "read over NBD {story}");
    assert_eq!(device.admits_strangers(true), model.may(stranger, true), "write over NBD {story}");
}

#[test]
fn random_commands_do_what_the_standard_says() {
    let number = |variable: &str, default: u64| {
        std::env::var(variable).map_or(default, |text| text.parse().expect("a number"))
    };
    let first = number("PLAYHEAD_SEED", 1);
    for seed in first..first + number("PLAYHEAD_CASES", 60) {
        let mut random = Random::new(seed);
        let medium = SimFiles::new();
        let mut stage = Stage::power_on(&medium).unwrap();
        let mut model = Model::default();
        for n in 0..120 {
            if random.once_in(30) {
                drop(stage);
                stage = Stage::power_on(&medium).unwrap();
                model.power_on();
                compare(&stage, &model, &format!("after power on, seed {seed}, step {n}"));
            }
            let step = random_step(&mut random, &model);
            let before = model.clone();
            let story = format!("seed {seed}, step {n}: {step:?} on {before:?}");
            let wanted = model.step(&step);
            if wanted.is_err() {
                model = before.clone();
            }
            let got = run(&stage, &step);
            assert_eq!(got, wanted.as_ref().map(|_| ()).map_err(|fail| *fail), "{story}");
            for seat in 0..SEATS.len() {
                let told = wanted.iter().flatten().filter(|(who, _)| *who == seat);
                let mut told: Vec<u16> = told.map(|(_, code)| *code).collect();
                let mut heard = stage.attentions(seat);
                told.sort_unstable();
                heard.sort_unstable();
                assert_eq!(heard, told, "unit attentions of {seat}, {story}");
            }
            compare(&stage, &model, &story);
        }
    }
}
