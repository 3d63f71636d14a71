//! The output layer and its loss, a chunk of rows at a time so that logits never fill the memory.

use crate::error::{LayoutError, Result};
use crate::model::network::{DynActivations, DynModel};
use crate::model::parameters::Gradients;
use crate::ops::Ops;
use crate::order::DynShard;
use crate::tensor::{Buffer, ElemMatrix, Storage};

/// Logits of at most this many rows are in memory at a time.
const CHUNK: usize = 1024;

impl<D: Ops> DynModel<D> {
    /// Logits of this rank's rows, `[rows, vocab]`.
    pub fn logits(&self, activations: &DynActivations<D>) -> ElemMatrix<D> {
        self.device().linear(activations.hidden(), self.head(), None)
    }

    /// The sum over this rank's rows of `weight * -log softmax(logits)[label]`, in nats. `labels` and `weights` are
    /// `[rows, 1]`; a label whose weight is 0 may be anything.
    ///
    /// # Errors
    /// Shards of another placement, or a label that counts and is outside the vocabulary.
    pub fn loss_sum(
        &self,
        activations: &DynActivations<D>,
        labels: &DynShard<i64, D::Storage>,
        weights: &DynShard<f32, D::Storage>,
    ) -> Result<f64> {
        self.check_labels(activations, labels, weights)?;
        Ok(self.output_loss(activations.hidden(), labels, weights))
    }

    /// [`DynModel::loss_sum`] of any normed features `[rows, hidden]`; the labels have been checked.
    pub(super) fn output_loss(
        &self,
        hidden: &ElemMatrix<D>,
        labels: &DynShard<i64, D::Storage>,
        weights: &DynShard<f32, D::Storage>,
    ) -> f64 {
        let device = self.device();
        let mut sum = 0.0;
        for rows in chunks(hidden.rows()) {
            let part = self.part(hidden, &rows);
            let mut logits = device.linear(&part, self.head(), None);
            let (labels, weights) = (cut(labels.matrix().buffer(), &rows), cut(weights.matrix().buffer(), &rows));
            sum += device.cross_entropy(&mut logits, &labels, &weights, None);
        }
        sum
    }

    /// The same sum, with the gradient of `scale * sum`: that of [`DynActivations::hidden`] is returned, that of the
    /// output layer is added to `gradients`.
    pub fn loss_backward(
        &self,
        activations: &DynActivations<D>,
        labels: &DynShard<i64, D::Storage>,
        weights: &DynShard<f32, D::Storage>,
        scale: f64,
        gradients: &mut Gradients<D>,
    ) -> Result<(f64, ElemMatrix<D>)> {
        self.check_labels(activations, labels, weights)?;
        Ok(self.output_loss_backward(activations.hidden(), labels, weights, scale, gradients))
    }

    /// [`DynModel::loss_backward`] of any normed features `[rows, hidden]`; the labels have been checked.
    pub(super) fn output_loss_backward(
        &self,
        hidden: &ElemMatrix<D>,
        labels: &DynShard<i64, D::Storage>,
        weights: &DynShard<f32, D::Storage>,
        scale: f64,
        gradients: &mut Gradients<D>,
    ) -> (f64, ElemMatrix<D>) {
        let (device, list) = (self.device(), self.parameters().list());
        let mut dhidden = device.matrix(hidden.rows(), hidden.cols());
        let mut sum = 0.0;
        for rows in chunks(hidden.rows()) {
            let part = self.part(hidden, &rows);
            let mut logits = device.linear(&part, self.head(), None);
            let (labels, weights) = (cut(labels.matrix().buffer(), &rows), cut(weights.matrix().buffer(), &rows));
            sum += device.cross_entropy(&mut logits, &labels, &weights, Some(scale));
            let mut dpart = device.matrix(part.rows(), part.cols());
            device.linear_backward_input(&logits, self.head(), &mut dpart, false);
            match list.head {
                Some(head) => device.linear_backward_weight(&part, &logits, &mut gradients[head], None),
                // The table is the output layer transposed, so the two factors change places.
                None => device.linear_backward_weight(&logits, &part, &mut gradients[list.embedding], None),
            }
            device.scatter_rows(&dpart, &rows, &mut dhidden, 0);
        }
        (sum, dhidden)
    }

    fn part(&self, hidden: &ElemMatrix<D>, rows: &[usize]) -> ElemMatrix<D> {
        let mut part = self.device().matrix(rows.len(), hidden.cols());
        self.device().gather_rows(hidden, rows, &mut part, 0);
        part
    }

    pub(super) fn check_labels(
        &self,
        activations: &DynActivations<D>,
        labels: &DynShard<i64, D::Storage>,
        weights: &DynShard<f32, D::Storage>,
    ) -> Result<()> {
        let placement = activations.placement();
        placement.expect_same("the hidden states", labels.placement(), "the labels")?;
        placement.expect_same("the hidden states", weights.placement(), "the label weights")?;
        for (what, found) in [("the labels", labels.matrix().cols()), ("the label weights", weights.matrix().cols())] {
            if found != 1 {
                return Err(LayoutError::Features { what, expected: 1, found }.into());
            }
        }
        let vocab = self.config().vocab_size as i64;
        let device = self.device();
        let (labels, weights) = (device.download(labels.matrix().buffer()), device.download(weights.matrix().buffer()));
        let outside = |(label, weight): &(&i64, &f32)| **weight != 0.0 && !(0..vocab).contains(*label);
        match labels.iter().zip(&weights).find(outside) {
            Some((label, _)) => Err(crate::error::ModelError::Label { label: *label, vocab: vocab as usize }.into()),
            None => Ok(()),
        }
    }
}

/// The rows of each chunk. A last chunk of one row would be computed like any other: [`crate::ops::matmul`] gives a
/// row the same bits in any company.
fn chunks(rows: usize) -> impl Iterator<Item = Vec<usize>> {
    (0..rows).step_by(CHUNK).map(move |first| (first..rows.min(first + CHUNK)).collect())
}

fn cut<T: crate::tensor::Element, S: Storage>(buffer: &Buffer<T, S>, rows: &[usize]) -> Buffer<T, S> {
    let first = rows.first().copied().unwrap_or(0);
    S::part(buffer, first..first + rows.len())
}

/// Which labels count: weight 1, or 0 where the label is -100.
pub fn label_weights(labels: &[i64]) -> Vec<f32> {
    labels.iter().map(|&label| if label == IGNORED { 0.0 } else { 1.0 }).collect()
}

pub use crate::handler::IGNORED;
