//! Says what a long silent wait is for.

use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use indicatif::ProgressBar;

use super::{bytes, is_quiet, note};

/// How long a phase may take without a word.
const PATIENCE: Duration = Duration::from_secs(2);
/// Milliseconds in its place, so that tests need no slow runs.
const PATIENCE_VARIABLE: &str = "CONTEXT_PARALLEL_PATIENCE_MS";

/// Work under way; it is over when this is dropped.
#[must_use = "the phase ends when this is dropped"]
pub struct Phase {
    /// Never sent to: that it is dropped is the news.
    _over: Option<Sender<()>>,
}

/// Begins a phase: where it is not over after two seconds, `what` is printed as a line of progress.
pub fn phase(what: impl Into<String>) -> Phase {
    phase_beside(&ProgressBar::hidden(), what)
}

/// The same while a bar is shown.
pub fn phase_beside(bar: &ProgressBar, what: impl Into<String>) -> Phase {
    if is_quiet() {
        return Phase { _over: None };
    }
    let patience = std::env::var(PATIENCE_VARIABLE).ok().and_then(|text| text.parse().ok());
    let (patience, what, bar) = (patience.map_or(PATIENCE, Duration::from_millis), what.into(), bar.clone());
    let say = move || bar.suspend(|| note(format!("{what} ..")));
    if patience.is_zero() {
        say();
        return Phase { _over: None };
    }
    let (over, waiting) = channel();
    let watching = std::thread::Builder::new().name("phase".into()).spawn(move || {
        if waiting.recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
            say();
        }
    });
    // Without a thread to watch, nothing is said.
    Phase { _over: watching.is_ok().then_some(over) }
}

/// Begins to read a file, or the weights in a folder.
pub fn reading(path: &Path) -> Phase {
    let size = |path: &Path| std::fs::metadata(path).map_or(0, |metadata| metadata.len());
    let weights = |folder| {
        let files = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
        files.filter(|file| file.extension().is_some_and(|kind| kind == "safetensors")).map(|file| size(&file)).sum()
    };
    let size: u64 = if path.is_dir() { weights(path) } else { size(path) };
    phase(format!("reading {} ({})", path.display(), bytes(size)))
}
