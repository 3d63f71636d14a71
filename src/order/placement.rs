//! Placements: a batch, dealt out to a number of ranks by an order, seen from one rank.

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use crate::degree::Grid;
use crate::error::{CommError, PlacementError, Result};
use crate::layout::{Batch, Document, Layout};
use crate::order::{Run, TokenOrder};

/// Where the tokens of one batch are: made by a handler, shared by every tensor of the batch.
#[derive(Debug)]
pub struct Placement<O: TokenOrder, L: Layout> {
    batch: Arc<L::Batch>,
    grid: Grid,
    rank: usize,
    table: O::Table,
    rows: usize,
    hash: u64,
}

impl<O: TokenOrder, L: Layout> Placement<O, L> {
    /// Deals `batch` out to `ranks` ranks, seen from `rank`. Takes time in the number of documents.
    ///
    /// # Errors
    /// [`PlacementError::ZeroDegree`] without ranks, [`CommError::NoSuchRank`] where `rank` is not one of them.
    pub fn new(batch: Arc<L::Batch>, ranks: usize, rank: usize) -> Result<Arc<Self>> {
        if ranks == 0 {
            return Err(PlacementError::ZeroDegree.into());
        }
        let table = O::table(&*batch, ranks);
        Self::with_table(batch, Grid::line(ranks), rank, table)
    }

    /// The same on a grid of ranks, with a table that was made elsewhere.
    ///
    /// # Errors
    /// [`PlacementError::ZeroDegree`] without ranks, [`CommError::NoSuchRank`] where `rank` is not one of them,
    /// [`PlacementError::Table`] where the table deals out another number of tokens or ranks.
    pub fn with_table(batch: Arc<L::Batch>, grid: Grid, rank: usize, table: O::Table) -> Result<Arc<Self>> {
        let ranks = grid.ranks();
        if ranks == 0 {
            return Err(PlacementError::ZeroDegree.into());
        }
        if rank >= ranks {
            return Err(CommError::NoSuchRank { rank, size: ranks }.into());
        }
        if !O::fits(&*batch, &table, ranks) {
            return Err(PlacementError::Table { order: O::NAME, tokens: batch.tokens(), ranks }.into());
        }
        let rows = O::rows(&*batch, &table, ranks, grid.logical(rank));
        // A hasher with fixed keys: ranks that run the same program agree.
        let mut hasher = DefaultHasher::new();
        (O::NAME, O::VARIANT, L::NAME, &*batch, grid, &table).hash(&mut hasher);
        Ok(Arc::new(Placement { batch, grid, rank, table, rows, hash: hasher.finish() }))
    }

    /// The batch.
    pub fn batch(&self) -> &Arc<L::Batch> {
        &self.batch
    }

    /// Number of ranks.
    pub fn ranks(&self) -> usize {
        self.grid.ranks()
    }

    /// How the ranks are grouped.
    pub fn grid(&self) -> Grid {
        self.grid
    }

    /// The order's data for this batch.
    pub fn table(&self) -> &O::Table {
        &self.table
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
        O::rows(&*self.batch, &self.table, self.ranks(), self.grid.logical(rank))
    }

    /// Identifies batch, order, degree and their data, the same on every rank.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// The tokens of any rank, in local order. No run crosses a document.
    pub fn runs_of(&self, rank: usize) -> Vec<Run> {
        let mut runs = Vec::new();
        O::runs(&*self.batch, &self.table, self.ranks(), self.grid.logical(rank), |run| runs.push(run));
        runs
    }

    /// The same, without padding: each run with the local index of its first token.
    pub fn valid_runs_of(&self, rank: usize) -> Vec<(usize, Run)> {
        let mut runs = Vec::new();
        self.for_each_run(rank, |local, document, run| {
            let len = document.valid_range().end.saturating_sub(run.start).div_ceil(run.step).min(run.len);
            if len > 0 {
                runs.push((local, Run { len, ..run }));
            }
        });
        runs
    }

