//! Memory: element types, pooled buffers, matrices, and the trait that names a device.
//!
//! Everything larger than a few numbers lives in a [`Buffer`], which comes from a per-rank [`Pool`] and goes back
//! to it when dropped, so that a training step allocates nothing once every shape has been seen.

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut, Range};
use std::sync::{Arc, Mutex};

use bytemuck::{Pod, Zeroable};
use half::{bf16, f16};

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

/// Untyped memory on some device; what a communicator moves.
pub trait Storage: Send + Sync + Sized + fmt::Debug + 'static {
    /// Usable bytes.
    fn capacity(&self) -> usize;

    /// A copy of a range of elements, in memory from the same place.
    fn part<T: Element>(source: &Buffer<T, Self>, range: Range<usize>) -> Buffer<T, Self>;

    /// Overwrites the elements from `at` on.
    fn write<T: Element>(target: &mut Buffer<T, Self>, at: usize, from: &Buffer<T, Self>);

    /// Adds to the elements from `at` on, one rounding each.
    fn add<T: Real>(target: &mut Buffer<T, Self>, at: usize, from: &Buffer<T, Self>);
}

/// One cache line; gives host memory the alignment of vector loads.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

const LINE: usize = 64;

/// Host memory, aligned to 64 bytes, that returns to its [`Pool`] when dropped.
pub struct Host {
    lines: Vec<Line>,
    pool: Option<Arc<Pool>>,
}

impl Storage for Host {
    fn capacity(&self) -> usize {
        self.lines.len() * LINE
    }

    fn part<T: Element>(source: &Buffer<T>, range: Range<usize>) -> Buffer<T> {
        let mut copy = match &source.storage.pool {
            Some(pool) => Buffer::empty(pool, range.len()),
            None => return Buffer::from_slice(&source[range]),
        };
        copy.copy_from_slice(&source[range]);
        copy
    }

    fn write<T: Element>(target: &mut Buffer<T>, at: usize, from: &Buffer<T>) {
        target[at..at + from.len()].copy_from_slice(from);
    }

    fn add<T: Real>(target: &mut Buffer<T>, at: usize, from: &Buffer<T>) {
        let len = from.len();
        target[at..at + len].iter_mut().zip(from.iter()).for_each(|(sum, &value)| *sum += value);
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Host({} bytes)", self.capacity())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.take() {
            pool.put(std::mem::take(&mut self.lines));
        }
    }
}

/// The arena of one rank: blocks of host memory that are handed out, come back on drop, and are handed out again.
#[derive(Default)]
pub struct Pool {
    state: Mutex<PoolState>,
}

#[derive(Default)]
struct PoolState {
    /// Free blocks, sorted by length.
    free: Vec<Vec<Line>>,
    owned: usize,
    live: usize,
    peak: usize,
    allocations: u64,
    sealed: bool,
}

/// What a [`Pool`] has done so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolStats {
    /// Blocks that had to be requested from the system.
    pub allocations: u64,
    /// Bytes requested from the system and still owned.
    pub owned: usize,
    /// Most bytes in use at one time.
    pub peak: usize,
}

impl Pool {
    /// An empty pool.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// From now on a request is served by any free block that is large enough, however much larger, before the
    /// system is asked. Call it when every shape has been seen once.
    pub fn seal(&self) {
        self.lock().sealed = true;
    }

    /// Allocations, bytes owned and the peak in use.
    pub fn stats(&self) -> PoolStats {
        let state = self.lock();
        PoolStats { allocations: state.allocations, owned: state.owned * LINE, peak: state.peak * LINE }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, PoolState> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn take(&self, lines: usize) -> Vec<Line> {
        let mut state = self.lock();
        let at = state.free.partition_point(|block| block.len() < lines);
        let fits = state.free.get(at).is_some_and(|block| state.sealed || block.len() <= 2 * lines);
        let block = if fits {
            state.free.remove(at)
        } else {
            state.allocations += 1;
            state.owned += lines;
            vec![Line([0; LINE]); lines]
        };
        state.live += block.len();
        state.peak = state.peak.max(state.live);
        block
    }

    fn put(&self, block: Vec<Line>) {
        let mut state = self.lock();
        state.live -= block.len();
        let at = state.free.partition_point(|other| other.len() < block.len());
        state.free.insert(at, block);
    }
}

/// An owned run of `len` elements of `T` in device memory.
///
/// On the host it derefs to a slice. Its storage returns to the pool that it came from when dropped, on whichever
/// rank that happens.
pub struct Buffer<T, S = Host> {
    storage: S,
    len: usize,
    marker: PhantomData<T>,
}

impl<T: Element, S: Storage> Buffer<T, S> {
    /// Reads `storage` as `len` elements.
    ///
    /// # Panics
    /// If the storage is too small.
    pub fn from_storage(storage: S, len: usize) -> Self {
        assert!(len * size_of::<T>() <= storage.capacity(), "a buffer of {len} elements does not fit its storage");
        Buffer { storage, len, marker: PhantomData }
    }

