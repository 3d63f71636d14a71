// What the failing cases do, done right.

use std::sync::Arc;

use context_parallel::layout::{Bshd, Dense, Packed, Thd};
use context_parallel::order::{Full, Placement, Shard, Zigzag};
use context_parallel::tensor::{Cpu, Device, Matrix};

fn layer(_input: &Shard<Zigzag, Thd, f32>) {}

fn compute<D: Device>(_device: D) {}

fn step(input: Shard<Zigzag, Thd, f32>, keys: Arc<Placement<Zigzag, Thd>>) -> context_parallel::error::Result<()> {
    layer(&input);
    input.placement().expect_same("queries", &keys, "keys")
}

fn main() -> context_parallel::error::Result<()> {
    compute(Cpu::<f64>::new(1));
    Full::<Bshd, f32>::new(Matrix::from_slice(&[0.0; 8], 8, 1), Arc::new(Dense { batch: 2, seq: 4 }))?;
    Full::<Thd, f32>::new(Matrix::from_slice(&[0.0; 8], 8, 1), Arc::new(Packed::from_lengths(&[3, 5])?))?;
    Ok(())
}
