//! Files that are whole or not there: everything that the crate writes for good goes through [`AtomicFile`], and what
//! it reads is told from a pointer that Git LFS left in its place.

use std::fs::{self, File};
use std::io::{BufWriter, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

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

/// What is half-written in this process.
static UNDER_WAY: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

fn under_way() -> MutexGuard<'static, Vec<PathBuf>> {
    UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A file under way: written as `.NAME.part` beside its place and then renamed, so that a reader sees what was there
/// before or the whole new file, never a part. Dropped before it is placed, it leaves nothing behind.
///
/// ```
/// use context_parallel::files::AtomicFile;
/// use std::io::Write;
/// # let folder = tempfile::tempdir().unwrap();
/// let path = folder.path().join("numbers");
/// let mut file = AtomicFile::create(&path)?;
/// file.write_all(b"1 2 3").unwrap();
/// assert!(!path.exists());
/// file.place()?;
/// assert_eq!(std::fs::read(&path).unwrap(), b"1 2 3");
/// # Ok::<(), context_parallel::error::Error>(())
/// ```
#[derive(Debug)]
pub struct AtomicFile {
    path: PathBuf,
    part: PathBuf,
    file: BufWriter<File>,
}

impl AtomicFile {
    /// Begins the file that will be at `path`.
    ///
    /// # Errors
    /// [`DataError::Write`].
    pub fn create(path: &Path) -> Result<Self> {
        let part = part_of(path);
        let mut parts = under_way();
        let file = File::create(&part).map_err(|error| unwritable(path, &error))?;
        parts.push(part.clone());
        Ok(AtomicFile { path: path.into(), part, file: BufWriter::with_capacity(1 << 20, file) })
    }

    /// Where the file will be.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Puts the file in its place, complete on disk.
    ///
    /// # Errors
    /// [`DataError::Write`]; what was at the place before is then still there.
    pub fn place(self) -> Result<()> {
        Self::place_all([self])
    }

    /// Puts files that belong together in their places, in this order, once all of them are complete on disk.
    ///
    /// # Errors
    /// [`DataError::Write`]; those that were not yet in their place leave what was there before.
    pub fn place_all<const N: usize>(mut files: [Self; N]) -> Result<()> {
        for AtomicFile { path, file, .. } in &mut files {
            let whole = file.flush().and_then(|()| file.get_ref().sync_all());
            whole.map_err(|error| unwritable(path, &error))?;
        }
        for AtomicFile { path, part, .. } in &files {
            // Together with the list, so that who clears it never takes a file away that has been placed.
            let mut parts = under_way();
            fs::rename(part, path).map_err(|error| unwritable(path, &error))?;
            parts.retain(|other| other != part);
        }
        files.iter().for_each(|file| sync_folder_of(&file.path));
        Ok(())
    }
}

/// Makes the names in a file's folder last. There are systems on which folders cannot be opened for this.
fn sync_folder_of(path: &Path) {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let _ = File::open(folder).and_then(|folder| folder.sync_all());
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        let mut parts = under_way();
        if parts.contains(&self.part) {
            // There is nobody to tell if it cannot be removed.
            let _ = fs::remove_file(&self.part);
            parts.retain(|part| *part != self.part);
        }
    }
}

/// Replaces `path` by `content`, whole.
///
/// # Errors
/// [`DataError::Write`]; what was at `path` before is then still there.
pub fn write(path: &Path, content: &[u8]) -> Result<()> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(content).map_err(|error| unwritable(path, &error))?;
    file.place()
}

/// Removes what is half-written in this process, which is about to end. No file is begun or placed until the returned
/// guard is dropped: hold it until the end.
#[must_use = "files can be begun again once it is dropped"]
pub fn abandon() -> impl Sized {
    let mut parts = under_way();
    for part in parts.drain(..) {
        let _ = fs::remove_file(part);
    }
    parts
}

/// The place of a file whose half-written form would have this name; the name itself for all others.
pub(crate) fn whole_name(name: &str) -> &str {
    name.strip_prefix('.').and_then(|name| name.strip_suffix(".part")).unwrap_or(name)
}

/// Where a file is written first: the same folder, so that renaming never copies.
fn part_of(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.part"))
}

/// A file that cannot be written.
pub(crate) fn unwritable(path: &Path, error: &impl ToString) -> Error {
    DataError::Write { path: path.display().to_string(), reason: error.to_string() }.into()
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

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn writes_replace_whole_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        write(&path, b"old").unwrap();
        write(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        let error = write(&folder.path().join("missing/file"), b"x").unwrap_err();
        assert!(!error.is_input() && error.to_string().contains("missing/file"));
        assert_eq!(names(folder.path()), ["file"]);
    }

    #[test]
    fn what_is_not_placed_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        write(&path, b"old").unwrap();
        let mut file = AtomicFile::create(&path).unwrap();
        file.write_all(b"half").unwrap();
        assert_eq!(names(folder.path()), [".file.part", "file"]);
        assert_eq!(whole_name(".file.part"), "file");
        drop(file);
        assert_eq!((names(folder.path()), fs::read(&path).unwrap()), (vec!["file".to_string()], b"old".to_vec()));
        // A folder where the second file belongs: the first is placed, and no part stays.
        fs::create_dir_all(folder.path().join("taken/by a folder")).unwrap();
        let [first, second] = ["file", "taken"].map(|name| AtomicFile::create(&folder.path().join(name)).unwrap());
        assert!(AtomicFile::place_all([first, second]).unwrap_err().to_string().contains("taken"));
        assert_eq!(names(folder.path()), ["file", "taken"]);
    }
}
