//~ E0277
//~ `Ring<Fixed<4>>` does not work with layout `Bshd` and kernel `Unfused`: use kernel `Flash`, and layout `Thd` with `Magi` and `Dynamic`
// The gate is the same in a model of one's own, which calls the handler.

use context_parallel::degree::Fixed;
use context_parallel::handler::CpHandler;
use context_parallel::layout::Bshd;
use context_parallel::ops::attention::AttentionShape;
use context_parallel::order::{Shard, Zigzag};
use context_parallel::attention::AttentionPlan;
use context_parallel::strategy::Ring;
use context_parallel::kernel::Unfused;

fn step(
    handler: &CpHandler<Ring<Fixed<4>>, Bshd>,
    plan: &AttentionPlan<Zigzag, Bshd>,
    shape: &AttentionShape,
    [q, k, v]: [Shard<Zigzag, Bshd, f32>; 3],
) {
    let _ = handler.attend_with::<Unfused>(plan, shape, q, k, v);
}

fn main() {}
