//! Plans of every strategy hold together on every rank, and the check notices when they do not.

use std::sync::Arc;

use context_parallel::layout::{Bshd, Dense, Layout, Packed, Thd};
use context_parallel::mask::{Mask, Slice, SliceKind};
use context_parallel::order::{Contiguous, Placement, Run, Striped, TokenOrder, Zigzag};
use context_parallel::plan::{Content, Program, RowSet, Step, Transfer, View, check};
use context_parallel::solve::stages::{Merging, StageCount, Staging};
use context_parallel::strategy::{CastKv, GatherKv, KvExchange, LocalKv, RingKv};

fn masks(documents: usize, tokens: usize) -> Vec<Mask> {
    let mut masks = vec![
        Mask::Causal,
        Mask::Full,
        Mask::Window { left: Some(0), right: Some(0) },
        Mask::Window { left: Some(3), right: Some(0) },
        Mask::Window { left: Some(5), right: Some(2) },
        Mask::Window { left: None, right: Some(1) },
        Mask::Prefix((0..documents).map(|i| 3 * i + 1).collect()),
    ];
    if tokens > 8 {
        masks.push(Mask::Slices(vec![
            Slice { q: 0..5, k: 2..tokens, kind: SliceKind::Full },
            Slice { q: 6..tokens, k: 0..tokens - 3, kind: SliceKind::Causal },
        ]));
    }
    masks
}

fn view<O: TokenOrder, L: Layout>(batch: &L::Batch, ranks: usize, rank: usize, mask: &Mask) -> View {
    let placement = Placement::<O, L>::new(Arc::new(batch.clone()), ranks, rank).unwrap();
    View::new(&placement, mask.lower(batch).unwrap())
}

/// [`CastKv`] in several stages, as far as there are rows for them; of so many parts, if not 0.
#[derive(Clone, Copy, Debug, Default, Hash)]
struct Staged<const STAGES: usize, const PARTS: usize = 0>;

impl<const STAGES: usize, const PARTS: usize> Staged<STAGES, PARTS> {
    fn of(stages: usize) -> CastKv {
        let merging = if PARTS == 0 { Merging::Stages } else { Merging::Parts(PARTS) };
        CastKv::new(Staging { merging, ..StageCount::Exactly(stages).into() })
    }
}

impl<const STAGES: usize, const PARTS: usize> KvExchange for Staged<STAGES, PARTS> {
    const NAME: &'static str = "staged cast";

    fn forward(&self, view: &View) -> Program {
        Self::of(STAGES).forward(view)
    }

    fn backward(&self, view: &View) -> Program {
        // Other stages than forward.
        Self::of(STAGES + 1).backward(view)
    }
}

fn programs<X: KvExchange>(view: &View) -> Vec<(Program, Program)> {
    let rank = |rank| {
        let view = view.seen_from(rank);
        (X::default().forward(&view), X::default().backward(&view))
    };
    (0..view.ranks()).map(rank).collect()
}

fn sound<X: KvExchange, O: TokenOrder, L: Layout>(batch: &L::Batch, ranks: usize, mask: &Mask) {
    let view = view::<O, L>(batch, ranks, 0, mask);
    if let Err(error) = check(X::NAME, &view, &programs::<X>(&view)) {
        panic!("{} on {} x {ranks} under {mask:?} of {batch:?}: {error}", X::NAME, O::NAME);
    }
}

fn sound_everywhere<L: Layout>(batch: &L::Batch, documents: usize, tokens: usize) {
    for ranks in [1, 2, 3, 4, 5, 8] {
        for mask in masks(documents, tokens) {
            sound::<RingKv, Zigzag, L>(batch, ranks, &mask);
            sound::<RingKv, Striped, L>(batch, ranks, &mask);
            sound::<RingKv, Striped<2>, L>(batch, ranks, &mask);
            sound::<RingKv, Contiguous, L>(batch, ranks, &mask);
            sound::<GatherKv, Zigzag, L>(batch, ranks, &mask);
            sound::<GatherKv, Striped, L>(batch, ranks, &mask);
            sound::<GatherKv, Contiguous, L>(batch, ranks, &mask);
            sound::<CastKv, Zigzag, L>(batch, ranks, &mask);
            sound::<CastKv, Striped, L>(batch, ranks, &mask);
            sound::<CastKv, Contiguous, L>(batch, ranks, &mask);
            sound::<Staged<2>, Zigzag, L>(batch, ranks, &mask);
            sound::<Staged<5>, Striped<2>, L>(batch, ranks, &mask);
            sound::<Staged<3>, Contiguous, L>(batch, ranks, &mask);
            sound::<Staged<3, 7>, Zigzag, L>(batch, ranks, &mask);
            sound::<Staged<1, 16>, Contiguous, L>(batch, ranks, &mask);
        }
    }
}

