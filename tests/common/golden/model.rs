//! Runs models of kind `hf` under every combination: one pass, and training.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use context_parallel::comm::{Collectives, threads};
use context_parallel::error::Result;
use context_parallel::handler::CpHandler;
use context_parallel::layout::Layout;
use context_parallel::model::inputs::Inputs;
use context_parallel::model::{Config, GptModel, ParameterList, weights};
use context_parallel::order::Shard;
use context_parallel::strategy::support::{self, Choice, Visitor};
use context_parallel::strategy::{Kernel, Supports};
use context_parallel::tensor::Cpu;
use context_parallel::train::data::TokenBatch;
use context_parallel::train::learner::{AdamwOptions, GptLearner, global_sum};
use context_parallel::train::trainer::Learner;

use super::combinations::{choices, describe};
use super::hf::{AdamW, Curve, ModelCase, Step, Tokens};
use super::report::Report;

/// Runs the case.
pub fn run(case: &ModelCase, report: &mut Report) {
    for (which, (tokens, expected)) in &case.steps {
        let name = format!("{} {which}", case.name);
        for choice in fitting(case, tokens.dense.is_some()) {
            report.run("hf", &name, &describe(&choice), || {
                let pass = Pass { folder: &case.folder, ranks: choice.degree, tokens };
                let found = support::select(&choice, pass).map_err(|error| error.to_string())?;
                Ok(found.iter().flat_map(|found| expected.judge(found)).collect())
            });
        }
    }
    let Some((batches, adamw, expected)) = &case.training else { return };
    for choice in fitting(case, true) {
        report.run("hf", &format!("{} training", case.name), &describe(&choice), || {
            let training = Training { folder: &case.folder, ranks: choice.degree, batches, adamw };
            let found = support::select(&choice, training).map_err(|error| error.to_string())?;
            Ok(found.iter().flat_map(|found| expected.judge(found)).collect())
        });
    }
}

/// The combinations that can share out the model's heads.
fn fitting(case: &ModelCase, dense: bool) -> Vec<Choice> {
    let Ok(config) = Config::read(&case.folder) else { return choices(dense, None, true) };
    let fit = |choice| support::fit_heads(choice, config.heads).ok();
    choices(dense, None, true).into_iter().filter_map(fit).collect()
}

/// One forward and backward pass; gives what each rank gets.
struct Pass<'a> {
    folder: &'a Path,
    ranks: usize,
    tokens: &'a Tokens,
}

impl Visitor for Pass<'_> {
    type Output = Vec<Step>;

    fn visit<H, L, K>(self, strategy: H) -> Result<Vec<Step>>
    where
        H: Supports<L, K>,
        L: Layout,
        K: Kernel,
    {
        let Tokens { lengths, tokens, labels, .. } = self.tokens;
        let batch = Arc::new(L::batch_of(lengths)?);
        let counted = labels.iter().filter(|&&label| label != -100).count() as f64;
        threads::run(self.ranks, |comm| {
            let device = Cpu::<f32>::default();
            let handler = CpHandler::<H, L, _>::new(strategy, comm)?;
            let model = GptModel::<H, L, K>::load(device.clone(), self.folder)?;
            let inputs = Inputs::new(&handler, &device, batch.clone(), tokens, labels)?;
            let activations = model.forward(&handler, &inputs.tokens)?;
            let logits = Shard::new(model.logits(&activations), inputs.tokens.placement().clone())?;
            let logits = handler.combine(&device, &logits)?.to_batch_first();
            let mut gradients = model.zero_gradients();
            let (labels, weights) = (&inputs.labels, &inputs.weights);
            let (sum, dhidden) =
                model.loss_backward(&activations, labels, weights, 1.0 / counted.max(1.0), &mut gradients)?;
            model.backward(&handler, activations, &dhidden, &mut gradients)?;
            for gradient in gradients.values_mut() {
                handler.comm().all_reduce(gradient.buffer_mut())?;
            }
            let list = gradients.list().clone();
            let named = list.iter().map(|(id, spec)| {
                let values = gradients.to_host(&device, id).into_iter().map(f64::from).collect();
                (spec.name.clone(), values)
            });
            Ok(Step {
                logits: logits.into_iter().map(f64::from).collect(),
                loss: global_sum(&device, handler.comm(), sum)? / counted.max(1.0),
                gradients: named.collect::<BTreeMap<_, _>>(),
            })
        })
    }
}

/// Training from the given weights; gives each rank's curve.
struct Training<'a> {
    folder: &'a Path,
    ranks: usize,
    batches: &'a [Tokens],
    adamw: &'a AdamW,
}

impl Visitor for Training<'_> {
    type Output = Vec<Curve>;

    fn visit<H, L, K>(self, strategy: H) -> Result<Vec<Curve>>
    where
        H: Supports<L, K>,
        L: Layout,
        K: Kernel,
    {
        let AdamW { learning_rate, beta1, beta2, epsilon, weight_decay, clip } = *self.adamw;
        let options = AdamwOptions { beta1, beta2, eps: epsilon, weight_decay, clip };
        let config = Config::read(self.folder)?;
        threads::run(self.ranks, |comm| {
            let device = Cpu::<f32>::default();
            let handler = CpHandler::<H, L, _>::new(strategy, comm)?;
            let master = weights::load_master(&device, self.folder, &ParameterList::new(&config))?;
            let mut learner = GptLearner::<H, L, K, _, _>::new(device, &config, master, handler, options, false)?;
            let mut curve = Curve::default();
            for Tokens { dense, tokens, labels, .. } in self.batches {
                let (batch, seq) = dense.unwrap_or((1, tokens.len()));
                let batch = TokenBatch::uniform(tokens.clone(), labels.clone(), batch, seq);
                let counted = batch.counted();
                curve.loss.push(learner.accumulate(&batch, counted)? / counted as f64);
                curve.gradient_norm.push(learner.update(learning_rate)?);
            }
            Ok(curve)
        })
    }
}
