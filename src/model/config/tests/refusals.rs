//! Configurations that are refused, and fields that are ignored on demand.

use super::super::*;
use super::with;
use crate::error::Error;

#[test]
fn refusals_name_field_value_and_what_is_allowed() {
    let rope = |fields: Value| json!({ "rope_parameters": fields });
    let cases = [
        (
            "llama",
            json!({"model_type": "gpt2"}),
            vec!["\"model_type\"", "\"gpt2\"", "\"llama\"", "\"qwen3\"", "\"mistral\""],
        ),
        ("llama", json!({"hidden_act": "gelu"}), vec!["\"hidden_act\"", "\"gelu\"", "\"silu\""]),
        ("llama", json!({"attention_dropout": 0.1}), vec!["\"attention_dropout\"", "0.1", "only 0"]),
        ("qwen2", json!({"attention_dropout": 0.1}), vec!["\"attention_dropout\""]),
        ("llama", json!({"partial_rotary_factor": 0.5}), vec!["\"partial_rotary_factor\"", "0.5", "only 1"]),
        ("llama", rope(json!({"partial_rotary_factor": 0.5})), vec!["rope_parameters.partial_rotary_factor", "0.5"]),
        ("llama", json!({"num_key_value_heads": 3}), vec!["\"num_key_value_heads\"", "3", "divide", "4"]),
        ("qwen2", json!({"num_key_value_heads": null}), vec!["\"num_key_value_heads\"", "missing"]),
        ("llama", json!({"num_attention_heads": 0}), vec!["\"num_attention_heads\"", "0"]),
        ("llama", json!({"head_dim": 7}), vec!["\"head_dim\"", "7", "even"]),
        ("llama", json!({"head_dim": null, "hidden_size": 30}), vec!["\"num_attention_heads\"", "30"]),
        ("llama", json!({"vocab_size": null}), vec!["\"vocab_size\"", "missing"]),
        ("llama", json!({"vocab_size": "big"}), vec!["\"vocab_size\"", "\"big\"", "whole number"]),
        ("llama", json!({"hidden_size": -32}), vec!["\"hidden_size\"", "-32"]),
        ("llama", json!({"tie_word_embeddings": 1}), vec!["\"tie_word_embeddings\"", "true or false"]),
        (
            "llama",
            json!({"final_logit_softcapping": 30.0}),
            vec!["\"final_logit_softcapping\"", "30.0", "not supported"],
        ),
        ("llama", json!({"query_pre_attn_scalar": 8}), vec!["\"query_pre_attn_scalar\""]),
        ("llama", json!({"attention_multiplier": 0.5}), vec!["\"attention_multiplier\""]),
        ("llama", json!({"logits_scaling": 8.0}), vec!["\"logits_scaling\"", "only 1"]),
        ("llama", json!({"quantization_config": {"bits": 4}}), vec!["\"quantization_config\""]),
        ("llama", json!({"sliding_window": 4}), vec!["\"sliding_window\"", "4", "null"]),
        ("llama", json!({"layer_types": ["full_attention"]}), vec!["\"layer_types\"", "3"]),
        (
            "llama",
            json!({"layer_types": ["full_attention", "full_attention", "chunked_attention"]}),
            vec!["\"layer_types\""],
        ),
        ("mistral", json!({"sliding_window": 0}), vec!["\"sliding_window\"", "0"]),
        ("mistral", json!({"sliding_window": 4, "use_sliding_window": false}), vec!["\"use_sliding_window\""]),
        ("mistral", json!({"attention_bias": true}), vec!["\"attention_bias\"", "mistral"]),
        ("qwen2", json!({"attention_bias": false}), vec!["\"attention_bias\""]),
        ("qwen2", json!({"mlp_bias": true}), vec!["\"mlp_bias\"", "qwen2"]),
        (
            "qwen2",
            json!({"layer_types": ["sliding_attention", "full_attention", "full_attention"], "sliding_window": 4}),
            vec!["\"layer_types\"", "use_sliding_window"],
        ),
        (
            "llama",
            rope(json!({"rope_type": "longrope"})),
            vec!["rope_parameters.rope_type", "\"longrope\"", "\"yarn\""],
        ),
        (
            "llama",
            json!({"rope_scaling": {"type": "dynamic", "factor": 2.0}}),
            vec!["rope_scaling.type", "\"dynamic\""],
        ),
        ("llama", rope(json!({"factor": 2.0})), vec!["rope_parameters.factor", "\"default\""]),
        ("llama", rope(json!({"rope_type": "linear"})), vec!["rope_parameters.factor", "missing"]),
        (
            "llama",
            rope(json!({"rope_type": "linear", "factor": 1e-300})),
            vec!["rope_parameters.factor", "1e-300", "above 0"],
        ),
        ("llama", rope(json!({"rope_theta": 5e5})), vec!["\"rope_theta\"", "10000", "500000"]),
        (
            "llama",
            rope(json!({"rope_type": "yarn", "factor": 2, "truncate": 0})),
            vec!["rope_parameters.truncate", "true or false"],
        ),
        (
            "llama",
            rope(json!({"rope_type": "yarn", "factor": 2, "attention_factor": 0})),
            vec!["rope_parameters.attention_factor", "above 0"],
        ),
        (
            "llama",
            rope(json!({"rope_type": "yarn", "factor": 2, "attention_factor": 1e39})),
            vec!["\"rope_parameters.attention_factor\" is 1e+39", "an f32 holds"],
        ),
        (
            "llama",
            json!({"rope_scaling": {"type": "yarn", "factor": 2, "mscale": 1e300, "mscale_all_dim": 1}}),
            vec!["\"rope_scaling.mscale\" is 1e+300", "times as large"],
        ),
        (
            "llama",
            rope(json!({"rope_type": "yarn", "factor": 2, "beta_fast": 1, "beta_slow": 2})),
            vec!["\"rope_parameters.beta_fast\" is 1", "at least beta_slow, 2"],
        ),
        (
            "llama",
            json!({"rope_scaling": {"type": "yarn", "factor": 0.5}}),
            vec!["\"rope_scaling.factor\" is 0.5", "at least 1"],
        ),
        ("llama", json!({"num_hidden_layers": 2_000_000_000}), vec!["\"num_hidden_layers\" is 2000000000", "10000"]),
        ("llama", json!({"num_nextn_predict_layers": 2_000_000_000}), vec!["\"num_nextn_predict_layers\"", "10000"]),
        (
            "llama",
            json!({"num_attention_heads": 2_000_000_000, "num_key_value_heads": 1, "head_dim": 2_000_000_000}),
            vec!["\"num_attention_heads\" 2000000000", "\"head_dim\" 2000000000", "too large"],
        ),
        ("llama", json!({"hidden_size": 32.5}), vec!["\"hidden_size\" is 32.5", "whole number"]),
        ("llama", json!({"hidden_size": -32.0}), vec!["\"hidden_size\" is -32.0", "whole number"]),
        (
            "llama",
            rope(json!({"rope_type": "llama3", "factor": 2, "low_freq_factor": 4, "high_freq_factor": 4})),
            vec!["high_freq_factor", "above"],
        ),
        (
            "llama",
            json!({"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_type": "default"}}),
            vec!["\"rope_scaling\"", "keep one"],
        ),
    ];
    for (family, changes, words) in cases {
        let error = match with(family, changes.clone()) {
            Err(error @ Error::Model(ModelError::Config(_))) => error,
            other => panic!("{family} with {changes} gave {other:?}"),
        };
        let message = error.to_string();
        assert!(words.iter().all(|word| message.contains(word)), "{message}\ndoes not hold all of {words:?}");
        assert!(error.is_input());
    }
}

