//! Points in streams that others wait for.

use std::sync::{Mutex, PoisonError};

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
pub(super) struct Event {
    raw: Option<RawEvent>,
    gpu: std::sync::Arc<super::gpu::Gpu>,
}

// SAFETY: the driver takes events from any thread.
unsafe impl Sync for Event {}

impl Event {
    /// The point at which a stream of this GPU is now.
    pub(super) fn record(gpu: &std::sync::Arc<super::gpu::Gpu>, stream: sys::CUstream) -> Result<Event, DriverError> {
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

impl std::fmt::Debug for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Event({:?})", self.handle())
    }
}
