//! Attention on the processor: the forward pass, the merge of partial results, and what backward needs of both.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use crate::elementary::{exp, ln, ln_1p};
use crate::ops::attention::pack::{pack_keys, pack_scaled, pack_values};
use crate::ops::attention::schedule::{BLOCK, TILE, TileSchedule};
use crate::ops::attention::{Attention, AttentionShape, backward};
use crate::ops::matmul::{GemmMut, GemmRef, gemm};
use crate::ops::simd;
use crate::ops::transpose::transpose;
use crate::ops::workers::{Wide, for_each, for_each_task};
use crate::plan::TileCells;
use crate::tensor::{Buffer, Cpu, Float, MatrixMut, MatrixRef, Real, product};

impl<T: Float> Attention for Cpu<T> {
    type Tiles = Arc<TileSchedule>;

    fn tiles(&self, cells: &TileCells) -> Arc<TileSchedule> {
        Arc::new(TileSchedule::new(cells))
    }

    fn attention(
        &self,
        shape: &AttentionShape,
        q: MatrixRef<'_, T>,
        kv: MatrixRef<'_, T>,
        schedule: &Arc<TileSchedule>,
        mut out: MatrixMut<'_, T::Acc>,
        mut lse: MatrixMut<'_, T::Acc>,
    ) {
        let (queries, _) = shape.expect_inputs(q.size(), kv.size());
        shape.expect_outputs(queries, out.size());
        shape.expect_numbers(queries, lse.size());
        schedule.expect(&q, &kv);
        // Heads whose keys and values are packed at the same time: as many as there are threads, to bound memory.
        let wave = self.threads().min(shape.kv_heads);
        let block_size = product(&[BLOCK, shape.qk_dim + shape.v_dim]);
        let mut packs = self.scratch::<T::Acc>(product(&[wave, schedule.blocks(), block_size]));
        // Heads of a tile have columns of the same rows; each task holds the lock only while it copies.
        let results = Mutex::new((out.reborrow(), lse.reborrow()));
        for first in (0..shape.kv_heads).step_by(wave) {
            let heads = first..shape.kv_heads.min(first + wave);
            self.pack_blocks(shape, schedule, kv, heads.clone(), &mut packs);
            let q_heads = heads.len() * shape.group();
            for_each_task(
                self,
                schedule.tiles() * q_heads,
                || Scratch::new(self, shape, schedule),
                |scratch, task| {
                    // The last tiles of a causal mask take longest, so they come first.
                    let (tile, head) = (schedule.tiles() - 1 - task / q_heads, task % q_heads);
                    let size = schedule.blocks() * block_size;
                    let blocks = &packs[head / shape.group() * size..][..size];
                    let head = heads.start * shape.group() + head;
                    scratch.forward(shape, schedule, q, blocks, tile, head);
                    let (out, lse) = &mut *results.lock().unwrap_or_else(PoisonError::into_inner);
                    scratch.write(shape, schedule.tile_rows(tile), head, out, lse);
                },
            );
        }
    }

    fn attention_merge(
        &self,
        shape: &AttentionShape,
        mut out: MatrixMut<'_, T::Acc>,
        mut lse: MatrixMut<'_, T::Acc>,
        part_out: MatrixRef<'_, T::Acc>,
        part_lse: MatrixRef<'_, T::Acc>,
    ) {
        shape.expect();
        [out.size(), part_out.size()].into_iter().for_each(|size| shape.expect_outputs(out.rows(), size));
        [lse.size(), part_lse.size()].into_iter().for_each(|size| shape.expect_numbers(out.rows(), size));
        for row in 0..out.rows() {
            let parts = part_out.row(row).chunks_exact(shape.v_dim).zip(part_lse.row(row));
            let heads = out.row_mut(row).chunks_exact_mut(shape.v_dim).zip(lse.row_mut(row));
            for ((out, lse), (part, &part_lse)) in heads.zip(parts) {
                merge(out, lse, part, part_lse);
            }
        }
    }

