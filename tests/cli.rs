//! The program from outside: what it does, and what it refuses, with which words and exit codes, writing nothing then.

#[path = "cli/data.rs"]
mod data;
#[path = "cli/interrupts.rs"]
mod interrupts;
#[path = "cli/runs.rs"]
mod runs;
#[path = "cli/terminal.rs"]
mod terminal;
#[path = "cli/threads.rs"]
mod threads;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use context_parallel::model::{Config, Sizes};
use context_parallel::strategy::select;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::Value;

#[path = "cli/model_folders.rs"]
mod model_folders;

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
        let config = Config::preset("tiny").unwrap().to_json().unwrap();
        fs::write(path.join(model).join("config.json"), config).unwrap();
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
    refused("train --data text --dtype fp8", &["unknown dtype \"fp8\"", "choose one of f32, bf16\n"]);
    refused("train --data text --transport tcp", &["unknown transport \"tcp\"", "threads"]);
    refused("train --data text --device tpu", &["unknown device \"tpu\"", "cpu"]);
    refused("train --data text --preset huge", &["unknown preset \"huge\"", "tiny"]);
    refused("verify --dtype int8", &["unknown dtype \"int8\""]);
    refused("bench attention --dtype f64", &["--dtype f64", "f32, bf16, f16"]);
    refused("bench attention --dtype fp8", &["unknown dtype \"fp8\"", "choose one of f32, bf16, f16\n"]);
    refused("eval --model bpe --data text --dtype fp8", &["unknown dtype \"fp8\"", "f32, bf16, f16, f64"]);
    refused("trian", &["unrecognized subcommand", "train"]);
    refused("inspect --lengths 8,x", &["--lengths has \"x\""]);
    refused("inspect --lengths 8 --mask causl", &["unknown mask \"causl\"", "causal, full"]);
    refused(
        "inspect --lengths 8 --cp 2 --effort 5",
        &["effort of 5 moves", "magi, not for ring", "leave --effort out"],
    );
    refused("train --data recall --strategy dynamic --effort 5", &["effort of 5 moves", "not for dynamic"]);
    refused("eval --data recall --model none --cp 2 --stages 2", &["2 stages", "not for ring", "leave --stages out"]);
    refused("train --data recall --strategy magi --stages 0", &["--stages is 0", "1 to 16"]);
    refused("inspect --lengths 8 --strategy dynamic --stages 17", &["--stages is 17", "1 to 16"]);
    refused("inspect --lengths 8 --strategy ulysses --cp 3 --heads 8", &["8 query heads on 3 ranks"]);
    refused("inspect --lengths 8 --transport threads", &["--transport"]);
    refused("inspect --lengths 8 --deadline 0", &["--deadline"]);
    refused("inspect --lengths 4611686018427387904", &["--lengths has more than", "shorter documents"]);
    let largest = u64::MAX / 2;
    refused(&format!("inspect --layout bshd --lengths {largest},{largest},{largest}"), &["--lengths has more than"]);
    refused(&format!("inspect --lengths 8 --head-dim {}", u64::MAX), &["--head-dim 18446744073709551615", "smaller"]);
    refused("inspect --lengths 8 --cp 1000000", &["--cp is 1000000", "or less"]);
}

#[test]
fn what_is_not_there_says_what_works() {
    refused(
        "train --data text --resume",
        &["--resume is not available", "--model DIR", "--lr 2e-5", "fresh optimizer"],
    );
    refused("train --data text --resume old", &["--resume is not available"]);
    for command in ["train --data text", "eval --data text --model bpe", "verify"] {
        let expected = match cfg!(feature = "cuda") {
            true => ["--transport nccl is for GPUs", "add --device cuda"],
            false => ["--transport nccl is not available", "--features cuda"],
        };
        refused(&format!("{command} --transport nccl"), &expected);
        if cfg!(not(feature = "mpi")) {
            let expected = ["--transport mpi is not available", "--features mpi", "use --transport threads"];
            refused(&format!("{command} --transport mpi"), &expected);
        }
    }
    refused("verify --deadline 0", &["--deadline is 0"]);
    refused("train --data text --dtype f16", &["--dtype f16 for train is not available", "bf16"]);
    refused("train --data text --dtype f64", &["--dtype f64 for train is not available", "f32"]);
    refused("train --data text --model bpe", &["tokenizer.json", "not available", "eval --tokens"]);
    refused("train --data text --model sp", &["tokenizer.model", "not available"]);
    refused("eval --data text --model sp", &["tokenizer.model", "not available"]);
}

