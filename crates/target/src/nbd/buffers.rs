//! The two buffers of a connection. Both keep bytes they have once initialised, so that no round clears memory, and both give
//! it all back when the connection falls idle.

/// Most bytes received at once while requests are small.
const INPUT_BYTES: usize = 256 << 10;
const INPUT_FIRST_BYTES: usize = 32 << 10;
/// From this size on a request is received exactly to its end, so that the next one starts a clean buffer and its payload need
/// not be moved.
const EXACT_BYTES: usize = 64 << 10;
/// Bytes received past the end of such a request: enough to know how long the next one is.
const LOOKAHEAD_BYTES: usize = 28;

/// Received bytes that are not executed yet.
#[derive(Default)]
pub(super) struct Input {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    filled_up: bool,
}

impl Input {
    /// The received bytes.
    pub(super) fn filled(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    pub(super) fn len(&self) -> usize {
        self.end - self.start
    }

    /// Forgets the first `count` received bytes.
    pub(super) fn consume(&mut self, count: usize) {
        self.start = (self.start + count).min(self.end);
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        }
    }

    /// Where to receive to, when `need` bytes in a row are wanted (counted from the first one held, which may be more than
    /// `need`). Never empty.
    pub(super) fn room(&mut self, need: usize) -> &mut [u8] {
        let need = need.max(self.len() + 1);
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let wanted = if need >= EXACT_BYTES {
            need + LOOKAHEAD_BYTES
        } else if self.filled_up {
            INPUT_BYTES
        } else {
            INPUT_FIRST_BYTES.max(need)
        };
        if wanted > self.bytes.len() {
            // Fresh zeros come from the system unwritten; growing in place would clear them by hand.
            let mut grown = vec![0; wanted];
            grown[..self.end].copy_from_slice(&self.bytes[..self.end]);
            self.bytes = grown;
        }
        let limit = if need >= EXACT_BYTES {
            need + LOOKAHEAD_BYTES
        } else {
            self.bytes.len().min(INPUT_BYTES).max(need)
        };
        &mut self.bytes[self.end..limit]
    }

    /// `count` bytes were received into the room last given.
    pub(super) fn received(&mut self, count: usize) {
        self.end = (self.end + count).min(self.bytes.len());
        self.filled_up |= self.end >= INPUT_FIRST_BYTES;
    }

    /// Gives the memory back, if nothing is held.
    pub(super) fn shrink(&mut self) {
        if self.len() == 0 {
            *self = Input::default();
        }
    }

    pub(super) fn capacity(&self) -> usize {
        self.bytes.len()
    }
}

/// Answers that are not sent yet.
#[derive(Default)]
pub(super) struct Output {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Output {
    /// The bytes to send.
    pub(super) fn pending(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// The first `count` bytes are sent.
    pub(super) fn sent(&mut self, count: usize) {
        self.start = (self.start + count).min(self.end);
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        }
    }

    /// Appends `count` bytes of any content, to be overwritten by the caller.
    pub(super) fn extend(&mut self, count: usize) -> &mut [u8] {
        let start = self.end;
        let end = start + count;
        if end > self.bytes.len() {
            let mut grown = vec![0; end.next_power_of_two().max(4096)];
            grown[..start].copy_from_slice(&self.bytes[..start]);
            self.bytes = grown;
        }
        self.end = end;
        &mut self.bytes[start..end]
    }

    /// Appends `bytes`.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.extend(bytes.len()).copy_from_slice(bytes);
    }

    /// The end as of now, for [`Output::rewind`]. Good until the next `sent`.
    pub(super) fn mark(&self) -> usize {
        self.end
    }

    /// Takes back what was appended since `mark`.
    pub(super) fn rewind(&mut self, mark: usize) {
        self.end = mark.clamp(self.start, self.end);
    }

    /// Gives the memory back, if nothing is held.
    pub(super) fn shrink(&mut self) {
        if self.start == self.end {
            *self = Output::default();
        }
    }

    pub(super) fn capacity(&self) -> usize {
        self.bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receive(input: &mut Input, need: usize, bytes: &[u8]) -> usize {
        let room = input.room(need);
        let count = room.len().min(bytes.len());
        room[..count].copy_from_slice(&bytes[..count]);
        input.received(count);
        count
    }

    #[test]
    fn input_keeps_what_is_not_consumed_in_order() {
        let mut input = Input::default();
        assert_eq!(receive(&mut input, 1, b"abcdef"), 6);
        input.consume(2);
        assert_eq!(input.filled(), b"cdef");
        assert_eq!(receive(&mut input, 5, b"gh"), 2);
        assert_eq!(input.filled(), b"cdefgh");
        input.consume(99);
        assert_eq!(input.len(), 0);
        input.shrink();
        assert_eq!(input.capacity(), 0);
    }

    #[test]
    fn a_large_request_is_received_to_its_end_and_one_header_more() {
        let mut input = Input::default();
        receive(&mut input, 1, &[7; 100]);
        assert_eq!(input.room(1 << 20).len(), (1 << 20) + 28 - 100);
        assert_eq!(input.filled(), [7; 100]);
    }

    #[test]
    fn room_is_never_empty() {
        let mut input = Input::default();
        for _ in 0..40 {
            let room = input.room(1).len();
            assert!(room > 0);
            input.received(room);
        }
    }

    #[test]
    fn output_can_take_back_an_unfinished_answer() {
        let mut output = Output::default();
        output.push(b"one");
        let mark = output.mark();
        output.extend(5000).fill(9);
        output.rewind(mark);
        output.push(b"two");
        assert_eq!(output.pending(), b"onetwo");
        output.sent(4);
        assert_eq!(output.pending(), b"wo");
    }
}
