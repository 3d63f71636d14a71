//! Names that other programs write, and what is said of them.

use std::path::Path;

use super::super::tensor::{EMBEDDING, HEAD};
use super::super::*;
use super::{changed, golden, open, refused, renamed};

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
