//! Placements: a batch, dealt out to a number of ranks by an order, seen from one rank.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use crate::degree::Grid;
use crate::error::{CommError, PlacementError, Result};
use crate::layout::{Batch, Document, Layout, LayoutKind};
use crate::order::owners::Owners;
use crate::order::{Deal, DealOf, Rows, Run, TokenOrder};

/// Where the tokens of one batch are: made by a handler, shared by every tensor of the batch.
///
/// The types keep placements of different orders and layouts apart; everything else is a [`DynPlacement`], to which it
/// dereferences.
#[derive(Debug)]
pub struct Placement<O: TokenOrder, L: Layout> {
    data: Arc<DynPlacement>,
    batch: Arc<L::Batch>,
    deal: Arc<DealOf<O>>,
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
    /// [`PlacementError::Grid`] without ranks, [`CommError::NoSuchRank`] where `rank` is not one of them,
    /// [`PlacementError::Table`] where the table deals out another number of tokens or ranks.
    pub fn with_table(batch: Arc<L::Batch>, grid: Grid, rank: usize, table: O::Table) -> Result<Arc<Self>> {
        let deal = Arc::new(DealOf::<O>(table));
        let data = DynPlacement::new(batch.clone(), L::KIND, grid, rank, deal.clone())?;
        Ok(Arc::new(Placement { data, batch, deal }))
    }

    /// A placement with its types, which must be those that it was made with.
    ///
    /// # Errors
    /// [`PlacementError::Types`] for another order or layout.
    pub fn typed(data: Arc<DynPlacement>) -> Result<Arc<Self>> {
        let (batch, deal): (Arc<dyn Any + Send + Sync>, Arc<dyn Any + Send + Sync>) =
            (data.batch.clone(), data.deal.clone());
        match (batch.downcast::<L::Batch>(), deal.downcast::<DealOf<O>>()) {
            (Ok(batch), Ok(deal)) if data.layout == L::KIND => Ok(Arc::new(Placement { data, batch, deal })),
            _ => {
                let expected = format!("{} of layout {}", O::NAME, L::NAME);
                let found = format!("{} of layout {}", data.deal.name(), data.layout.name());
                Err(PlacementError::Types { expected, found }.into())
            }
        }
    }

    /// The batch.
    pub fn batch(&self) -> &Arc<L::Batch> {
        &self.batch
    }

    /// The order's data for this batch.
    pub fn table(&self) -> &O::Table {
        &self.deal.0
    }

    /// The placement without its types.
    pub fn data(&self) -> &Arc<DynPlacement> {
        &self.data
    }

    /// [`DynPlacement::expect_same`] of two placements of one order and layout.
    ///
    /// # Errors
    /// [`PlacementError::Mismatch`] with both names and placements.
    pub fn expect_same(
        self: &Arc<Self>,
        name: &'static str,
        other: &Arc<Self>,
        other_name: &'static str,
    ) -> Result<()> {
        self.data.expect_same(name, &other.data, other_name)
    }
}

impl<O: TokenOrder, L: Layout> Deref for Placement<O, L> {
    type Target = DynPlacement;

    fn deref(&self) -> &DynPlacement {
        &self.data
    }
}

impl<O: TokenOrder, L: Layout> fmt::Display for Placement<O, L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.data.fmt(f)
    }
}

/// A [`Placement`] without its types: who holds which token, in which row.
#[derive(Clone, Debug)]
pub struct DynPlacement {
    batch: Arc<dyn Batch>,
    layout: LayoutKind,
    grid: Grid,
    rank: usize,
    deal: Arc<dyn Deal>,
    held: Arc<Lookups>,
    rows: usize,
    hash: u64,
}

/// What was asked of the order so far, for all ranks that a placement is seen from.
#[derive(Debug)]
struct Lookups {
    /// By rank.
    runs: Vec<OnceLock<Vec<(usize, Run)>>>,
    owners: OnceLock<Owners>,
}

impl DynPlacement {
    /// A batch that is dealt out as `deal` says.
    ///
    /// # Errors
    /// Those of [`Placement::with_table`].
    pub fn new(
        batch: Arc<dyn Batch>,
        layout: LayoutKind,
        grid: Grid,
        rank: usize,
        deal: Arc<dyn Deal>,
    ) -> Result<Arc<Self>> {
        let ranks = grid.checked()?.ranks();
        if rank >= ranks {
            return Err(CommError::NoSuchRank { rank, size: ranks }.into());
        }
        if !deal.fits(&*batch, ranks) {
            return Err(PlacementError::Table { order: deal.name(), tokens: batch.tokens(), ranks }.into());
        }
        // A hasher with fixed keys: ranks that run the same program agree.
        let mut hasher = DefaultHasher::new();
        // Not the grid itself: how ranks are grouped moves no token, how they are numbered does.
        (layout.name(), &*batch, ranks, grid.renumbering()).hash(&mut hasher);
        deal.hash_into(&mut hasher);
        let held = Lookups { runs: (0..ranks).map(|_| OnceLock::new()).collect(), owners: OnceLock::new() };
        let mut placement =
            DynPlacement { batch, layout, grid, rank, deal, held: Arc::new(held), rows: 0, hash: hasher.finish() };
        placement.rows = placement.rows_of(rank);
        Ok(Arc::new(placement))
    }

