//! Ctrl-C: what is saved, what is left behind, and the exit codes.

use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::*;

fn start(folder: &Path, arguments: &str) -> Child {
    Command::new(env!("CARGO_BIN_EXE_context-parallel"))
        .args(arguments.split_whitespace())
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn interrupt(child: &Child) {
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
}

fn wait_for(what: &str, is_there: impl Fn() -> bool) {
    let begin = Instant::now();
    while !is_there() {
        assert!(begin.elapsed() < Duration::from_secs(100), "{what} does not come");
        sleep(Duration::from_millis(5));
    }
}

fn text(folder: &Path) {
    fs::write(folder.join("text"), "In the beginning was the word.\n".repeat(20_000)).unwrap();
}

fn no_part(folder: &Path) {
    let names = listing(folder).into_iter().map(|(name, _)| name);
    let parts: Vec<String> = names.filter(|name| name.ends_with(".part")).collect();
    assert!(parts.is_empty(), "{parts:?}");
}

#[test]
fn training_that_is_interrupted_evaluates_saves_and_exits_with_130() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    fs::write(path.join("text"), "In the beginning was the word.\n".repeat(100)).unwrap();
    let arguments = "train --data text --seq-len 16 --batch 1 --steps 100000 --cp 2 --threads 1 --validation 0.1
        --validate-every 90000 --out run --json";
    let child = start(path, arguments);
    wait_for("the third step", || {
        fs::read_to_string(path.join("run/log.jsonl")).is_ok_and(|log| log.lines().count() > 2)
    });
    interrupt(&child);
    let output = child.wait_with_output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{message}");
    assert!(message.contains("stopping after this step"), "{message}");
    let lines: Vec<Value> =
        serde_json::Deserializer::from_slice(&output.stdout).into_iter().map(Result::unwrap).collect();
    let (summary, steps) = lines.split_last().unwrap();
    assert_eq!((summary["interrupted"].as_bool(), summary["steps"].as_u64()), (Some(true), Some(steps.len() as u64)));
    let held_out = summary["held_out_loss"].as_f64().unwrap();
    assert_eq!(steps.last().unwrap()["held_out_loss"].as_f64(), Some(held_out));
    assert!(steps[0].get("held_out_loss").is_none());
    let record: Value = serde_json::from_slice(&fs::read(path.join("run/run.json")).unwrap()).unwrap();
    assert_eq!((&record["steps_done"], record["steps"].as_u64()), (&summary["steps"], Some(100_000)));
    assert!(path.join("run/model.safetensors").exists() && path.join("run/loss.svg").exists());
    no_part(path);
}

#[test]
fn a_second_interrupt_ends_training_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    text(path);
    // A step of minutes, which says when it begins.
    let said = fs::File::create(path.join("said")).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_context-parallel"))
        .args("train --data text --seq-len 4096 --batch 100 --cp 2 --threads 1 --steps 9 --out run".split(' '))
        .env("CONTEXT_PARALLEL_PATIENCE_MS", "0")
        .current_dir(path)
        .stderr(said)
        .spawn()
        .unwrap();
    let says = |what: &str| fs::read_to_string(path.join("said")).unwrap().contains(what);
    wait_for("the first step", || says("the first step"));
    sleep(Duration::from_millis(500));
    let begin = Instant::now();
    interrupt(&child);
    wait_for("the answer", || says("stopping after this step"));
    interrupt(&child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(begin.elapsed() < Duration::from_secs(20) && !path.join("run/model.safetensors").exists());
    no_part(path);
}

#[test]
fn an_interrupted_evaluation_leaves_no_part_of_its_logits() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    text(path);
    json(path, "train --data text --seq-len 16 --batch 1 --steps 1 --out run --json");
    fs::write(path.join("logits"), "what was there before").unwrap();
    let child = start(path, "eval --model run --data text --seq-len 512 --logits logits");
    wait_for("the first part of the logits", || path.join(".logits.part").exists());
    interrupt(&child);
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(130));
    no_part(path);
    assert_eq!(fs::read_to_string(path.join("logits")).unwrap(), "what was there before");
}

#[test]
fn other_commands_exit_with_130_too() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in ["verify --cp 16 --threads 1", "bench attention --seq 20000 --threads 1", "demo"] {
        let child = start(folder.path(), arguments);
        sleep(Duration::from_millis(1000));
        interrupt(&child);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
    }
}
