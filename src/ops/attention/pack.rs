//! Copies of one head's rows in the accumulation type, contiguous, for the products.

use std::ops::Range;

use crate::ops::workers::widen;
use crate::tensor::{Float, Matrix};

/// Writes columns `cols` of `rows` to `to`, row after row.
pub(crate) fn pack<T: Float>(from: &Matrix<T>, rows: Range<usize>, cols: Range<usize>, to: &mut [T::Acc]) {
    let width = cols.len();
    for (row, to) in rows.zip(to.chunks_exact_mut(width)) {
        widen(&from.row(row)[cols.clone()], to);
    }
}

/// The same, multiplied by `factor`.
pub(crate) fn pack_scaled<T: Float>(
    from: &Matrix<T>,
    rows: Range<usize>,
    cols: Range<usize>,
    factor: T::Acc,
    to: &mut [T::Acc],
) {
    let len = rows.len() * cols.len();
    pack(from, rows, cols, to);
    to[..len].iter_mut().for_each(|value| *value *= factor);
}

/// Writes `from [rows, cols]` as `to [cols, rows]`.
pub(crate) fn transpose<A: Copy>(from: &[A], rows: usize, cols: usize, to: &mut [A]) {
    const SIDE: usize = 16;
    for first_row in (0..rows).step_by(SIDE) {
        let end = rows.min(first_row + SIDE);
        for col in 0..cols {
            let to = &mut to[col * rows + first_row..col * rows + end];
            for (to, row) in to.iter_mut().zip(first_row..end) {
                *to = from[row * cols + col];
            }
        }
    }
}
