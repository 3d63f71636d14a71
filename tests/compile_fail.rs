//! Programs that must not compile give one readable error each; what they must say is in their first lines
//! (`tests/common/cases.rs` describes the form). To them come the combinations that the support table does not have,
//! one program each; those that it has must compile.
//!
//! All of them are the binaries of one package, which `cargo check` sees once, in a target folder of its own.

#[path = "common/cases.rs"]
mod cases;

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use cases::{Case, Expected, Reported};
use context_parallel::strategy::select;
use serde_json::Value;

/// What the compiler said about the cases.
#[derive(Default)]
struct Outcome {
    /// Cases that compile.
    compiled: BTreeSet<String>,
    /// Errors by case.
    errors: BTreeMap<String, Vec<Reported>>,
    /// Errors of anything that is not a case.
    elsewhere: Vec<String>,
}

#[test]
fn programs_that_must_not_compile_say_why() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut cases = cases::cases(&root.join("tests/compile_fail")).unwrap();
    assert!(cases.iter().any(|case| case.expected.is_some()), "no case that must fail");
    assert!(cases.iter().any(|case| case.expected.is_none()), "no case that must compile");
    cases.extend(cases_of_the_table());
    let outcome = check(root, &cases);
    assert!(outcome.elsewhere.is_empty(), "the package itself does not compile:\n{}", outcome.elsewhere.concat());
    let failures: Vec<String> =
        cases.iter().filter_map(|case| judge(case, &outcome).map(|what| format!("{}: {what}\n", case.name))).collect();
    eprintln!("{} cases, {} wrong", cases.len(), failures.len());
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

/// A model for every strategy, layout and kernel: those in the support table must compile, the others must not.
fn cases_of_the_table() -> Vec<Case> {
    let mut cases = Vec::new();
    for strategy in select::strategies() {
        for layout in select::layouts() {
            for kernel in select::kernels() {
                let name = format!("{}_{layout}_{kernel}", strategy.replace('-', "_"));
                let [h, l, k] = [strategy, layout, kernel].map(type_name);
                let source = format!(
                    "use context_parallel::kernel::*;\nuse context_parallel::layout::*;\n\
                     use context_parallel::model::{{Config, GptModel}};\n\
                     use context_parallel::strategy::*;\nuse context_parallel::tensor::Cpu;\n\n\
                     fn model(config: &Config) {{\n    let _ = GptModel::<{h}, {l}, {k}>::new(Cpu::default(), config, 0);\n}}\n\n\
                     fn main() {{}}\n"
                );
                let sentence = format!(
                    "`{h}` does not work with layout `{l}` and kernel `{k}`: use kernel `Flash`, and layout `Thd` with \
                     `Magi` and `Dynamic`"
                );
                let expected = Expected { code: "E0277".to_string(), sentence, label: None };
                cases.push(match select::works(strategy, layout, kernel) {
                    true => Case::passing(&name, &source),
                    false => Case { name, source, expected: Some(expected) },
                });
            }
        }
    }
    cases
}

/// The type of a name on the command line: `AllGather` for `all-gather`.
fn type_name(name: &str) -> String {
    let word = |word: &str| word[..1].to_uppercase() + &word[1..];
    name.split('-').map(word).collect()
}

/// What is wrong about what the compiler said of this case.
fn judge(case: &Case, outcome: &Outcome) -> Option<String> {
    let errors = outcome.errors.get(&case.name).map_or(&[][..], Vec::as_slice);
    if errors.is_empty() && !outcome.compiled.contains(&case.name) {
        return Some("was not compiled at all".to_string());
    }
    match &case.expected {
        Some(expected) => expected.differs(errors),
        None if errors.is_empty() => None,
        None => {
            Some(format!("must compile\n{}", errors.iter().map(|error| error.rendered.as_str()).collect::<String>()))
        }
    }
}

/// Makes the package and checks it.
fn check(root: &Path, cases: &[Case]) -> Outcome {
    let folder = target_folder(root).join("compile_fail");
    let package = folder.join("package");
    write_package(root, &package, cases);
    let output = Command::new(env!("CARGO"))
        .args(["check", "--offline", "--keep-going", "--quiet", "--message-format=json", "--bins"])
        .current_dir(&package)
        .env("CARGO_TARGET_DIR", folder.join("target"))
        .output()
        .expect("cargo runs");
    let mut outcome = Outcome::default();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        if let Ok(message) = serde_json::from_str(line) {
            outcome.add(&message);
        }
    }
    assert!(
        output.status.success() || !outcome.errors.is_empty() || !outcome.elsewhere.is_empty(),
        "cargo check fails:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    outcome
}

