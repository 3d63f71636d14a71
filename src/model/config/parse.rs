//! The rules of each family: which fields mean what, which must have one value, which have no meaning here.

use serde_json::{Map, Value, json};

use super::fields::Fields;
use super::{AttentionBias, Config, Family, rope};
use crate::error::Result;

/// Fields that are read by the functions below.
const READ: &[&str] = &[
    "attention_bias",
    "head_dim",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "layer_types",
    "max_position_embeddings",
    "max_window_layers",
    "mlp_bias",
    "model_type",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    super::MTP_DEPTH,
    "original_max_position_embeddings",
    "pad_token_id",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "sliding_window",
    "tie_word_embeddings",
    "use_sliding_window",
    "vocab_size",
];

/// Fields that do not change what the model computes from given tokens: ids, storage, generation, bookkeeping.
const HARMLESS: &[&str] = &[
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_commit_hash",
    "_name_or_path",
    "architectures",
    "attn_implementation",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "chunk_size_feed_forward",
    "classifier_dropout",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "dtype",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "eos_token_id",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "id2label",
    "is_decoder",
    "label2id",
    "length_penalty",
    "max_length",
    "max_new_tokens",
    "min_length",
    "name_or_path",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "prefix",
    "problem_type",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict",
    "return_dict_in_generate",
    "sep_token_id",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "typical_p",
    "unsloth_fixed",
    "unsloth_version",
    "use_bfloat16",
    "use_cache",
];

/// Fields that change numbers unless they are 0.
const ZERO: &[&str] = &[
    "attention_dropout",
    "attention_probs_dropout_prob",
    "attn_pdrop",
    "dropout",
    "embd_pdrop",
    "embedding_dropout",
    "hidden_dropout",
    "hidden_dropout_prob",
    "layerdrop",
    "mlp_dropout",
    "resid_pdrop",
    "residual_dropout",
];

/// Fields that change numbers unless they are 1.
const ONE: &[&str] = &[
    "embedding_multiplier",
    "logit_scale",
    "logits_scaling",
    "partial_rotary_factor",
    "pretraining_tp",
    "residual_multiplier",
    "rotary_pct",
];

/// Fields that change numbers unless they are false.
const FALSE: &[&str] = &[
    "add_cross_attention",
    "is_encoder_decoder",
    "rope_interleaved",
    "scale_attn_by_inverse_layer_idx",
    "tie_encoder_decoder",
    "use_mrope",
    "use_parallel_residual",
];

/// What transformers takes where `sliding_window` is missing (not null).
const DEFAULT_WINDOW: usize = 4096;

pub(super) fn parse(map: &Map<String, Value>) -> Result<Config> {
    let fields = Fields { map, path: "" };
    let family = family(&fields)?;
    check_names(&fields)?;

    let layers = fields.size("num_hidden_layers", None)?;
    let hidden_size = fields.size("hidden_size", None)?;
    let heads = fields.size("num_attention_heads", None)?;
    let kv_heads = kv_heads(&fields, family, heads)?;
    let head_dim = head_dim(&fields, family, hidden_size, heads)?;
    let max_position_embeddings = fields.size("max_position_embeddings", Some(default_context(family)))?;
    let (attention_bias, mlp_bias) = biases(&fields, family)?;
    let vocab_size = fields.size("vocab_size", None)?;

    Ok(Config {
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
        mtp_depth: fields.count(super::MTP_DEPTH, Some(0))?,
        pad_token_id: pad_token_id(&fields, vocab_size)?,
        source: None,
    })
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

/// Every field is honoured, known to be without effect, or refused.
fn check_names(fields: &Fields) -> Result<()> {
    fields.only("hidden_act", &[json!("silu"), json!("swish")])?;
    for key in ZERO {
        fields.only_number(key, 0.0)?;
    }
    for key in ONE {
        fields.only_number(key, 1.0)?;
    }
    for key in FALSE {
        fields.only_false(key, "only false is supported")?;
    }
    let empty = |value: &Value| value.as_object().is_some_and(Map::is_empty);
    if fields.get("pruned_heads").is_some_and(|value| !empty(value)) {
        return Err(fields.refuse("pruned_heads", "pruned heads are not supported"));
    }
    let known = |key: &str| {
        key == "hidden_act"
            || key == "pruned_heads"
            || [READ, HARMLESS, ZERO, ONE, FALSE].iter().any(|list| list.contains(&key))
    };
    match fields.map.iter().find(|(key, value)| !value.is_null() && !known(key)) {
        Some((key, _)) => Err(fields.refuse(
            key,
            "this field is not supported and may change what the model computes; remove it if it does not",
        )),
        None => Ok(()),
    }
}

/// The row of the embedding that its look-up gives no gradient. As in PyTorch a negative id counts from the end.
fn pad_token_id(fields: &Fields, vocab: usize) -> Result<Option<usize>> {
    let Some(value) = fields.get("pad_token_id") else { return Ok(None) };
    let row = |id: i64| usize::try_from(if id < 0 { id.saturating_add(vocab as i64) } else { id }).ok();
    let row = value.as_i64().and_then(row).filter(|row| *row < vocab);
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
        let allowed = format!("must divide hidden_size, {hidden_size}, where head_dim is not given");
        return Err(fields.refuse("num_attention_heads", &allowed));
    }
    let head_dim = fields.size("head_dim", default)?;
    match head_dim % 2 {
        0 => Ok(head_dim),
        _ => Err(super::fields::refusal("head_dim", &json!(head_dim), "must be even for the rotary embedding")),
    }
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
