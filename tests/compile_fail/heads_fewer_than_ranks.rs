//~ E0277
//~ `Ulysses<Fixed<16>>` cannot run a model with `FixedHeads<8, 8>`: the number of query heads must be a multiple of the degree of the head exchange; ring and all-gather take any number
// More ranks than query heads: some would have none.

use context_parallel::degree::Fixed;
use context_parallel::layout::Sbhd;
use context_parallel::model::{Config, FixedHeads, GptModel, Master};
use context_parallel::strategy::Ulysses;
use context_parallel::kernel::Unfused;
use context_parallel::tensor::Cpu;

fn model(config: &Config, master: &Master<Cpu>) {
    let _ = GptModel::<Ulysses<Fixed<16>>, Sbhd, Unfused, Cpu, FixedHeads<8, 8>>::from_master(
        Cpu::default(),
        config,
        master,
    );
}

fn main() {}
