//! All-gather attention (Llama 3, section 3.3.2): every rank gathers all keys and values, then attends once.

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
/// blocks as a single rank would: the forward pass gives the same bits.
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
        let rank = view.rank();
        let in_order = view.natural();
        let (runs, places) = &*in_order;
        let own: Vec<usize> = (0..view.rows(rank)).collect();
        let sends = (0..view.ranks()).map(|peer| Transfer { peer, slot: OWN, rows: own.clone() }).collect();
        let receives = |(peer, rows): (usize, &Vec<usize>)| Transfer { peer, slot: ALL, rows: rows.clone() };
        let receives = places.iter().enumerate().map(receives).collect();
        let all = places.iter().map(Vec::len).sum();
        let steps = vec![
            Step::Post { exchange: 0, content: Content::Keys, sends, receives },
            Step::Wait { exchange: 0 },
            Step::Free { slot: OWN },
            Step::Tile { slot: ALL, pieces: view.tile_runs(runs) },
        ];
        Program { slots: vec![own.len(), all], home: OWN, steps }
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
        let send = |(peer, rows): (usize, &Vec<usize>)| Transfer { peer, slot: ALL, rows: rows.clone() };
        let receive = |peer| Transfer { peer, slot: HOME, rows: (0..own).collect() };
        program.slots.push(own);
        program.home = HOME;
        program.steps.push(Step::Post {
            exchange: 1,
            content: Content::Gradients,
            sends: view.natural().1.iter().enumerate().map(send).collect(),
            receives: (0..view.ranks()).map(receive).collect(),
        });
        program.steps.push(Step::Wait { exchange: 1 });
        program
    }
}
