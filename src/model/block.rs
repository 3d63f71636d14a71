//! One block over a shard: what [`Layer`] computes, with the handler's rotation and attention in between.

use crate::attention::RankPlan;
use crate::error::Result;
use crate::handler::{DynCoreAttention, DynElemShard, HandlerRef, RotaryTable};
use crate::model::layer::{Layer, Mixed, Projected};
use crate::model::network::DynModel;
use crate::model::parameters::{Gradients, LayerIds};
use crate::ops::Ops;
use crate::order::DynShard;
use crate::tensor::ElemMatrix;

/// A block's input, and its inside unless that is recomputed.
#[derive(Clone, Debug)]
pub(super) struct BlockActivations<D: Ops> {
    x: ElemMatrix<D>,
    inside: Option<BlockInside<D>>,
}

#[derive(Clone, Debug)]
struct BlockInside<D: Ops> {
    projected: Projected<D>,
    /// Queries, keys and values, rotated.
    qkv: [DynElemShard<D>; 3],
    core: DynCoreAttention<D>,
    attended: DynElemShard<D>,
    mixed: Mixed<D>,
}

impl<D: Ops> DynModel<D> {
    /// The output of a block, and what its backward needs.
    pub(super) fn block(
        &self,
        ids: &LayerIds,
        handler: HandlerRef<'_, D>,
        plan: &RankPlan,
        rotary: &RotaryTable<D>,
        x: ElemMatrix<D>,
    ) -> Result<(ElemMatrix<D>, BlockActivations<D>)> {
        let (y, inside) = self.inside(ids, handler, plan, rotary, &x)?;
        Ok((y, BlockActivations { x, inside: (!self.recompute).then_some(inside) }))
    }

    /// From the gradient of the output, `dx`, to that of the input, in place; adds the weights' to `gradients`.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn block_backward(
        &self,
        ids: &LayerIds,
        handler: HandlerRef<'_, D>,
        plan: &RankPlan,
        rotary: &RotaryTable<D>,
        BlockActivations { x, inside }: BlockActivations<D>,
        dx: &mut ElemMatrix<D>,
        gradients: &mut Gradients<D>,
    ) -> Result<()> {
        let inside = match inside {
            Some(inside) => inside,
            None => self.inside(ids, handler, plan, rotary, &x)?.1,
        };
        let layer = self.layer(ids);
        let dattended = layer.mix_backward(inside.attended.matrix(), &inside.mixed, dx, gradients);
        let dattended = DynShard::new(dattended, plan.placement().clone())?;
        let qkv = inside.qkv.each_ref();
        let [mut dq, mut dk, dv] = handler.core_attn_backward(plan, qkv, &inside.core, &dattended)?;
        rotary.rotate_backward(&mut dq, self.shape.q_heads)?;
        rotary.rotate_backward(&mut dk, self.shape.kv_heads)?;
        let dqkv = [dq.into_matrix(), dk.into_matrix(), dv.into_matrix()];
        layer.project_backward(&x, &inside.projected, dqkv, dx, gradients);
        Ok(())
    }

    fn inside(
        &self,
        ids: &LayerIds,
        handler: HandlerRef<'_, D>,
        plan: &RankPlan,
        rotary: &RotaryTable<D>,
        x: &ElemMatrix<D>,
    ) -> Result<(ElemMatrix<D>, BlockInside<D>)> {
        let layer = self.layer(ids);
        let ([q, k, v], projected) = layer.project(x);
        let shard = |matrix| DynShard::new(matrix, plan.placement().clone());
        let (mut q, mut k, v) = (shard(q)?, shard(k)?, shard(v)?);
        rotary.rotate(&mut q, self.shape.q_heads)?;
        rotary.rotate(&mut k, self.shape.kv_heads)?;
        let (attended, core) = handler.core_attn(self.kernel, plan, &self.shape, [&q, &k, &v])?;
        let (y, mixed) = layer.mix(x, attended.matrix());
        Ok((y, BlockInside { projected, qkv: [q, k, v], core, attended, mixed }))
    }

    fn layer<'a>(&'a self, ids: &'a LayerIds) -> Layer<'a, D> {
        Layer { device: self.device(), config: self.config(), ids, parameters: self.parameters() }
    }
}
