//! Multi-token prediction: blocks behind the main ones, each of which predicts one token further.
//!
//! With `h_0` the output of the last main block, before the final norm, depth `k` from 1 on computes
//! `h_k = block_k(W_k [RMSNorm(embedding(tokens rolled by k)); RMSNorm(h_(k-1))])`, and predicts from `RMSNorm(h_k)`,
//! through the model's own output layer, the label `k` rows further in the document (DeepSeek-V3, arXiv 2412.19437,
//! section 2.2, with the two halves in the order of its published weights and of Megatron-LM). A row from which no
//! token is that far does not count, and the embedding there is zero: nothing comes out of the next document.
//! `block_k` has the mask and the positions of the last main layer.
//!
//! What is trained is `loss + WEIGHT * mean over k of loss_k`. Each loss is the sum over all ranks and micro-batches
//! of a step over the number of its labels, which every rank counts from the whole batch ([`label_counts`],
//! [`scales`]).

use std::ops::Range;

use crate::attention::RankPlan;
use crate::error::Result;
use crate::handler::HandlerRef;
use crate::layout::Batch;
use crate::model::block::BlockActivations;
use crate::model::inputs::{DynInputs, InputsRef};
use crate::model::loss::IGNORED;
use crate::model::network::{DynActivations, DynModel};
use crate::model::parameters::{Gradients, MtpIds};
use crate::ops::Ops;
use crate::order::DynShard;
use crate::tensor::{AccMatrix, Device, ElemMatrix, MatrixMut};

/// Weight of the mean of the depths' losses beside the main loss; Megatron's `mtp_loss_scaling_factor`.
pub const WEIGHT: f64 = 0.1;

/// How many labels of a whole batch count: for the main loss, then for depths 1 to `depth`. `labels` come sequence by
/// sequence, padding included.
pub fn label_counts(batch: &dyn Batch, labels: &[i64], depth: usize) -> Vec<usize> {
    label_counts_in((0..batch.documents()).map(|index| batch.document(index).valid_range()), labels, depth)
}

/// [`label_counts`] of documents that are these ranges of the labels. What no range holds counts for the main loss.
pub(crate) fn label_counts_in(
    documents: impl Iterator<Item = Range<usize>>,
    labels: &[i64],
    depth: usize,
) -> Vec<usize> {
    let counted = |labels: &[i64]| labels.iter().filter(|&&label| label != IGNORED).count();
    let mut counts = vec![0; depth + 1];
    counts[0] = counted(labels);
    for document in documents {
        for (depth, count) in counts.iter_mut().enumerate().skip(1) {
            *count += counted(&labels[(document.start + depth).min(document.end)..document.end]);
        }
    }
    counts
}

/// What each sum of losses is multiplied with in the loss of a step, from the step's numbers of labels: the main
/// loss first. A loss without labels is 0.
pub fn scales(labels: &[usize]) -> Vec<f64> {
    let depths = labels.len().saturating_sub(1).max(1) as f64;
    let weight = |index| if index == 0 { 1.0 } else { WEIGHT / depths };
    labels.iter().enumerate().map(|(index, &count)| weight(index) / count.max(1) as f64).collect()
}

/// What a depth leaves for the backward pass.
struct Depth<D: Ops> {
    /// The batch, this much further.
    inputs: DynInputs<D>,
    block: BlockActivations<D>,
    /// The block's output.
    y: ElemMatrix<D>,
}

/// The input of a depth's projection, and what its backward needs. It is made again in the backward pass, which
/// costs a look-up and two norms instead of three rows of features for each row.
struct Joined<D: Device> {
    /// Embeddings of the tokens this far on, zero where there is none.
    embedded: ElemMatrix<D>,
    hidden_reciprocal: AccMatrix<D>,
    embedding_reciprocal: AccMatrix<D>,
    /// `[rows, 2 hidden]`.
    joined: ElemMatrix<D>,
}

impl<D: Ops> DynModel<D> {
    /// Logits of each depth for this rank's rows, `[rows, vocab]`: depth `k` (from 1) predicts the label `k` rows
    /// further. Rows without such a label hold numbers that mean nothing.
    ///
    /// # Errors
    /// Inputs of another placement than the activations, ids outside the vocabulary, failures of other ranks.
    pub fn mtp_logits(
        &self,
        handler: HandlerRef<'_, D>,
        activations: &DynActivations<D>,
        inputs: InputsRef<'_, D::Storage>,
    ) -> Result<Vec<ElemMatrix<D>>> {
        let depths = self.depths(handler, activations, inputs)?;
        let pairs = self.parameters().list().mtp.iter().zip(&depths);
        Ok(pairs.map(|(ids, depth)| self.output(&self.norm(depth.y.view(), ids.norm).0)).collect())
    }

