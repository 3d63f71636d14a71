//! The gated activation of the MLP (Shazeer 2020): `silu(gate) * up`.

mod cpu;

use crate::tensor::{Device, ElemMatrix};

/// `silu(gate) * up`, element by element; all matrices have one shape.
///
/// ```
/// use context_parallel::ops::swiglu::Swiglu;
/// use context_parallel::tensor::{Cpu, Matrix};
///
/// let cpu = Cpu::<f32>::default();
/// let gate = Matrix::from_slice(&[0.0, 100.0, -100.0], 1, 3);
/// let up = Matrix::from_slice(&[2.0, 3.0, 4.0], 1, 3);
/// assert_eq!(cpu.swiglu(&gate, &up)[..], [0.0, 300.0, 0.0]);
///
/// let (dgate, dup) = cpu.swiglu_backward(&gate, &up, &Matrix::from_slice(&[1.0; 3], 1, 3));
/// assert_eq!(dgate[..], [1.0, 3.0, 0.0]);
/// assert_eq!(dup[..2], [0.0, 100.0]);
/// ```
pub trait Swiglu: Device {
    /// The product.
    fn swiglu(&self, gate: &ElemMatrix<Self>, up: &ElemMatrix<Self>) -> ElemMatrix<Self>;

    /// Gradients of gate and up.
    fn swiglu_backward(
        &self,
        gate: &ElemMatrix<Self>,
        up: &ElemMatrix<Self>,
        dy: &ElemMatrix<Self>,
    ) -> (ElemMatrix<Self>, ElemMatrix<Self>);
}
