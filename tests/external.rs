//! The external grid: shapes of Transformer Engine's tests (`transformer_engine.md` sections 5.1 and 5.3) and the named
//! masks of MagiAttention's (`magi.md` section 8.2), under every strategy on 2, 3, 4, 5 and 8 ranks. Out, dq, dk and dv
//! are compared with the float64 oracle; each relative error is at most 1.5 times that of a single rank.
//!
//! `cargo test --test external` runs cases scaled down ([`scale`]), in about a minute. At full size, for one case or
//! all (which takes hours; the oracle then judges the last key/value head alone):
//!
//! ```sh
//! CONTEXT_PARALLEL_EXTERNAL=full:flash:2_0 cargo test --release --test external -- --nocapture
//! CONTEXT_PARALLEL_EXTERNAL=full cargo test --release --test external -- --nocapture
//! ```

#[path = "common/external/mod.rs"]
mod external;
#[path = "common/packs.rs"]
mod packs;

use std::env;
use std::sync::Arc;

use context_parallel::comm::threads;
use context_parallel::degree::Runtime;
use context_parallel::handler::CpHandler;
use context_parallel::layout::{Bshd, Dense, Layout, Packed, Thd};
use context_parallel::order::{Full, Placement, Striped, TokenOrder, Zigzag};
use context_parallel::plan::Step;
use context_parallel::strategy::executor::AttentionPlan;
use context_parallel::strategy::{AllGather, CpStrategy, Flash, Magi, Supports};
use context_parallel::tensor::Cpu;

use external::problem::{Case, Judged, Problem};
use external::runner::{DENSE, Orders, PACKED, RANKS, Runner, Tally};
use external::scale::Scale;
use external::{jax, magi, transformer_engine};

/// Scale of each part of the grid.
const TRANSFORMER_ENGINE: Scale = Scale { tokens: 32, heads: 6 };
const JAX: Scale = Scale { tokens: 16, heads: 8 };
const MAGI: Scale = Scale { tokens: 8, heads: 2 };
const MAGI_SMALL: Scale = Scale { tokens: 1, heads: 2 };

/// What the environment asks for.
enum Size {
    Scaled,
    /// Cases whose names have this in them.
    Full(String),
}

impl Size {
    fn asked() -> Size {
        match env::var("CONTEXT_PARALLEL_EXTERNAL") {
            Err(_) => Size::Scaled,
            Ok(value) => match value.strip_prefix("full") {
                Some(rest) => Size::Full(rest.trim_start_matches(':').to_string()),
                None => panic!("CONTEXT_PARALLEL_EXTERNAL is {value}: set it to full or full:NAME, or leave it out"),
            },
        }
    }

    fn scale(&self, scaled: Scale) -> Scale {
        match self {
            Size::Scaled => scaled,
            Size::Full(_) => Scale::FULL,
        }
    }

    /// The problem, if it is asked for.
    fn problem(&self, case: Case) -> Option<Problem> {
        match self {
            Size::Scaled => Some(Problem::new(case, Judged::All)),
            Size::Full(name) => case.name.contains(name.as_str()).then(|| {
                println!("{}", case.name);
                Problem::new(case, Judged::Last)
            }),
        }
    }

    /// Counts are known where everything runs.
    fn expect(&self, runner: Runner, expected: Tally) {
        let tally = runner.done();
        match self {
            Size::Scaled => assert_eq!(tally, expected),
            Size::Full(_) => {}
        }
    }
}

/// Every row of both backends is in the table once.
#[test]
fn transformer_engine_rows_are_all_there() {
    let mut ids: Vec<String> =
        transformer_engine::ROWS.iter().flat_map(|row| row.ids.split(' ').map(str::to_string)).collect();
    ids.sort_unstable();
    let numbers = |counts: &'static [usize]| (1..).zip(counts).flat_map(|(i, &count)| (0..count).map(move |j| (i, j)));
    let all = transformer_engine::IDS
        .iter()
        .flat_map(|(backend, counts)| numbers(counts).map(move |(i, j)| format!("{backend}:{i}_{j}")));
    assert_eq!(ids, all.collect::<Vec<_>>());
}

#[test]
fn transformer_engine_dense() {
    let (size, mut runner) = (Size::asked(), Runner::default());
    for row in transformer_engine::ROWS {
        let case = row.dense(size.scale(TRANSFORMER_ENGINE));
        if let Some(problem) = size.problem(case) {
            runner.run(&problem, DENSE, Orders::All, &RANKS);
        }
    }
    size.expect(runner, Tally { cases: 20, run: 0, skipped: 0 });
}

#[test]
fn transformer_engine_packed() {
    let (size, mut runner) = (Size::asked(), Runner::default());
    let mut lengths = transformer_engine::lengths();
    for row in transformer_engine::ROWS {
        let case = row.packed(size.scale(TRANSFORMER_ENGINE), &mut lengths);
        if let Some(problem) = size.problem(case) {
            runner.run(&problem, PACKED, Orders::All, &RANKS);
        }
    }
    size.expect(runner, Tally { cases: 20, run: 0, skipped: 0 });
}

#[test]
fn jax_dense() {
    let (size, mut runner) = (Size::asked(), Runner::default());
    for ranks in RANKS {
        for case in jax::dense(size.scale(JAX), ranks) {
            if let Some(problem) = size.problem(case) {
                runner.run(&problem, DENSE, Orders::All, &[ranks]);
            }
        }
    }
    size.expect(runner, Tally { cases: 0, run: 0, skipped: 0 });
}

#[test]
fn jax_packed() {
    let (size, mut runner) = (Size::asked(), Runner::default());
    for (ranks, window) in RANKS.into_iter().flat_map(|ranks| jax::WINDOWS.map(|window| (ranks, window))) {
        for case in jax::packed(size.scale(JAX), ranks, window) {
            let Some(problem) = size.problem(case) else { continue };
            runner.run(&problem, PACKED, Orders::All, &[ranks]);
            const { assert!(jax::STRIPES[0] / JAX.tokens == 4 && jax::STRIPES[1] / JAX.tokens == 8) };
            match size {
                Size::Scaled => {
                    runner.stripes::<4>(&problem, ranks);
                    runner.stripes::<8>(&problem, ranks);
                }
                Size::Full(_) => {
                    runner.stripes::<4>(&problem, ranks);
                    runner.stripes::<{ jax::STRIPES[0] }>(&problem, ranks);
                    runner.stripes::<{ jax::STRIPES[1] }>(&problem, ranks);
                }
            }
        }
    }
    size.expect(runner, Tally { cases: 0, run: 0, skipped: 0 });
}

#[test]
fn magi_masks() {
    let (size, mut runner) = (Size::asked(), Runner::default());
    for named in magi::cases().iter().filter(|named| named.number < 10) {
        let case = named.case(size.scale(MAGI), named.heads, named.dim);
        if let Some(problem) = size.problem(case) {
            runner.run(&problem, PACKED, Orders::First, &RANKS);
        }
    }
    size.expect(runner, Tally { cases: 9, run: 0, skipped: 0 });
}

#[test]
fn magi_small_masks() {
    let (size, mut runner) = (Size::asked(), Runner::default());
    for named in magi::cases().iter().filter(|named| named.number == 11) {
        let case = named.case(size.scale(MAGI_SMALL), named.heads, named.dim);
        if let Some(problem) = size.problem(case) {
            runner.run(&problem, PACKED, Orders::All, &RANKS);
        }
    }
    size.expect(runner, Tally { cases: 6, run: 0, skipped: 0 });
}