    /// Gives up the type; the elements stay where they are.
    pub fn into_storage(self) -> S {
        self.storage
    }

    /// The storage behind the elements.
    pub fn storage(&self) -> &S {
        &self.storage
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of the elements.
    pub fn bytes(&self) -> usize {
        self.len * size_of::<T>()
    }
}

impl<T: Element> Buffer<T, Host> {
    /// Memory from `pool`, its contents unspecified; in debug builds every byte is 0xFF, which reads as NaN, so
    /// that a use before a write shows.
    pub fn empty(pool: &Arc<Pool>, len: usize) -> Self {
        let mut lines = pool.take((len * size_of::<T>()).div_ceil(LINE));
        if cfg!(debug_assertions) {
            lines.fill(Line([0xFF; LINE]));
        }
        Buffer::from_storage(Host { lines, pool: Some(pool.clone()) }, len)
    }

    /// Memory from `pool`, every element zero.
    pub fn zeros(pool: &Arc<Pool>, len: usize) -> Self {
        let mut buffer = Self::empty(pool, len);
        buffer.fill(T::zeroed());
        buffer
    }

    /// A copy of `values` that belongs to no pool.
    pub fn from_slice(values: &[T]) -> Self {
        let lines = vec![Line([0; LINE]); size_of_val(values).div_ceil(LINE)];
        let mut buffer = Buffer::from_storage(Host { lines, pool: None }, values.len());
        buffer.copy_from_slice(values);
        buffer
    }
}

impl<T: Element> Deref for Buffer<T, Host> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &bytemuck::cast_slice::<Line, T>(&self.storage.lines)[..self.len]
    }
}

impl<T: Element> DerefMut for Buffer<T, Host> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut bytemuck::cast_slice_mut::<Line, T>(&mut self.storage.lines)[..self.len]
    }
}

impl<T: Element> Clone for Buffer<T, Host> {
    fn clone(&self) -> Self {
        match &self.storage.pool {
            Some(pool) => {
                let mut copy = Buffer::empty(pool, self.len);
                copy.copy_from_slice(self);
                copy
            }
            None => Buffer::from_slice(self),
        }
    }
}

impl<T: Element, S: Storage> fmt::Debug for Buffer<T, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer<{}>[{}]", T::DTYPE, self.len)
    }
}

/// A row-major matrix `[rows, cols]`; what every activation is, whatever the layout.
pub struct Matrix<T, S = Host> {
    buffer: Buffer<T, S>,
    rows: usize,
    cols: usize,
}

impl<T: Element, S: Storage> Matrix<T, S> {
    /// Reads `buffer` as `[rows, cols]`.
    ///
    /// # Panics
    /// If the buffer does not have `rows * cols` elements.
    pub fn new(buffer: Buffer<T, S>, rows: usize, cols: usize) -> Self {
        assert_eq!(buffer.len(), rows * cols, "a matrix of {rows} x {cols} from {} elements", buffer.len());
        Matrix { buffer, rows, cols }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns (features).
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The elements, row by row.
    pub fn buffer(&self) -> &Buffer<T, S> {
        &self.buffer
    }

    /// The elements, row by row.
    pub fn buffer_mut(&mut self) -> &mut Buffer<T, S> {
        &mut self.buffer
    }

    /// Gives up the shape.
    pub fn into_buffer(self) -> Buffer<T, S> {
        self.buffer
    }

    /// The same elements as `[rows * times, cols / times]`: how heads are seen as rows.
    ///
    /// # Panics
    /// If `times` does not divide the columns.
    pub fn split_cols(self, times: usize) -> Self {
        assert_eq!(self.cols % times, 0, "{} columns do not split into {times}", self.cols);
        Matrix { rows: self.rows * times, cols: self.cols / times, buffer: self.buffer }
    }
}

impl<T, S> fmt::Debug for Matrix<T, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Matrix[{}, {}]", self.rows, self.cols)
    }
}

