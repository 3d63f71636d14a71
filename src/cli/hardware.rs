//! What computes: the processor or GPUs. What runs on ranks is written once, for any device.

#[cfg(any(feature = "mpi", feature = "cuda"))]
use context_parallel::comm::DynComm;
use context_parallel::error::Result;
use context_parallel::model::parameters::ParameterSet;
use context_parallel::ops::Ops;
use context_parallel::tensor::{Cpu, Element, Float, Host};

/// What computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hardware {
    #[default]
    Cpu,
    #[cfg(feature = "cuda")]
    Cuda,
}

/// A device that ranks of the program run on.
pub trait RankDevice: Ops {
    /// That of the rank with this number on its machine; `threads` of the processor are the rank's.
    fn open(seat: usize, threads: usize) -> Result<Self>;

    /// Messages of this device over an engine of host memory.
    #[cfg(feature = "mpi")]
    fn over_host(&self, comm: DynComm) -> DynComm<Self::Storage>;

    /// Messages of this device by NCCL, among the ranks that an engine of host memory connects; refused by devices that
    /// are no GPUs.
    #[cfg(feature = "cuda")]
    fn over_nccl(&self, comm: DynComm, deadline: std::time::Duration) -> Result<DynComm<Self::Storage>>;

    /// A copy, on this device, of what another one of this process has.
    fn copied<R, E: Element>(
        &self,
        from: &Self,
        original: &ParameterSet<R, E, Self::Storage>,
    ) -> ParameterSet<R, E, Self::Storage>;

    /// Does something; the seconds from the begin of its first kernel to the end of its last, where kernels are
    /// measured.
    fn seconds(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Option<f64>> {
        work()?;
        Ok(None)
    }

    /// Measures from now on when what is asked for runs. Commands refuse it before any work where it is not measured.
    fn begin_trace(&self) -> Result<()> {
        Ok(())
    }

    /// What has run since then, for [`RankDevice::trace_of_ranks`].
    fn end_trace(&self) -> Result<String> {
        Ok(String::new())
    }

    /// The traces of all ranks as one file.
    fn trace_of_ranks(traces: &[String]) -> Result<String> {
        Ok(traces.concat())
    }
}

impl<T: Float> RankDevice for Cpu<T> {
    fn open(_: usize, threads: usize) -> Result<Self> {
        Cpu::with_threads(threads)
    }

    #[cfg(feature = "mpi")]
    fn over_host(&self, comm: DynComm) -> DynComm {
        comm
    }

    #[cfg(feature = "cuda")]
    fn over_nccl(&self, _: DynComm, _: std::time::Duration) -> Result<DynComm> {
        Err(super::args::numbers("--transport nccl is for GPUs: use --device cuda".to_string()))
    }

    fn copied<R, E: Element>(&self, _: &Self, original: &ParameterSet<R, E, Host>) -> ParameterSet<R, E, Host> {
        original.duplicate(self)
    }
}

#[cfg(feature = "cuda")]
impl<T: context_parallel::tensor::cuda::CudaFloat> RankDevice for context_parallel::tensor::Cuda<T> {
    /// Ranks take the GPUs in turn; several share one where there are more ranks than GPUs.
    fn open(seat: usize, _: usize) -> Result<Self> {
        let (gpus, _) = context_parallel::tensor::cuda::probe::gpus()?;
        Self::new(seat % gpus.len().max(1))
    }

    #[cfg(feature = "mpi")]
    fn over_host(&self, comm: DynComm) -> DynComm<Self::Storage> {
        Box::new(context_parallel::comm::decorate::staged::Staged::new(comm, self.clone()))
    }

    fn over_nccl(&self, comm: DynComm, deadline: std::time::Duration) -> Result<DynComm<Self::Storage>> {
        use context_parallel::comm::nccl::{NcclComm, NcclOptions};

        Ok(Box::new(NcclComm::new(comm, self, NcclOptions { deadline })?))
    }

    fn copied<R, E: Element>(
        &self,
        from: &Self,
        original: &ParameterSet<R, E, Self::Storage>,
    ) -> ParameterSet<R, E, Self::Storage> {
        use context_parallel::tensor::{Device, Storage};

        // Made where the original is, then handed over as a message would be.
        let mut copy = original.duplicate(from);
        let charge = self.ledger().charge(copy.flat().bytes());
        copy.flat_mut().set_charge(Some(charge));
        copy.flat().storage().leave();
        copy.flat_mut().storage_mut().arrive();
        copy
    }

    fn seconds(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Option<f64>> {
        Self::begin_trace(self)?;
        work()?;
        let spans = Self::end_trace(self)?.spans;
        let begin = spans.iter().map(|span| span.begin).fold(f64::INFINITY, f64::min);
        let end = spans.iter().map(|span| span.begin + span.duration).fold(begin, f64::max);
        Ok(Some((end - begin) / 1e6))
    }

    fn begin_trace(&self) -> Result<()> {
        Self::begin_trace(self)
    }

    fn end_trace(&self) -> Result<String> {
        serde_json::to_string(&Self::end_trace(self)?).map_err(unreadable_trace)
    }

    fn trace_of_ranks(traces: &[String]) -> Result<String> {
        use context_parallel::tensor::cuda::Trace;

        let traces: Result<Vec<Trace>, _> = traces.iter().map(|trace| serde_json::from_str(trace)).collect();
        Ok(Trace::to_json(&traces.map_err(unreadable_trace)?))
    }
}

#[cfg(feature = "cuda")]
fn unreadable_trace(error: serde_json::Error) -> context_parallel::error::Error {
    context_parallel::error::SupportError::Cuda(format!("a rank's trace: {error}")).into()
}

/// The value of an expression in which `$D` is the device that `$hardware` computes with and that stores what `$dtype`
/// names; an error for types that nothing is stored as there.
macro_rules! with_device {
    ($hardware:expr, $dtype:expr, $D:ident => $body:expr) => {{
        #[cfg(feature = "cuda")]
        use context_parallel::tensor::Cuda;
        use context_parallel::tensor::{Cpu, DType};
        use $crate::cli::hardware::Hardware;

        match ($hardware, $dtype) {
            (Hardware::Cpu, DType::F32) => {
                type $D = Cpu<f32>;
                $body
            }
            (Hardware::Cpu, DType::F64) => {
                type $D = Cpu<f64>;
                $body
            }
            (Hardware::Cpu, DType::Bf16) => {
                type $D = Cpu<half::bf16>;
                $body
            }
            (Hardware::Cpu, DType::F16) => {
                type $D = Cpu<half::f16>;
                $body
            }
            #[cfg(feature = "cuda")]
            (Hardware::Cuda, DType::F32) => {
                type $D = Cuda<f32>;
                $body
            }
            #[cfg(feature = "cuda")]
            (Hardware::Cuda, DType::Bf16) => {
                type $D = Cuda<half::bf16>;
                $body
            }
            #[cfg(feature = "cuda")]
            (Hardware::Cuda, DType::F16) => {
                type $D = Cuda<half::f16>;
                $body
            }
            (_, other) => Err($crate::cli::args::no_dtype(other)),
        }
    }};
}
pub(super) use with_device;
