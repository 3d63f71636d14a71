//! Which query tile meets which key block: made once from the pieces, used by every head, layer and pass.

use std::ops::Range;

use crate::ops::matmul::CUT;
use crate::plan::{Piece, TileCells};
use crate::tensor::{Element, MatrixRef, Real};

/// Rows of a query tile.
pub(super) const TILE: usize = 128;

/// Rows of a key block; blocks begin at multiples of it, so that they are the same for every buffer of queries.
pub(super) const BLOCK: usize = CUT;

/// Columns of a block that are left out together where no row of the tile attends any of them.
const STRIP: usize = 64;

/// Fewest columns that are computed of a block that has more.
const NARROWEST: usize = 16;

/// A query tile meets a key block.
#[derive(Debug)]
pub(super) struct Visit {
    /// Index of the tile.
    pub(super) tile: usize,
    /// Index of the block.
    pub(super) block: usize,
    /// Query rows, from the first that attends a key of the block to the last.
    pub(super) rows: Range<usize>,
    /// Key rows: the block without strips, at its ends, that none of these rows attends. What is left out would
    /// add exact zeros, so it does not change a bit.
    pub(super) keys: Range<usize>,
    /// Whether every one of these rows attends every one of these keys.
    pub(super) full: bool,
}

/// A tile as the processor computes it: which query tiles meet which key blocks.
#[derive(Debug)]
pub struct TileSchedule {
    cells: TileCells,
    /// Pieces that have rows of a tile.
    tile_pieces: Vec<Vec<usize>>,
    /// Sorted by tile, then by block.
    visits: Vec<Visit>,
    /// Where the visits of each tile begin, and the end.
    tile_starts: Vec<usize>,
    /// Indices of visits, sorted by block, then by tile.
    by_block: Vec<usize>,
    /// Where the visits of each block begin in `by_block`, and the end.
    block_starts: Vec<usize>,
    /// Whether some piece has this key row.
    touched: Vec<bool>,
}

/// What the rows of one tile attend of one block.
#[derive(Clone)]
struct Met {
    area: usize,
    rows: Range<usize>,
    keys: Range<usize>,
}

impl Met {
    /// These rows attend so many cells of these keys, the first and the last among them.
    fn add(&mut self, rows: Range<usize>, keys: Range<usize>, area: usize) {
        if self.area == 0 {
            (self.rows, self.keys) = (rows.clone(), keys.clone());
        }
        self.area += area;
        self.rows = self.rows.start.min(rows.start)..self.rows.end.max(rows.end);
        self.keys = self.keys.start.min(keys.start)..self.keys.end.max(keys.end);
    }
}

/// What is in both; from an empty range comes one.
fn within(a: Range<usize>, b: Range<usize>) -> Range<usize> {
    a.start.max(b.start)..a.end.min(b.end)
}

impl TileSchedule {
    /// The schedule of a tile.
    ///
    /// # Panics
    /// If a piece is not inside the buffers.
    pub(super) fn new(cells: &TileCells) -> Self {
        let TileCells { queries, keys, ref pieces, .. } = *cells;
        let (tiles, blocks) = (queries.div_ceil(TILE), keys.div_ceil(BLOCK));
        let mut tile_pieces = vec![Vec::new(); tiles];
        let mut edges = vec![0isize; keys + 1];
        for (index, piece) in pieces.iter().enumerate() {
            let (q, k) = (piece.q_rows(), piece.k_rows());
            let inside = q.start <= q.end && q.end <= queries && k.start <= k.end && k.end <= keys;
            assert!(inside, "a piece of {q:?} x {k:?} in {queries} x {keys}");
            if !q.is_empty() && !k.is_empty() {
                (q.start / TILE..q.end.div_ceil(TILE)).for_each(|tile| tile_pieces[tile].push(index));
                edges[k.start] += 1;
                edges[k.end] -= 1;
            }
        }
        let open = edges[..keys].iter().scan(0, |open, edge| {
            *open += edge;
            Some(*open)
        });
        let touched = open.map(|open| open > 0).collect();

        let mut schedule = TileSchedule {
            cells: cells.clone(),
            tile_pieces,
            visits: Vec::new(),
            tile_starts: vec![0],
            by_block: Vec::new(),
            block_starts: vec![0; blocks + 1],
            touched,
        };
        let mut met = vec![Met { area: 0, rows: 0..0, keys: 0..0 }; blocks];
        for tile in 0..tiles {
            schedule.visit_tile(tile, &mut met);
            schedule.tile_starts.push(schedule.visits.len());
        }
        schedule.by_block = (0..schedule.visits.len()).collect();
        schedule.by_block.sort_by_key(|&visit| schedule.visits[visit].block);
        for block in 0..blocks {
            let visits = &schedule.visits;
            schedule.block_starts[block + 1] = schedule.by_block.partition_point(|&visit| visits[visit].block <= block);
        }
        schedule
    }

