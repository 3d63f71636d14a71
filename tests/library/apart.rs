//! Queries and keys that are placed apart: new tokens attend keys that ranks already hold.

use std::sync::Arc;

use context_parallel::attention::RankPlan;
use context_parallel::comm::threads;
use context_parallel::degree::{Degree, Runtime};
use context_parallel::error::{Error, Result};
use context_parallel::handler::CpHandler;
use context_parallel::heads::KeepHeads;
use context_parallel::kernel::Flash;
use context_parallel::layout::{Batch, Packed, Thd};
use context_parallel::mask::Mask;
use context_parallel::ops::attention::AttentionShape;
use context_parallel::order::{Full, Placement, Zigzag};
use context_parallel::plan::{Content, Step, View, check};
use context_parallel::strategy::{
    AllGather, CastKv, CastQueries, CpStrategy, KvExchange, Ring, Row, Single, Supports, Ulysses, object,
};
use context_parallel::tensor::{Cpu, Matrix};

const SHAPE: AttentionShape = AttentionShape { q_heads: 4, kv_heads: 2, qk_dim: 8, v_dim: 4, scale: 0.35 };

/// Zigzag order with an exchange of any kind.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct With<X>(pub(crate) Runtime, pub(crate) X);

impl<X: KvExchange + Copy + PartialEq> CpStrategy for With<X> {
    type Order = Zigzag;
    type Heads = KeepHeads;
    type Kv = X;
    const NAME: &'static str = X::NAME;

    fn degree(&self) -> usize {
        self.0.ranks()
    }

    fn kv(&self) -> X {
        self.1
    }
}

impl Row<Thd, Flash> for With<CastQueries> {}
impl Row<Thd, Flash> for With<CastKv> {}

fn values(tokens: usize, width: usize, seed: usize) -> Vec<f64> {
    (0..tokens * width).map(|i| ((i * 7919 + seed * 104_729) % 1013) as f64 / 1013.0 - 0.5).collect()
}

/// The rows of the last tokens of each document.
fn last(rows: &[f64], width: usize, all: &Packed, some: &Packed) -> Vec<f64> {
    let of = |document: usize| {
        let (all, some) = (all.document(document), some.document(document));
        let end = all.start + all.valid;
        rows[(end - some.valid) * width..end * width].to_vec()
    };
    (0..all.documents()).flat_map(of).collect()
}

/// Output, and gradients of queries, keys and values, whole.
fn attend<H: Supports<Thd, Flash>>(
    strategy: H,
    mask: &Mask,
    queries: &Packed,
    keys: &Packed,
    [q, k, v, dout]: [&[f64]; 4],
) -> [Vec<f64>; 4] {
    let (queries, keys) = (Arc::new(queries.clone()), Arc::new(keys.clone()));
    let mut outputs = threads::run(strategy.degree(), |comm| {
        let handler = CpHandler::<H, Thd, _, _>::new(strategy.clone(), Cpu::<f64>::new(1), comm)?;
        let (of_queries, of_keys) = (handler.place(queries.clone())?, handler.place(keys.clone())?);
        let plan = handler.plan_between(&of_queries, &of_keys, mask)?;
        let cut = |values: &[f64], width, placement: &Arc<Placement<H::Order, Thd>>| {
            let full = Full::<Thd, f64>::from_batch_first(values, width, placement.batch().clone())?;
            handler.dispatch(placement, &full)
        };
        let q = cut(q, SHAPE.q_width(), &of_queries)?;
        let (k, v) = (cut(k, SHAPE.k_width(), &of_keys)?, cut(v, SHAPE.v_width(), &of_keys)?);
        let dout = cut(dout, SHAPE.out_width(), &of_queries)?;
        let (out, attended) = handler.attend(&plan, &SHAPE, q, k, v)?;
        let [dq, dk, dv] = attended.backward(&handler, &dout)?;
        let whole = |shard| -> Result<Vec<f64>> { Ok(handler.combine(&shard)?.to_batch_first()) };
        Ok([whole(out)?, whole(dq)?, whole(dk)?, whole(dv)?])
    })
    .unwrap();
    outputs.swap_remove(0)
}

