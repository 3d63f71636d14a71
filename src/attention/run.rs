//! The executor: walks through the programs of any strategy, forward and backward.

use crate::attention::gradients::QkvGradients;
use crate::attention::plan::RankPlan;
use crate::attention::prepared::{Prepared, Ready};
use crate::attention::slots::{Gathered, Slots, unsound};
use crate::attention::swap::Swapped;
use crate::attention::walk::Walk;
use crate::comm::Communicator;
use crate::error::Result;
use crate::kernel::{DynKernel, Saved, TileGradients, TileOperands};
use crate::ops::Attends;
use crate::ops::attention::AttentionShape;
use crate::plan::Step;
use crate::tensor::{AccMatrix, ElemMatrix, ElemMut, ElemRef};

/// What the backward pass needs of a forward pass: partial results are kept in the accumulation type.
#[derive(Clone, Debug)]
pub struct AttentionSaved<D: Attends> {
    kernel: &'static dyn DynKernel<D>,
    out: AccMatrix<D>,
    lse: AccMatrix<D>,
    /// Of each tile, if the kernel saves anything.
    tiles: Vec<Saved>,
    /// Queries, keys and values after a head exchange, so that they need not travel again.
    swapped: Option<Swapped<D>>,
}

impl<D: Attends> AttentionSaved<D> {
    /// Log-sum-exp of each valid row and head, `[valid rows, q_heads]`; `-inf` where nothing is attended. Zero for
    /// kernels that do not compute it. Under a head exchange, of the group's rows and this rank's heads.
    pub fn lse(&self) -> &AccMatrix<D> {
        &self.lse
    }
}

