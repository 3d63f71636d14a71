//! Magi (MagiAttention, SandAI 2025): a solver places tokens for what is attended, and each rank receives just the keys
//! that its queries attend.

use std::ops::Range;

use crate::degree::{Degree, Runtime};
use crate::error::{Result, SupportError};
use crate::heads::KeepHeads;
use crate::layout::Batch;
use crate::mask::Mask;
use crate::order::{Dealt, Solved};
use crate::solve::dispatch::{DispatchOptions, Problem, solve};
use crate::solve::stages::Staging;
use crate::strategy::{CastKv, CpStrategy, KvExchange};

/// Solved placement and group-cast over `N` ranks, for packed batches under any mask. Megatron calls it `magi`.
#[doc(alias = "MagiAttnContextParallelHandler")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Magi<N = Runtime> {
    degree: N,
    options: DispatchOptions,
    kv: CastKv,
}

impl<N: Degree> Magi<N> {
    /// On `degree` ranks, at the solver's default effort.
    pub fn new(degree: N) -> Self {
        Magi { degree, options: DispatchOptions::default(), kv: CastKv::default() }
    }

    /// How the solver works: its effort, what things cost, the slack of area and rows, the heap placement that it must
    /// not fall behind. Every rank must use the same.
    pub fn with_options(self, options: DispatchOptions) -> Self {
        Magi { options, ..self }
    }

    /// How many moves the solver tries to improve a placement. Every rank must use the same number.
    pub fn with_effort(self, moves: u64) -> Self {
        Magi { options: DispatchOptions { effort: moves, ..self.options }, ..self }
    }

    /// How remote keys and values are staged: a number of stages, or their costs too. Every rank must use the same.
    pub fn with_stages(self, stages: impl Into<Staging>) -> Self {
        Magi { kv: CastKv::new(stages), ..self }
    }
}

impl<N: Degree + Default> Default for Magi<N> {
    fn default() -> Self {
        Magi::new(N::default())
    }
}

impl<N: Degree> CpStrategy for Magi<N> {
    type Order = Solved;
    type Heads = KeepHeads;
    type Kv = CastKv;
    const NAME: &'static str = "magi";

    fn degree(&self) -> usize {
        self.degree.ranks()
    }

    fn check(&self) -> Result<(), SupportError> {
        self.options.check()?;
        self.kv.check()
    }

    fn kv(&self) -> CastKv {
        self.kv
    }

    fn table(&self, batch: &dyn Batch, masks: &[(Mask, u64)]) -> Result<Dealt> {
        let lowered =
            masks.iter().map(|(mask, layers)| Ok((mask.lower(batch)?, *layers))).collect::<Result<Vec<_>>>()?;
        let documents: Vec<Range<usize>> = (0..batch.documents()).map(|i| batch.document(i).stored_range()).collect();
        let problem = Problem { masks: &lowered, documents: &documents, ranks: self.degree() };
        Dealt::new(batch.tokens(), &solve(&problem, &self.options).parts)
    }
}
