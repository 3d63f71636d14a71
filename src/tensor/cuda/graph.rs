//! Work that comes again, as a CUDA graph: recorded once, then launched whole.
//!
//! The first time work is done as any other, so that kernels are compiled, lists of plans uploaded and products have
//! their algorithms; the second time it is recorded. Whatever cannot be recorded (a wait, a copy from the host, memory
//! that other streams use) ends the recording where it comes: what was asked for until then is launched, the rest is
//! done as any other, and nothing is kept. So recording changes when things reach the GPU, never what they do.
//!
//! A graph has the addresses of everything that it uses. Memory that was taken and given back while it was recorded
//! stays with it. For the rest it knows the blocks, and is not used again once one of them is gone, one that it writes
//! has two owners, or an owner's contents have moved to other memory.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, ThreadId};

use cudarc::driver::{DriverError, result, sys};

use super::gpu::Gpu;
use super::memory::Block;
use super::place::Place;
use super::pool::Slab;
use crate::error::Result;
use crate::tensor::Recording;

/// What is being recorded on a stream.
#[derive(Default)]
pub(super) struct Recorder {
    is_recording: AtomicBool,
    notes: Mutex<Notes>,
    /// How often an owner's contents went to other memory.
    moves: AtomicU64,
}

#[derive(Default)]
struct Notes {
    by: Option<ThreadId>,
    /// Memory that was there before, by its address.
    blocks: HashMap<sys::CUdeviceptr, Used>,
    /// Why the recording has ended before the work did.
    interrupted: Option<&'static str>,
    /// What was recorded.
    executable: Option<Executable>,
}

impl Recorder {
    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_recording(&self) -> bool {
        self.is_recording.load(Ordering::Relaxed)
    }

    /// Whether it is recording, and what another thread does.
    pub(super) fn is_of_another_thread(&self) -> bool {
        self.is_recording() && self.notes().by != Some(thread::current().id())
    }

    /// An op of what is recorded uses this memory, which was there before.
    pub(super) fn note(&self, address: sys::CUdeviceptr, block: &Arc<Block>, is_written: bool) {
        let used = || Used { block: Arc::downgrade(block), is_written };
        self.notes().blocks.entry(address).or_insert_with(used).is_written |= is_written;
    }

    /// The contents of an owner are in other memory than before.
    pub(super) fn note_move(&self) {
        self.moves.fetch_add(1, Ordering::Relaxed);
    }
}

/// What is kept of work.
enum Kept {
    /// It was done once, on this stream.
    Done(Weak<Place>),
    Graph(Graph),
    /// It cannot be recorded.
    Never(Weak<Place>),
}

impl Kept {
    /// Whether it is of this stream.
    fn is_of(&self, place: &Arc<Place>) -> bool {
        let (Kept::Done(of) | Kept::Graph(Graph { place: of, .. }) | Kept::Never(of)) = self;
        std::ptr::eq(of.as_ptr(), Arc::as_ptr(place))
    }
}

/// Memory that recorded work uses and others have.
struct Used {
    block: Weak<Block>,
    is_written: bool,
}

impl Used {
    /// Makes the stream wait for what others did with the memory, as an op that uses it would.
    fn come_after_others(&self, place: &Place) {
        if let Some(block) = self.block.upgrade() {
            block.come_after_others(place, self.is_written);
        }
    }

    /// Whether the memory is there, and may be written if it is.
    fn is_there(&self) -> bool {
        match self.block.strong_count() {
            0 => false,
            1 => true,
            _ => !self.is_written,
        }
    }
}

/// Recorded work, with the memory that it alone uses.
struct Graph {
    executable: Executable,
    place: Weak<Place>,
    gpu: Arc<Gpu>,
    slabs: Vec<Slab>,
    blocks: Vec<Used>,
    moves: u64,
}

impl Graph {
    /// Whether everything is where it was.
    fn is_current(&self) -> bool {
        self.place.upgrade().is_some_and(|place| {
            place.recorder().moves.load(Ordering::Relaxed) == self.moves && self.blocks.iter().all(Used::is_there)
        })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // In the order of the stream, as all memory of the pool. If the stream is gone, so is the pool: what it frees
        // last is what came back to it.
        if let Some(place) = self.place.upgrade() {
            self.slabs.drain(..).for_each(|slab| place.give_back(slab));
        }
        self.gpu.enter();
        self.slabs.drain(..).for_each(Slab::free);
    }
}

struct Executable(sys::CUgraphExec);

// SAFETY: the driver takes it from any thread, one at a time: it is used behind a `&mut Recording`.
unsafe impl Send for Executable {}
// SAFETY: as above.
unsafe impl Sync for Executable {}

