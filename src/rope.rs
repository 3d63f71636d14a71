//! Rotary position embedding: inverse frequencies and tables of cosines and sines.

use std::f64::consts::PI;
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::elementary::{ln, pow, sin_cos};
use crate::error::{Error, ModelError, Result};
use crate::tensor::{Real, product};

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
    /// Positions are divided by this (`seq_len_interpolation_factor`). YaRN with this, or with a `percent` below 1, is
    /// refused: Megatron-LM ignores both there.
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

/// What is wrong with a rotary embedding, naming the field.
fn refuse(text: String) -> Error {
    ModelError::Config(text).into()
}

impl RopeConfig {
    /// The plain embedding: all features of a head, no scaling.
    pub fn plain(head_dim: usize, base: f64) -> Self {
        RopeConfig {
            head_dim,
            base,
            percent: 1.0,
            interleaved: false,
            interpolation: None,
            scaling: RopeScaling::None,
            sections: None,
        }
    }

    fn check(&self) -> Result<usize> {
        let RopeConfig { head_dim, base, percent, .. } = *self;
        if !(percent > 0.0 && percent <= 1.0) {
            return Err(refuse(format!("rotary percent {percent}: use a share of the head above 0 and at most 1")));
        }
        let rotated = (head_dim as f64 * percent) as usize;
        if rotated == 0 || !rotated.is_multiple_of(2) {
            return Err(refuse(format!(
                "{rotated} of {head_dim} features of a head would be rotated: use an even number of at least 2"
            )));
        }
        // Frequencies are f32, so what they are made of has to be a number there.
        let positive = |value: f64| value > 0.0 && (value as f32).is_finite() && (1.0 / value as f32).is_finite();
        if !(positive(base) && base > 1.0) {
            return Err(refuse(format!("rotary base {base}: use a number above 1 that an f32 can hold")));
        }
        if let Some(factor) = self.interpolation.filter(|factor| !positive(*factor)) {
            return Err(refuse(format!("interpolation factor {factor}: use a number above 0 that an f32 can hold")));
        }
        match &self.scaling {
            RopeScaling::None => {}
            RopeScaling::Llama3 { factor, low, high, original } => {
                if !(*factor >= 1.0 && high > low && [*factor, *low, *high].map(positive) == [true; 3] && *original > 0)
                {
                    return Err(refuse(format!(
                        "llama3 scaling with factor {factor}, frequency factors {low} to {high} and original context \
                         {original}: use a factor of at least 1, 0 < low < high, and a context above 0"
                    )));
                }
            }
            RopeScaling::Yarn { factor, original, beta_fast, beta_slow, .. } => {
                if self.interleaved || percent != 1.0 || self.interpolation.is_some() {
                    return Err(refuse(
                        "YaRN with interleaved pairs, a rotary percent or an interpolation factor: it is defined for \
                         whole heads in halves only, leave those out"
                            .into(),
                    ));
                }
                let numbers = [*factor, *beta_fast, *beta_slow].map(positive) == [true; 3];
                if !(*factor >= 1.0 && beta_fast > beta_slow && numbers && *original > 0) {
                    return Err(refuse(format!(
                        "YaRN with factor {factor}, beta {beta_fast} and {beta_slow} and original context {original}: \
                         use a factor of at least 1, beta_fast > beta_slow > 0, and a context above 0"
                    )));
                }
            }
        }
        if let Some(sections) = &self.sections {
            let sum = sections.iter().try_fold(0usize, |sum, &pairs| sum.checked_add(pairs));
            if sum != Some(rotated / 2) {
                return Err(refuse(format!(
                    "M-RoPE sections {sections:?}, but {} pairs of features are rotated: make them sum to that",
                    rotated / 2
                )));
            }
        }
        Ok(rotated)
    }
}

