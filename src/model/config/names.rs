//! The fields of `config.json` by what they do: honoured, harmless, of one value only; and those that a user ignores.

use serde_json::{Map, Value, json};

use super::fields::{self, Fields};
use super::rope;
use crate::error::{ModelError, Result};

/// How a `config.json` is read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ParseOptions {
    /// Fields to read the file without, although they may change what the model computes. A field of `rope_scaling` or
    /// `rope_parameters` is written `rope_scaling.NAME`.
    pub ignore: Vec<String>,
}

/// Fields that are read by `parse.rs` and `rope.rs`.
const READ: &[&str] = &[
    "attention_bias",
    "head_dim",
    ACTIVATION,
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
    super::fields::MTP_DEPTH,
    "original_max_position_embeddings",
    "pad_token_id",
    "rms_norm_eps",
    "rope_parameters",
    ROPE_SCALING,
    "rope_theta",
    "sliding_window",
    "tie_word_embeddings",
    "use_sliding_window",
    "vocab_size",
];

/// The one honoured field that may be ignored: without it the embedding is the plain one.
const ROPE_SCALING: &str = "rope_scaling";

/// Fields that do not change what the model computes from given tokens, but for rounding: ids, storage, generation,
/// training, bookkeeping, other heads, other programs.
const HARMLESS: &[&str] = &[
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_attn_implementation_internal",
    "_commit_hash",
    "_flash_attn_2_enabled",
    "_name_or_path",
    "architectures",
    "attn_implementation",
    "auto_map",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "cache_implementation",
    "chunk_size_feed_forward",
    "classifier_activation",
    "classifier_bias",
    "classifier_dropout",
    "classifier_pooling",
    "custom_pipelines",
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
    "gradient_checkpointing",
    "id2label",
    "is_decoder",
    "is_llama_config",
    "is_qwen2_config",
    "keys_to_ignore_at_inference",
    "label2id",
    "length_penalty",
    "max_length",
    "max_new_tokens",
    "max_sequence_length",
    "min_length",
    "model_max_length",
    "name_or_path",
    "neftune_noise_alpha",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_labels",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "prefix",
    "pretraining_tp",
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
    "transformers.js_config",
    "transformers_version",
    "typical_p",
    "unsloth_fixed",
    "unsloth_version",
    "use_bfloat16",
    "use_cache",
    "use_flash_attention",
    "use_flash_attention_2",
    "use_flash_attn",
    "use_reentrant_checkpointing",
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
    "residual_multiplier",
    "rotary_pct",
];

/// Fields that change numbers unless they are false.
const FALSE: &[&str] = &[
    "add_cross_attention",
    "attn_output_gate",
    "is_encoder_decoder",
    "qk_layernorm",
    "qk_layer_norms",
    "rope_interleaved",
    "scale_attn_by_inverse_layer_idx",
    "tie_encoder_decoder",
    "use_mrope",
    "use_parallel_residual",
    "use_qk_norm",
];

const ACTIVATION: &str = "hidden_act";
/// The activation by the name of other programs.
const OTHER_ACTIVATION: &str = "activation";
const PRUNED: &str = "pruned_heads";
/// Say that weights are stored in another form; one name by transformers, the other by compressed-tensors.
const QUANTIZATION: [&str; 2] = ["quantization_config", "compression_config"];
const QUANTISED: &str =
    "quantised weights are not supported, dequantise the checkpoint first (which removes this field)";

/// Every field is honoured, known to be without effect, or refused.
pub(super) fn check(fields: &Fields) -> Result<()> {
    if let Some(key) = QUANTIZATION.into_iter().find(|key| fields.get(key).is_some()) {
        return Err(fields.refuse(key, QUANTISED));
    }
    fields.only(ACTIVATION, &[json!("silu"), json!("swish")])?;
    let fields = Fields { ignorable: true, ..*fields };
    fields.only(OTHER_ACTIVATION, &[json!("swiglu")])?;
    for key in ZERO {
        fields.only(key, &[json!(0.0)])?;
    }
    for key in ONE {
        fields.only(key, &[json!(1.0)])?;
    }
    for key in FALSE {
        fields.only_false(key, "only false is supported")?;
    }
    let empty = |value: &Value| value.as_object().is_some_and(Map::is_empty);
    if fields.get(PRUNED).is_some_and(|value| !empty(value)) {
        return Err(fields.refuse(PRUNED, "pruned heads are not supported"));
    }
    match fields.map.iter().find(|(key, value)| !value.is_null() && !is_known(key)) {
        Some((key, _)) => Err(fields.refuse(key, "this field is not supported and may change what the model computes")),
        None => Ok(()),
    }
}

fn is_known(key: &str) -> bool {
    [PRUNED, OTHER_ACTIVATION].contains(&key)
        || [READ, HARMLESS, ZERO, ONE, FALSE].iter().any(|list| list.contains(&key))
}

impl ParseOptions {
    /// Takes the ignored fields out of `map`, and says which of them may have meant something.
    pub(super) fn apply(&self, map: &mut Map<String, Value>) -> Result<Vec<String>> {
        let mut notes = Vec::new();
        for (index, name) in self.ignore.iter().enumerate() {
            if self.ignore[..index].contains(name) {
                continue;
            }
            let refuse = |why: &str| ModelError::Config(format!("cannot ignore the field \"{name}\": {why}"));
            let (object, key) = match name.split_once('.') {
                Some((outer @ (ROPE_SCALING | "rope_parameters"), key)) => {
                    (map.get_mut(outer).and_then(Value::as_object_mut), key)
                }
                _ => (Some(&mut *map), name.as_str()),
            };
            if QUANTIZATION.contains(&key) {
                return Err(refuse(QUANTISED).into());
            }
            let is_honoured = match &object {
                Some(rope) if key != name => rope::honours(rope, key),
                _ => READ.contains(&key) && name != ROPE_SCALING,
            };
            if is_honoured {
                return Err(refuse("it is honoured; change it in config.json, or do not ignore it").into());
            }
            let value = object.and_then(|object| object.remove(key));
            let value = value.ok_or_else(|| refuse("config.json has no such field; check the spelling"))?;
            if !value.is_null() && !HARMLESS.contains(&key) {
                notes.push(format!(
                    "the field {} of config.json is ignored, so the model may not compute what it was made for",
                    fields::is(name, &value)
                ));
            }
        }
        Ok(notes)
    }
}
