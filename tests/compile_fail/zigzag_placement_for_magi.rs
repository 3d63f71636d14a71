//~ E0308
//~ mismatched types
//~ label: expected `&Arc<Placement<Solved, Thd>>`, found `&Arc<Placement<Zigzag, Thd>>`
// A placement of a ring says nothing about where the solver put the tokens.

use std::sync::Arc;

use context_parallel::degree::Fixed;
use context_parallel::error::Result;
use context_parallel::handler::CpHandler;
use context_parallel::layout::{Packed, Thd};
use context_parallel::mask::Mask;
use context_parallel::strategy::{Magi, Ring};

fn plan(
    ring: &CpHandler<Ring<Fixed<4>>, Thd>,
    magi: &CpHandler<Magi<Fixed<4>>, Thd>,
    batch: Arc<Packed>,
) -> Result<()> {
    let placement = ring.place(batch)?;
    magi.plan(&placement, &Mask::Causal).map(drop)
}

fn main() {}
