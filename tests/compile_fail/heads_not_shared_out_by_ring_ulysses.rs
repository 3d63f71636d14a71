//~ E0277
//~ `RingUlysses<Fixed<4>, Fixed<3>>` cannot run a model with `FixedHeads<8, 4>`: the number of query heads must be a multiple of the degree of the head exchange; ring and all-gather take any number
// Only the inner degree exchanges heads: 4 would do, 3 does not, wherever the weights come from.

use std::path::Path;

use context_parallel::degree::Fixed;
use context_parallel::layout::Thd;
use context_parallel::model::{FixedHeads, GptModel};
use context_parallel::kernel::Flash;
use context_parallel::strategy::RingUlysses;
use context_parallel::tensor::Cpu;

fn model(folder: &Path) {
    let _ =
        GptModel::<RingUlysses<Fixed<4>, Fixed<3>>, Thd, Flash, Cpu, FixedHeads<8, 4>>::load(Cpu::default(), folder);
}

fn main() {}
