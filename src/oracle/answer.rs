//! The answer to an attention problem, and how far others are from it.

use super::{DenseAttention, DenseGradients, Heads, attention, attention_backward, norm, relative_error};

/// What is compared, in the order of [`Answer::errors`].
pub const NAMES: [&str; 4] = ["out", "dq", "dk", "dv"];

/// Output and gradients of one attention call, in `f64`.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Output, then the gradients of queries, keys and values; tokens in natural order.
    pub tensors: [Vec<f64>; 4],
    dout_norm: f64,
}

impl Answer {
    /// The answer for queries, keys, values and the gradient of the output, `[tokens, features]` each. Rows that no
    /// cell uses do not matter, unless they are NaN in the gradient of the output.
    pub fn new(
        tokens: usize,
        heads: Heads,
        attends: &dyn Fn(usize, usize) -> bool,
        [q, k, v, dout]: [&[f64]; 4],
    ) -> Self {
        let problem = DenseAttention { tokens, heads, q, k, v, attends };
        let DenseGradients { dq, dk, dv } = attention_backward(&problem, dout);
        Answer { tensors: [attention(&problem).out, dq, dk, dv], dout_norm: norm(dout) }
    }

    /// Relative errors of out, dq, dk and dv.
    pub fn errors(&self, found: [&[f64]; 4]) -> [f64; 4] {
        std::array::from_fn(|i| {
            let scale = if i == 0 { 0.0 } else { self.dout_norm };
            relative_error(found[i], &self.tensors[i], scale)
        })
    }
}
