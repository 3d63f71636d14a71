//! The program with NCCL: what it refuses, and that it computes what it does without.

use std::path::Path;
use std::process::Command;

use context_parallel::tensor::cuda::probe;

use super::Test;
use super::transfers::there_are;

pub const TESTS: &[Test] = &[
    ("program: NCCL is refused without GPUs for it", refused),
    ("program: without NCCL it says where that was sought", missing),
    ("program: training over NCCL gives the losses of threads", trains),
];

/// Exit code, stdout and stderr.
fn run(arguments: &str, libraries: Option<&Path>) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_context-parallel"));
    command.args(arguments.split_whitespace());
    if let Some(libraries) = libraries {
        command.env("LD_LIBRARY_PATH", libraries);
    }
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn refuses(arguments: &str, libraries: Option<&Path>, says: &[&str]) {
    let (code, _, errors) = run(arguments, libraries);
    assert!(code == Some(2) && says.iter().all(|said| errors.contains(said)), "{arguments}: {code:?}, {errors}");
}

fn refused() {
    let instead = ["--transport nccl is for GPUs, --device is cpu", "add --device cuda", "--transport threads"];
    refuses("verify --cp 2 --transport nccl", None, &instead);
    let gpus = probe::gpus().unwrap().0.len();
    let ranks = format!("for {} ranks: use --cp {gpus} or less, or --transport threads", gpus + 1);
    let says = ["--transport nccl takes a GPU for each rank", &ranks];
    refuses(&format!("verify --cp {} --device cuda --transport nccl", gpus + 1), None, &says);
    let train = format!("train --data recall --steps 1 --cp {} --device cuda --transport nccl", gpus + 1);
    refuses(&train, None, &says);
}

/// All libraries that this process has, but for NCCL.
fn missing() {
    let folder = tempfile::tempdir().unwrap();
    for from in std::env::split_paths(&std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default()) {
        for file in std::fs::read_dir(&from).into_iter().flatten().flatten() {
            if !file.file_name().to_string_lossy().starts_with("libnccl") {
                let from = std::fs::canonicalize(file.path()).unwrap();
                let _ = std::os::unix::fs::symlink(from, folder.path().join(file.file_name()));
            }
        }
    }
    let (_, found, _) = run("doctor", Some(folder.path()));
    let nccl = found.lines().find(|line| line.starts_with("NCCL")).unwrap();
    if !nccl.contains("missing") {
        return println!("  SKIPPED: NCCL is in the system's folders: {nccl}");
    }
    assert!(found.contains("ln -s libnccl.so.2 libnccl.so"), "{found}");
    let sought = format!("LD_LIBRARY_PATH, which is {}", folder.path().display());
    let says = ["--transport nccl: NCCL was not found: no libnccl.so (libnccl.so.2 is not enough)", &sought];
    refuses("verify --cp 1 --device cuda --transport nccl", Some(folder.path()), &says);
    let (_, found, _) = run("doctor", None);
    assert!(found.lines().any(|line| line.starts_with("NCCL") && line.contains("(libnccl.so)")), "{found}");
}

fn trains() {
    if !there_are(2) {
        return;
    }
    let losses = |transport: &str| {
        let (code, out, errors) = run(
            &format!(
                "train --data recall --seq-len 32 --batch 2 --steps 3 --cp 2 --device cuda --dtype f32 --json \
                 --transport {transport}"
            ),
            None,
        );
        assert_eq!(code, Some(0), "{errors}");
        let step = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap();
        let losses = out.lines().map(step).filter_map(|step| step["loss"].as_f64()).collect::<Vec<_>>();
        assert!(losses.len() >= 3, "{out}");
        losses
    };
    let expected = losses("threads");
    assert_eq!(losses("nccl"), expected);
    let native = losses("nccl --native-reductions");
    assert!(native.iter().zip(&expected).all(|(loss, expected)| (loss - expected).abs() < 1e-5), "{native:?}");
}
