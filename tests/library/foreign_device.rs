//! A device that is not the library's: it implements what attention over ranks asks for, and nothing else, one element
//! after another. It attends through the handler.

use std::sync::Arc;

use context_parallel::comm::threads;
use context_parallel::degree::Runtime;
use context_parallel::error::Result;
use context_parallel::handler::CpHandler;
use context_parallel::kernel::Flash;
use context_parallel::layout::{Batch, Packed, Thd};
use context_parallel::mask::Mask;
use context_parallel::model::init::Normal;
use context_parallel::ops::attention::{Attention, AttentionShape};
use context_parallel::ops::loss::CrossEntropy;
use context_parallel::ops::matmul::Matmul;
use context_parallel::ops::optimizer::Optimizer;
use context_parallel::ops::rotary::Rotate;
use context_parallel::ops::rows::MoveRows;
use context_parallel::ops::unfused::UnfusedAttention;
use context_parallel::oracle::{self, F64_BOUND};
use context_parallel::order::{Full, Rows, Striped, Zigzag};
use context_parallel::plan::{Piece, TileCells};
use context_parallel::rope::{Rope, RopeConfig};
use context_parallel::strategy::{AllGather, Ring, Supports, Ulysses};
use context_parallel::tensor::{
    Buffer, Device, Element, Float, Host, Ledger, MatrixMut, MatrixRef, Pool, PoolStats, Real, Storage,
};
use static_assertions::assert_not_impl_any;

/// Stores and computes in `f64`.
#[derive(Clone)]
struct Plain {
    pool: Arc<Pool>,
}

impl std::fmt::Debug for Plain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Plain")
    }
}

assert_not_impl_any!(Plain: CrossEntropy, Matmul, Optimizer, UnfusedAttention);

type Ref<'a> = MatrixRef<'a, f64>;
type Mut<'a> = MatrixMut<'a, f64>;

impl Device for Plain {
    type Elem = f64;
    type Acc = f64;
    type Storage = Host;

    fn empty<T: Element>(&self, len: usize) -> Buffer<T> {
        Buffer::empty(&self.pool, len)
    }

    fn zeros<T: Element>(&self, len: usize) -> Buffer<T> {
        Buffer::zeros(&self.pool, len)
    }

    fn write<T: Element>(&self, values: &[T], mut target: MatrixMut<'_, T>) {
        let cols = target.cols();
        (0..target.rows()).for_each(|row| target.row_mut(row).copy_from_slice(&values[row * cols..(row + 1) * cols]));
    }

    fn read<'a, T: Element>(&self, from: impl Into<MatrixRef<'a, T>>) -> Result<Vec<T>> {
        Ok(from.into().to_vec())
    }

    fn reserve(&self, _bytes: usize) -> Result<()> {
        Ok(())
    }

    fn duplicate<T: Element>(&self, buffer: &Buffer<T>) -> Buffer<T> {
        Host::part(buffer, 0..buffer.len())
    }

    fn memory(&self) -> PoolStats {
        self.pool.stats()
    }

    fn ledger(&self) -> &Arc<Ledger> {
        self.pool.ledger()
    }

    fn seal(&self) {}
}

impl MoveRows for Plain {
    type Rows = Vec<usize>;

    fn rows(&self, rows: &Rows) -> Vec<usize> {
        rows.iter().collect()
    }

    fn gather_rows<T: Element>(&self, source: MatrixRef<'_, T>, rows: &Vec<usize>, mut target: MatrixMut<'_, T>) {
        rows.iter().enumerate().for_each(|(i, &row)| target.row_mut(i).copy_from_slice(source.row(row)));
    }

    fn scatter_rows<T: Element>(&self, source: MatrixRef<'_, T>, rows: &Vec<usize>, mut target: MatrixMut<'_, T>) {
        rows.iter().enumerate().for_each(|(i, &row)| target.row_mut(row).copy_from_slice(source.row(i)));
    }

