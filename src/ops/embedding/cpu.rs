//! Token embedding on the processor.

use super::Embedding;
use crate::ops::parallel::{RowsMut, by_rows};
use crate::tensor::{AccMut, Cpu, ElemMut, ElemRef, Float, MatrixRef};

impl<T: Float> Embedding for Cpu<T> {
    fn embed(&self, table: ElemRef<'_, Self>, tokens: MatrixRef<'_, i64>, mut y: ElemMut<'_, Self>) {
        let (rows, cols) = (tokens.rows(), table.cols());
        assert_eq!((tokens.cols(), y.rows(), y.cols()), (1, rows, cols), "a row per token");
        by_rows(self, rows, cols, RowsMut::of(&mut y), |range, mut y| {
            for (i, row) in range.enumerate() {
                match tokens.row(row)[0] {
                    ..0 => y.row(i).fill(T::default()),
                    token => y.row(i).copy_from_slice(table.row(index(token, table.rows()))),
                }
            }
        });
    }

    fn embed_backward(
        &self,
        tokens: MatrixRef<'_, i64>,
        dy: ElemRef<'_, Self>,
        skip: Option<i64>,
        mut dtable: AccMut<'_, Self>,
    ) {
        let found = (tokens.cols(), dy.rows(), dy.cols());
        assert_eq!(found, (1, tokens.rows(), dtable.cols()), "a row of gradient per token");
        let vocab = dtable.rows();
        let tokens = (0..tokens.rows()).map(|row| (row, tokens.row(row)[0]));
        for (row, token) in tokens.filter(|&(_, token)| token >= 0 && Some(token) != skip) {
            let sum = dtable.row_mut(index(token, vocab));
            sum.iter_mut().zip(dy.row(row)).for_each(|(sum, dy)| *sum += dy.to_acc());
        }
    }
}

fn index(token: i64, vocab: usize) -> usize {
    assert!((0..vocab as i64).contains(&token), "token {token} of a vocabulary of {vocab}");
    token as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::*;
    use crate::tensor::{Device, Matrix};
    use half::bf16;

    const TOKENS: [i64; 5] = [3, 0, 3, 6, 3];

    fn column(tokens: &[i64]) -> Matrix<i64> {
        Matrix::from_slice(tokens, tokens.len(), 1)
    }

    fn embed<T: Float>(cpu: &Cpu<T>, table: &Matrix<T>, tokens: &[i64]) -> Matrix<T> {
        let mut y = poisoned(tokens.len(), table.cols());
        cpu.embed(table.view(), column(tokens).view(), y.view_mut());
        y
    }

    /// Rows of the table, and the table's gradient.
    fn run<T: Float>(tokens: &[i64]) -> [Vec<f64>; 2] {
        let cpu = Cpu::<T>::default();
        poison(&cpu, 1 << 12);
        let mut dtable = cpu.zero_matrix(7, 4);
        let dy = random(2, tokens.len(), 4);
        cpu.embed_backward(column(tokens).view(), dy.view(), None, dtable.view_mut());
        [wide(&embed(&cpu, &random(1, 7, 4), tokens)), wide(&dtable)]
    }

    #[test]
    fn rows_are_copies() {
        let (table, [y, _]) = (values(1, 28), run::<f64>(&TOKENS));
        for (row, &token) in TOKENS.iter().enumerate() {
            assert_eq!(y[row * 4..][..4], table[token as usize * 4..][..4]);
        }
    }

    #[test]
    fn gradient_equals_finite_differences() {
        let (cpu, dy) = (Cpu::<f64>::default(), values(2, 20));
        let loss = |table: &[f64]| dot(&embed(&cpu, &matrix(table, 7, 4), &TOKENS), &dy);
        assert!(relative(&run::<f64>(&TOKENS)[1], &differences(&values(1, 28), loss)) < 1e-8);
    }

    #[test]
    fn a_skipped_token_has_no_gradient() {
        let (cpu, dy, tokens) = (Cpu::<f64>::default(), random(2, 5, 4), TOKENS);
        let [_, mut expected] = run::<f64>(&tokens);
        expected[3 * 4..4 * 4].fill(0.0);
        let mut dtable = cpu.zero_matrix(7, 4);
        cpu.embed_backward(column(&tokens).view(), dy.view(), Some(3), dtable.view_mut());
        assert_eq!(wide(&dtable), expected);
    }

    #[test]
    fn single_and_half_precision_agree_with_double() {
        let exact = run::<f64>(&TOKENS);
        for (exact, (single, half)) in exact.iter().zip(run::<f32>(&TOKENS).iter().zip(&run::<bf16>(&TOKENS))) {
            assert!(relative(single, exact) < 2e-7);
            assert!(relative(half, exact) < 5e-3);
        }
    }

    #[test]
    fn threads_do_not_change_bits() {
        let tokens: Vec<i64> = (0..30_000).map(|i| i * i % 7).collect();
        let by = |threads| {
            let cpu = Cpu::<f32>::new(threads);
            bits(&embed(&cpu, &random(1, 7, 4), &tokens))
        };
        assert_eq!(by(1), by(3));
    }

    #[test]
    fn no_rows() {
        let [y, dtable] = run::<f32>(&[]);
        assert!(y.is_empty());
        assert_eq!(dtable, [0.0; 28]);
    }
}
