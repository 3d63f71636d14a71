//! The rotary embedding in `config.json`: the newer spelling (`rope_parameters`) and the older one (`rope_theta`
//! and `rope_scaling`).

use serde_json::{Map, Value, json};

use super::fields::Fields;
use crate::error::Result;
use crate::rope::{RopeConfig, RopeScaling};

const BASE: f64 = 10000.0;
const TYPES: &str = "supported are \"default\", \"linear\", \"llama3\" and \"yarn\"";

/// Fields of every type. The original context has no effect where a type does not use it.
const COMMON: &[&str] =
    &["rope_type", "type", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings"];

pub(super) fn parse(root: &Fields, head_dim: usize, max_position_embeddings: usize) -> Result<RopeConfig> {
    let newer = root.object("rope_parameters", "rope_parameters.")?;
    let older = root.object("rope_scaling", "rope_scaling.")?;
    if let (Some(newer), Some(older)) = (newer, older)
        && newer.map != older.map
    {
        return Err(root.refuse("rope_scaling", "rope_parameters says something else; keep one of the two"));
    }
    let empty = Map::new();
    let rope = newer.or(older).unwrap_or(Fields { map: &empty, path: "rope_parameters." });

    let outer = root.get("rope_theta").map(|_| root.positive("rope_theta", None)).transpose()?;
    let base = rope.positive("rope_theta", Some(outer.unwrap_or(BASE)))?;
    if outer.is_some_and(|outer| outer != base) {
        return Err(root.refuse("rope_theta", &format!("but {}rope_theta is {base}; keep one of the two", rope.path)));
    }
    if base <= 1.0 {
        let fields = if rope.get("rope_theta").is_some() { &rope } else { root };
        return Err(fields.refuse("rope_theta", "must be a number above 1"));
    }
    rope.only_number("partial_rotary_factor", 1.0)?;

    let kind = match (rope.word("rope_type")?, rope.word("type")?) {
        (Some(kind), Some(other)) if kind != other => {
            return Err(rope.refuse("type", &format!("but rope_type is \"{kind}\"; keep one of the two")));
        }
        (kind, other) => kind.or(other).unwrap_or("default"),
    };
    let own: &[&str] = match kind {
        "default" => &[],
        "linear" => &["factor"],
        "llama3" => &["factor", "low_freq_factor", "high_freq_factor"],
        "yarn" => &["factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "attention_factor", "truncate"],
        _ => return Err(rope.refuse(if rope.get("rope_type").is_some() { "rope_type" } else { "type" }, TYPES)),
    };
    let unknown = |(key, value): &(&String, &Value)| {
        !value.is_null() && !COMMON.contains(&key.as_str()) && !own.contains(&key.as_str())
    };
    if let Some((key, _)) = rope.map.iter().find(unknown) {
        return Err(rope.refuse(key, &format!("rope type \"{kind}\" has no such field here; remove it")));
    }

    let (interpolation, scaling) = match kind {
        "linear" => (Some(factor(&rope)?), RopeScaling::None),
        "llama3" => (None, llama3(root, &rope, max_position_embeddings)?),
        "yarn" => (None, yarn(root, &rope, max_position_embeddings)?),
        _ => (None, RopeScaling::None),
    };
    Ok(RopeConfig { head_dim, base, percent: 1.0, interleaved: false, interpolation, scaling, sections: None })
}

fn factor(rope: &Fields) -> Result<f64> {
    match rope.positive("factor", None)? {
        factor if factor >= 1.0 => Ok(factor),
        _ => Err(rope.refuse("factor", "must be at least 1")),
    }
}

fn original(root: &Fields, rope: &Fields, max_position_embeddings: usize) -> Result<usize> {
    let inner = rope.size("original_max_position_embeddings", Some(max_position_embeddings))?;
    root.size("original_max_position_embeddings", Some(inner))
}

fn llama3(root: &Fields, rope: &Fields, max_position_embeddings: usize) -> Result<RopeScaling> {
    let low = rope.positive("low_freq_factor", None)?;
    let high = rope.positive("high_freq_factor", None)?;
    if high <= low {
        return Err(rope.refuse("high_freq_factor", &format!("must be above low_freq_factor, {low}")));
    }
    Ok(RopeScaling::Llama3 {
        factor: factor(rope)?,
        low,
        high,
        original: original(root, rope, max_position_embeddings)?,
    })
}

fn yarn(root: &Fields, rope: &Fields, max_position_embeddings: usize) -> Result<RopeScaling> {
    let factor = factor(rope)?;
    // transformers takes 0 for "not given" in these four.
    let given = |key| rope.not_negative(key, Some(0.0)).map(|value| Some(value).filter(|value| *value != 0.0));
    let (mscale, mscale_all_dim) = match (given("mscale")?, given("mscale_all_dim")?) {
        (Some(mscale), Some(all)) => (Some(mscale), Some(all)),
        // One alone has no effect.
        _ => (None, None),
    };
    let beta_fast = given("beta_fast")?.unwrap_or(32.0);
    let beta_slow = given("beta_slow")?.unwrap_or(1.0);
    if beta_fast < beta_slow {
        return Err(rope.refuse("beta_fast", &format!("must not be below beta_slow, {beta_slow}")));
    }
    rope.only("truncate", &[json!(true)])?;
    if rope.get("attention_factor").is_some() {
        let scale = |k: f64| if factor <= 1.0 { 1.0 } else { 0.1 * k * factor.ln() + 1.0 };
        let implied = scale(mscale.unwrap_or(1.0)) / mscale_all_dim.map_or(1.0, scale);
        let asked = rope.positive("attention_factor", None)?;
        if (asked - implied).abs() > 1e-7 * implied {
            let allowed = format!("only the factor that follows from the other fields, {implied}, is supported");
            return Err(rope.refuse("attention_factor", &allowed));
        }
    }
    let original = original(root, rope, max_position_embeddings)?;
    Ok(RopeScaling::Yarn { factor, original, beta_fast, beta_slow, mscale, mscale_all_dim })
}

/// Writes both spellings, equal, so that any version of transformers reads the same embedding.
pub(super) fn write(rope: &RopeConfig, put: &mut impl FnMut(&str, Value) -> Option<Value>) {
    let (kind, mut fields) = match (&rope.scaling, rope.interpolation) {
        (RopeScaling::None, None) => ("default", json!({})),
        (RopeScaling::None, Some(factor)) => ("linear", json!({ "factor": factor })),
        (RopeScaling::Llama3 { factor, low, high, original }, _) => (
            "llama3",
            json!({
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": original,
            }),
        ),
        (RopeScaling::Yarn { factor, original, beta_fast, beta_slow, mscale, mscale_all_dim }, _) => {
            let mut fields = json!({
                "factor": factor,
                "beta_fast": beta_fast,
                "beta_slow": beta_slow,
                "original_max_position_embeddings": original,
            });
            if let (Some(mscale), Some(all)) = (mscale, mscale_all_dim) {
                fields["mscale"] = json!(mscale);
                fields["mscale_all_dim"] = json!(all);
            }
            ("yarn", fields)
        }
    };
    fields["rope_type"] = json!(kind);
    fields["rope_theta"] = json!(rope.base);
    put("rope_theta", json!(rope.base));
    if kind != "default" {
        put("rope_scaling", fields.clone());
    }
    put("rope_parameters", fields);
}