#[test]
fn dense_plans_are_sound() {
    sound_everywhere::<Bshd>(&Dense { batch: 2, seq: 16 }, 2, 32);
    sound_everywhere::<Bshd>(&Dense { batch: 1, seq: 37 }, 1, 37);
}

#[test]
fn packed_plans_are_sound() {
    let lengths = [0, 1, 7, 16, 0, 3, 33];
    sound_everywhere::<Thd>(&Packed::from_lengths(&lengths).unwrap(), 7, 60);
    let stored = [2, 1, 9, 16, 0, 8, 40];
    sound_everywhere::<Thd>(&Packed::new(&lengths, &stored).unwrap(), 7, 76);
    sound_everywhere::<Thd>(&Packed::from_lengths(&[]).unwrap(), 0, 0);
}

/// Breaks the programs of one strategy in one way and expects the check to notice.
fn noticed<X: KvExchange>(what: &str, break_it: impl Fn(&mut Vec<(Program, Program)>) -> bool) {
    let batch = Dense { batch: 1, seq: 32 };
    let view = view::<Zigzag, Bshd>(&batch, 4, 0, &Mask::Causal);
    let mut programs = programs::<X>(&view);
    assert!(check(X::NAME, &view, &programs).is_ok());
    assert!(break_it(&mut programs), "{what}: nothing to break in {}", X::NAME);
    assert!(check(X::NAME, &view, &programs).is_err(), "{what} in {} is not noticed", X::NAME);
}

fn steps(programs: &mut [(Program, Program)], rank: usize, backward: bool) -> &mut Vec<Step> {
    let pair = &mut programs[rank];
    if backward { &mut pair.1.steps } else { &mut pair.0.steps }
}

fn mutations<X: KvExchange>() {
    noticed::<X>("a merge too many", |programs| {
        steps(programs, 3, false).push(Step::Merge);
        true
    });
    noticed::<X>("no slot at all", |programs| {
        programs[1].0 = Program::default();
        true
    });
    for backward in [false, true] {
        noticed::<X>("a dropped tile", |programs| {
            let steps = steps(programs, 2, backward);
            let last = steps.iter().rposition(|step| matches!(step, Step::Tile { .. }));
            last.is_some_and(|at| matches!(steps.remove(at), Step::Tile { .. }))
        });
        noticed::<X>("a tile done twice", |programs| {
            let steps = steps(programs, 1, backward);
            let Some(at) = steps.iter().position(|step| matches!(step, Step::Tile { .. })) else { return false };
            steps.insert(at, steps[at].clone());
            true
        });
        noticed::<X>("a window shifted by one", |programs| {
            steps(programs, 3, backward).iter_mut().any(|step| match step {
                Step::Tile { pieces, .. } if !pieces.is_empty() => {
                    let wide = Arc::make_mut(pieces).iter_mut().find(|piece| piece.q.len > 1 && piece.d_hi == 0);
                    wide.is_some_and(|piece| {
                        piece.d_hi -= 1;
                        true
                    })
                }
                _ => false,
            })
        });
        noticed::<X>("two owners swapped", |programs| {
            steps(programs, 0, backward).iter_mut().any(|step| match step {
                Step::Post { content: Content::Keys, receives, .. } if receives.len() > 1 => {
                    let end = receives.len() - 1;
                    let (first, last) = (receives[0].peers.clone(), receives[end].peers.clone());
                    (receives[0].peers, receives[end].peers) = (last, first);
                    true
                }
                Step::Post { content: Content::Keys, receives, .. } => {
                    receives.iter_mut().for_each(|receive| receive.peers = ((receive.peer().unwrap() + 1) % 4).into());
                    true
                }
                _ => false,
            })
        });
        noticed::<X>("a slot given back before it is attended", |programs| {
            let steps = steps(programs, 2, backward);
            let last = steps.iter().rposition(|step| matches!(step, Step::Tile { .. }));
            let Some((at, Step::Tile { slot, .. })) = last.map(|at| (at, steps[at].clone())) else { return false };
            steps.insert(at, Step::Free { slot });
            true
        });
        noticed::<X>("rows that a slot has not", |programs| {
            steps(programs, 2, backward).iter_mut().any(|step| match step {
                Step::Post { sends, .. } => sends.first_mut().is_some_and(|send| {
                    send.rows.extend([Run { start: 1 << 40, step: 1, len: 1 }]);
                    true
                }),
                _ => false,
            })
        });
        noticed::<X>("a slot that is not there", |programs| {
            steps(programs, 1, backward).insert(0, Step::Free { slot: 99 });
            true
        });
        noticed::<X>("a rank that is not there", |programs| {
            steps(programs, 3, backward).iter_mut().any(|step| match step {
                Step::Post { receives, .. } => receives.first_mut().is_some_and(|receive| {
                    receive.peers = (receive.peer().unwrap() + 4).into();
                    true
                }),
                _ => false,
            })
        });
        noticed::<X>("an exchange with another number on one rank", |programs| {
            let mut changed = false;
            for step in steps(programs, 2, backward) {
                if let Step::Post { exchange, .. } | Step::Wait { exchange } = step {
                    *exchange += 1000;
                    changed = true;
                }
            }
            changed
        });
        noticed::<X>("a query that the rank has not", |programs| {
            steps(programs, 0, backward).iter_mut().any(|step| match step {
                Step::Tile { pieces, .. } => Arc::make_mut(pieces).first_mut().is_some_and(|piece| {
                    piece.q_row += 8;
                    true
                }),
                _ => false,
            })
        });
        noticed::<X>("the last wait left out", |programs| {
            let steps = steps(programs, 1, backward);
            let Some(at) = steps.iter().rposition(|step| matches!(step, Step::Wait { .. })) else { return false };
            steps.remove(at);
            true
        });
        noticed::<X>("a wait left out", |programs| {
            let steps = steps(programs, 1, backward);
            let Some(at) = steps.iter().position(|step| matches!(step, Step::Wait { .. })) else { return false };
            steps.remove(at);
            true
        });
    }
}

