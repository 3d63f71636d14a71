//! Tiled attention over bands (FlashAttention, Dao 2023): outputs with their log-sum-exp, and gradients.

mod backward;
mod cpu;
pub(crate) mod pack;
mod schedule;

pub(crate) use schedule::mask_row;

use crate::error::SupportError;
use crate::plan::Piece;
use crate::tensor::{AccMatrix, Device, ElemMatrix};

/// Head counts and sizes of one attention call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// Query heads.
    pub q_heads: usize,
    /// Key/value heads; each serves `q_heads / kv_heads` consecutive query heads.
    pub kv_heads: usize,
    /// Features of a query or key head.
    pub qk_dim: usize,
    /// Features of a value or output head.
    pub v_dim: usize,
    /// Factor on the scores, usually `1 / sqrt(qk_dim)`.
    pub scale: f64,
}

impl AttentionShape {
    /// Columns of the queries.
    pub fn q_width(&self) -> usize {
        self.q_heads * self.qk_dim
    }

    /// Columns of the keys.
    pub fn k_width(&self) -> usize {
        self.kv_heads * self.qk_dim
    }

    /// Columns of the values.
    pub fn v_width(&self) -> usize {
        self.kv_heads * self.v_dim
    }

    /// Columns of a row that holds keys, then values.
    pub fn kv_width(&self) -> usize {
        self.k_width() + self.v_width()
    }

    /// Columns of the output.
    pub fn out_width(&self) -> usize {
        self.q_heads * self.v_dim
    }

    /// Refuses head counts that nothing can be computed with, and widths that are no number of columns.
    ///
    /// # Errors
    /// [`SupportError::Numbers`] with the counts.
    pub fn check(&self) -> Result<(), SupportError> {
        let AttentionShape { q_heads, kv_heads, qk_dim, v_dim, scale } = *self;
        let refuse = |message| Err(SupportError::Numbers(message));
        if q_heads == 0 || kv_heads == 0 || !q_heads.is_multiple_of(kv_heads) {
            return refuse(format!(
                "{q_heads} query heads do not share {kv_heads} key/value heads evenly: use a multiple, and at least one"
            ));
        }
        if qk_dim == 0 || v_dim == 0 {
            return refuse(format!("heads of {qk_dim} features for keys and {v_dim} for values: use at least 1 of each"));
        }
        if !scale.is_finite() {
            return refuse(format!("scores are multiplied by {scale}: use a finite number, such as 1 / sqrt({qk_dim})"));
        }
        // The widest row there is holds the keys and values of every query head.
        match qk_dim.checked_add(v_dim).and_then(|dim| dim.checked_mul(q_heads)) {
            Some(_) => Ok(()),
            None => refuse(format!("{q_heads} heads of {qk_dim} and {v_dim} features: use fewer")),
        }
    }

    /// Query heads per key/value head.
    pub fn group(&self) -> usize {
        self.q_heads / self.kv_heads
    }
}

/// Attention of a buffer of queries to a buffer of keys and values.
///
/// `q` is `[queries, q_width]`, `kv` is `[keys, kv_width]` (a row holds its keys, then its values). Key blocks are
/// cut at multiples of 256 rows of `kv` and computed whole or skipped whole for a tile of queries, so an output row
/// has the same bits whatever other queries the buffer holds.
pub trait Attention: Device {
    /// Writes `out [queries, out_width]` and `lse [queries, q_heads]`. A query that attends nothing gets 0 and
    /// `-inf`. `pieces` are sorted by `q_row`, then by `k_row`.
    fn attention(
        &self,
        shape: &AttentionShape,
        q: &ElemMatrix<Self>,
        kv: &ElemMatrix<Self>,
        pieces: &[Piece],
        out: &mut AccMatrix<Self>,
        lse: &mut AccMatrix<Self>,
    );

    /// Merges a partial result into a running one, safe for `-inf`.
    fn attention_merge(
        &self,
        shape: &AttentionShape,
        out: &mut AccMatrix<Self>,
        lse: &mut AccMatrix<Self>,
        part_out: &AccMatrix<Self>,
        part_lse: &AccMatrix<Self>,
    );

    /// `delta [queries, q_heads]`: the sum over a head's features of `out * dout`.
    fn attention_delta(
        &self,
        shape: &AttentionShape,
        out: &AccMatrix<Self>,
        dout: &ElemMatrix<Self>,
    ) -> AccMatrix<Self>;

    /// Adds to `dq [queries, q_width]` and `dkv [keys, kv_width]` the gradients through the given pieces. `lse` and
    /// `delta` are those of the final output. Queries with `lse == -inf` contribute nothing.
    #[allow(clippy::too_many_arguments)]
    fn attention_backward(
        &self,
        shape: &AttentionShape,
        q: &ElemMatrix<Self>,
        kv: &ElemMatrix<Self>,
        pieces: &[Piece],
        dout: &ElemMatrix<Self>,
        lse: &AccMatrix<Self>,
        delta: &AccMatrix<Self>,
        dq: &mut AccMatrix<Self>,
        dkv: &mut AccMatrix<Self>,
    );
}
