//! What a training step asks of the driver, counted by the libraries that stand in for it.

use context_parallel::comm::threads;
use context_parallel::strategy::select::{self, Choice};
use context_parallel::tensor::Device;
use context_parallel::tensor::cuda::cudarc::driver::sys;
use context_parallel::tensor::cuda::{CudaMemory, probe};
use context_parallel::train::trainer::Learner;

use super::Test;
use super::devices::{learner_on, tokens};
use super::ranks::device;

pub const TESTS: &[Test] = &[
    ("a step waits for what it reads only, and allocates nothing", step_is_counted),
    ("a micro-batch that comes again is launched as one graph", micro_batch_is_recorded),
];

/// How often something was done in this process, by name; nothing on a GPU, which counts nothing.
pub fn counted(name: &str) -> Option<u64> {
    type Counters = unsafe extern "C" fn(*mut u64, usize) -> usize;
    type Name = unsafe extern "C" fn(usize) -> *const std::ffi::c_char;

    // SAFETY: the symbols are those of `tests/emulator/driver.cpp`, where they are there at all.
    unsafe {
        let (counters, name_of) =
            (sys::culib().get::<Counters>(b"emu_counters").ok()?, sys::culib().get::<Name>(b"emu_counter_name").ok()?);
        let mut values = [0; 32];
        let count = counters(values.as_mut_ptr(), values.len());
        (0..count).find(|&i| std::ffi::CStr::from_ptr(name_of(i)).to_str() == Ok(name)).map(|i| values[i])
    }
}

/// Whether the GPU has the kernels for Hopper.
pub fn is_hopper() -> bool {
    probe::gpus().is_ok_and(|(gpus, _)| gpus[0].capability == (9, 0))
}

/// How many launches there were of kernels whose names contain `part`; nothing on a GPU, which counts nothing.
pub fn launches_of(part: &str) -> Option<u64> {
    type Launches = unsafe extern "C" fn(*const std::ffi::c_char) -> u64;

    let part = std::ffi::CString::new(part).ok()?;
    // SAFETY: the symbol is that of `tests/emulator/modules.cpp`, where it is there at all; it reads a text that ends.
    unsafe { Some(sys::culib().get::<Launches>(b"emu_launches_of").ok()?(part.as_ptr())) }
}

fn step_is_counted() {
    let (ranks, micro_batches) = (2, 3);
    let [strategy, order, layout, kernel] = ["ring", "zigzag", "thd", "flash"].map(str::to_string);
    let choice = Choice { strategy, order, layout, kernel, degree: ranks, ..Choice::default() };
    let chosen = select::chosen(&choice).unwrap();
    let run = |comm: threads::ThreadComm<CudaMemory>| {
        let device = device::<f32>();
        let mut learner = learner_on(&chosen, &device, Box::new(comm))?;
        let batch = tokens();
        let labels = batch.counted_by_depth(1);
        let mut counts = Vec::new();
        for step in 0..4 {
            for _ in 0..micro_batches {
                learner.accumulate_depths(&batch, &labels)?;
            }
            learner.update(1e-2)?;
            if step == 1 {
                device.seal();
            }
            learner.handler().comm().barrier()?;
            counts.push(["synchronisations", "allocations", "launches"].map(counted));
            learner.handler().comm().barrier()?;
        }
        Ok(counts)
    };
    let counts = threads::run_on::<CudaMemory, _, _>(threads::Waiting::default(), ranks, run).unwrap();
    let [[Some(waits), Some(allocations), Some(launches)], [Some(last_waits), Some(last_allocations), Some(last)]] =
        [counts[0][2], counts[0][3]]
    else {
        return println!("  SKIPPED: a GPU counts nothing");
    };
    let waits = last_waits - waits;
    println!("  {waits} waits, {} launches, {} allocations", last - launches, last_allocations - allocations);
    assert_eq!(last_allocations, allocations);
    // On each rank: the loss of each micro-batch, and the numbers of the step.
    assert!(waits <= (ranks * (micro_batches + 1)) as u64, "{waits}");
}

/// The losses of micro-batches, and launches of kernels and of graphs while each ran.
type Counted = (Vec<f64>, [Option<u64>; 2]);

/// Micro-batches of different tokens, with an evaluation before each where `evaluates`.
fn micro_batches(evaluates: bool) -> Vec<Counted> {
    let [strategy, order, layout, kernel] = ["single", "natural", "thd", "flash"].map(str::to_string);
    let choice = Choice { strategy, order, layout, kernel, degree: 1, ..Choice::default() };
    let chosen = select::chosen(&choice).unwrap();
    let run = |comm: threads::ThreadComm<CudaMemory>| {
        let mut learner = learner_on(&chosen, &device::<f32>(), Box::new(comm))?;
        let mut found = Vec::new();
        for round in 0..8 {
            let mut batch = tokens();
            batch.tokens.rotate_left(round);
            let labels = batch.counted_by_depth(1);
            if evaluates {
                learner.evaluate(&batch)?;
            }
            let before = ["launches", "graph_launches"].map(counted);
            let mut losses = learner.accumulate_depths(&batch, &labels)?;
            let launched = ["launches", "graph_launches"].map(counted);
            if round % 3 == 2 {
                losses.push(learner.update(1e-2)?);
            }
            let launches = [0, 1].map(|i| Some(launched[i]? - before[i]?));
            found.push((losses, launches));
        }
        Ok(found)
    };
    threads::run_on::<CudaMemory, _, _>(threads::Waiting::default(), 1, run).unwrap().remove(0)
}

fn micro_batch_is_recorded() {
    let (recorded, plain) = (micro_batches(false), micro_batches(true));
    for (round, ((found, _), (expected, _))) in recorded.iter().zip(&plain).enumerate() {
        assert_eq!(found, expected, "the same bits in micro-batch {round}");
    }
    let [Some(kernels), Some(_)] = plain[7].1 else { return println!("  SKIPPED: a GPU counts nothing") };
    let launches: Vec<_> = recorded.iter().map(|(_, launches)| launches.map(Option::unwrap_or_default)).collect();
    println!("  {kernels} launches of kernels, then {launches:?}");
    assert!(kernels > 50 && plain.iter().all(|(_, [_, graphs])| *graphs == Some(0)));
    // Once as it is, once recorded; from then on the graph alone.
    assert_eq!(launches[0][1], 0);
    assert!(launches[1..].iter().all(|&[_, graphs]| graphs == 1), "{launches:?}");
}
