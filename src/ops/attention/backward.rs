//! The backward pass (FlashAttention-2, Dao 2023): probabilities are computed again from the log-sum-exp.

use std::ops::Range;

use num_traits::{Float as _, Zero as _};

use crate::ops::attention::AttentionShape;
use crate::ops::attention::pack::{pack, pack_keys, pack_scaled, pack_values};
use crate::ops::attention::schedule::{BLOCK, TILE, TileSchedule, Visit};
use crate::ops::matmul::{GemmMut, GemmRef, gemm};
use crate::ops::simd;
use crate::ops::transpose::transpose;
use crate::ops::workers::for_each;
use crate::tensor::{Buffer, Cpu, Float, MatrixMut, MatrixRef, Real, product};

/// Key blocks of one unit of work. The number is fixed, so that sums are grouped the same for any number of threads.
const SEGMENT: usize = 16;

/// What the backward pass reads.
pub(super) struct Inputs<'a, T: Float> {
    pub(super) device: &'a Cpu<T>,
    pub(super) shape: &'a AttentionShape,
    pub(super) schedule: &'a TileSchedule,
    pub(super) q: MatrixRef<'a, T>,
    pub(super) kv: MatrixRef<'a, T>,
    pub(super) dout: MatrixRef<'a, T>,
    pub(super) lse: MatrixRef<'a, T::Acc>,
    pub(super) delta: MatrixRef<'a, T::Acc>,
}

/// Gradients of one unit: one query head and the keys of one segment.
struct Unit<'a, A> {
    /// `[queries, qk_dim]`, without the scale; only rows that the segment's visits have.
    dq: &'a mut [A],
    /// `[SEGMENT * BLOCK, qk_dim]`; only visited blocks.
    dk: &'a mut [A],
    /// `[SEGMENT * BLOCK, v_dim]`; only visited blocks.
    dv: &'a mut [A],
}

/// Memory for several units, one behind the other.
struct Units<A> {
    dq: Buffer<A>,
    dk: Buffer<A>,
    dv: Buffer<A>,
    /// Elements of one unit; at least 1.
    sizes: [usize; 3],
}

impl<A: Real> Units<A> {
    fn new<T: Float<Acc = A>>(device: &Cpu<T>, count: usize, sizes: [usize; 3]) -> Self {
        let [dq, dk, dv] = sizes.map(|size| device.scratch(product(&[count, size])));
        Units { dq, dk, dv, sizes: sizes.map(|size| size.max(1)) }
    }

    /// The units; none where there are no queries or no keys.
    fn iter_mut(&mut self) -> impl Iterator<Item = Unit<'_, A>> {
        let [q, k, v] = self.sizes;
        let parts = self.dq.chunks_exact_mut(q).zip(self.dk.chunks_exact_mut(k)).zip(self.dv.chunks_exact_mut(v));
        parts.map(|((dq, dk), dv)| Unit { dq, dk, dv })
    }
}

/// What one thread works on: a tile and a block.
struct Scratch<A> {
    /// Keys `[block, qk_dim]` and `[qk_dim, block]`.
    k: Buffer<A>,
    k_transposed: Buffer<A>,
    /// Values `[block, v_dim]` and `[v_dim, block]`.
    v: Buffer<A>,
    v_transposed: Buffer<A>,
    /// Queries times scale `[TILE, qk_dim]`, output gradients `[TILE, v_dim]`.
    q: Buffer<A>,
    dout: Buffer<A>,
    /// Probabilities and gradients of the scores `[TILE, BLOCK]`.
    p: Buffer<A>,
    ds: Buffer<A>,
    attended: Buffer<i64>,
}

