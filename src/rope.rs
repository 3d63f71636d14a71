//! Rotary position embedding: inverse frequencies and tables of cosines and sines.

use crate::error::Result;
use crate::tensor::Real;

/// How frequencies are changed for contexts longer than the model was trained on.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Llama 3: long wavelengths divided by `factor`, a ramp between.
    Llama3 {
        /// Stretch of long wavelengths.
        factor: f64,
        /// `low_freq_factor`, 1 in published models.
        low: f64,
        /// `high_freq_factor`, 4 in published models.
        high: f64,
        /// Context that the model was trained on, 8192 in published models.
        original: usize,
    },
    /// YaRN (Peng et al. 2023): a ramp over dimensions, and a concentration factor on cosines and sines.
    Yarn {
        /// Stretch of the context.
        factor: f64,
        /// Context that the model was trained on.
        original: usize,
        /// Rotations above which a dimension is left alone, 32 by default.
        beta_fast: f64,
        /// Rotations below which a dimension is stretched, 1 by default.
        beta_slow: f64,
        /// `mscale`; with `mscale_all_dim` it sets the concentration factor.
        mscale: Option<f64>,
        /// `mscale_all_dim`.
        mscale_all_dim: Option<f64>,
    },
}

/// A rotary embedding as a configuration file describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// Features of a head.
    pub head_dim: usize,
    /// Base of the geometric series of wavelengths (`rope_theta`).
    pub base: f64,
    /// Share of the head's features that are rotated, from the first on.
    pub percent: f64,
    /// Whether neighbouring features form a pair, instead of feature `i` and `i + dim / 2`.
    pub interleaved: bool,
    /// Positions are divided by this (`seq_len_interpolation_factor`). Not applied by YaRN, as in Megatron.
    pub interpolation: Option<f64>,
    /// Scaling for long contexts.
    pub scaling: RopeScaling,
    /// M-RoPE: pairs of features that take their angle from the time, height and width ids, in turn.
    pub sections: Option<Vec<usize>>,
}

/// A rotary embedding, ready to give angles. All inverse frequencies and angles are `f32`, as in Megatron-LM and
/// Hugging Face.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    config: RopeConfig,
    inverse_frequencies: Vec<f32>,
    concentration: f64,
}

/// Cosines and sines, `[rows, pairs]` each, scaled by the concentration factor.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeTable<R> {
    /// Cosines.
    pub cos: Vec<R>,
    /// Sines.
    pub sin: Vec<R>,
    /// Pairs of features that are rotated.
    pub pairs: usize,
}

impl Rope {
    /// Computes inverse frequencies, or says what is wrong with the configuration.
    pub fn new(config: RopeConfig) -> Result<Self> {
        let _ = config;
        todo!()
    }

    /// Identifies everything that a table depends on besides positions.
    pub fn key(&self) -> u64 {
        todo!()
    }

    /// The configuration.
    pub fn config(&self) -> &RopeConfig {
        &self.config
    }

    /// Pairs of features that are rotated.
    pub fn pairs(&self) -> usize {
        self.inverse_frequencies.len()
    }

    /// One inverse frequency per pair.
    pub fn inverse_frequencies(&self) -> &[f32] {
        &self.inverse_frequencies
    }

    /// The factor on cosines and sines; 1 except for YaRN.
    pub fn concentration(&self) -> f64 {
        self.concentration
    }

    /// Rows for these positions. The angle is an `f32` product; cosine and sine are taken in `R`.
    pub fn table<R: Real>(&self, positions: &[usize]) -> RopeTable<R> {
        let _ = positions;
        todo!()
    }

    /// Rows for M-RoPE ids `[rows, 3]` (time, height, width). Needs [`RopeConfig::sections`].
    pub fn table_from_ids<R: Real>(&self, ids: &[i64]) -> Result<RopeTable<R>> {
        let _ = ids;
        todo!()
    }
}
