//! When each thing that was asked of a GPU ran there, measured by events around it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use cudarc::driver::{DriverError, result, sys};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::gpu::Gpu;
use super::place::{Place, TRANSFERRING};
use super::probe::said;
use crate::error::{DeviceError, Result};

/// What ran on one rank's queues on a GPU.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Trace {
    /// The GPU, from 0, and its name.
    pub gpu: (usize, String),
    /// In the order in which they were asked for.
    pub spans: Vec<Span>,
}

/// One kernel, product or copy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Span {
    /// The kernel or operation.
    pub name: String,
    /// `computing`, or the queue that transfers have.
    pub queue: String,
    /// Microseconds since 1970 at its begin. Clocks of GPUs are set by the host's, to some microseconds.
    pub begin: f64,
    /// Microseconds that it took; events are told apart to half of one.
    pub duration: f64,
}

impl Trace {
    /// The traces of all ranks as Chrome's trace events, in JSON: Perfetto (ui.perfetto.dev) and `chrome://tracing`
    /// show a process per rank with a row for each queue. Time is in microseconds from the first span.
    pub fn to_json(ranks: &[Trace]) -> String {
        let all = ranks.iter().flat_map(|trace| &trace.spans);
        let first = all.map(|span| span.begin).fold(f64::INFINITY, f64::min);
        let mut events = Vec::new();
        for (rank, Trace { gpu: (ordinal, name), spans }) in ranks.iter().enumerate() {
            let mut queues: Vec<&str> = Vec::new();
            let label = |what: &str, thread: usize, name: String| -> Value {
                json!({ "ph": "M", "name": what, "pid": rank, "tid": thread, "args": { "name": name } })
            };
            events.push(label("process_name", 0, format!("rank {rank} on GPU {ordinal}, {name}")));
            for Span { name, queue, begin, duration } in spans {
                let thread = queues.iter().position(|other| other == queue).unwrap_or_else(|| {
                    queues.push(queue);
                    events.push(label("thread_name", queues.len() - 1, queue.clone()));
                    queues.len() - 1
                });
                events.push(json!({
                    "ph": "X", "name": name, "cat": queue, "pid": rank, "tid": thread,
                    "ts": begin - first, "dur": duration,
                }));
            }
        }
        json!({ "displayTimeUnit": "ms", "traceEvents": events }).to_string()
    }
}

/// What is measured of one rank's queues.
#[derive(Default)]
pub(super) struct Tracer {
    is_on: AtomicBool,
    measured: Mutex<Measured>,
}

#[derive(Default)]
struct Measured {
    /// An event, and microseconds since 1970 at it.
    origin: Option<(TimedEvent, f64)>,
    spans: Vec<(&'static str, &'static str, [TimedEvent; 2])>,
}

/// The begin of a transfer that is measured; nothing where nothing is.
#[derive(Debug)]
pub(crate) struct Begun(Option<TimedEvent>);

/// An event that knows when it was passed.
#[derive(Debug)]
struct TimedEvent(sys::CUevent);

// SAFETY: the driver takes events from any thread.
unsafe impl Send for TimedEvent {}

impl TimedEvent {
    /// The point at which the stream is now; the GPU is the calling thread's.
    fn record(stream: sys::CUstream) -> Result<TimedEvent, DriverError> {
        let event = TimedEvent(result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT)?);
        // SAFETY: both are of this GPU and alive.
        unsafe { result::event::record(event.0, stream)? };
        Ok(event)
    }

    /// Microseconds from this one to another; both have been passed.
    fn until(&self, other: &TimedEvent) -> Result<f64, DriverError> {
        // SAFETY: both are alive, and of one GPU.
        Ok(f64::from(unsafe { result::event::elapsed(self.0, other.0)? }) * 1e3)
    }
}

impl Drop for TimedEvent {
    fn drop(&mut self) {
        // SAFETY: nobody has it any more.
        let _ = unsafe { result::event::destroy(self.0) };
    }
}

