//! Kind `batch_dense`: tokens, labels, loss mask, position ids and attention mask, cut for each rank.

use std::collections::BTreeMap;

use super::report::{Report, compare};
use super::safetensors::File;
use super::tokens::{Expected, Given, Rows, Tensors, TokenCase, shards, whole};

/// Reads a file of kind `batch_dense`.
pub fn read(file: &File, name: &str) -> Result<TokenCase, String> {
    let ranks = file.number("cp")?;
    let [batch, seq] = file.tensor("in.tokens")?.shape[..] else {
        return Err("in.tokens must be [batch, seq]".to_string());
    };
    let lengths = vec![seq; batch];
    let (mut inputs, mut expected) = (Tensors::new(), BTreeMap::new());
    for (field, tensor) in file.under("in.") {
        let input = Rows::new(tensor, batch * seq)?;
        let shards = shards(file, field, ranks, |tensor| Rows::new(tensor, batch * seq / ranks))?;
        let whole = whole(&lengths, &shards)?;
        // The only whole number rule of this file: what the ranks hold together is what went in.
        if let Some(what) = compare(field, &whole.values, &input.values, |_| 0.0) {
            return Err(format!("the ranks' parts are not the input: {what}"));
        }
        expected.insert(field.to_string(), Expected { tolerance: vec![0.0; whole.values.len()], whole });
        inputs.insert(field.to_string(), input);
    }
    let kind = "batch_dense".to_string();
    Ok(TokenCase { kind, name: name.to_string(), dense: Some((batch, seq)), lengths, ranks, inputs, expected })
}

/// Runs the case.
pub fn run(case: &TokenCase, report: &mut Report) {
    // The input itself, which must pass, so that the comparison is known to be of the right tensors.
    case.run(report, "input", true, |case| Ok(Given { whole: case.inputs.clone(), ..Given::default() }));
}
