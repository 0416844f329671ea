//! The threads that do jobs. They come and go with the work, and no LUN has more than its share of them: one that does not answer
//! holds up its own jobs and no others.

use parking_lot::{Condvar, Mutex};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// Jobs at work at once, over all sessions.
const WORKERS_MAX: usize = 16;
/// Of these, for one LUN.
const OF_ONE_LUN_MAX: usize = 4;
/// Jobs that may wait for a worker.
const QUEUE_MAX: usize = 1024;
/// How long a worker waits for more before its thread ends.
const IDLE: Duration = Duration::from_secs(5);

pub(super) type Task = Box<dyn FnOnce() + Send>;
/// A LUN, by its NAA designator.
type LunKey = [u8; 16];

#[derive(Default)]
struct Queue {
    tasks: VecDeque<(LunKey, Task)>,
    /// How many are at work, by LUN; none is zero.
    at_work: HashMap<LunKey, usize>,
    workers: usize,
    idle: usize,
}

impl Queue {
    /// The oldest task whose LUN has a share left.
    fn next(&mut self) -> Option<(LunKey, Task)> {
        let at_work = &self.at_work;
        let may_run = |lun: &LunKey| at_work.get(lun).is_none_or(|count| *count < OF_ONE_LUN_MAX);
        let at = self.tasks.iter().position(|(lun, _)| may_run(lun))?;
        let (lun, task) = self.tasks.remove(at)?;
        *self.at_work.entry(lun).or_default() += 1;
        Some((lun, task))
    }

    fn done(&mut self, lun: LunKey) {
        if let Some(count) = self.at_work.get_mut(&lun) {
            *count -= 1;
        }
        self.at_work.retain(|_, count| *count > 0);
    }
}

/// All workers of a server.
#[derive(Default)]
pub(super) struct Workers {
    queue: Mutex<Queue>,
    more: Condvar,
}

impl Workers {
    /// Has `task`, which is the work of a command for `lun` and does not panic, done. False: too many wait, or no thread could be had.
    pub(super) fn give(self: &Arc<Self>, lun: LunKey, task: Task) -> bool {
        let mut queue = self.queue.lock();
        if queue.tasks.len() >= QUEUE_MAX {
            return false;
        }
        if queue.idle <= queue.tasks.len() && queue.workers < WORKERS_MAX {
            let pool = Arc::clone(self);
            let spawned = std::thread::Builder::new().name("iscsi-job".to_owned()).spawn(move || pool.work());
            match spawned {
                Ok(_) => queue.workers += 1,
                Err(error) if queue.workers == 0 => {
                    log::warn!("no thread for a long command: {error}");
                    return false;
                }
                Err(_) => {}
            }
        }
        queue.tasks.push_back((lun, task));
        self.more.notify_one();
        true
    }

    fn work(&self) {
        let mut queue = self.queue.lock();
        let mut late = false;
        loop {
            if let Some((lun, task)) = queue.next() {
                drop(queue);
                task();
                queue = self.queue.lock();
                queue.done(lun);
                late = false;
            } else if late {
                // What still waits is for LUNs whose share is at work: those workers come back for it.
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
