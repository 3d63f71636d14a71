//! The program from outside: what it refuses, with which words and exit codes, and that it then writes nothing.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn run(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_context-parallel")).args(arguments).current_dir(folder).output().unwrap()
}

/// Runs in a folder with a text of 2000 bytes, a model folder, and a folder with another run; checks exit code 2, a
/// message with all of `expected`, an empty stdout, and that nothing was written.
fn refused(arguments: &str, expected: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    fs::write(path.join("text"), "In the beginning.\n".repeat(2000 / 18 + 1).split_at(2000).0).unwrap();
    fs::write(path.join("short"), "ten bytes.").unwrap();
    fs::write(path.join("empty"), "").unwrap();
    fs::create_dir(path.join("old")).unwrap();
    fs::write(path.join("old/log.jsonl"), "{}\n").unwrap();
    for (model, tokenizer) in [("bpe", "tokenizer.json"), ("sp", "tokenizer.model")] {
        fs::create_dir(path.join(model)).unwrap();
        fs::write(path.join(model).join("config.json"), "{}").unwrap();
        fs::write(path.join(model).join(tokenizer), "{}").unwrap();
    }
    let before = listing(path);
    let output = run(path, &arguments.split_whitespace().collect::<Vec<_>>());
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{arguments}: {message}");
    assert!(output.stdout.is_empty(), "{arguments} wrote to stdout");
    assert!(message.starts_with("error: "), "{arguments}: {message}");
    for part in expected {
        assert!(message.contains(part), "{arguments}: \"{part}\" is not in\n{message}");
    }
    assert_eq!(listing(path), before, "{arguments} wrote something");
}

/// Every file below a folder, with its content.
fn listing(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.push((path.display().to_string(), Vec::new()));
            files.extend(listing(&path));
        } else {
            files.push((path.display().to_string(), fs::read(&path).unwrap()));
        }
    }
    files.sort();
    files
}

#[test]
fn unknown_names_list_what_exists() {
    refused("train --data text --strategy rings", &["unknown strategy \"rings\"", "single, ring, all-gather"]);
    refused("train --data text --layout bhsd", &["unknown layout \"bhsd\"", "bshd, sbhd, thd"]);
    refused("train --data text --order zig", &["unknown order \"zig\"", "zigzag, striped, contiguous"]);
    refused("train --data text --kernel fast", &["unknown kernel \"fast\"", "flash, unfused"]);
    refused("train --data text --dtype fp8", &["unknown dtype \"fp8\"", "f32, bf16, f16"]);
    refused("train --data text --transport tcp", &["unknown transport \"tcp\"", "threads"]);
    refused("train --data text --device tpu", &["unknown device \"tpu\"", "cpu"]);
    refused("train --data text --preset huge", &["unknown preset \"huge\"", "tiny"]);
    refused("verify --dtype int8", &["unknown dtype \"int8\""]);
    refused("bench attention --dtype f16", &["--dtype f16", "f32, bf16"]);
    refused("trian", &["unrecognized subcommand", "train"]);
    refused("inspect", &["unrecognized subcommand"]);
}

#[test]
fn what_is_not_there_says_what_works() {
    refused("train --data text --resume", &["--resume is not available", "--model"]);
    refused("train --data text --resume old", &["--resume is not available"]);
    refused("train --data text --mtp-depth 1", &["--mtp-depth is not available"]);
    for transport in ["mpi", "nccl"] {
        let expected = [&format!("--transport {transport} is not available")[..], "use --transport threads"];
        refused(&format!("train --data text --transport {transport}"), &expected);
        refused(&format!("verify --transport {transport}"), &expected);
    }
    refused("train --data text --device cuda", &["--device cuda is not available", "use --device cpu"]);
    for strategy in ["ulysses", "ring-ulysses", "magi", "dynamic"] {
        let expected = [&format!("--strategy {strategy} is not available")[..], "single, ring, all-gather"];
        refused(&format!("train --data text --strategy {strategy} --cp 2"), &expected);
    }
    refused("train --data text --cp 2x2", &["--cp 2x2", "not available", "--cp 2"]);
    refused("train --data text --dtype f16", &["--dtype f16 for train is not available", "bf16"]);
    refused("train --data text --model bpe", &["tokenizer.json", "not available", "eval --tokens"]);
    refused("train --data text --model sp", &["tokenizer.model", "not available"]);
    refused("eval --data text --model sp", &["tokenizer.model", "not available"]);
}

