//! Linear layers on GPUs, by cuBLASLt.

use super::Matmul;
use crate::tensor::cuda::{
    Arguments as _, Cuda, CudaFloat, Dims, Geometry, Kernel, Product, RawView, Side, Suffix, suffix_of,
};
use crate::tensor::{AccMut, DType, ElemMut, ElemRef};

/// Stretches of rows whose sums are added in order, at most.
const CHUNKS: usize = 128;

/// Rows and columns of the part of a matrix that a block transposes.
const TRANSPOSED: usize = 32;

fn plain(view: RawView) -> Side {
    Side { view, is_transposed: false }
}

fn transposed(view: RawView) -> Side {
    Side { view, is_transposed: true }
}

impl<T: CudaFloat> Matmul for Cuda<T> {
    fn linear(
        &self,
        x: ElemRef<'_, Self>,
        w: ElemRef<'_, Self>,
        bias: Option<ElemRef<'_, Self>>,
        y: ElemMut<'_, Self>,
    ) {
        assert_eq!((x.rows(), x.cols(), w.cols()), (y.rows(), w.rows(), y.cols()), "shapes of a product");
        assert!(bias.is_none_or(|bias| (bias.rows(), bias.cols()) == (1, y.cols())), "a bias per column");
        if y.is_empty() {
            return;
        }
        let place = self.place();
        let (x, w) = (RawView::of(place, x), RawView::of(place, w));
        let bias = bias.map(|bias| RawView::of(place, bias).address);
        let out = RawView::of_mut(place, y);
        let (left, right) = (plain(x), plain(w));
        let product = Product { left, right, out, dtype: T::DTYPE, out_dtype: T::DTYPE, accumulates: false, bias };
        place.multiply("linear", &product);
    }

    fn linear_backward_input(
        &self,
        dy: ElemRef<'_, Self>,
        w: ElemRef<'_, Self>,
        dx: ElemMut<'_, Self>,
        accumulate: bool,
    ) {
        assert_eq!((dy.rows(), dy.cols(), w.rows()), (dx.rows(), w.cols(), dx.cols()), "shapes of a product");
        if dx.is_empty() {
            return;
        }
        let place = self.place();
        let (dy, w) = (RawView::of(place, dy), RawView::of(place, w));
        let out = RawView::of_mut(place, dx);
        let (left, right) = (plain(dy), transposed(w));
        let product =
            Product { left, right, out, dtype: T::DTYPE, out_dtype: T::DTYPE, accumulates: accumulate, bias: None };
        place.multiply("linear_backward_input", &product);
    }

    fn linear_backward_weight(&self, x: ElemRef<'_, Self>, dy: ElemRef<'_, Self>, dw: AccMut<'_, Self>) {
        assert_eq!((x.rows(), x.cols(), dy.cols()), (dy.rows(), dw.rows(), dw.cols()), "shapes of a product");
        if dw.is_empty() || x.is_empty() {
            return;
        }
        let place = self.place();
        let (x, dy) = (RawView::of(place, x), RawView::of(place, dy));
        let out = RawView::of_mut(place, dw);
        let (left, right) = (transposed(x), plain(dy));
        let product =
            Product { left, right, out, dtype: T::DTYPE, out_dtype: DType::F32, accumulates: true, bias: None };
        place.multiply("linear_backward_weight", &product);
    }

    fn linear_backward_bias(&self, dy: ElemRef<'_, Self>, db: AccMut<'_, Self>) {
        assert_eq!((db.rows(), db.cols()), (1, dy.cols()), "a sum per column");
        if dy.is_empty() {
            return;
        }
        let place = self.place();
        let (chunks, cols) = (dy.rows().min(CHUNKS), dy.cols());
        let dy = RawView::of(place, dy);
        let db = RawView::of_mut(place, db);
        let mut partials = place.scratch::<f32>(chunks * cols);
        let partials = partials.writes(place);
        let variant = Kernel::ColumnSums.variant(suffix_of::<T>(), Dims::Any);
        (dy, partials).launch(place, variant, Geometry::blocks(chunks));
        let sum = Kernel::SumChunks.variant(Suffix::None, Dims::Any);
        (partials, chunks as i64, db).launch(place, sum, Geometry::elementwise(cols));
    }

    fn transpose(&self, x: ElemRef<'_, Self>, y: ElemMut<'_, Self>) {
        assert_eq!((x.rows(), x.cols()), (y.cols(), y.rows()), "shapes of a transpose");
        if x.is_empty() {
            return;
        }
        let place = self.place();
        let tiles = x.rows().div_ceil(TRANSPOSED) * x.cols().div_ceil(TRANSPOSED);
        let x = RawView::of(place, x);
        let y = RawView::of_mut(place, y);
        let variant = Kernel::Transpose.variant(suffix_of::<T>(), Dims::Any);
        (x, y).launch(place, variant, Geometry::blocks(tiles));
    }
}
