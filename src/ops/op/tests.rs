//! Ops that run later: what is allowed on a queue, and what is an error at the next read.

use std::sync::mpsc::{Sender, channel};

use crate::error::Error;
use crate::ops::matmul::Matmul;
use crate::ops::rows::MoveRows;
use crate::order::Rows;
use crate::tensor::queued::{Deferred, Queued};
use crate::tensor::{Buffer, Cpu, Device, Element, Matrix, MatrixMut, MatrixRef, Storage};

fn device() -> Queued<Cpu<f32>> {
    Queued::new(Cpu::new(1))
}

/// Keeps the queue from going on until the sender is dropped.
fn stopped(device: &Queued<Cpu<f32>>) -> Sender<()> {
    let (sender, receiver) = channel();
    device.issue("stop").run(move || {
        let _ = receiver.recv();
    });
    sender
}

fn failure<T: Element>(device: &Queued<Cpu<f32>>, buffer: &Buffer<T, Deferred>) -> String {
    match device.read(buffer) {
        Err(Error::Device(failure)) => failure.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn ops_run_later_in_order_and_read_waits_for_them() {
    let device = device();
    let mut x = device.upload(&[1.0f32, 2.0, 3.0]);
    let y = device.upload(&[10.0f32, 20.0, 30.0]);
    let go_on = stopped(&device);
    device.add(MatrixMut::of_buffer(&mut x), MatrixRef::of_buffer(&y));
    let mut last = device.matrix(1, 1);
    let rows = device.rows(&Rows::from_iter([2]));
    device.gather_rows(MatrixRef::new(&x, 0, 3, 1, 1), &rows, last.view_mut());
    // Memory is let go while ops are still to run on it.
    drop((x, y));
    drop(go_on);
    assert_eq!(device.read(&last).unwrap(), [33.0]);
}

#[test]
fn memory_is_poisoned_until_it_is_written_and_zero_where_it_is_asked_for() {
    let device = device();
    let empty = device.empty::<f32>(3);
    assert!(device.read(&empty).unwrap().iter().all(|x| x.is_nan()));
    drop(empty);
    assert_eq!(device.read(&device.zeros::<f64>(2)).unwrap(), [0.0; 2]);
    assert_eq!(device.read(&device.upload(&[5i64, 6])).unwrap(), [5, 6]);
    assert_eq!(device.read(&device.duplicate(&device.upload(&[7u8]))).unwrap(), [7]);
    let held = device.ledger().held();
    let (some, more) = (device.empty::<f32>(100), device.upload(&[1u8]));
    assert_eq!(device.ledger().held() - held, 401);
    drop((some, more));
    assert_eq!(device.ledger().held(), held, "the account is free when the owner is gone, whatever still runs");
}

#[test]
fn a_panic_inside_an_op_comes_out_at_the_next_read_and_only_there() {
    let device = device();
    let (x, w) = (device.zero_matrix(2, 3), device.zero_matrix(4, 5));
    let mut y = device.matrix(2, 5);
    device.linear(x.view(), w.view(), None, y.view_mut());
    let message = failure(&device, y.buffer());
    assert!(message.contains("the device failed in linear"), "{message}");
    assert!(device.read(y.buffer()).is_ok(), "said once");
}

#[test]
fn memory_of_another_queue_must_be_handed_over() {
    let (sender, receiver) = (device(), device());
    let read = |left: bool, arrived: bool| {
        let go_on = stopped(&sender);
        let mut message = sender.empty::<f32>(2);
        sender.fill(MatrixMut::of_buffer(&mut message), 4.0);
        let storage = message.into_storage();
        if left {
            storage.leave();
        }
        let mut storage = storage;
        if arrived {
            storage.arrive();
        }
        let message = Buffer::<f32, Deferred>::from_storage(storage, 2);
        let mut sum = receiver.zeros::<f32>(2);
        receiver.add(MatrixMut::of_buffer(&mut sum), MatrixRef::of_buffer(&message));
        drop(go_on);
        receiver.read(&sum).map_err(|error| error.to_string())
    };
    assert_eq!(read(true, true), Ok(vec![4.0; 2]));
    let message = read(false, true).unwrap_err();
    assert!(message.contains("in add: 64 bytes that another queue wrote were not handed over"), "{message}");
    let message = read(true, false).unwrap_err();
    assert!(message.contains("were not received (Storage::arrive)"), "{message}");
}

#[test]
fn shared_memory_is_copied_for_who_writes_and_a_writer_waits_for_readers_elsewhere() {
    let (first, second) = (device(), device());
    let (mut mine, theirs) = first.upload(&[1.0f32, 2.0]).share();
    let storage = theirs.into_storage();
    storage.leave();
    let mut storage = storage;
    storage.arrive();
    let mut theirs = Buffer::<f32, Deferred>::from_storage(storage, 2);
    first.fill(MatrixMut::of_buffer(&mut mine), 9.0);
    assert_eq!(second.read(&theirs).unwrap(), [1.0, 2.0]);
    assert_eq!(first.read(&mine).unwrap(), [9.0, 9.0]);

    // The one owner that is left writes in place, after what the other one still has to read.
    let (mine, again) = first.upload(&[1.0f32, 2.0]).share();
    let mut storage = again.into_storage();
    storage.leave();
    storage.arrive();
    theirs = Buffer::from_storage(storage, 2);
    let go_on = stopped(&first);
    let copy = first.duplicate(&mine);
    drop(mine);
    second.fill(MatrixMut::of_buffer(&mut theirs), 8.0);
    drop(go_on);
    assert_eq!((first.read(&copy).unwrap(), second.read(&theirs).unwrap()), (vec![1.0, 2.0], vec![8.0; 2]));
}

#[test]
fn what_engines_do_with_memory_runs_on_the_queue_that_wrote_it() {
    let device = device();
    let go_on = stopped(&device);
    let mut whole = device.upload(&[1.0f32, 2.0, 3.0, 4.0]);
    let part = Deferred::part(&whole, 1..3);
    Deferred::add(&mut whole, 2, &part);
    let mut new = Deferred::beside::<f32>(&whole, 3);
    Deferred::write(&mut new, 0, &part);
    drop(go_on);
    assert_eq!(device.read(&whole).unwrap(), [1.0, 2.0, 5.0, 7.0]);
    let new = device.read(&new).unwrap();
    assert!(new[..2] == [2.0, 3.0] && new[2].is_nan(), "{new:?}");
    let matrix: Matrix<f32, Deferred> = device.matrix(0, 4);
    assert!(device.read(&matrix).unwrap().is_empty());
}
