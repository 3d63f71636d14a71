//! Token embedding on the processor.

use super::Embedding;
use crate::ops::parallel::{RowsMut, by_rows};
use crate::tensor::{AccMatrix, Buffer, Cpu, Device, ElemMatrix, Float};

impl<T: Float> Embedding for Cpu<T> {
    fn embed(&self, table: &ElemMatrix<Self>, tokens: &Buffer<i64>) -> ElemMatrix<Self> {
        let cols = table.cols();
        let mut y = self.matrix(tokens.len(), cols);
        by_rows(self, tokens.len(), cols, RowsMut::new(&mut y, cols), |range, mut y| {
            for (i, &token) in tokens[range].iter().enumerate() {
                y.row(i).copy_from_slice(table.row(index(token, table.rows())));
            }
        });
        y
    }

    fn embed_backward(
        &self,
        tokens: &Buffer<i64>,
        dy: &ElemMatrix<Self>,
        skip: Option<i64>,
        dtable: &mut AccMatrix<Self>,
    ) {
        assert_eq!((dy.rows(), dy.cols()), (tokens.len(), dtable.cols()), "a row of gradient per token");
        let vocab = dtable.rows();
        for (row, &token) in tokens.iter().enumerate().filter(|(_, token)| Some(**token) != skip) {
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
    use half::bf16;

    const TOKENS: [i64; 5] = [3, 0, 3, 6, 3];

    /// Rows of the table, and the table's gradient.
    fn run<T: Float>(tokens: &[i64]) -> [Vec<f64>; 2] {
        let cpu = Cpu::<T>::default();
        poison(&cpu, 1 << 12);
        let (table, tokens) = (random(1, 7, 4), cpu.upload(tokens));
        let mut dtable = cpu.zero_matrix(7, 4);
        cpu.embed_backward(&tokens, &random(2, tokens.len(), 4), None, &mut dtable);
        [wide(&cpu.embed(&table, &tokens)), wide(&dtable)]
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
        let tokens = cpu.upload(&TOKENS);
        let loss = |table: &[f64]| dot(&cpu.embed(&matrix(table, 7, 4), &tokens), &dy);
        assert!(relative(&run::<f64>(&TOKENS)[1], &differences(&values(1, 28), loss)) < 1e-8);
    }

    #[test]
    fn a_skipped_token_has_no_gradient() {
        let (cpu, dy, tokens) = (Cpu::<f64>::default(), random(2, 5, 4), TOKENS);
        let [_, mut expected] = run::<f64>(&tokens);
        expected[3 * 4..4 * 4].fill(0.0);
        let mut dtable = cpu.zero_matrix(7, 4);
        cpu.embed_backward(&cpu.upload(&tokens), &dy, Some(3), &mut dtable);
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
            bits(&cpu.embed(&random(1, 7, 4), &cpu.upload(&tokens)))
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
