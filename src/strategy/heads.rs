//! Head exchange: around attention, ranks give up rows for heads and take them back.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;

use crate::comm::{Accounted, Communicator, Operation, Send};
use crate::degree::{Degree, Divides, Runtime};
use crate::error::{PlanError, Result, SupportError};
use crate::ops::Ops;
use crate::ops::attention::AttentionShape;
use crate::strategy::encoding::{AsIs, Encoding};
use crate::strategy::planned::RankPlan;
use crate::tensor::{AccMatrix, Device, ElemMatrix, Element, Matrix};

mod sealed {
    #[diagnostic::on_unimplemented(message = "`{Self}` is not a head exchange: use `KeepHeads` or `SwapHeads`")]
    pub trait Sealed {}
}

/// Whether ranks exchange heads for tokens around attention: [`KeepHeads`] or [`SwapHeads`]. The executor knows these
/// two ways, so there are no others.
pub trait HeadExchange: sealed::Sealed + Copy + fmt::Debug + std::marker::Send + Sync + 'static {
    /// Name in messages.
    const NAME: &'static str;

    /// Whether the ranks of a group exchange heads.
    const SWAPS: bool;

    /// The ranks of a group that exchanges heads, if the type says how many.
    const RANKS: Option<usize> = None;

    /// Query heads that one of `ranks` ranks attends with, or why they cannot be shared out.
    fn heads_per_rank(strategy: &'static str, q_heads: usize, ranks: usize) -> Result<usize, SupportError>;
}

/// Head exchanges that can share out `Q` query heads, as far as the compiler sees. What it does not see is left to
/// [`HeadExchange::heads_per_rank`].
#[diagnostic::on_unimplemented(message = "`{Self}` cannot share out {Q} query heads")]
pub trait SharesHeads<const Q: usize>: HeadExchange {}

/// Every rank attends with all heads of its own tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct KeepHeads;

impl sealed::Sealed for KeepHeads {}
impl<N: Degree> sealed::Sealed for SwapHeads<N> {}

impl HeadExchange for KeepHeads {
    const NAME: &'static str = "keep-heads";
    const SWAPS: bool = false;

    fn heads_per_rank(_strategy: &'static str, q_heads: usize, _ranks: usize) -> Result<usize, SupportError> {
        Ok(q_heads)
    }
}

impl<const Q: usize> SharesHeads<Q> for KeepHeads {}

/// Every one of the `N` ranks of a group attends with its share of the heads, for the tokens of the whole group
/// (DeepSpeed-Ulysses, Jacobs et al. 2023).
///
/// Only query heads must divide by the ranks of the group: a rank receives the key/value heads that its queries use,
/// and where several ranks use one, its gradients are summed in rank order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SwapHeads<N = Runtime>(PhantomData<N>);

impl<N: Degree> HeadExchange for SwapHeads<N> {
    const NAME: &'static str = "swap-heads";
    const SWAPS: bool = true;
    const RANKS: Option<usize> = N::FIXED;

    fn heads_per_rank(strategy: &'static str, q_heads: usize, ranks: usize) -> Result<usize, SupportError> {
        match ranks > 0 && q_heads > 0 && q_heads.is_multiple_of(ranks) {
            true => Ok(q_heads / ranks),
            false => Err(SupportError::Heads { strategy, q_heads, ranks }),
        }
    }
}

#[diagnostic::do_not_recommend]
impl<const Q: usize, N: Divides<Q>> SharesHeads<Q> for SwapHeads<N> {}

/// One member's share of the heads.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct HeadShare {
    /// Its query heads.
    q: Range<usize>,
    /// The key/value heads that they use.
    kv: Range<usize>,
    /// By key/value head of [`HeadShare::shape`]: its index in `kv`. The kernel wants every head to serve equally many
    /// query heads, so a head may be there more than once.
    slots: Vec<usize>,
    /// What the member attends with.
    pub(super) shape: AttentionShape,
}

