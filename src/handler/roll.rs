//! Rolling shards by any number of tokens, within documents: one exchange for any number of tensors.

use std::sync::Arc;

use crate::comm::{Communicator, Message, Operation, Parcel, Receive, open};
use crate::error::{Result, SupportError};
use crate::handler::core::MadeOf;
use crate::handler::{CpHandler, HandlerRef};
use crate::layout::Layout;
use crate::ops::rows::MoveRows;
use crate::order::{DynPlacement, DynShard, Placement, Rows, Shard, TokenOrder};
use crate::strategy::CpStrategy;
use crate::tensor::{Element, Matrix, Storage};

/// Rows of this rank, as a device takes them.
#[derive(Clone, Debug)]
pub struct RollRows<R> {
    /// How many.
    pub count: usize,
    /// The rows.
    pub rows: R,
}

/// Where the rows of a rolled shard come from, and who else takes this rank's: `R` are rows as a device takes them.
#[derive(Debug)]
pub(super) struct Moves<R> {
    /// Source rows and target rows on this rank.
    own: [RollRows<R>; 2],
    /// Rows that go to other ranks, in the order of the tokens that they become.
    send: Vec<(usize, RollRows<R>)>,
    /// Target rows of what comes from other ranks.
    receive: Vec<(usize, RollRows<R>)>,
}

impl<R: Clone> Moves<R> {
    fn new<D: MoveRows<Rows = R>>(device: &D, placement: &DynPlacement, offset: i64) -> Self {
        let prepared = |rows: Rows| RollRows { count: rows.len(), rows: device.rows(&rows) };
        let (mut send, mut receive, mut own) = (Vec::new(), Vec::new(), [Rows::default(), Rows::default()]);
        for (owner, targets, sources) in placement.rolled(offset) {
            match owner == placement.rank() {
                true => own = [sources, targets],
                false => receive.push((owner, prepared(targets))),
            }
        }
        // Nothing goes farther back than the smallest number.
        for (reader, sources, _) in placement.rolled(offset.saturating_neg()) {
            if reader != placement.rank() {
                send.push((reader, prepared(sources)));
            }
        }
        Moves { own: own.map(prepared), send, receive }
    }

    /// What undoes it: every row goes back to where it came from.
    fn reversed(&self) -> Self {
        let [sources, targets] = self.own.clone();
        Moves { own: [targets, sources], send: self.receive.clone(), receive: self.send.clone() }
    }
}

/// A tensor to roll, whatever its elements; [`DynRoll`] is the one implementation.
pub trait DynRollable<D: MoveRows> {
    /// Where the rows belong.
    fn placement(&self) -> &Arc<DynPlacement>;
    /// Rows that go to another rank.
    fn pack(&self, device: &D, rows: &RollRows<D::Rows>) -> Parcel<D::Storage>;
    /// What is expected from another rank.
    fn expect(&self, from: usize, rows: usize) -> Receive;
    /// Starts the result: the fill value, and the rows that stay on this rank, from where and to where.
    fn start(&mut self, device: &D, own: &[RollRows<D::Rows>; 2]);
    /// Puts rows of another rank in their place.
    fn place(&mut self, device: &D, from: usize, parcel: Parcel<D::Storage>, targets: &RollRows<D::Rows>)
    -> Result<()>;
}

/// A shard to roll, the value for rows that nothing is rolled into, and the result.
pub struct DynRoll<'a, T, S: Storage> {
    shard: &'a DynShard<T, S>,
    fill: T,
    rolled: Option<Matrix<T, S>>,
}

impl<'a, T: Element, S: Storage> DynRoll<'a, T, S> {
    /// Rolls `shard`; rows without a source get `fill`.
    pub fn new(shard: &'a DynShard<T, S>, fill: T) -> Self {
        DynRoll { shard, fill, rolled: None }
    }

    /// The rolled shard.
    ///
    /// # Errors
    /// [`SupportError::Numbers`] if no handler has rolled it.
    pub fn finish(self) -> Result<DynShard<T, S>> {
        let missing = || SupportError::Numbers("no handler has rolled this tensor: pass it to roll_all first".into());
        DynShard::new(self.rolled.ok_or_else(missing)?, self.shard.placement().clone())
    }
}

