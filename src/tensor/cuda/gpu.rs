//! A GPU: its context, and the kernels that are compiled for it.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use cudarc::driver::{DriverError, result, sys};

use super::cache;
use super::event::Events;
use super::kernel::{Source, Variant};
use super::probe::{self, Found, Library, said};
use crate::error::{Result, SupportError};

/// The oldest GPUs that the kernels are written for: Ampere.
const OLDEST: (u32, u32) = (8, 0);

/// A kernel on a GPU.
#[derive(Debug)]
pub(super) struct Function {
    pub(super) handle: sys::CUfunction,
    /// Bytes of each parameter.
    parameters: Vec<usize>,
}

// SAFETY: a handle that the driver takes from any thread; its module is never unloaded.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

impl Function {
    /// The parameters as the compiled kernel has them.
    fn new(handle: sys::CUfunction) -> Function {
        let mut parameters = Vec::new();
        let (mut offset, mut bytes) = (0, 0);
        // SAFETY: the function is alive, the pointers valid for the call; there is an error past the last parameter.
        while unsafe {
            sys::cuFuncGetParamInfo(handle, parameters.len(), &raw mut offset, &raw mut bytes).result().is_ok()
        } {
            parameters.push(bytes);
        }
        Function { handle, parameters }
    }

    /// Refuses parameters of other sizes than the kernel reads.
    pub(super) fn expect(&self, bytes: &[usize]) -> Result<(), String> {
        match self.parameters == bytes {
            true => Ok(()),
            false => Err(format!("it takes parameters of {:?} bytes and was given {bytes:?}", self.parameters)),
        }
    }
}

/// A GPU of this process, with one context for all ranks that use it.
pub(super) struct Gpu {
    found: Found,
    context: sys::CUcontext,
    /// Bytes of shared memory that a block can have.
    shared: u32,
    /// Multiprocessors, each of which runs blocks of its own.
    processors: usize,
    /// By variant: the function, or why there is none.
    functions: Vec<OnceLock<Result<Function, String>>>,
    modules: Mutex<HashMap<Source, Result<Module, String>>>,
    pub(super) events: Events,
}

#[derive(Clone, Copy)]
struct Module(sys::CUmodule);

// SAFETY: a context belongs to a process, and the driver takes it, and modules, from any thread.
unsafe impl Send for Gpu {}
// SAFETY: as above; what changes is behind locks.
unsafe impl Sync for Gpu {}

impl Gpu {
    /// The GPU of this number; opened once in a process.
    pub(super) fn open(ordinal: usize) -> Result<Arc<Gpu>> {
        static OPEN: Mutex<Vec<Arc<Gpu>>> = Mutex::new(Vec::new());

        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(gpu) = open.iter().find(|gpu| gpu.found.ordinal == ordinal) {
            return Ok(gpu.clone());
        }
        Library::ALL.into_iter().try_for_each(Library::expect)?;
        let (gpus, _) = probe::gpus()?;
        let count = gpus.len();
        let Some(found) = gpus.into_iter().find(|gpu| gpu.ordinal == ordinal) else {
            return Err(SupportError::Cuda(format!(
                "there is no GPU {ordinal}: {count} can be seen, numbered from 0 (CUDA_VISIBLE_DEVICES chooses them)"
            ))
            .into());
        };
        if found.capability < OLDEST {
            let ((major, minor), name) = (found.capability, &found.name);
            return Err(SupportError::Cuda(format!(
                "{name} has compute capability {major}.{minor}: use a GPU with 8.0 or newer"
            ))
            .into());
        }
        let gpu = Gpu::retained(found).map_err(|error| SupportError::Cuda(said(&error)))?;
        open.push(Arc::new(gpu));
        Ok(open[open.len() - 1].clone())
    }

