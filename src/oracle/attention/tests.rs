//! Attention and its gradient by hand, and against finite differences.

use super::super::{causal, documents, full, relative_error, window};
use super::*;

fn close(found: &[f64], expected: &[f64]) {
    let error = relative_error(found, expected, 0.0);
    assert!(error < 1e-14, "{found:?} is not {expected:?}: {error}");
}

/// Numbers in -1..1 without pattern.
fn noise(seed: u64, len: usize) -> Vec<f64> {
    let mut state = seed;
    let next = |_| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    };
    (0..len).map(next).collect()
}

#[test]
fn two_tokens_by_hand() {
    // Scores of query 1 are ln 3 and 0: probabilities 3/4 and 1/4.
    let documents = documents(&[2], &[2]);
    let attends = causal(&documents);
    let heads = Heads { query: 1, key_value: 1, qk_dim: 1, v_dim: 2, scale: 0.5 };
    let (q, k, v) = ([7.0, 2.0], [3f64.ln(), 0.0], [4.0, 8.0, 0.0, 4.0]);
    let problem = DenseAttention { tokens: 2, heads, q: &q, k: &k, v: &v, attends: &attends };
    let found = attention(&problem);
    close(&found.out, &[4.0, 8.0, 3.0, 7.0]);
    close(&found.lse, &[3.5 * 3f64.ln(), 4f64.ln()]);
    // dP = [8, 2] of query 1, delta = 13/2, dS = [9/8, -9/8].
    let gradients = attention_backward(&problem, &[5.0, 0.0, 1.0, 0.5]);
    close(&gradients.dq, &[0.0, 0.5625 * 3f64.ln()]);
    close(&gradients.dk, &[1.125, -1.125]);
    close(&gradients.dv, &[5.75, 0.375, 0.25, 0.125]);
}

#[test]
fn three_tokens_that_all_see_each_other() {
    // Scores 0, ln 2, ln 5 for every query: probabilities 1/8, 2/8, 5/8.
    let documents = documents(&[3], &[3]);
    let attends = full(&documents);
    let heads = Heads { query: 1, key_value: 1, qk_dim: 1, v_dim: 1, scale: 1.0 };
    let (q, k, v) = ([1.0; 3], [0.0, 2f64.ln(), 5f64.ln()], [8.0, 16.0, -8.0]);
    let problem = DenseAttention { tokens: 3, heads, q: &q, k: &k, v: &v, attends: &attends };
    let found = attention(&problem);
    close(&found.out, &[0.0; 3]);
    close(&found.lse, &[8f64.ln(); 3]);
    let gradients = attention_backward(&problem, &[1.0, 0.0, 0.0]);
    close(&gradients.dv, &[0.125, 0.25, 0.625]);
    close(&gradients.dk, &[1.0, 4.0, -5.0]);
    close(&gradients.dq, &[4.0 * 2f64.ln() - 5.0 * 5f64.ln(), 0.0, 0.0]);
}

#[test]
fn query_heads_share_key_value_heads_in_order() {
    let documents = documents(&[1], &[1]);
    let attends = full(&documents);
    let heads = Heads { query: 4, key_value: 2, qk_dim: 1, v_dim: 1, scale: 1.0 };
    let problem = DenseAttention { tokens: 1, heads, q: &[0.0; 4], k: &[0.0; 2], v: &[3.0, 9.0], attends: &attends };
    assert_eq!(attention(&problem).out, [3.0, 3.0, 9.0, 9.0]);
    assert_eq!(attention_backward(&problem, &[1.0, 2.0, 4.0, 8.0]).dv, [3.0, 12.0]);
}

#[test]
fn a_query_that_sees_nothing_gives_nothing_and_padding_is_not_read() {
    let documents = documents(&[1, 0], &[2, 1]);
    let attends = causal(&documents);
    let heads = Heads { query: 1, key_value: 1, qk_dim: 1, v_dim: 1, scale: 1.0 };
    let nan = f64::NAN;
    let (q, k, v) = ([1.0, nan, nan], [1.0, nan, nan], [5.0, nan, nan]);
    let problem = DenseAttention { tokens: 3, heads, q: &q, k: &k, v: &v, attends: &attends };
    let found = attention(&problem);
    assert_eq!(found.out, [5.0, 0.0, 0.0]);
    assert_eq!(found.lse, [1.0, f64::NEG_INFINITY, f64::NEG_INFINITY]);
    let gradients = attention_backward(&problem, &[2.0, nan, nan]);
    assert_eq!(gradients, DenseGradients { dq: vec![0.0; 3], dk: vec![0.0; 3], dv: vec![2.0, 0.0, 0.0] });
}

#[test]
fn large_scores_do_not_overflow() {
    let documents = documents(&[2], &[2]);
    let attends = full(&documents);
    let heads = Heads { query: 1, key_value: 1, qk_dim: 1, v_dim: 1, scale: 1.0 };
    let problem = DenseAttention { tokens: 2, heads, q: &[1e4; 2], k: &[1.0, 1.0], v: &[2.0, 4.0], attends: &attends };
    let found = attention(&problem);
    close(&found.out, &[3.0; 2]);
    close(&found.lse, &[1e4 + 2f64.ln(); 2]);
}

#[test]
fn gradients_agree_with_finite_differences() {
    let documents = documents(&[5, 0, 3], &[6, 1, 3]);
    let attends = window(&documents, Some(2), Some(1));
    let heads = Heads { query: 4, key_value: 2, qk_dim: 3, v_dim: 2, scale: 0.7 };
    let tokens = 10;
    let inputs = [noise(1, tokens * 12), noise(2, tokens * 6), noise(3, tokens * 4)];
    let dout = noise(4, tokens * 8);
    let loss = |inputs: &[Vec<f64>; 3]| {
        let [q, k, v] = inputs;
        dot(&attention(&DenseAttention { tokens, heads, q, k, v, attends: &attends }).out, &dout)
    };
    let [q, k, v] = &inputs;
    let found = attention_backward(&DenseAttention { tokens, heads, q, k, v, attends: &attends }, &dout);
    let step = 1e-5;
    for (which, found) in [found.dq, found.dk, found.dv].iter().enumerate() {
        let mut expected = Vec::new();
        for i in 0..inputs[which].len() {
            let at = |step: f64| {
                let mut moved = inputs.clone();
                moved[which][i] += step;
                loss(&moved)
            };
            expected.push((at(step) - at(-step)) / (2.0 * step));
        }
        let error = relative_error(found, &expected, 0.0);
        assert!(error < 1e-8, "input {which}: {error}");
    }
}
