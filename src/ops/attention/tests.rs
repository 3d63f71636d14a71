//! Attention against dense sums in `f64`, and bit for bit against itself under splits of the queries and threads.

use half::{bf16, f16};
use rand::{RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

use super::*;
use crate::order::Run;
use crate::plan::Piece;
use crate::tensor::{Device, Matrix};

/// Who attends whom: tokens of the same document with `-left <= k - q <= right`.
#[derive(Clone)]
struct Case {
    documents: Vec<usize>,
    left: i64,
    right: i64,
    /// Tokens of the query rows and of the key rows.
    q: Vec<Run>,
    k: Vec<Run>,
}

const FAR: i64 = 1 << 40;

impl Case {
    /// All tokens of some documents, in order.
    fn natural(documents: &[usize], left: i64, right: i64) -> Self {
        let all = vec![run(0, 1, documents.iter().sum())];
        Case { documents: documents.to_vec(), left, right, q: all.clone(), k: all }
    }

    fn with_queries(&self, q: Vec<Run>) -> Self {
        Case { q, ..self.clone() }
    }

    fn document(&self, token: usize) -> usize {
        let end = |document: usize| self.documents[..=document].iter().sum::<usize>();
        (0..self.documents.len()).find(|&document| token < end(document)).unwrap_or(self.documents.len())
    }

    fn tokens(runs: &[Run]) -> Vec<usize> {
        runs.iter().flat_map(|run| (0..run.len).map(|i| run.token(i))).collect()
    }

    fn attends(&self, q: usize, k: usize) -> bool {
        let distance = k as i64 - q as i64;
        self.document(q) == self.document(k) && -self.left <= distance && distance <= self.right
    }

    /// The parts of runs that lie in one document, each with its first row.
    fn parts(&self, runs: &[Run], document: usize) -> Vec<(usize, Run)> {
        let mut row = 0;
        let mut parts = Vec::new();
        for whole in runs {
            let inside: Vec<usize> = (0..whole.len).filter(|&i| self.document(whole.token(i)) == document).collect();
            if let Some(&first) = inside.first() {
                parts.push((row + first, run(whole.token(first), whole.step, inside.len())));
            }
            row += whole.len;
        }
        parts
    }

    fn pieces(&self) -> Vec<Piece> {
        let mut pieces = Vec::new();
        for document in 0..self.documents.len() {
            for (q_row, q) in self.parts(&self.q, document) {
                for (k_row, k) in self.parts(&self.k, document) {
                    pieces.push(Piece { q_row, k_row, q, k, d_lo: -self.left, d_hi: self.right });
                }
            }
        }
        pieces.sort_by_key(|piece| (piece.q_row, piece.k_row));
        pieces
    }

    fn tiles<T: Float>(&self, device: &Cpu<T>) -> Arc<TileSchedule> {
        let rows = |runs: &[Run]| Case::tokens(runs).len();
        device.tiles(&TileCells::new(rows(&self.q), rows(&self.k), self.pieces()))
    }
}

fn run(start: usize, step: usize, len: usize) -> Run {
    Run { start, step, len }
}

/// Values that depend on the token alone, so that a subset of the rows has the same ones.
fn values<T: Float>(tokens: &[usize], cols: usize, seed: u64) -> Matrix<T> {
    let mut all = Vec::with_capacity(tokens.len() * cols);
    for &token in tokens {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed * 1_000_003 + token as u64);
        // Sums of uniform numbers are close enough to a normal distribution of variance 1.
        all.extend(
            (0..cols).map(|_| T::from_f64((0..4).map(|_| rng.random::<f64>() - 0.5).sum::<f64>() * 3f64.sqrt())),
        );
    }
    Matrix::from_slice(&all, tokens.len(), cols)
}

fn poisoned<T: Float>(rows: usize, cols: usize) -> Matrix<T> {
    Matrix::from_slice(&vec![T::from_f64(f64::NAN); rows * cols], rows, cols)
}

struct Inputs<T> {
    q: Matrix<T>,
    kv: Matrix<T>,
    dout: Matrix<T>,
}

impl<T: Float> Inputs<T> {
    fn new(case: &Case, shape: &AttentionShape) -> Self {
        let (q, k) = (Case::tokens(&case.q), Case::tokens(&case.k));
        Inputs {
            q: values(&q, shape.q_width(), 1),
            kv: values(&k, shape.kv_width(), 2),
            dout: values(&q, shape.out_width(), 3),
        }
    }
}

