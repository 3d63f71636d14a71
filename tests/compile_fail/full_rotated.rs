//~ E0308
//~ mismatched types
//~ label: expected `&mut Shard<Zigzag, Bshd, f32>`, found `&mut Full<Bshd, f32>`
// Rows of whole sequences have other positions than a rank's rows.

use context_parallel::handler::{CpHandler, Rotary};
use context_parallel::layout::Bshd;
use context_parallel::order::Full;
use context_parallel::strategy::Ring;
use context_parallel::tensor::Cpu;

fn step(
    handler: &CpHandler<Ring, Bshd>,
    rotary: &Rotary<Ring, Bshd, Cpu>,
    queries: &mut Full<Bshd, f32>,
) {
    let _ = handler.apply_rotary_pos_emb(rotary, queries, 8);
}

fn main() {}