impl Executable {
    /// What the stream has recorded; it records no longer.
    fn end(stream: sys::CUstream) -> Result<Executable, DriverError> {
        // SAFETY: the stream is alive; the graph is used here only, and gone when the executable has been made.
        unsafe {
            let graph = result::stream::end_capture(stream)?;
            let executable = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0));
            let _ = result::graph::destroy(graph);
            executable.map(Executable)
        }
    }
}

impl Drop for Executable {
    fn drop(&mut self) {
        // SAFETY: nobody launches it any more; the driver keeps it until what was launched has run.
        let _ = unsafe { result::graph::exec_destroy(self.0) };
    }
}

impl Place {
    /// See [`Device::repeat`](crate::tensor::Device::repeat).
    pub(super) fn repeat(self: &Arc<Self>, recording: &mut Recording, work: impl FnOnce() -> Result<()>) -> Result<()> {
        if self.recorder().is_recording() {
            return work();
        }
        if self.tracer().is_on() {
            // What it keeps is needed.
            recording.clear();
            return work();
        }
        let kept = recording.get::<Kept>().filter(|kept| kept.is_of(self));
        match kept {
            Some(Kept::Graph(graph)) if graph.is_current() => {
                graph.blocks.iter().for_each(|used| used.come_after_others(self));
                self.launch_graph(&graph.executable);
                return Ok(());
            }
            Some(Kept::Never(_)) => return work(),
            Some(_) if self.begin() => {}
            _ => {
                work()?;
                recording.set(Kept::Done(Arc::downgrade(self)));
                return Ok(());
            }
        }
        // A graph that is not current gives its memory back before it is needed again.
        recording.clear();
        let done = work();
        let (executable, slabs, notes) = self.end();
        if let Err(error) = done {
            slabs.into_iter().for_each(|slab| self.give_back(slab));
            return Err(error);
        }
        let place = Arc::downgrade(self);
        recording.set(match executable {
            Some(executable) => {
                let moves = self.recorder().moves.load(Ordering::Relaxed);
                let (gpu, blocks) = (self.gpu().clone(), notes.blocks.into_values().collect());
                Kept::Graph(Graph { executable, place, gpu, slabs, blocks, moves })
            }
            None => {
                slabs.into_iter().for_each(|slab| self.give_back(slab));
                Kept::Never(place)
            }
        });
        Ok(())
    }

    fn launch_graph(&self, executable: &Executable) {
        // SAFETY: both are alive, and so is the memory that the graph uses: see `Graph`.
        self.attempt("graph", || unsafe { result::graph::launch(executable.0, self.stream()) });
    }

    /// Begins to record; not if something has gone wrong.
    fn begin(&self) -> bool {
        use sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED as RELAXED;

        let recorder = self.recorder();
        if !self.is_well() {
            return false;
        }
        // SAFETY: the stream is alive. What other threads do with other streams is none of the recording's business.
        if unsafe { result::stream::begin_capture(self.stream(), RELAXED) }.is_err() {
            return false;
        }
        *recorder.notes() = Notes { by: Some(thread::current().id()), ..Notes::default() };
        recorder.is_recording.store(true, Ordering::Relaxed);
        self.pool().watch();
        true
    }

    /// Ends the recording and launches what was recorded. Gives it back, with the memory that it alone uses, if it was
    /// not interrupted and leaves no memory to others.
    fn end(&self) -> (Option<Executable>, Vec<Slab>, Notes) {
        self.end_recording();
        let mut notes = std::mem::take(&mut *self.recorder().notes());
        let (slabs, is_kept_by_others) = self.pool().watched();
        // Memory of before that became the work's own.
        let is_reused = slabs.iter().any(|slab| notes.blocks.contains_key(&slab.address));
        if is_kept_by_others || is_reused || !notes.blocks.values().all(Used::is_there) {
            notes.interrupted.get_or_insert("memory that outlives the work, or not");
        }
        let executable = notes.executable.take().filter(|_| notes.interrupted.is_none() && self.is_well());
        (executable, slabs, notes)
    }

    /// Whatever is being recorded is done as far as it was asked for, and not kept, because of what comes now.
    pub(super) fn interrupt(&self, why: &'static str) {
        if self.recorder().is_recording() {
            self.recorder().notes().interrupted = Some(why);
            self.end_recording();
        }
    }

    fn end_recording(&self) {
        let recorder = self.recorder();
        if !recorder.is_recording.swap(false, Ordering::Relaxed) {
            return;
        }
        match Executable::end(self.stream()) {
            Ok(executable) => {
                self.launch_graph(&executable);
                recorder.notes().executable = Some(executable);
            }
            Err(error) => self.fail("graph", super::probe::said(&error)),
        }
    }
}
