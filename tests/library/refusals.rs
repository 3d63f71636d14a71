//! What a handler refuses, and what it must not refuse: placements, plans and devices that meet in one program.

use std::sync::Arc;

use context_parallel::attention::RankPlan;
use context_parallel::comm::{Collectives, Communicator, threads};
use context_parallel::degree::{Grid, Runtime};
use context_parallel::error::{
    CommError, Error, MaskError, ModelError, PlacementError, PlanError, Result, SupportError,
};
use context_parallel::handler::{CpHandler, UntypedHandler};
use context_parallel::heads::KeepHeads;
use context_parallel::kernel::{Flash, Kernel, Unfused};
use context_parallel::layout::{Bshd, Dense, Layout, LayoutKind, Packed, Thd};
use context_parallel::mask::{Mask, named};
use context_parallel::model::{Config, ParameterList, init};
use context_parallel::ops::attention::AttentionShape;
use context_parallel::oracle;
use context_parallel::order::{Contiguous, DynPlacement, Full, Placement, Shard, Zigzag};
use context_parallel::plan::{Program, View};
use context_parallel::rope::{Rope, RopeConfig};
use context_parallel::strategy::{
    AllGather, CpStrategy, Dynamic, GatherKv, KvExchange, Magi, Ring, RingKv, RingUlysses, Row, RunsOn, Ulysses, object,
};
use context_parallel::tensor::{Buffer, Cpu, Device};
use context_parallel::train::data::TokenBatch;
use context_parallel::train::learner::GptLearner;
use context_parallel::train::trainer::Learner;
use half::bf16;

const SHAPE: AttentionShape = AttentionShape { q_heads: 6, kv_heads: 2, qk_dim: 4, v_dim: 4, scale: 0.5 };

/// Numbers in [-1, 1) that differ from row to row.
fn values(count: usize, salt: usize) -> Vec<f64> {
    (0..count).map(|i| ((i * 7919 + salt * 104_729 + 1) % 2003) as f64 / 1001.5 - 1.0).collect()
}

/// Queries, keys and values of `tokens` tokens.
fn operands(tokens: usize) -> [Vec<f64>; 3] {
    [(SHAPE.q_width(), 1), (SHAPE.k_width(), 2), (SHAPE.v_width(), 3)].map(|(width, salt)| values(tokens * width, salt))
}

/// What the oracle gives for them.
fn expected(tokens: usize, attends: &dyn Fn(usize, usize) -> bool) -> Vec<f64> {
    let AttentionShape { q_heads, kv_heads, qk_dim, v_dim, scale } = SHAPE;
    let heads = oracle::Heads { query: q_heads, key_value: kv_heads, qk_dim, v_dim, scale };
    let [q, k, v] = operands(tokens);
    oracle::attention(&oracle::DenseAttention { tokens, heads, q: &q, k: &k, v: &v, attends }).out
}

type Shards<H, L> = [Arc<Shard<<H as CpStrategy>::Order, L, f64>>; 3];

fn shards<H: CpStrategy, L: Layout, C: Communicator>(
    handler: &CpHandler<H, L, Cpu<f64>, C>,
    placement: &Arc<Placement<H::Order, L>>,
    tokens: usize,
) -> Result<Shards<H, L>> {
    let [q, k, v] = operands(tokens);
    let cut = |values: Vec<f64>, width: usize| {
        let full = Full::<L, f64>::from_batch_first(&values, width, placement.batch().clone())?;
        handler.dispatch(placement, &full).map(Arc::new)
    };
    Ok([cut(q, SHAPE.q_width())?, cut(k, SHAPE.k_width())?, cut(v, SHAPE.v_width())?])
}

fn other_grid(result: Result<()>) -> bool {
    matches!(result, Err(Error::Placement(PlacementError::OtherGrid { .. })))
}

