//! The loops around the kernels of the `gemm` crates, which compute a few rows by a few vectors of the result at a
//! time.
//!
//! The crates' own loops ask for memory in every call and bring their own threads. These need neither: operands are
//! packed into the stack. How they are grouped has no say in the result; every element is one chain of multiply-adds
//! over each part of the inner dimension, and then added to what was there.

use std::mem::MaybeUninit;

use gemm_common::microkernel::MicroKernelFn;
use num_traits::Zero;

use crate::ops::matmul::operands::{CUT, GemmMut, GemmRef};
use crate::ops::matmul::pack::{pack_block, pack_side};

/// The kernels of one element type for the instructions of this processor.
pub(super) struct Kernels<T: 'static> {
    /// For 1 vector and 1 to `rows` rows, then for 2 vectors, and so on.
    all: &'static [MicroKernelFn<T>],
    /// Most rows of a kernel.
    rows: usize,
    /// Elements of a vector.
    lanes: usize,
}

macro_rules! kernels {
    ($crate_of:ident, $type:ident, $instructions:ident, $lanes:expr) => {{
        use $crate_of::microkernel::$instructions::$type::{MR_DIV_N, NR, UKR};
        static ALL: [[MicroKernelFn<$type>; NR]; MR_DIV_N] = UKR;
        const {
            assert!(MR_DIV_N * $lanes * CUT * size_of::<$type>() <= BLOCK && NR * CUT * size_of::<$type>() <= SIDE);
            assert!(NR == 4 || NR == 6, "heights that sides are packed for");
        }
        Kernels { all: ALL.as_flattened(), rows: NR, lanes: $lanes }
    }};
}

/// Those of `f32` or `f64`: the best that the processor has.
macro_rules! best_kernels {
    ($name:ident, $crate_of:ident, $type:ident) => {
        pub(super) fn $name() -> Kernels<$type> {
            #[cfg(target_arch = "x86_64")]
            {
                if is_x86_feature_detected!("avx512f") {
                    return kernels!($crate_of, $type, avx512f, 64 / size_of::<$type>());
                }
                if is_x86_feature_detected!("fma") {
                    return kernels!($crate_of, $type, fma, 32 / size_of::<$type>());
                }
            }
            #[cfg(target_arch = "aarch64")]
            if std::arch::is_aarch64_feature_detected!("neon") {
                return kernels!($crate_of, $type, neon, 16 / size_of::<$type>());
            }
            kernels!($crate_of, $type, scalar, 1)
        }
    };
}

best_kernels!(kernels_f32, gemm_f32, f32);
best_kernels!(kernels_f64, gemm_f64, f64);

/// Bytes of what is packed of the right side at a time; they stay in the second-level cache.
const BLOCK: usize = 192 << 10;

/// Bytes of what is packed of the left side at a time, where its rows are not contiguous.
const SIDE: usize = 192 << 10;

/// Most tiles of rows that use the right side where it is: packing it pays for more.
const FEW: usize = 8;

/// Memory on the stack, aligned to cache lines.
#[repr(C, align(64))]
struct Stack<const BYTES: usize>([u8; BYTES]);

/// `out = lhs * rhs`, or `out += lhs * rhs` with `accumulate`. `one` is that of `T`.
///
/// # Panics
/// If the shapes do not fit, or one is empty.
pub(super) fn product<T: Copy + Zero>(
    kernels: &Kernels<T>,
    one: T,
    out: GemmMut<T>,
    lhs: GemmRef<T>,
    rhs: GemmRef<T>,
    accumulate: bool,
) {
    out.expect();
    lhs.expect();
    rhs.expect();
    assert!((lhs.rows, rhs.cols) == (out.rows, out.cols) && lhs.cols == rhs.rows);
    assert!(out.rows > 0 && out.cols > 0 && lhs.cols > 0);
    assert!(lhs.col_stride == 1 || lhs.row_stride == 1, "rows or columns of the left side are contiguous");
    let at_once = match lhs.col_stride {
        1 => out.rows,
        _ => most::<T>(SIDE, kernels.rows),
    };
    let to = out.data.as_mut_ptr();
    let (lhs_strides, rhs_strides) = ([lhs.row_stride, lhs.col_stride], [rhs.row_stride, rhs.col_stride]);
    for from in (0..lhs.cols).step_by(CUT) {
        let (depth, accumulate) = (CUT.min(lhs.cols - from), accumulate || from > 0);
        for top in (0..out.rows).step_by(at_once) {
            let rows = at_once.min(out.rows - top);
            // SAFETY: it was just shown, without wrapping, that every element `(i, j)` of the three is inside its
            // slice, and that the inner dimension of both operands is the same. `top + rows` and `from + depth` are at
            // most what there is, `rows` and `depth` at least 1. `out` is borrowed mutably: nothing else has its
            // elements.
            unsafe {
                let to = Target { start: to.add(top * out.row_stride), stride: out.row_stride, accumulate };
                let lhs = lhs.data.as_ptr().add(top * lhs.row_stride + from * lhs.col_stride);
                let rhs = rhs.data.as_ptr().add(from * rhs.row_stride);
                strip(kernels, one, to, (lhs, lhs_strides), (rhs, rhs_strides), [rows, depth, out.cols]);
            }
        }
    }
}

/// Rows or columns, a multiple of `unit`, of which a part of the inner dimension is packed into so many bytes.
fn most<T>(bytes: usize, unit: usize) -> usize {
    bytes / (CUT * size_of::<T>()) / unit * unit
}

/// Rows of a result: where they begin, and the elements from one to the next.
struct Target<T> {
    start: *mut T,
    stride: usize,
    accumulate: bool,
}

