//! One combination's attention against the float64 oracle, and its bytes against the plan.

use std::sync::Arc;

use context_parallel::comm::threads;
use context_parallel::comm::traffic::{Counted, Traffic};
use context_parallel::error::Result;
use context_parallel::handler::CpHandler;
use context_parallel::layout::{Batch, Layout};
use context_parallel::mask::Mask;
use context_parallel::model::init::Normal;
use context_parallel::ops::Ops;
use context_parallel::ops::attention::AttentionShape;
use context_parallel::oracle::{self, relative_error};
use context_parallel::order::{Full, Placement};
use context_parallel::strategy::{CpStrategy, Kernel, Single, Supports};
use context_parallel::tensor::{Cpu, Device, ElemMatrix, Float, Matrix};

/// Relative errors of out, dq, dk and dv, the worst over masks and batches, and bytes of all ranks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    pub errors: [f64; 4],
    pub predicted: u64,
    pub counted: u64,
}

impl Outcome {
    fn worst(self, other: Outcome) -> Outcome {
        Outcome {
            errors: std::array::from_fn(|i| self.errors[i].max(other.errors[i])),
            predicted: self.predicted + other.predicted,
            counted: self.counted + other.counted,
        }
    }
}

/// Lengths of documents: edges of what divides by the ranks; of one length where the layout is dense.
fn lengths<L: Layout>(cp: usize) -> Vec<usize> {
    let ragged = [0, 1, 2 * cp - 1, 2 * cp + 1, 37];
    match L::batch_of(&ragged) {
        Ok(_) => ragged.to_vec(),
        Err(_) => vec![37; 2],
    }
}

/// Head counts that every strategy can share out over `cp` ranks.
pub fn heads(cp: usize) -> (usize, usize) {
    (if cp == 1 { 4 } else { 2 * cp }, 2)
}

/// Runs `H` on `cp` threads and `Single` on one, on the same numbers; gives both outcomes.
pub fn check<H, L, K, T>(strategy: H, cp: usize) -> Result<(Outcome, Outcome)>
where
    H: Supports<L, K>,
    L: Layout,
    K: Kernel,
    T: Float,
    Cpu<T>: Ops + Device<Elem = T, Acc = T::Acc, Storage = context_parallel::tensor::Host>,
    Single: Supports<L, K>,
{
    let (mut total, mut alone) = (Outcome::default(), Outcome::default());
    let (q_heads, kv_heads) = heads(cp);
    let shape = AttentionShape { q_heads, kv_heads, qk_dim: 16, v_dim: 24, scale: 0.25 };
    let batch = Arc::new(L::batch_of(&lengths::<L>(cp))?);
    let masks = [Mask::Causal, Mask::Window { left: Some(5), right: Some(2) }, Mask::Full];
    for (case, mask) in masks.into_iter().enumerate() {
        let problem = Problem::<T>::new::<H, L>(&batch, &shape, cp, case)?;
        let expected = problem.expected(&*batch, &shape, &mask);
        total = total.worst(problem.run::<H, L, K>(strategy, cp, &batch, &shape, &mask, &expected)?);
        alone = alone.worst(problem.run::<Single, L, K>(Single, 1, &batch, &shape, &mask, &expected)?);
    }
    Ok((total, alone))
}

/// Queries, keys, values and the gradient of the output, `[tokens, features]` in natural order.
struct Problem<T> {
    operands: [Vec<T>; 4],
}

/// Out, dq, dk, dv of the oracle, and the norm of the output gradient.
struct Expected {
    tensors: [Vec<f64>; 4],
    dout_norm: f64,
}

