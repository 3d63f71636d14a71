//! Folders of models as other programs write them, and the one that a run leaves.

use std::fs;
use std::path::Path;
use std::process::Output;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value, json};

use super::{json as report, listing, run};

const POINTER: &str = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n";
const EVAL: &str = "eval --model model --data recall --seq-len 16 --threads 1 --json";
const TRAIN: &str = "train --model model --data recall --seq-len 16 --batch 1 --steps 1 --threads 1 --json --out new";

/// A folder with a small model in `model`, as one step of training leaves it.
fn folder(choices: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let train = "train --data recall --seq-len 16 --batch 1 --steps 1 --threads 1 --json --out model";
    report(folder.path(), &format!("{train} {choices}"));
    folder
}

fn command(folder: &Path, arguments: &str) -> Output {
    run(folder, &arguments.split_whitespace().collect::<Vec<_>>())
}

/// Checks exit code 2, all of `words` in one message, and that nothing was written.
fn refused(folder: &Path, arguments: &str, words: &[&str]) {
    let before = listing(folder);
    let output = command(folder, arguments);
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{arguments}: {message}");
    assert!(words.iter().all(|word| message.contains(word)), "{arguments}: {words:?} are not in\n{message}");
    assert_eq!(listing(folder), before, "{arguments} wrote something");
}

fn config(folder: &Path) -> Map<String, Value> {
    serde_json::from_str(&fs::read_to_string(folder.join("config.json")).unwrap()).unwrap()
}

