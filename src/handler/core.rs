//! What a handler knows and does without communication, whatever its strategy and layout: compiled once.

use std::any::{Any, TypeId};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::attention::{RankPlan, Tell, expect_groups};
use crate::error::{LayoutError, PlacementError, PlanError, Result, SupportError};
use crate::handler::cache::Recent;
use crate::layout::{Batch, LayoutKind};
use crate::mask::Mask;
use crate::ops::attention::AttentionShape;
use crate::ops::rows::MoveRows;
use crate::order::{Deal, DynPlacement, DynShard, DynShardRef};
use crate::plan::Wire;
use crate::rope::Rope;
use crate::strategy::DynStrategy;
use crate::tensor::{Device, ElemRef, Element, Matrix};

/// Batch and masks, if the order depends on them, that a placement is made for.
struct Placed {
    batch: Arc<dyn Batch>,
    masks: Vec<(Mask, u64)>,
}

impl PartialEq for Placed {
    fn eq(&self, other: &Self) -> bool {
        let same = Arc::ptr_eq(&self.batch, &other.batch) || self.batch.same_documents(&*other.batch);
        same && self.masks == other.masks
    }
}

/// One rank's handler without its types, device and communicator: see [`CpHandler`](crate::handler::CpHandler).
pub struct HandlerCore {
    strategy: Arc<dyn DynStrategy>,
    layout: LayoutKind,
    rank: usize,
    ranks: usize,
    wire: Wire,
    placements: Recent<Placed, Arc<DynPlacement>>,
    /// By hash of the placement.
    plans: Recent<(u64, Mask, Wire), Arc<RankPlan>>,
    /// By hash of the placement, the types of device and value, the address of the device's ledger, and what else the
    /// value is made of. An entry keeps its device, so no other has the address.
    other: Recent<(u64, TypeId, usize, MadeOf), Arc<dyn Any + Send + Sync>>,
    /// Digest of the plans that were attended under so far.
    attended: AtomicU64,
}

/// What a value that belongs to a placement is made of besides.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum MadeOf {
    /// Cosines and sines of an embedding.
    Rope(Rope),
    /// This rank's rows of whole sequences.
    Dealt,
    /// Each rank's rows of whole sequences.
    DealtToAll,
    /// The rows of whole sequences, rank after rank.
    ByRank,
    /// The moves of a roll by so many tokens.
    Roll(i64),
}

impl HandlerCore {
    /// A handler for rank `rank` of `ranks`.
    ///
    /// # Errors
    /// Those of [`CpHandler::new`](crate::handler::CpHandler::new).
    pub(super) fn new(strategy: Arc<dyn DynStrategy>, layout: LayoutKind, rank: usize, ranks: usize) -> Result<Self> {
        let degree = strategy.degree();
        if degree == 0 {
            return Err(PlacementError::ZeroDegree.into());
        }
        if degree != ranks {
            return Err(PlacementError::Degree { strategy: strategy.name(), degree, size: ranks }.into());
        }
        let grid = strategy.grid().checked()?;
        if grid.ranks() != degree {
            return Err(PlacementError::DegreeOfGrid { strategy: strategy.name(), degree, grid }.into());
        }
        strategy.check()?;
        let inner = grid.inner;
        if let Some(group) = strategy.fixed_group().filter(|&group| group != inner) {
            return Err(SupportError::Numbers(format!(
                "{} exchanges heads over {group} ranks by its type and over {inner} by its grid: use the same number",
                strategy.name()
            ))
            .into());
        }
        Ok(HandlerCore {
            strategy,
            layout,
            rank,
            ranks,
            wire: Wire::default(),
            placements: Recent::new(),
            plans: Recent::new(),
            other: Recent::new(),
            attended: AtomicU64::new(0),
        })
    }

