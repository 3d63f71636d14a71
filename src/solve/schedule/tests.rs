//! Schedules against lower bounds, against the outcomes of other schedulers, and against the rules that bind them.

use rand_xoshiro::SplitMix64;
use rand_xoshiro::rand_core::{Rng, SeedableRng};

use super::*;
use crate::error::Error;

struct Random(SplitMix64);

impl Random {
    fn new(seed: u64) -> Self {
        Random(SplitMix64::seed_from_u64(seed))
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

const SIX: [usize; 6] = [6000, 3000, 1500, 700, 300, 100];
const SEVEN: [usize; 7] = [2000, 900, 900, 900, 400, 300, 200];

/// What another scheduler was measured to do: its makespan and the rows that its ranks receive.
struct Measured {
    lengths: &'static [usize],
    ranks: usize,
    tokens: Option<usize>,
    makespan: f64,
    rows: u128,
}

/// Packed micro-batches, 1024 tokens per rank: [0,2,4,5]x8 | [1]x4 [3]x4, and [0]x2 [1] [2] | [3]x2 [4,5,6]x2.
const PACKED: [Measured; 2] = [
    Measured { lengths: &SIX, ranks: 8, tokens: Some(1024), makespan: 4_793_750.0 + 2_250_000.0, rows: 66_400 },
    Measured { lengths: &SEVEN, ranks: 4, tokens: Some(1024), makespan: 2_000_000.0 + 405_000.0, rows: 3_800 },
];

/// Documents one after another, so that tokens do not add up: the outcomes of `serial_gives_the_outcomes...`.
const SERIAL: [Measured; 6] = [
    Measured { lengths: &[4096, 2048, 1024, 512], ranks: 8, tokens: ALL, makespan: 4_194_304.0, rows: 14_336 },
    Measured { lengths: &[1024; 3], ranks: 4, tokens: ALL, makespan: 1_048_576.0, rows: 1_024 },
    Measured { lengths: &[8192, 1024, 1024, 1024], ranks: 8, tokens: ALL, makespan: 8_912_896.0, rows: 62_464 },
    Measured { lengths: &SIX, ranks: 8, tokens: ALL, makespan: 4_500_000.0 + 2_250_000.0, rows: 52_500 },
    Measured { lengths: &SEVEN, ranks: 4, tokens: ALL, makespan: 2_000_000.0, rows: 2_000 },
    Measured { lengths: &[100], ranks: 8, tokens: ALL, makespan: 1_250.0, rows: 700 },
];
const ALL: Option<usize> = Some(usize::MAX);

#[test]
fn no_slower_and_fewer_rows_than_what_others_were_measured_to_do() {
    println!("ranks tokens | makespan: bound, ours, theirs | rows: bound, ours, theirs | lengths");
    let mut better = 0;
    for Measured { lengths, ranks, tokens, makespan, rows } in PACKED.iter().chain(&SERIAL) {
        let allowed = Pairs::whole(*makespan as u128);
        let schedule = schedule_within(lengths, *ranks, *tokens, allowed).unwrap();
        hold_to_the_rules(lengths, *ranks, &schedule);
        let ScheduleReport { makespan: ours_makespan, makespan_bound, rows_received, rows_bound, .. } = schedule.report;
        println!(
            "{ranks} {tokens:?} | {makespan_bound} {ours_makespan} {makespan} | {rows_bound} {rows_received} {rows} | {lengths:?}"
        );
        assert!(ours_makespan <= allowed && rows_received <= *rows, "{lengths:?}");
        // Left to itself, it is not slower either.
        let free = super::schedule(lengths, *ranks, *tokens).unwrap();
        hold_to_the_rules(lengths, *ranks, &free);
        assert!(free.report.makespan <= allowed, "{lengths:?}: {:?}", free.report);
        better += usize::from(rows_received < *rows);
    }
    assert_eq!(better, 6, "the last two leave nothing to gain");
}

#[test]
fn random_schedules_keep_the_rules_and_beat_the_reference() {
    let mut random = Random::new(11);
    let (mut ours, mut theirs) = (0, 0);
    for case in 0..120 {
        let ranks = 1 + random.below(16);
        let tokens = 1 + random.below(1000);
        let lengths = random.lengths(30, ranks * tokens);
        let budget = [Some(tokens), ALL][usize::from(case % 8 == 0)];
        let schedule = schedule(&lengths, ranks, budget).unwrap();
        hold_to_the_rules(&lengths, ranks, &schedule);
        let reference = reference::makespan(&lengths, ranks, budget.unwrap());
        assert!(schedule.report.makespan <= reference, "{ranks} {budget:?} {lengths:?}");
        let (tokens, limit) = (budget.unwrap(), schedule.report.makespan_limit);
        let task = Task { lengths: &lengths, ranks, tokens, limit, single: false, even: even_share(&lengths, ranks) };
        if let Some(Draft { rows, .. }) = reference::start(&task) {
            assert!(schedule.report.rows_received <= rows, "{ranks} {budget:?} {lengths:?}: {:?}", schedule.report);
            (ours, theirs) = (ours + schedule.report.rows_received, theirs + rows);
        }
    }
    println!("{ours} rows, the reference {theirs}");
    assert!(ours * 10 <= theirs * 9, "{ours} rows, the reference {theirs}");
}

#[test]
fn documents_one_after_another_are_no_faster_and_receive_no_less() {
    let mut random = Random::new(13);
    let (mut ours, mut theirs) = (0, 0);
    for _ in 0..60 {
        let ranks = 1 << random.below(5);
        let tokens = 1 + random.below(1000);
        let lengths = random.lengths(30, ranks * tokens);
        let (makespan, rows) = reference::serial(&lengths, ranks, tokens);
        let schedule = schedule_within(&lengths, ranks, ALL, makespan).unwrap();
        hold_to_the_rules(&lengths, ranks, &schedule);
        assert!(schedule.report.rows_received <= rows, "{ranks} {tokens} {lengths:?}: {:?}", schedule.report);
        (ours, theirs) = (ours + schedule.report.rows_received, theirs + rows);
    }
    println!("{ours} rows, one after another {theirs}");
    assert!(ours * 10 <= theirs * 9, "{ours} rows, one after another {theirs}");
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
                    state.insert(document, length, Place { batch, first, degree });
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
    let mut random = Random::new(5);
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

    let mut random = Random::new(3);
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
    let mut random = Random::new(17);
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
    let lengths = Random::new(9).lengths(60, 4000);
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
