//! Root-mean-square normalisation on GPUs.

use super::RmsNorm;
use crate::tensor::cuda::{Arguments as _, BLOCK, Cuda, CudaFloat, Dims, Geometry, Kernel, RawView, Suffix, suffix_of};
use crate::tensor::{AccMut, AccRef, ElemMut, ElemRef};

/// Threads of a block that normalises one part of a row.
const THREADS: u32 = 128;

/// Stretches of rows whose sums are added in order, at most.
const CHUNKS: usize = 128;

impl<T: CudaFloat> RmsNorm for Cuda<T> {
    fn rms_norm(
        &self,
        x: ElemRef<'_, Self>,
        weight: ElemRef<'_, Self>,
        parts: usize,
        eps: f64,
        y: ElemMut<'_, Self>,
        reciprocal: AccMut<'_, Self>,
    ) {
        assert_eq!((x.rows(), x.cols()), (y.rows(), y.cols()), "shapes of x and y");
        assert_eq!((weight.rows(), parts * weight.cols()), (1, x.cols()), "a weight per column of a part");
        assert_eq!((reciprocal.rows(), reciprocal.cols()), (x.rows(), parts), "shape of the reciprocals");
        if x.is_empty() {
            return;
        }
        let place = self.place();
        let (x, weight) = (RawView::of(place, x), RawView::of(place, weight));
        let (y, reciprocal) = (RawView::of_mut(place, y), RawView::of_mut(place, reciprocal));
        let variant = Kernel::RmsNorm.variant(suffix_of::<T>(), Dims::Any);
        let geometry = Geometry::grid(reciprocal.len(), 1, THREADS, 0);
        (x, weight, parts as i32, eps as f32, y, reciprocal).launch(place, variant, geometry);
    }

    fn rms_norm_backward(
        &self,
        x: ElemRef<'_, Self>,
        weight: ElemRef<'_, Self>,
        reciprocal: AccRef<'_, Self>,
        dy: ElemRef<'_, Self>,
        dx: ElemMut<'_, Self>,
        accumulate: bool,
        dweight: AccMut<'_, Self>,
    ) {
        let parts = reciprocal.cols();
        assert_eq!([(dy.rows(), dy.cols()), (dx.rows(), dx.cols())], [(x.rows(), x.cols()); 2], "shapes of dy and dx");
        assert_eq!((weight.rows(), parts * weight.cols()), (1, x.cols()), "a weight per column of a part");
        assert_eq!((dweight.rows(), dweight.cols()), (1, weight.cols()), "shape of dweight");
        assert_eq!(reciprocal.rows(), x.rows(), "reciprocals of every row");
        if x.is_empty() {
            return;
        }
        let place = self.place();
        let (chunks, cols) = (x.rows().min(CHUNKS), weight.cols());
        let (x, weight, reciprocal) =
            (RawView::of(place, x), RawView::of(place, weight), RawView::of(place, reciprocal));
        let (dy, dx) = (RawView::of(place, dy), RawView::of_mut(place, dx));
        let dweight = RawView::of_mut(place, dweight);
        let mut partials = place.scratch::<f32>(chunks * cols);
        let partials = partials.writes(place);
        let variant = Kernel::RmsNormBackward.variant(suffix_of::<T>(), Dims::Any);
        let arguments = (x, weight, reciprocal, dy, dx, i32::from(accumulate), partials);
        arguments.launch(place, variant, Geometry::grid(chunks, 1, BLOCK, 0));
        let sum = Kernel::SumChunks.variant(Suffix::None, Dims::Any);
        (partials, chunks as i64, dweight).launch(place, sum, Geometry::elementwise(cols));
    }
}
