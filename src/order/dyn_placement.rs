//! Placements without their types: who holds which token.

mod rows;

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, OnceLock};

use crate::degree::Grid;
use crate::error::{CommError, PlacementError, Result};
use crate::layout::{Batch, Document, LayoutKind};
use crate::order::owners::Owners;
use crate::order::{Deal, Run};

/// A [`Placement`](crate::order::Placement) without its types: who holds which token, in which row.
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
    /// Those of [`Placement::with_table`](crate::order::Placement::with_table).
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

    /// Identifies which rank holds which token in which row, the same on every rank: batch, layout, order with its
    /// data, and the numbers of the ranks.
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
