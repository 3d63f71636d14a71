//! Broken strategies, orders and learners fail the check that is there to catch them.

use std::marker::PhantomData;
use std::time::Duration;

use std::sync::Arc;

use context_parallel::comm::Communicator;
use context_parallel::conformance::{self, Check, Failure, Options};
use context_parallel::degree::Runtime;
use context_parallel::error::Result;
use context_parallel::handler::CpHandler;
use context_parallel::heads::KeepHeads;
use context_parallel::kernel::{Flash, Kernel, LogSumExp};
use context_parallel::layout::{Batch, Layout, Thd};
use context_parallel::model::inputs::Inputs;
use context_parallel::model::{Config, ParameterList, Sizes, init};
use context_parallel::order::{Run, TokenOrder, Zigzag};
use context_parallel::plan::{Content, Piece, Program, Step, View};
use context_parallel::strategy::{CastKv, CpStrategy, GatherKv, KvExchange, Ring, RingKv, Row, RunsOn, Single};
use context_parallel::tensor::Cpu;
use context_parallel::train::conformance::check_learner;
use context_parallel::train::data::{IGNORED, TokenBatch};
use context_parallel::train::learner::GptLearner;
use context_parallel::train::trainer::Learner;

/// What is done to the programs of a sound exchange.
trait Mutation: Copy + Default + std::fmt::Debug + std::hash::Hash + Send + Sync + 'static {
    fn forward(program: &mut Program, rank: usize);
    fn backward(program: &mut Program, rank: usize);
}

/// An exchange with a mutation.
#[derive(Clone, Copy, Debug, Default, Hash)]
struct Mutated<X, M>(X, PhantomData<M>);

impl<X: KvExchange, M: Mutation> KvExchange for Mutated<X, M> {
    const NAME: &'static str = "mutated";

    fn forward(&self, view: &View) -> Program {
        let mut program = self.0.forward(view);
        M::forward(&mut program, view.rank());
        program
    }

    fn backward(&self, view: &View) -> Program {
        let mut program = self.0.backward(view);
        M::backward(&mut program, view.rank());
        program
    }
}
impl<X: KvExchange, M: Mutation, K: LogSumExp> RunsOn<K> for Mutated<X, M> {}

/// A strategy of an order and an exchange.
#[derive(Clone, Copy, Debug)]
struct Of<O, X>(usize, PhantomData<(O, X)>);