    fn scatter_add_rows<T: Real>(&self, source: MatrixRef<'_, T>, rows: &Vec<usize>, mut target: MatrixMut<'_, T>) {
        for (i, &row) in rows.iter().enumerate() {
            target.row_mut(row).iter_mut().zip(source.row(i)).for_each(|(sum, &x)| *sum += x);
        }
    }

    fn copy<T: Element>(&self, source: MatrixRef<'_, T>, mut target: MatrixMut<'_, T>) {
        (0..source.rows()).for_each(|row| target.row_mut(row).copy_from_slice(source.row(row)));
    }

    fn fill<T: Element>(&self, mut x: MatrixMut<'_, T>, value: T) {
        (0..x.rows()).for_each(|row| x.row_mut(row).fill(value));
    }

    fn add<T: Float>(&self, mut x: MatrixMut<'_, T>, y: MatrixRef<'_, T>) {
        for row in 0..x.rows() {
            let pairs = x.row_mut(row).iter_mut().zip(y.row(row));
            pairs.for_each(|(x, y)| *x = T::from_acc(x.to_acc() + y.to_acc()));
        }
    }

    fn to_acc(&self, x: Ref<'_>, y: Mut<'_>) {
        self.copy(x, y);
    }

    fn to_elem(&self, x: Ref<'_>, y: Mut<'_>) {
        self.copy(x, y);
    }
}

impl Rotate for Plain {
    fn rotate(&self, mut x: Mut<'_>, heads: usize, cos: Ref<'_>, sin: Ref<'_>, interleaved: bool, inverse: bool) {
        let (pairs, dim, sign) = (cos.cols(), x.cols() / heads, if inverse { -1.0 } else { 1.0 });
        for row in 0..x.rows() {
            for head in x.row_mut(row).chunks_mut(dim) {
                for pair in 0..pairs {
                    let (a, b) = if interleaved { (2 * pair, 2 * pair + 1) } else { (pair, pair + pairs) };
                    let (c, s) = (cos.row(row)[pair], sign * sin.row(row)[pair]);
                    (head[a], head[b]) = (head[a] * c - head[b] * s, head[b] * c + head[a] * s);
                }
            }
        }
    }
}

/// Each attended cell once: query row and head, key row and columns of its key and value, and the score.
fn cells(shape: &AttentionShape, q: Ref<'_>, kv: Ref<'_>, pieces: &[Piece], mut each: impl FnMut([usize; 5], f64)) {
    let (d, width) = (shape.qk_dim, shape.v_dim);
    for piece in pieces {
        for (i, row) in piece.q_rows().enumerate() {
            for key in piece.keys(i) {
                for head in 0..shape.q_heads {
                    let kv_head = head / shape.group();
                    let (k_column, v_column) = (kv_head * d, shape.k_width() + kv_head * width);
                    let (query, key_row) = (&q.row(row)[head * d..][..d], &kv.row(key)[k_column..][..d]);
                    let score = query.iter().zip(key_row).map(|(q, k)| q * k).sum::<f64>() * shape.scale;
                    each([row, head, key, k_column, v_column], score);
                }
            }
        }
    }
}

impl Attention for Plain {
    type Tiles = Arc<[Piece]>;

    fn tiles(&self, cells: &TileCells) -> Arc<[Piece]> {
        cells.pieces.clone()
    }

    fn attention(
        &self,
        shape: &AttentionShape,
        q: Ref<'_>,
        kv: Ref<'_>,
        pieces: &Arc<[Piece]>,
        mut out: Mut<'_>,
        mut lse: Mut<'_>,
    ) {
        self.clear(out.reborrow());
        (0..lse.rows()).for_each(|row| lse.row_mut(row).fill(f64::NEG_INFINITY));
        cells(shape, q, kv, pieces, |[row, head, ..], score| {
            let lse = &mut lse.row_mut(row)[head];
            let (large, small) = (lse.max(score), lse.min(score));
            *lse = large + (small - large).exp().ln_1p();
        });
        let width = shape.v_dim;
        cells(shape, q, kv, pieces, |[row, head, key, _, column], score| {
            let p = (score - lse.row(row)[head]).exp();
            let (out, values) = (&mut out.row_mut(row)[head * width..][..width], &kv.row(key)[column..][..width]);
            out.iter_mut().zip(values).for_each(|(out, v)| *out += p * v);
        });
    }

