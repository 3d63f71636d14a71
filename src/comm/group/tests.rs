//! Group collectives: the routes of every split, what is done with what arrives, and that reduce is cast's adjoint.

use proptest::prelude::*;

use super::*;
use crate::comm::threads::run;
use crate::error::Error;

type Lists<T> = [Vec<T>; 4];

/// Splits of these rows with these ranks, on each of 4 ranks.
fn fans(rows: &Lists<usize>, ranks: &[&[&[usize]]; 4]) -> Lists<Fan> {
    std::array::from_fn(|at| {
        assert_eq!(rows[at].len(), ranks[at].len());
        let both = rows[at].iter().zip(ranks[at]);
        both.map(|(&rows, ranks)| Fan { rows, ranks: ranks.to_vec() }).collect()
    })
}

fn legs(rows: &Lists<usize>, ranks: &Lists<usize>) -> Lists<Leg> {
    std::array::from_fn(|at| {
        assert_eq!(rows[at].len(), ranks[at].len());
        rows[at].iter().zip(&ranks[at]).map(|(&rows, &rank)| Leg { rows, rank }).collect()
    })
}

/// What each of 4 ranks holds after a cast into a buffer of `room` elements, or of as many as come.
fn cast<T: Element + Default>(input: &Lists<T>, fans: &Lists<Fan>, legs: &Lists<Leg>, room: Option<usize>) -> Lists<T> {
    check("group_cast", fans, legs).unwrap();
    let outputs = run(4, |comm| {
        let me = comm.rank();
        let rows = legs[me].iter().map(|leg| leg.rows).sum();
        let mut output = Buffer::from_slice(&vec![T::default(); room.unwrap_or(rows)]);
        group_cast(&comm, &Buffer::from_slice(&input[me]), 1, &fans[me], &legs[me], &mut output)?;
        Ok(output.to_vec())
    });
    outputs.unwrap().try_into().unwrap()
}

fn counting(each: i64) -> Lists<i64> {
    std::array::from_fn(|rank| (each * rank as i64..each * (rank as i64 + 1)).collect())
}

const CASE_1: [&[&[usize]]; 4] =
    [&[&[1], &[1, 2], &[2]], &[&[3], &[0, 3], &[2]], &[&[3], &[0, 3], &[1]], &[&[1], &[0, 1], &[2]]];

fn case_1() -> (Lists<Fan>, Lists<Leg>) {
    let fans = fans(&[vec![2, 1, 1], vec![1, 1, 2], vec![1, 1, 2], vec![1, 1, 2]], &CASE_1);
    let sources = [vec![1, 2, 3], vec![0, 2, 0, 3, 3], vec![0, 0, 1, 3], vec![1, 1, 2, 2]];
    (fans, legs(&[vec![1, 1, 1], vec![2, 2, 1, 1, 1], vec![1, 1, 2, 2], vec![1, 1, 1, 1]], &sources))
}

#[test]
fn a_cast_interleaves_one_queue_per_sender() {
    let (fans, legs) = case_1();
    let expected = [vec![5, 9, 13], vec![0, 1, 10, 11, 2, 12, 13], vec![2, 3, 6, 7, 14, 15], vec![4, 5, 8, 9]];
    assert_eq!(cast(&counting(4), &fans, &legs, None), expected);
}

#[test]
fn padding_and_room_to_spare_change_nothing() {
    let (mut fans, mut legs) = case_1();
    for rank in 0..4 {
        fans[rank].resize(6, Fan { rows: 0, ranks: vec![4] });
        legs[rank].resize(6, Leg { rows: 0, rank: 4 });
    }
    let outputs = cast(&counting(4), &fans, &legs, Some(16));
    let expected = [vec![5, 9, 13], vec![0, 1, 10, 11, 2, 12, 13], vec![2, 3, 6, 7, 14, 15], vec![4, 5, 8, 9]];
    for (output, expected) in outputs.iter().zip(expected) {
        assert_eq!(output[..expected.len()], expected);
        assert_eq!(output[expected.len()..], vec![0; 16 - expected.len()]);
    }
}

