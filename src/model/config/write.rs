//! A configuration as an object of `config.json`, written from its fields.

use serde_json::{Map, Value, json};

use super::fields::MTP_DEPTH;
use super::{Config, Family, rope};

impl Config {
    /// The object that says what the fields say, without the file that they were read from.
    pub(super) fn canonical(&self) -> Map<String, Value> {
        let mut map = Map::new();
        let mut put = |key: &str, value: Value| map.insert(key.to_string(), value);
        put("architectures", json!([self.family.architecture()]));
        put("model_type", json!(self.family.name()));
        put("vocab_size", json!(self.vocab_size));
        put("hidden_size", json!(self.hidden_size));
        put("intermediate_size", json!(self.intermediate_size));
        put("num_hidden_layers", json!(self.layers));
        put("num_attention_heads", json!(self.heads));
        put("num_key_value_heads", json!(self.kv_heads));
        put("head_dim", json!(self.head_dim));
        put("rms_norm_eps", json!(self.rms_norm_eps));
        put("tie_word_embeddings", json!(self.tie_word_embeddings));
        put("hidden_act", json!("silu"));
        put("attention_dropout", json!(0.0));
        put("initializer_range", json!(self.initializer_range));
        put("max_position_embeddings", json!(self.max_position_embeddings));
        put("use_cache", json!(true));
        if self.mtp_depth > 0 {
            put(MTP_DEPTH, json!(self.mtp_depth));
        }
        if let Some(id) = self.pad_token_id {
            put("pad_token_id", json!(id));
        }
        // Without these fields, transformers takes 1 and 2, which are tokens like others in a fresh model.
        for key in ["bos_token_id", "eos_token_id"] {
            match &self.source {
                None => drop(put(key, Value::Null)),
                Some(source) => drop(source.get(key).map(|id| put(key, id.clone()))),
            }
        }
        rope::write(&self.rope, &mut put);
        if matches!(self.family, Family::Llama | Family::Qwen3) {
            put("attention_bias", json!(self.attention_bias.query));
        }
        if self.family == Family::Llama {
            put("mlp_bias", json!(self.mlp_bias));
        }
        let window = self.windows.iter().flatten().next();
        if self.family == Family::Mistral {
            put("sliding_window", json!(window));
        }
        if matches!(self.family, Family::Qwen2 | Family::Qwen3) {
            put("sliding_window", json!(window));
            put("use_sliding_window", json!(window.is_some()));
            put("max_window_layers", json!(self.windows.iter().take_while(|w| w.is_none()).count()));
            let kind = |w: &Option<usize>| if w.is_some() { "sliding_attention" } else { "full_attention" };
            put("layer_types", self.windows.iter().map(kind).collect());
        }
        map
    }
}
