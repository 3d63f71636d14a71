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
mod tests;
