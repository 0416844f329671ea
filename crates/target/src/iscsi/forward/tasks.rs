//! Task management of commands that are at arrays: the array is asked to end them, and what it has ended is over here when it says so.

use super::{Forwarded, Forwarding};
use crate::fabric::FabricLun;
use crate::iscsi::outbox::{Event as Message, Fence};
use crate::iscsi::parts::fabric;
use crate::iscsi::session::{Session, View};
use crate::iscsi::tasks::{outcome, Answer};
use playhead_wire::iscsi::request::function;
use std::sync::Arc;

/// Task management that the array has to answer.
pub(super) struct Asking {
    /// The host's tag; none if no host has asked.
    itt: Option<u32>,
    function: u8,
    view: View,
    /// The command it is about, if it is one.
    number: Option<u64>,
}

impl Forwarding {
    /// Whether the task management request of this tag waits for an array.
    pub(in crate::iscsi) fn is_managing(&self, itt: u32) -> bool {
        // One holder of a fence is here.
        let fenced = |fences: &Vec<Fence>| fences.iter().any(|fence| Arc::strong_count(fence) > 1);
        self.asking.values().any(|asking| asking.itt == Some(itt))
            || self.fences.get(&itt).is_some_and(fenced)
    }

    /// What the arrays answered to it.
    pub(in crate::iscsi) fn outcome(&mut self, itt: u32) -> u8 {
        self.fences.remove(&itt);
        self.outcomes.remove(&itt).unwrap_or(outcome::COMPLETE)
    }
}

impl Session {
    /// Ends commands that another session's reset or CLEAR TASK SET has ended at the array.
    pub(super) fn end_stale(&mut self) {
        let stale = |command: &Forwarded| {
            !command.aborted && command.view.unit.epoch(&command.view.nexus) != command.asked.epoch
        };
        let found: Vec<u64> =
            self.forwarding.commands.iter().filter(|(_, command)| stale(command)).map(|(n, _)| *n).collect();
        for number in found {
            match self.forwarding.commands.get(&number).map(|command| (command.tag, command.asked_to_end)) {
                Some((Some(tag), false)) => self.ask_to_end(number, tag),
                Some((Some(_), true)) | None => {}
                Some((None, _)) => self.end_forwarded(number),
            }
        }
    }

    /// Has the array end a command that it should have ended already. It may be none of those that the reset was about, and be
    /// executed yet: only the array knows.
    fn ask_to_end(&mut self, number: u64, tag: u64) {
        let Some(command) = self.forwarding.commands.get_mut(&number) else {
            return;
        };
        command.asked_to_end = true;
        let (view, at) = (command.view.clone(), command.link);
        let Some(address) = fabric(&view.unit).map(FabricLun::address) else {
            return;
        };
        let asked = self
            .forwarding
            .links
            .get(at)
            .and_then(|link| link.nexus.manage(function::ABORT_TASK, address, Some(tag)));
        // Otherwise its end has come already.
        if let Some(asked) = asked {
            let asking = Asking { itt: None, function: function::ABORT_TASK, view, number: Some(number) };
            self.forwarding.asking.insert((at, asked), asking);
        }
    }

    /// A command is over without an answer: it was not sent, or the array has confirmed its end.
    pub(super) fn end_forwarded(&mut self, number: u64) {
        let Some(command) = self.forwarding.commands.get_mut(&number).filter(|command| !command.aborted)
        else {
            return;
        };
        command.aborted = true;
        self.answers.finish(command.asked.immediate);
        let (tag, link) = (command.tag, command.link);
        match (tag, self.forwarding.links.get(link)) {
            // Its end comes as any other.
            (Some(tag), Some(link)) => link.nexus.end_tasks(&[0; 8], Some(tag)),
            _ => {
                if let Some(mut command) = self.take_forwarded(number) {
                    command.parts.let_go();
                }
            }
        }
    }

    /// ABORT TASK of a forwarded command. `None`: there is none of this tag.
    pub(in crate::iscsi) fn abort_forwarded(&mut self, itt: u32, referenced: u32) -> Option<Answer> {
        let number = self.forwarding.by_itt(referenced)?;
        let command = self.forwarding.commands.get(&number)?;
        let (tag, link, view) = (command.tag, command.link, command.view.clone());
        let address = fabric(&view.unit)?.address();
        let asked = match (tag, self.forwarding.links.get(link)) {
            (Some(tag), Some(link)) => link.nexus.manage(function::ABORT_TASK, address, Some(tag)),
            _ => None,
        };
        match asked {
            Some(tag) => {
                let (itt, number) = (Some(itt), Some(number));
                let asking = Asking { itt, function: function::ABORT_TASK, view, number };
                self.forwarding.asking.insert((link, tag), asking);
                Some(Answer::After(Vec::new(), Vec::new()))
            }
            // Nothing of it is at the array, or its end has come already.
            None => {
                self.end_forwarded(number);
                Some(Answer::Now(outcome::COMPLETE))
            }
        }
    }

