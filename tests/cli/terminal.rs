//! What a person sees: help, names, tables that fit, quiet, and what is said during a long wait.

use super::*;

/// Runs with so many columns, and so much patience before a phase is named; checks the exit code.
fn shown(folder: &Path, arguments: &str, variables: &[(&str, &str)]) -> [String; 2] {
    let mut program = Command::new(env!("CARGO_BIN_EXE_context-parallel"));
    let output = program
        .args(arguments.split_whitespace())
        .envs(variables.iter().copied())
        .current_dir(folder)
        .output()
        .unwrap();
    let [out, err] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    assert_eq!(output.status.code(), Some(0), "{arguments}: {err}");
    [out, err]
}

fn widest(text: &str) -> usize {
    text.lines().map(|line| line.chars().count()).max().unwrap_or(0)
}

const HELP: [&str; 8] = [
    "--help",
    "demo --help",
    "train --help",
    "eval --help",
    "verify --help",
    "inspect --help",
    "bench attention --help",
    "completions --help",
];

#[test]
fn help_fits_the_terminal() {
    let folder = tempfile::tempdir().unwrap();
    for command in HELP {
        for columns in ["60", "80", "120"] {
            let [help, _] = shown(folder.path(), command, &[("COLUMNS", columns)]);
            let widest = widest(&help);
            assert!(widest <= columns.parse().unwrap(), "{command} is {widest} wide at {columns}:\n{help}");
        }
        assert!(widest(&shown(folder.path(), command, &[("COLUMNS", "500")])[0]) <= 120, "nobody reads such lines");
    }
}

#[test]
fn help_lists_names_under_headings() {
    let folder = tempfile::tempdir().unwrap();
    let [help, _] = shown(folder.path(), "train --help", &[("COLUMNS", "120")]);
    let words = help.split_whitespace().collect::<Vec<_>>().join(" ");
    for part in [
        "Model and data:",
        "Parallelism:",
        "Machine:",
        "Training:",
        "Output:",
        "-o, --out <DIR>",
        "-q, --quiet",
        "2e-5 for --model",
        "[possible values: zigzag, striped, contiguous,",
        "[possible values: f32, bf16]",
        "[possible values: tiny, 125m, 1b]",
    ] {
        assert!(words.replace("natural, ", "").contains(part), "\"{part}\" is not in\n{help}");
    }
    let [help, _] = shown(folder.path(), "eval --help", &[("COLUMNS", "120")]);
    let words_of_eval = help.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words_of_eval.contains("[possible values: f32, bf16, f16, f64]"), "{help}");
    let strategies = format!("[possible values: {}]", select::strategies().join(", "));
    assert!(words.contains(&strategies), "\"{strategies}\" is not in\n{help}");
}

#[test]
fn shells_complete_commands_options_and_names() {
    let folder = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let [script, _] = shown(folder.path(), &format!("completions {shell}"), &[]);
        let names: &[&str] = match shell {
            // These two complete options only.
            "elvish" | "powershell" => &["inspect", "document-separator"],
            _ => &["inspect", "document-separator", "zigzag", "all-gather", "causal"],
        };
        for name in names {
            assert!(script.contains(name), "{name} is not in the script for {shell}");
        }
    }
    refused("completions tcsh", &["'tcsh'", "bash"]);
}

#[test]
fn bash_completes_options_and_names() {
    let folder = tempfile::tempdir().unwrap();
    let [script, _] = shown(folder.path(), "completions bash", &[]);
    for (words, expected) in [
        ("tr", "train"),
        ("train --log", "--log-every"),
        ("train --strategy ri", "ring ring-ulysses"),
        ("bench attention --dtype b", "bf16"),
        ("inspect --mask f", "full"),
    ] {
        let line = format!("context-parallel {words}");
        let words: Vec<&str> = line.split(' ').collect();
        let [.., previous, word] = words[..] else { unreachable!() };
        // As bash calls the function: what is typed, the word to complete and the one before it.
        let script = format!(
            "{script}\nCOMP_WORDS=({})\nCOMP_CWORD={}\n_context__parallel context-parallel {word} {previous}\n\
             echo \"${{COMPREPLY[*]}}\"",
            words.join(" "),
            words.len() - 1,
        );
        let output = Command::new("bash").args(["-c", &script]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), expected, "{words:?}");
    }
}

#[test]
fn names_of_other_systems_are_known() {
    let folder = tempfile::tempdir().unwrap();
    for strategy in select::strategies() {
        for alias in select::aliases(strategy) {
            let report = json(folder.path(), &format!("inspect --lengths 16 --strategy {alias} --json"));
            assert_eq!(report["strategy"], strategy, "{alias}");
        }
    }
}