    /// Refuses a placement that is not of this rank, or whose ranks are numbered otherwise than this handler's.
    ///
    /// # Errors
    /// [`PlacementError::Rank`], [`PlacementError::OtherGrid`].
    pub(super) fn expect_own(&self, placement: &DynPlacement) -> Result<()> {
        let (rank, ranks) = (self.rank, self.ranks);
        let (found, found_ranks) = (placement.rank(), placement.ranks());
        if (rank, ranks) != (found, found_ranks) {
            return Err(PlacementError::Rank { rank, ranks, found, found_ranks }.into());
        }
        let (expected, found) = (self.strategy.grid(), placement.grid());
        match expected.renumbering() == found.renumbering() {
            true => Ok(()),
            false => Err(PlacementError::OtherGrid { strategy: self.strategy.name(), expected, found }.into()),
        }
    }

    /// Stands for what is communicated and all that was attended before: what every rank must have alike. So masks that
    /// differ show even where attention itself needed no message.
    pub(super) fn digest(&self, of: impl Hash) -> u64 {
        digest_of((of, self.attended.load(Ordering::Relaxed)))
    }

    /// There was attention under this plan.
    pub(super) fn attends(&self, plan: &RankPlan) {
        let before = self.attended.load(Ordering::Relaxed);
        self.attended.store(digest_of((before, plan.hash())), Ordering::Relaxed);
    }

    pub(super) fn set_gradient_wire(&mut self, wire: Wire) {
        self.wire = wire;
    }

    /// The strategy.
    pub fn strategy(&self) -> &Arc<dyn DynStrategy> {
        &self.strategy
    }

    /// The layout.
    pub fn layout(&self) -> LayoutKind {
        self.layout
    }

    /// This rank.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Number of ranks that share a sequence.
    pub fn ranks(&self) -> usize {
        self.ranks
    }

    /// [`CpHandler::place_for`](crate::handler::CpHandler::place_for).
    ///
    /// # Errors
    /// If a mask does not fit the batch, or the batch cannot be dealt out.
    pub fn place_for(&self, batch: Arc<dyn Batch>, masks: &[(Mask, u64)]) -> Result<Arc<DynPlacement>> {
        let masks = if self.strategy.places_by_masks() { masks.to_vec() } else { Vec::new() };
        self.placements.get_or_make(Placed { batch, masks }, |Placed { batch, masks }| {
            self.place_with(batch.clone(), self.strategy.deal(&**batch, masks)?)
        })
    }

    /// [`CpHandler::place_with`](crate::handler::CpHandler::place_with).
    ///
    /// # Errors
    /// If the table deals out another number of ranks or tokens.
    pub fn place_with(&self, batch: Arc<dyn Batch>, deal: Arc<dyn Deal>) -> Result<Arc<DynPlacement>> {
        DynPlacement::new(batch, self.layout, self.strategy.grid(), self.rank, deal)
    }

    /// [`CpHandler::plan`](crate::handler::CpHandler::plan), with a way to tell other ranks.
    ///
    /// # Errors
    /// Those of `CpHandler::plan`.
    pub(super) fn plan(&self, placement: &Arc<DynPlacement>, mask: &Mask, tell: Tell<'_>) -> Result<Arc<RankPlan>> {
        self.expect_own(placement)?;
        // Before the cache is asked: placements of other groups have the same hash.
        expect_groups(&*self.strategy, placement)?;
        self.plans.get_or_make((placement.hash(), mask.clone(), self.wire), |_| {
            let plan = RankPlan::told(&*self.strategy, placement, placement, mask, Some(tell))?;
            Ok(Arc::new(plan.with_wire(self.wire)))
        })
    }

    /// [`CpHandler::plan_between`](crate::handler::CpHandler::plan_between), with a way to tell other ranks.
    ///
    /// # Errors
    /// Those of `CpHandler::plan_between`.
    pub(super) fn plan_between(
        &self,
        queries: &Arc<DynPlacement>,
        keys: &Arc<DynPlacement>,
        mask: &Mask,
        tell: Tell<'_>,
    ) -> Result<Arc<RankPlan>> {
        self.expect_own(queries)?;
        self.expect_own(keys)?;
        Ok(Arc::new(RankPlan::told(&*self.strategy, queries, keys, mask, Some(tell))?.with_wire(self.wire)))
    }

