//! What a block holds, as a token from which its 512 bytes follow.
//!
//! The first 16 bytes of a block name the write and the place in it, so that a wrong block says where it came from; the rest is
//! mixed from them, so that a torn or patched block is nobody's.

pub(crate) const BLOCK_BYTES: usize = 512;

/// One block's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Token {
    Zero,
    /// All bits set.
    Ones,
    /// Block `index` of write `tag` (never 0). A block written repeatedly by WRITE SAME has one index everywhere.
    Data {
        tag: u64,
        index: u64,
    },
}

fn mix(x: u64) -> u64 {
    let z = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Token {
    /// Fills one block.
    pub(crate) fn fill(self, block: &mut [u8]) {
        match self {
            Token::Zero => block.fill(0),
            Token::Ones => block.fill(0xFF),
            Token::Data { tag, index } => {
                let seed = mix(tag ^ mix(index));
                for (i, word) in block.chunks_exact_mut(8).enumerate() {
                    let value = match i {
                        0 => tag,
                        1 => index,
                        n => seed.wrapping_mul(2 * n as u64 + 1).rotate_left(n as u32),
                    };
                    word.copy_from_slice(&value.to_le_bytes());
                }
            }
        }
    }

    /// What a block read somewhere is, in words.
    pub(crate) fn describe(block: &[u8]) -> String {
        if block.iter().all(|&b| b == 0) {
            return "zeros".into();
        }
        if block.iter().all(|&b| b == 0xFF) {
            return "ones".into();
        }
        let word = |i: usize| u64::from_le_bytes(block[i * 8..i * 8 + 8].try_into().unwrap_or_default());
        let token = Token::Data { tag: word(0), index: word(1) };
        let mut expected = [0; BLOCK_BYTES];
        token.fill(&mut expected);
        if block == expected {
            format!("block {} of write {:#x}", word(1), word(0))
        } else {
            format!("nobody's block, starting {:02x?}", &block[..24])
        }
    }
}
