//! What `train` and `eval` take from files of text and of token ids, and what they refuse before any work.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use context_parallel::model::{Config, Master, ParameterList, Sizes, init, weights};
use context_parallel::tensor::{Cpu, DType};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use super::{close, json, run};

const VOCAB: usize = 300;
const N: i64 = -100;

fn config(vocab_size: usize) -> Config {
    let (hidden_size, intermediate_size) = (32, 48);
    Config::llama(Sizes { vocab_size, hidden_size, intermediate_size, layers: 2, heads: 4, kv_heads: 2 }).unwrap()
}

/// A model whose logits are far from alike.
fn model(folder: &Path, vocab_size: usize) {
    let mut config = config(vocab_size);
    config.initializer_range = 0.3;
    let device = Cpu::<f32>::new(1);
    let values: Master<Cpu<f32>> = init::fresh(&device, &config, &ParameterList::new(&config), 5).unwrap();
    weights::save(&device, folder, &config, &values, DType::F32).unwrap();
}

/// `config.json`, and weights of zeros that take no space.
fn hollow(folder: &Path, config: &Config) {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("config.json"), config.to_json().unwrap()).unwrap();
    let (mut tensors, mut end) = (serde_json::Map::new(), 0);
    for (_, spec) in ParameterList::new(config).iter() {
        let start = end;
        end += 4 * spec.len() as u64;
        let about = serde_json::json!({ "dtype": "F32", "shape": spec.shape, "data_offsets": [start, end] });
        tensors.insert(spec.name.clone(), about);
    }
    let header = serde_json::Value::Object(tensors).to_string();
    let path = folder.join("model.safetensors");
    fs::write(&path, [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat()).unwrap();
    File::options().write(true).open(&path).unwrap().set_len(8 + header.len() as u64 + end).unwrap();
}

fn write(path: &Path, tensors: &[(&str, &[usize], &[i64])]) {
    let data: Vec<Vec<u8>> =
        tensors.iter().map(|(.., values)| values.iter().flat_map(|value| value.to_le_bytes()).collect()).collect();
    let views = tensors.iter().zip(&data);
    let views =
        views.map(|((name, shape, _), data)| (*name, TensorView::new(Dtype::I64, shape.to_vec(), data).unwrap()));
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// Every file below a folder, with its size: some are too large to read.
fn sizes(folder: &Path) -> Vec<(PathBuf, u64)> {
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let below = |path: PathBuf| match path.is_dir() {
        true => [vec![(path.clone(), 0)], sizes(&path)].concat(),
        false => vec![(path.clone(), path.metadata().unwrap().len())],
    };
    let mut files: Vec<_> = paths.flat_map(below).collect();
    files.sort();
    files
}

#[track_caller]
fn refused(folder: &Path, arguments: &str, expected: &[&str]) {
    let before = sizes(folder);
    let output = run(folder, &arguments.split_whitespace().collect::<Vec<_>>());
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{arguments}: {message}");
    for part in expected {
        assert!(message.contains(part), "{arguments}: \"{part}\" is not in\n{message}");
    }
    assert_eq!(sizes(folder), before, "{arguments} wrote something");
}

/// Rows of logits as `eval --logits` writes them, and their shape.
fn logits(path: &Path) -> (Vec<Vec<f64>>, Vec<usize>) {
    let file = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&file).unwrap();
    let tensor = file.tensor("logits").unwrap();
    let values = tensor.data().as_chunks().0.iter().map(|&bytes| f64::from(f32::from_le_bytes(bytes)));
    let values: Vec<f64> = values.collect();
    (values.chunks(tensor.shape()[2]).map(<[f64]>::to_vec).collect(), tensor.shape().to_vec())
}

/// `-log softmax(logits)[label]`.
fn loss(logits: &[f64], label: i64) -> f64 {
    logits.iter().map(|logit| logit.exp()).sum::<f64>().ln() - logits[label as usize]
}

fn ids() -> Vec<i64> {
    (0..40).map(|i: i64| (i * i * 7 + 3 * i) % VOCAB as i64).collect()
}

const EVAL: &str = "eval --model model --tokens ids --threads 1 --json";

