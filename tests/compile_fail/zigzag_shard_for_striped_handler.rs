//~ E0308
//~ mismatched types
//~ label: expected `&Shard<Striped, Thd, _>`, found `&Shard<Zigzag, Thd, f32>`
// The handler's strategy says the order of every shard that it takes.

use context_parallel::degree::Runtime;
use context_parallel::handler::CpHandler;
use context_parallel::layout::Thd;
use context_parallel::order::{Shard, Striped, Zigzag};
use context_parallel::strategy::Ring;

fn step(handler: &CpHandler<Ring<Runtime, Striped>, Thd>, x: &Shard<Zigzag, Thd, f32>) {
    let _ = handler.combine(x);
}

fn main() {}