    fn attention_delta(
        &self,
        shape: &AttentionShape,
        out: MatrixRef<'_, T::Acc>,
        dout: MatrixRef<'_, T>,
        mut delta: MatrixMut<'_, T::Acc>,
    ) {
        shape.expect();
        [out.size(), dout.size()].into_iter().for_each(|size| shape.expect_outputs(out.rows(), size));
        shape.expect_numbers(out.rows(), delta.size());
        let dout = Wide::new(self, dout);
        for row in 0..out.rows() {
            let heads = out.row(row).chunks_exact(shape.v_dim).zip(dout.row(row).chunks_exact(shape.v_dim));
            let pairs = delta.row_mut(row).iter_mut().zip(heads);
            pairs.for_each(|(delta, (out, dout))| *delta = simd::dot(out, dout));
        }
    }

    fn attention_backward(
        &self,
        shape: &AttentionShape,
        q: MatrixRef<'_, T>,
        kv: MatrixRef<'_, T>,
        schedule: &Arc<TileSchedule>,
        dout: MatrixRef<'_, T>,
        lse: MatrixRef<'_, T::Acc>,
        delta: MatrixRef<'_, T::Acc>,
        dq: MatrixMut<'_, T::Acc>,
        dkv: MatrixMut<'_, T::Acc>,
    ) {
        let (queries, keys) = shape.expect_inputs(q.size(), kv.size());
        shape.expect_gradients((queries, keys), dq.size(), dkv.size());
        shape.expect_outputs(queries, dout.size());
        [lse.size(), delta.size()].into_iter().for_each(|numbers| shape.expect_numbers(queries, numbers));
        schedule.expect(&q, &kv);
        backward::Inputs { device: self, shape, schedule, q, kv, dout, lse, delta }.run(dq, dkv);
    }
}

/// Merges one head of one query: the part with the larger share stays in place and the other moves it, so that many
/// merges in a row round as little as one.
fn merge<A: Real>(out: &mut [A], lse: &mut A, part: &[A], part_lse: A) {
    if part_lse == A::neg_infinity() {
        return;
    }
    if *lse == A::neg_infinity() {
        out.copy_from_slice(part);
        *lse = part_lse;
        return;
    }
    let ratio = exp(-num_traits::Float::abs(*lse - part_lse));
    let share = ratio / (A::one() + ratio);
    if part_lse > *lse {
        out.iter_mut().zip(part).for_each(|(out, &part)| *out = part + (*out - part) * share);
        *lse = part_lse + ln_1p(ratio);
    } else {
        out.iter_mut().zip(part).for_each(|(out, &part)| *out += (part - *out) * share);
        *lse += ln_1p(ratio);
    }
}

impl<T: Float> Cpu<T> {
    /// Packs every visited block of some key/value heads: per head and block, keys `[qk_dim, block]`, then values
    /// `[block, v_dim]`.
    fn pack_blocks(
        &self,
        shape: &AttentionShape,
        schedule: &TileSchedule,
        kv: MatrixRef<'_, T>,
        heads: Range<usize>,
        packs: &mut Buffer<T::Acc>,
    ) {
        let (k_size, v_size) = (BLOCK * shape.qk_dim, BLOCK * shape.v_dim);
        let tasks = heads.len() * schedule.blocks();
        for_each(
            self,
            tasks,
            packs.chunks_exact_mut(k_size + v_size).take(tasks).enumerate(),
            || self.scratch::<T::Acc>(k_size),
            |scratch, (task, pack)| {
                let (head, block) = (heads.start + task / schedule.blocks(), task % schedule.blocks());
                if schedule.of_block(block).len() == 0 {
                    return;
                }
                let (k, v) = pack.split_at_mut(k_size);
                pack_keys(shape, schedule, kv, head, block, scratch);
                let keys = schedule.block_rows(block).len();
                transpose((scratch, shape.qk_dim), keys, shape.qk_dim, (k, keys));
                pack_values(shape, schedule, kv, head, block, v);
            },
        );
    }
}

/// What one thread works on: one tile of one query head.
struct Scratch<A> {
    /// Queries times scale `[TILE, qk_dim]`.
    q: Buffer<A>,
    /// Scores, then unnormalised probabilities `[TILE, BLOCK]`.
    s: Buffer<A>,
    /// Sums of probabilities times values `[TILE, v_dim]`, relative to `most`.
    o: Buffer<A>,
    /// Largest score so far, per row.
    most: Buffer<A>,
    /// Sum of probabilities so far, per row, relative to `most`.
    sum: Buffer<A>,
    attended: Buffer<i64>,
}

