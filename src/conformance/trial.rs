//! Attention over ranks on drawn numbers, against the float64 oracle and against what plans predict.

use rand::{Rng, SeedableRng};
use rand_xoshiro::SplitMix64;

use crate::attention::RankPlan;
use crate::comm::decorate::traffic::Traffic;
use crate::error::Result;
use crate::handler::UntypedHandler;
use crate::kernel::DynKernel;
use crate::layout::Batch;
use crate::mask::Mask;
use crate::ops::Attends;
use crate::ops::attention::AttentionShape;
use crate::oracle::{self, Answer};
use crate::order::{DynPlacement, laid_out};
use crate::tensor::{Device, Float, Matrix};

/// Queries, keys, values and the gradient of the output, `[tokens, features]` in natural order, and the oracle's
/// answer.
#[derive(Debug)]
pub struct Trial<T> {
    shape: AttentionShape,
    mask: Mask,
    operands: [Vec<T>; 4],
    answer: Answer,
}

/// What a plan says about one rank before it runs, and what was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prediction {
    /// By the plan.
    pub predicted: u64,
    /// On the way.
    pub counted: u64,
}

/// One rank's part of out, dq, dk and dv, the token of each row, and predictions.
#[derive(Clone, Debug, PartialEq)]
pub struct Attended<T> {
    /// Row by row.
    pub tensors: [Vec<T>; 4],
    /// The token of each row, padding included.
    pub tokens: Vec<usize>,
    /// Bytes sent forward and backward.
    pub sent: [Prediction; 2],
    /// Most bytes held forward and backward, beyond what is there when the pass starts.
    pub held: [Prediction; 2],
}

impl<T> Attended<T> {
    /// What is predicted, by name. What else a plan predicts is one more of these.
    pub fn predictions(&self) -> [(&'static str, Prediction); 4] {
        [
            ("bytes forward", self.sent[0]),
            ("bytes backward", self.sent[1]),
            ("most bytes held forward", self.held[0]),
            ("most bytes held backward", self.held[1]),
        ]
    }
}

impl<T: Float> Trial<T> {
    /// Draws numbers for a batch whose token `i` is on rank `owners[i]`, by `seed` alone.
    ///
    /// Values and output gradients are larger on higher ranks, so that a row of the wrong rank shows; padding is NaN,
    /// so that any use of it shows.
    pub fn new(batch: &dyn Batch, owners: &[usize], shape: AttentionShape, mask: &Mask, seed: u64) -> Self {
        let documents = documents(batch);
        let mut padding = vec![true; owners.len()];
        documents.iter().for_each(|document| padding[document.start..document.start + document.valid].fill(false));
        let mut numbers = Numbers::new(100 + seed);
        let mut draw = |width: usize, grows: bool| -> Vec<T> {
            let amplitude = |token: usize| if grows { 1.0 + owners[token] as f64 } else { 1.0 };
            (0..owners.len() * width).map(|i| T::from_f64(amplitude(i / width) * numbers.even())).collect()
        };
        let (q, k) = (draw(shape.q_width(), false), draw(shape.k_width(), false));
        let mut operands = [q, k, draw(shape.v_width(), true), draw(shape.out_width(), true)];
        for (values, width) in operands.iter_mut().zip(widths(&shape)) {
            for (token, _) in padding.iter().enumerate().filter(|(_, padding)| **padding) {
                values[token * width..(token + 1) * width].fill(T::from_f64(f64::NAN));
            }
        }
        let number = |x: &T| if x.to_f64().is_nan() { 0.0 } else { x.to_f64() };
        let exact = operands.each_ref().map(|x| x.iter().map(number).collect::<Vec<f64>>());
        let AttentionShape { q_heads, kv_heads, qk_dim, v_dim, scale } = shape;
        let heads = oracle::Heads { query: q_heads, key_value: kv_heads, qk_dim, v_dim, scale };
        let attends = oracle::attends(mask, &documents);
        let answer = Answer::new(owners.len(), heads, &*attends, exact.each_ref().map(Vec::as_slice));
        Trial { shape, mask: mask.clone(), operands, answer }
    }

    /// Heads and their sizes.
    pub fn shape(&self) -> &AttentionShape {
        &self.shape
    }

    /// What is attended.
    pub fn mask(&self) -> &Mask {
        &self.mask
    }

    /// Relative errors of out, dq, dk and dv in natural order ([`Trial::together`]).
    pub fn errors(&self, found: &[Vec<T>; 4]) -> [f64; 4] {
        let found = found.each_ref().map(|x| x.iter().map(|x| x.to_f64()).collect::<Vec<f64>>());
        self.answer.errors(found.each_ref().map(Vec::as_slice))
    }