    /// Each run of `rank` with the local index of its first token and the document that it lies in.
    fn for_each_run(&self, rank: usize, mut each: impl FnMut(usize, Document, Run)) {
        let batch = &*self.batch;
        let (mut local, mut index) = (0, 0);
        O::runs(batch, &self.table, self.ranks(), self.grid.logical(rank), |run| {
            while batch.document(index).stored_range().end <= run.start {
                index += 1;
            }
            each(local, batch.document(index), run);
            local += run.len;
        });
    }

    /// One value per memory row of `rank`: `value(document, token)`.
    fn by_row<V: Clone>(&self, rank: usize, fill: V, value: impl Fn(Document, usize) -> V) -> Vec<V> {
        let (documents, rows) = (self.batch.documents(), self.rows_of(rank));
        let mut values = vec![fill; rows];
        self.for_each_run(rank, |local, document, run| {
            for i in 0..run.len {
                values[L::row(documents, rows, local + i)] = value(document, run.token(i));
            }
        });
        values
    }

    /// The rank that holds `token`, and its index there.
    pub fn locate(&self, token: usize) -> (usize, usize) {
        let (logical, local) = O::locate(&*self.batch, &self.table, self.ranks(), token);
        (self.grid.of_logical(logical), local)
    }

    /// The token at local index `local` of any rank.
    pub fn token_of(&self, rank: usize, local: usize) -> usize {
        O::token(&*self.batch, &self.table, self.ranks(), self.grid.logical(rank), local)
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
        self.by_row(self.rank, 0, |document, token| token - document.start)
    }

    /// For each memory row of `rank`, the memory row of the same token in the whole batch. The one map behind
    /// dispatch, combine and batch slices.
    pub fn full_rows_of(&self, rank: usize) -> Vec<usize> {
        self.by_row(rank, 0, |_, token| self.full_row(token))
    }

    /// For each memory row of `rank`, the token whose value a tensor rolled by `shift` has there: with `p` the token
    /// of the row, `y[p] = x[p + shift]`. Nothing where `p` is padding or `p + shift` is not a valid token of the
    /// same document: nothing is rolled across documents, around their ends, or out of padding.
    pub fn rolled_sources(&self, rank: usize, shift: i64) -> Vec<Option<usize>> {
        // A shift that does not fit goes past every document.
        let shift = isize::try_from(shift).unwrap_or(if shift < 0 { isize::MIN } else { isize::MAX });
        self.by_row(rank, None, |document, token| {
            let valid = document.valid_range();
            let source = token.checked_add_signed(shift)?;
            (valid.contains(&token) && valid.contains(&source)).then_some(source)
        })
    }

    /// Refuses a placement that is not the same as `other` (pointer first, then hash and rank).
    ///
    /// # Errors
    /// [`PlacementError::Mismatch`] with both names and placements.
    pub fn expect_same(
        self: &Arc<Self>,
        name: &'static str,
        other: &Arc<Self>,
        other_name: &'static str,
    ) -> Result<()> {
        let same = (self.hash, self.rank) == (other.hash, other.rank);
        if Arc::ptr_eq(self, other) || same {
            return Ok(());
        }
        let (mut left, mut right) = (self.to_string(), other.to_string());
        if left == right {
            // The same sizes, so some document differs: say which.
            let differs = |&i: &usize| self.batch.document(i) != other.batch.document(i);
            if let Some(index) = (0..self.batch.documents()).find(differs) {
                let text = |batch: &L::Batch| {
                    let Document { stored, valid, .. } = batch.document(index);
                    format!(", document {index} with {valid} valid tokens in {stored} rows")
                };
                left.push_str(&text(&self.batch));
                right.push_str(&text(&other.batch));
            }
        }
        Err(PlacementError::Mismatch { left_name: name, left, right_name: other_name, right }.into())
    }
}

impl<O: TokenOrder, L: Layout> fmt::Display for Placement<O, L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (documents, tokens) = (self.batch.documents(), self.batch.tokens());
        let what = match (self.batch.uniform(), documents) {
            (Some(_), 1) => "sequence",
            (Some(_), _) => "sequences",
            (None, 1) => "document",
            (None, _) => "documents",
        };
        write!(f, "{} of {documents} {what} ({tokens} tokens), rank {} of {}", O::NAME, self.rank, self.ranks())
    }
}
