//! Attention on GPUs: element by element, with tensor cores, or as Hopper does it.

mod sequences;
mod sizes;
mod tiles;

use std::sync::Arc;

pub use self::tiles::CudaTiles;

pub(crate) use self::sizes::GENERAL;
use self::sizes::{Pass, Sizes};
use super::{Attention, AttentionShape};
use crate::error::SupportError;
use crate::plan::TileCells;
use crate::tensor::cuda::{
    Argument, Arguments as _, Cuda, CudaFloat, Dims, Geometry, Kernel, MOST_Y, RawView, Suffix, TensorMap, suffix_of,
};
use crate::tensor::{AccMut, AccRef, DType, ElemRef};

/// Most features of a head.
const MOST_FEATURES: usize = 256;

/// `Shape` of `kernels/attention.cuh`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct RawShape {
    q_heads: i32,
    kv_heads: i32,
    qk_dim: i32,
    v_dim: i32,
    scale: f32,
}

// SAFETY: laid out as C does.
unsafe impl Argument for RawShape {}

impl RawShape {
    pub(crate) fn new(shape: &AttentionShape) -> Self {
        let AttentionShape { q_heads, kv_heads, qk_dim, v_dim, scale } = *shape;
        let [q_heads, kv_heads, qk_dim, v_dim] = [q_heads, kv_heads, qk_dim, v_dim].map(|count| count as i32);
        RawShape { q_heads, kv_heads, qk_dim, v_dim, scale: scale as f32 }
    }
}

/// A kernel for Hopper: blocks have shares of all items and heads, and copy tiles by tensor maps.
#[derive(Clone, Copy, Debug)]
struct ForHopper {
    dims: Dims,
    sizes: Sizes,
}

/// Another kernel: a block computes one item for one head.
#[derive(Clone, Copy, Debug)]
struct ForItems {
    kernel: Kernel,
    dims: Dims,
    sizes: Sizes,
}

/// Whether 16 bytes can be copied at a time from rows of operands.
fn is_aligned<T>(view: &RawView) -> bool {
    view.address.is_multiple_of(16) && (view.rows <= 1 || (view.stride * size_of::<T>() as i64) % 16 == 0)
}

/// Whether two sums can be written at a time into rows of results.
fn takes_pairs(sums: &RawView) -> bool {
    sums.address.is_multiple_of(8) && (sums.rows <= 1 || sums.stride % 2 == 0)
}

/// The dimensions of heads that kernels for tensor cores are made for, if they can work on these matrices.
fn dims_of<T: CudaFloat>(shape: &AttentionShape, inputs: &[RawView], sums: &RawView) -> Option<Dims> {
    let dims = Dims::of(shape.qk_dim, shape.v_dim);
    let can_work = T::DTYPE != DType::F32 && inputs.iter().all(is_aligned::<T>) && takes_pairs(sums);
    (dims != Dims::Any && can_work).then_some(dims)
}

impl ForHopper {
    /// Tiles of queries, or of the gradient of their outputs, with heads of so many features.
    fn queries<T: CudaFloat>(&self, matrix: RawView, features: usize) -> Option<TensorMap> {
        TensorMap::of_tiles::<T>(matrix, self.sizes.tiles.queries, features)
    }

    /// Tiles of queries, keys and values.
    fn inputs<T: CudaFloat>(&self, shape: &AttentionShape, q: RawView, kv: RawView) -> Option<[TensorMap; 3]> {
        let keys = kv.columns::<T>(0, shape.k_width());
        let values = kv.columns::<T>(shape.k_width(), shape.v_width());
        let rows = self.sizes.tiles.keys;
        Some([
            self.queries::<T>(q, shape.qk_dim)?,
            TensorMap::of_tiles::<T>(keys, rows, shape.qk_dim)?,
            TensorMap::of_tiles::<T>(values, rows, shape.v_dim)?,
        ])
    }
}

impl<T: CudaFloat> Cuda<T> {
    /// Whether the shape is computed; that it is not is told by the next read.
    fn computes(&self, op: &'static str, shape: &AttentionShape) -> bool {
        self.supports(shape).map_err(|error| self.place().fail(op, error.to_string())).is_ok()
    }

    /// The kernel for Hopper, if this GPU is one and there is a kernel for these matrices. `sums` are the results.
    fn for_hopper(&self, pass: Pass, shape: &AttentionShape, inputs: &[RawView], sums: &RawView) -> Option<ForHopper> {
        let place = self.place();
        // The driver is asked for tensor maps.
        place.enter();
        // Scores are compared before they are scaled.
        if !place.is_hopper() || shape.scale as f32 <= 0.0 {
            return None;
        }
        let dims = dims_of::<T>(shape, inputs, sums)?;
        let sizes = Sizes::of_hopper(pass, dims).filter(|sizes| sizes.shared <= place.shared_memory())?;
        Some(ForHopper { dims, sizes })
    }