    fn visit_tile(&mut self, tile: usize, met: &mut [Met]) {
        let tile_rows = self.tile_rows(tile);
        for &index in &self.tile_pieces[tile] {
            let piece = &self.cells.pieces[index];
            let rows = piece.q_row.max(tile_rows.start)..piece.q_rows().end.min(tile_rows.end);
            // Blocks that every row attends as a whole are counted at once, which leaves few to go through row by row.
            let common = rows.clone().map(|row| piece.keys(row - piece.q_row)).reduce(within).unwrap_or(0..0);
            let whole = common.start.div_ceil(BLOCK)..common.end / BLOCK;
            for block in whole.clone() {
                met[block].add(rows.clone(), block * BLOCK..(block + 1) * BLOCK, rows.len() * BLOCK);
            }
            for row in rows {
                let keys = piece.keys(row - piece.q_row);
                if keys.is_empty() {
                    continue;
                }
                let (first, last) = (keys.start / BLOCK, keys.end.div_ceil(BLOCK));
                let counted = if whole.is_empty() { last..last } else { whole.clone() };
                for block in (first..counted.start).chain(counted.end..last) {
                    let keys = within(keys.clone(), block * BLOCK..(block + 1) * BLOCK);
                    met[block].add(row..row + 1, keys.clone(), keys.len());
                }
            }
        }
        for (block, met) in met.iter_mut().enumerate().filter(|(_, met)| met.area > 0) {
            let keys = strips(&met.keys, self.block_rows(block));
            let full = met.area == met.rows.len() * keys.len();
            self.visits.push(Visit { tile, block, rows: met.rows.clone(), keys, full });
            met.area = 0;
        }
    }

    /// The cells that it was made of.
    ///
    /// # Panics
    /// If these are not buffers of their size.
    pub(crate) fn expect<T: Element>(&self, q: &MatrixRef<'_, T>, kv: &MatrixRef<'_, T>) -> &TileCells {
        let TileCells { queries, keys, .. } = self.cells;
        assert_eq!((q.rows(), kv.rows()), (queries, keys), "rows of q and kv, for a tile of other buffers");
        &self.cells
    }

    /// Number of tiles.
    pub(super) fn tiles(&self) -> usize {
        self.tile_pieces.len()
    }

    /// Number of blocks.
    pub(super) fn blocks(&self) -> usize {
        self.block_starts.len() - 1
    }

    /// Query rows of a tile.
    pub(super) fn tile_rows(&self, tile: usize) -> Range<usize> {
        tile * TILE..self.cells.queries.min((tile + 1) * TILE)
    }

    /// Key rows of a block.
    pub(super) fn block_rows(&self, block: usize) -> Range<usize> {
        block * BLOCK..self.touched.len().min((block + 1) * BLOCK)
    }

    /// The blocks that a tile meets, ascending.
    pub(super) fn of_tile(&self, tile: usize) -> &[Visit] {
        &self.visits[self.tile_starts[tile]..self.tile_starts[tile + 1]]
    }

    /// The tiles that meet a block, ascending.
    pub(super) fn of_block(&self, block: usize) -> impl ExactSizeIterator<Item = &Visit> {
        self.by_block[self.block_starts[block]..self.block_starts[block + 1]].iter().map(|&at| &self.visits[at])
    }

    /// Whether some piece has this key row; only then are its values known to be finite.
    pub(super) fn touched(&self, key: usize) -> bool {
        self.touched[key]
    }

    /// Elements of the scratch that [`TileSchedule::mask`] takes.
    pub(super) fn mask_scratch(&self) -> usize {
        2 * self.tile_pieces.iter().map(Vec::len).max().unwrap_or(0)
    }

    /// Sets the scores of the keys that query `row` does not attend to `-inf`; see [`mask_row`].
    pub(super) fn mask<A: Real>(&self, visit: &Visit, row: usize, scores: &mut [A], attended: &mut [i64]) {
        let pieces = self.tile_pieces[visit.tile].iter().map(|&index| &self.cells.pieces[index]);
        mask_row(pieces, row, visit.keys.clone(), scores, attended);
    }
}