impl<T: Float> Problem<T>
where
    Cpu<T>: Ops + Device<Elem = T, Acc = T::Acc, Storage = context_parallel::tensor::Host>,
{
    /// Queries and keys are unit normal; values and output gradients are larger on higher ranks, so that a row from
    /// the wrong rank shows.
    fn new<H: CpStrategy, L: Layout>(
        batch: &Arc<L::Batch>,
        shape: &AttentionShape,
        cp: usize,
        case: usize,
    ) -> Result<Self> {
        let placement = Placement::<H::Order, L>::new(batch.clone(), cp, 0)?;
        let tokens = batch.tokens();
        let amplitudes: Vec<f64> = (0..tokens).map(|token| 1.0 + placement.locate(token).0 as f64).collect();
        let mut normal = Normal::new(case as u64, 0);
        let mut draw = |width: usize, grows: bool| -> Vec<T> {
            let row = |token: usize| if grows { amplitudes[token] } else { 1.0 };
            (0..tokens * width).map(|i| T::from_f64(row(i / width) * normal.draw())).collect()
        };
        let q = draw(shape.q_width(), false);
        let k = draw(shape.k_width(), false);
        Ok(Problem { operands: [q, k, draw(shape.v_width(), true), draw(shape.out_width(), true)] })
    }

    fn expected<B: Batch>(&self, batch: &B, shape: &AttentionShape, mask: &Mask) -> Expected {
        let lengths: Vec<usize> = (0..batch.documents()).map(|i| batch.document(i).stored).collect();
        let documents = oracle::documents(&lengths, &lengths);
        let attends: Box<dyn Fn(usize, usize) -> bool> = match mask {
            Mask::Causal => Box::new(oracle::causal(&documents)),
            Mask::Window { left, right } => Box::new(oracle::window(&documents, *left, *right)),
            _ => Box::new(oracle::full(&documents)),
        };
        let [q, k, v, dout] = self.operands.each_ref().map(|x| x.iter().map(|x| x.to_f64()).collect::<Vec<f64>>());
        let heads = oracle::Heads {
            query: shape.q_heads,
            key_value: shape.kv_heads,
            qk_dim: shape.qk_dim,
            v_dim: shape.v_dim,
            scale: shape.scale,
        };
        let problem = oracle::Problem { tokens: batch.tokens(), heads, q: &q, k: &k, v: &v, attends: &*attends };
        let out = oracle::attention(&problem).out;
        let oracle::Gradients { dq, dk, dv } = oracle::attention_backward(&problem, &dout);
        Expected { tensors: [out, dq, dk, dv], dout_norm: oracle::norm(&dout) }
    }

    fn run<H, L, K>(
        &self,
        strategy: H,
        ranks: usize,
        batch: &Arc<L::Batch>,
        shape: &AttentionShape,
        mask: &Mask,
        expected: &Expected,
    ) -> Result<Outcome>
    where
        H: Supports<L, K>,
        L: Layout,
        K: Kernel,
    {
        let traffic = Arc::new(Traffic::new(ranks));
        let by_rank = threads::run(ranks, |comm| {
            let device = Cpu::<T>::new(1);
            let handler = CpHandler::<H, L, _>::new(strategy, Counted::new(comm, traffic.clone()))?;
            let placement = handler.place(batch.clone())?;
            let widths = [shape.q_width(), shape.k_width(), shape.v_width(), shape.out_width()];
            let mut shards = Vec::new();
            for (values, width) in self.operands.iter().zip(widths) {
                let full = Full::<L, T>::from_batch_first(values, width, batch.clone())?;
                shards.push(handler.dispatch(&device, &placement, &full)?);
            }
            let (q, k, v, dout) = (&shards[0], &shards[1], &shards[2], &shards[3]);
            let plan = handler.plan(&placement, mask)?;
            let (out, core) = handler.core_attn::<K, Cpu<T>>(&device, &plan, shape, q, k, v)?;
            let [dq, dk, dv] = handler.core_attn_backward(&device, &plan, q, k, v, &core, dout)?;
            let (forward, backward) = plan.bytes_sent::<Cpu<T>>(shape);
            let mut tensors = Vec::new();
            for shard in [out, dq, dk, dv] {
                tensors.push((placement.full_rows_of(handler.rank()), shard.into_matrix()));
            }
            Ok((tensors, forward + backward))
        })?;
        let mut outcome = Outcome { counted: traffic.bytes(), ..Outcome::default() };
        for (tensor, reference) in expected.tensors.iter().enumerate() {
            let width = reference.len() / batch.tokens().max(1);
            let mut whole: ElemMatrix<Cpu<T>> = Matrix::from_slice(&vec![T::default(); reference.len()], batch.tokens(), width);
            for (tensors, _) in &by_rank {
                let (rows, part) = &tensors[tensor];
                rows.iter().enumerate().for_each(|(i, &row)| whole.row_mut(row).copy_from_slice(part.row(i)));
            }
            let whole = Full::<L, T>::new(whole, batch.clone())?.to_batch_first();
            let found: Vec<f64> = whole.into_iter().map(T::to_f64).collect();
            outcome.errors[tensor] = relative_error(&found, reference, if tensor == 0 { 0.0 } else { expected.dout_norm });
        }
        outcome.predicted = by_rank.iter().map(|(_, bytes)| *bytes as u64).sum();
        Ok(outcome)
    }
}
