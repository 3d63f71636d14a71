//! The training loop, the same for every strategy: each rank runs it in step with the others.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde::Serialize;

use super::data::{Source, TokenBatch};
use super::learning_rate::LearningRate;
use crate::error::{DataError, Result};

/// What the loop needs from a model on one rank.
///
/// Every rank calls the same methods in the same order with the same arguments, and gets the same numbers back:
/// losses and norms are those of the whole group.
pub trait Learner {
    /// Tokens that are predicted beyond the next one; 0 for none.
    fn mtp_depth(&self) -> usize {
        0
    }

    /// Whether the learner cuts what it is given into micro-batches itself; it then gets all of a step at once.
    fn cuts_steps(&self) -> bool {
        false
    }

    /// Micro-batches that went forward and backward since the last update.
    fn micro_batches(&self) -> usize;

    /// Forward and backward of a part of a step: adds its share of the gradient of the step's loss, and returns the
    /// sums of the losses of its labels, in nats: of the next token first, then of each depth of multi-token
    /// prediction. `labels_in_step` are the numbers of labels of the whole step in the same order, those of all its
    /// parts together ([`TokenBatch::counted_by_depth`]), so that cutting a step does not change its gradient.
    fn accumulate_depths(&mut self, batch: &TokenBatch, labels_in_step: &[usize]) -> Result<Vec<f64>>;

    /// [`Learner::accumulate_depths`] for a model that predicts the next token only: adds the gradient of
    /// `sum of the losses / labels_in_step`, and returns that sum.
    ///
    /// # Errors
    /// If the model predicts further tokens.
    fn accumulate(&mut self, batch: &TokenBatch, labels_in_step: usize) -> Result<f64> {
        Ok(self.accumulate_depths(batch, &[labels_in_step])?.iter().sum())
    }

    /// One optimizer step with the accumulated gradient, which is zero afterwards; returns the gradient's norm before
    /// clipping.
    ///
    /// # Errors
    /// [`DataError::Diverged`], with the weights as they were, if the gradient's norm is not finite; the same if the
    /// weights are not, after the step.
    fn update(&mut self, lr: f64) -> Result<f64>;

    /// The sum of the losses of the labels of a batch, in nats, of the next token only; changes nothing.
    fn evaluate(&mut self, batch: &TokenBatch) -> Result<f64>;

    /// Whether `flag` is set on any rank: ranks may see an interrupt at different steps, and must stop at the same.
    fn any(&mut self, flag: bool) -> Result<bool>;
}

/// How long and on what to train.
#[derive(Clone, Copy, Debug)]
pub struct TrainOptions {
    /// Steps and learning rates.
    pub schedule: LearningRate,
    /// Seed of the data.
    pub seed: u64,
    /// Step of the data that the first one sees, from 0: above 0 where a run goes on with another's data.
    pub first_step: u64,
    /// Sequences of a micro-batch.
    pub batch: usize,
    /// Micro-batches of a step. A learner that cuts steps itself makes its own of all `batch * accumulate` sequences.
    pub accumulate: usize,
    /// Tokens of a sequence; of a text that is cut into documents, at most.
    pub seq_len: usize,
    /// Most sequences of the held-out evaluation, or documents of as many tokens; 0 for none.
    pub held_out: usize,
    /// Steps between held-out evaluations; there is always one at the end, where the run is stopped too.
    pub validate_every: u64,
}

/// What one step did; a line of the log.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepRecord {
    /// Number of the step, from 1.
    pub step: u64,
    /// Mean loss over the labels of the step, in nats, of the next token only; 0 if it has none.
    pub loss: f64,
    /// Mean over the depths of multi-token prediction of their mean losses, where the model has any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtp_loss: Option<f64>,
    /// Norm of the gradient over all parameters, before clipping.
    pub grad_norm: f64,
    /// Learning rate.
    pub lr: f64,
    /// Tokens of the step.
    pub tokens: usize,
    /// Micro-batches of the step, which ran one after another.
    pub micro_batches: usize,
    /// Tokens of the step over the time that it took, without evaluation.
    pub tokens_per_second: f64,
    /// Seconds since the run began.
    pub seconds: f64,
    /// Mean loss over the held-out labels after the step, where it was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_out_loss: Option<f64>,
}

