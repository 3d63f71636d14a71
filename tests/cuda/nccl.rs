//! Ranks whose messages NCCL moves: the numbers of other engines, and what happens when a rank is lost.

use std::time::{Duration, Instant};

use context_parallel::comm::nccl::{self, NcclComm, NcclOptions};
use context_parallel::comm::{Collectives, Communicator, DynComm, Message, Operation, Parcel, Receive, Sum, threads};
use context_parallel::error::{CommError, Error, Result};
use context_parallel::mask::Mask;
use context_parallel::ops::attention::AttentionShape;
use context_parallel::strategy::select;
use context_parallel::tensor::cuda::CudaMemory;
use context_parallel::tensor::{Buffer, Cpu, Cuda, Device, Host};
use half::bf16;

use super::Test;
use super::devices::{attended, attended_on, collectives, combinations, on_threads, trained, trained_on, trial};
use super::ranks::{TRAINED, choice, error};
use super::transfers::{apart, there_are};

pub const TESTS: &[Test] = &[
    ("NCCL: collectives, also of parts", collectives_over_nccl),
    ("NCCL: sums in its own order", sums),
    ("NCCL: attention of packed documents on four GPUs", attends),
    ("NCCL: training steps have the bits of threads", trains),
    ("NCCL: exchanges under way are told apart", several_under_way),
    ("NCCL: a rank that fails is named by all others", failures_are_told),
    ("NCCL: a silent rank is named at the deadline", silence_is_told),
    ("NCCL: what comes must be what was expected", disagreements),
    ("NCCL: the host does not wait for a lost rank", read_gives_up),
    ("NCCL: ranks do not share a GPU", shared_gpu),
    ("NCCL: communicators end", || assert!(nccl::ended(Duration::from_secs(20)))),
];

/// Long enough for stand-ins, and short enough to be waited for.
const DEADLINE: Duration = Duration::from_secs(3);

/// Runs `body` on ranks with a GPU each; `within` is the longest wait.
fn on_nccl<R: Send>(
    ranks: usize,
    within: Duration,
    body: impl Fn(Cuda<f32>, DynComm<CudaMemory>) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let waiting = threads::Waiting { deadline: within, ..threads::Waiting::default() };
    threads::run_with(waiting, ranks, |control| {
        let device = Cuda::new(control.rank())?;
        let comm = NcclComm::new(Box::new(control), &device, NcclOptions { deadline: within })?;
        body(device, Box::new(comm))
    })
}

const LONG: Duration = Duration::from_secs(120);

fn collectives_over_nccl() {
    for ranks in [1, 2, 3, 4].into_iter().filter(|&ranks| there_are(ranks)) {
        let here = on_threads::<Host, _>(ranks, || Cpu::<f32>::new(1));
        let there = on_nccl(ranks, LONG, |device, comm| {
            let halves = comm.split(comm.rank() % 2, comm.rank())?;
            let mut found = collectives(&device, &*comm)?;
            found.extend(collectives(&device, &*halves)?);
            Ok(found)
        });
        assert!(there.as_ref() == Ok(&here), "{ranks} ranks: {:?}", there.err());
    }
}

fn sums() {
    for ranks in [1, 2, 4].into_iter().filter(|&ranks| there_are(ranks)) {
        let sums = on_nccl(ranks, LONG, |device, comm| {
            let rank = comm.rank();
            let mut single = device.upload(&[1.0, 10.0 * rank as f32, -0.5]);
            comm.all_reduce_in(Sum::Engine, &mut single)?;
            let halves = [1.0, rank as f32].map(bf16::from_f32);
            let mut half = Parcel::from(device.upload(&halves));
            assert!(comm.sum_parcel("sum".into(), &mut half)?);
            let half = half.open::<bf16>().expect("as it was");
            let mut whole = Parcel::from(device.upload(&[1i64]));
            assert_eq!(comm.sum_parcel("sum".into(), &mut whole)?, comm.size() == 1, "integers are nobody's");
            // Of memory that somebody else has too.
            let (mut shared, kept) = single.share();
            comm.all_reduce_in(Sum::Engine, &mut shared)?;
            let half = device.read(&half)?.into_iter().map(f32::from).collect::<Vec<_>>();
            Ok([device.read(&kept)?, half, device.read(&shared)?].concat())
        });
        let n = ranks as f32;
        let of_ranks = (0..ranks).sum::<usize>() as f32;
        let sum = [n, 10.0 * of_ranks, -0.5 * n, n, of_ranks, n * n, 10.0 * of_ranks * n, -0.5 * n * n];
        assert_eq!(sums, Ok(vec![sum.to_vec(); ranks]));
    }
    if there_are(2) {
        let error = on_nccl(2, DEADLINE, |device, comm| {
            comm.all_reduce_in(Sum::Engine, &mut device.upload(&vec![1.0f32; 3 + comm.rank()]))
        });
        let error = error.unwrap_err().to_string();
        assert!(error.contains("4 x f32 in all_reduce") || error.contains("3 x f32 in all_reduce"), "{error}");
    }
}

