//! What was run, what was wrong, and when two numbers agree.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Counts by kind of case, and every failure.
#[derive(Debug, Default)]
pub struct CaseReport {
    /// Cases by kind.
    pub cases: BTreeMap<String, usize>,
    /// Cases x combinations by kind.
    pub combinations: BTreeMap<String, usize>,
    /// What went wrong: case, combination, what.
    pub failures: Vec<String>,
}

impl CaseReport {
    /// One more case.
    pub fn case(&mut self, kind: &str) {
        *self.cases.entry(kind.to_string()).or_default() += 1;
    }

    /// Takes in what another report says.
    pub fn absorb(&mut self, other: CaseReport) {
        for (counts, more) in [(&mut self.cases, other.cases), (&mut self.combinations, other.combinations)] {
            more.into_iter().for_each(|(kind, count)| *counts.entry(kind).or_default() += count);
        }
        self.failures.extend(other.failures);
    }

    /// Something wrong with a case itself.
    pub fn failure(&mut self, case: &str, what: impl std::fmt::Display) {
        self.failures.push(format!("{case}: {what}"));
    }

    /// Runs a case under one combination; `run` gives what is wrong, or fails. A panic is a failure too.
    pub fn run(
        &mut self,
        kind: &str,
        case: &str,
        combination: &str,
        run: impl FnOnce() -> Result<Vec<String>, String>,
    ) {
        *self.combinations.entry(kind.to_string()).or_default() += 1;
        let wrong = match catch_unwind(AssertUnwindSafe(run)) {
            Ok(Ok(wrong)) => wrong,
            Ok(Err(error)) => vec![error],
            Err(panic) => {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
                vec![format!("panicked: {}", text.unwrap_or("without a message"))]
            }
        };
        self.failures.extend(wrong.into_iter().map(|what| format!("{case}, {combination}: {what}")));
    }

    /// One line per kind.
    pub fn summary(&self) -> String {
        let mut lines = String::new();
        for (kind, cases) in &self.cases {
            let combinations = self.combinations.get(kind).copied().unwrap_or_default();
            lines += &format!("golden: {kind}: {cases} cases, {combinations} cases x combinations\n");
        }
        let (cases, combinations) = (self.cases.values().sum::<usize>(), self.combinations.values().sum::<usize>());
        lines + &format!("golden: {cases} cases, {combinations} cases x combinations, {} wrong\n", self.failures.len())
    }
}

/// Says where `found` is further from `expected` than `tolerance` (0: the same bits), if anywhere.
pub fn compare(name: &str, found: &[f64], expected: &[f64], tolerance: impl Fn(usize) -> f64) -> Option<String> {
    if found.len() != expected.len() {
        return Some(format!("{name} has {} values, expected {}", found.len(), expected.len()));
    }
    let agree = |i: usize| match tolerance(i) {
        0.0 => found[i].to_bits() == expected[i].to_bits(),
        // Written so that NaN does not agree.
        tolerance => (found[i] - expected[i]).abs() <= tolerance,
    };
    let wrong: Vec<usize> = (0..found.len()).filter(|&i| !agree(i)).collect();
    let &first = wrong.first()?;
    Some(format!(
        "{name}: {} of {} values differ; first at {first}: found {}, expected {}, tolerance {:.3e}",
        wrong.len(),
        found.len(),
        found[first],
        expected[first],
        tolerance(first)
    ))
}

/// Says by how much a number differs relatively by more than `bound`.
pub fn compare_relative(name: &str, found: f64, expected: f64, bound: f64) -> Option<String> {
    let difference = (found - expected).abs();
    let agrees = difference <= bound * expected.abs();
    (!agrees).then(|| format!("{name}: found {found}, expected {expected}, off by {:.3e}", difference / expected.abs()))
}
