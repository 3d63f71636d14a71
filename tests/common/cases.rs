//! Programs that must not compile, and what the compiler must say: reading and comparing.
//!
//! A case is a file in `tests/compile_fail/` that begins with what is expected of it:
//!
//! ```text
//! //~ E0277
//! //~ `Ulysses` does not run with layout `Thd` and kernel `Unfused`
//! //~ label: expected `Shard<Zigzag, _, _>`, found `Shard<Striped, _, _>`
//! ```
//!
//! The error code, then the first sentence of the error. Module paths are left out (`Ring` for
//! `context_parallel::strategy::Ring`) and `{..}` stands for any text. Optional: `label:`, the text under the
//! carets, for errors whose sentence says little (E0308). Files in `tests/compile_fail/pass/` must compile; they need
//! no header.

use std::fs;
use std::path::{Path, PathBuf};

/// One program.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Case {
    /// File name without extension, `pass_` before it if it must compile. Also the name of its binary.
    pub name: String,
    /// The program.
    pub source: String,
    /// What must be reported; nothing if it must compile.
    pub expected: Option<Expected>,
}

/// The one error that a case must give.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Expected {
    /// Error code.
    pub code: String,
    /// First sentence.
    pub sentence: String,
    /// Text at the place that the error points to.
    pub label: Option<String>,
}

impl Case {
    /// A program that must fail as its first lines say.
    pub fn failing(name: &str, source: &str) -> Result<Case, String> {
        let mut lines = Vec::new();
        let mut expected = Expected::default();
        for line in source.lines().map_while(|line| line.strip_prefix("//~")).map(str::trim) {
            match line.split_once(": ") {
                Some(("label", label)) => expected.label = Some(label.to_string()),
                _ => lines.push(line),
            }
        }
        match lines[..] {
            [code, sentence] => {
                (expected.code, expected.sentence) = (code.to_string(), sentence.to_string());
                Ok(Case { name: name.to_string(), source: source.to_string(), expected: Some(expected) })
            }
            _ => Err(format!("{name}: must begin with `//~ <error code>` and `//~ <first sentence of the error>`")),
        }
    }

    /// A program that must compile.
    pub fn passing(name: &str, source: &str) -> Case {
        Case { name: format!("pass_{name}"), source: source.to_string(), expected: None }
    }
}

/// The cases of `folder` and of `folder/pass`, by name.
pub fn cases(folder: &Path) -> Result<Vec<Case>, String> {
    let mut cases = Vec::new();
    for (name, source) in programs(folder)? {
        cases.push(Case::failing(&name, &source)?);
    }
    for (name, source) in programs(&folder.join("pass"))? {
        cases.push(Case::passing(&name, &source));
    }
    Ok(cases)
}

fn programs(folder: &Path) -> Result<Vec<(String, String)>, String> {
    let unreadable = |error: std::io::Error| format!("{}: {error}", folder.display());
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    let read = |path: PathBuf| {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        fs::read_to_string(&path).map(|source| (name, source)).map_err(unreadable)
    };
    files.into_iter().map(read).collect()
}

/// An error as the compiler reported it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reported {
    /// Error code; empty if it has none.
    pub code: String,
    /// The whole message.
    pub message: String,
    /// Text at the place that it points to; empty if none.
    pub label: String,
    /// As a terminal would show it.
    pub rendered: String,
}

impl Expected {
    /// What differs between this and what the compiler reported.
    pub fn differs(&self, reported: &[Reported]) -> Option<String> {
        let all = || reported.iter().map(|error| error.rendered.as_str()).collect::<String>();
        let [error] = reported else {
            return Some(match reported {
                [] => "compiles, but must not".to_string(),
                _ => format!("gives {} errors, must be exactly one\n{}", reported.len(), all()),
            });
        };
        let compare = |what: &str, expected: &str, found: &str| {
            let found = without_paths(found);
            (!matches(expected, &found))
                .then(|| format!("{what}\n  expected: {expected}\n  found:    {found}\n{}", all()))
        };
        compare("another error code", &self.code, &error.code)
            .or_else(|| compare("another sentence", &self.sentence, first_sentence(&error.message)))
            .or_else(|| self.label.as_ref().and_then(|label| compare("another label", label, &error.label)))
    }
}

/// Up to the first full stop that ends a sentence, or the end of the line.
pub fn first_sentence(message: &str) -> &str {
    let line = message.lines().next().unwrap_or_default();
    line.split_once(". ").map_or(line, |(sentence, _)| sentence)
}

/// `Ring<Runtime>` for `context_parallel::strategy::Ring<context_parallel::degree::Runtime>`.
pub fn without_paths(text: &str) -> String {
    let mut kept = String::new();
    for part in text.split_inclusive("::") {
        match part.strip_suffix("::") {
            Some(module) => kept.push_str(module.trim_end_matches(|c: char| c.is_alphanumeric() || c == '_')),
            None => kept.push_str(part),
        }
    }
    kept
}

/// Whether `text` is `pattern`, where `{..}` in the pattern stands for any text.
pub fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once("{..}") {
        None => pattern == text,
        Some((start, rest)) => text.strip_prefix(start).is_some_and(|tail| {
            (0..=tail.len()).filter(|&at| tail.is_char_boundary(at)).any(|at| matches(rest, &tail[at..]))
        }),
    }
}
