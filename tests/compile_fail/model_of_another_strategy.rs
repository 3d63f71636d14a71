//~ E0308
//~ mismatched types
//~ label: expected `&CpHandler<AllGather, Thd, Cpu, _>`, found `&CpHandler<Ring, Thd>`
// Model and handler must agree on the strategy: it is part of both types.

use context_parallel::handler::CpHandler;
use context_parallel::layout::Thd;
use context_parallel::model::{GptModel, Mirrored};
use context_parallel::order::Zigzag;
use context_parallel::strategy::{AllGather, Ring};

fn step(
    model: &GptModel<AllGather, Thd>,
    handler: &CpHandler<Ring, Thd>,
    tokens: &Mirrored<Zigzag, Thd, i64>,
) {
    let _ = model.forward(handler, tokens);
}

fn main() {}
