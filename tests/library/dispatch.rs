//! The dispatch solver: upstream's vectors, exact covers, determinism, and how much it saves.

use std::collections::BTreeSet;
use std::ops::Range;

use context_parallel::degree::Runtime;
use context_parallel::layout::{Batch, Packed};
use context_parallel::mask::{Bands, Mask, Slice, SliceKind};
use context_parallel::order::Dealt;
use context_parallel::solve::dispatch::{
    Dispatch, DispatchOptions, PlacementReport, Problem, Remainder, Start, chunk_size, heap, heap_partition, improve,
    measure, padding, remote, solve,
};
use context_parallel::strategy::{CpStrategy, Magi};
use proptest::prelude::*;

use crate::packs::{self, Case, Pack, ROWS, cases, log_normal};

fn ratio(report: &PlacementReport) -> f64 {
    report.area_max as f64 * report.area.len() as f64 / report.area.iter().sum::<u128>() as f64
}

/// `rows_max` against the average.
fn rows(report: &PlacementReport) -> f64 {
    report.rows_max as f64 * report.rows.len() as f64 / report.rows.iter().sum::<u64>() as f64
}

/// The chunks that a heap placement gave to each rank.
fn chunks(dispatch: &Dispatch, chunk: usize) -> Vec<Vec<usize>> {
    let indices = |range: &Range<usize>| range.start / chunk..range.end.div_ceil(chunk);
    dispatch.parts.iter().map(|part| part.iter().flat_map(indices).collect()).collect()
}

/// `magi.md` section 3.3.
#[test]
fn heap_of_workloads() {
    let loads = |workloads: &[u128], ranks| {
        let parts = heap_partition(workloads, ranks).into_iter();
        parts.map(|part| part.iter().map(|&job| workloads[job]).sum()).collect::<Vec<u128>>()
    };
    assert_eq!(loads(&[2, 4, 3, 16, 13, 5, 9, 10], 4).into_iter().max(), Some(18));
    assert_eq!(loads(&[8, 7, 6, 5, 4, 2, 2, 2], 2), [19, 17]);
    // Equal jobs: the later first, each to the first of the least loaded ranks, and none gets more than its share.
    assert_eq!(heap_partition(&[1, 1, 1, 1, 0], 2), [[1, 3, 4].to_vec(), [0, 2].to_vec()]);
    assert_eq!(heap_partition(&[], 3), vec![Vec::<usize>::new(); 3]);
}

