//! Kinds `rope_dense` and `rope_thd`: heads turned by their positions, and the gradient of that.

use std::collections::BTreeMap;

use context_parallel::oracle::{Rotary, Stretch};
use context_parallel::tensor::DType;
use serde_json::Value;

use super::report::Report;
use super::safetensors::{File, Tensor};
use super::tokens::{Expected, Given, Rows, Tensors, TokenCase, lengths, shards, whole, zigzag};

/// A case and its rotary embedding.
pub struct RopeCase {
    /// Inputs `x` and `grad_out`, outputs `out` and `grad_x`.
    pub tokens: TokenCase,
    /// Heads of a row.
    pub heads: usize,
    /// The embedding, for the oracle.
    pub rotary: Rotary,
    /// Storage type.
    pub dtype: DType,
}

/// Reads a file of kind `rope_dense` or `rope_thd`.
pub fn read(file: &File, kind: &str, name: &str) -> Result<RopeCase, String> {
    let ranks = file.number("cp")?;
    let x = file.tensor("in.x")?;
    let &[.., heads, head_dim] = &x.shape[..] else {
        return Err("in.x must end in [heads, head_dim]".to_string());
    };
    let (dense, lengths) = match (kind, &x.shape[..]) {
        ("rope_dense", &[seq, batch, _, _]) => (Some((batch, seq)), vec![seq; batch]),
        ("rope_thd", &[_, _, _]) => (None, lengths(file.tensor("in.cu_seqlens")?)?),
        _ => return Err(format!("in.x has shape {:?}", x.shape)),
    };
    let read = |tensor: &Tensor| match dense {
        Some(_) => Rows::sequence_first(tensor),
        None => Rows::new(tensor, tensor.shape[0]),
    };
    let rotary = rotary(&file.meta["rope"], head_dim)?;
    let (mut inputs, mut expected) = (Tensors::new(), BTreeMap::new());
    for (input, output) in [("x", "out"), ("grad_out", "grad_x")] {
        let given = read(file.tensor(&format!("in.{input}"))?)?;
        let whole = whole(&lengths, &shards(file, output, ranks, read)?)?;
        let tolerance = match x.dtype {
            DType::F32 => whole.values.iter().map(|value| 1e-5 * (1.0 + value.abs())).collect(),
            DType::Bf16 => bf16_tolerance(&rotary, &given.values),
            other => return Err(format!("no bound is known for {other}")),
        };
        expected.insert(output.to_string(), Expected { whole, tolerance });
        inputs.insert(input.to_string(), given);
    }
    for rank in 0..ranks {
        if let Ok(rows) = file.tensor(&format!("rank{rank}.rows")) {
            let rows: Vec<usize> = rows.i64s()?.into_iter().map(|row| row as usize).collect();
            if zigzag(&lengths, ranks, rank).as_ref() != Some(&rows) {
                return Err(format!("rank{rank}.rows is not the zigzag of the documents: {rows:?}"));
            }
        }
    }
    let (kind, name) = (kind.to_string(), name.to_string());
    let tokens = TokenCase { kind, name, dense, lengths, ranks, inputs, expected };
    Ok(RopeCase { tokens, heads, rotary, dtype: x.dtype })
}

/// `3 * 2^-8 * concentration * (|a| + |b|)` for the pair (a, b) that a value is turned from; 0 for a feature that is
/// not turned.
fn bf16_tolerance(rotary: &Rotary, x: &[f64]) -> Vec<f64> {
    let mut tolerance = vec![0.0; x.len()];
    for start in (0..x.len()).step_by(rotary.head_dim) {
        for pair in 0..rotary.rotated() / 2 {
            let (first, second) = rotary.features(pair);
            let (first, second) = (start + first, start + second);
            let bound = 3.0 / 256.0 * rotary.concentration() * (x[first].abs() + x[second].abs());
            (tolerance[first], tolerance[second]) = (bound, bound);
        }
    }
    tolerance
}

/// The embedding that the metadata describes.
fn rotary(rope: &Value, head_dim: usize) -> Result<Rotary, String> {
    let known = "type base percent interleaved interp factor orig mscale mscale_all_dim";
    let fields = rope.as_object().ok_or("no `rope` in the metadata")?;
    if let Some(unknown) = fields.keys().find(|key| !known.split(' ').any(|known| known == *key)) {
        return Err(format!("unknown field `{unknown}` of `rope`"));
    }
    let number = |key: &str| rope[key].as_f64().ok_or_else(|| format!("`rope` has no number `{key}`"));
    let stretch = match rope["type"].as_str() {
        Some("plain") => Stretch::None,
        Some("llama3") => Stretch::Llama3 {
            factor: number("factor")?,
            low: 1.0,
            high: 4.0,
            original: rope["orig"].as_f64().unwrap_or(8192.0),
        },
        Some("yarn") => Stretch::Yarn {
            factor: number("factor")?,
            original: number("orig")?,
            beta_fast: 32.0,
            beta_slow: 1.0,
            mscale: rope["mscale"].as_f64(),
            mscale_all_dim: rope["mscale_all_dim"].as_f64(),
        },
        other => return Err(format!("unknown rope type {other:?}")),
    };
    Ok(Rotary {
        head_dim,
        base: number("base")?,
        percent: rope["percent"].as_f64().unwrap_or(1.0),
        interleaved: rope["interleaved"].as_bool().unwrap_or(false),
        interpolation: rope["interp"].as_f64(),
        stretch,
    })
}

/// Runs the case.
pub fn run(case: &RopeCase, report: &mut Report) {
    case.tokens.run(report, "oracle", false, |tokens| {
        let positions: Vec<usize> = tokens.lengths.iter().flat_map(|&length| 0..length).collect();
        let turn = |input: &str, inverse: bool| {
            let rows = &tokens.inputs[input];
            Rows { values: case.rotary.rotate(&rows.values, case.heads, &positions, inverse), ..*rows }
        };
        let whole = [("out".to_string(), turn("x", false)), ("grad_x".to_string(), turn("grad_out", true))];
        Ok(Given { whole: Tensors::from(whole), ..Given::default() })
    });
}
