//! Everything runs on a device whose ops run later, on a thread of their own, with the bits of the processor: nothing
//! above the ops leans on an op having run when its call returns, and every message is handed over.

use context_parallel::comm::decorate::staged::Staged;
use context_parallel::comm::{Communicator, threads};
use context_parallel::mask::Mask;
use context_parallel::ops::attention::AttentionShape;
use context_parallel::strategy::select::{self, Choice};
use context_parallel::tensor::queued::{Deferred, Queued};
use context_parallel::tensor::{Cpu, Float, Host};
use half::bf16;

use super::devices::{attended, collectives, combinations, moved, on_threads, trained, trained_on, trial};

fn attends_alike<T: Float>(degrees: &[usize]) -> usize {
    let all = combinations(degrees);
    for chosen in &all {
        let shape = |heads| AttentionShape { q_heads: heads, kv_heads: 2, qk_dim: 8, v_dim: 12, scale: 0.35 };
        for mask in [Mask::Causal, Mask::Window { left: Some(5), right: Some(2) }] {
            let (trial, placement) = trial::<T>(chosen, &mask, shape);
            let here = attended(chosen, &trial, &placement, || Cpu::<T>::new(1));
            let later = attended(chosen, &trial, &placement, || Queued::new(Cpu::<T>::new(1)));
            for (rank, (here, later)) in here.iter().zip(&later).enumerate() {
                let what = format!("{} {mask:?} on rank {rank}", chosen.strategy.name());
                for (a, b) in here.tensors.iter().zip(&later.tensors) {
                    assert!(bytemuck::cast_slice::<T, u8>(a) == bytemuck::cast_slice::<T, u8>(b), "{what}");
                }
                assert_eq!((here.sent, here.held), (later.sent, later.held), "{what}");
                assert!(later.predictions().iter().all(|(_, of)| of.predicted == of.counted), "{what}: {later:?}");
            }
        }
    }
    all.len()
}

#[test]
fn every_combination_attends_with_the_bits_of_the_processor() {
    let tested = attends_alike::<f32>(&[1, 2, 3, 4]);
    assert!(tested > 100, "{tested} combinations");
    attends_alike::<bf16>(&[3]);
}

#[test]
fn training_steps_have_the_bits_of_the_processor() {
    for (strategy, order, layout, degree) in [
        ("single", "natural", "thd", 1),
        ("ring", "zigzag", "thd", 2),
        ("ring", "zigzag", "bshd", 3),
        ("ulysses", "contiguous", "sbhd", 2),
        ("all-gather", "zigzag", "thd", 4),
        ("magi", "solved", "thd", 2),
    ] {
        let [strategy, order, layout, kernel] = [strategy, order, layout, "flash"].map(str::to_string);
        let choice = Choice { strategy, order, layout, kernel, degree, ..Choice::default() };
        let chosen = select::chosen(&choice).unwrap();
        let here = trained(&chosen, || Cpu::<f32>::new(1));
        let later = trained(&chosen, || Queued::new(Cpu::<f32>::new(1)));
        assert_eq!(here, later, "{choice:?}");
        let staged = threads::run(degree, |comm| {
            let device = Queued::new(Cpu::<f32>::new(1));
            trained_on(&chosen, device.clone(), Box::new(Staged::new(comm, device)))
        });
        assert_eq!(Ok(here.clone()), staged, "by way of host memory: {choice:?}");
        assert!(here[0][2][0] < here[0][0][0], "it learns: {choice:?}");
    }
}

#[test]
fn rows_move_and_roll_as_on_the_processor() {
    for chosen in combinations(&[2, 3, 4]) {
        let (here, later) = (moved(&chosen, || Cpu::<f32>::new(1)), moved(&chosen, || Queued::new(Cpu::<f32>::new(1))));
        assert_eq!(here, later, "{} {}", chosen.strategy.name(), chosen.layout.name());
    }
}

#[test]
fn collectives_hand_memory_over() {
    for ranks in [1, 2, 3, 5, 8] {
        let here = on_threads::<Host, _>(ranks, || Cpu::<f32>::new(1));
        let later = on_threads::<Deferred, _>(ranks, || Queued::new(Cpu::<f32>::new(1)));
        assert_eq!(here, later, "{ranks} ranks");
    }
}

#[test]
fn engines_of_host_memory_carry_messages_of_a_device() {
    for ranks in [1, 2, 3, 5] {
        let staged = threads::run(ranks, |comm| {
            let device = Queued::new(Cpu::<f32>::new(1));
            let comm = Staged::new(comm, device.clone());
            let halves = comm.split(comm.rank() % 2, comm.rank())?;
            let mut found = collectives(&device, &comm)?;
            found.extend(collectives(&device, &*halves)?);
            Ok(found)
        });
        assert_eq!(staged, Ok(on_threads::<Host, _>(ranks, || Cpu::<f32>::new(1))), "{ranks} ranks");
    }
}