impl<T: Float> Inputs<'_, T> {
    /// Adds the gradients. Units run in parallel, as many at a time as there are threads; their results are added
    /// one after the other, so the bits do not depend on the number of threads.
    pub(super) fn run(&self, mut dq: MatrixMut<'_, T::Acc>, mut dkv: MatrixMut<'_, T::Acc>) {
        let (shape, device) = (self.shape, self.device);
        let segments = self.schedule.blocks().div_ceil(SEGMENT);
        let units = product(&[shape.q_heads, segments]);
        let wave = device.threads().min(units);
        let keys = self.kv.rows().min(SEGMENT * BLOCK);
        let sizes = [[self.q.rows(), shape.qk_dim], [keys, shape.qk_dim], [keys, shape.v_dim]];
        let mut results = Units::new(device, wave, sizes.map(|size| product(&size)));
        for first in (0..units).step_by(wave.max(1)) {
            let count = wave.min(units - first);
            for_each(
                device,
                count,
                results.iter_mut().take(count).enumerate(),
                || Scratch::new(device, shape, self.schedule),
                |scratch, (task, mut unit)| {
                    let (head, segment) = ((first + task) / segments, (first + task) % segments);
                    self.unit(head, self.segment(segment), scratch, &mut unit);
                },
            );
            for (task, unit) in results.iter_mut().enumerate().take(count) {
                let (head, segment) = ((first + task) / segments, (first + task) % segments);
                self.add(head, self.segment(segment), &unit, &mut dq, &mut dkv);
            }
        }
    }

    /// Blocks of a segment.
    fn segment(&self, segment: usize) -> Range<usize> {
        segment * SEGMENT..self.schedule.blocks().min((segment + 1) * SEGMENT)
    }

    /// The query rows that some visit of these blocks has, from the first to the last.
    fn rows(&self, blocks: Range<usize>) -> Range<usize> {
        let visits = || blocks.clone().flat_map(|block| self.schedule.of_block(block));
        let from = visits().map(|visit| visit.rows.start).min().unwrap_or(0);
        from..visits().map(|visit| visit.rows.end).max().unwrap_or(0)
    }

    fn unit(&self, head: usize, blocks: Range<usize>, scratch: &mut Scratch<T::Acc>, unit: &mut Unit<'_, T::Acc>) {
        let (shape, schedule) = (self.shape, self.schedule);
        let (d, dv) = (shape.qk_dim, shape.v_dim);
        let kv_head = head / shape.group();
        let rows = self.rows(blocks.clone());
        unit.dq[rows.start * d..rows.end * d].fill(T::Acc::zero());
        let first = blocks.start * BLOCK;
        for block in blocks {
            let keys = schedule.block_rows(block);
            if schedule.of_block(block).len() == 0 {
                continue;
            }
            pack_keys(shape, schedule, self.kv, kv_head, block, &mut scratch.k);
            transpose((&scratch.k, d), keys.len(), d, (&mut scratch.k_transposed, keys.len()));
            pack_values(shape, schedule, self.kv, kv_head, block, &mut scratch.v);
            transpose((&scratch.v, dv), keys.len(), dv, (&mut scratch.v_transposed, keys.len()));
            let dk = &mut unit.dk[(keys.start - first) * d..(keys.end - first) * d];
            let dv = &mut unit.dv[(keys.start - first) * dv..(keys.end - first) * dv];
            dk.fill(T::Acc::zero());
            dv.fill(T::Acc::zero());
            for visit in schedule.of_block(block) {
                self.visit(head, visit, scratch, unit.dq, dk, dv);
            }
        }
    }

    /// Adds what a tile and a block give to `dq` (all queries), `dk` and `dv` (the block).
    fn visit(
        &self,
        head: usize,
        visit: &Visit,
        scratch: &mut Scratch<T::Acc>,
        dq: &mut [T::Acc],
        dk: &mut [T::Acc],
        dv: &mut [T::Acc],
    ) {
        let Scratch { k, k_transposed, v_transposed, q, dout, p, ds, attended, .. } = scratch;
        let (d, width) = (self.shape.qk_dim, self.shape.v_dim);
        let block = self.schedule.block_rows(visit.block);
        let first = visit.keys.start - block.start;
        let (rows, keys) = (visit.rows.len(), visit.keys.len());
        let scale = T::Acc::from_f64(self.shape.scale);
        pack_scaled(self.q, visit.rows.clone(), head * d..(head + 1) * d, scale, q);
        pack(self.dout, visit.rows.clone(), head * width..(head + 1) * width, dout);
        let q = GemmRef::new(q, rows, d, d);
        let dout = GemmRef::new(dout, rows, width, width);

        gemm(GemmMut::new(p, rows, keys, keys), q, GemmRef::new(&k_transposed[first..], d, keys, block.len()), false);
        let values = GemmRef::new(&v_transposed[first..], width, keys, block.len());
        gemm(GemmMut::new(ds, rows, keys, keys), dout, values, false);
        let scores = p.chunks_exact_mut(keys).zip(ds.chunks_exact_mut(keys));
        for (row, (p, ds)) in visit.rows.clone().zip(scores) {
            let lse = self.lse.row(row)[head];
            if lse == T::Acc::neg_infinity() {
                p.fill(T::Acc::zero());
                ds.fill(T::Acc::zero());
                continue;
            }
            if !visit.full {
                self.schedule.mask(visit, row, p, attended);
            }
            simd::exp_grad(p, ds, lse, self.delta.row(row)[head]);
        }
        let (p, ds) = (GemmRef::new(p, rows, keys, keys), GemmRef::new(ds, rows, keys, keys));
        gemm(GemmMut::new(&mut dv[first * width..], keys, width, width), p.transposed(), dout, true);
        gemm(GemmMut::new(&mut dk[first * d..], keys, d, d), ds.transposed(), q, true);
        let dq = GemmMut::new(&mut dq[visit.rows.start * d..], rows, d, d);
        gemm(dq, ds, GemmRef::new(&k[first * d..], keys, d, d), true);
    }

    /// Adds a unit's gradients to all.
    fn add(
        &self,
        head: usize,
        blocks: Range<usize>,
        unit: &Unit<'_, T::Acc>,
        dq: &mut MatrixMut<'_, T::Acc>,
        dkv: &mut MatrixMut<'_, T::Acc>,
    ) {
        let (shape, schedule) = (self.shape, self.schedule);
        let (d, width) = (shape.qk_dim, shape.v_dim);
        let scale = T::Acc::from_f64(shape.scale);
        for row in self.rows(blocks.clone()) {
            let to = &mut dq.row_mut(row)[head * d..(head + 1) * d];
            to.iter_mut().zip(&unit.dq[row * d..]).for_each(|(to, &from)| *to += scale * from);
        }
        let kv_head = head / shape.group();
        let (k_column, v_column) = (kv_head * d, shape.k_width() + kv_head * width);
        let first = blocks.start * BLOCK;
        for block in blocks.filter(|&block| schedule.of_block(block).len() > 0) {
            for key in schedule.block_rows(block) {
                let to = dkv.row_mut(key);
                let dk = &unit.dk[(key - first) * d..][..d];
                to[k_column..][..d].iter_mut().zip(dk).for_each(|(to, &from)| *to += from);
                let dv = &unit.dv[(key - first) * width..][..width];
                to[v_column..][..width].iter_mut().zip(dv).for_each(|(to, &from)| *to += from);
            }
        }
    }
}

