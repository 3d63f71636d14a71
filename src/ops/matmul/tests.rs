//! Products against sums in `f64`, and bit for bit against themselves under splits and threads.

use half::{bf16, f16};
use rand::{RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

use super::*;
use crate::ops::matmul::operands::fits;
use crate::tensor::{Device, Matrix};

fn random<T: Float>(rows: usize, cols: usize, seed: u64) -> Matrix<T> {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    let values: Vec<T> = (0..rows * cols).map(|_| T::from_f64(rng.random::<f64>() * 2.0 - 1.0)).collect();
    Matrix::from_slice(&values, rows, cols)
}

fn naive(
    m: usize,
    n: usize,
    k: usize,
    lhs: impl Fn(usize, usize) -> f64,
    rhs: impl Fn(usize, usize) -> f64,
) -> Vec<f64> {
    (0..m * n).map(|at| (0..k).map(|i| lhs(at / n, i) * rhs(i, at % n)).sum()).collect()
}

fn assert_close<T: Float>(found: &[T], expected: &[f64], bound: f64, what: &str) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        let error = (found.to_f64() - expected).abs();
        assert!(error <= bound * expected.abs().max(1.0), "{what}: {} instead of {expected}", found.to_f64());
    }
}

/// A linear layer's result.
fn linear<T: Float>(device: &Cpu<T>, x: &Matrix<T>, w: &Matrix<T>, bias: Option<&Matrix<T>>) -> Matrix<T> {
    let mut y = device.matrix(x.rows(), w.cols());
    device.linear(x.view(), w.view(), bias.map(Matrix::view), y.view_mut());
    y
}

fn transposed<T: Float>(device: &Cpu<T>, x: &Matrix<T>) -> Matrix<T> {
    let mut y = device.matrix(x.cols(), x.rows());
    device.transpose(x.view(), y.view_mut());
    y
}

const SHAPES: [(usize, usize, usize); 11] = [
    (5, 7, 3),
    (2, 2, 1),
    (1, 9, 2),
    (4, 1, 300),
    (1, 1, 600),
    (37, 65, 255),
    (64, 48, 256),
    (33, 50, 257),
    (130, 96, 700),
    (300, 130, 512),
    (7, 300, 1000),
];

fn products<T: Float>(bound: f64) {
    let device = Cpu::<T>::new(2);
    for (m, n, k) in SHAPES {
        let what = format!("{} {m} x {k} x {n}", T::DTYPE);
        let (x, w, bias) = (random::<T>(m, k, 1), random::<T>(k, n, 2), random::<T>(1, n, 3));
        let y = linear(&device, &x, &w, Some(&bias));
        let mut expected = naive(m, n, k, |i, j| x.row(i)[j].to_f64(), |i, j| w.row(i)[j].to_f64());
        expected.iter_mut().enumerate().for_each(|(at, y)| *y += bias[at % n].to_f64());
        assert_close(&y, &expected, bound, &what);

        let dy = random::<T>(m, n, 4);
        let mut dx = device.matrix::<T>(m, k);
        dx.fill(T::from_f64(f64::NAN));
        device.linear_backward_input(dy.view(), w.view(), dx.view_mut(), false);
        let expected = naive(m, k, n, |i, j| dy.row(i)[j].to_f64(), |i, j| w.row(j)[i].to_f64());
        assert_close(&dx, &expected, bound, &what);
        let start = random::<T>(m, k, 5);
        let mut dx = start.clone();
        device.linear_backward_input(dy.view(), w.view(), dx.view_mut(), true);
        let sum: Vec<f64> = expected.iter().zip(start.iter()).map(|(dx, start)| dx + start.to_f64()).collect();
        assert_close(&dx, &sum, bound, &what);

        let (mut dw, mut db) = (random::<T::Acc>(k, n, 6), random::<T::Acc>(1, n, 7));
        let (dw_start, db_start) = (dw.clone(), db.clone());
        device.linear_backward_weight(x.view(), dy.view(), dw.view_mut());
        device.linear_backward_bias(dy.view(), db.view_mut());
        let mut expected = naive(k, n, m, |i, j| x.row(j)[i].to_f64(), |i, j| dy.row(i)[j].to_f64());
        expected.iter_mut().zip(dw_start.iter()).for_each(|(dw, start)| *dw += start.to_f64());
        assert_close(&dw, &expected, 1e-4, &what);
        let mut expected = naive(1, n, m, |_, _| 1.0, |i, j| dy.row(i)[j].to_f64());
        expected.iter_mut().zip(db_start.iter()).for_each(|(db, start)| *db += start.to_f64());
        assert_close(&db, &expected, 1e-4, &what);
    }
}

