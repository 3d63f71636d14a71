//! Memory: element types, pooled buffers, matrices, and the trait that names a device.
//!
//! Everything larger than a few numbers lives in a [`Buffer`], which comes from a per-rank [`Pool`] and goes back
//! to it when dropped, so that a training step allocates nothing once every shape has been seen.

mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod dry;
mod foreign;
mod ledger;
mod matrix;
mod memory;
mod pool;
#[cfg(feature = "conformance")]
pub mod queued;
mod recording;
mod view;

pub use cpu::Cpu;
#[cfg(feature = "cuda")]
pub use cuda::Cuda;
pub use dry::{DryRun, Imagined};
pub(crate) use foreign::Lent;
pub use ledger::{Charge, Ledger};
pub use matrix::Matrix;
pub use memory::{Buffer, Host, Storage};
pub use pool::{Pool, PoolStats};
pub use recording::Recording;
pub use view::{MatrixMut, MatrixRef};

use std::fmt;
use std::sync::Arc;

use bytemuck::Pod;
use half::{bf16, f16};

use crate::error::Result;

/// The element types that buffers, files and messages can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE single precision.
    F32,
    /// IEEE double precision.
    F64,
    /// bfloat16: the exponent of `f32`, 8 bits of significand.
    Bf16,
    /// IEEE half precision.
    F16,
    /// Token ids, labels, positions.
    I64,
    /// Cumulative sequence lengths as other systems write them.
    I32,
    /// Bytes and boolean masks.
    U8,
}

impl DType {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            DType::U8 => 1,
            DType::Bf16 | DType::F16 => 2,
            DType::F32 | DType::I32 => 4,
            DType::F64 | DType::I64 => 8,
        }
    }

    /// The name used on the command line and in messages.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::F64 => "f64",
            DType::Bf16 => "bf16",
            DType::F16 => "f16",
            DType::I64 => "i64",
            DType::I32 => "i32",
            DType::U8 => "u8",
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A plain value that buffers hold and ranks exchange.
pub trait Element: Pod + PartialEq + fmt::Debug + Send + Sync + 'static {
    /// The run-time name of the type.
    const DTYPE: DType;
}

macro_rules! elements {
    ($($t:ty => $d:ident),*) => { $(impl Element for $t { const DTYPE: DType = DType::$d; })* };
}
elements!(f32 => F32, f64 => F64, bf16 => Bf16, f16 => F16, i64 => I64, i32 => I32, u8 => U8);

/// A floating-point storage type. Sums of it are held in [`Float::Acc`].
#[diagnostic::on_unimplemented(message = "`{Self}` is not a type to compute with: use `f32`, `f64`, `bf16` or `f16`")]
pub trait Float: Element + Default {
    /// What products are summed in: `f32`, or `f64` for `f64`.
    type Acc: Real;
    /// Widens (exact).
    fn to_acc(self) -> Self::Acc;
    /// Rounds to nearest even.
    fn from_acc(acc: Self::Acc) -> Self;
    /// Widens to `f64` (exact).
    fn to_f64(self) -> f64;
    /// Rounds to nearest even.
    fn from_f64(value: f64) -> Self;
}

/// An accumulation type: `f32` or `f64`.
pub trait Real: Float<Acc = Self> + num_traits::Float + num_traits::NumAssign + std::iter::Sum + fmt::Display {}
impl Real for f32 {}
impl Real for f64 {}

macro_rules! floats {
    ($($t:ty, $acc:ty, $to:expr, $from:expr, $to64:expr, $from64:expr);*) => {
        $(impl Float for $t {
            type Acc = $acc;
            #[inline(always)]
            fn to_acc(self) -> $acc { $to(self) }
            #[inline(always)]
            fn from_acc(acc: $acc) -> Self { $from(acc) }
            #[inline(always)]
            fn to_f64(self) -> f64 { $to64(self) }
            #[inline(always)]
            fn from_f64(value: f64) -> Self { $from64(value) }
        })*
    };
}
floats!(
    f32, f32, |x| x, |x| x, |x| x as f64, |x| x as f32;
    f64, f64, |x| x, |x| x, |x| x, |x| x;
    bf16, f32, bf16::to_f32, bf16::from_f32, bf16::to_f64, bf16::from_f64;
    f16, f32, f16::to_f32, f16::from_f32, f16::to_f64, f16::from_f64
);

/// A number of elements: the product of `sizes`.
///
/// # Panics
/// If it is more than can be counted.
pub(crate) fn product(sizes: &[usize]) -> usize {
    let product = sizes.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
    product.unwrap_or_else(|| panic!("the product of the sizes {sizes:?} is more than can be counted"))
}

/// Bytes of `len` elements.
///
/// # Panics
/// If they are more than can be addressed.
fn bytes_of<T: Element>(len: usize) -> usize {
    let bytes = len.checked_mul(size_of::<T>()).filter(|&bytes| bytes <= isize::MAX as usize);
    bytes.unwrap_or_else(|| panic!("{len} elements of {} take more memory than can be addressed", T::DTYPE))
}

