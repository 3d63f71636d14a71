//~ E0277
//~ the exchange `CastKv` does not run on the kernel `Unfused`: to merge partial results, use `Flash` or another kernel with `LogSumExp`
// A strategy of one's own is held to what its exchange needs.

use context_parallel::layout::Bshd;
use context_parallel::order::Zigzag;
use context_parallel::strategy::{CastKv, CpStrategy, Row};
use context_parallel::heads::KeepHeads;
use context_parallel::kernel::Unfused;

#[derive(Clone, Copy, Debug, PartialEq)]
struct Cast;

impl CpStrategy for Cast {
    type Order = Zigzag;
    type Heads = KeepHeads;
    type Kv = CastKv;
    const NAME: &'static str = "cast";

    fn degree(&self) -> usize {
        4
    }
}

impl Row<Bshd, Unfused> for Cast {}

fn main() {}