/// `0.1 * k * ln(scale) + 1`, YaRN's temperature.
fn mscale(scale: f64, k: f64) -> f64 {
    if scale <= 1.0 { 1.0 } else { 0.1 * k * ln(scale) + 1.0 }
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
        let (inverse_frequencies, concentration) = match &config.scaling {
            RopeScaling::None => (pairs.map(plain).collect(), 1.0),
            RopeScaling::Llama3 { factor, low, high, original } => {
                let scaling = |i| llama3(plain(i), *factor as f32, *low as f32, *high as f32, *original as f32);
                (pairs.map(scaling).collect(), 1.0)
            }
            RopeScaling::Yarn { factor, original, beta_fast, beta_slow, mscale: m, mscale_all_dim } => {
                let dim = rotated as f64;
                let correction =
                    |rotations: f64| dim * ln(*original as f64 / (rotations * 2.0 * PI)) / (2.0 * ln(config.base));
                let low = correction(*beta_fast).floor().max(0.0) as f32;
                let mut high = correction(*beta_slow).ceil().min(dim - 1.0) as f32;
                if low == high {
                    high += 0.001;
                }
                let blend = |i: usize| {
                    let stretched = 1.0 / (*factor as f32 * power(i));
                    let ramp = ((i as f32 - low) / (high - low)).clamp(0.0, 1.0);
                    let keep = 1.0 - ramp;
                    stretched * (1.0 - keep) + plain(i) * keep
                };
                let concentration = match (m, mscale_all_dim) {
                    (Some(m), Some(all)) => mscale(*factor, *m) / mscale(*factor, *all),
                    _ => mscale(*factor, 1.0),
                };
                (pairs.map(blend).collect(), concentration)
            }
        };
        if !(concentration.is_finite() && concentration > 0.0) {
            return Err(refuse(format!(
                "mscale and mscale_all_dim of YaRN make cosines and sines {concentration} times as large: use others"
            )));
        }
        Ok(Rope { config, inverse_frequencies, concentration })
    }

    /// Identifies everything that a table depends on besides positions.
    pub fn key(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.inverse_frequencies.iter().for_each(|f| f.to_bits().hash(&mut hasher));
        let RopeConfig { head_dim, interleaved, interpolation, sections, .. } = &self.config;
        (head_dim, interleaved, interpolation.map(f64::to_bits), sections).hash(&mut hasher);
        self.concentration.to_bits().hash(&mut hasher);
        hasher.finish()
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
            return Err(refuse("M-RoPE ids for a rotary embedding without sections: set mrope_section".into()));
        };
        if !ids.len().is_multiple_of(3) {
            return Err(refuse(format!("{} M-RoPE ids: give three per row", ids.len())));
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
        };
        let plain = rope(RopeConfig { scaling: yarn(None, None), ..RopeConfig::plain(64, 10_000.0) });
        assert!((plain.concentration() - (0.1 * 4f64.ln() + 1.0)).abs() < 1e-12);
        let both = rope(RopeConfig { scaling: yarn(Some(1.0), Some(1.0)), ..RopeConfig::plain(64, 10_000.0) });
        assert_eq!(both.concentration(), 1.0);
        assert_eq!(plain.inverse_frequencies()[0], 1.0);
        let base = rope(RopeConfig::plain(64, 10_000.0));
        assert!((base.inverse_frequencies()[31] / plain.inverse_frequencies()[31] - 4.0).abs() < 1e-6);
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
    fn keys_tell_embeddings_apart() {
        let plain = rope(RopeConfig::plain(8, 10_000.0));
        let interleaved = rope(RopeConfig { interleaved: true, ..RopeConfig::plain(8, 10_000.0) });
        let stretched = rope(RopeConfig { interpolation: Some(2.0), ..RopeConfig::plain(8, 10_000.0) });
        assert_eq!(plain.key(), rope(RopeConfig::plain(8, 10_000.0)).key());
        assert!(plain.key() != interleaved.key() && plain.key() != stretched.key());
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
        refused(RopeConfig::plain(8, 1e300), "rotary base");
        refused(RopeConfig { interpolation: Some(1e-300), ..plain() }, "interpolation factor");
        refused(RopeConfig { interpolation: Some(1e300), ..plain() }, "interpolation factor");
        refused(RopeConfig { sections: Some(vec![usize::MAX, 5]), ..plain() }, "make them sum to that");
        let llama3 = |factor, high| RopeScaling::Llama3 { factor, low: 1.0, high, original: 8192 };
        refused(RopeConfig { scaling: llama3(f64::INFINITY, 4.0), ..plain() }, "factor inf");
        refused(RopeConfig { scaling: llama3(8.0, f64::INFINITY), ..plain() }, "1 to inf");
        let yarn = |factor, mscale| RopeScaling::Yarn {
            factor,
            original: 1024,
            beta_fast: 32.0,
            beta_slow: 1.0,
            mscale: Some(mscale),
            mscale_all_dim: Some(1.0),
        };
        refused(RopeConfig { scaling: yarn(f64::INFINITY, 1.0), ..plain() }, "factor inf");
        refused(RopeConfig { scaling: yarn(4.0, f64::NAN), ..plain() }, "NaN times as large");
        refused(RopeConfig { scaling: yarn(4.0, -100.0), ..plain() }, "times as large");
        let sections = RopeConfig { sections: Some(vec![1, 2, 1]), ..plain() };
        let error = rope(sections).table_from_ids::<f32>(&[1, 2, 3, 4]).unwrap_err();
        assert!(error.to_string().contains("4 M-RoPE ids"), "{error}");
    }
}
