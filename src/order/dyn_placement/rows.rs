//! Memory rows of a placement: of a rank's tokens, of the whole batch, and of tensors that are rolled.

use std::collections::BTreeMap;

use crate::layout::Document;
use crate::order::{DynPlacement, Rows, Run};

impl DynPlacement {
    /// One value per memory row of `rank`: `value(document, token)`.
    fn by_row<V: Clone>(&self, rank: usize, fill: V, value: impl Fn(Document, usize) -> V) -> Vec<V> {
        let (documents, rows) = (self.batch.documents(), self.rows_of(rank));
        let mut values = vec![fill; rows];
        self.for_each_run(rank, |local, document, run| {
            for i in 0..run.len {
                values[self.layout.row(documents, rows, local + i)] = value(document, run.token(i));
            }
        });
        values
    }

    /// The memory row of local index `local` of any rank, as the layout says.
    pub fn row_of(&self, rank: usize, local: usize) -> usize {
        self.layout.row(self.batch.documents(), self.rows_of(rank), local)
    }

    /// The memory rows of some local indices of any rank, all in one sequence of a dense batch.
    fn memory_rows(&self, rank: usize, local: Run) -> Run {
        let step = local.step * self.layout.stride(self.batch.documents());
        Run { start: if local.len == 0 { 0 } else { self.row_of(rank, local.start) }, step, len: local.len }
    }

    /// The memory rows of this rank's valid tokens, in local order.
    pub fn valid_rows(&self) -> Rows {
        let rows =
            |(local, run): (usize, Run)| self.memory_rows(self.rank, Run { start: local, step: 1, len: run.len });
        self.valid_runs_of(self.rank).into_iter().map(rows).collect()
    }

    /// The memory row of `token` in the whole batch, as the layout says.
    pub fn full_row(&self, token: usize) -> usize {
        self.layout.row(self.batch.documents(), self.batch.tokens(), token)
    }

    /// Position of each of this rank's tokens in its document, by memory row.
    pub fn positions(&self) -> Vec<usize> {
        self.by_row(self.rank, 0, |document, token| token - document.start)
    }

    /// For each memory row of `rank`, the memory row of the same token in the whole batch. The one map behind
    /// dispatch, combine and batch slices.
    pub fn full_rows_of(&self, rank: usize) -> Rows {
        let (sequences, tokens) = (self.batch.documents(), self.batch.tokens());
        if self.layout.is_token_major() {
            return self.placed(rank).iter().map(|(_, run)| *run).collect();
        }
        // All sequences are dealt out alike, and their rows alternate: those of the first say where the others are.
        let Some(seq) = self.batch.uniform().filter(|seq| seq * sequences == tokens) else { return Rows::default() };
        let first = self.placed(rank).iter().map(|(_, run)| run).take_while(|run| run.start < seq);
        let rows =
            first.flat_map(|run| run.iter()).map(|token| Run { start: self.full_row(token), step: 1, len: sequences });
        rows.collect()
    }

    /// What a tensor rolled by `shift` has in this rank's rows, `y[p] = x[p + shift]` with `p` the token of a row: each
    /// rank that holds some `p + shift`, the rows of this rank that take them, and its rows that give them, both by
    /// memory row and ascending in `p`.
    ///
    /// Not among them are rows where `p` is padding or `p + shift` is no valid token of the same document: nothing is
    /// rolled across documents, around their ends, or out of padding. By the same rule, with `-shift`: the rows of this
    /// rank that give, and who takes them.
    pub fn rolled(&self, shift: i64) -> Vec<(usize, Rows, Rows)> {
        // A shift that does not fit goes past every document.
        let shift = isize::try_from(shift).unwrap_or(if shift < 0 { isize::MIN } else { isize::MAX });
        let mut by_rank: BTreeMap<usize, (Rows, Rows)> = BTreeMap::new();
        self.for_each_run(self.rank, |local, document, run| {
            let valid = document.valid_range();
            let from = |bound: usize| run.index_from(bound);
            // The bounds of p, moved where p + shift would leave the document.
            let (start, end) = match shift.unsigned_abs() {
                far if shift < 0 => (valid.start.saturating_add(far), valid.end),
                far => (valid.start, valid.end.saturating_sub(far)),
            };
            let (first, last) = (from(start), from(end));
            if first >= last {
                return;
            }
            let moved = Run { start: run.token(first).wrapping_add_signed(shift), step: run.step, len: last - first };
            self.owners().shares(moved, |share| {
                let (mine, theirs) = by_rank.entry(share.rank).or_default();
                let indices = Run { start: local + first + share.indices.start, ..share.indices };
                mine.push(self.memory_rows(self.rank, indices));
                theirs.push(self.memory_rows(share.rank, share.local));
            });
        });
        by_rank.into_iter().map(|(rank, (mine, theirs))| (rank, mine, theirs)).collect()
    }
}
