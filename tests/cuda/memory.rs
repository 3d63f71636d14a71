//! Memory of a GPU: what is copied, shared, handed over, and given back.

use context_parallel::tensor::{Buffer, Cuda, Device, MatrixMut, MatrixRef, Recording, Storage};

use super::Test;
use super::ranks::device;

pub const TESTS: &[Test] = &[
    ("memory goes there and back", there_and_back),
    ("memory that is shared is copied for who writes", shared_memory),
    ("memory of another stream must be handed over", handed_over),
    ("memory comes back once its readers are done", comes_back),
    ("memory that is not there is an error with its size", out_of_memory),
    ("recorded work finds its memory", recorded_work),
    ("recorded work waits for who still reads what it writes", recorded_work_waits),
    ("work that cannot be recorded is done as it is", work_is_not_recorded),
];

fn there_and_back() {
    let gpu: Cuda<f32> = device();
    let values: Vec<f32> = (0..35).map(|i| i as f32).collect();
    let mut matrix = gpu.zero_matrix::<f32>(9, 11);
    gpu.write(&values, matrix.view_mut().row_range(1..8).column_range(3..8));
    assert_eq!(gpu.read(matrix.view().row_range(1..8).column_range(3..8)).unwrap(), values);
    assert_eq!(gpu.read(&matrix).unwrap().iter().sum::<f32>(), values.iter().sum::<f32>());
    assert!(gpu.read(&gpu.upload::<i64>(&[])).unwrap().is_empty());
    let copy = gpu.duplicate(matrix.buffer());
    gpu.write(&[7.0; 99], matrix.view_mut());
    assert_eq!(gpu.read(&copy).unwrap().iter().sum::<f32>(), values.iter().sum::<f32>());
    let part = CudaPart::part(&copy, 14..19);
    assert_eq!(gpu.read(&part).unwrap(), values[..5]);
    assert_eq!(gpu.ledger().held(), 4 * (99 + 99 + 5));
}

type CudaPart = context_parallel::tensor::cuda::CudaMemory;

fn shared_memory() {
    let gpu: Cuda<f32> = device();
    let (mut first, second) = gpu.upload(&[1.0f32, 2.0, 3.0]).share();
    gpu.write(&[5.0], MatrixMut::new(&mut first, 1, 1, 1, 1));
    assert_eq!(gpu.read(&first).unwrap(), [1.0, 5.0, 3.0]);
    assert_eq!(gpu.read(&second).unwrap(), [1.0, 2.0, 3.0]);
    drop(first);
    let allocations = gpu.memory().allocations;
    let mut second = second;
    gpu.write(&[9.0], MatrixMut::new(&mut second, 0, 1, 1, 1));
    assert_eq!(gpu.read(&second).unwrap(), [9.0, 2.0, 3.0]);
    assert_eq!(gpu.memory().allocations, allocations, "its only owner writes in place");
}

fn handed_over() {
    let (from, to): (Cuda<f32>, Cuda<f32>) = (device(), device());
    let mut sent = from.upload(&[1.0f32; 1000]);
    sent.storage().leave();
    sent.storage_mut().arrive();
    let mut sum = to.upload(&[2.0f32; 1000]);
    CudaPart::add(&mut sum, 0, &sent);
    assert_eq!(to.read(&sum).unwrap(), [3.0; 1000]);
    let kept = from.upload(&[1.0f32; 10]);
    CudaPart::add(&mut sum, 0, &kept);
    let error = to.read(&sum).unwrap_err().to_string();
    assert!(error.contains("40 bytes of another stream") && error.contains("Storage::"), "{error}");
    assert!(to.read(&sum).is_err(), "it stays");
    assert_eq!(from.read(&kept).unwrap(), [1.0; 10], "on that stream alone");
}

fn comes_back() {
    let (from, to): (Cuda<f32>, Cuda<f32>) = (device(), device());
    for round in 0..20 {
        let mut sent: Buffer<f32, CudaPart> = from.upload(&[round as f32; 5000]);
        sent.storage().leave();
        sent.storage_mut().arrive();
        let copy = to.duplicate(&sent);
        drop(sent);
        // The next message has the memory of this one.
        let _next = from.upload(&[-1.0f32; 5000]);
        let copied = to.read(MatrixRef::of_buffer(&copy)).unwrap();
        assert!(copied.iter().all(|&x| x == round as f32), "round {round}");
    }
    assert!(from.memory().allocations <= 2, "{:?}", from.memory());
    assert!(to.memory().allocations <= 1, "{:?}", to.memory());
}

fn out_of_memory() {
    let gpu: Cuda<f32> = device();
    let error = gpu.reserve(1 << 50).unwrap_err();
    assert!(error.is_input() && error.to_string().contains("1125899906842624 bytes"), "{error}");
    let huge = gpu.empty::<f32>(1 << 48);
    assert_eq!(huge.len(), 1 << 48);
    let error = gpu.read(&gpu.upload(&[1.0f32])).unwrap_err().to_string();
    assert!(error.contains("1125899906842624 bytes"), "{error}");
}

