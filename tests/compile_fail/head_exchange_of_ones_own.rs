//~ E0277
//~ `Uneven` is not a head exchange: use `KeepHeads` or `SwapHeads`
// Head exchanges are a closed set: the executor knows how each of them moves heads.

use context_parallel::error::SupportError;
use context_parallel::heads::HeadExchange;

#[derive(Clone, Copy, Debug)]
struct Uneven;

impl HeadExchange for Uneven {
    const NAME: &'static str = "uneven";
    const SWAPS: bool = true;
    fn heads_per_rank(_: &'static str, q_heads: usize, _: usize) -> Result<usize, SupportError> {
        Ok(q_heads)
    }
}

fn main() {}