#[test]
fn a_placement_of_another_strategy_is_refused() {
    let refused = threads::run(4, |comm| {
        let ulysses = CpHandler::<Ulysses, Thd, _, _>::new(Ulysses::new(Runtime(4)), Cpu::<f64>::new(1), &comm)?;
        let ring = CpHandler::<Ring, Thd, _, _>::new(Ring::new(Runtime(4)), Cpu::<f64>::new(1), &comm)?;
        let batch = || Packed::from_lengths(&[64]);
        let (of_ulysses, of_ring) = (ulysses.place(batch()?)?, ring.place(batch()?)?);
        let mut refused = true;
        let mixed = RingUlysses::new(Runtime(2), Runtime(2));
        let mixed = CpHandler::<RingUlysses, Thd, _, _>::new(mixed, Cpu::<f64>::new(1), &comm)?;
        let apart = RingUlysses::new(Runtime(2), Runtime(2)).with_inner_adjacent(false);
        let apart = CpHandler::<RingUlysses, Thd, _, _>::new(apart, Cpu::<f64>::new(1), &comm)?;
        let alone = CpHandler::<Ulysses, Thd, _, _>::new(Ulysses::new(Runtime(4)), Cpu::<f64>::new(1), &comm)?;
        for placement in [&of_ulysses, &of_ring, &mixed.place(batch()?)?] {
            refused &= other_grid(apart.plan(placement, &Mask::Causal).map(drop));
        }
        refused &= other_grid(mixed.plan(&of_ulysses, &Mask::Causal).map(drop));
        refused &= other_grid(mixed.plan(&of_ring, &Mask::Causal).map(drop));
        // Ranks are numbered alike: only their groups differ.
        refused &= other_grid(alone.plan(&of_ring, &Mask::Causal).map(drop));
        // Rows of ranks that are numbered otherwise are not this rank's.
        let full = Full::<Thd, f32>::from_batch_first(&[0.0; 64], 1, of_ring.batch().clone())?;
        refused &= other_grid(apart.dispatch(&of_ring, &full).map(drop));
        Ok(refused)
    });
    assert_eq!(refused, Ok(vec![true; 4]));
}

#[test]
fn a_placement_of_another_rank_is_refused() {
    let refused = threads::run(2, |comm| {
        let handler = CpHandler::<Ring, Thd, _, _>::new(Ring::new(Runtime(2)), Cpu::<f64>::new(1), &comm)?;
        let batch = Arc::new(Packed::from_lengths(&[16])?);
        let (rope, device) = (Rope::new(RopeConfig::plain(4, 100.0))?, Cpu::<f32>::new(1));
        let mut refused = Vec::new();
        for (ranks, rank) in [(2, 1 - comm.rank()), (3, comm.rank()), (1, 0)] {
            let placement = Placement::<Zigzag, Thd>::new(batch.clone(), ranks, rank)?;
            let full = Full::<Thd, f32>::from_batch_first(&[0.0; 16], 1, batch.clone())?;
            let shard = Shard::new(device.zero_matrix::<f32>(placement.rows(), 1), placement.clone())?;
            refused.extend([
                handler.plan(&placement, &Mask::Causal).map(drop),
                handler.dispatch(&placement, &full).map(drop),
                handler.combine(&shard).map(drop),
                handler.roll(&shard, 1, 0.0).map(drop),
                handler.get_emb_on_this_cp_rank(&rope, &placement).map(drop),
            ]);
        }
        let of_another = |result: &Result<()>| matches!(result, Err(Error::Placement(PlacementError::Rank { .. })));
        Ok(refused.iter().all(of_another))
    });
    assert_eq!(refused, Ok(vec![true; 2]));
}