#[test]
fn numbers_that_cannot_be() {
    refused("train --data text --cp 0", &["--cp is 0"]);
    refused("train --data text --cp two", &["--cp is \"two\"", "or two of them for ring-ulysses, such as 2x2"]);
    refused("train --data text --cp 2x2x2", &["--cp is \"2x2x2\"", "such as 2x2"]);
    refused("train --data text --cp 2x0", &["--cp is 2x0", "2x2"]);
    refused("train --data text --strategy ring --cp 2x2", &["--cp is 2x2", "--cp 4", "ring-ulysses"]);
    refused("train --data text --strategy ring --cp 2 --inner-adjacent false", &["--inner-adjacent", "ring-ulysses"]);
    refused(
        "train --data text --strategy ulysses --cp 3",
        &["4 query heads on 3 ranks", "must be a multiple", "ring and all-gather"],
    );
    refused("train --data text --cp 2x3", &["4 query heads on 3 ranks", "must be a multiple"]);
    for strategy in ["magi", "dynamic"] {
        let expected = [strategy, "layout bshd", "packed", "thd"];
        refused(&format!("train --data text --strategy {strategy} --layout bshd --cp 2"), &expected);
    }
    refused("train --data text --seq-len 8 --cp 9", &["--cp is 9", "8 tokens", "--cp 8 or less"]);
    refused("train --data text --strategy single --cp 2", &["strategy single", "not on 2", "--cp 1", "ring"]);
    refused("train --data text --threads 0", &["--threads is 0"]);
    refused("train --cp 1 --dtype bf16 --bf16-wire", &["--bf16-wire is for several ranks", "--cp is 1"]);
    refused("train --data text --threads 1000000", &["--threads is 1000000", "at most", "use fewer"]);
    refused("verify --threads 1000000", &["--threads is 1000000", "use fewer"]);
    refused(
        "train --data text --batch 4294967296 --out run",
        &["--batch 4294967296", "1048576 sequences", "use fewer"],
    );
    refused(
        "train --data recall --seq-len 100000000 --batch 1000000 --out run",
        &["--batch 1000000", "of memory, this machine has", "use a smaller --batch"],
    );
    refused(
        "train --data recall --seq-len 18446744073709551615 --batch 1000000 --accumulate 1",
        &["18446744073709551615 tokens", "of memory, this machine has"],
    );
    refused(
        "train --data recall --strategy dynamic --cp 2 --seq-len 1000000000 --batch 1000000 --tokens-per-rank 1000000000",
        &["of memory, this machine has"],
    );
    refused("train --data text --batch 4294967296 --accumulate 4294967296", &["--batch 4294967296", "use fewer"]);
    refused("train --data text --cp 2 --bf16-wire", &["--bf16-wire is for --dtype bf16, not for f32"]);
    refused("train --data text --steps 0", &["--steps is 0"]);
    refused("train --data text --seq-len 0", &["--seq-len is 0"]);
    refused("train --data text --batch 0", &["--batch is 0"]);
    refused("train --data text --accumulate 0", &["--accumulate is 0"]);
    refused("train --data text --lr -1", &["--lr is -1"]);
    refused("train --data text --lr 1e-3 --min-lr 2e-3", &["--min-lr is 0.002", "0.001"]);
    refused("train --data text --steps 5 --warmup 6", &["--warmup is 6", "5 steps"]);
    refused("train --data text --weight-decay -0.5", &["--weight-decay is -0.5"]);
    refused("train --data text --clip nan", &["--clip is NaN"]);
    refused("train --data text --seq-len 8 --mtp-depth 8", &["8 tokens", "depth 8", "--mtp-depth 7 or less"]);
    refused("train --data text --mtp-depth two", &["'two'", "--mtp-depth"]);
    refused("train --data text --tokens-per-rank 64 --cp 2", &["--tokens-per-rank is for dynamic", "not for ring"]);
    refused("train --data recall --strategy dynamic --tokens-per-rank 0", &["--tokens-per-rank is 0"]);
    for command in ["train --data text --seq-len 130 --out new", "inspect --lengths 7,130"] {
        let expected =
            ["--tokens-per-rank is 40: document", "130 tokens", "on 3 ranks of 40 tokens", "allow 44 tokens"];
        refused(&format!("{command} --strategy dynamic --cp 3 --tokens-per-rank 40"), &expected);
    }
    // A document of the text, not the longest that there could be.
    let documents = r"train --data text --document-separator \n --strategy dynamic --cp 2 --tokens-per-rank";
    refused(&format!("{documents} 7"), &["document 0 of 16 tokens", "allow 8 tokens"]);
    refused("inspect --lengths 8 --cp 2 --tokens-per-rank 8", &["--tokens-per-rank is for dynamic"]);
    refused("train --data text --validation 0.7", &["--validation is 0.7", "0.5"]);
    refused("train --data text --validate-every 5", &["--validate-every is for a held-out share", "--validation 0.1"]);
    refused("train --data recall --validation 0.7", &["--validation is 0.7"]);
    refused("train --data text --steps many", &["'many'", "--steps"]);
    refused("verify --cp 1,0", &["--cp is 0"]);
    refused("verify --cp=", &["--cp"]);
    refused("verify --cp 2,65", &["--cp is 65", "64 or less"]);
    refused("bench attention --seq 99999999999999", &["of memory, this machine has", "--seq 99999999999999"]);
    refused(
        "bench attention --batch 18446744073709551615 --seq 18446744073709551615",
        &["of memory, this machine has", "use smaller numbers"],
    );
    refused(
        "train --data text --strategy single --order striped",
        &["strategy single has no order striped", "natural"],
    );
    refused("bench attention --heads 6 --kv-heads 4", &["--heads is 6", "--kv-heads 4"]);
    refused("bench attention --seq 0", &["--seq is 0"]);
}