#[test]
fn tables_fit_the_terminal() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in [
        "inspect --cp 4 --lengths 9000,700,500,20",
        "inspect --cp 4 --lengths 9000,700,500,20 --strategy magi --stages 2",
        "inspect --strategy dynamic --cp 8 --lengths 6000,3000,1500,700,300,100,0 --tokens-per-rank 1024",
        "bench attention --seq 16 --runs 1",
        "verify --cp 1 --threads 1",
    ] {
        for columns in [60, 80, 120] {
            let [text, _] = shown(folder.path(), arguments, &[("COLUMNS", &columns.to_string())]);
            assert!(widest(&text) <= columns, "{arguments} is {} wide at {columns}:\n{text}", widest(&text));
            assert!(text.contains('│'), "{text}");
        }
        // Where results go into a file, a row stays a line.
        let whole = shown(folder.path(), arguments, &[])[0].clone();
        assert!(!whole.contains("├╌"), "{whole}");
    }
}

#[test]
fn lines_of_progress_do_not_wrap() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("text"), "In the beginning was the word. ".repeat(100)).unwrap();
    let train = "train --data text --seq-len 16 --batch 1 --threads 1 --steps 3 --mtp-depth 1 --validation 0.1";
    for columns in [60, 80] {
        let [text, _] = shown(folder.path(), train, &[("COLUMNS", &columns.to_string())]);
        let steps: Vec<&str> = text.lines().filter(|line| line.starts_with("step ")).collect();
        assert!(steps.len() == 3 && steps.iter().all(|line| line.contains("loss ")), "{text}");
        assert!(widest(&text) <= columns && steps[2].contains("held out "), "{columns}:\n{text}");
    }
}

#[test]
fn quiet_leaves_results_only() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let variables = [("CONTEXT_PARALLEL_PATIENCE_MS", "0")];
    let train = "train --data recall --seq-len 16 --batch 1 --threads 1 --steps 3 --cp 2";
    let [out, err] = shown(path, &format!("{train} -q -o run"), &variables);
    assert!(err.is_empty() && out.starts_with("done after 3 steps"), "{out}{err}");
    let [out, err] = shown(path, &format!("--quiet {train} --json"), &variables);
    // The one thing that must be known before it is too late.
    let lost = "the model will not be kept when the run ends: --out DIR keeps it\n";
    assert!(err == lost && out.lines().count() == 1, "{out}{err}");
    let [out, err] = shown(path, "eval --model run --data recall --seq-len 16 -q", &variables);
    assert!(err.is_empty() && out.starts_with("loss "), "{out}{err}");
    let wrong = run(path, &["eval", "--model", "none", "--data", "recall", "-q"]);
    assert!(String::from_utf8_lossy(&wrong.stderr).starts_with("error: "));
}

#[test]
fn a_long_wait_says_what_it_is_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    fs::write(path.join("text"), "In the beginning was the word. ".repeat(100)).unwrap();
    let train = "train --data text --seq-len 16 --batch 2 --threads 1 --steps 1 --cp 3 --out run";
    let eval = "eval --model run --data text --seq-len 100 --cp 3 --threads 1";
    let inspect = "inspect --cp 9 --lengths 70,30";
    for (arguments, phases) in [
        (
            train,
            &[
                "reading text (3.0 KiB) ..",
                "hashing 3.0 KiB of text ..",
                "fresh weights ..",
                "copying the weights for 2 more ranks ..",
                "starting 3 ranks ..",
                "the first step on 3 ranks: planning, then micro-batches of up to 32 tokens ..",
                "weights into run ..",
                "drawing the chart ..",
            ][..],
        ),
        (
            "train --data text --seq-len 16 --threads 1 --steps 3 --validation 0.1 --validate-every 2 --out evaluated",
            &["step 2 and the evaluation of what is held out ..", "step 3 and the evaluation of what is held out .."],
        ),
        (eval, &["reading run (", "planning 400 tokens on 3 ranks ..", "evaluating 400 tokens on 3 ranks"]),
        (
            inspect,
            &[
                "placing 100 tokens on 9 ranks ..",
                "checking the plan of 100 tokens on 9 ranks",
                "planning every rank of 100 tokens on 9 ranks ..",
            ],
        ),
    ] {
        let [_, err] = shown(path, arguments, &[("CONTEXT_PARALLEL_PATIENCE_MS", "0")]);
        for phase in phases {
            assert!(err.contains(phase), "\"{phase}\" is not in\n{err}");
        }
    }
    // Nobody reads the hash of a run that is not kept.
    let train = "train --data text --seq-len 16 --threads 1 --steps 1";
    let [_, err] = shown(path, train, &[("CONTEXT_PARALLEL_PATIENCE_MS", "0")]);
    assert!(!err.contains("hashing"), "{err}");
    let [lost, making] = ["the model will not be kept", "fresh weights"].map(|part| err.find(part).unwrap());
    assert!(lost < making, "{err}");
    // What is quick says nothing.
    let [_, err] = shown(path, inspect, &[]);
    assert!(err.is_empty(), "{err}");
}
