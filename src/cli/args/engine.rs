//! Where ranks run and how they talk.

use clap::Args;
use context_parallel::error::Result;

use super::headings::RUNNING;
use super::names::{DEVICES, Names, TRANSPORTS, Transport, pick};
use super::refusals::{not_available, numbers};

/// Seconds that a rank waits for another.
const DEADLINE: u64 = 600;

/// Where ranks run and how they talk.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = RUNNING)]
pub struct EngineArguments {
    /// How ranks exchange data: between threads of this process, or processes that mpirun started (feature mpi)
    #[arg(long, value_name = "NAME", default_value = "threads", value_parser = Names::TRANSPORTS)]
    pub transport: String,
    /// Seconds that a rank waits for another before it gives up
    #[arg(long, value_name = "SECONDS", default_value_t = DEADLINE)]
    pub deadline: u64,
    /// What computes
    #[arg(long, value_name = "NAME", default_value = "cpu", value_parser = Names::DEVICES)]
    pub device: String,
}

impl Default for EngineArguments {
    fn default() -> Self {
        EngineArguments { transport: "threads".into(), deadline: DEADLINE, device: "cpu".into() }
    }
}

impl EngineArguments {
    /// The transport; refuses what does not exist, and what this version or this build does not have.
    pub fn transport(&self) -> Result<Transport> {
        if cfg!(not(feature = "mpi")) && self.transport == "mpi" {
            let instead = "build with `cargo build --release --features mpi`, or use --transport threads";
            return Err(not_available("--transport mpi", instead));
        }
        pick("transport", &self.transport, TRANSPORTS, &["nccl"])
    }

    /// Seconds that a rank waits for another.
    pub fn deadline(&self) -> Result<u64> {
        match self.deadline {
            0 => Err(numbers("--deadline is 0: use at least 1".to_string())),
            seconds => Ok(seconds),
        }
    }

    /// Refuses devices that do not exist, and those that this version does not have.
    pub fn check(&self) -> Result<()> {
        pick("device", &self.device, DEVICES, &["cuda"])
    }
}