/// The program's `verify` does the others.
fn attends() {
    if !there_are(4) {
        return;
    }
    let chosen = combinations(&[4]).into_iter().filter(|chosen| chosen.layout.name() == "thd");
    let (mut worst, mut count) = (0f64, 0);
    for chosen in chosen {
        let shape = |heads| AttentionShape { q_heads: heads, kv_heads: 2, qk_dim: 8, v_dim: 8, scale: 0.35 };
        let (trial, placement) = trial::<f32>(&chosen, &Mask::Window { left: Some(5), right: Some(2) }, shape);
        let here = attended(&chosen, &trial, &placement, || Cpu::<f32>::new(1));
        let there = on_nccl(chosen.strategy.degree(), LONG, |device, comm| {
            attended_on(&chosen, &trial, &placement, device, comm)
        });
        for (here, there) in here.iter().zip(&there.unwrap()) {
            for (found, expected) in there.tensors.iter().zip(&here.tensors) {
                worst = worst.max(error(found, expected));
            }
            assert_eq!(here.sent, there.sent, "{}", chosen.strategy.name());
        }
        assert!(worst <= 1e-5, "{} {}: {worst:.1e}", chosen.strategy.name(), chosen.layout.name());
        count += 1;
    }
    println!("  {count} combinations, worst error {worst:.1e}");
}

fn trains() {
    if !there_are(2) {
        return;
    }
    for trained_as in [TRAINED[2], TRAINED[4]] {
        let chosen = select::chosen(&choice(trained_as)).unwrap();
        let alike = trained(&chosen, apart::<f32>);
        let found = on_nccl(2, LONG, |device, comm| trained_on(&chosen, device, comm));
        assert!(found.as_ref() == Ok(&alike), "{trained_as:?}: {:?}", found.err());
    }
}

fn send(device: &Cuda<f32>, to: usize, len: usize) -> Message<CudaMemory> {
    Message::new(to, device.upload(&vec![len as f32; len]))
}

/// An exchange with every other rank in which `len` elements go each way.
fn all_with_all(device: &Cuda<f32>, comm: &dyn Communicator<CudaMemory>, what: Operation, len: usize) -> Result<()> {
    let others = || (0..comm.size()).filter(|&rank| rank != comm.rank());
    let messages = others().map(|to| send(device, to, len)).collect();
    let receives = others().map(|from| Receive::of::<f32>(from, len)).collect();
    comm.exchange(what, messages, receives)?.wait().map(drop)
}

fn several_under_way() {
    if !there_are(2) {
        return;
    }
    let found = on_nccl(2, LONG, |device, comm| {
        let (rank, other) = (comm.rank(), 1 - comm.rank());
        let mut found = Vec::new();
        for round in 0..10usize {
            let exchange = |what: usize| {
                let values = vec![(100 * rank + 10 * round + what) as f32; 3000 + what];
                let (mine, copy) = device.upload(&values).share();
                let messages = vec![Message::new(other, mine), Message::new(other, copy)];
                let receives = vec![Receive::of::<f32>(other, 3000 + what); 2];
                comm.exchange("several".into(), messages, receives)
            };
            let (first, lost, last) = (exchange(0)?, exchange(1)?, exchange(2)?);
            // Memory of messages that nobody waited for is not given to others before they are through.
            drop(lost);
            let _poison = [(); 4].map(|()| device.upload(&[-1.0f32; 3000]));
            for pending in [last, first] {
                for parcel in pending.wait()?.parcels {
                    let came: Buffer<f32, _> = parcel.open().expect("f32");
                    let came = device.read(&came)?;
                    assert!(came.iter().all(|&x| x == came[0]), "round {round}");
                    found.push(came[0]);
                }
            }
        }
        Ok(found)
    });
    let expected = |other: usize| {
        let of = |round: usize| {
            let one = move |what: usize| (100 * other + 10 * round + what) as f32;
            [one(2), one(2), one(0), one(0)]
        };
        (0..10).flat_map(of).collect::<Vec<_>>()
    };
    assert_eq!(found, Ok(vec![expected(1), expected(0)]));
}

