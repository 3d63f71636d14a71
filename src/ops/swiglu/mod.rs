//! The gated activation of the MLP (Shazeer 2020): `silu(gate) * up`.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;

use crate::ops::op::op;
use crate::tensor::{Device, ElemMut, ElemRef};

op! {
    /// `silu(gate) * up`, element by element; all matrices have one shape.
    ///
    /// ```
    /// use context_parallel::ops::swiglu::Swiglu;
    /// use context_parallel::tensor::{Cpu, Device, Matrix};
    ///
    /// let cpu = Cpu::<f32>::default();
    /// let both = Matrix::from_slice(&[0.0, 100.0, -100.0, 2.0, 3.0, 4.0], 1, 6);
    /// let (gate, up) = (both.view().column_range(0..3), both.view().column_range(3..6));
    /// let mut y = cpu.matrix(1, 3);
    /// cpu.swiglu(gate, up, y.view_mut());
    /// assert_eq!(y[..], [0.0, 300.0, 0.0]);
    ///
    /// let (dy, mut gradient) = (Matrix::from_slice(&[1.0; 3], 1, 3), cpu.matrix(1, 6));
    /// cpu.swiglu_backward(gate, up, dy.view(), gradient.view_mut());
    /// assert_eq!(gradient[..5], [1.0, 3.0, 0.0, 0.0, 100.0]);
    /// ```
    pub trait Swiglu: Device {
        /// The product, `[rows, n]`.
        fn swiglu(&self, gate: ElemRef<'_, Self>, up: ElemRef<'_, Self>, y: ElemMut<'_, Self>);

        /// Gradients of gate, then of up, side by side: `[rows, 2 n]`.
        fn swiglu_backward(
            &self,
            gate: ElemRef<'_, Self>,
            up: ElemRef<'_, Self>,
            dy: ElemRef<'_, Self>,
            gradient: ElemMut<'_, Self>,
        );
    }
}