#[test]
fn a_plan_of_another_strategy_is_refused() {
    let refused = threads::run(4, |comm| {
        // The same groups of ranks, the same order: only the strategies differ.
        let gather = CpHandler::<AllGather, Thd, _, _>::new(AllGather::new(Runtime(4)), Cpu::<f64>::new(1), &comm)?;
        let ring = CpHandler::<Ring, Thd, _, _>::new(Ring::new(Runtime(4)), Cpu::<f64>::new(1), &comm)?;
        let placement = gather.place(Packed::from_lengths(&[64])?)?;
        let plan = gather.plan(&placement, &Mask::Causal)?;
        let [q, k, v] = shards(&gather, &placement, 64)?;
        Ok(ring.attend(&plan, &SHAPE, &q, &k, &v).map(drop))
    });
    let other = PlanError::OtherStrategy { strategy: Ring::<Runtime>::NAME, found: AllGather::<Runtime>::NAME };
    assert_eq!(refused, Ok(vec![Err(other.into()); 4]));
}

#[test]
fn shards_that_hold_the_same_tokens_may_change_handlers() {
    let outputs = threads::run(3, |comm| {
        let ring = CpHandler::<Ring, Thd, _, _>::new(Ring::new(Runtime(3)), Cpu::<f64>::new(1), &comm)?;
        let ulysses = CpHandler::<Ulysses, Thd, _, _>::new(Ulysses::new(Runtime(3)), Cpu::<f64>::new(1), &comm)?;
        let batch = Arc::new(Packed::from_lengths(&[48])?);
        let [q, k, v] = shards(&ring, &ring.place(batch.clone())?, 48)?;
        let plan = ulysses.plan(&ulysses.place(batch)?, &Mask::Causal)?;
        let (out, _) = ulysses.attend(&plan, &SHAPE, &q, &k, &v)?;
        Ok(ulysses.combine(&out)?.to_batch_first())
    });
    let expected = expected(48, &|q, k| k <= q);
    for out in outputs.expect("both hold the same tokens") {
        assert!(out.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-12));
    }
}

/// All keys in one tile, one rank after another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Hash)]
struct ByRank;

impl ByRank {
    /// The sound exchange, with the rows of its gathered slot in the order of ranks.
    fn reordered(mut program: Program, view: &View) -> Program {
        use context_parallel::plan::{Step, Transfer};
        let before: Vec<usize> = (0..view.ranks()).map(|rank| (0..rank).map(|r| view.rows(r)).sum()).collect();
        let runs: Vec<_> = (0..view.ranks())
            .flat_map(|rank| view.held(rank).iter().map(move |&(row, run)| (rank, row, run)))
            .map(|(rank, row, run)| (before[rank] + row, run))
            .collect();
        let renumber = |transfer: &mut Transfer| {
            if transfer.slot == 1 {
                let peer = transfer.peer().unwrap();
                transfer.rows = (before[peer]..before[peer] + view.rows(peer)).into();
            }
        };
        for step in &mut program.steps {
            match step {
                Step::Post { sends, receives, .. } => sends.iter_mut().chain(receives).for_each(renumber),
                Step::Tile { pieces, .. } => *pieces = view.tile_runs(&runs),
                _ => {}
            }
        }
        program
    }
}

impl KvExchange for ByRank {
    const NAME: &'static str = "by-rank";
    fn forward(&self, view: &View) -> Program {
        Self::reordered(GatherKv.forward(view), view)
    }
    fn backward(&self, view: &View) -> Program {
        Self::reordered(GatherKv.backward(view), view)
    }
}
impl<K: Kernel> RunsOn<K> for ByRank {}

#[derive(Clone, Copy, Debug, PartialEq)]
struct GatherByRank;

impl CpStrategy for GatherByRank {
    type Order = Zigzag;
    type Heads = KeepHeads;
    type Kv = ByRank;
    const NAME: &'static str = "gather-by-rank";
    fn degree(&self) -> usize {
        2
    }
}
impl<K: Kernel> Row<Bshd, K> for GatherByRank {}

