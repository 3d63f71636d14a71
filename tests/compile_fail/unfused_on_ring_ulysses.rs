//~ E0277
//~ `RingUlysses<Fixed<2>, Fixed<2>>` does not work with layout `Sbhd` and kernel `Unfused`: use kernel `Flash`, and layout `Thd` with `Magi` and `Dynamic`
// Partial results are merged by their log-sum-exp, which `Unfused` does not keep.

use context_parallel::degree::Fixed;
use context_parallel::layout::Sbhd;
use context_parallel::model::{Config, GptModel};
use context_parallel::strategy::RingUlysses;
use context_parallel::kernel::Unfused;
use context_parallel::tensor::Cpu;

fn model(config: &Config) {
    let _ = GptModel::<RingUlysses<Fixed<2>, Fixed<2>>, Sbhd, Unfused>::new(Cpu::default(), config, 0);
}

fn main() {}
