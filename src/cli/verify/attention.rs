//! One combination's attention against the float64 oracle, and its bytes against the plan.

use context_parallel::attention::RankPlan;
use context_parallel::comm::decorate::traffic::Counted;
use context_parallel::comm::{Collectives, Communicator};
use context_parallel::error::Result;
use context_parallel::handler::UntypedHandler;
use context_parallel::mask::Mask;
use context_parallel::model::init::Normal;
use context_parallel::ops::attention::AttentionShape;
use context_parallel::oracle::{self, Answer};
use context_parallel::order::{DynPlacement, Rows, laid_out, token_by_token};
use context_parallel::strategy::select::{self, Choice, Chosen};
use context_parallel::strategy::{CpStrategy, Single};
use context_parallel::tensor::{Cpu, DType, Device, Float, Matrix};

use super::super::engine::{Cluster, Comm, gather, with_storage_type};

/// Relative errors of out, dq, dk and dv, the worst over masks, and what plans predict.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    pub errors: [f64; 4],
    /// Bytes that all ranks send, over all masks.
    pub sent: Prediction,
    /// Most bytes that a rank holds in a pass beyond what is there when it starts.
    pub peak: Prediction,
    /// Ranks and passes for which a prediction is wrong.
    pub mispredicted: usize,
}

/// What plans say, and what was counted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Prediction {
    pub predicted: u64,
    pub counted: u64,
}

impl Prediction {
    fn with(self, other: Prediction, join: impl Fn(u64, u64) -> u64) -> Prediction {
        let (predicted, counted) = (join(self.predicted, other.predicted), join(self.counted, other.counted));
        Prediction { predicted, counted }
    }
}

impl Outcome {
    fn worst(self, other: Outcome) -> Outcome {
        Outcome {
            errors: std::array::from_fn(|i| self.errors[i].max(other.errors[i])),
            sent: self.sent.with(other.sent, |a, b| a + b),
            peak: self.peak.with(other.peak, u64::max),
            mispredicted: self.mispredicted + other.mispredicted,
        }
    }
}

/// Query and key/value heads that every strategy can share out over `cp` ranks.
pub fn heads(cp: usize) -> (usize, usize) {
    (if cp == 1 { 4 } else { 2 * cp }, 2)
}

/// What a combination gives, and for 16-bit types what `Single` gives.
type Checked = (Outcome, Option<Outcome>);

/// Runs `choice`, and for 16-bit types `Single` with the same layout and kernel, on the same numbers. Nothing where
/// this process does not speak.
pub fn check(cluster: &Cluster, choice: &Choice, dtype: DType, threads: usize) -> Result<Option<Checked>> {
    with_storage_type!(dtype, T => check_as::<T>(cluster, choice, threads))
}

fn check_as<T: Float>(cluster: &Cluster, choice: &Choice, threads: usize) -> Result<Option<Checked>> {
    let cp = choice.degree;
    let chosen = select::chosen(choice)?;
    let (layout, kernel) = (choice.layout.clone(), choice.kernel.clone());
    let single = Choice { strategy: Single::NAME.to_string(), degree: 1, layout, kernel, ..Choice::default() };
    let single = select::chosen(&single)?;
    let measured = matches!(T::DTYPE, DType::Bf16 | DType::F16);
    let (q_heads, kv_heads) = heads(cp);
    let shape = AttentionShape { q_heads, kv_heads, qk_dim: 16, v_dim: 24, scale: 0.25 };
    let (lengths, owners) = owners(&chosen)?;
    let (mut found, mut alone) = (Outcome::default(), Outcome::default());
    let masks = [Mask::Causal, Mask::Window { left: Some(5), right: Some(2) }, Mask::Full];
    for (case, mask) in masks.iter().enumerate() {
        let problem = Problem::<T>::new(&lengths, &owners, shape, mask, case as u64);
        let run = |chosen: &Chosen| {
            cluster.on_ranks(chosen.strategy.degree(), &|comm| attend(chosen, comm, &problem, threads))
        };
        let attended = run(&chosen)?;
        let attended_alone = if measured { run(&single)? } else { None };
        if let Some(attended) = attended {
            found = found.worst(problem.judge(attended));
        }
        if let Some(attended) = attended_alone {
            alone = alone.worst(problem.judge(attended));
        }
    }
    Ok(cluster.speaks().then_some((found, measured.then_some(alone))))
}

