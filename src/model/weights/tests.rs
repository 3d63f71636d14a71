//! Reading, writing, sharding, and every kind of file that must be refused.

use std::fs;
use std::path::PathBuf;

use safetensors::SafeTensors;
use safetensors::tensor::{TensorView, serialize};
use tempfile::TempDir;

use super::files::INDEX;
use super::tensor::{EMBEDDING, HEAD};
use super::*;
use crate::model::config::Sizes;
use crate::tensor::Cpu;

type Tensors = Vec<(String, Dtype, Vec<usize>, Vec<u8>)>;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/hf").join(name)
}

fn tensors(folder: &Path) -> Tensors {
    let bytes = fs::read(folder.join(SINGLE)).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut all: Tensors =
        file.iter().map(|(name, t)| (name.into(), t.dtype(), t.shape().to_vec(), t.data().to_vec())).collect();
    all.sort();
    all
}

fn write(path: &Path, tensors: &[(String, Dtype, Vec<usize>, Vec<u8>)]) {
    let view = |(name, dtype, shape, data): &'_ (String, Dtype, Vec<usize>, Vec<u8>)| {
        (name.clone(), *dtype, shape.clone(), data.clone())
    };
    let owned: Vec<_> = tensors.iter().map(view).collect();
    let views =
        owned.iter().map(|(name, dtype, shape, data)| (name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
    fs::write(path, serialize(views, None).unwrap()).unwrap();
}

/// A copy of a golden case whose tensors can be changed.
fn changed(name: &str, change: impl FnOnce(&mut Tensors)) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(golden(name).join("config.json"), folder.path().join("config.json")).unwrap();
    let mut all = tensors(&golden(name));
    change(&mut all);
    write(&folder.path().join(SINGLE), &all);
    folder
}

fn open<T: Float>(folder: &Path) -> Result<(Config, Master<Cpu<T>>)> {
    let config = Config::read(folder)?;
    let list = ParameterList::new(&config);
    let weights = load_master(&Cpu::<T>::new(1), folder, &list)?;
    Ok((config, weights))
}

fn refused(folder: &Path) -> String {
    let error = open::<f32>(folder).expect_err("must be refused");
    assert!(error.is_input());
    error.to_string()
}

#[test]
fn golden_weights_survive_loading_and_saving_bit_for_bit() {
    let mut cases = 0;
    for entry in fs::read_dir(golden("")).unwrap() {
        let folder = entry.unwrap().path();
        let (config, weights) = open::<f32>(&folder).unwrap();
        let out = tempfile::tempdir().unwrap();
        save(&Cpu::<f32>::new(1), out.path(), &config, &weights, DType::F32).unwrap();
        assert_eq!(tensors(out.path()), tensors(&folder), "{folder:?}");
        assert_eq!(Config::read(out.path()).unwrap(), config);
        let names = fs::read_dir(out.path()).unwrap().count();
        assert_eq!(names, 2, "temporary files are left in {:?}", out.path());
        let bytes = fs::read(out.path().join(SINGLE)).unwrap();
        let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
        cases += 1;
    }
    assert!(cases >= 5);
}

#[test]
fn values_land_where_their_names_say() {
    let folder = golden("llama_gqa");
    let (_, weights) = open::<f32>(&folder).unwrap();
    let name = "model.layers.1.self_attn.k_proj.weight";
    let id = weights.list().find(name).unwrap();
    let (_, _, shape, bytes) = tensors(&folder).into_iter().find(|tensor| tensor.0 == name).unwrap();
    let file: Vec<f32> = bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
    assert_eq!(shape, [32, 64]);
    assert_eq!((weights.view(id).rows(), weights.view(id).cols()), (64, 32));
    assert_eq!(weights.view(id).row(5)[7], file[7 * 64 + 5]);
}

#[test]
fn a_tensor_of_several_blocks_is_read_whole() {
    let sizes = Sizes { vocab_size: 70_001, hidden_size: 8, intermediate_size: 8, layers: 1, heads: 1, kv_heads: 1 };
    let config = Config::llama(sizes).unwrap();
    let (device, list, out) = (Cpu::<f32>::new(1), ParameterList::new(&config), tempfile::tempdir().unwrap());
    let values = |spec: &ParameterSpec| (0..spec.len()).map(|i| i as f32).collect::<Vec<_>>();
    let weights = Master::<Cpu<f32>>::from_host(&device, &list, |_, spec| Ok(values(spec))).unwrap();
    save(&device, out.path(), &config, &weights, DType::F32).unwrap();
    let (_, back) = open::<f32>(out.path()).unwrap();
    assert!(list.iter().all(|(id, spec)| back.to_host(&device, id).unwrap() == values(spec)));
}

