//! Tests of the collectives: what arrives, in which order sums are taken, and whose memory they take.

use super::*;
use crate::comm::threads::run;
use crate::error::CommError;
use crate::tensor::Cpu;
use crate::tensor::Device;

mod own;

/// Numbers of ranks that send everything to each, and that pass little data on.
const FEW_AND_MANY: [usize; 8] = [1, 2, 3, 4, 5, 8, 11, 16];

/// Deterministic values whose sums depend on the order in which they are taken.
fn value(rank: usize, to: usize, index: usize) -> f32 {
    let n = (rank * 7919 + to * 104_729 + index * 1_299_709 + 1) as u32;
    let bits = n.wrapping_mul(2_654_435_761).rotate_left(13).wrapping_mul(2_246_822_519);
    (bits as f32 / u32::MAX as f32 - 0.5) * 10f32.powi((bits % 7) as i32 - 3)
}

/// Ragged counts with zeros among them.
fn ragged(ranks: usize, shift: usize) -> Vec<usize> {
    (0..ranks).map(|rank| [3, 0, 5, 1, 0][(rank + shift) % 5]).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Plain left-to-right sum over ranks.
fn sum_in_order(ranks: usize, value: impl Fn(usize) -> f32) -> f32 {
    (1..ranks).fold(value(0), |sum, rank| sum + value(rank))
}

#[test]
fn all_gather_gives_everyone_everything() {
    for (ranks, shift) in FEW_AND_MANY.into_iter().flat_map(|ranks| (0..5).map(move |shift| (ranks, shift))) {
        let counts = ragged(ranks, shift);
        let gathered = run(ranks, |comm| {
            let mine: Vec<f32> =
                (0..counts[comm.rank()]).map(|i| if i == 0 { -0.0 } else { value(comm.rank(), 0, i) }).collect();
            let all = comm.all_gather_v(Cpu::<f32>::new(1).upload(&mine), &counts)?;
            Ok(all.iter().map(|part| bits(part)).collect::<Vec<_>>())
        });
        let plain = |rank: usize| (0..counts[rank]).map(|i| if i == 0 { -0.0 } else { value(rank, 0, i) }).collect();
        let expected: Vec<_> = (0..ranks).map(|rank| bits(&Vec::from_iter::<Vec<f32>>(plain(rank)))).collect();
        assert_eq!(gathered, Ok(vec![expected; ranks]), "{ranks} ranks, counts {counts:?}");
    }
}

#[test]
fn all_to_all_delivers_each_part() {
    // Rank r sends ragged(ranks, r)[to] elements to rank `to`.
    for ranks in FEW_AND_MANY {
        let part = |from: usize, to: usize| -> Vec<i64> {
            (0..ragged(ranks, from)[to]).map(|i| (from * 100 + to * 10 + i) as i64).collect()
        };
        let received = run(ranks, |comm| {
            let me = comm.rank();
            let counts: Vec<usize> = (0..ranks).map(|from| ragged(ranks, from)[me]).collect();
            let parts = (0..ranks).map(|to| Buffer::from_slice(&part(me, to))).collect();
            let received = comm.all_to_all_v(parts, &counts)?;
            Ok(received.iter().map(|part| part.to_vec()).collect::<Vec<_>>())
        });
        let expected: Vec<Vec<_>> = (0..ranks).map(|to| (0..ranks).map(|from| part(from, to)).collect()).collect();
        assert_eq!(received, Ok(expected), "{ranks} ranks");
    }
}

#[test]
fn reduce_scatter_sums_in_rank_order() {
    for (ranks, shift) in FEW_AND_MANY.into_iter().flat_map(|ranks| (0..5).map(move |shift| (ranks, shift))) {
        let counts = ragged(ranks, shift);
        let total: usize = counts.iter().sum();
        let sums = run(ranks, |comm| {
            let whole: Vec<f32> = (0..total).map(|i| value(comm.rank(), 1, i)).collect();
            Ok(bits(&comm.reduce_scatter_v(&Buffer::from_slice(&whole), &counts)?))
        });
        let all: Vec<u32> = (0..total).map(|i| sum_in_order(ranks, |rank| value(rank, 1, i)).to_bits()).collect();
        assert_eq!(sums.map(|sums| (sums.iter().map(Vec::len).collect(), sums.concat())), Ok((counts, all)));
    }
}

#[test]
fn all_reduce_gives_the_same_bits_everywhere() {
    let mut order_matters = false;
    for (ranks, len) in FEW_AND_MANY.into_iter().flat_map(|ranks| [0, 1, 2, 7, 33, 2000].map(|len| (ranks, len))) {
        let sums = run(ranks, |comm| {
            let mut values = Buffer::from_slice(&Vec::from_iter((0..len).map(|i| value(comm.rank(), 2, i))));
            comm.all_reduce(&mut values)?;
            Ok(bits(&values))
        });
        let expected: Vec<f32> = (0..len).map(|i| sum_in_order(ranks, |rank| value(rank, 2, i))).collect();
        let backwards = (0..len).map(|i| sum_in_order(ranks, |rank| value(ranks - 1 - rank, 2, i)));
        order_matters |= !backwards.eq(expected.iter().copied());
        assert_eq!(sums, Ok(vec![bits(&expected); ranks]), "{ranks} ranks, {len} values");
    }
    assert!(order_matters, "the values are such that another order would show");
}

/// The values themselves, the parts that are sent, and the sums that are sent: not those of other ranks.
#[test]
fn each_rank_sums_in_memory_of_its_own() {
    const VALUES: usize = 1 << 14;
    let peaks = run(8, |comm| {
        let device = Cpu::<f32>::new(1);
        let mut values = device.upload(&vec![1.0f32; VALUES]);
        comm.all_reduce(&mut values)?;
        Ok(device.pool().stats().peak)
    });
    let peaks = peaks.expect("no rank fails");
    assert!(peaks.iter().all(|&peak| peak <= 4 * VALUES * size_of::<f32>()), "{peaks:?}");
}

#[test]
fn a_sum_of_negative_zeros_stays_negative() {
    let sums = run(3, |comm| {
        let mut values = Buffer::from_slice(&[-0.0f64; 4]);
        comm.all_reduce(&mut values)?;
        Ok(values.iter().all(|value| value.to_bits() == (-0.0f64).to_bits()))
    });
    assert_eq!(sums, Ok(vec![true; 3]));
}

#[test]
fn counts_that_do_not_fit_are_refused() {
    let refused = run(2, |comm| {
        let mine = || Buffer::from_slice(&[1.0f32, 2.0]);
        let errors = [
            comm.all_gather_v(mine(), &[2]).map(drop),
            comm.all_gather_v(mine(), &[3, 3]).map(drop),
            comm.all_to_all_v(vec![mine()], &[2, 2]).map(drop),
            comm.all_to_all_v(vec![mine(), mine()], &[3, 3]).map(drop),
            comm.reduce_scatter_v(&mine(), &[2, 1]).map(drop),
            comm.reduce_scatter_v(&mine(), &[usize::MAX, 3]).map(drop),
        ];
        let counts = |error: &Result<()>| matches!(error, Err(crate::error::Error::Comm(CommError::Counts { .. })));
        Ok(errors.iter().all(counts))
    });
    assert_eq!(refused, Ok(vec![true; 2]));
}

#[test]
fn counts_that_disagree_name_the_peer() {
    let error = run(2, |comm| {
        let len = 2 + comm.rank();
        let mine = Buffer::from_slice(&vec![0f32; len]);
        comm.all_gather_v(mine, &if comm.rank() == 0 { [2, 2] } else { [2, 3] }).map(drop)
    });
    let (expected, found) = ("2 x f32".to_string(), "3 x f32".to_string());
    let protocol = CommError::Protocol { peer: 1, operation: "all_gather", step: 1, expected, found };
    assert_eq!(error, Err(protocol.into()));
}

#[test]
fn an_engine_without_a_sum_of_its_own_sums_in_rank_order() {
    let sums = run(5, |comm| {
        let mut values = Cpu::<f32>::new(1).upload(&Vec::from_iter((0..9).map(|i| value(comm.rank(), 3, i))));
        let held = values.storage().capacity();
        comm.all_reduce_in(Sum::Engine, &mut values)?;
        assert_eq!(values.storage().capacity(), held);
        Ok(bits(&values))
    });
    let expected = (0..9).map(|i| sum_in_order(5, |rank| value(rank, 3, i)).to_bits()).collect::<Vec<_>>();
    assert_eq!(sums, Ok(vec![expected; 5]));
}

#[test]
fn what_collectives_give_back_and_bring_is_on_the_right_account() {
    for ranks in [3, 8] {
        let held = run(ranks, |comm| {
            let device = Cpu::<f32>::new(1);
            let mine = device.upload(&[1f32; 50]);
            let all = comm.all_gather_v(mine, &vec![50; ranks])?;
            let gathered = device.ledger().held();
            comm.barrier()?;
            drop(all);
            let mut values = device.upload(&[1f32; 50]);
            comm.all_reduce(&mut values)?;
            comm.broadcast(1, &mut values)?;
            comm.barrier()?;
            Ok((gathered, device.ledger().held()))
        });
        assert_eq!(held, Ok(vec![(200, 200); ranks]), "a rank's own buffer, and nothing of others");
    }
}