#[test]
fn data_that_cannot_be_used() {
    refused("eval --model bpe --data recall", &["bpe/model.safetensors"]);
    refused("train --model bpe --data recall --out new", &["bpe/model.safetensors"]);
    refused("train", &["nothing to train on: pass --data FILE or --data recall"]);
    // What is missing does not hide what is wrong.
    refused("train --order zig", &["unknown order \"zig\""]);
    refused("train --resume", &["--resume is not available"]);
    refused("train --preset huge", &["unknown preset \"huge\""]);
    refused("train --lr -1", &["--lr is -1"]);
    refused("train --data missing", &["cannot read missing"]);
    refused("train --data old", &["cannot read old"]);
    refused("train --data empty", &["empty is empty"]);
    refused("train --data short --seq-len 64", &["short has 10 bytes", "--seq-len 64 needs 65", "--seq-len 9"]);
    refused("train --data text --seq-len 1800 --validation 0.2", &["1600 bytes", "400 of 2000"]);
    refused("train --data recall --seq-len 1", &["--seq-len is 1"]);
    let separated = "--data text --document-separator";
    refused(&format!(r"train {separated} \r\n"), &["text does not contain --document-separator \"\\r\\n\""]);
    refused(&format!(r"train {separated} \q"), &[r"--document-separator has \q: use \n"]);
    refused(&format!("train {separated} ="), &["text does not contain --document-separator \"=\""]);
    refused("train --data text --document-separator=", &["--document-separator is empty"]);
    for command in ["train", "eval --model bpe"] {
        refused(&format!(r"{command} {separated} \n --layout bshd"), &["layout bshd", "--layout thd"]);
        refused(&format!(r"{command} --data recall --document-separator \n"), &["the recall task", "--data FILE"]);
    }
    refused("train --data short --document-separator |", &["short does not contain --document-separator \"|\""]);
    refused(r"eval --model bpe --data text --document-separator \n --logits new", &["--logits", "one length"]);
    refused(r"eval --model bpe --tokens short --document-separator \n", &["--tokens", "--document-separator"]);
    refused("train --data text --model missing", &["cannot read missing/config.json"]);
    refused("train --data text --model bpe --preset tiny", &["--model", "--preset"]);
    refused("eval --model bpe", &["--data", "--tokens"]);
    refused("eval --model bpe --data text --tokens text", &["--data", "--tokens"]);
    refused("eval --model bpe --tokens missing", &["cannot read missing"]);
    refused("eval --model bpe --tokens short", &["cannot read short"]);
    refused("eval --model bpe --data recall --logits missing/logits", &["--logits missing/logits"]);
    refused("eval --model bpe --tokens short --logits old/../short", &["--logits old/../short", "--tokens"]);
    refused("eval --model bpe --data text --logits ./text", &["--logits ./text", "--data"]);
    refused("eval --model bpe --data recall --logits bpe/config.json", &["--logits bpe/config.json", "--model"]);
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

/// Runs something that must work; its JSON object, which is the last one of several where it trains.
fn json(folder: &Path, arguments: &str) -> Value {
    let output = run(folder, &arguments.split_whitespace().collect::<Vec<_>>());
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{arguments}: {message}");
    let text = String::from_utf8(output.stdout).unwrap();
    let mut lines = text.lines().rev();
    let report: Value = serde_json::from_str(lines.next().unwrap()).unwrap();
    let steps = lines.count();
    assert_eq!(steps, if arguments.starts_with("train") { numbers(&report["loss"]).len() } else { 0 }, "{arguments}");
    report
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

fn close(found: f64, expected: f64, bound: f64) {
    assert!((found - expected).abs() <= bound * expected.abs(), "{found} is not {expected}");
}

#[test]
fn a_run_leaves_a_model_that_can_be_used() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let train = "train --data recall --seq-len 16 --batch 2 --threads 1 --steps 3 --warmup 0 --json";
    let report = json(path, &format!("{train} --cp 2 --validation 0.1 --out run"));
    let losses = numbers(&report["loss"]);
    assert_eq!((losses.len(), numbers(&report["grad_norm"]).len()), (3, 3));
    assert!(report["tokens_per_second"].as_f64().unwrap() > 0.0);
    assert!(report["peak_bytes_per_rank"].as_u64().unwrap() > 1 << 20);
    assert_eq!((report["out"].as_str(), report["interrupted"].as_bool()), (Some("run"), Some(false)));

    let mut names: Vec<_> = fs::read_dir(path.join("run")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["config.json", "log.jsonl", "loss.svg", "model.safetensors", "run.json"]);
    let log = fs::read_to_string(path.join("run/log.jsonl")).unwrap();
    let log: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(log.iter().map(|line| line["loss"].as_f64().unwrap()).collect::<Vec<_>>(), losses);

    // What it was trained to is what was saved, however it is run.
    let held_out = report["held_out_loss"].as_f64().unwrap();
    assert!(held_out < losses[0]);
    let whole = "--model run --data recall --seq-len 16 --json --threads 1";
    let alone = json(path, &format!("eval {whole}"))["loss"].as_f64().unwrap();
    for choices in
        ["--strategy all-gather --cp 3 --layout sbhd --kernel unfused", "--cp 2 --order striped --layout bshd"]
    {
        let report = json(path, &format!("eval {whole} {choices}"));
        close(report["loss"].as_f64().unwrap(), alone, 1e-6);
        close(report["perplexity"].as_f64().unwrap(), alone.exp(), 1e-5);
        assert_eq!(report["tokens"], 64 * 8);
    }

    // The same steps on one rank, with the inside of blocks computed twice.
    let single = json(path, &format!("{train} --recompute"));
    numbers(&single["loss"]).iter().zip(&losses).for_each(|(&found, &expected)| close(found, expected, 1e-5));

    // A loss that is no number is no result.
    fs::create_dir(path.join("broken")).unwrap();
    fs::copy(path.join("run/config.json"), path.join("broken/config.json")).unwrap();
    let mut weights = fs::read(path.join("run/model.safetensors")).unwrap();
    let values = weights.len() - 4 * 1000;
    weights[values..].copy_from_slice(&f32::NAN.to_le_bytes().repeat(1000));
    fs::write(path.join("broken/model.safetensors"), weights).unwrap();
    for output in ["", " --json"] {
        let arguments = format!("eval --model broken --data recall --seq-len 16 --threads 1{output}");
        let output = run(path, &arguments.split_whitespace().collect::<Vec<_>>());
        assert_eq!((output.status.code(), output.stdout.is_empty()), (Some(1), true));
        assert!(String::from_utf8_lossy(&output.stderr).contains("the loss is NaN, not a finite number"));
    }

    // A second run there is refused, and what is there stays.
    let before = listing(&path.join("run"));
    let again = run(path, &["train", "--data", "recall", "--out", "run"]);
    assert_eq!(again.status.code(), Some(2));
    assert_eq!(listing(&path.join("run")), before);

    // A truncated file is refused before anything is written.
    let weights = fs::read(path.join("run/model.safetensors")).unwrap();
    fs::write(path.join("run/model.safetensors"), &weights[..weights.len() - 5]).unwrap();
    let before = listing(path);
    for command in ["train --model run --data recall --out new", "eval --model run --data recall --logits logits"] {
        let output = run(path, &command.split(' ').collect::<Vec<_>>());
        assert_eq!(output.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&output.stderr).contains("model.safetensors"));
        assert_eq!(listing(path), before);
    }
}

