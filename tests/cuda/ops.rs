//! Every op but attention against the processor, on views of larger matrices, in every storage type.

use context_parallel::ops::Ops;
use context_parallel::ops::optimizer::{AdamwOptions, AdamwState, StepNumbers};
use context_parallel::oracle::relative_error;
use context_parallel::order::{Rows, Run};
use context_parallel::tensor::cuda::CudaFloat;
use context_parallel::tensor::{Cpu, Device, Float, Matrix, MatrixMut, MatrixRef};
use half::{bf16, f16};

use super::Test;
use super::ranks::device;

pub const TESTS: &[Test] = &[
    ("ops in f32", || compare::<f32>(2e-6)),
    ("ops in bf16", || compare::<bf16>(6e-3)),
    ("ops in f16", || compare::<f16>(8e-4)),
];

/// Numbers between -1 and 1, another one for each index.
pub fn numbers<T: Float>(seed: usize, len: usize) -> Vec<T> {
    let hash = |i: usize| (i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(seed * 0xD1B5_4A32) >> 20;
    (0..len).map(|i| T::from_f64((hash(i) % 4001) as f64 / 2000.0 - 1.0)).collect()
}

/// A matrix of which a part is used: columns to the left and right, rows above and below.
pub struct Wide<T, S>(Matrix<T, S>, [usize; 2]);

impl<T: context_parallel::tensor::Element, S: context_parallel::tensor::Storage> Wide<T, S> {
    /// With rows that begin anywhere.
    pub fn new<D: Device<Storage = S>>(device: &D, values: &[T], rows: usize, cols: usize) -> Self {
        Self::in_columns(device, values, [rows, cols], cols + 11)
    }

    /// With rows that begin at multiples of 16 bytes.
    pub fn aligned<D: Device<Storage = S>>(device: &D, values: &[T], rows: usize, cols: usize) -> Self {
        Self::in_columns(device, values, [rows, cols], (cols + 11).next_multiple_of(8))
    }

    fn in_columns<D: Device<Storage = S>>(device: &D, values: &[T], [rows, cols]: [usize; 2], all: usize) -> Self {
        let mut matrix = device.zero_matrix(rows + 3, all);
        device.write(values, matrix.view_mut().row_range(1..rows + 1).column_range(8..cols + 8));
        Wide(matrix, [rows, cols])
    }

    pub fn view(&self) -> MatrixRef<'_, T, S> {
        let [rows, cols] = self.1;
        self.0.view().row_range(1..rows + 1).column_range(8..cols + 8)
    }

    pub fn view_mut(&mut self) -> MatrixMut<'_, T, S> {
        let [rows, cols] = self.1;
        self.0.view_mut().row_range(1..rows + 1).column_range(8..cols + 8)
    }

    pub fn read<D: Device<Storage = S>>(&self, device: &D) -> Vec<T> {
        device.read(self.view()).unwrap()
    }
}