impl HeadShare {
    /// The share of `member`, if all `members` have as many query heads.
    fn new(
        strategy: &'static str,
        shape: &AttentionShape,
        members: usize,
        member: usize,
    ) -> Result<Self, SupportError> {
        shape.check()?;
        let (heads, group) = (<SwapHeads>::heads_per_rank(strategy, shape.q_heads, members)?, shape.group());
        let q = member * heads..(member + 1) * heads;
        let kv = q.start / group..(q.end - 1) / group + 1;
        // Stretches of this many query heads never straddle two key/value heads.
        let stretch = greatest_common_divisor(group, heads);
        let slots: Vec<usize> = q.clone().step_by(stretch).map(|head| head / group - kv.start).collect();
        Ok(HeadShare { q, kv, shape: AttentionShape { q_heads: heads, kv_heads: slots.len(), ..*shape }, slots })
    }

    fn q_columns(&self, dim: usize) -> Range<usize> {
        self.q.start * dim..self.q.end * dim
    }

    fn kv_columns(&self, dim: usize) -> Range<usize> {
        self.kv.start * dim..self.kv.end * dim
    }

    /// Columns of the member's keys and values, each head once.
    fn kv_width(&self) -> usize {
        self.kv.len() * (self.shape.qk_dim + self.shape.v_dim)
    }

    /// Columns of its queries, keys and values in a message.
    fn qkv_width(&self) -> usize {
        self.shape.q_width() + self.kv_width()
    }

    /// Blocks of columns as (first in the message's keys and values, first in the kernel's, columns).
    fn blocks(&self) -> Vec<(usize, usize, usize)> {
        let AttentionShape { qk_dim, v_dim, .. } = self.shape;
        if self.slots.iter().copied().eq(0..self.kv.len()) {
            return vec![(0, 0, self.kv_width())];
        }
        let parts = [(0, 0, qk_dim), (self.kv.len() * qk_dim, self.shape.k_width(), v_dim)];
        let slots = || self.slots.iter().enumerate();
        let block = |(from, to, dim)| slots().map(move |(slot, &head)| (from + head * dim, to + slot * dim, dim));
        parts.into_iter().flat_map(block).collect()
    }
}

fn greatest_common_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

/// Which ranks exchange heads, and where the rows of each are among those of the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeadSwap {
    /// Name of the strategy, for errors.
    pub(super) strategy: &'static str,
    /// Ranks of the communicator, by place in the group.
    pub(super) members: Vec<usize>,
    /// This rank's place.
    pub(super) place: usize,
    /// By member: the group's row of each of its valid rows.
    pub(super) rows: Vec<Vec<usize>>,
}

/// Heads of the group's tokens, as the kernel takes them.
pub(super) struct Swapped<D: Device> {
    pub(super) q: ElemMatrix<D>,
    pub(super) kv: ElemMatrix<D>,
}

impl HeadSwap {
    /// Rows of the whole group.
    pub(super) fn group_rows(&self) -> usize {
        self.rows.iter().map(Vec::len).sum()
    }

    /// This rank's share of the heads.
    pub(super) fn share(&self, shape: &AttentionShape) -> Result<HeadShare, SupportError> {
        HeadShare::new(self.strategy, shape, self.members.len(), self.place)
    }

    /// The shares of all members.
    fn shares(&self, shape: &AttentionShape) -> Result<Vec<HeadShare>, SupportError> {
        let members = self.members.len();
        (0..members).map(|member| HeadShare::new(self.strategy, shape, members, member)).collect()
    }