    fn attention_merge(
        &self,
        shape: &AttentionShape,
        mut out: Mut<'_>,
        mut lse: Mut<'_>,
        part_out: Ref<'_>,
        part_lse: Ref<'_>,
    ) {
        let width = shape.v_dim;
        for (row, head) in (0..out.rows()).flat_map(|row| (0..shape.q_heads).map(move |head| (row, head))) {
            let (old, part) = (lse.row(row)[head], part_lse.row(row)[head]);
            if part == f64::NEG_INFINITY {
                continue;
            }
            let most = old.max(part);
            let total = most + ((old - most).exp() + (part - most).exp()).ln();
            let (keep, take) = ((old - total).exp(), (part - total).exp());
            let parts = &part_out.row(row)[head * width..][..width];
            let sums = out.row_mut(row)[head * width..][..width].iter_mut();
            sums.zip(parts).for_each(|(out, part)| *out = keep * *out + take * part);
            lse.row_mut(row)[head] = total;
        }
    }

    fn attention_delta(&self, shape: &AttentionShape, out: Ref<'_>, dout: Ref<'_>, mut delta: Mut<'_>) {
        for (row, head) in (0..out.rows()).flat_map(|row| (0..shape.q_heads).map(move |head| (row, head))) {
            let columns = head * shape.v_dim..(head + 1) * shape.v_dim;
            let pairs = out.row(row)[columns.clone()].iter().zip(&dout.row(row)[columns]);
            delta.row_mut(row)[head] = pairs.map(|(a, b)| a * b).sum();
        }
    }

    fn attention_backward(
        &self,
        shape: &AttentionShape,
        q: Ref<'_>,
        kv: Ref<'_>,
        pieces: &Arc<[Piece]>,
        dout: Ref<'_>,
        lse: Ref<'_>,
        delta: Ref<'_>,
        mut dq: Mut<'_>,
        mut dkv: Mut<'_>,
    ) {
        let (d, width) = (shape.qk_dim, shape.v_dim);
        cells(shape, q, kv, pieces, |[row, head, key, k_column, v_column], score| {
            let p = (score - lse.row(row)[head]).exp();
            let dout = &dout.row(row)[head * width..][..width];
            let dp = dout.iter().zip(&kv.row(key)[v_column..]).map(|(a, b)| a * b).sum::<f64>();
            let ds = shape.scale * p * (dp - delta.row(row)[head]);
            for i in 0..d {
                dq.row_mut(row)[head * d + i] += ds * kv.row(key)[k_column + i];
                dkv.row_mut(key)[k_column + i] += ds * q.row(row)[head * d + i];
            }
            dout.iter().enumerate().for_each(|(i, dout)| dkv.row_mut(key)[v_column + i] += p * dout);
        });
    }
}

const SHAPE: AttentionShape = AttentionShape { q_heads: 4, kv_heads: 2, qk_dim: 6, v_dim: 5, scale: 0.4 };

