//~ E0277
//~ `&Full<Thd, f32>` is not a gradient of whole sequences: say whether every rank holds all of it (`Replicated`) or a summand (`Partial`)
// A gradient of whole sequences must say whether every rank holds all of it or a summand.

use std::sync::Arc;

use context_parallel::handler::CpHandler;
use context_parallel::layout::Thd;
use context_parallel::order::{Full, Placement, Zigzag};
use context_parallel::strategy::Ring;

fn step(
    handler: &CpHandler<Ring, Thd>,
    placement: &Arc<Placement<Zigzag, Thd>>,
    gradient: &Full<Thd, f32>,
) {
    let _ = handler.combine_adjoint::<f32>(placement, gradient);
}

fn main() {}