/// `magi.md` section 8.2: partitions, loads and keys received on 4 and 8 ranks.
#[test]
fn heap_of_mask_cases() {
    let case = |name: &str| cases().into_iter().find(|case| case.name == name).expect("a case");
    let dealt = |case: &Case, ranks| heap(&case.pack(ranks).problem(), case.chunk, Remainder::Uneven);
    let causal = case("varlen_block_causal_15k");
    let result = dealt(&causal, 4);
    let expected = [
        [3, 7, 11, 15, 23, 25, 29, 31].to_vec(),
        [2, 6, 10, 14, 22, 24, 28, 30].to_vec(),
        [1, 5, 9, 13, 17, 19, 21, 27].to_vec(),
        [0, 4, 8, 12, 16, 18, 20, 26].to_vec(),
    ];
    // The case is padded by two chunks, which no rank holds.
    let padded = heap(&causal.pack(4).problem(), 512, Remainder::Padded);
    let without: Vec<Vec<usize>> =
        expected.iter().map(|part| part.iter().copied().filter(|&chunk| chunk < 30).collect()).collect();
    assert_eq!(chunks(&padded, 512), without);
    assert_eq!(padded.report.area, [15728640, 15728640, 16252928, 16252928]);
    assert_eq!(result.report.area.iter().sum::<u128>(), 63963136);

    let multi = case("continuous_multi_masks_10k_with_q_overlap");
    let result = dealt(&multi, 4);
    let expected = [[3, 13, 14, 15, 19], [2, 10, 11, 12, 18], [1, 7, 8, 9, 17], [0, 4, 5, 6, 16]];
    assert_eq!(chunks(&result, 512), expected);
    assert_eq!(result.report.area, [8391680; 4]);

    let full = case("uneven_full_attn_10k");
    let result = dealt(&full, 4);
    let expected = [[2, 6, 10, 14, 18], [1, 5, 9, 13, 17], [0, 4, 8, 12, 16], [3, 7, 11, 15, 19]];
    assert_eq!(chunks(&result, 512), expected);
    assert_eq!(result.report.area, [25600000, 25600000, 25600000, 23200000]);

    let varlen = case("uneven_varlen_11k");
    let result = dealt(&varlen, 4);
    assert_eq!(chunks(&result, 1111), [[1, 6].to_vec(), [5, 7].to_vec(), [4, 8, 9].to_vec(), [0, 2, 3].to_vec()]);
    assert_eq!(result.report.area, [8913864, 8152296, 9182670, 10319901]);
    assert_eq!(result.report.received, [5555, 7278, 5333, 2667]);
    let result = dealt(&varlen, 8);
    let expected = [&[6][..], &[5], &[4], &[3], &[2], &[9], &[7, 8], &[0, 1]];
    assert_eq!(chunks(&result, 1111), expected);

    let small = case("sdpa_uneven_varlen_900");
    let result = dealt(&small, 4);
    let expected = [&[0, 8, 12, 13][..], &[3, 7, 10, 11], &[1, 5, 9, 14], &[2, 4, 6]];
    assert_eq!(chunks(&result, 63), expected);
    assert_eq!(result.report.area, [58086, 54180, 55632, 57552]);
    assert_eq!(result.report.received, [597, 408, 693, 261]);
}

/// Areas in the mask cases of `magi.md` section 8.2.
#[test]
fn areas_of_mask_cases() {
    let areas: Vec<_> = cases().iter().map(|case| case.pack(1).masks[0].0.area()).collect();
    let expected = [205520896, 25165824, 63963136, 54525952, 38377416, 33566720, 100000000, 36568731];
    assert_eq!(areas[..8], expected);
    assert_eq!(areas[8..], [177828, 249856, 475136, 225450]);
}

/// `magi.md` appendix A.1: areas of chunks, tokens held and received per rank, on 4 ranks.
#[test]
fn heap_of_appendix() {
    for (name, case, areas, loads, host, received) in packs::appendix() {
        let pack = case.pack(4);
        let result = heap(&pack.problem(), case.chunk, Remainder::Uneven);
        let single: Vec<_> =
            (0..case.tokens / case.chunk).map(|i| vec![i * case.chunk..(i + 1) * case.chunk; 1]).collect();
        assert_eq!(measure(&pack.problem(), &single).area, areas, "{name}");
        if !loads.is_empty() {
            assert_eq!(result.report.area, loads, "{name}");
        }
        assert_eq!(result.parts, host, "{name}");
        let ranges: Vec<_> = result.parts.iter().map(|part| remote(&pack.masks[0].0, part)).collect();
        assert_eq!(ranges, received, "{name}");
        let tokens: Vec<_> = received.iter().map(|part| part.iter().map(|range| range.len() as u64).sum()).collect();
        assert_eq!(result.report.received, tokens as Vec<u64>, "{name}");
    }
}

/// Counts everything cell by cell.
fn counted(problem: &Problem, parts: &[Vec<Range<usize>>]) -> [Vec<u64>; 3] {
    let tokens = problem.tokens();
    let mut owner = vec![usize::MAX; tokens];
    for (rank, range) in parts.iter().enumerate().flat_map(|(rank, part)| part.iter().map(move |range| (rank, range))) {
        for token in range.clone() {
            assert_eq!(owner[token], usize::MAX, "token {token} is held twice");
            owner[token] = rank;
        }
    }
    assert!(owner.iter().all(|&rank| rank < problem.ranks.max(1)));
    let [mut area, mut received, mut sent] = [(); 3].map(|()| vec![0; parts.len()]);
    for (bands, weight) in problem.masks {
        for k in 0..tokens {
            let mut needed = vec![false; parts.len()];
            for q in (0..tokens).filter(|&q| bands.contains(q as i64, k as i64)) {
                area[owner[q]] += weight;
                needed[owner[q]] = true;
            }
            needed[owner[k]] = false;
            for rank in (0..parts.len()).filter(|&rank| needed[rank]) {
                received[rank] += weight;
                sent[owner[k]] += weight;
            }
        }
    }
    [area, received, sent]
}

