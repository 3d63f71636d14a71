//! The output layer and its loss, a chunk of rows at a time so that logits never fill the memory.

use std::ops::Range;

use crate::error::{LayoutError, ModelError, Result};
use crate::model::mirrored::DynMirrored;
use crate::model::network::{DynActivations, DynModel};
use crate::model::parameters::Gradients;
use crate::ops::Ops;
use crate::order::{DynPlacement, DynShard};
use crate::tensor::{ElemMatrix, MatrixMut};

/// Logits of at most this many rows are in memory at a time.
const CHUNK: usize = 1024;

/// A sum of losses on a device, `[1, 1]`.
type Sum<'a, S> = MatrixMut<'a, f64, S>;

impl<D: Ops> DynModel<D> {
    /// Logits of this rank's rows, `[rows, vocab]`.
    pub fn logits(&self, activations: &DynActivations<D>) -> ElemMatrix<D> {
        self.output(activations.hidden())
    }

    /// Logits of normed features.
    pub(super) fn output(&self, hidden: &ElemMatrix<D>) -> ElemMatrix<D> {
        let mut logits = self.device().matrix(hidden.rows(), self.config().vocab_size);
        self.device().linear(hidden.view(), self.head(), None, logits.view_mut());
        logits
    }

    /// The sum over this rank's rows of `weight * -log softmax(logits)[label]`, in nats. `labels` and `weights` are
    /// `[rows, 1]`; a label whose weight is 0 may be anything.
    ///
    /// # Errors
    /// Shards of another placement, or a label that counts and is outside the vocabulary.
    pub fn loss_sum(
        &self,
        activations: &DynActivations<D>,
        labels: &DynMirrored<i64, D::Storage>,
        weights: &DynMirrored<f32, D::Storage>,
    ) -> Result<f64> {
        self.read_sum(|sum| self.add_loss_sum(activations, labels, weights, sum))
    }

    /// [`DynModel::loss_sum`], added to a sum on the device: nothing waits for it.
    ///
    /// # Errors
    /// Those of [`DynModel::loss_sum`].
    pub fn add_loss_sum(
        &self,
        activations: &DynActivations<D>,
        labels: &DynMirrored<i64, D::Storage>,
        weights: &DynMirrored<f32, D::Storage>,
        sum: Sum<'_, D::Storage>,
    ) -> Result<()> {
        self.check_labels(activations.placement(), labels, weights)?;
        self.output_loss(activations.hidden(), labels, weights, sum);
        Ok(())
    }

