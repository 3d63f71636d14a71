//! Checks of attention: the rehearsal of its programs, numbers against the oracle, bits, and predictions.

use std::sync::Arc;

use super::cases::{Numbers, TestedKernel, documents, masks, shapes};
use super::placement::{self, tokens_by_row};
use super::{Case, Check, Comm, Failure, Kit, Subject};
use crate::attention::RankPlan;
use crate::comm::decorate::traffic::Counted;
use crate::comm::threads;
use crate::error::Result;
use crate::kernel::{Flash, KernelOn, kernel_object};
use crate::layout::{Batch, LayoutKind, Packed, Thd};
use crate::mask::Mask;
use crate::ops::attention::AttentionShape;
use crate::oracle::{self, Answer, F32_BOUND, F64_BOUND, NAMES, allowed};
use crate::order::{DynPlacement, DynShard, Natural, Placement, laid_out};
use crate::strategy::{Single, object};
use crate::tensor::{Cpu, Device, DryRun, Float};

/// Checks attention on a batch under all masks; in `f32` too, and twice, if `all` is asked for.
pub(super) fn check<K: TestedKernel>(kit: &mut Kit, batch: &Arc<dyn Batch>, all: bool) -> Result<(), Failure> {
    let shapes = shapes(&*kit.subject.strategy);
    let mut placements = None;
    for (index, mask) in masks::<K>(&**batch).into_iter().enumerate() {
        let shape = shapes[(index + batch.documents()) % shapes.len()];
        let case = Case { mask: Some(mask.clone()), ..kit.case.on(&**batch) };
        let fails = |error| case.fails(Check::TokenCover, error);
        if placements.is_none() || kit.subject.strategy.places_by_masks() {
            let made = placement::of(&kit.subject, batch, &mask).map_err(fails)?;
            placement::check(&case, &made)?;
            kit.passed(Check::TokenCover, 0.0);
            placements = Some(made);
        }
        let Some(placement) = placements.as_ref().and_then(|placements| placements.first()) else { return Ok(()) };
        if kit.options.rehearse {
            RankPlan::check(&*kit.subject.strategy, placement, &mask)
                .map_err(|error| case.fails(Check::ExactCover, error))?;
            kit.passed(Check::ExactCover, 0.0);
        }
        let owners: Vec<usize> = (0..batch.tokens()).map(|token| placement.locate(token).0).collect();
        let problem = Problem::<f64>::new(&**batch, &owners, shape, &mask, index as u64);
        let found = run::<K, f64>(kit, Check::OracleF64, &case, placement, &problem)?;
        let errors = problem.errors(&found);
        for (name, error) in NAMES.into_iter().zip(errors) {
            if error.is_nan() || error >= F64_BOUND {
                let what = format!("relative error of {name} is {error:.1e}, at most {F64_BOUND:.0e} is rounding");
                return Err(problem.of(&case).fails(Check::OracleF64, what));
            }
            kit.passed(Check::OracleF64, error);
        }
        if all {
            let problem = Problem::new(&**batch, &owners, shape, &mask, index as u64);
            single_precision::<K>(kit, &case, placement, &problem)?;
        }
    }
    Ok(())
}

fn single_precision<K: TestedKernel>(
    kit: &mut Kit,
    case: &Case,
    placement: &DynPlacement,
    problem: &Problem<f32>,
) -> Result<(), Failure> {
    let case = problem.of(case);
    let found = run::<K, f32>(kit, Check::OracleF32, &case, placement, problem)?;
    let alone = alone(&**placement.batch(), problem).map_err(|error| case.fails(Check::OracleF32, error))?;
    for (name, (error, single)) in NAMES.into_iter().zip(problem.errors(&found).into_iter().zip(alone)) {
        // Measured by `Single`, which shares its kernel with the strategy: what is wrong in both shows by itself.
        let bound = allowed(single, kit.case.ranks).min(F32_BOUND);
        if error.is_nan() || error > bound {
            let what = format!("relative error of {name} is {error:.1e}, and that of Single {single:.1e}");
            return Err(case.fails(Check::OracleF32, what));
        }
        kit.passed(Check::OracleF32, error);
    }
    let again = run::<K, f32>(kit, Check::Determinism, &case, placement, problem)?;
    for ((name, first), second) in NAMES.into_iter().zip(&found).zip(&again) {
        let differ = first.iter().zip(second).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
        if differ > 0 {
            let what = format!("{differ} of {} values of {name} differ between two runs", first.len());
            return Err(case.fails(Check::Determinism, what));
        }
    }
    kit.passed(Check::Determinism, 0.0);
    Ok(())
}

