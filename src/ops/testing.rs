//! What the tests of the ops share: deterministic values, poisoned memory, finite differences.

use crate::tensor::{Buffer, Cpu, Element, Float, Matrix};

/// `n` values in about -1..1, the same for the same seed.
pub(super) fn values(seed: u64, n: usize) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(0x1234_5678_9ABC_DEF1);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// `values` rounded to `T`, `[rows, cols]`.
pub(super) fn matrix<T: Float>(values: &[f64], rows: usize, cols: usize) -> Matrix<T> {
    let values: Vec<T> = values.iter().map(|&value| T::from_f64(value)).collect();
    Matrix::from_slice(&values, rows, cols)
}

/// `[rows, cols]` of `seed`'s values, rounded to `T`.
pub(super) fn random<T: Float>(seed: u64, rows: usize, cols: usize) -> Matrix<T> {
    matrix(&values(seed, rows * cols), rows, cols)
}

/// The elements as `f64`.
pub(super) fn wide<T: Float>(values: &[T]) -> Vec<f64> {
    values.iter().map(|value| value.to_f64()).collect()
}

/// The bits of the elements.
pub(super) fn bits<T: Element>(values: &[T]) -> Vec<u8> {
    bytemuck::cast_slice(values).to_vec()
}

/// A matrix that holds NaN in every element: what an op that writes must not read.
pub(super) fn poisoned<T: Float>(rows: usize, cols: usize) -> Matrix<T> {
    matrix(&vec![f64::NAN; rows * cols], rows, cols)
}

/// Fills the arenas with NaN, so that in release builds too fresh memory is not zero by chance.
pub(super) fn poison<T: Float>(cpu: &Cpu<T>, bytes: usize) {
    let mut blocks: Vec<Buffer<u8>> =
        (0..4).flat_map(|_| [Buffer::empty(cpu.pool(), bytes), cpu.scratch(bytes)]).collect();
    blocks.iter_mut().for_each(|block| block.fill(0xFF));
}

/// Norm of the difference over norm of the reference.
pub(super) fn relative(found: &[f64], reference: &[f64]) -> f64 {
    assert_eq!(found.len(), reference.len());
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let difference = norm(&mut found.iter().zip(reference).map(|(a, b)| a - b));
    difference / norm(&mut reference.iter().copied()).max(1e-300)
}

/// The gradient of `f` at `x` by central differences.
pub(super) fn differences(x: &[f64], mut f: impl FnMut(&[f64]) -> f64) -> Vec<f64> {
    let step = 1e-5;
    let mut at = x.to_vec();
    let mut one = |i: usize| {
        at[i] = x[i] + step;
        let above = f(&at);
        at[i] = x[i] - step;
        let below = f(&at);
        at[i] = x[i];
        (above - below) / (2.0 * step)
    };
    (0..x.len()).map(&mut one).collect()
}

/// Sum of the products.
pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
