//! Rotary position embedding: inverse frequencies and tables of cosines and sines.

use std::f64::consts::PI;
use std::sync::Arc;

use crate::elementary::{ln, pow, sin_cos};
use crate::error::{ModelError, Result};
use crate::tensor::{Real, product};

mod config;

pub(crate) use config::Misfit;
pub use config::{RopeConfig, RopeScaling};

/// A rotary embedding, ready to give angles. All inverse frequencies and angles are `f32`, as in Megatron-LM and
/// Hugging Face. Copies share it.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    config: Arc<RopeConfig>,
    inverse_frequencies: Arc<[f32]>,
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
    /// Computes inverse frequencies.
    ///
    /// # Errors
    /// [`ModelError::Config`] if the configuration makes no sense, with the field and what it may be.
    pub fn new(config: RopeConfig) -> Result<Self> {
        let rotated = config.check()?;
        // Exponents, powers and quotients are f32 one by one, as PyTorch computes them.
        let exponent = |i: usize| (2 * i) as f32 / rotated as f32;
        let power = |i: usize| pow(f64::from(config.base as f32), f64::from(exponent(i))) as f32;
        let plain = |i: usize| 1.0 / power(i);
        let pairs = 0..rotated / 2;
        let concentration = config.scaling.concentration();
        let inverse_frequencies = match &config.scaling {
            RopeScaling::None => pairs.map(plain).collect(),
            RopeScaling::Llama3 { factor, low, high, original } => {
                let scaling = |i| llama3(plain(i), *factor as f32, *low as f32, *high as f32, *original as f32);
                pairs.map(scaling).collect()
            }
            RopeScaling::Yarn { factor, original, beta_fast, beta_slow, truncate, .. } => {
                let dim = rotated as f64;
                let correction =
                    |rotations: f64| dim * ln(*original as f64 / (rotations * 2.0 * PI)) / (2.0 * ln(config.base));
                let (mut low, mut high) = (correction(*beta_fast), correction(*beta_slow));
                if *truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                (low, high) = (low.max(0.0), high.min(dim - 1.0));
                if low == high {
                    high += 0.001;
                }
                let blend = |i: usize| {
                    let stretched = 1.0 / (*factor as f32 * power(i));
                    let ramp = ((i as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
                    let keep = 1.0 - ramp;
                    stretched * (1.0 - keep) + plain(i) * keep
                };
                pairs.map(blend).collect()
            }
        };
        Ok(Rope { config: Arc::new(config), inverse_frequencies, concentration })
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
        self.rows(positions.len(), |row, _| positions[row] as f32)
    }

    /// Rows for M-RoPE ids `[rows, 3]` (time, height, width): section `i` of the pairs takes its position from axis
    /// `i % 3` (Wang et al. 2024, Qwen2-VL).
    ///
    /// # Errors
    /// Without [`RopeConfig::sections`], or if the ids are no multiple of 3.
    pub fn table_from_ids<R: Real>(&self, ids: &[i64]) -> Result<RopeTable<R>> {
        let Some(sections) = &self.config.sections else {
            let text = "M-RoPE ids for a rotary embedding without sections: set mrope_section";
            return Err(ModelError::Config(text.into()).into());
        };
        if !ids.len().is_multiple_of(3) {
            let text = format!("{} M-RoPE ids: give three per row", ids.len());
            return Err(ModelError::Config(text).into());
        }
        let axes: Vec<usize> =
            sections.iter().enumerate().flat_map(|(section, &pairs)| vec![section % 3; pairs]).collect();
        Ok(self.rows(ids.len() / 3, |row, pair| ids[3 * row + axes[pair]] as f32))
    }

    fn rows<R: Real>(&self, rows: usize, position: impl Fn(usize, usize) -> f32) -> RopeTable<R> {
        let pairs = self.pairs();
        let stretch = self.config.interpolation.map(|factor| (1.0 / factor) as f32);
        let scale = R::from_f64(self.concentration);
        let cells = product(&[rows, pairs]);
        let (mut cos, mut sin) = (Vec::with_capacity(cells), Vec::with_capacity(cells));
        for row in 0..rows {
            for (pair, frequency) in self.inverse_frequencies.iter().enumerate() {
                let position = stretch.map_or(position(row, pair), |stretch| position(row, pair) * stretch);
                let (s, c) = sin_cos(f64::from(position * frequency));
                cos.push(R::from_f64(c) * scale);
                sin.push(R::from_f64(s) * scale);
            }
        }
        RopeTable { cos, sin, pairs }
    }
}

/// Llama 3's scaling of one frequency: long wavelengths are divided by `factor`, short ones kept, a ramp between.
fn llama3(frequency: f32, factor: f32, low: f32, high: f32, original: f32) -> f32 {
    let wavelength = 2.0 * std::f32::consts::PI / frequency;
    if wavelength > original / low {
        frequency / factor
    } else if wavelength < original / high {
        frequency
    } else {
        let smooth = (original / wavelength - low) / (high - low);
        (1.0 - smooth) * frequency / factor + smooth * frequency
    }
}

#[cfg(test)]
mod tests;
