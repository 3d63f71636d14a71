//! Cross entropy on the processor.

use num_traits::Float as _;

use crate::ops::loss::CrossEntropy;
use crate::tensor::{Buffer, Cpu, Float, Matrix};

impl<T: Float> CrossEntropy for Cpu<T> {
    fn cross_entropy(
        &self,
        logits: &mut Matrix<T>,
        labels: &Buffer<i64>,
        weights: &Buffer<f32>,
        scale: Option<f64>,
    ) -> f64 {
        let mut total = 0.0;
        for row in 0..logits.rows() {
            let (label, weight) = (labels[row] as usize, f64::from(weights[row]));
            let logits = logits.row_mut(row);
            if weight == 0.0 {
                if scale.is_some() {
                    logits.fill(T::default());
                }
                continue;
            }
            let largest = logits.iter().map(|x| x.to_acc()).fold(T::Acc::neg_infinity(), |a, b| a.max(b));
            let sum: T::Acc = logits.iter().map(|x| (x.to_acc() - largest).exp()).sum();
            total += weight * (sum.ln() + largest - logits[label].to_acc()).to_f64();
            if let Some(scale) = scale {
                let factor = T::Acc::from_f64(scale * weight);
                for (column, x) in logits.iter_mut().enumerate() {
                    let p = (x.to_acc() - largest).exp() / sum;
                    let target = T::Acc::from_f64(if column == label { 1.0 } else { 0.0 });
                    *x = T::from_acc(factor * (p - target));
                }
            }
        }
        total
    }
}
