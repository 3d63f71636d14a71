//! Fresh weights.
//!
//! - Embedding and linear layers: normal, mean 0, standard deviation `initializer_range`; for the two layers of a
//!   block that write to the residual stream (`o_proj`, `down_proj`) divided by `sqrt(2 * layers)`, as in GPT-2
//!   (Radford et al. 2019), so that the stream's variance does not grow with depth.
//! - Norms 1, biases 0.
//! - Blocks of multi-token prediction like the others (their residual stream begins anew, the divisor is the same),
//!   `eh_proj` like any linear layer.
//!
//! Parameter number `i` of the list takes its values, in the order of elements in files, from a generator of its own
//! (Xoshiro256++, seeded by the model's seed and `i`) through the Box-Muller transform in `f64`. So the weights
//! depend on configuration and seed alone: not on strategy, layout, ranks, threads or storage type (up to rounding).
//! Multi-token prediction comes last in the list, so with it and without it the rest of a fresh model is the same.

use std::f64::consts::TAU;
use std::sync::Arc;

use rand::{RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

use super::config::Config;
use super::parameters::{Kind, Master, ParameterId, ParameterList, ParameterSet, ParameterSpec};
use crate::elementary::{ln, sin_cos};
use crate::error::Result;
use crate::tensor::{Device, Float};

/// Fresh weights of `config` for `seed`.
pub fn fresh<D: Device>(device: &D, config: &Config, list: &Arc<ParameterList>, seed: u64) -> Result<Master<D>> {
    ParameterSet::from_host(device, list, |id, spec| Ok(values::<D>(config, seed, id, spec)))
}

/// `weights`, and fresh ones for those parameters of `list` that they lack: the same as in a wholly fresh model.
pub fn completed<D: Device>(
    device: &D,
    config: &Config,
    list: &Arc<ParameterList>,
    seed: u64,
    weights: &Master<D>,
) -> Result<Master<D>> {
    ParameterSet::from_host(device, list, |id, spec| match weights.list().find(&spec.name) {
        Some(known) => weights.to_host(device, known),
        None => Ok(values::<D>(config, seed, id, spec)),
    })
}

/// Fresh values of one parameter, in the order of elements in files.
fn values<D: Device>(config: &Config, seed: u64, id: ParameterId, spec: &ParameterSpec) -> Vec<D::Acc> {
    let constant = |value| vec![<D::Acc as Float>::from_f64(value); spec.len()];
    let deviation = match spec.kind {
        Kind::Norm => return constant(1.0),
        Kind::Bias => return constant(0.0),
        Kind::Embedding | Kind::Linear => config.initializer_range,
        Kind::ResidualLinear => config.initializer_range / (2.0 * config.layers as f64).sqrt(),
    };
    let mut normal = Normal::new(seed, id.index());
    (0..spec.len()).map(|_| <D::Acc as Float>::from_f64(deviation * normal.draw())).collect()
}

/// Standard normal numbers by Box and Muller (1958), two from each pair of uniform ones.
pub struct Normal {
    uniform: Xoshiro256PlusPlus,
    spare: Option<f64>,
}

impl Normal {
    /// The numbers of one stream of a seed.
    pub fn new(seed: u64, stream: usize) -> Self {
        // The seed is scrambled first, so that stream 1 of seed 0 is not stream 0 of seed 1.
        let scrambled: u64 = Xoshiro256PlusPlus::seed_from_u64(seed).random();
        Normal { uniform: Xoshiro256PlusPlus::seed_from_u64(scrambled.wrapping_add(stream as u64)), spare: None }
    }

    /// The next number.
    pub fn draw(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        // `random` is in [0, 1); the logarithm needs (0, 1].
        let radius = (-2.0 * ln(1.0 - self.uniform.random::<f64>())).sqrt();
        let (sin, cos) = sin_cos(TAU * self.uniform.random::<f64>());
        self.spare = Some(radius * sin);
        radius * cos
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Cpu;

    fn weights(seed: u64) -> (Arc<ParameterList>, Master<Cpu<f32>>) {
        let config = Config::preset("tiny").unwrap();
        let list = ParameterList::new(&config);
        let weights = fresh(&Cpu::<f32>::new(1), &config, &list, seed).unwrap();
        (list, weights)
    }

    fn moments(values: &[f32]) -> (f64, f64) {
        let n = values.len() as f64;
        let mean = values.iter().map(|&x| x as f64).sum::<f64>() / n;
        (mean, (values.iter().map(|&x| (x as f64 - mean).powi(2)).sum::<f64>() / n).sqrt())
    }

    #[test]
    fn deviations_by_kind() {
        let (list, weights) = weights(7);
        for (id, spec) in list.iter() {
            let (mean, deviation) = moments(&weights.view(id).to_vec());
            let expected = match spec.kind {
                Kind::Norm => (1.0, 0.0),
                Kind::Bias => (0.0, 0.0),
                Kind::Embedding | Kind::Linear => (0.0, 0.02),
                Kind::ResidualLinear => (0.0, 0.02 / 8f64.sqrt()),
            };
            // Four standard errors of the mean and of the deviation at 16384 elements and more.
            assert!((mean - expected.0).abs() <= expected.1 / 32.0, "{}: mean {mean}", spec.name);
            assert!((deviation - expected.1).abs() <= expected.1 * 0.03, "{}: deviation {deviation}", spec.name);
        }
    }

    #[test]
    fn tails_are_normal() {
        let mut normal = Normal::new(3, 0);
        let draws: Vec<f64> = (0..100_000).map(|_| normal.draw()).collect();
        let share = |limit: f64| draws.iter().filter(|x| x.abs() < limit).count() as f64 / draws.len() as f64;
        assert!((share(1.0) - 0.6827).abs() < 0.006 && (share(2.0) - 0.9545).abs() < 0.003);
        let product = draws.chunks_exact(2).map(|pair| pair[0] * pair[1]).sum::<f64>() / 50_000.0;
        assert!(product.abs() < 0.02, "the two numbers of a pair are correlated: {product}");
    }

    #[test]
    fn seeds_and_parameters_differ_and_repeat() {
        let (list, first) = weights(0);
        let (_, again) = weights(0);
        let (_, other) = weights(1);
        let (a, b) = (list.layers[0].key.weight, list.layers[0].value.weight);
        let values = |weights: &Master<Cpu<f32>>, id| weights.view(id).to_vec();
        assert_eq!(values(&first, a), values(&again, a));
        assert_ne!(values(&first, a), values(&other, a));
        assert_ne!(values(&first, a), values(&first, b));
        assert_ne!(values(&first, b), values(&other, a));
    }

    #[test]
    fn double_precision_rounds_to_the_same() {
        let config = Config::preset("tiny").unwrap();
        let list = ParameterList::new(&config);
        let single = fresh(&Cpu::<f32>::new(1), &config, &list, 5).unwrap();
        let double = fresh(&Cpu::<f64>::new(1), &config, &list, 5).unwrap();
        let id = list.layers[2].down.weight;
        assert!(single.view(id).to_vec().iter().zip(double.view(id).to_vec()).all(|(&s, d)| s == d as f32));
    }
}