fn forward<T: Float>(
    device: &Cpu<T>,
    case: &Case,
    shape: &AttentionShape,
    inputs: &Inputs<T>,
) -> (Matrix<T::Acc>, Matrix<T::Acc>) {
    let rows = inputs.q.rows();
    let (mut out, mut lse) = (poisoned(rows, shape.out_width()), poisoned(rows, shape.q_heads));
    let tiles = case.tiles(device);
    device.attention(shape, inputs.q.view(), inputs.kv.view(), &tiles, out.view_mut(), lse.view_mut());
    (out, lse)
}

type Gradients<T> = (Matrix<<T as Float>::Acc>, Matrix<<T as Float>::Acc>);

fn backward<T: Float>(device: &Cpu<T>, case: &Case, shape: &AttentionShape, inputs: &Inputs<T>) -> Gradients<T> {
    let (out, lse) = forward(device, case, shape, inputs);
    let mut delta = poisoned::<T::Acc>(out.rows(), shape.q_heads);
    device.attention_delta(shape, out.view(), inputs.dout.view(), delta.view_mut());
    let mut dq = device.zero_matrix(inputs.q.rows(), shape.q_width());
    let mut dkv = device.zero_matrix(inputs.kv.rows(), shape.kv_width());
    let [q, kv, dout] = [&inputs.q, &inputs.kv, &inputs.dout].map(Matrix::view);
    let (lse, delta, targets) = (lse.view(), delta.view(), (dq.view_mut(), dkv.view_mut()));
    device.attention_backward(shape, q, kv, &case.tiles(device), dout, lse, delta, targets.0, targets.1);
    (dq, dkv)
}

/// Output, log-sum-exp, dq and dkv by the definition.
struct Dense {
    out: Vec<f64>,
    lse: Vec<f64>,
    dq: Vec<f64>,
    dkv: Vec<f64>,
}

fn dense<T: Float>(case: &Case, shape: &AttentionShape, inputs: &Inputs<T>) -> Dense {
    let (q_tokens, k_tokens) = (Case::tokens(&case.q), Case::tokens(&case.k));
    let wide = |m: &Matrix<T>| m.iter().map(|x| x.to_f64()).collect::<Vec<f64>>();
    let (q, kv, dout) = (wide(&inputs.q), wide(&inputs.kv), wide(&inputs.dout));
    let (d, dv) = (shape.qk_dim, shape.v_dim);
    let (qw, kvw, ow) = (shape.q_width(), shape.kv_width(), shape.out_width());
    let mut result = Dense {
        out: vec![0.0; q_tokens.len() * ow],
        lse: vec![f64::NEG_INFINITY; q_tokens.len() * shape.q_heads],
        dq: vec![0.0; q.len()],
        dkv: vec![0.0; kv.len()],
    };
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    for (i, &qt) in q_tokens.iter().enumerate() {
        let keys: Vec<usize> = (0..k_tokens.len()).filter(|&j| case.attends(qt, k_tokens[j])).collect();
        if keys.is_empty() {
            continue;
        }
        for head in 0..shape.q_heads {
            let kv_head = head * shape.kv_heads / shape.q_heads;
            let q_at = i * qw + head * d;
            let o_at = i * ow + head * dv;
            let k_at = |j: usize| j * kvw + kv_head * d;
            let v_at = |j: usize| j * kvw + shape.kv_heads * d + kv_head * dv;
            let scores: Vec<f64> =
                keys.iter().map(|&j| shape.scale * dot(&q[q_at..][..d], &kv[k_at(j)..][..d])).collect();
            let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = scores.iter().map(|s| (s - most).exp()).sum();
            result.lse[i * shape.q_heads + head] = most + sum.ln();
            let p: Vec<f64> = scores.iter().map(|s| (s - most).exp() / sum).collect();
            for (&j, p) in keys.iter().zip(&p) {
                (0..dv).for_each(|c| result.out[o_at + c] += p * kv[v_at(j) + c]);
            }
            let delta = dot(&result.out[o_at..][..dv], &dout[o_at..][..dv]);
            for (&j, p) in keys.iter().zip(&p) {
                let ds = shape.scale * p * (dot(&dout[o_at..][..dv], &kv[v_at(j)..][..dv]) - delta);
                for c in 0..d {
                    result.dq[q_at + c] += ds * kv[k_at(j) + c];
                    result.dkv[k_at(j) + c] += ds * q[q_at + c];
                }
                (0..dv).for_each(|c| result.dkv[v_at(j) + c] += p * dout[o_at + c]);
            }
        }
    }
    result
}

