//! LUN masking: which initiator sees which units of which target, under which number, and whether it may write.
//!
//! A unit that the table does not speak of is everyone's, under its own number. One that it speaks of is seen by those named there and
//! by no one else. Where two units would have one number for an initiator, the one the table gives it wins; the other is not seen.

use super::ServerError;
use playhead_wire::iscsi::text::is_iscsi_name;
use std::collections::{BTreeMap, HashMap};

/// Highest number of flat LUN addressing (SAM-5 4.7.7.3).
pub(super) const LUN_MAX: u16 = 16_383;

/// A unit of a target: the target's iSCSI name and the number that [`super::Server::set_lun`] gave the unit.
pub type UnitName = (String, u16);

/// What one initiator gets of a masked unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The initiator's iSCSI name.
    pub initiator: String,
    /// The unit's number as this initiator counts, up to 16383.
    pub number: u16,
    /// It may read and not write.
    pub read_only: bool,
}

/// How an initiator sees a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) number: u16,
    pub(super) read_only: bool,
}

/// The grants of one unit, by initiator.
type Grants = HashMap<String, Seen>;

/// The masking table. The default masks nothing.
#[derive(Debug, Clone, Default)]
pub struct Masking {
    targets: HashMap<String, HashMap<u16, Grants>>,
}

impl Masking {
    /// Puts a table together.
    ///
    /// Errors: [`ServerError::BadMasking`] for a name that is none, a number above 16383, an initiator that would see a unit twice
    /// or two units of a target under one number.
    pub fn new(table: impl IntoIterator<Item = (UnitName, Vec<Grant>)>) -> Result<Masking, ServerError> {
        let refuse = |detail: String| ServerError::BadMasking { detail };
        let mut targets: HashMap<String, HashMap<u16, Grants>> = HashMap::new();
        let mut taken: HashMap<(String, String, u16), u16> = HashMap::new();
        for ((target, unit), grants) in table {
            let mut of_unit = Grants::new();
            for Grant { initiator, number, read_only } in grants {
                if !is_iscsi_name(&initiator) {
                    return Err(refuse(format!("{initiator:?} is no iSCSI name")));
                }
                if number > LUN_MAX {
                    return Err(refuse(format!("{initiator} cannot have a LUN {number}: 16383 is the last")));
                }
                let place = (target.clone(), initiator.clone(), number);
                if let Some(other) = taken.insert(place, unit) {
                    return Err(refuse(format!(
                        "{initiator} cannot see units {other} and {unit} of {target} as LUN {number} both"
                    )));
                }
                let seen = Seen { number, read_only };
                if let Some(other) = of_unit.insert(initiator.clone(), seen) {
                    return Err(refuse(format!(
                        "{initiator} cannot see unit {unit} of {target} as LUN {} and {number} both",
                        other.number
                    )));
                }
            }
            if targets.entry(target.clone()).or_default().insert(unit, of_unit).is_some() {
                return Err(refuse(format!("unit {unit} of {target} is named twice")));
            }
        }
        Ok(Masking { targets })
    }

    /// The units of `units` that `initiator` sees of `target`, by the number it sees them under.
    pub(super) fn view<T>(
        &self,
        target: &str,
        units: impl IntoIterator<Item = (u16, T)>,
        initiator: &str,
    ) -> BTreeMap<u16, (Seen, T)> {
        let masked = self.targets.get(target);
        let mut view = BTreeMap::new();
        let mut by_default = Vec::new();
        for (number, unit) in units {
            match masked.and_then(|masked| masked.get(&number)) {
                None => by_default.push((number, unit)),
                Some(grants) => {
                    if let Some(seen) = grants.get(initiator) {
                        view.insert(seen.number, (*seen, unit));
                    }
                }
            }
        }
        for (number, unit) in by_default {
            view.entry(number).or_insert((Seen { number, read_only: false }, unit));
        }
        view
    }

    /// Whether `initiator` may know of `target`, which has the units `numbers` now: it sees one of them, or there is none and it may
    /// see those to come.
    pub(super) fn shows(&self, target: &str, numbers: &[u16], initiator: &str) -> bool {
        let Some(masked) = self.targets.get(target) else {
            return true;
        };
        if numbers.is_empty() {
            return masked.values().any(|grants| grants.contains_key(initiator));
        }
        numbers.iter().any(|number| masked.get(number).is_none_or(|grants| grants.contains_key(initiator)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: &str = "iqn.t";

    fn grant(initiator: &str, number: u16) -> Grant {
        Grant { initiator: initiator.to_owned(), number, read_only: number == 9 }
    }

    fn masking(table: &[(u16, &[Grant])]) -> Result<Masking, ServerError> {
        Masking::new(table.iter().map(|(unit, grants)| ((TARGET.to_owned(), *unit), grants.to_vec())))
    }

    fn seen(masking: &Masking, initiator: &str) -> Vec<(u16, u16, bool)> {
        let view = masking.view(TARGET, [0, 1, 2].map(|n| (n, n)), initiator);
        view.into_iter().map(|(number, (seen, unit))| (number, unit, seen.read_only)).collect()
    }

    #[test]
    fn an_initiator_sees_what_is_everyones_and_what_is_its_own_under_its_own_numbers() {
        let table: [(u16, &[Grant]); 2] = [(0, &[grant("iqn.a", 9), grant("iqn.b", 2)]), (1, &[])];
        let masking = masking(&table).unwrap();
        assert_eq!(seen(&masking, "iqn.a"), [(2, 2, false), (9, 0, true)]);
        // Unit 2 is everyone's, but the table gives this one another LUN 2.
        assert_eq!(seen(&masking, "iqn.b"), [(2, 0, false)]);
        assert_eq!(seen(&masking, "iqn.c"), [(2, 2, false)]);
        assert_eq!(seen(&Masking::default(), "iqn.c"), [(0, 0, false), (1, 1, false), (2, 2, false)]);
    }

    #[test]
    fn a_target_shows_itself_to_those_who_see_something_of_it() {
        let masking = masking(&[(0, &[grant("iqn.a", 0)]), (1, &[])]).unwrap();
        assert!(masking.shows(TARGET, &[0, 1], "iqn.a"));
        assert!(!masking.shows(TARGET, &[0, 1], "iqn.b"));
        assert!(!masking.shows(TARGET, &[1], "iqn.a"));
        assert!(masking.shows(TARGET, &[0, 1, 2], "iqn.b"));
        assert!(masking.shows(TARGET, &[], "iqn.a") && !masking.shows(TARGET, &[], "iqn.b"));
        assert!(masking.shows("iqn.other", &[], "iqn.b"));
    }

    #[test]
    fn tables_that_contradict_themselves_are_refused() {
        for table in [
            &[(0, &[grant("iqn.a", 0)][..]), (1, &[grant("iqn.a", 0)])][..],
            &[(0, &[grant("iqn.a", 0), grant("iqn.a", 1)])],
            &[(0, &[grant("iqn.a", 16_384)])],
            &[(0, &[grant("host", 0)])],
            &[(0, &[]), (0, &[])],
        ] {
            assert!(matches!(masking(table), Err(ServerError::BadMasking { .. })), "{table:?}");
        }
    }
}
