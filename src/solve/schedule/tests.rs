//! Schedules against lower bounds and against the rules that bind them.

use rand_xoshiro::SplitMix64;
use rand_xoshiro::rand_core::{Rng, SeedableRng};

use super::limits::MOST_TOKENS;
use super::*;
use crate::error::Error;

mod others;

/// Random lengths of documents.
struct Draws(SplitMix64);

impl Draws {
    fn new(seed: u64) -> Self {
        Draws(SplitMix64::seed_from_u64(seed))
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.0.next_u64() % bound as u64) as usize
    }

    /// Mostly short documents, some as long as `longest`, some empty.
    fn lengths(&mut self, most: usize, longest: usize) -> Vec<usize> {
        (0..self.below(most + 1)).map(|_| self.below(longest + 1) >> self.below(7)).collect()
    }
}

/// Recomputes everything that a schedule says of itself, from its groups alone, and checks it against the limits.
fn hold_to_the_rules(lengths: &[usize], ranks: usize, schedule: &Schedule) {
    let Schedule { micro_batches, report } = schedule;
    let mut seen: Vec<usize> = micro_batches.iter().flat_map(|b| b.groups.iter().map(|g| g.document)).collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..lengths.len()).collect::<Vec<_>>(), "every document once");

    let (mut makespan, mut rows, mut most) = (0.0, 0, 0);
    for batch in micro_batches {
        assert!(batch.groups.is_sorted_by(|a, b| a.document < b.document), "ascending documents");
        let mut on_rank = vec![(0.0, 0); ranks];
        for &Group { document, first, degree } in &batch.groups {
            assert!(degree > 0 && first + degree <= ranks, "{first}+{degree} of {ranks}");
            let length = lengths[document];
            for (work, tokens) in &mut on_rank[first..first + degree] {
                *work += length as f64 * length as f64 / degree as f64;
                *tokens += length.div_ceil(degree);
            }
            // Rows exactly as they are dealt out: each rank that holds any misses what the others hold.
            let held = (0..degree).map(|rank| (length + rank) / degree).filter(|&held| held > 0);
            rows += held.map(|held| length - held).sum::<usize>();
        }
        makespan += on_rank.iter().map(|rank| rank.0).fold(0.0, f64::max);
        most = most.max(on_rank.iter().map(|rank| rank.1).max().unwrap_or(0));
    }
    assert!((report.makespan.to_f64() - makespan).abs() <= 1e-12 * makespan, "{} {makespan}", report.makespan);
    assert_eq!((report.rows_received, report.tokens_per_rank), (rows as u128, most));
    assert!(report.tokens_per_rank <= report.tokens_limit, "{report:?}");
    assert!(report.makespan_bound <= report.makespan && report.makespan <= report.makespan_limit, "{report:?}");
    assert!(report.rows_bound <= report.rows_received, "{report:?}");
}

/// The fewest rows of all schedules within the limits, by trying every place of every document.
fn fewest_rows(lengths: &[usize], ranks: usize, tokens: usize, limit: Pairs) -> u128 {
    fn visit(task: &Task, document: usize, state: &mut Draft, best: &mut u128) {
        if state.makespan > task.limit || state.rows >= *best {
            return;
        }
        if document == task.lengths.len() {
            *best = state.rows;
            return;
        }
        let length = task.lengths[document];
        for batch in 0..state.batches() {
            for degree in 1..=task.ranks {
                for first in 0..=task.ranks - degree {
                    state.insert(document, length, Spot { batch, first, degree });
                    if state.most_tokens(batch) <= task.tokens {
                        visit(task, document + 1, state, best);
                    }
                    state.remove(document, length);
                }
            }
        }
    }
    let task = Task { lengths, ranks, tokens, limit, single: false, even: even_share(lengths, ranks) };
    let mut state = Draft::new(&task);
    (1..lengths.len()).for_each(|_| state.open(ranks));
    let mut best = u128::MAX;
    visit(&task, 0, &mut state, &mut best);
    best
}

#[test]
fn small_schedules_are_optimal() {
    let mut random = Draws::new(5);
    let (mut optimal, mut all) = (0, 0);
    for _ in 0..60 {
        let ranks = 2 + random.below(3);
        let tokens = 10 + random.below(90);
        // At least a token for each rank, so that rows are what the search takes them for.
        let lengths: Vec<usize> =
            (0..2 + random.below(3)).map(|_| ranks + random.below(ranks * (tokens - 1) + 1)).collect();
        let report = schedule(&lengths, ranks, Some(tokens)).unwrap().report;
        let least = fewest_rows(&lengths, ranks, tokens, report.makespan_limit);
        assert!(least <= report.rows_received);
        optimal += usize::from(least == report.rows_received);
        all += 1;
        if least != report.rows_received {
            println!("{ranks} {tokens} {lengths:?}: {} rows, {least} suffice", report.rows_received);
        }
    }
    assert_eq!(optimal, all);
}

