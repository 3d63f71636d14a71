//! Training runs: what they print and leave, and how a run begins from the model of another.

use super::*;

const TRAIN: &str = "train --data text --seq-len 32 --batch 4 --threads 1";

fn text(folder: &Path) {
    let line = |index: usize| format!("{index}: in the beginning was the word, and the word was with {}.\n", index % 7);
    fs::write(folder.join("text"), (0..200).map(line).collect::<String>()).unwrap();
}

/// Runs something that must work; what it says on stderr.
fn said(folder: &Path, arguments: &str) -> String {
    let output = run(folder, &arguments.split_whitespace().collect::<Vec<_>>());
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{arguments}: {message}");
    message
}

fn record(folder: &Path, name: &str) -> Value {
    serde_json::from_slice(&fs::read(folder.join(name).join("run.json")).unwrap()).unwrap()
}

#[test]
fn a_model_is_trained_further_without_harm_on_the_data_that_follows() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    text(path);
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    let first = numbers(&json(path, &format!("{TRAIN} --steps 40 --out first --json"))["loss"]);
    assert!(mean(&first[35..]) < first[0] - 0.5, "{first:?}");

    // As the advice of --resume says.
    let message = said(path, &format!("{TRAIN} --steps 10 --model first --out second"));
    for part in [
        "weights from the run in first, the optimizer starts afresh, the data goes on at its step 41, where that run",
        "learning rate 2e-5 (the default for --model) after 1 step of warm-up, 2e-6 at the end",
    ] {
        assert!(message.contains(part), "\"{part}\" is not in\n{message}");
    }
    let second = record(path, "second");
    assert_eq!((&second["data"]["first_step"], &second["settings"]["lr"]), (&40.into(), &2e-5.into()));
    let log = fs::read_to_string(path.join("second/log.jsonl")).unwrap();
    let losses: Vec<f64> =
        log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["loss"].as_f64().unwrap()).collect();
    assert!(mean(&losses) < mean(&first[35..]) + 0.1, "{losses:?} after {first:?}");
    // Further runs go on from there.
    assert!(said(path, &format!("{TRAIN} --steps 1 --model second")).contains("the data goes on at its step 51"));

    // Other data, or the same in another order, starts over, and says why.
    for (options, reason) in
        [("--seed 1", "(--seed was 0 and is 1)"), ("--batch 2", "(--batch times --accumulate was 4 and is 2)")]
    {
        let message =
            said(path, &format!("{TRAIN} --steps 1 --model first {options} --lr 1e-4").replace(" --batch 4", ""));
        assert!(message.contains(&format!("the data starts over {reason}")), "{message}");
        assert!(message.contains("learning rate 1e-4 after 0 steps"), "{message}");
    }
    // A run that was killed before it said that it had saved.
    let mut killed = record(path, "first");
    killed["steps_done"] = Value::Null;
    fs::write(path.join("first/run.json"), killed.to_string()).unwrap();
    let message = said(path, &format!("{TRAIN} --steps 1 --model first"));
    assert!(message.contains("the data starts over (that run did not say how far it came)"), "{message}");
    fs::write(path.join("first/run.json"), "{").unwrap();
    assert!(said(path, &format!("{TRAIN} --steps 1 --model first")).contains("the data starts over (cannot read"));
    fs::remove_file(path.join("first/run.json")).unwrap();
    assert!(!said(path, &format!("{TRAIN} --steps 1 --model first")).contains("the data"));
    assert!(said(path, &format!("{TRAIN} --steps 1")).contains("learning rate 3e-3 (the default for a fresh model)"));
}

#[test]
fn a_run_says_that_it_is_not_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    text(path);
    let message = said(path, &format!("{TRAIN} --steps 1"));
    assert!(message.contains("the model will not be kept when the run ends: --out DIR keeps it"), "{message}");
    assert!(!said(path, &format!("{TRAIN} --steps 1 -o run")).contains("not be kept"));
}

