//! A set of regions, as bits.

/// A set of numbers below a fixed limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bits {
    words: Vec<u64>,
    limit: u32,
    count: u32,
}

impl Bits {
    /// None of `limit`.
    pub(super) fn none(limit: u32) -> Bits {
        Bits { words: vec![0; limit.div_ceil(64) as usize], limit, count: 0 }
    }

    pub(super) fn limit(&self) -> u32 {
        self.limit
    }

    pub(super) fn count(&self) -> u32 {
        self.count
    }

    pub(super) fn contains(&self, n: u32) -> bool {
        self.words.get(n as usize / 64).is_some_and(|w| w >> (n % 64) & 1 == 1)
    }

    /// Whether it was not in it before. What is beyond the limit is never in it.
    pub(super) fn insert(&mut self, n: u32) -> bool {
        let new = n < self.limit && !self.contains(n);
        if new {
            self.words[n as usize / 64] |= 1 << (n % 64);
            self.count += 1;
        }
        new
    }

    /// Whether it was in it.
    pub(super) fn remove(&mut self, n: u32) -> bool {
        let there = self.contains(n);
        if there {
            self.words[n as usize / 64] &= !(1 << (n % 64));
            self.count -= 1;
        }
        there
    }

    /// The first from `from` on.
    pub(super) fn next(&self, from: u32) -> Option<u32> {
        let mut at = from as usize / 64;
        let mut word = self.words.get(at)? & (u64::MAX << (from % 64));
        while word == 0 {
            at += 1;
            word = *self.words.get(at)?;
        }
        Some(at as u32 * 64 + word.trailing_zeros())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_in_is_found_in_order() {
        let mut bits = Bits::none(130);
        assert_eq!(bits.next(0), None);
        for n in [129, 0, 63, 64] {
            assert!(bits.insert(n));
            assert!(!bits.insert(n));
        }
        assert!(!bits.insert(130));
        let mut found = Vec::new();
        let mut at = 0;
        while let Some(n) = bits.next(at) {
            found.push(n);
            at = n + 1;
        }
        assert_eq!((found, bits.count()), (vec![0, 63, 64, 129], 4));
        assert!(bits.remove(63) && !bits.remove(63));
        assert_eq!(bits.next(1), Some(64));
    }
}
