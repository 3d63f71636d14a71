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
use crate::model::inputs::{DynInputs, InputsRef, NO_TOKEN};
use crate::model::loss::IGNORED;
use crate::model::network::{DynActivations, DynModel};
use crate::model::parameters::{Gradients, MtpIds};
use crate::ops::Ops;
use crate::order::DynShard;
use crate::tensor::{AccMatrix, Buffer, Device, ElemMatrix};

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
    /// Rows that have a token this far on, and those tokens.
    rows: Vec<usize>,
    tokens: Buffer<i64, D::Storage>,
    /// Embeddings of the tokens, a row each.
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
        Ok(pairs
            .map(|(ids, depth)| self.device().linear(&self.output_norm(ids, &depth.y).0, self.head(), None))
            .collect())
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
        let loss = |(ids, Depth { inputs, y, .. }): (_, &Depth<D>)| {
            self.output_loss(&self.output_norm(ids, y).0, &inputs.labels, &inputs.weights)
        };
        Ok(self.parameters().list().mtp.iter().zip(&depths).map(loss).collect())
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
        let list = self.parameters().list().clone();
        assert_eq!(scales.len(), list.mtp.len(), "a scale for each depth");
        let mut depths = self.depths(handler, activations, inputs)?;
        let mut sums = vec![0.0; depths.len()];
        // What comes to the output of a depth through the depth after it.
        let mut dy = None;
        while let Some(Depth { inputs, block, y }) = depths.pop() {
            let index = depths.len();
            let (ids, dlater) = (&list.mtp[index], dy.take());
            let (hidden, reciprocal) = self.output_norm(ids, &y);
            let (labels, weights) = (&inputs.labels, &inputs.weights);
            let (sum, dhidden) = self.output_loss_backward(&hidden, labels, weights, scales[index], gradients);
            sums[index] = sum;
            let mut dx = self.final_norm_backward(ids.norm, &y, &reciprocal, &dhidden, dlater, gradients);
            let (plan, rotary) = (last_plan(activations), &activations.rotary);
            self.block_backward(&ids.layer, handler, plan, rotary, block, &mut dx, gradients)?;
            let before = depths.last().map_or(&activations.last, |depth| &depth.y);
            dy = Some(self.join_backward(ids, before, &inputs.tokens, &dx, gradients));
        }
        activations.dlast = dy;
        Ok(sums)
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
        self.check_labels(activations, inputs.labels, inputs.weights)?;
        let mut depths: Vec<Depth<D>> = Vec::new();
        for ids in &self.parameters().list().mtp {
            let last = depths.last();
            let (inputs, before) = last.map_or((inputs, &activations.last), |depth| (depth.inputs.by_ref(), &depth.y));
            let inputs = inputs.ahead(handler)?;
            let Joined { joined, .. } = self.join(ids, before, &inputs.tokens);
            let x = self.device().linear(&joined, &self.parameters()[ids.projection.weight], None);
            let (y, block) = self.block(&ids.layer, handler, last_plan(activations), &activations.rotary, x)?;
            depths.push(Depth { inputs, block, y });
        }
        Ok(depths)
    }

    fn output_norm(&self, ids: &MtpIds, y: &ElemMatrix<D>) -> (ElemMatrix<D>, AccMatrix<D>) {
        self.device().rms_norm(y, &self.parameters()[ids.norm], self.config().rms_norm_eps)
    }

    /// Both norms side by side; zeros beside the rows whose document has no such token.
    fn join(&self, ids: &MtpIds, before: &ElemMatrix<D>, tokens: &DynShard<i64, D::Storage>) -> Joined<D> {
        let (device, parameters, eps) = (self.device(), self.parameters(), self.config().rms_norm_eps);
        let (rows, hidden) = (before.rows(), before.cols());
        let known = device.download(tokens.matrix().buffer()).into_iter().enumerate().filter(|(_, id)| *id != NO_TOKEN);
        let (known, tokens): (Vec<usize>, Vec<i64>) = known.unzip();
        let tokens = device.upload(&tokens);
        let embedded = device.embed(&parameters[parameters.list().embedding], &tokens);
        let (right, hidden_reciprocal) = device.rms_norm(before, &parameters[ids.hidden_norm], eps);
        let (normed, embedding_reciprocal) = device.rms_norm(&embedded, &parameters[ids.embedding_norm], eps);
        let mut left = device.zero_matrix(rows, hidden);
        device.scatter_rows(&normed, &known, &mut left, 0);
        let (all, mut joined): (Vec<usize>, _) = ((0..rows).collect(), device.matrix(rows, 2 * hidden));
        device.gather_rows(&left, &all, &mut joined, 0);
        device.gather_rows(&right, &all, &mut joined, hidden);
        Joined { rows: known, tokens, embedded, hidden_reciprocal, embedding_reciprocal, joined }
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
        device.linear_backward_input(dx, &parameters[projection], &mut djoined, false);
        device.linear_backward_weight(&saved.joined, dx, &mut gradients[projection], None);
        let (all, mut part): (Vec<usize>, _) = ((0..rows).collect(), device.matrix(rows, hidden));
        device.scatter_rows(&djoined, &all, &mut part, 0);
        let mut dnormed = device.matrix(saved.rows.len(), hidden);
        device.gather_rows(&part, &saved.rows, &mut dnormed, 0);
        let mut dembedded = device.matrix(saved.rows.len(), hidden);
        let (weight, reciprocal) = (&parameters[ids.embedding_norm], &saved.embedding_reciprocal);
        let dweight = &mut gradients[ids.embedding_norm];
        device.rms_norm_backward(&saved.embedded, weight, reciprocal, &dnormed, &mut dembedded, false, dweight);
        let padding = self.config().pad_token_id.map(|id| id as i64);
        device.embed_backward(&saved.tokens, &dembedded, padding, &mut gradients[parameters.list().embedding]);
        device.scatter_rows(&djoined, &all, &mut part, hidden);
        let mut dbefore = device.matrix(rows, hidden);
        let (weight, dweight) = (&parameters[ids.hidden_norm], &mut gradients[ids.hidden_norm]);
        device.rms_norm_backward(before, weight, &saved.hidden_reciprocal, &part, &mut dbefore, false, dweight);
        dbefore
    }
}

/// The attention plan of the last main layer.
fn last_plan<D: Ops>(activations: &DynActivations<D>) -> &RankPlan {
    &activations.plans()[activations.plans().len() - 1]
}
