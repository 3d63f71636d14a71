//! Kind `batch_dense`: tokens, labels, loss mask, position ids and attention mask, cut for each rank.

use std::collections::BTreeMap;
use std::sync::Arc;

use context_parallel::error::Result;
use context_parallel::handler::HandlerRef;
use context_parallel::order::DynPlacement;
use context_parallel::tensor::{Cpu, Element};

use super::combinations::{self, Job, Outputs, cut};
use super::report::{CaseReport, compare};
use super::safetensors::File;
use super::tokens::{Expected, Rows, Tensors, TokenCase, shards, whole};

/// Fields that a batch can have.
const FIELDS: [&str; 5] = ["tokens", "labels", "loss_mask", "position_ids", "attention_mask"];

/// Reads a file of kind `batch_dense`.
pub fn read(file: &File, name: &str) -> Result<TokenCase, String> {
    let ranks = file.number("cp")?;
    let [batch, seq] = file.tensor("in.tokens")?.shape[..] else {
        return Err("in.tokens must be [batch, seq]".to_string());
    };
    let lengths = vec![seq; batch];
    let (mut inputs, mut expected) = (Tensors::new(), BTreeMap::new());
    for (field, tensor) in file.under("in.") {
        if !FIELDS.contains(&field) {
            return Err(format!("unknown field {field} of a batch"));
        }
        let input = Rows::new(tensor, batch * seq)?;
        let shards = shards(file, field, ranks, |tensor| Rows::new(tensor, batch * seq / ranks))?;
        let whole = whole(&lengths, &shards)?;
        // Nothing is computed here: what the ranks hold together is what went in.
        if let Some(what) = compare(field, &whole.values, &input.values, |_| 0.0) {
            return Err(format!("the ranks' parts are not the input: {what}"));
        }
        expected.insert(field.to_string(), Expected { tolerance: vec![0.0; whole.values.len()], whole });
        inputs.insert(field.to_string(), input);
    }
    let kind = "batch_dense".to_string();
    Ok(TokenCase { kind, name: name.to_string(), dense: true, lengths, ranks, inputs, expected })
}

/// Runs the case.
pub fn run(case: &TokenCase, report: &mut CaseReport) {
    combinations::run(case, &Cut { inputs: &case.inputs }, report);
}

/// What `get_batch_on_this_cp_rank` does with each field.
struct Cut<'a> {
    inputs: &'a Tensors,
}

/// From `f64`, and back.
type Both<T> = (fn(f64) -> T, fn(T) -> f64);

impl Cut<'_> {
    /// A field of the batch, if the case has it.
    fn field<T: Element>(
        &self,
        name: &str,
        handler: HandlerRef<'_, Cpu<f32>>,
        placement: &Arc<DynPlacement>,
        outputs: &mut Outputs,
        (narrow, widen): Both<T>,
    ) -> Result<()> {
        let Some(rows) = self.inputs.get(name) else { return Ok(()) };
        let shard = cut(handler, placement, rows, narrow)?;
        outputs.take(name, handler, &shard, widen)
    }
}

impl Job for Cut<'_> {
    fn run(
        &self,
        handler: HandlerRef<'_, Cpu<f32>>,
        placement: &Arc<DynPlacement>,
        outputs: &mut Outputs,
    ) -> Result<()> {
        for name in ["tokens", "labels", "position_ids"] {
            self.field(name, handler, placement, outputs, (|value| value as i64, |value| value as f64))?;
        }
        self.field("loss_mask", handler, placement, outputs, (|value| value as f32, f64::from))?;
        self.field("attention_mask", handler, placement, outputs, (|value| value as u8, f64::from))
    }
}
