//! Memory that comes from another GPU: what waits for what.

use std::sync::atomic::{AtomicUsize, Ordering};

use context_parallel::tensor::cuda::{CudaFloat, CudaMemory, probe};
use context_parallel::tensor::{Buffer, Cuda, Device, Storage};

use super::Test;
use super::counts::counted;
use super::devices::combinations;
use super::ranks::{attends, rows_move_on};

pub const TESTS: &[Test] = &[
    ("memory comes from another GPU, and goes back there", comes_from_another),
    ("a copy from another GPU does not wait for what is computed", copy_overtakes),
    ("attention of packed documents over two GPUs", attends_apart),
    ("rows move between two GPUs", rows_move_apart),
];

/// Whether there are so many GPUs; says so if not.
pub fn there_are(gpus: usize) -> bool {
    let found = probe::gpus().map_or(0, |(gpus, _)| gpus.len());
    if found < gpus {
        println!("  SKIPPED: it takes {gpus} GPUs, and there are {found} (stand-ins: EMU_DEVICES={gpus})");
    }
    found >= gpus
}

/// Whether the stand-in runs nothing that is not needed, so that what is needed can be seen.
fn runs_what_is_needed() -> bool {
    let needed = std::env::var("EMU_STREAMS").is_ok_and(|order| order == "need");
    if !needed || counted("kernels").is_none() {
        println!("  SKIPPED: only the stand-in with EMU_STREAMS=need runs nothing before it is needed");
        return false;
    }
    true
}

fn on<T: CudaFloat>(gpu: usize) -> Cuda<T> {
    Cuda::new(gpu).expect("a GPU")
}

/// A device on the one GPU, then on the other.
pub fn apart<T: CudaFloat>() -> Cuda<T> {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    on(NEXT.fetch_add(1, Ordering::Relaxed) % 2)
}

fn attends_apart() {
    if there_are(2) {
        let packed = combinations(&[2]).into_iter().filter(|chosen| chosen.layout.name() == "thd");
        attends::<f32>(packed.collect(), 8, 1e-5, apart);
    }
}

fn rows_move_apart() {
    if there_are(2) {
        rows_move_on(&[2, 3], apart);
    }
}

fn send(from: &Cuda<f32>, value: f32) -> Buffer<f32, CudaMemory> {
    let mut sent = from.upload(&[value; 5000]);
    sent.storage().leave();
    sent.storage_mut().arrive();
    sent
}

fn comes_from_another() {
    if !there_are(2) {
        return;
    }
    let (from, to): (Cuda<f32>, Cuda<f32>) = (on(0), on(1));
    for round in 0..20 {
        let (first, second) = send(&from, round as f32).share();
        let copy = to.duplicate(&first);
        let back = from.duplicate(&second);
        drop((first, second));
        // The next message has the memory of this one.
        let _next = from.upload(&[-1.0f32; 5000]);
        for (device, copy) in [(&to, &copy), (&from, &back)] {
            let copied = device.read(copy).unwrap();
            assert!(copied.iter().all(|&x| x == round as f32), "round {round} on {device:?}");
        }
    }
    assert!(from.memory().allocations <= 3, "{:?}", from.memory());
    assert!(to.memory().allocations <= 2, "{:?}", to.memory());
}

/// As a ring does it: something leaves, a tile is computed, and what came meanwhile is used.
fn copy_overtakes() {
    if !there_are(2) || !runs_what_is_needed() {
        return;
    }
    let (from, to): (Cuda<f32>, Cuda<f32>) = (on(0), on(1));
    let (mine, one) = (to.upload(&[0.0f32; 10]), to.upload(&[1.0f32; 5000]));
    let mut sum = to.upload(&[0.0f32; 5000]);
    to.read(&sum).unwrap();
    let kernels = || counted("kernels").unwrap();
    let before = kernels();
    for round in 0..6 {
        let came = send(&from, 100.0);
        mine.storage().leave();
        CudaMemory::add(&mut sum, 0, &one);
        // The stream for computing waits for the copy, and its memory is that of the message before.
        CudaMemory::add(&mut sum, 0, &came);
        drop(came);
        // Has the memory of the message, so it waits for the copy.
        from.read(&from.upload(&[-1.0f32; 5000])).unwrap();
        let ran = kernels() - before;
        assert!(ran <= 2 * round, "{ran} kernels ran before the copy of round {round}, of those before {}", 2 * round);
    }
    assert_eq!(to.read(&sum).unwrap(), [606.0; 5000]);
    assert_eq!(kernels() - before, 12);
}