fn close(found: &[f64], expected: &[f64], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(worst < 1e-12, "{what}: {worst}");
}

/// New tokens against all keys give what the same tokens got with the whole sequence on one rank.
fn as_one_rank<H: Supports<Thd, Flash>>(strategy: H) {
    let lengths = [37, 0, 5, 64];
    let all = Packed::from_lengths(&lengths).unwrap();
    let tokens = all.tokens();
    let (q, k) = (values(tokens, SHAPE.q_width(), 1), values(tokens, SHAPE.k_width(), 2));
    let (v, dout) = (values(tokens, SHAPE.v_width(), 3), values(tokens, SHAPE.out_width(), 4));
    for mask in [Mask::Causal, Mask::Full, Mask::sliding(7).unwrap(), Mask::Prefix(vec![20, 0, 9, 3])] {
        for new in [[1, 0, 1, 1], [9, 0, 0, 33], [0, 0, 5, 0], [37, 0, 5, 64]] {
            let some = Packed::from_lengths(&new).unwrap();
            // Tokens that are not new have no gradient.
            let new_only = |rows: &[f64]| -> Vec<f64> {
                let of = |document: usize| {
                    let (stored, valid) = (all.document(document).stored, some.document(document).valid);
                    let start = all.document(document).start;
                    let old = vec![0.0; (stored - valid) * SHAPE.out_width()];
                    let new = &rows[(start + stored - valid) * SHAPE.out_width()..(start + stored) * SHAPE.out_width()];
                    [old, new.to_vec()].concat()
                };
                (0..all.documents()).flat_map(of).collect()
            };
            let [out, dq, dk, dv] = attend(Single, &mask, &all, &all, [&q, &k, &v, &new_only(&dout)]);
            let (new_q, new_dout) =
                (last(&q, SHAPE.q_width(), &all, &some), last(&dout, SHAPE.out_width(), &all, &some));
            let found = attend(strategy.clone(), &mask, &some, &all, [&new_q, &k, &v, &new_dout]);
            let what = |name: &str| format!("{name} of {new:?} under {mask:?} by {strategy:?}");
            close(&found[0], &last(&out, SHAPE.out_width(), &all, &some), &what("output"));
            close(&found[1], &last(&dq, SHAPE.q_width(), &all, &some), &what("dq"));
            close(&found[2], &dk, &what("dk"));
            close(&found[3], &dv, &what("dv"));
        }
    }
}

#[test]
fn new_tokens_attend_keys_that_are_spread_over_ranks() {
    for ranks in [1, 2, 3, 5] {
        as_one_rank(With(Runtime(ranks), CastQueries));
        as_one_rank(With(Runtime(ranks), CastKv::default()));
        as_one_rank(Ring::<Runtime>::new(Runtime(ranks)));
        as_one_rank(AllGather::<Runtime>::new(Runtime(ranks)));
    }
}

