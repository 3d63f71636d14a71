//~ E0277
//~ `FixedHeads<6, 4>` is not an architecture: query heads must be a multiple of key/value heads, both from 1 to 1024
// Head counts that the type says are checked by the compiler.

use context_parallel::layout::Thd;
use context_parallel::model::{Config, FixedHeads, GptModel};
use context_parallel::kernel::Flash;
use context_parallel::strategy::Ring;
use context_parallel::tensor::Cpu;

fn model(config: &Config) {
    let _ = GptModel::<Ring, Thd, Flash, Cpu, FixedHeads<6, 4>>::new(Cpu::default(), config, 0);
}

fn main() {}
