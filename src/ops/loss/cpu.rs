//! Cross entropy on the processor.

use super::CrossEntropy;
use crate::elementary::{exp, ln};
use crate::ops::parallel::{RowsMut, by_rows};
use crate::ops::simd;
use crate::ops::sums::{max, sum};
use crate::tensor::{Buffer, Cpu, ElemMut, Float, MatrixMut, MatrixRef};

impl<T: Float> CrossEntropy for Cpu<T> {
    fn cross_entropy(
        &self,
        mut logits: ElemMut<'_, Self>,
        labels: MatrixRef<'_, i64>,
        weights: MatrixRef<'_, f32>,
        scale: Option<f64>,
        mut sum: MatrixMut<'_, f64>,
    ) {
        let (rows, vocab) = (logits.rows(), logits.cols());
        let found = [labels.rows(), labels.cols(), weights.rows(), weights.cols()];
        assert_eq!(found, [rows, 1, rows, 1], "a label and a weight per row");
        assert_eq!((sum.rows(), sum.cols()), (1, 1), "one sum");
        let mut losses: Buffer<f64> = self.scratch(rows);
        let outputs = (RowsMut::of(&mut logits), RowsMut::new(&mut losses, 1));
        by_rows(self, rows, vocab, outputs, |range, (mut logits, mut losses)| {
            for (i, row) in range.enumerate() {
                let (label, weight) = (labels.row(row)[0], f64::from(weights.row(row)[0]));
                losses.all()[i] = one_row(logits.row(i), label, weight, scale);
            }
        });
        // In row order, so that the sum does not depend on threads.
        sum.row_mut(0)[0] += losses.iter().sum::<f64>();
    }
}

/// Logits whose exponentials are in memory at a time.
const CHUNK: usize = 256;

/// Calls `each` with stretches of logits and their exponentials, relative to `largest`.
fn with_exponentials<T: Float>(logits: &mut [T], largest: T::Acc, mut each: impl FnMut(&mut [T], &[T::Acc])) {
    let mut exponentials = [T::Acc::default(); CHUNK];
    for chunk in logits.chunks_mut(CHUNK) {
        let exponentials = &mut exponentials[..chunk.len()];
        exponentials.iter_mut().zip(chunk.iter()).for_each(|(e, x)| *e = x.to_acc());
        simd::exp_sum(exponentials, largest);
        each(chunk, exponentials);
    }
}

