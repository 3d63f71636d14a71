// What the failing cases do with a handler, done right.

use std::sync::Arc;

use context_parallel::comm::threads::ThreadComm;
use context_parallel::degree::Fixed;
use context_parallel::error::Result;
use context_parallel::handler::{CpHandler, LocalBatch, Partial, Replicated, Rotary};
use context_parallel::layout::Thd;
use context_parallel::model::{GptModel, Master};
use context_parallel::ops::attention::AttentionShape;
use context_parallel::order::{Full, Placement, Shard, Zigzag};
use context_parallel::attention::AttentionPlan;
use context_parallel::kernel::Flash;
use context_parallel::strategy::Ring;
use context_parallel::tensor::Cpu;

type Handler = CpHandler<Ring, Thd, ThreadComm>;

fn move_rows(
    handler: &Handler,
    device: &Cpu,
    full: &Full<Thd, f32>,
    place: &Arc<Placement<Zigzag, Thd>>,
) -> Result<()> {
    let shard = handler.dispatch(device, place, full)?;
    let rolled = handler.roll(device, &shard, 1, -100.0)?;
    let whole = handler.combine(device, &rolled)?;
    handler.combine_adjoint::<f32, _>(device, place, Replicated(&whole))?;
    handler.combine_adjoint::<f32, _>(device, place, Partial(&whole))?;
    Ok(())
}

fn attend(
    handler: &Handler,
    device: &Cpu,
    plan: &AttentionPlan<Zigzag, Thd>,
    rotary: &Rotary<Ring, Thd, Cpu>,
    shape: &AttentionShape,
    [q, k, v]: [&mut Shard<Zigzag, Thd, f32>; 3],
) -> Result<()> {
    handler.apply_rotary_pos_emb(device, rotary, q, 8)?;
    handler.core_attn::<Flash, Cpu>(device, plan, shape, q, k, v)?;
    Ok(())
}

fn with_mask(batch: LocalBatch<Ring, Thd>, mask: Shard<Zigzag, Thd, u8>) -> LocalBatch<Ring, Thd> {
    LocalBatch { attention_mask: Some(mask), ..batch }
}

fn compute(
    model: &mut GptModel<Ring, Thd>,
    handler: &Handler,
    tokens: &Shard<Zigzag, Thd, i64>,
    weights: &Master<Cpu>,
) -> Result<()> {
    model.update(weights);
    model.forward(handler, tokens)?;
    Ok(())
}

fn start(comm: ThreadComm) -> Result<CpHandler<Ring<Fixed<4>>, Thd, ThreadComm>> {
    CpHandler::new(Ring::<Fixed<4>>::default(), comm)
}

fn main() {}