#[test]
fn a_kernel_that_needs_natural_keys_refuses_a_gather_in_rank_order() {
    let outcome = threads::run(2, |comm| {
        let handler = CpHandler::<GatherByRank, Bshd, _, _>::new(GatherByRank, Cpu::<f64>::new(1), &comm)?;
        let placement = handler.place(Dense::from_lengths(&[16, 16])?)?;
        let plan = handler.plan(&placement, &Mask::Causal)?;
        let [q, k, v] = shards(&handler, &placement, 32)?;
        let unfused = handler.attend_with::<Unfused>(&plan, &SHAPE, &q, &k, &v).map(drop);
        assert_eq!(plan.peak_bytes::<Unfused, Cpu<f64>>(&SHAPE).map(drop), unfused);
        let (out, _) = handler.attend(&plan, &SHAPE, &q, &k, &v)?;
        Ok((unfused, handler.combine(&out)?.to_batch_first()))
    });
    let expected = expected(32, &|q, k| k <= q && k / 16 == q / 16);
    for (unfused, flash) in outcome.expect("flash attends in any order") {
        let message = unfused.unwrap_err().to_string();
        assert!(message.contains("natural order") && message.contains("gather-by-rank"), "{message}");
        assert!(flash.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-12));
    }
}

#[test]
fn one_handler_serves_devices_of_two_types() {
    let cosines = threads::run(2, |comm| {
        let handler = CpHandler::<Ring, Thd, _, _>::new(Ring::new(Runtime(2)), Cpu::<f64>::new(1), &comm)?;
        let placement = handler.place(Packed::from_lengths(&[16])?)?;
        let rope = Rope::new(RopeConfig::plain(4, 100.0))?;
        let single = handler.by_ref().on(&Cpu::<f32>::new(1)).rotary(&rope, placement.data())?;
        let half = handler.by_ref().on(&Cpu::<bf16>::new(1)).rotary(&rope, placement.data())?;
        let double = handler.get_emb_on_this_cp_rank(&rope, &placement)?;
        assert_eq!(single.cos().to_vec(), half.cos().to_vec(), "both compute in f32");
        // Another device of the same type has a table of its own, in its own memory.
        let (other, held) = (Cpu::<f32>::new(1), single.cos().len());
        let again = handler.by_ref().on(&other).rotary(&rope, placement.data())?;
        assert!(other.ledger().held() >= 2 * held * size_of::<f32>());
        assert_eq!(again.cos().to_vec(), single.cos().to_vec());
        Ok(single.cos().iter().zip(&double.cos()[..]).all(|(&a, &b)| (f64::from(a) - b).abs() < 1e-6))
    });
    assert_eq!(cosines, Ok(vec![true; 2]));
}

#[test]
fn plans_that_one_rank_makes_by_itself_put_no_rank_out_of_step() {
    let outcome = threads::run(2, |comm| {
        let handler = CpHandler::<Ring, Thd, _, _>::new(Ring::new(Runtime(2)), Cpu::<f64>::new(1), &comm)?;
        let placement = handler.place(Packed::from_lengths(&[32])?)?;
        let [q, k, v] = shards(&handler, &placement, 32)?;
        let attend = || -> Result<()> {
            let plan = handler.plan(&placement, &Mask::Causal)?;
            handler.attend(&plan, &SHAPE, &q, &k, &v).map(drop)
        };
        attend()?;
        if comm.rank() == 0 {
            for left in 1..=20 {
                handler.plan(&placement, &Mask::Window { left: Some(left), right: Some(0) })?;
            }
        }
        attend()
    });
    assert_eq!(outcome, Ok(vec![(); 2]));
}

fn disagree(error: Error) -> bool {
    matches!(error, Error::Comm(CommError::Disagree { own, found, .. }) if own != found)
}