impl Outcome {
    /// Takes in one line of cargo's output.
    fn add(&mut self, line: &Value) {
        let name = line["target"]["name"].as_str().unwrap_or_default().to_string();
        let case = line["target"]["kind"][0] == "bin";
        let message = &line["message"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
        match line["reason"].as_str() {
            Some("compiler-artifact") if case => {
                self.compiled.insert(name);
            }
            Some("compiler-message") if text(&message["level"]).starts_with("error") => {
                let (code, sentence) = (text(&message["code"]["code"]), text(&message["message"]));
                if code.is_empty() && sentence.starts_with("aborting due to") {
                    return;
                }
                let primary = message["spans"].as_array().into_iter().flatten().find(|span| span["is_primary"] == true);
                let label = primary.map(|span| text(&span["label"])).unwrap_or_default();
                let rendered = text(&message["rendered"]);
                match case {
                    true => {
                        let error = Reported { code, message: sentence, label, rendered };
                        self.errors.entry(name).or_default().push(error);
                    }
                    false => self.elsewhere.push(rendered),
                }
            }
            _ => {}
        }
    }
}

/// The target folder that this test was built in (the test lies in `<target>/<profile>/deps`).
fn target_folder(root: &Path) -> PathBuf {
    let test = env::current_exe().ok();
    test.as_deref().and_then(|test| test.ancestors().nth(3)).map_or_else(|| root.join("target"), Path::to_path_buf)
}

/// A package with one binary per case that depends on this one. The lock file goes with it, so that nothing is
/// looked up; the workspace is its own, so that nothing above it counts.
fn write_package(root: &Path, package: &Path, cases: &[Case]) {
    let binaries = package.join("src/bin");
    if binaries.exists() {
        fs::remove_dir_all(&binaries).expect("old cases can be removed");
    }
    fs::create_dir_all(&binaries).expect("the package's folder can be made");
    let manifest = format!(
        "[package]\nname = \"compile-fail\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n\
         [dependencies]\ncontext-parallel = {{ path = {root:?} }}\n\n\
         [lints.rust]\nunused = \"allow\"\n\n[profile.dev]\ndebug = false\n\n[workspace]\n"
    );
    fs::write(package.join("Cargo.toml"), manifest).expect("the manifest can be written");
    fs::copy(root.join("Cargo.lock"), package.join("Cargo.lock")).expect("the lock file can be copied");
    for case in cases {
        fs::write(binaries.join(format!("{}.rs", case.name)), &case.source).expect("a case can be written");
    }
}

#[test]
fn a_case_is_judged_by_code_sentence_and_label() {
    let case = Case::failing("x", "//~ E0277\n//~ no `Ring<{..}>` here\n//~ label: for `B`\nfn main() {}").unwrap();
    let expected = case.expected.unwrap();
    let reported = |code: &str, message: &str, label: &str| Reported {
        code: code.to_string(),
        message: message.to_string(),
        label: label.to_string(),
        rendered: String::new(),
    };
    let good = reported("E0277", "no `a::b::Ring<c::Runtime>` here. And more", "for `d::B`");
    assert_eq!(expected.differs(std::slice::from_ref(&good)), None);
    assert!(expected.differs(&[]).unwrap().contains("compiles"));
    assert!(expected.differs(&[good.clone(), good.clone()]).unwrap().contains("2 errors"));
    assert!(expected.differs(&[reported("E0308", &good.message, &good.label)]).unwrap().contains("code"));
    assert!(expected.differs(&[reported("E0277", "no `Ring` here", &good.label)]).unwrap().contains("sentence"));
    assert!(expected.differs(&[reported("E0277", &good.message, "for `C`")]).unwrap().contains("label"));
    assert!(Case::failing("x", "//~ E0277\nfn main() {}").is_err());
    assert_eq!(cases::without_paths("`Shard<a::b_2::Zigzag, c::Thd>`: no"), "`Shard<Zigzag, Thd>`: no");
}

#[test]
fn a_case_that_compiles_or_is_missing_is_wrong() {
    let case = Case { name: "x".to_string(), expected: Some(Expected::default()), ..Case::default() };
    let compiled = Outcome { compiled: BTreeSet::from(["x".to_string()]), ..Outcome::default() };
    assert!(judge(&case, &compiled).unwrap().contains("compiles, but must not"));
    assert!(judge(&case, &Outcome::default()).unwrap().contains("not compiled at all"));
    let passing = Case::passing("y", "");
    let errors = BTreeMap::from([("pass_y".to_string(), vec![Reported::default()])]);
    assert!(judge(&passing, &Outcome { errors, ..Outcome::default() }).unwrap().contains("must compile"));
}
