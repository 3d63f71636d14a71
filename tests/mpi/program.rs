//! The program on processes: the same numbers as with in-process ranks, written once.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{launch, mpirun};

pub const TESTS: &[(&str, fn())] = &[
    ("verify gives the same rows", verify_gives_the_same_rows),
    ("training prints the same losses and writes once", training_prints_the_same_losses_and_writes_once),
    ("eval gives the same loss and logits", eval_gives_the_same_loss_and_logits),
    ("more ranks than processes are refused", more_ranks_than_processes_are_refused),
    ("wrong input is reported once", wrong_input_is_reported_once),
    ("a rank without its input ends all", a_rank_without_its_input_ends_all),
    ("a termination request ends training after a step", a_termination_request_ends_training_after_a_step),
];

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_context-parallel"))
}

fn split(arguments: &str) -> Vec<&str> {
    arguments.split_whitespace().collect()
}

/// Runs with in-process ranks.
fn threads(folder: &Path, arguments: &str) -> Output {
    Command::new(program()).args(split(arguments)).current_dir(folder).output().unwrap()
}

/// Runs on so many processes.
fn processes(ranks: usize, folder: &Path, arguments: &str) -> Output {
    let mut arguments = split(arguments);
    arguments.extend(["--transport", "mpi"]);
    mpirun(ranks, program(), &arguments, folder, &[])
}

/// The last JSON object on stdout of a program that went well.
fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    last_line(output).expect("JSON objects and nothing else")
}

fn last_line(output: &Output) -> serde_json::Result<Value> {
    let lines: Vec<Value> =
        serde_json::Deserializer::from_slice(&output.stdout).into_iter().collect::<Result<_, _>>()?;
    Ok(lines.into_iter().next_back().unwrap_or_default())
}

fn text(folder: &Path) {
    fs::write(folder.join("text"), "In the beginning was the word.\n".repeat(100)).unwrap();
}

fn verify_gives_the_same_rows() {
    let folder = tempfile::tempdir().unwrap();
    let expected = json(&threads(folder.path(), "verify --cp 1,2,3 --json"));
    // One process has nothing to do when cp is 3, three when it is 1.
    let mut found = json(&processes(4, folder.path(), "verify --cp 1,2,3 --json"));
    for row in found["rows"].as_array_mut().unwrap() {
        assert_eq!(row["transport"], "mpi");
        row["transport"] = "threads".into();
    }
    assert_eq!(found, expected, "errors to the last bit, and bytes");
    assert!(expected["rows"].as_array().unwrap().len() > 20 && expected["ok"] == true);
}

fn training_prints_the_same_losses_and_writes_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    text(path);
    let train = "train --data text --seq-len 64 --batch 2 --steps 4 --validation 0.1 --json";
    for (choices, ranks) in [
        ("--strategy ring --cp 2", 2),
        ("--strategy all-gather --cp 3 --dtype bf16", 4),
        ("--strategy dynamic --cp 3 --tokens-per-rank 12 --document-separator in --accumulate 2", 3),
    ] {
        let expected = json(&threads(path, &format!("{train} {choices} --out threads{ranks}")));
        let found = json(&processes(ranks, path, &format!("{train} {choices} --out mpi{ranks}")));
        for key in ["loss", "grad_norm", "held_out_loss", "steps", "micro_batches"] {
            assert_eq!(found[key], expected[key], "{choices}: {key}");
        }
        assert!(found["peak_bytes_per_rank"].as_u64().unwrap() > 0);
        let [ours, theirs] = ["mpi", "threads"].map(|name| path.join(format!("{name}{ranks}")));
        for file in ["model.safetensors", "config.json"] {
            assert_eq!(fs::read(ours.join(file)).unwrap(), fs::read(theirs.join(file)).unwrap(), "{file}");
        }
        assert_eq!(fs::read_to_string(ours.join("log.jsonl")).unwrap().lines().count(), 4);
    }
    // A folder that holds a run is refused by the one process that looks.
    let again = processes(2, path, &format!("{train} --cp 2 --out mpi2"));
    assert_eq!((again.status.code(), again.stdout.is_empty()), (Some(2), true));
    assert!(String::from_utf8_lossy(&again.stderr).contains("--out mpi2"));
}

