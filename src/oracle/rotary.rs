//! Rotary position embedding from the definition, with the number rules of Megatron-LM and Hugging Face.
//!
//! Inverse frequencies and angles are `f32`; cosine, sine and the rotation itself are `f64`.

use std::f64::consts::PI;

/// How frequencies are changed for long contexts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Stretch {
    /// Not at all.
    None,
    /// Llama 3.
    Llama3 {
        /// Long wavelengths become this many times longer.
        factor: f64,
        /// Wavelengths above `original / low` are long.
        low: f64,
        /// Wavelengths below `original / high` are left alone.
        high: f64,
        /// Context of the original training.
        original: f64,
    },
    /// YaRN (Peng et al. 2023).
    Yarn {
        /// Wavelengths of slow dimensions become this many times longer.
        factor: f64,
        /// Context of the original training.
        original: f64,
        /// Dimensions that turn more often than this over the original context are left alone.
        beta_fast: f64,
        /// Dimensions that turn less often than this are stretched wholly.
        beta_slow: f64,
        /// Numerator of the concentration factor.
        mscale: Option<f64>,
        /// Its denominator. If one of the two is missing the factor is that of `mscale` 1 alone.
        mscale_all_dim: Option<f64>,
    },
}

/// A rotary embedding.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rotation {
    /// Features of a head.
    pub head_dim: usize,
    /// Base of the geometric series of wavelengths.
    pub base: f64,
    /// Share of the features that are rotated, from the first on (YaRN rotates all, as in Megatron-LM).
    pub percent: f64,
    /// Pairs are neighbours, not `i` and `i + rotated / 2`.
    pub interleaved: bool,
    /// Positions are divided by this (YaRN takes no notice of it, as in Megatron-LM).
    pub interpolation: Option<f64>,
    /// Changes for long contexts.
    pub stretch: Stretch,
}

impl Rotation {
    /// Features of a head that are rotated.
    pub fn rotated(&self) -> usize {
        match self.stretch {
            Stretch::Yarn { .. } => self.head_dim,
            _ => (self.head_dim as f64 * self.percent) as usize,
        }
    }

    /// One inverse frequency per pair of features.
    pub fn inverse_frequencies(&self) -> Vec<f32> {
        let rotated = self.rotated();
        let series = |pair: usize| self.base.powf(f64::from(2.0 * pair as f32 / rotated as f32)) as f32;
        (0..rotated / 2).map(|pair| self.stretched(pair, series(pair))).collect()
    }