impl<T: Element, D: MoveRows> DynRollable<D> for DynRoll<'_, T, D::Storage> {
    fn placement(&self) -> &Arc<DynPlacement> {
        self.shard.placement()
    }

    fn pack(&self, device: &D, rows: &RollRows<D::Rows>) -> Parcel<D::Storage> {
        let source = self.shard.matrix();
        let mut packed = device.matrix(rows.count, source.cols());
        device.gather_rows(source.view(), &rows.rows, packed.view_mut());
        packed.into_buffer().into()
    }

    fn expect(&self, from: usize, rows: usize) -> Receive {
        Receive::of::<T>(from, rows * self.shard.matrix().cols())
    }

    fn start(&mut self, device: &D, [sources, targets]: &[RollRows<D::Rows>; 2]) {
        let source = self.shard.matrix();
        let (rows, cols) = (source.rows(), source.cols());
        let mut rolled = device.matrix(rows, cols);
        device.fill(rolled.view_mut(), self.fill);
        let mut kept = device.matrix(sources.count, cols);
        device.gather_rows(source.view(), &sources.rows, kept.view_mut());
        device.scatter_rows(kept.view(), &targets.rows, rolled.view_mut());
        self.rolled = Some(rolled);
    }

    fn place(
        &mut self,
        device: &D,
        from: usize,
        parcel: Parcel<D::Storage>,
        targets: &RollRows<D::Rows>,
    ) -> Result<()> {
        let rows = Matrix::new(open(parcel, from, "roll")?, targets.count, self.shard.matrix().cols());
        if let Some(rolled) = &mut self.rolled {
            device.scatter_rows(rows.view(), &targets.rows, rolled.view_mut());
        }
        Ok(())
    }
}

impl<D: MoveRows> HandlerRef<'_, D> {
    /// [`CpHandler::roll_all`].
    ///
    /// # Errors
    /// Those of `CpHandler::roll_all`.
    pub fn roll_all(
        self,
        placement: &DynPlacement,
        offset: i64,
        tensors: &mut [&mut dyn DynRollable<D>],
    ) -> Result<()> {
        for tensor in tensors.iter() {
            placement.expect_same("the roll", tensor.placement(), "a tensor")?;
        }
        run(self, (placement.hash(), offset, false), &*self.moves(placement, offset)?, tensors)
    }

    /// [`CpHandler::roll`].
    ///
    /// # Errors
    /// If the shard is not of this handler's ranks, or ranks roll otherwise or attended other things; failures of other
    /// ranks.
    pub fn roll<T: Element>(
        self,
        shard: &DynShard<T, D::Storage>,
        offset: i64,
        fill: T,
    ) -> Result<DynShard<T, D::Storage>> {
        let mut roll = DynRoll::new(shard, fill);
        self.roll_all(shard.placement(), offset, &mut [&mut roll])?;
        roll.finish()
    }

    /// [`CpHandler::roll_adjoint`].
    ///
    /// # Errors
    /// If the shard is not of this handler's ranks, or ranks roll otherwise or attended other things; failures of other
    /// ranks.
    pub fn roll_adjoint<T: Element>(
        self,
        gradient: &DynShard<T, D::Storage>,
        offset: i64,
    ) -> Result<DynShard<T, D::Storage>> {
        let moves = self.moves(gradient.placement(), offset)?.reversed();
        let mut roll = DynRoll::new(gradient, T::zeroed());
        run(self, (gradient.placement().hash(), offset, true), &moves, &mut [&mut roll])?;
        roll.finish()
    }

    fn moves(self, placement: &DynPlacement, offset: i64) -> Result<Arc<Moves<D::Rows>>> {
        self.core.other(self.device, placement, MadeOf::Roll(offset), || Moves::new(self.device, placement, offset))
    }
}

