//! The files of a model that training does not change: tokenizer, chat template, generation settings.

use std::path::{Path, PathBuf};

use crate::error::{DataError, Result};
use crate::files::{self, unreadable};

/// Files of a tokenizer, by whole names in small letters.
const TOKENIZER: [&str; 15] = [
    "added_tokens.json",
    "bpe.codes",
    "encoder.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "tekken.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer.pkl",
    "tokenizer_config.json",
    "vocab.bpe",
    "vocab.json",
    "vocab.txt",
];

/// What else belongs to a model, as Hugging Face and Mistral write it.
const OTHERS: [&str; 2] = ["generation_config.json", "normalizer.json"];

/// Whether a file of this name says that a model's ids are those of a tokenizer.
pub fn is_of_tokenizer(name: &str) -> bool {
    let name = name.to_lowercase();
    // "tokenizer.model.v3" is Mistral's.
    TOKENIZER.contains(&&*name) || name.starts_with("tokenizer.model.") || name.ends_with(".tiktoken")
}

/// The files that a model saved after training needs as much as the one that it started from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Companions(Vec<PathBuf>);

impl Companions {
    /// Those in `folder`, for a copy in `out`.
    ///
    /// # Errors
    /// One that cannot be read, or that `out` holds already.
    pub fn find(folder: &Path, out: &Path) -> Result<Self> {
        let entries = std::fs::read_dir(folder).map_err(|error| unreadable(folder, error))?;
        let mut found = Vec::new();
        for entry in entries {
            let path = entry.map_err(|error| unreadable(folder, error))?.path();
            let name = path.file_name().unwrap_or_default();
            if !is_companion(&name.to_string_lossy()) || !path.is_file() {
                continue;
            }
            files::open(&path)?;
            if out.join(name).exists() {
                return Err(DataError::Unusable(format!(
                    "--out {} holds {} already, where the model's would be copied: name a folder that is new or empty",
                    out.display(),
                    name.display()
                ))
                .into());
            }
            found.push(path);
        }
        found.sort();
        Ok(Companions(found))
    }

    /// Copies them into `folder`, each as a whole.
    ///
    /// # Errors
    /// One that cannot be read or written.
    pub fn copy_to(&self, folder: &Path) -> Result<()> {
        let copy =
            |path: &PathBuf| files::write(&folder.join(path.file_name().unwrap_or_default()), &files::read(path)?);
        self.0.iter().try_for_each(copy)
    }
}

fn is_companion(name: &str) -> bool {
    is_of_tokenizer(name) || OTHERS.contains(&name) || name.starts_with("chat_template.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_tokenizers_are_known_by_their_names() {
        for name in TOKENIZER.into_iter().chain(["qwen.tiktoken", "tokenizer.model.v3", "Tokenizer.json"]) {
            assert!(is_of_tokenizer(name), "{name}");
        }
        assert!(!["config.json", "generation_config.json", "model.safetensors"].into_iter().any(is_of_tokenizer));
    }

    #[test]
    fn tokenizers_and_templates_are_copied_and_nothing_else() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for name in ["tokenizer.json", "chat_template.jinja", "qwen.tiktoken", "config.json", "README.md"] {
            std::fs::write(from.path().join(name), name).unwrap();
        }
        Companions::find(from.path(), to.path()).unwrap().copy_to(to.path()).unwrap();
        let mut names: Vec<_> = std::fs::read_dir(to.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["chat_template.jinja", "qwen.tiktoken", "tokenizer.json"]);
        assert_eq!(std::fs::read_to_string(to.path().join("tokenizer.json")).unwrap(), "tokenizer.json");
        let error = Companions::find(from.path(), to.path()).unwrap_err();
        assert!(error.is_input() && error.to_string().contains("already"), "{error}");
        let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n";
        std::fs::write(from.path().join("tokenizer.model"), pointer).unwrap();
        let error = Companions::find(from.path(), &to.path().join("new")).unwrap_err().to_string();
        assert!(error.contains("tokenizer.model") && error.contains("git lfs pull"), "{error}");
    }
}