#[test]
fn labels_of_a_token_file_decide_what_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    model(&path.join("model"), VOCAB);
    let ids = ids();
    write(&path.join("ids"), &[("tokens", &[2, 20], &ids)]);
    let plain = json(path, &format!("{EVAL} --logits logits"));
    assert_eq!(plain["tokens"], 2 * 19);
    let (rows, shape) = logits(&path.join("logits"));
    assert_eq!(shape, [2, 20, VOCAB]);

    // Columns 10 to 19 of both rows, each predicted by the column before.
    let labels: Vec<i64> = ids.iter().enumerate().map(|(i, &id)| if i % 20 < 10 { N } else { id }).collect();
    let expected = (0..40).filter(|i| i % 20 >= 10).map(|i| loss(&rows[i - 1], ids[i])).sum::<f64>() / 20.0;
    assert!((expected - plain["loss"].as_f64().unwrap()).abs() > 1e-3);
    write(&path.join("ids"), &[("input_ids", &[2, 20], &ids), ("labels", &[2, 20], &labels)]);
    for choices in ["", "--cp 3 --layout sbhd", "--labels hf"] {
        let found = json(path, &format!("{EVAL} {choices}"));
        assert_eq!(found["tokens"], 20);
        close(found["loss"].as_f64().unwrap(), expected, 1e-5);
    }
    let output = run(path, &EVAL.split(' ').collect::<Vec<_>>());
    let message = String::from_utf8_lossy(&output.stderr).to_string();
    assert!(message.contains("as Hugging Face has them") && message.contains("20 tokens to predict"), "{message}");

    // The same predictions, and two that lie beyond the rows, as Megatron writes them.
    let ahead: Vec<i64> = (0..40).map(|i| if i % 20 < 9 { N } else { ids.get(i + 1).copied().unwrap_or(17) }).collect();
    let beyond = loss(&rows[19], ids[20]) + loss(&rows[39], 17);
    write(&path.join("ids"), &[("tokens", &[2, 20], &ids), ("labels", &[2, 20], &ahead)]);
    let found = json(path, EVAL);
    assert_eq!(found["tokens"], 22);
    close(found["loss"].as_f64().unwrap(), (20.0 * expected + beyond) / 22.0, 1e-5);
    // A mask of the predictions instead, which takes out the same.
    let mask: Vec<i64> = (0..40).map(|i| i64::from(i % 20 >= 9)).collect();
    write(&path.join("ids"), &[("tokens", &[2, 20], &ids), ("loss_mask", &[2, 20], &mask)]);
    close(json(path, EVAL)["loss"].as_f64().unwrap(), expected, 1e-5);

    let own: Vec<i64> = ids.iter().map(|id| (id + 50) % VOCAB as i64).collect();
    write(&path.join("ids"), &[("tokens", &[2, 20], &ids), ("labels", &[2, 20], &own)]);
    refused(path, EVAL, &["neither the tokens nor the tokens after them", "--labels"]);
    let expected = (0..40).map(|i| loss(&rows[i], own[i])).sum::<f64>() / 40.0;
    close(json(path, &format!("{EVAL} --labels shifted"))["loss"].as_f64().unwrap(), expected, 1e-5);
}

#[test]
fn documents_of_a_token_file_are_evaluated_apart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    model(&path.join("model"), VOCAB);
    let ids = ids();
    let ends = [0usize, 7, 8, 20, 33, 40];
    let mut alone = (Vec::new(), 0.0);
    for pair in ends.windows(2) {
        write(&path.join("ids"), &[("tokens", &[1, pair[1] - pair[0]], &ids[pair[0]..pair[1]])]);
        json(path, &format!("{EVAL} --logits logits"));
        let (rows, _) = logits(&path.join("logits"));
        alone.1 += rows.iter().zip(&ids[pair[0] + 1..pair[1]]).map(|(row, &id)| loss(row, id)).sum::<f64>();
        alone.0.extend(rows);
    }
    let document = |i: usize| ends.iter().rposition(|&end| end <= i).unwrap();
    let positions: Vec<i64> = (0..40).map(|i| (i - ends[document(i)]) as i64).collect();
    let documents: Vec<i64> = (0..40).map(|i| document(i) as i64).collect();
    for (name, shape, values) in [
        ("position_ids", &[2, 20][..], positions.clone()),
        ("document_ids", &[2, 20], documents),
        ("cu_seqlens", &[6], ends.map(|end| end as i64).to_vec()),
    ] {
        write(&path.join("ids"), &[("tokens", &[2, 20], &ids), (name, shape, &values)]);
        for choices in ["", "--cp 3 --batch 1", "--strategy magi --cp 2", "--strategy dynamic --cp 2"] {
            let found = json(path, &format!("{EVAL} --logits logits {choices}"));
            assert_eq!(found["tokens"], 40 - 5);
            close(found["loss"].as_f64().unwrap(), alone.1 / 35.0, 1e-5);
            let (rows, shape) = logits(&path.join("logits"));
            assert_eq!(shape, [2, 20, VOCAB], "rows are those of the file");
            let far =
                rows.iter().flatten().zip(alone.0.iter().flatten()).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(far < 2e-4, "{name} {choices}: {far}");
        }
    }
    refused(path, &format!("{EVAL} --layout bshd"), &["ids has documents of 7 and of 1 tokens", "--layout thd"]);
    let rotated: Vec<i64> = positions.iter().map(|position| position + 1).collect();
    write(&path.join("ids"), &[("tokens", &[2, 20], &ids), ("position_ids", &[2, 20], &rotated)]);
    refused(path, EVAL, &["\"position_ids\" has 1 at row 0, column 0", "imply 0"]);
    write(&path.join("ids"), &[("tokens", &[2, 20], &ids), ("token_type_ids", &[2, 20], &[0; 40])]);
    refused(path, EVAL, &["\"token_type_ids\" is not known", "known are tokens"]);
    // Padding: of the first row the first 12 tokens count.
    let mask: Vec<i64> = (0..40).map(|i| i64::from(!(12..20).contains(&i))).collect();
    write(&path.join("ids"), &[("tokens", &[2, 20], &ids), ("attention_mask", &[2, 20], &mask)]);
    assert_eq!(json(path, EVAL)["tokens"], 11 + 19);
}

