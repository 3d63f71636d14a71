//! Parsing, writing and reading again.

use std::path::PathBuf;

use super::*;
use crate::rope::RopeScaling;

mod refusals;

fn golden() -> Vec<PathBuf> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/hf");
    let mut folders: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    folders
}

/// A complete configuration of a family, with `changes` on top; `null` removes a field.
fn with(family: &str, changes: Value) -> Result<Config> {
    let mut map = match json!({
        "model_type": family, "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": null, "rope_theta": 10000.0
    }) {
        Value::Object(map) => map,
        _ => unreachable!(),
    };
    for (key, value) in changes.as_object().unwrap() {
        map.insert(key.clone(), value.clone());
    }
    map.retain(|key, value| !value.is_null() || key == "sliding_window");
    Config::from_map(map)
}

#[test]
fn golden_configurations_parse_and_round_trip() {
    let folders = golden();
    assert!(folders.len() >= 5);
    for folder in folders {
        let config = Config::read(&folder).unwrap();
        assert_eq!(Config::from_json(&config.to_json().unwrap()).unwrap(), config, "{folder:?}");
        // Without its source, it is written from the fields.
        let bare = Config { source: None, ..config.clone() };
        assert_eq!(Config::from_json(&bare.to_json().unwrap()).unwrap(), config, "{folder:?}");
        // With its source, every field of the file survives.
        let text = std::fs::read_to_string(folder.join("config.json")).unwrap();
        assert_eq!(Value::Object(config.to_map().unwrap()), serde_json::from_str::<Value>(&text).unwrap());
    }
}

#[test]
fn golden_values() {
    let read = |name: &str| Config::read(&golden()[0].with_file_name(name)).unwrap();
    let mistral = read("mistral_window");
    assert_eq!((mistral.family, mistral.kv_heads, mistral.head_dim), (Family::Mistral, 1, 8));
    assert_eq!(mistral.windows, [Some(12); 2]);
    let qwen2 = read("qwen2_tied_bias");
    assert_eq!(qwen2.attention_bias, AttentionBias { query: true, key: true, value: true, output: false });
    assert!(qwen2.tie_word_embeddings && !qwen2.qk_norm && qwen2.rope.base == 1e6 && qwen2.head_dim == 8);
    let qwen3 = read("qwen3_qknorm");
    assert!(qwen3.qk_norm && qwen3.attention_bias == AttentionBias::default() && qwen3.query_size() == 64);
    let scaled = read("llama3_scaled");
    assert_eq!(scaled.rope.scaling, RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 32 });
    assert_eq!((scaled.rope.base, scaled.rope.head_dim), (500000.0, 16));
}

#[test]
fn a_depth_is_read_written_and_changed_without_loss_of_other_fields() {
    let plain = with("llama", json!({"bos_token_id": 7})).unwrap();
    assert_eq!(plain.mtp_depth, 0);
    let deep = plain.clone().with_mtp_depth(2);
    let map = deep.to_map().unwrap();
    assert_eq!((&map["num_nextn_predict_layers"], &map["bos_token_id"]), (&json!(2), &json!(7)));
    assert_eq!(Config::from_map(map).unwrap(), deep);
    assert_ne!(deep, plain);
    assert_eq!(deep.with_mtp_depth(0).to_map().unwrap(), plain.to_map().unwrap());
    let bare = Config { source: None, ..plain }.with_mtp_depth(3);
    assert_eq!(Config::from_json(&bare.to_json().unwrap()).unwrap().mtp_depth, 3);
    assert!(with("llama", json!({"num_nextn_predict_layers": -1})).unwrap_err().to_string().contains("nextn"));
    assert_eq!(with("llama", json!({"num_nextn_predict_layers": 0})).unwrap().mtp_depth, 0);
}

#[test]
fn older_and_newer_rope_are_the_same() {
    let cases = [
        json!({"rope_type": "default"}),
        json!({"rope_type": "linear", "factor": 4.0}),
        json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 512}),
        json!({"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 512}),
        json!({"rope_type": "yarn", "factor": 40.0, "beta_fast": 16, "beta_slow": 2, "mscale": 0.7,
               "mscale_all_dim": 1.0, "truncate": true}),
    ];
    for case in cases {
        let mut newer = case.clone();
        newer["rope_theta"] = json!(5e5);
        let newer = with("llama", json!({"rope_parameters": newer, "rope_theta": null})).unwrap();
        let older = with("llama", json!({"rope_scaling": case, "rope_theta": 5e5})).unwrap();
        assert_eq!(newer, older);
        assert_eq!(newer.rope.base, 5e5);
        let mut oldest = case.clone();
        let kind = oldest.as_object_mut().unwrap().remove("rope_type").unwrap();
        oldest["type"] = kind;
        assert_eq!(with("llama", json!({"rope_scaling": oldest, "rope_theta": 5e5})).unwrap(), newer);
        let bare = Config { source: None, ..newer.clone() };
        assert_eq!(Config::from_json(&bare.to_json().unwrap()).unwrap(), newer);
    }
}