/// Queries, keys, values and the gradient of the output, `[tokens, features]` in natural order, and the answer.
pub(super) struct Problem<T> {
    shape: AttentionShape,
    mask: Mask,
    operands: [Vec<T>; 4],
    answer: Answer,
}

impl<T: Float> Problem<T> {
    /// Values and output gradients are larger on higher ranks, so that a row of the wrong rank shows; padding is NaN, so
    /// that any use of it shows.
    pub(super) fn new(batch: &dyn Batch, owners: &[usize], shape: AttentionShape, mask: &Mask, seed: u64) -> Self {
        let documents = documents(batch);
        let mut padding = vec![true; owners.len()];
        documents.iter().for_each(|document| padding[document.start..document.start + document.valid].fill(false));
        let mut numbers = Numbers::new(100 + seed);
        let mut draw = |width: usize, grows: bool| -> Vec<T> {
            let amplitude = |token: usize| if grows { 1.0 + owners[token] as f64 } else { 1.0 };
            (0..owners.len() * width).map(|i| T::from_f64(amplitude(i / width) * numbers.even())).collect()
        };
        let (q, k) = (draw(shape.q_width(), false), draw(shape.k_width(), false));
        let mut operands = [q, k, draw(shape.v_width(), true), draw(shape.out_width(), true)];
        for (values, width) in operands.iter_mut().zip(widths(&shape)) {
            for (token, _) in padding.iter().enumerate().filter(|(_, padding)| **padding) {
                values[token * width..(token + 1) * width].fill(T::from_f64(f64::NAN));
            }
        }
        let number = |x: &T| if x.to_f64().is_nan() { 0.0 } else { x.to_f64() };
        let exact = operands.each_ref().map(|x| x.iter().map(number).collect::<Vec<f64>>());
        let AttentionShape { q_heads, kv_heads, qk_dim, v_dim, scale } = shape;
        let heads = oracle::Heads { query: q_heads, key_value: kv_heads, qk_dim, v_dim, scale };
        let attends = oracle::attends(mask, &documents);
        let answer = Answer::new(owners.len(), heads, &*attends, exact.each_ref().map(Vec::as_slice));
        Problem { shape, mask: mask.clone(), operands, answer }
    }

    fn errors(&self, found: &[Vec<T>; 4]) -> [f64; 4] {
        let found = found.each_ref().map(|x| x.iter().map(|x| x.to_f64()).collect::<Vec<f64>>());
        self.answer.errors(found.each_ref().map(Vec::as_slice))
    }

    /// The case with what is known of the problem.
    fn of(&self, case: &Case) -> Case {
        Case { shape: Some(self.shape), dtype: Some(T::DTYPE), ..case.clone() }
    }
}

fn widths(shape: &AttentionShape) -> [usize; 4] {
    [shape.q_width(), shape.k_width(), shape.v_width(), shape.out_width()]
}

/// What a plan says about one rank before it runs, and what was counted. What else a plan predicts is one more of these.
struct Prediction {
    what: &'static str,
    predicted: u64,
    counted: u64,
}

/// One rank's part of out, dq, dk and dv, the token of each row, and predictions.
pub(super) struct Part<T> {
    tensors: [Vec<T>; 4],
    tokens: Vec<usize>,
    predictions: Vec<Prediction>,
}

/// Attention on all ranks; out, dq, dk and dv in natural order. Predictions are checked on the way.
fn run<K: KernelOn<Cpu<T>> + KernelOn<DryRun<T>>, T: Float>(
    kit: &mut Kit,
    check: Check,
    case: &Case,
    placement: &DynPlacement,
    problem: &Problem<T>,
) -> Result<[Vec<T>; 4], Failure> {
    let case = problem.of(case);
    let parts = kit.on_ranks(check, &case, &|comm| attend::<K, T>(&kit.subject, comm, placement, problem))?;
    for (rank, part) in parts.iter().enumerate() {
        if let Some(Prediction { what, predicted, counted }) =
            part.predictions.iter().find(|prediction| prediction.predicted != prediction.counted)
        {
            let what = format!("rank {rank} {what}: {predicted} predicted, {counted} counted");
            return Err(case.fails(Check::Prediction, what));
        }
    }
    kit.passed(Check::Prediction, 0.0);
    Ok(together(&problem.shape, placement.batch().tokens(), &parts))
}

