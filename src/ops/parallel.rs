//! Spreading rows over a device's threads, for loops whose result does not depend on how rows are grouped.

use std::ops::Range;

use crate::ops::workers::for_each;
use crate::tensor::{Cpu, Element, Float, MatrixMut, MatrixRef};

/// Elements that one task handles at least; smaller loops stay on the calling thread.
const GRAIN: usize = 1 << 14;

/// Tasks for each thread, where there are elements enough: one that is held up leaves some to the others.
const SHARE: usize = 4;

/// Outputs that can be cut between two rows.
pub(super) trait Cut: Sized + Send {
    /// The first `rows` rows, and the rest.
    fn cut(self, rows: usize) -> (Self, Self);
}

/// Rows that one task writes.
pub(super) struct RowsMut<'a, T> {
    values: &'a mut [T],
    cols: usize,
    /// Elements from one row to the next.
    stride: usize,
}

impl<'a, T> RowsMut<'a, T> {
    /// `values` as rows of `cols` columns.
    pub(super) fn new(values: &'a mut [T], cols: usize) -> Self {
        RowsMut { values, cols, stride: cols }
    }

    /// The rows of a view.
    pub(super) fn of(view: &'a mut MatrixMut<'_, T>) -> Self
    where
        T: Element,
    {
        let (cols, stride) = (view.cols(), if view.is_contiguous() { view.cols() } else { view.stride() });
        RowsMut { values: view.span_mut(), cols, stride }
    }

    /// All elements of these rows, which lie one after another.
    pub(super) fn all(&mut self) -> &mut [T] {
        debug_assert_eq!(self.cols, self.stride, "nothing lies between rows");
        self.values
    }

    /// Row `index` of these rows.
    pub(super) fn row(&mut self, index: usize) -> &mut [T] {
        &mut self.values[index * self.stride..][..self.cols]
    }
}

impl<T: Send> Cut for RowsMut<'_, T> {
    fn cut(self, rows: usize) -> (Self, Self) {
        let RowsMut { values, cols, stride } = self;
        // Behind the last row nothing lies between rows.
        let (head, tail) = values.split_at_mut((rows * stride).min(values.len()));
        (RowsMut { values: head, cols, stride }, RowsMut { values: tail, cols, stride })
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
    let tasks = (rows / GRAIN.div_ceil(width.max(1))).min(SHARE * cpu.threads());
    match cpu.threads() > 1 && tasks > 1 {
        true => in_tasks(cpu, rows, tasks, outputs, &each),
        false => each(0..rows, outputs),
    }
}

/// The loop is behind a pointer, so that this is compiled once per kind of output.
fn in_tasks<T: Float, C: Cut>(
    cpu: &Cpu<T>,
    rows: usize,
    tasks: usize,
    outputs: C,
    each: &(dyn Fn(Range<usize>, C) + Sync),
) {
    let at_once = rows.div_ceil(tasks);
    let (mut from, mut rest) = (0, Some(outputs));
    let parts = std::iter::from_fn(|| {
        let range = from..rows.min(from + at_once);
        let outputs = rest.take()?;
        if range.end == rows {
            return Some((range, outputs));
        }
        let (head, tail) = outputs.cut(range.len());
        (from, rest) = (range.end, Some(tail));
        Some((range, head))
    });
    for_each(cpu, tasks, parts, || (), |(), (range, outputs)| each(range, outputs));
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

/// Calls `each` with stretches of elements of matrices of one shape, all of them once: of as many elements as come one
/// after another in all of them.
///
/// # Panics
/// If they have not one shape.
pub(super) fn by_stretches<T: Float, X: Element, Y: Element, const N: usize>(
    cpu: &Cpu<T>,
    inputs: [MatrixRef<'_, X>; N],
    mut output: MatrixMut<'_, Y>,
    each: impl Fn([&[X]; N], &mut [Y]) + Sync,
) {
    let (rows, cols) = (output.rows(), output.cols());
    for input in inputs {
        assert_eq!((input.rows(), input.cols()), (rows, cols), "shapes of what goes element by element");
    }
    if output.is_contiguous() && inputs.iter().all(MatrixRef::is_contiguous) {
        let inputs = inputs.map(|input| input.span());
        by_elements(cpu, output.len(), RowsMut::new(output.span_mut(), 1), |range, mut output| {
            each(inputs.map(|input| &input[range.clone()]), output.all());
        });
    } else {
        by_rows(cpu, rows, cols, RowsMut::of(&mut output), |range, mut output| {
            for (i, row) in range.enumerate() {
                each(inputs.map(|input| input.row(row)), output.row(i));
            }
        });
    }
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