impl<T: Element> Matrix<T, Host> {
    /// A copy of `values`, `[rows, cols]`, that belongs to no pool.
    pub fn from_slice(values: &[T], rows: usize, cols: usize) -> Self {
        Matrix::new(Buffer::from_slice(values), rows, cols)
    }

    /// One row.
    pub fn row(&self, row: usize) -> &[T] {
        &self.buffer[row * self.cols..(row + 1) * self.cols]
    }

    /// One row.
    pub fn row_mut(&mut self, row: usize) -> &mut [T] {
        &mut self.buffer[row * self.cols..(row + 1) * self.cols]
    }
}

impl<T: Element> Clone for Matrix<T, Host> {
    fn clone(&self) -> Self {
        Matrix { buffer: self.buffer.clone(), rows: self.rows, cols: self.cols }
    }
}

impl<T: Element> Deref for Matrix<T, Host> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.buffer
    }
}

impl<T: Element> DerefMut for Matrix<T, Host> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.buffer
    }
}

/// A device together with the type that it stores activations and weights in.
///
/// It owns no data but hands out memory; what it can compute is said by one trait per op in [`crate::ops`].
pub trait Device: Clone + Send + Sync + 'static {
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
    /// Copies from the host.
    fn upload<T: Element>(&self, values: &[T]) -> Buffer<T, Self::Storage>;
    /// Copies to the host.
    fn download<T: Element>(&self, buffer: &Buffer<T, Self::Storage>) -> Vec<T>;
    /// Copies on the device.
    fn duplicate<T: Element>(&self, buffer: &Buffer<T, Self::Storage>) -> Buffer<T, Self::Storage>;
    /// What the device's arena has done so far.
    fn memory(&self) -> PoolStats;
    /// Every shape has been seen: see [`Pool::seal`].
    fn seal(&self);

    /// A matrix with unspecified contents.
    fn matrix<T: Element>(&self, rows: usize, cols: usize) -> Matrix<T, Self::Storage> {
        Matrix::new(self.empty(rows * cols), rows, cols)
    }

    /// A zeroed matrix.
    fn zero_matrix<T: Element>(&self, rows: usize, cols: usize) -> Matrix<T, Self::Storage> {
        Matrix::new(self.zeros(rows * cols), rows, cols)
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

/// The processor, storing `T`; the default device.
#[derive(Clone)]
pub struct Cpu<T = f32> {
    pool: Arc<Pool>,
    workers: Option<Arc<rayon::ThreadPool>>,
    marker: PhantomData<T>,
}

impl<T: Float> Cpu<T> {
    /// One rank's share of the processor: `threads` threads (at least 1), the caller's among them.
    pub fn new(threads: usize) -> Self {
        let workers = (threads > 1)
            .then(|| rayon::ThreadPoolBuilder::new().num_threads(threads).build().ok().map(Arc::new))
            .flatten();
        Cpu { pool: Pool::new(), workers, marker: PhantomData }
    }

    /// The arena that buffers come from.
    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// The threads to spread work over, if more than one.
    pub fn workers(&self) -> Option<&rayon::ThreadPool> {
        self.workers.as_deref()
    }
}

impl<T: Float> Default for Cpu<T> {
    fn default() -> Self {
        Cpu::new(1)
    }
}

impl<T: Float> Device for Cpu<T> {
    type Elem = T;
    type Acc = T::Acc;
    type Storage = Host;

    fn empty<E: Element>(&self, len: usize) -> Buffer<E> {
        Buffer::empty(&self.pool, len)
    }

    fn zeros<E: Element>(&self, len: usize) -> Buffer<E> {
        Buffer::zeros(&self.pool, len)
    }

    fn upload<E: Element>(&self, values: &[E]) -> Buffer<E> {
        let mut buffer = Buffer::empty(&self.pool, values.len());
        buffer.copy_from_slice(values);
        buffer
    }

    fn download<E: Element>(&self, buffer: &Buffer<E>) -> Vec<E> {
        buffer.to_vec()
    }

    fn duplicate<E: Element>(&self, buffer: &Buffer<E>) -> Buffer<E> {
        self.upload(buffer)
    }

    fn memory(&self) -> PoolStats {
        self.pool.stats()
    }

    fn seal(&self) {
        self.pool.seal();
    }
}
