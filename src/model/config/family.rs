//! Families of models, and which projections have biases.

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
