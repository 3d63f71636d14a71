//! `config.json` files of published models, their sizes scaled down and every other field as it is: each is accepted
//! with the settings beside it, or refused with the words beside it.

use std::collections::BTreeSet;
use std::path::Path;

use context_parallel::model::config::{AttentionBias, ParseOptions};
use context_parallel::model::{Config, Family};
use context_parallel::rope::{Rope, RopeScaling};
use serde_json::{Map, Value};

/// By name of the file; what is not like in most models comes last.
const ACCEPTED: &[(&str, &str)] = &[
    ("llama-2-7b", "llama 2 x 64/172, heads 4/4 of 16, vocab 32000, eps 1e-5, context 4096, base 10000"),
    ("llama-2-70b-old", "llama 2 x 128/448, heads 8/1 of 16, vocab 32000, eps 1e-5, context 4096, base 10000, pad 0"),
    ("vicuna-7b-v1.5", "llama 2 x 64/172, heads 4/4 of 16, vocab 32000, eps 1e-5, context 4096, base 10000, pad 0"),
    (
        "longchat-7b-16k",
        "llama 2 x 64/172, heads 4/4 of 16, vocab 32000, eps 1e-5, context 4096, base 10000, pad 0, positions / 4",
    ),
    ("code-llama-7b", "llama 2 x 64/172, heads 4/4 of 16, vocab 32016, eps 1e-5, context 16384, base 1000000"),
    ("llama-3-8b", "llama 2 x 128/448, heads 8/2 of 16, vocab 128256, eps 1e-5, context 8192, base 500000"),
    (
        "llama-3.1-8b-instruct",
        "llama 2 x 128/448, heads 8/2 of 16, vocab 128256, eps 1e-5, context 131072, base 500000, llama3 8 1 4 8192",
    ),
    (
        "llama-3.2-1b",
        "llama 2 x 128/512, heads 8/2 of 16, vocab 128256, eps 1e-5, context 131072, base 500000, tied, llama3 32 1 4 8192",
    ),
    (
        "llama-3.2-1b-transformers-5",
        "llama 2 x 128/512, heads 8/2 of 16, vocab 128256, eps 1e-5, context 131072, base 500000, tied, llama3 32 1 4 8192",
    ),
    (
        "llama-3.2-1b-onnx",
        "llama 2 x 128/512, heads 8/2 of 16, vocab 128256, eps 1e-5, context 131072, base 500000, tied, llama3 32 1 4 8192",
    ),
    (
        "llama-3.2-3b-unsloth",
        "llama 2 x 96/256, heads 3/1 of 32, vocab 128256, eps 1e-5, context 131072, base 500000, tied, pad 128004, \
         llama3 32 1 4 8192",
    ),
    (
        "deepseek-r1-distill-llama-8b",
        "llama 2 x 128/448, heads 8/2 of 16, vocab 128256, eps 1e-5, context 131072, base 500000, llama3 8 1 4 8192",
    ),
    (
        "deepseek-coder-6.7b",
        "llama 2 x 64/172, heads 4/4 of 16, vocab 32256, eps 1e-6, context 16384, base 100000, positions / 4",
    ),
    ("tinyllama-1.1b", "llama 2 x 128/352, heads 8/1 of 16, vocab 32000, eps 1e-5, context 2048, base 10000"),
    ("smollm-135m", "llama 3 x 72/192, heads 9/3 of 8, vocab 49152, eps 1e-5, context 2048, base 10000, tied"),
    ("smollm2-135m", "llama 3 x 72/192, heads 9/3 of 8, vocab 49152, eps 1e-5, context 8192, base 100000, tied"),
    (
        "smollm2-1.7b-instruct",
        "llama 2 x 128/512, heads 8/8 of 16, vocab 49152, eps 1e-5, context 8192, base 130000, tied, pad 2",
    ),
    ("smolvlm2-text", "llama 2 x 120/320, heads 15/5 of 8, vocab 49280, eps 1e-5, context 8192, base 100000, pad 2"),
    ("yi-1.5-9b", "llama 3 x 128/344, heads 8/1 of 16, vocab 64000, eps 1e-6, context 4096, base 5000000, pad 0"),
    (
        "yarn-llama-2-7b-64k",
        "llama 2 x 64/172, heads 4/4 of 16, vocab 32000, eps 1e-5, context 65536, base 10000, pad 0, yarn 16 4096 32 1",
    ),
    (
        "phi-4-llama",
        "llama 2 x 160/560, heads 10/5 of 16, vocab 100352, eps 1e-5, context 16384, base 250000, pad 100351",
    ),
    ("falcon3-1b", "llama 2 x 64/256, heads 2/1 of 64, vocab 131072, eps 1e-6, context 4096, base 1000042, pad 2023"),
    ("llama-classifier", "llama 2 x 64/176, heads 4/2 of 16, vocab 32000, eps 1e-5, context 8192, base 10000"),
    ("pruned-llama-head-dim", "llama 2 x 90/200, heads 8/2 of 16, vocab 32000, eps 1e-5, context 8192, base 500000"),
    (
        "mistral-7b-v0.1",
        "mistral 2 x 128/448, heads 8/2 of 16, vocab 32000, eps 1e-5, context 32768, base 10000, windows 4096 4096",
    ),
    (
        "mistral-7b-instruct-v0.2",
        "mistral 2 x 128/448, heads 8/2 of 16, vocab 32000, eps 1e-5, context 32768, base 1000000",
    ),
    ("mistral-7b-v0.3", "mistral 2 x 128/448, heads 8/2 of 16, vocab 32768, eps 1e-5, context 32768, base 1000000"),
    (
        "zephyr-7b-beta",
        "mistral 2 x 128/448, heads 8/2 of 16, vocab 32000, eps 1e-5, context 32768, base 10000, pad 2, windows 4096 4096",
    ),
    ("mistral-nemo", "mistral 2 x 160/448, heads 8/2 of 16, vocab 131072, eps 1e-5, context 128000, base 1000000"),
    (
        "mistral-small-24b",
        "mistral 2 x 160/448, heads 8/2 of 16, vocab 131072, eps 1e-5, context 32768, base 100000000",
    ),
    (
        "ministral-8b-2410",
        "mistral 2 x 128/448, heads 8/2 of 16, vocab 131072, eps 1e-5, context 32768, base 100000000, windows 32768 32768",
    ),
    (
        "qwen1.5-7b",
        "qwen2 4 x 112/608, heads 7/7 of 16, vocab 151936, eps 1e-6, context 32768, base 1000000, query/key/value bias",
    ),
    (
        "qwen2-7b",
        "qwen2 4 x 112/608, heads 7/1 of 16, vocab 152064, eps 1e-6, context 32768, base 1000000, query/key/value bias",
    ),
    (
        "qwen2.5-0.5b",
        "qwen2 4 x 112/608, heads 7/1 of 16, vocab 151936, eps 1e-6, context 32768, base 1000000, tied, \
         query/key/value bias",
    ),
    (
        "qwen2.5-coder-7b-yarn",
        "qwen2 4 x 112/608, heads 7/1 of 16, vocab 152064, eps 1e-6, context 32768, base 1000000, query/key/value bias, \
         yarn 4 32768 32 1",
    ),
    (
        "qwen2-sliding",
        "qwen2 4 x 112/608, heads 7/1 of 16, vocab 152064, eps 1e-6, context 131072, base 1000000, query/key/value bias, \
         windows - - - 4096",
    ),
    (
        "qwen3-0.6b",
        "qwen3 3 x 64/192, heads 2/1 of 128, vocab 151936, eps 1e-6, context 40960, base 1000000, tied, head norms",
    ),
    (
        "qwen3-0.6b-transformers-5",
        "qwen3 3 x 64/192, heads 2/1 of 128, vocab 151936, eps 1e-6, context 40960, base 1000000, tied, head norms",
    ),
    (
        "qwen3-4b-2507",
        "qwen3 3 x 64/192, heads 2/1 of 128, vocab 151936, eps 1e-6, context 262144, base 5000000, tied, head norms",
    ),
    (
        "qwen3-8b-yarn",
        "qwen3 3 x 64/192, heads 2/1 of 128, vocab 151936, eps 1e-6, context 131072, base 1000000, head norms, \
         yarn 4 32768 32 1, attention factor 1, ends not rounded",
    ),
    (
        "qwen3-mtp",
        "qwen3 3 x 64/192, heads 2/1 of 128, vocab 151936, eps 1e-6, context 40960, base 1000000, tied, head norms, \
         1 token further",
    ),
];

