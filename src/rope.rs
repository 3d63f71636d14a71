//! Rotary position embedding: inverse frequencies and tables of cosines and sines.

use std::f64::consts::TAU;
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::error::{LayoutError, ModelError, Result};
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

impl RopeConfig {
    /// All features of heads of `head_dim` rotated in halves, without any scaling.
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

    /// Features that are rotated: `int(head_dim * percent)`.
    fn rotated(&self) -> usize {
        (self.head_dim as f64 * self.percent) as usize
    }

    fn check(&self) -> Result<()> {
        let RopeConfig { head_dim, base, percent, .. } = *self;
        let positive = |value: f64| value.is_finite() && value > 0.0;
        if !positive(base) {
            return refuse(format!("the rotary base is {base}: use a positive number, such as 10000"));
        }
        if !(percent > 0.0 && percent <= 1.0) {
            return refuse(format!("a rotary percent of {percent}: use a share of the head in 0 (excluded) to 1"));
        }
        let dim = self.rotated();
        if dim == 0 || !dim.is_multiple_of(2) {
            return refuse(format!(
                "rotary embedding of {dim} of {head_dim} features per head (percent {percent}): the number must be even and not 0"
            ));
        }
        if let Some(factor) = self.interpolation.filter(|&factor| !positive(factor)) {
            return refuse(format!("a rotary interpolation factor of {factor}: use a positive number"));
        }
        match self.scaling {
            RopeScaling::None => {}
            RopeScaling::Llama3 { factor, low, high, original } => {
                if !positive(factor) || !positive(low) || !high.is_finite() || high <= low || original == 0 {
                    return refuse(format!(
                        "llama3 rotary scaling with factor {factor}, low_freq_factor {low}, high_freq_factor {high}, \
                         original context {original}: all must be positive, and low below high"
                    ));
                }
            }
            RopeScaling::Yarn { factor, original, beta_fast, beta_slow, mscale, mscale_all_dim } => {
                if !positive(factor) || !positive(beta_fast) || !positive(beta_slow) || original == 0 {
                    return refuse(format!(
                        "yarn rotary scaling with factor {factor}, beta_fast {beta_fast}, beta_slow {beta_slow}, \
                         original context {original}: all must be positive"
                    ));
                }
                if let Some(scale) = [mscale, mscale_all_dim].into_iter().flatten().find(|m| !m.is_finite()) {
                    return refuse(format!("yarn rotary scaling with an mscale of {scale}: use a finite number"));
                }
                if base <= 1.0 {
                    return refuse(format!("yarn rotary scaling with base {base}: use a base above 1"));
                }
                if percent != 1.0 {
                    return refuse(format!(
                        "yarn rotary scaling with percent {percent}: yarn rotates the whole head, use 1"
                    ));
                }
                if self.interleaved {
                    return refuse("yarn rotary scaling with interleaved pairs: use pairs of halves".into());
                }
            }
        }
        let Some(sections) = &self.sections else { return Ok(()) };
        if sections.iter().try_fold(0usize, |sum, &pairs| sum.checked_add(pairs)) != Some(dim / 2) {
            return refuse(format!("M-RoPE sections {sections:?} for {} pairs: they must add up to that", dim / 2));
        }
        if !sections.len().is_multiple_of(3) {
            return refuse(format!(
                "M-RoPE with {} sections: time, height and width take turns, use a multiple of 3",
                sections.len()
            ));
        }
        if self.interleaved || self.scaling != RopeScaling::None {
            return refuse("M-RoPE with interleaved pairs or long-context scaling: use it without either".into());
        }
        Ok(())
    }
}