/// Trains until the schedule ends or `stop` is set on any rank, and hands each step's record to `observe`, whose error
/// ends the run. A step during which `stop` is set is the last one, and is evaluated like any last one. Returns the
/// records; none if it was stopped before the first step.
///
/// # Errors
/// [`DataError::Diverged`] at a step whose loss, gradient, weights or held-out loss are not finite. It is not observed,
/// and where it is its loss or its gradient the weights are those of the step before. What the learner and `observe`
/// return.
pub fn train(
    learner: &mut (impl Learner + ?Sized),
    source: &Source,
    options: &TrainOptions,
    stop: &AtomicBool,
    mut observe: impl FnMut(&StepRecord) -> Result<()>,
) -> Result<Vec<StepRecord>> {
    let steps = options.schedule.steps();
    let held_out = match options.held_out {
        0 => None,
        limit => Some(source.held_out(options.seed, options.seq_len, limit)).filter(|windows| windows.counted() > 0),
    };
    let begin = Instant::now();
    let mut records = Vec::new();
    let mut stopped = learner.any(stop.load(Ordering::Relaxed))?;
    for step in 0..steps {
        if stopped {
            break;
        }
        let started = Instant::now();
        let sequences = options.batch * options.accumulate;
        let at_once = if learner.cuts_steps() { sequences } else { options.batch };
        let batches: Vec<TokenBatch> = (0..sequences)
            .step_by(at_once.max(1))
            .map(|first| {
                let data_step = options.first_step + step;
                source.batch(options.seed, data_step, first..first + at_once, options.seq_len)
            })
            .collect();
        let tokens = batches.iter().map(|batch| batch.tokens.len()).sum();
        let depth = learner.mtp_depth();
        let mut labels = vec![0; depth + 1];
        for batch in &batches {
            labels.iter_mut().zip(batch.counted_by_depth(depth)).for_each(|(sum, count)| *sum += count);
        }
        let mut sums = vec![0.0; depth + 1];
        for batch in &batches {
            sums.iter_mut().zip(learner.accumulate_depths(batch, &labels)?).for_each(|(sum, part)| *sum += part);
        }
        let losses: Vec<f64> = sums.iter().zip(&labels).map(|(&sum, &count)| mean(sum, count)).collect();
        let loss = losses[0];
        for loss in &losses {
            DataError::check_finite(step + 1, DataError::LOSS, *loss)?;
        }
        let lr = options.schedule.rate(step);
        let micro_batches = learner.micro_batches();
        let grad_norm = learner.update(lr)?;
        let tokens_per_second = tokens as f64 / started.elapsed().as_secs_f64().max(1e-9);

        let step = step + 1;
        DataError::check_finite(step, DataError::GRADIENT, grad_norm)?;
        // Before the evaluation, so that the last record of a run that is stopped has one.
        stopped = learner.any(stop.load(Ordering::Relaxed))?;
        let held_out_loss = match &held_out {
            Some(windows) if stopped || step == steps || step.is_multiple_of(options.validate_every.max(1)) => {
                Some(evaluate(learner, windows, options.batch)?)
            }
            _ => None,
        };
        DataError::check_finite(step, "the held-out loss", held_out_loss.unwrap_or(0.0))?;
        let seconds = begin.elapsed().as_secs_f64();
        let mtp_loss = (depth > 0).then(|| losses[1..].iter().sum::<f64>() / depth as f64);
        let record = StepRecord {
            step,
            loss,
            mtp_loss,
            grad_norm,
            lr,
            tokens,
            micro_batches,
            tokens_per_second,
            seconds,
            held_out_loss,
        };
        observe(&record)?;
        records.push(record);
    }
    Ok(records)
}

/// Mean loss over the labels of `windows`, in nats, `batch` sequences at a time; 0 if there are none.
pub fn evaluate(learner: &mut (impl Learner + ?Sized), windows: &TokenBatch, batch: usize) -> Result<f64> {
    let mut sum = 0.0;
    for batch in windows.chunks(batch) {
        sum += learner.evaluate(&batch)?;
    }
    Ok(mean(sum, windows.counted()))
}