/// Relative errors of `Single` on the same numbers. It is always the packed layout, whose tokens are numbered alike.
fn alone(batch: &dyn Batch, problem: &Problem<f32>) -> Result<[f64; 4]> {
    let documents = (0..batch.documents()).map(|index| batch.document(index));
    let (valid, stored): (Vec<usize>, Vec<usize>) = documents.map(|document| (document.valid, document.stored)).unzip();
    let placement = Placement::<Natural, Thd>::new(Arc::new(Packed::new(&valid, &stored)?), 1, 0)?;
    let single = Subject { strategy: object(Single), layout: LayoutKind::Thd };
    let parts = threads::run(1, |comm| attend::<Flash, f32>(&single, Box::new(comm), &placement, problem))?;
    Ok(problem.errors(&together(&problem.shape, batch.tokens(), &parts)))
}

/// Forward and backward on one rank, dealt out as in a placement that was made before: solvers take time.
pub(super) fn attend<K: KernelOn<Cpu<T>> + KernelOn<DryRun<T>>, T: Float>(
    subject: &Subject,
    comm: Comm,
    placement: &DynPlacement,
    problem: &Problem<T>,
) -> Result<Part<T>> {
    let Problem { shape, mask, operands, .. } = problem;
    let (device, kernel) = (Cpu::<T>::new(1), kernel_object::<K, Cpu<T>>());
    let counted = Counted::new(comm);
    let traffic = counted.traffic();
    // Rehearsed already, where that is asked for.
    let handler = subject.handler(device.clone(), Box::new(counted))?;
    let batch = placement.batch();
    let placement = handler.place_with(batch.clone(), placement.deal().clone())?;
    let mut shards: Vec<DynShard<T>> = Vec::new();
    for (values, width) in operands.iter().zip(widths(shape)) {
        let full = laid_out(values, width, &**batch, handler.layout())?;
        shards.push(handler.by_ref().dispatch(&placement, &full)?);
    }
    let (qkv, dout) = ([&shards[0], &shards[1], &shards[2]], &shards[3]);
    let plan = handler.plan(&placement, mask)?;
    // Predicted is what attention sends, not what ranks tell to plan it.
    traffic.reset();
    let (sent, peak) = (plan.bytes_sent::<Cpu<T>>(shape)?, plan.peak_bytes::<K, Cpu<T>>(shape)?);
    let (mut predictions, mut held) = (Vec::new(), device.ledger().mark());
    let mut count = |sent: (&'static str, usize), peak: Option<(&'static str, usize)>| {
        let of = |(what, predicted), counted| Prediction { what, predicted: predicted as u64, counted };
        predictions.push(of(sent, traffic.bytes()));
        predictions.extend(peak.map(|peak| of(peak, (device.ledger().peak() - held) as u64)));
        traffic.reset();
        held = device.ledger().mark();
    };
    let (out, core) = handler.by_ref().core_attn(kernel, &plan, shape, qkv)?;
    count(("bytes forward", sent.0), Some(("most bytes held forward", peak.0)));
    let [dq, dk, dv] = handler.by_ref().core_attn_backward(&plan, qkv, &core, dout)?;
    count(("bytes backward", sent.1), Some(("most bytes held backward", peak.1)));
    // Nobody leaves before all are done: whoever is left alone would be told of that, not of a failure.
    handler.comm().barrier()?;
    let tokens = tokens_by_row(&placement, handler.rank());
    Ok(Part { tensors: [out, dq, dk, dv].map(|shard| shard.matrix().to_vec()), tokens, predictions })
}

/// Tensors in natural order from the rows of all ranks; NaN where no rank has a row. Without the library's `combine`.
fn together<T: Float>(shape: &AttentionShape, tokens: usize, parts: &[Part<T>]) -> [Vec<T>; 4] {
    let [q, k, v, out] = widths(shape);
    let widths = [out, q, k, v];
    std::array::from_fn(|i| {
        let width = widths[i];
        let mut whole = vec![T::from_f64(f64::NAN); tokens * width];
        for part in parts {
            for (row, &token) in part.tokens.iter().enumerate() {
                whole[token * width..][..width].copy_from_slice(&part.tensors[i][row * width..][..width]);
            }
        }
        whole
    })
}
