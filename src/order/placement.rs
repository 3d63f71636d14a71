//! Placements: a batch, dealt out to a number of ranks by an order, seen from one rank.

use std::sync::Arc;

use crate::error::Result;
use crate::layout::{Batch, Layout};
use crate::order::{Run, TokenOrder};

/// Where the tokens of one batch are: made by a handler, shared by every tensor of the batch.
#[derive(Debug)]
pub struct Placement<O: TokenOrder, L: Layout> {
    batch: Arc<L::Batch>,
    ranks: usize,
    rank: usize,
    table: O::Table,
    rows: usize,
    hash: u64,
}

impl<O: TokenOrder, L: Layout> Placement<O, L> {
    /// Deals `batch` out to `ranks` ranks, seen from `rank`.
    pub fn new(batch: Arc<L::Batch>, ranks: usize, rank: usize) -> Arc<Self> {
        let _ = (batch, ranks, rank);
        todo!()
    }

    /// The batch.
    pub fn batch(&self) -> &Arc<L::Batch> {
        &self.batch
    }

    /// Number of ranks.
    pub fn ranks(&self) -> usize {
        self.ranks
    }

    /// The rank that this placement is seen from.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Rows of this rank.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Rows of any rank.
    pub fn rows_of(&self, rank: usize) -> usize {
        O::rows(&*self.batch, &self.table, self.ranks, rank)
    }

    /// Identifies batch, order, degree and their data, the same on every rank.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// The tokens of any rank, in local order.
    pub fn runs_of(&self, rank: usize) -> Vec<Run> {
        let mut runs = Vec::new();
        O::runs(&*self.batch, &self.table, self.ranks, rank, |run| runs.push(run));
        runs
    }

    /// The same, without padding: each run with the local index of its first token.
    pub fn valid_runs_of(&self, rank: usize) -> Vec<(usize, Run)> {
        let _ = rank;
        todo!()
    }

    /// The rank that holds `token`, and its index there.
    pub fn locate(&self, token: usize) -> (usize, usize) {
        O::locate(&*self.batch, &self.table, self.ranks, token)
    }

    /// The token at local index `local` of any rank.
    pub fn token_of(&self, rank: usize, local: usize) -> usize {
        O::token(&*self.batch, &self.table, self.ranks, rank, local)
    }

    /// The memory row of local index `local` of any rank, as the layout says.
    pub fn row_of(&self, rank: usize, local: usize) -> usize {
        L::row(self.batch.documents(), self.rows_of(rank), local)
    }

    /// The memory row of `token` in the whole batch, as the layout says.
    pub fn full_row(&self, token: usize) -> usize {
        L::row(self.batch.documents(), self.batch.tokens(), token)
    }

    /// Position of each of this rank's tokens in its document, by memory row.
    pub fn positions(&self) -> Vec<usize> {
        todo!()
    }

    /// For each memory row of this rank, the memory row of the same token in the whole batch. The one map behind
    /// dispatch, combine and batch slices.
    pub fn full_rows_of(&self, rank: usize) -> Vec<usize> {
        let _ = rank;
        todo!()
    }

    /// Refuses a placement that is not the same as `other` (pointer first, then hash and rank).
    pub fn expect_same(
        self: &Arc<Self>,
        name: &'static str,
        other: &Arc<Self>,
        other_name: &'static str,
    ) -> Result<()> {
        let _ = (name, other, other_name);
        todo!()
    }
}
