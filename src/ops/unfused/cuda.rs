//! Unfused attention on GPUs.

use std::sync::Arc;

use super::{UnfusedAttention, cells};
use crate::ops::attention::AttentionShape;
use crate::ops::attention::cuda::{CudaTiles, GENERAL, RawShape};
use crate::ops::rows::MoveRows;
use crate::tensor::cuda::{Arguments as _, Cuda, CudaFloat, Dims, Geometry, Kernel, RawView, suffix_of};
use crate::tensor::{AccBuffer, AccMut, ElemRef};

impl<T: CudaFloat> UnfusedAttention for Cuda<T> {
    fn unfused(
        &self,
        shape: &AttentionShape,
        q: ElemRef<'_, Self>,
        kv: ElemRef<'_, Self>,
        tiles: &Arc<CudaTiles>,
        mut out: AccMut<'_, Self>,
        probabilities: &mut AccBuffer<Self>,
    ) {
        let (queries, _) = shape.expect_inputs(q.size(), kv.size());
        shape.expect_outputs(queries, out.size());
        tiles.expect(q.rows(), kv.rows());
        assert_eq!(probabilities.len(), cells(shape, tiles.blocks()), "probabilities of other blocks");
        self.clear(out.reborrow());
        if probabilities.is_empty() {
            return;
        }
        let place = self.place();
        let (q, kv) = (RawView::of(place, q), RawView::of(place, kv));
        let out = RawView::of_mut(place, out);
        let probabilities = probabilities.storage_mut().writes(place);
        let lists = tiles.sequences(shape.q_heads);
        let (parts, attended) = (lists.queries(place), lists.attended(place));
        let arguments = (RawShape::new(shape), q, kv, parts, attended, probabilities, out);
        let variant = Kernel::UnfusedForward.variant(suffix_of::<T>(), Dims::Any);
        let geometry = Geometry::grid(parts.count as usize, shape.q_heads, GENERAL.0, GENERAL.1);
        arguments.launch(place, variant, geometry);
    }

    fn unfused_backward(
        &self,
        shape: &AttentionShape,
        q: ElemRef<'_, Self>,
        kv: ElemRef<'_, Self>,
        tiles: &Arc<CudaTiles>,
        probabilities: &AccBuffer<Self>,
        dout: ElemRef<'_, Self>,
        dq: AccMut<'_, Self>,
        dkv: AccMut<'_, Self>,
    ) {
        let (queries, keys) = shape.expect_inputs(q.size(), kv.size());
        shape.expect_outputs(queries, dout.size());
        shape.expect_gradients((queries, keys), dq.size(), dkv.size());
        tiles.expect(q.rows(), kv.rows());
        assert_eq!(probabilities.len(), cells(shape, tiles.blocks()), "probabilities of other blocks");
        if probabilities.is_empty() {
            return;
        }
        let place = self.place();
        let rows = q.rows();
        let (q, kv, dout) = (RawView::of(place, q), RawView::of(place, kv), RawView::of(place, dout));
        let (dq, dkv) = (RawView::of_mut(place, dq), RawView::of_mut(place, dkv));
        let probabilities = probabilities.storage().reads(place);
        let mut delta = place.scratch::<f32>(rows * shape.q_heads);
        let delta = RawView::of_rows(delta.writes(place), rows, shape.q_heads);
        let lists = tiles.sequences(shape.q_heads);
        let (queries, keys) = (lists.queries(place), lists.keys(place));
        let raw = RawShape::new(shape);
        let by_queries = Kernel::UnfusedBackwardQueries.variant(suffix_of::<T>(), Dims::Any);
        let geometry = |parts: i64, heads| Geometry::grid(parts as usize, heads, GENERAL.0, GENERAL.1);
        let arguments = (raw, kv, queries, probabilities, dout, delta, dq);
        arguments.launch(place, by_queries, geometry(queries.count, shape.q_heads));
        let by_keys = Kernel::UnfusedBackwardKeys.variant(suffix_of::<T>(), Dims::Any);
        let arguments = (raw, q, kv, keys, probabilities, dout, delta, dkv);
        arguments.launch(place, by_keys, geometry(keys.count, shape.kv_heads));
    }
}
