//! Kind `batch_dense`: tokens, labels, loss mask, position ids and attention mask, cut for each rank.

use std::collections::BTreeMap;
use std::sync::Arc;

use context_parallel::comm::Communicator;
use context_parallel::error::Result;
use context_parallel::handler::{CpHandler, WholeBatch};
use context_parallel::layout::Layout;
use context_parallel::order::{Full, Placement};
use context_parallel::strategy::CpStrategy;
use context_parallel::tensor::{Cpu, Element};

use super::combinations::{self, Job, Outputs};
use super::report::{Report, compare};
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
pub fn run(case: &TokenCase, report: &mut Report) {
    combinations::run(case, &Cut { inputs: &case.inputs }, report);
}

/// `get_batch_on_this_cp_rank`.
struct Cut<'a> {
    inputs: &'a Tensors,
}

impl Cut<'_> {
    /// A field of the whole batch, if the case has it.
    fn field<L: Layout, T: Element>(
        &self,
        name: &str,
        batch: &Arc<L::Batch>,
        narrow: impl Fn(f64) -> T,
    ) -> Result<Option<Full<L, T>>> {
        let full = |rows: &Rows| {
            let values: Vec<T> = rows.values.iter().map(|&value| narrow(value)).collect();
            Full::from_batch_first(&values, rows.features, batch.clone())
        };
        self.inputs.get(name).map(full).transpose()
    }
}

impl Job for Cut<'_> {
    fn run<H: CpStrategy, L: Layout, C: Communicator>(
        &self,
        handler: &CpHandler<H, L, C>,
        placement: &Arc<Placement<H::Order, L>>,
        outputs: &mut Outputs,
    ) -> Result<()> {
        let batch = placement.batch();
        let whole = WholeBatch {
            tokens: self.field("tokens", batch, |value| value as i64)?,
            labels: self.field("labels", batch, |value| value as i64)?,
            loss_mask: self.field("loss_mask", batch, |value| value as f32)?,
            position_ids: self.field("position_ids", batch, |value| value as i64)?,
            attention_mask: self.field("attention_mask", batch, |value| value as u8)?,
        };
        let cut = handler.get_batch_on_this_cp_rank(&Cpu::<f32>::default(), placement, &whole)?;
        let whole_numbers = [("tokens", &cut.tokens), ("labels", &cut.labels), ("position_ids", &cut.position_ids)];
        for (name, shard) in whole_numbers {
            if let Some(shard) = shard {
                outputs.take(name, handler, shard, |value| value as f64)?;
            }
        }
        if let Some(shard) = &cut.loss_mask {
            outputs.take("loss_mask", handler, shard, f64::from)?;
        }
        if let Some(shard) = &cut.attention_mask {
            outputs.take("attention_mask", handler, shard, f64::from)?;
        }
        Ok(())
    }
}