fn set(folder: &Path, changes: Value) {
    let mut map = config(folder);
    map.extend(changes.as_object().unwrap().clone());
    fs::write(folder.join("config.json"), Value::Object(map).to_string()).unwrap();
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn sizes_that_cannot_be_are_refused_at_once() {
    let folder = folder("");
    let path = folder.path();
    let original = fs::read(path.join("model/config.json")).unwrap();
    let cases = [
        (json!({"num_hidden_layers": 2_000_000_000}), ["model/config.json", "\"num_hidden_layers\" is 2000000000"]),
        (json!({"num_nextn_predict_layers": 2_000_000_000}), ["model/config.json", "\"num_nextn_predict_layers\""]),
        (json!({"head_dim": 2_147_483_646, "num_attention_heads": 2_147_483_647}), ["model/config.json", "head"]),
        (json!({"num_hidden_layers": 9000}), ["model/model.safetensors has 4 blocks", "9000 (num_hidden_layers)"]),
        (json!({"vocab_size": 2_000_000_000}), ["model/model.safetensors", "[2000000000, 128]"]),
        (json!({"intermediate_size": 2_000_000_000}), ["model/model.safetensors", "2000000000"]),
    ];
    for (changes, words) in cases {
        set(&path.join("model"), changes);
        for arguments in [EVAL, TRAIN] {
            refused(path, arguments, &words);
        }
        fs::write(path.join("model/config.json"), &original).unwrap();
    }
    refused(
        path,
        &format!("{} --mtp-depth 15000", TRAIN.replace("--seq-len 16", "--seq-len 20000")),
        &["num_nextn_predict_layers", "10000"],
    );
}

#[test]
fn a_field_is_ignored_on_demand_and_said() {
    let folder = folder("");
    let path = folder.path();
    let expected = report(path, EVAL);
    set(&path.join("model"), json!({"logits_scaling": 8.0}));
    for arguments in [EVAL, TRAIN] {
        let words = ["model/config.json", "\"logits_scaling\" is 8.0", "--ignore-config-field logits_scaling"];
        refused(path, arguments, &words);
        let output = command(path, &format!("{arguments} --ignore-config-field logits_scaling"));
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{message}");
        assert!(message.contains("\"logits_scaling\" is 8.0") && message.contains("ignored"), "{message}");
    }
    assert_eq!(report(path, &format!("{EVAL} --ignore-config-field logits_scaling")), expected);
    // The trained model is one without the field.
    assert!(!config(&path.join("new")).contains_key("logits_scaling"));
    refused(path, &format!("{EVAL} --ignore-config-field logit_scaling"), &["logit_scaling", "no such field"]);
    let without = "train --data recall --ignore-config-field x";
    refused(path, without, &["--model"]);
}

#[test]
fn names_of_other_programs_are_read_and_said() {
    let folder = folder("");
    let path = folder.path();
    let expected = report(path, EVAL);
    let weights = path.join("model/model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let rename = |rename: &dyn Fn(&str) -> String| {
        let views = file.iter().map(|(name, tensor)| {
            (rename(name), TensorView::new(tensor.dtype(), tensor.shape().to_vec(), tensor.data()).unwrap())
        });
        fs::write(&weights, safetensors::serialize(views, None).unwrap()).unwrap();
    };
    rename(&|name| format!("module._orig_mod.{}", name.strip_prefix("model.").unwrap_or(name)));
    let message = String::from_utf8(command(path, EVAL).stderr).unwrap();
    assert!(message.contains("module.") && message.contains("\"model.\" in front"), "{message}");
    assert_eq!(report(path, EVAL), expected);
    rename(&|name| name.replace("lm_head", "head"));
    refused(path, EVAL, &["model/model.safetensors", "no tensor lm_head.weight", "set tie_word_embeddings to true"]);
}

#[test]
fn a_pointer_of_git_lfs_is_named_in_place_of_any_file() {
    let folder = folder("");
    let path = folder.path();
    for name in ["model/config.json", "model/model.safetensors"] {
        let original = fs::read(path.join(name)).unwrap();
        fs::write(path.join(name), POINTER).unwrap();
        for arguments in [EVAL, TRAIN] {
            refused(path, arguments, &[name, "Git LFS", "git lfs pull"]);
        }
        fs::write(path.join(name), original).unwrap();
    }
    fs::write(path.join("text"), POINTER).unwrap();
    for arguments in ["train --data text", "eval --model model --data text", "eval --model model --tokens text"] {
        refused(path, arguments, &["text", "git lfs pull"]);
    }
    fs::write(path.join("model/tokenizer.json"), POINTER).unwrap();
    refused(path, TRAIN, &["model/tokenizer.json", "git lfs pull"]);
}

#[test]
fn a_trained_model_has_all_that_it_started_with() {
    let folder = folder("--dtype bf16");
    let path = folder.path();
    let fresh = config(&path.join("model"));
    // Missing fields would be 1 and 2.
    assert_eq!((&fresh["bos_token_id"], &fresh["eos_token_id"]), (&Value::Null, &Value::Null));
    assert_eq!((&fresh["dtype"], &fresh["torch_dtype"]), (&json!("bfloat16"), &json!("bfloat16")));
    let companions = [
        "added_tokens.json",
        "chat_template.jinja",
        "generation_config.json",
        "merges.txt",
        "special_tokens_map.json",
        "tekken.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "vocab.json",
    ];
    for name in companions.iter().chain(&["README.md", "optimizer.pt"]) {
        fs::write(path.join("model").join(name), name).unwrap();
    }
    set(&path.join("model"), json!({"bos_token_id": 7, "eos_token_id": [8, 9]}));
    report(path, TRAIN);
    let next = config(&path.join("new"));
    assert_eq!((&next["bos_token_id"], &next["eos_token_id"]), (&json!(7), &json!([8, 9])));
    assert_eq!((&next["dtype"], &next["torch_dtype"]), (&json!("float32"), &json!("float32")));
    let mut expected = companions.to_vec();
    expected.extend(["config.json", "log.jsonl", "loss.svg", "model.safetensors", "run.json"]);
    expected.sort_unstable();
    assert_eq!(names(&path.join("new")), expected);
    for name in companions {
        assert_eq!(fs::read_to_string(path.join("new").join(name)).unwrap(), name);
    }
    // What would be replaced is not.
    fs::create_dir(path.join("other")).unwrap();
    fs::write(path.join("other/merges.txt"), "mine").unwrap();
    refused(path, &TRAIN.replace("--out new", "--out other"), &["--out other", "merges.txt", "new or empty"]);
}

#[test]
fn further_tokens_are_written_by_deepseeks_names() {
    let folder = folder("--mtp-depth 1");
    let path = folder.path().join("model/model.safetensors");
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    for name in ["enorm", "hnorm", "eh_proj", "shared_head.norm", "self_attn.q_proj", "mlp.down_proj"] {
        let tensor = file.tensor(&format!("model.layers.4.{name}.weight")).unwrap();
        assert_eq!(tensor.dtype(), Dtype::F32, "{name}");
    }
    assert_eq!(file.tensor("model.layers.4.eh_proj.weight").unwrap().shape(), [128, 256]);
    assert!(!file.names().iter().any(|name| name.contains("mtp")));
}