/// Weighted loss of one row; its logits become the gradient if `scale` is given.
fn one_row<T: Float>(logits: &mut [T], label: i64, weight: f64, scale: Option<f64>) -> f64 {
    if weight == 0.0 {
        if scale.is_some() {
            logits.fill(T::default());
        }
        return 0.0;
    }
    assert!((0..logits.len() as i64).contains(&label), "label {label} of a vocabulary of {}", logits.len());
    let label = label as usize;
    let largest: T::Acc = max(logits, T::to_acc);
    let mut total = 0.0;
    with_exponentials(logits, largest, |_, exponentials| total += sum(exponentials, |e| e.to_f64()));
    let at_label = logits[label].to_acc() - largest;
    if let Some(scale) = scale {
        let scale = scale * weight;
        let factor = T::Acc::from_f64(scale / total);
        let gradient = scale * (exp(at_label.to_f64()) / total - 1.0);
        with_exponentials(logits, largest, |logits, exponentials| {
            logits.iter_mut().zip(exponentials).for_each(|(x, &e)| *x = T::from_acc(e * factor));
        });
        logits[label] = T::from_f64(gradient);
    }
    weight * (ln(total) - at_label.to_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::*;
    use crate::tensor::{Device, Matrix};
    use half::bf16;

    const ROWS: usize = 4;
    const VOCAB: usize = 37;
    const LABELS: [i64; ROWS] = [5, -100, 36, 0];
    const WEIGHTS: [f32; ROWS] = [1.0, 0.0, 0.5, 2.0];

    /// Loss and gradient of logits.
    fn run<T: Float>(cpu: &Cpu<T>, logits: &[f64], scale: Option<f64>) -> (f64, Vec<f64>) {
        let mut logits = matrix::<T>(logits, ROWS, VOCAB);
        let loss = loss(cpu, &mut logits, &LABELS, &WEIGHTS, scale);
        (loss, wide(&logits))
    }

    fn loss<T: Float>(
        cpu: &Cpu<T>,
        logits: &mut Matrix<T>,
        labels: &[i64],
        weights: &[f32],
        scale: Option<f64>,
    ) -> f64 {
        let (labels, weights) =
            (Matrix::from_slice(labels, labels.len(), 1), Matrix::from_slice(weights, weights.len(), 1));
        let mut sum = cpu.zero_matrix(1, 1);
        cpu.cross_entropy(logits.view_mut(), labels.view(), weights.view(), scale, sum.view_mut());
        sum[0]
    }

    fn logits() -> Vec<f64> {
        values(1, ROWS * VOCAB).iter().map(|x| 4.0 * x).collect()
    }

    #[test]
    fn loss_is_the_negative_log_probability() {
        let logits = logits();
        let row = |row: usize, label: usize| {
            let x = &logits[row * VOCAB..][..VOCAB];
            x.iter().map(|x| x.exp()).sum::<f64>().ln() - x[label]
        };
        let (loss, unchanged) = run(&Cpu::<f64>::default(), &logits, None);
        assert!((loss - (row(0, 5) + 0.5 * row(2, 36) + 2.0 * row(3, 0))).abs() < 1e-12);
        assert_eq!(unchanged, logits);
    }

    #[test]
    fn gradient_equals_finite_differences() {
        let cpu = Cpu::<f64>::default();
        let (_, gradient) = run(&cpu, &logits(), Some(0.25));
        assert!(relative(&gradient, &differences(&logits(), |x| 0.25 * run(&cpu, x, None).0)) < 1e-8);
    }

    #[test]
    fn single_and_half_precision_agree_with_double() {
        let (loss, gradient) = run(&Cpu::<f64>::default(), &logits(), Some(0.25));
        let (single_loss, single) = run(&Cpu::<f32>::default(), &logits(), Some(0.25));
        let (half_loss, half) = run(&Cpu::<bf16>::default(), &logits(), Some(0.25));
        assert!((single_loss / loss - 1.0).abs() < 2e-7 && relative(&single, &gradient) < 5e-7);
        assert!((half_loss / loss - 1.0).abs() < 1e-2 && relative(&half, &gradient) < 2e-2);
    }

    #[test]
    fn a_row_without_weight_counts_nothing_whatever_it_holds() {
        let mut poisoned = logits();
        poisoned[VOCAB..2 * VOCAB].fill(f64::NAN);
        let cpu = Cpu::<f32>::default();
        let (clean, (loss, gradient)) = (run(&cpu, &logits(), Some(1.0)), run(&cpu, &poisoned, Some(1.0)));
        assert_eq!((loss, &gradient), (clean.0, &clean.1));
        assert_eq!(gradient[VOCAB..2 * VOCAB], [0.0; VOCAB]);
    }

    #[test]
    fn huge_logits_do_not_overflow() {
        let cpu = Cpu::<f32>::default();
        let mut logits = matrix(&[1e30, -1e30, 0.0], 1, 3);
        let loss = loss(&cpu, &mut logits, &[0], &[1.0], Some(1.0));
        assert_eq!((loss, &logits[..]), (0.0, &[0.0, 0.0, 0.0][..]));
    }

    #[test]
    fn a_nan_that_counts_shows() {
        let mut poisoned = logits();
        poisoned[7] = f64::NAN;
        assert!(run(&Cpu::<f32>::default(), &poisoned, None).0.is_nan());
    }

    #[test]
    fn threads_do_not_change_bits() {
        let by = |threads| {
            let cpu = Cpu::<f32>::new(threads);
            let mut logits = random::<f32>(1, 900, 100);
            let labels: Vec<i64> = (0..900).map(|i| i % 100).collect();
            let loss = loss(&cpu, &mut logits, &labels, &[1.0; 900], Some(0.1));
            (loss.to_bits(), bits(&logits))
        };
        assert_eq!(by(1), by(3));
    }

    #[test]
    fn losses_add_up_over_ranges_of_rows() {
        let cpu = Cpu::<f64>::default();
        let (whole, gradient) = run(&cpu, &logits(), Some(0.25));
        let mut parts = matrix::<f64>(&logits(), ROWS, VOCAB);
        let (labels, weights) = (Matrix::from_slice(&LABELS, ROWS, 1), Matrix::from_slice(&WEIGHTS, ROWS, 1));
        let mut sum = cpu.zero_matrix(1, 1);
        for rows in [0..1, 1..ROWS] {
            let (labels, weights) = (labels.view().row_range(rows.clone()), weights.view().row_range(rows.clone()));
            cpu.cross_entropy(parts.view_mut().row_range(rows), labels, weights, Some(0.25), sum.view_mut());
        }
        assert!((sum[0] - whole).abs() < 1e-14);
        assert_eq!(wide(&parts), gradient);
    }

    #[test]
    fn no_rows() {
        let cpu = Cpu::<f32>::default();
        let mut logits: Matrix<f32> = cpu.matrix(0, 5);
        assert_eq!(loss(&cpu, &mut logits, &[], &[], Some(1.0)), 0.0);
    }
}