#[test]
fn nothing_to_predict_is_no_loss() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    model(&path.join("model"), VOCAB);
    write(&path.join("ids"), &[("tokens", &[3, 1], &[1, 2, 3])]);
    refused(path, EVAL, &["ids has nothing to predict", "--logits FILE"]);
    let found = json(path, &format!("{EVAL} --logits logits"));
    assert!(found["loss"].is_null() && found["tokens"] == 0);
    assert_eq!(logits(&path.join("logits")).1, [3, 1, VOCAB]);
    write(&path.join("ids"), &[("tokens", &[1, 3], &[1, 2, 3]), ("labels", &[1, 3], &[N, N, N])]);
    refused(path, EVAL, &["nothing to predict"]);
    refused(path, &format!("{EVAL} --labels maybe"), &["unshifted", "shifted"]);
}

#[test]
fn every_command_refuses_what_does_not_fit_the_machine() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    // Weights of some terabytes.
    let sizes = Sizes {
        vocab_size: 30_000_000,
        hidden_size: 16_384,
        intermediate_size: 16,
        layers: 1,
        heads: 128,
        kv_heads: 128,
    };
    hollow(&path.join("large"), &Config::llama(sizes).unwrap());
    fs::write(path.join("text"), "In the beginning").unwrap();
    write(&path.join("ids"), &[("tokens", &[1, 8], &[1, 2, 3, 4, 5, 6, 7, 8])]);
    for command in ["eval --tokens ids", "eval --data text --bytes", "eval --data recall", "train --data recall"] {
        refused(path, &format!("{command} --model large"), &["of memory, this machine has", "smaller model"]);
    }
    // Tokens of all micro-batches are made before the first one runs, on every rank.
    let arguments = "train --data recall --seq-len 4096 --batch 1 --accumulate 1048576 --cp 64 --threads 1";
    refused(path, arguments, &["--batch 1 times --accumulate 1048576", "this machine has", "smaller --batch, --acc"]);
    // So are plans.
    let arguments = "inspect --lengths 60000000 --cp 4096";
    refused(path, arguments, &["60,000,000 tokens on 4,096 ranks", "this machine has", "shorter --lengths"]);
    // A small model with a large vocabulary: its logits are some terabytes too.
    let sizes = Sizes { vocab_size: 1_000_000, hidden_size: 8, intermediate_size: 8, layers: 1, heads: 1, kv_heads: 1 };
    hollow(&path.join("wide"), &Config::llama(sizes).unwrap());
    write(&path.join("long"), &[("tokens", &[1, 1 << 18], &vec![7; 1 << 18])]);
    let arguments = "eval --model wide --tokens long --logits logits";
    refused(path, arguments, &["logits of --batch 4", "262144 tokens (long)", "this machine has", "smaller --batch"]);
}

#[test]
fn places_that_cannot_be_written_are_refused_before_work() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    model(&path.join("model"), 256);
    fs::write(path.join("text"), "In the beginning was the word.").unwrap();
    if cfg!(target_os = "linux") {
        refused(path, "eval --model model --data text --logits /proc/logits", &["cannot be written into /proc"]);
        refused(path, "eval --model model --data text --logits /dev/null", &["--logits /dev/null: name a file"]);
        refused(path, "train --data text --seq-len 8 --out /proc/run", &["cannot be written into /proc"]);
    }
    refused(path, "train --data text --seq-len 8 --out text/run", &["text/run"]);
    // A name that is fine, but not with what is added to it while the file is written.
    let long = "l".repeat(252);
    refused(path, &format!("eval --model model --data text --logits {long}"), &[&long, "cannot be written"]);
}

