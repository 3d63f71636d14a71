//! The learning rate over a run: linear warm-up, then a cosine down to a minimum.

use std::f64::consts::PI;

use crate::elementary::sin_cos;
use crate::error::{DataError, Result};

/// Linear warm-up and cosine decay (Loshchilov and Hutter 2017, one period).
///
/// With `n` steps, `w` of them warm-up, step `t` (from 0) has the rate
/// `lr * (t + 1) / (w + 1)` for `t < w`, and
/// `min + (lr - min) * (1 + cos(pi * (t - w) / (n - w))) / 2` from there on.
///
/// ```
/// use context_parallel::train::learning_rate::LearningRate;
/// let schedule = LearningRate::new(1e-3, 1e-4, 10, 110)?;
/// assert_eq!(schedule.rate(10), 1e-3);
/// assert!((schedule.rate(60) - 5.5e-4).abs() < 1e-12);
/// # Ok::<(), context_parallel::error::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LearningRate {
    lr: f64,
    min_lr: f64,
    warmup: u64,
    steps: u64,
}

impl LearningRate {
    /// The highest rate of a fresh model unless told otherwise.
    pub const FRESH_LR: f64 = 3e-3;
    /// That of a model that has been trained already, whose optimizer state is gone: what fine-tuning commonly takes.
    pub const FINE_TUNING_LR: f64 = 2e-5;

    /// A schedule over `steps` steps with the peak `lr`; refuses rates that are not `0 <= min_lr <= lr`, `lr > 0`,
    /// and a warm-up longer than the run.
    pub fn new(lr: f64, min_lr: f64, warmup: u64, steps: u64) -> Result<Self> {
        let refuse = |message: String| Err(DataError::Unusable(message).into());
        if !(lr.is_finite() && lr > 0.0) {
            return refuse(format!("--lr is {lr}: use a number above 0, such as 3e-3"));
        }
        if !(0.0..=lr).contains(&min_lr) {
            return refuse(format!("--min-lr is {min_lr}: use a number from 0 to --lr, which is {lr}"));
        }
        if steps == 0 {
            return refuse("--steps is 0: use at least 1".to_string());
        }
        if warmup > steps {
            return refuse(format!(
                "--warmup is {warmup}, more than the {steps} steps of the run: use {steps} or less"
            ));
        }
        Ok(LearningRate { lr, min_lr, warmup, steps })
    }

    /// The warm-up that a run of `steps` steps has unless told otherwise: a tenth of it, at most 30 steps.
    pub fn default_warmup(steps: u64) -> u64 {
        (steps / 10).min(30)
    }

    /// Steps of the run.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The rate of step `step`, from 0; the minimum after the last step.
    pub fn rate(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.lr * (step + 1) as f64 / (self.warmup + 1) as f64;
        }
        if step >= self.steps {
            return self.min_lr;
        }
        let progress = (step - self.warmup) as f64 / (self.steps - self.warmup) as f64;
        self.min_lr + (self.lr - self.min_lr) * 0.5 * (1.0 + sin_cos(PI * progress).1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warms_up_linearly_and_follows_a_cosine() {
        let schedule = LearningRate::new(1.0, 0.1, 4, 12).unwrap();
        let expected = [
            0.2,
            0.4,
            0.6,
            0.8,
            1.0,
            0.1 + 0.45 * (1.0 + (PI / 8.0).cos()),
            0.1 + 0.45 * (1.0 + 0.5f64.sqrt()),
            0.1 + 0.45 * (1.0 + (3.0 * PI / 8.0).cos()),
            0.55,
        ];
        for (step, expected) in expected.into_iter().enumerate() {
            assert!((schedule.rate(step as u64) - expected).abs() < 1e-12, "step {step}");
        }
        assert!((4..12).all(|step| schedule.rate(step + 1) < schedule.rate(step)));
        assert_eq!((schedule.rate(12), schedule.rate(1000)), (0.1, 0.1));
    }

    #[test]
    fn works_without_warm_up_and_with_nothing_else() {
        assert_eq!(LearningRate::new(0.5, 0.5, 0, 3).unwrap().rate(1), 0.5);
        assert_eq!(LearningRate::new(0.5, 0.0, 0, 1).unwrap().rate(0), 0.5);
        let only_warmup = LearningRate::new(1.0, 0.0, 3, 3).unwrap();
        assert_eq!((0..4).map(|step| only_warmup.rate(step)).collect::<Vec<_>>(), [0.25, 0.5, 0.75, 0.0]);
        assert_eq!([0, 9, 100, 300, 9000].map(LearningRate::default_warmup), [0, 0, 10, 30, 30]);
    }

    #[test]
    fn refuses_rates_that_make_no_sense() {
        for (lr, min_lr, warmup, steps, name) in [
            (0.0, 0.0, 0, 1, "--lr"),
            (f64::NAN, 0.0, 0, 1, "--lr"),
            (f64::INFINITY, 0.0, 0, 1, "--lr"),
            (1.0, 1.5, 0, 1, "--min-lr"),
            (1.0, -0.5, 0, 1, "--min-lr"),
            (1.0, f64::NAN, 0, 1, "--min-lr"),
            (1.0, 0.0, 0, 0, "--steps"),
            (1.0, 0.0, 5, 4, "--warmup"),
        ] {
            let error = LearningRate::new(lr, min_lr, warmup, steps).unwrap_err();
            assert!(error.is_input() && error.to_string().starts_with(name), "{error}");
        }
    }
}
