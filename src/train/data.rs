//! Where training batches come from: a text file read as bytes, or the recall task.

use std::ops::Range;

use rand_xoshiro::rand_core::{Rng, SeedableRng};
use rand_xoshiro::{SplitMix64, Xoshiro256PlusPlus};

use crate::error::{DataError, Result};

pub use super::batch::TokenBatch;
pub use super::text::{Text, check_bytes, check_validation, read_bytes, read_text, windows};
pub use crate::model::loss::IGNORED;

/// Number of different tokens in a text: its bytes.
pub const BYTE_VOCAB: usize = 256;

/// Random tokens of which the second half has to repeat the first.
///
/// The label at position `t` is the token at `t - seq/2`; the first half has none. With the zigzag order on 2 ranks
/// every answer lies on the other rank, so the loss falls only if context parallelism works.
#[derive(Clone, Copy, Debug)]
pub struct Recall {
    vocab: usize,
}

impl Recall {
    /// The task over the tokens `0..vocab`, with sequences of `seq_len`.
    pub fn new(vocab: usize, seq_len: usize) -> Result<Self> {
        if vocab < 2 {
            return Err(unusable(format!("a vocabulary of {vocab} leaves nothing to recall: use at least 2 tokens")));
        }
        if seq_len < 2 {
            return Err(unusable(format!("--seq-len is {seq_len}: the recall task needs at least 2 tokens")));
        }
        Ok(Recall { vocab })
    }

    /// Different tokens.
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    fn sequence(&self, mut random: Xoshiro256PlusPlus, seq: usize, out: &mut TokenBatch) {
        let start = out.tokens.len();
        out.tokens.extend((0..seq).map(|_| below(&mut random, self.vocab) as i64));
        let distance = seq / 2;
        let label = |t: usize| if t < distance { IGNORED } else { out.tokens[start + t - distance] };
        out.labels.extend((0..seq).map(label));
        out.lengths.push(seq);
    }
}

/// What the random numbers of a stream are for: streams of different purposes are independent.
#[derive(Clone, Copy)]
enum Purpose {
    Training = 1,
    HeldOut = 2,
}

/// Training batches and held-out ones.
#[derive(Clone, Debug)]
pub enum Source {
    /// A text.
    Text(Text),
    /// The recall task.
    Recall(Recall),
}

impl Source {
    /// Sequences `sequences` of step `step` (from 0), each of `seq` tokens; of a text that is cut into documents, of at
    /// most as many.
    ///
    /// A sequence depends on the seed, the step and its own number in the step: cutting a step into several
    /// micro-batches does not change what the step sees.
    ///
    /// For a text, `seq` must be the length that it was read for, or a smaller one where it is not cut into documents.
    pub fn batch(&self, seed: u64, step: u64, sequences: Range<usize>, seq: usize) -> TokenBatch {
        let mut out = TokenBatch::default();
        for sequence in sequences {
            let random = stream(seed, Purpose::Training, step, sequence as u64);
            match self {
                Source::Recall(recall) => recall.sequence(random, seq, &mut out),
                Source::Text(text) => out.push_bytes(text.training(), text.draw(random, seq)),
            }
        }
        out
    }

    /// The lengths of [`Source::batch`]'s sequences, without making them.
    pub fn lengths(&self, seed: u64, step: u64, sequences: Range<usize>, seq: usize) -> Vec<usize> {
        let length = |sequence| match self {
            Source::Text(text) => text.draw(stream(seed, Purpose::Training, step, sequence as u64), seq).len(),
            Source::Recall(_) => seq,
        };
        sequences.map(length).collect()
    }

    /// Every length that a sequence of [`Source::batch`] or [`Source::held_out`] can have: of a text that is cut into
    /// documents, one per sequence of the text.
    pub fn possible_lengths(&self, seq: usize) -> Vec<usize> {
        match self {
            Source::Text(text) => text.possible_lengths(seq),
            Source::Recall(_) => vec![seq],
        }
    }

    /// Sequences that no training step sees, the same ones at every call: at most `limit` of them, or documents until
    /// they have as many tokens. For a text without a held-out share there are none.
    pub fn held_out(&self, seed: u64, seq: usize, limit: usize) -> TokenBatch {
        match self {
            Source::Text(text) => text.held_out_batch(seq, limit),
            Source::Recall(recall) => {
                let mut out = TokenBatch::default();
                for sequence in 0..limit as u64 {
                    recall.sequence(stream(seed, Purpose::HeldOut, 0, sequence), seq, &mut out);
                }
                out
            }
        }
    }
}

/// The random numbers of one sequence: keyed by what they depend on, so that any of them can be made alone.
fn stream(seed: u64, purpose: Purpose, step: u64, sequence: u64) -> Xoshiro256PlusPlus {
    let key = [purpose as u64, step, sequence].into_iter().fold(mix(seed), |key, part| mix(key ^ mix(part)));
    Xoshiro256PlusPlus::seed_from_u64(key)
}

/// A step of SplitMix64 (Steele, Lea and Flood 2014): a bijection that spreads every bit.
fn mix(value: u64) -> u64 {
    SplitMix64::seed_from_u64(value).next_u64()
}

/// A number in `0..bound` (`bound` at least 1): the high word of a product, whose bias of `bound / 2^64` is nothing
/// here.
pub(super) fn below(random: &mut Xoshiro256PlusPlus, bound: usize) -> usize {
    ((u128::from(random.next_u64()) * bound as u128) >> 64) as usize
}

pub(super) fn unusable(message: String) -> crate::error::Error {
    DataError::Unusable(message).into()
}

#[cfg(test)]
mod tests;
