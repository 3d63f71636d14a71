//! The gated activation on GPUs.

use super::Swiglu;
use crate::tensor::cuda::{Arguments as _, Cuda, CudaFloat, Dims, Geometry, Kernel, RawView, suffix_of};
use crate::tensor::{ElemMut, ElemRef};

impl<T: CudaFloat> Swiglu for Cuda<T> {
    fn swiglu(&self, gate: ElemRef<'_, Self>, up: ElemRef<'_, Self>, y: ElemMut<'_, Self>) {
        let shape = (gate.rows(), gate.cols());
        assert_eq!([(up.rows(), up.cols()), (y.rows(), y.cols())], [shape; 2], "shapes of gate, up and product");
        if y.is_empty() {
            return;
        }
        let place = self.place();
        let (gate, up) = (RawView::of(place, gate), RawView::of(place, up));
        let y = RawView::of_mut(place, y);
        let variant = Kernel::Swiglu.variant(suffix_of::<T>(), Dims::Any);
        (gate, up, y).launch(place, variant, Geometry::elementwise(y.len()));
    }

    fn swiglu_backward(
        &self,
        gate: ElemRef<'_, Self>,
        up: ElemRef<'_, Self>,
        dy: ElemRef<'_, Self>,
        gradient: ElemMut<'_, Self>,
    ) {
        let shape = (gate.rows(), gate.cols());
        assert_eq!([(up.rows(), up.cols()), (dy.rows(), dy.cols())], [shape; 2], "shapes of gate, up and dy");
        assert_eq!((gradient.rows(), gradient.cols()), (shape.0, 2 * shape.1), "shape of the gradient");
        if gradient.is_empty() {
            return;
        }
        let place = self.place();
        let (gate, up, dy) = (RawView::of(place, gate), RawView::of(place, up), RawView::of(place, dy));
        let gradient = RawView::of_mut(place, gradient);
        let variant = Kernel::SwigluBackward.variant(suffix_of::<T>(), Dims::Any);
        (gate, up, dy, gradient).launch(place, variant, Geometry::elementwise(dy.len()));
    }
}
