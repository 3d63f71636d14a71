//~ E0308
//~ mismatched types
//~ label: expected `&Shard<Zigzag, Thd, {integer}>`, found `&Full<Thd, i64>`
// Whole sequences are not rolled by a handler: dispatch first.

use context_parallel::handler::CpHandler;
use context_parallel::layout::Thd;
use context_parallel::order::Full;
use context_parallel::strategy::Ring;

fn step(handler: &CpHandler<Ring, Thd>, labels: &Full<Thd, i64>) {
    let _ = handler.roll(labels, 1, -100);
}

fn main() {}