#[test]
fn dynamic_trains_on_documents_in_micro_batches() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let paragraph = |index: usize| "In the beginning was the word. ".repeat(index * index % 7);
    fs::write(path.join("text"), (0..80).map(|index| paragraph(index) + "end\n\n").collect::<String>()).unwrap();
    let train = r"train --data text --document-separator \n\n --seq-len 100 --batch 4 --accumulate 2 --threads 1
        --steps 3 --warmup 0 --validation 0.2 --json";
    let single = json(path, &format!("{train} --out single"));
    assert_eq!(single["micro_batches"], serde_json::json!([2, 2, 2]));
    let mut most = 0;
    for choices in
        ["--cp 2 --tokens-per-rank 50", "--cp 3", "--cp 3 --tokens-per-rank 34", "--cp 1 --tokens-per-rank 500"]
    {
        let found = json(path, &format!("{train} --strategy dynamic {choices}"));
        for key in ["loss", "grad_norm"] {
            let pairs = numbers(&found[key]).into_iter().zip(numbers(&single[key]));
            pairs.for_each(|(found, expected)| close(found, expected, 1e-4));
        }
        close(found["held_out_loss"].as_f64().unwrap(), single["held_out_loss"].as_f64().unwrap(), 1e-4);
        let counts = numbers(&found["micro_batches"]);
        assert_eq!(counts.len(), 3);
        most = counts.into_iter().fold(most, |most, count| most.max(count as usize));
    }
    assert!(most > 3, "a small limit takes more micro-batches, found {most}");
    // Another strategy sees the same documents.
    for choices in ["ring --cp 3", "magi --cp 3", "magi --cp 3 --effort 0 --stages 2"] {
        let other = json(path, &format!("{train} --strategy {choices}"));
        close(numbers(&other["loss"])[2], numbers(&single["loss"])[2], 1e-4);
    }

    // What is said before the first step, and what is logged.
    let arguments =
        format!("{} --strategy dynamic --cp 2 --tokens-per-rank 60 --out run", train.replace(" --json", ""));
    let output = run(path, &arguments.split_whitespace().collect::<Vec<_>>());
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{message}");
    for part in ["sequences of", "step 1: 8 documents", "per rank; ", "keys and values received; makespan"] {
        assert!(message.contains(part), "\"{part}\" is not in\n{message}");
    }
    let log = fs::read_to_string(path.join("run/log.jsonl")).unwrap();
    let line: Value = serde_json::from_str(log.lines().next().unwrap()).unwrap();
    assert!(line["micro_batches"].as_u64() > Some(0) && line["tokens"].as_u64() > Some(8));

    let eval = r"eval --model single --data text --document-separator \n\n --seq-len 100 --threads 1 --json";
    let (whole, spread) = (json(path, eval), json(path, &format!("{eval} --strategy dynamic --cp 3 --batch 9")));
    close(spread["loss"].as_f64().unwrap(), whole["loss"].as_f64().unwrap(), 1e-5);
    // Every byte but a document's first one is predicted.
    let text = fs::read_to_string(path.join("text")).unwrap();
    let expected: usize = text.split("\n\n").map(|document| document.len().saturating_sub(1)).sum();
    assert_eq!(whole["tokens"], expected);
}