fn refuse<T>(why: String) -> Result<T> {
    Err(ModelError::Config(why).into())
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
        config.check()?;
        let wavelengths = wavelengths(config.base, config.rotated());
        let mut concentration = 1.0;
        let inverse_frequencies = match config.scaling {
            RopeScaling::None => wavelengths.iter().map(|w| 1.0 / w).collect(),
            RopeScaling::Llama3 { factor, low, high, original } => {
                wavelengths.iter().map(|w| llama3(1.0 / w, factor, low, high, original)).collect()
            }
            RopeScaling::Yarn { factor, original, beta_fast, beta_slow, mscale, mscale_all_dim } => {
                concentration = match (mscale, mscale_all_dim) {
                    (Some(part), Some(all)) => yarn_mscale(factor, part) / yarn_mscale(factor, all),
                    _ => yarn_mscale(factor, 1.0),
                };
                yarn(&wavelengths, config.base, factor, original, beta_fast, beta_slow)
            }
        };
        if !concentration.is_finite() {
            return refuse("yarn rotary scaling whose mscale_all_dim makes the concentration factor infinite".into());
        }
        Ok(Rope { config, inverse_frequencies, concentration })
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

    /// Identifies everything that a table depends on besides the positions. Two embeddings that differ only in which
    /// features form a pair have the same tables.
    pub fn key(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        for frequency in &self.inverse_frequencies {
            frequency.to_bits().hash(&mut hasher);
        }
        self.concentration.to_bits().hash(&mut hasher);
        self.position_scale().map(f32::to_bits).hash(&mut hasher);
        self.config.sections.hash(&mut hasher);
        hasher.finish()
    }

    /// Rows for these positions. The angle is an `f32` product; cosine and sine are taken in `R`.
    pub fn table<R: Real>(&self, positions: &[usize]) -> RopeTable<R> {
        let scaled: Vec<f32> = positions.iter().map(|&position| self.scaled(position as f32)).collect();
        self.fill(scaled.len(), |row, _| scaled[row])
    }

    /// Rows for M-RoPE ids `[rows, 3]` (time, height, width). Needs [`RopeConfig::sections`].
    pub fn table_from_ids<R: Real>(&self, ids: &[i64]) -> Result<RopeTable<R>> {
        let Some(sections) = &self.config.sections else {
            return refuse(
                "M-RoPE ids for a rotary embedding without sections: set its sections, or pass positions".into(),
            );
        };
        let (rows, rest) = ids.as_chunks::<3>();
        if !rest.is_empty() {
            return Err(LayoutError::Features { what: "the last M-RoPE id", expected: 3, found: rest.len() }.into());
        }
        let axes: Vec<usize> =
            sections.iter().enumerate().flat_map(|(i, &pairs)| std::iter::repeat_n(i % 3, pairs)).collect();
        let scaled: Vec<[f32; 3]> = rows.iter().map(|ids| ids.map(|id| self.scaled(id as f32))).collect();
        Ok(self.fill(rows.len(), |row, pair| scaled[row][axes[pair]]))
    }

    /// What positions are multiplied with; YaRN does not interpolate.
    fn position_scale(&self) -> Option<f32> {
        match self.config.scaling {
            RopeScaling::Yarn { .. } => None,
            _ => self.config.interpolation.map(|factor| (1.0 / factor) as f32),
        }
    }

    fn scaled(&self, position: f32) -> f32 {
        self.position_scale().map_or(position, |scale| position * scale)
    }

    fn fill<R: Real>(&self, rows: usize, position: impl Fn(usize, usize) -> f32) -> RopeTable<R> {
        let pairs = self.pairs();
        let concentration = R::from_f64(self.concentration);
        let mut table = RopeTable { cos: Vec::new(), sin: Vec::new(), pairs };
        table.cos.reserve_exact(rows * pairs);
        table.sin.reserve_exact(rows * pairs);
        for row in 0..rows {
            for (pair, frequency) in self.inverse_frequencies.iter().enumerate() {
                let (sin, cos) = f64::from(position(row, pair) * frequency).sin_cos();
                table.cos.push(R::from_f64(cos) * concentration);
                table.sin.push(R::from_f64(sin) * concentration);
            }
        }
        table
    }
}

/// `base ** (arange(0, dim, 2) / dim)` with `f32` operands, as PyTorch computes it.
fn wavelengths(base: f64, dim: usize) -> Vec<f32> {
    let base = f64::from(base as f32);
    (0..dim / 2).map(|i| base.powf(f64::from((2 * i) as f32 / dim as f32)) as f32).collect()
}

/// Llama 3: frequencies with wavelengths beyond the trained context are divided by `factor`, those of `high` or more
/// turns within it stay, between them a ramp. All in `f32`.
fn llama3(frequency: f32, factor: f64, low: f64, high: f64, original: usize) -> f32 {
    let (factor, original) = (factor as f32, original as f64);
    let wavelength = TAU as f32 / frequency;
    if wavelength > (original / low) as f32 {
        frequency / factor
    } else if wavelength < (original / high) as f32 {
        frequency
    } else {
        let smooth = (original as f32 / wavelength - low as f32) / (high - low) as f32;
        (1.0 - smooth) * frequency / factor + smooth * frequency
    }
}

