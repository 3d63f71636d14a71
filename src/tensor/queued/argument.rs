//! How what an op is called with is kept until the op runs.

use std::sync::Arc;

use super::Deferred;
use super::memory::Shared;
use super::queue::Issue;
use crate::tensor::{Buffer, Element, MatrixMut, MatrixRef};

/// What an op of a [`Queued`](super::Queued) device is called with.
pub trait Argument {
    /// What is kept of it.
    type Kept: Kept;

    /// Keeps it for an op that is issued.
    fn keep(self, issue: &mut Issue<'_>) -> Self::Kept;
}

/// What is kept of an argument until the op runs.
pub trait Kept: Send + 'static {
    /// The same argument for the device that computes.
    type Inner<'a>
    where
        Self: 'a;

    /// The argument, when the op runs.
    fn get(&mut self) -> Self::Inner<'_>;
}

/// A number, or anything else that is copied.
#[derive(Clone, Copy, Debug)]
pub struct Value<T>(pub T);

impl<T: Copy + Send + 'static> Kept for Value<T> {
    type Inner<'a> = T;

    fn get(&mut self) -> T {
        self.0
    }
}

impl<T: Element> Argument for T {
    type Kept = Value<T>;

    fn keep(self, _issue: &mut Issue<'_>) -> Value<T> {
        Value(self)
    }
}

macro_rules! values {
    ($($value:ty),*) => { $(
        impl Argument for $value {
            type Kept = Value<$value>;

            fn keep(self, _issue: &mut Issue<'_>) -> Value<$value> {
                Value(self)
            }
        }
    )* };
}
values!(usize, bool);

/// Something that is passed by reference.
#[derive(Clone, Copy, Debug)]
pub struct Referred<T>(pub T);

impl<T: Send + 'static> Kept for Referred<T> {
    type Inner<'a> = &'a T;

    fn get(&mut self) -> &T {
        &self.0
    }
}

/// What was prepared.
impl<T: Send + Sync + 'static> Argument for &Arc<T> {
    type Kept = Referred<Arc<T>>;

    fn keep(self, _issue: &mut Issue<'_>) -> Referred<Arc<T>> {
        Referred(self.clone())
    }
}

impl<A: Argument> Argument for Option<A> {
    type Kept = Option<A::Kept>;

    fn keep(self, issue: &mut Issue<'_>) -> Option<A::Kept> {
        self.map(|argument| argument.keep(issue))
    }
}

impl<K: Kept> Kept for Option<K> {
    type Inner<'a>
        = Option<K::Inner<'a>>
    where
        K: 'a;

    fn get(&mut self) -> Self::Inner<'_> {
        self.as_mut().map(K::get)
    }
}

/// Memory that an op reads, or writes.
#[derive(Debug)]
pub struct Held<T: Element> {
    memory: Arc<Shared>,
    len: usize,
    writes: bool,
    opened: Option<Buffer<T>>,
}

impl<T: Element> Held<T> {
    fn read(buffer: &Buffer<T, Deferred>, issue: &mut Issue<'_>) -> Self {
        Held { memory: buffer.storage().reads(issue), len: buffer.len(), writes: false, opened: None }
    }

    fn written(buffer: &mut Buffer<T, Deferred>, issue: &mut Issue<'_>) -> Self {
        let len = buffer.len();
        Held { memory: buffer.storage_mut().writes(issue), len, writes: true, opened: None }
    }

    fn open(&mut self) -> &mut Buffer<T> {
        self.opened.get_or_insert_with(|| {
            let host = if self.writes { self.memory.take() } else { self.memory.borrow() };
            Buffer::from_storage(host, self.len)
        })
    }
}

impl<T: Element> Drop for Held<T> {
    fn drop(&mut self) {
        if let (true, Some(buffer)) = (self.writes, self.opened.take()) {
            self.memory.put(buffer.into_storage());
        }
    }
}

/// A whole buffer that an op reads.
#[derive(Debug)]
pub struct Read<T: Element>(Held<T>);

impl<T: Element> Argument for &Buffer<T, Deferred> {
    type Kept = Read<T>;

    fn keep(self, issue: &mut Issue<'_>) -> Read<T> {
        Read(Held::read(self, issue))
    }
}

impl<T: Element> Kept for Read<T> {
    type Inner<'a> = &'a Buffer<T>;

    fn get(&mut self) -> &Buffer<T> {
        self.0.open()
    }
}

/// A whole buffer that an op writes.
#[derive(Debug)]
pub struct Written<T: Element>(Held<T>);

impl<T: Element> Argument for &mut Buffer<T, Deferred> {
    type Kept = Written<T>;

    fn keep(self, issue: &mut Issue<'_>) -> Written<T> {
        Written(Held::written(self, issue))
    }
}

impl<T: Element> Kept for Written<T> {
    type Inner<'a> = &'a mut Buffer<T>;

    fn get(&mut self) -> &mut Buffer<T> {
        self.0.open()
    }
}

/// Offset, rows, columns and stride of a view.
type Place = [usize; 4];

/// A view that an op reads.
#[derive(Debug)]
pub struct ReadView<T: Element>(Held<T>, Place);

impl<T: Element> Argument for MatrixRef<'_, T, Deferred> {
    type Kept = ReadView<T>;

    fn keep(self, issue: &mut Issue<'_>) -> ReadView<T> {
        let place = [self.offset(), self.rows(), self.cols(), self.stride()];
        ReadView(Held::read(self.buffer(), issue), place)
    }
}

impl<T: Element> Kept for ReadView<T> {
    type Inner<'a> = MatrixRef<'a, T>;

    fn get(&mut self) -> MatrixRef<'_, T> {
        let [offset, rows, cols, stride] = self.1;
        MatrixRef::new(self.0.open(), offset, rows, cols, stride)
    }
}

/// A view that an op writes.
#[derive(Debug)]
pub struct WrittenView<T: Element>(Held<T>, Place);

impl<T: Element> Argument for MatrixMut<'_, T, Deferred> {
    type Kept = WrittenView<T>;

    fn keep(mut self, issue: &mut Issue<'_>) -> WrittenView<T> {
        let place = [self.offset(), self.rows(), self.cols(), self.stride()];
        WrittenView(Held::written(self.buffer_mut(), issue), place)
    }
}

impl<T: Element> Kept for WrittenView<T> {
    type Inner<'a> = MatrixMut<'a, T>;

    fn get(&mut self) -> MatrixMut<'_, T> {
        let [offset, rows, cols, stride] = self.1;
        MatrixMut::new(self.0.open(), offset, rows, cols, stride)
    }
}
