//! Runs on any device, whose results are compared with those of another: attention of every combination, training steps,
//! movement of rows, collectives.

use std::sync::Arc;

use context_parallel::comm::decorate::traffic::Counted;
use context_parallel::comm::{Collectives, Communicator, DynComm, threads};
use context_parallel::conformance::trial::{Attended, Trial, owners};
use context_parallel::error::Result;
use context_parallel::handler::UntypedHandler;
use context_parallel::layout::{Batch, LayoutKind};
use context_parallel::mask::Mask;
use context_parallel::model::{Config, ParameterList, Sizes, init};
use context_parallel::ops::Ops;
use context_parallel::ops::attention::AttentionShape;
use context_parallel::ops::unfused::UnfusedAttention;
use context_parallel::order::{DynPlacement, laid_out};
use context_parallel::strategy::select::{self, Choice, Chosen};
use context_parallel::tensor::{Device, Element, Float, Matrix, Storage};
use context_parallel::train::data::{IGNORED, TokenBatch};
use context_parallel::train::learner::DynLearner;
use context_parallel::train::trainer::Learner;

/// Every combination of the support table on some numbers of ranks.
pub fn combinations(degrees: &[usize]) -> Vec<Chosen> {
    let mut all = Vec::new();
    for &degree in degrees {
        for (strategy, layout, kernel) in select::combinations() {
            for &order in select::orders(strategy) {
                let [strategy, order, layout, kernel] = [strategy, order, layout, kernel].map(str::to_string);
                let choice = Choice { strategy, order, layout, kernel, degree, ..Choice::default() };
                all.extend((choice.strategy != "single" || degree == 1).then(|| select::chosen(&choice).unwrap()));
            }
        }
    }
    all
}

/// Documents of different lengths, with padding where the layout has it.
pub fn batch(layout: LayoutKind) -> Arc<dyn Batch> {
    layout.padded_batch_of(&[0, 1, 7, 37], &[2, 1, 9, 40]).or_else(|_| layout.batch_of(&[37; 2])).unwrap()
}

/// Attention with its gradients on every rank.
pub fn attended<D: Ops + UnfusedAttention>(
    chosen: &Chosen,
    trial: &Trial<D::Elem>,
    placement: &DynPlacement,
    device: impl Fn() -> D + Sync,
) -> Vec<Attended<D::Elem>> {
    let run = |comm: threads::ThreadComm<D::Storage>| attended_on(chosen, trial, placement, device(), Box::new(comm));
    threads::run_on::<D::Storage, _, _>(threads::Waiting::default(), chosen.strategy.degree(), run).unwrap()
}

/// Attention with its gradients on one rank.
pub fn attended_on<D: Ops + UnfusedAttention>(
    chosen: &Chosen,
    trial: &Trial<D::Elem>,
    placement: &DynPlacement,
    device: D,
    comm: DynComm<D::Storage>,
) -> Result<Attended<D::Elem>> {
    let counted = Counted::new(comm);
    let traffic = counted.traffic();
    let handler = UntypedHandler::new(chosen.strategy.clone(), chosen.layout, device, Box::new(counted))?;
    let peak =
        |plan: &context_parallel::attention::RankPlan| plan.peak_bytes_of(chosen.kernel, D::Elem::DTYPE, trial.shape());
    trial.attend(&handler, &traffic, chosen.kernel.object(), placement, peak)
}

/// Numbers for a combination, and which rank has them.
pub fn trial<T: Float>(
    chosen: &Chosen,
    mask: &Mask,
    shape: impl Fn(usize) -> AttentionShape,
) -> (Trial<T>, Arc<DynPlacement>) {
    let batch = batch(chosen.layout);
    let deal = chosen.strategy.deal(&*batch, &[(Mask::Causal, 1)]).unwrap();
    let grid = chosen.strategy.grid();
    let placement = DynPlacement::new(batch.clone(), chosen.layout, grid, 0, deal).unwrap();
    let heads = 2 * chosen.strategy.degree().max(2);
    (Trial::new(&*batch, &owners(&placement), shape(heads), mask, 3), placement)
}

/// Loss, norm of the gradient and weights after each of three steps.
pub fn trained<D: Ops + UnfusedAttention>(chosen: &Chosen, device: impl Fn() -> D + Sync) -> Vec<Vec<Vec<f64>>> {
    let run = |comm: threads::ThreadComm<D::Storage>| trained_on(chosen, device(), Box::new(comm));
    threads::run_on::<D::Storage, _, _>(threads::Waiting::default(), chosen.strategy.degree(), run).unwrap()
}

/// A small model on one rank.
pub fn learner_on<D: Ops + UnfusedAttention>(
    chosen: &Chosen,
    device: &D,
    comm: DynComm<D::Storage>,
) -> Result<DynLearner<D>> {
    let sizes = Sizes { vocab_size: 61, hidden_size: 32, intermediate_size: 48, layers: 2, heads: 4, kv_heads: 2 };
    let mut config = Config::llama(sizes)?;
    (config.initializer_range, config.mtp_depth) = (0.2, 1);
    let recompute = comm.size() == 3;
    let handler = UntypedHandler::new(chosen.strategy.clone(), chosen.layout, device.clone(), comm)?;
    let master = init::fresh(device, &config, &ParameterList::new(&config), 7)?;
    Ok(DynLearner::new(&config, master, handler, chosen.kernel.object())?.with_recompute(recompute))
}

