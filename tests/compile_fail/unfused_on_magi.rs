//~ E0277
//~ `Magi<Fixed<4>>` does not work with layout `Thd` and kernel `Unfused`: use kernel `Flash`, and layout `Thd` with `Magi` and `Dynamic`
// Partial results are merged by their log-sum-exp, which `Unfused` does not keep.

use context_parallel::degree::Fixed;
use context_parallel::layout::Thd;
use context_parallel::model::{Config, GptModel};
use context_parallel::strategy::Magi;
use context_parallel::kernel::Unfused;
use context_parallel::tensor::Cpu;

fn model(config: &Config) {
    let _ = GptModel::<Magi<Fixed<4>>, Thd, Unfused>::new(Cpu::default(), config, 0);
}

fn main() {}
