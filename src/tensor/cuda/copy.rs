//! Copies between the host and a GPU.

use cudarc::driver::{DriverError, sys};

use super::launch::RawView;

/// Rows of bytes between the host, where they follow each other, and the GPU.
pub(super) struct Copy2D {
    pub(super) host: *mut u8,
    pub(super) device: RawView,
    pub(super) is_upload: bool,
}

impl Copy2D {
    /// Enqueues it.
    pub(super) fn start(&self, stream: sys::CUstream) -> Result<(), DriverError> {
        use sys::CUmemorytype_enum::{CU_MEMORYTYPE_DEVICE as DEVICE, CU_MEMORYTYPE_HOST as HOST};

        let RawView { address, rows, cols, stride } = self.device;
        let (rows, cols, stride) = (rows as usize, cols as usize, stride as usize);
        // A pitch counts only between rows; the driver refuses one that is larger than it can copy.
        let pitch = if rows > 1 { stride } else { cols };
        let (from, to) = if self.is_upload { (HOST, DEVICE) } else { (DEVICE, HOST) };
        let copy = sys::CUDA_MEMCPY2D_st {
            srcXInBytes: 0,
            srcY: 0,
            srcMemoryType: from,
            srcHost: self.host.cast_const().cast(),
            srcDevice: address,
            srcArray: std::ptr::null_mut(),
            srcPitch: if self.is_upload { cols } else { pitch },
            dstXInBytes: 0,
            dstY: 0,
            dstMemoryType: to,
            dstHost: self.host.cast(),
            dstDevice: address,
            dstArray: std::ptr::null_mut(),
            dstPitch: if self.is_upload { pitch } else { cols },
            WidthInBytes: cols,
            Height: rows,
        };
        if rows > 1 && cols != stride {
            // SAFETY: the description is of memory that the caller has for the call; the driver has copied pageable
            // host memory, which this is, or waits for it.
            return unsafe { sys::cuMemcpy2DAsync_v2(&raw const copy, stream).result() };
        }
        let bytes = rows * cols;
        // SAFETY: as above.
        unsafe {
            match self.is_upload {
                true => sys::cuMemcpyHtoDAsync_v2(address, self.host.cast_const().cast(), bytes, stream).result(),
                false => sys::cuMemcpyDtoHAsync_v2(self.host.cast(), address, bytes, stream).result(),
            }
        }
    }
}
