//~ E0277
//~ the trait bound `i64: Float` is not satisfied
// Token ids are not something that a device computes with.

use context_parallel::tensor::{Cpu, Device};

fn compute<D: Device>(_device: D) {}

fn step(device: Cpu<i64>) {
    compute(device);
}

fn main() {}