#[test]
fn rope_fields() {
    let rope = |fields: Value| with("llama", json!({"rope_parameters": fields, "max_position_embeddings": 640}));
    let yarn = |config: Config| match config.rope.scaling {
        RopeScaling::Yarn { original, beta_fast, beta_slow, mscale, .. } => (original, beta_fast, beta_slow, mscale),
        other => panic!("{other:?}"),
    };
    assert_eq!(yarn(rope(json!({"rope_type": "yarn", "factor": 2.0})).unwrap()), (640, 32.0, 1.0, None));
    // One of the two alone, or 0, is not given.
    let alone = json!({"rope_type": "yarn", "factor": 2.0, "mscale": 0.5, "mscale_all_dim": 0, "beta_fast": 0});
    assert_eq!(yarn(rope(alone).unwrap()), (640, 32.0, 1.0, None));
    let implied = 0.1 * 4f64.ln() + 1.0;
    assert!(rope(json!({"rope_type": "yarn", "factor": 4.0, "attention_factor": implied})).is_ok());
    let linear = rope(json!({"rope_type": "linear", "factor": 3.0})).unwrap().rope;
    assert_eq!((linear.interpolation, linear.scaling), (Some(3.0), RopeScaling::None));
}

#[test]
fn windows_by_layer() {
    let windows = |family: &str, changes: Value| with(family, changes).unwrap().windows;
    assert_eq!(windows("mistral", json!({})), [None; 3]);
    assert_eq!(windows("mistral", json!({"sliding_window": 5})), [Some(5); 3]);
    for family in ["qwen2", "qwen3"] {
        let unused = json!({"sliding_window": 5, "use_sliding_window": false, "max_window_layers": 0});
        assert_eq!(windows(family, unused), [None; 3]);
        let last = json!({"sliding_window": 5, "use_sliding_window": true, "max_window_layers": 2});
        assert_eq!(windows(family, last.clone()), [None, None, Some(5)]);
        let mut first = last;
        first["layer_types"] = json!(["sliding_attention", "full_attention", "full_attention"]);
        let config = with(family, first).unwrap();
        assert_eq!(config.windows, [Some(5), None, None]);
        let bare = Config { source: None, ..config.clone() };
        assert_eq!(Config::from_json(&bare.to_json().unwrap()).unwrap(), config);
    }
    // A missing field is not null: transformers takes 4096.
    let text = r#"{"model_type": "mistral", "vocab_size": 8, "hidden_size": 8, "intermediate_size": 8,
                   "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}"#;
    assert_eq!(Config::from_json(text).unwrap().windows, [Some(4096)]);
}

#[test]
fn biases_and_defaults() {
    let config = with("llama", json!({"attention_bias": true, "mlp_bias": true})).unwrap();
    assert!(config.mlp_bias && config.attention_bias.output && config.attention_bias.query);
    let config = with("qwen3", json!({"attention_bias": true})).unwrap();
    assert!(config.attention_bias.output && !config.mlp_bias);
    let config = with("llama", json!({"num_key_value_heads": null, "head_dim": null})).unwrap();
    assert_eq!((config.kv_heads, config.head_dim, config.rms_norm_eps), (4, 8, 1e-6));
    assert_eq!(with("qwen3", json!({"head_dim": null})).unwrap().head_dim, 128);
}

#[test]
fn fields_without_effect_are_accepted() {
    let config = with(
        "llama",
        json!({"torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": [1, 2], "attention_dropout": 0,
               "pretraining_tp": 2,
               "partial_rotary_factor": 1.0, "_name_or_path": "x", "hidden_act": "silu", "pruned_heads": {}}),
    );
    assert_eq!(config.unwrap(), with("llama", json!({})).unwrap());
}

#[test]
fn whole_numbers_may_be_written_as_floats() {
    let floats = json!({"hidden_size": 32.0, "num_hidden_layers": 3.0, "vocab_size": 6.4e1, "pad_token_id": 7.0});
    assert_eq!(with("llama", floats).unwrap(), with("llama", json!({"pad_token_id": 7})).unwrap());
}

