//! What commands print: results on stdout, progress and errors on stderr, and how numbers look.

use std::io::Write;

use comfy_table::{CellAlignment, Table, presets};
use context_parallel::error::Error;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

/// Writes a line of results. A reader that has gone away (`| head`) is no failure.
pub fn line(text: impl AsRef<str>) {
    let _ = writeln!(std::io::stdout().lock(), "{}", text.as_ref());
}

/// Writes the one object of `--json`.
pub fn json(report: &impl Serialize) {
    match serde_json::to_string(report) {
        Ok(text) => line(text),
        // A report has string keys and numbers only; this would be a defect, and must not pass for a result.
        Err(error) => panic!("a report that is not JSON: {error}"),
    }
}

/// Writes a line of progress.
pub fn note(text: impl AsRef<str>) {
    let _ = writeln!(std::io::stderr().lock(), "{}", text.as_ref());
}

/// Writes an error.
pub fn error(error: &Error) {
    note(format!("error: {error}"));
}

/// A table; the first `labels` columns are text, the others numbers.
pub fn table(header: &[&str], labels: usize, rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_FULL_CONDENSED).set_header(header.iter().copied()).add_rows(rows);
    for column in table.column_iter_mut().skip(labels) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

/// A bar on stderr for `steps` steps; hidden where stderr is not a terminal.
pub fn bar(steps: u64, what: &'static str) -> ProgressBar {
    let bar = ProgressBar::new(steps);
    let template = "{prefix} {bar:30} {pos}/{len}  {msg}  {elapsed} (about {eta} left)";
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
    let plural = match (number, what.ends_with("ch")) {
        (1, _) => "",
        (_, true) => "es",
        (_, false) => "s",
    };
    format!("{} {what}{plural}", count(number as u64))
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
        let many =
            [(0, "row"), (1, "row"), (1000, "row"), (1, "micro-batch"), (2, "micro-batch")].map(|(n, w)| many(n, w));
        assert_eq!(many, ["0 rows", "1 row", "1,000 rows", "1 micro-batch", "2 micro-batches"]);
        assert_eq!([0.0, 1.234e-7, 2.0].map(relative), ["0", "1.2e-7", "2.0e0"]);
    }

    #[test]
    fn tables_have_every_cell() {
        let text = table(&["strategy", "ms"], 1, [vec!["ring".to_string(), "12.5".to_string()]]);
        for cell in ["strategy", "ms", "ring", "12.5"] {
            assert!(text.contains(cell), "{text}");
        }
    }
}