pub fn trained_on<D: Ops + UnfusedAttention>(
    chosen: &Chosen,
    device: D,
    comm: DynComm<D::Storage>,
) -> Result<Vec<Vec<f64>>> {
    let mut learner = learner_on(chosen, &device, comm)?;
    let batch = tokens();
    let labels = batch.counted_by_depth(1);
    let mut found = Vec::new();
    for _ in 0..3 {
        let mut numbers = learner.accumulate_depths(&batch, &labels)?;
        numbers.push(learner.update(1e-2)?);
        let list = learner.master().list().clone();
        for id in list.ids() {
            numbers.extend(learner.master().to_host(&device, id)?.iter().map(|x| x.to_f64()));
        }
        found.push(numbers);
    }
    learner.handler().comm().barrier()?;
    Ok(found)
}

pub fn tokens() -> TokenBatch {
    let token = |i: i64| (i * i * 7 + 3 * i) % 61;
    let label = |i: i64| if i % 7 == 0 { IGNORED } else { token(i + 1) };
    TokenBatch::uniform((0..74).map(token).collect(), (0..74).map(label).collect(), 2, 37)
}

/// Sharded and whole rows, rolled, combined, summed and brought back.
pub fn moved<D: Ops>(chosen: &Chosen, device: impl Fn() -> D + Sync) -> Vec<Vec<Vec<f32>>> {
    let run = |comm: threads::ThreadComm<D::Storage>| {
        let handler = UntypedHandler::new(chosen.strategy.clone(), chosen.layout, device(), Box::new(comm))?;
        let (handler, batch) = (handler.by_ref(), batch(chosen.layout));
        let placement = handler.place_for(batch.clone(), &[(Mask::Causal, 1)])?;
        let values: Vec<f32> = (0..batch.tokens() * 3).map(|i| i as f32).collect();
        let whole = laid_out(&values, 3, &*batch, chosen.layout)?;
        let whole = Matrix::new(handler.device().upload(&whole), whole.rows(), whole.cols());
        let shard = handler.dispatch(&placement, &whole)?;
        let rolled = handler.roll(&shard, 1, -1.0)?;
        let back = handler.roll_adjoint(&rolled, -3)?;
        let summed = handler.summed(&placement, &handler.combine(&back)?)?;
        let read = |matrix: &Matrix<f32, D::Storage>| handler.device().read(matrix);
        Ok(vec![
            read(shard.matrix())?,
            read(rolled.matrix())?,
            read(back.matrix())?,
            read(summed.matrix())?,
            read(&handler.combine(&rolled)?)?,
        ])
    };
    threads::run_on::<D::Storage, _, _>(threads::Waiting::default(), chosen.strategy.degree(), run).unwrap()
}

/// Every collective of an engine, on memory of a device.
pub fn collectives<D: Device>(device: &D, comm: &dyn Communicator<D::Storage>) -> Result<Vec<Vec<f32>>> {
    let (rank, ranks) = (comm.rank(), comm.size());
    let values = |len: usize| device.upload(&(0..len).map(|i| (rank * 100 + i) as f32).collect::<Vec<_>>());
    let mut found = Vec::new();
    let counts: Vec<usize> = (0..ranks).map(|rank| rank + 1).collect();
    for part in comm.all_gather_v(values(rank + 1), &counts)? {
        found.push(device.read(&part)?);
    }
    let parts = (0..ranks).map(|to| values(to + rank)).collect();
    let counts: Vec<usize> = (0..ranks).map(|from| from + rank).collect();
    for part in comm.all_to_all_v(parts, &counts)? {
        found.push(device.read(&part)?);
    }
    let mut sum = values(7);
    comm.all_reduce(&mut sum)?;
    // Once more, on memory that the first one may have received.
    comm.all_reduce(&mut sum)?;
    found.push(device.read(&sum)?);
    let mut news = values(5);
    comm.broadcast(ranks - 1, &mut news)?;
    found.push(device.read(&news)?);
    let counts: Vec<usize> = (0..ranks).map(|rank| 2 * rank).collect();
    found.push(device.read(&comm.reduce_scatter_v(&values(ranks * (ranks - 1)), &counts)?)?);
    Ok(found)
}

pub fn on_threads<S: Storage, D: Device<Storage = S>>(
    ranks: usize,
    device: impl Fn() -> D + Sync,
) -> Vec<Vec<Vec<f32>>> {
    let run = |comm: threads::ThreadComm<S>| {
        let halves = comm.split(comm.rank() % 2, comm.rank())?;
        let mut found = collectives(&device(), &comm)?;
        found.extend(collectives(&device(), &*halves)?);
        Ok(found)
    };
    threads::run_on::<S, _, _>(threads::Waiting::default(), ranks, run).unwrap()
}
