//~ E0277
//~ `i64` is not a type to compute with: use `f32`, `f64`, `bf16` or `f16`
// Token ids are not something that a device computes with.

use context_parallel::tensor::{Cpu, Device};

fn compute<D: Device>(_device: D) {}

fn step(device: Cpu<i64>) {
    compute(device);
}

fn main() {}
