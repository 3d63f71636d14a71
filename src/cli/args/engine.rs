//! Where ranks run and how they talk.

use clap::Args;
use context_parallel::error::Result;
use context_parallel::tensor::DType;

use super::super::hardware::Hardware;
use super::headings::RUNNING;
use super::names::{DEVICES, Names, TRANSPORTS, Transport, pick};
use super::refusals::{not_available, numbers};

/// Seconds that a rank waits for another.
const DEADLINE: u64 = 600;

/// Where ranks run and how they talk.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = RUNNING)]
pub struct EngineArguments {
    /// How ranks exchange data: between threads of this process, processes that mpirun started (feature mpi), or GPUs
    /// of either (nccl, feature cuda)
    #[arg(long, value_name = "NAME", default_value = "threads", value_parser = Names::TRANSPORTS)]
    pub transport: String,
    /// Seconds that a rank waits for another before it gives up
    #[arg(long, value_name = "SECONDS", default_value_t = DEADLINE)]
    pub deadline: u64,
    #[command(flatten)]
    pub device: DeviceArguments,
}

/// What computes.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = RUNNING)]
pub struct DeviceArguments {
    /// What computes: the processor, or NVIDIA GPUs (feature cuda)
    #[arg(long, value_name = "NAME", default_value = "cpu", value_parser = Names::DEVICES)]
    pub device: String,
}

impl Default for DeviceArguments {
    fn default() -> Self {
        DeviceArguments { device: "cpu".into() }
    }
}

impl DeviceArguments {
    /// What computes numbers of this type; refuses devices that do not exist, those that this build does not have, and
    /// GPUs that lack something, with what that is.
    pub fn hardware(&self, dtype: DType) -> Result<Hardware> {
        if cfg!(not(feature = "cuda")) && self.device == "cuda" {
            let instead = "build with `cargo build --release --features cuda`, or use --device cpu";
            return Err(not_available("--device cuda", instead));
        }
        let hardware = pick("device", &self.device, DEVICES, &[])?;
        #[cfg(feature = "cuda")]
        if hardware == Hardware::Cuda {
            if dtype == DType::F64 {
                let instead = "GPUs compute in --dtype f32, bf16 and f16; or use --device cpu";
                return Err(not_available("--dtype f64 with --device cuda", instead));
            }
            let ready = context_parallel::tensor::cuda::probe::ready();
            ready.map_err(|error| numbers(format!("--device cuda: {error}")))?;
        }
        #[cfg(not(feature = "cuda"))]
        let _ = dtype;
        Ok(hardware)
    }
}

impl Default for EngineArguments {
    fn default() -> Self {
        EngineArguments { transport: "threads".into(), deadline: DEADLINE, device: DeviceArguments::default() }
    }
}

impl EngineArguments {
    /// The transport; refuses what does not exist, what this build does not have, and NCCL where it is missing or there
    /// is no GPU for it.
    pub fn transport(&self) -> Result<Transport> {
        if cfg!(not(feature = "mpi")) && self.transport == "mpi" {
            let instead = "build with `cargo build --release --features mpi`, or use --transport threads";
            return Err(not_available("--transport mpi", instead));
        }
        if cfg!(not(feature = "cuda")) && self.transport == "nccl" {
            let instead = "build with `cargo build --release --features cuda`, or use --transport threads";
            return Err(not_available("--transport nccl", instead));
        }
        let transport = pick("transport", &self.transport, TRANSPORTS, &[])?;
        #[cfg(feature = "cuda")]
        if transport == Transport::Nccl {
            let device = &self.device.device;
            if device != "cuda" {
                return Err(numbers(format!(
                    "--transport nccl is for GPUs, --device is {device}: add --device cuda, or use --transport threads"
                )));
            }
            let ready = context_parallel::comm::nccl::ready();
            ready.map_err(|error| numbers(format!("--transport nccl: {error}")))?;
        }
        Ok(transport)
    }

    /// Seconds that a rank waits for another.
    pub fn deadline(&self) -> Result<u64> {
        match self.deadline {
            0 => Err(numbers("--deadline is 0: use at least 1".to_string())),
            seconds => Ok(seconds),
        }
    }
}
