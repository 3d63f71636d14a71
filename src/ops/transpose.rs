//! Exchanging rows and columns.

/// Side of the squares that are exchanged one after another: they fit the first-level cache, so that neither side
/// misses it on every element.
const SIDE: usize = 16;

/// Writes the `rows` by `cols` elements of `from` to `to` with rows and columns exchanged. Both are row-major and come
/// with the number of elements from row to row.
///
/// # Panics
/// If one is too short.
pub(super) fn transpose<A: Copy>(
    (from, from_stride): (&[A], usize),
    rows: usize,
    cols: usize,
    (to, to_stride): (&mut [A], usize),
) {
    for first_row in (0..rows).step_by(SIDE) {
        let end = rows.min(first_row + SIDE);
        for col in 0..cols {
            let to = &mut to[col * to_stride + first_row..col * to_stride + end];
            for (to, row) in to.iter_mut().zip(first_row..end) {
                *to = from[row * from_stride + col];
            }
        }
    }
}
