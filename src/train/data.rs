//! Where training batches come from: a text file read as bytes, or the recall task.

use std::ops::Range;
use std::path::Path;

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};

use crate::error::{DataError, ModelError, Result};
use crate::layout::Dense;
use crate::model::mtp::label_counts;

pub use crate::model::loss::IGNORED;

/// Number of different tokens in a text: its bytes.
pub const BYTE_VOCAB: usize = 256;

/// Sequences of token ids and what each token has to predict, on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenBatch {
    /// Token ids `[batch, seq]`, row-major.
    pub tokens: Vec<i64>,
    /// Labels `[batch, seq]`, row-major; [`IGNORED`] where nothing is to be predicted.
    pub labels: Vec<i64>,
    /// Number of sequences.
    pub batch: usize,
    /// Tokens per sequence.
    pub seq: usize,
}

impl TokenBatch {
    fn with_capacity(batch: usize, seq: usize) -> Self {
        TokenBatch { tokens: Vec::with_capacity(batch * seq), labels: Vec::with_capacity(batch * seq), batch, seq }
    }

    /// A batch of ids `[batch, seq]` in which each token has to predict the next one of its sequence.
    pub fn next_token(tokens: Vec<i64>, batch: usize, seq: usize) -> Self {
        debug_assert_eq!(tokens.len(), batch * seq);
        let label = |(index, _): (usize, &i64)| if (index + 1) % seq == 0 { IGNORED } else { tokens[index + 1] };
        let labels = tokens.iter().enumerate().map(label).collect();
        TokenBatch { tokens, labels, batch, seq }
    }

    /// Number of labels that count.
    pub fn counted(&self) -> usize {
        self.labels.iter().filter(|&&label| label != IGNORED).count()
    }

    /// Number of labels that count for each loss: of the next token, then of the depths 1 to `depth` of multi-token
    /// prediction.
    pub fn counted_by_depth(&self, depth: usize) -> Vec<usize> {
        label_counts(&Dense { batch: self.batch, seq: self.seq }, &self.labels, depth)
    }

    /// The same sequences in batches of `batch` (at least 1) of them; the last may have fewer.
    pub fn chunks(&self, batch: usize) -> impl Iterator<Item = TokenBatch> + '_ {
        let (batch, seq) = (batch.max(1), self.seq);
        (0..self.batch).step_by(batch).map(move |first| {
            let batch = batch.min(self.batch - first);
            let range = first * seq..(first + batch) * seq;
            TokenBatch { tokens: self.tokens[range.clone()].to_vec(), labels: self.labels[range].to_vec(), batch, seq }
        })
    }

    /// Refuses ids (and labels that count) outside `0..vocab`, naming the first.
    pub fn check_vocab(&self, vocab: usize) -> Result<()> {
        let outside = |id: &i64| !usize::try_from(*id).is_ok_and(|id| id < vocab);
        // Tokens first: a label is the token after it, and would be found one position early.
        let token = self.tokens.iter().position(outside).map(|index| (index, self.tokens[index]));
        let counts = |label: &i64| *label != IGNORED && outside(label);
        let label = || self.labels.iter().position(counts).map(|index| (index, self.labels[index]));
        match token.or_else(label) {
            None => Ok(()),
            Some((index, token)) => {
                let (sequence, position) = (index / self.seq, index % self.seq);
                Err(ModelError::Token { token, sequence, position, vocab }.into())
            }
        }
    }
}

/// A text as bytes, its end held out from training.
#[derive(Clone, Debug)]
pub struct Text {
    bytes: Vec<u8>,
    /// Bytes used for training; the rest is held out.
    training: usize,
}

