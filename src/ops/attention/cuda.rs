//! Attention on GPUs.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytemuck::{Pod, Zeroable};

use super::visits::{AttendedKeys, TileLists, TileSizes};
use super::{Attention, AttentionShape};
use crate::plan::{Block, TileCells};
use crate::tensor::cuda::{
    Argument, Arguments as _, Cuda, CudaFloat, CudaMemory, Dims, Geometry, Kernel, MOST_Y, Place, RawView, Suffix,
    suffix_of,
};
use crate::tensor::{AccMut, AccRef, DType, ElemRef, product};

/// Rows of the tiles of all kernels here.
const SIZES: TileSizes = TileSizes { queries: 64, keys: 64 };

/// Most features of a head.
const MOST_FEATURES: usize = 256;

/// A tile as a GPU takes it: see `kernels/attention.cuh`.
#[derive(Debug)]
pub struct CudaTiles {
    cells: TileCells,
    place: Arc<Place>,
    attended: OnceLock<AttendedKeys>,
    queries: OnceLock<DeviceLists>,
    keys: OnceLock<DeviceLists>,
    /// By number of query heads, on which it depends where probabilities are.
    sequences: Mutex<Vec<(usize, Arc<SequenceLists>)>>,
}

/// Items and visits on the GPU, in one piece of memory.
#[derive(Debug)]
struct DeviceLists {
    memory: CudaMemory,
    /// Where visits and words begin, in bytes.
    visits: u64,
    table: u64,
    items: usize,
}

/// Sequences as the unfused kernels take them: see `kernels/unfused.cu`.
#[derive(Debug)]
pub(crate) struct SequenceLists {
    sequences: CudaMemory,
    /// Tiles of the rows of queries and of keys, and how many.
    parts: [(CudaMemory, usize); 2],
    starts: CudaMemory,
    intervals: CudaMemory,
}

/// `Sequence` of `kernels/unfused.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct RawSequence {
    q_row: i32,
    q_rows: i32,
    k_row: i32,
    k_rows: i32,
    /// Index of its first probability.
    at: i64,
}

/// `Parts` of `kernels/unfused.cu`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct RawParts {
    sequences: u64,
    parts: u64,
    pub(crate) count: i64,
}

// SAFETY: laid out as C does.
unsafe impl Argument for RawParts {}

/// `Attended` of `kernels/unfused.cu`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct RawAttended {
    starts: u64,
    intervals: u64,
}

// SAFETY: laid out as C does.
unsafe impl Argument for RawAttended {}

impl SequenceLists {
    fn new(place: &Arc<Place>, blocks: &[Block], attended: &AttendedKeys, q_heads: usize) -> Self {
        let mut sequences = Vec::new();
        let (mut by_queries, mut by_keys): (Vec<[i32; 2]>, Vec<[i32; 2]>) = Default::default();
        let mut at = 0;
        for (queries, keys) in blocks.iter().filter(|(queries, keys)| !queries.is_empty() && !keys.is_empty()) {
            let tiles = |rows: usize, size: usize| {
                let sequence = sequences.len() as i32;
                (0..rows).step_by(size).map(move |row| [sequence, row as i32])
            };
            by_queries.extend(tiles(queries.len(), SIZES.queries));
            by_keys.extend(tiles(keys.len(), SIZES.keys));
            let [q_row, q_rows, k_row, k_rows] =
                [queries.start, queries.len(), keys.start, keys.len()].map(|rows| rows as i32);
            sequences.push(RawSequence { q_row, q_rows, k_row, k_rows, at });
            at += product(&[queries.len(), keys.len(), q_heads]) as i64;
        }
        let starts: Vec<u32> = attended.starts().iter().map(|&start| start as u32).collect();
        let interval = |keys: &std::ops::Range<usize>| [keys.start as i32, keys.end as i32];
        let intervals: Vec<[i32; 2]> = attended.ranges().iter().map(interval).collect();
        let part = |parts: Vec<[i32; 2]>| (place.list(&parts), parts.len());
        SequenceLists {
            sequences: place.list(&sequences),
            parts: [part(by_queries), part(by_keys)],
            starts: place.list(&starts),
            intervals: place.list(&intervals),
        }
    }