#[test]
fn a_split_goes_to_oneself_or_to_nobody() {
    let mut ranks = CASE_1;
    ranks[0] = &[&[0, 1], &[1, 2], &[]];
    let fans = fans(&[vec![2, 1, 1], vec![1, 1, 2], vec![1, 1, 2], vec![1, 1, 2]], &ranks);
    let sources = [vec![1, 2, 3, 0], vec![0, 2, 0, 3, 3], vec![0, 1, 3], vec![2, 2, 1, 1]];
    let legs = legs(&[vec![1, 1, 1, 2], vec![2, 2, 1, 1, 1], vec![1, 2, 2], vec![1, 1, 1, 1]], &sources);
    let expected = [vec![5, 9, 13, 0, 1], vec![0, 1, 10, 11, 2, 12, 13], vec![2, 6, 7, 14, 15], vec![8, 9, 4, 5]];
    assert_eq!(cast(&counting(4), &fans, &legs, None), expected);
    // A log-sum-exp takes the same way as the rows that it belongs to.
    let lse = [
        vec![0.1f32, 1.2, 2.3, 3.4],
        vec![4.5, 5.6, 6.7, 7.8],
        vec![8.9, 9.1, 10.2, 11.3],
        vec![12.4, 13.5, 14.6, 15.7],
    ];
    let along: Lists<f32> =
        expected.map(|rows| rows.iter().map(|&row| lse[row as usize / 4][row as usize % 4]).collect());
    assert_eq!(cast(&lse, &fans, &legs, None), along);
}

#[test]
fn all_to_all_is_a_cast() {
    let each = |count: usize| -> Lists<usize> { std::array::from_fn(|_| vec![count; 4]) };
    let everyone: [&[&[usize]]; 4] = [&[&[0], &[1], &[2], &[3]]; 4];
    let ordered: Lists<usize> = std::array::from_fn(|_| (0..4).collect());
    let transposed: Lists<i64> = std::array::from_fn(|rank| (0..4).map(|from| 4 * from + rank as i64).collect());
    assert_eq!(cast(&counting(4), &fans(&each(1), &everyone), &legs(&each(1), &ordered), None), transposed);

    let sent = fans(&[vec![2, 2, 2, 2], vec![1, 3, 1, 3], vec![3, 1, 1, 3], vec![2, 1, 2, 3]], &everyone);
    let taken = legs(&[vec![2, 1, 3, 2], vec![2, 3, 1, 1], vec![2, 1, 1, 2], vec![2, 3, 3, 3]], &ordered);
    let expected = [
        vec![0, 1, 8, 16, 17, 18, 24, 25],
        vec![2, 3, 9, 10, 11, 19, 26],
        vec![4, 5, 12, 20, 27, 28],
        vec![6, 7, 13, 14, 15, 21, 22, 23, 29, 30, 31],
    ];
    assert_eq!(cast(&counting(8), &sent, &taken, None), expected);
}

/// The routes of the reduce cases, and their input.
fn reduction() -> (Lists<Leg>, Lists<Fan>, Lists<f64>) {
    let rows = [vec![1, 1, 1, 2], vec![2, 2, 1, 1, 1], vec![1, 2, 2], vec![1, 1, 1, 1, 1]];
    let legs = legs(&rows, &[vec![1, 2, 3, 0], vec![0, 2, 0, 3, 3], vec![0, 1, 3], vec![1, 1, 0, 2, 2]]);
    let sources: [&[&[usize]]; 4] =
        [&[&[0, 1], &[1, 2], &[3]], &[&[3], &[0, 3], &[2]], &[&[3], &[0, 3], &[1]], &[&[1], &[0, 1], &[2]]];
    let fans = fans(&[vec![2, 1, 1], vec![1, 1, 2], vec![1, 1, 2], vec![1, 1, 2]], &sources);
    let numbers = |range: Range<u32>| range.map(f64::from).collect();
    (legs, fans, [numbers(0..5), numbers(5..12), numbers(12..17), numbers(17..22)])
}

