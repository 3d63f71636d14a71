//! The folder of `--model`: how its configuration is read, and what its files are checked for before any work.

use std::path::Path;

use context_parallel::error::{DataError, Result};
use context_parallel::model::config::ParseOptions;
use context_parallel::model::{Config, ParameterList, weights};

use super::engine::Cluster;
use super::{args, output};

/// How `config.json` is read.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Reading {
    /// Read the --model's config.json without this field, although it may change what the model computes; may be given
    /// several times, and be a field of another: rope_scaling.NAME
    #[arg(long = "ignore-config-field", value_name = "NAME", requires = "model", help_heading = args::MODEL)]
    ignore: Vec<String>,
}

impl Reading {
    /// The fields that the user has named.
    pub fn ignored(&self) -> &[String] {
        &self.ignore
    }

    /// The configuration in `folder`; what was ignored is said.
    pub fn config(&self, folder: &Path, cluster: &Cluster) -> Result<Config> {
        let path = folder.join("config.json");
        if let Err(error) = std::fs::metadata(&path) {
            let reason = format!("{error}; --model takes a folder with config.json and safetensors");
            return Err(DataError::Read { path: path.display().to_string(), reason }.into());
        }
        let config = Config::read_with(folder, &ParseOptions { ignore: self.ignore.clone() })?;
        say(config.notes(), cluster);
        Ok(config)
    }
}

/// Refuses weights whose headers do not go with the configuration; what was done to their names is said.
pub fn check_weights(folder: &Path, config: &Config, cluster: &Cluster) -> Result<()> {
    say(&weights::check(folder, &ParameterList::new(config))?, cluster);
    Ok(())
}

fn say(notes: &[String], cluster: &Cluster) {
    if cluster.speaks() {
        notes.iter().for_each(|note| output::note(format!("note: {note}")));
    }
}
