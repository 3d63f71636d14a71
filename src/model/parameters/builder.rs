//! Names and shapes of a model's parameters, added one after another.

use super::{Kind, LayerIds, LinearIds, MtpIds, ParameterId, ParameterSpec};
use crate::model::config::{AttentionBias, Config};

/// The parameters so far.
#[derive(Default)]
pub(super) struct Builder {
    specs: Vec<ParameterSpec>,
}

impl Builder {
    pub fn into_specs(self) -> Vec<ParameterSpec> {
        self.specs
    }

    pub fn add(&mut self, name: String, shape: Vec<usize>, kind: Kind) -> ParameterId {
        self.specs.push(ParameterSpec { name, shape, kind });
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

    /// A block whose names begin with `prefix`.
    pub fn layer(&mut self, config: &Config, prefix: &str) -> LayerIds {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let (queries, keys) = (config.query_size(), config.kv_size());
        let AttentionBias { query, key, value, output } = config.attention_bias;
        let name = |part: &str| format!("{prefix}.{part}");
        let attention = |part: &str| name(&format!("self_attn.{part}"));
        let mlp = |part: &str| name(&format!("mlp.{part}"));
        LayerIds {
            input_norm: self.norm(name("input_layernorm"), hidden),
            query: self.linear(attention("q_proj"), (queries, hidden), query, Kind::Linear),
            key: self.linear(attention("k_proj"), (keys, hidden), key, Kind::Linear),
            value: self.linear(attention("v_proj"), (keys, hidden), value, Kind::Linear),
            head_norms: config.qk_norm.then(|| {
                let norm = |builder: &mut Self, part| builder.norm(attention(part), config.head_dim);
                (norm(self, "q_norm"), norm(self, "k_norm"))
            }),
            output: self.linear(attention("o_proj"), (hidden, queries), output, Kind::ResidualLinear),
            mlp_norm: self.norm(name("post_attention_layernorm"), hidden),
            gate: self.linear(mlp("gate_proj"), (inner, hidden), config.mlp_bias, Kind::Linear),
            up: self.linear(mlp("up_proj"), (inner, hidden), config.mlp_bias, Kind::Linear),
            down: self.linear(mlp("down_proj"), (hidden, inner), config.mlp_bias, Kind::ResidualLinear),
        }
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