    fn raw(&self, place: &Arc<Place>, (parts, count): &(CudaMemory, usize)) -> RawParts {
        RawParts { sequences: self.sequences.reads(place), parts: parts.reads(place), count: *count as i64 }
    }

    pub(crate) fn queries(&self, place: &Arc<Place>) -> RawParts {
        self.raw(place, &self.parts[0])
    }

    pub(crate) fn keys(&self, place: &Arc<Place>) -> RawParts {
        self.raw(place, &self.parts[1])
    }

    pub(crate) fn attended(&self, place: &Arc<Place>) -> RawAttended {
        RawAttended { starts: self.starts.reads(place), intervals: self.intervals.reads(place) }
    }
}

/// `Tiles` of `kernels/attention.cuh`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct RawTiles {
    items: u64,
    visits: u64,
    table: u64,
    count: i64,
}

// SAFETY: laid out as C does.
unsafe impl Argument for RawTiles {}

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

impl DeviceLists {
    fn new(place: &Arc<Place>, lists: &TileLists) -> Self {
        let TileLists { items, visits, table } = lists;
        let parts: [&[u8]; 3] =
            [bytemuck::cast_slice(items), bytemuck::cast_slice(visits), bytemuck::cast_slice(table)];
        let bytes = parts.concat();
        let visits_at = size_of_val(&items[..]) as u64;
        let table_at = visits_at + size_of_val(&visits[..]) as u64;
        DeviceLists { memory: place.list(&bytes), visits: visits_at, table: table_at, items: items.len() }
    }

    fn raw(&self, place: &Arc<Place>) -> RawTiles {
        let items = self.memory.reads(place);
        RawTiles { items, visits: items + self.visits, table: items + self.table, count: self.items as i64 }
    }
}

impl CudaTiles {
    fn attended(&self) -> &AttendedKeys {
        self.attended.get_or_init(|| AttendedKeys::new(&self.cells))
    }

    fn queries(&self, place: &Arc<Place>) -> RawTiles {
        let lists = || DeviceLists::new(&self.place, &TileLists::by_queries(self.attended(), SIZES));
        self.queries.get_or_init(lists).raw(place)
    }

    fn keys(&self, place: &Arc<Place>) -> RawTiles {
        let lists = || DeviceLists::new(&self.place, &TileLists::by_keys(self.attended(), SIZES));
        self.keys.get_or_init(lists).raw(place)
    }

    /// Rows of each sequence in both buffers.
    pub(crate) fn blocks(&self) -> &[Block] {
        &self.cells.blocks
    }

    /// The lists of the unfused kernels.
    pub(crate) fn sequences(&self, q_heads: usize) -> Arc<SequenceLists> {
        let mut made = self.sequences.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, lists)) = made.iter().find(|(heads, _)| *heads == q_heads) {
            return lists.clone();
        }
        let lists = Arc::new(SequenceLists::new(&self.place, self.blocks(), self.attended(), q_heads));
        made.push((q_heads, lists.clone()));
        lists
    }

    /// Checks the buffers that a tile is used with.
    pub(crate) fn expect(&self, queries: usize, keys: usize) {
        assert_eq!((self.cells.queries, self.cells.keys), (queries, keys), "rows of the tile, and of q and kv");
    }
}

/// Which kernels compute heads of a shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// With products of tensor cores, compiled for the dimensions.
    TensorCores(Dims),
    /// Element by element, for all dimensions and types.
    General,
}

impl<T: CudaFloat> Cuda<T> {
    /// Whether a block of this GPU has the shared memory that kernels for tensor cores need, and a grid all heads, which
    /// these do not go round.
    fn has_room(&self, shape: &AttentionShape) -> bool {
        use tensor_cores::{backward_keys, backward_queries, forward};

        let needed = [forward, backward_keys, backward_queries].map(|of| of(shape).1);
        shape.q_heads <= MOST_Y && needed.into_iter().all(|bytes| bytes <= self.place().shared_memory())
    }

