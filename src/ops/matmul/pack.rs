//! Operands of a product in the order in which its kernels read them.

use num_traits::Zero;

/// Rows that are transposed at a time.
const SQUARE: usize = 16;

/// Packs rows whose elements are `stride` apart and columns that are contiguous, for kernels of `height` rows: tile by
/// tile, and in a tile column by column.
///
/// # Safety
/// `from` has `rows` by `depth` elements, `to` has room for as many in whole tiles.
pub(super) unsafe fn pack_side<T: Copy>(
    to: *mut T,
    from: *const T,
    stride: usize,
    [rows, depth]: [usize; 2],
    height: usize,
) {
    // SAFETY: by the caller's word; the heights are those of the call.
    unsafe {
        match height {
            4 => pack_tiles::<T, 4>(to, from, stride, [rows, depth]),
            6 => pack_tiles::<T, 6>(to, from, stride, [rows, depth]),
            _ => unreachable!("kernels have 4 rows or 6, not {height}"),
        }
    }
}

/// [`pack_side`] with a height that the compiler knows.
///
/// # Safety
/// As there.
unsafe fn pack_tiles<T: Copy, const HEIGHT: usize>(
    to: *mut T,
    from: *const T,
    stride: usize,
    [rows, depth]: [usize; 2],
) {
    let (tiles, rest) = (rows / HEIGHT, rows % HEIGHT);
    // SAFETY: by the caller's word.
    unsafe {
        for col in 0..depth {
            let from = from.add(col * stride);
            for tile in 0..tiles {
                let some = from.add(tile * HEIGHT).cast::<[T; HEIGHT]>().read();
                to.add((tile * depth + col) * HEIGHT).cast::<[T; HEIGHT]>().write(some);
            }
            for row in 0..rest {
                to.add((tiles * depth + col) * HEIGHT + row).write(*from.add(tiles * HEIGHT + row));
            }
        }
    }
}

/// Packs columns of the right side for kernels of `width` columns: panel by panel, and in a panel row by row, the last
/// one filled up with zeros.
///
/// # Safety
/// `from` has `depth` by `cols` elements, `to` has room for as many in whole panels.
pub(super) unsafe fn pack_block<T: Copy + Zero>(
    to: *mut T,
    from: *const T,
    [row_stride, col_stride]: [usize; 2],
    [depth, cols]: [usize; 2],
    width: usize,
) {
    let panels = (0..cols).step_by(width).enumerate().map(|(panel, first)| (panel * depth, first));
    // SAFETY: by the caller's word.
    unsafe {
        for (start, first) in panels.clone().filter(|(_, first)| first + width > cols) {
            for row in start..start + depth {
                (cols - first..width).for_each(|col| to.add(row * width + col).write(T::zero()));
            }
        }
        if col_stride == 1 {
            for row in 0..depth {
                for (start, first) in panels.clone() {
                    let from = from.add(row * row_stride + first);
                    to.add((start + row) * width).copy_from_nonoverlapping(from, width.min(cols - first));
                }
            }
            return;
        }
        // A few rows at a time, so that what is written stays in the first-level cache.
        for (start, first) in panels {
            for top in (0..depth).step_by(SQUARE) {
                for col in first..cols.min(first + width) {
                    for row in top..depth.min(top + SQUARE) {
                        let value = *from.add(row * row_stride + col * col_stride);
                        to.add((start + row) * width + col - first).write(value);
                    }
                }
            }
        }
    }
}
