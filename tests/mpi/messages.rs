//! What arrives: order, groups, sizes, types, and the same bits as from in-process ranks.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use context_parallel::comm::decorate::staged::Staged;
use context_parallel::comm::mpi::{MpiComm, MpiOptions};
use context_parallel::comm::{Collectives, Communicator, DynComm, Message, Receive, Received, open, threads};
use context_parallel::error::{CommError, Result};
use context_parallel::handler::UntypedHandler;
use context_parallel::kernel::{Flash, Kernel, kernel_object};
use context_parallel::layout::{Layout, Thd};
use context_parallel::mask::Mask;
use context_parallel::ops::Ops;
use context_parallel::ops::attention::AttentionShape;
use context_parallel::strategy::select::{self, Choice, Chosen};
use context_parallel::tensor::queued::Queued;
use context_parallel::tensor::{Buffer, Cpu, DType, Device, Element, Matrix};
use half::{bf16, f16};

use super::Case;

pub fn cases() -> Vec<Case> {
    let case = |name, ranks, rank| Case { name, ranks, options: MpiOptions::default(), rank, says: None };
    let small = MpiOptions { part: 1000, ..MpiOptions::default() };
    vec![
        case("messages keep their order", &[2, 3, 4], messages_keep_their_order),
        case("exchanges end in any order", &[2], exchanges_end_in_any_order),
        case("a dropped exchange does not shift later ones", &[2], a_dropped_exchange_does_not_shift_later_ones),
        case("what is sent outlives its exchange", &[2], what_is_sent_outlives_its_exchange),
        case("a barrier holds until the last", &[4], a_barrier_holds_until_the_last),
        case("splits order by key then rank and nest", &[6], splits_order_by_key_then_rank_and_nest),
        case("many splits", &[3], many_splits),
        case("wrong peers are refused", &[2], wrong_peers_are_refused),
        case("messages move while their sender computes", &[2], messages_move_while_their_sender_computes),
        case("sums have the bits of in-process ranks", &[1, 2, 3, 4], sums_have_the_bits_of_in_process_ranks),
        case("every type", &[2], every_type_and_size),
        Case { options: small, ..case("every type in parts", &[2], every_type_and_size) },
        case("a device that computes later attends", &[2, 4], a_device_that_computes_later_attends),
        case("MPI starts once", &[1, 2], mpi_starts_once),
    ]
}

pub fn send(to: usize, values: &[i64]) -> Message {
    Message::new(to, Buffer::from_slice(values))
}

pub fn receive(from: usize, len: usize) -> Receive {
    Receive::of::<i64>(from, len)
}

/// What was received, opened.
fn values(received: Received) -> Vec<Vec<i64>> {
    let open = |parcel| open::<i64, _>(parcel, 0, "test").expect("the engine has checked the type").to_vec();
    received.parcels.into_iter().map(open).collect()
}

fn messages_keep_their_order(comm: MpiComm) -> Result<()> {
    let size = comm.size();
    let (next, last) = ((comm.rank() + 1) % size, (comm.rank() + size - 1) % size);
    for i in 0..100 {
        // Twice to one peer in one exchange, one long and one short.
        let long: Vec<i64> = (0..20_000).map(|at| at + i).collect();
        let sends = vec![send(next, &long), send(next, &[-i, i])];
        let received = comm.exchange("ring".into(), sends, vec![receive(last, 20_000), receive(last, 2)])?.wait()?;
        assert_eq!(values(received), [long, vec![-i, i]]);
    }
    Ok(())
}

fn exchanges_end_in_any_order(comm: MpiComm) -> Result<()> {
    let peer = 1 - comm.rank();
    let first = comm.exchange("first".into(), vec![send(peer, &[1])], vec![receive(peer, 1)])?;
    let second = comm.exchange("second".into(), vec![send(peer, &[2, 2])], vec![receive(peer, 2)])?;
    assert_eq!(values(second.wait()?), [[2, 2]]);
    assert_eq!(values(first.wait()?), [[1]]);
    Ok(())
}