/// Norm of the difference over norm of the reference, or over that of unit values where the reference vanishes (a
/// window of 0 has dq = 0).
fn error<T: Float>(found: &[T], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let norm = expected.iter().map(|x| x * x).sum::<f64>().sqrt();
    let difference = found.iter().zip(expected).map(|(a, b)| (a.to_f64() - b).powi(2)).sum::<f64>().sqrt();
    let unit = (found.len() as f64).sqrt();
    difference / if norm < 1e-3 * unit { unit } else { norm }
}

fn shape(q_heads: usize, kv_heads: usize, qk_dim: usize, v_dim: usize) -> AttentionShape {
    AttentionShape { q_heads, kv_heads, qk_dim, v_dim, scale: 1.0 / (qk_dim as f64).sqrt() }
}

/// Masks over documents, lengths around block and tile sizes, strided and zigzag-like rows.
fn cases() -> Vec<(Case, AttentionShape)> {
    let mut cases = Vec::new();
    for len in [1, 2, 127, 255, 256, 257, 600] {
        cases.push((Case::natural(&[len], FAR, 0), shape(2, 1, 16, 16)));
    }
    cases.push((Case::natural(&[300], FAR, FAR), shape(4, 2, 64, 64)));
    cases.push((Case::natural(&[600], 100, 0), shape(2, 2, 80, 48)));
    cases.push((Case::natural(&[520], 0, 0), shape(1, 1, 8, 8)));
    cases.push((Case::natural(&[400], 30, 70), shape(3, 1, 24, 40)));
    cases.push((Case::natural(&[0, 1, 100, 37, 0, 260, 3, 130], FAR, 0), shape(2, 1, 16, 8)));
    let striped = Case::natural(&[700], FAR, 0).with_queries(vec![run(1, 3, 233)]);
    cases.push((Case { k: vec![run(2, 3, 232)], ..striped.clone() }, shape(2, 2, 16, 16)));
    cases.push((striped, shape(2, 2, 16, 16)));
    let zigzag = Case::natural(&[400, 240], 200, 0).with_queries(vec![
        run(0, 1, 100),
        run(300, 1, 100),
        run(400, 1, 60),
        run(580, 1, 60),
    ]);
    cases.push((
        Case { k: vec![run(100, 1, 200), run(460, 1, 120), run(0, 1, 100)], ..zigzag.clone() },
        shape(2, 1, 16, 16),
    ));
    cases.push((zigzag, shape(2, 1, 16, 16)));
    let mut stretched = shape(2, 1, 32, 1);
    stretched.scale = 0.9;
    cases.push((Case::natural(&[300], FAR, 0), stretched));
    cases
}

fn agrees<T: Float>(bound: f64) {
    for threads in [1, 2] {
        let device = Cpu::<T>::new(threads);
        for (index, (case, shape)) in cases().into_iter().enumerate() {
            let inputs = Inputs::<T>::new(&case, &shape);
            let expected = dense(&case, &shape, &inputs);
            let (out, lse) = forward(&device, &case, &shape, &inputs);
            let (dq, dkv) = backward(&device, &case, &shape, &inputs);
            for (lse, expected) in lse.iter().zip(&expected.lse) {
                let close = (lse.to_f64() - expected).abs() <= 4.0 * bound * expected.abs().max(1.0);
                assert!(close || lse.to_f64() == *expected, "case {index}: lse {} not {expected}", lse.to_f64());
            }
            let errors = [error(&out, &expected.out), error(&dq, &expected.dq), error(&dkv, &expected.dkv)];
            assert!(errors.iter().all(|error| *error <= bound), "case {index}, {threads} threads: {errors:?}");
        }
    }
}

#[test]
fn f32_agrees_with_dense_sums() {
    agrees::<f32>(1e-6);
}

#[test]
fn f64_agrees_with_dense_sums() {
    agrees::<f64>(1e-14);
}

#[test]
fn half_precision_agrees_with_dense_sums_of_the_same_inputs() {
    agrees::<bf16>(1e-6);
    agrees::<f16>(1e-6);
}

fn bits<T: Float>(values: &[T]) -> Vec<u8> {
    bytemuck::cast_slice(values).to_vec()
}

