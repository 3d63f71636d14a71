//! Queries, keys and values of a block, side by side in memory, and their gradients.

use std::ops::Range;

use crate::attention::QkvGradients;
use crate::tensor::{AccMatrix, Device, ElemMatrix, ElemMut, ElemRef};

/// Output of a norm and what its backward needs.
#[derive(Clone, Debug)]
pub(super) struct Normed<D: Device> {
    pub y: ElemMatrix<D>,
    pub reciprocal: AccMatrix<D>,
}

/// Everything between the block's input and attention.
#[derive(Clone, Debug)]
pub(super) struct Projected<D: Device> {
    /// The block's input, normed.
    pub normed: Normed<D>,
    pub widths: Widths,
    /// Queries, keys and values side by side.
    pub qkv: ElemMatrix<D>,
    pub heads: Option<HeadNorms<D>>,
}

/// Queries and keys side by side after the norms of their heads, and what the backward of these needs.
#[derive(Clone, Debug)]
pub(super) struct HeadNorms<D: Device> {
    pub qk: ElemMatrix<D>,
    pub query: AccMatrix<D>,
    pub key: AccMatrix<D>,
}

/// Columns of queries, keys and values where they are side by side.
#[derive(Clone, Copy, Debug)]
pub(super) struct Widths {
    pub queries: usize,
    pub keys: usize,
}

impl Widths {
    pub fn queries(self) -> Range<usize> {
        0..self.queries
    }

    pub fn keys(self) -> Range<usize> {
        self.queries..self.queries + self.keys
    }

    /// There are as many values as keys.
    pub fn values(self) -> Range<usize> {
        self.queries + self.keys..self.all()
    }

    pub fn all(self) -> usize {
        self.queries + 2 * self.keys
    }
}

impl<D: Device> Projected<D> {
    /// Queries, keys and values as attention takes them.
    pub fn qkv(&self) -> [ElemRef<'_, D>; 3] {
        let (widths, all) = (self.widths, self.qkv.view());
        let qk = self.heads.as_ref().map_or(all, |heads| heads.qk.view());
        [qk.column_range(widths.queries()), qk.column_range(widths.keys()), all.column_range(widths.values())]
    }

    /// The queries, to be rotated.
    pub fn queries_mut(&mut self) -> ElemMut<'_, D> {
        let columns = self.widths.queries();
        self.qk_mut().column_range(columns)
    }

    /// The keys, to be rotated.
    pub fn keys_mut(&mut self) -> ElemMut<'_, D> {
        let columns = self.widths.keys();
        self.qk_mut().column_range(columns)
    }

    fn qk_mut(&mut self) -> ElemMut<'_, D> {
        match &mut self.heads {
            Some(heads) => heads.qk.view_mut(),
            None => self.qkv.view_mut(),
        }
    }
}

/// Gradients of what [`Projected`] gave to attention.
pub(super) struct ProjectedGradients<D: Device> {
    pub widths: Widths,
    /// Of queries, keys and values before the norms of heads, side by side.
    pub qkv: ElemMatrix<D>,
    /// Of queries and keys after these norms, where there are any.
    pub normed: Option<[ElemMatrix<D>; 2]>,
}

impl<D: Device> ProjectedGradients<D> {
    /// Where attention writes.
    pub fn targets(&mut self) -> QkvGradients<'_, D> {
        let values = self.widths.values();
        match &mut self.normed {
            None => QkvGradients::Joined(self.qkv.view_mut()),
            Some([dq, dk]) => {
                QkvGradients::Apart([dq.view_mut(), dk.view_mut(), self.qkv.view_mut().column_range(values)])
            }
        }
    }

    /// That of the queries, to be rotated back.
    pub fn queries_mut(&mut self) -> ElemMut<'_, D> {
        match &mut self.normed {
            None => self.qkv.view_mut().column_range(self.widths.queries()),
            Some([dq, _]) => dq.view_mut(),
        }
    }

    /// That of the keys, to be rotated back.
    pub fn keys_mut(&mut self) -> ElemMut<'_, D> {
        match &mut self.normed {
            None => self.qkv.view_mut().column_range(self.widths.keys()),
            Some([_, dk]) => dk.view_mut(),
        }
    }
}
