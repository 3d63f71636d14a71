//! `doctor`: what was found on this machine, what is missing, and how to get it.

use std::process::{Command, ExitCode};

use context_parallel::error::Result;
use serde::Serialize;

use super::{machine, output};

/// Say what this program found on this machine, what is missing, and how to get it
#[derive(clap::Args, Clone, Debug)]
pub struct Arguments {
    /// Print one JSON object
    #[arg(long, help_heading = super::args::OUTPUT)]
    json: bool,
}

/// One thing that was sought.
#[derive(Clone, Debug, Serialize)]
struct Finding {
    what: String,
    /// What was found; nothing if it is missing.
    found: Option<String>,
    /// How to get what is missing.
    fix: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
struct Diagnosis {
    version: &'static str,
    findings: Vec<Finding>,
}

fn found(what: &str, found: impl Into<String>) -> Finding {
    Finding { what: what.to_string(), found: Some(found.into()), fix: None }
}

fn missing(what: &str, fix: impl Into<String>) -> Finding {
    Finding { what: what.to_string(), found: None, fix: Some(fix.into()) }
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut findings = processor();
    findings.extend(gpus());
    findings.push(mpi());
    let diagnosis = Diagnosis { version: env!("CARGO_PKG_VERSION"), findings };
    if arguments.json {
        output::json(&diagnosis);
        return Ok(ExitCode::SUCCESS);
    }
    output::line(format!("context-parallel {}", diagnosis.version));
    let width = diagnosis.findings.iter().map(|finding| finding.what.len()).max().unwrap_or(0);
    for Finding { what, found, fix } in &diagnosis.findings {
        let said = found.clone().unwrap_or_else(|| "missing".to_string());
        output::line(format!("{what:width$}  {said}"));
        if let Some(fix) = fix {
            output::line(format!("{:width$}  {fix}", ""));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn processor() -> Vec<Finding> {
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    let memory = machine::memory().map_or("unknown".to_string(), output::bytes);
    vec![
        found("processor", format!("{}, {}", output::many(cores, "core"), std::env::consts::ARCH)),
        found("instruction sets", instruction_sets().join(", ")),
        found("memory", memory),
    ]
}

/// Those that kernels make use of.
fn instruction_sets() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    let sets = [
        ("AVX2", is_x86_feature_detected!("avx2")),
        ("FMA", is_x86_feature_detected!("fma")),
        ("AVX-512F", is_x86_feature_detected!("avx512f")),
    ];
    #[cfg(not(target_arch = "x86_64"))]
    let sets: [(&'static str, bool); 0] = [];
    let present: Vec<_> = sets.into_iter().filter(|(_, is_present)| *is_present).map(|(name, _)| name).collect();
    if present.is_empty() { vec!["none that kernels are written for"] } else { present }
}

#[cfg(not(feature = "cuda"))]
fn gpus() -> Vec<Finding> {
    vec![missing("NVIDIA GPUs", "not part of this build: cargo build --release --features cuda")]
}

#[cfg(feature = "cuda")]
fn gpus() -> Vec<Finding> {
    use context_parallel::tensor::cuda::probe::{self, Library};

    let mut findings: Vec<_> = Library::ALL
        .into_iter()
        .map(|library| match library.is_present() {
            true => found(library.name(), format!("found ({})", library.file())),
            false => missing(library.name(), format!("{}: {}", library.missing(), library.remedy())),
        })
        .collect();
    match probe::gpus() {
        Ok((gpus, version)) => {
            findings.push(found("CUDA of the driver", format!("{}.{}", version / 1000, version % 1000 / 10)));
            if gpus.is_empty() {
                findings
                    .push(missing("NVIDIA GPUs", "the driver sees none: look at nvidia-smi and CUDA_VISIBLE_DEVICES"));
            }
            findings.extend(gpus.iter().map(|gpu| {
                let (major, minor) = gpu.capability;
                let memory = output::bytes(gpu.memory as u64);
                let what = format!("{}, compute capability {major}.{minor}, {memory}", gpu.name);
                found(&format!("GPU {}", gpu.ordinal), what)
            }));
        }
        Err(error) => findings.push(missing("NVIDIA GPUs", error.to_string())),
    }
    let nccl = Library::Nccl;
    findings.push(match context_parallel::comm::nccl::version() {
        Some(version) => found(nccl.name(), format!("{version} ({})", nccl.file())),
        None => missing(nccl.name(), format!("{}: {}; --transport nccl needs it", nccl.missing(), nccl.remedy())),
    });
    findings
}

fn mpi() -> Finding {
    let version = Command::new("mpirun").arg("--version").output().ok().filter(|output| output.status.success());
    let version =
        version.map(|output| String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or("").to_string());
    let fix = "not part of this build: cargo build --release --features mpi";
    match (version, cfg!(feature = "mpi")) {
        (Some(version), true) => found("MPI", version),
        (Some(version), false) => Finding { fix: Some(fix.to_string()), ..found("MPI", version) },
        (None, true) => {
            missing("MPI", "mpirun is not in PATH: install Open MPI (apt install openmpi-bin libopenmpi-dev)")
        }
        (None, false) => missing("MPI", format!("{fix}, and Open MPI (apt install openmpi-bin libopenmpi-dev)")),
    }
}
