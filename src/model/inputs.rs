//! A batch of token ids and labels, cut for one rank and put on its device.

use std::sync::Arc;

use crate::comm::Communicator;
use crate::error::Result;
use crate::handler::{CpHandler, Roll, WholeBatch};
use crate::layout::Layout;
use crate::model::loss::{IGNORED, label_weights};
use crate::ops::rows::Rows;
use crate::order::{Full, Placement, Shard};
use crate::strategy::CpStrategy;
use crate::tensor::{Cpu, Device, Element, Matrix};

/// The id of a row that no token was rolled into; it embeds as zero.
pub const NO_TOKEN: i64 = -1;

/// One rank's part of a batch: what a training or evaluation step takes.
#[derive(Debug)]
pub struct Inputs<H: CpStrategy, L: Layout, D: Device> {
    /// Token ids, `[rows, 1]`.
    pub tokens: Shard<H::Order, L, i64, D::Storage>,
    /// Labels, `[rows, 1]`.
    pub labels: Shard<H::Order, L, i64, D::Storage>,
    /// 1 for labels that count, else 0; `[rows, 1]`.
    pub weights: Shard<H::Order, L, f32, D::Storage>,
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
    pub fn new<C>(
        handler: &CpHandler<H, L, C>,
        device: &D,
        batch: Arc<L::Batch>,
        tokens: &[i64],
        labels: &[i64],
    ) -> Result<Self> {
        let placement = handler.place(batch)?;
        Self::placed(handler, device, &placement, tokens, labels)
    }

    /// The same for a batch that is placed already.
    ///
    /// # Errors
    /// If tokens or labels are not as many as the batch has.
    pub fn placed<C>(
        handler: &CpHandler<H, L, C>,
        device: &D,
        placement: &Arc<Placement<H::Order, L>>,
        tokens: &[i64],
        labels: &[i64],
    ) -> Result<Self> {
        let batch = placement.batch().clone();
        let whole = WholeBatch {
            tokens: Some(Full::from_batch_first(tokens, 1, batch.clone())?),
            labels: Some(Full::from_batch_first(labels, 1, batch.clone())?),
            loss_mask: Some(Full::from_batch_first(&label_weights(labels), 1, batch)?),
            ..WholeBatch::default()
        };
        let local = handler.get_batch_on_this_cp_rank(&Cpu::<f32>::default(), placement, &whole)?;
        let (Some(tokens), Some(labels), Some(weights)) = (local.tokens, local.labels, local.loss_mask) else {
            unreachable!("fields that are given are cut")
        };
        Ok(Inputs {
            tokens: upload(device, &tokens)?,
            labels: upload(device, &labels)?,
            weights: upload(device, &weights)?,
        })
    }

    /// The batch one token further: each row gets the id, label and weight of the next token of its document, or
    /// [`NO_TOKEN`], [`IGNORED`] and 0 where there is none. All three come in one exchange.
    pub fn ahead<C: Communicator<D::Storage>>(&self, handler: &CpHandler<H, L, C>, device: &D) -> Result<Self>
    where
        D: Rows,
    {
        let (mut tokens, mut labels) = (Roll::new(&self.tokens, NO_TOKEN), Roll::new(&self.labels, IGNORED));
        let mut weights = Roll::new(&self.weights, 0.0);
        handler.roll_all(device, self.tokens.placement(), 1, &mut [&mut tokens, &mut labels, &mut weights])?;
        Ok(Inputs { tokens: tokens.finish(device)?, labels: labels.finish(device)?, weights: weights.finish(device)? })
    }
}

#[allow(clippy::type_complexity)]
fn upload<O: crate::order::TokenOrder, L: Layout, T: Element, D: Device>(
    device: &D,
    shard: &Shard<O, L, T>,
) -> Result<Shard<O, L, T, D::Storage>> {
    let matrix = shard.matrix();
    Shard::new(Matrix::new(device.upload(matrix), matrix.rows(), matrix.cols()), shard.placement().clone())
}
