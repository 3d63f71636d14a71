//! What was run, when all checks have passed.

use std::fmt;

use super::Check;

/// One check that was passed.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The check.
    pub check: Check,
    /// How many cases it was run on.
    pub cases: usize,
    /// On how many ranks.
    pub ranks: Vec<usize>,
    /// The worst number of any case: the relative error of oracle checks, which is small; the difference that other
    /// checks want to be 0, which is 0.
    pub worst: f64,
}

/// The checks that were passed, in the order in which they run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    entries: Vec<Entry>,
}

impl Report {
    /// One entry per check that was run.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The entry of a check, if it was run.
    pub fn entry(&self, check: Check) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.check == check)
    }

    /// Counts one more case.
    pub(crate) fn note(&mut self, check: Check, ranks: usize, number: f64) {
        let at = self.entries.partition_point(|entry| entry.check < check);
        if self.entries.get(at).is_none_or(|entry| entry.check != check) {
            self.entries.insert(at, Entry { check, cases: 0, ranks: Vec::new(), worst: 0.0 });
        }
        let entry = &mut self.entries[at];
        entry.cases += 1;
        entry.worst = entry.worst.max(number);
        if entry.ranks.last() != Some(&ranks) {
            entry.ranks.push(ranks);
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Entry { check, cases, ranks, worst } in &self.entries {
            let ranks: Vec<String> = ranks.iter().map(usize::to_string).collect();
            writeln!(f, "{:20} {cases:6} cases on {} ranks, worst {worst:.1e}", check.name(), ranks.join(", "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_keep_the_worst_number_and_the_order_of_checks() {
        let mut report = Report::default();
        report.note(Check::OracleF64, 2, 1e-15);
        report.note(Check::Degree, 2, 0.0);
        report.note(Check::OracleF64, 2, 3e-15);
        report.note(Check::OracleF64, 3, 2e-15);
        let entry = Entry { check: Check::OracleF64, cases: 3, ranks: vec![2, 3], worst: 3e-15 };
        assert_eq!(report.entry(Check::OracleF64), Some(&entry));
        assert_eq!(report.entries()[0].check, Check::Degree);
        assert!(report.to_string().contains("oracle in f64             3 cases on 2, 3 ranks, worst 3.0e-15"));
        assert!(Check::ALL.is_sorted());
    }
}
