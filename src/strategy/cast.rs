//! Group-cast: each rank receives just the rows of keys and values that its queries attend.

use crate::plan::{Content, Program, RowSet, Step, Transfer, View};
use crate::strategy::KvExchange;

/// Every owner sends each rank the rows that it needs, packed, straight. The own rows are attended meanwhile, then
/// all remote rows in one tile. Gradients return the same way and are summed at home in rank order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct CastKv;

/// Slots of the programs: own rows, rows of other ranks by owner, and the home of the gradients.
const OWN: usize = 0;
const REMOTE: usize = 1;
const HOME: usize = 2;

impl CastKv {
    fn program(view: &View, backward: bool) -> Program {
        let (rank, ranks) = (view.rank(), view.ranks());
        let others = || (0..ranks).filter(move |&peer| peer != rank);
        let own = RowSet::all(view.rows(rank));
        let send = |peer| Transfer { peer, slot: OWN, rows: view.needs(rank, peer).iter().collect() };
        let (mut receives, mut pieces, mut remote) = (Vec::new(), Vec::new(), 0);
        for owner in others() {
            let needs = view.needs(owner, rank);
            receives.push(Transfer { peer: owner, slot: REMOTE, rows: (remote..remote + needs.len()).collect() });
            pieces.extend(view.tile_runs(&view.runs(owner, needs, remote)));
            remote += needs.len();
        }
        pieces.sort_by_key(|piece| (piece.q_row, piece.k_row));
        let mut steps = vec![
            Step::Post {
                exchange: 0,
                content: Content::Keys,
                sends: others().map(send).collect(),
                receives: receives.clone(),
            },
            Step::Tile { slot: OWN, pieces: view.tile(rank, &own) },
            Step::Wait { exchange: 0 },
        ];
        if remote > 0 {
            steps.push(Step::Tile { slot: REMOTE, pieces });
            if !backward {
                steps.push(Step::Merge);
            }
        }
        let mut slots = vec![own.len(), remote];
        if backward {
            let whole = |slot| Transfer { peer: rank, slot, rows: own.iter().collect() };
            let mut sends = receives;
            sends.push(whole(OWN));
            let home = |peer| match peer == rank {
                true => whole(HOME),
                false => Transfer { peer, slot: HOME, rows: view.needs(rank, peer).iter().collect() },
            };
            let receives = (0..ranks).map(home).collect();
            steps.push(Step::Post { exchange: 1, content: Content::Gradients, sends, receives });
            steps.push(Step::Wait { exchange: 1 });
            slots.push(own.len());
        }
        Program { slots, home: if backward { HOME } else { OWN }, steps }
    }
}

impl KvExchange for CastKv {
    const NAME: &'static str = "cast";

    fn forward(&self, view: &View) -> Program {
        Self::program(view, false)
    }

    fn backward(&self, view: &View) -> Program {
        Self::program(view, true)
    }
}