const FAMILIES: &str = "supported are \"llama\", \"mistral\", \"qwen2\", \"qwen3\"";

/// By name of the file, the words of the refusal.
const REFUSED: &[(&str, &[&str])] = &[
    (
        "internlm2-20b-llama",
        &["\"rope_scaling.type\" is \"dynamic\"", "\"yarn\"", "--ignore-config-field rope_scaling"],
    ),
    ("pruned-llama", &["\"num_attention_heads\" is 8", "must divide hidden_size, 90", "add head_dim"]),
    ("llama-3.1-8b-awq", &["\"quantization_config\"", "quantised weights are not supported", "dequantise"]),
    ("llama-2-7b-gptq", &["\"quantization_config\"", "quantised weights are not supported", "dequantise"]),
    ("llama-fp8-compressed", &["\"compression_config\"", "quantised weights are not supported", "dequantise"]),
    ("qwen2.5-7b-1m", &["\"dual_chunk_attention_config\"", "--ignore-config-field dual_chunk_attention_config"]),
    (
        "granite-as-llama",
        &["\"embedding_multiplier\" is 12.0", "only 1.0", "--ignore-config-field embedding_multiplier"],
    ),
    ("ministral-8b-transformers-4.57", &["\"model_type\" is \"ministral\"", FAMILIES]),
    ("mixtral-8x7b", &["\"model_type\" is \"mixtral\"", FAMILIES]),
    ("olmo-2-7b", &["\"model_type\" is \"olmo2\"", FAMILIES]),
    ("gemma-2-2b", &["\"model_type\" is \"gemma2\"", FAMILIES]),
    ("granite-3.1-2b", &["\"model_type\" is \"granite\"", FAMILIES]),
    ("smollm3-3b", &["\"model_type\" is \"smollm3\"", FAMILIES]),
    ("phi-3-mini", &["\"model_type\" is \"phi3\"", FAMILIES]),
    ("mobilellm-125m", &["\"model_type\" is \"mobilellm\"", FAMILIES]),
];