fn eval_gives_the_same_loss_and_logits() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    text(path);
    json(&threads(path, "train --data text --seq-len 64 --batch 1 --steps 1 --out model --json"));
    let eval = "eval --model model --data text --seq-len 100 --cp 2 --strategy ring --json";
    let expected = json(&threads(path, &format!("{eval} --logits threads.safetensors")));
    let found = json(&processes(3, path, &format!("{eval} --logits mpi.safetensors")));
    assert_eq!(found, expected);
    assert!(fs::read(path.join("mpi.safetensors")).unwrap() == fs::read(path.join("threads.safetensors")).unwrap());
}

fn more_ranks_than_processes_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    text(folder.path());
    for arguments in ["verify --cp 1,5", "train --data text --cp 5"] {
        let output = processes(2, folder.path(), arguments);
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), output.stdout.is_empty()), (Some(2), true), "{arguments}: {message}");
        assert!(message.contains("--cp is 5 but there are 2 processes: use --cp 2 or less"), "{message}");
        assert_eq!(message.matches("error: ").count(), 1, "{message}");
    }
    let alone = Command::new(program()).args(["verify", "--cp", "2", "--transport", "mpi"]).output().unwrap();
    let message = String::from_utf8_lossy(&alone.stderr);
    assert!(alone.status.code() == Some(2) && message.contains("there is 1 process"), "{message}");
}

fn wrong_input_is_reported_once() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |arguments: &str, expected: &str| {
        let output = processes(3, folder.path(), arguments);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), output.stdout.is_empty()), (Some(2), true), "{arguments}: {message}");
        assert!(message.contains(expected), "{arguments}: {message}");
        message.matches("error: ").count()
    };
    assert_eq!(refused("train --data missing --cp 2", "missing"), 1);
    assert_eq!(refused("verify --cp 2 --device cuda", "--device cuda"), 1);
    // Before MPI starts, each process speaks for itself.
    assert!(refused("verify --deadline 0", "--deadline is 0") >= 1);
}

fn a_rank_without_its_input_ends_all() {
    let folder = tempfile::tempdir().unwrap();
    text(folder.path());
    // The second process looks in another folder.
    let script = format!(
        "if [ \"$OMPI_COMM_WORLD_RANK\" = 1 ]; then cd /; fi; exec {} train --data text --seq-len 64 --cp 3 \
         --steps 100000 --transport mpi",
        program().display()
    );
    let start = Instant::now();
    let output = mpirun(3, Path::new("sh"), &["-c", &script], folder.path(), &[]);
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && start.elapsed() < Duration::from_secs(30), "{message}");
    assert!(message.contains("rank 1 failed: cannot read text"), "{message}");
}

fn a_termination_request_ends_training_after_a_step() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    text(path);
    // Nothing but the summary on stdout: what `mpirun` still forwards once it ends a job is little.
    let arguments = "train --data text --seq-len 64 --batch 1 --steps 100000 --cp 2 --out run --json --log-every 1000000 \
                     --transport mpi";
    // The time that `mpirun` leaves for the step and for writing the model.
    let patience = [("OMPI_MCA_odls_base_sigkill_timeout", "5")];
    let child = launch(3, program(), &split(arguments), path, &patience);
    let start = Instant::now();
    while fs::read_to_string(path.join("run/log.jsonl")).map_or(0, |log| log.lines().count()) < 3 {
        assert!(start.elapsed() < Duration::from_secs(50), "training does not begin");
        thread::sleep(Duration::from_millis(50));
    }
    Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    let output = child.wait_with_output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    let report: Value = last_line(&output).unwrap_or_else(|_| panic!("no report\n{message}"));
    assert_eq!(report["interrupted"], true);
    assert_eq!(fs::read_to_string(path.join("run/log.jsonl")).unwrap().lines().count() as u64, report["steps"]);
    assert!(path.join("run/model.safetensors").exists() && path.join("run/loss.svg").exists());
    assert_eq!(message.matches("stopping after this step").count(), 1, "{message}");
}
