//! Attention with materialised probabilities, for comparison: no tiles, no log-sum-exp.

mod cpu;

use std::ops::Range;

use crate::ops::attention::AttentionShape;
use crate::ops::op::op;
use crate::plan::Piece;
use crate::tensor::{AccBuffer, AccMut, ElemRef, product};

/// Query rows and key rows of one sequence.
pub type Block = (Range<usize>, Range<usize>);

/// Number of probabilities.
///
/// # Panics
/// If it cannot be counted.
pub(crate) fn cells(shape: &AttentionShape, blocks: &[Block]) -> usize {
    let cells = blocks.iter().map(|(queries, keys)| product(&[queries.len(), keys.len(), shape.q_heads]));
    let sum = cells.into_iter().try_fold(0usize, usize::checked_add);
    sum.unwrap_or_else(|| panic!("the probabilities of {} sequences cannot be counted", blocks.len()))
}

op! {
    /// Attention that keeps every probability. Buffers and pieces as in [`crate::ops::attention::Attention`]; `blocks`
    /// lists the rows of each sequence in both buffers, and no piece crosses them.
    pub trait Unfused {
        /// Writes `out` and the probabilities: block by block, head by head, `[queries, keys]`.
        fn unfused(
            &self,
            shape: &AttentionShape,
            q: ElemRef<'_, Self>,
            kv: ElemRef<'_, Self>,
            blocks: &[Block],
            pieces: &[Piece],
            out: AccMut<'_, Self>,
            probabilities: &mut AccBuffer<Self>,
        );

        /// Adds to `dq` and `dkv`.
        fn unfused_backward(
            &self,
            shape: &AttentionShape,
            q: ElemRef<'_, Self>,
            kv: ElemRef<'_, Self>,
            blocks: &[Block],
            probabilities: &AccBuffer<Self>,
            dout: ElemRef<'_, Self>,
            dq: AccMut<'_, Self>,
            dkv: AccMut<'_, Self>,
        );
    }
}