pub type Found = Vec<(&'static str, Vec<f64>)>;

pub fn wide<T: Float>(values: &[T]) -> Vec<f64> {
    values.iter().map(|x| x.to_f64()).collect()
}

pub fn same_bits(a: &Found, b: &Found) -> bool {
    let bits =
        |found: &Found| found.iter().flat_map(|(_, values)| values.iter().map(|x| x.to_bits())).collect::<Vec<_>>();
    bits(a) == bits(b)
}

fn compare<T: CudaFloat>(bound: f64) {
    let (expected, found) = (all::<Cpu<T>>(&Cpu::new(1)), all(&device::<T>()));
    assert!(same_bits(&found, &all(&device::<T>())), "the same bits again");
    let mut worst = ("", 0f64);
    for ((name, expected), (_, found)) in expected.iter().zip(&found) {
        assert_eq!(expected.len(), found.len(), "{name}");
        let error = relative_error(found, expected, 0.0);
        assert!(error <= bound, "{name}: {error:.1e}");
        worst = if error > worst.1 { (*name, error) } else { worst };
    }
    println!("  {} results, worst error {:.1e} in {}", found.len(), worst.1, worst.0);
}

fn all<D: Ops<Acc = f32>>(device: &D) -> Found
where
    D::Elem: Float<Acc = f32>,
{
    let mut found: Found = Vec::new();
    let (rows, cols) = (37, 24);
    let elems = |seed, rows, cols| Wide::new(device, &numbers::<D::Elem>(seed, rows * cols), rows, cols);
    let sums = |seed, rows, cols| Wide::new(device, &numbers::<f32>(seed, rows * cols), rows, cols);

    let list =
        [Run { start: 30, step: 1, len: 5 }, Run { start: 1, step: 3, len: 7 }, Run { start: 31, step: 1, len: 2 }];
    let mut listed = Rows::default();
    list.iter().for_each(|&run| listed.push(run));
    let some = device.rows(&listed);
    let (x, mut part) = (elems(1, rows, cols), elems(2, 14, cols));
    device.gather_rows(x.view(), &some, part.view_mut());
    found.push(("gather_rows", wide(&part.read(device))));
    let mut sum = sums(3, rows, cols);
    device.scatter_add_rows(sums(4, 14, cols).view(), &some, sum.view_mut());
    found.push(("scatter_add_rows", wide(&sum.read(device))));
    let affine = device.rows(&Rows::from_iter((0..12).map(|i| 2 + 3 * i)));
    device.scatter_add_rows(sums(5, 12, cols).view(), &affine, sum.view_mut());
    found.push(("scatter_add_rows, one run", wide(&sum.read(device))));
    let mut y = elems(6, rows, cols);
    device.scatter_rows(elems(7, 12, cols).view(), &affine, y.view_mut());
    found.push(("scatter_rows", wide(&y.read(device))));
    device.add(y.view_mut(), x.view());
    found.push(("add", wide(&y.read(device))));
    device.fill(y.view_mut().column_range(3..7), D::Elem::from_f64(0.5));
    device.copy(x.view().column_range(0..5), y.view_mut().column_range(9..14));
    found.push(("fill and copy", wide(&y.read(device))));
    device.to_acc(y.view(), sum.view_mut());
    found.push(("to_acc", wide(&sum.read(device))));
    device.to_elem(sums(8, rows, cols).view(), y.view_mut());
    found.push(("to_elem", wide(&y.read(device))));

    for parts in [1, 3] {
        let (weight, mut reciprocal) = (elems(9, 1, cols / parts), sums(10, rows, parts));
        device.rms_norm(x.view(), weight.view(), parts, 1e-5, y.view_mut(), reciprocal.view_mut());
        found.push(("rms_norm", wide(&y.read(device))));
        found.push(("reciprocal", wide(&reciprocal.read(device))));
        let (mut dx, mut dweight) = (elems(11, rows, cols), sums(12, 1, cols / parts));
        for accumulate in [false, true] {
            let (x, weight, reciprocal, dy) = (x.view(), weight.view(), reciprocal.view(), y.view());
            device.rms_norm_backward(x, weight, reciprocal, dy, dx.view_mut(), accumulate, dweight.view_mut());
        }
        found.push(("rms_norm dx", wide(&dx.read(device))));
        found.push(("rms_norm dweight", wide(&dweight.read(device))));
    }

    let (cos, sin) = (sums(13, rows, 3), sums(14, rows, 3));
    for (interleaved, inverse) in [(false, false), (true, true)] {
        device.rotate(y.view_mut(), 3, cos.view(), sin.view(), interleaved, inverse);
        found.push(("rotate", wide(&y.read(device))));
    }

    let mut gradient = elems(15, rows, 2 * cols);
    device.swiglu(x.view(), elems(16, rows, cols).view(), y.view_mut());
    found.push(("swiglu", wide(&y.read(device))));
    device.swiglu_backward(x.view(), elems(16, rows, cols).view(), elems(17, rows, cols).view(), gradient.view_mut());
    found.push(("swiglu_backward", wide(&gradient.read(device))));

    let ids: Vec<i64> = (0..rows as i64).map(|i| if i == 5 { -1 } else { i * i % 11 }).collect();
    let tokens = Wide::new(device, &ids, rows, 1);
    device.embed(elems(18, 11, cols).view(), tokens.view(), y.view_mut());
    found.push(("embed", wide(&y.read(device))));
    let mut dtable = sums(19, 11, cols);
    device.embed_backward(tokens.view(), x.view(), None, dtable.view_mut());
    device.embed_backward(tokens.view(), x.view(), Some(4), dtable.view_mut());
    found.push(("embed_backward", wide(&dtable.read(device))));

    let vocab = 301;
    let labels: Vec<i64> = (0..rows as i64).map(|i| if i % 5 == 0 { -100 } else { i * 8 % vocab as i64 }).collect();
    let weights: Vec<f32> = (0..rows).map(|i| if i % 5 == 0 { 0.0 } else { 1.0 + i as f32 / 8.0 }).collect();
    let (labels, weights) = (Wide::new(device, &labels, rows, 1), Wide::new(device, &weights, rows, 1));
    let (mut logits, mut loss) = (elems(20, rows, vocab), device.zero_matrix::<f64>(1, 1));
    device.cross_entropy(logits.view_mut(), labels.view(), weights.view(), None, loss.view_mut());
    device.cross_entropy(logits.view_mut(), labels.view(), weights.view(), Some(0.25), loss.view_mut());
    found.push(("cross_entropy", device.read(&loss).unwrap()));
    found.push(("cross_entropy gradient", wide(&logits.read(device))));

    let (w, bias) = (elems(21, cols, 40), elems(22, 1, 40));
    let (mut product, mut dx) = (elems(23, rows, 40), elems(24, rows, cols));
    device.linear(x.view(), w.view(), None, product.view_mut());
    found.push(("linear", wide(&product.read(device))));
    device.linear(x.view(), w.view(), Some(bias.view()), product.view_mut());
    found.push(("linear with bias", wide(&product.read(device))));
    for accumulate in [false, true] {
        device.linear_backward_input(product.view(), w.view(), dx.view_mut(), accumulate);
        found.push(("linear_backward_input", wide(&dx.read(device))));
    }
    let (mut dw, mut db) = (sums(25, cols, 40), sums(26, 1, 40));
    device.linear_backward_weight(x.view(), product.view(), dw.view_mut());
    found.push(("linear_backward_weight", wide(&dw.read(device))));
    device.linear_backward_bias(product.view(), db.view_mut());
    found.push(("linear_backward_bias", wide(&db.read(device))));
    let mut turned = elems(27, cols, rows);
    device.transpose(x.view(), turned.view_mut());
    found.push(("transpose", wide(&turned.read(device))));
    found.extend(steps(device));
    found
}

/// Steps of the optimizer.
fn steps<D: Ops<Acc = f32>>(device: &D) -> Found
where
    D::Elem: Float<Acc = f32>,
{
    let len = 1500;
    let options = AdamwOptions { clip: 0.5, ..AdamwOptions::default() };
    let mut weights = device.upload(&numbers::<f32>(30, len));
    let (mut mean, mut square) = (device.zeros::<f32>(len), device.zeros::<f32>(len));
    let mut working = device.zeros::<D::Elem>(len);
    let mut found: Found = Vec::new();
    for step in 1..4 {
        let mut gradient = device.upload(&numbers::<f32>(30 + step, len));
        let of_step = StepNumbers { lr: 0.01, step: step as f64, ..StepNumbers::default() };
        let mut numbers = device.upload(&of_step.to_array());
        device.sum_of_squares(&gradient, &mut numbers);
        let state = AdamwState {
            gradient: &mut gradient,
            weights: &mut weights,
            mean: &mut mean,
            square: &mut square,
            working: &mut working,
        };
        device.adamw(&options, 1000, &mut numbers, state);
        found.push(("numbers of a step", device.read(&numbers).unwrap()));
        found.push(("gradient after a step", wide(&device.read(&gradient).unwrap())));
    }
    for (name, buffer) in [("weights", &weights), ("mean", &mean), ("square", &square)] {
        found.push((name, wide(&device.read(buffer).unwrap())));
    }
    found.push(("working", wide(&device.read(&working).unwrap())));
    found
}