/// The lengths of the documents, and the rank of each token.
fn owners(chosen: &Chosen) -> Result<(Vec<usize>, Vec<usize>)> {
    let (strategy, layout) = (&chosen.strategy, chosen.layout);
    let cp = strategy.degree();
    // Edges of what divides by the ranks; of one length where the layout is dense.
    let ragged = vec![0, 1, 2 * cp - 1, 2 * cp + 1, 37];
    let (lengths, batch) = match layout.batch_of(&ragged) {
        Ok(batch) => (ragged, batch),
        Err(_) => (vec![37; 2], layout.batch_of(&[37; 2])?),
    };
    let tokens = batch.tokens();
    let deal = strategy.deal(&*batch, &[(Mask::Causal, 1)])?;
    let placement = DynPlacement::new(batch, layout, strategy.grid(), 0, deal)?;
    Ok((lengths, (0..tokens).map(|token| placement.locate(token).0).collect()))
}

/// Queries, keys, values and the gradient of the output, `[tokens, features]` in natural order, with what the oracle
/// makes of them.
struct Problem<T> {
    lengths: Vec<usize>,
    shape: AttentionShape,
    mask: Mask,
    operands: [Vec<T>; 4],
    answer: Answer,
}

impl<T: Float> Problem<T> {
    /// Queries and keys are unit normal; values and output gradients are larger on higher ranks, so that a row from
    /// the wrong rank shows.
    fn new(lengths: &[usize], owners: &[usize], shape: AttentionShape, mask: &Mask, seed: u64) -> Self {
        let tokens = owners.len();
        let mut normal = Normal::new(seed, 0);
        let mut draw = |width: usize, grows: bool| -> Vec<T> {
            let amplitude = |token: usize| if grows { 1.0 + owners[token] as f64 } else { 1.0 };
            (0..tokens * width).map(|i| T::from_f64(amplitude(i / width) * normal.draw())).collect()
        };
        let (q, k) = (draw(shape.q_width(), false), draw(shape.k_width(), false));
        let operands = [q, k, draw(shape.v_width(), true), draw(shape.out_width(), true)];
        let answer = answer(&operands, lengths, &shape, mask);
        Problem { lengths: lengths.to_vec(), shape, mask: mask.clone(), operands, answer }
    }

    fn judge(&self, attended: Attended) -> Outcome {
        let mut outcome = Outcome {
            errors: self.answer.errors(attended.tensors.each_ref().map(Vec::as_slice)),
            ..Outcome::default()
        };
        for [sent, forward, backward] in attended.predictions {
            outcome.sent = outcome.sent.with(sent, |a, b| a + b);
            outcome.peak = outcome.peak.with(forward, u64::max).with(backward, u64::max);
            let wrong = |prediction: &&Prediction| prediction.predicted != prediction.counted;
            outcome.mispredicted += [sent, forward, backward].iter().filter(wrong).count();
        }
        outcome
    }
}

fn answer<T: Float>(operands: &[Vec<T>; 4], lengths: &[usize], shape: &AttentionShape, mask: &Mask) -> Answer {
    let attends = oracle::attends(mask, &oracle::documents(lengths, lengths));
    let operands = operands.each_ref().map(|x| x.iter().map(|x| x.to_f64()).collect::<Vec<f64>>());
    let heads = oracle::Heads {
        query: shape.q_heads,
        key_value: shape.kv_heads,
        qk_dim: shape.qk_dim,
        v_dim: shape.v_dim,
        scale: shape.scale,
    };
    Answer::new(lengths.iter().sum(), heads, &*attends, operands.each_ref().map(Vec::as_slice))
}

/// Out, dq, dk, dv in natural order, and by rank bytes sent, and held at most forward and backward.
struct Attended {
    tensors: [Vec<f64>; 4],
    predictions: Vec<[Prediction; 3]>,
}

