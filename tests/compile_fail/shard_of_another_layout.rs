//~ E0308
//~ mismatched types
//~ label: expected `&Shard<Zigzag, Bshd, f32>`, found `&Shard<Zigzag, Sbhd, f32>`
// Sequence-first rows where batch-first ones are needed: the same numbers of rows, in another order.

use context_parallel::layout::{Bshd, Sbhd};
use context_parallel::order::{Shard, Zigzag};

fn layer(_input: &Shard<Zigzag, Bshd, f32>) {}

fn step(input: Shard<Zigzag, Sbhd, f32>) {
    layer(&input);
}

fn main() {}
