//! The folder that a training run leaves behind: the model, `run.json`, `log.jsonl` and `loss.svg`.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::chart::loss_chart;
use super::run_record::{RECORD, RunRecord};
use super::trainer::StepRecord;
use crate::error::{DataError, Result};
use crate::files::{self, unreadable, unwritable, whole_name};

/// One JSON object per step, written as the run goes on.
pub const LOG: &str = "log.jsonl";
/// The chart of the losses, written at the end.
pub const CHART: &str = "loss.svg";
/// When kernels and transfers ran, of a run that measured it.
pub const TRACE: &str = "trace.json";

/// A place for a run that holds no other run; nothing has been written yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vacant(PathBuf);

/// The folder of a run under way.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    log: File,
    record: RunRecord,
    /// The folders that were not there before the run, from the inside out.
    made: Vec<PathBuf>,
}

impl Vacant {
    /// Refuses a folder that holds any file of a run or a model, and a path that is not a folder. Writes nothing.
    pub fn check(path: &Path) -> Result<Self> {
        if path.as_os_str().is_empty() {
            return Err(DataError::Unusable("--out is empty: name a folder".into()).into());
        }
        match fs::metadata(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vacant(path.into())),
            Err(error) => return Err(unreadable(path, error)),
            Ok(metadata) if !metadata.is_dir() => {
                let message = format!("--out {} is a file: name a folder that is new or empty", path.display());
                return Err(DataError::Unusable(message).into());
            }
            Ok(_) => {}
        }
        for entry in fs::read_dir(path).map_err(|error| unreadable(path, error))? {
            let name = entry.map_err(|error| unreadable(path, error))?.file_name();
            if is_of_a_run(&name.to_string_lossy()) {
                return Err(holds_a_run(path, &name.to_string_lossy()));
            }
        }
        Ok(Vacant(path.into()))
    }

    /// Makes the folder, begins the log and writes what the run is. Of two runs that try this at the same time, one is
    /// refused. Where this fails, it leaves nothing behind.
    pub fn create(self, record: RunRecord) -> Result<RunFolder> {
        let Vacant(path) = self;
        let is_new = |folder: &&Path| matches!(folder.try_exists(), Ok(false)) && !folder.as_os_str().is_empty();
        let made: Vec<_> = path.ancestors().take_while(is_new).map(Path::to_path_buf).collect();
        fs::create_dir_all(&path).map_err(|error| unwritable(&path, &error))?;
        let log_path = path.join(LOG);
        let log = match OpenOptions::new().append(true).create_new(true).open(&log_path) {
            Ok(log) => log,
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => return Err(holds_a_run(&path, LOG)),
            Err(error) => {
                remove_empty(&made);
                return Err(unwritable(&log_path, &error));
            }
        };
        let run = RunFolder { path, log, record, made };
        match run.record.write(&run.path) {
            Ok(()) => Ok(run),
            Err(error) => {
                run.discard();
                Err(error)
            }
        }
    }
}

impl RunFolder {
    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds a step to the log, as one whole line in one write.
    pub fn log(&mut self, record: &impl Serialize) -> Result<()> {
        let path = self.path.join(LOG);
        let mut line = serde_json::to_vec(record).map_err(|error| unwritable(&path, &error))?;
        line.push(b'\n');
        self.log.write_all(&line).map_err(|error| unwritable(&path, &error))
    }

    /// Writes that the model has been saved after so many steps. Call it directly after: a model beside a record
    /// without them says nothing of its data.
    pub fn saved(&mut self, steps: u64) -> Result<()> {
        self.record.steps_done = Some(steps);
        self.record.write(&self.path)
    }

    /// Writes when kernels and transfers ran.
    pub fn trace(&self, text: &str) -> Result<()> {
        files::write(&self.path.join(TRACE), text.as_bytes())
    }

    /// Draws the losses of the run; the log is complete on disk afterwards. A run that failed before its first step
    /// leaves nothing, so that the folder can be used again.
    pub fn finish(self, records: &[StepRecord]) -> Result<()> {
        if records.is_empty() && self.record.steps_done.is_none() {
            self.discard();
            return Ok(());
        }
        self.log.sync_all().map_err(|error| unwritable(&self.path.join(LOG), &error))?;
        let name = self.path.file_name().unwrap_or(self.path.as_os_str()).to_string_lossy();
        files::write(&self.path.join(CHART), loss_chart(&name, records)?.as_bytes())
    }

    /// Removes what [`Vacant::create`] made.
    fn discard(self) {
        let RunFolder { path, log, made, .. } = self;
        drop(log);
        for name in [RECORD, LOG] {
            // It is an error already that brought us here.
            let _ = fs::remove_file(path.join(name));
        }
        remove_empty(&made);
    }
}

/// Removes folders, from the inside out, up to the first with something in it.
fn remove_empty(folders: &[PathBuf]) {
    let _ = folders.iter().try_for_each(fs::remove_dir);
}