#[test]
fn queries_travel_as_far_as_there_are_keys_for_them_and_no_keys_do() {
    let (new, all) = (Packed::from_lengths(&[1, 8]).unwrap(), Packed::from_lengths(&[400, 300]).unwrap());
    for ranks in [2, 4, 7] {
        let place = |batch: &Packed, rank| Placement::<Zigzag, Thd>::new(Arc::new(batch.clone()), ranks, rank).unwrap();
        let strategy = object(With(Runtime(ranks), CastQueries));
        let bands = Mask::Causal.lower_onto(&new, &all).unwrap();
        let view = View::between(&place(&new, 0), &place(&all, 0), bands);
        let programs: Vec<_> = (0..ranks)
            .map(|rank| {
                let view = view.seen_from(rank);
                (strategy.forward(&view), strategy.backward(&view))
            })
            .collect();
        check("cast queries", &view, &programs).unwrap();
        let sent = |content| (0..ranks).map(|rank| programs[rank].0.rows_sent(rank, content)).sum::<usize>();
        assert_eq!(sent(Content::Keys), 0);
        assert_eq!(sent(Content::Queries), 9 * (ranks - 1), "every query to every other rank");
        assert_eq!(sent(Content::Results), sent(Content::Queries));
        // A lost answer, and a query that is taken for another, are noticed.
        let mut broken = programs.clone();
        let steps = &mut broken[0].0.steps;
        steps.truncate(steps.len() - 2);
        assert!(check("cast queries", &view, &broken).is_err());
        let mut broken = programs.clone();
        let served = broken[1].0.steps.iter_mut().find_map(|step| match step {
            Step::Serve { pieces, .. } => Some(Arc::make_mut(pieces)),
            _ => None,
        });
        served.expect("rank 1 holds keys that others attend")[0].q.start += 1;
        let message = check("cast queries", &view, &broken).unwrap_err().to_string();
        assert!(message.contains("is not in row"), "{message}");
    }
}

#[test]
fn what_cannot_be_placed_apart_is_refused() {
    let place = |lengths: &[usize], ranks, rank| {
        Placement::<Zigzag, Thd>::new(Arc::new(Packed::from_lengths(lengths).unwrap()), ranks, rank).unwrap()
    };
    let refused = |result: Result<RankPlan>| -> Error { result.expect_err("a plan that cannot be") };
    let (new, all) = (place(&[1, 1], 2, 0), place(&[8, 9], 2, 0));
    let ring = object(Ring::<Runtime>::new(Runtime(2)));
    let other_rank = refused(RankPlan::between(&*ring, new.data(), place(&[8, 9], 2, 1).data(), &Mask::Causal));
    assert!(other_rank.to_string().contains("rank 1"), "{other_rank}");
    let documents = refused(RankPlan::between(&*ring, place(&[1], 2, 0).data(), all.data(), &Mask::Causal));
    assert!(documents.to_string().contains("queries of 1 documents and keys of 2"), "{documents}");
    let ulysses = Ulysses::<Runtime>::new(Runtime(2));
    let grouped = |placement: &Placement<Zigzag, Thd>| {
        Placement::<Zigzag, Thd>::with_table(placement.batch().clone(), ulysses.grid(), 0, placement.table().clone())
    };
    let (new, all) = (grouped(&new).unwrap(), grouped(&all).unwrap());
    let heads = refused(RankPlan::between(&*object(ulysses), new.data(), all.data(), &Mask::Causal));
    assert!(heads.to_string().contains("ulysses exchanges heads") && heads.is_input(), "{heads}");
}

/// A shard of the keys' placement is not one of the queries'.
#[test]
fn operands_are_those_of_their_own_placements() {
    threads::run(2, |comm| {
        let handler = CpHandler::<Ring, Thd, _, _>::new(Ring::new(Runtime(2)), Cpu::<f64>::new(1), comm)?;
        let new = handler.place(Arc::new(Packed::from_lengths(&[2])?))?;
        let all = handler.place(Arc::new(Packed::from_lengths(&[9])?))?;
        let plan = handler.plan_between(&new, &all, &Mask::Causal)?;
        let shard = |placement: &Arc<Placement<Zigzag, Thd>>, width| {
            let tokens = placement.batch().tokens();
            let full = Matrix::from_slice(&vec![0.5; tokens * width], tokens, width);
            handler.dispatch(placement, &Full::new(full, placement.batch().clone())?)
        };
        let (k, v) = (shard(&all, SHAPE.k_width())?, shard(&all, SHAPE.v_width())?);
        let q = shard(&all, SHAPE.q_width())?;
        let error = handler.attend(&plan, &SHAPE, q, k, v).expect_err("refused");
        assert!(error.to_string().contains("queries"), "{error}");
        Ok(())
    })
    .unwrap();
}
