//! Tiled attention over bands (FlashAttention, Dao 2023): outputs with their log-sum-exp, and gradients.

#[cfg(any(feature = "cuda", test))]
mod attended;
mod backward;
mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
#[cfg(any(feature = "cuda", test))]
mod cuts;
pub(crate) mod pack;
mod schedule;
#[cfg(any(feature = "cuda", test))]
mod shares;
#[cfg(any(feature = "cuda", test))]
pub(crate) mod visits;

pub use schedule::TileSchedule;
pub(crate) use schedule::mask_row;

use crate::error::SupportError;
use crate::ops::op::op;
use crate::plan::TileCells;
use crate::tensor::{AccMut, AccRef, Device, ElemRef, product};

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

/// Rows and columns.
type Size = (usize, usize);

impl AttentionShape {
    /// Whether attention of this shape can be computed. The ops of [`Attention`] and
    /// [`UnfusedAttention`](crate::ops::unfused::UnfusedAttention) panic with the same message where it cannot; so do
    /// the widths below where they cannot be counted.
    ///
    /// # Errors
    /// [`SupportError::Numbers`] if there are no heads or no features, if key/value heads do not divide the query
    /// heads, if a width cannot be counted, or if the scale is not finite.
    pub fn check(&self) -> Result<(), SupportError> {
        let AttentionShape { q_heads, kv_heads, qk_dim, v_dim, scale } = *self;
        let refuse = |text: String| Err(SupportError::Numbers(text));
        if q_heads == 0 || kv_heads == 0 || !q_heads.is_multiple_of(kv_heads) {
            return refuse(format!(
                "{q_heads} query heads do not share {kv_heads} key/value heads evenly: use a multiple, and at least 1"
            ));
        }
        if qk_dim == 0 || v_dim == 0 {
            return refuse(format!(
                "heads with {qk_dim} features of queries and keys and {v_dim} of values: use at least 1 of each"
            ));
        }
        let widest = qk_dim.checked_add(v_dim).and_then(|dims| dims.checked_mul(q_heads));
        if widest.is_none_or(|widest| widest > isize::MAX as usize) {
            return refuse(format!("{q_heads} heads of {qk_dim} and {v_dim} features cannot be counted: use fewer"));
        }
        if !scale.is_finite() {
            return refuse(format!("scale {scale} of attention scores: use a finite number"));
        }
        Ok(())
    }

    /// [`AttentionShape::check`] for ops, which have no errors.
    pub(crate) fn expect(&self) {
        self.check().unwrap_or_else(|error| panic!("{error}"));
    }

    /// Checks rows and columns of queries, and of keys with their values; gives the rows of both.
    pub(crate) fn expect_inputs(&self, q: Size, kv: Size) -> (usize, usize) {
        self.expect();
        assert_eq!((q.1, kv.1), (self.q_width(), self.kv_width()), "columns of q and kv");
        (q.0, kv.0)
    }

    /// Checks outputs of so many queries, or their gradients.
    pub(crate) fn expect_outputs(&self, queries: usize, out: Size) {
        assert_eq!(out, (queries, self.out_width()), "shape of out");
    }

    /// Checks a number for every query and head: log-sum-exp or delta.
    pub(crate) fn expect_numbers(&self, queries: usize, numbers: Size) {
        assert_eq!(numbers, (queries, self.q_heads), "shape of the numbers of every query and head");
    }

    /// Checks gradients of so many queries and keys.
    pub(crate) fn expect_gradients(&self, (queries, keys): (usize, usize), dq: Size, dkv: Size) {
        assert_eq!(dq, (queries, self.q_width()), "shape of dq");
        assert_eq!(dkv, (keys, self.kv_width()), "shape of dkv");
    }

    /// Columns of the queries.
    pub fn q_width(&self) -> usize {
        product(&[self.q_heads, self.qk_dim])
    }

    /// Columns of the keys.
    pub fn k_width(&self) -> usize {
        product(&[self.kv_heads, self.qk_dim])
    }

    /// Columns of the values.
    pub fn v_width(&self) -> usize {
        product(&[self.kv_heads, self.v_dim])
    }

    /// Columns of a row that holds keys, then values.
    pub fn kv_width(&self) -> usize {
        self.k_width() + self.v_width()
    }

    /// Columns of the output.
    pub fn out_width(&self) -> usize {
        product(&[self.q_heads, self.v_dim])
    }

    /// Query heads per key/value head.
    pub fn group(&self) -> usize {
        self.q_heads / self.kv_heads
    }
}

#[cfg(feature = "conformance")]
impl crate::tensor::queued::Argument for &AttentionShape {
    type Kept = crate::tensor::queued::Referred<AttentionShape>;

    fn keep(self, _issue: &mut crate::tensor::queued::Issue<'_>) -> Self::Kept {
        crate::tensor::queued::Referred(*self)
    }
}

