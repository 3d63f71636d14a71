//! Affine runs: the only form in which tokens and rows are listed.

use std::fmt;
use std::ops::Range;

use serde::ser::{Serialize, SerializeSeq, Serializer};

/// `len` numbers `start, start + step, ...`, in this order: tokens of a batch, or rows of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
pub struct Run {
    /// The first one.
    pub start: usize,
    /// Distance between neighbours, at least 1.
    pub step: usize,
    /// How many.
    pub len: usize,
}

impl Run {
    /// The number at index `i` of the run.
    #[inline(always)]
    pub fn token(&self, i: usize) -> usize {
        self.start + i * self.step
    }

    /// One past the last number; `start` if there is none.
    pub fn end(&self) -> usize {
        if self.len == 0 { self.start } else { self.token(self.len - 1) + 1 }
    }

    /// The numbers.
    pub fn iter(self) -> impl ExactSizeIterator<Item = usize> + Clone {
        (0..self.len).map(move |i| self.token(i))
    }

    /// The numbers at the indices `part`.
    pub fn part(&self, part: Range<usize>) -> Run {
        Run { start: self.token(part.start), step: self.step, len: part.len() }
    }

    /// The numbers at the indices that another run lists.
    pub fn at(&self, indices: Run) -> Run {
        Run { start: self.token(indices.start), step: self.step * indices.step, len: indices.len }
    }

    /// The index of the first number at or after `bound`; `len` if there is none.
    pub fn index_from(&self, bound: usize) -> usize {
        bound.saturating_sub(self.start).div_ceil(self.step).min(self.len)
    }

    /// The numbers in both runs: their indices in this one, and in the other.
    pub fn common(&self, other: &Run) -> Option<(Run, Run)> {
        if self.len == 0 || other.len == 0 {
            return None;
        }
        // The step of a single number says nothing.
        let step = |run: &Run| if run.len == 1 { 1 } else { run.step as i128 };
        let (s, t) = (step(self), step(other));
        let (divisor, inverse) = bezout(s, t);
        let apart = other.start as i128 - self.start as i128;
        if apart % divisor != 0 {
            return None;
        }
        // start + s * i is a number of the other run's residue for i = first, first + t / divisor, ..
        let period = t / divisor;
        let first = (apart / divisor % period * inverse).rem_euclid(period);
        // .. of which the other run has those from its start on.
        let skipped = (apart - first * s).max(0);
        let meet = self.start as i128 + s * first + (skipped + s * period - 1) / (s * period) * (s * period);
        let last = (self.end() - 1).min(other.end() - 1) as i128;
        if meet > last {
            return None;
        }
        let len = ((last - meet) / (s * period) + 1) as usize;
        let indices = |run: &Run, step: i128| Run {
            start: ((meet - run.start as i128) / step) as usize,
            step: (s * period / step) as usize,
            len,
        };
        Some((indices(self, s), indices(other, t)))
    }
}

/// The greatest common divisor of two positive numbers, and what `a` is to be multiplied by to leave it, modulo `b`.
fn bezout(a: i128, b: i128) -> (i128, i128) {
    let (mut old, mut new) = ((a, 1), (b, 0));
    while new.0 != 0 {
        let quotient = old.0 / new.0;
        (old, new) = (new, (old.0 - quotient * new.0, old.1 - quotient * new.1));
    }
    old
}

/// Rows of a buffer, in an order, as a few affine runs. Two are equal if they list the same rows in the same order.
#[derive(Clone, Default)]
pub struct Rows {
    runs: Vec<Run>,
    len: usize,
}

impl Rows {
    /// Adds rows at the end.
    pub fn push(&mut self, run: Run) {
        if run.len == 0 {
            return;
        }
        self.len += run.len;
        if let Some(last) = self.runs.last_mut() {
            // Single rows have no step of their own.
            let step = if last.len == 1 { run.start.saturating_sub(last.start) } else { last.step };
            let goes_on = step > 0 && run.start == last.start + step * last.len;
            if goes_on && (run.len == 1 || run.step == step) {
                *last = Run { start: last.start, step, len: last.len + run.len };
                return;
            }
        }
        self.runs.push(run);
    }

    /// The runs, none of which is empty.
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The rows, in order.
    pub fn iter(&self) -> impl Iterator<Item = usize> + Clone + '_ {
        self.runs.iter().flat_map(|run| run.iter())
    }

    /// The rows as a list.
    pub fn to_vec(&self) -> Vec<usize> {
        self.iter().collect()
    }

    /// The rows at the indices `part`, as runs, each with the index in `part` of its first row.
    pub fn runs_of(&self, part: Range<usize>) -> impl Iterator<Item = (usize, Run)> + '_ {
        let mut first = 0;
        self.runs.iter().filter_map(move |run| {
            let at = first;
            first += run.len;
            let indices = part.start.max(at) - at..part.end.max(at).min(at + run.len) - at;
            (indices.start < indices.end).then(|| (at + indices.start - part.start, run.part(indices)))
        })
    }

    /// One past the largest row; 0 if there is none.
    pub fn end(&self) -> usize {
        self.runs.iter().map(Run::end).max().unwrap_or(0)
    }

    /// Whether these are all rows of a buffer of `rows`, in ascending order.
    pub fn are_all(&self, rows: usize) -> bool {
        // Neighbours are in one run.
        self.len == rows
            && self.runs.iter().all(|run| (run.start, run.len) == (0, rows) && (run.step == 1 || rows == 1))
    }
}

impl PartialEq for Rows {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && (self.runs == other.runs || self.iter().eq(other.iter()))
    }
}

impl Eq for Rows {}

impl fmt::Debug for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, run) in self.runs.iter().enumerate() {
            f.write_str(if index == 0 { "[" } else { ", " })?;
            match (run.step, run.len) {
                (_, 1) => write!(f, "{}", run.start)?,
                (1, _) => write!(f, "{}..{}", run.start, run.end())?,
                (step, _) => write!(f, "{}..{} by {step}", run.start, run.end())?,
            }
        }
        f.write_str(if self.is_empty() { "[]" } else { "]" })
    }
}

impl From<Range<usize>> for Rows {
    fn from(rows: Range<usize>) -> Self {
        Run { start: rows.start, step: 1, len: rows.len() }.into()
    }
}

impl From<Run> for Rows {
    fn from(run: Run) -> Self {
        Rows::from_iter([run])
    }
}

impl FromIterator<Run> for Rows {
    fn from_iter<I: IntoIterator<Item = Run>>(runs: I) -> Self {
        let mut rows = Rows::default();
        rows.extend(runs);
        rows
    }
}

impl FromIterator<usize> for Rows {
    fn from_iter<I: IntoIterator<Item = usize>>(rows: I) -> Self {
        rows.into_iter().map(|start| Run { start, step: 1, len: 1 }).collect()
    }
}

impl Extend<Run> for Rows {
    fn extend<I: IntoIterator<Item = Run>>(&mut self, runs: I) {
        runs.into_iter().for_each(|run| self.push(run));
    }
}

/// As a list of `[first, step, count]`.
impl Serialize for Rows {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(Some(self.runs.len()))?;
        self.runs.iter().try_for_each(|run| list.serialize_element(&(run.start, run.step, run.len)))?;
        list.end()
    }
}

#[cfg(test)]
mod tests;
