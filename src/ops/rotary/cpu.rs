//! Rotation of queries and keys on the processor.

use super::Rotate;
use crate::ops::parallel::{RowsMut, by_rows};
use crate::tensor::{AccRef, Cpu, ElemMut, Float};

impl<T: Float> Rotate for Cpu<T> {
    fn rotate(
        &self,
        mut x: ElemMut<'_, Self>,
        heads: usize,
        cos: AccRef<'_, Self>,
        sin: AccRef<'_, Self>,
        interleaved: bool,
        inverse: bool,
    ) {
        let (rows, cols, pairs) = (x.rows(), x.cols(), cos.cols());
        assert!(heads > 0 && cols.is_multiple_of(heads), "{cols} columns do not split into {heads} heads");
        let dim = cols / heads;
        assert!(pairs <= dim / 2, "{pairs} pairs in heads of {dim} features");
        assert_eq!((cos.rows(), sin.rows(), sin.cols()), (rows, rows, pairs), "a row of the table per row");
        if dim == 0 {
            return;
        }
        let sign = T::Acc::from_f64(if inverse { -1.0 } else { 1.0 });
        let turn = |a: &mut T, b: &mut T, c: T::Acc, s: T::Acc| {
            let (s, from_a, from_b) = (s * sign, a.to_acc(), b.to_acc());
            *a = T::from_acc(from_a * c - from_b * s);
            *b = T::from_acc(from_b * c + from_a * s);
        };
        by_rows(self, rows, cols, RowsMut::of(&mut x), |range, mut x| {
            for (i, row) in range.enumerate() {
                let (cos, sin) = (cos.row(row), sin.row(row));
                for head in x.row(i).chunks_exact_mut(dim) {
                    let rotated = &mut head[..2 * pairs];
                    if interleaved {
                        for (pair, (&c, &s)) in rotated.as_chunks_mut::<2>().0.iter_mut().zip(cos.iter().zip(sin)) {
                            let [a, b] = pair;
                            turn(a, b, c, s);
                        }
                    } else {
                        let (low, high) = rotated.split_at_mut(pairs);
                        for ((a, b), (&c, &s)) in low.iter_mut().zip(high).zip(cos.iter().zip(sin)) {
                            turn(a, b, c, s);
                        }
                    }
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::*;
    use crate::tensor::Matrix;
    use half::bf16;

    const HEADS: usize = 2;
    const DIM: usize = 10;
    const PAIRS: usize = 4;

    /// Cosines and sines of some angles, `[rows, PAIRS]`.
    fn table<T: Float>(rows: usize) -> (Matrix<T>, Matrix<T>) {
        let angles = values(7, rows * PAIRS);
        let of = |f: fn(f64) -> f64| matrix(&angles.iter().map(|&a| f(5.0 * a)).collect::<Vec<_>>(), rows, PAIRS);
        (of(f64::cos), of(f64::sin))
    }

    fn rotate<T: Float>(cpu: &Cpu<T>, x: &[f64], rows: usize, interleaved: bool, inverse: bool) -> Vec<f64> {
        let mut x = matrix::<T>(x, rows, HEADS * DIM);
        let (cos, sin) = table::<T::Acc>(rows);
        cpu.rotate(x.view_mut(), HEADS, cos.view(), sin.view(), interleaved, inverse);
        wide(&x)
    }

    #[test]
    fn pairs_turn_by_their_angle_and_the_rest_stays() {
        let x = values(1, 3 * HEADS * DIM);
        let (cos, sin) = table::<f64>(3);
        for interleaved in [false, true] {
            let y = rotate(&Cpu::<f64>::default(), &x, 3, interleaved, false);
            for (at, row) in (0..3 * HEADS).map(|head| (head * DIM, head / HEADS)) {
                for i in 0..PAIRS {
                    let (a, b) = if interleaved { (at + 2 * i, at + 2 * i + 1) } else { (at + i, at + i + PAIRS) };
                    let (c, s) = (cos.row(row)[i], sin.row(row)[i]);
                    assert_eq!((y[a], y[b]), (x[a] * c - x[b] * s, x[b] * c + x[a] * s));
                }
                assert_eq!(y[at + 2 * PAIRS..at + DIM], x[at + 2 * PAIRS..at + DIM]);
            }
        }
    }

    #[test]
    fn the_gradient_is_the_inverse_rotation() {
        let (x, dy) = (values(1, 2 * HEADS * DIM), values(2, 2 * HEADS * DIM));
        let cpu = Cpu::<f64>::default();
        for interleaved in [false, true] {
            let expected = differences(&x, |x| dot(&rotate(&cpu, x, 2, interleaved, false), &dy));
            assert!(relative(&rotate(&cpu, &dy, 2, interleaved, true), &expected) < 1e-8);
            let back = rotate(&cpu, &rotate(&cpu, &x, 2, interleaved, false), 2, interleaved, true);
            assert!(relative(&back, &x) < 1e-14);
        }
    }

    #[test]
    fn single_and_half_precision_agree_with_double() {
        let x = values(1, 50 * HEADS * DIM);
        for interleaved in [false, true] {
            let exact = rotate(&Cpu::<f64>::default(), &x, 50, interleaved, false);
            assert!(relative(&rotate(&Cpu::<f32>::default(), &x, 50, interleaved, false), &exact) < 2e-7);
            assert!(relative(&rotate(&Cpu::<bf16>::default(), &x, 50, interleaved, false), &exact) < 5e-3);
        }
    }

    #[test]
    fn threads_do_not_change_bits() {
        let x = values(1, 4000 * HEADS * DIM);
        let by = |threads| rotate(&Cpu::<f32>::new(threads), &x, 4000, false, false);
        assert_eq!(by(1), by(3));
    }

    #[test]
    fn columns_of_a_matrix_turn_as_they_do_alone() {
        let (cpu, width) = (Cpu::<f32>::new(2), HEADS * DIM);
        let mut x = random::<f32>(1, 20, width + 9);
        let before = x.clone();
        let alone: Vec<f64> = x.view().column_range(4..4 + width).to_vec().iter().map(|&x| f64::from(x)).collect();
        let (cos, sin) = table::<f32>(20);
        cpu.rotate(x.view_mut().column_range(4..4 + width), HEADS, cos.view(), sin.view(), true, false);
        let turned = wide(&x.view().column_range(4..4 + width).to_vec());
        assert_eq!(turned, rotate(&cpu, &alone, 20, true, false));
        let rest = |x: &Matrix<f32>| {
            [x.view().column_range(0..4).to_vec(), x.view().column_range(4 + width..width + 9).to_vec()]
        };
        assert_eq!(rest(&x), rest(&before));
    }

    #[test]
    fn no_rows() {
        assert!(rotate(&Cpu::<f32>::new(2), &[], 0, true, false).is_empty());
    }
}