fn split_queries<T: Float>() {
    let device = Cpu::<T>::new(1);
    for (case, shape) in [
        (Case::natural(&[700], FAR, 0), shape(2, 1, 64, 64)),
        (Case::natural(&[641], FAR, FAR), shape(1, 1, 80, 48)),
        (Case::natural(&[600], 90, 0), shape(2, 2, 16, 24)),
        (Case::natural(&[5, 300, 0, 210, 130], FAR, 0), shape(2, 1, 24, 16)),
        (Case::natural(&[385], FAR, 5), shape(1, 1, 300, 1)),
    ] {
        let tokens: usize = case.documents.iter().sum();
        let (whole_out, whole_lse) = forward(&device, &case, &shape, &Inputs::new(&case, &shape));
        let subsets = [
            vec![run(0, 1, 1)],
            vec![run(tokens - 1, 1, 1)],
            vec![run(257, 1, 2)],
            vec![run(200, 1, 3), run(259, 1, 1)],
            vec![run(0, 1, tokens / 4), run(tokens - tokens / 4, 1, tokens / 4)],
            vec![run(tokens / 4, 1, tokens / 2)],
            vec![run(1, 3, tokens / 3)],
            vec![run(64, 1, 140)],
        ];
        for subset in subsets {
            let some = case.with_queries(subset);
            let (out, lse) = forward(&device, &some, &shape, &Inputs::new(&some, &shape));
            for (row, &token) in Case::tokens(&some.q).iter().enumerate() {
                assert_eq!(bits(out.row(row)), bits(whole_out.row(token)), "output of token {token}");
                assert_eq!(bits(lse.row(row)), bits(whole_lse.row(token)), "log-sum-exp of token {token}");
            }
        }
    }
}

#[test]
fn a_query_has_the_same_bits_whatever_other_queries_there_are() {
    split_queries::<f32>();
    split_queries::<f64>();
    split_queries::<bf16>();
}

#[test]
fn threads_do_not_change_a_bit() {
    for (case, shape) in
        [(Case::natural(&[600], FAR, 0), shape(6, 3, 32, 16)), (Case::natural(&[4500], 700, 0), shape(1, 1, 8, 8))]
    {
        let inputs = Inputs::<f32>::new(&case, &shape);
        let run = |threads| {
            let device = Cpu::new(threads);
            let (out, lse) = forward(&device, &case, &shape, &inputs);
            let (dq, dkv) = backward(&device, &case, &shape, &inputs);
            [bits(&out), bits(&lse), bits(&dq), bits(&dkv)]
        };
        let one = run(1);
        assert_eq!(one, run(2));
        assert_eq!(one, run(3));
    }
}

#[test]
fn merging_parts_gives_the_whole() {
    let shape = shape(2, 1, 16, 16);
    let device = Cpu::<f64>::new(1);
    let whole = Case::natural(&[400], FAR, 0);
    let parts = [run(0, 1, 130), run(130, 1, 70), run(350, 1, 50), run(200, 1, 150)]
        .map(|k| Case { k: vec![k], ..whole.clone() });
    let expected = dense(&whole, &shape, &Inputs::<f64>::new(&whole, &shape));
    let (mut out, mut lse) = (device.zero_matrix(400, 32), device.matrix(400, 2));
    lse.fill(f64::NEG_INFINITY);
    for part in &parts {
        let (part_out, part_lse) = forward(&device, part, &shape, &Inputs::new(part, &shape));
        device.attention_merge(&shape, out.view_mut(), lse.view_mut(), part_out.view(), part_lse.view());
    }
    assert!(error(&out, &expected.out) < 1e-14);
    assert!(error(&lse, &expected.lse) < 1e-14);

    // With the final log-sum-exp and delta, the gradients of the parts add up.
    let inputs = Inputs::<f64>::new(&whole, &shape);
    let mut delta = device.matrix(400, shape.q_heads);
    device.attention_delta(&shape, out.view(), inputs.dout.view(), delta.view_mut());
    let mut dq = device.zero_matrix(400, shape.q_width());
    for part in &parts {
        let Inputs { q, kv, dout } = Inputs::new(part, &shape);
        let mut dkv = device.zero_matrix(kv.rows(), shape.kv_width());
        let [q, kv, dout] = [&q, &kv, &dout].map(Matrix::view);
        let (lse, delta, targets) = (lse.view(), delta.view(), (dq.view_mut(), dkv.view_mut()));
        device.attention_backward(&shape, q, kv, &part.tiles(&device), dout, lse, delta, targets.0, targets.1);
        for (row, token) in Case::tokens(&part.k).into_iter().enumerate() {
            let expected = &expected.dkv[token * shape.kv_width()..][..shape.kv_width()];
            assert!(dkv.row(row).iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12));
        }
    }
    assert!(error(&dq, &expected.dq) < 1e-13);
}

