//! Plans that ranks make together, each telling others what it solved, are those that each makes by itself.

use std::sync::Arc;

use crate::apart::With;
use context_parallel::attention::RankPlan;
use context_parallel::comm::decorate::traffic::Counted;
use context_parallel::comm::{Communicator, threads};
use context_parallel::degree::{Grid, Runtime};
use context_parallel::error::{CommError, Error, Result, SupportError};
use context_parallel::handler::UntypedHandler;
use context_parallel::heads::SwapHeads;
use context_parallel::layout::{Batch, LayoutKind, Packed};
use context_parallel::mask::Mask;
use context_parallel::order::Zigzag;
use context_parallel::plan::{Program, View};
use context_parallel::solve::stages::{Merging, StageCosts, StageCount, Staging};
use context_parallel::strategy::{CastKv, CpStrategy, DynStrategy, Dynamic, KvExchange, Magi, Ring, object};
use context_parallel::tensor::Cpu;

/// Bytes of what a rank tells another: four numbers.
const TOLD: u64 = 32;

/// Heads are exchanged in groups, and groups cast keys and values.
#[derive(Clone, Copy, Debug, PartialEq)]
struct CastUlysses(Grid, CastKv);

impl CpStrategy for CastUlysses {
    type Order = Zigzag;
    type Heads = SwapHeads;
    type Kv = CastKv;
    const NAME: &'static str = "cast-ulysses";

    fn degree(&self) -> usize {
        self.0.ranks()
    }

    fn grid(&self) -> Grid {
        self.0
    }

    fn kv(&self) -> CastKv {
        self.1
    }
}

fn stagings() -> [Staging; 6] {
    // Backward, own keys come last.
    let free = StageCosts { cell: 1000, fetched: 0, returned: 1_000_000, message: 0, launch: 0, merged: 0 };
    let own_last = Staging { forward: free, backward: free, ..StageCount::Exactly(3).into() };
    // Cut into several stages on its own, and otherwise backward.
    let dear = StageCosts { cell: 1, fetched: 90, returned: 400, message: 100, launch: 10, merged: 1 };
    let best = Staging { forward: dear, backward: StageCosts { cell: 3, ..dear }, ..Staging::default() };
    let parts = Staging { merging: Merging::Parts(4), ..StageCount::Exactly(2).into() };
    [Staging::default(), StageCount::Exactly(3).into(), own_last, best, parts, Merging::Parts(16).into()]
}

fn batches() -> [Packed; 3] {
    let padded = Packed::new(&[13, 0, 1, 90, 140], &[16, 3, 1, 97, 140]);
    [padded, Packed::from_lengths(&[200]), Packed::from_lengths(&[1, 2])].map(|batch| batch.expect("a batch"))
}

fn masks() -> [Mask; 3] {
    [Mask::Causal, Mask::Full, Mask::Window { left: Some(7), right: Some(2) }]
}

fn handler(strategy: &Arc<dyn DynStrategy>, comm: impl Communicator + 'static) -> Result<UntypedHandler<Cpu<f32>>> {
    UntypedHandler::new(strategy.clone(), LayoutKind::Thd, Cpu::new(1), Box::new(comm))
}

/// Both ways give the same plans of all ranks. How many messages it took, and how many ranks have several parts.
fn same_together_as_alone(strategy: &Arc<dyn DynStrategy>, batch: &Packed, mask: &Mask) -> (u64, usize) {
    let batch: Arc<dyn Batch> = Arc::new(batch.clone());
    let told = threads::run(strategy.degree(), |comm| {
        let comm = Counted::new(comm);
        let traffic = comm.traffic();
        let handler = handler(strategy, comm)?;
        let placement = handler.place_for(batch.clone(), &[(mask.clone(), 1)])?;
        let plan = handler.plan(&placement, mask)?;
        let (bytes, messages) = (traffic.bytes(), traffic.messages());
        assert_eq!((traffic.bytes_in("plan"), TOLD * messages), (bytes, bytes), "four numbers to each");
        let alone = RankPlan::new(&**strategy, &placement, mask)?;
        let what = format!("{strategy:?}, rank {} under {mask:?}", handler.rank());
        assert_eq!(plan.forward(), alone.forward(), "forward, {what}");
        assert_eq!(plan.backward(), alone.backward(), "backward, {what}");
        assert_eq!(plan.hash(), alone.hash(), "{what}");
        // Found again, without a message.
        assert!(Arc::ptr_eq(&plan, &handler.plan(&placement, mask)?));
        assert_eq!(traffic.messages(), messages, "{what}");
        Ok((messages, plan.forward().slots.len().max(plan.backward().slots.len())))
    });
    let told = told.unwrap_or_else(|error| panic!("{strategy:?}: {error}"));
    (told.iter().map(|rank| rank.0).sum(), told.iter().filter(|rank| rank.1 > 2).count())
}