#[test]
fn products_are_right_in_every_type() {
    products::<f32>(2e-5);
    products::<f64>(1e-13);
    products::<bf16>(5e-3);
    products::<f16>(1e-3);
}

fn bits<T: Float>(values: &[T]) -> Vec<u8> {
    bytemuck::cast_slice(values).to_vec()
}

fn split_rows<T: Float>() {
    let (one, two) = (Cpu::<T>::new(1), Cpu::<T>::new(2));
    for (m, n, k) in SHAPES {
        let (x, w, bias) = (random::<T>(m, k, 1), random::<T>(k, n, 2), random::<T>(1, n, 3));
        let whole = linear(&one, &x, &w, Some(&bias));
        assert_eq!(bits(&whole), bits(&linear(&two, &x, &w, Some(&bias))), "{m} x {k} x {n}, threads");
        for part in [1, 2, 3, 5, 24, 31, 64, 129] {
            let mut from = 0;
            while from < m {
                let rows = part.min(m - from);
                let some = Matrix::from_slice(&x[from * k..(from + rows) * k], rows, k);
                let y = linear(&one, &some, &w, Some(&bias));
                assert_eq!(bits(&y), bits(&whole[from * n..(from + rows) * n]), "{m} x {k} x {n}, {rows} rows");
                from += rows;
            }
        }
    }
}

#[test]
fn any_split_of_the_rows_gives_the_same_bits() {
    split_rows::<f32>();
    split_rows::<f64>();
    split_rows::<bf16>();
}

#[test]
fn gradients_do_not_depend_on_threads() {
    let (one, two) = (Cpu::<f32>::new(1), Cpu::<f32>::new(2));
    let (x, w, dy) = (random::<f32>(300, 200, 1), random::<f32>(200, 150, 2), random::<f32>(300, 150, 3));
    let run = |device: &Cpu<f32>| {
        let (mut dx, mut dw) = (device.matrix(300, 200), device.zero_matrix(200, 150));
        device.linear_backward_input(dy.view(), w.view(), dx.view_mut(), false);
        device.linear_backward_weight(x.view(), dy.view(), dw.view_mut());
        (bits(&dx), bits(&dw))
    };
    assert_eq!(run(&one), run(&two));
}

#[test]
fn a_single_column_has_the_bits_that_it_has_among_others() {
    let device = Cpu::<f32>::new(1);
    for (m, k) in [(1, 1), (1, 40), (5, 2), (5, 3), (7, 255), (4, 258), (130, 513)] {
        let (x, w) = (random::<f32>(m, k, 1), random::<f32>(k, 9, 2));
        let all = linear(&device, &x, &w, None);
        for col in 0..9 {
            let column: Vec<f32> = (0..k).map(|row| w.row(row)[col]).collect();
            let one = linear(&device, &x, &Matrix::from_slice(&column, k, 1), None);
            assert!((0..m).all(|row| one[row].to_bits() == all.row(row)[col].to_bits()), "{m} x {k}, column {col}");
        }
    }
}