/// Sets the scores of the keys that query `row` attends through none of the pieces to `-inf`. `scores` are those of
/// the key rows `keys`; `attended` is scratch, of two elements for each piece.
pub(crate) fn mask_row<'p, A: Real>(
    pieces: impl Iterator<Item = &'p Piece>,
    row: usize,
    keys: Range<usize>,
    scores: &mut [A],
    attended: &mut [i64],
) {
    // Pairs of a first key and one past the last.
    let (attended, _) = attended.as_chunks_mut::<2>();
    let mut count = 0;
    for piece in pieces.filter(|piece| piece.q_rows().contains(&row)) {
        let part = piece.keys(row - piece.q_row);
        let from = part.start.clamp(keys.start, keys.end) - keys.start;
        let to = part.end.clamp(keys.start, keys.end) - keys.start;
        if from < to {
            attended[count] = [from as i64, to as i64];
            count += 1;
        }
    }
    attended[..count].sort_unstable();
    let mut at = 0;
    for &[from, to] in &attended[..count] {
        scores[at..from as usize].fill(A::neg_infinity());
        at = to as usize;
    }
    scores[at..].fill(A::neg_infinity());
}

/// `keys` widened to whole strips of their block.
fn strips(keys: &Range<usize>, block: Range<usize>) -> Range<usize> {
    let mut from = block.start + (keys.start - block.start) / STRIP * STRIP;
    let to = block.end.min(block.start + (keys.end - block.start).next_multiple_of(STRIP));
    if to - from < NARROWEST && from > block.start {
        from -= STRIP;
    }
    from..to
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Packed;
    use crate::mask::Mask;
    use crate::order::Run;
    use crate::plan::tile;

    /// Each visit is what its rows and keys are, counted cell by cell.
    #[test]
    fn visits_are_what_cells_say() {
        let masks = [
            Mask::Full,
            Mask::Causal,
            Mask::Window { left: Some(700), right: Some(0) },
            Mask::Window { left: Some(3), right: Some(300) },
        ];
        for (lengths, step) in [(&[1700][..], 1), (&[300, 0, 900, 130], 1), (&[2000, 700], 3), (&[0], 1)] {
            let batch = Packed::from_lengths(lengths).expect("lengths");
            let tokens: usize = lengths.iter().sum();
            let runs = |start: usize, step: usize| vec![(0, Run { start, step, len: tokens.div_ceil(step) })];
            for mask in &masks {
                let bands = mask.lower(&batch).expect("a mask of any lengths");
                let queries = if tokens > 0 { runs(0, step) } else { Vec::new() };
                let keys = if tokens > 0 { runs(0, 1) } else { Vec::new() };
                let cells = TileCells::new(tokens.div_ceil(step), tokens, tile(&queries, &keys, &bands));
                let schedule = TileSchedule::new(&cells);
                let mut attended = vec![vec![false; cells.keys]; cells.queries];
                for piece in cells.pieces.iter() {
                    (0..piece.q.len).for_each(|row| attended[piece.q_row + row][piece.keys(row)].fill(true));
                }
                let mut visits = schedule.visits.iter();
                for tile in 0..schedule.tiles() {
                    for block in 0..schedule.blocks() {
                        let (rows, keys) = (schedule.tile_rows(tile), schedule.block_rows(block));
                        let of_row = |row: &usize| attended[*row][keys.clone()].iter().filter(|&&cell| cell).count();
                        let met: Vec<usize> = rows.filter(|row| of_row(row) > 0).collect();
                        let (Some(&first), Some(&last)) = (met.first(), met.last()) else { continue };
                        let visit = visits.next().expect("a visit for every pair that meets");
                        assert_eq!((visit.tile, visit.block, visit.rows.clone()), (tile, block, first..last + 1));
                        let missing = (first..=last).any(|row| !attended[row][visit.keys.clone()].iter().all(|&x| x));
                        assert_eq!(visit.full, !missing, "{mask:?} of {lengths:?}: {visit:?}");
                        let inside: usize = met
                            .iter()
                            .map(|&row| attended[row][visit.keys.clone()].iter().filter(|&&x| x).count())
                            .sum();
                        assert_eq!(inside, met.iter().map(of_row).sum::<usize>(), "keys left out: {visit:?}");
                    }
                }
                assert!(visits.next().is_none());
            }
        }
    }
}
