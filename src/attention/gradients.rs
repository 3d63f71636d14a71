//! Where the gradients of queries, keys and values go.

use crate::error::{LayoutError, PlacementError, Result};
use crate::ops::attention::AttentionShape;
use crate::order::DynPlacement;
use crate::tensor::{Device, ElemMut};

/// Memory for the gradients of queries, keys and values, which are written over it.
#[derive(Debug)]
pub enum QkvGradients<'a, D: Device> {
    /// Side by side: `[rows, q_width + k_width + v_width]`.
    Joined(ElemMut<'a, D>),
    /// Each apart: `[rows, q_width]`, `[rows, k_width]`, `[rows, v_width]`.
    Apart([ElemMut<'a, D>; 3]),
}

impl<D: Device> QkvGradients<'_, D> {
    /// Refuses memory of another shape than that of the gradients of a rank's queries and keys.
    ///
    /// # Errors
    /// [`PlacementError::Rows`], [`LayoutError::Features`].
    pub(crate) fn expect(&self, shape: &AttentionShape, queries: &DynPlacement, keys: &DynPlacement) -> Result<()> {
        let expect = |what, part: &ElemMut<'_, D>, placement: &DynPlacement, expected: usize| -> Result<()> {
            let (rows, found) = (part.rows(), part.cols());
            if rows != placement.rows() {
                let (rank, expected) = (placement.rank(), placement.rows());
                return Err(PlacementError::Rows { rank, expected, found: rows }.into());
            }
            match found == expected {
                true => Ok(()),
                false => Err(LayoutError::Features { what, expected, found }.into()),
            }
        };
        let [q, k, v] = [shape.q_width(), shape.k_width(), shape.v_width()];
        match self {
            QkvGradients::Joined(all) => {
                let what = "the gradients of queries, keys and values";
                expect(what, all, queries, q + k + v)?;
                expect(what, all, keys, q + k + v)
            }
            QkvGradients::Apart([dq, dk, dv]) => {
                expect("the gradient of the queries", dq, queries, q)?;
                expect("the gradient of the keys", dk, keys, k)?;
                expect("the gradient of the values", dv, keys, v)
            }
        }
    }

    pub(super) fn queries(&mut self, shape: &AttentionShape) -> ElemMut<'_, D> {
        self.part(0, 0..shape.q_width())
    }

    pub(super) fn keys(&mut self, shape: &AttentionShape) -> ElemMut<'_, D> {
        self.part(1, shape.q_width()..shape.q_width() + shape.k_width())
    }

    pub(super) fn values(&mut self, shape: &AttentionShape) -> ElemMut<'_, D> {
        let first = shape.q_width() + shape.k_width();
        self.part(2, first..first + shape.v_width())
    }

    fn part(&mut self, index: usize, columns: std::ops::Range<usize>) -> ElemMut<'_, D> {
        match self {
            QkvGradients::Joined(all) => all.reborrow().column_range(columns),
            QkvGradients::Apart(parts) => parts[index].reborrow(),
        }
    }
}