#[test]
fn fields_are_ignored_on_demand_only() {
    let map = |changes: Value| {
        with("llama", json!({})).map(|config| config.to_map().unwrap()).map(|mut map| {
            map.extend(changes.as_object().unwrap().clone());
            map
        })
    };
    let read = |changes: Value, ignore: &[&str]| {
        let ignore = ignore.iter().map(|name| name.to_string()).collect();
        Config::from_map_with(map(changes).unwrap(), &ParseOptions { ignore })
    };
    let scaled = json!({"logits_scaling": 8.0});
    assert!(read(scaled.clone(), &[]).unwrap_err().to_string().contains("--ignore-config-field logits_scaling"));
    let config = read(scaled, &["logits_scaling"]).unwrap();
    assert_eq!(config, with("llama", json!({})).unwrap());
    assert!(config.notes().len() == 1 && config.notes()[0].contains("\"logits_scaling\" is 8.0"));
    assert!(!config.to_map().unwrap().contains_key("logits_scaling"));
    let nested = json!({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "secret": 1}});
    assert!(read(nested.clone(), &[]).unwrap_err().to_string().contains("--ignore-config-field rope_scaling.secret"));
    assert_eq!(read(nested.clone(), &["rope_scaling.secret"]).unwrap().rope.interpolation, Some(2.0));
    assert_eq!(read(nested, &["rope_scaling"]).unwrap().rope.interpolation, None);
    // Asked for twice is asked for.
    assert_eq!(read(json!({"logits_scaling": 8.0}), &["logits_scaling"; 2]).unwrap().notes().len(), 1);
    let activation = read(json!({"hidden_act": "gelu"}), &[]).unwrap_err().to_string();
    assert!(activation.contains("silu") && !activation.contains("--ignore-config-field"), "{activation}");
    for key in ["quantization_config", "compression_config"] {
        let quantised = json!({ key: {"bits": 4} });
        let message = read(quantised.clone(), &[]).unwrap_err().to_string();
        assert!(message.contains("dequantise") && !message.contains("--ignore-config-field"), "{message}");
        let message = read(quantised, &[key]).unwrap_err().to_string();
        assert!(message.contains("cannot ignore") && message.contains("dequantise"), "{message}");
    }
    let yarn = json!({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "attention_factor": 1.5, "beta_fast": 16,
        "truncate": false, "finetuned": true}, "hidden_act": "silu"});
    for key in [
        "rope_scaling.factor",
        "rope_scaling.attention_factor",
        "rope_scaling.beta_fast",
        "rope_scaling.truncate",
        "rope_scaling.rope_type",
        "hidden_act",
    ] {
        let message = read(yarn.clone(), &[key]).unwrap_err().to_string();
        assert!(message.contains(key) && message.contains("honoured"), "{message}");
    }
    assert!(read(yarn, &["rope_scaling.finetuned"]).is_ok());
    // A field that the type does not have is not honoured.
    assert!(
        read(json!({"rope_parameters": {"rope_type": "default", "factor": 2.0}}), &["rope_parameters.factor"]).is_ok()
    );
    // What has no effect is not worth a word.
    assert!(read(json!({"auto_map": {}}), &["auto_map"]).unwrap().notes().is_empty());
    for (name, word) in [("hidden_size", "honoured"), ("rope_parameters", "honoured"), ("hiden_size", "no such field")]
    {
        let message = read(json!({}), &[name]).unwrap_err().to_string();
        assert!(message.contains(name) && message.contains(word), "{message}");
    }
}