/// One exchange: of a placement by its hash, so many tokens, and whether they go back.
fn run<D: MoveRows>(
    handler: HandlerRef<'_, D>,
    of: (u64, i64, bool),
    moves: &Moves<D::Rows>,
    tensors: &mut [&mut dyn DynRollable<D>],
) -> Result<()> {
    let device = handler.device;
    let (mut sends, mut receives) = (Vec::new(), Vec::new());
    for tensor in tensors.iter() {
        for (to, rows) in &moves.send {
            sends.push(Message::new(*to, tensor.pack(device, rows)));
        }
        for (from, rows) in &moves.receive {
            receives.push(tensor.expect(*from, rows.count));
        }
    }
    let operation = Operation::under("roll", handler.digest(of));
    let pending = handler.comm.exchange(operation, sends, receives)?;
    for tensor in tensors.iter_mut() {
        tensor.start(device, &moves.own);
    }
    let mut parcels = pending.wait()?.parcels.into_iter();
    for tensor in tensors.iter_mut() {
        for ((from, rows), parcel) in moves.receive.iter().zip(&mut parcels) {
            tensor.place(device, *from, parcel, rows)?;
        }
    }
    Ok(())
}

/// A tensor to roll, of order `O` and layout `L`; [`Roll`] is the one implementation.
pub trait Rollable<O: TokenOrder, L: Layout, D: MoveRows> {
    /// The tensor without its types.
    fn data(&mut self) -> &mut dyn DynRollable<D>;
}

/// A shard to roll, the value for rows that nothing is rolled into, and the result.
pub struct Roll<'a, O: TokenOrder, L: Layout, T, S: Storage> {
    data: DynRoll<'a, T, S>,
    placement: &'a Arc<Placement<O, L>>,
}

impl<'a, O: TokenOrder, L: Layout, T: Element, S: Storage> Roll<'a, O, L, T, S> {
    /// Rolls `shard`; rows without a source get `fill`.
    pub fn new(shard: &'a Shard<O, L, T, S>, fill: T) -> Self {
        Roll { data: DynRoll::new(shard.data(), fill), placement: shard.placement() }
    }

    /// The rolled shard.
    ///
    /// # Errors
    /// [`SupportError::Numbers`] if no handler has rolled it.
    pub fn finish(self) -> Result<Shard<O, L, T, S>> {
        Shard::typed(self.data.finish()?, self.placement)
    }
}

impl<O: TokenOrder, L: Layout, T: Element, D: MoveRows> Rollable<O, L, D> for Roll<'_, O, L, T, D::Storage> {
    fn data(&mut self) -> &mut dyn DynRollable<D> {
        &mut self.data
    }
}

impl<H: CpStrategy, L: Layout, D: MoveRows, C: Communicator<D::Storage>> CpHandler<H, L, D, C> {
    /// The shard of `y` with `y[p] = x[p + offset]` within each document's valid tokens, `fill` elsewhere.
    ///
    /// An offset of 1 is Megatron's `roll_tensor` with `shifts=-1`: each token's row holds its successor.
    #[doc(alias = "roll_tensor")]
    pub fn roll<T: Element>(
        &self,
        shard: &Shard<H::Order, L, T, D::Storage>,
        offset: i64,
        fill: T,
    ) -> Result<Shard<H::Order, L, T, D::Storage>> {
        Shard::typed(self.by_ref().roll(shard.data(), offset, fill)?, shard.placement())
    }

    /// Rolls several tensors of one placement in one exchange.
    ///
    /// # Errors
    /// [`PlacementError::Mismatch`](crate::error::PlacementError::Mismatch) where a tensor is placed otherwise, and
    /// failures of other ranks.
    pub fn roll_all(
        &self,
        placement: &Arc<Placement<H::Order, L>>,
        offset: i64,
        tensors: &mut [&mut dyn Rollable<H::Order, L, D>],
    ) -> Result<()> {
        let mut tensors: Vec<&mut dyn DynRollable<D>> = tensors.iter_mut().map(|tensor| tensor.data()).collect();
        self.by_ref().roll_all(placement, offset, &mut tensors)
    }

    /// The adjoint of [`CpHandler::roll`]: every row's gradient goes back to the row that it was rolled from, 0 where
    /// a row was rolled nowhere.
    pub fn roll_adjoint<T: Element>(
        &self,
        gradient: &Shard<H::Order, L, T, D::Storage>,
        offset: i64,
    ) -> Result<Shard<H::Order, L, T, D::Storage>> {
        Shard::typed(self.by_ref().roll_adjoint(gradient.data(), offset)?, gradient.placement())
    }
}
