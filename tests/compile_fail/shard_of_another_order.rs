//~ E0308
//~ mismatched types
//~ label: expected `&Shard<Zigzag, Thd, f32>`, found `&Shard<Striped, Thd, f32>`
// A shard in striped order where one in zigzag order is needed: its rows are other tokens.

use context_parallel::layout::Thd;
use context_parallel::order::{Shard, Striped, Zigzag};

fn layer(_input: &Shard<Zigzag, Thd, f32>) {}

fn step(input: Shard<Striped, Thd, f32>) {
    layer(&input);
}

fn main() {}
