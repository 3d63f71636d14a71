//~ E0277
//~ `Ulysses<Fixed<3>>` cannot run a model with `FixedHeads<8, 4>`: the number of query heads must be a multiple of the degree of the head exchange; ring and all-gather take any number
// Every rank of a head exchange attends with the same number of query heads.

use context_parallel::degree::Fixed;
use context_parallel::layout::Bshd;
use context_parallel::model::{Config, FixedHeads, GptModel};
use context_parallel::kernel::Flash;
use context_parallel::strategy::Ulysses;
use context_parallel::tensor::Cpu;

fn model(config: &Config) {
    let _ = GptModel::<Ulysses<Fixed<3>>, Bshd, Flash, Cpu, FixedHeads<8, 4>>::new(Cpu::default(), config, 0);
}

fn main() {}
