//! The rotary embedding in `config.json`: the newer spelling (`rope_parameters`) and the older one (`rope_theta`
//! and `rope_scaling`).

use serde_json::{Map, Value, json};

use super::fields::Fields;
use crate::error::Result;
use crate::rope::{Misfit, RopeConfig, RopeScaling};

const BASE: f64 = 10000.0;
const ORIGINAL: &str = "original_max_position_embeddings";
const TYPES: &str = "supported are \"default\", \"linear\", \"llama3\" and \"yarn\"";

/// Fields of every type. The original context has no effect where a type does not use it.
const COMMON: &[&str] = &["rope_type", "type", "rope_theta", PARTIAL, ORIGINAL];
/// Of one value only, but may be ignored.
const PARTIAL: &str = "partial_rotary_factor";
/// Says how the model was made.
const FINETUNED: &str = "finetuned";

/// Fields of one type, besides [`COMMON`].
fn fields_of(kind: &str) -> Option<&'static [&'static str]> {
    Some(match kind {
        "default" => &[],
        "linear" => &["factor"],
        "llama3" => &["factor", "low_freq_factor", "high_freq_factor"],
        "yarn" => {
            &["factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "attention_factor", "truncate", FINETUNED]
        }
        _ => return None,
    })
}

/// Whether a field of the object that describes an embedding changes what it is read as.
pub(super) fn honours(rope: &Map<String, Value>, key: &str) -> bool {
    let kind = ["rope_type", "type"].iter().find_map(|key| rope.get(*key)?.as_str()).unwrap_or("default");
    let own = fields_of(kind).unwrap_or_default();
    (COMMON.contains(&key) || own.contains(&key)) && ![PARTIAL, FINETUNED].contains(&key)
}

pub(super) fn parse(root: &Fields, head_dim: usize, max_position_embeddings: usize) -> Result<RopeConfig> {
    let newer = root.object("rope_parameters", "rope_parameters.")?;
    let older = root.object("rope_scaling", "rope_scaling.")?;
    if let (Some(newer), Some(older)) = (newer, older)
        && newer.map != older.map
    {
        return Err(root.refuse("rope_scaling", "rope_parameters says something else; keep one of the two"));
    }
    let empty = Map::new();
    let rope = newer.or(older).unwrap_or(Fields { map: &empty, path: "rope_parameters.", ignorable: false });

    let outer = root.get("rope_theta").map(|_| root.positive("rope_theta", None)).transpose()?;
    let base = rope.positive("rope_theta", Some(outer.unwrap_or(BASE)))?;
    if outer.is_some_and(|outer| outer != base) {
        return Err(root.refuse("rope_theta", &format!("but {}rope_theta is {base}; keep one of the two", rope.path)));
    }
    let left_out = Fields { ignorable: true, ..rope };
    left_out.only(PARTIAL, &[json!(1.0)])?;

    let kind = match (rope.word("rope_type")?, rope.word("type")?) {
        (Some(kind), Some(other)) if kind != other => {
            return Err(rope.refuse("type", &format!("but rope_type is \"{kind}\"; keep one of the two")));
        }
        (kind, other) => kind.or(other).unwrap_or("default"),
    };
    let Some(own) = fields_of(kind) else {
        let hint = match newer {
            None => "; --ignore-config-field rope_scaling reads the file without scaling",
            Some(_) => "",
        };
        let field = if rope.get("rope_type").is_some() { "rope_type" } else { "type" };
        return Err(rope.refuse(field, &format!("{TYPES}{hint}")));
    };
    let unknown = |(key, value): &(&String, &Value)| {
        !value.is_null() && !COMMON.contains(&key.as_str()) && !own.contains(&key.as_str())
    };
    if let Some((key, _)) = rope.map.iter().find(unknown) {
        return Err(left_out.refuse(key, &format!("rope type \"{kind}\" has no such field here; remove it")));
    }

    let (interpolation, scaling) = match kind {
        "linear" => (Some(rope.positive("factor", None)?), RopeScaling::None),
        "llama3" => (None, llama3(root, &rope, max_position_embeddings)?),
        "yarn" => (None, yarn(root, &rope, max_position_embeddings)?),
        _ => (None, RopeScaling::None),
    };
    let config =
        RopeConfig { head_dim, base, percent: 1.0, interleaved: false, interpolation, scaling, sections: None };
    match config.check() {
        Ok(_) => Ok(config),
        // The file's own spelling of place and value, where it has the field.
        Err(Misfit { field, value, allowed }) => {
            let place = [&rope, root].into_iter().find(|fields| fields.get(field).is_some());
            Err(match place {
                Some(fields) => fields.refuse(field, &allowed),
                None => Misfit { field, value, allowed }.into(),
            })
        }
    }
}

fn original(root: &Fields, rope: &Fields, max_position_embeddings: usize) -> Result<usize> {
    let inner = rope.size(ORIGINAL, Some(max_position_embeddings))?;
    root.size(ORIGINAL, Some(inner))
}

fn llama3(root: &Fields, rope: &Fields, max_position_embeddings: usize) -> Result<RopeScaling> {
    Ok(RopeScaling::Llama3 {
        factor: rope.positive("factor", None)?,
        low: rope.positive("low_freq_factor", None)?,
        high: rope.positive("high_freq_factor", None)?,
        original: original(root, rope, max_position_embeddings)?,
    })
}

fn yarn(root: &Fields, rope: &Fields, max_position_embeddings: usize) -> Result<RopeScaling> {
    let original = original(root, rope, max_position_embeddings)?;
    // Without a factor, transformers takes the share of the two contexts where the file has both.
    let share = [root, rope].iter().any(|fields| fields.get(ORIGINAL).is_some());
    let factor = rope.positive("factor", share.then_some(max_position_embeddings as f64 / original as f64))?;
    // transformers takes 0 for "not given" in these four.
    let given = |key| rope.not_negative(key, Some(0.0)).map(|value| Some(value).filter(|value| *value != 0.0));
    let (mscale, mscale_all_dim) = match (given("mscale")?, given("mscale_all_dim")?) {
        (Some(mscale), Some(all)) => (Some(mscale), Some(all)),
        // One alone has no effect.
        _ => (None, None),
    };
    let attention_factor = rope.get("attention_factor").map(|_| rope.positive("attention_factor", None)).transpose()?;
    Ok(RopeScaling::Yarn {
        factor,
        original,
        beta_fast: given("beta_fast")?.unwrap_or(32.0),
        beta_slow: given("beta_slow")?.unwrap_or(1.0),
        mscale,
        mscale_all_dim,
        attention_factor,
        truncate: rope.flag("truncate", Some(true))?,
    })
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
        (
            RopeScaling::Yarn {
                factor,
                original,
                beta_fast,
                beta_slow,
                mscale,
                mscale_all_dim,
                attention_factor,
                truncate,
            },
            _,
        ) => {
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
            if let Some(factor) = attention_factor {
                fields["attention_factor"] = json!(factor);
            }
            if !truncate {
                fields["truncate"] = json!(false);
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
