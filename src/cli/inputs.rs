//! What commands read and where they write, checked in one place before any work: every command that takes a value
//! makes the checks that belong to it.

use std::fs;
use std::path::{Path, PathBuf};

use context_parallel::error::{DataError, Error, Result};
use context_parallel::files::AtomicFile;
use context_parallel::model::Config;
use context_parallel::train::companions::is_of_tokenizer;
use context_parallel::train::data::{BYTE_VOCAB, check_bytes, read_bytes, read_text};
use context_parallel::train::run_folder::Vacant;
use context_parallel::train::tokens::{LabelMeaning, TokenFile, read_tokens};

use super::{args, machine};

/// How a text is read.
#[derive(clap::Args, Clone, Copy, Debug, Default)]
pub struct Bytes {
    /// Take the bytes of --data as token ids also for a model with a tokenizer or a vocabulary other than 256, and of a
    /// file that is no plain text
    #[arg(long, help_heading = args::MODEL)]
    pub bytes: bool,
}

impl Bytes {
    /// Refuses the flag where nothing is a text.
    pub fn is_for_text(self, is_text: bool) -> Result<()> {
        if self.bytes && !is_text {
            return Err(args::numbers("--bytes is for a text: leave it out, or use --data FILE".into()));
        }
        Ok(())
    }
}

/// The bytes of a text for a model that has ids for them: one over bytes, or any where the user says so. A byte takes
/// `memory` bytes in the end.
pub fn text(path: &Path, bytes: Bytes, folder: Option<&Path>, config: &Config, memory: u64) -> Result<Vec<u8>> {
    check_size(path, memory)?;
    let text = match bytes.bytes {
        true => read_bytes(path)?,
        false => {
            check_over_bytes(folder, config)?;
            read_text(path)?
        }
    };
    check_bytes(&text, path, config.vocab_size)?;
    Ok(text)
}

/// Token ids for a model.
pub fn tokens(path: &Path, config: &Config, labels: Option<LabelMeaning>) -> Result<TokenFile> {
    // The file itself, and of each of its numbers, which may have one byte only, another copy.
    check_size(path, 1 + 8)?;
    read_tokens(path, config.vocab_size, labels)
}

/// Refuses a file that does not fit the machine, where a byte of it takes `memory` bytes.
fn check_size(path: &Path, memory: u64) -> Result<()> {
    // Whoever reads it says what is wrong with a file that is not there.
    let Ok(metadata) = fs::metadata(path) else { return Ok(()) };
    machine::check(metadata.len().saturating_mul(memory), &path.display().to_string(), "use a smaller file")
}

/// Refuses a model whose ids are not bytes.
fn check_over_bytes(folder: Option<&Path>, config: &Config) -> Result<()> {
    let instead = "use a model over bytes, --data recall, or eval --tokens with token ids; --bytes takes bytes as ids \
                   all the same";
    if let Some(file) = folder.and_then(tokenizer) {
        let what = format!("text --data for a model with a tokenizer ({})", file.display());
        return Err(args::not_available(what, instead));
    }
    if config.vocab_size != BYTE_VOCAB {
        let what = format!(
            "text --data for a model with a vocabulary of {}, whose ids are not the {BYTE_VOCAB} bytes,",
            config.vocab_size
        );
        return Err(args::not_available(what, instead));
    }
    Ok(())
}

/// A file of a tokenizer, if the folder has one; of several the first by name.
fn tokenizer(folder: &Path) -> Option<PathBuf> {
    let is_of_one = |path: &PathBuf| is_of_tokenizer(&path.file_name().unwrap_or_default().to_string_lossy());
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).filter(is_of_one).min()
}

/// Refuses a path that cannot become a file, or that is one of these inputs (options and paths) by whatever name.
pub fn output_file(option: &str, path: &Path, inputs: &[(&str, Option<&Path>)]) -> Result<()> {
    let unusable = |what: String| Err(DataError::Unusable(format!("{option} {}{what}", path.display())).into());
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if path.file_name().is_none() || !parent.is_dir() || fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        return unusable(": name a file in a folder that exists".into());
    }
    // What does not exist yet is no input.
    if let Ok(target) = path.canonicalize() {
        let same = |input: &Path| input.canonicalize().is_ok_and(|input| input == target);
        let is_read = |input: &Path| match input.is_dir() {
            // A file in the folder, or one that a link there leads to.
            true => {
                input.canonicalize().is_ok_and(|folder| target.starts_with(folder))
                    || fs::read_dir(input).into_iter().flatten().flatten().any(|entry| same(&entry.path()))
            }
            false => same(input),
        };
        if let Some((input, _)) = inputs.iter().find(|(_, input)| input.is_some_and(is_read)) {
            return unusable(format!(" would replace an input ({input}): name a file that is not read from"));
        }
    }
    probe(option, path, path)
}

