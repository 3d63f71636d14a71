//! Ring attention (Liu, Zaharia and Abbeel 2023): keys and values travel from rank to rank while queries stay.

use std::sync::Arc;

use crate::degree::{Degree, Runtime};
use crate::heads::KeepHeads;
use crate::order::{TokenOrder, Zigzag};
use crate::plan::{Content, Piece, Program, RowSet, Step, Transfer, View};
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

/// Rows of the block that a rank holds at one hop.
#[derive(Debug, Default)]
struct Hop {
    /// Rows that come: those that this rank or a later one attends. All rows at hop 0.
    arrives: RowSet,
    /// Those of them that a later rank attends.
    leaving: RowSet,
    pieces: Arc<[Piece]>,
}

impl RingKv {
    /// What this rank holds at each hop.
    ///
    /// The block of hop `i` has been at ranks before this one and goes on to `ranks - 1 - i` ranks after it, so what
    /// leaves are its rows among the tokens that these attend. One running union of what they attend gives all hops.
    fn hops(view: &View) -> Vec<Hop> {
        let (rank, ranks) = (view.rank(), view.ranks());
        let mut hops: Vec<Hop> = (0..ranks).map(|_| Hop::default()).collect();
        let mut later = RowSet::default();
        for (hop, at) in hops.iter_mut().enumerate().rev() {
            let owner = (rank + ranks - hop) % ranks;
            at.leaving = view.rows_with(owner, &later);
            at.arrives = match hop {
                0 => RowSet::all(view.rows(rank)),
                _ => view.needs(owner, rank).union(&at.leaving),
            };
            at.pieces = view.tile(owner, &at.arrives);
            later = later.union(view.attended((rank + ranks - hop) % ranks));
        }
        hops
    }

    /// By hop: the rows of this rank's own block whose gradient comes back after it, from the last rank that attends
    /// them.
    fn homes(view: &View) -> Vec<RowSet> {
        let (rank, ranks) = (view.rank(), view.ranks());
        let (mut homes, mut later) = (vec![RowSet::default(); ranks], RowSet::default());
        for (hop, home) in homes.iter_mut().enumerate().skip(1).rev() {
            let used = view.needs(rank, (rank + hop) % ranks);
            *home = used.difference(&later);
            later = later.union(&used);
        }
        homes
    }

    fn program(view: &View, backward: bool) -> Program {
        let (rank, ranks) = (view.rank(), view.ranks());
        let (next, previous) = ((rank + 1) % ranks, (rank + ranks - 1) % ranks);
        let owner = |hop: usize| (rank + ranks - hop) % ranks;
        let hops = view.shared(&(Self::NAME, rank), || Self::hops(view));
        let homes = if backward { Self::homes(view) } else { Vec::new() };
        let keys = |hop: usize| hop;
        let gradients = |hop: usize| ranks + hop;
        // What ranks before this one attend, as far as they have held the block of the hop; and they and this one.
        let (mut before, mut so_far) = (RowSet::default(), RowSet::default());
        let mut steps = Vec::new();
        for (hop, at) in hops.iter().enumerate() {
            let coming = hops.get(hop + 1);
            if let Some(coming) = coming {
                steps.push(Step::Post {
                    exchange: keys(hop + 1),
                    content: Content::Keys,
                    sends: vec![Transfer::new(next, hop, at.arrives.places_of(&at.leaving))],
                    receives: vec![Transfer::new(previous, hop + 1, 0..coming.arrives.len())],
                });
            }
            if hop == 0 || !at.pieces.is_empty() {
                steps.push(Step::Tile { slot: hop, pieces: at.pieces.clone() });
                if hop > 0 && !backward {
                    steps.push(Step::Merge);
                }
            }
            if backward && hop > 0 {
                if hop > 1 {
                    steps.push(Step::Wait { exchange: gradients(hop - 1) });
                }
                so_far = so_far.union(view.attended(owner(hop - 1)));
                before = before.union(view.attended(owner(hop)));
                let home = RowSet::all(view.rows(rank)).places_of(&homes[hop]);
                let mut receives = vec![Transfer::new((rank + hop) % ranks, 0, home)];
                let returned = view.needs(owner(hop), rank).difference(&at.leaving);
                let mut sends = vec![Transfer::new(owner(hop), hop, at.arrives.places_of(&returned))];
                if let Some(coming) = coming {
                    let carried = view.rows_with(owner(hop), &so_far).intersection(&at.leaving);
                    sends.push(Transfer::new(next, hop, at.arrives.places_of(&carried)));
                    let carried = view.rows_with(owner(hop + 1), &before).intersection(&coming.arrives);
                    receives.push(Transfer::new(previous, hop + 1, coming.arrives.places_of(&carried)));
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
        Program::new(hops.iter().map(|hop| hop.arrives.len()).collect(), steps)
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
