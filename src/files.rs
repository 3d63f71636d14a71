//! Opening and reading files. A pointer that Git LFS left in the place of a file is told here, whatever the file is.

use std::fs::File;
use std::io::{Read, Seek};
use std::path::Path;

use crate::error::{DataError, Error, Result};

/// How the pointers begin.
const POINTER: &[u8] = b"version https://git-lfs.github.com/spec/v1";
/// Pointers are shorter than this, by their specification.
const LONGEST_POINTER: u64 = 1024;

/// Opens a file for reading, from its beginning.
pub(crate) fn open(path: &Path) -> Result<File> {
    let fail = |error| unreadable(path, error);
    let mut file = File::open(path).map_err(fail)?;
    if file.metadata().map_err(fail)?.len() < LONGEST_POINTER {
        let mut start = Vec::new();
        (&mut file).take(POINTER.len() as u64).read_to_end(&mut start).map_err(fail)?;
        refuse_pointer(path, &start)?;
        file.rewind().map_err(fail)?;
    }
    Ok(file)
}

/// The bytes of a file, which need not be one that can be read twice.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    let bytes = std::fs::read(path).map_err(|error| unreadable(path, error))?;
    if (bytes.len() as u64) < LONGEST_POINTER {
        refuse_pointer(path, &bytes)?;
    }
    Ok(bytes)
}

/// The text of a file.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    String::from_utf8(read(path)?).map_err(|error| unreadable(path, error))
}

/// A file that cannot be read.
pub(crate) fn unreadable(path: &Path, reason: impl ToString) -> Error {
    DataError::Read { path: path.display().to_string(), reason: reason.to_string() }.into()
}

fn refuse_pointer(path: &Path, start: &[u8]) -> Result<()> {
    match start.starts_with(POINTER) {
        true => Err(DataError::LfsPointer { path: path.display().to_string() }.into()),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pointer_of_git_lfs_is_named_as_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        std::fs::write(&path, "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n").unwrap();
        for error in [open(&path).map(drop), read(&path).map(drop), read_text(&path).map(drop)].map(Result::unwrap_err)
        {
            let message = error.to_string();
            assert!(error.is_input() && message.contains("git lfs pull"), "{message}");
            assert!(message.contains("model.safetensors"), "{message}");
        }
        std::fs::write(&path, "version 2").unwrap();
        let mut text = String::new();
        open(&path).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!((text.as_str(), read_text(&path).unwrap().as_str()), ("version 2", "version 2"));
        assert!(open(&folder.path().join("none")).unwrap_err().to_string().contains("none"));
    }
}
