//! Unfused attention on the processor: scores, softmax and products one after the other, head by head.

use std::ops::Range;
use std::sync::Arc;

use crate::ops::attention::pack::{pack, pack_scaled};
use crate::ops::attention::{AttentionShape, TileSchedule, mask_row};
use crate::ops::matmul::{GemmMut, GemmRef, gemm_on, target};
use crate::ops::rows::MoveRows;
use crate::ops::simd;
use crate::ops::transpose::transpose;
use crate::ops::unfused::{UnfusedAttention, cells};
use crate::plan::{Piece, TileCells};
use crate::tensor::{Buffer, Cpu, Float, MatrixMut, MatrixRef, Real, product};

impl<T: Float> UnfusedAttention for Cpu<T> {
    fn unfused(
        &self,
        shape: &AttentionShape,
        q: MatrixRef<'_, T>,
        kv: MatrixRef<'_, T>,
        tiles: &Arc<TileSchedule>,
        mut out: MatrixMut<'_, T::Acc>,
        probabilities: &mut Buffer<T::Acc>,
    ) {
        let (queries, _) = shape.expect_inputs(q.size(), kv.size());
        shape.expect_outputs(queries, out.size());
        let (d, width) = (shape.qk_dim, shape.v_dim);
        let TileCells { pieces, blocks, .. } = tiles.expect(&q, &kv);
        assert_eq!(probabilities.len(), cells(shape, blocks), "probabilities of other blocks");
        let mut rest = &mut probabilities[..];
        let mut attended = self.scratch::<i64>(2 * pieces.len());
        self.clear(out.reborrow());
        for (queries, keys) in blocks.iter().filter(|(queries, keys)| !queries.is_empty() && !keys.is_empty()) {
            let (rows, cols) = (queries.len(), keys.len());
            let pieces: Vec<&Piece> = pieces
                .iter()
                .filter(|piece| overlap(&piece.q_rows(), queries) && overlap(&piece.k_rows(), keys))
                .collect();
            let mut packs = Packs::new(self, shape, rows, cols);
            for head in 0..shape.q_heads {
                let p;
                (p, rest) = rest.split_at_mut(rows * cols);
                let columns = Columns::new(shape, head);
                pack_scaled(q, queries.clone(), columns.q, T::Acc::from_f64(shape.scale), &mut packs.q);
                pack(kv, keys.clone(), columns.k, &mut packs.k);
                transpose((&packs.k, d), cols, d, (&mut packs.k_transposed, cols));
                pack(kv, keys.clone(), columns.v, &mut packs.v);
                let (lhs, rhs) = (GemmRef::new(&packs.q, rows, d, d), GemmRef::new(&packs.k_transposed, d, cols, cols));
                gemm_on(self, GemmMut::new(p, rows, cols, cols), lhs, rhs, false);
                for (row, scores) in queries.clone().zip(p.chunks_exact_mut(cols)) {
                    mask_row(pieces.iter().copied(), row, keys.clone(), scores, &mut attended);
                    softmax(scores);
                }
                let out = out.reborrow().row_range(queries.clone()).column_range(columns.out);
                let (lhs, rhs) = (GemmRef::new(p, rows, cols, cols), GemmRef::new(&packs.v, cols, width, width));
                gemm_on(self, target(out), lhs, rhs, false);
            }
        }
    }