    /// The kernels for these matrices; nothing if there are none.
    fn way(&self, op: &'static str, shape: &AttentionShape, views: &[RawView]) -> Option<Way> {
        let AttentionShape { qk_dim, v_dim, .. } = *shape;
        if qk_dim.max(v_dim) > MOST_FEATURES {
            let heads = format!("heads of {qk_dim} and {v_dim} features");
            self.place().fail(op, format!("{heads} are not computed on GPUs: at most {MOST_FEATURES}"));
            return None;
        }
        // Copies move 16 bytes at a time.
        let is_aligned = |view: &RawView| {
            view.address.is_multiple_of(16) && (view.rows <= 1 || (view.stride * size_of::<T>() as i64) % 16 == 0)
        };
        let way = match Dims::of(qk_dim, v_dim) {
            Dims::Any => Way::General,
            dims if T::DTYPE != DType::F32 && views.iter().all(is_aligned) && self.has_room(shape) => {
                Way::TensorCores(dims)
            }
            _ => Way::General,
        };
        Some(way)
    }
}

/// Threads and bytes of shared memory of the kernels that go element by element, unfused ones among them: `THREADS` and
/// `SHARED_BYTES` of `kernels/tile_products.cuh`.
pub(crate) const GENERAL: (u32, u32) = (256, 4 * (2 * 64 * 36 + 64 * 68));

/// A block per item and head.
fn geometry(tiles: &RawTiles, heads: usize, (threads, shared): (u32, u32)) -> Geometry {
    Geometry::grid(tiles.count as usize, heads, threads, shared)
}

impl<T: CudaFloat> Attention for Cuda<T> {
    type Tiles = Arc<CudaTiles>;

    fn tiles(&self, cells: &TileCells) -> Arc<CudaTiles> {
        let (cells, place) = (cells.clone(), self.place().clone());
        let [queries, keys] = [OnceLock::new(), OnceLock::new()];
        Arc::new(CudaTiles { cells, place, attended: OnceLock::new(), queries, keys, sequences: Mutex::default() })
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
        if q.is_empty() {
            return;
        }
        let place = self.place();
        let (q, kv) = (RawView::of(place, q), RawView::of(place, kv));
        let (out, lse) = (RawView::of_mut(place, out), RawView::of_mut(place, lse));
        let Some(way) = self.way("attention", shape, &[q, kv]) else { return };
        let tiles = tiles.queries(place);
        let arguments = (RawShape::new(shape), q, kv, tiles, out, lse);
        let (kernel, dims, launched) = match way {
            Way::General => (Kernel::AttentionForwardGeneral, Dims::Any, GENERAL),
            Way::TensorCores(dims) => (Kernel::AttentionForward, dims, tensor_cores::forward(shape)),
        };
        let geometry = geometry(&tiles, shape.q_heads, launched);
        arguments.launch(place, kernel.variant(suffix_of::<T>(), dims), geometry);
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
        if q.is_empty() || kv.is_empty() {
            return;
        }
        let place = self.place();
        let (q, kv, dout) = (RawView::of(place, q), RawView::of(place, kv), RawView::of(place, dout));
        let (lse, delta) = (RawView::of(place, lse), RawView::of(place, delta));
        let (dq, dkv) = (RawView::of_mut(place, dq), RawView::of_mut(place, dkv));
        let Some(way) = self.way("attention_backward", shape, &[q, kv, dout]) else { return };
        let (keys, queries) = (tiles.keys(place), tiles.queries(place));
        let raw = RawShape::new(shape);
        let suffix = suffix_of::<T>();
        let (by_keys, by_queries, dims, launched) = match way {
            Way::General => {
                (Kernel::AttentionBackwardKeysGeneral, Kernel::AttentionBackwardQueriesGeneral, Dims::Any, [GENERAL; 2])
            }
            Way::TensorCores(dims) => (
                Kernel::AttentionBackwardKeys,
                Kernel::AttentionBackwardQueries,
                dims,
                [tensor_cores::backward_keys(shape), tensor_cores::backward_queries(shape)],
            ),
        };
        if keys.count > 0 {
            let geometry = geometry(&keys, shape.kv_heads, launched[0]);
            (raw, q, kv, keys, dout, lse, delta, dkv).launch(place, by_keys.variant(suffix, dims), geometry);
        }
        let geometry = geometry(&queries, shape.q_heads, launched[1]);
        (raw, q, kv, queries, dout, lse, delta, dq).launch(place, by_queries.variant(suffix, dims), geometry);
    }
}

