//~ E0277
//~ `FixedHeads<1536, 3>` is not an architecture: query heads must be a multiple of key/value heads, both from 1 to 1024
// The compiler does not divide every number; `FromConfig` leaves it to the constructor.

use context_parallel::layout::Thd;
use context_parallel::model::{Config, FixedHeads, GptModel};
use context_parallel::kernel::Flash;
use context_parallel::strategy::Ring;
use context_parallel::tensor::Cpu;

fn model(config: &Config) {
    let _ = GptModel::<Ring, Thd, Flash, Cpu, FixedHeads<1536, 3>>::new(Cpu::default(), config, 0);
}

fn main() {}