fn mean(sum: f64, count: usize) -> f64 {
    if count == 0 { 0.0 } else { sum / count as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::data::{IGNORED, Recall};

    /// Predicts one number for every label; its loss is the squared distance. The gradient is exact.
    #[derive(Default)]
    struct Constant {
        value: f64,
        gradient: f64,
        cuts_steps: bool,
        calls: Vec<&'static str>,
        seen: Vec<i64>,
        /// What is not a number from the third step on.
        breaks: Option<&'static str>,
    }

    impl Constant {
        fn counted(batch: &TokenBatch) -> impl Iterator<Item = f64> {
            batch.labels.iter().filter(|&&label| label != IGNORED).map(|&label| label as f64)
        }
    }

    impl Learner for Constant {
        fn cuts_steps(&self) -> bool {
            self.cuts_steps
        }
        fn micro_batches(&self) -> usize {
            self.calls.iter().rev().take_while(|&&call| call != "update").filter(|&&call| call == "accumulate").count()
        }
        fn accumulate_depths(&mut self, batch: &TokenBatch, labels_in_step: &[usize]) -> Result<Vec<f64>> {
            self.calls.push("accumulate");
            self.seen.extend(&batch.tokens);
            for label in Self::counted(batch) {
                self.gradient += 2.0 * (self.value - label) / labels_in_step[0] as f64;
            }
            Ok(vec![if self.is_broken("the loss") { f64::NAN } else { self.evaluate_quietly(batch)? }])
        }
        fn update(&mut self, lr: f64) -> Result<f64> {
            self.calls.push("update");
            let gradient = std::mem::take(&mut self.gradient);
            if self.is_broken("the norm of the gradient") {
                return Ok(f64::INFINITY);
            }
            self.value -= lr * gradient;
            Ok(gradient.abs())
        }
        fn evaluate(&mut self, batch: &TokenBatch) -> Result<f64> {
            self.calls.push("evaluate");
            if self.is_broken("the held-out loss") { Ok(f64::NAN) } else { self.evaluate_quietly(batch) }
        }
        fn any(&mut self, flag: bool) -> Result<bool> {
            Ok(flag)
        }
    }

    impl Constant {
        fn is_broken(&self, what: &str) -> bool {
            self.breaks == Some(what) && self.calls.iter().filter(|&&call| call == "accumulate").count() > 2
        }

        fn evaluate_quietly(&self, batch: &TokenBatch) -> Result<f64> {
            Ok(Self::counted(batch).map(|label| (self.value - label).powi(2)).sum())
        }
    }

    fn options(batch: usize, accumulate: usize) -> TrainOptions {
        let schedule = LearningRate::new(0.1, 0.0, 2, 20).unwrap();
        TrainOptions { schedule, seed: 1, first_step: 0, batch, accumulate, seq_len: 8, held_out: 3, validate_every: 8 }
    }

    fn recall() -> Source {
        Source::Recall(Recall::new(11, 8).unwrap())
    }

    #[test]
    fn trains_evaluates_and_reports_every_step() {
        let mut learner = Constant::default();
        let mut lines = Vec::new();
        let observe = |record: &StepRecord| {
            lines.push(serde_json::to_string(record).unwrap());
            Ok(())
        };
        let records = train(&mut learner, &recall(), &options(4, 2), &AtomicBool::new(false), observe).unwrap();
        assert_eq!(records.len(), 20);
        assert_eq!(records.iter().map(|record| record.step).collect::<Vec<_>>(), (1..=20).collect::<Vec<_>>());
        let measured: Vec<u64> = records.iter().filter(|r| r.held_out_loss.is_some()).map(|r| r.step).collect();
        assert_eq!(measured, [8, 16, 20]);
        assert_eq!(learner.calls[..3], ["accumulate", "accumulate", "update"]);
        assert!((learner.value - 5.0).abs() < 1.0, "the mean of 0..11 is 5, found {}", learner.value);
        assert!(records[19].loss < 0.6 * records[0].loss);
        assert_eq!(records[1].lr, options(4, 2).schedule.rate(1));
        assert!(lines[7].contains("\"held_out_loss\":") && !lines[8].contains("held_out_loss"));
    }

    #[test]
    fn data_goes_on_where_it_is_told_to() {
        let seen = |first_step, steps| {
            let mut learner = Constant::default();
            let schedule = LearningRate::new(0.1, 0.0, 0, steps).unwrap();
            let options = TrainOptions { first_step, schedule, ..options(1, 1) };
            train(&mut learner, &recall(), &options, &AtomicBool::new(false), |_| Ok(())).unwrap();
            learner.seen
        };
        assert_eq!(seen(0, 5), [seen(0, 3), seen(3, 2)].concat());
    }

    #[test]
    fn accumulating_micro_batches_is_one_large_batch() {
        let (mut whole, mut cut) = (Constant::default(), Constant::default());
        let stop = AtomicBool::new(false);
        let whole_records = train(&mut whole, &recall(), &options(6, 1), &stop, |_| Ok(())).unwrap();
        let cut_records = train(&mut cut, &recall(), &options(2, 3), &stop, |_| Ok(())).unwrap();
        assert_eq!(whole.seen, cut.seen);
        for (whole, cut) in whole_records.iter().zip(&cut_records) {
            assert!((whole.loss - cut.loss).abs() < 1e-9 && (whole.grad_norm - cut.grad_norm).abs() < 1e-9);
            assert_eq!((whole.tokens, whole.micro_batches, cut.tokens, cut.micro_batches), (48, 1, 48, 3));
        }
        // A learner that cuts steps itself gets each at once.
        let mut own = Constant { cuts_steps: true, ..Constant::default() };
        let own_records = train(&mut own, &recall(), &options(2, 3), &stop, |_| Ok(())).unwrap();
        assert_eq!((own.seen, own_records[0].micro_batches), (whole.seen, 1));
    }

    #[test]
    fn stops_when_told_and_when_the_observer_fails() {
        let stop = AtomicBool::new(false);
        let observe = |record: &StepRecord| {
            stop.store(record.step == 5, Ordering::Relaxed);
            Ok(())
        };
        let records = train(&mut Constant::default(), &recall(), &options(1, 1), &stop, observe).unwrap();
        let held_out: Vec<bool> = records.iter().map(|record| record.held_out_loss.is_some()).collect();
        assert_eq!(held_out, [false, false, false, false, false, true], "the step that is under way is the last one");

        stop.store(true, Ordering::Relaxed);
        let mut learner = Constant::default();
        assert!(train(&mut learner, &recall(), &options(1, 1), &stop, |_| Ok(())).unwrap().is_empty());
        assert!(learner.calls.is_empty());

        stop.store(false, Ordering::Relaxed);
        let full = DataError::Write { path: "log".into(), reason: "disk full".into() };
        let error = train(&mut Constant::default(), &recall(), &options(1, 1), &stop, |_| Err(full.clone().into()));
        assert_eq!(error.unwrap_err(), full.into());
    }

    #[test]
    fn what_is_not_finite_ends_the_run_before_it_is_used_or_observed() {
        for (breaks, updates, observed) in
            [("the loss", 2, 2), ("the norm of the gradient", 3, 2), ("the held-out loss", 8, 7)]
        {
            let mut learner = Constant { breaks: Some(breaks), ..Constant::default() };
            let mut lines = Vec::new();
            let observe = |record: &StepRecord| {
                lines.push(serde_json::to_string(record).unwrap());
                Ok(())
            };
            let error = train(&mut learner, &recall(), &options(4, 1), &AtomicBool::new(false), observe).unwrap_err();
            let crate::error::Error::Data(DataError::Diverged { step, what, value }) = error else { panic!("{error}") };
            assert_eq!((step, what, value.is_finite()), (observed + 1, breaks, false));
            assert_eq!(learner.calls.iter().filter(|&&call| call == "update").count(), updates, "{breaks}");
            assert!(learner.value.is_finite(), "{breaks}");
            assert_eq!(lines.len() as u64, observed, "{breaks}");
            assert!(lines.iter().all(|line| !line.contains("null")), "{lines:?}");
        }
    }
}