impl Tracer {
    fn measured(&self) -> MutexGuard<'_, Measured> {
        self.measured.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Relaxed)
    }

    /// Does something on a stream, with events around it.
    pub(super) fn around<E>(
        &self,
        (name, queue): (&'static str, &'static str),
        stream: sys::CUstream,
        work: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        if !self.is_on() {
            return work();
        }
        let begin = TimedEvent::record(stream);
        let done = work();
        let end = TimedEvent::record(stream);
        // What cannot be measured is missing in the trace, and what is wrong with the stream shows elsewhere.
        if let (Ok(begin), Ok(end)) = (begin, end) {
            self.measured().spans.push((name, queue, [begin, end]));
        }
        done
    }
}

impl Place {
    /// A transfer begins that ends with [`end_transfer`](Self::end_transfer), whoever puts it on the stream.
    pub(crate) fn measure_transfer(&self) -> Begun {
        Begun(if self.tracer().is_on() { TimedEvent::record(self.transfers()).ok() } else { None })
    }

    /// The transfer is on the stream.
    pub(crate) fn end_transfer(&self, name: &'static str, Begun(begin): Begun) {
        if let Some(begin) = begin
            && let Ok(end) = TimedEvent::record(self.transfers())
        {
            self.tracer().measured().spans.push((name, TRANSFERRING, [begin, end]));
        }
    }

    /// Measures from now on when things run.
    pub(super) fn begin_trace(&self) -> Result<()> {
        self.finish()?;
        let begun = || {
            let origin = TimedEvent::record(self.stream())?;
            // SAFETY: the stream is alive.
            unsafe { result::stream::synchronize(self.stream())? };
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            Ok((origin, now.as_secs_f64() * 1e6))
        };
        let origin = begun().map_err(trace_error)?;
        *self.tracer().measured() = Measured { origin: Some(origin), spans: Vec::new() };
        self.tracer().is_on.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// What has run since then; nothing is measured any more.
    pub(super) fn end_trace(&self) -> Result<Trace> {
        self.tracer().is_on.store(false, Ordering::Relaxed);
        self.finish()?;
        self.wait_if_watched();
        self.check()?;
        let Measured { origin, spans } = std::mem::take(&mut *self.tracer().measured());
        let gpu: &Arc<Gpu> = self.gpu();
        let mut trace = Trace { gpu: (gpu.ordinal(), gpu.name().to_string()), spans: Vec::new() };
        let Some((origin, at)) = origin else { return Ok(trace) };
        for (name, queue, [begin, end]) in &spans {
            // Another queue may still be at it.
            // SAFETY: the event is alive.
            unsafe { result::event::synchronize(end.0) }.map_err(trace_error)?;
            let (start, duration) = (origin.until(begin).map_err(trace_error)?, begin.until(end).map_err(trace_error)?);
            let [name, queue] = [*name, *queue].map(str::to_string);
            trace.spans.push(Span { name, queue, begin: at + start, duration });
        }
        Ok(trace)
    }
}

fn trace_error(error: DriverError) -> crate::error::Error {
    DeviceError { op: "trace", reason: said(&error) }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_processes_and_queues_their_rows() {
        let span = |name: &str, queue: &str, begin, duration| {
            let [name, queue] = [name, queue].map(str::to_string);
            Span { name, queue, begin, duration }
        };
        let gpu = (0, "H200".to_string());
        let ranks = [
            Trace { gpu: gpu.clone(), spans: vec![span("a", "computing", 5.0, 2.0), span("b", "transfers", 6.0, 4.0)] },
            Trace { gpu, spans: vec![span("c", "computing", 4.5, 1.0)] },
        ];
        let found: Value = serde_json::from_str(&Trace::to_json(&ranks)).unwrap();
        let events = found["traceEvents"].as_array().unwrap();
        let spans: Vec<_> = events.iter().filter(|event| event["ph"] == "X").collect();
        let numbers = |event: &Value| ["pid", "tid", "ts", "dur"].map(|key| event[key].as_f64().unwrap());
        assert_eq!(
            spans.iter().map(|event| numbers(event)).collect::<Vec<_>>(),
            [[0.0, 0.0, 0.5, 2.0], [0.0, 1.0, 1.5, 4.0], [1.0, 0.0, 0.0, 1.0]]
        );
        assert_eq!(events.len(), 3 + 5, "two ranks, three queues");
        assert_eq!(events[0]["args"]["name"], "rank 0 on GPU 0, H200");
    }
}
