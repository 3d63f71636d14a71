//! A training step asks the system for no memory once every shape has been seen.

mod counter;

use std::sync::Arc;

use context_parallel::comm::threads;
use context_parallel::degree::Runtime;
use context_parallel::error::Result;
use context_parallel::handler::CpHandler;
use context_parallel::layout::{Packed, Thd};
use context_parallel::model::inputs::Inputs;
use context_parallel::model::{Config, ParameterList, Sizes, init};
use context_parallel::strategy::Ring;
use context_parallel::tensor::Cpu;
use context_parallel::train::data::TokenBatch;
use context_parallel::train::learner::GptLearner;
use context_parallel::train::trainer::Learner;

/// Steps before the count and under it.
const BEFORE: usize = 3;
const COUNTED: usize = 4;

#[test]
fn a_step_after_the_first_allocates_nothing() -> Result<()> {
    let sizes = Sizes { vocab_size: 300, hidden_size: 64, intermediate_size: 160, layers: 2, heads: 4, kv_heads: 2 };
    let config = Config::llama(sizes)?;
    let batch = TokenBatch::next_token((0..600).map(|token| token % 300).collect(), 2, 300);
    let mut all = Vec::new();
    for count in [1, 2] {
        let device = Cpu::<f32>::new(count);
        let comm = threads::run(1, Ok)?.remove(0);
        let handler = CpHandler::<Ring, Thd>::new(Ring::new(Runtime(1)), device.clone(), comm)?;
        let weights = init::fresh(&device, &config, &ParameterList::new(&config), 0)?;
        let mut learner = GptLearner::<Ring, Thd>::new(&config, weights, handler)?;
        let shape = Arc::new(Packed::from_lengths(&batch.lengths)?);
        let inputs = Inputs::new(learner.handler(), shape, &batch.tokens, &batch.labels)?;
        let mut step = || {
            learner.accumulate_inputs(&inputs, &[1e-3])?;
            learner.update(1e-3)
        };
        for _ in 0..BEFORE {
            step()?;
        }
        let mut done = Ok(0.0);
        let found = counter::count(|| {
            for _ in 0..COUNTED {
                done = step();
            }
        });
        assert!(done? > 0.0);
        all.push(found);
    }
    assert_eq!(all, [0, 0], "allocations of {COUNTED} steps on 1 and on 2 threads");
    Ok(())
}
