//! Orders that know nothing of documents: they deal out a line of rows.
//!
//! In a dense batch every sequence is a line of its own, so that a rank holds the same number of rows of each; a
//! pack is one line.

use std::fmt;

use crate::layout::Batch;
use crate::order::{Run, TokenOrder};

/// A rule that deals a line of rows out to ranks. It is a [`TokenOrder`] by itself.
pub trait LineOrder: Copy + Default + fmt::Debug + PartialEq + Eq + Send + Sync + 'static {
    /// Name on the command line and in messages.
    const NAME: &'static str;

    /// What tells orders of the same name apart (the stripe of [`Striped`](crate::order::Striped)).
    const VARIANT: usize = 0;

    /// Hands the rank's rows to `each`, in ascending order, in runs that are not empty.
    fn runs(len: usize, ranks: usize, rank: usize, each: &mut dyn FnMut(Run));
}

impl<X: LineOrder> TokenOrder for X {
    const NAME: &'static str = X::NAME;
    const VARIANT: usize = X::VARIANT;
    type Table = ();

    fn table(_batch: &dyn Batch, _ranks: usize) {}

    fn runs(batch: &dyn Batch, _table: &(), ranks: usize, rank: usize, each: &mut dyn FnMut(Run)) {
        match batch.uniform() {
            Some(seq) => {
                for document in 0..batch.documents() {
                    let start = document * seq;
                    X::runs(seq, ranks, rank, &mut |run| each(Run { start: start + run.start, ..run }));
                }
            }
            None => {
                let mut document = 0;
                X::runs(batch.tokens(), ranks, rank, &mut |run| cut(batch, &mut document, run, each));
            }
        }
    }
}

/// Cuts a run at the ends of documents. `document` is where to begin looking; runs come in ascending order, so it
/// only moves forward and all runs of a rank take time in the number of runs and documents together.
pub(super) fn cut(batch: &dyn Batch, document: &mut usize, run: Run, each: &mut dyn FnMut(Run)) {
    let mut done = 0;
    while done < run.len {
        let start = run.token(done);
        let mut end = batch.document(*document).stored_range().end;
        while end <= start {
            *document += 1;
            end = batch.document(*document).stored_range().end;
        }
        let len = (end - start).div_ceil(run.step).min(run.len - done);
        each(Run { start, step: run.step, len });
        done += len;
    }
}