fn without_a_merge<X: KvExchange>() {
    noticed::<X>("a merge left out", |programs| {
        let steps = steps(programs, 3, false);
        let Some(at) = steps.iter().position(|step| matches!(step, Step::Merge)) else { return false };
        steps.remove(at);
        true
    });
}

#[test]
fn broken_plans_are_noticed() {
    without_a_merge::<RingKv>();
    without_a_merge::<CastKv>();
    without_a_merge::<Staged<2, 5>>();
    mutations::<RingKv>();
    mutations::<GatherKv>();
    mutations::<CastKv>();
    mutations::<Staged<3>>();
    mutations::<Staged<2, 5>>();
}

#[test]
fn local_keys_are_not_attention_over_the_sequence() {
    let batch = Dense { batch: 1, seq: 32 };
    let view = view::<Zigzag, Bshd>(&batch, 2, 0, &Mask::Causal);
    assert!(check("local", &view, &programs::<LocalKv>(&view)).is_err());
}

#[test]
fn the_ring_posts_before_it_computes_and_holds_two_blocks() {
    let batch = Dense { batch: 1, seq: 64 };
    for backward in [false, true] {
        let view = view::<Zigzag, Bshd>(&batch, 8, 3, &Mask::Causal);
        let program = if backward { RingKv.backward(&view) } else { RingKv.forward(&view) };
        let at = |wanted: &dyn Fn(&Step) -> bool| program.steps.iter().position(wanted).unwrap();
        for hop in 1..8 {
            let post = at(&|step| matches!(step, Step::Post { exchange, .. } if *exchange == hop));
            let tile = at(&|step| matches!(step, Step::Tile { slot, .. } if *slot == hop - 1));
            let wait = at(&|step| matches!(step, Step::Wait { exchange } if *exchange == hop));
            assert!(post < tile && tile < wait, "hop {hop}: post {post}, tile {tile}, wait {wait}");
        }
        let limit = 2 * 8 + if backward { 8 } else { 0 };
        assert!(program.peak_rows() <= limit, "{} rows at a time", program.peak_rows());
    }
}

#[test]
fn a_windowed_ring_stops_at_the_last_rank_that_needs_a_block() {
    let batch = Dense { batch: 1, seq: 64 };
    let mask = Mask::Window { left: Some(3), right: Some(0) };
    let view = view::<Contiguous, Bshd>(&batch, 8, 2, &mask);
    // Three rows reach into the next rank, and nothing goes further; their gradients come straight back.
    assert_eq!(RingKv.forward(&view).rows_sent(2, Content::Keys), 3);
    assert_eq!(RingKv.backward(&view).rows_sent(2, Content::Gradients), 3);
    let all = GatherKv.forward(&view).rows_sent(2, Content::Keys);
    assert_eq!(all, 7 * 8);
}

