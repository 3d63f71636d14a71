//! One block over a shard: what [`Layer`] computes, with the handler's rotation and attention in between.

use crate::attention::RankPlan;
use crate::error::Result;
use crate::handler::{DynCoreAttention, DynElemShard, HandlerRef, RotaryTable};
use crate::kernel::DynKernel;
use crate::model::layer::{Layer, Mixed};
use crate::model::parameters::Gradients;
use crate::model::projected::Projected;
use crate::ops::Ops;
use crate::ops::attention::AttentionShape;
use crate::order::{DynShard, DynShardMut, DynShardRef};
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
    core: DynCoreAttention<D>,
    attended: DynElemShard<D>,
    mixed: Mixed<D>,
}

/// A block, and how its tokens attend.
pub(super) struct Block<'a, D: Ops> {
    pub layer: Layer<'a, D>,
    pub handler: HandlerRef<'a, D>,
    pub plan: &'a RankPlan,
    pub rotary: &'a RotaryTable<D>,
    pub kernel: &'static dyn DynKernel<D>,
    pub shape: &'a AttentionShape,
    /// Whether the backward pass computes the inside again.
    pub recompute: bool,
}

impl<D: Ops> Block<'_, D> {
    /// The output, and what the backward pass needs.
    pub(super) fn forward(&self, x: ElemMatrix<D>) -> Result<(ElemMatrix<D>, BlockActivations<D>)> {
        let (y, inside) = self.inside(&x)?;
        Ok((y, BlockActivations { x, inside: (!self.recompute).then_some(inside) }))
    }

    /// From the gradient of the output, `dx`, to that of the input, in place; adds the weights' to `gradients`.
    pub(super) fn backward(
        &self,
        BlockActivations { x, inside }: BlockActivations<D>,
        dx: &mut ElemMatrix<D>,
        gradients: &mut Gradients<D>,
    ) -> Result<()> {
        let BlockInside { projected, core, attended, mixed } = match inside {
            Some(inside) => inside,
            None => self.inside(&x)?.1,
        };
        let (layer, plan, shape) = (&self.layer, self.plan, self.shape);
        let placement = plan.placement();
        let dattended = layer.mix_backward(attended.matrix().view(), &mixed, dx, gradients);
        drop((attended, mixed));
        let dattended = DynShard::new(dattended, placement.clone())?;
        let [q, k, v] = projected.qkv().map(|view| DynShardRef::new(view, placement));
        let mut dqkv = layer.projected_gradients(&projected);
        let targets = dqkv.targets();
        self.handler.core_attn_backward_into(plan, [q?, k?, v?], &core, &dattended, targets)?;
        drop((core, dattended));
        self.rotary.rotate_backward(DynShardMut::new(dqkv.queries_mut(), placement)?, shape.q_heads)?;
        self.rotary.rotate_backward(DynShardMut::new(dqkv.keys_mut(), placement)?, shape.kv_heads)?;
        layer.project_backward(x.view(), &projected, dqkv, dx.view_mut(), gradients);
        Ok(())
    }

    fn inside(&self, x: &ElemMatrix<D>) -> Result<(ElemMatrix<D>, BlockInside<D>)> {
        let (layer, plan, shape) = (&self.layer, self.plan, self.shape);
        let placement = plan.placement();
        let mut projected = layer.project(x.view());
        self.rotary.rotate(DynShardMut::new(projected.queries_mut(), placement)?, shape.q_heads)?;
        self.rotary.rotate(DynShardMut::new(projected.keys_mut(), placement)?, shape.kv_heads)?;
        let [q, k, v] = projected.qkv().map(|view| DynShardRef::new(view, placement));
        let (attended, core) = self.handler.core_attn(self.kernel, plan, shape, [q?, k?, v?])?;
        let (y, mixed) = layer.mix(x.view(), attended.matrix().view());
        Ok((y, BlockInside { projected, core, attended, mixed }))
    }
}