/// Some rows of a product, for a part of the inner dimension. Operands come as a pointer and the elements from row to
/// row and from column to column.
///
/// # Safety
/// Result and operands have `rows`, `depth` and `cols` of valid elements; nothing else has those of the result.
/// `depth` is at most [`CUT`]; the rows of `lhs` are contiguous, or its columns are and `rows` times `CUT` elements
/// fit [`SIDE`].
unsafe fn strip<T: Copy + Zero>(
    kernels: &Kernels<T>,
    one: T,
    to: Target<T>,
    (lhs, lhs_strides): (*const T, [usize; 2]),
    (rhs, rhs_strides): (*const T, [usize; 2]),
    [rows, depth, cols]: [usize; 3],
) {
    let (height, lanes) = (kernels.rows, kernels.lanes);
    let width = lanes * (kernels.all.len() / height);
    let (mut side, mut block) = (MaybeUninit::<Stack<SIDE>>::uninit(), MaybeUninit::<Stack<BLOCK>>::uninit());
    let (side, block) = (side.as_mut_ptr().cast::<T>(), block.as_mut_ptr().cast::<T>());
    // SAFETY: offsets are those of elements of the operands, or of what is packed: `side` has room for `rows`, and
    // `block` for `at_once` columns, which is not 0, as is checked where there is a kernel, both for `CUT` elements
    // each; what is read of them was written before. A kernel reads whole vectors of the right side's columns: from
    // `block`, where the last one is filled up, or in place where they are a multiple of the lanes. It writes the rows
    // and columns that it is told. A stride that is multiplied by more than 0 has at least two elements along it in a
    // slice, so it fits an `isize`; one that does not fit is not used. The kernels are for `T` and instructions that
    // the processor has.
    unsafe {
        let (left, tile_stride, [left_row, left_col]) = match lhs_strides {
            [row_stride, 1] => (lhs, height.wrapping_mul(row_stride), lhs_strides),
            [_, stride] => {
                pack_side(side, lhs, stride, [rows, depth], height);
                (side.cast_const(), height * depth, [1, height])
            }
        };
        let at_once = most::<T>(BLOCK, width);
        for first in (0..cols).step_by(at_once) {
            let some_cols = at_once.min(cols - first);
            let right = rhs.add(first * rhs_strides[1]);
            let in_place = rhs_strides[1] == 1 && some_cols.is_multiple_of(lanes) && rows <= FEW * height;
            // Where the columns of a kernel begin, and the elements from row to row.
            let (right, panel_stride, right_row) = match in_place {
                true => (right, width, rhs_strides[0]),
                false => {
                    pack_block(block, right, rhs_strides, [depth, some_cols], width);
                    (block.cast_const(), width * depth, width)
                }
            };
            for (tile, row) in (0..rows).step_by(height).enumerate() {
                let some_rows = height.min(rows - row);
                for (panel, column) in (0..some_cols).step_by(width).enumerate() {
                    let some_cols = width.min(some_cols - column);
                    let kernel = kernels.all[(some_cols.div_ceil(lanes) - 1) * height + some_rows - 1];
                    // A kernel has the columns of its result contiguous, so it computes the transpose.
                    kernel(
                        some_cols,
                        some_rows,
                        depth,
                        to.start.add(row * to.stride + first + column),
                        right.add(panel * panel_stride),
                        left.add(tile * tile_stride),
                        to.stride as isize,
                        1,
                        right_row as isize,
                        left_col as isize,
                        left_row as isize,
                        one,
                        one,
                        u8::from(to.accumulate),
                        false,
                        false,
                        false,
                        right,
                    );
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Kernels for every kind of instructions that the processor has, by the number of their lanes.
    fn every_kind() -> Vec<Kernels<f32>> {
        let mut kinds = vec![kernels_f32(), kernels!(gemm_f32, f32, scalar, 1)];
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("fma") {
            kinds.push(kernels!(gemm_f32, f32, fma, 8));
        }
        kinds
    }

    #[test]
    fn products_of_small_numbers_are_exact_with_all_kernels_however_operands_lie() {
        for kernels in every_kind() {
            let edge = kernels.rows * FEW;
            for [rows, depth, cols] in [[1, 1, 1], [5, 3, 17], [edge, 7, 64], [edge + 1, 257, 65], [203, 300, 209]] {
                let number = |row: usize, col: usize| ((7 * row + 3 * col) % 11) as f32 - 5.0;
                let fill = |rows: usize, cols: usize| -> Vec<f32> {
                    (0..rows * cols).map(|at| number(at / cols, at % cols)).collect()
                };
                let (left, right, turned) = (fill(rows, depth), fill(depth, cols), fill(depth, rows));
                let right_turned: Vec<f32> = (0..cols * depth).map(|at| number(at % depth, at / depth)).collect();
                let lhs =
                    [GemmRef::new(&left, rows, depth, depth), GemmRef::new(&turned, depth, rows, rows).transposed()];
                let rhs = [
                    GemmRef::new(&right, depth, cols, cols),
                    GemmRef::new(&right_turned, cols, depth, depth).transposed(),
                ];
                for (lhs, turns) in lhs.into_iter().zip([false, true]) {
                    let expected: Vec<f32> = (0..rows * cols)
                        .map(|at| {
                            let of = |k| if turns { number(k, at / cols) } else { number(at / cols, k) };
                            1.0 + (0..depth).map(|k| of(k) * number(k, at % cols)).sum::<f32>()
                        })
                        .collect();
                    for rhs in rhs {
                        let mut out = vec![1.0; rows * cols];
                        product(&kernels, 1.0, GemmMut::new(&mut out, rows, cols, cols), lhs, rhs, true);
                        assert!(out == expected, "{} lanes, {rows} x {depth} x {cols}", kernels.lanes);
                    }
                }
            }
        }
    }
}
