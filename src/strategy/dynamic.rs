//! Dynamic context parallelism (Megatron's hybrid CP; ByteScale, Ge et al. 2025): each document gets its own degree.

use crate::degree::{Degree, Runtime};
use crate::error::Result;
use crate::heads::KeepHeads;
use crate::layout::Batch;
use crate::mask::Mask;
use crate::order::{Dealt, Grouped};
use crate::solve::schedule::{Group, assign};
use crate::solve::stages::Staging;
use crate::strategy::{CastKv, CpStrategy};

/// A block of 1 to `N` ranks for each document of a packed batch; a document on one rank needs no communication.
/// Megatron calls it `dynamic_cp` or hybrid context parallelism.
///
/// A pack is placed as one micro-batch. To cut documents into micro-batches first, train with
/// [`GptLearner::with_schedule`](crate::train::learner::GptLearner::with_schedule), or make them with
/// [`crate::solve::schedule`] and place each by [`crate::handler::CpHandler::place_with`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Dynamic<N = Runtime> {
    degree: N,
    kv: CastKv,
}

impl<N: Degree> Dynamic<N> {
    /// On `degree` ranks.
    pub fn new(degree: N) -> Self {
        Dynamic { degree, kv: CastKv::default() }
    }

    /// How remote keys and values are staged: a number of stages, or their costs too. Every rank must use the same.
    pub fn with_stages(self, stages: impl Into<Staging>) -> Self {
        Dynamic { kv: CastKv::new(stages), ..self }
    }
}

impl<N: Degree + Default> Default for Dynamic<N> {
    fn default() -> Self {
        Dynamic::new(N::default())
    }
}

impl<N: Degree> CpStrategy for Dynamic<N> {
    type Order = Grouped;
    type Heads = KeepHeads;
    type Kv = CastKv;
    const NAME: &'static str = "dynamic";

    fn degree(&self) -> usize {
        self.degree.ranks()
    }

    fn kv(&self) -> CastKv {
        self.kv
    }

    fn table(&self, batch: &dyn Batch, _masks: &[(Mask, u64)]) -> Result<Dealt> {
        let lengths: Vec<usize> = (0..batch.documents()).map(|i| batch.document(i).stored).collect();
        let groups = assign(&lengths, self.degree())?;
        let ranks = |group: Group| (group.document, group.first..group.first + group.degree);
        Grouped::deal(batch, groups.into_iter().map(ranks), self.degree())
    }
}
