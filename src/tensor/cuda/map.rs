//! Tensor maps: how the bulk copies of Hopper see a matrix.

use std::ptr;

use cudarc::driver::sys;

use super::launch::{Argument, RawView};
use crate::tensor::{DType, Element};

/// Columns of a panel: of 2 bytes each, so that a row of it is as wide as the swizzle.
const PANEL: usize = 64;

/// Bytes that addresses and distances of rows are multiples of, and more than which no distance has.
const ALIGNMENT: u64 = 16;
const MOST_STRIDE: u64 = 1 << 40;

/// Most rows of a matrix, and most rows or panels of a box.
const MOST_ROWS: usize = 1 << 32;
const MOST_OF_A_BOX: usize = 256;

/// A matrix of heads as boxes of rows and panels are copied from it: `TensorMap` of `kernels/hopper.cuh`. What lies
/// outside of the matrix is read as zeros.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(crate) struct TensorMap(sys::CUtensorMap);

// SAFETY: the structure that the driver fills for kernels, which take it by value.
unsafe impl Argument for TensorMap {}

impl TensorMap {
    /// The map for tiles of so many rows and columns, with the swizzle of 128 bytes: `Tile` of
    /// `kernels/attention_sm90.cuh`. Nothing if no map can describe this matrix or these tiles.
    ///
    /// This is arithmetic of the driver's on the host; it allocates nothing and waits for nothing.
    pub(crate) fn of_tiles<T: Element>(matrix: RawView, rows: usize, cols: usize) -> Option<Self> {
        use sys::CUtensorMapDataType_enum::{
            CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 as BF16, CU_TENSOR_MAP_DATA_TYPE_FLOAT16 as F16,
        };

        let elements = match T::DTYPE {
            DType::Bf16 => BF16,
            DType::F16 => F16,
            _ => return None,
        };
        let [matrix_rows, matrix_cols] = [matrix.rows, matrix.cols].map(|count| usize::try_from(count).unwrap_or(0));
        // The distance of rows counts only where there are several.
        let stride = if matrix_rows > 1 { matrix.stride } else { matrix.cols };
        let stride = u64::try_from(stride).ok()?.checked_mul(size_of::<T>() as u64)?;
        let is_whole = matrix_cols.is_multiple_of(PANEL) && cols.is_multiple_of(PANEL);
        let is_sized = (1..=MOST_ROWS).contains(&matrix_rows) && matrix_cols >= PANEL;
        let is_box = [rows, cols / PANEL].iter().all(|count| (1..=MOST_OF_A_BOX).contains(count));
        let is_aligned = matrix.address.is_multiple_of(ALIGNMENT) && stride.is_multiple_of(ALIGNMENT);
        if !(is_whole && is_sized && is_box && is_aligned && stride < MOST_STRIDE) {
            return None;
        }
        let dims = [PANEL, matrix_rows, matrix_cols / PANEL].map(|count| count as u64);
        let strides = [stride, (PANEL * size_of::<T>()) as u64];
        let of_box = [PANEL, rows, cols / PANEL].map(|count| count as u32);
        let mut map = TensorMap(sys::CUtensorMap { opaque: [0; 16] });
        // SAFETY: the arrays have an entry for each of three dimensions, and the distances one less; the driver writes
        // the map, which is aligned as it says, and reads nothing at the address.
        let encoded = unsafe {
            sys::cuTensorMapEncodeTiled(
                &raw mut map.0,
                elements,
                dims.len() as u32,
                ptr::with_exposed_provenance_mut(matrix.address as usize),
                dims.as_ptr(),
                strides.as_ptr(),
                of_box.as_ptr(),
                [1; 3].as_ptr(),
                sys::CUtensorMapInterleave_enum::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle_enum::CU_TENSOR_MAP_SWIZZLE_128B,
                sys::CUtensorMapL2promotion_enum::CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                sys::CUtensorMapFloatOOBfill_enum::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        encoded.result().is_ok().then_some(map)
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    /// What must not come before the driver, which here is not there.
    #[test]
    fn what_no_map_describes_is_seen_before_the_driver_is_asked() {
        let matrix = RawView { address: 1 << 20, rows: 100, cols: 256, stride: 264 };
        for refused in [
            RawView { address: (1 << 20) + 8, ..matrix },
            RawView { stride: 260, ..matrix },
            RawView { rows: 0, ..matrix },
            RawView { rows: 1 << 33, ..matrix },
            RawView { cols: 200, ..matrix },
            RawView { cols: 0, ..matrix },
            RawView { stride: 1 << 40, ..matrix },
        ] {
            assert!(TensorMap::of_tiles::<bf16>(refused, 128, 128).is_none(), "{refused:?}");
        }
        for (rows, cols) in [(0, 128), (257, 128), (128, 0), (128, 100)] {
            assert!(TensorMap::of_tiles::<bf16>(matrix, rows, cols).is_none(), "{rows} x {cols}");
        }
        assert!(TensorMap::of_tiles::<f32>(matrix, 128, 128).is_none());
        assert_eq!((size_of::<TensorMap>(), align_of::<TensorMap>()), (128, 128));
    }
}
