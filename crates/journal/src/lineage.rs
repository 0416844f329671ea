//! Lines of history. A timeline continues its parent as of a point; a lineage is the chain of such stretches that makes up one state.
//!
//! The log is one for all timelines of a group; a record belongs to the one it names. Production has been on one timeline after
//! another: a rewind begins a new one. So "point `x`" means the timeline on which production was at `x`, as of `x`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Lsn;

/// Number of a timeline within its group; the first is 1.
pub(crate) type TimelineId = u32;

/// Where a timeline comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Timeline {
    /// Its number.
    pub(crate) id: TimelineId,
    /// Whose state it continues; the first has none.
    pub(crate) parent: Option<TimelineId>,
    /// As of which point of the parent.
    pub(crate) at: Lsn,
}

/// Production's stay on a timeline: from the record at `since` (exclusive: points after it) on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stay {
    /// The timeline.
    pub(crate) timeline: TimelineId,
    /// LSN of the BRANCH record that began it; 0 for the first.
    pub(crate) since: Lsn,
}

/// A stretch of a lineage: the records of `timeline` that start before `end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    /// The timeline.
    pub(crate) timeline: TimelineId,
    /// Exclusive end.
    pub(crate) end: Lsn,
}

/// The stretches that make up a state, newest first.
pub(crate) type Lineage = Vec<Span>;

/// Every timeline of a group that something can still be read from, and production's way over them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct History {
    /// Timelines by number.
    pub(crate) timelines: BTreeMap<TimelineId, Timeline>,
    /// Production's stays, oldest first; never empty.
    pub(crate) stays: Vec<Stay>,
    /// The number the next timeline gets.
    pub(crate) next: TimelineId,
}

impl Default for History {
    fn default() -> History {
        let first = Timeline { id: 1, parent: None, at: 0 };
        History {
            timelines: BTreeMap::from([(1, first)]),
            stays: vec![Stay { timeline: 1, since: 0 }],
            next: 2,
        }
    }
}

impl History {
    /// The timeline on which production is.
    pub(crate) fn production(&self) -> TimelineId {
        self.stays.last().map_or(1, |stay| stay.timeline)
    }

    /// The timeline on which production was at point `x`.
    pub(crate) fn production_at(&self, x: Lsn) -> TimelineId {
        self.stays
            .iter()
            .rev()
            .find(|stay| stay.since < x)
            .or(self.stays.first())
            .map_or(1, |stay| stay.timeline)
    }

    /// The stretches of `timeline` as of `x`.
    pub(crate) fn lineage(&self, timeline: TimelineId, x: Lsn) -> Lineage {
        let mut spans = Vec::new();
        let mut next = Some((timeline, x));
        // A parent is older than its child, so this ends; a damaged table cannot make it run longer than the table.
        while let Some((id, end)) = next {
            spans.push(Span { timeline: id, end });
            next = self
                .timelines
                .get(&id)
                .filter(|_| spans.len() <= self.timelines.len())
                .and_then(|t| t.parent.map(|p| (p, t.at.min(end))));
        }
        spans
    }

    /// Production's lineage as of now.
    pub(crate) fn current(&self) -> Lineage {
        self.lineage(self.production(), Lsn::MAX)
    }

    /// The latest point up to `target` at which the trailing edge may rest, given the lineages that must stay readable.
    ///
    /// Below the edge everything is folded along production's present lineage. So the edge may rest at `y` only if every point of
    /// production's past that is still in the window, and every open image, shares with the present all that lies below `y`.
    /// A stretch that a rewind abandoned is therefore passed in one leap, once its end (the rewind itself) may go.
    pub(crate) fn edge_up_to(&self, target: Lsn, pinned: &[Lineage]) -> Lsn {
        let current = self.current();
        let mut edge = target;
        for lineage in pinned {
            edge = edge.min(agree(lineage, &current));
        }
        // Lowering the edge can bring it into an earlier stretch, so go on until nothing moves; each round lowers it.
        loop {
            let mut moved = false;
            for pair in self.stays.windows(2) {
                let end = pair[1].since;
                let shared = agree(&self.lineage(pair[0].timeline, end), &current);
                if shared < edge && edge <= end {
                    edge = shared;
                    moved = true;
                }
            }
            if !moved {
                return edge;
            }
        }
    }

