//! Cases whose tensors have one row per token: batches, rotary embedding, roll.
//!
//! A file holds what each rank must get in zigzag order. The whole tensor is put together from that, by a map that
//! is written here from `L / 2W` chunks and nothing else; every strategy, order, layout and number of ranks must give
//! that whole tensor, re-sliced.

use std::collections::BTreeMap;

use super::report::{CaseReport, compare};
use super::safetensors::{File, Tensor};

/// Rows of a tensor, token by token (sequence by sequence), whatever the layout.
#[derive(Clone, Debug, PartialEq)]
pub struct Rows {
    /// Values of a row.
    pub features: usize,
    /// `[tokens, features]`.
    pub values: Vec<f64>,
}

/// Tensors by name.
pub type Tensors = BTreeMap<String, Rows>;

/// What a case expects of one tensor.
#[derive(Clone, Debug)]
pub struct Expected {
    /// The whole tensor.
    pub whole: Rows,
    /// How far each value may be off; 0 is the same bits.
    pub tolerance: Vec<f64>,
}

/// A case: inputs over the tokens of a batch, and what must come out.
#[derive(Clone, Debug)]
pub struct TokenCase {
    /// The kind in the file's metadata.
    pub kind: String,
    /// The file's name.
    pub name: String,
    /// Whether the batch is dense.
    pub dense: bool,
    /// Lengths of the sequences or documents.
    pub lengths: Vec<usize>,
    /// Number of ranks of the file.
    pub ranks: usize,
    /// Inputs.
    pub inputs: Tensors,
    /// Outputs.
    pub expected: BTreeMap<String, Expected>,
}

/// What a combination gave.
#[derive(Clone, Debug, Default)]
pub struct Given {
    /// The outputs of all ranks, combined.
    pub whole: Tensors,
    /// The outputs of each rank, in its local order. Empty for what knows no ranks.
    pub by_rank: Vec<Tensors>,
    /// The tokens of each rank, in its local order.
    pub tokens: Vec<Vec<usize>>,
}

/// The tokens that a rank holds in zigzag order, or nothing where that is not defined without dealing out rows:
/// a sequence of length L is cut into 2W chunks, rank r holds chunks r and 2W-1-r.
pub fn zigzag(lengths: &[usize], ranks: usize, rank: usize) -> Option<Vec<usize>> {
    let mut tokens = Vec::new();
    let mut start = 0;
    for &length in lengths {
        if ranks == 1 {
            tokens.extend(start..start + length);
        } else if length % (2 * ranks) == 0 {
            let chunk = length / (2 * ranks);
            for index in [rank, 2 * ranks - 1 - rank] {
                tokens.extend(start + index * chunk..start + (index + 1) * chunk);
            }
        } else {
            return None;
        }
        start += length;
    }
    Some(tokens)
}

impl Rows {
    /// A tensor whose leading dimensions are the tokens, sequence by sequence.
    pub fn new(tensor: &Tensor, tokens: usize) -> Result<Rows, String> {
        match tokens {
            0 => Ok(Rows { features: 0, values: Vec::new() }),
            _ if tensor.len().is_multiple_of(tokens) => {
                Ok(Rows { features: tensor.len() / tokens, values: tensor.f64s() })
            }
            _ => Err(format!("a tensor of shape {:?} for {tokens} tokens", tensor.shape)),
        }
    }

    /// A tensor `[seq, batch, ...]`, its first two dimensions exchanged.
    pub fn sequence_first(tensor: &Tensor) -> Result<Rows, String> {
        let [seq, batch, ref rest @ ..] = tensor.shape[..] else {
            return Err(format!("[seq, batch, ...] was expected, found {:?}", tensor.shape));
        };
        let rows = Rows { features: rest.iter().product(), values: tensor.f64s() };
        let order: Vec<usize> = (0..batch).flat_map(|b| (0..seq).map(move |s| s * batch + b)).collect();
        Ok(rows.pick(&order))
    }

    /// Rows by index.
    pub fn pick(&self, rows: &[usize]) -> Rows {
        let values = rows.iter().flat_map(|&row| self.row(row)).copied().collect();
        Rows { features: self.features, values }
    }

