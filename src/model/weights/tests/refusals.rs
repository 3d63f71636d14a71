//! Every kind of file that must be refused.

use std::fs;

use super::super::files::INDEX;
use super::super::tensor::{EMBEDDING, SINGLE};
use super::super::*;
use super::{Tensors, changed, golden, refused, renamed, sharded};

#[test]
fn bad_indices_are_refused() {
    let name = "model.norm.weight";
    let other = "model-00001-of-00002.safetensors";
    let wrong = refused(sharded(|map| drop(map.insert(name.into(), json!(other)))).path());
    assert!(wrong.contains(name) && wrong.contains(other) && wrong.contains(INDEX), "{wrong}");
    let outside = refused(sharded(|map| drop(map.insert(name.into(), json!("../x.safetensors")))).path());
    assert!(outside.contains("../x.safetensors") && outside.contains("file name"), "{outside}");
    let missing = refused(sharded(|map| drop(map.insert(name.into(), json!("gone.safetensors")))).path());
    assert!(missing.contains("gone.safetensors"), "{missing}");
    let folder = sharded(|_| ());
    fs::write(folder.path().join(INDEX), "{}").unwrap();
    assert!(refused(folder.path()).contains("weight_map"));
    let folder = sharded(|_| ());
    fs::copy(folder.path().join("model-00002-of-00002.safetensors"), folder.path().join(other)).unwrap();
    assert!(refused(folder.path()).contains(other));
}

#[test]
fn missing_truncated_and_invalid_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(golden("llama_gqa").join("config.json"), folder.path().join("config.json")).unwrap();
    let path = folder.path().join(SINGLE);
    let message = refused(folder.path());
    assert!(message.contains(&path.display().to_string()) && message.contains("no such file"), "{message}");

    let whole = fs::read(golden("llama_gqa").join(SINGLE)).unwrap();
    for length in [0, 7, 8, 100, whole.len() - 4, whole.len() - 1] {
        fs::write(&path, &whole[..length]).unwrap();
        let message = refused(folder.path());
        assert!(message.contains(SINGLE) && message.contains("truncated"), "{length}: {message}");
    }
    let mut longer = whole.clone();
    longer.push(0);
    fs::write(&path, &longer).unwrap();
    assert!(refused(folder.path()).contains("the file has"));
    let mut garbled = whole.clone();
    garbled[8] = b'x';
    fs::write(&path, &garbled).unwrap();
    assert!(refused(folder.path()).contains("not a valid safetensors file"));
    fs::write(&path, u64::MAX.to_le_bytes()).unwrap();
    assert!(refused(folder.path()).contains("header"));
}

#[test]
fn wrong_tensors_are_refused_by_name() {
    let at = |all: &Tensors, name: &str| all.iter().position(|tensor| tensor.0 == name).unwrap();
    let name = "model.layers.0.mlp.up_proj.weight";
    let missing = changed("llama_gqa", |all| drop(all.remove(at(all, name))));
    let message = refused(missing.path());
    assert!(message.contains(name) && message.contains("[112, 64]"), "{message}");

    let turned = changed("llama_gqa", |all| {
        let i = at(all, name);
        all[i].2.reverse();
    });
    let message = refused(turned.path());
    assert!(
        message.contains(name) && message.contains("[64, 112]") && message.contains("expected [112, 64]"),
        "{message}"
    );

    let integers = changed("llama_gqa", |all| {
        let i = at(all, name);
        all[i].1 = Dtype::I32;
    });
    let message = refused(integers.path());
    assert!(message.contains(name) && message.contains("I32") && message.contains("expected F32"), "{message}");

    let more = changed("llama_gqa", |all| {
        for i in 0..6 {
            all.push((format!("model.layers.{i}.self_attn.sinks"), Dtype::F32, vec![1], vec![0; 4]));
        }
    });
    let message = refused(more.path());
    assert!(message.contains("model.layers.0.self_attn.sinks") && message.contains("and 2 more"), "{message}");
}

#[test]
fn weights_that_pytorch_pickled_are_named() {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(golden("llama_gqa").join("config.json"), folder.path().join("config.json")).unwrap();
    for name in ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin"] {
        let path = folder.path().join(name);
        fs::write(&path, "pickle").unwrap();
        let message = refused(folder.path());
        assert!(message.contains(name) && message.contains("convert them to safetensors"), "{message}");
        fs::remove_file(&path).unwrap();
    }
}

#[test]
fn headers_contradict_sizes_before_memory_is_taken() {
    let refused_with = |key: &str, value: u64, words: &[&str]| {
        let folder = changed("llama_gqa", |_| ());
        let path = folder.path().join("config.json");
        let mut map: serde_json::Map<_, _> = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        map.insert(key.into(), json!(value));
        fs::write(&path, serde_json::Value::Object(map).to_string()).unwrap();
        let config = Config::read(folder.path()).unwrap();
        let error = check(folder.path(), &ParameterList::new(&config)).unwrap_err();
        let message = error.to_string();
        assert!(error.is_input() && words.iter().all(|word| message.contains(word)), "{message}");
    };
    refused_with("num_hidden_layers", 10_000, &["has 2 blocks", "10000 (num_hidden_layers)"]);
    refused_with("num_nextn_predict_layers", 3, &["has 2 blocks", "3 (num_nextn_predict_layers)"]);
    refused_with("vocab_size", 2_000_000_000, &[EMBEDDING, "2000000000", "config.json"]);
    refused_with("intermediate_size", 2_000_000_000, &["2000000000", "config.json"]);
}

#[test]
fn pointers_of_git_lfs_are_named() {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n";
    for name in [SINGLE, "config.json"] {
        let folder = changed("llama_gqa", |_| ());
        fs::write(folder.path().join(name), pointer).unwrap();
        let message = refused(folder.path());
        assert!(message.contains(name) && message.contains("git lfs pull"), "{message}");
    }
}

#[test]
fn quantised_tensors_are_named_as_such() {
    let name = "model.layers.0.mlp.up_proj.weight";
    let folder =
        renamed(
            "llama_gqa",
            |other| {
                if other == name { other.replace("weight", "qweight") } else { other.to_string() }
            },
        );
    let message = refused(folder.path());
    assert!(message.contains(name) && message.contains("dequantise"), "{message}");
    // Packed four to a byte under the name that it had.
    let packed = changed("llama_gqa", |all| {
        let tensor = all.iter_mut().find(|tensor| tensor.0 == name).unwrap();
        (tensor.1, tensor.2) = (Dtype::U8, vec![112, 32]);
        tensor.3.truncate(112 * 32);
    });
    let message = refused(packed.path());
    assert!(message.contains("U8") && message.contains("dequantise") && !message.contains("correct"), "{message}");
}
