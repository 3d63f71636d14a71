//! Memory of a GPU: what is copied, shared, handed over, and given back.

use context_parallel::tensor::{Buffer, Cuda, Device, MatrixRef, Storage};

use super::Test;
use super::ranks::device;

pub const TESTS: &[Test] = &[
    ("memory goes there and back", there_and_back),
    ("memory that is shared is copied for who writes", shared_memory),
    ("memory of another stream must be handed over", handed_over),
    ("memory comes back once its readers are done", comes_back),
    ("memory that is not there is an error with its size", out_of_memory),
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
    gpu.write(&[5.0], context_parallel::tensor::MatrixMut::new(&mut first, 1, 1, 1, 1));
    assert_eq!(gpu.read(&first).unwrap(), [1.0, 5.0, 3.0]);
    assert_eq!(gpu.read(&second).unwrap(), [1.0, 2.0, 3.0]);
    drop(first);
    let allocations = gpu.memory().allocations;
    let mut second = second;
    gpu.write(&[9.0], context_parallel::tensor::MatrixMut::new(&mut second, 0, 1, 1, 1));
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