impl<A: Real> Scratch<A> {
    fn new<T: Float<Acc = A>>(device: &Cpu<T>, shape: &AttentionShape, schedule: &TileSchedule) -> Self {
        Scratch {
            k: device.scratch(product(&[BLOCK, shape.qk_dim])),
            k_transposed: device.scratch(product(&[BLOCK, shape.qk_dim])),
            v: device.scratch(product(&[BLOCK, shape.v_dim])),
            v_transposed: device.scratch(product(&[BLOCK, shape.v_dim])),
            q: device.scratch(product(&[TILE, shape.qk_dim])),
            dout: device.scratch(product(&[TILE, shape.v_dim])),
            p: device.scratch(TILE * BLOCK),
            ds: device.scratch(TILE * BLOCK),
            attended: device.scratch(schedule.mask_scratch()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::attention::Attention;
    use crate::ops::testing::*;
    use crate::order::Run;
    use crate::plan::{Piece, TileCells};
    use crate::tensor::{Device, Matrix};

    /// Gradients of queries, and of keys and values, through one piece.
    fn gradients<T: Float>(rows: usize, keys: usize, v_dim: usize, [d_lo, d_hi]: [i64; 2]) -> [Vec<f64>; 2] {
        let shape = AttentionShape { q_heads: 2, kv_heads: 2, qk_dim: 16, v_dim, scale: 0.25 };
        let device = Cpu::<T>::new(1);
        let run = |len| Run { start: 0, step: 1, len };
        let pieces = [Piece { q_row: 0, k_row: 0, q: run(rows), k: run(keys), d_lo, d_hi }];
        let (q, kv) = (random(1, rows, shape.q_width()), random(2, keys, shape.kv_width()));
        let (mut out, mut lse) = (poisoned(rows, shape.out_width()), poisoned(rows, 2));
        let (q, kv): (&Matrix<T>, &Matrix<T>) = (&q, &kv);
        let (q, kv) = (q.view(), kv.view());
        let tiles = device.tiles(&TileCells::new(rows, keys, pieces));
        device.attention(&shape, q, kv, &tiles, out.view_mut(), lse.view_mut());
        let dout = random(3, rows, shape.out_width());
        let mut delta = device.matrix(rows, 2);
        device.attention_delta(&shape, out.view(), dout.view(), delta.view_mut());
        let mut dq = device.zero_matrix(rows, shape.q_width());
        let mut dkv = device.zero_matrix(keys, shape.kv_width());
        let (lse, delta, targets) = (lse.view(), delta.view(), (dq.view_mut(), dkv.view_mut()));
        device.attention_backward(&shape, q, kv, &tiles, dout.view(), lse, delta, targets.0, targets.1);
        [wide(&dq), wide(&dkv)]
    }

    /// The gradient of a score is the probability times the difference of two sums, equal if there is one key.
    #[test]
    fn with_a_single_key_the_scores_have_exactly_no_gradient() {
        for (rows, v_dim) in [(1, 1), (1, 24), (1, 257), (2, 2), (3, 64), (70, 24), (130, 258)] {
            let what = format!("{rows} rows, {v_dim} features");
            // One row of keys and values, and as many as queries with each its own.
            for (keys, band) in [(1, [-1 << 40, 0]), (rows, [0, 0])] {
                let single = gradients::<f32>(rows, keys, v_dim, band);
                let double = gradients::<f64>(rows, keys, v_dim, band);
                for [dq, dkv] in [single, double] {
                    assert!(dq.iter().all(|x| *x == 0.0), "{what}, {keys} keys: {dq:?}");
                    let rows = dkv.chunks(32 + 2 * v_dim);
                    assert!(rows.clone().all(|row| row[..32].iter().all(|x| *x == 0.0)), "{what}, {keys} keys");
                    assert!(rows.clone().all(|row| row[32..].iter().any(|x| *x != 0.0)), "values have a gradient");
                }
            }
        }
    }
}
