//! Golden cases: outputs of Megatron-LM and Hugging Face, compared with what this crate gives.
//!
//! Every file under `CONTEXT_PARALLEL_GOLDEN` (default `tests/golden`) is run, whatever its name; what it holds is
//! said by the `kind` in its metadata. A folder with a `config.json` is one case. All failures are reported.

#[path = "common/golden/mod.rs"]
mod kinds;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

use kinds::report::Report;
use kinds::safetensors::File;
use kinds::{batch, hf, model, roll, rope};

#[test]
fn golden_cases() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = env::var_os("CONTEXT_PARALLEL_GOLDEN").map_or_else(|| root.join("tests/golden"), PathBuf::from);
    let report = run_folder(&folder);
    // Written past the test harness, so that the counts show in a run that passes.
    write!(io::stderr(), "{}", report.summary()).expect("the counts can be written");
    assert!(report.failures.is_empty(), "{} failures:\n{}", report.failures.len(), report.failures.join("\n"));
}

/// Runs everything that lies under a folder.
fn run_folder(folder: &Path) -> Report {
    let mut report = Report::default();
    let mut cases = Vec::new();
    if let Err(what) = discover(folder, &mut cases) {
        report.failure(&folder.display().to_string(), what);
    }
    if cases.is_empty() {
        report.failure(&folder.display().to_string(), "no golden case was found");
    }
    for path in cases {
        let name = path.strip_prefix(folder).unwrap_or(&path).display().to_string();
        if let Err(what) = run_case(&path, &name, &mut report) {
            report.failure(&name, what);
        }
    }
    report
}

/// Cases under a folder, sorted: files, and folders with a model in them.
fn discover(folder: &Path, cases: &mut Vec<PathBuf>) -> Result<(), String> {
    let unreadable = |error: io::Error| format!("{}: {error}", folder.display());
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        paths.push(entry.map_err(unreadable)?.path());
    }
    paths.sort();
    for path in paths {
        if path.join("config.json").exists() || path.extension().is_some_and(|extension| extension == "safetensors") {
            cases.push(path);
        } else if path.is_dir() {
            discover(&path, cases)?;
        }
    }
    Ok(())
}

/// Runs one case by its kind.
fn run_case(path: &Path, name: &str, report: &mut Report) -> Result<(), String> {
    let file = File::read(&if path.is_dir() { path.join("expected.safetensors") } else { path.to_path_buf() })?;
    let kind = file.meta["kind"].as_str().ok_or("its metadata says no `kind`")?;
    report.case(kind);
    match kind {
        "batch_dense" => batch::run(&batch::read(&file, name)?, report),
        "rope_dense" | "rope_thd" => rope::run(&rope::read(&file, kind, name)?, report),
        "roll_dense" | "roll_thd" => {
            let (case, shift) = roll::read(&file, kind, name)?;
            roll::run(&case, shift, report);
        }
        "hf" if path.is_dir() => model::run(&hf::read(path, &file, name)?, report),
        _ => return Err(format!("unknown kind \"{kind}\"")),
    }
    Ok(())
}
