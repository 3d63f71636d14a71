//! Rotation of queries and keys by their positions (Su et al. 2021).

mod cpu;

use crate::tensor::{AccMatrix, Device, ElemMatrix};

/// Rotates pairs of features of every head in place. The rotation is orthogonal up to the concentration factor, so
/// the gradient is the rotation by the negative angle.
pub trait Rotary: Device {
    /// `x [rows, heads * dim]`, `cos` and `sin` `[rows, pairs]` with `2 * pairs <= dim`; features past `2 * pairs`
    /// are left alone. Pairs are `(i, i + pairs)`, or `(2 i, 2 i + 1)` if `interleaved`. The product is computed in
    /// the accumulation type and rounded once. `inverse` negates the sine: the gradient.
    fn rotate(
        &self,
        x: &mut ElemMatrix<Self>,
        heads: usize,
        cos: &AccMatrix<Self>,
        sin: &AccMatrix<Self>,
        interleaved: bool,
        inverse: bool,
    );
}