/// Every operand of every product as part of a wider matrix, with what lies between rows left alone.
fn parts_of_wider_matrices<T: Float>() {
    let device = Cpu::<T>::new(2);
    for (m, n, k) in SHAPES {
        let inner = |rows, cols, seed| {
            let wide = random::<T>(rows + 2, cols + 5, seed);
            let part = |x: &Matrix<T>| x.view().row_range(1..rows + 1).column_range(2..cols + 2).to_vec();
            let own = Matrix::from_slice(&part(&wide), rows, cols);
            (wide, own)
        };
        let ((x_wide, x), (w_wide, w), (dy_wide, dy)) = (inner(m, k, 1), inner(k, n, 2), inner(m, n, 3));
        let view = |x: &'_ Matrix<T>| -> Vec<u8> { bits(x) };
        let bias = random::<T>(1, n, 4);
        fn part<T: Float>(x: &Matrix<T>) -> MatrixRef<'_, T> {
            x.view().row_range(1..x.rows() - 1).column_range(2..x.cols() - 3)
        }
        fn part_mut<T: Float>(x: &mut Matrix<T>) -> MatrixMut<'_, T> {
            let (rows, cols) = (x.rows(), x.cols());
            x.view_mut().row_range(1..rows - 1).column_range(2..cols - 3)
        }
        let outside = |x: &Matrix<T>| x.iter().filter(|x| x.to_f64() == 77.0).count();
        let blank = |rows: usize, cols: usize| {
            Matrix::from_slice(&vec![T::from_f64(77.0); (rows + 2) * (cols + 5)], rows + 2, cols + 5)
        };

        let mut y = blank(m, n);
        device.linear(part(&x_wide), part(&w_wide), Some(bias.view()), part_mut(&mut y));
        assert_eq!(bits(&part(&y).to_vec()), view(&linear(&device, &x, &w, Some(&bias))), "{m} x {k} x {n}");
        assert_eq!(outside(&y), (m + 2) * (n + 5) - m * n);

        let (mut dx, mut dx_alone) = (blank(m, k), device.matrix(m, k));
        device.linear_backward_input(part(&dy_wide), part(&w_wide), part_mut(&mut dx), false);
        device.linear_backward_input(dy.view(), w.view(), dx_alone.view_mut(), false);
        device.linear_backward_input(part(&dy_wide), part(&w_wide), part_mut(&mut dx), true);
        device.linear_backward_input(dy.view(), w.view(), dx_alone.view_mut(), true);
        assert_eq!(bits(&part(&dx).to_vec()), view(&dx_alone), "{m} x {k} x {n}, gradient of the input");

        let (mut dw, mut dw_alone) = (device.zero_matrix::<T::Acc>(k + 2, n + 5), device.zero_matrix::<T::Acc>(k, n));
        device.linear_backward_weight(part(&x_wide), part(&dy_wide), part_mut(&mut dw));
        device.linear_backward_weight(x.view(), dy.view(), dw_alone.view_mut());
        assert_eq!(bits(&part(&dw).to_vec()), bits(&dw_alone), "{m} x {k} x {n}, gradient of the weight");

        let mut turned = blank(k, m);
        device.transpose(part(&x_wide), part_mut(&mut turned));
        assert_eq!(bits(&part(&turned).to_vec()), view(&transposed(&device, &x)), "{m} x {k}, transposed");
    }
}

#[test]
fn parts_of_wider_matrices_are_as_good_as_matrices_of_their_own() {
    parts_of_wider_matrices::<f32>();
    parts_of_wider_matrices::<bf16>();
}

#[test]
fn views_that_wrap_around_the_end_are_refused() {
    let data = [1.0f32; 8];
    for (rows, cols, stride) in [(3, 4, usize::MAX / 2 + 1), (usize::MAX, 1, 1), (1 << 32, 4, 1 << 32), (2, 5, 4)] {
        assert!(std::panic::catch_unwind(|| GemmRef::new(&data, rows, cols, stride)).is_err(), "{rows} x {cols}");
        assert!(!fits(cols, rows, [1, stride], data.len()), "{rows} x {cols}, transposed");
    }
    let GemmRef { data, .. } = GemmRef::new(&data, 2, 4, 4);
    assert_eq!(data.len(), 8);
    assert!(GemmRef::new(data, 0, usize::MAX, usize::MAX).rows == 0 && GemmRef::new(data, 1, 8, usize::MAX).cols == 8);
}

#[test]
fn empty_products() {
    let device = Cpu::<f32>::new(1);
    let bias = Matrix::from_slice(&[1.0, 2.0], 1, 2);
    assert_eq!(linear(&device, &random(0, 3, 1), &random(3, 2, 2), Some(&bias)).len(), 0);
    assert_eq!(linear(&device, &random(3, 4, 1), &random(4, 0, 2), None).len(), 0);
    assert_eq!(&linear(&device, &random(2, 0, 1), &random(0, 2, 2), Some(&bias))[..], [1.0, 2.0, 1.0, 2.0]);
    let mut dx = Matrix::from_slice(&[f32::NAN; 4], 2, 2);
    device.linear_backward_input(random(2, 0, 1).view(), random(2, 0, 2).view(), dx.view_mut(), false);
    assert_eq!(&dx[..], [0.0; 4]);
    let mut dw = Matrix::from_slice(&[1.0f32; 4], 2, 2);
    device.linear_backward_weight(random(0, 2, 1).view(), random(0, 2, 2).view(), dw.view_mut());
    assert_eq!(&dw[..], [1.0; 4]);
}

#[test]
fn transpose_exchanges_rows_and_columns() {
    let device = Cpu::<bf16>::new(1);
    let x = random::<bf16>(70, 45, 1);
    let y = transposed(&device, &x);
    assert_eq!((y.rows(), y.cols()), (45, 70));
    assert!((0..70).all(|i| (0..45).all(|j| x.row(i)[j] == y.row(j)[i])));
    assert_eq!(bits(&transposed(&device, &y)), bits(&x));
}