#[test]
fn plans_made_together_are_those_that_each_rank_makes_alone() {
    for staging in stagings() {
        let (mut told, mut staged) = (0, 0);
        for (batch, mask) in batches().iter().flat_map(|batch| masks().map(|mask| (batch, mask))) {
            for ranks in 1..=5 {
                let (magi, dynamic) = (Magi::new(Runtime(ranks)).with_effort(20), Dynamic::new(Runtime(ranks)));
                let cast = With(Runtime(ranks), CastKv::new(staging));
                let strategies =
                    [object(magi.with_stages(staging)), object(dynamic.with_stages(staging)), object(cast)];
                for strategy in strategies {
                    let (messages, in_parts) = same_together_as_alone(&strategy, batch, &mask);
                    assert!(ranks > 1 || messages == 0, "a rank alone is told nothing");
                    (told, staged) = (told + messages, staged + in_parts);
                }
            }
        }
        assert!(told > 100, "{staging:?}: {told} messages");
        assert!(staged > 100 || staging == Staging::default(), "{staging:?}: {staged} ranks have several parts");
    }
}

/// Groups tell groups: each rank tells the member in its own place.
#[test]
fn groups_that_exchange_heads_tell_one_another() {
    for (outer, inner) in [(2, 2), (3, 2), (2, 3), (1, 3), (3, 1)] {
        for inner_adjacent in [true, false] {
            let grid = Grid { outer, inner, inner_adjacent };
            for staging in stagings() {
                let strategy = object(CastUlysses(grid, CastKv::new(staging)));
                let (told, _) = same_together_as_alone(&strategy, &batches()[1], &Mask::Full);
                assert_eq!(told, (outer * (outer - 1) * inner) as u64, "{grid} under {staging:?}");
            }
        }
    }
}

#[test]
fn queries_and_keys_that_are_placed_apart_are_planned_together_too() {
    let strategy = object(With(Runtime(3), CastKv::new(StageCount::Exactly(3))));
    let told = threads::run(3, |comm| {
        let comm = Counted::new(comm);
        let traffic = comm.traffic();
        let handler = handler(&strategy, comm)?;
        let [new, all] = [[9, 1], [40, 64]].map(|lengths| -> Result<_> {
            handler.place_for(Arc::new(Packed::from_lengths(&lengths)?), &[(Mask::Causal, 1)])
        });
        let (new, all) = (new?, all?);
        let plan = handler.plan_between(&new, &all, &Mask::Causal)?;
        let alone = RankPlan::between(&*strategy, &new, &all, &Mask::Causal)?;
        assert_eq!((plan.forward(), plan.backward()), (alone.forward(), alone.backward()));
        Ok(traffic.bytes_in("plan"))
    });
    assert_eq!(told, Ok(vec![2 * TOLD; 3]));
}

#[test]
fn strategies_with_nothing_to_tell_plan_without_a_message() {
    let strategy = object(Ring::<Runtime>::new(Runtime(3)));
    let (told, _) = same_together_as_alone(&strategy, &batches()[1], &Mask::Full);
    assert_eq!(told, 0);
}

/// A cast whose rank 1 does not tell what it found: the numbers that are not negative are told instead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Told(CastKv, [i64; 4]);

impl KvExchange for Told {
    const NAME: &'static str = "told";

    fn check(&self) -> Result<(), SupportError> {
        self.0.check()
    }

