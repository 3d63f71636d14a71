//! A small model's loss and gradients at fresh weights, under one combination and under `Single`.

use std::collections::HashMap;

use context_parallel::error::Result;
use context_parallel::model::{Config, Sizes};
use context_parallel::strategy::select::Choice;
use context_parallel::strategy::{CpStrategy, Single};
use context_parallel::tensor::DType;
use context_parallel::train::data::{IGNORED, TokenBatch};

use super::super::engine::Cluster;
use super::super::hardware::Hardware;
use super::super::step::{StepInputs, StepOutcome, step};
use super::attention;

const VOCAB: usize = 61;
const SEQ: usize = 37;
const SEQUENCES: usize = 2;

/// Relative errors of loss and worst gradient, and for 16-bit types those of `Single`.
type Checked = ([f64; 2], Option<[f64; 2]>);

/// What `Single` gives, by (query heads, layout, kernel, type): computed once.
pub struct References<'a> {
    cluster: &'a Cluster,
    hardware: Hardware,
    dtype: DType,
    steps: HashMap<(usize, String, String, DType), Option<StepOutcome>>,
}

impl<'a> References<'a> {
    pub fn new((hardware, dtype): (Hardware, DType), cluster: &'a Cluster) -> Self {
        References { cluster, hardware, dtype, steps: HashMap::new() }
    }

    /// Relative errors of loss and worst gradient of `choice`, and for 16-bit types those of `Single` with the same
    /// layout and kernel. The reference is `Single` with thd and flash in `f32`, or in `f64` where that is checked.
    /// Nothing where this process does not speak.
    pub fn check(&mut self, choice: &Choice, threads: usize) -> Result<Option<Checked>> {
        let heads = attention::heads(choice.degree).0;
        let half = matches!(self.dtype, DType::Bf16 | DType::F16);
        let reference = self.single(heads, "thd", "flash", if half { DType::F32 } else { self.dtype })?;
        let found = run(self.cluster, choice, heads, (self.hardware, self.dtype), threads)?;
        let single = match half {
            true => self.single(heads, &choice.layout, &choice.kernel, self.dtype)?,
            false => None,
        };
        let (Some(reference), Some(found)) = (reference, found) else { return Ok(None) };
        let errors =
            |step: &StepOutcome| [step.loss_difference(&reference), step.worst_gradient_difference(&reference)];
        Ok(Some((errors(&found), single.as_ref().map(errors))))
    }

    fn single(&mut self, heads: usize, layout: &str, kernel: &str, dtype: DType) -> Result<Option<StepOutcome>> {
        let key = (heads, layout.to_string(), kernel.to_string(), dtype);
        if let Some(step) = self.steps.get(&key) {
            return Ok(step.clone());
        }
        let (strategy, order) = (Single::NAME.to_string(), "natural".to_string());
        let choice = Choice {
            strategy,
            order,
            layout: layout.to_string(),
            kernel: kernel.to_string(),
            degree: 1,
            ..Choice::default()
        };
        let step = run(self.cluster, &choice, heads, (self.hardware, dtype), 1)?;
        self.steps.insert(key, step.clone());
        Ok(step)
    }
}

fn run(
    cluster: &Cluster,
    choice: &Choice,
    heads: usize,
    (hardware, dtype): (Hardware, DType),
    threads: usize,
) -> Result<Option<StepOutcome>> {
    let mut config = Config::llama(Sizes {
        vocab_size: VOCAB,
        hidden_size: 8 * heads,
        intermediate_size: 48,
        layers: 2,
        heads,
        kv_heads: 2,
    })?;
    // Larger than usual, so that attention is not nearly uniform at fresh weights.
    config.initializer_range = 0.2;
    step(cluster, choice, dtype, StepInputs { config: &config, batch: &batch(), seed: 1, threads, hardware })
}

/// Labels that count are spread unevenly, so that a mean of means would show.
fn batch() -> TokenBatch {
    let count = (SEQUENCES * SEQ) as i64;
    let token = |i: i64| (i * i * 7 + 3 * i) % VOCAB as i64;
    let ignored = |i: i64| i % 7 == 0 || (20..31).contains(&i);
    let labels = (0..count).map(|i| if ignored(i) { IGNORED } else { token(i + 1) }).collect();
    TokenBatch::uniform((0..count).map(token).collect(), labels, SEQUENCES, SEQ)
}
