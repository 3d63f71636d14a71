//! Host memory that was allocated elsewhere: adopted for good, or lent for a while. Nothing is copied.

use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::ptr::NonNull;

use crate::error::Result;
use crate::tensor::{Buffer, Element, Matrix};

/// Elements in memory of somebody else.
pub(super) struct Foreign {
    start: NonNull<u8>,
    bytes: usize,
    /// Of memory that was adopted.
    owned: Option<Owned>,
}

/// How to free a `Vec`.
struct Owned {
    /// In elements.
    capacity: usize,
    free: unsafe fn(NonNull<u8>, usize),
}

// SAFETY: the bytes are those of plain elements, which are `Send` and `Sync`; they are reached like those of a `Vec`
// that was adopted, or of a shared slice.
unsafe impl Send for Foreign {}
// SAFETY: see above; they are written through `&mut` only.
unsafe impl Sync for Foreign {}

/// Frees what [`Foreign::adopt`] took.
///
/// # Safety
/// `start` and `capacity` are those of a `Vec<T>` that nobody else frees.
unsafe fn free<T: Element>(start: NonNull<u8>, capacity: usize) {
    // SAFETY: as the caller says; elements are plain, so that none needs to be dropped.
    drop(unsafe { Vec::<T>::from_raw_parts(start.as_ptr().cast(), 0, capacity) });
}

impl Foreign {
    /// Takes over the memory of `values`.
    pub(super) fn adopt<T: Element>(values: Vec<T>) -> Self {
        let mut values = ManuallyDrop::new(values);
        let (bytes, capacity) = (size_of_val(&values[..]), values.capacity());
        let start = NonNull::new(values.as_mut_ptr()).unwrap_or(NonNull::dangling());
        Foreign { start: start.cast(), bytes, owned: Some(Owned { capacity, free: free::<T> }) }
    }

    /// Reads the memory of `values`, which must stay as long as this does: see [`Lent`].
    fn lend<T: Element>(values: &[T]) -> Self {
        let start = NonNull::new(values.as_ptr().cast_mut()).unwrap_or(NonNull::dangling());
        Foreign { start: start.cast(), bytes: size_of_val(values), owned: None }
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Refuses elements that do not lie in the memory.
    fn expect<T: Element>(&self, len: usize) {
        let fits = len.checked_mul(size_of::<T>()).is_some_and(|bytes| bytes <= self.bytes);
        assert!(fits && self.start.cast::<T>().is_aligned(), "{len} elements of {} in other memory", T::DTYPE);
    }

    pub(super) fn as_slice<T: Element>(&self, len: usize) -> &[T] {
        self.expect::<T>(len);
        // SAFETY: inside the memory and aligned, any bytes are a `T`, and nobody writes while `self` is borrowed: the
        // memory is owned, or lent by a shared slice that `Lent` keeps borrowed.
        unsafe { std::slice::from_raw_parts(self.start.cast().as_ptr(), len) }
    }

    pub(super) fn as_mut_slice<T: Element>(&mut self, len: usize) -> &mut [T] {
        self.expect::<T>(len);
        assert!(self.owned.is_some(), "memory that is lent to be read is not written");
        // SAFETY: inside the memory and aligned, any bytes are a `T`; it is owned, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start.cast().as_ptr(), len) }
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        if let Some(Owned { capacity, free }) = self.owned.take() {
            // SAFETY: those of the `Vec` that was adopted, which is freed here only.
            unsafe { free(self.start, capacity) }
        }
    }
}

/// Something made of borrowed host memory, which is there to be read while the memory is.
#[derive(Debug)]
pub(crate) struct Lent<'a, X> {
    inner: X,
    memory: PhantomData<&'a [u8]>,
}

impl<'a, T: Element> Lent<'a, Buffer<T>> {
    /// `values` as a buffer.
    pub(crate) fn new(values: &'a [T]) -> Self {
        Lent { inner: Buffer::foreign(Foreign::lend(values), values.len()), memory: PhantomData }
    }

    /// The elements as `[rows, cols]`.
    ///
    /// # Panics
    /// If there are not `rows * cols` elements.
    pub(crate) fn matrix(self, rows: usize, cols: usize) -> Lent<'a, Matrix<T>> {
        Lent { inner: Matrix::new(self.inner, rows, cols), memory: PhantomData }
    }
}

impl<'a, X> Lent<'a, X> {
    /// Wraps what is lent into something else. `wrap` must put all that it is given into what it returns: nothing else
    /// keeps the memory borrowed.
    pub(crate) fn wrap<Y>(self, wrap: impl FnOnce(X) -> Result<Y>) -> Result<Lent<'a, Y>> {
        Ok(Lent { inner: wrap(self.inner)?, memory: PhantomData })
    }
}

/// To be read only: what could be moved out would outlive the memory.
impl<X> Deref for Lent<'_, X> {
    type Target = X;

    fn deref(&self) -> &X {
        &self.inner
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Storage;

    #[test]
    fn adopted_memory_stays_where_it_is_and_can_be_written() {
        let mut values = Vec::with_capacity(9);
        values.extend([1.0f32, 2.0, 3.0]);
        let start = values.as_ptr();
        let mut matrix = Matrix::from_vec(values, 1, 3);
        assert_eq!(matrix.as_ptr(), start);
        matrix[1] = 5.0;
        assert_eq!(matrix[..], [1.0, 5.0, 3.0]);
        let copy = matrix.clone();
        assert!(copy.as_ptr() != start && copy[..] == matrix[..]);
        assert_eq!(matrix.buffer().storage().capacity(), 12, "what is there, not what could be");
        assert!(Matrix::from_vec(Vec::<u8>::new(), 0, 4).is_empty());
    }

    #[test]
    fn lent_memory_is_read_in_place_and_never_written() {
        let values = [1i64, 2, 3, 4];
        let lent = Lent::new(&values).matrix(2, 2);
        assert_eq!((lent.as_ptr(), lent.row(1)), (values.as_ptr(), &values[2..]));
        let mut written = Foreign::lend(&values);
        assert!(std::panic::catch_unwind(move || written.as_mut_slice::<i64>(1)[0] = 0).is_err());
        assert_eq!(values, [1, 2, 3, 4]);
    }

    #[test]
    fn memory_is_not_read_as_elements_that_it_does_not_hold() {
        let bytes = [0u8; 17];
        for (from, len) in [(0, 3), (1, 2)] {
            let lent = Foreign::lend(&bytes[from..]);
            let misread = from == 0 || !lent.start.cast::<i64>().is_aligned();
            let read = std::panic::catch_unwind(|| lent.as_slice::<i64>(len).to_vec());
            assert_eq!(read.is_err(), misread, "{len} elements from byte {from} on");
        }
    }
}