fn expect_sound(problem: &Problem, dispatch: &Dispatch) {
    let ranks = problem.ranks.max(1);
    let Dispatch { parts, report } = dispatch;
    assert_eq!(parts.len(), ranks);
    for part in parts {
        assert!(part.iter().all(|range| !range.is_empty()));
        assert!(part.windows(2).all(|pair| pair[0].end < pair[1].start), "{part:?}");
    }
    let [area, received, sent] = counted(problem, parts);
    assert_eq!(report.area, area.into_iter().map(u128::from).collect::<Vec<_>>());
    assert_eq!((&report.received, &report.sent), (&received, &sent));
    assert_eq!(report.rows.iter().sum::<u64>(), problem.tokens() as u64);
    assert!(report.area_bound <= report.area_max && report.received_bound <= report.traffic(), "{report:?}");
    assert_eq!(&measure(problem, parts), report);
}

fn any_mask(documents: usize) -> impl Strategy<Value = Mask> {
    let width = || prop::option::of(0usize..9);
    prop_oneof![
        Just(Mask::Full),
        Just(Mask::Causal),
        (width(), width()).prop_map(|(left, right)| Mask::Window { left, right }),
        prop::collection::vec(0usize..9, documents).prop_map(Mask::Prefix),
    ]
}

fn any_pack() -> impl Strategy<Value = Pack> {
    prop::collection::vec((0usize..30, 0usize..4), 0..8).prop_flat_map(|lengths| {
        let masks = prop::collection::vec((any_mask(lengths.len()), 0u64..4), 0..3);
        (Just(lengths), masks, 0usize..8).prop_map(|(lengths, masks, ranks)| {
            let (valid, stored): (Vec<_>, Vec<_>) =
                lengths.iter().map(|(valid, spare)| (*valid, valid + spare)).unzip();
            let batch = Packed::new(&valid, &stored).expect("a pack");
            let masks = masks.iter().map(|(mask, weight)| (mask.lower(&batch).expect("a mask"), *weight)).collect();
            let documents = (0..batch.documents()).map(|i| batch.document(i).stored_range()).collect();
            Pack { masks, documents, ranks }
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 160, ..ProptestConfig::default() })]

    #[test]
    fn every_placement_is_sound(pack in any_pack(), chunk in 1usize..20, effort in 0u64..600, slack in 0u64..300) {
        let problem = pack.problem();
        let options = DispatchOptions { effort, area_slack: slack, grain: Some(chunk), ..DispatchOptions::default() };
        let solved = solve(&problem, &options);
        expect_sound(&problem, &solved);
        prop_assert_eq!(&solve(&problem, &options), &solved);
        for remainder in [Remainder::Uneven, Remainder::Padded] {
            expect_sound(&problem, &heap(&problem, chunk, remainder));
        }
        for start in Start::ALL {
            expect_sound(&problem, &start.place(&problem));
        }
        expect_sound(&problem, &improve(&problem, &options, &solved.parts));
    }
}

/// Masks that cross documents, in all shapes.
#[test]
fn mask_cases_are_sound() {
    for (_, case, ..) in packs::appendix() {
        for ranks in [1, 3, 4, 7] {
            let pack = case.pack(ranks);
            expect_sound(
                &pack.problem(),
                &solve(&pack.problem(), &DispatchOptions { effort: 500, ..DispatchOptions::default() }),
            );
        }
    }
}

#[test]
fn corner_cases() {
    let solved = |lengths: &[usize], ranks| {
        solve(&Pack::new(lengths, &Mask::Causal, ranks).problem(), &DispatchOptions::default())
    };
    let empty = vec![Vec::<Range<usize>>::new(); 3];
    assert_eq!(solved(&[], 3).parts, empty);
    assert_eq!(solved(&[0, 0], 3).parts, empty);
    assert_eq!(solved(&[5, 0, 4], 1).parts, vec![vec![0..9; 1]; 1]);
    assert_eq!(solved(&[5, 0, 4], 0).parts, vec![vec![0..9; 1]; 1]);
    // Fewer tokens than ranks: no rank has more than one.
    assert_eq!(solved(&[2, 0, 1], 5).report.rows_max, 1);
    // A mask without cells, or none: even rows, nothing sent.
    for masks in [vec![], vec![(Bands::default(), 3)]] {
        let problem = Problem { masks: &masks, documents: &[0..100, 100..103], ranks: 4 };
        let report = solve(&problem, &DispatchOptions::default()).report;
        assert_eq!((report.area_max, report.traffic(), report.received_bound), (0, 0, 0));
        assert!(report.rows_max <= 27, "{report:?}");
    }
    // A million tokens in one document, with a weight that takes areas past 64 bits.
    let mut pack = Pack::new(&[1 << 20], &Mask::Causal, 6);
    pack.masks[0].1 = 1 << 40;
    let result = solve(&pack.problem(), &DispatchOptions { effort: 200, ..DispatchOptions::default() });
    assert_eq!(result.report.area.iter().sum::<u128>(), ((1 << 19) * ((1 << 20) + 1)) << 40);
    assert!(ratio(&result.report) <= 1.05 && rows(&result.report) <= 1.05);
}

#[test]
#[should_panic(expected = "give all of 0..8 to 2 ranks")]
fn what_is_no_placement_cannot_be_improved() {
    let pack = Pack::new(&[8], &Mask::Full, 2);
    improve(&pack.problem(), &DispatchOptions::default(), &[vec![0..4; 1], vec![5..8; 1]]);
}

/// Layers weigh masks: with many full layers, areas are even there; with many narrow windows, only in sum.
#[test]
fn masks_are_weighed() {
    let lengths = [900, 300, 200, 200, 1000, 600];
    let window = Pack::new(&lengths, &Mask::sliding(8).unwrap(), 4);
    let full = Pack::new(&lengths, &Mask::Full, 4);
    let both = |layers: [u64; 2]| {
        let masks = [(window.masks[0].0.clone(), layers[0]), (full.masks[0].0.clone(), layers[1])];
        solve(&Problem { masks: &masks, ..full.problem() }, &DispatchOptions::default()).parts
    };
    let alone = |pack: &Pack| solve(&pack.problem(), &DispatchOptions::default()).parts;
    assert_eq!(both([1, 0]), alone(&window));
    assert_eq!(both([0, 1]), alone(&full));
    let uneven = |layers| ratio(&measure(&full.problem(), &both(layers)));
    assert!(uneven([1, 10_000]) <= 1.06, "{}", uneven([1, 10_000]));
    assert!(uneven([10_000, 1]) > 1.2, "{}", uneven([10_000, 1]));
}

/// The bound of what must be received is met where documents can only be cut one way.
#[test]
fn bounds_are_met() {
    let full = Pack::new(&[4096], &Mask::Full, 4);
    let report = solve(&full.problem(), &DispatchOptions::default()).report;
    assert_eq!((report.traffic(), report.received_bound), (3 * 4096, 3 * 4096));
    assert_eq!(report.area_bound, 4096 * 1024);
    // Causal, cut from the end where each rank has as many cells as it may.
    let causal = Pack::new(&[4096], &Mask::Causal, 2);
    let parts = [vec![0..2896; 1], vec![2896..4096; 1]];
    let report = measure(&causal.problem(), &parts);
    assert!(report.received_bound <= report.traffic() && report.received_bound + 2 >= report.traffic(), "{report:?}");
    // One rank can hold everything: nothing must be sent.
    assert_eq!(measure(&causal.problem(), &[vec![0..4096; 1], vec![]]).received_bound, 0);
}

/// A slice in the form of appendix A.2: its type, local queries, and keys.
type Part = (SliceKind, Range<usize>, Range<usize>);

fn cells(parts: &[Part]) -> BTreeSet<(usize, usize)> {
    let of_part = |(kind, q, k): &Part| {
        let band = Slice { q: q.clone(), k: k.clone(), kind: *kind }.band().expect("a slice with cells");
        let row = move |q: i64| band.keys(q).map(move |k| (q as usize, k as usize)).collect::<Vec<_>>();
        q.clone().flat_map(move |q| row(q as i64)).collect::<Vec<_>>()
    };
    parts.iter().flat_map(of_part).collect()
}

/// `magi.md` appendix A.2: for the placement of case "tc2", the cells of each rank's own keys by local query and local
/// key, and those of remote keys, cut into pieces of 4, by local query and token.
#[test]
fn host_and_remote_cells_of_appendix() {
    use SliceKind::{Causal as C, Full as F};
    let host: [&[Part]; 4] = [
        &[(C, 0..6, 2..8), (F, 6..8, 2..8), (F, 8..16, 8..16)],
        &[(C, 0..8, 0..10), (C, 8..11, 0..13), (F, 11..16, 13..16)],
        &[(C, 0..6, 0..8), (F, 8..13, 8..16), (F, 13..16, 8..16)],
        &[(F, 0..8, 0..11), (F, 8..10, 0..11), (C, 10..14, 5..16), (F, 14..16, 5..16)],
    ];
    let far: [&[&[Part]]; 4] = [
        &[
            &[(C, 6..8, 24..26), (F, 8..16, 45..47)],
            &[(F, 8..16, 47..48), (F, 8..16, 56..59)],
            &[(F, 8..16, 59..63)],
            &[(F, 8..16, 63..64)],
        ],
        &[&[(F, 11..16, 48..52)], &[(F, 11..16, 52..56)], &[(F, 11..16, 56..60)], &[(F, 11..16, 60..64)]],
        &[
            &[(F, 0..6, 18..22)],
            &[(F, 0..6, 22..24), (C, 6..8, 32..34)],
            &[(F, 8..13, 45..49)],
            &[(F, 8..13, 49..53)],
            &[(F, 8..13, 53..56), (F, 13..16, 53..56)],
        ],
        &[&[(C, 14..16, 16..18)]],
    ];
    let (_, case, ..) = packs::appendix().into_iter().find(|(name, ..)| *name == "tc2").expect("the case");
    let pack = case.pack(4);
    let bands = &pack.masks[0].0;
    for (rank, part) in heap(&pack.problem(), case.chunk, Remainder::Uneven).parts.iter().enumerate() {
        let own: Vec<usize> = part.iter().flat_map(Clone::clone).collect();
        let attended = |keys: &[usize]| {
            let cell = |(row, &q): (usize, &usize)| {
                let index = (0..keys.len()).filter(move |&i| bands.contains(q as i64, keys[i] as i64));
                index.map(move |i| (row, i)).collect::<Vec<_>>()
            };
            own.iter().enumerate().flat_map(cell).collect::<BTreeSet<_>>()
        };
        assert_eq!(attended(&own), cells(host[rank]), "own keys of rank {rank}");
        let keys: Vec<usize> = remote(bands, part).into_iter().flatten().collect();
        let pieces: Vec<BTreeSet<(usize, usize)>> =
            keys.chunks(4).map(|piece| attended(piece).into_iter().map(|(row, i)| (row, piece[i])).collect()).collect();
        assert_eq!(pieces, far[rank].iter().map(|parts| cells(parts)).collect::<Vec<_>>(), "pieces of rank {rank}");
    }
}

/// `magi.md` section 1.2.
#[test]
fn chunks_and_padding() {
    let cases = [
        (1024, 6, 208, 224),
        (10244, 8, 451, 580),
        (3840, 10, 128, 0),
        (42817, 12, 892, 10703),
        (13000, 17, 369, 5819),
        (1789, 2, 900, 11),
    ];
    for (tokens, ranks, chunk, expected) in cases {
        assert_eq!(padding(tokens, ranks, chunk), expected, "{tokens} on {ranks} in chunks of {chunk}");
    }
    // Eight chunks per rank, or smaller ones where that is asked for.
    assert_eq!(
        [chunk_size(1024, 6, None), chunk_size(65536, 8, None), chunk_size(65536, 8, Some(512))],
        [22, 1024, 512]
    );
    assert_eq!([chunk_size(0, 4, None), chunk_size(10, 0, Some(0)), padding(10, 0, 0)], [1, 1, 0]);
}

/// `magi.md` section 3.4: at the balance of the heap placement or 1.05, with even rows, no more traffic than it has.
#[test]
fn named_cases_beat_the_heap() {
    for (case, ranks) in cases().iter().flat_map(|case| [(case, 4), (case, 8)]) {
        let pack = case.pack(ranks);
        let remainder = if case.padded { Remainder::Padded } else { Remainder::Uneven };
        let dealt = heap(&pack.problem(), case.chunk, remainder);
        // As the strategy places it.
        let options = DispatchOptions { heap: Some((case.chunk, remainder)), ..DispatchOptions::default() };
        let batch = Packed::from_lengths(&[case.tokens]).unwrap();
        let table = Magi::new(Runtime(ranks)).with_options(options).table(&batch, &[(case.mask(), 1)]).unwrap();
        let solved = solve(&pack.problem(), &options);
        assert_eq!(table, Dealt::new(case.tokens, &solved.parts).unwrap());
        let what = format!("{} on {ranks}: {:?} {:?}", case.name, dealt.report, solved.report);
        assert!(solved.report.traffic() <= dealt.report.traffic(), "{what}");
        assert!(ratio(&solved.report) <= ratio(&dealt.report).max(1.05), "{what}");
        assert!(rows(&solved.report) <= 1.05, "{what}");
    }
}

/// `varlen_full_attn_12k` on 4 ranks, documents known.
#[test]
fn six_equal_documents() {
    let pack = Pack::new(&[2048; 6], &Mask::Full, 4);
    let dealt = heap(&pack.problem(), 512, Remainder::Uneven);
    let solved = solve(&pack.problem(), &DispatchOptions::default());
    assert!(4 * solved.report.traffic() <= dealt.report.traffic());
    assert!(ratio(&solved.report) <= 1.05 && rows(&solved.report) <= 1.05);
}

/// Random packs: how many times fewer keys are received than with the heap placement, at its balance or 1.05.
#[test]
fn packs_beat_the_heap() {
    for (mask, ranks) in [Mask::Causal, Mask::Full].iter().flat_map(|mask| [8, 16, 32, 64].map(|ranks| (mask, ranks))) {
        let (mut before, mut after) = (0, 0);
        for seed in 0..20 {
            let pack = Pack::new(&log_normal(ranks, seed), mask, ranks);
            let dealt = heap(&pack.problem(), 512, Remainder::Uneven).report;
            let solved = solve(&pack.problem(), &DispatchOptions::default()).report;
            assert!(ratio(&solved) <= ratio(&dealt).max(1.05), "{mask:?} on {ranks}, seed {seed}: {}", ratio(&solved));
            assert!(solved.rows_max as f64 <= 1.05 * ROWS as f64, "{mask:?} on {ranks}, seed {seed}: {solved:?}");
            before += dealt.traffic();
            after += solved.traffic();
        }
        let saved = before as f64 / after as f64;
        assert!(saved >= if ranks == 8 { 1.7 } else { 2.0 }, "{mask:?} on {ranks} ranks: {saved:.2}");
    }
}