    /// The inverse frequency of a pair whose wavelength would be `2 pi * period`.
    fn stretched(&self, pair: usize, period: f32) -> f32 {
        let plain = 1.0 / period;
        match self.stretch {
            Stretch::None => plain,
            Stretch::Llama3 { factor, low, high, original } => {
                let wavelength = 2.0 * PI as f32 / plain;
                if wavelength > (original / low) as f32 {
                    return plain / factor as f32;
                }
                if wavelength < (original / high) as f32 {
                    return plain;
                }
                let share = (original as f32 / wavelength - low as f32) / (high - low) as f32;
                (1.0 - share) * plain / factor as f32 + share * plain
            }
            Stretch::Yarn { factor, original, beta_fast, beta_slow, .. } => {
                let features = self.rotated() as f64;
                // The pair that turns this often over the original context.
                let turning = |turns: f64| features * (original / (turns * 2.0 * PI)).ln() / (2.0 * self.base.ln());
                let low = turning(beta_fast).floor().max(0.0);
                let mut high = turning(beta_slow).ceil().min(features - 1.0);
                if low == high {
                    high += 0.001;
                }
                let ramp = ((pair as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
                let keep = 1.0 - ramp;
                1.0 / (factor as f32 * period) * (1.0 - keep) + plain * keep
            }
        }
    }

    /// The factor on cosines and sines; 1 except for YaRN.
    pub fn concentration(&self) -> f64 {
        match self.stretch {
            Stretch::Yarn { factor, mscale, mscale_all_dim, .. } => {
                let scale = |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
                match (mscale, mscale_all_dim) {
                    (Some(numerator), Some(denominator)) => scale(numerator) / scale(denominator),
                    _ => scale(1.0),
                }
            }
            _ => 1.0,
        }
    }

    /// The angle of every pair at a position: products of `f32`.
    pub fn angles(&self, position: usize) -> Vec<f32> {
        let position = match (self.interpolation, self.stretch) {
            (None, _) | (_, Stretch::Yarn { .. }) => position as f32,
            (Some(factor), _) => position as f32 * (1.0 / factor) as f32,
        };
        self.inverse_frequencies().iter().map(|frequency| position * frequency).collect()
    }

    /// The two features of a head that pair `pair` turns.
    pub fn features(&self, pair: usize) -> (usize, usize) {
        match self.interleaved {
            true => (2 * pair, 2 * pair + 1),
            false => (pair, pair + self.rotated() / 2),
        }
    }

    /// Turns every head of every row of `x` `[rows, heads * head_dim]` by the angles of the row's position.
    ///
    /// # Panics
    /// If `x` has another number of values.
    pub fn rotate(&self, x: &[f64], heads: usize, positions: &[usize]) -> Vec<f64> {
        self.turn(x, heads, positions, 1.0)
    }

    /// The gradient of [`Rotation::rotate`]: turns back.
    ///
    /// # Panics
    /// If `dx` has another number of values.
    pub fn rotate_backward(&self, dx: &[f64], heads: usize, positions: &[usize]) -> Vec<f64> {
        self.turn(dx, heads, positions, -1.0)
    }

    fn turn(&self, x: &[f64], heads: usize, positions: &[usize], sense: f32) -> Vec<f64> {
        assert_eq!(x.len(), positions.len() * heads * self.head_dim, "rows, heads and features");
        let concentration = self.concentration();
        let mut turned = x.to_vec();
        for (row, &position) in positions.iter().enumerate() {
            for (pair, angle) in self.angles(position).into_iter().enumerate() {
                let (sin, cos) = f64::from(sense * angle).sin_cos();
                let (first, second) = self.features(pair);
                for head in 0..heads {
                    let start = (row * heads + head) * self.head_dim;
                    let (a, b) = (x[start + first], x[start + second]);
                    turned[start + first] = concentration * (a * cos - b * sin);
                    turned[start + second] = concentration * (b * cos + a * sin);
                }
            }
        }
        turned
    }
}

#[cfg(test)]
mod tests {
    use super::super::relative_error;
    use super::*;

    fn plain(head_dim: usize) -> Rotation {
        Rotation {
            head_dim,
            base: 10000.0,
            percent: 1.0,
            interleaved: false,
            interpolation: None,
            stretch: Stretch::None,
        }
    }

    #[test]
    fn frequencies_are_a_geometric_series() {
        assert_eq!(plain(4).inverse_frequencies(), [1.0, 0.01]);
        assert_eq!(Rotation { percent: 0.5, ..plain(8) }.inverse_frequencies(), [1.0, 0.01]);
    }

    #[test]
    fn pairs_are_halves_or_neighbours() {
        let x = [1.0, 2.0, 3.0, 4.0];
        let (sin, cos) = (3f64.sin(), 3f64.cos());
        let (slow_sin, slow_cos) = f64::from(3.0 * 0.01f32).sin_cos();
        let halves = plain(4).rotate(&x, 1, &[3]);
        let expected =
            [cos - 3.0 * sin, 2.0 * slow_cos - 4.0 * slow_sin, 3.0 * cos + sin, 4.0 * slow_cos + 2.0 * slow_sin];
        assert!(relative_error(&halves, &expected, 0.0) < 1e-15);
        let neighbours = Rotation { interleaved: true, ..plain(4) }.rotate(&x, 1, &[3]);
        let expected =
            [cos - 2.0 * sin, 2.0 * cos + sin, 3.0 * slow_cos - 4.0 * slow_sin, 4.0 * slow_cos + 3.0 * slow_sin];
        assert!(relative_error(&neighbours, &expected, 0.0) < 1e-15);
    }

    #[test]
    fn the_rest_of_a_head_is_left_alone_and_positions_can_be_divided() {
        let half = Rotation { percent: 0.5, interpolation: Some(4.0), ..plain(4) };
        let x = [1.0, 0.0, 5.0, 6.0, 0.0, 1.0, 7.0, 8.0];
        let (sin, cos) = (2f64.sin(), 2f64.cos());
        assert_eq!(half.rotate(&x, 2, &[8]), [cos, sin, 5.0, 6.0, -sin, cos, 7.0, 8.0]);
    }

    #[test]
    fn turning_back_undoes_it_up_to_the_square_of_the_concentration() {
        let stretch = Stretch::Yarn {
            factor: 4.0,
            original: 96.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            mscale: Some(1.0),
            mscale_all_dim: Some(0.0),
        };
        let yarn = Rotation { stretch, ..plain(8) };
        let square = (0.1 * 4f64.ln() + 1.0).powi(2);
        let x: Vec<f64> = (0..16).map(|i| f64::from(i) - 7.0).collect();
        let back = yarn.rotate_backward(&yarn.rotate(&x, 2, &[11]), 2, &[11]);
        let expected: Vec<f64> = x.iter().map(|x| square * x).collect();
        assert!(relative_error(&back, &expected, 0.0) < 1e-15);
    }

    #[test]
    fn yarn_takes_no_notice_of_a_share_or_an_interpolation() {
        let stretch = Stretch::Yarn {
            factor: 4.0,
            original: 96.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            mscale: None,
            mscale_all_dim: None,
        };
        let whole = Rotation { stretch, ..plain(8) };
        let other = Rotation { percent: 0.5, interpolation: Some(2.0), ..whole };
        let x: Vec<f64> = (0..8).map(f64::from).collect();
        assert_eq!(other.rotated(), 8);
        assert_eq!(other.rotate(&x, 1, &[5]), whole.rotate(&x, 1, &[5]));
    }

    #[test]
    fn llama3_leaves_short_wavelengths_and_divides_long_ones() {
        let stretch = Stretch::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 8192.0 };
        let stretched = Rotation { base: 500000.0, stretch, ..plain(64) };
        let plain = Rotation { base: 500000.0, ..plain(64) }.inverse_frequencies();
        let found = stretched.inverse_frequencies();
        assert_eq!(found[0], plain[0]);
        assert_eq!(found[31], plain[31] / 8.0);
        assert!(found.iter().zip(&plain).any(|(found, plain)| *found < 0.9 * plain && *found > 0.2 * plain));
    }
}
