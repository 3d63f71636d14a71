//! One block over a shard: what [`Layer`] computes, with the handler's rotation and attention in between.

use crate::comm::Communicator;
use crate::error::Result;
use crate::handler::{CoreAttention, CpHandler, ElemShard, Rotary};
use crate::layout::Layout;
use crate::model::gpt::GptModel;
use crate::model::layer::{Layer, Mixed, Projected};
use crate::model::parameters::{Gradients, LayerIds};
use crate::ops::Ops;
use crate::order::Shard;
use crate::strategy::executor::AttentionPlan;
use crate::strategy::{CpStrategy, Kernel, Supports};
use crate::tensor::{Device, ElemMatrix};

/// A block's input, and its inside unless that is recomputed.
pub(super) struct BlockActivations<H: CpStrategy, L: Layout, K: Kernel, D: Device> {
    x: ElemMatrix<D>,
    inside: Option<BlockInside<H, L, K, D>>,
}

struct BlockInside<H: CpStrategy, L: Layout, K: Kernel, D: Device> {
    projected: Projected<D>,
    /// Queries, keys and values, rotated.
    qkv: [ElemShard<H, L, D>; 3],
    core: CoreAttention<D, K>,
    attended: ElemShard<H, L, D>,
    mixed: Mixed<D>,
}

impl<H, L, K, D, A> GptModel<H, L, K, D, A>
where
    H: Supports<L, K>,
    L: Layout,
    K: Kernel,
    D: Ops,
{
    /// The output of a block, and what its backward needs.
    #[allow(clippy::type_complexity)]
    pub(super) fn block<C: Communicator<D::Storage>>(
        &self,
        ids: &LayerIds,
        handler: &CpHandler<H, L, C>,
        plan: &AttentionPlan<H::Order, L>,
        rotary: &Rotary<H, L, D>,
        x: ElemMatrix<D>,
    ) -> Result<(ElemMatrix<D>, BlockActivations<H, L, K, D>)> {
        let (y, inside) = self.inside(ids, handler, plan, rotary, &x)?;
        Ok((y, BlockActivations { x, inside: (!self.recompute).then_some(inside) }))
    }

    /// From the gradient of the output, `dx`, to that of the input, in place; adds the weights' to `gradients`.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn block_backward<C: Communicator<D::Storage>>(
        &self,
        ids: &LayerIds,
        handler: &CpHandler<H, L, C>,
        plan: &AttentionPlan<H::Order, L>,
        rotary: &Rotary<H, L, D>,
        BlockActivations { x, inside }: BlockActivations<H, L, K, D>,
        dx: &mut ElemMatrix<D>,
        gradients: &mut Gradients<D>,
    ) -> Result<()> {
        let inside = match inside {
            Some(inside) => inside,
            None => self.inside(ids, handler, plan, rotary, &x)?.1,
        };
        let (device, layer) = (self.device(), self.layer(ids));
        let dattended = layer.mix_backward(inside.attended.matrix(), &inside.mixed, dx, gradients);
        let dattended = Shard::new(dattended, plan.placement().clone())?;
        let [q, k, v] = &inside.qkv;
        let [mut dq, mut dk, dv] = handler.core_attn_backward(device, plan, q, k, v, &inside.core, &dattended)?;
        handler.apply_rotary_pos_emb_backward(device, rotary, &mut dq, self.shape.q_heads)?;
        handler.apply_rotary_pos_emb_backward(device, rotary, &mut dk, self.shape.kv_heads)?;
        let dqkv = [dq.into_matrix(), dk.into_matrix(), dv.into_matrix()];
        layer.project_backward(&x, &inside.projected, dqkv, dx, gradients);
        Ok(())
    }

    #[allow(clippy::type_complexity)]
    fn inside<C: Communicator<D::Storage>>(
        &self,
        ids: &LayerIds,
        handler: &CpHandler<H, L, C>,
        plan: &AttentionPlan<H::Order, L>,
        rotary: &Rotary<H, L, D>,
        x: &ElemMatrix<D>,
    ) -> Result<(ElemMatrix<D>, BlockInside<H, L, K, D>)> {
        let (device, layer) = (self.device(), self.layer(ids));
        let ([q, k, v], projected) = layer.project(x);
        let shard = |matrix| Shard::new(matrix, plan.placement().clone());
        let (mut q, mut k, v) = (shard(q)?, shard(k)?, shard(v)?);
        handler.apply_rotary_pos_emb(device, rotary, &mut q, self.shape.q_heads)?;
        handler.apply_rotary_pos_emb(device, rotary, &mut k, self.shape.kv_heads)?;
        let (attended, core) = handler.core_attn::<K, D>(device, plan, &self.shape, &q, &k, &v)?;
        let (y, mixed) = layer.mix(x, attended.matrix());
        Ok((y, BlockInside { projected, qkv: [q, k, v], core, attended, mixed }))
    }

    fn layer<'a>(&'a self, ids: &'a LayerIds) -> Layer<'a, D> {
        Layer { device: self.device(), config: self.config(), ids, parameters: self.parameters() }
    }
}
