//! Schedules against what other schedulers were measured to do, and against the reference's.

use super::super::*;
use super::{Draws, hold_to_the_rules};

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

/// No limit on tokens.
const ALL: Option<usize> = Some(usize::MAX);

/// Documents one after another, so that tokens do not add up: the outcomes of `serial_gives_the_outcomes...`.
const SERIAL: [Measured; 6] = [
    Measured { lengths: &[4096, 2048, 1024, 512], ranks: 8, tokens: ALL, makespan: 4_194_304.0, rows: 14_336 },
    Measured { lengths: &[1024; 3], ranks: 4, tokens: ALL, makespan: 1_048_576.0, rows: 1_024 },
    Measured { lengths: &[8192, 1024, 1024, 1024], ranks: 8, tokens: ALL, makespan: 8_912_896.0, rows: 62_464 },
    Measured { lengths: &SIX, ranks: 8, tokens: ALL, makespan: 4_500_000.0 + 2_250_000.0, rows: 52_500 },
    Measured { lengths: &SEVEN, ranks: 4, tokens: ALL, makespan: 2_000_000.0, rows: 2_000 },
    Measured { lengths: &[100], ranks: 8, tokens: ALL, makespan: 1_250.0, rows: 700 },
];

#[test]
fn no_slower_and_fewer_rows_than_what_others_were_measured_to_do() {
    println!("ranks tokens | makespan: bound, ours, theirs | rows: bound, ours, theirs | lengths");
    let mut better = 0;
    for Measured { lengths, ranks, tokens, makespan, rows } in PACKED.iter().chain(&SERIAL) {
        let allowed = Pairs::whole(*makespan as u128);
        let found = schedule_within(lengths, *ranks, *tokens, allowed).unwrap();
        hold_to_the_rules(lengths, *ranks, &found);
        let ScheduleReport { makespan: ours_makespan, makespan_bound, rows_received, rows_bound, .. } = found.report;
        println!(
            "{ranks} {tokens:?} | {makespan_bound} {ours_makespan} {makespan} | {rows_bound} {rows_received} {rows} \
             | {lengths:?}"
        );
        assert!(ours_makespan <= allowed && rows_received <= *rows, "{lengths:?}");
        // Left to itself, it is not slower either.
        let free = schedule(lengths, *ranks, *tokens).unwrap();
        hold_to_the_rules(lengths, *ranks, &free);
        assert!(free.report.makespan <= allowed, "{lengths:?}: {:?}", free.report);
        better += usize::from(rows_received < *rows);
    }
    assert_eq!(better, 6, "the last two leave nothing to gain");
}

#[test]
fn random_schedules_keep_the_rules_and_beat_the_reference() {
    let mut random = Draws::new(11);
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
    let mut random = Draws::new(13);
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