fn recorded_work() {
    let gpu: Cuda<f32> = device();
    let (mut sum, step) = (gpu.upload(&[1.0f32; 100]), gpu.upload(&[2.0f32; 100]));
    let (mut recording, mut runs) = (Recording::default(), 0);
    let mut add = |sum: &mut Buffer<f32, CudaPart>| {
        gpu.repeat(&mut recording, || {
            runs += 1;
            // Memory of its own, which nobody else may have while it comes again.
            let twice = gpu.duplicate(&step);
            CudaPart::add(sum, 0, &twice);
            Ok(())
        })
        .unwrap();
    };
    (0..4).for_each(|_| add(&mut sum));
    let others = [(); 3].map(|()| gpu.upload(&[9.0f32; 100]));
    (0..2).for_each(|_| add(&mut sum));
    assert_eq!(gpu.read(&sum).unwrap(), [13.0; 100]);
    assert!(others.iter().all(|other| gpu.read(other).unwrap() == [9.0; 100]), "theirs is not the work's");
    // A sum with two owners goes elsewhere when it is written.
    let (mut sum, before) = sum.share();
    (0..3).for_each(|_| add(&mut sum));
    assert_eq!(gpu.read(&sum).unwrap(), [19.0; 100]);
    assert_eq!(gpu.read(&before).unwrap(), [13.0; 100]);
    drop(before);
    // Another sum, where the former one is gone.
    drop(sum);
    let mut sum = gpu.upload(&[0.0f32; 100]);
    (0..3).for_each(|_| add(&mut sum));
    assert_eq!(gpu.read(&sum).unwrap(), [6.0; 100]);
    assert!((4..12).contains(&runs), "{runs} of 12 times");
}

fn recorded_work_waits() {
    let (gpu, other): (Cuda<f32>, Cuda<f32>) = (device(), device());
    let (mut sum, step) = (gpu.upload(&[0.0f32; 100]), gpu.upload(&[2.0f32; 100]));
    let (mut recording, mut runs) = (Recording::default(), 0);
    for round in 0..6 {
        let (kept, mut sent) = sum.share();
        sum = kept;
        sent.storage().leave();
        sent.storage_mut().arrive();
        let copy = other.duplicate(&sent);
        drop(sent);
        gpu.repeat(&mut recording, || {
            runs += 1;
            CudaPart::add(&mut sum, 0, &step);
            Ok(())
        })
        .unwrap();
        if round == 0 {
            // A reader that has to be waited for would end the recording.
            other.read(&copy).unwrap();
            gpu.repeat(&mut recording, || {
                runs += 1;
                CudaPart::add(&mut sum, 0, &step);
                Ok(())
            })
            .unwrap();
            continue;
        }
        // Whatever is asked for first, the other one's copy is of before.
        let before = 2.0 * (round + 1) as f32;
        assert_eq!(gpu.read(&sum).unwrap(), [before + 2.0; 100]);
        assert_eq!(other.read(&copy).unwrap(), [before; 100]);
    }
    assert_eq!(runs, 2, "then the graph alone");
}

fn work_is_not_recorded() {
    let gpu: Cuda<f32> = device();
    let mut sum = gpu.upload(&[0.0f32; 10]);
    let (mut recording, mut kept) = (Recording::default(), Vec::new());
    for round in 0..4 {
        gpu.repeat(&mut recording, || {
            let copy = gpu.duplicate(&sum);
            CudaPart::add(&mut sum, 0, &copy);
            CudaPart::add(&mut sum, 0, &gpu.upload(&[1.0f32; 10]));
            assert_eq!(gpu.read(&sum)?, [(2 << round) as f32 - 1.0; 10]);
            Ok(())
        })
        .unwrap();
    }
    // Memory that outlives the work is not the work's.
    let mut recording = Recording::default();
    for round in 0..4 {
        gpu.repeat(&mut recording, || {
            let mut copy = gpu.duplicate(&sum);
            CudaPart::add(&mut copy, 0, &sum);
            kept.push(copy);
            Ok(())
        })
        .unwrap();
        assert_eq!(kept.len(), round + 1, "it runs every time");
    }
    assert!(kept.iter().all(|copy| gpu.read(copy).unwrap() == [30.0; 10]));
    // Work that fails while it is recorded gives its memory back.
    let mut recording = Recording::default();
    let owned = |fails: bool, recording: &mut Recording| {
        let failed = gpu.repeat(recording, || {
            let mut copy = gpu.duplicate(&sum);
            CudaPart::add(&mut copy, 0, &sum);
            match fails {
                true => Err(context_parallel::error::SupportError::Cuda("no".into()).into()),
                false => Ok(()),
            }
        });
        assert_eq!(failed.is_err(), fails);
        gpu.memory().owned
    };
    let before = owned(false, &mut recording);
    for _ in 0..3 {
        assert_eq!(owned(true, &mut recording), before);
        assert_eq!(owned(false, &mut recording), before);
    }
}
