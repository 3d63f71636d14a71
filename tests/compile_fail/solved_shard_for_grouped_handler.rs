//~ E0308
//~ mismatched types
//~ label: expected `&Shard<Grouped, Thd, _>`, found `&Shard<Solved, Thd, f32>`
// Both orders are data, and still not the same order.

use context_parallel::degree::Fixed;
use context_parallel::handler::CpHandler;
use context_parallel::layout::Thd;
use context_parallel::order::{Shard, Solved};
use context_parallel::strategy::Dynamic;

fn step(handler: &CpHandler<Dynamic<Fixed<4>>, Thd>, x: &Shard<Solved, Thd, f32>) {
    let _ = handler.combine(x);
}

fn main() {}
