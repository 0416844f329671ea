//! The threads that do jobs. They come and go with the work, and nobody has all of them: no LUN more than its share, so that one that
//! does not answer holds up its own jobs and no others; and no initiator more than what it leaves free, so that one with many LUNs and
//! long copies does not keep another's waiting.
//!
//! A job cannot be interrupted for another's sake, so a share has to leave room beforehand. An initiator alone gets half of the
//! workers, the next half of the rest, and so on: whoever has nothing at work gets a worker while one is free. Of those who may have
//! one more, whoever has the fewest at work is next, and of equals whoever was last served longest ago. What may wait is bounded in the
//! same way: a common room for the many, and a few places of each initiator's own that nobody else can take.

use parking_lot::{Condvar, Mutex, MutexGuard};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// Jobs at work at once, over all sessions.
const WORKERS_MAX: usize = 32;
/// Of these, for one LUN.
const OF_ONE_LUN_MAX: usize = 4;
/// Jobs that may wait for a worker.
const QUEUE_MAX: usize = 1024;
/// Jobs of one initiator that may wait however many others do. There are no more initiators than connections, so this is a bound too.
const OWN_PLACES: usize = 8;
/// How long a worker waits for more before its thread ends.
const IDLE: Duration = Duration::from_secs(5);

pub(super) type Task = Box<dyn FnOnce() + Send>;
/// A LUN, by its NAA designator.
type LunKey = [u8; 16];

/// What one initiator has at work and waiting; not both are nothing.
struct Share {
    initiator: Arc<str>,
    at_work: usize,
    /// Oldest first.
    waiting: VecDeque<(LunKey, Task)>,
}

/// A task that is to be done, and whose it is.
struct Taken {
    initiator: Arc<str>,
    lun: LunKey,
    task: Task,
}

#[derive(Default)]
struct Queue {
    /// Whoever was served longest ago comes first.
    shares: VecDeque<Share>,
    waiting: usize,
    /// How many are at work, by LUN; none is zero.
    at_work_of_lun: HashMap<LunKey, usize>,
    at_work: usize,
    workers: usize,
    idle: usize,
}

impl Queue {
    /// Lets `task` wait. False: there is no room.
    fn put(&mut self, initiator: &Arc<str>, lun: LunKey, task: Task) -> bool {
        let at = self.shares.iter().position(|share| share.initiator == *initiator);
        let own = at.map_or(0, |at| self.shares[at].waiting.len());
        if self.waiting >= QUEUE_MAX && own >= OWN_PLACES {
            return false;
        }
        let at = at.unwrap_or_else(|| {
            let initiator = Arc::clone(initiator);
            self.shares.push_back(Share { initiator, at_work: 0, waiting: VecDeque::new() });
            self.shares.len() - 1
        });
        self.shares[at].waiting.push_back((lun, task));
        self.waiting += 1;
        true
    }

    /// The place of the oldest task of `share` whose LUN has a share left, if the initiator has one.
    fn eligible(&self, share: &Share) -> Option<usize> {
        let free = WORKERS_MAX.saturating_sub(self.at_work);
        if share.at_work >= free {
            return None;
        }
        let of_lun = |lun: &LunKey| self.at_work_of_lun.get(lun).copied().unwrap_or(0);
        share.waiting.iter().position(|(lun, _)| of_lun(lun) < OF_ONE_LUN_MAX)
    }

    /// Whose turn it is: a place in `shares`, and one among what waits there.
    fn turn(&self) -> Option<(usize, usize)> {
        let may = self.shares.iter().enumerate().filter_map(|(at, share)| Some((at, self.eligible(share)?)));
        may.min_by_key(|(at, _)| self.shares[*at].at_work)
    }

    fn next(&mut self) -> Option<Taken> {
        let (at, of_share) = self.turn()?;
        let mut share = self.shares.remove(at)?;
        let taken = share.waiting.remove(of_share);
        if taken.is_some() {
            share.at_work += 1;
        }
        let initiator = Arc::clone(&share.initiator);
        self.shares.push_back(share);
        let (lun, task) = taken?;
        self.waiting -= 1;
        self.at_work += 1;
        *self.at_work_of_lun.entry(lun).or_default() += 1;
        Some(Taken { initiator, lun, task })
    }

    fn done(&mut self, initiator: &Arc<str>, lun: LunKey) {
        self.at_work -= 1;
        if let Some(count) = self.at_work_of_lun.get_mut(&lun) {
            *count -= 1;
        }
        self.at_work_of_lun.retain(|_, count| *count > 0);
        if let Some(share) = self.shares.iter_mut().find(|share| share.initiator == *initiator) {
            share.at_work -= 1;
        }
        self.shares.retain(|share| share.at_work > 0 || !share.waiting.is_empty());
    }
}

/// All workers of a server.
#[derive(Default)]
pub(super) struct Workers {
    queue: Mutex<Queue>,
    more: Condvar,
}