impl Text {
    /// Reads `path` whole; `validation`, in `[0, 0.5]`, is the share at its end that training never sees.
    ///
    /// Fails if the file cannot be read or is empty, if the share is out of range, if the training part is shorter
    /// than one sequence and the byte after it, or if a share is held out that has no byte to predict.
    pub fn read(path: &Path, seq_len: usize, validation: f64) -> Result<Self> {
        check_validation(validation)?;
        let bytes = read_bytes(path)?;
        let held_out = (bytes.len() as f64 * validation).floor() as usize;
        let (all, training, path) = (bytes.len(), bytes.len() - held_out, path.display());
        if training <= seq_len {
            let part =
                if held_out > 0 { format!(" for training ({held_out} of {all} are held out)") } else { String::new() };
            let fix = match training {
                1 => "use a longer text".to_string(),
                _ => format!("use --seq-len {} or less, or a longer text", training - 1),
            };
            return Err(unusable(format!(
                "{path} has {training} bytes{part}, --seq-len {seq_len} needs {}, the last one as a label: {fix}",
                seq_len.saturating_add(1)
            )));
        }
        if validation > 0.0 && held_out < 2 {
            return Err(unusable(format!(
                "--validation {validation} holds out {held_out} of the {all} bytes of {path}, which leaves nothing to \
                 predict: use --validation 0 or a longer text"
            )));
        }
        Ok(Text { bytes, training })
    }

    /// The bytes that training draws from.
    pub fn training(&self) -> &[u8] {
        &self.bytes[..self.training]
    }

    /// The bytes that training never sees.
    pub fn held_out(&self) -> &[u8] {
        &self.bytes[self.training..]
    }
}

/// Refuses a held-out share that is not in `[0, 0.5]`.
pub fn check_validation(share: f64) -> Result<()> {
    if (0.0..=0.5).contains(&share) {
        return Ok(());
    }
    Err(unusable(format!("--validation is {share}: choose a share from 0 to 0.5, such as 0.05")))
}

/// The whole of a file that must not be empty.
pub fn read_bytes(path: &Path) -> Result<Vec<u8>> {
    let bytes = std::fs::read(path)
        .map_err(|error| DataError::Read { path: path.display().to_string(), reason: error.to_string() })?;
    if bytes.is_empty() {
        return Err(unusable(format!("{} is empty: pass a file with text", path.display())));
    }
    Ok(bytes)
}

