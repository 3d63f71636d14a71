//! Golden models of Hugging Face on a GPU: logits, losses, gradients and training curves.
//!
//! On a GPU all combinations on 1, 2 and 4 ranks run; on the libraries that stand in for one, a few.

use std::path::{Path, PathBuf};
use std::{env, fs};

use super::Test;
use super::counts::counted;
use super::golden_kinds::report::CaseReport;
use super::golden_kinds::safetensors::File;
use super::golden_kinds::{hf, model};
use super::ranks::device;

pub const TESTS: &[Test] = &[("golden models", golden_models)];

/// What runs where everything is slow: strategy, kernel and ranks.
const FEW: [(&str, &str, usize); 3] = [("single", "flash", 1), ("single", "unfused", 1), ("ring", "flash", 2)];

fn golden_models() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let folder = env::var_os("CONTEXT_PARALLEL_GOLDEN").map_or(root, PathBuf::from).join("hf");
    let mut cases: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    let is_slow = counted("launches").is_some();
    let mut report = CaseReport::default();
    for path in cases.iter().filter(|path| path.join("config.json").exists()) {
        let file = File::read(&path.join("expected.safetensors")).unwrap();
        let case = hf::read(path, &file, &path.display().to_string()).unwrap();
        report.case("hf");
        model::run_on(&case, &mut report, &device::<f32>, &|choice| match is_slow {
            true => {
                FEW.contains(&(&choice.strategy, &choice.kernel, choice.degree))
                    && choice.layout == "thd"
                    && ["natural", "zigzag"].contains(&&*choice.order)
            }
            false => [1, 2, 4].contains(&choice.degree),
        });
    }
    print!("{}", report.summary());
    assert!(report.failures.is_empty(), "{} failures:\n{}", report.failures.len(), report.failures.join("\n"));
}