#[test]
fn a_pack_is_assigned_as_it_is() {
    let assigned = |lengths: &[usize], ranks| {
        let groups = assign(lengths, ranks).unwrap();
        groups.iter().map(|g| (g.document, g.first, g.degree)).collect::<Vec<_>>()
    };
    assert_eq!(assigned(&[], 4), []);
    assert_eq!(assigned(&[0, 0], 4), [(0, 0, 1), (1, 0, 1)]);
    assert_eq!(assigned(&[1000], 4), [(0, 0, 4)]);
    assert_eq!(assigned(&[5, 0, 7], 1), [(0, 0, 1), (1, 0, 1), (2, 0, 1)]);
    assert_eq!(assigned(&[64, 64, 0, 64], 3).iter().filter(|place| place.2 == 1).count(), 4, "no communication");
    assert_eq!(assigned(&[1], 8), [(0, 0, 1)], "a token is not divided");

    let mut random = Draws::new(3);
    for _ in 0..60 {
        let ranks = 1 + random.below(12);
        let lengths = random.lengths(20, 4000);
        let groups = assign(&lengths, ranks).unwrap();
        assert!(groups.iter().map(|group| group.document).eq(0..lengths.len()));
        let batch = MicroBatch { groups };
        let busiest = batch.busiest(&lengths, ranks);
        let whole = lengths.iter().filter(|&&length| length < ranks).max().copied().unwrap_or(0);
        assert!(busiest <= even_share(&lengths, ranks).share(21, 20).max(Pairs::whole(whole as u128)), "{lengths:?}");
    }
}

#[test]
fn many_documents_fill_few_micro_batches() {
    let mut random = Draws::new(17);
    for (documents, ranks, parts) in [(1000, 8, 2), (3000, 2, 5), (3000, 16, 3)] {
        let lengths: Vec<usize> = (0..documents).map(|_| 16 + random.below(800) * random.below(8) / 4).collect();
        let tokens = lengths.iter().sum::<usize>() * 5 / (4 * ranks * parts);
        let Schedule { micro_batches, report } = schedule(&lengths, ranks, Some(tokens)).unwrap();
        let over = report.makespan.to_f64() / report.makespan_bound.to_f64();
        println!("{documents} {ranks}: {} micro-batches of {parts}, {over:.4} of the bound", micro_batches.len());
        assert!(micro_batches.len() <= parts + 1 && over < 1.02 && report.rows_received == 0, "{report:?}");
    }
}

#[test]
fn ranks_without_tokens_receive_nothing() {
    let report = schedule(&[1], 64, Some(1)).unwrap().report;
    assert_eq!((report.rows_received, report.rows_bound), (0, 0));
    let report = schedule(&[5, 1, 1], 8, Some(1)).unwrap().report;
    assert_eq!((report.rows_received, report.rows_bound), (5 * 4, 5 * 4));
}

#[test]
fn the_same_lengths_give_the_same_schedule() {
    let lengths = Draws::new(9).lengths(60, 4000);
    assert_eq!(schedule(&lengths, 6, Some(1000)).unwrap(), schedule(&lengths, 6, Some(1000)).unwrap());
    assert_eq!(assign(&lengths, 6).unwrap(), assign(&lengths, 6).unwrap());
}

#[test]
fn empty_lists_and_empty_documents_are_schedules() {
    assert_eq!(schedule(&[], 4, None).unwrap().micro_batches, []);
    let empty = schedule(&[0, 0], 4, None).unwrap();
    let group = |document| Group { document, first: 0, degree: 1 };
    assert_eq!(empty.micro_batches, [MicroBatch { groups: vec![group(0), group(1)] }]);
    assert_eq!(empty.report.rows_received, 0);
    hold_to_the_rules(&[0, 0], 4, &empty);
    let one = schedule(&[3], 1, None).unwrap();
    assert_eq!(one.micro_batches, [MicroBatch { groups: vec![group(0)] }]);
    // More ranks than tokens: most stay empty.
    hold_to_the_rules(&[1, 0, 2], 64, &schedule(&[1, 0, 2], 64, None).unwrap());
}

#[test]
fn what_cannot_be_scheduled_is_refused() {
    let refused = |error: Result<Schedule>| match error {
        Err(Error::Schedule(error)) => error,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(schedule(&[1], 0, None)), ScheduleError::NoRanks);
    let error = refused(schedule(&[5, 41], 4, Some(10)));
    assert_eq!(
        error.to_string(),
        "document 1 of 41 tokens does not fit on 4 ranks of 10 tokens each: allow 11 tokens per rank, use more ranks, \
         or cut the document"
    );
    assert!(matches!(refused(schedule(&[1], 4, Some(0))), ScheduleError::DocumentTooLong { needed: 1, .. }));
    assert!(schedule(&[5, 41], 4, Some(11)).is_ok());
    assert!(matches!(refused(schedule(&[usize::MAX, 1], 4, None)), ScheduleError::TooManyTokens { .. }));
    let error = refused(schedule_within(&[100, 100], 2, None, Pairs::whole(9_999)));
    assert!(matches!(error, ScheduleError::Makespan { .. }), "{error}");
    assert_eq!(schedule_within(&[100, 100], 2, None, Pairs::whole(10_000)).unwrap().report.rows_received, 0);
    // The largest schedule that is counted exactly.
    let most = schedule(&[(MOST_TOKENS / 2) as usize; 2], 3, None).unwrap();
    assert!(most.report.makespan < Pairs::MAX && most.report.rows_received > 0);
}
