//! What is chosen at run time, by name.

use crate::degree::Grid;
use crate::error::{Result, SupportError};
use crate::solve::stages::{MOST_PARTS, StageCount};
use crate::strategy::{CpStrategy, Dynamic, Magi, RingUlysses};

/// A combination by its names, and what some strategies can be told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Choice {
    /// `single`, `ring` (`p2p`), `all-gather` (`all_gather`), `ulysses` (`a2a`), `ring-ulysses` (`a2a+p2p`), `magi`,
    /// `dynamic`.
    pub strategy: String,
    /// `natural` (`single` alone), `zigzag`, `striped`, `contiguous`; empty for the strategy's first.
    pub order: String,
    /// `bshd`, `sbhd`, `thd`.
    pub layout: String,
    /// `flash`, `unfused`.
    pub kernel: String,
    /// Number of ranks.
    pub degree: usize,
    /// How `ring-ulysses` groups the ranks; the most even way that exchanges up to two heads per rank if nothing is
    /// said. None for other strategies.
    pub grid: Option<Grid>,
    /// How many moves the solver of `magi` tries; its default if nothing is said. None for other strategies.
    pub effort: Option<u64>,
    /// In how many stages `magi` and `dynamic` fetch remote keys, 1 to [`MOST_PARTS`]; as many as are estimated to take
    /// the least time if nothing is said. None for other strategies.
    pub stages: Option<usize>,
}

impl Choice {
    /// The grid of `ring-ulysses`.
    pub(super) fn ring_ulysses(&self) -> Grid {
        self.grid.unwrap_or_else(|| Grid::most_even(self.degree, 2 * self.degree))
    }

    /// In how many stages remote keys are fetched.
    pub fn stage_count(&self) -> StageCount {
        self.stages.map_or(StageCount::Best, StageCount::Exactly)
    }

    /// Refuses what the strategy cannot be told.
    pub(super) fn check_details(&self) -> Result<()> {
        let (strategy, ranks) = (&self.strategy, self.degree);
        let refuse = |message| Err(SupportError::Numbers(message).into());
        let is = |names: &[&str]| names.contains(&strategy.as_str());
        if let Some(Grid { outer, inner, .. }) = self.grid {
            if !is(&[<RingUlysses>::NAME]) {
                return refuse(format!(
                    "a grid of {outer}x{inner} ranks for {strategy}, which has one degree: leave the grid out, or use \
                     ring-ulysses"
                ));
            }
            if outer.checked_mul(inner) != Some(ranks) {
                return refuse(format!(
                    "a grid of {outer}x{inner} for {ranks} ranks: use a grid whose product is the number of ranks"
                ));
            }
        }
        if let Some(moves) = self.effort.filter(|_| !is(&[<Magi>::NAME])) {
            return refuse(format!(
                "an effort of {moves} moves is for the solver of magi, not for {strategy}: leave --effort out"
            ));
        }
        match self.stages {
            Some(stages) if !is(&[<Magi>::NAME, <Dynamic>::NAME]) => {
                refuse(format!("{stages} stages are for magi and dynamic, not for {strategy}: leave --stages out"))
            }
            Some(stages) if !(1..=MOST_PARTS).contains(&stages) => {
                refuse(format!("--stages is {stages}: use 1 to {MOST_PARTS}"))
            }
            _ => Ok(()),
        }
    }
}
