//! Copies of one head's rows in the accumulation type, contiguous, for the products.

use std::ops::Range;

use crate::ops::attention::AttentionShape;
use crate::ops::attention::schedule::TileSchedule;
use crate::ops::workers::widen;
use crate::tensor::{Float, MatrixRef, Real};

/// Writes columns `cols` of `rows` to `to`, row after row.
pub(crate) fn pack<T: Float>(from: MatrixRef<T>, rows: Range<usize>, cols: Range<usize>, to: &mut [T::Acc]) {
    let width = cols.len();
    for (row, to) in rows.zip(to.chunks_exact_mut(width)) {
        widen(&from.row(row)[cols.clone()], to);
    }
}

/// The same, multiplied by `factor`.
pub(crate) fn pack_scaled<T: Float>(
    from: MatrixRef<T>,
    rows: Range<usize>,
    cols: Range<usize>,
    factor: T::Acc,
    to: &mut [T::Acc],
) {
    let len = rows.len() * cols.len();
    pack(from, rows, cols, to);
    to[..len].iter_mut().for_each(|value| *value *= factor);
}

/// Packs a block's keys `[block, qk_dim]`; rows of no piece become 0.
pub(super) fn pack_keys<T: Float>(
    shape: &AttentionShape,
    schedule: &TileSchedule,
    kv: MatrixRef<'_, T>,
    head: usize,
    block: usize,
    to: &mut [T::Acc],
) {
    let col = head * shape.qk_dim;
    pack(kv, schedule.block_rows(block), col..col + shape.qk_dim, to);
    clear_untouched(schedule, block, shape.qk_dim, to);
}

/// Packs a block's values `[block, v_dim]`; rows of no piece become 0.
pub(super) fn pack_values<T: Float>(
    shape: &AttentionShape,
    schedule: &TileSchedule,
    kv: MatrixRef<'_, T>,
    head: usize,
    block: usize,
    to: &mut [T::Acc],
) {
    let col = shape.k_width() + head * shape.v_dim;
    pack(kv, schedule.block_rows(block), col..col + shape.v_dim, to);
    clear_untouched(schedule, block, shape.v_dim, to);
}

fn clear_untouched<A: Real>(schedule: &TileSchedule, block: usize, width: usize, to: &mut [A]) {
    for (key, to) in schedule.block_rows(block).zip(to.chunks_exact_mut(width)) {
        if !schedule.touched(key) {
            to.fill(A::zero());
        }
    }
}