op! {
    /// Attention of a buffer of queries to a buffer of keys and values.
    ///
    /// `q` is `[queries, q_width]`, `kv` is `[keys, kv_width]` (a row holds its keys, then its values). On the
    /// processor key blocks are cut at multiples of 256 rows of `kv` and computed whole or skipped whole for a tile of
    /// queries, so an output row has the same bits whatever other queries the buffer holds; GPUs cut them where a tile
    /// of queries first attends.
    pub trait Attention: Device {
        prepared {
            /// A tile as the device takes it: which cells are attended, and in what order they are computed.
            type Tiles;

            /// Prepares a tile, once for all layers and passes in which the same queries meet the same keys.
            ///
            /// # Panics
            /// If a piece is not inside the buffers.
            fn tiles(&self, cells: &TileCells) -> _;
        }

        /// Writes `out [queries, out_width]` and `lse [queries, q_heads]`. A query that attends nothing gets 0 and
        /// `-inf`.
        fn attention(
            &self,
            shape: &AttentionShape,
            q: ElemRef<'_, Self>,
            kv: ElemRef<'_, Self>,
            tiles: &Self::Tiles,
            out: AccMut<'_, Self>,
            lse: AccMut<'_, Self>,
        );

        /// Merges a partial result into a running one, safe for `-inf`.
        fn attention_merge(
            &self,
            shape: &AttentionShape,
            out: AccMut<'_, Self>,
            lse: AccMut<'_, Self>,
            part_out: AccRef<'_, Self>,
            part_lse: AccRef<'_, Self>,
        );

        /// Writes `delta [queries, q_heads]`: the sum over a head's features of `out * dout`.
        fn attention_delta(
            &self,
            shape: &AttentionShape,
            out: AccRef<'_, Self>,
            dout: ElemRef<'_, Self>,
            delta: AccMut<'_, Self>,
        );

        /// Adds to `dq [queries, q_width]` and `dkv [keys, kv_width]` the gradients through the cells of the tile.
        /// `lse` and `delta` are those of the final output. Queries with `lse == -inf` contribute nothing.
        fn attention_backward(
            &self,
            shape: &AttentionShape,
            q: ElemRef<'_, Self>,
            kv: ElemRef<'_, Self>,
            tiles: &Self::Tiles,
            dout: ElemRef<'_, Self>,
            lse: AccRef<'_, Self>,
            delta: AccRef<'_, Self>,
            dq: AccMut<'_, Self>,
            dkv: AccMut<'_, Self>,
        );

        provided {
            /// Whether the device computes attention of this shape: asked before anything is computed, since ops have
            /// no errors.
            ///
            /// # Errors
            /// Those of [`AttentionShape::check`], and heads that are larger than the device computes.
            fn supports(&self, shape: &AttentionShape) -> Result<(), SupportError> {
                shape.check()
            }
        }
    }
}

#[cfg(test)]
mod shape_tests {
    use super::*;

    const SHAPE: AttentionShape = AttentionShape { q_heads: 4, kv_heads: 2, qk_dim: 8, v_dim: 16, scale: 0.5 };

    #[test]
    fn shapes_that_cannot_be_computed_are_refused_with_their_numbers() {
        assert_eq!(SHAPE.check(), Ok(()));
        let huge = 1 << 40;
        for (shape, part) in [
            (AttentionShape { q_heads: 0, ..SHAPE }, "0 query heads do not share 2"),
            (AttentionShape { kv_heads: 0, ..SHAPE }, "share 0 key/value heads"),
            (AttentionShape { kv_heads: 3, ..SHAPE }, "4 query heads do not share 3"),
            (AttentionShape { qk_dim: 0, ..SHAPE }, "0 features of queries"),
            (AttentionShape { v_dim: 0, ..SHAPE }, "0 of values"),
            (AttentionShape { q_heads: huge, kv_heads: huge, qk_dim: huge, ..SHAPE }, "cannot be counted"),
            (AttentionShape { qk_dim: usize::MAX, v_dim: 1, ..SHAPE }, "cannot be counted"),
            (AttentionShape { scale: f64::NAN, ..SHAPE }, "scale NaN"),
        ] {
            let message = shape.check().unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn ops_refuse_the_same_shapes() {
        use crate::ops::testing::{poisoned, random};
        use crate::ops::unfused::UnfusedAttention;
        use crate::tensor::{Buffer, Cpu, Matrix};

        let refused = |body: &dyn Fn(&Cpu<f32>)| {
            let run = std::panic::AssertUnwindSafe(|| body(&Cpu::default()));
            let panic = std::panic::catch_unwind(run).expect_err("it is taken");
            let message = *panic.downcast::<String>().unwrap();
            assert!(message.contains("use at least 1 of each"), "{message}");
        };
        let shape = AttentionShape { v_dim: 0, ..SHAPE };
        let (q, kv) = (random(1, 3, 32), random(2, 3, 16));
        let (out, lse): (Matrix<f32>, Matrix<f32>) = (poisoned(3, 0), poisoned(3, 4));
        let (q, kv) = (q.view(), kv.view());
        let tiles = Cpu::<f32>::default().tiles(&TileCells::new(3, 3, []));
        refused(&|cpu| cpu.attention(&shape, q, kv, &tiles, out.clone().view_mut(), lse.clone().view_mut()));
        refused(&|cpu| {
            let (mut merged, mut merged_lse) = (out.clone(), lse.clone());
            cpu.attention_merge(&shape, merged.view_mut(), merged_lse.view_mut(), out.view(), lse.view());
        });
        refused(&|cpu| cpu.attention_delta(&shape, out.view(), out.view(), lse.clone().view_mut()));
        refused(&|cpu| {
            let mut probabilities = Buffer::from_slice(&[]);
            cpu.unfused(&shape, q, kv, &tiles, out.clone().view_mut(), &mut probabilities);
        });
    }
}
