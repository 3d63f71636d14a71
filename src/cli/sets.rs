//! Weights for every rank from one reading.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use context_parallel::error::Result;
use context_parallel::model::parameters::ParameterSet;
use context_parallel::tensor::{Device, Element};

use super::hardware::RankDevice;
use super::output;

/// Parameters on a device.
type SetOn<D, R, E> = ParameterSet<R, E, <D as Device>::Storage>;

/// A device per rank of this process, and the same weights on each until the rank takes them.
pub struct WeightsOfRanks<D: RankDevice, R, E> {
    /// The first rank of this process.
    first: usize,
    devices: Vec<D>,
    weights: Vec<Mutex<Option<SetOn<D, R, E>>>>,
}

impl<D: RankDevice, R, E: Element> WeightsOfRanks<D, R, E> {
    /// Makes weights once, and a copy for each of `ranks`, whose devices `open` gives, but the first; nothing if there
    /// are none.
    pub fn new(
        ranks: Range<usize>,
        open: impl Fn(usize) -> Result<D>,
        make: impl FnOnce(&D) -> Result<SetOn<D, R, E>>,
    ) -> Result<Self> {
        let first = ranks.start;
        let devices: Vec<D> = ranks.map(open).collect::<Result<_>>()?;
        let Some((device, others)) = devices.split_first() else {
            return Ok(WeightsOfRanks { first, devices, weights: Vec::new() });
        };
        let original = make(device)?;
        let _copying = output::phase(format!("copying the weights for {}", output::many(others.len(), "more rank")));
        let copies: Vec<_> = others.iter().map(|other| other.copied(device, &original)).collect();
        let weights = std::iter::once(original).chain(copies).map(|weights| Mutex::new(Some(weights))).collect();
        Ok(WeightsOfRanks { first, devices, weights })
    }

    /// The device of a rank of this process.
    pub fn device(&self, rank: usize) -> &D {
        &self.devices[rank - self.first]
    }

    /// The weights of a rank of this process, which it takes once.
    ///
    /// # Panics
    /// At the second call for a rank.
    pub fn take(&self, rank: usize) -> SetOn<D, R, E> {
        let weights = self.weights[rank - self.first].lock().unwrap_or_else(PoisonError::into_inner).take();
        weights.unwrap_or_else(|| panic!("rank {rank} took its weights already"))
    }
}