    /// The kernel for all other GPUs and matrices.
    fn for_items(&self, pass: Pass, shape: &AttentionShape, inputs: &[RawView], sums: &RawView) -> ForItems {
        let sizes = Sizes::of_tensor_cores(pass, shape.qk_dim, shape.v_dim);
        // A grid has all heads, which these kernels do not go round.
        let has_room = sizes.shared <= self.place().shared_memory() && shape.q_heads <= MOST_Y;
        match dims_of::<T>(shape, inputs, sums).filter(|_| has_room) {
            Some(dims) => ForItems { kernel: pass.of_tensor_cores(), dims, sizes },
            None => ForItems { kernel: pass.general(), dims: Dims::Any, sizes: Sizes::general() },
        }
    }

    /// Adds a gradient to `sums`: that of queries, or that of keys and values. `numbers` are log-sum-exp and delta.
    fn add_gradients(
        &self,
        pass: Pass,
        shape: &AttentionShape,
        [q, kv, dout]: [RawView; 3],
        tiles: &CudaTiles,
        [lse, delta]: [RawView; 2],
        sums: RawView,
    ) {
        let (place, suffix, raw, inputs) = (self.place(), suffix_of::<T>(), RawShape::new(shape), [q, kv, dout]);
        if let Some(hopper) = self.for_hopper(pass, shape, &inputs, &sums)
            && let Some([q, k, v]) = hopper.inputs::<T>(shape, q, kv)
            && let Some(dout) = hopper.queries::<T>(dout, shape.v_dim)
        {
            let lists = tiles.dealt(pass, hopper.sizes.tiles, shape);
            if let Some(geometry) = hopper.sizes.geometry(lists.blocks(), 1) {
                let (tiles, shares) = (lists.tiles(place), lists.shares(place));
                let variant = pass.of_hopper().variant(suffix, hopper.dims);
                (raw, q, k, v, dout, tiles, shares, lse, delta, sums).launch(place, variant, geometry);
            }
            return;
        }
        let ForItems { kernel, dims, sizes } = self.for_items(pass, shape, &inputs, &sums);
        let lists = tiles.lists(pass, sizes.tiles);
        let heads = if pass == Pass::BackwardKeys { shape.kv_heads } else { shape.q_heads };
        if let Some(geometry) = sizes.geometry(lists.items(), heads) {
            let tiles = lists.tiles(place);
            (raw, q, kv, tiles, dout, lse, delta, sums).launch(place, kernel.variant(suffix, dims), geometry);
        }
    }
}

impl Sizes {
    /// So many blocks, once for each head; nothing if there are none, since keys that nobody attends have no items.
    fn geometry(&self, blocks: usize, heads: usize) -> Option<Geometry> {
        (blocks > 0).then(|| Geometry::grid(blocks, heads, self.threads, self.shared))
    }
}

impl<T: CudaFloat> Attention for Cuda<T> {
    type Tiles = Arc<CudaTiles>;

    fn tiles(&self, cells: &TileCells) -> Arc<CudaTiles> {
        Arc::new(CudaTiles::new(cells.clone(), self.place().clone()))
    }

    fn supports(&self, shape: &AttentionShape) -> Result<(), SupportError> {
        shape.check()?;
        let AttentionShape { qk_dim, v_dim, .. } = *shape;
        if qk_dim.max(v_dim) > MOST_FEATURES {
            let heads = if qk_dim == v_dim { format!("{qk_dim}") } else { format!("{qk_dim} and {v_dim}") };
            return Err(SupportError::Numbers(format!(
                "attention with heads of {heads} features is not computed on GPUs: use heads of {MOST_FEATURES} at most, \
                 or the processor (--device cpu)"
            )));
        }
        Ok(())
    }