impl<O, X> PartialEq for Of<O, X> {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl<O: TokenOrder, X: KvExchange> CpStrategy for Of<O, X> {
    type Order = O;
    type Heads = KeepHeads;
    type Kv = X;
    const NAME: &'static str = "mutant";
    fn degree(&self) -> usize {
        self.0
    }
}
impl<L: Layout, K: Kernel, O: TokenOrder, X: RunsOn<K>> Row<L, K> for Of<O, X> {}

fn options(rehearse: bool) -> Options {
    Options { degrees: vec![2, 4], rehearse, deadline: Duration::from_secs(5) }
}

fn run<O: TokenOrder, X: KvExchange + RunsOn<Flash>>(rehearse: bool) -> Result<conformance::Report, Failure> {
    conformance::check::<Of<O, X>, Thd, Flash>(|ranks| Some(Of(ranks, PhantomData)), &options(rehearse))
}

/// The mutant fails `rehearsed` if programs are rehearsed, and `run` if not.
fn caught<X: KvExchange, M: Mutation>(rehearsed: Check, not_rehearsed: Check) -> [Failure; 2] {
    [(true, rehearsed), (false, not_rehearsed)].map(|(rehearse, check)| {
        let failure = run::<Zigzag, Mutated<X, M>>(rehearse).expect_err("a mutant that passes everything");
        assert_eq!(failure.check, check, "{:?} of {}: {failure}", M::default(), X::NAME);
        failure
    })
}

fn tiles(program: &mut Program) -> impl Iterator<Item = &mut Arc<[Piece]>> {
    program.steps.iter_mut().filter_map(|step| match step {
        Step::Tile { pieces, .. } if !pieces.is_empty() => Some(pieces),
        _ => None,
    })
}

/// One mutation: a type and what it does to forward and backward programs.
macro_rules! mutation {
    ($(#[$doc:meta])* $name:ident, |$program:ident, $rank:ident| $forward:expr, $backward:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, Hash)]
        struct $name;
        impl Mutation for $name {
            fn forward($program: &mut Program, $rank: usize) { $forward }
            fn backward($program: &mut Program, $rank: usize) { $backward }
        }
    };
}

fn drop_tile(program: &mut Program, rank: usize) {
    if rank == 1
        && let Some(pieces) = tiles(program).last()
    {
        *pieces = Arc::default();
    }
}

fn shift_window(program: &mut Program, by: i64) {
    for piece in tiles(program).flat_map(Arc::make_mut) {
        piece.d_lo += by;
        piece.d_hi += by;
    }
}

/// Rows of two owners change places where both send as many.
fn swap_owners(program: &mut Program, rank: usize) {
    for step in &mut program.steps {
        let Step::Post { content: Content::Keys, receives, .. } = step else { continue };
        for a in 0..receives.len() {
            for b in a + 1..receives.len() {
                let (first, second) = (&receives[a], &receives[b]);
                let others = first.peer() != Some(rank) && second.peer() != Some(rank) && !first.rows.is_empty();
                if others && first.rows.len() == second.rows.len() {
                    let rows = std::mem::take(&mut receives[a].rows);
                    receives[a].rows = std::mem::replace(&mut receives[b].rows, rows);
                    return;
                }
            }
        }
    }
}

/// Keys of two owners are attended as if they were each other's.
fn swap_tiles(program: &mut Program) {
    let mut tiles: Vec<_> = tiles(program).collect();
    let other = (1..tiles.len()).find(|&other| tiles[other] != tiles[0]);
    if let Some(other) = other {
        let (first, rest) = tiles.split_at_mut(other);
        std::mem::swap(first[0], rest[0]);
    }
}

fn drop_merge(program: &mut Program) {
    program.steps.retain(|step| !matches!(step, Step::Merge));
}

/// The gradients of the first row that comes home are added to the row before.
fn misplace_gradient(program: &mut Program) {
    for step in &mut program.steps {
        let Step::Post { content: Content::Gradients, receives, .. } = step else { continue };
        let home = program.home;
        if let Some(receive) = receives.iter_mut().find(|receive| receive.slot == home && receive.rows.len() > 1) {
            let mut rows = receive.rows.to_vec();
            rows.swap(0, 1);
            receive.rows = rows.into_iter().collect();
            return;
        }
    }
}

mutation!(Nothing, |_program, _rank| (), ());
mutation!(
    /// A rank leaves out the last of its tiles.
    DroppedTile, |program, rank| drop_tile(program, rank), drop_tile(program, rank)
);
mutation!(
    /// Every window is shifted by one key.
    ShiftedWindow, |program, _rank| shift_window(program, -1), shift_window(program, -1)
);
mutation!(
    /// Two owners are taken for each other.
    SwappedOwners, |program, rank| swap_owners(program, rank), swap_owners(program, rank)
);
mutation!(
    /// One owner's keys are attended as another's.
    SwappedTiles, |program, _rank| swap_tiles(program), swap_tiles(program)
);
mutation!(
    /// Partial results are not merged.
    DroppedMerge, |program, _rank| drop_merge(program), drop_merge(program)
);
mutation!(
    /// Backward, two rows of gradients change places.
    MisplacedGradient, |_program, _rank| (), misplace_gradient(_program)
);

#[test]
fn unmutated_exchanges_pass() {
    for rehearse in [true, false] {
        run::<Zigzag, Mutated<RingKv, Nothing>>(rehearse).unwrap();
    }
    let report = run::<Zigzag, Mutated<GatherKv, Nothing>>(true).unwrap();
    assert!(report.entry(Check::ExactCover).is_some());
    let report = run::<Zigzag, Mutated<CastKv, Nothing>>(false).unwrap();
    assert!(report.entry(Check::ExactCover).is_none() && report.entry(Check::OracleF64).is_some());
}

#[test]
fn a_dropped_tile_is_caught() {
    caught::<RingKv, DroppedTile>(Check::ExactCover, Check::OracleF64);
    caught::<GatherKv, DroppedTile>(Check::ExactCover, Check::OracleF64);
    caught::<CastKv, DroppedTile>(Check::ExactCover, Check::OracleF64);
}

#[test]
fn a_window_shifted_by_one_is_caught() {
    caught::<RingKv, ShiftedWindow>(Check::ExactCover, Check::OracleF64);
    caught::<GatherKv, ShiftedWindow>(Check::ExactCover, Check::OracleF64);
    caught::<CastKv, ShiftedWindow>(Check::ExactCover, Check::OracleF64);
}

#[test]
fn swapped_owners_are_caught() {
    caught::<GatherKv, SwappedOwners>(Check::ExactCover, Check::OracleF64);
    caught::<CastKv, SwappedOwners>(Check::ExactCover, Check::OracleF64);
    // A ring has one sender: there the owners of what it passes on are swapped.
    caught::<RingKv, SwappedTiles>(Check::ExactCover, Check::OracleF64);
}

#[test]
fn a_dropped_merge_is_caught() {
    // Every rank reads its own program through before it runs it, so nothing is computed without the rehearsal either.
    let [rehearsed, read] = caught::<RingKv, DroppedMerge>(Check::ExactCover, Check::OracleF64);
    assert!(rehearsed.what.contains("merged"), "{rehearsed}");
    assert!(read.what.contains("merged") && !read.what.contains("error of"), "{read}");
}

#[test]
fn misplaced_gradients_are_caught_where_they_are() {
    let [_, failure] = caught::<GatherKv, MisplacedGradient>(Check::ExactCover, Check::OracleF64);
    assert!(failure.what.contains("error of dk"), "{failure}");
}

/// Zigzag, where nobody holds the last rank's tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct HeldByNobody;

/// Zigzag, where the last rank's tokens are held by the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct HeldTwice;

macro_rules! zigzag_but {
    ($order:ty, |$batch:ident, $table:ident, $ranks:ident, $rank:ident, $each:ident| $runs:expr) => {
        impl TokenOrder for $order {
            const NAME: &'static str = "broken";
            type Table = <Zigzag as TokenOrder>::Table;
            fn table(batch: &dyn Batch, ranks: usize) -> Self::Table {
                Zigzag::table(batch, ranks)
            }
            fn runs($batch: &dyn Batch, $table: &Self::Table, $ranks: usize, $rank: usize, $each: &mut dyn FnMut(Run)) {
                $runs
            }
        }
    };
}
zigzag_but!(HeldByNobody, |batch, table, ranks, rank, each| if rank + 1 < ranks {
    Zigzag::runs(batch, table, ranks, rank, each)
});
zigzag_but!(HeldTwice, |batch, table, ranks, rank, each| {
    Zigzag::runs(batch, table, ranks, if rank + 1 == ranks { 0 } else { rank }, each)
});

#[test]
fn tokens_of_no_owner_or_two_are_caught() {
    for rehearse in [true, false] {
        let failure = run::<HeldByNobody, GatherKv>(rehearse).unwrap_err();
        assert_eq!(failure.check, Check::TokenCover, "{failure}");
        assert!(failure.what.contains("is held by no rank"), "{failure}");
        let failure = run::<HeldTwice, GatherKv>(rehearse).unwrap_err();
        assert_eq!(failure.check, Check::TokenCover, "{failure}");
        assert!(failure.what.contains("is held by rank 0 too"), "{failure}");
    }
}

/// A learner whose ranks divide by labels that they count themselves.
struct Counting<A, F>(A, F);

impl<A: Learner, F: Fn(&A, &TokenBatch, usize) -> Result<usize>> Learner for Counting<A, F> {
    fn micro_batches(&self) -> usize {
        self.0.micro_batches()
    }
    fn accumulate_depths(&mut self, batch: &TokenBatch, labels_in_step: &[usize]) -> Result<Vec<f64>> {
        let labels = (self.1)(&self.0, batch, labels_in_step[0])?;
        self.0.accumulate_depths(batch, &[labels])
    }
    fn update(&mut self, lr: f64) -> Result<f64> {
        self.0.update(lr)
    }
    fn evaluate(&mut self, batch: &TokenBatch) -> Result<f64> {
        self.0.evaluate(batch)
    }
    fn any(&mut self, flag: bool) -> Result<bool> {
        self.0.any(flag)
    }
}

type Comm = Box<dyn Communicator>;
type Gpt<H> = GptLearner<H, Thd, Flash, Cpu<f64>, Comm>;

fn learner<H: context_parallel::strategy::Supports<Thd, Flash>>(strategy: H, comm: Comm) -> Result<Gpt<H>> {
    let sizes = Sizes { vocab_size: 41, hidden_size: 32, intermediate_size: 48, layers: 2, heads: 4, kv_heads: 2 };
    let config = Config::llama(sizes)?;
    let device = Cpu::<f64>::new(1);
    let handler = CpHandler::new(strategy, device.clone(), comm)?;
    let weights = init::fresh(&device, &config, &ParameterList::new(&config), 3)?;
    GptLearner::new(&config, weights, handler)
}

/// Most of the labels that count are those of the first tokens.
fn uneven() -> TokenBatch {
    let tokens: Vec<i64> = (0..74).map(|i| (i * i + 5 * i) % 41).collect();
    let counts = |i: usize| i % 37 < 12 || i.is_multiple_of(11);
    let labels = (0..74).map(|i| if counts(i) { tokens[(i + 1) % 74] } else { IGNORED }).collect();
    TokenBatch::uniform(tokens, labels, 2, 37)
}

fn trained(count: impl Fn(&Gpt<Ring>, &TokenBatch, usize) -> Result<usize> + Sync) -> Vec<Result<(), Failure>> {
    let of_ranks = |ranks| {
        let make = |comm| Ok(Counting(learner(Ring::new(Runtime(ranks)), comm)?, &count));
        check_learner("ring", ranks, &uneven(), make, |comm| learner(Single, comm)).map(drop)
    };
    [2, 3, 4].map(of_ranks).into()
}

/// The labels of this rank's rows that count.
fn counted_here(learner: &Gpt<Ring>, batch: &TokenBatch) -> Result<usize> {
    let shape = std::sync::Arc::new(Thd::batch_of(&batch.lengths)?);
    let inputs = Inputs::<Ring, Thd, Cpu<f64>>::new(learner.handler(), shape, &batch.tokens, &batch.labels)?;
    Ok(inputs.weights.matrix().iter().filter(|&&weight| weight > 0.0).count())
}

#[test]
fn local_instead_of_global_loss_counts_are_caught() {
    for passed in trained(|_, _, labels_in_step| Ok(labels_in_step)) {
        passed.unwrap();
    }
    let local = trained(|learner, batch, _| counted_here(learner, batch));
    let mean_of_means = trained(|learner, batch, _| Ok(counted_here(learner, batch)? * learner.handler().ranks()));
    for failed in local.into_iter().chain(mean_of_means) {
        let failure = failed.unwrap_err();
        assert_eq!(failure.check, Check::TrainingStep, "{failure}");
        assert!(failure.what.contains("gradient norm"), "{failure}");
    }
}
