//~ E0308
//~ mismatched types
//~ label: expected `&Shard<Zigzag, Thd, f32>`, found `&Full<Thd, f32>`
// Whole sequences where one rank's rows are needed: forgot to dispatch.

use context_parallel::layout::Thd;
use context_parallel::order::{Full, Shard, Zigzag};

fn layer(_input: &Shard<Zigzag, Thd, f32>) {}

fn step(input: Full<Thd, f32>) {
    layer(&input);
}

fn main() {}
