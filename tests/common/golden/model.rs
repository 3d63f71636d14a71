//! Runs models of kind `hf` under every combination, on any device that stores `f32`: one pass, and training.

use std::collections::BTreeMap;
use std::path::Path;

use context_parallel::comm::{Collectives, threads};
use context_parallel::error::Result;
use context_parallel::handler::UntypedHandler;
use context_parallel::model::inputs::DynInputs;
use context_parallel::model::{Config, DynModel, ParameterList, weights};
use context_parallel::ops::Ops;
use context_parallel::ops::unfused::UnfusedAttention;
use context_parallel::order::{DynShard, token_by_token};
use context_parallel::strategy::select::{self, Choice};
use context_parallel::tensor::{Cpu, Matrix};
use context_parallel::train::data::TokenBatch;
use context_parallel::train::learner::{AdamwOptions, DynLearner, global_sum};
use context_parallel::train::trainer::Learner;

use super::combinations::{choices, describe};
use super::hf::{AdamW, Curve, ModelCase, Step, Tokens};
use super::report::CaseReport;

/// Runs the case on the processor.
pub fn run(case: &ModelCase, report: &mut CaseReport) {
    run_on(case, report, &|| Cpu::default(), &|_| true);
}

/// Runs the case on the device that each rank opens, under the combinations that are wanted.
pub fn run_on<D: Ops<Elem = f32, Acc = f32> + UnfusedAttention>(
    case: &ModelCase,
    report: &mut CaseReport,
    open: &(dyn Fn() -> D + Sync),
    is_wanted: &dyn Fn(&Choice) -> bool,
) {
    for (which, (tokens, expected)) in &case.steps {
        let name = format!("{} {which}", case.name);
        for choice in fitting(case, tokens.dense.is_some()).into_iter().filter(|choice| is_wanted(choice)) {
            report.run("hf", &name, &describe(&choice), || {
                let found = pass(&case.folder, &choice, tokens, open).map_err(|error| error.to_string())?;
                Ok(found.iter().flat_map(|found| expected.judge(found)).collect())
            });
        }
    }
    let Some((batches, adamw, expected)) = &case.training else { return };
    for choice in fitting(case, true).into_iter().filter(|choice| is_wanted(choice)) {
        report.run("hf", &format!("{} training", case.name), &describe(&choice), || {
            let found = training(&case.folder, &choice, (batches, adamw), open).map_err(|error| error.to_string())?;
            Ok(found.iter().flat_map(|found| expected.judge(found)).collect())
        });
    }
}

/// The combinations that can share out the model's heads.
fn fitting(case: &ModelCase, dense: bool) -> Vec<Choice> {
    let Ok(config) = Config::read(&case.folder) else { return choices(dense, None, true) };
    let fit = |choice| select::fit_heads(choice, config.heads).ok();
    choices(dense, None, true).into_iter().filter_map(fit).collect()
}

/// One forward and backward pass; gives what each rank gets.
fn pass<D: Ops<Elem = f32, Acc = f32> + UnfusedAttention>(
    folder: &Path,
    choice: &Choice,
    Tokens { lengths, tokens, labels, .. }: &Tokens,
    open: &(dyn Fn() -> D + Sync),
) -> Result<Vec<Step>> {
    let (chosen, config) = (select::chosen(choice)?, Config::read(folder)?);
    let batch = chosen.layout.batch_of(lengths)?;
    let counted = labels.iter().filter(|&&label| label != -100).count() as f64;
    threads::run_on::<D::Storage, _, _>(threads::Waiting::default(), choice.degree, |comm| {
        let device = open();
        let handler = UntypedHandler::new(chosen.strategy.clone(), chosen.layout, device.clone(), Box::new(comm))?;
        let parameters = weights::load(&device, folder, &ParameterList::new(&config))?;
        let model = DynModel::from_parameters(device.clone(), &config, parameters, chosen.kernel.object())?;
        let placement = handler.place_for(batch.clone(), &model.mask_weights())?;
        let inputs = DynInputs::placed(handler.by_ref(), &placement, tokens, labels)?;
        let activations = model.forward(handler.by_ref(), &inputs.tokens)?;
        let logits = DynShard::new(model.logits(&activations), placement.clone())?;
        let logits = handler.by_ref().combine(&logits)?;
        let logits = Matrix::from_slice(&device.read(&logits)?, logits.rows(), logits.cols());
        let logits = token_by_token(&logits, &*batch, chosen.layout);
        let mut gradients = model.zero_gradients();
        let (labels, weights) = (&inputs.labels, &inputs.weights);
        let (sum, dhidden) =
            model.loss_backward(&activations, labels, weights, 1.0 / counted.max(1.0), &mut gradients)?;
        model.backward(handler.by_ref(), activations, &dhidden, &mut gradients)?;
        handler.comm().all_reduce(gradients.flat_mut())?;
        let list = gradients.list().clone();
        let named = list.iter().map(|(id, spec)| {
            let values = gradients.to_host(&device, id)?.into_iter().map(f64::from).collect();
            Ok((spec.name.clone(), values))
        });
        Ok(Step {
            logits: logits.into_iter().map(f64::from).collect(),
            loss: global_sum(&device, handler.comm(), sum)? / counted.max(1.0),
            gradients: named.collect::<Result<BTreeMap<_, _>>>()?,
        })
    })
}

/// Training from the given weights; gives each rank's curve.
fn training<D: Ops<Elem = f32, Acc = f32> + UnfusedAttention>(
    folder: &Path,
    choice: &Choice,
    (batches, adamw): (&[Tokens], &AdamW),
    open: &(dyn Fn() -> D + Sync),
) -> Result<Vec<Curve>> {
    let AdamW { learning_rate, beta1, beta2, epsilon, weight_decay, clip } = *adamw;
    let options = AdamwOptions { beta1, beta2, eps: epsilon, weight_decay, clip };
    let (chosen, config) = (select::chosen(choice)?, Config::read(folder)?);
    threads::run_on::<D::Storage, _, _>(threads::Waiting::default(), choice.degree, |comm| {
        let device = open();
        let handler = UntypedHandler::new(chosen.strategy.clone(), chosen.layout, device.clone(), Box::new(comm))?;
        let master = weights::load_master(&device, folder, &ParameterList::new(&config))?;
        let mut learner = DynLearner::new(&config, master, handler, chosen.kernel.object())?.with_options(options);
        let mut curve = Curve::default();
        for Tokens { dense, tokens, labels, .. } in batches {
            let (batch, seq) = dense.unwrap_or((1, tokens.len()));
            let batch = TokenBatch::uniform(tokens.clone(), labels.clone(), batch, seq);
            let counted = batch.counted();
            curve.loss.push(learner.accumulate(&batch, counted)? / counted as f64);
            curve.gradient_norm.push(learner.update(learning_rate)?);
        }
        Ok(curve)
    })
}
