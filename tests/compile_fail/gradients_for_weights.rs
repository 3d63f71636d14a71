//~ E0308
//~ mismatched types
//~ label: expected `&ParameterSet<MasterRole, f32, Host>`, found `&ParameterSet<GradientRole, f32, Host>`
// Gradients and weights have the same shapes, but not the same type.

use context_parallel::layout::Thd;
use context_parallel::model::{GptModel, Gradients};
use context_parallel::strategy::Ring;
use context_parallel::tensor::Cpu;

fn step(model: &mut GptModel<Ring, Thd>, gradients: &Gradients<Cpu>) {
    model.update(gradients);
}

fn main() {}
