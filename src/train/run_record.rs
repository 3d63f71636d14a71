//! `run.json`: what a training run was asked for, what its data was and how far it came.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::Result;
use crate::files;

/// The file's name in the folder of a run.
pub const RECORD: &str = "run.json";
/// Most steps that a file is believed to count.
const MOST_STEPS: u64 = 1 << 53;

/// A run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    /// Version of this crate that ran.
    pub version: String,
    /// The command line, the program first.
    pub command: Vec<String>,
    /// Which tokens its steps see.
    pub data: DataRecord,
    /// Every other setting, those that nobody asked for too.
    pub settings: Value,
    /// Steps that it was to do.
    pub steps: u64,
    /// Steps that the model beside it has seen; none until one is saved.
    pub steps_done: Option<u64>,
}

/// All that decides over the tokens of a step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DataRecord {
    /// The option `--data`.
    pub data: String,
    /// Bytes of the text; of the recall task, its vocabulary.
    pub size: u64,
    /// Of the text's bytes ([`fingerprint`]); 0 for the recall task.
    pub fingerprint: u64,
    /// The option `--document-separator`.
    pub document_separator: Option<String>,
    /// Share held out.
    pub validation: f64,
    /// Tokens of a sequence.
    pub seq_len: u64,
    /// Sequences of a step.
    pub sequences: u64,
    /// Seed of the data.
    pub seed: u64,
    /// Step of the data that the run's first one saw, from 0.
    pub first_step: u64,
}

impl RunRecord {
    /// Reads the record in `folder`; nothing if there is none.
    ///
    /// # Errors
    /// A file that cannot be read, or is not such a record.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(RECORD);
        let refuse = |reason: String| Err(files::unreadable(&path, reason));
        if matches!(path.try_exists(), Ok(false)) {
            return Ok(None);
        }
        let record = match serde_json::from_str::<RunRecord>(&files::read_text(&path)?) {
            Ok(record) => record,
            Err(error) => return refuse(error.to_string()),
        };
        let counts = [("first_step", record.data.first_step), ("steps_done", record.steps_done.unwrap_or(0))];
        match counts.into_iter().find(|&(_, count)| count > MOST_STEPS) {
            Some((name, count)) => refuse(format!("\"{name}\" is {count}, more than a run can have")),
            None => Ok(Some(record)),
        }
    }

    /// Writes the record into `folder`.
    ///
    /// # Errors
    /// [`DataError::Write`](crate::error::DataError::Write).
    pub fn write(&self, folder: &Path) -> Result<()> {
        let path = folder.join(RECORD);
        let text = serde_json::to_string_pretty(self).map_err(|error| files::unwritable(&path, &error))?;
        files::write(&path, format!("{text}\n").as_bytes())
    }

    /// The step of the data where a run goes on that sees `next`, or what differs.
    pub fn continued_by(&self, next: &DataRecord) -> std::result::Result<u64, String> {
        let DataRecord { data, size, fingerprint, document_separator, validation, seq_len, sequences, seed, .. } =
            &self.data;
        let differs = |what: &str, was: &dyn std::fmt::Debug, is: &dyn std::fmt::Debug| {
            Err(format!("{what} was {was:?} and is {is:?}"))
        };
        if (size, fingerprint) != (&next.size, &next.fingerprint) {
            return Err(format!("--data was {data} and is {}, with other content", next.data));
        }
        if document_separator != &next.document_separator {
            return differs("--document-separator", document_separator, &next.document_separator);
        }
        if validation != &next.validation {
            return differs("--validation", validation, &next.validation);
        }
        if seq_len != &next.seq_len {
            return differs("--seq-len", seq_len, &next.seq_len);
        }
        if sequences != &next.sequences {
            return differs("--batch times --accumulate", sequences, &next.sequences);
        }
        if seed != &next.seed {
            return differs("--seed", seed, &next.seed);
        }
        let done = self.steps_done.ok_or("that run did not say how far it came")?;
        Ok(self.data.first_step + done)
    }
}

/// A hash of bytes that never changes (FNV-1a, 64 bits).
pub fn fingerprint<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    parts.into_iter().flatten().fold(0xcbf2_9ce4_8422_2325, step)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A run of so many steps.
    pub fn about(steps: u64) -> RunRecord {
        let data = DataRecord {
            data: "text".into(),
            size: 9,
            fingerprint: fingerprint([&b"some text"[..]]),
            document_separator: None,
            validation: 0.1,
            seq_len: 8,
            sequences: 4,
            seed: 0,
            first_step: 20,
        };
        let settings = serde_json::json!({ "lr": 1e-3 });
        RunRecord { version: "1".into(), command: vec!["train".into()], data, settings, steps, steps_done: None }
    }

    #[test]
    fn the_data_goes_on_only_where_it_is_the_same() {
        let run = RunRecord { steps_done: Some(5), ..about(9) };
        let same = DataRecord { first_step: 0, data: "by another name".into(), ..run.data.clone() };
        assert_eq!(run.continued_by(&same), Ok(25));
        let base = || same.clone();
        for (next, part) in [
            (DataRecord { fingerprint: 1, ..base() }, "with other content"),
            (DataRecord { size: 10, ..base() }, "with other content"),
            (DataRecord { document_separator: Some("|".into()), ..base() }, "--document-separator"),
            (DataRecord { validation: 0.0, ..base() }, "--validation was 0.1 and is 0.0"),
            (DataRecord { seq_len: 16, ..base() }, "--seq-len was 8 and is 16"),
            (DataRecord { sequences: 1, ..base() }, "--batch times --accumulate"),
            (DataRecord { seed: 7, ..base() }, "--seed was 0 and is 7"),
        ] {
            let message = run.continued_by(&next).unwrap_err();
            assert!(message.contains(part), "{message}");
        }
        assert_eq!(about(9).continued_by(&same), Err("that run did not say how far it came".into()));
    }

    #[test]
    fn a_record_is_read_as_written_and_not_believed_blindly() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(RunRecord::read(folder.path()).unwrap(), None);
        about(3).write(folder.path()).unwrap();
        assert_eq!(RunRecord::read(folder.path()).unwrap(), Some(about(3)));
        let done = RunRecord { steps_done: Some(u64::MAX), ..about(3) };
        let begun = RunRecord { data: DataRecord { first_step: MOST_STEPS + 1, ..about(3).data }, ..about(3) };
        for (huge, name) in [(done, "\"steps_done\" is 18"), (begun, "\"first_step\" is 9")] {
            huge.write(folder.path()).unwrap();
            let message = RunRecord::read(folder.path()).unwrap_err().to_string();
            assert!(message.contains(name), "{message}");
        }
        let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n";
        std::fs::write(folder.path().join(RECORD), pointer).unwrap();
        assert!(RunRecord::read(folder.path()).unwrap_err().to_string().contains("git lfs pull"));
        std::fs::write(folder.path().join(RECORD), "{}").unwrap();
        let error = RunRecord::read(folder.path()).unwrap_err();
        assert!(error.is_input() && error.to_string().contains("run.json"), "{error}");
        // From the definition of FNV-1a.
        assert_eq!(fingerprint([&b"a"[..]]), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fingerprint([&b"fo"[..], b"o"]), fingerprint([&b"foo"[..]]));
    }
}