#[test]
fn a_reduce_adds_to_what_is_there() {
    let (legs, fans, input) = reduction();
    check("group_reduce", &fans, &legs).unwrap();
    let sums = run(4, |comm| {
        let me = comm.rank();
        let mut output = Buffer::from_slice(&[me as f64 + 1.0; 4]);
        group_reduce_sum(&comm, &Buffer::from_slice(&input[me]), 1, &legs[me], &fans[me], &mut output)?;
        Ok(output.to_vec())
    });
    let expected = [[9, 11, 22, 20], [19, 20, 15, 16], [23, 25, 10, 11], [14, 17, 19, 20]];
    assert_eq!(sums.unwrap(), expected.map(|row| row.map(f64::from).to_vec()));
}

#[test]
fn a_mean_counts_what_is_there() {
    let (legs, fans, input) = reduction();
    let old = [[1, 2, 0, 1], [1, 0, 1, 0], [4, 2, 3, 4], [2, 2, 3, 2]].map(|row| row.map(f64::from));
    let means = run(4, |comm| {
        let me = comm.rank();
        let mut output = Buffer::from_slice(&old[me]);
        group_reduce_mean(&comm, &Buffer::from_slice(&input[me]), 1, &legs[me], &fans[me], &mut output)?;
        Ok(output.to_vec())
    });
    let expected = [[3, 4, 7, 10], [9, 6, 7, 7], [12, 8, 5, 6], [6, 5, 9, 9]];
    assert_eq!(means.unwrap(), expected.map(|row| row.map(f64::from).to_vec()));
}

/// Merges with these log-sum-exps sent and these held, on outputs that hold rank + 1.
fn merged(lse: &Lists<f64>, old: [f64; 4]) -> Vec<(Vec<f64>, Vec<f64>)> {
    let (legs, fans, input) = reduction();
    let merged = run(4, |comm| {
        let me = comm.rank();
        let (mut out, mut sum) = (Buffer::from_slice(&[me as f64 + 1.0; 4]), Buffer::from_slice(&[old[me]; 4]));
        let input = (&Buffer::from_slice(&input[me]), &Buffer::from_slice(&lse[me]));
        group_reduce_lse(&comm, input, (1, 1), &legs[me], &fans[me], (&mut out, &mut sum))?;
        Ok((out.to_vec(), sum.to_vec()))
    });
    merged.unwrap()
}

#[test]
fn partial_attention_results_are_merged() {
    let lse = [
        vec![0.0, 1.0, 2.0, -1.0, -2.0],
        vec![0.5, 1.5, 2.5, 0.0, -1.5, -2.5, -3.5],
        vec![0.25, 1.25, 2.25, -1.25, -2.25],
        vec![0.75, 1.75, 2.75, -1.75, -2.75],
    ];
    let out = [
        [4.6351, 5.9414, 11.5559, 19.0],
        [12.1877, 13.6155, 10.5503, 12.8558],
        [4.0215, 2.2208, 6.2703, 4.3447],
        [5.0946, 2.1294, 8.8161, 6.6724],
    ];
    let sum = [
        [0.7014, 1.5298, 0.4102, 2.75],
        [1.1369, 2.0483, 1.5019, 2.3502],
        [1.0620, 1.7048, 2.7014, 1.3133],
        [-0.7986, 2.0525, -0.4241, -0.7481],
    ];
    let near = |found: &[f64], expected: &[f64]| {
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 6e-5), "{found:?} is not {expected:?}");
    };
    for (rank, (outs, sums)) in merged(&lse, [f64::NEG_INFINITY, 0.0, 1.0, -1.0]).iter().enumerate() {
        near(outs, &out[rank]);
        near(sums, &sum[rank]);
    }
}

#[test]
fn where_no_key_was_attended_nothing_comes_out() {
    let never = f64::NEG_INFINITY;
    let lse: Lists<f64> = [5, 7, 5, 5].map(|rows| vec![never; rows]);
    for (rank, (out, sum)) in merged(&lse, [never, 0.0, never, 1.0]).into_iter().enumerate() {
        let kept = [0.0, 2.0, 0.0, 4.0][rank];
        assert_eq!((out, sum), (vec![kept; 4], vec![[never, 0.0, never, 1.0][rank]; 4]));
    }
}