/// Refused files that are read without a field, and the settings without it.
const IGNORED: &[(&str, &[&str], &str)] = &[
    (
        "internlm2-20b-llama",
        &["rope_scaling"],
        "llama 3 x 96/256, heads 6/1 of 16, vocab 92544, eps 1e-5, context 32768, base 1000000, pad 2",
    ),
    (
        "qwen2.5-7b-1m",
        &["dual_chunk_attention_config"],
        "qwen2 4 x 112/608, heads 7/1 of 16, vocab 152064, eps 1e-6, context 1010000, base 10000000, query/key/value bias",
    ),
    (
        "granite-as-llama",
        &["attention_multiplier", "embedding_multiplier", "logits_scaling", "residual_multiplier"],
        "llama 2 x 128/512, heads 8/2 of 16, vocab 49152, eps 1e-5, context 4096, base 10000, tied",
    ),
];

fn read(name: &str) -> Map<String, Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/configs/{name}.json"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap()
}

/// What was understood, in one line.
fn settings(config: &Config) -> String {
    let Config { family, layers, hidden_size, intermediate_size, heads, kv_heads, head_dim, vocab_size, .. } = config;
    let (eps, context, base) = (config.rms_norm_eps, config.max_position_embeddings, config.rope.base);
    let mut parts = vec![format!(
        "{} {layers} x {hidden_size}/{intermediate_size}, heads {heads}/{kv_heads} of {head_dim}, vocab {vocab_size}, eps \
         {eps:e}, context {context}, base {base}",
        family.name()
    )];
    if config.tie_word_embeddings {
        parts.push("tied".into());
    }
    let inputs = AttentionBias { query: true, key: true, value: true, output: false };
    match config.attention_bias {
        bias if bias == inputs => parts.push("query/key/value bias".into()),
        bias => assert_eq!(bias, AttentionBias::default()),
    }
    assert!(!config.mlp_bias);
    if config.qk_norm {
        parts.push("head norms".into());
    }
    parts.extend(config.pad_token_id.map(|id| format!("pad {id}")));
    if config.windows.iter().any(Option::is_some) {
        let width = |window: &Option<usize>| window.map_or("-".to_string(), |width| width.to_string());
        parts.push(format!("windows {}", config.windows.iter().map(width).collect::<Vec<_>>().join(" ")));
    }
    parts.extend(config.rope.interpolation.map(|factor| format!("positions / {factor}")));
    match &config.rope.scaling {
        RopeScaling::None => {}
        RopeScaling::Llama3 { factor, low, high, original } => {
            parts.push(format!("llama3 {factor} {low} {high} {original}"));
        }
        RopeScaling::Yarn { factor, original, beta_fast, beta_slow, mscale, attention_factor, truncate, .. } => {
            parts.push(format!("yarn {factor} {original} {beta_fast} {beta_slow}"));
            assert_eq!(*mscale, None);
            parts.extend(attention_factor.map(|factor| format!("attention factor {factor}")));
            if !truncate {
                parts.push("ends not rounded".into());
            }
        }
    }
    match config.mtp_depth {
        0 => {}
        1 => parts.push("1 token further".into()),
        depth => parts.push(format!("{depth} tokens further")),
    }
    parts.join(", ")
}