    /// Something else that belongs to a placement on a device, and is made of these and `made_of` alone.
    pub(super) fn other<D: Device, V: Any + Send + Sync>(
        &self,
        device: &D,
        placement: &DynPlacement,
        made_of: MadeOf,
        make: impl Fn() -> V,
    ) -> Result<Arc<V>> {
        self.expect_own(placement)?;
        let address = Arc::as_ptr(device.ledger()) as usize;
        let key = (placement.hash(), TypeId::of::<(D, V)>(), address, made_of);
        let entry = self.other.get_or_make(key, |_| {
            let value: Arc<dyn Any + Send + Sync> = Arc::new((device.clone(), Arc::new(make())));
            Ok(value)
        })?;
        // The key holds the types, so the entry is of them.
        Ok(entry.downcast_ref::<(D, Arc<V>)>().map_or_else(|| Arc::new(make()), |(_, value)| value.clone()))
    }

    /// This rank's `rows` of whole sequences that every rank has, in the order of the layout: a copy on `device`,
    /// without communication.
    ///
    /// # Errors
    /// If the placement is not this handler's; [`LayoutError::Rows`] for another number of rows than the batch has
    /// tokens.
    pub(crate) fn cut<T: Element, D: MoveRows>(
        &self,
        device: &D,
        placement: &Arc<DynPlacement>,
        rows: &D::Rows,
        full: &Matrix<T, D::Storage>,
    ) -> Result<DynShard<T, D::Storage>> {
        self.expect_own(placement)?;
        let (expected, found) = (placement.batch().tokens(), full.rows());
        if expected != found {
            return Err(LayoutError::Rows { expected, found }.into());
        }
        let mut matrix = device.matrix(placement.rows(), full.cols());
        device.gather_rows(full.view(), rows, matrix.view_mut());
        DynShard::new(matrix, placement.clone())
    }

    /// Refuses operands of another placement than the plan's, or of other widths than the shape's.
    pub(super) fn operands<'a, D: Device>(
        &self,
        plan: &RankPlan,
        shape: &AttentionShape,
        qkv: [DynShardRef<'a, D::Elem, D::Storage>; 3],
    ) -> Result<[ElemRef<'a, D>; 3]> {
        shape.check()?;
        self.expect_own(plan.placement())?;
        expect_groups(&*self.strategy, plan.placement())?;
        let (strategy, found) = (self.strategy.name(), plan.strategy());
        if strategy != found {
            return Err(PlanError::OtherStrategy { strategy, found }.into());
        }
        self.strategy.heads_per_rank(shape.q_heads)?;
        let widths = [shape.q_width(), shape.k_width(), shape.v_width()];
        let placements = [plan.placement(), plan.keys(), plan.keys()];
        for (((name, shard), width), placement) in
            ["queries", "keys", "values"].into_iter().zip(qkv).zip(widths).zip(placements)
        {
            placement.expect_same("the plan", shard.placement(), name)?;
            expect_features(name, width, shard.view().cols())?;
        }
        Ok(qkv.map(|shard| shard.view()))
    }
}

fn digest_of(parts: impl Hash) -> u64 {
    // A hasher with fixed keys: ranks that run the same program agree.
    let mut hasher = DefaultHasher::new();
    parts.hash(&mut hasher);
    hasher.finish()
}

pub(super) fn expect_features(what: &'static str, expected: usize, found: usize) -> Result<()> {
    match expected == found {
        true => Ok(()),
        false => Err(LayoutError::Features { what, expected, found }.into()),
    }
}

pub(super) fn expect_plan(forward: u64, plan: &RankPlan) -> Result<()> {
    match plan.hash() == forward {
        true => Ok(()),
        false => Err(PlanError::OtherPlan { forward, backward: plan.hash() }.into()),
    }
}