/// Consecutive windows of `seq` bytes, at most `limit` of them; each byte predicts the next one, also across windows.
///
/// The last window is filled with bytes 0 whose labels do not count.
pub fn windows(bytes: &[u8], seq: usize, limit: usize) -> TokenBatch {
    let predicting = bytes.len().saturating_sub(1);
    let batch = predicting.div_ceil(seq).min(limit);
    let mut out = TokenBatch::with_capacity(batch, seq);
    for index in 0..batch * seq {
        let inside = index < predicting;
        out.tokens.push(if inside { i64::from(bytes[index]) } else { 0 });
        out.labels.push(if inside { i64::from(bytes[index + 1]) } else { IGNORED });
    }
    out
}

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

    fn sequence(&self, mut random: Xoshiro256PlusPlus, seq: usize, out: &mut TokenBatch) {
        let start = out.tokens.len();
        out.tokens.extend((0..seq).map(|_| below(&mut random, self.vocab) as i64));
        let distance = seq / 2;
        let label = |t: usize| if t < distance { IGNORED } else { out.tokens[start + t - distance] };
        out.labels.extend((0..seq).map(label));
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
    /// Tokens have ids `0..vocab()`.
    pub fn vocab(&self) -> usize {
        match self {
            Source::Text(_) => BYTE_VOCAB,
            Source::Recall(recall) => recall.vocab,
        }
    }

    /// Sequences `sequences` of step `step` (from 0), each of `seq` tokens.
    ///
    /// A sequence depends on the seed, the step and its own number in the step: cutting a step into several
    /// micro-batches does not change what the step sees.
    ///
    /// For a text, `seq` must not be larger than the length that it was read for.
    pub fn batch(&self, seed: u64, step: u64, sequences: Range<usize>, seq: usize) -> TokenBatch {
        let mut out = TokenBatch::with_capacity(sequences.len(), seq);
        for sequence in sequences {
            let mut random = stream(seed, Purpose::Training, step, sequence as u64);
            match self {
                Source::Recall(recall) => recall.sequence(random, seq, &mut out),
                Source::Text(text) => {
                    let bytes = text.training();
                    let offset = below(&mut random, bytes.len() - seq);
                    out.tokens.extend(bytes[offset..offset + seq].iter().map(|&byte| i64::from(byte)));
                    out.labels.extend(bytes[offset + 1..=offset + seq].iter().map(|&byte| i64::from(byte)));
                }
            }
        }
        out
    }

    /// At most `limit` sequences that no training step sees, the same ones at every call; for a text without a
    /// held-out share there are none.
    pub fn held_out(&self, seed: u64, seq: usize, limit: usize) -> TokenBatch {
        match self {
            Source::Text(text) => windows(text.held_out(), seq, limit),
            Source::Recall(recall) => {
                let mut out = TokenBatch::with_capacity(limit, seq);
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

/// SplitMix64's step (Steele, Lea and Flood 2014): a bijection that spreads every bit.
fn mix(value: u64) -> u64 {
    let z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A number in `0..bound` (`bound` at least 1): the high word of a product, whose bias of `bound / 2^64` is nothing here.
fn below(random: &mut Xoshiro256PlusPlus, bound: usize) -> usize {
    ((u128::from(random.next_u64()) * bound as u128) >> 64) as usize
}

fn unusable(message: String) -> crate::error::Error {
    DataError::Unusable(message).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(content: &[u8]) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("text");
        std::fs::write(&path, content).unwrap();
        (folder, path)
    }

    fn counting(length: usize) -> Vec<u8> {
        (0..length).map(|i| (i % 251) as u8).collect()
    }

    #[test]
    fn text_labels_are_the_next_bytes_and_stay_in_the_training_part() {
        let content = counting(1000);
        let (_folder, path) = file(&content);
        let source = Source::Text(Text::read(&path, 16, 0.25).unwrap());
        let mut seen = vec![false; 1000];
        for step in 0..400 {
            let batch = source.batch(7, step, 0..4, 16);
            assert_eq!((batch.batch, batch.seq, batch.tokens.len(), batch.labels.len()), (4, 16, 64, 64));
            for (tokens, labels) in batch.tokens.chunks(16).zip(batch.labels.chunks(16)) {
                assert_eq!(tokens[1..], labels[..15]);
                let window: Vec<u8> = tokens.iter().chain(&labels[15..]).map(|&id| id as u8).collect();
                let at: Vec<usize> = (0..=733).filter(|&at| content[at..at + 17] == window[..]).collect();
                assert!(!at.is_empty(), "a window that is not in the first 750 bytes");
                at.into_iter().for_each(|at| seen[at] = true);
            }
        }
        assert!(seen[0] && seen[733], "the first and the last offset are reachable");
    }

    #[test]
    fn a_step_depends_on_seed_and_step_and_not_on_how_it_is_cut() {
        let (_folder, path) = file(&counting(5000));
        for source in [Source::Text(Text::read(&path, 32, 0.0).unwrap()), Source::Recall(Recall::new(64, 32).unwrap())]
        {
            let whole = source.batch(3, 11, 0..6, 32);
            assert_eq!(whole, source.clone().batch(3, 11, 0..6, 32));
            let mut cut = source.batch(3, 11, 0..2, 32);
            let rest = source.batch(3, 11, 2..6, 32);
            cut.tokens.extend(rest.tokens);
            cut.labels.extend(rest.labels);
            assert_eq!((&whole.tokens, &whole.labels), (&cut.tokens, &cut.labels));
            assert_ne!(whole.tokens, source.batch(3, 12, 0..6, 32).tokens);
            assert_ne!(whole.tokens, source.batch(4, 11, 0..6, 32).tokens);
            assert_ne!(whole.tokens[..32], whole.tokens[32..64]);
        }
    }

    #[test]
    fn which_tokens_a_step_sees_is_pinned() {
        let batch = Source::Recall(Recall::new(64, 8).unwrap()).batch(0, 0, 0..1, 8);
        // From a separate implementation of SplitMix64 and xoshiro256++.
        assert_eq!(batch.tokens, [7, 30, 40, 8, 1, 46, 9, 28]);
    }

    #[test]
    fn recall_labels_repeat_the_first_half() {
        for seq in [2, 7, 8, 33] {
            let batch = Source::Recall(Recall::new(50, seq).unwrap()).batch(1, 2, 0..3, seq);
            for (tokens, labels) in batch.tokens.chunks(seq).zip(batch.labels.chunks(seq)) {
                for t in 0..seq {
                    let expected = if t < seq / 2 { IGNORED } else { tokens[t - seq / 2] };
                    assert_eq!(labels[t], expected, "position {t} of {seq}");
                }
            }
            assert_eq!(batch.counted(), 3 * (seq - seq / 2));
            batch.check_vocab(50).unwrap();
        }
    }

    #[test]
    fn held_out_windows_are_consecutive_and_limited() {
        let content = counting(1000);
        let (_folder, path) = file(&content);
        let source = Source::Text(Text::read(&path, 16, 0.1).unwrap());
        let all = source.held_out(0, 16, 100);
        assert_eq!(all.batch, 7, "99 predicted bytes in windows of 16");
        assert_eq!(all.counted(), 99);
        let expected: Vec<i64> = content[900..999].iter().map(|&byte| i64::from(byte)).collect();
        assert_eq!(all.tokens[..99], expected);
        assert_eq!(all.labels[..98], expected[1..]);
        assert_eq!(all.labels[99..], [IGNORED; 13]);
        let few = source.held_out(0, 16, 2);
        assert_eq!((few.batch, few.counted()), (2, 32));
        assert_eq!(few.tokens, all.tokens[..32]);
        let pieces: Vec<TokenBatch> = all.chunks(3).collect();
        assert_eq!(pieces.iter().map(|piece| piece.batch).collect::<Vec<_>>(), [3, 3, 1]);
        assert_eq!(pieces.iter().flat_map(|piece| piece.labels.clone()).collect::<Vec<_>>(), all.labels);

        let recall = Source::Recall(Recall::new(64, 16).unwrap());
        assert_eq!(recall.held_out(5, 16, 4), recall.held_out(5, 16, 4));
        assert_ne!(recall.held_out(5, 16, 4).tokens, recall.batch(5, 0, 0..4, 16).tokens);
    }

    #[test]
    fn next_token_labels_end_with_each_sequence() {
        let batch = TokenBatch::next_token(vec![1, 2, 3, 4, 5, 6], 2, 3);
        assert_eq!(batch.labels, [2, 3, IGNORED, 5, 6, IGNORED]);
    }

    #[test]
    fn ids_outside_the_vocabulary_are_named() {
        let batch = TokenBatch::next_token(vec![1, 2, 3, 4, 9, 6], 2, 3);
        batch.check_vocab(10).unwrap();
        let error = batch.check_vocab(9).unwrap_err();
        assert_eq!(error, ModelError::Token { token: 9, sequence: 1, position: 1, vocab: 9 }.into());
        let labels = TokenBatch { tokens: vec![1, 2], labels: vec![IGNORED, 9], batch: 1, seq: 2 };
        assert!(labels.check_vocab(10).is_ok() && labels.check_vocab(9).is_err());
        assert!(TokenBatch::next_token(vec![0, -1], 1, 2).check_vocab(9).is_err());
    }

    #[test]
    fn what_cannot_be_used_is_refused_with_numbers_and_a_fix() {
        let (_folder, path) = file(&counting(64));
        let refused = |seq, share| {
            let error = Text::read(&path, seq, share).unwrap_err();
            assert!(error.is_input());
            error.to_string()
        };
        let message = refused(64, 0.0);
        assert!(
            message.contains("64 bytes") && message.contains("needs 65") && message.contains("--seq-len 63"),
            "{message}"
        );
        assert!(Text::read(&path, 63, 0.0).is_ok());
        let message = refused(60, 0.25);
        assert!(message.contains("48 bytes") && message.contains("16 of 64"), "{message}");
        assert!(refused(8, 0.6).contains("--validation is 0.6"));
        assert!(refused(8, f64::NAN).contains("--validation"));
        assert!(refused(8, -0.1).contains("--validation is -0.1"));
        assert!(refused(8, 0.02).contains("--validation 0.02 holds out 1 of the 64"));

        let (_folder, empty) = file(b"");
        assert!(Text::read(&empty, 8, 0.0).unwrap_err().to_string().contains("is empty"));
        let missing = empty.with_file_name("missing");
        let error = Text::read(&missing, 8, 0.0).unwrap_err();
        assert!(matches!(error, crate::error::Error::Data(DataError::Read { .. })) && error.is_input());
        assert!(Recall::new(1, 8).is_err() && Recall::new(8, 1).is_err());
    }
}
