//! Rotary embeddings as configuration files describe them, and the rules of their fields.

use std::fmt;

use crate::elementary::ln;
use crate::error::{Error, ModelError, Result};

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
        /// The concentration factor itself, instead of what follows from the fields above.
        attention_factor: Option<f64>,
        /// Whether the ends of the ramp are rounded to whole dimensions, as they are by default.
        truncate: bool,
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

/// A field that makes no sense, by its name in `config.json`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Misfit {
    pub field: &'static str,
    pub value: String,
    pub allowed: String,
}

impl From<Misfit> for Error {
    fn from(Misfit { field, value, allowed }: Misfit) -> Self {
        ModelError::Config(format!("\"{field}\" is {value}: {allowed}")).into()
    }
}

/// `0.1 * k * ln(scale) + 1`, YaRN's temperature.
fn temperature(scale: f64, k: f64) -> f64 {
    if scale <= 1.0 { 1.0 } else { 0.1 * k * ln(scale) + 1.0 }
}

impl RopeScaling {
    /// The factor on cosines and sines; 1 except for YaRN.
    pub(super) fn concentration(&self) -> f64 {
        match *self {
            RopeScaling::None | RopeScaling::Llama3 { .. } => 1.0,
            RopeScaling::Yarn { attention_factor: Some(given), .. } => given,
            RopeScaling::Yarn { factor, mscale: Some(scale), mscale_all_dim: Some(all), .. } => {
                temperature(factor, scale) / temperature(factor, all)
            }
            RopeScaling::Yarn { factor, .. } => temperature(factor, 1.0),
        }
    }
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

    /// The number of features that are rotated. The rules of every field are here and nowhere else.
    pub(crate) fn check(&self) -> Result<usize, Misfit> {
        let RopeConfig { head_dim, base, percent, .. } = *self;
        let misfit =
            |field, value: &dyn fmt::Debug, allowed: String| Misfit { field, value: format!("{value:?}"), allowed };
        let must = |holds: bool, field, value: f64, allowed: &str| match holds {
            true => Ok(()),
            false => Err(misfit(field, &value, format!("must be {allowed}"))),
        };
        must(percent > 0.0 && percent <= 1.0, "partial_rotary_factor", percent, "a share above 0 and at most 1")?;
        let rotated = (head_dim as f64 * percent) as usize;
        if rotated == 0 || !rotated.is_multiple_of(2) {
            let allowed = "must be even for the rotary embedding, and at least 2";
            return Err(match percent == 1.0 {
                true => misfit("head_dim", &head_dim, allowed.into()),
                false => misfit(
                    "partial_rotary_factor",
                    &percent,
                    format!("{rotated} of {head_dim} features would be rotated, a number that {allowed}"),
                ),
            });
        }
        // Frequencies, cosines and sines may be f32, so what they are made of has to be a number there, and so does
        // what it is divided by.
        let held = |value: f64| value > 0.0 && (value as f32).is_finite() && (1.0 / value as f32).is_finite();
        must(base > 1.0 && held(base), "rope_theta", base, "a number above 1 that an f32 holds")?;
        let stretch = |factor: f64| {
            must(factor >= 1.0 && held(factor), "factor", factor, "a number of at least 1 that an f32 holds")
        };
        let context =
            |original: usize| must(original > 0, "original_max_position_embeddings", original as f64, "at least 1");
        let interpolation = self.interpolation.unwrap_or(1.0);
        must(held(interpolation), "factor", interpolation, "a number above 0 that an f32 holds")?;
        match self.scaling {
            RopeScaling::None => {}
            RopeScaling::Llama3 { factor, low, high, original } => {
                stretch(factor)?;
                context(original)?;
                must(held(low), "low_freq_factor", low, "a number above 0 that an f32 holds")?;
                let allowed = format!("above low_freq_factor, {low}, and held by an f32");
                must(held(high) && high > low, "high_freq_factor", high, &allowed)?;
            }
            RopeScaling::Yarn {
                factor,
                original,
                beta_fast,
                beta_slow,
                mscale,
                mscale_all_dim,
                attention_factor,
                truncate: _,
            } => {
                if self.interleaved || percent != 1.0 || self.interpolation.is_some() {
                    let allowed = "YaRN is defined for whole heads in halves only: leave out interleaved pairs, a \
                                   share of the head and an interpolation factor";
                    return Err(misfit("rope_type", &"yarn", allowed.into()));
                }
                stretch(factor)?;
                context(original)?;
                must(beta_slow.is_finite() && beta_slow > 0.0, "beta_slow", beta_slow, "a number above 0")?;
                let allowed = format!("a number of at least beta_slow, {beta_slow}");
                must(beta_fast.is_finite() && beta_fast >= beta_slow, "beta_fast", beta_fast, &allowed)?;
                for (field, scale) in [("mscale", mscale), ("mscale_all_dim", mscale_all_dim)] {
                    let scale = scale.unwrap_or(0.0);
                    must(scale.is_finite() && scale >= 0.0, field, scale, "a number of at least 0")?;
                }
                let concentration = self.scaling.concentration();
                if let Some(given) = attention_factor {
                    must(held(given), "attention_factor", given, "a number above 0 that an f32 holds")?;
                } else if !held(concentration) {
                    let allowed = format!(
                        "with factor {factor} and mscale_all_dim {} cosines and sines would be {concentration} times as \
                         large, which must be a number above 0 that an f32 holds",
                        mscale_all_dim.unwrap_or(0.0)
                    );
                    return Err(misfit("mscale", &mscale.unwrap_or(0.0), allowed));
                }
            }
        }
        if let Some(sections) = &self.sections {
            let sum = sections.iter().try_fold(0usize, |sum, &pairs| sum.checked_add(pairs));
            if sum != Some(rotated / 2) {
                let allowed = format!("must sum to the {} pairs of features that are rotated", rotated / 2);
                return Err(misfit("mrope_section", sections, allowed));
            }
        }
        Ok(rotated)
    }
}
