//! Kind `hf`: a model as Hugging Face wrote it, and what it must compute.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use context_parallel::oracle::norm;

use super::report::{compare, compare_relative};
use super::safetensors::{File, Tensor};
use super::tokens::lengths;

/// Token ids in their shape.
#[derive(Clone, Debug)]
pub struct Tokens {
    /// Lengths of the sequences or documents.
    pub lengths: Vec<usize>,
    /// Batch and sequence length, if dense.
    pub dense: Option<(usize, usize)>,
    /// Ids, sequence by sequence.
    pub tokens: Vec<i64>,
    /// Labels, already shifted; -100 does not count.
    pub labels: Vec<i64>,
}

/// What one forward and backward pass gives.
#[derive(Clone, Debug, Default)]
pub struct Step {
    /// `[tokens, vocabulary]`, sequence by sequence.
    pub logits: Vec<f64>,
    /// Mean over the labels that count.
    pub loss: f64,
    /// Gradient of every parameter.
    pub gradients: BTreeMap<String, Vec<f64>>,
}

/// What training gives, by step.
#[derive(Clone, Debug, Default)]
pub struct Curve {
    /// Loss before the update.
    pub loss: Vec<f64>,
    /// Global norm of the gradient before clipping.
    pub gradient_norm: Vec<f64>,
}

/// Hyper-parameters of AdamW.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate, constant.
    pub learning_rate: f64,
    /// Decay of the mean.
    pub beta1: f64,
    /// Decay of the mean of squares.
    pub beta2: f64,
    /// Added to the root.
    pub epsilon: f64,
    /// Decay of parameters with two or more dimensions.
    pub weight_decay: f64,
    /// Largest global norm.
    pub clip: f64,
}

/// A folder with a model.
pub struct ModelCase {
    /// Its name.
    pub name: String,
    /// `config.json` and `model.safetensors` lie here.
    pub folder: PathBuf,
    /// One forward and backward pass each: `dense` and `packed`, where present.
    pub steps: BTreeMap<&'static str, (Tokens, Step)>,
    /// Training: tokens and labels of each step, hyper-parameters, and what must come out.
    pub training: Option<(Vec<Tokens>, AdamW, Curve)>,
}

/// Reads a folder of kind `hf`.
pub fn read(folder: &Path, expected: &File, name: &str) -> Result<ModelCase, String> {
    let weights = File::read(&folder.join("model.safetensors"))?;
    let mut steps = BTreeMap::new();
    for which in ["dense", "packed"] {
        if expected.tensor(&format!("{which}.tokens")).is_ok() {
            steps.insert(which, step(expected, &weights, which)?);
        }
    }
    let training = expected.tensor("train.tokens").is_ok().then(|| training(expected)).transpose()?;
    if steps.is_empty() && training.is_none() {
        return Err("nothing is expected of the model".to_string());
    }
    Ok(ModelCase { name: name.to_string(), folder: folder.to_path_buf(), steps, training })
}

fn step(expected: &File, weights: &File, which: &str) -> Result<(Tokens, Step), String> {
    let tensor = |name: &str| expected.tensor(&format!("{which}.{name}"));
    let tokens = tensor("tokens")?;
    let (dense, lengths) = match tokens.shape[..] {
        [batch, seq] => (Some((batch, seq)), vec![seq; batch]),
        _ => (None, lengths(tensor("cu_seqlens")?)?),
    };
    let tokens = Tokens { lengths, dense, tokens: tokens.i64s()?, labels: tensor("labels")?.i64s()? };
    let mut gradients = BTreeMap::new();
    for (parameter, gradient) in expected.under(&format!("{which}.grad.")) {
        if weights.tensor(parameter)?.shape != gradient.shape {
            return Err(format!("the gradient of {parameter} has shape {:?}", gradient.shape));
        }
        gradients.insert(parameter.to_string(), gradient.f64s());
    }
    let step = Step { logits: tensor("logits")?.f64s(), loss: scalar(tensor("loss")?)?, gradients };
    Ok((tokens, step))
}