#[test]
fn further_tokens_are_trained_saved_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let train = "train --data recall --seq-len 16 --threads 1 --steps 2 --warmup 0 --json";
    let report = json(path, &format!("{train} --batch 2 --cp 2 --mtp-depth 2 --out run"));
    let (losses, further) = (numbers(&report["loss"]), numbers(&report["mtp_loss"]));
    assert_eq!((losses.len(), further.len()), (2, 2));
    // Fresh weights know nothing, at any depth.
    close(further[0], 256f64.ln(), 0.02);
    assert_ne!(further[0], losses[0]);
    let log = fs::read_to_string(path.join("run/log.jsonl")).unwrap();
    let log: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(log.iter().map(|line| line["mtp_loss"].as_f64().unwrap()).collect::<Vec<_>>(), further);
    let config = Config::read(&path.join("run")).unwrap();
    assert_eq!(config.mtp_depth, 2);

    // The same on one rank, in micro-batches of one sequence, with blocks computed twice.
    let single = json(path, &format!("{train} --batch 1 --accumulate 2 --mtp-depth 2 --recompute"));
    for key in ["loss", "mtp_loss", "grad_norm"] {
        numbers(&single[key])
            .iter()
            .zip(numbers(&report[key]))
            .for_each(|(&found, expected)| close(found, expected, 1e-5));
    }
    // The loss of the next token does not depend on the depth before the first step; nor is there another without.
    let plain = json(path, &format!("{train} --batch 2 --out plain"));
    close(numbers(&plain["loss"])[0], losses[0], 1e-6);
    assert!(plain.get("mtp_loss").is_none());
    assert!(!fs::read_to_string(path.join("plain/log.jsonl")).unwrap().contains("mtp_loss"));

    // A model goes on with its depth; one without can be given one.
    let longer = train.replace("--steps 2", "--steps 12");
    let next =
        numbers(&json(path, &format!("{longer} --batch 4 --model run --lr 3e-3 --seed 1 --out next"))["mtp_loss"]);
    assert!(next.len() == 12 && next[11] < 256f64.ln() - 0.5, "{next:?}");
    assert_eq!(Config::read(&path.join("next")).unwrap(), config);
    let given = json(path, &format!("{train} --batch 2 --model plain --mtp-depth 1 --out given"));
    close(numbers(&given["mtp_loss"])[0], 256f64.ln(), 0.1);
    assert_eq!(Config::read(&path.join("given")).unwrap().mtp_depth, 1);
    // What is evaluated is the next token.
    for model in ["run", "given"] {
        let eval = |choices: &str| {
            let arguments = format!("eval --model {model} --data recall --seq-len 16 --threads 1 --json {choices}");
            json(path, &arguments)["loss"].as_f64().unwrap()
        };
        close(eval("--cp 2"), eval(""), 1e-6);
    }
    let before = listing(path);
    for (depth, model, expected) in
        [("1", "run", ["--mtp-depth is 1", "depth 2"]), ("0", "run", ["--mtp-depth is 0", "depth 2"])]
    {
        let output = run(path, &["train", "--data", "recall", "--model", model, "--mtp-depth", depth, "--out", "new"]);
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{message}");
        assert!(expected.iter().all(|part| message.contains(part)), "{message}");
    }
    assert_eq!(listing(path), before);
}

