//~ E0277
//~ `Magi<Fixed<4>>` does not work with layout `Sbhd` and kernel `Flash`: use kernel `Flash`, and layout `Thd` with `Magi` and `Dynamic`
// The solver places the documents of packed batches; a dense batch has none.

use context_parallel::degree::Fixed;
use context_parallel::layout::Sbhd;
use context_parallel::model::{Config, GptModel};
use context_parallel::strategy::Magi;
use context_parallel::tensor::Cpu;

fn model(config: &Config) {
    let _ = GptModel::<Magi<Fixed<4>>, Sbhd>::new(Cpu::default(), config, 0);
}

fn main() {}
