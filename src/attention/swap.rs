//! The head exchange of one rank under a plan: heads of the group's tokens, and back.

use crate::attention::plan::RankPlan;
use crate::attention::prepared::Prepared;
use crate::attention::wire::{AsIs, Encoding};
use crate::comm::{Accounted, Communicator, Message, Operation};
use crate::error::{PlanError, Result};
use crate::heads::{HeadExchange, HeadSwap, SwapHeads};
use crate::ops::Attends;
use crate::ops::attention::AttentionShape;
use crate::tensor::{AccMatrix, Device, ElemMatrix, ElemRef, Element, Matrix};

/// Heads of the group's tokens, as the kernel takes them.
#[derive(Clone, Debug)]
pub(super) struct Swapped<D: Device> {
    pub(super) q: ElemMatrix<D>,
    pub(super) kv: ElemMatrix<D>,
}

impl HeadSwap {
    /// Queries, keys and values of the group's tokens, this rank's heads only.
    pub(super) fn bring<D: Attends>(
        &self,
        device: &D,
        comm: &dyn Communicator<D::Storage>,
        (plan, prepared): (&RankPlan, &Prepared<D>),
        shape: &AttentionShape,
        [q, k, v]: [ElemRef<'_, D>; 3],
    ) -> Result<Swapped<D>> {
        let AttentionShape { qk_dim, v_dim, .. } = *shape;
        let (shares, rows) = (self.shares(shape)?, &prepared.rows);
        let message = |member: usize| {
            let share = &shares[member];
            let mut message: ElemMatrix<D> = device.matrix(plan.rows.len(), share.qkv_width());
            let (keys, values) = (share.shape.q_width(), share.shape.q_width() + share.kv.len() * qk_dim);
            let parts = [(q, share.q_columns(qk_dim)), (k, share.kv_columns(qk_dim)), (v, share.kv_columns(v_dim))];
            for ((from, columns), first) in parts.into_iter().zip([0, keys, values]) {
                let to = message.view_mut().column_range(first..first + columns.len());
                device.gather_rows(from.column_range(columns), rows, to);
            }
            message
        };
        let share = &shares[self.place];
        let width = |_| share.qkv_width();
        let parts = self.trade(
            device,
            comm,
            (plan.operation("attention heads"), AsIs),
            message,
            |member| self.rows[member].len(),
            width,
        )?;
        let queries = share.shape.q_width();
        let mut swapped = Swapped {
            q: device.matrix(self.group_rows(), queries),
            kv: device.matrix(self.group_rows(), share.shape.kv_width()),
        };
        for (part, rows) in parts.iter().zip(&prepared.members) {
            device.scatter_rows(part.view().column_range(0..queries), rows, swapped.q.view_mut());
            for (from, to, columns) in share.blocks() {
                let from = part.view().column_range(queries + from..queries + from + columns);
                device.scatter_rows(from, rows, swapped.kv.view_mut().column_range(to..to + columns));
            }
        }
        Ok(swapped)
    }

    /// Heads of this rank's tokens back from the members: `dim` columns per query head.
    pub(super) fn give_back<D: Attends>(
        &self,
        device: &D,
        comm: &dyn Communicator<D::Storage>,
        (plan, prepared): (&RankPlan, &Prepared<D>),
        shape: &AttentionShape,
        dim: usize,
        x: ElemRef<'_, D>,
    ) -> Result<ElemMatrix<D>> {
        let (shares, own) = (self.shares(shape)?, self.rows[self.place].len());
        let message = |member: usize| {
            let mut message = device.matrix(self.rows[member].len(), x.cols());
            device.gather_rows(x, &prepared.members[member], message.view_mut());
            message
        };
        let columns = |member: usize| shares[member].q_columns(dim);
        let parts = self.trade(
            device,
            comm,
            (plan.operation("attention heads"), AsIs),
            message,
            |_| own,
            |member| columns(member).len(),
        )?;
        let mut whole = device.matrix(own, shape.q_heads * dim);
        for (member, part) in parts.iter().enumerate() {
            device.copy(part.view(), whole.view_mut().column_range(columns(member)));
        }
        Ok(whole)
    }

    /// The gradient of the output, this rank's heads of the group's tokens.
    pub(super) fn bring_output_gradient<D: Attends>(
        &self,
        device: &D,
        comm: &dyn Communicator<D::Storage>,
        (plan, prepared): (&RankPlan, &Prepared<D>),
        shape: &AttentionShape,
        dout: ElemRef<'_, D>,
    ) -> Result<ElemMatrix<D>> {
        let (shares, rows) = (self.shares(shape)?, &prepared.rows);
        let message = |member: usize| {
            let columns = shares[member].q_columns(shape.v_dim);
            let mut message: ElemMatrix<D> = device.matrix(plan.rows.len(), columns.len());
            device.gather_rows(dout.column_range(columns), rows, message.view_mut());
            message
        };
        let width = shares[self.place].shape.out_width();
        let parts = self.trade(
            device,
            comm,
            (plan.operation("attention heads"), AsIs),
            message,
            |member| self.rows[member].len(),
            |_| width,
        )?;
        let mut whole = device.matrix(self.group_rows(), width);
        for (part, rows) in parts.iter().zip(&prepared.members) {
            device.scatter_rows(part.view(), rows, whole.view_mut());
        }
        Ok(whole)
    }

    /// The gradient of this rank's keys and values from the members that used them, summed in their order.
    pub(super) fn return_gradients<D: Attends>(
        &self,
        device: &D,
        comm: &dyn Communicator<D::Storage>,
        (plan, prepared): (&RankPlan, &Prepared<D>),
        shape: &AttentionShape,
        dkv: &AccMatrix<D>,
    ) -> Result<AccMatrix<D>> {
        let (shares, own) = (self.shares(shape)?, self.rows[self.place].len());
        let share = &shares[self.place];
        // A head that is there more than once has its gradient in parts.
        let mut once: AccMatrix<D> = device.zero_matrix(dkv.rows(), share.kv_width());
        for (to, from, columns) in share.blocks() {
            let from = dkv.view().column_range(from..from + columns);
            device.add(once.view_mut().column_range(to..to + columns), from);
        }
        let message = |member: usize| {
            let mut message = device.matrix(self.rows[member].len(), once.cols());
            device.gather_rows(once.view(), &prepared.members[member], message.view_mut());
            message
        };
        let width = |member: usize| shares[member].kv_width();
        let parts =
            self.trade(device, comm, (plan.operation("attention head gradients"), plan.wire), message, |_| own, width)?;
        let mut sum: AccMatrix<D> = device.zero_matrix(own, shape.kv_width());
        for (member, part) in parts.iter().enumerate() {
            let share = &shares[member];
            let (keys, values) = (share.kv_columns(shape.qk_dim), share.kv_columns(shape.v_dim));
            let values = shape.k_width() + values.start..shape.k_width() + values.end;
            for (from, to) in [(0..keys.len(), keys.clone()), (keys.len()..part.cols(), values)] {
                let to = sum.view_mut().column_range(to);
                device.add(to, part.view().column_range(from));
            }
        }
        Ok(sum)
    }

    /// Sends each member its message and gives theirs, by member; this rank's own is handed over as it is.
    fn trade<T: Element, D: Device>(
        &self,
        device: &D,
        comm: &dyn Communicator<D::Storage>,
        (operation, encoding): (Operation, impl Encoding<T, D>),
        message: impl Fn(usize) -> Matrix<T, D::Storage>,
        rows: impl Fn(usize) -> usize,
        cols: impl Fn(usize) -> usize,
    ) -> Result<Vec<Matrix<T, D::Storage>>> {
        let others = || (0..self.members.len()).filter(|&member| member != self.place);
        let filled = |member: &usize| rows(*member) > 0;
        let sends = others().map(|member| (self.members[member], message(member)));
        let sends = sends.filter(|(_, message)| message.rows() > 0);
        let sends = sends.map(|(to, message)| Message::new(to, encoding.encode(device, message))).collect();
        let expect = |member: usize| encoding.expect(self.members[member], rows(member) * cols(member));
        let receives = others().filter(filled).map(expect).collect();
        let pending = Accounted::post(device, comm, operation, sends, receives)?;
        let mut own = Some(message(self.place));
        let mut parcels = pending.wait()?.parcels.into_iter();
        let mut parts = Vec::with_capacity(self.members.len());
        for member in 0..self.members.len() {
            parts.push(match (member == self.place, rows(member)) {
                (true, _) => own.take().unwrap_or_else(|| message(member)),
                (false, 0) => device.matrix(0, cols(member)),
                (false, rows) => {
                    let from = self.members[member];
                    let what = || format!("rank {from} sent no heads");
                    let missing = || PlanError::Unsound { strategy: <SwapHeads>::NAME, what: what() };
                    let parcel = parcels.next().ok_or_else(missing)?;
                    encoding.decode(device, parcel, (from, operation.name), (rows, cols(member)))?
                }
            });
        }
        Ok(parts)
    }
}