#[test]
fn a_staged_cast_fetches_the_next_stage_while_it_attends_one() {
    let batch = Dense { batch: 1, seq: 64 };
    for (backward, stages) in [(false, 3), (true, 4)] {
        let view = view::<Zigzag, Bshd>(&batch, 8, 3, &Mask::Causal);
        let program = if backward { Staged::<3>.backward(&view) } else { Staged::<3>.forward(&view) };
        let at = |wanted: &dyn Fn(&Step) -> bool| program.steps.iter().position(wanted).unwrap();
        let posts_of = |wanted: Content| {
            let post = |(at, step): (usize, &Step)| match step {
                Step::Post { content, .. } if *content == wanted => Some(at),
                _ => None,
            };
            program.steps.iter().enumerate().filter_map(post).collect::<Vec<_>>()
        };
        let (keys, gradients) = (posts_of(Content::Keys), posts_of(Content::Gradients));
        let tile = |number| at(&|step| matches!(step, Step::Tile { slot, .. } if *slot == number));
        assert_eq!(program.slots.len(), 1 + stages);
        for stage in 1..stages {
            assert!(keys[stage] < tile(stage), "stage {stage} is posted before the one before it is attended");
            assert!(!backward || tile(stage) < gradients[stage - 1] && gradients[stage - 1] < tile(stage + 1));
        }
        // Own rows and two stages at a time.
        let stage = program.slots[1..].iter().max().unwrap();
        assert!(program.peak_rows() <= program.slots[0] + 2 * stage, "{} rows at a time", program.peak_rows());
    }
}

/// Messages belong to receives in the order of the posts, so the order of the waits is free.
#[test]
fn waits_may_come_in_any_order() {
    let batch = Dense { batch: 1, seq: 64 };
    let view = view::<Zigzag, Bshd>(&batch, 2, 0, &Mask::Full);
    let all = |view: &View| {
        let own = view.rows(view.rank());
        let (peer, rows) = (1 - view.rank(), [0..own / 2, own / 2..own]);
        let part = |slot: usize, at: std::ops::Range<usize>| Transfer::new(peer, slot, at);
        let post = |exchange: usize| Step::Post {
            exchange,
            content: Content::Keys,
            sends: vec![part(0, rows[exchange].clone())],
            receives: vec![part(exchange + 1, 0..rows[exchange].len())],
        };
        let needs = view.needs(peer, view.rank());
        let tile = |exchange: usize| Step::Tile {
            slot: exchange + 1,
            pieces: view.tile(peer, &needs.at_places(rows[exchange].clone())),
        };
        let own_tile = Step::Tile { slot: 0, pieces: view.tile(view.rank(), &RowSet::all(own)) };
        let mut steps = vec![post(0), post(1), own_tile];
        steps.extend([
            Step::Wait { exchange: 1 },
            tile(1),
            Step::Merge,
            Step::Wait { exchange: 0 },
            tile(0),
            Step::Merge,
        ]);
        Program::new(vec![own, rows[0].len(), rows[1].len()], steps)
    };
    let pair = |rank| {
        let view = view.seen_from(rank);
        (all(&view), RingKv.backward(&view))
    };
    check("out of order", &view, &[pair(0), pair(1)]).unwrap();
}

#[test]
fn the_rehearsal_refuses_what_the_executor_does_not_do() {
    let batch = Dense { batch: 1, seq: 64 };
    let view = view::<Zigzag, Bshd>(&batch, 2, 0, &Mask::Causal);
    let refused = |strategy: &dyn Fn(&View, bool) -> Program| {
        let of = |rank| {
            let view = view.seen_from(rank);
            (strategy(&view, false), strategy(&view, true))
        };
        check("test", &view, &[of(0), of(1)]).unwrap_err().to_string()
    };
    let ring = |view: &View, backward| if backward { RingKv.backward(view) } else { RingKv.forward(view) };
    // Received keys go where the rank's own are, which the executor may only have borrowed.
    let into_own = refused(&|view, backward| {
        let mut program = ring(view, backward);
        let post = program.steps.iter_mut().find_map(|step| match step {
            Step::Post { content: Content::Keys, receives, .. } if !receives.is_empty() => Some(receives),
            _ => None,
        });
        post.unwrap()[0].slot = 0;
        program
    });
    assert!(into_own.contains("slot 0"), "{into_own}");
    let twice = refused(&|view, backward| {
        let mut program = ring(view, backward);
        let post = program.steps.iter().find(|step| matches!(step, Step::Post { .. })).unwrap().clone();
        program.steps.push(post);
        program
    });
    assert!(twice.contains("posted twice"), "{twice}");
    let one_row = refused(&|view, backward| {
        let mut program = ring(view, backward);
        for step in &mut program.steps {
            if let Step::Post { receives, .. } = step {
                receives.iter_mut().for_each(|receive| {
                    let rows = receive.rows.to_vec();
                    receive.rows =
                        rows.iter().enumerate().map(|(i, row)| if i == 1 { rows[0] } else { *row }).collect();
                });
            }
        }
        program
    });
    assert!(one_row.contains("of a slot twice"), "{one_row}");
}