#[test]
fn ranks_with_other_masks_are_told_with_the_first_message_that_they_exchange() {
    fn outcome<H: CpStrategy + context_parallel::strategy::Supports<Thd, Flash>>(
        strategy: H,
        lengths: &[usize],
    ) -> Error {
        let tokens = lengths.iter().sum();
        let outcome = threads::run(2, |comm| {
            let handler = CpHandler::<H, Thd, _, _>::new(strategy.clone(), Cpu::<f64>::new(1), &comm)?;
            let placement = handler.place(Packed::from_lengths(lengths)?)?;
            let [q, k, v] = shards(&handler, &placement, tokens)?;
            let mask = [Mask::Causal, Mask::Window { left: Some(9), right: Some(0) }][comm.rank()].clone();
            let plan = handler.plan(&placement, &mask)?;
            let (out, _) = handler.attend(&plan, &SHAPE, &q, &k, &v)?;
            handler.combine(&out).map(drop)
        });
        outcome.unwrap_err()
    }
    assert!(disagree(outcome(Ring::<Runtime, Zigzag>::new(Runtime(2)), &[64])));
    assert!(disagree(outcome(Ring::<Runtime, Contiguous>::new(Runtime(2)), &[64])));
    assert!(disagree(outcome(Ulysses::<Runtime, Zigzag>::new(Runtime(2)), &[64])));
    assert!(disagree(outcome(AllGather::<Runtime, Zigzag>::new(Runtime(2)), &[64])));
    assert!(disagree(outcome(Magi::new(Runtime(2)), &[64])));
    // No key travels where each document has a rank of its own: the results are put together, and there it shows.
    assert!(disagree(outcome(Dynamic::new(Runtime(2)), &[32, 32])));
}

#[test]
fn ranks_that_attended_under_other_masks_have_no_common_loss() {
    let error = threads::run(2, |comm| {
        let handler = CpHandler::<Dynamic, Thd, _, _>::new(Dynamic::new(Runtime(2)), Cpu::<f64>::new(1), &comm)?;
        let placement = handler.place(Packed::from_lengths(&[32, 32])?)?;
        let [q, k, v] = shards(&handler, &placement, 64)?;
        // The same on both: they agree.
        let plan = handler.plan(&placement, &Mask::Causal)?;
        handler.attend(&plan, &SHAPE, &q, &k, &v)?;
        assert_eq!(handler.by_ref().sum(&[1.0, 2.0])?, [2.0, 4.0]);
        let mask = [Mask::Full, Mask::Causal][comm.rank()].clone();
        let plan = handler.plan(&placement, &mask)?;
        handler.attend(&plan, &SHAPE, &q, &k, &v)?;
        handler.by_ref().sum(&[1.0]).map(drop)
    });
    assert!(disagree(error.unwrap_err()));
}

#[test]
fn ranks_that_roll_otherwise_are_told() {
    for other in [-1, 2, 3] {
        let error = threads::run(2, |comm| {
            let handler = CpHandler::<Ring, Thd, _, _>::new(Ring::new(Runtime(2)), Cpu::<f64>::new(1), &comm)?;
            let placement = handler.place(Packed::from_lengths(&[32])?)?;
            let device = Cpu::<f64>::new(1);
            let x = Shard::new(device.zero_matrix::<f64>(placement.rows(), 1), placement.clone())?;
            match (comm.rank(), other) {
                (0, _) => handler.roll(&x, 1, 0.0),
                // There and back again have messages of the same sizes.
                (_, 3) => handler.roll_adjoint(&x, 1),
                (_, offset) => handler.roll(&x, offset, 0.0),
            }
            .map(drop)
        });
        assert!(disagree(error.unwrap_err()), "{other}");
    }
}

