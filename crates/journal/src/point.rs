//! Points: instants of a group, by LSN, by time, by bookmark.

use std::sync::Arc;

use crate::{
    append::Draft,
    group::{Bookmark, BookmarkKind, Group, Inner, Point},
    index::Entry,
    record::{Opcode, NO_VOLUME},
    segment::{first_lsn, place, SegmentNumber},
    Error, Lsn, Result,
};

impl Group {
    /// The instant at `lsn`, rounded up to the boundary of a record.
    pub fn point_at_lsn(&self, lsn: Lsn) -> Result<Point> {
        self.0.point_at_lsn(lsn)
    }

    /// The last instant that is not after `time_ns` (ns since the Unix epoch).
    pub fn point_at_time(&self, time_ns: u64) -> Result<Point> {
        let (edge, head, active, candidates) = {
            let state = self.0.state.read();
            // The first segment that ends after the time holds the instant.
            let number = state.indexes.iter().find(|(_, i)| i.last_time_ns > time_ns).map(|(n, _)| *n);
            let waiting = state
                .sealing
                .iter()
                .find(|s| s.entries.last().is_some_and(|e| e.time_ns > time_ns))
                .map(|s| s.segment.number);
            (state.edge, state.head, state.active_number(), number.or(waiting))
        };
        if time_ns >= head.time_ns {
            return Ok(head);
        }
        if time_ns < edge.time_ns {
            return Err(Error::BeforeWindow { group: self.0.name.clone(), time_ns, edge_ns: edge.time_ns });
        }
        let Some(number) = candidates.or(active) else { return Ok(edge) };
        let entries = self.0.entries_of(number)?;
        let i = entries.partition_point(|e| e.time_ns <= time_ns);
        let lsn = match entries.get(i) {
            Some(e) => e.lsn,
            None => first_lsn(number + 1, self.0.segment_bytes).min(head.lsn),
        };
        self.point_at_lsn(lsn.max(edge.lsn))
    }

    /// Names the present instant; durable when it returns.
    pub fn bookmark(&self, name: &str, kind: BookmarkKind) -> Result<Point> {
        let bytes = name.as_bytes();
        if bytes.is_empty() || bytes.len() > 255 || name.chars().any(char::is_control) {
            return Err(Error::Invalid(format!(
                "bookmark name {name:?} is not allowed: use 1 to 255 bytes without control characters"
            )));
        }
        let i = &self.0;
        let payload: Vec<u8> = [&[u8::from(kind == BookmarkKind::Application)], bytes].concat();
        let draft = [Draft::new(Opcode::Bookmark, NO_VOLUME, 0, 0, &payload)];
        let mut log = i.log.lock();
        if i.state.read().bookmarks.iter().any(|b| b.name == name) {
            return Err(Error::Conflict(format!(
                "group {} has a bookmark {name} in its window already: choose another name",
                i.name
            )));
        }
        i.make_room(&mut log, &draft)?;
        let timeline = log.production;
        let lsn = i.append(&mut log, timeline, &draft)?;
        let point = Point { lsn, time_ns: log.time_ns };
        i.state.write().bookmarks.push(Bookmark { name: name.to_string(), kind, point });
        drop(log);
        i.flush_inline()?;
        Ok(point)
    }

    /// The bookmarks within the window, oldest first.
    pub fn bookmarks(&self) -> Vec<Bookmark> {
        let state = self.0.state.read();
        state.bookmarks.iter().filter(|b| b.point.lsn >= state.edge.lsn).cloned().collect()
    }
}

impl Inner {
    pub(crate) fn point_at_lsn(&self, lsn: Lsn) -> Result<Point> {
        let (edge, head) = {
            let state = self.state.read();
            (state.edge, state.head)
        };
        if lsn < edge.lsn || lsn > head.lsn {
            return Err(Error::OutsideWindow {
                group: self.name.clone(),
                lsn,
                edge: edge.lsn,
                head: head.lsn,
            });
        }
        if lsn == head.lsn {
            return Ok(head);
        }
        if lsn == edge.lsn {
            return Ok(edge);
        }
        let (number, _) = place(lsn, self.segment_bytes);
        let entries = self.entries_of(number)?;
        let i = entries.partition_point(|e| e.lsn < lsn);
        let rounded = match entries.get(i) {
            Some(e) => e.lsn,
            None => first_lsn(number + 1, self.segment_bytes).min(head.lsn),
        };
        let time_ns = match i.checked_sub(1).and_then(|i| entries.get(i)) {
            Some(e) => e.time_ns,
            None => self.last_time_before(number)?.unwrap_or(edge.time_ns),
        };
        Ok(Point { lsn: rounded, time_ns: time_ns.max(edge.time_ns) })
    }

    /// The records of a segment, in log order, as far as they are known.
    pub(crate) fn entries_of(&self, number: SegmentNumber) -> Result<Arc<Vec<Entry>>> {
        let index = {
            let state = self.state.read();
            if state.active_number() == Some(number) {
                return Ok(Arc::new(state.active.clone()));
            }
            if let Some(s) = state.sealing.iter().find(|s| s.segment.number == number) {
                return Ok(Arc::clone(&s.entries));
            }
            state.indexes.get(&number).cloned()
        };
        match index {
            Some(index) => Ok(Arc::new(index.entries(&*self.files, self.seed)?)),
            None => Err(Error::NotFound(format!(
                "segment {number} of group {} is not in the window any more",
                self.name
            ))),
        }
    }

    fn last_time_before(&self, number: SegmentNumber) -> Result<Option<u64>> {
        let Some(before) = number.checked_sub(1) else { return Ok(None) };
        match self.entries_of(before) {
            Ok(entries) => Ok(entries.last().map(|e| e.time_ns)),
            Err(Error::NotFound(_)) => Ok(None),
            Err(e) => Err(e),
        }
    }
}
