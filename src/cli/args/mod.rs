//! The choices that commands share: strategy, layout, order, kernel, ranks, threads, number format, transport, device.

use clap::Args;

mod combination;
mod degree;
mod engine;
mod headings;
mod names;
mod refusals;
mod settings;
#[cfg(test)]
mod tests;
mod values;

pub use combination::Combination;
pub use degree::rank_list;
pub use engine::{DeviceArguments, EngineArguments};
pub use headings::{MODEL, OUTPUT, PARALLELISM, RUNNING, TRAINING};
pub use names::{Names, Table, Transport, dtype, of, pick};
pub use refusals::{no_documents, no_dtype, not_available, numbers};
pub use settings::Settings;
pub use values::{given_threads, not_negative, positive, threads};

/// How a model is run.
#[derive(Args, Clone, Debug, Default)]
pub struct Choices {
    #[command(flatten)]
    pub combination: Combination,
    /// Threads of each rank [default: the machine's cores shared out over the ranks]
    #[arg(long, value_name = "N", help_heading = RUNNING)]
    pub threads: Option<usize>,
    #[command(flatten)]
    pub engine: EngineArguments,
}