/// Relative errors of output and gradients of rotated queries and keys.
fn errors<H: Supports<Thd, Flash>>(strategy: H, mask: &Mask) -> [f64; 4] {
    let batch = Arc::new(Packed::from_lengths(&[11, 0, 1, 24]).unwrap());
    let widths = [SHAPE.q_width(), SHAPE.k_width(), SHAPE.v_width(), SHAPE.out_width()];
    let mut normal = Normal::new(4, 0);
    let operands = widths.map(|width| (0..batch.tokens() * width).map(|_| normal.draw()).collect::<Vec<f64>>());

    let found = threads::run(strategy.degree(), |comm| {
        let device = Plain { pool: Pool::new() };
        let handler = CpHandler::<H, Thd, _, _>::new(strategy.clone(), device, comm)?;
        let placement = handler.place(batch.clone())?;
        let plan = handler.plan(&placement, mask)?;
        let rope = Rope::new(RopeConfig::plain(SHAPE.qk_dim, 100.0))?;
        let rotary = handler.get_emb_on_this_cp_rank(&rope, &placement)?;
        let mut shards = Vec::new();
        for (values, width) in operands.iter().zip(widths) {
            let full = Full::<Thd, f64>::from_batch_first(values, width, batch.clone())?;
            shards.push(handler.dispatch(&placement, &full)?);
        }
        handler.apply_rotary_pos_emb(&rotary, &mut shards[0], SHAPE.q_heads)?;
        handler.apply_rotary_pos_emb(&rotary, &mut shards[1], SHAPE.kv_heads)?;
        let mut shards = shards.into_iter().map(Arc::new);
        let mut next = || shards.next().expect("four operands");
        let [q, k, v, dout] = [next(), next(), next(), next()];
        let (out, attended) = handler.attend(&plan, &SHAPE, q, k, v)?;
        let [mut dq, mut dk, dv] = attended.backward(&handler, &dout)?;
        handler.apply_rotary_pos_emb_backward(&rotary, &mut dq, SHAPE.q_heads)?;
        handler.apply_rotary_pos_emb_backward(&rotary, &mut dk, SHAPE.kv_heads)?;
        let mut whole = Vec::new();
        for shard in [out, dq, dk, dv] {
            whole.push(handler.combine(&shard)?.to_batch_first());
        }
        Ok(whole)
    });
    let found = found.unwrap().swap_remove(0);

    let positions: Vec<usize> = [11, 0, 1, 24].into_iter().flat_map(|len| 0..len).collect();
    let rotary = oracle::Rotation {
        head_dim: SHAPE.qk_dim,
        base: 100.0,
        percent: 1.0,
        interleaved: false,
        interpolation: None,
        stretch: oracle::Stretch::None,
    };
    let q = rotary.rotate(&operands[0], SHAPE.q_heads, &positions);
    let k = rotary.rotate(&operands[1], SHAPE.kv_heads, &positions);
    let attends = oracle::attends(mask, &oracle::documents(&[11, 0, 1, 24], &[11, 0, 1, 24]));
    let AttentionShape { q_heads: query, kv_heads: key_value, qk_dim, v_dim, scale } = SHAPE;
    let heads = oracle::Heads { query, key_value, qk_dim, v_dim, scale };
    let mut answer = oracle::Answer::new(batch.tokens(), heads, &*attends, [&q, &k, &operands[2], &operands[3]]);
    answer.tensors[1] = rotary.rotate_backward(&answer.tensors[1], SHAPE.q_heads, &positions);
    answer.tensors[2] = rotary.rotate_backward(&answer.tensors[2], SHAPE.kv_heads, &positions);
    answer.errors(std::array::from_fn(|i| found[i].as_slice()))
}

#[test]
fn a_device_that_only_attends_attends_through_the_handler() {
    for mask in [Mask::Causal, Mask::Full, Mask::Window { left: Some(5), right: Some(1) }] {
        for ranks in [1, 2, 3] {
            let strategies = [
                errors(Ring::<_, Zigzag>::new(Runtime(ranks)), &mask),
                errors(Ring::<_, Striped>::new(Runtime(ranks)), &mask),
                errors(AllGather::<_, Zigzag>::new(Runtime(ranks)), &mask),
            ];
            for errors in strategies {
                assert!(errors.iter().all(|&error| error < F64_BOUND), "{mask:?} on {ranks} ranks: {errors:?}");
            }
        }
        let swapped = errors(Ulysses::<_, Zigzag>::new(Runtime(2)), &mask);
        assert!(swapped.iter().all(|&error| error < F64_BOUND), "{mask:?} with exchanged heads: {swapped:?}");
    }
}
