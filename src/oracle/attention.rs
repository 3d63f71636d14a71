//! Dense softmax attention and its gradient, in `f64`, from the definition.

/// Head counts, sizes and the factor on the scores.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Heads {
    /// Query heads.
    pub query: usize,
    /// Key/value heads; each serves `query / key_value` consecutive query heads.
    pub key_value: usize,
    /// Features of a query or key head.
    pub qk_dim: usize,
    /// Features of a value or output head.
    pub v_dim: usize,
    /// Factor on the scores, usually `1 / sqrt(qk_dim)`.
    pub scale: f64,
}

/// One attention call over a whole batch, tokens in natural order.
#[derive(Clone, Copy)]
pub struct DenseAttention<'a> {
    /// Tokens of the batch, padding included.
    pub tokens: usize,
    /// Heads.
    pub heads: Heads,
    /// Queries, `[tokens, query * qk_dim]`.
    pub q: &'a [f64],
    /// Keys, `[tokens, key_value * qk_dim]`.
    pub k: &'a [f64],
    /// Values, `[tokens, key_value * v_dim]`.
    pub v: &'a [f64],
    /// Whether a query token (first) sees a key token (second). Rows that no cell uses are never read.
    pub attends: &'a dyn Fn(usize, usize) -> bool,
}

/// What attention gives.
#[derive(Clone, Debug, PartialEq)]
pub struct DenseOutput {
    /// `[tokens, query * v_dim]`; 0 for a query that sees nothing.
    pub out: Vec<f64>,
    /// Logarithm of the sum of the exponentials of the scaled scores, `[tokens, query]`; `-inf` for a query that sees
    /// nothing.
    pub lse: Vec<f64>,
}

/// DenseGradients of `sum(out * dout)`.
#[derive(Clone, Debug, PartialEq)]
pub struct DenseGradients {
    /// `[tokens, query * qk_dim]`.
    pub dq: Vec<f64>,
    /// `[tokens, key_value * qk_dim]`.
    pub dk: Vec<f64>,
    /// `[tokens, key_value * v_dim]`.
    pub dv: Vec<f64>,
}

impl DenseAttention<'_> {
    /// The key/value head that serves a query head.
    fn kv_head(&self, head: usize) -> usize {
        head / (self.heads.query / self.heads.key_value)
    }

    fn check(&self) {
        let (tokens, heads) = (self.tokens, self.heads);
        assert!(
            heads.key_value > 0 && heads.query.is_multiple_of(heads.key_value),
            "{} query heads for {} key/value heads",
            heads.query,
            heads.key_value
        );
        assert_eq!(self.q.len(), tokens * heads.query * heads.qk_dim, "q");
        assert_eq!(self.k.len(), tokens * heads.key_value * heads.qk_dim, "k");
        assert_eq!(self.v.len(), tokens * heads.key_value * heads.v_dim, "v");
    }

    /// The keys that `query` sees.
    fn keys(&self, query: usize) -> Vec<usize> {
        (0..self.tokens).filter(|&key| (self.attends)(query, key)).collect()
    }

    /// Probabilities of `keys` for one query and head, and their log-sum-exp.
    fn softmax(&self, query: usize, head: usize, keys: &[usize]) -> (Vec<f64>, f64) {
        let Heads { query: heads, key_value, qk_dim, scale, .. } = self.heads;
        let q = part(self.q, query, heads, head, qk_dim);
        let score = |&key: &usize| scale * dot(q, part(self.k, key, key_value, self.kv_head(head), qk_dim));
        let mut scores: Vec<f64> = keys.iter().map(score).collect();
        let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        scores.iter_mut().for_each(|score| *score = (*score - largest).exp());
        let sum: f64 = scores.iter().sum();
        scores.iter_mut().for_each(|score| *score /= sum);
        (scores, largest + sum.ln())
    }
}

