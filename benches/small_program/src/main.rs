//! A user's whole program with one model type: how long it takes to build is what types cost him.
//!
//! `.ci/small-program` builds it in release after everything that it depends on, this library among it, says how long
//! that took, and runs it.

use std::sync::Arc;

use context_parallel::comm::threads;
use context_parallel::degree::Runtime;
use context_parallel::error::Result;
use context_parallel::handler::CpHandler;
use context_parallel::layout::{Packed, Thd};
use context_parallel::model::inputs::Inputs;
use context_parallel::model::{Config, GptModel, Sizes};
use context_parallel::strategy::Ring;
use context_parallel::tensor::Cpu;

fn main() -> Result<()> {
    let sizes = Sizes { vocab_size: 32, hidden_size: 16, intermediate_size: 32, layers: 2, heads: 2, kv_heads: 1 };
    let config = Config::llama(sizes)?;
    let (tokens, labels): (Vec<i64>, Vec<i64>) = (0..21).map(|token| (token, token + 1)).unzip();
    let sums = threads::run(2, |comm| {
        let device = Cpu::new(1);
        let model = GptModel::<Ring, Thd>::new(device.clone(), &config, 0)?;
        let handler = CpHandler::<Ring, Thd>::new(Ring::new(Runtime(2)), device, comm)?;
        let batch = Arc::new(Packed::from_lengths(&[21])?);
        let inputs = Inputs::new(&handler, batch, &tokens, &labels)?;
        let activations = model.forward(&handler, &inputs.tokens)?;
        let mut gradients = model.zero_gradients();
        let (labels, weights) = (&inputs.labels, &inputs.weights);
        let (sum, dhidden) = model.loss_backward(&activations, labels, weights, 1.0, &mut gradients)?;
        model.backward(&handler, activations, &dhidden, &mut gradients)?;
        Ok(sum)
    })?;
    println!("loss {:.4}", sums.iter().sum::<f64>() / 21.0);
    Ok(())
}
