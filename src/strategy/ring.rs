//! Ring attention (Liu, Zaharia and Abbeel 2023): keys and values travel from rank to rank while queries stay.

use crate::degree::{Degree, Runtime};
use crate::heads::KeepHeads;
use crate::order::{TokenOrder, Zigzag};
use crate::plan::{Content, Program, RowSet, Step, Transfer, View};
use crate::strategy::{CpStrategy, KvExchange};

/// Ring attention over `N` ranks with token order `O`. Megatron and Transformer Engine call it `p2p`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ring<N = Runtime, O = Zigzag> {
    degree: N,
    order: O,
}

impl<N: Degree, O: TokenOrder> Ring<N, O> {
    /// A ring of `degree` ranks.
    pub fn new(degree: N) -> Self {
        Ring { degree, order: O::default() }
    }
}

impl<N: Degree + Default, O: TokenOrder> Default for Ring<N, O> {
    fn default() -> Self {
        Ring::new(N::default())
    }
}

impl<N: Degree, O: TokenOrder> CpStrategy for Ring<N, O> {
    type Order = O;
    type Heads = KeepHeads;
    type Kv = RingKv;
    const NAME: &'static str = "ring";

    fn degree(&self) -> usize {
        self.degree.ranks()
    }
}

/// Blocks of keys and values go round: after `i` hops rank `r` holds the block of rank `r - i`.
///
/// The next hop is posted before the current block is attended, and two blocks are held at a time. A hop carries
/// only the rows that this or a later rank attends, so a block stops at the last rank that needs any of it.
/// Gradients travel with their block: a row's gradient is carried on while a later rank adds to it, and goes
/// straight home from the last rank that does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RingKv;

/// The travel of one rank's block.
#[derive(Debug)]
struct Travel {
    /// `arrives[i]`: rows that are needed at hop `i` or later; all rows at hop 0.
    arrives: Vec<RowSet>,
    /// `carried[i]`: rows with a gradient from hops `1..=i` that a later hop adds to.
    carried: Vec<RowSet>,
    /// `returned[i]`: rows whose gradient is complete after hop `i`.
    returned: Vec<RowSet>,
}

impl Travel {
    fn new(view: &View, owner: usize) -> Self {
        let ranks = view.ranks();
        let needs = |hop: usize| view.needs(owner, (owner + hop) % ranks);
        let mut later = RowSet::default();
        let (mut arrives, mut after) = (vec![RowSet::default(); ranks], vec![RowSet::default(); ranks]);
        for hop in (1..ranks).rev() {
            after[hop] = later.clone();
            later = later.union(needs(hop));
            arrives[hop] = later.clone();
        }
        arrives[0] = RowSet::all(view.rows(owner));
        let mut touched = RowSet::default();
        let (mut carried, mut returned) = (vec![RowSet::default()], vec![RowSet::default()]);
        for (hop, after) in after.iter().enumerate().skip(1) {
            touched = touched.union(needs(hop));
            carried.push(touched.intersection(after));
            returned.push(needs(hop).difference(after));
        }
        Travel { arrives, carried, returned }
    }

    /// Places of `rows` in the buffer of hop `hop`.
    fn places(&self, hop: usize, rows: &RowSet) -> Vec<usize> {
        self.arrives[hop].places_of(rows)
    }
}

impl RingKv {
    fn program(view: &View, backward: bool) -> Program {
        let (rank, ranks) = (view.rank(), view.ranks());
        let (next, previous) = ((rank + 1) % ranks, (rank + ranks - 1) % ranks);
        let owner = |hop: usize| (rank + ranks - hop) % ranks;
        // By owner.
        let travels = view.shared(&Self::NAME, || (0..ranks).map(|owner| Travel::new(view, owner)).collect::<Vec<_>>());
        let travel_at = |hop: usize| &travels[owner(hop)];
        let keys = |hop: usize| hop;
        let gradients = |hop: usize| ranks + hop;
        let mut steps = Vec::new();
        for hop in 0..ranks {
            let travel = travel_at(hop);
            let coming = (hop + 1 < ranks).then(|| travel_at(hop + 1));
            if let Some(coming) = coming {
                let leaving = travel.places(hop, &travel.arrives[hop + 1]);
                steps.push(Step::Post {
                    exchange: keys(hop + 1),
                    content: Content::Keys,
                    sends: vec![Transfer { peer: next, slot: hop, rows: leaving }],
                    receives: vec![Transfer {
                        peer: previous,
                        slot: hop + 1,
                        rows: (0..coming.arrives[hop + 1].len()).collect(),
                    }],
                });
            }
            let pieces = view.tile(owner(hop), &travel.arrives[hop]);
            if hop == 0 || !pieces.is_empty() {
                steps.push(Step::Tile { slot: hop, pieces });
                if hop > 0 && !backward {
                    steps.push(Step::Merge);
                }
            }
            if backward && hop > 0 {
                if hop > 1 {
                    steps.push(Step::Wait { exchange: gradients(hop - 1) });
                }
                let mut sends =
                    vec![Transfer { peer: owner(hop), slot: hop, rows: travel.places(hop, &travel.returned[hop]) }];
                let mut receives = vec![Transfer {
                    peer: (rank + hop) % ranks,
                    slot: 0,
                    rows: travel_at(0).places(0, &travel_at(0).returned[hop]),
                }];
                if let Some(coming) = coming {
                    let rows = travel.places(hop, &travel.carried[hop]);
                    sends.push(Transfer { peer: next, slot: hop, rows });
                    let rows = coming.places(hop + 1, &coming.carried[hop]);
                    receives.push(Transfer { peer: previous, slot: hop + 1, rows });
                }
                steps.push(Step::Post { exchange: gradients(hop), content: Content::Gradients, sends, receives });
            }
            if !(backward && hop == 0) {
                steps.push(Step::Free { slot: hop });
            }
            if hop + 1 < ranks {
                steps.push(Step::Wait { exchange: keys(hop + 1) });
            }
        }
        if backward && ranks > 1 {
            steps.push(Step::Wait { exchange: gradients(ranks - 1) });
        }
        let slots = (0..ranks).map(|hop| travel_at(hop).arrives[hop].len()).collect();
        Program { slots, home: 0, steps }
    }
}

impl KvExchange for RingKv {
    const NAME: &'static str = "ring";

    fn forward(&self, view: &View) -> Program {
        Self::program(view, false)
    }

    fn backward(&self, view: &View) -> Program {
        Self::program(view, true)
    }
}
