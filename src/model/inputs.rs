//! A batch of token ids and labels, cut for one rank and put on its device.

use std::sync::Arc;

use crate::comm::Communicator;
use crate::error::Result;
use crate::handler::{CpHandler, DynRoll, HandlerRef};
use crate::layout::Layout;
use crate::model::loss::{IGNORED, label_weights};
use crate::model::mirrored::{DynMirrored, Mirrored};
use crate::ops::rows::MoveRows;
use crate::order::{DynPlacement, Placement, laid_out};
use crate::strategy::CpStrategy;
use crate::tensor::{Cpu, Device, Element, Matrix, Storage};

/// The id of a row that no token was rolled into; it embeds as zero.
pub const NO_TOKEN: i64 = -1;

/// [`Inputs`] of any strategy and layout.
#[derive(Debug)]
pub struct DynInputs<D: Device> {
    /// Token ids, `[rows, 1]`.
    pub tokens: DynMirrored<i64, D::Storage>,
    /// Labels, `[rows, 1]`.
    pub labels: DynMirrored<i64, D::Storage>,
    /// 1 for labels that count, else 0; `[rows, 1]`.
    pub weights: DynMirrored<f32, D::Storage>,
}

impl<D: Device> DynInputs<D> {
    /// [`Inputs::placed`].
    ///
    /// # Errors
    /// If tokens or labels are not as many as the batch has.
    pub fn placed(
        handler: HandlerRef<'_, D>,
        placement: &Arc<DynPlacement>,
        tokens: &[i64],
        labels: &[i64],
    ) -> Result<Self> {
        Ok(DynInputs {
            tokens: cut(handler, placement, tokens)?,
            labels: cut(handler, placement, labels)?,
            weights: cut(handler, placement, &label_weights(labels))?,
        })
    }

    /// The same rows of another batch with the same placement, in the memory that these have.
    ///
    /// # Errors
    /// If tokens or labels are not as many as the batch has.
    pub fn rewrite(&mut self, handler: HandlerRef<'_, D>, tokens: &[i64], labels: &[i64]) -> Result<()> {
        let placement = self.tokens.placement().clone();
        self.tokens.rewrite(handler.device(), own(handler, &placement, tokens)?.to_vec());
        self.labels.rewrite(handler.device(), own(handler, &placement, labels)?.to_vec());
        self.weights.rewrite(handler.device(), own(handler, &placement, &label_weights(labels))?.to_vec());
        Ok(())
    }

    /// The parts, as passes of a model take them.
    pub fn by_ref(&self) -> InputsRef<'_, D::Storage> {
        InputsRef { tokens: &self.tokens, labels: &self.labels, weights: &self.weights }
    }
}

/// One rank's part of a batch: [`Inputs`] or [`DynInputs`].
#[derive(Debug)]
pub struct InputsRef<'a, S> {
    /// Token ids, `[rows, 1]`.
    pub tokens: &'a DynMirrored<i64, S>,
    /// Labels, `[rows, 1]`.
    pub labels: &'a DynMirrored<i64, S>,
    /// 1 for labels that count, else 0; `[rows, 1]`.
    pub weights: &'a DynMirrored<f32, S>,
}

impl<S> Clone for InputsRef<'_, S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S> Copy for InputsRef<'_, S> {}

impl<S: Storage> InputsRef<'_, S> {
    /// [`Inputs::ahead`].
    ///
    /// # Errors
    /// Failures of other ranks.
    pub fn ahead<D: MoveRows<Storage = S>>(self, handler: HandlerRef<'_, D>) -> Result<DynInputs<D>> {
        let (mut tokens, mut labels) = (DynRoll::new(self.tokens, NO_TOKEN), DynRoll::new(self.labels, IGNORED));
        let mut weights = DynRoll::new(self.weights, 0.0);
        handler.roll_all(self.tokens.placement(), 1, &mut [&mut tokens, &mut labels, &mut weights])?;
        Ok(DynInputs {
            tokens: DynMirrored::of_shard(tokens.finish()?),
            labels: DynMirrored::of_shard(labels.finish()?),
            weights: DynMirrored::of_shard(weights.finish()?),
        })
    }
}