/// What a rank can be in when another is lost.
type Act = fn(&Cuda<f32>, &dyn Communicator<CudaMemory>) -> Result<()>;
const ACTS: [(&str, Act); 5] = [
    ("exchange", |device, comm| all_with_all(device, comm, "ring".into(), 1000)),
    ("barrier", |_, comm| comm.barrier()),
    ("split", |_, comm| comm.split(0, 0).map(drop)),
    ("all_reduce", |device, comm| comm.all_reduce(&mut device.upload(&[1.0f32; 9]))),
    ("own sum", |device, comm| {
        let mut sum = device.upload(&[1.0f32; 9]);
        comm.all_reduce_in(Sum::Engine, &mut sum)?;
        // Only rank 1's neighbour noticed: the others have what GPUs wait for.
        device.read(&sum).map(drop)
    }),
];

/// Runs `act` on all ranks but 1, which does `lost`; everyone's error.
fn without_1(act: Act, lost: impl Fn(&dyn Communicator<CudaMemory>) -> Result<()> + Sync) -> Vec<Error> {
    let errors = std::sync::Mutex::new(Vec::new());
    let since = Instant::now();
    let ended = on_nccl(3, DEADLINE, |device, comm| {
        all_with_all(&device, &*comm, "hello".into(), 10)?;
        let ended = match comm.rank() {
            1 => {
                // The others are in the act by then.
                std::thread::sleep(Duration::from_millis(200));
                lost(&*comm)
            }
            _ => act(&device, &*comm),
        };
        if comm.rank() != 1 {
            let error = ended.clone().expect_err("rank 1 is lost");
            assert_eq!(comm.barrier(), Err(error.clone()), "it stays");
            errors.lock().unwrap().push(error);
        }
        ended
    });
    assert!(ended.is_err());
    assert_eq!(errors.lock().unwrap().len(), 2);
    assert!(since.elapsed() < 4 * DEADLINE, "{:?}", since.elapsed());
    errors.into_inner().unwrap()
}

fn failures_are_told() {
    if !there_are(3) {
        return;
    }
    for (name, act) in ACTS {
        let refused = || Err(CommError::NoSuchRank { rank: 77, size: 3 }.into());
        for error in without_1(act, |_| refused()) {
            let told = CommError::Poisoned { rank: 1, reason: "rank 77 does not exist: there are 3".into() };
            assert_eq!(error, told.into(), "{name}");
        }
        let gives_up = |comm: &dyn Communicator<CudaMemory>| {
            comm.abort("no more data");
            comm.barrier()
        };
        for error in without_1(act, gives_up) {
            assert_eq!(error, CommError::Poisoned { rank: 1, reason: "no more data".into() }.into(), "{name}");
        }
        for error in without_1(act, |_| Ok(())) {
            let error = error.to_string();
            assert!(error.contains("rank 1 failed: it finished without taking part in"), "{name}: {error}");
        }
    }
}

fn silence_is_told() {
    if !there_are(3) {
        return;
    }
    // A barrier is the control's, as is the beginning of a split.
    for (name, act) in [ACTS[0], ACTS[4]] {
        let silent = |_: &dyn Communicator<CudaMemory>| {
            std::thread::sleep(DEADLINE + Duration::from_secs(2));
            Ok(())
        };
        for error in without_1(act, silent) {
            let error = error.to_string();
            assert!(error.contains("rank 1 was silent for 3 s in "), "{name}: {error}");
        }
    }
}

