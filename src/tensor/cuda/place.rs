//! The streams of a rank on a GPU, its memory, and what went wrong there.

use std::ffi::c_void;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use cudarc::driver::{DriverError, result, sys};

use super::blas::{Blas, Product};
use super::copy::Copy2D;
use super::event::{Event, Points};
use super::gpu::Gpu;
use super::graph::Recorder;
use super::kernel::Variant;
use super::launch::{Geometry, RawView};
use super::memory::{Block, CudaMemory};
use super::pool::{CudaPool, Purpose, Slab};
use super::probe::said;
use super::trace::Tracer;
use super::watch::Watch;
use crate::error::{DeviceError, Error, Result, SupportError};
use crate::tensor::{Ledger, PoolStats};

/// One rank's queues on a GPU: one for computing, where everything is done in the order in which it is asked for, and
/// one for what comes from other GPUs, which does not wait for what is computed unless it has to.
///
/// Ops do not fail: the first thing that goes wrong is kept, nothing is launched from then on, and the next
/// [`Device::read`](crate::tensor::Device::read) says it.
pub struct Place {
    gpu: Arc<Gpu>,
    /// For computing.
    stream: sys::CUstream,
    /// For what goes to other GPUs and comes from them.
    transfers: sys::CUstream,
    pool: CudaPool,
    /// What transfers write into: apart, so that they are not given what an op gave up a moment ago, and wait for it.
    received: CudaPool,
    /// Points of the stream for computing.
    points: Mutex<Points>,
    ledger: Arc<Ledger>,
    blas: Mutex<Blas>,
    /// Where small results are read into.
    staging: Mutex<Staging>,
    failure: Mutex<Option<Error>>,
    /// Who lets the streams wait for other ranks.
    pub(super) watches: Mutex<Vec<Weak<dyn Watch>>>,
    recorder: Recorder,
    tracer: Tracer,
}

/// The queue of ops, as traces call it.
const COMPUTING: &str = "computing";
/// The queue of transfers.
pub(super) const TRANSFERRING: &str = "transfers";

/// Bytes of results that are read by way of memory that the driver knows.
const STAGED: usize = 64 << 10;

/// Host memory that the GPU writes by itself.
struct Staging(*mut u8);

// SAFETY: the driver takes a stream from any thread; the staging memory has one owner.
unsafe impl Send for Place {}
// SAFETY: as above; what changes is behind locks.
unsafe impl Sync for Place {}

