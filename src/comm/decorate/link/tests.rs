//! Tests of the simulated link, on a clock that is turned by hand.

use super::*;
use crate::comm::clock::ManualClock;
use crate::comm::threads::run;
use crate::tensor::Buffer;

/// Sends 1000 bytes to the other of two ranks.
fn swap(comm: &impl Communicator) -> Result<Pending> {
    let peer = 1 - comm.rank();
    let sends = vec![Message::new(peer, Buffer::from_slice(&[7u8; 1000]))];
    comm.exchange("swap".into(), sends, vec![Receive::of::<u8>(peer, 1000)])
}

#[test]
fn travel_time_is_latency_plus_size_over_rate() {
    let link = Link::new(Duration::from_millis(5), 1e6);
    assert_eq!(link.travel(0), Duration::from_millis(5));
    assert_eq!(link.travel(1000), Duration::from_millis(6));
    assert_eq!(Link::new(Duration::ZERO, 0.0).travel(1 << 40), Duration::ZERO);
}

#[test]
fn a_message_comes_when_its_time_has_come() {
    let clock = ManualClock::default();
    let link = Link::with_clock(Duration::from_secs(2), 1000.0, Arc::new(clock.clone()));
    let times = run(2, |comm| {
        let comm = SimulatedLink::new(comm, link.clone());
        // One exchange is given up, one goes through a group of its own: neither moves the times of the others.
        drop(swap(&comm)?);
        let group = comm.split(0, 0)?;
        let (here, there) = (swap(&comm)?, swap(&group)?);
        comm.barrier()?;
        if comm.rank() == 0 {
            clock.advance(Duration::from_millis(2999));
        }
        comm.barrier()?;
        let early = clock.now();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| here.wait().and_then(|_| there.wait()).map(|_| clock.now()));
            std::thread::sleep(Duration::from_millis(10));
            let held = !waiting.is_finished();
            comm.barrier()?;
            if comm.rank() == 0 {
                clock.advance(Duration::from_millis(1));
            }
            let arrived = waiting.join().expect("waiting does not panic")?;
            Ok((early, held, arrived))
        })
    });
    let expected = (Duration::from_millis(2999), true, Duration::from_secs(3));
    assert_eq!(times, Ok(vec![expected; 2]));
}

#[test]
fn an_exchange_that_fails_does_not_move_the_times_of_the_next() {
    let clock = ManualClock::default();
    let link = Link::with_clock(Duration::ZERO, 1000.0, Arc::new(clock.clone()));
    let held = run(2, |comm| {
        let comm = SimulatedLink::new(comm, link.clone());
        if comm.rank() == 0 {
            // The first would have been there at once.
            let send = |to: usize| Message::new(to, Buffer::from_slice(&[0u8; 0]));
            let failed = comm.exchange("swap".into(), vec![send(1), send(2)], vec![Receive::of::<u8>(1, 0)]);
            assert!(failed.is_err(), "there are two ranks");
        }
        comm.barrier()?;
        let pending = swap(&comm)?;
        comm.barrier()?;
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| pending.wait().map(|_| ()));
            std::thread::sleep(Duration::from_millis(10));
            let held = !waiting.is_finished();
            comm.barrier()?;
            if comm.rank() == 0 {
                clock.advance(Duration::from_secs(1));
            }
            waiting.join().expect("waiting does not panic")?;
            Ok(held)
        })
    });
    assert_eq!(held, Ok(vec![true; 2]), "1000 bytes take a second, both ways");
    let arrivals = link.arrivals();
    assert!(arrivals.values().all(|way| way.due.is_empty() && way.unwanted.is_empty()), "{arrivals:?}");
}

#[test]
fn work_hides_the_link() {
    let clock = ManualClock::default();
    let link = Link::with_clock(Duration::from_millis(200), 0.0, Arc::new(clock.clone()));
    let times = run(2, |comm| {
        let comm = SimulatedLink::new(comm, link.clone());
        let pending = swap(&comm)?;
        comm.barrier()?;
        // As long as the message is on its way, both ranks have something else to do.
        if comm.rank() == 0 {
            clock.advance(Duration::from_millis(200));
        }
        comm.barrier()?;
        // The time does not go on any more: a message that was not there yet would never be.
        pending.wait()?;
        Ok(clock.now())
    });
    assert_eq!(times, Ok(vec![Duration::from_millis(200); 2]));
}

#[test]
fn a_message_for_many_takes_its_time_to_each() {
    let clock = ManualClock::default();
    let link = Link::with_clock(Duration::ZERO, 1000.0, Arc::new(clock.clone()));
    let times = run(3, |comm| {
        let comm = SimulatedLink::new(comm, link.clone());
        let news = Message::new(vec![1, 2], Buffer::from_slice(&[7u8; 2000]));
        if comm.rank() == 0 {
            comm.exchange("news".into(), vec![news], vec![])?.wait()?;
            comm.barrier()?;
            clock.advance(Duration::from_secs(2));
            return Ok(clock.now());
        }
        let pending = comm.exchange("news".into(), vec![], vec![Receive::of::<u8>(0, 2000)])?;
        comm.barrier()?;
        pending.wait()?;
        Ok(clock.now())
    });
    assert_eq!(times, Ok(vec![Duration::from_secs(2); 3]));
}