/// A folder for a run, which holds none and can be written into or made.
pub fn output_folder(path: &Path) -> Result<Vacant> {
    let vacant = Vacant::check(path)?;
    let exists = |folder: &&Path| folder.exists();
    let above = path.ancestors().filter(|folder| !folder.as_os_str().is_empty()).find(exists);
    probe("--out", path, &above.unwrap_or(Path::new(".")).join("probe"))?;
    Ok(vacant)
}

/// Refuses a place at which no file can be made, as files are made; begins one and removes it.
fn probe(option: &str, path: &Path, file: &Path) -> Result<()> {
    AtomicFile::create(file).map(drop).map_err(|error| match error {
        Error::Data(DataError::Write { reason, .. }) => {
            let folder = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let (path, folder) = (path.display(), folder.display());
            let message = format!("{option} {path} cannot be written into {folder} ({reason}); name another place");
            DataError::Unusable(message).into()
        }
        other => other,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use context_parallel::model::Sizes;

    fn config(vocab_size: usize) -> Config {
        let sizes = Sizes { vocab_size, hidden_size: 8, intermediate_size: 8, layers: 1, heads: 1, kv_heads: 1 };
        Config::llama(sizes).unwrap()
    }

    #[test]
    fn bytes_are_ids_of_models_over_bytes_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("text");
        fs::write(&path, "plain").unwrap();
        let read = |bytes, folder, vocab| text(&path, Bytes { bytes }, folder, &config(vocab), 1);
        assert_eq!(read(false, None, 256).unwrap(), b"plain");
        for vocab in [128, 300] {
            let message = read(false, None, vocab).unwrap_err().to_string();
            assert!(message.contains(&format!("vocabulary of {vocab}")) && message.contains("--bytes"), "{message}");
            assert_eq!(read(true, None, vocab).unwrap(), b"plain");
        }
        let message = read(true, None, 110).unwrap_err().to_string();
        assert!(message.contains("byte 112 at offset 0"), "{message}");
        let model = folder.path().join("model");
        for name in ["tokenizer.json", "tekken.json", "spiece.model", "qwen.tiktoken", "tokenizer_config.json"] {
            fs::create_dir(&model).unwrap();
            assert!(read(false, Some(&model), 256).is_ok());
            fs::write(model.join(name), "{}").unwrap();
            let message = read(false, Some(&model), 256).unwrap_err().to_string();
            assert!(message.contains(name) && message.contains("--bytes"), "{message}");
            assert!(read(true, Some(&model), 256).is_ok());
            fs::remove_dir_all(&model).unwrap();
        }
    }

    #[test]
    fn places_that_cannot_be_written_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let input = path.join("input");
        fs::write(&input, "x").unwrap();
        let file = |target: &str| output_file("--logits", &path.join(target), &[("--data", Some(&input))]);
        assert!(file("new").is_ok());
        assert_eq!(fs::read_dir(path).unwrap().count(), 1, "nothing is left");
        for (target, expected) in [
            ("input", "would replace an input (--data)"),
            ("./missing/../input", "a folder that exists"),
            (".", "name a file"),
            ("missing/new", "a folder that exists"),
            ("input/new", "a folder that exists"),
        ] {
            let error = file(target).unwrap_err();
            assert!(error.is_input() && error.to_string().contains(expected), "{target}: {error}");
        }
        assert!(output_folder(&path.join("new/run")).is_ok() && !path.join("new").exists());
        assert!(output_folder(Path::new("new")).is_ok());
        if cfg!(target_os = "linux") {
            // Where nobody can make a file.
            let error = output_file("--logits", Path::new("/proc/logits"), &[]).unwrap_err();
            assert!(error.is_input() && error.to_string().contains("cannot be written into /proc"), "{error}");
            let error = output_folder(Path::new("/proc/new/run")).unwrap_err();
            assert!(error.is_input() && error.to_string().contains("cannot be written into /proc"), "{error}");
            let error = output_file("--logits", Path::new("/dev/null"), &[]).unwrap_err();
            assert!(error.to_string().contains("name a file"), "{error}");
        }
    }

    #[test]
    fn a_file_larger_than_the_machine_is_refused_unread() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sparse");
        fs::File::create(&path).unwrap().set_len(1 << 42).unwrap();
        for message in [
            text(&path, Bytes::default(), None, &config(256), 1).unwrap_err().to_string(),
            tokens(&path, &config(256), None).unwrap_err().to_string(),
        ] {
            assert!(message.contains("sparse needs about") && message.contains("use a smaller file"), "{message}");
        }
    }
}