#[test]
fn heads_are_merged_one_by_one() {
    // Two rows from rank 1, two heads of three; the first head of row 1 is all rank 0's, the second all rank 1's.
    let never = f32::NEG_INFINITY;
    let results = run(2, |comm| {
        let send = comm.rank() == 1;
        let rows = if send { 2 } else { 0 };
        let input =
            (&Buffer::from_slice(&vec![3f32; rows * 6]), &Buffer::from_slice(&[0.0, 0.0, never, 2.0][..rows * 2]));
        let (mut out, mut lse) = (Buffer::from_slice(&[1f32; 12]), Buffer::from_slice(&[0.0, never, 1.0, never]));
        let legs: Vec<Leg> = send.then_some(Leg { rows: 2, rank: 0 }).into_iter().collect();
        let fans: Vec<Fan> = (!send).then_some(Fan { rows: 2, ranks: vec![1] }).into_iter().collect();
        group_reduce_lse(&comm, input, (2, 3), &legs, &fans, (&mut out, &mut lse))?;
        Ok((out.to_vec(), lse.to_vec()))
    });
    let (out, lse) = &results.unwrap()[0];
    assert_eq!(
        out.iter().map(|value| value.round()).collect::<Vec<_>>(),
        [2., 2., 2., 3., 3., 3., 1., 1., 1., 3., 3., 3.]
    );
    assert!((lse[0] - 2f32.ln()).abs() < 1e-6);
    assert_eq!(lse[1..], [0.0, 1.0, 2.0]);
}

#[test]
fn splits_that_do_not_go_together_are_refused() {
    let refused = run(2, |comm| {
        let input = Buffer::from_slice(&[1f32, 2.0]);
        let mut output = Buffer::from_slice(&[0f32; 2]);
        let other = 1 - comm.rank();
        let me = comm.rank();
        let mut cast = |rows: usize, ranks: &[usize], legs: &[Leg]| {
            group_cast(&comm, &input, 1, &[Fan { rows, ranks: ranks.to_vec() }], legs, &mut output)
        };
        let leg = |rows, rank| Leg { rows, rank };
        let splits = [
            cast(2, &[2], &[]),
            cast(2, &[other], &[leg(2, 7)]),
            cast(2, &[1, 0], &[leg(2, me), leg(2, other)]),
            cast(2, &[1, 1], &[leg(2, other)]),
            cast(2, &[me], &[]),
            cast(2, &[me], &[leg(1, me), leg(1, me)]),
            cast(2, &[], &[leg(1, me)]),
        ];
        let counts = [
            cast(1, &[other], &[leg(1, other)]),
            cast(2, &[other], &[leg(3, other)]),
            cast(usize::MAX, &[other], &[leg(2, other)]),
            cast(2, &[other], &[leg(usize::MAX, other), leg(3, other)]),
        ];
        let is_splits =
            |e: &Result<()>| matches!(e, Err(Error::Comm(CommError::Splits { .. } | CommError::Counts { .. })));
        let is_counts = |e: &Result<()>| matches!(e, Err(Error::Comm(CommError::Counts { .. })));
        Ok((splits.iter().map(is_splits).collect::<Vec<_>>(), counts.iter().all(is_counts)))
    });
    assert_eq!(refused.unwrap(), vec![(vec![true; 7], true); 2]);
}