    /// Forward and backward on one rank with the handler's device, dealt out as in a placement that was made before:
    /// solvers take time. `traffic` counts what the handler's communicator sends; `peak` says what a plan predicts that
    /// the passes hold at most.
    ///
    /// # Errors
    /// Those of the handler, and of other ranks.
    pub fn attend<D: Attends + Device<Elem = T>>(
        &self,
        handler: &UntypedHandler<D>,
        traffic: &Traffic,
        kernel: &'static dyn DynKernel<D>,
        placement: &DynPlacement,
        peak: impl Fn(&RankPlan) -> Result<(usize, usize)>,
    ) -> Result<Attended<T>> {
        let (shape, device, batch) = (&self.shape, handler.device(), placement.batch());
        let placement = handler.place_with(batch.clone(), placement.deal().clone())?;
        let mut shards = Vec::with_capacity(4);
        for (values, width) in self.operands.iter().zip(widths(shape)) {
            let full = laid_out(values, width, &**batch, handler.layout())?;
            let full = Matrix::new(device.upload(&full), full.rows(), full.cols());
            shards.push(handler.by_ref().dispatch(&placement, &full)?);
        }
        let (qkv, dout) = ([&shards[0], &shards[1], &shards[2]], &shards[3]);
        let plan = handler.plan(&placement, &self.mask)?;
        let (sent, peak) = (plan.bytes_sent::<D>(shape)?, peak(&plan)?);
        traffic.reset();
        let held = device.ledger().mark();
        let counted = |held: usize| (traffic.bytes(), (device.ledger().peak() - held) as u64);
        let (out, core) = handler.by_ref().core_attn(kernel, &plan, shape, qkv)?;
        let forward = counted(held);
        traffic.reset();
        let held = device.ledger().mark();
        let [dq, dk, dv] = handler.by_ref().core_attn_backward(&plan, qkv, &core, dout)?;
        let backward = counted(held);
        let of = |predicted, counted| Prediction { predicted: predicted as u64, counted };
        // Nobody leaves before all are done: whoever is left alone would be told of that, not of a failure.
        handler.comm().barrier()?;
        let mut tensors: [Vec<T>; 4] = Default::default();
        for (values, shard) in tensors.iter_mut().zip([out, dq, dk, dv]) {
            *values = device.read(shard.matrix())?;
        }
        Ok(Attended {
            tensors,
            tokens: tokens_by_row(&placement, handler.rank()),
            sent: [of(sent.0, forward.0), of(sent.1, backward.0)],
            held: [of(peak.0, forward.1), of(peak.1, backward.1)],
        })
    }

    /// Tensors in natural order from the rows of all ranks; NaN where no rank has a row. Without the library's
    /// `combine`.
    pub fn together<'a>(&self, parts: impl IntoIterator<Item = &'a Attended<T>> + Clone) -> [Vec<T>; 4] {
        let [q, k, v, out] = widths(&self.shape);
        let (widths, tokens) = ([out, q, k, v], self.operands[0].len() / q);
        std::array::from_fn(|i| {
            let width = widths[i];
            let mut whole = vec![T::from_f64(f64::NAN); tokens * width];
            for part in parts.clone() {
                for (row, &token) in part.tokens.iter().enumerate() {
                    whole[token * width..][..width].copy_from_slice(&part.tensors[i][row * width..][..width]);
                }
            }
            whole
        })
    }
}

fn widths(shape: &AttentionShape) -> [usize; 4] {
    [shape.q_width(), shape.k_width(), shape.v_width(), shape.out_width()]
}

/// The tokens of a rank by memory row.
pub fn tokens_by_row(placement: &DynPlacement, rank: usize) -> Vec<usize> {
    let runs = placement.runs_of(rank);
    let mut tokens = vec![0; placement.rows_of(rank)];
    for (local, token) in runs.iter().flat_map(|run| run.iter()).enumerate() {
        tokens[placement.row_of(rank, local)] = token;
    }
    tokens
}

/// The rank of each token under a placement.
pub fn owners(placement: &DynPlacement) -> Vec<usize> {
    (0..placement.batch().tokens()).map(|token| placement.locate(token).0).collect()
}

/// The documents of a batch as the oracle takes them.
pub fn documents(batch: &dyn Batch) -> Vec<oracle::Document> {
    let lengths = (0..batch.documents()).map(|index| batch.document(index));
    let (valid, stored): (Vec<usize>, Vec<usize>) = lengths.map(|document| (document.valid, document.stored)).unzip();
    oracle::documents(&valid, &stored)
}

/// Numbers without a pattern that depend on the seed alone.
pub(crate) struct Numbers(SplitMix64);

impl Numbers {
    pub(crate) fn new(seed: u64) -> Self {
        Numbers(SplitMix64::seed_from_u64(seed))
    }

    /// Even, with mean 0 and variance 1.
    pub(crate) fn even(&mut self) -> f64 {
        let unit = (self.0.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        12f64.sqrt() * (unit - 0.5)
    }

    /// Small whole numbers, whose sums are exact, and -0 among them.
    #[cfg(feature = "conformance")]
    pub(crate) fn whole(&mut self, count: usize) -> Vec<f32> {
        let number = |bits: u64| if bits == 0 { -0.0 } else { bits as f32 - 32.0 };
        (0..count).map(|_| number(self.0.next_u64() >> 58)).collect()
    }
}
