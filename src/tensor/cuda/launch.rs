//! What a kernel is launched with.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::sys;

use super::kernel::Variant;
use super::memory::CudaMemory;
use super::place::Place;
use crate::tensor::{Element, MatrixMut, MatrixRef};

/// Threads of most blocks.
pub(crate) const BLOCK: u32 = 256;

/// Blocks of kernels that go over elements: several for each multiprocessor of any GPU.
const MOST_BLOCKS: usize = 4096;

/// Most blocks of a grid in its first and in its second dimension; kernels go round where there is more to do.
const MOST_X: usize = i32::MAX as usize;
pub(crate) const MOST_Y: usize = u16::MAX as usize;

/// Blocks, threads of a block, bytes of dynamic shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub(crate) grid: (u32, u32, u32),
    pub(crate) block: u32,
    pub(crate) shared: u32,
}

impl Geometry {
    /// A thread per element, as long as there are blocks.
    pub(crate) fn elementwise(elements: usize) -> Self {
        Self::blocks(elements.div_ceil(BLOCK as usize).clamp(1, MOST_BLOCKS))
    }

    /// So many blocks of [`BLOCK`] threads.
    pub(crate) fn blocks(blocks: usize) -> Self {
        Self::grid(blocks, 1, BLOCK, 0)
    }

    /// A warp per head of a row.
    pub(crate) fn heads(heads: usize) -> Self {
        Self::blocks(heads.div_ceil(BLOCK as usize / 32).clamp(1, MOST_BLOCKS))
    }

    pub(crate) fn grid(x: usize, y: usize, block: u32, shared: u32) -> Self {
        Geometry { grid: (x.clamp(1, MOST_X) as u32, y.clamp(1, MOST_Y) as u32, 1), block, shared }
    }
}

/// A matrix as kernels take it: `View<T>` of `kernels/types.cuh`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct RawView {
    pub(crate) address: sys::CUdeviceptr,
    pub(crate) rows: i64,
    pub(crate) cols: i64,
    pub(crate) stride: i64,
}

impl RawView {
    /// To be read by an op of `place`.
    pub(crate) fn of<T: Element>(place: &Arc<Place>, view: MatrixRef<'_, T, CudaMemory>) -> Self {
        let base = view.buffer().storage().reads(place);
        RawView::at::<T>(base, view.offset(), view.rows(), view.cols(), view.stride())
    }

    /// To be written by an op of `place`.
    pub(crate) fn of_mut<T: Element>(place: &Arc<Place>, mut view: MatrixMut<'_, T, CudaMemory>) -> Self {
        let (offset, rows, cols, stride) = (view.offset(), view.rows(), view.cols(), view.stride());
        let base = view.buffer_mut().storage_mut().writes(place);
        RawView::at::<T>(base, offset, rows, cols, stride)
    }

    /// One row of so many elements.
    pub(crate) fn row(address: sys::CUdeviceptr, len: usize) -> Self {
        RawView { address, rows: 1, cols: len as i64, stride: len as i64 }
    }

    /// Rows one after the other.
    pub(crate) fn of_rows(address: sys::CUdeviceptr, rows: usize, cols: usize) -> Self {
        RawView { address, rows: rows as i64, cols: cols as i64, stride: cols as i64 }
    }

    fn at<T>(base: sys::CUdeviceptr, offset: usize, rows: usize, cols: usize, stride: usize) -> Self {
        let address = base + (offset * size_of::<T>()) as u64;
        RawView { address, rows: rows as i64, cols: cols as i64, stride: stride as i64 }
    }

    /// So many of its columns, from one on.
    pub(crate) fn columns<T>(self, first: usize, cols: usize) -> Self {
        RawView { address: self.address + (first * size_of::<T>()) as u64, cols: cols as i64, ..self }
    }

    /// The same memory as bytes.
    pub(super) fn in_bytes<T>(self) -> Self {
        let size = size_of::<T>() as i64;
        RawView { cols: self.cols * size, stride: self.stride * size, ..self }
    }

    pub(crate) fn len(&self) -> usize {
        self.rows as usize * self.cols as usize
    }
}

/// A parameter of a kernel, passed by value.
///
/// # Safety
/// The type has the layout of what kernels take in its place.
pub(crate) unsafe trait Argument: Copy {}

macro_rules! arguments {
    ($($t:ty),*) => {
        $(
            // SAFETY: plain numbers, or a structure of them that C lays out in the same way.
            unsafe impl Argument for $t {}
        )*
    };
}
arguments!(i32, u32, i64, u64, f32, f64, RawView);

/// The parameters of a kernel, in their order.
pub(crate) trait Arguments {
    /// Launches a kernel of `place` with them.
    fn launch(&self, place: &Place, variant: Variant, geometry: Geometry);
}

macro_rules! tuples {
    ($(($($t:ident),+))*) => {
        $(
            impl<$($t: Argument),+> Arguments for ($($t,)+) {
                #[allow(non_snake_case)]
                fn launch(&self, place: &Place, variant: Variant, geometry: Geometry) {
                    let ($($t,)+) = self;
                    let mut pointers = [$(std::ptr::from_ref($t).cast_mut().cast::<c_void>()),+];
                    let bytes = [$(size_of_val($t)),+];
                    // SAFETY: the parameters are those that the kernel's source declares (each kernel is launched in
                    // one place only, and sizes are checked), and the addresses among them come from buffers that the
                    // ops have for the call; memory goes back in the order of the stream.
                    unsafe { place.launch(variant, geometry, &mut pointers, &bytes) }
                }
            }
        )*
    };
}
tuples! {
    (A, B) (A, B, C) (A, B, C, D) (A, B, C, D, E) (A, B, C, D, E, F) (A, B, C, D, E, F, G) (A, B, C, D, E, F, G, H)
    (A, B, C, D, E, F, G, H, I) (A, B, C, D, E, F, G, H, I, J) (A, B, C, D, E, F, G, H, I, J, K)
    (A, B, C, D, E, F, G, H, I, J, K, L)
}