    /// Adds up losses on the device, then reads the sum.
    fn read_sum(&self, add: impl FnOnce(Sum<'_, D::Storage>) -> Result<()>) -> Result<f64> {
        let mut sum = self.device().zero_matrix(1, 1);
        add(sum.view_mut())?;
        Ok(self.device().read(&sum)?[0])
    }

    /// [`DynModel::loss_sum`] of any normed features `[rows, hidden]`; the labels have been checked.
    pub(super) fn output_loss(
        &self,
        hidden: &ElemMatrix<D>,
        labels: &DynShard<i64, D::Storage>,
        weights: &DynShard<f32, D::Storage>,
        mut sum: Sum<'_, D::Storage>,
    ) {
        let (device, (labels, weights)) = (self.device(), (labels.matrix().view(), weights.matrix().view()));
        let mut logits = device.matrix(hidden.rows().min(CHUNK), self.config().vocab_size);
        for rows in chunks(hidden.rows()) {
            let mut logits = logits.view_mut().row_range(0..rows.len());
            device.linear(hidden.view().row_range(rows.clone()), self.head(), None, logits.reborrow());
            let (labels, weights) = (labels.row_range(rows.clone()), weights.row_range(rows));
            device.cross_entropy(logits, labels, weights, None, sum.reborrow());
        }
    }

    /// The same sum as [`DynModel::loss_sum`], with the gradient of `scale * sum`: that of [`DynActivations::hidden`]
    /// is returned, that of the output layer is added to `gradients`.
    ///
    /// # Errors
    /// Those of [`DynModel::loss_sum`].
    pub fn loss_backward(
        &self,
        activations: &DynActivations<D>,
        labels: &DynMirrored<i64, D::Storage>,
        weights: &DynMirrored<f32, D::Storage>,
        scale: f64,
        gradients: &mut Gradients<D>,
    ) -> Result<(f64, ElemMatrix<D>)> {
        let mut sum = self.device().zero_matrix(1, 1);
        let dhidden = self.add_loss_backward(activations, labels, weights, scale, gradients, sum.view_mut())?;
        Ok((self.device().read(&sum)?[0], dhidden))
    }

    /// [`DynModel::loss_backward`], with a sum on the device that is added to: nothing waits for it.
    ///
    /// # Errors
    /// Those of [`DynModel::loss_sum`].
    pub fn add_loss_backward(
        &self,
        activations: &DynActivations<D>,
        labels: &DynMirrored<i64, D::Storage>,
        weights: &DynMirrored<f32, D::Storage>,
        scale: f64,
        gradients: &mut Gradients<D>,
        sum: Sum<'_, D::Storage>,
    ) -> Result<ElemMatrix<D>> {
        self.check_labels(activations.placement(), labels, weights)?;
        Ok(self.output_loss_backward(activations.hidden(), (labels, weights), scale, gradients, sum))
    }

    /// [`DynModel::add_loss_backward`] of any normed features `[rows, hidden]`; the labels have been checked.
    #[allow(clippy::type_complexity)]
    pub(super) fn output_loss_backward(
        &self,
        hidden: &ElemMatrix<D>,
        (labels, weights): (&DynShard<i64, D::Storage>, &DynShard<f32, D::Storage>),
        scale: f64,
        gradients: &mut Gradients<D>,
        mut sum: Sum<'_, D::Storage>,
    ) -> ElemMatrix<D> {
        let (device, list) = (self.device(), self.parameters().list());
        let (labels, weights) = (labels.matrix().view(), weights.matrix().view());
        let mut dhidden = device.matrix(hidden.rows(), hidden.cols());
        let mut logits = device.matrix(hidden.rows().min(CHUNK), self.config().vocab_size);
        for rows in chunks(hidden.rows()) {
            let part = hidden.view().row_range(rows.clone());
            let mut logits = logits.view_mut().row_range(0..rows.len());
            device.linear(part, self.head(), None, logits.reborrow());
            let (labels, weights) = (labels.row_range(rows.clone()), weights.row_range(rows.clone()));
            device.cross_entropy(logits.reborrow(), labels, weights, Some(scale), sum.reborrow());
            let dlogits = logits.as_ref();
            device.linear_backward_input(dlogits, self.head(), dhidden.view_mut().row_range(rows), false);
            match list.head {
                Some(head) => device.linear_backward_weight(part, dlogits, gradients.view_mut(head)),
                // The table is the output layer transposed, so the two factors change places.
                None => device.linear_backward_weight(dlogits, part, gradients.view_mut(list.embedding)),
            }
        }
        dhidden
    }

    pub(super) fn check_labels(
        &self,
        placement: &DynPlacement,
        labels: &DynMirrored<i64, D::Storage>,
        weights: &DynMirrored<f32, D::Storage>,
    ) -> Result<()> {
        placement.expect_same("the hidden states", labels.placement(), "the labels")?;
        placement.expect_same("the hidden states", weights.placement(), "the label weights")?;
        for (what, found) in [("the labels", labels.matrix().cols()), ("the label weights", weights.matrix().cols())] {
            if found != 1 {
                return Err(LayoutError::Features { what, expected: 1, found }.into());
            }
        }
        let vocab = self.config().vocab_size as i64;
        let (labels, weights) = (labels.values(self.device())?, weights.values(self.device())?);
        let outside = |(label, weight): &(&i64, &f32)| **weight != 0.0 && !(0..vocab).contains(*label);
        match labels.iter().zip(&*weights).find(outside) {
            Some((label, _)) => Err(ModelError::Label { label: *label, vocab: vocab as usize }.into()),
            None => Ok(()),
        }
    }
}

/// The rows of each chunk. A last chunk of one row would be computed like any other: [`crate::ops::matmul`] gives a
/// row the same bits in any company.
fn chunks(rows: usize) -> impl Iterator<Item = Range<usize>> {
    (0..rows).step_by(CHUNK).map(move |first| first..rows.min(first + CHUNK))
}

/// Which labels count: weight 1, or 0 where the label is -100.
pub fn label_weights(labels: &[i64]) -> Vec<f32> {
    labels.iter().map(|&label| if label == IGNORED { 0.0 } else { 1.0 }).collect()
}

pub use crate::handler::IGNORED;
