//! How ops spread work over the threads of one rank, and how they widen and round its storage type.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::ThreadPool;

use crate::tensor::{Buffer, Cpu, DType, Element, Float, MatrixMut, MatrixRef};

/// Number of threads of the device.
pub(crate) fn threads<T: Float>(device: &Cpu<T>) -> usize {
    device.workers().map_or(1, |pool| pool.current_num_threads())
}

/// Runs `work` once, on the device's threads if it has several, so that parallel iterators inside use them.
pub(crate) fn install<T: Float, R: Send>(device: &Cpu<T>, work: impl FnOnce() -> R + Send) -> R {
    let Some(pool) = device.workers() else { return work() };
    let (mut work, mut result) = (Some(work), None);
    install_in(pool, &mut || result = work.take().map(|work| work()));
    let Some(result) = result else { unreachable!("a pool runs what is installed in it") };
    result
}

/// Behind a pointer, so that what it takes of rayon is compiled once.
fn install_in(pool: &ThreadPool, work: &mut (dyn FnMut() + Send)) {
    pool.install(work);
}

/// Runs `work` on every thread of the pool, with the thread's number. Behind a pointer like [`install_in`].
fn broadcast(pool: &ThreadPool, work: &(dyn Fn(usize) + Sync)) {
    pool.broadcast(|context| work(context.index()));
}

/// Runs `work(scratch, task)` for every task, in ascending order, each on the next free thread. Each thread has a
/// scratch of its own, made by the caller's thread before any work starts.
pub(crate) fn for_each_task<T: Float, S: Send>(
    device: &Cpu<T>,
    tasks: usize,
    scratch: impl Fn() -> S,
    work: impl Fn(&mut S, usize) + Sync,
) {
    let threads = threads(device).min(tasks);
    let (Some(pool), true) = (device.workers(), threads > 1) else {
        if tasks > 0 {
            let mut scratch = scratch();
            (0..tasks).for_each(|task| work(&mut scratch, task));
        }
        return;
    };
    let scratches: Vec<Mutex<S>> = (0..threads).map(|_| Mutex::new(scratch())).collect();
    let next = AtomicUsize::new(0);
    broadcast(pool, &|thread| {
        let Some(scratch) = scratches.get(thread) else { return };
        let mut scratch = scratch.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        loop {
            let task = next.fetch_add(1, Ordering::Relaxed);
            if task >= tasks {
                break;
            }
            work(&mut scratch, task);
        }
    });
}

/// Whether values of `T` are already of its accumulation type.
pub(crate) const fn is_acc<T: Float>() -> bool {
    T::DTYPE.size() == T::Acc::DTYPE.size()
}

/// A matrix in the accumulation type: the caller's own, or a widened copy.
pub(crate) struct Wide<'a, T: Float> {
    values: Values<'a, T>,
    cols: usize,
    stride: usize,
}

enum Values<'a, T: Float> {
    /// Stored in the accumulation type.
    Same(&'a [T::Acc]),
    /// Widened into memory from the device's arena.
    Copy(Buffer<T::Acc>),
}

impl<'a, T: Float> Wide<'a, T> {
    /// Widens if need be.
    pub(crate) fn new(device: &Cpu<T>, from: MatrixRef<'a, T>) -> Self {
        let cols = from.cols();
        if is_acc::<T>() {
            return Wide { values: Values::Same(bytemuck::cast_slice(from.span())), cols, stride: from.stride() };
        }
        let mut copy = device.scratch::<T::Acc>(from.len());
        match from.flat() {
            Some(values) => widen(values, &mut copy),
            None => (0..from.rows()).for_each(|row| widen(from.row(row), &mut copy[row * cols..(row + 1) * cols])),
        }
        Wide { values: Values::Copy(copy), cols, stride: cols }
    }

    /// From the first element to the last, with what lies between rows.
    pub(crate) fn span(&self) -> &[T::Acc] {
        match &self.values {
            Values::Same(values) => values,
            Values::Copy(buffer) => buffer,
        }
    }

    /// Elements from one row to the next.
    pub(crate) fn stride(&self) -> usize {
        self.stride
    }

    /// One row.
    pub(crate) fn row(&self, row: usize) -> &[T::Acc] {
        &self.span()[row * self.stride..][..self.cols]
    }
}

/// Lets `fill` write `target` in the accumulation type, given elements and those from row to row, then rounds each element
/// once. With `keep`, `fill` finds the old values in place.
pub(crate) fn write_rounded<T: Float>(
    device: &Cpu<T>,
    mut target: MatrixMut<'_, T>,
    keep: bool,
    fill: impl FnOnce(&mut [T::Acc], usize),
) {
    let (rows, cols, stride) = (target.rows(), target.cols(), target.stride());
    if is_acc::<T>() {
        return fill(bytemuck::cast_slice_mut(target.span_mut()), stride);
    }
    let mut wide = device.scratch::<T::Acc>(target.len());
    if keep {
        (0..rows).for_each(|row| widen(target.row(row), &mut wide[row * cols..(row + 1) * cols]));
    }
    fill(&mut wide, cols);
    for row in 0..rows {
        let pairs = target.row_mut(row).iter_mut().zip(&wide[row * cols..(row + 1) * cols]);
        pairs.for_each(|(to, &from)| *to = T::from_acc(from));
    }
}

/// Widens a run of values.
pub(crate) fn widen<T: Float>(from: &[T], to: &mut [T::Acc]) {
    match T::DTYPE {
        DType::F32 | DType::F64 => to.copy_from_slice(bytemuck::cast_slice(from)),
        // Conversion by the processor where it has one; element by element it is called through a run-time test.
        DType::F16 => bytemuck::cast_slice::<T, f16>(from).convert_to_f32_slice(bytemuck::cast_slice_mut(to)),
        _ => to.iter_mut().zip(from).for_each(|(to, from)| *to = from.to_acc()),
    }
}
