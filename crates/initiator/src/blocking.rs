//! A nexus for whoever has nothing else to do meanwhile: one command at a time, each with a limit.

use crate::nexus::{Event, Nexus, State};
use crate::remote::Remote;
use crate::task::{Outcome, Task};
use playhead_wire::iscsi::response::Residual;
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use std::time::{Duration, Instant};

/// Longest single sleep.
const SLEEP_MAX: Duration = Duration::from_secs(1);

/// How a command ended that the target answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// SCSI status.
    pub status: u8,
    /// Sense data, if any.
    pub sense: Vec<u8>,
    /// What was read.
    pub data: Vec<u8>,
    /// What was left over.
    pub residual: Residual,
}

impl Answer {
    /// Sense key, additional sense code and qualifier, of either format (SPC-4 4.5).
    pub fn sense_code(&self) -> Option<(u8, u8, u8)> {
        sense_code(&self.sense)
    }
}

/// Sense key, additional sense code and qualifier of sense data in either format (SPC-4 4.5).
pub fn sense_code(sense: &[u8]) -> Option<(u8, u8, u8)> {
    let at = |i: usize| sense.get(i).copied();
    match at(0)? & 0x7f {
        0x70 | 0x71 => Some((at(2)? & 0x0f, at(12).unwrap_or(0), at(13).unwrap_or(0))),
        0x72 | 0x73 => Some((at(1)? & 0x0f, at(2)?, at(3)?)),
        _ => None,
    }
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No session came about, or it was lost; the command may have been executed.
    #[error("{0}")]
    Lost(String),
    /// Nothing of the command was sent.
    #[error("{0}")]
    NotSent(String),
    /// No answer within the limit; the command may have been executed. The session is given up.
    #[error("the array does not answer within {0:?}")]
    TimedOut(Duration),
}

/// Whether sense data is about an earlier command, and the present one was not executed (SPC-4 4.5.5).
pub fn is_deferred(sense: &[u8]) -> bool {
    matches!(sense.first().map(|code| code & 0x7f), Some(0x71 | 0x73))
}

/// A nexus with one command at a time.
#[derive(Debug)]
pub struct Blocking {
    nexus: Nexus,
}

impl Blocking {
    /// Logs in when it is first used.
    pub fn new(remote: Remote) -> Blocking {
        Blocking { nexus: Nexus::new(remote) }
    }

    /// The nexus behind it.
    pub fn nexus(&self) -> &Nexus {
        &self.nexus
    }

    /// Logs in, if it is not.
    ///
    /// Errors: why the last attempt failed.
    pub fn log_in(&mut self, limit: Duration) -> Result<(), Error> {
        let deadline = Instant::now() + limit;
        self.nexus.start();
        // Between two commands nobody looks after the session: the target may have asked for a sign of life, or ended it.
        if self.nexus.state() == State::Up {
            self.turn(Instant::now());
        }
        let mut last = None;
        while self.nexus.state() != State::Up {
            while let Some(event) = self.nexus.take() {
                if let Event::Down(why) = event {
                    last = Some(why);
                }
            }
            if Instant::now() >= deadline || self.nexus.state() == State::Closed {
                return Err(last.map_or(Error::TimedOut(limit), Error::NotSent));
            }
            self.turn(deadline);
        }
        Ok(())
    }

    /// Takes what the session has to tell without waiting for it, such as its end; then logs in, if it is not.
    ///
    /// Errors: as [`Blocking::log_in`].
    pub fn attend(&mut self, limit: Duration) -> Result<(), Error> {
        if self.nexus.state() == State::Up {
            self.turn(Instant::now());
        }
        while self.nexus.take().is_some() {}
        self.log_in(limit)
    }

    /// Runs one command.
    ///
    /// Errors: [`Error`]; a status other than GOOD is none.
    pub fn run(&mut self, task: Task, limit: Duration) -> Result<Answer, Error> {
        let deadline = Instant::now() + limit;
        self.log_in(limit)?;
        let tag = self.nexus.submit(task);
        self.nexus.send();
        loop {
            while let Some(event) = self.nexus.take() {
                let Event::Done(done) = event else {
                    continue;
                };
                if done.tag != tag {
                    continue;
                }
                return match done.outcome {
                    Outcome::Status { status, sense, residual } => {
                        Ok(Answer { status, sense, data: done.data_in, residual })
                    }
                    Outcome::Lost(why) | Outcome::Ended(why) => Err(Error::Lost(why)),
                    Outcome::NotSent(why) => Err(Error::NotSent(why)),
                };
            }
            if Instant::now() >= deadline {
                self.nexus.reset();
                return Err(Error::TimedOut(limit));
            }
            self.turn(deadline);
        }
    }

    /// Asks for the targets there are; raw text.
    ///
    /// Errors: [`Error`].
    pub fn send_targets(&mut self, limit: Duration) -> Result<Vec<u8>, Error> {
        let deadline = Instant::now() + limit;
        self.log_in(limit)?;
        self.nexus.send_targets();
        self.nexus.send();
        loop {
            while let Some(event) = self.nexus.take() {
                match event {
                    Event::Text(text) => return Ok(text),
                    Event::Down(why) => return Err(Error::Lost(why)),
                    _ => {}
                }
            }
            if Instant::now() >= deadline {
                return Err(Error::TimedOut(limit));
            }
            self.turn(deadline);
        }
    }

    /// Waits once, for the socket or the clock.
    fn turn(&mut self, deadline: Instant) {
        let now = Instant::now();
        let until = self.nexus.deadline().map_or(deadline, |at| at.min(deadline));
        let timeout = until.saturating_duration_since(now).min(SLEEP_MAX);
        let timeout = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: timeout.subsec_nanos().into() };
        let mut ready = PollFlags::empty();
        match self.nexus.interest() {
            None => {
                let _ = poll(&mut [], Some(&timeout));
            }
            Some((fd, read, write)) => {
                let mut wanted = PollFlags::empty();
                wanted.set(PollFlags::IN, read);
                wanted.set(PollFlags::OUT, write);
                let mut fds = [PollFd::from_borrowed_fd(fd, wanted)];
                let _ = poll(&mut fds, Some(&timeout));
                ready = fds[0].revents();
            }
        }
        let broken = ready.intersects(PollFlags::ERR | PollFlags::HUP);
        self.nexus
            .progress(ready.contains(PollFlags::IN) || broken, ready.contains(PollFlags::OUT) || broken);
    }
}
