//! Pieces: where one rank's queries meet a buffer of keys under one band.

use std::ops::Range;

use crate::mask::Band;
use crate::order::Run;

/// A rectangle of query rows and key rows of two buffers, and the diagonals on which they attend.
///
/// Row `q_row + i` holds token `q.token(i)`, row `k_row + j` holds token `k.token(j)`; the cell is attended when
/// `d_lo <= k.token(j) - q.token(i) <= d_hi`. The pieces of a tile never share a cell.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize)]
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

    /// Number of attended cells. In constant time where both steps are equal, else in the number of queries.
    pub fn area(&self) -> u64 {
        match self.indices() {
            Some(band) => band.area(),
            None => (0..self.q.len).map(|i| self.keys(i).len() as u64).sum(),
        }
    }

    /// The attended cells by index in the runs, `(i, j)` for `q.token(i)` and `k.token(j)`, where both steps are
    /// equal: with `k.start + s j - q.start - s i` between the diagonals, `j - i` is between two numbers.
    pub(super) fn indices(&self) -> Option<Band> {
        let step = match (self.q, self.k) {
            (q, k) if q.step == k.step || k.len <= 1 => q.step,
            (q, k) if q.len <= 1 => k.step,
            _ => return None,
        } as i64;
        let shift = self.k.start as i64 - self.q.start as i64;
        Some(Band {
            q: 0..self.q.len as i64,
            k: 0..self.k.len as i64,
            d_lo: -(shift - self.d_lo).div_euclid(step),
            d_hi: (self.d_hi - shift).div_euclid(step),
        })
    }

    /// Without the first and last rows that have no cell; nothing if no row has one. Where both steps are equal every
    /// row that is left has a cell.
    pub(super) fn trimmed(self) -> Option<Piece> {
        let (q, k) = match self.indices() {
            Some(band) => band.shrunk().map(|band| (rows(band.q), rows(band.k)))?,
            None => {
                let has_cell = |&i: &usize| !self.keys(i).is_empty();
                let first = (0..self.q.len).find(has_cell)?;
                let last = (first..self.q.len).rfind(has_cell)?;
                let k = self.keys(first).start - self.k_row..self.keys(last).end - self.k_row;
                (first..last + 1, k)
            }
        };
        let part = |run: Run, rows: &Range<usize>| Run { start: run.token(rows.start), len: rows.len(), ..run };
        Some(Piece {
            q_row: self.q_row + q.start,
            k_row: self.k_row + k.start,
            q: part(self.q, &q),
            k: part(self.k, &k),
            ..self
        })
    }
}

/// Indices, which are never negative.
fn rows(range: Range<i64>) -> Range<usize> {
    range.start as usize..range.end as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pieces with all small steps, lengths, starts and diagonals.
    fn small_pieces(mut each: impl FnMut(Piece)) {
        let lengths = [0, 1, 2, 4];
        for (q_step, k_step) in [(1, 1), (2, 2), (3, 3), (1, 2), (2, 1), (3, 2), (2, 5)] {
            for (q_len, k_len) in lengths.iter().flat_map(|&q| lengths.map(|k| (q, k))) {
                for (q_start, k_start) in [(0, 0), (5, 0), (0, 7), (3, 4)] {
                    for d_lo in -9..9 {
                        for d_hi in [d_lo - 1, d_lo, d_lo + 1, d_lo + 2, d_lo + 6] {
                            let q = Run { start: q_start, step: q_step, len: q_len };
                            let k = Run { start: k_start, step: k_step, len: k_len };
                            each(Piece { q_row: 10, k_row: 20, q, k, d_lo, d_hi });
                        }
                    }
                }
            }
        }
    }

    /// The attended cells as rows and tokens, by definition.
    fn cells(piece: &Piece) -> Vec<[usize; 4]> {
        let mut cells = Vec::new();
        for i in 0..piece.q.len {
            for j in 0..piece.k.len {
                let (q, k) = (piece.q.token(i), piece.k.token(j));
                if (piece.d_lo..=piece.d_hi).contains(&(k as i64 - q as i64)) {
                    cells.push([piece.q_row + i, piece.k_row + j, q, k]);
                }
            }
        }
        cells
    }

    #[test]
    fn keys_and_area_are_the_definition() {
        small_pieces(|piece| {
            let expected = cells(&piece);
            let row = |i| piece.keys(i).map(move |k| [10 + i, k]);
            let found: Vec<_> = (0..piece.q.len).flat_map(row).collect();
            assert_eq!(found, expected.iter().map(|cell| [cell[0], cell[1]]).collect::<Vec<_>>(), "{piece:?}");
            assert_eq!(piece.area(), expected.len() as u64, "{piece:?}");
            for i in 1..piece.q.len {
                let (before, here) = (piece.keys(i - 1), piece.keys(i));
                assert!(before.start <= here.start && before.end <= here.end, "{piece:?}");
            }
        });
    }

    #[test]
    fn trimming_keeps_the_cells_and_no_rows_at_the_ends() {
        small_pieces(|piece| {
            let expected = cells(&piece);
            let Some(trimmed) = piece.clone().trimmed() else {
                assert!(expected.is_empty(), "{piece:?}");
                return;
            };
            assert_eq!(cells(&trimmed), expected, "{piece:?} {trimmed:?}");
            for (at, rows) in [(0, trimmed.q_rows()), (1, trimmed.k_rows())] {
                for row in [rows.start, rows.end - 1] {
                    assert!(expected.iter().any(|cell| cell[at] == row), "{piece:?} {trimmed:?}");
                }
            }
        });
    }
}
