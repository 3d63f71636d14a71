//! Pieces: where one rank's queries meet a buffer of keys under one band.

use std::ops::Range;

use crate::order::Run;

/// A rectangle of query rows and key rows of two buffers, and the diagonals on which they attend.
///
/// Row `q_row + i` holds token `q.token(i)`, row `k_row + j` holds token `k.token(j)`; the cell is attended when
/// `d_lo <= k.token(j) - q.token(i) <= d_hi`. The pieces of a tile never share a cell.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Piece {
    /// Row of the first query in the query buffer.
    pub q_row: usize,
    /// Row of the first key in the key buffer.
    pub k_row: usize,
    /// Tokens of the queries.
    pub q: Run,
    /// Tokens of the keys.
    pub k: Run,
    /// Smallest `k - q`.
    pub d_lo: i64,
    /// Largest `k - q`.
    pub d_hi: i64,
}

impl Piece {
    /// Rows of the query buffer.
    pub fn q_rows(&self) -> Range<usize> {
        self.q_row..self.q_row + self.q.len
    }

    /// Rows of the key buffer.
    pub fn k_rows(&self) -> Range<usize> {
        self.k_row..self.k_row + self.k.len
    }

    /// The rows of the key buffer that row `q_row + i` of the query buffer attends. Both ends move with `i`
    /// without ever going back.
    #[inline]
    pub fn keys(&self, i: usize) -> Range<usize> {
        let at = self.q.token(i) as i64 - self.k.start as i64;
        let step = self.k.step as i64;
        let last = self.k.len as i64;
        let from = (at + self.d_lo + step - 1).div_euclid(step).clamp(0, last);
        let to = ((at + self.d_hi).div_euclid(step) + 1).clamp(from, last);
        self.k_row + from as usize..self.k_row + to as usize
    }

    /// Number of attended cells.
    pub fn area(&self) -> u64 {
        (0..self.q.len).map(|i| self.keys(i).len() as u64).sum()
    }
}