    /// Forgets stays that ended before `edge` and timelines that no lineage in `keep`, and no stay, needs.
    pub(crate) fn forget_before(&mut self, edge: Lsn, keep: &[Lineage]) {
        while self.stays.len() > 1 && self.stays[1].since < edge {
            self.stays.remove(0);
        }
        let mut needed: Vec<TimelineId> = Vec::new();
        let ends = self.stays.iter().skip(1).map(|s| s.since).chain([Lsn::MAX]);
        let stays: Vec<Lineage> =
            self.stays.iter().zip(ends).map(|(s, end)| self.lineage(s.timeline, end)).collect();
        for lineage in stays.iter().chain(keep) {
            for (i, span) in lineage.iter().enumerate() {
                // A stretch that lies wholly below the edge is in the base; nothing older is needed either.
                if i == 0 || span.end > edge {
                    needed.push(span.timeline);
                }
            }
        }
        self.timelines.retain(|id, _| needed.contains(id));
        let known: Vec<TimelineId> = self.timelines.keys().copied().collect();
        for t in self.timelines.values_mut() {
            if t.parent.is_some_and(|p| !known.contains(&p)) {
                t.parent = None;
            }
        }
    }
}

/// Whether a record of `timeline` at `lsn` belongs to the lineage.
pub(crate) fn contains(lineage: &[Span], timeline: TimelineId, lsn: Lsn) -> bool {
    lineage.iter().any(|s| s.timeline == timeline && lsn < s.end)
}

/// The latest point up to which two lineages are one and the same.
pub(crate) fn agree(a: &[Span], b: &[Span]) -> Lsn {
    let mut shared = 0;
    for (x, y) in a.iter().rev().zip(b.iter().rev()) {
        if x.timeline != y.timeline {
            // Branched from the same point of the same parent.
            return shared;
        }
        shared = x.end.min(y.end);
        if x.end != y.end {
            return shared;
        }
    }
    shared
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewound() -> History {
        let mut h = History::default();
        for (id, parent, at, since) in [(2, 1, 500, 1000), (3, 1, 1000, 2000)] {
            h.timelines.insert(id, Timeline { id, parent: Some(parent), at });
            h.stays.push(Stay { timeline: id, since });
        }
        h.next = 4;
        h
    }

    #[test]
    fn a_point_means_the_timeline_production_was_on() {
        let h = rewound();
        assert_eq!(h.production_at(700), 1);
        assert_eq!(h.production_at(1000), 1);
        assert_eq!(h.production_at(1001), 2);
        assert_eq!(h.production_at(5000), 3);
        assert_eq!(h.lineage(2, 1500), vec![Span { timeline: 2, end: 1500 }, Span { timeline: 1, end: 500 }]);
    }

    #[test]
    fn the_edge_never_rests_inside_an_abandoned_stretch() {
        let h = rewound();
        // Timeline 2 (points 1001..=2000) shares with the present only what lies below 500.
        assert_eq!(h.edge_up_to(400, &[]), 400);
        assert_eq!(h.edge_up_to(501, &[]), 500);
        assert_eq!(h.edge_up_to(1500, &[]), 500);
        assert_eq!(h.edge_up_to(2000, &[]), 500);
        assert_eq!(h.edge_up_to(2001, &[]), 2001);
        let image = h.lineage(2, 1200);
        assert_eq!(h.edge_up_to(2500, &[image]), 500);
    }

    #[test]
    fn forgetting_keeps_what_is_needed() {
        let mut h = rewound();
        h.forget_before(2500, &[]);
        assert_eq!(h.timelines.keys().copied().collect::<Vec<_>>(), vec![3]);
        assert_eq!(h.stays.len(), 1);
        assert_eq!(h.production_at(2600), 3);
        assert_eq!(h.lineage(3, 2600).len(), 1);
    }
}
