//~ E0277
//~ `Halves` cannot run a model with `FixedHeads<9, 3>`: the number of query heads must be a multiple of the degree of the head exchange; ring and all-gather take any number
// The part `SwapHeads<Fixed<2>>` says it for every strategy that is made of it.

use context_parallel::degree::{Fixed, Grid};
use context_parallel::layout::Thd;
use context_parallel::model::{Config, FixedHeads, GptModel, Parameters};
use context_parallel::order::Contiguous;
use context_parallel::strategy::{CpStrategy, LocalKv, Row};
use context_parallel::kernel::Flash;
use context_parallel::heads::SwapHeads;
use context_parallel::tensor::Cpu;

#[derive(Clone, Copy, Debug, PartialEq)]
struct Halves;

impl CpStrategy for Halves {
    type Order = Contiguous;
    type Heads = SwapHeads<Fixed<2>>;
    type Kv = LocalKv;
    const NAME: &'static str = "halves";

    fn degree(&self) -> usize {
        2
    }

    fn grid(&self) -> Grid {
        Grid { outer: 1, inner: 2, inner_adjacent: true }
    }
}

impl Row<Thd, Flash> for Halves {}

fn model(config: &Config, parameters: Parameters<Cpu>) {
    let _ = GptModel::<Halves, Thd, Flash, Cpu, FixedHeads<9, 3>>::from_parameters(Cpu::default(), config, parameters);
}

fn main() {}
