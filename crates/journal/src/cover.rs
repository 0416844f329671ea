//! Which runs make up a timeline's versions over a stretch of segments: the question "what covers this?" has its one answer here.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    run::{Run, RunKey, FAN_OUT, MAX_LEVEL},
    segment::SegmentNumber,
};

/// The runs of one timeline.
#[derive(Default)]
pub(crate) struct Cover {
    runs: BTreeMap<RunKey, Arc<Run>>,
}

impl Cover {
    pub(crate) fn insert(&mut self, key: RunKey, run: Arc<Run>) {
        self.runs.insert(key, run);
    }

    pub(crate) fn contains(&self, key: RunKey) -> bool {
        self.runs.contains_key(&key)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// The fewest runs that hold everything of the segments `[from, to)`, newest first. Every segment of the stretch that the
    /// timeline has records in has its run of level 0.
    pub(crate) fn over(&self, from: SegmentNumber, to: SegmentNumber, out: &mut Vec<Arc<Run>>) {
        let top = FAN_OUT.pow(MAX_LEVEL);
        let mut index = to.div_ceil(top);
        while index > from / top {
            index -= 1;
            self.descend(RunKey { level: MAX_LEVEL, index }, from, to, out);
        }
    }

    fn descend(&self, key: RunKey, from: SegmentNumber, to: SegmentNumber, out: &mut Vec<Arc<Run>>) {
        let (first, end) = key.segments();
        if end <= from || first >= to || !self.any_in(first.max(from), end.min(to)) {
            return;
        }
        if first >= from && end <= to {
            if let Some(run) = self.runs.get(&key) {
                out.push(Arc::clone(run));
                return;
            }
        }
        if key.level > 0 {
            for index in (key.index * FAN_OUT..(key.index + 1) * FAN_OUT).rev() {
                self.descend(RunKey { level: key.level - 1, index }, from, to, out);
            }
        }
    }

    fn any_in(&self, from: SegmentNumber, to: SegmentNumber) -> bool {
        self.runs.range(RunKey::of_segment(from)..RunKey::of_segment(to)).next().is_some()
    }

    /// A run of a higher level that can be made now: all of its segments are sealed (lie in `[from, sealed)`), and it would join at
    /// least two runs. With the runs to join, newest first.
    pub(crate) fn next_merge(
        &self,
        from: SegmentNumber,
        sealed: SegmentNumber,
    ) -> Option<(RunKey, Vec<Arc<Run>>)> {
        for level in 1..=MAX_LEVEL {
            let span = FAN_OUT.pow(level);
            for index in from.div_ceil(span)..sealed / span {
                let key = RunKey { level, index };
                if self.contains(key) {
                    continue;
                }
                let (first, end) = key.segments();
                let mut parts = Vec::new();
                self.over(first, end, &mut parts);
                if parts.len() > 1 {
                    return Some((key, parts));
                }
            }
        }
        None
    }

    /// Takes out the runs that lie wholly before segment `first`.
    pub(crate) fn forget_before(&mut self, first: SegmentNumber) -> Vec<Arc<Run>> {
        let gone: Vec<RunKey> = self.runs.keys().copied().filter(|key| key.segments().1 <= first).collect();
        gone.iter().filter_map(|key| self.runs.remove(key)).collect()
    }

    /// Drops the runs that reach beyond segment `end`.
    pub(crate) fn forget_from(&mut self, end: SegmentNumber) {
        self.runs.retain(|key, _| key.segments().1 <= end);
    }

    /// Takes out all runs.
    pub(crate) fn clear(&mut self) -> Vec<Arc<Run>> {
        std::mem::take(&mut self.runs).into_values().collect()
    }
}