/// A device together with the type that it stores activations and weights in.
///
/// It owns no data but hands out memory; what it can compute is said by one trait per op in [`crate::ops`].
pub trait Device: Clone + fmt::Debug + Send + Sync + 'static {
    /// Storage type of activations and of the working copy of the weights.
    type Elem: Float<Acc = Self::Acc>;
    /// Type of sums: partial attention results, gradients, master weights.
    type Acc: Real;
    /// Where buffers live.
    type Storage: Storage;

    /// Memory with unspecified contents.
    fn empty<T: Element>(&self, len: usize) -> Buffer<T, Self::Storage>;
    /// Zeroed memory.
    fn zeros<T: Element>(&self, len: usize) -> Buffer<T, Self::Storage>;
    /// Copies from the host into memory of the device, row by row.
    ///
    /// # Panics
    /// If there are not as many values as elements.
    fn write<T: Element>(&self, values: &[T], target: MatrixMut<'_, T, Self::Storage>);
    /// Copies to the host, row by row: a whole buffer, a matrix or a view. It waits until everything has run that was
    /// asked of the device before; nothing else does.
    ///
    /// # Errors
    /// What went wrong on the device since it was last asked; ops do not say so themselves.
    fn read<'a, T: Element>(&self, from: impl Into<MatrixRef<'a, T, Self::Storage>>) -> Result<Vec<T>>
    where
        Self::Storage: 'a;
    /// [`Device::read`] into memory that is given.
    ///
    /// # Errors
    /// Those of [`Device::read`].
    ///
    /// # Panics
    /// If there are not as many values as elements.
    fn read_into<'a, T: Element>(
        &self,
        from: impl Into<MatrixRef<'a, T, Self::Storage>>,
        values: &mut [T],
    ) -> Result<()>
    where
        Self::Storage: 'a,
    {
        values.copy_from_slice(&self.read(from)?);
        Ok(())
    }
    /// Makes sure that the device can hold this many bytes at a time, before the first of them is needed.
    ///
    /// # Errors
    /// [`SupportError::Memory`](crate::error::SupportError::Memory) if it cannot, with the sizes.
    fn reserve(&self, bytes: usize) -> Result<()>;
    /// Copies on the device.
    fn duplicate<T: Element>(&self, buffer: &Buffer<T, Self::Storage>) -> Buffer<T, Self::Storage>;
    /// What the device's arena has done so far.
    fn memory(&self) -> PoolStats;
    /// What programs on the device hold, to the byte.
    fn ledger(&self) -> &Arc<Ledger>;
    /// Every shape has been seen: see [`Pool::seal`].
    fn seal(&self);

    /// Whether [`Device::repeat`] spares the host anything.
    fn records(&self) -> bool {
        false
    }

    /// Does `work`, which comes again with the same `recording`: all of it every time, unless the device has recorded
    /// what it was asked for and does that again without running `work`. It must ask for the same ops with the same
    /// numbers on the same buffers every time, whatever is in them, and leave no memory behind that it took. Nobody
    /// else asks the device for anything meanwhile.
    ///
    /// # Errors
    /// Those of `work`.
    fn repeat(&self, recording: &mut Recording, work: impl FnOnce() -> Result<()>) -> Result<()> {
        let _ = recording;
        work()
    }

    /// Copies from the host.
    fn upload<T: Element>(&self, values: &[T]) -> Buffer<T, Self::Storage> {
        let mut buffer = self.empty(values.len());
        self.write(values, MatrixMut::of_buffer(&mut buffer));
        buffer
    }

    /// A matrix with unspecified contents.
    fn matrix<T: Element>(&self, rows: usize, cols: usize) -> Matrix<T, Self::Storage> {
        Matrix::new(self.empty(product(&[rows, cols])), rows, cols)
    }

    /// A zeroed matrix.
    fn zero_matrix<T: Element>(&self, rows: usize, cols: usize) -> Matrix<T, Self::Storage> {
        Matrix::new(self.zeros(product(&[rows, cols])), rows, cols)
    }
}

/// A buffer of `D`'s storage type.
pub type ElemBuffer<D> = Buffer<<D as Device>::Elem, <D as Device>::Storage>;
/// A buffer of `D`'s accumulation type.
pub type AccBuffer<D> = Buffer<<D as Device>::Acc, <D as Device>::Storage>;
/// A matrix of `D`'s storage type.
pub type ElemMatrix<D> = Matrix<<D as Device>::Elem, <D as Device>::Storage>;
/// A matrix of `D`'s accumulation type.
pub type AccMatrix<D> = Matrix<<D as Device>::Acc, <D as Device>::Storage>;

/// A view of numbers of `D`'s storage type, to be read.
pub type ElemRef<'a, D> = MatrixRef<'a, <D as Device>::Elem, <D as Device>::Storage>;
/// A view of numbers of `D`'s storage type, to be written.
pub type ElemMut<'a, D> = MatrixMut<'a, <D as Device>::Elem, <D as Device>::Storage>;
/// A view of numbers of `D`'s accumulation type, to be read.
pub type AccRef<'a, D> = MatrixRef<'a, <D as Device>::Acc, <D as Device>::Storage>;
/// A view of numbers of `D`'s accumulation type, to be written.
pub type AccMut<'a, D> = MatrixMut<'a, <D as Device>::Acc, <D as Device>::Storage>;
