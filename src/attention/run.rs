//! The executor: walks through the programs of any strategy, forward and backward.

use crate::attention::plan::RankPlan;
use crate::attention::slots::{Packed, Walk, unsound};
use crate::attention::swap::Swapped;
use crate::comm::Communicator;
use crate::error::Result;
use crate::kernel::TileOperands;
use crate::kernel::{DynKernel, Saved, TileGradients};
use crate::ops::Ops;
use crate::ops::attention::AttentionShape;
use crate::plan::Step;
use crate::tensor::{AccMatrix, ElemMatrix};

/// What the backward pass needs of a forward pass: partial results are kept in the accumulation type.
#[derive(Clone, Debug)]
pub struct AttentionSaved<D: Ops> {
    kernel: &'static dyn DynKernel<D>,
    out: AccMatrix<D>,
    lse: AccMatrix<D>,
    /// Of each tile, if the kernel saves anything.
    tiles: Vec<Saved>,
    /// Queries, keys and values after a head exchange, so that they need not travel again.
    swapped: Option<Swapped<D>>,
}

impl<D: Ops> AttentionSaved<D> {
    /// Log-sum-exp of each valid row and head, `[valid rows, q_heads]`; `-inf` where nothing is attended. Zero for
    /// kernels that do not compute it. Under a head exchange, of the group's rows and this rank's heads.
    pub fn lse(&self) -> &AccMatrix<D> {
        &self.lse
    }
}

/// Attention of this rank's queries: walks through the plan's program, computing tiles with `kernel`.
/// `q [rows, q_width]`, `k [rows, k_width]`, `v [rows, v_width]`; returns the output `[rows, out_width]`, 0 for padding.
///
/// # Errors
/// Failures of other ranks, and programs that do not fit together.
pub fn forward<D: Ops>(
    device: &D,
    comm: &dyn Communicator<D::Storage>,
    kernel: &'static dyn DynKernel<D>,
    plan: &RankPlan,
    shape: &AttentionShape,
    [q, k, v]: [&ElemMatrix<D>; 3],
) -> Result<(ElemMatrix<D>, AttentionSaved<D>)> {
    plan.expect(kernel)?;
    let whole = shape;
    let shape = &plan.shape(whole)?;
    let swapped = match &plan.swap {
        Some(swap) => Some(swap.bring(device, comm, plan, whole, [q, k, v])?),
        None => None,
    };
    let (queries, kv) = match &swapped {
        Some(Swapped { q, kv }) => (Packed::Original(q), Packed::Original(kv)),
        None => (packed(device, plan, q), Packed::Copy(packed_kv(device, plan, shape, k, v))),
    };
    let rows = queries.matrix().rows();
    let mut walk = Walk::new(device, comm, plan, &plan.forward, kv, queries.matrix(), shape);
    let result = || (device.matrix(rows, shape.out_width()), device.zero_matrix(rows, shape.q_heads));
    let (mut out, mut lse): (AccMatrix<D>, AccMatrix<D>) = result();
    let mut part: Option<(AccMatrix<D>, AccMatrix<D>)> = None;
    let (mut tiles, mut computed): (Vec<Saved>, usize) = (Vec::new(), 0);
    for step in &plan.forward.steps {
        match step {
            Step::Tile { slot, pieces } => {
                let kv = walk.key_slot(*slot);
                let tile = TileOperands { shape, q: queries.matrix(), kv, pieces, blocks: &plan.blocks };
                let (out, lse) = match computed == 0 {
                    true => (&mut out, &mut lse),
                    false => {
                        let (out, lse) = part.get_or_insert_with(result);
                        (out, lse)
                    }
                };
                tiles.extend(kernel.forward(device, tile, out, lse));
                computed += 1;
            }
            Step::Merge => {
                let (part_out, part_lse) = part.as_ref().ok_or_else(|| unsound("a merge before a second tile"))?;
                kernel.merge(device, shape, &mut out, &mut lse, (part_out, part_lse))?;
            }
            Step::Serve { queries, slot, pieces } => {
                let rows = walk.asked(*queries)?.rows();
                let (mut out, mut lse) =
                    (device.matrix(rows, shape.out_width()), device.zero_matrix(rows, shape.q_heads));
                walk.key_slot(*slot);
                let (q, kv) = (walk.asked(*queries)?, walk.held(*slot)?);
                let tile = TileOperands { shape, q, kv, pieces, blocks: &[] };
                kernel.forward(device, tile, &mut out, &mut lse);
                walk.answer(*queries, &out, &lse);
            }
            step => {
                walk.step(step)?;
                for (part_out, part_lse) in walk.arrived() {
                    kernel.merge(device, shape, &mut out, &mut lse, (&part_out, &part_lse))?;
                }
            }
        }
    }
    drop(walk);
    drop(queries);
    let mut elem = device.to_elem_matrix(&out);
    if let Some(swap) = &plan.swap {
        elem = swap.give_back(device, comm, plan, whole, whole.v_dim, &elem)?;
    }
    let full = unpacked(device, plan, elem);
    Ok((full, AttentionSaved { kernel, out, lse, tiles, swapped }))
}

