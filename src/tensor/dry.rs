//! A device that computes nothing: what it would hold is all that it knows.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use crate::error::Result;
use crate::tensor::{
    Buffer, Charge, Device, Element, Float, Ledger, MatrixMut, MatrixRef, PoolStats, Real, Storage, bytes_of,
};

/// Stands for a device that stores `T`, so that a program can be rehearsed for the memory that it takes. Buffers have
/// a length and no contents; ops give results of the right shape ([`crate::ops`]).
#[derive(Clone, Debug)]
pub struct DryRun<T> {
    ledger: Arc<Ledger>,
    marker: PhantomData<fn() -> T>,
}

impl<T> Default for DryRun<T> {
    fn default() -> Self {
        DryRun { ledger: Arc::default(), marker: PhantomData }
    }
}

/// Memory that is only counted.
#[derive(Debug)]
pub struct Imagined {
    bytes: usize,
    charge: Option<Charge>,
}

impl Imagined {
    /// Memory on nobody's account: a message under way.
    pub(crate) fn message(bytes: usize) -> Self {
        Imagined { bytes, charge: None }
    }
}

impl Storage for Imagined {
    fn capacity(&self) -> usize {
        self.bytes
    }

    fn share(self) -> (Self, Self) {
        let other = Imagined::message(self.bytes);
        (self, other)
    }

    fn beside<T: Element>(_source: &Buffer<T, Self>, len: usize) -> Buffer<T, Self> {
        Buffer::from_storage(Imagined::message(bytes_of::<T>(len)), len)
    }

    fn set_charge(&mut self, charge: Option<Charge>) {
        self.charge = charge;
    }

    fn part<T: Element>(source: &Buffer<T, Self>, range: Range<usize>) -> Buffer<T, Self> {
        let bytes = bytes_of::<T>(range.len());
        let charge = source.storage().charge.as_ref().map(|charge| charge.ledger().charge(bytes));
        Buffer::from_storage(Imagined { bytes, charge }, range.len())
    }

    fn write<T: Element>(_target: &mut Buffer<T, Self>, _at: usize, _from: &Buffer<T, Self>) {}

    fn add<T: Real>(_target: &mut Buffer<T, Self>, _at: usize, _from: &Buffer<T, Self>) {}
}

impl<T: Float> Device for DryRun<T> {
    type Elem = T;
    type Acc = T::Acc;
    type Storage = Imagined;

    fn empty<E: Element>(&self, len: usize) -> Buffer<E, Imagined> {
        let bytes = bytes_of::<E>(len);
        Buffer::from_storage(Imagined { bytes, charge: Some(self.ledger.charge(bytes)) }, len)
    }

    fn zeros<E: Element>(&self, len: usize) -> Buffer<E, Imagined> {
        self.empty(len)
    }

    fn write<E: Element>(&self, values: &[E], target: MatrixMut<'_, E, Imagined>) {
        assert_eq!(values.len(), target.len(), "values for {target:?}");
    }

    /// Zeros.
    fn read<'a, E: Element>(&self, from: impl Into<MatrixRef<'a, E, Imagined>>) -> Result<Vec<E>> {
        Ok(vec![E::zeroed(); from.into().len()])
    }

    /// Memory that is only counted never runs out.
    fn reserve(&self, _bytes: usize) -> Result<()> {
        Ok(())
    }

    fn duplicate<E: Element>(&self, buffer: &Buffer<E, Imagined>) -> Buffer<E, Imagined> {
        self.empty(buffer.len())
    }

    /// Nothing is ever requested from a system.
    fn memory(&self) -> PoolStats {
        PoolStats { allocations: 0, owned: 0, peak: self.ledger.peak() }
    }

    fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    fn seal(&self) {}
}
