//! What commands print: results on stdout, progress and errors on stderr, and how numbers look.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

use console::Term;
use context_parallel::error::Error;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

mod phase;
mod table;

pub use phase::{Phase, phase, phase_beside, reading};
pub use table::table;

/// Whether progress is left out.
static QUIET: AtomicBool = AtomicBool::new(false);

/// Leaves out progress from now on: results and errors are all that is printed.
pub fn be_quiet() {
    QUIET.store(true, Ordering::Relaxed);
}

/// Whether progress is left out.
pub fn is_quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}

/// Writes a line of results. A reader that has gone away (`| head`) is no failure.
pub fn line(text: impl AsRef<str>) {
    let _ = writeln!(std::io::stdout().lock(), "{}", text.as_ref());
}

/// Writes a sentence of results, in as many lines as the terminal makes of it.
pub fn sentence(text: impl AsRef<str>) {
    line(wrapped(text.as_ref(), width()));
}

/// Writes one JSON object as a line.
pub fn json(report: &impl Serialize) {
    match serde_json::to_string(report) {
        Ok(text) => line(text),
        // A report has string keys and numbers only; this would be a defect, and must not pass for a result.
        Err(error) => panic!("a report that is not JSON: {error}"),
    }
}

/// Writes a line of progress.
pub fn note(text: impl AsRef<str>) {
    if !is_quiet() {
        warn(wrapped(text.as_ref(), columns(&Term::stderr())));
    }
}

/// Writes what must be seen even where progress is left out.
pub fn warn(text: impl AsRef<str>) {
    let _ = writeln!(std::io::stderr().lock(), "{}", text.as_ref());
}

/// Writes an error.
pub fn error(error: &Error) {
    warn(format!("error: {error}"));
}

/// Columns that results have: those of the terminal, else what `COLUMNS` says; no limit without either.
pub fn width() -> Option<usize> {
    columns(&Term::stdout()).or_else(|| std::env::var("COLUMNS").ok()?.parse().ok())
}

fn columns(terminal: &Term) -> Option<usize> {
    terminal.size_checked().map(|(_, columns)| usize::from(columns))
}

/// The text with line breaks for spaces, so that lines have at most `width` columns where words allow it.
fn wrapped(text: &str, width: Option<usize>) -> String {
    let Some(width) = width else { return text.to_string() };
    let mut out = String::with_capacity(text.len());
    let mut column = 0;
    for word in text.split(' ') {
        let letters = word.chars().count();
        if column > 0 && column + 1 + letters > width {
            out.push('\n');
            column = 0;
        } else if !out.is_empty() {
            out.push(' ');
            column += 1;
        }
        out += word;
        column += letters;
    }
    out
}

/// As many of `parts` as fit on a line, two spaces between them: the last in the list of `expendable` (indices) goes
/// first. All of them where there is no limit.
pub fn fitting(parts: &[String], expendable: &[usize], width: Option<usize>) -> String {
    let without = |dropped: &[usize]| {
        let kept = parts.iter().enumerate().filter(|(index, part)| !dropped.contains(index) && !part.is_empty());
        kept.map(|(_, part)| part.as_str()).collect::<Vec<_>>().join("  ")
    };
    let fits = |text: &String| width.is_none_or(|width| text.chars().count() <= width);
    let mut lines = (0..=expendable.len()).map(|dropped| without(&expendable[expendable.len() - dropped..]));
    lines.find(fits).unwrap_or_else(|| without(expendable))
}

/// A bar on stderr for `steps` steps; hidden where stderr is not a terminal.
pub fn bar(steps: u64, what: &'static str) -> ProgressBar {
    let bar = ProgressBar::new(steps);
    if is_quiet() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    // The message gets what is left of the line.
    let template = "{prefix} {bar:15} {pos}/{len}  {elapsed}, {eta} left  {wide_msg}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.with_prefix(what)
}

/// A size: `512 B`, `1.5 MiB`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut size = count as f64 / 1024.0;
    let mut unit = 0;
    // Rounded to one digit, 1023.95 would read 1024.0.
    while size >= 1023.95 && unit + 1 < UNITS.len() {
        size /= 1024.0;
        unit += 1;
    }
    format!("{size:.1} {}", UNITS[unit])
}

/// A whole number with commas: `1,234,567`.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A number of things: `1 token`, `2,000 tokens`, `3 micro-batches`.
pub fn many(number: usize, what: &str) -> String {
    let plural = match (number, what.ends_with("ch") || what.ends_with('s')) {
        (1, _) => "",
        (_, true) => "es",
        (_, false) => "s",
    };
    format!("{} {what}{plural}", count(number as u64))
}

/// A number in three digits, without zeros at their end: `2e-5`, `1.25e-3`.
pub fn short(number: f64) -> String {
    let text = format!("{number:.2e}");
    match text.split_once('e') {
        Some((digits, exponent)) => format!("{}e{exponent}", digits.trim_end_matches('0').trim_end_matches('.')),
        None => text,
    }
}

/// A relative error: `0` or `1.2e-7`.
pub fn relative(error: f64) -> String {
    if error == 0.0 { "0".to_string() } else { format!("{error:.1e}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        let sizes = [0, 1023, 1024, 1536, 1_048_570, 1_048_576, 5 << 30, u64::MAX].map(bytes);
        assert_eq!(sizes, ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "1.0 MiB", "1.0 MiB", "5.0 GiB", "16384.0 PiB"]);
        assert_eq!([0, 999, 1000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
        let many = [(0, "row"), (1, "row"), (1000, "row"), (1, "micro-batch"), (2, "micro-batch"), (2, "process")];
        let many = many.map(|(n, w)| super::many(n, w));
        assert_eq!(many, ["0 rows", "1 row", "1,000 rows", "1 micro-batch", "2 micro-batches", "2 processes"]);
        assert_eq!([0.0, 1.234e-7, 2.0].map(relative), ["0", "1.2e-7", "2.0e0"]);
        assert_eq!([0.1 * 2e-5, 1.25e-3, 10.0, f64::NAN].map(short), ["2e-6", "1.25e-3", "1e1", "NaN"]);
    }

    #[test]
    fn sentences_break_between_words() {
        assert_eq!(wrapped("one two three", None), "one two three");
        assert_eq!(wrapped("one two three", Some(7)), "one two\nthree");
        assert_eq!(wrapped("a very-long-word  b", Some(5)), "a\nvery-long-word\n b");
    }

    #[test]
    fn lines_of_progress_lose_what_matters_least_first() {
        let parts = ["step 1", "loss 2", "", "lr 3", "fast"].map(str::to_string);
        let fitting = |width| fitting(&parts, &[4, 3], width);
        assert_eq!(fitting(None), "step 1  loss 2  lr 3  fast");
        assert_eq!(fitting(Some(26)), "step 1  loss 2  lr 3  fast");
        assert_eq!(fitting(Some(25)), "step 1  loss 2  fast");
        assert_eq!((fitting(Some(16)), fitting(Some(3))), ("step 1  loss 2".into(), "step 1  loss 2".into()));
    }
}