#[test]
fn every_float_type_is_read_and_written() {
    let (config, single) = open::<f32>(&golden("qwen3_qknorm")).unwrap();
    let id = single.list().layers[0].gate.weight;
    let device = Cpu::<f32>::new(1);
    for (dtype, torch, rounded) in [
        (DType::Bf16, "bfloat16", (|x| bf16::from_f32(x).to_f32()) as fn(f32) -> f32),
        (DType::F16, "float16", |x| f16::from_f32(x).to_f32()),
        (DType::F64, "float64", |x| x),
    ] {
        let out = tempfile::tempdir().unwrap();
        save(&device, out.path(), &config, &single, dtype).unwrap();
        assert!(tensors(out.path()).iter().all(|tensor| tensor.1 == file_dtype(dtype).unwrap().0));
        let text = fs::read_to_string(out.path().join("config.json")).unwrap();
        assert!(text.contains(torch), "{text}");
        let (_, back) = open::<f32>(out.path()).unwrap();
        assert!(
            back.view(id).to_vec().iter().zip(single.view(id).to_vec().iter()).all(|(&b, &s)| b == rounded(s)),
            "{dtype}"
        );
        let (_, double) = open::<f64>(out.path()).unwrap();
        assert!(
            double.view(id).to_vec().iter().zip(single.view(id).to_vec().iter()).all(|(&d, &s)| d == rounded(s) as f64),
            "{dtype}"
        );
        // The copy for running only holds the storage type itself.
        let run = load(&Cpu::<bf16>::new(1), out.path(), single.list()).unwrap();
        assert!(
            run.view(id)
                .to_vec()
                .iter()
                .zip(single.view(id).to_vec().iter())
                .all(|(&r, &s)| r == bf16::from_f32(rounded(s))),
            "{dtype}"
        );
    }
    let out = tempfile::tempdir().unwrap();
    let error = save(&device, &out.path().join("x"), &config, &single, DType::I64).unwrap_err().to_string();
    assert!(error.contains("i64") && !out.path().join("x").exists(), "{error}");
}

/// Splits a golden case into two shards with an index.
fn sharded(change: impl FnOnce(&mut serde_json::Map<String, serde_json::Value>)) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(golden("llama_gqa").join("config.json"), folder.path().join("config.json")).unwrap();
    let all = tensors(&golden("llama_gqa"));
    let (left, right) = all.split_at(all.len() / 2);
    let names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    let mut map = serde_json::Map::new();
    for (file, part) in names.into_iter().zip([left, right]) {
        write(&folder.path().join(file), part);
        map.extend(part.iter().map(|tensor| (tensor.0.clone(), json!(file))));
    }
    change(&mut map);
    let index = json!({"metadata": {"total_size": 0}, "weight_map": map});
    fs::write(folder.path().join(INDEX), index.to_string()).unwrap();
    folder
}

#[test]
fn shards_are_the_same_as_one_file() {
    let folder = sharded(|_| ());
    let (_, whole) = open::<f32>(&golden("llama_gqa")).unwrap();
    let (_, parts) = open::<f32>(folder.path()).unwrap();
    for id in whole.list().ids() {
        assert_eq!(whole.view(id).to_vec(), parts.view(id).to_vec());
    }
}

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
fn stored_frequencies_and_equal_heads_are_skipped() {
    let frequencies = |all: &mut Tensors| {
        all.push(("model.layers.0.self_attn.rotary_emb.inv_freq".into(), Dtype::F32, vec![1], vec![0; 4]));
    };
    assert!(open::<f32>(changed("llama_gqa", frequencies).path()).is_ok());

    let head = |all: &mut Tensors, flip: bool| {
        let mut copy = all.iter().find(|tensor| tensor.0 == EMBEDDING).unwrap().clone();
        copy.0 = HEAD.into();
        copy.3[2] ^= u8::from(flip);
        all.push(copy);
    };
    assert!(open::<f32>(changed("qwen2_tied_bias", |all| head(all, false)).path()).is_ok());
    let message = refused(changed("qwen2_tied_bias", |all| head(all, true)).path());
    assert!(message.contains(HEAD) && message.contains("tie_word_embeddings"), "{message}");
}

#[test]
fn a_failed_save_leaves_what_was_there() {
    let (config, weights) = open::<f32>(&golden("llama_gqa")).unwrap();
    let out = tempfile::tempdir().unwrap();
    // A folder where the file belongs: the last rename fails.
    fs::create_dir_all(out.path().join(SINGLE).join("in the way")).unwrap();
    let error = save(&Cpu::<f32>::new(1), out.path(), &config, &weights, DType::F32).unwrap_err();
    assert!(!error.is_input() && error.to_string().contains(SINGLE), "{error}");
    let names: Vec<_> = fs::read_dir(out.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, [SINGLE]);
}

