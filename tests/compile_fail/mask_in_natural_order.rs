//~ E0308
//~ mismatched types
//~ label: expected `Shard<Zigzag, Bshd, u8>`, found `Full<Bshd, u8>`
// An attention mask is cut like every field of a batch: its queries are this rank's rows.

use context_parallel::handler::LocalBatch;
use context_parallel::layout::Bshd;
use context_parallel::order::Full;
use context_parallel::strategy::Ring;

fn with_mask(batch: LocalBatch<Ring, Bshd>, mask: Full<Bshd, u8>) -> LocalBatch<Ring, Bshd> {
    LocalBatch { attention_mask: Some(mask), ..batch }
}

fn main() {}
