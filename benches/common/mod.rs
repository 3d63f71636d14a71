//! One attention layer on one rank, as benchmarks use it.

use std::sync::Arc;

use context_parallel::attention::AttentionPlan;
use context_parallel::comm::threads::{self, ThreadComm};
use context_parallel::error::Result;
use context_parallel::handler::{CpHandler, ElemShard};
use context_parallel::kernel::Flash;
use context_parallel::layout::{Batch, Layout};
use context_parallel::mask::Mask;
use context_parallel::model::init::Normal;
use context_parallel::ops::attention::AttentionShape;
use context_parallel::order::Full;
use context_parallel::strategy::{CpStrategy, Supports};
use context_parallel::tensor::Cpu;

/// A handler with a plan, queries, keys and values: everything that one forward call needs.
pub struct AttentionLayer<H: CpStrategy, L: Layout> {
    pub device: Cpu<f32>,
    pub handler: CpHandler<H, L, ThreadComm>,
    pub plan: Arc<AttentionPlan<H::Order, L>>,
    pub shape: AttentionShape,
    pub qkv: [ElemShard<H, L, Cpu<f32>>; 3],
}

impl<H: Supports<L, Flash>, L: Layout> AttentionLayer<H, L> {
    /// A layer of 4 query heads, 2 key/value heads and 32 features over one causal sequence, on a group of one rank.
    pub fn new(strategy: H, tokens: usize) -> Result<Self> {
        let comm = threads::run(1, Ok)?.remove(0);
        let device = Cpu::<f32>::new(1);
        let handler = CpHandler::<H, L, _>::new(strategy, comm)?;
        let shape = AttentionShape { q_heads: 4, kv_heads: 2, qk_dim: 32, v_dim: 32, scale: 32f64.powf(-0.5) };
        let batch = Arc::new(L::batch_of(&[tokens])?);
        let placement = handler.place(batch.clone())?;
        let plan = handler.plan(&placement, &Mask::Causal)?;
        let mut normal = Normal::new(0, 0);
        let mut shard = |width: usize| {
            let values: Vec<f32> = (0..batch.tokens() * width).map(|_| normal.draw() as f32).collect();
            handler.dispatch(&device, &placement, &Full::from_batch_first(&values, width, batch.clone())?)
        };
        let qkv = [shard(shape.q_width())?, shard(shape.k_width())?, shard(shape.v_width())?];
        Ok(AttentionLayer { device, handler, plan, shape, qkv })
    }

    /// Attention of the layer; gives one number of the output.
    pub fn forward(&self) -> Result<f32> {
        let [q, k, v] = &self.qkv;
        let (out, _) = self.handler.core_attn::<Flash, _>(&self.device, &self.plan, &self.shape, q, k, v)?;
        Ok(out.matrix()[0])
    }
}
