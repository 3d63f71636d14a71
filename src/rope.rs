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
mod tests {
    use super::*;

    fn rope(config: RopeConfig) -> Rope {
        Rope::new(config).unwrap()
    }

    #[test]
    fn plain_frequencies_and_angles() {
        let rope = rope(RopeConfig::plain(4, 100.0));
        assert_eq!(rope.inverse_frequencies(), [1.0, 0.1]);
        let table = rope.table::<f64>(&[0, 2]);
        assert_eq!(table.cos[..2], [1.0, 1.0]);
        assert_eq!(table.cos[2], 2f64.cos());
        assert_eq!(table.sin[3], f64::from(2.0 * 0.1f32).sin());
    }

    #[test]
    fn partial_and_interpolated() {
        let config = RopeConfig { percent: 0.5, interpolation: Some(4.0), ..RopeConfig::plain(8, 100.0) };
        let rope = rope(config);
        assert_eq!(rope.pairs(), 2);
        assert_eq!(rope.table::<f64>(&[8]).cos[0], 2f64.cos());
    }

    #[test]
    fn llama3_keeps_short_and_divides_long_wavelengths() {
        let scaling = RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 8192 };
        let scaled = rope(RopeConfig { scaling, ..RopeConfig::plain(128, 500_000.0) });
        let plain = rope(RopeConfig::plain(128, 500_000.0));
        let ratio = |i: usize| plain.inverse_frequencies()[i] / scaled.inverse_frequencies()[i];
        assert_eq!((ratio(0), ratio(63)), (1.0, 8.0));
        let middle = (0..64).filter(|&i| ratio(i) > 1.001 && ratio(i) < 7.999).count();
        assert!(middle > 2, "a ramp of {middle} frequencies");
    }

    #[test]
    fn yarn_concentrates() {
        let yarn = |mscale, all| RopeScaling::Yarn {
            factor: 4.0,
            original: 1024,
            beta_fast: 32.0,
            beta_slow: 1.0,
            mscale,
            mscale_all_dim: all,
            attention_factor: None,
            truncate: true,
        };
        let plain = rope(RopeConfig { scaling: yarn(None, None), ..RopeConfig::plain(64, 10_000.0) });
        assert!((plain.concentration() - (0.1 * 4f64.ln() + 1.0)).abs() < 1e-12);
        let both = rope(RopeConfig { scaling: yarn(Some(1.0), Some(1.0)), ..RopeConfig::plain(64, 10_000.0) });
        assert_eq!(both.concentration(), 1.0);
        // Megatron-LM takes a 0 as given.
        let zero = rope(RopeConfig { scaling: yarn(Some(1.0), Some(0.0)), ..RopeConfig::plain(64, 10_000.0) });
        assert_eq!(zero.concentration(), plain.concentration());
        assert_eq!(plain.inverse_frequencies()[0], 1.0);
        let base = rope(RopeConfig::plain(64, 10_000.0));
        assert!((base.inverse_frequencies()[31] / plain.inverse_frequencies()[31] - 4.0).abs() < 1e-6);
    }

    /// By hand, with the natural logarithms of transformers' formula: dimensions 20.9445 and 45.0269 of 64 are the ends
    /// of the ramp, and frequency 30 lies on it.
    #[test]
    fn yarn_with_a_factor_of_its_own_and_ends_that_are_not_rounded() {
        let yarn = |attention_factor, truncate| RopeScaling::Yarn {
            factor: 4.0,
            original: 4096,
            beta_fast: 32.0,
            beta_slow: 1.0,
            mscale: Some(0.7),
            mscale_all_dim: Some(1.0),
            attention_factor,
            truncate,
        };
        let of =
            |factor, truncate| rope(RopeConfig { scaling: yarn(factor, truncate), ..RopeConfig::plain(128, 10_000.0) });
        let (given, rounded) = (of(Some(1.25), false), of(None, true));
        assert_eq!(given.concentration(), 1.25);
        let implied = (0.07 * 4f64.ln() + 1.0) / (0.1 * 4f64.ln() + 1.0);
        assert!((rounded.concentration() - implied).abs() < 1e-12);
        let end = |rotations: f64| 64.0 * (4096.0 / (rotations * 2.0 * PI)).ln() / 10_000f64.ln();
        assert!((end(32.0) - 20.9445).abs() < 1e-4 && (end(1.0) - 45.0269).abs() < 1e-4);
        let plain = 10_000f64.powf(-60.0 / 128.0);
        let blended = |low: f64, high: f64| plain * (1.0 - 0.75 * (30.0 - low) / (high - low));
        for (rope, low, high) in [(&given, 20.9445, 45.0269), (&rounded, 20.0, 46.0)] {
            let found = f64::from(rope.inverse_frequencies()[30]);
            assert!((found / blended(low, high) - 1.0).abs() < 1e-5, "{found} {low} {high}");
        }
    }

    #[test]
    fn equal_ends_of_a_ramp_are_allowed_once_and_for_all() {
        let scaling = RopeScaling::Yarn {
            factor: 2.0,
            original: 4096,
            beta_fast: 3.0,
            beta_slow: 3.0,
            mscale: None,
            mscale_all_dim: None,
            attention_factor: None,
            truncate: false,
        };
        let rope = rope(RopeConfig { scaling, ..RopeConfig::plain(64, 10_000.0) });
        assert!(rope.inverse_frequencies().iter().all(|frequency| frequency.is_finite() && *frequency > 0.0));
    }

    #[test]
    fn mrope_takes_each_section_from_its_axis() {
        let config = RopeConfig { sections: Some(vec![1, 2, 1]), ..RopeConfig::plain(8, 10_000.0) };
        let mixed = rope(config).table_from_ids::<f64>(&[3, 5, 7]).unwrap();
        let plain = rope(RopeConfig::plain(8, 10_000.0)).table::<f64>(&[3, 5, 7]);
        assert_eq!(mixed.cos, [plain.cos[0], plain.cos[4 + 1], plain.cos[4 + 2], plain.cos[8 + 3]]);
        assert!(rope(RopeConfig::plain(8, 1e4)).table_from_ids::<f64>(&[1, 2, 3]).is_err());
    }

    #[test]
    fn refusals_name_the_value() {
        let refused = |config: RopeConfig, part: &str| {
            let message = Rope::new(config).unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        };
        refused(RopeConfig { percent: 1.5, ..RopeConfig::plain(8, 1e4) }, "1.5");
        refused(RopeConfig { percent: 0.4, ..RopeConfig::plain(8, 1e4) }, "3 of 8");
        refused(RopeConfig { sections: Some(vec![1, 1]), ..RopeConfig::plain(8, 1e4) }, "[1, 1]");
        refused(RopeConfig::plain(8, 0.5), "0.5");
    }

    #[test]
    fn numbers_that_would_make_frequencies_infinite_or_nan_are_refused() {
        let refused = |config: RopeConfig, part: &str| {
            let message = Rope::new(config).unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        };
        let plain = || RopeConfig::plain(8, 1e4);
        refused(RopeConfig::plain(8, 1e300), "\"rope_theta\" is 1e300");
        refused(RopeConfig { interpolation: Some(1e-300), ..plain() }, "\"factor\" is 1e-300");
        refused(RopeConfig { interpolation: Some(1e300), ..plain() }, "\"factor\" is 1e300");
        refused(RopeConfig { sections: Some(vec![usize::MAX, 5]), ..plain() }, "must sum to the 4 pairs");
        let llama3 = |factor, high| RopeScaling::Llama3 { factor, low: 1.0, high, original: 8192 };
        refused(RopeConfig { scaling: llama3(f64::INFINITY, 4.0), ..plain() }, "\"factor\" is inf");
        refused(RopeConfig { scaling: llama3(8.0, f64::INFINITY), ..plain() }, "\"high_freq_factor\" is inf");
        let given = |factor, mscale, attention_factor| RopeScaling::Yarn {
            factor,
            original: 1024,
            beta_fast: 32.0,
            beta_slow: 1.0,
            mscale: Some(mscale),
            mscale_all_dim: Some(1.0),
            attention_factor,
            truncate: true,
        };
        let yarn = |factor, mscale| given(factor, mscale, None);
        refused(RopeConfig { scaling: yarn(f64::INFINITY, 1.0), ..plain() }, "\"factor\" is inf");
        refused(RopeConfig { scaling: yarn(4.0, f64::NAN), ..plain() }, "\"mscale\" is NaN");
        refused(RopeConfig { scaling: yarn(4.0, -100.0), ..plain() }, "\"mscale\" is -100.0");
        refused(RopeConfig { scaling: yarn(4.0, f64::MAX), ..plain() }, "times as large");
        refused(RopeConfig { scaling: yarn(4.0, 1e300), ..plain() }, "\"mscale\" is 1e300");
        for factor in [1e39, 1e-50, f64::NAN] {
            let part = format!("\"attention_factor\" is {factor:?}");
            refused(RopeConfig { scaling: given(4.0, 1.0, Some(factor)), ..plain() }, &part);
        }
        // What is given stands for what would follow from the others.
        assert_eq!(rope(RopeConfig { scaling: given(4.0, 1e300, Some(2.0)), ..plain() }).concentration(), 2.0);
        let sections = RopeConfig { sections: Some(vec![1, 2, 1]), ..plain() };
        let error = rope(sections).table_from_ids::<f32>(&[1, 2, 3, 4]).unwrap_err();
        assert!(error.to_string().contains("4 M-RoPE ids"), "{error}");
    }
}
