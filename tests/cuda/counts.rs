//! What a training step asks of the driver, counted by the libraries that stand in for it.

use context_parallel::comm::threads;
use context_parallel::strategy::select::{self, Choice};
use context_parallel::tensor::Device;
use context_parallel::tensor::cuda::CudaMemory;
use context_parallel::tensor::cuda::cudarc::driver::sys;
use context_parallel::train::trainer::Learner;

use super::Test;
use super::devices::{learner_on, tokens};
use super::ranks::device;

pub const TESTS: &[Test] = &[("a step waits for what it reads only, and allocates nothing", step_is_counted)];

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
