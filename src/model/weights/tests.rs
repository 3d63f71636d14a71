//! Reading, writing and sharding.

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

mod names;
mod refusals;

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