    fn retained(found: Found) -> Result<Gpu, DriverError> {
        use sys::CUdevice_attribute::{
            CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN as SHARED,
            CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT as PROCESSORS,
        };

        let device = result::device::get(found.ordinal as i32)?;
        // SAFETY: the device exists; its context is kept until the process ends.
        let context = unsafe { result::primary_ctx::retain(device)? };
        // SAFETY: the device exists.
        let [shared, processors] = [SHARED, PROCESSORS].map(|of| unsafe { result::device::get_attribute(device, of) });
        let (shared, processors) = (shared? as u32, processors? as usize);
        let functions = (0..Variant::COUNT).map(|_| OnceLock::new()).collect();
        let (modules, events) = (Mutex::default(), Events::default());
        Ok(Gpu { found, context, shared, processors, functions, modules, events })
    }

    /// What NVIDIA calls it.
    pub(super) fn name(&self) -> &str {
        &self.found.name
    }

    pub(super) fn ordinal(&self) -> usize {
        self.found.ordinal
    }

    /// Bytes of shared memory that a block can have.
    pub(super) fn shared(&self) -> u32 {
        self.shared
    }

    /// Multiprocessors.
    pub(super) fn processors(&self) -> usize {
        self.processors
    }

    /// Major and minor version of what it can compute.
    pub(super) fn capability(&self) -> (u32, u32) {
        self.found.capability
    }

    pub(super) fn context(&self) -> sys::CUcontext {
        self.context
    }

    /// What kernels are compiled for.
    pub(super) fn architecture(&self) -> String {
        let (major, minor) = self.found.capability;
        // What a generation alone has is asked for by name.
        format!("sm_{major}{minor}{}", if major == 9 { "a" } else { "" })
    }

    /// Bytes that nobody has.
    pub(super) fn free_bytes(&self) -> Result<usize> {
        self.enter();
        let (free, _) = result::mem_get_info().map_err(|error| SupportError::Cuda(said(&error)))?;
        Ok(free)
    }

    /// NVIDIA's number for it, which no other one has.
    pub(super) fn uuid(&self) -> Result<[u8; 16]> {
        let mut uuid = sys::CUuuid { bytes: [0; 16] };
        // SAFETY: the pointer is valid for the call, the device exists.
        let found = result::device::get(self.found.ordinal as i32)
            .and_then(|device| unsafe { sys::cuDeviceGetUuid_v2(&raw mut uuid, device).result() });
        found.map_err(|error| SupportError::Cuda(format!("{}: {}", self.name(), said(&error))))?;
        Ok(uuid.bytes.map(|byte| byte.cast_unsigned()))
    }

    /// Makes this the GPU of the calling thread.
    pub(super) fn enter(&self) {
        if !matches!(result::ctx::get_current(), Ok(Some(current)) if current == self.context) {
            // SAFETY: the context is kept until the process ends. Should it not become current, the next call says so.
            let _ = unsafe { result::ctx::set_current(self.context) };
        }
    }

    /// The function of a kernel, compiled if it has not been.
    pub(super) fn function(&self, variant: Variant) -> Result<&Function, &str> {
        self.functions[variant.index()].get_or_init(|| self.load(variant)).as_ref().map_err(String::as_str)
    }

    fn load(&self, variant: Variant) -> Result<Function, String> {
        let source = variant.source();
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        let module = modules.entry(source).or_insert_with(|| self.compiled(source)).clone()?;
        drop(modules);
        self.enter();
        // SAFETY: the module is loaded in this context and never unloaded.
        let function = unsafe { result::module::get_function(module.0, variant.name()) };
        let function = function.map_err(|error| format!("{:?}: {}", variant.name(), said(&error)))?;
        if variant.is_large() {
            use sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as DYNAMIC;
            // SAFETY: the function was just found.
            unsafe { result::function::set_function_attribute(function, DYNAMIC, self.shared as i32) }
                .map_err(|error| format!("{} bytes of shared memory: {}", self.shared, said(&error)))?;
        }
        Ok(Function::new(function))
    }

    fn compiled(&self, source: Source) -> Result<Module, String> {
        let image = cache::cubin(source, &self.architecture())?;
        self.enter();
        // SAFETY: the image is a CUBIN, which says its own length; the driver copies it.
        let module = unsafe { result::module::load_data(image.as_ptr().cast::<c_void>()) };
        Ok(Module(module.map_err(|error| format!("{}: {}", source.file.name, said(&error)))?))
    }
}