fn a_dropped_exchange_does_not_shift_later_ones(comm: MpiComm) -> Result<()> {
    let peer = 1 - comm.rank();
    for late in [false, true] {
        let begin = || comm.exchange("dropped".into(), vec![send(peer, &[1])], vec![receive(peer, 1)]);
        if comm.rank() == 0 && late {
            // Given up before the peer has sent.
            drop(begin()?);
            comm.barrier()?;
        } else {
            if late {
                comm.barrier()?;
            }
            drop(begin()?);
        }
        let kept = comm.exchange("kept".into(), vec![send(peer, &[2])], vec![receive(peer, 1)])?;
        assert_eq!(values(kept.wait()?), [[2]]);
    }
    Ok(())
}

fn what_is_sent_outlives_its_exchange(comm: MpiComm) -> Result<()> {
    const LEN: usize = 4 << 20;
    let expected = |i: usize| (i as i64).wrapping_mul(0x9E37_79B9_7F4A_7C15_u64 as i64);
    if comm.rank() == 0 {
        let values: Vec<i64> = (0..LEN).map(expected).collect();
        drop(comm.exchange("big".into(), vec![send(1, &values)], vec![])?);
        drop(values);
        // Memory that is freed would be used again for this.
        let other = vec![-1i64; LEN];
        assert!(other.iter().all(|&x| x == -1));
        return Ok(());
    }
    thread::sleep(Duration::from_millis(200));
    let received = values(comm.exchange("big".into(), vec![], vec![receive(0, LEN)])?.wait()?);
    assert!(received[0].iter().enumerate().all(|(i, &x)| x == expected(i)));
    Ok(())
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970").as_micros() as i64
}

fn a_barrier_holds_until_the_last(comm: MpiComm) -> Result<()> {
    for last in 0..comm.size() {
        if comm.rank() == last {
            thread::sleep(Duration::from_millis(100));
        }
        let arrived = now();
        comm.barrier()?;
        let left = now();
        let all = comm.all_gather_v(Buffer::from_slice(&[arrived]), &vec![1; comm.size()])?;
        assert!(all.iter().all(|arrived| arrived[0] <= left), "{all:?} {left}");
    }
    Ok(())
}

fn splits_order_by_key_then_rank_and_nest(comm: MpiComm) -> Result<()> {
    // Even and odd ranks, in reverse; then each of those into a pair and one alone, by equal keys. Numbers above an
    // i32.
    let color = usize::MAX - comm.rank() % 2;
    let half = comm.split(color, (10 - comm.rank()) << 33)?;
    let pair = half.split(usize::from(half.rank() == 2), 7)?;
    let globals = |comm: &dyn Communicator| (0..comm.size()).map(|r| comm.global_rank(r)).collect::<Vec<_>>();
    // Messages of the three groups do not mix, though posted in different orders.
    let mut sums = [Buffer::from_slice(&[1.0f32]), Buffer::from_slice(&[1.0]), Buffer::from_slice(&[1.0])];
    let peer = |comm: &dyn Communicator| (comm.rank() + 1) % comm.size();
    let early = half.exchange("half".into(), vec![send(peer(&*half), &[9])], vec![])?;
    comm.all_reduce(&mut sums[0])?;
    pair.all_reduce(&mut sums[2])?;
    let last = (half.rank() + half.size() - 1) % half.size();
    let from_half = values(half.exchange("half".into(), vec![], vec![receive(last, 1)])?.wait()?);
    early.wait()?;
    half.all_reduce(&mut sums[1])?;
    let (rank, odd) = (comm.rank(), comm.rank() % 2);
    let (expected, ranks) = if rank < 2 { (vec![odd], 1.0) } else { (vec![4 + odd, 2 + odd], 2.0) };
    assert_eq!((half.rank(), globals(&*half)), ((5 - rank) / 2, vec![4 + odd, 2 + odd, odd]));
    assert_eq!((globals(&*pair), from_half), (expected, vec![vec![9]]));
    assert_eq!(sums.map(|sum| sum[0]), [6.0, 3.0, ranks]);
    Ok(())
}

