//! Several ranks on a GPU: attention of every combination, movement of rows, collectives, training.

use context_parallel::comm::decorate::staged::Staged;
use context_parallel::comm::threads;
use context_parallel::mask::Mask;
use context_parallel::ops::attention::AttentionShape;
use context_parallel::oracle::relative_error;
use context_parallel::strategy::select::{self, Choice, Chosen};
use context_parallel::tensor::cuda::{CudaFloat, CudaMemory};
use context_parallel::tensor::{Cpu, Cuda, Host};
use half::bf16;

use super::Test;
use super::counts::{is_hopper, launches_of};
use super::devices::{attended, combinations, moved, on_threads, trained, trained_on, trial};

pub const TESTS: &[Test] = &[
    ("attention of every combination in f32", || attends::<f32>(combinations(&[1, 3]), 8, 1e-5, device)),
    ("attention of every combination in bf16, on tensor cores", || {
        attends::<bf16>(combinations(&[2]), 64, 1.5e-2, device)
    }),
    ("rows move and roll", || rows_move_on(&[2, 3, 4], device)),
    ("collectives hand memory over", collectives_hand_over),
    ("training steps in f32", || trains::<f32>(&TRAINED, 2e-4)),
    ("training steps in bf16", || trains::<bf16>(&TRAINED[1..3], 2e-2)),
    ("training by way of host memory", trains_staged),
    ("a ring of four ranks learns what one rank learns, in bf16", ring_learns),
];

pub fn device<T: CudaFloat>() -> Cuda<T> {
    Cuda::new(0).expect("a GPU")
}

/// Relative error of what is found.
pub fn error<T: CudaFloat>(found: &[T], expected: &[T]) -> f64 {
    let wide = |values: &[T]| values.iter().map(|x| x.to_f64()).collect::<Vec<_>>();
    relative_error(&wide(found), &wide(expected), 1e-3)
}

pub fn attends<T: CudaFloat>(all: Vec<Chosen>, dim: usize, bound: f64, device: fn() -> Cuda<T>) {
    let mut worst = 0f64;
    let for_hopper = || launches_of("_sm90_");
    let before = for_hopper();
    for chosen in &all {
        let scale = 1.0 / (dim as f64).sqrt();
        let shape = |heads| AttentionShape { q_heads: heads, kv_heads: 2, qk_dim: dim, v_dim: dim, scale };
        for mask in [Mask::Causal, Mask::Window { left: Some(5), right: Some(2) }] {
            let (trial, placement) = trial::<T>(chosen, &mask, shape);
            let here = attended(chosen, &trial, &placement, || Cpu::<T>::new(1));
            let there = attended(chosen, &trial, &placement, device);
            for (rank, (here, there)) in here.iter().zip(&there).enumerate() {
                let what = format!("{} {mask:?} on rank {rank}", chosen.strategy.name());
                for (found, expected) in there.tensors.iter().zip(&here.tensors) {
                    let error = error(found, expected);
                    assert!(error <= bound, "{what}: {error:.1e}");
                    worst = worst.max(error);
                }
                assert_eq!(here.sent, there.sent, "{what}");
                assert!(there.predictions().iter().all(|(_, of)| of.predicted == of.counted), "{what}: {there:?}");
            }
        }
    }
    println!("  {} combinations, worst error {worst:.1e}", all.len());
    let has_kernels = is_hopper() && dim == 64 && T::DTYPE.size() == 2;
    assert_eq!(for_hopper() > before, for_hopper().is_some() && has_kernels, "launches of the kernels for Hopper");
}

pub fn rows_move_on(degrees: &[usize], device: fn() -> Cuda<f32>) {
    for chosen in combinations(degrees) {
        let (here, there) = (moved(&chosen, || Cpu::<f32>::new(1)), moved(&chosen, device));
        assert!(here == there, "{} {}", chosen.strategy.name(), chosen.layout.name());
    }
}

fn collectives_hand_over() {
    for ranks in [1, 2, 3, 5, 8] {
        let here = on_threads::<Host, _>(ranks, || Cpu::<f32>::new(1));
        let there = on_threads::<CudaMemory, _>(ranks, device::<f32>);
        assert!(here == there, "{ranks} ranks");
    }
}

/// Strategy, order, layout, kernel and ranks.
pub type Trained = (&'static str, &'static str, &'static str, &'static str, usize);

pub const TRAINED: [Trained; 6] = [
    ("single", "natural", "thd", "flash", 1),
    ("single", "natural", "bshd", "unfused", 1),
    ("ring", "zigzag", "thd", "flash", 2),
    ("ring", "zigzag", "bshd", "flash", 3),
    ("ulysses", "contiguous", "sbhd", "flash", 2),
    ("magi", "solved", "thd", "flash", 2),
];

pub fn choice((strategy, order, layout, kernel, degree): Trained) -> Choice {
    let [strategy, order, layout, kernel] = [strategy, order, layout, kernel].map(str::to_string);
    Choice { strategy, order, layout, kernel, degree, ..Choice::default() }
}

fn trains<T: CudaFloat>(choices: &[Trained], bound: f64) {
    for &trained_as in choices {
        let chosen = select::chosen(&choice(trained_as)).unwrap();
        let (here, there) = (trained(&chosen, || Cpu::<T>::new(1)), trained(&chosen, device::<T>));
        for (rank, (here, there)) in here.iter().zip(&there).enumerate() {
            for (step, (expected, found)) in here.iter().zip(there).enumerate() {
                let error = relative_error(found, expected, 0.0);
                assert!(error <= bound, "{trained_as:?}, rank {rank}, step {step}: {error:.1e}");
            }
        }
        assert!(there[0][2][0] < there[0][0][0], "it learns: {trained_as:?}");
        let again = (chosen.strategy.degree() == 2).then(|| trained(&chosen, device::<T>));
        assert!(again.is_none_or(|again| again == there), "the same bits again: {trained_as:?}");
    }
}

/// Losses and norms of a ring beside those of one rank, which differ by the roundings of bf16.
fn ring_learns() {
    let learned = |trained_as: Trained| {
        let chosen = select::chosen(&choice(trained_as)).unwrap();
        let steps = trained(&chosen, device::<bf16>).swap_remove(0);
        // Two losses and a norm; the weights follow.
        steps.into_iter().map(|numbers| numbers[..3].to_vec()).collect::<Vec<_>>()
    };
    let (one, four) = (learned(TRAINED[0]), learned(("ring", "zigzag", "thd", "flash", 4)));
    let worst = one.iter().zip(&four).map(|(one, four)| relative_error(four, one, 0.0)).fold(0.0, f64::max);
    println!("  worst error {worst:.1e}");
    assert!(worst <= 5e-3, "{one:?}, on four ranks {four:?}");
    assert!(four[2][0] < four[0][0], "it learns: {four:?}");
}

/// Over an engine that knows of no GPU, as MPI.
fn trains_staged() {
    let chosen = select::chosen(&choice(TRAINED[2])).unwrap();
    let there = trained(&chosen, device::<f32>);
    let staged = threads::run(2, |comm| {
        let device = device::<f32>();
        trained_on(&chosen, device.clone(), Box::new(Staged::new(comm, device)))
    });
    assert!(staged.as_ref() == Ok(&there), "{:?}", staged.err());
}