/// Attention of this rank's queries: walks through the plan's program, computing tiles with `kernel`.
/// `q [rows, q_width]`, `k [rows, k_width]`, `v [rows, v_width]`; returns the output `[rows, out_width]`, 0 for
/// padding.
///
/// # Errors
/// Failures of other ranks, and programs that do not fit together.
pub fn forward<D: Attends>(
    device: &D,
    comm: &dyn Communicator<D::Storage>,
    kernel: &'static dyn DynKernel<D>,
    plan: &RankPlan,
    shape: &AttentionShape,
    [q, k, v]: [ElemRef<'_, D>; 3],
) -> Result<(ElemMatrix<D>, AttentionSaved<D>)> {
    plan.expect(kernel)?;
    let whole = shape;
    let shape = &plan.shape(whole)?;
    let prepared = &*plan.prepared(device);
    let swapped = match &plan.swap {
        Some(swap) => Some(swap.bring(device, comm, (plan, prepared), whole, [q, k, v])?),
        None => None,
    };
    let (queries, kv) = match &swapped {
        Some(Swapped { q, kv }) => (Gathered::Original(q.view()), Gathered::Original(kv.view())),
        None => (packed(device, (plan, prepared), q), Gathered::Copy(packed_kv(device, (plan, prepared), shape, k, v))),
    };
    let rows = queries.view().rows();
    let mut walk = Walk::new(comm, Slots::new(device, plan, &plan.forward, kv, queries.view(), shape));
    let result = || (device.matrix(rows, shape.out_width()), device.zero_matrix(rows, shape.q_heads));
    let (mut out, mut lse): (AccMatrix<D>, AccMatrix<D>) = result();
    let mut part: Option<(AccMatrix<D>, AccMatrix<D>)> = None;
    let (mut tiles, mut computed): (Vec<Saved>, usize) = (Vec::new(), 0);
    for (step, ready) in plan.forward.steps.iter().zip(&prepared.forward) {
        match (step, ready) {
            (Step::Tile { slot, .. }, Ready::Tile { cells, tiles: attended }) => {
                let kv = walk.key_slot(*slot);
                let tile = TileOperands { shape, q: queries.view(), kv, cells, tiles: attended };
                let (out, lse) = match computed == 0 {
                    true => (&mut out, &mut lse),
                    false => {
                        let (out, lse) = part.get_or_insert_with(result);
                        (out, lse)
                    }
                };
                tiles.extend(kernel.forward(device, tile, out.view_mut(), lse.view_mut()));
                computed += 1;
            }
            (Step::Merge, _) => {
                let (part_out, part_lse) = part.as_ref().ok_or_else(|| unsound("a merge before a second tile"))?;
                let part = (part_out.view(), part_lse.view());
                kernel.merge(device, shape, out.view_mut(), lse.view_mut(), part)?;
            }
            (Step::Serve { queries, slot, .. }, Ready::Tile { cells, tiles }) => {
                let rows = walk.asked(*queries)?.rows();
                let (mut out, mut lse): (AccMatrix<D>, AccMatrix<D>) =
                    (device.matrix(rows, shape.out_width()), device.zero_matrix(rows, shape.q_heads));
                walk.key_slot(*slot);
                let (q, kv) = (walk.asked(*queries)?, walk.held(*slot)?);
                let tile = TileOperands { shape, q, kv, cells, tiles };
                kernel.forward(device, tile, out.view_mut(), lse.view_mut());
                walk.answer(*queries, &out, &lse);
            }
            _ => {
                walk.step(step, ready)?;
                for (part_out, part_lse) in walk.arrived() {
                    let part = (part_out.view(), part_lse.view());
                    kernel.merge(device, shape, out.view_mut(), lse.view_mut(), part)?;
                }
            }
        }
    }
    drop(walk);
    drop(queries);
    let mut elem = device.to_elem_matrix(out.view());
    if let Some(swap) = &plan.swap {
        elem = swap.give_back(device, comm, (plan, prepared), whole, whole.v_dim, elem.view())?;
    }
    if !plan.in_place {
        let packed = std::mem::replace(&mut elem, device.matrix(plan.stored, whole.out_width()));
        unpack(device, &prepared.rows, packed.view(), elem.view_mut());
    }
    Ok((elem, AttentionSaved { kernel, out, lse, tiles, swapped }))
}

/// Gradients of queries, keys and values from that of the output, written into `gradients`, 0 for padding. Operands as
/// in [`forward`].
///
/// # Errors
/// Failures of other ranks, and programs that do not fit together.
#[allow(clippy::too_many_arguments)]
pub fn backward<D: Attends>(
    device: &D,
    comm: &dyn Communicator<D::Storage>,
    plan: &RankPlan,
    shape: &AttentionShape,
    [q, k, v]: [ElemRef<'_, D>; 3],
    saved: &AttentionSaved<D>,
    dout: ElemRef<'_, D>,
    mut gradients: QkvGradients<'_, D>,
) -> Result<()> {
    let (whole, kernel) = (shape, saved.kernel);
    let shape = &plan.shape(whole)?;
    let prepared = &*plan.prepared(device);
    let dout = match &plan.swap {
        Some(swap) => Gathered::Copy(swap.bring_output_gradient(device, comm, (plan, prepared), whole, dout)?),
        None => packed(device, (plan, prepared), dout),
    };
    let (queries, kv) = match &saved.swapped {
        Some(Swapped { q, kv }) => (Gathered::Original(q.view()), Gathered::Original(kv.view())),
        None => (packed(device, (plan, prepared), q), Gathered::Copy(packed_kv(device, (plan, prepared), shape, k, v))),
    };
    let mut delta = device.matrix(saved.out.rows(), shape.q_heads);
    device.attention_delta(shape, saved.out.view(), dout.view(), delta.view_mut());
    let mut dq: AccMatrix<D> = device.zero_matrix(queries.view().rows(), shape.q_width());
    let mut walk = Walk::new(comm, Slots::new(device, plan, &plan.backward, kv, queries.view(), shape));
    let mut tiles = saved.tiles.iter();
    if kernel.saves() && !plan.forward.tiles().eq(plan.backward.tiles()) {
        return Err(unsound("other tiles backward than forward, for a kernel that saves what it needs of each").into());
    }
    for (step, ready) in plan.backward.steps.iter().zip(&prepared.backward) {
        match (step, ready) {
            (Step::Tile { slot, .. }, Ready::Tile { cells, tiles: attended }) => {
                let mut dkv = walk.take_gradients(*slot);
                let kv = walk.key_slot(*slot);
                let tile = TileOperands { shape, q: queries.view(), kv, cells, tiles: attended };
                let (out, lse, delta) = (saved.out.view(), saved.lse.view(), delta.view());
                let (dq, added) = (dq.view_mut(), dkv.view_mut());
                let gradients = TileGradients { out, lse, delta, dout: dout.view(), dq, dkv: added };
                kernel.backward(device, tile, tiles.next(), gradients)?;
                walk.put_gradients(*slot, dkv);
            }
            (Step::Merge | Step::Serve { .. }, _) => {}
            _ => walk.step(step, ready)?,
        }
    }
    let mut home = walk.take_gradients(plan.backward.home);
    if let (true, None) = (plan.in_place, &plan.swap) {
        device.to_elem(dq.view(), gradients.queries(whole));
    } else {
        let mut dq = device.to_elem_matrix(dq.view());
        if let Some(swap) = &plan.swap {
            dq = swap.give_back(device, comm, (plan, prepared), whole, whole.qk_dim, dq.view())?;
        }
        unpack(device, &prepared.rows, dq.view(), gradients.queries(whole));
    }
    drop(dq);
    if let Some(swap) = &plan.swap {
        home = swap.return_gradients(device, comm, (plan, prepared), whole, &home)?;
    }
    let (keys, values) = (0..whole.k_width(), whole.k_width()..whole.kv_width());
    if plan.key_rows.are_all(plan.keys.rows()) {
        device.to_elem(home.view().column_range(keys), gradients.keys(whole));
        device.to_elem(home.view().column_range(values), gradients.values(whole));
        return Ok(());
    }
    let home = device.to_elem_matrix(home.view());
    unpack(device, &prepared.key_rows, home.view().column_range(keys), gradients.keys(whole));
    unpack(device, &prepared.key_rows, home.view().column_range(values), gradients.values(whole));
    Ok(())
}

/// [`backward`] into matrices of their own.
///
/// # Errors
/// Those of [`backward`].
pub fn backward_apart<D: Attends>(
    device: &D,
    comm: &dyn Communicator<D::Storage>,
    plan: &RankPlan,
    shape: &AttentionShape,
    qkv: [ElemRef<'_, D>; 3],
    saved: &AttentionSaved<D>,
    dout: ElemRef<'_, D>,
) -> Result<[ElemMatrix<D>; 3]> {
    let keys = plan.keys.rows();
    let sizes = [(plan.stored, shape.q_width()), (keys, shape.k_width()), (keys, shape.v_width())];
    let mut apart = sizes.map(|(rows, width)| device.matrix(rows, width));
    let gradients = QkvGradients::Apart(apart.each_mut().map(ElemMatrix::<D>::view_mut));
    backward(device, comm, plan, shape, qkv, saved, dout, gradients)?;
    Ok(apart)
}

fn packed<'a, D: Attends>(
    device: &D,
    (plan, prepared): (&RankPlan, &Prepared<D>),
    x: ElemRef<'a, D>,
) -> Gathered<'a, D> {
    if plan.in_place {
        return Gathered::Original(x);
    }
    let mut copy = device.matrix(plan.rows.len(), x.cols());
    device.gather_rows(x, &prepared.rows, copy.view_mut());
    Gathered::Copy(copy)
}

fn packed_kv<D: Attends>(
    device: &D,
    (plan, prepared): (&RankPlan, &Prepared<D>),
    shape: &AttentionShape,
    k: ElemRef<'_, D>,
    v: ElemRef<'_, D>,
) -> ElemMatrix<D> {
    let rows = &prepared.key_rows;
    let mut kv = device.matrix(plan.key_rows.len(), shape.kv_width());
    device.gather_rows(k, rows, kv.view_mut().column_range(0..shape.k_width()));
    device.gather_rows(v, rows, kv.view_mut().column_range(shape.k_width()..shape.kv_width()));
    kv
}

/// Writes valid rows in their places among all rows, and zero where there is padding.
fn unpack<D: Attends>(device: &D, rows: &D::Rows, x: ElemRef<'_, D>, mut whole: ElemMut<'_, D>) {
    if x.rows() != whole.rows() {
        device.clear(whole.reborrow());
    }
    device.scatter_rows(x, rows, whole);
}
