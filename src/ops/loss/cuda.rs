//! Cross entropy on GPUs.

use super::CrossEntropy;
use crate::tensor::cuda::{
    Arguments as _, BLOCK, Cuda, CudaFloat, CudaMemory, Dims, Geometry, Kernel, RawView, Suffix, suffix_of,
};
use crate::tensor::{ElemMut, MatrixMut, MatrixRef};

impl<T: CudaFloat> CrossEntropy for Cuda<T> {
    fn cross_entropy(
        &self,
        logits: ElemMut<'_, Self>,
        labels: MatrixRef<'_, i64, CudaMemory>,
        weights: MatrixRef<'_, f32, CudaMemory>,
        scale: Option<f64>,
        sum: MatrixMut<'_, f64, CudaMemory>,
    ) {
        let rows = logits.rows();
        assert_eq!([(labels.rows(), labels.cols()), (weights.rows(), weights.cols())], [(rows, 1); 2], "one per row");
        assert_eq!((sum.rows(), sum.cols()), (1, 1), "one sum");
        if logits.is_empty() {
            return;
        }
        let place = self.place();
        let (labels, weights) = (RawView::of(place, labels), RawView::of(place, weights));
        let (logits, sum) = (RawView::of_mut(place, logits), RawView::of_mut(place, sum));
        let mut losses = place.scratch::<f64>(rows);
        let losses = losses.writes(place);
        let variant = Kernel::CrossEntropy.variant(suffix_of::<T>(), Dims::Any);
        let arguments = (logits, labels, weights, i32::from(scale.is_some()), scale.unwrap_or(0.0), losses);
        arguments.launch(place, variant, Geometry::blocks(rows));
        let add = Kernel::SumF64.variant(Suffix::None, Dims::Any);
        (losses, rows as i64, 1i32, sum.address).launch(place, add, Geometry::grid(1, 1, BLOCK, 0));
    }
}
