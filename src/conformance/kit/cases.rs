//! What a strategy is run on: batches, masks, heads and numbers.

use std::sync::Arc;

use crate::error::Result;
use crate::kernel::{Kernel, KernelOn};
use crate::layout::{Batch, LayoutKind};
use crate::mask::{Mask, Slice, SliceKind};
use crate::ops::attention::AttentionShape;
use crate::strategy::DynStrategy;
use crate::tensor::{Cpu, DryRun};

/// Batches for `ranks` ranks, the one with most in it first: edges of what divides by two chunks per rank, padding
/// where the layout has any, fewer tokens than ranks, and nothing at all.
pub(super) fn batches(layout: LayoutKind, ranks: usize) -> Result<Vec<Arc<dyn Batch>>> {
    let chunks = 2 * ranks;
    let valid = [0, 1, chunks - 1, chunks, chunks + 1, 37];
    let stored = [2, 1, chunks + 2, chunks, chunks + 1, 40];
    let of = |lengths: &[usize]| layout.batch_of(lengths);
    match layout.padded_batch_of(&valid, &stored) {
        Ok(padded) => Ok(vec![padded, of(&[2 * chunks, chunks])?, of(&[1])?, of(&[])?]),
        Err(_) => Ok(vec![of(&[37; 2])?, of(&[2 * chunks])?, of(&[chunks - 1; 3])?, of(&[1])?]),
    }
}

/// Two batches of as many tokens that are not the same.
pub(super) fn two_batches(layout: LayoutKind) -> Result<[Arc<dyn Batch>; 2]> {
    let first = layout.batch_of(&[12, 4]).or_else(|_| layout.batch_of(&[8, 8]))?;
    let second = layout.batch_of(&[4, 12]).or_else(|_| layout.batch_of(&[16]))?;
    Ok([first, second])
}

/// A kernel on the devices that it is tested on.
pub trait TestedKernel:
    KernelOn<Cpu<f32>> + KernelOn<Cpu<f64>> + KernelOn<DryRun<f32>> + KernelOn<DryRun<f64>>
{
}

impl<K> TestedKernel for K where
    K: KernelOn<Cpu<f32>> + KernelOn<Cpu<f64>> + KernelOn<DryRun<f32>> + KernelOn<DryRun<f64>>
{
}

/// Masks that a batch of documents or sequences can have under kernel `K`.
pub(super) fn masks<K: Kernel>(batch: &dyn Batch) -> Vec<Mask> {
    let window = |left, right| Mask::Window { left: Some(left), right: Some(right) };
    let mut masks = vec![
        Mask::Causal,
        Mask::Full,
        window(0, 0),
        window(1, 0),
        window(5, 2),
        Mask::Prefix((0..batch.documents()).map(|i| 3 * i + 1).collect()),
    ];
    // Slices that cross documents, where the kernel computes them.
    let tokens = batch.tokens();
    if tokens > 8 && (K::ACROSS_SEQUENCES || batch.uniform().is_none()) {
        masks.push(Mask::Slices(vec![
            Slice { q: 0..5, k: 2..tokens, kind: SliceKind::Full },
            Slice { q: 6..tokens, k: 0..tokens - 3, kind: SliceKind::Causal },
        ]));
    }
    masks
}

/// Head counts that the strategy can share out: as many key/value heads as query heads, fewer, and one; values of
/// another size than keys among them. None if no number of query heads suits it.
pub(super) fn shapes(strategy: &dyn DynStrategy) -> Vec<AttentionShape> {
    let suits = |&q_heads: &usize| strategy.heads_per_rank(q_heads).is_ok();
    let Some(q_heads) = (4..=4 * strategy.grid().inner.max(1)).find(suits) else { return Vec::new() };
    let shape = |kv_heads, v_dim| AttentionShape { q_heads, kv_heads, qk_dim: 8, v_dim, scale: 0.35 };
    let fewer = (2..q_heads).find(|kv_heads| q_heads.is_multiple_of(*kv_heads));
    let mut shapes = vec![shape(1, 8), shape(q_heads, 12)];
    shapes.splice(0..0, fewer.map(|kv_heads| shape(kv_heads, 12)));
    shapes
}