/// One rank of one combination's run of a problem.
fn attend<T: Float>(chosen: &Chosen, comm: Comm, problem: &Problem<T>, threads: usize) -> Result<Attended> {
    let Problem { lengths, shape, mask, operands, .. } = problem;
    let (device, kernel) = (Cpu::<T>::with_threads(threads)?, chosen.kernel.object());
    let counted = Counted::new(comm);
    let traffic = counted.traffic();
    let handler = UntypedHandler::new(chosen.strategy.clone(), chosen.layout, device.clone(), Box::new(counted))?;
    let batch = chosen.layout.batch_of(lengths)?;
    let placement = handler.place_for(batch.clone(), &[(Mask::Causal, 1)])?;
    let widths = [shape.q_width(), shape.k_width(), shape.v_width(), shape.out_width()];
    let mut shards = Vec::new();
    for (values, width) in operands.iter().zip(widths) {
        shards.push(handler.by_ref().dispatch(&placement, &laid_out(values, width, &*batch, chosen.layout)?)?);
    }
    let (qkv, dout) = ([&shards[0], &shards[1], &shards[2]], &shards[3]);
    if handler.rank() == 0 {
        RankPlan::check(&**handler.strategy(), &placement, mask)?;
    }
    let plan = handler.plan(&placement, mask)?;
    // Predicted is what attention sends, not what ranks tell to plan it.
    traffic.reset();
    let held = device.ledger().mark();
    let (out, core) = handler.by_ref().core_attn(kernel, &plan, shape, qkv)?;
    let peak_forward = device.ledger().peak() - held;
    let held = device.ledger().mark();
    let [dq, dk, dv] = handler.by_ref().core_attn_backward(&plan, qkv, &core, dout)?;
    let peak_backward = device.ledger().peak() - held;
    let (forward, backward) = plan.bytes_sent::<Cpu<T>>(shape)?;
    let sent = (forward + backward, traffic.bytes() as usize);
    let peak = plan.peak_bytes_of(chosen.kernel, T::DTYPE, shape)?;
    let predictions = [sent, (peak.0, peak_forward), (peak.1, peak_backward)];
    let predictions: Vec<i64> =
        predictions.iter().flat_map(|&(predicted, counted)| [predicted as i64, counted as i64]).collect();
    let rows: Vec<_> = (0..handler.ranks()).map(|rank| placement.full_rows_of(rank)).collect();
    let mut tensors: [Vec<f64>; 4] = Default::default();
    for (whole, part) in tensors.iter_mut().zip([out, dq, dk, dv]) {
        *whole = together(handler.comm(), part.into_matrix(), &rows, &placement)?;
    }
    let predictions = gather(handler.comm(), &predictions)?;
    let of = |all: &Vec<i64>| {
        let at = |i: usize| Prediction { predicted: all[2 * i] as u64, counted: all[2 * i + 1] as u64 };
        std::array::from_fn(at)
    };
    Ok(Attended { tensors, predictions: predictions.iter().map(of).collect() })
}

/// A tensor in natural order from the rows of all ranks: `rows` says, by rank, which memory row of the whole batch each
/// of its rows is. Without the library's `combine`, which is not what is checked here.
fn together<T: Float>(
    comm: &dyn Communicator,
    part: Matrix<T>,
    rows: &[Rows],
    placement: &DynPlacement,
) -> Result<Vec<f64>> {
    let (width, batch) = (part.cols(), placement.batch());
    let counts: Vec<usize> = rows.iter().map(|rows| rows.len() * width).collect();
    let parts = comm.all_gather_v(part.into_buffer(), &counts)?;
    let blank = vec![T::default(); batch.tokens() * width];
    let mut whole: Matrix<T> = Matrix::from_slice(&blank, batch.tokens(), width);
    for (part, rows) in parts.iter().zip(rows) {
        for (i, row) in rows.iter().enumerate() {
            whole.row_mut(row).copy_from_slice(&part[i * width..][..width]);
        }
    }
    Ok(token_by_token(&whole, &**batch, placement.layout()).into_iter().map(T::to_f64).collect())
}