    /// One row.
    pub fn row(&self, row: usize) -> &[f64] {
        &self.values[row * self.features..(row + 1) * self.features]
    }
}

/// Puts the shards of a file, by rank, together to the whole tensor.
pub fn whole(lengths: &[usize], shards: &[Rows]) -> Result<Rows, String> {
    let tokens: usize = lengths.iter().sum();
    let features = shards.first().map_or(0, |shard| shard.features);
    let mut values = vec![f64::NAN; tokens * features];
    for (rank, shard) in shards.iter().enumerate() {
        let rows = zigzag(lengths, shards.len(), rank)
            .ok_or_else(|| format!("lengths {lengths:?} are not divisible by twice the ranks ({})", shards.len()))?;
        if shard.values.len() != rows.len() * features {
            return Err(format!("rank {rank} has {} values for {} tokens", shard.values.len(), rows.len()));
        }
        for (local, &token) in rows.iter().enumerate() {
            values[token * features..(token + 1) * features].copy_from_slice(shard.row(local));
        }
    }
    Ok(Rows { features, values })
}

/// `rank{r}.{name}` of every rank, read by `read`.
pub fn shards(
    file: &File,
    name: &str,
    ranks: usize,
    read: impl Fn(&Tensor) -> Result<Rows, String>,
) -> Result<Vec<Rows>, String> {
    (0..ranks).map(|rank| read(file.tensor(&format!("rank{rank}.{name}"))?)).collect()
}

/// Lengths from cumulative lengths.
pub fn lengths(cu_seqlens: &Tensor) -> Result<Vec<usize>, String> {
    let length = |pair: &[i64]| usize::try_from(pair[1] - pair[0]).map_err(|_| "cu_seqlens decreases".to_string());
    cu_seqlens.i64s()?.windows(2).map(length).collect()
}

impl TokenCase {
    /// Runs the case under one combination and compares. `in_zigzag` says that its shards are in zigzag order, so
    /// that they must be the file's own.
    pub fn run(
        &self,
        report: &mut CaseReport,
        combination: &str,
        in_zigzag: bool,
        run: impl FnOnce(&TokenCase) -> Result<Given, String>,
    ) {
        report.run(&self.kind, &self.name, combination, || run(self).map(|given| self.judge(&given, in_zigzag)));
    }

    /// Everything that differs from what is expected.
    pub fn judge(&self, given: &Given, in_zigzag: bool) -> Vec<String> {
        let all: Vec<usize> = (0..self.lengths.iter().sum()).collect();
        let mut wrong: Vec<String> = self.differences("", &given.whole, &all).collect();
        if given.by_rank.len() != given.tokens.len() {
            wrong.push(format!("{} ranks but tokens of {}", given.by_rank.len(), given.tokens.len()));
            return wrong;
        }
        if !given.tokens.is_empty() {
            let mut dealt = given.tokens.concat();
            dealt.sort_unstable();
            if dealt != all {
                wrong.push("the ranks do not hold every token exactly once".to_string());
                return wrong;
            }
        }
        let ranks = given.by_rank.len();
        for (rank, (found, tokens)) in given.by_rank.iter().zip(&given.tokens).enumerate() {
            if let Some(zigzag) = zigzag(&self.lengths, ranks, rank).filter(|_| in_zigzag)
                && zigzag != *tokens
            {
                wrong.push(format!("rank {rank} holds tokens {tokens:?}, expected {zigzag:?}"));
            }
            wrong.extend(self.differences(&format!("rank {rank} "), found, tokens));
        }
        wrong
    }

    /// Differences of tensors whose rows are these tokens.
    fn differences(&self, whose: &str, found: &Tensors, tokens: &[usize]) -> impl Iterator<Item = String> {
        let compare = |(name, expected): (&String, &Expected)| {
            let name = format!("{whose}{name}");
            let Some(rows) = found.get(name.strip_prefix(whose)?) else {
                return Some(format!("{name} is missing"));
            };
            let features = expected.whole.features;
            let tolerance = |i: usize| expected.tolerance[tokens[i / features] * features + i % features];
            compare(&name, &rows.values, &expected.whole.pick(tokens).values, tolerance)
        };
        self.expected.iter().filter_map(compare).collect::<Vec<_>>().into_iter()
    }
}
