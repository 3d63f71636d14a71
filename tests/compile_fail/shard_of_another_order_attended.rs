//~ E0277
//~ `Shard<Striped, Thd, f32>` is not an operand of attention over order `Zigzag` and layout `Thd`: pass a shard of the handler's order, or an `Arc` of one
// What attention keeps for its backward pass is of the handler's order, as everything else is.

use context_parallel::attention::AttentionPlan;
use context_parallel::handler::CpHandler;
use context_parallel::layout::Thd;
use context_parallel::ops::attention::AttentionShape;
use context_parallel::order::{Shard, Striped, Zigzag};
use context_parallel::strategy::Ring;

fn step(
    handler: &CpHandler<Ring, Thd>,
    plan: &AttentionPlan<Zigzag, Thd>,
    shape: &AttentionShape,
    [q, k]: [Shard<Zigzag, Thd, f32>; 2],
    v: Shard<Striped, Thd, f32>,
) {
    let _ = handler.attend(plan, shape, q, k, v);
}

fn main() {}
