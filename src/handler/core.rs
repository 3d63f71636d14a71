//! What a handler knows and does without communication, whatever its strategy and layout: compiled once.

use std::any::Any;
use std::sync::Arc;

use crate::error::{LayoutError, PlacementError, PlanError, Result, SupportError};
use crate::handler::cache::Recent;
use crate::layout::{Batch, LayoutKind};
use crate::mask::Mask;
use crate::ops::attention::AttentionShape;
use crate::ops::rows::Rows;
use crate::order::{Deal, DynPlacement, DynShard};
use crate::plan::Wire;
use crate::strategy::DynStrategy;
use crate::strategy::executor::RankPlan;
use crate::tensor::{Device, ElemMatrix, Element, Matrix};

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

/// One rank's handler without its types and its communicator: see [`CpHandler`](crate::handler::CpHandler).
pub struct HandlerCore {
    strategy: Arc<dyn DynStrategy>,
    layout: LayoutKind,
    rank: usize,
    ranks: usize,
    checks: bool,
    wire: Wire,
    placements: Recent<Placed, Arc<DynPlacement>>,
    /// By hash of the placement.
    plans: Recent<(u64, Mask, Wire), Arc<RankPlan>>,
    /// By hash of the placement and content key; the value is whatever the key's owner keeps.
    other: Recent<(u64, u64), Arc<dyn Any + Send + Sync>>,
}

impl HandlerCore {
    /// A handler for rank `rank` of `ranks`.
    ///
    /// # Errors
    /// If the strategy's degree is not the number of ranks, or its type and its grid differ over who exchanges heads.
    pub(super) fn new(strategy: Arc<dyn DynStrategy>, layout: LayoutKind, rank: usize, ranks: usize) -> Result<Self> {
        let degree = strategy.degree();
        if degree == 0 {
            return Err(PlacementError::ZeroDegree.into());
        }
        if degree != ranks {
            return Err(PlacementError::Degree { strategy: strategy.name(), degree, size: ranks }.into());
        }
        let inner = strategy.grid().inner;
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
            checks: true,
            wire: Wire::default(),
            placements: Recent::new(),
            plans: Recent::new(),
            other: Recent::new(),
        })
    }

    pub(super) fn set_plan_checks(&mut self, checks: bool) {
        self.checks = checks;
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

    /// [`CpHandler::plan`](crate::handler::CpHandler::plan).
    ///
    /// # Errors
    /// If the mask does not fit the batch, or the plans of all ranks do not fit together.
    pub fn plan(&self, placement: &Arc<DynPlacement>, mask: &Mask) -> Result<Arc<RankPlan>> {
        self.plans.get_or_make((placement.hash(), mask.clone(), self.wire), |_| {
            // One rank's rehearsal speaks for all; where it fails, the others hear of it.
            if self.checks && self.rank == 0 && self.ranks > 1 {
                RankPlan::check(&*self.strategy, placement, mask)?;
            }
            Ok(Arc::new(RankPlan::new(&*self.strategy, placement, mask)?.with_wire(self.wire)))
        })
    }

    /// Something else that belongs to a placement, by a key that says all that it depends on.
    pub(super) fn other<V: Any + Send + Sync>(
        &self,
        placement: &DynPlacement,
        key: u64,
        make: impl FnOnce() -> Result<V>,
    ) -> Result<Arc<V>> {
        let entry = self.other.get_or_make((placement.hash(), key), |_| {
            let value: Arc<dyn Any + Send + Sync> = Arc::new(make()?);
            Ok(value)
        })?;
        // Another type under the same key can only be a clash of hashes; the entry is then no use, not wrong.
        entry.downcast::<V>().map_err(|_| PlacementError::CacheClash.into())
    }

    /// This rank's rows of whole sequences that every rank has, in the order of the layout: a copy, without
    /// communication.
    ///
    /// # Errors
    /// [`LayoutError::Rows`] for another number of rows than the batch has tokens.
    pub fn dispatch<T: Element, D: Rows>(
        &self,
        device: &D,
        placement: &Arc<DynPlacement>,
        full: &Matrix<T, D::Storage>,
    ) -> Result<DynShard<T, D::Storage>> {
        let (expected, found) = (placement.batch().tokens(), full.rows());
        if expected != found {
            return Err(LayoutError::Rows { expected, found }.into());
        }
        let mut matrix = device.matrix(placement.rows(), full.cols());
        device.gather_rows(full, &placement.full_rows_of(placement.rank()), &mut matrix, 0);
        DynShard::new(matrix, placement.clone())
    }

    /// Refuses operands of another placement than the plan's, or of other widths than the shape's.
    pub(super) fn operands<'a, D: Device>(
        &self,
        plan: &RankPlan,
        shape: &AttentionShape,
        qkv: [&'a DynShard<D::Elem, D::Storage>; 3],
    ) -> Result<[&'a ElemMatrix<D>; 3]> {
        if shape.kv_heads == 0 || !shape.q_heads.is_multiple_of(shape.kv_heads) {
            let (q_heads, kv_heads) = (shape.q_heads, shape.kv_heads);
            return Err(SupportError::Numbers(format!(
                "{q_heads} query heads do not share {kv_heads} key/value heads evenly: use a multiple"
            ))
            .into());
        }
        self.strategy.heads_per_rank(shape.q_heads)?;
        let widths = [shape.q_width(), shape.k_width(), shape.v_width()];
        for ((name, shard), width) in ["queries", "keys", "values"].into_iter().zip(qkv).zip(widths) {
            plan.placement().expect_same("the plan", shard.placement(), name)?;
            expect_features(name, width, shard.matrix().cols())?;
        }
        Ok(qkv.map(DynShard::matrix))
    }
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
