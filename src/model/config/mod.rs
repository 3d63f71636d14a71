//! What a model is made of, read from and written to Hugging Face's `config.json`.
//!
//! A field that changes numbers is honoured, refused, or ignored because the user says so. `names.rs` sorts the fields,
//! `parse.rs` holds the rules of each family, `rope.rs` the two spellings of the rotary embedding.

mod fields;
mod names;
mod parse;
mod rope;

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::error::{ModelError, Result, SupportError};
use crate::files;
use crate::rope::{RopeConfig, RopeScaling};

pub use names::ParseOptions;

/// The key of [`Config::mtp_depth`].
const MTP_DEPTH: &str = "num_nextn_predict_layers";

/// A family of models that transformers knows by its `model_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// `llama`: optional biases on all attention projections and on the MLP.
    Llama,
    /// `mistral`: a sliding window in every layer, or none.
    Mistral,
    /// `qwen2`: biases on query, key and value; a sliding window in some layers.
    Qwen2,
    /// `qwen3`: query and key norms per head; optional attention biases; a sliding window in some layers.
    Qwen3,
}

impl Family {
    /// All families.
    pub const ALL: [Family; 4] = [Family::Llama, Family::Mistral, Family::Qwen2, Family::Qwen3];

    /// The `model_type` of `config.json`.
    pub const fn name(self) -> &'static str {
        match self {
            Family::Llama => "llama",
            Family::Mistral => "mistral",
            Family::Qwen2 => "qwen2",
            Family::Qwen3 => "qwen3",
        }
    }

    /// The class in `architectures` of `config.json`.
    pub const fn architecture(self) -> &'static str {
        match self {
            Family::Llama => "LlamaForCausalLM",
            Family::Mistral => "MistralForCausalLM",
            Family::Qwen2 => "Qwen2ForCausalLM",
            Family::Qwen3 => "Qwen3ForCausalLM",
        }
    }
}

/// Which attention projections have a bias.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AttentionBias {
    /// The query projection.
    pub query: bool,
    /// The key projection.
    pub key: bool,
    /// The value projection.
    pub value: bool,
    /// The output projection.
    pub output: bool,
}

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
    /// Names that [`Config::preset`] knows.
    pub const PRESETS: [&'static str; 1] = ["tiny"];

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

    /// A fresh model by name. `tiny`: llama, bytes as tokens (vocabulary 256), 4 layers of width 128 with 4 heads of
    /// 32 features, MLP of 384, untied output layer, plain rotary embedding of base 10000.
    pub fn preset(name: &str) -> Result<Self> {
        match name {
            "tiny" => Self::llama(Sizes {
                vocab_size: 256,
                hidden_size: 128,
                intermediate_size: 384,
                layers: 4,
                heads: 4,
                kv_heads: 4,
            }),
            _ => Err(SupportError::Unknown { what: "preset", name: name.to_string(), known: Self::PRESETS.join(", ") }
                .into()),
        }
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

    fn canonical(&self) -> Map<String, Value> {
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
