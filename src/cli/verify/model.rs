//! A small model's loss and gradients at fresh weights, under one combination and under `Single`.

use std::sync::Arc;

use context_parallel::comm::{Communicator, threads};
use context_parallel::error::Result;
use context_parallel::handler::CpHandler;
use context_parallel::layout::{Layout, Thd};
use context_parallel::model::inputs::Inputs;
use context_parallel::model::{Config, Master, ParameterList, Sizes, init};
use context_parallel::ops::Ops;
use context_parallel::oracle::{norm, relative_error};
use context_parallel::strategy::{Flash, Kernel, Single, Supports};
use context_parallel::tensor::{Cpu, Device, Float, Host};
use context_parallel::train::data::IGNORED;
use context_parallel::train::learner::{AdamwOptions, GptLearner, global_sum};

/// What one step at fresh weights gives: the mean loss, and each parameter's gradient.
#[derive(Clone, Debug)]
pub struct Step {
    pub loss: f64,
    pub gradients: Vec<Vec<f64>>,
}

impl Step {
    /// Relative difference of the loss, and of the parameter whose gradient differs most.
    pub fn difference(&self, reference: &Step) -> (f64, f64) {
        let loss = relative_error(&[self.loss], &[reference.loss], 0.0);
        let all: f64 = reference.gradients.iter().map(|gradient| norm(gradient).powi(2)).sum::<f64>().sqrt();
        let worst = self.gradients.iter().zip(&reference.gradients);
        (loss, worst.map(|(found, reference)| relative_error(found, reference, 1e-3 * all)).fold(0.0, f64::max))
    }
}

/// The model: two layers, one of them with a sliding window, grouped queries, biases.
fn config(heads: usize, kv_heads: usize) -> Result<Config> {
    let sizes =
        Sizes { vocab_size: 61, hidden_size: 8 * heads, intermediate_size: 48, layers: 2, heads, kv_heads };
    Config::llama(sizes)
}

/// One forward and backward pass of `H` on `cp` threads.
pub fn step<H, L, K, T>(strategy: H, cp: usize, (heads, kv_heads): (usize, usize)) -> Result<Step>
where
    H: Supports<L, K>,
    L: Layout,
    K: Kernel,
    T: Float,
    Cpu<T>: Ops + Device<Elem = T, Acc = T::Acc, Storage = Host>,
{
    let config = config(heads, kv_heads)?;
    let lengths = vec![37; 2];
    let tokens: Vec<i64> = (0..74).map(|i| (i * i * 7 + 3 * i) % 61).collect();
    // Labels that count are spread unevenly, so that a mean of means would show.
    let label = |i: usize| if i.is_multiple_of(7) || (20..31).contains(&i) { IGNORED } else { tokens[(i + 1) % 74] };
    let labels: Vec<i64> = (0..74).map(label).collect();
    let counted = labels.iter().filter(|&&label| label != IGNORED).count();
    let mut steps = threads::run(cp, |comm| {
        let device = Cpu::<T>::new(1);
        let handler = CpHandler::<H, L, _>::new(strategy, comm)?;
        let list = ParameterList::new(&config);
        let master: Master<Cpu<T>> = init::fresh(&device, &config, &list, 1)?;
        let batch = Arc::new(L::batch_of(&lengths)?);
        let learner = GptLearner::<H, L, K, _, _>::new(
            device.clone(),
            &config,
            master,
            handler,
            AdamwOptions::default(),
            false,
        )?;
        one_step(learner, &device, batch, &tokens, &labels, counted)
    })?;
    Ok(steps.swap_remove(0))
}

fn one_step<H, L, K, T, C>(
    mut learner: GptLearner<H, L, K, Cpu<T>, C>,
    device: &Cpu<T>,
    batch: Arc<L::Batch>,
    tokens: &[i64],
    labels: &[i64],
    counted: usize,
) -> Result<Step>
where
    H: Supports<L, K>,
    L: Layout,
    K: Kernel,
    T: Float,
    Cpu<T>: Ops + Device<Elem = T, Acc = T::Acc, Storage = Host>,
    C: Communicator,
{
    let inputs = Inputs::new(learner.handler(), device, batch, tokens, labels)?;
    let sum = learner.accumulate_inputs(&inputs, 1.0 / counted as f64)?;
    learner.reduce_gradients()?;
    let loss = global_sum(device, learner.handler().comm(), sum)? / counted as f64;
    let gradients = learner.gradients().values().iter();
    let gradients = gradients.map(|gradient| gradient.iter().map(|&x| x.to_f64()).collect()).collect();
    Ok(Step { loss, gradients })
}

/// The reference: `Single` in `f32`, or in `f64` where that is checked.
pub fn reference(double: bool, heads: (usize, usize)) -> Result<Step> {
    match double {
        true => step::<Single, Thd, Flash, f64>(Single, 1, heads),
        false => step::<Single, Thd, Flash, f32>(Single, 1, heads),
    }
}
