//! Embeddings on GPUs.

use super::Embedding;
use crate::tensor::cuda::{Arguments as _, Cuda, CudaFloat, CudaMemory, Dims, Geometry, Kernel, RawView, suffix_of};
use crate::tensor::{AccMut, ElemMut, ElemRef, MatrixRef};

impl<T: CudaFloat> Embedding for Cuda<T> {
    fn embed(&self, table: ElemRef<'_, Self>, tokens: MatrixRef<'_, i64, CudaMemory>, y: ElemMut<'_, Self>) {
        assert_eq!((tokens.rows(), tokens.cols()), (y.rows(), 1), "a token per row");
        assert_eq!(table.cols(), y.cols(), "columns of the table");
        if y.is_empty() {
            return;
        }
        let place = self.place();
        let (table, tokens) = (RawView::of(place, table), RawView::of(place, tokens));
        let y = RawView::of_mut(place, y);
        let variant = Kernel::Embed.variant(suffix_of::<T>(), Dims::Any);
        (table, tokens, y).launch(place, variant, Geometry::elementwise(y.len()));
    }

    fn embed_backward(
        &self,
        tokens: MatrixRef<'_, i64, CudaMemory>,
        dy: ElemRef<'_, Self>,
        skip: Option<i64>,
        dtable: AccMut<'_, Self>,
    ) {
        assert_eq!((tokens.rows(), tokens.cols()), (dy.rows(), 1), "a token per row");
        assert_eq!(dtable.cols(), dy.cols(), "columns of the table");
        if dy.is_empty() {
            return;
        }
        let place = self.place();
        let rows = dy.rows();
        let (tokens, dy) = (RawView::of(place, tokens), RawView::of(place, dy));
        let dtable = RawView::of_mut(place, dtable);
        let mut order = place.scratch::<u32>(rows);
        let order = order.writes(place);
        let sort = Kernel::EmbedOrder.variant(suffix_of::<T>(), Dims::Any);
        (tokens, order).launch(place, sort, Geometry::elementwise(rows));
        let variant = Kernel::EmbedBackward.variant(suffix_of::<T>(), Dims::Any);
        let arguments = (tokens, order, dy, i32::from(skip.is_some()), skip.unwrap_or(0), dtable);
        arguments.launch(place, variant, Geometry::blocks(rows));
    }
}