/// A copy of a golden case whose tensors have other names.
fn renamed(case: &str, rename: impl Fn(&str) -> String) -> TempDir {
    changed(case, |all| all.iter_mut().for_each(|tensor| tensor.0 = rename(&tensor.0)))
}

fn notes(folder: &Path) -> Vec<String> {
    check(folder, &ParameterList::new(&Config::read(folder).unwrap())).unwrap()
}

#[test]
fn names_of_wrappers_and_of_bare_models_are_read_and_said() {
    let (_, expected) = open::<f32>(&golden("qwen2_tied_bias")).unwrap();
    let bare = |name: &str| name.strip_prefix("model.").unwrap_or(name).to_string();
    type Rename<'a> = &'a dyn Fn(&str) -> String;
    let spellings: [(Rename<'_>, &[&str]); 5] = [
        (&|name| name.to_string(), &[]),
        (&|name| format!("module.{name}"), &["module."]),
        (&|name| format!("module._orig_mod.{name}"), &["module."]),
        (&bare, &["\"model.\""]),
        (&|name| format!("_orig_mod.{}", bare(name)), &["module.", "\"model.\""]),
    ];
    for (rename, words) in spellings {
        let folder = renamed("qwen2_tied_bias", rename);
        let (_, weights) = open::<f32>(folder.path()).unwrap();
        assert!(expected.list().ids().all(|id| weights.view(id).to_vec() == expected.view(id).to_vec()));
        let notes = notes(folder.path());
        assert_eq!(notes.len(), words.len(), "{notes:?}");
        assert!(notes.iter().zip(words).all(|(note, word)| note.contains(word)), "{notes:?}");
    }
    let twice = changed("llama_gqa", |all| {
        let mut copy = all[0].clone();
        copy.0 = format!("module.{}", copy.0);
        all.push(copy);
    });
    assert!(refused(twice.path()).contains("by two names"));
}

#[test]
fn names_in_larger_models_are_read_and_said() {
    let (_, expected) = open::<f32>(&golden("llama_gqa")).unwrap();
    let inner = |front: &'static str| move |name: &str| name.replace("model.", front);
    type Rename<'a> = &'a dyn Fn(&str) -> String;
    let spellings: [(Rename<'_>, &str); 6] = [
        (&|name| format!("model.{name}"), "model.model."),
        (&|name| format!("language_model.{name}"), "language_model.model."),
        (&|name| format!("base_model.model.{name}"), "base_model.model.model."),
        (&inner("transformer."), "transformer."),
        (&inner("model.language_model."), "model.language_model."),
        (&|name| format!("transformer.{}", name.replace("model.", "")), "transformer."),
    ];
    for (rename, front) in spellings {
        let folder = renamed("llama_gqa", rename);
        let (_, weights) = open::<f32>(folder.path()).unwrap();
        assert!(expected.list().ids().all(|id| weights.view(id).to_vec() == expected.view(id).to_vec()), "{front}");
        let notes = notes(folder.path());
        assert!(notes.len() == 1 && notes[0].contains(&format!("in place of \"{front}\"")), "{notes:?}");
    }
    // What is left over keeps the name that it has in the file.
    let rest = changed("llama_gqa", |all| {
        all.iter_mut().for_each(|tensor| tensor.0 = format!("language_model.{}", tensor.0));
        all.push(("vision_tower.norm.weight".into(), Dtype::F32, vec![1], vec![0; 4]));
    });
    assert!(refused(rest.path()).contains("no use for: vision_tower.norm.weight;"));
    // Two models in one file: nobody knows which is meant.
    let two = changed("llama_gqa", |all| {
        let teacher = all.iter().cloned().map(|mut tensor| {
            tensor.0 = format!("teacher.{}", tensor.0);
            tensor
        });
        let teacher: Vec<_> = teacher.collect();
        all.iter_mut().for_each(|tensor| tensor.0 = format!("student.{}", tensor.0));
        all.extend(teacher);
    });
    assert!(refused(two.path()).contains("has no tensor model."));
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
fn a_missing_output_layer_names_the_fix() {
    let folder = changed("llama_gqa", |all| all.retain(|tensor| tensor.0 != HEAD));
    let message = refused(folder.path());
    assert!(message.contains(HEAD) && message.contains("set tie_word_embeddings to true"), "{message}");
    // The other way round there is one tensor for both.
    let (_, expected) = open::<f32>(&golden("qwen2_tied_bias")).unwrap();
    let rename = |name: &str| if name == EMBEDDING { HEAD.to_string() } else { name.to_string() };
    let folder = renamed("qwen2_tied_bias", rename);
    let (_, weights) = open::<f32>(folder.path()).unwrap();
    assert!(weights.view(weights.list().embedding).to_vec() == expected.view(expected.list().embedding).to_vec());
    assert!(notes(folder.path())[0].contains(HEAD));
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
