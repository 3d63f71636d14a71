//! What a run prints: a line per step, and its summary.

use std::path::PathBuf;

use context_parallel::train::trainer::StepRecord;
use serde::Serialize;

use super::super::output;

/// What a run leaves.
pub struct Finished {
    pub records: Vec<StepRecord>,
    pub peak_bytes_per_rank: u64,
    pub out: Option<PathBuf>,
    /// Whether it ended before its last step.
    pub interrupted: bool,
}

/// The whole run's numbers.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    loss: Vec<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mtp_loss: Option<Vec<f64>>,
    grad_norm: Vec<f64>,
    /// Micro-batches of each step.
    micro_batches: Vec<usize>,
    /// The mean over the steps' time, without the first, which grows the buffers.
    tokens_per_second: f64,
    peak_bytes_per_rank: u64,
    out: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    held_out_loss: Option<f64>,
    steps: u64,
    /// Whether an interrupt ended the run before its last step.
    interrupted: bool,
}

impl Summary {
    pub fn new(finished: &Finished) -> Self {
        let Finished { records, peak_bytes_per_rank, out, interrupted } = finished;
        let settled = if records.len() > 1 { &records[1..] } else { records };
        let tokens: f64 = settled.iter().map(|record| record.tokens as f64).sum();
        let time: f64 = settled.iter().map(|record| record.tokens as f64 / record.tokens_per_second).sum();
        Summary {
            loss: records.iter().map(|record| record.loss).collect(),
            // All of the records have it, or none.
            mtp_loss: records
                .iter()
                .map(|record| record.mtp_loss)
                .collect::<Option<Vec<_>>>()
                .filter(|all| !all.is_empty()),
            grad_norm: records.iter().map(|record| record.grad_norm).collect(),
            micro_batches: records.iter().map(|record| record.micro_batches).collect(),
            tokens_per_second: if time > 0.0 { tokens / time } else { 0.0 },
            peak_bytes_per_rank: *peak_bytes_per_rank,
            out: out.as_ref().map(|path| path.display().to_string()),
            held_out_loss: records.last().and_then(|record| record.held_out_loss),
            steps: records.len() as u64,
            interrupted: *interrupted,
        }
    }

    pub fn print(&self) {
        let state = if self.interrupted { "stopped" } else { "done" };
        let loss = self.loss.last().map_or(String::new(), |loss| format!(", loss {loss:.4}"));
        let held_out = self.held_out_loss.map_or(String::new(), |loss| format!(", held-out loss {loss:.4}"));
        output::sentence(format!(
            "{state} after {}{loss}{held_out}, {} tokens/s, peak {} per rank",
            output::many(self.steps as usize, "step"),
            output::count(self.tokens_per_second.round() as u64),
            output::bytes(self.peak_bytes_per_rank)
        ));
        if let Some(out) = &self.out {
            output::sentence(format!("model, log and chart are in {out}"));
        }
    }
}

/// Tokens per second, of about the last ten steps: a single step says little.
#[derive(Default)]
pub struct Throughput {
    tokens: f64,
    seconds: f64,
}

impl Throughput {
    /// With a further step. The first one, which grows the buffers, counts for itself only.
    pub fn with(&mut self, record: &StepRecord) -> f64 {
        let kept = if record.step <= 2 { 0.0 } else { 0.9 };
        let tokens = record.tokens as f64;
        self.tokens = kept * self.tokens + tokens;
        self.seconds = kept * self.seconds + tokens / record.tokens_per_second;
        if self.seconds > 0.0 { self.tokens / self.seconds } else { 0.0 }
    }
}

/// A step in one line of at most `width` columns, where there is such a limit.
pub fn describe(record: &StepRecord, steps: u64, tokens_per_second: f64, width: Option<usize>) -> String {
    let digits = steps.to_string().len();
    let StepRecord { step, loss, grad_norm, lr, .. } = record;
    let parts = [
        format!("step {step:>digits$}/{steps}"),
        format!("loss {loss:.4}"),
        record.mtp_loss.map_or(String::new(), |loss| format!("mtp {loss:.4}")),
        format!("gradient {grad_norm:.3}"),
        format!("lr {lr:.2e}"),
        format!("{} tokens/s", output::count(tokens_per_second.round() as u64)),
        record.held_out_loss.map_or(String::new(), |loss| format!("held out {loss:.4}")),
    ];
    output::fitting(&parts, &[2, 5, 4, 3], width)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(step: u64, tokens: usize, tokens_per_second: f64) -> StepRecord {
        StepRecord {
            step,
            loss: 3.0 / step as f64,
            mtp_loss: None,
            grad_norm: step as f64,
            lr: 1e-3,
            tokens,
            micro_batches: step as usize,
            tokens_per_second,
            seconds: 1.0,
            held_out_loss: (step == 3).then_some(1.5),
        }
    }

    #[test]
    fn a_report_has_both_series_and_a_mean_throughput() {
        let records = vec![record(1, 50, 1.0), record(2, 50, 100.0), record(3, 100, 400.0)];
        let report = Summary::new(&Finished { records, peak_bytes_per_rank: 7, out: None, interrupted: true });
        assert_eq!((&report.loss[..], &report.grad_norm[..]), (&[3.0, 1.5, 1.0][..], &[1.0, 2.0, 3.0][..]));
        assert!((report.tokens_per_second - 200.0).abs() < 1e-9, "150 tokens in 0.75 s");
        assert_eq!(report.micro_batches, [1, 2, 3]);
        assert!(report.interrupted && report.held_out_loss == Some(1.5));
        let json = serde_json::to_value(&report).unwrap();
        for key in ["loss", "grad_norm", "micro_batches", "tokens_per_second", "peak_bytes_per_rank", "out"] {
            assert!(json.get(key).is_some(), "{key}");
        }
        let nothing = Finished { records: vec![], peak_bytes_per_rank: 0, out: None, interrupted: false };
        assert_eq!(Summary::new(&nothing).tokens_per_second, 0.0);
    }

    #[test]
    fn a_step_is_one_line_that_fits() {
        let described = |steps, width| describe(&record(3, 100, 400.0), steps, 12_345.0, width);
        let whole = "step   3/200  loss 1.0000  gradient 3.000  lr 1.00e-3  12,345 tokens/s  held out 1.5000";
        assert_eq!((described(200, None), described(200, Some(120))), (whole.into(), whole.into()));
        assert_eq!(described(200, Some(80)), whole.replace("gradient 3.000  ", ""));
        assert_eq!(described(200, Some(60)), "step   3/200  loss 1.0000  12,345 tokens/s  held out 1.5000");
    }

    #[test]
    fn throughput_is_smoothed_and_forgets_the_first_step() {
        let mut throughput = Throughput::default();
        assert_eq!(throughput.with(&record(1, 100, 1.0)), 1.0);
        assert_eq!(throughput.with(&record(2, 100, 100.0)), 100.0);
        let mean = (2..200).map(|step| throughput.with(&record(step, 100, if step % 2 == 0 { 50.0 } else { 150.0 })));
        let last: Vec<f64> = mean.skip(100).collect();
        assert!(last.iter().all(|rate| (rate - 75.0).abs() < 5.0), "{last:?}");
    }
}
