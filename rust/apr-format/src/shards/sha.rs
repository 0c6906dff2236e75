//! SHA-256, a block at a time, so that other work can lie between the blocks.

use sha2::block_api::compress256;

/// Bytes of a block.
pub(super) const BLOCK: usize = 64;

/// A hash under way. `sha2::Sha256` gives the same and takes bytes of any number, but keeps its state to itself.
#[derive(Clone, Debug)]
pub(super) struct Sha {
    state: [u32; 8],
    blocks: u64,
}

impl Default for Sha {
    fn default() -> Self {
        // FIPS 180-4, 5.3.3.
        let state = [
            0x6a09_e667,
            0xbb67_ae85,
            0x3c6e_f372,
            0xa54f_f53a,
            0x510e_527f,
            0x9b05_688c,
            0x1f83_d9ab,
            0x5be0_cd19,
        ];
        Self { state, blocks: 0 }
    }
}

impl Sha {
    /// The next block.
    #[inline]
    pub(super) fn block(&mut self, block: &[u8; BLOCK]) {
        self.blocks += 1;
        compress256(&mut self.state, std::slice::from_ref(block));
    }

    /// The hash, once the last bytes, which fill no block, are known.
    pub(super) fn finish(mut self, rest: &[u8]) -> [u8; 32] {
        let bits = (self.blocks * BLOCK as u64 + rest.len() as u64) * 8;
        // FIPS 180-4, 5.1.1: a one, zeros, and the length at the end of a block.
        let mut padded = rest.to_vec();
        padded.push(0x80);
        padded.resize((padded.len() + 8).next_multiple_of(BLOCK) - 8, 0);
        padded.extend(bits.to_be_bytes());
        compress256(&mut self.state, padded.as_chunks().0);
        let mut digest = [0; 32];
        for (out, word) in digest.as_chunks_mut().0.iter_mut().zip(self.state) {
            *out = word.to_be_bytes();
        }
        digest
    }
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;

    #[test]
    fn gives_what_the_library_gives_at_every_length() {
        let bytes: Vec<u8> = (0..300_u32).map(|i| i.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
        for length in 0..bytes.len() {
            let (blocks, rest) = bytes[..length].as_chunks();
            let mut sha = Sha::default();
            for block in blocks {
                sha.block(block);
            }
            assert_eq!(sha.finish(rest), *Sha256::digest(&bytes[..length]), "{length} bytes");
        }
    }
}
