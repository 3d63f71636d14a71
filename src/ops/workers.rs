//! How ops spread work over the threads of one rank, and how they widen and round its storage type.

use std::sync::{Mutex, MutexGuard, PoisonError};

use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::tensor::{Buffer, Cpu, DType, Element, Float, MatrixMut, MatrixRef};

/// Runs `work(scratch, task)` for every task below `tasks`: [`for_each`] of their numbers.
pub(crate) fn for_each_task<T: Float, S: Send>(
    device: &Cpu<T>,
    tasks: usize,
    scratch: impl Fn() -> S,
    work: impl Fn(&mut S, usize) + Sync,
) {
    for_each(device, tasks, 0..tasks, scratch, work);
}

/// Runs `work(scratch, item)` for every item, in the order in which they come, each on the next free thread. There are
/// about `count` items; fewer than threads occupy that many. Each thread has a scratch of its own, made by the caller's
/// thread before any work starts. Nothing is allocated.
pub(crate) fn for_each<T: Float, I: Send, S: Send>(
    device: &Cpu<T>,
    count: usize,
    mut items: impl Iterator<Item = I> + Send,
    scratch: impl Fn() -> S,
    work: impl Fn(&mut S, I) + Sync,
) {
    let (Some(team), true) = (device.team(), count > 1) else {
        let Some(first) = items.next() else { return };
        let mut scratch = scratch();
        work(&mut scratch, first);
        return items.for_each(|item| work(&mut scratch, item));
    };
    let (threads, items) = (team.threads().min(count), Mutex::new(items));
    let next = || lock(&items).next();
    Each { value: Mutex::new(scratch()), before: None }.with_more(threads - 1, &scratch, &|scratches| {
        team.run(threads, &|thread| {
            let Some(scratch) = scratches.iter().nth(thread) else { return };
            let mut scratch = lock(&scratch.value);
            while let Some(item) = next() {
                work(&mut scratch, item);
            }
        });
    });
}

fn lock<V>(mutex: &Mutex<V>) -> MutexGuard<'_, V> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A value for each thread, in a list on the stack.
struct Each<'a, S> {
    value: Mutex<S>,
    before: Option<&'a Each<'a, S>>,
}

impl<S> Each<'_, S> {
    /// Calls `then` with `more` values longer a list.
    fn with_more(&self, more: usize, make: &dyn Fn() -> S, then: &dyn Fn(&Each<'_, S>)) {
        match more {
            0 => then(self),
            _ => Each { value: Mutex::new(make()), before: Some(self) }.with_more(more - 1, make, then),
        }
    }

    fn iter(&self) -> impl Iterator<Item = &Self> {
        std::iter::successors(Some(self), |each| each.before)
    }
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

/// Lets `fill` write `target` in the accumulation type, given elements and those from row to row, then rounds each
/// element once. With `keep`, `fill` finds the old values in place.
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