#[test]
fn ranks_in_different_operations_of_equal_size_are_told() {
    let error = threads::run(2, |comm| {
        let (part, whole) = (|| Buffer::from_slice(&[1.0f32, 2.0]), Buffer::from_slice(&[1.0f32, 2.0, 3.0, 4.0]));
        match comm.rank() {
            0 => comm.all_gather_v(part(), &[2, 2]).map(drop),
            _ => comm.reduce_scatter_v(&whole, &[2, 2]).map(drop),
        }
    });
    let message = error.unwrap_err().to_string();
    assert!(message.contains("all_gather") && message.contains("reduce_scatter"), "{message}");
    assert!(message.contains("the ranks run different programs"), "{message}");
}

/// A strategy that says two things of its ranks.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Unsure(Grid);

impl CpStrategy for Unsure {
    type Order = Contiguous;
    type Heads = KeepHeads;
    type Kv = RingKv;
    const NAME: &'static str = "unsure";
    fn degree(&self) -> usize {
        2
    }
    fn grid(&self) -> Grid {
        self.0
    }
}
impl Row<Thd, Flash> for Unsure {}

#[test]
fn a_strategy_whose_grid_is_not_of_its_degree_is_refused() {
    for (outer, inner) in [(3, 1), (1, 1), (2, 2), (0, 2), (usize::MAX, 2)] {
        let grid = Grid { outer, inner, inner_adjacent: true };
        let typed = threads::run(2, |comm| {
            CpHandler::<Unsure, Thd, _, _>::new(Unsure(grid), Cpu::<f64>::new(1), &comm).map(drop)
        });
        let dynamic = threads::run(2, |comm| {
            UntypedHandler::new(object(Unsure(grid)), LayoutKind::Thd, Cpu::<f64>::new(1), Box::new(comm)).map(drop)
        });
        for outcome in [typed, dynamic] {
            let error = outcome.unwrap_err();
            assert!(matches!(error, Error::Placement(_)) && error.is_input(), "{grid}: {error}");
        }
    }
}

#[test]
fn head_counts_and_widths_that_make_no_sense_are_refused() {
    let outcome = threads::run(2, |comm| {
        let handler = CpHandler::<Ulysses, Thd, _, _>::new(Ulysses::new(Runtime(2)), Cpu::<f64>::new(1), &comm)?;
        let placement = handler.place(Packed::from_lengths(&[16])?)?;
        let plan = handler.plan(&placement, &Mask::Causal)?;
        let [q, k, v] = shards(&handler, &placement, 16)?;
        let attend = |shape| handler.attend(&plan, &shape, &q, &k, &v).map(drop);
        let refused = [
            attend(AttentionShape { q_heads: 0, ..SHAPE }),
            attend(AttentionShape { kv_heads: 0, ..SHAPE }),
            attend(AttentionShape { q_heads: 5, ..SHAPE }),
            attend(AttentionShape { qk_dim: 0, ..SHAPE }),
            attend(AttentionShape { v_dim: usize::MAX, ..SHAPE }),
            attend(AttentionShape { scale: f64::NAN, ..SHAPE }),
        ];
        assert!(plan.bytes_sent::<Cpu<f64>>(&AttentionShape { q_heads: 3, kv_heads: 1, ..SHAPE }).is_err());
        let numbers = |result: &Result<()>| matches!(result, Err(Error::Support(SupportError::Numbers(_))));
        Ok(refused.iter().all(numbers))
    });
    assert_eq!(outcome, Ok(vec![true; 2]));
}

#[test]
fn stages_out_of_their_bounds_are_refused() {
    use context_parallel::solve::stages::{MOST_PARTS, Merging, StageCount};
    for count in [0, MOST_PARTS + 1] {
        let outcome = threads::run(1, |comm| {
            let exactly = Magi::new(Runtime(1)).with_stages(StageCount::Exactly(count));
            let parts = Dynamic::new(Runtime(1)).with_stages(Merging::Parts(count));
            let exactly = CpHandler::<Magi, Thd, _, _>::new(exactly, Cpu::<f64>::new(1), &comm).map(drop);
            Ok([exactly, CpHandler::<Dynamic, Thd, _, _>::new(parts, Cpu::<f64>::new(1), &comm).map(drop)])
        });
        for refused in outcome.unwrap().concat() {
            let message = refused.unwrap_err().to_string();
            assert!(message.contains(&format!("{count} ")) && message.contains("use 1 to 16"), "{message}");
        }
    }
}

