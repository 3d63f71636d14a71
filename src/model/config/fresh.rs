//! Configurations of fresh models, by name or from sizes.

use serde_json::json;

use super::{AttentionBias, Config, Family, fields, parse};
use crate::error::{Result, SupportError};
use crate::rope::{RopeConfig, RopeScaling};

/// The numbers that make a plain llama model; the rest has defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Number of token ids.
    pub vocab_size: usize,
    /// Features of a token between blocks.
    pub hidden_size: usize,
    /// Features inside the MLP.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; must divide the query heads.
    pub kv_heads: usize,
}

impl Config {
    /// Names that [`Config::preset`] knows.
    pub const PRESETS: [&'static str; 3] = ["tiny", "125m", "1b"];

    /// A fresh model by name. `tiny`: llama, bytes as tokens (vocabulary 256), 4 layers of width 128 with 4 heads of
    /// 32 features, MLP of 384, untied output layer, plain rotary embedding of base 10000. `125m` and `1b` are llamas
    /// of the sizes that are measured most, with a vocabulary of 32,000: 12 layers of width 768 with 12 heads, and 22
    /// layers of width 2048 with 32 query heads and 4 key/value heads, all of 64 features.
    pub fn preset(name: &str) -> Result<Self> {
        let [vocab_size, hidden_size, intermediate_size, layers, heads, kv_heads] = match name {
            "tiny" => [256, 128, 384, 4, 4, 4],
            "125m" => [32_000, 768, 2048, 12, 12, 12],
            "1b" => [32_000, 2048, 5632, 22, 32, 4],
            _ => {
                let (name, known) = (name.to_string(), Self::PRESETS.join(", "));
                return Err(SupportError::Unknown { what: "preset", name, known }.into());
            }
        };
        Self::llama(Sizes { vocab_size, hidden_size, intermediate_size, layers, heads, kv_heads })
    }

    /// A llama model of these sizes: heads of `hidden_size / heads` features, no biases, untied output layer, RMSNorm
    /// epsilon 1e-5, plain rotary embedding of base 10000, fresh weights of standard deviation 0.02.
    pub fn llama(sizes: Sizes) -> Result<Self> {
        let Sizes { vocab_size, hidden_size, intermediate_size, layers, heads, kv_heads } = sizes;
        let head_dim = hidden_size.checked_div(heads).unwrap_or(0);
        if !(1..=parse::MOST_LAYERS).contains(&layers) {
            let allowed = format!("use from 1 to {} layers", parse::MOST_LAYERS);
            return Err(fields::refusal("num_hidden_layers", &json!(layers), &allowed));
        }
        let config = Config {
            family: Family::Llama,
            vocab_size,
            hidden_size,
            intermediate_size,
            layers,
            heads,
            kv_heads,
            head_dim,
            rms_norm_eps: 1e-5,
            tie_word_embeddings: false,
            attention_bias: AttentionBias::default(),
            mlp_bias: false,
            qk_norm: false,
            windows: vec![None; layers],
            rope: RopeConfig {
                head_dim,
                base: 10000.0,
                percent: 1.0,
                interleaved: false,
                interpolation: None,
                scaling: RopeScaling::None,
                sections: None,
            },
            initializer_range: 0.02,
            max_position_embeddings: 1 << 17,
            mtp_depth: 0,
            pad_token_id: None,
            source: None,
            notes: Vec::new(),
        };
        if heads == 0 || !hidden_size.is_multiple_of(heads) {
            return Err(fields::refusal(
                "num_attention_heads",
                &json!(heads),
                &format!("use a number of heads that divides the hidden size {hidden_size}"),
            ));
        }
        config.check()?;
        Ok(config)
    }
}
