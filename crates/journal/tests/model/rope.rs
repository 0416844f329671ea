//! A volume's blocks at one moment: an immutable rope of runs.
//!
//! Every change makes a new rope that shares most of the old one; so every moment of a history can be kept, a copy of any range is a
//! slice, and a 64 TiB volume is a handful of nodes. Nothing in it resembles the way the engine works, which is the point of a model.

use std::sync::Arc;

use super::block::{Token, BLOCK_BYTES};

/// A stretch of blocks of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Run {
    Zero,
    /// All bits set.
    Ones,
    /// Blocks `first..` of write `tag`.
    Data {
        tag: u64,
        first: u64,
    },
    /// One block of write `tag`, repeated.
    Same {
        tag: u64,
    },
}

impl Run {
    fn skip(self, blocks: u64) -> Run {
        match self {
            Run::Data { tag, first } => Run::Data { tag, first: first + blocks },
            other => other,
        }
    }

    fn token(self, at: u64) -> Token {
        match self {
            Run::Zero => Token::Zero,
            Run::Ones => Token::Ones,
            Run::Data { tag, first } => Token::Data { tag, index: first + at },
            Run::Same { tag } => Token::Data { tag, index: u64::MAX },
        }
    }
}

type Link = Option<Arc<Node>>;

struct Node {
    left: Link,
    right: Link,
    run: Run,
    len: u64,
    /// Of the whole subtree.
    blocks: u64,
    data_blocks: u64,
    weight: u64,
}

fn blocks(link: &Link) -> u64 {
    link.as_ref().map_or(0, |n| n.blocks)
}

fn weight(link: &Link) -> u64 {
    link.as_ref().map_or(0, |n| n.weight)
}

fn data_blocks(link: &Link) -> u64 {
    link.as_ref().map_or(0, |n| n.data_blocks)
}

fn node(left: Link, run: Run, len: u64, right: Link) -> Link {
    if len == 0 {
        return join(left, right);
    }
    let own = if run == Run::Zero { 0 } else { len };
    Some(Arc::new(Node {
        blocks: blocks(&left) + len + blocks(&right),
        data_blocks: data_blocks(&left).saturating_add(own).saturating_add(data_blocks(&right)),
        weight: weight(&left).saturating_add(weight(&right)).saturating_add(1),
        left,
        right,
        run,
        len,
    }))
}

/// A number for balancing; the tree's shape has no meaning, so any will do.
fn toss(a: u64, b: u64) -> u64 {
    use std::cell::Cell;
    thread_local!(static STATE: Cell<u64> = const { Cell::new(0x2545_f491_4f6c_dd1d) });
    STATE.with(|s| {
        let mut x = s.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        s.set(x);
        x % a.saturating_add(b).max(1)
    })
}

fn join(a: Link, b: Link) -> Link {
    match (a, b) {
        (None, other) | (other, None) => other,
        (Some(a), Some(b)) => {
            if toss(a.weight, b.weight) < a.weight {
                let right = join(a.right.clone(), Some(b));
                node(a.left.clone(), a.run, a.len, right)
            } else {
                let left = join(Some(a), b.left.clone());
                node(left, b.run, b.len, b.right.clone())
            }
        }
    }
}

fn split(link: &Link, at: u64) -> (Link, Link) {
    let Some(n) = link else { return (None, None) };
    let left = blocks(&n.left);
    if at <= left {
        let (a, b) = split(&n.left, at);
        (a, node(b, n.run, n.len, n.right.clone()))
    } else if at >= left + n.len {
        let (a, b) = split(&n.right, at - left - n.len);
        (node(n.left.clone(), n.run, n.len, a), b)
    } else {
        let cut = at - left;
        (node(n.left.clone(), n.run, cut, None), node(None, n.run.skip(cut), n.len - cut, n.right.clone()))
    }
}

/// A volume's blocks.
#[derive(Clone)]
pub(crate) struct Rope(Link);

impl Rope {
    /// `len` blocks of one run.
    pub(crate) fn of(run: Run, len: u64) -> Rope {
        Rope(node(None, run, len, None))
    }

    pub(crate) fn blocks(&self) -> u64 {
        blocks(&self.0)
    }

    /// Blocks that are not zero.
    pub(crate) fn data_blocks(&self) -> u64 {
        data_blocks(&self.0)
    }

    pub(crate) fn slice(&self, lba: u64, count: u64) -> Rope {
        let (_, tail) = split(&self.0, lba);
        Rope(split(&tail, count).0)
    }

    /// The rope with `piece` in place of what was at `lba`.
    pub(crate) fn with(&self, lba: u64, piece: Rope) -> Rope {
        let (head, rest) = split(&self.0, lba);
        let (_, tail) = split(&rest, piece.blocks());
        Rope(join(join(head, piece.0), tail))
    }

    /// Fills `buf` with the blocks from `lba` on.
    pub(crate) fn read(&self, lba: u64, buf: &mut [u8]) {
        read(&self.0, lba, buf);
    }

    /// The runs of a range, in order: start, length, run. At most `limit`.
    pub(crate) fn runs(&self, lba: u64, count: u64, limit: usize) -> Vec<(u64, u64, Run)> {
        let mut out = Vec::new();
        collect(&self.0, 0, lba, lba + count, limit, &mut out);
        out
    }
}

fn read(link: &Link, lba: u64, buf: &mut [u8]) {
    let Some(n) = link else { return };
    let count = (buf.len() / BLOCK_BYTES) as u64;
    if count == 0 {
        return;
    }
    let left = blocks(&n.left);
    let mut at = 0_u64;
    if lba < left {
        at = count.min(left - lba);
        read(&n.left, lba, &mut buf[..at as usize * BLOCK_BYTES]);
    }
    while at < count && lba + at < left + n.len {
        let from = at as usize * BLOCK_BYTES;
        n.run.token(lba + at - left).fill(&mut buf[from..from + BLOCK_BYTES]);
        at += 1;
    }
    if at < count {
        read(&n.right, lba + at - left - n.len, &mut buf[at as usize * BLOCK_BYTES..]);
    }
}

fn collect(link: &Link, base: u64, from: u64, to: u64, limit: usize, out: &mut Vec<(u64, u64, Run)>) {
    let Some(n) = link else { return };
    if out.len() >= limit || base >= to || base + n.blocks <= from {
        return;
    }
    collect(&n.left, base, from, to, limit, out);
    let start = base + blocks(&n.left);
    let (a, b) = (start.max(from), (start + n.len).min(to));
    if a < b && out.len() < limit {
        out.push((a, b - a, n.run.skip(a - start)));
    }
    collect(&n.right, start + n.len, from, to, limit, out);
}
