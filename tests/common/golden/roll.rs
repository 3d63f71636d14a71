//! Kinds `roll_dense` and `roll_thd`: every token takes the value of a neighbour in its sequence or document.

use std::collections::BTreeMap;
use std::sync::Arc;

use context_parallel::error::Result;
use context_parallel::handler::HandlerRef;
use context_parallel::oracle;
use context_parallel::order::DynPlacement;
use context_parallel::tensor::Cpu;

use super::combinations::{self, Job, Outputs, cut};
use super::report::{CaseReport, compare_relative};
use super::safetensors::File;
use super::tokens::{Expected, Given, Rows, Tensors, TokenCase, lengths, shards, whole};

/// Reads a file of kind `roll_dense` or `roll_thd`; also gives the shift.
pub fn read(file: &File, kind: &str, name: &str) -> Result<(TokenCase, i64), String> {
    let ranks = file.number("cp")?;
    let shift = file.meta["shift"].as_i64().ok_or("no number `shift`")?;
    let [batch, seq] = file.tensor("in.x")?.shape[..] else {
        return Err("in.x must be [batch, seq]".to_string());
    };
    // Every row of a packed file has the same documents.
    let (dense, lengths) = match kind {
        "roll_dense" => (true, vec![seq; batch]),
        _ => (false, vec![lengths(file.tensor("in.cu_seqlens")?)?; batch].concat()),
    };
    let shards = shards(file, "out", ranks, |tensor| Rows::new(tensor, batch * seq / ranks))?;
    for (rank, shard) in shards.iter().enumerate() {
        let sum = file.tensor(&format!("rank{rank}.local_sum"))?.f64s();
        if let Some(what) = compare_relative("local_sum", shard.values.iter().sum(), sum[0], 1e-6) {
            return Err(format!("rank {rank}: {what}"));
        }
    }
    let out = whole(&lengths, &shards)?;
    let expected = Expected { tolerance: vec![0.0; out.values.len()], whole: out };
    let case = TokenCase {
        kind: kind.to_string(),
        name: name.to_string(),
        dense,
        lengths,
        ranks,
        inputs: Tensors::from([("x".to_string(), Rows::new(file.tensor("in.x")?, batch * seq)?)]),
        expected: BTreeMap::from([("out".to_string(), expected)]),
    };
    Ok((case, shift))
}

/// Runs the case.
pub fn run(case: &TokenCase, shift: i64, report: &mut CaseReport) {
    case.run(report, "oracle", false, |case| {
        let x = &case.inputs["x"];
        let documents = oracle::documents(&case.lengths, &case.lengths);
        let values = oracle::roll(&x.values, x.features, &documents, shift, 0.0);
        Ok(Given { whole: Tensors::from([("out".to_string(), Rows { values, ..*x })]), ..Given::default() })
    });
    combinations::run(case, &HandlerRoll { x: &case.inputs["x"], shift }, report);
}

/// `roll`; the handler counts the other way round: an offset of 1 is a shift of -1.
struct HandlerRoll<'a> {
    x: &'a Rows,
    shift: i64,
}

impl Job for HandlerRoll<'_> {
    fn run(
        &self,
        handler: HandlerRef<'_, Cpu<f32>>,
        placement: &Arc<DynPlacement>,
        outputs: &mut Outputs,
    ) -> Result<()> {
        let shard = cut(handler, placement, self.x, |value| value)?;
        let rolled = handler.roll(&shard, -self.shift, 0.0)?;
        outputs.take("out", handler, &rolled, |value| value)
    }
}
