//~ E0308
//~ mismatched types
//~ label: expected `4`, found `2`
// Head counts that are known at compile time are part of the model's type.

use context_parallel::degree::Fixed;
use context_parallel::layout::Thd;
use context_parallel::model::{FixedHeads, GptModel};
use context_parallel::kernel::Flash;
use context_parallel::strategy::Ring;
use context_parallel::tensor::Cpu;

type Model<A> = GptModel<Ring<Fixed<4>>, Thd, Flash, Cpu, A>;

fn serve(_model: &Model<FixedHeads<8, 4>>) {}

fn step(model: &Model<FixedHeads<8, 2>>) {
    serve(model);
}

fn main() {}
