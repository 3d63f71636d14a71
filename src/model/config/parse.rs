//! The rules of each family: which fields mean what.

use serde_json::{Map, Value, json};

use super::fields::Fields;
use super::{AttentionBias, Config, Family, names, rope};
use crate::error::{ModelError, Result};

/// What transformers takes where `sliding_window` is missing (not null).
const DEFAULT_WINDOW: usize = 4096;

/// Most blocks, ten times as many as any model that was published.
pub(super) const MOST_LAYERS: usize = 10_000;
/// Most parameters, thousands of times as many as any model that was published: with fewer, no product of sizes and no
/// number of bytes overflows.
const MOST_PARAMETERS: u128 = 1 << 48;

pub(super) fn parse(map: &Map<String, Value>) -> Result<Config> {
    let fields = Fields { map, path: "", ignorable: false };
    let family = family(&fields)?;
    names::check(&fields)?;

    let layers = fields.whole_in("num_hidden_layers", None, 1, MOST_LAYERS)?;
    let hidden_size = fields.size("hidden_size", None)?;
    let heads = fields.size("num_attention_heads", None)?;
    let kv_heads = kv_heads(&fields, family, heads)?;
    let head_dim = head_dim(&fields, family, hidden_size, heads)?;
    let max_position_embeddings = fields.size("max_position_embeddings", Some(default_context(family)))?;
    let (attention_bias, mlp_bias) = biases(&fields, family)?;
    let vocab_size = fields.size("vocab_size", None)?;

    let config = Config {
        family,
        vocab_size,
        hidden_size,
        intermediate_size: fields.size("intermediate_size", None)?,
        layers,
        heads,
        kv_heads,
        head_dim,
        rms_norm_eps: fields.not_negative("rms_norm_eps", Some(1e-6))?,
        tie_word_embeddings: fields.flag("tie_word_embeddings", Some(false))?,
        attention_bias,
        mlp_bias,
        qk_norm: family == Family::Qwen3,
        windows: windows(&fields, family, layers)?,
        rope: rope::parse(&fields, head_dim, max_position_embeddings)?,
        initializer_range: fields.not_negative("initializer_range", Some(0.02))?,
        max_position_embeddings,
        mtp_depth: fields.whole_in(super::fields::MTP_DEPTH, Some(0), 0, MOST_LAYERS)?,
        pad_token_id: pad_token_id(&fields, vocab_size)?,
        source: None,
        notes: Vec::new(),
    };
    check_parameters(&config)?;
    Ok(config)
}

/// Refuses sizes that are fine one by one but not together, before anything of that size exists.
fn check_parameters(config: &Config) -> Result<()> {
    let Config { vocab_size, hidden_size, intermediate_size, layers, heads, kv_heads, head_dim, mtp_depth, .. } =
        *config;
    let [vocab, hidden, inner, layers, depth, heads, kv_heads, dim] =
        [vocab_size, hidden_size, intermediate_size, layers, mtp_depth, heads, kv_heads, head_dim].map(|n| n as u128);
    // Sizes have 31 bits and numbers of layers 14, so that no product here has more than 128.
    let block = hidden * (2 * (heads + kv_heads) * dim + 3 * inner);
    let parameters = (layers + depth) * block + depth * 2 * hidden * hidden + 2 * vocab * hidden;
    if parameters <= MOST_PARAMETERS {
        return Ok(());
    }
    Err(ModelError::Config(format!(
        "\"vocab_size\" {vocab}, \"hidden_size\" {hidden}, \"intermediate_size\" {inner}, \"num_attention_heads\" \
         {heads}, \"head_dim\" {dim} and \"num_hidden_layers\" {layers} make a model of {parameters} parameters: \
         correct the one that is too large, a model has at most {MOST_PARAMETERS}"
    ))
    .into())
}

fn family(fields: &Fields) -> Result<Family> {
    let known = || Family::ALL.map(|family| format!("\"{}\"", family.name())).join(", ");
    let name = fields
        .word("model_type")?
        .ok_or_else(|| fields.refuse("model_type", &format!("say which of {} this is", known())))?;
    Family::ALL
        .into_iter()
        .find(|family| family.name() == name)
        .ok_or_else(|| fields.refuse("model_type", &format!("supported are {}", known())))
}

/// The row of the embedding that its look-up gives no gradient. As in PyTorch a negative id counts from the end.
fn pad_token_id(fields: &Fields, vocab: usize) -> Result<Option<usize>> {
    let Some(value) = fields.get("pad_token_id") else { return Ok(None) };
    let row = |id: i64| usize::try_from(if id < 0 { id.saturating_add(vocab as i64) } else { id }).ok();
    let whole = value.as_i64().or_else(|| value.as_f64().filter(|id| id.fract() == 0.0).map(|id| id as i64));
    let row = whole.and_then(row).filter(|row| *row < vocab);
    let allowed =
        || format!("must be a token id from 0 to {} (vocab_size less 1), or null where there is no padding", vocab - 1);
    row.map(Some).ok_or_else(|| fields.refuse("pad_token_id", &allowed()))
}

