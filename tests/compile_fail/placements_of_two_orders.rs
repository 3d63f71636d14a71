//~ E0308
//~ mismatched types
//~ label: expected `&Arc<Placement<Zigzag, Thd>>`, found `&Arc<Placement<Contiguous, Thd>>`
// Tensors of two token orders never meet in one call.

use std::sync::Arc;

use context_parallel::layout::Thd;
use context_parallel::order::{Contiguous, Placement, Zigzag};

fn meet(queries: Arc<Placement<Zigzag, Thd>>, keys: Arc<Placement<Contiguous, Thd>>) {
    let _ = queries.expect_same("queries", &keys, "keys");
}

fn main() {}