#[test]
fn sizes_are_refused_before_they_are_taken() {
    let sizes = Sizes { vocab_size: 8, hidden_size: 8, intermediate_size: 8, layers: 3, heads: 2, kv_heads: 1 };
    let message = Config::llama(Sizes { layers: 2_000_000_000, ..sizes }).unwrap_err().to_string();
    assert!(message.contains("num_hidden_layers") && message.contains("2000000000"), "{message}");
    let large = Sizes { vocab_size: 1 << 30, hidden_size: 1 << 30, ..sizes };
    assert!(Config::llama(large).unwrap_err().to_string().contains("too large"));
    assert!(Config::llama(sizes).unwrap().with_mtp_depth(2_000_000_000).check().is_err());
}

#[test]
fn a_rotary_base_that_cannot_be_names_its_field() {
    let mut map = Config::preset("tiny").unwrap().to_map().unwrap();
    map.remove("rope_parameters");
    map.insert("rope_theta".into(), json!(0.5));
    let message = Config::from_map(map.clone()).unwrap_err().to_string();
    assert!(message.contains("\"rope_theta\" is 0.5: must be a number above 1"), "{message}");
    map.remove("rope_theta");
    map.insert("rope_parameters".into(), json!({ "rope_type": "default", "rope_theta": 1.0 }));
    let message = Config::from_map(map).unwrap_err().to_string();
    assert!(message.contains("\"rope_parameters.rope_theta\" is 1.0"), "{message}");
}
