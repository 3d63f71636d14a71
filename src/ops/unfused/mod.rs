//! Attention with materialised probabilities, for comparison: no tiles, no log-sum-exp.

mod cpu;

use std::ops::Range;

use crate::ops::attention::AttentionShape;
use crate::plan::Piece;
use crate::tensor::{AccBuffer, AccMatrix, Device, ElemMatrix, product};

/// Query rows and key rows of one sequence.
pub type Block = (Range<usize>, Range<usize>);

/// Number of probabilities.
///
/// # Panics
/// If it cannot be counted.
pub(super) fn cells(shape: &AttentionShape, blocks: &[Block]) -> usize {
    let cells = blocks.iter().map(|(queries, keys)| product(&[queries.len(), keys.len(), shape.q_heads]));
    let sum = cells.into_iter().try_fold(0usize, usize::checked_add);
    sum.unwrap_or_else(|| panic!("the probabilities of {} sequences cannot be counted", blocks.len()))
}

/// Attention that keeps every probability. Buffers and pieces as in [`crate::ops::attention::Attention`]; `blocks`
/// lists the rows of each sequence in both buffers, and no piece crosses them.
pub trait Unfused: Device {
    /// Writes `out` and returns the probabilities: block by block, head by head, `[queries, keys]`.
    fn unfused(
        &self,
        shape: &AttentionShape,
        q: &ElemMatrix<Self>,
        kv: &ElemMatrix<Self>,
        blocks: &[Block],
        pieces: &[Piece],
        out: &mut AccMatrix<Self>,
    ) -> AccBuffer<Self>;

    /// Adds to `dq` and `dkv`.
    #[allow(clippy::too_many_arguments)]
    fn unfused_backward(
        &self,
        shape: &AttentionShape,
        q: &ElemMatrix<Self>,
        kv: &ElemMatrix<Self>,
        blocks: &[Block],
        probabilities: &AccBuffer<Self>,
        dout: &ElemMatrix<Self>,
        dq: &mut AccMatrix<Self>,
        dkv: &mut AccMatrix<Self>,
    );
}
