//~ E0308
//~ mismatched types
//~ label: expected `&AttentionPlan<Zigzag, Bshd>`, found `&AttentionPlan<Contiguous, Bshd>`
// A plan says which tiles of which ranks meet; that of another order says other tiles.

use context_parallel::degree::Runtime;
use context_parallel::handler::CpHandler;
use context_parallel::layout::Bshd;
use context_parallel::ops::attention::AttentionShape;
use context_parallel::order::{Contiguous, Shard, Zigzag};
use context_parallel::attention::AttentionPlan;
use context_parallel::strategy::Ring;

fn step(
    handler: &CpHandler<Ring<Runtime, Zigzag>, Bshd>,
    plan: &AttentionPlan<Contiguous, Bshd>,
    shape: &AttentionShape,
    [q, k, v]: [Shard<Zigzag, Bshd, f32>; 3],
) {
    let _ = handler.attend(plan, shape, q, k, v);
}

fn main() {}