#[test]
fn bytes_are_ids_of_models_over_bytes_or_where_the_user_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    fs::write(path.join("text"), "In the beginning was the word, and more of it.").unwrap();
    fs::write(path.join("accents"), "Au commencement \u{e9}tait la parole.").unwrap();
    model(&path.join("model"), 256);
    model(&path.join("ascii"), 128);
    model(&path.join("larger"), 300);
    let train = |model: &str| format!("train --seq-len 8 --steps 1 --batch 1 --threads 1 --model {model} --data");
    let eval = |model: &str| format!("eval --threads 1 --model {model} --data");
    for command in [train, eval] {
        // Every spelling of a tokenizer.
        for name in ["tekken.json", "tokenizer_config.json", "spiece.model", "qwen.tiktoken", "vocab.txt"] {
            fs::write(path.join("model").join(name), "{}").unwrap();
            refused(path, &format!("{} text", command("model")), &[name, "tokenizer", "--bytes"]);
            assert!(json(path, &format!("{} text --bytes --json", command("model"))).is_object());
            fs::remove_file(path.join("model").join(name)).unwrap();
        }
        assert!(json(path, &format!("{} text --json", command("model"))).is_object());
        refused(path, &format!("{} text", command("larger")), &["vocabulary of 300", "--bytes"]);
        // ASCII fits 128 ids, which is said of the text and not of what a byte could be.
        refused(path, &format!("{} text", command("ascii")), &["vocabulary of 128", "--bytes"]);
        assert!(json(path, &format!("{} text --bytes --json", command("ascii"))).is_object());
        let expected = ["accents has byte 195 at offset 16", "vocabulary of 128", "at least 196"];
        refused(path, &format!("{} accents --bytes", command("ascii")), &expected);
        // What is no plain text.
        for (name, what) in
            [("x.jsonl", "JSON"), ("x.parquet", "a table"), ("x.safetensors", "tensors"), ("x.gz", "compr")]
        {
            fs::copy(path.join("text"), path.join(name)).unwrap();
            let expected = [name, "is no plain text", what, "by its name", "--bytes"];
            refused(path, &format!("{} {name}", command("model")), &expected);
            assert!(json(path, &format!("{} {name} --bytes --json", command("model"))).is_object());
        }
        fs::write(path.join("packed"), b"\x1f\x8b\x08 and some more bytes than eight").unwrap();
        refused(path, &format!("{} packed", command("model")), &["compressed, by its first bytes"]);
        refused(path, &format!("{} recall --bytes", command("model")), &["--bytes is for a text"]);
    }
}

#[test]
fn documents_too_short_for_a_depth_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    fs::write(path.join("text"), "abc|de|fgh").unwrap();
    let train = "train --data text --document-separator | --seq-len 8";
    refused(path, &format!("{train} --cp 4"), &["--cp is 4", "2 tokens", "--cp 2 or less"]);
    refused(path, &format!("{train} --mtp-depth 2"), &["2 tokens at most", "depth 2", "--mtp-depth 1 or less"]);
}

#[test]
fn nothing_that_is_not_finite_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let train = "train --data recall --seq-len 16 --batch 1 --threads 1 --warmup 0 --cp 2";
    // Loss and gradient of the only step are fine; the weights after it are not.
    let (broken, expected) = ("--steps 1 --lr 1e39", "step 1: the norm of the weights is");
    let failed = |arguments: &str, expected: &str| {
        let output = run(path, &arguments.split(' ').collect::<Vec<_>>());
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert!(message.contains(expected), "{message}");
    };
    failed(&format!("{train} {broken} --out weights"), expected);
    // A model that is broken from the start.
    model(&path.join("model"), 256);
    let mut file = fs::read(path.join("model/model.safetensors")).unwrap();
    let values = file.len() - 4 * 1000;
    file[values..].copy_from_slice(&f32::NAN.to_le_bytes().repeat(1000));
    fs::write(path.join("model/model.safetensors"), file).unwrap();
    failed(&format!("{train} --model model --out loss"), "step 1: the loss is NaN");
    for run in ["weights", "loss"] {
        assert!(!path.join(run).exists(), "no step was fine");
    }
    let eval = "eval --model model --threads 1";
    failed(&format!("{eval} --data recall --seq-len 16"), "the loss is NaN");
    fs::write(path.join("logits"), "what was there before").unwrap();
    let expected = "the logits of row 0, column 0 are not finite (NaN)";
    failed(&format!("{eval} --data recall --seq-len 16 --logits logits"), expected);
    // No label counts, and where one does its loss may be fine.
    write(&path.join("ids"), &[("tokens", &[3, 1], &[1, 2, 3])]);
    failed(&format!("{eval} --tokens ids --logits logits --cp 1"), expected);
    assert_eq!(fs::read_to_string(path.join("logits")).unwrap(), "what was there before");
    assert!(!path.join(".logits.part").exists());
}