fn training(expected: &File) -> Result<(Vec<Tokens>, AdamW, Curve), String> {
    let tokens = expected.tensor("train.tokens")?;
    let [steps, batch, seq] = tokens.shape[..] else {
        return Err("train.tokens must be [steps, batch, seq]".to_string());
    };
    let ids = tokens.i64s()?;
    let batches = ids.chunks(batch * seq).map(|tokens| {
        // Labels are the tokens after, the last position of a sequence does not count.
        let next = |i: usize| if (i + 1).is_multiple_of(seq) { -100 } else { tokens[i + 1] };
        let labels = (0..tokens.len()).map(next).collect();
        Tokens { lengths: vec![seq; batch], dense: Some((batch, seq)), tokens: tokens.to_vec(), labels }
    });
    let number =
        |key: &str| expected.meta["adamw"][key].as_f64().ok_or_else(|| format!("`adamw` has no number `{key}`"));
    let adamw = AdamW {
        learning_rate: number("lr")?,
        beta1: number("beta1")?,
        beta2: number("beta2")?,
        epsilon: number("eps")?,
        weight_decay: number("weight_decay")?,
        clip: number("grad_clip")?,
    };
    let curve = Curve {
        loss: expected.tensor("train.loss")?.f64s(),
        gradient_norm: expected.tensor("train.grad_norm")?.f64s(),
    };
    if curve.loss.len() != steps || curve.gradient_norm.len() != steps {
        return Err(format!("{steps} steps of training, {} losses", curve.loss.len()));
    }
    Ok((batches.collect(), adamw, curve))
}

fn scalar(tensor: &Tensor) -> Result<f64, String> {
    match tensor.f64s()[..] {
        [value] => Ok(value),
        _ => Err(format!("one number was expected, found shape {:?}", tensor.shape)),
    }
}

impl Step {
    /// Everything in which `found` differs from this by more than the bounds for `f32`.
    pub fn judge(&self, found: &Step) -> Vec<String> {
        let mut wrong = Vec::new();
        wrong.extend(compare("logits", &found.logits, &self.logits, |_| 2e-5));
        wrong.extend(compare_relative("loss", found.loss, self.loss, 1e-6));
        for (parameter, expected) in &self.gradients {
            match found.gradients.get(parameter) {
                None => wrong.push(format!("no gradient of {parameter}")),
                Some(found) => wrong.extend(gradient_differs(parameter, found, expected)),
            }
        }
        let unknown = found.gradients.keys().filter(|parameter| !self.gradients.contains_key(*parameter));
        wrong.extend(unknown.map(|parameter| format!("a gradient of {parameter}, which the model does not have")));
        wrong
    }
}

/// Norm of the difference at most 1e-5 of the norm, or 1e-6 where the gradient is about 0.
fn gradient_differs(parameter: &str, found: &[f64], expected: &[f64]) -> Option<String> {
    if found.len() != expected.len() {
        return Some(format!("the gradient of {parameter} has {} values, expected {}", found.len(), expected.len()));
    }
    let expected_norm = norm(expected);
    let bound = if expected_norm < 1e-6 { 1e-6 } else { 1e-5 * expected_norm };
    let squares: f64 = found.iter().zip(expected).map(|(found, expected)| (found - expected).powi(2)).sum();
    let agrees = squares.sqrt() <= bound;
    (!agrees).then(|| {
        let error = squares.sqrt();
        format!("the gradient of {parameter} is off by {error:.3e}, bound {bound:.3e}, norm {expected_norm:.3e}")
    })
}

impl Curve {
    /// Everything in which `found` differs from this by more than the bounds for `f32`.
    pub fn judge(&self, found: &Curve) -> Vec<String> {
        let series = [
            ("loss", &found.loss, &self.loss, 2e-5),
            ("gradient norm", &found.gradient_norm, &self.gradient_norm, 1e-4),
        ];
        let mut wrong = Vec::new();
        for (name, found, expected, bound) in series {
            if found.len() != expected.len() {
                wrong.push(format!("{} values of {name}, expected {}", found.len(), expected.len()));
                continue;
            }
            let compare = |(i, (&found, &expected)): (usize, (&f64, &f64))| {
                compare_relative(&format!("{name} of step {i}"), found, expected, bound)
            };
            wrong.extend(found.iter().zip(expected).enumerate().filter_map(compare));
        }
        wrong
    }
}
