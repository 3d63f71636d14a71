//! An allocator that counts, on all threads.

use std::alloc::{GlobalAlloc, Layout, System};
use std::backtrace::Backtrace;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

static COUNT: AtomicUsize = AtomicUsize::new(0);
static IS_TRACED: AtomicBool = AtomicBool::new(false);
static TRACES: Mutex<Vec<(usize, Backtrace)>> = Mutex::new(Vec::new());

/// Traces that are kept at most.
const MOST: usize = 20_000;

thread_local! {
    static IS_TRACING: Cell<bool> = const { Cell::new(false) };
}

// SAFETY: every call goes to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size);
        unsafe { System.realloc(memory, layout, size) }
    }
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        unsafe { System.dealloc(memory, layout) }
    }
}

fn note(size: usize) {
    if IS_TRACING.try_with(Cell::get).unwrap_or(true) {
        return;
    }
    COUNT.fetch_add(1, Ordering::Relaxed);
    if IS_TRACED.load(Ordering::Relaxed) {
        IS_TRACING.set(true);
        let mut traces = TRACES.lock().unwrap();
        if traces.len() < MOST {
            traces.push((size, Backtrace::force_capture()));
        }
        drop(traces);
        IS_TRACING.set(false);
    }
}

/// Allocations and reallocations of all threads while `work` runs. With the environment variable `ALLOCATIONS` set,
/// where they come from is printed.
pub fn count(work: impl FnOnce()) -> usize {
    IS_TRACED.store(std::env::var_os("ALLOCATIONS").is_some(), Ordering::SeqCst);
    let before = COUNT.load(Ordering::SeqCst);
    work();
    let found = COUNT.load(Ordering::SeqCst) - before;
    if IS_TRACED.swap(false, Ordering::SeqCst) {
        print();
    }
    found
}

/// The traces, those of one place together, without frames that are not this crate's.
fn print() {
    let mut places = BTreeMap::<String, (usize, usize)>::new();
    for (size, trace) in TRACES.lock().unwrap().drain(..) {
        let trace = trace.to_string();
        let lines: Vec<&str> = trace.lines().map(str::trim).collect();
        let named = |at: usize| {
            let file = lines.get(at + 1).and_then(|line| line.strip_prefix("at ")).unwrap_or("");
            let name = lines[at].split_once(": ").map_or(lines[at], |(_, name)| name);
            (name.to_owned(), file.trim_start_matches("./").to_owned())
        };
        let frames = (0..lines.len()).filter(|&at| !lines[at].starts_with("at ")).map(named);
        let own = frames.filter(|(_, file)| file.starts_with("src/"));
        let place: Vec<String> = own.take(4).map(|(name, file)| format!("{file} {name}")).collect();
        let entry = places.entry(place.join("\n        <- ")).or_default();
        *entry = (entry.0 + 1, entry.1.max(size));
    }
    let mut places: Vec<_> = places.into_iter().collect();
    places.sort_by_key(|(_, (count, _))| std::cmp::Reverse(*count));
    for (place, (count, size)) in places {
        eprintln!("{count:6} up to {size} bytes: {place}");
    }
}