#[test]
fn a_run_that_diverges_fails_and_keeps_its_log() {
    let folder = tempfile::tempdir().unwrap();
    let arguments =
        "train --data recall --seq-len 16 --batch 1 --threads 1 --steps 9 --lr 1e30 --warmup 0 --out run --cp 2";
    let output = run(folder.path(), &arguments.split(' ').collect::<Vec<_>>());
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("diverged at step"), "{message}");
    assert!(folder.path().join("run/log.jsonl").metadata().unwrap().len() > 0);
    assert!(folder.path().join("run/loss.svg").exists() && !folder.path().join("run/model.safetensors").exists());
}

#[test]
fn a_vocabulary_too_small_for_bytes_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let (vocab_size, hidden_size, intermediate_size) = (100, 8, 8);
    let sizes = Sizes { vocab_size, hidden_size, intermediate_size, layers: 1, heads: 1, kv_heads: 1 };
    fs::create_dir(path.join("model")).unwrap();
    fs::write(path.join("model/config.json"), Config::llama(sizes).unwrap().to_json().unwrap()).unwrap();
    fs::write(path.join("text"), "a text of some length").unwrap();
    let output = run(path, &["train", "--model", "model", "--data", "text", "--seq-len", "8", "--out", "new"]);
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(message.contains("vocabulary of 100") && message.contains("--bytes"), "{message}");
    let output =
        run(path, &["train", "--model", "model", "--data", "text", "--seq-len", "8", "--out", "new", "--bytes"]);
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{message}");
    // The first of the bytes "x", the largest.
    assert!(message.contains("byte 120 at offset 4") && message.contains("vocabulary of 100"), "{message}");
    assert!(!path.join("new").exists());
}

#[test]
fn logits_are_those_of_transformers() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/hf/llama_gqa");
    // The published package leaves the golden files out.
    if !Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").exists() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let expected = fs::read(golden.join("expected.safetensors")).unwrap();
    let expected = SafeTensors::deserialize(&expected).unwrap();
    let tokens = expected.tensor("dense.tokens").unwrap();
    let write = |name: &str, data: &[u8]| {
        let view = TensorView::new(Dtype::I64, tokens.shape().to_vec(), data).unwrap();
        fs::write(path.join(name), safetensors::serialize([("tokens", view)], None).unwrap()).unwrap();
    };
    write("tokens", tokens.data());
    let values =
        |data: &[u8]| -> Vec<f32> { data.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect() };
    let eval = format!("eval --model {} --threads 1 --batch 1 --json", golden.display());
    for choices in ["", "--cp 3 --layout sbhd", "--strategy all-gather --cp 2 --layout bshd --kernel unfused"] {
        fs::write(path.join("logits"), "what was there before").unwrap();
        let report = json(path, &format!("{eval} --tokens tokens --logits logits {choices}"));
        assert_eq!(report["tokens"], 2 * 47);
        let file = fs::read(path.join("logits")).unwrap();
        let file = SafeTensors::deserialize(&file).unwrap();
        let logits = file.tensor("logits").unwrap();
        let reference = expected.tensor("dense.logits").unwrap();
        assert_eq!((logits.dtype(), logits.shape()), (Dtype::F32, reference.shape()));
        for (found, expected) in values(logits.data()).into_iter().zip(values(reference.data())) {
            assert!((found - expected).abs() < 2e-5, "{found} is not {expected} with {choices}");
        }
    }
    // A token that the model does not have: nothing is written.
    let mut wrong = tokens.data().to_vec();
    wrong[8 * 50..8 * 51].copy_from_slice(&4000i64.to_le_bytes());
    write("wrong", &wrong);
    let before = listing(path);
    let arguments = format!("{eval} --tokens wrong --logits new");
    let output = run(path, &arguments.split(' ').collect::<Vec<_>>());
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(message.contains("\"tokens\" has 4000 at row 1, column 2"), "{message}");
    assert_eq!(listing(path), before);
}

