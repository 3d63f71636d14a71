//! Points in streams that others wait for.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{DriverError, result, sys};

/// Events that are not in use: once a program goes round, no new one is made.
#[derive(Default)]
pub(super) struct Events {
    free: Mutex<Vec<RawEvent>>,
}

struct RawEvent(sys::CUevent);

// SAFETY: the driver takes events from any thread.
unsafe impl Send for RawEvent {}

impl Events {
    /// One to be recorded.
    fn take(&self) -> Result<RawEvent, DriverError> {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        match free {
            Some(event) => Ok(event),
            None => Ok(RawEvent(result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)?)),
        }
    }

    fn put(&self, event: RawEvent) {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push(event);
    }
}

/// A point in a stream.
pub(crate) struct Event {
    raw: Option<RawEvent>,
    gpu: Arc<super::gpu::Gpu>,
}

// SAFETY: the driver takes events from any thread.
unsafe impl Sync for Event {}

impl Event {
    /// The point at which a stream of this GPU is now.
    pub(super) fn record(gpu: &Arc<super::gpu::Gpu>, stream: sys::CUstream) -> Result<Event, DriverError> {
        gpu.enter();
        let raw = gpu.events.take()?;
        let event = Event { raw: Some(raw), gpu: gpu.clone() };
        // SAFETY: both are of this GPU and alive.
        unsafe { result::event::record(event.handle(), stream)? };
        Ok(event)
    }

    /// Makes a stream wait until the point is reached.
    pub(super) fn hold_up(&self, stream: sys::CUstream) -> Result<(), DriverError> {
        // SAFETY: both are alive.
        unsafe { result::stream::wait_event(stream, self.handle(), sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT) }
    }

    /// Whether the stream has passed the point.
    pub(crate) fn is_passed(&self) -> Result<bool, DriverError> {
        self.gpu.enter();
        // SAFETY: the event is alive.
        match unsafe { result::event::query(self.handle()) } {
            Ok(()) => Ok(true),
            Err(DriverError(sys::CUresult::CUDA_ERROR_NOT_READY)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Makes the host wait until the point is reached, or something goes wrong, which others are told.
    pub(super) fn wait(&self) {
        // SAFETY: the event is alive.
        let _ = unsafe { result::event::synchronize(self.handle()) };
    }

    fn handle(&self) -> sys::CUevent {
        self.raw.as_ref().map_or(std::ptr::null_mut(), |raw| raw.0)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // Whoever was made to wait for it waits for the point that it had then, whatever it is used for next.
        if let Some(raw) = self.raw.take() {
            self.gpu.events.put(raw);
        }
    }
}

/// Points of a stream that are remembered.
const REMEMBERED: usize = 8;

/// The last points of a stream that were recorded, in their order.
#[derive(Debug, Default)]
pub(super) struct Points {
    /// Points that were ever recorded.
    count: u64,
    last: VecDeque<Arc<Event>>,
}

impl Points {
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    pub(super) fn push(&mut self, event: Arc<Event>) {
        self.count += 1;
        self.last.push_back(event);
        if self.last.len() > REMEMBERED {
            self.last.pop_front();
        }
    }

    /// The first that is remembered of those that came after so many; nothing if there is none yet.
    pub(super) fn after(&self, count: u64) -> Option<Arc<Event>> {
        let forgotten = self.count - self.last.len() as u64;
        self.last.get(count.saturating_sub(forgotten) as usize).cloned()
    }
}

impl std::fmt::Debug for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Event({:?})", self.handle())
    }
}
