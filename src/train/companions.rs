//! The files of a model that training does not change: tokenizer, chat templates, generation settings, code.

use std::path::{Path, PathBuf};

use crate::error::{DataError, Result};
use crate::files::{self, unreadable, unwritable};

/// Files of a tokenizer, by whole names in small letters.
const TOKENIZER: [&str; 17] = [
    "added_tokens.json",
    "bpe.codes",
    "encoder.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "sentencepiece.model",
    "special_tokens_map.json",
    "spiece.model",
    "tekken.json",
    "tiktoken.model",
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
/// The folder of chat templates besides the first.
const TEMPLATES: &str = "additional_chat_templates";

/// Whether a file of this name says that a model's ids are those of a tokenizer.
pub fn is_of_tokenizer(name: &str) -> bool {
    let name = name.to_lowercase();
    // "tokenizer.model.v3" is Mistral's.
    TOKENIZER.contains(&&*name)
        || name.starts_with("tokenizer.model.")
        || [".tiktoken", ".spm"].iter().any(|end| name.ends_with(end))
        || name.starts_with("tokenization_") && name.ends_with(".py")
}

/// The files that a model saved after training needs as much as the one that it started from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Companions {
    folder: PathBuf,
    /// By their names in it, of which some have a folder of their own.
    names: Vec<PathBuf>,
}

impl Companions {
    /// Those in `folder`, for a copy in `out`.
    ///
    /// # Errors
    /// One that cannot be read, or that `out` holds already.
    pub fn find(folder: &Path, out: &Path) -> Result<Self> {
        let mut names = Vec::new();
        for name in list(folder)? {
            let text = name.to_string_lossy().to_lowercase();
            if is_companion(&text) {
                names.push(name);
            } else if text == TEMPLATES && folder.join(&name).is_dir() {
                names.extend(list(&folder.join(&name))?.into_iter().map(|inner| name.join(inner)));
            }
        }
        names.sort();
        for name in &names {
            let path = folder.join(name);
            if !path.is_file() {
                return Err(unreadable(&path, "it is no file, or a link to none"));
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
        }
        Ok(Companions { folder: folder.into(), names })
    }

    /// Copies them into `folder`, each as a whole.
    ///
    /// # Errors
    /// One that cannot be read or written.
    pub fn copy_to(&self, folder: &Path) -> Result<()> {
        for name in &self.names {
            let (from, to) = (self.folder.join(name), folder.join(name));
            if let Some(parent) = to.parent() {
                std::fs::create_dir_all(parent).map_err(|error| unwritable(parent, &error))?;
            }
            files::write(&to, &files::read(&from)?)?;
        }
        Ok(())
    }
}

/// The names of what is in a folder.
fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).map_err(|error| unreadable(folder, error))?;
    let name = |entry: std::io::Result<std::fs::DirEntry>| {
        entry.map(|entry| entry.file_name().into()).map_err(|error| unreadable(folder, error))
    };
    entries.map(name).collect()
}

/// Whether a file is one, by its name in small letters.
fn is_companion(name: &str) -> bool {
    // Any code may be what an auto_map in config.json or tokenizer_config.json names, or what that imports.
    is_of_tokenizer(name) || OTHERS.contains(&name) || name.starts_with("chat_template.") || name.ends_with(".py")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_tokenizers_are_known_by_their_names() {
        let others = ["qwen.tiktoken", "source.spm", "tokenization_qwen.py", "tokenizer.model.v3", "Tokenizer.json"];
        for name in TOKENIZER.into_iter().chain(others) {
            assert!(is_of_tokenizer(name), "{name}");
        }
        assert!(
            !["config.json", "modeling_qwen.py", "generation_config.json", "model.safetensors"]
                .into_iter()
                .any(is_of_tokenizer)
        );
    }

    #[test]
    fn tokenizers_and_templates_are_copied_and_nothing_else() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let expected = [
            "Chat_Template.json",
            "Generation_Config.json",
            "additional_chat_templates/tool_use.jinja",
            "chat_template.jinja",
            "modeling_qwen.py",
            "qwen.tiktoken",
            "tokenizer.json",
        ];
        std::fs::create_dir(from.path().join(TEMPLATES)).unwrap();
        for name in expected.into_iter().chain(["config.json", "README.md"]) {
            std::fs::write(from.path().join(name), name).unwrap();
        }
        Companions::find(from.path(), to.path()).unwrap().copy_to(to.path()).unwrap();
        for name in expected {
            assert_eq!(std::fs::read_to_string(to.path().join(name)).unwrap(), name);
        }
        assert_eq!(list(to.path()).unwrap().len(), expected.len());
        let error = Companions::find(from.path(), to.path()).unwrap_err();
        assert!(error.is_input() && error.to_string().contains("already"), "{error}");
        let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n";
        std::fs::write(from.path().join("tokenizer.model"), pointer).unwrap();
        let error = Companions::find(from.path(), &to.path().join("new")).unwrap_err().to_string();
        assert!(error.contains("tokenizer.model") && error.contains("git lfs pull"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn a_companion_that_cannot_be_read_is_refused() {
        let (from, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let path = from.path().join("tokenizer.json");
        std::os::unix::fs::symlink("../blobs/none", &path).unwrap();
        let refused = || Companions::find(from.path(), out.path()).unwrap_err();
        assert!(refused().is_input() && refused().to_string().contains("tokenizer.json"), "{}", refused());
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(refused().to_string().contains("no file"), "{}", refused());
    }
}
