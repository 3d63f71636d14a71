//! Attention with materialised probabilities, for comparison: no tiles, no log-sum-exp.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;

use crate::ops::attention::{Attention, AttentionShape};
use crate::ops::op::op;
use crate::plan::Block;
use crate::tensor::{AccBuffer, AccMut, ElemRef, product};

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
    /// Attention that keeps every probability. Buffers as in [`Attention`]; the cells of a tile say which rows each
    /// sequence has in both buffers ([`TileCells::blocks`](crate::plan::TileCells::blocks)).
    pub trait UnfusedAttention: Attention {
        /// Writes `out` and the probabilities: block by block, head by head, `[queries, keys]`.
        fn unfused(
            &self,
            shape: &AttentionShape,
            q: ElemRef<'_, Self>,
            kv: ElemRef<'_, Self>,
            tiles: &Self::Tiles,
            out: AccMut<'_, Self>,
            probabilities: &mut AccBuffer<Self>,
        );

        /// Adds to `dq` and `dkv`.
        fn unfused_backward(
            &self,
            shape: &AttentionShape,
            q: ElemRef<'_, Self>,
            kv: ElemRef<'_, Self>,
            tiles: &Self::Tiles,
            probabilities: &AccBuffer<Self>,
            dout: ElemRef<'_, Self>,
            dq: AccMut<'_, Self>,
            dkv: AccMut<'_, Self>,
        );
    }
}
