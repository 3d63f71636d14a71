//! All-gather attention (Llama 3, section 3.3.2): every rank gathers all keys and values, then attends once.

use std::sync::Arc;

use crate::degree::{Degree, Runtime};
use crate::heads::KeepHeads;
use crate::order::{TokenOrder, Zigzag};
use crate::plan::{Content, Program, Step, Transfer, View};
use crate::strategy::{CpStrategy, KvExchange};

/// All-gather attention over `N` ranks with token order `O`. Megatron calls it `all_gather`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AllGather<N = Runtime, O = Zigzag> {
    degree: N,
    order: O,
}

impl<N: Degree, O: TokenOrder> AllGather<N, O> {
    /// All-gather attention on `degree` ranks.
    pub fn new(degree: N) -> Self {
        AllGather { degree, order: O::default() }
    }
}

impl<N: Degree + Default, O: TokenOrder> Default for AllGather<N, O> {
    fn default() -> Self {
        AllGather::new(N::default())
    }
}

impl<N: Degree, O: TokenOrder> CpStrategy for AllGather<N, O> {
    type Order = O;
    type Heads = KeepHeads;
    type Kv = GatherKv;
    const NAME: &'static str = "all-gather";

    fn degree(&self) -> usize {
        self.degree.ranks()
    }
}

/// Every rank receives all keys and values and puts them in natural order, so that its one tile sees the same key
/// blocks as a single rank would: on the processor the forward pass gives the same bits.
///
/// Gradients go back to their owners and are summed there in rank order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct GatherKv;

/// Slots of the programs: own rows, all rows in natural order, and the home of the gradients.
const OWN: usize = 0;
const ALL: usize = 1;
const HOME: usize = 2;

impl GatherKv {
    fn gather(view: &View) -> Program {
        let (rank, ranks) = (view.rank(), view.ranks());
        let own = view.rows(rank);
        let everyone: Vec<usize> = (0..ranks).collect();
        let receive = |peer| Transfer::new(peer, ALL, view.natural_places(peer));
        let pieces = Arc::<[_]>::clone(&view.shared(&(Self::NAME, rank), || view.tile_runs(view.natural())));
        let steps = vec![
            Step::Post {
                exchange: 0,
                content: Content::Keys,
                sends: vec![Transfer::new(everyone, OWN, 0..own)],
                receives: (0..ranks).map(receive).collect(),
            },
            Step::Wait { exchange: 0 },
            Step::Free { slot: OWN },
            Step::Tile { slot: ALL, pieces },
        ];
        Program::new(vec![own, view.natural_rows()], steps)
    }
}

impl KvExchange for GatherKv {
    const NAME: &'static str = "gather";

    fn forward(&self, view: &View) -> Program {
        Self::gather(view)
    }

    fn backward(&self, view: &View) -> Program {
        let mut program = Self::gather(view);
        let own = view.rows(view.rank());
        program.slots.push(own);
        program.home = HOME;
        program.steps.push(Step::Post {
            exchange: 1,
            content: Content::Gradients,
            sends: (0..view.ranks()).map(|peer| Transfer::new(peer, ALL, view.natural_places(peer))).collect(),
            receives: (0..view.ranks()).map(|peer| Transfer::new(peer, HOME, 0..own)).collect(),
        });
        program.steps.push(Step::Wait { exchange: 1 });
        program
    }
}
