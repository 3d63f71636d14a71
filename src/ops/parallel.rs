//! Spreading rows over a device's threads, for loops whose result does not depend on how rows are grouped.

use std::ops::Range;

use crate::ops::workers::install;
use crate::tensor::{Cpu, Float};

/// Elements that one task handles at least; smaller loops stay on the calling thread.
const GRAIN: usize = 1 << 14;

/// Outputs that can be cut between two rows.
pub(super) trait Cut: Sized + Send {
    /// The first `rows` rows, and the rest.
    fn cut(self, rows: usize) -> (Self, Self);
}

/// Rows that one task writes.
pub(super) struct RowsMut<'a, T> {
    values: &'a mut [T],
    cols: usize,
}

impl<'a, T> RowsMut<'a, T> {
    /// `values` as rows of `cols` columns.
    pub(super) fn new(values: &'a mut [T], cols: usize) -> Self {
        RowsMut { values, cols }
    }

    /// All elements of these rows.
    pub(super) fn all(&mut self) -> &mut [T] {
        self.values
    }

    /// Row `index` of these rows.
    pub(super) fn row(&mut self, index: usize) -> &mut [T] {
        &mut self.values[index * self.cols..(index + 1) * self.cols]
    }
}

impl<T: Send> Cut for RowsMut<'_, T> {
    fn cut(self, rows: usize) -> (Self, Self) {
        let (head, tail) = self.values.split_at_mut(rows * self.cols);
        (RowsMut::new(head, self.cols), RowsMut::new(tail, self.cols))
    }
}

impl<A: Cut, B: Cut> Cut for (A, B) {
    fn cut(self, rows: usize) -> (Self, Self) {
        let ((a, a_rest), (b, b_rest)) = (self.0.cut(rows), self.1.cut(rows));
        ((a, b), (a_rest, b_rest))
    }
}

impl<A: Cut, B: Cut, C: Cut> Cut for (A, B, C) {
    fn cut(self, rows: usize) -> (Self, Self) {
        let ((a, a_rest), (b, b_rest), (c, c_rest)) = (self.0.cut(rows), self.1.cut(rows), self.2.cut(rows));
        ((a, b, c), (a_rest, b_rest, c_rest))
    }
}

/// Calls `each` with ranges that together are `0..rows`, and the outputs' rows of that range. `width` is the number
/// of elements that one row costs.
pub(super) fn by_rows<T: Float, C: Cut>(
    cpu: &Cpu<T>,
    rows: usize,
    width: usize,
    outputs: C,
    each: impl Fn(Range<usize>, C) + Sync,
) {
    let grain = GRAIN.div_ceil(width.max(1));
    match cpu.workers().is_some() && rows >= 2 * grain {
        true => install(cpu, || halve(0..rows, grain, outputs, &each)),
        false => each(0..rows, outputs),
    }
}

/// The same for loops over single elements: `each` gets the range of elements.
pub(super) fn by_elements<T: Float, C: Cut>(
    cpu: &Cpu<T>,
    elements: usize,
    outputs: C,
    each: impl Fn(Range<usize>, C) + Sync,
) {
    by_rows(cpu, elements, 1, outputs, each);
}

/// The loop is behind a pointer, so that this and what it takes of rayon is compiled once per kind of output.
fn halve<C: Cut>(rows: Range<usize>, grain: usize, outputs: C, each: &(dyn Fn(Range<usize>, C) + Sync)) {
    if rows.len() < 2 * grain {
        return each(rows, outputs);
    }
    let middle = rows.start + rows.len() / 2;
    let (head, tail) = outputs.cut(middle - rows.start);
    rayon::join(|| halve(rows.start..middle, grain, head, each), || halve(middle..rows.end, grain, tail, each));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_handled_once_whatever_the_threads() {
        for threads in [1, 2, 3] {
            let cpu = Cpu::<f32>::new(threads);
            for (rows, cols) in [(0, 3), (1, 3), (40_000, 3), (7, 1 << 14), (5, 0)] {
                let (mut a, mut b) = (vec![0usize; rows * cols], vec![0usize; rows]);
                by_rows(
                    &cpu,
                    rows,
                    cols,
                    (RowsMut::new(&mut a, cols), RowsMut::new(&mut b, 1)),
                    |range, (mut a, mut b)| {
                        for (i, row) in range.enumerate() {
                            a.row(i).iter_mut().for_each(|value| *value += row + 1);
                            b.all()[i] += row + 1;
                        }
                    },
                );
                assert!((0..rows).all(|row| b[row] == row + 1), "{threads} threads, {rows} rows");
                assert!((0..rows * cols).all(|i| a[i] == i / cols + 1), "{threads} threads, {rows} x {cols}");
            }
        }
    }
}
