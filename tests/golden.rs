//! Golden cases: outputs of Megatron-LM and Hugging Face, compared with what this crate gives.
//!
//! Every file under `CONTEXT_PARALLEL_GOLDEN` (default `tests/golden`) is run, whatever its name; what it holds is
//! said by the `kind` in its metadata. A folder with a `config.json` is one case. All failures are reported.

#[path = "common/golden/mod.rs"]
mod kinds;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::{env, fs, io, thread};

use kinds::report::CaseReport;
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
fn run_folder(folder: &Path) -> CaseReport {
    let mut report = CaseReport::default();
    let mut cases = Vec::new();
    if let Err(what) = discover(folder, &mut cases) {
        report.failure(&folder.display().to_string(), what);
    }
    if cases.is_empty() {
        report.failure(&folder.display().to_string(), "no golden case was found");
    }
    // Ranks of one case wait for one another, so that two cases at once keep the processor busy.
    let (next, reports) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        loop {
            let at = next.fetch_add(1, Relaxed);
            let Some(path) = cases.get(at) else { break };
            let name = path.strip_prefix(folder).unwrap_or(path).display().to_string();
            let mut report = CaseReport::default();
            if let Err(what) = run_case(path, &name, &mut report) {
                report.failure(&name, what);
            }
            reports.lock().expect("no case panics").push((at, report));
        }
    };
    thread::scope(|scope| {
        for worker in [scope.spawn(work), scope.spawn(work)] {
            worker.join().expect("no case panics");
        }
    });
    let mut reports = reports.into_inner().expect("no case panics");
    reports.sort_by_key(|(at, _)| *at);
    reports.into_iter().for_each(|(_, other)| report.absorb(other));
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
fn run_case(path: &Path, name: &str, report: &mut CaseReport) -> Result<(), String> {
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

/// The harness itself: it must find what is wrong.
mod harness {
    use std::collections::{BTreeMap, HashMap};

    use ::safetensors::tensor::{Dtype, TensorView, serialize_to_file};
    use context_parallel::oracle::{Rotation, Stretch};
    use context_parallel::rope::Rope;

    use super::kinds::hf::{Curve, Step};
    use super::kinds::report::compare;
    use super::kinds::rope::config;
    use super::kinds::tokens::{Expected, Given, Rows, Tensors, TokenCase, whole, zigzag};
    use super::run_folder;

    #[test]
    fn an_empty_folder_and_an_unknown_kind_fail() {
        let folder = tempfile::tempdir().unwrap();
        assert!(run_folder(folder.path()).failures[0].contains("no golden case was found"));
        let write = |name: &str, meta: Option<&str>| {
            let metadata = meta.map(|meta| HashMap::from([("meta".to_string(), meta.to_string())]));
            let tensor = TensorView::new(Dtype::U8, vec![1], &[0]).unwrap();
            std::fs::create_dir_all(folder.path().join("deeper")).unwrap();
            serialize_to_file([("x", tensor)], metadata, &folder.path().join("deeper").join(name)).unwrap();
        };
        write("a.safetensors", Some(r#"{"kind": "nonsense"}"#));
        write("b.safetensors", None);
        std::fs::write(folder.path().join("c.safetensors"), b"short").unwrap();
        let failures = run_folder(folder.path()).failures;
        assert_eq!(failures.len(), 3, "{failures:?}");
        assert!(failures[0].contains("c.safetensors"));
        assert!(failures[1].contains("a.safetensors: unknown kind \"nonsense\""));
        assert!(failures[2].contains("b.safetensors: its metadata says no `kind`"));
        assert!(run_folder(&folder.path().join("missing")).failures[0].contains("missing"));
    }

    #[test]
    fn zigzag_is_megatrons() {
        // `reference/megatron.md` 0.4.
        assert_eq!(zigzag(&[24], 3, 1).unwrap(), [4, 5, 6, 7, 16, 17, 18, 19]);
        let packed = [2, 3, 8, 9, 16, 17, 18, 19, 28, 29, 30, 31];
        assert_eq!(zigzag(&[12, 24], 3, 1).unwrap(), packed);
        assert_eq!(zigzag(&[8, 0, 16], 4, 3).unwrap(), [3, 4, 14, 15, 16, 17]);
        assert_eq!(zigzag(&[7], 1, 0).unwrap(), [0, 1, 2, 3, 4, 5, 6]);
        assert_eq!(zigzag(&[10], 2, 0), None);
        let rows = |values: &[f64]| Rows { features: 1, values: values.to_vec() };
        assert_eq!(whole(&[4], &[rows(&[0.0, 3.0]), rows(&[1.0, 2.0])]).unwrap(), rows(&[0.0, 1.0, 2.0, 3.0]));
        assert!(whole(&[4], &[rows(&[0.0]), rows(&[1.0, 2.0])]).is_err());
    }

    #[test]
    fn comparison_is_of_bits_or_within_the_tolerance() {
        assert_eq!(compare("x", &[0.5, -0.0], &[0.5, -0.0], |_| 0.0), None);
        assert!(compare("x", &[0.0], &[-0.0], |_| 0.0).is_some());
        assert!(compare("x", &[1.0], &[1.0, 1.0], |_| 0.0).is_some());
        assert_eq!(compare("x", &[1.01], &[1.0], |_| 0.02), None);
        assert!(compare("x", &[f64::NAN], &[1.0], |_| 0.02).is_some());
        assert!(compare("x", &[1.0], &[f64::NAN], |_| 0.02).is_some());
    }

    #[test]
    fn yarn_has_neither_a_share_nor_an_interpolation() {
        let stretch = Stretch::Yarn {
            factor: 4.0,
            original: 64.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            mscale: None,
            mscale_all_dim: None,
        };
        let (base, percent, interpolation) = (1e4, 0.5, Some(2.0));
        let rotary = Rotation { head_dim: 8, base, percent, interleaved: false, interpolation, stretch };
        let rope = Rope::new(config(&rotary)).unwrap();
        assert_eq!((rope.pairs(), rope.config().interpolation), (4, None));
        assert_eq!(rope.inverse_frequencies(), rotary.inverse_frequencies());
        let plain = Rope::new(config(&Rotation { stretch: Stretch::None, ..rotary })).unwrap();
        assert_eq!((plain.pairs(), plain.config().interpolation), (2, Some(2.0)));
        assert!(Rope::new(config(&Rotation { interleaved: true, ..rotary })).is_err());
    }

    #[test]
    fn a_wrong_shard_is_found() {
        let rows = |values: &[f64]| Rows { features: 1, values: values.to_vec() };
        let named = |values: &[f64]| Tensors::from([("out".to_string(), rows(values))]);
        let expected = Expected { whole: rows(&[10.0, 11.0, 12.0, 13.0]), tolerance: vec![0.0; 4] };
        let case = TokenCase {
            kind: "test".to_string(),
            name: "test".to_string(),
            dense: true,
            lengths: vec![4],
            ranks: 2,
            inputs: Tensors::new(),
            expected: BTreeMap::from([("out".to_string(), expected)]),
        };
        let good = Given {
            whole: named(&[10.0, 11.0, 12.0, 13.0]),
            by_rank: vec![named(&[10.0, 13.0]), named(&[11.0, 12.0])],
            tokens: vec![vec![0, 3], vec![1, 2]],
        };
        assert_eq!(case.judge(&good, true), Vec::<String>::new());
        let wrong = |change: fn(&mut Given), in_zigzag: bool| {
            let mut given = good.clone();
            change(&mut given);
            case.judge(&given, in_zigzag).len()
        };
        assert_eq!(wrong(|given| given.whole.clear(), true), 1);
        assert_eq!(wrong(|given| given.by_rank.swap(0, 1), true), 2);
        assert_eq!(wrong(|given| given.tokens[1] = vec![1, 3], true), 1);
        // Right rows in another order: only wrong where zigzag is promised.
        let contiguous = |given: &mut Given| {
            let named =
                |values: &[f64]| Tensors::from([("out".to_string(), Rows { features: 1, values: values.to_vec() })]);
            given.by_rank = vec![named(&[10.0, 11.0]), named(&[12.0, 13.0])];
            given.tokens = vec![vec![0, 1], vec![2, 3]];
        };
        assert_eq!(wrong(contiguous, false), 0);
        assert_eq!(wrong(contiguous, true), 2);
    }

    #[test]
    fn wrong_losses_and_gradients_are_found() {
        let gradients = |first: f64| BTreeMap::from([("a".to_string(), vec![first, 4.0])]);
        let expected = Step { logits: vec![1.0], loss: 2.0, gradients: gradients(3.0) };
        let step = |logit: f64, loss: f64, first: f64| {
            expected.judge(&Step { logits: vec![logit], loss, gradients: gradients(first) }).len()
        };
        assert_eq!(step(1.00001, 2.000001, 3.00004), 0);
        assert_eq!(step(1.00003, 2.000001, 3.00004), 1);
        assert_eq!(step(1.0, 2.000003, 3.0), 1);
        assert_eq!(step(1.0, 2.0, 3.00006), 1);
        assert_eq!(step(f64::NAN, f64::NAN, f64::NAN), 3);
        let none = Step { gradients: BTreeMap::from([("b".to_string(), vec![])]), ..expected.clone() };
        assert_eq!(expected.judge(&none).len(), 2);
        let curve = Curve { loss: vec![2.0, 1.0], gradient_norm: vec![1.0, 1.0] };
        assert_eq!(curve.judge(&curve), Vec::<String>::new());
        assert_eq!(curve.judge(&Curve { loss: vec![2.0, 1.001], ..curve.clone() }).len(), 1);
        assert_eq!(curve.judge(&Curve { loss: vec![2.0], ..curve.clone() }).len(), 1);
    }
}
