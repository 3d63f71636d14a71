//! What `run.json` says of a run, and where the data of a run goes on that starts from the model of another.

use std::path::Path;

use context_parallel::train::data::Source;
use context_parallel::train::run_record::{DataRecord, RunRecord, fingerprint};
use serde_json::Value;

use super::super::output;
use super::arguments::Arguments;

/// What decides over the tokens of a step, from the first one on. A text is hashed only where the record `is_used`:
/// kept, or compared with another.
pub fn of_data(arguments: &Arguments, source: &Source, is_used: bool) -> DataRecord {
    let (size, fingerprint) = match source {
        Source::Recall(recall) => (recall.vocab(), 0),
        Source::Text(text) => {
            let parts = [text.training(), text.held_out()];
            let size = parts[0].len() + parts[1].len();
            let hash = || {
                let _hashing = output::phase(format!("hashing {} of text", output::bytes(size as u64)));
                fingerprint(parts)
            };
            (size, if is_used { hash() } else { 0 })
        }
    };
    DataRecord {
        data: arguments.data.as_deref().map(|path| path.display().to_string()).unwrap_or_default(),
        size: size as u64,
        fingerprint,
        document_separator: arguments.document_separator.clone(),
        validation: arguments.validation,
        seq_len: arguments.seq_len as u64,
        sequences: (arguments.batch * arguments.accumulate) as u64,
        seed: arguments.seed,
        first_step: 0,
    }
}

/// Lets the data go on where the run that left its model in `folder` stopped, if it is the same; says what is done.
pub fn go_on(folder: &Path, data: &mut DataRecord) -> String {
    let place = folder.display();
    let how = match RunRecord::read(folder) {
        Ok(None) => return format!("weights from {place}, the optimizer starts afresh"),
        Ok(Some(run)) => run.continued_by(data),
        Err(error) => Err(error.to_string()),
    };
    let how = match how {
        Ok(step) => {
            data.first_step = step;
            format!("the data goes on at its step {}, where that run stopped", step + 1)
        }
        Err(reason) => format!("the data starts over ({reason})"),
    };
    format!("weights from the run in {place}, the optimizer starts afresh, {how}")
}

/// The run.
pub fn of_run(data: DataRecord, settings: Value, steps: u64) -> RunRecord {
    let command = std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    RunRecord { version: env!("CARGO_PKG_VERSION").into(), command, data, settings, steps, steps_done: None }
}