fn many_splits(comm: MpiComm) -> Result<()> {
    for i in 0..300 {
        let group = comm.split(usize::from(comm.rank() == i % 3), 0)?;
        let mut sum = Buffer::from_slice(&[comm.rank() as f64]);
        group.all_reduce(&mut sum)?;
        let expected = if comm.rank() == i % 3 { i % 3 } else { 3 - i % 3 };
        assert_eq!(sum[0], expected as f64);
    }
    Ok(())
}

fn wrong_peers_are_refused(comm: MpiComm) -> Result<()> {
    let (me, peer) = (comm.rank(), 1 - comm.rank());
    let attempt = |to, from| comm.exchange("test".into(), vec![send(to, &[1])], vec![receive(from, 1)]).map(drop);
    assert_eq!(attempt(2, peer), Err(CommError::NoSuchRank { rank: 2, size: 2 }.into()));
    assert_eq!(attempt(peer, 5), Err(CommError::NoSuchRank { rank: 5, size: 2 }.into()));
    assert_eq!(attempt(me, peer), Err(CommError::ToItself { rank: me, operation: "test" }.into()));
    assert_eq!(attempt(peer, me), Err(CommError::ToItself { rank: me, operation: "test" }.into()));
    assert_eq!(values(comm.exchange("test".into(), vec![send(peer, &[3])], vec![receive(peer, 1)])?.wait()?), [[3]]);
    Ok(())
}

fn messages_move_while_their_sender_computes(comm: MpiComm) -> Result<()> {
    // Large enough that MPI moves it only while both sides call it.
    const LEN: usize = 2 << 20;
    comm.barrier()?;
    if comm.rank() == 0 {
        let pending = comm.exchange("overlap".into(), vec![send(1, &vec![5; LEN])], vec![])?;
        thread::sleep(Duration::from_secs(4));
        pending.wait()?;
    } else {
        let start = Instant::now();
        let received = values(comm.exchange("overlap".into(), vec![], vec![receive(0, LEN)])?.wait()?);
        assert!(received[0].iter().all(|&x| x == 5));
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}: the sender is busy for 4 s", start.elapsed());
    }
    Ok(())
}

fn sums_have_the_bits_of_in_process_ranks(comm: MpiComm) -> Result<()> {
    // Deterministic values whose sums depend on the order in which they are taken.
    let value = |rank: usize, i: usize| {
        let bits = ((rank * 7919 + i * 104_729 + 1) as u32).wrapping_mul(2_654_435_761).rotate_left(13);
        (bits as f32 / u32::MAX as f32 - 0.5) * 10f32.powi((bits % 7) as i32 - 3)
    };
    let collect = |comm: &dyn Communicator| -> Result<Vec<Vec<u32>>> {
        let (me, size) = (comm.rank(), comm.size());
        let counts: Vec<usize> = (0..size).map(|rank| [3, 0, 500, 1][rank % 4]).collect();
        let total: usize = counts.iter().sum();
        let mine = |len: usize| Buffer::from_slice(&(0..len).map(|i| value(me, i)).collect::<Vec<_>>());
        let mut sum = mine(1001);
        comm.all_reduce(&mut sum)?;
        let mut all = vec![sum, comm.reduce_scatter_v(&mine(total), &counts)?];
        all.extend(comm.all_gather_v(mine(counts[me]), &counts)?);
        let parts = counts.iter().map(|&count| mine(count)).collect();
        all.extend(comm.all_to_all_v(parts, &vec![counts[me]; size])?);
        Ok(all.iter().map(|part| part.iter().map(|x| x.to_bits()).collect()).collect())
    };
    let expected = threads::run(comm.size(), |comm| collect(&comm))?;
    assert_eq!(collect(&comm)?, expected[comm.rank()]);
    Ok(())
}