/// The error of rank 0, which expects 3 elements of f32 of the operation "rows".
fn when_1_sends(sent: fn(&Cuda<f32>) -> (Operation, Message<CudaMemory>)) -> Error {
    let since = Instant::now();
    let ended = on_nccl(2, DEADLINE, |device, comm| {
        all_with_all(&device, &*comm, "hello".into(), 10)?;
        if comm.rank() == 1 {
            let (what, message) = sent(&device);
            comm.exchange(what, vec![message], vec![])?.wait()?;
            // Until the other one says what is wrong.
            while comm.check().is_ok() {
                std::thread::sleep(Duration::from_millis(1));
            }
            return comm.check();
        }
        let found = comm.exchange(Operation::under("rows", 7), vec![], vec![Receive::of::<f32>(1, 3)])?.wait();
        let error = found.map(drop).expect_err("something else came");
        // The stream goes on, though a message never came.
        assert_eq!(device.read(&device.upload(&[5.0f32; 100]))?, [5.0; 100]);
        Err(error)
    });
    assert!(since.elapsed() < DEADLINE, "promptly, not at the deadline: {:?}", since.elapsed());
    let found: Result<Vec<()>> = ended;
    found.unwrap_err()
}

fn disagreements() {
    if !there_are(2) {
        return;
    }
    let says = |error: Error, what: &str| assert!(error.to_string().contains(what), "{error}");
    // The group, GPUs and number of the communicator, "hello", and this one.
    let sent = when_1_sends(|device| (Operation::under("rows", 7), send(device, 0, 2)));
    says(sent, "rank 1 sent 2 x f32 in rows (step 4) where 3 x f32 was expected");
    let sent = when_1_sends(|device| (Operation::under("rows", 7), Message::new(0, device.upload(&[1i64, 2, 3]))));
    says(sent, "rank 1 sent 3 x i64 in rows (step 4) where 3 x f32 was expected");
    let sent = when_1_sends(|device| (Operation::under("columns", 7), send(device, 0, 3)));
    says(sent, "rank 1 sent 3 x f32 of columns in rows (step 4) where 3 x f32 was expected");
    let sent = when_1_sends(|device| (Operation::under("rows", 8), send(device, 0, 3)));
    says(sent, "rank 0 is in rows (step 4) with 0000000000000007 and rank 1 with 0000000000000008");
}

/// A host that waits for a stream which stands at a message that nobody takes.
fn read_gives_up() {
    if !there_are(2) {
        return;
    }
    let run = |lost: fn() -> Result<()>| {
        on_nccl(2, DEADLINE, |device, comm| {
            all_with_all(&device, &*comm, "hello".into(), 5000)?;
            if comm.rank() == 1 {
                comm.barrier()?;
                return lost();
            }
            comm.exchange("ring".into(), vec![send(&device, 1, 5000)], vec![])?.wait()?;
            comm.barrier()?;
            // Has the memory of a message, so the stream waits for that.
            let next = [(); 2].map(|()| device.upload(&[0.0f32; 5000]));
            let since = Instant::now();
            let error = next.iter().find_map(|next| device.read(next).err()).expect("the message is not taken");
            assert!(since.elapsed() < 2 * DEADLINE);
            assert_eq!(device.read(&next[0]).map(drop), Err(error.clone()), "what comes later is not to be trusted");
            Err::<(), _>(error)
        })
        .unwrap_err()
        .to_string()
    };
    let error = run(|| Err(CommError::NoSuchRank { rank: 77, size: 2 }.into()));
    assert_eq!(error, "rank 77 does not exist: there are 2");
    let error = run(|| {
        std::thread::sleep(DEADLINE + Duration::from_secs(2));
        Ok(())
    });
    assert_eq!(error, "rank 1 was silent for 3 s in ring (step 4): it is stuck or lost");
}

fn shared_gpu() {
    let error = threads::run(2, |control| {
        let device = Cuda::<f32>::new(0)?;
        NcclComm::new(Box::new(control), &device, NcclOptions::default()).map(drop)
    });
    let error = error.unwrap_err();
    assert!(error.is_input() && error.to_string().contains("ranks 0 and 1 have the same GPU"), "{error}");
}