    fn unfused_backward(
        &self,
        shape: &AttentionShape,
        q: MatrixRef<'_, T>,
        kv: MatrixRef<'_, T>,
        tiles: &Arc<TileSchedule>,
        probabilities: &Buffer<T::Acc>,
        dout: MatrixRef<'_, T>,
        mut dq: MatrixMut<'_, T::Acc>,
        mut dkv: MatrixMut<'_, T::Acc>,
    ) {
        let (queries, keys) = shape.expect_inputs(q.size(), kv.size());
        shape.expect_outputs(queries, dout.size());
        shape.expect_gradients((queries, keys), dq.size(), dkv.size());
        let TileCells { blocks, .. } = tiles.expect(&q, &kv);
        assert_eq!(probabilities.len(), cells(shape, blocks), "probabilities of other blocks");
        let (d, width) = (shape.qk_dim, shape.v_dim);
        let scale = T::Acc::from_f64(shape.scale);
        let mut rest = &probabilities[..];
        for (queries, keys) in blocks.iter().filter(|(queries, keys)| !queries.is_empty() && !keys.is_empty()) {
            let (rows, cols) = (queries.len(), keys.len());
            let mut packs = Packs::new(self, shape, rows, cols);
            let mut ds = self.scratch::<T::Acc>(rows * cols);
            for head in 0..shape.q_heads {
                let p;
                (p, rest) = rest.split_at(rows * cols);
                let columns = Columns::new(shape, head);
                pack(q, queries.clone(), columns.q.clone(), &mut packs.q);
                pack(kv, keys.clone(), columns.k.clone(), &mut packs.k);
                pack(kv, keys.clone(), columns.v.clone(), &mut packs.v);
                pack(dout, queries.clone(), columns.out, &mut packs.out);
                let values = GemmRef::new(&packs.v, cols, width, width);
                let dout = GemmRef::new(&packs.out, rows, width, width);
                gemm_on(self, GemmMut::new(&mut ds, rows, cols, cols), dout, values.transposed(), false);
                for (p, ds) in p.chunks_exact(cols).zip(ds.chunks_exact_mut(cols)) {
                    let delta = simd::dot(p, ds);
                    p.iter().zip(ds).for_each(|(&p, ds)| *ds = scale * p * (*ds - delta));
                }
                let p = GemmRef::new(p, rows, cols, cols);
                let ds = GemmRef::new(&ds, rows, cols, cols);
                let (queries_packed, keys_packed) =
                    (GemmRef::new(&packs.q, rows, d, d), GemmRef::new(&packs.k, cols, d, d));
                let dq = dq.reborrow().row_range(queries.clone()).column_range(columns.q);
                gemm_on(self, target(dq), ds, keys_packed, true);
                let mut dkv = dkv.reborrow().row_range(keys.clone());
                let dk = dkv.reborrow().column_range(columns.k);
                gemm_on(self, target(dk), ds.transposed(), queries_packed, true);
                let dv = dkv.column_range(columns.v);
                gemm_on(self, target(dv), p.transposed(), dout, true);
            }
        }
    }
}

fn overlap(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start < b.end && b.start < a.end
}

/// Softmax in place; all 0 where every score is `-inf`.
fn softmax<A: Real>(scores: &mut [A]) {
    let most = simd::max(scores);
    if most == A::neg_infinity() && scores.iter().all(|&score| score == most) {
        scores.fill(A::zero());
        return;
    }
    let sum = simd::exp_sum(scores, most);
    scores.iter_mut().for_each(|p| *p /= sum);
}

/// Where a query head finds its columns: in `q`, in `kv` (keys and values), and in `out`.
struct Columns {
    q: Range<usize>,
    k: Range<usize>,
    v: Range<usize>,
    out: Range<usize>,
}

impl Columns {
    fn new(shape: &AttentionShape, head: usize) -> Self {
        let kv_head = head / shape.group();
        let (d, width) = (shape.qk_dim, shape.v_dim);
        let v = shape.k_width() + kv_head * width;
        Columns {
            q: head * d..(head + 1) * d,
            k: kv_head * d..(kv_head + 1) * d,
            v: v..v + width,
            out: head * width..(head + 1) * width,
        }
    }
}

/// One head's rows, contiguous.
struct Packs<A> {
    q: Buffer<A>,
    k: Buffer<A>,
    k_transposed: Buffer<A>,
    v: Buffer<A>,
    out: Buffer<A>,
}