    /// Bytes to other members: (forward, backward).
    pub(super) fn bytes_sent(
        &self,
        shape: &AttentionShape,
        elem: usize,
        acc: usize,
    ) -> Result<(usize, usize), SupportError> {
        let (shares, own) = (self.shares(shape)?, self.rows[self.place].len());
        let mine = &shares[self.place];
        let (mut forward, mut backward) = (0, 0);
        for (member, rows) in self.rows.iter().enumerate().filter(|(member, _)| *member != self.place) {
            let (theirs, rows) = (&shares[member], rows.len());
            forward += own * theirs.qkv_width() * elem + rows * mine.shape.out_width() * elem;
            let gradients = mine.shape.q_width() * elem + mine.kv_width() * acc;
            backward += own * theirs.shape.out_width() * elem + rows * gradients;
        }
        Ok((forward, backward))
    }

    /// Queries, keys and values of the group's tokens, this rank's heads only.
    pub(super) fn bring<D: Ops>(
        &self,
        device: &D,
        comm: &dyn Communicator<D::Storage>,
        plan: &RankPlan,
        shape: &AttentionShape,
        [q, k, v]: [&ElemMatrix<D>; 3],
    ) -> Result<Swapped<D>> {
        let AttentionShape { qk_dim, v_dim, .. } = *shape;
        let (shares, rows) = (self.shares(shape)?, &plan.rows[..]);
        let message = |member: usize| {
            let share = &shares[member];
            let mut message: ElemMatrix<D> = device.matrix(rows.len(), share.qkv_width());
            let (keys, values) = (share.shape.q_width(), share.shape.q_width() + share.kv.len() * qk_dim);
            device.gather_block(q, rows, share.q_columns(qk_dim), &mut message, 0);
            device.gather_block(k, rows, share.kv_columns(qk_dim), &mut message, keys);
            device.gather_block(v, rows, share.kv_columns(v_dim), &mut message, values);
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
        for (part, rows) in parts.iter().zip(&self.rows) {
            device.scatter_block(part, 0..queries, rows, &mut swapped.q, 0);
            for (from, to, columns) in share.blocks() {
                let from = queries + from;
                device.scatter_block(part, from..from + columns, rows, &mut swapped.kv, to);
            }
        }
        Ok(swapped)
    }

    /// Heads of this rank's tokens back from the members: `dim` columns per query head.
    pub(super) fn give_back<D: Ops>(
        &self,
        device: &D,
        comm: &dyn Communicator<D::Storage>,
        plan: &RankPlan,
        shape: &AttentionShape,
        dim: usize,
        x: &ElemMatrix<D>,
    ) -> Result<ElemMatrix<D>> {
        let (shares, own) = (self.shares(shape)?, self.rows[self.place].len());
        let message = |member: usize| {
            let mut message = device.matrix(self.rows[member].len(), x.cols());
            device.gather_rows(x, &self.rows[member], &mut message, 0);
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
        let rows: Vec<usize> = (0..own).collect();
        for (member, part) in parts.iter().enumerate() {
            device.scatter_block(part, 0..part.cols(), &rows, &mut whole, columns(member).start);
        }
        Ok(whole)
    }

    /// The gradient of the output, this rank's heads of the group's tokens.
    pub(super) fn bring_output_gradient<D: Ops>(
        &self,
        device: &D,
        comm: &dyn Communicator<D::Storage>,
        plan: &RankPlan,
        shape: &AttentionShape,
        dout: &ElemMatrix<D>,
    ) -> Result<ElemMatrix<D>> {
        let (shares, rows) = (self.shares(shape)?, &plan.rows[..]);
        let message = |member: usize| {
            let columns = shares[member].q_columns(shape.v_dim);
            let mut message: ElemMatrix<D> = device.matrix(rows.len(), columns.len());
            device.gather_block(dout, rows, columns, &mut message, 0);
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
        for (part, rows) in parts.iter().zip(&self.rows) {
            device.scatter_rows(part, rows, &mut whole, 0);
        }
        Ok(whole)
    }

    /// The gradient of this rank's keys and values from the members that used them, summed in their order.
    pub(super) fn return_gradients<D: Ops>(
        &self,
        device: &D,
        comm: &dyn Communicator<D::Storage>,
        plan: &RankPlan,
        shape: &AttentionShape,
        dkv: &AccMatrix<D>,
    ) -> Result<AccMatrix<D>> {
        let (shares, own) = (self.shares(shape)?, self.rows[self.place].len());
        let share = &shares[self.place];
        let every: Vec<usize> = (0..dkv.rows()).collect();
        // A head that is there more than once has its gradient in parts.
        let mut once: AccMatrix<D> = device.zero_matrix(dkv.rows(), share.kv_width());
        for (to, from, columns) in share.blocks() {
            device.scatter_add_block(dkv, from..from + columns, &every, &mut once, to);
        }
        let message = |member: usize| {
            let mut message = device.matrix(self.rows[member].len(), once.cols());
            device.gather_rows(&once, &self.rows[member], &mut message, 0);
            message
        };
        let width = |member: usize| shares[member].kv_width();
        let parts =
            self.trade(device, comm, (plan.operation("attention head gradients"), plan.wire), message, |_| own, width)?;
        let mut sum: AccMatrix<D> = device.zero_matrix(own, shape.kv_width());
        let rows: Vec<usize> = (0..own).collect();
        for (member, part) in parts.iter().enumerate() {
            let share = &shares[member];
            let (keys, values) = (share.kv_columns(shape.qk_dim), share.kv_columns(shape.v_dim));
            device.scatter_add_block(part, 0..keys.len(), &rows, &mut sum, keys.start);
            device.scatter_add_block(part, keys.len()..part.cols(), &rows, &mut sum, shape.k_width() + values.start);
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
        let sends = sends.map(|(to, message)| Send { to, parcel: encoding.encode(device, message) }).collect();
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

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(q_heads: usize, kv_heads: usize, members: usize) -> Vec<(Range<usize>, Range<usize>, Vec<usize>)> {
        let shape = AttentionShape { q_heads, kv_heads, qk_dim: 2, v_dim: 3, scale: 1.0 };
        let share = |member| HeadShare::new("ulysses", &shape, members, member).unwrap();
        (0..members).map(share).map(|share| (share.q, share.kv, share.slots)).collect()
    }

    #[test]
    fn each_member_has_the_key_value_heads_that_its_queries_use() {
        assert_eq!(shares(8, 4, 2), [(0..4, 0..2, vec![0, 1]), (4..8, 2..4, vec![0, 1])]);
        // Fewer key/value heads than members: neighbours share one.
        assert_eq!(shares(4, 2, 4)[2..], [(2..3, 1..2, vec![0]), (3..4, 1..2, vec![0])]);
        // Three queries to a head, two to a member: the middle member uses both heads.
        assert_eq!(shares(6, 2, 3), [(0..2, 0..1, vec![0, 0]), (2..4, 0..2, vec![0, 1]), (4..6, 1..2, vec![0, 0])]);
    }

    #[test]
    fn heads_that_cannot_be_shared_out_are_refused() {
        assert_eq!(<SwapHeads>::heads_per_rank("ulysses", 8, 4), Ok(2));
        let message = <SwapHeads>::heads_per_rank("ulysses", 8, 3).unwrap_err().to_string();
        assert!(message.contains("8 query heads on 3 ranks") && message.contains("must be a multiple"), "{message}");
        let shape = AttentionShape { q_heads: 8, kv_heads: 2, qk_dim: 2, v_dim: 3, scale: 1.0 };
        let swap = HeadSwap { strategy: "ulysses", members: vec![0, 1, 2], place: 0, rows: vec![vec![]; 3] };
        let refused = [swap.share(&shape).map(drop), swap.bytes_sent(&shape, 4, 4).map(drop)];
        for refused in refused {
            assert_eq!(refused, Err(SupportError::Heads { strategy: "ulysses", q_heads: 8, ranks: 3 }));
        }
        assert!(swap.share(&AttentionShape { q_heads: 0, ..shape }).is_err(), "no query heads");
    }
}