/// `softmax(scale * q k^T) v` over the cells that the mask allows.
///
/// # Panics
/// If a tensor has another number of values than the problem says.
pub fn attention(problem: &DenseAttention) -> DenseOutput {
    problem.check();
    let Heads { query: heads, key_value, v_dim, .. } = problem.heads;
    let mut out = vec![0.0; problem.tokens * heads * v_dim];
    let mut lse = vec![f64::NEG_INFINITY; problem.tokens * heads];
    for query in 0..problem.tokens {
        let keys = problem.keys(query);
        for head in 0..heads {
            if keys.is_empty() {
                continue;
            }
            let (probabilities, row_lse) = problem.softmax(query, head, &keys);
            lse[query * heads + head] = row_lse;
            let row = part_mut(&mut out, query, heads, head, v_dim);
            for (&key, &p) in keys.iter().zip(&probabilities) {
                add(row, p, part(problem.v, key, key_value, problem.kv_head(head), v_dim));
            }
        }
    }
    DenseOutput { out, lse }
}

/// DenseGradients through [`attention`]: with `P` the probabilities, `dP = dout v^T` and
/// `dS = P * (dP - sum over keys of P * dP)`, they are `dq = scale * dS k`, `dk = scale * dS^T q`, `dv = P^T dout`.
///
/// `dout` is `[tokens, query * v_dim]`; rows of queries that see nothing are never read.
///
/// # Panics
/// If a tensor has another number of values than the problem says.
pub fn attention_backward(problem: &DenseAttention, dout: &[f64]) -> DenseGradients {
    problem.check();
    let Heads { query: heads, key_value, qk_dim, v_dim, scale } = problem.heads;
    assert_eq!(dout.len(), problem.tokens * heads * v_dim, "dout");
    let (mut dq, mut dk, mut dv) = (vec![0.0; problem.q.len()], vec![0.0; problem.k.len()], vec![0.0; problem.v.len()]);
    for query in 0..problem.tokens {
        let keys = problem.keys(query);
        for head in 0..heads {
            if keys.is_empty() {
                continue;
            }
            let kv_head = problem.kv_head(head);
            let (p, _) = problem.softmax(query, head, &keys);
            let dout = part(dout, query, heads, head, v_dim);
            let dp: Vec<f64> =
                keys.iter().map(|&key| dot(dout, part(problem.v, key, key_value, kv_head, v_dim))).collect();
            let delta = dot(&p, &dp);
            let q = part(problem.q, query, heads, head, qk_dim);
            let dq = part_mut(&mut dq, query, heads, head, qk_dim);
            for (i, &key) in keys.iter().enumerate() {
                let ds = scale * p[i] * (dp[i] - delta);
                add(dq, ds, part(problem.k, key, key_value, kv_head, qk_dim));
                add(part_mut(&mut dk, key, key_value, kv_head, qk_dim), ds, q);
                add(part_mut(&mut dv, key, key_value, kv_head, v_dim), p[i], dout);
            }
        }
    }
    DenseGradients { dq, dk, dv }
}

/// The features of one head of one token.
fn part(x: &[f64], token: usize, heads: usize, head: usize, dim: usize) -> &[f64] {
    &x[(token * heads + head) * dim..][..dim]
}

fn part_mut(x: &mut [f64], token: usize, heads: usize, head: usize, dim: usize) -> &mut [f64] {
    &mut x[(token * heads + head) * dim..][..dim]
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(sum: &mut [f64], factor: f64, x: &[f64]) {
    sum.iter_mut().zip(x).for_each(|(sum, x)| *sum += factor * x);
}

#[cfg(test)]
mod tests {
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
        let problem =
            DenseAttention { tokens: 1, heads, q: &[0.0; 4], k: &[0.0; 2], v: &[3.0, 9.0], attends: &attends };
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
        let problem =
            DenseAttention { tokens: 2, heads, q: &[1e4; 2], k: &[1.0, 1.0], v: &[2.0, 4.0], attends: &attends };
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
}