impl<A: Real> Scratch<A> {
    fn new<T: Float<Acc = A>>(device: &Cpu<T>, shape: &AttentionShape, schedule: &TileSchedule) -> Self {
        Scratch {
            q: device.scratch(product(&[TILE, shape.qk_dim])),
            s: device.scratch(TILE * BLOCK),
            o: device.scratch(product(&[TILE, shape.v_dim])),
            most: device.scratch(TILE),
            sum: device.scratch(TILE),
            attended: device.scratch(schedule.mask_scratch()),
        }
    }

    /// Runs over the key blocks of a tile, online softmax. A row that attends nothing of a block leaves it with the
    /// bits that it had.
    fn forward<T: Float<Acc = A>>(
        &mut self,
        shape: &AttentionShape,
        schedule: &TileSchedule,
        q: MatrixRef<'_, T>,
        blocks: &[A],
        tile: usize,
        head: usize,
    ) {
        let Scratch { q: q_tile, s, o, most, sum, attended } = self;
        let (d, dv) = (shape.qk_dim, shape.v_dim);
        o.fill(A::zero());
        most.fill(A::neg_infinity());
        sum.fill(A::zero());
        let tile_rows = schedule.tile_rows(tile);
        let visits = schedule.of_tile(tile);
        let from = visits.iter().map(|visit| visit.rows.start).min().unwrap_or(0);
        let to = visits.iter().map(|visit| visit.rows.end).max().unwrap_or(0);
        let at = |row: usize| row - tile_rows.start;
        if from < to {
            let columns = head * d..(head + 1) * d;
            pack_scaled(q, from..to, columns, A::from_f64(shape.scale), &mut q_tile[at(from) * d..]);
        }
        for visit in visits {
            let block = schedule.block_rows(visit.block);
            let pack = &blocks[visit.block * BLOCK * (d + dv)..][..BLOCK * (d + dv)];
            let (k, v) = pack.split_at(BLOCK * d);
            let first = visit.keys.start - block.start;
            let (rows, keys) = (visit.rows.len(), visit.keys.len());
            let tile_at = at(visit.rows.start);
            gemm(
                GemmMut::new(s, rows, keys, keys),
                GemmRef::new(&q_tile[tile_at * d..], rows, d, d),
                GemmRef::new(&k[first..], d, keys, block.len()),
                false,
            );
            for (row, scores) in visit.rows.clone().zip(s.chunks_exact_mut(keys)) {
                if !visit.full {
                    schedule.mask(visit, row, scores, attended);
                }
                let (most, sum) = (&mut most[at(row)], &mut sum[at(row)]);
                let larger = simd::max(scores).max(*most);
                // NaN scores are no maximum either, but must not pass for an empty row.
                if larger == A::neg_infinity() && scores.iter().all(|&score| score == larger) {
                    scores.fill(A::zero());
                    continue;
                }
                if larger > *most {
                    let factor = exp(*most - larger);
                    *sum *= factor;
                    o[at(row) * dv..][..dv].iter_mut().for_each(|o| *o *= factor);
                    *most = larger;
                }
                *sum += simd::exp_sum(scores, larger);
            }
            gemm(
                GemmMut::new(&mut o[tile_at * dv..], rows, dv, dv),
                GemmRef::new(s, rows, keys, keys),
                GemmRef::new(&v[first * dv..], keys, dv, dv),
                true,
            );
        }
    }

    /// Writes the outputs and log-sum-exps of one head of a tile, which is of these rows.
    fn write(
        &self,
        shape: &AttentionShape,
        rows: Range<usize>,
        head: usize,
        out: &mut MatrixMut<'_, A>,
        lse: &mut MatrixMut<'_, A>,
    ) {
        let dv = shape.v_dim;
        for (row, at) in rows.enumerate() {
            let (out, lse) = (&mut out.row_mut(at)[head * dv..][..dv], &mut lse.row_mut(at)[head]);
            let sum = self.sum[row];
            if sum == A::zero() {
                out.fill(A::zero());
                *lse = A::neg_infinity();
                continue;
            }
            // A zero has no sign here, whatever underflowed on the way to it.
            let o = &self.o[row * dv..][..dv];
            out.iter_mut().zip(o).for_each(|(out, &o)| *out = o / sum + A::zero());
            *lse = self.most[row] + ln(sum);
        }
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