#[test]
fn json_has_a_line_per_printed_step_and_the_summary() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    text(path);
    let lines = |options: &str| -> Vec<Value> {
        let arguments = format!("{TRAIN} --steps 7 --json {options}");
        let output = run(path, &arguments.split_whitespace().collect::<Vec<_>>());
        serde_json::Deserializer::from_slice(&output.stdout).into_iter().map(Result::unwrap).collect()
    };
    let steps = |lines: &[Value]| lines.iter().map(|line| line["step"].as_u64()).collect::<Vec<_>>();
    let all = lines("--out run");
    assert_eq!(steps(&all), [1, 2, 3, 4, 5, 6, 7].map(Some).into_iter().chain([None]).collect::<Vec<_>>());
    assert_eq!((all[7]["steps"].as_u64(), &all[7]["loss"][3]), (Some(7), &all[3]["loss"]));
    let log = fs::read_to_string(path.join("run/log.jsonl")).unwrap();
    assert_eq!(log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).collect::<Vec<_>>(), all[..7]);
    // Every third, those that are evaluated, and the last.
    let few = lines("--log-every 3 --validation 0.1 --validate-every 5 --out few");
    assert_eq!(steps(&few), [Some(3), Some(5), Some(6), Some(7), None]);
    assert_eq!(fs::read_to_string(path.join("few/log.jsonl")).unwrap().lines().count(), 7);
    let output = run(path, &format!("{TRAIN} --steps 7 --log-every 4").split(' ').collect::<Vec<_>>());
    let text = String::from_utf8(output.stdout).unwrap();
    let starts: Vec<_> =
        text.lines().map(|line| line.split_whitespace().take(2).collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(starts, ["step 4/7", "step 7/7", "done after"]);
    refused("train --data text --log-every 0", &["--log-every is 0"]);
    refused("train --data text --schedule cosinus", &["cosinus", "constant", "linear", "cosine", "wsd"]);
    refused("train --data text --schedule constant --min-lr 0", &["--min-lr is 0", "--schedule constant"]);
    refused("train --data text --decay-steps 5", &["--decay-steps is 5", "--schedule wsd"]);
    refused("train --data text --schedule wsd --steps 9 --decay-steps 10", &["--decay-steps is 10", "from 1 to 9"]);
    refused("train --data text --schedule wsd --steps 9 --warmup 9", &["--warmup 9 leaves none of the 9 steps"]);
    refused("train --data text --beta1 1", &["--beta1 is 1", "below 1"]);
    refused("train --data text --beta2 -0.5", &["--beta2 is -0.5"]);
    refused("train --data text --epsilon 0", &["--epsilon is 0", "1e-8"]);
    refused("train --data text --native-reductions", &["--native-reductions", "--transport nccl", "threads"]);
    refused("train --data text --trace", &["--trace measures GPUs", "--device cuda"]);
}

#[test]
fn a_run_folder_says_what_was_run() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    text(path);
    said(path, &format!("{TRAIN} --steps 3 --seed 5 --validation 0.1 --cp 2 --out my&run"));
    let record = record(path, "my&run");
    let command: Vec<&str> = record["command"].as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect();
    assert!(command[0].contains("context-parallel") && command[1..].join(" ").starts_with(TRAIN), "{command:?}");
    assert_eq!((record["steps"].as_u64(), record["steps_done"].as_u64()), (Some(3), Some(3)));
    assert_eq!((record["data"]["seed"].as_u64(), &record["data"]["data"]), (Some(5), &"text".into()));
    assert_eq!(record["version"], env!("CARGO_PKG_VERSION"));
    let settings = &record["settings"];
    assert_eq!(
        (&settings["strategy"], &settings["order"], &settings["cp"]),
        (&"ring".into(), &"zigzag".into(), &2.into())
    );
    for (key, value) in [("deadline", Value::from(600)), ("device", "cpu".into()), ("log_every", 1.into())] {
        assert_eq!(settings[key], value, "{key}");
    }
    assert_eq!((&settings["bytes"], &settings["ignore_config_field"]), (&false.into(), &Value::Array(vec![])));
    assert_eq!([&settings["grid"], &settings["effort"], &settings["stages"]], [&Value::Null; 3]);
    assert_eq!((&settings["lr"], &settings["preset"]), (&3e-3.into(), &"tiny".into()));
    said(path, &format!("{TRAIN} --steps 1 --cp 4 --strategy ring-ulysses --inner-adjacent false --out grid"));
    let grid: Value = serde_json::from_slice(&fs::read(path.join("grid/run.json")).unwrap()).unwrap();
    let grid = &grid["settings"]["grid"];
    let ranks = ["outer", "inner"].map(|degree| grid[degree].as_u64().unwrap());
    assert_eq!((ranks[0] * ranks[1], &grid["inner_adjacent"]), (4, &false.into()), "as chosen for the heads");
    let svg = fs::read_to_string(path.join("my&run/loss.svg")).unwrap();
    let log = fs::read_to_string(path.join("my&run/log.jsonl")).unwrap();
    let last: Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
    let [loss, held_out] = ["loss", "held_out_loss"].map(|key| last[key].as_f64().unwrap());
    assert!(svg.contains("my&amp;run: loss per step"), "{svg}");
    assert!(svg.contains(&format!("training {loss:.4} at step 3, held out {held_out:.4} at step 3")), "{svg}");
}

#[test]
fn bytes_are_evaluated_in_bits() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    text(path);
    json(path, &format!("{TRAIN} --steps 2 --out run --json"));
    let report = json(path, "eval --model run --data text --seq-len 32 --json");
    let loss = report["loss"].as_f64().unwrap();
    close(report["bits_per_byte"].as_f64().unwrap(), loss / 2f64.ln(), 1e-12);
    let output = run(path, &["eval", "--model", "run", "--data", "text", "--seq-len", "32"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains(&format!("{:.4} bits per byte", loss / 2f64.ln())), "{text}");
    // Tokens that are not bytes have none.
    assert!(json(path, "eval --model run --data recall --seq-len 32 --json").get("bits_per_byte").is_none());
}