#[test]
fn lengths_that_disagree_between_ranks_are_errors() {
    let fans = [vec![Fan { rows: 2, ranks: vec![1] }, Fan { rows: 1, ranks: vec![1] }], vec![]];
    let legs = [vec![], vec![Leg { rows: 1, rank: 0 }, Leg { rows: 2, rank: 0 }]];
    let error = check("group_cast", &fans, &legs).unwrap_err().to_string();
    assert!(error.contains("fans of [2, 1] rows with rank 1, which has legs of [1, 2]"), "{error}");
    let error = run(2, |comm| {
        let me = comm.rank();
        let input = Buffer::from_slice(&vec![0f32; 3 * (1 - me)]);
        group_cast(&comm, &input, 1, &fans[me], &legs[me], &mut Buffer::from_slice(&[0f32; 3]))
    });
    assert!(matches!(error, Err(Error::Comm(CommError::Protocol { peer: 0, .. }))), "{error:?}");
}

/// Random routes for `ranks` ranks: fans, and legs that interleave each receiver's queues.
fn routes() -> impl Strategy<Value = (Vec<Vec<Fan>>, Vec<Vec<Leg>>)> {
    let fan = |ranks: usize| (0..4usize, prop::collection::vec(any::<bool>(), ranks));
    let fans =
        (1..5usize).prop_flat_map(move |ranks| prop::collection::vec(prop::collection::vec(fan(ranks), 0..5), ranks));
    (fans, prop::collection::vec(any::<prop::sample::Index>(), 64)).prop_map(|(fans, picks)| {
        let named = |chosen: Vec<bool>| (0..chosen.len()).filter(|&rank| chosen[rank]).collect();
        let fans: Vec<Vec<Fan>> = fans
            .into_iter()
            .map(|fans| fans.into_iter().map(|(rows, chosen)| Fan { rows, ranks: named(chosen) }).collect())
            .collect();
        let queue = |from: usize, to: usize| -> VecDeque<usize> {
            fans[from].iter().filter(|fan| fan.ranks.contains(&to)).map(|fan| fan.rows).collect()
        };
        let mut picks = picks.iter().cycle();
        let legs = (0..fans.len()).map(|to| {
            let mut queues: Vec<_> = (0..fans.len()).map(|from| (from, queue(from, to))).collect();
            let mut legs = Vec::new();
            loop {
                queues.retain(|(_, queue)| !queue.is_empty());
                if queues.is_empty() {
                    return legs;
                }
                let at = picks.next().map_or(0, |pick| pick.index(queues.len()));
                let rank = queues[at].0;
                legs.extend(queues[at].1.pop_front().map(|rows| Leg { rows, rank }));
            }
        });
        let legs = legs.collect();
        (fans, legs)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// `<cast x, y> = <x, reduce y>` over all ranks, in whole numbers, so exactly.
    #[test]
    fn a_reduce_is_the_adjoint_of_a_cast((fans, legs) in routes(), width in 1..3usize) {
        check("group_cast", &fans, &legs).unwrap();
        let value = |seed: usize, at: usize| (2 * ((seed * 7919 + at * 104_729 + 13) % 1009)) as f64 - 1007.0;
        let products = run(fans.len(), |comm| {
            let me = comm.rank();
            let sent: usize = fans[me].iter().map(|fan| fan.rows).sum::<usize>() * width;
            let taken: usize = legs[me].iter().map(|leg| leg.rows).sum::<usize>() * width;
            let x = Buffer::from_slice(&Vec::from_iter((0..sent).map(|at| value(me, at))));
            let y = Buffer::from_slice(&Vec::from_iter((0..taken).map(|at| value(me + 50, at))));
            let mut cast = Buffer::from_slice(&vec![0f64; taken]);
            group_cast(&comm, &x, width, &fans[me], &legs[me], &mut cast)?;
            let mut reduced = Buffer::from_slice(&vec![0f64; sent]);
            group_reduce_sum(&comm, &y, width, &legs[me], &fans[me], &mut reduced)?;
            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            Ok((dot(&cast, &y), dot(&x, &reduced), dot(&cast, &cast)))
        }).unwrap();
        let sum = |side: fn(&(f64, f64, f64)) -> f64| products.iter().map(side).sum::<f64>();
        prop_assert_eq!(sum(|p| p.0), sum(|p| p.1));
        let arrives = legs.iter().flatten().any(|leg| leg.rows > 0);
        prop_assert_eq!(sum(|p| p.2) > 0.0, arrives);
    }
}