/// Whether a file name belongs to a run or a model, half-written ones included.
fn is_of_a_run(name: &str) -> bool {
    let name = whole_name(name);
    [LOG, CHART, TRACE, RECORD, "config.json"].contains(&name)
        || name.ends_with(".safetensors")
        || name.ends_with(".safetensors.index.json")
}

fn holds_a_run(path: &Path, name: &str) -> crate::error::Error {
    let message = format!("--out {} holds another run ({name}): name a folder that is new or empty", path.display());
    DataError::Unusable(message).into()
}

#[cfg(test)]
mod tests {
    use super::super::run_record::tests::about;
    use super::*;

    fn record(step: u64) -> StepRecord {
        let (loss, grad_norm, lr, tokens_per_second) = (2.5 / step as f64, 0.75, 1e-3, 100.0);
        StepRecord {
            step,
            loss,
            mtp_loss: None,
            grad_norm,
            lr,
            tokens: 1,
            micro_batches: 1,
            tokens_per_second,
            seconds: step as f64,
            held_out_loss: None,
        }
    }

    #[test]
    fn a_run_leaves_a_log_and_a_chart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/run");
        let vacant = Vacant::check(&path).unwrap();
        assert!(!folder.path().join("new").exists(), "checking writes nothing");
        let mut run = vacant.create(about(9)).unwrap();
        assert_eq!(RunRecord::read(&path).unwrap().unwrap().steps_done, None);
        let records: Vec<StepRecord> = (1..=3).map(record).collect();
        for record in &records {
            run.log(record).unwrap();
        }
        run.saved(3).unwrap();
        let about = RunRecord { steps_done: Some(3), ..about(9) };
        assert_eq!(RunRecord::read(&path).unwrap(), Some(about), "before the chart");
        run.finish(&records).unwrap();
        let log = fs::read_to_string(path.join(LOG)).unwrap();
        let lines: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 3);
        for key in ["step", "loss", "grad_norm", "lr", "tokens_per_second", "seconds"] {
            assert!(lines[1][key].is_number(), "{key}");
        }
        assert_eq!(lines[2]["step"], 3);
        assert!(fs::read_to_string(path.join(CHART)).unwrap().contains("</svg>"));
        let mut names: Vec<_> = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, [LOG, CHART, RECORD], "nothing half-written stays");
    }

    #[test]
    fn a_run_that_fails_before_its_first_step_leaves_its_folder_free() {
        let folder = tempfile::tempdir().unwrap();
        let there = || fs::read_dir(folder.path()).unwrap().count();
        let path = folder.path().join("new/run");
        Vacant::check(&path).unwrap().create(about(9)).unwrap().finish(&[]).unwrap();
        assert_eq!(there(), 0, "neither the files nor the folders");
        // Something of the user's stays, and so does its folder.
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("notes.txt"), "mine").unwrap();
        let vacant = Vacant::check(&path).unwrap();
        vacant.clone().create(about(9)).unwrap().finish(&[]).unwrap();
        let names: Vec<_> = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["notes.txt"]);
        // The record cannot be written.
        fs::create_dir(path.join(".run.json.part")).unwrap();
        assert!(!vacant.create(about(9)).unwrap_err().is_input());
        assert!(!path.join(LOG).exists());
        // A run without steps whose model was saved is kept, and one that failed later is too.
        let saved = folder.path().join("saved");
        let mut run = Vacant::check(&saved).unwrap().create(about(9)).unwrap();
        run.saved(0).unwrap();
        run.finish(&[]).unwrap();
        assert!(saved.join(LOG).exists());
        let failed = folder.path().join("failed");
        Vacant::check(&failed).unwrap().create(about(9)).unwrap().finish(&[record(1)]).unwrap();
        assert_eq!(RunRecord::read(&failed).unwrap().unwrap().steps_done, None);
    }

    #[test]
    fn a_folder_with_another_run_is_refused_and_left_alone() {
        for name in [
            "log.jsonl",
            "loss.svg",
            "run.json",
            "config.json",
            "model.safetensors",
            "model-00001-of-00002.safetensors",
            "model.safetensors.index.json",
            ".loss.svg.part",
            ".model.safetensors.part",
        ] {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join(name), "mine").unwrap();
            let error = Vacant::check(folder.path()).unwrap_err();
            assert!(error.is_input() && error.to_string().contains(name), "{error}");
            assert_eq!(fs::read_to_string(folder.path().join(name)).unwrap(), "mine");
        }
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("notes.txt"), "mine").unwrap();
        let (first, second) = (Vacant::check(folder.path()).unwrap(), Vacant::check(folder.path()).unwrap());
        first.create(about(1)).unwrap();
        assert!(second.create(about(1)).unwrap_err().is_input(), "the second of two runs at once");
        let file = Vacant::check(&folder.path().join("notes.txt")).unwrap_err();
        assert!(file.is_input() && file.to_string().contains("is a file"));
        assert!(Vacant::check(Path::new("")).is_err());
    }
}