#[test]
fn published_configurations_are_read_as_they_are_meant() {
    for (name, expected) in ACCEPTED {
        let config = Config::from_map(read(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(settings(&config), *expected, "{name}");
        assert!(config.notes().is_empty(), "{name}");
        // What was accepted can be used, and is written as it was.
        Rope::new(config.rope.clone()).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(config.to_map().unwrap(), read(name), "{name}");
        // After a change of what the file says, it is written anew and means the same but for it.
        let mut changed = config.clone();
        changed.vocab_size += 1;
        let again = Config::from_map(changed.to_map().unwrap()).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(again, changed, "{name}");
        assert_eq!(changed.to_map().unwrap().get("eos_token_id"), read(name).get("eos_token_id"), "{name}");
    }
}

#[test]
fn published_configurations_that_are_not_supported_say_why() {
    for (name, words) in REFUSED {
        let error = Config::from_map(read(name)).expect_err(name);
        let message = error.to_string();
        assert!(error.is_input() && words.iter().all(|word| message.contains(word)), "{name}: {message}");
    }
    for (name, ignore, expected) in IGNORED {
        let ignore: Vec<String> = ignore.iter().map(|field| field.to_string()).collect();
        let config = Config::from_map_with(read(name), &ParseOptions { ignore: ignore.clone() });
        let config = config.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(settings(&config), *expected, "{name}");
        assert_eq!(config.notes().len(), ignore.len());
        for (note, field) in config.notes().iter().zip(&ignore) {
            assert!(note.contains(field) && note.contains("ignored"), "{note}");
            assert!(!config.to_map().unwrap().contains_key(field), "{field} is written again");
        }
    }
}

#[test]
fn every_configuration_has_an_expectation() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/configs");
    let name = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    let files: BTreeSet<String> = std::fs::read_dir(folder).unwrap().map(name).collect();
    let names = ACCEPTED.iter().map(|(name, _)| name).chain(REFUSED.iter().map(|(name, _)| name));
    assert_eq!(files, names.map(|name| format!("{name}.json")).collect());
    for family in Family::ALL {
        assert!(ACCEPTED.iter().any(|(_, expected)| expected.starts_with(family.name())), "{}", family.name());
    }
}