fn every_type_and_size(comm: MpiComm) -> Result<()> {
    fn both_ways<T: Element>(comm: &MpiComm, of: impl Fn(usize) -> T) -> Result<()> {
        for len in [0, 1, 7, 999, 1000, 1001, 70_000] {
            let peer = 1 - comm.rank();
            let mine: Vec<T> = (0..len).map(|i| of(i + comm.rank())).collect();
            let sends = vec![Message::new(peer, Buffer::from_slice(&mine))];
            let received = comm.exchange("types".into(), sends, vec![Receive::of::<T>(peer, len)])?.wait()?;
            for parcel in received.parcels {
                let found = open::<T, _>(parcel, peer, "types")?;
                assert!(found.len() == len && found.iter().enumerate().all(|(i, x)| *x == of(i + peer)));
            }
        }
        Ok(())
    }
    both_ways(&comm, |i| i as f32 + 0.5)?;
    both_ways(&comm, |i| i as f64 / 3.0)?;
    both_ways(&comm, |i| bf16::from_f32((i % 200) as f32))?;
    both_ways(&comm, |i| f16::from_f32((i % 200) as f32))?;
    both_ways(&comm, |i| i as i64 - 1000)?;
    both_ways(&comm, |i| i as i32 - 1000)?;
    both_ways(&comm, |i| (i % 251) as u8)?;
    assert_eq!(DType::U8.size(), 1);
    Ok(())
}

fn mpi_starts_once(comm: MpiComm) -> Result<()> {
    comm.barrier()?;
    let second = context_parallel::comm::mpi::run(|_| Ok(()));
    let message = second.expect_err("the first is not over").to_string();
    assert!(message.contains("has used MPI before"), "{message}");
    comm.barrier()
}

/// Memory of a device goes by way of host memory, with the bits of the processor.
fn a_device_that_computes_later_attends(comm: MpiComm) -> Result<()> {
    let comm = Arc::new(comm);
    for strategy in ["ring", "all-gather", "ulysses", "ring-ulysses", "magi"] {
        let [strategy, layout, kernel] = [strategy, Thd::NAME, Flash::NAME].map(str::to_string);
        let choice = Choice { strategy, layout, kernel, degree: comm.size(), ..Choice::default() };
        let here = attended(&choice, Cpu::<f32>::new(1), Box::new(comm.clone()))?;
        let device = Queued::new(Cpu::<f32>::new(1));
        let later = attended(&choice, device.clone(), Box::new(Staged::new(comm.clone(), device)))?;
        assert!(here.iter().flatten().any(|&x| x != 0.0), "{choice:?} computes nothing");
        assert_eq!(here, later, "{choice:?}");
    }
    comm.barrier()
}

/// Output and gradients of attention on this rank.
fn attended<D: Ops + Device<Elem = f32>>(
    choice: &Choice,
    device: D,
    comm: DynComm<D::Storage>,
) -> Result<Vec<Vec<f32>>> {
    let Chosen { strategy, layout, .. } = select::chosen(choice)?;
    let handler = UntypedHandler::new(strategy, layout, device.clone(), comm)?;
    let batch = layout.batch_of(&[23, 0, 18])?;
    let placement = handler.place_for(batch.clone(), &[(Mask::Causal, 1)])?;
    let shape = AttentionShape { q_heads: 4, kv_heads: 4, qk_dim: 4, v_dim: 4, scale: 0.5 };
    let width = shape.q_width();
    let values: Vec<f32> = (0..batch.tokens() * width).map(|i| (i * i % 17) as f32 / 16.0).collect();
    let whole = Matrix::new(device.upload(&values), batch.tokens(), width);
    let x = handler.by_ref().dispatch(&placement, &whole)?;
    let plan = handler.plan(&placement, &Mask::Causal)?;
    let (out, core) = handler.by_ref().core_attn(kernel_object::<Flash, D>(), &plan, &shape, [&x; 3])?;
    let gradients = handler.by_ref().core_attn_backward(&plan, [&x; 3], &core, &out)?;
    [&out].into_iter().chain(&gradients).map(|shard| device.read(shard.matrix())).collect()
}