impl<A: Real> Packs<A> {
    fn new<T: Float<Acc = A>>(device: &Cpu<T>, shape: &AttentionShape, queries: usize, keys: usize) -> Self {
        Packs {
            q: device.scratch(product(&[queries, shape.qk_dim])),
            k: device.scratch(product(&[keys, shape.qk_dim])),
            k_transposed: device.scratch(product(&[keys, shape.qk_dim])),
            v: device.scratch(product(&[keys, shape.v_dim])),
            out: device.scratch(product(&[queries, shape.v_dim])),
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;
    use num_traits::Float as _;
    use rand::{RngExt, SeedableRng};
    use rand_xoshiro::Xoshiro256PlusPlus;

    use super::*;
    use crate::ops::attention::Attention;
    use crate::order::Run;
    use crate::tensor::{Device, Matrix};

    /// Two sequences of 300 and 70 rows, one of none, causal with a window of 200.
    const LENGTHS: [usize; 3] = [300, 0, 70];

    /// All queries and keys.
    fn whole() -> TileCells {
        let blocks = [(0..300, 0..300), (300..300, 300..300), (300..370, 300..370)];
        TileCells::new(370, 370, pieces(0..370)).with_blocks(blocks)
    }

    /// The pieces of the queries `rows`, as rows of a buffer that holds just these.
    fn pieces(rows: Range<usize>) -> Vec<Piece> {
        let mut start = 0;
        let mut pieces = Vec::new();
        for len in LENGTHS {
            let q = start.max(rows.start)..(start + len).min(rows.end);
            if !q.is_empty() {
                pieces.push(Piece {
                    q_row: q.start - rows.start,
                    k_row: start,
                    q: Run { start: q.start, step: 1, len: q.len() },
                    k: Run { start, step: 1, len },
                    d_lo: -200,
                    d_hi: 0,
                });
            }
            start += len;
        }
        pieces
    }

    fn random<T: Float>(rows: usize, cols: usize, seed: u64) -> Matrix<T> {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let values: Vec<T> = (0..rows * cols).map(|_| T::from_f64(rng.random::<f64>() * 4.0 - 2.0)).collect();
        Matrix::from_slice(&values, rows, cols)
    }

    const SHAPE: AttentionShape = AttentionShape { q_heads: 4, kv_heads: 2, qk_dim: 16, v_dim: 24, scale: 0.25 };

    fn unfused<T: Float>(
        device: &Cpu<T>,
        (q, kv): (&Matrix<T>, &Matrix<T>),
        cells: &TileCells,
        out: &mut Matrix<T::Acc>,
    ) -> Buffer<T::Acc> {
        let mut probabilities = device.empty(super::cells(&SHAPE, &cells.blocks));
        device.unfused(&SHAPE, q.view(), kv.view(), &device.tiles(cells), out.view_mut(), &mut probabilities);
        probabilities
    }

    fn run<T: Float>(device: &Cpu<T>) -> [Matrix<T::Acc>; 3] {
        let (q, kv, dout) =
            (random(370, SHAPE.q_width(), 1), random(370, SHAPE.kv_width(), 2), random(370, SHAPE.out_width(), 3));
        let mut out = device.matrix::<T::Acc>(370, SHAPE.out_width());
        out.fill(T::Acc::nan());
        let p = unfused(device, (&q, &kv), &whole(), &mut out);
        let (mut dq, mut dkv) = (device.zero_matrix(370, SHAPE.q_width()), device.zero_matrix(370, SHAPE.kv_width()));
        let (q, kv, dout, targets) = (q.view(), kv.view(), dout.view(), (dq.view_mut(), dkv.view_mut()));
        device.unfused_backward(&SHAPE, q, kv, &device.tiles(&whole()), &p, dout, targets.0, targets.1);
        [out, dq, dkv]
    }

    fn tiled<T: Float>(device: &Cpu<T>) -> [Matrix<T::Acc>; 3] {
        let (q, kv, dout) =
            (random(370, SHAPE.q_width(), 1), random(370, SHAPE.kv_width(), 2), random(370, SHAPE.out_width(), 3));
        let (mut out, mut lse) = (device.matrix(370, SHAPE.out_width()), device.matrix(370, SHAPE.q_heads));
        let (q, kv, dout) = (q.view(), kv.view(), dout.view());
        let tiles = device.tiles(&whole());
        device.attention(&SHAPE, q, kv, &tiles, out.view_mut(), lse.view_mut());
        let mut delta = device.matrix(370, SHAPE.q_heads);
        device.attention_delta(&SHAPE, out.view(), dout, delta.view_mut());
        let (mut dq, mut dkv) = (device.zero_matrix(370, SHAPE.q_width()), device.zero_matrix(370, SHAPE.kv_width()));
        let (lse, delta, targets) = (lse.view(), delta.view(), (dq.view_mut(), dkv.view_mut()));
        device.attention_backward(&SHAPE, q, kv, &tiles, dout, lse, delta, targets.0, targets.1);
        [out, dq, dkv]
    }

    fn agrees<T: Float>(bound: f64) {
        for threads in [1, 2] {
            let device = Cpu::<T>::new(threads);
            for (unfused, tiled) in run(&device).iter().zip(&tiled(&device)) {
                let norm = tiled.iter().map(|x| x.to_f64().powi(2)).sum::<f64>().sqrt();
                let pairs = unfused.iter().zip(tiled.iter());
                let error = pairs.map(|(a, b)| (a.to_f64() - b.to_f64()).powi(2)).sum::<f64>().sqrt() / norm;
                assert!(error < bound, "{} on {threads} threads: {error}", T::DTYPE);
            }
        }
    }

    /// The tiled kernel is held against dense sums in its own tests.
    #[test]
    fn agrees_with_the_tiled_kernel() {
        agrees::<f64>(1e-14);
        agrees::<f32>(1e-6);
        agrees::<bf16>(1e-6);
    }

    #[test]
    fn probabilities_sum_to_one_and_rows_without_keys_are_zero() {
        let device = Cpu::<f32>::new(1);
        let (q, kv) = (random(370, SHAPE.q_width(), 1), random(370, SHAPE.kv_width(), 2));
        let mut out = device.matrix(370, SHAPE.out_width());
        out.fill(f32::NAN);
        let first = TileCells { pieces: whole().pieces[..1].into(), ..whole() };
        let p = unfused(&device, (&q, &kv), &first, &mut out);
        let (whole, rest) = p.split_at(300 * 300 * SHAPE.q_heads);
        assert!(whole.chunks(300).all(|row| (row.iter().sum::<f32>() - 1.0).abs() < 1e-5));
        assert!(rest.iter().chain(&out[300 * SHAPE.out_width()..]).all(|x| *x == 0.0));
    }

    #[test]
    fn a_query_has_the_same_bits_whatever_other_queries_there_are() {
        let device = Cpu::<f32>::new(1);
        let whole = &run(&device)[0];
        let (q, kv) = (random::<f32>(370, SHAPE.q_width(), 1), random(370, SHAPE.kv_width(), 2));
        for rows in [0..1, 17..19, 255..300, 100..171] {
            let some = Matrix::from_slice(
                &q[rows.start * SHAPE.q_width()..rows.end * SHAPE.q_width()],
                rows.len(),
                SHAPE.q_width(),
            );
            let mut out = device.matrix(rows.len(), SHAPE.out_width());
            let cells = TileCells::new(rows.len(), 370, pieces(rows.clone()));
            unfused(&device, (&some, &kv), &cells.with_blocks([(0..rows.len(), 0..300)]), &mut out);
            let expected = &whole[rows.start * SHAPE.out_width()..rows.end * SHAPE.out_width()];
            assert!(out.iter().zip(expected).all(|(a, b)| a.to_bits() == b.to_bits()), "{rows:?}");
        }
    }
}
