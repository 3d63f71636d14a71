//! The gated activation of the MLP (Shazeer 2020): `silu(gate) * up`.

mod cpu;

use crate::tensor::{Device, ElemMatrix};

/// `silu(gate) * up`, element by element; all matrices have one shape.
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
