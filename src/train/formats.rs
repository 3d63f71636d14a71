//! Files that hold something else than a text, told by their names and by how they begin.

use std::path::Path;

/// By the ends of names, in lower case.
const ENDS: [(&str, &[&str]); 9] = [
    ("JSON", &["json", "jsonl", "ndjson"]),
    ("a table", &["csv", "tsv", "parquet", "arrow", "feather", "orc", "xlsx", "sqlite", "db"]),
    ("compressed", &["gz", "tgz", "zst", "xz", "bz2", "lz4", "br", "zip", "7z", "rar"]),
    ("an archive", &["tar"]),
    ("a file of tensors", &["safetensors", "npy", "npz", "pt", "pth", "ckpt", "gguf", "h5", "hdf5"]),
    ("a Python object", &["pkl", "pickle"]),
    ("binary", &["bin", "idx", "msgpack", "tfrecord", "mds"]),
    ("a tokenizer", &["tiktoken", "model"]),
    ("a document with a format", &["pdf", "docx", "epub"]),
];

/// By first bytes.
const BEGINNINGS: [(&str, &[u8]); 13] = [
    ("compressed", b"\x1f\x8b"),
    ("compressed", b"\x28\xb5\x2f\xfd"),
    ("compressed", b"\xfd7zXZ\0"),
    ("compressed", b"\x04\x22\x4d\x18"),
    ("compressed", b"PK\x03\x04"),
    ("compressed", b"7z\xbc\xaf\x27\x1c"),
    ("a table", b"SQLite format 3\0"),
    ("a file of tensors", b"\x93NUMPY"),
    ("a file of tensors", b"\x89HDF\r\n"),
    ("a document with a format", b"%PDF-"),
    ("text in UTF-16 or UTF-32", b"\xff\xfe"),
    ("text in UTF-16", b"\xfe\xff"),
    ("text in UTF-32", b"\0\0\xfe\xff"),
];
/// By first bytes that a text could have too: in such a file a byte that no text has follows soon.
const LETTERS: [(&str, &[u8]); 3] = [("a table", b"PAR1"), ("a table", b"ARROW1"), ("a file of tensors", b"GGUF")];
/// How soon.
const SOON: usize = 64;

/// What a file is, in words, where it is no text that could be read as it is.
pub(super) fn other_than_text(path: &Path, bytes: &[u8]) -> Option<String> {
    let end = path.extension().map(|end| end.to_string_lossy().to_lowercase()).unwrap_or_default();
    if let Some((what, _)) = ENDS.iter().find(|(_, ends)| ends.contains(&&*end)) {
        return Some(format!("{what}, by its name"));
    }
    let begins = BEGINNINGS.iter().find(|(_, beginning)| bytes.starts_with(beginning)).map(|(what, _)| *what);
    let letters = || LETTERS.iter().find(|(_, letters)| bytes.starts_with(letters) && is_binary(bytes));
    let what = begins
        .or_else(|| is_bzip2(bytes).then_some("compressed"))
        .or_else(|| is_safetensors(bytes).then_some("a file of tensors"))
        .or_else(|| letters().map(|(what, _)| *what))?;
    Some(format!("{what}, by its first bytes"))
}

/// Whether a control character that no text has is among the first bytes.
fn is_binary(bytes: &[u8]) -> bool {
    bytes.iter().take(SOON).any(|&byte| byte < b' ' && !matches!(byte, b'\t'..=b'\r' | b'\x1b'))
}

/// The level, then what a block begins with, or the end of a file without one.
fn is_bzip2(bytes: &[u8]) -> bool {
    match bytes.strip_prefix(b"BZh") {
        Some([b'1'..=b'9', rest @ ..]) => rest.starts_with(b"1AY&SY") || rest.starts_with(b"\x17rE8P\x90"),
        _ => false,
    }
}

/// A header's length that the file holds, and a JSON object.
fn is_safetensors(bytes: &[u8]) -> bool {
    let Some((length, rest)) = bytes.split_first_chunk() else { return false };
    u64::from_le_bytes(*length) <= rest.len() as u64 && rest.starts_with(b"{")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_first_bytes_tell_what_is_no_text() {
        let is = |name: &str, bytes: &[u8]| other_than_text(Path::new(name), bytes);
        for name in ["a.txt", "a", "a.md", "b.c/text", "json", "enwik8", "a.rs"] {
            assert_eq!(is(name, b"{\"a\": 1}, and so on"), None, "{name}");
        }
        for (name, what) in [("x.jsonl", "JSON"), ("d/x.JSON", "JSON"), ("a.txt.gz", "compressed"), ("x.bin", "binary")]
        {
            assert_eq!(is(name, b"text"), Some(format!("{what}, by its name")));
        }
        for bytes in [
            &b"\x1f\x8b\x08"[..],
            b"PAR1\x15",
            b"ARROW1\0\0",
            b"GGUF\x03\0\0\0",
            b"BZh91AY&SY\x01",
            b"BZh9\x17rE8P\x90\0\0\0\0",
            b"\xff\xfeI\0n\0",
            b"\xfe\xff\0I\0n",
            b"\xff\xfe\0\0I\0\0\0",
            b"\0\0\xfe\xff\0\0\0I",
            b"PK\x03\x04",
            b"\x93NUMPY\x01",
            b"\x10\0\0\0\0\0\0\0{\"__metadata__\"}",
        ] {
            assert!(is("text", bytes).is_some_and(|what| what.ends_with("by its first bytes")), "{bytes:?}");
        }
        assert_eq!(is("text", b"\x10\0\0\0\0\0\0\0{\"cut"), None);
        assert_eq!(is("text", b""), None);
        for text in [
            &b"BZh is how files of bzip2 begin"[..],
            b"BZh9 too",
            b"GGUF is a file\r\n\tof tensors",
            b"PAR1",
            b"ARROW1: caf\xc3\xa9\x0c",
            b"\xef\xbb\xbfin UTF-8",
        ] {
            assert_eq!(is("text", text), None, "{text:?}");
        }
        let late = [&b"GGUF"[..], &[b'a'; SOON], b"\0"].concat();
        assert_eq!(is("text", &late), None);
    }
}