#[test]
fn merge_is_safe_where_a_side_is_empty() {
    let (none, some) = (f32::NEG_INFINITY, 2.0f32);
    for (lse, part_lse, expected, expected_lse) in
        [(none, none, 0.0, none), (some, none, 3.0, some), (none, some, 5.0, some), (some, some, 4.0, some + 2f32.ln())]
    {
        let mut out = [if lse == none { 0.0 } else { 3.0f32 }];
        let mut total = lse;
        merge(&mut out, &mut total, &[if part_lse == none { f32::NAN } else { 5.0 }], part_lse);
        assert_eq!((out[0], total), (expected, expected_lse));
    }
}

#[test]
fn rows_of_no_piece_are_written_and_poison_nothing() {
    let shape = shape(2, 1, 16, 8);
    let device = Cpu::<f32>::new(1);
    let case = Case::natural(&[300], FAR, 0);
    let mut inputs = Inputs::<f32>::new(&case, &shape);
    // Keys and queries from 200 on are in no piece; what they hold must not matter.
    for row in 200..300 {
        inputs.q.row_mut(row).fill(f32::NAN);
        inputs.kv.row_mut(row).fill(f32::NAN);
        inputs.dout.row_mut(row).fill(f32::NAN);
    }
    let valid = [Piece { q_row: 0, k_row: 0, q: run(0, 1, 200), k: run(0, 1, 200), d_lo: -FAR, d_hi: 0 }];
    let (mut out, mut lse) = (poisoned(300, shape.out_width()), poisoned(300, shape.q_heads));
    let valid = device.tiles(&TileCells::new(300, 300, valid));
    let [q, kv, dout] = [&inputs.q, &inputs.kv, &inputs.dout].map(Matrix::view);
    device.attention(&shape, q, kv, &valid, out.view_mut(), lse.view_mut());
    assert!(out[..200 * shape.out_width()].iter().all(|x| x.is_finite()));
    assert!(out[200 * shape.out_width()..].iter().all(|x| *x == 0.0));
    assert!(lse[200 * shape.q_heads..].iter().all(|x| *x == f32::NEG_INFINITY));
    let mut delta = device.matrix(300, shape.q_heads);
    device.attention_delta(&shape, out.view(), dout, delta.view_mut());
    let (mut dq, mut dkv) = (device.zero_matrix(300, shape.q_width()), device.zero_matrix(300, shape.kv_width()));
    let targets = (dq.view_mut(), dkv.view_mut());
    device.attention_backward(&shape, q, kv, &valid, dout, lse.view(), delta.view(), targets.0, targets.1);
    assert!(dq.iter().chain(dkv.iter()).all(|x| x.is_finite()));
    assert!(dq[200 * shape.q_width()..].iter().chain(&dkv[200 * shape.kv_width()..]).all(|x| *x == 0.0));

    // Nothing at all: no queries, no keys, no pieces.
    let (no_queries, no_keys) = (poisoned(0, shape.q_width()), poisoned(0, shape.kv_width()));
    device.attention(
        &shape,
        q,
        no_keys.view(),
        &device.tiles(&TileCells::new(300, 0, [])),
        out.view_mut(),
        lse.view_mut(),
    );
    assert!(out.iter().all(|x| *x == 0.0));
    let (mut no_out, mut no_lse) = (poisoned(0, shape.out_width()), poisoned(0, shape.q_heads));
    let no_queries = no_queries.view();
    let no_tiles = device.tiles(&TileCells::new(0, 300, []));
    device.attention(&shape, no_queries, kv, &no_tiles, no_out.view_mut(), no_lse.view_mut());
}

#[test]
fn a_query_that_is_nan_stays_so_alone() {
    let shape = shape(1, 1, 16, 8);
    let device = Cpu::<f32>::new(1);
    let case = Case::natural(&[300], FAR, 0);
    let mut inputs = Inputs::<f32>::new(&case, &shape);
    inputs.q.row_mut(270).fill(f32::NAN);
    let (out, _) = forward(&device, &case, &shape, &inputs);
    assert!((0..300).all(|row| out.row(row).iter().all(|x| x.is_nan() == (row == 270))));
}

#[test]
fn a_window_of_one_token_has_exactly_no_score_gradient() {
    let shape = shape(2, 2, 16, 24);
    let case = Case::natural(&[130], 0, 0);
    let (dq, _) = backward(&Cpu::<f32>::new(1), &case, &shape, &Inputs::new(&case, &shape));
    assert!(dq.iter().all(|x| *x == 0.0));
}
