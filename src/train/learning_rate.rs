//! The learning rate over a run: a linear warm-up, then a decay down to a minimum, or none.

use std::f64::consts::PI;

use crate::elementary::sin_cos;
use crate::error::{DataError, Result};

/// How the rate falls after the warm-up, to the minimum that it would have at the step after the last one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Decay {
    /// It does not.
    Constant,
    /// In equal steps.
    Linear,
    /// As half a period of a cosine (Loshchilov and Hutter 2017).
    #[default]
    Cosine,
    /// In equal steps, over so many steps at the end (warm-up, stable, decay: Hu et al. 2024, MiniCPM).
    Last(u64),
}

/// Linear warm-up and a [`Decay`], the cosine unless told otherwise.
///
/// With `n` steps, `w` of them warm-up, step `t` (from 0) has the rate
/// `lr * (t + 1) / (w + 1)` for `t < w`, and `min + (lr - min) * f((t - w) / (n - w))` from there on, where `f(x)` is
/// 1,
/// `1 - x` or `(1 + cos(pi x)) / 2`. With [`Decay::Last`] it is 1 until the last `d` steps, and `(n - t) / d` in these.
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
    decay: Decay,
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
        Ok(LearningRate { lr, min_lr, warmup, steps, decay: Decay::default() })
    }

    /// The same schedule with another decay; refuses one over no steps or over more than there are after the warm-up.
    pub fn with_decay(self, decay: Decay) -> Result<Self> {
        let after = self.steps - self.warmup;
        if let Decay::Last(steps) = decay
            && !(1..=after).contains(&steps)
        {
            let (all, warmup) = (self.steps, self.warmup);
            let instead = match after {
                0 => format!("--warmup {warmup} leaves none of the {all} steps for it: use a shorter one"),
                _ => format!("use a number from 1 to {after}, the steps after the warm-up ({all} - {warmup})"),
            };
            return Err(DataError::Unusable(format!("--decay-steps is {steps}: {instead}")).into());
        }
        Ok(LearningRate { decay, ..self })
    }

    /// The warm-up that a run of `steps` steps has unless told otherwise: a tenth of it, at most 30 steps.
    pub fn default_warmup(steps: u64) -> u64 {
        (steps / 10).min(30)
    }

    /// Steps of the run.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The rate of step `step`, from 0; after the last step the minimum, if the rate falls.
    pub fn rate(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.lr * (step + 1) as f64 / (self.warmup + 1) as f64;
        }
        let left = |steps: u64| (self.steps.saturating_sub(step) as f64 / steps as f64).min(1.0);
        let after = self.steps - self.warmup;
        let share = match self.decay {
            Decay::Constant => return self.lr,
            _ if step >= self.steps => return self.min_lr,
            Decay::Linear => left(after),
            Decay::Cosine => 0.5 * (1.0 + sin_cos(PI * ((step - self.warmup) as f64 / after as f64)).1),
            Decay::Last(steps) => left(steps),
        };
        self.min_lr + (self.lr - self.min_lr) * share
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
    fn falls_as_it_is_told() {
        let schedule = |decay| LearningRate::new(1.0, 0.2, 2, 10).unwrap().with_decay(decay);
        let rates = |decay| (0..12).map(|step| schedule(decay).unwrap().rate(step)).collect::<Vec<_>>();
        let close = |found: Vec<f64>, expected: [f64; 12]| {
            assert!(found.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-12), "{found:?}");
        };
        let [first, second] = [1.0 / 3.0, 2.0 / 3.0];
        close(rates(Decay::Constant), [first, second, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]);
        close(rates(Decay::Linear), [first, second, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.2]);
        close(rates(Decay::Last(4)), [first, second, 1.0, 1.0, 1.0, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2, 0.2]);
        assert_eq!(rates(Decay::Last(8)), rates(Decay::Linear));
        assert_eq!(rates(Decay::Cosine)[6], LearningRate::new(1.0, 0.2, 2, 10).unwrap().rate(6));
        for steps in [0, 9] {
            let error = schedule(Decay::Last(steps)).unwrap_err();
            assert!(error.is_input() && error.to_string().contains("from 1 to 8"), "{error}");
        }
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
