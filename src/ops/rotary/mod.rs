//! Rotation of queries and keys by their positions (Su et al. 2021).

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;

use crate::ops::op::op;
use crate::tensor::{AccRef, Device, ElemMut};

op! {
    /// Rotates pairs of features of every head in place. The rotation is orthogonal up to the concentration factor, so
    /// the gradient is the rotation by the negative angle.
    ///
    /// ```
    /// use context_parallel::ops::rotary::Rotate;
    /// use context_parallel::tensor::{Cpu, Matrix};
    ///
    /// let cpu = Cpu::<f32>::default();
    /// let mut x = Matrix::from_slice(&[1.0, 2.0, 3.0, 4.0, 5.0], 1, 5); // one head; its last feature is not rotated
    /// let (cos, sin) = (Matrix::from_slice(&[0.0, 1.0], 1, 2), Matrix::from_slice(&[1.0, 0.0], 1, 2));
    /// cpu.rotate(x.view_mut(), 1, cos.view(), sin.view(), false, false); // (1, 3) by a right angle, (2, 4) not at all
    /// assert_eq!(x[..], [-3.0, 2.0, 1.0, 4.0, 5.0]);
    /// cpu.rotate(x.view_mut(), 1, cos.view(), sin.view(), false, true);
    /// assert_eq!(x[..], [1.0, 2.0, 3.0, 4.0, 5.0]);
    /// ```
    pub trait Rotate: Device {
        /// `x [rows, heads * dim]`, `cos` and `sin` `[rows, pairs]` with `2 * pairs <= dim`; features past `2 * pairs`
        /// are left alone. Pairs are `(i, i + pairs)`, or `(2 i, 2 i + 1)` if `interleaved`. The product is computed in
        /// the accumulation type and rounded once. `inverse` negates the sine: the gradient.
        fn rotate(
            &self,
            x: ElemMut<'_, Self>,
            heads: usize,
            cos: AccRef<'_, Self>,
            sin: AccRef<'_, Self>,
            interleaved: bool,
            inverse: bool,
        );
    }
}