    fn tells(&self, view: &View) -> Vec<(usize, Vec<i64>)> {
        let mut tells = self.0.tells(view);
        if view.rank() == 1 {
            for (number, instead) in tells.iter_mut().flat_map(|(_, numbers)| numbers.iter_mut().zip(self.1)) {
                *number = if instead < 0 { *number } else { instead };
            }
        }
        tells
    }

    fn hears(&self, view: &View) -> Vec<(usize, usize)> {
        self.0.hears(view)
    }

    fn hear(&self, view: &View, from: usize, numbers: &[i64]) -> Result<(), String> {
        self.0.hear(view, from, numbers)
    }

    fn forward(&self, view: &View) -> Program {
        self.0.forward(view)
    }

    fn backward(&self, view: &View) -> Program {
        self.0.backward(view)
    }
}

/// Whether each rank's programs, forward and backward, are those of a plan that it makes alone, where rank 1 tells
/// `instead`.
fn as_alone(instead: [i64; 4]) -> Result<Vec<[bool; 2]>> {
    let strategy = object(With(Runtime(3), Told(CastKv::new(StageCount::Exactly(2)), instead)));
    threads::run(3, |comm| {
        let handler = handler(&strategy, comm)?;
        let batch = Arc::new(Packed::from_lengths(&[96])?);
        let placement = handler.place_for(batch, &[(Mask::Full, 1)])?;
        let plan = handler.plan(&placement, &Mask::Full)?;
        let alone = RankPlan::new(&*strategy, &placement, &Mask::Full)?;
        Ok([plan.forward() == alone.forward(), plan.backward() == alone.backward()])
    })
}

#[test]
fn a_rank_serves_others_as_they_told() {
    assert_eq!(as_alone([-1; 4]), Ok(vec![[true; 2]; 3]));
    // Three stages where rank 1 itself has two: it keeps to its own, and those that it told do not.
    let three = 0b1000_0100_0001_0000;
    assert_eq!(as_alone([-1, -1, three, -1]), Ok(vec![[false, true], [true; 2], [false, true]]));
    assert_eq!(as_alone([-1, -1, -1, three]), Ok(vec![[true, false], [true; 2], [true, false]]));
}

#[test]
fn numbers_that_cannot_be_are_refused_with_the_rank_and_the_numbers() {
    // Rank 1 fetches 64 rows of two ranks, cut into 16 parts.
    for (instead, number, expected) in [
        ([65, -1, -1, -1], "[65, ", "32 to 64 rows"),
        ([31, -1, -1, -1], "[31, ", "32 to 64 rows"),
        ([-1, 33, -1, -1], "[64, 33, ", "a first row of 0 to 32"),
        ([-1, -1, 0, -1], ", 0, ", "ends with part 16 of 16"),
        ([-1, -1, -1, 1 << 16], ", 65536]", "ends with part 16 of 16"),
    ] {
        let message = as_alone(instead).unwrap_err().to_string();
        let named = ["rank 1 sent", number, "in plan", expected];
        assert!(named.iter().all(|part| message.contains(part)), "{instead:?}: {message}");
    }
}

/// What comes of it when ranks make these plans, each as an index of a mask.
fn planned(of_rank: [&[usize]; 2]) -> Error {
    let strategy = object(With(Runtime(2), CastKv::default()));
    let outcome = threads::run(2, |comm| {
        let plans = of_rank[comm.rank()];
        let handler = handler(&strategy, comm)?;
        let placement = handler.place_for(Arc::new(Packed::from_lengths(&[64])?), &[(Mask::Causal, 1)])?;
        plans.iter().try_for_each(|&mask| handler.plan(&placement, &masks()[mask]).map(drop))
    });
    outcome.unwrap_err()
}

#[test]
fn ranks_that_do_not_make_the_same_plans_get_an_error() {
    let error = planned([&[0, 1], &[0, 2]]);
    assert!(matches!(error, Error::Comm(CommError::Disagree { operation: "plan", .. })), "{error}");
    // Kept on one rank, not on the other.
    for of_rank in [[&[0, 1][..], &[0, 0]], [&[0, 0], &[0, 1]]] {
        let error = planned(of_rank);
        let expected = "it finished without taking part in plan";
        assert!(matches!(error, Error::Comm(CommError::Poisoned { .. })), "{error}");
        assert!(error.to_string().contains(expected), "{error}");
    }
}