#[test]
fn numbers_that_cannot_be() {
    refused("train --data text --cp 0", &["--cp is 0"]);
    refused("train --data text --cp two", &["--cp is \"two\""]);
    refused("train --data text --seq-len 8 --cp 9", &["--cp is 9", "8 tokens", "--cp 8 or less"]);
    refused("train --data text --strategy single --cp 2", &["strategy single", "not on 2", "--cp 1", "ring"]);
    refused("train --data text --threads 0", &["--threads is 0"]);
    refused("train --data text --steps 0", &["--steps is 0"]);
    refused("train --data text --seq-len 0", &["--seq-len is 0"]);
    refused("train --data text --batch 0", &["--batch is 0"]);
    refused("train --data text --accumulate 0", &["--accumulate is 0"]);
    refused("train --data text --lr -1", &["--lr is -1"]);
    refused("train --data text --lr 1e-3 --min-lr 2e-3", &["--min-lr is 0.002", "0.001"]);
    refused("train --data text --steps 5 --warmup 6", &["--warmup is 6", "5 steps"]);
    refused("train --data text --weight-decay -0.5", &["--weight-decay is -0.5"]);
    refused("train --data text --clip nan", &["--clip is NaN"]);
    refused("train --data text --validation 0.7", &["--validation is 0.7", "0.5"]);
    refused("train --data recall --validation 0.7", &["--validation is 0.7"]);
    refused("train --data text --steps many", &["'many'", "--steps"]);
    refused("verify --cp 1,0", &["--cp is 0"]);
    refused("verify --cp=", &["--cp"]);
    refused("bench attention --heads 6 --kv-heads 4", &["--heads is 6", "--kv-heads 4"]);
    refused("bench attention --seq 0", &["--seq is 0"]);
}

#[test]
fn data_that_cannot_be_used() {
    refused("train", &["--data"]);
    refused("train --data missing", &["cannot read missing"]);
    refused("train --data old", &["cannot read old"]);
    refused("train --data empty", &["empty is empty"]);
    refused("train --data short --seq-len 64", &["short has 10 bytes", "--seq-len 64 needs 65", "--seq-len 9"]);
    refused("train --data text --seq-len 1800 --validation 0.2", &["1600 bytes", "400 of 2000"]);
    refused("train --data recall --seq-len 1", &["--seq-len is 1"]);
    refused("train --data text --model missing", &["cannot read missing/config.json"]);
    refused("train --data text --model bpe --preset tiny", &["--model", "--preset"]);
    refused("eval --model bpe", &["--data", "--tokens"]);
    refused("eval --model bpe --data text --tokens text", &["--data", "--tokens"]);
    refused("eval --model bpe --tokens missing", &["cannot read missing"]);
    refused("eval --model bpe --tokens short", &["cannot read short"]);
    refused("eval --model bpe --data recall --logits missing/logits", &["--logits missing/logits"]);
}

#[test]
fn a_folder_with_another_run_is_left_alone() {
    refused("train --data text --out old", &["--out old holds another run", "log.jsonl"]);
    refused("train --data text --out bpe", &["--out bpe holds another run", "config.json"]);
    refused("train --data text --out short", &["--out short is a file"]);
    // Whatever else is wrong, nothing is made.
    refused("train --data empty --out new", &["empty is empty"]);
    refused("train --data text --out new --cp 0", &["--cp is 0"]);
}

#[test]
fn help_and_version_are_fine() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in [&["--help"][..], &["--version"], &["train", "--help"], &["bench", "attention", "--help"]] {
        let output = run(folder.path(), arguments);
        assert_eq!(output.status.code(), Some(0));
        assert!(!output.stdout.is_empty() && output.stderr.is_empty());
    }
}