    /// Passes a function about all tasks of a LUN, or the LUN itself, on to the array.
    pub(in crate::iscsi) fn manage_array(&mut self, itt: u32, what: u8, view: &View) -> Answer {
        let Some(lun) = fabric(&view.unit) else {
            return Answer::Now(outcome::NO_LUN);
        };
        let waiting =
            |command: &Forwarded| command.tag.is_none() && Arc::ptr_eq(&command.view.unit, &view.unit);
        let unsent: Vec<u64> = self
            .forwarding
            .commands
            .iter()
            .filter(|(_, command)| waiting(command))
            .map(|(n, _)| *n)
            .collect();
        unsent.into_iter().for_each(|number| self.end_forwarded(number));
        let at = self.forwarding.links.find(lun.array(), &self.port);
        let asked = self.forwarding.links.get(at).and_then(|link| {
            link.nexus.start();
            link.nexus.manage(what, lun.address(), None)
        });
        match asked {
            Some(tag) => {
                let asking = Asking { itt: Some(itt), function: what, view: view.clone(), number: None };
                self.forwarding.asking.insert((at, tag), asking);
                Answer::After(Vec::new(), Vec::new())
            }
            // No task is at an array that has no session; but it is not reset either.
            None if what == function::ABORT_TASK_SET => Answer::Now(outcome::COMPLETE),
            None => Answer::Now(outcome::REJECTED),
        }
    }

    /// Has arrays reset every LUN of theirs that this session sees: a reset of our target is none of theirs.
    pub(in crate::iscsi) fn reset_arrays(&mut self, itt: u32) {
        let views: Vec<View> = self.views.iter().filter(|view| Session::forwards(view)).cloned().collect();
        for view in views {
            let _ = self.manage_array(itt, function::LOGICAL_UNIT_RESET, &view);
        }
    }

    /// The array has answered a function.
    pub(super) fn array_managed(&mut self, at: usize, tag: u64, response: u8) {
        let Some(asking) = self.forwarding.asking.remove(&(at, tag)) else {
            return;
        };
        // "No such task" to ABORT TASK: its status has come before, unless somebody else has ended it without a word.
        let lost = |number| self.forwarding.commands.get(&number).is_some_and(|command| !command.aborted);
        let is_lost = response == outcome::NO_TASK && asking.number.is_some_and(lost);
        let done = response == outcome::COMPLETE || is_lost;
        let told = if done { outcome::COMPLETE } else { response };
        if let Some(itt) = asking.itt {
            let worst = self.forwarding.outcomes.entry(itt).or_insert(told);
            *worst = (*worst).max(told);
        }
        if !done {
            return;
        }
        // What was sent after the function is none of its business, and may be executed.
        let of_unit = |command: &Forwarded| {
            Arc::ptr_eq(&command.view.unit, &asking.view.unit) && command.sent.is_some_and(|sent| sent < tag)
        };
        let ended: Vec<u64> = match asking.number {
            Some(number) => vec![number],
            None => {
                let commands = self.forwarding.commands.iter();
                commands.filter(|(_, command)| of_unit(command)).map(|(number, _)| *number).collect()
            }
        };
        ended.into_iter().for_each(|number| self.end_forwarded(number));
        let (unit, nexus) = (&asking.view.unit, &asking.view.nexus);
        let before = unit.epoch(nexus);
        match asking.function {
            function::LOGICAL_UNIT_RESET => unit.reset(),
            function::CLEAR_TASK_SET => unit.clear_task_set(nexus),
            _ => return,
        }
        // Our own later ones live on; if somebody else has ended tasks at the same time, they do not.
        let later = self.forwarding.commands.values_mut().filter(|command| {
            !command.aborted && Arc::ptr_eq(&command.view.unit, unit) && command.asked.epoch == before
        });
        later.for_each(|command| command.asked.epoch = before.wrapping_add(1));
        // Other sessions may have tasks on their way there, or about to be sent. Until the last of those is over the function is not.
        let fence = Fence::default();
        self.shared.registry.tell_all(|| Message::Fence(Arc::clone(&fence)));
        if let Some(itt) = asking.itt {
            self.forwarding.fences.entry(itt).or_default().push(fence);
        }
    }

    /// Tasks of a unit have been ended: what this session still has of them at the array keeps `fence` until it is over.
    pub(in crate::iscsi) fn keep_fence(&mut self, fence: &Fence) {
        self.end_stale();
        let stale = self.forwarding.commands.values_mut().filter(|command| {
            command.tag.is_some() && command.view.unit.epoch(&command.view.nexus) != command.asked.epoch
        });
        stale.for_each(|command| command.fences.push(Arc::clone(fence)));
    }

    /// The nexus is reset: nothing of it is answered any more. What is at arrays may be executed until they have ended its sessions.
    pub(in crate::iscsi) fn end_all_forwarded(&mut self) {
        let numbers: Vec<u64> = self.forwarding.commands.keys().copied().collect();
        for number in numbers {
            match self.forwarding.commands.get_mut(&number) {
                Some(command) if command.tag.is_some() && !command.aborted => {
                    command.aborted = true;
                    self.answers.finish(command.asked.immediate);
                }
                _ => self.end_forwarded(number),
            }
        }
    }
}
