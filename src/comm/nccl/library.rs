//! What is called of NCCL: communicators that never make the host wait. Whoever calls asks [`Raw::is_done`] until it
//! says yes, before anything else is done with the communicator or the stream.

use std::ffi::{CStr, c_char, c_int};

use crate::error::SupportError;
use crate::tensor::DType;
use crate::tensor::cuda::Address;
use crate::tensor::cuda::cudarc::driver::sys::CUstream;
use crate::tensor::cuda::cudarc::nccl::sys;
use crate::tensor::cuda::probe::Library;
use sys::ncclResult_t as Outcome;

/// What is called; bindings that are looked up when they are first called panic if there is none.
const FUNCTIONS: [&str; 13] = [
    "ncclAllReduce",
    "ncclCommAbort",
    "ncclCommDestroy",
    "ncclCommFinalize",
    "ncclCommGetAsyncError",
    "ncclCommInitRankConfig",
    "ncclGetErrorString",
    "ncclGetLastError",
    "ncclGetUniqueId",
    "ncclGroupEnd",
    "ncclGroupStart",
    "ncclRecv",
    "ncclSend",
];

/// Whether all that is called is there.
///
/// # Errors
/// [`SupportError::Cuda`] if the library is not, or is too old.
pub(super) fn expect() -> Result<(), SupportError> {
    Library::Nccl.expect()?;
    let is_missing = |name: &&&str| {
        // SAFETY: the library is there; the function is looked for and not called.
        unsafe { sys::culib().get::<unsafe extern "C" fn()>(name.as_bytes()) }.is_err()
    };
    match FUNCTIONS.iter().find(is_missing) {
        None => Ok(()),
        Some(name) => Err(SupportError::Cuda(format!("NCCL has no {name}: use version 2.18 or newer"))),
    }
}

/// The version, as people say it.
pub(super) fn version() -> Option<String> {
    if !Library::Nccl.is_present() {
        return None;
    }
    let mut version: c_int = 0;
    // SAFETY: the library is there, and every one has the function; the pointer is valid for the call.
    let outcome = unsafe { sys::ncclGetVersion(&raw mut version) };
    (outcome == Outcome::ncclSuccess).then(|| format!("{}.{}.{}", version / 10000, version / 100 % 100, version % 100))
}

/// What the ranks of a communicator find each other by.
pub(super) type Id = [u8; 128];

/// A new one, on the rank that the others come to.
pub(super) fn new_id() -> Result<Id, String> {
    let mut id = sys::ncclUniqueId { internal: [0; 128] };
    // SAFETY: the pointer is valid for the call.
    accepted(unsafe { sys::ncclGetUniqueId(&raw mut id) }, std::ptr::null_mut())?;
    Ok(id.internal.map(|byte| byte.cast_unsigned()))
}

/// A message of an exchange, its bytes in memory of the GPU.
#[derive(Clone, Copy, Debug)]
pub(super) enum Part {
    Send { to: usize, from: Address, bytes: usize },
    Receive { from: usize, to: Address, bytes: usize },
}

/// A communicator; whoever has it ends it by [`destroy`](Self::destroy) or [`abort`](Self::abort).
#[derive(Debug)]
pub(super) struct Raw(sys::ncclComm_t);

// SAFETY: NCCL takes a communicator from any thread, one at a time.
unsafe impl Send for Raw {}

impl Raw {
    /// Begins to join the others, on the calling thread's GPU.
    pub(super) fn join(ranks: usize, rank: usize, id: &Id) -> Result<Raw, String> {
        // What a host leaves to NCCL.
        const UNDEFINED: c_int = c_int::MIN;
        let mut config = sys::ncclConfig_t {
            size: size_of::<sys::ncclConfig_t>(),
            magic: 0xcafe_beef,
            version: 22403,
            blocking: 0,
            cgaClusterSize: UNDEFINED,
            minCTAs: UNDEFINED,
            maxCTAs: UNDEFINED,
            netName: std::ptr::null(),
            splitShare: UNDEFINED,
        };
        let id = sys::ncclUniqueId { internal: id.map(|byte| byte as c_char) };
        let mut comm = std::ptr::null_mut();
        // SAFETY: the pointers are valid for the call; NCCL copies the configuration.
        let outcome =
            unsafe { sys::ncclCommInitRankConfig(&raw mut comm, ranks as c_int, id, rank as c_int, &raw mut config) };
        accepted(outcome, comm)?;
        Ok(Raw(comm))
    }

