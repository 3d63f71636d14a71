//! Buffers that live in memory of another kind leave once, and arrive once at each receiver.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::super::super::{Collectives, Message, Parcel, Receive};
use super::super::*;
use crate::tensor::{Buffer, Charge, Element, Real};

/// Memory that counts how often it leaves and arrives.
#[derive(Debug)]
struct Noted {
    bytes: Vec<u8>,
    marks: Arc<[AtomicUsize; 2]>,
}

impl Noted {
    fn of<T: Element>(values: &[T], marks: &Arc<[AtomicUsize; 2]>) -> Buffer<T, Noted> {
        let noted = Noted { bytes: bytemuck::cast_slice(values).to_vec(), marks: marks.clone() };
        Buffer::from_storage(noted, values.len())
    }

    fn values<T: Element>(buffer: &Buffer<T, Noted>) -> Vec<T> {
        let bytes = &buffer.storage().bytes[..buffer.bytes()];
        bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()
    }

    /// A change of all values of a buffer.
    fn change<T: Element>(target: &mut Buffer<T, Noted>, change: impl FnOnce(&mut [T])) {
        let (mut values, marks) = (Noted::values(target), target.storage().marks.clone());
        change(&mut values);
        *target = Noted::of(&values, &marks);
    }
}

impl Storage for Noted {
    fn capacity(&self) -> usize {
        self.bytes.len()
    }

    fn leave(&self) {
        self.marks[0].fetch_add(1, Ordering::Relaxed);
    }

    fn arrive(&mut self) {
        self.marks[1].fetch_add(1, Ordering::Relaxed);
    }

    fn beside<T: Element>(source: &Buffer<T, Self>, len: usize) -> Buffer<T, Self> {
        Noted::of(&vec![T::zeroed(); len], &source.storage().marks)
    }

    fn set_charge(&mut self, _charge: Option<Charge>) {}

    fn part<T: Element>(source: &Buffer<T, Self>, range: std::ops::Range<usize>) -> Buffer<T, Self> {
        Noted::of(&Noted::values(source)[range], &source.storage().marks)
    }

    fn write<T: Element>(target: &mut Buffer<T, Self>, at: usize, from: &Buffer<T, Self>) {
        let from = Noted::values(from);
        Noted::change(target, |values| values[at..at + from.len()].copy_from_slice(&from));
    }

    fn add<T: Real>(target: &mut Buffer<T, Self>, at: usize, from: &Buffer<T, Self>) {
        let from = Noted::values(from);
        Noted::change(target, |values| values[at..].iter_mut().zip(from).for_each(|(sum, value)| *sum += value));
    }
}

#[test]
fn memory_of_any_kind_leaves_once_and_arrives_once_at_each_receiver() {
    // Messages that leave, and that arrive, in all.
    #[allow(clippy::type_complexity)]
    let counted = |ranks: usize, act: &(dyn Fn(&ThreadComm<Noted>, &Arc<[AtomicUsize; 2]>) -> Result<()> + Sync)| {
        let marks = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
        run_on::<Noted, _, _>(Waiting::default(), ranks, |comm| act(&comm, &marks)).expect("no rank fails");
        [0, 1].map(|at| marks[at].load(Ordering::Relaxed))
    };
    let news = counted(4, &|comm, marks| {
        if comm.rank() == 1 {
            let messages = vec![Message::new(vec![0, 2, 3], Noted::of(&[5i64, 6], marks))];
            return comm.exchange("news".into(), messages, vec![])?.wait().map(drop);
        }
        let mut parcels = comm.exchange("news".into(), vec![], vec![Receive::of::<i64>(1, 2)])?.wait()?.parcels;
        assert_eq!(parcels.pop().and_then(Parcel::open).map(|news| Noted::values::<i64>(&news)), Some(vec![5, 6]));
        Ok(())
    });
    assert_eq!(news, [1, 3]);
    for ranks in [3, 8] {
        let gathered = counted(ranks, &|comm, marks| {
            let all = comm.all_gather_v(Noted::of(&[comm.rank() as f32], marks), &vec![1; ranks])?;
            assert!(all.iter().enumerate().all(|(rank, part)| Noted::values(part) == [rank as f32]));
            Ok(())
        });
        // To all at once, or to one in each of three rounds.
        assert_eq!(gathered, if ranks == 3 { [3, 6] } else { [24, 24] });
        let all = ranks * (ranks - 1);
        let traded = counted(ranks, &|comm, marks| {
            let parts = (0..ranks).map(|to| Noted::of(&[to as i32], marks)).collect();
            let own = comm.all_to_all_v(parts, &vec![1; ranks])?;
            assert!(own.iter().all(|part| Noted::values(part) == [comm.rank() as i32]));
            Ok(())
        });
        assert_eq!(traded, [all, all]);
        let summed = counted(ranks, &|comm, marks| {
            let mut values = Noted::of(&[1f64, 2.0, 3.0], marks);
            comm.all_reduce(&mut values)?;
            assert_eq!(Noted::values(&values), [1.0, 2.0, 3.0].map(|value| value * ranks as f64));
            Ok(())
        });
        assert_eq!(summed[1], if ranks == 3 { 12 } else { 24 });
        let spread = counted(ranks, &|comm, marks| {
            let mut values = Noted::of(&[comm.rank() as i64], marks);
            comm.broadcast(1, &mut values)?;
            assert_eq!(Noted::values(&values), [1]);
            Ok(())
        });
        // Who passes it on does so once, whoever gets it.
        assert!(spread[0] < ranks && spread[1] == ranks - 1, "{spread:?}");
    }
}
