//! PREEMPT, and PREEMPT AND ABORT (SPC-4 5.13.11.2.4 to 5.13.11.2.7).

use super::super::nexus::Attention;
use super::super::unit::Refusal;
use super::state::{Held, ItNexus, Outcome, Registration, Reservations};
use playhead_wire::scsi::reservation::{Kind, OutList};
use playhead_wire::scsi::Sense;

impl Reservations {
    /// Removes the registrations that have `list.action_key`; if one of them holds the reservation, the sender takes it over with
    /// type `kind`. Zero means everybody's, while every registrant holds.
    pub(super) fn preempt(
        &mut self,
        nexus: &ItNexus,
        list: &OutList,
        kind: Option<Kind>,
    ) -> Result<Outcome, Refusal> {
        self.check_key(nexus, list.key)?;
        let victim = list.action_key;
        let takes_over = match &self.held {
            Some(Held { holder: None, .. }) => victim == 0,
            _ if victim == 0 => return Err(Sense::in_parameters(8).into()),
            Some(Held { holder: Some(holder), .. }) => self.key_of(holder) == Some(victim),
            None => false,
        };
        if victim != 0 && !self.registrations.iter().any(|r| r.key == victim) {
            return Err(Refusal::Conflict);
        }
        let mut outcome = Outcome::default();
        if takes_over {
            let kind = kind.ok_or(Sense::in_cdb(2, Some(3)))?;
            self.remove(|r| r.nexus != *nexus && (victim == 0 || r.key == victim), nexus, &mut outcome);
            if self.held.as_ref().is_some_and(|held| held.kind != kind) {
                self.tell_others(nexus, Attention::ReservationsReleased, &mut outcome);
            }
            self.held = Some(Held::by(nexus, kind));
        } else {
            // Whoever names its own key here loses its own registration too.
            self.remove(|r| r.key == victim, nexus, &mut outcome);
            if self.registrations.is_empty() {
                self.held = None;
            }
        }
        self.changed();
        Ok(outcome)
    }

    /// Takes the chosen registrations away, and tells all but `by`.
    fn remove(&mut self, chosen: impl Fn(&Registration) -> bool, by: &ItNexus, outcome: &mut Outcome) {
        self.registrations.retain(|registration| {
            let goes = chosen(registration);
            if goes {
                let gone = registration.nexus.clone();
                if gone != *by {
                    outcome.notices.push((Attention::RegistrationsPreempted, gone.clone()));
                }
                outcome.ended.push(gone);
            }
            !goes
        });
    }
}