#[test]
fn plans_are_printed() {
    let folder = tempfile::tempdir().unwrap();
    for strategy in ["single --cp 1", "ring --cp 3", "ulysses --cp 4", "ring-ulysses --cp 2x2", "dynamic --cp 3"] {
        let report = json(folder.path(), &format!("inspect --strategy {strategy} --lengths 40,0,24 --json"));
        let ranks = report["ranks"].as_array().unwrap();
        let rows: u64 = ranks.iter().map(|rank| rank["rows"].as_u64().unwrap()).sum();
        assert_eq!((rows, ranks.len() as u64), (64, report["cp"].as_u64().unwrap()), "{strategy}");
        assert_eq!(report["area"], 40 * 41 / 2 + 24 * 25 / 2, "{strategy}");
        assert!(ranks.iter().all(|rank| rank["forward"]["steps"].is_array()), "{strategy}");
    }
    // The scheduler's micro-batches.
    let arguments = "inspect --strategy dynamic --cp 8 --lengths 6000,3000,1500,700,300,100,0 --tokens-per-rank 1024";
    let report = json(folder.path(), &format!("{arguments} --json"));
    let micro_batches = report["micro_batches"].as_array().unwrap();
    assert_eq!(report["schedule"]["rows_received"], 49_500);
    assert_eq!(
        report["area"],
        [6000u64, 3000, 1500, 700, 300, 100].map(|length| length * (length + 1) / 2).iter().sum::<u64>()
    );
    let mut documents: Vec<u64> = Vec::new();
    let (mut bytes, mut rows) = (0, 0);
    for micro in micro_batches {
        let groups = micro["groups"].as_array().unwrap();
        documents.extend(groups.iter().map(|group| group["document"].as_u64().unwrap()));
        assert_eq!(micro["plan"]["lengths"].as_array().unwrap().len(), groups.len());
        let ranks = micro["plan"]["ranks"].as_array().unwrap();
        assert!(ranks.len() == 8 && ranks.iter().all(|rank| rank["rows"].as_u64() <= Some(1024)));
        rows += ranks.iter().map(|rank| rank["rows"].as_u64().unwrap()).sum::<u64>();
        bytes += micro["plan"]["bytes"].as_u64().unwrap();
    }
    documents.sort_unstable();
    assert_eq!((documents, rows, report["bytes"].as_u64()), ((0..7).collect(), 11_600, Some(bytes)));
    let output = run(folder.path(), &arguments.split(' ').collect::<Vec<_>>());
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("49,500 rows of keys and values received") && text.contains("micro-batch"), "{text}");
    // The solver's effort is an option, and a plan is the same every time.
    let magi = |effort: u64| {
        let lengths = "300,20,500,70,900,33";
        json(folder.path(), &format!("inspect --strategy magi --cp 4 --lengths {lengths} --effort {effort} --json"))
    };
    assert_eq!(magi(2000), magi(2000));
    let report = magi(2000);
    assert!(report["bytes"].as_u64() <= magi(0)["bytes"].as_u64());
    // What was reached, beside what cannot be beaten.
    let placement = &report["placement"];
    let received = placement["received"].as_array().unwrap().iter().map(|rows| rows.as_u64().unwrap()).sum::<u64>();
    let sent = report["ranks"].as_array().unwrap().iter().map(|rank| rank["rows_sent"].as_u64().unwrap()).sum::<u64>();
    assert_eq!(received, sent, "every key that is needed is sent, and no other");
    assert!(placement["received_bound"].as_u64().unwrap() <= received, "{placement}");
    assert!(placement["area_bound"].as_u64().unwrap() <= placement["area_max"].as_u64().unwrap(), "{placement}");
    assert!(json(folder.path(), "inspect --strategy ulysses --lengths 64 --json")["placement"].is_null());
    // Stages, as many as asked for where there are enough keys.
    for (stages, strategy) in [(1, "magi"), (3, "magi"), (2, "dynamic"), (2, "dynamic --tokens-per-rank 3000")] {
        let arguments = format!("inspect --strategy {strategy} --cp 4 --lengths 4000,3000 --stages {stages} --json");
        let report = json(folder.path(), &arguments);
        let plan = report.get("micro_batches").map_or(&report, |micro_batches| &micro_batches[0]["plan"]);
        for rank in plan["ranks"].as_array().unwrap() {
            assert_eq!(rank["stages"], serde_json::json!([stages, stages]), "{arguments}");
        }
    }
    // One rank's plan is that of all ranks' plans.
    for strategy in ["ring", "ring --order striped", "all-gather", "ulysses", "ring-ulysses", "magi", "dynamic"] {
        let arguments = format!("inspect --strategy {strategy} --cp 4 --lengths 40,0,24 --json");
        let (all, one) = (json(folder.path(), &arguments), json(folder.path(), &format!("{arguments} --rank 2")));
        assert_eq!((&one["ranks"][0], &one["hash"]), (&all["ranks"][2], &all["hash"]), "{strategy}");
        assert_eq!(one["ranks"].as_array().unwrap().len(), 1);
        assert!(one["bytes"].is_null() && one["balance"].is_null() && one["placement"].is_null());
    }
    refused("inspect --lengths 8 --cp 2 --rank 2", &["--rank is 2 of 2 ranks", "0 to 1"]);
    refused(
        "inspect --strategy dynamic --lengths 8 --cp 2 --rank 1 --tokens-per-rank 8",
        &["--rank 1", "--tokens-per-rank", "leave one of them out"],
    );
    // As many ranks as there may ever be: at once, and with heads that they can share out.
    for strategy in ["ring", "all-gather", "ulysses"] {
        let arguments = format!("inspect --strategy {strategy} --cp 4096 --lengths 4194304 --rank 7 --json");
        let report = json(folder.path(), &arguments);
        assert_eq!(report["ranks"][0]["rows"], 1024, "{strategy}");
    }
    // Moves are bounded.
    refused("inspect --lengths 8 --strategy magi --effort 99999999999", &["--effort is 99999999999", "or less"]);
}