fn default_context(family: Family) -> usize {
    match family {
        Family::Llama => 2048,
        Family::Mistral => 4096 * 32,
        Family::Qwen2 | Family::Qwen3 => 32768,
    }
}

fn kv_heads(fields: &Fields, family: Family, heads: usize) -> Result<usize> {
    // A missing field means one key/value head per query head in llama, but a fixed number (8 or 32) in the others,
    // which is what nobody who left it out meant; null means one per query head everywhere.
    let default = (family == Family::Llama || fields.map.contains_key("num_key_value_heads")).then_some(heads);
    let kv_heads = fields.size("num_key_value_heads", default)?;
    match heads % kv_heads {
        0 => Ok(kv_heads),
        _ => Err(fields.refuse("num_key_value_heads", &format!("must divide num_attention_heads, {heads}"))),
    }
}

fn head_dim(fields: &Fields, family: Family, hidden_size: usize, heads: usize) -> Result<usize> {
    let default = match family {
        Family::Qwen3 if !fields.map.contains_key("head_dim") => Some(128),
        _ => Some(hidden_size / heads).filter(|_| hidden_size.is_multiple_of(heads)),
    };
    if fields.get("head_dim").is_none() && default.is_none() {
        let allowed = format!("must divide hidden_size, {hidden_size}, where head_dim is not given; add head_dim");
        return Err(fields.refuse("num_attention_heads", &allowed));
    }
    fields.size("head_dim", default)
}

fn biases(fields: &Fields, family: Family) -> Result<(AttentionBias, bool)> {
    let all = |bias| AttentionBias { query: bias, key: bias, value: bias, output: bias };
    let attention = match family {
        Family::Llama | Family::Qwen3 => all(fields.flag("attention_bias", Some(false))?),
        Family::Mistral => {
            fields.only_false("attention_bias", "a mistral model has no attention biases")?;
            all(false)
        }
        Family::Qwen2 => {
            fields.only("attention_bias", &[json!(true)])?;
            AttentionBias { output: false, ..all(true) }
        }
    };
    let mlp = match family {
        Family::Llama => fields.flag("mlp_bias", Some(false))?,
        _ => {
            fields.only_false("mlp_bias", &format!("a {} model has no MLP biases", family.name()))?;
            false
        }
    };
    Ok((attention, mlp))
}

fn windows(fields: &Fields, family: Family, layers: usize) -> Result<Vec<Option<usize>>> {
    let window = || match fields.map.contains_key("sliding_window") {
        true => fields.get("sliding_window").map(|_| fields.size("sliding_window", None)).transpose(),
        false => Ok(Some(DEFAULT_WINDOW)),
    };
    let types = layer_types(fields, layers)?;
    match family {
        Family::Llama => {
            let why = "a llama model has full attention only; set it to null";
            fields.only_false("sliding_window", why)?;
            fields.only_false("use_sliding_window", why)?;
            refuse_types(fields, &types, false, "a llama model has \"full_attention\" only")?;
            Ok(vec![None; layers])
        }
        Family::Mistral => {
            let window = window()?;
            if fields.get("use_sliding_window").is_some()
                && fields.flag("use_sliding_window", None)? != window.is_some()
            {
                return Err(fields.refuse(
                    "use_sliding_window",
                    "a mistral model is ruled by sliding_window alone; set that to null for full attention",
                ));
            }
            let allowed = "the layers of a mistral model have a window exactly where sliding_window is not null";
            refuse_types(fields, &types, window.is_some(), allowed)?;
            Ok(vec![window; layers])
        }
        Family::Qwen2 | Family::Qwen3 => {
            let window = if fields.flag("use_sliding_window", Some(false))? { window()? } else { None };
            let first = fields.count("max_window_layers", Some(28))?;
            let slides = types.unwrap_or_else(|| (0..layers).map(|layer| window.is_some() && layer >= first).collect());
            if window.is_none() && slides.contains(&true) {
                return Err(fields.refuse(
                    "layer_types",
                    "\"sliding_attention\" needs use_sliding_window true and a sliding_window",
                ));
            }
            Ok(slides.into_iter().map(|slides| window.filter(|_| slides)).collect())
        }
    }
}

/// Whether each layer slides, if the configuration says it layer by layer.
fn layer_types(fields: &Fields, layers: usize) -> Result<Option<Vec<bool>>> {
    let Some(value) = fields.get("layer_types") else { return Ok(None) };
    let slides = |kind: &Value| match kind.as_str() {
        Some("full_attention") => Some(false),
        Some("sliding_attention") => Some(true),
        _ => None,
    };
    let allowed =
        || format!("must be a list of {layers} (num_hidden_layers) of \"full_attention\" and \"sliding_attention\"");
    let types = value.as_array().and_then(|list| list.iter().map(slides).collect::<Option<Vec<_>>>());
    types.filter(|types| types.len() == layers).map(Some).ok_or_else(|| fields.refuse("layer_types", &allowed()))
}

fn refuse_types(fields: &Fields, types: &Option<Vec<bool>>, slides: bool, allowed: &str) -> Result<()> {
    match types {
        Some(types) if types.contains(&!slides) => Err(fields.refuse("layer_types", allowed)),
        _ => Ok(()),
    }
}
