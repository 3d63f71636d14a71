//! What a model is made of, read from and written to Hugging Face's `config.json`.
//!
//! A field that changes numbers is honoured, refused, or ignored because the user says so. `names.rs` sorts the fields,
//! `parse.rs` holds the rules of each family, `rope.rs` the two spellings of the rotary embedding.

mod family;
mod fields;
mod fresh;
mod names;
mod parse;
mod rope;
mod write;

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::error::{ModelError, Result};
use crate::files;
use crate::rope::RopeConfig;

pub use family::{AttentionBias, Family};
use fields::MTP_DEPTH;
pub use fresh::Sizes;
pub use names::ParseOptions;

/// The configuration of a decoder-only model.
///
/// Made from a file ([`Config::read`]), from JSON ([`Config::from_json`]), from sizes ([`Config::llama`]) or by name
/// ([`Config::preset`]). Two configurations are equal if they describe the same model, however it was spelled.
///
/// ```
/// use context_parallel::model::Config;
///
/// let tiny = Config::preset("tiny")?;
/// assert_eq!((tiny.layers, tiny.hidden_size), (4, 128));
/// assert_eq!(Config::from_json(&tiny.to_json()?)?, tiny);
/// # Ok::<(), context_parallel::error::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Config {
    /// The family, which decides names of tensors and of fields.
    pub family: Family,
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
    /// Key/value heads; divides the query heads.
    pub kv_heads: usize,
    /// Features of a head, of queries, keys and values alike.
    pub head_dim: usize,
    /// Added to the mean square in RMSNorm.
    pub rms_norm_eps: f64,
    /// Whether the output layer uses the embedding's table.
    pub tie_word_embeddings: bool,
    /// Biases of the attention projections.
    pub attention_bias: AttentionBias,
    /// Whether the MLP's three projections have biases.
    pub mlp_bias: bool,
    /// Whether queries and keys are normalised per head before the rotary embedding.
    pub qk_norm: bool,
    /// Per layer: the sliding window in tokens, the token itself included, or none for full causal attention.
    pub windows: Vec<Option<usize>>,
    /// The rotary embedding.
    pub rope: RopeConfig,
    /// Standard deviation of fresh weights.
    pub initializer_range: f64,
    /// Context that the model was made for. Nothing is cut at it.
    pub max_position_embeddings: usize,
    /// Tokens that are predicted beyond the next one, with a block for each (multi-token prediction): the key
    /// `num_nextn_predict_layers`, as in DeepSeek-V3. 0 for none, which is not written.
    pub mtp_depth: usize,
    /// The token that pads: looking it up gives its row of the embedding no gradient, as in Hugging Face. The forward
    /// pass does not depend on it, nor does what a tied output layer adds to that row's gradient.
    pub pad_token_id: Option<usize>,
    /// The object that this was read from, kept so that fields without meaning here survive.
    source: Option<Map<String, Value>>,
    /// What was ignored in it.
    notes: Vec<String>,
}

impl PartialEq for Config {
    fn eq(&self, other: &Self) -> bool {
        self.family == other.family
            && self.vocab_size == other.vocab_size
            && self.hidden_size == other.hidden_size
            && self.intermediate_size == other.intermediate_size
            && self.layers == other.layers
            && self.heads == other.heads
            && self.kv_heads == other.kv_heads
            && self.head_dim == other.head_dim
            && self.rms_norm_eps == other.rms_norm_eps
            && self.tie_word_embeddings == other.tie_word_embeddings
            && self.attention_bias == other.attention_bias
            && self.mlp_bias == other.mlp_bias
            && self.qk_norm == other.qk_norm
            && self.windows == other.windows
            && self.rope == other.rope
            && self.initializer_range == other.initializer_range
            && self.max_position_embeddings == other.max_position_embeddings
            && self.mtp_depth == other.mtp_depth
            && self.pad_token_id == other.pad_token_id
    }
}

impl Config {
    /// Reads `config.json` in `folder`.
    pub fn read(folder: &Path) -> Result<Self> {
        Self::read_with(folder, &ParseOptions::default())
    }

    /// [`Config::read`] with options.
    pub fn read_with(folder: &Path, options: &ParseOptions) -> Result<Self> {
        let path = folder.join("config.json");
        let parsed = object(&files::read_text(&path)?).and_then(|map| Self::from_map_with(map, options));
        parsed.map_err(|e| ModelError::Config(format!("{}: {e}", path.display())).into())
    }

    /// Parses the text of a `config.json`.
    pub fn from_json(text: &str) -> Result<Self> {
        Self::from_map(object(text)?)
    }

    /// Parses the object of a `config.json`.
    pub fn from_map(map: Map<String, Value>) -> Result<Self> {
        Self::from_map_with(map, &ParseOptions::default())
    }

    /// [`Config::from_map`] with options. What is ignored is not written again: the model that is run or trained is the
    /// one without it.
    pub fn from_map_with(mut map: Map<String, Value>, options: &ParseOptions) -> Result<Self> {
        let notes = options.apply(&mut map)?;
        let config = parse::parse(&map)?;
        Ok(Config { source: Some(map), notes, ..config })
    }

    /// What a user should know of how this was read, a sentence each: the fields that were ignored.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The same model with `depth` blocks that predict further tokens. All fields of the file that it was read from
    /// stay.
    pub fn with_mtp_depth(mut self, depth: usize) -> Self {
        self.mtp_depth = depth;
        if let Some(source) = &mut self.source {
            match depth {
                0 => source.remove(MTP_DEPTH),
                _ => source.insert(MTP_DEPTH.to_string(), json!(depth)),
            };
        }
        self
    }

    /// Refuses a configuration that its family's `config.json` cannot express (after fields were changed by hand).
    pub fn check(&self) -> Result<()> {
        self.to_map().map(drop)
    }

    /// The object of a `config.json` that transformers reads and that parses to this configuration again. Where this
    /// was read from a file and not changed since, the file's own object.
    pub fn to_map(&self) -> Result<Map<String, Value>> {
        if let Some(source) = &self.source
            && parse::parse(source).is_ok_and(|parsed| parsed == *self)
        {
            return Ok(source.clone());
        }
        let map = self.canonical();
        let parsed = parse::parse(&map)?;
        if parsed == *self {
            return Ok(map);
        }
        Err(ModelError::Config(format!(
            "a {} model cannot have this combination of biases, query/key norm, windows or rotary embedding: asked for \
             {self:?}, config.json can say {parsed:?}",
            self.family.name()
        ))
        .into())
    }

    /// The text of a `config.json`; see [`Config::to_map`].
    pub fn to_json(&self) -> Result<String> {
        Ok(text(&self.to_map()?))
    }

    /// Features of all query heads.
    pub fn query_size(&self) -> usize {
        self.heads.saturating_mul(self.head_dim)
    }

    /// Features of all key (or value) heads.
    pub fn kv_size(&self) -> usize {
        self.kv_heads.saturating_mul(self.head_dim)
    }
}

/// The object that a text holds.
fn object(text: &str) -> Result<Map<String, Value>> {
    match serde_json::from_str(text) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(ModelError::Config("the configuration must be a JSON object".into()).into()),
        Err(e) => Err(ModelError::Config(format!("the configuration is not valid JSON: {e}")).into()),
    }
}

/// JSON as transformers lays it out: two spaces, keys sorted, a newline at the end.
pub(super) fn text(map: &Map<String, Value>) -> String {
    format!("{:#}\n", Value::Object(map.clone()))
}

#[cfg(test)]
mod tests;