#[test]
fn every_combination_is_verified() {
    let folder = tempfile::tempdir().unwrap();
    for (dtype, bound) in [("f32", 2e-6), ("f64", 1e-12), ("bf16", 1e-1), ("f16", 1e-2)] {
        let report = json(folder.path(), &format!("verify --cp 1,2 --dtype {dtype} --threads 1 --json"));
        assert_eq!(report["ok"], true);
        let rows = report["rows"].as_array().unwrap();
        let orders = |name: &str| select::orders(name).len();
        let table = select::combinations();
        let expected: usize = table.map(|(name, ..)| if name == "single" { 1 } else { 2 } * orders(name)).sum();
        assert_eq!(rows.len(), expected);
        for row in rows {
            for key in ["err_out", "err_dq", "err_dk", "err_dv"] {
                assert!(row[key].as_f64().unwrap() < bound, "{key} of {row}");
            }
            for key in ["err_loss", "err_grad", "bytes_predicted", "cp"] {
                assert!(row[key].is_number(), "{key} of {row}");
            }
            assert_eq!(row["bytes_predicted"], row["bytes_counted"]);
            assert_eq!(row["bytes_counted"].as_u64() == Some(0), row["cp"] == 1, "{row}");
            assert_eq!((row["dtype"].as_str(), row["transport"].as_str()), (Some(dtype), Some("threads")));
        }
    }
}

/// 16-bit types are compared with `single`, which has no grid to be told.
#[test]
fn grids_of_ring_ulysses_are_verified_in_16_bits() {
    let folder = tempfile::tempdir().unwrap();
    let report = json(folder.path(), "verify --cp 4 --dtype bf16 --threads 1 --json");
    assert_eq!(report["ok"], true);
    let grids = report["rows"].as_array().unwrap().iter().filter(|row| row["grid"].is_object()).count();
    // Both levels on neighbours, three orders, three layouts.
    assert_eq!(grids, 2 * 3 * 3);
}

#[test]
fn attention_is_measured() {
    let folder = tempfile::tempdir().unwrap();
    for choices in ["--causal --dtype bf16", "--kv-heads 1 --batch 2"] {
        let report = json(folder.path(), &format!("bench attention --seq 64 --heads 2 --runs 2 --json {choices}"));
        for key in ["forward_ms", "backward_ms", "forward_gflops", "backward_gflops"] {
            assert!(report[key].as_f64().unwrap() > 0.0);
        }
        assert_eq!(report["runs"], 2);
    }
}

#[test]
fn what_the_machine_lacks_is_said_before_any_work() {
    let folder = tempfile::tempdir().unwrap();
    let doctor = run(folder.path(), &["doctor"]);
    let said = String::from_utf8_lossy(&doctor.stdout);
    assert!(doctor.status.success(), "{said}");
    for part in ["processor", "instruction sets", "memory", "NVIDIA GPUs", "MPI"] {
        assert!(said.contains(part) || said.contains("GPU 0"), "{part} is not in\n{said}");
    }
    let json = run(folder.path(), &["doctor", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert!(json["findings"].as_array().is_some_and(|findings| findings.len() >= 5), "{json}");
    if said.contains("GPU 0") {
        return;
    }
    // Whichever library is missing first; or the whole feature.
    let missing = if cfg!(feature = "cuda") { "was not found: no lib" } else { "--features cuda" };
    refused("train --data recall --device cuda", &["cuda", missing]);
    refused("verify --cp 1 --device cuda", &[missing]);
    refused("demo --device cuda", &[missing]);
    refused("bench attention --device cuda", &[missing]);
    refused("train --data recall --device tpu", &["unknown device \"tpu\"", "cpu"]);
}