impl Place {
    /// Streams of its own.
    pub(super) fn new(gpu: Arc<Gpu>) -> Result<Arc<Place>> {
        use result::stream::StreamKind::NonBlocking;

        gpu.enter();
        let unusable = |error: DriverError| SupportError::Cuda(format!("{}: {}", gpu.name(), said(&error)));
        let stream = result::stream::create(NonBlocking).map_err(unusable)?;
        // What arrives is waited for by whole tiles, so it goes first.
        let (_, highest) = result::stream::get_priority_range().map_err(unusable)?;
        let transfers = result::stream::create_with_priority(NonBlocking, highest).map_err(unusable)?;
        let blas = Blas::new().map_err(SupportError::Cuda)?;
        // SAFETY: memory with unspecified contents, which are written before they are read.
        let staging = unsafe { result::malloc_host(STAGED, 0) }.map_err(unusable)?;
        let staging = Mutex::new(Staging(staging.cast()));
        Ok(Arc::new(Place {
            gpu,
            stream,
            transfers,
            pool: CudaPool::of(Purpose::Compute),
            received: CudaPool::of(Purpose::Receive),
            points: Mutex::default(),
            ledger: Arc::default(),
            blas: Mutex::new(blas),
            staging,
            failure: Mutex::default(),
            watches: Mutex::default(),
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
        let (computed, received) = (self.pool.stats(), self.received.stats());
        PoolStats {
            allocations: computed.allocations + received.allocations,
            owned: computed.owned + received.owned,
            peak: computed.peak + received.peak,
        }
    }

    pub(super) fn seal(&self) {
        self.gpu.enter();
        self.pool.seal();
        self.received.seal();
    }

    fn failure(&self) -> MutexGuard<'_, Option<Error>> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps what went wrong in an op, if nothing has before.
    pub(crate) fn fail(&self, op: &'static str, reason: impl Into<String>) {
        self.fail_with(DeviceError { op, reason: reason.into() }.into());
    }

    /// Keeps an error, if there has been none before.
    pub(super) fn fail_with(&self, error: Error) {
        self.failure().get_or_insert(error);
    }

    /// What went wrong first.
    pub(crate) fn check(&self) -> Result<()> {
        self.failure().clone().map_or(Ok(()), Err)
    }

    /// Makes this rank's GPU that of the calling thread.
    pub(crate) fn enter(&self) {
        self.gpu.enter();
    }

    /// Of the GPU, on whatever machine.
    pub(crate) fn uuid(&self) -> Result<[u8; 16]> {
        self.gpu.uuid()
    }

    /// The stream for transfers.
    pub(crate) fn transfers(&self) -> sys::CUstream {
        self.transfers
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

    /// Does something on the stream for transfers, unless something has gone wrong before.
    pub(crate) fn attempt_transfer(&self, op: &'static str, attempt: impl FnOnce() -> Result<(), DriverError>) {
        if self.is_well()
            && let Err(error) = self.tracer.around((op, TRANSFERRING), self.transfers, attempt)
        {
            self.fail(op, said(&error));
        }
    }

    /// Memory on nobody's account. Where there is none left this is told by the next read.
    pub(super) fn memory(self: &Arc<Self>, bytes: usize) -> CudaMemory {
        CudaMemory::new(self.block(bytes), self.clone())
    }

    fn block(self: &Arc<Self>, bytes: usize) -> Block {
        let mut slab = self.slab(bytes, Purpose::Compute);
        // What other streams still do with it comes first.
        if let Some(slab) = &mut slab {
            std::mem::take(&mut slab.uses).iter().for_each(|event| self.wait_for(event));
        }
        Block::new(slab, bytes, self.clone())
    }

    /// Memory on nobody's account for a transfer to write into, in order with the stream for computing once that waits
    /// for the transfer.
    pub(crate) fn memory_to_receive(self: &Arc<Self>, bytes: usize) -> CudaMemory {
        CudaMemory::new(self.receiving(bytes), self.clone())
    }

    /// Memory for a transfer to write into: the transfer waits for what is still done with it, the stream for
    /// computing for nothing.
    pub(super) fn receiving(self: &Arc<Self>, bytes: usize) -> Block {
        let mut slab = self.slab(bytes, Purpose::Receive);
        if let Some(slab) = &mut slab {
            std::mem::take(&mut slab.uses).iter().for_each(|event| self.transfer_waits_for(event));
            if let Some(freed) = slab.freed.take() {
                let point = self.points().after(freed);
                point.or_else(|| self.now()).iter().for_each(|event| self.transfer_waits_for(event));
            }
        }
        Block::new(slab, bytes, self.clone())
    }

    /// Memory whose last uses are still to be waited for; nothing if there is none left.
    fn slab(&self, bytes: usize, purpose: Purpose) -> Option<Slab> {
        self.gpu.enter();
        let pool = match purpose {
            Purpose::Compute => &self.pool,
            Purpose::Receive => &self.received,
        };
        let taken = pool.take(bytes).or_else(|_| {
            // What is free goes back to the driver, which waits for the GPU without asking anybody.
            self.interrupt("memory that goes back");
            self.wait_if_watched();
            [&self.pool, &self.received].into_iter().for_each(CudaPool::clear);
            pool.take(bytes)
        });
        taken
            .map_err(|error| {
                let (owned, name) = (self.memory_stats().owned, self.gpu.name());
                self.fail("memory", format!("{bytes} bytes more than the {owned} in use on {name}: {}", said(&error)));
            })
            .ok()
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
    pub(super) fn take_back(&self, mut slab: Slab) {
        slab.freed = Some(self.points().count());
        match slab.purpose {
            Purpose::Compute => self.pool.put(slab),
            Purpose::Receive => self.received.put(slab),
        }
    }

    /// Takes memory back that a graph had.
    pub(super) fn give_back(&self, slab: Slab) {
        self.pool.give_back(slab);
    }

    fn points(&self) -> MutexGuard<'_, Points> {
        self.points.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The point at which the stream for computing is now; nothing if that went wrong.
    pub(super) fn now(&self) -> Option<Arc<Event>> {
        self.interrupt("a point for other streams");
        // Under the lock, so that points are in the order of the stream.
        let mut points = self.points();
        let event = Arc::new(self.record(self.stream)?);
        points.push(event.clone());
        Some(event)
    }

    /// Transfers that are asked for from now on come after what was computed so far.
    pub(crate) fn begin_transfer(&self) {
        self.now().iter().for_each(|now| self.transfer_waits_for(now));
    }

    /// The point at which the stream for transfers is now; nothing if that went wrong.
    pub(crate) fn transferred(&self) -> Option<Arc<Event>> {
        self.record(self.transfers).map(Arc::new)
    }

    fn record(&self, stream: sys::CUstream) -> Option<Event> {
        Event::record(&self.gpu, stream).map_err(|error| self.fail("event", said(&error))).ok()
    }

    /// What is asked for from now on comes after this point of another stream.
    pub(crate) fn wait_for(&self, event: &Event) {
        self.interrupt("a point of another stream");
        self.attempt("wait", || event.hold_up(self.stream));
    }

    /// Transfers that are asked for from now on come after this point of another stream.
    pub(super) fn transfer_waits_for(&self, event: &Event) {
        self.attempt_transfer("wait", || event.hold_up(self.transfers));
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

    /// Copies from memory of another GPU, as a transfer.
    pub(super) fn copy_from(&self, other: &Gpu, from: sys::CUdeviceptr, to: sys::CUdeviceptr, bytes: usize) {
        self.interrupt("memory of another GPU");
        let (here, there) = (self.gpu.context(), other.context());
        if bytes > 0 {
            // SAFETY: as above; both contexts live until the process ends.
            let copy = || unsafe { result::memcpy_peer_async(here, to, there, from, bytes, self.transfers) };
            self.attempt_transfer("copy", copy);
        }
    }

    /// Writes rows of bytes; `bytes` may go as soon as this returns.
    pub(super) fn upload(&self, bytes: &[u8], to: RawView) {
        self.interrupt("memory of the host");
        // The driver waits for the stream by itself where it has no room for a copy of the bytes.
        if bytes.len() > STAGED {
            self.wait_if_watched();
        }
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
        if !is_staged {
            self.wait_if_watched();
        }
        let host = if is_staged { staging.0 } else { bytes.as_mut_ptr() };
        self.attempt("read", || Copy2D { host, device: from, is_upload: false }.start(self.stream));
        self.finish()?;
        if is_staged {
            // SAFETY: the staging memory has so many bytes, which the stream has written and nobody else has.
            unsafe { std::ptr::copy_nonoverlapping(host, bytes.as_mut_ptr(), bytes.len()) };
        }
        Ok(())
    }

    /// Launches a kernel.
    ///
    /// # Safety
    /// The pointers are to values of the types of the kernel's parameters, in their order, of so many bytes (which is
    /// checked), and every address among them is of memory that the kernel may use as it does, and that lives until the
    /// stream has passed this.
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

impl Drop for Place {
    fn drop(&mut self) {
        self.gpu.enter();
        // SAFETY: nobody has the stream any more. Errors here have been told, or nobody asks.
        unsafe {
            let _ = result::stream::synchronize(self.stream);
            let _ = result::stream::synchronize(self.transfers);
            self.pool.clear();
            self.received.clear();
            let _ = result::stream::destroy(self.stream);
            let _ = result::stream::destroy(self.transfers);
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
