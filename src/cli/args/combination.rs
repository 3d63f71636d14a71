//! The choices that a program of one's own makes when it is compiled, and the number of ranks: parsed and checked.

use clap::Args;
use context_parallel::degree::Grid;
use context_parallel::error::Result;
use context_parallel::strategy::select::{self, Choice};
use context_parallel::strategy::{CpStrategy, Ring, RingUlysses, Single};

use super::super::hardware::Hardware;
use super::degree::{RankCount, degree};
use super::headings::PARALLELISM;
use super::names::{Names, dtype};
use super::refusals::numbers;
use super::settings::Settings;

/// What is chosen at compile time in a program of one's own, and the number of ranks.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = PARALLELISM)]
pub struct Combination {
    /// How sequences are split; Megatron-LM's p2p, all_gather, a2a and a2a+p2p are known too [default: ring if --cp is
    /// above 1, else single]
    #[arg(long, value_name = "NAME", value_parser = Names::STRATEGIES)]
    pub strategy: Option<String>,
    /// Ranks that share a sequence; AxB for ring-ulysses: A groups of B ranks that exchange heads [default: 1, or 2 for
    /// a --strategy other than single]
    #[arg(long, value_name = "N")]
    pub cp: Option<String>,
    /// How batches lie in memory
    #[arg(long, value_name = "NAME", default_value = "thd", value_parser = Names::LAYOUTS)]
    pub layout: String,
    /// Which rank holds which token; not every strategy has every order [default: the strategy's first]
    #[arg(long, value_name = "NAME", value_parser = Names::ORDERS)]
    pub order: Option<String>,
    /// How attention is computed
    #[arg(long, value_name = "NAME", default_value = "flash", value_parser = Names::KERNELS)]
    pub kernel: String,
    /// Whether ring-ulysses places the ranks that exchange heads next to each other, or those of a ring
    #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set)]
    pub inner_adjacent: Option<bool>,
    /// Moves that magi's solver tries for each placement; a million take about a second [default: 8192]
    #[arg(long, value_name = "MOVES")]
    pub effort: Option<u64>,
    /// Stages in which magi and dynamic fetch remote keys, while they attend those of the stage before [default: as
    /// many as are estimated to take the least time]
    #[arg(long, value_name = "N")]
    pub stages: Option<usize>,
    /// Storage type of activations and weights
    #[arg(long, value_name = "NAME", default_value = "f32", value_parser = Names::DTYPES)]
    pub dtype: String,
}

/// Most moves of the solver, which take minutes.
const MOST_MOVES: u64 = 1 << 28;

impl Combination {
    /// Checks every choice, and those that depend on each other.
    pub fn settings(&self) -> Result<Settings> {
        let dtype = dtype(&self.dtype)?;
        let asked = self.cp.as_deref().map(degree).transpose()?;
        let strategy = match &self.strategy {
            Some(strategy) => strategy,
            None => match asked {
                Some(RankCount::Grid(..)) => <RingUlysses>::NAME,
                Some(RankCount::Ranks(cp)) if cp > 1 => <Ring>::NAME,
                _ => Single::NAME,
            },
        };
        let (ranks, grid) = match asked {
            Some(RankCount::Ranks(ranks)) => (ranks, None),
            Some(RankCount::Grid(outer, inner)) => (outer * inner, Some(Grid { outer, inner, inner_adjacent: true })),
            None => (1, None),
        };
        let mut choice = select::checked(&Choice {
            strategy: strategy.to_string(),
            order: self.order.clone().unwrap_or_default(),
            layout: self.layout.clone(),
            kernel: self.kernel.clone(),
            degree: ranks,
            grid: None,
            effort: self.effort,
            stages: self.stages,
        })?;
        if let Some(effort) = self.effort.filter(|&effort| effort > MOST_MOVES) {
            return Err(numbers(format!("--effort is {effort}: use {MOST_MOVES} moves or less")));
        }
        if asked.is_none() && choice.strategy != Single::NAME {
            choice.degree = 2;
        }
        let is_grid = choice.strategy == <RingUlysses>::NAME;
        if let (Some(cp), Some(_), false) = (&self.cp, grid, is_grid) {
            let (strategy, ranks) = (&choice.strategy, choice.degree);
            return Err(numbers(format!(
                "--cp is {cp}, but {strategy} has one degree: use --cp {ranks}, or --strategy ring-ulysses"
            )));
        }
        if self.inner_adjacent.is_some() && !is_grid {
            let strategy = &choice.strategy;
            return Err(numbers(format!(
                "--inner-adjacent is for ring-ulysses, not for {strategy}: leave it out, or use --strategy ring-ulysses"
            )));
        }
        choice.grid = grid;
        let inner_adjacent = self.inner_adjacent.unwrap_or(true);
        Ok(Settings { choice, threads: 1, dtype, hardware: Hardware::Cpu, inner_adjacent })
    }
}
