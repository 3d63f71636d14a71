//! What the demo finds, what is wrong with it, and how it is printed.

use serde::Serialize;

use crate::cli::output;

/// What to try after the demo; fits 60 columns.
pub const NEXT: &str = "context-parallel train --data FILE --cp 2 --out run";
/// What the task is learnt to, at least.
const LEARNT: f64 = 0.95;
/// How far a gradient may be from that of `Single`.
const SAME: f64 = 1e-5;

/// One strategy x layout, compared with `Single`.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Comparison {
    pub(super) strategy: String,
    pub(super) layout: String,
    pub(super) kernel: String,
    pub(super) cp: usize,
    /// Relative difference of the loss.
    pub(super) loss_diff: f64,
    /// Norm of the difference of the whole gradient over the norm of `Single`'s.
    pub(super) grad_diff: f64,
    /// Mean over ranks of what a rank sends in the step: attention, and the sum of the gradients.
    pub(super) bytes_per_rank: u64,
    /// Mean over the largest number of attended cells of a rank; 1 is even.
    pub(super) balance: f64,
    pub(super) ms: f64,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct Findings {
    pub(super) accuracy: f64,
    pub(super) seconds: f64,
    pub(super) rows: Vec<Comparison>,
}

impl Findings {
    /// What is not as it should be.
    pub(super) fn faults(&self) -> Vec<String> {
        let wrong = self.rows.iter().filter(|row| row.grad_diff.is_nan() || row.grad_diff >= SAME).count();
        let unlearnt = (self.accuracy < LEARNT)
            .then(|| format!("the accuracy is below {:.0} %: context parallelism does not work here", 100.0 * LEARNT));
        let different = (wrong > 0).then(|| {
            let all = self.rows.len();
            format!(
                "{wrong} of {all} combinations have a gradient that differs from that of single by {SAME:.0e} or more"
            )
        });
        unlearnt.into_iter().chain(different).collect()
    }

    /// What the numbers say, where nothing is wrong.
    fn verdict(&self) -> String {
        let worst = self.rows.iter().map(|row| row.grad_diff).fold(0.0, f64::max);
        format!(
            "Context parallelism works here: the model learnt to recall tokens that lie on the other rank ({:.1} %), \
             and all {} combinations give the gradient of a single rank (differences of at most {}).",
            100.0 * self.accuracy,
            self.rows.len(),
            output::relative(worst)
        )
    }
}

pub(super) fn print(report: &Findings) {
    output::line(format!("recall accuracy {:.1} % on 2 ranks after {:.1} s", 100.0 * report.accuracy, report.seconds));
    let header = ["strategy", "layout", "kernel", "cp", "loss diff", "gradient diff", "bytes/rank", "balance", "ms"];
    let rows = report.rows.iter().map(|row| {
        vec![
            row.strategy.clone(),
            row.layout.clone(),
            row.kernel.clone(),
            row.cp.to_string(),
            output::relative(row.loss_diff),
            output::relative(row.grad_diff),
            output::bytes(row.bytes_per_rank),
            format!("{:.2}", row.balance),
            format!("{:.1}", row.ms),
        ]
    });
    output::line(output::table(&header, 3, rows));
    if report.faults().is_empty() {
        output::sentence(report.verdict());
        output::line("Next, on a text of yours:");
        output::line(format!("  {NEXT}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verdict_follows_the_numbers() {
        let row = |grad_diff| Comparison {
            strategy: "ring".into(),
            layout: "thd".into(),
            kernel: "flash".into(),
            cp: 2,
            loss_diff: 0.0,
            grad_diff,
            bytes_per_rank: 1,
            balance: 1.0,
            ms: 1.0,
        };
        let report = |accuracy, grad_diff| Findings { accuracy, seconds: 1.0, rows: vec![row(0.0), row(grad_diff)] };
        let fine = report(1.0, 2e-7);
        assert!(fine.faults().is_empty());
        assert!(
            fine.verdict().contains("(100.0 %)") && fine.verdict().contains("at most 2.0e-7"),
            "{}",
            fine.verdict()
        );
        assert!(report(0.5, 0.0).faults()[0].contains("below 95 %"));
        for wrong in [SAME, f64::NAN] {
            assert!(report(1.0, wrong).faults()[0].starts_with("1 of 2 combinations"));
        }
    }
}
