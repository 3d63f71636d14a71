//! Weights for every rank from one reading.

use std::sync::{Mutex, PoisonError};

use context_parallel::error::Result;
use context_parallel::model::parameters::ParameterSet;
use context_parallel::tensor::{Cpu, Element, Float, Host};

/// A device per rank, and the same weights on each until the rank takes them.
pub struct Ranks<T, R, E> {
    devices: Vec<Cpu<T>>,
    weights: Vec<Mutex<Option<ParameterSet<R, E, Host>>>>,
}

impl<T: Float, R, E: Element> Ranks<T, R, E> {
    /// Makes weights once, and a copy for each rank but the first.
    pub fn new(
        ranks: usize,
        threads: usize,
        make: impl FnOnce(&Cpu<T>) -> Result<ParameterSet<R, E, Host>>,
    ) -> Result<Self> {
        let devices: Vec<Cpu<T>> = (0..ranks).map(|_| Cpu::new(threads)).collect();
        let first = make(&devices[0])?;
        let copies: Vec<_> = devices[1..].iter().map(|device| first.duplicate(device)).collect();
        let weights = std::iter::once(first).chain(copies).map(|weights| Mutex::new(Some(weights))).collect();
        Ok(Ranks { devices, weights })
    }

    /// The device of a rank.
    pub fn device(&self, rank: usize) -> &Cpu<T> {
        &self.devices[rank]
    }

    /// The weights of a rank, which it takes once.
    ///
    /// # Panics
    /// At the second call for a rank.
    pub fn take(&self, rank: usize) -> ParameterSet<R, E, Host> {
        let weights = self.weights[rank].lock().unwrap_or_else(PoisonError::into_inner).take();
        weights.unwrap_or_else(|| panic!("rank {rank} took its weights already"))
    }

    /// The devices, by rank.
    pub fn devices(&self) -> &[Cpu<T>] {
        &self.devices
    }
}
