//! Plans that ranks make together: what one rank solves, it tells those that need it.

use std::sync::Arc;

use crate::attention::{AttentionPlan, RankPlan, tell};
use crate::comm::Communicator;
use crate::error::Result;
use crate::handler::{CpHandler, HandlerRef, UntypedHandler};
use crate::layout::Layout;
use crate::mask::Mask;
use crate::ops::Attends;
use crate::order::{DynPlacement, Placement};
use crate::strategy::CpStrategy;

impl<D: Attends> HandlerRef<'_, D> {
    /// [`CpHandler::plan`](crate::handler::CpHandler::plan).
    ///
    /// # Errors
    /// Those of `CpHandler::plan`.
    pub fn plan(self, placement: &Arc<DynPlacement>, mask: &Mask) -> Result<Arc<RankPlan>> {
        let tell = |digest, tells: &_, hears: &_| tell(self.device, self.comm, digest, tells, hears);
        let plan = self.core.plan(placement, mask, &tell)?;
        plan.prepare(self.device);
        Ok(plan)
    }

    /// [`CpHandler::plan_between`](crate::handler::CpHandler::plan_between).
    ///
    /// # Errors
    /// Those of `CpHandler::plan_between`.
    pub fn plan_between(
        self,
        queries: &Arc<DynPlacement>,
        keys: &Arc<DynPlacement>,
        mask: &Mask,
    ) -> Result<Arc<RankPlan>> {
        let tell = |digest, tells: &_, hears: &_| tell(self.device, self.comm, digest, tells, hears);
        let plan = self.core.plan_between(queries, keys, mask, &tell)?;
        plan.prepare(self.device);
        Ok(plan)
    }
}

impl<D: Attends> UntypedHandler<D> {
    /// [`CpHandler::plan`](crate::handler::CpHandler::plan).
    ///
    /// # Errors
    /// Those of `CpHandler::plan`.
    pub fn plan(&self, placement: &Arc<DynPlacement>, mask: &Mask) -> Result<Arc<RankPlan>> {
        self.by_ref().plan(placement, mask)
    }

    /// [`CpHandler::plan_between`](crate::handler::CpHandler::plan_between).
    ///
    /// # Errors
    /// Those of `CpHandler::plan_between`.
    pub fn plan_between(
        &self,
        queries: &Arc<DynPlacement>,
        keys: &Arc<DynPlacement>,
        mask: &Mask,
    ) -> Result<Arc<RankPlan>> {
        self.by_ref().plan_between(queries, keys, mask)
    }
}

impl<H: CpStrategy, L: Layout, D: Attends, C: Communicator<D::Storage>> CpHandler<H, L, D, C> {
    /// How this rank attends under `mask`, prepared for the handler's device: one plan per mask serves all layers with
    /// that mask. Every message of attention carries its hash, so that ranks with other plans are told.
    ///
    /// Under a strategy that fetches in stages (`magi`, `dynamic`) a rank solves its own stages and tells them to the
    /// ranks that it fetches from, in a message of a few numbers: every rank must make the plan, and plans in the same
    /// order. The latest plans are kept, and one that is kept is found again without a message; ranks that made the
    /// same plans keep the same. Where one rank makes a plan that others do not make, or have kept, the error is that
    /// of any exchange in which not all take part: no wrong number, but a deadline, or a rank named that has finished,
    /// or sent something else. Under other strategies no message is sent.
    ///
    /// # Errors
    /// If the placement is not this handler's, or the mask does not fit the batch; failures of other ranks.
    pub fn plan(
        &self,
        placement: &Arc<Placement<H::Order, L>>,
        mask: &Mask,
    ) -> Result<Arc<AttentionPlan<H::Order, L>>> {
        Ok(Arc::new(AttentionPlan::typed([placement, placement], self.by_ref().plan(placement.data(), mask)?)))
    }

    /// How queries attend under `mask` where keys are placed apart from them: new tokens, and what ranks hold of those
    /// before them. Queries and keys are batches of as many documents; each document's last valid query is at the
    /// position of its last valid key ([`Mask::lower_onto`]). Attention takes queries of the one placement, keys and
    /// values of the other. Not kept: every call makes a plan, with every rank as [`CpHandler::plan`] says.
    ///
    /// # Errors
    /// If a placement is not this handler's, the mask does not fit the batches, or the ranks exchange heads; failures
    /// of other ranks.
    pub fn plan_between(
        &self,
        queries: &Arc<Placement<H::Order, L>>,
        keys: &Arc<Placement<H::Order, L>>,
        mask: &Mask,
    ) -> Result<Arc<AttentionPlan<H::Order, L>>> {
        let rank_plan = self.by_ref().plan_between(queries.data(), keys.data(), mask)?;
        Ok(Arc::new(AttentionPlan::typed([queries, keys], rank_plan)))
    }
}