/// This rank's rows of values that come token by token, on the handler's device.
fn cut<T: Element, D: Device>(
    handler: HandlerRef<'_, D>,
    placement: &Arc<DynPlacement>,
    values: &[T],
) -> Result<DynMirrored<T, D::Storage>> {
    DynMirrored::new(handler.device(), &own(handler, placement, values)?, placement)
}

/// The same on the host.
fn own<T: Element, D: Device>(
    handler: HandlerRef<'_, D>,
    placement: &Arc<DynPlacement>,
    values: &[T],
) -> Result<Matrix<T>> {
    let whole = laid_out(values, 1, &**placement.batch(), placement.layout())?;
    let host = Cpu::<f32>::default();
    let rows = host.rows(&placement.full_rows_of(placement.rank()));
    Ok(handler.cut(&host, placement, &rows, &whole)?.into_matrix())
}

/// One rank's part of a batch: what a training or evaluation step takes.
#[derive(Debug)]
pub struct Inputs<H: CpStrategy, L: Layout, D: Device> {
    /// Token ids, `[rows, 1]`.
    pub tokens: Mirrored<H::Order, L, i64, D::Storage>,
    /// Labels, `[rows, 1]`.
    pub labels: Mirrored<H::Order, L, i64, D::Storage>,
    /// 1 for labels that count, else 0; `[rows, 1]`.
    pub weights: Mirrored<H::Order, L, f32, D::Storage>,
}

impl<H: CpStrategy, L: Layout, D: Device> Inputs<H, L, D> {
    /// This rank's part of a batch whose `tokens` and `labels` come sequence by sequence (`[B, S]`, or packed). A
    /// label of -100 does not count.
    ///
    /// The batch is placed for causal masks. For a model with others, orders that depend on what is attended do better
    /// with [`CpHandler::place_for`], [`GptModel::mask_weights`](crate::model::GptModel::mask_weights) and
    /// [`Inputs::placed`].
    ///
    /// # Errors
    /// If tokens or labels are not as many as the batch has.
    pub fn new<C: Communicator<D::Storage>>(
        handler: &CpHandler<H, L, D, C>,
        batch: Arc<L::Batch>,
        tokens: &[i64],
        labels: &[i64],
    ) -> Result<Self> {
        let placement = handler.place(batch)?;
        Self::placed(handler, &placement, tokens, labels)
    }

    /// The same for a batch that is placed already.
    ///
    /// # Errors
    /// If tokens or labels are not as many as the batch has.
    pub fn placed<C: Communicator<D::Storage>>(
        handler: &CpHandler<H, L, D, C>,
        placement: &Arc<Placement<H::Order, L>>,
        tokens: &[i64],
        labels: &[i64],
    ) -> Result<Self> {
        let data = DynInputs::placed(handler.by_ref(), placement.data(), tokens, labels)?;
        Self::typed(data, placement)
    }

    fn typed(data: DynInputs<D>, placement: &Arc<Placement<H::Order, L>>) -> Result<Self> {
        let DynInputs { tokens, labels, weights } = data;
        Ok(Inputs {
            tokens: Mirrored::typed(tokens, placement)?,
            labels: Mirrored::typed(labels, placement)?,
            weights: Mirrored::typed(weights, placement)?,
        })
    }

    /// The parts without their types.
    pub fn by_ref(&self) -> InputsRef<'_, D::Storage> {
        InputsRef { tokens: self.tokens.data(), labels: self.labels.data(), weights: self.weights.data() }
    }

    /// The batch one token further: each row gets the id, label and weight of the next token of its document, or
    /// [`NO_TOKEN`], [`IGNORED`] and 0 where there is none. All three come in one exchange.
    ///
    /// # Errors
    /// Failures of other ranks.
    pub fn ahead<C: Communicator<D::Storage>>(&self, handler: &CpHandler<H, L, D, C>) -> Result<Self>
    where
        D: MoveRows,
    {
        let ahead = self.by_ref().ahead(handler.by_ref())?;
        Self::typed(ahead, self.tokens.placement())
    }
}