    /// The same, seen from another rank.
    ///
    /// # Errors
    /// [`CommError::NoSuchRank`] where `rank` is not one of the placement's.
    pub fn seen_from(&self, rank: usize) -> Result<Arc<Self>> {
        if rank >= self.ranks() {
            return Err(CommError::NoSuchRank { rank, size: self.ranks() }.into());
        }
        Ok(Arc::new(DynPlacement {
            batch: self.batch.clone(),
            deal: self.deal.clone(),
            held: self.held.clone(),
            rows: self.rows_of(rank),
            rank,
            ..*self
        }))
    }

    /// The batch.
    pub fn batch(&self) -> &Arc<dyn Batch> {
        &self.batch
    }

    /// The layout.
    pub fn layout(&self) -> LayoutKind {
        self.layout
    }

    /// How the batch is dealt out.
    pub fn deal(&self) -> &Arc<dyn Deal> {
        &self.deal
    }

    /// Number of ranks.
    pub fn ranks(&self) -> usize {
        self.grid.ranks()
    }

    /// How the ranks are grouped.
    pub fn grid(&self) -> Grid {
        self.grid
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
        self.placed(rank).last().map_or(0, |(local, run)| local + run.len)
    }

    /// Identifies which rank holds which token in which row, the same on every rank: batch, layout, order with its data,
    /// and the numbers of the ranks.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// The tokens of any rank, in local order. No run crosses a document.
    pub fn runs_of(&self, rank: usize) -> Vec<Run> {
        self.placed(rank).iter().map(|(_, run)| *run).collect()
    }

    /// The same, each run with the local index of its first token.
    fn placed(&self, rank: usize) -> &[(usize, Run)] {
        self.held.runs[rank].get_or_init(|| {
            let (mut placed, mut local) = (Vec::new(), 0);
            self.deal.runs(&*self.batch, self.ranks(), self.grid.logical(rank), &mut |run| {
                placed.push((local, run));
                local += run.len;
            });
            placed
        })
    }

    fn owners(&self) -> &Owners {
        self.held.owners.get_or_init(|| Owners::new((0..self.ranks()).map(|rank| self.placed(rank))))
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
        let mut index = 0;
        for &(local, run) in self.placed(rank) {
            while self.batch.document(index).stored_range().end <= run.start {
                index += 1;
            }
            each(local, self.batch.document(index), run);
        }
    }

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

    /// The rank that holds `token`, and its index there.
    ///
    /// # Panics
    /// If the batch has no such token.
    pub fn locate(&self, token: usize) -> (usize, usize) {
        let mut found = None;
        let one = Run { start: token, step: 1, len: 1 };
        self.owners().shares(one, |share| found = Some((share.rank, share.local.start)));
        found.unwrap_or_else(|| panic!("token {token} of a batch of {}", self.batch.tokens()))
    }

    /// The token at local index `local` of any rank.
    ///
    /// # Panics
    /// If the rank has no such row.
    pub fn token_of(&self, rank: usize, local: usize) -> usize {
        let placed = self.placed(rank);
        let (first, run) = placed[placed.partition_point(|&(first, _)| first <= local) - 1];
        assert!(local - first < run.len, "row {local} of rank {rank}, which has {}", self.rows_of(rank));
        run.token(local - first)
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

    /// Whether both are one placement, seen from one rank (pointer first, then hash and rank).
    pub fn is_same(&self, other: &Self) -> bool {
        std::ptr::eq(self, other) || (self.hash, self.rank) == (other.hash, other.rank)
    }

    /// Refuses a placement that is not the same as `other` (pointer first, then hash and rank).
    ///
    /// # Errors
    /// [`PlacementError::Mismatch`] with both names and placements.
    pub fn expect_same(&self, name: &'static str, other: &Self, other_name: &'static str) -> Result<()> {
        if self.is_same(other) {
            return Ok(());
        }
        let (mut left, mut right) = (self.to_string(), other.to_string());
        if left == right {
            // The same sizes, so some document differs: say which.
            let differs = |&i: &usize| self.batch.document(i) != other.batch.document(i);
            if let Some(index) = (0..self.batch.documents()).find(differs) {
                let text = |batch: &dyn Batch| {
                    let Document { stored, valid, .. } = batch.document(index);
                    format!(", document {index} with {valid} valid tokens in {stored} rows")
                };
                left.push_str(&text(&*self.batch));
                right.push_str(&text(&*other.batch));
            }
        }
        Err(PlacementError::Mismatch { left_name: name, left, right_name: other_name, right }.into())
    }
}

impl fmt::Display for DynPlacement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (documents, tokens) = (self.batch.documents(), self.batch.tokens());
        let what = match (self.batch.uniform(), documents) {
            (Some(_), 1) => "sequence",
            (Some(_), _) => "sequences",
            (None, 1) => "document",
            (None, _) => "documents",
        };
        write!(
            f,
            "{} of {documents} {what} ({tokens} tokens), rank {} of {}",
            self.deal.name(),
            self.rank,
            self.ranks()
        )
    }
}