impl Workers {
    /// Has `task` done, which is the work of a command of `initiator` for `lun` and does not panic. False: too many wait, or no thread
    /// could be had.
    pub(super) fn give(self: &Arc<Self>, initiator: &Arc<str>, lun: LunKey, task: Task) -> bool {
        let mut queue = self.queue.lock();
        if !queue.put(initiator, lun, task) {
            return false;
        }
        self.reinforce(&mut queue);
        if queue.workers > 0 {
            return true;
        }
        // Nobody is there to do it, nor anything at work after which somebody would be.
        queue.waiting = 0;
        queue.shares.clear();
        false
    }

    /// Sees that somebody does what may be done now.
    fn reinforce(self: &Arc<Self>, queue: &mut MutexGuard<'_, Queue>) {
        if queue.turn().is_none() {
            return;
        }
        if queue.idle > 0 {
            self.more.notify_one();
        }
        // Those that are idle may have been called for others already.
        if queue.idle <= queue.waiting && queue.workers < WORKERS_MAX {
            let pool = Arc::clone(self);
            let spawned = std::thread::Builder::new().name("iscsi-job".to_owned()).spawn(move || pool.work());
            match spawned {
                Ok(_) => queue.workers += 1,
                Err(error) if queue.workers == 0 => log::warn!("no thread for a long command: {error}"),
                Err(_) => {}
            }
        }
    }

    fn work(self: Arc<Self>) {
        let mut queue = self.queue.lock();
        let mut late = false;
        loop {
            if let Some(taken) = queue.next() {
                // The end of one job may have made room for two: of its LUN, and of its initiator.
                self.reinforce(&mut queue);
                drop(queue);
                (taken.task)();
                queue = self.queue.lock();
                queue.done(&taken.initiator, taken.lun);
                late = false;
            } else if late {
                // What still waits is for shares that are at work: those workers come back for it.
                queue.workers -= 1;
                return;
            } else {
                queue.idle += 1;
                late = self.more.wait_for(&mut queue, IDLE).timed_out();
                queue.idle -= 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(queue: &mut Queue, initiator: &str, lun: u8) -> bool {
        queue.put(&initiator.into(), [lun; 16], Box::new(|| {}))
    }

    /// Takes all that may be at work: whose they are, in order.
    fn take(queue: &mut Queue) -> String {
        std::iter::from_fn(|| queue.next()).map(|taken| taken.initiator.to_string()).collect()
    }

    #[test]
    fn whoever_has_many_luns_leaves_half_of_what_is_free() {
        let mut queue = Queue::default();
        for lun in 0..100 {
            assert!(put(&mut queue, "a", lun));
        }
        assert_eq!(take(&mut queue), "a".repeat(WORKERS_MAX / 2));
        // Others, as they come, whatever waits: half of the rest, and one at least.
        for (initiator, gets) in [("b", 8), ("c", 4), ("d", 2), ("e", 1), ("f", 1), ("g", 0)] {
            for lun in 0..10 {
                assert!(put(&mut queue, initiator, 100 + lun));
            }
            assert_eq!(take(&mut queue), initiator.repeat(gets), "{initiator}");
        }
        // The next worker is for who has none.
        queue.done(&"a".into(), [0; 16]);
        assert_eq!(take(&mut queue), "g");
    }

    #[test]
    fn equals_take_turns_and_the_oldest_of_each_comes_first() {
        let mut queue = Queue::default();
        for initiator in ["a", "b", "c"] {
            for lun in 0..4 {
                assert!(put(&mut queue, initiator, lun));
            }
        }
        assert_eq!(take(&mut queue), "abcabcabcabc");
        for initiator in ["a", "b", "c"] {
            (0..4).for_each(|lun| queue.done(&initiator.into(), [lun; 16]));
        }
        assert!(queue.shares.is_empty() && queue.at_work_of_lun.is_empty());
        assert_eq!((queue.waiting, queue.at_work), (0, 0));
    }

    #[test]
    fn a_lun_has_its_share_whoever_asks() {
        let mut queue = Queue::default();
        (0..10).for_each(|_| assert!(put(&mut queue, "a", 1) && put(&mut queue, "b", 1)));
        assert!(put(&mut queue, "b", 2));
        assert_eq!(take(&mut queue), "abab".to_owned() + "b");
        queue.done(&"a".into(), [1; 16]);
        assert_eq!(take(&mut queue), "a");
    }

    #[test]
    fn nobody_fills_the_queue_for_others() {
        let mut queue = Queue::default();
        (0..QUEUE_MAX).for_each(|_| assert!(put(&mut queue, "a", 1)));
        assert!(!put(&mut queue, "a", 1));
        (0..OWN_PLACES).for_each(|_| assert!(put(&mut queue, "b", 1)));
        assert!(!put(&mut queue, "b", 1));
        assert!(put(&mut queue, "c", 1));
    }
}