    /// Of each depth, the sum of the losses of this rank's rows, in nats.
    ///
    /// # Errors
    /// Those of [`DynModel::mtp_logits`] and [`DynModel::loss_sum`].
    pub fn mtp_loss_sums(
        &self,
        handler: HandlerRef<'_, D>,
        activations: &DynActivations<D>,
        inputs: InputsRef<'_, D::Storage>,
    ) -> Result<Vec<f64>> {
        let depths = self.depths(handler, activations, inputs)?;
        let mut sums = self.device().zero_matrix(1, depths.len());
        for (index, (ids, Depth { inputs, y, .. })) in self.parameters().list().mtp.iter().zip(&depths).enumerate() {
            let sum = sums.view_mut().column_range(index..index + 1);
            self.output_loss(&self.norm(y.view(), ids.norm).0, &inputs.labels, &inputs.weights, sum);
        }
        self.device().read(&sums)
    }

    /// The same sums, with the gradient of `sum over k of scales[k - 1] * sum_k`. What goes to the weights of the
    /// depths, the output layer and the embedding is added to `gradients`; what goes to the last main block is left
    /// in `activations`, for [`DynModel::backward`].
    ///
    /// # Errors
    /// Those of [`DynModel::mtp_loss_sums`].
    ///
    /// # Panics
    /// If there is not a scale for each depth.
    pub fn mtp_backward(
        &self,
        handler: HandlerRef<'_, D>,
        activations: &mut DynActivations<D>,
        inputs: InputsRef<'_, D::Storage>,
        scales: &[f64],
        gradients: &mut Gradients<D>,
    ) -> Result<Vec<f64>> {
        let mut sums = self.device().zero_matrix(1, scales.len());
        self.add_mtp_backward(handler, activations, inputs, scales, gradients, sums.view_mut())?;
        self.device().read(&sums)
    }

    /// [`DynModel::mtp_backward`], with sums `[1, depths]` on the device that are added to: nothing waits for them.
    ///
    /// # Errors
    /// Those of [`DynModel::mtp_loss_sums`].
    ///
    /// # Panics
    /// If there is not a scale for each depth.
    pub fn add_mtp_backward(
        &self,
        handler: HandlerRef<'_, D>,
        activations: &mut DynActivations<D>,
        inputs: InputsRef<'_, D::Storage>,
        scales: &[f64],
        gradients: &mut Gradients<D>,
        mut sums: MatrixMut<'_, f64, D::Storage>,
    ) -> Result<()> {
        let list = self.parameters().list().clone();
        assert_eq!(scales.len(), list.mtp.len(), "a scale for each depth");
        let mut depths = self.depths(handler, activations, inputs)?;
        // What comes to the output of a depth through the depth after it.
        let mut dy = None;
        while let Some(Depth { inputs, block, y }) = depths.pop() {
            let index = depths.len();
            let (ids, dlater) = (&list.mtp[index], dy.take());
            let (hidden, reciprocal) = self.norm(y.view(), ids.norm);
            let labels = (inputs.labels.shard(), inputs.weights.shard());
            let sum = sums.reborrow().column_range(index..index + 1);
            let dhidden = self.output_loss_backward(&hidden, labels, scales[index], gradients, sum);
            let mut dx = self.final_norm_backward(ids.norm, &y, &reciprocal, &dhidden, dlater, gradients);
            let (plan, rotary) = (last_plan(activations), activations.rotary());
            self.block(&ids.layer, handler, plan, rotary).backward(block, &mut dx, gradients)?;
            let before = depths.last().map_or(&activations.last, |depth| &depth.y);
            dy = Some(self.join_backward(ids, before, &inputs.tokens, &dx, gradients));
        }
        activations.dlast = dy;
        Ok(())
    }

