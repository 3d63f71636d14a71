//! A stream on a GPU, its memory, and what went wrong there.

use std::ffi::c_void;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::{DriverError, result, sys};

use super::blas::{Blas, Product};
use super::event::Event;
use super::gpu::Gpu;
use super::graph::Recorder;
use super::kernel::Variant;
use super::launch::{Geometry, RawView};
use super::memory::{Block, CudaMemory};
use super::pool::{CudaPool, Slab};
use super::probe::said;
use super::trace::Tracer;
use crate::error::{DeviceError, Result, SupportError};
use crate::tensor::{Ledger, PoolStats};

/// One rank's queue on a GPU: everything is done there in the order in which it is asked for.
///
/// Ops do not fail: the first thing that goes wrong is kept, nothing is launched from then on, and the next
/// [`Device::read`](crate::tensor::Device::read) says it.
pub struct Place {
    gpu: Arc<Gpu>,
    stream: sys::CUstream,
    pool: CudaPool,
    ledger: Arc<Ledger>,
    blas: Mutex<Blas>,
    /// Where small results are read into.
    staging: Mutex<Staging>,
    failure: Mutex<Option<DeviceError>>,
    recorder: Recorder,
    tracer: Tracer,
}

/// The queue of ops, as traces call it.
const COMPUTING: &str = "computing";

/// Bytes of results that are read by way of memory that the driver knows.
const STAGED: usize = 64 << 10;

/// Host memory that the GPU writes by itself.
struct Staging(*mut u8);

// SAFETY: the driver takes a stream from any thread; the staging memory has one owner.
unsafe impl Send for Place {}
// SAFETY: as above; what changes is behind locks.
unsafe impl Sync for Place {}