/// Gradients of queries, keys and values from that of the output. Operands as in [`forward`].
///
/// # Errors
/// Failures of other ranks, and programs that do not fit together.
pub fn backward<D: Ops>(
    device: &D,
    comm: &dyn Communicator<D::Storage>,
    plan: &RankPlan,
    shape: &AttentionShape,
    [q, k, v]: [&ElemMatrix<D>; 3],
    saved: &AttentionSaved<D>,
    dout: &ElemMatrix<D>,
) -> Result<[ElemMatrix<D>; 3]> {
    let (whole, kernel) = (shape, saved.kernel);
    let shape = &plan.shape(whole)?;
    let dout = match &plan.swap {
        Some(swap) => Packed::Copy(swap.bring_output_gradient(device, comm, plan, whole, dout)?),
        None => packed(device, plan, dout),
    };
    let (queries, kv) = match &saved.swapped {
        Some(Swapped { q, kv }) => (Packed::Original(q), Packed::Original(kv)),
        None => (packed(device, plan, q), Packed::Copy(packed_kv(device, plan, shape, k, v))),
    };
    let delta = device.attention_delta(shape, &saved.out, dout.matrix());
    let mut dq: AccMatrix<D> = device.zero_matrix(queries.matrix().rows(), shape.q_width());
    let mut walk = Walk::new(device, comm, plan, &plan.backward, kv, queries.matrix(), shape);
    let mut tiles = saved.tiles.iter();
    if kernel.saves() && !plan.forward.tiles().eq(plan.backward.tiles()) {
        return Err(unsound("other tiles backward than forward, for a kernel that saves what it needs of each").into());
    }
    for step in &plan.backward.steps {
        match step {
            Step::Tile { slot, pieces } => {
                let mut dkv = walk.take_gradients(*slot);
                let kv = walk.key_slot(*slot);
                let tile = TileOperands { shape, q: queries.matrix(), kv, pieces, blocks: &plan.blocks };
                let (out, lse, dout) = (&saved.out, &saved.lse, dout.matrix());
                let gradients = TileGradients { out, lse, delta: &delta, dout, dq: &mut dq, dkv: &mut dkv };
                kernel.backward(device, tile, tiles.next(), gradients)?;
                walk.put_gradients(*slot, dkv);
            }
            Step::Merge | Step::Serve { .. } => {}
            step => walk.step(step)?,
        }
    }
    let mut home = walk.take_gradients(plan.backward.home);
    let mut dq = device.to_elem_matrix(&dq);
    if let Some(swap) = &plan.swap {
        dq = swap.give_back(device, comm, plan, whole, whole.qk_dim, &dq)?;
        home = swap.return_gradients(device, comm, plan, whole, &home)?;
    }
    let home = device.to_elem_matrix(&home);
    let spread = |columns: usize, first: usize| {
        let mut whole: ElemMatrix<D> = blank(device, plan.key_rows.len(), plan.keys.rows(), columns);
        device.scatter_block(&home, first..first + columns, &plan.key_rows.to_vec(), &mut whole, 0);
        whole
    };
    let (dk, dv) = (spread(whole.k_width(), 0), spread(whole.v_width(), whole.k_width()));
    Ok([unpacked(device, plan, dq), dk, dv])
}

fn packed<'a, D: Ops>(device: &D, plan: &RankPlan, x: &'a ElemMatrix<D>) -> Packed<'a, D> {
    if plan.in_place {
        return Packed::Original(x);
    }
    let mut copy = device.matrix(plan.rows.len(), x.cols());
    device.gather_rows(x, &plan.rows.to_vec(), &mut copy, 0);
    Packed::Copy(copy)
}

fn packed_kv<D: Ops>(
    device: &D,
    plan: &RankPlan,
    shape: &AttentionShape,
    k: &ElemMatrix<D>,
    v: &ElemMatrix<D>,
) -> ElemMatrix<D> {
    let rows = plan.key_rows.to_vec();
    let mut kv = device.matrix(rows.len(), shape.kv_width());
    device.gather_rows(k, &rows, &mut kv, 0);
    device.gather_rows(v, &rows, &mut kv, shape.k_width());
    kv
}

/// A matrix of all rows that [`unpacked`] rows are written into: zero where there is padding.
fn blank<D: Ops>(device: &D, valid: usize, stored: usize, cols: usize) -> ElemMatrix<D> {
    match valid == stored {
        true => device.matrix(stored, cols),
        false => device.zero_matrix(stored, cols),
    }
}

fn unpacked<D: Ops>(device: &D, plan: &RankPlan, x: ElemMatrix<D>) -> ElemMatrix<D> {
    if plan.in_place {
        return x;
    }
    let mut whole = blank(device, plan.rows.len(), plan.stored, x.cols());
    device.scatter_rows(&x, &plan.rows.to_vec(), &mut whole, 0);
    whole
}