    fn attention(
        &self,
        shape: &AttentionShape,
        q: ElemRef<'_, Self>,
        kv: ElemRef<'_, Self>,
        tiles: &Arc<CudaTiles>,
        out: AccMut<'_, Self>,
        lse: AccMut<'_, Self>,
    ) {
        let (queries, _) = shape.expect_inputs(q.size(), kv.size());
        shape.expect_outputs(queries, out.size());
        shape.expect_numbers(queries, lse.size());
        tiles.expect(q.rows(), kv.rows());
        if q.is_empty() || !self.computes("attention", shape) {
            return;
        }
        let (place, suffix, raw, pass) = (self.place(), suffix_of::<T>(), RawShape::new(shape), Pass::Forward);
        let (q, kv) = (RawView::of(place, q), RawView::of(place, kv));
        let (out, lse) = (RawView::of_mut(place, out), RawView::of_mut(place, lse));
        if let Some(hopper) = self.for_hopper(pass, shape, &[q, kv], &out)
            && let Some([q, k, v]) = hopper.inputs::<T>(shape, q, kv)
        {
            let lists = tiles.dealt(pass, hopper.sizes.tiles, shape);
            if let Some(geometry) = hopper.sizes.geometry(lists.blocks(), 1) {
                let (tiles, shares) = (lists.tiles(place), lists.shares(place));
                let variant = pass.of_hopper().variant(suffix, hopper.dims);
                (raw, q, k, v, tiles, shares, out, lse).launch(place, variant, geometry);
            }
            return;
        }
        let ForItems { kernel, dims, sizes } = self.for_items(pass, shape, &[q, kv], &out);
        let lists = tiles.lists(pass, sizes.tiles);
        if let Some(geometry) = sizes.geometry(lists.items(), shape.q_heads) {
            (raw, q, kv, lists.tiles(place), out, lse).launch(place, kernel.variant(suffix, dims), geometry);
        }
    }

    fn attention_merge(
        &self,
        shape: &AttentionShape,
        out: AccMut<'_, Self>,
        lse: AccMut<'_, Self>,
        part_out: AccRef<'_, Self>,
        part_lse: AccRef<'_, Self>,
    ) {
        shape.expect();
        [out.size(), part_out.size()].into_iter().for_each(|size| shape.expect_outputs(out.rows(), size));
        [lse.size(), part_lse.size()].into_iter().for_each(|size| shape.expect_numbers(out.rows(), size));
        if out.is_empty() {
            return;
        }
        let place = self.place();
        let (part_out, part_lse) = (RawView::of(place, part_out), RawView::of(place, part_lse));
        let (out, lse) = (RawView::of_mut(place, out), RawView::of_mut(place, lse));
        let arguments = (RawShape::new(shape), out, lse, part_out, part_lse);
        let variant = Kernel::AttentionMerge.variant(Suffix::None, Dims::Any);
        arguments.launch(place, variant, Geometry::heads(lse.len()));
    }

    fn attention_delta(
        &self,
        shape: &AttentionShape,
        out: AccRef<'_, Self>,
        dout: ElemRef<'_, Self>,
        delta: AccMut<'_, Self>,
    ) {
        shape.expect();
        [out.size(), dout.size()].into_iter().for_each(|size| shape.expect_outputs(out.rows(), size));
        shape.expect_numbers(out.rows(), delta.size());
        if out.is_empty() {
            return;
        }
        let place = self.place();
        let (out, dout) = (RawView::of(place, out), RawView::of(place, dout));
        let delta = RawView::of_mut(place, delta);
        let variant = Kernel::AttentionDelta.variant(suffix_of::<T>(), Dims::Any);
        (RawShape::new(shape), out, dout, delta).launch(place, variant, Geometry::heads(delta.len()));
    }

    fn attention_backward(
        &self,
        shape: &AttentionShape,
        q: ElemRef<'_, Self>,
        kv: ElemRef<'_, Self>,
        tiles: &Arc<CudaTiles>,
        dout: ElemRef<'_, Self>,
        lse: AccRef<'_, Self>,
        delta: AccRef<'_, Self>,
        dq: AccMut<'_, Self>,
        dkv: AccMut<'_, Self>,
    ) {
        let (queries, keys) = shape.expect_inputs(q.size(), kv.size());
        shape.expect_gradients((queries, keys), dq.size(), dkv.size());
        shape.expect_outputs(queries, dout.size());
        [lse.size(), delta.size()].into_iter().for_each(|numbers| shape.expect_numbers(queries, numbers));
        tiles.expect(q.rows(), kv.rows());
        if q.is_empty() || kv.is_empty() || !self.computes("attention_backward", shape) {
            return;
        }
        let place = self.place();
        let inputs = [q, kv, dout].map(|view| RawView::of(place, view));
        let numbers = [lse, delta].map(|view| RawView::of(place, view));
        let (dq, dkv) = (RawView::of_mut(place, dq), RawView::of_mut(place, dkv));
        self.add_gradients(Pass::BackwardKeys, shape, inputs, tiles, numbers, dkv);
        self.add_gradients(Pass::BackwardQueries, shape, inputs, tiles, numbers, dq);
    }
}
