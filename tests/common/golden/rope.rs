//! Kinds `rope_dense` and `rope_thd`: heads turned by their positions, and the gradient of that.

use std::collections::BTreeMap;
use std::sync::Arc;

use context_parallel::error::Result;
use context_parallel::handler::HandlerRef;
use context_parallel::oracle::{Rotation, Stretch};
use context_parallel::order::DynPlacement;
use context_parallel::rope::{Rope, RopeConfig, RopeScaling};
use context_parallel::tensor::{Cpu, DType, Float};
use half::bf16;
use serde_json::Value;

use super::combinations::{self, Job, Outputs, cut};
use super::report::CaseReport;
use super::safetensors::{File, Tensor};
use super::tokens::{Expected, Given, Rows, Tensors, TokenCase, lengths, shards, whole, zigzag};

/// A case and its rotary embedding.
pub struct RopeCase {
    /// Inputs `x` and `grad_out`, outputs `out` and `grad_x`.
    pub tokens: TokenCase,
    /// Heads of a row.
    pub heads: usize,
    /// The embedding, for the oracle.
    pub rotary: Rotation,
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
        ("rope_dense", &[seq, batch, _, _]) => (true, vec![seq; batch]),
        ("rope_thd", &[_, _, _]) => (false, lengths(file.tensor("in.cu_seqlens")?)?),
        _ => return Err(format!("in.x has shape {:?}", x.shape)),
    };
    let read = |tensor: &Tensor| match dense {
        true => Rows::sequence_first(tensor),
        false => Rows::new(tensor, tensor.shape[0]),
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
fn bf16_tolerance(rotary: &Rotation, x: &[f64]) -> Vec<f64> {
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
fn rotary(rope: &Value, head_dim: usize) -> Result<Rotation, String> {
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
    Ok(Rotation {
        head_dim,
        base: number("base")?,
        percent: rope["percent"].as_f64().unwrap_or(1.0),
        interleaved: rope["interleaved"].as_bool().unwrap_or(false),
        interpolation: rope["interp"].as_f64(),
        stretch,
    })
}

/// Runs the case.
pub fn run(case: &RopeCase, report: &mut CaseReport) {
    case.tokens.run(report, "oracle", false, |tokens| {
        let positions: Vec<usize> = tokens.lengths.iter().flat_map(|&length| 0..length).collect();
        let [x, dout] = ["x", "grad_out"].map(|input| &tokens.inputs[input]);
        let turned = Rows { values: case.rotary.rotate(&x.values, case.heads, &positions), ..*x };
        let back = Rows { values: case.rotary.rotate_backward(&dout.values, case.heads, &positions), ..*dout };
        let whole = [("out".to_string(), turned), ("grad_x".to_string(), back)];
        Ok(Given { whole: Tensors::from(whole), ..Given::default() })
    });
    let job = HandlerRope { case };
    combinations::run(&case.tokens, &job, report);
}

/// What `get_emb_on_this_cp_rank` and `apply_rotary_pos_emb` do, forward and backward.
struct HandlerRope<'a> {
    case: &'a RopeCase,
}

impl Job for HandlerRope<'_> {
    fn run(
        &self,
        handler: HandlerRef<'_, Cpu<f32>>,
        placement: &Arc<DynPlacement>,
        outputs: &mut Outputs,
    ) -> Result<()> {
        match self.case.dtype {
            DType::Bf16 => self.run_in::<bf16>(handler, placement, outputs),
            _ => self.run_in::<f32>(handler, placement, outputs),
        }
    }
}

impl HandlerRope<'_> {
    fn run_in<T: Float>(
        &self,
        handler: HandlerRef<'_, Cpu<f32>>,
        placement: &Arc<DynPlacement>,
        outputs: &mut Outputs,
    ) -> Result<()> {
        let device = Cpu::<T>::default();
        let heads = self.case.heads;
        let rope = Rope::new(config(&self.case.rotary))?;
        let rotary = handler.on(&device).rotary(&rope, placement)?;
        let shard = |name: &str| cut(handler, placement, &self.case.tokens.inputs[name], T::from_f64);
        let mut x = shard("x")?;
        rotary.rotate(&mut x, heads)?;
        outputs.take("out", handler, &x, T::to_f64)?;
        let mut gradient = shard("grad_out")?;
        rotary.rotate_backward(&mut gradient, heads)?;
        outputs.take("grad_x", handler, &gradient, T::to_f64)
    }
}

/// The same embedding for the handler. Megatron-LM ignores a rotary percent and an interpolation with YaRN, where
/// [`Rope`] refuses them.
pub fn config(rotary: &Rotation) -> RopeConfig {
    let is_yarn = matches!(rotary.stretch, Stretch::Yarn { .. });
    let scaling = match rotary.stretch {
        Stretch::None => RopeScaling::None,
        Stretch::Llama3 { factor, low, high, original } => {
            RopeScaling::Llama3 { factor, low, high, original: original as usize }
        }
        Stretch::Yarn { factor, original, beta_fast, beta_slow, mscale, mscale_all_dim } => {
            let (original, attention_factor, truncate) = (original as usize, None, true);
            RopeScaling::Yarn {
                factor,
                original,
                beta_fast,
                beta_slow,
                mscale,
                mscale_all_dim,
                attention_factor,
                truncate,
            }
        }
    };
    RopeConfig {
        head_dim: rotary.head_dim,
        base: rotary.base,
        percent: if is_yarn { 1.0 } else { rotary.percent },
        interleaved: rotary.interleaved,
        interpolation: rotary.interpolation.filter(|_| !is_yarn),
        scaling,
        sections: None,
    }
}
