//~ E0277
//~ `Ring<Fixed<4>>` does not work with layout `Bshd` and kernel `Unfused`: use kernel `Flash`, and layout `Thd` with `Magi` and `Dynamic`
// Partial results are merged by their log-sum-exp, which `Unfused` does not keep.

use context_parallel::degree::Fixed;
use context_parallel::layout::Bshd;
use context_parallel::model::{Config, GptModel};
use context_parallel::strategy::Ring;
use context_parallel::kernel::Unfused;
use context_parallel::tensor::Cpu;

fn model(config: &Config) {
    let _ = GptModel::<Ring<Fixed<4>>, Bshd, Unfused>::new(Cpu::default(), config, 0);
}

fn main() {}