impl Place {
    /// A stream of its own.
    pub(super) fn new(gpu: Arc<Gpu>) -> Result<Arc<Place>> {
        gpu.enter();
        let unusable = |error: DriverError| SupportError::Cuda(format!("{}: {}", gpu.name(), said(&error)));
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking).map_err(unusable)?;
        let blas = Blas::new().map_err(SupportError::Cuda)?;
        // SAFETY: memory with unspecified contents, which are written before they are read.
        let staging = unsafe { result::malloc_host(STAGED, 0) }.map_err(unusable)?;
        let staging = Mutex::new(Staging(staging.cast()));
        Ok(Arc::new(Place {
            gpu,
            stream,
            pool: CudaPool::default(),
            ledger: Arc::default(),
            blas: Mutex::new(blas),
            staging,
            failure: Mutex::default(),
            recorder: Recorder::default(),
            tracer: Tracer::default(),
        }))
    }

    pub(super) fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }

    pub(super) fn stream(&self) -> sys::CUstream {
        self.stream
    }

    pub(super) fn pool(&self) -> &CudaPool {
        &self.pool
    }

    pub(super) fn recorder(&self) -> &Recorder {
        &self.recorder
    }

    pub(super) fn tracer(&self) -> &Tracer {
        &self.tracer
    }

    /// Bytes of shared memory that a block can have.
    pub(crate) fn shared_memory(&self) -> u32 {
        self.gpu.shared()
    }

    /// Multiprocessors of the GPU.
    pub(crate) fn processors(&self) -> usize {
        self.gpu.processors()
    }

    /// Whether the GPU is a Hopper, whose kernels run nowhere else (`sm_90a`).
    pub(crate) fn is_hopper(&self) -> bool {
        self.gpu.capability() == (9, 0)
    }

    pub(super) fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    pub(super) fn memory_stats(&self) -> PoolStats {
        self.pool.stats()
    }

    pub(super) fn seal(&self) {
        self.gpu.enter();
        self.pool.seal();
    }

    fn failure(&self) -> MutexGuard<'_, Option<DeviceError>> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps what went wrong in an op, if nothing has before.
    pub(crate) fn fail(&self, op: &'static str, reason: impl Into<String>) {
        self.failure().get_or_insert_with(|| DeviceError { op, reason: reason.into() });
    }

    /// Whether nothing has gone wrong; makes the GPU the calling thread's.
    pub(super) fn is_well(&self) -> bool {
        self.gpu.enter();
        if self.recorder.is_of_another_thread() {
            self.interrupt("another thread");
        }
        self.failure().is_none()
    }

    /// Does something on the stream, unless something has gone wrong before.
    pub(super) fn attempt(&self, op: &'static str, attempt: impl FnOnce() -> Result<(), DriverError>) {
        if self.is_well()
            && let Err(error) = self.tracer.around((op, COMPUTING), self.stream, attempt)
        {
            self.fail(op, said(&error));
        }
    }

    /// Memory on nobody's account. Where there is none left this is told by the next read.
    pub(super) fn memory(self: &Arc<Self>, bytes: usize) -> CudaMemory {
        CudaMemory::new(self.block(bytes), self.clone())
    }

    pub(super) fn block(self: &Arc<Self>, bytes: usize) -> Block {
        self.gpu.enter();
        let slab = self.pool.take(bytes).map_err(|error| {
            let (owned, name) = (self.pool.stats().owned, self.gpu.name());
            self.fail("memory", format!("{bytes} bytes more than the {owned} in use on {name}: {}", said(&error)));
        });
        let mut slab = slab.ok();
        // What other streams still do with it comes first.
        if let Some(slab) = &mut slab {
            std::mem::take(&mut slab.uses).iter().for_each(|event| self.wait_for(event));
        }
        Block::new(slab, bytes, self.clone())
    }

    /// Memory on nobody's account for the inside of an op: its size may depend on how the op is computed.
    pub(crate) fn scratch<T>(self: &Arc<Self>, len: usize) -> CudaMemory {
        self.memory(len.saturating_mul(size_of::<T>()))
    }

    /// What kernels read of a plan, on nobody's account.
    pub(crate) fn list<T: bytemuck::NoUninit>(self: &Arc<Self>, values: &[T]) -> CudaMemory {
        let mut memory = self.scratch::<T>(values.len());
        if !values.is_empty() {
            let bytes: &[u8] = bytemuck::cast_slice(values);
            self.upload(bytes, RawView::row(memory.writes(self), bytes.len()));
        }
        memory
    }

    /// Takes memory back; the last uses in other streams come with it.
    pub(super) fn take_back(&self, slab: Slab) {
        self.pool.put(slab);
    }

    /// Takes memory back that a graph had.
    pub(super) fn give_back(&self, slab: Slab) {
        self.pool.give_back(slab);
    }

    /// The point at which the stream is now; nothing if that went wrong.
    pub(super) fn now(&self) -> Option<Event> {
        self.interrupt("a point for other streams");
        Event::record(&self.gpu, self.stream).map_err(|error| self.fail("event", said(&error))).ok()
    }

    /// What is asked for from now on comes after this point of another stream.
    pub(super) fn wait_for(&self, event: &Event) {
        self.interrupt("a point of another stream");
        self.attempt("wait", || event.hold_up(self.stream));
    }

    pub(super) fn zero(&self, address: sys::CUdeviceptr, bytes: usize) {
        if bytes > 0 {
            // SAFETY: the address is that of at least so many bytes, which live until the stream has passed this.
            self.attempt("zeros", || unsafe { result::memset_d8_async(address, 0, bytes, self.stream) });
        }
    }

    pub(super) fn copy(&self, from: sys::CUdeviceptr, to: sys::CUdeviceptr, bytes: usize) {
        if bytes > 0 {
            // SAFETY: both are addresses of at least so many bytes, which live until the stream has passed this.
            self.attempt("copy", || unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream) });
        }
    }

    /// Copies from memory of another GPU.
    pub(super) fn copy_from(&self, other: &Gpu, from: sys::CUdeviceptr, to: sys::CUdeviceptr, bytes: usize) {
        self.interrupt("memory of another GPU");
        let (here, there) = (self.gpu.context(), other.context());
        if bytes > 0 {
            // SAFETY: as above; both contexts live until the process ends.
            self.attempt("copy", || unsafe { result::memcpy_peer_async(here, to, there, from, bytes, self.stream) });
        }
    }

    /// Writes rows of bytes; `bytes` may go as soon as this returns.
    pub(super) fn upload(&self, bytes: &[u8], to: RawView) {
        self.interrupt("memory of the host");
        let copy = Copy2D { host: bytes.as_ptr().cast_mut(), device: to, is_upload: true };
        self.attempt("write", || copy.start(self.stream));
    }

    /// Reads rows of bytes, and waits for everything that was asked of the stream.
    ///
    /// # Errors
    /// What went wrong there first.
    pub(super) fn download(&self, from: RawView, bytes: &mut [u8]) -> Result<()> {
        self.interrupt("a read");
        let staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        // Into memory that the driver does not know, a copy waits by itself, and the stream has to be waited for again.
        let is_staged = bytes.len() <= STAGED;
        let host = if is_staged { staging.0 } else { bytes.as_mut_ptr() };
        self.attempt("read", || Copy2D { host, device: from, is_upload: false }.start(self.stream));
        self.finish()?;
        if is_staged {
            // SAFETY: the staging memory has so many bytes, which the stream has written and nobody else has.
            unsafe { std::ptr::copy_nonoverlapping(host, bytes.as_mut_ptr(), bytes.len()) };
        }
        Ok(())
    }

    /// Waits for everything that was asked of the stream.
    ///
    /// # Errors
    /// What went wrong there first.
    pub(super) fn finish(&self) -> Result<()> {
        self.interrupt("a wait");
        // SAFETY: the stream is alive.
        self.attempt("read", || unsafe { result::stream::synchronize(self.stream) });
        self.failure().clone().map_or(Ok(()), |failure| Err(failure.into()))
    }

    /// Launches a kernel.
    ///
    /// # Safety
    /// The pointers are to values of the types of the kernel's parameters, in their order, of so many bytes (which is
    /// checked), and every address among them is of memory that the kernel may use as it does, and that lives until the stream has passed this.
    pub(crate) unsafe fn launch(
        &self,
        variant: Variant,
        geometry: Geometry,
        parameters: &mut [*mut c_void],
        bytes: &[usize],
    ) {
        if !self.is_well() {
            return;
        }
        let function = self.gpu.function(variant).map_err(str::to_string);
        let function = match function.and_then(|function| function.expect(bytes).map(|()| function)) {
            Ok(function) => function,
            Err(reason) => return self.fail(variant.kernel(), reason),
        };
        let Geometry { grid, block, shared } = geometry;
        let launched = self.tracer.around((variant.kernel(), COMPUTING), self.stream, || {
            // SAFETY: the function is of this GPU; the rest is what the caller promises.
            unsafe { result::launch_kernel(function.handle, grid, (block, 1, 1), shared, self.stream, parameters) }
        });
        if let Err(error) = launched {
            self.fail(variant.kernel(), said(&error));
        }
    }

    /// Enqueues a matrix product.
    pub(crate) fn multiply(&self, op: &'static str, product: &Product) {
        if self.is_well() {
            let run = || self.blas.lock().unwrap_or_else(PoisonError::into_inner).run(product, self.stream);
            let done = self.tracer.around((op, COMPUTING), self.stream, run);
            if let Err(reason) = done {
                self.fail(op, reason);
            }
        }
    }
}

/// Rows of bytes between the host, where they follow each other, and the GPU.
struct Copy2D {
    host: *mut u8,
    device: RawView,
    is_upload: bool,
}

impl Copy2D {
    fn start(&self, stream: sys::CUstream) -> Result<(), DriverError> {
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

impl Drop for Place {
    fn drop(&mut self) {
        self.gpu.enter();
        // SAFETY: nobody has the stream any more. Errors here have been told, or nobody asks.
        unsafe {
            let _ = result::stream::synchronize(self.stream);
            self.pool.clear();
            let _ = result::stream::destroy(self.stream);
            let staging = self.staging.get_mut().unwrap_or_else(PoisonError::into_inner);
            let _ = result::free_host(staging.0.cast());
        }
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GPU {}: {}", self.gpu.ordinal(), self.gpu.name())
    }
}