    /// Runs every depth.
    fn depths(
        &self,
        handler: HandlerRef<'_, D>,
        activations: &DynActivations<D>,
        inputs: InputsRef<'_, D::Storage>,
    ) -> Result<Vec<Depth<D>>> {
        activations.placement().expect_same("the hidden states", inputs.tokens.placement(), "the tokens")?;
        self.check_tokens(inputs.tokens)?;
        self.check_labels(activations.placement(), inputs.labels, inputs.weights)?;
        let mut depths: Vec<Depth<D>> = Vec::new();
        for ids in &self.parameters().list().mtp {
            let last = depths.last();
            let (inputs, before) = last.map_or((inputs, &activations.last), |depth| (depth.inputs.by_ref(), &depth.y));
            let inputs = inputs.ahead(handler)?;
            let Joined { joined, .. } = self.join(ids, before, &inputs.tokens);
            let mut x = self.device().matrix(before.rows(), before.cols());
            let projection = self.parameters().view(ids.projection.weight);
            self.device().linear(joined.view(), projection, None, x.view_mut());
            drop(joined);
            let (plan, rotary) = (last_plan(activations), activations.rotary());
            let (y, block) = self.block(&ids.layer, handler, plan, rotary).forward(x)?;
            depths.push(Depth { inputs, block, y });
        }
        Ok(depths)
    }

    /// Both norms side by side, that of the embedding first; zeros beside the rows whose document has no such token.
    fn join(&self, ids: &MtpIds, before: &ElemMatrix<D>, tokens: &DynShard<i64, D::Storage>) -> Joined<D> {
        let (device, parameters, eps) = (self.device(), self.parameters(), self.config().rms_norm_eps);
        let (rows, hidden) = (before.rows(), before.cols());
        let mut saved = Joined {
            embedded: device.matrix(rows, hidden),
            hidden_reciprocal: device.matrix(rows, 1),
            embedding_reciprocal: device.matrix(rows, 1),
            joined: device.matrix(rows, 2 * hidden),
        };
        let table = parameters.view(parameters.list().embedding);
        device.embed(table, tokens.matrix().view(), saved.embedded.view_mut());
        let (weight, left) = (parameters.view(ids.embedding_norm), saved.joined.view_mut().column_range(0..hidden));
        device.rms_norm(saved.embedded.view(), weight, 1, eps, left, saved.embedding_reciprocal.view_mut());
        let weight = parameters.view(ids.hidden_norm);
        let right = saved.joined.view_mut().column_range(hidden..2 * hidden);
        device.rms_norm(before.view(), weight, 1, eps, right, saved.hidden_reciprocal.view_mut());
        saved
    }

    /// From the gradient of the block's input: that of the output before, returned, and those of projection, norms
    /// and embedding, added to `gradients`.
    fn join_backward(
        &self,
        ids: &MtpIds,
        before: &ElemMatrix<D>,
        tokens: &DynShard<i64, D::Storage>,
        dx: &ElemMatrix<D>,
        gradients: &mut Gradients<D>,
    ) -> ElemMatrix<D> {
        let (device, parameters) = (self.device(), self.parameters());
        let saved = self.join(ids, before, tokens);
        let (rows, hidden, projection) = (before.rows(), before.cols(), ids.projection.weight);
        let mut djoined = device.matrix(rows, 2 * hidden);
        device.linear_backward_input(dx.view(), parameters.view(projection), djoined.view_mut(), false);
        device.linear_backward_weight(saved.joined.view(), dx.view(), gradients.view_mut(projection));
        let [left, right] = [0..hidden, hidden..2 * hidden].map(|columns| djoined.view().column_range(columns));
        let mut dembedded = device.matrix(rows, hidden);
        let (embedded, reciprocal) = (saved.embedded.view(), saved.embedding_reciprocal.view());
        let (weight, dweight) = (parameters.view(ids.embedding_norm), gradients.view_mut(ids.embedding_norm));
        device.rms_norm_backward(embedded, weight, reciprocal, left, dembedded.view_mut(), false, dweight);
        let padding = self.config().pad_token_id.map(|id| id as i64);
        let table = gradients.view_mut(parameters.list().embedding);
        device.embed_backward(tokens.matrix().view(), dembedded.view(), padding, table);
        let mut dbefore = device.matrix(rows, hidden);
        let (weight, dweight) = (parameters.view(ids.hidden_norm), gradients.view_mut(ids.hidden_norm));
        let reciprocal = saved.hidden_reciprocal.view();
        device.rms_norm_backward(before.view(), weight, reciprocal, right, dbefore.view_mut(), false, dweight);
        dbefore
    }
}

/// The attention plan of the last main layer.
fn last_plan<D: Ops>(activations: &DynActivations<D>) -> &RankPlan {
    &activations.plans()[activations.plans().len() - 1]
}