#[test]
fn a_factor_and_unrounded_ends_of_yarn_are_read_and_written() {
    let fields = json!({"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.5, "truncate": false, "beta_fast": 2,
        "beta_slow": 2, "original_max_position_embeddings": 512});
    let config = with("llama", json!({ "rope_parameters": fields })).unwrap();
    let expected = RopeScaling::Yarn {
        factor: 4.0,
        original: 512,
        beta_fast: 2.0,
        beta_slow: 2.0,
        mscale: None,
        mscale_all_dim: None,
        attention_factor: Some(1.5),
        truncate: false,
    };
    assert_eq!(config.rope.scaling, expected);
    let bare = Config { source: None, ..config.clone() };
    assert_eq!(Config::from_json(&bare.to_json().unwrap()).unwrap(), config);
    // What is read can be used: the ramp's ends have one rule.
    assert!(crate::rope::Rope::new(config.rope).is_ok());
    let share = json!({"rope_type": "yarn", "factor": null, "original_max_position_embeddings": 512});
    let config = with("llama", json!({"rope_parameters": share, "max_position_embeddings": 2048})).unwrap();
    assert!(matches!(config.rope.scaling, RopeScaling::Yarn { factor: 4.0, original: 512, .. }));
}

#[test]
fn a_fresh_configuration_has_no_special_tokens_and_another_keeps_its_own() {
    let fresh = Config::preset("tiny").unwrap().to_map().unwrap();
    for key in ["bos_token_id", "eos_token_id"] {
        assert_eq!(fresh.get(key), Some(&Value::Null), "{key}: a missing field is 1 or 2 in transformers");
    }
    let mut config = with("llama", json!({"bos_token_id": 7, "eos_token_id": [8, 9]})).unwrap();
    config.vocab_size = 65;
    let map = config.to_map().unwrap();
    assert_eq!((&map["bos_token_id"], &map["eos_token_id"]), (&json!(7), &json!([8, 9])));
}

#[test]
fn presets_and_files() {
    let tiny = Config::preset("tiny").unwrap();
    assert_eq!((tiny.vocab_size, tiny.head_dim, tiny.windows.len()), (256, 32, 4));
    assert!(Config::preset("huge").unwrap_err().to_string().contains("tiny"));
    let missing = Config::read(std::path::Path::new("/nowhere")).unwrap_err().to_string();
    assert!(missing.contains("/nowhere/config.json"), "{missing}");
    assert!(Config::from_json("{").unwrap_err().to_string().contains("not valid JSON"));
    assert!(Config::from_json("[]").unwrap_err().to_string().contains("object"));
}

#[test]
fn a_changed_configuration_is_written_as_it_is_now() {
    let mut config = with("qwen3", json!({})).unwrap();
    config.layers = 2;
    config.windows = vec![None; 2];
    assert_eq!(Config::from_json(&config.to_json().unwrap()).unwrap(), config);
    config.qk_norm = false;
    assert!(config.to_json().unwrap_err().to_string().contains("qwen3"));
}

#[test]
fn the_padding_token_is_read_and_written() {
    let sizes = Sizes { vocab_size: 8, hidden_size: 8, intermediate_size: 8, layers: 1, heads: 1, kv_heads: 1 };
    let mut config = Config::llama(sizes).unwrap();
    assert_eq!((config.pad_token_id, config.to_map().unwrap().get("pad_token_id")), (None, None));
    config.pad_token_id = Some(7);
    let mut map = config.to_map().unwrap();
    assert_eq!(map["pad_token_id"], json!(7));
    assert_eq!(Config::from_map(map.clone()).unwrap(), config);
    // From the end, as PyTorch counts; and the file's own spelling stays.
    map.insert("pad_token_id".into(), json!(-1));
    let last = Config::from_map(map.clone()).unwrap();
    assert_eq!((last.pad_token_id, &last.to_map().unwrap()["pad_token_id"]), (Some(7), &json!(-1)));
    map.insert("pad_token_id".into(), Value::Null);
    assert_eq!(Config::from_map(map.clone()).unwrap().pad_token_id, None);
    for wrong in [json!(8), json!(-9), json!(1.5), json!("7")] {
        map.insert("pad_token_id".into(), wrong.clone());
        let message = Config::from_map(map.clone()).unwrap_err().to_string();
        let parts = ["\"pad_token_id\"".to_string(), wrong.to_string(), "from 0 to 7".to_string()];
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    }
    config.pad_token_id = Some(8);
    assert!(config.check().is_err());
}
