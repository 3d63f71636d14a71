//! NVIDIA GPUs as a device: memory, streams and kernels through the CUDA driver.
//!
//! Nothing of CUDA is needed to build this; the driver, NVRTC and cuBLASLt are loaded when the first device is opened,
//! and an error says which of them is missing and where it was sought ([`probe`]). Kernels are in the folder `kernels`,
//! compiled for the GPU at hand when they are first needed.
//!
//! Ops only enqueue: every device has streams of its own ([`Place`]), so several ranks of one process can share a GPU,
//! and what one hands to another is ordered by events ([`CudaMemory`]). What comes from another GPU comes on a second
//! stream, while the first one computes.

mod blas;
mod cache;
mod copy;
mod event;
mod gpu;
mod graph;
mod kernel;
mod launch;
mod map;
mod memory;
mod place;
mod pool;
pub mod probe;
mod trace;
mod watch;

pub(crate) use blas::{Product, Side};
pub(crate) use event::Event;
pub(crate) use kernel::{Dims, Kernel, Suffix};
pub(crate) use launch::{Argument, Arguments, BLOCK, Geometry, MOST_Y, RawView};
pub(crate) use map::TensorMap;
pub use memory::CudaMemory;
pub(crate) use memory::Kept;
pub use place::Place;
pub(crate) use trace::Begun;
pub use trace::{Span, Trace};
pub(crate) use watch::Watch;

/// An address in the memory of a GPU.
pub(crate) type Address = cudarc::driver::sys::CUdeviceptr;

/// The bindings to CUDA, of the version that is used here.
pub use cudarc;

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use half::{bf16, f16};

use crate::error::{Result, SupportError};
use crate::tensor::{
    Buffer, DType, Device, Element, Float, Ledger, MatrixMut, MatrixRef, PoolStats, Recording, Storage, bytes_of,
};

/// A storage type of [`Cuda`]: `bf16`, `f16` or `f32`. Sums are in `f32`.
#[diagnostic::on_unimplemented(message = "`{Self}` is not stored on GPUs: use `bf16`, `f16` or `f32`")]
pub trait CudaFloat: Float<Acc = f32> {}
impl CudaFloat for f32 {}
impl CudaFloat for bf16 {}
impl CudaFloat for f16 {}

/// One rank's stream on a GPU, storing `T`.
#[derive(Clone)]
pub struct Cuda<T = bf16> {
    place: Arc<Place>,
    marker: PhantomData<T>,
}

impl<T: CudaFloat> Cuda<T> {
    /// A stream of its own on the GPU of this number, from 0.
    ///
    /// # Errors
    /// [`SupportError::Cuda`] if a library, the GPU, or what it needs is missing, with what to do about it.
    pub fn new(ordinal: usize) -> Result<Self> {
        Ok(Cuda { place: Place::new(gpu::Gpu::open(ordinal)?)?, marker: PhantomData })
    }

    /// The stream and the memory behind it.
    pub fn place(&self) -> &Arc<Place> {
        &self.place
    }

    /// Measures from now on when each thing that is asked for runs. Work is not recorded meanwhile
    /// ([`Device::repeat`]): each kernel is seen.
    ///
    /// # Errors
    /// What went wrong on the device before.
    pub fn begin_trace(&self) -> Result<()> {
        self.place.begin_trace()
    }

    /// What has run since [`begin_trace`](Self::begin_trace); nothing is measured any more. It waits for the device.
    ///
    /// # Errors
    /// What went wrong on the device.
    pub fn end_trace(&self) -> Result<Trace> {
        self.place.end_trace()
    }

    /// The same stream and memory, storing another type.
    pub fn storing<E: CudaFloat>(&self) -> Cuda<E> {
        Cuda { place: self.place.clone(), marker: PhantomData }
    }
}

impl<T: CudaFloat> fmt::Debug for Cuda<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cuda<{}>({:?})", T::DTYPE, self.place)
    }
}

impl<T: CudaFloat> Device for Cuda<T> {
    type Elem = T;
    type Acc = f32;
    type Storage = CudaMemory;

    fn empty<E: Element>(&self, len: usize) -> Buffer<E, CudaMemory> {
        let bytes = bytes_of::<E>(len);
        let mut memory = self.place.memory(bytes);
        memory.set_charge(Some(self.place.ledger().charge(bytes)));
        Buffer::from_storage(memory, len)
    }

    fn zeros<E: Element>(&self, len: usize) -> Buffer<E, CudaMemory> {
        let mut buffer = self.empty(len);
        let bytes = buffer.bytes();
        self.place.zero(buffer.storage_mut().writes(&self.place), bytes);
        buffer
    }

    fn write<E: Element>(&self, values: &[E], target: MatrixMut<'_, E, CudaMemory>) {
        assert_eq!(values.len(), target.len(), "values for {target:?}");
        if !values.is_empty() {
            let view = RawView::of_mut(&self.place, target);
            self.place.upload(bytemuck::cast_slice(values), view.in_bytes::<E>());
        }
    }

    fn read<'a, E: Element>(&self, from: impl Into<MatrixRef<'a, E, CudaMemory>>) -> Result<Vec<E>> {
        let from = from.into();
        let mut values = vec![E::zeroed(); from.len()];
        self.read_into(from, &mut values)?;
        Ok(values)
    }

    fn read_into<'a, E: Element>(&self, from: impl Into<MatrixRef<'a, E, CudaMemory>>, values: &mut [E]) -> Result<()> {
        let from = from.into();
        assert_eq!(values.len(), from.len(), "values of {from:?}");
        if values.is_empty() {
            return self.place.finish();
        }
        let view = RawView::of(&self.place, from);
        self.place.download(view.in_bytes::<E>(), bytemuck::cast_slice_mut(values))
    }

    fn reserve(&self, bytes: usize) -> Result<()> {
        let owned = self.place.memory_stats().owned;
        let free = self.place.gpu().free_bytes()?;
        if bytes > owned.saturating_add(free) {
            let reason = format!("{} has {free} bytes left", self.place.gpu().name());
            return Err(SupportError::Memory { bytes: bytes as u64, owned: owned as u64, reason }.into());
        }
        Ok(())
    }

    fn duplicate<E: Element>(&self, buffer: &Buffer<E, CudaMemory>) -> Buffer<E, CudaMemory> {
        let mut copy = self.empty(buffer.len());
        let (from, to) = (buffer.storage().reads(&self.place), copy.storage_mut().writes(&self.place));
        self.place.copy(from, to, buffer.bytes());
        copy
    }

    fn memory(&self) -> PoolStats {
        self.place.memory_stats()
    }

    fn ledger(&self) -> &Arc<Ledger> {
        self.place.ledger()
    }

    fn seal(&self) {
        self.place.seal();
    }

    fn records(&self) -> bool {
        true
    }

    /// As a CUDA graph.
    fn repeat(&self, recording: &mut Recording, work: impl FnOnce() -> Result<()>) -> Result<()> {
        self.place.repeat(recording, work)
    }
}

/// The suffix of kernels for a storage type.
pub(crate) fn suffix_of<T: Element>() -> Suffix {
    match T::DTYPE {
        DType::F32 => Suffix::F32,
        DType::F64 => Suffix::F64,
        DType::Bf16 => Suffix::Bf16,
        DType::F16 => Suffix::F16,
        DType::I64 | DType::I32 | DType::U8 => Suffix::None,
    }
}