    /// Whether all that was called for is done as far as the host is concerned: operations are on their stream.
    pub(super) fn is_done(&self) -> Result<bool, String> {
        let mut state = Outcome::ncclSuccess;
        // SAFETY: the communicator is alive, the pointer valid for the call.
        accepted(unsafe { sys::ncclCommGetAsyncError(self.0, &raw mut state) }, self.0)?;
        accepted(state, self.0)?;
        Ok(state != Outcome::ncclInProgress)
    }

    /// Calls for messages that go together, between two ranks in the order of `parts`.
    pub(super) fn exchange(&self, parts: &[Part], stream: CUstream) -> Result<(), String> {
        const BYTES: sys::ncclDataType_t = sys::ncclDataType_t::ncclUint8;
        let stream = stream.cast();
        // SAFETY: the communicator is alive; the addresses are of so many bytes, which live until the stream has passed
        // this, and nobody else writes what is read or uses what is written before.
        let outcomes = unsafe {
            let begun = sys::ncclGroupStart();
            let called = parts.iter().map(|part| match *part {
                Part::Send { to, from, bytes } => {
                    sys::ncclSend(from as *const _, bytes, BYTES, to as c_int, self.0, stream)
                }
                Part::Receive { from, to, bytes } => {
                    sys::ncclRecv(to as *mut _, bytes, BYTES, from as c_int, self.0, stream)
                }
            });
            let refused = called.map(|outcome| accepted(outcome, self.0)).find(Result::is_err);
            [accepted(begun, self.0), refused.unwrap_or(Ok(())), accepted(sys::ncclGroupEnd(), self.0)]
        };
        outcomes.into_iter().collect()
    }

    /// Calls for the sum over ranks of elements, in place.
    pub(super) fn sum(&self, at: Address, len: usize, dtype: DType, stream: CUstream) -> Result<(), String> {
        let Some(dtype) = summed(dtype) else { return Err(format!("it does not sum {dtype}")) };
        // SAFETY: as above.
        let outcome = unsafe {
            let sum = sys::ncclRedOp_t::ncclSum;
            sys::ncclAllReduce(at as *const _, at as *mut _, len, dtype, sum, self.0, stream.cast())
        };
        accepted(outcome, self.0)
    }

    /// Begins the end: what is under way goes on until every rank has called this.
    pub(super) fn finalize(&self) -> Result<(), String> {
        // SAFETY: the communicator is alive.
        accepted(unsafe { sys::ncclCommFinalize(self.0) }, self.0)
    }

    /// Ends a communicator that is finalised.
    pub(super) fn destroy(self) {
        // SAFETY: nobody has it any more.
        unsafe { sys::ncclCommDestroy(self.0) };
    }

    /// Ends what is under way, so that streams go on, without waiting for others.
    pub(super) fn abort(self) {
        // SAFETY: nobody has it any more.
        unsafe { sys::ncclCommAbort(self.0) };
    }
}

/// NCCL's name of a type whose elements it adds.
pub(super) fn summed(dtype: DType) -> Option<sys::ncclDataType_t> {
    match dtype {
        DType::F32 => Some(sys::ncclDataType_t::ncclFloat32),
        DType::F64 => Some(sys::ncclDataType_t::ncclFloat64),
        DType::F16 => Some(sys::ncclDataType_t::ncclFloat16),
        DType::Bf16 => Some(sys::ncclDataType_t::ncclBfloat16),
        DType::I64 | DType::I32 | DType::U8 => None,
    }
}

/// Whether a call was taken, be it done or not; else what NCCL says.
fn accepted(outcome: Outcome, comm: sys::ncclComm_t) -> Result<(), String> {
    if matches!(outcome, Outcome::ncclSuccess | Outcome::ncclInProgress) {
        return Ok(());
    }
    let said = |text: *const c_char| {
        // SAFETY: NCCL gives null or text that ends with a zero and stays until its next error.
        if text.is_null() { String::new() } else { unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned() }
    };
    // SAFETY: both take any value, and the second no communicator as well.
    let (what, more) = unsafe { (said(sys::ncclGetErrorString(outcome)), said(sys::ncclGetLastError(comm))) };
    let more = if more.is_empty() { more } else { format!(" ({})", more.trim()) };
    Err(format!("{what}{more}; NCCL_DEBUG=INFO in the environment makes it say more"))
}
