//! Queries that travel to the keys: for few queries, such as new tokens, and keys that ranks already hold.

use crate::kernel::LogSumExp;
use crate::plan::{Content, Program, Step, Transfer, View};
use crate::strategy::{GatherKv, KvExchange, RunsOn};

/// Every rank sends its queries to the ranks that hold keys which they attend, each attends to its own keys, and sends
/// the partial results back to be merged, by distance from the rank.
///
/// What travels is as much as there are queries, however long the sequence of keys is: the exchange of a decoding step.
/// Queries and keys may be placed apart ([`View::between`]). The backward program gathers keys, as [`GatherKv`] does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct CastQueries;

impl<K: LogSumExp> RunsOn<K> for CastQueries {}

impl KvExchange for CastQueries {
    const NAME: &'static str = "cast queries";

    fn forward(&self, view: &View) -> Program {
        let (rank, ranks) = (view.rank(), view.ranks());
        let (mut queries, mut served) = (Vec::new(), Vec::new());
        let [mut asks, mut asked, mut answers, mut answered]: [Vec<Transfer>; 4] = Default::default();
        for peer in (1..ranks).map(|i| (rank + i) % ranks) {
            let (rows, _) = view.tile_queries(rank, peer);
            if !rows.is_empty() {
                asks.push(Transfer::new(peer, 0, &rows));
                answered.push(Transfer::new(peer, 0, rows));
            }
            let (rows, pieces) = view.tile_queries(peer, rank);
            if !rows.is_empty() {
                queries.push(rows.len());
                asked.push(Transfer::new(peer, queries.len(), 0..rows.len()));
                answers.push(Transfer::new(peer, queries.len(), 0..rows.len()));
                served.push(Step::Serve { queries: queries.len(), slot: 0, pieces });
            }
        }
        let own = Step::Tile { slot: 0, pieces: view.tile_runs(view.held(rank)) };
        let mut steps = vec![
            Step::Post { exchange: 0, content: Content::Queries, sends: asks, receives: asked },
            own,
            Step::Wait { exchange: 0 },
        ];
        steps.extend(served);
        steps.push(Step::Post { exchange: 1, content: Content::Results, sends: answers, receives: answered });
        steps.push(Step::Wait { exchange: 1 });
        Program { queries, ..Program::new(vec![view.rows(rank)], steps) }
    }

    fn backward(&self, view: &View) -> Program {
        GatherKv.backward(view)
    }
}
