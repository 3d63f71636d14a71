//! One attention layer on one rank, as benchmarks use it.

use std::sync::Arc;

use context_parallel::attention::{AttentionPlan, RankPlan};
use context_parallel::comm::threads;
use context_parallel::error::Result;
use context_parallel::handler::{CpHandler, DynHandler, ElemShard};
use context_parallel::kernel::{Flash, Kernel};
use context_parallel::layout::{Batch, Layout, Thd};
use context_parallel::mask::Mask;
use context_parallel::model::init::Normal;
use context_parallel::ops::attention::AttentionShape;
use context_parallel::order::Full;
use context_parallel::strategy::select::Choice;
use context_parallel::strategy::{CpStrategy, Single, Supports};
use context_parallel::tensor::{Cpu, Matrix};

/// A handler with a plan, queries, keys and values: everything that one forward call needs.
pub struct AttentionLayer<H: CpStrategy, L: Layout> {
    pub handler: CpHandler<H, L>,
    pub plan: Arc<AttentionPlan<H::Order, L>>,
    pub shape: AttentionShape,
    pub qkv: [Arc<ElemShard<H, L, Cpu<f32>>>; 3],
}

impl<H: Supports<L, Flash>, L: Layout> AttentionLayer<H, L> {
    /// A layer of 4 query heads, 2 key/value heads and 32 features over one causal sequence, on a group of one rank.
    pub fn new(strategy: H, tokens: usize) -> Result<Self> {
        let comm = threads::run(1, Ok)?.remove(0);
        let handler = CpHandler::<H, L>::new(strategy.clone(), Cpu::new(1), comm)?;
        let shape = AttentionShape { q_heads: 4, kv_heads: 2, qk_dim: 32, v_dim: 32, scale: 32f64.powf(-0.5) };
        let batch = Arc::new(L::batch_of(&[tokens])?);
        let placement = handler.place(batch.clone())?;
        let plan = handler.plan(&placement, &Mask::Causal)?;
        let mut normal = Normal::new(0, 0);
        let mut shard = |width: usize| {
            let values: Vec<f32> = (0..batch.tokens() * width).map(|_| normal.draw() as f32).collect();
            handler.dispatch(&placement, &Full::from_batch_first(&values, width, batch.clone())?).map(Arc::new)
        };
        let qkv = [shard(shape.q_width())?, shard(shape.k_width())?, shard(shape.v_width())?];
        Ok(AttentionLayer { handler, plan, shape, qkv })
    }

    /// Attention of the layer; gives one number of the output.
    pub fn forward(&self) -> Result<f32> {
        let [q, k, v] = &self.qkv;
        let (out, _) = self.handler.attend(&self.plan, &self.shape, q, k, v)?;
        Ok(out.matrix()[0])
    }
}

/// The same layer chosen by names, over plain memory.
pub struct NamedLayer {
    handler: DynHandler,
    plan: Arc<RankPlan>,
    shape: AttentionShape,
    qkv: [Matrix<f32>; 3],
}

impl NamedLayer {
    /// The layer of [`AttentionLayer::new`].
    pub fn new(strategy: &str, tokens: usize) -> Result<Self> {
        let AttentionLayer { shape, qkv, .. } = AttentionLayer::<Single, Thd>::new(Single, tokens)?;
        let [strategy, layout, kernel] = [strategy, Thd::NAME, Flash::NAME].map(String::from);
        let choice = Choice { strategy, layout, kernel, degree: 1, ..Choice::default() };
        let handler = DynHandler::new(&choice, Cpu::new(1), threads::run(1, Ok)?.remove(0))?;
        let plan = handler.plan(&handler.place(&[tokens])?, &Mask::Causal)?;
        Ok(NamedLayer { handler, plan, shape, qkv: qkv.map(|shard| shard.matrix().clone()) })
    }

    /// Attention of the layer; gives one number of the output.
    pub fn forward(&self) -> Result<f32> {
        let [q, k, v] = &self.qkv;
        Ok(self.handler.attend(&self.plan, &self.shape, q, k, v)?.0[0])
    }

    /// The queries rolled by one token; gives one number of the result.
    #[allow(dead_code, reason = "not every benchmark rolls")]
    pub fn roll(&self) -> Result<f32> {
        Ok(self.handler.roll(self.plan.placement(), &self.qkv[0], 1, 0.0)?[0])
    }
}
