//! Ranks of the program: threads with a boxed communicator, so that each combination is compiled for one type of it.

use context_parallel::comm::{Communicator, threads};
use context_parallel::error::Result;

/// What every rank of the program talks through. An exchange costs far more than the virtual call.
pub type Comm = Box<dyn Communicator>;

/// Runs `body` on `ranks` threads and gives their results by rank. The body is behind a pointer so that threads and
/// their mailboxes are compiled once per result, not once per combination.
pub fn on_ranks<R: Send>(ranks: usize, body: &(dyn Fn(Comm) -> Result<R> + Sync)) -> Result<Vec<R>> {
    threads::run(ranks, |comm| body(Box::new(comm)))
}

/// The value of an expression in which `$T` is the storage type that `$dtype` names; an error for types that nothing
/// is stored as.
macro_rules! with_storage_type {
    ($dtype:expr, $T:ident => $body:expr) => {{
        use context_parallel::tensor::DType;
        match $dtype {
            DType::F32 => {
                type $T = f32;
                $body
            }
            DType::F64 => {
                type $T = f64;
                $body
            }
            DType::Bf16 => {
                type $T = half::bf16;
                $body
            }
            DType::F16 => {
                type $T = half::f16;
                $body
            }
            other => {
                Err($crate::cli::args::not_available(format!("--dtype {other}"), "choose one of f32, bf16, f16, f64"))
            }
        }
    }};
}
pub(super) use with_storage_type;
