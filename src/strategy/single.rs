//! One rank holds every token; nothing is exchanged.

use crate::heads::KeepHeads;
use crate::order::Natural;
use crate::plan::{Program, RowSet, Step, View};
use crate::strategy::{CpStrategy, KvExchange};

/// No context parallelism: one rank, natural order. Megatron's context-parallel size 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Single;

impl CpStrategy for Single {
    type Order = Natural;
    type Heads = KeepHeads;
    type Kv = LocalKv;
    const NAME: &'static str = "single";

    fn degree(&self) -> usize {
        1
    }
}

/// Queries meet the keys of their own rank only.
///
/// On more than one rank that is not attention over the whole sequence; tests use it to show that a task needs the
/// exchange.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct LocalKv;

impl KvExchange for LocalKv {
    const NAME: &'static str = "local";

    fn forward(&self, view: &View) -> Program {
        let rows = view.rows(view.rank());
        let pieces = view.tile(view.rank(), &RowSet::all(rows));
        Program::new(vec![rows], vec![Step::Tile { slot: 0, pieces }])
    }

    fn backward(&self, view: &View) -> Program {
        self.forward(view)
    }
}