/// What the kernels for tensor cores are launched with, by features of a query and of a value: see
/// `kernels/attention_forward.cu` and `kernels/attention_backward.cu`, whose constants these are.
mod tensor_cores {
    use super::SIZES;
    use crate::ops::attention::AttentionShape;

    /// Heads whose kernels take smaller steps, or split what they compute, so that it fits.
    const WIDE: usize = 384;
    const NARROW: usize = 128;

    /// Bytes of a number.
    const ELEM: usize = 2;

    /// Threads of a block: a warp for 16 rows of its tile.
    const THREADS: u32 = 128;

    /// Threads and bytes of shared memory of the forward pass: the queries, and two stages of keys and values.
    pub(super) fn forward(shape: &AttentionShape) -> (u32, u32) {
        let bytes = ELEM * (SIZES.queries * shape.qk_dim + 2 * SIZES.keys * (shape.qk_dim + shape.v_dim));
        (THREADS, bytes as u32)
    }

    /// Of the gradient of keys and values: these, and two stages of queries with their gradients and two numbers.
    pub(super) fn backward_keys(shape: &AttentionShape) -> (u32, u32) {
        let features = shape.qk_dim + shape.v_dim;
        let step = if features > NARROW { 32 } else { 64 };
        let threads = if features > WIDE { 2 * THREADS } else { THREADS };
        (threads, ((SIZES.keys + 2 * step) * features * ELEM + 2 * step * 12) as u32)
    }

    /// Of the gradient of queries: these with theirs, and two stages of keys and values.
    pub(super) fn backward_queries(shape: &AttentionShape) -> (u32, u32) {
        let features = shape.qk_dim + shape.v_dim;
        let step = if features > WIDE { 32 } else { 64 };
        (THREADS, ((SIZES.queries + 2 * step) * features * ELEM) as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text of a file of `kernels/`.
    macro_rules! text {
        ($file:literal) => {
            include_str!(concat!("../../../kernels/", $file))
        };
    }

    #[test]
    fn kernels_are_launched_as_they_say() {
        let shape = |qk_dim, v_dim| AttentionShape { q_heads: 1, kv_heads: 1, qk_dim, v_dim, scale: 1.0 };
        let products = text!("tile_products.cuh");
        let constants = ["TILE = 64;", "THREADS = 256,", "DEPTH = 32,", "DEPTH_STRIDE = DEPTH + 4,"];
        assert!(constants.iter().all(|constant| products.contains(constant)), "GENERAL is of other constants");
        assert!(
            products.contains("TILE_STRIDE = TILE + 4;") && products.contains("4 * (FACTORS + TILE * TILE_STRIDE)")
        );
        let forward = text!("attention_forward.cu");
        assert!(forward.contains("(64, 64) 40960, (128, 128) 81920, (192, 128) 106496, (256, 256) 163840"));
        assert!(
            forward.contains("THREADS = ROWS * 2;")
                && forward.contains("SHARED_BYTES = QUERY_BYTES + 2 * STAGE_BYTES;")
        );
        let bytes = [(64, 64), (128, 128), (192, 128), (256, 256)].map(|(qk, v)| tensor_cores::forward(&shape(qk, v)));
        assert_eq!(bytes, [40, 80, 104, 160].map(|kilobytes| (128, kilobytes << 10)));
        let backward = text!("attention_backward.cu");
        for rule in [
            "SPLIT = QK_DIM + V_DIM > 384;",
            "QUERIES_THREADS = ROWS * 2, KEYS_THREADS = SPLIT ? KEYS * 4 : KEYS * 2;",
            "QUERIES_STEP = QK_DIM + V_DIM > 384 ? 32 : 64, KEYS_STEP = QK_DIM + V_DIM > 128 ? 32 : 64;",
            "QUERIES_SHARED_BYTES = (ROWS + 2 * QUERIES_STEP) * ROW_BYTES;",
            "KEYS_SHARED_BYTES = (KEYS + 2 * KEYS_STEP) * ROW_BYTES + 2 * KEYS_STEP * 12;",
        ] {
            assert!(backward.contains(rule), "tensor_cores has other rules than {rule}");
        }
        let wide = shape(256, 256);
        let keys = (64 + 2 * 32) * 1024 + 2 * 32 * 12;
        assert_eq!((tensor_cores::backward_keys(&wide), tensor_cores::backward_queries(&wide).0), ((256, keys), 128));
    }
}
