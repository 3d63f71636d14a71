// What the failing cases do with a handler, done right.

use std::sync::Arc;

use context_parallel::comm::threads::ThreadComm;
use context_parallel::degree::Fixed;
use context_parallel::error::Result;
use context_parallel::handler::{CpHandler, LocalBatch, Partial, Replicated, Rotary};
use context_parallel::layout::Thd;
use context_parallel::model::{GptModel, Master, Mirrored};
use context_parallel::ops::attention::AttentionShape;
use context_parallel::order::{Full, Placement, Shard, Zigzag};
use context_parallel::attention::AttentionPlan;
use context_parallel::strategy::Ring;
use context_parallel::tensor::Cpu;

type Handler = CpHandler<Ring, Thd>;

fn move_rows(
    handler: &Handler,
    full: &Full<Thd, f32>,
    place: &Arc<Placement<Zigzag, Thd>>,
) -> Result<()> {
    let shard = handler.dispatch(place, full)?;
    let rolled = handler.roll(&shard, 1, -100.0)?;
    let whole = handler.combine(&rolled)?;
    handler.combine_adjoint::<f32>(place, Replicated(&whole))?;
    handler.combine_adjoint::<f32>(place, Partial(&whole))?;
    Ok(())
}

fn attend(
    handler: &Handler,
    plan: &AttentionPlan<Zigzag, Thd>,
    rotary: &Rotary<Ring, Thd, Cpu>,
    shape: &AttentionShape,
    [mut q, k, v]: [Shard<Zigzag, Thd, f32>; 3],
) -> Result<()> {
    handler.apply_rotary_pos_emb(rotary, &mut q, 8)?;
    let (out, attended) = handler.attend(plan, shape, q, k, v)?;
    attended.backward(handler, &out)?;
    Ok(())
}

fn with_mask(batch: LocalBatch<Ring, Thd>, mask: Shard<Zigzag, Thd, u8>) -> LocalBatch<Ring, Thd> {
    LocalBatch { attention_mask: Some(mask), ..batch }
}

fn compute(
    model: &mut GptModel<Ring, Thd>,
    handler: &Handler,
    tokens: &Mirrored<Zigzag, Thd, i64>,
    weights: &Master<Cpu>,
) -> Result<()> {
    model.update(weights);
    model.forward(handler, tokens)?;
    Ok(())
}

fn start(comm: ThreadComm) -> Result<CpHandler<Ring<Fixed<4>>, Thd>> {
    CpHandler::new(Ring::<Fixed<4>>::default(), Cpu::default(), comm)
}

fn main() {}
