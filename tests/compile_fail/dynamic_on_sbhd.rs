//~ E0277
//~ `Dynamic<Fixed<4>>` does not work with layout `Sbhd` and kernel `Flash`: use kernel `Flash`, and layout `Thd` with `Magi` and `Dynamic`
// Every document gets its own number of ranks; a dense batch has no documents.

use context_parallel::degree::Fixed;
use context_parallel::layout::Sbhd;
use context_parallel::model::{Config, GptModel};
use context_parallel::strategy::Dynamic;
use context_parallel::tensor::Cpu;

fn model(config: &Config) {
    let _ = GptModel::<Dynamic<Fixed<4>>, Sbhd>::new(Cpu::default(), config, 0);
}

fn main() {}
