//! Names and shapes of a model's parameters, added one after another, and their places in memory.

use super::places::{Places, StoredId};
use super::{JoinedIds, Kind, LayerIds, LinearIds, MtpIds, ParameterId, ParameterSpec};
use crate::model::config::{AttentionBias, Config};

/// The parameters so far.
#[derive(Default)]
pub(super) struct Builder {
    specs: Vec<ParameterSpec>,
    places: Places,
}

/// A linear layer among those of one input: name, output features, whether it has a bias.
type Part<'a> = (&'a str, usize, bool);

impl Builder {
    pub fn into_parts(self) -> (Vec<ParameterSpec>, Places) {
        (self.specs, self.places.laid_out())
    }

    pub fn add(&mut self, name: String, shape: Vec<usize>, kind: Kind) -> ParameterId {
        let spec = ParameterSpec { name, shape, kind };
        self.places.alone(&spec);
        self.specs.push(spec);
        ParameterId(self.specs.len() - 1)
    }

    /// Adds a parameter to a matrix that holds others, or to a new one.
    fn beside(&mut self, matrix: &mut Option<StoredId>, name: String, shape: Vec<usize>, kind: Kind) -> ParameterId {
        let spec = ParameterSpec { name, shape, kind };
        let matrix = *matrix.get_or_insert_with(|| self.places.matrix(&spec));
        self.places.beside(matrix, &spec);
        self.specs.push(spec);
        ParameterId(self.specs.len() - 1)
    }

    pub fn norm(&mut self, name: String, len: usize) -> ParameterId {
        self.add(format!("{name}.weight"), vec![len], Kind::Norm)
    }

    fn linear(&mut self, name: String, (out, inner): (usize, usize), bias: bool, kind: Kind) -> LinearIds {
        LinearIds {
            weight: self.add(format!("{name}.weight"), vec![out, inner], kind),
            bias: bias.then(|| self.add(format!("{name}.bias"), vec![out], Kind::Bias)),
        }
    }

    /// Linear layers of one input of `inner` features, side by side in memory; so are their biases, if all have one.
    fn joined<const N: usize>(
        &mut self,
        name: impl Fn(&str) -> String,
        inner: usize,
        parts: [Part<'_>; N],
    ) -> ([LinearIds; N], JoinedIds) {
        let (mut weight, mut bias) = (None, None);
        let every = parts.iter().all(|part| part.2);
        let ids = parts.map(|(part, out, has_bias)| {
            let name = name(part);
            LinearIds {
                weight: self.beside(&mut weight, format!("{name}.weight"), vec![out, inner], Kind::Linear),
                bias: has_bias.then(|| {
                    let (name, shape) = (format!("{name}.bias"), vec![out]);
                    match every {
                        true => self.beside(&mut bias, name, shape, Kind::Bias),
                        false => self.add(name, shape, Kind::Bias),
                    }
                }),
            }
        });
        let weight = weight.unwrap_or_else(|| unreachable!("{N} layers have a weight"));
        (ids, JoinedIds { weight, bias })
    }

    /// A block whose names begin with `prefix`.
    pub fn layer(&mut self, config: &Config, prefix: &str) -> LayerIds {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let (queries, keys) = (config.query_size(), config.kv_size());
        let AttentionBias { query, key, value, output } = config.attention_bias;
        let name = |part: &str| format!("{prefix}.{part}");
        let attention = |part: &str| name(&format!("self_attn.{part}"));
        let mlp = |part: &str| name(&format!("mlp.{part}"));
        let input_norm = self.norm(name("input_layernorm"), hidden);
        let parts = [("q_proj", queries, query), ("k_proj", keys, key), ("v_proj", keys, value)];
        let ([query, key, value], qkv) = self.joined(attention, hidden, parts);
        let head_norms = config.qk_norm.then(|| {
            let norm = |builder: &mut Self, part| builder.norm(attention(part), config.head_dim);
            (norm(self, "q_norm"), norm(self, "k_norm"))
        });
        let output = self.linear(attention("o_proj"), (hidden, queries), output, Kind::ResidualLinear);
        let mlp_norm = self.norm(name("post_attention_layernorm"), hidden);
        let parts = [("gate_proj", inner, config.mlp_bias), ("up_proj", inner, config.mlp_bias)];
        let ([gate, up], gate_up) = self.joined(mlp, hidden, parts);
        let down = self.linear(mlp("down_proj"), (hidden, inner), config.mlp_bias, Kind::ResidualLinear);
        LayerIds { input_norm, query, key, value, qkv, head_norms, output, mlp_norm, gate, up, gate_up, down }
    }

    /// One depth of multi-token prediction, by DeepSeek's names.
    pub fn mtp(&mut self, config: &Config, depth: usize) -> MtpIds {
        let prefix = format!("model.layers.{}", config.layers + depth);
        let (hidden, name) = (config.hidden_size, |part: &str| format!("{prefix}.{part}"));
        MtpIds {
            hidden_norm: self.norm(name("hnorm"), hidden),
            embedding_norm: self.norm(name("enorm"), hidden),
            projection: self.linear(name("eh_proj"), (hidden, 2 * hidden), false, Kind::Linear),
            layer: self.layer(config, &prefix),
            norm: self.norm(name("shared_head.norm"), hidden),
        }
    }
}
