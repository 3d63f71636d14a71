//! Rotation on GPUs.

use super::Rotate;
use crate::tensor::cuda::{Arguments as _, Cuda, CudaFloat, Dims, Geometry, Kernel, RawView, suffix_of};
use crate::tensor::{AccRef, ElemMut};

impl<T: CudaFloat> Rotate for Cuda<T> {
    fn rotate(
        &self,
        x: ElemMut<'_, Self>,
        heads: usize,
        cos: AccRef<'_, Self>,
        sin: AccRef<'_, Self>,
        interleaved: bool,
        inverse: bool,
    ) {
        let (rows, pairs) = (x.rows(), cos.cols());
        assert_eq!((cos.rows(), sin.rows(), sin.cols()), (rows, rows, pairs), "shapes of cosines and sines");
        let dim = x.cols() / heads.max(1);
        assert!(
            heads * dim == x.cols() && 2 * pairs <= dim,
            "{heads} heads with {pairs} pairs in {} columns",
            x.cols()
        );
        let elements = rows * heads * pairs;
        if elements == 0 {
            return;
        }
        let place = self.place();
        let (cos, sin) = (RawView::of(place, cos), RawView::of(place, sin));
        let x = RawView::of_mut(place, x);
        let arguments = (x, heads as i32, cos, sin, i32::from(interleaved), i32::from(inverse));
        let variant = Kernel::Rotate.variant(suffix_of::<T>(), Dims::Any);
        arguments.launch(place, variant, Geometry::elementwise(elements));
    }
}
