//! Plans that ranks make together: what one rank solves, it tells those that need it.

use std::sync::Arc;

use crate::attention::{RankPlan, tell};
use crate::error::Result;
use crate::handler::{HandlerRef, UntypedHandler};
use crate::mask::Mask;
use crate::order::DynPlacement;
use crate::tensor::Device;

impl<D: Device> HandlerRef<'_, D> {
    /// [`CpHandler::plan`](crate::handler::CpHandler::plan).
    ///
    /// # Errors
    /// Those of `CpHandler::plan`.
    pub fn plan(self, placement: &Arc<DynPlacement>, mask: &Mask) -> Result<Arc<RankPlan>> {
        self.core.plan(placement, mask, &|digest, tells, hears| tell(self.device, self.comm, digest, tells, hears))
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
        self.core.plan_between(queries, keys, mask, &tell)
    }
}

impl<D: Device> UntypedHandler<D> {
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