#[test]
fn placements_on_pieces_of_nothing_are_refused() {
    use context_parallel::solve::dispatch::{DispatchOptions, Remainder};
    let wrong = [
        DispatchOptions { grain: Some(0), ..DispatchOptions::default() },
        DispatchOptions { heap: Some((0, Remainder::Padded)), ..DispatchOptions::default() },
    ];
    for options in wrong {
        let outcome = threads::run(1, |comm| {
            let handler = CpHandler::<Magi, Thd, _, _>::new(
                Magi::new(Runtime(1)).with_options(options),
                Cpu::<f64>::new(1),
                comm,
            )?;
            handler.place(Packed::from_lengths(&[8])?).map(drop)
        });
        let message = outcome.unwrap_err().to_string();
        assert!(message.contains("of 0 tokens: use at least 1"), "{message}");
        let strategy = object(Magi::new(Runtime(1)).with_options(options));
        let batch = Arc::new(Packed::from_lengths(&[8]).unwrap());
        let deal = strategy.deal(&*batch, &[(Mask::Causal, 1)]).unwrap();
        let placement = DynPlacement::new(batch, LayoutKind::Thd, strategy.grid(), 0, deal).unwrap();
        assert!(RankPlan::new(&*strategy, &placement, &Mask::Causal).is_err(), "by hand");
        assert!(RankPlan::check(&*strategy, &placement, &Mask::Causal).is_err(), "by hand");
    }
}

#[test]
fn a_window_of_nothing_is_refused() {
    assert_eq!(Mask::sliding(0), Err(MaskError::EmptyWindow));
    assert_eq!(Mask::sliding(1), Ok(Mask::Window { left: Some(0), right: Some(0) }));
}

#[test]
fn windows_of_any_size_are_attended() {
    let batch = Packed::from_lengths(&[8, 5]).unwrap();
    let area = |left, right| Mask::Window { left, right }.lower(&batch).unwrap().area();
    for huge in [usize::MAX, i64::MAX as usize, i64::MAX as usize + 1] {
        assert_eq!(area(Some(huge), Some(0)), area(None, Some(0)));
        assert_eq!(area(Some(huge), Some(huge)), 64 + 25);
        let documents = [0..8, 8..13];
        let area = |left, right, global| {
            named::window_with_global(&documents, left, right, global).lower(&batch).unwrap().area()
        };
        assert_eq!(area(Some(huge), Some(huge), huge), 64 + 25);
        assert_eq!(area(Some(huge), Some(0), 2), area(None, Some(0), 0));
    }
}

#[test]
fn ids_outside_the_vocabulary_are_named_by_sequence_and_position() {
    let config = Config::preset("tiny").unwrap();
    let mut tokens: Vec<i64> = (0..32).collect();
    (tokens[21], tokens[30]) = (256, -1);
    let batch = TokenBatch::next_token(tokens, 2, 16);
    let outcome = threads::run(2, |comm| {
        let device = Cpu::<f32>::new(1);
        let handler = CpHandler::<Ring, Thd>::new(Ring::new(Runtime(2)), device.clone(), comm)?;
        let weights = init::fresh(&device, &config, &ParameterList::new(&config), 0)?;
        let mut learner = GptLearner::<Ring, Thd>::new(&config, weights, handler)?;
        learner.accumulate(&batch, batch.counted())
    });
    let error = outcome.unwrap_err();
    let named = |token, position| Error::from(ModelError::Token { token, sequence: 1, position, vocab: 256 });
    // Each may be found by another rank: whoever is first speaks.
    assert!(error == named(256, 5) || error == named(-1, 14), "{error}");
}