/// YaRN: pairs that turn more than `beta_fast` times within the trained context stay, those that turn less than
/// `beta_slow` times are divided by `factor`, between them a ramp over the pair's index, in `f32`.
fn yarn(wavelengths: &[f32], base: f64, factor: f64, original: usize, beta_fast: f64, beta_slow: f64) -> Vec<f32> {
    let dim = 2 * wavelengths.len();
    let index = |turns: f64| dim as f64 * (original as f64 / (turns * TAU)).ln() / (2.0 * base.ln());
    let low = index(beta_fast).floor().max(0.0);
    let mut high = index(beta_slow).ceil().min(dim as f64 - 1.0);
    if low == high {
        high += 0.001;
    }
    let blend = |(i, &wavelength): (usize, &f32)| {
        let ramp = ((i as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
        let keep = 1.0 - ramp;
        1.0 / (factor as f32 * wavelength) * (1.0 - keep) + 1.0 / wavelength * keep
    };
    wavelengths.iter().enumerate().map(blend).collect()
}

/// YaRN's factor on attention for a context stretched by `factor`.
fn yarn_mscale(factor: f64, mscale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    fn yarn_config(mscale: Option<f64>, mscale_all_dim: Option<f64>) -> RopeConfig {
        let (beta_fast, beta_slow) = (32.0, 1.0);
        let scaling = RopeScaling::Yarn { factor: 4.0, original: 96, beta_fast, beta_slow, mscale, mscale_all_dim };
        RopeConfig { scaling, ..RopeConfig::plain(16, 10_000.0) }
    }

    fn near(found: &[f32], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert!((f64::from(*found) / expected - 1.0).abs() < 3e-7, "{found} is not {expected}");
        }
    }

    #[test]
    fn plain_frequencies_and_angles() {
        let rope = Rope::new(RopeConfig::plain(4, 10_000.0)).unwrap();
        assert_eq!(rope.inverse_frequencies(), [1.0, 0.01]);
        let table = rope.table::<f32>(&[0, 3]);
        assert_eq!((table.pairs, &table.cos[..2], &table.sin[..2]), (2, &[1.0, 1.0][..], &[0.0, 0.0][..]));
        near(&table.cos[2..], &[-0.989_992_496_600_445_4, 0.999_550_033_748_987_5]);
        near(&table.sin[2..], &[0.141_120_008_059_867_2, 0.029_995_500_202_495_66]);
    }

    #[test]
    fn part_of_the_head() {
        let rope = Rope::new(RopeConfig { percent: 0.5, ..RopeConfig::plain(8, 10_000.0) }).unwrap();
        assert_eq!(rope.inverse_frequencies(), [1.0, 0.01]);
    }

    #[test]
    fn interpolation_divides_positions() {
        let rope = Rope::new(RopeConfig { interpolation: Some(4.0), ..RopeConfig::plain(4, 10_000.0) }).unwrap();
        let plain = Rope::new(RopeConfig::plain(4, 10_000.0)).unwrap();
        assert_eq!(rope.table::<f64>(&[4, 20]), plain.table::<f64>(&[1, 5]));
    }

    #[test]
    fn llama3_has_three_bands() {
        // Wavelengths 2 pi 50^i = 6.28, 314.2, 15708: below, within and above the band 800 / 4 .. 800 / 1.
        let scaling = RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 800 };
        let base = 50f64.powi(3);
        let rope = Rope::new(RopeConfig { scaling, ..RopeConfig::plain(6, base) }).unwrap();
        // The middle one: wavelength 314.159, 800 / 314.159 = 2.546 479, ramp (2.546 479 - 1) / 3 = 0.515 493.
        let smooth = (800.0 / (TAU * 50.0) - 1.0) / 3.0;
        near(rope.inverse_frequencies(), &[1.0, 0.02 * ((1.0 - smooth) / 8.0 + smooth), 0.0004 / 8.0]);
    }

    #[test]
    fn yarn_ramps_over_the_pairs() {
        let rope = Rope::new(yarn_config(None, None)).unwrap();
        // low = floor(16 ln(96 / (64 pi)) / (2 ln 10^4)) < 0, so 0; high = ceil(16 ln(96 / 2 pi) / (2 ln 10^4)) = 3.
        let expected: Vec<f64> = (0..8)
            .map(|i| {
                let (extra, ramp) = (10f64.powf(-0.5 * f64::from(i)), (f64::from(i) / 3.0).min(1.0));
                extra / 4.0 * ramp + extra * (1.0 - ramp)
            })
            .collect();
        near(rope.inverse_frequencies(), &expected);
    }

    #[test]
    fn yarn_concentration() {
        let of = |mscale, all| Rope::new(yarn_config(mscale, all)).unwrap().concentration();
        let stretched = |mscale: f64| 0.1 * mscale * 4f64.ln() + 1.0;
        assert_eq!(of(None, None), stretched(1.0));
        assert_eq!(of(Some(0.7), None), stretched(1.0));
        assert_eq!(of(Some(0.7), Some(0.7)), 1.0);
        assert_eq!(of(Some(1.0), Some(0.5)), stretched(1.0) / stretched(0.5));
        let table = Rope::new(yarn_config(None, None)).unwrap().table::<f64>(&[0]);
        assert_eq!(table.cos, [stretched(1.0); 8]);
    }

    #[test]
    fn sections_take_their_axis() {
        let config = RopeConfig { sections: Some(vec![1, 2, 1]), ..RopeConfig::plain(8, 10_000.0) };
        let rope = Rope::new(config).unwrap();
        let table = rope.table_from_ids::<f64>(&[3, 5, 7, 9, 9, 9]).unwrap();
        let axis = |position: usize| rope.table::<f64>(&[position]);
        let (time, height, width) = (axis(3), axis(5), axis(7));
        assert_eq!(table.cos[..4], [time.cos[0], height.cos[1], height.cos[2], width.cos[3]]);
        assert_eq!(table.sin[..4], [time.sin[0], height.sin[1], height.sin[2], width.sin[3]]);
        assert_eq!(table.cos[4..], axis(9).cos);
    }

    #[test]
    fn keys_tell_tables_apart() {
        let plain = RopeConfig::plain(16, 10_000.0);
        let configs = [
            plain.clone(),
            RopeConfig::plain(8, 10_000.0),
            RopeConfig { interpolation: Some(2.0), ..plain.clone() },
            RopeConfig { sections: Some(vec![2, 3, 3]), ..plain.clone() },
            yarn_config(None, None),
            yarn_config(Some(1.0), Some(1.0)),
        ];
        let keys: Vec<u64> = configs.into_iter().map(|config| Rope::new(config).unwrap().key()).collect();
        for (i, key) in keys.iter().enumerate() {
            assert!(!keys[..i].contains(key), "embedding {i}");
        }
        assert_eq!(Rope::new(RopeConfig { interleaved: true, ..plain }).unwrap().key(), keys[0]);
    }

    #[test]
    fn what_cannot_work_is_refused() {
        let plain = RopeConfig::plain(8, 10_000.0);
        let llama3 = |low, high| RopeScaling::Llama3 { factor: 8.0, low, high, original: 32 };
        let yarn = yarn_config(None, None);
        for config in [
            RopeConfig { head_dim: 0, ..plain.clone() },
            RopeConfig { head_dim: 7, ..plain.clone() },
            RopeConfig { percent: 0.0, ..plain.clone() },
            RopeConfig { percent: 1.5, ..plain.clone() },
            RopeConfig { percent: f64::NAN, ..plain.clone() },
            RopeConfig { percent: 0.4, ..plain.clone() },
            RopeConfig { base: 0.0, ..plain.clone() },
            RopeConfig { interpolation: Some(0.0), ..plain.clone() },
            RopeConfig { sections: Some(vec![1, 1, 1]), ..plain.clone() },
            RopeConfig { sections: Some(vec![2, 2]), ..plain.clone() },
            RopeConfig { sections: Some(vec![1, 2, 1]), interleaved: true, ..plain.clone() },
            RopeConfig { scaling: llama3(4.0, 4.0), ..plain.clone() },
            RopeConfig { scaling: llama3(0.0, 4.0), ..plain.clone() },
            RopeConfig { interleaved: true, ..yarn.clone() },
            RopeConfig { percent: 0.5, ..yarn.clone() },
            RopeConfig { base: 1.0, ..yarn },
        ] {
            assert!(matches!(Rope::new(config.clone()), Err(Error::Model(ModelError::Config(_)))), "{config:?}");
        }
        let rope = Rope::new(plain).unwrap();
        assert!(rope.table_from_ids::<f32>(&[1, 2, 3]).is_err());
        let config = RopeConfig { sections: Some(vec![1, 2, 1]), ..rope.config().clone() };
        assert!(Rope::new(config).unwrap().table_from_ids::<f32>(&[1, 2, 3, 4]).is_err());
    }
}
